"""Summarize how target and loss change when one unit of a state at a time is clamped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...results import FloatArray, MappingResult
from ...stats import SHARE, SIZE, Estimate, changed_beyond_chance, ci_array

__all__ = ["UnitAblations", "unit_ablations", "unit_means"]


@dataclass(frozen=True, eq=False)
class UnitAblations(MappingResult):
    """Hold how much target and loss change when a unit is clamped to its mean.

    Attributes:
        names: ``K`` names of the units.
        change: ``(K,)``, mean absolute change of the target, in its units.
        change_ci: ``(2, K)``, 95 % CIs over sequences.
        predicted: ``(K,)``, mean absolute change that the slope of the target predicts, which is
            the attribution to the unit; None without gradients.
        loss_change: ``(K,)``, mean change of the loss; None without a loss beside the target.
        loss_ci: ``(2, K)``, 95 % CIs over sequences; None without a loss.
        needed: ``(K,)``, true for units without which the loss is larger beyond chance, corrected
            for the number of units; None without a loss.
        carrying: Effective number of units that carry the target, ``(sum c)^2 / sum c^2`` of the
            mean absolute changes ``c``: 1 if a single unit does, ``K`` if all do equally; NaN if
            nothing changes.
        slope_disagreement: Part of the whole that changes and slopes attribute to different units,
            between 0 and 1; None without gradients, or where nothing changes.
        cell: Name of the cell.
        target: Name of the target.
        sequences: Number of sequences.
        non_finite: Number of sequences skipped because of NaN or infinity.
        estimates: These numbers as estimates over sequences, by name.
    """

    _plot = "plot_unit_ablation"

    names: tuple[str, ...]
    change: FloatArray
    change_ci: FloatArray
    predicted: FloatArray | None
    loss_change: FloatArray | None
    loss_ci: FloatArray | None
    needed: npt.NDArray[np.bool_] | None
    carrying: float
    slope_disagreement: float | None
    cell: str
    target: str
    sequences: int
    non_finite: int
    estimates: dict[str, Estimate]


def unit_means(states: FloatArray, mask: npt.NDArray[np.bool_] | None = None) -> FloatArray:
    """Return the mean ``(H,)`` of each unit over sequences and real time steps.

    Args:
        states: ``(B, T, H)``; values that are not finite are skipped.
        mask: ``(B, T)``, true at real time steps; None: all are.
    """
    values = states.astype(np.float64)
    known = np.isfinite(values)
    if mask is not None:
        known &= mask[..., None]
    total = np.where(known, values, 0.0).sum(axis=(0, 1))
    return np.asarray(total / np.maximum(known.sum(axis=(0, 1)), 1))


def unit_ablations(
    names: Sequence[str],
    target_values: FloatArray,
    clamped: FloatArray,
    *,
    slopes: FloatArray | None = None,
    losses: FloatArray | None = None,
    clamped_losses: FloatArray | None = None,
    cell: str = "cell",
    target: str = "target",
) -> UnitAblations:
    """Return the summary over the sequences without NaN or infinity.

    Args:
        names: Names of the ``K`` units that were clamped.
        target_values: ``(B,)``, the target of each sequence.
        clamped: ``(K, B)``, the target with each unit clamped.
        slopes: ``(B, K)``, the change that the slope of the target predicts.
        losses: ``(B,)``, the loss of each sequence.
        clamped_losses: ``(K, B)``, the loss with each unit clamped.
        cell: Name of the cell.
        target: Name of the target.
    """
    apart = (clamped.astype(np.float64) - target_values).T
    finite = np.isfinite(apart).all(axis=1)
    for array in (slopes, None if clamped_losses is None else clamped_losses.T):
        if array is not None:
            finite &= np.isfinite(array).all(axis=1)
    change = np.abs(apart[finite])
    each = [Estimate.mean(column, SIZE) for column in change.T]
    estimates = {f"change/{name}": e for name, e in zip(names, each, strict=True)}
    carrying, disagreement, predicted = float("nan"), None, None
    if change.sum() > 0:
        many = SIZE.within(1.0, float(len(names)))
        estimates["carrying_units"] = Estimate.of_sums(_carrying, change, many)
        carrying = estimates["carrying_units"].value
    if slopes is not None:
        sizes = np.abs(slopes[finite].astype(np.float64))
        predicted = sizes.mean(axis=0) if len(sizes) else np.full(len(names), np.nan)
        if change.sum() > 0 and sizes.sum() > 0:
            both = np.stack([change, sizes], axis=1)
            estimates["slope_disagreement"] = Estimate.of_sums(_disagreement, both, SHARE)
            disagreement = estimates["slope_disagreement"].value
    loss_change = loss_ci = needed = None
    if losses is not None and clamped_losses is not None:
        before, after = losses[finite].astype(np.float64), clamped_losses[:, finite]
        rises = [Estimate.mean(now.astype(np.float64) - before) for now in after]
        estimates |= {f"loss_change/{name}": r for name, r in zip(names, rises, strict=True)}
        loss_change = np.array([rise.value for rise in rises])
        loss_ci = ci_array(rises)
        zero = Estimate.mean(np.zeros(len(before)))
        beyond = changed_beyond_chance([(zero, rise) for rise in rises])
        needed = np.array(beyond, bool) & (loss_change > 0)
    return UnitAblations(
        tuple(names),
        change.mean(axis=0) if len(change) else np.full(len(names), np.nan),
        ci_array(each),
        predicted,
        loss_change,
        loss_ci,
        needed,
        carrying,
        disagreement,
        cell,
        target,
        int(finite.sum()),
        int((~finite).sum()),
        estimates,
    )


def _carrying(sums: FloatArray) -> FloatArray:
    """Return the effective number of units of ``(N, K)`` sums."""
    # Sums of squares of very small or large changes would be 0 or infinite.
    parts = sums / sums.max(axis=-1, keepdims=True)
    return np.asarray(parts.sum(axis=-1) ** 2 / (parts**2).sum(axis=-1))


def _disagreement(sums: FloatArray) -> FloatArray:
    """Return half the L1 distance of the shares of ``(N, 2, K)`` sums."""
    shares = sums / sums.sum(axis=-1, keepdims=True)
    return np.asarray(np.abs(shares[:, 0] - shares[:, 1]).sum(axis=-1) / 2)
