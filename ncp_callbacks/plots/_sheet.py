"""A picture laid out in pixels, with a style of its own, and numbers in words."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Colors: TypeAlias = npt.NDArray[np.float64]

# Twice the height of a TensorBoard card (215), so that it is scaled by exactly 1/2 or 1: cards are
# scaled without smoothing, and any other factor cuts strokes off letters.
WIDTH, HEIGHT, DPI = 640, 430, 100
SIZE = 16
FONT = "DejaVu Sans"  # Comes with matplotlib.
LINE_HEIGHT = 25  # Pixels between baselines.
TITLE_Y, SECOND_Y = 404, 376  # Baselines of the two rows of text above the axes.
LEFT = 8  # Where they begin.

INK, GREY, LIGHT, MISSING = "#1a1a1a", "#666666", "#d9d9d9", "#bdbdbd"
# Okabe & Ito's palette, distinguishable with any colour vision.
BLUE, VERMILION, ORANGE, SKY = "#0072B2", "#D55E00", "#E69F00", "#56B4E9"
GREEN, PURPLE = "#009E73", "#CC79A7"
PALE = "#A3CBE3"  # Blue, for what is less sure or less in a row of others.
DOTTED = {"linestyle": (0, (1, 2))}
SEPARATED = 64  # Up to this many units there is a gap between their bars.

ABOVE = 2.0  # Least z-order of what changes in a panel; that of its spines is 2.5.

# Fewer colours are fine while less than this share of pixels changes by more than this of 255
# levels; at the edges of lines and letters nobody sees it.
MOST_CHANGED, VISIBLE = 0.002, 24

MINUS, ELLIPSIS = "\N{MINUS SIGN}", "\N{HORIZONTAL ELLIPSIS}"


def points(pixels: float) -> float:
    """Points, in which matplotlib measures lines, in pixels."""
    return pixels * 72 / DPI


class Ruler:
    """Measures text and remembers what it measured."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.font_manager import FontProperties

        self._renderer = RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]
        self._font = FontProperties(
            family=FONT, style="normal", variant="normal", weight="normal", stretch="normal",
            size=SIZE,
        )  # fmt: skip
        self.width: Callable[[str], float] = lru_cache(4096)(self._width)
        self.shorten: Callable[[str, float, bool], str] = lru_cache(1024)(self._shorten)

    @property
    def style(self) -> dict[str, Any]:
        # A copy, because set_ticks and others change the font they are given. Names are the
        # user's: a "$" in them is no formula.
        return {"fontproperties": self._font.copy(), "parse_math": False, "usetex": False}

    def _width(self, text: str) -> float:
        if not text:
            return 0.0
        size = self._renderer.get_text_width_height_descent(text, self._font, False)  # type: ignore[no-untyped-call]
        return float(size[0])

    def _shorten(self, text: str, width: float, keep_end: bool) -> str:
        text = " ".join(text.split())
        if self._width(text) <= width:
            return text
        short = ELLIPSIS
        for n in range(1, len(text)):
            longer = ELLIPSIS + text[-n:].lstrip() if keep_end else text[:n].rstrip() + ELLIPSIS
            if self._width(longer) > width:
                break
            short = longer
        return short


@dataclass(frozen=True)
class Words:
    """A text, without its place."""

    text: str
    ha: str = "left"
    va: str = "baseline"
    color: Any = INK
    rotation: float = 0.0

    def put(self, figure: Figure, x: float, y: float, ruler: Ruler) -> Text:
        return figure.text(
            x / WIDTH, y / HEIGHT, self.text, ha=self.ha, va=self.va, color=self.color,
            rotation=self.rotation, alpha=1.0, **ruler.style,
        )  # fmt: skip


