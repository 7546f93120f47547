"""Check that a reading reproduces the states of its cell."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..cell_stepper import CellStepper
from ..errors import NotApplicable

__all__ = ["checked_steps", "verify"]

# Largest error of a reading, relative to the largest state; float32 needs a tenth of it.
_TOLERANCE = 1e-4
_CHECKED_STEPS = 4


def checked_steps(steps: int) -> npt.NDArray[np.intp]:
    """Return the indices of the few time steps at which a reading is checked."""
    count = min(_CHECKED_STEPS, steps)
    return np.unique(np.linspace(0, steps - 1, count).round().astype(np.intp))


def verify(stepper: CellStepper, error: float, finding: str) -> None:
    """Accept a reading whose error is within rounding in the precision of the state.

    Args:
        stepper: The cell.
        error: Largest difference of the states as a share of the largest state; NaN if no state
            is finite.
        finding: The part of the message that names what doesn't reproduce the states.

    Raises:
        NotApplicable: If the error is larger, or no state is finite.
    """
    name = stepper.hook.name
    if math.isnan(error):
        raise NotApplicable(f"the states of {name} are not finite")
    coarse = {mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}.get(stepper.step(0).dtype, 0.0)
    if error > max(_TOLERANCE, 8 * coarse):
        raise NotApplicable(
            f"{name} has the parameters of {finding} (they differ by {error:.1e} of the largest "
            "state)"
        )
