"""Test the difference between two groups of runs, given one number of each run.

Single runs say nothing about a difference, however many steps they have, and two on each side say
little. Pass three runs or more on both sides.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_RUNS", "permutation_p", "smallest_p", "welch_ci", "welch_t"]

FloatArray = npt.NDArray[np.float64]

# With this many relabellings or fewer, all are counted.
_MAX_EXACT = 200_000
_SAMPLES = 20_000
MIN_RUNS = 3  # On each side.


def welch_t(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the mean of ``b`` minus the mean of ``a`` in standard errors (Welch 1947).

    Returns:
        None without any scatter, and for values that are not finite.
    """
    found = _welch(a, b)
    return None if found is None else float(found.statistic)


def welch_ci(
    a: Sequence[float], b: Sequence[float], level: float = 0.95
) -> tuple[float, float] | None:
    """Return the CI for the difference of two means, ``b - a``, with unequal variances.

    Returns:
        None where its width can't be estimated: without scatter on either side, and for values that
        are not finite.
    """
    found = _welch(a, b)
    if found is None:
        return None
    low, high = found.confidence_interval(level)
    return float(low), float(high)


def _welch(a: Sequence[float], b: Sequence[float]) -> Any:
    from scipy import stats

    if not np.isfinite([*a, *b]).all():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.var(a, ddof=1)) / len(a) + float(np.var(b, ddof=1)) / len(b)
    if not 0 < error < math.inf:
        return None
    with warnings.catch_warnings():
        # Runs that are nearly equal are no mistake of the user's.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        return stats.ttest_ind(b, a, equal_var=False)


def smallest_p(n: int, m: int) -> float:
    """Return the smallest p that :func:`permutation_p` can give for ``n`` against ``m`` runs."""
    count = math.comb(n + m, n)
    # Of two equally large groups, exchanging them leaves the size of the difference as it is.
    exact = (2 if n == m else 1) / count
    return exact if count <= _MAX_EXACT else max(exact, 1 / (_SAMPLES + 1))


def permutation_p(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the two-sided p of the difference of means, by relabelling runs (Fisher, Pitman).

    It is the share of all ways to deal the runs into two groups of these sizes that put the means
    at least as far apart. It is exact for up to 200,000 ways. Beyond, it is that of 20,000 fixed
    random ways and the one observed. It agrees with ``scipy.stats.permutation_test``, which takes a
    second for ten runs against ten; here the relabellings are made once for all numbers.

    Returns:
        None where a value is not finite.
    """
    values = np.array([*a, *b], np.float64)
    if not np.isfinite(values).all():
        return None
    values = values / (np.abs(values).max() or 1.0)
    first = _relabellings(len(a), len(b))
    centred = values - values.mean()
    sums = np.abs(first @ centred)  # Proportional to the difference of means, since all sum to 0.
    observed = abs(float(centred[: len(a)].sum()))
    tolerance = 1e-9 * float(np.abs(centred).max(initial=0.0))
    as_far = int((sums >= observed - tolerance).sum())
    if math.comb(values.size, len(a)) > _MAX_EXACT:
        return (as_far + 1) / (len(first) + 1)
    return as_far / len(first)


@functools.lru_cache(maxsize=2)
def _relabellings(n: int, m: int) -> FloatArray:
    """Return rows with 1 for members of the first group."""
    size = n + m
    if math.comb(size, n) <= _MAX_EXACT:
        members = np.array(list(itertools.combinations(range(size), n)))
    else:
        members = np.random.default_rng(0).random((_SAMPLES, size)).argsort(axis=1)[:, :n]
    rows = np.zeros((len(members), size))
    np.put_along_axis(rows, members, 1.0, axis=1)
    return rows
