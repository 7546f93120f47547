"""Write the log of a finished training from its checkpoints.

ncp.replay(model, held_out, "checkpoints/*.safetensors", log_dir="runs/cfc-seed0")
"""

from __future__ import annotations

import glob
import itertools
import operator
import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import mlx.nn as nn

from .callback import Callback
from .held_out import HeldOutBatch
from .model import At, Forward, ModelCopy, Subject, TargetLike
from .monitor import as_callbacks
from .observer.observer import Analysis, Observer, Request, Settings
from .observer.snapshot import SnapshotLoader, SnapshotReader
from .progress import progress
from .records import Text
from .run_card import run_card
from .run_log import RunLog
from .scheduling import every
from .writers import TensorBoardWriter, Writer, as_writer

__all__ = ["Checkpoints", "Replay", "replay"]

Checkpoints: TypeAlias = "str | os.PathLike[str] | Iterable[tuple[int, str | os.PathLike[str]]]"


@dataclass(frozen=True)
class Replay:
    """What became of a replay.

    Attributes:
        log_dir: Directory of the log; None with ``writer=``.
        steps: The steps that were analysed.
        notes: What the user should know.
    """

    log_dir: str | None
    steps: tuple[int, ...]
    notes: tuple[str, ...]


def replay(
    model: nn.Module,
    held_out: HeldOutBatch,
    checkpoints: Checkpoints,
    callbacks: Iterable[Callback] | str | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    *,
    writer: Writer | None = None,
    target: TargetLike = "prediction",
    at: At = "last",
    forward: Forward | None = None,
    cells: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    chunk_size: int | None = None,
    run_config: Mapping[str, Any] | None = None,
    n_jobs: int = 1,
    on_error: Literal["disable", "raise"] = "disable",
) -> Replay:
    """Analyse saved weights, and log what a monitor would have logged at these steps.

    Args:
        model: A model of the structure that was trained. It is read, not changed.
        held_out: The batch that every analysis runs on.
        checkpoints: Pairs of a step and a file of weights (``.safetensors`` or ``.npz``, as
            ``model.save_weights`` writes them); or a glob of such files, whose step is the last
            whole number in the name.
        callbacks: What to analyse, at every checkpoint; see :class:`Monitor`.
        log_dir, writer: Where to log; see :class:`Monitor`.
        target, at, forward, cells, layers, chunk_size, run_config: As for :class:`Monitor`.
        n_jobs: How many checkpoints are analysed at once, by joblib: -1 for one per core. With the
            ``with joblib.parallel_config(...)`` of Dask or Ray they run on a cluster, which must
            see the files. Numbers are those of one job; limits of axes may differ.
        on_error: ``"disable"`` a callback that fails and go on, or ``"raise"``.

    Raises:
        FileNotFoundError: If a file isn't there, or no file fits the glob.
        ValueError: If a file's name has no step, two have the same one, or weights don't fit the
            model; the file is named.
        TypeError, ModelError: As for :class:`Monitor`.
    """
    if (log_dir is None) == (writer is None):
        raise TypeError("pass either log_dir='runs/name' or writer=")
    files = _checked_files(checkpoints)
    listed = as_callbacks(callbacks)
    subject = Subject(model, forward, target if callable(target) else None)
    settings = Settings(
        "prediction" if callable(target) else target,
        at,
        cells,
        layers,
        chunk_size,
        raise_errors=on_error == "raise",
    )
    worker = _Worker(subject, held_out, listed, settings)
    worker.read(files[0][1])  # weights that don't fit show before there is a log
    dry_run = worker.observer.dry_run()
    log = RunLog()
    for note in dry_run.notes:
        log.report(note)
    applicable = [c for c in listed if c.name not in dry_run.not_applicable]
    card = run_card(
        worker.observer.instrument,
        applicable,
        every(steps=1),
        dict(run_config or {}),
        log.notes,
        "on saved weights, after the training",
    )
    target_writer = TensorBoardWriter(log_dir) if log_dir is not None else as_writer(writer)
    log.rehearse(dry_run.records)
    log.open(target_writer, dict(run_config or {}))
    try:
        log.write(files[0][0], [Text("about/run", card)])
        for analysis in _analyses(worker, files, n_jobs):
            log.last_step = analysis.step
            log.write(analysis.step, analysis.records)
            for note in analysis.notes:
                log.report(note)
            for failure in analysis.failures:
                log.fail(failure.message, failure.details)
    finally:
        if writer is None:
            log.close()
        else:
            log.flush()
    where = str(target_writer.log_dir) if isinstance(target_writer, TensorBoardWriter) else None
    return Replay(where, tuple(step for step, _ in files), log.notes)


