"""Find the recurrent cells of a model, and their backbone layers, in a recorded pass.

Names and classes of an unknown model are no evidence, so a forward pass of two sequences is
recorded, call by call. A cell is a module that is called once or more per time step and passes a
state on: an array that one call returns is an argument of the next, or changes it. Its backbone
consists of the hidden layers inside it, between one layer with weights and another. Of a model that
takes frames, the layers before the first cell belong to the backbone, too. What was found is
verified by the modules of ``checks``; what can't be verified is skipped, with the reason.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .backbone import activation_of, layer_hooks
from .checks.holds_state import STATELESS, StateCheck
from .checks.perturb import Rerun, Trial
from .checks.recurrence import find_changed_recurrences
from .checks.rows import Rows
from .checks.time_order import SEQUENCE_LAYERS, Readings, Way
from .errors import ModelError, count_of
from .front_end import FrontEnd
from .hook_points import CellHook, HookPoints, LayerHook, reasons, unknown_rows
from .model_copy import ModelCopy
from .pytrees import Path, leaves, modules
from .recording import Call, Values, record
from .recurrence import Recurrence, find_recurrences, may_hold_states, outermost
from .time_order import Fit, Mask, Order, Steps, fit_order

__all__ = ["find_hook_points"]

_NO_LAYERS = (
    "no backbone was found: no hidden layer inside the recurrent cell. To analyse other layers, "
    "pass their paths as layers=[...]"
)
_LET_THE_CELL = (
    "Let the cell be a module that takes its state as an argument and returns the next one, called "
    "once per step"
)
# Sequences on which hook points are verified: those that three sets tell apart.
_MAX_SEQUENCES = 7
# Recorded arrays of these sequences, in about as many runs as are kept.
_MAX_BYTES, _RUNS_KEPT = 256 << 20, 5
# Names of modules in one message.
_MAX_NAMES = 4
# Modules that are tried for a state when no cell was found.
_MAX_TRIED = 8


@dataclass(frozen=True, eq=False)
class _Part:
    """Hold the calls of a module that run once over the time steps.

    Attributes:
        ends: The last call of each time step, see :attr:`CellHook.calls`; a time step may consist
            of several calls, such as the sub-steps of a solver.
        first: The first call.
        order: The order in which they run; None if it is unknown.
        note: What the user should know, or "".
    """

    ends: Sequence[Call]
    first: Call
    order: Order | None
    note: str = ""


@dataclass(frozen=True)
class _Place:
    """Hold where an array has its sequences and time steps, see :class:`CellHook`, or why not."""

    axis: int = 0
    order: Order = Order.FORWARD
    wrong: str = ""
    rows: tuple[int, ...] = ()
    turned: bool = False


def find_hook_points(
    copy: ModelCopy,
    first: Trial,
    spread: Callable[[int], Trial],
    *,
    cells: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    frames: bool = False,
    forecast: bool = False,
) -> HookPoints:
    """Record a run of the copy, and find cells and backbone layers in it.

    Args:
        copy: The copy of the model.
        first: The first sequences of the batch, on which they are found.
        spread: Returns a number of sequences spread over the batch, on which they are verified.
        cells: Paths or globs of modules to take as cells; None: found automatically.
        layers: Paths or globs of modules whose outputs to take as backbone layers; None: found
            automatically.
        frames: True if inputs are frames, whose layers before the cells are backbone layers too.
        forecast: True if axis 1 of the outputs holds the steps of a forecast.

    Raises:
        ModelError: If a pattern matches no module that was called, or a module that it matches
            returns no states or activations.
    """
    finder = _Finder(copy, first, spread, forecast=forecast)
    found = finder.cells() if cells is None else finder.named_cells(cells)
    if layers is not None:
        found_layers = finder.named_layers(layers)
    else:
        before = finder.front_end(found) if frames else []
        found_layers = [*before, *finder.layers()]
    found = [finder.verified_cell(hook) for hook in found]
    found_layers = [finder.verified_layer(hook) for hook in found_layers]
    no_cells = reasons(found) if found else finder.reason_for_no_cell()
    if cells is None and found:
        finder.notes += finder.of_fewer_calls()
    no_layers = reasons(found_layers) if found_layers else _NO_LAYERS
    for cell in found:
        finder.notes += [cell.skipped] if cell.skipped else finder.about.get(cell.name, [])
    finder.notes += [layer.skipped for layer in found_layers if layer.skipped]
    return HookPoints(
        tuple(found), tuple(found_layers), tuple(dict.fromkeys(finder.notes)), no_cells, no_layers
    )


class _Finder:
    """Record one pass of a model and find cells and layers in it."""

    def __init__(
        self, copy: ModelCopy, first: Trial, spread: Callable[[int], Trial], *, forecast: bool
    ) -> None:
        self.copy, self.first, self.forecast = copy, first, forecast
        self.batch, self.steps, _ = first.inputs.shape
        self.values = Values()
        self.notes: list[str] = []
        self.about: dict[str, list[str]] = {}  # notes by the name of the cell
        with copy.preserved():  # each run starts from the same random state
            self.calls, hidden = record(copy.model, lambda: first.run(first.inputs))
            self.paths = [path for path, _ in modules(copy.model)]
        if hidden:
            self.notes.append(
                f"{_listed(hidden)} can't be analysed: called inside mx.vmap, where arrays have no "
                "values"
            )
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
        self._parts: dict[int, list[_Part]] = {}
        self._unread: set[str] = set()  # paths of modules that get nothing of the inputs

    def _sequences_tried(self) -> int:
        """Return on how many sequences hook points are verified, so that their arrays stay few."""
        arrays = (a for c in self.calls for a in (*c.inputs.values(), *c.outputs.values()))
        recorded = sum({id(a): a.nbytes for a in arrays}.values()) / self.batch
        return min(_MAX_SEQUENCES, int(_MAX_BYTES / (_RUNS_KEPT * max(1.0, recorded))))

    # ---- time

    def _parts_of(self, recurrence: Recurrence) -> list[_Part]:
        """Return the parts of a recurrence, which may run over the sequence repeatedly."""
        if id(recurrence) not in self._parts:
            self._parts[id(recurrence)] = self._split(recurrence.calls, recurrence.in_paths)
        return self._parts[id(recurrence)]

    def _split(self, calls: Sequence[Call], states: Sequence[Path] = ()) -> list[_Part]:
        """Split calls of one module into runs over the time steps, in verified orders."""
        found: list[_Part] = []
        for way in Way:
            asked, hits = self.readings.hits(calls, states, way)
            found = self._parts_by_input(calls, asked, hits)
            # Calls that read no time step, or only one, read no more if they return what they did.
            if found or (way is Way.TOGETHER and hits.any(axis=(1, 2)).sum() < 2):
                break
        if not found:
            if not hits.any():
                self._unread.add(calls[0].name)
            each = len(calls) // self.steps
            whole = len(calls) % self.steps == 0
            ends = calls[each - 1 :: each] if whole else calls[: self.steps]
            found = [_Part(ends, calls[0], None)]
        return [part if part.order else self._by_output(part) for part in found]

    def _parts_by_input(self, calls: Sequence[Call], asked: Steps, hits: Mask) -> list[_Part]:
        steps, mask = self.steps, self.readings.mask
        each = len(calls) // steps
        if len(calls) % steps == 0:
            fits = [
                fit_order(asked, hits[..., i * steps : (i + 1) * steps], mask) for i in range(each)
            ]
            if each > 1:  # a run among others that begins with its first time step
                fits = [fit if fit is not None and not fit.shift else None for fit in fits]
            if not any(fits) and each > 1:
                by_step = np.any(hits.reshape(*hits.shape[:2], steps, each), axis=3)
                fit = fit_order(asked, np.asarray(by_step), mask)
                if fit is not None and not fit.shift:
                    return [_part(calls[each - 1 :: each], calls[0], fit)]
            if any(fits):
                series = [calls[i : i + steps] for i in range(0, len(calls), steps)]
                return [
                    _Part(part, part[0], None) if fit is None else _part(part, part[0], fit)
                    for part, fit in zip(series, fits, strict=True)
                ]
        fit = fit_order(asked, hits, mask, whole=True)
        if fit is None:
            return []
        part = calls[fit.shift : fit.shift + steps]
        note = (
            f"of the {len(calls)} calls of {part[0].name}, only those that read the {steps} time "
            "steps are analysed"
        )
        return [dataclasses.replace(_part(part, part[0], Fit(fit.order, 0)), note=note)]

    def _by_output(self, part: _Part) -> _Part:
        """Return a part with the order in which its calls change the outputs, if that is known."""
        fit = self.readings.fit_outputs(part.ends) if part.first is part.ends[0] else None
        if fit is None or (self.forecast and not self.readings.mask.all()):
            return part  # the padding of the inputs is none of a forecast
        to = (
            "step of the forecast that it changes, counted as time steps are"
            if self.forecast
            else "time step of the output that it changes"
        )
        note = (
            f"the inputs don't tell which call of {part.first.name} belongs to which time step: "
            f"the states of each are assigned to the {to}"
        )
        found = _part(part.ends, part.first, fit)
        return dataclasses.replace(found, note=note if self.readings.inputs_change else "")

    def _unknown_order(self, name: str) -> str:
        unknown = f"{name} is skipped: its direction can't be determined, because"
        if not self.readings.inputs_change:
            return f"{unknown} all inputs are equal. Pass sequences that differ"
        if name.split("#")[0] in self._unread:
            return (
                f"{unknown} nothing that it receives changes with the inputs, as where no spike "
                "reaches it, or a decoder is given zeros. Pass other modules as cells=[...]"
            )
        return (
            f"{unknown} the inputs that each call reads follow none of the orders that are known. "
            "Pass the mask of sequences of different lengths; or pass the time steps in the order "
            "in which the model runs over them, and put the inputs back in forward="
        )

    # ---- cells

    def cells(self) -> list[CellHook]:
        kept = outermost(self.recurrences, self.values)
        hook_points = [s for key in kept for s in self._recurrence_hooks(kept[key])]
        inside = {
            id(c) for found in kept.values() for recurrence in found for c in recurrence.calls
        }
        for key, calls in self.by_module.items():
            if (
                isinstance(calls[0].module, SEQUENCE_LAYERS)
                and key not in self.recurrences
                and calls[0].within(inside) is None
            ):
                hook_points += self._sequence_hooks(calls)
        return sorted(hook_points, key=lambda s: self.rank[s.module])

    @functools.cached_property
    def shorter(self) -> list[tuple[str, int, int]]:
        """Return the names of cells of fewer calls than time steps, and both numbers."""
        inside = {id(c) for listed in self.recurrences.values() for r in listed for c in r.calls}
        found = []
        for calls in self.by_module.values():
            # A block that is applied repeatedly takes one argument.
            if len(calls) >= self.steps or len(calls[0].inputs) < 2:
                continue
            if calls[0].within(inside) is not None:
                continue
            if find_recurrences(calls, self.values, self.batch, self.steps, least=len(calls)):
                inside |= {id(call) for call in calls}
                found.append((calls[0].name, len(calls), self.steps))
        return found

    def of_fewer_calls(self) -> list[str]:
        """Return a note on each cell of fewer calls than time steps."""
        mask = self.readings.mask
        longest = self.steps - int(mask[:, ::-1].any(axis=0).argmax())
        return [_of_fewer_calls(found, longest) for found in self.shorter]

    def _recurrence_hooks(self, recurrences: Sequence[Recurrence]) -> list[CellHook]:
        listed = [(r, part) for r in recurrences for part in self._parts_of(r)]
        names = _numbered(recurrences[0].calls[0].name, len(listed))
        hook_points = []
        for name, (recurrence, part) in zip(names, listed, strict=True):
            notes = self.about.setdefault(name, [part.note] if part.note else [])
            if recurrence.altered:
                notes.append(
                    f"the states of {name} are those that it returns: between its calls the model "
                    "overwrites some of them, as masks do"
                )
            if recurrence.between:
                notes.append(
                    f"the states of {name} are those that it returns: the model changes them "
                    "before the next call"
                    + ("" if recurrence.in_paths else ", or joins them with other values")
                )
            hook_points.append(
                CellHook(
                    name=name,
                    module=recurrence.calls[0].path,
                    out_paths=recurrence.out_paths,
                    in_paths=recurrence.in_paths,
                    calls=tuple(call.number for call in part.ends),
                    first=part.first.number,
                    calls_in_all=len(self.by_module[recurrence.calls[0].path]),
                    order=part.order or Order.FORWARD,
                    between=recurrence.between,
                    skipped="" if part.order else self._unknown_order(name),
                )
            )
        return hook_points

    def _sequence_hooks(self, calls: Sequence[Call]) -> list[CellHook]:
        """Return hooks of a layer whose every call returns the states of all steps."""
        hook_points = []
        for name, call in zip(_numbered(calls[0].name, len(calls)), calls, strict=True):
            places = [
                place
                for place, array in call.outputs.items()
                if self.is_sequence(array) and mx.issubdtype(array.dtype, mx.floating)
            ]
            if not places:
                return []
            hook_points.append(
                CellHook(
                    name=name,
                    module=call.path,
                    out_paths=tuple(places),
                    in_paths=(),
                    calls=(call.number,),
                    first=call.number,
                    calls_in_all=len(calls),
                    whole_sequence=True,
                )
            )
        return hook_points

    def is_sequence(self, array: mx.array) -> bool:
        """Return whether an array is ``(B, T, N)`` or ``(T, B, N)``."""
        shapes = ((self.batch, self.steps), (self.steps, self.batch))
        return array.ndim == 3 and tuple(array.shape[:2]) in shapes

    # ---- verified

    def verified_cell(self, hook: CellHook) -> CellHook:
        """Return a hook with verified batch axes and time order, or with the reason to skip it."""
        found = [self._verified(hook, path) for path in hook.out_paths]
        wrong = next((place.wrong for place in found if place.wrong), "")
        if wrong:
            return dataclasses.replace(hook, skipped=wrong)
        axes, rows = tuple(place.axis for place in found), found[0].rows
        if any(place.rows != rows for place in found):
            wrong = unknown_rows(hook, "its arrays hold the sequences in different orders")
            return dataclasses.replace(hook, skipped=wrong)
        return dataclasses.replace(
            hook, axes=axes, rows=rows, order=found[0].order, turned=found[0].turned
        )

    def verified_layer(self, hook: LayerHook) -> LayerHook:
        """Return a hook with a verified batch axis and time order, or the reason to skip it."""
        found = self._verified(hook, hook.path)
        if found.wrong:
            return dataclasses.replace(hook, skipped=found.wrong)
        return dataclasses.replace(hook, axis=found.axis, rows=found.rows, order=found.order)

    def _verified(self, hook: CellHook | LayerHook, path: Path) -> _Place:
        """Return the batch axis and the order of a hook's arrays, or why they are unknown."""
        numbers = set(hook.calls)
        at_input = isinstance(hook, LayerHook) and hook.at_input
        flat = isinstance(hook, LayerHook) and hook.flat

        def read(calls: Sequence[Call]) -> list[mx.array] | None:
            own = [c for c in calls if c.path == hook.module and c.number in numbers]
            listed = [(c.inputs if at_input else c.outputs).get(path) for c in own]
            arrays = [array for array in listed if array is not None]
            return arrays if len(arrays) == len(numbers) else None

        if not hook.whole_sequence:
            placed = self.rows.placed(read)
            if placed.wrong:
                return _Place(wrong=unknown_rows(hook, placed.wrong))
            return _Place(placed.axis, hook.order, hook.skipped, placed.rows)
        reasons = []
        for axis, shape in enumerate((self.readings.mask.shape, self.readings.mask.shape[::-1])):

            def read_sequences(
                calls: Sequence[Call], shape: tuple[int, ...] = shape
            ) -> list[mx.array] | None:
                arrays = read(calls)
                if arrays is None or not flat:
                    return arrays
                if any(len(a) != math.prod(shape) for a in arrays):
                    return None
                return [a.reshape(*shape, -1) for a in arrays]

            placed = self.rows.placed(read_sequences, only=axis)
            if placed.wrong:
                reasons.append(unknown_rows(hook, placed.wrong))
                continue
            fit = self.readings.fit_sequence(self.by_module[hook.module][hook.calls[0]], axis)
            if fit is not None:
                turned = isinstance(hook, CellHook) and self._is_turned(hook, axis, fit.order)
                return _Place(axis, fit.order, rows=placed.rows, turned=turned)
            reasons.append(self._unknown_order(hook.name))
        return _Place(wrong=reasons[0])

    def _is_turned(self, hook: CellHook, axis: int, order: Order) -> bool:
        """Return whether a layer runs against the order in which it returns the time steps.

        A layer that runs in both directions doesn't, and is noted.
        """
        call = self.by_module[hook.module][hook.calls[0]]
        earlier, later = self.readings.reads_beyond(call, axis, order)
        if later and earlier:
            self.about.setdefault(hook.name, []).append(
                f"what {hook.name} returns at a time step depends on the time steps after it, too: "
                "its units, or some of them, run in the other direction. Make a module of each "
                "direction to tell them apart"
            )
        return later and not earlier

    def named_cells(self, patterns: Sequence[str]) -> list[CellHook]:
        hook_points: list[CellHook] = []
        for calls in self._with_states(patterns):
            if calls[0].path in self.recurrences:
                hook_points += self._recurrence_hooks(self.recurrences[calls[0].path])
                continue
            whole = self._sequence_hooks(calls)
            hook_points += whole or self._hooks_without_recurrence(calls, patterns)
        return hook_points

    def _with_states(self, patterns: Sequence[str]) -> list[list[Call]]:
        """Return the calls of the modules that patterns match and that hold states.

        Raises:
            ModelError: If a module that is named itself holds none, or none that a glob matches.
        """
        found, faults = [], {}
        for calls in self._matching(patterns, "cells"):
            path = calls[0].path
            if path not in self.recurrences and not isinstance(calls[0].module, SEQUENCE_LAYERS):
                holds, fault = self.holds_state(calls)
                if holds is False or calls[0].name in self.added:
                    faults[calls[0].name] = fault
                    if path in patterns:
                        break
                    continue
            found.append(calls)
        else:
            if found:
                return found
        name, fault = next(reversed(faults.items()))
        known = [calls[0].name for key, calls in self.by_module.items() if key in self.recurrences]
        fix = (
            f"pass cells={known!r}, which do, or don't pass cells="
            if known
            else "pass the module that takes a state as an argument and returns the next one"
        )
        if name in self.added:
            fix = _part_of_state([name])
        because = "; ".join(filter(None, (fault, fix)))
        raise ModelError(f"cells={list(patterns)}: {name} holds no state: {because}")

    def _hooks_without_recurrence(
        self, calls: Sequence[Call], patterns: Sequence[str]
    ) -> list[CellHook]:
        first = calls[0]
        places = [
            place
            for place, array in first.outputs.items()
            if mx.issubdtype(array.dtype, mx.floating) and may_hold_states(array, self.batch)
        ]
        if len(calls) % self.steps or not places:
            raise ModelError(
                f"cells={list(patterns)}: {first.name} was called {len(calls)} times for "
                f"{self.steps} steps and returned {_shapes(first)}: pass the path of a module that "
                f"returns (batch, units) once per step, or (batch, {self.steps}, units)"
            )
        parts = self._split(calls)
        return [
            CellHook(
                name=name,
                module=first.path,
                out_paths=(places[-1],),
                in_paths=(),
                calls=tuple(call.number for call in part.ends),
                first=part.first.number,
                calls_in_all=len(calls),
                order=part.order or Order.FORWARD,
                skipped="" if part.order else self._unknown_order(name),
            )
            for name, part in zip(_numbered(first.name, len(parts)), parts, strict=True)
        ]

    def _matching(self, patterns: Sequence[str], what: str) -> list[list[Call]]:
        found: dict[str, list[Call]] = {}
        for pattern in patterns:
            paths = [p for p in self.paths if fnmatch.fnmatchcase(p, pattern)]
            if not paths:
                raise ModelError(
                    f"{what}: {pattern!r} matches no module; the model has "
                    + ", ".join(p for p in self.paths if p)
                )
            called = [self.by_module.get(p) for p in paths]
            if not any(called):
                raise ModelError(
                    f"{what}: {pattern!r} matches only modules that were never called; called were "
                    + ", ".join(dict.fromkeys(c.name for c in self.calls))
                )
            found.update({calls[0].path: calls for calls in called if calls})
        return sorted(found.values(), key=lambda calls: self.rank[calls[0].path])

    def reason_for_no_cell(self) -> str:
        reason = "no recurrent cell was found: "
        if self.steps < 2:
            return reason + "the sequences have one time step"
        if self.added:
            return f"{reason}{_part_of_state(self.added)}. {_LET_THE_CELL}"
        if self.shorter:
            return reason + "; ".join(self.of_fewer_calls())
        reason += "no module is called once per time step with a state that it passes on"
        seen = [calls for calls in self.by_module.values() if calls[0].outputs]
        repeated = [calls for calls in seen if len(calls) > 1]
        once_a_step = [c for c in repeated if len(c) % self.steps == 0]
        other = [f"{c[0].name} {len(c)} times" for c in repeated if len(c) % self.steps]
        # Only what keeps a state: the output of another module is none.
        holding = [c[0].name for c in once_a_step[:_MAX_TRIED] if self.holds_state(c)[0]]
        packed = [c[0].name for c in once_a_step if self._takes_fewer(c)]
        if packed:
            return (
                f"{reason}. {_listed(packed)} takes fewer sequences in some calls than in others, "
                "as packed sequences do: let it take all of them in each call, and keep the states "
                "of those that have ended by mx.where"
            )
        if holding:
            return (
                f"{reason}. {_listed(holding)} keeps a state between calls: pass "
                f"cells={holding[-1]!r} to take what it returns for its states"
            )
        other_axis = [
            f"{c[0].name} runs over {given.shape[-2]} steps, not over the {self.steps} time steps"
            for c in seen
            if isinstance(c[0].module, SEQUENCE_LAYERS)
            for given in list(c[0].inputs.values())[:1]
            if given.ndim > 1 and given.shape[-2] != self.steps
        ]
        if other_axis:
            return (
                f"{reason}. {'; '.join(other_axis[:_MAX_NAMES])}. If inputs are (batch, features, "
                "time steps), pass inputs.swapaxes(1, 2) and forward=lambda model, inputs, "
                "time_delta: model(inputs.swapaxes(1, 2))"
            )
        over_all = self._over_the_sequence(seen)
        if once_a_step:
            names = [calls[0].name for calls in once_a_step]
            reason += f"; called once per step are {_listed(names)}, but they pass nothing on"
        elif other:
            reason += f"; called repeatedly are {_listed(other)}, for {self.steps} steps"
        if over_all:
            reason += (
                f"; {_listed(over_all)} may be a layer that runs over the whole sequence: if what "
                "it returns at each time step is its state, pass its path as cells=[path]"
            )
        return f"{reason}. {_LET_THE_CELL}"

    def _over_the_sequence(self, seen: Sequence[Sequence[Call]]) -> list[str]:
        """Return the innermost modules that run over the whole sequence in one call."""
        whole = [
            calls
            for calls in seen
            if calls[0].parent is not None
            and not isinstance(calls[0].module, STATELESS)
            and any(any(leaves(dict(m))) for _, m in modules(calls[0].module))
            and any(map(self.is_sequence, calls[0].outputs.values()))
        ]
        found: dict[int, str] = {}
        for calls in whole[: -_MAX_TRIED - 1 : -1]:  # a module is called before those inside it
            inside = any(id(call) in found for call in calls[0].descendants())
            if not inside and len(calls) == 1 and self.holds_state.runs_over(calls[0]):
                found[id(calls[0])] = calls[0].name
        return list(found.values())[::-1]

    @staticmethod
    def _takes_fewer(calls: Sequence[Call]) -> bool:
        """Return whether the arrays that calls take and return differ in the number of rows."""
        if len(calls[0].inputs) < 2:
            return False
        rows = [{a.shape[0] for a in call.inputs.values() if a.ndim > 1} for call in calls]
        return all(len(found) == 1 for found in rows) and len(set.union(*rows)) > 1

    # ---- layers

    @functools.cached_property
    def front(self) -> FrontEnd:
        return FrontEnd(self.copy, self.first.inputs, self.first.run, self.calls, self.values)

    def front_end(self, cells: Sequence[CellHook]) -> list[LayerHook]:
        """Return hooks of the layers that turn frames into the inputs of the first cell."""
        calls = [
            call
            for hook in cells
            for number in {hook.first, *hook.calls}
            for call in [self.by_module[hook.module][number]]
        ]
        if not calls:
            return []
        place = {id(call): number for number, call in enumerate(self.calls)}
        first = min(calls, key=lambda call: place[id(call)])
        inside = [call for hook in cells for call in self.by_module[hook.module]]
        hook_points, notes = self.front.layers(first, inside)
        self.notes += notes
        return _numbered_hooks([self._in_own_order(hook) for hook in hook_points])

    def _in_own_order(self, hook: LayerHook) -> LayerHook:
        """Return a hook of a call for each time step in the order in which they read their inputs.

        Sequences of different lengths may have other orders than the first ones.
        """
        if hook.whole_sequence:
            return hook
        parts = self._split([self.by_module[hook.module][number] for number in sorted(hook.calls)])
        if len(parts) != 1 or parts[0].order is None:
            return hook
        calls = tuple(call.number for call in parts[0].ends)
        return dataclasses.replace(hook, calls=calls, order=parts[0].order)

    def layers(self) -> list[LayerHook]:
        cell_calls = [
            c
            for found in self.recurrences.values()
            for recurrence in found
            for c in recurrence.calls
        ]
        hook_points: list[LayerHook] = []
        for recurrences in self.recurrences.values():
            found = [
                self._in_order(hook, part)
                for recurrence in recurrences
                for part in self._parts_of(recurrence)
                for hook in layer_hooks(part.ends, cell_calls, self.by_module, self.values)
            ]
            hook_points += _numbered_hooks(found)
        return sorted(hook_points, key=lambda s: self.rank.get(s.name.split("#")[0], 0))

    def _in_order(self, hook: LayerHook, part: _Part) -> LayerHook:
        if part.order is None:
            return dataclasses.replace(hook, skipped=self._unknown_order(hook.name))
        return dataclasses.replace(hook, order=part.order)

    def named_layers(self, patterns: Sequence[str]) -> list[LayerHook]:
        hook_points: list[LayerHook] = []
        for calls in self._matching(patterns, "layers"):
            first = calls[0]
            place, array = next(iter(first.outputs.items()), ((), None))
            if array is None:
                raise ModelError(f"layers: {first.name} returned no array")
            whole = self.is_sequence(array)
            flat = array.ndim == 2 and len(array) == self.batch * self.steps
            if not whole and array.ndim > 2 and len(calls) in (1, self.steps):
                of_frames = self.front.named(calls, place)
                if of_frames is not None:
                    hook_points.append(of_frames)
                    continue
            whole = whole or flat
            groups = [([call], None) for call in calls] if whole else self._by_step(calls)
            if not groups or not (whole or array.ndim == 2):
                raise ModelError(
                    f"layers: {first.name} was called {len(calls)} times for {self.steps} steps "
                    f"and returned {_shapes(first)}; expected (batch, units) once per step or "
                    f"(batch, {self.steps}, units)"
                )
            hook_points += _numbered_hooks(
                [
                    hook if part is None else self._in_order(hook, part)
                    for group, part in groups
                    for hook in [
                        LayerHook(
                            name=first.name,
                            module=first.path,
                            path=place,
                            at_input=False,
                            activation=activation_of(group, self.values),
                            calls=tuple(call.number for call in group),
                            calls_in_all=len(calls),
                            whole_sequence=whole,
                            flat=flat,
                        )
                    ]
                ]
            )
        return hook_points

    def _by_step(self, calls: Sequence[Call]) -> list[tuple[list[Call], _Part | None]]:
        """Return one call for each step, for each part of a recurrence around the calls.

        The list is empty if there isn't one call for each step.
        """
        groups: dict[tuple[int, ...], tuple[list[Call], _Part | None]] = {}
        for recurrences in self.recurrences.values():
            for part in (part for r in recurrences for part in self._parts_of(r)):
                ids = {id(end) for end in part.ends}
                last = {id(call.within(ids)): call for call in calls}
                if all(id(end) in last for end in part.ends):
                    group = [last[id(end)] for end in part.ends]
                    groups.setdefault(tuple(map(id, group)), (group, part))
        if groups or len(calls) % self.steps:
            return list(groups.values())
        return [(list(part.ends), part) for part in self._split(calls)]


