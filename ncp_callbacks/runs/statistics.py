"""Two groups of runs, one number of each run: is there a difference?

One run each says nothing about that, however many steps it has, and two say next to nothing: the
functions are for three runs or more on both sides.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..analysis.uncertainty import t_quantile

__all__ = ["FEWEST", "holm", "permutation_p", "smallest_p", "welch_interval", "welch_t"]

FloatArray = npt.NDArray[np.float64]

# With this many relabellings or fewer, all are gone through.
_MOST_EXACT = 200_000
_DRAWS = 20_000
FEWEST = 3  # Runs on each side.


def welch_t(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Mean of ``b`` minus mean of ``a``, in standard errors; None without any scatter."""
    error, _ = _welch(a, b)
    return (float(np.mean(b)) - float(np.mean(a))) / error if error > 0 else None


def welch_interval(
    a: Sequence[float], b: Sequence[float], level: float = 0.95
) -> tuple[float, float] | None:
    """Interval for the difference of two means, ``b - a``, with unequal variances (Welch 1947).

    Returns:
        None where it has no width to be estimated from: no scatter on either side, or values that
        are not finite.
    """
    error, freedom = _welch(a, b)
    if not error > 0:
        return None
    delta = float(np.mean(b)) - float(np.mean(a))
    half = t_quantile((1 + level) / 2, freedom) * error
    return delta - half, delta + half


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Standard error of the difference, and Satterthwaite's degrees of freedom."""
    if not np.isfinite([*a, *b]).all():
        return math.nan, math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [float(np.var(x, ddof=1)) / len(x) for x in (a, b)]
    if not 0 < sum(parts) < math.inf:
        return 0.0, math.nan
    share = parts[0] / sum(parts)
    freedom = 1 / (share**2 / (len(a) - 1) + (1 - share) ** 2 / (len(b) - 1))
    return math.sqrt(sum(parts)), freedom


def smallest_p(n: int, m: int) -> float:
    """The smallest p that :func:`permutation_p` can give for ``n`` against ``m`` runs."""
    count = math.comb(n + m, n)
    # Of two equally large groups, exchanging them leaves the size of the difference as it is.
    exact = (2 if n == m else 1) / count
    return exact if count <= _MOST_EXACT else max(exact, 1 / (_DRAWS + 1))


def permutation_p(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of the difference of means, by relabelling runs (Fisher, Pitman).

    The share of all ways to deal the runs into two groups of these sizes that put the means at
    least as far apart. Exact up to 200,000 ways; beyond, of 20,000 at random and the one observed,
    always the same ones.

    Returns:
        None where a value is not finite.
    """
    values = np.array([*a, *b], np.float64)
    if not np.isfinite(values).all():
        return None
    values = values / (np.abs(values).max() or 1.0)
    first = _relabellings(len(a), len(b))
    centred = values - values.mean()
    sums = np.abs(first @ centred)  # The means' difference, up to a factor, since all sum to 0.
    observed = abs(float(centred[: len(a)].sum()))
    tolerance = 1e-9 * float(np.abs(centred).max(initial=0.0))
    as_far = int((sums >= observed - tolerance).sum())
    if math.comb(values.size, len(a)) > _MOST_EXACT:
        return (as_far + 1) / (len(first) + 1)
    return as_far / len(first)


@functools.lru_cache(maxsize=2)
def _relabellings(n: int, m: int) -> FloatArray:
    """Rows with 1 for members of the first group."""
    size = n + m
    if math.comb(size, n) <= _MOST_EXACT:
        members = np.array(list(itertools.combinations(range(size), n)))
    else:
        members = np.random.default_rng(0).random((_DRAWS, size)).argsort(axis=1)[:, :n]
    rows = np.zeros((len(members), size))
    np.put_along_axis(rows, members, 1.0, axis=1)
    return rows


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for how many there are, by Holm's method (1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p[i] * (len(p) - rank)))
        adjusted[i] = largest
    return adjusted
