"""Show a progress bar on terminals, if ``tqdm`` is installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

__all__ = ["progress"]

T = TypeVar("T")


def progress(items: Sequence[T], description: str, unit: str, *, min_items: int = 3) -> Iterable[T]:
    """Return the items, with a progress bar on the terminal that disappears at the end.

    Args:
        items: The items to iterate over.
        description: Text before the bar.
        unit: Name of one item.
        min_items: Fewer items get no bar.
    """
    if len(items) < min_items or sys.stderr is None or not sys.stderr.isatty():
        return items
    try:
        tqdm = importlib.import_module("tqdm")
    except ImportError:
        return items
    bar: Iterable[T] = tqdm.tqdm(items, desc=description, unit=unit, leave=False)
    return bar
