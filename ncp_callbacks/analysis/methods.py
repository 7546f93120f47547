"""Attribution methods: functions of anything that gives targets and gradients at points.

    result = integrated_gradients(observation.evaluate, inputs, time_delta, baseline=..., ...)
    result.inputs          # (B, T, F), sums with result.intervals to result.change
    result.error           # by how much it doesn't, per sequence

Inputs and intervals move together from the baseline to where they are, so that one attribution says
how much of the change is owed to what was measured, and how much to when.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .results import FloatArray

__all__ = [
    "METHODS",
    "Attribution",
    "Evaluate",
    "Points",
    "constant_baseline",
    "expected_gradients",
    "gradient",
    "input_x_gradient",
    "integrated_gradients",
    "method_name",
    "occlusion",
    "own_step_integrated_gradients",
    "smooth_grad",
]

METHODS = (
    "input_x_gradient",
    "gradient",
    "integrated_gradients",
    "smooth_grad",
    "expected_gradients",
    "occlusion",
)


_NAMES = {"input_x_gradient": "input × gradient", "smooth_grad": "SmoothGrad"}


def method_name(method: str) -> str:
    """A method's name in running text."""
    return _NAMES.get(method, method.replace("_", " "))


@dataclass(frozen=True, eq=False)
class Points:
    """Targets of variants of some sequences, and their gradients where they were asked for.

    Attributes:
        values: ``(K, B)``.
        input_gradient: ``(K, B, T, F)``, or None.
        time_gradient: ``(K, B, T)``; None also where the model takes no intervals.
        loss: ``(K, B)``, the loss beside another target; None where it was not asked for.
    """

    values: FloatArray
    input_gradient: FloatArray | None = None
    time_gradient: FloatArray | None = None
    loss: FloatArray | None = None

    def of(self, rows: npt.NDArray[np.intp]) -> Points:
        """Those of some sequences."""
        columns = (getattr(self, f.name) for f in fields(self))
        return Points(*[None if c is None else c[:, rows] for c in columns])  # type: ignore[arg-type]


class Evaluate(Protocol):
    """What a method asks of a model; see :meth:`ncp_callbacks.Observation.evaluate`."""

    def __call__(
        self,
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        rows: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
    ) -> Points: ...


@dataclass(frozen=True, eq=False)
class Attribution:
    """What of each sequence's target is owed to which input.

    Attributes:
        method: One of :data:`METHODS`.
        inputs: ``(B, T, F)``, in units of the target (of ``gradient`` and ``smooth_grad``: of the
            target over those of the input); 0 in padding.
        intervals: ``(B, T)``, likewise; None where the model takes none.
        change: ``(B,)``, target minus that at the baseline, which a complete attribution sums to;
            None for methods that promise no such thing.
        nodes: ``(B,)``, gradients that each sequence's attribution is made of (forward passes, for
            occlusion).
        rounding: ``(B,)``, how far ``change`` may be off as a difference of two float32 numbers;
            None for not at all.
    """

    method: str
    inputs: FloatArray
    intervals: FloatArray | None
    change: FloatArray | None
    nodes: npt.NDArray[np.integer[Any]]
    rounding: FloatArray | None = None

    @property
    def error(self) -> FloatArray | None:
        """``(B,)``, ``|sum - change|`` over the RMS change of all sequences; None like it.

        Without what rounding explains: of a target that hardly moves, as a probability near 1, the
        change itself is not known better. 0 where nothing changed and nothing was attributed.
        """
        return None if self.change is None else self.error_of(self.scale)

    @property
    def scale(self) -> float:
        """RMS change of all sequences, of what is finite; 0 where there is none."""
        if self.change is None:
            return 0.0
        change = self.change.astype(np.float64)
        known = change[np.isfinite(change)]
        return float(np.sqrt(np.mean(known**2))) if known.size else 0.0

    def error_of(self, scale: float, total: FloatArray | None = None) -> FloatArray:
        """:attr:`error`, of an attribution that promises completeness, over another ``scale``.

        Args:
            scale: In place of :attr:`scale`.
            total: ``(B,)``, in place of the sums over inputs and intervals.
        """
        assert self.change is not None
        if total is None:
            total = self.inputs.sum(axis=(1, 2), dtype=np.float64)
            if self.intervals is not None:
                total = total + self.intervals.sum(axis=1, dtype=np.float64)
        gap = np.abs(total - self.change.astype(np.float64))
        if self.rounding is not None:
            gap = np.maximum(gap - self.rounding, 0.0)
        error: FloatArray = (
            gap / scale
            if scale > 0
            else np.where(gap > 0, np.inf, np.where(np.isnan(gap), np.nan, 0.0))
        )
        return error

    def of(self, rows: npt.NDArray[np.intp]) -> Attribution:
        """That of some sequences."""
        return replace(
            self,
            inputs=self.inputs[rows],
            intervals=None if self.intervals is None else self.intervals[rows],
            change=None if self.change is None else self.change[rows],
            nodes=self.nodes[rows],
            rounding=None if self.rounding is None else self.rounding[rows],
        )


