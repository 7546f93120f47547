"""Draw how long a state remembers, and how its units correlate with the target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...plotting.limits import decade_ticks, integer_ticks
from ...plotting.page import Page, redrawable
from ...plotting.parts import end_labels, left_margin, shade_ci, sorted_bars
from ...plotting.style import (
    BLUE,
    BOTTOM,
    DASHED,
    DOTTED,
    GREY,
    INK,
    LABEL_Y,
    LEFT,
    LINE_HEIGHT,
    ORANGE,
    PALE,
    RIGHT,
    SECOND_Y,
    line,
)
from ...plotting.text import number, shorten, text_width
from .analysis import Memory, TargetMemory, UnitCorrelations

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["logarithm", "needed_decades", "plot_dynamics"]

Array = npt.NDArray[np.float64]

TOP = 330
MIDDLE = 316  # Where the right half begins.
THIRD_Y = SECOND_Y - LINE_HEIGHT
MAX_DECADES = 10


@redrawable
def plot_dynamics(
    page: Page,
    correlations: UnitCorrelations,
    memory: Memory | None = None,
    *,
    first: npt.ArrayLike | None = None,
    of_target: TargetMemory | None = None,
    target: str | None = None,
    decades: tuple[int, int] | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw how far back state and target remember, and each unit's correlation with the target.

    The left half shows the share of a small random change of the state that is left in the last
    state, against how many time steps before it happened: the linear memory. Its 95 % CI over
    sequences is shaded, and the dotted line is 1/e. The orange line is the change of the target,
    in SDs, when only so many last time steps are kept. The right half shows the correlation of each
    unit with the target over sequences, sorted. The most extreme of all units exceeds the dotted
    lines by chance in at most 5 % of cases; bars within them are pale.

    Args:
        page: The page to draw on.
        correlations: Correlations of the units with the target.
        memory: The memory for the left half; None for no left half.
        first: ``(K,)``, the ``curve`` of an earlier snapshot to compare with, dashed.
        of_target: The memory of the target, drawn over the linear memory.
        target: Name of the target.
        decades: The left axis spans so many powers of ten below and above 1.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For ``decades`` that are not at least one below and none above.
    """
    page.title("linear memory, and units of the state" if memory else "units of the state", step)
    if memory is not None:
        earlier = None if first is None else np.asarray(first, np.float64)
        _memory(page, memory, earlier, decades, of_target)
    _units(page, correlations, LEFT if memory is None else MIDDLE, target)


def _memory(
    page: Page,
    memory: Memory,
    first: Array | None,
    decades: tuple[int, int] | None,
    of_target: TargetMemory | None,
) -> None:
    now = logarithm(memory.curve)
    before = None if first is None else logarithm(first)
    if decades is None:
        decades = needed_decades(memory.curve, *([] if first is None else [first]))
    below, above = _checked_decades(decades)
    page.words(LEFT, SECOND_Y, ("■", BLUE), ("small change left", INK))
    if of_target is None:
        page.text(LEFT, THIRD_Y, _until(memory), color=GREY)
    else:
        page.words(LEFT, THIRD_Y, ("■", ORANGE), ("target, last steps only", INK))
    powers = decade_ticks(-below, above, 5)
    labels = [number(float(f"1e{power}")) for power in powers]
    left, right = left_margin(labels), MIDDLE - 26 - text_width("first")
    last = max(1, len(now) - 1, 0 if before is None else len(before) - 1)
    xticks = integer_ticks(last, 3)
    at_e = -1 / math.log(10)
    axes = page.axes(
        left, BOTTOM + 4, right, TOP, xlim=(0, last), ylim=(-below, above), xticks=xticks,
        xticklabels=[number(x) for x in xticks], yticks=powers, yticklabels=labels, grid="y",
        hlines=[(0.0, line(GREY, 2)), (at_e, line(INK, 2, DOTTED))],
    )  # fmt: skip
    page.text((left + right) / 2 - 8, LABEL_Y, "time steps before last", ha="center")
    ends = [("1/e", INK, at_e)]
    if before is not None:
        axes.plot(np.arange(len(before)), before, zorder=3, **line(GREY, 2.5, DASHED))
        ends.append(("first", GREY, float(before[-1])))
    if len(now):
        ci = np.clip(logarithm(memory.ci), -below, above)
        shade_ci(axes, np.arange(len(now)), ci, BLUE, 0.16)
        axes.plot(np.arange(len(now)), now, zorder=4, **line(BLUE, 4))
        ends.append(("now", BLUE, float(now[-1])))
    if of_target is not None:
        changes = np.clip(logarithm(of_target.curve), -below, above)
        axes.plot(of_target.kept, changes, zorder=5, **line(ORANGE, 4))
    end_labels(page, right + 10, axes, ends)