@dataclass
class Panel:
    """Axes without ticks or grid, and the artists in them.

    What is given as numbers and names stays the same for long, and is compared to know whether it
    did; artists change from picture to picture. They are above :data:`ABOVE`, all else but the
    spines is below.
    """

    box: tuple[float, float, float, float]
    xlim: tuple[float, float]
    ylim: tuple[float, float]
    spines: tuple[str, ...] = ("left", "bottom")
    xscale: str = "linear"
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    marks: dict[str, tuple[list[float], list[str], float]] = field(default_factory=dict)
    artists: list[Artist] = field(default_factory=list, compare=False)

    def always(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call this method of the axes, with arguments that can be compared."""
        self.calls.append((method, args, kwargs))

    def ticks(
        self,
        which: str,
        positions: npt.ArrayLike,
        labels: Sequence[str] | None = None,
        *,
        length: float = 6,
    ) -> None:
        """Ticks at ``positions`` only; without ``labels`` bare ones."""
        at = [float(p) for p in np.atleast_1d(np.asarray(positions, np.float64))]
        self.marks[which] = (at, list(labels) if labels is not None else [""] * len(at), length)

    def add(self, *artists: Artist) -> None:
        self.artists += artists

    def axes(self, figure: Figure, ruler: Ruler) -> Axes:
        """New axes in the figure, without the artists."""
        from matplotlib.ticker import NullLocator

        left, bottom, width, height = self.box
        axes = figure.add_axes(
            (left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT),
            facecolor="white",
            axisbelow=True,
        )
        axes.grid(False, which="both")
        for name, spine in axes.spines.items():
            spine.set_visible(name in self.spines)
            spine.set(edgecolor=INK, linewidth=points(2))
        axes.tick_params(
            which="both", bottom=True, top=False, left=True, right=False, labelbottom=True,
            labeltop=False, labelleft=True, labelright=False, direction="out", length=points(6),
            width=points(2), color=INK, labelcolor=INK, pad=points(5), labelrotation=0,
        )  # fmt: skip
        axes.set_xscale(self.xscale)
        for method, args, kwargs in self.calls:
            getattr(axes, method)(*args, **kwargs)
        axes.set_xlim(self.xlim)
        axes.set_ylim(self.ylim)
        for axis, which in ((axes.xaxis, "x"), (axes.yaxis, "y")):
            at, labels, length = self.marks.get(which, ([], [], 6.0))
            axis.set_minor_locator(NullLocator())
            axis.set_ticks(at, labels, **ruler.style)
            axis.set_tick_params(which="major", length=points(length))
        return axes


class Sheet:
    """What a picture consists of, placed in pixels from its lower left corner.

    Axes are made only by :meth:`figure`, or by a drawer that doesn't still have them. All text is
    on white, and nothing is drawn over it.

    What users' style sheets commonly change is set explicitly, since a figure reads the
    global settings while it is built and ``rc_context`` would change them for other threads too.
    """

    def __init__(self, ruler: Ruler | None = None) -> None:
        self.ruler = ruler or Ruler()
        self.panels: list[Panel] = []
        self.texts: list[tuple[int, int, Words]] = []
        self.artists: list[Artist] = []
        self.palette: Callable[[], Colors] = partial(shades, INK, 32)

    def figure(self) -> Figure:
        figure = blank()
        for panel in self.panels:
            axes = panel.axes(figure, self.ruler)
            for artist in panel.artists:
                axes.add_artist(artist)
        for artist in self.artists:
            figure.add_artist(artist)
        for x, y, words in self.texts:
            words.put(figure, x, y, self.ruler)
        return figure

    def width(self, text: str) -> float:
        """Width of ``text`` in pixels."""
        return self.ruler.width(text)

    @property
    def space(self) -> float:
        """Width of a space in pixels."""
        return self.width("n n") - self.width("nn")

    def shorten(self, text: str, width: float, *, keep_end: bool = False) -> str:
        """``text`` on one line, cut with an ellipsis where it is wider than ``width`` pixels."""
        return self.ruler.shorten(text, width, keep_end)

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
        # At whole pixels the same text has the same pixels everywhere.
        self.texts.append((round(x), round(y), Words(text, ha, va, color, rotation)))

    def words(self, x: float, y: float, words: Sequence[tuple[str, Any]]) -> float:
        """Texts with their colours one after the other; returns where the last ends."""
        for text, color in words:
            if text:
                self.text(x, y, text, color=color)
                x += self.width(text) + self.space
        return x - self.space

    def title(self, *parts: str, step: int | None = None) -> None:
        # The number is a text of its own, since it is new in every picture.
        number = "" if step is None else f"{int(step):,}"
        last = "step" if number else ""
        title = " · ".join(p for p in (*parts, last) if p)
        room = WIDTH - 2 * LEFT - self.width(" " + "0" * len(number))
        if self.width(title) > room:
            last = last and f" · {last}"
            text = " · ".join(p for p in parts if p)
            title = self.shorten(text, room - self.width(last)) + last
        self.text(LEFT, TITLE_Y, title)
        if number:
            self.text(LEFT + self.width(title) + self.space, TITLE_Y, number)

    def target(self, x: float, target: str | None) -> None:
        """The target's name in the second row, from ``x`` on."""
        if target:
            self.text(x, SECOND_Y, self.shorten(target, WIDTH - LEFT - x), color=GREY)

    def line(self, x: Sequence[float], y: Sequence[float], color: Any = INK) -> None:
        """A thin line between points of the figure."""
        self._add(x, y, line_style(color, 2))

    def marker(self, x: float, y: float, marker: str, color: Any) -> None:
        """A marker in the :func:`marker_style`, for a legend."""
        self._add([x], [y], marker_style(marker, color))

    def _add(self, x: Sequence[float], y: Sequence[float], style: dict[str, Any]) -> None:
        from matplotlib.lines import Line2D

        self.artists.append(Line2D(np.asarray(x) / WIDTH, np.asarray(y) / HEIGHT, **style))

    def panel(
        self,
        left: float,
        bottom: float,
        width: float,
        height: float,
        *,
        xlim: tuple[float, float],
        ylim: tuple[float, float],
        xscale: str = "linear",
        spines: Sequence[str] = ("left", "bottom"),
    ) -> Panel:
        panel = Panel((left, bottom, width, height), xlim, ylim, tuple(spines), xscale)
        self.panels.append(panel)
        return panel


def blank() -> Figure:
    """An empty figure of a sheet's size."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(WIDTH / DPI, HEIGHT / DPI),
        dpi=DPI,
        facecolor="white",
        edgecolor="white",
        linewidth=0,
    )
    figure.set_layout_engine("none")
    return figure


def samples(name: str, count: int, last: float = 1.0) -> Colors:
    """``(count, 3)`` colours of a map up to the share ``last`` of it."""
    from matplotlib import colormaps

    colors: Colors = colormaps[name](np.linspace(0, last, count))[:, :3]
    return colors


def shades(color: Any, count: int, other: Any = "white") -> Colors:
    """``(count, 3)`` mixtures, from the colour on towards the other but without it."""
    from matplotlib.colors import to_rgb

    share = np.arange(count)[:, None] / count
    mixed: Colors = (1 - share) * np.array(to_rgb(color)) + share * np.array(to_rgb(other))
    return mixed


def line_style(color: Any, pixels: float) -> dict[str, Any]:
    return {
        "color": color,
        "linewidth": points(pixels),
        "linestyle": "-",
        "marker": "",
        "solid_capstyle": "round",
        "solid_joinstyle": "round",
        "dash_capstyle": "butt",
        "dash_joinstyle": "round",
    }


def marker_style(marker: str, color: Any) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": marker,
        "markersize": points(15 if marker in "^vP*" else 13),
        "markerfacecolor": color,
        "markeredgecolor": INK,
        "markeredgewidth": points(2),
    }


def number(value: float) -> str:
    """A number as people write it: ``0.05``, ``−2``, ``1,000``, ``5e−6``."""
    text = f"{value:,g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", MINUS)


def nice_limit(value: float) -> float:
    """The smallest of 1, 2, 5 × a power of ten that is not below ``value``.

    Use it to grow a limit in steps, so that pictures keep it for long::

        limit = max(limit, nice_limit(np.abs(scores).max()))

    Args:
        value: Largest absolute value to show; its sign is ignored.

    Returns:
        The limit; 1.0 for 0 and for NaN or infinities, since blank axes have limits too.
    """
    size = abs(float(value))
    if size == 0 or not math.isfinite(size):
        return 1.0
    exponent = math.floor(math.log10(size))
    for power in (exponent - 1, exponent, exponent + 1):
        for digit in (1, 2, 5):
            limit = float(f"{digit}e{power}")
            # float32 has 0.2 a little above 0.2.
            if limit >= size * (1 - 1e-6) and 0 < limit < math.inf:
                return limit
    return size


def checked_limit(limit: float | None, data: npt.NDArray[np.float64]) -> float:
    """``limit``, or the nice limit of the finite ``data``."""
    if limit is None:
        return nice_limit(float(np.abs(data[np.isfinite(data)]).max(initial=0.0)))
    if not 0 < limit < math.inf:
        raise ValueError(f"limit={limit!r} must be a number above 0, or None for that of the data")
    return float(limit)


def integer_ticks(last: int, most: int) -> list[int]:
    """At most ``most`` + 1 round integers from 0 to ``last``."""
    if last <= 0:
        return [0]
    step = max(1, int(nice_limit(last / most)))
    return list(range(0, last + 1, step))


def fitting(sheet: Sheet, ticks: Sequence[int], width: float, span: float) -> list[int]:
    """Every so manieth of evenly spaced ticks, so that their labels have room on an axis.

    Args:
        sheet: Measures the labels.
        ticks: Places of the ticks.
        width: Pixels of the axis.
        span: What it spans, in the unit of the ticks.
    """
    every = 1
    while every < len(ticks):
        room = (ticks[every] - ticks[0]) / span * width
        if room >= max(sheet.width(f"{t:,}") for t in ticks[::every]) + 6:
            break
        every += 1
    return list(ticks[::every])


def strongest(values: npt.NDArray[np.float64], rows: int, columns: int) -> tuple[Any, int, int]:
    """Of each block of cells the value farthest from 0, for at most so many rows and columns.

    Where cells are smaller than pixels, means fade a few strong ones among none. NaN are left out
    unless there is nothing else. Returns the values, and the height and width of a block.
    """
    up, across = (-(-n // most) for n, most in zip(values.shape, (rows, columns), strict=True))
    padded = np.pad(
        values, [(0, -values.shape[0] % up), (0, -values.shape[1] % across)],
        constant_values=np.nan,
    )  # fmt: skip
    blocks = padded.reshape(len(padded) // up, up, -1, across).swapaxes(1, 2)
    flat = blocks.reshape(*blocks.shape[:2], -1)
    size = np.where(np.isnan(flat), -1.0, np.abs(flat))
    best = np.take_along_axis(flat, size.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return best, up, across


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart within ``[low, high]``, as near to ``wanted`` as they can.

    Labels in a column must not overlap: each group of crowded ones is centred on its mean.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        mean, count = wanted[i] - rank * gap, 1
        while groups and groups[-1][0] >= mean:
            other, n = groups.pop()
            mean, count = (mean * count + other * n) / (count + n), count + n
        groups.append((mean, count))
    shifted = [mean for mean, count in groups for _ in range(count)]
    highest = high - (len(wanted) - 1) * gap
    placed = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        placed[i] = max(low, min(shifted[rank], highest)) + rank * gap
    return placed


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG of 256 colours, half the bytes of one with all of them.

    Where more than a few pixels would visibly change (photographs, many hues), all are kept.

    Args:
        figure: Any ``matplotlib.figure.Figure``; it is drawn at its own size and resolution.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    before = figure.canvas
    canvas = FigureCanvasAgg(figure)
    try:
        canvas.draw()  # type: ignore[no-untyped-call]
        rgba = np.array(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    finally:
        figure.set_canvas(before)
    exact = Image.fromarray(rgba).convert("RGB")
    # Octree quantisation loses faint colours and tints the white; dithering adds noise.
    small = exact.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    change = np.abs(rgba[..., :3].astype(np.int16) - np.asarray(small.convert("RGB")))
    visible = float((change.max(axis=2) > VISIBLE).mean())
    file = io.BytesIO()
    (small if visible < MOST_CHANGED else exact).save(file, "PNG")
    return file.getvalue()
