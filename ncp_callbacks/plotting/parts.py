"""Draw the parts that many pictures have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .limits import fitting, integer_ticks
from .page import Page
from .style import (
    GREY,
    INK,
    LEFT,
    LINE_HEIGHT,
    MISSING,
    RIGHT,
    SECOND_Y,
    UNSIGNED,
    fill,
    line,
    points,
)
from .text import shorten, spread, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "bars",
    "color_bar",
    "end_labels",
    "heat_map",
    "left_margin",
    "name_strongest",
    "segments",
    "shade",
    "shade_ci",
    "sorted_bars",
    "strongest",
    "time_steps",
    "whiskers",
]

Array = npt.NDArray[np.float64]
MAX_SEPARATED = 64  # Up to this many bars there are gaps between them.


def left_margin(labels: Sequence[str], ylabel: bool = False) -> float:
    """Return where axes begin that have these tick labels and perhaps a label on the left."""
    return LEFT + (33 if ylabel else 0) + max(map(text_width, labels), default=0.0) + 12


def time_steps(last: int, width: float, most: int = 4, first: int = 0) -> dict[str, Any]:
    """Return the ticks of an axis of time steps that is so many pixels wide, for ``Page.axes``."""
    ticks = [t for t in integer_ticks(last, most) if t >= first] or [first]
    ticks = fitting(ticks, width, last - first + 1)
    return {"xticks": ticks, "xticklabels": [f"{t:,}" for t in ticks]}


def heat_map(
    axes: Axes,
    values: npt.ArrayLike,
    low: float,
    high: float,
    *,
    cmap: Any = UNSIGNED,
    bad: str = MISSING,
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    """Draw ``(rows, columns)`` values as colours from ``low`` to ``high``, the first row on top.

    Args:
        axes: Axes to draw on; their limits don't change.
        values: Values of the cells; NaN has the colour ``bad``.
        low: Value of the first colour.
        high: Value of the last colour.
        cmap: Name of a colour map, or a colour map.
        bad: Colour of values that are not finite.
        extent: Left, right, bottom and top; None to draw cell ``i`` around ``i``.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.image import AxesImage

    from .artists import CellImage

    cells = np.ma.masked_invalid(np.asarray(values, np.float64))
    rows, columns = cells.shape
    box = axes.bbox
    colors = colormaps[cmap] if isinstance(cmap, str) else cmap
    # Where cells are smaller than pixels, they are averaged rather than dropped.
    fits = rows <= box.height and columns <= box.width
    image = (CellImage if fits else AxesImage)(
        axes, cmap=colors.with_extremes(bad=bad), norm=Normalize(low, high), origin="upper",
        interpolation="nearest" if fits else "antialiased", filternorm=True, resample=True,
        extent=extent or (-0.5, columns - 0.5, rows - 0.5, -0.5), zorder=1,
    )  # fmt: skip
    image.set_data(cells)
    axes.add_image(image)
    image.set_clip_path(axes.patch)


def color_bar(
    page: Page,
    low: str,
    high: str,
    *,
    cmap: str = UNSIGNED,
    note: str | None = "",
    x: float = LEFT,
    y: float = SECOND_Y,
) -> float:
    """Draw a colour bar below the title, with the meanings of its ends and a note after it.

    Args:
        page: Page to draw on.
        low: Meaning of the first colour.
        high: Meaning of the last colour.
        cmap: Name of the colour map.
        note: Text in grey after the bar, shortened to the room that is left.
        x: Where the bar begins.
        y: Baseline of the bar's row.

    Returns:
        Where the text after the bar ends.
    """
    width = 56
    start = page.words(x, y, (low, INK)) + 8
    page.axes(start, y, start + width, y + 16, spines=(), gradient=(cmap, 1.0))
    end = page.words(start + width + 8, y, (high, INK))
    if note:
        page.text(end + 14, y, shorten(note, RIGHT - end - 14), color=GREY)
    return end


