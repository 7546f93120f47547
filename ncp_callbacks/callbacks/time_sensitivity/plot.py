"""Draw the reaction of the target to scaled elapsed times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import end_labels, left_margin, shade, whiskers
from ...plotting.style import (
    BLUE,
    BOTTOM,
    DASHED,
    DOTTED,
    GREY,
    INK,
    LEFT,
    RIGHT,
    SECOND_Y,
    VERMILION,
    line,
)
from ...plotting.text import number, shorten, text_width
from .analysis import TimeSensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_time_sensitivity"]

Array = npt.NDArray[np.float64]
TOP = 354


@redrawable
def plot_time_sensitivity(
    page: Page,
    result: TimeSensitivity,
    *,
    reference: TimeSensitivity | None = None,
    limit: float | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw how far the target moves when all elapsed times are multiplied by a factor.

    The thick line is the RMS change over sequences. The area between plus and minus the RMS change
    is shaded. The mean change, a thin line, always lies within it: at its edge where all sequences
    change equally, at 0 where their changes cancel. Both are in SDs of the target over sequences,
    or in units of the target if that SD is 0. Whiskers are 95 % CIs of the RMS change over
    sequences. The dotted line marks the elapsed times of the data.

    Args:
        page: The page to draw on.
        result: The result to draw.
        reference: An earlier result to compare with; its RMS change is dashed.
        limit: The vertical axis spans ±``limit``.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: If a scale or the limit is not above 0.
    """
    for scales in (result.scales, *(() if reference is None else (reference.scales,))):
        if not len(scales) or not (np.asarray(scales) > 0).all():
            raise ValueError(
                f"scales are {np.asarray(scales).tolist()}: pass at least one, and only scales "
                "above 0, because the axis is logarithmic"
            )
    in_sd = bool(np.isfinite(result.sensitivities).all()) or not result.rms_change.any()
    rms, mean = _curves(result, in_sd)
    first = None if reference is None else _curves(reference, in_sd)[0]
    limit = checked_limit(limit, rms if first is None else np.concatenate([rms, first]))
    x = np.asarray(result.scales, np.float64)
    unit = "SD" if in_sd else "target units"
    page.title(_finding(result, x, rms, unit), step)
    page.text(LEFT, SECOND_Y, shorten(result.target, RIGHT - LEFT), color=GREY)

    yticks = [-limit, -limit / 2, 0.0, limit / 2, limit]
    labels = [number(y) for y in yticks]
    left, right = left_margin(labels, True), RIGHT - text_width("mean") - 10
    low, high = min(1.0, *x), max(1.0, *x)
    low, high = (low, high) if low < high else (0.5, 2.0)
    margin = (high / low) ** 0.03
    xlim = float(low / margin), float(high * margin)
    xticks = factor_ticks(xlim, right - left, x if len(x) <= 7 else ())
    axes = page.axes(
        left, BOTTOM + 4, right, TOP, xlim=xlim, ylim=(-limit, limit), xscale="log",
        xticks=xticks, xticklabels=[f"{number(s)}×" for s in xticks], yticks=yticks,
        yticklabels=labels, grid="y", xlabel="Δt × (1× = the data's)", ylabel=f"change ({unit})",
        hlines=[(0.0, line(GREY, 2))], vlines=[(1.0, line(INK, 2, DOTTED))],
    )  # fmt: skip
    shade(axes, x, -rms, rms, BLUE, 0.16)
    ends = [("0", BLUE, 0.0)]
    if not result.ignores_time:
        axes.plot(x, mean, zorder=4, **line(VERMILION, 2.5))
        if np.shape(result.ci)[1] == len(x):
            whiskers(axes, x, result.ci)
        ends = [("RMS", BLUE, float(rms[-1])), ("mean", VERMILION, float(mean[-1]))]
    if first is not None and reference is not None:
        axes.plot(reference.scales, first, zorder=3, **line(GREY, 2.5, DASHED))
        at_end = np.interp(np.log(x[-1]), np.log(reference.scales), first)
        ends.append(("first", GREY, float(at_end)))
    axes.plot(x, rms, zorder=5, **line(BLUE, 4, marker="o"))
    end_labels(page, right + 10, axes, ends)


def _finding(result: TimeSensitivity, x: Array, rms: Array, unit: str) -> str:
    """Return the title: the scale that moves the target the most."""
    if (x == 1).all():
        return "no other time scale was tried"
    if result.ignores_time:
        return "the model ignores time"
    if not np.isfinite(rms).any():
        return "no finite sequences"
    top = int(np.nanargmax(rms))
    return f"Δt ×{number(float(x[top]), 2)} moves the target by {number(float(rms[top]), 2)} {unit}"


def _curves(result: TimeSensitivity, in_sd: bool) -> tuple[Array, Array]:
    """Return the RMS and the mean change at each scale."""
    rms = np.asarray(result.rms_change, np.float64)
    mean = np.asarray(result.mean_change, np.float64)
    if not in_sd:
        return rms, mean
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(mean == 0, 0.0, mean / result.target_sd)
    return np.asarray(result.sensitivities, np.float64), mean


def factor_ticks(
    xlim: tuple[float, float], width: float, preferred: npt.ArrayLike = ()
) -> list[float]:
    """Return ticks of a logarithmic axis of factors that don't crowd.

    The factor 1 has priority, then the preferred factors, then round numbers.

    Args:
        xlim: Ends of the axis.
        width: Length of the axis in pixels.
        preferred: Factors to label.
    """
    low, high = xlim
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    round_numbers = [float(f"{digit}e{power}") for digit in (1, 2, 5) for power in powers]
    own = [float(scale) for scale in np.ravel(preferred)]
    ticks: dict[float, tuple[float, float]] = {}
    for scale in [1.0, *sorted(own, key=lambda s: -abs(np.log(s))), *round_numbers]:
        label = f"{number(scale)}×"
        if not low <= scale <= high or len(label) > 7:
            continue
        x = width * float(np.log(scale / low) / np.log(high / low))
        half = text_width(label) / 2
        if all(abs(at - x) > half + other + 14 for at, other in ticks.values()):
            ticks[scale] = x, half
    return sorted(ticks)
