"""Measure states: time constants of units, drift, dimension and relation to the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ....results import ArrayResult, FloatArray, MappingResult
from ....stats import SHARE, SIZE, Estimate, t_quantile
from ...state_space.analysis import centred_for_estimates, participation_ratios_without_each
from .arguments import as_elapsed, as_mask

__all__ = [
    "AutocorrelationTimes",
    "StateDrift",
    "UnitCorrelations",
    "autocorrelation_times",
    "corrected_participation_estimate",
    "corrected_participation_ratio",
    "state_drift",
    "unit_correlations",
]

# Candidate autocorrelation times, and elapsed times of a lag that are compared with each.
_GRID, _MAX_TIMES = 96, 4096
# Groups of sequences for the jackknife.
_GROUPS = 16


@dataclass(frozen=True, eq=False)
class StateDrift(MappingResult):
    """Hold how far states are from those of an earlier snapshot, whatever their axes.

    Attributes:
        cka: Linear centred kernel alignment: 1 if equal up to rotation, scale and offset, 0 if
            unrelated; the directions of largest variance count most. NaN for constant states.
            Biased up when samples are not many times the units: unrelated states of 64 units have
            .06 with 1,024 samples, .5 with 64.
        procrustes: Share of the variance that the best rotation or reflection, scale and offset do
            not explain, in [0, 1]: 0 if equal. Directions of small variance count more than in
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
    def top(self) -> int | None:
        """Return the unit with the largest absolute correlation; None if none has one."""
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
        """Return the share of varying units whose autocorrelation doesn't decay; NaN for none."""
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
    use = as_mask(mask, states.shape[:2]) & np.isfinite(states).all(axis=2)
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
    use = as_mask(mask, states.shape[:2]) & np.isfinite(states).all(axis=2)
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
        raise ValueError("the states have one time step: pass sequences of at least two")
    real = as_mask(mask, (batch, steps))
    time = np.cumsum(as_elapsed(time_delta, real), axis=1)
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
