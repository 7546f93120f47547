"""Compute the diagonal of a step's Jacobian without the rest of it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..arrays import to_mlx, to_numpy
from ..results import FloatArray
from .cell_stepper import CellStepper

__all__ = ["jacobian_diagonal"]

# Numbers that one layer, or all synapses, may compute for the copies of a batch at once.
_MAX_NUMBERS = 1 << 22


def jacobian_diagonal(
    stepper: CellStepper,
    step: int,
    synapses: int = 0,
    *,
    units: npt.NDArray[np.intp] | None = None,
) -> FloatArray:
    """Return ``(S, K)``, the diagonal ``d h'_i / d h_i`` of a step's Jacobian.

    The rest of the Jacobian is never in memory. The cost is a backward step of ``K`` copies of each
    sequence.

    Args:
        stepper: The cell.
        step: Index of the time step.
        synapses: Number of values that the cell computes for each sequence, if it is larger than
            8 times the number of its units.
        units: ``(K,)``, indices of the units; None: all ``H``.
    """
    before = to_mlx(stepper.before(step)).astype(stepper.step(step).dtype)
    batch, width = before.shape
    wanted_units = np.arange(width) if units is None else units
    max_units = max(1, _MAX_NUMBERS // (batch * max(synapses, 8 * width)))
    diagonal = np.empty((batch, len(wanted_units)))
    for start in range(0, len(wanted_units), max_units):
        own = wanted_units[start : start + max_units]
        # Copy i of the batch computes the gradient of unit i.
        copies = mx.concatenate([before] * len(own))
        wanted = np.repeat(np.eye(width, dtype=np.float32)[own], batch, axis=0)
        rows = stepper.state_gradient(step, copies, mx.array(wanted, copies.dtype))
        found = to_numpy(rows).reshape(len(own), batch, width)
        diagonal[:, start : start + len(own)] = found[np.arange(len(own)), :, own].T
    return diagonal
