"""Pure functions from arrays to frozen results: no model, no plotting, no loop."""

from typing import TYPE_CHECKING

from .._later import later
from .attribution import TemporalImportance, summarize, temporal_importance
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

if TYPE_CHECKING:
    from .dynamics import (
        AutocorrelationTimes,
        Memory,
        StateDrift,
        UnitCorrelations,
        autocorrelation_times,
        corrected_participation_ratio,
        jacobian_gains,
        lyapunov_exponents,
        memory_horizon,
        state_drift,
        unit_correlations,
    )
    from .faithfulness import Deletion, deletion, max_sensitivity
    from .sanity import Cascade, Measures, map_similarity
    from .time_constants import (
        LTCParameters,
        UnitTimeConstants,
        effective_time_constants,
        gate_time_constants,
        half_times,
        ltc_step,
        system_time_constants,
        time_constant_bounds,
        unit_time_constants,
    )
    from .wiring import (
        GroupActivity,
        NeuronGroup,
        SynapticFlow,
        group_activity,
        group_shares,
        synaptic_flow,
    )

__all__ = [
    "ACTIVATIONS",
    "AutocorrelationTimes",
    "BackboneReport",
    "Basis",
    "Cascade",
    "Deletion",
    "GroupActivity",
    "LTCParameters",
    "LayerStatistics",
    "Measures",
    "Memory",
    "NeuronGroup",
    "StateDrift",
    "StateSpace",
    "SynapticFlow",
    "TemporalImportance",
    "TimeSensitivity",
    "TransitionStatistics",
    "UnitCorrelations",
    "UnitTimeConstants",
    "autocorrelation_times",
    "checked_scales",
    "corrected_participation_ratio",
    "deletion",
    "effective_time_constants",
    "fit_basis",
    "gate_time_constants",
    "group_activity",
    "group_shares",
    "half_times",
    "jacobian_gains",
    "layer_statistics",
    "ltc_step",
    "lyapunov_exponents",
    "map_similarity",
    "max_sensitivity",
    "memory_horizon",
    "recognise_activation",
    "state_drift",
    "state_space",
    "stays_within",
    "summarize",
    "synaptic_flow",
    "system_time_constants",
    "temporal_importance",
    "time_constant_bounds",
    "time_sensitivity",
    "transition_statistics",
    "unit_correlations",
    "unit_time_constants",
]

__getattr__ = later(
    __name__,
    {
        "AutocorrelationTimes": ".dynamics",
        "Memory": ".dynamics",
        "StateDrift": ".dynamics",
        "UnitCorrelations": ".dynamics",
        "autocorrelation_times": ".dynamics",
        "corrected_participation_ratio": ".dynamics",
        "jacobian_gains": ".dynamics",
        "lyapunov_exponents": ".dynamics",
        "memory_horizon": ".dynamics",
        "state_drift": ".dynamics",
        "unit_correlations": ".dynamics",
        "Deletion": ".faithfulness",
        "deletion": ".faithfulness",
        "max_sensitivity": ".faithfulness",
        "Cascade": ".sanity",
        "Measures": ".sanity",
        "map_similarity": ".sanity",
        "LTCParameters": ".time_constants",
        "UnitTimeConstants": ".time_constants",
        "effective_time_constants": ".time_constants",
        "gate_time_constants": ".time_constants",
        "half_times": ".time_constants",
        "ltc_step": ".time_constants",
        "system_time_constants": ".time_constants",
        "time_constant_bounds": ".time_constants",
        "unit_time_constants": ".time_constants",
        "GroupActivity": ".wiring",
        "NeuronGroup": ".wiring",
        "SynapticFlow": ".wiring",
        "group_activity": ".wiring",
        "group_shares": ".wiring",
        "synaptic_flow": ".wiring",
    },
)
