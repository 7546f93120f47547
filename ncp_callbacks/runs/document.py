"""Lay out a comparison as sections of sentences and tables, for any format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .comparison import Change, Comparison, Curve, Measure, RunFinding, RunInfo, ScalarRow
from .reader import HyperParameter
from .tags import VALIDATION
from .words import listed, sentence

__all__ = ["Part", "Section", "Table", "Tags", "document"]

MAX_IN_DETAIL = 3  # Sides; of more, a table shows all and --pair shows two.
NONE = "-"
_LONGEST_LABEL = 14
_MAX_METRICS = 6
_MAX_HPARAMS = 4
_MAX_FINDINGS = 8


@dataclass(frozen=True)
class Tags:
    """List tags under a title."""

    title: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Hold cells; columns are aligned left (``l``) or right (``r``), a row of one cell is a title.

    Columns in ``spare`` are dropped in this order where there is no room.
    """

    header: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]
    spare: tuple[int, ...] = ()


Part: TypeAlias = str | Table | Tags


@dataclass(frozen=True)
class Section:
    """Hold a title and its content; the name identifies the section."""

    name: str
    title: str
    parts: tuple[Part, ...]


def document(comparison: Comparison, *, longest_label: int = _LONGEST_LABEL) -> list[Section]:
    """Return all sections, the answer first.

    With more than three sides, details of pairs are not among them.

    Args:
        comparison: The comparison.
        longest_label: Where the name of a side is longer, sides are called A, B, … in tables.
    """
    names = _labels([side.name for side in comparison.sides], longest_label)
    detailed = len(names) <= MAX_IN_DETAIL
    summary = (" ".join(comparison.answer), _context(comparison), sentence(comparison.significance))
    runs: list[Part] = [_runs(comparison, names, hparams=not detailed)]
    if not detailed:
        first, other = (side.name for side in comparison.sides[:2])
        advice = "For two of them in detail, pass --pair and their names"
        runs.append(f"{advice}: --pair {first} {other}.")
    sections = [Section("answer", _title(comparison), summary)]
    if findings := _findings(comparison):
        sections.append(Section("findings", "Findings", findings))
    sections.append(Section("runs", "Runs", tuple(runs)))
    if detailed:
        sections += _details(comparison, names)
    if tags := _tags(comparison):
        sections.append(Section("tags", "Tags without a row", tags))
    if comparison.warnings:
        sections.append(Section("warnings", "Warnings", tuple(map(sentence, comparison.warnings))))
    return sections


def _labels(names: list[str], longest: int) -> list[str]:
    """Return names of the sides for the heads of columns: letters where one is too long."""
    if max(map(len, names)) <= longest:
        return names
    return [chr(ord("A") + i) if i < 26 else f"#{i + 1}" for i in range(len(names))]


def _title(comparison: Comparison) -> str:
    first, *others = (side.name for side in comparison.sides)
    if len(others) < MAX_IN_DETAIL:
        return f"{', '.join(others)} against {first}"
    return f"{len(others) + 1} sides compared, {first} first"


def _context(comparison: Comparison) -> str:
    start, end = comparison.window
    means = f"means of steps {start:,}-{end:,}" if start != end else f"values at step {end:,}"
    return f"Compared up to step {comparison.step:,}, {comparison.set_by}; {means}."


def _runs(comparison: Comparison, names: Sequence[str], *, hparams: bool) -> Table:
    """Return the table of runs × headline metrics."""
    sides = comparison.sides
    lettered = any(n != side.name for n, side in zip(names, sides, strict=True))
    with_side = ["side"] if lettered or any(len(side.runs) > 1 for side in sides) else []
    metrics = comparison.headlines[:_MAX_METRICS]
    differing = list(comparison.hparams)[:_MAX_HPARAMS] if hparams else []
    relying = ["relies most on"] if any(run.shares for side in sides for run in side.runs) else []
    apart = _analysed(comparison)
    marked = ["analysed"] if any(apart) else []
    header = [*with_side, "run", *marked, *differing, *(row.tag for row in metrics), *relying]
    rows = []
    for number, (name, side) in enumerate(zip(names, sides, strict=True)):
        for place, run in enumerate(side.runs):
            cells = [name if place == 0 else "" for _ in with_side]
            cells += [run.name, *(apart[number] or "alike" for _ in marked)]
            cells += [_hparam(run.hparams[h]) if h in run.hparams else NONE for h in differing]
            cells += [_number(row.values[number].runs[place]) for row in metrics]
            cells += [_most(run) for _ in relying]
            rows.append((*cells, f"{run.steps[0]:,}-{run.steps[1]:,}", run.path))
    left, numbers = len(with_side) + 1 + len(marked), len(differing) + len(metrics)
    # What is most to the right matters least, the first metric is kept.
    last, first = len(header) + 1, left + len(differing)
    spare = (*range(last, first, -1), *range(left, first))
    align = "l" * left + "r" * numbers + "l" * len(relying) + "rl"
    return Table((*header, "steps", "path"), align, tuple(rows), spare)


