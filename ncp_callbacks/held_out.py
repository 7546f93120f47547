"""Hold the batch on which the model is analysed, checked once and never changed.

::

    held_out = HeldOutBatch(x_val[:16], time_delta=dt_val[:16], feature_names=["hr", "bp"])

Some 16 sequences are enough for most purposes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .keywords import checks_function_keywords, checks_keywords
from .likely_mistakes import check_array, layout_hint, non_finite, timestamps
from .sequences import as_float32, mask_of_lengths, padded

__all__ = ["HeldOutBatch", "read_only", "to_numpy"]

_A = TypeVar("_A", bound=np.ndarray[Any, Any])

_FLOATING = (mx.float16, mx.bfloat16, mx.float32, mx.float64)
# Frames with up to so many channels, and with sides from so many pixels on, are pictures.
_MAX_PICTURE_CHANNELS, _MIN_PICTURE_SIDE = 4, 8


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


def _names(
    names: Sequence[str] | None,
    what: str,
    count: int | None,
    inputs_shape: tuple[int, ...] = (),
) -> tuple[str, ...] | None:
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


def _mlx(value: Any) -> mx.array:
    """Return an MLX array. MLX refuses views that run backwards, such as ``x[::-1]``."""
    return mx.array(np.array(value, order="C") if isinstance(value, np.ndarray) else value)


def _joined(sequences: Sequence[mx.array]) -> str:
    """Return how to pass sequences of equal lengths as one; "" if they can't be."""
    if len(sequences) < 2 or len({a.shape[:-1] for a in sequences}) > 1:
        return ""
    ends = np.cumsum([a.shape[-1] for a in sequences[:-1]]).tolist()
    return (
        "To analyse them together, pass inputs=mx.concatenate([...], axis=-1) and forward=lambda "
        f"model, inputs, time_delta: model(*mx.split(inputs, {ends}, axis=-1)). "
    )


