"""Draw how often answers come back when a training is repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..plotting.page import Page, redrawable
from ..plotting.parts import bars, segments, whiskers
from ..plotting.style import BLUE, GREY, LABEL_Y, LEFT, LIGHT, LINE_HEIGHT, PALE, RIGHT, SECOND_Y
from ..plotting.text import shorten, text_width
from .result import CrossValidation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_cross_validation"]

_MAX_ROWS = 7
_TOP, _ROW = 386, 50  # Pixels: upper end of the first row, and height of each row.
_BAR_LEFT, _BAR_RIGHT = 452, RIGHT - 14
_LOWER, _THICK = 0.22, 0.36  # A bar is beside the answer, in the lower half of a row.


@redrawable
def plot_cross_validation(page: Page, result: CrossValidation, *, ax: Axes | None = None) -> None:
    """Draw a row for each question: its most frequent answer, and in how many repetitions it came.

    The bar is the share of repetitions with this answer, and the line over it its 95 % CI. A mark
    is at one half.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: The result of :func:`ncp_callbacks.cross_validate` or of
            :func:`ncp_callbacks.cross_validate_runs`.
        ax: Axes to draw on; None for a figure of its own.
    """
    page.title(f"What comes back in {len(result.repetitions)} trainings")
    shown = result.agreements[:_MAX_ROWS]
    if not shown:
        page.text(LEFT, SECOND_Y, "no callback logged shares of features to compare", color=GREY)
        return
    more = len(result.agreements) - len(shown)
    if more:
        page.text(LEFT, LABEL_Y, f"{more} more in .agreements", color=GREY)
    axes = page.axes(
        _BAR_LEFT, _TOP - len(shown) * _ROW, _BAR_RIGHT, _TOP, xlim=(0, 1),
        ylim=(len(shown) - 0.5, -0.5), spines=(), ticks="",
        xticks=(0, 0.5, 1), xticklabels=("0", "½", "all"),
    )  # fmt: skip
    rows = np.arange(len(shown)) + _LOWER
    share = np.array([a.count / a.of for a in shown])
    bars(axes, 0, np.ones(len(shown)), LIGHT, _THICK, at=rows)
    bars(axes, 0, share, [BLUE if s > 0.5 else PALE for s in share], _THICK, at=rows)
    segments(axes, 0.5, rows - _THICK / 2, 0.5, rows + _THICK / 2, "white", 2, zorder=3)
    whiskers(axes, rows, [[a.low for a in shown], [a.high for a in shown]], horizontal=True)
    for row, found in enumerate(shown):
        y = _TOP - row * _ROW - 20
        page.text(LEFT, y, shorten(found.question, RIGHT - LEFT), color=GREY)
        count, end = f"{found.count} of {found.of}", _BAR_LEFT - 12
        page.text(end, y - LINE_HEIGHT + 2, count, ha="right")
        answer = f"{found.answer}: {found.example}" if found.example else found.answer
        room = end - text_width(count) - 12 - LEFT
        page.text(LEFT, y - LINE_HEIGHT + 2, shorten(answer, room))
