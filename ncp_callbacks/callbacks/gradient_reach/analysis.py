"""Measure the norm of the target's gradient by how many time steps back it reaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...results import FloatArray, MappingResult
from ...stats import SIZE, Estimate, ci_array
from ..dynamics.analysis import last_crossing

__all__ = ["GradientReachCurve", "gradient_reach"]

# Of squares: a norm that is smaller, or 0, counts as 1e-30.
_SMALLEST = 1e-60


@dataclass(frozen=True, eq=False)
class GradientReachCurve(MappingResult):
    """Hold the norm of the target's gradient by the state, against the number of time steps back.

    Attributes:
        curve: ``(K,)``, the gradient's norm ``k`` time steps before the last state that the target
            depends on, relative to that at ``k = 0``; geometric mean over sequences.
        ci: ``(2, K)``, 95 % CIs over sequences.
        first_step: The norm at the first real time step, relative to that at ``k = 0``; geometric
            mean over sequences. An RMS would be that of a few sequences.
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
    """Return how the norm of a gradient depends on the number of time steps back.

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
    there, known = there[:, :longest], known[:, :longest]
    logs = _log_ratios(there, there[:, :1])
    at_each = [Estimate.geometric_mean(logs[own, k]) for k, own in enumerate(known.T)]
    curve, lags = np.array([each.value for each in at_each]), np.arange(longest)
    steps, fades = last_crossing(curve, lags)
    estimates = {}
    if fades and count > 2:
        total, number = np.where(known, logs, 0.0), known.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            others = np.exp((total.sum(axis=0) - total) / (number.sum(axis=0) - number))
        kept = np.isfinite(others)  # Not the lags of a single sequence.
        without_each = [last_crossing(o[k], lags[k])[0] for o, k in zip(others, kept, strict=True)]
        estimates["steps"] = Estimate.jackknife(steps, without_each, SIZE)
    rows = np.arange(count)
    far = _log_ratios(squares[rows, first], squares[rows, last])
    estimates["first_step"] = Estimate.geometric_mean(far)
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


def _log_ratios(squares: FloatArray, last: FloatArray) -> FloatArray:
    """Return the logarithm of norms, relative to the last, from their squares."""
    with np.errstate(over="ignore", divide="ignore"):
        return np.asarray(0.5 * np.log(np.maximum(squares / last, _SMALLEST)))
