"""From an observation to a result: what callbacks and the offline functions share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .analysis import (
    BackboneReport,
    TemporalImportance,
    TimeSensitivity,
    layer_statistics,
    temporal_importance,
    time_sensitivity,
)
from .observation import Observation

__all__ = ["backbone", "importance", "sensitivity"]


def importance(observation: Observation) -> TemporalImportance:
    """Input × gradient; of tokens, summed over the dimensions of what they are embedded as."""
    inputs, gradient = observation.inputs, observation.input_gradient
    if observation.held_out.tokens:
        inputs = (inputs.astype(np.float64) * gradient).sum(axis=-1, keepdims=True)
        gradient = np.ones_like(inputs)
    return temporal_importance(
        inputs,
        gradient,
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
