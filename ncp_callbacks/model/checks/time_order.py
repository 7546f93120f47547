"""Verify which call belongs to which time step, by changing time steps and outputs of calls.

While every cell receives the states of the unchanged run, another input at a time step changes the
arguments of the calls that read it, and no others. A few runs, in each of which some sequences have
another input at time steps of their own, are enough for most models, and show to which sequences
rows belong, too. If they don't determine the order, all sequences have another input at one time
step; then the calls return what they returned before, as a model may feed outputs back; then
another output of a call shows to which output step the call belongs. Last, if each call reads all
time steps, the call that a time step changes most is its own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..model_copy import ModelCopy
from ..pytrees import Path, get_leaf, leaves, replace_leaf
from ..recording import Call
from ..recurrence import Recurrence
from ..time_order import Fit, Mask, Order, Steps, asked_steps, calls_of_steps, fit_order
from .perturb import Rerun, Trial, change, codes, moved, with_other_steps
from .rows import sequences_of_rows

__all__ = ["SEQUENCE_LAYERS", "Readings", "Way"]

# Layers that run over a sequence in one call, without a cell.
SEQUENCE_LAYERS = (nn.RNN, nn.GRU, nn.LSTM)

_Number = tuple[str, int]
_Changes: TypeAlias = "npt.NDArray[np.floating[Any]]"


class Way(enum.Enum):
    """List the ways to ask which calls read a time step, from cheap to thorough."""

    MIXED = "some sequences at a time, at different time steps"
    TOGETHER = "all sequences at one time step"
    ALONE = "all sequences, while the calls asked about return what they did"
    LARGEST_MIXED = "as mixed, for the calls that a time step changes most"
    LARGEST_TOGETHER = "as together, for the calls that a time step changes most"

    @property
    def is_mixed(self) -> bool:
        """Return whether sequences are changed at different time steps."""
        return self in (Way.MIXED, Way.LARGEST_MIXED)

    @property
    def is_largest(self) -> bool:
        """Return whether only the calls count that change most."""
        return self in (Way.LARGEST_MIXED, Way.LARGEST_TOGETHER)


@dataclass(eq=False)
class _Questions:
    """Hold time steps to ask about, and the inputs in which they are changed.

    Attributes:
        asked: ``(P, B)``, time steps.
        inputs: The ``P`` changed inputs.
        changed: ``(P, B)``, true at sequences that differ.
        runs: Calls of runs by their number, by the calls that return what they did.
    """

    asked: Steps
    inputs: list[mx.array]
    changed: Mask
    runs: dict[frozenset[_Number], dict[int, dict[_Number, Call] | None]] = field(
        default_factory=dict
    )


class Readings:
    """Find out which calls of a model read which time steps.

    Args:
        copy: The copy of the model.
        trial: Sequences of different lengths, if the batch has some.
        calls: The calls of a run over the first sequences, in which recurrences were found.
        first: These sequences, which are used if the trial fails or makes other calls.
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
        self.rerun = rerun = Rerun(copy, first, calls)
        if trial is not first:
            self.rerun = rerun = rerun.of(trial) or rerun
        self.mask = rerun.trial.mask
        self._before = dict(zip(rerun.numbers, rerun.calls, strict=True))
        self._states: dict[_Number, dict[Path, mx.array]] = {}
        for recurrence in recurrences:
            for call in recurrence.calls:
                given = self._before[call.path, call.number].inputs
                states = {path: given[path] for path in recurrence.in_paths if path in given}
                self._states.setdefault((call.path, call.number), {}).update(states)
        self._questions: dict[bool, _Questions] = {}
        # The sequences in the rows of arguments, by the calls.
        self._rows: dict[tuple[_Number, ...], tuple[int, ...]] = {}

    @property
    def inputs_change(self) -> bool:
        """Return whether the time steps asked about could be changed."""
        return bool(self._asked(Way.MIXED).changed.any())

    @property
    def sets(self) -> tuple[Mask, list[list[Call]]]:
        """Return ``(K, B)``, sets of sequences whose inputs were changed, and the ``K`` runs."""
        questions = self._asked(Way.MIXED)
        runs = self._runs(questions, frozenset())
        kept = [i for i, run in enumerate(runs) if run is not None]
        return questions.changed[kept], [list(run.values()) for run in runs if run is not None]

    # ---- fits

    def hits(self, calls: Sequence[Call], states: Sequence[Path], way: Way) -> tuple[Steps, Mask]:
        """Return time steps ``(P, B)``, and ``(P, B, N)``, true where call ``n`` reads them.

        Args:
            calls: ``N`` calls of one module.
            states: Paths of their arguments that are states.
            way: How to ask.
        """
        numbers = [(call.path, call.number) for call in calls]
        questions = self._asked(way)
        held = frozenset(numbers if way is Way.ALONE else ())
        hits = np.zeros((*questions.asked.shape, len(numbers)), bool)
        # The middle one first: every call may read the first time step, or the last, for another
        # reason. If it moves all calls, as where inputs are standardised over time, so do others,
        # which need no runs.
        middle = len(hits) // 2
        for p in (middle, *(p for p in range(len(hits)) if p != middle)):
            run = self._run(questions, held, p)
            if run is not None:
                chosen = _largest if way.is_largest else _localised
                hits[p] = self._read_by(numbers, states, run, chosen)
            if way in (Way.TOGETHER, Way.ALONE) and hits[middle].all():
                hits[:] = True
                break
        return questions.asked, self._of_changed(hits, numbers, questions)

    def _of_changed(self, hits: Mask, numbers: Sequence[_Number], questions: _Questions) -> Mask:
        """Return the hits ``(P, B, N)`` of changed sequences, from those by row.

        A model may run the sequences in another order, which the mixed runs show.
        """
        if questions is self._asked(Way.MIXED):
            moves: Mask = np.asarray(hits.any(axis=2))
            self._rows[tuple(numbers)] = sequences_of_rows(moves, questions.changed)
        rows = self._rows.get(tuple(numbers), ())
        own = hits[:, np.argsort(rows)] if rows else hits
        changed: Mask = own & questions.changed[..., None]
        return changed

    def fit_sequence(self, call: Call, axis: int) -> Fit | None:
        """Return the order in which a call returns all time steps, or None.

        It is that of its arguments, or of its output, if the value at each time step moves with the
        input of this time step. A layer may turn its arguments round inside.

        Args:
            call: The call.
            axis: The batch axis of its sequences; 0 or 1.
        """
        number = (call.path, call.number)
        for way in (Way.MIXED, Way.TOGETHER, Way.LARGEST_MIXED, Way.LARGEST_TOGETHER):
            questions = self._asked(way)
            chosen = _largest if way.is_largest else _localised
            moved_places = self._moved_places(number, axis, _outputs, questions, _anywhere)
            for arrays in (_inputs, _outputs):
                hits = self._moved_places(number, axis, arrays, questions, chosen)
                found = fit_order(questions.asked, hits, self.mask, exact=way.is_largest)
                if found is not None:
                    return self._returned(found, moved_places, questions.asked)
        return None

    def reads_beyond(self, call: Call, axis: int, order: Order) -> tuple[bool, bool]:
        """Return whether values of a call move with earlier, and with later places of its inputs.

        What its arguments do already doesn't count.

        Args:
            call: The call.
            axis: The batch axis of its sequences; 0 or 1.
            order: The order in which it returns the time steps.
        """
        questions = self._asked(Way.MIXED)
        given, returned = (
            self._moved_places((call.path, call.number), axis, arrays, questions, _anywhere)
            for arrays in (_inputs, _outputs)
        )
        sequences = np.arange(len(self.mask))[None]
        at = {o: calls_of_steps(o, self.mask)[sequences, questions.asked] for o in Order}
        places = np.stack(list(at.values()))
        (first, last), (first_given, last_given) = map(_ends, (returned, given))
        # How far from its own place a time step moves something; a layer may turn its arguments.
        later = at[order] - first > (places - first_given).max(axis=0)
        earlier = last - at[order] > (last_given - places).max(axis=0)
        known = returned.any(axis=2)
        return bool((earlier & known).any()), bool((later & known).any())

    def _returned(self, found: Fit, moved_places: Mask, asked: Steps) -> Fit | None:
        """Return the order of values, given that of arguments; None if neither it nor another fits.

        Args:
            found: The order of the arguments.
            moved_places: ``(P, B, T)``, true where values move with a time step asked about.
            asked: ``(P, B)``, the time steps.
        """
        known = moved_places.any(axis=2)
        sequences = np.arange(len(self.mask))[None]
        for order in dict.fromkeys((found.order, *Order)):
            at = calls_of_steps(order, self.mask)[sequences, asked] + found.shift
            used = known & (at >= 0) & (at < self.mask.shape[1])
            own = np.take_along_axis(moved_places, (at * used)[..., None], axis=2)[..., 0]
            if own[used].all():
                return Fit(order, found.shift)
        return None

    def _moved_places(
        self,
        number: _Number,
        axis: int,
        arrays: Callable[[Call], dict[Path, mx.array]],
        questions: _Questions,
        chosen: Callable[[_Changes], Mask],
    ) -> Mask:
        """Return ``(P, B, T)``, the places along a call's arrays that move with the time steps.

        Args:
            number: The call.
            axis: The batch axis of its sequences.
            arrays: Returns the arrays of a call.
            questions: The time steps asked about.
            chosen: Turns ``(T, B, E)``, the changes of elements, into ``(B, T)``.
        """
        batch, total = self.mask.shape
        shape = (batch, total) if axis == 0 else (total, batch)
        before = arrays(self._before[number])
        hits = np.zeros((len(questions.asked), batch, total), bool)
        for p, run in enumerate(self._runs(questions, frozenset())):
            found = []
            for path, array in before.items():
                other = None if run is None else arrays(run[number]).get(path)
                if other is None or array.shape != other.shape:
                    continue
                if array.shape[:2] != shape and array.shape[:1] != (batch * total,):
                    continue
                changes = change(array, other).reshape(*shape, -1)
                found.append(changes if axis == 1 else changes.swapaxes(0, 1))
            if found:
                hits[p] = chosen(np.concatenate(found, axis=2))
        return self._of_changed(hits, [number], questions)

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

    def _asked(self, way: Way) -> _Questions:
        mixed = way.is_mixed
        if mixed not in self._questions:
            inputs, mask = self.rerun.trial.inputs, self.mask
            asked = asked_steps(mask)
            which = np.ones(asked.shape, bool)
            if mixed:
                which = codes(len(mask))
                sets, sequences = np.indices(which.shape)
                asked = asked[(sequences + 2 * sets) % len(asked), sequences]
            found = [
                with_other_steps(inputs, steps, some, mask)
                for steps, some in zip(asked, which, strict=True)
            ]
            changed = np.stack([differ for _, differ in found])
            self._questions[mixed] = _Questions(asked, [other for other, _ in found], changed)
        return self._questions[mixed]

    def _runs(
        self, questions: _Questions, held: frozenset[_Number]
    ) -> list[dict[_Number, Call] | None]:
        """Return the calls of each run, see :meth:`_run`."""
        return [self._run(questions, held, p) for p in range(len(questions.inputs))]

    def _run(
        self, questions: _Questions, held: frozenset[_Number], which: int
    ) -> dict[_Number, Call] | None:
        """Return the calls of a run; None for one that changes nothing, or makes other calls.

        Args:
            questions: The changed inputs.
            held: Calls that return what they returned in the unchanged run.
            which: The number of the changed inputs.
        """
        runs = questions.runs.setdefault(held, {})
        if which not in runs:
            changes = questions.changed[which].any()
            run_call = self._run_call(held, {})
            found = self.rerun(questions.inputs[which], run_call) if changes else None
            runs[which] = None if found is None else dict(zip(self._before, found[0], strict=True))
        return runs[which]

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

    def _read_by(
        self,
        numbers: Sequence[_Number],
        states: Sequence[Path],
        run: dict[_Number, Call],
        chosen: Callable[[_Changes], Mask],
    ) -> Mask:
        """Return ``(B, N)``, true where the arguments of call ``n`` moved for a sequence.

        If none moves at all, outputs count: cells that embed tokens receive tokens, which stay.
        """
        for arrays in (_inputs, _outputs):
            pairs = [(arrays(self._before[number]), arrays(run[number])) for number in numbers]
            last = pairs[-1][0]
            found = [
                np.stack(
                    [_by_sequence(change(a[place], b[place]), len(self.mask)) for a, b in pairs]
                )
                for place, array in last.items()
                if (arrays is _outputs or place not in states)
                and all(
                    place in given and given[place].shape == array.shape
                    for pair in pairs
                    for given in pair
                )
            ]
            if any(changes.any() for changes in found):
                return chosen(np.concatenate(found, axis=2))
        return np.zeros((len(self.mask), len(numbers)), bool)


