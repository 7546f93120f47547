"""Write records on a thread of their own, so that the training loop does not wait for files.

    writer = BackgroundWriter(sink, flush_seconds=5.0)
    writer.put(step, time.time(), records)  # microseconds
    writer.close()                          # writes what is left

The records of a step become one event.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from ..plotting.renderer import memory_of
from ..records import Embedding, Picture, Record, Scalar
from .encoding import Encoder, Event, RunConfig, Summary
from .event_file import fits_int64
from .projector import write_embedding

__all__ = ["BackgroundWriter", "EventSink"]

logger = logging.getLogger("ncp_callbacks")
# Seconds. A thread that asks again at once keeps the lock from threads that have records.
_LEAST_IDLE = 0.25


class EventSink(Protocol):
    """Take encoded events; called on the background writer's thread only."""

    @property
    def log_dir(self) -> Path | None:
        """Return the directory of the log; None where there is none on this machine."""

    def write(self, event: Event) -> None:
        """Take an event."""

    def flush(self) -> None:
        """Return when all events taken are safe from the death of this process."""

    def close(self) -> None:
        """Flush and release what was opened."""


class _Entry(NamedTuple):
    step: int
    wall_time: float
    records: Sequence[Record | RunConfig]
    size: int


class BackgroundWriter:
    """Queue records within bounds, and encode and write them on a daemon thread.

    The first exception of the sink stops the writer for good. The exception is kept in ``failure``
    and logged, and later records are ignored. A record that can't be encoded is lost alone.

    Args:
        sink: Takes the events; the thread closes it when it ends.
        flush_seconds: Least time between two rounds of writing and flushing, and so the longest
            time that records wait.
        max_bytes: Memory of all waiting records. Pictures may take half of it. Only a record that
            is larger by itself may exceed it.
        timeout: Seconds without any progress after which ``flush`` and ``close`` give up.

    Attributes:
        failure: Exception that stopped the thread, or None.
        dropped: Number of records that found no place in the queue, by kind.
        failed: Number of records that could not be encoded.
        written: Number of records that the sink took, by kind.
    """

    def __init__(
        self,
        sink: EventSink,
        *,
        flush_seconds: float = 5.0,
        max_bytes: int = 128 << 20,
        timeout: float = 25.0,
    ) -> None:
        self.failure: BaseException | None = None
        self.dropped: Counter[type] = Counter()
        self.failed = 0
        self.written: Counter[type] = Counter()
        self._sink = sink
        self._encoder = Encoder(sink.log_dir)
        self._flush_seconds = flush_seconds
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._pid = os.getpid()

        # Reentrant, for a signal handler that closes while `put` holds it.
        # Entered as a lock: an interrupt inside Condition.__enter__ would leave it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[_Entry] = deque()
        self._bytes = 0
        self._writing = False
        self._unflushed = False
        self._callers = 0  # of flush and close
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
        self._encoder.arrange(callbacks)

    def put(self, step: int, wall_time: float, records: Sequence[Record | RunConfig]) -> None:
        """Queue the records of a step, and return at once."""
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
                if len(self._waiting) == 1 or self._is_half_full():
                    # Otherwise the thread already knows when to go on.
                    self._changed.notify_all()
        if self._exiting:
            self.flush()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all is written, and return whether it is.

        Args:
            timeout: Seconds without any progress after which it gives up. None: that of the writer.
        """
        done = self._wait(lambda: not (self._waiting or self._writing or self._unflushed), timeout)
        if not done:
            logger.warning(
                "flushing the log made no progress for %.3g s, and what is not written yet may be "
                "lost: check the disk of the log directory",
                self._timeout if timeout is None else timeout,
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
            logger.error(
                "closing the log made no progress for %.3g s, and what was logged after step %d is "
                "lost: check the disk of the log directory",
                seconds,
                self._step,
            )
            self._end()
            atexit.unregister(self._at_exit)

    def abandon(self) -> None:
        """Let the thread end by itself when all is written.

        It takes no lock, as the garbage collector may call it at any place.
        """
        self._closing = True

    def _fitting(
        self, step: int, records: Sequence[Record | RunConfig], max_bytes: int
    ) -> Sequence[Record | RunConfig]:
        """Return the records if there is room for them, or none."""
        # Records larger than the whole limit would never fit, so an idle queue takes them.
        busy = self._waiting or self._writing
        if busy and self._bytes + sum(map(_size, records)) > max_bytes:
            self.dropped.update(map(type, records))
            if records:
                self._report_once(
                    "dropped",
                    "records come faster than they are written, and their memory (%.0f MB) is "
                    "full: some are dropped from step %d on. Log less often, or pass a larger "
                    "max_bytes to the writer",
                    self._max_bytes / 1e6,
                    step,
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
            self._changed.notify_all()
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

    def _report_once(
        self, key: object, message: str, *args: object, exc_info: bool = False
    ) -> None:
        if key not in self._reported:
            self._reported.add(key)
            logger.warning(message, *args, exc_info=exc_info)

    # --- the thread

    def _run(self) -> None:
        try:
            self._loop()
            self._sink.close()
        except BaseException as error:
            self.failure = error
            logger.exception("logging stopped after step %d, and training goes on", self._step)
            with contextlib.suppress(Exception):
                self._sink.close()
        finally:
            self._end()
            atexit.unregister(self._at_exit)

    def _loop(self) -> None:
        next_flush = -math.inf
        while True:
            with self._lock:
                now = time.monotonic()
                due = now >= next_flush or self._callers > 0 or self._closing
                pending = bool(self._waiting) or self._unflushed
                if not ((due and pending) or (self._waiting and self._is_half_full())):
                    if self._closing:
                        break
                    idle = max(self._flush_seconds, _LEAST_IDLE)
                    self._changed.wait(next_flush - now if pending else idle)
                    continue
                self._writing, exiting = True, self._exiting
                work = list(self._waiting)
                self._waiting.clear()
                self._unflushed = True
            for entry in work:
                self._write(entry)
            if exiting:
                self._end_session()
            if due:
                self._sink.flush()
                next_flush = time.monotonic() + self._flush_seconds
            with self._lock:
                self._unflushed = not due or exiting != self._exiting
                self._writing = False
                self._bytes -= sum(entry.size for entry in work)
                self._changed.notify_all()
        self._end_session()

    def _end_session(self) -> None:
        end = self._encoder.end()
        if end:
            self._write_values(self._step, time.time(), end)

    def _write(self, entry: _Entry) -> None:
        if not fits_int64(entry.step):
            self.failed += len(entry.records)
            self._report_once(
                "step",
                "records of step %d are lost: pass steps of less than 2**63. This is reported "
                "once; training and other logging go on",
                entry.step,
            )
            return
        self._step = max(self._step, entry.step)
        values: list[Summary.Value] = []
        encoded: Counter[type] = Counter()
        for record in entry.records:
            try:
                if isinstance(record, Embedding):
                    if self._sink.log_dir is not None:
                        write_embedding(self._sink.log_dir, entry.step, record)
                else:
                    values += self._encoder.values(record)
                encoded[type(record)] += 1
            except Exception:
                self.failed += 1
                kind, tag = type(record).__name__, getattr(record, "tag", "")
                self._report_once(
                    (kind, tag),
                    "the %s %r can't be logged. This is reported once; training and other logging "
                    "go on",
                    kind,
                    tag,
                    exc_info=True,
                )
            self._heartbeat += 1
        if self._encoder.layout_changed:
            values += self._layout()
        if self._encoder.knows_metrics:
            values += self._encoder.metrics()
        if values:
            self._write_values(entry.step, entry.wall_time, values)
        self.written += encoded

    def _layout(self) -> list[Summary.Value]:
        self._sink.flush()  # The log is read, for charts of others.
        try:
            return self._encoder.layout()
        except Exception:
            self._report_once(
                "layout",
                "the layout of the Custom Scalars dashboard can't be written",
                exc_info=True,
            )
            return []

    def _write_values(self, step: int, wall_time: float, values: list[Summary.Value]) -> None:
        event = Event(step=step, wall_time=wall_time, summary=Summary(value=values))
        self._sink.write(event)


def _size(record: Record | RunConfig) -> int:
    return 128 if isinstance(record, Scalar) else memory_of(record)
