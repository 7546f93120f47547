"""Tell whether the map depends on what the model has learnt."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import amount, since

__all__ = ["SameMapWhenRandomised"]

_ALIKE, _OTHER = math.sqrt(0.5), 0.5


class SameMapWhenRandomised(Rule):
    """Report a map that has a rank correlation above 0.71 with that of the randomised model.

    0.71 is the line that the picture of the callback draws: above, half of the variance of ranks
    comes from inputs and architecture. Below 0.5 it is less than a quarter. The line must be passed
    in each of several shuffles of the parameters: the CI over sequences is that of one shuffle, and
    networks whose maps are right have passed it by some of them.

    Source: Adebayo et al. 2018, arXiv:1810.03292.
    """

    name = "same_map_when_randomised"
    topic = Topic.TRUST
    reads = ("sanity_check/rank_correlation", "sanity_check/rank_correlation_min")
    needs = ("sanity_check/rank_correlation",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, correlation in facts.each("sanity_check", "rank_correlation"):
            what = f"rank correlation {amount(correlation)}{since(correlation, facts.step)}"
            least = facts.numbers.get(f"{tag}_min")
            if (
                correlation.at_least > _ALIKE
                and least is not None
                and least.step == correlation.step
                and least.at_least > _ALIKE
            ):
                yield self.finding(
                    facts,
                    Severity.WARNING,
                    f"The map shows the inputs more than the model: with all parameters randomised "
                    f"it is almost the same, {what}, and at least {least.value:.2g} however they "
                    "were shuffled.",
                    "Don't read the map as what was learnt; compare with a method that has a "
                    "baseline, such as integrated gradients.",
                    {tag: correlation, f"{tag}_min": least},
                    "map not learnt",
                )
            elif correlation.at_most < _OTHER:
                yield self.finding(
                    facts,
                    Severity.GOOD,
                    "The map depends on what was learnt: with all parameters randomised it is "
                    f"another one, {what}.",
                    "Nothing to do.",
                    {tag: correlation},
                    "map is learnt",
                )
