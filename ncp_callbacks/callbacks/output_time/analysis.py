"""Outputs over time: which step's input acts on which step's output, and from how long ago."""

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
    """Influence of every input step on some output steps. As an array it is ``influence``.

    Attributes:
        steps: ``(K,)``, the output steps.
        influence: ``(T, K)``, mean over sequences of ``sum_f |A|``, the attribution of the target
            at an output step to the inputs of a step; in units of the target. NaN where no
            sequence has both steps.
        future_share: Share of inputs after an output in the influence on it; exactly 0 for a
            model that is causal. NaN when nothing matters.
        intervals_future_share: Likewise for the intervals, of which the one before step ``t``
            belongs to it; None where the model takes none.
        own_share: Share of an output's own step in the influence on it.
        lag_by_step: ``(K,)``, mean number of steps from an input to an output after it, weighted by
            influence.
        lag: The same over all output steps.
        lag_time: The same in units of time; None where intervals aren't known.
        profile: ``(T,)``, influence by the number of steps between input and output: mean over
            pairs of real steps and sequences, in shares that sum to 1 (all 0 when nothing matters;
            NaN for lags that don't occur).
        reach: Smallest number of steps within which 99 % of the influence on outputs lies; NaN
            when nothing matters.
        reach_time: The same in units of time; None where intervals aren't known.
        time_edges: ``(N + 1,)``, bins of elapsed time; None where intervals aren't known.
        time_profile: ``(N,)``, likewise by the time between input and output; NaN for bins in
            which no pair is, and without the pairs that are in none.
        target: Name of the target.
        sequences: How many sequences went in.
        non_finite: How many were left out because of NaN or infinity.
        estimates: ``strength``, ``future_share``, ``future_share_intervals``, ``own_share``,
            ``mean_lag`` and ``mean_lag_time`` with their intervals over sequences, as far as they
            are known.
    """

    _plot = "plot_output_time"

    steps: npt.NDArray[np.intp]
    influence: FloatArray
    future_share: float
    intervals_future_share: float | None
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

    @property
    def _main(self) -> FloatArray:
        return self.influence


def binned(influence: FloatArray, most: int = 100) -> tuple[FloatArray, int]:
    """``(bins, K)``, sums over so many successive input steps that there are ``most`` at most."""
    size = -(-len(influence) // most)
    starts = np.arange(0, len(influence), size)
    known = np.isfinite(influence)
    total = np.add.reduceat(np.where(known, influence, 0.0), starts, axis=0)
    there = np.add.reduceat(known, starts, axis=0, dtype=np.int64) > 0
    return np.where(there, total, np.nan), size


def output_steps(mask: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.intp]:
    """At most ``most`` steps spread over those that any sequence has, with the first and last."""
    real = np.flatnonzero(mask.any(axis=0))
    if len(real) <= most:
        return real
    return real[np.unique(np.round(np.linspace(0, len(real) - 1, most)).astype(np.intp))]


def output_time(
    attributed: FloatArray,
    steps: npt.NDArray[np.intp],
    *,
    intervals: FloatArray | None = None,
    time_delta: FloatArray | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    time_limit: Callable[[float], float] = lambda reach: reach or 1.0,
    bins: int = 24,
    target: str = "prediction at each step",
) -> OutputTime:
    """What of the target at each output step is owed to each input step, reduced over sequences.

    Args:
        attributed: ``(K, B, T, F)``, attribution of the target at output step ``k``.
        steps: ``(K,)``, the output steps.
        intervals: ``(K, B, T)``, that to the intervals.
        time_delta: ``(B, T)``, the intervals themselves.
        mask: ``(B, T)``, true at real steps.
        time_limit: How far the bins of elapsed time go, given ``reach_time`` (0 when nothing
            matters).
        bins: How many.
        target: Name of the target.

    A sequence with NaN or infinity between real steps is left out and counted.
    """
    count, batch, total, _ = attributed.shape
    real = np.ones((batch, total), bool) if mask is None else np.asarray(mask, bool)
    # (K, B, T): pairs of a real output step and a real input step.
    both = real[None] & real[:, steps].T[:, :, None]
    with np.errstate(invalid="ignore"):
        strength = np.abs(attributed.astype(np.float64)).sum(axis=3)
        by_time = None if intervals is None else np.abs(intervals.astype(np.float64))
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
        estimates["future_share_intervals"] = Estimate.ratio(
            of_each(own, both & (lag < 0)), of_each(own, both), SHARE
        )
    if time_delta is not None:
        estimates["mean_lag_time"] = Estimate.ratio(of_each(strength * elapsed, past), before, SIZE)
    return OutputTime(
        steps=steps,
        influence=influence.T.astype(np.float32),
        future_share=share(strength, both & (lag < 0)),
        intervals_future_share=None
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
    """Distance within which ``share`` of the weight lies; NaN where there is none."""
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
    """Means by place, in shares."""
    inside = (place >= 0) & (place < count)
    pairs = np.bincount(place[inside], minlength=count)
    total = np.bincount(place[inside], weights=strength[inside], minlength=count)
    means = np.divide(total, pairs, out=np.full(count, np.nan), where=pairs > 0)
    whole = np.nansum(means)
    shares: FloatArray = means / whole if whole > 0 else means
    return shares.astype(np.float32)
