"""What one look at the model sees: one fused pass, shared by all callbacks that are due.

A callback declares what it needs, and reads numpy arrays::

    class MeanState(Callback):
        needs = frozenset({Need.STATES})

        def measure(self, observation):
            for cell in observation.states:
                yield Scalar(f"{self.name}/mean", float(cell.values.mean()))
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .callbacks.dynamics.jacobian_products import JacobianProducts
from .held_out import HeldOutBatch, read_only, to_numpy
from .model import CellHook, ModelRunner
from .model.batching import (
    as_target_values,
    concatenate_values,
    evaluate_variants,
    run_in_batches,
    run_in_parts,
)
from .model.cell_stepper import CellStepper
from .model.extra_passes import (
    directional_derivatives,
    doubled_ode_unfolds,
    state_gradients,
    step_gradients,
)
from .model.randomize import randomised
from .model.runner import VARIANTS_AT_ONCE
from .results import FloatArray
from .target_values import TargetValues

__all__ = ["Activations", "Need", "Observation", "Trajectory"]


class Need(enum.Enum):
    """What an observation can hold beyond outputs and target values."""

    INPUT_GRADIENT = "input_gradient"
    """Gradient of the targets with respect to the inputs."""
    TIME_GRADIENT = "time_gradient"
    """Gradient of the targets with respect to the intervals; costs nothing beside the former."""
    STATES = "states"
    """Hidden states of every recurrent cell."""
    ACTIVATIONS = "activations"
    """Activations of every backbone layer."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """States of one recurrent cell.

    Attributes:
        cell: Module path of the cell.
        values: ``(B, T, H)``; a cell with several state arrays has them side by side.
        initial: ``(B, H)``, state before the first step, or None where the model didn't give one.
        reverse: Whether the cell ran from the last step to the first.
    """

    cell: str
    values: FloatArray
    initial: FloatArray | None
    reverse: bool


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations of one backbone layer.

    Attributes:
        layer: Module path of the layer.
        activation: Name of its activation function, "unknown" if it isn't recognised.
        values: ``(B, T, N)``.
    """

    layer: str
    activation: str
    values: FloatArray


