"""Check what a held-out batch is made of, and raise errors that name the fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arrays import FLOATING, copied, to_mlx, to_numpy
from .likely_mistakes import check_array, layout_hint
from .sequences import as_float32

__all__ = [
    "checked_channel_axis",
    "checked_inputs",
    "checked_mask",
    "checked_names",
    "checked_targets",
    "checked_time_delta",
]

# Frames with up to so many channels, and with sides from so many pixels on, are pictures.
_MAX_PICTURE_CHANNELS, _MIN_PICTURE_SIDE = 4, 8


def checked_inputs(inputs: Any) -> tuple[mx.array, Any]:
    """Return the sequence, and its container with None in its place, or None."""
    check_array(inputs, "inputs")
    if isinstance(inputs, mx.array | np.ndarray):
        return _checked_sequence(inputs), None
    if not isinstance(inputs, dict | list | tuple) or not inputs:
        raise TypeError(
            f"inputs is a {type(inputs).__name__}: pass an array (batch, time steps, "
            "features) or frames (batch, time steps, ..., channels), or a tuple, list or dict "
            "of arrays of which one is such a sequence"
        )
    items = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
    arrays = {key: _array(value, f"inputs[{key!r}]") for key, value in items}
    shapes = ", ".join(f"{k!r}: {tuple(a.shape)} {a.dtype}" for k, a in arrays.items())
    floating = {k: a for k, a in arrays.items() if a.ndim > 2 and a.dtype in FLOATING}
    # A picture that belongs to a sequence, without an axis of time, is a companion.
    steps = {a.shape[1] for a in floating.values() if a.ndim == 3}
    sequences = [k for k, a in floating.items() if not steps or a.ndim == 3 or a.shape[1] in steps]
    if not sequences:
        sequences = [
            k for k, a in arrays.items() if a.ndim == 2 and mx.issubdtype(a.dtype, mx.integer)
        ]
    if len(sequences) != 1:
        raise ValueError(
            f"inputs holds {shapes}; expected one sequence among them, floating (batch, time "
            "steps, features) or frames (batch, time steps, ..., channels), or tokens (batch, "
            f"time steps). {_joined(floating)}Pass the one to analyse alone, "
            "and add the others in forward=lambda model, inputs, time_delta: ..."
        )
    key = sequences[0]
    sequence = _checked_sequence(arrays[key])
    odd = [k for k, a in arrays.items() if a.ndim == 0 or len(a) != len(sequence)]
    if odd:
        raise ValueError(
            f"inputs holds {shapes}; all must have the batch first, which is {len(sequence)} "
            f"in {key!r}, but not in {odd[0]!r}"
        )
    mx.eval(list(arrays.values()))
    container: Any = {k: None if k == key else a for k, a in arrays.items()}
    if not isinstance(inputs, dict):
        container = type(inputs)(container.values())
    return sequence, container


def _array(value: Any, what: str) -> mx.array:
    check_array(value, what)
    if not isinstance(value, mx.array | np.ndarray):
        raise TypeError(f"{what} is a {type(value).__name__}: pass an mx.array or numpy array")
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        value = as_float32(value, what)  # as mx.array does for Python floats
    return to_mlx(value)


def _checked_sequence(inputs: Any) -> mx.array:
    array = _array(inputs, "inputs")
    tokens = array.ndim == 2 and mx.issubdtype(array.dtype, mx.integer)
    if (array.ndim < 3 and not tokens) or 0 in array.shape:
        raise ValueError(
            f"inputs has shape {tuple(array.shape)}; expected (batch, time steps, features), "
            "or frames (batch, time steps, ..., channels), none of them 0. For one sequence "
            "use inputs[None], for one feature inputs[..., None], for tokens "
            "inputs.astype(mx.int32) of shape (batch, time steps)"
        )
    if array.dtype not in FLOATING and not tokens:
        raise TypeError(
            f"inputs has dtype {array.dtype}; gradients need floating inputs: use "
            "inputs.astype(mx.float32). Tokens have shape (batch, time steps)"
        )
    mx.eval(array)
    return array


def _joined(sequences: Mapping[Any, mx.array]) -> str:
    """Return how to pass sequences of equal lengths as one; "" if they can't be.

    Args:
        sequences: By their key in a dict, or their index.
    """
    arrays = list(sequences.values())
    if len(arrays) < 2 or len({a.shape[:-1] for a in arrays}) > 1:
        return ""
    ends = np.cumsum([a.shape[-1] for a in arrays[:-1]]).tolist()
    parts = f"*mx.split(inputs, {ends}, axis=-1)"
    if all(isinstance(key, str) for key in sequences):
        parts = f"dict(zip({list(sequences)}, {parts[1:]}))"
    return (
        "To analyse them together, pass inputs=mx.concatenate([...], axis=-1) and forward=lambda "
        f"model, inputs, time_delta: model({parts}), with the elapsed times if the model takes "
        "them. "
    )


def checked_channel_axis(axis: Any, inputs: mx.array, names: Sequence[str] | None) -> int | None:
    """Return the axis of a frame that holds its channels, None for frames without channels.

    Raises:
        TypeError, ValueError: The axis is not one of a frame, or the last axis is not likely to
            hold the channels.
    """
    ndim, shape = inputs.ndim, tuple(inputs.shape)
    if axis is None or ndim == 2:
        if axis not in (None, "last") or (axis is None and ndim == 3):
            raise ValueError(
                f"channel_axis={axis!r}, but inputs {shape} are not frames: don't pass it"
            )
        return None
    if axis == "last":
        _check_last_axis(shape, names)
        axis = -1
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(
            f"channel_axis={axis!r} is a {type(axis).__name__}: pass the number of an axis of "
            "inputs, such as 2 for (batch, time steps, channels, height, width), or None"
        )
    own = axis + ndim if axis < 0 else axis
    if not 2 <= own < ndim:
        raise ValueError(
            f"channel_axis={axis}, but the axes of a frame in inputs {shape} are 2 to "
            f"{ndim - 1}: pass one of these, or None if frames have no channels"
        )
    return own - 2


def _check_last_axis(inputs_shape: tuple[int, ...], names: Sequence[str] | None) -> None:
    """Raise if another axis than the last is likely to hold the channels."""
    shape = inputs_shape[2:]
    if names is not None and not isinstance(names, str) and len(shape) > 1:
        fitting = [axis + 2 for axis, size in enumerate(shape) if size == len(names)]
        if fitting and shape[-1] != len(names):
            raise ValueError(
                f"feature_names has {len(names)} names, but the last axis of inputs "
                f"{inputs_shape} is {shape[-1]} long: pass "
                f"channel_axis={fitting[0]} if that axis holds the named features"
            )
    small = [axis + 2 for axis, size in enumerate(shape) if size <= _MAX_PICTURE_CHANNELS]
    sides = sum(size >= _MIN_PICTURE_SIDE for size in shape)
    picture = shape[-1] >= _MIN_PICTURE_SIDE and sides >= 2 and names is None
    if picture and len(shape) == 3 and small == [2]:
        raise ValueError(
            f"inputs has shape {inputs_shape}, in which axis 2 is "
            "probably that of the channels: pass channel_axis=2, or channel_axis=-1 if the "
            "last axis holds the channels"
        )
    if picture and len(shape) == 2:
        raise ValueError(
            f"inputs has shape {inputs_shape}, probably frames without channels: "
            "pass channel_axis=None if they are, or channel_axis=-1 (or 2) if this axis holds "
            "named features"
        )


def checked_mask(mask: Any, inputs_shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    """Return the mask, ``(B, T)`` and read-only, or None."""
    if mask is None:
        return None
    batch, steps = inputs_shape[:2]
    check_array(mask, "mask")
    array = np.array(mask)
    if array.shape != (batch, steps):
        raise ValueError(
            f"mask has shape {array.shape}; expected (batch, time steps) = ({batch}, {steps})"
            + _layout_hint(inputs_shape, array.shape)
        )
    if array.dtype != np.bool_:
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"mask holds {array.min()} to {array.max()}: pass booleans")
        array = array.astype(bool)
    empty = np.flatnonzero(~array.any(axis=1))
    if len(empty):
        raise ValueError(
            f"mask leaves no step in sequence {empty[0]} ({len(empty)} such): drop the "
            "sequence, or mark at least one step as real"
        )
    array.flags.writeable = False
    return array


def checked_time_delta(
    time_delta: Any, inputs_shape: tuple[int, ...], mask: npt.NDArray[np.bool_] | None
) -> mx.array | None:
    """Return elapsed times in the shape passed, of one number ``(B, T)``, or None."""
    if time_delta is None:
        return None
    batch, steps = inputs_shape[:2]
    check_array(time_delta, "time_delta")
    array = to_mlx(time_delta)
    if array.dtype not in FLOATING:
        array = array.astype(mx.float32)
    if isinstance(time_delta, np.ndarray) and array.dtype == mx.float64:
        array = array.astype(mx.float32)
    if array.size == 1 and array.ndim <= 1:
        array = mx.broadcast_to(array.reshape(1, 1), (batch, steps))
    if tuple(array.shape) not in {(batch, steps), (batch, steps, 1)}:
        raise ValueError(
            f"time_delta has shape {tuple(array.shape)}; expected (batch, time steps) = "
            f"({batch}, {steps}), ({batch}, {steps}, 1) or one number"
            + _time_hint(inputs_shape, tuple(array.shape))
        )
    values = to_numpy(array).reshape(batch, steps)
    wrong = ~(np.isfinite(values) & (values > 0))
    bad = np.argwhere(wrong if mask is None else wrong & mask)
    if len(bad):
        b, t = bad[0]
        raise ValueError(
            f"time_delta is {values[b, t]:g} at sequence {b}, step {t} ({len(bad)} such): "
            "elapsed times must be finite and above 0. They are times between samples, not "
            "timestamps: np.diff turns timestamps into elapsed times; pass one for the first "
            "step, too"
        )
    mx.eval(array)
    return array


def _time_hint(inputs_shape: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return what to do with elapsed times of a wrong shape, or ""."""
    batch, steps = inputs_shape[:2]
    if shape == (steps,):
        return f". If they are those of every sequence, pass np.tile(time_delta, ({batch}, 1))"
    if shape[:2] == (batch, steps - 1):
        return (
            ". Put the time before the first time step in front: pass np.concatenate([first, "
            "time_delta], axis=1), where first has shape " + str((batch, 1, *shape[2:]))
        )
    return _layout_hint(inputs_shape, shape)


