"""Compare the maps and measures of a model with those of a randomised copy.

    similar = map_similarity(trained_map, randomised_map, mask)     # per sequence

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

# The square of a rank correlation is the share of one order's variance that the other explains.
# Above this value, more than half of a map's order does not depend on what was learnt.
ALIKE = math.sqrt(0.5)


@dataclass(frozen=True)
class Measures:
    """Hold numbers of several callbacks, for one model; NaN where a number does not apply.

    Attributes:
        strength: Mean over sequences of the sum of the absolute attribution.
        entropy: Entropy of the feature shares: 1 if all features matter equally, 0 if only one
            does.
        elasticity: RMS over sequences of the slope of the target in ln(time scale), in SDs of the
            target.
        target_sd: SD of the target over sequences.
        magnitude: Mean length of the steps of the last cell's state.
        mean_lag: Mean number of time steps between an input and its sequence's last, weighted by
            importance in each sequence.
        time_share: Share of the elapsed times in the strength of inputs and elapsed times.
        participation: Number of dimensions that the last cell's states use.
    """

    strength: float = float("nan")
    entropy: float = float("nan")
    elasticity: float = float("nan")
    target_sd: float = float("nan")
    magnitude: float = float("nan")
    mean_lag: float = float("nan")
    time_share: float = float("nan")
    participation: float = float("nan")


@dataclass(frozen=True, eq=False)
class Cascade(MappingResult):
    """Hold the similarity to the trained model's maps while parameters are randomised in stages.

    Attributes:
        stages: ``N`` names, from the output towards the input; each adds to those before.
        rank_correlation: ``(N + 1, B)``, rank correlation of absolute maps; the first row is the
            trained model itself. NaN if a map isn't finite or constant.
        cosine: ``(N + 1, B)``, cosine of signed maps.
        non_finite: Number of sequences with NaN or infinity in a map, at any stage.
        trained: Measures of the trained model.
        randomised: Measures after the last stage.
        estimates: Estimates over sequences of both models' measures, by name, where there are any.
        error: ``(B,)``, completeness error of the trained model's maps; None if their method
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
        """Return ``(2, N + 1)`` means over sequences: rank correlation and cosine; NaN without."""
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
    """Return ``(2, B)``: the rank correlation of absolute maps, and the cosine of maps.

    Both are over the cells of real time steps. The rank correlation skips cells that are 0 in both
    maps, as all are after the target's time step.

    Args:
        one: ``(B, T, F)``.
        other: ``(B, T, F)``.
        mask: ``(B, T)``, true at real time steps.

    Returns:
        NaN for maps that are not finite, for the rank correlation of equal values or of fewer than
        3 cells, and for the cosine of zeros.
    """
    found = np.full((2, len(one)), math.nan)
    for b in range(len(one)):
        real = slice(None) if mask is None else mask[b]
        x, y = one[b][real].astype(np.float64), other[b][real].astype(np.float64)
        if np.isfinite(x).all() and np.isfinite(y).all():
            ranks = order_correlation(x, y)
            found[:, b] = math.nan if ranks is None else ranks, cosine(x, y)
    return found