def _inputs(call: Call) -> dict[Path, mx.array]:
    return call.inputs


def _outputs(call: Call) -> dict[Path, mx.array]:
    return call.outputs


def _ends(moved_places: Mask) -> tuple[Steps, Steps]:
    """Return ``(P, B)``, the first and the last of the places ``(P, B, T)`` that move."""
    return moved_places.argmax(axis=2), (
        moved_places.shape[2] - 1 - moved_places[..., ::-1].argmax(axis=2)
    )


def _by_sequence(changes: _Changes, batch: int) -> _Changes:
    """Return ``(B, E)``; changes that belong to no sequence are those of every sequence."""
    axis = next((i for i, size in enumerate(changes.shape) if size == batch), None)
    if axis is None:
        return np.broadcast_to(changes.reshape(1, -1), (batch, changes.size))
    return np.moveaxis(changes, axis, 0).reshape(batch, -1)


def _anywhere(changes: _Changes) -> Mask:
    """Return ``(B, N)`` from ``(N, B, E)``: the calls in which any element moves."""
    return np.asarray(changes.any(axis=2).T)


def _largest(changes: _Changes) -> Mask:
    """Return ``(B, N)`` from ``(N, B, E)``: the calls that change by more than half of the most.

    Where sequences are standardised over time, or a layer attends to all time steps, each call
    reads all of them, and its own one most.
    """
    sizes = np.sqrt((changes**2).sum(axis=2)).T
    return np.asarray(sizes > sizes.max(axis=1, keepdims=True) / 2)


def _localised(changes: _Changes) -> Mask:
    """Return ``(B, N)`` from ``(N, B, E)``: the calls in which an element moves.

    Elements that move in at most half of the calls count if there are some, as an argument may join
    a step's input with a value for all steps, or with an output that was fed back.
    """
    moves = changes > 0
    count = moves.sum(axis=0)
    few = (count > 0) & (count <= max(1, len(changes) // 2))
    some = few | ~few.any(axis=1, keepdims=True)
    calls: Mask = (moves & some[None]).any(axis=2).T
    return calls
