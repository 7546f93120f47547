"""Write the log of a finished training from its checkpoints.

    ncp.replay(model, held_out, "checkpoints/*.safetensors", log_dir="runs/cfc-seed0")

The observer that analyses a training also analyses saved weights. The data take the same way:
checkpoint, snapshot, observer, records, writer.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from .arguments import as_callbacks, check_log, check_model, check_options
from .callback import Callback
from .callbacks.sets import CallbackSet
from .errors import one_line
from .held_out import HeldOutBatch
from .keywords import checks_function_keywords
from .model import At, Forward, ModelCopy, Subject, TargetLike
from .model.model_copy import check_copy
from .observer.background import Start
from .observer.observer import Analysis, Observer, Request, Settings
from .observer.snapshot import SnapshotLoader, SnapshotReader
from .parallel import checked_n_jobs, parallel_jobs
from .progress import progress
from .run_log import RunLog
from .run_names import named
from .run_opening import opening_records
from .scheduling import as_schedule
from .signal_handlers import raised_by_signal_handler
from .writers import WriterLike, as_list, directory_of, open_writers

__all__ = ["Checkpoints", "Replay", "replay"]

Checkpoints: TypeAlias = "str | os.PathLike[str] | Iterable[tuple[int, str | os.PathLike[str]]]"

_SUFFIXES = (".safetensors", ".npz")


@dataclass(frozen=True)
class Replay:
    """Report what a replay has done.

    Attributes:
        log_dir: Directory of the log; None with a ``writer=`` of another kind.
        steps: The steps that were analysed, in their order.
        notes: Everything that was reported: checkpoints that were skipped, callbacks that don't
            apply to the model, errors.
    """

    log_dir: str | None
    steps: tuple[int, ...]
    notes: tuple[str, ...]


@checks_function_keywords
def replay(
    model: nn.Module,
    held_out: HeldOutBatch,
    checkpoints: Checkpoints,
    callbacks: Iterable[Callback] | CallbackSet | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    *,
    writer: WriterLike | Sequence[WriterLike] | None = None,
    target: TargetLike = "prediction",
    at: At = "last",
    horizon: bool | None = None,
    forward: Forward | None = None,
    cells: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    chunk_size: int | None = None,
    make_model: Callable[[], nn.Module] | None = None,
    run_config: Mapping[str, Any] | None = None,
    n_jobs: int = 1,
    on_error: Literal["disable", "raise"] = "disable",
) -> Replay:
    """Analyse saved weights, and log what a monitor would have logged at these steps.

    Numbers, histograms and arrays are bit-equal to those of a :class:`Monitor` that took a snapshot
    at the steps of the checkpoints, as long as both run the held-out batch in equal chunks
    (``chunk_size=``). What a monitor measures of the training itself is missing: ``train/…`` and
    ``monitor/…``.

    A checkpoint that can't be read, because the file is damaged or was not written to its end, is
    reported and skipped. Weights that were read and don't fit the model are an error.

    Args:
        model: A model of the structure that was trained. It is read, and never run or changed.
        held_out: The batch that every analysis runs on.
        checkpoints: Pairs of a step and a file of weights, in any order. Or a glob of such files:
            then the step is the last whole number in the name of each file. Files are those that
            ``model.save_weights`` writes, ``.safetensors`` or ``.npz``.
        callbacks: As for :class:`Monitor`. All of them run at every checkpoint; a callback's own
            ``every=`` is not used. They are copied, so that another replay starts afresh.
        log_dir: As for :class:`Monitor`: a directory that holds a run already gets a number.
        writer: As for :class:`Monitor`.
        target: As for :class:`Monitor`.
        at: As for :class:`Monitor`.
        horizon: As for :class:`Monitor`.
        forward: As for :class:`Monitor`.
        cells: As for :class:`Monitor`.
        layers: As for :class:`Monitor`.
        chunk_size: As for :class:`Monitor`.
        make_model: As for :class:`Monitor`.
        run_config: As for :class:`Monitor`.
        n_jobs: Number of checkpoints that joblib analyses in parallel; -1 for one per core. Inside
            ``with joblib.parallel_config(...)`` the backend chosen there runs them, which may be a
            cluster that can read the files. With the backends ``"threading"`` and
            ``"multiprocessing"`` checkpoints are analysed one after the other: settings of MLX
            belong to the whole process, and MLX survives no fork. Numbers, histograms and arrays
            are those of ``n_jobs=1``, apart from numbers along the axes of :class:`StateSpace`:
            ``hidden/pc1_share``, ``hidden/pc2_share``, ``hidden/basis_captured``,
            ``hidden/basis_refits`` and ``hidden/numbers_changed``. Each job starts with the axes of
            the first checkpoint and refits them separately. The limits of pictures' axes grow
            separately in each job, too, and a callback that fails is disabled in its job only.
        on_error: ``"disable"`` a callback that fails and go on, or ``"raise"``.

    Raises:
        FileNotFoundError: If a file doesn't exist, or no file matches the glob.
        ValueError: If the name of a file has no step, if two files have one step, if weights don't
            fit the model, or if no file can be read. The file is named.
        TypeError: As for :class:`Monitor`.
        ModelError: As for :class:`Monitor`.
        RuntimeError: If a callback fails in the dry run.
    """
    listed = as_callbacks(callbacks, held_out)
    check_log(log_dir, writer)
    check_model(model, forward, make_model)
    check_options(chunk_size=chunk_size, run_config=run_config, on_error=on_error)
    checked_n_jobs(n_jobs)
    files = _checked_files(checkpoints)
    subject = Subject(model, forward, target if callable(target) else None, make_model)
    settings = Settings(
        "prediction" if callable(target) else target,
        at,
        cells,
        layers,
        chunk_size,
        horizon,
        raise_errors=on_error == "raise",
    )
    extra = (held_out, listed, make_model)
    start = Start(SnapshotReader(subject, as_bytes=True).read(extra), settings, {})
    worker = _Worker(start)
    worker.check_copy(subject)
    log = RunLog()
    files = worker.readable(files, log.report)
    dry_run = worker.observer.dry_run()
    applicable = [c for c in worker.callbacks if c.name not in dry_run.not_applicable]
    worker.names = tuple(callback.name for callback in applicable)
    for note in dry_run.notes:
        log.report(note)
    opening = opening_records(
        log,
        worker.observer.runner,
        applicable,
        as_schedule(_every_checkpoint),
        dict(run_config or {}),
        "on saved weights, after the training (ncp_callbacks.replay)",
    )
    start = dataclasses.replace(start, memory_per_sequence=worker.observer.memory_per_sequence)
    writers, given = open_writers(named(log_dir, run_config), as_list(writer))
    log.rehearse(dry_run.records)
    log.open(writers, dict(run_config or {}), [c.name for c in listed], given)
    steps: list[int] = []
    try:
        log.last_step = files[0][0]
        log.write(log.last_step, opening)
        analyses = _analyses(worker, start, files, n_jobs)
        for _, analysis in zip(progress(files, "replay", "checkpoint"), analyses, strict=True):
            if isinstance(analysis, _Skipped):
                log.report(analysis.message)
                continue
            steps.append(analysis.step)
            # A replay has the time to wait for its pictures, so that none is dropped.
            log.flush()
            log.last_step = analysis.step
            log.write(analysis.step, log.write_analysis(analysis.step, analysis.records))
            for note in analysis.notes:
                log.report(note)
            for failure in analysis.failures:
                log.fail(failure.message, failure.details)
    finally:
        log.flush()
        log.close()
    return Replay(directory_of(writers), tuple(steps), log.notes)


def _every_checkpoint(step: int) -> bool:
    return True


@dataclass(frozen=True)
class _Skipped:
    """Stand for the analysis of a checkpoint that can't be read."""

    message: str

    @classmethod
    def because(cls, file: Path, error: Exception) -> _Skipped:
        return cls(f"the checkpoint {file} can't be read and is skipped: {one_line(error)}")


