"""Replace whole features, elapsed times and blocks of time by those of other sequences.

It needs forward passes only, stays valid where the target jumps, and what is put in place of a
feature is a course that the feature really took. So it checks attributions by gradients, which know
nothing of it::

    removal = removal_of(observation, feature_groups(observation))
    agreement = compare(attribution, removal)          # .disagreement, .disputed

Source: replacing a feature by that of other sequences is permutation importance (Breiman 2001;
Fisher, Rudin & Dominici 2019, arXiv:1801.01489), here of the target instead of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..observation import EvaluatedBatch
from ..results import FloatArray, Indices
from ..stats import SHARE, Estimate, changed_beyond_chance, ci_array
from .base import Attribution

__all__ = [
    "ELAPSED_TIME",
    "Agreement",
    "FeatureGroup",
    "Removal",
    "compare",
    "compare_blocks",
    "feature_groups",
    "removal_of",
    "time_blocks",
]

ELAPSED_TIME = "elapsed time"
# More features are removed in groups, so that the number of passes is bounded.
MAX_GROUPS = 12
# Shares that differ by less are taken to agree: a feature whose effects cancel over time has less
# by removal than by a map of absolute values.
MIN_DIFFERENCE = 0.10


@dataclass(frozen=True, eq=False)
class FeatureGroup:
    """Name some features that are removed together.

    Attributes:
        name: Name of the feature, or "other".
        features: Indices of the features.
    """

    name: str
    features: Indices


@dataclass(frozen=True, eq=False)
class Removal:
    """Hold how much the target changes when something is replaced by that of other sequences.

    Changes are absolute, means over the other sequences, in units of the target.

    Attributes:
        groups: The features that were removed together.
        by_feature: ``(B, G)``.
        by_time: ``(B,)``, elapsed times replaced; None where the model takes none.
        blocks: First and last time step of each block.
        by_block: ``(B, K)``, all features and elapsed times within a block replaced; NaN in
            sequences that end before the block.
    """

    groups: tuple[FeatureGroup, ...]
    by_feature: FloatArray
    by_time: FloatArray | None
    blocks: tuple[tuple[int, int], ...]
    by_block: FloatArray

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the groups."""
        return tuple(group.name for group in self.groups)

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Return ``(B,)``, true for sequences without NaN or infinity."""
        all_parts = [self.by_feature]
        if self.by_time is not None:
            all_parts.append(self.by_time[:, None])
        found: npt.NDArray[np.bool_] = np.isfinite(np.concatenate(all_parts, axis=1)).all(axis=1)
        return found


@dataclass(frozen=True, eq=False)
class Agreement:
    """Hold two views of what the target depends on: an attribution, and removal.

    Attributes:
        names: Names of the features, or groups of them; "elapsed time" is last where both views
            have it. Or names of the blocks of time.
        attributed: ``(G,)``, share of each in the attribution.
        removed: ``(G,)``, share of each in the changes of the target by removal.
        cis: ``(4, G)``, ends of the 95 % CIs of ``attributed``, and of those of ``removed``.
        disagreement: Half the sum of absolute differences of the shares: the part of the whole that
            the two views attribute to different features. 0 if they agree, 1 if they share nothing.
            Chance makes it larger, so that CIs of few sequences cover the truth too rarely.
        disputed: Indices of features whose shares differ by at least 10 % of the whole and beyond
            chance, largest difference first.
    """

    names: tuple[str, ...]
    attributed: FloatArray
    removed: FloatArray
    cis: FloatArray
    disagreement: Estimate
    disputed: tuple[int, ...]


def feature_groups(
    observation: EvaluatedBatch, alone: Sequence[str] | None = None
) -> tuple[FeatureGroup, ...]:
    """Return the features to remove one by one, and the others as one group.

    Args:
        observation: The observation.
        alone: Names of the features to remove alone; None for all, or the first 11 of more than 12.
    """
    names = list(observation.held_out.feature_names)
    if alone is None:
        alone = names if len(names) <= MAX_GROUPS else names[: MAX_GROUPS - 1]
    groups = [FeatureGroup(name, np.array([names.index(name)])) for name in alone]
    others = np.array([i for i, name in enumerate(names) if name not in set(alone)], np.intp)
    if others.size:
        groups.append(FeatureGroup("other" if "other" not in names else "other features", others))
    return tuple(groups)


def time_blocks(n_time_steps: int, count: int) -> tuple[tuple[int, int], ...]:
    """Return first and last time step of blocks of nearly equal length, at most ``count``."""
    parts = np.array_split(np.arange(n_time_steps), min(count, n_time_steps))
    return tuple((int(part[0]), int(part[-1])) for part in parts)


def removal_of(
    observation: EvaluatedBatch,
    groups: Sequence[FeatureGroup],
    *,
    n_blocks: int = 0,
    n_samples: int = 1,
) -> Removal:
    """Return how much the target changes when parts of sequences are those of others.

    It costs ``n_samples`` forward passes for each group, block and the elapsed times; declare
    :attr:`.Need.REMOVALS`.

    Args:
        observation: The observation.
        groups: Features to remove together.
        n_blocks: Number of blocks of time; 0 for none.
        n_samples: Number of other sequences.
    """
    held_out, (steps, columns) = observation.held_out, observation.inputs.shape[1:]
    feature_of = held_out.feature_of_columns(columns)
    blocks = time_blocks(steps, n_blocks) if n_blocks else ()
    times = observation.takes_time and observation.time_delta is not None
    removed = observation.extra_passes.removed
    # Blocks apart, because callbacks that want none share the passes of features.
    parts = [np.flatnonzero(np.isin(feature_of, group.features)) for group in groups]
    targets = removed(parts, times=times, n_samples=n_samples)
    change = _change(targets, observation.target_values)
    by_block: FloatArray = np.empty((len(change), 0))
    if blocks:
        targets = removed((), blocks=blocks, n_samples=n_samples)
        by_block = _change(targets, observation.target_values)
    if observation.mask is not None and blocks:
        there = [observation.mask[:, first : last + 1].any(axis=1) for first, last in blocks]
        by_block = np.where(np.stack(there, axis=1), by_block, np.nan)
    by_time = change[:, -1] if times else None
    return Removal(tuple(groups), change[:, : len(groups)], by_time, blocks, by_block)


def _change(targets: FloatArray, own: FloatArray) -> FloatArray:
    """Return ``(B, K)``, mean absolute changes from the targets ``(n_samples, K, B)``."""
    with np.errstate(invalid="ignore", over="ignore"):
        found: FloatArray = np.abs(targets.astype(np.float64) - own).mean(axis=0).T
    return found


def compare(attribution: Attribution, removal: Removal) -> Agreement | None:
    """Return how far an attribution and removal agree on what the target depends on.

    Args:
        attribution: The attribution of the same sequences, in units of the target.
        removal: The removal of features.

    Returns:
        None if the attribution is in slopes, or one of the views has no finite sequence, or nothing
        but zeros.
    """
    if attribution.method.is_slope:
        return None
    by_feature, by_time = attribution.net_strength()
    finite = removal.finite & np.isfinite(by_feature).all(axis=1)
    views = [
        np.stack([by_feature[:, group.features].sum(axis=1) for group in removal.groups], axis=1),
        removal.by_feature,
    ]
    names = removal.names
    if by_time is not None and removal.by_time is not None:
        finite &= np.isfinite(by_time)
        views = [
            np.column_stack(pair) for pair in zip(views, (by_time, removal.by_time), strict=True)
        ]
        names = (*names, ELAPSED_TIME)
    first, second = (view[finite] for view in views)
    return _agreement(names, first, second)


def compare_blocks(attribution: Attribution, removal: Removal) -> Agreement | None:
    """Return how far an attribution and removal agree on which blocks of time the target needs.

    The attribution of a block is that of its inputs and elapsed times together, since removal
    replaces them together.

    Args:
        attribution: The attribution of the same sequences, in units of the target.
        removal: The removal of blocks of time.

    Returns:
        None as for :func:`compare`, and with fewer than two blocks.
    """
    if attribution.method.is_slope or len(removal.blocks) < 2:
        return None
    first = attribution.block_strength(removal.blocks)
    # A sequence that ends before a block has no change there; one with no finite change is skipped.
    missing = np.isnan(removal.by_block)
    second = np.where(missing, 0.0, removal.by_block)
    finite = removal.finite & np.isfinite(first).all(axis=1)
    finite &= np.isfinite(second).all(axis=1) & ~(missing & (first != 0)).any(axis=1)
    names = tuple(f"time steps {a}–{b}" if b > a else f"time step {a}" for a, b in removal.blocks)
    return _agreement(names, first[finite], second[finite])


def _agreement(names: tuple[str, ...], first: FloatArray, second: FloatArray) -> Agreement | None:
    """Return how far two views ``(B, G)`` agree; None if one has no sequence or only zeros."""
    if not len(first) or not first.sum() > 0 or not second.sum() > 0:
        return None
    attributed, removed = (Estimate.ratios(v, v.sum(axis=1), SHARE) for v in (first, second))
    pairs = list(zip(attributed, removed, strict=True))
    differences = np.array([own.value - other.value for own, other in pairs])
    beyond = np.array(changed_beyond_chance(pairs)) & (np.abs(differences) >= MIN_DIFFERENCE)
    order = np.argsort(-np.abs(differences), kind="stable")
    return Agreement(
        names,
        first.sum(axis=0) / first.sum(),
        second.sum(axis=0) / second.sum(),
        np.concatenate([ci_array(attributed), ci_array(removed)]),
        Estimate.of_sums(
            _disagreement,
            np.stack([first, second], axis=1),
            SHARE,
            weights=first.sum(axis=1) / first.sum() + second.sum(axis=1) / second.sum(),
        ),
        tuple(int(i) for i in order if beyond[i]),
    )


def _disagreement(sums: FloatArray) -> FloatArray:
    """Return half the L1 distance of the shares of ``(N, 2, G)`` sums."""
    shares = sums / sums.sum(axis=-1, keepdims=True)
    return np.asarray(np.abs(shares[:, 0] - shares[:, 1]).sum(axis=-1) / 2)
