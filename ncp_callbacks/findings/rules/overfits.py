"""Report a held-out loss that rises while the training loss falls, or that no longer falls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..trend import mean_before, training_loss
from .learnt import has_learnt

__all__ = ["Overfits", "Overtrained", "held_out_points"]

_RISE, _GAP, _HALF, _GAIN, _PATIENCE = 0.1, 0.3, 0.5, 0.01, 5


class Overfits(Rule):
    """Report a held-out loss that rises by 10 % or learns nothing, while the training loss falls.

    In both cases the last training loss must be 30 % below the lower end of the held-out one's CI;
    otherwise the training is unstable. A rise must be 10 % above the minimum at two snapshots. Both
    are compared on the same sequences as the minimum, so that a rise of 10 % is no matter of which
    sequences were held out. Without a rise, nothing that was learnt carries over if the training
    loss has halved and is below half of the best constant's, while the held-out loss isn't better
    than the constant's: the model has memorised its training data before the first snapshot, or
    ever since.

    Source: the rule Overfit of Amazon SageMaker Debugger, whose threshold is 10 %, too.
    """

    name = "overfits"
    topic = Topic.LEARNING
    reads = ("held_out/loss", "held_out/accuracy", "val/*", "train/*")
    needs = ("train/*",)
    remembers = ("held_out/loss",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = training_loss(facts)
        tag, points = held_out_points(facts)
        if found is None or len(points) < 4 or not found[1].finite:
            return
        name, curve = found
        now = curve.finite[-1].mean
        number = facts.numbers.get(tag)
        if now >= (1 - _GAP) * (points[-1][1] if number is None else number.at_least):
            return
        best, lowest = min(points[:-1], key=lambda point: point[1])
        later = [value for step, value in points if step > best]
        before = mean_before(curve, best)
        rises = len(later) >= 2 and lowest > 0 and min(later[-2:]) > (1 + _RISE) * lowest
        action = "train with more data, dropout, weight decay or fewer units."
        if rises and before is not None and now < before:
            yield self.finding(
                facts,
                Severity.WARNING,
                f"It overfits: {tag} was lowest at step {best:,} with {lowest:.3g} and is "
                f"{later[-1]:.3g} now, while {name} has fallen from {before:.3g} to {now:.3g}.",
                f"Use the weights of step {best:,}, or {action}",
                {f"{tag} lowest": lowest, tag: later[-1], name: now},
            )
            return
        first, chance = curve.finite[0].mean, facts.run.chance_loss
        known = chance > 0 and now < _HALF * min(first, chance)
        if known and not has_learnt(facts):
            yield self.finding(
                facts,
                Severity.WARNING,
                f"It memorises: {name} has fallen from {first:.3g} to {now:.3g}, while {tag} is "
                f"{points[-1][1]:.3g}, no better than the best constant's {chance:.3g}.",
                f"{action[0].upper()}{action[1:]}",
                {tag: points[-1][1], name: now, "chance_loss": chance},
                "memorises",
            )


class Overtrained(Rule):
    """Report a held-out loss that has not gained 1 % for five snapshots.

    Five snapshots are the patience of the rule Overtraining of Amazon SageMaker Debugger. It is no
    fault, but the training could have ended there.
    """

    name = "overtrained"
    topic = Topic.LEARNING
    reads = ("held_out/loss", "val/*")
    remembers = ("held_out/loss",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        tag, points = held_out_points(facts)
        if len(points) <= _PATIENCE:
            return
        best, lowest = points[0]
        for step, value in points:
            if value < (1 - _GAIN) * lowest:
                best, lowest = step, value
        if sum(step > best for step, _ in points) >= _PATIENCE:
            yield self.finding(
                facts,
                Severity.INFO,
                f"{tag} has not fallen by 1 % since step {best:,}, where it was {lowest:.3g}.",
                "Stop here if nothing else should change, or lower the learning rate.",
                {tag: points[-1][1], f"{tag} at step {best}": lowest},
            )


def held_out_points(facts: Facts) -> tuple[str, Sequence[tuple[int, float]]]:
    """Return the tag, steps and values of the held-out loss: the loop's own, or the callback's."""
    curve = facts.curves.get("val/loss")
    if curve is not None and len(curve.finite) >= 4:
        return "val/loss", [(w.last, w.mean) for w in curve.finite]
    found = facts.first("held_out", "loss")
    if found is None:
        return "", []
    return found[0], [(step, number.value) for step, number in facts.past(found[0])]
