"""Draw the influence of input time steps on output time steps, and how long it lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit, integer_ticks, round_ticks
from ...plotting.page import Page, redrawable
from ...plotting.parts import color_bar, heat_map, left_margin
from ...plotting.style import (
    BLUE,
    BOTTOM,
    LIGHT,
    RIGHT,
    TOP,
    VERMILION,
    fill,
    line,
)
from ...plotting.text import number, text_width
from .analysis import OutputTime, binned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["needed_share", "plot_output_time"]

Array = npt.NDArray[np.float64]

MAP = 290  # Pixels of the map's sides.
MAX_BARS = 60  # Of the first profile.
GAP = 88  # Between the two profiles, for the words below the upper one.


@redrawable
def plot_output_time(
    page: Page,
    result: OutputTime,
    *,
    limit: float | None = None,
    share: float | None = None,
    lag: float | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw which input time step acts on which output time step, and how much later.

    Left: mean over sequences of the absolute attribution, from dark (0) to yellow (``limit``);
    time runs to the right and upwards, so that the past of an output is below the diagonal. The
    line is the mean lag before each output. Time steps that no sequence has are grey. Right: shares
    of influence against the number of time steps and the elapsed time between input and output.
    Above 100 time steps, rows of the map are sums of equally many time steps.

    Args:
        page: The page to draw on.
        result: The influence.
        limit: Colours span 0 to ``limit``, in units of the target.
        share: The profiles span 0 to ``share``.
        lag: Number of time steps that the first profile spans; None for 99 % of the influence.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For limits that are not above 0.
    """
    steps = len(result.influence)
    rows, size = binned(result.influence)
    influence = np.asarray(rows, np.float64)
    limit = checked_limit(limit, influence)
    last_lag = _last_lag(result, lag)
    by_lag, together = _by_lag(result.profile, last_lag)
    profiles = [by_lag]
    if result.time_profile is not None:
        profiles.append(np.asarray(result.time_profile, np.float64))
    share = checked_limit(share, np.concatenate(profiles))

    title = "influence of inputs on outputs"
    if np.isfinite(result.lag):
        title = f"inputs act {number(float(result.lag), 2)} time steps later"
    future = f" · {result.future_share:.0%} from the future" if result.future_share > 0 else ""
    page.title(title + future, step)
    ticks = integer_ticks(steps - 1, 4)
    labels = [f"{t:,}" for t in ticks]
    left = left_margin(labels, True)
    whole = (-0.5, steps - 0.5)
    axes = page.axes(
        left, BOTTOM, left + MAP, TOP, xlim=whole, ylim=whole, xticks=ticks, xticklabels=labels,
        yticks=ticks, yticklabels=labels, xlabel="output at time step",
        ylabel="input at time step" if size == 1 else f"input (sums of {size} steps)",
    )  # fmt: skip
    known, every = np.asarray(result.steps), np.arange(steps)
    # Each column of the map is the output time step nearest to it.
    values = influence[:, np.abs(every[:, None] - known).argmin(axis=1)]
    values[:, (every < known[0]) | (every > known[-1])] = np.nan
    extent = (-0.5, steps - 0.5, -0.5, len(influence) * size - 0.5)
    heat_map(axes, values[::-1], 0, limit, extent=extent)
    lags = np.asarray(result.lag_by_step, np.float64)
    axes.plot(known, known - lags, **line(VERMILION, 3))

    begin, stop = left + MAP + 34 + text_width("100%"), RIGHT - 10
    split = len(profiles) == 2
    bottom = TOP - ((TOP - BOTTOM - GAP) / 2 if split else TOP - BOTTOM)
    # As many ticks as have room.
    at = next(
        ticks
        for ticks in (integer_ticks(last_lag, most) for most in (3, 2, 1))
        if len(ticks) * (text_width(f"{ticks[-1]:,}") + 16) <= stop - begin or len(ticks) <= 2
    )
    edges = np.arange(len(by_lag) + 1) * float(together) - 0.5
    name = "steps before" if together == 1 else f"before, by {together}"
    box = (begin, bottom, stop, TOP)
    _profile(page, box, by_lag, edges, share, (-0.5, last_lag + 0.5), at, name)
    if split and result.time_edges is not None:
        edges = np.asarray(result.time_edges, np.float64)
        last = float(edges[-1])
        lower = (begin, float(BOTTOM), stop, BOTTOM + TOP - bottom)
        _profile(
            page, lower, profiles[1], edges, share, (0.0, last), round_ticks(last, 3), "time before"
        )
    end = color_bar(page, "0", number(limit), note=None)
    page.legend((VERMILION, "mean lag"), note=result.target, x=end + 14)


def _profile(
    page: Page,
    box: tuple[float, float, float, float],
    values: npt.ArrayLike,
    edges: npt.ArrayLike,
    limit: float,
    xlim: tuple[float, float],
    ticks: Any,
    name: str,
) -> None:
    axes = page.axes(
        *box, xlim=xlim, ylim=(0.0, limit), xticks=ticks,
        xticklabels=[number(float(t)) for t in ticks], yticks=[0.0, limit],
        yticklabels=["0", f"{number(100 * limit)}%"], hlines=[(limit, line(LIGHT, 2))],
    )  # fmt: skip
    axes.stairs(np.nan_to_num(values), np.asarray(edges), fill=True, **fill(BLUE))
    page.text((box[0] + box[2]) / 2, box[1] - 53, name, ha="center")


def needed_share(result: OutputTime, lag: float | None) -> float:
    """Return the highest bar of the first profile, for limits that must cover it."""
    return float(np.nanmax(_by_lag(result.profile, _last_lag(result, lag))[0]))


def _last_lag(result: OutputTime, lag: float | None) -> int:
    known = result.reach if lag is None else lag
    most = len(result.influence) - 1
    return min(most, max(1, int(np.ceil(known)) if np.isfinite(known) else 1))


def _by_lag(profile: npt.ArrayLike, last_lag: int) -> tuple[Array, int]:
    """Return sums of the shares of equally many lags, so that bars are wide enough, and how many.

    Of a thousand lags none has a share that could be seen.
    """
    values = np.asarray(profile, np.float64)
    size = -(-(last_lag + 1) // MAX_BARS)
    if size == 1:
        return values, 1
    return np.add.reduceat(np.nan_to_num(values), np.arange(0, len(values), size)), size
