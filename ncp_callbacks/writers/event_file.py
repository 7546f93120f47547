"""Write an event file of our own in a run directory of its own.

    file = EventFile("runs/cfc-seed0")      # or runs/cfc-seed0-2 when that one is taken
    file.write(Event(step=1, summary=...))
    file.flush()
    file.close()

It raises what the file system raises; the thread that writes to it deals with that.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import socket
import struct
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from tensorboardX.record_writer import masked_crc32c

from ..descriptors import above_standard_streams
from .encoding import Event, SessionLog
from .places import as_directory

__all__ = ["EventFile", "fits_int64", "framed"]

_CLAIM = ".ncp_callbacks-claim"


class EventFile:
    """Create an event file and append events to it.

    Args:
        log_dir: It is made if it is missing. Unless resuming, the first of ``log_dir``,
            ``log_dir-2``, ``log_dir-3``, … that holds no event files is used, and of the current
            directory the first of ``.``, ``run-2``, ``run-3``, ….
        first_step: Resume: use ``log_dir`` as it is; TensorBoard then hides what earlier files
            hold from this step on.

    Raises:
        TypeError, ValueError: ``log_dir`` is not a path of this machine, or ``first_step`` is
            beyond what a log can hold.
        NotADirectoryError: ``log_dir``, or what should contain it, is a file.
        PermissionError: ``log_dir`` can't be written to.
        OSError: The disk is full, or there is another reason. No file or directory is left.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        first_step: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if first_step is not None and not fits_int64(first_step):
            raise ValueError(f"first_step={first_step}: pass a step of less than 2**63")
        wanted = as_directory(log_dir)
        made: list[Path] = []
        self._pending = bytearray()
        try:
            self._file = _open(wanted, made, resume=first_step is not None, clock=clock)
            self.path = Path(self._file.name)
            try:
                self._begin(first_step, clock())
            except OSError:
                self._file.close()
                self.path.unlink()
                raise
        except OSError as error:
            for directory in reversed(made):
                with contextlib.suppress(OSError):  # Others may have put something there.
                    directory.rmdir()
            raise _explained(error, wanted) from error

    def _begin(self, first_step: int | None, now: float) -> None:
        self.write(Event(wall_time=now, file_version="brain.Event:2"))
        start = Event(
            wall_time=now, step=first_step or 0, session_log=SessionLog(status=SessionLog.START)
        )
        self.write(start)
        if first_step is not None:
            # One of TensorBoard's loaders ignores the first marker of a directory, and files
            # of other writers have none.
            self.write(start)
        self.flush()

    @property
    def log_dir(self) -> Path:
        """Return the directory used."""
        return self.path.parent

    def write(self, event: Event) -> None:
        """Append an event; it is in the file after the next :meth:`flush`."""
        self._pending += framed(event)

    def flush(self) -> None:
        """Write all events to the operating system, so that they survive this process.

        Raises:
            OSError: The disk is full, the file was deleted, …
        """
        rest = bytes(self._pending)
        self._pending.clear()
        while rest:
            rest = rest[self._file.write(rest) :]
        if os.fstat(self._file.fileno()).st_nlink == 0:
            # Writing to it goes on without an error, into nothing.
            raise FileNotFoundError(
                f"the event file {str(self.path)!r} was deleted: keep it until the run has ended"
            )

    def close(self) -> None:
        """Flush and close."""
        try:
            if not self._file.closed:
                self.flush()
        finally:
            self._file.close()


def framed(event: Event) -> bytes:
    """Return an event with its length and checksums, as it stands in a file."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join(
        [
            length,
            struct.pack("<I", masked_crc32c(length)),
            data,
            struct.pack("<I", masked_crc32c(data)),
        ]
    )


def fits_int64(step: int) -> bool:
    """Return whether an event can hold this step."""
    return -(2**63) <= step < 2**63


def _explained(error: OSError, wanted: Path) -> OSError:
    """Return an error that names the directory and how to repair it."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        parts = [path for path in (wanted, *wanted.parents) if os.path.lexists(path)]
        part = next((path for path in parts if not path.is_dir()), wanted)
        what, fix = "a file", f"Pass another, such as log_dir={str(wanted) + '-logs'!r}."
        if part.is_symlink() and not part.exists():
            target = os.path.join(part.parent, os.readlink(part))
            what, fix = f"a link to {target!r}, which doesn't exist", f"Make {target!r}."
        return NotADirectoryError(
            f"log_dir {str(wanted)!r} can't be a directory: {str(part)!r} is {what}. {fix}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionError(
            f"log_dir {str(wanted)!r} can't be written to ({error.strerror}). Make it "
            "writable, or pass another, such as log_dir='~/runs/cfc-seed0'."
        )
    if error.errno == errno.ENAMETOOLONG:
        fix = "Pass a shorter name"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "Make room there, or pass another"
    elif error.errno == errno.EFBIG:
        fix = "Raise the limit on the size of files (ulimit -f), or pass another"
    else:
        fix = "Pass another"
    return OSError(
        error.errno,
        f"no log can be opened in log_dir {str(wanted)!r} ({error.strerror}). {fix}, such as "
        "log_dir='~/runs/cfc-seed0'.",
    )


def _open(wanted: Path, made: list[Path], *, resume: bool, clock: Callable[[], float]) -> io.FileIO:
    """Return a new file; directories that were missing are added to ``made``."""
    if resume:
        _make(wanted, made)
        return _create(wanted, clock)
    # Beside the current directory, a log would be outside of the project.
    is_current = wanted.is_dir() and os.path.samefile(wanted, os.curdir)
    for number in itertools.count(1):
        numbered = wanted / f"run-{number}" if is_current else Path(f"{wanted}-{number}")
        directory = wanted if number == 1 else numbered
        try:
            _make(directory, made)
        except FileExistsError:
            if number == 1:
                raise
            continue
        file = _claim(directory, clock)
        if file is not None:
            return file
    raise AssertionError("unreachable")


def _make(directory: Path, made: list[Path]) -> None:
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        made.append(path)
    directory.mkdir(exist_ok=True)  # It may be a file.


def _claim(directory: Path, clock: Callable[[], float]) -> io.FileIO | None:
    """Return a file in a directory without event files; None if it has some or is being claimed."""
    claim = directory / _CLAIM
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return None
    try:
        return None if _event_files(directory) else _create(directory, clock)
    finally:
        claim.unlink()


def _create(directory: Path, clock: Callable[[], float]) -> io.FileIO:
    # TensorBoard reads the files of a directory in the order of their names.
    newest = max((int(found[1] or 0) for found in _event_files(directory)), default=0)
    seconds = max(int(clock()), newest + 1)
    name = (
        f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}"
        f".{os.getpid()}.{uuid.uuid4().hex[:8]}.ncp"
    )
    # Unbuffered, so that a forked child has nothing to write a second time when it exits.
    with above_standard_streams():
        return io.FileIO(directory / name, "x")


def _event_files(directory: Path) -> list[re.Match[str]]:
    names = (re.search(r"tfevents\.?(\d*)", name) for name in os.listdir(directory))
    return [found for found in names if found]
