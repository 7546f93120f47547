"""Hidden states as trajectories in the plane of their principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..analysis.states import StateSpace
from ._sheet import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LEFT,
    LIGHT,
    LINE_HEIGHT,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH,
    Sheet,
    checked_limit,
    line_style,
    marker_style,
    nice_limit,
    number,
    points,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_state_space"]

Array = npt.NDArray[np.float64]

BOTTOM, TOP = 66, 388
MOST_TRAJECTORIES = 12
MOST_POINTS = 300  # Of a trajectory: more segments than this can't be told apart.
MOST_CLASSES = 6
# Neighbours differ in lightness as well as in shape.
END_MARKERS = (
    ("s", SKY), ("^", VERMILION), ("o", ORANGE), ("D", BLUE), ("v", GREEN), ("P", PURPLE),
)  # fmt: skip
OTHER_MARKER = ("o", LIGHT)


@dataclass(frozen=True)
class _Classes:
    """The class of each sequence, an index into ``names``; the first ``own`` are single classes."""

    index: npt.NDArray[np.int64]
    names: list[str]
    markers: list[tuple[str, str]]
    own: int


def plot_state_space(
    states: StateSpace | npt.ArrayLike,
    time_delta: npt.ArrayLike | None = None,
    *,
    classes: npt.ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    limit: float | None = None,
    step: int | None = None,
    mask: npt.ArrayLike | None = None,
) -> Figure:
    """Trajectories of hidden states, coloured by the time since each sequence's start.

    Small dots mark the starts, large markers the ends, by class. Of more than 12 sequences, the
    mean trajectory of each class is drawn with the ends of all sequences; without classes, 12
    sequences evenly chosen. States of one dimension are drawn against time.

    Args:
        states: A :class:`~ncp_callbacks.analysis.StateSpace`, or ``(B, T, 2)`` or ``(B, T, 1)``
            states; NaN is padding.
        time_delta: ``(B, T)`` or ``(B, T, 1)`` intervals; colours count steps where not given.
        classes: ``(B,)`` class of each sequence.
        class_names: Names of classes 0, 1, …; the classes themselves where not given.
        limit: Both axes span ±``limit``, in units of the state.
        step: Training step, for the title; a result whose axes were fitted at this step then says
            "new axes".
        mask: ``(B, T)``, true at real steps.

    Raises:
        ValueError: For shapes that don't fit, and a limit that is not above 0.
    """
    variance: Sequence[float] = ()
    if isinstance(states, StateSpace):
        scores = np.array(states.scores, np.float64)[..., :2]
        variance = [float(v) for v in states.axis_variance_ratio[:2]]
    else:
        scores = np.array(states, np.float64)
    if scores.ndim != 3 or scores.shape[-1] not in (1, 2) or 0 in scores.shape:
        raise ValueError(
            f"states have shape {scores.shape}; give (B, T, 2), sequences × steps × components: "
            "one sequence as states[None], hidden states as state_space(states)"
        )
    batch, steps, _ = scores.shape
    if mask is not None:
        scores[~_fitting(mask, "mask", batch, steps).astype(bool)] = np.nan
    real = np.asarray(np.isfinite(scores).all(axis=-1))
    scores[~real] = np.nan
    # Padding before a sequence is not its time.
    begun = np.maximum.accumulate(real, axis=1)
    if time_delta is None:
        elapsed = np.maximum(np.cumsum(begun, axis=1) - 1.0, 0.0)
    else:
        delta = _fitting(time_delta, "time_delta", batch, steps).astype(np.float64)
        elapsed = np.cumsum(np.where(begun & np.isfinite(delta), delta, 0.0), axis=1)
    latest = float(elapsed[real].max(initial=0.0)) or 1.0
    limit = checked_limit(limit, scores)
    groups = None if classes is None else _grouped(classes, class_names, batch)

    sheet = Sheet()
    new = isinstance(states, StateSpace) and states.refitted and step is not None
    sheet.title("hidden states", "new axes" if new else "", step=step)
    y_ticks = [-limit, 0.0, limit]
    y_labels = [number(v) for v in y_ticks]
    left = LEFT + 33 + max(map(sheet.width, y_labels)) + 12
    flat = scores.shape[-1] == 1
    side = left + (TOP - BOTTOM) + 28
    if flat:
        names = [] if groups is None else groups.names
        side = WIDTH - LEFT - 26 - max(map(sheet.width, [*names, "ends"])) if names else WIDTH
        side = max(side, 470)
    axes = sheet.axes(left, BOTTOM, side - 28 - left, TOP - BOTTOM)
    across = elapsed[..., None] if flat else scores[..., :1]
    path = np.concatenate([across, scores[..., -1:]], axis=2)
    path[~real] = np.nan
    lines = _draw(axes, path, real, elapsed, latest, groups)

    below = -limit if not flat else -0.03 * latest
    axes.set_xlim(below, limit if not flat else 1.03 * latest)
    axes.set_ylim(-limit, limit)
    for at in (-limit / 2, 0.0, limit / 2):
        color = GREY if at == 0 else LIGHT
        axes.axhline(at, zorder=1, **line_style(color, 2))
        if not flat:
            axes.axvline(at, zorder=1, **line_style(color, 2))
    time_name = "step" if time_delta is None else "time"
    sheet.ticks(axes, "y", y_ticks, y_labels)
    if flat:
        at_time = _time_ticks(latest)
        sheet.ticks(axes, "x", at_time, [number(t) for t in at_time])
    else:
        sheet.ticks(axes, "x", y_ticks, y_labels)
    labels = [f"PC{i + 1}" for i in range(2)]
    for i, ratio in enumerate(variance):
        labels[i] += f" ({ratio:.0%})" if np.isfinite(ratio) else ""
    middle = (left + side - 28) / 2
    sheet.text(middle, 9, time_name if flat else labels[0], ha="center")
    sheet.text(
        LEFT + 18, (BOTTOM + TOP) / 2, labels[0 if flat else 1], ha="center", va="center",
        rotation=90,
    )  # fmt: skip
    bottom_of_legend = TOP if groups is None else _legend(sheet, side, groups)
    if not flat:
        _colour_bar(sheet, lines, side, bottom_of_legend, latest, time_name)
    return sheet.figure


def _fitting(values: npt.ArrayLike, name: str, batch: int, steps: int) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.shape == (batch, steps, 1):
        array = array[..., 0]
    if array.shape != (batch, steps):
        raise ValueError(
            f"{name} has shape {array.shape}; give ({batch}, {steps}), one value for each sequence "
            "and step of the states"
        )
    return array


def _grouped(classes: npt.ArrayLike, class_names: Sequence[str] | None, batch: int) -> _Classes:
    array = np.asarray(classes)
    if array.shape == (batch, 1):
        array = array[:, 0]
    if array.shape != (batch,):
        raise ValueError(f"classes have shape {array.shape}; give ({batch},), one a sequence")
    values, index = np.unique(array, return_inverse=True)
    names = []
    for value in values.tolist():
        named = class_names is not None and isinstance(value, int) and 0 <= value < len(class_names)
        names.append(str(class_names[value]) if named and class_names else str(value))
    markers, own = list(END_MARKERS), len(names)
    if len(names) > MOST_CLASSES:
        names = [*names[: MOST_CLASSES - 1], f"{len(names) - MOST_CLASSES + 1} others"]
        index = np.minimum(index, MOST_CLASSES - 1)
        markers[MOST_CLASSES - 1] = OTHER_MARKER
        own = MOST_CLASSES - 1
    return _Classes(index.reshape(-1).astype(np.int64), names, markers[: len(names)], own)


def _draw(
    axes: Axes,
    path: Array,
    real: npt.NDArray[np.bool_],
    elapsed: Array,
    latest: float,
    groups: _Classes | None,
) -> Any:
    """Draw trajectories, starts and ends; returns the lines, all of one norm."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap, Normalize

    shown = np.flatnonzero(real.any(axis=1))
    ends = {int(b): path[b, np.flatnonzero(real[b])[-1]] for b in shown}
    many = len(shown) > MOST_TRAJECTORIES
    if many and groups is not None:
        drawn = [_mean(path, elapsed, real, np.flatnonzero(groups.index == g))
                 for g in range(groups.own)]  # fmt: skip
        who = list(range(groups.own))
    else:
        if many:
            pick = np.round(np.linspace(0, len(shown) - 1, MOST_TRAJECTORIES)).astype(int)
            shown = shown[pick]
        drawn = [(path[b], elapsed[b], real[b]) for b in shown]
        who = [0 if groups is None else int(groups.index[b]) for b in shown]

    pieces = [_segments(*line) for line in drawn]
    colors = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, 256)))
    lines = LineCollection(
        [segment for segments, _ in pieces for segment in segments],
        array=np.concatenate([times for _, times in pieces]) if pieces else np.zeros(0),
        cmap=colors,
        norm=Normalize(0.0, latest),
        linewidths=points(4 if many and groups is not None else 3),
        capstyle="round",
        linestyles="solid",
        zorder=3,
    )
    axes.add_collection(lines, autolim=False)

    if many:
        for g in range(1 if groups is None else len(groups.names)):
            marker, color = ("o", GREY) if groups is None else groups.markers[g]
            cloud = [p for b, p in ends.items() if groups is None or groups.index[b] == g]
            if cloud:
                axes.plot(
                    *np.transpose(cloud), linestyle="none", marker=marker, markersize=points(8),
                    markerfacecolor=color, markeredgecolor="none", markeredgewidth=0,
                    alpha=0.75 if len(cloud) <= 100 else 0.5, zorder=2,
                )  # fmt: skip
    for (line, _, known), g in zip(drawn, who, strict=True):
        at = np.flatnonzero(known)
        if not at.size:
            continue
        marker, color = ("o", "white") if groups is None else groups.markers[g]
        axes.plot(
            *line[at[0]], linestyle="none", marker="o", markersize=points(7),
            markerfacecolor=colors(0.0), markeredgecolor="none", markeredgewidth=0, zorder=4,
        )  # fmt: skip
        axes.plot(*line[at[-1]], zorder=5, **marker_style(marker, color))
    return lines


