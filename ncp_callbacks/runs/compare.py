"""Compare runs side by side, by number.

    result = compare_runs(["runs/cfc-s0", "runs/ltc-s0"])
    result = compare_runs({"cfc": "runs/cfc-s*", "ltc": "runs/ltc-s*"}, tags="^val/")
    result = compare_runs("runs/sweep", by="model")
    print(*result.answer)
    result.row("val/loss").changes[0].ci

Others are compared with the first side.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..findings.finding import Severity
from ..keywords import checks_function_keywords
from .answer import answer, time_share_tag
from .comparison import Comparison, RunFinding, RunInfo, ScalarRow, Side
from .errors import RunsError
from .find import (
    Group,
    RunsLike,
    all_runs,
    find_groups,
    find_runs,
    read_by,
    read_groups,
    shared_tags,
)
from .findings import findings_of
from .fingerprint import commensurable, compare_fingerprints
from .maps import Features, compare_arrays, feature_shares, time_curves
from .reader import HyperParameter, Run
from .scalars import common_window, compare_scalars, scalar_row, significance
from .tags import VALIDATION, short
from .words import like

__all__ = ["choose_pair", "compare_groups", "compare_runs", "load_groups"]


@checks_function_keywords
def compare_runs(
    runs: RunsLike | str | os.PathLike[str],
    *,
    by: str | Sequence[str] | None = None,
    tags: str | None = None,
    last: int = 5,
    at: int | None = None,
    top: int = 3,
) -> Comparison:
    """Compare what runs have logged, up to the last step that all have reached.

    Args:
        runs: Paths of runs (folders with event files) or globs of them, each run a side of its
            own, or ``"NAME=GLOB"`` for runs that are one side; or a mapping from names of sides to
            paths or globs. Others are compared with the first side. With ``by``, also one folder of
            runs.
        by: Name of a hyper-parameter, or several: runs with equal values are one side, whatever
            else differs, as a rule the seed.
        tags: Regular expression; the table of scalars has only tags that match it. Nothing else
            depends on it.
        last: Number of snapshots that are averaged. Runs that log more often are averaged over
            more, from the same steps.
        at: Step to compare at, instead of the last common one.
        top: Number of features whose overlap is counted.

    Raises:
        RunsError: There are no such runs, no numbers or common steps in them, or no such tags; the
            message names what there is.
    """
    groups, warnings = load_groups(runs, by=[by] if isinstance(by, str) else by)
    return compare_groups(groups, tags=tags, last=last, at=at, top=top, warnings=warnings)


def load_groups(
    runs: RunsLike | str | os.PathLike[str],
    progress: Callable[[list[Path]], Iterable[Path]] = iter,
    *,
    by: Sequence[str] | None = None,
) -> tuple[list[Group], list[str]]:
    """Find and read runs; return them, and sentences on what was skipped.

    Args:
        runs: As for :func:`compare_runs`.
        progress: Goes through the paths and may show how far it is.
        by: Names of hyper-parameters that make sides; None: the paths do.

    Raises:
        RunsError: As for :func:`compare_runs`.
    """
    if by is not None:
        if isinstance(runs, Mapping):
            raise RunsError("by= makes the sides: pass a list of runs, not a mapping of sides")
        paths, skipped = find_runs(runs)
        groups, without = read_by(paths, by, progress)
        return groups, [*skipped, *without]
    if isinstance(runs, str | os.PathLike):
        raise RunsError(f"runs={runs!r} is one run: pass a list of two or more, or by=")
    found, skipped = find_groups(runs)
    return read_groups(found, progress), skipped


def choose_pair(groups: Sequence[Group], names: Sequence[str]) -> list[Group]:
    """Return the sides of these names, in this order.

    Raises:
        RunsError: There is no such side, or one is named twice.
    """
    known = {group.name: group for group in groups}
    for name in names:
        if name not in known:
            raise RunsError(f"no side is named {name!r}: pass {like(name, known)}")
    if len(set(names)) < len(names):
        raise RunsError(f"side {names[0]!r} is passed twice: pass two sides")
    return [known[name] for name in names]


def compare_groups(
    groups: Sequence[Group],
    *,
    tags: str | None = None,
    last: int = 5,
    at: int | None = None,
    top: int = 3,
    warnings: Sequence[str] = (),
) -> Comparison:
    """Compare runs that were read already, as :func:`compare_runs` does."""
    for name, number in (("last", last), ("top", top)):
        if number < 1:
            raise RunsError(f"{name}={number}: pass at least 1")
    step, set_by = _until(groups, at)
    holders = _holders(groups)
    wanted = _filter(tags, holders)
    window = common_window(groups, step, last)
    conditions = compare_fingerprints(groups)
    allowed = functools.partial(commensurable, conditions)
    shared = shared_tags(groups, "scalars")
    all_rows, unchanged, apart = compare_scalars(groups, shared, window, allowed)
    equal = [row for tag in unchanged if (row := scalar_row(groups, tag, window, allowed))]
    headlines = _headlines([*all_rows, *equal])
    rows = all_rows
    measures, notes = compare_arrays(groups, Features(groups), allowed, until=step, top=top)
    if not (all_rows or unchanged or measures):
        raise RunsError(_nothing_common(groups, apart, step))
    if tags is not None:
        chosen = [tag for tag in shared if wanted(tag)]
        rows, unchanged, apart = compare_scalars(groups, chosen, window, allowed, chosen=True)
        # Validation is tested alone and whole, whatever the table shows.
        whole = {row.tag: row for row in headlines if VALIDATION.match(row.tag)}
        rows = [whole.get(row.tag, row) for row in rows]
    runs = all_runs(groups)
    partial = {tag: tuple(names) for tag, names in holders.items() if len(names) < len(runs)}
    sides = tuple(_side(group, window) for group in groups)
    return Comparison(
        answer=answer(groups, sides, conditions, all_rows, headlines, window),
        sides=sides,
        conditions=conditions,
        step=step,
        set_by=set_by,
        window=window,
        significance=significance(groups, rows),
        hparams=_differing(groups),
        headlines=headlines,
        scalars=tuple(rows),
        unchanged=tuple(unchanged),
        partial={t: names for t, names in partial.items() if wanted(t) or wanted(short(t))},
        apart=tuple(apart),
        measures=tuple(measures),
        curves=tuple(time_curves(groups, until=step)),
        warnings=(
            *warnings,
            *(f"{run.name}: {warning}" for run in runs for warning in run.warnings),
            *_copies(groups, all_rows),
            *notes,
        ),
    )


def _headlines(rows: Sequence[ScalarRow]) -> tuple[ScalarRow, ...]:
    """Return the rows that a reader asks for first."""
    time_share = time_share_tag([row.tag for row in rows])
    return (
        *(row for row in rows if VALIDATION.match(row.tag)),
        *(row for row in rows if row.tag.startswith("train/")),
        *(row for row in rows if row.tag == time_share),
    )


def _until(groups: Sequence[Group], at: int | None) -> tuple[int, str]:
    """Return the step up to which runs are compared, and the reason."""
    ends = [(run.steps[1], run.name) for run in all_runs(groups) if run.steps]
    end, shortest = min(ends)
    if at is not None:
        if at > end:
            raise RunsError(f"run {shortest!r} ends at step {end:,}: pass at most that, not {at:,}")
        return at, "as asked for"
    return end, "where all end" if min(ends)[0] == max(ends)[0] else f"where {shortest} ends"


def _filter(tags: str | None, known: Iterable[str]) -> Callable[[str], bool]:
    try:
        pattern = re.compile(tags or "")
    except re.error as error:
        raise RunsError(
            f"tags={tags!r} is not a regular expression ({error}): pass one, such as '^val/'"
        ) from error
    if tags and not any(map(pattern.search, known)):
        raise RunsError(
            f"no tag matches {tags!r}: pass an expression that is found in one, such as "
            f"{like(tags, known)}"
        )
    return lambda tag: pattern.search(tag) is not None


def _holders(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the tags of numbers, and the names of the runs that have them."""
    holders: dict[str, list[str]] = {}
    for run in all_runs(groups):
        for tag in (*run.scalars, *run.histograms, *run.arrays):
            holders.setdefault(tag, []).append(run.name)
    return holders


