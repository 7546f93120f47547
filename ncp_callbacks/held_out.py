"""Hold the batch on which the model is analysed, checked once and never changed.

::

    held_out = HeldOutBatch(x_val[:16], time_delta=dt_val[:16], feature_names=["hr", "bp"])

Some 16 sequences are enough for most purposes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arrays import FLOATING, guarded, read_only, to_mlx, to_numpy
from .held_out_checks import (
    checked_channel_axis,
    checked_inputs,
    checked_mask,
    checked_names,
    checked_targets,
    checked_time_delta,
)
from .keywords import checks_function_keywords, checks_keywords
from .likely_mistakes import non_finite, timestamps
from .sequences import mask_of_lengths, padded

__all__ = ["HeldOutBatch"]


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
        self._inputs, self._container = checked_inputs(inputs)
        # The axis of a frame, without (B, T), that holds the channels.
        self._channel_axis = checked_channel_axis(channel_axis, self._inputs, feature_names)
        batch, steps, features = self.inputs_shape
        shape = tuple(self._inputs.shape)
        if lengths is not None:
            if mask is not None:
                raise ValueError("both mask= and lengths= were passed: pass one of them")
            mask = mask_of_lengths(lengths, batch, steps)
        self._mask = checked_mask(mask, shape)
        self._time_delta = checked_time_delta(time_delta, shape, self._mask)
        self._targets = checked_targets(targets, batch)
        if self._mask is not None:
            self._fill_padding(to_mlx(self._mask))
        self.feature_names = (
            checked_names(feature_names, "feature_names", features, shape) or self._default_names()
        )
        self.class_names = checked_names(class_names, "class_names", None)
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

    def _default_names(self) -> tuple[str, ...]:
        if self.tokens:
            return ("token",)
        if self._channel_axis is None:
            return ("frame",)
        what = "channel" if self.has_frames else "feature"
        return tuple(f"{what} {i}" for i in range(self.inputs_shape[2]))

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
            if array is not None and array.dtype in FLOATING:
                steps = real if tuple(array.shape[:2]) == real.shape else None
                yield non_finite(to_numpy(array), f"inputs[{key!r}]", steps)
        if isinstance(self._targets, mx.array) and self._targets.dtype in FLOATING:
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
        return guarded(self._targets)

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
        picked = rows if isinstance(rows, slice) else to_mlx(rows)
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
        total, picked = self.inputs_shape[1], to_mlx(steps)
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
            index = to_mlx(steps).reshape(*steps.shape, *[1] * (array.ndim - 2))
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
