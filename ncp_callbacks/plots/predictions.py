"""One prediction on one sheet: what it is owed to, the state on the way, its reaction to time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..analysis.results import FloatArray
from ._sheet import (
    ABOVE,
    BLUE,
    GREEN,
    GREY,
    INK,
    LEFT,
    LIGHT,
    LINE_HEIGHT,
    MISSING,
    SECOND_Y,
    VERMILION,
    WIDTH,
    Colors,
    Panel,
    Sheet,
    checked_limit,
    fitting,
    integer_ticks,
    line_style,
    number,
    points,
    samples,
    shades,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Prediction", "plot_prediction"]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 62, 362
STATES = 112  # Pixels of the height of the states.
GAP = 16  # Between the map and the states.
MARGIN = 20  # To the right of the axes: half of a label.
CURVE = 124  # Pixels of the width of the curve.
NAMES = 132  # Most pixels for names.
ALL_LABELS, TOP_LABELS = 6, 3
COLORS = (BLUE, VERMILION, GREEN)
ENDS = ("#5c348e", "#c96d0d")  # Colours of the map that stand for its lower and upper ends.


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is known of one sequence.

    Attributes:
        sample: Its index in the held-out batch.
        value: Its target.
        target: The target's name.
        steps: ``(R,)``, its real steps.
        attribution: ``(R, F)``, what of the target is owed to each input, with sign.
        feature_names: ``F`` names.
        states: ``(R, k)``, coordinates of its state along principal axes; None without cells.
        scales: ``(S,)``, factors that all intervals were multiplied by; None without intervals.
        changes: ``(S,)``, by how much that changes the target.
        label: Its class; "" where it is not known.
    """

    sample: int
    value: float
    target: str
    steps: npt.NDArray[np.intp]
    attribution: FloatArray
    feature_names: tuple[str, ...]
    states: FloatArray | None = None
    scales: FloatArray | None = None
    changes: FloatArray | None = None
    label: str = ""


def plot_prediction(
    prediction: Prediction,
    *,
    limit: float | None = None,
    state_limit: float | None = None,
    change_limit: float | None = None,
    step: int | None = None,
) -> Figure:
    """One sequence: attribution step by feature, the state over time, the target over time scales.

    In the map orange raises the target and purple lowers it. Below it, over the same steps, are the
    coordinates of the state along the first principal axes of all held-out states. Right: the
    change of the target when all intervals are multiplied by a factor. What is not known is left
    out, and padding is not drawn.

    Args:
        prediction: What to draw.
        limit: Colours span ±``limit``, in units of the target.
        state_limit: The states' axis spans ±``state_limit``.
        change_limit: The curve's axis spans ±``change_limit``, in units of the target.
        step: Training step, for the title.

    Raises:
        ValueError: For limits that are not above 0.
    """
    sheet = Sheet()
    draw_prediction(
        sheet,
        prediction,
        limit=limit,
        state_limit=state_limit,
        change_limit=change_limit,
        step=step,
    )
    return sheet.figure()


