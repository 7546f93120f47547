"""One thread for small matrices.

Analyses multiply small matrices on the training thread. With a thread for every core BLAS is no
faster at that, and where the cores are busy, with training or with its data, threads that wait for
each other make it many times slower.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["one_blas_thread"]


def one_blas_thread() -> AbstractContextManager[Any]:
    """While open, numpy's BLAS uses one thread, where it can be told to."""
    limited: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _controller() -> Any:
    # It comes with scikit-learn; finding the libraries takes milliseconds, once.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
