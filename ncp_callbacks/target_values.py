"""Targets and gradients of variants of a batch, and the function that evaluates them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .results import FloatArray

__all__ = ["Evaluate", "TargetValues"]


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

    def of(self, rows: npt.NDArray[np.intp]) -> TargetValues:
        """Return the values of some sequences.

        Args:
            rows: Indices of the sequences.
        """
        columns = (getattr(self, f.name) for f in fields(self))
        return TargetValues(*[None if c is None else c[:, rows] for c in columns])  # type: ignore[arg-type]


class Evaluate(Protocol):
    """Evaluate the target of variants of a batch; see :meth:`ncp_callbacks.Observation.evaluate`.

    Without ``inputs`` and ``time_delta`` the batch itself is evaluated.
    """

    def __call__(
        self,
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        rows: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
    ) -> TargetValues: ...
