"""Interactions of features, as a triangle of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..analysis.interactions import Interactions
from ._sheet import (
    ABOVE,
    GREY,
    INK,
    LEFT,
    LINE_HEIGHT,
    ORANGE,
    SECOND_Y,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    checked_limit,
    number,
    samples,
    shades,
    spread,
    strongest,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_interactions"]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 62, 362
NAMES = 150  # Most pixels for names.
BARS = 96  # Pixels of the longest bar.
LISTED = 3  # Pairs in words.
MOST_LINES = 40  # Cells are not kept apart where there are more rows.
MOST_CELLS = 150  # Rows and columns of the triangle; of more, the strongest of each block.
CLOSEST = 21  # Pixels between names of neighbouring rows.
TOP_LABELS = 5  # Rows with a name, where they are closer.
ENDS = ("#00224e", "#fee838")  # Colours of the map that stand for 0 and the limit.
ALONE = "#4d4d4d"


def plot_interactions(
    result: Interactions,
    *,
    limit: float | None = None,
    bars: float | None = None,
    target: str | None = None,
    step: int | None = None,
) -> Figure:
    """How strongly each pair of inputs acts together, as a triangle, and each input alone.

    A cell is the mean over sequences of the absolute effect of a pair, from dark (0) to yellow
    (``limit``); the strongest pairs are named in the free corner. A bar is what an input does
    alone, and behind that its part in all its pairs, half of each.

    Args:
        result: What to draw.
        limit: Colours span 0 to ``limit``, in units of the target.
        bars: Full length of the bars, likewise.
        target: Name of what is acted on.
        step: Training step, for the title.

    Raises:
        ValueError: For fewer than two groups, and limits that are not above 0.
    """
    sheet = Sheet()
    draw_interactions(sheet, result, limit=limit, bars=bars, target=target, step=step)
    return sheet.figure()


def draw_interactions(
    sheet: Sheet,
    result: Interactions,
    *,
    limit: float | None = None,
    bars: float | None = None,
    target: str | None = None,
    step: int | None = None,
) -> None:
    """:func:`plot_interactions` on a sheet."""
    count = len(result.names)
    if count < 2:
        raise ValueError(f"there is one group, {', '.join(result.names)}: a pair takes two")
    strength = np.asarray(result.strength, np.float64)
    alone = np.asarray(result.main_strength, np.float64)
    together = strength.sum(axis=1) / 2
    limit = checked_limit(limit, strength)
    full = checked_limit(bars, alone + together)

    sheet.palette = _palette
    sheet.title(f"interactions 0–{number(limit)}", step=step)
    low, high = ENDS
    words = [("■", low), ("0", INK), ("■", high), (number(limit), INK)]
    sheet.target(sheet.words(LEFT, SECOND_Y, words) + 12, target)
    pitch = (TOP - BOTTOM) / count
    end = _draw_names(sheet, result.names, alone + together, pitch)

    right = WIDTH - LEFT - 4
    left, width = end + 8, right - BARS - 26 - end - 8
    edges = (count - 0.5, -0.5)
    panel = sheet.panel(
        left, BOTTOM, width, TOP - BOTTOM, xlim=(-0.5, count - 0.5), ylim=edges, spines=()
    )
    panel.always("tick_params", left=False, bottom=False)
    _draw_triangle(panel, strength, limit)
    every = max(1, int(np.ceil((sheet.width(str(count)) + 4) * count / width)))
    # The legend of the bars begins here.
    x = right - BARS - 40
    half = sheet.width(str(count)) / 2
    shown = np.arange(0, count - 1, every)
    shown = shown[left + (shown + 0.5) / count * width + half + 4 <= x]
    panel.ticks("x", shown, [str(i + 1) for i in shown], length=0)
    panel.always("set_frame_on", False)
    _name_pairs(sheet, result, strength, left, width, pitch)

    beside = sheet.panel(
        right - BARS, BOTTOM, BARS, TOP - BOTTOM, xlim=(0, full), ylim=edges, spines=["left"]
    )
    beside.always("tick_params", left=False, bottom=False)
    _draw_bars(beside, np.zeros(count), alone, ALONE)
    _draw_bars(beside, alone, alone + together, ORANGE)
    sheet.words(x, 34, [("■", ALONE), ("alone", INK)])
    sheet.words(x, 9, [("■", ORANGE), ("in pairs", INK)])
    sheet.text(left + width / 2, 9, _summary(result), ha="center")


def _draw_names(sheet: Sheet, names: Sequence[str], strength: Array, pitch: float) -> float:
    """Numbers and names of the rows, of the strongest where there are many; returns their end."""
    rows = [TOP - (i + 0.5) * pitch for i in range(len(names))]
    short = [f"{i + 1} {sheet.shorten(name, NAMES)}" for i, name in enumerate(names)]
    end = LEFT + max(map(sheet.width, short))
    many = len(names) * CLOSEST > TOP - BOTTOM
    shown = list(range(len(names)))
    if many:
        order = np.argsort(-np.nan_to_num(strength), kind="stable")
        shown = sorted(int(i) for i in order[:TOP_LABELS])
    at = spread([rows[i] for i in shown], LINE_HEIGHT, BOTTOM + 9, TOP - 9) if many else rows
    for i, y in zip(shown, at, strict=True):
        sheet.text(end, y, short[i], ha="right", va="center_baseline")
        if many:
            sheet.line([end + 4, end + 16, end + 21], [y, rows[i], rows[i]], GREY)
    return end + (14 if many else 0)


def _summary(result: Interactions) -> str:
    share = result.share
    return "nothing acts" if not np.isfinite(share) else f"pairs: {share:.0%} of all"


def _name_pairs(
    sheet: Sheet, result: Interactions, strength: Array, left: float, width: float, pitch: float
) -> None:
    """The strongest pairs in the free corner, as far as it reaches."""
    rows, columns = np.tril_indices(len(strength), -1)
    order = np.argsort(-strength[rows, columns], kind="stable")[:LISTED]
    for line, k in enumerate(order):
        i, j = int(rows[k]), int(columns[k])
        if not strength[i, j] > 0:
            return
        y = TOP - 16 - line * LINE_HEIGHT
        # Cells up to the diagonal are taken in the rows that the line touches.
        taken = int((TOP - y + 9) // pitch) * width / len(strength)
        value = f": {number(float(f'{strength[i, j]:.2g}'))}"
        # Names where there is room, numbers of the rows where there isn't.
        for text in (f"{result.names[j]} × {result.names[i]}", f"{j + 1} × {i + 1}"):
            if sheet.width(text + value) <= width - taken - 12:
                sheet.text(left + width, y, text + value, ha="right", color=GREY)
                break


def _draw_triangle(panel: Panel, strength: Array, limit: float) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    from ._cells import Cells

    count = len(strength)
    below = np.tril(np.ones((count, count), bool), -1)
    cells, _, size = strongest(np.where(below, strength, np.nan), MOST_CELLS, MOST_CELLS)
    shown = len(cells) * size - 0.5
    image = Cells(
        None,  # type: ignore[arg-type]  # It gets its axes when it is added to them.
        cmap=colormaps["cividis"].with_extremes(bad="white"),
        norm=Normalize(0.0, limit),
        interpolation="nearest",
        origin="upper",
        extent=(-0.5, shown, shown, -0.5),
        filternorm=True,
        resample=True,
        zorder=ABOVE,
    )
    image.set_data(np.ma.masked_invalid(cells))
    panel.add(image)
    if count > MOST_LINES:
        return
    # White lines keep cells of about the same colour apart.
    at = np.arange(count + 1) - 0.5
    ends = (-0.5, count - 0.5)
    lines = [[(v, end) for end in ends] for v in at] + [[(end, v) for end in ends] for v in at]
    panel.add(LineCollection(lines, colors="white", linewidths=1.5, zorder=ABOVE + 0.1))


def _draw_bars(panel: Panel, start: Array, stop: Array, color: str) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    rows = np.arange(len(start))
    low, high = rows - 0.3, rows + 0.3
    corners = np.stack(
        [np.stack([x, y], axis=-1) for x, y in ((start, low), (stop, low), (stop, high),
                                                (start, high))], axis=1,
    )  # fmt: skip
    path = Path.make_compound_path_from_polys(corners)
    panel.add(PathPatch(path, facecolor=color, edgecolor="none", linewidth=0, zorder=ABOVE))


def _palette() -> Colors:
    others = [shades(INK, 24), shades(GREY, 16), shades(ALONE, 12), shades(ORANGE, 12)]
    return np.concatenate([samples("cividis", 160), *others, shades(ALONE, 4, ORANGE)])
