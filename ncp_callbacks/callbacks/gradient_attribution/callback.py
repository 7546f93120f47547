"""Which features the target depends on, and at which steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...attribution import (
    DEFAULT_METHOD,
    Attribution,
    AttributionMethod,
    TemporalImportance,
    method_from,
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
)
from ...observation import Observation
from ...records import Array, Figure, Note, Record, Scalar
from ...scheduling import ScheduleLike
from ...stats import SHARE, Estimate
from ...stats.reliability import cosine, order_correlation
from .plot import plot_feature_importance

__all__ = ["GradientAttribution"]


class GradientAttribution(Callback):
    """Log what of the target is attributed to which feature and time step, and to elapsed time.

    It costs one gradient pass by default, shared with :class:`TimeSensitivity`. Integrated
    gradients, SmoothGrad and expected gradients run a gradient pass of each sequence for each of
    their ``n_steps`` or ``n_samples``, occlusion a forward pass for each of its ``T (F + 1)``
    cells: set ``max_sequences`` for them. ``attribution/extra_passes`` says how many.

    ==================================== ========= ==============================================
    Tag                                  Record    What
    ==================================== ========= ==============================================
    ``attribution/heatmap``              image     mean attribution over sequences, step by feature
    ``attribution/strength``             scalar    sum over the map of mean absolute attribution
    ``attribution/entropy``              scalar    1: all features matter equally, 0: one does
    ``attribution/sign_agreement``       scalar    1: every push has the same sign in all sequences
    ``attribution/mean_lag``             scalar    how many steps before the last one, on average
    ``attribution/time_share``           scalar    share of elapsed time in the strength of inputs
                                                   and elapsed time together
    ``attribution/reliability``          scalar    1: other sequences would show the same map
    ``attribution/change``               scalar    cosine distance of the map to the last look's
    ``attribution/change_of_ranks``      scalar    rank distance of the map to the last look's: 0
                                                   the same order of importance
    ``attribution/strength_change``      scalar    relative change of the strength since the last
                                                   look, paired on the same sequences
    ``attribution/numbers_changed``      scalar    how many of strength, entropy, lag and shares
                                                   changed beyond chance
    ``attribution/agreement``            scalar    rank correlation with the map of the method
                                                   ``agreement``
    ``attribution/completeness_error``   scalar    99th percentile over sequences, of complete
                                                   methods
    ``attribution/incomplete``           scalar    share of sequences whose error is above 5 %
    ``attribution/extra_passes``         scalar    passes of each sequence beyond the shared pass
    ``attribution/sequences``            scalar    sequences that went in
    ``attribution/nonfinite``            scalar    sequences left out because of NaN or infinity
    ``attribution_share/<feature>``      scalar    share of a feature in the strength; at most 11
                                                   and ``attribution_share/other``
    ``_ncp/attribution_strength``        array     ``(T, F)``, mean over sequences of the absolute
                                                   value
    ``_ncp/attribution_signed``          array     ``(T, F)``, mean over sequences
    ``_ncp/attribution_time_delta``      array     ``(2, T)``, these two means of elapsed time
    ==================================== ========= ==============================================

    With a target other than the prediction at the last step, ``attribution`` is followed by its
    name, as in ``attribution_loss/heatmap``. Strength, entropy, mean lag and shares come with 95 %
    intervals over sequences; of fewer than 16 sequences they are indicative. The sign agreement has
    none: of pushes that only cancel by chance it is about 0.8 over the root of their number.

    Args:
        method: A name or an object of :mod:`ncp_callbacks.attribution`, or a method of your own
            (:class:`~ncp_callbacks.attribution.AttributionMethod`). ``"input_x_gradient"``;
            ``"gradient"``; ``"integrated_gradients"``, by Gauss-Legendre quadrature;
            ``"smooth_grad"``, the mean gradient at noisy inputs; ``"expected_gradients"``, over
            baselines that are drawn; ``"occlusion"``, one input replaced at a time. An object has
            settings: ``IntegratedGradients(n_steps=32)``.
        baseline: What inputs are compared with: ``"mean"`` of each feature over all held-out
            sequences and their steps, ``"zeros"``, or an array ``(F,)``, ``(T, F)`` or
            ``(B, T, F)``; for expected gradients ``"held_out"``, all held-out sequences, or
            ``(N, T, F)``, sequences to draw from. None: the method's default, which is zeros for
            input × gradient, ``"held_out"`` for expected gradients, and else the mean.
        time_baseline: What elapsed times are compared with: ``"mean"`` (the default), ``"zeros"``,
            or an array ``(T,)`` or ``(B, T)``. With the mean, elapsed times that are all alike have
            no part in anything.
        agreement: Another method, whose map is compared with this one on 8 sequences.
        features: Names of the features whose share is logged as a curve, at most 12; by default
            all, or of more than 12 the 11 strongest at the first look.
        every, name, max_sequences: See :class:`Callback`.
    """

    default_name = "attribution"
    _MOST, _BANDS = 12, 4
    _COMPARED = 8

    def __init__(
        self,
        *,
        method: str | AttributionMethod = DEFAULT_METHOD,
        baseline: Any = None,
        time_baseline: Any = None,
        agreement: str | AttributionMethod | None = None,
        features: Sequence[str] | None = None,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        if features is not None and (isinstance(features, str) or len(features) > self._MOST):
            raise ValueError(
                f"features={features!r}: give a list of at most {self._MOST} feature names"
            )
        if features is not None and len(set(features)) < len(features):
            raise ValueError(f"features={features!r}: a name stands there more than once")
        self._attributor = Attributor(method, baseline, time_baseline)
        self.needs = self._attributor.needs
        self._other = None
        if agreement is not None:
            other = method_from(agreement, "agreement")
            if other == self._attributor.method:
                raise ValueError(f"agreement={agreement!r} is the method itself: pass another one")
            self._other = Attributor(other, None, time_baseline)
            self.needs |= self._other.needs
        self._given = features
        self._shown: list[str] | None = None
        self._limit = AxisLimit()
        # Means of the last look, with signs and of absolute values.
        self._previous: np.ndarray | None = None
        self._previous_size: np.ndarray | None = None
        self._charts: list[str] | None = None
        self._changes = PairedChanges()

    def state_dict(self) -> dict[str, Any]:
        previous, size = (
            None if values is None else values.tolist()
            for values in (self._previous, self._previous_size)
        )
        return {
            "shown": self._shown,
            "charts": self._charts,
            "limit": self._limit.value,
            "previous": previous,
            "previous_size": size,
            "changes": self._changes.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shown = None if state["shown"] is None else list(state["shown"])
        charts = state.get("charts")
        self._charts = None if charts is None else list(charts)
        self._limit = AxisLimit(float(state["limit"]))
        self._changes.load_state_dict(state.get("changes", {}))
        self._previous, self._previous_size = (
            None if values is None else np.asarray(values)
            for values in (state["previous"], state.get("previous_size"))
        )

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        found = self._attributor.attribute(observation)
        result = importance_of(observation, found)
        group = self.name + observation.target_slug
        if result.sequences:
            names = list(result.feature_names)
            if self._shown is None:
                self._shown = self._choose(names, result.feature_share)
            numbers = result.estimates(self._shown)
            yield from self._map(result, group, observation.step)
            yield from self._numbers(result, group, numbers)
            yield from small_batch_note(observation)
            yield from self._changes.compare(group, numbers, observation, "strength")
            if not result.importance.any():
                yield Note(
                    f"{group}: every attribution is exactly 0. Either the inputs are 0 or at their "
                    "baseline, or no gradient reaches them: stop_gradient, rounding or numpy in "
                    "the model's forward end it, also where the target does depend on the inputs"
                )
            yield from self._checks(result, group, observation)
            yield from self._agreement(found, group, observation)
            yield from self._shares(result, group)
            yield Array(f"_ncp/{group}_strength", result.importance)
            yield Array(f"_ncp/{group}_signed", result.signed)
            if result.time_delta_importance is not None and result.time_delta_signed is not None:
                yield Array(
                    f"_ncp/{group}_time_delta",
                    np.stack([result.time_delta_importance, result.time_delta_signed]),
                )
        yield from non_finite_count(
            group, result.non_finite, "sequences", "their attribution had NaN or infinity"
        )

    def _map(self, result: TemporalImportance, group: str, step: int) -> Iterator[Record]:
        yield Figure(
            f"{group}/heatmap",
            plot_feature_importance,
            result,
            {"limit": self._limit.covering(float(np.abs(result.signed).max())), "step": step},
            f"{self._attributor.method.title} of the {result.target}, mean over held-out "
            "sequences: orange raises the target, purple lowers it. Bars: share of each feature in "
            f"the mean absolute value, with whiskers that are its 95 % CI over sequences"
            f"{ci_caveat(result.sequences)}. Unit: {result.unit}.",
        )

    def _numbers(
        self, result: TemporalImportance, group: str, numbers: Mapping[str, Estimate]
    ) -> Iterator[Record]:
        weight = result.importance.astype(np.float64)
        strength = float(weight.sum())
        what = f"{result.label} of the {result.target}"
        yield Scalar(
            f"{group}/strength",
            strength,
            f"Mean absolute {what}, summed over steps and features; in {result.unit}"
            f"{ci_suffix(result.sequences)}",
            ci=as_ci(result.strength_ci),
        )
        if strength > 0:
            yield scalar_with_ci(
                f"{group}/entropy",
                result.entropy,
                numbers.get("entropy"),
                "Entropy of the feature shares: 1 all features matter equally, 0 only one does",
            )
            yield Scalar(
                f"{group}/sign_agreement",
                float((result.sign_agreement * weight).sum() / strength),
                "1: inputs push the target the same way in all sequences; 0: pushes cancel",
            )
            yield scalar_with_ci(
                f"{group}/mean_lag",
                result.mean_lag,
                numbers.get("mean_lag"),
                "Mean distance from a sequence's last step, weighted by importance; in steps",
                chart=True,
            )
        share = result.time_delta_share
        if share is not None and np.isfinite(share):
            yield Scalar(
                f"{group}/time_share",
                share,
                "Share of elapsed time in the attribution of inputs and elapsed time together: 0 "
                f"only what was measured counts, 1 only when{ci_suffix(result.sequences)}",
                ci=as_ci(result.time_delta_share_ci),
            )

    def _checks(
        self, result: TemporalImportance, group: str, observation: Observation
    ) -> Iterator[Record | Note]:
        """Yield how far the map can be trusted."""
        yield Scalar(
            f"{group}/sequences",
            result.sequences,
            f"Held-out sequences that that were attributed{ci_caveat(result.sequences)}",
        )
        if np.isfinite(result.reliability):
            yield Scalar(
                f"{group}/reliability",
                result.reliability,
                "Correlation of the maps of two halves of the sequences, stepped up to all of "
                "them: 1 other sequences would show the same map, 0 it is noise",
            )
        if self._previous is not None and self._previous.shape == result.signed.shape:
            alike = cosine(self._previous, result.signed)
            if np.isfinite(alike):
                yield Scalar(
                    f"{group}/change",
                    1.0 - alike,
                    "Cosine distance of the map to that of the last look: 0 the same up to a "
                    "factor, 1 unrelated, 2 opposite",
                )
        size = self._previous_size
        if size is not None and size.shape == result.importance.shape:
            ranks = order_correlation(size, result.importance)
            if ranks is not None:
                yield Scalar(
                    f"{group}/change_of_ranks",
                    1.0 - ranks,
                    "1 minus Spearman's rank correlation of the mean absolute map with that of the "
                    "last look: 0 the same order of importance, 1 unrelated, 2 the opposite",
                )
        self._previous, self._previous_size = result.signed, result.importance
        error = result.error
        # Infinite where targets didn't change at all and yet something was attributed.
        known = np.empty(0) if error is None else error[~np.isnan(error)].astype(np.float64)
        if known.size:
            above = float((known > 0.05).mean())
            if np.isfinite(known).all():
                yield Scalar(
                    f"{group}/completeness_error",
                    float(np.quantile(known, 0.99)),
                    "Difference between a sequence's attributions, summed, and the change of its "
                    "target from the baseline; 99th percentile over sequences, in RMS changes",
                )
            yield Scalar(
                f"{group}/incomplete", above, "Share of sequences whose error is above 5 %"
            )
            if above > 0:
                yield Note(
                    f"{group}: attributions of some sequences don't sum to the change of their "
                    f"target within 5 %; {group}/incomplete is their share. "
                    f"{self._attributor.method.incomplete_fix}. Until then don't trust the map and "
                    "its shares"
                )
        passes = self._attributor.extra_passes(observation)
        if any(passes):
            yield Scalar(
                f"{group}/extra_passes",
                sum(passes),
                "Passes of each sequence beyond the pass that callbacks share: "
                f"{passes.gradient} gradient and {passes.forward} forward passes",
            )

    def _agreement(
        self, found: Attribution, group: str, observation: Observation
    ) -> Iterator[Record]:
        if self._other is None:
            return
        few = observation.limited(self._COMPARED)
        rows = np.searchsorted(observation.indices, few.indices)
        own, other = importance_of(few, found.of(rows)), self._other.importance(few)
        if own.sequences and other.sequences:
            alike = order_correlation(own.importance, other.importance)
            if alike is not None:
                yield Scalar(
                    f"{group}/agreement",
                    alike,
                    f"Rank correlation of the map with that of {self._other.method.label} "
                    f"on the same {own.sequences} sequences: 1 the same order of importance",
                )

    def _shares(self, result: TemporalImportance, group: str) -> Iterable[Record | Note]:
        names = list(result.feature_names)
        assert self._shown is not None
        share = dict(zip(names, result.feature_share.tolist(), strict=True))
        if self._charts is None:
            strongest = sorted(self._shown, key=lambda feature: -share[feature])
            self._charts = strongest[: self._BANDS]
        for feature in self._shown:
            yield Scalar(
                f"{group}_share/{feature}",
                share[feature],
                f"Share of {feature} in {group}/strength{ci_suffix(result.sequences)}",
                ci=as_ci(result.share_ci[:, names.index(feature)]),
                chart=feature in self._charts,
            )
        if len(self._shown) < len(names):
            rest = 1.0 - sum(share[f] for f in self._shown)
            other = "other" if "other" not in self._shown else "other_features"
            parts, own = result.by_sequence, [names.index(f) for f in self._shown]
            whole = parts.sum(axis=1, dtype=np.float64)
            yield scalar_with_ci(
                f"{group}_share/{other}",
                max(0.0, rest),
                Estimate.ratio(whole - parts[:, own].sum(axis=1), whole, SHARE),
                "Share of all features without a curve",
            )

    def _choose(self, names: list[str], share: np.ndarray) -> list[str]:
        if self._given is not None:
            unknown = [f for f in self._given if f not in names]
            if unknown:
                raise ValueError(
                    f"features has {unknown[0]!r}, but the held-out batch has {', '.join(names)}"
                )
            return list(self._given)
        if len(names) <= self._MOST:
            return names
        strongest = np.argsort(-share, kind="stable")[: self._MOST - 1]
        return [names[i] for i in sorted(strongest)]