def draw_prediction(
    sheet: Sheet,
    prediction: Prediction,
    *,
    limit: float | None = None,
    state_limit: float | None = None,
    change_limit: float | None = None,
    step: int | None = None,
) -> None:
    """:func:`plot_prediction` on a sheet."""
    values = np.asarray(prediction.attribution, np.float64)
    steps = np.asarray(prediction.steps)
    limit = checked_limit(limit, values)
    value = number(float(f"{prediction.value:.3g}"))
    label = ""
    if prediction.label:
        # The value comes after it, and matters more.
        others = f"sequence {prediction.sample} (): {value} · step {step or 0:,}0"
        label = sheet.shorten(prediction.label, WIDTH - 2 * LEFT - sheet.width(others))
        label = f" ({label})"

    sheet.palette = _palette
    sheet.title(f"sequence {prediction.sample}{label}: {value}", step=step)
    low, high = ENDS
    words = [("■", high), ("raises", INK), ("■", low), ("lowers", INK)]
    words.append((f"±{number(limit)}", INK))
    end = sheet.words(LEFT, SECOND_Y, words) + 12
    with_states = prediction.states is not None
    with_curve = prediction.scales is not None and prediction.changes is not None
    room = WIDTH - LEFT - end - (sheet.width("change") + 12 if with_curve else 0)
    sheet.text(end, SECOND_Y, sheet.shorten(prediction.target, room), color=GREY)

    bottom = BOTTOM + STATES + GAP if with_states else BOTTOM
    names = _draw_names(sheet, prediction.feature_names, values, bottom)
    left = names + 8
    state_labels: list[str] = []
    if with_states:
        assert prediction.states is not None
        states = np.asarray(prediction.states, np.float64)
        state_limit = checked_limit(state_limit, states)
        state_labels = [number(v) for v in (-state_limit, 0.0, state_limit)]
        left = max(left, LEFT + 8 + max(map(sheet.width, state_labels)) + 12)
    right: float = WIDTH - MARGIN
    if with_curve:
        assert prediction.changes is not None
        change_limit = checked_limit(change_limit, np.asarray(prediction.changes, np.float64))
        margin = max(sheet.width(number(v)) for v in (-change_limit, change_limit)) + 12
        right -= CURVE + margin + 18
    if with_states:
        right -= sheet.width("PC1") + 8
    across = (float(steps[0]) - 0.5, float(steps[-1]) + 0.5)
    width = right - left
    panel = sheet.panel(
        left, bottom, width, TOP - bottom, xlim=across, ylim=(values.shape[1] - 0.5, -0.5)
    )
    panel.always("tick_params", left=False)
    _draw_map(panel, steps, values, limit)
    last, first = int(steps[-1]), int(steps[0])
    ticks = [t for t in integer_ticks(last, 4) if t >= first] or [first]
    ticks = fitting(sheet, ticks, width, across[1] - across[0])
    labels = [f"{t:,}" for t in ticks]
    if with_states:
        assert state_limit is not None
        panel.ticks("x", ticks)
        below = sheet.panel(
            left, BOTTOM, width, STATES, xlim=across, ylim=(-state_limit, state_limit)
        )
        _draw_states(sheet, below, steps, states, state_limit, right)
        below.ticks("y", [-state_limit, 0.0, state_limit], state_labels)
        below.ticks("x", ticks, labels)
    else:
        panel.ticks("x", ticks, labels)
    sheet.text(left + width / 2, 9, "time step", ha="center")
    if with_curve:
        assert change_limit is not None
        _draw_curve(sheet, prediction, change_limit)


def _draw_names(sheet: Sheet, names: Sequence[str], values: Array, bottom: float) -> float:
    """Names of the features left of the map; returns where they end."""
    pitch = (TOP - bottom) / len(names)
    rows = [TOP - (i + 0.5) * pitch for i in range(len(names))]
    short = [sheet.shorten(name, NAMES) for name in names]
    end = LEFT + max(map(sheet.width, short))
    if len(names) <= ALL_LABELS:
        for text, y in zip(short, rows, strict=True):
            sheet.text(end, y, text, ha="right", va="center_baseline")
        return end
    strength = np.abs(np.nan_to_num(values)).sum(axis=0)
    shown = sorted(int(i) for i in np.argsort(-strength, kind="stable")[:TOP_LABELS])
    at = spread([rows[i] for i in shown], LINE_HEIGHT, bottom + 9, TOP - 9)
    for i, y in zip(shown, at, strict=True):
        sheet.text(end, y, short[i], ha="right", va="center_baseline")
        sheet.line([end + 4, end + 16, end + 21], [y, rows[i], rows[i]], GREY)
    return end + 14


