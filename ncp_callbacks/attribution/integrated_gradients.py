"""Integrated gradients: gradients averaged along the straight line from a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from ..target_values import Evaluate
from ._checks import checked_count, groups
from .base import AttributionMaps, AttributionMethod, ExtraPasses

__all__ = ["IntegratedGradients"]


@dataclass(frozen=True)
class IntegratedGradients(AttributionMethod):
    """Average gradients along the straight line from the baseline, times the way.

    Inputs and elapsed times move together, so that one attribution says how much of the change is
    attributed to what was measured, and how much to when. The maps sum to the change of the target
    from the baseline (completeness). The integral is taken by Gauss-Legendre quadrature, which is
    exact where the target is a polynomial of degree ``2 n_steps`` along the line.

    More steps don't help where the target jumps on the way, as that of a bistable state does: the
    completeness error is then large, and what the maps say of such a model is not to be trusted.

    Attributes:
        n_steps: Number of points along the line, a gradient pass for each. In trained CfCs and
            LTCs, feature shares hardly change above 8; an error below 5 % may take 64.

    Raises:
        ValueError: For fewer than 1 of ``n_steps``.

    Source: Sundararajan et al. 2017 (arXiv:1703.01365).
    """

    n_steps: int = 32

    name: ClassVar[str] = "integrated_gradients"
    label: ClassVar[str] = "integrated gradients"
    complete: ClassVar[bool] = True
    incomplete_fix: ClassVar[str] = (
        "Set a larger n_steps=, which helps where the target is smooth on the way from the "
        "baseline. Where it jumps, as that of a state with two stable values does, set another "
        'baseline= or method="occlusion"'
    )

    def __post_init__(self) -> None:
        checked_count("n_steps", self.n_steps)

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> ExtraPasses:
        """Return a gradient pass for each step, and the forward pass at the baseline."""
        return ExtraPasses(forward=1, gradient=self.n_steps)

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
        """Return the maps by all steps."""
        places, weights = np.polynomial.legendre.leggauss(self.n_steps)
        (maps,) = _integrals(
            evaluate, inputs, time_delta, baseline, time_baseline, places, weights[None]
        )
        return maps

    def attribute_with_error(
        self,
        evaluate: Evaluate,
        inputs: FloatArray,
        time_delta: FloatArray | None,
        *,
        baseline: FloatArray,
        time_baseline: FloatArray | None,
        mask: npt.NDArray[np.bool_] | None,
    ) -> tuple[AttributionMaps, FloatArray]:
        """Return the maps, and how far those by every other step are from them.

        It costs no more passes, and needs no change that the maps should sum to.

        Args: As for :meth:`attribute`.

        Returns:
            The maps, and ``(B,)``: norm of the difference of the maps of inputs, over the RMS norm
            of all sequences. It is an upper estimate of the error. NaN with one step.
        """
        places, weights = np.polynomial.legendre.leggauss(self.n_steps)
        both = np.stack([weights, _every_other(places)])
        maps, fewer = _integrals(
            evaluate, inputs, time_delta, baseline, time_baseline, places, both
        )
        full, half = (
            m.inputs if mask is None else np.where(mask[..., None], m.inputs, 0.0)
            for m in (maps, fewer)
        )
        with np.errstate(invalid="ignore", over="ignore"):
            size = (full**2).sum(axis=(1, 2))
            distance = np.sqrt(((half - full) ** 2).sum(axis=(1, 2)))
        known = size[np.isfinite(size)]
        rms = float(np.sqrt(known.mean())) if known.size else 0.0
        known_error = self.n_steps > 1 and rms > 0
        return maps, distance / rms if known_error else np.full(len(size), np.nan)


def _integrals(
    evaluate: Evaluate,
    inputs: FloatArray,
    time_delta: FloatArray | None,
    baseline: FloatArray,
    time_baseline: FloatArray | None,
    places: FloatArray,
    weights: FloatArray,
) -> list[AttributionMaps]:
    """Return the maps by each of ``W`` quadrature rules on [-1, 1] with the same places.

    Args:
        evaluate, inputs, time_delta, baseline, time_baseline: As for
            :meth:`AttributionMethod.attribute`.
        places: ``(n,)``.
        weights: ``(W, n)``, each adding up to 2.
    """
    way = inputs - baseline
    time_way = None
    if time_delta is not None and time_baseline is not None:
        time_way = time_delta - time_baseline
    by_input = np.zeros((len(weights), *inputs.shape))
    by_time = np.zeros((len(weights), *inputs.shape[:2]))
    for group in groups(len(places)):
        share = (places[group] + 1) / 2
        times = None
        if time_way is not None and time_baseline is not None:
            times = time_baseline + share[:, None, None] * time_way
        found = evaluate(baseline + share[:, None, None, None] * way, times, gradient=True)
        assert found.input_gradient is not None
        part = weights[:, group] / 2
        by_input += np.tensordot(part, found.input_gradient.astype(np.float64), 1)
        if time_way is not None:
            assert found.time_gradient is not None
            by_time += np.tensordot(part, found.time_gradient.astype(np.float64), 1)
    with np.errstate(invalid="ignore", over="ignore"):
        return [
            AttributionMaps(of_inputs * way, None if time_way is None else of_time * time_way)
            for of_inputs, of_time in zip(by_input, by_time, strict=True)
        ]


def _every_other(places: FloatArray) -> FloatArray:
    """Return the weights of a rule on [-1, 1] that takes every other place.

    It is exact for polynomials of a degree below their number. The other weights are 0.
    """
    chosen = np.arange(0, len(places), 2)
    moments = np.zeros(len(chosen))
    moments[0] = 2.0
    weights: FloatArray = np.zeros(len(places))
    weights[chosen] = np.linalg.solve(
        np.polynomial.legendre.legvander(places[chosen], len(chosen) - 1).T, moments
    )
    return weights
