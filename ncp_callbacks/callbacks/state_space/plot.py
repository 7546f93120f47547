"""Draw hidden states as trajectories in the plane of their principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...plotting.limits import checked_limit, round_ticks
from ...plotting.page import Page, redrawable
from ...plotting.parts import left_margin
from ...plotting.style import (
    BLUE,
    BOTTOM,
    GREEN,
    GREY,
    LABEL_Y,
    LIGHT,
    LINE_HEIGHT,
    ORANGE,
    PURPLE,
    RIGHT,
    SKY,
    VERMILION,
    line,
    marker,
    points,
)
from ...plotting.text import number, short_names, text_width
from .analysis import StateSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_state_space"]

Array = npt.NDArray[np.float64]

TOP = 388
MAX_TRAJECTORIES = 12
MAX_POINTS = 300  # Of a trajectory: more segments are too short to distinguish.
MAX_CLASSES = 6
# Neighbours differ in lightness as well as in shape.
END_MARKERS = (
    ("s", SKY), ("^", VERMILION), ("o", ORANGE), ("D", BLUE), ("v", GREEN), ("P", PURPLE),
)  # fmt: skip
OTHER_MARKER = ("o", LIGHT)
BEGIN = "#440154"  # The first colour of viridis.
LATEST = 0.92  # Fraction of viridis used; the rest is too light on white.
TIME_COLORS = 64  # Colours of time: more are too similar to distinguish.


@dataclass(frozen=True)
class _Classes:
    """Hold the class of each sequence, as an index into ``names``.

    The first ``own`` names are single classes. A last one may stand for all other classes.
    """

    index: npt.NDArray[np.int64]
    names: list[str]
    markers: list[tuple[str, str]]
    own: int


@redrawable
def plot_state_space(
    page: Page,
    states: StateSpace | npt.ArrayLike,
    time_delta: npt.ArrayLike | None = None,
    *,
    classes: npt.ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    limit: float | None = None,
    step: int | None = None,
    mask: npt.ArrayLike | None = None,
    ax: Axes | None = None,
) -> None:
    """Draw trajectories of hidden states, coloured by the time since each sequence's start.

    Small dots mark the starts, large markers the ends, by class. With more than 12 sequences, the
    mean trajectory of each class is drawn, with the ends of all sequences; without classes, 12
    sequences are drawn, spread evenly. States of one dimension are drawn against time.

    Args:
        page: The page to draw on.
        states: A :class:`~ncp_callbacks.analysis.StateSpace`, or ``(B, T, 2)`` or ``(B, T, 1)``
            states; NaN is padding.
        time_delta: ``(B, T)`` or ``(B, T, 1)`` elapsed times; None for colours by time step.
        classes: ``(B,)``, class of each sequence.
        class_names: Names of classes 0, 1, …; None to write the classes themselves.
        limit: Both axes span ±``limit``, in units of the state.
        step: Training step, for the title. The picture of a result whose axes were fitted at this
            step is marked "new axes".
        mask: ``(B, T)``, true at real time steps.
        ax: Axes to draw on; None for a figure of its own.

    Raises:
        ValueError: If shapes don't fit, or the limit is not above 0.
    """
    variance: Sequence[float] = ()
    if isinstance(states, StateSpace):
        scores = np.array(states.scores, np.float64)[..., :2]
        variance = [float(v) for v in states.axis_variance_ratio[:2]]
    else:
        scores = np.array(states, np.float64)
    if scores.ndim != 3 or scores.shape[-1] not in (1, 2) or 0 in scores.shape:
        raise ValueError(
            f"states have shape {scores.shape}: pass (B, T, 2), sequences × time steps × "
            "components; pass one sequence as states[None], hidden states as state_space(states)"
        )
    batch, steps, _ = scores.shape
    if mask is not None:
        scores[~_fitting(mask, "mask", batch, steps).astype(bool)] = np.nan
    real = np.asarray(np.isfinite(scores).all(axis=-1))
    scores[~real] = np.nan
    # Padding before a sequence takes no time.
    begun = np.maximum.accumulate(real, axis=1)
    if time_delta is None:
        elapsed = np.maximum(np.cumsum(begun, axis=1) - 1.0, 0.0)
    else:
        delta = _fitting(time_delta, "time_delta", batch, steps).astype(np.float64)
        elapsed = np.cumsum(np.where(begun & np.isfinite(delta), delta, 0.0), axis=1)
    latest = float(elapsed[real].max(initial=0.0)) or 1.0
    limit = checked_limit(limit, scores)
    groups = None if classes is None else _grouped(classes, class_names, batch)

    known = [v for v in variance if np.isfinite(v)]
    shown = f": {sum(known):.0%} of the variance in {len(known)} PC{'s'[: len(known) - 1]}"
    page.title(f"hidden states{shown if known else ''}", step)
    if isinstance(states, StateSpace) and states.refitted and step is not None:
        page.text(RIGHT, LABEL_Y, "new axes", ha="right", color=GREY)
    yticks = [-limit, 0.0, limit]
    labels = [number(y) for y in yticks]
    left = left_margin(labels, True)
    time_name = "time step" if time_delta is None else "time"
    names = [f"PC{i + 1}" for i in range(2)]
    for i, ratio in enumerate(variance):
        names[i] += f" ({ratio:.0%})" if np.isfinite(ratio) else ""
    flat = scores.shape[-1] == 1
    lines = [(at, line(GREY if at == 0 else LIGHT, 2)) for at in (-limit / 2, 0.0, limit / 2)]
    common: dict[str, Any] = {
        "ylim": (-limit, limit), "yticks": yticks, "yticklabels": labels,
        "ylabel": names[0 if flat else 1], "hlines": lines, "vlines": [] if flat else lines,
    }  # fmt: skip
    if flat:
        side = 640.0 if groups is None else max(
            RIGHT - 26 - max(map(text_width, [*groups.names, "ends"])), 470.0
        )  # fmt: skip
        xticks = round_ticks(latest, 4)
        axes = page.axes(
            left, BOTTOM + 4, side - 28, TOP, xlim=(-0.03 * latest, 1.03 * latest), xticks=xticks,
            xticklabels=[number(t) for t in xticks], xlabel=time_name, **common,
        )  # fmt: skip
        across = elapsed[..., None]
    else:
        side = left + (TOP - BOTTOM - 4) + 28
        axes = page.axes(
            left, BOTTOM + 4, side - 28, TOP, xlim=(-limit, limit), xticks=yticks,
            xticklabels=labels, xlabel=names[0], **common,
        )  # fmt: skip
        across = scores[..., :1]
    path = np.concatenate([across, scores[..., -1:]], axis=2)
    path[~real] = np.nan
    _draw(axes, path, real, elapsed, latest, groups)
    bottom_of_legend = float(TOP) if groups is None else _legend(page, side, groups)
    if not flat:
        page.axes(
            side, BOTTOM + 4, side + 22, bottom_of_legend, spines=(), ylim=(0, latest),
            gradient=("viridis", LATEST),
        )  # fmt: skip
        for y, text in ((BOTTOM + 4, "0"), (bottom_of_legend, number(latest, 3))):
            page.text(side + 27, y, text, va="center_baseline")
        middle = (BOTTOM + 4 + bottom_of_legend) / 2
        page.text(side + 30, middle, time_name.split()[-1], va="center_baseline")


def _fitting(values: npt.ArrayLike, name: str, batch: int, steps: int) -> npt.NDArray[Any]:
    """Return values as ``(B, T)``.

    Raises:
        ValueError: If they have another shape.
    """
    array = np.asarray(values)
    if array.shape == (batch, steps, 1):
        array = array[..., 0]
    if array.shape != (batch, steps):
        raise ValueError(
            f"{name} has shape {array.shape}: pass ({batch}, {steps}), one value for each sequence "
            "and time step of the states"
        )
    return array


def _grouped(classes: npt.ArrayLike, class_names: Sequence[str] | None, batch: int) -> _Classes:
    """Return the classes of sequences with names and markers, the last ones joined as others."""
    array = np.asarray(classes)
    if array.shape == (batch, 1):
        array = array[:, 0]
    if array.shape != (batch,):
        raise ValueError(
            f"classes have shape {array.shape}: pass ({batch},), one for each sequence"
        )
    values, index = np.unique(array, return_inverse=True)
    names = []
    for value in values.tolist():
        named = class_names is not None and isinstance(value, int) and 0 <= value < len(class_names)
        names.append(str(class_names[value]) if named and class_names else str(value))
    markers, own = list(END_MARKERS), len(names)
    if len(names) > MAX_CLASSES:
        names = [*names[: MAX_CLASSES - 1], f"{len(names) - MAX_CLASSES + 1} others"]
        index = np.minimum(index, MAX_CLASSES - 1)
        markers[MAX_CLASSES - 1] = OTHER_MARKER
        own = MAX_CLASSES - 1
    return _Classes(index.reshape(-1).astype(np.int64), names, markers[: len(names)], own)


def _draw(
    axes: Any,
    path: Array,
    real: npt.NDArray[np.bool_],
    elapsed: Array,
    latest: float,
    groups: _Classes | None,
) -> None:
    """Draw trajectories, starts and ends."""
    shown = np.flatnonzero(real.any(axis=1))
    ends = {int(b): path[b, np.flatnonzero(real[b])[-1]] for b in shown}
    many = len(shown) > MAX_TRAJECTORIES
    if many and groups is not None:
        drawn = [_mean(path, elapsed, real, np.flatnonzero(groups.index == g))
                 for g in range(groups.own)]  # fmt: skip
        who = list(range(groups.own))
    else:
        if many:
            pick = np.round(np.linspace(0, len(shown) - 1, MAX_TRAJECTORIES)).astype(int)
            shown = shown[pick]
        drawn = [(path[b], elapsed[b], real[b]) for b in shown]
        who = [0 if groups is None else int(groups.index[b]) for b in shown]
    _lines(axes, [_segments(*each) for each in drawn], latest, 4 if many and groups else 3)
    if many:
        for g in range(1 if groups is None else len(groups.names)):
            shape, color = ("o", GREY) if groups is None else groups.markers[g]
            cloud = [p for b, p in ends.items() if groups is None or groups.index[b] == g]
            if cloud:
                style = marker(shape, color, pixels=8, edge=0)
                alpha = 0.75 if len(cloud) <= 100 else 0.5
                axes.plot(*np.transpose(cloud), zorder=2, alpha=alpha, **style)
    begins: list[Array] = []
    stops: dict[int, list[Array]] = {}
    for (places, _, known), g in zip(drawn, who, strict=True):
        at = np.flatnonzero(known)
        if at.size:
            begins.append(places[at[0]])
            stops.setdefault(g, []).append(places[at[-1]])
    if begins:
        axes.plot(*np.transpose(begins), zorder=4, **marker("o", BEGIN, pixels=7, edge=0))
    for g in sorted(stops):
        shape, color = ("o", "white") if groups is None else groups.markers[g]
        axes.plot(*np.transpose(stops[g]), zorder=5, **marker(shape, color))


def _lines(axes: Any, pieces: list[tuple[Array, Array]], latest: float, width: float) -> None:
    """Draw segments. Those with one colour are one path, because many paths are slow."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap, Normalize

    segments = np.concatenate([np.empty((0, 2, 2)), *(s for s, _ in pieces)])
    times = np.concatenate([np.empty(0), *(t for _, t in pieces)])
    color = np.minimum(times / latest * TIME_COLORS, TIME_COLORS - 1).astype(np.int64)
    order = np.argsort(color, kind="stable")
    used, first = np.unique(color[order], return_index=True)
    # NaN between segments separates them.
    separated = np.concatenate([segments, np.full((len(segments), 1, 2), np.nan)], axis=1)[order]
    lines = LineCollection(
        [group.reshape(-1, 2) for group in np.split(separated, first[1:])] if len(used) else [],
        array=(used + 0.5) / TIME_COLORS * latest,
        cmap=ListedColormap(colormaps["viridis"](np.linspace(0, LATEST, TIME_COLORS))),
        norm=Normalize(0.0, latest), linewidths=points(width), capstyle="round",
        linestyles="solid", zorder=3,
    )  # fmt: skip
    axes.add_collection(lines, autolim=False)


