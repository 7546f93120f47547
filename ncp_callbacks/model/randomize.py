"""Randomise a model's parameters stage by stage, and restore them.

    with randomised(runner, stages=6) as cascade:       # inside runner.preserved()
        for names in cascade:
            ...                                         # the parameters of these are permuted now

The entries of each trainable array are permuted. Draws from a normal distribution instead would
give an LTC negative capacitances, fill sparse arrays, and change the saturation of activations, so
that maps would differ for other reasons than the lost knowledge.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..arrays import to_mlx, to_numpy
from .capture import Around, Tap
from .errors import NotApplicable
from .model_copy import set_evaluation_mode
from .parameters import Parameter, trainable_parameters
from .pytrees import modules
from .runner import ModelRunner

__all__ = ["randomised"]


@contextlib.contextmanager
def randomised(
    runner: ModelRunner, stages: int = 6, draw: int = 0
) -> Iterator[Iterator[tuple[str, ...]]]:
    """Randomise parameters in stages, from the output to the input; on any exit restore them.

    Frozen parameters, integers and booleans stay as they are. So do zeros, which are rarely learnt
    (masks, missing connections). The other entries of an array are permuted by one random cycle, so
    that none stays in its place. The cycle depends on ``draw`` and the path of the parameter only.

    Args:
        runner: The model, which is run once to find the order of its modules.
        stages: Largest number of stages; neighbouring modules share one.
        draw: Number of the shuffle; each has other cycles.

    Yields:
        An iterator that randomises the parameters of one stage at each step, and returns the paths
        of the modules they belong to; ``""`` for the model itself.

    Raises:
        NotApplicable: If the model has no trainable parameters that can be permuted.
    """
    model = runner.model
    # The whole model: values that it derives from its parameters and keeps are restored, too.
    with runner.preserved():
        first = _first_calls(runner)
        groups = _by_stage(_owned(model), first, stages)
        if not groups:
            raise NotApplicable(
                "the model has no trainable parameters that can be permuted: unfreeze some"
            )
        # By identity, so that a shared array stays shared.
        changed: dict[int, tuple[mx.array, mx.array]] = {}

        def cascade() -> Iterator[tuple[str, ...]]:
            for group in groups:
                for _, parameters in group:
                    for parameter in parameters:
                        _randomise(parameter, changed, draw)
                yield tuple(path for path, _ in group)

        yield cascade()


def _randomise(
    parameter: Parameter, changed: dict[int, tuple[mx.array, mx.array]], draw: int
) -> None:
    array = parameter.array
    if id(array) not in changed:
        # With the old array, or another array might get its id.
        name = f"{draw} {parameter.name}" if draw else parameter.name
        changed[id(array)] = array, _permuted(array, zlib.crc32(name.encode()))
    new = changed[id(array)][1]
    if isinstance(parameter.holder, nn.Module):
        dict.__setitem__(parameter.holder, parameter.key, new)
    else:
        parameter.holder[parameter.key] = new


def _permuted(array: mx.array, seed: int) -> mx.array:
    places = _movable(array)
    # A cycle through places in random order; each moves, also of two.
    cycle = np.random.default_rng(seed).permutation(places)
    source = np.arange(array.size)
    source[cycle] = np.roll(cycle, 1)
    return array.reshape(-1)[to_mlx(source)].reshape(array.shape)


def _movable(array: mx.array) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return the indices of the entries to permute; none if all nonzero entries are equal."""
    values = to_numpy(array).reshape(-1)
    places = np.flatnonzero(values)
    return places if (values[places] != values[places[:1]]).any() else places[:0]


def _owned(model: nn.Module) -> list[tuple[str, list[Parameter]]]:
    """Return modules and the trainable arrays of theirs that can be permuted."""
    owned: dict[str, list[Parameter]] = {}
    for parameter in trainable_parameters(model):
        if len(_movable(parameter.array)):
            owned.setdefault(parameter.module, []).append(parameter)
    return list(owned.items())


def _first_calls(runner: ModelRunner) -> dict[str, int]:
    """Return the order of the modules' first calls in a pass, by path."""
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
        # The call created modules, in training mode; they are recorded in another call.
        set_evaluation_mode(model)
        return _first_calls(runner)
    return first


def _by_stage(
    owned: Sequence[tuple[str, list[Parameter]]], first: dict[str, int], stages: int
) -> list[list[tuple[str, list[Parameter]]]]:
    """Group modules into stages, those called last first."""

    def called(path: str) -> int:
        # A module whose weights are read without a call counts as called with its parent.
        while path and path not in first:
            path = path.rpartition(".")[0]
        return first.get(path, -1)

    order = sorted(range(len(owned)), key=lambda i: (called(owned[i][0]), i), reverse=True)
    parts = np.array_split(np.array(order, np.intp), min(stages, len(order)) or 1)
    return [[owned[i] for i in part] for part in parts if len(part)]
