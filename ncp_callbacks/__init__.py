"""Watch what recurrent networks in MLX attend to while they train.

    import ncp_callbacks as ncp

    held_out = ncp.HeldOutBatch(x_val, time_delta=dt_val)
    with ncp.Monitor(model, held_out, log_dir="runs/cfc-seed0") as monitor:
        for step, (x, dt, y) in enumerate(batches, start=1):
            loss = train_step(x, dt, y)
            monitor.on_step_end(step, loss=loss)

The names below are the public ones.
"""

from typing import TYPE_CHECKING, Any

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
from .integrations import ReportCallback
from .interpret import (
    Interpretation,
    StateTransitionAnalyzer,
    analyze_backbone,
    analyze_time_sensitivity,
    compute_temporal_importance,
    interpret_model,
    visualize_hidden_states,
)
from .monitor import Monitor
from .observation import Activations, Need, Observation, Trajectory
from .plots import (
    plot_feature_importance,
    plot_state_space,
    plot_time_sensitivity,
    plot_unit_activity,
)
from .records import Array, Figure, Histogram, Note, Record, Scalar, Text
from .schedules import Schedule, ScheduleLike, at, every, log_spaced
from .writers import MemoryWriter, TensorBoardWriter, Writer

if TYPE_CHECKING:
    from .runs import Comparison, compare_runs

__version__ = "0.1.0"

__all__ = [
    "Activations",
    "Array",
    "BackboneActivations",
    "Callback",
    "Comparison",
    "Figure",
    "GradientAttribution",
    "HeldOutBatch",
    "Histogram",
    "Interpretation",
    "MemoryWriter",
    "ModelError",
    "Monitor",
    "Need",
    "Note",
    "NothingToObserve",
    "Observation",
    "Record",
    "ReportCallback",
    "Scalar",
    "Schedule",
    "ScheduleLike",
    "StateSpace",
    "StateTransitionAnalyzer",
    "StateTransitions",
    "TensorBoardWriter",
    "Text",
    "TimeSensitivity",
    "Trajectory",
    "Writer",
    "analyze_backbone",
    "analyze_time_sensitivity",
    "at",
    "compare_runs",
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


def __getattr__(name: str) -> Any:
    # Reading logs back takes modules that a training run has no use for.
    if name in ("Comparison", "compare_runs"):
        from . import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
