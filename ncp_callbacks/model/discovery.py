"""Which module is the recurrent cell and which layers are its backbone, found by watching a run.

Names and classes say little about a model one has never seen, so a forward pass of two sequences
is recorded, call by call. A cell is a module that is called once or more per time step and hands a
state on: an array that one call returns is an argument of the next. Its backbone is what feeds the
layers inside it: hidden activations between one layer with weights and another.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from .backbone import activation_of, is_layer, layer_hooks
from .errors import ModelError
from .hook_points import CellHook, HookPoints, LayerHook
from .model_copy import ModelCopy
from .pytrees import Path, modules
from .recording import Call, Values, record
from .recurrence import Recurrence, find_recurrences, outermost
from .time_order import SEQUENCE_LAYERS, TimeOrder

__all__ = ["find_hook_points"]

_NO_LAYERS = (
    "no backbone was found: no hidden layer inside the recurrent cell. To look at layers "
    "elsewhere, name them with layers="
)
# Of the modules that might hold the states, as many as a message can show.
_SHOWN = 4


def find_hook_points(
    copy: ModelCopy,
    inputs: mx.array,
    run: Callable[[mx.array], Any],
    *,
    cells: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
) -> HookPoints:
    """Record ``run(inputs)`` and find cells and backbone layers in it.

    Args:
        inputs: ``(B, T, F)``.
        cells: Paths or globs of modules to take as cells, instead of looking.
        layers: Paths or globs of modules whose outputs to take as backbone layers.

    Raises:
        ModelError: If a pattern matches nothing that was called, or what it matches can't be read.
    """
    finder = _Finder(copy, inputs, run)
    found = finder.cells() if cells is None else finder.named_cells(cells)
    found_layers = finder.layers() if layers is None else finder.named_layers(layers)
    return HookPoints(
        tuple(found),
        tuple(found_layers),
        tuple(dict.fromkeys(finder.notes)),
        "" if found else finder.why_no_cell(),
        "" if found_layers else _NO_LAYERS,
    )


class _Finder:
    def __init__(self, copy: ModelCopy, inputs: mx.array, run: Callable[[mx.array], Any]) -> None:
        self.inputs = inputs
        self.batch, self.steps, _ = inputs.shape
        self.values = Values()
        self.notes: list[str] = []
        with copy.preserved():  # each run from the same start, also of a model that draws numbers
            self.calls, unseen = record(copy.model, lambda: run(self.inputs))
            self.paths = [path for path, _ in modules(copy.model)]
        if unseen:
            self.notes.append(
                f"{_listed(unseen)} can't be looked at: called inside mx.vmap, where there are no "
                "values to see"
            )
        self.by_module: dict[str, list[Call]] = {}
        for call in self.calls:
            self.by_module.setdefault(call.path, []).append(call)
        self.rank = {path: number for number, path in enumerate(self.by_module)}
        found = {
            key: find_recurrences(calls, self.values, self.batch, self.steps)
            for key, calls in self.by_module.items()
        }
        recurrences = [recurrence for listed in found.values() for recurrence in listed]
        self.order = TimeOrder(copy, self.inputs, run, self.calls, recurrences, self.values)
        self.recurrences = {
            key: [part for recurrence in recurrences for part in self._sweeps(recurrence)]
            for key, recurrences in found.items()
            if recurrences
        }

    # ---- time

    def _sweeps(self, recurrence: Recurrence) -> list[Recurrence]:
        """A recurrence that runs over the sequence repeatedly with one state, as one recurrence each time."""
        steps = self.steps
        again = len(recurrence.calls) > steps and self.order.notices(
            recurrence.calls[steps], 0, recurrence.in_paths
        )
        if not again or self.order.notices(recurrence.calls[1], 0, recurrence.in_paths):
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

    def _ends_of_steps(
        self, name: str, calls: Sequence[Call], states: Sequence[Path] = ()
    ) -> tuple[list[Call], bool]:
        """The last call of each step, in order of time, and whether they ran backwards.

        Of several calls in a step (solver sub-steps) the last one ends the step.
        """
        each = len(calls) // self.steps
        steps = [calls[i : i + each] for i in range(0, len(calls), each)]
        ends = [step[-1] for step in steps]
        reverse = self._told(name, self.order.is_reverse(steps[0], steps[-1], states))
        return ends[::-1] if reverse else ends, reverse

    def _told(self, name: str, reverse: bool | None) -> bool:
        if reverse is None:
            self.notes.append(
                f"{name} is taken to run forwards in time: which way it runs can't be told, "
                "because the input at one step reaches all its steps, or is the same at all"
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
            ends, reverse = self._ends_of_steps(name, recurrence.calls, recurrence.in_paths)
            if recurrence.altered:
                self.notes.append(
                    f"the states of {name} shown are those it returns: between its calls the model "
                    "writes over some of them, as masks do"
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
        """Of a layer whose every call returns the states of all steps."""
        hook_points = []
        for name, call in zip(_numbered(calls[0].name, len(calls)), calls, strict=True):
            places = [
                place
                for place, array in call.outputs.items()
                if self.order.is_sequence(array) and mx.issubdtype(array.dtype, mx.floating)
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
                    reverse=self._told(name, self.order.is_reversed_sequence(call)),
                    whole_sequence=True,
                )
            )
        return hook_points

    def named_cells(self, patterns: Sequence[str]) -> list[CellHook]:
        hook_points: list[CellHook] = []
        for calls in self._matching(patterns, "cells"):
            if calls[0].path in self.recurrences:
                hook_points += self._recurrence_hooks(self.recurrences[calls[0].path])
                continue
            whole = self._sequence_hooks(calls)
            hook_points += whole or [self._hook_without_recurrence(calls, patterns)]
        return hook_points

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
                f"{self.steps} steps and returned {_shapes(first)}: name a module that returns "
                f"(batch, units) once per step, or (batch, {self.steps}, units)"
            )
        ends, reverse = self._ends_of_steps(first.name, calls)
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

    def why_no_cell(self) -> str:
        said = "no recurrent cell was found: "
        if self.steps < 2:
            return said + "the sequences have one step"
        said += "no module is called once per time step with a state that it hands on"
        seen = [calls for calls in self.by_module.values() if calls[0].outputs]
        repeated = [calls for calls in seen if len(calls) > 1]
        once_a_step = [c[0].name for c in repeated if len(c) % self.steps == 0]
        other = [f"{c[0].name} {len(c)} times" for c in repeated if len(c) % self.steps]
        whole = [
            calls[0].name
            for calls in seen
            if calls[0].parent is not None
            and is_layer(calls[0].module)
            and any(map(self.order.is_sequence, calls[0].outputs.values()))
        ]
        if once_a_step:
            said += f"; called once per step are {_listed(once_a_step)}, but they hand nothing on"
        elif other:
            said += f"; called repeatedly are {_listed(other)}, for {self.steps} steps"
        elif whole:
            said += f"; {_listed(whole)} may be one that runs over the sequence by itself"
        example = (once_a_step or whole or ["encoder.cell"])[0]
        return said + f". If one holds the states, name it: cells={example!r}"

    # ---- layers

    def layers(self) -> list[LayerHook]:
        in_chains = [
            c
            for found in self.recurrences.values()
            for recurrence in found
            for c in recurrence.calls
        ]
        hook_points: list[LayerHook] = []
        for recurrences in self.recurrences.values():
            found = []
            for recurrence in recurrences:
                ends, _ = self._ends_of_steps(
                    recurrence.calls[0].name, recurrence.calls, recurrence.in_paths
                )
                found += layer_hooks(ends, in_chains, self.by_module, self.values)
            hook_points += _told_apart(found)
        return sorted(hook_points, key=lambda s: self.rank.get(s.name.split("#")[0], 0))

    def named_layers(self, patterns: Sequence[str]) -> list[LayerHook]:
        hook_points: list[LayerHook] = []
        for calls in self._matching(patterns, "layers"):
            first = calls[0]
            place, array = next(iter(first.outputs.items()), ((), None))
            if array is None:
                raise ModelError(f"layers: {first.name} returned no array")
            whole = self.order.is_sequence(array)
            groups = [[call] for call in calls] if whole else self._by_step(calls)
            if not groups or not (whole or (array.ndim == 2 and len(array) == self.batch)):
                raise ModelError(
                    f"layers: {first.name} was called {len(calls)} times for {self.steps} steps "
                    f"and returned {_shapes(first)}; expected (batch, units) once per step or "
                    f"(batch, {self.steps}, units)"
                )
            hook_points += _told_apart(
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
        """One call for each step, in order of time; once for each recurrence of cell calls they are in.

        Empty where there is not one for each step.
        """
        groups = []
        for recurrence in (
            recurrence for recurrences in self.recurrences.values() for recurrence in recurrences
        ):
            ends, _ = self._ends_of_steps(
                recurrence.calls[0].name, recurrence.calls, recurrence.in_paths
            )
            ids = {id(end) for end in ends}
            last = {id(call.within(ids)): call for call in calls}
            if all(id(end) in last for end in ends):
                groups.append([last[id(end)] for end in ends])
        if groups or len(calls) % self.steps:
            return groups[:1] if len({tuple(map(id, g)) for g in groups}) == 1 else groups
        return [self._ends_of_steps(calls[0].name, calls)[0]]


def _told_apart(hook_points: Sequence[LayerHook]) -> list[LayerHook]:
    """HookPoints with a number after names that occur repeatedly."""
    names = [hook.name for hook in hook_points]
    numbers = {name: iter(_numbered(name, names.count(name))) for name in names}
    return [dataclasses.replace(hook, name=next(numbers[hook.name])) for hook in hook_points]


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}#{i + 1}" for i in range(count)]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _shapes(call: Call) -> str:
    shapes = [str(tuple(array.shape)) for array in call.outputs.values()]
    return " and ".join(shapes) or "no array"
