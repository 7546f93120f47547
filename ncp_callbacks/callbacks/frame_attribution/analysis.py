"""Summarize what is attributed to the pixels of frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...results import FloatArray
from ...stats import SHARE, Estimate

__all__ = ["half_area", "most_important_steps", "pixel_maps", "region_share"]


def pixel_maps(values: FloatArray, channel_axis: int | None) -> FloatArray:
    """Return one number for each pixel, the sum over its channels.

    Args:
        values: ``(..., H, W)``, or with a channel axis anywhere among the last three.
        channel_axis: The channel axis, 0 to 2, counted from the first axis of a frame; None without
            channels.

    Returns:
        ``(..., H, W)``.
    """
    if channel_axis is None:
        return values
    summed: FloatArray = values.sum(axis=channel_axis - 3)
    return summed


def half_area(maps: FloatArray, mask: npt.NDArray[np.bool_] | None = None) -> FloatArray:
    """Return the smallest share of pixels that holds half of each sequence's absolute map.

    It is 0.5 if all pixels count equally, and near 0 if a few count.

    Args:
        maps: ``(B, T, H, W)``.
        mask: ``(B, T)``, true at real time steps; None if all are real.

    Returns:
        ``(B,)``; NaN for a map of zeros.
    """
    shares = np.full(len(maps), np.nan)
    for i, own in enumerate(maps):
        size = np.abs(own if mask is None else own[mask[i]], dtype=np.float64).ravel()
        total = size.sum()
        if total > 0:
            held = np.cumsum(np.sort(size)[::-1])
            shares[i] = (np.searchsorted(held, total / 2) + 1) / size.size
    return shares


def region_share(
    maps: FloatArray, region: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_] | None = None
) -> tuple[Estimate, float]:
    """Return the share of the absolute maps in a region, and the region's share of the pixels.

    Args:
        maps: ``(B, T, H, W)``.
        region: ``(B, T, H, W)``, true for the pixels of the region.
        mask: ``(B, T)``, true at real time steps; None if all are real.

    Returns:
        The share as an estimate over sequences, and the mean share of the area.
    """
    real = np.ones(maps.shape[:2], bool) if mask is None else mask
    size = np.where(real[..., None, None], np.abs(maps), 0.0).astype(np.float64)
    inside = (size * region).sum(axis=(1, 2, 3))
    return Estimate.ratio(inside, size.sum(axis=(1, 2, 3)), SHARE), float(region[real].mean())


def most_important_steps(
    maps: FloatArray, real: npt.NDArray[np.bool_], count: int
) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """Return the time steps with the largest absolute maps, in order of time, and their shares.

    Args:
        maps: ``(T, H, W)``, of one sequence.
        real: ``(T,)``, true at real time steps.
        count: Largest number of time steps.

    Returns:
        ``(K,)`` indices, and ``(K,)`` shares in the absolute map of the sequence; 0 for a map of
        zeros.
    """
    size = np.where(real, np.abs(maps, dtype=np.float64).sum(axis=(1, 2)), -1.0)
    order = np.argsort(-size, kind="stable")[: min(count, int(real.sum()))]
    steps = np.sort(order)
    total = size[real].sum()
    return steps, size[steps] / total if total > 0 else np.zeros(len(steps))
