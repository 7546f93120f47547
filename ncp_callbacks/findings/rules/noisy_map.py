"""Report a map that other sequences would not show."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import amount

__all__ = ["NoisyMap"]

_NOISE, _STABLE = 0.5, 0.8


class NoisyMap(Rule):
    """Report a split-half reliability below 0.5.

    Below 0.5 more of the map's variance over its cells comes from the choice of the sequences than
    from the model. From 0.8 on (Nunnally's rule of thumb) another batch would show the same map.
    """

    name = "noisy_map"
    topic = Topic.TRUST
    reads = ("attribution/reliability",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, reliability in facts.each("attribution", "reliability"):
            group, what = tag.partition("/")[0], f"split-half reliability {amount(reliability)}"
            if reliability.value < _NOISE:
                yield self.finding(
                    facts,
                    Severity.WARNING,
                    f"The map of {group} is mostly noise: other sequences would show another one, "
                    f"{what}.",
                    "Hold out more sequences, and read shares of features rather than single cells "
                    "of the map.",
                    {tag: reliability},
                    "noisy map",
                )
            elif reliability.value >= _STABLE:
                yield self.finding(
                    facts,
                    Severity.GOOD,
                    f"The map of {group} would be the same for other sequences, {what}.",
                    "Nothing to do.",
                    {tag: reliability},
                    "stable map",
                )