def constant_baseline(
    given: str | npt.ArrayLike, values: FloatArray, mask: npt.NDArray[np.bool_] | None, what: str
) -> FloatArray:
    """A baseline as large as ``values``, ``(B, T, F)`` or ``(B, T)``.

    Args:
        given: ``"mean"`` of each feature over sequences and real steps, of what is finite there;
            ``"zeros"``; or an array that broadcasts: ``(F,)``, ``(T, F)``, ``(B, T, F)``; for
            intervals a number, ``(T,)`` or ``(B, T)``.
        values: What is attributed.
        mask: ``(B, T)``, true at real steps, or None.
        what: Its name, for messages.

    Returns:
        float64. In padding, ``values`` themselves: what isn't real has no part.

    Raises:
        ValueError: For other words, shapes that don't fit, and numbers that aren't finite.
    """
    real = np.ones(values.shape[:2], bool) if mask is None else mask
    own = values.astype(np.float64)
    if isinstance(given, str):
        if given not in ("mean", "zeros"):
            raise ValueError(f"{what}={given!r} is unknown: give 'mean', 'zeros' or an array")
        base = _finite_mean(own[real]) if given == "mean" else np.zeros(())
    else:
        base = np.asarray(given, np.float64)
        if not np.isfinite(base).all():
            raise ValueError(f"{what} holds NaN or infinity: a baseline is an input to the model")
    try:
        whole = np.broadcast_to(base, own.shape)
    except ValueError:
        raise ValueError(
            f"{what} has shape {base.shape}, which doesn't fit {own.shape}: give one number per "
            f"feature, {own.shape[2:] or 'one'}, or an array of shape {own.shape[1:]}"
            + (
                ". A batch of draws is for method='expected_gradients'"
                if base.ndim == own.ndim == 3
                else ""
            )
        ) from None
    padded = ~real if own.ndim == 2 else ~real[..., None]
    return np.where(padded, own, whole)


def _finite_mean(values: FloatArray) -> FloatArray:
    """Over the first axis; a sequence with NaN must not make the baseline of all others NaN."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    mean: FloatArray = total / np.maximum(known.sum(axis=0), 1)
    return mean


def _finite_range(values: FloatArray) -> FloatArray:
    known = np.isfinite(values)
    low = np.where(known, values, np.inf).min(axis=0)
    high = np.where(known, values, -np.inf).max(axis=0)
    extent: FloatArray = np.maximum(high - low, 0.0)
    return extent


def _rounding(values: FloatArray, at_baseline: FloatArray) -> FloatArray:
    sizes: FloatArray = np.abs(values) + np.abs(at_baseline)
    return np.finfo(np.float32).eps * sizes.astype(np.float64)


def _masked(values: FloatArray, mask: npt.NDArray[np.bool_] | None) -> FloatArray:
    if mask is None:
        return values
    masked: FloatArray = np.where(mask if values.ndim == 2 else mask[..., None], values, 0.0)
    return masked


def gradient(
    input_gradient: FloatArray,
    time_gradient: FloatArray | None = None,
    *,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Attribution:
    """The gradient itself: how fast the target changes, in its unit over that of the input.

    Source: Simonyan et al. 2013 (arXiv:1312.6034).
    """
    inputs = _masked(input_gradient.astype(np.float64), mask)
    intervals = None if time_gradient is None else _masked(time_gradient.astype(np.float64), mask)
    ones = np.ones(len(inputs), np.int64)
    return Attribution("gradient", inputs, intervals, None, ones)


def input_x_gradient(
    inputs: FloatArray,
    input_gradient: FloatArray,
    time_delta: FloatArray | None = None,
    time_gradient: FloatArray | None = None,
    *,
    baseline: FloatArray | float = 0.0,
    time_baseline: FloatArray | float = 0.0,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Attribution:
    """(Input - baseline) × gradient, of which with zeros as the baseline input × gradient is left.

    Source: Shrikumar et al. 2016 (arXiv:1605.01713), whose sum over a linear model's inputs is its
    output. It saturates: where the target has levelled off, it is small whatever led there.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        moved = inputs.astype(np.float64) - baseline
        attributed = _masked(moved * input_gradient.astype(np.float64), mask)
        intervals = None
        if time_delta is not None and time_gradient is not None:
            elapsed = time_delta.astype(np.float64) - time_baseline
            intervals = _masked(elapsed * time_gradient.astype(np.float64), mask)
    return Attribution(
        "input_x_gradient", attributed, intervals, None, np.ones(len(attributed), np.int64)
    )


