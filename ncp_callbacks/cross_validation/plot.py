"""Draw how often answers come back, and how far the shares of features spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..plotting.style import BLUE, DPI, FONT_SIZE, GREY, HEIGHT, INK, LIGHT, PALE, WIDTH, points
from ..plotting.text import shorten
from .result import CrossValidation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_cross_validation"]

_MAX_ROWS = 7
_TOP, _ROW = 366, 50  # Pixels from the bottom to the first row, and of each row.
_BAR_LEFT, _BAR_RIGHT = 452, 620
_TEXT, _SMALL, _WIDTH = 15, 13, 365  # Pixels: heights of letters, width of the text.


def plot_cross_validation(result: CrossValidation) -> Figure:
    """Draw a row for each question: its most frequent answer, and in how many repetitions it came.

    The bar is the share of repetitions with this answer, and the line over it its 95 % CI. The
    dashed line is one half.

    Args:
        result: The result of :func:`ncp_callbacks.cross_validate` or of
            :func:`ncp_callbacks.cross_validate_runs`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")

    def text(
        x: float, y: float, words: str, pixels: float, color: str, align: str = "left"
    ) -> None:
        figure.text(
            x / WIDTH, y / HEIGHT, words, fontsize=points(pixels), color=color, ha=align,
            family="DejaVu Sans", parse_math=False,
        )  # fmt: skip

    shown = result.agreements[:_MAX_ROWS]
    text(8, 402, f"What comes back in {len(result.repetitions)} trainings", 18, INK)
    more = len(result.agreements) - len(shown)
    if more:
        text(WIDTH - 8, 402, f"{more} more in .agreements", _SMALL, GREY, "right")
    if not shown:
        text(
            8, 200, "No question could be answered: no callback logged feature shares", _TEXT, GREY
        )
        return figure
    height = _ROW * len(shown)
    axes = figure.add_axes(
        (
            _BAR_LEFT / WIDTH,
            (_TOP + 22 - height) / HEIGHT,
            (_BAR_RIGHT - _BAR_LEFT) / WIDTH,
            height / HEIGHT,
        )
    )
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.5, -0.5), yticks=[], xticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    rows = np.arange(len(shown))
    share = np.array([a.count / a.of for a in shown])
    axes.barh(rows, 1.0, height=0.42, color=LIGHT, alpha=0.45)
    axes.barh(rows, share, height=0.42, color=[BLUE if s > 0.5 else PALE for s in share])
    axes.hlines(rows, [a.low for a in shown], [a.high for a in shown], color=INK, linewidth=1.4)
    axes.axvline(0.5, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)))
    for row, agreement in enumerate(shown):
        y = _TOP - row * _ROW
        group, _, question = agreement.question.partition(": ")
        above = f"{group}: {question}" if question else group
        text(8, y + 4, shorten(above, _WIDTH * FONT_SIZE / _SMALL), _SMALL, GREY)
        below = (
            f"{agreement.answer}: {agreement.example}" if agreement.example else agreement.answer
        )
        text(8, y - 15, shorten(below, _WIDTH * FONT_SIZE / _SMALL), _SMALL + 1, INK)
        text(_BAR_LEFT - 8, y - 8, f"{agreement.count} of {agreement.of}", _TEXT, INK, "right")
    bottom = _TOP + 22 - height - 18
    text(_BAR_LEFT, bottom, "0", _SMALL, GREY, "center")
    text((_BAR_LEFT + _BAR_RIGHT) / 2, bottom, "½", _SMALL, GREY, "center")
    text(_BAR_RIGHT, bottom, "all", _SMALL, GREY, "center")
    return figure
