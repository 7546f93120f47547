"""Measure the stability of a recurrent state by the Jacobians of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ....results import FloatArray
from .arguments import SMALLEST, BoolArray, as_elapsed, as_jacobians, broken_steps, real_steps

__all__ = [
    "exponents_of",
    "gain_sequences",
    "jacobian_gains",
    "log_singular_values",
    "log_spectral_radius",
    "lyapunov_exponents",
    "stability_exponents",
]


def jacobian_gains(
    jacobians: FloatArray, *, mask: np.ndarray | None = None, max_steps: int | None = 64
) -> tuple[FloatArray, FloatArray]:
    """Return spectral radius and operator norm of single steps.

    With a radius above 1, changes along some direction could grow; with a norm above 1, some grow
    in this step. A norm far above the radius means that the Jacobian is far from normal.

    Args:
        jacobians: ``(S, T-1, H, H)``.
        mask: ``(S, T)``, true at real time steps.
        max_steps: Largest number of steps that are analysed, chosen at random and always the same;
            None for all. Eigenvalues of one step cost about ``25 H^3``.

    Returns:
        ``(N,)`` and ``(N,)``, without steps that hold NaN or infinity.
    """
    jacobians = as_jacobians(jacobians)
    steps = jacobians[_analysed(jacobians, mask, max_steps)].astype(np.float64)
    if not steps.size:
        return np.empty(0), np.empty(0)
    radius = np.abs(np.linalg.eigvals(steps)).max(axis=1)
    # The eigenvalues of J'J, several times cheaper than the singular values of J.
    norm = np.sqrt(np.maximum(np.linalg.eigvalsh(steps.transpose(0, 2, 1) @ steps)[:, -1], 0.0))
    return radius, norm


def gain_sequences(
    jacobians: FloatArray, *, mask: np.ndarray | None = None, max_steps: int | None = 64
) -> npt.NDArray[np.intp]:
    """Return the sequence of each step of :func:`jacobian_gains`, ``(N,)``.

    Args:
        jacobians: See :func:`jacobian_gains`.
        mask: See :func:`jacobian_gains`.
        max_steps: See :func:`jacobian_gains`.
    """
    return _analysed(as_jacobians(jacobians), mask, max_steps)[0]


def _analysed(
    jacobians: FloatArray, mask: np.ndarray | None, max_steps: int | None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return sequences and steps that are analysed."""
    sequence, step = np.nonzero(real_steps(mask, jacobians.shape)[1])
    if max_steps is not None and len(step) > max_steps:
        some = np.sort(np.random.default_rng(0).choice(len(step), max_steps, replace=False))
        sequence, step = sequence[some], step[some]
    finite = np.isfinite(jacobians[sequence, step]).all(axis=(1, 2))
    return sequence[finite], step[finite]


def lyapunov_exponents(
    jacobians: FloatArray,
    *,
    time_delta: FloatArray | None = None,
    mask: np.ndarray | None = None,
    count: int = 3,
) -> FloatArray:
    """Return the largest finite-time Lyapunov exponents of each sequence.

    They are the logarithms of the singular values of the product of all steps, over its elapsed
    time. The largest is the rate at which the fastest growing change has grown, and the sum of all
    is the rate of volumes. Over few steps it can be above 0 where every change fades in the long
    run; :func:`stability_exponents` has no such transient.

    The product itself would overflow or lose all but the largest. Instead a frame of orthonormal
    directions is carried through the steps and made orthonormal again at each, by QR. It goes from
    the end back to the start through the transposed steps and forward again, until it is the frame
    of the directions that grow most.

    Args:
        jacobians: ``(S, T-1, H, H)``.
        time_delta: ``(S, T)``, the elapsed time before each time step.
        mask: ``(S, T)``, true at real time steps.
        count: Number of exponents.

    Returns:
        ``(S, min(count, H))``, decreasing, in 1 / unit of ``time_delta`` or per time step; NaN for
        sequences without two real time steps and those with NaN or infinity. A change that vanishes
        altogether counts as a factor of 1e-30 per step.

    Raises:
        ValueError: For shapes that don't fit, and ``count`` below 1.

    Source: Benettin et al. 1980 (doi 10.1007/BF02128236).
    """
    if count < 1:
        raise ValueError(f"count={count}: pass the number of exponents, at least 1")
    jacobians = as_jacobians(jacobians)
    width = jacobians.shape[-1]
    count = min(count, width)

    def logs(valid: BoolArray) -> FloatArray:
        found = np.full((len(valid), count), np.nan)
        known = ~broken_steps(jacobians, valid).any(axis=1)
        steps = jacobians[known]

        def apply(t: int, frame: FloatArray, forward: bool) -> FloatArray:
            step = steps[:, t].astype(np.float64)
            moved: FloatArray = (step if forward else step.transpose(0, 2, 1)) @ frame
            return moved

        if known.any():
            found[known] = log_singular_values(apply, valid[known], width, count, tolerance=1e-7)
        return found

    return exponents_of(logs, jacobians.shape, time_delta, mask, count)


