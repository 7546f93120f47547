"""Report a recurrent model that uses the last time step only."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import amount, percent

__all__ = ["LastStepOnly"]

_LAG, _MIN_STEPS = 0.1, 4


class LastStepOnly(Rule):
    """Report a mean lag of at most 0.1 time steps, in sequences of at least four.

    The mean lag is the distance from a sequence's last time step, weighted by importance. All that
    comes before the last time step counts at least once, so that a mean lag of 0.1 leaves it at
    most 10 % of the importance (Markov's inequality). The recurrence then adds next to nothing.
    """

    name = "last_step_only"
    topic = Topic.RELIANCE
    reads = ("attribution/mean_lag",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = facts.first("attribution", "mean_lag")
        if found is None or facts.run.time_steps < _MIN_STEPS:
            return
        tag, lag = found
        if lag.at_most <= _LAG:
            held = 1 - lag.value
            yield self.finding(
                facts,
                Severity.WARNING,
                f"Only the last time step counts: it has at least {percent(max(0.0, held))} of the "
                f"attribution, with a mean lag of {amount(lag)} of {facts.run.time_steps} time "
                "steps.",
                "Check that the target needs earlier inputs and that the state is passed from step "
                "to step; if it doesn't need them, a model without recurrence does as well.",
                {tag: lag},
            )
