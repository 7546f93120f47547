"""Average integrated gradients over baselines that are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from ..target_values import Evaluate
from ._checks import checked_count, groups
from .base import AttributionMaps, AttributionMethod, PassCount

__all__ = ["ExpectedGradients"]


@dataclass(frozen=True)
class ExpectedGradients(AttributionMethod):
    """Average integrated gradients over baselines that are drawn, one point of the line for each.

    A sample is a baseline and a place on the straight line from it to the input. Places are
    stratified. The seed alone decides the samples, so calls are comparable. The maps are complete
    in expectation; the completeness error measures how far they are from it.

    Attributes:
        n_samples: Number of samples; each costs a gradient and a forward pass.
        seed: Seed of the samples.

    Raises:
        ValueError: If ``n_samples`` is not a whole number of at least 1.

    Source: Erion et al. 2021 (arXiv:1906.10670).
    """

    n_samples: int = 16
    seed: int = 0

    name: ClassVar[str] = "expected_gradients"
    label: ClassVar[str] = "expected gradients"
    complete: ClassVar[bool] = True
    draws_baselines: ClassVar[bool] = True
    default_baseline: ClassVar[str] = "held_out"
    incomplete_fix: ClassVar[str] = (
        "If the target is smooth between the baselines and the inputs, set a larger n_samples=: "
        "the error falls a little faster than 1 / sqrt(n_samples). If it jumps, no number is "
        'large enough: set method="occlusion"'
    )

    def __post_init__(self) -> None:
        checked_count("n_samples", self.n_samples)

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> PassCount:
        """Return a gradient pass and a forward pass at the baseline for each sample."""
        return PassCount(forward=self.n_samples, gradient=self.n_samples)

    def attribute(
        self,
        evaluate: Evaluate,
        inputs: FloatArray,
        time_delta: FloatArray | None,
        *,
        baseline: FloatArray,
        time_baseline: FloatArray | None,
        mask: npt.NDArray[np.bool_] | None,
    ) -> AttributionMaps:
        """Return the mean of the maps over samples; baselines that are not finite are skipped."""
        real = np.ones(inputs.shape[:2], bool) if mask is None else mask
        drawn, places = self._samples(baseline, time_baseline, len(inputs))
        by_input = np.zeros_like(inputs)
        by_time = None if time_baseline is None else np.zeros(inputs.shape[:2])
        at_baseline = np.zeros(len(inputs))
        for group in groups(self.n_samples, inputs.size):
            start = np.where(real[..., None], baseline[drawn[group]], inputs)
            difference, share = inputs - start, places[group][..., None]
            time_start = times = None
            if time_delta is not None and time_baseline is not None:
                time_start = np.where(real, time_baseline[drawn[group]], time_delta)
                times = time_start + share * (time_delta - time_start)
            found = evaluate(start + share[..., None] * difference, times, gradient=True)
            assert found.input_gradient is not None
            by_input += (found.input_gradient * difference).sum(axis=0) / self.n_samples
            if by_time is not None and time_delta is not None and time_start is not None:
                assert found.time_gradient is not None
                time_difference = time_delta - time_start
                by_time += (found.time_gradient * time_difference).sum(axis=0) / self.n_samples
            targets = evaluate(start, time_start).values
            at_baseline += targets.sum(axis=0, dtype=np.float64) / self.n_samples
        return AttributionMaps(by_input, by_time, at_baseline)

    def _samples(
        self, baseline: FloatArray, time_baseline: FloatArray | None, batch: int
    ) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """Return ``(n_samples, B)`` indices of baselines, and as many places from 0 to 1."""
        rng = np.random.default_rng(self.seed)
        usable = np.isfinite(baseline).all(axis=(1, 2))
        if time_baseline is not None:
            usable &= np.isfinite(time_baseline).all(axis=1)
        pool = np.flatnonzero(usable) if usable.any() else np.arange(len(baseline))
        # Each sequence draws every baseline once before one is drawn again, at a later place.
        turns = -(-self.n_samples // len(pool))
        orders = [
            np.concatenate([rng.permutation(pool) for _ in range(turns)])[: self.n_samples]
            for _ in range(batch)
        ]
        strata = np.arange(self.n_samples)[:, None] + rng.uniform(size=(self.n_samples, batch))
        return np.stack(orders, axis=1), strata / self.n_samples