def _mean(
    path: Array, elapsed: Array, real: npt.NDArray[np.bool_], members: npt.NDArray[np.intp]
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Return the mean trajectory of sequences, its times, and where at least half of them are.

    With fewer sequences it would jump wherever one ends.
    """
    known = real[members]
    count = known.sum(axis=0)
    n = np.maximum(count, 1)
    line = np.where(known[..., None], path[members], 0.0).sum(axis=0) / n[:, None]
    times = np.where(known, elapsed[members], 0.0).sum(axis=0) / n
    enough = count >= max(1.0, known.any(axis=1).sum() / 2)
    return np.where(enough[:, None], line, np.nan), times, enough


def _segments(line: Array, times: Array, known: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return the segments ``(N, 2, 2)`` of a trajectory and their end times, skipping gaps."""
    at = np.flatnonzero(known)
    if len(at) > MAX_POINTS:
        at = at[np.round(np.linspace(0, len(at) - 1, MAX_POINTS)).astype(int)]
    so_far = np.cumsum(known)
    joined: npt.NDArray[np.bool_] = so_far[at[1:]] - so_far[at[:-1]] == at[1:] - at[:-1]
    segments = np.stack([line[at[:-1]], line[at[1:]]], axis=1)
    return segments[joined], times[at[1:]][joined]


def _legend(page: Page, x: float, groups: _Classes) -> float:
    """Write markers and names of the classes, and return the height of the free space below."""
    y = TOP - 14.0
    page.text(x, y, "ends", color=GREY)
    for name, style in zip(short_names(groups.names, RIGHT - x - 26), groups.markers, strict=True):
        y -= LINE_HEIGHT
        page.markers(x + 9, y + 8, marker(*style))
        page.text(x + 26, y, name)
    return y - 27
