"""Tell in words what a comparison found.

The sentences carry their numbers and never claim more than the runs can tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..stats.run_groups import smallest_p
from .comparison import Change, Condition, Measure, RunInfo, ScalarRow, Side
from .find import Group
from .scalars import RECOMMENDED, VALIDATION

__all__ = ["answer", "time_share_tag"]

_LOWER = {"loss", "error", "err", "mse", "rmse", "mae", "nll", "bce", "ce", "perplexity", "ppl",
          "wer", "cer", "brier", "ece"}  # fmt: skip
_HIGHER = {"acc", "accuracy", "f1", "auc", "auroc", "auprc", "ap", "map", "r2", "precision",
           "recall", "score", "iou", "bleu", "kappa", "mcc", "reward", "correlation",
           "sensitivity", "specificity"}  # fmt: skip
_TRAINING_NUMBERS = "Only training numbers are subtracted between them"
_OWN_NUMBERS = "Only training and validation numbers are subtracted between them"
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
    return (
        *_incommensurable(groups, conditions),
        *_better(sides, headlines),
        *_rely(groups, sides, conditions, headlines, measures),
        *_not_known(conditions),
    )


def time_share_tag(tags: Sequence[str]) -> str | None:
    """Return the tag of the share of elapsed time in the attribution, if there is one."""
    found = [tag for tag in tags if tag.endswith("/time_share")]
    return (
        "attribution/time_share" if "attribution/time_share" in found else next(iter(found), None)
    )


def _incommensurable(groups: Sequence[Group], conditions: Sequence[Condition]) -> list[str]:
    what = {
        "held-out batch": (
            "held-out batch is",
            "Only training numbers are subtracted between them",
        ),
        "method": ("attribution method is", _OWN_NUMBERS),
        "target": ("target is", _OWN_NUMBERS),
        "feature names": ("feature names are", "Maps by feature are not compared"),
    }
    sentences = []
    for condition in conditions:
        if False in condition.same:
            subject, consequence = what[condition.name]
            verb = "has" if len(condition.different) == 1 else "have"
            another = "others" if subject.endswith("are") else "another one"
            sentences.append(
                f"The {subject} not the same: {_some(condition.different)} {verb} {another} than "
                f"{groups[0].name}. {consequence}."
            )
    return sentences


def _not_known(conditions: Sequence[Condition]) -> list[str]:
    unknown = [c.name for c in conditions if None in c.same and False not in c.same]
    if not unknown:
        return []
    verb = "are" if len(unknown) > 1 else "is"
    return [
        f"The logs don't tell whether the {_listed(unknown)} {verb} the same; they are compared as "
        "if they were."
    ]


def _direction(tag: str) -> int:
    """Return -1 where lower is better, 1 where higher is, 0 where it isn't known."""
    words = set(re.split(r"[^a-z0-9]+", tag.lower()))
    return -1 if words & _LOWER else 1 if words & _HIGHER else 0


def _better(sides: Sequence[Side], headlines: Sequence[ScalarRow]) -> list[str]:
    usable = [row for row in headlines if any(change is not None for change in row.changes)]
    rows = [row for row in usable if VALIDATION.match(row.tag)]
    if not rows:
        rows = [row for row in usable if row.tag == "train/loss"]
    if not rows:
        return [
            "Which is better is not known: no validation metric and no train/loss can be compared."
        ]
    rows.sort(key=lambda row: not row.tag.endswith("loss"))
    if len(sides) > 2:
        return [_ranking(sides, rows[0])]
    sentences = [_pair(sides, row) for row in rows[:_MAX_METRICS]]
    if max(len(side.runs) for side in sides) == 1:
        sentences.append("One run each: with other seeds it may be otherwise.")
    elif min(len(side.runs) for side in sides) < 3:
        sentences.append("Too few runs on a side to tell this from the differences between seeds.")
    return sentences


def _pair(sides: Sequence[Side], row: ScalarRow) -> str:
    a, b = row.values
    (change,) = row.changes
    if change is None:
        return ""
    first, other = (f"{side.name} ({value.mean:.4g})"
                    for side, value in zip(sides, row.values, strict=True))  # fmt: skip
    direction = _direction(row.tag)
    if change.delta != change.delta:
        return f"By {row.tag}, {other} and {first} can't be ranked: not a number."
    if not change.delta:
        return f"By {row.tag}, {other} and {first} are equal."
    word = ("higher" if change.delta > 0 else "lower") if not direction else (
        "better" if direction * change.delta > 0 else "worse")  # fmt: skip
    size = f", by {abs(change.percent):.3g} %" if change.percent is not None else ""
    validation = bool(VALIDATION.match(row.tag))
    means = _means(change, len(a.runs), len(b.runs), validation=validation)
    return f"By {row.tag}, {other} is {word} than {first}{size}{means}"


