"""Judge conditions that make a comparison fail, for tests of training: ``val/loss>+5%``.

``>``, ``>=``, ``<`` and ``<=`` compare

* a change in per cent of the first side: ``val/loss>+5%``, ``val/accuracy<-1%``,
* a change, a number with a sign: ``val/loss>+0.02``,
* the value itself, a number without a sign: ``val/loss>0.3``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .comparison import Change
from .errors import RunsError
from .find import Group, all_runs
from .scalars import scalar_row
from .words import like, listed

__all__ = ["Rule", "judge_rules"]

_RULE = re.compile(
    r"\s*(?P<tag>\S.*?)\s*(?P<compare>[<>]=?)\s*"
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<percent>%?)\s*"
)
_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True)
class Rule:
    """Fail where the number of ``tag`` compares so with ``threshold``."""

    text: str
    tag: str
    compare: str
    threshold: float
    kind: str

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Return the rule that a text describes.

        Raises:
            RunsError: The text can't be understood.
        """
        match = _RULE.fullmatch(text)
        if match is None:
            raise RunsError(
                f"{text!r} is not a condition: write TAG, > or <, and a number, as in "
                "'val/loss>+5%' (change in per cent), 'val/loss>+0.02' (change), 'val/loss>0.3' "
                "(value)"
            )
        number = match["number"]
        kind = "percent" if match["percent"] else "delta" if number[0] in "+-" else "value"
        return cls(text, match["tag"], match["compare"], float(number), kind)

    def judged(self, value: float, change: Change | None) -> tuple[float, str] | None:
        """Return the number that the rule is about, and how to call it; None without a change."""
        if self.kind == "value":
            return value, "and the first is what counts"
        if change is None:
            return None
        if self.kind == "delta":
            return change.delta, f"a change of {change.delta:+.4g}"
        percent = change.percent
        if percent is None:  # A change from 0.
            percent = math.copysign(math.inf, change.delta) if change.delta else change.delta
        return percent, f"a change of {percent:+.3g} %"


def judge_rules(
    groups: Sequence[Group],
    rules: Sequence[Rule],
    window: tuple[int, int],
    commensurable: Callable[[int, str], bool] = lambda side, tag: True,
) -> tuple[list[str], list[str]]:
    """Return a sentence for every side that breaks a rule, and for every one that can't be judged.

    A value that is not a number breaks every rule: a run that diverged must not pass. A change
    between runs that are not commensurable can't be judged.

    Raises:
        RunsError: Not all runs have a rule's tag, or not at common steps.
    """
    broken, unjudged = [], []
    for rule in rules:
        runs = all_runs(groups)
        without = [run.name for run in runs if rule.tag not in run.scalars]
        if without:
            known = dict.fromkeys(tag for run in runs for tag in run.scalars)
            raise RunsError(
                f"{rule.text!r}: there is no scalar {rule.tag!r} in {listed(without)}: pass a tag "
                f"of all runs, such as {like(rule.tag, known)}"
            )
        row = scalar_row(groups, rule.tag, window, commensurable)
        if row is None:
            raise RunsError(
                f"{rule.text!r}: the runs have no common steps of {rule.tag!r}: pass another tag"
            )
        first = row.values[0].mean
        for group, value, change in zip(groups[1:], row.values[1:], row.changes, strict=True):
            judged = rule.judged(value.mean, change)
            if judged is None:
                unjudged.append(
                    f"{rule.text}: {group.name} and {groups[0].name} were analysed differently, so "
                    "their change means nothing"
                )
                continue
            number, called = judged
            if math.isnan(number) or _COMPARE[rule.compare](number, rule.threshold):
                called = "which can't be compared" if math.isnan(number) else called
                broken.append(
                    f"{rule.text}: {rule.tag} is {value.mean:.4g} in {group.name} and {first:.4g} "
                    f"in {groups[0].name}, {called}"
                )
    return broken, unjudged
