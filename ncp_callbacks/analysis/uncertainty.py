"""How sure a mean over sequences is, and how far a map can be relied on.

    low, high = mean_interval(per_sequence)       # 95 %, Student's t
    low, high = share_interval(parts)             # of shares of a total
    split_half(maps)                              # would another half of the batch say the same?

Sequences are what is independent; cells of one sequence are not, and intervals that treat them so
cover the truth less than half as often as they claim. Below :data:`FEW` sequences intervals are
indicative: with skewed values they still cover it too rarely.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from .results import FloatArray

__all__ = [
    "FEW",
    "cosine",
    "mean_interval",
    "order_correlation",
    "rank_correlation",
    "rms_interval",
    "share_interval",
    "split_half",
    "t_quantile",
]

FEW = 16


def mean_interval(values: FloatArray, level: float = 0.95) -> FloatArray:
    """``(2, ...)``, Student's t interval for the mean of ``(S, ...)`` over sequences.

    NaN for fewer than two sequences.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    if count < 2:
        return np.full((2, *values.shape[1:]), np.nan)
    half = t_quantile((1 + level) / 2, count - 1) * values.std(axis=0, ddof=1) / math.sqrt(count)
    mean = values.mean(axis=0)
    return np.stack([mean - half, mean + half])


def share_interval(parts: FloatArray, level: float = 0.95) -> FloatArray:
    """``(2, F)``, intervals for the shares ``sum_s parts / sum_sf parts`` of ``(S, F)``.

    A share is a ratio of two means over the same sequences; its standard error is that of the
    residuals ``parts - share * total`` over the mean total (Cochran 1977, 6.3), with Student's t.
    Cut to [0, 1]; NaN for fewer than two sequences or a total of 0.
    """
    parts = np.asarray(parts, np.float64)
    count, total = len(parts), parts.sum(axis=1)
    if count < 2 or not total.sum() > 0:
        return np.full((2, parts.shape[1]), np.nan)
    share = parts.sum(axis=0) / total.sum()
    residual = (parts - share * total[:, None]) / total.mean()
    half = t_quantile((1 + level) / 2, count - 1) * residual.std(axis=0, ddof=1) / math.sqrt(count)
    bounds: FloatArray = np.clip(np.stack([share - half, share + half]), 0.0, 1.0)
    return bounds


