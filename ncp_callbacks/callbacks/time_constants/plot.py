"""Draw time constants of the units of a cell, sorted and against time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...plotting.limits import decade_ticks, log_clipped, nice_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import (
    color_bar,
    end_labels,
    heat_map,
    left_margin,
    segments,
    sorted_bars,
    time_steps,
)
from ...plotting.style import (
    BLUE,
    BOTTOM,
    DASHED,
    DOTTED,
    GREY,
    INK,
    LEFT,
    PALE,
    RIGHT,
    SECOND_Y,
    line,
)
from ...plotting.text import number, text_width
from .analysis import UnitTimeConstants

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "needed_decades",
    "needed_limits",
    "plot_time_constants",
    "plot_time_constants_over_time",
]

Array = npt.NDArray[np.float64]

TOP = 354
# How many powers of ten beyond the data's own time scales are shown.
BELOW, BEYOND = 3, 3
NAMES = {
    "system": "time constants of the LTC",
    "gate": "time scales of the gates",
    "decay": "time constants",
    "effective": "effective time constants",
}


@redrawable
def plot_time_constants(
    page: Page,
    result: UnitTimeConstants,
    *,
    first: npt.ArrayLike | None = None,
    time_delta: float = 1.0,
    duration: float = 1.0,
    decades: tuple[int, int] | None = None,
    timed: bool = True,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw time constants of all units, on a logarithmic axis, sorted by their medians.

    The thick line is the median of each unit over time steps and sequences. Its bar goes from the
    10 % to the 90 % quantile: long bars are a liquid cell's. The dotted lines are time scales of
    the data. What is outside the axis is drawn at its edge.

    Args:
        page: The page to draw on.
        result: Time constants.
        first: ``(H,)``, medians of an earlier snapshot to compare with, sorted and dashed.
        time_delta: Typical elapsed time (Δt) between two samples.
        duration: Typical duration of a sequence.
        decades: Powers of ten at which the axis begins and ends; those of the data where None.
        timed: True where times are in units of ``time_delta`` rather than time steps.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For ``decades`` that don't increase, or time scales not above 0.
    """
    if decades is None:
        decades = needed_decades(result, first, time_delta, duration)
    _check_scales(time_delta, duration)
    low, high = decades
    if not low < high:
        raise ValueError(f"decades={decades}: pass two powers of ten, the smaller one first")
    order = np.argsort(np.asarray(result.unit_median, np.float64), kind="stable")
    units = max(1, len(order))

    page.title(NAMES[result.kind], step)
    page.text(LEFT, SECOND_Y, _summary(result))
    powers = decade_ticks(low, high, 6)
    labels = [number(float(f"1e{power}")) for power in powers]
    left = left_margin(labels, True) - 7
    right = RIGHT - 12 - text_width("sequence")
    ends = []
    for name, scale in (("Δt", time_delta), ("sequence", duration)):
        power = math.log10(scale)
        if low <= power <= high and (name, time_delta) != ("sequence", duration):
            ends.append((name, INK, power))
    axes = page.axes(
        left, BOTTOM + 4, right, TOP, xlim=(0, units), ylim=(low, high), yticks=powers,
        yticklabels=labels, grid="y", xlabel=_count(len(order)),
        ylabel="time" if timed else "time steps",
        hlines=[(power, line(INK, 2, DOTTED)) for _, _, power in ends],
    )  # fmt: skip
    shown = [log_clipped(values, low, high)[order]
             for values in (result.unit_low, result.unit_median, result.unit_high)]  # fmt: skip
    known = ~np.isnan(shown[1])
    bottom, middle, top = (values[known] for values in shown)
    if known.any():
        sorted_bars(axes, bottom, top, PALE)
        at = np.arange(len(middle))
        segments(axes, at, middle, at + 1, middle, BLUE, 4, zorder=4)
    before = np.sort(log_clipped([] if first is None else first, low, high))
    before = before[~np.isnan(before)]
    if len(before):
        axes.plot(np.arange(len(before)) + 0.5, before, zorder=5, **line(GREY, 2.5, DASHED))
        ends.append(("first", GREY, float(before[-1])))
    end_labels(page, right + 10, axes, ends)


