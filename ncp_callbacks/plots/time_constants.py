"""Time constants of the units of a cell, sorted, and against time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..analysis.time_constants import UnitTimeConstants
from ._sheet import (
    ABOVE,
    BLUE,
    DOTTED,
    GREY,
    INK,
    LEFT,
    LIGHT,
    LINE_HEIGHT,
    MISSING,
    PALE,
    SECOND_Y,
    SEPARATED,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    fitting,
    integer_ticks,
    line_style,
    nice_limit,
    number,
    points,
    samples,
    shades,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "needed_decades",
    "needed_limits",
    "plot_time_constants",
    "plot_time_constants_over_time",
]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 66, 354
# How many powers of ten beyond the data's own time scales are shown.
BELOW, BEYOND = 3, 3
NAMES = {
    "system": "time constants of the LTC",
    "gate": "time scales of the gates",
    "decay": "time constants",
    "effective": "effective time constants",
}


def plot_time_constants(
    result: UnitTimeConstants,
    *,
    first: npt.ArrayLike | None = None,
    interval: float = 1.0,
    duration: float = 1.0,
    decades: tuple[int, int] | None = None,
    timed: bool = True,
    step: int | None = None,
) -> Figure:
    """Time constants of all units, on a logarithmic axis, sorted by their medians.

    The thick line is the median of each unit over steps and sequences, its bar goes from the 10 %
    to the 90 % quantile: long bars are a liquid cell's. The dotted lines are time scales of the
    data. What is outside the axis is drawn at its edge.

    Args:
        result: Time constants.
        first: ``(H,)``, medians of an earlier look to compare with, sorted by themselves, dashed.
        interval: Typical interval of the data.
        duration: Typical duration of a sequence.
        decades: Powers of ten at which the axis begins and ends; those of the data where None.
        timed: Whether times are in units of ``time_delta`` rather than steps.
        step: Training step, for the title.

    Raises:
        ValueError: For ``decades`` that don't increase, or time scales not above 0.
    """
    sheet = Sheet()
    draw_time_constants(
        sheet, result, first=first, interval=interval, duration=duration, decades=decades,
        timed=timed, step=step,
    )  # fmt: skip
    return sheet.figure()


def needed_decades(
    result: UnitTimeConstants, first: npt.ArrayLike | None, interval: float, duration: float
) -> tuple[int, int]:
    """Powers of ten between which the time constants and the data's time scales are.

    At most :data:`BELOW` below the interval, and :data:`BEYOND` beyond the duration.
    """
    _check_scales(interval, duration)
    least, most = math.log10(min(interval, duration)), math.log10(max(interval, duration))
    shown = [result.unit_low, result.unit_high]
    if first is not None:
        shown.append(np.asarray(first, np.float64))
    values = np.concatenate(shown)
    powers = np.log10(values[np.isfinite(values) & (values > 0)])
    low = max(least - BELOW, float(powers.min(initial=least)))
    high = min(most + BEYOND, float(powers.max(initial=most)))
    # A value that is a power of ten but for rounding needs no further one.
    first_power, last_power = math.floor(low + 1e-6), math.ceil(high - 1e-6)
    return first_power, max(last_power, first_power + 1)


def _check_scales(interval: float, duration: float) -> None:
    for name, value in (("interval", interval), ("duration", duration)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} must be a number above 0")


def draw_time_constants(
    sheet: Sheet,
    result: UnitTimeConstants,
    *,
    first: npt.ArrayLike | None = None,
    interval: float = 1.0,
    duration: float = 1.0,
    decades: tuple[int, int] | None = None,
    timed: bool = True,
    step: int | None = None,
) -> None:
    """:func:`plot_time_constants` on a sheet."""
    from matplotlib.lines import Line2D

    if decades is None:
        decades = needed_decades(result, first, interval, duration)
    _check_scales(interval, duration)
    low, high = decades
    if not low < high:
        raise ValueError(f"decades={decades}: give two powers of ten, the smaller one first")
    median = np.asarray(result.unit_median, np.float64)
    order = np.argsort(median, kind="stable")
    units = max(1, len(median))

    sheet.palette = _palette
    sheet.title(NAMES[result.kind], step=step)
    sheet.text(LEFT, SECOND_Y, _summary(result))
    powers = [p for p in range(low, high + 1) if p % max(1, math.ceil((high - low) / 6)) == 0]
    labels = [_power(p) for p in powers]
    left = LEFT + 26 + max(map(sheet.width, labels)) + 12
    right = WIDTH - LEFT - 12 - sheet.width("sequence")
    panel = sheet.panel(left, BOTTOM, right - left, TOP - BOTTOM, xlim=(0, units), ylim=(low, high))
    for power in powers:
        panel.always("axhline", float(power), zorder=1, **line_style(LIGHT, 2))
    ends: list[tuple[str, Any, float]] = []
    for name, scale in (("interval", interval), ("sequence", duration)):
        at = math.log10(scale)
        if low <= at <= high and (name, interval) != ("sequence", duration):
            panel.always("axhline", at, zorder=1.5, **{**line_style(INK, 2), **DOTTED})
            ends.append((name, INK, at))
    _bars(panel, result, order, low, high)
    if first is not None:
        before = np.sort(_clipped(first, low, high))
        before = before[~np.isnan(before)]
        if len(before):
            panel.add(
                Line2D(
                    np.arange(len(before)) + 0.5, before, zorder=5,
                    **{**line_style(GREY, 2.5), "linestyle": (0, (4, 2))},
                )
            )  # fmt: skip
            ends.append(("first", GREY, float(before[-1])))
    height = (TOP - BOTTOM) / (high - low)
    wanted = [BOTTOM + (at - low) * height for _, _, at in ends]
    places = spread(wanted, LINE_HEIGHT - 2, BOTTOM + 4, TOP - 4)
    for (name, color, _), y in zip(ends, places, strict=True):
        sheet.text(right + 10, y, name, va="center_baseline", color=color)
    panel.ticks("y", [float(p) for p in powers], labels)
    panel.ticks("x", [0, units], ["", ""], length=0)
    count = "1 unit" if len(median) == 1 else f"{len(median):,} units, sorted"
    sheet.text((left + right) / 2, 9, count, ha="center")
    unit = "time" if timed else "steps"
    sheet.text(LEFT + 18, (BOTTOM + TOP) / 2, unit, ha="center", va="center", rotation=90)


def _power(power: int) -> str:
    return number(float(f"1e{power}"))


def _clipped(values: npt.ArrayLike, low: float, high: float) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = np.log10(np.asarray(values, np.float64))
    return np.asarray(np.clip(powers, low, high))


def _bars(panel: Panel, result: UnitTimeConstants, order: Any, low: int, high: int) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.patches import StepPatch

    bottom, middle, top = (
        _clipped(values, low, high)[order]
        for values in (result.unit_low, result.unit_median, result.unit_high)
    )
    known = ~np.isnan(middle)
    bottom, middle, top = bottom[known], middle[known], top[known]
    count = len(middle)
    if not count:
        return
    edges = np.arange(count + 1)
    panel.add(
        StepPatch(
            top, edges, baseline=bottom, fill=True, facecolor=PALE, edgecolor="none", linewidth=0,
            zorder=ABOVE,
        )
    )  # fmt: skip
    if 1 < count <= SEPARATED:
        gaps = [
            [(i, min(bottom[i - 1], bottom[i])), (i, max(top[i - 1], top[i]))]
            for i in range(1, count)
        ]
        panel.add(LineCollection(gaps, colors="white", linewidths=points(2), zorder=ABOVE + 0.1))
    lines = [[(i, middle[i]), (i + 1, middle[i])] for i in range(count)]
    panel.add(LineCollection(lines, colors=BLUE, linewidths=points(4), zorder=4, capstyle="butt"))


def _summary(result: UnitTimeConstants) -> str:
    if not result.known:
        return "none that are finite"
    words = [f"median {_short(float(result.quantiles[1]))}"]
    if math.isfinite(result.variation):
        words.append(f"each varies ×{_short(result.variation)}")
    return ", ".join(words)


def _short(value: float) -> str:
    return "∞" if math.isinf(value) else number(float(f"{value:.2g}"))


# ---- against time

# Colours of the map that stand for the shortest and the longest.
ENDS = ("#00224e", "#fee838")


def plot_time_constants_over_time(
    result: UnitTimeConstants,
    *,
    limits: tuple[float, float] | None = None,
    timed: bool = True,
    step: int | None = None,
) -> Figure:
    """Map of time constants, units × time steps: which units are fast, and when.

    Colours are logarithmic, from dark (short) to yellow (long); what is outside of the limits has
    their colours. Of each unit and step it is the median over sequences. Units are sorted by
    their medians, the slowest on top, as in :func:`plot_time_constants` from the right. Where only
    some steps were looked at, a column is that of the nearest of them; units that have none are
    grey.

    Args:
        result: Time constants.
        limits: Time constants at which the colours begin and end; those of the data where None.
        timed: Whether times are in units of ``time_delta`` rather than steps.
        step: Training step, for the title.

    Raises:
        ValueError: For ``limits`` that aren't above 0 or don't increase.
    """
    sheet = Sheet()
    draw_time_constants_over_time(sheet, result, limits=limits, timed=timed, step=step)
    return sheet.figure()


def needed_limits(result: UnitTimeConstants) -> tuple[float, float]:
    """Between which nearly all of a map is, rounded outwards; 1 and 10 where nothing is finite."""
    values = np.asarray(result.over_time, np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 1.0, 10.0
    low, high = np.quantile(values, (0.02, 0.98))
    short, long = 1 / nice_limit(1 / float(low)), nice_limit(float(high))
    return short, long if long > short else 2 * long


def draw_time_constants_over_time(
    sheet: Sheet,
    result: UnitTimeConstants,
    *,
    limits: tuple[float, float] | None = None,
    timed: bool = True,
    step: int | None = None,
) -> None:
    """:func:`plot_time_constants_over_time` on a sheet."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.image import AxesImage

    from ._cells import Cells

    limits = needed_limits(result) if limits is None else limits
    if not 0 < limits[0] < limits[1] < math.inf:
        raise ValueError(f"limits={limits}: give two time constants above 0, the smaller one first")
    low, high = np.log10(limits)
    order = np.argsort(-np.asarray(result.unit_median, np.float64), kind="stable")
    values = _nearest_known(np.asarray(result.over_time, np.float64))[:, order].T
    units, steps = values.shape

    sheet.palette = _map_palette
    sheet.title(NAMES[result.kind], step=step)
    short, long = ENDS
    words = [("■", short), (_short(limits[0]), INK), ("■", long), (_short(limits[1]), INK)]
    end = sheet.words(LEFT, SECOND_Y, words)
    unit = "its unit" if timed else "steps"
    sheet.text(end + 12, SECOND_Y, f"against time, in {unit}", color=GREY)
    left, right = LEFT + 33, WIDTH - LEFT - 10
    panel = sheet.panel(
        left, BOTTOM, right - left, TOP - BOTTOM, xlim=(-0.5, steps - 0.5), ylim=(units - 0.5, -0.5)
    )
    few = units <= TOP - BOTTOM and steps <= right - left
    image = (Cells if few else AxesImage)(
        None,  # type: ignore[arg-type]  # It gets its axes when it is added to them.
        cmap=colormaps["cividis"].with_extremes(bad=MISSING),
        norm=Normalize(low, high),
        interpolation="nearest" if few else "antialiased",
        origin="upper",
        extent=(-0.5, steps - 0.5, units - 0.5, -0.5),
        filternorm=True,
        resample=True,
        zorder=ABOVE,
    )
    image.set_data(np.ma.masked_invalid(_clipped(values, low, high)))
    panel.add(image)
    ticks = fitting(sheet, integer_ticks(steps - 1, 5), right - left, max(1, steps))
    panel.ticks("x", ticks, [f"{t:,}" for t in ticks])
    panel.ticks("y", [], [])
    sheet.text((left + right) / 2, 9, "time step", ha="center")
    count = "1 unit" if units == 1 else f"{units:,} units, sorted"
    sheet.text(LEFT + 18, (BOTTOM + TOP) / 2, count, ha="center", va="center", rotation=90)


def _nearest_known(values: Array) -> Array:
    """``(T, H)``, steps without anything as the nearest one with something."""
    known = np.flatnonzero(~np.isnan(values).all(axis=1))
    if not len(known):
        return values
    nearest = np.abs(np.arange(len(values))[:, None] - known).argmin(axis=1)
    return np.asarray(values[known[nearest]])


def _map_palette() -> Colors:
    others = [shades(INK, 32), shades(GREY, 12), shades(MISSING, 2)]
    return np.concatenate([samples("cividis", 192), *others])


def _palette() -> Colors:
    crossed = [
        shades(one, 10, other)
        for one, other in ((BLUE, PALE), (BLUE, GREY), (PALE, GREY), (PALE, INK), (GREY, LIGHT))
    ]
    return np.concatenate(
        [
            shades(INK, 40),
            shades(GREY, 40),
            shades(BLUE, 40),
            shades(PALE, 20),
            shades(LIGHT, 8),
            *crossed,
        ]
    )
