"""Turn results and logged runs into plain values, tables and CSV files.

    plain(np.array([1.0, np.nan]))          # [1.0, None], for JSON
    Table(("step", "value"), lines).to_csv("loss.csv")

A data frame needs pandas; nothing else here does.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Table", "plain", "short", "table_of"]

_MAX_SHOWN = 60


def plain(value: Any) -> Any:
    """Return a value as numbers, strings, lists and dicts, as JSON holds them.

    Arrays become nested lists, dataclasses dicts, and numbers that are not finite None.
    """
    if isinstance(value, np.ndarray):
        # A list of Python's numbers; those that are not finite are found by the recursion.
        if value.dtype.kind in "iub" or (value.dtype.kind == "f" and np.isfinite(value).all()):
            return value.tolist()
        return [plain(item) for item in value] if value.ndim else plain(value.item())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def short(value: Any) -> str:
    """Return a value in a few characters: an array as its shape."""
    if isinstance(value, np.ndarray) and value.size > 6:
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, np.ndarray):
        if value.ndim == 1:
            return f"[{', '.join(short(item) for item in value)}]"
        return str(value.tolist())
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    text = repr(value)
    if len(text) <= _MAX_SHOWN:
        return text
    return f"<{len(value)} items>" if hasattr(value, "__len__") else f"{text[:_MAX_SHOWN]}…"


class Table(NamedTuple):
    """Hold lines with named columns.

    Attributes:
        columns: Names of the columns.
        lines: A function that returns the lines, each a value per column.
    """

    columns: tuple[str, ...]
    lines: Callable[[], Iterable[tuple[Any, ...]]]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file, with the names of the columns in its first line.

        Raises:
            OSError: The file can't be written.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(self.lines())

    def to_dataframe(self) -> Any:
        """Return a ``pandas.DataFrame``.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError(
                "to_dataframe() needs pandas: run pip install pandas, or write a file by to_csv()"
            ) from error
        return pandas.DataFrame(list(self.lines()), columns=list(self.columns))


def table_of(value: Any) -> Table:
    """Return every number and text of a result: its name, its place in its array, and the value.

    The columns are ``name``, as in ``sensitivity.scales``, ``i``, ``j``, ``k`` and so on, as many
    as the largest array has axes, and ``value``.
    """
    found = list(_leaves(plain(value), ""))
    axes = max((len(place) for _, place, _ in found), default=0)
    names = tuple("ijklmnop"[:axes])

    def lines() -> Iterator[tuple[Any, ...]]:
        for name, place, leaf in found:
            yield (name, *place, *[None] * (axes - len(place)), leaf)

    return Table(("name", *names, "value"), lines)


def _leaves(value: Any, name: str, place: tuple[int, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else key, place)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, name, (*place, index))
    else:
        yield name, place, value
