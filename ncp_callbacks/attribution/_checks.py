"""Check settings, take methods by their names, and group passes, for all methods."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["checked_count", "groups", "named_method"]

_Method = TypeVar("_Method")

# Elements of all variants in a group, 128 MB in double precision.
_MAX_ELEMENTS = 1 << 24


def checked_count(name: str, value: int) -> None:
    """Raise if a setting is not a whole number of at least 1.

    Args:
        name: The setting's name, for the message.
        value: The setting's value.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: pass a whole number of at least 1")


def named_method(
    method: Any, by_name: Mapping[str, type[_Method]], kind: type[Any], argument: str
) -> _Method:
    """Return the method of a name, with its default settings, or the method passed.

    Args:
        method: A name, or a method.
        by_name: The methods that have a name.
        kind: The class of all methods.
        argument: The argument's name, for messages.

    Raises:
        ValueError: If there is no method of this name.
        TypeError: If it is neither a name nor a method.
    """
    if isinstance(method, kind):
        found: _Method = method
        return found
    if isinstance(method, type):
        raise TypeError(f"{argument}={method.__name__} is a class: pass {method.__name__}()")
    if not isinstance(method, str):
        raise TypeError(
            f"{argument}={method!r} is of type {type(method).__name__}: pass the name of a method, "
            f"such as {list(by_name)[-1]!r}, or an object of a subclass of {kind.__name__}"
        )
    if method not in by_name:
        near = difflib.get_close_matches(method, by_name, 1)
        raise ValueError(
            f"{argument}={method!r} is unknown{f', did you mean {near[0]!r}?' if near else ''}: "
            f"pass one of {', '.join(map(repr, by_name))}, or an object of a subclass of "
            f"{kind.__name__}"
        )
    return by_name[method]()


def groups(count: int, size: int = 1) -> Sequence[npt.NDArray[np.intp]]:
    """Return indices below ``count`` in groups of about 8, or of fewer if arrays are large.

    Memory then holds the gradients of one group at a time, whatever the count.

    Args:
        count: Number of variants of the batch.
        size: Number of elements of one variant, as of frames with many pixels.
    """
    most = max(1, _MAX_ELEMENTS // size)
    return np.array_split(np.arange(count), max(1, count // 8, -(-count // most)))
