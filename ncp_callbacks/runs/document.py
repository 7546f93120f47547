"""A comparison as headings, sentences and tables, for any format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .comparison import Change, Comparison, Measure, SideValue
from .reader import HyperParameter

__all__ = ["Block", "Heading", "Items", "Paragraph", "Table", "document", "labels"]


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Items:
    """Short texts with a title, such as tags."""

    title: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Columns are aligned left (``l``) or right (``r``); a row of one cell is a title.

    ``spare`` columns may be left out where there is no room.
    """

    header: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]
    spare: tuple[int, ...] = ()


Block: TypeAlias = Heading | Paragraph | Items | Table

NONE = "-"
_LONGEST_LABEL = 14


def labels(comparison: Comparison, longest: int = _LONGEST_LABEL) -> tuple[str, ...]:
    """Names of the sides for the heads of columns: letters where one is too long."""
    names = [side.name for side in comparison.sides]
    if max(map(len, names)) <= longest:
        return tuple(names)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return tuple(letters[i] if i < len(letters) else f"#{i + 1}" for i in range(len(names)))


def document(comparison: Comparison, *, longest_label: int = _LONGEST_LABEL) -> list[Block]:
    """The whole comparison."""
    names = labels(comparison, longest_label)
    blocks: list[Block] = [
        Heading(" against ".join(_title(comparison))),
        Paragraph(
            f"Compared up to step {comparison.step:,}, {comparison.set_by}. "
            f"{_sentence(comparison.significance)}"
        ),
        _sides(comparison, names),
    ]
    if comparison.hparams:
        blocks += [Heading("Hyper-parameters that differ"), _hparams(comparison, names)]
    blocks += _scalars(comparison, names)
    blocks += _lists(comparison)
    if comparison.measures:
        blocks += _measures(comparison, names)
    if comparison.curves:
        blocks += _curves(comparison, names)
    if comparison.warnings:
        blocks += [Heading("Warnings"), *(Paragraph(_sentence(w)) for w in comparison.warnings)]
    return blocks


def _title(comparison: Comparison) -> list[str]:
    first, *others = (side.name for side in comparison.sides)
    return [", ".join(others), first]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _sides(comparison: Comparison, names: Sequence[str]) -> Table:
    lettered = any(n != side.name for n, side in zip(names, comparison.sides, strict=True))
    grouped = any(len(side.runs) > 1 for side in comparison.sides)
    rows = []
    for name, side in zip(names, comparison.sides, strict=True):
        for number, run in enumerate(side.runs):
            cells = [name if number == 0 else ""]
            if lettered or grouped:
                cells.append(run.name)
            rows.append((*cells, f"{run.steps[0]:,}-{run.steps[1]:,}", run.path))
    header = ["side", "run"] if lettered or grouped else ["run"]
    return Table((*header, "steps", "path"), "l" * len(header) + "rl", tuple(rows),
                 spare=(len(header) + 1,))  # fmt: skip


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


def _scalars(comparison: Comparison, names: Sequence[str]) -> list[Block]:
    if not comparison.scalars:
        return []
    blocks: list[Block] = []
    for number, other in enumerate(names[1:]):
        tests = any(row.changes[number].p is not None for row in comparison.scalars)
        blocks.append(Heading(f"Scalars: {other} against {names[0]}"))
        head = ["tag", names[0], other, "change", "%"]
        tail = ["95% CI", "p", "p (Holm)"] if tests else ["/noise"]
        cells = _tested if tests else _noisy
        rows = tuple(
            (
                row.tag,
                *_values(row.values[0], row.values[number + 1], row.changes[number]),
                *cells(row.changes[number]),
                _span(row.steps),
            )
            for row in comparison.scalars
        )
        header = (*head, *tail, "steps")
        blocks.append(Table(header, "l" + "r" * (len(header) - 1), rows, (len(header) - 1,)))
    points = "point" if comparison.last == 1 else "points"
    text = f"Means of the last {comparison.last} {points}, over the same steps in all runs. "
    if comparison.significance.startswith("95"):
        text += (
            "Intervals are for each tag by itself, p is two-sided by relabelling runs. Train and "
            "val come first, then what is largest against the scatter between runs."
        )
    else:
        text += (
            "/noise: the change over the scatter from point to point within a run (within-run "
            "noise), by which tags are sorted after train and val. It says what stands out in "
            "these runs; with another seed it may be gone: "
            + ("no significance." if _single(comparison) else "it is no test.")
        )
    blocks.append(Paragraph(text))
    return blocks


