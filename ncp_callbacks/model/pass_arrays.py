"""Hold the results of passes as MLX arrays that are not evaluated yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

__all__ = ["Pass", "Variants"]


@dataclass(eq=False)
class Pass:
    """Hold the results of one pass as unevaluated MLX arrays.

    Attributes:
        sequence: ``(B, T, F)``, the array with respect to which gradients are computed.
        outputs: ``(B, T, O)``, of a forecast ``(B, H, O)``, or ``(B, O)``.
        values: ``(B,)``, targets.
        chosen: ``(B,)``, followed outputs, or None.
        input_gradient: ``(B, T, F)``, or None if it was not requested.
        time_gradient: ``(B, T)``, or None.
        states: By name of the cell hook, its state arrays: each a list over time steps of
            ``(B, H)``, or of one ``(B, T, H)``.
        initial: By name of the cell hook, state arrays ``(B, H)`` before the first step; without
            cells that receive none, or states that the model has changed.
        activations: By name of the layer hook, a list over time steps, or of one ``(B, T, N)``.
    """

    sequence: mx.array
    outputs: mx.array
    values: mx.array
    chosen: mx.array | None
    input_gradient: mx.array | None = None
    time_gradient: mx.array | None = None
    states: dict[str, list[list[mx.array]]] = field(default_factory=dict)
    initial: dict[str, list[mx.array]] = field(default_factory=dict)
    activations: dict[str, list[mx.array]] = field(default_factory=dict)

    def arrays(self) -> Any:
        """Return all arrays of the pass, to be evaluated."""
        wanted = (self.sequence, self.outputs, self.values, self.input_gradient, self.time_gradient)
        given = [array for array in wanted if array is not None]
        return given, self.states, self.initial, self.activations


@dataclass(eq=False)
class Variants:
    """Hold the targets of variants of the batch as unevaluated MLX arrays.

    Attributes:
        values: ``(K, B)``.
        input_gradient: ``(K, B, T, F)``, or None.
        time_gradient: ``(K, B, T)``, or None.
        loss: ``(K, B)``, or None.
    """

    values: mx.array
    input_gradient: mx.array | None = None
    time_gradient: mx.array | None = None
    loss: mx.array | None = None
