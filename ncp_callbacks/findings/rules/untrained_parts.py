"""Report trainable parameters that don't change while others do."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import count

__all__ = ["UntrainedParts"]


class UntrainedParts(Rule):
    """Report trainable arrays of which no element has changed since the previous snapshot.

    An optimiser changes every element that has a gradient, if only in its last digits. Adam goes on
    for a while after a gradient has become 0. If all parameters stay, the rule ``no_progress``
    reports it.

    Source: the rule UnchangedTensor of Amazon SageMaker Debugger.
    """

    name = "untrained_parts"
    topic = Topic.LEARNING
    reads = ("parameters/unchanged", "parameters/update", "parameters/update_*")
    needs = ("parameters/unchanged",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, unchanged in facts.each("parameters", "unchanged"):
            group = tag.partition("/")[0]
            total = facts.numbers.get(f"{group}/update")
            if not unchanged.value or total is None or not total.value > 0:
                continue
            prefix = f"{group}/update_"
            still = [
                t.removeprefix(prefix)
                for t, change in facts.numbers.items()
                if t.startswith(prefix) and change.value == 0
            ]
            all_of = f", among them all of {', '.join(still)}" if still else ""
            have = "has" if unchanged.value == 1 else "have"
            yield self.finding(
                facts,
                Severity.WARNING,
                f"{count(int(unchanged.value), 'trainable array')} {have} not changed since the "
                f"previous snapshot{all_of}, while others have.",
                "Check that the loss depends on these parameters and that the optimiser gets their "
                "gradients; freeze those that are not to be trained.",
                {tag: unchanged, f"{group}/update": total},
            )
