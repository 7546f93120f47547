"""How alike two maps, rankings and histograms are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..analysis.uncertainty import rank_correlation
from .reader import Binned

__all__ = ["rank_correlation", "shift", "top_overlap", "wasserstein", "wasserstein_binned"]

FloatArray = npt.NDArray[np.float64]


def top_overlap(a: FloatArray, b: FloatArray, k: int) -> float | None:
    """Share of the ``k`` largest values of ``a`` that are among the ``k`` largest of ``b``.

    Returns:
        None where all are among them, or values are not finite.
    """
    x, y = a.ravel(), b.ravel()
    if x.size <= k or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    largest = [set(np.argsort(-v, kind="stable")[:k].tolist()) for v in (x, y)]
    return len(largest[0] & largest[1]) / k


def shift(a: FloatArray, b: FloatArray) -> float | None:
    """Half the L1 difference of two maps, each over its own L1 norm.

    Of maps without signs, what share of one must move to make the other (the total variation
    distance): 0 the same, 1 nothing in common. Signed maps are 1 apart when opposite, too.

    Returns:
        None where a map is all zeros or not finite.
    """
    sizes = float(np.abs(a).sum()), float(np.abs(b).sum())
    if not (0 < sizes[0] < np.inf and 0 < sizes[1] < np.inf):
        return None
    return 0.5 * float(np.abs(a / sizes[0] - b / sizes[1]).sum())


def wasserstein(a: FloatArray, b: FloatArray) -> float | None:
    """W1 between the values of two samples; None where one is empty or not finite."""
    return wasserstein_binned(*(Binned(v, v, np.ones(v.size)) for v in (np.sort(a), np.sort(b))))


def wasserstein_binned(a: Binned, b: Binned) -> float | None:
    """W1, how far counts must be moved on average to make one histogram the other.

    In units of the values, with counts spread evenly over their bins. It is the area between the
    quantile functions, which are straight within bins.

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