class _Worker:
    """Analyses checkpoints one after the other, on copies of the model.

    Args:
        start: The model, packed with the held-out batch, the callbacks and ``make_model``.

    Attributes:
        callbacks: Copies of the user's callbacks.
        observer: The observer, which has one more copy of the model.
        names: Names of the callbacks that are asked.
    """

    def __init__(self, start: Start) -> None:
        self._own = own = ModelCopy()
        SnapshotLoader(own).load(start.snapshot)
        held_out, self.callbacks, make_model = own.extra
        for callback in self.callbacks:
            callback.analyse_always()
        self._reader = SnapshotReader(
            Subject(own.model, own.forward, own.target, make_model), as_bytes=False
        )
        analysed = ModelCopy()
        SnapshotLoader(analysed).load(self._reader.read())
        self._reader.restart()
        self.observer = Observer(analysed, held_out, self.callbacks, start.settings)
        self.observer.memory_per_sequence = start.memory_per_sequence
        self.names = tuple(callback.name for callback in self.callbacks)

    def check_copy(self, subject: Subject) -> None:
        """Compare the copy of the model with the original.

        Raises:
            CopyError: If the copy lacks something.
        """
        check_copy(subject, self._own)

    def readable(
        self, files: Sequence[tuple[int, Path]], report: Callable[[str], None]
    ) -> list[tuple[int, Path]]:
        """Return the files that can be read, and report the others.

        Names and shapes of the weights are compared with the model, and no weights are read.

        Raises:
            ValueError: If weights don't fit the model, or no file can be read.
        """
        found: list[tuple[int, Path]] = []
        skipped: list[str] = []
        for step, file in files:
            try:
                weights = mx.load(str(file))
            except Exception as error:
                if raised_by_signal_handler(error):
                    raise
                skipped.append(_Skipped.because(file, error).message)
                report(skipped[-1])
                continue
            self._fit(file, weights)
            found.append((step, file))
        if not found:
            raise ValueError(f"no checkpoint can be read: {skipped[0]}")
        return found

    def _fit(self, file: Path, weights: Any) -> None:
        try:
            self._own.model.load_weights(list(weights.items()))
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            raise ValueError(
                f"the weights in {file} don't fit the model: {one_line(error)}. Pass a model of "
                "the structure that was trained"
            ) from error

    def analyse(self, step: int, file: Path, *, finish: bool = False) -> Analysis | _Skipped:
        """Analyse the weights in a file.

        Args:
            step: Step of the checkpoint.
            file: The file.
            finish: Also run what callbacks do at the end of a run.
        """
        try:
            weights = mx.load(str(file))
            # An array that can't be evaluated would be analysed as zeros.
            mx.eval(weights)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            return _Skipped.because(file, error)
        self._fit(file, weights)
        analysis = self.observer.analyse(Request(step, 0.0, self._reader.read(), self.names))
        if finish:
            names = tuple(c.name for c in self.callbacks if c.finishes)
            last = Request(step, 0.0, self._reader.read(), names, finish=True)
            more = self.observer.analyse(last)
            analysis.records += more.records
            analysis.notes += more.notes
            analysis.failures += more.failures
        return analysis


