"""Report units of the state that are copies of each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent

__all__ = ["SymmetricUnits"]

_UNITS, _DIGITS, _SATURATED = 0.5, 1e-6, 0.5


class SymmetricUnits(Rule):
    """Report a state of which half of the units move exactly alike.

    Units that start with equal weights get equal gradients, and stay copies of one unit for ever.
    Of units that differ, the largest speeds over all sequences and time steps don't agree in six
    digits, unless they jump from bound to bound: a state that is saturated is not judged.

    Source: the rule PoorWeightInitialization of Amazon SageMaker Debugger.
    """

    name = "symmetric_units"
    topic = Topic.STATE
    reads = ("transitions/saturation", "_ncp/transitions*_unit_speed_max")
    needs = ("transitions/saturation",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, share in facts.each("transitions", "saturation"):
            speeds = facts.arrays.get(f"_ncp/{tag.partition('/')[0]}_unit_speed_max")
            if speeds is None or speeds.size < 2 or share.value >= _SATURATED:
                continue
            moving = np.sort(speeds[np.isfinite(speeds) & (speeds > 0)].ravel())
            alike = np.diff(moving) <= _DIGITS * moving[1:]
            copies = int(alike.sum())
            if copies >= _UNITS * speeds.size:
                yield self.finding(
                    facts,
                    Severity.WARNING,
                    f"{copies} of {speeds.size} units of the state are copies of others: they move "
                    f"exactly alike, so that {percent(copies / speeds.size)} of the state is "
                    "wasted.",
                    "Initialise the weights at random: units with equal weights stay equal.",
                    {"units that are copies": float(copies)},
                    "copied units",
                )
