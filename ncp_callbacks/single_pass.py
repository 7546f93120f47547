"""Run one pass over some sequences, and hold the states of its cells."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from .arrays import read_only
from .model import CellHook, ModelRunner
from .model.batching import EvaluatedPass, run_in_batches
from .observation import Need, Trajectory
from .results import FloatArray

__all__ = ["run_pass", "trajectories"]


def run_pass(runner: ModelRunner, needs: Collection[Need]) -> list[EvaluatedPass]:
    """Run one pass with the declared arrays, in parts as large as memory allows."""
    computed = (Need.INPUT_GRADIENT, Need.TIME_GRADIENT, Need.STATES, Need.ACTIVATIONS)
    return list(run_in_batches(runner, {need.value: need in needs for need in computed}))


def trajectories(runner: ModelRunner, passes: Sequence[EvaluatedPass]) -> tuple[Trajectory, ...]:
    """Return the states of each recurrent cell."""
    return tuple(
        Trajectory(
            hook.name,
            read_only(np.concatenate([part.states(hook) for part in passes])),
            _initial(hook, passes),
            hook.reverse,
        )
        for hook in runner.hook_points.cells
        if not hook.skipped
    )


def _initial(hook: CellHook, passes: Sequence[EvaluatedPass]) -> FloatArray | None:
    parts = [part.initial(hook) for part in passes]
    known = [part for part in parts if part is not None]
    return read_only(np.concatenate(known)) if len(known) == len(parts) else None
