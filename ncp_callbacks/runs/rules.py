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

from .errors import RunsError
from .find import Group, nearest
from .scalars import scalar_row

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
                f"{text!r} is no condition: write TAG, > or <, and a number, as in 'val/loss>+5%' "
                "(change in per cent), 'val/loss>+0.02' (change), 'val/loss>0.3' (value)"
            )
        number = match["number"]
        kind = "percent" if match["percent"] else "delta" if number[0] in "+-" else "value"
        return cls(text, match["tag"], match["compare"], float(number), kind)


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
        runs = [run for group in groups for run in group.runs]
        without = [run.name for run in runs if rule.tag not in run.scalars]
        if without:
            known = dict.fromkeys(tag for run in runs for tag in run.scalars)
            raise RunsError(
                f"{rule.text!r}: {', '.join(without)} has no scalar {rule.tag!r}"
                f"{nearest(rule.tag, known)}"
            )
        row = scalar_row(groups, rule.tag, window, commensurable)
        if row is None:
            raise RunsError(f"{rule.text!r}: the runs have no common steps of {rule.tag!r}")
        first = row.values[0].mean
        for group, value, change in zip(groups[1:], row.values[1:], row.changes, strict=True):
            if rule.kind == "value":
                number = value.mean
            elif change is None:
                unjudged.append(
                    f"{rule.text}: {group.name} and {groups[0].name} were analysed differently, so "
                    "their change means nothing"
                )
                continue
            elif rule.kind == "percent":
                number = change.percent if change.percent is not None else _infinite(change.delta)
            else:
                number = change.delta
            if math.isnan(number) or _COMPARE[rule.compare](number, rule.threshold):
                broken.append(
                    f"{rule.text}: {rule.tag} is {value.mean:.4g} in {group.name} and {first:.4g} "
                    f"in {groups[0].name}, {_explained(rule.kind, number)}"
                )
    return broken, unjudged


def _infinite(delta: float) -> float:
    """Return a change from 0, in per cent."""
    return math.copysign(math.inf, delta) if delta else delta


def _explained(kind: str, number: float) -> str:
    if math.isnan(number):
        return "which can't be compared"
    if kind == "percent":
        return f"a change of {number:+.3g} %"
    return f"a change of {number:+.4g}" if kind == "delta" else "and the first is what counts"
