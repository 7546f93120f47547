"""Measure the dynamics of a recurrent state: its units, its drift, and how long it remembers.

These functions take states ``(B, T, H)``::

    autocorrelation_times(states, time_delta=dt)        # one a unit
    corrected_participation_ratio(states)
    state_drift(states[real], first[real])              # .cka, .procrustes
    unit_correlations(states[:, -1], target_values)     # one a unit

These take the Jacobians ``(S, T-1, H, H)`` of the steps,
``jacobians[s, t] = d h_{t+1} / d h_t``::

    radius, norm = jacobian_gains(jacobians)
    lyapunov_exponents(jacobians, time_delta=dt)        # (S, 3), over the sequence
    stability_exponents(jacobians, time_delta=dt)       # (S,), without transient growth
    memory_horizon(jacobians, time_delta=dt).steps

``time_delta`` is ``(B, T)``, the elapsed time before each time step; without it, time is counted in
time steps. ``mask`` is ``(B, T)``, true at real time steps; values at padding have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...results import ArrayResult, FloatArray, MappingResult
from ...stats import SHARE, SIZE, Estimate, ci_array, t_quantile
from ..state_space.analysis import centred_for_estimates, participation_ratios_without_each

__all__ = [
    "AutocorrelationTimes",
    "Memory",
    "StateDrift",
    "TargetMemory",
    "UnitCorrelations",
    "autocorrelation_times",
    "corrected_participation_estimate",
    "corrected_participation_ratio",
    "gain_sequences",
    "jacobian_gains",
    "last_crossing",
    "last_steps_kept",
    "lyapunov_exponents",
    "memory_horizon",
    "stability_exponents",
    "state_drift",
    "target_memory",
    "unit_correlations",
]

BoolArray = npt.NDArray[np.bool_]

# Smallest factor per step that float32 Jacobians can represent.
SMALLEST = 1e-30
# Candidate autocorrelation times, and elapsed times of a lag that are compared with each.
_GRID, _MAX_TIMES = 96, 4096
# Groups of sequences for the jackknife.
_GROUPS = 16


# --- from states


@dataclass(frozen=True, eq=False)
class StateDrift(MappingResult):
    """Hold how far states are from those of an earlier snapshot, whatever their axes.

    Attributes:
        cka: Linear centred kernel alignment: 1 equal up to rotation, scale and offset, 0
            unrelated; the directions of largest variance count most. NaN for constant states.
            Biased up when samples are not many times the units: unrelated states of 64 units have
            .06 with 1,024 samples, .5 with 64.
        procrustes: Share of the variance that the best rotation or reflection, scale and offset do
            not explain, in [0, 1]: 0 equal. Directions of small variance count more than in
            ``1 - cka``. NaN for constant states.
        samples: Number of states.
        estimates: ``cka`` and ``procrustes`` as estimates over sequences; empty where it is unknown
            which sequence a sample belongs to.
    """

    cka: float
    procrustes: float
    samples: int
    estimates: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class UnitCorrelations(ArrayResult):
    """Hold the correlation of each unit with a target. As an array it is ``values``.

    Attributes:
        values: ``(H,)``, Pearson's r over sequences; NaN for units that are equal in all of them.
        chance: Threshold that the largest absolute r of all units exceeds with a probability of at
            most 5 % if no unit is related to the target (Bonferroni); 1 with fewer than three
            sequences.
        sequences: Number of sequences.
    """

    values: FloatArray
    chance: float
    sequences: int

    @property
    def _main(self) -> FloatArray:
        return self.values

    @property
    def top(self) -> int | None:
        """The unit with the largest absolute correlation; None where none has one."""
        known = np.isfinite(self.values)
        return int(np.argmax(np.where(known, np.abs(self.values), -1.0))) if known.any() else None


@dataclass(frozen=True, eq=False)
class AutocorrelationTimes(ArrayResult):
    """Hold the time in which each unit's autocorrelation decays to 1/e.

    As an array it is ``values``.

    Attributes:
        values: ``(H,)``, in units of ``time_delta`` or in time steps; NaN for units that are equal
            in all sequences.
        shortest: Shortest time that can be distinguished from 0, a twentieth of the median elapsed
            time of a step; shorter ones are 0.
        longest: Ten times the mean length of a sequence, which stands for "does not decay".
        without_each: ``(G, H)``, the values without each of at most 16 groups of sequences.
    """

    values: FloatArray
    shortest: float
    longest: float
    without_each: FloatArray

    @property
    def _main(self) -> FloatArray:
        return self.values

    def quantile_estimates(self, shares: Sequence[float]) -> list[Estimate]:
        """Return quantiles over the units that vary, as estimates over sequences."""
        known = np.isfinite(self.values)
        if not known.any():
            return [Estimate(math.nan, np.empty(0)) for _ in shares]
        values = np.quantile(self.values[known], shares)
        without_each = np.quantile(self.without_each[:, known], shares, axis=1)
        return [
            Estimate.jackknife(float(value), without, SIZE)
            for value, without in zip(values, without_each, strict=True)
        ]

    @property
    def undecayed(self) -> float:
        """Share of the units that vary whose autocorrelation doesn't decay; NaN without any."""
        known = self.values[np.isfinite(self.values)]
        return float((known >= self.longest).mean()) if known.size else math.nan