def _single(comparison: Comparison) -> bool:
    return all(len(side.runs) == 1 for side in comparison.sides)


def _values(a: SideValue, b: SideValue, change: Change) -> tuple[str, ...]:
    return _number(a.mean), _number(b.mean), _signed(change.delta), _percent(change.percent)


def _tested(change: Change) -> tuple[str, ...]:
    ci = NONE
    if change.ci is not None:
        ci = f"{_signed(change.ci[0])} to {_signed(change.ci[1])}"
    return (
        ci,
        _optional(change.p, lambda p: f"{p:.2g}"),
        _optional(change.p_holm, lambda p: f"{p:.2g}"),
    )


def _noisy(change: Change) -> tuple[str, ...]:
    return (_optional(change.over_noise, lambda v: "inf" if math.isinf(v) else f"{v:.1f}"),)


def _lists(comparison: Comparison) -> list[Block]:
    blocks: list[Block] = []
    if comparison.unchanged:
        blocks.append(Items("The same number in all runs", comparison.unchanged))
    if comparison.apart:
        blocks.append(Items("No common steps", comparison.apart))
    by_runs: dict[tuple[str, ...], list[str]] = {}
    for tag, runs in comparison.partial.items():
        by_runs.setdefault(runs, []).append(tag)
    for runs, tags in by_runs.items():
        blocks.append(Items(f"Only in {', '.join(runs)}", tuple(tags)))
    return blocks


def _measures(comparison: Comparison, names: Sequence[str]) -> list[Block]:
    header = ["measure"]
    if len(names) == 2:
        header.append("between")
    else:
        header += [f"{names[0]} : {other}" for other in names[1:]]
    grouped = [i for i, side in enumerate(comparison.sides) if len(side.runs) > 1]
    header += [f"within {names[i]}" for i in grouped]
    drifting = any(d is not None for m in comparison.measures for d in m.drift)
    if drifting:
        header += [f"drift {name}" for name in names]
    rows: list[tuple[str, ...]] = []
    tag = ""
    for measure in comparison.measures:
        if measure.tag != tag:
            tag = measure.tag
            rows.append((f"{tag}, {_looks(measure)}",))
        cells = [*measure.between, *(measure.within[i] for i in grouped)]
        cells += measure.drift if drifting else ()
        rows.append(
            (
                f"  {measure.name}",
                *(_optional(value, _likeness) for value in cells),
            )
        )
    text = (
        "Rank correlation: 1 the same order, 0 unrelated, -1 opposite. Shift: what share would "
        "have to move, from 0 the same to 1 nothing in common. W1: how far counts would have to "
        "move on average. "
    )
    if any("CKA" in measure.name for measure in comparison.measures):
        text += (
            "CKA: of states at the same places of the same held-out batch, 1 the same up to "
            "rotation, order and scale of units, 0 unrelated; networks that were not trained may "
            "be alike, too. "
        )
    text += "Drift: a run's first look against the compared one. " if drifting else ""
    if grouped:
        text += (
            "Within: mean over pairs of runs of one side, the scale for the difference between "
            "sides: what is as far apart within as between may be the seed."
        )
    else:
        text += "With one run each, how far apart two seeds of the same would be is not known."
    return [
        Heading("What the models attend to, by number"),
        Table(tuple(header), "l" + "r" * (len(header) - 1), tuple(rows)),
        Paragraph(text),
    ]


def _likeness(value: float) -> str:
    return f"{value:.2g}" if 0 < abs(value) < 0.01 or abs(value) >= 1000 else f"{value:.2f}"


def _looks(measure: Measure) -> str:
    at = sorted({last for _, last in measure.steps})
    first = sorted({first for first, _ in measure.steps})
    text = "step " + ", ".join(f"{s:,}" for s in at)
    if first != at:
        text += f" (first look: {', '.join(f'{s:,}' for s in first)})"
    return text


def _curves(comparison: Comparison, names: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    for curve in comparison.curves:
        means = [
            [sum(values) / len(values) for values in zip(*side, strict=True)] for side in curve.rms
        ]
        rows = tuple(
            (name, *(f"{value:.3g}" for value in mean))
            for name, mean in zip(names, means, strict=True)
        )
        header = ("all intervals x", *(f"{scale:g}" for scale in curve.scales))
        blocks += [
            Heading(f"Time sensitivity ({curve.tag})"),
            Table(header, "l" + "r" * len(curve.scales), rows),
            Paragraph("RMS change of the target over held-out sequences, in its unit."),
        ]
    return blocks
