"""Write records to anything, on threads of their own, so that training doesn't wait for it.

    class Printer:
        def write(self, step, records):
            for record in records:
                print(step, record.tag)

    with Monitor(model, held_out, writer=BackgroundWriter(Printer())) as monitor:
        ...

Pictures are drawn before they are written. What fails later never raises to the caller.
"""

from __future__ import annotations

import contextlib
import inspect
import queue
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from ..records import Embedding, Figure, Picture, Record, Scalar
from .base import Instruction, Tally, Writer
from .run_config import RunConfig
from .writing_thread import Lose, RecordSink, WritingThread

__all__ = ["BackgroundWriter", "Sink", "why_no_sink"]


# Seconds of a closing that are kept for writing what was drawn.
_FOR_WRITING = 1.0


@runtime_checkable
class Sink(Protocol):
    """Take records on the thread of a :class:`BackgroundWriter`, which may take its time.

    A sink may also have ``log_run_config(config)``, which is called with the hyper-parameters, a
    flat mapping of names to numbers and strings; ``flush()``, called every few seconds; and
    ``close()``, called at the end.
    """

    def write(self, step: int, records: Sequence[Record]) -> object:
        """Take the records of a step: every kind but ``Figure``, which comes as ``Picture``."""


def why_no_sink(obj: Any) -> str | None:
    """Return why this object can't be the sink of a :class:`BackgroundWriter`, or None."""
    write = getattr(obj, "write", None)
    if isinstance(obj, type):
        return f"is a class: write {obj.__name__}()"
    if not callable(write):
        return "has no method write(step, records)"
    try:
        inspect.signature(write).bind(1, [])
    except TypeError:
        return f"has the method write{inspect.signature(write)}: define write(step, records)"
    except ValueError:  # A function of C, which has no signature.
        return None
    return None


class _Adapted(RecordSink):
    """Pass records to a user's sink, with those methods that it has."""

    def __init__(self, sink: Sink) -> None:
        self.name = type(sink).__name__
        self._sink = sink

    def write(
        self, step: int, wall_time: float, records: Sequence[Record | Instruction], lose: Lose
    ) -> None:
        for config in (record for record in records if isinstance(record, RunConfig)):
            self._call("log_run_config", dict(config.values))
        others = [record for record in records if not isinstance(record, Instruction)]
        if others:
            self._sink.write(step, others)

    def flush(self) -> None:
        self._call("flush")

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str, *arguments: Any) -> None:
        method = getattr(self._sink, name, None)
        if callable(method):
            method(*arguments)


