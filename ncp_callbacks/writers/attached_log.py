"""Put what a tracker has no place for into small event files, which it keeps as files of its run.

    log = AttachedLog("wandb/run-1/files/ncp_log")
    for path in log.add(step, records):     # files that are complete, to be passed on
        ...
    for path in log.close():
        ...

Together they are a log, which :func:`~ncp_callbacks.runs.read_run` and TensorBoard read: numbers,
95 % CIs, histograms, arrays, texts and findings. Pictures and points are left to the tracker.
"""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import one_line
from ..records import Array, Embedding, Histogram, Picture, Record
from .base import Instruction
from .encoding import Encoder, Event, Summary
from .event_file import fits_int64, framed
from .run_config import RunConfig

__all__ = ["FOLDER", "MAX_BYTES", "AttachedLog", "points_table"]

logger = logging.getLogger("ncp_callbacks")

FOLDER = "ncp_log"
MAX_BYTES = 64 << 20
_MAX_WAITING = 1 << 20  # Bytes of numbers that wait for the next snapshot.


class AttachedLog:
    """Write event files, one for each snapshot and the numbers before it.

    Numbers and texts get a quarter of ``max_bytes``, arrays and histograms the rest. Once half of
    that is used, those of ever fewer snapshots are kept, whose numbers grow by a factor: what is
    left then suffices for a run a thousand times as long. Those of the last snapshot are kept.

    Args:
        folder: Directory of the files, made with the first one.
        max_bytes: Bytes of all files. The first record that has no room is reported.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self._encoder = Encoder()
        self._max_bytes = max_bytes
        self._room = {False: max_bytes // 4, True: max_bytes - max_bytes // 4}  # By being large.
        self._half = self._room[True] // 2
        self._waiting = bytearray()
        self._files = self._snapshots = 0
        self._step: int | None = None  # Of the last snapshot.
        self._is_kept = True
        self._kept: list[int] = []  # Numbers of snapshots.
        self._skipped: list[tuple[int, list[Array | Histogram]]] = []  # Of the last snapshot.
        self._reported: set[str] = set()

    def add_config(self, config: Mapping[str, Any]) -> None:
        """Take the hyper-parameters."""
        self._encode(0, [RunConfig.of(config)])

    def add(self, step: int, records: Sequence[Record]) -> list[Path]:
        """Take records of a step, and return the files that are complete."""
        large = [record for record in records if isinstance(record, Array | Histogram)]
        others = (Array, Histogram, Picture, Embedding)
        self._encode(step, [record for record in records if not isinstance(record, others)])
        if large and step != self._step:
            self._step, self._snapshots = step, self._snapshots + 1
            self._is_kept = self._snapshots >= self._next_kept()
            self._kept += [self._snapshots] * self._is_kept
            self._skipped.clear()
        if large and self._is_kept:
            self._encode(step, large, large=True)
        elif large:
            self._skipped.append((step, large))
        is_complete = (large and self._is_kept) or len(self._waiting) > _MAX_WAITING
        return self._written() if is_complete else []

    def close(self) -> list[Path]:
        """Return the last file, if anything is left."""
        for step, records in self._skipped:
            self._encode(step, records, large=True)
        self._skipped.clear()
        return self._written()

    def _next_kept(self) -> float:
        """Return the number of the snapshot that is kept next."""
        if self._room[True] > self._half:
            return self._snapshots
        size = (self._max_bytes - self._max_bytes // 4 - self._room[True]) / len(self._kept)
        # Room for two is left to the last snapshot and what comes late for this one.
        left = self._room[True] / size - 2
        return float(self._kept[-1]) * 1000 ** (1 / left) if left > 0 else math.inf

    def _encode(
        self, step: int, records: Sequence[Record | Instruction], *, large: bool = False
    ) -> None:
        if not fits_int64(step):
            self._report("step", f"records of step {step} are lost: pass steps of less than 2**63")
            return
        values: list[Summary.Value] = []
        for record in records:
            try:
                values += self._encoder.values(record)
            except Exception as error:
                self._report(record.tag, f"{record.tag!r} can't be kept: {one_line(error)}")
        if not values:
            return
        data = framed(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        if len(data) > self._room[large]:
            what = "arrays" if large else "numbers and texts"
            self._report(
                what,
                f"there is no room for {what} of step {step} any more. Pass a larger max_bytes= "
                f"than {self._max_bytes:,}, or log less often",
            )
            return
        self._room[large] -= len(data)
        self._waiting += data

    def _written(self) -> list[Path]:
        if not self._waiting:
            return []
        now = time.time()
        head = framed(Event(wall_time=now, file_version="brain.Event:2"))
        self._room[True] -= len(head)
        self._files += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        # Files are read by name; a run that goes on has later seconds, and its own names.
        name = f"events.out.tfevents.{int(now):010d}.{self._files:06d}.{uuid.uuid4().hex[:8]}.ncp"
        path = self.folder / name
        path.write_bytes(head + bytes(self._waiting))
        self._waiting.clear()
        return [path]

    def _report(self, key: str, message: str) -> None:
        if key not in self._reported:
            self._reported.add(key)
            logger.warning("%s of the tracker's run: %s", os.fspath(self.folder), message)


def points_table(record: Embedding) -> tuple[list[str], Iterator[list[Any]]]:
    """Return names of columns and the lines of a table of points: labels, then dimensions."""
    names = [*record.labels, *(f"dimension {d}" for d in range(record.values.shape[1]))]
    columns = [*record.labels.values(), *record.values.T]

    def plain(value: Any) -> Any:
        return value.item() if hasattr(value, "item") else value

    return names, ([plain(c[i]) for c in columns] for i in range(record.values.shape[0]))