def needed_decades(
    result: UnitTimeConstants, first: npt.ArrayLike | None, time_delta: float, duration: float
) -> tuple[int, int]:
    """Return powers of ten between which the time constants and the data's time scales are.

    They are at most :data:`BELOW` below ``time_delta`` and :data:`BEYOND` beyond ``duration``.

    Args:
        result: Time constants.
        first: ``(H,)``, medians of an earlier snapshot, or None.
        time_delta: Typical elapsed time between two samples.
        duration: Typical duration of a sequence.

    Raises:
        ValueError: For time scales not above 0.
    """
    _check_scales(time_delta, duration)
    least, most = sorted((math.log10(time_delta), math.log10(duration)))
    shown = [result.unit_low, result.unit_high]
    if first is not None:
        shown.append(np.asarray(first, np.float64))
    values = np.concatenate(shown)
    powers = np.log10(values[np.isfinite(values) & (values > 0)])
    low = max(least - BELOW, float(powers.min(initial=least)))
    high = min(most + BEYOND, float(powers.max(initial=most)))
    # A value that is a power of ten but for rounding needs no other one.
    first_power, last_power = math.floor(low + 1e-6), math.ceil(high - 1e-6)
    return first_power, max(last_power, first_power + 1)


def _check_scales(time_delta: float, duration: float) -> None:
    for name, value in (("time_delta", time_delta), ("duration", duration)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} is not a time: pass a number above 0")


def _count(units: int) -> str:
    return "1 unit" if units == 1 else f"{units:,} units, sorted"


def _summary(result: UnitTimeConstants) -> str:
    if not result.known:
        return "none that are finite"
    words = [f"median {number(float(result.quantiles[1]), 2)}"]
    if math.isfinite(result.variation):
        words.append(f"each varies ×{number(result.variation, 2)}")
    return ", ".join(words)


# ---- against time


@redrawable
def plot_time_constants_over_time(
    page: Page,
    result: UnitTimeConstants,
    *,
    limits: tuple[float, float] | None = None,
    timed: bool = True,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw a map of time constants, units × time steps: which units are fast, and when.

    Colours are logarithmic, from dark (short) to yellow (long); values outside the limits have the
    colours of the limits. A cell is the median over sequences. Units are sorted by their medians,
    the slowest on top, as in :func:`plot_time_constants` from the right. If only some time steps
    were analysed, each column shows the nearest of them; units without values are grey.

    Args:
        page: The page to draw on.
        result: Time constants.
        limits: Time constants at which the colours begin and end; those of the data where None.
        timed: True where times are in units of ``time_delta`` rather than time steps.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For ``limits`` that aren't above 0 or don't increase.
    """
    limits = needed_limits(result) if limits is None else limits
    if not 0 < limits[0] < limits[1] < math.inf:
        raise ValueError(f"limits={limits}: pass two time constants above 0, the smaller one first")
    low, high = np.log10(limits)
    order = np.argsort(-np.asarray(result.unit_median, np.float64), kind="stable")
    values = _nearest_known(np.asarray(result.over_time, np.float64))[:, order].T
    units, steps = values.shape
    page.title(NAMES[result.kind], step)
    left, right = LEFT + 33, RIGHT - 10
    axes = page.axes(
        left, BOTTOM + 4, right, TOP, xlim=(-0.5, steps - 0.5), ylim=(units - 0.5, -0.5),
        xlabel="time step", ylabel=_count(units), **time_steps(steps - 1, right - left, 5),
    )  # fmt: skip
    heat_map(axes, log_clipped(values, low, high), low, high)
    unit = "in the unit of Δt" if timed else "in time steps"
    color_bar(page, number(limits[0], 2), number(limits[1], 2), note=unit)


def needed_limits(result: UnitTimeConstants) -> tuple[float, float]:
    """Return limits of nearly all of a map, rounded outwards; 1 and 10 where nothing is finite."""
    values = np.asarray(result.over_time, np.float64)
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 1.0, 10.0
    low, high = np.quantile(values, (0.02, 0.98))
    short, long = 1 / nice_limit(1 / float(low)), nice_limit(float(high))
    return short, long if long > short else 2 * long


def _nearest_known(values: Array) -> Array:
    """Return ``(T, H)`` with each empty time step replaced by the nearest that is not."""
    known = np.flatnonzero(~np.isnan(values).all(axis=1))
    if not len(known):
        return values
    nearest = np.abs(np.arange(len(values))[:, None] - known).argmin(axis=1)
    return np.asarray(values[known[nearest]])
