"""Report a state in which changes grow, or fade at once."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import amount, percent, since

__all__ = ["ForgetsTheBeginning", "ShortMemory", "UnstableMemory"]

_STEPS, _MIN_LENGTH, _BEGINNING = 1.5, 8, 1e-4
_GROWTH, _LARGEST = 1.0, 700.0  # Logarithms of factors.


class UnstableMemory(Rule):
    """Report a stability exponent by which changes grow at least e-fold along a sequence.

    Above 0, small changes of the state grow in the long run, so that rounding and noise do, too.
    Growth that is a transient does not count. A network that integrates its inputs has an exponent
    near 0, on either side, and is as it should be. So the growth must show within a sequence, also
    by the lower end of the CI: by a factor of e, as memory is the time of a fall to 1/e.
    """

    name = "unstable_memory"
    topic = Topic.STATE
    reads = ("dynamics/stability_exponent",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, exponent in facts.each("dynamics", "stability_exponent"):
            duration = facts.run.duration
            growth = exponent.value * duration  # The logarithm of the factor.
            if exponent.at_least * duration > _GROWTH:
                yield self.finding(
                    facts,
                    Severity.WARNING,
                    "The state is unstable: small changes of it grow by a factor of "
                    f"{math.exp(min(growth, _LARGEST)):.2g} along a sequence, with a stability "
                    f"exponent of {amount(exponent)}{since(exponent, facts.step)}.",
                    "Make the recurrent weights smaller by weight decay or a lower learning rate.",
                    {tag: exponent},
                    "unstable state",
                )


class ShortMemory(Rule):
    """Report a change of the state that falls to 1/e within 1.5 of at least 8 time steps.

    The upper end of the CI counts. Such a state holds its inputs for one time step: it is a filter,
    and no memory. A latch is none either by small changes, but the target tells: where more than
    1.5 of the last time steps must be kept for it, nothing is reported.
    """

    name = "short_memory"
    topic = Topic.STATE
    reads = ("dynamics/linear_memory_steps", "dynamics/target_memory_steps")

    def check(self, facts: Facts) -> Iterator[Finding]:
        latched = any(
            kept.at_most >= _STEPS for _, kept in facts.each("dynamics", "target_memory_steps")
        )
        for tag, steps in facts.each("dynamics", "linear_memory_steps"):
            if not latched and facts.run.time_steps >= _MIN_LENGTH and steps.at_most < _STEPS:
                yield self.finding(
                    facts,
                    Severity.WARNING,
                    f"The memory fades at once: a change of the state falls to 1/e within "
                    f"{amount(steps)} of {facts.run.time_steps} time steps"
                    f"{since(steps, facts.step)}.",
                    "If the target needs earlier inputs, make the time constants longer or the "
                    "forget gates more open at the start of the training.",
                    {tag: steps},
                    "short memory",
                )


class ForgetsTheBeginning(Rule):
    """Report a first quarter of the sequence with less than 0.01 % of the attribution.

    Equal time steps would give it 25 %; a factor of 2,500 less is a gradient that has vanished on
    the way back, or inputs that don't matter. Which of the two is for the user to judge, so that
    this is a fact and no warning. It needs sequences of at least 8 time steps and next
    to no padding, since time steps are counted from the beginning.

    Source: the vanishing gradient of Amazon SageMaker Debugger and AutoTrainer, here along time.
    """

    name = "forgets_the_beginning"
    topic = Topic.STATE
    reads = ("attribution/strength", "_ncp/attribution*_strength")

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = facts.first("attribution", "strength")
        if found is None or facts.run.padding > 0.1:
            return
        profile = facts.time_profile(found[0].partition("/")[0])
        if profile is None or len(profile) < _MIN_LENGTH:
            return
        quarter = len(profile) // 4
        share = float(profile[:quarter].sum())
        if share < _BEGINNING:
            yield self.finding(
                facts,
                Severity.INFO,
                f"The beginning doesn't reach the target: the first {quarter} of {len(profile)} "
                f"time steps have {percent(share)} of the attribution.",
                "If they should matter, the gradient vanishes on the way back: use a gated or "
                "liquid cell with longer time constants, or shorter sequences.",
                {"share of the first quarter": share},
                "forgets the start",
            )
