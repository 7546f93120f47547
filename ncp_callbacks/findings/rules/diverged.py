"""Report NaN and infinity: in the loss, and in what the model computes."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import count

__all__ = ["Diverged"]

_ACTION = (
    "Load the last checkpoint before that, lower the learning rate, and clip the norm of the "
    "gradient (mlx.optimizers.clip_grad_norm)."
)


class Diverged(Rule):
    """Report a loss or an analysis that is not finite.

    One value suffices, since a parameter that is NaN stays NaN. It is a problem if the last loss is
    not finite or some callback found nothing finite, and a warning if a part of the values is.
    """

    name = "diverged"
    topic = Topic.LEARNING
    reads = ("*/nonfinite", "train/*", "val/*")

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, curve in facts.curves.items():
            if curve.windows and not math.isfinite(curve.last):
                first = next((w.first for w in curve.windows if w.bad), facts.step)
                yield self.finding(
                    facts,
                    Severity.PROBLEM,
                    f"{tag} is {curve.last}, and has not been finite since about step {first:,}: "
                    "the training has diverged.",
                    _ACTION,
                    {tag: curve.last},
                    "diverged",
                )
                return
        bad = {
            tag: number
            for tag, number in facts.numbers.items()
            if tag.endswith("/nonfinite") and number.value > 0
        }
        if not bad:
            return
        empty = [tag for tag in bad if not self._has_others(facts, tag)]
        tag = (empty or list(bad))[0]
        group, skipped = tag.partition("/")[0], int(bad[tag].value)
        if empty:
            yield self.finding(
                facts,
                Severity.PROBLEM,
                f"The model computes NaN or infinity: {group} has no finite value at step "
                f"{bad[tag].step:,}.",
                _ACTION,
                bad,
                "computes NaN",
            )
            return
        yield self.finding(
            facts,
            Severity.WARNING,
            f"{group} has {count(skipped, 'value')} that {'is' if skipped == 1 else 'are'} NaN or "
            "infinite and skipped; its other numbers are of the rest.",
            "Find the sequences with extreme inputs in the held-out batch, and check the range of "
            "the elapsed times.",
            bad,
            "some values NaN",
        )

    @staticmethod
    def _has_others(facts: Facts, tag: str) -> bool:
        """Return whether the group of a tag has a finite number of the same snapshot."""
        group, step = tag.partition("/")[0], facts.numbers[tag].step
        return any(
            other.startswith(f"{group}/")
            and other.rpartition("/")[2] not in ("nonfinite", "numbers_changed", "sequences")
            and number.step == step
            and math.isfinite(number.value)
            for other, number in facts.numbers.items()
        )