def logarithm(curve: npt.ArrayLike) -> Array:
    """Return decimal logarithms that can be drawn; NaN stays NaN."""
    with np.errstate(divide="ignore"):
        powers = np.log10(np.asarray(curve, np.float64))
    # Far outside is as good as infinitely far, which can't be drawn.
    return np.clip(powers, -10 * MAX_DECADES, 10 * MAX_DECADES)


def needed_decades(*curves: npt.ArrayLike) -> tuple[int, int]:
    """Return how many powers of ten, at most 10, an axis must span below and above 1."""
    shown = np.concatenate([logarithm(curve) for curve in curves])
    finite = shown[np.isfinite(shown)]
    lowest, highest = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    # A curve that ends at 1 but for rounding doesn't need another one.
    below, above = math.ceil(-lowest - 1e-6), math.ceil(highest - 1e-6)
    return min(MAX_DECADES, max(1, below)), min(MAX_DECADES, max(0, above))


def _checked_decades(decades: tuple[int, int]) -> tuple[int, int]:
    below, above = decades
    if below < 1 or above < 0:
        raise ValueError(f"decades={decades}: pass at least 1 below and at least 0 above")
    return int(below), int(above)


def _until(memory: Memory) -> str:
    if not memory.sequences:
        return "no finite Jacobians"
    steps = number(memory.steps, 3)
    if memory.unforgotten >= 0.5:
        return "above 1/e after 1 step" if steps == "1" else f"above 1/e for all {steps} steps"
    return f"1/e after {steps} steps"


def _units(page: Page, correlations: UnitCorrelations, x: float, target: str | None) -> None:
    values = np.asarray(correlations.values, np.float64)
    known = np.sort(values[np.isfinite(values)])[::-1]
    beyond = np.abs(known) > correlations.chance
    page.text(x, SECOND_Y, shorten(f"r with {target or 'the target'}", RIGHT - x))
    count = f"{int(beyond.sum()):,} of {len(known):,} beyond chance"
    page.text(x, THIRD_Y, count if len(known) else "nothing varies", color=GREY)
    labels = [number(v) for v in (-1.0, 0.0, 1.0)]
    left = x - LEFT + left_margin(labels)
    chance = float(correlations.chance)
    bounds = (-chance, chance) if chance < 1 else ()
    axes = page.axes(
        left, BOTTOM + 4, RIGHT - 4, TOP, xlim=(0, max(1, len(values))), ylim=(-1, 1),
        yticks=[-1, 0, 1], yticklabels=labels, xlabel=_top(correlations),
        hlines=[(0.0, line(GREY, 2)), *((bound, line(INK, 2, DOTTED)) for bound in bounds)],
    )  # fmt: skip
    for color, own in ((PALE, ~beyond), (BLUE, beyond)):
        if own.any():
            sorted_bars(axes, 0.0, np.where(own, known, 0.0), color)


def _top(correlations: UnitCorrelations) -> str:
    top, count = correlations.top, len(correlations.values)
    if top is None:
        return f"{count:,} units"
    return f"most: {number(round(float(correlations.values[top]), 2))}, unit {top:,}"
