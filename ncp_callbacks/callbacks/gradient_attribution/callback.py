"""Log the features that the target depends on, and the time steps at which it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...attribution import (
    DEFAULT_METHOD,
    Agreement,
    Attribution,
    AttributionMethod,
    MethodName,
    PassCount,
    TemporalImportance,
    compare,
    feature_groups,
    method_from,
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
from ...records import Array, Figure, Note, Place, Record, Scalar
from ...scheduling import ScheduleLike
from ...stats import MAX_CLASSES, SHARE, Estimate
from ...stats.reliability import cosine, order_correlation
from ..feature_curves import FeatureCurves, shares_array
from .confused import confused_shares
from .doubts import Disputes, completeness, mostly_time
from .plot import plot_feature_importance
from .subsets import of_each_class, of_worst, summary_of
from .tokens import token_shares

__all__ = ["GradientAttribution"]

# Parts of descriptions in braces are filled with the fields of the result, and of the method.
_SCALARS = {
    "strength": "Mean absolute {label} of the {target}, summed over time steps and features; in "
    "{unit}",
    "entropy": "Entropy of the feature shares: 1 if all features matter equally, 0 if only one "
    "does",
    "sign_agreement": "1 if each input pushes the target the same way in all sequences, 0 if the "
    "pushes cancel",
    "mean_lag": "Distance from a sequence's last time step, weighted by importance, mean over "
    "sequences; in time steps",
    "time_share": "Share of elapsed time in the contributions of features and elapsed time, each "
    "the absolute sum of {label} over time steps: 0 if only what was measured counts, 1 if only "
    "when it was measured counts",
    "sequences": "Held-out sequences that were attributed",
    "reliability": "Correlation between the maps of two halves of the sequences, extrapolated to "
    "all of them: 1 if other sequences would show the same map, 0 if it is noise",
    "change": "Cosine distance of the map from that of the previous snapshot: 0 is the same up to "
    "a factor, 1 unrelated, 2 opposite",
    "rank_distance": "1 minus Spearman's rank correlation of the mean absolute map with that of "
    "the previous snapshot: 0 is the same order of importance, 1 unrelated, 2 the opposite",
    "agreement": "Rank correlation of the map with that of {other} on the same {sequences} "
    "sequences: 1 is the same order of importance",
    "extra_passes": "Passes of each sequence beyond the pass that callbacks share: {gradient} "
    "gradient and {forward} forward passes",
}
_CONTRIBUTIONS = (
    "the contributions of features to the target, each the absolute sum of its attributions over "
    "the time steps of a sequence"
)
# Sequences on which two methods are compared.
_COMPARED_SEQUENCES = 8


class GradientAttribution(Callback):
    """Attribute the target to features, time steps and elapsed time.

    By default it integrates gradients by 4 points on the line from the mean of the held-out batch.
    That costs the gradient pass at the inputs, shared with :class:`TimeSensitivity`, three gradient
    passes and a forward pass at the baseline. As a check by other means, features are replaced by
    those of other sequences, in a forward pass for each feature and the elapsed times, shared with
    :class:`FeatureRemoval`. Where the two disagree, the title of the heat map and a note name both
    shares. Other methods: SmoothGrad and expected gradients run a gradient pass of each sequence
    for each of their ``n_samples``; occlusion runs a forward pass for each of ``T (F + 1)`` inputs
    and elapsed times. Set ``max_sequences`` for these. ``attribution/extra_passes`` logs the number
    of extra passes of the method.

    ==================================== ========= ==============================================
    Tag                                  Record    What
    ==================================== ========= ==============================================
    ``attribution/heatmap``              image     mean attribution, time steps by features
    ``attribution/heatmap_class_<name>`` image     map of the sequences of a true class
    ``attribution/heatmap_worst``        image     map of the sequences with the largest losses
    ``attribution/strength``             scalar    sum over the map of mean absolute attribution
    ``attribution/entropy``              scalar    1: all features matter equally, 0: one does
    ``attribution/sign_agreement``       scalar    1: every push has the same sign in all sequences
    ``attribution/mean_lag``             scalar    mean number of time steps before the last
    ``attribution/time_share``           scalar    share of elapsed time in the contributions of
                                                   features and elapsed time
    ``attribution/reliability``          scalar    1: other sequences would show the same map
    ``attribution/change``               scalar    cosine distance of the map to the map of the
                                                   previous snapshot
    ``attribution/rank_distance``        scalar    rank distance of the map to the map of the
                                                   previous snapshot: 0 if the order is unchanged
    ``attribution/strength_change``      scalar    relative change of the strength since the
                                                   previous snapshot, paired on equal sequences
    ``attribution/numbers_changed``      scalar    number of strength, lag and shares that changed
                                                   beyond chance
    ``attribution/agreement``            scalar    rank correlation with the map of the method
                                                   ``agreement``
    ``attribution/disagreement``         scalar    part of the whole that attribution and removal
                                                   attribute to different features
    ``attribution/effective_sequences``  scalar    number of sequences that carry the two, as if
                                                   they did so equally
    ``attribution/disputed``             scalar    number of features on whose shares the two
                                                   disagree
    ``attribution/completeness_error``   scalar    99th percentile over sequences; for complete
                                                   methods
    ``attribution/incomplete``           scalar    share of sequences whose error is above 5 %
    ``attribution/extra_passes``         scalar    passes of each sequence beyond the shared pass
    ``attribution/sequences``            scalar    number of sequences attributed
    ``attribution/nonfinite``            scalar    sequences skipped because of NaN or infinity
    ``attribution_share/<feature>``      scalar    share of a feature in the contributions of all;
                                                   at most 11 and ``attribution_share/other``
    ``_ncp/attribution_strength``        array     ``(T, F)``, mean over sequences of the absolute
                                                   value
    ``_ncp/attribution_signed``          array     ``(T, F)``, mean over sequences
    ``_ncp/attribution_shares``          array     ``(F, 3)``, share of each feature in the
                                                   contributions, and the ends of its CI
    ``_ncp/attribution_time_delta``      array     ``(2, T)``, these two means of elapsed time
    ``_ncp/attribution_tokens``          array     ``(N, 5)``, for tokens: the 16 that carry most,
                                                   their shares and the ends of the CIs, and the
                                                   part of the time steps that have them
    ``_ncp/attribution_confused``        array     ``(4,)``, for classes: the two that are taken for
                                                   each other most often, and the number of their
                                                   sequences that are confused, and right
    ``_ncp/attribution_confused_shares`` array     ``(9, F + K)``, shares of features and of blocks
                                                   of time in these; if there are 16 of each
    ==================================== ========= ==============================================

    The contribution of a feature to a sequence's target is the absolute sum of its attributions
    over time steps, so that pushes that cancel within a sequence don't count. For slopes it is the
    sum of absolute values. Shares of contributions are close to those by intervention, shares of
    the map's absolute values are not (:class:`~ncp_callbacks.attribution.TemporalImportance`).

    With a target other than the prediction at the last time step, ``attribution`` is followed by
    its name, as in ``attribution_loss/heatmap``. For frames, features are the channels, and their
    attributions are sums over pixels; :class:`FrameAttribution` draws the pixels. Strength, mean
    lag and shares come with 95 % CIs over sequences, which are unreliable with fewer than 16
    sequences. The sign agreement has no CI: for pushes with random signs it is about 0.8 over the
    root of their number. The entropy has none: where shares are nearly equal, chance makes it
    smaller.

    Args:
        method: A name or an object of :mod:`ncp_callbacks.attribution`, or a method of your own
            (:class:`~ncp_callbacks.attribution.AttributionMethod`). Names are
            ``"input_x_gradient"``; ``"gradient"``; ``"integrated_gradients"``, by Gauss-Legendre
            quadrature; ``"smooth_grad"``, the mean gradient at noisy inputs;
            ``"expected_gradients"``, over random baselines; ``"occlusion"``, which replaces one
            input at a time. Pass an object to set options: ``IntegratedGradients(n_steps=32)``.
        baseline: The inputs to compare with: ``"mean"`` of each feature over all held-out sequences
            and their time steps, ``"zeros"``, or an array ``(F,)``, ``(T, F)`` or ``(B, T, F)``.
            For frames, ``"mean"`` is the mean frame, and an array has one number for each channel,
            ``(F,)``, or ends in the shape of a frame. For expected gradients, ``"held_out"`` for
            all held-out sequences, or ``(N, T, F)``, sequences to draw from. None for the method's
            default: ``"held_out"`` for expected gradients, and the mean for others.
        time_baseline: The elapsed times to compare with: ``"mean"`` (the default), ``"zeros"``, or
            an array ``(T,)`` or ``(B, T)``. With the mean, nothing is attributed to elapsed times
            that are all equal.
        agreement: Another method, whose map is compared with this one on 8 sequences.
        removal: Snapshots from one comparison of the shares of features with those by removal to
            the next, beginning with the first, and with one at the end of a run; 0 for none. It is
            for methods whose values are no slopes. A feature is disputed where the two differ by at
            least 10 % of the whole and beyond chance, by paired tests over sequences that are
            corrected for their number by Holm.
        by_class: True for a map of the sequences of each true class as well, for at most 8 integer
            classes of the held-out targets.
        worst: Number of sequences with the largest losses that have a map of their own; 0 for none.
        features: Names of the features whose shares are logged as curves, at most 12. None for
            all, or, of more than 12, for the 11 strongest at the first snapshot.
        every, name, max_sequences, target: See :class:`Callback`.

    Raises:
        ValueError, TypeError: If the method, a baseline or the list of features is invalid.
    """

    default_name = "attribution"

    def __init__(
        self,
        *,
        method: MethodName | AttributionMethod = DEFAULT_METHOD,
        baseline: Any = None,
        time_baseline: Any = None,
        agreement: str | AttributionMethod | None = None,
        removal: int = 1,
        by_class: bool = False,
        worst: int = 0,
        features: Sequence[str] | None = None,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
        target: TargetLike | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences, target=target)
        self._curves = self.keep("curves", FeatureCurves(features))
        self._attributor = Attributor(method, baseline, time_baseline)
        self._other = _other_attributor(agreement, self._attributor.method, time_baseline)
        others: frozenset[Need] = frozenset() if self._other is None else self._other.needs
        removal = 0 if self._attributor.method.is_slope else whole_number("removal", removal, 0)
        self._by_class, self._worst = bool(by_class), whole_number("worst", worst, 0)
        removals = {Need.REMOVALS} if removal else set()
        losses = {Need.LOSSES} if self._worst else set()
        self.needs = self._attributor.needs | others | removals | losses | {Need.CLASSES}
        self._disputes = self.keep("disputes", Disputes(removal))
        self._limit = self.keep("limit", AxisLimit())
        self._map_changes = self.keep("maps", _MapChanges())
        self._changes = self.keep("changes", PairedChanges())

    def analyse_always(self) -> None:
        super().analyse_always()
        self._disputes.compare_always()

    @property
    def conditions(self) -> str:
        """Return the attribution method, its settings and baselines."""
        return self._attributor.summary

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        found = self._attributor.attribute(observation)
        result = importance_of(observation, found)
        method, group = self._attributor.method, self.name + observation.target_slug
        if result.sequences:
            limit = self._limit.covering(float(np.abs(result.signed).max()))
            features = self._curves.of(result.feature_names, result.feature_share)
            numbers = result.estimates(features)
            checked = self._disputes.compare(
                observation.step, lambda: _compared_with_removal(found, observation, features)
            )
            options = {"limit": limit, "step": observation.step, **self._disputes.in_picture}
            yield _heatmap(result, f"{group}/heatmap", method, options)
            yield from self._maps_of_subsets(observation, found, group, options)
            yield from _numbers(result, group, numbers)
            yield from small_batch_note(observation)
            yield from self._changes.compare(group, numbers, observation, "strength")
            yield from _checks(result, group)
            yield from self._map_changes.compare(result, group)
            yield from completeness(result, group, method, self._disputes.disputed)
            yield from mostly_time(result, group)
            if checked is not None:
                yield from self._disputes.records(checked, group, method)
            yield from _extra_passes(self._attributor.extra_passes(observation), group)
            if self._other is not None:
                yield from _agreement(found, self._other, group, observation)
            yield from _feature_shares(result, self._curves, group)
            yield from _arrays(result, group)
            yield from _tokens(found, observation, group)
            yield from _confused(found, observation, group)
        yield from non_finite_count(
            group, result.non_finite, "sequences", "their attribution had NaN or infinity"
        )

    @property
    def finishes(self) -> bool:
        """Return whether shares are compared with those by removal at some snapshots only."""
        return self._disputes.skips

    def finish(self, observation: Observation) -> Iterator[Record | Note]:
        """Compare the shares with those by removal, if that wasn't done at the last snapshot."""
        if not self._disputes.is_behind:
            return
        found = self._attributor.attribute(observation)
        result = importance_of(observation, found)
        if result.sequences:
            features = self._curves.of(result.feature_names, result.feature_share)
            checked = self._disputes.compare_now(
                observation.step, lambda: _compared_with_removal(found, observation, features)
            )
            if checked is not None:
                group = self.name + observation.target_slug
                yield from self._disputes.records(checked, group, self._attributor.method)

    def _maps_of_subsets(
        self, observation: Observation, found: Attribution, group: str, options: dict[str, Any]
    ) -> Iterator[Figure | Note]:
        """Yield maps of the sequences of each class, and of the worst sequences."""
        options = options | {"removed": None, "removed_at": None}
        subsets: list[tuple[str, str, npt.NDArray[np.intp]]] = []
        try:
            if self._by_class:
                named = of_each_class(observation)
                subsets += [(f"class_{name}", f"class {name}", which) for name, which in named]
            if self._worst:
                which = of_worst(observation, self._worst)
                subsets.append(("worst", f"{len(which)} worst sequences", which))
        except NotApplicable as reason:
            yield Note(f"{group}: {reason}")
        for name, words, which in subsets:
            part = summary_of(observation, found, which, words)
            if part.sequences:
                yield _heatmap(part, f"{group}/heatmap_{name}", self._attributor.method, options)


