"""Hold the batch on which the model is analysed, checked once and never changed.

::

    held_out = HeldOutBatch(x_val[:16], time_delta=dt_val[:16], feature_names=["hr", "bp"])

Some 16 sequences are enough for most purposes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

__all__ = ["HeldOutBatch", "read_only", "to_numpy"]

_A = TypeVar("_A", bound=np.ndarray[Any, Any])

_FLOATING = (mx.float16, mx.bfloat16, mx.float32, mx.float64)


def to_numpy(array: mx.array) -> npt.NDArray[np.float32]:
    """Return a float32 copy of an MLX array."""
    # numpy has no bfloat16, and through a view it could write into MLX.
    return np.array(array.astype(mx.float32), dtype=np.float32)


def read_only(array: _A) -> _A:
    """Return a read-only view of ``array``."""
    view = array.view()
    view.flags.writeable = False
    return view


def _guarded(value: Any) -> Any:
    """Copy MLX arrays and containers, and make numpy arrays read-only, for callers."""
    if isinstance(value, mx.array):
        return mx.array(value)
    if isinstance(value, np.ndarray):
        return read_only(value)
    if type(value) is dict:
        return {key: _guarded(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_guarded, value))
    return value


def _copied(value: Any) -> Any:
    """Copy arrays and their containers, so that later changes by the caller have no effect."""
    if isinstance(value, np.ndarray):
        return read_only(value.copy())
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return _guarded(value)


def _names(names: Sequence[str] | None, what: str, count: int | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f"{what}={names!r} is one string: pass a sequence, such as ['hr', 'bp']")
    listed = tuple(str(n) for n in names)
    if count is not None and len(listed) != count:
        raise ValueError(f"{what} has {len(listed)} names for {count} features: pass one for each")
    doubled = sorted({n for n in listed if listed.count(n) > 1})
    if doubled:
        raise ValueError(f"{what} has {doubled[0]!r} more than once: pass different names")
    return listed


def _mlx(value: Any) -> mx.array:
    """Return an MLX array. MLX refuses views that run backwards, such as ``x[::-1]``."""
    return mx.array(np.array(value, order="C") if isinstance(value, np.ndarray) else value)


class HeldOutBatch:
    """Hold sequences to analyse; later changes to the arrays passed have no effect on it.

    Args:
        inputs: ``(B, T, F)``, floating; numpy or MLX. The model gets this dtype. Or tokens,
            ``(B, T)`` integers, which are analysed after the model's embedding. Or a tuple, list or
            dict of arrays with ``B`` first, of which one is such a sequence.
        time_delta: Elapsed time before each time step, finite and above 0. It is ``(B, T)``,
            ``(B, T, 1)`` or one number for all. The model gets arrays in the shape passed.
        targets: Anything that the target or loss function needs; arrays have ``B`` first.
        mask: ``(B, T)`` bool, true at real time steps; at least one in each sequence. Elsewhere,
            values that are not finite are replaced: inputs by 0, elapsed time by 1.
        feature_names: ``F`` different names; None: "feature 0" and so on.
        class_names: Names of the model's outputs.

    Raises:
        TypeError: The inputs are none of these.
        ValueError: A shape does not fit, a name occurs twice, an elapsed time is not above 0, or
            the mask leaves a sequence empty.
    """

    def __init__(
        self,
        inputs: Any,
        time_delta: mx.array | npt.NDArray[Any] | float | None = None,
        targets: Any = None,
        mask: mx.array | npt.NDArray[Any] | None = None,
        feature_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        # The sequence, and the container that the model gets it in, with None in its place.
        self._inputs, self._container, self._key = self._check_inputs(inputs)
        batch, steps, features = self.inputs_shape
        self._mask = self._check_mask(mask, batch, steps)
        self._time_delta = self._check_time(time_delta, batch, steps)
        self._targets = self._check_targets(targets, batch)
        if self._mask is not None:
            self._fill_padding(mx.array(self._mask))
        self.feature_names = _names(feature_names, "feature_names", features) or (
            ("token",) if self.tokens else tuple(f"feature {i}" for i in range(features))
        )
        self.class_names = _names(class_names, "class_names", None)

    @classmethod
    def _check_inputs(cls, inputs: Any) -> tuple[mx.array, Any, Any]:
        """Return the sequence, its container with None in its place, and its key there."""
        if isinstance(inputs, mx.array | np.ndarray):
            return cls._check_sequence(inputs), None, None
        if not isinstance(inputs, dict | list | tuple) or not inputs:
            raise TypeError(
                f"inputs is a {type(inputs).__name__}: pass an array (batch, time steps, "
                "features), or a tuple, list or dict of arrays of which one is such a sequence"
            )
        items = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
        arrays = {key: cls._array(value, f"inputs[{key!r}]") for key, value in items}
        shapes = ", ".join(f"{k!r}: {tuple(a.shape)} {a.dtype}" for k, a in arrays.items())
        sequences = [k for k, a in arrays.items() if a.ndim == 3 and a.dtype in _FLOATING]
        if not sequences:
            sequences = [
                k for k, a in arrays.items() if a.ndim == 2 and mx.issubdtype(a.dtype, mx.integer)
            ]
        if len(sequences) != 1:
            raise ValueError(
                f"inputs holds {shapes}; expected one sequence among them, floating (batch, time "
                "steps, features), or tokens (batch, time steps). Pass the one to analyse "
                "alone, and add the others in forward=lambda model, inputs, time_delta: ..."
            )
        key = sequences[0]
        sequence = cls._check_sequence(arrays[key])
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
        return sequence, container, key

    @staticmethod
    def _array(value: Any, what: str) -> mx.array:
        if not isinstance(value, mx.array | np.ndarray):
            raise TypeError(f"{what} is a {type(value).__name__}: pass an mx.array or numpy array")
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            value = value.astype(np.float32)  # as mx.array does for Python floats
        return _mlx(value)

    @classmethod
    def _check_sequence(cls, inputs: Any) -> mx.array:
        array = cls._array(inputs, "inputs")
        tokens = array.ndim == 2 and mx.issubdtype(array.dtype, mx.integer)
        if (array.ndim != 3 and not tokens) or 0 in array.shape:
            raise ValueError(
                f"inputs has shape {tuple(array.shape)}; expected (batch, time steps, features), "
                "none of them 0. For one sequence use inputs[None], for one feature "
                "inputs[..., None]"
            )
        if array.dtype not in _FLOATING and not tokens:
            raise TypeError(
                f"inputs has dtype {array.dtype}; gradients need floating inputs: use "
                "inputs.astype(mx.float32). Tokens have shape (batch, time steps)"
            )
        mx.eval(array)
        return array

    @staticmethod
    def _check_mask(mask: Any, batch: int, steps: int) -> npt.NDArray[np.bool_] | None:
        if mask is None:
            return None
        array = np.array(mask)
        if array.shape != (batch, steps):
            raise ValueError(
                f"mask has shape {array.shape}; expected (batch, time steps) = ({batch}, {steps})"
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

    def _check_time(self, time_delta: Any, batch: int, steps: int) -> mx.array | None:
        if time_delta is None:
            return None
        array = _mlx(time_delta)
        if array.dtype not in _FLOATING:
            array = array.astype(mx.float32)
        if isinstance(time_delta, np.ndarray) and array.dtype == mx.float64:
            array = array.astype(mx.float32)
        if array.size == 1 and array.ndim <= 1:
            array = mx.broadcast_to(array.reshape(1, 1), (batch, steps))
        if tuple(array.shape) not in {(batch, steps), (batch, steps, 1)}:
            raise ValueError(
                f"time_delta has shape {tuple(array.shape)}; expected (batch, time steps) = "
                f"({batch}, {steps}), ({batch}, {steps}, 1) or one number"
            )
        values = to_numpy(array).reshape(batch, steps)
        bad = np.argwhere(~(np.isfinite(values) & (values > 0)) & self.mask_array)
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

    def _fill_padding(self, real: mx.array) -> None:
        """Replace values in padding that are not finite."""
        # NaN in padding would come back in the gradients of real steps, as 0 times NaN.
        if not self.tokens:
            odd = mx.logical_not(real[..., None] | mx.isfinite(self._inputs))
            self._inputs = mx.where(odd, mx.zeros_like(self._inputs), self._inputs)
        if self._time_delta is not None:
            real = real.reshape(self._time_delta.shape)
            odd = mx.logical_not(real | mx.isfinite(self._time_delta))
            self._time_delta = mx.where(odd, mx.ones_like(self._time_delta), self._time_delta)
        mx.eval(self._inputs, *([] if self._time_delta is None else [self._time_delta]))

    @staticmethod
    def _check_targets(targets: Any, batch: int) -> Any:
        if isinstance(targets, list | tuple) and all(isinstance(t, int | float) for t in targets):
            targets = np.asarray(targets)
        if isinstance(targets, np.ndarray):
            if targets.dtype == object:
                return _copied(targets)
            targets = _mlx(targets.astype(np.float32) if targets.dtype == np.float64 else targets)
        elif isinstance(targets, mx.array):
            targets = mx.array(targets)
        else:
            return _copied(targets)
        if targets.ndim == 0 or targets.shape[0] != batch:
            raise ValueError(
                f"targets has shape {tuple(targets.shape)} for {batch} sequences: pass an array "
                "whose first axis is the batch"
            )
        mx.eval(targets)
        return targets

    # An mx.array can be written in place, so every caller gets a handle of its own.
    @property
    def inputs(self) -> mx.array:
        """Return the sequence, ``(B, T, F)`` in the dtype passed, or tokens ``(B, T)``."""
        return mx.array(self._inputs)

    @property
    def tokens(self) -> bool:
        """Return true if the sequence holds tokens."""
        return bool(self._inputs.ndim == 2)

    @property
    def has_companions(self) -> bool:
        """Return true if the model gets other arrays besides the sequence."""
        return self._container is not None

    def pack(self, sequence: mx.array) -> Any:
        """Return the model's inputs: ``sequence`` with its companion arrays, if it has any.

        Companions are repeated for a sequence of several times the batch.
        """
        if self._container is None:
            return sequence
        copies = len(sequence) // len(self)

        def beside(array: mx.array | None) -> mx.array:
            if array is None:
                return sequence
            return mx.concatenate([array] * copies) if copies > 1 else mx.array(array)

        if isinstance(self._container, dict):
            return {key: beside(array) for key, array in self._container.items()}
        return type(self._container)(beside(array) for array in self._container)

    @property
    def arrays(self) -> dict[str, mx.array]:
        """Return what the model is given, by name, as ``"inputs"`` or ``"inputs['age']"``."""
        items: Any = () if self._container is None else self._container
        items = items.items() if isinstance(items, dict) else enumerate(items)
        found = {"inputs": self.inputs}
        if self._time_delta is not None:
            found["time_delta"] = mx.array(self._time_delta)
        return found | {f"inputs[{k!r}]": mx.array(a) for k, a in items if a is not None}

    def replaced(self, name: str, array: mx.array) -> HeldOutBatch:
        """Return a batch with other values in one of :attr:`arrays`, which aren't checked."""
        other = copy.copy(self)
        if name == "inputs":
            other._inputs = array
        elif name == "time_delta":
            other._time_delta = array
        elif isinstance(self._container, dict):
            other._container = {
                k: array if f"inputs[{k!r}]" == name else a for k, a in self._container.items()
            }
        else:
            other._container = type(self._container)(
                array if f"inputs[{k!r}]" == name else a for k, a in enumerate(self._container)
            )
        return other

    @property
    def time_delta(self) -> mx.array | None:
        """Return the elapsed time, ``(B, T)`` or ``(B, T, 1)`` as passed, or None."""
        return None if self._time_delta is None else mx.array(self._time_delta)

    @property
    def flat_time_delta(self) -> mx.array | None:
        """Return the elapsed time as ``(B, T)``, or None."""
        delta = self.time_delta
        return None if delta is None else delta.reshape(self.inputs_shape[:2])

    @property
    def targets(self) -> Any:
        """Return the targets as passed, with arrays as MLX arrays.

        MLX arrays are copies. numpy arrays inside containers are read-only.
        """
        return _guarded(self._targets)

    @property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """Return the mask, ``(B, T)`` bool and read-only, or None."""
        return self._mask

    @property
    def mask_array(self) -> npt.NDArray[np.bool_]:
        """Return the mask, ``(B, T)`` bool and read-only; all true if none was passed."""
        return read_only(np.ones(self.inputs_shape[:2], bool)) if self._mask is None else self._mask

    @property
    def inputs_shape(self) -> tuple[int, int, int]:
        """Return ``(B, T, F)``; tokens count as one feature."""
        batch, steps, *features = self._inputs.shape
        return batch, steps, features[0] if features else 1

    @property
    def last_steps(self) -> npt.NDArray[np.intp]:
        """Return the index of each sequence's last real time step, ``(B,)`` and read-only."""
        from_end: npt.NDArray[np.intp] = np.argmax(self.mask_array[:, ::-1], axis=1)
        return read_only(self.inputs_shape[1] - 1 - from_end)

    def __len__(self) -> int:
        """Return the number of sequences."""
        return int(self._inputs.shape[0])

    def __repr__(self) -> str:
        batch, steps, features = self.inputs_shape
        what = (
            "tokens"
            if self.tokens
            else f"{features} features, {str(self._inputs.dtype).split('.')[-1]}"
        )
        parts = [f"{batch} sequences, {steps} steps, {what}"]
        parts += [] if self._container is None else ["companions"]
        parts += ["time_delta"] if self._time_delta is not None else []
        parts += ["targets"] if self._targets is not None else []
        parts += ["mask"] if self._mask is not None else []
        return f"HeldOutBatch({', '.join(parts)})"

    def take(self, rows: slice | npt.NDArray[np.intp]) -> HeldOutBatch:
        """Return a batch of some of the sequences; targets that are no arrays stay whole."""
        part = copy.copy(self)
        picked = rows if isinstance(rows, slice) else mx.array(rows)
        part._inputs = self._inputs[picked]
        if isinstance(self._container, dict):
            part._container = {
                k: None if a is None else a[picked] for k, a in self._container.items()
            }
        elif self._container is not None:
            part._container = type(self._container)(
                None if a is None else a[picked] for a in self._container
            )
        part._time_delta = None if self._time_delta is None else self._time_delta[picked]
        part._mask = None if self._mask is None else read_only(self._mask[rows])
        if isinstance(self._targets, mx.array):
            part._targets = self._targets[picked]
        elif isinstance(self._targets, np.ndarray):
            part._targets = read_only(self._targets[rows])
        return part

    def at_time_steps(self, steps: npt.NDArray[np.intp]) -> HeldOutBatch:
        """Return a batch of some time steps, which may repeat; companions along time follow.

        Targets stay whole.
        """
        total, picked = self.inputs_shape[1], mx.array(steps)
        part = copy.copy(self)
        part._mask = None if self._mask is None else read_only(self._mask[:, steps])
        for name, array in self.arrays.items():
            if array.ndim > 1 and array.shape[1] == total:
                part = part.replaced(name, array[:, picked])
        return part

    def spread(self, count: int) -> npt.NDArray[np.intp]:
        """Return the indices of ``count`` sequences spread over the batch, in increasing order.

        They are spread because held-out data is often sorted. A smaller count gives a subset of a
        larger one, so that callbacks that analyse different numbers of sequences share them.
        """
        bits = max(1, (len(self) - 1).bit_length())
        backwards = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
        return np.sort([i for i in backwards if i < len(self)][:count])