def _part(calls: Sequence[Call], first: Call, fit: Fit) -> _Part:
    """Return a part whose calls run in a known order."""
    ends = calls[::-1] if fit.order is Order.BACKWARD else calls
    note = ""
    if fit.shift:
        when = "after" if fit.shift > 0 else "before"
        calls_away = count_of(abs(fit.shift), "call")
        note = (
            f"{first.name} reads the input of each time step {calls_away} {when} the call of that "
            "time step, to which its states are assigned"
        )
    return _Part(ends, first, fit.order, note)


def _numbered_hooks(hook_points: Sequence[LayerHook]) -> list[LayerHook]:
    """Return the hooks with a number after names that occur repeatedly."""
    names = [hook.name for hook in hook_points]
    numbers = {name: iter(_numbered(name, names.count(name))) for name in names}
    return [dataclasses.replace(hook, name=next(numbers[hook.name])) for hook in hook_points]


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}#{i + 1}" for i in range(count)]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES])
    return shown if len(names) <= _MAX_NAMES else f"{shown} and {len(names) - _MAX_NAMES} more"


def _of_fewer_calls(found: tuple[str, int, int], longest: int) -> str:
    name, count, steps = found
    fix = "call it once for each time step if it runs over these"
    if count == longest:
        fix = (
            f"no sequence has more than {count_of(longest, 'real time step')}, so pass a held-out "
            "batch without the padding that follows"
        )
    return (
        f"{name} passes a state on, but is called {count_of(count, 'time')} for {steps} time "
        f"steps, so its states belong to no time steps and are skipped: {fix}"
    )


def _part_of_state(names: Sequence[str]) -> str:
    return (
        f"{_listed(names)} returns a part of a state only, which the model adds to the state "
        "outside of any module, as residual connections and zoneout do. Put this sum into the "
        "module, so that it returns the new state"
    )


def _shapes(call: Call) -> str:
    shapes = [str(tuple(array.shape)) for array in call.outputs.values()]
    return " and ".join(shapes) or "no array"
