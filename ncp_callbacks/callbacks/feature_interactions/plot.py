"""Draw interactions of features as a triangle of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import bars as draw_bars
from ...plotting.parts import color_bar, heat_map, name_strongest, segments, strongest
from ...plotting.style import (
    BOTTOM,
    GREY,
    INK,
    LABEL_Y,
    LEFT,
    LINE_HEIGHT,
    ORANGE,
    RIGHT,
    TOP,
)
from ...plotting.text import number, short_names, text_width
from .analysis import Interactions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_interactions"]

Array = npt.NDArray[np.float64]

NAMES = 150  # Pixels for names, at most.
BARS = 96  # Pixels of the longest bar.
LISTED = 3  # Pairs named in the corner.
WHITE_LINE = 2.1  # Pixels.
MAX_LINES = 40  # With more rows there are no lines between cells.
MAX_CELLS = 150  # Rows and columns of the triangle; with more, the strongest of each block.
CLOSEST = 21  # Pixels between the names of neighbouring rows, at least.
TOP_LABELS = 5  # Named rows, if all names would be closer.
ALONE = "#4d4d4d"


@redrawable
def plot_interactions(
    page: Page,
    result: Interactions,
    *,
    limit: float | None = None,
    bars: float | None = None,
    target: str | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw how strongly each pair of inputs acts together, as a triangle, and each input alone.

    A cell is the mean over sequences of the absolute effect of a pair, from dark (0) to yellow
    (``limit``). The strongest pairs are named in the free corner. A bar is the effect of an input
    alone, followed by half of the effects of all its pairs.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: The interactions.
        limit: Colours span 0 to ``limit``, in units of the target.
        bars: Full length of the bars, in units of the target.
        target: Name of the target.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For fewer than two groups, and limits that are not above 0.
    """
    count = len(result.names)
    if count < 2:
        raise ValueError(
            f"there is one group, {', '.join(result.names)}: pass at least two, for a pair"
        )
    strength = np.asarray(result.strength, np.float64)
    alone = np.asarray(result.main_strength, np.float64)
    together = strength.sum(axis=1) / 2
    limit, full = checked_limit(limit, strength), checked_limit(bars, alone + together)

    share = result.share
    page.title(
        f"pairs carry {share:.0%} of the effect" if np.isfinite(share) else "nothing acts", step
    )
    numbers = [f"{i + 1}" for i in range(count)]
    names = [
        f"{n} {name}" for n, name in zip(numbers, short_names(result.names, NAMES), strict=True)
    ]
    end = LEFT + max(map(text_width, names))
    many = count * CLOSEST > TOP - BOTTOM
    name_strongest(
        page, names, alone + together, end, (BOTTOM, TOP), few=TOP_LABELS,
        all_labels=0 if many else count,
    )  # fmt: skip
    left, right = end + (22 if many else 8), RIGHT - 4
    stop = right - BARS - 26
    rows = (count - 0.5, -0.5)
    # The legend of the bars begins here.
    legend, half, pitch = right - BARS - 40, text_width(str(count)) / 2, (stop - left) / count
    shown = np.arange(0, count - 1, max(1, int(np.ceil((2 * half + 4) / pitch))))
    shown = shown[left + (shown + 0.5) * pitch + half + 4 <= legend]
    axes = page.axes(
        left, BOTTOM, stop, TOP, xlim=(-0.5, count - 0.5), ylim=rows, spines=(), ticks="",
        xticks=shown, xticklabels=[numbers[i] for i in shown],
    )  # fmt: skip
    below = np.tril(np.ones((count, count), bool), -1)
    cells, _, size = strongest(np.where(below, strength, np.nan), MAX_CELLS, MAX_CELLS)
    edge = len(cells) * size - 0.5
    heat_map(axes, cells, 0, limit, bad="white", extent=(-0.5, edge, edge, -0.5))
    if count <= MAX_LINES:
        # White lines keep cells of about the same colour apart.
        edges, (low, high) = np.arange(count + 1) - 0.5, (-0.5, count - 0.5)
        segments(axes, edges, low, edges, high, "white", WHITE_LINE, zorder=1.5)
        segments(axes, low, edges, high, edges, "white", WHITE_LINE, zorder=1.5)
    _name_pairs(page, axes, result, strength)
    beside = page.axes(
        right - BARS, BOTTOM, right, TOP, xlim=(0, full), ylim=rows, spines=["left"], ticks=""
    )
    draw_bars(beside, np.zeros(count), alone, ALONE, 0.6)
    draw_bars(beside, alone, alone + together, ORANGE, 0.6)
    page.words(legend, 34, ("■", ALONE), ("alone", INK))
    page.words(legend, LABEL_Y, ("■", ORANGE), ("in pairs", INK))
    color_bar(page, "0", number(limit), note=target)


def _name_pairs(page: Page, axes: Axes, result: Interactions, strength: Array) -> None:
    """Write the strongest pairs into the free corner, as far as it reaches."""
    rows, columns = np.tril_indices(len(strength), -1)
    order = np.argsort(-strength[rows, columns], kind="stable")[:LISTED]
    pairs = [(int(rows[k]), int(columns[k])) for k in order if strength[rows[k], columns[k]] > 0]
    width, pitch = axes.bbox.width, axes.bbox.height / len(strength)
    down = [16 + place * LINE_HEIGHT for place in range(len(pairs))]
    # Cells up to the diagonal are taken in the rows that a line touches.
    room = [width - int((y + 9) // pitch) * width / len(strength) - 12 for y in down]
    # Names where all have room, numbers of the rows where they haven't.
    for names in (result.names, range(1, len(strength) + 1)):
        texts = [f"{names[j]} × {names[i]}: {number(float(strength[i, j]), 2)}" for i, j in pairs]
        fits = [text_width(text) <= most for text, most in zip(texts, room, strict=True)]
        if all(fits):
            break
    for text, y, fit in zip(texts, down, fits, strict=True):
        if fit:
            page.text(axes.bbox.x1, axes.bbox.y1 - y, text, ha="right", color=GREY)
