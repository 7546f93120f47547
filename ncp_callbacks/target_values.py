"""Hold targets and gradients of variants of a batch, and declare what evaluates them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .results import FloatArray

__all__ = ["Evaluate", "ScaledTargets", "TargetValues"]


@dataclass(frozen=True, eq=False)
class TargetValues:
    """Hold the targets of variants of some sequences, and their gradients where requested.

    Attributes:
        values: ``(K, B)``, the targets.
        input_gradient: ``(K, B, T, F)``, or None if it was not requested.
        time_gradient: ``(K, B, T)``; None also if the model takes no ``time_delta``.
        loss: ``(K, B)``, the losses; None if they were not requested or are the targets.
    """

    values: FloatArray
    input_gradient: FloatArray | None = None
    time_gradient: FloatArray | None = None
    loss: FloatArray | None = None

    @property
    def nbytes(self) -> int:
        """Return the size of all arrays in bytes."""
        return sum(
            array.nbytes for f in fields(self) if (array := getattr(self, f.name)) is not None
        )

    def variant(self, number: int) -> TargetValues:
        """Return the values of one of the variants, with ``K = 1``."""
        columns = (getattr(self, f.name) for f in fields(self))
        return TargetValues(*[None if c is None else c[number : number + 1] for c in columns])  # type: ignore[arg-type]

    def of(self, sequences: npt.NDArray[np.intp]) -> TargetValues:
        """Return the values of some sequences.

        Args:
            sequences: Indices of the sequences.
        """
        columns = (getattr(self, f.name) for f in fields(self))
        return TargetValues(*[None if c is None else c[:, sequences] for c in columns])  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class ScaledTargets:
    """Hold the targets of some sequences with all elapsed times multiplied by factors.

    Attributes:
        values: ``(B,)``, by scale.
        losses: ``(B,)``, by scale; None if they were not requested, or are the targets.
    """

    values: Mapping[float, FloatArray]
    losses: Mapping[float, FloatArray] | None


class Evaluate(Protocol):
    """Evaluate the target of variants of a batch; see :meth:`ncp_callbacks.ExtraPasses.evaluate`.

    Without ``inputs`` and ``time_delta`` the batch itself is evaluated.
    """

    def __call__(
        self,
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        sequences: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
    ) -> TargetValues: ...
