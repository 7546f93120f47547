"""Recognise held-out arrays that are probably not what they should be, and name the fix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["check_array", "layout_hint", "non_finite", "timestamps"]

# Sequences of random elapsed times that all rise by chance are rarer than this.
_BY_CHANCE = 1e-3


def check_array(value: Any, what: str) -> None:
    """Raise for arrays of other libraries, and for numpy arrays that hold no numbers.

    The libraries may be missing, so their arrays are recognised by their methods.

    Args:
        value: What was passed.
        what: The name of the argument, for the message.

    Raises:
        TypeError: The value is such an array; the message has the conversion.
    """
    if isinstance(value, np.ndarray):
        _check_dtype(value, what)
        return
    name, shape = type(value).__name__, getattr(value, "shape", None)
    if shape is None or type(value).__module__.startswith("mlx."):
        return
    if callable(getattr(value, "to_numpy", None)):
        fix = f"{what}.to_numpy()"
    elif callable(getattr(value, "numpy", None)):
        ready = "detach()." if getattr(value, "requires_grad", False) else ""
        ready += "cpu()." if getattr(value, "is_cuda", False) else ""
        fix = f"{what}.{ready}numpy()"
    elif hasattr(value, "__array__") and not isinstance(value, np.generic):
        fix = f"np.asarray({what})"
    else:
        return
    if what == "inputs" and len(shape) == 2:
        fix += ".reshape(batch, time_steps, features)"
    raise TypeError(f"{what} is a {name} of shape {tuple(shape)}: pass {fix}")


def _check_dtype(array: npt.NDArray[Any], what: str) -> None:
    kind = array.dtype.kind
    if kind == "m":
        fix = f"pass seconds, {what} / np.timedelta64(1, 's')"
    elif kind == "M":
        fix = (
            "these are timestamps: pass elapsed times, np.diff(timestamps) / np.timedelta64(1, 's')"
        )
    elif kind in "OSU":
        fix = f"pass numbers, such as {what}.astype(np.float32)"
    else:
        return
    raise TypeError(f"{what} has dtype {array.dtype}: {fix}")


def layout_hint(inputs_shape: tuple[int, ...], steps: int) -> str:
    """Return what to do if the last axis of the inputs is time, or "" if it isn't.

    Args:
        inputs_shape: Shape of the inputs.
        steps: Number of time steps that something else has.
    """
    if len(inputs_shape) != 3 or steps != inputs_shape[2] or steps == inputs_shape[1]:
        return ""
    return (
        f". inputs has shape {inputs_shape}; if it is (batch, features, time steps), pass "
        "inputs.swapaxes(1, 2)"
    )


def non_finite(
    array: npt.NDArray[Any],
    what: str,
    real: npt.NDArray[np.bool_] | None,
    names: tuple[str, ...] | None = None,
) -> str:
    """Return a note on NaN or infinity at real time steps; "" if there is none.

    Args:
        array: ``(B, ...)``; ``(B, T, ...)`` with ``real``.
        what: The name of the argument.
        real: ``(B, T)``, true at real time steps; None: the array has no time steps.
        names: Names of the entries of the last axis.
    """
    bad = ~np.isfinite(array)
    if real is not None:
        bad &= real.reshape(*real.shape, *[1] * (array.ndim - 2))
    places = np.argwhere(bad)
    if not len(places):
        return ""
    first = places[0].tolist()
    where = [f"sequence {first[0]}"]
    if real is not None:
        where.append(f"time step {first[1]}")
    rest = first[len(where) :]
    if rest:
        where.append(repr(names[rest[-1]]) if names and len(rest) == 1 else f"index {rest}")
    count = len(set(places[:, 0].tolist()))
    some = "1 sequence" if count == 1 else f"{count} sequences"
    return (
        f"{what} is {array[tuple(first)]} at {', '.join(where)} ({len(places)} such, in {some}): "
        "results of these sequences are NaN unless the model replaces such values. Replace them "
        "as in training, or mark these time steps as padding, mask=..."
    )


def timestamps(time_delta: npt.NDArray[Any], real: npt.NDArray[np.bool_]) -> str:
    """Return a note if elapsed times rise throughout, as timestamps do; "" if not.

    Args:
        time_delta: ``(B, T)``.
        real: ``(B, T)``, true at real time steps.
    """
    chance = 0.0
    for times, own in zip(time_delta, real, strict=True):
        given = times[own]
        # Large timestamps in single precision may be equal.
        if (np.diff(given) < 0).any() or (len(given) > 1 and given[0] == given[-1]):
            return ""
        chance -= math.lgamma(len(given) + 1)  # one of all orders of so many numbers
    if chance > math.log(_BY_CHANCE):
        return ""
    longest = time_delta[int(real.sum(axis=1).argmax())]
    shown = ", ".join(f"{value:g}" for value in longest[:3])
    return (
        f"time_delta rises along every sequence ({shown}, ...), as timestamps do. It must hold the "
        "times between time steps: pass np.diff(timestamps, axis=1, prepend=first), where first "
        "is the time before the first sample, such as timestamps[:, :1] - 1. If elapsed times do "
        "grow, ignore this"
    )
