"""Index what runs below a folder have logged, and keep up with what is appended.

    index = LogIndex("runs")
    index.names()                              # of all runs, without reading them
    index.run("cfc-s0").refresh()              # reads what the run has appended since
    index.run("cfc-s0").array("_ncp/attribution_strength", 300)

Arrays and documents stay in their files, and the index knows where each begins. Of the scalars, it
keeps those that the page shows. A run is read when it is asked for; a folder with many long runs is
listed at once. Events are numbered as they are read, so that who knows some gets the others.
"""

from __future__ import annotations

import os
import threading
import time
from array import array as Column
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..runs.frames import Frames, read_frame
from ..runs.reader import described, event_files, parsed_event, tensor_numbers, tensor_text
from ..runs.tags import VALIDATION
from ..screen import ARRAY_PLUGIN, CI_ARRAYS, DATA_PLUGIN, HEADLINE, SCALAR_ARRAYS, plain_tag

__all__ = [
    "ChosenRuns",
    "Curve",
    "LogIndex",
    "RunIndex",
    "RunSource",
    "Source",
    "Track",
    "is_shown",
]

FloatArray = npt.NDArray[np.float32]

_FEW_SECONDS = 2.0
# Runs that are kept with all their points, about 3 MB for 1,000 snapshots.
_MAX_RUNS = 48


def is_shown(tag: str, *, headline: bool) -> bool:
    """Return whether the page shows a scalar.

    Args:
        tag: Its tag.
        headline: It is among the few numbers that a reader should see first.
    """
    return headline or tag == "train/loss" or VALIDATION.match(tag) is not None


@dataclass
class Curve:
    """Hold the points of a scalar.

    Attributes:
        steps: Of the points, in the order in which they were logged.
        values: Of the points.
        events: Numbers of the events that had them.
        low: Lower end of the 95 % CI by step.
        high: Upper end by step.
        headline: It is among the few numbers that a reader should see first.
    """

    steps: Column[int] = field(default_factory=lambda: Column("q"))
    values: Column[float] = field(default_factory=lambda: Column("d"))
    events: Column[int] = field(default_factory=lambda: Column("q"))
    low: dict[int, float] = field(default_factory=dict)
    high: dict[int, float] = field(default_factory=dict)
    headline: bool = False

    def add(self, step: int, value: float, event: int) -> None:
        """Add a point."""
        self.steps.append(step)
        self.values.append(value)
        self.events.append(event)

    def after(self, event: int) -> Iterator[tuple[int, float]]:
        """Yield step and value of the points that came after an event."""
        first = bisect_right(self.events, event)
        return zip(self.steps[first:], self.values[first:], strict=False)


@dataclass
class Track:
    """Tell which snapshots of an array or a document there are, and what it is.

    Attributes:
        about: The description that its first summary carries.
        places: By step: number of the event, place in it.
        shape: That of the last one.
    """

    about: dict[str, Any] = field(default_factory=dict)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)
    shape: tuple[int, ...] = ()

    def after(self, event: int) -> list[int]:
        """Return the steps that came after an event, sorted."""
        places = list(self.places.items())  # Another thread may be adding some.
        return sorted(step for step, (number, _) in places if number > event)


class RunSource(Protocol):
    """What the page needs of one run."""

    @property
    def version(self) -> str:
        """Return a word that changes whenever something was added.

        What stands before its first point changes if anything was removed.
        """
        ...

    def known(self, version: str) -> int:
        """Return the number of the last event that who has a version knows; 0 for none."""
        ...

    @property
    def tracks(self) -> Mapping[str, Track]:
        """Return the arrays by tag."""
        ...

    @property
    def curves(self) -> Mapping[str, Curve]:
        """Return the scalars by tag."""
        ...

    @property
    def documents(self) -> Mapping[str, Track]:
        """Return the JSON documents by tag."""
        ...

    def array(self, tag: str, step: int) -> FloatArray:
        """Return an array.

        Raises:
            KeyError: There is none.
            OSError, ValueError: Its file is gone, or damaged there.
        """
        ...

    def text(self, tag: str, step: int) -> str:
        """Return a JSON document.

        Raises:
            KeyError: There is none.
            OSError, ValueError: Its file is gone, or damaged there.
        """
        ...


