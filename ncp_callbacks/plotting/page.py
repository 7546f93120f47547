"""Lay out the page that a picture is drawn on, and keep the parts that the next one shares."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np
import numpy.typing as npt

from .pyplot import forget, new_figure
from .sprites import Sprites
from .style import (
    DPI,
    GREY,
    HEIGHT,
    INK,
    LABEL_Y,
    LEFT,
    LIGHT,
    LINE_HEIGHT,
    RIGHT,
    SECOND_Y,
    TITLE_Y,
    WIDTH,
    line,
    points,
    text_style,
)
from .text import shorten, space_width, text_width

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from .artists import PageAxes

__all__ = ["FrameChangedError", "Page", "redrawable"]

P = ParamSpec("P")
# Where a text is, and all else that its pixels depend on.
_Place = tuple[int, int, tuple[Any, ...]]
# Changing artists are drawn over the kept ones, and spines over both.
OVER, SPINES = 10, 30


class FrameChangedError(Exception):
    """Report that a kept page does not fit the next picture, which needs a new one."""


def redrawable(draw: Callable[Concatenate[Page, P], None]) -> Callable[P, Figure]:
    """Turn a function that draws on a page into a plot function that returns its figure.

    The page is a new figure, which ``plt.show()`` shows if a script that uses pyplot called the
    function, or lies on the axes that are passed as ``ax``, which the function itself need not use.
    A :class:`~.redraw.Redrawer` redraws such pictures quickly, because it keeps their last page.
    """

    @functools.wraps(draw)
    def plot(*args: P.args, **kwargs: P.kwargs) -> Figure:
        page = Page(host=kwargs.get("ax"), caller=sys._getframe(1))
        try:
            draw(page, *args, **kwargs)
            page.finish()
        except BaseException:
            if kwargs.get("ax") is None:
                forget(page.figure)
            raise
        return page.figure

    signature = inspect.signature(draw)
    plot.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=list(signature.parameters.values())[1:], return_annotation="Figure"
    )
    del plot.__wrapped__
    plot.draw_on_page = draw  # type: ignore[attr-defined]
    return plot


class Page:
    """Lay out a figure of 640 × 430 pixels, with places in pixels from its lower left corner.

    Axes with their ticks, labels and limits are kept between pictures as long as they are made
    with equal arguments. Artists that matplotlib's own methods add to the axes are drawn again for
    each picture, over the kept ones. Of texts that were drawn before, the pixels are copied. Pass
    the settings of axes to :meth:`axes`, with ``xlim`` and ``ylim`` among them: a picture that
    changes them afterwards is correct, but is drawn afresh each time.

    Args:
        sprites: Pixels of texts, which pages may share; None for the page's own.
        host: Axes of somebody's figure that the page lies on, scaled to their present size; None
            for a figure of its own. On other axes a page is drawn once.
        caller: Who called the plot function, whose pyplot shows the figure; None: nobody's does.

    Raises:
        TypeError: ``host`` is something else.
    """

    def __init__(
        self,
        sprites: Sprites | None = None,
        host: Any = None,
        caller: FrameType | None = None,
    ) -> None:
        from .hosting import checked_axes, figure_of

        self._host = checked_axes(host)
        self._hosted: list[Artist] = []
        if self._host is None:
            self.figure = new_figure(
                caller,
                figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white", edgecolor="white",
                linewidth=0,
            )  # fmt: skip
            self.figure.set_layout_engine("none")
        else:
            self.figure = figure_of(self._host)
        self._sprites = Sprites() if sprites is None else sprites
        self._axes: list[tuple[dict[str, Any], PageAxes]] = []
        self._kept: list[set[Artist]] = []  # Parts of each axes that are kept.
        self._texts: dict[Text, _Place] = {}
        self._old_texts: dict[_Place, Text] = {}  # Of the last picture.
        self._background: Any = None
        self.keepable = True  # Axes are as the calls of :meth:`axes` made them.
        self._used = 0  # Number of kept axes that this picture has used.

    # --- called by a picture ----------------------------------------------------------------------

    def axes(
        self,
        left: float,
        bottom: float,
        right: float,
        top: float,
        *,
        spines: Sequence[str] = ("left", "bottom"),
        xticks: npt.ArrayLike = (),
        yticks: npt.ArrayLike = (),
        xticklabels: Sequence[str] | None = None,
        yticklabels: Sequence[str] | None = None,
        ticks: str = "both",
        grid: str = "",
        xlabel: str = "",
        ylabel: str = "",
        hlines: Sequence[tuple[float, dict[str, Any]]] = (),
        vlines: Sequence[tuple[float, dict[str, Any]]] = (),
        gradient: tuple[str, float] | None = None,
        **properties: Any,
    ) -> Axes:
        """Return axes between these pixels.

        Args:
            left: Left end of the axes.
            bottom: Lower end of the axes.
            right: Right end of the axes.
            top: Upper end of the axes.
            spines: Spines to draw.
            xticks: Positions of ticks on the horizontal axis.
            yticks: Positions of ticks on the vertical axis.
            xticklabels: Labels of the horizontal axis's ticks; None for bare ticks.
            yticklabels: Labels of the vertical axis's ticks; None for bare ticks.
            ticks: Axes with visible tick marks: ``"both"``, ``"x"``, ``"y"`` or ``""``.
            grid: Axes with pale lines at their ticks: ``"both"``, ``"x"``, ``"y"`` or ``""``.
            xlabel: Label below the axes.
            ylabel: Label at the left edge of the page.
            hlines: Places and styles of lines across the axes, below all that is drawn on them.
            vlines: Places and styles of upright lines.
            gradient: Name of a colour map that fills the axes along their longer side, and the
                share of the map to use.
            properties: Any other property of axes, such as ``xlim`` or ``xscale``.
        """
        if xlabel:
            self.text((left + right) / 2, LABEL_Y, xlabel, ha="center")
        if ylabel:
            middle = (bottom + top) / 2
            self.text(LEFT + 18, middle, ylabel, ha="center", va="center", rotation=90)
        at = {"x": np.ravel(xticks).tolist(), "y": np.ravel(yticks).tolist()}
        labels = {"x": xticklabels, "y": yticklabels}
        spec = {
            "box": (left, bottom, right, top), "spines": tuple(spines), "at": at, "ticks": ticks,
            "labels": {k: v if v is None else list(v) for k, v in labels.items()}, "grid": grid,
            "gradient": gradient, "hlines": list(hlines), "vlines": list(vlines),
            "properties": {k: _plain(v) for k, v in properties.items()},
        }  # fmt: skip
        self._used += 1
        if self._background is not None:
            if self._used > len(self._axes) or self._axes[self._used - 1][0] != spec:
                raise FrameChangedError
            return self._axes[self._used - 1][1]
        axes = self._new_axes(spec)
        if gradient:
            _fill(axes, *gradient)
        self._axes.append((spec, axes))
        self._kept.append(_unchanged_parts(axes))
        return axes

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        ha: str = "left",
        va: str = "baseline",
        color: Any = INK,
        rotation: float = 0.0,
    ) -> None:
        """Write a text at a place in pixels.

        Args:
            x: Horizontal place.
            y: Vertical place.
            text: What to write.
            ha: Horizontal alignment to the place.
            va: Vertical alignment to the place.
            color: Colour of the letters.
            rotation: Angle in degrees.
        """
        from matplotlib.colors import to_rgba

        # At whole pixels, equal texts have equal pixels everywhere.
        x, y = round(x), round(y)
        place = x, y, (text, ha, va, to_rgba(color), rotation)
        artist = self._old_texts.pop(place, None)
        if artist is None:
            style: dict[str, Any] = {
                "ha": ha, "va": va, "color": color, "rotation": rotation, "alpha": 1.0,
                "zorder": OVER + 3, **text_style(),
            }  # fmt: skip
            if self._host is None:
                artist = self.figure.text(x / WIDTH, y / HEIGHT, text, **style)
            else:
                style["transform"] = self._host.transAxes
                artist = self._host.text(x / WIDTH, y / HEIGHT, text, **style)
                self._hosted.append(artist)
            artist.stale = False  # It is true again once a picture has changed the text.
        else:
            self.figure.texts.append(artist)
        self._texts[artist] = place

    def words(self, x: float, y: float, *words: tuple[str, Any]) -> float:
        """Write texts one after the other, and return where the last one ends.

        Args:
            x: Where the first text begins.
            y: Baseline.
            words: Texts with their colours.
        """
        for text, color in words:
            if text:
                self.text(x, y, text, color=color)
                x += text_width(text) + space_width()
        return x - space_width()

    def legend(self, *entries: tuple[Any, str], note: str | None = "", x: float = LEFT) -> float:
        """Write colours with their meanings below the title, and a note in grey after them.

        Args:
            entries: Colours with their meanings.
            note: Text after the legend, shortened to the room that is left.
            x: Where the legend begins.

        Returns:
            Where the entries end.
        """
        words = [word for color, name in entries for word in (("■", color), (name, INK))]
        end = self.words(x, SECOND_Y, *words) if words else x - 12
        if note:
            self.text(end + 12, SECOND_Y, shorten(note, RIGHT - end - 12), color=GREY)
        return end

    def title(self, text: str, step: int | None = None) -> None:
        """Write the title.

        Args:
            text: A finding, or a quantity with its unit.
            step: Training step, written at the end.
        """
        count = "" if step is None else f"{int(step):,}"
        last = " · step" if count else ""
        room = RIGHT - LEFT - text_width(last + " " + "0" * len(count))
        title = f"{shorten(text, room)}{last} {count}"
        # Words with digits change from picture to picture, and those between them don't.
        parts = re.findall(r"\S*\d\S*|[^\s\d]+(?:\s+[^\s\d]+)*(?!\S)", title)
        self.words(LEFT, TITLE_Y, *((part, INK) for part in parts))

    def line(self, x: Sequence[float], y: Sequence[float], color: Any = GREY) -> None:
        """Draw a thin line between places in pixels."""
        from matplotlib.lines import Line2D

        places = np.asarray(x) / WIDTH, np.asarray(y) / HEIGHT
        self._add(Line2D(*places, **line(color, 2)))

    def markers(self, x: float, y: float, style: dict[str, Any]) -> None:
        """Draw a marker at a place in pixels."""
        from matplotlib.lines import Line2D

        self._add(Line2D([x / WIDTH], [y / HEIGHT], **style))

    def _add(self, artist: Artist) -> None:
        if self._host is None:
            self.figure.add_artist(artist)
        else:
            artist.set(transform=self._host.transAxes, clip_on=False)
            self._host.add_artist(artist)
            self._hosted.append(artist)

    # --- called by a Redrawer ---------------------------------------------------------------------

    def clear(self) -> None:
        """Remove all artists that are not kept, for the next picture."""
        self._old_texts = {place: text for text, place in self._texts.items() if not text.stale}
        for text in self._old_texts.values():
            self.figure.texts.remove(text)
        for artist in self._moving():
            artist.remove()
        for _, axes in self._axes:
            axes.set_prop_cycle(None)  # The first colour again.
            axes.unmeasured.clear()
        self._used = 0
        self._texts.clear()

    def finish(self) -> None:
        """Put the artists that are not kept over those that are kept.

        Raises:
            FrameChangedError: If the kept artists don't fit the picture.
        """
        for artist in self._moving():
            if artist.get_zorder() < OVER:
                artist.set_zorder(artist.get_zorder() + OVER)
        if self._host is not None:
            from .hosting import scale

            self._host.set_axis_off()
            scale(self._host, self._hosted)
            return
        own = [axes for _, axes in self._axes]
        # Limits that follow the artists can't be kept with the axes.
        self.keepable = self.figure.axes == own and not any(
            axes.get_autoscalex_on() or axes.get_autoscaley_on() or any(part.stale for part in kept)
            for axes, kept in zip(own, self._kept, strict=True)
        )
        if self._background is None:
            return
        if self._used < len(self._axes) or not self.keepable:
            raise FrameChangedError

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Draw and return the pixels, ``(height, width, 4)``, which the next picture overwrites."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        if self._background is None:
            self._canvas = FigureCanvasAgg(self.figure)
            if not self.keepable:
                self._canvas.draw()  # type: ignore[no-untyped-call]
                return np.asarray(self._canvas.buffer_rgba())  # type: ignore[no-untyped-call]
            for artist in self._drawn_over():
                artist.set_animated(True)
            self._canvas.draw()  # type: ignore[no-untyped-call]
            self._background = self._canvas.copy_from_bbox(self.figure.bbox)  # type: ignore[no-untyped-call]
        else:
            self._canvas.restore_region(self._background)  # type: ignore[no-untyped-call]
        renderer = self._canvas.get_renderer()  # type: ignore[no-untyped-call]
        for artist in self._drawn_over():
            artist.set_animated(False)
            place = self._texts.get(artist)  # type: ignore[call-overload]
            if place is not None and not artist.stale:
                x, y, style = place
                reach = 2 * LINE_HEIGHT + int(text_width(style[0]))
                self._sprites.draw(artist, x, y, style, reach, renderer)
            else:
                if place is not None:  # A picture has changed the text.
                    del self._texts[artist]  # type: ignore[arg-type]
                artist.draw(renderer)
        for part in set().union(*self._kept):
            part.stale = False
        return np.asarray(self._canvas.buffer_rgba())  # type: ignore[no-untyped-call]

    # ----------------------------------------------------------------------------------------------

    def _moving(self) -> list[Artist]:
        """Return the artists that are not kept."""
        kept = {self.figure.patch, *self.figure.axes}
        own = [child for child in self.figure.get_children() if child not in kept]
        if self._host is not None:
            own = []  # The rest of the figure is somebody's.
        for (_, axes), stay in zip(self._axes, self._kept, strict=True):
            own += [child for child in axes.get_children() if child not in stay]
        return own

    def _drawn_over(self) -> list[Artist]:
        """Return the artists that are drawn over the background, in matplotlib's order."""
        over: list[Artist] = []
        moving = set(self._moving())
        for axes in self.figure.axes:
            spines = {spine for spine in axes.spines.values() if spine.get_visible()}
            own = [child for child in axes.get_children() if child in moving or child in spines]
            over += sorted(own, key=lambda artist: artist.get_zorder())
        own = [child for child in self.figure.get_children() if child in moving]
        return over + sorted(own, key=lambda artist: artist.get_zorder())

    def _new_axes(self, spec: dict[str, Any]) -> PageAxes:
        from matplotlib.ticker import NullLocator

        from .artists import PageAxes

        left, bottom, right, top = spec["box"]
        place = (left / WIDTH, bottom / HEIGHT, (right - left) / WIDTH, (top - bottom) / HEIGHT)
        properties: dict[str, Any] = {
            "axes_class": PageAxes,
            "facecolor": "white",
            "axisbelow": True,
        }
        if self._host is None:
            axes = self.figure.add_axes(place, **properties)
        else:
            axes = self._host.inset_axes(place, **properties)
            self._hosted.append(axes)
        assert isinstance(axes, PageAxes)
        axes.grid(False, which="both")
        for name, spine in axes.spines.items():
            spine.set_visible(name in spec["spines"])
            spine.set(edgecolor=INK, linewidth=points(2), zorder=SPINES)
        # The user's matplotlib style may have ticks on any side.
        axes.tick_params(
            which="both", bottom=True, top=False, left=True, right=False, labelbottom=True,
            labeltop=False, labelleft=True, labelright=False, direction="out",
            width=points(2), color=INK, labelcolor=INK, pad=points(5), labelrotation=0,
        )  # fmt: skip
        axes.set(**spec["properties"])
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            at, labels = spec["at"][name], spec["labels"][name]
            axis.set_minor_locator(NullLocator())
            axis.set_ticks(at, labels or [""] * len(at), **text_style())
            axis.set_tick_params(length=points(6) if spec["ticks"] in (name, "both") else 0)
            if spec["grid"] in (name, "both"):
                axis.grid(True, color=LIGHT, linewidth=points(2), linestyle="-", alpha=1.0)
        for y, style in spec["hlines"]:
            axes.axhline(y, zorder=1, **style)
        for x, style in spec["vlines"]:
            axes.axvline(x, zorder=1, **style)
        return axes


def _fill(axes: Axes, cmap: str, last: float) -> None:
    """Fill axes with the colours of a map, to the right or upwards."""
    from matplotlib.image import AxesImage

    colors = np.linspace(0.0, last, 70)[None]
    colors = colors if axes.bbox.width > axes.bbox.height else colors.T
    limits = *axes.get_xlim(), *axes.get_ylim()
    image = AxesImage(
        axes, cmap=cmap, interpolation="nearest", origin="lower", extent=limits, filternorm=True,
        resample=True,
    )  # fmt: skip
    image.set_data(colors)
    image.set_clim(0.0, 1.0)
    axes.add_image(image)
    image.set_clip_path(axes.patch)
    axes.set_autoscale_on(False)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _unchanged_parts(axes: Axes) -> set[Artist]:
    """Return the parts of new axes, marked as unchanged."""
    parts = {*axes.get_children(), axes.xaxis.label, axes.yaxis.label}
    for part in parts:
        part.stale = False
    return parts
