"""Records in TensorBoard, in an event file of our own or through the user's writer::

    writer = TensorBoardWriter("runs/cfc-seed0")
    writer.log_run_config({"lr": 1e-3, "cell": {"units": 32}})
    writer.write(step, [Scalar("train/loss", 0.3)])     # microseconds; written by a thread
    writer.close()

    writer = SummaryWriterAdapter(tensorboardX.SummaryWriter("runs/cfc-seed0"))

What goes wrong with files later never reaches the caller: see ``writer.failure``.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import Embedding, Figure, Record
from .base import Tally, Writer

# tensorboardX takes long to import: only who makes one of these writers pays for it.
if TYPE_CHECKING:
    import tensorboardX

    from .encoding import Event
    from .pump import Pump, Sink

__all__ = ["SummaryWriterAdapter", "TensorBoardWriter"]


class _PumpedWriter(Writer):
    """A writer whose records go through a thread."""

    def __init__(
        self, sink: Sink, *, first_step: int, clock: Callable[[], float], **limits: Any
    ) -> None:
        from .pump import Pump

        self._pump: Pump = Pump(sink, **limits)
        self._first_step = first_step
        self._clock = clock
        # The thread of a writer that nobody closed ends when nobody can write to it any more.
        self._finalizer = weakref.finalize(self, self._pump.abandon)
        self._finalizer.atexit = False

    def write(self, step: int, records: Sequence[Record]) -> None:
        self._pump.put(int(step), self._clock(), records)

    def log_run_config(self, config: Mapping[str, Any]) -> None:
        """Show these hyper-parameters in TensorBoard's HParams dashboard.

        Nested mappings are flattened with dots; values that are no finite number, bool or string
        are shown as strings.
        """
        from .encoding import RunConfig

        self._pump.put(self._first_step, self._clock(), [RunConfig.of(config)])

    def flush(self) -> None:
        self._pump.flush()

    def close(self) -> None:
        self._finalizer.detach()
        self._pump.close()

    @property
    def failure(self) -> BaseException | None:
        return self._pump.failure

    @property
    def tally(self) -> Tally:
        pump = self._pump
        figures, embeddings = pump.written[Figure], pump.written[Embedding]
        return Tally(
            pump.written.total() - figures - embeddings,
            figures,
            embeddings,
            pump.dropped_records,
            pump.dropped_figures,
            pump.failed_records,
        )

    @property
    def dropped_figures(self) -> int:
        """Figures that came faster than they could be drawn; ``monitor/dropped_figures``."""
        return self._pump.dropped_figures

    @property
    def dropped_records(self) -> int:
        """Other records for which the queue had no memory; ``monitor/dropped_records``."""
        return self._pump.dropped_records

    @property
    def failed_records(self) -> int:
        """Records that couldn't be drawn or encoded; ``monitor/failed_records``."""
        return self._pump.failed_records


class TensorBoardWriter(_PumpedWriter):
    """Writes an event file of its own.

    Args:
        log_dir: The run's directory, made when missing. When it already holds a run, ``log_dir-2``,
            ``log_dir-3``, … is used, unless resuming.
        first_step: Resume the run in ``log_dir``: the first step that will be written. TensorBoard
            hides what was logged for this and later steps before.
        flush_seconds: Records reach the disk at most so long after ``write`` (figures: after they
            are drawn), whatever happens to this process then.
        max_figures: Figures that may wait to be drawn; beyond, all figures of a step are dropped.
        max_bytes: Memory of everything that waits, half of it for figures.
        patience: Seconds without any progress after which ``flush`` and ``close`` give up.
        process: Whether pictures are drawn by a process of their own, which keeps drawing out of
            the training's way and takes some 100 MB; False: by a thread.
        clock: Wall time, in seconds since 1970.

    Attributes:
        log_dir: The directory used.

    Raises:
        NotADirectoryError: ``log_dir`` or a part of its path is a file.
        PermissionError: ``log_dir`` can't be written to.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        *,
        first_step: int | None = None,
        flush_seconds: float = 5.0,
        max_figures: int = 32,
        max_bytes: int = 256 << 20,
        patience: float = 30.0,
        process: bool = True,
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
            patience=patience,
            process=process,
        )


class SummaryWriterAdapter(_PumpedWriter):
    """Writes into the event file of a ``tensorboardX.SummaryWriter``, which stays the user's.

    Args:
        summary_writer: Flushed and never closed; close it after this one.
        flush_seconds, max_figures, max_bytes, patience, process, clock: As for
            :class:`TensorBoardWriter`.

    Raises:
        TypeError: It is something else.
    """

    def __init__(
        self,
        summary_writer: tensorboardX.SummaryWriter,
        *,
        flush_seconds: float = 5.0,
        max_figures: int = 32,
        max_bytes: int = 256 << 20,
        patience: float = 30.0,
        process: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        import tensorboardX

        if not isinstance(summary_writer, tensorboardX.SummaryWriter):
            raise TypeError(
                "writer must be a Writer of ncp_callbacks or a tensorboardX.SummaryWriter, not "
                f"{type(summary_writer).__module__}.{type(summary_writer).__qualname__}. "
                "To leave the file to us, name a directory instead: log_dir='runs/cfc-seed0'."
            )
        super().__init__(
            _SharedFile(summary_writer),
            first_step=0,
            clock=clock,
            flush_seconds=flush_seconds,
            max_figures=max_figures,
            max_bytes=max_bytes,
            patience=patience,
            process=process,
        )


class _SharedFile:
    """The event file of a SummaryWriter, written to past its queue.

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
            raise ValueError("the SummaryWriter was closed; close it after the monitor")
        # With write_to_disk=False there is none.
        event_writer = getattr(writer, "event_writer", None)
        return None if event_writer is None else event_writer._ev_writer
