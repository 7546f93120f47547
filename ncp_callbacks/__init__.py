"""Watch what recurrent networks in MLX attend to while they train.

    import ncp_callbacks as ncp

    held_out = ncp.HeldOutBatch(x_val, time_delta=dt_val)
    with ncp.Monitor(model, held_out, log_dir="runs/cfc-seed0") as monitor:
        for step, (x, dt, y) in enumerate(batches, start=1):
            loss = train_step(x, dt, y)
            monitor.on_step_end(step, loss=loss)

The names below are the public ones.
"""

from typing import TYPE_CHECKING

from ._later import later
from .callback import (
    AxisLimit,
    Callback,
    PairedChanges,
    for_each_supported_cell,
    non_finite_count,
    per_cell_names,
    scalar_with_ci,
    small_batch_note,
)
from .callbacks import (
    BackboneActivations,
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
from .records import Array, Embedding, Figure, Histogram, Note, Record, Scalar, Text
from .schedules import Schedule, ScheduleLike, at, every, log_spaced
from .stats import Estimate
from .writers import MemoryWriter, TensorBoardWriter, Writer

if TYPE_CHECKING:
    from .callbacks import (
        Dynamics,
        Faithfulness,
        FeatureInteractions,
        OutputTime,
        SanityCheck,
        SinglePredictions,
        TimeConstants,
        Wiring,
    )
    from .plots import (
        plot_dynamics,
        plot_faithfulness,
        plot_interactions,
        plot_output_time,
        plot_prediction,
        plot_sanity,
        plot_sanity_measures,
        plot_time_constants,
        plot_time_constants_over_time,
        plot_wiring,
    )
    from .runs import Comparison, compare_runs

__version__ = "0.1.0"

__all__ = [
    "Activations",
    "Array",
    "AxisLimit",
    "BackboneActivations",
    "Callback",
    "Comparison",
    "Dynamics",
    "Embedding",
    "Estimate",
    "Faithfulness",
    "FeatureInteractions",
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
    "OutputTime",
    "PairedChanges",
    "Record",
    "ReportCallback",
    "SanityCheck",
    "Scalar",
    "Schedule",
    "ScheduleLike",
    "SinglePredictions",
    "StateSpace",
    "StateTransitionAnalyzer",
    "StateTransitions",
    "TensorBoardWriter",
    "Text",
    "TimeConstants",
    "TimeSensitivity",
    "Trajectory",
    "Wiring",
    "Writer",
    "analyze_backbone",
    "analyze_time_sensitivity",
    "at",
    "compare_runs",
    "compute_temporal_importance",
    "every",
    "for_each_supported_cell",
    "interpret_model",
    "log_spaced",
    "non_finite_count",
    "per_cell_names",
    "plot_dynamics",
    "plot_faithfulness",
    "plot_feature_importance",
    "plot_interactions",
    "plot_output_time",
    "plot_prediction",
    "plot_sanity",
    "plot_sanity_measures",
    "plot_state_space",
    "plot_time_constants",
    "plot_time_constants_over_time",
    "plot_time_sensitivity",
    "plot_unit_activity",
    "plot_wiring",
    "scalar_with_ci",
    "small_batch_note",
    "visualize_hidden_states",
]

__getattr__ = later(
    __name__,
    {
        **dict.fromkeys(
            (
                "Dynamics",
                "Faithfulness",
                "FeatureInteractions",
                "OutputTime",
                "SanityCheck",
                "SinglePredictions",
                "TimeConstants",
                "Wiring",
            ),
            ".callbacks",
        ),
        **dict.fromkeys(
            (
                "plot_dynamics",
                "plot_faithfulness",
                "plot_interactions",
                "plot_output_time",
                "plot_prediction",
                "plot_sanity",
                "plot_sanity_measures",
                "plot_time_constants",
                "plot_time_constants_over_time",
                "plot_wiring",
            ),
            ".plots",
        ),
        **dict.fromkeys(("Comparison", "compare_runs"), ".runs"),
    },
)


def __dir__() -> list[str]:
    return __all__
