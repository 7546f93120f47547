"""Correlate maps, and estimate the reliability of the mean map of a batch."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from ..results import FloatArray

__all__ = ["cosine", "order_correlation", "rank_correlation", "split_half"]


def split_half(
    maps: FloatArray,
    real: npt.NDArray[np.bool_] | None = None,
    *,
    splits: int = 16,
    seed: int = 0,
) -> float:
    """Return the split-half reliability of the mean of ``(S, ...)`` maps.

    That is the correlation between the mean maps of two halves of the sequences, averaged over
    random splits and stepped up to all sequences by Spearman and Brown (1910). 1 means that other
    sequences would show the same map, 0 that the map is noise. Cells that are 0 in all maps, as
    they are after the target's time step, don't count, because all halves agree there.

    Args:
        maps: ``(S, ...)``, one map per sequence.
        real: ``(S, T)``, true at the time steps of a sequence. Means are over the sequences that
            have the time step; otherwise the number of these would be a pattern that halves share.
        splits: Number of random splits.
        seed: Seed of the splits.

    Returns:
        NaN for fewer than four sequences and for a map without variation.
    """
    count = len(maps)
    if count < 4 or maps[0].size < 2:
        return math.nan
    flat = np.asarray(maps, np.float64).reshape(count, -1)
    half = _halves(count, splits, seed)
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


@functools.lru_cache(maxsize=8)
def _halves(count: int, splits: int, seed: int) -> FloatArray:
    """Return ``(splits, count)`` random halves of the sequences, 1 for those in the first half."""
    rng = np.random.default_rng(seed)
    half = np.stack([rng.permutation(count) < count // 2 for _ in range(splits)]).astype(float)
    half.flags.writeable = False
    return half


def _centred(values: FloatArray, known: npt.NDArray[np.bool_]) -> FloatArray:
    """Return rows less their means over known elements, 0 elsewhere."""
    known_values = np.where(known, values, 0.0)
    mean = known_values.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1), 1)[:, None]
    centred: FloatArray = np.where(known, values - mean, 0.0)
    return centred


def cosine(a: FloatArray, b: FloatArray) -> float:
    """Return the cosine between two maps; NaN where one is all zeros."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else math.nan


def rank_correlation(a: FloatArray, b: FloatArray) -> float | None:
    """Return Spearman's rank correlation of the elements of two arrays.

    Returns:
        None for fewer than 3 elements, elements that are not finite, and for all elements equal.
    """
    from scipy import stats

    x, y = a.ravel(), b.ravel()
    if x.size < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    if (x == x[0]).all() or (y == y[0]).all():
        return None
    return float(stats.spearmanr(x, y).statistic)


def order_correlation(a: FloatArray, b: FloatArray) -> float | None:
    """Return the :func:`rank_correlation` of absolute maps, over the cells that are not 0 in both.

    Time steps after the target's, and padding, are 0 in any map of any model. Agreement there says
    nothing about either map.
    """
    x, y = np.abs(a).ravel(), np.abs(b).ravel()
    some = (x != 0) | (y != 0)
    return rank_correlation(x[some], y[some])
