"""Report a loss, a gradient or a state that grows without bound."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..trend import training_loss

__all__ = ["Exploding"]

_LOSS, _SIZE = 10.0, 100.0


class Exploding(Rule):
    """Report a training loss of ten times, or a state or gradient of a hundred times, the first.

    A loss may rise by chance, but not tenfold over its beginning. States and gradients grow while a
    model learns, by one order of magnitude at most; two are an explosion. Gradients are those that
    the loop logs as ``train/grad_norm``.

    Source: the rules ExplodingTensor and VanishingGradient of Amazon SageMaker Debugger.
    """

    name = "exploding"
    topic = Topic.LEARNING
    reads = ("transitions/magnitude_mean", "train/*")
    remembers = ("transitions/magnitude_mean",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, first, now, factor in self._ratios(facts):
            if first > 0 and math.isfinite(now / first) and now / first >= factor:
                yield self.finding(
                    facts,
                    Severity.PROBLEM,
                    f"{tag} has grown {now / first:,.0f}-fold, from {first:.3g} to {now:.3g}.",
                    "Clip the norm of the gradient (mlx.optimizers.clip_grad_norm) and lower the "
                    "learning rate.",
                    {f"{tag} first": first, tag: now},
                )

    @staticmethod
    def _ratios(facts: Facts) -> Iterator[tuple[str, float, float, float]]:
        found = training_loss(facts)
        curves = [(found[0], found[1], _LOSS)] if found else []
        if "train/grad_norm" in facts.curves:
            curves.append(("train/grad_norm", facts.curves["train/grad_norm"], _SIZE))
        for tag, curve, factor in curves:
            if len(curve.finite) >= 2:
                yield tag, curve.finite[0].mean, curve.finite[-1].mean, factor
        for tag, _ in facts.each("transitions", "magnitude_mean"):
            points = facts.past(tag)
            yield tag, points[0][1].value, points[-1][1].value, _SIZE