def _nothing_common(groups: Sequence[Group], apart: Sequence[str], step: int) -> str:
    spans = ((run.name, run.steps) for run in all_runs(groups))
    logged = ", ".join(f"{name} {steps[0]:,}-{steps[1]:,}" for name, steps in spans if steps)
    what = "steps" if apart else "tags at steps"
    return (
        f"the runs have no common {what} up to {step:,}; they logged: {logged}. Pass runs that "
        "logged the same tags at the same steps"
    )


def _side(group: Group, window: tuple[int, int]) -> Side:
    return Side(
        group.name,
        tuple(
            RunInfo(run.name, str(run.path), run.steps or (0, 0), dict(run.hparams),
                    feature_shares(run, window), _findings(run))
            for run in group.runs
        ),
    )  # fmt: skip


def _findings(run: Run) -> tuple[RunFinding, ...]:
    """Return the problems and warnings of a run, as of its end."""
    serious = (Severity.PROBLEM, Severity.WARNING)
    return tuple(
        RunFinding(found.severity.value, found.rule, found.sentence, found.action)
        for found in findings_of(run)
        if found.severity in serious
    )


def _differing(groups: Sequence[Group]) -> dict[str, tuple[tuple[HyperParameter, ...], ...]]:
    """Return the hyper-parameters that not all runs share, with the values on each side."""
    runs = all_runs(groups)
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
    """Warn of runs of a side with equal numbers, which are one observation, not several."""
    notes = []
    for number, group in enumerate(groups):
        first: dict[tuple[float, ...], str] = {}
        for place, run in enumerate(group.runs):
            numbers = tuple(row.values[number].runs[place] for row in rows)
            other = first.setdefault(numbers, run.name)
            if len(numbers) > 1 and other != run.name:
                notes.append(
                    f"{other} and {run.name} have the same numbers, so they are copies, or have "
                    "the same seed. They count twice, which makes p and CIs too certain: pass "
                    "one of them"
                )
    return notes