def corrected_participation_ratio(states: FloatArray, *, mask: np.ndarray | None = None) -> float:
    """Return the number of dimensions in use, ``(tr C)^2 / tr C^2``, without bias of few states.

    The plain participation ratio is biased low, the more so the longer states remember: 32
    independent units that keep 98 % each step show 13 of their 32 dimensions in 1,024 steps. Here
    both traces are U-statistics: only products of *different* sequences enter, which are
    independent however much a sequence depends on itself. The bias and the scatter of a ratio
    remain; with few sequences that scatter is large.

    Args:
        states: ``(B, T, H)``.
        mask: ``(B, T)``, true at real time steps.

    Returns:
        Between 1 and H; NaN for fewer than four sequences, constant states, and where by chance no
        variance is left that sequences share.

    Source: U-statistics for ``tr C^2`` with unknown mean, Chen, Zhang & Zhong 2010 (doi
    10.1198/jasa.2010.tm09560); here with the mean second moment of a sequence in place of the
    product of one sample.
    """
    states = np.asarray(states, np.float64)
    use = _real(mask, states.shape[:2]) & np.isfinite(states).all(axis=2)
    own = [h[u] for h, u in zip(states, use, strict=True) if u.any()]
    count = len(own)
    if count < 4:
        return math.nan
    total = sum(len(h) for h in own)
    grand = np.sum([h.sum(axis=0) for h in own], axis=0) / total
    largest = max(float(np.abs(h).max()) for h in own)
    own = [h - grand for h in own]
    variance = sum(float((h**2).sum()) for h in own) / total
    if variance <= states.shape[2] * (1e-7 * largest) ** 2:
        return math.nan
    mean_length = total / count
    v = np.stack([h.sum(axis=0) for h in own]) / mean_length
    t = np.array([(h**2).sum() for h in own]) / mean_length
    second = np.zeros((states.shape[2],) * 2)
    squares = crossed = inner = 0.0
    resultant = v.sum(axis=0)
    for h, mean in zip(own, v, strict=True):
        m = h.T @ h / mean_length
        second += m
        squares += float((m**2).sum())
        crossed += float((resultant - mean) @ m @ (resultant - mean))
        inner += float(mean @ m @ mean)
    gram = v @ v.T
    np.fill_diagonal(gram, 0.0)
    rows = gram.sum(axis=1)
    pairs, triples, quadruples = (math.perm(count, k) for k in (2, 3, 4))
    # Sums over different sequences, from sums over all by inclusion and exclusion.
    four = float(gram.sum() ** 2 - 4 * (rows**2).sum() + 2 * (gram**2).sum()) / quadruples
    moment = (float((second**2).sum()) - squares) / pairs
    between = crossed - float(((v @ second) * v).sum()) + inner
    trace_of_square = moment - 2 * between / triples + four
    traces = float(t.sum() ** 2 - (t**2).sum()) / pairs
    shift = float(t.sum() * gram.sum() - 2 * (t @ rows)) / triples
    square_of_trace = traces - 2 * shift + four
    if not (trace_of_square > 0 and square_of_trace > 0):
        return math.nan
    return float(np.clip(square_of_trace / trace_of_square, 1.0, states.shape[2]))


