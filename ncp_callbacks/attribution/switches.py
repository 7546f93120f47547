"""Replace whole features by their baseline, where a feature has several columns.

A channel of frames has a column for each pixel, and a token one for each dimension of its
embedding. Methods that replace inputs then vary switches, one for each feature and time step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from ..target_values import Evaluate, TargetValues

__all__ = ["with_switches"]

# Elements of the inputs in memory at once; switches themselves are few.
_MAX_ELEMENTS = 1 << 24


def with_switches(
    evaluate: Evaluate,
    inputs: FloatArray,
    baseline: FloatArray,
    feature_of_columns: npt.NDArray[np.intp],
) -> tuple[Evaluate, FloatArray, FloatArray]:
    """Return a batch whose inputs are switches, 1 for the inputs and 0 for their baseline.

    Args:
        evaluate: Evaluates variants ``(K, B, T, P)`` of the inputs.
        inputs: ``(B, T, P)``.
        baseline: ``(B, T, P)``.
        feature_of_columns: ``(P,)``, the index of each column's feature, from 0 to ``F - 1``.

    Returns:
        A function that evaluates variants ``(K, B, T, F)`` of the switches, without gradients; the
        switches of the batch itself, ones ``(B, T, F)``; and their baseline, zeros.
    """
    own, other = np.asarray(inputs, np.float32), np.asarray(baseline, np.float32)

    def switched(
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        sequences: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
    ) -> TargetValues:
        if gradient:
            raise ValueError(
                "a method that replaces inputs got gradient=True: evaluate without gradients, or "
                "set replaces_inputs = False in the method"
            )
        if inputs is None:
            return evaluate(None, time_delta, sequences=sequences)
        x, x0 = (own, other) if sequences is None else (own[sequences], other[sequences])
        each = max(1, _MAX_ELEMENTS // x.size)
        values = []
        for start in range(0, len(inputs), each):
            here = slice(start, start + each)
            on = inputs[here][..., feature_of_columns].astype(np.float32)
            # Exactly the inputs where a switch is on, without a rounding error.
            varied = np.where(on == 1, x, x0 + on * (x - x0))
            times = None if time_delta is None else time_delta[here]
            values.append(evaluate(varied, times, sequences=sequences).values)
        return TargetValues(np.concatenate(values))

    features = int(feature_of_columns.max()) + 1
    ones = np.ones((*own.shape[:2], features))
    return switched, ones, np.zeros_like(ones)
