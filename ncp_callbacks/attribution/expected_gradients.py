"""Expected gradients: integrated gradients averaged over baselines that are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from ..target_values import Evaluate
from ._checks import checked_count, groups
from .base import AttributionMaps, AttributionMethod, ExtraPasses

__all__ = ["ExpectedGradients"]


@dataclass(frozen=True)
class ExpectedGradients(AttributionMethod):
    """Average integrated gradients over baselines that are drawn, one point of the way for each.

    A sample is a pair of a baseline and a place on the way from it; the places are stratified. The
    samples are the same for every call with the same seed. The maps are complete in expectation:
    the completeness error says how far from it they are.

    Attributes:
        n_samples: Number of samples, a gradient and a forward pass for each.
        seed: Seed of the samples.

    Raises:
        ValueError: For fewer than 1 of ``n_samples``.

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
        "Set a larger n_samples=: the error falls a little faster than the root of their number"
    )

    def __post_init__(self) -> None:
        checked_count("n_samples", self.n_samples)

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> ExtraPasses:
        """Return a gradient pass for each sample, and a forward pass at each of the baselines."""
        return ExtraPasses(forward=self.n_samples, gradient=self.n_samples)

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
        """Return the mean maps over samples.

        Args:
            evaluate, inputs, time_delta, mask: As for :meth:`AttributionMethod.attribute`.
            baseline: ``(N, T, F)``; those that are not finite are not drawn.
            time_baseline: ``(N, T)``, drawn along with them; None: time_delta stays as it is.
        """
        real = np.ones(inputs.shape[:2], bool) if mask is None else mask
        drawn, places = self._samples(baseline, time_baseline, len(inputs))
        by_input = np.zeros_like(inputs)
        by_time = None if time_baseline is None else np.zeros(inputs.shape[:2])
        at_baseline = np.zeros(len(inputs))
        for group in groups(self.n_samples):
            start = np.where(real[..., None], baseline[drawn[group]], inputs)
            way, share = inputs - start, places[group][..., None]
            time_start = times = None
            if time_delta is not None and time_baseline is not None:
                time_start = np.where(real, time_baseline[drawn[group]], time_delta)
                times = time_start + share * (time_delta - time_start)
            found = evaluate(start + share[..., None] * way, times, gradient=True)
            assert found.input_gradient is not None
            by_input += (found.input_gradient * way).sum(axis=0) / self.n_samples
            if by_time is not None and time_delta is not None and time_start is not None:
                assert found.time_gradient is not None
                time_way = time_delta - time_start
                by_time += (found.time_gradient * time_way).sum(axis=0) / self.n_samples
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
        # Every sequence has its own order, and every baseline its turn before one comes again,
        # further on the way.
        turns = -(-self.n_samples // len(pool))
        orders = [
            np.concatenate([rng.permutation(pool) for _ in range(turns)])[: self.n_samples]
            for _ in range(batch)
        ]
        strata = np.arange(self.n_samples)[:, None] + rng.uniform(size=(self.n_samples, batch))
        return np.stack(orders, axis=1), strata / self.n_samples