def corrected_participation_estimate(
    states: FloatArray, ratio: float, mask: np.ndarray | None = None
) -> Estimate:
    """Return :func:`corrected_participation_ratio` as an estimate over sequences.

    It takes the jackknife of the plain participation ratio: the two differ in bias, and chance
    moves both equally.

    Args:
        states: ``(B, T, H)``.
        ratio: The corrected participation ratio of these states.
        mask: ``(B, T)``, true at real time steps.
    """
    use = _real(mask, states.shape[:2]) & np.isfinite(states).all(axis=2)
    if not math.isfinite(ratio) or not use.any():
        return Estimate(ratio, np.empty(0))
    samples = states[use].astype(np.float64)
    centred = centred_for_estimates(samples - samples.mean(axis=0), use)
    without_each = participation_ratios_without_each(centred, use)
    # As relative errors, in which the bias of the plain one cancels.
    plain = math.exp(float(np.log(without_each).mean()))
    within = SIZE.within(1.0, float(states.shape[2]))
    return Estimate.jackknife(ratio, ratio * without_each / plain, within)


def autocorrelation_times(
    states: FloatArray, *, time_delta: FloatArray | None = None, mask: np.ndarray | None = None
) -> AutocorrelationTimes:
    """Return the time in which the autocorrelation of each unit decays to 1/e.

    It is the ``tau`` whose exponential ``exp(-lag / tau)`` fits the autocorrelation of up to half a
    sequence best, by least squares. Each lag in time steps is compared with the mean of the
    exponential over the elapsed times of these time steps. For a leaky integrator of white input
    the result is its time constant. This holds for irregular time steps too, for which sorting
    pairs of time steps into bins of elapsed time is biased.

    The mean over sequences at each time step is subtracted from each unit, so that a course that
    all sequences share does not count as memory. Only the earlier state normalises, so that a
    variance that still grows from the initial state has no effect.

    Args:
        states: ``(B, T, H)``.
        time_delta: ``(B, T)``, the elapsed time before each time step.
        mask: ``(B, T)``, true at real time steps.

    Raises:
        ValueError: For sequences of one step.
    """
    h = np.asarray(states, np.float64)
    batch, steps, width = h.shape
    if steps < 2:
        raise ValueError("the states have one step: pass sequences of at least two")
    real = _real(mask, (batch, steps))
    time = np.cumsum(_elapsed(time_delta, real), axis=1)
    use = real & np.isfinite(h).all(axis=2)
    h = np.where(use[..., None], h, 0.0)
    count = use.sum(axis=0)
    if batch > 1:
        mean = h.sum(axis=0) / np.maximum(count, 1)[:, None]
        use = use & (count > 1)
    else:
        mean = h.sum(axis=(0, 1), keepdims=True)[0] / max(1, int(count.sum()))
    rounding = 1e-6 * np.abs(h).max(axis=(0, 1))
    x = np.where(use[..., None], h - mean, 0.0)
    length = max((int(np.ptp(np.flatnonzero(u))) + 1 for u in use if u.any()), default=0)
    lags = [lag for lag in _spread_lags(length // 2) if (use[:, lag:] & use[:, :-lag]).any()]
    if not lags:
        nothing = np.full((2, width), np.nan)
        return AutocorrelationTimes(nothing[0], math.nan, math.nan, nothing[1:])
    both = [use[:, lag:] & use[:, :-lag] for lag in lags]
    took = [(time[:, lag:] - time[:, :-lag])[ok] for lag, ok in zip(lags, both, strict=True)]
    span = float(np.mean([np.ptp(t[u]) for t, u in zip(time, use, strict=True) if u.any()]))
    shortest = float(np.median(took[0])) / 20
    grid = np.geomspace(shortest, max(10 * span, 20 * shortest), _GRID)
    misfit, known = np.zeros((width, _GRID)), np.ones(width, bool)
    starts = np.unique(np.arange(min(batch, _GROUPS)) * batch // min(batch, _GROUPS))
    curves: list[FloatArray] = []
    models: list[FloatArray] = []
    for lag, ok, times in zip(lags, both, took, strict=True):
        before = np.where(ok[..., None], x[:, :-lag], 0.0)
        powers = np.einsum("bth,bth->bh", before, before)
        products = np.einsum("bth,bth->bh", before, x[:, lag:])
        power, product = powers.sum(axis=0), products.sum(axis=0)
        known &= power > ok.sum() * rounding**2
        less = power - np.add.reduceat(powers, starts, axis=0)
        part = product - np.add.reduceat(products, starts, axis=0)
        curve = np.divide(part, less, out=np.zeros_like(less), where=less > 0)
        found = product / np.where(known, power, 1.0)
        # A random choice: an even stride could pick the same steps of every sequence.
        if len(times) > _MAX_TIMES:
            times = np.random.default_rng(0).choice(times, _MAX_TIMES, replace=False)
        different, counts = np.unique(times, return_counts=True)
        expected = (counts / len(times)) @ np.exp(-different[:, None] / grid)
        misfit += ok.sum() * (found[:, None] - expected) ** 2
        models.append(math.sqrt(ok.sum()) * expected)
        curves.append(math.sqrt(ok.sum()) * curve)
    tau = _best(misfit, grid)
    # The sum of squares without its part that does not depend on the grid, as matrix products.
    fits = np.stack(models)
    misfits = (fits**2).sum(axis=0) - 2 * np.stack(curves, axis=-1) @ fits
    without_each = _best(misfits.reshape(-1, _GRID), grid).reshape(len(starts), width)
    return AutocorrelationTimes(
        np.where(known, tau, np.nan),
        shortest=float(grid[0]),
        longest=float(grid[-1]),
        without_each=np.where(known, without_each, np.nan),
    )


def _best(misfit: FloatArray, grid: FloatArray) -> FloatArray:
    """Return the places on the grid where ``(N, grid)`` misfits are smallest."""
    best = misfit.argmin(axis=1)
    inside = np.clip(best, 1, _GRID - 2)
    unit = np.arange(len(misfit))
    left, middle, right = (misfit[unit, inside + i] for i in (-1, 0, 1))
    # The minimum of the parabola through the three best.
    curvature = left - 2 * middle + right
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(curvature > 0, (left - right) / (2 * curvature), 0.0)
    tau = grid[inside] * (grid[1] / grid[0]) ** np.clip(shift, -0.5, 0.5)
    return np.where(best == 0, 0.0, np.where(best == _GRID - 1, grid[-1], tau))


def _spread_lags(longest: int) -> list[int]:
    """Return lags of 1, 2, 3, … time steps, growing by about a quarter where that exceeds one."""
    lags, lag = [], 1
    while lag <= max(1, longest):
        lags.append(lag)
        lag = max(lag + 1, round(1.25 * lag))
    return lags


def state_drift(
    now: FloatArray, before: FloatArray, sequence: npt.NDArray[np.integer[Any]] | None = None
) -> StateDrift:
    """Return how states differ from those of the same samples at an earlier snapshot.

    Samples that are not finite on either side are skipped. CIs come from derivatives with respect
    to the weight of a sequence.

    Args:
        now: ``(N, H)``.
        before: ``(N, H)``.
        sequence: ``(N,)``, the sequence that each sample belongs to; None for no estimates.

    Raises:
        ValueError: If the shapes can't be those of the same samples.

    Source: linear CKA, Kornblith et al. 2019 (arXiv:1905.00414); Procrustes distance as
    ``scipy.spatial.procrustes`` has it, with which it agrees.
    """
    if now.ndim != 2 or before.ndim != 2 or len(now) != len(before):
        raise ValueError(
            f"now has shape {now.shape} and before {before.shape}: pass the same samples as rows"
        )
    use = np.isfinite(now).all(axis=1) & np.isfinite(before).all(axis=1)
    x, y = (_centred(a[use]) for a in (now, before))
    samples = int(use.sum())
    if x is None or y is None:
        return StateDrift(math.nan, math.nan, samples)
    if samples < max(x.shape[1], y.shape[1]):
        # Rotations change nothing: in coordinates along the samples, matrices are N by N.
        x, y = _along_samples(x), _along_samples(y)
    cross = x.T @ y
    sizes = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    left, values, right = np.linalg.svd(cross)
    aligned, rank = float(values.sum()), len(values)
    cka = min(1.0, float((cross**2).sum() / sizes))
    procrustes = float(np.clip(1 - aligned**2, 0.0, 1.0))
    estimates: dict[str, Estimate] = {}
    if sequence is not None:
        there, owner = np.unique(np.asarray(sequence)[use], return_inverse=True)

        def summed(of_samples: FloatArray) -> FloatArray:
            total: FloatArray = np.bincount(owner, of_samples, len(there)).astype(np.float64)
            return len(there) * total

        shared = np.einsum("nh,hk,nk->n", x, cross, y, optimize=True) / (cross**2).sum()
        own = [np.einsum("nh,hk,nk->n", a, a.T @ a, a, optimize=True) for a in (x, y)]
        alone = sum(of / np.linalg.norm(a.T @ a) ** 2 for of, a in zip(own, (x, y), strict=True))
        turned = np.einsum("nh,nh->n", x @ (left[:, :rank] @ right[:rank]), y) / (aligned or 1.0)
        size = ((x**2).sum(axis=1) + (y**2).sum(axis=1)) / 2
        estimates = {
            "cka": Estimate.from_derivatives(cka, summed(cka * (2 * shared - alone)), SHARE),
            "procrustes": Estimate.from_derivatives(
                procrustes, summed(-2 * aligned**2 * (turned - size)), SHARE
            ),
        }
    return StateDrift(cka=cka, procrustes=procrustes, samples=samples, estimates=estimates)


def _centred(samples: FloatArray) -> npt.NDArray[np.float64] | None:
    """Return samples with mean 0 and Frobenius norm 1; None where all are equal."""
    x = samples.astype(np.float64)
    if not len(x):
        return None
    largest = float(np.abs(x).max())
    x = x - x.mean(axis=0)
    size = float(np.linalg.norm(x))
    return x / size if size > 1e-7 * largest * math.sqrt(x.size) else None


def _along_samples(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the samples ``(N, H)``, rotated to ``(N, N)`` if there are more units than samples."""
    return x if x.shape[1] <= len(x) else np.linalg.qr(x.T)[1].T


def unit_correlations(states: FloatArray, target_values: FloatArray) -> UnitCorrelations:
    """Return the correlation of each unit with the target over sequences.

    Sequences with NaN or infinity are skipped.

    Args:
        states: ``(B, H)``.
        target_values: ``(B,)``.

    Source: neurons against the output, Lechner et al. 2020, extended data figure 1 (doi
    10.1038/s42256-020-00237-3), there along time and by eye.
    """
    use = np.isfinite(states).all(axis=1) & np.isfinite(target_values)
    h, y = states[use].astype(np.float64), target_values[use].astype(np.float64)
    count, width = h.shape
    values = np.full(width, np.nan)
    if count >= 2 and width:
        largest = np.abs(h).max(axis=0), float(np.abs(y).max())
        h, y = h - h.mean(axis=0), y - y.mean()
        spread, scatter = np.sqrt((h**2).sum(axis=0)), math.sqrt(float((y**2).sum()))
        known = spread > 1e-6 * math.sqrt(count) * largest[0]
        if scatter > 1e-6 * math.sqrt(count) * largest[1]:
            r = (h * y[:, None]).sum(axis=0) / np.where(known, spread * scatter, 1.0)
            values = np.where(known, np.clip(r, -1.0, 1.0), np.nan)
    chance = 1.0
    tested = int(np.isfinite(values).sum())
    if count >= 3 and tested:
        t = t_quantile(1 - 0.025 / tested, count - 2)
        chance = t / math.sqrt(count - 2 + t * t)
    return UnitCorrelations(values=values, chance=chance, sequences=count)


# --- from Jacobians


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


def jacobian_gains(
    jacobians: FloatArray, *, mask: np.ndarray | None = None, max_steps: int | None = 64
) -> tuple[FloatArray, FloatArray]:
    """Return spectral radius and operator norm of single steps.

    With a radius above 1, changes along some direction could grow; with a norm above 1, some grow
    in this step. A norm far above the radius means that the Jacobian is far from normal.

    Args:
        jacobians: ``(S, T-1, H, H)``.
        mask: ``(S, T)``, true at real time steps.
        max_steps: Largest number of steps that are analysed, chosen at random and always the same;
            None for all. Eigenvalues of one step cost about ``25 H^3``.

    Returns:
        ``(N,)`` and ``(N,)``, without steps that hold NaN or infinity.
    """
    jacobians = _checked(jacobians)
    steps = jacobians[_analysed(jacobians, mask, max_steps)].astype(np.float64)
    if not steps.size:
        return np.empty(0), np.empty(0)
    radius = np.abs(np.linalg.eigvals(steps)).max(axis=1)
    # The eigenvalues of J'J, several times cheaper than the singular values of J.
    norm = np.sqrt(np.maximum(np.linalg.eigvalsh(steps.transpose(0, 2, 1) @ steps)[:, -1], 0.0))
    return radius, norm


def gain_sequences(
    jacobians: FloatArray, *, mask: np.ndarray | None = None, max_steps: int | None = 64
) -> npt.NDArray[np.intp]:
    """Return the sequence of each step of :func:`jacobian_gains`, ``(N,)``.

    Args:
        jacobians: See :func:`jacobian_gains`.
        mask: See :func:`jacobian_gains`.
        max_steps: See :func:`jacobian_gains`.
    """
    return _analysed(_checked(jacobians), mask, max_steps)[0]


def _analysed(
    jacobians: FloatArray, mask: np.ndarray | None, max_steps: int | None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return sequences and steps that are analysed."""
    sequence, step = np.nonzero(real_steps(mask, jacobians.shape)[1])
    if max_steps is not None and len(step) > max_steps:
        some = np.sort(np.random.default_rng(0).choice(len(step), max_steps, replace=False))
        sequence, step = sequence[some], step[some]
    finite = np.isfinite(jacobians[sequence, step]).all(axis=(1, 2))
    return sequence[finite], step[finite]


def lyapunov_exponents(
    jacobians: FloatArray,
    *,
    time_delta: FloatArray | None = None,
    mask: np.ndarray | None = None,
    count: int = 3,
) -> FloatArray:
    """Return the largest finite-time Lyapunov exponents of each sequence.

    They are the logarithms of the singular values of the product of all steps, over its elapsed
    time. The largest is the rate at which the fastest growing change has grown, and the sum of all
    is the rate of volumes. Over few steps it can be above 0 where every change fades in the long
    run; :func:`stability_exponents` has no such transient.

    The product itself would overflow or lose all but the largest. Instead a frame of orthonormal
    directions is carried through the steps and made orthonormal again at each, by QR. It goes from
    the end back to the start through the transposed steps and forward again, until it is the frame
    of the directions that grow most.

    Args:
        jacobians: ``(S, T-1, H, H)``.
        time_delta: ``(S, T)``, the elapsed time before each time step.
        mask: ``(S, T)``, true at real time steps.
        count: Number of exponents.

    Returns:
        ``(S, min(count, H))``, decreasing, in 1 / unit of ``time_delta`` or per time step; NaN for
        sequences without two real time steps and those with NaN or infinity. A change that vanishes
        altogether counts as a factor of 1e-30 per step.

    Raises:
        ValueError: For shapes that don't fit, and ``count`` below 1.

    Source: Benettin et al. 1980 (doi 10.1007/BF02128236).
    """
    if count < 1:
        raise ValueError(f"count={count}: pass the number of exponents, at least 1")
    jacobians = _checked(jacobians)
    width = jacobians.shape[-1]
    count = min(count, width)

    def logs(valid: BoolArray) -> FloatArray:
        found = np.full((len(valid), count), np.nan)
        known = ~_broken(jacobians, valid).any(axis=1)
        steps = jacobians[known]

        def apply(t: int, frame: FloatArray, forward: bool) -> FloatArray:
            step = steps[:, t].astype(np.float64)
            moved: FloatArray = (step if forward else step.transpose(0, 2, 1)) @ frame
            return moved

        if known.any():
            found[known] = log_singular_values(apply, valid[known], width, count, tolerance=1e-7)
        return found

    return exponents_of(logs, jacobians.shape, time_delta, mask, count)


def stability_exponents(
    jacobians: FloatArray, *, time_delta: FloatArray | None = None, mask: np.ndarray | None = None
) -> FloatArray:
    """Return the stability exponent of each sequence: its growth rate without the transient.

    It is the logarithm of the spectral radius of the product of all steps, over its elapsed time:
    the rate at which changes would grow if the sequence went on repeating. The norm of the product,
    whose rate is the finite-time Lyapunov exponent, also holds growth that doesn't last: a map
    ``[[.9, 5], [0, .9]]`` contracts at ``log .9`` per step, but over 8 steps its largest singular
    value grows. The spectral radius depends on no coordinates and has no such part.

    Args:
        jacobians: ``(S, T-1, H, H)``.
        time_delta: ``(S, T)``, the elapsed time before each time step.
        mask: ``(S, T)``, true at real time steps.

    Returns:
        ``(S,)``, in 1 / unit of ``time_delta`` or per time step; NaN as for
        :func:`lyapunov_exponents`. It is at most the largest finite-time exponent.

    Raises:
        ValueError: For shapes that don't fit.

    Source: Goldhirsch, Sulem & Orszag 1987 (doi 10.1016/0167-2789(87)90034-0).
    """
    jacobians = _checked(jacobians)
    width = jacobians.shape[-1]

    def logs(valid: BoolArray) -> FloatArray:
        found = np.full((len(valid), 1), np.nan)
        known = ~_broken(jacobians, valid).any(axis=1)
        steps = jacobians[known]
        if known.any():

            def apply(t: int, frame: FloatArray) -> FloatArray:
                moved: FloatArray = steps[:, t].astype(np.float64) @ frame
                return moved

            found[known, 0] = log_spectral_radius(apply, valid[known], width, width)
        return found

    return exponents_of(logs, jacobians.shape, time_delta, mask, 1)[:, 0]


def log_spectral_radius(
    apply: Callable[[int, FloatArray], FloatArray],
    valid: BoolArray,
    width: int,
    count: int,
    passes: int = 2,
) -> npt.NDArray[np.float64]:
    """Return the logarithm of the spectral radius of a product, ``(S,)``.

    A frame is carried through the product repeatedly and made orthonormal at each step. Within the
    frame, the product is ``Q_0' Q_T R``, with the triangle ``R`` of all steps.

    Args:
        apply: Takes a step and a frame ``(S, H, count)``, and returns the frame after the step.
        valid: ``(S, T-1)``, true at the steps that count.
        width: ``H``.
        count: Number of directions in the frame; exact for ``H``.
        passes: Number of times that the frame is carried through the product.
    """
    sequences, steps = valid.shape
    start = np.linalg.qr(np.random.default_rng(0).standard_normal((width, count)))[0]
    frame = np.broadcast_to(start, (sequences, width, count))
    broken = np.zeros(sequences, bool)
    for _ in range(passes):
        first, scale = frame, np.zeros(sequences)
        whole = np.broadcast_to(np.eye(count), (sequences, count, count))
        for t in range(steps):
            moved = np.where(valid[:, t, None, None], apply(t, frame), frame)
            finite = np.asarray(np.isfinite(moved).all(axis=(1, 2)))
            broken |= ~finite
            frame, triangle = np.linalg.qr(np.where(finite[:, None, None], moved, frame))
            whole = triangle @ whole
            size = np.maximum(np.linalg.norm(whole, axis=(1, 2)), SMALLEST)
            whole, scale = whole / size[:, None, None], scale + np.log(size)
    within = first.transpose(0, 2, 1) @ frame @ whole
    radius = np.abs(np.linalg.eigvals(within)).max(axis=1)
    # A product that vanishes altogether counts as a factor of 1e-30 per step.
    least = valid.sum(axis=1) * math.log(SMALLEST)
    logs = np.maximum(np.log(np.maximum(radius, np.finfo(float).tiny)) + scale, least)
    return np.where(broken, np.nan, logs)


def exponents_of(
    logs: Callable[[BoolArray], FloatArray],
    shape: tuple[int, ...],
    time_delta: FloatArray | None,
    mask: np.ndarray | None,
    count: int,
) -> FloatArray:
    """Return exponents from logarithms of singular values, ``(S, count)``; NaN without real steps.

    Args:
        logs: Returns the logarithms ``(S, count)`` of the steps that are real, ``(S, T-1)``.
        shape: Shape of the Jacobians.
        time_delta: See :func:`lyapunov_exponents`.
        mask: See :func:`lyapunov_exponents`.
        count: See :func:`lyapunov_exponents`.
    """
    real, valid = real_steps(mask, shape)
    took = (valid * _elapsed(time_delta, real)[:, 1:]).sum(axis=1)
    result = np.full((shape[0], count), np.nan)
    known = valid.any(axis=1)
    if known.any():
        found = logs(valid)
        result[known] = found[known] / took[known, None]
    return result


def log_singular_values(
    apply: Callable[[int, FloatArray, bool], FloatArray],
    valid: BoolArray,
    width: int,
    count: int,
    *,
    tolerance: float,
    needed: int | None = None,
) -> npt.NDArray[np.float64]:
    """Return logarithms of the largest singular values of a product, ``(S, count)``, decreasing.

    They are NaN for sequences in which a factor is not finite.

    Args:
        apply: Takes a step, a frame ``(S, H, count)`` and True, and returns the frame after the
            step; with False it returns the product of the transposed step with the frame.
        valid: ``(S, T-1)``, true at the steps that count.
        width: ``H``.
        count: Number of directions in the frame.
        tolerance: Relative change of the logarithms at which they have converged.
        needed: Number of the largest that must converge, computed within the frame; None for all,
            computed from the lengths of the frame's directions.
    """
    sequences, steps = valid.shape
    broken = np.zeros(sequences, bool)
    start = np.linalg.qr(np.random.default_rng(0).standard_normal((width, count)))[0]
    frame = np.broadcast_to(start, (sequences, width, count))

    def carry(
        frame: npt.NDArray[np.float64], order: range, forward: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        logs = np.zeros((sequences, count))
        whole, scale = (
            np.broadcast_to(np.eye(count), (sequences, count, count)),
            np.zeros(sequences),
        )
        for t in order:
            use = valid[:, t, None, None]
            moved = np.where(use, apply(t, frame, forward), frame)
            finite = np.asarray(np.isfinite(moved).all(axis=(1, 2)))
            broken[~finite] = True
            frame, triangle = np.linalg.qr(np.where(finite[:, None, None], moved, frame))
            grown = np.abs(np.diagonal(triangle, axis1=1, axis2=2))
            logs += np.where(use[..., 0], np.log(np.maximum(grown, SMALLEST)), 0.0)
            if needed is not None:
                whole = triangle @ whole
                size = np.maximum(np.linalg.norm(whole, axis=(1, 2)), SMALLEST)
                whole, scale = whole / size[:, None, None], scale + np.log(size)
        if needed is not None and forward:
            # Within the frame the leading ones are exact, long before its directions converge.
            inside = np.linalg.svd(whole, compute_uv=False)
            use = inside > 1e-10 * inside[:, :1]
            logs = np.where(use, np.log(np.maximum(inside, SMALLEST)) + scale[:, None], logs)
        return frame, logs

    logs = np.zeros((sequences, count))
    for _ in range(12):
        frame, _ = carry(frame, range(steps - 1, -1, -1), False)
        frame, new = carry(frame, range(steps), True)
        change, largest = np.abs(new - logs)[:, :needed], np.abs(new)[:, :needed]
        final = change.max() < tolerance * max(1.0, float(largest.max()))
        logs = new
        if final:
            break
    logs[broken] = np.nan
    return -np.sort(-logs, axis=1)


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
    jacobians = _checked(jacobians)
    sequences, steps, width, _ = jacobians.shape
    real, valid = real_steps(mask, jacobians.shape)
    dt, last = elapsed_within(time_delta, real)
    broken = _broken(jacobians, valid)
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


# --- shared by these


def _real(mask: np.ndarray | None, shape: tuple[int, ...]) -> BoolArray:
    real = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
    if real.shape != shape:
        raise ValueError(f"mask has shape {real.shape}: pass {shape}, one value for each time step")
    return real


def _elapsed(time_delta: FloatArray | None, use: BoolArray) -> npt.NDArray[np.float64]:
    """Return elapsed times, ``(B, T)``, with 0 at padding."""
    if time_delta is None:
        return use.astype(np.float64)
    if time_delta.shape != use.shape:
        raise ValueError(
            f"time_delta has shape {time_delta.shape}: pass {use.shape}, the elapsed time before "
            "each time step"
        )
    return np.where(use, time_delta, 0.0).astype(np.float64)


def _checked(jacobians: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(jacobians)
    if array.ndim != 4 or array.shape[2] != array.shape[3] or 0 in array.shape:
        raise ValueError(
            f"jacobians have shape {array.shape}: pass (sequences, time steps - 1, units, units)"
        )
    return array


def real_steps(mask: np.ndarray | None, shape: tuple[int, ...]) -> tuple[BoolArray, BoolArray]:
    """Return masks of real time steps ``(S, T)`` and of Jacobians between two, ``(S, T-1)``."""
    real = _real(mask, (shape[0], shape[1] + 1))
    return real, real[:, 1:] & real[:, :-1]


def elapsed_within(
    time_delta: FloatArray | None, real: BoolArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return ``(S, T)`` elapsed times and ``(S,)`` the last real time step of each sequence."""
    last = real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
    return _elapsed(time_delta, real), last


def _broken(jacobians: FloatArray, valid: BoolArray) -> BoolArray:
    return valid & ~np.isfinite(jacobians).all(axis=(2, 3))
