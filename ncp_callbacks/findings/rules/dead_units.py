"""Report units of the state that don't move, and layers that are off."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent

__all__ = ["DeadUnits"]

_UNITS, _OFF = 0.25, 0.95


class DeadUnits(Rule):
    """Report a state of which a quarter of the units doesn't move, or a layer that is 95 % off.

    A unit is dead if its SD is below 0.1 % of the median unit's. A few dead units are common and
    harmless; a quarter of them is capacity that was paid for in vain. Half of the activations of a
    ReLU are off by design, so that a layer counts from 95 % on.

    Source: the rules DeadRelu and TensorVariance of Amazon SageMaker Debugger.
    """

    name = "dead_units"
    topic = Topic.STATE
    reads = ("transitions/dead_units", "backbone/*_sparsity", "_ncp/transitions*_unit_speed_max")

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, dead in facts.each("transitions", "dead_units"):
            speeds = facts.arrays.get(f"_ncp/{tag.partition('/')[0]}_unit_speed_max")
            units = 0 if speeds is None else int(np.size(speeds))
            if not units or dead.value / units < _UNITS:
                continue
            yield self.finding(
                facts,
                Severity.WARNING,
                f"{dead.value:.0f} of {units} units of the state are dead: they have the same "
                "value for all sequences and time steps.",
                "Use fewer units, other initial weights, or a lower learning rate; with ReLU, try "
                "another activation function.",
                {tag: dead, "units": float(units)},
                "dead units",
            )
        for tag, number in facts.numbers.items():
            group, _, name = tag.partition("/")
            is_layer = facts.run.kind_of(group)[0] == "backbone" and name.endswith("_sparsity")
            if is_layer and number.at_least >= _OFF:
                yield self.finding(
                    facts,
                    Severity.WARNING,
                    f"The layer {name.removesuffix('_sparsity')} of the backbone is off or stuck "
                    f"for {percent(number)} of its activations.",
                    "Lower the learning rate, standardise the inputs, or use an activation "
                    "function with a slope on both sides.",
                    {tag: number},
                    "layer off",
                )
