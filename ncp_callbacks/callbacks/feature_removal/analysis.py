"""Summarize removals over sequences, beside an attribution of the same sequences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...attribution import Agreement, Removal
from ...results import FloatArray, MappingResult
from ...stats import SHARE, SIZE, Estimate, ci_array

__all__ = ["RemovalShares", "removal_shares"]


@dataclass(frozen=True, eq=False)
class RemovalShares(MappingResult):
    """Hold how much the target changes when parts of sequences are those of other sequences.

    Attributes:
        names: Names of the features, or groups of them, that were removed.
        share: ``(G,)``, share of each in the sum of the mean absolute changes of the target; all 0
            if nothing changed.
        share_ci: ``(2, G)``, 95 % CIs over sequences.
        strength: Sum of the mean absolute changes over features, in units of the target.
        time_share: Share of elapsed times in the changes by features and elapsed times; None where
            the model takes none.
        blocks: First and last time step of each block of time.
        block_change: ``(K,)``, mean absolute change of the target when a block is replaced, over
            the sequences that have it, in units of the target.
        block_ci: ``(2, K)``, 95 % CIs over sequences.
        by_block: How far an attribution and removal agree on blocks of time; None without an
            attribution, or with fewer than two blocks.
        attributed: ``(G,)``, shares of the same features in an attribution; None without one.
        disputed: Indices of the features on which attribution and removal disagree.
        method: Name of the attribution method in running text.
        target: Name of the target.
        sequences: Number of sequences.
        non_finite: Number of sequences skipped because of NaN or infinity.
        estimates: Strength, shares and time share as estimates over sequences, by name.
    """

    _plot = "plot_feature_removal"

    names: tuple[str, ...]
    share: FloatArray
    share_ci: FloatArray
    strength: float
    time_share: float | None
    blocks: tuple[tuple[int, int], ...]
    block_change: FloatArray
    block_ci: FloatArray
    by_block: Agreement | None
    attributed: FloatArray | None
    disputed: tuple[int, ...]
    method: str
    target: str
    sequences: int
    non_finite: int
    estimates: dict[str, Estimate]


def removal_shares(
    removal: Removal,
    agreement: Agreement | None = None,
    by_block: Agreement | None = None,
    *,
    method: str = "",
    target: str = "target",
) -> RemovalShares:
    """Return the summary of removals over the sequences without NaN or infinity.

    Args:
        removal: The removals.
        agreement: How far an attribution agrees with them; None without an attribution.
        by_block: How far it agrees with the removal of blocks of time; None without one.
        method: Name of the attribution method.
        target: Name of the target.
    """
    finite = removal.finite
    parts = removal.by_feature[finite]
    whole = parts.sum(axis=1)
    total = float(whole.mean()) if len(whole) else 0.0
    estimates: dict[str, Estimate] = {}
    share, share_ci = np.zeros(len(removal.names)), np.full((2, len(removal.names)), np.nan)
    if total > 0:
        estimates["strength"] = Estimate.mean(whole, SIZE)
        shares = Estimate.ratios(parts, whole, SHARE)
        estimates |= {f"share/{n}": s for n, s in zip(removal.names, shares, strict=True)}
        share, share_ci = parts.sum(axis=0) / whole.sum(), ci_array(shares)
    time_share = None
    if removal.by_time is not None:
        own = removal.by_time[finite]
        if len(own) and (own.sum() + whole.sum()) > 0:
            estimates["time_share"] = Estimate.ratio(own, own + whole, SHARE)
            time_share = estimates["time_share"].value
    changes = [_of_block(column) for column in removal.by_block[finite].T]
    count = len(removal.names)
    attributed = None if agreement is None else _shares(agreement.attributed[:count])
    disputed = () if agreement is None else tuple(i for i in agreement.disputed if i < count)
    return RemovalShares(
        removal.names,
        share,
        share_ci,
        total,
        time_share,
        removal.blocks,
        np.array([change.value for change in changes]),
        ci_array(changes) if changes else np.empty((2, 0)),
        by_block,
        attributed,
        disputed,
        method,
        target,
        int(finite.sum()),
        int((~finite).sum()),
        estimates,
    )


def _shares(values: npt.NDArray[np.floating]) -> FloatArray:
    """Return values as shares of their sum; all 0 if the sum is 0."""
    total = values.sum()
    return values / total if total > 0 else np.zeros_like(values)


def _of_block(change: FloatArray) -> Estimate:
    """Return the mean change of the sequences that have the block."""
    known = change[np.isfinite(change)]
    return Estimate.mean(known, SIZE) if len(known) else Estimate(np.nan, np.empty(0), SIZE)
