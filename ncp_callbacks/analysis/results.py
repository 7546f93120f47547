"""Bases of the result dataclasses: mappings over their fields, or arrays with company."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["ArrayResult", "FloatArray", "MappingResult"]

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]


class MappingResult(Mapping[str, Any]):
    """A dataclass that also reads like the dict of its fields: ``result["scales"]``."""

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

    def to_dict(self) -> dict[str, Any]:
        """The fields as a plain dict (arrays are not copied)."""
        return dict(self)


class ArrayResult:
    """A dataclass that stands for its main array wherever numpy wants one.

    ``np.asarray(result)``, ``result[0]``, ``result.shape`` and ``len(result)`` speak of that array;
    everything else is an attribute.
    """

    @property
    def _main(self) -> FloatArray:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        main = self._main if dtype is None else self._main.astype(dtype, copy=False)
        return main.copy() if copy else main

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
