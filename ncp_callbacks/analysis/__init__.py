"""Pure functions from arrays to frozen results: no model, no plotting, no loop."""

from .attribution import TemporalImportance, temporal_importance
from .backbone import (
    ACTIVATIONS,
    BackboneReport,
    LayerStatistics,
    layer_statistics,
    recognise_activation,
)
from .states import Basis, StateSpace, fit_basis, state_space
from .time import TimeSensitivity, checked_scales, time_sensitivity
from .transitions import TransitionStatistics, stays_within, transition_statistics

__all__ = [
    "ACTIVATIONS",
    "BackboneReport",
    "Basis",
    "LayerStatistics",
    "StateSpace",
    "TemporalImportance",
    "TimeSensitivity",
    "TransitionStatistics",
    "checked_scales",
    "fit_basis",
    "layer_statistics",
    "recognise_activation",
    "state_space",
    "stays_within",
    "temporal_importance",
    "time_sensitivity",
    "transition_statistics",
]
