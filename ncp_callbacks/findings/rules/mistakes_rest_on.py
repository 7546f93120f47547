"""Tell what the target rests on where two classes are confused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...stats import MIN_SEQUENCES_FOR_CI, class_name
from ..facts import Facts, Number
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import count, joined, percent, since, time_steps

__all__ = ["MistakesRestOn"]

_MAX_NAMED = 2


class MistakesRestOn(Rule):
    """Report shares that are others where two classes are confused than where they are right.

    Features, and blocks of time, are named whose shares of the attribution differ by 10 % of the
    whole or more, and beyond chance by tests between the two groups of sequences at 2 % that are
    corrected for their number. Only sequences of the two classes that are confused most are
    compared. The callback does so where there are 16 of each group or more: with fewer, chance
    makes differences too often.
    """

    name = "mistakes_rest_on"
    topic = Topic.RELIANCE
    reads = ("attribution/strength", "_ncp/attribution*_confused*")
    needs = ("attribution/strength",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = facts.first("attribution", "strength")
        if found is None:
            return
        tag = f"_ncp/{found[0].partition('/')[0]}_confused"
        pair, shares = facts.arrays.get(tag), facts.arrays.get(f"{tag}_shares")
        if pair is None or shares is None or pair.shape != (4,) or not np.isfinite(pair).all():
            return
        if shares.ndim != 2 or len(shares) != 9 or not np.isfinite(shares[[0, 1, 8]]).all():
            return
        a, b, confused, right = (int(number) for number in pair)
        # Shares of an earlier snapshot are those of other sequences.
        if min(confused, right) < MIN_SEQUENCES_FOR_CI:
            return
        differ = np.flatnonzero(shares[8] > 0)
        if not differ.size:
            return
        order = differ[np.argsort(-np.abs(shares[2, differ] - shares[5, differ]), kind="stable")]
        numbers: dict[str, Number] = {}
        texts = []
        for place in order[:_MAX_NAMED].tolist():
            name = _name(facts, shares[:2, place], place)
            there, elsewhere = (Number(*shares[i : i + 3, place].tolist()) for i in (2, 5))
            numbers[f"{name}, confused"], numbers[f"{name}, right"] = there, elsewhere
            texts.append(f"{name} {percent(there)} instead of {percent(elsewhere)}")
        one, other = (class_name(facts.run.class_names, index) for index in (a, b))
        yield self.finding(
            facts,
            Severity.INFO,
            f"Where {one} and {other} are confused ({count(confused, 'sequence')}), the "
            f"attribution is not as in the {right} that are right: {joined(texts)}"
            f"{since(found[1], facts.step)}.",
            "See such sequences with SinglePredictions: what is missing, or misleading?",
            numbers,
            "mistakes differ",
        )


def _name(facts: Facts, steps: np.ndarray, place: int) -> str:
    first, last = (int(step) for step in steps)
    if first >= 0:
        return time_steps(first, last)
    names = facts.run.feature_names
    return names[place] if place < len(names) else f"feature {place}"
