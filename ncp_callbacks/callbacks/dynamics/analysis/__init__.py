"""Measure the dynamics of a recurrent state: its units, its drift, and how long it remembers.

These functions take states ``(B, T, H)``::

    autocorrelation_times(states, time_delta=dt)        # one a unit
    corrected_participation_ratio(states)
    state_drift(states[real], first[real])              # .cka, .procrustes
    unit_correlations(states[:, -1], target_values)     # one a unit

These take the Jacobians ``(S, T-1, H, H)`` of the steps,
``jacobians[s, t] = d h_{t+1} / d h_t``::

    radius, norm = jacobian_gains(jacobians)
    lyapunov_exponents(jacobians, time_delta=dt)        # (S, 3), over the sequence
    stability_exponents(jacobians, time_delta=dt)       # (S,), without transient growth
    memory_horizon(jacobians, time_delta=dt).steps

``time_delta`` is ``(B, T)``, the elapsed time before each time step; without it, time is counted in
time steps. ``mask`` is ``(B, T)``, true at real time steps; values at padding have no effect.
"""

from .arguments import SMALLEST, elapsed_within, real_steps
from .exponents import (
    exponents_of,
    gain_sequences,
    jacobian_gains,
    log_singular_values,
    log_spectral_radius,
    lyapunov_exponents,
    stability_exponents,
)
from .memory import (
    Memory,
    TargetMemory,
    last_crossing,
    last_steps_kept,
    memory_horizon,
    memory_of,
    target_memory,
)
from .states import (
    AutocorrelationTimes,
    StateDrift,
    UnitCorrelations,
    autocorrelation_times,
    corrected_participation_estimate,
    corrected_participation_ratio,
    state_drift,
    unit_correlations,
)

__all__ = [
    "SMALLEST",
    "AutocorrelationTimes",
    "Memory",
    "StateDrift",
    "TargetMemory",
    "UnitCorrelations",
    "autocorrelation_times",
    "corrected_participation_estimate",
    "corrected_participation_ratio",
    "elapsed_within",
    "exponents_of",
    "gain_sequences",
    "jacobian_gains",
    "last_crossing",
    "last_steps_kept",
    "log_singular_values",
    "log_spectral_radius",
    "lyapunov_exponents",
    "memory_horizon",
    "memory_of",
    "real_steps",
    "stability_exponents",
    "state_drift",
    "target_memory",
    "unit_correlations",
]
