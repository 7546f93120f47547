"""Wake a thread without losing what a signal handler raises meanwhile."""

from __future__ import annotations

import contextlib
import queue

__all__ = ["Bell"]


class Bell:
    """Wakes the one thread that waits for it.

    Python's conditions swallow a ``RuntimeError`` that a signal handler of the user's raises while
    they notify; this doesn't.
    """

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """Let the thread go on that waits, or the next one that would."""
        if self._rings.empty():
            self._rings.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for a ring, for so many seconds at most."""
        with contextlib.suppress(queue.Empty):
            self._rings.get(timeout=seconds)
