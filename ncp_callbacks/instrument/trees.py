"""Arrays inside the nested tuples, lists and dicts that modules take and return."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

__all__ = ["Path", "get_leaf", "leaves", "modules", "replace_leaf"]

Path: TypeAlias = "tuple[Any, ...]"


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, mx.array]]:
    """Every array with the keys that lead to it, in order; modules are not entered."""
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


def get_leaf(tree: Any, path: Path) -> Any:
    """What stands at ``path``; None where the path breaks off."""
    for key in path:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def replace_leaf(tree: Any, path: Path, value: Any) -> Any:
    """A copy of ``tree`` with another value at ``path``; containers keep their type."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    inner = replace_leaf(tree[key], rest, value)
    if isinstance(tree, dict):
        return type(tree)({**tree, key: inner})
    items = [inner if i == key else item for i, item in enumerate(tree)]
    if hasattr(tree, "_fields"):  # a namedtuple takes its fields one by one
        return type(tree)(*items)
    return type(tree)(items)


def modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """``(path, module)`` of every module once, ``root`` first with path ``""``.

    Unlike ``named_modules`` this enters tuples, ends on cycles, and names a shared module once, by
    a path without a leading underscore where there is one.
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
        items = node.items() if isinstance(node, dict) else enumerate(node)
        stack += [
            (f"{path}.{key}" if path else str(key), value)
            for key, value in reversed(list(items))
            if isinstance(value, dict | list | tuple)
        ]
    return list(found.values())


def _hidden(path: str) -> bool:
    return path.startswith("_") or "._" in path
