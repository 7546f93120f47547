"""Losing nothing when the process is asked to end.

Python's exit and exceptions run ``close``; SIGTERM, sent by batch systems and by ``kill``, runs
nothing. While a log is open it is closed first, and then the process dies of the signal as before.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["ClosesOnTerm"]


class ClosesOnTerm:
    """Calls ``close`` when SIGTERM comes, as long as nobody else handles that signal.

    Only from the main thread, the only one that may set handlers; elsewhere it does nothing.

    Args:
        close: Called in the main thread, between two of its instructions.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._pid = os.getpid()
        self._set = False
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            # Bound once: each access of a method is another object.
            self._handler = self._handle
            signal.signal(signal.SIGTERM, self._handler)
            self._set = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() == self._pid:
            self._close()
        os.kill(os.getpid(), signal.SIGTERM)

    def undo(self) -> None:
        """Restore the default, unless somebody has set a handler since."""
        if self._set and threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGTERM) == self._handler:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._set = False