def _findings(comparison: Comparison) -> tuple[str, ...]:
    """Return a paragraph for each problem and warning, with the names of its runs."""
    runs = [run for side in comparison.sides for run in side.runs]
    held_by: dict[RunFinding, list[str]] = {}
    for run in runs:
        for finding in run.findings:
            held_by.setdefault(finding, []).append(run.name)
    order = sorted(held_by, key=lambda finding: finding.severity != "problem")
    texts = []
    for finding in order[:_MAX_FINDINGS]:
        names = held_by[finding]
        where = "all runs" if len(names) == len(runs) else listed(names, MAX_IN_DETAIL)
        kind = finding.severity.capitalize()
        texts.append(f"{kind} in {where}: {finding.sentence} {finding.action}")
    if len(order) > _MAX_FINDINGS:
        texts.append(f"{len(order) - _MAX_FINDINGS} more are not listed.")
    return tuple(texts)


def _analysed(comparison: Comparison) -> list[str]:
    """Return, for each side, what is not as on the first: its numbers are not commensurable."""
    found = [""]
    for number in range(len(comparison.sides) - 1):
        differ = [c.name for c in comparison.conditions if c.same[number] is False]
        found.append(f"other {listed(differ)}" if differ else "")
    return found


def _most(run: RunInfo) -> str:
    if not run.shares:
        return NONE
    name = max(run.shares, key=lambda n: run.shares[n])
    return f"{name} {100 * run.shares[name]:.0f} %"


# --- numbers


def _hparam(value: HyperParameter) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"