class BackgroundWriter(Writer):
    """Pass records to a sink on one thread, and draw figures on another.

    ``write`` returns at once, whatever the sink does. Waiting records take bounded memory: beyond,
    they are dropped, which is counted and reported. The first exception of the sink is reported,
    the sink gets no more records, and training goes on.

    Args:
        sink: Anything with ``write(step, records)``, see :class:`Sink`. It is closed with the
            writer, and called on the thread only.
        flush_seconds: Least time between two rounds of writing and flushing, and so the longest
            time that records wait.
        max_figures: Figures that may wait to be drawn; if more wait, a step's figures are dropped.
        max_bytes: Memory of everything that waits, half of it for figures.
        timeout: Seconds after which one picture, or a sink that makes no progress, is given up.
            ``close`` gives up the pictures that are left after as many seconds.
        clock: Wall time, in seconds since 1970.

    Raises:
        TypeError: ``sink`` has no such method.
    """

    def __init__(
        self,
        sink: Sink | RecordSink,
        *,
        first_step: int = 0,
        flush_seconds: float = 5.0,
        max_figures: int = 64,
        max_bytes: int = 256 << 20,
        timeout: float = 25.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        from ..plotting.renderer import Renderer

        if not isinstance(sink, RecordSink):
            why = why_no_sink(sink)
            if why is not None:
                raise TypeError(f"the sink {sink!r} {why}")
            sink = _Adapted(sink)
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._background = WritingThread(
            sink,
            flush_seconds=flush_seconds,
            max_bytes=max_bytes // 2,
            timeout=timeout,
            report=self._warnings.put,
        )
        put = self._background.put
        # Made after the writing thread: exit handlers run in the opposite order.
        self._renderer = Renderer(
            lambda step, wall_time, picture: put(step, wall_time, [picture]),
            max_figures=max_figures,
            max_bytes=max_bytes // 2,
            timeout=timeout,
            report=self._warnings.put,
        )
        self._first_step = first_step
        self._timeout = timeout
        self._clock = clock
        # The threads of a writer that nobody closed end when nobody can write to it any more.
        self._finalizer = weakref.finalize(
            self, self._renderer.abandon, then=self._background.abandon
        )
        self._finalizer.atexit = False

    def write(self, step: int, records: Sequence[Record]) -> None:
        self.write_at(self._clock(), step, records)

    def write_at(self, wall_time: float, step: int, records: Sequence[Record]) -> None:
        if self.failure is not None:  # Nothing is drawn for nobody.
            self._report_warnings()
            return
        step, now = int(step), wall_time
        figures = [record for record in records if isinstance(record, Figure)]
        others = [record for record in records if not isinstance(record, Figure)]
        self._renderer.submit(step, now, figures)
        losses = {
            "dropped_figures": self.dropped_figures,
            "dropped_records": self.dropped_records,
            "failed_records": self.failed_records,
        }
        others += [Scalar(f"monitor/{name}", count) for name, count in losses.items() if count]
        self._background.put(step, now, others)
        self._report_warnings()

    def arrange(self, callbacks: Collection[str]) -> None:
        self._background.arrange(callbacks)

    def log_run_config(self, config: Mapping[str, Any]) -> None:
        """Pass the hyper-parameters on, in TensorBoard to its HParams dashboard.

        Nested mappings are flattened with dots; values that are no finite number, bool or string
        become strings.
        """
        self._background.put(self._first_step, self._clock(), [RunConfig.of(config)])

    def close_within(self, seconds: float) -> None:
        self.close(seconds)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all is drawn and written, or can't be.

        Args:
            timeout: Seconds for all pictures together, and for a sink that makes no progress.
                None: those of the writer, for each picture.
        """
        end = None if timeout is None else time.monotonic() + timeout
        if self._background.flush(timeout):  # Numbers don't wait for pictures.
            self._renderer.flush(None if end is None else end - time.monotonic() - _FOR_WRITING)
            self._background.flush(None if end is None else _at_least(end))
        self._report_warnings()

    def close(self, timeout: float | None = None) -> None:
        """Draw and write what is left, and end the threads. Calling it again does nothing.

        Args:
            timeout: Seconds after which the pictures left are given up, all together, or a sink
                that makes no progress. None: those of the writer.
        """
        self._finalizer.detach()
        limit = self._timeout if timeout is None else timeout
        end = time.monotonic() + limit
        if self._background.flush(limit):  # Numbers don't wait for pictures.
            self._renderer.close(end - time.monotonic() - _FOR_WRITING)
        else:
            self._renderer.close(0.0)
        self._report_warnings()  # They can still be written.
        self._background.close(_at_least(end))
        self._report_warnings()

    def _report_warnings(self) -> None:
        """Report what the threads warned of; they must not wait for whoever waits for them."""
        if self.report is None:
            return
        with contextlib.suppress(queue.Empty):
            while True:
                self.report(self._warnings.get_nowait())

    @property
    def failure(self) -> BaseException | None:
        return self._background.failure

    @property
    def tally(self) -> Tally:
        written = self._background.written
        pictures, embeddings = written[Picture], written[Embedding]
        return Tally(
            written.total() - pictures - embeddings,
            pictures,
            embeddings,
            self.dropped_records,
            self.dropped_figures,
            self.failed_records,
        )

    @property
    def dropped_figures(self) -> int:
        """Count pictures that came faster than they could be drawn or written.

        They are logged as ``monitor/dropped_figures``.
        """
        return self._renderer.dropped + self._background.dropped[Picture]

    @property
    def dropped_records(self) -> int:
        """Count other records for which the queue had no memory; ``monitor/dropped_records``."""
        dropped = self._background.dropped
        return dropped.total() - dropped[Picture]

    @property
    def failed_records(self) -> int:
        """Count records that couldn't be drawn or encoded; ``monitor/failed_records``."""
        return self._renderer.failed + self._background.failed


def _at_least(end: float) -> float:
    return max(_FOR_WRITING, end - time.monotonic())
