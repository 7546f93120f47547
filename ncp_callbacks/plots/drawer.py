"""Pictures of a run, drawn again and again: only what changed is drawn anew::

    drawer = Drawer()
    png = drawer.png("attribution/heatmap", plot_feature_importance, result, {"step": 100})

A picture is that of a fresh figure, pixel by pixel; in a PNG, each colour becomes the nearest of
256 that are fixed for its kind of plot.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._sheet import (
    ABOVE,
    DPI,
    HEIGHT,
    LEFT,
    WIDTH,
    Colors,
    Panel,
    Ruler,
    Sheet,
    Words,
    blank,
    to_png,
)
from .backbone import draw_unit_activity, plot_unit_activity
from .dynamics import draw_dynamics, plot_dynamics
from .faithfulness import draw_faithfulness, plot_faithfulness
from .importance import draw_feature_importance, plot_feature_importance
from .interactions import draw_interactions, plot_interactions
from .output_time import draw_output_time, plot_output_time
from .predictions import draw_prediction, plot_prediction
from .sanity import draw_sanity, draw_sanity_measures, plot_sanity, plot_sanity_measures
from .states import draw_state_space, plot_state_space
from .time import draw_time_sensitivity, plot_time_sensitivity
from .time_constants import (
    draw_time_constants,
    draw_time_constants_over_time,
    plot_time_constants,
    plot_time_constants_over_time,
)
from .wiring import draw_wiring, plot_wiring

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Drawer"]

Pixels = npt.NDArray[np.uint8]

SHEETS: tuple[tuple[Callable[..., Figure], Callable[..., None]], ...] = (
    (plot_feature_importance, draw_feature_importance),
    (plot_state_space, draw_state_space),
    (plot_time_constants, draw_time_constants),
    (plot_time_constants_over_time, draw_time_constants_over_time),
    (plot_time_sensitivity, draw_time_sensitivity),
    (plot_unit_activity, draw_unit_activity),
    (plot_wiring, draw_wiring),
    (plot_dynamics, draw_dynamics),
    (plot_faithfulness, draw_faithfulness),
    (plot_sanity, draw_sanity),
    (plot_sanity_measures, draw_sanity_measures),
    (plot_interactions, draw_interactions),
    (plot_output_time, draw_output_time),
    (plot_prediction, draw_prediction),
)
MOST_STAMPS = 512
# Less is hardly faster, more takes twice as long for a tenth fewer bytes.
LEVEL = 3
ROWS = 43


class _Frame(NamedTuple):
    """What the pictures of a tag share: their axes, and these drawn."""

    panels: list[Panel]
    figure: Figure
    axes: list[Axes]
    # Spines, which are drawn over what changes.
    spines: list[list[Artist]]
    background: Pixels


class _Stamp(NamedTuple):
    """A text drawn on white, and where its upper left corner is relative to its anchor."""

    right: int
    down: int
    pixels: Pixels


class Drawer:
    """Draws pictures of many tags; for the use of one thread.

    The frame of each tag (axes, ticks and their labels) is drawn once and kept until something in
    it changes, such as a limit; so are texts, each by itself. Other plot functions than our own
    are drawn afresh.

    Args:
        most_frames: How many frames are kept, about 2 MB each; beyond, those of the tags that were
            not drawn for longest are let go.
    """

    def __init__(self, most_frames: int = 32) -> None:
        from matplotlib.backends.backend_agg import RendererAgg

        self._most_frames = most_frames
        self._frames: OrderedDict[str, _Frame] = OrderedDict()
        self._ruler = Ruler()
        self._figure = blank()
        self._renderer, self._ink = (
            RendererAgg(WIDTH, HEIGHT, DPI)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        self._pixels, self._ink_pixels = (
            np.asarray(renderer.buffer_rgba())  # type: ignore[no-untyped-call]
            for renderer in (self._renderer, self._ink)
        )
        self._stamp: Callable[[Words], _Stamp] = lru_cache(MOST_STAMPS)(self._new_stamp)
        self._palette: Callable[[Callable[[], Colors]], _Palette] = lru_cache(8)(_Palette)

    def png(
        self, tag: str, plot: Callable[..., Figure], data: Any, options: Mapping[str, Any]
    ) -> bytes:
        """``plot(data, **options)`` as a PNG, the next picture of this tag.

        Raises:
            Exception: What the plot function raises.
        """
        for own, draw in SHEETS:
            if plot is own:
                sheet = Sheet(self._ruler)
                draw(sheet, data, **options)
                return self._palette(sheet.palette).png(self.picture(tag, sheet))
        return to_png(plot(data, **options))

    def picture(self, tag: str, sheet: Sheet) -> Pixels:
        """``(height, width, 4)``, overwritten by the next picture."""
        # It comes back when all went well: else artists would be left in it.
        frame = self._frames.pop(tag, None)
        if frame is None or frame.panels != sheet.panels:
            frame = self._new_frame(sheet.panels)
        np.copyto(self._pixels, frame.background)
        for panel, axes, spines in zip(sheet.panels, frame.axes, frame.spines, strict=True):
            for artist in panel.artists:
                axes.add_artist(artist)
            # As matplotlib would: by z-order, and then in the order of adding.
            for artist in sorted([*panel.artists, *spines], key=lambda a: a.get_zorder()):
                artist.draw(self._renderer)
            for artist in panel.artists:
                artist.remove()
        for artist in sheet.artists:
            self._figure.add_artist(artist)
            artist.draw(self._renderer)
            artist.remove()
        for x, y, words in sheet.texts:
            self._put(self._stamp(words), x, y)
        self._frames[tag] = frame
        while len(self._frames) > self._most_frames:
            self._frames.popitem(last=False)
        return self._pixels

    def _new_frame(self, panels: list[Panel]) -> _Frame:
        figure = blank()
        axes = [panel.axes(figure, self._ruler) for panel in panels]
        spines: list[list[Artist]] = []
        for each in axes:
            spines.append([a for a in each.get_children() if _is_above(a)])
            for artist in spines[-1]:
                artist.set_animated(True)
        self._renderer.clear()  # type: ignore[no-untyped-call]
        figure.draw(self._renderer)
        bare = [replace(panel, artists=[]) for panel in panels]
        return _Frame(bare, figure, axes, spines, self._pixels.copy())

    def _new_stamp(self, words: Words) -> _Stamp:
        x = {"left": LEFT, "center": WIDTH // 2, "right": WIDTH - LEFT}[words.ha]
        y = HEIGHT // 2
        self._ink_pixels.fill(255)
        text = words.put(self._figure, x, y, self._ruler)
        text.draw(self._ink)
        text.remove()
        inked = self._ink_pixels.view(np.uint32)[..., 0] != 0xFFFFFFFF
        rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
        if not rows.size:
            return _Stamp(0, 0, self._ink_pixels[:0, :0].copy())
        top, left = int(rows[0]), int(columns[0])
        pixels = self._ink_pixels[top : rows[-1] + 1, left : columns[-1] + 1].copy()
        return _Stamp(left - x, top - (HEIGHT - y), pixels)

    def _put(self, stamp: _Stamp, x: int, y: int) -> None:
        top, left = HEIGHT - y + stamp.down, x + stamp.right
        height, width = stamp.pixels.shape[:2]
        rows, columns = slice(max(0, top), top + height), slice(max(0, left), left + width)
        here = self._pixels[rows, columns]
        cut = stamp.pixels[max(0, -top) :, max(0, -left) :][: here.shape[0], : here.shape[1]]
        # The boxes of neighbours may overlap; their ink doesn't.
        np.minimum(here, cut, out=here)


def _is_above(artist: Artist) -> bool:
    from matplotlib.spines import Spine

    return isinstance(artist, Spine) and artist.get_zorder() >= ABOVE


class _Palette:
    """At most 256 colours, and which of them is nearest to any other.

    Colours are told apart by 7 bits of each channel. Where each belongs is found when it is first
    met, but doesn't depend on what was met before.
    """

    def __init__(self, make: Callable[[], Colors]) -> None:
        colors = np.concatenate([np.ones((1, 3)), make()])
        if len(colors) > 256:
            raise ValueError(f"a palette of {len(colors)} colours: a PNG has at most 256")
        self._colors = np.round(colors * 255).astype(np.uint8)
        # One more than the index, 0 where it is not known yet.
        self._nearest = np.zeros(1 << 21, np.uint16)
        exact = np.zeros((len(colors), 4), np.uint8)
        exact[:, :3] = self._colors
        # White is the first, and the first of equals is the one that counts.
        self._nearest[_keys(exact)[::-1]] = np.arange(len(colors), 0, -1)

    def png(self, pixels: Pixels) -> bytes:
        height, width = pixels.shape[:2]
        lines = np.zeros((height, 1 + width), np.uint8)  # Each begins with its filter: none.
        # In pieces that fit into the processor's cache, which takes half the time.
        for top in range(0, height, ROWS):
            keys = _keys(pixels[top : top + ROWS])
            index = self._nearest[keys]
            if not index.all():
                new = np.unique(keys[index == 0])
                self._nearest[new] = self._find(new)
                index = self._nearest[keys]
            np.subtract(index, 1, out=lines[top : top + ROWS, 1:], casting="unsafe")
        # Not by Pillow, which holds the interpreter's lock while it compresses.
        return b"".join(
            [
                b"\x89PNG\r\n\x1a\n",
                _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
                _chunk(b"PLTE", self._colors.tobytes()),
                _chunk(b"IDAT", zlib.compress(lines.tobytes(), LEVEL)),
                _chunk(b"IEND", b""),
            ]
        )

    def _find(self, keys: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
        channels = np.stack([(keys >> shift) & 0x7F for shift in (0, 7, 14)], axis=1)
        center, colors = channels * 2.0 + 0.5, self._colors.astype(np.float64)
        return np.asarray(((colors**2).sum(1) - 2 * center @ colors.T).argmin(axis=1) + 1)


def _keys(pixels: Pixels) -> npt.NDArray[np.integer[Any]]:
    """7 bits of red, green and blue of ``(..., 4)`` pixels in one number each."""
    whole = pixels.view("<u4")[..., 0]
    keys: npt.NDArray[np.integer[Any]] = (whole >> 1) & 0x7F
    keys |= (whole >> 2) & 0x3F80
    keys |= (whole >> 3) & 0x1FC000
    return keys


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(name))
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
