"""Index what runs below a folder have logged, and keep up with what is appended.

    index = LogIndex("runs")
    index.names()                              # of all runs, without reading them
    index.run("cfc-s0").refresh()              # reads what the run has appended since
    index.run("cfc-s0").array("_ncp/attribution_strength", 300)

Arrays stay in their files, and the index knows where each begins. A run is read when it is asked
for; a folder with many long runs is listed at once.
"""

from __future__ import annotations

import os
import threading
import time
from array import array as Column
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..runs.frames import Frames, read_frame
from ..runs.reader import described, event_files, parsed_event, tensor_numbers, tensor_text
from ..screen import ARRAY_PLUGIN, CI_ARRAYS, DATA_PLUGIN, HEADLINE, SCALAR_ARRAYS, plain_tag

__all__ = ["Curve", "Document", "LogIndex", "RunIndex", "RunSource", "Source", "Track"]

FloatArray = npt.NDArray[np.float32]

_FEW_SECONDS = 2.0
# Runs that are kept with all their points, about 4 MB for 1,000 snapshots.
_MAX_RUNS = 48


@dataclass
class Curve:
    """Hold the points of a scalar.

    Attributes:
        steps: Of the points, in the order in which they were logged.
        values: Of the points.
        low: Lower end of the 95 % CI by step.
        high: Upper end by step.
        headline: It is among the few numbers that a reader should see first.
    """

    steps: Column[int] = field(default_factory=lambda: Column("q"))
    values: Column[float] = field(default_factory=lambda: Column("d"))
    low: dict[int, float] = field(default_factory=dict)
    high: dict[int, float] = field(default_factory=dict)
    headline: bool = False

    def add(self, step: int, value: float) -> None:
        """Add a point."""
        self.steps.append(step)
        self.values.append(value)


@dataclass
class Track:
    """Tell which snapshots of an array there are, and what it is.

    Attributes:
        about: The description that its first summary carries.
        places: By step: number of the file, offset of the record, place in it.
        shape: That of the last one.
    """

    about: dict[str, Any] = field(default_factory=dict)
    places: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    shape: tuple[int, ...] = ()


@dataclass
class Document:
    """Hold JSON documents of a tag by step."""

    texts: dict[int, str] = field(default_factory=dict)


class RunSource(Protocol):
    """What the page needs of one run."""

    @property
    def version(self) -> str:
        """Return a word that changes whenever something was added."""
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
    def documents(self) -> Mapping[str, Document]:
        """Return the JSON documents by tag."""
        ...

    def array(self, tag: str, step: int) -> FloatArray:
        """Return an array.

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
        self.tracks: dict[str, Track] = {}
        self.curves: dict[str, Curve] = {}
        self.documents: dict[str, Document] = {}
        self._plugins: dict[str, str] = {}
        self._tags: dict[str, str] = {}

    @property
    def version(self) -> str:
        """Return a word that changes whenever something was added."""
        read = sum(position for _, position in self._files.values())
        return f"{self._restarts}.{len(self._files)}.{read}"

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
            for part, value in enumerate(event.summary.value):
                place = (self._numbers[file], frame.offset, part)
                try:
                    self._add(event.step, value, place)
                except (ValueError, TypeError, OverflowError, MemoryError):
                    continue  # As in the reader, what can't be read is skipped alone.
        return frames.position

    def _restart(self, first: int) -> None:
        """Remove what an earlier part of a resumed run logged for ``first`` and later steps."""
        for track in self.tracks.values():
            track.places = {s: place for s, place in track.places.items() if s < first}
        for document in self.documents.values():
            document.texts = {s: text for s, text in document.texts.items() if s < first}
        for curve in self.curves.values():
            kept = [k for k, step in enumerate(curve.steps) if step < first]
            curve.steps = Column("q", (curve.steps[k] for k in kept))
            curve.values = Column("d", (curve.values[k] for k in kept))

    def _add(self, step: int, value: Any, place: tuple[int, int, int]) -> None:
        form = value.WhichOneof("value")
        tag = self._tags.get(value.tag)
        if tag is None:
            tag = self._tags[value.tag] = plain_tag(value.tag, value.metadata.display_name)
        if form == "simple_value":
            curve = self.curves.setdefault(tag, Curve())
            curve.headline |= value.tag.startswith(HEADLINE)
            curve.add(step, value.simple_value)
            return
        plugin = value.metadata.plugin_data.plugin_name or self._plugins.get(tag, "")
        self._plugins.setdefault(tag, plugin)
        if form != "tensor":
            return
        if plugin == DATA_PLUGIN:
            self.documents.setdefault(tag, Document()).texts[step] = tensor_text(value.tensor)
        elif plugin == ARRAY_PLUGIN and tag.startswith(CI_ARRAYS):
            ends = tensor_numbers(value.tensor)
            if ends.shape == (2,):
                curve = self.curves.setdefault(tag.removeprefix(CI_ARRAYS), Curve())
                curve.low[step], curve.high[step] = ends.tolist()
        elif plugin == ARRAY_PLUGIN and tag.startswith(SCALAR_ARRAYS):
            number = tensor_numbers(value.tensor)
            if number.size == 1:
                curve = self.curves.setdefault(tag.removeprefix(SCALAR_ARRAYS), Curve())
                curve.add(step, number.item())
        elif plugin == ARRAY_PLUGIN:
            track = self.tracks.setdefault(tag, Track())
            track.shape = tuple(int(dim.size) for dim in value.tensor.tensor_shape.dim)
            track.places[step] = place
            content = value.metadata.plugin_data.content
            if content:
                track.about = described(content)

    def array(self, tag: str, step: int) -> FloatArray:
        """Return an array of this run.

        Raises:
            KeyError: There is none.
            OSError, ValueError: Its file is gone, or damaged there.
        """
        number, offset, part = self.tracks[tag].places[step]
        file = list(self._numbers)[number]
        frame = read_frame(file, offset)
        event = parsed_event(frame) if frame.intact else None
        if event is None or part >= len(event.summary.value):
            raise ValueError(f"{file.name} is damaged at byte {offset:,}")
        return tensor_numbers(event.summary.value[part].tensor).astype(np.float32)


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
