"""Report features that are constant in the held-out batch."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import count, joined

__all__ = ["ConstantFeatures"]

_MAX_NAMED = 3


class ConstantFeatures(Rule):
    """Report features whose SD over all sequences and time steps is exactly 0.

    Nothing can be attributed to them or changed by removing them, so that their shares of 0 say
    nothing about the model. Most often a column was lost, or filled with zeros.

    Source: the rule AllZero of Amazon SageMaker Debugger, for inputs.
    """

    name = "constant_features"
    topic = Topic.DATA

    def check(self, facts: Facts) -> Iterator[Finding]:
        sds = zip(facts.run.feature_names, facts.run.feature_sds, strict=False)
        constant = [name for name, sd in sds if sd == 0]
        if not constant:
            return
        names = constant if len(constant) <= _MAX_NAMED else constant[: _MAX_NAMED - 1]
        others = len(constant) - len(names)
        names += [f"{others} more"] if others else []
        yield self.finding(
            facts,
            Severity.WARNING,
            f"{count(len(constant), 'feature')} of {len(facts.run.feature_names)} "
            f"{'is' if len(constant) == 1 else 'are'} constant in the held-out batch: "
            f"{joined(names)}.",
            "Check how the batch was made; a share of 0 says nothing about how the model uses "
            "such a feature.",
            {"constant features": float(len(constant))},
        )