def _mean(
    path: Array, elapsed: Array, real: npt.NDArray[np.bool_], members: npt.NDArray[np.intp]
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Mean trajectory of sequences, as far as half of them go, so that it doesn't jump at ends."""
    known = real[members]
    count = known.sum(axis=0)
    n = np.maximum(count, 1)
    line = np.where(known[..., None], path[members], 0.0).sum(axis=0) / n[:, None]
    times = np.where(known, elapsed[members], 0.0).sum(axis=0) / n
    enough = count >= max(1.0, known.any(axis=1).sum() / 2)
    return np.where(enough[:, None], line, np.nan), times, enough


def _segments(line: Array, times: Array, known: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """``(N, 2, 2)`` segments of a trajectory, none across a gap, and the times of their ends."""
    at = np.flatnonzero(known)
    if len(at) > MOST_POINTS:
        at = at[np.round(np.linspace(0, len(at) - 1, MOST_POINTS)).astype(int)]
    so_far = np.cumsum(known)
    joined: npt.NDArray[np.bool_] = so_far[at[1:]] - so_far[at[:-1]] == at[1:] - at[:-1]
    segments = np.stack([line[at[:-1]], line[at[1:]]], axis=1)
    return segments[joined], times[at[1:]][joined]


def _time_ticks(latest: float) -> list[float]:
    every = nice_limit(latest / 4)
    return [every * i for i in range(int(latest / every + 1e-6) + 1)]


def _legend(sheet: Sheet, x: float, groups: _Classes) -> float:
    """Markers and names of the classes; returns the height below which there is room."""
    y = TOP - 14.0
    sheet.text(x, y, "ends", color=GREY)
    for name, (marker, color) in zip(groups.names, groups.markers, strict=True):
        y -= LINE_HEIGHT
        sheet.marker(x + 9, y + 8, marker, color)
        sheet.text(x + 26, y, sheet.shorten(name, WIDTH - LEFT - x - 26))
    return y - 27


def _colour_bar(
    sheet: Sheet, lines: Any, left: float, top: float, latest: float, name: str
) -> None:
    axes = sheet.axes(left, BOTTOM, 22, top - BOTTOM, spines=())
    bar = sheet.figure.colorbar(lines, cax=axes, ticks=[0.0, latest], drawedges=False)
    bar.outline.set_visible(False)
    axes.tick_params(which="both", left=False, right=True, labelleft=False, labelright=True)
    sheet.ticks(axes, "y", [0.0, latest], ["0", number(float(f"{latest:.3g}"))], length=0)
    sheet.text(left + 30, (BOTTOM + top) / 2, name, va="center_baseline", color=INK)