class Observation:
    """The held-out batch seen through the model at one step, as float32 numpy arrays.

    All callbacks share them, so no array can be written to: work on a copy, ``x = x - x.mean()``.

    Valid during ``measure`` only: some of it is computed when first asked for. Asking for what was
    not declared in ``needs`` is an error, because it would cost every user another pass.

    Attributes:
        step: The training step.
        held_out: The sequences seen.
        indices: ``(B,)``, which of the whole held-out batch they are.
        inputs: ``(B, T, F)``; for tokens, what they are embedded as.
        time_delta: ``(B, T)`` or None.
        mask: ``(B, T)`` bool or None.
        outputs: ``(B, T, O)`` or ``(B, O)``.
        target_values: ``(B,)``, the scalar target of each sequence.
        no_cells: Why there are no states, with the mend; "" where there are.
        no_layers: Why there are no activations, likewise.
        target: Its name, for titles.
        target_slug: Its suffix for tags, "" for the default target.
    """

    def __init__(
        self,
        runner: ModelRunner,
        step: int,
        needs: Iterable[Need] = frozenset(),
        *,
        max_sequences: int | None = None,
    ) -> None:
        """Run the model once; only inside ``runner.analysing()``.

        Args:
            runner: What runs the model.
            step, needs: What is seen, and when.
            max_sequences: How many of the sequences, None: all.
        """
        self.step = step
        self._batch: HeldOutBatch = runner.held_out
        self._whole_runner = runner
        self.indices: npt.NDArray[np.intp] = read_only(np.arange(len(self._batch)))
        if max_sequences is not None and max_sequences < len(self._batch) and runner.divisible:
            self.indices = read_only(self._batch.spread(max_sequences))
            runner = runner.take(self.indices)
        self.target, self.target_slug = runner.target.name, runner.target.slug
        hook_points = runner.hook_points
        self.no_cells, self.no_layers = hook_points.no_cells, hook_points.no_layers
        self._needs = frozenset(needs)
        self._whole: Observation | None = None
        self._rows: npt.NDArray[np.intp] | None = None
        wanted = {need.value: need in self._needs for need in Need}
        self._passes = list(run_in_batches(runner, wanted))
        self._rows_at_once = runner.max_sequences or len(self._batch)
        chosen = [c for part in self._passes if (c := part.chosen) is not None]
        self._chosen = np.concatenate(chosen) if chosen else None
        self._see(runner)

    def _see(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._scaled: dict[float, FloatArray] = {}
        self._scaled_losses: dict[float, FloatArray] = {}
        self.held_out: HeldOutBatch = runner.held_out
        self.outputs = self._array("outputs")
        self.target_values = self._array("values")
        self.inputs = self._array("sequence")
        delta = runner.time_delta
        self.time_delta = None if delta is None else read_only(to_numpy(delta))
        self.mask: npt.NDArray[np.bool_] | None = self.held_out.mask

    def limited(self, sequences: int | None) -> Observation:
        """At most so many of the sequences, spread over the batch, at no cost.

        All of them where the model or the target takes the whole batch only.
        """
        here = len(self.held_out)
        if sequences is None or sequences >= here or not self._runner.divisible:
            return self
        part = copy.copy(self)
        # What was worked out of all the sequences.
        for name in ("states", "activations", "input_gradient", "time_gradient", "losses"):
            part.__dict__.pop(name, None)
        # The same ones of the whole batch, whatever others look at.
        part.indices = read_only(self._batch.spread(sequences))
        rows = np.searchsorted(self.indices, part.indices)
        part._whole = self if self._whole is None else self._whole
        part._rows = rows if self._rows is None else self._rows[rows]
        part._chosen = None if self._chosen is None else self._chosen[rows]
        part._see(self._runner.take(rows))
        return part

    @property
    def whole_batch(self) -> int:
        """How many sequences the held-out batch has, of which these are some."""
        return self._runner.whole_batch

    @functools.cached_property
    def whole_inputs(self) -> FloatArray:
        """``(N, T, F)``, inputs of the whole held-out batch, of which :attr:`inputs` are some."""
        return read_only(to_numpy(self._whole_runner.sequence()))

    @functools.cached_property
    def whole_time_delta(self) -> FloatArray | None:
        """``(N, T)``, time_delta of the whole held-out batch; None where it has none."""
        delta = self._whole_runner.time_delta
        return None if delta is None else read_only(to_numpy(delta))

    @property
    def whole_mask(self) -> npt.NDArray[np.bool_] | None:
        """``(N, T)``, true at real steps of the whole held-out batch; None where all are."""
        return self._batch.mask

    @property
    def takes_time(self) -> bool:
        """Whether the intervals reach the model."""
        return self._runner.takes_time

    def _array(self, name: str) -> FloatArray:
        return self._of_rows(np.concatenate([part.array(name) for part in self._passes]))

    def _of_rows(self, values: FloatArray) -> FloatArray:
        return read_only(values if self._rows is None else values[self._rows])

    def _require(self, need: Need) -> None:
        if need not in self._needs:
            raise RuntimeError(
                f"this observation holds no {need.value}: declare it in the callback, "
                f"needs = frozenset({{Need.{need.name}, ...}})"
            )

    @functools.cached_property
    def input_gradient(self) -> FloatArray:
        """``(B, T, F)``, gradient of each sequence's target with respect to its inputs."""
        self._require(Need.INPUT_GRADIENT)
        return self._array("input_gradient")

    @functools.cached_property
    def time_gradient(self) -> FloatArray | None:
        """``(B, T)``, gradient with respect to the intervals; None where the model takes none."""
        self._require(Need.TIME_GRADIENT)
        return self._array("time_gradient") if self.takes_time else None

    @functools.cached_property
    def states(self) -> Sequence[Trajectory]:
        """One trajectory per recurrent cell; empty where none was found."""
        self._require(Need.STATES)
        if self._whole is not None:
            return tuple(
                replace(
                    seen,
                    values=self._of_rows(seen.values),
                    initial=None if seen.initial is None else self._of_rows(seen.initial),
                )
                for seen in self._whole.states
            )
        return tuple(
            Trajectory(
                hook.name,
                read_only(np.concatenate([part.states(hook) for part in self._passes])),
                self._initial(hook),
                hook.reverse,
            )
            for hook in self._runner.hook_points.cells
        )

    def _initial(self, hook: CellHook) -> FloatArray | None:
        parts = [part.initial(hook) for part in self._passes]
        given = [part for part in parts if part is not None]
        return read_only(np.concatenate(given)) if len(given) == len(parts) else None

    @functools.cached_property
    def activations(self) -> Sequence[Activations]:
        """One per backbone layer, in the order of the forward pass; empty where none was found."""
        self._require(Need.ACTIVATIONS)
        if self._whole is not None:
            return tuple(
                replace(seen, values=self._of_rows(seen.values)) for seen in self._whole.activations
            )
        return tuple(
            Activations(
                hook.name,
                hook.activation,
                read_only(np.concatenate([part.activations(hook) for part in self._passes])),
            )
            for hook in self._runner.hook_points.layers
        )

    # ---- further passes

    def evaluate(
        self,
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        rows: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
        loss: bool = False,
    ) -> TargetValues:
        """Targets, and their gradients, of ``K`` variants of the batch: further passes.

        The same outputs are followed as in the batch itself. At most as many sequences are run at
        once as the held-out batch has (or ``chunk_size``), without gradients four times as many.

        Args:
            inputs: ``(K, B, T, F)``; None: the batch's own.
            time_delta: ``(K, B, T)``; None: the batch's own.
            rows: ``(R,)``, the sequences of which these are variants, ``R`` in place of ``B``
                everywhere; they may recur. None: all.
            gradient: Whether gradients are wanted.
            loss: Whether the loss is wanted beside the target, see :attr:`losses`; not with
                gradients.

        Raises:
            ValueError: For shapes that don't fit the batch.
        """
        batch = len(self.held_out) if rows is None else len(rows)
        for what, array, own in (
            ("inputs", inputs, self.inputs),
            ("time_delta", time_delta, self.time_delta),
        ):
            if array is not None and own is None:
                raise ValueError(f"{what} are given, but the held-out batch has none to vary")
            if array is not None and array.shape[1:] != (batch, *own.shape[1:]):  # type: ignore[union-attr]
                raise ValueError(
                    f"{what} have shape {array.shape}; expected (variants, "
                    f"{', '.join(map(str, (batch, *own.shape[1:])))})"  # type: ignore[union-attr]
                )
        if rows is None:
            return self._points(self._runner, inputs, time_delta, self._chosen, gradient, loss)
        if self._runner.divisible:
            chosen = None if self._chosen is None else self._chosen[rows]
            some = self._runner.take(rows)
            return self._points(some, inputs, time_delta, chosen, gradient, loss)
        # Only whole batches can be run: the others come along as they are.
        times, again = Counter[int](), np.zeros(len(rows), int)
        for i, row in enumerate(rows.tolist()):
            again[i] = times[row]
            times[row] += 1
        if again.any():
            parts = [np.flatnonzero(again == k) for k in range(again.max() + 1)]
            found = [
                self.evaluate(
                    None if inputs is None else inputs[:, at],
                    None if time_delta is None else time_delta[:, at],
                    rows=rows[at],
                    gradient=gradient,
                    loss=loss,
                )
                for at in parts
            ]
            return _protected(
                concatenate_values(found, axis=1).of(np.argsort(np.concatenate(parts)))
            )
        whole = self._points(
            self._runner,
            _among(self.inputs, rows, inputs),
            None if self.time_delta is None else _among(self.time_delta, rows, time_delta),
            self._chosen,
            gradient,
            loss,
        )
        return _protected(whole.of(rows))

    def _points(
        self,
        runner: ModelRunner,
        inputs: FloatArray | None,
        time_delta: FloatArray | None,
        chosen: npt.NDArray[np.integer[Any]] | None,
        gradient: bool,
        loss: bool,
    ) -> TargetValues:
        found = evaluate_variants(
            runner,
            inputs,
            time_delta,
            chosen,
            gradient=gradient,
            loss=loss,
            rows=self._rows_at_once,
            copies=1 if gradient else VARIANTS_AT_ONCE,
        )
        return _protected(found)

    def cell_stepper(self, cell: str, sequences: int | None = None) -> CellStepper:
        """A cell whose steps can be run again from any state; one forward pass.

        Args:
            cell: Its :attr:`Trajectory.cell`.
            sequences: How many of the sequences, spread over the batch; None: all.

        Raises:
            NotApplicable: If its steps can't be run by themselves.
            KeyError: If there is no such cell.
        """
        hook_points = {hook.name: hook for hook in self._runner.hook_points.cells}
        if cell not in hook_points:
            raise KeyError(f"{cell!r}; the model's cells are {', '.join(hook_points) or 'none'}")
        return CellStepper(self.limited(sequences)._runner, hook_points[cell])

    def state_jacobian(self, cell: str, sequences: int | None = 8) -> FloatArray:
        """``(S, T - 1, H, H)``: element ``[s, t, i, j]`` is ``d h_{t+1,i} / d h_{t,j}``.

        Costs a forward pass, and a backward pass of ``H`` copies of each sequence. Of a cell that
        runs backwards, steps are counted as it makes them: ``h_0`` is its state at the last one.

        Args:
            cell, sequences: As for :meth:`stepper`.

        Raises:
            NotApplicable, KeyError: Likewise.
        """
        stepper = self.cell_stepper(cell, sequences)
        steps = [stepper.jacobian(t) for t in _after_first(stepper)]
        units = sum(stepper.sizes)
        found = (
            np.stack(steps, axis=1)
            if steps
            else np.zeros((len(stepper.before(0)), 0, units, units))
        )
        return read_only(found)

    def jacobian_products(self, cell: str, sequences: int | None = 8) -> JacobianProducts:
        """Products of the Jacobians that :meth:`state_jacobian` returns with vectors.

        Costs a forward pass, and for each product of ``k`` vectors a backward step of ``k`` copies
        of each sequence, or two where the Jacobian is not transposed.

        Args:
            cell, sequences: As for :meth:`stepper`.

        Raises:
            NotApplicable, KeyError: As :meth:`stepper`.
        """
        stepper = self.cell_stepper(cell, sequences)
        order = list(_after_first(stepper))
        batch, units = stepper.before(0).shape
        return JacobianProducts(
            batch,
            len(order),
            units,
            forward=lambda t, vectors: stepper.product(order[t], vectors),
            backward=lambda t, vectors: stepper.transposed_product(order[t], vectors),
        )

    def state_x_gradient(self, cell: str) -> FloatArray:
        """``(B, T - 1, H)``: states a cell hands on to its next step × the target's gradient there.

        In units of the target, and in the order in which the cell makes its steps. One forward and
        one gradient pass of all the sequences at once: take few, see :meth:`limited`.

        Raises:
            NotApplicable: If the cell isn't given its states from outside.
            KeyError: If there is no such cell.
        """
        hook = {hook.name: hook for hook in self._runner.hook_points.cells}[cell]
        chosen = None if self._chosen is None else mx.array(self._chosen)
        states, gradients = state_gradients(self._runner, hook, chosen)
        mx.eval(states, gradients)
        with np.errstate(invalid="ignore", over="ignore"):
            product: FloatArray = to_numpy(states) * to_numpy(gradients)
        return read_only(product)

    def values_at_scales(self, scales: Sequence[float]) -> Mapping[float, FloatArray]:
        """Targets ``(B,)`` with all intervals multiplied by each scale, one more forward pass.

        The same outputs are followed as at scale 1, whose values cost nothing.

        Raises:
            RuntimeError: If the model takes no intervals.
        """
        if not self.takes_time:
            raise RuntimeError("the model takes no intervals: check observation.takes_time first")
        assert self.time_delta is not None
        self._scaled[1.0] = self.target_values
        missing = [s for s in dict.fromkeys(map(float, scales)) if s not in self._scaled]
        if missing:
            scaled = np.stack([self.time_delta * np.float32(s) for s in missing])
            found = self.evaluate(time_delta=scaled, loss=self.losses is not None)
            self._scaled.update(zip(missing, found.values, strict=True))
            if found.loss is not None:
                self._scaled_losses.update(zip(missing, found.loss, strict=True))
        return {s: self._scaled[s] for s in map(float, scales)}

    @functools.cached_property
    def losses(self) -> FloatArray | None:
        """``(B,)``, what ``target="loss"`` would be, where another target is taken; costs no pass.

        None where that is the target itself, and where the batch has no targets or such as are only
        for a loss of the user's own.
        """
        values = self._runner.losses(mx.array(self.outputs))
        return None if values is None else read_only(to_numpy(values))

    def losses_at_scales(self, scales: Sequence[float]) -> Mapping[float, FloatArray] | None:
        """:attr:`losses` with all intervals multiplied by each scale; None where there are none.

        From the pass of :meth:`values_at_scales`.

        Raises:
            RuntimeError: If the model takes no intervals.
        """
        self.values_at_scales(scales)
        if self.losses is None:
            return None
        known = {1.0: self.losses, **self._scaled_losses}
        return {s: known[s] for s in map(float, scales)}

    def values_with_finer_solver(self, scales: Sequence[float]) -> Mapping[float, FloatArray]:
        """As :meth:`values_at_scales`, with twice the sub-steps of LTC cells; twice a pass.

        Raises:
            NotApplicable: If no module of the model has ``ode_unfolds``.
            RuntimeError: If the model takes no intervals.
        """
        if not self.takes_time:
            raise RuntimeError("the model takes no intervals: check observation.takes_time first")
        assert self.time_delta is not None
        wanted = list(dict.fromkeys(map(float, scales)))
        scaled = np.stack([self.time_delta * np.float32(s) for s in wanted])
        with doubled_ode_unfolds(self._runner.model):
            values = self.evaluate(time_delta=scaled).values
        return dict(zip(wanted, values, strict=True))

    def slopes(
        self,
        inputs: FloatArray,
        time_delta: FloatArray | None = None,
        *,
        along: FloatArray,
        time_along: FloatArray | None = None,
    ) -> TargetValues:
        """Derivatives along a direction, and their gradients: Hessians times the direction.

        For each variant of the batch a gradient of a gradient, some five forward passes.

        Args:
            inputs, time_delta: ``(K, B, T, F)`` and ``(K, B, T)``, as for :meth:`evaluate`.
            along: ``(K, B, T, F)`` or what broadcasts to it.
            time_along: ``(K, B, T)`` likewise; None: intervals stay.

        Returns:
            As ``values`` the derivatives of the targets.
        """
        count = len(inputs)
        along = np.broadcast_to(along, inputs.shape)
        delta = self.time_delta
        if delta is not None:
            time_delta = np.broadcast_to(
                delta if time_delta is None else time_delta, (count, *delta.shape)
            )
            if time_along is not None:
                time_along = np.broadcast_to(time_along, time_delta.shape)

        def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
            own, own_delta = some.sequence(), some.time_delta
            times = [
                None
                if array is None or own_delta is None
                else mx.array(array[at, here]).astype(own_delta.dtype)
                for array in (time_delta, time_along)
            ]
            seen = directional_derivatives(
                some,
                mx.array(inputs[at, here]).astype(own.dtype),
                times[0],
                mx.array(along[at, here]).astype(own.dtype),
                times[1],
                None if self._chosen is None else mx.array(self._chosen[here]),
            )
            return as_target_values(seen)

        # It keeps some three times what a gradient does.
        rows = max(1, self._rows_at_once // 3)
        return _protected(run_in_parts(self._runner, run, count, rows=rows, copies=1))

    @property
    def every_step(self) -> tuple[str, str] | None:
        """Name of the target at every step, and its suffix for tags.

        None for a model with one output per sequence, and a target that is a callable.
        """
        return self._runner.target.of_every_step

    def at_steps(self, steps: Sequence[int]) -> TargetValues:
        """The target at each of ``K`` steps, and its gradients; a gradient pass for each.

        Of a sequence whose step is padding, what it gives is of no meaning.

        Raises:
            RuntimeError: If there is no target at every step, see :attr:`every_step`.
        """
        total = self.inputs.shape[1]
        wanted = np.zeros((len(steps), 1, total), bool)
        wanted[np.arange(len(steps)), :, list(steps)] = True
        return self._at_steps(wanted, hold_states=False)

    def at_own_steps(
        self, inputs: FloatArray | None = None, time_delta: FloatArray | None = None
    ) -> tuple[TargetValues, bool]:
        """What each step's input does to that step's target, with the state before it held fixed.

        With the states that cells are given counted as constants, a target depends on no other
        step's inputs, so that the gradient of the sum over all steps is that of each; half of the
        steps at a time, so that it shows if that is not so.

        Args:
            inputs, time_delta: ``(K, B, T, F)`` and ``(K, B, T)``, variants of the batch; None: its
                own. The same outputs are followed as in the batch itself.

        Returns:
            One variant, or ``K``, and whether targets depended on other steps' inputs all the same.
            As ``values`` the sum over real steps.

        Raises:
            RuntimeError: If there is no target at every step, see :attr:`every_step`.
            NotApplicable: If the states can't be held fixed.
        """
        real = self.held_out.mask_array
        half = np.random.default_rng(0).permutation(real.shape[1]) % 2 == 0
        count = next((len(a) for a in (inputs, time_delta) if a is not None), 1)
        halves = np.tile(np.stack([real & half, real & ~half]), (count, 1, 1))
        found = self._at_steps(
            halves,
            *[None if a is None else np.repeat(a, 2, axis=0) for a in (inputs, time_delta)],
            hold_states=True,
        )
        assert found.input_gradient is not None
        first, second = found.input_gradient[::2], found.input_gradient[1::2]
        # What of other steps came through, at steps that were not asked for.
        others = np.where((real & half)[..., None], second, np.where(real[..., None], first, 0.0))
        mixed = bool(np.nan_to_num(others).any())
        own = np.where(half[:, None], first, second)
        by_time = found.time_gradient
        if by_time is not None:
            others = np.where(real & half, by_time[1::2], np.where(real, by_time[::2], 0.0))
            mixed = mixed or bool(np.nan_to_num(others).any())
            by_time = np.where(half, by_time[::2], by_time[1::2])
        return _protected(TargetValues(found.values[::2] + found.values[1::2], own, by_time)), mixed

    def _at_steps(
        self,
        wanted: npt.NDArray[np.bool_],
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        hold_states: bool,
    ) -> TargetValues:
        if self.every_step is None:
            raise RuntimeError("there is no target at every step: check observation.every_step")
        predicted = None
        if hold_states and self._runner.target.follows_predictions:
            predicted = self.outputs.argmax(axis=-1)

        def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
            part = wanted[at] if wanted.shape[1] == 1 else wanted[at, here]
            x, dt = (
                None
                if given is None or own is None
                else mx.array(given[at, here]).astype(own.dtype)
                for given, own in ((inputs, some.sequence()), (time_delta, some.time_delta))
            )
            follow = None if predicted is None else mx.array(predicted[here])
            return as_target_values(
                step_gradients(some, part, x, dt, follow, hold_states=hold_states)
            )

        found = run_in_parts(self._runner, run, len(wanted), rows=self._rows_at_once, copies=1)
        return _protected(found)

    def again(self, inputs: FloatArray | None = None) -> Observation:
        """The same sequences through the model as it is now, by one gradient pass.

        For attributions: inputs, target values and both gradients are new, and the same outputs
        are followed. There are no outputs or activations, and states by a forward pass.

        Args:
            inputs: ``(B, T, F)`` in place of their own.
        """
        return _Again(self, inputs)

    @contextlib.contextmanager
    def randomised(
        self, stages: int = 6
    ) -> Iterator[Iterator[tuple[tuple[str, ...], Observation]]]:
        """Iterate over stages that randomise parameters, from the output towards the input.

        Gives the modules that a stage adds, and these sequences through the model as it is then
        (:meth:`again`). On leaving the ``with`` block the model is as it was.

        Args:
            stages: At most so many.

        Raises:
            NotApplicable: If the model has no trainable parameters that can change places.
        """
        with randomised(self._runner, stages) as cascade:
            yield ((names, self.again()) for names in cascade)


class _Again(Observation):
    """See :meth:`Observation.again`."""

    def __init__(self, of: Observation, inputs: FloatArray | None) -> None:
        known = vars(of).items()
        # Without what was worked out of the other pass.
        vars(self).update((k, v) for k, v in known if k != "outputs" and k not in vars(Observation))
        self._scaled, self._scaled_losses, self._passes = {}, {}, []
        # What tokens are embedded as may have changed.
        embedded = to_numpy(of._runner.sequence()) if inputs is None else np.asarray(inputs)
        self.inputs = read_only(embedded)
        self._seen = super().evaluate(self.inputs[None], gradient=True)
        self.target_values = self._seen.values[0]
        self._own_inputs = inputs is None

    @functools.cached_property
    def states(self) -> Sequence[Trajectory]:
        """By a forward pass when asked for, while the model is still as it was when this was made.

        Raises:
            RuntimeError: With other inputs.
        """
        if not self._own_inputs:
            raise RuntimeError("of other inputs there are no states")
        self._whole = self._rows = None
        wanted = {need.value: need is Need.STATES for need in Need}
        self._passes = list(run_in_batches(self._runner, wanted))
        return super().states

    @functools.cached_property
    def losses(self) -> FloatArray | None:
        return None

    @functools.cached_property
    def input_gradient(self) -> FloatArray:
        assert self._seen.input_gradient is not None
        gradient: FloatArray = self._seen.input_gradient[0]
        return gradient

    @functools.cached_property
    def time_gradient(self) -> FloatArray | None:
        gradients = self._seen.time_gradient
        if gradients is None:
            return None
        gradient: FloatArray = gradients[0]
        return gradient

    def evaluate(
        self,
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        rows: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
        loss: bool = False,
    ) -> TargetValues:
        if inputs is None:
            own = self.inputs if rows is None else self.inputs[rows]
            copies = 1 if time_delta is None else len(time_delta)
            inputs = np.broadcast_to(own, (copies, *own.shape))
        return super().evaluate(inputs, time_delta, rows=rows, gradient=gradient, loss=loss)


def _after_first(stepper: CellStepper) -> range:
    """All steps of a cell but the first, in the order in which it makes them."""
    return range(stepper.steps - 2, -1, -1) if stepper.hook.reverse else range(1, stepper.steps)


def _protected(points: TargetValues) -> TargetValues:
    """Return the points with arrays that can't be written to."""
    arrays = (points.values, points.input_gradient, points.time_gradient, points.loss)
    return TargetValues(*[None if a is None else read_only(a) for a in arrays])  # type: ignore[arg-type]


def _among(
    own: FloatArray, rows: npt.NDArray[np.intp], variants: FloatArray | None
) -> FloatArray | None:
    """``(K, B, ...)``: the batch's own with ``rows`` replaced by ``(K, R, ...)``."""
    if variants is None:
        return None
    whole = np.repeat(own[None], len(variants), axis=0)
    whole[:, rows] = variants
    return whole
