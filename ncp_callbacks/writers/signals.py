"""Close the logs of this process when it is asked to end.

Python's exit and exceptions close a log; SIGTERM, sent by batch systems and by ``kill``, and
SIGHUP, sent when a terminal closes, run nothing. While a log is open, one handler takes these
signals: it closes all open logs, and then the process dies of the signal as before.

A forked child doesn't get the handler. ``multiprocessing`` ends its workers by SIGTERM, and one
that arrives while a worker goes to wait for a semaphore would be noted by Python and wait there.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType

__all__ = ["ClosesOnSignals"]

logger = logging.getLogger("ncp_callbacks")

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds for all logs. Batch systems kill the process some 10 to 30 s after the signal.
_TIMEOUT = 8.0


class ClosesOnSignals:
    """Call ``close`` on SIGTERM and SIGHUP, as long as nobody else handles the signal.

    Only the main thread may set handlers. A log that is opened on another thread is closed too if
    one of the main thread is open.

    Args:
        close: Called on the main thread, between two of its instructions, with the seconds that it
            may take. It is not called any more once this object is gone.
    """

    def __init__(self, close: Callable[[float], object]) -> None:
        self.close = close
        _open[id(self)] = self
        if threading.current_thread() is threading.main_thread():
            _block_around_forks()
            for number in _SIGNALS:
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, _close_all)

    def undo(self) -> None:
        """Forget the log; the last one restores the default, unless somebody set a handler since.

        Calling it again does nothing.
        """
        _open.pop(id(self), None)
        if not _open and threading.current_thread() is threading.main_thread():
            _restore_default()


# A handler is one for the process, and so are these. A log that nobody holds any more is not kept.
_open: weakref.WeakValueDictionary[int, ClosesOnSignals] = weakref.WeakValueDictionary()
_closing = False
_mask_before_fork = threading.local()


def _close_all(number: int, frame: FrameType | None) -> None:
    global _closing
    if _closing:
        return  # Closing is bounded, and a second signal must not cost what it saves.
    _closing = True
    try:
        end = time.monotonic() + _TIMEOUT
        # In one piece: another thread may open a log meanwhile.
        logs = [log for reference in _open.valuerefs() if (log := reference()) is not None]
        for done, log in enumerate(logs):
            left = max(0.0, end - time.monotonic())
            try:
                log.close(left / (len(logs) - done))
            except Exception:
                logger.exception("closing a log failed")
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        _closing = False  # The first process of a container doesn't die of it.


def _ours() -> list[int]:
    """Return the signals that our handler takes."""
    return [number for number in _SIGNALS if signal.getsignal(number) is _close_all]


def _restore_default() -> None:
    for number in _ours():
        signal.signal(number, signal.SIG_DFL)


@functools.cache
def _block_around_forks() -> None:
    """Restore the default in forked children, without a moment in which a signal gets lost."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork,
            after_in_parent=_after_fork,
            after_in_child=_after_fork_in_child,
        )


def _before_fork() -> None:
    _mask_before_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ours())


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask_before_fork.mask)


def _after_fork_in_child() -> None:
    global _closing
    _closing = False
    _open.clear()
    _restore_default()
    _after_fork()
