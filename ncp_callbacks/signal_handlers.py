"""Tell errors of our code from what a signal handler of the user's raised meanwhile."""

from __future__ import annotations

import functools
import signal
from types import CodeType
from typing import Any

__all__ = ["raised_by_signal_handler"]


def raised_by_signal_handler(error: BaseException) -> bool:
    """Tell if an exception came out of a Python signal handler: it must reach the user.

    Batch systems warn by signals, and a handler may raise to end the training in good order. The
    traceback has a frame of the handler then.
    """
    codes = {code for number in signal.valid_signals() if (code := _code(number)) is not None}
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


def _code(number: int) -> CodeType | None:
    try:
        handler: Any = signal.getsignal(number)
    except ValueError:
        return None
    if not callable(handler) or handler is signal.default_int_handler:
        return None
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = getattr(handler, "__wrapped__", handler)
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__"):
        function = vars(type(handler)).get("__call__")
    return getattr(function, "__code__", None)