class _Worker:
    """Analyses checkpoints one after the other, on a model of its own."""

    def __init__(
        self,
        subject: Subject,
        held_out: HeldOutBatch,
        callbacks: Sequence[Callback],
        settings: Settings,
    ) -> None:
        self._parts = (held_out, list(callbacks), settings)
        self._names = tuple(callback.name for callback in callbacks)
        self._own = own = ModelCopy.of(subject)
        self._reader = SnapshotReader(Subject(own.model, own.forward, own.target), as_bytes=False)
        analysed = ModelCopy()
        SnapshotLoader(analysed).load(self._reader.read())
        self._reader.restart()
        self.observer = Observer(analysed, held_out, callbacks, settings)

    def packed(self) -> bytes:
        """Return what :meth:`unpacked` makes a worker of, in another process."""
        reader = SnapshotReader(
            Subject(self._own.model, self._own.forward, self._own.target), as_bytes=True
        )
        held_out, callbacks, settings = self._parts
        snapshot = reader.read(extra=(held_out, callbacks))
        return pickle.dumps((snapshot, settings, self.observer.state()))

    @classmethod
    def unpacked(cls, data: bytes) -> _Worker:
        """Make a worker that goes on from where :meth:`packed` was called."""
        snapshot, settings, state = pickle.loads(data)
        copy = ModelCopy()
        SnapshotLoader(copy).load(snapshot)
        held_out, callbacks = copy.extra
        worker = cls(Subject(copy.model, copy.forward, copy.target), held_out, callbacks, settings)
        worker.observer.load_state(state)
        return worker

    def read(self, file: Path) -> None:
        """Load weights.

        Raises:
            ValueError: If they don't fit the model.
        """
        try:
            self._own.model.load_weights(str(file))
        except (ValueError, RuntimeError, KeyError) as error:
            raise ValueError(f"the weights in {file} don't fit the model: {error}") from error

    def analyse(self, step: int, file: Path, *, finish: bool = False) -> Analysis:
        """Analyse the weights in a file."""
        self.read(file)
        request = Request(step, 0.0, self._reader.read(), self._names)
        analysis = self.observer.analyse(request)
        if finish:
            names = tuple(c.name for c in self._parts[1] if type(c).finish is not Callback.finish)
            last = Request(step, 0.0, self._reader.read(), names, finish=True)
            more = self.observer.analyse(last)
            analysis.records += more.records
            analysis.notes += more.notes
            analysis.failures += more.failures
        return analysis


def _analyses(
    worker: _Worker, files: Sequence[tuple[int, Path]], n_jobs: int
) -> Iterable[Analysis]:
    """Iterate over the analyses, in the order of the files."""
    if n_jobs == 1 or len(files) < 3:
        last = len(files) - 1
        for number, (step, file) in enumerate(progress(files, "replay", "checkpoint")):
            yield worker.analyse(step, file, finish=number == last)
        return
    from joblib import Parallel, delayed, effective_n_jobs

    # Axes and references come from the first checkpoint, for all.
    yield worker.analyse(*files[0])
    data = worker.packed()
    rest = list(files[1:])
    count = min(effective_n_jobs(n_jobs), len(rest))
    ends = [len(rest) * k // count for k in range(count + 1)]
    chunks = [
        # What changed since the checkpoint before needs that one, too; the first was just analysed.
        (files[begin] if begin else None, rest[begin:end], end == len(rest))
        for begin, end in itertools.pairwise(ends)
    ]
    for done in Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_analyse_chunk)(data, *chunk) for chunk in chunks
    ):
        yield from done


def _analyse_chunk(
    data: bytes, before: tuple[int, Path] | None, files: Sequence[tuple[int, Path]], last: bool
) -> list[Analysis]:
    worker = _Worker.unpacked(data)
    if before is not None:
        worker.analyse(*before)
    return [
        worker.analyse(step, file, finish=last and number == len(files) - 1)
        for number, (step, file) in enumerate(files)
    ]


def _checked_files(checkpoints: Checkpoints) -> list[tuple[int, Path]]:
    if isinstance(checkpoints, str | os.PathLike):
        pattern = os.path.expanduser(os.fspath(checkpoints))
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(f"checkpoints={pattern!r}: no file fits; pass a glob of files")
        pairs = [(_step_of(name), Path(name)) for name in found]
    else:
        pairs = []
        for pair in checkpoints:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(
                    f"checkpoints has {pair!r}; pass pairs of a step and a file, or a glob"
                )
            pairs.append((operator.index(pair[0]), Path(os.fspath(pair[1])).expanduser()))
    if not pairs:
        raise ValueError("checkpoints is empty: pass pairs of a step and a file, or a glob")
    pairs.sort(key=lambda pair: pair[0])
    for (step, file), (following, other) in itertools.pairwise(pairs):
        if step == following:
            raise ValueError(f"{file} and {other} are both of step {step}: pass (step, file) pairs")
    for _, file in pairs:
        if not file.is_file():
            raise FileNotFoundError(f"the checkpoint {file} is no file")
    return pairs


def _step_of(name: str) -> int:
    numbers = re.findall(r"\d+", Path(name).stem)
    if not numbers:
        raise ValueError(
            f"{name} has no step in its name: pass (step, file) pairs, as in [(100, {name!r})]"
        )
    return int(numbers[-1])
