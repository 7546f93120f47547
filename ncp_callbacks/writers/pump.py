"""The thread between a training loop, which must not wait, and files, which may::

    pump = Pump(sink, flush_seconds=5.0)
    pump.put(step, time.time(), records)    # microseconds
    pump.close()                            # writes what is left

Numbers and text of a step become one event. Figures follow in events of their own, so that
drawing never holds up numbers; when drawing can't keep up, all figures of a step are dropped.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..records import Embedding, Figure, Record, Scalar
from .encoding import Encoder, Event, RunConfig, Summary
from .projector import write_embedding

__all__ = ["Pump", "Sink"]

logger = logging.getLogger("ncp_callbacks")
# Seconds. A thread that asks again at once keeps the lock from those who have something to say.
_LEAST_IDLE = 0.25


class Sink(Protocol):
    """Where events go; called on the pump's thread only."""

    @property
    def log_dir(self) -> Path | None:
        """Directory of the log; None where there is none on this machine."""

    def write(self, event: Event) -> None:
        """Take an event."""

    def flush(self) -> None:
        """Return when all events taken are safe from the death of this process."""

    def close(self) -> None:
        """Flush and let go of what was opened."""


class _Entry(NamedTuple):
    step: int
    wall_time: float
    records: Sequence[Record | RunConfig]
    size: int


class _Queue:
    """Entries waiting or, not yet done, being written, and how much memory they hold."""

    def __init__(self, max_bytes: int) -> None:
        self.waiting: deque[_Entry] = deque()
        self.undone = 0
        self._bytes = 0
        self._max_bytes = max_bytes

    def fits(self, entries: Sequence[_Entry]) -> bool:
        # What is too big by itself must not wait for a day that never comes.
        size = sum(entry.size for entry in entries)
        return not self.undone or self._bytes + size <= self._max_bytes

    def half_full(self) -> bool:
        return self._bytes > self._max_bytes // 2

    def add(self, entries: Sequence[_Entry]) -> None:
        self.waiting.extend(entries)
        self.undone += len(entries)
        self._bytes += sum(entry.size for entry in entries)

    def take(self, count: int) -> list[_Entry]:
        return [self.waiting.popleft() for _ in range(count)]

    def done(self, entries: Sequence[_Entry]) -> None:
        self.undone -= len(entries)
        self._bytes -= sum(entry.size for entry in entries)


