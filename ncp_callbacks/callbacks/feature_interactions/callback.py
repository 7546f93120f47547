"""Log which features act on the target together."""

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
from ...observation import Need, Observation
from ...records import Array, Figure, Note, Record, Scalar
from ...results import FloatArray, Indices
from ...scheduling import ScheduleLike
from ...stats import SHARE, SIZE, Estimate
from .analysis import (
    Archipelago,
    InteractionMethod,
    Interactions,
    group_effects,
    interaction_method,
)
from .plot import plot_interactions

__all__ = ["FeatureInteractions"]

_MAX_FEATURES, _PAIR_CURVES = 12, 6
_MAX_COMPLETENESS_ERROR = 0.05

_DESCRIPTIONS = {
    "matrix": "Effect of each pair of features on the {target} beyond the effects of the two "
    "alone: mean absolute value over held-out sequences, in units of the target. Bars: each "
    "feature alone, and its part in all its pairs",
    "sequences": "Held-out sequences analysed",
    "share": "Share of pairs in the strength of pairs and of features alone: 0 if each feature "
    "acts on the {target} by itself",
    "time_share": "Share of pairs with the elapsed time in the strength of all pairs: above 0 if "
    "features matter more, or less, when they are recent",
    "higher_order": "RMS over sequences of the part of the change from the baseline that neither "
    "pairs nor features alone explain, relative to the RMS change: above 0 if three or more act "
    "together",
    "completeness_error": "RMS difference between the sum of all interactions and the change from "
    "the baseline, relative to the RMS change: the error of the quadrature",
    "pair": "Mean absolute effect of {first} and {second} together on the {target}, beyond the "
    "effects of each alone; in units of the target",
}


