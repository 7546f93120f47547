"""Train and analyse a model for each seed and fold."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..arguments import as_callbacks
from ..callback import Callback
from ..errors import one_line
from ..held_out import HeldOutBatch
from ..model import ModelCopy, Subject
from ..model.random_states import random_states, restore_random_states
from ..monitor import Monitor
from ..observer.snapshot import Snapshot, SnapshotLoader, SnapshotReader
from ..parallel import checked_n_jobs, parallel_jobs
from ..records import Array, Scalar
from ..results import Indices
from ..runs.tags import ASIDE
from ..scheduling import as_whole
from ..signal_handlers import raised_by_signal_handler
from ..writers import MemoryWriter
from .result import CrossValidation, Repetition, summarise

__all__ = ["Folds", "cross_validate"]

Folds: TypeAlias = "int | Iterable[tuple[npt.ArrayLike, npt.ArrayLike]]"

_OPTIONS = ("target", "at", "horizon", "forward", "cells", "layers", "chunk_size")
_FOLDS_OF_SEEDS = 5


class _Job(NamedTuple):
    """One training: its name, seed, and the indices of its training and held-out sequences."""

    name: str
    seed: int
    train: Indices
    held_out: Indices


def cross_validate(
    make_model: Callable[[], nn.Module],
    train: Callable[[nn.Module, HeldOutBatch], Mapping[str, float] | None],
    data: HeldOutBatch,
    *,
    folds: Folds | None = None,
    seeds: int | Iterable[int] | None = None,
    callbacks: Iterable[Callback] | str | None = None,
    n_jobs: int = 1,
    **options: Any,
) -> CrossValidation:
    """Train a model several times, and return how often each finding comes back.

    ::

        def train(model, batch):
            ...                                      # your loop, on batch.inputs and batch.targets
            return {"train/loss": loss.item()}       # or nothing

        result = ncp.cross_validate(make_model, train, data, seeds=10, n_jobs=2)
        print(result)             # … feature with the largest share: pulse, in 9 of 10
        result.numbers["attribution/time_share"].sd

    For each repetition the random generators of MLX, numpy and Python are seeded, a model is made
    and trained, and its last state is analysed once on the held-out sequences. Equal seeds and
    folds give equal results, whatever ``n_jobs`` is. The random states of this process are restored
    at the end.

    Args:
        make_model: Returns a new, untrained model.
        train: Trains a model in place on a batch of training sequences. It may return numbers by
            name, which are summarised as the others are.
        data: All sequences, with targets if ``train`` needs them. Arrays are split by sequence.
        folds: The number of parts of the data, each of which is held out once; or pairs of indices
            ``(training, held out)``, such as ``GroupKFold(5).split(x, groups=patients)`` of
            scikit-learn. The seed is the same for all folds unless ``seeds`` is passed, too. With
            None all repetitions hold out the same fifth of the sequences.
        seeds: The number of seeds, which are then 0, 1, 2, …; or the seeds. With None there is the
            seed 0 for each fold, or 5 seeds if ``folds`` is None, too.
        callbacks: As for :class:`Monitor`. Each repetition has copies.
        n_jobs: Number of trainings that joblib runs in parallel; -1 for one per core. Inside
            ``with joblib.parallel_config(...)`` the backend chosen there runs them, such as Dask's
            or Ray's on a cluster. Functions and data travel as bytes and numpy arrays, and models
            are made where they are trained. With backends of threads or forks, trainings run one
            after the other.
        **options: ``target``, ``at``, ``horizon``, ``forward``, ``cells``, ``layers`` and
            ``chunk_size``, as for :class:`Monitor`.

    Returns:
        How often the most frequent answers come back, and the spread of every number over
        repetitions.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there are fewer than two repetitions, or an argument has a wrong value.
        RuntimeError: If a repetition fails; its seed and fold are named.
    """
    for name, function in (("make_model", make_model), ("train", train)):
        if not callable(function) or isinstance(function, nn.Module):
            raise TypeError(f"{name} is a {type(function).__name__}: pass a function")
    if not isinstance(data, HeldOutBatch):
        raise TypeError(
            f"data is a {type(data).__name__}: pass ncp.HeldOutBatch(inputs, ...) with all the "
            "sequences"
        )
    unknown = sorted(options.keys() - set(_OPTIONS))
    if unknown:
        raise TypeError(f"{unknown[0]!r} is an unknown option: pass {', '.join(_OPTIONS)}")
    checked_n_jobs(n_jobs)
    listed = as_callbacks(callbacks, data)
    jobs, notes = _jobs(folds, seeds, len(data))
    parts = (make_model, train, data, listed, options)
    parallel = (1, "list") if n_jobs == 1 else parallel_jobs(n_jobs)
    if parallel[0] == 1:
        with _each_note_once():
            found = [_repeat(parts, job) for job in jobs]
    else:
        from joblib import Parallel, delayed

        # The functions may hold MLX arrays, which are read as bytes.
        nothing = nn.Module()  # type: ignore[no-untyped-call]
        packed = SnapshotReader(Subject(nothing), as_bytes=True).read(parts)
        found = list(
            Parallel(n_jobs=n_jobs, return_as=parallel[1])(
                delayed(_repeat_packed)(packed, job) for job in jobs
            )
        )
    reported = dict.fromkeys(note for _, more in found for note in more)
    return summarise([repetition for repetition, _ in found], [*notes, *reported])


@contextlib.contextmanager
def _each_note_once() -> Iterator[None]:
    """Let a message that each of the analyses reports pass once."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in seen
        seen.add(message)
        return new

    logger = logging.getLogger("ncp_callbacks")
    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def _jobs(
    folds: Folds | None, seeds: int | Iterable[int] | None, sequences: int
) -> tuple[list[_Job], list[str]]:
    """Return all combinations of seeds and folds, and what to keep in mind of them."""
    splits = _splits(folds, sequences)
    numbers = _seeds(5 if folds is None and seeds is None else 1 if seeds is None else seeds)
    jobs = []
    for seed, (fold, (train, held_out)) in itertools.product(numbers, enumerate(splits)):
        name = f"seed {seed}" if folds is None else f"seed {seed}, fold {fold}"
        jobs.append(_Job(name, seed, train, held_out))
    if len(jobs) < 2:
        raise ValueError("there is 1 repetition: pass at least 2 seeds= or folds=")
    notes = []
    if folds is not None:
        notes.append(
            "folds share most of their training sequences, so that repetitions are not independent"
        )
    if len(jobs) < 5:
        notes.append(
            f"with {len(jobs)} repetitions even an answer that comes back in all of them has a CI "
            f"from {0.025 ** (1 / len(jobs)):.2f} on; with 10 repetitions it begins at 0.69"
        )
    return jobs, notes


