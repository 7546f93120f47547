"""Measure the norm of the target's gradient by how many time steps back it reaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...results import FloatArray, MappingResult
from ...stats import SIZE, Estimate, ci_array
from ..dynamics.analysis import last_crossing

__all__ = ["GradientReachCurve", "gradient_reach"]


@dataclass(frozen=True, eq=False)
class GradientReachCurve(MappingResult):
    """Hold the norm of the target's gradient by the state, against how long ago the state was.

    Attributes:
        curve: ``(K,)``, RMS over sequences of the gradient's norm, ``k`` time steps before the last
            state that the target depends on, in parts of that at ``k = 0``.
        ci: ``(2, K)``, 95 % CIs over sequences.
        first_step: The RMS norm at the first real time step, in parts of that at ``k = 0``.
        steps: Number of time steps back over which the curve falls below 1/e for good; that of the
            longest sequence if it does not.
        fades: True if it does.
        cell: Name of the cell.
        target: Name of the target.
        sequences: Number of sequences.
        non_finite: Number of sequences skipped because of NaN or infinity.
        estimates: ``first_step`` and ``steps`` as estimates over sequences, by name.
    """

    _plot = "plot_gradient_reach"

    curve: FloatArray
    ci: FloatArray
    first_step: float
    steps: float
    fades: bool
    cell: str
    target: str
    sequences: int
    non_finite: int
    estimates: dict[str, Estimate]


def gradient_reach(
    gradient: FloatArray,
    mask: npt.NDArray[np.bool_] | None = None,
    *,
    cell: str = "cell",
    target: str = "target",
) -> GradientReachCurve | None:
    """Return how the norm of a gradient depends on how long ago the state was.

    Args:
        gradient: ``(B, T, H)``, the gradient by the state after each time step, in the order in
            which the cell runs.
        mask: ``(B, T)``, true at real time steps; None: all are.
        cell: Name of the cell.
        target: Name of the target.

    Returns:
        None if the gradient is 0 in all sequences.

    Source: the norm of ``dL/dh_t``, as in Pascanu, Mikolov & Bengio 2013 (arXiv:1211.5063).
    """
    real = np.ones(gradient.shape[:2], bool) if mask is None else mask
    finite = np.isfinite(gradient).all(axis=(1, 2))
    squares = np.where(real, (gradient.astype(np.float64) ** 2).sum(axis=2), 0.0)[finite]
    reached = squares > 0
    some = reached.any(axis=1)
    skipped, squares, reached, real = (
        int((~finite).sum()),
        squares[some],
        reached[some],
        real[finite][some],
    )
    if not len(squares):
        return None
    count, length = squares.shape
    last, first = length - 1 - np.argmax(reached[:, ::-1], axis=1), np.argmax(real, axis=1)
    back = last[:, None] - np.arange(length)  # Time steps back to each lag.
    there = np.take_along_axis(squares, np.maximum(back, 0), axis=1)
    known = (back >= 0) & np.take_along_axis(real, np.maximum(back, 0), axis=1)
    longest = int(np.flatnonzero(known.any(axis=0))[-1]) + 1
    there, known = np.where(known, there, 0.0)[:, :longest], known[:, :longest]
    lags = np.arange(longest)
    # The norm at the beginning of the very sequences that are as long as that.
    start = np.where(known, there[:, :1], 0.0)
    at_each = [
        Estimate.of_sums(_root, np.stack(p, axis=1), SIZE)
        for p in zip(there.T, start.T, strict=True)
    ]
    curve = np.array([each.value for each in at_each])
    steps, fades = last_crossing(curve, lags)
    estimates = {}
    if fades and count > 2:
        total, base = there.sum(axis=0), start.sum(axis=0)
        without = [
            last_crossing(_root(np.stack([total - a, base - b], axis=-1)), lags)[0]
            for a, b in zip(there, start, strict=True)
        ]
        estimates["steps"] = Estimate.jackknife(steps, without, SIZE)
    rows = np.arange(count)
    far = np.stack([squares[rows, first], squares[rows, last]], axis=1)
    estimates["first_step"] = Estimate.of_sums(_root, far, SIZE)
    return GradientReachCurve(
        curve,
        ci_array(at_each),
        estimates["first_step"].value,
        steps,
        fades,
        cell,
        target,
        count,
        skipped,
        estimates,
    )


def _root(sums: FloatArray) -> FloatArray:
    """Return the square root of the quotient of ``(..., 2)`` sums."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(sums[..., 0] / sums[..., 1]))
