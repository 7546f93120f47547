"""Report a training loss that does not fall."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..trend import quarters, training_loss
from .learnt import has_learnt

__all__ = ["LossNotFalling"]

_FALL = 0.02


class LossNotFalling(Rule):
    """Report a training loss whose last quarter is not 2 % below its first quarter.

    Means over quarters of the run, so that noise from batch to batch cancels. A model that learns
    anything gains more than that in the first quarter of its training alone. One that has learnt
    its task before the first quarter is over is not meant: its held-out loss is better than a
    constant's.

    Source: the rule LossNotDecreasing of Amazon SageMaker Debugger.
    """

    name = "loss_not_falling"
    topic = Topic.LEARNING
    reads = ("train/*", "held_out/loss", "held_out/accuracy")
    needs = ("train/*",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = training_loss(facts)
        means = quarters(found[1]) if found else None
        if found is None or means is None or means[0] <= 0:
            return
        if means[3] > (1 - _FALL) * means[0] and not has_learnt(facts):
            tag = found[0]
            yield self.finding(
                facts,
                Severity.WARNING,
                f"{tag} does not fall: its mean was {means[0]:.3g} in the first quarter of the "
                f"run, and is {means[3]:.3g} in the last.",
                "Check that the optimiser updates the model and that the loss depends on it; then "
                "try a learning rate ten times higher, and one ten times lower.",
                {f"{tag} first quarter": means[0], f"{tag} last quarter": means[3]},
            )
