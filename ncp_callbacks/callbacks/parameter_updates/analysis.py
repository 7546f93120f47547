"""Measure how much parameters have changed, relative to their size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...parameter_groups import parameter_groups
from ...results import FloatArray, MappingResult

__all__ = ["ParameterChanges", "euclidean_norm", "parameter_changes"]


@dataclass(frozen=True, eq=False)
class ParameterChanges(MappingResult):
    """Hold how much parameters have changed between two snapshots.

    Attributes:
        total: Norm of the change of all parameters together, relative to their norm, per training
            step.
        by_part: That change of each part of the model, by its name.
        unchanged: Names of the parameters of which no element has changed.
        steps: Number of training steps between the snapshots.
    """

    total: float
    by_part: Mapping[str, float]
    unchanged: tuple[str, ...]
    steps: int


def parameter_changes(
    before: Mapping[str, FloatArray], now: Mapping[str, FloatArray], steps: int
) -> ParameterChanges:
    """Return how much parameters have changed, relative to their size.

    The change is that from one snapshot to the next: a parameter that goes to and fro changes less
    than the sum of its updates.

    Args:
        before: Parameters of the earlier snapshot, by name.
        now: Those of the later one. A parameter that is new, has another shape, or holds NaN or
            infinity in either is skipped.
        steps: Number of training steps in between, at least 1.

    Returns:
        The changes, relative to the larger of the sizes before and now, as biases begin at 0.
    """
    # In float64: squares of float32 values overflow.
    old = {
        name: before[name].astype(np.float64)
        for name, array in now.items()
        if name in before and before[name].shape == array.shape and _finite(before[name], array)
    }
    moves = {name: now[name] - array for name, array in old.items()}

    def relative(names: Iterable[str]) -> float:
        chosen = list(names)
        size = max(euclidean_norm(old[n] for n in chosen), euclidean_norm(now[n] for n in chosen))
        return euclidean_norm(moves[n] for n in chosen) / size if size else 0.0

    parts = parameter_groups({name: moves[name].size for name in old})
    return ParameterChanges(
        relative(old) / steps,
        {part: relative(names) / steps for part, names in parts.items()},
        tuple(name for name in old if not moves[name].any()),
        steps,
    )


def euclidean_norm(arrays: Iterable[FloatArray]) -> float:
    """Return the norm of the elements of all arrays together."""
    return float(np.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays)))


def _finite(*arrays: FloatArray) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)
