"""Report elapsed time that is ignored, or that carries more than the inputs."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent
from .time_scales import scales_of

__all__ = ["TimeUse"]

_IGNORED, _REACTION, _DOMINANT = 0.01, 0.05, 0.5


class TimeUse(Rule):
    """Report a model that takes elapsed times and ignores them, or rests on them alone.

    Ignored means an upper end of the CI below 1 % of the attribution, a hundredth that no decision
    depends on, and a reaction to scaled time below 5 % of an SD of the target. Dominant means a
    lower end above 50 %: elapsed time then carries more than all inputs together, as it does where
    the sampling gives the answer away (a patient who is measured often is ill).
    """

    name = "time_use"
    topic = Topic.TIME
    reads = ("attribution/time_share", "time_delta/sensitivity_x*")
    needs = ("attribution/time_share",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = facts.first("attribution", "time_share")
        if found is None:
            return
        tag, share = found
        reactions = [number.at_most for _, number in scales_of(facts, "sensitivity_x").values()]
        reacts = max(reactions, default=0.0) > _REACTION
        if share.at_most < _IGNORED and facts.run.time_varies and not reacts:
            yield self.finding(
                facts,
                Severity.WARNING,
                "The model is given elapsed times and ignores them: they have "
                f"{percent(share)} of the attribution.",
                "If time should matter, check that time_delta reaches the cell and varies; if it "
                "should not, train without it and compare.",
                {tag: share},
                "ignores time",
            )
        elif share.at_least > _DOMINANT:
            yield self.finding(
                facts,
                Severity.WARNING,
                f"Elapsed time carries {percent(share)} of the attribution, more than all inputs "
                "together.",
                "Check that the sampling doesn't give the answer away: train once with all "
                "elapsed times equal, and compare the held-out loss.",
                {tag: share},
                "rests on time",
            )
