"""Verify which call belongs to which time step, by changing time steps and outputs of calls.

While every cell receives the states of the unchanged run, another input at a time step changes the
arguments of the calls that read it, and no others. If this doesn't determine the order, because a
model feeds outputs back or a decoder reads no inputs, the calls return what they returned before;
and another output of a call shows to which output step the call belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..model_copy import ModelCopy
from ..pytrees import Path, get_leaf, leaves, replace_leaf
from ..recording import Call
from ..recurrence import Recurrence
from ..time_order import Fit, Mask, Steps, asked_steps, fit_order
from .perturb import Rerun, Trial, moved, with_other_steps

__all__ = ["SEQUENCE_LAYERS", "Readings"]

# Layers that run over a sequence in one call, without a cell.
SEQUENCE_LAYERS = (nn.RNN, nn.GRU, nn.LSTM)

_Number = tuple[str, int]


class Readings:
    """Find out which calls of a model read which time steps.

    Args:
        copy: The copy of the model.
        trial: Sequences of different lengths, if the batch has some.
        calls: The calls of a run over the first sequences, in which recurrences were found.
        first: These sequences, which are used if the trial makes other calls.
        recurrences: The recurrences.
    """

    def __init__(
        self,
        copy: ModelCopy,
        trial: Trial,
        calls: Sequence[Call],
        first: Trial,
        recurrences: Iterable[Recurrence],
    ) -> None:
        rerun = Rerun(copy, first, calls)
        if trial is not first:
            other = Rerun(copy, trial)
            rerun = other if other.numbers == rerun.numbers else rerun
        self.rerun = rerun
        self.mask = rerun.trial.mask
        self.asked: Steps = asked_steps(self.mask)
        self._before = dict(zip(rerun.numbers, rerun.calls, strict=True))
        self._states: dict[_Number, dict[Path, mx.array]] = {}
        for recurrence in recurrences:
            for call in recurrence.calls:
                given = self._before[call.path, call.number].inputs
                states = {path: given[path] for path in recurrence.in_paths if path in given}
                self._states.setdefault((call.path, call.number), {}).update(states)
        self._inputs: list[tuple[mx.array, Mask]] | None = None
        self._found: dict[frozenset[_Number], list[dict[_Number, Call] | None]] = {}

    @property
    def inputs_change(self) -> bool:
        """Return whether the time steps asked about could be changed."""
        return any(changed.any() for _, changed in self._changed_inputs())

    # ---- fits

    def hits(self, calls: Sequence[Call], states: Sequence[Path], *, alone: bool) -> Mask:
        """Return ``(P, B, N)``, true where call ``n`` reads the time step asked about.

        Args:
            calls: ``N`` calls of one module.
            states: Paths of their arguments that are states.
            alone: True to let all the calls return what they returned in the unchanged run, so that
                they don't notice a time step through one another.
        """
        numbers = [(call.path, call.number) for call in calls]
        return self._hits(numbers, states, self._runs(frozenset(numbers if alone else ())))

    def fit_sequence(self, call: Call, axis: int) -> Fit | None:
        """Return the order of a call that takes all time steps, from its arguments or its output.

        Args:
            call: The call.
            axis: The batch axis of its sequences; 0 or 1.
        """
        number = (call.path, call.number)
        found = self._fit_of_sequence(number, axis, lambda call: call.inputs)
        if found is None:
            found = self._fit_of_sequence(number, axis, lambda call: call.outputs)
        return found

    def _fit_of_sequence(
        self, number: _Number, axis: int, arrays: Callable[[Call], dict[Path, mx.array]]
    ) -> Fit | None:
        batch, total = self.mask.shape
        shape = (batch, total) if axis == 0 else (total, batch)
        before = arrays(self._before[number])
        hits = np.zeros((len(self.asked), batch, total), bool)
        for p, run in enumerate(self._runs(frozenset())):
            found = []
            for path, array in before.items():
                other = None if run is None else arrays(run[number]).get(path)
                if other is None or array.shape != other.shape or array.shape[:2] != shape:
                    continue
                changes = moved(array, other).reshape(*shape, -1)
                found.append(changes if axis == 1 else changes.swapaxes(0, 1))
            if found:
                hits[p] = _localised(np.concatenate(found, axis=2))
        return fit_order(self.asked, hits & self._changed()[..., None], self.mask)

    def fit_outputs(self, calls: Sequence[Call]) -> Fit | None:
        """Return the order in which calls change the model's outputs, or None.

        Args:
            calls: ``T`` calls of one module.
        """
        outputs, mask = self.rerun.outputs, self.mask
        if outputs.ndim != 3 or tuple(outputs.shape[:2]) != mask.shape:
            return None
        numbers = [(call.path, call.number) for call in calls]
        everywhere = asked_steps(np.ones_like(mask))
        hits = np.zeros((len(everywhere), *mask.shape), bool)
        for p, at in enumerate(everywhere[:, 0].tolist()):
            other = self._before[numbers[at - 1 if at else 1]]
            found = self.rerun(None, self._run_call(frozenset(numbers), {numbers[at]: other}))
            if found is not None:
                hits[p] = moved(outputs, found[1]).any(axis=2)
        fit = fit_order(everywhere, hits, mask)
        return fit if fit is not None and fit.shift == 0 else None

    # ---- runs

    def _changed_inputs(self) -> list[tuple[mx.array, Mask]]:
        if self._inputs is None:
            inputs = self.rerun.trial.inputs
            self._inputs = [with_other_steps(inputs, steps, self.mask) for steps in self.asked]
        return self._inputs

    def _changed(self) -> Mask:
        return np.stack([changed for _, changed in self._changed_inputs()])

    def _runs(self, held: frozenset[_Number]) -> list[dict[_Number, Call] | None]:
        """Return the calls with another input at each time step asked about.

        Args:
            held: Calls that return what they returned in the unchanged run.
        """
        if held not in self._found:
            self._found[held] = []
            for inputs, changed in self._changed_inputs():
                found = self.rerun(inputs, self._run_call(held, {})) if changed.any() else None
                calls = None if found is None else dict(zip(self._before, found[0], strict=True))
                self._found[held].append(calls)
        return self._found[held]

    def _run_call(
        self, held: frozenset[_Number], changed: dict[_Number, Call]
    ) -> Callable[[Call, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]:
        def run_call(
            this: Call, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            number = (this.path, this.number)
            given: Any = (args, kwargs)
            for place, state in self._states.get(number, {}).items():
                if isinstance(get_leaf(given, place), mx.array):
                    given = replace_leaf(given, place, state)
            output = call(*given[0], **given[1])
            before = self._before.get(number)
            if before is None:
                return output
            if number in held:
                was = changed.get(number, before).outputs
                for place, _ in list(leaves(output)):
                    if place in was:
                        output = replace_leaf(output, place, was[place])
            elif isinstance(this.module, SEQUENCE_LAYERS):
                return self._without_memory(before, this, output)
            return output

        return run_call

    def _without_memory(self, before: Call, this: Call, output: Any) -> Any:
        """Return a sequence layer's output in which changed inputs affect their own step only."""
        for place, array in this.inputs.items():
            was = before.inputs.get(place)
            if was is None or was.shape != array.shape or array.ndim != 3:
                continue
            changed = mx.any(array != was, axis=2, keepdims=True)
            for out_place, out in before.outputs.items():
                if out.ndim == 3 and out.shape[:2] == array.shape[:2]:
                    new = mx.where(changed, get_leaf(output, out_place), out)
                    output = replace_leaf(output, out_place, new)
        return output

    # ---- which calls read a time step

    def _hits(
        self,
        numbers: Sequence[_Number],
        states: Sequence[Path],
        runs: Sequence[dict[_Number, Call] | None],
    ) -> Mask:
        batch = len(self.mask)
        hits = np.zeros((len(self.asked), batch, len(numbers)), bool)
        before = [self._before[number].inputs for number in numbers]
        places = [
            place
            for place, array in before[-1].items()
            if place not in states
            and all(place in given and given[place].shape == array.shape for given in before)
        ]
        for p, run in enumerate(runs):
            if run is None:
                continue
            after = [run[number].inputs for number in numbers]
            found = [
                np.stack(
                    [
                        _by_sequence(moved(a[place], b[place]), batch)
                        for a, b in zip(before, after, strict=True)
                    ]
                )
                for place in places
                if all(
                    place in b and b[place].shape == a[place].shape
                    for a, b in zip(before, after, strict=True)
                )
            ]
            if found:
                hits[p] = _localised(np.concatenate(found, axis=2))
        return hits & self._changed()[..., None]


def _by_sequence(changes: Mask, batch: int) -> Mask:
    """Return ``(B, E)``; changes that belong to no sequence are those of every sequence."""
    axis = next((i for i, size in enumerate(changes.shape) if size == batch), None)
    if axis is None:
        return np.broadcast_to(changes.reshape(1, -1), (batch, changes.size))
    return np.moveaxis(changes, axis, 0).reshape(batch, -1)


def _localised(changes: Mask) -> Mask:
    """Return ``(B, N)`` from ``(N, B, E)``: the calls in which an element moves.

    Of the elements, those count that move in the fewest calls, as an argument may join a step's
    input with a value for all steps, or with an output that was fed back.
    """
    count = changes.sum(axis=0)
    fewest = np.where(count > 0, count, len(changes) + 1).min(axis=1, keepdims=True)
    calls: Mask = (changes & (count == fewest)[None]).any(axis=2).T
    return calls