def integrated_gradients(
    evaluate: Evaluate,
    inputs: FloatArray,
    time_delta: FloatArray | None = None,
    *,
    baseline: FloatArray,
    time_baseline: FloatArray | None = None,
    values: FloatArray | None = None,
    nodes: int = 16,
    most_nodes: int = 64,
    tolerance: float = 0.01,
) -> Attribution:
    """Gradients averaged along the straight line from the baseline, times the way.

    Completeness: the sum over inputs and intervals is the target minus that at the baseline. By
    Gauss-Legendre quadrature of the whole way; for sequences whose error
    (:attr:`Attribution.error`) is above ``tolerance``, by a composite rule, 3 nodes for each part
    of the way. First the way is halved where the target changes most, by targets alone, which cost
    less than gradients, so that nodes gather where it jumps. Then, as the target at the ends of a
    part tells what its sum must be, the part that is furthest from that is halved, sequence by
    sequence, until the error is small enough. That ends at ``most_nodes``, where it would take
    more gradients than doubling the nodes up to there, and where a part is too short for single
    precision. If the composite rule isn't nearer, the first stays.

    Args:
        evaluate: Targets and gradients at points.
        inputs: ``(B, T, F)``.
        time_delta: ``(B, T)`` where the model takes intervals.
        baseline: Like ``inputs``.
        time_baseline: Like ``time_delta``; None leaves the intervals as they are.
        values: ``(B,)``, targets at ``inputs``, if known.
        nodes, most_nodes: Of the first rule, and the largest number. With ``most_nodes`` below 12
            or ``2 * nodes``, there is the first rule only.
        tolerance: What error is good enough.

    Source: Sundararajan et al. 2017 (arXiv:1703.01365).
    """
    x, x0 = inputs.astype(np.float64), baseline.astype(np.float64)
    dt = None if time_delta is None else time_delta.astype(np.float64)
    dt0 = dt if time_baseline is None else time_baseline.astype(np.float64)
    moves_time = dt is not None and time_baseline is not None
    at_baseline = evaluate(_single(x0)[None], _single(dt0)[None] if moves_time else None)
    if values is None:
        values = evaluate(_single(x)[None]).values[0]
    change = values.astype(np.float64) - at_baseline.values[0].astype(np.float64)
    batch = len(x)
    found = Attribution(
        "integrated_gradients",
        np.zeros_like(x),
        np.zeros(x.shape[:2]) if moves_time else None,
        change,
        np.zeros(batch, np.int64),
        _rounding(values, at_baseline.values[0]),
    )
    rows = np.arange(batch)
    line = _Line(evaluate, x, x0, dt, dt0 if moves_time else None)
    by_input, by_time = _along(line, rows, nodes)
    found.inputs[rows] = by_input * (x - x0)
    if found.intervals is not None and dt is not None and dt0 is not None:
        found.intervals[rows] = by_time * (dt - dt0)
    found.nodes[rows] = nodes
    error = found.error
    assert error is not None
    # NaN is not mended by more nodes.
    rows = np.flatnonzero(error > tolerance)
    if rows.size and 2 * nodes <= most_nodes and most_nodes >= _PART * _PARTS:
        _refine(found, line, values, at_baseline.values[0], rows, most_nodes, tolerance)
    return found


# Nodes of a part of the way, and parts to begin with: 12 gradients, and 6 for every part halved.
# Doubling takes 2 * most_nodes - nodes in all, which bounds them.
_PART, _PARTS = 3, 4
# Where the target jumps: a part in which it changes by this much of the RMS change, and by this
# share of it in one half. In the tail of a sigmoid that is wider than 3.5 times its scale.
_JUMP, _ONE_HALF = 0.2, 0.85
# Parts beside each other in which it changes less are one.
_FLAT = 0.005
# Of the way. Points closer by are hardly told apart in single precision.
_SHORTEST = 2.0**-24
_FRUITLESS = 8


