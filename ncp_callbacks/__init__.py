"""Watch what recurrent networks in MLX attend to while they train.

import ncp_callbacks as ncp

held_out = ncp.HeldOutBatch(x_val, time_delta=dt_val)
with ncp.Monitor(model, held_out, log_dir="runs/cfc-seed0") as monitor:
    for step, (x, dt, y) in enumerate(batches, start=1):
        loss = train_step(x, dt, y)
        monitor.on_step_end(step, loss=loss)
"""

from .callbacks import (
    BackboneActivations,
    Callback,
    GradientAttribution,
    StateSpace,
    StateTransitions,
    TimeSensitivity,
)
from .held_out import HeldOutBatch
from .instrument import ModelError, NothingToObserve
from .interpret import (
    StateTransitionAnalyzer,
    analyze_backbone,
    analyze_time_sensitivity,
    compute_temporal_importance,
    interpret_model,
    visualize_hidden_states,
)
from .monitor import Monitor
from .observation import Need, Observation
from .plots import (
    plot_feature_importance,
    plot_state_space,
    plot_time_sensitivity,
    plot_unit_activity,
)
from .records import Array, Figure, Histogram, Note, Record, Scalar, Text
from .schedules import Schedule, at, every, log_spaced
from .writers import MemoryWriter, TensorBoardWriter, Writer

__version__ = "0.1.0"

__all__ = [
    "Array",
    "BackboneActivations",
    "Callback",
    "Figure",
    "GradientAttribution",
    "HeldOutBatch",
    "Histogram",
    "MemoryWriter",
    "ModelError",
    "Monitor",
    "Need",
    "Note",
    "NothingToObserve",
    "Observation",
    "Record",
    "Scalar",
    "Schedule",
    "StateSpace",
    "StateTransitionAnalyzer",
    "StateTransitions",
    "TensorBoardWriter",
    "Text",
    "TimeSensitivity",
    "Writer",
    "analyze_backbone",
    "analyze_time_sensitivity",
    "at",
    "compute_temporal_importance",
    "every",
    "interpret_model",
    "log_spaced",
    "plot_feature_importance",
    "plot_state_space",
    "plot_time_sensitivity",
    "plot_unit_activity",
    "visualize_hidden_states",
]
