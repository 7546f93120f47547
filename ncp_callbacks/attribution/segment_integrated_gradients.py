"""Average gradients along paths on which random segments of the sequence stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from ..target_values import Evaluate
from ._checks import checked_count, groups
from .base import AttributionMaps, AttributionMethod, PassCount, difference_of

__all__ = ["SegmentIntegratedGradients"]


@dataclass(frozen=True)
class SegmentIntegratedGradients(AttributionMethod):
    """Average gradients on the way from the baseline, while random segments keep their values.

    On the straight line of integrated gradients all inputs are scaled at once, so that most of its
    points resemble no sequence of the data. Here each point of the line has segments that stay as
    they are: some successive time steps of one feature, or of the elapsed time. An input is
    attributed the mean gradient over the points at which it moved, times input minus baseline.

    The maps are those of integrated gradients where the target is a sum of functions of one input
    each. In general they don't sum to the change of the target, because what an input adds depends
    on what is kept beside it. Segments longer than a sequence cover its whole length.

    Each input moves in at least one sample: in the last one, all those move that had been kept in
    all others.

    Attributes:
        n_samples: Number of points of the line, each with segments of its own and the cost of a
            gradient pass. They are the midpoints of equal parts of the line.
        n_segments: Number of segments at each point, which may overlap.
        min_length, max_length: Range of their lengths in time steps, uniformly distributed.
        seed: Seed of the segments.

    Raises:
        ValueError: If a number is not a whole number of at least 1, or ``max_length`` is below
            ``min_length``.

    Source: TIMING, Jang, Kim & Yang 2025 (arXiv:2506.05035), section 4. They take the left ends of
    the parts instead of the midpoints. Their ranges are 1 to 10 segments with 1 to 200 time steps
    for simulated data, and 50 segments with 10 to 48 for clinical data with 32 features.
    """

    n_samples: int = 50
    n_segments: int = 5
    min_length: int = 1
    max_length: int = 10
    seed: int = 0

    name: ClassVar[str] = "segment_integrated_gradients"
    label: ClassVar[str] = "segment-wise integrated gradients"

    def __post_init__(self) -> None:
        for name in ("n_samples", "n_segments", "min_length", "max_length"):
            checked_count(name, getattr(self, name))
        if self.max_length < self.min_length:
            raise ValueError(
                f"max_length={self.max_length} is below min_length={self.min_length}: pass at "
                f"least {self.min_length}"
            )

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> PassCount:
        """Return a gradient pass for each sample."""
        return PassCount(gradient=self.n_samples)

    def attribute(
        self,
        evaluate: Evaluate,
        inputs: FloatArray,
        time_delta: FloatArray | None,
        *,
        baseline: FloatArray,
        time_baseline: FloatArray | None,
        mask: npt.NDArray[np.bool_] | None,
    ) -> AttributionMaps:
        """Return the mean gradient over the samples in which an input moved, times its change."""
        difference, time_difference = inputs - baseline, difference_of(time_delta, time_baseline)
        batch, n_time_steps, n_features = inputs.shape
        kept = self.kept(batch, n_time_steps, n_features + (time_difference is not None))
        left = 1 - (np.arange(self.n_samples) + 0.5) / self.n_samples
        by_input, by_time = np.zeros(inputs.shape), np.zeros(inputs.shape[:2])
        for group in groups(self.n_samples, inputs.size):
            # The part of the way back to the baseline that is still taken away.
            away = left[group][:, None, None, None] * ~kept[group]
            times = None
            if time_delta is not None and time_difference is not None:
                times = time_delta - away[..., -1] * time_difference
            found = evaluate(inputs - away[..., :n_features] * difference, times, gradient=True)
            assert found.input_gradient is not None
            moved = ~kept[group]
            by_input += (found.input_gradient * moved[..., :n_features]).sum(axis=0)
            if time_difference is not None:
                assert found.time_gradient is not None
                by_time += (found.time_gradient * moved[..., -1]).sum(axis=0)
        counts = (~kept).sum(axis=0)
        return AttributionMaps(
            by_input / counts[..., :n_features] * difference,
            None if time_difference is None else by_time / counts[..., -1] * time_difference,
        )

    def kept(self, batch: int, n_time_steps: int, n_channels: int) -> npt.NDArray[np.bool_]:
        """Return what stays as it is in each sample, ``(n_samples, B, T, channels)``.

        Args:
            batch: Number of sequences; each has segments of its own.
            n_time_steps: Length of the sequences.
            n_channels: Number of features, plus 1 if elapsed times move.
        """
        rng = np.random.default_rng(self.seed)
        each = (self.n_samples, batch, self.n_segments)
        longest = min(self.max_length, n_time_steps)
        lengths = rng.integers(min(self.min_length, longest), longest + 1, each)
        starts = rng.integers(0, n_time_steps - lengths + 1)
        channels = rng.integers(0, n_channels, each)
        kept = np.zeros((self.n_samples, batch, n_time_steps, n_channels), bool)
        steps, every = np.arange(n_time_steps), np.arange(n_channels)
        for segment in range(self.n_segments):
            start, length, channel = (a[..., segment, None] for a in (starts, lengths, channels))
            inside = (steps >= start) & (steps < start + length)
            kept |= inside[..., None] & (every == channel)[..., None, :]
        kept[-1] &= ~kept[:-1].all(axis=0)
        return kept
