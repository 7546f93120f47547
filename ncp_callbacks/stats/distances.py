"""Measure how alike two maps, rankings and histograms are."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..results import FloatArray

__all__ = [
    "Counts",
    "debiased_cka",
    "shift",
    "top_overlap",
    "wasserstein",
    "wasserstein_binned",
]


class Counts(Protocol):
    """Hold counts of values between the edges of bins, ``(N,)`` each."""

    @property
    def left(self) -> npt.NDArray[np.float64]: ...
    @property
    def right(self) -> npt.NDArray[np.float64]: ...
    @property
    def counts(self) -> npt.NDArray[np.float64]: ...


def top_overlap(a: FloatArray, b: FloatArray, k: int) -> float | None:
    """Return the share of the ``k`` largest values of ``a`` among the ``k`` largest of ``b``.

    Returns:
        None where all are among them, or values are not finite.
    """
    x, y = a.ravel(), b.ravel()
    if x.size <= k or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    largest = [set(np.argsort(-v, kind="stable")[:k].tolist()) for v in (x, y)]
    return len(largest[0] & largest[1]) / k


def shift(a: FloatArray, b: FloatArray) -> float | None:
    """Return half the L1 difference of two maps, each over its own L1 norm.

    For maps without signs this is the total variation distance, the share of one that must move to
    make the other: 0 for equal maps, 1 for maps with nothing in common. Opposite signed maps are 1
    apart, too.

    Returns:
        None where a map is all zeros or not finite.
    """
    sizes = float(np.abs(a).sum()), float(np.abs(b).sum())
    if not (0 < sizes[0] < np.inf and 0 < sizes[1] < np.inf):
        return None
    return 0.5 * float(np.abs(a / sizes[0] - b / sizes[1]).sum())


def debiased_cka(a: FloatArray, b: FloatArray) -> float | None:
    """Return the linear centred kernel alignment of states ``(N, H)`` and ``(N, K)``.

    Both are the states at ``N`` places of the batch.

    It is 1 for states that are equal up to rotation, order of units, scale and offset, 0 on average
    for unrelated states, and at least -1. The usual CKA of few places against the number of units
    is near 1 even for unrelated states: at 64 places and 64 units it is about 0.5, and with more
    units it is higher. Here its HSIC is replaced by the unbiased estimator,
    ``<K~, L~> / (n (n - 3))`` of U-centred Gram matrices. The estimator assumes independent places;
    those of one sequence are not.

    Places that are not finite on either side are skipped.

    Returns:
        None with fewer than 4 places, or where all states of a side are equal.

    Source: Nguyen et al. 2021 (arXiv:2010.15327), equation 3, with the estimator of Song et al.
    2012 (JMLR 13, 1393-1434) in the form of Székely & Rizzo 2014 (arXiv:1310.2926).
    """
    use = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    if use.sum() < 4:
        return None
    grams = [_u_centred(v[use].astype(np.float64)) for v in (a, b)]
    if grams[0] is None or grams[1] is None:
        return None
    return float((grams[0] * grams[1]).sum())


def _u_centred(states: FloatArray) -> FloatArray | None:
    """Return the Gram matrix of ``(n, H)`` states, U-centred and with Frobenius norm 1."""
    n, largest = len(states), float(np.abs(states).max(initial=0.0))
    x = states - states.mean(axis=0)  # which changes nothing but rounding
    size = float(np.linalg.norm(x))
    # Below this, differences between states are rounding errors of float32.
    if size <= 1e-7 * largest * math.sqrt(x.size):
        return None
    gram = (x / size) @ (x / size).T
    np.fill_diagonal(gram, 0.0)
    rows = gram.sum(axis=0) / (n - 2)
    gram = gram - rows - rows[:, None] + gram.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0.0)
    norm = float(np.linalg.norm(gram))
    return gram / norm if norm > 1e-12 else None


def wasserstein(a: FloatArray, b: FloatArray) -> float | None:
    """Return W1 between the values of two samples; None where one is empty or not finite."""
    from scipy import stats

    if not (a.size and b.size and np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    return float(stats.wasserstein_distance(a, b))


def wasserstein_binned(a: Counts, b: Counts) -> float | None:
    """Return W1: how far counts must be moved on average to make one histogram the other.

    It is in units of the values, with counts spread evenly over their bins: the area between the
    quantile functions, which are straight within bins. SciPy has it for samples only.

    Returns:
        None where one has no counts, or not finite ones.
    """
    levels, quantiles = [], []
    for histogram in (a, b):
        filled = histogram.counts > 0
        total = float(histogram.counts.sum())
        edges = histogram.left[filled], histogram.right[filled]
        if not (0 < total < np.inf and np.isfinite(edges).all()):
            return None
        level = histogram.counts[filled].cumsum() / total
        level[-1] = 1.0
        levels.append(level)
        quantiles.append((np.concatenate([[0.0], level[:-1]]), level, *edges))
    cuts = np.unique(np.concatenate([[0.0], *levels]))
    middles = (cuts[:-1] + cuts[1:]) / 2
    ends = []
    for low, high, left, right in quantiles:
        bins = np.minimum(np.searchsorted(high, middles), high.size - 1)
        slope = (right - left)[bins] / (high - low)[bins]
        ends.append([left[bins] + (cut - low[bins]) * slope for cut in (cuts[:-1], cuts[1:])])
    at_start, at_end = (ends[0][i] - ends[1][i] for i in range(2))
    # A line that crosses zero leaves two triangles.
    size = np.abs(at_start) + np.abs(at_end)
    crossing = at_start * at_end < 0
    triangles = (at_start**2 + at_end**2) / (2 * np.where(size > 0, size, 1.0))
    return float(((cuts[1:] - cuts[:-1]) * np.where(crossing, triangles, size / 2)).sum())
