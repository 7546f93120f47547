"""Pickle a graph around a model with its arrays taken out, and load it as objects of its own."""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import io
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .own_arrays import own_view

__all__ = ["Packer", "Unpacker", "compiled_function"]

# Smaller numpy arrays stay in the skeleton: comparing them there costs less than a slot.
_NUMPY_SLOT_BYTES = 16 << 10
# The function that makes one, as not every Python has a name for the types.
_LOCKS: dict[type, Callable[[], Any]] = {
    type(make()): make for make in (threading.Lock, threading.RLock)
}
_RANDOM_STATE = type(mx.random.state)
_MLX = ("mlx.core", "nanobind", "mlx.core.random")
_MLX_FUNCTIONS = ("nb_func", "_gc_func", "custom_function")

# cloudpickle's functions that make a class, and where they take its identity.
_MAKERS = {"_make_skeleton_class": 4, "_make_skeleton_enum": 5, "_make_typevar": 5}


class Packer(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickle a graph around one model, without its arrays.

    Unlike cloudpickle, it accepts MLX's functions, dtypes and devices, compiled functions
    (as the function itself: a copy compiles nothing), locks and weak references.
    """

    def __init__(self, file: Any, root: nn.Module | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.arrays: list[Any] = []
        self._slots: dict[int, int] = {}
        self._root = root

    def persistent_id(self, obj: Any) -> Any:
        if obj is self._root and obj is not None:
            return "root", type(obj)
        if type(obj) is mx.array:
            return self._slot(obj, str(obj.dtype), tuple(obj.shape))
        if type(obj) is np.ndarray and obj.nbytes >= _NUMPY_SLOT_BYTES and not obj.dtype.hasobject:
            return self._slot(obj, obj.dtype.str, obj.shape)
        return None

    def _slot(self, array: Any, dtype: str, shape: tuple[int, ...]) -> Any:
        slot = self._slots.get(id(array))
        if slot is None:
            slot = self._slots[id(array)] = len(self.arrays)
            self.arrays.append(array)
        return slot, dtype, shape

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind.__module__ in _MLX:
            return self._reduce_mlx(obj, kind)
        if kind is types.MethodType and isinstance(obj.__self__, nn.Module):
            module = obj.__self__
            if obj.__func__ in (type(module).__call__, _call):
                # A call of the module itself, so that it is recorded as one.
                return _bound_call, (module,)
        if kind in _LOCKS:
            return _LOCKS[kind], ()
        if isinstance(obj, io.IOBase) and not (
            isinstance(obj, io.BytesIO | io.StringIO) or obj is sys.stdout or obj is sys.stderr
        ):
            # cloudpickle would read the whole file, each time.
            raise pickle.PicklingError("it is an open file")
        if kind is weakref.ref:
            return weakref.ref, (obj(),) if obj() is not None else (_Gone(),)
        return super().reducer_override(obj)

    def _reduce_mlx(self, obj: Any, kind: type) -> Any:
        if kind is mx.Dtype:
            return _named, ("mlx.core", str(obj).rsplit(".", 1)[-1])
        if kind is mx.Device:
            return mx.Device, (obj.type,)
        if kind is mx.Stream:
            return mx.default_stream, (obj.device,)
        if kind is _RANDOM_STATE:
            return _named, ("mlx.core", "random", "state")
        if kind.__name__ in _MLX_FUNCTIONS:
            path = _importable(obj)
            if path is not None:
                return _named, path
            if kind is mx.custom_function:
                return _custom_function(obj)
            compiled = compiled_function(obj)
            if compiled is not None:
                return _itself, (compiled,)
            raise pickle.PicklingError("a function made by mx.grad, mx.vmap or mx.checkpoint")
        return super().reducer_override(obj)


class _Gone:
    """Stand for an object that is gone: a weak reference to this is dead at once."""


class Unpacker(pickle.Unpickler):
    """Load what :class:`Packer` wrote.

    Classes of scripts and notebooks are pickled by value, and cloudpickle, loading one in the
    process that it comes from, writes into the original class. Here they are classes of this copy,
    the same ones at each load.
    """

    def __init__(
        self,
        file: Any,
        root: Callable[[type[nn.Module]], nn.Module],
        arrays: Sequence[Any],
        classes: dict[Any, Any],
    ) -> None:
        super().__init__(file)
        self._root, self._arrays, self._classes = root, arrays, classes
        self._views: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "root":
            return self._root(pid[1])
        slot, dtype, shape = pid
        if slot not in self._views:
            array = self._arrays[slot]
            if array is None:
                self._views[slot] = mx.zeros(shape, getattr(mx, dtype.rsplit(".", 1)[-1]))
            else:
                # Analyses may write in place.
                self._views[slot] = own_view(array)
        return self._views[slot]

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module == "cloudpickle.cloudpickle" and name in _MAKERS:
            return functools.partial(self._tracked, found, _MAKERS[name])
        return found

    def _tracked(self, make: Callable[..., Any], place: int, *args: Any) -> Any:
        """Make a class, or return the one that this copy made of it before."""
        key = args[place]
        if key is None or key not in self._classes:
            made = make(*args[:place], None, *args[place + 1 :])
            if key is None:
                return made
            self._classes[key] = made
        return self._classes[key]


def _named(module: str, *names: str) -> Any:
    found = importlib.import_module(module)
    for name in names:
        found = getattr(found, name)
    return found


def _itself(value: Any) -> Any:
    return value


def _importable(obj: Any) -> tuple[str, str] | None:
    """Return module and name by which another process finds ``obj``, or None."""
    module, name = getattr(obj, "__module__", None), getattr(obj, "__name__", None)
    if not module or not name or module == "__main__":
        return None
    try:
        return (module, name) if _named(module, name) is obj else None
    except (ImportError, AttributeError):
        return None


def compiled_function(obj: Any) -> Any:
    """Return the function that ``mx.compile`` was given; None for anything else.

    MLX doesn't say which transformation a function is; a compiled one alone holds, for the
    garbage collector, its captured inputs and outputs beside the function.
    """
    if type(obj).__module__ not in _MLX or type(obj).__name__ not in _MLX_FUNCTIONS:
        return None
    held = gc.get_referents(obj)
    if len(held) == 4 and not any(isinstance(part, int) for part in held[1:3]):
        return held[3]
    return None


def _bound_call(module: nn.Module) -> Any:
    return types.MethodType(_call, module)


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


def _custom_function(obj: Any) -> Any:
    """Return how to make a function of ``mx.custom_function`` again, such as a surrogate gradient.

    Raises:
        pickle.PicklingError: If it has a rule for ``jvp`` or ``vmap``: for the garbage collector it
            holds its function and its rules, which their numbers of arguments alone tell apart.
    """
    _, function, *rules = gc.get_referents(obj)
    if not rules:
        return mx.custom_function, (function,)
    if len(rules) == 1 and len(inspect.signature(rules[0]).parameters) == 3:
        # As a state, which is pickled later: the rule may call the function itself.
        return mx.custom_function, (function,), rules[0], None, None, _set_vjp
    raise pickle.PicklingError("a function of mx.custom_function with a rule for jvp or vmap")


def _set_vjp(function: Any, rule: Any) -> None:
    function.vjp(rule)
