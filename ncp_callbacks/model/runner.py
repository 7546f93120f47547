"""One pass of the user's model over the held-out batch, with everything that is wanted of it.

This is the only place that runs the model once it is understood: a forward pass, or one that also
gives the gradients of the targets with respect to inputs and intervals, with hidden states and
activations recorded on the way.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..held_out import HeldOutBatch, to_numpy
from .capture import Around, Tap, subnormal_flush
from .compilation import CompilationSwitch
from .conventions import Calling, Forward, find_calling
from .discovery import find_hook_points
from .embedding import find_embedding
from .errors import ModelError
from .hook_points import CellHook, HookPoints, LayerHook
from .model_copy import ModelCopy, Subject, set_evaluation_mode
from .pytrees import Path, get_leaf, modules, replace_leaf
from .target import At, Target, TargetLike

__all__ = ["COPIES", "ModelRunner", "Pass", "Variants", "listening", "recorded_calls"]

# Of the batch, run at once without gradients. They keep nothing, so that more of them fit.
COPIES = 4

_SEQUENCES_INTERACT = (
    "the first sequences of the held-out batch have other outputs alone than beside others: either "
    "sequences influence each other, or the model keeps state between calls. Numbers of fewer "
    "sequences, and of extra passes, then differ from those of the whole batch: let each call "
    "start from the same state, for instance in forward=, and compute each sequence by itself"
)


@dataclass(eq=False)
class Pass:
    """What one pass gave, as unevaluated MLX arrays.

    Attributes:
        sequence: ``(B, T, F)``, what gradients are taken of.
        outputs: ``(B, T, O)`` or ``(B, O)``.
        values: ``(B,)``, targets.
        chosen: ``(B,)``, followed outputs, or None.
        input_gradient: ``(B, T, F)`` or None where it was not asked for.
        time_gradient: ``(B, T)`` or None.
        states: Per cell hook, state arrays each as a list over steps of ``(B, H)``, or one
            ``(B, T, H)``.
        initial: Per cell hook, state arrays ``(B, H)`` before the first step; empty if not given.
        activations: Per layer hook, likewise a list over steps, or one ``(B, T, N)``.
    """

    sequence: mx.array
    outputs: mx.array
    values: mx.array
    chosen: mx.array | None
    input_gradient: mx.array | None = None
    time_gradient: mx.array | None = None
    states: dict[str, list[list[mx.array]]] = field(default_factory=dict)
    initial: dict[str, list[mx.array]] = field(default_factory=dict)
    activations: dict[str, list[mx.array]] = field(default_factory=dict)

    def arrays(self) -> Any:
        """All that is to be evaluated."""
        wanted = (self.sequence, self.outputs, self.values, self.input_gradient, self.time_gradient)
        given = [array for array in wanted if array is not None]
        return given, self.states, self.initial, self.activations


@dataclass(eq=False)
class Variants:
    """Targets of several other batches, as unevaluated MLX arrays.

    Attributes:
        values: ``(K, B)``.
        input_gradient: ``(K, B, T, F)``, or None.
        time_gradient: ``(K, B, T)``, or None.
        loss: ``(K, B)``, or None.
    """

    values: mx.array
    input_gradient: mx.array | None = None
    time_gradient: mx.array | None = None
    loss: mx.array | None = None


class _Recorder:
    """What the calls of chosen modules showed during one forward pass.

    Args:
        flush: Whether gradients will go back, which are not to get subnormal.
    """

    def __init__(
        self,
        tap: Tap,
        cells: Sequence[CellHook],
        layers: Sequence[LayerHook],
        *,
        flush: bool,
    ) -> None:
        self._tap, self._cells, self._layers = tap, cells, layers
        self._flush = subnormal_flush() if flush else None
        self._shown: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        hook_points: list[CellHook | LayerHook] = [*self._cells, *self._layers]
        watched = dict.fromkeys(hook.module for hook in hook_points)
        found = dict(modules(model))
        missing = [path for path in watched if path not in found]
        if missing:
            raise ModelError(f"the model had a module {missing[0]!r} when it was looked at first")
        with self._tap.on([(found[path], self._around(path)) for path in watched]):
            yield

    def _around(self, module: str) -> Around:
        handed_on = {
            path: None
            for hook in self._cells
            if hook.module == module and not hook.whole_sequence
            for path in hook.out_paths
        }

        def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = call(*args, **kwargs)
            for path in handed_on if self._flush is not None else ():
                state = get_leaf(out, path)
                if isinstance(state, mx.array) and mx.issubdtype(state.dtype, mx.floating):
                    assert self._flush is not None
                    out = replace_leaf(out, path, self._flush(state))
            self._shown.setdefault(module, []).append(((args, kwargs), out))
            return out

        return wrapper

    def clear(self) -> None:
        self._shown = {}

    def into(self, result: Pass, states: bool, activations: bool) -> None:
        for cell in self._cells if states else ():
            shown = self.calls(cell)
            result.states[cell.name] = [
                [self._array(shown[number][1], path, cell) for number in cell.calls]
                for path in cell.out_paths
            ]
            initial = [get_leaf(shown[cell.first][0], path) for path in cell.in_paths]
            if initial and all(isinstance(a, mx.array) and a.ndim for a in initial):
                result.initial[cell.name] = initial
        for layer in self._layers if activations else ():
            shown = self.calls(layer)
            result.activations[layer.name] = [
                self._array(shown[number][0 if layer.at_input else 1], layer.path, layer)
                for number in layer.calls
            ]

    def calls(self, hook: CellHook | LayerHook) -> list[tuple[Any, Any]]:
        shown = self._shown.get(hook.module, [])
        if len(shown) != hook.calls_in_all:
            raise ModelError(
                f"{hook.name} was called {len(shown)} times, but {hook.calls_in_all} times when "
                "the model was looked at first: with calls that come and go there is no telling "
                "which belong to which step"
            )
        return shown

    @staticmethod
    def _array(tree: Any, path: Path, hook: CellHook | LayerHook) -> mx.array:
        array = get_leaf(tree, path)
        if not isinstance(array, mx.array):
            raise ModelError(
                f"{hook.name} gave no array where it had given one when the model was looked at "
                "first"
            )
        return array


def _current_forward(copy: ModelCopy) -> Forward:
    """Return a function that calls the one that the copy has now: each load makes another."""

    def forward(model: Any, inputs: mx.array, time_delta: mx.array | None) -> Any:
        assert copy.forward is not None
        return copy.forward(model, inputs, time_delta)

    return forward


class _CurrentTarget:
    """Calls the target function that the copy has now, under its name."""

    def __init__(self, copy: ModelCopy) -> None:
        self._copy = copy

    @property
    def __name__(self) -> str:
        name: str = getattr(self._copy.target, "__name__", type(self._copy.target).__name__)
        return name

    def __call__(self, outputs: mx.array, targets: Any) -> mx.array:
        assert self._copy.target is not None
        values: mx.array = self._copy.target(outputs, targets)
        return values


def _patterns(given: Any, what: str) -> Sequence[str] | None:
    if given is None or isinstance(given, str):
        return None if given is None else [given]
    # A module is a dict, whose keys would be taken for patterns.
    if not isinstance(given, list | tuple) or not all(isinstance(p, str) for p in given):
        raise TypeError(
            f"{what} is a {type(given).__name__}; give the paths of modules, as text: "
            f"{what}='encoder.cell', or a list of them"
        )
    return given


class ModelRunner:
    """A copy of a model, a held-out batch and a target, understood well enough to be analysed.

    Making one runs the copy a few times, mostly on the batch's first two sequences.

    Args:
        model: Any ``mlx.nn.Module``, which is copied; or a copy with the functions that go with it.
        held_out: The batch.
        target, at: What is attributed, see :class:`~.target.Target`.
        forward: ``callable(model, inputs, time_delta) -> outputs`` where the model is not called
            as ``model(inputs)`` or with one of the usual keywords for the intervals.
        cells, layers: Module paths or globs, instead of looking for them.
        most_rows: How many sequences are looked at at once; None: all.

    Raises:
        TypeError: If ``model`` or ``held_out`` is something else.
        ModelError: If they don't fit each other or the arguments.

    Attributes:
        calling, target, hook_points: What was found out.
        whole_batch: How many sequences the batch has of which these may be some.
        notes: What the user should know about it, one sentence each.
        missing: Which kinds of hook_points were not found, and why, one sentence each.
    """

    def __init__(
        self,
        model: nn.Module | ModelCopy,
        held_out: HeldOutBatch,
        *,
        target: TargetLike = "prediction",
        at: At = "last",
        forward: Forward | None = None,
        cells: str | Sequence[str] | None = None,
        layers: str | Sequence[str] | None = None,
        most_rows: int | None = None,
    ) -> None:
        if not isinstance(model, nn.Module | ModelCopy):
            raise TypeError(f"model is a {type(model).__name__}; pass an mlx.nn.Module")
        if not isinstance(held_out, HeldOutBatch):
            raise TypeError(
                f"held_out is a {type(held_out).__name__}; give "
                "HeldOutBatch(inputs, time_delta=..., targets=...)"
            )
        if forward is not None and not callable(forward):
            raise TypeError(
                f"forward is a {type(forward).__name__}; give a callable "
                "(model, inputs, time_delta) -> outputs"
            )
        if isinstance(model, nn.Module):
            model = ModelCopy.of(Subject(model, forward, target if callable(target) else None))
        self.copy, self.held_out = model, held_out
        self.forward = None if model.forward is None else _current_forward(model)
        if model.target is not None:
            target = _CurrentTarget(model)
        self.whole_batch = len(held_out)
        self._memory: dict[str, int | None] = {"rows": most_rows}
        self._tap = Tap()
        self._compilation = CompilationSwitch()
        with self.analysing():
            self.calling, self.hook_points = self._look(
                _patterns(cells, "cells"), _patterns(layers, "layers")
            )
            self.outputs(self.sequence(), self.time_delta)
            self._modules = len(modules(self.model))
            apart = self._sequences_keep_apart()
            self.target = Target(target, at, held_out, self.calling)
            self._wanted = (target, at)
            if target == "loss" or callable(target):
                # Only the whole batch shows whether its targets fit.
                outputs = self.outputs(self.sequence(), self.time_delta)
                mx.eval(self.target(outputs, self.target.choose(outputs)))
        interact = () if apart else (_SEQUENCES_INTERACT,)
        self.notes = (*self.calling.notes, *self.hook_points.notes, *interact)
        self.missing = tuple(filter(None, (self.hook_points.no_cells, self.hook_points.no_layers)))

    @property
    def model(self) -> nn.Module:
        """The copy of the model."""
        return self.copy.model

    @contextmanager
    def analysing(self) -> Iterator[None]:
        """Turn compilation off; on any exit put it, the random states and the copy back."""
        with self._compilation.off(), self.copy.preserved():
            yield

    def preserved(self) -> AbstractContextManager[None]:
        """Return a context that puts the copy back to how it was read; inside :meth:`analysing`."""
        return self.copy.preserved()

    def restore_process(self) -> None:
        """Put back what an interrupted analysis may have left behind in this process."""
        self._compilation.restore()

    @property
    def most_rows(self) -> int | None:
        """How many sequences are looked at at once, here and in what was taken of it; None: all."""
        return self._memory["rows"]

    @most_rows.setter
    def most_rows(self, rows: int) -> None:
        self._memory["rows"] = rows

    def _sequences_keep_apart(self) -> bool:
        """Tell whether a part of the batch has the outputs that it has within the batch.

        It doesn't where a model continues from the state of its last call, or computes means over
        the batch.
        """
        if self.one_batch_size or self.whole_batch < 2:
            return True
        count = min(4, self.whole_batch)
        size = 2 if count > 2 else 1
        parts = (slice(0, count), slice(0, size), slice(count - size, count))
        with self.preserved():
            try:
                outputs = [
                    part.outputs(part.sequence(), part.time_delta) for part in map(self._of, parts)
                ]
                whole, first, last = map(to_numpy, outputs)
            except Exception:
                # A model may be unable to run one sequence; of two there is no smaller part.
                if size == 1:
                    return True
                raise
        a, b = np.concatenate([whole[:size], whole[-size:]]), np.concatenate([first, last])
        scale = float(np.nanmax(np.abs(a), initial=0.0))
        close = 0.1 if outputs[0].dtype in (mx.float16, mx.bfloat16) else 1e-3
        same = a.shape == b.shape and np.allclose(a, b, rtol=0, atol=close * scale, equal_nan=True)
        # A part of the batch draws other random numbers than the whole.
        return same or self._draws_random_numbers(parts[0])

    def _draws_random_numbers(self, rows: slice) -> bool:
        """Tell whether outputs depend on the seed, although the model is in evaluation mode."""
        part = self._of(rows)
        outputs = []
        for seed in (0, 1):
            with self.preserved():
                mx.random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                random.seed(seed)
                outputs.append(to_numpy(part.outputs(part.sequence(), part.time_delta)))
        return not np.array_equal(outputs[0], outputs[1], equal_nan=True)

    @property
    def divisible(self) -> bool:
        """Whether parts of the batch can be looked at by themselves."""
        return not self.one_batch_size and not callable(self._wanted[0])

    def take(self, rows: slice | npt.NDArray[np.intp]) -> ModelRunner:
        """The same for some sequences of the batch."""
        part = self._of(rows)
        part.target = Target(*self._wanted, part.held_out, self.calling)
        return part

    def _of(self, rows: slice | npt.NDArray[np.intp]) -> ModelRunner:
        """The same, which has no target yet."""
        part = copy.copy(self)
        part.held_out = self.held_out.take(rows)
        return part

    @property
    def loss(self) -> Target:
        """The loss where the target is taken.

        Raises:
            ModelError: If the batch has no targets; when called, if they don't fit the outputs.
        """
        return Target("loss", self._wanted[1], self.held_out, self.calling)

    def losses(self, outputs: mx.array) -> mx.array | None:
        """``(B,)``, :attr:`loss`, where that is not the target itself and fits the targets."""
        if self.target.is_loss:
            return None
        try:
            return self.loss(outputs, None)
        except ModelError:
            return None

    def small(self) -> ModelRunner:
        """The same for the batch's first two sequences, or for all where only all will do."""
        return self.take(slice(0, 2)) if self.divisible else self

    def _look(
        self, cells: Sequence[str] | None, layers: Sequence[str] | None
    ) -> tuple[Calling, HookPoints]:
        held_out = self.held_out.take(slice(0, 2))
        self.one_batch_size = False
        try:
            calling = find_calling(self.copy, held_out, self.forward)
        except ModelError:
            if len(self.held_out) <= 2:
                raise
            held_out = self.held_out
            calling = find_calling(self.copy, held_out, self.forward)
            self.one_batch_size = True
        self._embedding = find_embedding(self.model, held_out, calling) if held_out.tokens else None
        probed = copy.copy(self)
        probed.held_out, probed.calling = held_out, calling
        with self.preserved():
            sequence = probed.sequence()
            mx.eval(sequence)
        hook_points = find_hook_points(
            self.copy,
            sequence,
            lambda inputs: probed.outputs(inputs, probed.time_delta),
            cells=cells,
            layers=layers,
        )
        return calling, hook_points

    def sequence(self) -> mx.array:
        """``(B, T, F)``, what gradients are taken of: inputs, or what tokens are embedded as."""
        if self._embedding is None:
            return self.held_out.inputs
        return self._embedding.vectors(self.model, self.held_out)

    def outputs(self, sequence: mx.array, time_delta: mx.array | None) -> mx.array:
        """The model's outputs for a sequence ``(n B, T, F)``; see :class:`Calling`."""
        if self._embedding is None:
            return self.calling(self.held_out.pack(sequence), time_delta)
        copies = len(sequence) // len(self.held_out)
        tokens = self.held_out.pack(mx.concatenate([self.held_out.inputs] * copies))
        return self._embedding.run(self.model, sequence, lambda: self.calling(tokens, time_delta))

    @property
    def time_delta(self) -> mx.array | None:
        """``(B, T)``, or None."""
        return self.held_out.flat_time_delta

    @property
    def takes_time(self) -> bool:
        """Whether intervals reach the model."""
        return self.calling.time_argument is not None and self.held_out.time_delta is not None

    def _ready(self) -> None:
        """Let a model that makes its layers when it is first called do so.

        They would be in train mode otherwise: it is not known before that there are any.
        """
        if len(modules(self.model)) < self._modules:
            self.outputs(self.sequence(), self.time_delta)
            set_evaluation_mode(self.model)

    def outputs_of_variants(
        self, sequences: mx.array, time_deltas: mx.array | None
    ) -> list[mx.array]:
        """The model's outputs for each of ``(K, B, T, F)``, run side by side where it can."""
        copies, batch = sequences.shape[:2]
        if self.one_batch_size:
            return [
                self.outputs(sequences[k], None if time_deltas is None else time_deltas[k])
                for k in range(copies)
            ]
        flat = None if time_deltas is None else time_deltas.reshape(-1, time_deltas.shape[-1])
        outputs = self.outputs(sequences.reshape(-1, *sequences.shape[2:]), flat)
        return [outputs[k * batch : (k + 1) * batch] for k in range(copies)]

    def variants(
        self,
        sequences: mx.array,
        time_deltas: mx.array | None,
        chosen: mx.array | None,
        *,
        gradient: bool = False,
        loss: bool = False,
    ) -> Variants:
        """Targets of ``K`` other batches in one pass, following the outputs ``chosen`` before.

        Args:
            sequences: ``(K, B, T, F)``.
            time_deltas: ``(K, B, T)``, or None.
            chosen: ``(B,)``, see :meth:`Target.choose`.
            gradient: Whether gradients with respect to sequences and intervals are wanted.
            loss: Whether :attr:`loss` is, too; not with gradients.
        """
        self._ready()
        cells = self.hook_points.cells if gradient else ()
        recorder = _Recorder(self._tap, cells, (), flush=gradient)
        losses: list[mx.array] = []

        def total(x: mx.array, dt: mx.array | None) -> tuple[mx.array, mx.array]:
            recorder.clear()
            parts = self.outputs_of_variants(x, dt)
            values = mx.stack([self.target(part, chosen) for part in parts])
            if loss and not gradient:
                of_loss = self.loss
                losses.append(mx.stack([of_loss(part, None) for part in parts]))
            return values.sum(), values

        if not gradient:
            with recorder.listening(self.model):
                values = total(sequences, time_deltas)[1]
            return Variants(values, loss=losses[-1] if losses else None)
        kept: list[mx.array] = []

        def scalar(x: mx.array, dt: mx.array | None) -> mx.array:
            summed, values = total(x, dt)
            kept.append(values)
            return summed

        with recorder.listening(self.model):
            wanted = [0, 1] if self.takes_time else [0]
            gradients = mx.grad(scalar, argnums=wanted)(sequences, time_deltas)
        if isinstance(gradients, mx.array):
            gradients = (gradients,)
        by_input, by_time = (*gradients, None)[:2]
        return Variants(kept[-1], by_input, by_time)

    def run(
        self,
        *,
        input_gradient: bool = False,
        time_gradient: bool = False,
        states: bool = False,
        activations: bool = False,
    ) -> Pass:
        """One pass; call it inside :meth:`analysing`.

        With both gradients it costs what one gradient costs; states and activations are recorded
        in the same pass.
        """
        self._ready()
        inputs, delta = self.sequence(), self.time_delta
        gradient = input_gradient or time_gradient
        recorder = _Recorder(
            self._tap,
            self.hook_points.cells if states or gradient else (),
            self.hook_points.layers if activations else (),
            flush=gradient,
        )

        def forward(x: mx.array, dt: mx.array | None) -> tuple[mx.array, Pass]:
            recorder.clear()
            outputs = self.outputs(x, dt)
            chosen = self.target.choose(outputs)
            values = self.target(outputs, chosen)
            result = Pass(inputs, outputs, values, chosen)
            recorder.into(result, states, activations)
            # Sequences don't interact in eval mode, so the gradient of the sum is that of each.
            return values.sum(), result

        with recorder.listening(self.model):
            if not gradient:
                return forward(inputs, delta)[1]
            kept: list[Pass] = []

            def scalar(x: mx.array, dt: mx.array | None) -> mx.array:
                total, result = forward(x, dt)
                kept.append(result)
                return total

            wanted = [0] * input_gradient + [1] * (time_gradient and self.takes_time)
            if not wanted:
                return forward(inputs, delta)[1]
            gradients = mx.grad(scalar, argnums=wanted)(inputs, delta)
        result = kept[-1]
        if isinstance(gradients, mx.array):
            gradients = (gradients,)
        for which, array in zip(wanted, gradients, strict=True):
            if which == 0:
                result.input_gradient = array
            else:
                result.time_gradient = array
        return result


@contextmanager
def listening(runner: ModelRunner) -> Iterator[None]:
    """For gradients taken elsewhere: those of the states that cells hand on don't get subnormal."""
    runner._ready()
    cells = runner.hook_points.cells
    with _Recorder(runner._tap, cells, (), flush=True).listening(runner.model):
        yield


def recorded_calls(runner: ModelRunner, hook: CellHook) -> list[tuple[Any, Any]]:
    """``((args, kwargs), output)`` of every call of a cell in one forward pass."""
    runner._ready()
    recorder = _Recorder(runner._tap, [hook], (), flush=False)
    with recorder.listening(runner.model):
        runner.outputs(runner.sequence(), runner.time_delta)
    return recorder.calls(hook)
