"""Average gradients along the straight line from a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from ..target_values import Evaluate, TargetValues
from ._checks import checked_count, groups
from .base import AttributionMaps, AttributionMethod, PassCount, difference_of

__all__ = ["IntegratedGradients"]


@dataclass(frozen=True)
class IntegratedGradients(AttributionMethod):
    """Average gradients along the straight line from the baseline, times input minus baseline.

    Inputs and elapsed times move together, so one attribution covers what was measured and when.
    The maps sum to the change of the target from the baseline (completeness). The integral is
    computed by Gauss-Legendre quadrature, which is exact if the target is a polynomial of degree
    ``2 n_steps`` along the line.

    More points don't help where the target jumps along the line, as that of a bistable state does.
    The completeness error is then large, and the maps of such a model are not reliable.

    Attributes:
        n_steps: Number of points along the line; each costs a gradient pass. In trained CfCs and
            LTCs, feature shares hardly change above 8; an error below 5 % may take 64.
        at_inputs: True to have the inputs among the points, whose gradient callbacks share, by
            Gauss-Radau quadrature, which is exact up to degree ``2 n_steps - 1``.

    Raises:
        ValueError: If ``n_steps`` is not a whole number of at least 1.

    Source: Sundararajan et al. 2017 (arXiv:1703.01365).
    """

    n_steps: int = 32
    at_inputs: bool = False

    name: ClassVar[str] = "integrated_gradients"
    label: ClassVar[str] = "integrated gradients"
    complete: ClassVar[bool] = True
    incomplete_fix: ClassVar[str] = (
        "If the target is smooth between the baseline and the inputs, set a larger n_steps=. If it "
        'jumps, no number is large enough: set method="occlusion"'
    )

    def __post_init__(self) -> None:
        checked_count("n_steps", self.n_steps)

    @property
    def gradient_at_inputs(self) -> bool:  # type: ignore[override]
        """Return true if the inputs are among the points."""
        return self.at_inputs

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> PassCount:
        """Return a gradient pass for each point but the inputs, and the forward at the baseline."""
        return PassCount(forward=1, gradient=self.n_steps - self.at_inputs)

    def _rule(self) -> tuple[FloatArray, FloatArray]:
        """Return points and weights on [-1, 1]; the inputs, at 1, are the last point."""
        if not self.at_inputs:
            return np.polynomial.legendre.leggauss(self.n_steps)
        return _radau(self.n_steps)

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
        """Return the maps of the quadrature rule with all points."""
        points, weights = self._rule()
        (maps,) = _integrals(
            evaluate, inputs, time_delta, baseline, time_baseline, points, weights[None]
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
        """Return the maps, and their distance from the maps of every other point.

        The distance costs no extra passes. The arguments are those of :meth:`attribute`.

        Returns:
            The maps, and ``(B,)``: the norm of the difference of the maps of inputs, over the RMS
            norm of all sequences. It is an upper estimate of the error, and NaN with one point.
        """
        points, weights = self._rule()
        both = np.stack([weights, _every_other(points)])
        maps, fewer = _integrals(
            evaluate, inputs, time_delta, baseline, time_baseline, points, both
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
    points: FloatArray,
    weights: FloatArray,
) -> list[AttributionMaps]:
    """Return the maps by each of ``W`` quadrature rules on [-1, 1] that share their points.

    ``points`` are ``(n,)``, and ``weights`` ``(W, n)``, where those of a rule add up to 2. The
    other arguments are those of :meth:`AttributionMethod.attribute`.
    """
    difference, time_difference = inputs - baseline, difference_of(time_delta, time_baseline)
    by_input = np.zeros((len(weights), *inputs.shape))
    by_time = np.zeros((len(weights), *inputs.shape[:2]))

    def add(found: TargetValues, part: FloatArray) -> None:
        nonlocal by_input, by_time
        assert found.input_gradient is not None
        by_input += np.tensordot(part, found.input_gradient.astype(np.float64), 1)
        if time_difference is not None:
            assert found.time_gradient is not None
            by_time += np.tensordot(part, found.time_gradient.astype(np.float64), 1)

    at_inputs = points[-1] == 1
    if at_inputs:
        add(evaluate(gradient=True), weights[:, -1:] / 2)
    count = len(points) - at_inputs
    for group in groups(count, inputs.size) if count else ():
        share = (points[group] + 1) / 2
        times = None
        if time_difference is not None and time_baseline is not None:
            times = time_baseline + share[:, None, None] * time_difference
        found = evaluate(baseline + share[:, None, None, None] * difference, times, gradient=True)
        add(found, weights[:, group] / 2)
    with np.errstate(invalid="ignore", over="ignore"):
        return [
            AttributionMaps(
                of_inputs * difference,
                None if time_difference is None else of_time * time_difference,
            )
            for of_inputs, of_time in zip(by_input, by_time, strict=True)
        ]


def _radau(count: int) -> tuple[FloatArray, FloatArray]:
    """Return points and weights of Gauss-Radau quadrature on [-1, 1], with 1 as the last point.

    Source: Abramowitz & Stegun 1964, 25.4.31, mirrored.
    """
    series = np.polynomial.legendre.Legendre.basis
    inner = (series(count) - series(count - 1)).roots()
    points = np.append(np.sort(inner.real)[:-1], 1.0)
    moments = np.zeros(count)
    moments[0] = 2.0
    weights = np.linalg.solve(np.polynomial.legendre.legvander(points, count - 1).T, moments)
    return points, weights


def _every_other(points: FloatArray) -> FloatArray:
    """Return the weights of a rule on [-1, 1] that uses every other point; other weights are 0.

    The rule is exact for polynomials of a degree below the number of points that it uses.
    """
    chosen = np.arange(0, len(points), 2)
    moments = np.zeros(len(chosen))
    moments[0] = 2.0
    weights: FloatArray = np.zeros(len(points))
    weights[chosen] = np.linalg.solve(
        np.polynomial.legendre.legvander(points[chosen], len(chosen) - 1).T, moments
    )
    return weights
