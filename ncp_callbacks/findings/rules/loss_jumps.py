"""Report a training loss that jumps instead of falling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..trend import quarters, training_loss

__all__ = ["LossJumps"]

_SPREAD, _ABOVE, _FALLEN = 0.5, 3.0, 0.2


class LossJumps(Rule):
    """Report a loss that varies by more than half of its mean, and stays far above its minimum.

    It is judged over the second half of the run: an SD above 50 % of the mean, a mean above three
    times the lowest value of the run and a fifth of the first quarter's, and a last quarter that is
    not lower than the one before.
    Noise from batch to batch is smaller than its mean as a rule, and a loss that falls to a small
    value is not a loss that jumps.

    Source: the oscillating loss of AutoTrainer (Zhang et al. 2021, ICSE).
    """

    name = "loss_jumps"
    topic = Topic.LEARNING
    reads = ("train/*",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = training_loss(facts)
        means = quarters(found[1]) if found else None
        if found is None or means is None:
            return
        tag, curve = found
        windows = curve.finite
        late = np.array([w.mean for w in windows[len(windows) // 2 :]])
        low = min(w.low for w in windows)
        with np.errstate(over="ignore"):
            mean, spread = float(late.mean()), float(late.std())
        jumps = mean > 0 and spread > _SPREAD * mean and mean > _ABOVE * max(low, 0.0)
        if jumps and means[3] > 0.9 * means[2] and mean > _FALLEN * means[0]:
            high = max(w.high for w in windows[len(windows) // 2 :])
            yield self.finding(
                facts,
                Severity.WARNING,
                f"{tag} jumps: in the second half of the run its mean is {mean:.3g} and it reaches "
                f"{high:.3g}, with {low:.3g} as the lowest value so far.",
                "Lower the learning rate, clip the norm of the gradient, or use larger batches.",
                {f"{tag} mean": mean, f"{tag} highest": high, f"{tag} lowest": low},
            )
