"""Temporal importance: which inputs, at which steps, carry the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .results import ArrayResult, FloatArray

__all__ = ["TemporalImportance", "temporal_importance"]


@dataclass(frozen=True, eq=False)
class TemporalImportance(ArrayResult):
    """Input × gradient of one scalar target per sequence, averaged over sequences.

    As an array it is ``importance``. With ``A[b,t,f] = x[b,t,f] * dy_b/dx[b,t,f]``:

    Attributes:
        importance: ``(T, F)``, mean over sequences of ``|A|``, in units of the target.
        signed: ``(T, F)``, mean over sequences of ``A``: above 0 raises the target.
        sign_agreement: ``(T, F)`` in [0, 1], ``|signed| / importance``; 0 where importance is 0.
        feature_share: ``(F,)``, importance summed over time, as shares that sum to 1
            (all 0 when nothing matters).
        time_share: ``(T,)``, importance summed over features, likewise.
        target_values: ``(B,)``, the target of each sequence.
        target: Name of the target.
        method: Name of the attribution method.
        sequences: How many sequences went into the means.
        non_finite: How many sequences were left out because their attribution had NaN or infinity.
        mean_lag: Importance-weighted mean number of steps between an input and its sequence's last
            real step; NaN when nothing matters.
        feature_names: One name per feature.
    """

    importance: FloatArray
    signed: FloatArray
    sign_agreement: FloatArray
    feature_share: FloatArray
    time_share: FloatArray
    target_values: FloatArray
    target: str
    method: str
    sequences: int
    non_finite: int
    mean_lag: float
    feature_names: tuple[str, ...]

    @property
    def _main(self) -> FloatArray:
        return self.importance

    @property
    def entropy(self) -> float:
        """Entropy of ``feature_share`` over that of equal shares: 1 = spread evenly, 0 = on one.

        NaN when nothing matters; 0 with one feature.
        """
        p = self.feature_share[self.feature_share > 0].astype(np.float64)
        if not p.size:
            return float("nan")
        if len(self.feature_share) == 1:
            return 0.0
        return float(-(p * np.log(p)).sum() / np.log(len(self.feature_share)))


def _shares(strength: FloatArray) -> FloatArray:
    total = strength.sum()
    return strength / total if total > 0 else np.zeros_like(strength)


def temporal_importance(
    inputs: FloatArray,
    gradient: FloatArray,
    *,
    target_values: FloatArray | None = None,
    mask: np.ndarray | None = None,
    target: str = "prediction at last step",
    feature_names: tuple[str, ...] | None = None,
) -> TemporalImportance:
    """Input × gradient, reduced over sequences.

    A sequence whose attribution has a non-finite entry is left out and counted.

    Args:
        inputs: ``(B, T, F)``.
        gradient: ``(B, T, F)``, gradient of each sequence's target with respect to its inputs.
        target_values: ``(B,)``; NaN where not given.
        mask: ``(B, T)``, true at real steps. Padding gets no attribution, and a step's mean is
            over the sequences that have it.
        target: Name of the target.
        feature_names: ``F`` names; ``feature 0`` … where not given.

    Source: input × gradient, Shrikumar et al. 2016 (arXiv:1605.01713), whose sum over a linear
    model's inputs is its output. The sign agreement tells a feature that always pushes one way
    from one whose pushes cancel.
    """
    batch, steps, features = inputs.shape
    with np.errstate(invalid="ignore", over="ignore"):
        attribution = inputs.astype(np.float64) * gradient.astype(np.float64)
    real = np.ones((batch, steps), bool) if mask is None else np.asarray(mask, bool)
    # Whatever stands in the padding (NaN included) is not the model's input.
    attribution = np.where(real[..., None], attribution, 0.0)
    finite = np.isfinite(attribution).all(axis=(1, 2))
    kept, kept_real = attribution[finite], real[finite]
    count = np.maximum(kept_real.sum(axis=0), 1)[:, None]
    importance = np.abs(kept).sum(axis=0) / count
    signed = kept.sum(axis=0) / count
    agreement = np.divide(
        np.abs(signed), importance, out=np.zeros_like(signed), where=importance > 0
    )
    last = steps - 1 - np.argmax(real[:, ::-1], axis=1)
    weight = np.abs(kept).sum(axis=2)
    lag = last[finite][:, None] - np.arange(steps)
    total = weight.sum()
    return TemporalImportance(
        importance=importance.astype(np.float32),
        signed=signed.astype(np.float32),
        sign_agreement=np.clip(agreement, 0.0, 1.0).astype(np.float32),
        feature_share=_shares(importance.sum(axis=0)).astype(np.float32),
        time_share=_shares(importance.sum(axis=1)).astype(np.float32),
        target_values=np.full(batch, np.nan, np.float32)
        if target_values is None
        else target_values,
        target=target,
        method="input_x_gradient",
        sequences=int(finite.sum()),
        non_finite=int((~finite).sum()),
        mean_lag=float((weight * lag).sum() / total) if total > 0 else float("nan"),
        feature_names=feature_names or tuple(f"feature {i}" for i in range(features)),
    )
