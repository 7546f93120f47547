"""Log speed, autocorrelation, dimensions and drift of the states of a cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...callback import AxisLimit
from ...records import Array, Histogram, Note
from ...results import FloatArray
from ..record_log import RecordLog
from ..state_transitions.analysis import transition_statistics
from .analysis import (
    autocorrelation_times,
    corrected_participation_estimate,
    corrected_participation_ratio,
    state_drift,
)
from .descriptions import log_quantiles

__all__ = [
    "CellHistory",
    "log_autocorrelation",
    "log_dimensions",
    "log_drift",
    "log_speeds",
]

_BINS, _MAX_STATES = 40, 512


class CellHistory:
    """Hold what a cell is compared with: earlier states and memory, and limits of axes.

    Attributes:
        first: ``(N, H)``, states of the first snapshot.
        previous: ``(N, H)``, states of the previous snapshot.
        memory: ``(K,)``, curve of the memory at the first snapshot.
        speed: Limit of the histogram of speeds.
        decades: Limits of the axis of the memory, below and above 1.
    """

    def __init__(self) -> None:
        self.first: FloatArray | None = None
        self.previous: FloatArray | None = None
        self.memory: FloatArray | None = None
        self.speed = AxisLimit()
        self.decades = AxisLimit(), AxisLimit()

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive an interruption."""
        arrays = {"first": self.first, "previous": self.previous, "memory": self.memory}
        return {
            **{name: array for name, array in arrays.items() if array is not None},
            "speed": self.speed.value,
            "decades": [side.value for side in self.decades],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name in ("first", "previous", "memory"):
            if name in state:
                setattr(self, name, np.asarray(state[name], np.float32))
        below, above = state["decades"]
        self.speed = AxisLimit(float(state["speed"]))
        self.decades = AxisLimit(float(below)), AxisLimit(float(above))


def log_speeds(
    log: RecordLog,
    history: CellHistory,
    states: FloatArray,
    delta: FloatArray | None,
    mask: np.ndarray | None,
) -> None:
    """Log how fast units move."""
    per = "time step" if delta is None else "unit of time_delta"
    speed = transition_statistics(states, time_delta=delta, mask=mask).unit_speed_max
    speed = speed[np.isfinite(speed)]
    log_quantiles(log, "unit_speed", speed, (0.1, 0.5, 0.9), per=per)
    if speed.size:
        edges = np.linspace(0.0, history.speed.covering(float(speed.max())), _BINS + 1)
        what = f"Largest |dh_i| of each unit per {per}"
        log.records.append(Histogram(f"{log.group}/unit_speed", speed, edges, what))


def log_autocorrelation(
    log: RecordLog, states: FloatArray, delta: FloatArray | None, mask: np.ndarray | None
) -> None:
    """Log how long the autocorrelation of units lasts."""
    times = autocorrelation_times(states, time_delta=delta, mask=mask)
    known = times.values[np.isfinite(times.values)]
    unit = "time steps" if delta is None else "units of time_delta"
    shares = (0.1, 0.5, 0.9)
    estimates = times.quantile_estimates(shares)
    log_quantiles(log, "autocorrelation", known, shares, estimates, unit=unit)
    if known.size:
        log.scalar("undecayed", times.undecayed)
    log.records.append(Array(f"_ncp/{log.group}_autocorrelation", times.values, axes=("unit",)))


def log_dimensions(log: RecordLog, states: FloatArray, mask: np.ndarray | None) -> None:
    """Log how many dimensions are in use."""
    ratio = corrected_participation_ratio(states, mask=mask)
    if len(states) < 4:
        log.records.append(
            Note(
                f"{log.group}/participation_ratio_corrected compares different sequences and needs "
                f"at least 4; the held-out batch has {len(states)}, so it is NaN"
            )
        )
    estimate = corrected_participation_estimate(states, ratio, mask)
    log.scalar("participation_ratio_corrected", ratio, estimate)


def log_drift(log: RecordLog, history: CellHistory, states: FloatArray, real: np.ndarray) -> None:
    """Log how far the states are from those of the first and of the previous snapshot."""
    now, sequence = states[real], np.nonzero(real)[0]
    if len(now) > _MAX_STATES:
        some = np.random.default_rng(0).choice(len(now), _MAX_STATES, replace=False)
        some = np.sort(some)
        now, sequence = now[some], sequence[some]
    now = np.array(now, np.float32)
    first, previous = history.first, history.previous
    if first is not None and first.shape != now.shape:
        log.note(
            f"there are {len(now)} states of {now.shape[1]} units, where there were "
            f"{' of '.join(map(str, first.shape))}; their drift is measured from this snapshot on"
        )
        first = previous = None
    history.first, history.previous = (now if first is None else first), now
    for before, when in ((history.first, "first"), (previous, "previous")):
        drift = state_drift(now, now if before is None else before, sequence)
        if not math.isnan(drift.cka):
            estimates = drift.estimates
            log.scalar(f"cka_{when}", drift.cka, estimates.get("cka"), entry="cka", when=when)
            log.scalar(
                f"procrustes_{when}", drift.procrustes, estimates.get("procrustes"),
                entry="procrustes", when=when,
            )  # fmt: skip