def _percent(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    if abs(value) < 1000:
        return f"{value:+.1f}%"
    return f"{value:+,.0f}%" if abs(value) < 1e6 else f"{value:+.2g}%"


def _optional(value: float | None, form: Callable[[float], str]) -> str:
    return NONE if value is None or math.isnan(value) else form(value)


def _likeness(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < 0.01 or abs(value) >= 1000 else f"{value:.2f}"


def _numbers(header: Sequence[str], rows: Sequence[tuple[str, ...]], spare: bool = False) -> Table:
    """Return a table of names and numbers, whose last column may be dropped."""
    last = len(header) - 1
    return Table(tuple(header), "l" + "r" * last, tuple(rows), (last,) if spare else ())


# --- the sides in detail


def _details(comparison: Comparison, names: Sequence[str]) -> list[Section]:
    sections = []
    if comparison.hparams:
        hparams = [
            (name, *(", ".join(map(_hparam, side)) or NONE for side in values))
            for name, values in comparison.hparams.items()
        ]
        table = _numbers(("", *names), hparams)
        sections.append(Section("hparams", "Hyper-parameters that differ", (table,)))
    if comparison.scalars:
        sections += [_scalars(comparison, names, i) for i in range(len(names) - 1)]
    if comparison.measures:
        sections.append(_measures(comparison, names))
    return sections + [_curve(c, names, i) for i, c in enumerate(comparison.curves, start=1)]


def _scalars(comparison: Comparison, names: Sequence[str], number: int) -> Section:
    """Return the table of a side against the first."""
    other = names[number + 1]
    changed = [(r, change) for r in comparison.scalars if (change := r.changes[number])]
    tested = any(change.p is not None for _, change in changed)
    parts: list[Part] = []
    if changed:
        tail = ("95 % CI", "p", "p (Holm)") if tested else ("/noise",)
        header = ("tag", names[0], other, "change", "%", *tail, "steps")
        rows = [_row(row, change, number, tested) for row, change in changed]
        parts = [_numbers(header, rows, spare=True), _how_to_read(comparison, tested)]
    without = len(comparison.scalars) - len(changed)
    if without:
        parts.append(
            f"{without} tags have no row: the two were analysed on another held-out batch, with "
            "another method or for another target."
        )
    title = f"Scalars: {other} against {names[0]}"
    return Section(f"scalars-{number + 1}", title, tuple(parts))


def _row(row: ScalarRow, change: Change, number: int, tested: bool) -> tuple[str, ...]:
    tail: list[str]
    if tested:
        ci = NONE if change.ci is None else " to ".join(map(_signed, change.ci))
        tail = [ci, *(_optional(p, lambda p: f"{p:.2g}") for p in (change.p, change.p_holm))]
    else:
        tail = [_optional(change.over_noise, lambda size: f"{size:.1f}")]
    start, end = row.steps
    return (
        row.tag,
        _number(row.values[0].mean),
        _number(row.values[number + 1].mean),
        _signed(change.delta),
        _percent(change.percent),
        *tail,
        f"{start:,}-{end:,}" if start != end else f"{end:,}",
    )


def _how_to_read(comparison: Comparison, tested: bool) -> str:
    text = (
        "Means over the same steps in all runs; a tag that isn't logged there has its value at the "
        "last common step. Validation and training come first, constants and bookkeeping last. "
    )
    if tested:
        text += "Between them, the changes that are largest against the scatter between runs come "
        "first."
        if any(VALIDATION.match(row.tag) for row in comparison.scalars):
            text += " Validation is tested first and alone, all else is exploration."
        return text
    single = all(len(side.runs) == 1 for side in comparison.sides)
    return text + (
        "/noise is the change over the scatter between the points of a run, and sorts the other "
        "tags. It tells what stands out in these runs; with another seed it may be gone: "
        f"{'no significance' if single else 'it is no test'}."
    )


def _measures(comparison: Comparison, names: Sequence[str]) -> Section:
    between = [f"{names[0]} : {other}" for other in names[1:]] if len(names) > 2 else ["between"]
    grouped = [i for i, side in enumerate(comparison.sides) if len(side.runs) > 1]
    drifting = any(d is not None for m in comparison.measures for d in m.drift)
    header = ["measure", *between, *(f"within {names[i]}" for i in grouped)]
    header += [f"drift {name}" for name in names] if drifting else []
    rows: list[tuple[str, ...]] = []
    tag = ""
    for measure in comparison.measures:
        if measure.tag != tag:
            tag = measure.tag
            rows.append((f"{tag}, {_snapshots(measure)}",))
        cells = [*measure.between, *(measure.within[i] for i in grouped)]
        cells += measure.drift if drifting else ()
        rows.append((f"  {measure.name}", *(_optional(value, _likeness) for value in cells)))
    text = (
        "Rank correlation: 1 is the same order, 0 unrelated, -1 opposite. Shift: the share that "
        "would have to move, from 0 (the same) to 1 (nothing in common). W1: the mean distance "
        "that counts would have to move. "
    )
    if any("CKA" in measure.name for measure in comparison.measures):
        text += (
            "CKA: of states at the same places of one held-out batch; 1 is the same up to "
            "rotation, order and scale of units, 0 unrelated; untrained networks may be alike, "
            "too. "
        )
    text += "Drift: the first snapshot of a run against the compared one. " if drifting else ""
    text += (
        "Within: mean over pairs of runs of one side. Sides that are no more apart than their "
        "own runs may differ by seed only."
        if grouped
        else "With one run on each side, the distance between two seeds is not known."
    )
    title = "What the models attend to, by number"
    return Section("attention", title, (_numbers(header, rows), text))


def _snapshots(measure: Measure) -> str:
    first, last = (
        ", ".join(f"{step:,}" for step in sorted(set(steps)))
        for steps in zip(*measure.steps, strict=True)
    )
    return f"step {last}" + (f" (first snapshot: {first})" if first != last else "")


def _curve(curve: Curve, names: Sequence[str], number: int) -> Section:
    rows = [
        (name, *(f"{sum(values) / len(values):.3g}" for values in zip(*side, strict=True)))
        for name, side in zip(names, curve.rms, strict=True)
    ]
    table = _numbers(("all elapsed time x", *(f"{scale:g}" for scale in curve.scales)), rows)
    text = "RMS change of the target over held-out sequences, in its unit."
    return Section(f"curve-{number}", f"Time sensitivity ({curve.tag})", (table, text))


def _tags(comparison: Comparison) -> tuple[Part, ...]:
    by_title: dict[str, tuple[str, ...]] = {
        "The same number in all runs": comparison.unchanged,
        "No common steps": comparison.apart,
    }
    for tag, runs in comparison.partial.items():
        title = f"Only in {listed(runs, MAX_IN_DETAIL if len(runs) == MAX_IN_DETAIL else 2)}"
        by_title[title] = (*by_title.get(title, ()), tag)
    return tuple(Tags(title, tags) for title, tags in by_title.items() if tags)
