"""Run passes of the copied model over the held-out batch.

A pass computes outputs and targets, and, as requested, gradients of the targets with respect to
inputs and elapsed times, hidden states and activations.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..held_out import HeldOutBatch
from .capture import Tap
from .checks.independence import check_own_inputs, coupling_note
from .checks.state_between_batches import StateBetweenBatches
from .compilation import CompilationSwitch
from .compiled_weights import compiled_weights_notes
from .conventions import Forward
from .embedding import Embedding
from .embedding_finder import find_embedding
from .errors import ModelError, NotApplicable
from .gradients import find_gradients
from .hook_points import CellHook
from .hook_recorder import HookRecorder
from .inspection import inspect_model, two_sequences
from .model_copy import ModelCopy, Subject, set_evaluation_mode
from .pass_arrays import Pass, Variants
from .pytrees import modules
from .sequence_caller import SequenceCaller
from .target import At, Target, TargetLike

__all__ = ["ModelRunner", "flushing_subnormals", "recorded_calls"]

# Variants of the batch in one pass without gradients, which keeps no intermediate arrays.
_VARIANTS_AT_ONCE = 4
# Variants in one pass where memory is known to suffice. Small models take hardly longer for them
# than for one; more would only take memory.
_MAX_VARIANTS_AT_ONCE = 8


def _current_forward(copy: ModelCopy) -> Forward:
    """Return a function that calls the copy's current ``forward``; each load replaces it."""

    def forward(model: Any, inputs: mx.array, time_delta: mx.array | None) -> Any:
        assert copy.forward is not None
        return copy.forward(model, inputs, time_delta)

    return forward


class _CurrentTarget:
    """Call the copy's current target function, which each load replaces."""

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


def _takes_three(forward: Callable[..., Any]) -> bool:
    """Return whether a function takes three arguments, as far as its signature tells."""
    try:
        inspect.signature(forward).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def _patterns(given: Any, what: str) -> Sequence[str] | None:
    if given is None or isinstance(given, str):
        return None if given is None else [given]
    # A module is a dict, whose keys would be taken for patterns.
    if not isinstance(given, list | tuple) or not all(isinstance(p, str) for p in given):
        raise TypeError(
            f"{what} is a {type(given).__name__}; pass the paths of modules as strings: "
            f"{what}='encoder.cell', or a list of them"
        )
    return given


