"""Limit BLAS to one thread, which suits small matrices.

Analyses multiply small matrices. A BLAS thread on every core is no faster at that. Where the cores
are busy with training or its data, threads that wait for each other are many times slower.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["one_blas_thread"]


def one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which numpy's BLAS uses one thread, if the library can be limited."""
    limited: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _controller() -> Any:
    # Finding the libraries takes milliseconds, once.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
