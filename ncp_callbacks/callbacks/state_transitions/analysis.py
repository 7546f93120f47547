"""Measure how far, how fast and how straight the hidden state moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...results import FloatArray, MappingResult
from ...stats import CORRELATION, SHARE, SIZE, Estimate, with_cis
from ...stats.estimate import sd_of_sums

__all__ = ["TransitionStatistics", "stays_within", "transition_statistics"]

# A state component within this share of its bound counts as saturated.
SATURATED = 0.95
# A unit whose SD is below this share of the median unit's counts as dead.
DEAD = 1e-3


@dataclass(frozen=True, eq=False)
class TransitionStatistics(MappingResult):
    """Hold statistics of the transitions ``dh_bt = h_b,t+1 - h_bt`` between real time steps.

    Attributes:
        magnitude_mean: Mean of ``||dh||`` over sequences and time steps, in units of the state.
        magnitude_std: Standard deviation of ``||dh||`` over sequences and time steps.
        magnitude_std_within: Root mean square over sequences of the SD along a sequence.
        magnitude_std_between: SD over sequences of the mean along a sequence.
        direction_consistency: Mean cosine between the directions of two sequences at one time step,
            averaged over time steps: 1 if all sequences move in one direction, 0 if directions are
            unrelated. NaN with one sequence.
        direction_persistence: Mean cosine between consecutive transitions of a sequence: 1 if it
            goes straight on, -1 if it goes back and forth.
        speed_mean: Mean of ``||dh|| / dt``, per unit of ``time_delta``, or per time step without
            it.
        speed_max: Maximum of ``||dh|| / dt``.
        unit_speed_max: ``(H,)``, maximum of ``|dh_i| / dt`` of each unit.
        relative_magnitude: ``magnitude_mean`` over the RMS distance of the states from their mean.
        saturation: Share of state components beyond 95 % of ``bound``; NaN without a bound.
        dead_units: Number of units whose SD over sequences and time steps is below 0.1 % of the
            median unit's, or 0.
        magnitudes: ``(B, T-1)``, ``||dh||``; NaN where either state is padding or not finite.
        speeds: ``(B, T-1)``, ``||dh|| / dt``; NaN where ``magnitudes`` is.
        transitions: Number of transitions used.
        non_finite: Number of transitions between real time steps that were skipped because of NaN
            or infinity.
        cell: Name of the recurrent cell.
        estimates: ``magnitude_mean``, ``magnitude_std``, ``direction_consistency``,
            ``direction_persistence``, ``speed_mean`` and ``saturation`` as estimates over
            sequences, as far as they are known.
    """

    magnitude_mean: float
    magnitude_std: float
    magnitude_std_within: float
    magnitude_std_between: float
    direction_consistency: float
    direction_persistence: float
    speed_mean: float
    speed_max: float
    unit_speed_max: FloatArray
    relative_magnitude: float
    saturation: float
    dead_units: int
    magnitudes: FloatArray
    speeds: FloatArray
    transitions: int
    non_finite: int
    cell: str
    estimates: Mapping[str, Estimate]


def _mean(values: npt.NDArray[Any]) -> float:
    """Return the mean; NaN if there are no values."""
    return float(values.mean()) if values.size else float("nan")


def _alignment(sums: FloatArray) -> FloatArray:
    """Return the mean over time steps of the mean cosine between two different sequences.

    Args:
        sums: ``(N, T, H + 1)``, sums over sequences of the directions, of length 1 or 0, and the
            number of sequences that move.
    """
    count = sums[..., -1]
    # ||sum u||^2 = n + sum over pairs of cosines, so the mean over pairs is unbiased. The resultant
    # length itself is biased: it is near 1/sqrt(n) for unrelated directions.
    square = np.einsum("nth,nth->nt", sums[..., :-1], sums[..., :-1])
    pairs = count * (count - 1)
    enough = count >= 2
    cosines = np.where(enough, square - count, 0.0) / np.where(enough, pairs, 1.0)
    return np.asarray(cosines.sum(axis=1) / enough.sum(axis=1))


def stays_within(states: FloatArray, mask: np.ndarray | None, bound: float) -> bool:
    """Return True if all finite components of states at real time steps are within ``bound``.

    Args:
        states: ``(B, T, H)``.
        mask: ``(B, T)``, true at real time steps; None if all are real.
        bound: Largest absolute value.
    """
    real = states if mask is None else states[mask]
    return bool((np.abs(real[np.isfinite(real)]) <= bound).all())


def transition_statistics(
    states: FloatArray,
    *,
    time_delta: FloatArray | None = None,
    mask: np.ndarray | None = None,
    initial: FloatArray | None = None,
    bound: float | None = None,
    cell: str = "cell",
) -> TransitionStatistics:
    """Return statistics of the transitions between hidden states.

    Args:
        states: ``(B, T, H)``.
        time_delta: ``(B, T)``; the transition to time step ``t`` took ``time_delta[:, t]``. None
            if every transition took 1.
        mask: ``(B, T)``, true at real time steps; None if all are real.
        initial: ``(B, H)``, state before the first time step; None to skip the first transition.
        bound: Largest possible absolute value of a state component; None for no bound.
        cell: Name of the recurrent cell.

    Source: speed along the data as in Lechner et al. 2020, algorithm 8 (doi
    10.1038/s42256-020-00237-3); mean resultant length and its bias, Mardia & Jupp, Directional
    Statistics (2000), section 9. Norms are per sequence, because a norm over the whole batch
    grows with its size.
    """
    batch, steps, width = states.shape
    h = states.astype(np.float64)
    real = np.ones((batch, steps), bool) if mask is None else np.asarray(mask, bool)
    dt = np.ones((batch, steps)) if time_delta is None else time_delta.astype(np.float64)
    # The sum over units is finite exactly if all of them are: they are float32.
    use = real & np.isfinite(h.sum(axis=2))
    if initial is not None:
        h = np.concatenate([initial.astype(np.float64)[:, None], h], axis=1)
        known = np.isfinite(h[:, :1].sum(axis=2))
        real = np.concatenate([np.ones((batch, 1), bool), real], 1)
        use = np.concatenate([known, use], 1)
    else:
        dt = dt[:, 1:]
    both_real = real[:, 1:] & real[:, :-1]
    valid = use[:, 1:] & use[:, :-1]
    with np.errstate(invalid="ignore", over="ignore"):
        dh = h[:, 1:] - h[:, :-1]
    if not valid.all():
        dh[~valid] = 0.0
    norm = np.sqrt(np.einsum("bth,bth->bt", dh, dh))
    magnitudes = np.where(valid, norm, np.nan)
    # Padding may hold any elapsed time, 0 and NaN included.
    dt = np.where(valid, dt, 1.0)
    speeds = np.where(valid, norm / dt, np.nan)

    samples = h.reshape(-1, width) if use.all() else h[use]
    highest, lowest = (
        (samples.max(axis=0), samples.min(axis=0)) if samples.size else (np.zeros(1), np.zeros(1))
    )
    largest = float(max(highest.max(), -lowest.min()))
    # Rounding errors have no meaningful direction.
    moving = valid & (norm > 1e-6 * largest)
    unit_speed_max = (np.abs(dh) / dt[..., None]).max(axis=(0, 1), initial=0.0)
    # In place; 0 for transitions that don't move.
    directions = dh
    directions *= np.divide(1.0, norm, out=np.zeros_like(norm), where=moving)[..., None]
    pairs = moving[:, 1:] & moving[:, :-1]
    turns = np.einsum("bth,bth->bt", directions[:, 1:], directions[:, :-1])

    count = valid.sum(axis=1)
    present = count > 0
    total = np.where(valid, norm, 0.0).sum(axis=1)
    mean_b = total[present] / count[present]
    deviation = np.where(valid, norm - (total / np.maximum(count, 1))[:, None], 0.0)
    var_b = (deviation**2).sum(axis=1)[present] / count[present]

    unit_sd = np.zeros(width)
    if len(samples):
        # The mean of equal values is rounded, so their computed SD may not be 0.
        unit_sd = np.where(highest > lowest, samples.std(axis=0), 0.0)
    spread = float(np.linalg.norm(unit_sd))
    all_valid = norm[valid]
    magnitude_mean = _mean(all_valid)
    alignment = Estimate.of_sums(
        _alignment, np.concatenate([directions, moving[..., None]], axis=2), CORRELATION
    )
    # Around the mean, so that squares don't cancel.
    centred = np.where(valid, norm - magnitude_mean, 0.0)
    estimates = {
        "magnitude_mean": Estimate.ratio(total, count, SIZE),
        "magnitude_std": Estimate.of_sums(
            sd_of_sums,
            np.stack([count, centred.sum(axis=1), (centred**2).sum(axis=1)], axis=1),
            SIZE,
        ),
        "direction_consistency": alignment,
        "direction_persistence": Estimate.ratio(turns.sum(axis=1), pairs.sum(axis=1), CORRELATION),
        "speed_mean": Estimate.ratio(np.where(valid, norm / dt, 0.0).sum(axis=1), count, SIZE),
    }
    saturation = float("nan")
    if bound is not None:
        stuck = np.zeros(use.shape, np.intp)
        if largest > SATURATED * bound:
            stuck = (np.abs(h) > SATURATED * bound).sum(axis=2) * use
        estimates["saturation"] = Estimate.ratio(stuck.sum(axis=1), width * use.sum(axis=1), SHARE)
        saturation = estimates["saturation"].value
    return TransitionStatistics(
        magnitude_mean=magnitude_mean,
        magnitude_std=float(all_valid.std()) if all_valid.size else float("nan"),
        magnitude_std_within=float(np.sqrt(_mean(var_b))),
        magnitude_std_between=float(mean_b.std()) if mean_b.size else float("nan"),
        direction_consistency=alignment.value,
        direction_persistence=_mean(turns[pairs]),
        speed_mean=_mean(speeds[valid]),
        speed_max=float(speeds[valid].max()) if all_valid.size else float("nan"),
        unit_speed_max=unit_speed_max,
        relative_magnitude=magnitude_mean / spread if spread > 0 else float("nan"),
        saturation=saturation,
        dead_units=int(((unit_sd <= DEAD * np.median(unit_sd)) | (unit_sd == 0)).sum())
        if len(samples)
        else 0,
        magnitudes=magnitudes,
        speeds=speeds,
        transitions=int(valid.sum()),
        non_finite=int((both_real & ~valid).sum()),
        cell=cell,
        estimates=with_cis(estimates),
    )