def _layout_hint(inputs_shape: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return what to do if an array ``(B, T)`` shows that the inputs are ``(B, F, T)``."""
    return layout_hint(inputs_shape, shape[1] if len(shape) > 1 else 0)


def checked_targets(targets: Any, batch: int) -> Any:
    """Return a copy of the targets, with numbers as an MLX array."""
    if not isinstance(targets, np.ndarray):  # which may hold objects for a target function
        check_array(targets, "targets")
    if isinstance(targets, list | tuple) and all(isinstance(t, int | float) for t in targets):
        targets = np.asarray(targets)
    if isinstance(targets, np.ndarray):
        if targets.dtype == object:
            return copied(targets)
        targets = to_mlx(targets.astype(np.float32) if targets.dtype == np.float64 else targets)
    elif isinstance(targets, mx.array):
        targets = mx.array(targets)
    else:
        return copied(targets)
    if targets.ndim == 0 or targets.shape[0] != batch:
        raise ValueError(
            f"targets has shape {tuple(targets.shape)} for {batch} sequences: pass an array "
            "whose first axis is the batch"
        )
    mx.eval(targets)
    return targets


def checked_names(
    names: Sequence[str] | None,
    what: str,
    count: int | None,
    inputs_shape: tuple[int, ...] = (),
) -> tuple[str, ...] | None:
    """Return different names as a tuple, or None.

    Args:
        names: The names.
        what: The name of the argument.
        count: Number of features; None: any number of names is right.
        inputs_shape: Shape of the inputs, for a hint.
    """
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f"{what}={names!r} is one string: pass a sequence, such as ['hr', 'bp']")
    listed = tuple(str(n) for n in names)
    if count is not None and len(listed) != count:
        raise ValueError(
            f"{what} has {len(listed)} names for {count} features: pass one for each"
            + _names_hint(inputs_shape, len(listed))
        )
    doubled = sorted({n for n in listed if listed.count(n) > 1})
    if doubled:
        raise ValueError(f"{what} has {doubled[0]!r} more than once: pass different names")
    return listed


def _names_hint(inputs_shape: tuple[int, ...], count: int) -> str:
    """Return what to do if there are as many names as axis 1 of the inputs is long."""
    if len(inputs_shape) != 3 or inputs_shape[1] != count:
        return ""
    return layout_hint(inputs_shape, inputs_shape[2])
