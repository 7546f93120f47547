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


def ci_by_leaving_out(statistic, rows, scale="identity", level=0.95, df=None):
    """Return the delete-one jackknife CI of ``statistic(rows)``; rows are sequences."""
    to, back = SCALES[scale]
    count = len(rows)
    without = np.array([to(statistic(np.delete(rows, i, axis=0))) for i in range(count)])
    error = math.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    half = stats.t.ppf((1 + level) / 2, df or freedom(without)) * error
    centre = to(statistic(rows))
    return float(back(centre - half)), float(back(centre + half))
