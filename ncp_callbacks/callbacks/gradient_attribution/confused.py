"""Compare what two classes rest on where they are confused, and where they are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...attribution import Attribution
from ...attribution.removal import MIN_DIFFERENCE, time_blocks
from ...results import FloatArray
from ...stats import (
    MIN_SEQUENCES_FOR_CI,
    SHARE,
    Estimate,
    ci_array,
    confusion_matrix,
    differ_beyond_chance,
    most_confused,
)

__all__ = ["Confused", "confused_shares"]

_BLOCKS = 4  # As many as FeatureRemoval has.


@dataclass(frozen=True)
class Confused:
    """Hold what the target rests on in the sequences of two classes.

    Attributes:
        classes: The two classes that are taken for each other most often.
        confused: Number of sequences of one of them that are taken for the other.
        right: Number of sequences of the two that are predicted right.
        shares: ``(9, F + K)``, for each feature, and then for each block of time: its first and
            last time step, -1 for features; its share in the attribution of a sequence, mean over
            the confused ones, and the ends of the 95 % CI; these of the right ones; and 1 where the
            two shares differ by 10 % of the whole or more, and beyond chance. None where there are
            fewer than 16 of either.
    """

    classes: tuple[int, int]
    confused: int
    right: int
    shares: FloatArray | None


def confused_shares(
    found: Attribution, classes: npt.NDArray[np.integer], count: int, *, padded: bool
) -> Confused | None:
    """Return what the target rests on in the sequences of the two classes confused most.

    Only sequences of the two classes are compared, since classes rest on different features.

    Args:
        found: The attribution of the sequences.
        classes: ``(B, 2)``, their true and predicted classes.
        count: Number of classes.
        padded: True if there is padding: blocks of time are then not compared, because sequences
            end in different ones.

    Returns:
        None if no class is taken for another.
    """
    known = np.isfinite(found.inputs).all(axis=(1, 2))
    if found.time_delta is not None:
        known &= np.isfinite(found.time_delta).all(axis=1)
    pair = most_confused(confusion_matrix(classes[known], count))
    if pair is None:
        return None
    of_pair = known & np.isin(classes, pair).all(axis=1)
    right = of_pair & (classes[:, 0] == classes[:, 1])
    wrong = of_pair & ~right
    numbers = int(wrong.sum()), int(right.sum())
    if min(numbers) < MIN_SEQUENCES_FOR_CI:
        return Confused(pair, *numbers, None)
    blocks = () if padded else time_blocks(found.inputs.shape[1], _BLOCKS)
    places = np.full((2, found.inputs.shape[2]), -1)
    if blocks:
        places = np.concatenate([places, np.array(blocks).T], axis=1)
    columns = [_compared(view[wrong], view[right]) for view in _views(found, blocks)]
    shares = np.concatenate([part for part, _ in columns], axis=1)
    pairs = [pair for _, part in columns for pair in part]
    differ = np.array(differ_beyond_chance(pairs)) & (
        np.abs(shares[0] - shares[3]) >= MIN_DIFFERENCE
    )
    return Confused(pair, *numbers, np.concatenate([places, shares, differ[None]]))


def _views(found: Attribution, blocks: tuple[tuple[int, int], ...]) -> list[FloatArray]:
    """Return contributions ``(B, F)`` of features, and ``(B, K)`` of blocks, if there are two."""
    if found.method.is_slope:  # Slopes have no sum.
        size = np.abs(found.inputs).astype(np.float64)
        by_block = [size[:, first : last + 1].sum(axis=(1, 2)) for first, last in blocks]
        views = [size.sum(axis=1), *([np.stack(by_block, axis=1)] if blocks else [])]
    else:
        views = [np.asarray(found.net_strength()[0], np.float64)]
        views += [found.block_strength(blocks)] if blocks else []
    return views


def _compared(
    wrong: FloatArray, right: FloatArray
) -> tuple[FloatArray, list[tuple[Estimate, Estimate]]]:
    """Return shares with their CIs ``(6, N)`` of both groups, and estimates to compare.

    They are means of the shares in each sequence. Of contributions that are pooled, a few sequences
    of which the model is very sure would make up most.
    """
    rows, sides = [], []
    for parts in (wrong, right):
        whole = parts.sum(axis=1, keepdims=True)
        shares = (parts / np.where(whole > 0, whole, 1.0))[whole[:, 0] > 0]
        ones = np.ones(len(shares))  # All means at once, as ratios.
        shown = Estimate.ratios(shares, ones, SHARE)
        rows += [np.array([[e.value for e in shown]]), ci_array(shown)]
        # Of a share that is 0 in all sequences, the logit tells nothing.
        sides.append(Estimate.ratios(shares, ones))
    return np.concatenate(rows), list(zip(*sides, strict=True))
