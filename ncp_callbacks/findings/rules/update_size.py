"""Report parameters that change too much or too little in each training step."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent
from .learnt import has_learnt

__all__ = ["UpdateSize"]

_LARGE, _SMALL = 0.05, 1e-6


class UpdateSize(Rule):
    """Report updates above 5 % of the parameters per training step, or below a millionth.

    A good pace is 0.1 % (CS231n), and it falls in the course of the training. At 5 % the parameters
    are others after 20 steps, so that nothing is refined. Below 1e-6 they need a million steps to
    become others, and an update of a single weight is near the 6e-8 at which float32 rounds it
    away. Neither is meant where the held-out loss is better than a constant's. If nothing
    changes at all, the rule ``no_progress`` reports it.

    Source: the rule WeightUpdateRatio of Amazon SageMaker Debugger.
    """

    name = "update_size"
    topic = Topic.LEARNING
    reads = ("parameters/update", "held_out/loss", "held_out/accuracy")
    needs = ("parameters/update",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, update in facts.each("parameters", "update"):
            if has_learnt(facts) or _SMALL <= update.value <= _LARGE or not update.value > 0:
                continue
            large = update.value > _LARGE
            size = percent(update.value) if large else f"{update.value:.2g}"
            yield self.finding(
                facts,
                Severity.WARNING,
                f"The updates are too {'large' if large else 'small'}: each training step changes "
                f"the parameters by {size} of their size, and 0.1 % is a good pace.",
                "Set a learning rate ten times lower, and clip the norm of the gradient "
                "(mlx.optimizers.clip_grad_norm)."
                if large
                else "Set a learning rate ten times higher, and check that the loss is not scaled "
                "down.",
                {tag: update},
                "large updates" if large else "small updates",
            )
