"""The reaction of the target to stretched time, as curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..analysis.time import TimeSensitivity
from ._sheet import (
    ABOVE,
    BLUE,
    GREY,
    INK,
    LEFT,
    LIGHT,
    LINE_HEIGHT,
    VERMILION,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    checked_limit,
    line_style,
    number,
    points,
    shades,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_time_sensitivity"]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 66, 354


def plot_time_sensitivity(
    result: TimeSensitivity,
    *,
    reference: TimeSensitivity | None = None,
    limit: float | None = None,
    step: int | None = None,
) -> Figure:
    """Curve of how far the target moves when all intervals are multiplied by a factor.

    The thick line is the RMS change over sequences, the shaded band its positive and negative
    side. The mean change, a thin line, always lies within the band: at its edge where all sequences
    move alike, at 0 where they cancel out. Both are in SDs of the target over sequences; in units
    of the target where that SD is 0. Whiskers are 95 % CIs of the RMS change over sequences.
    The dotted line marks the intervals of the data.

    Args:
        result: What to draw.
        reference: An earlier result to compare with; its RMS change is dashed.
        limit: The vertical axis spans ±``limit``.
        step: Training step, for the title.

    Raises:
        ValueError: For scales that are not above 0, and a limit that is not above 0.
    """
    sheet = Sheet()
    draw_time_sensitivity(sheet, result, reference=reference, limit=limit, step=step)
    return sheet.figure()


def draw_time_sensitivity(
    sheet: Sheet,
    result: TimeSensitivity,
    *,
    reference: TimeSensitivity | None = None,
    limit: float | None = None,
    step: int | None = None,
) -> None:
    """:func:`plot_time_sensitivity` on a sheet."""
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

    for scales in (result.scales, *(() if reference is None else (reference.scales,))):
        if not len(scales) or not (np.asarray(scales) > 0).all():
            raise ValueError(
                f"scales are {np.asarray(scales).tolist()}; the logarithmic axis needs at least "
                "one, and all above 0"
            )
    in_sd = bool(np.isfinite(result.sensitivities).all()) or not result.rms_change.any()
    rms, mean = _curves(result, in_sd)
    first = None if reference is None else _curves(reference, in_sd)[0]
    limit = checked_limit(limit, rms if first is None else np.concatenate([rms, first]))
    unit = "SD" if in_sd else "target units"

    sheet.palette = _palette
    if (np.asarray(result.scales) == 1).all():
        sheet.title("no other time scale was tried", step=step)
    elif result.ignores_time:
        sheet.title("the model ignores time", step=step)
    else:
        sheet.title(f"time sensitivity ±{number(limit)}{' SD' if in_sd else ''}", step=step)
    sheet.target(LEFT, result.target)
    ends: list[tuple[str, str, float]] = []
    if result.ignores_time:
        ends.append(("0", BLUE, 0.0))
    else:
        ends += [("RMS", BLUE, float(rms[-1])), ("mean", VERMILION, float(mean[-1]))]
    if first is not None and reference is not None:
        at_end = np.interp(np.log(result.scales[-1]), np.log(reference.scales), first)
        ends.append(("first", GREY, float(at_end)))
    ends = [end for end in ends if np.isfinite(end[2])]

    y_ticks = [-limit, -limit / 2, 0.0, limit / 2, limit]
    y_labels = [number(v) for v in y_ticks]
    left = LEFT + 33 + max(map(sheet.width, y_labels)) + 12
    right = WIDTH - LEFT - sheet.width("mean") - 10
    x = np.asarray(result.scales, np.float64)
    low, high = min(1.0, *x), max(1.0, *x)
    if low == high:
        low, high = 0.5, 2.0
    margin = (high / low) ** 0.03
    panel = sheet.panel(
        left, BOTTOM, right - left, TOP - BOTTOM,
        xlim=(float(low / margin), float(high * margin)), ylim=(-limit, limit), xscale="log",
    )  # fmt: skip

    def across(scale: float) -> float:
        share = np.log(scale * margin / low) / np.log(high / low * margin**2)
        return left + (right - left) * float(share)

    for y in y_ticks:
        panel.always("axhline", y, zorder=1, **line_style(GREY if y == 0 else LIGHT, 2))
    panel.always("axvline", 1.0, zorder=1.5, **{**line_style(INK, 2), "linestyle": (0, (1, 2))})
    bands = [
        np.stack([np.append(x[run], x[run][::-1]), np.append(rms[run], -rms[run][::-1])], axis=1)
        for run in np.ma.clump_unmasked(np.ma.masked_invalid(rms))  # type: ignore[no-untyped-call]
    ]
    panel.add(
        PolyCollection(
            bands, facecolor=BLUE, edgecolor="none", linewidth=0, alpha=0.16, zorder=ABOVE
        )
    )
    if first is not None and reference is not None:
        panel.add(
            Line2D(
                reference.scales, first, zorder=3,
                **{**line_style(GREY, 2.5), "linestyle": (0, (4, 2))},
            )
        )  # fmt: skip
    if not result.ignores_time:
        panel.add(Line2D(x, mean, zorder=4, **line_style(VERMILION, 2.5)))
    if not result.ignores_time:
        _draw_whiskers(panel, x, np.clip(result.ci, -limit, limit))
    panel.add(
        Line2D(
            x, rms, zorder=5,
            **{**line_style(BLUE, 4), "marker": "o", "markersize": points(9)},
            markerfacecolor=BLUE, markeredgecolor=BLUE, markeredgewidth=points(1.4),
        )
    )  # fmt: skip

    wanted = [BOTTOM + (TOP - BOTTOM) * (end[2] / limit + 1) / 2 for end in ends]
    places = spread(wanted, LINE_HEIGHT - 2, BOTTOM + 4, TOP - 4)
    for (name, color, _), y in zip(ends, places, strict=True):
        sheet.text(right + 10, y, name, va="center_baseline", color=color)
    at = _x_ticks(sheet, low, high, across, x)
    panel.ticks("x", at, [_times(s) for s in at])
    panel.ticks("y", y_ticks, y_labels)
    sheet.text(
        LEFT + 18, (BOTTOM + TOP) / 2, f"change ({unit})", ha="center", va="center", rotation=90
    )
    sheet.text((left + right) / 2, 9, "all intervals × (1× = the data's)", ha="center")


def _draw_whiskers(panel: Panel, x: Array, interval: Array) -> None:
    """From the lower to the upper bound at each scale, with a white rim to stand out."""
    from matplotlib.collections import LineCollection

    if interval.shape[1] != len(x):
        return
    low, high = interval
    known = np.flatnonzero(np.isfinite(low) & (high > low))
    ends = [[(x[i], low[i]), (x[i], high[i])] for i in known]
    for color, width, order in (("white", 6, 4.5), (INK, 2.5, 4.6)):
        panel.add(LineCollection(ends, colors=color, linewidths=points(width), zorder=order))


def _palette() -> Colors:
    band = shades(BLUE, 2, "white")[0] * 0.16 + 0.84
    lines = [shades(color, 20) for color in (BLUE, VERMILION, GREY)]
    on_band = [shades(color, 12, band) for color in (BLUE, VERMILION, GREY, LIGHT, INK)]
    crossed = [
        shades(one, 6, other)
        for one, other in (
            (BLUE, GREY), (BLUE, LIGHT), (BLUE, VERMILION), (VERMILION, GREY), (INK, BLUE),
            (INK, VERMILION), (GREY, LIGHT), (VERMILION, LIGHT), (INK, LIGHT),
        )
    ]  # fmt: skip
    return np.concatenate([shades(INK, 32), *lines, shades(LIGHT, 6), *on_band, *crossed])


def _curves(result: TimeSensitivity, in_sd: bool) -> tuple[Array, Array]:
    """RMS and mean change at each scale."""
    rms = np.asarray(result.rms_change, np.float64)
    mean = np.asarray(result.mean_change, np.float64)
    if not in_sd:
        return rms, mean
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(mean == 0, 0.0, mean / result.target_sd)
    return np.asarray(result.sensitivities, np.float64), mean


def _times(scale: float) -> str:
    return f"{number(scale)}×"


def _x_ticks(
    sheet: Sheet, low: float, high: float, across: Callable[[float], float], scales: Array
) -> list[float]:
    """Ticks that don't crowd: 1 first, then the scales themselves, then round numbers between."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    decades = [float(f"1e{p}") for p in powers]
    others = [float(f"{d}e{p}") for p in powers for d in (2, 5)]
    sparse = [float(s) for s in scales] if len(scales) <= 7 else []
    ticks: list[float] = []
    for scale in [1.0, low, high, *sparse, *decades, *others]:
        if not low <= scale <= high or scale in ticks or len(_times(scale)) > 7:
            continue
        x, half = across(scale), sheet.width(_times(scale)) / 2
        if all(abs(across(t) - x) > half + sheet.width(_times(t)) / 2 + 14 for t in ticks):
            ticks.append(scale)
    return sorted(ticks)
