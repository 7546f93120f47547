"""Convert arrays between MLX and numpy, and keep callers from writing into those of the package."""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

__all__ = ["FLOATING", "copied", "guarded", "read_only", "to_mlx", "to_numpy"]

_A = TypeVar("_A", bound=np.ndarray[Any, Any])

# The dtypes that MLX has gradients of.
FLOATING = (mx.float16, mx.bfloat16, mx.float32, mx.float64)


def to_numpy(array: mx.array) -> npt.NDArray[np.float32]:
    """Return a float32 copy of an MLX array."""
    # numpy has no bfloat16, and through a view it could write into MLX.
    return np.array(array.astype(mx.float32), dtype=np.float32)


def to_mlx(value: Any) -> mx.array:
    """Return an MLX array, also of views that run backwards, such as ``x[::-1]``.

    While ``mx.array`` reads a numpy array it drops what a signal handler raises, such as the
    KeyboardInterrupt of Ctrl-C; reading the array's memory drops nothing.
    """
    if not isinstance(value, np.ndarray):
        return mx.array(value)
    whole: Any = np.asarray(value, value.dtype.newbyteorder("="), order="C")
    if whole.dtype.kind in "biufc":
        whole = memoryview(whole)
    return mx.array(whole)


def read_only(array: _A) -> _A:
    """Return a read-only view of ``array``."""
    view = array.view()
    view.flags.writeable = False
    return view


def guarded(value: Any) -> Any:
    """Copy MLX arrays and containers, and make numpy arrays read-only, for callers."""
    if isinstance(value, mx.array):
        return mx.array(value)
    if isinstance(value, np.ndarray):
        return read_only(value)
    if type(value) is dict:
        return {key: guarded(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(guarded, value))
    return value


def copied(value: Any) -> Any:
    """Copy arrays and their containers, so that later changes by the caller have no effect."""
    if isinstance(value, np.ndarray):
        return read_only(value.copy())
    if type(value) is dict:
        return {key: copied(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return guarded(value)
