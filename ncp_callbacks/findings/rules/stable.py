"""Tell since when the model relies on what it relies on now."""

from __future__ import annotations

from collections.abc import Iterator

from ...screen import clean_tag
from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent

__all__ = ["Stable"]

_TOLERANCE, _MIN_SNAPSHOTS = 0.05, 3


class Stable(Rule):
    """Report shares that moved by more than 5 points since the previous snapshot.

    Otherwise it names the first step from which on all shares of features and of elapsed time
    stayed within 5 points of those of now. Neither is a fault. All snapshots are of the same
    sequences, so that 5 points are no matter of their choice. It needs three snapshots.
    """

    name = "stable"
    topic = Topic.RELIANCE
    reads = ("attribution/strength", "attribution/time_share", "attribution*_share/*")
    remembers = ("attribution/time_share", "attribution*_share/*")

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = facts.first("attribution", "strength")
        if found is None:
            return
        group = found[0].partition("/")[0]
        names = {clean_tag(f"{group}_share/{n}"): n for n in facts.shares(group)}
        names[f"{group}/time_share"] = "elapsed time"
        curves = {tag: facts.past(tag) for tag in names if tag in facts.numbers}
        curves = {tag: points for tag, points in curves.items() if points}
        if not curves or min(map(len, curves.values())) < _MIN_SNAPSHOTS:
            return
        since = facts.step
        for steps in zip(*(reversed(points) for points in curves.values()), strict=False):
            now = [points[-1][1].value for points in curves.values()]
            apart = max(abs(n.value - v) for (_, n), v in zip(steps, now, strict=True))
            if apart > _TOLERANCE:
                break
            since = steps[0][0]
        if since < facts.step:
            yield self.finding(
                facts,
                Severity.INFO,
                f"What it relies on is stable since step {since:,}: no share has moved by more "
                "than 5 points.",
                "Nothing to do.",
                {"stable since step": since},
                "stable",
            )
            return
        tag = max(curves, key=lambda t: abs(curves[t][-1][1].value - curves[t][-2][1].value))
        (before, then), (_, now_) = curves[tag][-2:]
        yield self.finding(
            facts,
            Severity.INFO,
            f"What it relies on still moves: the share of {names[tag]} was {percent(then.value)} "
            f"at step {before:,}, and is {percent(now_)} now.",
            "Train on before you read the shares, or average the weights.",
            {tag: now_, f"{tag} before": then},
            "still moves",
        )
