"""Log what the states of a cell have to do with the target, and draw the overview."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...model import NotApplicable
from ...observation import Observation
from ...records import Array, Figure, Note, Record
from ...results import FloatArray
from ..record_log import RecordLog
from .analysis import Memory, TargetMemory, last_steps_kept, target_memory, unit_correlations
from .descriptions import PLACES, SCALARS, log_quantiles
from .plot import needed_decades, plot_dynamics
from .state_records import CellHistory

__all__ = ["log_target_memory", "overview"]


def log_target_memory(log: RecordLog, observation: Observation) -> TargetMemory | None:
    """Log how much the target changes when all but the last time steps are removed."""
    real = observation.held_out.mask_array
    last = real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
    kept = last_steps_kept(last + 1)
    values = []
    try:
        for count in kept:
            steps = np.maximum(last - count + 1, 0)[:, None] + np.arange(count)
            inside = steps <= last[:, None]
            steps = np.minimum(steps, last[:, None])
            mask = inside & np.take_along_axis(real, steps, axis=1)
            shorter = observation.extra_passes.with_fewer_steps(steps, mask)
            values.append(shorter.values[0])
    except NotApplicable as reason:
        log.note(f"the memory of the target is skipped: {reason}")
        return None
    if not values:
        return None
    found = target_memory(kept, np.stack(values), observation.target_values)
    if found is None:
        return None
    log.scalar("target_memory_steps", found.steps, found.estimate)
    log.scalar("target_memory_left", found.left.value, found.left, kept=int(kept[-1]))
    curve = np.stack([found.kept.astype(np.float64), found.curve])
    log.records.append(Array(f"_ncp/{log.group}_target_memory", curve))
    return found


def overview(
    log: RecordLog,
    history: CellHistory,
    observation: Observation,
    states: FloatArray,
    real: np.ndarray,
    memory: Memory | None,
    of_target: TargetMemory | None,
) -> list[Record | Note]:
    """Return the picture and the correlations with the target, with the target in their tags."""
    cell, target = log.words["cell"], observation.target
    log = RecordLog(log.group + observation.target_slug, SCALARS, places=PLACES, target=target)
    last = real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
    correlations = unit_correlations(
        states[np.arange(len(states)), last], observation.target_values
    )
    options: dict[str, Any] = {"target": target, "step": observation.step}
    options["of_target"] = of_target
    if memory is not None and memory.sequences:
        options |= {"memory": memory, "first": history.memory}
        if history.memory is None:
            history.memory = memory.curve.astype(np.float32)
        needed = needed_decades(memory.curve, history.memory)
        for side, decades in zip(history.decades, needed, strict=True):
            side.cover(decades)
        below, above = history.decades
        options["decades"] = int(below.value), int(above.value)
    log.records.append(
        Figure(
            f"{log.group}/overview",
            plot_dynamics,
            correlations,
            options,
            f"Left, where the Jacobians are known: RMS share of a change of the state of {cell} "
            "that is left in the last state, against the number of time steps between them; "
            "dashed: the first snapshot; shaded: its 95 % CI, which is unreliable for so few "
            f"sequences. Orange: change of the {target} when only so many last time steps are "
            "kept, in its SDs; what a latch keeps counts. Right: correlation of each unit's "
            f"last state with the {target} over sequences, sorted; dotted: threshold of chance.",
        )
    )
    size = np.abs(correlations.values[np.isfinite(correlations.values)])
    if not size.size:
        log.note(
            f"the {target} is the same for all sequences, or all units are, so there is no "
            "correlation between them"
        )
        return log.records
    log.scalar("target_correlation_max", float(size.max()))
    log_quantiles(log, "target_correlation", size, (0.5, 0.9))
    log.scalar("beyond_chance", float((size > correlations.chance).mean()))
    log.records.append(
        Array(f"_ncp/{log.group}_target_correlation", correlations.values, axes=("unit",))
    )
    return log.records
