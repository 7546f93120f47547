"""Write records on a thread of their own, so that the training loop does not wait for files.

thread = WritingThread(sink, flush_seconds=5.0)
thread.put(step, time.time(), records)  # microseconds
thread.close()                          # writes what is left
"""

from __future__ import annotations

import abc
import atexit
import contextlib
import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeAlias

from ..bell import Bell
from ..errors import one_line
from ..plotting.renderer import memory_of
from ..records import Picture, Record, Scalar
from .base import Instruction

__all__ = ["Lose", "RecordSink", "WritingThread"]

logger = logging.getLogger("ncp_callbacks")
# Seconds. A thread that asks again at once keeps the lock from threads that have records.
_LEAST_IDLE = 0.25

Lose: TypeAlias = Callable[..., None]
"""Count records as lost, and report that: ``(records, key, message, error=None)``.

Of all losses with one key the first is reported.
"""


class RecordSink(abc.ABC):
    """Take records on the writing thread. An exception ends the writing for good."""

    name = ""
    """What failed, in the report of a failure; "" for the log itself."""

    def arrange(self, callbacks: Collection[str]) -> None:  # noqa: B027
        """Take the names of callbacks, see :meth:`.Writer.arrange`."""

    @abc.abstractmethod
    def write(
        self, step: int, wall_time: float, records: Sequence[Record | Instruction], lose: Lose
    ) -> None:
        """Take the records of a step; ``lose`` those that can't be written."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Return when all that was taken is safe from the death of this process."""

    def end_session(self) -> None:  # noqa: B027
        """Write what ends a log, as far as it is known; more may come at the process's exit."""

    @abc.abstractmethod
    def close(self) -> None:
        """Flush and release what was opened."""


class _Entry(NamedTuple):
    step: int
    wall_time: float
    records: Sequence[Record | Instruction]
    size: int