def rms_interval(
    values: FloatArray, unit: FloatArray | None = None, level: float = 0.95
) -> FloatArray:
    """``(2, ...)``, interval for the root mean square of ``(S, ...)`` over sequences.

    Symmetric in the logarithm, by the delta method with Student's t. An RMS of 0 has [0, 0]; NaN
    for fewer than two sequences.

    Args:
        unit: ``(S, ...)``, with lengths of 1 or those of ``values``. Where values are in units of
            the RMS of these, of the same sequences: that is as uncertain, and what both have in
            common cancels (Cochran 1977, 6.3).
        level: Of confidence.
    """
    squares = np.asarray(values, np.float64) ** 2
    count, mean = len(squares), squares.sum(axis=0) / max(1, len(squares))
    if count < 2:
        return np.full((2, *squares.shape[1:]), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        effects = squares / mean
        if unit is not None:
            units = np.asarray(unit, np.float64) ** 2
            effects = effects - units / units.mean(axis=0)
        # Half of the relative error of the mean square.
        error = effects.std(axis=0, ddof=1) / (2 * math.sqrt(count))
        size = np.minimum(t_quantile((1 + level) / 2, count - 1) * error, 300.0)
        ends = np.sqrt(mean) * np.exp(np.stack([-size, size]))
    bounds: FloatArray = np.where(mean == 0, 0.0, ends)
    return bounds


def split_half(
    maps: FloatArray,
    real: npt.NDArray[np.bool_] | None = None,
    *,
    splits: int = 16,
    seed: int = 0,
) -> float:
    """Reliability of the mean of ``(S, ...)`` maps: would other sequences have given the same?

    Correlation between the means of two halves, averaged over random splits (always the same) and
    stepped up to the whole by Spearman and Brown (1910): 1 the same map, 0 noise. NaN for fewer
    than four sequences or a map without variation. What is 0 in all of them, as it is after the
    target's step, doesn't count: all halves agree there, whatever the map is worth.

    Args:
        maps: One for each sequence.
        real: ``(S, T)``, which steps a sequence has: a mean is over those that have the step. How
            many have it would else be a pattern that all halves share.
        splits: How many.
        seed: Of the splits.
    """
    count = len(maps)
    if count < 4 or maps[0].size < 2:
        return math.nan
    flat = np.asarray(maps, np.float64).reshape(count, -1)
    rng = np.random.default_rng(seed)
    half = np.stack([rng.permutation(count) < count // 2 for _ in range(splits)]).astype(float)
    there = np.ones(flat.shape)
    if real is not None:
        shape = (*real.shape, *[1] * (maps.ndim - real.ndim))
        there = np.broadcast_to(real.reshape(shape), maps.shape).reshape(flat.shape).astype(float)
    flat = flat * there
    some = (flat != 0).any(axis=0)
    flat, there = flat[:, some], there[:, some]
    if flat.shape[1] < 2:
        return math.nan
    first, size = half @ flat, half @ there
    second, rest = flat.sum(axis=0) - first, there.sum(axis=0) - size
    both = (size > 0) & (rest > 0)
    a, b = (
        _centred(total / np.maximum(number, 1), both)
        for total, number in ((first, size), (second, rest))
    )
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    if not (norm > 0).all():
        return math.nan
    r = float(((a * b).sum(axis=1) / norm).mean())
    return 2 * r / (1 + r) if r > 0 else r


def _centred(values: FloatArray, known: npt.NDArray[np.bool_]) -> FloatArray:
    """Rows less their means over what is known, 0 elsewhere."""
    known_values = np.where(known, values, 0.0)
    mean = known_values.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1), 1)[:, None]
    centred: FloatArray = np.where(known, values - mean, 0.0)
    return centred


def cosine(a: FloatArray, b: FloatArray) -> float:
    """Cosine between two maps: 1 the same up to a factor; NaN where one is all zeros."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else math.nan


def rank_correlation(a: FloatArray, b: FloatArray) -> float | None:
    """Spearman's: 1 the same order, 0 unrelated, -1 the opposite; ties get their mean rank.

    Returns:
        None for fewer than 3 values, values that are not finite, and for all values the same.
    """
    x, y = a.ravel(), b.ravel()
    if x.size < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    ranks = [_ranks(v) - (v.size + 1) / 2 for v in (x, y)]
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / size if size > 0 else None


def order_correlation(a: FloatArray, b: FloatArray) -> float | None:
    """:func:`rank_correlation` of absolute maps, over the cells that are not 0 in both.

    Steps after the target's, and what no sequence has, are 0 in any map of any model: that two maps
    agree there says nothing of either.
    """
    x, y = np.abs(a).ravel(), np.abs(b).ravel()
    some = (x != 0) | (y != 0)
    return rank_correlation(x[some], y[some])


def _ranks(values: FloatArray) -> npt.NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = count.cumsum()
    ranks: npt.NDArray[np.float64] = (last - (count - 1) / 2)[place.reshape(-1)]
    return ranks


@functools.lru_cache(maxsize=1024)
def t_quantile(p: float, freedom: float) -> float:
    """Quantile above 1/2 of Student's t, by bisection."""
    low, high = 0.0, 1.0
    while _t_tail(high, freedom) > 1 - p:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        if _t_tail(middle, freedom) > 1 - p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_tail(t: float, freedom: float) -> float:
    """Probability that Student's t is above ``t >= 0``."""
    return 0.5 * _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function, by its continued fraction (DLMF 8.17.22)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # Where the fraction converges slowly.
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    # Lentz's method; a zero denominator would end it.
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction
