"""Summarize an attribution over sequences, as temporal importance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..results import ArrayResult, FloatArray, compact
from ..stats import SHARE, SIZE, Estimate, ci_array, with_cis
from ..stats.reliability import split_half
from .base import Attribution
from .gradients import InputXGradient

__all__ = ["TemporalImportance", "summarize", "temporal_importance"]


@dataclass(frozen=True, eq=False)
class TemporalImportance(ArrayResult):
    """Hold the attribution of one scalar target per sequence, summarized over sequences.

    As an array it is ``importance``. ``A[b,t,f]`` is the part attributed to input ``f`` at time
    step ``t`` of sequence ``b``, in the method's unit.

    Attributes:
        importance: ``(T, F)``, mean over sequences of ``|A|``, in ``unit``.
        signed: ``(T, F)``, mean over sequences of ``A``; above 0, the input raises the target.
        sign_agreement: ``(T, F)`` in [0, 1], ``|signed| / importance``; 0 where importance is 0.
        feature_share: ``(F,)``, shares of the features' contributions (``by_sequence``), which sum
            to 1; all 0 if every contribution is 0.
        time_share: ``(T,)``, importance summed over features, as shares that sum to 1.
        target_values: ``(B,)``, the target of each sequence.
        target: Name of the target.
        method: Name of the attribution method.
        label: The method's name in running text.
        unit: The unit of the attributions, for example "units of the target".
        sequences: Number of sequences in the means.
        non_finite: Number of sequences skipped because their attribution had NaN or infinity.
        mean_lag: Mean number of time steps between an input and its sequence's last real time step,
            weighted by importance in each sequence; its mean over the sequences with attributions;
            NaN if there are none. Weighted over all sequences, a few large ones would decide.
        feature_names: One name per feature.
        by_sequence: ``(S, F)``, contribution of each feature to the target of each sequence of the
            means, in the order of the batch: ``|sum_t A|``. Pushes that cancel over the sequence
            don't count, as they don't when the feature is removed: in 17 trained networks shares
            of contributions are at a distance (L1) of .12 from those by intervention, and shares of
            ``importance`` at .25 (``benchmarks/shares.py``). For slopes, and where each time step
            has a target of its own, it is ``sum_t |A|``.
        strength_by_sequence: ``(S,)``, strength of each sequence; its mean is the sum of
            ``importance``.
        lag_by_sequence: ``(S, 2)``, 1 and the mean lag of each sequence, or 0 and 0 for one without
            attributions.
        time_delta_by_sequence: ``(S,)``, contribution of elapsed time to the target of each
            sequence, as for features; None if nothing is attributed to elapsed time.
        share_ci: ``(2, F)``, 95 % CI of ``feature_share`` over sequences.
        strength_ci: ``(2,)``, 95 % CI of ``importance.sum()`` over sequences.
        reliability: Split-half reliability over sequences of the map ``importance``: 1 if another
            batch would show an equal map, 0 if the map is noise; see
            :func:`~ncp_callbacks.stats.reliability.split_half`.
        time_delta_importance: ``(T,)``, mean over sequences of ``|A|`` of the time elapsed before
            each time step; None if nothing is attributed to elapsed time.
        time_delta_signed: ``(T,)``, mean over sequences of this ``A``, with its sign; None if
            nothing is attributed to elapsed time.
        time_delta_share: Share of elapsed time in the contributions of features and elapsed time
            together. None if nothing is attributed to elapsed time, and for slopes, which are in
            different units; NaN if every attribution is 0.
        time_delta_share_ci: ``(2,)``, 95 % CI of ``time_delta_share``.
        error: ``(S,)``, completeness error of each sequence, see
            :attr:`~ncp_callbacks.attribution.Attribution.error`; None if the method is not
            complete.
    """

    _plot, _main_field = "plot_feature_importance", "importance"

    importance: FloatArray
    signed: FloatArray
    sign_agreement: FloatArray
    feature_share: FloatArray
    time_share: FloatArray
    target_values: FloatArray
    target: str
    method: str
    label: str
    unit: str
    sequences: int
    non_finite: int
    mean_lag: float
    feature_names: tuple[str, ...]
    by_sequence: FloatArray
    strength_by_sequence: FloatArray
    lag_by_sequence: FloatArray
    time_delta_by_sequence: FloatArray | None
    share_ci: FloatArray
    strength_ci: FloatArray
    reliability: float
    time_delta_importance: FloatArray | None
    time_delta_signed: FloatArray | None
    time_delta_share: float | None
    time_delta_share_ci: FloatArray | None
    error: FloatArray | None

    @property
    def entropy(self) -> float:
        """Return the entropy of ``feature_share``, as a fraction of the entropy of equal shares.

        It is 1 if all features matter equally, 0 if one feature has everything or is the only one,
        and NaN if every attribution is 0.
        """
        p = self.feature_share[self.feature_share > 0].astype(np.float64)
        if not p.size:
            return float("nan")
        if len(self.feature_share) == 1:
            return 0.0
        return float(-(p * np.log(p)).sum() / np.log(len(self.feature_share)))

    def estimates(self, features: Sequence[str] = ()) -> dict[str, Estimate]:
        """Return estimates over sequences, each with its CI, by name.

        They are ``strength``, ``mean_lag`` and ``time_share``, as far as they are defined. The
        entropy has none: where shares are nearly equal, chance makes it smaller, and CIs that were
        tried cover it in .86 of the batches only.

        Args:
            features: Names of features whose shares are added, as ``share/<feature>``.
        """
        parts = self.by_sequence.astype(np.float64)
        whole, strength = parts.sum(axis=1), self.strength_by_sequence.astype(np.float64)
        if not len(whole) or not strength.sum() > 0:
            return {}
        longest = SIZE.within(0.0, len(self.signed) - 1.0)
        found = {
            "strength": Estimate.mean(strength, SIZE),
            "mean_lag": Estimate.ratio(
                self.lag_by_sequence[:, 1], self.lag_by_sequence[:, 0], longest
            ),
        }
        own = self.time_delta_by_sequence
        if own is not None and self.time_delta_share is not None:
            found["time_share"] = Estimate.ratio(own, own + whole, SHARE)
        found = with_cis(found)
        own_parts = parts[:, [self.feature_names.index(name) for name in features]]
        shares = Estimate.ratios(own_parts, whole, SHARE)
        found |= {f"share/{name}": share for name, share in zip(features, shares, strict=True)}
        return found


def _mean_lags(weight: FloatArray, lag: npt.NDArray[np.integer[Any]]) -> FloatArray:
    """Return ``(S, 2)``: 1 and the mean lag of each sequence, or 0 and 0 without attributions."""
    total = weight.sum(axis=1)
    some = total > 0
    mean = np.divide((weight * lag).sum(axis=1), total, out=np.zeros(len(total)), where=some)
    return np.stack([some, mean], axis=1)


def _shares(strength: FloatArray) -> FloatArray:
    """Return strengths as shares of their sum; all 0 if the sum is 0."""
    total = strength.sum()
    return strength / total if total > 0 else np.zeros_like(strength)


def temporal_importance(
    inputs: FloatArray,
    gradient: FloatArray,
    *,
    target_values: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    target: str = "prediction at last step",
    feature_names: tuple[str, ...] | None = None,
) -> TemporalImportance:
    """Return the summary of input × gradient over sequences; see :func:`summarize`.

    Args:
        inputs: ``(B, T, F)``.
        gradient: ``(B, T, F)``, gradient of each sequence's target with respect to its inputs.
        target_values: See :func:`summarize`.
        mask: See :func:`summarize`.
        target: See :func:`summarize`.
        feature_names: See :func:`summarize`.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        product = inputs.astype(np.float64) * gradient.astype(np.float64)
    return summarize(
        Attribution(InputXGradient(), product),
        target_values=target_values,
        mask=mask,
        target=target,
        feature_names=feature_names,
    )


def summarize(
    attribution: Attribution,
    *,
    target_values: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    target: str = "prediction at last step",
    feature_names: tuple[str, ...] | None = None,
    one_target: bool = True,
) -> TemporalImportance:
    """Return the summary of an attribution over sequences.

    A sequence whose attribution has a non-finite entry is skipped and counted. The sign agreement
    distinguishes a feature that always pushes one way from one whose pushes cancel.

    Args:
        attribution: The maps of ``B`` sequences.
        target_values: ``(B,)``; None for NaN.
        mask: ``(B, T)``, true at real time steps. Padding gets no attribution, and the mean of a
            time step is over the sequences that have it.
        target: Name of the target.
        feature_names: ``F`` names; None for ``feature 0``, ``feature 1`` and so on.
        one_target: False where each time step is attributed for a target of its own, so that the
            attributions of a sequence have no sum.
    """
    batch, steps, features = attribution.inputs.shape
    real = np.ones((batch, steps), bool) if mask is None else np.asarray(mask, bool)
    # Whatever stands in the padding (NaN included) is not the model's input.
    values = np.where(real[..., None], attribution.inputs, 0.0)
    by_time = attribution.time_delta
    by_time = None if by_time is None else np.where(real, by_time, 0.0)
    finite = np.isfinite(values).all(axis=(1, 2))
    if by_time is not None:
        finite &= np.isfinite(by_time).all(axis=1)
    kept, kept_real = values[finite], real[finite]
    strength = np.abs(kept)
    count = np.maximum(kept_real.sum(axis=0), 1)
    importance = strength.sum(axis=0) / count[:, None]
    signed = kept.sum(axis=0) / count[:, None]
    agreement = np.divide(
        np.abs(signed), importance, out=np.zeros_like(signed), where=importance > 0
    )
    last = steps - 1 - np.argmax(real[:, ::-1], axis=1)
    weight = strength.sum(axis=2)
    lag = last[finite][:, None] - np.arange(steps)
    lags = _mean_lags(weight, lag)
    # A time step that fewer sequences have counts for more in each of them.
    by_step = weight @ (len(kept) / count)
    adds_up = one_target and not attribution.method.is_slope
    by_sequence = np.abs(kept.sum(axis=1)) if adds_up else strength.sum(axis=1)
    error = attribution.error
    whole = by_sequence.sum(axis=1)
    cis = ci_array([Estimate.mean(by_step, SIZE), *Estimate.ratios(by_sequence, whole, SHARE)])
    return TemporalImportance(
        importance=compact(importance),
        signed=compact(signed),
        sign_agreement=np.clip(agreement, 0.0, 1.0).astype(np.float32),
        feature_share=_shares(by_sequence.sum(axis=0)).astype(np.float32),
        time_share=_shares(importance.sum(axis=1)).astype(np.float32),
        target_values=np.full(batch, np.nan, np.float32)
        if target_values is None
        else target_values,
        target=target,
        method=attribution.method.name,
        label=attribution.method.label,
        unit=attribution.method.unit,
        sequences=int(finite.sum()),
        non_finite=int((~finite).sum()),
        mean_lag=float(lags[:, 1].sum() / lags[:, 0].sum()) if lags[:, 0].any() else float("nan"),
        feature_names=feature_names or tuple(f"feature {i}" for i in range(features)),
        by_sequence=compact(by_sequence),
        strength_by_sequence=compact(by_step),
        lag_by_sequence=lags,
        share_ci=cis[:, 1:].astype(np.float32),
        strength_ci=compact(cis[:, 0]),
        reliability=split_half(strength, kept_real),
        **_time_delta_fields(
            None if by_time is None else by_time[finite],
            by_sequence,
            count,
            is_slope=attribution.method.is_slope,
            adds_up=adds_up,
        ),
        error=None if error is None else compact(error[finite]),
    )


