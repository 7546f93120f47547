"""Hidden states as trajectories in the plane of their principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..analysis.states import StateSpace
from ._sheet import (
    ABOVE,
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
    Colors,
    Panel,
    Sheet,
    checked_limit,
    line_style,
    marker_style,
    nice_limit,
    number,
    points,
    samples,
    shades,
)

if TYPE_CHECKING:
    from matplotlib.collections import LineCollection
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
BEGIN = "#440154"  # Its first colour.
LATEST = 0.92  # How far the colours of time go; the rest of viridis is too light on white.
BANDS = 64  # Of time: more can't be told apart.
GRADIENT = tuple((LATEST * i / (BANDS - 1),) for i in range(BANDS))


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
    sheet = Sheet()
    draw_state_space(
        sheet, states, time_delta, classes=classes, class_names=class_names, limit=limit,
        step=step, mask=mask,
    )  # fmt: skip
    return sheet.figure()


def draw_state_space(
    sheet: Sheet,
    states: StateSpace | npt.ArrayLike,
    time_delta: npt.ArrayLike | None = None,
    *,
    classes: npt.ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    limit: float | None = None,
    step: int | None = None,
    mask: npt.ArrayLike | None = None,
) -> None:
    """:func:`plot_state_space` on a sheet."""
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

    sheet.palette = _palette
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
    panel = sheet.panel(
        left, BOTTOM, side - 28 - left, TOP - BOTTOM, ylim=(-limit, limit),
        xlim=(-0.03 * latest, 1.03 * latest) if flat else (-limit, limit),
    )  # fmt: skip
    across = elapsed[..., None] if flat else scores[..., :1]
    path = np.concatenate([across, scores[..., -1:]], axis=2)
    path[~real] = np.nan
    _draw(panel, path, real, elapsed, latest, groups)
    for at in (-limit / 2, 0.0, limit / 2):
        color = GREY if at == 0 else LIGHT
        panel.always("axhline", at, zorder=1, **line_style(color, 2))
        if not flat:
            panel.always("axvline", at, zorder=1, **line_style(color, 2))
    time_name = "step" if time_delta is None else "time"
    panel.ticks("y", y_ticks, y_labels)
    if flat:
        at_time = _time_ticks(latest)
        panel.ticks("x", at_time, [number(t) for t in at_time])
    else:
        panel.ticks("x", y_ticks, y_labels)
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
        _colour_bar(sheet, side, bottom_of_legend, latest, time_name)


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
    panel: Panel,
    path: Array,
    real: npt.NDArray[np.bool_],
    elapsed: Array,
    latest: float,
    groups: _Classes | None,
) -> None:
    """Draw trajectories, starts and ends."""
    from matplotlib.lines import Line2D

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

    width = 4 if many and groups is not None else 3
    panel.add(_lines([_segments(*line) for line in drawn], latest, width))

    if many:
        for g in range(1 if groups is None else len(groups.names)):
            marker, color = ("o", GREY) if groups is None else groups.markers[g]
            cloud = [p for b, p in ends.items() if groups is None or groups.index[b] == g]
            if cloud:
                panel.add(
                    Line2D(
                        *np.transpose(cloud), linestyle="none", marker=marker,
                        markersize=points(8), markerfacecolor=color, markeredgecolor="none",
                        markeredgewidth=0, alpha=0.75 if len(cloud) <= 100 else 0.5, zorder=ABOVE,
                    )
                )  # fmt: skip
    begins: list[Array] = []
    stops: dict[int, list[Array]] = {}
    for (line, _, known), g in zip(drawn, who, strict=True):
        at = np.flatnonzero(known)
        if at.size:
            begins.append(line[at[0]])
            stops.setdefault(g, []).append(line[at[-1]])
    if begins:
        panel.add(
            Line2D(
                *np.transpose(begins), linestyle="none", marker="o", markersize=points(7),
                markerfacecolor=BEGIN, markeredgecolor="none", markeredgewidth=0, zorder=4,
            )
        )  # fmt: skip
    for g in sorted(stops):
        marker, color = ("o", "white") if groups is None else groups.markers[g]
        panel.add(Line2D(*np.transpose(stops[g]), zorder=5, **marker_style(marker, color)))


def _lines(pieces: list[tuple[Array, Array]], latest: float, width: float) -> LineCollection:
    """Segments, those of about the same time as one path: a path for each would be slow."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap, Normalize

    segments = np.concatenate([np.empty((0, 2, 2)), *(s for s, _ in pieces)])
    times = np.concatenate([np.empty(0), *(t for _, t in pieces)])
    band = np.minimum(times / latest * BANDS, BANDS - 1).astype(np.int64)
    order = np.argsort(band, kind="stable")
    used, first = np.unique(band[order], return_index=True)
    # NaN between segments keeps them apart.
    apart = np.concatenate([segments, np.full((len(segments), 1, 2), np.nan)], axis=1)[order]
    return LineCollection(
        [group.reshape(-1, 2) for group in np.split(apart, first[1:])] if len(used) else [],
        array=(used + 0.5) / BANDS * latest,
        cmap=ListedColormap(samples("viridis", BANDS, LATEST)),
        norm=Normalize(0.0, latest),
        linewidths=points(width),
        capstyle="round",
        linestyles="solid",
        zorder=3,
    )


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


def _colour_bar(sheet: Sheet, left: float, top: float, latest: float, name: str) -> None:
    panel = sheet.panel(left, BOTTOM, 22, top - BOTTOM, xlim=(0, 1), ylim=(0, latest), spines=())
    panel.always(
        "imshow", GRADIENT, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower",
        interpolation="nearest", extent=(0, 1, 0, latest), filternorm=True, resample=True,
    )  # fmt: skip
    panel.always("tick_params", left=False, right=True, labelleft=False, labelright=True)
    panel.ticks("y", [0.0, latest], ["0", number(float(f"{latest:.3g}"))], length=0)
    sheet.text(left + 30, (BOTTOM + top) / 2, name, va="center_baseline", color=INK)


def _palette() -> Colors:
    times = [samples("viridis", BANDS, LATEST)]
    times += [shades(color, 5)[1:] for color in samples("viridis", 16, LATEST)]
    # Four shades, since clouds of ends are drawn with an alpha of 3/4 or 1/2.
    classes = [color for _, color in (*END_MARKERS, OTHER_MARKER)]
    ends = [part for color in classes for part in (shades(color, 4), shades(INK, 6, color)[1:])]
    return np.concatenate([shades(INK, 40), shades(GREY, 8), shades(LIGHT, 3), *times, *ends])
