"""Report a hidden state that is stuck at its bounds."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent, since
from .learnt import has_learnt

__all__ = ["Saturated"]

_WARNING, _PROBLEM = 0.5, 0.9


class Saturated(Rule):
    """Report a state whose components are mostly beyond 95 % of their bound.

    There the slope of tanh is below 1 - 0.95² = 0.0975, so that less than a tenth of a gradient
    passes. Where that holds for most components, learning slows down (a warning); where it holds
    for nine of ten, the state is a constant code (a problem). The lower end of the CI must be
    beyond the threshold. Small networks that have learnt their task well are often like that, so
    that it is a fact and no fault where the held-out loss is better than a constant's.
    """

    name = "saturated"
    topic = Topic.STATE
    reads = ("transitions/saturation", "held_out/loss")
    needs = ("transitions/saturation",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, share in facts.each("transitions", "saturation"):
            if share.at_least < _WARNING:
                continue
            severity = Severity.PROBLEM if share.at_least >= _PROBLEM else Severity.WARNING
            if has_learnt(facts):
                severity = Severity.INFO
            yield self.finding(
                facts,
                severity,
                f"{percent(share)} of the state is at its bound{since(share, facts.step)}, where "
                "tanh passes less than a tenth of a gradient.",
                "Standardise the inputs, lower the learning rate, or make the initial weights "
                "smaller; elapsed times in thousands saturate gates as well.",
                {tag: share},
            )