def _compared_with_removal(
    found: Attribution, observation: Observation, features: Sequence[str]
) -> Agreement | None:
    return compare(found, removal_of(observation, feature_groups(observation, features)))


def _feature_shares(
    result: TemporalImportance, curves: FeatureCurves, group: str
) -> Iterator[Scalar]:
    """Yield the share of each feature that has a curve, and of all others together."""
    names = list(result.feature_names)
    share = dict(zip(names, result.feature_share.tolist(), strict=True))
    own, cards = curves.of(names, result.feature_share), curves.cards
    for feature in own:
        yield Scalar(
            f"{group}_share/{feature}",
            share[feature],
            f"Share of {feature} in {_CONTRIBUTIONS}{ci_suffix(result.sequences)}",
            ci=as_ci(result.share_ci[:, names.index(feature)]),
            place=_share_place(group, card=feature in cards),
        )
    if len(own) < len(names):
        rest = 1.0 - sum(share[feature] for feature in own)
        parts, places = result.by_sequence, [names.index(feature) for feature in own]
        whole = parts.sum(axis=1, dtype=np.float64)
        yield scalar_with_ci(
            f"{group}_share/{'other' if 'other' not in own else 'other_features'}",
            max(0.0, rest),
            Estimate.ratio(whole - parts[:, places].sum(axis=1), whole, SHARE),
            f"Share of all features without a curve in {_CONTRIBUTIONS}",
            place=_share_place(group, card=True),
        )


