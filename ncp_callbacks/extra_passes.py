"""Run the extra passes that callbacks declare: variants, time scales, steps of cells, and more.

observation.extra_passes.evaluate(inputs[None])          # with Need.VARIANTS declared
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .attribution._checks import groups
from .attribution.baselines import finite_mean, without_padding
from .callbacks.dynamics.jacobian_products import JacobianProducts
from .held_out import HeldOutBatch, read_only, to_numpy
from .model import CellHook, ModelRunner
from .model.batching import (
    EvaluatedPass,
    as_target_values,
    concatenate_values,
    evaluate_variants,
    run_in_batches,
    run_in_parts,
)
from .model.cell_stepper import CellStepper
from .model.derivatives import (
    directional_derivatives,
    state_gradients,
    step_gradients,
)
from .model.fewer_steps import of_one_length_only, with_time_steps
from .model.jacobian_diagonal import jacobian_diagonal
from .model.liquid import Reading, read_liquid
from .model.ode_unfolds import doubled_ode_unfolds
from .model.randomize import randomised
from .model.state_changes import StateChanges
from .model.state_effects import clamp_slopes, clamped, state_gradient
from .observation import EvaluatedBatch, Need, Trajectory
from .pass_costs import PassCosts, SharedResults
from .results import FloatArray
from .target_values import ScaledTargets, TargetValues

__all__ = ["ExtraPasses", "PassSource", "run_pass", "trajectories"]

_Indices = npt.NDArray[np.intp]
_Result = TypeVar("_Result")


def run_pass(runner: ModelRunner, needs: Collection[Need]) -> list[EvaluatedPass]:
    """Run one pass with the declared arrays, in parts as large as memory allows."""
    computed = (Need.INPUT_GRADIENT, Need.TIME_GRADIENT, Need.STATES, Need.ACTIVATIONS)
    return list(run_in_batches(runner, {need.value: need in needs for need in computed}))


def trajectories(runner: ModelRunner, passes: Sequence[EvaluatedPass]) -> tuple[Trajectory, ...]:
    """Return the states of each recurrent cell."""
    return tuple(
        Trajectory(
            hook.name,
            read_only(np.concatenate([part.states(hook) for part in passes])),
            _initial(hook, passes),
            hook.reverse,
        )
        for hook in runner.hook_points.cells
        if not hook.skipped
    )


def _initial(hook: CellHook, passes: Sequence[EvaluatedPass]) -> FloatArray | None:
    parts = [part.initial(hook) for part in passes]
    known = [part for part in parts if part is not None]
    return read_only(np.concatenate(known)) if len(known) == len(parts) else None


@dataclass(frozen=True, eq=False)
class PassSource:
    """Hold what extra passes over some sequences are run with.

    Attributes:
        runner: Runs the model on these sequences.
        whole: Runs it on the whole held-out batch.
        chosen: ``(B,)``, the outputs that were followed in the shared pass; None without a choice.
        inputs: ``(B, T, F)`` of a variant that was re-evaluated; None for the batch's own.
        outputs: The outputs of the shared pass.
        max_sequences: Largest number of sequences in one pass with gradients.
        costs: Where passes are counted.
        shared: Where results are kept that several callbacks ask for.
    """

    runner: ModelRunner
    whole: ModelRunner
    chosen: npt.NDArray[np.integer[Any]] | None
    inputs: FloatArray | None
    outputs: FloatArray
    max_sequences: int
    costs: PassCosts
    shared: SharedResults

    @property
    def held_out(self) -> HeldOutBatch:
        """Return the sequences."""
        return self.runner.held_out

    @property
    def divisible(self) -> bool:
        """Return whether parts of the batch can be run separately."""
        return self.runner.divisible

    def spread(self, count: int) -> _Indices:
        """Return the indices of sequences that are spread over the whole held-out batch."""
        return read_only(self.whole.held_out.spread(count))

    def take(self, places: _Indices) -> PassSource:
        """Return the source of some of the sequences."""
        return replace(
            self,
            runner=self.runner.take(places),
            chosen=None if self.chosen is None else self.chosen[places],
            inputs=None if self.inputs is None else self.inputs[places],
            outputs=self.outputs[places],
        )

    def passes_of(self, batch: EvaluatedBatch) -> ExtraPasses:
        """Return what runs extra passes of a batch."""
        return ExtraPasses(batch, self)


class ExtraPasses:
    """Run extra passes over the sequences of an observation; see :attr:`Observation.extra_passes`.

    Every method runs a kind of pass that a callback declares in its ``needs``, and raises a
    RuntimeError with the fix where it is not declared. Callbacks that declare one kind and ask for
    equal passes of equal sequences share the result.
    """

    def __init__(self, batch: EvaluatedBatch, source: PassSource) -> None:
        self._batch, self._source = batch, source
        self._runner = source.runner
        self._changes: dict[str, StateChanges] = {}

    # ---- variants of the batch

    def evaluate(
        self,
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        sequences: _Indices | None = None,
        gradient: bool = False,
        loss: bool = False,
    ) -> TargetValues:
        """Return target values of ``K`` variants of the batch.

        Each variant is evaluated at the output that was chosen for the batch itself. A pass holds
        at most as many sequences as the held-out batch (or ``chunk_size``), and four times as many
        without gradients. Declare :attr:`Need.VARIANTS`, for gradients
        :attr:`Need.VARIANT_GRADIENTS`.

        Args:
            inputs: ``(K, B, T, F)``; None: the batch's own.
            time_delta: ``(K, B, T)``; None: the batch's own.
            sequences: ``(R,)``, indices of the sequences to vary, which may repeat; shapes then
                have ``R`` in place of ``B``. None: all.
            gradient: True to compute gradients.
            loss: True to compute the loss as well, see :attr:`Observation.losses`; not with
                gradients.

        Raises:
            ValueError: A shape does not fit the batch, or the batch has no ``time_delta``.
        """
        need = Need.VARIANT_GRADIENTS if gradient else Need.VARIANTS
        self._require(need)
        self._check_shapes(inputs, time_delta, sequences)
        return self._once(
            need,
            lambda: (inputs, time_delta, sequences, loss, self._source.inputs),
            lambda: self._evaluate(need, inputs, time_delta, sequences, gradient, loss),
        )

    def reevaluate(self, inputs: FloatArray) -> EvaluatedBatch:
        """Return targets and gradients of the same sequences with other inputs.

        It follows the outputs of the batch itself, and costs a gradient pass. Declare
        :attr:`Need.VARIANT_GRADIENTS`.

        Args:
            inputs: ``(B, T, F)``, used in place of the batch's own.
        """
        self._require(Need.VARIANT_GRADIENTS)
        return self._reevaluate(Need.VARIANT_GRADIENTS, inputs)

    def at_time_scales(self, scales: Sequence[float]) -> ScaledTargets:
        """Return the targets with ``time_delta`` multiplied by each scale.

        Each scale but 1 costs one forward pass. The outputs chosen at scale 1 are followed. The
        losses are computed in the same passes if :attr:`Need.LOSSES` is declared. Declare
        :attr:`Need.TIME_SCALES`.

        Args:
            scales: Factors above 0.

        Raises:
            RuntimeError: The model takes no ``time_delta``.
        """
        self._require(Need.TIME_SCALES)
        losses = self._batch._arrays.get(Need.LOSSES)
        wanted = list(dict.fromkeys(map(float, scales)))
        others = [s for s in wanted if s != 1]
        keys = {s: self._key(s, losses is not None) for s in others}
        found = {s: self._source.shared.known(Need.TIME_SCALES, keys[s]) for s in others}
        missing = [s for s in others if found[s] is None]
        scaled = self._scaled(missing)
        if missing:
            new = self._evaluate(Need.TIME_SCALES, None, scaled, loss=losses is not None)
            for i, scale in enumerate(missing):
                found[scale] = new.variant(i)
                self._source.shared.keep(Need.TIME_SCALES, keys[scale], found[scale])
        values = {1.0: self._batch.target_values, **{s: found[s].values[0] for s in others}}
        of_loss = None
        if losses is not None:
            at_scale = {1.0: losses, **{s: found[s].loss[0] for s in others}}
            of_loss = {s: at_scale[s] for s in wanted}
        return ScaledTargets({s: values[s] for s in wanted}, of_loss)

    def with_finer_solver(self, scales: Sequence[float]) -> Mapping[float, FloatArray]:
        """Return the targets at time scales with twice the ODE sub-steps of LTC cells.

        Each scale costs a pass that takes twice as long as usual. Declare
        :attr:`Need.FINER_SOLVER`.

        Args:
            scales: Factors above 0.

        Raises:
            NotApplicable: No module of the model has ``ode_unfolds``.
            RuntimeError: The model takes no ``time_delta``.
        """
        self._require(Need.FINER_SOLVER)
        wanted = list(dict.fromkeys(map(float, scales)))
        scaled = self._scaled(wanted)
        with doubled_ode_unfolds(self._runner.model):
            # A pass of twice the sub-steps counts two.
            self._source.costs.count(Need.FINER_SOLVER.value, len(wanted))
            values = self._evaluate(Need.FINER_SOLVER, None, scaled).values
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

        Each variant costs a gradient of a gradient, which takes some five forward passes. Declare
        :attr:`Need.HESSIAN_PRODUCTS`.

        Args:
            inputs: ``(K, B, T, F)``, variants of the inputs.
            time_delta: ``(K, B, T)``, variants of ``time_delta``; None: the batch's own.
            along: Direction in the inputs, broadcast to ``(K, B, T, F)``.
            time_along: Direction in ``time_delta``, broadcast to ``(K, B, T)``; None: zero.

        Returns:
            Target values whose ``values`` are the derivatives along the direction.
        """
        self._require(Need.HESSIAN_PRODUCTS)
        count, chosen = len(inputs), self._source.chosen
        along = np.broadcast_to(along, inputs.shape)
        delta = self._batch.time_delta
        if delta is not None:
            time_delta = np.broadcast_to(
                delta if time_delta is None else time_delta, (count, *delta.shape)
            )
            if time_along is not None:
                time_along = np.broadcast_to(time_along, time_delta.shape)

        def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
            own, own_delta = some.sequence(), some.time_delta
            x, direction = _as_mlx(inputs, own, at, here), _as_mlx(along, own, at, here)
            assert x is not None
            assert direction is not None
            found = directional_derivatives(
                some,
                x,
                _as_mlx(time_delta, own_delta, at, here),
                direction,
                _as_mlx(time_along, own_delta, at, here),
                None if chosen is None else mx.array(chosen[here]),
            )
            return as_target_values(found)

        # It keeps some three times what a gradient does.
        size = max(1, self._source.max_sequences // 3)
        return self._in_parts(Need.HESSIAN_PRODUCTS, run, count, size)

    def removed(
        self,
        columns: Sequence[_Indices],
        *,
        times: bool = False,
        blocks: Sequence[tuple[int, int]] = (),
        n_samples: int = 1,
    ) -> FloatArray:
        """Return targets with parts of each sequence replaced by those of other sequences.

        The other sequences are drawn from the whole held-out batch, never the sequence itself, and
        are the same at each call. If the batch has one sequence, parts are replaced by the mean of
        each feature over its time steps. Each part costs ``n_samples`` forward passes. Declare
        :attr:`Need.REMOVALS`.

        Args:
            columns: For each part, the columns of the inputs that are replaced at all time steps.
            times: True for one more part, the elapsed times.
            blocks: For one more part each, the first and last time step between which all inputs
                and elapsed times are replaced.
            n_samples: Number of other sequences for each.

        Returns:
            ``(n_samples, K, B)``, for ``K`` parts: columns, elapsed times, blocks.
        """
        self._require(Need.REMOVALS)
        arguments = [*columns, np.array(blocks)]
        return self._once(
            Need.REMOVALS,
            lambda: (*arguments, times, n_samples),
            lambda: self._removed(columns, times, blocks, n_samples),
        )

    def _removed(
        self,
        columns: Sequence[_Indices],
        times: bool,
        blocks: Sequence[tuple[int, int]],
        n_samples: int,
    ) -> FloatArray:
        batch = self._batch
        others = _other_sequences(batch, n_samples)
        inputs = without_padding(batch.whole_inputs, batch.whole_mask)
        delta = batch.whole_time_delta if batch.takes_time else None
        delta = None if delta is None else without_padding(delta, batch.whole_mask)
        count = len(columns) + times + len(blocks)
        found = np.empty((n_samples, count, len(batch.inputs)), np.float32)
        for sample in range(n_samples):
            x, dt = _of_others(inputs, others, sample), _of_others(delta, others, sample)
            for group in groups(count, batch.inputs.size):
                varied = np.repeat(batch.inputs[None], len(group), axis=0)
                moved = None
                if dt is not None and batch.time_delta is not None:
                    moved = np.repeat(batch.time_delta[None], len(group), axis=0)
                for variant, part in enumerate(group.tolist()):
                    if part < len(columns):
                        varied[variant][..., columns[part]] = x[..., columns[part]]
                        continue
                    first, last = 0, batch.inputs.shape[1] - 1
                    if part >= len(columns) + times:
                        first, last = blocks[part - len(columns) - times]
                        varied[variant][:, first : last + 1] = x[:, first : last + 1]
                    if moved is not None:
                        moved[variant][:, first : last + 1] = dt[:, first : last + 1]
                values = self._evaluate(Need.REMOVALS, varied, moved).values
                found[sample, group] = values
        return read_only(found)

    # ---- targets at every time step

    def at_steps(self, time_steps: Sequence[int]) -> TargetValues:
        """Return the target at each of ``K`` time steps, and its gradients.

        Each time step costs a gradient pass. Values and gradients of a sequence at padding are 0.
        Declare :attr:`Need.OUTPUT_STEPS`.

        Args:
            time_steps: Indices along the sequence.

        Raises:
            RuntimeError: There is no target at every time step, see
                :attr:`Observation.every_step`.
        """
        total = self._batch.inputs.shape[1]
        wanted = np.zeros((len(time_steps), 1, total), bool)
        wanted[np.arange(len(time_steps)), :, list(time_steps)] = True
        if self._batch.mask is not None:  # Outputs at padding are never followed.
            wanted = wanted & self._batch.mask
        return self._at_steps(wanted, None, None, hold_states=False)

    def at_own_steps(
        self, inputs: FloatArray | None = None, time_delta: FloatArray | None = None
    ) -> tuple[TargetValues, bool]:
        """Return the gradient of each time step's target by its own input, with states held fixed.

        If the states passed to cells are constants, a target depends on the inputs of its own time
        step only, and the gradient of the sum over time steps has the gradients of all. Half of the
        time steps are summed at a time, so that a dependence on others is detected. Each variant
        costs two gradient passes. Declare :attr:`Need.OUTPUT_STEPS`.

        Args:
            inputs: ``(K, B, T, F)``, variants of the inputs; None: the batch's own.
            time_delta: ``(K, B, T)``, variants of ``time_delta``; None: the batch's own.

        Returns:
            Target values of the ``K`` variants (or one), whose ``values`` are sums over real time
            steps, and true if a target depends on the inputs of other time steps.

        Raises:
            RuntimeError: There is no target at every time step, see
                :attr:`Observation.every_step`.
            NotApplicable: The states can't be held fixed.
        """
        real = self._batch.held_out.mask_array
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

    # ---- recurrent cells

    def cell_stepper(self, cell: str) -> CellStepper:
        """Return a stepper that runs a cell from any state.

        It costs one forward pass, and a part of one for each step. Declare
        :attr:`Need.CELL_STEPS`.

        Args:
            cell: Name of the cell, see :attr:`Trajectory.cell`.

        Raises:
            NotApplicable: The time steps of the cell can't be run one by one.
            KeyError: The model has no such cell.
        """
        self._require(Need.CELL_STEPS)
        hook = self._hook(cell)

        costs, kind = self._source.costs, Need.CELL_STEPS.value

        def run() -> CellStepper:
            with self._running(Need.CELL_STEPS, 1):
                return CellStepper(self._runner, hook, lambda passes: costs.count(kind, passes))

        return self._once(Need.CELL_STEPS, lambda: ("stepper", cell), run)

    def _stepper_over_time(self, cell: str) -> CellStepper:
        """Return a stepper whose steps can be run one after another; a forward pass more."""
        stepper = self.cell_stepper(cell)

        def run() -> CellStepper:
            with self._running(Need.CELL_STEPS, 1):
                return stepper.over_time()

        return self._once(Need.CELL_STEPS, lambda: ("stepper over time", cell), run)

    def read_liquid(self, stepper: CellStepper) -> Reading | None:
        """Return the parameters and states of a liquid cell, checked against its own steps.

        It runs each step of the cell once more; see :func:`~.model.liquid.read_liquid`. Declare
        :attr:`Need.CELL_STEPS`.

        Args:
            stepper: The cell, from :meth:`cell_stepper`.

        Returns:
            None for a cell that isn't liquid.

        Raises:
            NotApplicable: It has the parameters of a liquid cell and computes something else.
        """
        self._require(Need.CELL_STEPS)
        time_delta = self._batch.time_delta if self._batch.takes_time else None

        def run() -> Reading | None:
            with self._running(Need.CELL_STEPS):
                reading: Reading | None = read_liquid(stepper, time_delta)
                return reading if reading is None else _protected(reading)

        return self._once(Need.CELL_STEPS, lambda: ("liquid", stepper.hook.name), run)

    def jacobian_diagonal(
        self, stepper: CellStepper, time_step: int, synapses: int, units: _Indices
    ) -> FloatArray:
        """Return the diagonal of the Jacobian of a cell's step, for some units.

        It costs a backward step of as many copies of each sequence as there are units; see
        :func:`~.model.jacobian_diagonal.jacobian_diagonal`. Declare :attr:`Need.CELL_STEPS`.

        Args:
            stepper: The cell, from :meth:`cell_stepper`.
            time_step: Index of the time step.
            synapses: Number of synapses of the cell, which tells how much memory a copy takes.
            units: ``(U,)``, indices of the units.

        Returns:
            ``(B, U)``.
        """
        self._require(Need.CELL_STEPS)
        with self._running(Need.CELL_STEPS):
            return jacobian_diagonal(stepper, time_step, synapses, units=units)

    def state_jacobian(self, cell: str) -> FloatArray:
        """Return the Jacobians ``(B, T - 1, H, H)`` of each state with respect to the one before.

        Element ``[b, t, i, j]`` is ``d h_{t+1,i} / d h_{t,j}``. The cost is a forward pass and a
        backward pass of ``H`` copies of each sequence, so use few of them, see
        :meth:`Observation.limited`. A reverse cell is followed in its own order: ``h_0`` is its
        state at the last time step. What the model does between the calls is included, such as
        outputs that are fed back. Declare :attr:`Need.CELL_STEPS`.

        Args:
            cell: Name of the cell, see :attr:`Trajectory.cell`.

        Raises:
            NotApplicable: The time steps of the cell can't be run one by one, or more than its
                state goes on from one to the next.
            KeyError: The model has no such cell.
        """
        stepper = self._stepper_over_time(cell)
        with self._running(Need.CELL_STEPS):
            steps = [stepper.jacobian(t) for t in _after_first(stepper)]
        units = sum(stepper.sizes)
        none = np.zeros((len(self._batch.held_out), 0, units, units))
        return read_only(np.stack(steps, axis=1) if steps else none)

    def jacobian_products(self, cell: str) -> JacobianProducts:
        """Return functions that multiply the Jacobians of :meth:`state_jacobian` with vectors.

        The cost is a forward pass. Each product of ``k`` vectors with a transposed Jacobian takes a
        backward step of ``k`` copies of each sequence, and with the Jacobian itself two. Declare
        :attr:`Need.CELL_STEPS`.

        Args:
            cell: Name of the cell, see :attr:`Trajectory.cell`.

        Raises:
            NotApplicable: The time steps of the cell can't be run one by one.
            KeyError: The model has no such cell.
        """
        stepper = self._stepper_over_time(cell)
        order = list(_after_first(stepper))
        batch, units = stepper.before(0).shape

        def forward(t: int, vectors: FloatArray) -> FloatArray:
            with self._running(Need.CELL_STEPS):
                return stepper.product(order[t], vectors)

        def backward(t: int, vectors: FloatArray) -> FloatArray:
            with self._running(Need.CELL_STEPS):
                return stepper.transposed_product(order[t], vectors)

        return JacobianProducts(batch, len(order), units, forward, backward)

    def state_x_gradient(self, cell: str) -> FloatArray:
        """Return the states of a cell × the target's gradient by them, ``(B, T - 1, H)``.

        Values are in units of the target. They cover the states that the cell passes to its next
        time step, in the order in which it runs. The cost is one forward and one gradient pass of
        all sequences at once, so use few of them, see :meth:`Observation.limited`. Declare
        :attr:`Need.STATE_GRADIENT`.

        Args:
            cell: Name of the cell, see :attr:`Trajectory.cell`.

        Raises:
            NotApplicable: The model does not pass the cell its states.
            KeyError: The model has no such cell.
        """
        self._require(Need.STATE_GRADIENT)
        hook, chosen = self._hook(cell), self._source.chosen
        with self._running(Need.STATE_GRADIENT, 2):
            states, gradients = state_gradients(
                self._runner, hook, None if chosen is None else mx.array(chosen)
            )
            mx.eval(states, gradients)
        with np.errstate(invalid="ignore", over="ignore"):
            product: FloatArray = to_numpy(states) * to_numpy(gradients)
        return read_only(product)

    def clamped(
        self, cell: str, units: _Indices, values: FloatArray, *, loss: bool = False
    ) -> TargetValues:
        """Return the targets with one unit of a cell at a time held at a value.

        The unit is held after each time step, inside the cell where later layers read it there, and
        after each sub-step of a solver. Each unit costs a forward pass. Declare
        :attr:`Need.STATE_CHANGES`.

        Args:
            cell: Name of the cell, see :attr:`Trajectory.cell`.
            units: ``(K,)``, indices of units.
            values: ``(H,)``, the value of each unit of the cell.
            loss: True to compute the loss as well, see :attr:`Observation.losses`.

        Returns:
            Target values ``(K, B)``, one variant for each unit.

        Raises:
            NotApplicable: The states can't be changed from outside of the cell.
            KeyError: The model has no such cell.
        """
        changes, chosen = self.state_changes(cell), self._source.chosen

        def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
            followed = None if chosen is None else mx.array(chosen[here])
            return as_target_values(clamped(some, changes, units[at], values, followed, loss=loss))

        size = self._source.max_sequences
        at_once = (
            1 if self._runner.whole_batch_only else self._runner.variants_at_once(gradient=False)
        )
        return self._in_parts(Need.STATE_CHANGES, run, len(units), size, at_once)

    def clamp_slopes(self, cell: str, values: FloatArray) -> FloatArray:
        """Return ``(B, H)``, the change of the target that the slope predicts for each clamp.

        It costs a gradient pass. Declare :attr:`Need.STATE_CHANGES`.

        Args:
            cell: Name of the cell.
            values: ``(H,)``, the value of each unit, see :meth:`clamped`.

        Raises:
            NotApplicable: The states can't be changed from outside of the cell.
        """
        changes = self.state_changes(cell)
        return self._by_states(lambda some, followed: clamp_slopes(some, changes, values, followed))

    def state_gradient(self, cell: str, *, loss: bool = False) -> FloatArray:
        """Return ``(B, T, H)``, the gradient of the target by the state after each time step.

        It costs a gradient pass. Declare :attr:`Need.STATE_CHANGES`.

        Args:
            cell: Name of the cell.
            loss: True for the gradient of the loss.

        Raises:
            NotApplicable: The states can't be changed from outside of the cell.
        """
        changes = self.state_changes(cell)
        return self._by_states(
            lambda some, followed: state_gradient(
                some, changes, some.loss if loss else some.target, followed
            )
        )

    def state_changes(self, cell: str) -> StateChanges:
        """Return how the states of a cell are changed, which costs three forward passes.

        An object of this class asks once. Declare :attr:`Need.STATE_CHANGES`.

        Args:
            cell: Name of the cell.

        Raises:
            NotApplicable: The states can't be changed from outside of the cell.
            KeyError: The model has no such cell.
        """
        self._require(Need.STATE_CHANGES)
        hook = self._hook(cell)

        def run() -> StateChanges:
            with self._running(Need.STATE_CHANGES, 3):
                return StateChanges(self._runner, hook)

        if cell not in self._changes:
            self._changes[cell] = self._once(Need.STATE_CHANGES, lambda: ("changes", cell), run)
        return self._changes[cell]

    def _by_states(self, run: Callable[[ModelRunner, mx.array | None], mx.array]) -> FloatArray:
        """Return a gradient by the states, over parts of the batch."""
        chosen, runner = self._source.chosen, self._runner
        batch = len(runner.held_out)
        size = min(self._source.max_sequences, batch) if runner.divisible else batch
        parts = []
        with self._running(Need.STATE_CHANGES, 1):
            for begin in range(0, batch, size):
                here = slice(begin, min(batch, begin + size))
                some = runner if size == batch else runner.take(here)
                found = run(some, None if chosen is None else mx.array(chosen[here]))
                parts.append(to_numpy(found))
        return read_only(np.concatenate(parts))

    # ---- fewer time steps

    def with_fewer_steps(
        self,
        steps: npt.NDArray[np.intp],
        mask: npt.NDArray[np.bool_],
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        loss: bool = False,
    ) -> TargetValues:
        """Return the targets of shorter sequences, made of some time steps of the batch.

        The target is that of the last real time step, at the output that was chosen for the batch
        itself. It costs a part of a forward pass. Declare :attr:`Need.FEWER_STEPS`.

        Args:
            steps: ``(B, n)``, indices of time steps, increasing among the real ones.
            mask: ``(B, n)``, true at real time steps.
            inputs: ``(B, n, F)``; None: those of ``steps``.
            time_delta: ``(B, n)``; None: those of ``steps``.
            loss: True to compute the loss as well, see :attr:`Observation.losses`.

        Raises:
            NotApplicable: The target is not that of the last time step, or the model runs sequences
                of one length only.
        """
        self._require(Need.FEWER_STEPS)
        chosen, own, delta = self._source.chosen, self._batch.inputs, self._batch.time_delta
        if inputs is None:
            inputs = np.take_along_axis(own, steps[..., None], axis=1)
        if time_delta is None and delta is not None:
            time_delta = np.take_along_axis(delta, steps, axis=1)

        def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
            shorter = with_time_steps(some, steps[here], mask[here])
            return as_target_values(
                shorter.variants(
                    mx.array(inputs[here])[None].astype(shorter.sequence().dtype),
                    None if time_delta is None else mx.array(time_delta[here])[None],
                    None if chosen is None else mx.array(chosen[here]),
                    loss=loss,
                )
            )

        share = steps.shape[1] / own.shape[1]
        with self._running(Need.FEWER_STEPS, share), of_one_length_only(steps.shape[1]):
            found = run_in_parts(
                self._runner, run, 1, max_sequences=self._source.max_sequences, max_variants=1
            )
        return _protected(found)

    # ---- changed parameters

    @contextlib.contextmanager
    def randomised(
        self, stages: int = 6
    ) -> Iterator[Iterator[tuple[tuple[str, ...], EvaluatedBatch]]]:
        """Iterate over stages that randomise parameters, from the output towards the input.

        Each item has the modules that a stage randomises, and the targets and gradients at that
        stage, which cost a gradient pass. The model is restored on leaving the ``with`` block.
        Declare :attr:`Need.RANDOMISED`.

        Args:
            stages: Largest number of stages.

        Raises:
            NotApplicable: The model has no trainable parameters to shuffle.
        """
        self._require(Need.RANDOMISED)
        with self._source.shared.suspended(), randomised(self._runner, stages) as cascade:
            yield ((names, self._reevaluate(Need.RANDOMISED)) for names in cascade)

    def states(self) -> Sequence[Trajectory]:
        """Return the states of the model as it is at a stage of :meth:`randomised`.

        It costs a forward pass. Declare :attr:`Need.RANDOMISED`.
        """
        self._require(Need.RANDOMISED)
        with self._running(Need.RANDOMISED, 1):
            return trajectories(self._runner, run_pass(self._runner, {Need.STATES}))

    # ---- how they are run

    def _require(self, need: Need) -> None:
        if need in self._batch.needs:
            return
        of_method = ""
        if need in (Need.VARIANTS, Need.VARIANT_GRADIENTS):
            of_method = "; an attribution method declares them in its extra_passes"
        raise RuntimeError(
            f"extra passes of the kind {need.value} are not declared: declare them in the "
            f"callback, needs = frozenset({{Need.{need.name}, ...}}){of_method}"
        )

    @contextlib.contextmanager
    def _running(self, need: Need, passes: float = 0.0) -> Iterator[None]:
        """Time what runs in a ``with`` block as a kind of passes, and count them."""
        with self._source.costs.timing(need.value):
            self._source.costs.count(need.value, passes)
            yield

    def _once(
        self, need: Need, arguments: Callable[[], tuple[Any, ...]], run: Callable[[], _Result]
    ) -> _Result:
        """Return what another callback got from this pass, or what running it returns.

        Args:
            need: The kind of pass.
            arguments: Returns what tells it from other passes of its kind over these sequences.
            run: Runs it.
        """
        shared = self._source.shared
        key = self._key(*arguments()) if need in shared.needs else None
        found: _Result | None = shared.known(need, key)
        if found is None:
            found = run()
            shared.keep(need, key, found)
        return found

    def _hook(self, cell: str) -> CellHook:
        hooks = {hook.name: hook for hook in self._runner.hook_points.cells}
        if cell not in hooks:
            raise KeyError(f"no cell {cell!r}: the model's cells are {', '.join(hooks) or 'none'}")
        return hooks[cell]

    def _key(self, *parts: Any) -> Any:
        """Return what tells a pass from others: its sequences, and the values of its arguments."""
        own = (self._batch.indices, self._runner.target.key)
        return tuple(_digest(part) for part in (*own, *parts))

    def _scaled(self, scales: Sequence[float]) -> FloatArray:
        """Return ``(S, B, T)``, the elapsed times multiplied by each scale."""
        delta = self._batch.time_delta
        if not self._batch.takes_time or delta is None:
            raise RuntimeError("the model takes no time_delta: check observation.takes_time first")
        return delta * np.array(scales, np.float32)[:, None, None]

    def _check_shapes(
        self,
        inputs: FloatArray | None,
        time_delta: FloatArray | None,
        sequences: _Indices | None,
    ) -> None:
        batch = len(self._batch.held_out) if sequences is None else len(sequences)
        for what, array, own in (
            ("inputs", inputs, self._batch.inputs),
            ("time_delta", time_delta, self._batch.time_delta),
        ):
            if array is None:
                continue
            if own is None:
                raise ValueError(
                    f"{what} can't be varied: the held-out batch has none; pass it to HeldOutBatch"
                )
            if array.shape[1:] != (batch, *own.shape[1:]):
                expected = ", ".join(map(str, (batch, *own.shape[1:])))
                raise ValueError(f"{what} has shape {array.shape}; pass (variants, {expected})")

    def _evaluate(
        self,
        need: Need,
        inputs: FloatArray | None,
        time_delta: FloatArray | None,
        sequences: _Indices | None = None,
        gradient: bool = False,
        loss: bool = False,
    ) -> TargetValues:
        """Evaluate variants, see :meth:`evaluate`, as passes of one kind."""
        source, runner, chosen = self._source, self._runner, self._source.chosen
        own = source.inputs
        if sequences is not None and not runner.divisible:
            return self._evaluate_within(need, inputs, time_delta, sequences, gradient, loss)
        if sequences is not None:
            runner = runner.take(sequences)
            chosen = None if chosen is None else chosen[sequences]
            own = None if own is None else own[sequences]
        variants = next((len(a) for a in (inputs, time_delta) if a is not None), 1)
        if inputs is None and own is not None:
            inputs = np.broadcast_to(own, (variants, *own.shape))
        with self._running(need, variants * len(runner.held_out) / len(self._batch.held_out)):
            found = evaluate_variants(
                runner,
                inputs,
                time_delta,
                chosen,
                gradient=gradient,
                loss=loss,
                max_sequences=source.max_sequences,
                max_variants=runner.variants_at_once(gradient=gradient),
            )
        return _protected(found)

    def _evaluate_within(
        self,
        need: Need,
        inputs: FloatArray | None,
        time_delta: FloatArray | None,
        sequences: _Indices,
        gradient: bool,
        loss: bool,
    ) -> TargetValues:
        """Evaluate variants of some sequences of a batch that is run whole, the others unchanged.

        A sequence that is asked for several times is in as many passes.
        """
        occurrences = Counter[int]()
        rounds = np.empty(len(sequences), int)
        for i, sequence in enumerate(sequences.tolist()):
            rounds[i] = occurrences[sequence]
            occurrences[sequence] += 1
        parts, found = [], []
        for number in range(int(rounds.max(initial=0)) + 1):
            part = np.flatnonzero(rounds == number)
            here = sequences[part]
            x = _among(self._batch.inputs, here, inputs, part)
            dt = _among(self._batch.time_delta, here, time_delta, part)
            parts.append(part)
            found.append(self._evaluate(need, x, dt, None, gradient, loss).of(here))
        return _protected(concatenate_values(found, axis=1).of(np.argsort(np.concatenate(parts))))

    def _reevaluate(self, need: Need, inputs: FloatArray | None = None) -> EvaluatedBatch:
        """Evaluate the sequences and their gradients as passes of one kind."""
        batch = self._batch
        whole_inputs = batch.whole_inputs
        if inputs is None:
            inputs = batch.inputs
            if batch.held_out.tokens:  # Their embedding may have changed.
                inputs = to_numpy(self._runner.sequence())
                whole_inputs = read_only(to_numpy(self._source.whole.sequence()))
        embedded = read_only(np.asarray(inputs))
        found = self._evaluate(need, embedded[None], None, gradient=True)
        assert found.input_gradient is not None
        by_time = None if found.time_gradient is None else found.time_gradient[0]
        return EvaluatedBatch(
            held_out=batch.held_out,
            indices=batch.indices,
            inputs=embedded,
            time_delta=batch.time_delta,
            target_values=found.values[0],
            target=batch.target,
            target_slug=batch.target_slug,
            takes_time=batch.takes_time,
            has_time_gradient=batch.has_time_gradient,
            no_input_gradient=batch.no_input_gradient,
            categorical=batch.categorical,
            whole_batch=batch.whole_batch,
            whole_inputs=whole_inputs,
            whole_time_delta=batch.whole_time_delta,
            whole_mask=batch.whole_mask,
            needs=batch.needs | {Need.INPUT_GRADIENT, Need.TIME_GRADIENT},
            _arrays={
                Need.INPUT_GRADIENT: found.input_gradient[0],
                Need.TIME_GRADIENT: by_time,
            },
            _source=replace(self._source, inputs=embedded),
        )

    def _at_steps(
        self,
        wanted: npt.NDArray[np.bool_],
        inputs: FloatArray | None,
        time_delta: FloatArray | None,
        *,
        hold_states: bool,
    ) -> TargetValues:
        self._require(Need.OUTPUT_STEPS)
        if self._runner.target.of_every_step is None:
            raise RuntimeError(
                "there is no target at every step: check observation.every_step first"
            )
        predicted = None
        if hold_states and self._runner.target.follows_predictions:
            predicted = self._source.outputs.argmax(axis=-1)
        own = self._source.inputs
        if inputs is None and own is not None:
            inputs = np.broadcast_to(own, (len(wanted), *own.shape))

        def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
            found = step_gradients(
                some,
                wanted[at] if wanted.shape[1] == 1 else wanted[at, here],
                _as_mlx(inputs, some.sequence(), at, here),
                _as_mlx(time_delta, some.time_delta, at, here),
                None if predicted is None else mx.array(predicted[here]),
                hold_states=hold_states,
            )
            return as_target_values(found)

        return self._in_parts(Need.OUTPUT_STEPS, run, len(wanted), self._source.max_sequences)

    def _in_parts(
        self,
        need: Need,
        run: Callable[[ModelRunner, slice, slice], TargetValues],
        count: int,
        max_sequences: int,
        max_variants: int = 1,
    ) -> TargetValues:
        """Run passes of ``count`` variants over parts of the batch."""
        with self._running(need, count):
            found = run_in_parts(
                self._runner,
                run,
                count,
                max_sequences=max_sequences,
                max_variants=max_variants,
            )
        return _protected(found)


def _as_mlx(
    values: FloatArray | None, own: mx.array | None, at: slice, here: slice
) -> mx.array | None:
    """Return variants of some sequences in the precision of the batch's own; None for None."""
    if values is None or own is None:
        return None
    return mx.array(values[at, here]).astype(own.dtype)


def _other_sequences(batch: EvaluatedBatch, n_samples: int) -> _Indices | None:
    """Return ``(n_samples, B)`` indices of other sequences of the whole batch; None for none.

    They follow each sequence on a random circle through all, so that each is drawn equally often,
    and neighbours in the data, which may be alike, are no neighbours there.
    """
    finite = np.isfinite(batch.whole_inputs).all(axis=(1, 2))
    if batch.whole_time_delta is not None:
        finite &= np.isfinite(batch.whole_time_delta).all(axis=1)
    usable = np.flatnonzero(finite)
    if len(usable) < 2:
        return None
    circle = np.random.default_rng(0).permutation(usable)
    place = np.zeros(len(batch.whole_inputs), np.intp)
    place[circle] = np.arange(len(circle))
    # Spread over the circle, and never all the way round to the sequence itself.
    steps = 1 + np.arange(n_samples) * (len(circle) - 1) // n_samples
    found: _Indices = circle[(place[batch.indices] + steps[:, None]) % len(circle)]
    return found


def _of_others(whole: Any, others: _Indices | None, sample: int) -> Any:
    """Return the arrays of other sequences, or for None of them the mean over the batch."""
    if whole is None or others is not None:
        return None if whole is None or others is None else whole[others[sample]]
    return np.broadcast_to(finite_mean(whole, None), whole.shape)


def _after_first(stepper: CellStepper) -> range:
    """Return all time steps of a cell but the first, in the order in which it runs."""
    return range(stepper.steps - 2, -1, -1) if stepper.hook.reverse else range(1, stepper.steps)


def _protected(value: _Result) -> _Result:
    """Return a dataclass whose arrays, those of its parts included, are read-only."""
    parts = {}
    for name in (field.name for field in fields(value)):  # type: ignore[arg-type]
        part = getattr(value, name)
        if isinstance(part, np.ndarray):
            parts[name] = read_only(part)
        elif is_dataclass(part) and not isinstance(part, type):
            parts[name] = _protected(part)  # type: ignore[arg-type]
    return replace(value, **parts)  # type: ignore[type-var]


def _among(
    own: FloatArray | None, sequences: _Indices, variants: FloatArray | None, part: _Indices
) -> FloatArray | None:
    """Return ``(K, B, ...)``, the batch's own arrays with a part of the variants."""
    if own is None or variants is None:
        return None
    whole = np.repeat(own[None], len(variants), axis=0)
    whole[:, sequences] = variants[:, part]
    return whole


def _digest(value: Any) -> Any:
    """Return a number or a name itself, and what stands for the values of an array."""
    if not isinstance(value, np.ndarray):
        return value
    content = hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).digest()
    return value.shape, value.dtype.str, content