def _draw_map(panel: Panel, steps: npt.NDArray[np.intp], values: Array, limit: float) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.image import AxesImage

    from ._cells import Cells

    whole = np.full((int(steps[-1] - steps[0]) + 1, values.shape[1]), np.nan)
    whole[steps - steps[0]] = values
    _, _, width, height = panel.box
    few = len(whole) <= width and values.shape[1] <= height
    if not few:
        # What is averaged in one direction would be blurred in the other.
        whole = np.repeat(whole, max(1, int(width // len(whole))), axis=0)
        repeats = max(1, int(height // values.shape[1]))
        whole = np.repeat(whole, repeats, axis=1)
    image = (Cells if few else AxesImage)(
        None,  # type: ignore[arg-type]  # It gets its axes when it is added to them.
        cmap=colormaps["PuOr_r"].with_extremes(bad=MISSING),
        norm=Normalize(-limit, limit),
        interpolation="nearest" if few else "antialiased",
        origin="upper",
        extent=(steps[0] - 0.5, steps[-1] + 0.5, values.shape[1] - 0.5, -0.5),
        filternorm=True,
        resample=True,
        zorder=ABOVE,
    )
    image.set_data(np.ma.masked_invalid(whole.T))
    panel.add(image)


def _draw_states(
    sheet: Sheet,
    panel: Panel,
    steps: npt.NDArray[np.intp],
    states: Array,
    limit: float,
    right: float,
) -> None:
    from matplotlib.lines import Line2D

    panel.always("axhline", 0.0, zorder=1, **line_style(GREY, 2))
    whole = np.full((int(steps[-1] - steps[0]) + 1, states.shape[1]), np.nan)
    whole[steps - steps[0]] = states
    at = np.arange(steps[0], steps[-1] + 1)
    ends = []
    for i in reversed(range(min(len(COLORS), states.shape[1]))):
        style = line_style(COLORS[i], 3)
        if len(at) == 1:
            style.update(marker="o", markersize=points(9), markeredgecolor=COLORS[i])
        panel.add(Line2D(at, whole[:, i], zorder=ABOVE + 1 - i / 10, **style))
        ends.append((f"PC{i + 1}", COLORS[i], float(whole[-1, i])))
    wanted = [BOTTOM + STATES * (end / limit + 1) / 2 if np.isfinite(end) else BOTTOM
              for _, _, end in ends]  # fmt: skip
    places = spread(wanted, LINE_HEIGHT - 2, BOTTOM + 4, BOTTOM + STATES - 4)
    for (name, color, _), y in zip(ends, places, strict=True):
        sheet.text(right + 8, y, name, va="center_baseline", color=color)


def _draw_curve(sheet: Sheet, prediction: Prediction, limit: float) -> None:
    from matplotlib.lines import Line2D

    scales = np.asarray(prediction.scales, np.float64)
    low, high = min(1.0, *scales), max(1.0, *scales)
    low, high = (low, high) if low < high else (0.5, 2.0)
    right = WIDTH - MARGIN
    margin = (high / low) ** 0.04
    panel = sheet.panel(
        right - CURVE, BOTTOM, CURVE, TOP - BOTTOM,
        xlim=(float(low / margin), float(high * margin)), ylim=(-limit, limit), xscale="log",
    )  # fmt: skip
    for y in (-limit, 0.0, limit):
        panel.always("axhline", y, zorder=1, **line_style(GREY if y == 0 else LIGHT, 2))
    panel.always("axvline", 1.0, zorder=1.5, **{**line_style(INK, 2), "linestyle": (0, (1, 2))})
    panel.add(
        Line2D(
            scales, np.asarray(prediction.changes, np.float64), zorder=ABOVE + 1,
            **{**line_style(INK, 3), "marker": "o", "markersize": points(8)},
            markerfacecolor=INK, markeredgecolor=INK, markeredgewidth=0,
        )
    )  # fmt: skip
    ticks: list[tuple[float, str, float]] = []
    for scale in (1.0, low, high):
        label = f"{number(float(f'{scale:.2g}'))}×"
        share = np.log(scale * margin / low) / np.log(high / low * margin**2)
        x, half = right - CURVE * (1 - float(share)), sheet.width(label) / 2
        if x + half < WIDTH and all(
            abs(x - at) > half + sheet.width(other) / 2 + 6 for _, other, at in ticks
        ):
            ticks.append((float(scale), label, x))
    ticks.sort()
    panel.ticks("x", [t[0] for t in ticks], [t[1] for t in ticks])
    panel.ticks("y", [-limit, 0.0, limit], [number(v) for v in (-limit, 0.0, limit)])
    sheet.text(WIDTH - LEFT, SECOND_Y, "change", ha="right")
    sheet.text(right - CURVE / 2, 9, "intervals", ha="center")


def _palette() -> Colors:
    lines = [shades(color, 16) for color in COLORS]
    crossed = [shades(color, 6, GREY) for color in COLORS]
    others = [shades(INK, 32), shades(GREY, 12), shades(LIGHT, 4), shades(MISSING, 2)]
    crossed.append(shades(INK, 6, LIGHT))
    return np.concatenate([samples("PuOr_r", 120), *others, *lines, *crossed])
