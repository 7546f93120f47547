"""Taking away what a model has learnt, stage by stage, and giving it back.

    with randomised(runner, stages=6) as cascade:       # inside runner.preserved()
        for names in cascade:
            ...                                             # these are randomised now, too

Each trainable array keeps its entries and has them in other places: a network of the same shape,
whose weights are as large as before, that knows nothing. New draws from a normal distribution
instead would give an LTC negative capacitances, undo that an array is sparse, and change how far
activations are driven into saturation; then maps would differ for other reasons than what was
learnt.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..held_out import to_numpy
from .capture import Around, Tap
from .errors import NotApplicable
from .model_copy import set_evaluation_mode
from .pytrees import modules
from .runner import ModelRunner

__all__ = ["randomised"]


@dataclass(frozen=True, eq=False)
class _Parameter:
    """A trainable array, where it is held, and its path in the model."""

    holder: Any
    key: Any
    path: str

    @property
    def array(self) -> mx.array:
        array: mx.array = self.holder[self.key]
        return array


@contextlib.contextmanager
def randomised(runner: ModelRunner, stages: int = 6) -> Iterator[Iterator[tuple[str, ...]]]:
    """Iterate over stages, from the output towards the input; on any exit all is as it was.

    Frozen parameters are what training can't change, and stay.
    So do integers and booleans, and zeros, which are rarely learnt: masks, connections that are not
    there. The other entries of an array change places in one random cycle, so that none stays where
    it was; the same one every time.

    Args:
        runner: Its model is run once, to see which modules come last.
        stages: At most so many: modules next to each other are taken together.

    Yields:
        An iterator that randomises parameters when it goes on, and gives the paths of the modules
        they belong to; ``""`` for the model itself.

    Raises:
        NotApplicable: If the model has no trainable parameters that can change places.
    """
    model = runner.model
    # All of it: what a model makes of its parameters and keeps must go with them.
    with runner.preserved():
        first = _first_calls(runner)
        groups = _by_stage(_owned(model), first, stages)
        if not groups:
            raise NotApplicable("the model has no trainable parameters that can change places")
        # By identity, so that what is held in two places is still one.
        changed: dict[int, tuple[mx.array, mx.array]] = {}

        def cascade() -> Iterator[tuple[str, ...]]:
            for group in groups:
                for _, parameters in group:
                    for parameter in parameters:
                        _randomise(parameter, changed)
                yield tuple(path for path, _ in group)

        yield cascade()


def _randomise(parameter: _Parameter, changed: dict[int, tuple[mx.array, mx.array]]) -> None:
    array = parameter.array
    if id(array) not in changed:
        # With the old array, or its id might be given to another.
        changed[id(array)] = array, _rearranged(array, zlib.crc32(parameter.path.encode()))
    new = changed[id(array)][1]
    if isinstance(parameter.holder, nn.Module):
        dict.__setitem__(parameter.holder, parameter.key, new)
    else:
        parameter.holder[parameter.key] = new


def _rearranged(array: mx.array, seed: int) -> mx.array:
    places = _movable(array)
    # A cycle through places in random order; each moves, also of two.
    cycle = np.random.default_rng(seed).permutation(places)
    source = np.arange(array.size)
    source[cycle] = np.roll(cycle, 1)
    return array.reshape(-1)[mx.array(source)].reshape(array.shape)


def _movable(array: mx.array) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Places of entries; none where all that are not zero are equal."""
    values = to_numpy(array).reshape(-1)
    places = np.flatnonzero(values)
    return places if (values[places] != values[places[:1]]).any() else places[:0]


def _owned(model: nn.Module) -> list[tuple[str, list[_Parameter]]]:
    """Modules that hold trainable floating arrays themselves, with these, in the model's order."""
    paths = {id(module): path for path, module in modules(model)}
    owned: dict[str, list[_Parameter]] = {}
    seen: set[int] = set()

    # As MLX's trainable_parameters, which doesn't end on a model that holds itself.
    def walk(holder: Any, owner: nn.Module, inside: str) -> None:
        if id(holder) in seen:
            return
        seen.add(id(holder))
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            name = f"{inside}.{key}" if inside else str(key)
            if name.startswith("_") or name in owner._no_grad:
                continue
            if isinstance(value, nn.Module):
                walk(value, value, "")
            elif isinstance(value, dict | list):
                walk(value, owner, name)
            elif isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating):
                path = paths.get(id(owner), "")
                if len(_movable(value)):
                    whole = f"{path}.{name}" if path else name
                    owned.setdefault(path, []).append(_Parameter(holder, key, whole))

    walk(model, model, "")
    return list(owned.items())


def _first_calls(runner: ModelRunner) -> dict[str, int]:
    """When each module was first called in a pass, by path."""
    model, first = runner.model, dict[str, int]()
    small = runner.small()

    def around(path: str) -> Around:
        def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            first.setdefault(path, len(first))
            return call(*args, **kwargs)

        return wrapper

    listed = modules(model)
    with Tap().on([(m, around(path)) for path, m in listed]):
        mx.eval(small.outputs(small.sequence(), small.time_delta))
    if len(modules(model)) > len(listed):
        # Made just now, in train mode, and seen from the second call on.
        set_evaluation_mode(model)
        return _first_calls(runner)
    return first


def _by_stage(
    owned: Sequence[tuple[str, list[_Parameter]]], first: dict[str, int], stages: int
) -> list[list[tuple[str, list[_Parameter]]]]:
    """Groups of modules, those called last first."""

    def called(path: str) -> int:
        # Of a module whose weights are read without a call, when what it is part of was called.
        while path and path not in first:
            path = path.rpartition(".")[0]
        return first.get(path, -1)

    order = sorted(range(len(owned)), key=lambda i: (called(owned[i][0]), i), reverse=True)
    parts = np.array_split(np.array(order, np.intp), min(stages, len(order)) or 1)
    return [[owned[i] for i in part] for part in parts if len(part)]
