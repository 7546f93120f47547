"""Read trends of the training loop's numbers."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from .curve import Curve, Window
from .facts import Facts

__all__ = ["Fall", "fall_of", "mean_before", "quarters", "training_loss"]

_MIN_POINTS = 8
_MEDIAN = 0.954  # Median of absolute differences of standard normal values.


class Fall(NamedTuple):
    """Hold how far a curve has fallen from its first quarter to its last.

    Attributes:
        first, last: Means of the two quarters.
        is_shown: True if the mean has fallen by 2 % or more, and beyond chance: at most two of a
            hundred curves that don't fall have such a fall.
    """

    first: float
    last: float
    is_shown: bool


def training_loss(facts: Facts) -> tuple[str, Curve] | None:
    """Return the tag and the curve of the training loss; None if the loop logs none."""
    for tag in ("train/loss", *sorted(facts.curves)):
        if tag.startswith("train/") and tag.endswith("loss") and tag in facts.curves:
            return tag, facts.curves[tag]
    return None


def quarters(curve: Curve) -> list[float] | None:
    """Return the means of the four quarters of a curve of at least 8 finite points, or None."""
    parts = _parts(curve)
    return None if parts is None else [_mean(part) for part in parts]


def fall_of(curve: Curve) -> Fall | None:
    """Return how far a curve of at least 8 finite points has fallen, or None.

    The noise of a point comes from differences of consecutive points, which a trend hardly changes:
    their root mean square (von Neumann 1941), or, for a curve that falls steeply and then stays,
    their median. A difference of quarters that is 2.4 + 5 / n standard errors by the first, or 6 by
    the second, is beyond chance; these are quantiles of simulated normal and skewed noise.
    """
    parts = _parts(curve)
    if parts is None:
        return None
    first, last = _mean(parts[0]), _mean(parts[-1])
    points = [window.mean for window in curve.finite]
    steps = sorted(abs(b - a) for a, b in itertools.pairwise(points))
    error = math.sqrt(1 / len(parts[0]) + 1 / len(parts[-1]))
    largest = steps[-1] or 1.0  # So that squares can't overflow.
    root = largest * math.sqrt(sum((s / largest) ** 2 for s in steps) / len(steps) / 2)
    median = steps[len(steps) // 2] / _MEDIAN
    fall = first - last
    shown = fall > (2.4 + 5 / len(points)) * root * error or fall > 6 * median * error
    return Fall(first, last, shown and fall > 0.02 * abs(first))


def _parts(curve: Curve) -> list[tuple[Window, ...]] | None:
    windows = curve.finite
    if len(windows) < _MIN_POINTS:
        return None
    ends = [round(len(windows) * part / 4) for part in range(5)]
    return [windows[a:b] for a, b in itertools.pairwise(ends)]


def _mean(windows: tuple[Window, ...]) -> float:
    return sum(w.mean * w.count for w in windows) / sum(w.count for w in windows)


def mean_before(curve: Curve, step: int) -> float | None:
    """Return the mean of the last window that begins at a step or before; None without one."""
    before = [w for w in curve.finite if w.first <= step]
    return before[-1].mean if before else None