class Source(Protocol):
    """What the page needs of a log."""

    note: str
    """A sentence on what this source can't show; "" if it shows all."""

    def names(self) -> list[str]:
        """Return the names of all runs."""
        ...

    def run(self, name: str) -> RunSource:
        """Return a run, up to date.

        Raises:
            KeyError: There is no such run.
        """
        ...


class RunIndex:
    """Index the event files of one folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._clear()
        self._restarts = 0

    def _clear(self) -> None:
        self._files: OrderedDict[Path, tuple[int, int]] = OrderedDict()  # Inode, position.
        self._numbers: dict[Path, int] = {}
        # Of each event: number of its file, where it begins. The first event is number 1.
        self._file_of, self._offsets = Column("q", [0]), Column("q", [0])
        self.tracks: dict[str, Track] = {}
        self.curves: dict[str, Curve] = {}
        self.documents: dict[str, Track] = {}
        self._plugins: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._skipped: set[str] = set()  # Tags of most values, which the page doesn't show.

    @property
    def version(self) -> str:
        """Return how often something was removed, and the number of events that were read."""
        return f"{self._restarts}.{len(self._offsets) - 1}"

    def known(self, version: str) -> int:
        """Return the number of the last event that who has a version knows; 0 for none."""
        removed, _, events = version.partition(".")
        if removed != str(self._restarts) or not events.isdecimal():
            return 0
        return int(events) if int(events) < len(self._offsets) else 0

    def refresh(self) -> None:
        """Read what was appended since; a file that was replaced lets the run be read again.

        Raises:
            OSError: The folder or a file can't be read.
        """
        with self._lock:
            files = event_files(self._path)
            if any(self._is_other(file) for file in self._files):
                self._clear()
                self._restarts += 1
            for file in files:
                status = file.stat()
                position = self._files.get(file, (0, 0))[1]
                if status.st_size > position:
                    self._numbers.setdefault(file, len(self._numbers))
                    self._files[file] = (status.st_ino, self._read(file, position))

    def _is_other(self, file: Path) -> bool:
        """Return whether a file that was read is gone, shorter, or another one."""
        inode, position = self._files[file]
        try:
            status = file.stat()
        except OSError:
            return True
        return status.st_ino != inode or status.st_size < position

    def _read(self, file: Path, position: int) -> int:
        from tensorboardX.proto.event_pb2 import SessionLog

        frames = Frames(file, position)
        for frame in frames:
            event = parsed_event(frame) if frame.intact else None
            if event is None:
                continue
            if event.session_log.status == SessionLog.START:
                self._restart(event.step)
            number = len(self._offsets)
            for part, value in enumerate(event.summary.value):
                if value.tag in self._skipped:
                    continue
                try:
                    if not self._add(event.step, value, (number, part)):
                        self._skipped.add(value.tag)
                except (ValueError, TypeError, OverflowError, MemoryError):
                    continue  # As in the reader, what can't be read is skipped alone.
            # It counts once all of it is here: other threads tell which events they know.
            self._file_of.append(self._numbers[file])
            self._offsets.append(frame.offset)
        return frames.position

    def _restart(self, first: int) -> None:
        """Remove what an earlier part of a resumed run logged for ``first`` and later steps."""
        removed = False
        for track in (*self.tracks.values(), *self.documents.values()):
            kept = {s: place for s, place in track.places.items() if s < first}
            removed |= len(kept) < len(track.places)
            track.places = kept
        for curve in self.curves.values():
            rest = [k for k, step in enumerate(curve.steps) if step < first]
            removed |= len(rest) < len(curve.steps)
            columns: tuple[Column[Any], ...] = (curve.steps, curve.values, curve.events)
            for column in columns:
                column[:] = Column(column.typecode, (column[k] for k in rest))
        self._restarts += removed

    def _add(self, step: int, value: Any, place: tuple[int, int]) -> bool:
        """Keep a value, or where it is; return False if the page doesn't show what has its tag."""
        form = value.WhichOneof("value")
        tag = self._tags.get(value.tag)
        if tag is None:
            tag = self._tags[value.tag] = plain_tag(value.tag, value.metadata.display_name)
        if form == "simple_value":
            headline = value.tag.startswith(HEADLINE)
            if not is_shown(tag, headline=headline):
                return False
            curve = self.curves.setdefault(tag, Curve(headline=headline))
            curve.add(step, value.simple_value, place[0])
            return True
        plugin = value.metadata.plugin_data.plugin_name or self._plugins.get(tag, "")
        self._plugins.setdefault(tag, plugin)
        if form != "tensor":
            return False
        if plugin == DATA_PLUGIN:
            tensor_text(value.tensor)  # Raises an error for what is no text.
            self.documents.setdefault(tag, Track()).places[step] = place
        elif plugin == ARRAY_PLUGIN and tag.startswith(CI_ARRAYS):
            # It comes with its scalar, in one event.
            shown = self.curves.get(tag.removeprefix(CI_ARRAYS))
            if shown is None:
                return False
            ends = tensor_numbers(value.tensor)
            if ends.shape == (2,):
                shown.low[step], shown.high[step] = ends.tolist()
        elif plugin == ARRAY_PLUGIN and not tag.startswith(SCALAR_ARRAYS):
            track = self.tracks.setdefault(tag, Track())
            track.shape = tuple(int(dim.size) for dim in value.tensor.tensor_shape.dim)
            track.places[step] = place
            content = value.metadata.plugin_data.content
            if content:
                track.about = described(content)
        else:
            return False
        return True

    def array(self, tag: str, step: int) -> FloatArray:
        """Return an array of this run.

        Raises:
            KeyError: There is none.
            OSError, ValueError: Its file is gone, or damaged there.
        """
        return tensor_numbers(self._tensor(self.tracks[tag].places[step])).astype(np.float32)

    def text(self, tag: str, step: int) -> str:
        """Return a JSON document of this run.

        Raises:
            KeyError: There is none.
            OSError, ValueError: Its file is gone, or damaged there.
        """
        return tensor_text(self._tensor(self.documents[tag].places[step]))

    def _tensor(self, place: tuple[int, int]) -> Any:
        number, part = place
        file, offset = list(self._numbers)[self._file_of[number]], self._offsets[number]
        frame = read_frame(file, offset)
        event = parsed_event(frame) if frame.intact else None
        if event is None or part >= len(event.summary.value):
            raise ValueError(f"{file.name} is damaged at byte {offset:,}")
        return event.summary.value[part].tensor


