"""Scalars of several runs over the same steps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..stats import holm
from ..stats.run_groups import MIN_RUNS, permutation_p, smallest_p, welch_ci, welch_t
from .comparison import Change, ScalarRow, SideValue
from .find import Group
from .reader import Scalars

__all__ = ["compare_scalars", "scalar_row", "significance"]

FloatArray = npt.NDArray[np.float64]

_FIRST = re.compile(r"(train|training|val|valid|validation|dev|test|eval)(?=[/_]|$)|loss$")
# What looking cost, what went in and what was new since the last look say nothing of the models.
_ASIDE = re.compile(r"monitor/|.*/(numbers_changed|nonfinite|sequences|\w+_change)$")


def scalar_row(groups: Sequence[Group], tag: str, *, until: int, last: int) -> ScalarRow | None:
    """A tag that all runs have; None where they have no steps in common.

    All runs are averaged over the same steps: up to the last that each has reached, and back to
    where each has ``last`` points or its first. Runs that log at different intervals are then still
    compared at the same stage of training.
    """
    series = [[run.scalars[tag] for run in group.runs] for group in groups]
    every = [one for side in series for one in side]
    end = min(_last_up_to(one, until) for one in every)
    if any(int(one.steps[0]) > end for one in every):
        return None
    start = min(_start(one, end, last) for one in every)
    values = tuple(_side_value([_within(one, start, end) for one in side]) for side in series)
    changes = tuple(_change(values[0], value) for value in values[1:])
    return ScalarRow(tag, (start, end), values, changes)


def _last_up_to(series: Scalars, until: int) -> int:
    reached = series.steps[series.steps <= until]
    return int(reached[-1]) if reached.size else until


def _start(series: Scalars, end: int, last: int) -> int:
    return int(np.unique(series.steps[series.steps <= end])[-last:][0])


def _within(series: Scalars, start: int, end: int) -> FloatArray:
    return series.values[(series.steps >= start) & (series.steps <= end)]


def _side_value(points: Sequence[FloatArray]) -> SideValue:
    with np.errstate(all="ignore"):
        means = tuple(float(p.mean()) for p in points)
        noises = [float(np.mean(np.diff(p) ** 2) / 2) for p in points if p.size >= 3]
        noise = math.sqrt(sum(noises) / len(noises)) if noises else None
        return SideValue(float(np.mean(means)), means, tuple(p.size for p in points), noise)


def _change(a: SideValue, b: SideValue) -> Change:
    delta = b.mean - a.mean
    over_noise = None
    if a.noise is not None and b.noise is not None:
        noise = math.hypot(a.noise, b.noise) / math.sqrt(2)
        if noise > 0:
            over_noise = abs(delta) / noise
        elif noise == 0:
            over_noise = math.inf if delta else 0.0
    percent = 100 * delta / abs(a.mean) if a.mean else None
    ci = p = None
    if min(len(a.runs), len(b.runs)) >= MIN_RUNS:
        ci, p = welch_ci(a.runs, b.runs), permutation_p(a.runs, b.runs)
    return Change(delta, percent, over_noise, ci, p, None)


def compare_scalars(
    groups: Sequence[Group], tags: Sequence[str], *, until: int, last: int, chosen: bool = False
) -> tuple[list[ScalarRow], list[str], list[str]]:
    """Rows, sorted; tags with the same numbers in all runs; tags without common steps.

    Unless tags were ``chosen``, those that say nothing of the models come last and without p, so
    that they are no tests that Holm should count.
    """
    rows, unchanged, apart = [], [], []
    for tag in tags:
        row = scalar_row(groups, tag, until=until, last=last)
        if row is None:
            apart.append(tag)
        elif len({mean for value in row.values for mean in value.runs}) == 1:
            # Relabelling can't change them either: they are no tests that Holm should count.
            unchanged.append(tag)
        elif _aside(tag) and not chosen:
            rows.append(replace(row, changes=tuple(replace(c, p=None) for c in row.changes)))
        else:
            rows.append(row)
    rows.sort(key=_order)
    return _corrected(rows), unchanged, apart


def _corrected(rows: Sequence[ScalarRow]) -> list[ScalarRow]:
    adjusted = iter(holm([c.p for row in rows for c in row.changes if c.p is not None]))
    return [
        replace(
            row,
            changes=tuple(
                c if c.p is None else replace(c, p_holm=next(adjusted)) for c in row.changes
            ),
        )
        for row in rows
    ]


def _aside(tag: str) -> bool:
    return bool(_ASIDE.match(tag)) and not _FIRST.match(tag)


def _order(row: ScalarRow) -> tuple[int, int, float, str]:
    head = _FIRST.match(row.tag)
    broken = any(not math.isfinite(value.mean) for value in row.values)
    pairs = zip(row.values[1:], row.changes, strict=True)
    size = max(_size(row.values[0], value, change) for value, change in pairs)
    place = 0 if head else 2 if _aside(row.tag) else 1
    return place, 0 if broken else 1, -size, row.tag


def _size(a: SideValue, b: SideValue, change: Change) -> float:
    """How much a change stands out: over the scatter between runs if known, else within runs."""
    if min(len(a.runs), len(b.runs)) >= MIN_RUNS:
        t = welch_t(a.runs, b.runs)
        return math.inf if t is None else abs(t)
    if change.over_noise is None or math.isnan(change.over_noise):
        return -1.0
    return change.over_noise


def significance(groups: Sequence[Group], rows: Sequence[ScalarRow]) -> str:
    """What may be said of differences between runs, given how many there are."""
    sizes = [len(group.runs) for group in groups]
    fewest = min(sizes)
    if max(sizes) == 1:
        return "one run each: no significance"
    if fewest == 1:
        names = [repr(group.name) for group in groups if len(group.runs) == 1]
        return f"one run in {' and '.join(names)}: no significance, no CIs"
    if fewest == 2:
        return (
            "2 runs on a side: CIs and p are not given, since two runs say next to nothing "
            "of how far a third would be; 3 or more on every side are needed"
        )
    tests = sum(change.p is not None for row in rows for change in row.changes)
    smallest, most = min((smallest_p(sizes[0], size), size) for size in sizes[1:])
    text = (
        "95 % CIs over runs (Welch), for each tag by itself; p by relabelling runs, and "
        f"after Holm's correction for {tests} test{'s' if tests != 1 else ''}"
    )
    if smallest * tests > 0.05:
        text += (
            f". With {sizes[0]} and {most} runs no p is below {smallest:.2g}, "
            f"so that none of {tests} can pass 0.05 after correction: "
        )
        text += (
            "choose fewer tags with --tags beforehand, or add runs"
            if smallest <= 0.05
            else "add runs"
        )
    return text