@dataclass(frozen=True, eq=False)
class _Line:
    """The ways from baselines to sequences."""

    evaluate: Evaluate
    x: FloatArray
    x0: FloatArray
    dt: FloatArray | None
    dt0: FloatArray | None

    def at(self, alpha: FloatArray, rows: npt.NDArray[np.intp], *, gradient: bool) -> Points:
        """``(K, R)`` places on the ways of some sequences."""
        points = self.x0[rows] + alpha[..., None, None] * (self.x - self.x0)[rows]
        elapsed = None
        if self.dt is not None and self.dt0 is not None:
            elapsed = self.dt0[rows] + alpha[..., None] * (self.dt - self.dt0)[rows]
        return self.evaluate(
            _single(points),
            None if elapsed is None else _single(elapsed),
            rows=None if np.array_equal(rows, np.arange(len(self.x))) else rows,
            gradient=gradient,
        )

    def values(self, alpha: FloatArray, rows: npt.NDArray[np.intp]) -> FloatArray:
        """``(N,)``, targets at ``(N,)`` places, one of each of ``rows``, which may recur."""
        found: FloatArray = self.at(alpha[None], rows, gradient=False).values[0]
        return found.astype(np.float64)

    def parts(
        self,
        rows: npt.NDArray[np.intp],
        low: FloatArray,
        high: FloatArray,
        below: FloatArray,
        above: FloatArray,
    ) -> _Parts:
        """Parts ``(N,)`` of the ways of ``rows``, which may recur, by their ends and targets."""
        at, weights = np.polynomial.legendre.leggauss(_PART)
        alpha = low + ((at + 1) / 2)[:, None] * (high - low)
        seen = self.at(alpha.reshape(1, -1), np.tile(rows, _PART), gradient=True)
        assert seen.input_gradient is not None
        shares = (weights / 2)[:, None] * (high - low)

        def mean(gradients: FloatArray) -> FloatArray:
            apart = gradients[0].reshape(_PART, len(low), *gradients.shape[2:])
            total: FloatArray = np.einsum("kn,kn...->n...", shares, apart.astype(np.float64))
            return total

        by_time: FloatArray = np.zeros((len(low), self.x.shape[1]))
        if self.dt is not None and self.dt0 is not None and seen.time_gradient is not None:
            by_time = mean(seen.time_gradient) * (self.dt - self.dt0)[rows]
        by_input = mean(seen.input_gradient) * (self.x - self.x0)[rows]
        return _Parts(rows, low, high, below, above, by_input, by_time, np.zeros(len(low), np.intp))


@dataclass(frozen=True, eq=False)
class _Parts:
    """Parts ``(N,)`` of the ways, and what is owed to what in them.

    Attributes:
        row: Whose.
        low, high: Ends, from 0 to 1.
        below, above: Targets there.
        inputs, intervals: ``(N, T, F)`` and ``(N, T)``.
        fruitless: How many halvings in a row didn't help.
    """

    row: npt.NDArray[np.intp]
    low: FloatArray
    high: FloatArray
    below: FloatArray
    above: FloatArray
    inputs: FloatArray
    intervals: FloatArray
    fruitless: npt.NDArray[np.intp]

    @functools.cached_property
    def sums(self) -> FloatArray:
        total: FloatArray = self.inputs.sum(axis=(1, 2)) + self.intervals.sum(axis=1)
        return total

    @property
    def gap(self) -> FloatArray:
        """How far what is owed is from the change of the target."""
        gap: FloatArray = np.abs(self.sums - (self.above - self.below))
        return gap

    def of(self, at: npt.NDArray[np.intp]) -> _Parts:
        return _Parts(*(getattr(self, f.name)[at] for f in fields(self)))

    def and_(self, other: _Parts) -> _Parts:
        columns = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return _Parts(*map(np.concatenate, columns))

    def halved(self, line: _Line) -> _Parts:
        """Two for each of these, in two rows."""
        middle = (self.low + self.high) / 2
        between = line.values(middle, self.row)
        halves = line.parts(
            np.tile(self.row, 2),
            np.concatenate([self.low, middle]),
            np.concatenate([middle, self.high]),
            np.concatenate([self.below, between]),
            np.concatenate([between, self.above]),
        )
        no_nearer = halves.gap.reshape(2, -1).sum(axis=0) > self.gap / 2
        halves.fruitless[:] = np.tile(np.where(no_nearer, self.fruitless + 1, 0), 2)
        return halves


