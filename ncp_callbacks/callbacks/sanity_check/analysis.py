"""How alike maps stay when what a model has learnt is taken away.

    alike = map_similarity(trained_map, randomised_map, mask)     # per sequence

Source: Adebayo et al. 2018, Sanity checks for saliency maps (arXiv:1810.03292).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...results import FloatArray, MappingResult
from ...stats import CORRELATION, Estimate, ci_array
from ...stats.reliability import cosine, order_correlation

__all__ = ["ALIKE", "Cascade", "Measures", "map_similarity"]

# Of two rank correlations, the square is the share of one order's variance that the other explains:
# above this, more than half of a map's order is there without what was learnt.
ALIKE = math.sqrt(0.5)


@dataclass(frozen=True)
class Measures:
    """What callbacks measure, of one model on the same sequences; NaN where there is none.

    Attributes:
        strength: Mean over sequences of the sum of the absolute attribution.
        entropy: Of the feature shares: 1 all features matter equally, 0 one does.
        elasticity: RMS over sequences of the slope of the target in ln(time scale), in SDs of it.
        target_sd: SD of the target over sequences.
        magnitude: Mean length of the steps of the last cell's state.
        mean_lag: Mean number of steps between an input and its sequence's last, by importance.
        time_share: Share of the intervals in the strength of inputs and intervals together.
        participation: Number of dimensions that the last cell's states use.
    """

    strength: float
    entropy: float
    elasticity: float
    target_sd: float
    magnitude: float = float("nan")
    mean_lag: float = float("nan")
    time_share: float = float("nan")
    participation: float = float("nan")


@dataclass(frozen=True, eq=False)
class Cascade(MappingResult):
    """Similarity to the trained model's maps, parameters randomised stage by stage.

    Attributes:
        stages: ``N`` names, from the output towards the input; each adds to those before.
        rank_correlation: ``(N + 1, B)``, of absolute maps; the first is the trained model itself.
            NaN where a map isn't finite or all the same.
        cosine: ``(N + 1, B)``, of maps with their signs.
        non_finite: How many sequences had NaN or infinity in a map, at any stage.
        trained, randomised: Measures before, and after the last stage.
        estimates: Of both, by name, with their intervals over sequences, as far as they are known.
        error: ``(B,)``, completeness error of the trained model's maps; None where their method
            promises no completeness.
    """

    _plot = "plot_sanity"

    stages: tuple[str, ...]
    rank_correlation: FloatArray
    cosine: FloatArray
    non_finite: int
    trained: Measures
    randomised: Measures
    estimates: tuple[Mapping[str, Estimate], Mapping[str, Estimate]] = field(
        default_factory=lambda: ({}, {})
    )
    error: FloatArray | None = None

    @property
    def curve(self) -> FloatArray:
        """``(2, N + 1)``: rank correlation and cosine, mean over sequences; NaN without any."""
        return np.stack([_mean_known(self.rank_correlation), _mean_known(self.cosine)])

    @property
    def ci(self) -> FloatArray:
        """Return ``(2, N + 1)`` 95 % CIs over sequences of the rank correlation; NaN without."""
        known = [values[np.isfinite(values)] for values in self.rank_correlation]
        return ci_array([Estimate.mean(values, CORRELATION) for values in known])


def _mean_known(values: FloatArray) -> FloatArray:
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    mean: FloatArray = np.divide(total, count, out=np.full(len(values), math.nan), where=count > 0)
    return mean


def map_similarity(
    one: FloatArray, other: FloatArray, mask: npt.NDArray[np.bool_] | None = None
) -> FloatArray:
    """``(2, B)``: rank correlation of ``|maps|``, and cosine of maps, of each sequence.

    Over the cells of real steps only, the rank correlation over those of them that are not 0 in
    both, as they are after the target's step. NaN where a map isn't finite; the rank correlation
    also of equal values and of fewer than 3 cells, the cosine of zeros.

    Args:
        one, other: ``(B, T, F)``.
        mask: ``(B, T)``, true at real steps.
    """
    found = np.full((2, len(one)), math.nan)
    for b in range(len(one)):
        real = slice(None) if mask is None else mask[b]
        x, y = one[b][real].astype(np.float64), other[b][real].astype(np.float64)
        if np.isfinite(x).all() and np.isfinite(y).all():
            ranks = order_correlation(x, y)
            found[:, b] = math.nan if ranks is None else ranks, cosine(x, y)
    return found
