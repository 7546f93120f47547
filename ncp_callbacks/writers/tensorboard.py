"""Write records for TensorBoard, to an event file of our own or through the user's writer.

    writer = TensorBoardWriter("runs/cfc-seed0")
    writer.log_run_config({"lr": 1e-3, "cell": {"units": 32}})
    writer.write(step, [Scalar("train/loss", 0.3)])     # microseconds; written by a thread
    writer.close()

    writer = SummaryWriterAdapter(tensorboardX.SummaryWriter("runs/cfc-seed0"))

A file that fails later never raises to the caller: see ``writer.failure``.
"""

from __future__ import annotations

import contextlib
import os
import queue
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import Embedding, Figure, Picture, Record, Scalar
from .base import Tally, Writer

# tensorboardX takes long to import: only who makes one of these writers pays for it.
if TYPE_CHECKING:
    import tensorboardX

    from .background_writer import EventSink
    from .encoding import Event

__all__ = ["SummaryWriterAdapter", "TensorBoardWriter"]


# Seconds of a closing that are kept for writing what was drawn.
_FOR_WRITING = 1.0


class _BackgroundedWriter(Writer):
    """Write records on one thread and draw figures on another."""

    def __init__(
        self,
        sink: EventSink,
        *,
        first_step: int,
        flush_seconds: float,
        max_figures: int,
        max_bytes: int,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        from ..plotting.renderer import Renderer
        from .background_writer import BackgroundWriter

        self._background = BackgroundWriter(
            sink, flush_seconds=flush_seconds, max_bytes=max_bytes // 2, timeout=timeout
        )
        put = self._background.put
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        # Made after the background writer: exit handlers run in the opposite order.
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
        """Show the tags of these callbacks behind those of the training loop.

        See :mod:`ncp_callbacks.screen`. Without it, all tags are shown as they are.
        """
        self._background.arrange(callbacks)

    def log_run_config(self, config: Mapping[str, Any]) -> None:
        """Show these hyper-parameters in TensorBoard's HParams dashboard.

        Nested mappings are flattened with dots; values that are no finite number, bool or string
        are shown as strings.
        """
        from .encoding import RunConfig

        self._background.put(self._first_step, self._clock(), [RunConfig.of(config)])

    def close_within(self, seconds: float) -> None:
        self.close(seconds)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all is drawn and written, or can't be.

        Args:
            timeout: Seconds for all pictures together, and for a disk that makes no progress.
                None: those of the writer, for each picture.
        """
        end = None if timeout is None else time.monotonic() + timeout
        if self._background.flush(timeout):  # Numbers don't wait for pictures.
            self._renderer.flush(None if end is None else end - time.monotonic() - _FOR_WRITING)
            self._report_warnings()
            self._background.flush(None if end is None else _at_least(end))

    def close(self, timeout: float | None = None) -> None:
        """Draw and write what is left, and end the threads. Calling it again does nothing.

        Args:
            timeout: Seconds after which the pictures left are given up, all together, or a disk
                that makes no progress. None: those of the writer.
        """
        self._finalizer.detach()
        limit = self._timeout if timeout is None else timeout
        end = time.monotonic() + limit
        if self._background.flush(limit):  # Numbers don't wait for pictures.
            self._renderer.close(end - time.monotonic() - _FOR_WRITING)
        else:
            self._renderer.close(0.0)
        self._report_warnings()
        self._background.close(_at_least(end))

    def _report_warnings(self) -> None:
        """Report what the drawing thread warned of; it must not wait for whoever waits for it."""
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


class TensorBoardWriter(_BackgroundedWriter):
    """Write an event file of its own.

    Args:
        log_dir: The run's directory, made if it is missing. If it holds a run already,
            ``log_dir-2``, ``log_dir-3``, … is used, unless resuming.
        first_step: Resume the run in ``log_dir``: the first step that will be written. TensorBoard
            hides what was logged for this and later steps before.
        flush_seconds: Records reach the disk at most so long after ``write`` (figures: after they
            are drawn), whatever happens to this process then.
        max_figures: Figures that may wait to be drawn; if more wait, a step's figures are dropped.
        max_bytes: Memory of everything that waits, half of it for figures.
        timeout: Seconds after which one picture, or a disk that makes no progress, is given up.
            ``close`` gives up the pictures that are left after as many seconds.
        clock: Wall time, in seconds since 1970.

    Attributes:
        log_dir: The directory used.

    Raises:
        ValueError: ``first_step`` is beyond what a log can hold.
        NotADirectoryError: ``log_dir`` or a part of its path is a file.
        PermissionError: ``log_dir`` can't be written to.
        OSError: The disk is full, or there is another reason. No file or directory is left.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        *,
        first_step: int | None = None,
        flush_seconds: float = 5.0,
        max_figures: int = 32,
        max_bytes: int = 256 << 20,
        timeout: float = 25.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        from .event_file import EventFile

        file = EventFile(log_dir, first_step, clock)
        self.log_dir: Path = file.log_dir
        super().__init__(
            file,
            first_step=first_step or 0,
            clock=clock,
            flush_seconds=flush_seconds,
            max_figures=max_figures,
            max_bytes=max_bytes,
            timeout=timeout,
        )


class SummaryWriterAdapter(_BackgroundedWriter):
    """Write into the event file of a ``tensorboardX.SummaryWriter``, which stays the user's.

    Args:
        summary_writer: Flushed and never closed; close it after this one.
        flush_seconds, max_figures, max_bytes, timeout, clock: As for
            :class:`TensorBoardWriter`.

    Raises:
        TypeError: ``summary_writer`` is something else.
    """

    def __init__(
        self,
        summary_writer: tensorboardX.SummaryWriter,
        *,
        flush_seconds: float = 5.0,
        max_figures: int = 32,
        max_bytes: int = 256 << 20,
        timeout: float = 25.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        import tensorboardX

        if not isinstance(summary_writer, tensorboardX.SummaryWriter):
            raise TypeError(
                f"writer is a {type(summary_writer).__module__}."
                f"{type(summary_writer).__qualname__}: pass a Writer of ncp_callbacks or a "
                "tensorboardX.SummaryWriter, or pass a directory in its place, such as "
                "log_dir='runs/cfc-seed0'"
            )
        super().__init__(
            _SharedFile(summary_writer),
            first_step=0,
            clock=clock,
            flush_seconds=flush_seconds,
            max_figures=max_figures,
            max_bytes=max_bytes,
            timeout=timeout,
        )


class _SharedFile:
    """Write to the event file of a SummaryWriter, past its queue.

    Its queue blocks for ever once its thread has died, and its flush doesn't wait for the queue.
    The file object below has its own lock.
    """

    def __init__(self, summary_writer: tensorboardX.SummaryWriter) -> None:
        self._summary_writer = summary_writer

    @property
    def log_dir(self) -> Path | None:
        where = str(self._summary_writer.logdir)
        # Of a log in a cloud's storage there are no files that could be read here.
        return None if self._file() is None or "://" in where else Path(where)

    def write(self, event: Event) -> None:
        file = self._file()
        if file is not None:
            file.write_event(event)

    def flush(self) -> None:
        file = self._file()
        if file is not None:
            file.flush()

    def close(self) -> None:
        self.flush()

    def _file(self) -> Any:
        writer = self._summary_writer.file_writer
        if writer is None:
            # Asking it for a file would open a second one, maybe over the first.
            raise ValueError("the SummaryWriter was closed too early: close it after the monitor")
        # With write_to_disk=False there is none.
        event_writer = getattr(writer, "event_writer", None)
        return None if event_writer is None else event_writer._ev_writer
