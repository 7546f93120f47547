"""Take a sample of the states of a batch, and a fingerprint of the batch.

    sample = state_sample(states, mask)           # (N, K), at most 64 states
    mark = fingerprint(inputs, time_delta, mask)  # (2, 8)
    same_batch(mark, other)                       # are both of the same sequences?

Runs may be years and versions of numpy apart, and random numbers of ``numpy.random.Generator`` may
change with these: nothing here draws from one.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from ..results import FloatArray

__all__ = ["fingerprint", "same_batch", "sample_places", "spread_units", "state_sample"]

_SAMPLES = 64
_PROJECTIONS = 8
# Fingerprints are about 1 in size. Standardised inputs that are rounded to bfloat16 differ by about
# a tenth of this, batches with another sequence among a hundred by some ten times it.
_TOLERANCE = 0.01


def sample_places(real: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return ``(N,)`` places in the flattened ``(B, T)`` mask: 64 real time steps, or all if fewer.

    There is one place in each of 64 equal parts of all real time steps, at a point that differs
    from part to part. So long and short sequences, early and late time steps are represented. The
    places depend on the mask alone.
    """
    places = np.flatnonzero(real)
    count = min(_SAMPLES, len(places))
    part = np.arange(count + 1)
    edges = part * len(places) // max(count, 1)
    golden = part[:-1] * (math.sqrt(5) - 1) / 2 % 1
    return places[edges[:-1] + np.floor(golden * np.diff(edges)).astype(np.intp)]


def spread_units(units: int, max_units: int) -> npt.NDArray[np.intp]:
    """Return ``(min(units, max_units),)`` units in order, one from each of equal parts.

    The point within a part differs from part to part, so that a pattern in the units' order does no
    harm. It does not differ between calls.

    Args:
        units: Number of units.
        max_units: Largest number of units to return.
    """
    count = min(units, max_units)
    part = np.arange(count + 1)
    edges = part * units // count
    golden = part[:-1] * (math.sqrt(5) - 1) / 2 % 1
    return edges[:-1] + np.floor(golden * np.diff(edges)).astype(np.intp)


def state_sample(states: FloatArray, mask: npt.NDArray[np.bool_] | None = None) -> FloatArray:
    """Return ``(N, K)`` states at :func:`sample_places`, for measures that rotation doesn't change.

    With at most ``N`` units the states stay as they are, ``K = H``. With more units they are
    rotated to ``K = N`` axes that hold them all; the scalar products of states are kept.

    Args:
        states: ``(B, T, H)``; states that are not finite become NaN as a whole.
        mask: ``(B, T)``, true at real time steps.
    """
    batch, steps, units = states.shape
    real = np.ones((batch, steps), bool) if mask is None else np.asarray(mask, bool)
    sample = states.reshape(-1, units)[sample_places(real)].astype(np.float64)
    finite = np.isfinite(sample).all(axis=1)
    sample[~finite] = 0.0
    if units > len(sample):
        # From the small Gram matrix, whose rounding errors are far below those of float32 states.
        values, vectors = np.linalg.eigh(sample @ sample.T)
        sample = (vectors * np.sqrt(np.maximum(values, 0.0)))[:, ::-1]
    sample[~finite] = np.nan
    return sample


def fingerprint(
    inputs: FloatArray,
    time_delta: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Return ``(2, 8)`` fixed random projections of a batch.

    The first row is of the inputs and the mask, the second of the elapsed times. Each feature, and
    the elapsed times, first get mean 0 and SD 1 over real time steps, so that batches that differ
    in units or precision are the same sequences. Padding counts as 0. Without elapsed times the
    second row is NaN.

    Args:
        inputs: ``(B, T, F)``, floating, or tokens ``(B, T, 1)``.
        time_delta: ``(B, T)``.
        mask: ``(B, T)``, true at real time steps.
    """
    batch, steps, features = inputs.shape
    real = np.ones((batch, steps), bool) if mask is None else np.asarray(mask, bool)
    columns = np.concatenate([_standardised(inputs, real), real[..., None]], axis=2)
    # One more for the mask, and one for elapsed times.
    by_sequence, by_time_step, by_column = np.split(
        _weights(batch + steps + features + 2), [batch, batch + steps], axis=1
    )

    def projected(values: FloatArray, along: FloatArray) -> FloatArray:
        # A product of weights for each axis, or there would be as many weights as inputs.
        by_place = (values @ along.T) * by_time_step.T
        total: FloatArray = (by_place.sum(axis=1) * by_sequence.T).sum(axis=0)
        return total / math.sqrt(values.size)

    marks = np.full((2, _PROJECTIONS), np.nan)
    marks[0] = projected(columns, by_column[:, :-1])
    if time_delta is not None:
        marks[1] = projected(_standardised(time_delta[..., None], real), by_column[:, -1:])
    return marks


def same_batch(a: FloatArray, b: FloatArray) -> bool:
    """Return whether two fingerprints are of the same sequences.

    Elapsed times must agree where both have any, since a model that takes none may get none.
    """
    if a.shape != b.shape or a.shape != (2, _PROJECTIONS):
        return False
    apart = np.abs(np.asarray(a, np.float64) - b).max(axis=1)
    return bool(apart[0] <= _TOLERANCE and not apart[1] > _TOLERANCE)


@functools.lru_cache(maxsize=8)
def _weights(count: int) -> FloatArray:
    """Return ``(8, count)`` fixed weights of either sign, between 0.5 and 1.5 in size."""
    raw = np.random.PCG64(0).random_raw(_PROJECTIONS * count)  # whose stream never changes
    size = 0.5 + (raw >> np.uint64(11)) / 2.0**53
    weights = np.where(raw & np.uint64(1), size, -size).reshape(_PROJECTIONS, count)
    weights.flags.writeable = False
    return weights


def _standardised(values: FloatArray, real: npt.NDArray[np.bool_]) -> FloatArray:
    """Return ``(B, T, F)`` with mean 0 and SD 1 over real time steps; 0 where unknown."""
    use = real[..., None] & np.isfinite(values)
    count = np.maximum(use.sum(axis=(0, 1)), 1)
    x = np.where(use, values, 0.0).astype(np.float64)
    largest = np.abs(x).max(axis=(0, 1))
    x = np.where(use, x - x.sum(axis=(0, 1)) / count, 0.0)
    spread = np.sqrt((x**2).sum(axis=(0, 1)) / count)
    # Below this, differences are rounding errors of float32.
    constant = spread <= 1e-6 * largest
    return np.where(constant, 0.0, x / np.where(constant, 1.0, spread))
