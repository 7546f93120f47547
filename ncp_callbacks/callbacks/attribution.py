"""Which features the target depends on, and at which steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis import TemporalImportance
from ..measures import importance
from ..observation import Need, Observation
from ..plots import plot_feature_importance
from ..records import Array, Figure, Note, Record, Scalar
from ..schedules import ScheduleLike
from .base import Callback, GrowingLimit, non_finite

__all__ = ["GradientAttribution"]


class GradientAttribution(Callback):
    """Input × gradient of the target, per time step and feature.

    Costs one gradient pass, shared with :class:`TimeSensitivity`.

    =============================== ========= ====================================================
    Tag                             Record    What
    =============================== ========= ====================================================
    ``attribution/heatmap``         image     mean over sequences of x·dy/dx, step by feature
    ``attribution/strength``        scalar    sum over the map of mean absolute x·dy/dx
    ``attribution/entropy``         scalar    1: all features matter equally, 0: one does
    ``attribution/sign_agreement``  scalar    1: every push has the same sign in all sequences
    ``attribution/mean_lag``        scalar    how many steps before the last one, on average
    ``attribution/nonfinite``       scalar    sequences left out because of NaN or infinity
    ``attribution_share/<feature>`` scalar    share of a feature in the strength; at most 11 and
                                              ``attribution_share/other``
    ``_ncp/attribution_strength``   array     ``(T, F)``, mean over sequences of the absolute value
    ``_ncp/attribution_signed``     array     ``(T, F)``, mean over sequences
    =============================== ========= ====================================================

    With a target other than the prediction at the last step, ``attribution`` is followed by its
    name, as in ``attribution_loss/heatmap``.

    Args:
        features: Names of the features whose share is logged as a curve, at most 12; by default
            all, or of more than 12 the 11 strongest at the first look.
        every, name: See :class:`Callback`.
    """

    needs = frozenset({Need.INPUT_GRADIENT})
    default_name = "attribution"
    _MOST = 12

    def __init__(
        self,
        *,
        features: Sequence[str] | None = None,
        every: ScheduleLike | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(every=every, name=name)
        if features is not None and (isinstance(features, str) or len(features) > self._MOST):
            raise ValueError(
                f"features={features!r}: give a list of at most {self._MOST} feature names"
            )
        if features is not None and len(set(features)) < len(features):
            raise ValueError(f"features={features!r}: a name stands there more than once")
        self._given = features
        self._shown: list[str] | None = None
        self._limit = GrowingLimit()

    def state_dict(self) -> dict[str, Any]:
        return {"shown": self._shown, "limit": self._limit.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shown = None if state["shown"] is None else list(state["shown"])
        self._limit = GrowingLimit(float(state["limit"]))

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        result = importance(observation)
        group = self.name + observation.target_slug
        of = f"of the {result.target}"
        if result.sequences:
            limit = self._limit.covering(float(np.abs(result.signed).max()))
            yield Figure(
                f"{group}/heatmap",
                plot_feature_importance,
                result,
                {"limit": limit, "step": observation.step},
                f"Input × gradient {of}, mean over held-out sequences: orange "
                "raises the target, purple lowers it. Bars: share of each feature in the mean "
                "absolute value. Unit: that of the target.",
            )
            weight = result.importance.astype(np.float64)
            strength = float(weight.sum())
            yield Scalar(
                f"{group}/strength",
                strength,
                f"Mean absolute input × gradient {of}, summed over steps and features; in its unit",
            )
            if strength > 0:
                yield Scalar(
                    f"{group}/entropy",
                    result.entropy,
                    "Entropy of the feature shares: 1 all features matter equally, 0 only one does",
                )
                yield Scalar(
                    f"{group}/sign_agreement",
                    float((result.sign_agreement * weight).sum() / strength),
                    "1: inputs push the target the same way in all sequences; 0: pushes cancel",
                )
                yield Scalar(
                    f"{group}/mean_lag",
                    result.mean_lag,
                    "Mean distance from a sequence's last step, weighted by importance; in steps",
                )
            yield from self._shares(result, group)
            yield Array(f"_ncp/{group}_strength", result.importance)
            yield Array(f"_ncp/{group}_signed", result.signed)
        yield from non_finite(
            group, result.non_finite, "sequences", "their attribution had NaN or infinity"
        )

    def _shares(self, result: TemporalImportance, group: str) -> Iterable[Record | Note]:
        names = list(result.feature_names)
        if self._shown is None:
            self._shown = self._choose(names, result.feature_share)
        share = dict(zip(names, result.feature_share.tolist(), strict=True))
        for feature in self._shown:
            yield Scalar(
                f"{group}_share/{feature}",
                share[feature],
                f"Share of {feature} in {group}/strength",
            )
        if len(self._shown) < len(names):
            rest = 1.0 - sum(share[f] for f in self._shown)
            other = "other" if "other" not in self._shown else "other_features"
            yield Scalar(
                f"{group}_share/{other}", max(0.0, rest), "Share of all features without a curve"
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