class Pump:
    """A bounded queue and the daemon thread that draws, encodes and writes what is in it.

    The first exception of the sink stops it for good: it is kept in ``failure`` and logged, and
    whatever is put later is ignored. A record that can't be drawn or encoded is lost alone.

    Args:
        sink: Closed by the thread when it ends.
        flush_seconds: Least time between two rounds of writing numbers and flushing, and so the
            longest that they wait.
        max_figures: Figures waiting to be drawn.
        max_bytes: Memory of all that waits, half of it for figures; only what is bigger by itself
            may exceed it.
        patience: ``flush`` and ``close`` give up after so many seconds without any progress.
        process: Whether figures are drawn by a process of their own.

    Attributes:
        failure: What stopped the thread, if anything did.
        dropped_figures, dropped_records: How many found no place in the queue.
        failed_records: How many couldn't be drawn or encoded.
        written: How many the sink took, by kind.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        flush_seconds: float = 5.0,
        max_figures: int = 32,
        max_bytes: int = 256 << 20,
        patience: float = 30.0,
        process: bool = True,
    ) -> None:
        self.failure: BaseException | None = None
        self.dropped_figures = 0
        self.dropped_records = 0
        self.failed_records = 0
        self.written: Counter[type] = Counter()
        self._sink = sink
        self._encoder = Encoder(process=process, log_dir=sink.log_dir)
        self._flush_seconds = flush_seconds
        self._max_figures = max_figures
        self._patience = patience
        self._pid = os.getpid()

        # Reentrant, for a signal handler that closes while `put` holds it.
        self._changed = threading.Condition(threading.RLock())
        self._numbers = _Queue(max_bytes // 2)
        self._figures = _Queue(max_bytes // 2)
        self._unflushed = False
        self._waiting = 0  # callers of flush and close
        self._closing = False
        self._ended = False
        self._heartbeat = 0
        self._step = 0
        self._reported: set[object] = set()

        self._thread = threading.Thread(target=self._run, name="ncp_callbacks", daemon=True)
        atexit.register(self.close)
        self._thread.start()

    # --- for the training loop's thread

    def put(self, step: int, wall_time: float, records: Sequence[Record | RunConfig]) -> None:
        """Queue the records of a step; never waits."""
        if self._closing or self._ended or os.getpid() != self._pid:
            return
        figures = [record for record in records if isinstance(record, Figure)]
        others = [record for record in records if not isinstance(record, Figure)]
        entries = [_Entry(step, wall_time, [figure], _nbytes(figure)) for figure in figures]
        with self._changed:
            crowded = len(self._figures.waiting) + len(figures) > self._max_figures
            drop = (crowded and self._figures.waiting) or not self._figures.fits(entries)
            if figures and drop:
                self.dropped_figures += len(figures)
                self._report_once(
                    "dropped figures",
                    "figures come faster than they are drawn: dropping some from step %d on; "
                    "look less often, or draw fewer",
                    step,
                )
            else:
                self._figures.add(entries)
            others += [
                Scalar(f"monitor/{name}", count)
                for name, count in (
                    ("dropped_figures", self.dropped_figures),
                    ("dropped_records", self.dropped_records),
                    ("failed_records", self.failed_records),
                )
                if count
            ]
            entry = _Entry(step, wall_time, others, sum(map(_nbytes, others)))
            if others and not self._numbers.fits([entry]):
                self.dropped_records += len(others)
                self._report_once(
                    "dropped records",
                    "records come faster than they are written, and the memory for them is "
                    "full: dropping some from step %d on",
                    step,
                )
            elif others:
                self._numbers.add([entry])
            if figures or len(self._numbers.waiting) == 1 or self._numbers.half_full():
                # Else the thread already knows when to look again.
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, or stuck."""
        if not self._wait(self._is_flushed):
            logger.warning("flushing the log got stuck; what is not written yet may be lost")

    def close(self) -> None:
        """Write what is left, end the thread and close the sink, unless that is stuck."""
        if os.getpid() != self._pid:
            return
        self.abandon()
        if threading.current_thread() is self._thread:
            return
        if self._wait(lambda: False):
            self._thread.join(1.0)
        else:
            self.failure = TimeoutError(f"writing made no progress for {self._patience} s")
            logger.error("closing the log got stuck at step %d; the rest is lost", self._step)
            self._end()
            # One that is stopped wouldn't notice the end of this process.
            self._encoder.kill()
            atexit.unregister(self.close)

    def abandon(self) -> None:
        """Let the thread end by itself when all is written.

        Takes no lock, as the garbage collector may call it at any place.
        """
        self._closing = True

    def _wait(self, done: Callable[[], bool]) -> bool:
        """Wait until `done` or until the thread has ended; False: gave up."""
        if os.getpid() != self._pid or threading.current_thread() is self._thread:
            return True
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            try:
                heartbeat, since = self._heartbeat, time.monotonic()
                while not (self._ended or done()):
                    patience = since + self._patience - time.monotonic()
                    if self._heartbeat != heartbeat:
                        heartbeat, since = self._heartbeat, time.monotonic()
                    elif patience <= 0:
                        return False
                    else:
                        self._changed.wait(patience)
                return True
            finally:
                self._waiting -= 1

    def _is_flushed(self) -> bool:
        return not (self._numbers.undone or self._figures.undone or self._unflushed)

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._numbers.waiting.clear()
            self._figures.waiting.clear()
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
            logger.exception("logging stopped at step %d; training goes on", self._step)
            with contextlib.suppress(Exception):
                self._sink.close()
        finally:
            self._encoder.close()
            self._end()
            atexit.unregister(self.close)

    def _loop(self) -> None:
        next_flush = -math.inf
        while True:
            with self._changed:
                now = time.monotonic()
                due = now >= next_flush or self._waiting > 0 or self._closing
                if self._numbers.waiting and (due or self._numbers.half_full()):
                    queue, count = self._numbers, len(self._numbers.waiting)
                elif self._figures.waiting:
                    queue, count = self._figures, 1
                elif self._unflushed and due:
                    queue, count = self._numbers, 0
                elif self._closing:
                    break
                else:
                    pending = self._numbers.waiting or self._unflushed
                    idle = max(self._flush_seconds, _LEAST_IDLE)
                    self._changed.wait(next_flush - now if pending else idle)
                    continue
                work = queue.take(count)
                self._unflushed = True
            for entry in work:
                self._write(entry)
            if due:
                self._sink.flush()
                next_flush = time.monotonic() + self._flush_seconds
            with self._changed:
                self._unflushed = not due
                queue.done(work)
                self._changed.notify_all()
        if self._encoder.end():
            self._write_values(self._step, time.time(), self._encoder.end())

    def _write(self, entry: _Entry) -> None:
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
                self.failed_records += 1
                kind, tag = type(record).__name__, getattr(record, "tag", "")
                self._report_once(
                    (kind, tag),
                    "can't log %s %r; reported once, training and other logging go on",
                    kind,
                    tag,
                    exc_info=True,
                )
            self._heartbeat += 1
        if self._encoder.layout_changed:
            values += self._layout()
        if values:
            self._write_values(entry.step, entry.wall_time, values)
        self.written += encoded

    def _layout(self) -> list[Summary.Value]:
        self._sink.flush()  # The log is read, for charts of others.
        try:
            return self._encoder.layout()
        except Exception:
            self._report_once(
                "layout", "can't write the layout of the Custom Scalars dashboard", exc_info=True
            )
            return []

    def _write_values(self, step: int, wall_time: float, values: list[Summary.Value]) -> None:
        event = Event(step=step, wall_time=wall_time, summary=Summary(value=values))
        self._sink.write(event)


def _nbytes(value: Any) -> int:
    """About how much memory is held by keeping this."""
    if isinstance(value, Scalar):
        return 128
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, str | bytes):
        return len(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return 128 + sum(_nbytes(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return 64 + sum(map(_nbytes, value.values()))
    if isinstance(value, list | tuple):
        return 64 + sum(map(_nbytes, value))
    return 32
