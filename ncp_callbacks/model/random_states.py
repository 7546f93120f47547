"""Read and restore the states of the global random generators."""

from __future__ import annotations

import random
import threading
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

__all__ = ["random_states", "restore_random_states"]

# Threads that draw no random numbers: ours, those that feed other processes, and progress bars'.
_QUIET_THREADS = ("ncp_callbacks", "QueueFeederThread")
_QUIET_MODULES = ("tqdm.", "joblib.")


class _RandomStates(NamedTuple):
    mlx: Any
    numpy: Any
    python: Any


def random_states() -> _RandomStates:
    """Return the states of the global generators of MLX, numpy and Python."""
    key = mx.random.state[0].tolist()  # type: ignore[index]
    if _shared_by_threads():
        return _RandomStates(key, None, None)
    return _RandomStates(key, np.random.get_state(), random.getstate())  # noqa: NPY002


def restore_random_states(states: _RandomStates) -> None:
    """Put the global generators back to how :func:`random_states` found them."""
    # `state` can't be assigned to in recent MLX; this seed gives the same key in all versions.
    mx.random.seed((states.mlx[0] << 32) | states.mlx[1])
    # Another thread that was started meanwhile may have drawn: its numbers must not come again.
    if states.numpy is not None and not _shared_by_threads():
        np.random.set_state(states.numpy)  # noqa: NPY002
        random.setstate(states.python)


def _shared_by_threads() -> bool:
    """Return whether a thread of the user's could use the global generators, as data loaders do."""
    own = threading.current_thread()
    return any(
        thread is not own
        and not thread.name.startswith(_QUIET_THREADS)
        and not type(thread).__module__.startswith(_QUIET_MODULES)
        for thread in threading.enumerate()
    )