def stability_exponents(
    jacobians: FloatArray, *, time_delta: FloatArray | None = None, mask: np.ndarray | None = None
) -> FloatArray:
    """Return the stability exponent of each sequence: its growth rate without the transient.

    It is the logarithm of the spectral radius of the product of all steps, over its elapsed time:
    the rate at which changes would grow if the sequence went on repeating. The norm of the product,
    whose rate is the finite-time Lyapunov exponent, also holds growth that doesn't last: a map
    ``[[.9, 5], [0, .9]]`` contracts at ``log .9`` per step, but over 8 steps its largest singular
    value grows. The spectral radius depends on no coordinates and has no such part.

    Args:
        jacobians: ``(S, T-1, H, H)``.
        time_delta: ``(S, T)``, the elapsed time before each time step.
        mask: ``(S, T)``, true at real time steps.

    Returns:
        ``(S,)``, in 1 / unit of ``time_delta`` or per time step; NaN as for
        :func:`lyapunov_exponents`. It is at most the largest finite-time exponent.

    Raises:
        ValueError: For shapes that don't fit.

    Source: Goldhirsch, Sulem & Orszag 1987 (doi 10.1016/0167-2789(87)90034-0).
    """
    jacobians = as_jacobians(jacobians)
    width = jacobians.shape[-1]

    def logs(valid: BoolArray) -> FloatArray:
        found = np.full((len(valid), 1), np.nan)
        known = ~broken_steps(jacobians, valid).any(axis=1)
        steps = jacobians[known]
        if known.any():

            def apply(t: int, frame: FloatArray) -> FloatArray:
                moved: FloatArray = steps[:, t].astype(np.float64) @ frame
                return moved

            found[known, 0] = log_spectral_radius(apply, valid[known], width, width)
        return found

    return exponents_of(logs, jacobians.shape, time_delta, mask, 1)[:, 0]


def log_spectral_radius(
    apply: Callable[[int, FloatArray], FloatArray],
    valid: BoolArray,
    width: int,
    count: int,
    passes: int = 2,
) -> npt.NDArray[np.float64]:
    """Return the logarithm of the spectral radius of a product, ``(S,)``.

    A frame is carried through the product repeatedly and made orthonormal at each step. Within the
    frame, the product is ``Q_0' Q_T R``, with the triangle ``R`` of all steps.

    Args:
        apply: Takes a step and a frame ``(S, H, count)``, and returns the frame after the step.
        valid: ``(S, T-1)``, true at the steps that count.
        width: ``H``.
        count: Number of directions in the frame; exact for ``H``.
        passes: Number of times that the frame is carried through the product.
    """
    sequences, steps = valid.shape
    start = np.linalg.qr(np.random.default_rng(0).standard_normal((width, count)))[0]
    frame = np.broadcast_to(start, (sequences, width, count))
    broken = np.zeros(sequences, bool)
    for _ in range(passes):
        first, scale = frame, np.zeros(sequences)
        whole = np.broadcast_to(np.eye(count), (sequences, count, count))
        for t in range(steps):
            moved = np.where(valid[:, t, None, None], apply(t, frame), frame)
            finite = np.asarray(np.isfinite(moved).all(axis=(1, 2)))
            broken |= ~finite
            frame, triangle = np.linalg.qr(np.where(finite[:, None, None], moved, frame))
            whole = triangle @ whole
            size = np.maximum(np.linalg.norm(whole, axis=(1, 2)), SMALLEST)
            whole, scale = whole / size[:, None, None], scale + np.log(size)
    within = first.transpose(0, 2, 1) @ frame @ whole
    radius = np.abs(np.linalg.eigvals(within)).max(axis=1)
    # A product that vanishes altogether counts as a factor of 1e-30 per step.
    least = valid.sum(axis=1) * math.log(SMALLEST)
    logs = np.maximum(np.log(np.maximum(radius, np.finfo(float).tiny)) + scale, least)
    return np.where(broken, np.nan, logs)


