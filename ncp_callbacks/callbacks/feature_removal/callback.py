"""Log how much the target changes when features and blocks of time are replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ...attribution import (
    DEFAULT_METHOD,
    Agreement,
    Attribution,
    AttributionMethod,
    compare,
    compare_blocks,
    feature_groups,
    removal_of,
)
from ...attribution.compute import Attributor, importance_of
from ...callback import (
    AxisLimit,
    Callback,
    PairedChanges,
    as_ci,
    ci_caveat,
    ci_suffix,
    non_finite_count,
    scalar_with_ci,
    small_batch_note,
    whole_number,
)
from ...model import NotApplicable, TargetLike
from ...observation import Need, Observation
from ...records import Array, Figure, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ..feature_curves import FeatureCurves, shares_array
from .analysis import RemovalShares, removal_shares
from .plot import plot_feature_removal

__all__ = ["FeatureRemoval"]

_MAX_BLOCKS = 16

_SCALARS = {
    "strength": "Mean absolute change of the {target} when a feature is replaced by that of "
    "another held-out sequence, summed over features; in units of the target",
    "time_share": "Share of elapsed times in the changes of the {target} by replacing features or "
    "elapsed times: 0 if only what was measured counts, 1 if only when it was measured counts",
    "sequences": "Held-out sequences analysed",
}


class FeatureRemoval(Callback):
    """Measure how much the target changes when features are replaced by those of other sequences.

    It needs forward passes only, and stays right where the target jumps or has levelled off, where
    gradients mislead. So it is an independent check of :class:`GradientAttribution`, whose shares
    its picture shows beside its own. Features that replace each other, as copies do, have small
    shares by removal: the model gets along without one of them. Effects of a feature that cancel
    over time are not counted either.

    It costs ``n_samples`` forward passes for each feature, for the elapsed times and for each block
    of time, and shares those of features with :class:`GradientAttribution`. Of more than 12
    features, the 11 that the attribution finds strongest at the first snapshot are replaced alone,
    and the others together.

    ================================= ====== ======================================================
    Tag                               Record What
    ================================= ====== ======================================================
    ``removal/shares``                image  shares of features beside those of the attribution;
                                             change of the target by block of time
    ``removal/strength``              scalar sum over features of the mean absolute change
    ``removal/time_share``            scalar share of elapsed times in the changes by features and
                                             elapsed times
    ``removal/strength_change``       scalar relative change of the strength since the previous
                                             snapshot, paired on equal sequences
    ``removal/numbers_changed``       scalar number of strength and shares that changed beyond
                                             chance
    ``removal/sequences``             scalar number of sequences analysed
    ``removal/nonfinite``             scalar sequences skipped because of NaN or infinity
    ``removal_share/<feature>``       scalar share of a feature in the changes
    ``_ncp/removal_shares``           array  ``(F, 3)``, share of each feature, and the ends of its
                                             CI
    ``_ncp/removal_blocks``           array  ``(3, K)``: first and last time step of each block, and
                                             mean absolute change when it is replaced
    ``_ncp/removal_block_shares``     array  ``(7, K)``: share of each block in the attribution, and
                                             the ends of its CI; these by removal; and 1 where the
                                             two differ by 10 % of the whole or more, and beyond
                                             chance
    ================================= ====== ======================================================

    With a target other than the prediction at the last time step, ``removal`` is followed by its
    name, as in ``removal_loss/shares``. Strength and shares come with 95 % CIs over sequences,
    which are unreliable with fewer than 16 sequences.

    Args:
        features: Names of the features to replace alone, at most 12; the others are replaced
            together. None for all, or, of more than 12, the 11 strongest in the attribution at the
            first snapshot.
        method: Attribution method whose shares are drawn beside; None for none. See
            :class:`GradientAttribution`.
        n_blocks: Number of blocks of time, at most 16; 0 for none.
        n_samples: Number of other sequences that each part is taken from.
        every, name, max_sequences, target: See :class:`Callback`.

    Raises:
        ValueError, TypeError: If an argument is invalid.

    Source: permutation importance (Breiman 2001; Fisher, Rudin & Dominici 2019, arXiv:1801.01489),
    here of the target instead of the loss.
    """

    default_name = "removal"

    def __init__(
        self,
        *,
        features: Sequence[str] | None = None,
        method: str | AttributionMethod | None = DEFAULT_METHOD,
        n_blocks: int = 4,
        n_samples: int = 1,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
        target: TargetLike | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences, target=target)
        self._curves = self.keep("curves", FeatureCurves(features))
        self._attributor = None if method is None else Attributor(method)
        self.needs = frozenset({Need.REMOVALS})
        if self._attributor is not None:
            self.needs |= self._attributor.needs
        self.n_blocks = whole_number("n_blocks", n_blocks, 0)
        if self.n_blocks > _MAX_BLOCKS:
            raise ValueError(f"n_blocks={n_blocks}: pass at most {_MAX_BLOCKS}")
        self.n_samples = whole_number("n_samples", n_samples, 1)
        self._limit = self.keep("limit", AxisLimit())
        self._changes = self.keep("changes", PairedChanges())

    @property
    def conditions(self) -> str:
        """Return how many other sequences parts are taken from."""
        return f"{self.n_samples} other sequence{'s' * (self.n_samples != 1)}"

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        group = self.name + observation.target_slug
        attribution = _attribution(self._attributor, observation)
        removal = removal_of(
            observation,
            feature_groups(observation, self._curves.of(*_strengths(observation, attribution))),
            n_blocks=self.n_blocks,
            n_samples=self.n_samples,
        )
        result = removal_shares(
            removal,
            None if attribution is None else compare(attribution, removal),
            None if attribution is None else compare_blocks(attribution, removal),
            method="" if attribution is None else attribution.method.label,
            target=observation.target,
        )
        if result.sequences:
            limit = self._limit.covering(float(np.nan_to_num(result.block_change).max(initial=0.0)))
            yield _picture(result, group, {"limit": limit, "step": observation.step})
            yield from _numbers(result, group)
            yield from small_batch_note(observation)
            yield from self._changes.compare(group, result.estimates, observation, "strength")
            yield shares_array(group, result.names, result.share, result.share_ci)
            blocks = np.array(result.blocks, np.float64).reshape(-1, 2)
            yield Array(f"_ncp/{group}_blocks", np.column_stack([blocks, result.block_change]).T)
            if result.by_block is not None:
                yield Array(f"_ncp/{group}_block_shares", _block_shares(result.by_block))
        yield from non_finite_count(
            group, result.non_finite, "sequences", "their target had NaN or infinity"
        )


def _attribution(attributor: Attributor | None, observation: Observation) -> Attribution | None:
    """Return the attribution to draw beside; None if there is none."""
    try:
        return None if attributor is None else attributor.attribute(observation)
    except NotApplicable:
        return None  # A model without gradients is what removal is for.


def _strengths(
    observation: Observation, attribution: Attribution | None
) -> tuple[tuple[str, ...], FloatArray | None]:
    """Return the names of features, and the strength of each in the attribution."""
    names = tuple(observation.held_out.feature_names)
    if attribution is None:
        return names, None
    return names, importance_of(observation, attribution).feature_share


def _block_shares(by_block: Agreement) -> FloatArray:
    """Return shares of blocks with their CIs by attribution and by removal, and disputes."""
    disputed = np.isin(np.arange(len(by_block.names)), by_block.disputed)
    own, other = np.split(by_block.cis, 2)
    found: FloatArray = np.vstack([by_block.attributed, own, by_block.removed, other, disputed])
    return found


def _picture(result: RemovalShares, group: str, options: dict[str, object]) -> Figure:
    beside = f", beside the shares by {result.method}" if result.method else ""
    return Figure(
        f"{group}/shares",
        plot_feature_removal,
        result,
        options,
        f"Share of each feature in the mean absolute changes of the {result.target} when a feature "
        f"is replaced by that of another held-out sequence{beside}; and the change when all inputs "
        "of a block of time are replaced, in units of the target. Whiskers are 95 % CIs over "
        f"sequences{ci_caveat(result.sequences)}.",
    )


def _numbers(result: RemovalShares, group: str) -> Iterator[Scalar]:
    estimates, target = result.estimates, result.target
    yield scalar_with_ci(
        f"{group}/strength",
        result.strength,
        estimates.get("strength"),
        _SCALARS["strength"].format(target=target),
    )
    if result.time_share is not None:
        yield scalar_with_ci(
            f"{group}/time_share",
            result.time_share,
            estimates["time_share"],
            _SCALARS["time_share"].format(target=target),
            place="data",
        )
    count = result.sequences
    description = _SCALARS["sequences"] + ci_caveat(count)
    yield Scalar(f"{group}/sequences", count, description, place="data")
    for i, name in enumerate(result.names):
        yield Scalar(
            f"{group}_share/{name}",
            float(result.share[i]),
            f"Share of {name} in {group}/strength{ci_suffix(count)}",
            ci=as_ci(result.share_ci[:, i]),
            place="data",  # The picture shows them.
        )
