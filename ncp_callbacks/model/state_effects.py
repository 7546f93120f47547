"""Measure what the states of a cell do to the targets: clamp units, and differentiate.

Call the functions inside ``runner.preserved()``, like :meth:`ModelRunner.run`.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..arrays import to_mlx
from ..results import FloatArray
from .errors import explaining_missing_gradients
from .pass_arrays import Variants
from .runner import ModelRunner, flushing_subnormals
from .state_changes import Moment, StateChanges
from .target import Target

__all__ = ["clamp_slopes", "clamped", "state_gradient"]

_Columns = npt.NDArray[np.intp]


def clamped(
    runner: ModelRunner,
    changes: StateChanges,
    units: _Columns,
    values: FloatArray,
    chosen: mx.array | None,
    *,
    loss: bool,
) -> Variants:
    """Compute the targets with one unit at a time held at a value, in one pass.

    Args:
        runner: The model and the batch.
        changes: The cell, of the same model.
        units: ``(K,)``, the unit that each copy of the batch holds.
        values: ``(H,)``, the value of each unit.
        chosen: ``(B,)``, the outputs to follow, see :meth:`Target.choose`.
        loss: Also compute the loss.
    """
    held = to_mlx((units[:, None] == np.arange(len(values))).astype(np.float32))
    wanted = to_mlx(values.astype(np.float32))

    def change(at: Moment, columns: _Columns, rows: mx.array) -> mx.array:
        here = to_mlx(columns)
        copies = held[:, None, here]
        apart = rows.reshape(len(units), -1, len(columns))
        new = mx.where(copies > 0, wanted[here].astype(rows.dtype), apart)
        return new.reshape(rows.shape)

    sequence, delta = runner.sequence(), runner.time_delta
    count = len(units)
    x = mx.broadcast_to(sequence, (count, *sequence.shape))
    dt = None if delta is None else mx.broadcast_to(delta, (count, *delta.shape))
    with changes.applied(change):
        return runner.variants(x, dt, chosen, loss=loss)


def clamp_slopes(
    runner: ModelRunner, changes: StateChanges, values: FloatArray, chosen: mx.array | None
) -> mx.array:
    """Compute ``(B, H)``, the change of the targets that the slope predicts for clamping a unit.

    It is the derivative of the target by ``a`` at 0, where each state is ``h + a (value - h)``.

    Args:
        runner: The model and the batch.
        changes: The cell.
        values: ``(H,)``, the value of each unit.
        chosen: ``(B,)``, the outputs to follow.
    """
    wanted = to_mlx(values.astype(np.float32))

    def moved(by: mx.array) -> Callable[[Moment, _Columns, mx.array], mx.array]:
        def change(at: Moment, columns: _Columns, rows: mx.array) -> mx.array:
            here = to_mlx(columns)
            way = mx.stop_gradient(wanted[here].astype(rows.dtype) - rows)
            return rows + by[:, here].astype(rows.dtype) * way

        return change

    start = mx.zeros((len(runner.held_out), changes.units))
    return _gradient(runner, changes, runner.target, moved, start, chosen)


def state_gradient(
    runner: ModelRunner, changes: StateChanges, target: Target, chosen: mx.array | None
) -> mx.array:
    """Compute ``(B, T, H)``, the gradient of a target by the state after each time step.

    Args:
        runner: The model and the batch.
        changes: The cell.
        target: The target of the runner, or its loss.
        chosen: ``(B,)``, the outputs to follow.
    """
    batch, steps, _ = runner.held_out.inputs_shape

    def moved(by: mx.array) -> Callable[[Moment, _Columns, mx.array], mx.array]:
        def change(at: Moment, columns: _Columns, rows: mx.array) -> mx.array:
            if not at.is_last:
                return rows
            return rows + by[:, at.time_step][:, to_mlx(columns)].astype(rows.dtype)

        return change

    start = mx.zeros((batch, steps, changes.units))
    return _gradient(runner, changes, target, moved, start, chosen)


def _gradient(
    runner: ModelRunner,
    changes: StateChanges,
    target: Target,
    moved: Callable[[mx.array], Callable[[Moment, _Columns, mx.array], mx.array]],
    start: mx.array,
    chosen: mx.array | None,
) -> mx.array:
    # Before: reading the vectors of tokens may run the model.
    sequence, delta = runner.sequence(), runner.time_delta

    def total(by: mx.array) -> mx.array:
        with changes.applied(moved(by)):
            outputs = runner.outputs(sequence, delta)
        return target(outputs, chosen).sum()

    what = "of the targets by the states"
    with flushing_subnormals(runner), explaining_missing_gradients(what):
        found: mx.array = mx.grad(total)(start)
    return found
