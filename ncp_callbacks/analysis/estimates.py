"""Numbers over sequences that know how sure they are, and whether they changed.

An :class:`Estimate` is a number and what each sequence has to do with it, from which follow its
interval and, with that of another look at the same sequences, the interval of the change::

    speed = ratio_estimate(distance_by_sequence, time_by_sequence)
    speed.value, speed.interval()
    speed.change(before)                              # .value, .low, .high
    changed_beyond_chance([(before, now), ...])       # which of them, corrected for their number

Effects are those of means of one number a sequence, derivatives (Cochran 1977, 6.3), or
jackknife pseudo-values: ``(n - 1) (all - all but one)``. A sequence goes in or stays out as a
whole, however many steps it has, since only sequences are independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .results import FloatArray
from .uncertainty import t_quantile

__all__ = [
    "Change",
    "Estimate",
    "changed_beyond_chance",
    "jackknife",
    "jackknife_of_sums",
    "mean_estimate",
    "median_estimate",
    "places_without_each",
    "quantile_estimates",
    "ratio_estimate",
    "rms_estimate",
]

SIZE = (0.0, math.inf)
SHARE = (0.0, 1.0)
COSINE = (-1.0, 1.0)
ANY = (-math.inf, math.inf)

# Standard error of a median over that of a mean, of normal values: sqrt(pi / 2).
_MEDIAN = math.sqrt(math.pi / 2)


class Change(NamedTuple):
    """By how much a number changed, with its 95 % interval.

    A difference; of a number with the scale of ratios the relative change, 0.1 for 10 % more.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number over sequences.

    Attributes:
        value: The number.
        effects: ``(S,)``, what each sequence has to do with it, so that its standard error is that
            of the mean of effects. Empty where there are none to be had.
        within: What it can be at most and at least.
        ratio: Whether it is above 0 and errors are relative: its interval is symmetric in the
            logarithm, and its change relative.
        bias: What of ``value`` is due to there being few sequences; the interval is about the rest.
        bounds: A 95 % interval that was had in another way than from ``effects``.
    """

    value: float
    effects: FloatArray
    within: tuple[float, float] = ANY
    ratio: bool = False
    bias: float = 0.0
    bounds: tuple[float, float] | None = None

    @property
    def sequences(self) -> int:
        return len(self.effects)

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Student's t interval.

        None for fewer than two sequences, where something isn't finite, and where no sequence
        differs from others: there is then nothing to tell from how sure the number is.
        """
        if self.bounds is not None and level == 0.95:
            return self.bounds
        error = self._error
        # What is left of equal effects is rounding.
        if not 1e-12 * abs(self.value) < error < math.inf or not math.isfinite(self.value):
            return None
        half = t_quantile((1 + level) / 2, len(self.effects) - 1) * error
        if self.ratio:
            if self.value <= 0:
                return None
            size = half / self.value
            centre = math.log(self.value) - self.bias / self.value
            if centre + size > 700:
                return None
            low, high = math.exp(centre - size), math.exp(centre + size)
        else:
            low, high = self.value - self.bias - half, self.value - self.bias + half
        return tuple(np.clip((low, high), *self.within).tolist())

    def change(self, before: Estimate, level: float = 0.95) -> Change | None:
        """Of this number since ``before``, which is of the same sequences.

        What sequences differ in cancels, so that it is much narrower than two intervals beside each
        other. None where there is no interval.

        Raises:
            ValueError: If these can't be the same sequences.
        """
        compared = self._compared(before)
        if compared is None:
            return None
        difference, error = compared
        half = t_quantile((1 + level) / 2, len(self.effects) - 1) * error
        found = Change(difference, difference - half, difference + half)
        return Change(*(math.expm1(min(v, 700.0)) for v in found)) if self.ratio else found

    def _compared(self, before: Estimate) -> tuple[float, float] | None:
        """Difference, on the scale on which errors are symmetric, and its standard error."""
        if len(before.effects) != len(self.effects):
            raise ValueError(
                f"{len(before.effects)} sequences before and {len(self.effects)} now: give the same"
            )
        if len(self.effects) < 2 or not math.isfinite(self.value + before.value):
            return None
        # Effects may be infinite, after which nothing is known.
        with np.errstate(invalid="ignore", over="ignore"):
            if self.ratio:
                if not (self.value > 0 and before.value > 0):
                    return None
                difference = math.log(self.value / before.value)
                apart = self.effects / self.value - before.effects / before.value
            else:
                difference, apart = self.value - before.value, self.effects - before.effects
        error = _standard_error(apart)
        return (difference, error) if math.isfinite(error) else None

    @property
    def _error(self) -> float:
        return _standard_error(self.effects)

    def to_state(self) -> dict[str, Any]:
        """What :meth:`change` needs, as plain numbers and a list."""
        with np.errstate(over="ignore"):  # Then there is no change to be had.
            effects = np.asarray(self.effects, np.float32)
        return {
            "value": self.value,
            "effects": effects.tolist(),
            "ratio": self.ratio,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Estimate:
        effects = np.asarray(state["effects"], np.float64)
        return cls(float(state["value"]), effects, ratio=bool(state["ratio"]))


def _standard_error(effects: FloatArray) -> float:
    count = len(effects)
    if count < 2:
        return math.nan
    if not np.isfinite(effects).all():
        return math.nan
    deviation = effects - effects.sum() / count
    return math.sqrt(float(deviation @ deviation) / (count * (count - 1)))


def mean_estimate(
    values: FloatArray, *, within: tuple[float, float] = ANY, ratio: bool = False
) -> Estimate:
    """Mean of one number a sequence, ``(S,)``."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean()) if values.size else math.nan
    return Estimate(mean, values - mean, within, ratio)


def ratio_estimate(
    parts: npt.ArrayLike,
    wholes: npt.ArrayLike,
    *,
    within: tuple[float, float] = ANY,
    ratio: bool = False,
) -> Estimate:
    """``sum parts / sum wholes`` of ``(S,)`` each: a share, or a mean over cells of sequences.

    Source: Cochran 1977, 6.3, as in :func:`~.uncertainty.share_interval`.
    """
    parts, wholes = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    count, total = len(parts), float(wholes.sum())
    if not total > 0:
        return Estimate(math.nan, np.empty(0), within, ratio)
    value = float(parts.sum()) / total
    return Estimate(value, count / total * (parts - value * wholes), within, ratio)


def jackknife(
    value: float,
    left_out: FloatArray,
    *,
    within: tuple[float, float] = ANY,
    ratio: bool = False,
    unbiased: bool = False,
) -> Estimate:
    """A number from itself and from itself without each sequence, or group of sequences, ``(S,)``.

    Args:
        unbiased: Whether the interval is about the number less its bias from few sequences.

    Source: Quenouille 1956, Tukey 1958.
    """
    left_out = np.asarray(left_out, np.float64)
    # Of infinities nothing is known, and such an estimate has no interval.
    with np.errstate(invalid="ignore"):
        effects = (len(left_out) - 1) * (value - left_out)
    # The mean of pseudo-values is the number without its bias of the order of 1 / n.
    bias = -float(effects.sum() / len(effects)) if unbiased and len(effects) else 0.0
    return Estimate(float(value), effects, within, ratio, bias if math.isfinite(bias) else 0.0)


def jackknife_of_sums(
    function: Callable[[FloatArray], FloatArray],
    parts: FloatArray,
    *,
    within: tuple[float, float] = ANY,
    ratio: bool = False,
) -> Estimate:
    """A function of sums over sequences.

    Args:
        function: From sums ``(..., K)`` to ``(...)``.
        parts: ``(S, K)``, what each sequence adds to the sums.
    """
    parts = np.asarray(parts, np.float64)
    total = parts.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, left_out = function(total), function(total - parts)
    return jackknife(float(value), left_out, within=within, ratio=ratio)


def rms_estimate(squares: FloatArray, counts: FloatArray | None = None) -> Estimate:
    """``sqrt(sum squares / sum counts)`` of ``(S,)``; without counts one a sequence."""
    wholes = np.ones(len(squares)) if counts is None else counts
    square = ratio_estimate(squares, wholes)
    if not square.value > 0:
        return Estimate(math.sqrt(square.value) if square.value == 0 else math.nan, np.empty(0))
    rms = math.sqrt(square.value)
    return Estimate(rms, square.effects / (2 * rms), SIZE, ratio=True)


def sd_of_sums(sums: FloatArray) -> FloatArray:
    """Standard deviations from ``(..., 3 or more)``: counts, sums of values and of squares."""
    count, first, second = np.moveaxis(np.asarray(sums, np.float64)[..., :3], -1, 0)
    mean = first / count
    return np.asarray(np.sqrt(np.maximum(second / count - mean**2, 0.0)))


def median_estimate(values: FloatArray) -> Estimate:
    """Median of one number above 0 a sequence, ``(S,)``.

    The interval is the median of logarithms, and ``sqrt(pi / 2)`` times the standard error of their
    mean: that of the median of values whose logarithms are normal. Intervals from ranks would take
    six sequences, and Jacobians are computed for four.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        return Estimate(math.nan, np.empty(0), SIZE, ratio=True)
    median = float(np.median(values))
    if not (values > 0).all():
        return Estimate(median, np.empty(0), SIZE, ratio=True)
    logs = np.log(values)
    return Estimate(median, median * _MEDIAN * (logs - logs.mean()), SIZE, ratio=True)


def quantile_estimates(
    values: FloatArray, sequence: npt.NDArray[np.integer[Any]], shares: Sequence[float]
) -> list[Estimate]:
    """Quantiles of ``(N,)`` values, of which many are of one sequence.

    The interval is that of Woodruff 1952: the share of values below the quantile, a mean over
    sequences, with its interval, turned back into values. Infinity is larger than all others.

    Args:
        values: Without NaN.
        sequence: ``(N,)``, from which sequence each is.
        shares: Which quantiles.
    """
    order = np.argsort(values, kind="stable")
    ordered, owner = np.asarray(values, np.float64)[order], np.asarray(sequence)[order]
    there, owner = np.unique(owner, return_inverse=True)
    count, total = len(there), len(ordered)
    size = np.bincount(owner, minlength=count).astype(np.float64)
    places = places_without_each(owner, count, shares) if count > 1 else []
    found = []
    for number, share in enumerate(shares):
        if not total:
            found.append(Estimate(math.nan, np.empty(0), SIZE))
            continue
        value = float(_at(ordered, share))
        if count < 2 or not math.isfinite(value):
            found.append(Estimate(value, np.empty(0), SIZE))
            continue
        # Those up to the quantile's own place; of equal values all would be below.
        upto = max(1, math.ceil(share * total - 1e-9))
        below = ratio_estimate(np.bincount(owner[:upto], minlength=count), size)
        half = t_quantile(0.975, count - 1) * below._error
        low, high = (float(_at(ordered, min(1.0, max(0.0, share + s * half)))) for s in (-1, 1))
        bounds = (low, high) if half > 0 and math.isfinite(high) else None
        effects = (count - 1) * (value - ordered[places[number]])
        found.append(Estimate(value, effects, SIZE, value > 0, bounds=bounds))
    return found


def _at(ordered: FloatArray, share: float) -> Any:
    """The value that so many are up to: no mean of two, of which one may be infinite."""
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


def places_without_each(
    owner: npt.NDArray[np.integer[Any]], count: int, shares: Sequence[float]
) -> list[npt.NDArray[np.intp]]:
    """For each share ``(count,)``, where in order the quantile is without each sequence's values.

    Args:
        owner: ``(N,)``, whose value each is, in increasing order of values.
        count: How many sequences. Without a sequence that has all values the place is the last.
    """
    total, size = len(owner), np.bincount(owner, minlength=count)
    among_own = np.empty(total, np.intp)
    by_owner = np.argsort(owner, kind="stable")
    among_own[by_owner] = np.arange(total) - np.repeat(np.cumsum(size) - size, size)
    others_before = np.arange(total) - among_own
    found = []
    for share in shares:
        place = np.maximum(1, np.ceil(share * (total - size) - 1e-9)).astype(np.intp) - 1
        own = np.bincount(owner[others_before <= place[owner]], minlength=count)
        found.append(np.minimum(place + own, total - 1))
    return found


def changed_beyond_chance(
    pairs: Sequence[tuple[Estimate, Estimate]], level: float = 0.95
) -> list[bool]:
    """Which numbers differ between two looks at the same sequences by more than chance gives.

    With a probability of at most 5 % any is named that didn't change, however many there are.

    Args:
        pairs: Before and now.

    Source: paired t tests, corrected by Holm 1979.
    """
    tests: list[tuple[float, int, int]] = []
    for place, (before, now) in enumerate(pairs):
        compared = now._compared(before)
        if compared is None:
            continue
        difference, error = compared
        if difference:
            size = abs(difference) / error if error > 0 else math.inf
            tests.append((size, place, len(now.effects) - 1))
    # Those without a change are tested, too, and fail.
    found, left = [False] * len(pairs), len(pairs)
    for size, place, freedom in sorted(tests, reverse=True):
        if size <= t_quantile(1 - (1 - level) / (2 * left), freedom):
            break
        found[place], left = True, left - 1
    return found
