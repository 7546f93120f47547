"""Which calls belong to which time step.

The model is run again with another input at the first step, and every cell given the states of the
run before: only calls for that step notice. Where a model feeds what a step gave into the next one,
all later calls notice as well; then another input at the last step tells.
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

# They run over a sequence by themselves, and have no cell.
SEQUENCE_LAYERS = (nn.RNN, nn.GRU, nn.LSTM)


# By argument, which of its elements notice.
_Noticing: TypeAlias = "dict[Path, np.ndarray[Any, np.dtype[np.bool_]]]"


class TimeOrder:
    """Tells it for the calls of one recorded run.

    Args:
        calls: All calls of ``run(inputs)``.
        recurrences: Calls of cells among them.
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
        """Whether calls run from the last step to the first; None where that can't be told.

        Args:
            first, last: The first and the last ones.
            states: Which of their arguments are states.
        """
        return self._is_reverse(
            lambda step: (
                self._noticing(first, step, states),
                self._noticing(last, step, states),
            )
        )

    def is_reversed_sequence(self, call: Call) -> bool | None:
        """The same for a call that takes all steps at once."""

        def notice(step: int) -> tuple[_Noticing, _Noticing]:
            noticing = self._noticing([call], step)
            sequences = [place for place in noticing if self.is_sequence(call.inputs[place])]
            return (
                {place: noticing[place][:, 0] for place in sequences},
                {place: noticing[place][:, -1] for place in sequences},
            )

        return self._is_reverse(notice)

    def _is_reverse(self, notice: Callable[[int], tuple[_Noticing, _Noticing]]) -> bool | None:
        seen = False
        for step in (0, -1):
            if not self._again(step):
                return None
            at_first, at_last = notice(step)
            # By element: beside a step's input there may be something that all steps are given.
            pairs = [
                (at_first[place], at_last[place])
                for place in at_first.keys() & at_last.keys()
                if at_first[place].shape == at_last[place].shape
            ]
            first_only = any((first & ~last).any() for first, last in pairs)
            last_only = any((last & ~first).any() for first, last in pairs)
            if first_only != last_only:
                return last_only if step == 0 else first_only
            seen = seen or any(first.any() for first, _ in pairs)
        return None if seen else False  # False: a decoder, which is given no step's input

    def notices(self, call: Call, step: int, states: Sequence[Path] = ()) -> bool:
        """Whether the input at ``step`` (0 or -1) reaches ``call`` other than as its state."""
        return any(changed.any() for changed in self._noticing([call], step, states).values())

    def _noticing(self, calls: Sequence[Call], step: int, states: Sequence[Path] = ()) -> _Noticing:
        """Which elements of which arguments of calls for one step."""
        noticing: _Noticing = {}
        for call in calls:
            after = self._again(step).get(id(call))
            for place, array in call.inputs.items():
                other = None if after is None else after.inputs.get(place)
                if other is None or place in states or other.shape != array.shape:
                    continue
                x, y = self._values.of(array), self._values.of(other)
                changed = (x != y) & ~(np.isnan(x) & np.isnan(y))
                known = noticing.get(place, changed)
                noticing[place] = known | changed if known.shape == changed.shape else changed
        return noticing

    def is_sequence(self, array: mx.array) -> bool:
        """Whether it is ``(B, T, N)``."""
        return array.ndim == 3 and array.shape[:2] == self._inputs.shape[:2]

    def _again(self, step: int) -> dict[int, Call]:
        """By call, its counterpart with another input at ``step``; empty where there is none."""
        if step not in self._runs:
            self._runs[step] = self._run_again(step)
        return self._runs[step]

    def _run_again(self, step: int) -> dict[int, Call]:
        inputs = self._inputs
        here = inputs[:, step][:, None]
        others = np.flatnonzero(np.array(mx.any(inputs != here, axis=(0, 2))))
        if not len(others):
            return {}
        # A value that occurs: one made up could be an index that the model doesn't have.
        first = int(others[0])  # before MLX 0.32 no number of numpy is an index
        other = inputs[:, first : first + 1]
        parts = [other, inputs[:, 1:]] if step == 0 else [inputs[:, :-1], other]
        with self._copy.preserved():
            again, _ = record(
                self._copy.model, lambda: self._run(mx.concatenate(parts, 1)), self._held
            )
        if [(c.path, c.number) for c in again] != list(self._before):
            return {}
        return {id(before): after for before, after in zip(self._calls, again, strict=True)}

    def _held(
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
        """What a layer over the whole sequence returns where other steps' inputs don't matter."""
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
