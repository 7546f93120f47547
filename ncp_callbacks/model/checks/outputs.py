"""Check what the second axis of a model's outputs is: time steps, or steps of a forecast.

Both can have the length of the inputs. The number of time steps changes with that of the inputs,
but so does a forecast that is as long as its inputs. The output at a time step follows the input of
its own time step, so in a matrix of output steps by input steps the sensitivities are largest on
the diagonal; all steps of a forecast follow the inputs alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...arrays import to_mlx, to_numpy
from ...held_out import HeldOutBatch
from ...likely_mistakes import layout_hint
from ...results import FloatArray
from ..errors import ModelError, count_of

__all__ = ["StepsAxis", "check_batch_axis", "find_steps_axis"]

# Returns None where the model fails.
Run: TypeAlias = Callable[[HeldOutBatch], "mx.array | None"]
StepsAxis: TypeAlias = "Literal['time', 'horizon'] | None"

# Time steps that are changed, one at a time, in batches of this length if the model permits.
_CHANGED, _LENGTH = 4, 24
# Smaller sensitivities, in units of the largest one, count as this.
_FLOOR = 1e-4
# Mean logarithm of the sensitivities on the diagonal minus that off it. Bidirectional layers and
# attention with residuals have 2.6 to 9 over 24 steps, decoders at most 0.3.
_ALIGNED = 1.5


def check_batch_axis(outputs: mx.array, held_out: HeldOutBatch) -> None:
    """Check that outputs have a row for each sequence of a batch.

    Raises:
        ModelError: If they don't; the fix depends on which of their axes may be the batch.
    """
    shape, (batch, steps, _) = tuple(outputs.shape), held_out.inputs_shape
    if shape and shape[0] == batch:
        return
    if not shape:
        fix = "Return the outputs of each sequence, not one number for all"
    elif batch in shape:
        axis = shape.index(batch)
        others = sorted(set(range(len(shape))) - {axis}, key=lambda i: shape[i] != steps)
        axes = ", ".join(map(str, (axis, *others)))
        fix = (
            f"If axis {axis} is the batch, pass forward=lambda model, inputs, time_delta: "
            f"model(inputs).transpose({axes})"
        )
    elif shape[0] == steps:
        fix = (
            "For a model that takes (time, batch, features), pass forward=lambda model, inputs, "
            "time_delta: model(inputs.swapaxes(0, 1))"
        )
    else:
        fix = "Return one row for each sequence, in the model or in forward="
    raise ModelError(
        f"the model's outputs have shape {shape} for {batch} sequences: their first axis must be "
        f"the batch. {fix}"
    )


def find_steps_axis(
    run: Run, held_out: HeldOutBatch, outputs: mx.array, horizon: bool | None
) -> StepsAxis:
    """Return what axis 1 of the outputs is; None if there is an axis of outputs only.

    Args:
        run: Runs the model, each time from the same state.
        held_out: The batch.
        outputs: ``(B, N)`` or ``(B, N, O)``.
        horizon: What the user passed.

    Raises:
        ModelError: If it can't be determined, or if the outputs have another layout.
    """
    steps, count = held_out.inputs_shape[1], outputs.shape[1]
    if horizon:
        return "horizon"
    if horizon is False:
        if count == steps:
            return "time"
        raise ModelError(
            f"horizon=False, but the model's outputs have shape {tuple(outputs.shape)} for {steps} "
            "time steps: set horizon=True, or return one output per time step in forward="
        )
    if count != steps:
        if outputs.ndim == 2:
            return None
        _check_horizon(run, held_out, outputs)
        return "horizon"
    if steps == 1:
        return "time" if outputs.ndim == 3 else None
    shorter = run(_first_steps(held_out, steps - 1))
    if shorter is not None and (shorter.ndim < 2 or shorter.shape[1] != steps - 1):
        if outputs.ndim == 2:
            return None
        _check_horizon(run, held_out, outputs)
        return "horizon"
    found = _alignment(run, held_out, outputs, any_length=shorter is not None)
    if found is None:  # nothing moves, so only sizes are known
        return "time" if outputs.ndim == 3 or shorter is not None else None
    if found > _ALIGNED:
        return "time"
    if outputs.ndim == 2 and shorter is None:
        return None
    raise ModelError(
        f"the model's outputs have shape {tuple(outputs.shape)} for {steps} time steps, and it "
        "can't be determined if axis 1 holds time steps or steps of a forecast, as each output "
        "step depends on all time steps alike. Pass horizon=True for a forecast (at= then chooses "
        "the step of the forecast), or horizon=False for time steps"
    )


def _check_horizon(run: Run, held_out: HeldOutBatch, outputs: mx.array) -> None:
    """Raise if the shape of ``(B, H, O)`` depends on the number of time steps."""
    steps, shape = held_out.inputs_shape[1], tuple(outputs.shape)
    hint = layout_hint(tuple(held_out.inputs.shape), shape[1])
    runs = False
    for fewer in range(max(1, steps - 2), steps):
        shorter = run(_first_steps(held_out, fewer))
        runs = runs or shorter is not None
        if shorter is None or shorter.shape == outputs.shape:
            continue
        check_batch_axis(shorter, _first_steps(held_out, fewer))
        if shorter.ndim == 3 and shorter.shape[1] == shape[1]:
            raise ModelError(
                f"the model's outputs have shape {shape} for {steps} time steps, and the last axis "
                "changes with the time steps: return (batch, time, outputs), for instance by "
                "forward=lambda model, inputs, time_delta: model(inputs).swapaxes(1, 2)"
            )
        ahead = steps - shape[1]
        if shorter.ndim == 3 and ahead > 0 and fewer - shorter.shape[1] == ahead:
            raise ModelError(
                f"the model's outputs have shape {shape} for {steps} time steps, {ahead} fewer, as "
                "those of models that predict what follows: let it run over as many more, by "
                "forward=lambda model, inputs, time_delta: model(mx.concatenate([inputs, "
                f"inputs[:, -{ahead}:]], axis=1))"
            )
        longest = steps - int(held_out.mask_array[:, ::-1].any(axis=0).argmax())
        if shape[1] == longest:
            raise ModelError(
                f"the model's outputs have shape {shape} for {steps} time steps: no sequence has "
                f"more than {count_of(longest, 'real time step')}, so pass a held-out batch "
                "without the padding that follows"
            )
        raise ModelError(
            f"the model's outputs have shape {shape} for {steps} time steps and "
            f"{tuple(shorter.shape)} for {fewer}: expected one output per time step (batch, time, "
            "outputs), (batch, outputs), or a forecast of fixed length (batch, horizon, outputs). "
            f"Select outputs in forward=, or pass horizon=True{hint}"
        )
    if hint and not runs:
        raise ModelError(
            f"the model's outputs have shape {shape} for {steps} time steps, and it runs on no "
            f"other number of them: pass horizon=True if it returns a forecast{hint}"
        )


def _first_steps(held_out: HeldOutBatch, count: int) -> HeldOutBatch:
    return held_out.at_time_steps(np.arange(count))


def _alignment(
    run: Run, held_out: HeldOutBatch, outputs: mx.array, *, any_length: bool
) -> float | None:
    """Return how much more output steps depend on their own time step than on others.

    Effects of rows and columns of the matrix cancel. The result is infinite if one end of the
    outputs depends on its own end of the inputs only. None: nothing moves.
    """
    steps = held_out.inputs_shape[1]
    found: list[float | None] = []
    if any_length and steps < _LENGTH:
        longer = held_out.at_time_steps(np.arange(_LENGTH) % steps)
        more = run(longer)
        if more is not None and more.ndim == outputs.ndim and more.shape[1] == _LENGTH:
            found.append(_alignment_of(_sensitivities(run, longer, more)))
    # A model that is passed lengths, too, takes what is longer than them for padding.
    if not found or (found[0] != np.inf and held_out.has_companions):
        found.append(_alignment_of(_sensitivities(run, held_out, outputs)))
    return np.inf if np.inf in found else found[0]


def _alignment_of(matrix: FloatArray | None) -> float | None:
    """Return the alignment of a matrix of sensitivities, see :func:`_alignment`."""
    if matrix is None or not matrix.max(initial=0.0) > 0:
        return None
    if _ends_are_apart(matrix) or _reaches_later_steps_only(matrix > 0):
        return np.inf
    logs = np.log(np.maximum(matrix / matrix.max(), _FLOOR))
    logs = logs - logs.mean(0) - logs.mean(1, keepdims=True) + logs.mean()
    count = len(logs)
    diagonal = np.trace(logs)
    return float(diagonal / count - (logs.sum() - diagonal) / (count * (count - 1)))


def _ends_are_apart(matrix: FloatArray) -> bool:
    """Return whether one end of the outputs depends on its own end of the inputs only."""
    # Rounding alone can let a small effect reach some outputs and not others.
    own = min(matrix[0, 0], matrix[-1, -1]) > _FLOOR * matrix.max()
    return bool(own and (matrix[0, -1] == 0 or matrix[-1, 0] == 0))


def _reaches_later_steps_only(moved: npt.NDArray[np.bool_]) -> bool:
    """Return whether no input step moves an output step before it, and several move some.

    So do models that predict the next time step, in which no output follows its own input step. The
    last input steps move all steps of a forecast.

    Args:
        moved: ``(K, K)``, true where an output step moves with an input step.
    """
    several = int(moved.any(axis=0).sum()) > 1
    return len(moved) > 2 and several and not np.triu(moved, 1).any()


def _sensitivities(run: Run, held_out: HeldOutBatch, outputs: mx.array) -> FloatArray | None:
    """Return ``(K, K)``, mean changes of output steps, by changed time steps; None if it fails."""
    batch, steps, _ = held_out.inputs_shape
    real = held_out.mask_array
    count = min(_CHANGED, int(real.sum(axis=1).max()))
    use = real.sum(axis=1) >= max(count, 2)
    if not use.any():
        return None
    # Of a sequence that is padded, the steps between its first and last real one.
    places = np.stack(
        [
            np.flatnonzero(row)[np.linspace(0, row.sum() - 1, count).round().astype(int)]
            for row in real
        ]
    )
    before = to_numpy(outputs).reshape(batch, steps, -1)
    rows = np.arange(batch)
    matrix = np.zeros((count, count))
    # The ends first, which decide it for a model that reads no later time steps.
    for column in dict.fromkeys((0, count - 1, *range(count))):
        changed, differ = _with_other_values(held_out.inputs, places[:, column], real)
        found = run(held_out.replaced("inputs", changed))
        if found is None or found.shape != outputs.shape:
            return None
        moved = np.abs(to_numpy(found).reshape(batch, steps, -1) - before).mean(axis=2)
        at = moved[rows[:, None], places][use & differ]
        matrix[:, column] = np.nan_to_num(at).mean(axis=0) if len(at) else 0.0
        if column == count - 1 and _ends_are_apart(matrix):
            break
    return matrix


def _with_other_values(
    array: mx.array, steps: npt.NDArray[np.intp], real: npt.NDArray[np.bool_]
) -> tuple[mx.array, npt.NDArray[np.bool_]]:
    """Give one time step of each sequence the values of another real one.

    A model may take columns for indices, so that no value is invented.

    Args:
        array: ``(B, T, ...)``.
        steps: ``(B,)``, the time steps to change.
        real: ``(B, T)``, true at real time steps.

    Returns:
        The changed array, and ``(B,)``, true at sequences that differ now.
    """
    batch, total = real.shape
    values = to_numpy(array).reshape(batch, total, -1)
    source = np.tile(np.arange(total), (batch, 1))
    for i, step in enumerate(steps.tolist()):
        others = np.flatnonzero(real[i] & (values[i] != values[i, step]).any(axis=1))
        if len(others):
            source[i, step] = others[0]
    differ: npt.NDArray[np.bool_] = (source != np.arange(total)).any(axis=1)
    index = to_mlx(source.reshape(batch, total, *[1] * (array.ndim - 2)))
    return mx.take_along_axis(array, index, axis=1), differ
