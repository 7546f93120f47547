"""Measure how the target changes when all elapsed times are multiplied by a factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...results import FloatArray, MappingResult
from ...stats import SIZE, Estimate, ci_array, with_cis
from ...stats.estimate import sd_of_sums

__all__ = [
    "TimeSensitivity",
    "checked_scales",
    "share_outside",
    "solver_share",
    "time_sensitivity",
]


@dataclass(frozen=True, eq=False)
class TimeSensitivity(MappingResult):
    """Hold how one scalar target per sequence reacts to elapsed time.

    Attributes:
        scales: ``(S,)``, factors by which all elapsed times were multiplied, increasing.
        sensitivities: ``(S,)``, ``RMS_b(y(s) - y(1)) / SD_b(y(1))``; exactly 0 at scale 1. NaN
            where the target moved but is equal for all sequences, so its SD is 0.
        rms_change: ``(S,)``, ``RMS_b(y(s) - y(1))``, in units of the target.
        mean_change: ``(S,)``, mean over sequences of ``y(s) - y(1)``, with its sign.
        target_mean: Mean over sequences of ``y(1)``.
        target_sd: Standard deviation over sequences of ``y(1)``.
        elasticity: ``(B,)``, ``dy/dln s`` at ``s = 1`` of each sequence, ``sum_t dt_t dy/d dt_t``;
            in units of the target. NaN if no gradient was passed.
        elasticity_by_step: ``(B, T)``, the terms ``dt_t dy/d dt_t`` at each time step; 0 in
            padding.
        target: Name of the target.
        sequences: Number of sequences used.
        non_finite: Number of sequences skipped because of NaN or infinity at any scale.
        by_sequence: ``(S, B)``, the target of each sequence at each scale.
        ci: ``(2, S)``, 95 % CIs over sequences of ``sensitivities``, or of ``rms_change`` if the
            SD of the target is 0. 0 where nothing moved, NaN where no CI is known.
    """

    _plot = "plot_time_sensitivity"

    scales: FloatArray
    sensitivities: FloatArray
    rms_change: FloatArray
    mean_change: FloatArray
    target_mean: float
    target_sd: float
    elasticity: FloatArray
    elasticity_by_step: FloatArray
    target: str
    sequences: int
    non_finite: int
    by_sequence: FloatArray
    ci: FloatArray

    def _per_sd(self, value: float) -> float:
        """Return a value in SDs of the target; NaN if it is not 0 and the SD is."""
        if value == 0.0:
            return 0.0
        return value / self.target_sd if self.target_sd > 0 else float("nan")

    @property
    def relative_elasticity(self) -> float:
        """Return the RMS over sequences of the elasticity, in SDs of the target."""
        return self._per_sd(float(np.sqrt(np.mean(np.square(self.elasticity, dtype=np.float64)))))

    @property
    def mean_elasticity(self) -> float:
        """Return the mean over sequences of the elasticity, with its sign, in SDs of the target."""
        return self._per_sd(float(np.mean(self.elasticity, dtype=np.float64)))

    def estimates(self) -> dict[str, Estimate]:
        """Return ``sensitivity_x<scale>``, ``elasticity`` and ``elasticity_rms`` as estimates.

        They are in SDs of the target. The CIs include the uncertainty of the SD.
        """
        base = self.by_sequence[list(self.scales).index(1.0)]
        found = {
            f"sensitivity_x{scale:g}": _in_sds(values - base, base)
            for scale, values in zip(self.scales, self.by_sequence, strict=True)
            if scale != 1
        }
        if np.isfinite(self.elasticity).all() and len(self.elasticity):
            found["elasticity_rms"] = _in_sds(self.elasticity, base)
            found["elasticity"] = _mean_in_sds(self.elasticity, base)
        return with_cis(found)

    @property
    def rms_ci(self) -> FloatArray:
        """Return ``(2, S)``, 95 % CIs over sequences of ``rms_change``; 0 where nothing moved."""
        changes = self.by_sequence - self.by_sequence[list(self.scales).index(1.0)]
        return _drawn_cis([Estimate.rms(change**2) for change in changes])

    @property
    def ignores_time(self) -> bool:
        """Return True if neither scaling nor the gradient moved any target."""
        moved = bool(self.rms_change.any()) or bool(np.nan_to_num(self.elasticity_by_step).any())
        return not moved and self.sequences > 0


def _in_sds(values: FloatArray, target: FloatArray) -> Estimate:
    """Return the RMS of one number per sequence, in SDs of another."""
    y, d = target - target.mean(), np.asarray(values, np.float64)
    ones = np.ones(len(y))

    def per_sd(sums: FloatArray) -> FloatArray:
        return np.asarray(np.sqrt(np.maximum(sums[..., 3] / sums[..., 0], 0)) / sd_of_sums(sums))

    parts = np.stack([ones, y, y**2, d**2], axis=1)
    return Estimate.of_sums(per_sd, parts, SIZE, weights=parts[:, 3])


def _mean_in_sds(values: FloatArray, target: FloatArray) -> Estimate:
    """Return the mean of one number per sequence, in SDs of another."""
    y = target - target.mean()
    parts = np.stack([np.ones(len(y)), y, y**2, values], axis=1)
    return Estimate.of_sums(lambda sums: sums[..., 3] / sums[..., 0] / sd_of_sums(sums), parts)


def _drawn_cis(estimates: list[Estimate]) -> FloatArray:
    """Return ``(2, S)`` CIs, 0 where nothing moved."""
    return np.where([estimate.value == 0 for estimate in estimates], 0.0, ci_array(estimates))


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Return scales as increasing floats that include 1.

    Raises:
        TypeError: If ``scales`` is not a sequence of numbers.
        ValueError: If a scale is not finite and above 0, or two are equal to six digits.
    """
    try:
        listed = [float(s) for s in scales]
    except TypeError:
        raise TypeError(f"scales={scales!r}: pass a sequence of factors, e.g. (0.5, 2)") from None
    bad = [s for s in listed if not 0 < s < float("inf")]
    if bad or not listed:
        raise ValueError(f"scales={list(scales)}: pass finite factors above 0, e.g. (0.5, 1, 2, 5)")
    ordered = tuple(sorted({*listed, 1.0}))
    if len({f"{s:g}" for s in ordered}) < len(ordered):
        raise ValueError(f"scales={list(scales)}: two are equal to six digits, pass one of them")
    return ordered


