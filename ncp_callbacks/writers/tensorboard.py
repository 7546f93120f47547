"""Write records for TensorBoard, to an event file of our own or through the user's writer.

    writer = TensorBoardWriter("runs/cfc-seed0")
    writer.log_run_config({"lr": 1e-3, "cell": {"units": 32}})
    writer.write(step, [Scalar("train/loss", 0.3)])     # microseconds; written by a thread
    writer.close()

    writer = SummaryWriterAdapter(tensorboardX.SummaryWriter("runs/cfc-seed0"))

A file that fails later never raises to the caller: see ``writer.failure``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import Record
from .background_writer import BackgroundWriter

# tensorboardX takes long to import: only who makes one of these writers pays for it.
if TYPE_CHECKING:
    import tensorboardX

    from .encoding import Event

__all__ = ["SummaryWriterAdapter", "TensorBoardWriter"]


class TensorBoardWriter(BackgroundWriter):
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
        TypeError, ValueError: ``log_dir`` is not a path of this machine, or ``first_step`` is
            beyond what a log can hold.
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
        max_figures: int = 64,
        max_bytes: int = 256 << 20,
        timeout: float = 25.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        from .event_file import EventFile
        from .event_sink import EventSink

        file = EventFile(log_dir, first_step, clock)
        self.log_dir: Path = file.log_dir
        super().__init__(
            EventSink(file),
            first_step=first_step or 0,
            clock=clock,
            flush_seconds=flush_seconds,
            max_figures=max_figures,
            max_bytes=max_bytes,
            timeout=timeout,
        )

    def keep_state(self, step: int, state: str) -> None:
        from .kept_states import KeptState

        self._background.put(step, self._clock(), [KeptState(step, state)], at_once=True)

    def write_at_once(self, step: int, records: Sequence[Record]) -> None:
        self._background.put(step, self._clock(), records, at_once=True)

    def rewind(self, first_step: int) -> None:
        from .event_sink import Rewind

        self._background.put(first_step, self._clock(), [Rewind()])


class SummaryWriterAdapter(BackgroundWriter):
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
        max_figures: int = 64,
        max_bytes: int = 256 << 20,
        timeout: float = 25.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        import tensorboardX

        from .event_sink import EventSink

        if not isinstance(summary_writer, tensorboardX.SummaryWriter):
            raise TypeError(
                f"writer is a {type(summary_writer).__module__}."
                f"{type(summary_writer).__qualname__}: pass a Writer of ncp_callbacks, a "
                "tensorboardX.SummaryWriter or an object with write(step, records), or pass a "
                "directory in its place, such as log_dir='runs/cfc-seed0'"
            )
        self.log_dir = str(summary_writer.logdir)
        super().__init__(
            EventSink(_SharedFile(summary_writer)),
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
