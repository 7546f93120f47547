"""Report a model in which nothing has changed since the previous snapshot."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import count

__all__ = ["NoProgress"]


class NoProgress(Rule):
    """Report numbers that are exactly equal to those of the snapshot before.

    The strength of the attribution, the held-out loss and the size of the state's moves are sums
    over all sequences: an update of any parameter that matters changes their last digits.

    Source: the rule UnchangedTensor of Amazon SageMaker Debugger.
    """

    name = "no_progress"
    topic = Topic.LEARNING
    reads = ("attribution/strength", "held_out/loss", "transitions/magnitude_mean")
    remembers = reads

    def check(self, facts: Facts) -> Iterator[Finding]:
        same: dict[str, float] = {}
        since = facts.step
        for pattern in self.reads:
            for tag, number in facts.each(*pattern.split("/")):
                if number.step < facts.step:
                    continue  # It was not measured now.
                points = facts.past(tag)[:-1]
                if not points:
                    continue
                if points[-1][1].value != number.value:
                    return
                same[tag] = number.value
                since = min(since, points[-1][0])
        if same and since < facts.step:
            yield self.finding(
                facts,
                Severity.PROBLEM,
                f"Nothing has changed since step {since:,}: {count(len(same), 'number')} "
                f"{'is' if len(same) == 1 else 'are'} equal to the last digit.",
                "Check that the optimiser is called with this model and its gradients, that the "
                "learning rate is above 0, and that the parameters are not frozen.",
                same,
                "no change",
            )