class ModelRunner(SequenceCaller):
    """Run a copy of a model on a held-out batch.

    The constructor runs the copy a few times, mostly on two sequences of the batch, to find
    out how to call it and where its states and activations can be read.

    Args:
        model: Any ``mlx.nn.Module``, which is copied, or a :class:`ModelCopy`.
        held_out: The batch.
        target: The attributed target, see :class:`~.target.Target`.
        at: The time step of the target, see :class:`~.target.Target`.
        forward: ``callable(model, inputs, time_delta) -> outputs``, for a model that is not called
            as ``model(inputs)`` or with one of the usual keywords for elapsed times.
        horizon: True if axis 1 of the outputs holds the steps of a forecast, False if it holds time
            steps; None: found automatically.
        cells: Paths or globs of the modules to take as cells; None: found automatically.
        layers: Paths or globs of the modules to take as layers; None: found automatically.
        max_sequences: Largest number of sequences in one pass; None: all.
        state: The state between batches that another runner of the model found; None: found.

    Raises:
        TypeError: If ``model`` or ``held_out`` has another type.
        ModelError: If model, batch and arguments don't fit each other.

    Attributes:
        calling: How the model is called.
        target: The target.
        hook_points: Where states and activations can be read.
        whole_batch: Number of sequences in the whole batch, also for a runner of some of them.
        indices: ``(B,)``, the indices of the sequences in the whole batch.
        state: The state that the model keeps between batches.
        coupling: Channels through which sequences act on each other, see
            :func:`~.checks.independence.find_coupling`; empty if they don't.
        whole_batch_only: True if each pass takes the whole batch, one variant at a time, because
            the model runs one number of sequences or sequences act on each other.
        notes: Facts about the model that the user should know, one sentence each.
        missing: Kinds of hook points that were not found, with the reason, one sentence each.
    """

    def __init__(
        self,
        model: nn.Module | ModelCopy,
        held_out: HeldOutBatch,
        *,
        target: TargetLike = "prediction",
        at: At = "last",
        forward: Forward | None = None,
        horizon: bool | None = None,
        cells: str | Sequence[str] | None = None,
        layers: str | Sequence[str] | None = None,
        max_sequences: int | None = None,
        state: StateBetweenBatches | None = None,
    ) -> None:
        if not isinstance(model, nn.Module | ModelCopy):
            fix = "pass an mlx.nn.Module"
            if isinstance(model, type):
                fix = f"pass an object of this class, such as {model.__name__}()"
            elif callable(model):
                fix += ", and the function as forward=lambda model, inputs, time_delta: ..."
            raise TypeError(f"model is a {type(model).__name__}; {fix}")
        if not isinstance(held_out, HeldOutBatch):
            raise TypeError(
                f"held_out is a {type(held_out).__name__}; pass "
                "HeldOutBatch(inputs, time_delta=..., targets=...)"
            )
        if forward is not None and not callable(forward):
            raise TypeError(
                f"forward is a {type(forward).__name__}; pass a callable "
                "(model, inputs, time_delta) -> outputs"
            )
        if forward is not None and not _takes_three(forward):
            raise TypeError(
                f"forward takes {inspect.signature(forward)}; it is called as "
                "forward(model, inputs, time_delta): pass a callable that takes these three"
            )
        kept: list[str] = []
        if isinstance(model, nn.Module):
            subject = Subject(model, forward, target if callable(target) else None)
            model, kept = ModelCopy.of(subject), compiled_weights_notes(subject)
        if horizon is not None and not isinstance(horizon, bool):
            raise TypeError(f"horizon is a {type(horizon).__name__}; pass True, False or None")
        if model.target is not None:
            target = _CurrentTarget(model)
        self._wanted = (target, at)
        # Shared with the runners of parts of the batch.
        self._limits: dict[str, int | None] = {"sequences": max_sequences, "room": None}
        self._tap, self._compilation = Tap(), CompilationSwitch()
        before = StateBetweenBatches(model) if state is None else state.of(model)
        with self._compilation.off(), model.preserved():
            before.begin()
            found = inspect_model(
                model,
                held_out,
                before,
                state_is_known=state is not None,
                forward=None if model.forward is None else _current_forward(model),
                horizon=horizon,
                cells=_patterns(cells, "cells"),
                layers=_patterns(layers, "layers"),
                max_sequences=max_sequences,
            )
            caller = found.caller
            super().__init__(model, held_out, caller.calling, caller.state, caller.embedding)
            self.hook_points, self.coupling = found.hook_points, found.coupling
            self.whole_batch, self.whole_batch_only = len(held_out), found.whole_batch_only
            self._few, self._variants_share_passes = found.few, not found.whole_batch_only
            # By the number of time steps, for shorter sequences than the batch's.
            self._embeddings: dict[int, Embedding | None] = {}
            outputs = self.outputs(self.sequence(), self.time_delta)
            self._modules = len(modules(self.model))
            self.target = Target(target, at, held_out, self.calling)
            is_coupled = "inputs" in self.coupling and not callable(target)
            if target == "loss" or callable(target) or is_coupled:
                # Only the whole batch shows whether its targets fit.
                targets = self.target(outputs, self.target.choose(outputs))
                mx.eval(targets)
                if is_coupled:
                    check_own_inputs(self.copy, self._targets, held_out, targets)
            self.gradients = find_gradients(self)
            self.index_modules = self.gradients.index_modules
        embedded = () if self.embedding is None else (self.embedding.note,)
        self.notes = tuple(
            note
            for note in (
                *held_out.notes,
                *kept,
                coupling_note(self.coupling),
                *self.state.notes,
                *self.hook_points.notes,
                *embedded,
                *self.gradients.notes,
            )
            if note
        )
        self.missing = tuple(filter(None, (self.hook_points.no_cells, self.hook_points.no_layers)))

    @contextmanager
    def analysing(self) -> Iterator[None]:
        """Turn compilation off; on any exit put it, the random states and the copy back."""
        self._tap.forget()
        with self._compilation.off(), self.copy.preserved():
            self.state.begin()
            yield

    def restore_process(self) -> None:
        """Put back what an interrupted analysis may have left behind in this process."""
        self._compilation.restore()

    @property
    def max_sequences(self) -> int | None:
        """Return the largest number of sequences in one pass, shared with parts; None: all."""
        return self._limits["sequences"]

    @max_sequences.setter
    def max_sequences(self, count: int) -> None:
        self._limits["sequences"] = count

    @property
    def room(self) -> int | None:
        """Return how many sequences a gradient pass has memory for, shared with parts.

        None if it is unknown; then it is taken to be those of the batch.
        """
        return self._limits["room"]

    @room.setter
    def room(self, count: int | None) -> None:
        self._limits["room"] = count

    def variants_at_once(self, *, gradient: bool) -> int:
        """Return how many variants of the batch one pass may hold.

        Args:
            gradient: True for passes with gradients, which keep intermediate arrays.
        """
        least = 1 if gradient else _VARIANTS_AT_ONCE
        if self.room is None or self.max_sequences is not None:
            return least
        return max(least, min(_MAX_VARIANTS_AT_ONCE, self.room // len(self.held_out)))

    @property
    def divisible(self) -> bool:
        """Return whether parts of the batch can be run separately."""
        return not self.whole_batch_only and not callable(self._wanted[0])

    def take(self, sequences: slice | npt.NDArray[np.intp]) -> ModelRunner:
        """Return a runner of some sequences of the batch."""
        part = self.part(sequences)
        part.target = Target(*self._wanted, part.held_out, self.calling)
        return part

    def with_target(self, target: TargetLike) -> ModelRunner:
        """Return a runner of the same sequences with another target, at the same time step.

        Raises:
            ModelError, TypeError, ValueError: If the target doesn't fit the model or the batch.
        """
        other = copy.copy(self)
        other._wanted = (target, self._wanted[1])
        other.target = Target(*other._wanted, other.held_out, other.calling)
        return other

    @property
    def loss(self) -> Target:
        """Return the loss at the time step of the target.

        Raises:
            ModelError: If the batch has no targets. The loss itself raises it if they don't fit.
        """
        return Target("loss", self._wanted[1], self.held_out, self.calling)

    def losses(self, outputs: mx.array) -> mx.array | None:
        """Return the losses ``(B,)``; None if the target is the loss, or the targets don't fit."""
        if self.target.is_loss:
            return None
        try:
            return self.loss(outputs, None)
        except ModelError:
            return None

    def hits(self, outputs: mx.array) -> mx.array | None:
        """Return ``(B,)``, shares of right classes; None without classes that fit the outputs."""
        try:
            return self.loss.hits(outputs)
        except ModelError:
            return None

    def classes(self, outputs: mx.array) -> mx.array | None:
        """Return ``(B, 2)``, true and predicted classes; None without one class per sequence."""
        try:
            return self.loss.classes(outputs)
        except ModelError:
            return None

    def find_embedding_of_length(self) -> None:
        """Find the vectors of tokens in sequences of another length than those of the batch.

        Raises:
            NotApplicable: If there are none.
        """
        few = (
            self.held_out
            if self.whole_batch_only
            else self.held_out.take(two_sequences(self.held_out))
        )
        steps = few.inputs_shape[1]
        if steps not in self._embeddings:
            self._embeddings[steps] = find_embedding(self.copy, few, self.call)
        self.embedding = self._embeddings[steps]
        if self.embedding is None:
            raise NotApplicable(
                f"in sequences of {steps} time steps the vectors of tokens were not found"
            )

    def small(self) -> ModelRunner:
        """Return a runner of two sequences, or of all if the batch is not divisible."""
        return self.take(two_sequences(self.held_out)) if self.divisible else self

    def few(self) -> ModelRunner:
        """Return a runner of a few sequences, to see what runs; or of all, if few run otherwise.

        If sequences act on each other, its results are not those of the same sequences in the whole
        batch, as they are with :meth:`small`.
        """
        is_part = len(self.held_out) < self.whole_batch
        if self._few is None or is_part or callable(self._wanted[0]):
            return self.small()
        part = self.take(self._few)
        part._variants_share_passes = True
        return part

    def _targets(self, batch: HeldOutBatch) -> mx.array:
        """Return the targets ``(B,)`` of a batch like the whole one."""
        outputs = self.call_on(batch)
        return self.target(outputs, self.target.choose(outputs))

    @property
    def takes_time(self) -> bool:
        """Return whether elapsed times are passed to the model."""
        return self.calling.time_argument is not None and self.held_out.time_delta is not None

    @property
    def has_time_gradient(self) -> bool:
        """Return whether targets have a gradient by the elapsed times."""
        return self.takes_time and not self.gradients.no_time_gradient

    @property
    def categorical(self) -> npt.NDArray[np.bool_]:
        """Return ``(F,)``, true for features that the model uses as indices, as it does tokens."""
        features = self.held_out.inputs_shape[2]
        if self.held_out.tokens:
            return np.full(features, self.embedding is None)
        return np.isin(np.arange(features), self.gradients.index_features)

    def require_input_gradient(self) -> None:
        """Raise :class:`NotApplicable` if the targets have no gradient by the inputs."""
        if self.gradients.no_input_gradient:
            raise NotApplicable(self.gradients.no_input_gradient)

    def _make_lazy_layers(self) -> None:
        """Run a model that creates layers in its first call, and set them to evaluation mode.

        New layers are in training mode, and don't exist before that call.
        """
        if len(modules(self.model)) < self._modules:
            self.outputs(self.sequence(), self.time_delta)
            set_evaluation_mode(self.model)

    def outputs_of_variants(
        self, sequences: mx.array, time_deltas: mx.array | None
    ) -> list[mx.array]:
        """Return the outputs for each of ``(K, B, T, F)``, in one call if the model permits."""
        copies, batch = sequences.shape[:2]
        if not self._variants_share_passes:
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
        alike: bool = False,
    ) -> Variants:
        """Compute the targets of ``K`` variants of the batch in one pass.

        Args:
            sequences: ``(K, B, T, F)``.
            time_deltas: ``(K, B, T)``, or None.
            chosen: ``(B,)``, the outputs to follow, see :meth:`Target.choose`.
            gradient: Also compute gradients with respect to sequences and elapsed times.
            loss: Also compute :attr:`loss`; ignored with ``gradient``.
            alike: The first sequences of each variant stand for all, which are equal to them.
        """
        if gradient:
            self.require_input_gradient()
        self._make_lazy_layers()
        cells = self.hook_points.cells if gradient else ()
        recorder = HookRecorder(self._tap, cells, (), flush=gradient)
        losses: list[mx.array] = []

        def total(x: mx.array, dt: mx.array | None) -> tuple[mx.array, mx.array]:
            recorder.clear()
            parts = self.outputs_of_variants(x, dt)
            if alike:
                size = len(self.held_out)
                parts = [mx.broadcast_to(part[:1], (size, *part.shape[1:])) for part in parts]
            values = mx.stack([self.target(part, chosen) for part in parts])
            if loss and not gradient:
                of_loss = self.loss
                losses.append(mx.stack([of_loss(part, None) for part in parts]))
            return values.sum(), values

        if not gradient:
            with recorder.recording(self.model):
                values = total(sequences, time_deltas)[1]
            return Variants(values, loss=losses[-1] if losses else None)
        kept: list[mx.array] = []

        def scalar(x: mx.array, dt: mx.array | None) -> mx.array:
            summed, values = total(x, dt)
            kept.append(values)
            return summed

        with recorder.recording(self.model):
            wanted = [0, 1] if self.has_time_gradient else [0]
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
        """Run one pass; call it inside :meth:`analysing`.

        Both gradients cost as much as one. States and activations are recorded in the same pass.
        A gradient that doesn't exist is None.

        Args:
            input_gradient: Compute gradients with respect to the sequence.
            time_gradient: Compute gradients with respect to elapsed times, if the model takes them.
            states: Record the states of cells.
            activations: Record the activations of layers.
        """
        self._make_lazy_layers()
        inputs, delta = self.sequence(), self.time_delta
        input_gradient = input_gradient and not self.gradients.no_input_gradient
        time_gradient = time_gradient and self.has_time_gradient
        gradient = input_gradient or time_gradient
        recorder = HookRecorder(
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
            # The gradient of the sum is that of each target if sequences don't interact.
            return values.sum(), result

        with recorder.recording(self.model):
            if not gradient:
                return forward(inputs, delta)[1]
            kept: list[Pass] = []

            def scalar(x: mx.array, dt: mx.array | None) -> mx.array:
                total, result = forward(x, dt)
                kept.append(result)
                return total

            wanted = [0] * input_gradient + [1] * time_gradient
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
def flushing_subnormals(runner: ModelRunner) -> Iterator[None]:
    """Flush subnormal gradients of the cells' states, for gradients computed in the block."""
    runner._make_lazy_layers()
    cells = runner.hook_points.cells
    with HookRecorder(runner._tap, cells, (), flush=True).recording(runner.model):
        yield


def recorded_calls(runner: ModelRunner, hook: CellHook) -> list[tuple[Any, Any]]:
    """Return ``((args, kwargs), output)`` of every call of a cell in one forward pass."""
    runner._make_lazy_layers()
    recorder = HookRecorder(runner._tap, [hook], (), flush=False)
    # Before: reading the vectors of tokens may run the model.
    sequence = runner.sequence()
    with recorder.recording(runner.model):
        runner.outputs(sequence, runner.time_delta)
    return recorder.calls(hook)
