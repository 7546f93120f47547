"""Estimate quantiles of values when each sequence has many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from .estimate import SIZE, Estimate, t_quantile

__all__ = ["places_without_each", "quantile_estimates"]


def quantile_estimates(
    values: FloatArray, sequence: npt.NDArray[np.integer[Any]], shares: Sequence[float]
) -> list[Estimate]:
    """Return quantiles of ``(N,)`` values.

    The CI is that of Woodruff 1952: the share of values up to the quantile is a mean over
    sequences; its CI is turned back into values. Infinity is larger than all others.

    Args:
        values: ``(N,)``, without NaN.
        sequence: ``(N,)``, the sequence that each value belongs to.
        shares: The quantiles to compute, in [0, 1].
    """
    order = np.argsort(values, kind="stable")
    ordered, owner = np.asarray(values, np.float64)[order], np.asarray(sequence)[order]
    there, owner = np.unique(owner, return_inverse=True)
    count, total = len(there), len(ordered)
    if not total:
        return [Estimate(math.nan, np.empty(0), SIZE) for _ in shares]
    size = np.bincount(owner, minlength=count).astype(np.float64)
    places = places_without_each(owner, count, shares) if count > 1 else []
    found = []
    for number, share in enumerate(shares):
        value = float(_quantile_of_ordered(ordered, share))
        if count < 2 or not math.isfinite(value):
            found.append(Estimate(value, np.empty(0), SIZE))
            continue
        # Those up to the quantile's own place; of equal values all would be below.
        upto = max(1, math.ceil(share * total - 1e-9))
        below = np.bincount(owner[:upto], minlength=count)
        residual = (below - below.sum() / total * size) / size.mean()
        half = t_quantile(0.975, count - 1) * residual.std(ddof=1) / math.sqrt(count)
        low, high = (
            float(_quantile_of_ordered(ordered, min(1.0, max(0.0, share + sign * half))))
            for sign in (-1, 1)
        )
        ci = (low, high) if half > 0 and math.isfinite(high) else None
        estimate = Estimate.jackknife(value, ordered[places[number]], SIZE)
        found.append(replace(estimate, known_ci=ci))
    return found


def _quantile_of_ordered(ordered: FloatArray, share: float) -> Any:
    """Return the value that a share is up to; a mean of two would mix a number with infinity."""
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def places_without_each(
    owner: npt.NDArray[np.integer[Any]], count: int, shares: Sequence[float]
) -> list[npt.NDArray[np.intp]]:
    """Return ``(count,)`` for each share: the place of the quantile without each sequence's values.

    Args:
        owner: ``(N,)``, the sequence of each value, in increasing order of values.
        count: Number of sequences. Without a sequence that has all values the place is the last.
        shares: The quantiles, in [0, 1].
    """
    total, size = len(owner), np.bincount(owner, minlength=count)
    among_own = np.empty(total, np.intp)
    by_owner = np.argsort(owner, kind="stable")
    among_own[by_owner] = np.arange(total) - np.repeat(np.cumsum(size) - size, size)
    others_before = np.arange(total) - among_own
    found = []
    for share in shares:
        place = np.maximum(1, np.ceil(share * (total - size) - 1e-9)).astype(np.intp) - 1
        own = np.bincount(owner[others_before <= place[owner]], minlength=count)
        found.append(np.minimum(place + own, total - 1))
    return found