def _refine(
    found: Attribution,
    line: _Line,
    values: FloatArray,
    at_baseline: FloatArray,
    rows: npt.NDArray[np.intp],
    most_nodes: int,
    tolerance: float,
) -> None:
    """Attributions of some sequences by composite rules, where these are nearer."""
    first, batch = found.error, len(values)
    assert first is not None
    # That of all sequences, on which it depends whether one is done.
    scale = found.scale
    # A third of the parts is left for what gradients will show.
    to_begin = max(_PARTS, 2 * most_nodes // (3 * _PART))
    of, places, targets = _mesh(line, values, at_baseline, rows, to_begin, scale)
    within = of[1:] == of[:-1]
    parts = line.parts(
        of[1:][within],
        *(a for ends in (places, targets) for a in (ends[:-1][within], ends[1:][within])),
    )
    begun = np.bincount(parts.row, minlength=batch)
    while True:
        error = found.error_of(scale, np.bincount(parts.row, parts.sums, batch).astype(np.float64))
        count = np.bincount(parts.row, minlength=batch)
        # Every part more took two new ones.
        spent = found.nodes + _PART * (2 * count - begun)
        room = spent + 2 * _PART <= 2 * most_nodes - found.nodes
        room &= _PART * (count + 1) <= most_nodes
        at = _furthest(parts, room & (error > tolerance))
        if not at.size:
            break
        parts = parts.of(np.delete(np.arange(len(parts.row)), at)).and_(parts.of(at).halved(line))
    nearer = rows[error[rows] < first[rows]]
    found.inputs[nearer] = _sums(parts.inputs, parts.row, batch)[nearer]
    if found.intervals is not None:
        found.intervals[nearer] = _sums(parts.intervals, parts.row, batch)[nearer]
    found.nodes[nearer] = _PART * count[nearer]


def _furthest(parts: _Parts, rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Which parts to halve: of each sequence that may the one furthest from complete."""
    # Where the target is smooth, 3 nodes are nearer by far in halves. Where they never are, it
    # jumps, and jumps that are not small were found before: single precision is too short.
    over = (parts.fruitless >= _FRUITLESS) | (parts.high - parts.low <= 2 * _SHORTEST)
    gap = np.where(over, 0.0, parts.gap)
    having = np.intersect1d(np.flatnonzero(rows), parts.row)
    worst = [int(np.where(parts.row == row, gap, -1.0).argmax()) for row in having]
    return np.array([i for i in worst if gap[i] > 0], np.intp)


def _sums(parts: FloatArray, row: npt.NDArray[np.intp], rows: int) -> FloatArray:
    total = np.zeros((rows, *parts.shape[1:]))
    np.add.at(total, row, parts)
    return total


def _mesh(
    line: _Line,
    values: FloatArray,
    at_baseline: FloatArray,
    rows: npt.NDArray[np.intp],
    most: int,
    scale: float,
) -> tuple[npt.NDArray[np.intp], FloatArray, FloatArray]:
    """Where to divide the ways: shorter parts where the target changes most.

    Returns:
        Sequences, places from 0 to 1 in order for each of them, and the targets there.
    """
    start = [k / _PARTS for k in range(_PARTS + 1)]
    known = [{0.0: float(at_baseline[r]), 1.0: float(values[r])} for r in rows]
    wanted = [(i, k / (2 * _PARTS)) for i in range(len(rows)) for k in range(1, 2 * _PARTS)]
    while wanted:
        at = np.array([place for _, place in wanted])
        found = line.values(at, rows[[i for i, _ in wanted]])
        for (i, place), value in zip(wanted, found, strict=True):
            known[i][place] = float(value)
        divided = [_divided(start, there, 4 * most, scale) for there in known]
        wanted = [(i, place) for i, (_, unknown) in enumerate(divided) for place in unknown]
    meshes = [places for places, _ in divided]
    for i, there in enumerate(known):
        fewer = 4 * most
        while len(meshes[i]) > most + 1:
            fewer -= max(1, fewer // 8)
            meshes[i], _ = _divided(start, there, fewer, scale)
    of = np.repeat(rows, [len(places) for places in meshes])
    targets = np.array([known[i][a] for i, places in enumerate(meshes) for a in places])
    return of, np.concatenate(meshes), targets


def _divided(
    places: Sequence[float], targets: Mapping[float, float], most: int, scale: float
) -> tuple[list[float], list[float]]:
    """Places, with those where parts that hold a jump are halved; and what to know for more.

    At most so many parts, before those in which the target hardly changes are joined.
    """
    jump = _JUMP * scale
    unknown: list[float] = []
    settled = list(places)
    # That of the largest change first.
    parts = [(-abs(targets[b] - targets[a]), a, b) for a, b in itertools.pairwise(places)]
    parts = [part for part in parts if -part[0] > jump]
    heapq.heapify(parts)
    while parts and len(settled) <= most:
        _, a, b = heapq.heappop(parts)
        middle = (a + b) / 2
        if b - a <= 2 * _SHORTEST:
            continue
        if middle not in targets:
            # With those of its halves, of which one is asked for next.
            unknown += [a + (middle - a) / 2, middle, middle + (b - middle) / 2]
            continue
        halves = [(abs(targets[d] - targets[c]), c, d) for c, d in ((a, middle), (middle, b))]
        change, c, d = max(halves)
        if change > _ONE_HALF * sum(half[0] for half in halves):
            settled.append(middle)
            if change > jump:
                heapq.heappush(parts, (-change, c, d))
    return _joined(sorted(settled), targets, places, _FLAT * scale), unknown


def _joined(
    places: Sequence[float], targets: Mapping[float, float], kept: Container[float], flat: float
) -> list[float]:
    """Places without those between parts in which the target hardly changes."""
    found = [places[0]]
    for place, following in itertools.pairwise(places[1:]):
        change = abs(targets[place] - targets[found[-1]]) + abs(targets[following] - targets[place])
        if place in kept or not change < flat:
            found.append(place)
    return [*found, places[-1]]


def _along(
    line: _Line, rows: npt.NDArray[np.intp], nodes: int
) -> tuple[FloatArray, FloatArray | float]:
    """Mean gradients of some sequences along their lines."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    at, weights = (at + 1) / 2, weights / 2
    by_input = np.zeros((len(rows), *line.x.shape[1:]))
    by_time: FloatArray | float = 0.0
    # In groups, so that what is kept doesn't grow with the number of nodes.
    for group in np.array_split(np.arange(nodes), max(1, nodes // 8)):
        seen = line.at(at[group, None], rows, gradient=True)
        assert seen.input_gradient is not None
        by_input += np.tensordot(weights[group], seen.input_gradient.astype(np.float64), 1)
        if line.dt0 is not None and seen.time_gradient is not None:
            by_time = by_time + np.tensordot(
                weights[group], seen.time_gradient.astype(np.float64), 1
            )
    return by_input, by_time


def own_step_integrated_gradients(
    at_own_steps: Callable[[FloatArray, FloatArray | None], Points],
    inputs: FloatArray,
    time_delta: FloatArray | None = None,
    *,
    baseline: FloatArray,
    time_baseline: FloatArray | None = None,
    nodes: int = 16,
    mask: npt.NDArray[np.bool_] | None = None,
) -> tuple[Attribution, FloatArray]:
    """What the output of each step owes to that step's input, by integrated gradients.

    Of each prefix of a sequence the whole is moved from the baseline to where it is, and of the
    attribution the last step is kept. A recurrent network that runs forwards has all prefixes in
    one pass: the states before each step are those of the pass, and only the step itself need be
    differentiated. So this takes ``nodes`` passes, and not as many for each step.

    Args:
        at_own_steps: Gradients of each step's target to its own input, the state before it held
            fixed, of variants ``(K, B, T, F)`` and ``(K, B, T)``; see
            :meth:`ncp_callbacks.Observation.at_own_steps`.
        inputs, time_delta: ``(B, T, F)`` and ``(B, T)``.
        baseline, time_baseline: As large; see :func:`constant_baseline`.
        nodes: Of the Gauss-Legendre rule.
        mask: ``(B, T)``, true at real steps.

    Returns:
        The attribution, and ``(B,)`` how far that of every other of the nodes is from it: norm of
        the difference, over the RMS norm of all sequences. The part of a last step has nothing to
        sum to, so this is what can be said of the error, of which it is an upper estimate. NaN with
        one node.

    Source: Sundararajan et al. 2017 (arXiv:1703.01365), of every prefix.
    """

    def evaluate(
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        rows: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
    ) -> Points:
        assert inputs is not None
        return at_own_steps(inputs, time_delta)

    x = inputs.astype(np.float64)
    dt = None if time_delta is None else time_delta.astype(np.float64)
    line = _Line(evaluate, x, baseline, dt, time_baseline)
    at, weights = np.polynomial.legendre.leggauss(nodes)
    both = np.stack([weights, _every_other(at)]) / 2
    by_input, by_time = np.zeros((2, *x.shape)), np.zeros((2, *x.shape[:2]))
    # In groups, so that what is kept doesn't grow with the number of nodes.
    for group in np.array_split(np.arange(nodes), max(1, nodes // 8)):
        seen = line.at((at[group, None] + 1) / 2, np.arange(len(x)), gradient=True)
        assert seen.input_gradient is not None
        by_input += np.tensordot(both[:, group], seen.input_gradient.astype(np.float64), 1)
        if seen.time_gradient is not None:
            by_time += np.tensordot(both[:, group], seen.time_gradient.astype(np.float64), 1)
    owed = _masked((x - baseline)[None] * by_input, None if mask is None else mask[None])
    intervals = None
    if dt is not None and time_baseline is not None:
        by_time *= dt - time_baseline
        intervals = by_time if mask is None else np.where(mask, by_time, 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        size = (owed[0] ** 2).sum(axis=(1, 2))
        apart = np.sqrt(((owed[1] - owed[0]) ** 2).sum(axis=(1, 2)))
    known = size[np.isfinite(size)]
    rms = float(np.sqrt(known.mean())) if known.size else 0.0
    fewer = apart / rms if nodes > 1 and rms > 0 else np.full(len(x), np.nan)
    found = Attribution(
        "integrated_gradients",
        owed[0],
        None if intervals is None else intervals[0],
        None,
        np.full(len(x), nodes),
    )
    return found, fewer


def _every_other(at: FloatArray) -> FloatArray:
    """Weights of a rule on [-1, 1] that takes every other node, and is exact for polynomials.

    Of a degree below their number; others have the weight 0.
    """
    chosen = np.arange(0, len(at), 2)
    moments = np.zeros(len(chosen))
    moments[0] = 2.0
    weights: FloatArray = np.zeros(len(at))
    weights[chosen] = np.linalg.solve(
        np.polynomial.legendre.legvander(at[chosen], len(chosen) - 1).T, moments
    )
    return weights


def smooth_grad(
    evaluate: Evaluate,
    inputs: FloatArray,
    *,
    draws: int = 16,
    noise: float = 0.1,
    mask: npt.NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> Attribution:
    """Mean gradient at inputs with Gaussian noise, whose SD is ``noise`` times a feature's range.

    The same noise every time, so that maps of different training steps compare. Intervals are left
    as they are; their gradients are averaged likewise.

    Args:
        evaluate: Targets and gradients at points.
        inputs: ``(B, T, F)``.
        draws: How many.
        noise: SD over the range of a feature over sequences and real steps, of what is finite.
        mask: ``(B, T)``.
        seed: Of the noise.

    Source: Smilkov et al. 2017 (arXiv:1706.03825).
    """
    x = inputs.astype(np.float64)
    real = np.ones(x.shape[:2], bool) if mask is None else mask
    spread = noise * _finite_range(x[real])
    rng = np.random.default_rng(seed)
    by_input, by_time = np.zeros_like(x), None
    for group in np.array_split(np.arange(draws), max(1, draws // 8)):
        shift = rng.standard_normal((len(group), *x.shape)) * spread
        seen = evaluate(_single(x + np.where(real[..., None], shift, 0.0)), gradient=True)
        assert seen.input_gradient is not None
        by_input += seen.input_gradient.sum(axis=0, dtype=np.float64) / draws
        if seen.time_gradient is not None:
            total = seen.time_gradient.sum(axis=0, dtype=np.float64) / draws
            by_time = total if by_time is None else by_time + total
    return Attribution(
        "smooth_grad",
        _masked(by_input, mask),
        None if by_time is None else _masked(by_time, mask),
        None,
        np.full(len(x), draws),
    )


def expected_gradients(
    evaluate: Evaluate,
    inputs: FloatArray,
    time_delta: FloatArray | None = None,
    *,
    baselines: FloatArray,
    time_baselines: FloatArray | None = None,
    values: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    draws: int = 16,
    seed: int = 0,
) -> Attribution:
    """Integrated gradients averaged over baselines that are drawn, one node each.

    ``draws`` pairs of a baseline and a place on the way, the places stratified; the same for every
    call with the same seed. Complete in expectation: the error says how far from it.

    Args:
        evaluate: Targets and gradients at points.
        inputs, time_delta: ``(B, T, F)``, ``(B, T)``.
        baselines: ``(N, T, F)``, what is drawn from, but for those that are not finite.
        time_baselines: ``(N, T)``, drawn along with them; None leaves the intervals as they are.
        values: ``(B,)``, targets at ``inputs``, if known.
        mask: ``(B, T)``; in padding, nothing moves. Padding of the baselines is for the caller to
            fill.
        draws: How many.
        seed: Of the draws.

    Source: Erion et al. 2021 (arXiv:1906.10670).
    """
    x = inputs.astype(np.float64)
    dt = None if time_delta is None else time_delta.astype(np.float64)
    moves_time = dt is not None and time_baselines is not None
    rng = np.random.default_rng(seed)
    batch = len(x)
    usable = np.isfinite(baselines).all(axis=(1, 2))
    if time_baselines is not None:
        usable &= np.isfinite(time_baselines).all(axis=1)
    pool = np.flatnonzero(usable) if usable.any() else np.arange(len(baselines))
    # Every sequence has its own, and every baseline its turn before one comes again, further on.
    turns = -(-draws // len(pool))
    drawn = np.stack(
        [
            np.concatenate([rng.permutation(pool) for _ in range(turns)])[:draws]
            for _ in range(batch)
        ],
        axis=1,
    )
    alpha = (np.arange(draws)[:, None] + rng.uniform(size=(draws, batch))) / draws
    by_input = np.zeros_like(x)
    by_time = np.zeros(x.shape[:2]) if moves_time else None
    below = np.zeros(batch)
    for group in np.array_split(np.arange(draws), max(1, draws // 8)):
        x0 = baselines[drawn[group]].astype(np.float64)
        if mask is not None:
            x0 = np.where(mask[..., None], x0, x)
        way = x - x0
        points = x0 + alpha[group][..., None, None] * way
        dt0 = elapsed = since = None
        if moves_time and dt is not None and time_baselines is not None:
            dt0 = time_baselines[drawn[group]].astype(np.float64)
            if mask is not None:
                dt0 = np.where(mask, dt0, dt)
            since = dt - dt0
            elapsed = dt0 + alpha[group][..., None] * since
        seen = evaluate(
            _single(points), None if elapsed is None else _single(elapsed), gradient=True
        )
        assert seen.input_gradient is not None
        by_input += (seen.input_gradient * way).sum(axis=0) / draws
        if by_time is not None and seen.time_gradient is not None and since is not None:
            by_time += (seen.time_gradient * since).sum(axis=0) / draws
        at = evaluate(_single(x0), None if dt0 is None else _single(dt0))
        below += at.values.sum(axis=0, dtype=np.float64) / draws
    if values is None:
        values = evaluate(_single(x)[None]).values[0]
    change = values.astype(np.float64) - below
    return Attribution(
        "expected_gradients",
        by_input,
        by_time,
        change,
        np.full(batch, draws),
        _rounding(values, below),
    )


def occlusion(
    evaluate: Evaluate,
    inputs: FloatArray,
    time_delta: FloatArray | None = None,
    *,
    baseline: FloatArray,
    time_baseline: FloatArray | None = None,
    values: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> Attribution:
    """How much the target falls when one input, or one interval, is replaced by its baseline.

    One forward pass of every sequence for each of ``T (F + 1)`` cells. Not complete.

    Args:
        evaluate: Targets at points.
        inputs, time_delta: ``(B, T, F)``, ``(B, T)``.
        baseline, time_baseline: Likewise; without ``time_baseline`` intervals are left alone.
        values: ``(B,)``, targets at ``inputs``, if known.
        mask: ``(B, T)``.

    Source: Zeiler & Fergus 2014 (arXiv:1311.2901), with patches of one cell.
    """
    x = inputs
    _, steps, features = x.shape
    if values is None:
        values = evaluate(_single(x)[None]).values[0]
    values = values.astype(np.float64)
    attributed = np.zeros(x.shape)
    for step in range(steps):
        points = np.repeat(x[None], features, axis=0)
        every = np.arange(features)
        points[every, :, step, every] = baseline[:, step].T
        attributed[:, step] = (values - evaluate(_single(points)).values).T
    intervals: FloatArray | None = None
    if time_delta is not None and time_baseline is not None:
        intervals = np.zeros(time_delta.shape)
        for group in np.array_split(np.arange(steps), -(-steps // 16)):
            elapsed = np.repeat(time_delta[None], len(group), axis=0)
            elapsed[np.arange(len(group)), :, group] = time_baseline[:, group].T
            intervals[:, group] = (values - evaluate(None, _single(elapsed)).values).T
    cells = steps * (features + (intervals is not None))
    return Attribution(
        "occlusion",
        _masked(attributed, mask),
        None if intervals is None else _masked(intervals, mask),
        None,
        np.full(len(x), cells),
    )


def _single(values: FloatArray | None) -> Any:
    return None if values is None else values.astype(np.float32)