def _analyses(
    worker: _Worker, start: Start, files: list[tuple[int, Path]], n_jobs: int
) -> Iterator[Analysis | _Skipped]:
    """Iterate over the analyses, in the order of the files."""
    jobs, return_as = (1, "list") if n_jobs == 1 else parallel_jobs(n_jobs)
    if jobs == 1 or len(files) < 3:
        for step, file in files:
            yield worker.analyse(step, file, finish=step == files[-1][0])
        return
    from joblib import Parallel, delayed

    jobs = min(jobs, len(files))
    ends = [len(files) * job // jobs for job in range(jobs + 1)]
    chunks = [
        # Axes and references come from the first checkpoint, changes from the one before.
        (files[: min(begin, 1)] + files[max(begin - 1, 1) : begin], files[begin:end])
        for begin, end in itertools.pairwise(ends)
    ]
    last = files[-1][0]
    for done in Parallel(n_jobs=n_jobs, return_as=return_as)(
        delayed(_analyse_chunk)(start, worker.names, before, chunk, last)
        for before, chunk in chunks
    ):
        yield from done


def _analyse_chunk(
    start: Start,
    names: tuple[str, ...],
    before: Sequence[tuple[int, Path]],
    files: Sequence[tuple[int, Path]],
    last: int,
) -> list[Analysis | _Skipped]:
    """Analyse some of the files in another process, after those that they are compared with."""
    worker = _Worker(start)
    worker.names = names
    for step, file in before:
        worker.analyse(step, file)
    return [worker.analyse(step, file, finish=step == last) for step, file in files]


def _checked_files(checkpoints: Checkpoints) -> list[tuple[int, Path]]:
    """Return steps and files, by step."""
    if isinstance(checkpoints, str | os.PathLike):
        pattern = os.path.expanduser(os.fspath(checkpoints))
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(
                f"checkpoints={pattern!r} matches no file: pass a glob such as "
                "'checkpoints/*.safetensors', or pairs of a step and a file"
            )
        pairs: list[tuple[int | None, Path]] = [(None, Path(name)) for name in found]
    elif isinstance(checkpoints, Iterable):
        pairs = [_checked_pair(pair) for pair in checkpoints]
    else:
        raise TypeError(
            f"checkpoints is a {type(checkpoints).__name__}; pass pairs of a step and a file, or a "
            "glob"
        )
    if not pairs:
        raise ValueError("checkpoints is empty: pass pairs of a step and a file, or a glob")
    for _, file in pairs:
        _check_file(file)
    files = [(_step_of(file) if step is None else step, file) for step, file in pairs]
    files.sort(key=lambda pair: pair[0])
    for (step, file), (following, other) in itertools.pairwise(files):
        if step == following:
            raise ValueError(
                f"{file} and {other} are both of step {step}: pass pairs of a step and a file, as "
                f"in [({step}, {str(file)!r}), ...], with one file for each step"
            )
    return files


def _checked_pair(pair: Any) -> tuple[int | None, Path]:
    if (
        not isinstance(pair, tuple | list)
        or len(pair) != 2
        or isinstance(pair[0], bool)
        or not hasattr(pair[0], "__index__")
        or not isinstance(pair[1], str | os.PathLike)
    ):
        raise TypeError(
            f"checkpoints has {pair!r}; pass pairs of a step and a file, as in "
            "[(100, 'weights.safetensors')], or a glob"
        )
    return operator.index(pair[0]), Path(os.fspath(pair[1])).expanduser()


def _check_file(file: Path) -> None:
    if file.is_dir():
        raise ValueError(
            f"the checkpoint {file} is a directory: pass a glob of files, such as "
            f"{str(file / '*.safetensors')!r}"
        )
    if not file.exists():
        raise FileNotFoundError(f"the checkpoint {file} doesn't exist: pass a file of weights")
    if file.suffix not in _SUFFIXES:
        raise ValueError(
            f"the checkpoint {file} is neither .safetensors nor .npz: pass files that "
            "model.save_weights wrote, or a glob that ends in .safetensors"
        )


def _step_of(file: Path) -> int:
    numbers = re.findall(r"\d+", file.stem)
    if not numbers:
        raise ValueError(
            f"{file} has no step in its name: pass pairs of a step and a file, as in "
            f"[(100, {str(file)!r})]"
        )
    return int(numbers[-1])
