"""Runs side by side, by number::

    result = compare_runs(["runs/cfc-s0", "runs/ltc-s0"])
    result = compare_runs({"cfc": "runs/cfc-s*", "ltc": "runs/ltc-s*"}, tags="^val/")
    result.row("val/loss").changes[0].ci

The first side is the one that the others are compared with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .comparison import Comparison, RunInfo, ScalarRow, Side
from .errors import RunsError
from .find import Group, RunsLike, find_groups, nearest, read_groups
from .interpretability import compare_arrays, time_curves
from .reader import HyperParameter
from .scalars import compare_scalars, significance

__all__ = ["compare_groups", "compare_runs", "load_groups"]


def compare_runs(
    runs: RunsLike,
    *,
    tags: str | None = None,
    last: int = 5,
    at: int | None = None,
    top: int = 3,
) -> Comparison:
    """Compare what runs have logged, up to the last step that all have reached.

    Args:
        runs: Paths of runs (folders with event files) or globs of them, each run a side of its
            own, or ``"NAME=GLOB"`` for runs that are one side; or a mapping from names of sides to
            paths or globs. Others are compared with the first side.
        tags: Regular expression; only tags in which it is found.
        last: Number of points that are averaged. Runs that log more often are averaged over more,
            from the same steps.
        at: Step to compare at, instead of the last common one.
        top: Number of features whose overlap is counted.

    Raises:
        RunsError: There are no such runs, no numbers or common steps in them, or no such tags; the
            message says what there is.
    """
    groups, warnings = load_groups(runs)
    return compare_groups(groups, tags=tags, last=last, at=at, top=top, warnings=warnings)


def load_groups(
    runs: RunsLike, progress: Callable[[list[Path]], Iterable[Path]] = iter
) -> tuple[list[Group], list[str]]:
    """Find and read runs; also what was passed over.

    Raises:
        RunsError: As for :func:`compare_runs`.
    """
    found, passed_over = find_groups(runs)
    return read_groups(found, progress), passed_over


def compare_groups(
    groups: Sequence[Group],
    *,
    tags: str | None = None,
    last: int = 5,
    at: int | None = None,
    top: int = 3,
    warnings: Sequence[str] = (),
) -> Comparison:
    """:func:`compare_runs`, for runs that were read already."""
    for name, number in (("last", last), ("top", top)):
        if number < 1:
            raise RunsError(f"{name}={number} must be at least 1")
    step, set_by = _until(groups, at)
    wanted = _filter(groups, tags)
    runs = [run for group in groups for run in group.runs]
    scalars = [
        tag for tag in runs[0].scalars if wanted(tag) and all(tag in run.scalars for run in runs)
    ]
    rows, unchanged, apart = compare_scalars(
        groups, scalars, until=step, last=last, chosen=tags is not None
    )
    measures, notes = compare_arrays(groups, wanted, until=step, top=top)
    curves = time_curves(groups, wanted, until=step)
    if not (rows or unchanged or measures):
        raise RunsError(_nothing_common(groups, apart, step))
    return Comparison(
        sides=tuple(_side(group) for group in groups),
        step=step,
        last=last,
        set_by=set_by,
        significance=significance(groups, rows),
        hparams=_differing(groups),
        scalars=tuple(rows),
        unchanged=tuple(unchanged),
        partial=_partial(groups, wanted),
        apart=tuple(apart),
        measures=tuple(measures),
        curves=tuple(curves),
        warnings=(
            *warnings,
            *(f"{run.name}: {warning}" for run in runs for warning in run.warnings),
            *_copies(groups, rows),
            *notes,
        ),
    )


def _steps(group: Group) -> list[tuple[int, int]]:
    # Runs without numbers were refused when they were read.
    return [run.steps or (0, 0) for run in group.runs]


def _until(groups: Sequence[Group], at: int | None) -> tuple[int, str]:
    """The step up to which runs are compared, and why."""
    ends = [
        (steps[1], run.name)
        for group in groups
        for run, steps in zip(group.runs, _steps(group), strict=True)
    ]
    end, shortest = min(ends)
    if at is not None:
        if at > end:
            raise RunsError(f"run {shortest!r} ends at step {end:,}: give at most that, not {at:,}")
        return at, "as asked for"
    if len({last for last, _ in ends}) == 1:
        return end, "where all end"
    return end, f"where {shortest} ends"


def _filter(groups: Sequence[Group], tags: str | None) -> Callable[[str], bool]:
    if tags is None:
        return lambda tag: True
    try:
        pattern = re.compile(tags)
    except re.error as error:
        raise RunsError(f"tags={tags!r} is no regular expression: {error}") from error
    known = list(_holders(groups))
    if not any(pattern.search(tag) for tag in known):
        raise RunsError(f"no tag matches {tags!r}{nearest(tags, known) or _known(known)}")
    return lambda tag: pattern.search(tag) is not None


def _known(tags: Sequence[str]) -> str:
    more = f" and {len(tags) - 8} more" if len(tags) > 8 else ""
    return f"; there are {', '.join(tags[:8])}{more}" if tags else ""


def _holders(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Tags of numbers, and the names of the runs that have them."""
    holders: dict[str, list[str]] = {}
    for run in (run for group in groups for run in group.runs):
        for tag in (*run.scalars, *run.histograms, *run.arrays):
            holders.setdefault(tag, []).append(run.name)
    return holders


def _partial(groups: Sequence[Group], wanted: Callable[[str], bool]) -> dict[str, tuple[str, ...]]:
    count = sum(len(group.runs) for group in groups)
    return {
        tag: tuple(names)
        for tag, names in _holders(groups).items()
        if len(names) < count and wanted(tag)
    }


def _nothing_common(groups: Sequence[Group], apart: Sequence[str], step: int) -> str:
    spans = ", ".join(
        f"{run.name} {first:,}-{last:,}"
        for group in groups
        for run, (first, last) in zip(group.runs, _steps(group), strict=True)
    )
    if apart:
        return f"the runs have no common steps up to {step:,}; they logged: {spans}"
    return f"the runs have no common tags at steps up to {step:,}; they logged: {spans}"


def _side(group: Group) -> Side:
    infos = (
        RunInfo(run.name, str(run.path), steps, dict(run.hparams))
        for run, steps in zip(group.runs, _steps(group), strict=True)
    )
    return Side(group.name, tuple(infos))


def _differing(groups: Sequence[Group]) -> dict[str, tuple[tuple[HyperParameter, ...], ...]]:
    """Hyper-parameters that not all runs share, with the values on each side."""
    runs = [run for group in groups for run in group.runs]
    names = dict.fromkeys(name for run in runs for name in run.hparams)
    return {
        name: tuple(
            tuple(dict.fromkeys(r.hparams[name] for r in group.runs if name in r.hparams))
            for group in groups
        )
        for name in names
        if len({(type(run.hparams.get(name)), run.hparams.get(name)) for run in runs}) > 1
    }


def _copies(groups: Sequence[Group], rows: Sequence[ScalarRow]) -> list[str]:
    """Runs of a side with the same numbers everywhere are one observation, not several."""
    notes = []
    for number, group in enumerate(groups):
        seen: dict[tuple[float, ...], str] = {}
        for place, run in enumerate(group.runs):
            numbers = tuple(row.values[number].runs[place] for row in rows)
            if len(numbers) > 1 and numbers in seen:
                notes.append(
                    f"{seen[numbers]} and {run.name} have the same numbers: copies, or the same "
                    "seed. They count twice, and what is said of significance is too certain"
                )
            seen.setdefault(numbers, run.name)
    return notes
