"""Pad sequences of different lengths to one array, from lists, dicts and data frames.

parts = padded([{"hr": [60, 62], "bp": [80, 81]}, {"hr": [70], "bp": [90]}])
parts["inputs"].shape, parts["lengths"]         # (2, 2, 2), [2, 1]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["as_float32", "mask_of_lengths", "padded"]


def as_float32(array: npt.NDArray[Any], what: str) -> npt.NDArray[np.float32]:
    """Return numbers as float32.

    Raises:
        ValueError: A finite one would become infinite.
    """
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32)
    lost = np.isinf(converted) & np.isfinite(array)
    if lost.any():
        raise ValueError(
            f"{what} has {array[lost][0]:g}, which float32 can't hold: use another unit, or scale "
            "it as in training"
        )
    return converted


def mask_of_lengths(lengths: Any, batch: int, steps: int) -> npt.NDArray[np.bool_]:
    """Return the mask ``(batch, steps)`` of sequences whose first time steps are real.

    Raises:
        TypeError, ValueError: ``lengths`` is not one whole number in 1 to ``steps`` for each.
    """
    array = np.array(lengths)
    if array.shape != (batch,):
        raise ValueError(f"lengths has shape {array.shape}; expected (batch,) = ({batch},)")
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths has dtype {array.dtype}: pass whole numbers of time steps")
    wrong = np.flatnonzero((array < 1) | (array > steps))
    if len(wrong):
        raise ValueError(
            f"lengths[{wrong[0]}] is {array[wrong[0]]}: pass 1 to {steps}, the number of time steps"
        )
    return np.asarray(np.arange(steps) < array[:, None])


def padded(
    sequences: Any,
    *,
    by: str | None = None,
    features: Sequence[str] | None = None,
    time: str | None = None,
    time_delta: str | None = None,
    targets: str | None = None,
) -> dict[str, Any]:
    """Return the arguments of a held-out batch: inputs, lengths, time_delta, targets, and names.

    The arguments and errors are those of :meth:`.HeldOutBatch.from_sequences`.

    Raises:
        TypeError, ValueError: As for :meth:`.HeldOutBatch.from_sequences`.
    """
    if isinstance(features, str):
        raise TypeError(f"features={features!r} is one string: pass a list of names")
    if time is not None and time_delta is not None:
        raise ValueError("pass time=, from which elapsed times follow, or time_delta=, not both")
    tables, ids = _tables(sequences, by)
    first = tables[0]
    roles = {"time": time, "time_delta": time_delta, "targets": targets}
    for role, name in roles.items():
        if name is None and role != "time" and role in first:
            roles[role] = role
    taken = {name for name in roles.values() if name is not None}
    if "inputs" in first:
        columns = ["inputs"]
    else:
        columns = list(features) if features else [key for key in first if key not in taken]
    for name in (*columns, *sorted(taken)):
        missing = [i for i, table in zip(ids, tables, strict=True) if name not in table]
        if missing:
            raise ValueError(
                f"sequence {missing[0]!r} has no {name!r}: it has "
                f"{', '.join(repr(key) for key in tables[ids.index(missing[0])])}"
            )
    if not columns:
        raise ValueError("there are no features: pass features=[...], names of columns")
    inputs = [_inputs(t, columns, i) for i, t in zip(ids, tables, strict=True)]
    shapes = {array.shape[1:] for array in inputs}
    if len(shapes) > 1:
        raise ValueError(f"sequences have features of the shapes {sorted(shapes)}: pass one shape")
    found: dict[str, Any] = {"inputs": _pad(inputs, 0.0), "lengths": [len(a) for a in inputs]}
    if columns != ["inputs"]:
        found["feature_names"] = columns
    elif features:
        found["feature_names"] = list(features)
    clock = roles["time"] or roles["time_delta"]
    if clock is not None:
        times = [_column(t, clock, i) for i, t in zip(ids, tables, strict=True)]
        for i, array, column in zip(ids, inputs, times, strict=True):
            if len(array) != len(column):
                raise ValueError(
                    f"sequence {i!r} has {len(array)} time steps, but {len(column)} in {clock!r}"
                )
        found["time_delta"] = _pad(_elapsed(times, ids, clock) if roles["time"] else times, 1.0)
    if roles["targets"] is not None:
        name, is_column = roles["targets"], by is not None
        found["targets"] = np.stack(
            [_target(t, name, i, column=is_column) for i, t in zip(ids, tables, strict=True)]
        )
    return found


def _tables(sequences: Any, by: str | None) -> tuple[list[Mapping[str, Any]], list[Any]]:
    """Return a table for each sequence, columns by name, and the name of each sequence."""
    if hasattr(sequences, "columns") and not isinstance(sequences, Mapping):
        return _groups(sequences, by)
    if isinstance(sequences, Mapping) and _holds_sequences(sequences):
        named, ids = list(sequences.values()), list(sequences)
        tables, _ = _tables(named, by)
        return tables, ids
    if by is not None:
        raise ValueError(f"by={by!r} is a column of a data frame, but no data frame was passed")
    if isinstance(sequences, str | Mapping) or not isinstance(sequences, Iterable):
        raise TypeError(
            f"sequences is a {type(sequences).__name__}: pass a list of arrays (time steps, "
            "features), a list of dicts of columns, a dict of either by name, or a data frame with "
            "by=, its column of ids"
        )
    tables = [_table(sequence) for sequence in sequences]
    if not tables:
        raise ValueError("sequences is empty: pass one or more sequences")
    return tables, list(range(len(tables)))


def _table(sequence: Any) -> Mapping[str, Any]:
    if isinstance(sequence, Mapping):
        return sequence
    if hasattr(sequence, "columns"):
        return {str(name): np.asarray(sequence[name]) for name in sequence.columns}
    return {"inputs": sequence}


def _holds_sequences(values: Mapping[Any, Any]) -> bool:
    """Tell a dict of sequences by name from the columns of one sequence."""
    return bool(values) and all(
        isinstance(value, Mapping) or np.ndim(value) > 1 for value in values.values()
    )


def _groups(frame: Any, by: str | None) -> tuple[list[Mapping[str, Any]], list[Any]]:
    names = [str(name) for name in frame.columns]
    if by is None or by not in names:
        raise ValueError(
            f"by={by!r} is not a column of the data frame: pass the one that holds the id of each "
            f"sequence, of {', '.join(map(repr, names))}"
        )
    columns = {
        name: np.asarray(frame[column]) for name, column in zip(names, frame.columns, strict=True)
    }
    ids = columns.pop(by)
    if not len(ids):
        raise ValueError("the data frame is empty: pass one or more sequences")
    lines: dict[Any, list[int]] = {}
    for line, name in enumerate(ids.tolist()):
        # Those of pandas, NA, and NaN are not equal to themselves.
        if name is None or (name == name) is not True:
            raise ValueError(
                f"line {line} of the data frame has no id of a sequence: {by!r} is {name}. Remove "
                "such lines, or fill the ids in"
            )
        lines.setdefault(name, []).append(line)
    tables = [{name: column[at] for name, column in columns.items()} for at in lines.values()]
    return list(tables), list(lines)


def _array(value: Any, name: str, sequence: Any) -> npt.NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{name!r} of sequence {sequence!r} has dtype {array.dtype}: pass numbers, or name the "
            "columns to use in features=[...]"
        )
    return as_float32(array, f"{name!r} of sequence {sequence!r}")


def _column(table: Mapping[str, Any], name: str, sequence: Any) -> npt.NDArray[Any]:
    # Times are subtracted before they lose digits.
    array = np.asarray(table[name])
    if array.ndim == 1 and len(array):
        if array.dtype.kind == "M" or hasattr(array[0], "tzinfo"):  # Dates with a time zone.
            array = np.array([date - array[0] for date in array])
        if hasattr(array[0], "total_seconds"):
            array = np.array([difference.total_seconds() for difference in array])
        if array.dtype.kind == "m":
            array = array / np.timedelta64(1, "s")
    if array.dtype.kind not in "fiu" or array.ndim != 1:
        raise TypeError(
            f"{name!r} of sequence {sequence!r} has dtype {array.dtype} and shape {array.shape}: "
            "pass one number for each time step"
        )
    return array.astype(np.float64)


def _inputs(table: Mapping[str, Any], columns: list[str], sequence: Any) -> npt.NDArray[Any]:
    if columns == ["inputs"]:
        array = _array(table["inputs"], "inputs", sequence)
        if array.ndim < 2 or not len(array):
            raise ValueError(
                f"sequence {sequence!r} has shape {array.shape}: pass (time steps, features)"
            )
        return array
    arrays = [_array(table[name], name, sequence) for name in columns]
    lengths = {name: a.shape for name, a in zip(columns, arrays, strict=True)}
    if len(set(lengths.values())) > 1 or arrays[0].ndim != 1 or not len(arrays[0]):
        raise ValueError(
            f"the columns of sequence {sequence!r} have the shapes {lengths}: pass columns of one "
            "length, a number for each time step"
        )
    return np.stack(arrays, axis=1)


def _elapsed(times: list[npt.NDArray[Any]], ids: list[Any], name: str) -> list[npt.NDArray[Any]]:
    """Return elapsed times; the first time step of each gets the median of all others."""
    steps = [np.diff(t) for t in times]
    for i, differences in zip(ids, steps, strict=True):
        if not (differences > 0).all():
            at = int(np.flatnonzero(~(differences > 0))[0])
            raise ValueError(
                f"{name!r} of sequence {i!r} does not increase after time step {at}: sort the "
                "sequence by time, and merge what was measured at one time"
            )
    known = np.concatenate(steps)
    first = float(np.median(known)) if len(known) else 1.0
    return [np.concatenate([[first], differences]) for differences in steps]


def _target(table: Mapping[str, Any], name: str, sequence: Any, *, column: bool) -> Any:
    array = np.asarray(table[name])
    if column and array.ndim:  # A column of a data frame, which has a value at each time step.
        if (array != array[0]).any():
            raise ValueError(
                f"{name!r} changes within sequence {sequence!r}: pass a column with one target for "
                "each sequence, or make the batch without it and pass targets= to HeldOutBatch"
            )
        return array[0]
    return array


def _pad(arrays: list[npt.NDArray[Any]], value: float) -> npt.NDArray[Any]:
    shape = (len(arrays), max(map(len, arrays)), *arrays[0].shape[1:])
    whole = np.full(shape, value, np.float32)
    for line, array in zip(whole, arrays, strict=True):
        line[: len(array)] = array
    return whole
