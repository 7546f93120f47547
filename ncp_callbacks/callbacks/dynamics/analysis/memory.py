"""Measure how long a state, and the target, remembers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....results import FloatArray, MappingResult
from ....stats import SIZE, Estimate, ci_array
from .arguments import SMALLEST, as_jacobians, broken_steps, elapsed_within, real_steps

__all__ = [
    "Memory",
    "TargetMemory",
    "last_crossing",
    "last_steps_kept",
    "memory_horizon",
    "memory_of",
    "target_memory",
]


@dataclass(frozen=True, eq=False)
class Memory(MappingResult):
    """Hold how much of a small change of the state is left some time steps later: linear memory.

    A state that has saturated, such as that of a latch, forgets small changes and keeps what made
    it switch, so that its linear memory is short although it remembers. The number is the RMS share
    of a random small change of the state ``k`` time steps before the last that is left in the last:
    ``||d h_T / d h_{T-k}||_F / sqrt(H)``. A state that keeps everything has 1; above 1 changes
    grow.

    Attributes:
        curve: ``(K,)`` for ``k = 0, 1, …``: geometric mean over sequences, as far back as at least
            half of them go.
        steps: Time steps in which it falls to 1/e, median over sequences; the length of a sequence
            in which it does not.
        time: Elapsed time in which it falls to 1/e, median over sequences; ``steps`` without
            ``time_delta``.
        unforgotten: Share of sequences in which it does not fall to 1/e.
        norms: ``(S, T)``, the shares of each sequence; NaN beyond its start.
        elapsed: ``(S, T)``, the elapsed time from time step ``T-k`` to the last; NaN beyond the
            start of a sequence.
        ci: ``(2, K)``, 95 % CI over sequences of the curve; NaN where there is none.
        falls: ``(S, 2)``, time steps and elapsed time in which it falls, of each sequence.
        sequences: Number of sequences.
        non_finite: Number of sequences that were skipped: NaN or infinity.
    """

    curve: FloatArray
    steps: float
    time: float
    unforgotten: float
    norms: FloatArray
    elapsed: FloatArray
    ci: FloatArray
    falls: FloatArray
    sequences: int
    non_finite: int

    def estimates(self) -> dict[str, Estimate]:
        """Return ``linear_memory_steps``, ``_time`` and ``_left`` as estimates over sequences.

        The first two are missing where half of the sequences or more have not forgotten, because
        then it is known only that forgetting takes longer.
        """
        found = {}
        if self.unforgotten < 0.5:
            found["linear_memory_steps"] = Estimate.median(self.falls[:, 0])
            found["linear_memory_time"] = Estimate.median(self.falls[:, 1])
        with np.errstate(divide="ignore", over="ignore"):
            logs = np.log(self.norms[:, len(self.curve) - 1])
        logs = logs[np.isfinite(logs)]
        if len(logs):
            found["linear_memory_left"] = Estimate.geometric_mean(logs)
        return found


@dataclass(frozen=True, eq=False)
class TargetMemory(MappingResult):
    """Hold how much the target changes when all time steps but the last few are removed.

    Unlike the linear memory of the state, it knows no small changes: what a latch keeps counts.

    Attributes:
        kept: ``(K,)``, numbers ``m`` of last time steps that are kept, increasing.
        curve: ``(K,)``, RMS over sequences of the change of the target when only these are kept,
            in SDs of the target over sequences: 0 where nothing before them counts. For a leaky
            integrator of white input it is ``exp(-m / tau)``, as its linear memory is.
        steps: Number of last time steps from which on the change stays below 1/e; the largest
            number in ``kept`` where it does not.
        forgets: False where it does not.
        estimate: ``steps`` as an estimate over sequences; without a CI where the target does not
            forget.
        left: The curve's last value, as an estimate over sequences.
        ci: ``(2, K)``, 95 % CIs over sequences of the curve; NaN where there is none.
    """

    kept: npt.NDArray[np.intp]
    curve: FloatArray
    steps: float
    forgets: bool
    estimate: Estimate
    left: Estimate
    ci: FloatArray


def last_steps_kept(
    lengths: npt.NDArray[np.integer[Any]], max_points: int = 12
) -> npt.NDArray[np.intp]:
    """Return numbers of last time steps to keep, growing to one less than the median length.

    Args:
        lengths: ``(B,)``, numbers of time steps up to the last real one.
        max_points: Largest number of numbers.
    """
    longest = int(np.median(lengths)) - 1
    if longest < 1:
        return np.empty(0, np.intp)
    spread = np.geomspace(1, longest, min(max_points, longest)).round().astype(np.intp)
    return np.unique(spread)


def target_memory(
    kept: npt.NDArray[np.intp], values: FloatArray, whole: FloatArray
) -> TargetMemory | None:
    """Return how far back the target remembers, from targets of shortened sequences.

    Sequences with NaN or infinity are skipped.

    Args:
        kept: ``(K,)``, numbers of last time steps that were kept, increasing.
        values: ``(K, B)``, the targets with these only.
        whole: ``(B,)``, the targets of the whole sequences.

    Returns:
        None for fewer than two sequences, and where the target is equal in all of them.
    """
    use = np.isfinite(whole) & np.isfinite(values).all(axis=0)
    y, d = whole[use].astype(np.float64), values[:, use].astype(np.float64) - whole[use]
    count = len(y)
    if count < 2 or not len(kept) or y.std() <= 1e-7 * float(np.abs(y).max()):
        return None
    y = y - y.mean()
    squares = d**2

    def curves(weights: FloatArray) -> FloatArray:
        """Return ``(K, N)`` curves for weights ``(B, N)`` of sequences."""
        mean = y @ weights / weights.sum(axis=0)
        variance = y**2 @ weights / weights.sum(axis=0) - mean**2
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.sqrt(squares @ weights / weights.sum(axis=0) / variance)
        return np.asarray(found)

    curve = curves(np.ones((count, 1)))[:, 0]
    without_each = curves(1.0 - np.eye(count)).T
    steps, forgets = last_crossing(curve, kept)
    estimate = Estimate(steps, np.empty(0), SIZE)
    if forgets and count > 2:
        others = np.array([last_crossing(each, kept)[0] for each in without_each])
        estimate = Estimate.jackknife(steps, others, SIZE)
    at_each = [
        Estimate.jackknife(float(value), others, SIZE)
        for value, others in zip(curve, without_each.T, strict=True)
    ]
    return TargetMemory(
        kept=kept, curve=curve, steps=steps, forgets=forgets, estimate=estimate,
        left=at_each[-1], ci=ci_array(at_each),
    )  # fmt: skip


def last_crossing(curve: FloatArray, kept: npt.NDArray[np.intp]) -> tuple[float, bool]:
    """Return where a curve falls below 1/e for good, and whether it does.

    Args:
        curve: ``(K,)``.
        kept: ``(K,)``, the places of its points, increasing.
    """
    above = np.flatnonzero(~(curve <= math.exp(-1)))
    if not above.size:
        return float(kept[0]), True
    k = int(above[-1])
    if k == len(curve) - 1:
        return float(kept[-1]), False
    # Exponential decay between points.
    before, after = (math.log(max(float(v), 1e-300)) for v in curve[k : k + 2])
    share = (before + 1) / (before - after)
    return float(kept[k] + share * (kept[k + 1] - kept[k])), True


def memory_horizon(
    jacobians: FloatArray,
    *,
    time_delta: FloatArray | None = None,
    mask: np.ndarray | None = None,
) -> Memory:
    """Return how far back the last state remembers.

    Sequences of different lengths are aligned at their last real time steps; time steps before a
    gap in the mask are skipped. A leaky integrator has ``exp(-elapsed / tau)``, and so ``tau`` for
    its ``time``.

    Args:
        jacobians: ``(S, T-1, H, H)``.
        time_delta: ``(S, T)``, the elapsed time before each time step.
        mask: ``(S, T)``, true at real time steps.

    Raises:
        ValueError: For shapes that don't fit.
    """
    jacobians = as_jacobians(jacobians)
    sequences, steps, width, _ = jacobians.shape
    real, valid = real_steps(mask, jacobians.shape)
    dt, last = elapsed_within(time_delta, real)
    broken = broken_steps(jacobians, valid)
    bad = np.zeros(sequences, bool)
    norms = np.full((sequences, steps + 1), np.nan)
    elapsed = np.full((sequences, steps + 1), np.nan)
    product = np.broadcast_to(np.eye(width), (sequences, width, width)).copy()
    log_scale, ago = np.zeros(sequences), np.zeros(sequences)
    alive = real.any(axis=1)
    norms[alive, 0], elapsed[alive, 0] = 0.0, 0.0
    for k in range(steps):
        step = last - 1 - k
        alive = alive & (step >= 0) & valid[np.arange(sequences), step]
        bad |= alive & broken[np.arange(sequences), step]
        alive &= ~bad
        who = np.flatnonzero(alive)
        if not who.size:
            break
        product[who] = product[who] @ jacobians[who, step[who]].astype(np.float64)
        size = np.linalg.norm(product[who], axis=(1, 2)) / math.sqrt(width)
        product[who] /= np.maximum(size, SMALLEST)[:, None, None]
        log_scale[who] += np.log(np.maximum(size, SMALLEST))
        ago[who] += dt[who, step[who] + 1]
        norms[who, k + 1], elapsed[who, k + 1] = log_scale[who], ago[who]
    norms[bad], elapsed[bad] = np.nan, np.nan
    return memory_of(norms, elapsed, int(bad.sum()))


def memory_of(norms: FloatArray, elapsed: FloatArray, non_finite: int) -> Memory:
    """Return the memory of all sequences.

    Args:
        norms: ``(S, T)``, logarithms of the shares of a change that are left.
        elapsed: ``(S, T)``, the elapsed time.
        non_finite: Number of sequences that were skipped.
    """
    known = np.flatnonzero(np.isfinite(norms[:, 0]))
    crossings = [_crossing(norms[s], elapsed[s]) for s in known]
    here = np.isfinite(norms)
    reach = int((here.sum(axis=0) >= max(1, len(known) / 2)).sum())
    common = here[:, :reach]
    total = np.where(common, norms[:, :reach], 0.0).sum(axis=0)
    means = [Estimate.geometric_mean(norms[common[:, k], k]) for k in range(reach)]
    with np.errstate(over="ignore"):
        return Memory(
            curve=np.exp(total / np.maximum(common.sum(axis=0), 1)),
            ci=ci_array(means),
            falls=np.array([c[:2] for c in crossings], np.float64).reshape(-1, 2),
            steps=float(np.median([c[0] for c in crossings])) if crossings else math.nan,
            time=float(np.median([c[1] for c in crossings])) if crossings else math.nan,
            unforgotten=float(np.mean([c[2] for c in crossings])) if crossings else math.nan,
            norms=np.exp(norms),
            elapsed=elapsed,
            sequences=len(known),
            non_finite=non_finite,
        )


def _crossing(logs: FloatArray, elapsed: FloatArray) -> tuple[float, float, bool]:
    """Return time steps and time until a curve from 0 reaches -1, and True if it never does."""
    length = int(np.isfinite(logs).sum()) - 1
    below = np.flatnonzero(logs[: length + 1] <= -1)
    if not below.size:
        return float(length), float(elapsed[length]), True
    k = int(below[0])
    # Exponential decay within a step, which is what leaky units have.
    share = (logs[k - 1] + 1) / (logs[k - 1] - logs[k])
    return (
        k - 1 + float(share),
        float(elapsed[k - 1] + share * (elapsed[k] - elapsed[k - 1])),
        False,
    )
