"""Lay out a comparison as sections of sentences and tables, for any format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .comparison import Change, Comparison, Measure, RunInfo, ScalarRow
from .reader import HyperParameter
from .scalars import VALIDATION

__all__ = ["MAX_IN_DETAIL", "Part", "Section", "Table", "Tags", "document", "labels"]

MAX_IN_DETAIL = 3  # Sides; of more, a table shows all and --pair shows two.
NONE = "-"
_LONGEST_LABEL = 14
_MAX_METRICS = 6
_MAX_HPARAMS = 4


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


def labels(comparison: Comparison, longest: int = _LONGEST_LABEL) -> tuple[str, ...]:
    """Return names of the sides for the heads of columns: letters where one is too long."""
    names = [side.name for side in comparison.sides]
    if max(map(len, names)) <= longest:
        return tuple(names)
    return tuple(chr(ord("A") + i) if i < 26 else f"#{i + 1}" for i in range(len(names)))


def document(comparison: Comparison, *, longest_label: int = _LONGEST_LABEL) -> list[Section]:
    """Return all sections, the answer first.

    With more than three sides, details of pairs are not among them.
    """
    names = labels(comparison, longest_label)
    detailed = len(names) <= MAX_IN_DETAIL
    sections = [
        Section(
            "answer",
            _title(comparison),
            (" ".join(comparison.answer), _context(comparison), _sentence(comparison.significance)),
        ),
        Section("runs", "Runs", (_runs(comparison, names, hparams=not detailed),)),
    ]
    if not detailed:
        other, first = comparison.sides[1].name, comparison.sides[0].name
        advice = f"For two of them in detail, pass --pair and their names: --pair {first} {other}."
        sections[-1] = Section("runs", "Runs", (*sections[-1].parts, advice))
    if comparison.hparams and detailed:
        sections.append(
            Section("hparams", "Hyper-parameters that differ", (_hparams(comparison, names),))
        )
    if comparison.scalars and detailed:
        sections += _scalars(comparison, names)
    if comparison.measures and detailed:
        sections.append(_measures(comparison, names))
    if detailed:
        sections += [_curve(comparison, names, number) for number in range(len(comparison.curves))]
    tags = _tags(comparison)
    if tags:
        sections.append(Section("tags", "Tags without a row", tags))
    if comparison.warnings:
        sections.append(
            Section("warnings", "Warnings", tuple(_sentence(w) for w in comparison.warnings))
        )
    return sections


def _title(comparison: Comparison) -> str:
    first, *others = (side.name for side in comparison.sides)
    if len(others) < MAX_IN_DETAIL:
        return f"{', '.join(others)} against {first}"
    return f"{len(others) + 1} sides compared, {first} first"


def _context(comparison: Comparison) -> str:
    start, end = comparison.window
    means = f"means of steps {start:,}-{end:,}" if start != end else f"values at step {end:,}"
    return f"Compared up to step {comparison.step:,}, {comparison.set_by}; {means}."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _runs(comparison: Comparison, names: Sequence[str], *, hparams: bool) -> Table:
    """Return the table of runs × headline metrics."""
    lettered = any(n != side.name for n, side in zip(names, comparison.sides, strict=True))
    with_side = lettered or any(len(side.runs) > 1 for side in comparison.sides)
    metrics = comparison.headlines[:_MAX_METRICS]
    differing = list(comparison.hparams)[:_MAX_HPARAMS] if hparams else []
    relying = any(run.shares for side in comparison.sides for run in side.runs)
    header = [*(["side"] if with_side else []), "run", *differing, *(row.tag for row in metrics)]
    header += [*(["relies most on"] if relying else []), "steps", "path"]
    rows = []
    for number, (name, side) in enumerate(zip(names, comparison.sides, strict=True)):
        for place, run in enumerate(side.runs):
            cells = [name if place == 0 else ""] if with_side else []
            cells.append(run.name)
            cells += [_hparam(run.hparams[h]) if h in run.hparams else NONE for h in differing]
            cells += [_number(row.values[number].runs[place]) for row in metrics]
            cells += [_most(run)] if relying else []
            rows.append((*cells, f"{run.steps[0]:,}-{run.steps[1]:,}", run.path))
    before, count = len(header) - len(metrics) - len(differing) - 2 - relying, len(header)
    align = "l" * before + "r" * (len(differing) + len(metrics)) + "l" * relying + "rl"
    # What is most to the right matters least, the first metric is kept.
    spare = (count - 1, count - 2, *range(count - 3, before + len(differing), -1),
             *range(before, before + len(differing)))  # fmt: skip
    return Table(tuple(header), align, tuple(rows), spare)


def _most(run: RunInfo) -> str:
    if not run.shares:
        return NONE
    name = max(run.shares, key=lambda n: run.shares[n])
    return f"{name} {100 * run.shares[name]:.0f} %"


def _hparams(comparison: Comparison, names: Sequence[str]) -> Table:
    rows = (
        (name, *(", ".join(_hparam(v) for v in side) or NONE for side in values))
        for name, values in comparison.hparams.items()
    )
    return Table(("", *names), "l" + "r" * len(names), tuple(rows))


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


def _span(steps: tuple[int, int]) -> str:
    return f"{steps[0]:,}-{steps[1]:,}" if steps[0] != steps[1] else f"{steps[0]:,}"


def _scalars(comparison: Comparison, names: Sequence[str]) -> list[Section]:
    sections = []
    for number, other in enumerate(names[1:]):
        rows = [(row, row.changes[number]) for row in comparison.scalars]
        changed = [(row, change) for row, change in rows if change is not None]
        tested = any(change.p is not None for _, change in changed)
        parts: list[Part] = []
        if changed:
            tail = ("95 % CI", "p", "p (Holm)") if tested else ("/noise",)
            header = ("tag", names[0], other, "change", "%", *tail, "steps")
            cells = tuple(_row(row, change, number, tested) for row, change in changed)
            parts = [
                Table(header, "l" + "r" * (len(header) - 1), cells, (len(header) - 1,)),
                _how_to_read(comparison, tested),
            ]
        if len(changed) < len(rows):
            parts.append(
                f"{len(rows) - len(changed)} tags have no row: the two were analysed on another "
                "held-out batch, with another method or for another target."
            )
        title = f"Scalars: {other} against {names[0]}"
        sections.append(Section(f"scalars-{number + 1}", title, tuple(parts)))
    return sections


def _row(row: ScalarRow, change: Change, number: int, tested: bool) -> tuple[str, ...]:
    return (
        row.tag,
        _number(row.values[0].mean),
        _number(row.values[number + 1].mean),
        _signed(change.delta),
        _percent(change.percent),
        *(_tested(change) if tested else (_optional(change.over_noise, _noise),)),
        _span(row.steps),
    )


def _tested(change: Change) -> tuple[str, ...]:
    ci = NONE
    if change.ci is not None:
        ci = f"{_signed(change.ci[0])} to {_signed(change.ci[1])}"
    return ci, *(_optional(p, lambda p: f"{p:.2g}") for p in (change.p, change.p_holm))


def _noise(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:.1f}"


def _how_to_read(comparison: Comparison, tested: bool) -> str:
    text = (
        "Means over the same steps in all runs; a tag that isn't logged there has its value at the "
        "last common step. Validation and training come first, constants and bookkeeping last. "
    )
    if tested:
        return text + (
            "Between them stands what is largest against the scatter between runs. Validation is "
            "tested first and alone, all else is exploration."
            if any(VALIDATION.match(row.tag) for row in comparison.scalars)
            else "Between them stands what is largest against the scatter between runs."
        )
    single = all(len(side.runs) == 1 for side in comparison.sides)
    return text + (
        "/noise is the change over the scatter from point to point within a run, by which the "
        "others are sorted. It tells what stands out in these runs; with another seed it may be "
        f"gone: {'no significance' if single else 'it is no test'}."
    )


def _tags(comparison: Comparison) -> tuple[Part, ...]:
    parts: list[Part] = []
    if comparison.unchanged:
        parts.append(Tags("The same number in all runs", comparison.unchanged))
    if comparison.apart:
        parts.append(Tags("No common steps", comparison.apart))
    by_runs: dict[tuple[str, ...], list[str]] = {}
    for tag, runs in comparison.partial.items():
        by_runs.setdefault(runs, []).append(tag)
    for runs, tags in by_runs.items():
        some = runs if len(runs) <= MAX_IN_DETAIL else (*runs[:2], f"{len(runs) - 2} more")
        parts.append(Tags(f"Only in {', '.join(some)}", tuple(tags)))
    return tuple(parts)


def _measures(comparison: Comparison, names: Sequence[str]) -> Section:
    header = ["measure"]
    header += ["between"] if len(names) == 2 else [f"{names[0]} : {other}" for other in names[1:]]
    grouped = [i for i, side in enumerate(comparison.sides) if len(side.runs) > 1]
    header += [f"within {names[i]}" for i in grouped]
    drifting = any(d is not None for m in comparison.measures for d in m.drift)
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
        "Rank correlation: 1 the same order, 0 unrelated, -1 opposite. Shift: the share that would "
        "have to move, from 0 the same to 1 nothing in common. W1: the mean distance that counts "
        "would have to move. "
    )
    if any("CKA" in measure.name for measure in comparison.measures):
        text += (
            "CKA: of states at the same places of one held-out batch, 1 the same up to rotation, "
            "order and scale of units, 0 unrelated; untrained networks may be alike, too. "
        )
    text += "Drift: the first snapshot of a run against the compared one. " if drifting else ""
    text += (
        "Within: mean over pairs of runs of one side. Sides that are no more apart than their "
        "own runs may differ by seed only."
        if grouped
        else "With one run each, the distance between two seeds is not known."
    )
    table = Table(tuple(header), "l" + "r" * (len(header) - 1), tuple(rows))
    return Section("attention", "What the models attend to, by number", (table, text))


def _likeness(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < 0.01 or abs(value) >= 1000 else f"{value:.2f}"


def _snapshots(measure: Measure) -> str:
    at = sorted({last for _, last in measure.steps})
    first = sorted({first for first, _ in measure.steps})
    text = "step " + ", ".join(f"{s:,}" for s in at)
    if first != at:
        text += f" (first snapshot: {', '.join(f'{s:,}' for s in first)})"
    return text


def _curve(comparison: Comparison, names: Sequence[str], number: int) -> Section:
    curve = comparison.curves[number]
    rows = tuple(
        (name, *(f"{sum(values) / len(values):.3g}" for values in zip(*side, strict=True)))
        for name, side in zip(names, curve.rms, strict=True)
    )
    header = ("all elapsed time x", *(f"{scale:g}" for scale in curve.scales))
    table = Table(header, "l" + "r" * len(curve.scales), rows)
    text = "RMS change of the target over held-out sequences, in its unit."
    return Section(f"curve-{number + 1}", f"Time sensitivity ({curve.tag})", (table, text))
