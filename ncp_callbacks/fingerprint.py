"""Describe what a run was analysed on, so that runs are compared only where that makes sense."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from .arrays import to_numpy
from .callback import Callback
from .held_out import HeldOutBatch

__all__ = ["batch_digest", "fingerprint"]


def fingerprint(held_out: HeldOutBatch, callbacks: Iterable[Callback], target: str) -> str:
    """Return JSON with the held-out batch's digest, feature names, target and methods.

    Args:
        held_out: The batch.
        callbacks: Those that run. Each has its :attr:`~.callback.Callback.conditions` listed, and
            the number of sequences that it is limited to.
        target: Name of the target.
    """
    methods = {callback.name: text for callback in callbacks if (text := _conditions(callback))}
    content: dict[str, Any] = {
        "held_out": batch_digest(held_out),
        "feature_names": list(held_out.feature_names),
        "target": target,
        "method": methods,
    }
    return json.dumps(content, sort_keys=True)


def _conditions(callback: Callback) -> str:
    most, target = callback.max_sequences, callback.target
    limit = "" if most is None else f"at most {most} sequences"
    own = "" if target is None else f"target {_named(target)}"
    return ", ".join(filter(None, (callback.conditions, own, limit)))


def _named(target: Any) -> str:
    """Return the name of a callback's own target."""
    return str(getattr(target, "__name__", type(target).__name__) if callable(target) else target)


def batch_digest(held_out: HeldOutBatch) -> str:
    """Return a digest of inputs, elapsed time, mask and targets.

    Features are taken in the order of their names, so that the same data with its columns in
    another order, named alike, is the same batch.
    """
    inputs, axis = to_numpy(held_out.inputs), held_out.channel_axis
    if axis is not None:
        inputs = np.take(inputs, np.argsort(np.array(held_out.feature_names)), axis + 2)
    arrays = [inputs]
    for given in (held_out.flat_time_delta, held_out.targets):
        if isinstance(given, mx.array):
            arrays.append(to_numpy(given))
    arrays.append(held_out.mask_array.astype(np.float32))
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()[:32]