def _means(change: Change, n: int, m: int, *, validation: bool) -> str:
    """Return the clause that ends a sentence on a difference: what it means.

    Validation is tested alone, and so is train/loss where there is none.
    """
    if change.p is None:
        if change.over_noise is not None and change.over_noise < 2:
            return ", which is within the scatter from point to point of one run."
        return "."
    p = change.p_holm if validation and change.p_holm is not None else change.p
    ci = (
        ""
        if change.ci is None
        else f" (95 % CI of the difference {change.ci[0]:+.3g} to {change.ci[1]:+.3g})"
    )
    if p <= 0.05:
        return f"{ci}: more than seeds explain (p = {p:.2g})."
    least = smallest_p(n, m)
    if least > 0.05:
        return (
            f"{ci}. With {n} and {m} runs p can't be below {least:.2g}, whatever the difference "
            f"(here {p:.2g}): {RECOMMENDED} runs a side are recommended."
        )
    return f"{ci}: seeds alone may explain that (p = {p:.2g})."


def _ranking(sides: Sequence[Side], row: ScalarRow) -> str:
    use = [True, *(change is not None for change in row.changes)]
    means = {side.name: value.mean
             for side, value, ok in zip(sides, row.values, use, strict=True) if ok}  # fmt: skip
    direction = _direction(row.tag)
    finite = {name: mean for name, mean in means.items() if abs(mean) < float("inf")}
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
        text += f" {_some([name for name in means if name not in finite])}: not a number."
    first = sides[0].name
    other = second if best == first else best
    number = [side.name for side in sides].index(other)
    change = row.changes[number - 1]
    if change is not None and change.p is not None and first in finite:
        sizes = len(sides[0].runs), len(sides[number].runs)
        clause = _means(change, *sizes, validation=bool(VALIDATION.match(row.tag)))
        text += f" {other} against {first}{clause}"
    if max(len(side.runs) for side in sides) == 1:
        text += " One run each: with other seeds the order may be another."
    return text


def _rely(
    groups: Sequence[Group],
    sides: Sequence[Side],
    conditions: Sequence[Condition],
    headlines: Sequence[ScalarRow],
    measures: Sequence[Measure],
) -> list[str]:
    alike = [True] + [
        all(c.same[number] is not False for c in conditions) for number in range(len(sides) - 1)
    ]
    use = [number for number, ok in enumerate(alike) if ok]
    if len(use) < 2:
        return ["What they rely on is not compared."]
    sentences = []
    shares = [_mean_shares(sides[number].runs) for number in use]
    if all(shares) and len({frozenset(share) for share in shares}) == 1:
        spans = {
            name: max(share[name] for share in shares) - min(share[name] for share in shares)
            for name in shares[0]
        }
        name = max(spans, key=lambda n: spans[n])
        values = [f"{_share(share[name])} in {sides[number].name}"
                  for number, share in zip(use, shares, strict=True)]  # fmt: skip
        if len(values) > 3:
            order = sorted(range(len(shares)), key=lambda i: shares[i][name])
            values = [values[order[0]], values[order[-1]]]
        if spans[name] >= _CLEAR:
            text = f"They rely on the inputs differently: {name} has {_listed(values)}"
        else:
            text = f"They rely on the inputs alike: {name} differs most, with {_listed(values)}"
        sentences.append(f"{text}{_like_seeds(measures, spans[name])}.")
    row = next((row for row in headlines if row.tag.endswith("/time_share")), None)
    if row is not None:
        every = [row.values[number].mean for number in use]
        order = sorted(range(len(use)), key=lambda i: every[i])
        kept = range(len(use)) if len(use) <= 3 else (order[0], order[-1])
        values = [
            f"{_share(every[i])}{_ci(groups[use[i]], row)} in {sides[use[i]].name}" for i in kept
        ]
        sentences.append(f"Of the attribution, elapsed time has {_listed(values)}.")
    return sentences


def _mean_shares(runs: Sequence[RunInfo]) -> dict[str, float]:
    if len({frozenset(run.shares) for run in runs}) > 1:
        return {}
    return {name: sum(run.shares[name] for run in runs) / len(runs) for name in runs[0].shares}


def _like_seeds(measures: Sequence[Measure], span: float) -> str:
    """Return a clause where runs of one side differ as much as the sides do."""
    for measure in measures:
        if measure.name != "shift of feature shares" or span < _CLEAR:
            continue
        within = [value for value in measure.within if value is not None]
        between = [value for value in measure.between if value is not None]
        if within and between and max(between) <= max(within):
            return ", which is no more than between runs of one side"
        break
    return ""


def _ci(group: Group, row: ScalarRow) -> str:
    """Return the 95 % CI over sequences of a single run, at its last step in the window."""
    ci = group.runs[0].ci.get(row.tag) if len(group.runs) == 1 else None
    at = [] if ci is None else [i for i, s in enumerate(ci.steps) if s <= row.steps[1]]
    if ci is None or not at:
        return ""
    return f" [{100 * ci.low[at[-1]]:.0f}, {100 * ci.high[at[-1]]:.0f}]"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}" if more else _listed(names)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
