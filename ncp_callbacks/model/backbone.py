"""Find the hidden layers inside a cell: activations between two layers with weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..activations import recognise_activation
from .hook_points import LayerHook
from .pytrees import Path, leaves
from .recording import Call, Values

__all__ = ["activation_of", "is_layer", "layer_hooks"]


def is_layer(module: nn.Module) -> bool:
    """Return whether a module has weights that mix units; norms and learnt activations don't."""
    own = [value for value in module.values() if not isinstance(value, nn.Module)]
    return any(array.ndim > 1 for _, array in leaves(own))


def layer_hooks(
    steps: Sequence[Call],
    cells: Iterable[Call],
    by_module: Mapping[str, Sequence[Call]],
    values: Values,
) -> list[LayerHook]:
    """Return hooks of the hidden layers inside one cell.

    Activations are read where a layer takes them or a stack of modules returns them.

    Args:
        steps: The cell's calls that end each step, in order of time.
        cells: Calls of all cells; those inside this one are analysed separately.
        by_module: The calls of each module, by its path.
        values: The values of arrays.
    """
    hook_points = []
    # In the last step run, as initial states are often zeros, which match anything.
    last = max(steps, key=lambda call: call.number)
    for layer in _Cell(last, cells, values).hidden():
        at = _at_every_step(layer.call, steps)
        sources = _at_every_step(layer.source, steps)
        if at is None or sources is None:  # an array that exists at some steps only
            continue
        arrays = [(c.inputs if layer.at_input else c.outputs).get(layer.place) for c in at]
        befores = [[_first(s.outputs) for s in sources], *_arrays_of_stages(layer.trail, steps)]
        hook_points.append(
            LayerHook(
                name=layer.source.name,
                module=layer.call.path,
                path=layer.place,
                at_input=layer.at_input,
                activation=_activation(befores, arrays, values),
                calls=tuple(call.number for call in at),
                calls_in_all=len(by_module[layer.call.path]),
            )
        )
    return hook_points


def activation_of(calls: Sequence[Call], values: Values) -> str:
    """Return the name of the activation in the output of a module."""
    last = calls[-1]
    if is_layer(last.module):
        return "identity"
    befores = [[_first(call.inputs) for call in calls]]
    source, trail = _Cell(last, (), values).source(_first(last.outputs), last)
    if source is not None:
        befores = [[_first(call.outputs) for call in _at_every_step(source, calls) or ()]]
    befores += _arrays_of_stages(trail, calls)
    return _activation(befores, [_first(call.outputs) for call in calls], values)


# A call, and True for its input or False for its output.
_Stage: TypeAlias = "tuple[Call, bool]"


@dataclass(frozen=True, eq=False)
class _HiddenLayer:
    """Hold a hidden layer and the call in which its activations are read.

    Attributes:
        source: The call of the layer.
        trail: The stages between layer and activations, last one first.
        call: The call in which the activations are read.
        place: The path of the activations in its arguments or output.
        at_input: True for its arguments, False for its output.
    """

    source: Call
    trail: Sequence[_Stage]
    call: Call
    place: Path
    at_input: bool


class _Cell:
    """Hold one call of a cell and the calls inside it, without those inside nested cells."""

    def __init__(self, cell: Call, cells: Iterable[Call], values: Values) -> None:
        self.values = values
        nested = {id(call) for call in cells}
        self.calls = list(_inside(cell, nested))
        self.layers = [call for call in self.calls if is_layer(call.module)]
        # The innermost call that made an array; inactive dropout returns its argument.
        self.makers = {
            id(array): call
            for call in self.calls
            for array in call.outputs.values()
            if not any(array is given for given in call.inputs.values())
        }
        # Arguments of the cell were not computed by a layer in it.
        self.states = {id(a) for arrays in (cell.outputs, cell.inputs) for a in arrays.values()}

    def hidden(self) -> list[_HiddenLayer]:
        found: dict[int, _HiddenLayer] = {}
        stacks = [call for call in self.calls if isinstance(call.module, nn.Sequential)]
        for call in self.layers + stacks:
            at_input = call in self.layers
            arrays = call.inputs if at_input else call.outputs
            place, array = next(iter(arrays.items()), ((), None))
            if array is None or array.ndim < 2 or id(array) in self.states:
                continue
            source, trail = self.source(array, call)
            # A stack that ends without an activation returns an output, not a hidden layer.
            if source is not None and (at_input or array is not _first(source.outputs)):
                found.setdefault(id(source), _HiddenLayer(source, trail, call, place, at_input))
        return list(found.values())

    def source(self, array: mx.array | None, read_in: Call) -> tuple[Call | None, list[_Stage]]:
        """Find the layer whose output became ``array`` through activations and norms only."""
        trail: list[_Stage] = []
        followed: set[int] = set()
        while array is not None and id(array) not in followed:
            followed.add(id(array))
            maker = self.makers.get(id(array))
            if maker is None or any(is_layer(call.module) for call in maker.descendants()):
                maker = self._maker_through_a_function(array, read_in)
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

    def _maker_through_a_function(self, array: mx.array, read_in: Call) -> Call | None:
        """Find the call whose output a plain function made into ``array``."""
        for call in reversed(self.calls):
            out = _first(call.outputs)
            if (
                call is not read_in
                and id(out) in self.makers
                and self.makers[id(out)] is call
                and out is not array
                and out is not None
                and out.size == array.size
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
    """Return the call inside each step of the cell that corresponds to ``call``.

    The result is None if a step has no such call.
    """
    inside = [[c for c in step.descendants() if c.module is call.module] for step in steps]
    index = next(i for found in inside for i, c in enumerate(found) if c is call)
    if any(index >= len(found) for found in inside):
        return None
    return [found[index] for found in inside]


def _arrays_of_stages(
    trail: Sequence[_Stage], steps: Sequence[Call]
) -> list[list[mx.array | None]]:
    return [
        [_first(c.inputs if at_input else c.outputs) for c in _at_every_step(call, steps) or ()]
        for call, at_input in trail
    ]


def _elementwise(before: mx.array, after: mx.array, values: Values) -> bool:
    """Return whether a known activation, or a monotone function, turns one into the other."""
    x, y = values.of(before).ravel(), values.of(after).ravel()
    if recognise_activation(x, y) is not None:
        return True
    in_order = y[np.argsort(x, kind="stable")]
    rises = np.diff(in_order)
    return len(rises) > 1 and bool(((rises >= 0).all() or (rises <= 0).all()) and rises.any())


def _activation(
    befores: Sequence[Sequence[mx.array | None]],
    after: Sequence[mx.array | None],
    values: Values,
) -> str:
    """Name the activation that turns one of ``befores`` into ``after``, the last if several do."""
    name = "unknown"
    for before in befores:
        pairs = [
            (values.of(b).ravel(), values.of(a).ravel())
            for b, a in zip(before, after, strict=False)
            if b is not None and a is not None and a.size == b.size
        ]
        if pairs:
            x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
            found = recognise_activation(x, y)
            if found not in (None, "identity") or name == "unknown":
                name = found or name
    return name