def bars(
    axes: Axes,
    start: npt.ArrayLike,
    stop: npt.ArrayLike,
    color: Any,
    thick: float,
    *,
    at: npt.ArrayLike | None = None,
) -> None:
    """Draw horizontal bars, ``thick`` rows high, in the rows ``at``: by default in each row."""
    from matplotlib.collections import PolyCollection

    left, right = np.broadcast_arrays(np.asarray(start, np.float64), np.asarray(stop, np.float64))
    rows = np.arange(len(right)) if at is None else np.asarray(at, np.float64)
    low, high = rows - thick / 2, rows + thick / 2
    corners = np.stack([left, low, right, low, right, high, left, high], axis=1).reshape(-1, 4, 2)
    known = np.isfinite(corners).all(axis=(1, 2))
    axes.add_collection(PolyCollection(corners[known], **fill(color)), autolim=False)


def sorted_bars(axes: Axes, low: npt.ArrayLike, high: Array, color: Any) -> None:
    """Draw upright bars side by side, with gaps between them if there are not too many."""
    low = np.broadcast_to(np.asarray(low, np.float64), high.shape)
    count = len(high)
    axes.stairs(high, np.arange(count + 1), baseline=low, fill=True, **fill(color))
    if 1 < count <= MAX_SEPARATED:
        bottom = np.minimum(np.minimum(low[1:], low[:-1]), np.minimum(high[1:], high[:-1]))
        top = np.maximum(np.maximum(low[1:], low[:-1]), np.maximum(high[1:], high[:-1]))
        at = np.arange(1, count)
        segments(axes, at, bottom, at, top, "white", 2, zorder=1.5)


def segments(
    axes: Axes,
    x0: npt.ArrayLike,
    y0: npt.ArrayLike,
    x1: npt.ArrayLike,
    y1: npt.ArrayLike,
    color: Any,
    pixels: float,
    *,
    zorder: float,
) -> None:
    """Draw straight lines from ``(x0, y0)`` to ``(x1, y1)``, so many pixels wide."""
    from matplotlib.collections import LineCollection

    ends = np.stack(np.broadcast_arrays(x0, y0, x1, y1), axis=-1).astype(np.float64)
    lines = LineCollection(
        list(ends.reshape(-1, 2, 2)), colors=color, linewidths=points(pixels), linestyles="-",
        zorder=zorder,
    )  # fmt: skip
    axes.add_collection(lines, autolim=False)


def whiskers(axes: Axes, at: npt.ArrayLike, ci: npt.ArrayLike, *, horizontal: bool = False) -> None:
    """Draw ``(2, N)`` confidence intervals as lines, with a white rim to stand out.

    One that goes beyond the axes ends in a triangle there.
    """
    low, high = np.asarray(ci, np.float64)
    places = np.asarray(at, np.float64)
    known = np.isfinite(low) & np.isfinite(high) & (high > low)
    if not known.any():
        return
    bottom, top = sorted(axes.get_xlim() if horizontal else axes.get_ylim())
    room = top - bottom
    # NaN keeps the lines apart: one line is drawn faster than a collection of many. Far beyond the
    # axes, coordinates of pixels overflow.
    gap = np.full(known.sum(), np.nan)
    ends = [np.clip(end[known], bottom - room, top + room) for end in (low, high)]
    along = np.stack([*ends, gap], axis=1).ravel()
    across = np.repeat(places[known], 3)
    for color, width, order in (("white", 6.0, 4.5), (INK, 2.5, 4.6)):
        style = line(color, width) | {"solid_capstyle": "butt", "zorder": order}
        axes.plot(*((along, across) if horizontal else (across, along)), **style)
    for beyond, edge, mark in (
        (known & (low < bottom - 1e-6 * room), bottom, "<" if horizontal else "v"),
        (known & (high > top + 1e-6 * room), top, ">" if horizontal else "^"),
    ):
        if beyond.any():
            tips = np.full(beyond.sum(), edge), places[beyond]
            axes.plot(
                *(tips if horizontal else tips[::-1]),
                linestyle="none", marker=mark, markersize=points(12), color=INK,
                markeredgecolor="white", markeredgewidth=points(2), clip_on=False, zorder=4.7,
            )  # fmt: skip


