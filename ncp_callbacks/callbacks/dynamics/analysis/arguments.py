"""Check masks, elapsed times and Jacobians, and tell which time steps are real."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ....results import FloatArray

__all__ = [
    "SMALLEST",
    "BoolArray",
    "as_elapsed",
    "as_jacobians",
    "as_mask",
    "broken_steps",
    "elapsed_within",
    "real_steps",
]

# Smallest factor per step that float32 Jacobians can represent.
SMALLEST = 1e-30
BoolArray = npt.NDArray[np.bool_]


def as_mask(mask: np.ndarray | None, shape: tuple[int, ...]) -> BoolArray:
    """Return a mask as booleans, all true for None.

    Raises:
        ValueError: For another shape.
    """
    real = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
    if real.shape != shape:
        raise ValueError(f"mask has shape {real.shape}: pass {shape}, one value for each time step")
    return real


def as_elapsed(time_delta: FloatArray | None, use: BoolArray) -> npt.NDArray[np.float64]:
    """Return elapsed times, ``(B, T)``, with 0 at padding; 1 for each time step if not given.

    Raises:
        ValueError: For another shape.
    """
    if time_delta is None:
        return use.astype(np.float64)
    if time_delta.shape != use.shape:
        raise ValueError(
            f"time_delta has shape {time_delta.shape}: pass {use.shape}, the elapsed time before "
            "each time step"
        )
    return np.where(use, time_delta, 0.0).astype(np.float64)


def as_jacobians(jacobians: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return Jacobians as an array ``(S, T-1, H, H)``.

    Raises:
        ValueError: For another shape.
    """
    array = np.asarray(jacobians)
    if array.ndim != 4 or array.shape[2] != array.shape[3] or 0 in array.shape:
        raise ValueError(
            f"jacobians have shape {array.shape}: pass (sequences, time steps - 1, units, units)"
        )
    return array


def real_steps(mask: np.ndarray | None, shape: tuple[int, ...]) -> tuple[BoolArray, BoolArray]:
    """Return masks of real time steps ``(S, T)`` and of Jacobians between two, ``(S, T-1)``."""
    real = as_mask(mask, (shape[0], shape[1] + 1))
    return real, real[:, 1:] & real[:, :-1]


def elapsed_within(
    time_delta: FloatArray | None, real: BoolArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return ``(S, T)`` elapsed times and ``(S,)`` the last real time step of each sequence."""
    last = real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
    return as_elapsed(time_delta, real), last


def broken_steps(jacobians: FloatArray, valid: BoolArray) -> BoolArray:
    """Return real steps ``(S, T-1)`` whose Jacobians hold NaN or infinity."""
    return valid & ~np.isfinite(jacobians).all(axis=(2, 3))
