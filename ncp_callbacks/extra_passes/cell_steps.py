"""Run single steps of recurrent cells, and differentiate them."""

from __future__ import annotations

import numpy as np

from ..arrays import read_only
from ..model.cell_stepper import CellStepper
from ..model.jacobian_diagonal import jacobian_diagonal
from ..model.liquid import Reading, read_liquid
from ..observation import Need
from ..results import FloatArray, Indices
from .jacobian_products import JacobianProducts
from .runner import PassRunner, protected

__all__ = ["CellSteps"]


class CellSteps(PassRunner):
    """Run the steps of a cell by themselves."""

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
                return reading if reading is None else protected(reading)

        return self._once(Need.CELL_STEPS, lambda: ("liquid", stepper.hook.name), run)

    def jacobian_diagonal(
        self, stepper: CellStepper, time_step: int, synapses: int, units: Indices
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


def _after_first(stepper: CellStepper) -> range:
    """Return all time steps of a cell but the first, in the order in which it runs."""
    return range(stepper.steps - 2, -1, -1) if stepper.hook.reverse else range(1, stepper.steps)
