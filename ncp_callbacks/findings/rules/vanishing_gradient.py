"""Report a gradient that fades or grows along the sequence, or over the training."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import amount, since
from .learnt import has_learnt

__all__ = ["VanishingGradient"]

_FADED, _GROWN, _NORM, _MIN_LENGTH = 1e-4, 100.0, 1e-7, 8


class VanishingGradient(Rule):
    """Report a gradient by the first state that is 10,000 times smaller, or 100 times larger.

    It is relative to the gradient by the last state, in sequences of at least 8 time steps, and the
    whole CI counts. Below 1e-4 an update of 1e-3 by the last time steps is one of 1e-7 by the
    first, which float32 rounds away: what happened there is not learnt. That is a fact and no fault
    where the held-out loss is better than a constant's, since then the task may not need it. A
    gradient norm of the loop below 1e-7 is a problem unless the model has learnt: then no part of
    the model learns.

    Source: the rules VanishingGradient and ExplodingTensor of Amazon SageMaker Debugger, whose
    threshold is 1e-7, and gradient vanishing of AutoTrainer; here along time, too.
    """

    name = "vanishing_gradient"
    topic = Topic.LEARNING
    reads = ("gradient_reach/first_step", "train/grad_norm", "held_out/loss", "held_out/accuracy")

    def check(self, facts: Facts) -> Iterator[Finding]:
        yield from self._along_time(facts)
        curve = facts.curves.get("train/grad_norm")
        if curve is None or not curve.finite or has_learnt(facts):
            return
        norm = curve.finite[-1].mean
        if norm < _NORM:
            yield self.finding(
                facts,
                Severity.PROBLEM,
                f"The gradient has vanished: train/grad_norm is {norm:.3g} now.",
                "Check that the loss depends on the parameters and that no activation is "
                "saturated; standardise the inputs, and use other initial weights.",
                {"train/grad_norm": norm},
                "no gradient",
            )

    def _along_time(self, facts: Facts) -> Iterator[Finding]:
        if facts.run.time_steps < _MIN_LENGTH:
            return
        for tag, first in facts.each("gradient_reach", "first_step"):
            when = since(first, facts.step)
            if first.at_most < _FADED:
                yield self.finding(
                    facts,
                    Severity.INFO if has_learnt(facts) else Severity.WARNING,
                    f"The gradient vanishes along the sequence: by the first state it is "
                    f"{amount(first)} of that by the last, {facts.run.time_steps} time steps "
                    f"later{when}.",
                    "If early inputs matter, use a gated or liquid cell with long time constants; "
                    "larger recurrent weights and shorter sequences help as well.",
                    {tag: first},
                    "gradient fades",
                )
            elif first.at_least > _GROWN:
                yield self.finding(
                    facts,
                    Severity.WARNING,
                    f"The gradient explodes along the sequence: by the first state it is "
                    f"{amount(first)} times that by the last, {facts.run.time_steps} time steps "
                    f"later{when}.",
                    "Clip the norm of the gradient (mlx.optimizers.clip_grad_norm), and make the "
                    "recurrent weights smaller.",
                    {tag: first},
                    "gradient grows",
                )
