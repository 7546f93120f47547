"""Conditions on scalars that make a comparison fail, for tests of training: ``val/loss>+5%``.

``>``, ``>=``, ``<`` and ``<=`` compare

* a change in per cent of the first side: ``val/loss>+5%``, ``val/accuracy<-1%``,
* a change, a number with a sign: ``val/loss>+0.02``,
* the value itself, a number without: ``val/loss>0.3``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import RunsError
from .find import Group, nearest
from .scalars import scalar_row

__all__ = ["Rule", "broken_rules"]

_RULE = re.compile(
    r"\s*(?P<tag>\S.*?)\s*(?P<compare>[<>]=?)\s*"
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<percent>%?)\s*"
)
_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True)
class Rule:
    """Fails where the number of ``tag`` and ``threshold`` compare so."""

    text: str
    tag: str
    compare: str
    threshold: float
    kind: str

    @classmethod
    def parse(cls, text: str) -> Rule:
        """A rule as written.

        Raises:
            RunsError: It can't be understood.
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


def broken_rules(
    groups: Sequence[Group], rules: Sequence[Rule], *, until: int, last: int
) -> list[str]:
    """Why the comparison fails, a sentence for every side that breaks a rule.

    What is not a number breaks every rule: a run that diverged must not pass.

    Raises:
        RunsError: Not all runs have a rule's tag, or not at common steps.
    """
    broken = []
    for rule in rules:
        runs = [run for group in groups for run in group.runs]
        without = [run.name for run in runs if rule.tag not in run.scalars]
        if without:
            known = dict.fromkeys(tag for run in runs for tag in run.scalars)
            raise RunsError(
                f"{rule.text!r}: {', '.join(without)} has no scalar {rule.tag!r}"
                f"{nearest(rule.tag, known)}"
            )
        row = scalar_row(groups, rule.tag, until=until, last=last)
        if row is None:
            raise RunsError(f"{rule.text!r}: the runs have no common steps of {rule.tag!r}")
        first = row.values[0].mean
        for group, value, change in zip(groups[1:], row.values[1:], row.changes, strict=True):
            number = value.mean if rule.kind == "value" else change.delta
            if rule.kind == "percent":
                number = change.percent if change.percent is not None else _infinite(change.delta)
            if math.isnan(number) or _COMPARE[rule.compare](number, rule.threshold):
                broken.append(
                    f"{rule.text}: {rule.tag} is {value.mean:.4g} in {group.name} and {first:.4g} "
                    f"in {groups[0].name}, {_said(rule.kind, number)}"
                )
    return broken


def _infinite(delta: float) -> float:
    """A change from 0, in per cent."""
    return math.copysign(math.inf, delta) if delta else delta


def _said(kind: str, number: float) -> str:
    if math.isnan(number):
        return "which can't be compared"
    if kind == "percent":
        return f"a change of {number:+.3g} %"
    return f"a change of {number:+.4g}" if kind == "delta" else "and the first is what counts"
