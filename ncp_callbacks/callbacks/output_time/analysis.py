"""Measure which time step's input acts on which time step's output, and how much later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...results import ArrayResult, FloatArray
from ...stats import SHARE, SIZE, Estimate

__all__ = ["OutputTime", "binned", "output_steps", "output_time"]


@dataclass(frozen=True, eq=False)
class OutputTime(ArrayResult):
    """Hold the influence of every input step on some output steps.

    As an array it is ``influence``. An input or output step is a time step of the sequence.

    Attributes:
        steps: ``(K,)``, the output steps.
        influence: ``(T, K)``, mean over sequences of ``sum_f |A|``, the attribution of the target
            at an output step to the inputs of a time step; in units of the target. NaN where no
            sequence has both.
        future_share: Share of the influence on outputs that comes from inputs after them; exactly 0
            for a causal model. NaN if there is no influence.
        future_share_time_delta: Share of the influence of ``time_delta`` on outputs that comes from
            time steps after them, where the elapsed time before a time step belongs to it; None
            where the model takes no ``time_delta``.
        own_share: Share of an output's own time step in the influence on it.
        lag_by_step: ``(K,)``, mean number of time steps from an input to an output after it,
            weighted by influence.
        lag: Mean number of time steps over all output steps.
        lag_time: Mean elapsed time over all output steps; None without ``time_delta``.
        profile: ``(T,)``, influence by the number of time steps between input and output: mean
            over pairs of real time steps and sequences, in shares that sum to 1 (all 0 without
            influence; NaN for lags that don't occur).
        reach: Smallest number of time steps within which 99 % of the influence on outputs lies; NaN
            without influence.
        reach_time: Smallest such elapsed time; None without ``time_delta``.
        time_edges: ``(N + 1,)``, bins of elapsed time; None without ``time_delta``.
        time_profile: ``(N,)``, influence by the elapsed time between input and output, as
            ``profile``; NaN for bins without pairs. Pairs outside of the bins are skipped.
        target: Name of the target.
        sequences: Number of sequences.
        non_finite: Number of sequences that were skipped: NaN or infinity.
        estimates: ``strength``, ``future_share``, ``future_share_time_delta``, ``own_share``,
            ``mean_lag`` and ``mean_lag_time`` as estimates over sequences, where they are known.
    """

    _plot, _main_field = "plot_output_time", "influence"

    steps: npt.NDArray[np.intp]
    influence: FloatArray
    future_share: float
    future_share_time_delta: float | None
    own_share: float
    lag_by_step: FloatArray
    lag: float
    lag_time: float | None
    profile: FloatArray
    reach: float
    reach_time: float | None
    time_edges: FloatArray | None
    time_profile: FloatArray | None
    target: str
    sequences: int
    non_finite: int
    estimates: Mapping[str, Estimate]


def binned(influence: FloatArray, max_bins: int = 100) -> tuple[FloatArray, int]:
    """Return sums over successive input steps, ``(bins, K)``, and the number of steps in each.

    Args:
        influence: ``(T, K)``.
        max_bins: Largest number of bins.
    """
    size = -(-len(influence) // max_bins)
    starts = np.arange(0, len(influence), size)
    known = np.isfinite(influence)
    total = np.add.reduceat(np.where(known, influence, 0.0), starts, axis=0)
    there = np.add.reduceat(known, starts, axis=0, dtype=np.int64) > 0
    return np.where(there, total, np.nan), size


def output_steps(mask: npt.NDArray[np.bool_], max_steps: int) -> npt.NDArray[np.intp]:
    """Return time steps spread over those that any sequence has, with the first and last.

    Args:
        mask: ``(B, T)``, true at real time steps.
        max_steps: Largest number of time steps.
    """
    real = np.flatnonzero(mask.any(axis=0))
    if len(real) <= max_steps:
        return real
    return real[np.unique(np.round(np.linspace(0, len(real) - 1, max_steps)).astype(np.intp))]


def output_time(
    attributed: FloatArray,
    steps: npt.NDArray[np.intp],
    *,
    attributed_to_time_delta: FloatArray | None = None,
    time_delta: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    time_limit: Callable[[float], float] = lambda reach: reach or 1.0,
    bins: int = 24,
    target: str = "prediction at each step",
) -> OutputTime:
    """Return the attribution of each output step to each input step, reduced over sequences.

    A sequence with NaN or infinity between real time steps is skipped and counted.

    Args:
        attributed: ``(K, B, T, F)``, attribution of the target at output step ``k``.
        steps: ``(K,)``, the output steps.
        attributed_to_time_delta: ``(K, B, T)``, its attribution to ``time_delta``.
        time_delta: ``(B, T)``, the elapsed time before each time step.
        mask: ``(B, T)``, true at real time steps.
        time_limit: Returns the end of the bins of elapsed time for a ``reach_time`` (0 without
            influence).
        bins: Number of bins of elapsed time.
        target: Name of the target.
    """
    count, batch, total, _ = attributed.shape
    real = np.ones((batch, total), bool) if mask is None else np.asarray(mask, bool)
    # (K, B, T): pairs of a real output step and a real input step.
    both = real[None] & real[:, steps].T[:, :, None]
    with np.errstate(invalid="ignore"):
        strength = np.abs(attributed.astype(np.float64)).sum(axis=3)
        by_time = (
            None
            if attributed_to_time_delta is None
            else np.abs(attributed_to_time_delta.astype(np.float64))
        )
    finite = (np.isfinite(strength) | ~both).all(axis=(0, 2))
    if by_time is not None:
        finite &= (np.isfinite(by_time) | ~both).all(axis=(0, 2))
    both &= finite[None, :, None]
    strength = np.where(both, strength, 0.0)
    lag = np.broadcast_to(steps[:, None, None] - np.arange(total), both.shape)
    past = both & (lag >= 0)

    def share(of: FloatArray, which: npt.NDArray[np.bool_]) -> float:
        whole = float(of.sum())
        return float(of[which].sum()) / whole if whole > 0 else float("nan")

    def mean_of(what: FloatArray) -> float:
        whole = float(strength[past].sum())
        return float((strength * what)[past].sum()) / whole if whole > 0 else float("nan")

    occurs = both.sum(axis=1)
    influence = np.divide(
        strength.sum(axis=1), occurs, out=np.full(occurs.shape, np.nan), where=occurs > 0
    )
    acts = np.where(past, strength, 0.0).sum(axis=(1, 2))
    lag_by_step = np.divide(
        np.where(past, strength * lag, 0.0).sum(axis=(1, 2)),
        acts,
        out=np.full(count, np.nan),
        where=acts > 0,
    )
    weight = strength[past]
    lag_time = reach_time = edges = profile_of_time = None
    if time_delta is not None:
        clock = np.cumsum(np.where(real, time_delta, 0.0), axis=1, dtype=np.float64)
        elapsed = clock[:, steps].T[:, :, None] - clock[None]
        lag_time, reach_time = mean_of(elapsed), _reach(weight, elapsed[past])
        last = time_limit(reach_time if np.isfinite(reach_time) else 0.0)
        edges = np.linspace(0.0, last, bins + 1)
        place = np.floor(elapsed[past] / last * bins * (1 + 1e-9)).astype(np.intp)
        profile_of_time = _profile(weight, np.where(elapsed[past] == last, bins - 1, place), bins)
    each = strength[:, finite].sum(axis=(0, 2))

    def of_each(what: FloatArray, which: npt.NDArray[np.bool_]) -> FloatArray:
        chosen: FloatArray = np.where(which, what, 0.0)[:, finite].sum(axis=(0, 2))
        return chosen

    weights = np.divide(finite.sum(), occurs, out=np.zeros(occurs.shape), where=occurs > 0)
    mean_of_steps = np.einsum("kbt,kt->b", strength, weights)[finite] / max(count, 1)
    before = of_each(strength, past)
    estimates = {
        "strength": Estimate.mean(mean_of_steps, SIZE),
        "future_share": Estimate.ratio(of_each(strength, both & (lag < 0)), each, SHARE),
        "own_share": Estimate.ratio(of_each(strength, both & (lag == 0)), each, SHARE),
        "mean_lag": Estimate.ratio(of_each(strength * lag, past), before, SIZE),
    }
    if by_time is not None:
        own = np.where(both, by_time, 0.0)
        estimates["future_share_time_delta"] = Estimate.ratio(
            of_each(own, both & (lag < 0)), of_each(own, both), SHARE
        )
    if time_delta is not None:
        estimates["mean_lag_time"] = Estimate.ratio(of_each(strength * elapsed, past), before, SIZE)
    return OutputTime(
        steps=steps,
        influence=influence.T.astype(np.float32),
        future_share=share(strength, both & (lag < 0)),
        future_share_time_delta=None
        if by_time is None
        else share(np.where(both, by_time, 0.0), both & (lag < 0)),
        own_share=share(strength, both & (lag == 0)),
        lag_by_step=lag_by_step.astype(np.float32),
        lag=mean_of(lag),
        lag_time=lag_time,
        profile=_profile(weight, lag[past], total),
        reach=_reach(weight, lag[past]),
        reach_time=reach_time,
        time_edges=edges,
        time_profile=profile_of_time,
        target=target,
        sequences=int(finite.sum()),
        non_finite=int((~finite).sum()),
        estimates=estimates,
    )


def _reach(weight: FloatArray, distance: npt.NDArray[Any], share: float = 0.99) -> float:
    """Return the distance within which ``share`` of the weight lies; NaN where there is none."""
    if not weight.sum() > 0:
        return float("nan")
    order = np.argsort(distance, kind="stable")
    so_far = np.cumsum(weight[order])
    return float(distance[order][np.searchsorted(so_far, share * so_far[-1])])


def _profile(
    strength: FloatArray,
    place: npt.NDArray[np.integer[Any]],
    count: int,
) -> FloatArray:
    """Return means by place, in shares."""
    inside = (place >= 0) & (place < count)
    pairs = np.bincount(place[inside], minlength=count)
    total = np.bincount(place[inside], weights=strength[inside], minlength=count)
    means = np.divide(total, pairs, out=np.full(count, np.nan), where=pairs > 0)
    whole = np.nansum(means)
    shares: FloatArray = means / whole if whole > 0 else means
    return shares.astype(np.float32)
