"""Tell errors of our code from what a signal handler of the user's raised meanwhile."""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Iterator
from types import CodeType
from typing import Any

__all__ = ["raised_by_signal_handler", "suppressed_errors"]


def raised_by_signal_handler(error: BaseException) -> bool:
    """Tell if an exception came out of a Python signal handler: it must reach the user.

    Batch systems warn by signals, and a handler may raise to end the training in good order. The
    traceback has a frame of the handler then.
    """
    codes = {code for number in signal.valid_signals() for code in _codes(number)}
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in codes:
                return True
            trace = trace.tb_next
        error = error.__cause__  # type: ignore[assignment]
    return False


@contextlib.contextmanager
def suppressed_errors() -> Iterator[None]:
    """Suppress exceptions of the block, but for those of the user's signal handlers."""
    try:
        yield
    except Exception as error:
        if raised_by_signal_handler(error):
            raise


def _codes(number: int) -> Iterator[CodeType]:
    """Iterate over the code of a handler and of the functions that it wraps."""
    try:
        handler: Any = signal.getsignal(number)
    except ValueError:
        return
    if not callable(handler) or handler is signal.default_int_handler:
        return
    while handler is not None:
        while isinstance(handler, functools.partial):
            handler = handler.func
        function = getattr(handler, "__func__", handler)
        if not hasattr(function, "__code__"):
            function = type(handler).__call__
        code = getattr(function, "__code__", None)
        if code is not None:
            yield code
        handler = getattr(handler, "__wrapped__", None)