class LogIndex:
    """Index the runs below a folder of this machine.

    Args:
        log_dir: The folder, or that of a single run.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        self.note = ""
        self._log_dir = Path(log_dir).expanduser()
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, RunIndex] = OrderedDict()
        self._folders: dict[str, Path] = {}
        self._walked = -1e9

    def names(self) -> list[str]:
        """Return the names of all runs: their folders, as seen from that of the log."""
        with self._lock:
            if time.monotonic() - self._walked > _FEW_SECONDS:
                self._folders = dict(self._walk())
                self._walked = time.monotonic()
            return sorted(self._folders)

    def _walk(self) -> Iterator[tuple[str, Path]]:
        for folder, folders, files in os.walk(self._log_dir):
            # The Projector's files, and those that tools hide.
            folders[:] = [name for name in folders if not name.startswith(".")]
            if any("tfevents" in name for name in files):
                path = Path(folder)
                name = path.relative_to(self._log_dir).as_posix()
                yield (self._log_dir.absolute().name if name == "." else name), path

    def run(self, name: str) -> RunIndex:
        """Return a run, after reading what it has appended.

        Raises:
            KeyError: There is no such run, or it can't be read any more.
        """
        if name not in self._folders:
            self.names()
        with self._lock:
            path = self._folders[name]
            run = self._runs.get(name)
            if run is None:
                run = self._runs[name] = RunIndex(path)
            self._runs.move_to_end(name)
            while len(self._runs) > _MAX_RUNS:
                self._runs.popitem(last=False)
        try:
            run.refresh()
        except OSError as error:
            with self._lock:
                self._folders.pop(name, None)
                self._runs.pop(name, None)
            raise KeyError(name) from error
        return run


class ChosenRuns:
    """Index runs under names of the caller's choice.

    Args:
        runs: Folders of runs by name.
    """

    def __init__(self, runs: Mapping[str, Path]) -> None:
        self.note = ""
        self._runs = {name: RunIndex(path) for name, path in runs.items()}

    def names(self) -> list[str]:
        """Return the names of all runs."""
        return list(self._runs)

    def run(self, name: str) -> RunIndex:
        """Return a run, after reading what it has appended.

        Raises:
            KeyError: There is no such run.
            OSError: It can't be read.
        """
        run = self._runs[name]
        run.refresh()
        return run
