"""Assign calls to time steps.

The model is run again with another input at the first step, while every cell receives the states of
the run before: then only the arguments of calls for that step change. If a model feeds the output
of a step into the next one, the arguments of all later calls change too, and a run with another
input at the last step decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .model_copy import ModelCopy
from .pytrees import Path, get_leaf, replace_leaf
from .recording import Call, Values, record
from .recurrence import Recurrence

__all__ = ["SEQUENCE_LAYERS", "TimeOrder"]

# Layers that run over a sequence in one call, without a cell.
SEQUENCE_LAYERS = (nn.RNN, nn.GRU, nn.LSTM)


# By path of an argument, the elements that change.
_Changed: TypeAlias = "dict[Path, np.ndarray[Any, np.dtype[np.bool_]]]"


class TimeOrder:
    """Determine the time steps of the calls of one recorded run.

    Args:
        copy: The copy of the model.
        inputs: ``(B, T, F)``.
        run: Runs the copy on inputs.
        calls: All calls of ``run(inputs)``.
        recurrences: Calls of cells among them.
        values: The values of arrays.
    """

    def __init__(
        self,
        copy: ModelCopy,
        inputs: mx.array,
        run: Callable[[mx.array], Any],
        calls: Sequence[Call],
        recurrences: Iterable[Recurrence],
        values: Values,
    ) -> None:
        self._copy, self._inputs, self._run = copy, inputs, run
        self._calls, self._values = calls, values
        self._before = {(call.path, call.number): call for call in calls}
        self._states: dict[tuple[str, int], dict[Path, mx.array]] = {}
        for recurrence in recurrences:
            for call in recurrence.calls:
                states = {p: call.inputs[p] for p in recurrence.in_paths if p in call.inputs}
                self._states.setdefault((call.path, call.number), {}).update(states)
        self._runs: dict[int, dict[int, Call]] = {}

    def is_reverse(
        self, first: Sequence[Call], last: Sequence[Call], states: Sequence[Path] = ()
    ) -> bool | None:
        """Return whether calls run from the last step to the first; None if that is uncertain.

        Args:
            first: The calls of the step that runs first.
            last: The calls of the step that runs last.
            states: Paths of their arguments that are states.
        """
        return self._is_reverse(
            lambda step: (
                self._changed(first, step, states),
                self._changed(last, step, states),
            )
        )

    def is_reversed_sequence(self, call: Call) -> bool | None:
        """Return whether a call that takes all steps runs backwards; None if that is uncertain."""

        def changes_at(step: int) -> tuple[_Changed, _Changed]:
            changes = self._changed([call], step)
            sequences = [place for place in changes if self.is_sequence(call.inputs[place])]
            return (
                {place: changes[place][:, 0] for place in sequences},
                {place: changes[place][:, -1] for place in sequences},
            )

        return self._is_reverse(changes_at)

    def _is_reverse(self, changes_at: Callable[[int], tuple[_Changed, _Changed]]) -> bool | None:
        any_changed = False
        for step in (0, -1):
            if not self._changed_calls(step):
                return None
            at_first, at_last = changes_at(step)
            # By element, as an argument may join a step's input with a value for all steps.
            pairs = [
                (at_first[place], at_last[place])
                for place in at_first.keys() & at_last.keys()
                if at_first[place].shape == at_last[place].shape
            ]
            first_only = any((first & ~last).any() for first, last in pairs)
            last_only = any((last & ~first).any() for first, last in pairs)
            if first_only != last_only:
                return last_only if step == 0 else first_only
            any_changed = any_changed or any(first.any() for first, _ in pairs)
        return None if any_changed else False  # False: a decoder, which receives no step's input

    def is_affected(self, call: Call, step: int, states: Sequence[Path] = ()) -> bool:
        """Return whether the input at ``step`` (0 or -1) changes arguments besides ``states``."""
        return any(changed.any() for changed in self._changed([call], step, states).values())

    def _changed(self, calls: Sequence[Call], step: int, states: Sequence[Path] = ()) -> _Changed:
        """Return the elements of the arguments of calls that another input at ``step`` changes."""
        changes: _Changed = {}
        for call in calls:
            after = self._changed_calls(step).get(id(call))
            for place, array in call.inputs.items():
                other = None if after is None else after.inputs.get(place)
                if other is None or place in states or other.shape != array.shape:
                    continue
                x, y = self._values.of(array), self._values.of(other)
                changed = (x != y) & ~(np.isnan(x) & np.isnan(y))
                known = changes.get(place, changed)
                changes[place] = known | changed if known.shape == changed.shape else changed
        return changes

    def is_sequence(self, array: mx.array) -> bool:
        """Return whether an array is ``(B, T, N)``."""
        return array.ndim == 3 and array.shape[:2] == self._inputs.shape[:2]

    def _changed_calls(self, step: int) -> dict[int, Call]:
        """Return each call's counterpart with another input at ``step``, by id, or nothing."""
        if step not in self._runs:
            self._runs[step] = self._run_changed(step)
        return self._runs[step]

    def _run_changed(self, step: int) -> dict[int, Call]:
        inputs = self._inputs
        here = inputs[:, step][:, None]
        others = np.flatnonzero(np.array(mx.any(inputs != here, axis=(0, 2))))
        if not len(others):
            return {}
        # An input that occurs, as an invented one could be a token that the model lacks.
        first = int(others[0])  # before MLX 0.32 numpy integers are no indices
        other = inputs[:, first : first + 1]
        parts = [other, inputs[:, 1:]] if step == 0 else [inputs[:, :-1], other]
        with self._copy.preserved():
            again, _ = record(
                self._copy.model, lambda: self._run(mx.concatenate(parts, 1)), self._run_call
            )
        if [(c.path, c.number) for c in again] != list(self._before):
            return {}
        return {id(before): after for before, after in zip(self._calls, again, strict=True)}

    def _run_call(
        self, this: Call, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given: Any = (args, kwargs)
        for place, state in self._states.get((this.path, this.number), {}).items():
            if isinstance(get_leaf(given, place), mx.array):
                given = replace_leaf(given, place, state)
        output = call(*given[0], **given[1])
        before = self._before.get((this.path, this.number))
        if before is not None and isinstance(this.module, SEQUENCE_LAYERS):
            return self._without_memory(before, this, output)
        return output

    def _without_memory(self, before: Call, this: Call, output: Any) -> Any:
        """Return a sequence layer's output in which changed inputs affect their own step only."""
        for place, array in this.inputs.items():
            was = before.inputs.get(place)
            if was is None or was.shape != array.shape or not self.is_sequence(array):
                continue
            changed = mx.any(array != was, axis=(0, 2))[None, :, None]
            for out_place, out in before.outputs.items():
                if self.is_sequence(out):
                    new = mx.where(changed, get_leaf(output, out_place), out)
                    output = replace_leaf(output, out_place, new)
        return output