def _splits(folds: Folds | None, sequences: int) -> list[tuple[Indices, Indices]]:
    whole = _FOLDS_OF_SEEDS if folds is None else as_whole(folds)
    if whole is not None:
        from sklearn.model_selection import KFold

        if not 2 <= whole <= sequences:
            raise ValueError(
                f"folds={whole} for {sequences} sequences: pass 2 to {sequences} folds"
                if folds is not None
                else f"data has {sequences} sequences: pass at least {whole}"
            )
        split = KFold(whole, shuffle=True, random_state=0).split(np.zeros(sequences))
        pairs = [(np.sort(a), np.sort(b)) for a, b in split]
        return pairs if folds is not None else pairs[:1]
    if not isinstance(folds, Iterable):
        raise TypeError(
            f"folds is a {type(folds).__name__}: pass a number, or pairs (training, held out) of "
            "indices"
        )
    found = []
    for number, pair in enumerate(folds):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(
                f"folds[{number}]={pair!r}: pass a pair (training, held out) of indices"
            )
        train, held_out = (np.asarray(part) for part in pair)
        for part, indices in (("training", train), ("held out", held_out)):
            if indices.ndim != 1 or indices.dtype.kind not in "iu" or not indices.size:
                raise TypeError(f"folds[{number}]: pass a list of indices, {part}")
            if indices.min() < 0 or indices.max() >= sequences:
                raise ValueError(
                    f"folds[{number}] has indices from {indices.min()} to {indices.max()}, {part}: "
                    f"pass indices from 0 to {sequences - 1}"
                )
        both = np.intersect1d(train, held_out)
        if both.size:
            raise ValueError(
                f"folds[{number}] has sequence {both[0]} in both parts: hold out other sequences "
                "than those of training"
            )
        found.append((train.astype(np.intp), held_out.astype(np.intp)))
    return found


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    whole = as_whole(seeds)
    if whole is None and not isinstance(seeds, Iterable):
        raise TypeError(f"seeds is a {type(seeds).__name__}: pass a number, or a list of seeds")
    numbers = list(range(whole)) if whole is not None else list(seeds)  # type: ignore[arg-type]
    if not numbers:
        raise ValueError(f"seeds={seeds!r}: pass at least 1")
    for seed in numbers:
        number = as_whole(seed)
        if number is None or not 0 <= number < 1 << 32:
            raise ValueError(f"seeds has {seed!r}: pass whole numbers from 0 to {(1 << 32) - 1}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={numbers}: pass different seeds")
    return [int(seed) for seed in numbers]


Parts: TypeAlias = tuple[Any, Any, HeldOutBatch, Sequence[Callback], Mapping[str, Any]]


def _repeat_packed(packed: Snapshot, job: _Job) -> tuple[Repetition, list[str]]:
    """Run one repetition in another process; its result is numpy."""
    own = ModelCopy()
    SnapshotLoader(own).load(packed)
    return _repeat(own.extra, job)


def _repeat(parts: Parts, job: _Job) -> tuple[Repetition, list[str]]:
    """Train and analyse once."""
    states = random_states()
    try:
        return _trained_and_analysed(parts, job)
    except Exception as error:
        if raised_by_signal_handler(error):
            raise
        raise RuntimeError(f"{job.name} failed: {one_line(error)}") from error
    finally:
        restore_random_states(states)


def _trained_and_analysed(parts: Parts, job: _Job) -> tuple[Repetition, list[str]]:
    make_model, train, data, callbacks, options = parts
    mx.random.seed(job.seed)
    np.random.seed(job.seed)  # noqa: NPY002 (it seeds what the user's functions may draw from)
    random.seed(job.seed)
    model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(f"make_model returned a {type(model).__name__}: return an mlx.nn.Module")
    returned = train(model, data.take(job.train))
    if returned is not None and not isinstance(returned, Mapping):
        raise TypeError(
            f"train returned a {type(returned).__name__}: return a mapping of names to numbers, or "
            "nothing"
        )
    numbers = {str(name): float(value) for name, value in (returned or {}).items()}
    writer = MemoryWriter()
    with Monitor(
        model,
        data.take(job.held_out),
        [copy.deepcopy(callback) for callback in callbacks],
        writer=writer,
        every=1,
        background=False,
        on_error="raise",
        **options,
    ) as monitor:
        monitor.on_step_end(1)
    records = [record for step, record in writer.records if step == 1]
    for record in records:
        if isinstance(record, Scalar) and not ASIDE.match(record.tag):
            numbers[record.tag] = float(record.value)
    maps = {r.tag: np.array(r.values, np.float64) for r in records if isinstance(r, Array)}
    return Repetition(job.name, numbers, maps, monitor.findings), list(monitor.notes)
