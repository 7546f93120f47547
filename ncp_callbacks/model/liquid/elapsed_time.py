"""Find the elapsed times that a cell receives, and its unit of time."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...arrays import to_mlx, to_numpy
from ...results import FloatArray
from ..cell_stepper import CellStepper
from ..conventions import TIME_KEYWORDS
from ..pytrees import get_leaf, leaves, replace_leaf
from .calls import Arguments, RecordedModule

__all__ = ["ElapsedTime", "time_delta_per_call", "unit_of_time"]


class ElapsedTime:
    """Find the argument that passes elapsed time to a module, by its name or by its values.

    Args:
        recorded: The module, with its arguments in each step.
        time_delta: ``(S, T)``, the elapsed times of the sequences, or None.
        rows: Number of sequences ``S``.

    Attributes:
        found: True if there is such an argument, or a parameter whose default is a number.
        values: ``(S, T)``, the elapsed times that the module receives; NaN unless found.
    """

    _default_value: float

    def __init__(self, recorded: RecordedModule, time_delta: FloatArray | None, rows: int) -> None:
        self._rows = rows
        self.path = (
            self._by_name(recorded)
            or self._by_value(recorded, time_delta)
            or self._default(recorded)
        )
        self.found = self.path is not None
        self.values = np.full((rows, len(recorded.given)), np.nan)
        if self.path is None:
            return
        for t, given in enumerate(recorded.given):
            value = get_leaf(given, self.path)
            value = self._default_value if value is None else value
            flat = to_numpy(value).ravel() if isinstance(value, mx.array) else np.array([value])
            self.values[:, t] = flat

    def _by_name(self, recorded: RecordedModule) -> tuple[Any, ...] | None:
        args, kwargs = recorded.given[0]
        for name, value in kwargs.items():
            if name in TIME_KEYWORDS and self._fits(value):
                return (1, name)
        for index, name in enumerate(_positional(recorded.module)[: len(args)]):
            if name in TIME_KEYWORDS and self._fits(args[index]):
                return (0, index)
        return None

    def _by_value(
        self, recorded: RecordedModule, time_delta: FloatArray | None
    ) -> tuple[Any, ...] | None:
        if time_delta is None:
            return None
        for path, array in leaves(recorded.given[0]):
            if array.size == self._rows and all(
                np.allclose(
                    to_numpy(get_leaf(given, path)).ravel(),
                    time_delta[:, t],
                    rtol=1e-5,
                    equal_nan=True,
                )
                for t, given in enumerate(recorded.given)
            ):
                return path
        return None

    def _default(self, recorded: RecordedModule) -> tuple[Any, ...] | None:
        """Find a time parameter that isn't passed and whose default is a number."""
        for name, parameter in _parameters(recorded.module).items():
            value = parameter.default
            if name in TIME_KEYWORDS and isinstance(value, int | float):
                self._default_value = float(value)
                return (1, name)
        return None

    def _fits(self, value: Any) -> bool:
        if isinstance(value, mx.array):
            return value.size in (1, self._rows)
        return isinstance(value, int | float) and not isinstance(value, bool)

    def replace(self, given: Arguments, elapsed: Any) -> Arguments:
        """Return the arguments with one elapsed time, a number or a scalar, for all sequences."""
        assert self.path is not None
        old = get_leaf(given, self.path)
        if isinstance(old, mx.array):
            return _as_arguments(replace_leaf(given, self.path, _broadcast_like(elapsed, old)))
        args, kwargs = given
        if self.path[0] == 1 and self.path[1] not in kwargs:
            return args, {**kwargs, self.path[1]: to_mlx(elapsed)}
        return _as_arguments(replace_leaf(given, self.path, to_mlx(elapsed)))


def _as_arguments(tree: Any) -> Arguments:
    args, kwargs = tree
    return tuple(args), dict(kwargs)


def _broadcast_like(elapsed: Any, old: mx.array) -> mx.array:
    return mx.broadcast_to(to_mlx(elapsed).astype(old.dtype), old.shape)


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        found = inspect.signature(type(module).__call__).parameters
    except (TypeError, ValueError):
        return {}
    return dict(list(found.items())[1:])  # Without self.


def _positional(module: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in _parameters(module).items() if p.kind in kinds]


def unit_of_time(stepper: CellStepper, own: FloatArray, time_delta: FloatArray | None) -> float:
    """Return the cell's unit of time in units of ``time_delta``.

    The unit changes if the model scales the elapsed times before it passes them to the cell. It
    doesn't change if the model solves a step in several sub-steps.
    """
    if time_delta is None or stepper.calls_per_step != 1:
        return 1.0
    known = np.isfinite(own) & np.isfinite(time_delta) & (time_delta > 0)
    ratio = own[known] / time_delta[known]
    if not ratio.size or not (ratio > 0).all():
        return math.nan
    middle = float(np.median(ratio))
    return 1.0 / middle if np.allclose(ratio, middle, rtol=1e-4) else math.nan


def time_delta_per_call(stepper: CellStepper, time_delta: FloatArray | None) -> FloatArray:
    """Return ``(S, T)``, the time that one call of the cell covers, in units of ``time_delta``.

    Without a ``time_delta`` a step takes one unit of time.

    Args:
        stepper: The cell.
        time_delta: ``(S, T)``, the elapsed times of its sequences, or None.
    """
    calls = stepper.calls_per_step
    if time_delta is None:
        return np.ones((len(stepper.before(0)), stepper.steps)) / calls
    if calls > 1:
        own = ElapsedTime(
            RecordedModule(stepper.module, list(stepper.given)), None, len(time_delta)
        )
        if own.found and np.isfinite(own.values).all():
            return own.values
    return np.asarray(time_delta, np.float64) / calls