class _MapChanges:
    """Compare the map with that of the previous snapshot."""

    def __init__(self) -> None:
        # Means over sequences, with signs and of absolute values.
        self._signed: np.ndarray | None = None
        self._absolute: np.ndarray | None = None

    def state_dict(self) -> dict[str, Any]:
        signed, absolute = (
            None if values is None else values.tolist() for values in (self._signed, self._absolute)
        )
        return {"previous": signed, "previous_size": absolute}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._signed, self._absolute = (
            None if values is None else np.asarray(values)
            for values in (state["previous"], state["previous_size"])
        )

    def compare(self, result: TemporalImportance, group: str) -> Iterator[Scalar]:
        """Yield the distances of the map to the previous one, and keep the map."""
        if self._signed is not None and self._signed.shape == result.signed.shape:
            similarity = cosine(self._signed, result.signed)
            if np.isfinite(similarity):
                yield Scalar(f"{group}/change", 1.0 - similarity, _SCALARS["change"], place="data")
        if self._absolute is not None and self._absolute.shape == result.importance.shape:
            correlation = order_correlation(self._absolute, result.importance)
            if correlation is not None:
                yield Scalar(f"{group}/rank_distance", 1.0 - correlation, _SCALARS["rank_distance"])
        self._signed, self._absolute = result.signed, result.importance


