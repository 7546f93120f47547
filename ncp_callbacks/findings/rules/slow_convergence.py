"""Report a loss that falls slowly, and has not got far."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent
from .learnt import has_learnt
from .overfits import held_out_points

__all__ = ["SlowConvergence"]

_LEAST, _MOST, _LATE, _POINTS = 0.02, 0.2, 0.5, 5


class SlowConvergence(Rule):
    """Report a held-out loss that has fallen by 2 to 20 % over the run, and falls on at its pace.

    It is of the same sequences each time, so that a fall of 2 % is no matter of chance. In the
    second half of the run it must fall at half the pace of the first or faster: a loss that has
    levelled off is not slow, and a longer training would gain nothing. At that pace several more
    such runs are needed where a good learning rate needs one. A model whose held-out loss is better
    than a constant's is not meant.

    Source: the slow convergence of AutoTrainer (Zhang et al. 2021, ICSE).
    """

    name = "slow_convergence"
    topic = Topic.LEARNING
    reads = ("val/*", "held_out/loss", "held_out/accuracy")
    remembers = ("held_out/loss",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        tag, points = held_out_points(facts)
        steps = [step for step, _ in points]
        if (
            len(points) < _POINTS
            or sorted(set(steps)) != steps
            or points[0][1] <= 0
            or has_learnt(facts)
        ):
            return
        (begin, first), (middle, half), (end, last) = (points[i] for i in (0, len(points) // 2, -1))
        share = (first - last) / first
        early, late = (first - half) / (middle - begin), (half - last) / (end - middle)
        if _LEAST < share < _MOST and late >= _LATE * early:
            yield self.finding(
                facts,
                Severity.WARNING,
                f"It learns slowly: {tag} was {first:.3g} at step {begin:,} and is "
                f"{last:.3g} now, {percent(share)} less, and it falls on at that pace.",
                "Try a learning rate three to ten times higher, standardise inputs and targets, "
                "or train much longer.",
                {f"{tag} first": first, tag: last},
            )