class FeatureInteractions(Callback):
    """Measure how strongly pairs of features act on the target, beyond the effects of each alone.

    A feature stands for its values at all time steps. The elapsed times count as one more feature,
    whose pairs show whether a feature matters only when it is recent. With ``G`` features,
    ``archipelago`` takes up to ``G² + G + 2`` forward passes of ``max_sequences`` sequences, and
    ``integrated_hessians`` ``G n_steps`` products of a Hessian with a vector, each of about four
    gradient passes. This is expensive: set ``every=``.

    ======================================== ====== ==============================================
    Tag                                      Record What
    ======================================== ====== ==============================================
    ``interactions/matrix``                  image  strength of every pair, and of each feature
                                                    alone
    ``interactions/share``                   scalar share of pairs in the strength of pairs and of
                                                    features alone: 0 each acts by itself
    ``interactions/time_share``              scalar share of pairs with the elapsed time in the
                                                    strength of all pairs
    ``interactions/higher_order``            scalar the part that neither pairs nor features alone
                                                    explain (``archipelago``)
    ``interactions/completeness_error``      scalar error of the quadrature
                                                    (``integrated_hessians``)
    ``interactions/sequences``               scalar sequences analysed
    ``interactions/nonfinite``               scalar sequences skipped because of NaN or infinity
    ``interactions_pair/<pair>``             scalar strength of a pair, for the 6 strongest at the
                                                    first snapshot
    ``_ncp/interactions_strength``           array  ``(G, G)``, mean over sequences of the absolute
                                                    value; features alone on the diagonal
    ``_ncp/interactions_signed``             array  ``(G, G)``, mean over sequences
    ======================================== ====== ==============================================

    With a target other than the prediction at the last time step, ``interactions`` is followed by
    its name, as in ``interactions_loss/matrix``. Shares, pairs and the rest come with 95 % CIs over
    sequences, which are unreliable for fewer than 16, the default. All effects are relative to the
    baseline: a feature that is always at its baseline has none.

    Args:
        method: ``"archipelago"`` replaces features by their baseline and takes the change for two
            together beyond the changes for each; ``"integrated_hessians"`` averages second
            derivatives along the line from the baseline, which divides a product of two features
            between the pair and the features alone. Or an object of
            :mod:`ncp_callbacks.callbacks.feature_interactions.analysis`, such as
            ``IntegratedHessians(n_steps=32)``.
        baseline: ``"mean"`` of each feature over all held-out sequences and their time steps,
            ``"zeros"``, or an array ``(F,)``, ``(T, F)`` or ``(B, T, F)``, where ``B`` counts all
            held-out sequences or those analysed.
        time_baseline: Baseline of the elapsed times: ``"mean"``, ``"zeros"``, or an array ``(T,)``
            or ``(B, T)``.
        every, name, max_sequences: See :class:`Callback`.

    Of more than 12 features, the 11 whose replacement changes the target most at the first snapshot
    are analysed separately, and all others as one.
    """

    needs = frozenset({Need.VARIANTS})
    default_name = "interactions"
    max_sequences: int | None = 8

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
        if self._method.uses_slopes:
            self.needs |= {Need.HESSIAN_PRODUCTS}
        self._baseline, self._time_baseline = baseline, time_baseline
        self._own: list[str] | None = None
        self._pairs: list[tuple[str, str]] | None = None
        self._limit = self.keep("limit", AxisLimit())
        self._bars = self.keep("bars", AxisLimit())

    def state_dict(self) -> dict[str, Any]:
        pairs = None if self._pairs is None else [list(pair) for pair in self._pairs]
        return {**super().state_dict(), "own": self._own, "pairs": pairs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._own = None if state["own"] is None else list(state["own"])
        pairs = state["pairs"]
        self._pairs = None if pairs is None else [(str(a), str(b)) for a, b in pairs]

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        group, target = self.name + observation.target_slug, observation.target
        x0 = baseline_of(observation, self._baseline)
        dt, dt0 = _times(observation, self._time_baseline)
        if observation.takes_time and dt is None:
            yield Note(
                f"{group}: all elapsed times are equal to their baseline, so they have no effect; "
                "pass another time_baseline=, such as shorter elapsed times"
            )
        if self._own is None:
            self._own = _strongest_features(observation, x0)
        names, groups = _groups(observation, self._own)
        if dt is not None:
            names = [*names, "time_delta" if "time_delta" not in names else "elapsed_time"]
        if len(names) < 2:
            raise NotApplicable(
                f"{names[0]} is the only feature that the target depends on, and interactions need "
                "two; pass inputs with at least two features, or elapsed times"
            )
        passes = observation.extra_passes
        result = self._method.interactions(
            passes.evaluate, passes.slopes, observation.inputs, dt,
            baseline=x0, time_baseline=dt0, groups=groups, names=names,
        )  # fmt: skip
        if result.sequences:
            if self._pairs is None:
                self._pairs = _strongest_pairs(result)
            yield from small_batch_note(observation)
            yield _matrix(result, group, observation, self._limit, self._bars)
            yield from _scalars(result, group, target, self._method.complete, dt is not None)
            yield from _pair_scalars(result, self._pairs, group, target)
            yield from _arrays(result, group)
        yield from non_finite_count(
            group, result.non_finite, "sequences", "their interactions had NaN or infinity"
        )


def _times(observation: Observation, baseline: Any) -> tuple[FloatArray | None, FloatArray | None]:
    """Return elapsed times and their baseline; None for both where they have no effect."""
    if not observation.takes_time:
        return None, None
    dt, dt0 = observation.time_delta, time_baseline_of(observation, baseline)
    assert dt is not None
    assert dt0 is not None
    if np.allclose(dt, dt0, rtol=1e-6, atol=0.0):
        return None, None
    return dt, dt0


def _strongest_features(observation: Observation, baseline: FloatArray) -> list[str]:
    """Return the names of the features that are analysed separately."""
    names = list(observation.held_out.feature_names)
    if len(names) <= _MAX_FEATURES:
        return names
    effects = group_effects(
        observation.extra_passes.evaluate,
        observation.inputs,
        baseline=baseline,
        groups=_columns(observation),
    )
    strongest = np.argsort(-effects, kind="stable")[: _MAX_FEATURES - 1]
    return [names[i] for i in sorted(strongest)]


def _groups(observation: Observation, separate: list[str]) -> tuple[list[str], list[Indices]]:
    """Return the names of the groups of features, and the indices of their columns."""
    names, columns = list(observation.held_out.feature_names), _columns(observation)
    own = [i for i, name in enumerate(names) if name in separate]
    others = [columns[i] for i in range(len(names)) if i not in own]
    each = [columns[i] for i in own]
    if not others:
        return names, each
    other = "others" if "others" not in separate else "other features"
    return [*(names[i] for i in own), other], [*each, np.concatenate(others)]


def _columns(observation: Observation) -> list[Indices]:
    """Return the indices of the columns of each feature."""
    feature = observation.held_out.feature_of_columns(observation.inputs.shape[2])
    return [np.flatnonzero(feature == i) for i in range(len(observation.held_out.feature_names))]


def _strongest_pairs(result: Interactions) -> list[tuple[str, str]]:
    """Return the names of the pairs that get a curve."""
    rows, columns = np.tril_indices(len(result.names), -1)
    order = np.argsort(-result.strength[rows, columns], kind="stable")[:_PAIR_CURVES]
    return [(result.names[columns[k]], result.names[rows[k]]) for k in order]


def _matrix(
    result: Interactions, group: str, observation: Observation, limit: AxisLimit, bars: AxisLimit
) -> Figure:
    longest = (result.main_strength + result.strength.sum(axis=1) / 2).max()
    options = {
        "limit": limit.covering(float(result.strength.max())),
        "bars": bars.covering(float(longest)),
        "target": observation.target,
        "step": observation.step,
    }
    description = _DESCRIPTIONS["matrix"].format(target=observation.target)
    return Figure(f"{group}/matrix", plot_interactions, result, options, description)


def _scalars(
    result: Interactions, group: str, target: str, complete: bool, with_time: bool
) -> Iterator[Record | Note]:
    if not (result.main.any() or result.pairs.any()):
        yield Note(
            f"{group}: replacing any feature by its baseline does not change the {target} beyond "
            "rounding: nothing acts on it, alone or together. Pass another baseline= if this is "
            "unexpected"
        )
    sequences = _DESCRIPTIONS["sequences"]
    yield Scalar(f"{group}/sequences", result.sequences, sequences, place="data")
    if np.isfinite(result.share):
        description = _DESCRIPTIONS["share"].format(target=target) + ci_suffix(result.sequences)
        yield Scalar(f"{group}/share", result.share, description, ci=result.share_ci)
    total = result.strength.sum() / 2
    if with_time and total > 0:
        pairs = np.abs(result.pairs)
        yield scalar_with_ci(
            f"{group}/time_share",
            float(result.strength[-1].sum() / total),
            Estimate.ratio(pairs[:, -1].sum(axis=1), pairs.sum(axis=(1, 2)) / 2, SHARE),
            _DESCRIPTIONS["time_share"],
        )
    rest = float(np.sqrt(np.mean(result.rest**2)))
    if not complete:
        estimate = _rest_in_rms_changes(result)
        yield scalar_with_ci(f"{group}/higher_order", rest, estimate, _DESCRIPTIONS["higher_order"])
        return
    tag = f"{group}/completeness_error"
    yield Scalar(tag, rest, _DESCRIPTIONS["completeness_error"])
    if rest > _MAX_COMPLETENESS_ERROR:
        yield Note(
            f"{group}: the interactions of some snapshots don't sum to the change of the target "
            f"within {_MAX_COMPLETENESS_ERROR:.0%}, see {tag}: set a larger n_steps="
        )


def _pair_scalars(
    result: Interactions, pairs: list[tuple[str, str]], group: str, target: str
) -> Iterator[Record]:
    for first, second in pairs:
        if first not in result.names or second not in result.names:
            continue
        i, j = result.names.index(first), result.names.index(second)
        description = _DESCRIPTIONS["pair"].format(first=first, second=second, target=target)
        yield Scalar(
            f"{group}_pair/{first}_x_{second}",
            float(result.strength[i, j]),
            description + ci_suffix(result.sequences),
            ci=result.strength_ci(i, j),
        )


def _arrays(result: Interactions, group: str) -> Iterator[Array]:
    strength = result.strength + np.diag(result.main_strength)
    signed = result.signed + np.diag(result.main.mean(axis=0))
    # Groups of features, and the elapsed time, have names of their own.
    about = {"feature_names": list(result.names)}
    for name, values, kind in (("strength", strength, ""), ("signed", signed, " signed")):
        yield Array(
            f"_ncp/{group}_{name}", values, kind=f"interactions{kind}",
            axes=("feature", "feature"), about=about,
        )  # fmt: skip


def _rest_in_rms_changes(result: Interactions) -> Estimate:
    """Return the RMS of the rest; its CI includes the uncertainty of its unit."""
    change = np.square(result.change, dtype=np.float64)
    rest = result.rest.astype(np.float64) ** 2 * change.mean()
    parts = np.stack([rest, change], axis=1)
    return Estimate.of_sums(lambda sums: np.sqrt(sums[..., 0] / sums[..., 1]), parts, SIZE)
