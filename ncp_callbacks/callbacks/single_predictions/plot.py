"""Draw one prediction: its attribution, the state over time, the reaction to elapsed time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit
from ...plotting.page import Page, redrawable
from ...plotting.parts import (
    color_bar,
    end_labels,
    heat_map,
    left_margin,
    name_strongest,
    time_steps,
)
from ...plotting.style import (
    BLUE,
    BOTTOM,
    DOTTED,
    GREEN,
    GREY,
    INK,
    LEFT,
    RIGHT,
    SECOND_Y,
    SIGNED,
    TOP,
    VERMILION,
    WIDTH,
    line,
)
from ...plotting.text import number, short_names, shorten, text_width
from ...results import FloatArray
from ..time_sensitivity.plot import factor_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Prediction", "plot_prediction"]

Array = npt.NDArray[np.float64]

STATES = 112  # Pixels of the height of the states.
GAP = 16  # Between the map and the states.
MARGIN = 20  # To the right of the axes: half of a label.
CURVE = 124  # Pixels of the width of the curve.
NAMES = 132  # Pixels for names, at most.
ALL_LABELS, TOP_LABELS = 6, 3
COLORS = (BLUE, VERMILION, GREEN)


@dataclass(frozen=True, eq=False)
class Prediction:
    """One prediction of the model, in detail.

    Attributes:
        sequence: Index of the sequence in the held-out batch.
        value: The target's value.
        target: The target's name.
        time_steps: ``(R,)``, the sequence's real time steps.
        attribution: ``(R, F)``, the signed attribution of the target to each input.
        feature_names: ``F`` names.
        states: ``(R, k)``, coordinates of the state along principal axes; None without cells.
        scales: ``(S,)``, factors that all elapsed times were multiplied by; None without them.
        changes: ``(S,)``, changes of the target under these factors.
        label: Name of the sequence's class; "" if it is not known.
    """

    sequence: int
    value: float
    target: str
    time_steps: npt.NDArray[np.intp]
    attribution: FloatArray
    feature_names: tuple[str, ...]
    states: FloatArray | None = None
    scales: FloatArray | None = None
    changes: FloatArray | None = None
    label: str = ""


@redrawable
def plot_prediction(
    page: Page,
    prediction: Prediction,
    *,
    limit: float | None = None,
    state_limit: float | None = None,
    change_limit: float | None = None,
    step: int | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw one sequence: its attribution, its state over time, and its reaction to elapsed time.

    In the map orange raises the target and purple lowers it. Below it, over the same time steps,
    are the coordinates of the state along the first principal axes of all held-out states. Right:
    the change of the target when all elapsed times (Δt) are multiplied by a factor. Padding and
    unknown parts are not drawn.

    Args:
        page: The page to draw on; :func:`~.page.redrawable` passes it.
        prediction: The prediction.
        limit: Colours span ±``limit``, in units of the target.
        state_limit: The states' axis spans ±``state_limit``.
        change_limit: The curve's axis spans ±``change_limit``, in units of the target.
        step: Training step, for the title.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: For limits that are not above 0.
    """
    values = np.asarray(prediction.attribution, np.float64)
    steps = np.asarray(prediction.time_steps)
    limit = checked_limit(limit, values)
    value, label = number(prediction.value, 3), ""
    if prediction.label:
        # The value comes after the label, and matters more, so the label is shortened.
        others = f"sequence {prediction.sequence} (): {value} · step {step or 0:,}0"
        label = f" ({shorten(prediction.label, RIGHT - LEFT - text_width(others))})"
    page.title(f"sequence {prediction.sequence}{label}: {value}", step)

    with_states = prediction.states is not None
    bottom = BOTTOM + STATES + GAP if with_states else BOTTOM
    names = short_names(prediction.feature_names, NAMES)
    strength = np.abs(np.nan_to_num(values)).sum(axis=0)
    end = LEFT + max(map(text_width, names))
    name_strongest(page, names, strength, end, (bottom, TOP), all_labels=ALL_LABELS, few=TOP_LABELS)
    left, right = end + (22 if len(names) > ALL_LABELS else 8), float(WIDTH - MARGIN)
    if with_states:
        states = np.asarray(prediction.states, np.float64)
        state_limit = checked_limit(state_limit, states)
        yticks = [-state_limit, 0.0, state_limit]
        labels = [number(y) for y in yticks]
        left = max(left, left_margin(labels) + 8)
        right -= text_width("PC1") + 8
    with_curve = prediction.scales is not None and prediction.changes is not None
    if with_curve:
        change_limit = checked_limit(change_limit, np.asarray(prediction.changes))
        right -= CURVE + max(text_width(number(v)) for v in (-change_limit, change_limit)) + 30
    first, last = int(steps[0]), int(steps[-1])
    across = (first - 0.5, last + 0.5)
    ticks = time_steps(last, right - left, 4, first)
    ticks_above = {"xticks": ticks["xticks"]} if with_states else ticks
    axes = page.axes(
        left, bottom, right, TOP, xlim=across, ylim=(values.shape[1] - 0.5, -0.5), ticks="x",
        **ticks_above,
    )  # fmt: skip
    whole = np.full((last - first + 1, values.shape[1]), np.nan)
    whole[steps - first] = values
    extent = (*across, values.shape[1] - 0.5, -0.5)
    heat_map(axes, whole.T, -limit, limit, cmap=SIGNED, extent=extent)
    if with_states:
        below = page.axes(
            left, BOTTOM, right, BOTTOM + STATES, xlim=across, ylim=(yticks[0], yticks[-1]),
            yticks=yticks, yticklabels=labels, hlines=[(0.0, line(GREY, 2))], **ticks,
        )  # fmt: skip
        path = np.full((last - first + 1, states.shape[1]), np.nan)
        path[steps - first] = states
        shape = "o" if first == last else ""
        for i in reversed(range(min(len(COLORS), states.shape[1]))):
            below.plot(
                np.arange(first, last + 1), path[:, i], zorder=3 - i / 10,
                **line(COLORS[i], 3, marker=shape),
            )  # fmt: skip
        ends = [(f"PC{i + 1}", color, np.nan_to_num(path[-1, i], nan=-np.inf))
                for i, color in enumerate(COLORS[: states.shape[1]])]  # fmt: skip
        ends = [(name, color, max(float(y), yticks[0])) for name, color, y in ends]
        end_labels(page, right + 8, below, ends[::-1])
    page.text((left + right) / 2, 9, "time step", ha="center")
    if with_curve:
        assert change_limit is not None
        _draw_curve(page, prediction, change_limit)
    end = color_bar(page, number(-limit), f"+{number(limit)}", cmap=SIGNED, note=None)
    room = RIGHT - end - 14 - (text_width("change") + 12 if with_curve else 0)
    page.text(end + 14, SECOND_Y, shorten(prediction.target, room), color=GREY)


