"""Attribute by gradients at the inputs, or near them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from ..target_values import Evaluate
from ._checks import checked_count, groups
from .base import AttributionMaps, AttributionMethod, PassCount, difference_of

__all__ = ["Gradient", "InputXGradient", "SmoothGrad"]


@dataclass(frozen=True)
class Gradient(AttributionMethod):
    """Attribute by the gradient: how fast the target changes with each input.

    Source: Simonyan et al. 2013 (arXiv:1312.6034).
    """

    name: ClassVar[str] = "gradient"
    label: ClassVar[str] = "gradient"
    is_slope: ClassVar[bool] = True
    gradient_at_inputs: ClassVar[bool] = True

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> PassCount:
        """Return no passes: the shared pass contains the gradient."""
        return PassCount()

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
        """Return the gradients; the baselines are not used."""
        found = evaluate(gradient=True)
        assert found.input_gradient is not None
        by_time = None if found.time_gradient is None else found.time_gradient[0]
        return AttributionMaps(found.input_gradient[0], by_time)


@dataclass(frozen=True)
class InputXGradient(AttributionMethod):
    """Multiply the gradient by the difference of input and baseline.

    With a baseline of zeros this is the input × gradient of the literature. It is a local slope:
    where the target has levelled off, attributions are small, even if the inputs moved the target a
    lot before. The maps sum to the change of the target only if the target is linear, so that the
    completeness error tells how far this approximation holds.

    Source: Shrikumar et al. 2016 (arXiv:1605.01713).
    """

    name: ClassVar[str] = "input_x_gradient"
    label: ClassVar[str] = "input × gradient"
    complete: ClassVar[bool] = True
    gradient_at_inputs: ClassVar[bool] = True
    incomplete_fix: ClassVar[str] = (
        "The target is not linear between the baseline and the inputs: set "
        'method="integrated_gradients"'
    )

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> PassCount:
        """Return the forward pass at the baseline: the shared pass contains the gradient."""
        return PassCount(forward=1)

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
        """Return ``(inputs - baseline) * gradient``, and this product for elapsed times."""
        found = evaluate(gradient=True)
        assert found.input_gradient is not None
        by_time = difference_of(time_delta, time_baseline)
        if by_time is not None:
            assert found.time_gradient is not None
            by_time = by_time * found.time_gradient[0]
        return AttributionMaps((inputs - baseline) * found.input_gradient[0], by_time)


@dataclass(frozen=True)
class SmoothGrad(AttributionMethod):
    """Average the gradient over copies of the inputs with Gaussian noise.

    The seed alone decides the noise, so maps of different training steps are comparable. Elapsed
    times get no noise; their gradients are averaged too.

    Attributes:
        n_samples: Number of noisy copies.
        noise: SD of the noise, as a fraction of a feature's range over sequences and real time
            steps.
        seed: Seed of the noise.

    Raises:
        ValueError: If ``n_samples`` is not a whole number of at least 1, or ``noise`` is not a
            finite number above 0.

    Source: Smilkov et al. 2017 (arXiv:1706.03825).
    """

    n_samples: int = 16
    noise: float = 0.1
    seed: int = 0

    name: ClassVar[str] = "smooth_grad"
    label: ClassVar[str] = "SmoothGrad"
    is_slope: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checked_count("n_samples", self.n_samples)
        if not 0 < self.noise < np.inf:
            raise ValueError(
                f"noise={self.noise!r}: pass a number above 0, a fraction of a feature's range"
            )

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> PassCount:
        """Return a gradient pass for each noisy copy."""
        return PassCount(gradient=self.n_samples)

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
        """Return the mean gradients; the baselines are not used."""
        real = np.ones(inputs.shape[:2], bool) if mask is None else mask
        spread = self.noise * _finite_range(inputs[real])
        rng = np.random.default_rng(self.seed)
        by_input, by_time = np.zeros_like(inputs), None
        for group in groups(self.n_samples, inputs.size):
            shift = rng.standard_normal((len(group), *inputs.shape)) * spread
            found = evaluate(inputs + np.where(real[..., None], shift, 0.0), gradient=True)
            assert found.input_gradient is not None
            by_input += found.input_gradient.sum(axis=0, dtype=np.float64) / self.n_samples
            if found.time_gradient is not None:
                total = found.time_gradient.sum(axis=0, dtype=np.float64) / self.n_samples
                by_time = total if by_time is None else by_time + total
        return AttributionMaps(by_input, by_time)


def _finite_range(values: FloatArray) -> FloatArray:
    """Return ``(F,)``, the range of the finite values ``(N, F)`` of each feature."""
    known = np.isfinite(values)
    low = np.where(known, values, np.inf).min(axis=0)
    high = np.where(known, values, -np.inf).max(axis=0)
    extent: FloatArray = np.maximum(high - low, 0.0)
    return extent