def _other_attributor(
    agreement: str | AttributionMethod | None, method: AttributionMethod, time_baseline: Any
) -> Attributor | None:
    """Return what computes the map to compare with.

    Raises:
        ValueError: If ``agreement`` is the method itself, or unknown.
    """
    if agreement is None:
        return None
    other = method_from(agreement, "agreement")
    if other == method:
        raise ValueError(f"agreement={agreement!r} is the method itself: pass another one")
    return Attributor(other, None, time_baseline)


def _heatmap(
    result: TemporalImportance, tag: str, method: AttributionMethod, options: dict[str, Any]
) -> Figure:
    return Figure(
        tag,
        plot_feature_importance,
        result,
        options,
        f"{method.title} of the {result.target}, mean over held-out sequences: orange raises the "
        "target, purple lowers it. Bars: share of each feature in the contributions, with "
        f"whiskers that are its 95 % CI over sequences{ci_caveat(result.sequences)}. Unit: "
        f"{result.unit}.",
    )


def _numbers(
    result: TemporalImportance, group: str, numbers: Mapping[str, Estimate]
) -> Iterator[Record | Note]:
    """Yield the strength of the map and its distribution over features and time steps."""
    weight = result.importance.astype(np.float64)
    strength = float(weight.sum())
    yield Scalar(
        f"{group}/strength",
        strength,
        _SCALARS["strength"].format(label=result.label, target=result.target, unit=result.unit)
        + ci_suffix(result.sequences),
        ci=as_ci(result.strength_ci),
    )
    if strength > 0:
        for name, value in (("entropy", result.entropy), ("mean_lag", result.mean_lag)):
            yield scalar_with_ci(
                f"{group}/{name}",
                value,
                numbers.get(name),
                _SCALARS[name],
            )
        agreement = float((result.sign_agreement * weight).sum() / strength)
        yield Scalar(f"{group}/sign_agreement", agreement, _SCALARS["sign_agreement"])
    else:
        yield Note(
            f"{group}: every attribution is exactly 0. Either the inputs are 0 or at their "
            "baseline: pass another baseline=. Or no gradient reaches them, because "
            "stop_gradient, rounding or numpy in the model's forward pass ends it, even if the "
            'target depends on the inputs: set method="occlusion"'
        )
    share = result.time_delta_share
    if share is not None and np.isfinite(share):
        yield Scalar(
            f"{group}/time_share",
            share,
            _SCALARS["time_share"].format(label=result.label) + ci_suffix(result.sequences),
            ci=as_ci(result.time_delta_share_ci),
            place=_headline(group),
        )


