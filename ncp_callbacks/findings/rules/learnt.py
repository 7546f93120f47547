"""Tell whether the model is better than a constant on the held-out batch."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts, Number
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import amount, percent

__all__ = ["Learnt", "has_learnt"]


_LIKELY = 0.8


def has_learnt(facts: Facts) -> bool:
    """Return whether the loss or the accuracy is better than a constant's with its whole CI.

    A few wrong answers that are given with confidence make the CI of the cross-entropy wide. Where
    the loss is worse than a constant's with its whole CI, accuracy doesn't count.
    """
    loss, accuracy = facts.first("held_out", "loss"), facts.first("held_out", "accuracy")
    counts = facts.run.class_counts
    majority = max(counts) / sum(counts) if counts and sum(counts) else 1.0
    if loss is None or loss[1].at_least > facts.run.chance_loss:
        return False
    better = accuracy is not None and accuracy[1].at_least > majority
    return better or loss[1].at_most < facts.run.chance_loss


class Learnt(Rule):
    """Compare the held-out loss with that of the best constant, and accuracy with the majority.

    The constant (the mean of the targets, or the frequencies of the classes) is fitted to the
    held-out batch itself, so that the model has to be better than a constant that has seen the
    answers. A difference counts where the 95 % CI of the loss or of the accuracy is on one side of
    it. Where no difference is shown, a loss of less than 80 % of the constant's is no warning: more
    sequences would show it.
    """

    name = "learnt"
    topic = Topic.LEARNING
    reads = ("held_out/loss", "held_out/accuracy")

    def check(self, facts: Facts) -> Iterator[Finding]:
        found, chance = facts.first("held_out", "loss"), facts.run.chance_loss
        if found is None or not chance > 0:
            return
        tag, loss = found
        numbers: dict[str, Number | float] = {tag: loss, "chance_loss": chance}
        versus = f"{amount(loss)}, and that of the best constant {chance:.3g}"
        accuracy = self._accuracy(facts, numbers)
        if has_learnt(facts):
            yield self.finding(
                facts,
                Severity.GOOD,
                f"It has learnt something: the held-out loss is {versus}{accuracy}.",
                "Nothing to do.",
                numbers,
                "has learnt",
            )
        elif loss.at_least > chance:
            yield self.finding(
                facts,
                Severity.PROBLEM,
                f"It does worse than a constant: the held-out loss is {versus}{accuracy}.",
                "Train longer if it falls. If it rises, the model overfits; if neither, check that "
                "inputs and targets belong together, and lower the learning rate.",
                numbers,
                "below chance",
            )
        else:
            yield self.finding(
                facts,
                Severity.INFO if loss.value < _LIKELY * chance else Severity.WARNING,
                f"No learning is shown yet: the held-out loss is {versus}{accuracy}.",
                "Train longer, check that inputs and targets belong together, or hold out more "
                "sequences for a narrower CI.",
                numbers,
                "none shown",
            )

    @staticmethod
    def _accuracy(facts: Facts, numbers: dict[str, Number | float]) -> str:
        found, counts = facts.first("held_out", "accuracy"), facts.run.class_counts
        if found is None or not counts or not sum(counts):
            return ""
        numbers[found[0]] = found[1]
        majority = max(counts) / sum(counts)
        return (
            f"; accuracy is {percent(found[1])}, and the most frequent class has "
            f"{percent(majority)}"
        )
