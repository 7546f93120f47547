"""Name the part of an object that can't be copied, or that a copy lacks."""

from __future__ import annotations

import contextlib
import io
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .model_pickle import Packer
from .own_arrays import array_bytes, evaluates
from .pytrees import filled_slots

__all__ = ["difference", "find_cause", "parts"]


def find_cause(value: Any, path: str, seen: set[int]) -> tuple[str, str] | None:
    """Return the path of the innermost part that can't be pickled, and why."""
    if id(value) in seen:
        return None
    seen.add(id(value))
    try:
        Packer(io.BytesIO(), None).dump(value)
    except Exception as error:
        for name, part in parts(value):
            found = find_cause(part, f"{path}{name}", seen)
            if found is not None:
                return found
        return f"{path} (a {type(value).__name__})", f"{type(error).__name__}: {error}"
    return None


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over what an object holds, with how it is written in Python."""
    if isinstance(value, nn.Module):
        yield from ((f".{key}", part) for key, part in dict.items(value))
        attributes = {**vars(value), **filled_slots(value)}
        # A copy is in evaluation mode.
        yield from ((f".{k}", part) for k, part in attributes.items() if k != "_training")
        return
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    if isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):
                yield f" (its variable {name})", cell.cell_contents
        for name in value.__code__.co_names:
            if name in value.__globals__ and value.__module__ == "__main__":
                yield f" (its global {name})", value.__globals__[name]
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        yield from ((f".{name}", part) for name, part in vars(value).items())


def difference(original: Any, copy: Any, path: str = "model") -> str | None:
    """Return the path of the first part in which a copy differs from the original, or None.

    Classes with a pickling method of their own may omit parts.
    """
    return _difference(original, copy, path, set())


def _difference(a: Any, b: Any, path: str, seen: set[int]) -> str | None:
    if id(a) in seen or isinstance(a, type | types.FunctionType | types.ModuleType | weakref.ref):
        return None
    seen.add(id(a))
    if isinstance(a, mx.array) and isinstance(b, mx.array):
        return None if _equal_bits(a, b) else path
    if isinstance(a, np.ndarray):
        same = isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        return None if same and (a.dtype.hasobject or a.tobytes() == b.tobytes()) else path
    if type(a).__name__ != type(b).__name__:
        # A function that MLX compiled is copied as the function itself.
        kinds = ("mlx.core", "nanobind")
        compiled = callable(b) and type(b).__module__.startswith(kinds)
        return None if compiled or type(a).__module__.startswith(kinds) else path
    if isinstance(a, bool | int | float | complex | str | bytes | None):
        return None if a == b or a != a else path
    mine, other = dict(parts(a)), dict(parts(b))
    for name, part in mine.items():
        if name not in other:
            return f"{path}{name}"
        found = _difference(part, other[name], f"{path}{name}", seen)
        if found is not None:
            return found
    return None


def _equal_bits(a: mx.array, b: mx.array) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # An array that can't be evaluated is equal to what stands for it.
    return not evaluates(a) or array_bytes(a) == array_bytes(b)