class WritingThread:
    """Queue records within bounds, and pass them to a sink on a daemon thread.

    The first exception of the sink stops the writing for good. The exception is kept in ``failure``
    and reported, and later records are ignored. A record that the sink loses is lost alone.

    Args:
        sink: Takes the records; the thread closes it when it ends.
        flush_seconds: Least time between two rounds of writing and flushing, and so the longest
            time that records wait, unless some are to be written at once.
        max_bytes: Memory of all waiting records. Pictures may take half of it. Only a record that
            is larger by itself may exceed it.
        timeout: Seconds without any progress after which ``flush`` and ``close`` give up.
        report: Called with each warning that is logged, as one line, on any thread; it must not
            wait. None: warnings are only logged.

    Attributes:
        failure: Exception that stopped the thread, or None.
        dropped: Number of records that found no place in the queue, by kind.
        failed: Number of records that the sink lost.
        written: Number of records that the sink took, by kind.
    """

    def __init__(
        self,
        sink: RecordSink,
        *,
        flush_seconds: float = 5.0,
        max_bytes: int = 128 << 20,
        timeout: float = 25.0,
        report: Callable[[str], object] | None = None,
    ) -> None:
        self.failure: BaseException | None = None
        self.dropped: Counter[type] = Counter()
        self.failed = 0
        self.written: Counter[type] = Counter()
        self._sink = sink
        self._report = report
        self._flush_seconds = flush_seconds
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._pid = os.getpid()

        # Reentrant, for a signal handler that closes while `put` holds it.
        # Entered as a lock: an interrupt inside Condition.__enter__ would leave it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._bell = Bell()
        self._waiting: deque[_Entry] = deque()
        self._bytes = 0
        self._writing = False
        self._unflushed = False
        self._callers = 0  # of flush and close
        self._hurries = False
        self._closing = False
        self._ended = False
        self._exiting = False
        self._heartbeat = 0
        self._step = 0
        self._reported: set[object] = set()

        self._thread = threading.Thread(target=self._run, name="ncp_callbacks", daemon=True)
        atexit.register(self._at_exit)
        self._thread.start()

    # --- for other threads

    def arrange(self, callbacks: Collection[str]) -> None:
        """Take the names of callbacks, see :meth:`.Writer.arrange`; call it before any ``put``."""
        self._sink.arrange(callbacks)

    def put(
        self,
        step: int,
        wall_time: float,
        records: Sequence[Record | Instruction],
        *,
        at_once: bool = False,
    ) -> None:
        """Queue the records of a step, and return at once.

        Args:
            step: The training step.
            wall_time: When it was made, in seconds since 1970.
            records: What to write.
            at_once: Let the next round of writing begin now.
        """
        if self._closing or self._ended or os.getpid() != self._pid:
            return
        pictures = [record for record in records if isinstance(record, Picture)]
        others = [record for record in records if not isinstance(record, Picture)]
        with self._lock:
            kept = [
                *self._fitting(step, others, self._max_bytes),
                *self._fitting(step, pictures, self._max_bytes // 2),
            ]
            if kept:
                size = sum(map(_size, kept))
                self._bytes += size
                self._waiting.append(_Entry(step, wall_time, kept, size))
                self._hurries = self._hurries or at_once
                if len(self._waiting) == 1 or self._is_half_full() or at_once:
                    # Otherwise the thread already knows when to go on.
                    self._bell.ring()
        if self._exiting:
            self.flush()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all is written, and return whether it is.

        Args:
            timeout: Seconds without any progress after which it gives up. None: that of the writer.
        """
        done = self._wait(lambda: not (self._waiting or self._writing or self._unflushed), timeout)
        if not done:
            seconds = self._timeout if timeout is None else timeout
            self._warn(
                f"flushing {self._what} made no progress for {seconds:.3g} s, and what is not "
                f"written yet may be lost: {self._check}"
            )
        return done

    def close(self, timeout: float | None = None) -> None:
        """Write what is left, end the thread and close the sink, unless that is stuck.

        Args:
            timeout: As for :meth:`flush`.
        """
        if os.getpid() != self._pid:
            return
        self.abandon()
        if threading.current_thread() is self._thread:
            return
        if self._wait(lambda: False, timeout):
            self._thread.join(1.0)
        else:
            seconds = self._timeout if timeout is None else timeout
            self.failure = TimeoutError(f"writing made no progress for {seconds:.3g} s")
            self._warn(
                f"closing {self._what} made no progress for {seconds:.3g} s, and what was logged "
                f"after step {self._step} is lost: {self._check}",
                level=logging.ERROR,
            )
            self._end()
            atexit.unregister(self._at_exit)

    def abandon(self) -> None:
        """Let the thread end by itself when all is written.

        It takes no lock, as the garbage collector may call it at any place.
        """
        self._closing = True

    def _fitting(
        self, step: int, records: Sequence[Record | Instruction], max_bytes: int
    ) -> Sequence[Record | Instruction]:
        """Return the records if there is room for them, or none."""
        # Records larger than the whole limit would never fit, so an idle queue takes them.
        busy = self._waiting or self._writing
        if busy and self._bytes + sum(map(_size, records)) > max_bytes:
            self.dropped.update(map(type, records))
            if records:
                self._report_once(
                    "dropped",
                    f"records come faster than they are written, and their memory "
                    f"({self._max_bytes / 1e6:.0f} MB) is full: some are dropped from step {step} "
                    "on. Log less often, or pass a larger max_bytes to the writer",
                )
            return []
        return records

    def _is_half_full(self) -> bool:
        return self._bytes > self._max_bytes // 2

    def _at_exit(self) -> None:
        """Write the queue, and from now on write records as soon as they are put.

        Exit handlers that were registered earlier run later, and may still log something.
        """
        if os.getpid() != self._pid:
            return  # The fork has no thread of ours, and another thread may have held the lock.
        with self._lock:
            self._exiting = self._unflushed = True
        self.flush()

    def _wait(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Return true when `done` or when the thread has ended, and False on a timeout."""
        if os.getpid() != self._pid or threading.current_thread() is self._thread:
            return True
        limit = self._timeout if timeout is None else timeout
        with self._lock:
            self._callers += 1
            self._bell.ring()
            try:
                heartbeat, since = self._heartbeat, time.monotonic()
                while not (self._ended or done()):
                    left = since + limit - time.monotonic()
                    if self._heartbeat != heartbeat:
                        heartbeat, since = self._heartbeat, time.monotonic()
                    elif left <= 0:
                        return False
                    else:
                        self._changed.wait(left)
                return True
            finally:
                self._callers -= 1

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            self._waiting.clear()
            self._changed.notify_all()

    @property
    def _what(self) -> str:
        return self._sink.name or "the log"

    @property
    def _check(self) -> str:
        if self._sink.name:
            return f"check what {self._sink.name} writes to"
        return "check the disk of the log directory"

    def _report_once(self, key: object, message: str, error: BaseException | None = None) -> None:
        if key not in self._reported:
            self._reported.add(key)
            self._warn(message, error)

    def _warn(
        self, message: str, error: BaseException | None = None, level: int = logging.WARNING
    ) -> None:
        logger.log(level, "%s", message, exc_info=error)
        if self._report is not None:
            self._report(message + ("" if error is None else f": {one_line(error)}"))

    # --- the thread

    def _run(self) -> None:
        try:
            try:
                self._loop()
            except BaseException:
                with contextlib.suppress(BaseException):
                    self._sink.close()
                raise
            self._sink.close()
        except BaseException as error:
            self.failure = error
            stopped = (
                f"{self._sink.name} failed, and is not used"
                if self._sink.name
                else "logging stopped"
            )
            message = f"{stopped} after step {self._step}, and training goes on"
            self._warn(message, error, logging.ERROR)
        finally:
            self._end()
            atexit.unregister(self._at_exit)

    def _loop(self) -> None:
        next_flush = -math.inf
        while True:
            with self._lock:
                now = time.monotonic()
                due = now >= next_flush or self._hurries or self._callers > 0 or self._closing
                pending = bool(self._waiting) or self._unflushed
                if not ((due and pending) or (self._waiting and self._is_half_full())):
                    if self._closing:
                        break
                    idle = max(self._flush_seconds, _LEAST_IDLE)
                    seconds = next_flush - now if pending else idle
                else:
                    seconds = None
                    self._writing, exiting = True, self._exiting
                    work = list(self._waiting)
                    self._waiting.clear()
                    self._hurries = False
                    self._unflushed = True
            if seconds is not None:
                self._bell.wait(seconds)
                continue
            for entry in work:
                self._write(entry)
            if exiting:
                self._sink.end_session()
            if due:
                self._sink.flush()
                next_flush = time.monotonic() + self._flush_seconds
            with self._lock:
                self._unflushed = not due or exiting != self._exiting
                self._writing = False
                self._bytes -= sum(entry.size for entry in work)
                self._changed.notify_all()
        self._sink.end_session()

    def _write(self, entry: _Entry) -> None:
        self._step = max(self._step, entry.step)
        lost: Counter[type] = Counter()

        def lose(
            records: Sequence[Record | Instruction],
            key: object,
            message: str,
            error: BaseException | None = None,
        ) -> None:
            lost.update(map(type, records))
            self._report_once(key, message, error)

        self._sink.write(entry.step, entry.wall_time, entry.records, lose)
        self.failed += lost.total()
        self.written += Counter(map(type, entry.records)) - lost
        self._heartbeat += 1


def _size(record: Record | Instruction) -> int:
    return 128 if isinstance(record, Scalar) else memory_of(record)
