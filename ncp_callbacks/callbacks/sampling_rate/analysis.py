"""Thin out sequences as a lower sampling rate would, and summarize how the target changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...results import FloatArray, MappingResult
from ...stats import SIZE, Estimate, ci_array
from ...stats.estimate import sd_of_sums

__all__ = ["SamplingChanges", "Thinned", "sampling_changes", "thinned"]


@dataclass(frozen=True, eq=False)
class Thinned:
    """Hold sequences of which only every k-th time step is left.

    Attributes:
        steps: ``(B, n)``, the time steps that are left; the last real one is among them.
        mask: ``(B, n)``, true at real time steps.
        means: ``(B, n, F)``, inputs averaged over each time step left and those dropped before it.
        time_delta: ``(B, n)``, their elapsed times in sum; None without.
    """

    steps: npt.NDArray[np.intp]
    mask: npt.NDArray[np.bool_]
    means: FloatArray
    time_delta: FloatArray | None


def thinned(
    inputs: FloatArray,
    time_delta: FloatArray | None,
    mask: npt.NDArray[np.bool_],
    every: int,
) -> Thinned:
    """Return every k-th time step, counted back from the last real one.

    Args:
        inputs: ``(B, T, F)``.
        time_delta: ``(B, T)``, elapsed time before each time step; None without.
        mask: ``(B, T)``, true at real time steps.
        every: ``k``.
    """
    length = mask.shape[1]
    last = length - 1 - np.argmax(mask[:, ::-1], axis=1)
    count = -(-(last + 1) // every)
    order = np.arange(int(count.max()))
    inside = order < count[:, None]
    steps = last[:, None] - (count[:, None] - 1 - order) * every
    steps = np.where(inside, steps, last[:, None])
    group = steps[..., None] - np.arange(every)
    at = np.maximum(group, 0).reshape(len(mask), -1)
    real = (group >= 0) & np.take_along_axis(mask, at, axis=1).reshape(group.shape)
    some = np.take_along_axis(inputs, at[..., None], axis=1).reshape(*group.shape, -1)
    total = np.where(real[..., None], some, 0.0).sum(axis=2)
    means = total / np.maximum(real.sum(axis=2), 1)[..., None]
    elapsed = None
    if time_delta is not None:
        times = np.take_along_axis(time_delta, at, axis=1).reshape(group.shape)
        elapsed = np.where(real, times, 0.0).sum(axis=2).astype(np.float32)
        # Padding has an elapsed time as well, which must not be 0.
        elapsed = np.where(inside, elapsed, np.take_along_axis(time_delta, steps, axis=1))
    kept = inside & np.take_along_axis(mask, steps, axis=1)
    return Thinned(steps.astype(np.intp), kept, means.astype(np.float32), elapsed)


@dataclass(frozen=True, eq=False)
class SamplingChanges(MappingResult):
    """Hold how the target changes at lower sampling rates, by way and factor.

    Attributes:
        factors: ``(K,)``, how many times fewer time steps there are.
        change: Mean absolute change of the target in SDs over sequences, ``(K,)``, by way:
            "dropped" or "merged".
        ci: ``(2, K)`` 95 % CIs over sequences, by way.
        target: Name of the target.
        sequences: Number of sequences.
        non_finite: Number of sequences skipped because of NaN or infinity.
        estimates: Changes as estimates over sequences, as in ``dropped_x2``.
    """

    _plot = "plot_sampling_rate"

    factors: tuple[int, ...]
    change: dict[str, FloatArray]
    ci: dict[str, FloatArray]
    target: str
    sequences: int
    non_finite: int
    estimates: dict[str, Estimate]


def sampling_changes(
    target_values: FloatArray,
    found: Mapping[tuple[str, int], FloatArray],
    *,
    target: str = "target",
) -> SamplingChanges | None:
    """Return the mean absolute changes of the target, in SDs of the target over sequences.

    Their squares may be those of a few sequences, so that CIs of an RMS change cover it too rarely.

    Args:
        target_values: ``(B,)``, the target of the whole sequences.
        found: ``(B,)`` targets of thinned sequences, by way and factor.
        target: Name of the target.

    Returns:
        None for fewer than two finite sequences, and where the target is equal in all of them.
    """
    finite = np.isfinite(target_values)
    for values in found.values():
        finite &= np.isfinite(values)
    y = target_values[finite].astype(np.float64)
    if len(y) < 2 or y.std() <= 1e-7 * float(np.abs(y).max()):
        return None
    centred = y - y.mean()
    estimates = {}
    for (way, factor), values in found.items():
        sizes = np.abs(values[finite] - y)
        parts = np.stack([sizes, np.ones_like(y), centred, centred**2], axis=1)
        estimates[f"{way}_x{factor}"] = Estimate.of_sums(_mean_in_sds, parts, SIZE)
    ways = dict.fromkeys(way for way, _ in found)
    factors = tuple(dict.fromkeys(factor for _, factor in found))
    each = {way: [estimates[f"{way}_x{factor}"] for factor in factors] for way in ways}
    return SamplingChanges(
        factors,
        {way: np.array([number.value for number in numbers]) for way, numbers in each.items()},
        {way: ci_array(numbers) for way, numbers in each.items()},
        target,
        len(y),
        int((~finite).sum()),
        estimates,
    )


def _mean_in_sds(sums: FloatArray) -> FloatArray:
    """Return ``mean size / SD`` from ``(N, 4)`` sums."""
    return np.asarray(sums[..., 0] / sums[..., 1] / sd_of_sums(sums[..., 1:]))
