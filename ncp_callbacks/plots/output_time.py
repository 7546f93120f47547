"""Influence of input steps on output steps, as a map, and how long it lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..analysis.output_time import OutputTime, binned
from ..analysis.results import FloatArray
from ._sheet import (
    ABOVE,
    BLUE,
    GREY,
    INK,
    LEFT,
    LIGHT,
    MISSING,
    SECOND_Y,
    VERMILION,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    checked_limit,
    integer_ticks,
    line_style,
    nice_limit,
    number,
    samples,
    shades,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_output_time"]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 62, 362
MAP = 290  # Pixels of the map's sides.
MOST_BARS = 60  # Of the first profile.
GAP = 88  # Between the two profiles, for the words below the upper one.
ENDS = ("#00224e", "#fee838")  # Colours of the map that stand for 0 and the limit.


def plot_output_time(
    result: OutputTime,
    *,
    limit: float | None = None,
    share: float | None = None,
    lag: float | None = None,
    step: int | None = None,
) -> Figure:
    """Which input step acts on which output step, and how influence falls with distance.

    Left: mean over sequences of the absolute attribution, from dark (0) to yellow (``limit``);
    time runs to the right and upwards, so that the past of an output is below the diagonal. The
    line is the mean lag before each output. What no sequence has is grey. Right: shares of
    influence against the number of steps and the time between input and output. Above 100 steps,
    rows of the map are sums of equally many steps.

    Args:
        result: What to draw.
        limit: Colours span 0 to ``limit``, in units of the target.
        share: The profiles span 0 to ``share``.
        lag: How many steps back the first profile goes; None: to where 99 % of influence lies.
        step: Training step, for the title.

    Raises:
        ValueError: For limits that are not above 0.
    """
    sheet = Sheet()
    draw_output_time(sheet, result, limit=limit, share=share, lag=lag, step=step)
    return sheet.figure()


def draw_output_time(
    sheet: Sheet,
    result: OutputTime,
    *,
    limit: float | None = None,
    share: float | None = None,
    lag: float | None = None,
    step: int | None = None,
) -> None:
    """:func:`plot_output_time` on a sheet."""
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

    sheet.palette = _palette
    future = f"{result.future_share:.0%} from the future" if result.future_share > 0 else ""
    sheet.title(f"influence 0–{number(limit)}", future, step=step)
    low, high = ENDS
    words = [("■", low), ("0", INK), ("■", high), (number(limit), INK), ("■", VERMILION)]
    words.append(("mean lag", INK))
    sheet.target(sheet.words(LEFT, SECOND_Y, words) + 12, result.target)

    ticks = integer_ticks(steps - 1, 4)
    left = LEFT + 33 + sheet.width(f"{ticks[-1]:,}") + 12
    whole = (-0.5, steps - 0.5)
    panel = sheet.panel(left, BOTTOM, MAP, TOP - BOTTOM, xlim=whole, ylim=whole)
    _draw_map(panel, result, influence, size, limit)
    panel.ticks("y", ticks, [f"{t:,}" for t in ticks])
    panel.ticks("x", ticks, [f"{t:,}" for t in ticks])
    name = "input at step" if size == 1 else f"input (sums of {size} steps)"
    sheet.text(LEFT + 18, (BOTTOM + TOP) / 2, name, ha="center", va="center", rotation=90)
    sheet.text(left + MAP / 2, 9, "output at step", ha="center")

    begin = left + MAP + 34 + sheet.width("100%")
    width = WIDTH - LEFT - 10 - begin
    split = len(profiles) == 2
    height = (TOP - BOTTOM - GAP) / 2 if split else TOP - BOTTOM
    at = np.arange(len(by_lag) + 1) * float(together) - 0.5
    # As many ticks as have room.
    lags = next(
        ticks
        for ticks in (integer_ticks(last_lag, most) for most in (3, 2, 1))
        if len(ticks) * (sheet.width(f"{ticks[-1]:,}") + 16) <= width or len(ticks) <= 2
    )
    _draw_profile(
        sheet, (begin, TOP - height, width, height), profiles[0], at, share,
        (-0.5, last_lag + 0.5), lags,
        "steps before" if together == 1 else f"before, by {together}",
    )  # fmt: skip
    if split and result.time_edges is not None:
        edges = np.asarray(result.time_edges, np.float64)
        last = float(edges[-1])
        every = nice_limit(last / 3)
        times = [every * i for i in range(int(last / every + 1e-6) + 1)]
        _draw_profile(
            sheet, (begin, BOTTOM, width, height), profiles[1], edges, share,
            (0.0, last), times, "time before",
        )  # fmt: skip


def needed_share(result: OutputTime, lag: float | None) -> float:
    """The highest bar of the first profile, for limits that are to cover it."""
    return float(np.nanmax(_by_lag(result.profile, _last_lag(result, lag))[0]))


def _last_lag(result: OutputTime, lag: float | None) -> int:
    known = result.reach if lag is None else lag
    most = len(result.influence) - 1
    return min(most, max(1, int(np.ceil(known)) if np.isfinite(known) else 1))


def _by_lag(profile: npt.ArrayLike, last_lag: int) -> tuple[Array, int]:
    """Sums of the shares of equally many lags, so that bars are wide enough, and how many.

    Of a thousand lags none has a share that could be seen.
    """
    values = np.asarray(profile, np.float64)
    size = -(-(last_lag + 1) // MOST_BARS)
    if size == 1:
        return values, 1
    return np.add.reduceat(np.nan_to_num(values), np.arange(0, len(values), size)), size


def _draw_map(panel: Panel, result: OutputTime, influence: Array, size: int, limit: float) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

    from ._cells import Cells

    steps = len(result.influence)
    known, every = np.asarray(result.steps), np.arange(steps)
    # Each column of the map is the output step nearest to it.
    nearest = np.abs(every[:, None] - known).argmin(axis=1)
    values = influence[:, nearest]
    values[:, (every < known[0]) | (every > known[-1])] = np.nan
    image = (Cells if steps <= MAP else AxesImage)(
        None,  # type: ignore[arg-type]  # It gets its axes when it is added to them.
        cmap=colormaps["cividis"].with_extremes(bad=MISSING),
        norm=Normalize(0.0, limit),
        interpolation="nearest",
        origin="upper",
        extent=(-0.5, steps - 0.5, -0.5, len(influence) * size - 0.5),
        filternorm=True,
        resample=True,
        zorder=ABOVE,
    )
    image.set_data(np.ma.masked_invalid(values[::-1]))
    panel.add(image)
    lag = np.asarray(result.lag_by_step, np.float64)
    panel.add(Line2D(known, known - lag, zorder=ABOVE + 0.2, **line_style(VERMILION, 3)))


def _draw_profile(
    sheet: Sheet,
    box: tuple[float, float, float, float],
    values: FloatArray,
    edges: FloatArray,
    limit: float,
    across: tuple[float, float],
    ticks: list[float] | list[int],
    name: str,
) -> None:
    from matplotlib.patches import StepPatch

    left, bottom, width, height = box
    panel = sheet.panel(left, bottom, width, height, xlim=across, ylim=(0.0, limit))
    panel.always("axhline", limit, zorder=1, **line_style(LIGHT, 2))
    panel.add(
        StepPatch(
            np.nan_to_num(values), edges, fill=True, facecolor=BLUE, edgecolor="none", linewidth=0,
            zorder=ABOVE,
        )
    )  # fmt: skip
    panel.ticks("y", [0.0, limit], ["0", f"{number(100 * limit)}%"])
    panel.ticks("x", ticks, [number(float(t)) for t in ticks])
    sheet.text(left + width / 2, bottom - 53, name, ha="center")


def _palette() -> Colors:
    lines = [shades(VERMILION, 8, color) for color in samples("cividis", 6)]
    others = [shades(INK, 32), shades(GREY, 12), shades(BLUE, 16), shades(VERMILION, 6)]
    few = [shades(MISSING, 2), shades(LIGHT, 2)]
    return np.concatenate([samples("cividis", 96), *others, *lines, *few])
