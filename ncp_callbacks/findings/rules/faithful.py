"""Tell whether removing what a map calls important changes the target more than chance."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import amount, since

__all__ = ["Faithful"]


class Faithful(Rule):
    """Report a map whose most important inputs change the target no more than random ones do.

    ``cpd_advantage`` is the path length of the target while the largest attributions are removed,
    minus that in random order, in RMS changes when all are removed. The map knows something where
    the whole CI is above 0.
    """

    name = "faithful"
    topic = Topic.TRUST
    reads = ("faithfulness/cpd_advantage",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, advantage in facts.each("faithfulness", "cpd_advantage"):
            what = f"an advantage of {amount(advantage)}{since(advantage, facts.step)}"
            if advantage.at_least > 0:
                yield self.finding(
                    facts,
                    Severity.GOOD,
                    "The map is faithful: removing its largest inputs changes the target more than "
                    f"removing random ones, {what}.",
                    "Nothing to do.",
                    {tag: advantage},
                    "faithful",
                )
            else:
                yield self.finding(
                    facts,
                    Severity.WARNING,
                    "The map is not shown to be faithful: removing its largest inputs changes the "
                    f"target no more than removing random ones, {what}.",
                    "Read the shares by removal instead (FeatureRemoval); pass a larger "
                    "max_sequences to Faithfulness.",
                    {tag: advantage},
                    "not faithful",
                )
