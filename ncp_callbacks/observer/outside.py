"""Find what a model changes outside of itself when it runs.

A copy of a model has its own arrays, attributes and objects. Class attributes and global variables
of imported modules are shared by all models of a process.
"""

from __future__ import annotations

import contextlib
import pickle
import types
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.nn as nn

from ..model.pytrees import modules
from ..signal_handlers import suppressed_errors

__all__ = ["changed_outside", "values_outside"]


def values_outside(model: nn.Module) -> Mapping[str, bytes]:
    """Return fingerprints of class attributes and globals that a model's classes use, by name."""
    found: dict[str, bytes] = {}
    classes = {cls for _, module in modules(model) for cls in type(module).__mro__}
    for cls in classes:
        if cls.__module__.split(".")[0] in ("mlx", "builtins"):
            continue
        for name, value in vars(cls).items():
            if isinstance(value, types.FunctionType):
                for used, held in _used(value):
                    _add(found, used, held)
            elif not name.startswith("__"):
                _add(found, f"{cls.__qualname__}.{name}", value)
    return found


def changed_outside(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Return the names of the values that differ."""
    return sorted(name for name, value in after.items() if before.get(name, value) != value)


def _used(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Iterate over the globals and captured variables of a function."""
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"the global {name} of {function.__module__}", function.__globals__[name]
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):
            yield f"the variable {name} of {function.__qualname__}", cell.cell_contents


def _add(found: dict[str, bytes], name: str, value: Any) -> None:
    # Only what is data: a number, text or a small container of such.
    if isinstance(value, bool | int | float | complex | str | bytes | list | dict | set | tuple):
        with suppressed_errors():
            found[name] = pickle.dumps(value)
