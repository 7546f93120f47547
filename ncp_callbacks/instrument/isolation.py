"""Leaving training bit-identical: whatever a look does to a model is undone.

with undisturbed(model):
    model(x)        # in eval mode; no trace of it remains
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from types import MemberDescriptorType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .trees import children

__all__ = ["evaluation_mode", "settle", "undisturbed"]


def _containers(root: nn.Module) -> list[Any]:
    """Every dict (modules are dicts), list and tuple below ``root``, each once."""
    seen: dict[int, Any] = {}
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            stack += [child for _, child in children(node)]
    return list(seen.values())


def _values(container: Any) -> list[Any]:
    """What a container or module holds, attributes included."""
    values = list(container.values() if isinstance(container, dict) else container)
    if isinstance(container, nn.Module):
        values += vars(container).values()
        values += [slot.__get__(container) for slot in _filled_slots(container)]
    return values


def _restorer(value: Any) -> Callable[[], None] | None:
    """What puts ``value`` back as it is now; None for what can't change or isn't known."""
    # A module's own `update` is another thing than a dict's.
    for kind in (OrderedDict, dict, deque, list, set):
        if isinstance(value, kind):
            return functools.partial(_refill, value, kind, kind(value))
    if isinstance(value, np.ndarray) and value.flags.writeable:
        numbers = value.copy()
        return lambda: np.copyto(value, numbers)
    if isinstance(value, random.Random):
        state = value.getstate()
        return lambda: value.setstate(state)
    if isinstance(value, np.random.Generator):
        drawn = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", drawn)
    return None


def _refill(container: Any, kind: Any, content: Any) -> None:
    kind.clear(container)
    (kind.extend if kind in (deque, list) else kind.update)(container, content)


def _attributes(module: nn.Module) -> Callable[[], None]:
    """What puts a module's attributes back, those in ``__slots__`` too."""
    plain = dict(vars(module))
    slotted = [(slot, slot.__get__(module)) for slot in _filled_slots(module)]

    def restore() -> None:
        vars(module).clear()
        vars(module).update(plain)
        for slot in _filled_slots(module):
            slot.__delete__(module)
        for slot, value in slotted:
            slot.__set__(module, value)

    return restore


def _filled_slots(module: nn.Module) -> list[Any]:
    """Descriptors of the slots that hold something."""
    slotted = [c for c in type(module).__mro__ if "__slots__" in vars(c)]
    slots = [d for c in slotted for d in vars(c).values() if isinstance(d, MemberDescriptorType)]
    return [slot for slot in slots if _is_filled(slot, module)]


def _is_filled(slot: MemberDescriptorType, module: nn.Module) -> bool:
    try:
        slot.__get__(module)
    except AttributeError:
        return False
    return True


def settle(model: nn.Module) -> None:
    """Finish what is left of training steps, so that it isn't taken for a part of the look."""
    held = (v for c in _containers(model) for v in _values(c))
    mx.eval([v for v in held if isinstance(v, mx.array)])


def _undo_in_place_writes(before: list[tuple[mx.array, mx.array]]) -> None:
    """``count += 1`` and ``buffer[i] = x`` write into the array that a module goes on holding."""
    if not before:
        return
    same = mx.stack([mx.array_equal(a, was, equal_nan=True) for a, was in before])
    for index in np.flatnonzero(~np.array(same)):
        array, was = before[index]
        # Of this many axes: some MLX take no `...` here, others no `:` for a number.
        array[(slice(None),) * array.ndim] = was


def _compile_is_on() -> bool:
    """Whether ``mx.compile`` compiles: there is no getter, but a compiled body runs only once."""
    runs = 0

    def body(x: mx.array) -> mx.array:
        nonlocal runs
        runs += 1
        return x + 1

    compiled = mx.compile(body)
    zero = mx.array(0.0)
    compiled(zero)
    compiled(zero)
    return runs == 1


def evaluation_mode(model: nn.Module) -> None:
    """``model.eval()``, also for modules in tuples, and without the model's own ``eval``."""
    for container in _containers(model):
        if isinstance(container, nn.Module):
            object.__setattr__(container, "_training", False)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode and, on any exit, everything back as it was.

    That is: entries of all its containers (parameters, buffers, lazily created ones), attributes
    of each module with the lists, dicts, sets and numpy arrays they hold, train flags and frozen
    sets, the random states of MLX, numpy and Python, MLX's default device. Not what a model keeps
    in globals, closures, class attributes or objects of other classes. Compilation is off inside,
    because a function that the model has compiled for itself would otherwise keep what it traced
    here (eval mode, recorded arrays) for training.

    Must run on the training thread, outside compiled or differentiated functions; other threads
    must not use the model meanwhile.
    """
    containers = _containers(model)
    modules = [c for c in containers if isinstance(c, nn.Module)]
    held = {id(v): v for c in containers for v in (c, *_values(c))}
    restorers = [restore for v in held.values() if (restore := _restorer(v)) is not None]
    restorers += [_attributes(module) for module in modules]
    arrays = [v for v in held.values() if isinstance(v, mx.array)]
    before = [(array, mx.array(array)) for array in arrays]
    key = mx.random.state[0].tolist()  # type: ignore[index]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    device = mx.default_device()
    compiling = _compile_is_on()
    try:
        if compiling:
            mx.disable_compile()
        evaluation_mode(model)
        yield
    finally:
        for restore in restorers:
            restore()
        if compiling:
            mx.enable_compile()
        # `state` can't be assigned to in recent MLX; this seed gives the same key in all versions.
        mx.random.seed((key[0] << 32) | key[1])
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        if mx.default_device() != device:
            mx.set_default_device(device)
        _undo_in_place_writes(before)
