"""Run a model on some of the time steps of its sequences."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .errors import ModelError, NotApplicable
from .runner import ModelRunner
from .target import Target

__all__ = ["of_one_length_only", "with_time_steps"]


def with_time_steps(
    runner: ModelRunner, steps: npt.NDArray[np.intp], mask: npt.NDArray[np.bool_]
) -> ModelRunner:
    """Return a runner of the same sequences at some of their time steps.

    Args:
        runner: The model and the batch.
        steps: ``(B, n)``, indices of time steps.
        mask: ``(B, n)``, true at real time steps, of which each sequence has one.

    Raises:
        NotApplicable: The target is not that of the last time step, or other inputs or the targets
            belong to time steps in an unknown way.
    """
    held_out, calling = runner.held_out, runner.calling
    target, at = runner._wanted
    total = held_out.inputs_shape[1]
    if calling.per_step and (callable(target) or at != "last"):
        raise NotApplicable(
            "the target is not that of the last time step, so it isn't comparable in shorter "
            "sequences: set at='last' and a target that is not a function"
        )
    along_time = [
        name
        for name, array in held_out.arrays.items()
        if name not in ("inputs", "time_delta") and array.ndim > 1 and array.shape[1] == total
    ]
    if along_time:
        raise NotApplicable(
            f"{along_time[0]} seems to have one value for each time step, and it is unknown how to "
            "shorten it: concatenate it with the inputs"
        )

    part = copy.copy(runner)
    part.held_out = held_out.shortened(steps, mask, with_targets=calling.per_step)
    if calling.time_shape is not None:
        calling = replace(calling, time_shape=(steps.shape[1], *calling.time_shape[1:]))
    part.calling = calling
    part.target = Target(target, at, part.held_out, calling)
    if part.embedding is not None:
        part.find_embedding_of_length()
    return part


@contextmanager
def of_one_length_only(steps: int) -> Iterator[None]:
    """Explain the error of a model that can't run sequences of another length.

    Raises:
        NotApplicable: In place of that error.
    """
    try:
        yield
    except (MemoryError, NotApplicable):
        raise
    except (ModelError, ValueError, TypeError, IndexError, KeyError) as error:
        raise NotApplicable(
            f"the model doesn't run sequences of {steps} time steps, other than those of the "
            f"held-out batch ({type(error).__name__}: {error})"
        ) from error