def exponents_of(
    logs: Callable[[BoolArray], FloatArray],
    shape: tuple[int, ...],
    time_delta: FloatArray | None,
    mask: np.ndarray | None,
    count: int,
) -> FloatArray:
    """Return exponents from logarithms of singular values, ``(S, count)``; NaN without real steps.

    Args:
        logs: Returns the logarithms ``(S, count)`` of the steps that are real, ``(S, T-1)``.
        shape: Shape of the Jacobians.
        time_delta: See :func:`lyapunov_exponents`.
        mask: See :func:`lyapunov_exponents`.
        count: See :func:`lyapunov_exponents`.
    """
    real, valid = real_steps(mask, shape)
    took = (valid * as_elapsed(time_delta, real)[:, 1:]).sum(axis=1)
    result = np.full((shape[0], count), np.nan)
    known = valid.any(axis=1)
    if known.any():
        found = logs(valid)
        result[known] = found[known] / took[known, None]
    return result


def log_singular_values(
    apply: Callable[[int, FloatArray, bool], FloatArray],
    valid: BoolArray,
    width: int,
    count: int,
    *,
    tolerance: float,
    needed: int | None = None,
) -> npt.NDArray[np.float64]:
    """Return logarithms of the largest singular values of a product, ``(S, count)``, decreasing.

    They are NaN for sequences in which a factor is not finite.

    Args:
        apply: Takes a step, a frame ``(S, H, count)`` and True, and returns the frame after the
            step; with False it returns the product of the transposed step with the frame.
        valid: ``(S, T-1)``, true at the steps that count.
        width: ``H``.
        count: Number of directions in the frame.
        tolerance: Relative change of the logarithms at which they have converged.
        needed: Number of the largest that must converge, computed within the frame; None for all,
            computed from the lengths of the frame's directions.
    """
    sequences, steps = valid.shape
    broken = np.zeros(sequences, bool)
    start = np.linalg.qr(np.random.default_rng(0).standard_normal((width, count)))[0]
    frame = np.broadcast_to(start, (sequences, width, count))

    def carry(
        frame: npt.NDArray[np.float64], order: range, forward: bool
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        logs = np.zeros((sequences, count))
        whole, scale = (
            np.broadcast_to(np.eye(count), (sequences, count, count)),
            np.zeros(sequences),
        )
        for t in order:
            use = valid[:, t, None, None]
            moved = np.where(use, apply(t, frame, forward), frame)
            finite = np.asarray(np.isfinite(moved).all(axis=(1, 2)))
            broken[~finite] = True
            frame, triangle = np.linalg.qr(np.where(finite[:, None, None], moved, frame))
            grown = np.abs(np.diagonal(triangle, axis1=1, axis2=2))
            logs += np.where(use[..., 0], np.log(np.maximum(grown, SMALLEST)), 0.0)
            if needed is not None:
                whole = triangle @ whole
                size = np.maximum(np.linalg.norm(whole, axis=(1, 2)), SMALLEST)
                whole, scale = whole / size[:, None, None], scale + np.log(size)
        if needed is not None and forward:
            # Within the frame the leading ones are exact, long before its directions converge.
            inside = np.linalg.svd(whole, compute_uv=False)
            use = inside > 1e-10 * inside[:, :1]
            logs = np.where(use, np.log(np.maximum(inside, SMALLEST)) + scale[:, None], logs)
        return frame, logs

    logs = np.zeros((sequences, count))
    for _ in range(12):
        frame, _ = carry(frame, range(steps - 1, -1, -1), False)
        frame, new = carry(frame, range(steps), True)
        change, largest = np.abs(new - logs)[:, :needed], np.abs(new)[:, :needed]
        final = change.max() < tolerance * max(1.0, float(largest.max()))
        logs = new
        if final:
            break
    logs[broken] = np.nan
    return -np.sort(-logs, axis=1)
