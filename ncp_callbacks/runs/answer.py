"""Tell in words what a comparison found.

The sentences carry their numbers and never claim more than the runs can tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..stats.run_groups import smallest_p
from .comparison import Change, Condition, Measure, RunInfo, ScalarRow, Side
from .find import Group
from .scalars import RECOMMENDED
from .tags import VALIDATION
from .words import listed

__all__ = ["answer", "time_share_tag"]

_LOWER = {"loss", "error", "err", "mse", "rmse", "mae", "nll", "bce", "ce", "perplexity", "ppl",
          "wer", "cer", "brier", "ece"}  # fmt: skip
_HIGHER = {"acc", "accuracy", "f1", "auc", "auroc", "auprc", "ap", "map", "r2", "precision",
           "recall", "score", "iou", "bleu", "kappa", "mcc", "reward", "correlation",
           "sensitivity", "specificity"}  # fmt: skip
# For each condition: what differs, how the others are called, and what follows.
_DIFFERENT = {
    "held-out batch": (
        "held-out batch is", "another one", "Only training numbers are subtracted between them",
    ),
    "method": (
        "attribution method is", "another one",
        "Only training and validation numbers are subtracted between them",
    ),
    "target": (
        "target is", "another one",
        "Only training and validation numbers are subtracted between them",
    ),
    "feature names": ("feature names are", "others", "Maps by feature are not compared"),
}  # fmt: skip
_MAX_METRICS = 3
_CLEAR = 0.1  # A change of a share that is worth a sentence.


def answer(
    groups: Sequence[Group],
    sides: Sequence[Side],
    conditions: Sequence[Condition],
    headlines: Sequence[ScalarRow],
    measures: Sequence[Measure],
) -> tuple[str, ...]:
    """Return the sentences that stand on top of a comparison."""
    alike = [
        number
        for number in range(len(sides))
        if not number or all(c.same[number - 1] is not False for c in conditions)
    ]
    return (
        *_incommensurable(groups[0].name, conditions),
        *_better(sides, headlines),
        *_rely(groups, sides, alike, headlines, measures),
        *_not_known(conditions),
    )


def time_share_tag(tags: Sequence[str]) -> str | None:
    """Return the tag of the share of elapsed time in the attribution, if there is one."""
    found = [tag for tag in tags if tag.endswith("/time_share")]
    return min(found, key=lambda tag: tag != "attribution/time_share", default=None)


def _incommensurable(first: str, conditions: Sequence[Condition]) -> list[str]:
    sentences = []
    for condition in conditions:
        if False in condition.same:
            subject, another, consequence = _DIFFERENT[condition.name]
            verb = "has" if len(condition.different) == 1 else "have"
            sentences.append(
                f"The {subject} not the same: {listed(condition.different, 3)} {verb} {another} "
                f"than {first}. {consequence}."
            )
    return sentences


def _not_known(conditions: Sequence[Condition]) -> list[str]:
    unknown = [c.name for c in conditions if None in c.same and False not in c.same]
    if not unknown:
        return []
    verb = "are" if len(unknown) > 1 else "is"
    return [
        f"The logs don't tell whether the {listed(unknown)} {verb} the same; they are compared as "
        "if they were."
    ]


# --- which side is better


def _direction(tag: str) -> int:
    """Return -1 where lower is better, 1 where higher is, 0 where it isn't known."""
    words = set(re.split(r"[^a-z0-9]+", tag.lower()))
    return -1 if words & _LOWER else 1 if words & _HIGHER else 0


def _better(sides: Sequence[Side], headlines: Sequence[ScalarRow]) -> list[str]:
    usable = [row for row in headlines if any(row.changes)]
    rows = [row for row in usable if VALIDATION.match(row.tag)]
    rows = rows or [row for row in usable if row.tag == "train/loss"]
    if not rows:
        return [
            "Which is better is not known: no validation metric and no train/loss can be compared. "
            "Log one, such as val/loss, in all runs."
        ]
    rows.sort(key=lambda row: not row.tag.endswith("loss"))
    if len(sides) > 2:
        return [_ranking(sides, rows[0])]
    sentences = [_pair(sides, row) for row in rows[:_MAX_METRICS]]
    sizes = [len(side.runs) for side in sides]
    if max(sizes) == 1:
        sentences.append("One run each: with other seeds it may be otherwise.")
    elif min(sizes) < 3:
        sentences.append("Too few runs on a side to tell this from the differences between seeds.")
    return sentences


def _pair(sides: Sequence[Side], row: ScalarRow) -> str:
    change = row.changes[0]
    if change is None:
        return ""
    first, other = (f"{side.name} ({value.mean:.4g})"
                    for side, value in zip(sides, row.values, strict=True))  # fmt: skip
    if math.isnan(change.delta):
        return f"By {row.tag}, {other} and {first} can't be ranked: not a number."
    if not change.delta:
        return f"By {row.tag}, {other} and {first} are equal."
    direction = _direction(row.tag)
    better = (direction or 1) * change.delta > 0
    word = ("better" if better else "worse") if direction else ("higher" if better else "lower")
    size = f", by {abs(change.percent):.3g} %" if change.percent is not None else ""
    return f"By {row.tag}, {other} is {word} than {first}{size}{_means(row, change, *sides)}"


