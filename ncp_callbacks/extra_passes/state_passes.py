"""Change the states of recurrent cells, and differentiate the target by them."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np

from ..arrays import read_only, to_mlx, to_numpy
from ..model import ModelRunner
from ..model.batching import as_target_values
from ..model.derivatives import state_gradients
from ..model.state_changes import StateChanges
from ..model.state_effects import clamp_slopes, clamped, state_gradient
from ..observation import EvaluatedBatch, Need
from ..results import FloatArray, Indices
from ..target_values import TargetValues
from .runner import PassRunner
from .source import PassSource

__all__ = ["StatePasses"]


class StatePasses(PassRunner):
    """Run passes in which states are changed, or the target is differentiated by them."""

    def __init__(self, batch: EvaluatedBatch, source: PassSource) -> None:
        super().__init__(batch, source)
        self._changes: dict[str, StateChanges] = {}

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
                self._runner, hook, None if chosen is None else to_mlx(chosen)
            )
            mx.eval(states, gradients)
        with np.errstate(invalid="ignore", over="ignore"):
            product: FloatArray = to_numpy(states) * to_numpy(gradients)
        return read_only(product)

    def clamped(
        self, cell: str, units: Indices, values: FloatArray, *, loss: bool = False
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
            followed = None if chosen is None else to_mlx(chosen[here])
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
                found = run(some, None if chosen is None else to_mlx(chosen[here]))
                parts.append(to_numpy(found))
        return read_only(np.concatenate(parts))
