"""Draw what the units of a state code for: in words, and by mutual information."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...plotting.limits import checked_limit, integer_ticks
from ...plotting.page import Page, redrawable
from ...plotting.parts import bars, color_bar, heat_map, name_strongest, whiskers
from ...plotting.style import BLUE, BOTTOM, GREY, INK, LEFT, LINE_HEIGHT, RIGHT, TOP
from ...plotting.text import number, short_names, shorten, text_width
from .analysis import MIN_ACCURACY, UnitRules

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_unit_information", "plot_unit_meanings"]

MAX_NAME_WIDTH = 124  # Pixels.
BAR = 96  # Width of the bars of accuracy, in pixels.
MAX_ROWS = 11


@redrawable
def plot_unit_meanings(
    page: Page,
    result: UnitRules,
    *,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Write when each unit is high, for the 11 units of which a tree tells most.

    Bars: R² of the trees on sequences that they were not fitted to, with 95 % CIs over sequences.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: What the trees tell.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.
    """
    count, known = int(result.explained.sum()), np.nan_to_num(np.asarray(result.accuracy))
    page.title(f"{count} of {len(result.names)} units follow a simple rule", step)
    page.legend((BLUE, "R² on other sequences"), note=f"stated above {MIN_ACCURACY:g}")
    order = np.argsort(-known, kind="stable")[:MAX_ROWS]
    names = short_names([result.names[i] for i in order], MAX_NAME_WIDTH)
    rows = max(len(order), 4)
    pitch = (TOP - BOTTOM) / rows
    end = LEFT + max(map(text_width, names))
    left = RIGHT - BAR - 10
    axes = page.axes(
        left, BOTTOM, left + BAR, TOP, xlim=(0, 1), ylim=(rows - 0.5, -0.5), spines=["left"],
        xticks=[0, 1], xticklabels=["0", "1"], grid="x",
    )  # fmt: skip
    bars(axes, 0, np.clip(known[order], 0, 1), BLUE, min(0.6, 14 / pitch))
    whiskers(
        axes, np.arange(len(order)), np.clip(result.accuracy_ci[:, order], 0, 1), horizontal=True
    )
    for row, (unit, name) in enumerate(zip(order.tolist(), names, strict=True)):
        y = TOP - (row + 0.5) * pitch
        page.text(end, y, name, ha="right", va="center_baseline")
        words = result.high[unit]
        text = f"high: {words}" if words else "no simple rule"
        room = left - end - 22
        page.text(
            end + 10, y, shorten(text, room), va="center_baseline", color=INK if words else GREY
        )


@redrawable
def plot_unit_information(
    page: Page,
    result: UnitRules,
    *,
    limit: float | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw the mutual information of each predictor and each unit.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        result: What the trees tell.
        limit: Colours span 0 to ``limit``, in nats.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For a limit that is not above 0.
    """
    values = np.asarray(result.information, np.float64).T
    limit = checked_limit(limit, values)
    names = short_names(list(result.predictors), 2 * MAX_NAME_WIDTH)
    best, unit = np.unravel_index(int(np.nan_to_num(values).argmax()), values.shape)
    page.title(f"{shorten(result.names[unit], MAX_NAME_WIDTH)} tells most of {names[best]}", step)
    color_bar(page, "0", f"{number(limit, 3)} nats", note="mutual information")
    end = LEFT + max(map(text_width, names))
    most = int((TOP - BOTTOM) / LINE_HEIGHT)
    name_strongest(page, names, values.max(axis=1), end, (BOTTOM, TOP), all_labels=most, few=most)
    left = end + (8 if len(names) <= most else 28)
    count = values.shape[1]
    ticks = integer_ticks(count - 1, 6)
    axes = page.axes(
        left, BOTTOM, RIGHT - 10, TOP, xlim=(-0.5, count - 0.5), ylim=(len(names) - 0.5, -0.5),
        xticks=ticks, xticklabels=[result.names[tick].split()[-1] for tick in ticks], ticks="x",
        spines=(), xlabel="unit",
    )  # fmt: skip
    heat_map(axes, values, 0.0, limit)
