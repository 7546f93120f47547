"""Tell in words what a comparison found.

The sentences carry their numbers and never claim more than the runs can tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..screen import clean_tag
from ..stats.run_groups import MIN_RUNS, smallest_p
from .comparison import Change, Condition, ScalarRow, Side, SideValue
from .find import Group, all_runs
from .fingerprint import commensurable
from .reader import Run
from .scalars import RECOMMENDED, ROUNDING
from .tags import ASIDE, VALIDATION
from .words import listed

__all__ = ["answer", "time_share_tag"]

_LOWER = {"loss", "error", "err", "mse", "rmse", "mae", "nll", "bce", "ce", "perplexity", "ppl",
          "wer", "cer", "brier", "ece"}  # fmt: skip
_HIGHER = {"acc", "accuracy", "f1", "auc", "auroc", "auprc", "ap", "map", "r2", "precision",
           "recall", "score", "iou", "bleu", "kappa", "mcc", "reward", "correlation",
           "sensitivity", "specificity"}  # fmt: skip
# For each condition: its name in a sentence, and what follows where it differs.
_DIFFERENT = {
    "held-out batch": ("held-out batch is", "Only training numbers are subtracted between them"),
    "method": ("method is", "The numbers of the attribution are not subtracted between them"),
    "target": ("target is", "Only training and validation numbers are subtracted between them"),
    "feature names": ("feature names are", "Maps by feature are not compared"),
}
_MAX_METRICS = 3
_CLEAR = 0.05  # A difference of shares that is worth a sentence.
_MAX_NAMED = 3


def answer(
    groups: Sequence[Group],
    sides: Sequence[Side],
    conditions: Sequence[Condition],
    rows: Sequence[ScalarRow],
    headlines: Sequence[ScalarRow],
    window: tuple[int, int],
) -> tuple[str, ...]:
    """Return the sentences that stand on top of a comparison."""
    return (
        *_incommensurable(groups[0].name, conditions),
        *_problems(sides),
        *_copies(rows, headlines),
        *_better(sides, headlines),
        *_rely(groups, sides, conditions, headlines, window),
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
            subject, consequence = _DIFFERENT[condition.name]
            names = listed(condition.different, _MAX_NAMED)
            details = [text for text in condition.details if text]
            how = f" ({listed(details, 2)})" if details else ""
            sentences.append(
                f"The {subject} not the same in {names} as in {first}{how}. {consequence}."
            )
    return sentences


def _problems(sides: Sequence[Side]) -> list[str]:
    """Return a sentence where rules find problems, by which all else stands or falls."""
    runs = [run for side in sides for run in side.runs]
    having = [run for run in runs if any(f.severity == "problem" for f in run.findings)]
    if not having:
        return []
    rules = dict.fromkeys(
        f.rule.replace("_", " ") for run in having for f in run.findings if f.severity == "problem"
    )
    names = "All runs have" if len(having) == len(runs) else listed([r.name for r in having], 3)
    verb = "" if len(having) == len(runs) else " has" if len(having) == 1 else " have"
    return [f"{names}{verb} problems, see the findings: {listed(list(rules), 4)}."]


def _copies(rows: Sequence[ScalarRow], headlines: Sequence[ScalarRow]) -> list[str]:
    """Return a sentence where nothing differs but costs."""
    differing = any(not ASIDE.match(row.tag) for row in rows)
    changes = [change for row in headlines for change in row.changes]
    if differing or not changes or any(change is None or change.delta for change in changes):
        return []
    return ["All numbers but the costs are equal: the runs are copies, or have the same seed."]


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
        sentences.append("Each side has one run: with other seeds the answer may be another.")
    elif min(sizes) < 3:
        sentences.append("A side has too few runs to tell this from the differences between seeds.")
    return sentences


def _pair(sides: Sequence[Side], row: ScalarRow) -> str:
    change = row.changes[0]
    if change is None:
        return ""
    named = [(side.name, value.mean) for side, value in zip(sides, row.values, strict=True)]
    first, other = (f"{name} ({mean:.4g})" for name, mean in named)
    finite = [name for name, mean in named if math.isfinite(mean)]
    if len(finite) == 1:
        lost = next(name for name, _ in named if name not in finite)
        return f"By {row.tag}, {finite[0]} is better: {lost} has numbers that are not finite."
    if math.isnan(change.delta):
        return f"By {row.tag}, {other} and {first} can't be ranked: not a number."
    if not change.delta:
        return f"By {row.tag}, {other} and {first} are equal."
    size = f" of {abs(change.percent):.3g} %" if change.percent is not None else ""
    if doubt := _doubt(row, change):
        both = f"By {row.tag}, {other} and {first} can't be distinguished"
        return f"{both}: the difference{size} {doubt}."
    direction = _direction(row.tag)
    better = (direction or 1) * change.delta > 0
    word = ("better" if better else "worse") if direction else ("higher" if better else "lower")
    by = size.replace(" of", ", by")
    return f"By {row.tag}, {other} is {word} than {first}{by}{_means(row, change, *sides)}"


def _p(row: ScalarRow, change: Change) -> float | None:
    """Return the p that counts. Validation is tested alone, and so is train/loss without any."""
    corrected = change.p_holm if VALIDATION.match(row.tag) else None
    return change.p if corrected is None else corrected


def _least_p(row: ScalarRow, change: Change) -> float:
    other = row.values[1 + row.changes.index(change)]
    return smallest_p(len(row.values[0].runs), len(other.runs))


def _doubt(row: ScalarRow, change: Change) -> str:
    """Return the clause on a difference that may be none; "" for a difference that is one.

    So few runs that no difference could pass are reported by the next clause.
    """
    p = _p(row, change)
    if p is None:
        small = change.over_noise is not None and change.over_noise < 2
        return "is within the scatter between the points of one run" if small else ""
    if p <= 0.05 or _least_p(row, change) > 0.05:
        return ""
    return f"may come from seeds alone (p = {p:.2g}{_ci_of(change, ', 95 % CI ')})"


def _ci_of(change: Change, words: str) -> str:
    return "" if change.ci is None else f"{words}{change.ci[0]:+.3g} to {change.ci[1]:+.3g}"


def _means(row: ScalarRow, change: Change, first: Side, other: Side) -> str:
    """Return the clause that ends a sentence on a difference: what it means."""
    p = _p(row, change)
    if p is None:
        return "."
    ci = _ci_of(change, " (95 % CI of the difference ") + ")" * (change.ci is not None)
    if p <= 0.05:
        return f"{ci}: more than seeds explain (p = {p:.2g})."
    n, m = len(first.runs), len(other.runs)
    return (
        f"{ci}. With {n} and {m} runs p can't be below {smallest_p(n, m):.2g}, whatever the "
        f"difference (here {p:.2g}): {RECOMMENDED} runs a side are recommended."
    )


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
    best, last = finite[ranked[0]], ranked[-1]
    equal = ROUNDING * max(map(abs, finite.values()))
    leading = [name for name in ranked if abs(finite[name] - best) <= equal]
    word = ("best", "worst") if direction else ("lowest", "highest")
    if len(leading) == len(ranked):
        text = f"By {row.tag}, {listed(ranked, _MAX_NAMED)} are equal ({best:.4g})."
    else:
        second = ranked[len(leading)]
        verb = "is" if len(leading) == 1 else "are equal and"
        text = f"By {row.tag}, {listed(leading, _MAX_NAMED)} {verb} {word[0]} of {len(means)} "
        text += f"({best:.4g}), then {second} ({finite[second]:.4g})"
        text += "." if second == last else f"; {last} is {word[1]} ({finite[last]:.4g})."
    if len(finite) < len(means):
        lost = [name for name in means if name not in finite]
        text += f" {listed(lost, _MAX_NAMED)}: not a number."
    first, name = sides[0], ranked[1] if ranked[0] == sides[0].name else ranked[0]
    change, other = changes[name], next(side for side in sides if side.name == name)
    if change is not None and change.p is not None and first.name in finite:
        doubt = _doubt(row, change)
        means_what = f": the difference {doubt}." if doubt else _means(row, change, first, other)
        text += f" {name} against {first.name}{means_what}"
    if max(len(side.runs) for side in sides) == 1:
        text += " Each side has one run: with other seeds the order may be another."
    return text


# --- what the models rely on


@dataclass(frozen=True)
class _Share:
    """Hold a share on one side, and half the width of its 95 % CI; NaN where that isn't known.

    Of one run the CI is over sequences, of several over runs.
    """

    value: float
    half: float

    def __str__(self) -> str:
        text = f"{100 * self.value:.0f} %"
        if not math.isfinite(self.half):
            return text
        low, high = (100 * (self.value + sign * self.half) for sign in (-1, 1))
        return f"{text} [{max(low, 0):.0f}, {min(high, 100):.0f}]"


def _rely(
    groups: Sequence[Group],
    sides: Sequence[Side],
    conditions: Sequence[Condition],
    headlines: Sequence[ScalarRow],
    window: tuple[int, int],
) -> list[str]:
    """Return sentences on the sides that were analysed alike."""
    group = "attribution"
    alike = [n for n in range(len(sides)) if not n or commensurable(conditions, n - 1, group)]
    if len(alike) < 2:
        return ["What they rely on is not compared."]
    sentences = []
    maps = [n for n in alike if not n or _same_names(conditions, n - 1)]
    shares = {n: _feature_shares(groups[n], sides[n], group, window) for n in maps}
    names = list(next(iter(shares.values())))
    if len(maps) > 1 and len(names) > 1 and len({frozenset(s) for s in shares.values()}) == 1:
        sentences.append(_on_features({f: {n: shares[n][f] for n in maps} for f in names}, sides))
    return [*sentences, *_on_time(groups, sides, alike, headlines, window)]


def _same_names(conditions: Sequence[Condition], side: int) -> bool:
    return all(c.same[side] is not False for c in conditions if c.name == "feature names")


def _on_features(by_feature: dict[str, dict[int, _Share]], sides: Sequence[Side]) -> str:
    spans = {name: _span(shares) for name, shares in by_feature.items()}
    beyond = [name for name in spans if _differ(by_feature[name])]
    if not beyond:
        most = 100 * max(spans.values())
        size = "1 point" if most <= 1.001 else f"{math.ceil(most - 1e-3)} points"
        within = ", which is within its 95 % CI" if most > 100 * _CLEAR else ""
        return f"They rely on the inputs alike: no share differs by more than {size}{within}."
    name = max(beyond, key=lambda n: spans[n])
    values = _listed_shares(by_feature[name], sides)
    return f"They rely on the inputs differently: {name} has {values}."


def _on_time(
    groups: Sequence[Group],
    sides: Sequence[Side],
    alike: Sequence[int],
    headlines: Sequence[ScalarRow],
    window: tuple[int, int],
) -> list[str]:
    """Return a sentence on the share of elapsed time, or none where no run has it."""
    row = next((row for row in headlines if row.tag.endswith("/time_share")), None)
    if row is not None:
        shares = {n: _share(groups[n], row.tag, row.values[n], window) for n in alike}
        values = _listed_shares(shares, sides)
        if _differ(shares):
            return [f"Of the attribution, elapsed time has {values}."]
        return [f"Elapsed time has about the same share of the attribution: {values}."]
    tag = time_share_tag([tag for run in all_runs(groups) for tag in run.scalars])
    if tag is None:
        return []
    having = [groups[n].name for n in alike if all(tag in run.scalars for run in groups[n].runs)]
    lacking = [groups[n].name for n in alike if groups[n].name not in having]
    if not having or not lacking:
        return []
    return [
        f"Elapsed time is attributed to in {listed(having, _MAX_NAMED)} only: "
        f"{listed(lacking, _MAX_NAMED)} logged no {tag}, as models without elapsed time."
    ]


def _feature_shares(
    group: Group, side: Side, tags: str, window: tuple[int, int]
) -> dict[str, _Share]:
    if len({frozenset(run.shares) for run in side.runs}) > 1:
        return {}
    found = {}
    for name in side.runs[0].shares:
        of_runs = tuple(run.shares[name] for run in side.runs)
        value = SideValue(float(np.mean(of_runs)), of_runs, (), None)
        found[name] = _share(group, f"{tags}_share/{clean_tag(name)}", value, window)
    return found


def _share(group: Group, tag: str, value: SideValue, window: tuple[int, int]) -> _Share:
    if len(group.runs) == 1:
        return _Share(value.mean, _half_width(group.runs[0], tag, window))
    if len(group.runs) < MIN_RUNS:
        return _Share(value.mean, math.nan)
    from scipy import stats

    error = float(np.std(value.runs, ddof=1)) / math.sqrt(len(value.runs))
    return _Share(value.mean, float(stats.t.ppf(0.975, len(value.runs) - 1)) * error)


def _half_width(run: Run, tag: str, window: tuple[int, int]) -> float:
    """Return half the width of a run's CI over sequences, at its last snapshot in the window."""
    ci = run.ci.get(tag)
    inside = [] if ci is None else np.flatnonzero(ci.steps <= window[1]).tolist()
    if ci is None or not inside:
        return math.nan
    return float(ci.high[inside[-1]] - ci.low[inside[-1]]) / 2


def _span(shares: dict[int, _Share]) -> float:
    values = [share.value for share in shares.values()]
    return max(values) - min(values)


def _differ(shares: dict[int, _Share]) -> bool:
    """Return True where the extremes differ by more than their CIs let expect."""
    low, high = (shares[number] for number in _extremes(shares))
    doubt = math.hypot(*(0.0 if math.isnan(share.half) else share.half for share in (low, high)))
    return high.value - low.value > max(_CLEAR, doubt)


def _extremes(shares: dict[int, _Share]) -> tuple[int, int]:
    order = sorted(shares, key=lambda number: shares[number].value)
    return order[0], order[-1]


def _listed_shares(shares: dict[int, _Share], sides: Sequence[Side]) -> str:
    """Return the shares of all sides up to three; of more, the smallest and the largest."""
    shown = list(shares) if len(shares) <= _MAX_NAMED else _extremes(shares)
    return listed([f"{shares[number]} in {sides[number].name}" for number in shown])
