"""Find the recurrent cells of a model, and their backbone layers, in a recorded pass.

Names and classes of an unknown model are no evidence, so a forward pass of two sequences is
recorded, call by call. A cell is a module that is called once or more per time step and passes a
state on: an array that one call returns is an argument of the next. Its backbone consists of the
hidden layers inside it, between one layer with weights and another. Of a model that takes frames,
the layers before the first cell belong to the backbone, too.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .backbone import activation_of, layer_hooks
from .checks.holds_state import StateCheck
from .errors import ModelError
from .front_end import FrontEnd
from .hook_points import CellHook, HookPoints, LayerHook
from .model_copy import ModelCopy
from .pytrees import Path, modules
from .recording import Call, Values, record
from .recurrence import Recurrence, find_recurrences, outermost
from .time_order import SEQUENCE_LAYERS, TimeOrder

__all__ = ["find_hook_points"]

_NO_LAYERS = (
    "no backbone was found: no hidden layer inside the recurrent cell. To analyse other layers, "
    "pass their paths as layers=[...]"
)
# Names of modules in one message.
_MAX_NAMES = 4
# Modules that are tried for a state when no cell was found.
_MAX_TRIED = 8


def find_hook_points(
    copy: ModelCopy,
    inputs: mx.array,
    run: Callable[[mx.array], Any],
    *,
    cells: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    frames: bool = False,
) -> HookPoints:
    """Record ``run(inputs)`` and find cells and backbone layers in it.

    Args:
        copy: The copy of the model.
        inputs: ``(B, T, F)``.
        run: Runs the copy on inputs.
        cells: Paths or globs of modules to take as cells; None: found automatically.
        layers: Paths or globs of modules whose outputs to take as backbone layers; None: found
            automatically.
        frames: True if inputs are frames, whose layers before the cells are backbone layers too.

    Raises:
        ModelError: If a pattern matches no module that was called, or a module that it matches
            returns no states or activations.
    """
    finder = _Finder(copy, inputs, run)
    found = finder.cells() if cells is None else finder.named_cells(cells)
    if layers is not None:
        found_layers = finder.named_layers(layers)
    else:
        before = finder.front_end(found) if frames else []
        found_layers = [*before, *finder.layers()]
    return HookPoints(
        tuple(found),
        tuple(found_layers),
        tuple(dict.fromkeys(finder.notes)),
        "" if found else finder.reason_for_no_cell(),
        "" if found_layers else _NO_LAYERS,
    )


class _Finder:
    """Record one pass of a model and find cells and layers in it."""

    def __init__(self, copy: ModelCopy, inputs: mx.array, run: Callable[[mx.array], Any]) -> None:
        self.copy, self.inputs, self.run = copy, inputs, run
        self.batch, self.steps, _ = inputs.shape
        self.values = Values()
        self.notes: list[str] = []
        with copy.preserved():  # each run starts from the same random state
            self.calls, hidden = record(copy.model, lambda: run(self.inputs))
            self.paths = [path for path, _ in modules(copy.model)]
        if hidden:
            self.notes.append(
                f"{_listed(hidden)} can't be analysed: called inside mx.vmap, where arrays have no "
                "values"
            )
        self.holds_state = StateCheck(copy, lambda: run(self.inputs), self.batch, self.steps)
        self.by_module: dict[str, list[Call]] = {}
        for call in self.calls:
            self.by_module.setdefault(call.path, []).append(call)
        self.rank = {path: number for number, path in enumerate(self.by_module)}
        found = {
            key: find_recurrences(calls, self.values, self.batch, self.steps)
            for key, calls in self.by_module.items()
        }
        recurrences = [recurrence for listed in found.values() for recurrence in listed]
        self.time_order = TimeOrder(copy, self.inputs, run, self.calls, recurrences, self.values)
        self.recurrences = {
            key: [part for recurrence in recurrences for part in self._split_repeats(recurrence)]
            for key, recurrences in found.items()
            if recurrences
        }

    # ---- time

    def _split_repeats(self, recurrence: Recurrence) -> list[Recurrence]:
        """Split a recurrence that runs over the sequence repeatedly with one state."""
        steps = self.steps
        again = len(recurrence.calls) > steps and self.time_order.is_affected(
            recurrence.calls[steps], 0, recurrence.in_paths
        )
        if not again or self.time_order.is_affected(recurrence.calls[1], 0, recurrence.in_paths):
            return [recurrence]
        return [
            Recurrence(
                recurrence.calls[i : i + steps],
                recurrence.out_paths,
                recurrence.in_paths,
                recurrence.altered,
            )
            for i in range(0, len(recurrence.calls), steps)
        ]

    def _last_calls(
        self, name: str, calls: Sequence[Call], states: Sequence[Path] = ()
    ) -> tuple[list[Call], bool]:
        """Return the last call of each step, in order of time, and whether they ran backwards.

        A step may consist of several calls, such as the sub-steps of a solver.
        """
        each = len(calls) // self.steps
        steps = [calls[i : i + each] for i in range(0, len(calls), each)]
        ends = [step[-1] for step in steps]
        reverse = self._known_direction(
            name, self.time_order.is_reverse(steps[0], steps[-1], states)
        )
        return ends[::-1] if reverse else ends, reverse

    def _known_direction(self, name: str, reverse: bool | None) -> bool:
        if reverse is None:
            self.notes.append(
                f"{name} is taken to run forwards in time: its direction can't be determined, "
                "because the input at one step reaches all its steps, or all inputs are equal"
            )
        return bool(reverse)

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

    def _recurrence_hooks(self, recurrences: Sequence[Recurrence]) -> list[CellHook]:
        hook_points = []
        for name, recurrence in zip(
            _numbered(recurrences[0].calls[0].name, len(recurrences)), recurrences, strict=True
        ):
            ends, reverse = self._last_calls(name, recurrence.calls, recurrence.in_paths)
            if recurrence.altered:
                self.notes.append(
                    f"the states of {name} are those that it returns: between its calls the model "
                    "overwrites some of them, as masks do"
                )
            hook_points.append(
                CellHook(
                    name=name,
                    module=recurrence.calls[0].path,
                    out_paths=recurrence.out_paths,
                    in_paths=recurrence.in_paths,
                    calls=tuple(call.number for call in ends),
                    first=recurrence.calls[0].number,
                    calls_in_all=len(self.by_module[recurrence.calls[0].path]),
                    reverse=reverse,
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
                if self.time_order.is_sequence(array) and mx.issubdtype(array.dtype, mx.floating)
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
                    reverse=self._known_direction(name, self.time_order.is_reversed_sequence(call)),
                    whole_sequence=True,
                )
            )
        return hook_points

    def named_cells(self, patterns: Sequence[str]) -> list[CellHook]:
        hook_points: list[CellHook] = []
        for calls in self._with_states(patterns):
            if calls[0].path in self.recurrences:
                hook_points += self._recurrence_hooks(self.recurrences[calls[0].path])
                continue
            whole = self._sequence_hooks(calls)
            hook_points += whole or [self._hook_without_recurrence(calls, patterns)]
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
                if holds is False:
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
            f"pass cells={known!r}, which do, or leave cells= out"
            if known
            else "pass the module that takes a state as an argument and returns the next one"
        )
        raise ModelError(f"cells={list(patterns)}: {name} holds no state: {fault}; {fix}")

    def _hook_without_recurrence(self, calls: Sequence[Call], patterns: Sequence[str]) -> CellHook:
        first = calls[0]
        places = [
            place
            for place, array in first.outputs.items()
            if mx.issubdtype(array.dtype, mx.floating) and array.shape[:1] == (self.batch,)
        ]
        if len(calls) % self.steps or not places:
            raise ModelError(
                f"cells={list(patterns)}: {first.name} was called {len(calls)} times for "
                f"{self.steps} steps and returned {_shapes(first)}: pass the path of a module that "
                f"returns (batch, units) once per step, or (batch, {self.steps}, units)"
            )
        ends, reverse = self._last_calls(first.name, calls)
        return CellHook(
            name=first.name,
            module=first.path,
            out_paths=(places[-1],),
            in_paths=(),
            calls=tuple(call.number for call in ends),
            first=0,
            calls_in_all=len(calls),
            reverse=reverse,
        )

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
            return reason + "the sequences have one step"
        reason += "no module is called once per time step with a state that it passes on"
        seen = [calls for calls in self.by_module.values() if calls[0].outputs]
        repeated = [calls for calls in seen if len(calls) > 1]
        once_a_step = [c for c in repeated if len(c) % self.steps == 0]
        other = [f"{c[0].name} {len(c)} times" for c in repeated if len(c) % self.steps]
        # Only what keeps a state: the output of another module is none.
        holding = [c[0].name for c in once_a_step[:_MAX_TRIED] if self.holds_state(c)[0]]
        if holding:
            return (
                f"{reason}. {_listed(holding)} keeps a state between calls: pass "
                f"cells={holding[-1]!r} to take what it returns for its states"
            )
        if once_a_step:
            names = [calls[0].name for calls in once_a_step]
            reason += f"; called once per step are {_listed(names)}, but they pass nothing on"
        elif other:
            reason += f"; called repeatedly are {_listed(other)}, for {self.steps} steps"
        return (
            f"{reason}. Let the cell be a module that takes its state as an argument and returns "
            "the next one, called once per step. If it keeps its state itself, pass cells=[path]"
        )

    # ---- layers

    @functools.cached_property
    def front(self) -> FrontEnd:
        return FrontEnd(self.copy, self.inputs, self.run, self.calls, self.values)

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
        return _numbered_hooks(hook_points)

    def layers(self) -> list[LayerHook]:
        cell_calls = [
            c
            for found in self.recurrences.values()
            for recurrence in found
            for c in recurrence.calls
        ]
        hook_points: list[LayerHook] = []
        for recurrences in self.recurrences.values():
            found = []
            for recurrence in recurrences:
                ends, _ = self._last_calls(
                    recurrence.calls[0].name, recurrence.calls, recurrence.in_paths
                )
                found += layer_hooks(ends, cell_calls, self.by_module, self.values)
            hook_points += _numbered_hooks(found)
        return sorted(hook_points, key=lambda s: self.rank.get(s.name.split("#")[0], 0))

    def named_layers(self, patterns: Sequence[str]) -> list[LayerHook]:
        hook_points: list[LayerHook] = []
        for calls in self._matching(patterns, "layers"):
            first = calls[0]
            place, array = next(iter(first.outputs.items()), ((), None))
            if array is None:
                raise ModelError(f"layers: {first.name} returned no array")
            whole = self.time_order.is_sequence(array)
            if not whole and array.ndim > 1 and len(calls) in (1, self.steps):
                of_frames = self.front.named(calls, place)
                if of_frames is not None:
                    hook_points.append(of_frames)
                    continue
            groups = [[call] for call in calls] if whole else self._by_step(calls)
            if not groups or not (whole or (array.ndim == 2 and len(array) == self.batch)):
                raise ModelError(
                    f"layers: {first.name} was called {len(calls)} times for {self.steps} steps "
                    f"and returned {_shapes(first)}; expected (batch, units) once per step or "
                    f"(batch, {self.steps}, units)"
                )
            hook_points += _numbered_hooks(
                [
                    LayerHook(
                        name=first.name,
                        module=first.path,
                        path=place,
                        at_input=False,
                        activation=activation_of(group, self.values),
                        calls=tuple(call.number for call in group),
                        calls_in_all=len(calls),
                        whole_sequence=whole,
                    )
                    for group in groups
                ]
            )
        return hook_points

    def _by_step(self, calls: Sequence[Call]) -> list[list[Call]]:
        """Return one call for each step, in order of time, for each recurrence around the calls.

        The list is empty if there isn't one call for each step.
        """
        groups = []
        for recurrence in (
            recurrence for recurrences in self.recurrences.values() for recurrence in recurrences
        ):
            ends, _ = self._last_calls(
                recurrence.calls[0].name, recurrence.calls, recurrence.in_paths
            )
            ids = {id(end) for end in ends}
            last = {id(call.within(ids)): call for call in calls}
            if all(id(end) in last for end in ends):
                groups.append([last[id(end)] for end in ends])
        if groups or len(calls) % self.steps:
            return groups[:1] if len({tuple(map(id, g)) for g in groups}) == 1 else groups
        return [self._last_calls(calls[0].name, calls)[0]]


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


def _shapes(call: Call) -> str:
    shapes = [str(tuple(array.shape)) for array in call.outputs.values()]
    return " and ".join(shapes) or "no array"
