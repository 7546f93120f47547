"""Which features act on the target together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ...attribution.compute import baseline_of, time_baseline_of
from ...callback import (
    AxisLimit,
    Callback,
    ci_suffix,
    non_finite_count,
    scalar_with_ci,
    small_batch_note,
)
from ...model import NotApplicable
from ...observation import Observation
from ...records import Array, Figure, Note, Record, Scalar
from ...scheduling import ScheduleLike
from ...stats import SHARE, SIZE, Estimate
from .analysis import (
    Archipelago,
    Indices,
    InteractionMethod,
    Interactions,
    group_effects,
    interaction_method,
)
from .plot import plot_interactions

__all__ = ["FeatureInteractions"]


class FeatureInteractions(Callback):
    """Which features act on the target together, rather than each by itself.

    Features are taken over all time steps, and the intervals are one more, whose pairs say whether
    a feature matters only when it is recent. With ``G`` of them, a look takes up to ``G² + G + 2``
    forward passes of ``max_sequences`` sequences; ``integrated_hessians`` ``G n_steps`` products of
    a Hessian with a vector, each some four gradient passes. So look rarely: ``every=``.

    ======================================== ====== ==============================================
    Tag                                      Record What
    ======================================== ====== ==============================================
    ``interactions/matrix``                  image  strength of every pair, and of each feature
                                                    alone
    ``interactions/share``                   scalar share of pairs in the strength of pairs and of
                                                    features alone: 0 each acts by itself
    ``interactions/time_share``              scalar share of pairs with the intervals in that of all
                                                    pairs
    ``interactions/higher_order``            scalar what neither pairs nor features alone explain
                                                    (``archipelago``)
    ``interactions/completeness_error``      scalar error of the quadrature
                                                    (``integrated_hessians``)
    ``interactions/sequences``               scalar sequences that went in
    ``interactions/nonfinite``               scalar sequences left out because of NaN or infinity
    ``interactions_pair/<pair>``             scalar strength of a pair: the 6 strongest at the first
                                                    look
    ``_ncp/interactions_strength``           array  ``(G, G)``, mean over sequences of the absolute
                                                    value; on the diagonal features alone
    ``_ncp/interactions_signed``             array  ``(G, G)``, mean over sequences
    ======================================== ====== ==============================================

    With a target other than the prediction at the last step, ``interactions`` is followed by its
    name, as in ``interactions_loss/matrix``. Shares, pairs and the rest come with 95 % CIs
    over sequences, which of fewer than 16, as by default, are unreliable. Everything is relative
    to the baseline: two features that are always at it have no part in anything.

    Args:
        method: ``"archipelago"``: what changes when two features are replaced by their baseline
            together, beyond what each changes by itself; or ``"integrated_hessians"``: second
            derivatives averaged along the line from the baseline, which share a product of two
            features among the pair and the features alone; or an object,
            ``IntegratedHessians(n_steps=32)`` of :mod:`ncp_callbacks.callbacks.feature_interactions.analysis`.
        baseline: ``"mean"`` of each feature over all held-out sequences and their steps,
            ``"zeros"``, or an array ``(F,)``, ``(T, F)`` or ``(B, T, F)``, ``B`` being all held-out
            sequences or those analysed.
        time_baseline: ``"mean"``, ``"zeros"``, or an array ``(T,)`` or ``(B, T)``, for elapsed
            times.
        every, name, max_sequences: See :class:`Callback`.

    With more than 12 features, the 11 whose replacement changes the target most at the first look
    are looked at by themselves, and the others as one.
    """

    default_name = "interactions"
    max_sequences: int | None = 8
    _MOST, _CURVES, _BANDS = 12, 6, 3

    def __init__(
        self,
        *,
        method: str | InteractionMethod = Archipelago(),  # noqa: B008 (frozen)
        baseline: Any = "mean",
        time_baseline: Any = "mean",
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = 8,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self.max_sequences = max_sequences
        self._method = interaction_method(method)
        self._baseline, self._time_baseline = baseline, time_baseline
        self._own: list[str] | None = None
        self._pairs: list[tuple[str, str]] | None = None
        self._limit, self._bars = AxisLimit(), AxisLimit()

    def state_dict(self) -> dict[str, Any]:
        return {
            "own": self._own,
            "pairs": None if self._pairs is None else [list(pair) for pair in self._pairs],
            "limits": [self._limit.value, self._bars.value],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._own = None if state["own"] is None else list(state["own"])
        pairs = state["pairs"]
        self._pairs = None if pairs is None else [(str(a), str(b)) for a, b in pairs]
        self._limit, self._bars = (AxisLimit(float(v)) for v in state["limits"])

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        group = self.name + observation.target_slug
        x = observation.inputs
        x0 = baseline_of(observation, self._baseline)
        dt = dt0 = None
        if observation.takes_time:
            dt = observation.time_delta
            assert dt is not None
            dt0 = time_baseline_of(observation, self._time_baseline)
            assert dt0 is not None
            if np.allclose(dt, dt0, rtol=1e-6, atol=0.0):
                dt = dt0 = None
                yield Note(
                    f"{group}: the intervals are all at their baseline and so have no part in "
                    "anything; give another time_baseline=, such as one that is shorter"
                )
        names, groups = self._groups(observation, x0)
        if dt is not None:
            names = [*names, "intervals" if "intervals" not in names else "time intervals"]
        if len(names) < 2:
            raise NotApplicable(
                f"there is nothing but {names[0]} for the target to depend on, and a pair takes two"
            )
        result = self._method.interactions(
            observation.evaluate, observation.slopes, x, dt,
            baseline=x0, time_baseline=dt0, groups=groups, names=names,
        )  # fmt: skip
        if result.sequences:
            yield from small_batch_note(observation)
            if not (result.main.any() or result.pairs.any()):
                yield Note(
                    f"{group}: the {observation.target} is the same, up to rounding, with any of "
                    "its features at the baseline: nothing acts on it, alone or together"
                )
            yield self._matrix(result, group, observation)
            yield from self._numbers(result, group, observation, with_time=dt is not None)
            yield from self._curves(result, group, observation.target)
            main = np.diag(result.main_strength)
            yield Array(f"_ncp/{group}_strength", result.strength + main)
            yield Array(f"_ncp/{group}_signed", result.signed + np.diag(result.main.mean(axis=0)))
        yield from non_finite_count(
            group, result.non_finite, "sequences", "their interactions had NaN or infinity"
        )

    def _groups(
        self, observation: Observation, baseline: np.ndarray
    ) -> tuple[list[str], list[Indices]]:
        """Names of the groups of features, and their features."""
        names = list(observation.held_out.feature_names)
        if observation.held_out.tokens:
            return names, [np.arange(observation.inputs.shape[2])]
        each = [np.array([i]) for i in range(len(names))]
        if self._own is None:
            self._own = names
            if len(names) > self._MOST:
                effects = group_effects(
                    observation.evaluate, observation.inputs, baseline=baseline, groups=each
                )
                strongest = np.argsort(-effects, kind="stable")[: self._MOST - 1]
                self._own = [names[i] for i in sorted(strongest)]
        own = [i for i, name in enumerate(names) if name in self._own]
        others = np.array([i for i in range(len(names)) if i not in own], np.intp)
        if not others.size:
            return names, each
        other = "others" if "others" not in self._own else "other features"
        return [*(names[i] for i in own), other], [*(each[i] for i in own), others]

    def _matrix(self, result: Interactions, group: str, observation: Observation) -> Record:
        bars = result.main_strength + result.strength.sum(axis=1) / 2
        return Figure(
            f"{group}/matrix",
            plot_interactions,
            result,
            {
                "limit": self._limit.covering(float(result.strength.max())),
                "bars": self._bars.covering(float(bars.max())),
                "target": observation.target,
                "step": observation.step,
            },
            f"What each pair does to the {observation.target} together, beyond what each does "
            "alone: mean absolute value over held-out sequences, in units of the target. Bars: "
            "each alone, and its part in all its pairs.",
        )

    def _numbers(
        self, result: Interactions, group: str, observation: Observation, with_time: bool
    ) -> Iterator[Record | Note]:
        yield Scalar(
            f"{group}/sequences",
            result.sequences,
            "Held-out sequences that went in",
        )
        if np.isfinite(result.share):
            yield Scalar(
                f"{group}/share",
                result.share,
                "Share of pairs in the strength of pairs and of features alone: 0 each feature "
                f"acts on the {observation.target} by itself{ci_suffix(result.sequences)}",
                ci=result.share_ci,
            )
        total = result.strength.sum() / 2
        if with_time and total > 0:
            pairs = np.abs(result.pairs)
            yield scalar_with_ci(
                f"{group}/time_share",
                float(result.strength[-1].sum() / total),
                Estimate.ratio(pairs[:, -1].sum(axis=1), pairs.sum(axis=(1, 2)) / 2, SHARE),
                "Share of pairs with the intervals in the strength of all pairs: features that "
                "matter more, or less, when they are recent",
            )
        rest = np.sqrt(np.mean(result.rest**2))
        if not self._method.complete:
            yield scalar_with_ci(
                f"{group}/higher_order",
                float(rest),
                _in_rms_changes(result),
                "RMS over sequences of what neither pairs nor features alone explain of the "
                "change from the baseline, in RMS changes: three or more acting together",
            )
        else:
            yield Scalar(
                f"{group}/completeness_error",
                float(rest),
                "RMS difference between the sum of all interactions and the change from the "
                "baseline, in RMS changes: the error of the quadrature",
            )
            if rest > 0.05:
                yield Note(
                    f"{group}: the interactions of some snapshots don't sum to the change of the "
                    f"target within 5 %, see {group}/completeness_error: set a larger n_steps="
                )

    def _curves(self, result: Interactions, group: str, target: str) -> Iterator[Record]:
        names = result.names
        rows, columns = np.tril_indices(len(names), -1)
        if self._pairs is None:
            order = np.argsort(-result.strength[rows, columns], kind="stable")[: self._CURVES]
            self._pairs = [(names[columns[k]], names[rows[k]]) for k in order]
        for place, (first, second) in enumerate(self._pairs):
            if first not in names or second not in names:
                continue
            i, j = names.index(first), names.index(second)
            yield Scalar(
                f"{group}_pair/{first}_x_{second}",
                float(result.strength[i, j]),
                f"Mean absolute effect of {first} and {second} together on the {target}, beyond "
                f"what each does alone; in units of the target{ci_suffix(result.sequences)}",
                ci=result.strength_ci(i, j),
                chart=place < self._BANDS,
            )


def _in_rms_changes(result: Interactions) -> Estimate:
    """RMS of the rest, and how sure it is with the unit that it is in."""
    change = np.square(result.change, dtype=np.float64)
    rest = result.rest.astype(np.float64) ** 2 * change.mean()
    parts = np.stack([rest, change], axis=1)
    return Estimate.of_sums(lambda sums: np.sqrt(sums[..., 0] / sums[..., 1]), parts, SIZE)