def _time_delta_fields(
    values: FloatArray | None,
    by_sequence: FloatArray,
    count: npt.NDArray[np.integer[Any]],
    *,
    is_slope: bool,
    adds_up: bool,
) -> dict[str, Any]:
    """Return the fields on elapsed time.

    Args:
        values: ``(S, T)``, attributed to elapsed time.
        by_sequence: ``(S, F)``, contribution of each feature in each sequence.
        count: ``(T,)``, number of sequences that have each time step.
        is_slope: True if the attributions are slopes.
        adds_up: True if the attributions of a sequence have a sum.
    """
    if values is None:
        names = ("importance", "signed", "share", "share_ci", "by_sequence")
        return dict.fromkeys(f"time_delta_{name}" for name in names)
    importance = np.abs(values).sum(axis=0) / count
    own = np.abs(values.sum(axis=1)) if adds_up else np.abs(values).sum(axis=1)
    # Summed apart, so that a share of everything is exactly 1.
    total = float(own.sum()) + float(by_sequence.sum())
    if is_slope:
        # Slopes per unit of an input and per unit of time have no common total.
        share, ci = None, None
    else:
        share = float(own.sum()) / total if total > 0 else float("nan")
        both = own + by_sequence.sum(axis=1)
        ci = ci_array([Estimate.ratio(own, both, SHARE)])[:, 0].astype(np.float32)
    return {
        "time_delta_importance": compact(importance),
        "time_delta_signed": compact(values.sum(axis=0) / count),
        "time_delta_share": share,
        "time_delta_by_sequence": own,
        "time_delta_share_ci": ci,
    }
