"""Read trends of the training loop's numbers."""

from __future__ import annotations

import itertools

from .curve import Curve
from .facts import Facts

__all__ = ["mean_before", "quarters", "training_loss"]

_MIN_POINTS = 8


def training_loss(facts: Facts) -> tuple[str, Curve] | None:
    """Return the tag and the curve of the training loss; None if the loop logs none."""
    for tag in ("train/loss", *sorted(facts.curves)):
        if tag.startswith("train/") and tag.endswith("loss") and tag in facts.curves:
            return tag, facts.curves[tag]
    return None


def quarters(curve: Curve) -> list[float] | None:
    """Return the means of the four quarters of a curve of at least 8 finite points, or None."""
    windows = curve.finite
    if len(windows) < _MIN_POINTS:
        return None
    ends = [round(len(windows) * part / 4) for part in range(5)]
    parts = [windows[a:b] for a, b in itertools.pairwise(ends)]
    return [sum(w.mean * w.count for w in part) / sum(w.count for w in part) for part in parts]


def mean_before(curve: Curve, step: int) -> float | None:
    """Return the mean of the last window that begins at a step or before; None without one."""
    before = [w for w in curve.finite if w.first <= step]
    return before[-1].mean if before else None
