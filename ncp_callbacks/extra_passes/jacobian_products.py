"""Multiply the Jacobians of a cell's steps with vectors, without computing the Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..results import FloatArray

__all__ = ["JacobianProducts"]


@dataclass(frozen=True, eq=False)
class JacobianProducts:
    """Compute products of the Jacobians ``J_t = d h_{t+1} / d h_t`` of a cell's steps with vectors.

    Attributes:
        sequences: ``S``.
        steps: ``T - 1``.
        units: ``H``.
        forward: ``(t, (S, H, k)) -> (S, H, k)``, ``J_t v``.
        backward: ``(t, (S, H, k)) -> (S, H, k)``, ``J_t' v``.
    """

    sequences: int
    steps: int
    units: int
    forward: Callable[[int, FloatArray], FloatArray]
    backward: Callable[[int, FloatArray], FloatArray]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(S, T - 1, H, H)``, the shape of the Jacobians themselves."""
        return self.sequences, self.steps, self.units, self.units