def shade_ci(axes: Axes, x: npt.ArrayLike, ci: npt.ArrayLike, color: Any, alpha: float) -> None:
    """Shade ``(2, N)`` confidence intervals of a curve, clipped to the axes."""
    bottom, top = axes.get_ylim()
    # Far beyond the axes, coordinates of pixels overflow.
    room = 10 * (top - bottom)
    low, high = np.clip(np.asarray(ci, np.float64), bottom - room, top + room)
    shade(axes, x, low, high, color, alpha)


def shade(
    axes: Axes,
    x: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    color: Any,
    alpha: float,
) -> None:
    """Shade the area between two curves, where both are known."""
    from matplotlib.collections import PolyCollection

    lower, upper = (np.stack([x, y], axis=1).astype(np.float64) for y in (low, high))
    known = np.isfinite(lower).all(axis=1) & np.isfinite(upper).all(axis=1)
    # Each run of known points is an area of its own.
    ends = np.flatnonzero(np.diff(known, prepend=False, append=False)).reshape(-1, 2)
    # They have the corners that matplotlib's ``fill_between`` gives them.
    areas = [
        np.concatenate([upper[a : a + 1], lower[a:b], upper[b - 1 : b], upper[a:b][::-1]])
        for a, b in ends
    ]
    if areas:
        polygons = PolyCollection(areas, zorder=1.5, **fill(color, alpha))
        axes.add_collection(polygons, autolim=False)


def end_labels(page: Page, x: float, axes: Axes, ends: Sequence[tuple[str, Any, float]]) -> None:
    """Write names with their colours beside the ends of curves, apart from each other."""
    known = [end for end in ends if np.isfinite(end[2])]
    box = axes.bbox
    low, high = axes.get_ylim()
    wanted = [box.y0 + box.height * float(np.clip((y - low) / (high - low), 0, 1))
              for _, _, y in known]  # fmt: skip
    for (name, color, _), y in zip(
        known, spread(wanted, LINE_HEIGHT - 2, box.y0 + 4, box.y1 - 4), strict=True
    ):
        page.text(x, y, name, va="center_baseline", color=color)


def name_strongest(
    page: Page,
    names: Sequence[str],
    strength: Array,
    end: float,
    ends: tuple[float, float],
    *,
    all_labels: int,
    few: int,
) -> list[tuple[int, float]]:
    """Name rows between two heights; of too many rows only the strongest, joined by lines.

    Args:
        page: Page to draw on.
        names: ``N`` names, the first row's on top.
        strength: ``(N,)``, which decides the rows named.
        end: Where the names end, in pixels.
        ends: Lower and upper end of the rows, in pixels.
        all_labels: Number of rows up to which all are named.
        few: Number of rows named of more.

    Returns:
        The rows named, and the heights of their names.
    """
    bottom, top = ends
    pitch = (top - bottom) / len(names)
    rows = [top - (i + 0.5) * pitch for i in range(len(names))]
    many = len(names) > all_labels
    shown = list(range(len(names)))
    if many:
        order = np.argsort(-np.nan_to_num(strength), kind="stable")
        shown = sorted(int(i) for i in order[:few])
    at = spread([rows[i] for i in shown], LINE_HEIGHT, bottom + 9, top - 9) if many else rows
    for i, y in zip(shown, at, strict=True):
        page.text(end, y, names[i], ha="right", va="center_baseline")
        if many:
            page.line([end + 4, end + 16, end + 21], [y, rows[i], rows[i]])
    return list(zip(shown, at, strict=True))


def strongest(values: Array, rows: int, columns: int) -> tuple[Array, int, int]:
    """Return the value farthest from 0 of each block of cells, for at most so many cells.

    Where cells are smaller than pixels, a mean over a block would hide a single strong cell. NaN is
    skipped unless a block has nothing else.

    Args:
        values: Values of the cells.
        rows: Largest number of rows.
        columns: Largest number of columns.

    Returns:
        The values, and the height and width of a block in cells.
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