def _means(row: ScalarRow, change: Change, first: Side, other: Side) -> str:
    """Return the clause that ends a sentence on a difference: what it means.

    Validation is tested alone, and so is train/loss where there is none.
    """
    if change.p is None:
        if change.over_noise is not None and change.over_noise < 2:
            return ", which is within the scatter from point to point of one run."
        return "."
    corrected = change.p_holm if VALIDATION.match(row.tag) else None
    p = change.p if corrected is None else corrected
    ci = ""
    if change.ci is not None:
        ci = f" (95 % CI of the difference {change.ci[0]:+.3g} to {change.ci[1]:+.3g})"
    if p <= 0.05:
        return f"{ci}: more than seeds explain (p = {p:.2g})."
    n, m = len(first.runs), len(other.runs)
    least = smallest_p(n, m)
    if least > 0.05:
        return (
            f"{ci}. With {n} and {m} runs p can't be below {least:.2g}, whatever the difference "
            f"(here {p:.2g}): {RECOMMENDED} runs a side are recommended."
        )
    return f"{ci}: seeds alone may explain that (p = {p:.2g})."


def _ranking(sides: Sequence[Side], row: ScalarRow) -> str:
    changes = dict(zip((side.name for side in sides[1:]), row.changes, strict=True))
    means = {
        side.name: value.mean
        for side, value in zip(sides, row.values, strict=True)
        if changes.get(side.name, True)
    }
    direction = _direction(row.tag)
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    ranked = sorted(finite, key=lambda name: (-direction or 1) * finite[name])
    if len(ranked) < 2:
        return f"By {row.tag} the sides can't be ranked: not a number."
    best, second, last = ranked[0], ranked[1], ranked[-1]
    word = ("best", "worst") if direction else ("lowest", "highest")
    text = (
        f"By {row.tag}, {best} is {word[0]} of {len(means)} ({finite[best]:.4g}), then {second} "
        f"({finite[second]:.4g}); {last} is {word[1]} ({finite[last]:.4g})."
    )
    if len(finite) < len(means):
        text += f" {listed([name for name in means if name not in finite], 3)}: not a number."
    first, name = sides[0], second if best == sides[0].name else best
    change, other = changes[name], next(side for side in sides if side.name == name)
    if change is not None and change.p is not None and first.name in finite:
        text += f" {name} against {first.name}{_means(row, change, first, other)}"
    if max(len(side.runs) for side in sides) == 1:
        text += " One run each: with other seeds the order may be another."
    return text


# --- what the models rely on


def _rely(
    groups: Sequence[Group],
    sides: Sequence[Side],
    alike: Sequence[int],
    headlines: Sequence[ScalarRow],
    measures: Sequence[Measure],
) -> list[str]:
    """Return sentences on the sides that were analysed alike."""
    if len(alike) < 2:
        return ["What they rely on is not compared."]
    sentences = []
    shares = {number: _mean_shares(sides[number].runs) for number in alike}
    if all(shares.values()) and len({frozenset(share) for share in shares.values()}) == 1:
        by_feature = {n: [share[n] for share in shares.values()] for n in shares[alike[0]]}
        spans = {name: max(values) - min(values) for name, values in by_feature.items()}
        name = max(spans, key=lambda n: spans[n])
        values = [
            f"{_percent(shares[number][name])} in {sides[number].name}"
            for number in _extremes({n: share[name] for n, share in shares.items()})
        ]
        how = "alike: {} differs most, with" if spans[name] < _CLEAR else "differently: {} has"
        sentences.append(
            f"They rely on the inputs {how.format(name)} {listed(values)}"
            f"{_like_seeds(measures, spans[name])}."
        )
    row = next((row for row in headlines if row.tag.endswith("/time_share")), None)
    if row is not None:
        means = {number: row.values[number].mean for number in alike}
        values = [
            f"{_percent(means[number])}{_ci(groups[number], row)} in {sides[number].name}"
            for number in _extremes(means)
        ]
        sentences.append(f"Of the attribution, elapsed time has {listed(values)}.")
    return sentences


def _extremes(values: dict[int, float]) -> list[int]:
    """Return all sides up to three; of more, those with the smallest and the largest value."""
    order = sorted(values, key=lambda number: values[number])
    return list(values) if len(values) <= 3 else [order[0], order[-1]]


def _mean_shares(runs: Sequence[RunInfo]) -> dict[str, float]:
    if len({frozenset(run.shares) for run in runs}) > 1:
        return {}
    return {name: sum(run.shares[name] for run in runs) / len(runs) for name in runs[0].shares}


def _like_seeds(measures: Sequence[Measure], span: float) -> str:
    """Return a clause where runs of one side differ as much as the sides do."""
    shift = next((m for m in measures if m.name == "shift of feature shares"), None)
    if shift is None or span < _CLEAR:
        return ""
    within = [value for value in shift.within if value is not None]
    between = [value for value in shift.between if value is not None]
    if within and between and max(between) <= max(within):
        return ", which is no more than between runs of one side"
    return ""


def _ci(group: Group, row: ScalarRow) -> str:
    """Return the 95 % CI over sequences of a single run, at its last step in the window."""
    ci = group.runs[0].ci.get(row.tag) if len(group.runs) == 1 else None
    at = [] if ci is None else [i for i, s in enumerate(ci.steps) if s <= row.steps[1]]
    if ci is None or not at:
        return ""
    return f" [{100 * ci.low[at[-1]]:.0f}, {100 * ci.high[at[-1]]:.0f}]"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"
