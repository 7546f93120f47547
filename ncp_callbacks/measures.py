"""From an observation to a result: what callbacks and the offline functions share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .analysis import (
    BackboneReport,
    TemporalImportance,
    TimeSensitivity,
    layer_statistics,
    summarize,
    time_sensitivity,
)
from .analysis.methods import (
    METHODS,
    Attribution,
    constant_baseline,
    expected_gradients,
    gradient,
    input_x_gradient,
    integrated_gradients,
    occlusion,
    smooth_grad,
)
from .observation import Need, Observation

__all__ = [
    "AttributionSettings",
    "attribution",
    "backbone",
    "importance",
    "reduced",
    "sensitivity",
]


@dataclass(frozen=True)
class AttributionSettings:
    """How a target is attributed; see :class:`ncp_callbacks.GradientAttribution`."""

    method: str = "input_x_gradient"
    baseline: Any = None
    time_baseline: Any = "mean"
    nodes: int = 16
    most_nodes: int = 64

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"method={self.method!r} is unknown: give one of {', '.join(map(repr, METHODS))}"
            )
        for name, least in (("nodes", 1), ("most_nodes", self.nodes)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{name}={number!r}: give a whole number of at least {least}")
        for name in ("baseline", "time_baseline"):
            given = getattr(self, name)
            if isinstance(given, str) and given not in ("mean", "zeros"):
                raise ValueError(f"{name}={given!r} is unknown: give 'mean', 'zeros' or an array")

    @property
    def needs(self) -> frozenset[Need]:
        """What it takes from the shared pass; other methods run passes of their own."""
        if self.method in ("input_x_gradient", "gradient"):
            return frozenset({Need.INPUT_GRADIENT, Need.TIME_GRADIENT})
        return frozenset()


def attribution(observation: Observation, settings: AttributionSettings) -> Attribution:
    """What of each target is owed to which input and interval.

    Of tokens, summed over the dimensions of what they are embedded as.

    Raises:
        ValueError: For baselines that don't fit the held-out batch.
    """
    found = _attribution(observation, settings)
    if not observation.held_out.tokens:
        return found
    return replace(found, inputs=found.inputs.sum(axis=-1, keepdims=True))


def _attribution(observation: Observation, settings: AttributionSettings) -> Attribution:
    x, mask, method = observation.inputs, observation.mask, settings.method
    dt = observation.time_delta if observation.takes_time else None
    if method == "gradient":
        return gradient(observation.input_gradient, observation.time_gradient, mask=mask)
    if method == "smooth_grad":
        return smooth_grad(observation.evaluate, x, draws=settings.nodes, mask=mask)
    dt0 = None
    if dt is not None:
        own = _of_these(observation, settings.time_baseline, dt)
        dt0 = constant_baseline(own, dt, mask, "time_baseline")
    given = settings.baseline
    if method == "expected_gradients":
        draws, time_draws = x, dt
        if given is not None and not isinstance(given, str):
            draws, time_draws = _checked_draws(given, x), dt0
            if time_draws is not None:
                # Draws of inputs come without intervals of their own.
                time_draws = np.broadcast_to(time_draws.mean(axis=0), draws.shape[:2])
        return expected_gradients(
            observation.evaluate,
            x,
            dt,
            baselines=draws,
            time_baselines=time_draws,
            values=observation.target_values,
            draws=settings.nodes,
            mask=mask,
        )
    if given is None:
        given = "zeros" if method == "input_x_gradient" else "mean"
    x0 = constant_baseline(_of_these(observation, given, x), x, mask, "baseline")
    if method == "input_x_gradient":
        return input_x_gradient(
            x,
            observation.input_gradient,
            dt,
            observation.time_gradient,
            baseline=x0,
            time_baseline=0.0 if dt0 is None else dt0,
            mask=mask,
        )
    if method == "occlusion":
        return occlusion(
            observation.evaluate,
            x,
            dt,
            baseline=x0,
            time_baseline=dt0,
            values=observation.target_values,
            mask=mask,
        )
    return integrated_gradients(
        observation.evaluate,
        x,
        dt,
        baseline=x0,
        time_baseline=dt0,
        values=observation.target_values,
        nodes=settings.nodes,
        most_nodes=settings.most_nodes,
    )


def _of_these(observation: Observation, baseline: Any, values: np.ndarray) -> Any:
    """Of a baseline for each sequence of the held-out batch, those of the sequences looked at."""
    if isinstance(baseline, str) or np.ndim(baseline) != values.ndim:
        return baseline
    each = np.asarray(baseline)
    return each[observation.indices] if len(each) == observation.whole_batch else each


def _checked_draws(given: Any, x: np.ndarray) -> np.ndarray:
    draws = np.asarray(given, np.float32)
    if draws.ndim != 3 or draws.shape[1:] != x.shape[1:] or not len(draws):
        raise ValueError(
            f"baseline has shape {draws.shape}; expected gradients draw from (draws, "
            f"{x.shape[1]}, {x.shape[2]}), sequences like those of the held-out batch"
        )
    return draws


def importance(
    observation: Observation, settings: AttributionSettings | None = None
) -> TemporalImportance:
    """Attribution, reduced over sequences; by default input × gradient."""
    return reduced(observation, attribution(observation, settings or AttributionSettings()))


def reduced(observation: Observation, found: Attribution) -> TemporalImportance:
    """An attribution of the observation's sequences, reduced over them."""
    return summarize(
        found,
        target_values=observation.target_values,
        mask=observation.mask,
        target=observation.target,
        feature_names=observation.held_out.feature_names,
    )


def sensitivity(observation: Observation, scales: Sequence[float]) -> TimeSensitivity:
    """Change of the target with all intervals scaled, and its slope."""
    return time_sensitivity(
        observation.values_at_scales(scales),
        time_delta=observation.time_delta,
        time_gradient=observation.time_gradient,
        mask=observation.mask,
        target=observation.target,
    )


def backbone(observation: Observation, most: int | None = None) -> BackboneReport:
    """Statistics of the first ``most`` backbone layers."""
    return BackboneReport(
        tuple(
            layer_statistics(
                layer.values,
                layer=layer.layer,
                activation=layer.activation,
                mask=observation.mask,
            )
            for layer in observation.activations[:most]
        )
    )
