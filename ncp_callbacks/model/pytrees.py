"""Access arrays and modules in the nested containers that models take, return or consist of."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import types
from collections.abc import Iterator
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

__all__ = ["Path", "children", "filled_slots", "get_leaf", "leaves", "modules", "replace_leaf"]

# Keys of dicts, indices of tuples and lists, and names of a dataclass's fields.
Path: TypeAlias = "tuple[Any, ...]"


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, mx.array]]:
    """Iterate over the arrays of a tree with their paths, in order, without entering modules."""
    if isinstance(tree, mx.array):
        yield path, tree
    elif isinstance(tree, nn.Module):
        return
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from leaves(value, (*path, index))
    elif _is_record(tree):
        for field in dataclasses.fields(tree):
            yield from leaves(getattr(tree, field.name, None), (*path, field.name))


def get_leaf(tree: Any, path: Path) -> Any:
    """Return the value at ``path``, or None if there is none.

    An array counts as a container of itself, because some models start their cells with ``state``
    and then pass on ``[state]``.
    """
    for number, key in enumerate(path):
        if isinstance(tree, mx.array):  # and not its entries
            return tree if _is_first(path[number:]) else None
        try:
            tree = getattr(tree, key) if _is_record(tree) else tree[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            return None
    return tree


def replace_leaf(tree: Any, path: Path, value: Any) -> Any:
    """Return a copy of ``tree`` with another value at ``path``; containers keep their type."""
    if not path:
        return value
    if isinstance(tree, mx.array) and _is_first(path):
        return value
    key, rest = path[0], path[1:]
    if _is_record(tree):
        changed = copy.copy(tree)
        # Also on a frozen one: the copy is ours.
        object.__setattr__(changed, key, replace_leaf(getattr(tree, key), rest, value))
        return changed
    inner = replace_leaf(tree[key], rest, value)
    if isinstance(tree, dict):
        changed = copy.copy(tree)
        changed[key] = inner
        return changed
    items = [inner if i == key else item for i, item in enumerate(tree)]
    if hasattr(tree, "_fields"):  # a namedtuple takes its fields one by one
        return type(tree)(*items)
    return type(tree)(items)


def _is_first(path: Path) -> bool:
    return all(isinstance(key, int) and key == 0 for key in path)


def _is_record(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type | nn.Module)


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the containers inside a module or container, with their keys.

    They include a module's attributes, because a submodule that was set past
    ``nn.Module.__setattr__``, to be held without its parameters, is called like any other.
    """
    items: list[tuple[Any, Any]] = list(node.items() if isinstance(node, dict) else enumerate(node))
    if isinstance(node, nn.Module):
        items += vars(node).items()
    for key, value in items:
        if isinstance(value, dict | list | tuple):
            yield str(key), value


def modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return ``(path, module)`` of every module once, ``root`` first with path ``""``.

    Unlike ``named_modules`` this enters tuples, ends on cycles, and lists a shared module once, by
    a path without a leading underscore if it has one.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, nn.Module):
            known = found.get(id(node))
            if known is None or (_hidden(known[0]) and not _hidden(path)):
                found[id(node)] = (path, node)
        if id(node) in seen:
            continue
        seen.add(id(node))
        inside = [(f"{path}.{key}" if path else key, value) for key, value in children(node)]
        stack += reversed(inside)
    return list(found.values())


def _hidden(path: str) -> bool:
    return path.startswith("_") or "._" in path


def filled_slots(module: Any) -> dict[str, Any]:
    """Return what an object holds in the slots of its classes, by name."""
    filled: dict[str, Any] = {}
    for cls in type(module).__mro__:
        for name, descriptor in vars(cls).items():
            if isinstance(descriptor, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):
                    filled[name] = descriptor.__get__(module)
    return filled