def _draw_curve(page: Page, prediction: Prediction, limit: float) -> None:
    scales = np.asarray(prediction.scales, np.float64)
    low, high = min(1.0, *scales), max(1.0, *scales)
    low, high = (low, high) if low < high else (0.5, 2.0)
    right, margin = WIDTH - MARGIN, (high / low) ** 0.04
    xlim, yticks = (float(low / margin), float(high * margin)), [-limit, 0.0, limit]
    ends = (low, high)
    span = np.log(xlim[1] / xlim[0]) / CURVE
    # Labels must not leave the page.
    xticks = [
        t
        for t in factor_ticks(xlim, CURVE, ends)
        if t in (1.0, *ends)
        and text_width(f"{number(t, 2)}×") / 2 < np.log(xlim[1] / t) / span + MARGIN
    ]
    axes = page.axes(
        right - CURVE, BOTTOM, right, TOP, xlim=xlim, ylim=(-limit, limit), xscale="log",
        xticks=xticks, xticklabels=[f"{number(t, 2)}×" for t in xticks], yticks=yticks,
        yticklabels=[number(y) for y in yticks], grid="y", xlabel="Δt",
        hlines=[(0.0, line(GREY, 2))], vlines=[(1.0, line(INK, 2, DOTTED))],
    )  # fmt: skip
    axes.plot(scales, np.asarray(prediction.changes, np.float64), **line(INK, 3, marker="o"))
    page.text(RIGHT, SECOND_Y, "change", ha="right")