def share_outside(time_delta: FloatArray, scale: float, *, mask: np.ndarray | None = None) -> float:
    """Return the share of elapsed times that scaling moves outside their 1 % and 99 % quantiles.

    The quantiles are those of the unscaled elapsed times.

    Args:
        time_delta: ``(B, T)``, unscaled.
        scale: The factor.
        mask: ``(B, T)``, true at real time steps; None if all are real.

    Returns:
        The share of finite elapsed times; NaN if none is finite.
    """
    real = np.isfinite(time_delta) if mask is None else mask & np.isfinite(time_delta)
    known = time_delta[real].astype(np.float64)
    if not known.size:
        return float("nan")
    low, high = np.quantile(known, (0.01, 0.99))
    # Rounding must not put elapsed times outside that are all equal.
    room = 1e-6 * np.abs(known).max()
    scaled = scale * known
    return float(((scaled < low - room) | (scaled > high + room)).mean())


def solver_share(
    values: Mapping[float, FloatArray], finer: Mapping[float, FloatArray], scale: float
) -> float:
    """Return how much a finer solver alters the change of the target from scale 1 to a scale.

    Args:
        values: Targets ``(B,)`` by scale, including scale 1.
        finer: Targets ``(B,)`` by scale, computed with a finer solver.
        scale: The scale.

    Returns:
        RMS over sequences, in SDs of the target as ``sensitivities`` are; NaN if the SD is 0.
    """
    base, moved, finer_base, finer_moved = (
        np.asarray(of[at], np.float64)
        for of, at in ((values, 1.0), (values, scale), (finer, 1.0), (finer, scale))
    )
    altered = (finer_moved - finer_base) - (moved - base)
    finite = np.isfinite(altered)
    if not finite.any():
        return float("nan")
    sd = float(np.std(base[finite]))
    return float(np.sqrt(np.mean(altered[finite] ** 2))) / sd if sd > 0 else float("nan")


def time_sensitivity(
    values: Mapping[float, FloatArray],
    *,
    time_delta: FloatArray | None = None,
    time_gradient: FloatArray | None = None,
    mask: np.ndarray | None = None,
    target: str = "prediction at last step",
) -> TimeSensitivity:
    """Return the curve over time scales, and the elasticity, from targets at several scales.

    Dividing by the SD over sequences makes the curve independent of the target's unit and offset.
    The elasticity is the slope of the curve at scale 1, so both agree for small changes.

    Args:
        values: Targets ``(B,)`` by scale, including scale 1.
        time_delta: ``(B, T)``, unscaled; None for no elasticity.
        time_gradient: ``(B, T)``, ``dy_b/d dt_bt`` at scale 1; None for no elasticity.
        mask: ``(B, T)``, true at real time steps; None if all are real.
        target: Name of the target.

    Raises:
        ValueError: If scale 1 is missing.
    """
    if 1.0 not in values:
        raise ValueError(
            f"scale 1 is missing among {sorted(values)}: pass the targets at scale 1, which "
            "the others are compared with"
        )
    scales = np.array(sorted(values), dtype=np.float64)
    y = np.stack([np.asarray(values[s], np.float64) for s in scales])
    batch = y.shape[1]
    by_step = np.full((batch, 1), np.nan)
    if time_delta is not None and time_gradient is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            by_step = time_delta.astype(np.float64) * time_gradient.astype(np.float64)
        if mask is not None:
            by_step = np.where(mask, by_step, 0.0)
    finite = np.isfinite(y).all(axis=0)
    if time_delta is not None and time_gradient is not None:
        finite &= np.isfinite(by_step).all(axis=1)
    y, by_step = y[:, finite], by_step[finite]
    base = y[list(scales).index(1.0)]
    count = int(finite.sum())
    if count:
        change = y - base
        rms, mean = np.sqrt(np.mean(change**2, axis=1)), np.mean(change, axis=1)
        sd, target_mean = float(np.std(base)), float(np.mean(base))
        # Rounding leaves a spurious SD where all targets are equal.
        if sd <= 1e-7 * float(np.max(np.abs(base))):
            sd = 0.0
    else:
        rms = mean = np.full(len(scales), np.nan)
        sd = target_mean = float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(rms == 0, 0.0, rms / sd if sd > 0 else np.nan)
    changes = y - base
    known = [_in_sds(d, base) if sd > 0 else Estimate.rms(d**2) for d in changes]
    return TimeSensitivity(
        scales=scales,
        sensitivities=relative,
        rms_change=rms,
        mean_change=mean,
        target_mean=target_mean,
        target_sd=sd,
        elasticity=by_step.sum(axis=1),
        elasticity_by_step=by_step,
        target=target,
        sequences=count,
        non_finite=batch - count,
        by_sequence=y,
        ci=_drawn_cis(known),
    )
