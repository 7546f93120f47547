"""Confidence intervals over sequences by leaving out each in a loop: a reference for tests."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special, stats

SCALES: dict[str, tuple[Callable, Callable]] = {
    "identity": (lambda v: v, lambda v: v),
    "log": (math.log, math.exp),
    "logit": (special.logit, special.expit),
    "fisher_z": (math.atanh, math.tanh),
}


def freedom(values):
    """Return Hinkley's degrees of freedom: those of a variance of values with this kurtosis."""
    count = len(values)
    if np.ptp(values) == 0:
        return count - 1
    kurtosis = stats.kurtosis(values, fisher=False)
    return count - 1 if kurtosis <= 3 else max(1, 2 * count / (kurtosis - 1) - 1)


def t_of_sides(influences, level=0.95, df=None):
    """Return how many standard errors a CI reaches below, and above: Johnson's t if it is more.

    With ``df`` they are those of Student's t.
    """
    count, p = len(influences), (1 + level) / 2
    if df is not None:
        return 2 * (stats.t.ppf(p, df),)
    skewness = stats.skew(influences) if np.ptp(influences) else 0.0
    tail = skewness * (1 + 2 * stats.norm.ppf(p) ** 2) / (6 * math.sqrt(count))
    students, plain = stats.t.ppf(p, freedom(influences)), stats.t.ppf(p, count - 1)
    return max(students, plain - tail), max(students, plain + tail)


def ci_by_leaving_out(statistic, rows, scale="identity", level=0.95, df=None):
    """Return the delete-one jackknife CI of ``statistic(rows)``; rows are sequences."""
    to, back = SCALES[scale]
    count = len(rows)
    without = np.array([to(statistic(np.delete(rows, i, axis=0))) for i in range(count)])
    error = math.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    below, above = t_of_sides(-without, level, df)
    centre = to(statistic(rows))
    return float(back(centre - below * error)), float(back(centre + above * error))
