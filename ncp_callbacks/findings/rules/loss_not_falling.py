"""Report a training loss that does not fall."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..trend import fall_of, training_loss
from .learnt import has_learnt
from .overfits import held_out_points

__all__ = ["LossNotFalling"]

_FALL = 0.02


class LossNotFalling(Rule):
    """Report a training loss whose last quarter is not below its first quarter.

    The fall must be 2 % and beyond chance: of a few batches, a quarter of the run is 2 % lower than
    another one by which batches came. A held-out loss that has fallen by 2 % since the first
    snapshot counts as well, since it is of the same sequences each time. A model that learns
    anything gains more than that in the first quarter of its training alone. One that has learnt
    its task before the first quarter is over is not meant: its held-out loss is better than a
    constant's.

    Source: the rule LossNotDecreasing of Amazon SageMaker Debugger.
    """

    name = "loss_not_falling"
    topic = Topic.LEARNING
    reads = ("train/*", "val/*", "held_out/loss", "held_out/accuracy")
    needs = ("train/*",)
    remembers = ("held_out/loss",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = training_loss(facts)
        fall = fall_of(found[1]) if found else None
        if found is None or fall is None or fall.first <= 0:
            return
        _, points = held_out_points(facts)
        falls = len(points) > 1 and points[-1][1] < (1 - _FALL) * points[0][1]
        if fall.is_shown or falls or has_learnt(facts):
            return
        tag = found[0]
        lower = fall.last < (1 - _FALL) * fall.first
        yield self.finding(
            facts,
            Severity.WARNING,
            f"{tag} does not fall{' beyond chance' if lower else ''}: its mean was "
            f"{fall.first:.3g} in the first quarter of the run, and is {fall.last:.3g} in the "
            "last.",
            "Check that the optimiser updates the model and that the loss depends on it; then try "
            "a learning rate ten times higher, and one ten times lower.",
            {f"{tag} first quarter": fall.first, f"{tag} last quarter": fall.last},
        )
