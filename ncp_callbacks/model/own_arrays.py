"""Evaluate arrays, and make others of them that share no memory with a model in training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from ..signal_handlers import raised_by_signal_handler

__all__ = ["MAX_COPIED", "array_bytes", "evaluate_pending", "evaluates", "own_copy", "own_view"]

MAX_COPIED = 64 << 20
_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


def evaluate_pending(arrays: Iterable[Any]) -> set[int]:
    """Evaluate the MLX arrays among ``arrays``; return the ids of those that can't be."""
    pending = [array for array in arrays if isinstance(array, mx.array)]
    failed: set[int] = set()
    try:
        mx.eval(pending)
    except RuntimeError as error:
        if raised_by_signal_handler(error):
            raise
        failed = {id(array) for array in pending if not evaluates(array)}
    return failed


def evaluates(array: mx.array) -> bool:
    """Return whether an array can be evaluated."""
    try:
        mx.eval(array)
    except RuntimeError as error:
        if raised_by_signal_handler(error):
            raise
        return False
    return True


def own_copy(array: Any) -> Any:
    """Return an array with the same bits that shares no memory, of an array that is evaluated.

    MLX computes in place where nobody else holds an array's memory, and a compiled training step
    that can't may round its last bit another way. So whoever holds on to a trained parameter
    changes the training. Arrays above 64 MB are views all the same: twice their memory may be more
    than there is.
    """
    if not isinstance(array, mx.array):
        return array.copy()
    if array.nbytes > MAX_COPIED:
        return own_view(array)
    kept = array.view(_UNSIGNED[array.itemsize]) | 0
    mx.eval(kept)
    return kept.view(array.dtype)


def own_view(array: Any) -> Any:
    """Return an array that a later write in place doesn't reach; of MLX one that costs nothing."""
    # The identity shares the buffer, but is another object.
    return mx.stop_gradient(array) if isinstance(array, mx.array) else array.copy()


def array_bytes(array: mx.array) -> bytes:
    """Return the entries of an array in C order, every bit of them, of any dtype."""
    mx.eval(array)
    buffer: Any = array
    return memoryview(buffer).tobytes()