class HeldOutBatch:
    """Hold sequences to analyse; later changes to the arrays passed have no effect on it.

    Args:
        inputs: ``(B, T, F)``, floating; numpy or MLX. The model gets this dtype. Or frames,
            ``(B, T, H, W, C)`` or with any other axes after ``T``. Or tokens, ``(B, T)`` integers,
            which are analysed after the model's embedding. Or a tuple, list or dict of arrays with
            ``B`` first, of which one is such a sequence.
        time_delta: Elapsed time before each time step, finite and above 0. It is ``(B, T)``,
            ``(B, T, 1)`` or one number for all. The model gets arrays in the shape passed.
        targets: Anything that the target or loss function needs; arrays have ``B`` first.
        mask: ``(B, T)`` bool, true at real time steps; at least one in each sequence. Elsewhere,
            values that are not finite are replaced: inputs by 0, elapsed time by 1.
        lengths: ``(B,)``, number of real time steps of each sequence, which come first; in place of
            ``mask``.
        feature_names: ``F`` different names, of frames those of the channels; None: "feature 0" or
            "channel 0" and so on.
        class_names: Names of the model's outputs.
        channel_axis: The axis of ``inputs`` that holds the channels of frames: 2 for
            ``(B, T, C, H, W)``. None if frames have none, as in ``(B, T, H, W)``: a frame is then
            one feature. ``"last"`` is the last axis, and an error where another one is likely.

    Attributes:
        notes: What is probably a mistake, one sentence each.

    Raises:
        TypeError: The inputs are none of these, or arrays of another library.
        ValueError: A shape does not fit, a name occurs twice, an elapsed time is not above 0, or
            the mask leaves a sequence empty.
    """

    @checks_keywords
    def __init__(
        self,
        inputs: Any,
        time_delta: mx.array | npt.NDArray[Any] | float | None = None,
        targets: Any = None,
        mask: mx.array | npt.NDArray[Any] | None = None,
        feature_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        channel_axis: int | Literal["last"] | None = "last",
        *,
        lengths: mx.array | npt.NDArray[Any] | Sequence[int] | None = None,
    ) -> None:
        # The sequence, and the container that the model gets it in, with None in its place.
        self._inputs, self._container, self._key = self._check_inputs(inputs)
        # The axis of a frame, without (B, T), that holds the channels.
        self._channel_axis = self._check_channel_axis(channel_axis, feature_names)
        batch, steps, features = self.inputs_shape
        if lengths is not None:
            if mask is not None:
                raise ValueError("both mask= and lengths= were passed: pass one of them")
            mask = mask_of_lengths(lengths, batch, steps)
        self._mask = self._check_mask(mask, batch, steps)
        self._time_delta = self._check_time(time_delta, batch, steps)
        self._targets = self._check_targets(targets, batch)
        if self._mask is not None:
            self._fill_padding(mx.array(self._mask))
        shape = tuple(self._inputs.shape)
        self.feature_names = (
            _names(feature_names, "feature_names", features, shape) or self._default_names()
        )
        self.class_names = _names(class_names, "class_names", None)
        self.notes = tuple(filter(None, self._likely_mistakes(time_delta)))

    @classmethod
    @checks_function_keywords
    def from_sequences(
        cls,
        sequences: Any,
        *,
        by: str | None = None,
        features: Sequence[str] | None = None,
        time: str | None = None,
        time_delta: str | None = None,
        targets: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> HeldOutBatch:
        """Return a batch of sequences of different lengths, which are padded and masked.

        ::

            HeldOutBatch.from_sequences([x1, x2])               # arrays (time steps, features)
            HeldOutBatch.from_sequences([{"hr": [...], "bp": [...], "targets": 1}, ...])
            HeldOutBatch.from_sequences(frame, by="patient", time="hour", targets="died")

        Args:
            sequences: A list of arrays ``(T, F)``; a list of dicts, each with columns of ``T``
                numbers by the name of a feature, or with one array ``"inputs"``; a list of data
                frames of pandas or polars; a dict of such sequences by name; or one data frame with
                a line for each time step, in the order of time.
            by: Column of a data frame that has the id of the sequence.
            features: Columns to use, in this order; None: all that are not used otherwise.
            time: Column of times, increasing within a sequence: numbers, or dates, which become
                seconds. Elapsed times are their differences; the first time step of each sequence
                gets the median of all differences.
            time_delta: Column of elapsed times; None: ``"time_delta"``, if there is one.
            targets: Key of the target of a sequence; in a data frame a column that is constant
                within a sequence. None: ``"targets"``, if there is one.
            class_names: As for the class.

        Raises:
            TypeError: It is none of these, or a column does not hold numbers.
            ValueError: Columns are missing or of different lengths, or times do not increase. The
                sequence is named.
        """
        parts = padded(
            sequences, by=by, features=features, time=time, time_delta=time_delta, targets=targets
        )
        return cls(class_names=class_names, **parts)

    @classmethod
    def _check_inputs(cls, inputs: Any) -> tuple[mx.array, Any, Any]:
        """Return the sequence, its container with None in its place, and its key there."""
        check_array(inputs, "inputs")
        if isinstance(inputs, mx.array | np.ndarray):
            return cls._check_sequence(inputs), None, None
        if not isinstance(inputs, dict | list | tuple) or not inputs:
            raise TypeError(
                f"inputs is a {type(inputs).__name__}: pass an array (batch, time steps, "
                "features) or frames (batch, time steps, ..., channels), or a tuple, list or dict "
                "of arrays of which one is such a sequence"
            )
        items = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
        arrays = {key: cls._array(value, f"inputs[{key!r}]") for key, value in items}
        shapes = ", ".join(f"{k!r}: {tuple(a.shape)} {a.dtype}" for k, a in arrays.items())
        floating = {k: a for k, a in arrays.items() if a.ndim > 2 and a.dtype in _FLOATING}
        # A picture that belongs to a sequence, without an axis of time, is a companion.
        steps = {a.shape[1] for a in floating.values() if a.ndim == 3}
        sequences = [
            k for k, a in floating.items() if not steps or a.ndim == 3 or a.shape[1] in steps
        ]
        if not sequences:
            sequences = [
                k for k, a in arrays.items() if a.ndim == 2 and mx.issubdtype(a.dtype, mx.integer)
            ]
        if len(sequences) != 1:
            raise ValueError(
                f"inputs holds {shapes}; expected one sequence among them, floating (batch, time "
                "steps, features) or frames (batch, time steps, ..., channels), or tokens (batch, "
                f"time steps). {_joined(list(floating.values()))}Pass the one to analyse alone, "
                "and add the others in forward=lambda model, inputs, time_delta: ..."
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
        check_array(value, what)
        if not isinstance(value, mx.array | np.ndarray):
            raise TypeError(f"{what} is a {type(value).__name__}: pass an mx.array or numpy array")
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            value = as_float32(value, what)  # as mx.array does for Python floats
        return _mlx(value)

    @classmethod
    def _check_sequence(cls, inputs: Any) -> mx.array:
        array = cls._array(inputs, "inputs")
        tokens = array.ndim == 2 and mx.issubdtype(array.dtype, mx.integer)
        if (array.ndim < 3 and not tokens) or 0 in array.shape:
            raise ValueError(
                f"inputs has shape {tuple(array.shape)}; expected (batch, time steps, features), "
                "or frames (batch, time steps, ..., channels), none of them 0. For one sequence "
                "use inputs[None], for one feature inputs[..., None], for tokens "
                "inputs.astype(mx.int32) of shape (batch, time steps)"
            )
        if array.dtype not in _FLOATING and not tokens:
            raise TypeError(
                f"inputs has dtype {array.dtype}; gradients need floating inputs: use "
                "inputs.astype(mx.float32). Tokens have shape (batch, time steps)"
            )
        mx.eval(array)
        return array

    def _check_channel_axis(self, axis: Any, names: Sequence[str] | None) -> int | None:
        """Return the axis of a frame that holds its channels, None for frames without channels.

        Raises:
            TypeError, ValueError: The axis is not one of a frame, or the last axis is not likely to
                hold the channels.
        """
        ndim, shape = self._inputs.ndim, tuple(self._inputs.shape)
        if axis is None or self.tokens:
            if axis not in (None, "last") or (axis is None and ndim == 3):
                raise ValueError(
                    f"channel_axis={axis!r}, but inputs {shape} are not frames: don't pass it"
                )
            return None
        if axis == "last":
            self._check_last_axis(names)
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

    def _check_last_axis(self, names: Sequence[str] | None) -> None:
        """Raise if another axis than the last is likely to hold the channels."""
        shape = self.frame_shape
        if names is not None and not isinstance(names, str) and self.has_frames:
            fitting = [axis + 2 for axis, size in enumerate(shape) if size == len(names)]
            if fitting and shape[-1] != len(names):
                raise ValueError(
                    f"feature_names has {len(names)} names, but the last axis of inputs "
                    f"{tuple(self._inputs.shape)} is {shape[-1]} long: pass "
                    f"channel_axis={fitting[0]} if that axis holds the named features"
                )
        small = [axis + 2 for axis, size in enumerate(shape) if size <= _MAX_PICTURE_CHANNELS]
        sides = sum(size >= _MIN_PICTURE_SIDE for size in shape)
        picture = shape[-1] >= _MIN_PICTURE_SIDE and sides >= 2 and names is None
        if picture and len(shape) == 3 and small == [2]:
            raise ValueError(
                f"inputs has shape {tuple(self._inputs.shape)}, in which axis 2 is "
                "probably that of the channels: pass channel_axis=2, or channel_axis=-1 if the "
                "last axis holds the channels"
            )
        if picture and len(shape) == 2:
            raise ValueError(
                f"inputs has shape {tuple(self._inputs.shape)}, probably frames without channels: "
                "pass channel_axis=None if they are, or channel_axis=-1 (or 2) if this axis holds "
                "named features"
            )

    def _default_names(self) -> tuple[str, ...]:
        if self.tokens:
            return ("token",)
        if self._channel_axis is None:
            return ("frame",)
        what = "channel" if self.has_frames else "feature"
        return tuple(f"{what} {i}" for i in range(self.inputs_shape[2]))

    def _check_mask(self, mask: Any, batch: int, steps: int) -> npt.NDArray[np.bool_] | None:
        if mask is None:
            return None
        check_array(mask, "mask")
        array = np.array(mask)
        if array.shape != (batch, steps):
            raise ValueError(
                f"mask has shape {array.shape}; expected (batch, time steps) = ({batch}, {steps})"
                + self._layout_hint(array.shape)
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
        check_array(time_delta, "time_delta")
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
                + self._time_hint(tuple(array.shape))
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

    def _time_hint(self, shape: tuple[int, ...]) -> str:
        """Return what to do with elapsed times of a wrong shape, or ""."""
        batch, steps, _ = self.inputs_shape
        if shape == (steps,):
            return f". If they are those of every sequence, pass np.tile(time_delta, ({batch}, 1))"
        if shape[:2] == (batch, steps - 1):
            return (
                ". Put the time before the first time step in front: pass np.concatenate([first, "
                "time_delta], axis=1), where first has shape " + str((batch, 1, *shape[2:]))
            )
        return self._layout_hint(shape)

    def _layout_hint(self, shape: tuple[int, ...]) -> str:
        """Return what to do if an array ``(B, T)`` shows that the inputs are ``(B, F, T)``."""
        return layout_hint(tuple(self._inputs.shape), shape[1] if len(shape) > 1 else 0)

    def _likely_mistakes(self, time_delta: Any) -> Iterator[str]:
        """Yield notes on arrays that are probably not what they should be; some may be "".

        Args:
            time_delta: As it was passed, since timestamps may be equal in single precision.
        """
        real = self.mask_array
        if not self.tokens:
            yield non_finite(to_numpy(self._inputs), "inputs", real, self.feature_names)
        arrays = self._container
        for key, array in arrays.items() if isinstance(arrays, dict) else enumerate(arrays or ()):
            if array is not None and array.dtype in _FLOATING:
                steps = real if tuple(array.shape[:2]) == real.shape else None
                yield non_finite(to_numpy(array), f"inputs[{key!r}]", steps)
        if isinstance(self._targets, mx.array) and self._targets.dtype in _FLOATING:
            steps = real if tuple(self._targets.shape[:2]) == real.shape else None
            yield non_finite(to_numpy(self._targets), "targets", steps)
        if self._time_delta is not None:
            given = time_delta if isinstance(time_delta, np.ndarray) else None
            given_times = to_numpy(self._time_delta) if given is None or given.size == 1 else given
            yield timestamps(given_times.reshape(real.shape), real)

    def _fill_padding(self, real: mx.array) -> None:
        """Replace values in padding that are not finite."""
        # NaN in padding would come back in the gradients of real steps, as 0 times NaN.
        if not self.tokens:
            by_step = real.reshape(*real.shape, *[1] * len(self.frame_shape))
            odd = mx.logical_not(by_step | mx.isfinite(self._inputs))
            self._inputs = mx.where(odd, mx.zeros_like(self._inputs), self._inputs)
        if self._time_delta is not None:
            real = real.reshape(self._time_delta.shape)
            odd = mx.logical_not(real | mx.isfinite(self._time_delta))
            self._time_delta = mx.where(odd, mx.ones_like(self._time_delta), self._time_delta)
        mx.eval(self._inputs, *([] if self._time_delta is None else [self._time_delta]))

    @staticmethod
    def _check_targets(targets: Any, batch: int) -> Any:
        if not isinstance(targets, np.ndarray):  # which may hold objects for a target function
            check_array(targets, "targets")
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
        """Return the sequence in the shape and dtype passed, or tokens ``(B, T)``."""
        return mx.array(self._inputs)

    @property
    def columns(self) -> mx.array:
        """Return the sequence as ``(B, T, P)``, with all the values of a frame along one axis.

        This is the shape in which inputs are varied, differentiated and attributed. For inputs
        ``(B, T, F)`` a column is a feature; for frames it is a pixel of a channel.

        Raises:
            TypeError: The sequence holds tokens, whose columns are those of their embedding.
        """
        if self.tokens:
            raise TypeError("tokens have no columns before the model embeds them: read inputs")
        return self._inputs.reshape(*self._inputs.shape[:2], -1)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Return the axes after time: ``(F,)``, ``(H, W, C)`` of frames, ``()`` of tokens."""
        return tuple(self._inputs.shape[2:])

    @property
    def has_frames(self) -> bool:
        """Return true if each time step holds a frame, an array with several axes."""
        return len(self.frame_shape) > 1

    @property
    def picture_shape(self) -> tuple[int, int] | None:
        """Return ``(H, W)`` of frames with two axes besides the channels, else None."""
        sides = [n for axis, n in enumerate(self.frame_shape) if axis != self._channel_axis]
        return (sides[0], sides[1]) if self.has_frames and len(sides) == 2 else None

    @property
    def groups_columns(self) -> bool:
        """Return true if a feature has several columns: for frames and for tokens."""
        return self.has_frames or self.tokens

    @property
    def channel_axis(self) -> int | None:
        """Return the axis of a frame, without ``(B, T)``, that holds the features, or None."""
        return self._channel_axis

    def feature_of_columns(self, count: int) -> npt.NDArray[np.intp]:
        """Return for each column the index of the feature that it belongs to.

        Args:
            count: Number of columns, which for tokens is the size of their embedding.
        """
        if self._channel_axis is None:
            return np.zeros(count, np.intp)
        features = self.frame_shape[self._channel_axis]
        shape = [1] * len(self.frame_shape)
        shape[self._channel_axis] = features
        each = np.broadcast_to(np.arange(features).reshape(shape), self.frame_shape)
        return each.reshape(-1)

    def by_feature(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return sums over the columns of each feature.

        Args:
            values: ``(..., P)``, one for each column.

        Returns:
            ``(..., F)``: of frames the sums over the pixels of each channel, of tokens the sum over
            their embedding. For inputs ``(B, T, F)`` these are the values themselves.
        """
        if self._channel_axis is None:
            whole: npt.NDArray[Any] = values.sum(axis=-1, keepdims=True)
            return whole
        if not self.has_frames:
            return values
        lead = values.ndim - 1
        apart = values.reshape(*values.shape[:-1], *self.frame_shape)
        others = [i for i in range(len(self.frame_shape)) if i != self._channel_axis]
        summed: npt.NDArray[Any] = apart.sum(axis=tuple(lead + i for i in others))
        return summed

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

        Args:
            sequence: :attr:`inputs`, or variants ``(n B, T', P)`` of :attr:`columns`, which get the
                frames' own shape.
        """
        if self.has_frames:
            sequence = sequence.reshape(*sequence.shape[:2], *self.frame_shape)
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
    def sequence_classes(self) -> npt.NDArray[Any] | None:
        """Return ``(B,)`` read-only, the class of each sequence; None without one integer each."""
        if not isinstance(self.targets, mx.array) or mx.issubdtype(self.targets.dtype, mx.floating):
            return None
        if self.targets.size != len(self):
            return None
        return read_only(np.array(self.targets).reshape(-1))

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
        """Return ``(B, T, F)``, with the number of named features.

        Tokens, and frames without channels, count as one feature; other frames as their channels.
        """
        batch, steps, *frame = self._inputs.shape
        return batch, steps, 1 if self._channel_axis is None else frame[self._channel_axis]

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
        if self.has_frames:
            what = f"frames {' × '.join(map(str, self.frame_shape))}, {what}"
        parts = [f"{batch} sequences, {steps} steps, {what}"]
        parts += [] if self._container is None else ["companions"]
        parts += ["time_delta"] if self._time_delta is not None else []
        parts += ["targets"] if self._targets is not None else []
        parts += ["mask"] if self._mask is not None else []
        return f"HeldOutBatch({', '.join(parts)})"

    def take(self, rows: slice | npt.NDArray[np.intp]) -> HeldOutBatch:
        """Return a batch of some of the sequences; targets that are no arrays stay whole."""
        part = copy.copy(self)
        # MLX takes no negative strides.
        picked = rows if isinstance(rows, slice) else mx.array(np.ascontiguousarray(rows))
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

    def shortened(
        self, steps: npt.NDArray[np.intp], mask: npt.NDArray[np.bool_], *, with_targets: bool
    ) -> HeldOutBatch:
        """Return a batch of some time steps of each sequence; companions stay whole.

        Args:
            steps: ``(B, n)``, indices of time steps.
            mask: ``(B, n)``, true at real time steps, of which each sequence has one.
            with_targets: True for targets ``(B, T, ...)`` at these time steps.
        """
        total = self.inputs_shape[1]

        def taken(array: mx.array) -> mx.array:
            index = mx.array(steps).reshape(*steps.shape, *[1] * (array.ndim - 2))
            return mx.take_along_axis(array, index, axis=1)

        part = self.replaced("inputs", taken(self._inputs))
        if self._time_delta is not None:
            part = part.replaced("time_delta", taken(self._time_delta))
        part._mask = None if mask.all() else read_only(mask)
        targets = self._targets
        if with_targets and isinstance(targets, mx.array) and targets.shape[1:2] == (total,):
            part._targets = taken(targets)
        return part

    def spread(self, count: int) -> npt.NDArray[np.intp]:
        """Return the indices of ``count`` sequences spread over the batch, in increasing order.

        They are spread because held-out data is often sorted. A smaller count gives a subset of a
        larger one, so that callbacks that analyse different numbers of sequences share them.
        """
        bits = max(1, (len(self) - 1).bit_length())
        backwards = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
        return np.sort([i for i in backwards if i < len(self)][:count])
