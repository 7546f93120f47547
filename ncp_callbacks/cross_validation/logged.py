"""Count how often findings come back in runs that are logged already. Nothing here needs MLX."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ..runs.errors import RunsError
from ..runs.find import Group
from ..runs.findings import findings_of
from ..runs.fingerprint import compare_fingerprints
from ..runs.reader import Run, read_run
from ..runs.tags import ASIDE
from ..runs.words import listed
from .result import CrossValidation, Repetition, summarise

__all__ = ["cross_validate_runs"]

PathLike = str | os.PathLike[str]

_DIFFERENT = {
    "held-out batch": "another held-out batch than the first run: {runs}. The spread includes that "
    "of the sequences",
    "method": "another attribution method than the first run: {runs}. Shares of different methods "
    "are counted together",
    "target": "another target than the first run: {runs}. Their numbers are of different things",
    "feature names": "other features than the first run: {runs}. Only features that all have are "
    "correlated",
}


def cross_validate_runs(runs: PathLike | Sequence[PathLike]) -> CrossValidation:
    """Return how often each finding comes back in logged runs, such as those of several seeds.

    ::

        result = ncp.cross_validate_runs("runs/cfc-s*")

    Each run counts with its last logged values.

    Args:
        runs: A glob of run directories, or a list of directories and globs.

    Raises:
        RunsError: If there are fewer than two runs, or one can't be read.
    """
    given = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    paths: list[Path] = []
    for one in given:
        pattern = os.path.expanduser(os.fspath(one))
        found = sorted(path for path in glob.glob(pattern) if os.path.isdir(path))
        if not found:
            raise RunsError(f"{pattern!r} matches no directory: pass the directories of runs")
        paths += [Path(path) for path in found if Path(path) not in paths]
    if len(paths) < 2:
        raise RunsError(f"{str(paths[0])!r} is a single run: pass at least 2 runs")
    read = [read_run(path) for path in paths]
    return summarise([_repetition(run) for run in read], _notes(read))


def _repetition(run: Run) -> Repetition:
    numbers = {
        tag: float(series.values[-1])
        for tag, series in run.scalars.items()
        if len(series.values) and not ASIDE.fullmatch(tag) and not tag.startswith("monitor/")
    }
    maps = {tag: points[max(points)] for tag, points in run.arrays.items() if points}
    return Repetition(run.name, numbers, maps, findings_of(run))


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    lasts = {run.name: run.steps[1] for run in runs if run.steps}
    if len(set(lasts.values())) > 1:
        ends = ", ".join(f"{name} at {step:,}" for name, step in list(lasts.items())[:4])
        notes.append(f"the runs end at different steps ({ends}): their last values are compared")
    for condition in compare_fingerprints([Group(run.name, (run,)) for run in runs]):
        if condition.different:
            notes.append(_DIFFERENT[condition.name].format(runs=listed(condition.different, 3)))
    return notes
