"""Hold the arrays of one snapshot: one fused pass, shared by all callbacks that are due.

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
    """List the arrays that an observation can hold besides outputs and target values."""

    INPUT_GRADIENT = "input_gradient"
    """Gradient of the targets with respect to the inputs."""
    TIME_GRADIENT = "time_gradient"
    """Gradient of the targets with respect to ``time_delta``; free with :attr:`INPUT_GRADIENT`."""
    STATES = "states"
    """Hidden states of every recurrent cell."""
    ACTIVATIONS = "activations"
    """Activations of every backbone layer."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Hold the states of one recurrent cell.

    Attributes:
        cell: Module path of the cell.
        values: ``(B, T, H)``; several state arrays of a cell are concatenated.
        initial: ``(B, H)``, state before the first time step; None if the model passes none.
        reverse: True if the cell runs from the last time step to the first.
    """

    cell: str
    values: FloatArray
    initial: FloatArray | None
    reverse: bool


@dataclass(frozen=True, eq=False)
class Activations:
    """Hold the activations of one backbone layer.

    Attributes:
        layer: Module path of the layer.
        activation: Name of its activation function, "unknown" if it is not recognised.
        values: ``(B, T, N)``.
    """

    layer: str
    activation: str
    values: FloatArray


class Observation:
    """Hold what the model makes of the held-out batch at one step, as float32 numpy arrays.

    All callbacks share the arrays, so they are read-only: work on a copy, ``x = x - x.mean()``.

    An observation is valid during ``measure`` only, because some arrays are computed on first use.
    Reading an array that ``needs`` does not declare is an error: it would cost another pass.

    Attributes:
        step: The training step.
        held_out: The sequences analysed.
        indices: ``(B,)``, their indices in the whole held-out batch.
        inputs: ``(B, T, F)``; for tokens, their embeddings; for frames, their columns, see
            :attr:`HeldOutBatch.columns`.
        time_delta: ``(B, T)`` or None.
        mask: ``(B, T)`` bool or None.
        outputs: ``(B, T, O)``, of a forecast ``(B, H, O)``, or ``(B, O)``.
        target_values: ``(B,)``, the scalar target of each sequence.
        no_cells: Reason why there are no states, with the fix; "" if there are states.
        no_layers: Reason why there are no activations, with the fix; "" if there are some.
        target: Name of the target, for titles.
        target_slug: Suffix of the target for tags, "" for the default target.
    """

    def __init__(
        self,
        runner: ModelRunner,
        step: int,
        needs: Iterable[Need] = frozenset(),
        *,
        max_sequences: int | None = None,
    ) -> None:
        """Run the model once. Call this only inside ``runner.analysing()``.

        Args:
            runner: Runs the model on the held-out batch.
            step: The training step.
            needs: The arrays to compute.
            max_sequences: Largest number of sequences, spread over the batch; None: all.
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
        self._selected: npt.NDArray[np.intp] | None = None
        wanted = {need.value: need in self._needs for need in Need}
        self._passes = list(run_in_batches(runner, wanted))
        self._batch_size = runner.max_sequences or len(self._batch)
        chosen = [c for part in self._passes if (c := part.chosen) is not None]
        self._chosen = np.concatenate(chosen) if chosen else None
        self._set_arrays(runner)

    def _set_arrays(self, runner: ModelRunner) -> None:
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

    def limited(self, max_sequences: int | None) -> Observation:
        """Return an observation of fewer sequences, spread over the batch, without another pass.

        It has all sequences if the model or the target takes the whole batch only.

        Args:
            max_sequences: Largest number of sequences; None: all.
        """
        here = len(self.held_out)
        if max_sequences is None or max_sequences >= here or not self._runner.divisible:
            return self
        part = copy.copy(self)
        # These were computed from all the sequences.
        for name in ("states", "activations", "input_gradient", "time_gradient", "losses"):
            part.__dict__.pop(name, None)
        # The choice depends on the whole batch alone, so that all callbacks agree on it.
        part.indices = read_only(self._batch.spread(max_sequences))
        rows = np.searchsorted(self.indices, part.indices)
        part._whole = self if self._whole is None else self._whole
        part._selected = rows if self._selected is None else self._selected[rows]
        part._chosen = None if self._chosen is None else self._chosen[rows]
        part._set_arrays(self._runner.take(rows))
        return part

    @property
    def whole_batch(self) -> int:
        """Return the number of sequences in the whole held-out batch."""
        return self._runner.whole_batch

    @functools.cached_property
    def whole_inputs(self) -> FloatArray:
        """Return the inputs ``(N, T, F)`` of the whole held-out batch."""
        return read_only(to_numpy(self._whole_runner.sequence()))

    @functools.cached_property
    def whole_time_delta(self) -> FloatArray | None:
        """Return ``time_delta`` ``(N, T)`` of the whole held-out batch; None if it has none."""
        delta = self._whole_runner.time_delta
        return None if delta is None else read_only(to_numpy(delta))

    @property
    def whole_mask(self) -> npt.NDArray[np.bool_] | None:
        """Return the mask ``(N, T)`` of the whole batch, true at real steps; None if all are."""
        return self._batch.mask

    @property
    def takes_time(self) -> bool:
        """Return true if ``time_delta`` reaches the model."""
        return self._runner.takes_time

    def _array(self, name: str) -> FloatArray:
        return self._select(np.concatenate([part.array(name) for part in self._passes]))

    def _select(self, values: FloatArray) -> FloatArray:
        return read_only(values if self._selected is None else values[self._selected])

    def _require(self, need: Need) -> None:
        if need not in self._needs:
            raise RuntimeError(
                f"this observation holds no {need.value}: declare it in the callback, "
                f"needs = frozenset({{Need.{need.name}, ...}})"
            )

    @functools.cached_property
    def input_gradient(self) -> FloatArray:
        """Return the gradient ``(B, T, F)`` of each sequence's target by its inputs.

        Raises:
            NotApplicable: There is none: the inputs are indices, or an operation has no derivative.
        """
        self._require(Need.INPUT_GRADIENT)
        self._runner.require_input_gradient()
        return self._array("input_gradient")

    @functools.cached_property
    def time_gradient(self) -> FloatArray | None:
        """Return the gradient ``(B, T)`` by ``time_delta``; None if there is none."""
        self._require(Need.TIME_GRADIENT)
        return self._array("time_gradient") if self.has_time_gradient else None

    @property
    def has_time_gradient(self) -> bool:
        """Return true if targets have a gradient by ``time_delta``."""
        return self._runner.has_time_gradient

    @property
    def categorical(self) -> npt.NDArray[np.bool_]:
        """Return ``(F,)``, true for features that the model uses as indices, as it does tokens."""
        return self._runner.categorical

    @functools.cached_property
    def states(self) -> Sequence[Trajectory]:
        """Return one trajectory per recurrent cell; empty if none was found."""
        self._require(Need.STATES)
        if self._whole is not None:
            return tuple(
                replace(
                    trajectory,
                    values=self._select(trajectory.values),
                    initial=None
                    if trajectory.initial is None
                    else self._select(trajectory.initial),
                )
                for trajectory in self._whole.states
            )
        return tuple(
            Trajectory(
                hook.name,
                read_only(np.concatenate([part.states(hook) for part in self._passes])),
                self._initial(hook),
                hook.reverse,
            )
            for hook in self._runner.hook_points.cells
            if not hook.skipped
        )

    def _initial(self, hook: CellHook) -> FloatArray | None:
        parts = [part.initial(hook) for part in self._passes]
        given = [part for part in parts if part is not None]
        return read_only(np.concatenate(given)) if len(given) == len(parts) else None

    @functools.cached_property
    def activations(self) -> Sequence[Activations]:
        """Return one entry per backbone layer in forward order; empty if none was found."""
        self._require(Need.ACTIVATIONS)
        if self._whole is not None:
            return tuple(
                replace(layer, values=self._select(layer.values))
                for layer in self._whole.activations
            )
        return tuple(
            Activations(
                hook.name,
                hook.activation,
                read_only(np.concatenate([part.activations(hook) for part in self._passes])),
            )
            for hook in self._runner.hook_points.layers
            if not hook.skipped
        )

    # ---- extra passes

    def evaluate(
        self,
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        rows: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
        loss: bool = False,
    ) -> TargetValues:
        """Return target values of ``K`` variants of the batch, by extra passes.

        Each variant is evaluated at the output that was chosen for the batch itself. A pass holds
        at most as many sequences as the held-out batch (or ``chunk_size``), and four times as many
        without gradients.

        Args:
            inputs: ``(K, B, T, F)``; None: the batch's own.
            time_delta: ``(K, B, T)``; None: the batch's own.
            rows: ``(R,)``, indices of the sequences to vary, which may repeat; shapes then have
                ``R`` in place of ``B``. None: all.
            gradient: True to compute gradients.
            loss: True to compute the loss as well, see :attr:`losses`; not with gradients.

        Raises:
            ValueError: A shape does not fit the batch, or the batch has no ``time_delta``.
        """
        batch = len(self.held_out) if rows is None else len(rows)
        for what, array, own in (
            ("inputs", inputs, self.inputs),
            ("time_delta", time_delta, self.time_delta),
        ):
            if array is not None and own is None:
                raise ValueError(
                    f"{what} can't be varied: the held-out batch has none; pass it to HeldOutBatch"
                )
            if array is not None and array.shape[1:] != (batch, *own.shape[1:]):  # type: ignore[union-attr]
                raise ValueError(
                    f"{what} has shape {array.shape}; pass (variants, "
                    f"{', '.join(map(str, (batch, *own.shape[1:])))})"  # type: ignore[union-attr]
                )
        if rows is None:
            return self._points(self._runner, inputs, time_delta, self._chosen, gradient, loss)
        if self._runner.divisible:
            chosen = None if self._chosen is None else self._chosen[rows]
            some = self._runner.take(rows)
            return self._points(some, inputs, time_delta, chosen, gradient, loss)
        # The model runs whole batches only, so the other sequences are run unchanged.
        times, repeat = Counter[int](), np.zeros(len(rows), int)
        for i, row in enumerate(rows.tolist()):
            repeat[i] = times[row]
            times[row] += 1
        if repeat.any():
            parts = [np.flatnonzero(repeat == k) for k in range(repeat.max() + 1)]
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
            rows=self._batch_size,
            copies=1 if gradient else VARIANTS_AT_ONCE,
        )
        return _protected(found)

    def cell_stepper(self, cell: str, max_sequences: int | None = None) -> CellStepper:
        """Return a stepper that runs a cell from any state; costs one forward pass.

        Args:
            cell: Name of the cell, see :attr:`Trajectory.cell`.
            max_sequences: Largest number of sequences, spread over the batch; None: all.

        Raises:
            NotApplicable: The time steps of the cell can't be run one by one.
            KeyError: The model has no such cell.
        """
        hook_points = {hook.name: hook for hook in self._runner.hook_points.cells}
        if cell not in hook_points:
            raise KeyError(
                f"no cell {cell!r}: the model's cells are {', '.join(hook_points) or 'none'}"
            )
        return CellStepper(self.limited(max_sequences)._runner, hook_points[cell])

    def state_jacobian(self, cell: str, max_sequences: int | None = 8) -> FloatArray:
        """Return the Jacobians ``(S, T - 1, H, H)`` of each state with respect to the one before.

        Element ``[s, t, i, j]`` is ``d h_{t+1,i} / d h_{t,j}``. The cost is a forward pass and a
        backward pass of ``H`` copies of each sequence. A reverse cell is followed in its own order:
        ``h_0`` is its state at the last time step.

        Args:
            cell: Name of the cell, see :attr:`Trajectory.cell`.
            max_sequences: Largest number of sequences, spread over the batch; None: all.

        Raises:
            NotApplicable: The time steps of the cell can't be run one by one.
            KeyError: The model has no such cell.
        """
        stepper = self.cell_stepper(cell, max_sequences)
        steps = [stepper.jacobian(t) for t in _after_first(stepper)]
        units = sum(stepper.sizes)
        found = (
            np.stack(steps, axis=1)
            if steps
            else np.zeros((len(stepper.before(0)), 0, units, units))
        )
        return read_only(found)

    def jacobian_products(self, cell: str, max_sequences: int | None = 8) -> JacobianProducts:
        """Return functions that multiply the Jacobians of :meth:`state_jacobian` with vectors.

        The cost is a forward pass. Each product of ``k`` vectors with a transposed Jacobian takes a
        backward step of ``k`` copies of each sequence, and with the Jacobian itself two.

        Args:
            cell: Name of the cell, see :attr:`Trajectory.cell`.
            max_sequences: Largest number of sequences, spread over the batch; None: all.

        Raises:
            NotApplicable: The time steps of the cell can't be run one by one.
            KeyError: The model has no such cell.
        """
        stepper = self.cell_stepper(cell, max_sequences)
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
        """Return the states of a cell × the target's gradient by them, ``(B, T - 1, H)``.

        Values are in units of the target. They cover the states that the cell passes to its next
        time step, in the order in which it runs. The cost is one forward and one gradient pass of
        all sequences at once, so use few of them, see :meth:`limited`.

        Args:
            cell: Name of the cell, see :attr:`Trajectory.cell`.

        Raises:
            NotApplicable: The model does not pass the cell its states.
            KeyError: The model has no such cell.
        """
        hook = {hook.name: hook for hook in self._runner.hook_points.cells}[cell]
        chosen = None if self._chosen is None else mx.array(self._chosen)
        states, gradients = state_gradients(self._runner, hook, chosen)
        mx.eval(states, gradients)
        with np.errstate(invalid="ignore", over="ignore"):
            product: FloatArray = to_numpy(states) * to_numpy(gradients)
        return read_only(product)

    def values_at_scales(self, scales: Sequence[float]) -> Mapping[float, FloatArray]:
        """Return the targets ``(B,)`` with ``time_delta`` multiplied by each scale.

        Each scale costs one forward pass, except 1. The outputs chosen at scale 1 are followed.

        Args:
            scales: Factors above 0.

        Raises:
            RuntimeError: The model takes no ``time_delta``.
        """
        if not self.takes_time:
            raise RuntimeError("the model takes no time_delta: check observation.takes_time first")
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
        """Return the values ``(B,)`` of ``target="loss"`` if another target is set; costs no pass.

        They are None if the loss is the target itself, if the batch has no targets, or if its
        targets fit only a loss function of the user's own.
        """
        values = self._runner.losses(mx.array(self.outputs))
        return None if values is None else read_only(to_numpy(values))

    def losses_at_scales(self, scales: Sequence[float]) -> Mapping[float, FloatArray] | None:
        """Return :attr:`losses` with ``time_delta`` multiplied by each scale; None without losses.

        The pass of :meth:`values_at_scales` computes them.

        Args:
            scales: Factors above 0.

        Raises:
            RuntimeError: The model takes no ``time_delta``.
        """
        self.values_at_scales(scales)
        if self.losses is None:
            return None
        known = {1.0: self.losses, **self._scaled_losses}
        return {s: known[s] for s in map(float, scales)}

    def values_with_finer_solver(self, scales: Sequence[float]) -> Mapping[float, FloatArray]:
        """Return :meth:`values_at_scales` with twice the ODE sub-steps of LTC cells.

        Each scale costs a pass that takes twice as long as usual.

        Args:
            scales: Factors above 0.

        Raises:
            NotApplicable: No module of the model has ``ode_unfolds``.
            RuntimeError: The model takes no ``time_delta``.
        """
        if not self.takes_time:
            raise RuntimeError("the model takes no time_delta: check observation.takes_time first")
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
        """Return derivatives along a direction and their gradients, the Hessian-vector products.

        Each variant costs a gradient of a gradient, which takes some five forward passes.

        Args:
            inputs: ``(K, B, T, F)``, variants of the inputs.
            time_delta: ``(K, B, T)``, variants of ``time_delta``; None: the batch's own.
            along: Direction in the inputs, broadcast to ``(K, B, T, F)``.
            time_along: Direction in ``time_delta``, broadcast to ``(K, B, T)``; None: zero.

        Returns:
            Target values whose ``values`` are the derivatives along the direction.
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
            found = directional_derivatives(
                some,
                mx.array(inputs[at, here]).astype(own.dtype),
                times[0],
                mx.array(along[at, here]).astype(own.dtype),
                times[1],
                None if self._chosen is None else mx.array(self._chosen[here]),
            )
            return as_target_values(found)

        # It keeps some three times what a gradient does.
        rows = max(1, self._batch_size // 3)
        return _protected(run_in_parts(self._runner, run, count, rows=rows, copies=1))

    @property
    def horizon(self) -> int | None:
        """Return the number of steps of the model's forecast; None if it returns no forecast."""
        return self._runner.calling.horizon

    @property
    def every_step(self) -> tuple[str, str] | None:
        """Return the name of the target at every time step, and its suffix for tags.

        It is None for a model with one output per sequence, and for a callable target.
        """
        return self._runner.target.of_every_step

    def at_steps(self, time_steps: Sequence[int]) -> TargetValues:
        """Return the target at each of ``K`` time steps, and its gradients.

        Each time step costs a gradient pass. Values and gradients of a sequence at padding are 0.

        Args:
            time_steps: Indices along the sequence.

        Raises:
            RuntimeError: There is no target at every time step, see :attr:`every_step`.
        """
        total = self.inputs.shape[1]
        wanted = np.zeros((len(time_steps), 1, total), bool)
        wanted[np.arange(len(time_steps)), :, list(time_steps)] = True
        if self.mask is not None:  # outputs at padding are never followed
            wanted = wanted & self.mask
        return self._at_steps(wanted, hold_states=False)

    def at_own_steps(
        self, inputs: FloatArray | None = None, time_delta: FloatArray | None = None
    ) -> tuple[TargetValues, bool]:
        """Return the gradient of each time step's target by its own input, with states held fixed.

        If the states passed to cells are constants, a target depends on the inputs of its own time
        step only, and the gradient of the sum over time steps has the gradients of all. Half of the
        time steps are summed at a time, so that a dependence on others is detected.

        Args:
            inputs: ``(K, B, T, F)``, variants of the inputs; None: the batch's own.
            time_delta: ``(K, B, T)``, variants of ``time_delta``; None: the batch's own.

        Returns:
            Target values of the ``K`` variants (or one), whose ``values`` are sums over real time
            steps, and true if a target depends on the inputs of other time steps.

        Raises:
            RuntimeError: There is no target at every time step, see :attr:`every_step`.
            NotApplicable: The states can't be held fixed.
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
        # Gradients at the time steps of the other half, which must be 0.
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
            raise RuntimeError(
                "there is no target at every step: check observation.every_step first"
            )
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

        found = run_in_parts(self._runner, run, len(wanted), rows=self._batch_size, copies=1)
        return _protected(found)

    def reevaluate(self, inputs: FloatArray | None = None) -> Observation:
        """Run the same sequences through the model as it is now, by one gradient pass.

        The result has new inputs, target values and gradients, for attributions of the same
        outputs. It has no outputs and no activations. Its states cost a forward pass.

        Args:
            inputs: ``(B, T, F)``, used in place of the batch's own; None: the batch's own.
        """
        return _Reevaluation(self, inputs)

    @contextlib.contextmanager
    def randomised(
        self, stages: int = 6
    ) -> Iterator[Iterator[tuple[tuple[str, ...], Observation]]]:
        """Iterate over stages that randomise parameters, from the output towards the input.

        Each item has the modules that a stage randomises and the result of :meth:`reevaluate`
        at that stage. The model is restored on leaving the ``with`` block.

        Args:
            stages: Largest number of stages.

        Raises:
            NotApplicable: The model has no trainable parameters to shuffle.
        """
        with randomised(self._runner, stages) as cascade:
            yield ((names, self.reevaluate()) for names in cascade)


class _Reevaluation(Observation):
    """Hold the arrays of one gradient pass; see :meth:`Observation.reevaluate`."""

    def __init__(self, source: Observation, inputs: FloatArray | None) -> None:
        # The same sequences, targets and outputs to follow.
        self.step, self._needs = source.step, source._needs
        self._batch, self._whole_runner = source._batch, source._whole_runner
        self._runner, self._batch_size = source._runner, source._batch_size
        self.indices, self._chosen = source.indices, source._chosen
        self.target, self.target_slug = source.target, source.target_slug
        self.no_cells, self.no_layers = source.no_cells, source.no_layers
        self.held_out, self.time_delta, self.mask = source.held_out, source.time_delta, source.mask
        # Nothing that was computed from the pass of the source.
        self._whole = self._selected = None
        self._scaled, self._scaled_losses, self._passes = {}, {}, []
        # The embedding of tokens may have changed.
        embedded = to_numpy(source._runner.sequence()) if inputs is None else np.asarray(inputs)
        self.inputs = read_only(embedded)
        self._own_inputs = inputs is None
        self._found = super().evaluate(self.inputs[None], gradient=True)
        self.target_values = self._found.values[0]

    @functools.cached_property
    def states(self) -> Sequence[Trajectory]:
        """Run a forward pass when asked for; the model must not have changed since.

        Raises:
            RuntimeError: The inputs are not those of the batch.
        """
        if not self._own_inputs:
            raise RuntimeError(
                "states are unavailable for modified inputs: call reevaluate() without inputs"
            )
        wanted = {need.value: need is Need.STATES for need in Need}
        self._passes = list(run_in_batches(self._runner, wanted))
        return super().states

    @functools.cached_property
    def activations(self) -> Sequence[Activations]:
        raise RuntimeError("a re-evaluation has no activations: read those of the observation")

    @functools.cached_property
    def losses(self) -> FloatArray | None:
        return None

    @functools.cached_property
    def input_gradient(self) -> FloatArray:
        assert self._found.input_gradient is not None
        gradient: FloatArray = self._found.input_gradient[0]
        return gradient

    @functools.cached_property
    def time_gradient(self) -> FloatArray | None:
        gradients = self._found.time_gradient
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
    """Return all time steps of a cell but the first, in the order in which it runs."""
    return range(stepper.steps - 2, -1, -1) if stepper.hook.reverse else range(1, stepper.steps)


def _protected(values: TargetValues) -> TargetValues:
    """Return target values with read-only arrays."""
    arrays = (values.values, values.input_gradient, values.time_gradient, values.loss)
    return TargetValues(*[None if a is None else read_only(a) for a in arrays])  # type: ignore[arg-type]


def _among(
    own: FloatArray, rows: npt.NDArray[np.intp], variants: FloatArray | None
) -> FloatArray | None:
    """Return ``(K, B, ...)``, the batch's own arrays with ``rows`` replaced by variants."""
    if variants is None:
        return None
    whole = np.repeat(own[None], len(variants), axis=0)
    whole[:, rows] = variants
    return whole
