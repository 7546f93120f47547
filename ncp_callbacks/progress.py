"""A bar for what takes long, where somebody looks and ``tqdm`` is installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

__all__ = ["progress"]

T = TypeVar("T")


def progress(items: Sequence[T], what: str, unit: str, *, fewest: int = 3) -> Iterable[T]:
    """The items, with a bar on the terminal while they are gone through, which then vanishes.

    Args:
        items: What is gone through.
        what, unit: Words beside the bar.
        fewest: Fewer items get no bar.
    """
    if len(items) < fewest or sys.stderr is None or not sys.stderr.isatty():
        return items
    try:
        tqdm = importlib.import_module("tqdm")
    except ImportError:
        return items
    bar: Iterable[T] = tqdm.tqdm(items, desc=what, unit=unit, leave=False)
    return bar
