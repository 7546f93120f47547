"""Compare a number between two groups of different sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .estimate import Estimate, holm

__all__ = ["differ_beyond_chance"]


def differ_beyond_chance(
    pairs: Sequence[tuple[Estimate, Estimate]], alpha: float = 0.02
) -> list[bool]:
    """Return which numbers differ between two groups of sequences, by the test of Welch.

    The tests are corrected for their number by Holm: with a probability of at most ``alpha`` any
    number is named that doesn't differ. Numbers that can't be compared count as tests, too.

    Args:
        pairs: Estimates on the scale :data:`~.estimate.REAL` for each group, which has two
            sequences or more.
        alpha: Family-wise error rate, below the usual 5 % because each snapshot is tested.

    Source: Welch 1947 (Biometrika 34, 28-35), with influences of the jackknife as values.
    """
    return [p < alpha for p in holm([_welch_p(one, other) for one, other in pairs])]


def _welch_p(one: Estimate, other: Estimate) -> float:
    from scipy import special

    variances = []
    for estimate in (one, other):
        influence = np.asarray(estimate.influence, np.float64)
        if len(influence) < 2 or not np.isfinite(influence).all():
            return 1.0
        variances.append(float(influence.var(ddof=1)) / len(influence))
    difference, error = one.value - other.value, math.sqrt(sum(variances))
    if not math.isfinite(difference) or not difference:
        return 1.0
    if not error:
        return 0.0
    parts = [v / error**2 for v in variances]
    # Where a few sequences carry the number, fewer degrees of freedom are left.
    freedom = [max(1.0, estimate.degrees_of_freedom) for estimate in (one, other)]
    own = 1 / sum(part**2 / f for part, f in zip(parts, freedom, strict=True))
    return float(2 * special.stdtr(own, -abs(difference) / error))