def _checks(result: TemporalImportance, group: str) -> Iterator[Scalar]:
    """Yield the number of sequences, and how much the map depends on which ones they are."""
    count = result.sequences
    description = _SCALARS["sequences"] + ci_caveat(count)
    yield Scalar(f"{group}/sequences", count, description, place="data")
    if np.isfinite(result.reliability):
        yield Scalar(
            f"{group}/reliability",
            result.reliability,
            _SCALARS["reliability"],
            place=_headline(group),
        )


def _share_place(group: str, *, card: bool) -> Place:
    """Return the place of a feature's share; a feature that is always 0 needs no card."""
    return "nonzero" if card and group == GradientAttribution.default_name else "data"


def _headline(group: str) -> Place:
    """Return the place of a headline number, for which a run with several maps has no room."""
    return "headline" if group == GradientAttribution.default_name else "group"


def _extra_passes(passes: PassCount, group: str) -> Iterator[Scalar]:
    if any(passes):
        description = _SCALARS["extra_passes"].format(**passes._asdict())
        yield Scalar(f"{group}/extra_passes", sum(passes), description, place="data")


def _agreement(
    found: Attribution, other: Attributor, group: str, observation: Observation
) -> Iterator[Scalar]:
    """Yield the rank correlation with the map of another method, on a few sequences."""
    few = observation.limited(_COMPARED_SEQUENCES)
    own = importance_of(few, found.of(np.searchsorted(observation.indices, few.indices)))
    theirs = other.importance(few)
    if own.sequences and theirs.sequences:
        correlation = order_correlation(own.importance, theirs.importance)
        if correlation is not None:
            description = _SCALARS["agreement"].format(
                other=other.method.label, sequences=own.sequences
            )
            yield Scalar(f"{group}/agreement", correlation, description)


