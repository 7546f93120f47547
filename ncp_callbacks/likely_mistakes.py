"""Recognise held-out arrays that are probably not what they should be, and name the fix."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["check_array", "layout_hint", "non_finite", "timestamps"]

# Sequences of random elapsed times that all rise by chance are rarer than this.
_BY_CHANCE = 1e-3
# Values that change by less than this part of their size are nearly constant.
_LITTLE = 1e-2
# No elapsed time before the first sample is likely to be so many times those between samples.
_FAR_ABOVE = 1000
# Timestamps since 1970: numbers in a second, by their unit.
_UNITS = {
    "seconds": 1.0,
    "milliseconds": 1e3,
    "microseconds": 1e6,
    "nanoseconds": 1e9,
    "days": 1 / 86_400,
}
# Seconds since 1970, of 2004 and of 2099. Samples one second apart are 1e9 nanoseconds apart, which
# is a date of 2001.
_EARLIEST, _LATEST = 1.1e9, 4.1e9
# From here on float32 doesn't hold every whole number.
_WHOLE = 2**24
# So many sequences tell that each has a number of its own.
_SEVERAL = 5
_FIX = (
    "np.diff(timestamps, axis=1, prepend=first), where first is the time before the first sample, "
    "such as timestamps[:, :1] - 1"
)


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
    elif _holds_dates(array):
        dates = "timestamps" if kind == "M" else "timestamps.astype('datetime64[us]')"
        fix = (
            f"these are timestamps, such as {array.reshape(-1)[0]}: pass elapsed times in seconds, "
            f"np.diff({dates}, axis=1, prepend=first) / np.timedelta64(1, 's'), where first is "
            "the time before the first sample, such as timestamps[:, :1] - np.timedelta64(1, 's')"
        )
    elif kind in "OSU":
        fix = f"pass numbers, such as {what}.astype(np.float32)"
    else:
        return
    raise TypeError(f"{what} has dtype {array.dtype}: {fix}")


def _holds_dates(array: npt.NDArray[Any]) -> bool:
    """Tell dates of numpy and Python, and texts of dates, by the first of them."""
    if array.dtype.kind == "M" or not array.size:
        return array.dtype.kind == "M"
    first = array.reshape(-1)[0]
    text = first.decode(errors="replace") if isinstance(first, bytes) else first
    if isinstance(text, str):
        return re.match(r"\d{4}-\d\d-\d\d", text) is not None
    return hasattr(first, "year")


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
    """Return a note if elapsed times are probably timestamps; "" if not.

    Args:
        time_delta: ``(B, T)``.
        real: ``(B, T)``, true at real time steps.
    """
    # In float64, as differences of unsigned whole numbers are never below 0.
    sequences = [t[own].astype(np.float64) for t, own in zip(time_delta, real, strict=True)]
    longest = max(sequences, key=len)
    several = [t for t in sequences if len(t) > 1]
    if several and all(t[0] > _FAR_ABOVE * t[1:].max() for t in several):
        date = _date(longest[0], _unit([t[:1] for t in sequences]))
        return (
            "time_delta is far larger at the first time step of every sequence than later "
            f"({longest[0]:.10g}, then at most {longest[1:].max():g}), probably a timestamp{date}, "
            f"as np.diff(timestamps, prepend=0) leaves there: pass {_FIX}"
        )
    unit = _unit(sequences)
    rises = _rises(sequences)
    if not unit and not rises:
        return ""
    shown = ", ".join(f"{value:.10g}" for value in longest[:3])
    fix = _FIX
    if _UNITS.get(unit, 0.0) > 1:
        fix = fix.replace(", where", f" / {_UNITS[unit]:g} for seconds, where")
    if _has_equal(sequences):
        # What timestamps lose in single precision, their differences lack.
        fix += (
            f". As float32 holds {longest[0]:.10g} only to the nearest "
            f"{np.spacing(np.float32(longest[0])):g}, take differences while the timestamps are "
            "float64, whole numbers or dates"
        )
    if rises:
        what, like = "rises along every sequence", "as timestamps do"
        otherwise = "If elapsed times do grow, ignore this"
    else:
        what, like = "hardly changes along a sequence", "as timestamps in single precision do"
        otherwise = "If these are elapsed times, pass them in a larger unit, or ignore this"
    return (
        f"time_delta {what} ({shown}, ...), {like}{_date(longest[0], unit)}. It must hold the "
        f"times between time steps: pass {fix}. {otherwise}"
    )


def _unit(sequences: list[npt.NDArray[np.float64]]) -> str:
    """Return the unit in which all values are dates of our time, and nearly one; "" if none is."""
    lowest, highest = min(t.min() for t in sequences), max(t.max() for t in sequences)
    if not _nearly_constant(sequences):
        return ""
    for unit, per_second in _UNITS.items():
        # Elapsed times may be as many seconds as there are days since 1970.
        if (
            _EARLIEST * per_second <= lowest
            and highest <= _LATEST * per_second
            and (unit != "days" or _rises(sequences) or _are_rounded_starts(sequences))
        ):
            return unit
    return ""


def _are_rounded_starts(sequences: list[npt.NDArray[np.float64]]) -> bool:
    """Tell if each sequence has a number of its own that float32 holds, and never a smaller one."""
    starts = {float(t[0]) for t in sequences}
    return (
        len(starts) == len(sequences) >= _SEVERAL
        and max(map(len, sequences)) > 2
        and _never_falls(sequences)
        and all((t == t.astype(np.float32)).all() for t in sequences)
    )


def _date(value: float, unit: str) -> str:
    """Return the day of a timestamp in parentheses; "" without a unit."""
    if not unit:
        return ""
    day = np.datetime64(int(value / _UNITS[unit]), "s").astype("datetime64[D]")
    return f" ({value:g} {unit} since 1970 are {day})"


def _rises(sequences: list[npt.NDArray[np.float64]]) -> bool:
    """Tell if values rise along every sequence, which isn't by chance."""
    if not _never_falls(sequences):
        return False
    # Sampling may be regular at first, and sparse later. Timestamps are equal where single
    # precision has made them so.
    is_rounded = min(t.min() for t in sequences) >= _WHOLE or _nearly_constant(sequences)
    if _has_equal(sequences) and not is_rounded:
        return False
    chance = 0.0
    for times in sequences:
        # One of all orders of so many numbers; equal ones have one order among themselves.
        equal = np.unique(times, return_counts=True)[1]
        chance -= math.lgamma(len(times) + 1) - sum(math.lgamma(count + 1) for count in equal)
    return chance <= math.log(_BY_CHANCE)


def _never_falls(sequences: list[npt.NDArray[np.float64]]) -> bool:
    """Tell if no value falls along any sequence."""
    return not any((np.diff(t) < 0).any() for t in sequences)


def _has_equal(sequences: list[npt.NDArray[np.float64]]) -> bool:
    """Tell if values at adjacent time steps are equal anywhere."""
    return any((np.diff(t) == 0).any() for t in sequences)


def _nearly_constant(sequences: list[npt.NDArray[np.float64]]) -> bool:
    """Tell if values change by little of their size along every sequence."""
    return all(np.ptp(t) <= _LITTLE * t.min() for t in sequences)
