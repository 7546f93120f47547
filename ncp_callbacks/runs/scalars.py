"""Compare the scalars of several runs in one window of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..stats import holm
from ..stats.run_groups import MIN_RUNS, permutation_p, smallest_p, welch_ci, welch_t
from .comparison import Change, ScalarRow, SideValue
from .find import Group, all_runs, shared_tags
from .reader import Run, Scalars
from .tags import ASIDE, TRAINING, VALIDATION
from .words import listed

__all__ = ["common_window", "compare_scalars", "scalar_row", "significance"]

FloatArray = npt.NDArray[np.float64]
Window = tuple[int, int]

# Numbers that differ by less, as a share of the tag's largest, are equal: logs hold single
# precision, and sums over columns in another order round otherwise.
ROUNDING = 2e-6
RECOMMENDED = 5  # Runs a side: 252 relabellings, with p down to 0.008.


def common_window(groups: Sequence[Group], until: int, last: int) -> Window:
    """Return the first and last step of the snapshots that are averaged, for all tags.

    These are the last ``last`` snapshots up to the last that all runs reached; runs that log more
    often are averaged over more, from the same stage of training. Snapshots are those of
    validation tags, or where there are none of all tags but training's. The first snapshot, of an
    untrained model, is no part of the window unless it is all there is.
    """
    shared = shared_tags(groups, "scalars")
    tags = [tag for tag in shared if VALIDATION.match(tag)]
    tags = tags or [tag for tag in shared if not (_is_training(tag) or ASIDE.match(tag))] or shared
    made = [_snapshots(run, tags, until) for run in all_runs(groups)]
    if not all(steps.size for steps in made):
        return until, until
    end = min(int(steps[-1]) for steps in made)
    reached = [steps[steps <= end] for steps in made]
    trained = [steps[1:] if steps.size > 1 else steps for steps in reached]
    return min(int(steps[-last:][0]) if steps.size else end for steps in trained), end


def _snapshots(run: Run, tags: Sequence[str], until: int) -> npt.NDArray[np.int64]:
    steps = [run.scalars[tag].steps for tag in tags]
    every = np.unique(np.concatenate([np.zeros(0, np.int64), *steps]))
    return every[every <= until]


def scalar_row(
    groups: Sequence[Group],
    tag: str,
    window: Window,
    commensurable: Callable[[int, str], bool] = lambda side, tag: True,
) -> ScalarRow | None:
    """Compare a tag that all runs have; None where they have no steps in common.

    A tag that some run didn't log within the window has its value at the last common step.

    Args:
        groups: The sides.
        tag: A tag that all runs have.
        window: From :func:`common_window`.
        commensurable: Returns False for a side (but the first) whose tag must not be subtracted.
    """
    every = [run.scalars[tag] for run in all_runs(groups)]
    start, end = window
    if not all(_within(one, start, end).any() for one in every):
        common = set.intersection(*(set(one.steps[one.steps <= end].tolist()) for one in every))
        if not common:
            return None
        start = end = max(common)
    steps = np.concatenate([one.steps[_within(one, start, end)] for one in every])
    a, *others = (_side_value([run.scalars[tag] for run in g.runs], start, end) for g in groups)
    least = _rounding(every, end)
    changes = tuple(
        _change(a, b, least) if commensurable(number, tag) else None
        for number, b in enumerate(others)
    )
    return ScalarRow(tag, (int(steps.min()), int(steps.max())), (a, *others), changes)


def _rounding(series: Sequence[Scalars], end: int) -> float:
    """Return the size of differences that are none, from the largest number up to a step."""
    reached = [np.abs(one.values[one.steps <= end]) for one in series]
    finite = [one[np.isfinite(one)] for one in reached]
    return ROUNDING * max((float(one.max()) for one in finite if one.size), default=0.0)


def _within(series: Scalars, start: int, end: int) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (series.steps >= start) & (series.steps <= end)
    return inside


def _side_value(runs: Sequence[Scalars], start: int, end: int) -> SideValue:
    points = [series.values[_within(series, start, end)] for series in runs]
    with np.errstate(all="ignore"):
        means = tuple(float(p.mean()) for p in points)
        noises = [float(np.mean(np.diff(p) ** 2) / 2) for p in points if p.size >= 3]
        noise = math.sqrt(sum(noises) / len(noises)) if noises else None
        return SideValue(float(np.mean(means)), means, tuple(p.size for p in points), noise)


def _change(a: SideValue, b: SideValue, least: float) -> Change:
    delta = b.mean - a.mean
    if abs(delta) <= least:
        delta = 0.0
    over_noise = ci = p = None
    if a.noise is not None and b.noise is not None:
        noise = math.hypot(a.noise, b.noise) / math.sqrt(2)
        if noise > 0:
            over_noise = abs(delta) / noise
        elif noise == 0:
            over_noise = math.inf if delta else 0.0
    percent = 100 * delta / abs(a.mean) if a.mean else None
    if min(len(a.runs), len(b.runs)) >= MIN_RUNS:
        ci, p = welch_ci(a.runs, b.runs), permutation_p(a.runs, b.runs)
    return Change(delta, percent, over_noise, ci, p, None)


def compare_scalars(
    groups: Sequence[Group],
    tags: Sequence[str],
    window: Window,
    commensurable: Callable[[int, str], bool] = lambda side, tag: True,
    *,
    chosen: bool = False,
) -> tuple[list[ScalarRow], list[str], list[str]]:
    """Return sorted rows, tags with the same numbers in all runs, and tags without common steps.

    Unless tags were ``chosen``, constants and bookkeeping have no p, so that Holm's correction
    doesn't count them.
    """
    rows, unchanged, apart = [], [], []
    for tag in tags:
        row = scalar_row(groups, tag, window, commensurable)
        if row is None:
            apart.append(tag)
        elif _spread(row) <= _rounding([run.scalars[tag] for run in all_runs(groups)], window[1]):
            # Relabelling can't change them either: Holm's correction must not count them.
            unchanged.append(tag)
        else:
            untested = _place(row) == 3 and not chosen
            rows.append(_with_p(row, lambda change: replace(change, p=None)) if untested else row)
    of_validation, others = _families(sorted(rows, key=_order))
    return [*_corrected(of_validation), *_corrected(others)], unchanged, apart


def _families(rows: Sequence[ScalarRow]) -> tuple[list[ScalarRow], list[ScalarRow]]:
    """Return the rows of validation, which are tested first and alone, and all others."""
    of_validation = [row for row in rows if VALIDATION.match(row.tag)]
    return of_validation, [row for row in rows if not VALIDATION.match(row.tag)]


def _with_p(row: ScalarRow, changed: Callable[[Change], Change]) -> ScalarRow:
    return replace(row, changes=tuple(c if c is None else changed(c) for c in row.changes))


def _p_values(rows: Sequence[ScalarRow]) -> list[float]:
    return [c.p for row in rows for c in row.changes if c is not None and c.p is not None]


def _corrected(rows: Sequence[ScalarRow]) -> list[ScalarRow]:
    adjusted = iter(holm(_p_values(rows)))
    return [
        _with_p(row, lambda c: c if c.p is None else replace(c, p_holm=next(adjusted)))
        for row in rows
    ]


def _is_training(tag: str) -> bool:
    return tag == "loss" or TRAINING.match(tag) is not None


def _spread(row: ScalarRow) -> float:
    """Return the largest difference between runs; NaN if one is no number."""
    means = [mean for value in row.values for mean in value.runs]
    with np.errstate(invalid="ignore"):
        return float(np.ptp(means))


def _place(row: ScalarRow) -> int:
    """Return 0 for validation, 1 for training, 2 for the model, 3 for constants and bookkeeping."""
    if VALIDATION.match(row.tag):
        return 0
    if _is_training(row.tag):
        return 1
    return 3 if ASIDE.match(row.tag) or _size(row) == math.inf else 2


def _order(row: ScalarRow) -> tuple[int, bool, float, str]:
    finite = all(math.isfinite(value.mean) for value in row.values)
    return _place(row), finite, -_size(row), row.tag


def _size(row: ScalarRow) -> float:
    """Return how much a row stands out: over the scatter between runs if known, else within runs.

    A row whose sides differ without any scatter is infinite: a constant, not a result of training.
    """
    sizes = []
    a = row.values[0]
    for b, change in zip(row.values[1:], row.changes, strict=True):
        size = None if change is None else change.over_noise
        if change is not None and min(len(a.runs), len(b.runs)) >= MIN_RUNS:
            t = welch_t(a.runs, b.runs)
            size = (math.inf if change.delta else 0.0) if t is None else abs(t)
        sizes.append(-1.0 if size is None or math.isnan(size) else size)
    return max(sizes)


def significance(groups: Sequence[Group], rows: Sequence[ScalarRow]) -> str:
    """Return a sentence on what the differences can tell with so many runs."""
    sizes = [len(group.runs) for group in groups]
    if max(sizes) == 1:
        return "one run each: no significance"
    if min(sizes) == 1:
        names = [repr(group.name) for group in groups if len(group.runs) == 1]
        return f"one run in {listed(names, 3)}: no significance, no CI"
    if min(sizes) < MIN_RUNS:
        return (
            "2 runs on a side: no CI and no p, since two runs tell next to nothing about a third; "
            f"{MIN_RUNS} runs on every side are needed, {RECOMMENDED} are recommended"
        )
    tests = [len(_p_values(family)) for family in _families(rows)]
    smallest, other = min((smallest_p(sizes[0], size), size) for size in sizes[1:])
    corrections = [f"(Holm's correction for {n} test{'' if n == 1 else 's'})" for n in tests]
    text = (
        "95 % CIs over runs (Welch) are for each tag alone, p is by relabelling runs. Validation "
        f"is tested first and alone {corrections[0]}; all else is exploration {corrections[1]}"
    )
    if min(sizes[0], other) < RECOMMENDED or smallest * max(tests) > 0.05:
        text += (
            f". With {sizes[0]} and {other} runs no p is below {smallest:.2g}, however large the "
            "difference"
        )
    if smallest * tests[1] > 0.05:
        text += (
            f", so that none of the {tests[1]} can pass 0.05 after correction: choose fewer with "
            "--tags beforehand, or add runs"
        )
    if min(sizes) < RECOMMENDED:
        text += f". {RECOMMENDED} runs a side are recommended"
    return text
