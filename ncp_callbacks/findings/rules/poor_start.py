"""Report a state that was saturated at the first snapshot already."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent
from .learnt import has_learnt

__all__ = ["PoorStart"]


class PoorStart(Rule):
    """Report a state that was mostly at its bounds at the first snapshot.

    Most of the state at its bound (the threshold of the rule ``saturated``) before much has been
    learnt points to initial weights or inputs that are too large, and not to the training. It is
    no fault where the held-out loss has become better than a constant's.

    Source: the rule PoorWeightInitialization of Amazon SageMaker Debugger.
    """

    name = "poor_start"
    topic = Topic.STATE
    reads = ("transitions/saturation", "held_out/loss")
    needs = ("transitions/saturation",)
    remembers = needs

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, _ in facts.each("transitions", "saturation"):
            step, share = facts.past(tag)[0]
            if share.at_least >= 0.5:
                yield self.finding(
                    facts,
                    Severity.INFO if has_learnt(facts) else Severity.WARNING,
                    f"The state was at its bounds from the start: {percent(share)} of it at step "
                    f"{step:,}, the first snapshot.",
                    "Standardise the inputs and elapsed times, or make the initial weights "
                    "smaller.",
                    {tag: share},
                )
