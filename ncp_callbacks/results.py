"""Provide base classes for results: mappings of their fields, or arrays with attributes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from .tables import plain, short, table_of

if TYPE_CHECKING:
    import mlx.core as mx

__all__ = ["ArrayResult", "Exported", "FloatArray", "Indices", "MappingResult", "compact"]

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
Indices: TypeAlias = npt.NDArray[np.intp]


def compact(values: FloatArray) -> FloatArray:
    """Return the values as float32, or as float64 if a finite one exceeds the range of float32."""
    values = np.asarray(values)
    size = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    return values.astype(np.float32 if size <= np.finfo(np.float32).max else np.float64)


class Pictured:
    """Show a result as a picture in a notebook.

    Attributes:
        draw: Function of a result and the name of a plot function that returns a PNG; set by
            :mod:`ncp_callbacks.notebook`.
    """

    _plot = ""
    draw: ClassVar[Callable[[Any, str], bytes] | None] = None

    def _repr_png_(self) -> bytes | None:
        return Pictured.draw(self, self._plot) if self._plot and Pictured.draw else None


class Exported(Pictured):
    """Give a dataclass a short text, and make it plain values, a table or a file."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # A dataclass keeps the one that its class has, and else makes one that prints all arrays.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        parts = [f"{f.name}={short(getattr(self, f.name))}" for f in fields if f.repr]
        return f"{type(self).__name__}({', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as numbers, strings, lists and dicts, for JSON; NaN becomes None."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: plain(getattr(self, f.name)) for f in fields}

    def to_dataframe(self) -> Any:
        """Return a ``pandas.DataFrame`` with a line for each number: its name, its place, itself.

        The columns are ``name``, ``i``, ``j``, ... for the place in an array, and ``value``.

        Raises:
            ImportError: pandas is not installed.
        """
        return table_of(self).to_dataframe()

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of :meth:`to_dataframe` to a CSV file, without pandas.

        Raises:
            OSError: The file can't be written.
        """
        table_of(self).to_csv(path)


class MappingResult(Exported, Mapping[str, Any]):
    """Give a dataclass the interface of a mapping of its fields: ``result["scales"]``."""

    def _names(self) -> tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(self))  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> Any:
        if key not in self._names():
            raise KeyError(f"{key!r}; this {type(self).__name__} has {', '.join(self._names())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class ArrayResult(Exported, NDArrayOperatorsMixin):
    """Let a dataclass stand for its main array wherever numpy expects an array.

    ``np.asarray(result)``, ``mx.array(result)``, ``result[0]``, ``result / 2``, ``len(result)`` and
    attributes of arrays (``result.shape``, ``result.mean(axis=0)``) refer to that array. The other
    fields are attributes. A subclass names the field as ``_main_field``, if it is not ``values``.
    """

    _main_field = "values"

    # A result equals only itself, as any object does.
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__

    @property
    def _main(self) -> FloatArray:
        main: FloatArray = getattr(self, self._main_field)
        return main

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        main = self._main if dtype is None else self._main.astype(dtype, copy=False)
        return main.copy() if copy else main

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        arrays = [x._main if isinstance(x, ArrayResult) else x for x in inputs]
        return getattr(ufunc, method)(*arrays, **kwargs)

    def __mlx_array__(self) -> mx.array:
        import mlx.core as mx

        return mx.array(self._main)

    if not TYPE_CHECKING:  # A type checker would then accept any attribute.

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or not hasattr(np.ndarray, name):
                raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
            return getattr(self._main, name)

    def __getitem__(self, index: Any) -> Any:
        return self._main[index]

    def __len__(self) -> int:
        return len(self._main)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._main.shape

    @property
    def ndim(self) -> int:
        return self._main.ndim

    @property
    def T(self) -> FloatArray:
        return self._main.T
