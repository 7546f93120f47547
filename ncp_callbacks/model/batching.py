"""Run passes over a batch in parts as large as memory allows, and return numpy arrays."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..arrays import to_mlx, to_numpy
from ..results import FloatArray
from ..target_values import TargetValues
from .errors import ModelError
from .hook_points import CellHook, LayerHook
from .pass_arrays import Pass, Variants
from .runner import ModelRunner
from .time_order import Order, calls_of_steps

__all__ = [
    "MAX_UNITS",
    "EvaluatedPass",
    "as_target_values",
    "concatenate_values",
    "evaluate_variants",
    "run_in_batches",
    "run_in_parts",
]

_LOG = logging.getLogger("ncp_callbacks")

# Sequences that are run where all are alike: two, as a model may squeeze a batch of one.
_ALIKE = 2

# Units of a convolution whose activations are kept.
MAX_UNITS = 4096


class EvaluatedPass:
    """Hold one evaluated pass over some sequences, and convert its arrays when asked to."""

    def __init__(self, runner: ModelRunner, computed: Pass) -> None:
        self._pass = computed
        self._batch, self._steps, _ = runner.held_out.inputs_shape
        self._mask = runner.held_out.mask_array
        self._indices = runner.indices

    def array(self, name: str) -> FloatArray:
        """Return an array of :class:`~.pass_arrays.Pass` by its name there."""
        return to_numpy(getattr(self._pass, name))

    @property
    def chosen(self) -> npt.NDArray[np.integer[Any]] | None:
        """Return ``(B,)``, the output followed in each sequence; None without a choice."""
        return None if self._pass.chosen is None else np.array(self._pass.chosen)

    def states(self, hook: CellHook) -> FloatArray:
        """Return the states ``(B, T, H)``; several state arrays are concatenated."""
        parts = [
            self._over_time(hook, arrays, hook.axis(i))
            for i, arrays in enumerate(self._pass.states[hook.name])
        ]
        return np.concatenate(parts, axis=-1)

    def initial(self, hook: CellHook) -> FloatArray | None:
        """Return the initial states ``(B, H)``, or None where the model passed none."""
        if hook.name not in self._pass.initial:
            return None
        arrays = [to_numpy(a) for a in self._pass.initial[hook.name]]
        # Models often start all sequences from one state.
        parts = [
            np.moveaxis(a, hook.axis(i), 0).reshape(self._batch, -1)
            if a.ndim > 1 and a.shape[hook.axis(i)] == self._batch
            else np.broadcast_to(a.reshape(-1), (self._batch, a.size))
            for i, a in enumerate(arrays)
        ]
        return self._in_batch_order(hook, np.concatenate(parts, axis=-1))

    def activations(self, hook: LayerHook) -> FloatArray:
        """Return the activations ``(B, T, N)``.

        Of a convolution each channel at each position is a unit, at up to :data:`MAX_UNITS`
        positions and channels; positions are spread evenly.
        """
        arrays = self._pass.activations[hook.name]
        if hook.flat:
            arrays = [self._unfolded(hook, arrays[0])]
        lead = 2 if hook.whole_sequence else 1
        return self._over_time(hook, [_some_units(array, lead) for array in arrays], hook.axis)

    def _unfolded(self, hook: LayerHook, array: mx.array) -> mx.array:
        """Return ``(B, T, ...)`` or ``(T, B, ...)`` from ``(B T, ...)`` or ``(T B, ...)``."""
        if len(array) != self._batch * self._steps:
            raise ModelError(
                f"{hook.name} returned an array of shape {tuple(array.shape)} for {self._batch} "
                f"sequences of {self._steps} time steps, which were its rows in the first pass: "
                "make it return one row for each in each pass"
            )
        sizes = (self._steps, self._batch) if hook.axis else (self._batch, self._steps)
        return array.reshape(*sizes, *array.shape[1:])

    def _over_time(
        self, hook: CellHook | LayerHook, arrays: Sequence[mx.array], axis: int
    ) -> FloatArray:
        """Return ``(B, T, N)`` from one array over all time steps, or from one for each of them."""
        shape = tuple(arrays[0].shape)
        time = tuple(arrays[0].shape[1 - axis : 2 - axis]) if hook.whole_sequence else ()
        if shape[axis : axis + 1] != (self._batch,) or time not in ((), (self._steps,)):
            raise ModelError(
                f"{hook.name} returned an array of shape {shape} for {self._batch} sequences of "
                f"{self._steps} steps: return an array whose axis {axis} is the batch"
            )
        if hook.whole_sequence:
            values = np.moveaxis(to_numpy(arrays[0]), axis, 0)
            if hook.order is Order.BACKWARD:
                values = values[:, ::-1]
        else:
            # One conversion is much faster than one for each step.
            rows = [mx.moveaxis(a, axis, 0) if axis else a for a in arrays]
            values = to_numpy(mx.stack([a.reshape(self._batch, -1) for a in rows], axis=1))
        values = self._in_batch_order(hook, values)
        if hook.order in (Order.FORWARD, Order.BACKWARD):
            return values
        calls = calls_of_steps(hook.order, self._mask)
        return np.take_along_axis(values, calls[..., None], axis=1)

    def _in_batch_order(self, hook: CellHook | LayerHook, values: FloatArray) -> FloatArray:
        """Return ``(B, ...)`` in the order of the sequences, from that in which the model ran."""
        if not hook.rows:
            return values
        if (np.diff(self._indices) <= 0).any():  # equal lengths keep the order of the batch
            raise ModelError(
                f"{hook.name} runs the sequences in an order of its own: take parts of the batch "
                "in its order"
            )
        places = np.argsort(hook.rows)[self._indices]  # of these sequences among all
        return values[np.argsort(np.argsort(places))]


def _some_units(array: mx.array, lead: int) -> mx.array:
    """Return an array with one axis of units after the first ``lead``, all channels of some."""
    if array.ndim <= lead + 1:
        return array
    by_position = array.reshape(*array.shape[:lead], -1, array.shape[-1])
    step = -(-by_position.shape[-2] * by_position.shape[-1] // MAX_UNITS)
    some = by_position[..., :: max(1, step), :]
    return some.reshape(*array.shape[:lead], -1)


def run_in_batches(runner: ModelRunner, wanted: dict[str, bool]) -> Iterator[EvaluatedPass]:
    """Yield passes over the whole batch, in order, each over as many sequences as memory allows.

    Args:
        runner: The model and the batch.
        wanted: Keywords of :meth:`ModelRunner.run`.

    Raises:
        MemoryError: If one sequence, or a batch that can't be divided, does not fit into memory;
            MLX raises a RuntimeError.
    """
    batch, start = len(runner.held_out), 0
    while start < batch:
        size = batch if runner.whole_batch_only else runner.max_sequences or batch
        stop = min(batch, start + size)
        whole = stop - start == batch
        part = runner if whole else runner.take(slice(start, stop))
        try:
            computed = part.run(**wanted)
            mx.eval(computed.arrays())
        except (MemoryError, RuntimeError) as error:
            if not (_out_of_memory(error) and runner.divisible and stop - start > 1):
                raise
            _halve_sequences(runner, stop - start)
        else:
            yield EvaluatedPass(part, computed)
            start = stop


def evaluate_variants(
    runner: ModelRunner,
    sequences: FloatArray | None,
    time_deltas: FloatArray | None,
    chosen: npt.NDArray[np.integer[Any]] | None,
    *,
    gradient: bool,
    loss: bool = False,
    max_sequences: int,
    max_variants: int,
) -> TargetValues:
    """Evaluate variants of the batch, several at once on the batch axis.

    Args:
        runner: The model and the batch.
        sequences: ``(K, B, T, F)``; None: the batch's own.
        time_deltas: ``(K, B, T)``; None: the batch's own.
        chosen: ``(B,)``, the outputs to follow, or None without a choice.
        gradient: Also compute gradients.
        loss: Also compute the loss; ignored with ``gradient``.
        max_sequences: Number of sequences run at once, if the batch can be divided.
        max_variants: Number of variants of these sequences run at once; halved if memory runs out.
    """
    count = next(len(a) for a in (sequences, time_deltas, [0]) if a is not None)

    def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
        return _run_variants(
            some,
            None if sequences is None else sequences[at, here],
            None if time_deltas is None else time_deltas[at, here],
            None if chosen is None else chosen[here],
            gradient,
            loss,
        )

    return run_in_parts(runner, run, count, max_sequences=max_sequences, max_variants=max_variants)


def run_in_parts(
    runner: ModelRunner,
    run: Callable[[ModelRunner, slice, slice], TargetValues],
    count: int,
    *,
    max_sequences: int,
    max_variants: int,
) -> TargetValues:
    """Run ``count`` variants of the batch, in parts as large as memory allows.

    Args:
        runner: The model and the batch.
        run: ``run(part, here, at)`` evaluates the variants ``at`` on ``part``, a runner of the
            sequences ``here``.
        count: Number of variants.
        max_sequences: Number of sequences run at once, if the batch can be divided.
        max_variants: Number of variants of these sequences run at once; halved if memory runs out.
    """
    batch = len(runner.held_out)
    size = min(max_sequences, batch) if runner.divisible else batch
    # Fewer sequences leave room for more variants.
    at_once = max(1, max_variants * max_sequences // size)
    # In parts of nearly equal size: a last part of one would take nearly as long as the others.
    at_once = -(-count // -(-count // at_once))
    parts: list[TargetValues] = []
    for begin in range(0, batch, size):
        here = slice(begin, min(batch, begin + size))
        some = runner if size == batch else runner.take(here)
        done: list[TargetValues] = []
        start = 0
        while start < count:
            at = slice(start, min(count, start + at_once))
            try:
                done.append(run(some, here, at))
            except (MemoryError, RuntimeError) as error:
                if not (_out_of_memory(error) and at.stop - start > 1):
                    raise
                at_once = (at.stop - start) // 2
            else:
                start = at.stop
        parts.append(concatenate_values(done, axis=0))
    return concatenate_values(parts, axis=1)


def _run_variants(
    runner: ModelRunner,
    sequences: FloatArray | None,
    time_deltas: FloatArray | None,
    chosen: npt.NDArray[np.integer[Any]] | None,
    gradient: bool,
    loss: bool,
) -> TargetValues:
    """Run some variants of some sequences in one pass."""
    count = next(len(a) for a in (sequences, time_deltas, [0]) if a is not None)
    x, dt = (
        None
        if own is None
        else mx.broadcast_to(own, (count, *own.shape))
        if given is None
        else to_mlx(given).astype(own.dtype)
        for given, own in (
            (sequences, runner.sequence()),
            (time_deltas, runner.time_delta),
        )
    )
    assert x is not None
    alike = not gradient and _are_alike(runner, sequences, time_deltas)
    if alike:
        x, dt = x[:, :_ALIKE], None if dt is None else dt[:, :_ALIKE]
    followed = None if chosen is None else to_mlx(chosen)
    return as_target_values(
        runner.variants(x, dt, followed, gradient=gradient, loss=loss, alike=alike)
    )


def _are_alike(
    runner: ModelRunner, sequences: FloatArray | None, time_deltas: FloatArray | None
) -> bool:
    """Return whether the model is given the same for every sequence, as at a constant baseline."""
    given = [sequences, time_deltas] if runner.takes_time else [sequences]
    return (
        runner.divisible
        and not runner.held_out.has_companions
        and runner.embedding is None
        and len(runner.held_out) > _ALIKE
        and all(array is not None and bool((array == array[:, :1]).all()) for array in given)
    )


def as_target_values(variants: Variants) -> TargetValues:
    """Evaluate the results of variants and return them as numpy arrays."""
    arrays = (variants.values, variants.input_gradient, variants.time_gradient, variants.loss)
    mx.eval([array for array in arrays if array is not None])
    return TargetValues(*[None if a is None else to_numpy(a) for a in arrays])  # type: ignore[arg-type]


def concatenate_values(parts: Sequence[TargetValues], axis: int) -> TargetValues:
    """Concatenate the values of parts: of variants (``axis=0``) or of sequences (``axis=1``)."""
    if len(parts) == 1:
        return parts[0]
    columns = ([getattr(p, f.name) for p in parts] for f in fields(TargetValues))
    return TargetValues(*[None if c[0] is None else np.concatenate(c, axis=axis) for c in columns])  # type: ignore[arg-type]


def _halve_sequences(runner: ModelRunner, tried: int) -> None:
    """Halve the number of sequences that are run at once from now on."""
    runner.max_sequences = tried // 2
    _LOG.warning(
        "running %d sequences at once ran out of memory; running at most %d from now on",
        tried,
        tried // 2,
    )


def _out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out; MLX raises a RuntimeError that names allocation or memory."""
    return isinstance(error, MemoryError) or bool(re.search("alloc|memory", str(error), re.I))
