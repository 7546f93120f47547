"""The hidden layers inside a cell: what one layer with weights hands, activated, to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..callbacks.backbone_activations.analysis import recognise_activation
from .hook_points import LayerHook
from .pytrees import Path, leaves
from .recording import Call, Values

__all__ = ["activation_of", "is_layer", "layer_hooks"]


def is_layer(module: nn.Module) -> bool:
    """Whether it has weights of its own that mix units; norms and learnt activations don't."""
    own = [value for value in module.values() if not isinstance(value, nn.Module)]
    return any(array.ndim > 1 for _, array in leaves(own))


def layer_hooks(
    steps: Sequence[Call],
    cells: Iterable[Call],
    by_module: Mapping[str, Sequence[Call]],
    values: Values,
) -> list[LayerHook]:
    """Hidden layers inside one cell, where a module takes them or a stack of modules returns them.

    Args:
        steps: The cell's calls that end each step, in order of time.
        cells: Calls of all cells; those inside this one are looked at for themselves.
    """
    hook_points = []
    # In the last step run: what a cell starts from are often zeros, which tell nothing.
    last = max(steps, key=lambda call: call.number)
    for shown in _Cell(last, cells, values).hidden():
        at = _at_every_step(shown.call, steps)
        sources = _at_every_step(shown.source, steps)
        if at is None or sources is None:  # an array that is there at some steps only
            continue
        arrays = [(c.inputs if shown.at_input else c.outputs).get(shown.place) for c in at]
        befores = [[_first(s.outputs) for s in sources], *_on_the_way(shown.trail, steps)]
        hook_points.append(
            LayerHook(
                name=shown.source.name,
                module=shown.call.path,
                path=shown.place,
                at_input=shown.at_input,
                activation=_activation(befores, arrays, values),
                calls=tuple(call.number for call in at),
                calls_in_all=len(by_module[shown.call.path]),
            )
        )
    return hook_points


def activation_of(calls: Sequence[Call], values: Values) -> str:
    """Name of the activation in what a module returns."""
    last = calls[-1]
    if is_layer(last.module):
        return "identity"
    befores = [[_first(call.inputs) for call in calls]]
    source, trail = _Cell(last, (), values).source(_first(last.outputs), last)
    if source is not None:
        befores = [[_first(call.outputs) for call in _at_every_step(source, calls) or ()]]
    befores += _on_the_way(trail, calls)
    return _activation(befores, [_first(call.outputs) for call in calls], values)


# A call, and whether it is its input or its output that is meant.
_Stage: TypeAlias = "tuple[Call, bool]"


@dataclass(frozen=True, eq=False)
class _Shown:
    """A hidden layer, and the call that shows its activations.

    ``trail``: what the array was on the way from the one to the other, last one first.
    """

    source: Call
    trail: Sequence[_Stage]
    call: Call
    place: Path
    at_input: bool


class _Cell:
    """One call of a cell, with the calls inside it but not those inside other cells in it."""

    def __init__(self, cell: Call, cells: Iterable[Call], values: Values) -> None:
        self.values = values
        nested = {id(call) for call in cells}
        self.calls = list(_inside(cell, nested))
        self.layers = [call for call in self.calls if is_layer(call.module)]
        # The innermost call that made an array; dropout that is off returns what it was given.
        self.makers = {
            id(array): call
            for call in self.calls
            for array in call.outputs.values()
            if not any(array is given for given in call.inputs.values())
        }
        # What is given to the cell was not made by a layer in it, whatever it looks like.
        self.states = {id(a) for arrays in (cell.outputs, cell.inputs) for a in arrays.values()}

    def hidden(self) -> list[_Shown]:
        found: dict[int, _Shown] = {}
        stacks = [call for call in self.calls if isinstance(call.module, nn.Sequential)]
        for call in self.layers + stacks:
            at_input = call in self.layers
            arrays = call.inputs if at_input else call.outputs
            place, array = next(iter(arrays.items()), ((), None))
            if array is None or array.ndim < 2 or id(array) in self.states:
                continue
            source, trail = self.source(array, call)
            # What ends a stack without an activation is an output, not hidden.
            if source is not None and (at_input or array is not _first(source.outputs)):
                found.setdefault(id(source), _Shown(source, trail, call, place, at_input))
        return list(found.values())

    def source(self, array: mx.array | None, seen_in: Call) -> tuple[Call | None, list[_Stage]]:
        """The layer whose output became ``array`` through activations and norms only."""
        trail: list[_Stage] = []
        followed: set[int] = set()
        while array is not None and id(array) not in followed:
            followed.add(id(array))
            maker = self.makers.get(id(array))
            if maker is None or any(is_layer(call.module) for call in maker.descendants()):
                maker = self._maker_through_a_function(array, seen_in)
                if maker is None:
                    break
                trail.append((maker, False))
                array = _first(maker.outputs)
                continue
            if is_layer(maker.module):
                return maker, trail
            trail.append((maker, True))
            array = _first(maker.inputs)
        return None, trail

    def _maker_through_a_function(self, array: mx.array, seen_in: Call) -> Call | None:
        """The call whose output a plain function made into ``array``."""
        for call in reversed(self.calls):
            out = _first(call.outputs)
            if (
                call is not seen_in
                and id(out) in self.makers
                and self.makers[id(out)] is call
                and out is not array
                and out is not None
                and out.shape == array.shape
                and _elementwise(out, array, self.values)
            ):
                return call
        return None


def _inside(cell: Call, nested: set[int]) -> Iterator[Call]:
    for call in cell.children:
        if id(call) not in nested:
            yield call
            yield from _inside(call, nested)


def _first(arrays: Mapping[Path, mx.array]) -> mx.array | None:
    return next(iter(arrays.values()), None)


def _at_every_step(call: Call, steps: Sequence[Call]) -> list[Call] | None:
    """The call of the same module inside each step's call of the cell, ``call`` being in one.

    None where there isn't one in every step.
    """
    inside = [[c for c in step.descendants() if c.module is call.module] for step in steps]
    index = next(i for found in inside for i, c in enumerate(found) if c is call)
    if any(index >= len(found) for found in inside):
        return None
    return [found[index] for found in inside]


def _on_the_way(trail: Sequence[_Stage], steps: Sequence[Call]) -> list[list[mx.array | None]]:
    return [
        [_first(c.inputs if at_input else c.outputs) for c in _at_every_step(call, steps) or ()]
        for call, at_input in trail
    ]


def _elementwise(before: mx.array, after: mx.array, values: Values) -> bool:
    """Whether a known activation, or some monotone function, makes one of the other."""
    x, y = values.of(before), values.of(after)
    if recognise_activation(x, y) is not None:
        return True
    in_order = y.ravel()[np.argsort(x.ravel(), kind="stable")]
    rises = np.diff(in_order)
    return len(rises) > 1 and bool(((rises >= 0).all() or (rises <= 0).all()) and rises.any())


def _activation(
    befores: Sequence[Sequence[mx.array | None]],
    after: Sequence[mx.array | None],
    values: Values,
) -> str:
    """The activation that makes ``after`` of one of ``befores``, the last where several do."""
    name = "unknown"
    for before in befores:
        pairs = [
            (values.of(b).ravel(), values.of(a).ravel())
            for b, a in zip(before, after, strict=False)
            if b is not None and a is not None and a.shape == b.shape
        ]
        if pairs:
            x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
            found = recognise_activation(x, y)
            if found not in (None, "identity") or name == "unknown":
                name = found or name
    return name
