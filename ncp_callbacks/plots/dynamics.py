"""How long a state remembers, and which of its units go with the target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..analysis.dynamics import Memory, UnitCorrelations
from ._sheet import (
    ABOVE,
    BLUE,
    DOTTED,
    GREY,
    INK,
    LEFT,
    LIGHT,
    LINE_HEIGHT,
    PALE,
    SECOND_Y,
    SEPARATED,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    integer_ticks,
    line_style,
    number,
    points,
    shades,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["needed_decades", "plot_dynamics"]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 66, 330
MIDDLE = 316  # Where the right half begins.
THIRD_Y = SECOND_Y - LINE_HEIGHT
MOST_DECADES = 10


def plot_dynamics(
    correlations: UnitCorrelations,
    memory: Memory | None = None,
    *,
    first: npt.ArrayLike | None = None,
    target: str | None = None,
    decades: tuple[int, int] | None = None,
    step: int | None = None,
) -> Figure:
    """What is left of a change of the state, and how each unit goes with the target.

    Left, where ``memory`` is given: the share of a small random change of the state that is left
    in the last state, against how many steps before it happened, shaded the 95 % CI of that
    over sequences; the dotted line is 1/e. Right:
    the correlation of each unit with the target over sequences, sorted; the dotted lines are what
    chance alone lets the most extreme of all units exceed in at most 5 % of cases, bars that don't
    are pale.

    Args:
        correlations: Of the units with the target.
        memory: What to draw on the left.
        first: ``(K,)``, the ``curve`` of an earlier look to compare with, dashed.
        target: Name of the target.
        decades: The left axis spans so many powers of ten below and above 1.
        step: Training step, for the title.

    Raises:
        ValueError: For ``decades`` that are not at least one below and none above.
    """
    sheet = Sheet()
    draw_dynamics(
        sheet, correlations, memory, first=first, target=target, decades=decades, step=step
    )
    return sheet.figure()


def draw_dynamics(
    sheet: Sheet,
    correlations: UnitCorrelations,
    memory: Memory | None = None,
    *,
    first: npt.ArrayLike | None = None,
    target: str | None = None,
    decades: tuple[int, int] | None = None,
    step: int | None = None,
) -> None:
    """:func:`plot_dynamics` on a sheet."""
    sheet.palette = _palette
    sheet.title("memory and units of the state" if memory else "units of the state", step=step)
    if memory is not None:
        earlier = None if first is None else np.asarray(first, np.float64)
        _memory(sheet, memory, earlier, decades)
    _units(sheet, correlations, LEFT if memory is None else MIDDLE, target)


def _memory(
    sheet: Sheet, memory: Memory, first: Array | None, decades: tuple[int, int] | None
) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

    now = _logarithm(memory.curve)
    before = None if first is None else _logarithm(first)
    if decades is None:
        decades = needed_decades(memory.curve, *([] if first is None else [first]))
    below, above = _checked_decades(decades)
    sheet.text(LEFT, SECOND_Y, "share of a change left")
    sheet.text(LEFT, THIRD_Y, _until(memory), color=GREY)

    ticks = _decade_ticks(below, above)
    labels = [number(float(f"1e{power}")) for power in ticks]
    left = LEFT + max(map(sheet.width, labels)) + 12
    right = MIDDLE - 26 - sheet.width("first")
    last = max(1, len(now) - 1, 0 if before is None else len(before) - 1)
    panel = sheet.panel(
        left, BOTTOM, right - left, TOP - BOTTOM, xlim=(0, last), ylim=(-below, above)
    )
    for power in ticks:
        color = GREY if power == 0 else LIGHT
        panel.always("axhline", float(power), zorder=1, **line_style(color, 2))
    at_e = -1 / math.log(10)
    panel.always("axhline", at_e, zorder=1.5, **{**line_style(INK, 2), **DOTTED})
    ends = [("1/e", INK, at_e)]
    if before is not None:
        panel.add(
            Line2D(
                np.arange(len(before)), before, zorder=3,
                **{**line_style(GREY, 2.5), "linestyle": (0, (4, 2))},
            )
        )  # fmt: skip
        ends.append(("first", GREY, float(before[-1])))
    if len(now):
        bounds = np.clip(_logarithm(memory.ci), -below, above)
        inside = np.flatnonzero(np.isfinite(bounds).all(axis=0))
        if len(inside):
            low, high = bounds[:, inside]
            band = np.stack(
                [np.append(inside, inside[::-1]), np.append(low, high[::-1])], axis=1
            )  # fmt: skip
            panel.add(
                PolyCollection(
                    [band], facecolor=BLUE, edgecolor="none", linewidth=0, alpha=0.16, zorder=ABOVE
                )
            )
        panel.add(Line2D(np.arange(len(now)), now, zorder=4, **line_style(BLUE, 4)))
        ends.append(("now", BLUE, float(now[-1])))
    height = (TOP - BOTTOM) / (below + above)
    wanted = [min(max(BOTTOM + (end[2] + below) * height, BOTTOM + 4), TOP - 4) for end in ends]
    places = spread(wanted, LINE_HEIGHT - 2, BOTTOM + 4, TOP - 4)
    for (name, color, _), y in zip(ends, places, strict=True):
        sheet.text(right + 10, y, name, va="center_baseline", color=color)
    panel.ticks("y", [float(power) for power in ticks], labels)
    at = integer_ticks(last, 3)
    panel.ticks("x", at, [number(k) for k in at])
    sheet.text((left + right) / 2, 9, "steps before the last", ha="center")


def _logarithm(curve: npt.ArrayLike) -> Array:
    with np.errstate(divide="ignore"):
        powers = np.log10(np.asarray(curve, np.float64))
    # Far outside is as good as infinitely far, which can't be drawn.
    return np.clip(powers, -10 * MOST_DECADES, 10 * MOST_DECADES)


def needed_decades(*curves: npt.ArrayLike) -> tuple[int, int]:
    """How many powers of ten, at most 10, an axis must span below and above 1 to show curves."""
    shown = np.concatenate([_logarithm(curve) for curve in curves])
    finite = shown[np.isfinite(shown)]
    lowest, highest = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    # A curve that ends at 1 but for rounding doesn't need another one.
    below, above = math.ceil(-lowest - 1e-6), math.ceil(highest - 1e-6)
    return min(MOST_DECADES, max(1, below)), min(MOST_DECADES, max(0, above))


def _checked_decades(decades: tuple[int, int]) -> tuple[int, int]:
    below, above = decades
    if below < 1 or above < 0:
        raise ValueError(f"decades={decades}: give at least 1 below and at least 0 above")
    return int(below), int(above)


def _decade_ticks(below: int, above: int) -> list[int]:
    every = max(1, math.ceil((below + above) / 5))
    return [power for power in range(-below, above + 1) if power % every == 0]


def _until(memory: Memory) -> str:
    if not memory.sequences:
        return "no finite Jacobians"
    steps = number(float(f"{memory.steps:.3g}"))
    if memory.unforgotten >= 0.5:
        return "above 1/e after 1 step" if steps == "1" else f"above 1/e for all {steps} steps"
    return f"1/e after {steps} steps"


def _units(sheet: Sheet, correlations: UnitCorrelations, x: float, target: str | None) -> None:
    values = np.asarray(correlations.values, np.float64)
    known = np.sort(values[np.isfinite(values)])[::-1]
    room = WIDTH - LEFT - x
    sheet.text(x, SECOND_Y, sheet.shorten(f"r with {target or 'the target'}", room))
    sheet.text(x, THIRD_Y, _beyond(known, correlations.chance), color=GREY)
    labels = [number(v) for v in (-1.0, 0.0, 1.0)]
    left = x + max(map(sheet.width, labels)) + 12
    units = max(1, len(values))
    panel = sheet.panel(
        left, BOTTOM, WIDTH - LEFT - 4 - left, TOP - BOTTOM, xlim=(0, units), ylim=(-1, 1)
    )
    panel.always("axhline", 0.0, zorder=1, **line_style(GREY, 2))
    if correlations.chance < 1:
        for bound in (-correlations.chance, correlations.chance):
            style = {**line_style(INK, 2), **DOTTED}
            panel.always("axhline", float(bound), zorder=1.5, **style)
    _bars(panel, known, correlations.chance)
    panel.ticks("y", [-1, 0, 1], labels)
    panel.ticks("x", [0, units], ["", ""], length=0)
    sheet.text((left + WIDTH - LEFT - 4) / 2, 9, _top(correlations), ha="center")


def _bars(panel: Panel, heights: Array, chance: float) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import StepPatch

    count = len(heights)
    style: dict[str, Any] = {"fill": True, "edgecolor": "none", "linewidth": 0, "zorder": ABOVE}
    beyond = np.abs(heights) > chance
    for color, own in ((PALE, ~beyond), (BLUE, beyond)):
        if own.any():
            shown = np.where(own, heights, 0.0)
            panel.add(StepPatch(shown, np.arange(count + 1), facecolor=color, **style))
    if 1 < count <= SEPARATED:
        ends = np.stack([heights[1:], heights[:-1], np.zeros(count - 1)])
        low, high = ends.min(axis=0), ends.max(axis=0)
        gaps = [[(i + 1, low[i]), (i + 1, high[i])] for i in range(count - 1)]
        panel.add(LineCollection(gaps, colors="white", linewidths=points(2), zorder=ABOVE + 0.1))


def _beyond(known: Array, chance: float) -> str:
    if not len(known):
        return "nothing varies"
    beyond = int((np.abs(known) > chance).sum())
    return f"{beyond:,} of {len(known):,} beyond chance"


def _top(correlations: UnitCorrelations) -> str:
    top, count = correlations.top, len(correlations.values)
    if top is None:
        return f"{count:,} units"
    return f"most: {number(round(float(correlations.values[top]), 2))}, unit {top:,}"


def _palette() -> Colors:
    band = shades(BLUE, 2, "white")[0] * 0.16 + 0.84
    on_band = [shades(color, 6, band) for color in (BLUE, GREY, LIGHT, INK)]
    crossed = [
        shades(one, 10, other)
        for one, other in (
            (BLUE, GREY), (BLUE, LIGHT), (BLUE, INK), (BLUE, PALE), (PALE, INK), (GREY, LIGHT),
            (INK, GREY),
        )
    ]  # fmt: skip
    return np.concatenate(
        [
            shades(INK, 32),
            shades(GREY, 32),
            shades(BLUE, 40),
            shades(PALE, 16),
            shades(LIGHT, 8),
            *on_band,
            *crossed,
        ]
    )
