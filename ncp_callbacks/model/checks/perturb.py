"""Change one thing, run the copy of the model again, and see which elements of an array move.

The replacements occur elsewhere in the batch, since a model may take columns for indices, and an
invented value could be one that it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...arrays import to_mlx, to_numpy
from ...signal_handlers import raised_by_signal_handler
from ..model_copy import ModelCopy
from ..recording import Call, RunCall, record
from ..time_order import Mask, Steps

__all__ = ["Rerun", "Trial", "change", "codes", "moved", "with_other_steps"]


@dataclass(frozen=True, eq=False)
class Trial:
    """Hold a few sequences and how the copy is run on them.

    Attributes:
        inputs: ``(B, T, F)``.
        run: Runs the copy on inputs, and returns its outputs.
        mask: ``(B, T)``, true at real time steps.
        reordered: Returns the trial of the same sequences in another order, given their indices.
    """

    inputs: mx.array
    run: Callable[[mx.array], mx.array]
    mask: Mask
    reordered: Callable[[Steps], Trial]


class Rerun:
    """Run a trial again, with other inputs or with calls that return something else.

    Args:
        copy: The copy of the model.
        trial: The sequences.
        calls: The calls of a run that was recorded; None: it is recorded now.

    Attributes:
        calls: The calls of the unchanged run.
    """

    def __init__(self, copy: ModelCopy, trial: Trial, calls: Sequence[Call] | None = None) -> None:
        self._copy, self.trial = copy, trial
        self._outputs: mx.array | None = None
        if calls is None:
            calls, self._outputs = self._record(trial.inputs, None)
        self.calls = list(calls)
        self.numbers = [(call.path, call.number) for call in self.calls]

    @property
    def outputs(self) -> mx.array:
        """Return the outputs of the unchanged run."""
        if self._outputs is None:
            with self._copy.preserved():
                self._outputs = self.trial.run(self.trial.inputs)
                mx.eval(self._outputs)
        return self._outputs

    def __call__(
        self, inputs: mx.array | None = None, run_call: RunCall | None = None
    ) -> tuple[list[Call], mx.array] | None:
        """Return the calls and the outputs of a changed run; None if it fails or makes other calls.

        Args:
            inputs: ``(B, T, F)``; None: unchanged.
            run_call: Runs each call instead of the module, see :func:`~..recording.record`.
        """
        try:
            calls, outputs = self._record(self.trial.inputs if inputs is None else inputs, run_call)
        except Exception as error:  # a model may refuse inputs that it can't have
            if raised_by_signal_handler(error):
                raise
            return None
        same = [(call.path, call.number) for call in calls] == self.numbers
        return (calls, outputs) if same else None

    def of(self, trial: Trial) -> Rerun | None:
        """Return the run of another trial; None if it fails or makes other calls."""
        try:
            found = Rerun(self._copy, trial)
        except Exception as error:  # a model may run certain numbers of sequences only
            if raised_by_signal_handler(error):
                raise
            return None
        return found if found.numbers == self.numbers else None

    def _record(self, inputs: mx.array, run_call: RunCall | None) -> tuple[list[Call], mx.array]:
        found: list[mx.array] = []
        with self._copy.preserved():  # each run starts from the same random state
            calls, _ = record(
                self._copy.model, lambda: found.append(self.trial.run(inputs)), run_call
            )
            mx.eval(found[-1])
        return calls, found[-1]


def moved(before: mx.array, after: mx.array) -> Mask:
    """Return the elements that differ between two arrays of one shape; NaN equals NaN."""
    return _differ(to_numpy(before), to_numpy(after))


def change(before: mx.array, after: mx.array) -> npt.NDArray[np.floating[Any]]:
    """Return by how much each element of two arrays of one shape differs; NaN equals NaN."""
    x, y = to_numpy(before), to_numpy(after)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(x - y, dtype=np.float64)
    return np.where(_differ(x, y), np.nan_to_num(size, nan=np.inf), 0.0)


def _differ(x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]]) -> Mask:
    differ: Mask = (x != y) & ~(np.isnan(x) & np.isnan(y))
    return differ


def codes(count: int) -> Mask:
    """Return ``(K, count)``, sets of sequences of which no two sequences are in the same ones.

    Sequence ``i`` is in set ``k`` if bit ``k`` of ``i + 1`` is set, so that ``K`` is the logarithm
    of the number of sequences, and each sequence is in a set.
    """
    bits = max(1, int(count).bit_length())
    sets: Mask = (np.arange(1, count + 1)[None] >> np.arange(bits)[:, None]) % 2 == 1
    return sets


def with_other_steps(
    array: mx.array, steps: Steps, which: Mask, real: Mask | None = None
) -> tuple[mx.array, Mask]:
    """Replace one time step of some sequences by another one, of themselves or else of the batch.

    Args:
        array: ``(B, T, ...)``: inputs or elapsed times.
        steps: ``(B,)``, the time step to replace in each sequence.
        which: ``(B,)``, the sequences in which to replace it.
        real: ``(B, T)``, true at real time steps, from which replacements are taken; None: all are.

    Returns:
        The changed array, and ``(B,)``, true at sequences that differ now. If all time steps of the
        batch are equal, none does.
    """
    batch, total = array.shape[:2]
    flat = to_numpy(array).reshape(batch * total, -1)
    usable = np.ones(batch * total, bool) if real is None else real.ravel()
    source = np.arange(batch * total)
    for i in np.flatnonzero(which).tolist():
        here = i * total + int(steps[i])
        differing = np.flatnonzero((flat != flat[here]).any(axis=1) & usable)
        if len(differing):
            own = differing[differing // total == i]
            source[here] = own[0] if len(own) else differing[0]
    changed = (source != np.arange(batch * total)).reshape(batch, total).any(axis=1)
    rows: Any = array.reshape(batch * total, *array.shape[2:])[to_mlx(source)]
    return rows.reshape(array.shape), changed