def _tokens(found: Attribution, observation: Observation, group: str) -> Iterator[Array]:
    """Yield the tokens that the target rests on, wherever they occur."""
    held_out = observation.held_out
    if not held_out.tokens:
        return
    shares = token_shares(found, np.array(held_out.inputs), held_out.mask_array)
    if shares is not None:
        yield Array(
            f"_ncp/{group}_tokens",
            shares,
            "Token, its share in the contributions of all, the ends of its 95 % CI, and the part "
            "of the time steps that have it",
            axes=("token", "token, share, low, high, part of the time steps"),
        )


def _confused(found: Attribution, observation: Observation, group: str) -> Iterator[Array]:
    """Yield what the target rests on where two classes are confused, and where they are not."""
    classes, outputs = observation.classes, observation.outputs.shape[-1]
    if classes is None or outputs > MAX_CLASSES:
        return
    padded = observation.mask is not None and not observation.mask.all()
    confused = confused_shares(found, classes, max(2, outputs), padded=padded)
    numbers = np.zeros(4)
    if confused is not None:
        numbers[:] = *confused.classes, confused.confused, confused.right
    yield Array(
        f"_ncp/{group}_confused",
        numbers,
        "The two classes that are confused most, and the numbers of their sequences that are "
        "confused, and right",
    )
    if confused is not None and confused.shares is not None:
        yield Array(
            f"_ncp/{group}_confused_shares",
            confused.shares,
            "First and last time step, share where confused, its 95 % CI, share where right, its "
            "95 % CI, and 1 for a difference",
            axes=("number", "feature or block of time"),
        )


def _arrays(result: TemporalImportance, group: str) -> Iterator[Array]:
    axes, tag = ("time step", "feature"), f"_ncp/{group}"
    yield Array(f"{tag}_strength", result.importance, kind="attribution", axes=axes)
    yield Array(f"{tag}_signed", result.signed, kind="attribution signed", axes=axes)
    yield shares_array(group, result.feature_names, result.feature_share, result.share_ci)
    if result.time_delta_importance is not None and result.time_delta_signed is not None:
        both = np.stack([result.time_delta_importance, result.time_delta_signed])
        yield Array(f"_ncp/{group}_time_delta", both)
