"""Report two classes that the model takes for each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...stats import at_least_p, class_name, most_confused, share_ci
from ..facts import Facts, Number
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import count, percent, since

__all__ = ["ConfusesClasses"]

_MIN_MISTAKES, _ALPHA, _MANY = 8, 0.01, 0.1


class ConfusesClasses(Rule):
    """Report two of at least three classes that are confused more often than others.

    If mistakes were spread evenly, each sequence would be as likely to be wrong as any other, and
    each other class as likely to be predicted. Then two classes would have a share of the mistakes
    that follows from the number of their sequences. The pair with most mistakes is named if it has
    more than that beyond chance, by an exact binomial test at 1 % that is corrected for the number
    of pairs. It needs 8 mistakes. It is a warning where over 10 % of the sequences of the two are
    confused, by the lower end of the CI, and else a fact.
    """

    name = "confuses_classes"
    topic = Topic.LEARNING
    reads = ("held_out/loss", "_ncp/held_out_confusion")
    needs = ("held_out/loss",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = facts.first("held_out", "loss")
        if found is None:
            return
        matrix = facts.arrays.get(f"_ncp/{found[0].partition('/')[0]}_confusion")
        if matrix is None or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            return
        if not np.isfinite(matrix).all() or (matrix < 0).any():
            return
        # A class that is neither there nor predicted can't be confused with any.
        classes = int(((matrix.sum(axis=0) + matrix.sum(axis=1)) > 0).sum())
        mistakes = int(matrix.sum() - np.trace(matrix))
        pair = most_confused(matrix)
        if pair is None or classes < 3 or mistakes < _MIN_MISTAKES:
            return
        a, b = pair
        between, of_both = int(matrix[a, b] + matrix[b, a]), int(matrix[[a, b]].sum())
        expected = of_both / ((classes - 1) * float(matrix.sum()))
        pairs = classes * (classes - 1) / 2
        if expected >= 1 or pairs * at_least_p(between, mistakes, expected) >= _ALPHA:
            return
        share = Number(between / mistakes, *share_ci(between, mistakes))
        # A sequence of either that is taken for the other.
        rate = Number(between / of_both, *share_ci(between, of_both))
        one, other = (class_name(facts.run.class_names, index) for index in pair)
        yield self.finding(
            facts,
            Severity.WARNING if rate.at_least > _MANY else Severity.INFO,
            f"{one} and {other} are confused most: {between} of {count(mistakes, 'mistake')} are "
            f"between them, {percent(share)} against {percent(expected)} if spread evenly, and "
            f"{percent(rate)} of their sequences{since(found[1], facts.step)}.",
            "Check their labels, and add inputs that tell the two apart.",
            {
                f"{one} taken for {other}": float(matrix[a, b]),
                f"{other} taken for {one}": float(matrix[b, a]),
                "share of all mistakes": share,
                "share of the sequences of both": rate,
            },
            "confusion",
        )
