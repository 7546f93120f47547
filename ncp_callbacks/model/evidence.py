"""Record a run of a model call by call, and find the recurrences in it."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from .checks.holds_state import StateCheck
from .checks.perturb import Rerun, Trial
from .checks.recurrence import find_changed_recurrences
from .checks.rows import Rows
from .checks.time_order import Readings
from .model_copy import ModelCopy
from .pytrees import modules
from .recording import Call, Values, record
from .recurrence import find_recurrences

__all__ = ["MAX_SEQUENCES", "Evidence"]

# Sequences on which hook points are verified: those that three sets tell apart.
MAX_SEQUENCES = 7
# Recorded arrays of these sequences, in about as many runs as are kept.
_MAX_BYTES, _RUNS_KEPT = 256 << 20, 5


class Evidence:
    """Hold a recorded run, and answer from other runs what belongs to which step and sequence.

    Args:
        copy: The copy of the model.
        first: The first sequences of the batch, which are recorded.
        spread: Returns a number of sequences spread over the batch, on which hook points are
            verified.

    Attributes:
        batch: Number of recorded sequences.
        steps: Number of time steps.
        values: The values of arrays.
        calls: The calls in the order in which they began.
        hidden: Names of modules whose calls can't be recorded.
        paths: Paths of all modules.
        by_module: The calls by the path of the module.
        rank: The place of each called module in the order of first calls.
        recurrences: The recurrences by the path of the module.
        added: Names of modules that return a part of a state only.
        holds_state: Tells if a module keeps a state between its calls.
        readings: Tells which calls read which time steps.
        rows: Tells which row of an array belongs to which sequence.
    """

    def __init__(self, copy: ModelCopy, first: Trial, spread: Callable[[int], Trial]) -> None:
        self.batch, self.steps, _ = first.inputs.shape
        self.values = Values()
        with copy.preserved():  # each run starts from the same random state
            self.calls, self.hidden = record(copy.model, lambda: first.run(first.inputs))
            self.paths = [path for path, _ in modules(copy.model)]
        self.holds_state = StateCheck(copy, lambda: first.run(first.inputs), self.batch, self.steps)
        self.by_module: dict[str, list[Call]] = {}
        for call in self.calls:
            self.by_module.setdefault(call.path, []).append(call)
        self.rank = {path: number for number, path in enumerate(self.by_module)}
        found = {
            key: find_recurrences(calls, self.values, self.batch, self.steps)
            for key, calls in self.by_module.items()
        }
        self.recurrences = {key: listed for key, listed in found.items() if listed}
        self.added: list[str] = []
        if self.steps > 1:
            changed, self.added = find_changed_recurrences(
                Rerun(copy, first, self.calls),
                self.by_module,
                self.recurrences,
                self.values,
            )
            self.recurrences |= changed
        recurrences = [part for listed in self.recurrences.values() for part in listed]
        count = self._sequences_tried()
        trial = spread(count) if count > self.batch else first
        self.readings = Readings(copy, trial, self.calls, first, recurrences)
        self.rows = Rows(self.readings.rerun, *self.readings.sets)

    def _sequences_tried(self) -> int:
        """Return on how many sequences hook points are verified, so that their arrays stay few."""
        arrays = (a for c in self.calls for a in (*c.inputs.values(), *c.outputs.values()))
        recorded = sum({id(a): a.nbytes for a in arrays}.values()) / self.batch
        return min(MAX_SEQUENCES, int(_MAX_BYTES / (_RUNS_KEPT * max(1.0, recorded))))

    def is_sequence(self, array: mx.array) -> bool:
        """Return whether an array is ``(B, T, N)`` or ``(T, B, N)``."""
        shapes = ((self.batch, self.steps), (self.steps, self.batch))
        return array.ndim == 3 and tuple(array.shape[:2]) in shapes
