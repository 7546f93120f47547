"""Pool numbers over sequences, with their confidence intervals and paired changes.

An :class:`Estimate` holds a number and the influence of each sequence on it::

    speed = Estimate.ratio(distance_by_sequence, time_by_sequence, SIZE)
    speed.value, speed.ci()
    speed.change(before)                                # .value, .low, .high, .p
    changed_beyond_chance([(before, now), ...])         # corrected for the number of tests

All influences come from the delete-one jackknife: the number is computed again without each
sequence. For a function of sums over sequences (:meth:`Estimate.of_sums`) that takes one
subtraction per sequence. Only sequences are independent, so each is removed as a whole, however
many time steps it has.

The standard error is taken on the scale on which the number's errors are roughly symmetric: the
logarithm for sizes, the logit for shares, Fisher's z for correlations. Its ends are turned back, so
that they stay inside the range of the number. Student's t has fewer degrees of freedom where few
sequences carry the uncertainty (:attr:`Estimate.degrees_of_freedom`), and a CI is longer on the
side to which the influences are skewed, as far as Johnson's modified t says; it is shorter on none.

Source: Quenouille 1956 and Tukey 1958 for the jackknife; Efron & Tibshirani, An Introduction to the
Bootstrap (1993), chapter 11; Johnson 1978 (JASA 73, 536-544) for the skewness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..results import FloatArray

__all__ = [
    "CORRELATION",
    "MIN_SEQUENCES_FOR_CI",
    "REAL",
    "SHARE",
    "SIZE",
    "Estimate",
    "PairedChange",
    "Scale",
    "changed_beyond_chance",
    "ci_array",
    "holm",
    "sd_of_sums",
    "t_quantile",
    "with_cis",
]

MIN_SEQUENCES_FOR_CI = 16
"""Below this number of sequences a 95 % CI covers the truth less often than it claims."""

# Standard error of a median over that of a mean, for normal values: sqrt(pi / 2).
_MEDIAN = math.sqrt(math.pi / 2)


def _logit(p: FloatArray) -> FloatArray:
    p = np.clip(p, 0.0, 1.0)
    return np.asarray(np.log(p) - np.log1p(-p))


def _expit(x: FloatArray) -> FloatArray:
    # Without overflow for large negative x.
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


class _Functions(NamedTuple):
    transform: Callable[[FloatArray], Any]
    inverse: Callable[[FloatArray], Any]
    # 1 over the derivative of the transform.
    slope: Callable[[float], float]


_FUNCTIONS = {
    "identity": _Functions(np.asarray, np.asarray, lambda v: 1.0),
    "log": _Functions(lambda v: np.log(np.maximum(v, 0.0)), np.exp, lambda v: v),
    "logit": _Functions(_logit, _expit, lambda p: p * (1 - p)),
    "fisher_z": _Functions(
        lambda r: np.arctanh(np.clip(r, -1.0, 1.0)), np.tanh, lambda r: 1 - r * r
    ),
}


@dataclass(frozen=True)
class Scale:
    """Describe the range of a number, and the transform that makes its errors symmetric.

    Attributes:
        name: Name of the transform: identity, log, logit or fisher_z.
        low, high: Bounds of the number.
    """

    name: str
    low: float
    high: float

    def transform(self, values: npt.ArrayLike) -> FloatArray:
        """Return numbers on the scale, elementwise."""
        return np.asarray(_FUNCTIONS[self.name].transform(np.asarray(values, np.float64)))

    def inverse(self, values: npt.ArrayLike) -> FloatArray:
        """Return numbers of the scale turned back, elementwise."""
        return np.asarray(_FUNCTIONS[self.name].inverse(np.asarray(values, np.float64)))

    def derivative(self, value: float) -> float:
        """Return the derivative of the transform at a number."""
        slope = _FUNCTIONS[self.name].slope(value)
        return 1 / slope if slope else math.inf

    def within(self, low: float, high: float) -> Scale:
        """Return the scale with narrower bounds."""
        return replace(self, low=low, high=high)


REAL = Scale("identity", -math.inf, math.inf)
"""Numbers of either sign; the identity."""
SIZE = Scale("log", 0.0, math.inf)
"""Numbers that can't be negative; the logarithm."""
SHARE = Scale("logit", 0.0, 1.0)
"""Shares of a whole; the logit."""
CORRELATION = Scale("fisher_z", -1.0, 1.0)
"""Correlations and cosines; Fisher's z."""

_SCALES = {scale.name: scale for scale in (REAL, SIZE, SHARE, CORRELATION)}


class PairedChange(NamedTuple):
    """Hold the change of a number between two snapshots of the same sequences, with its 95 % CI.

    It is a relative change for sizes (0.1 for 10 % more), and a difference for all other numbers.

    Attributes:
        value: The change.
        low, high: Ends of its confidence interval.
        p: Two-sided p of the paired test that nothing changed, not corrected for other tests.
    """

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """Hold a number over sequences, with the influence of each of them.

    Attributes:
        value: The number.
        influence: ``(S,)``, influence of each sequence on the transformed number: ``n - 1`` times
            the difference between the number with all sequences and without this one. Empty if it
            is unknown; then there is no CI.
        scale: One of :data:`REAL`, :data:`SIZE`, :data:`SHARE` and :data:`CORRELATION`.
        weights: ``(S,)``, how much each sequence counts in the pooled number; None if all count
            equally.
        bias: Bias of the transformed number that the CI corrects for.
        known_ci: The 95 % CI, if it was computed before, maybe in another way than from
            ``influence``.
    """

    value: float
    influence: FloatArray
    scale: Scale = REAL
    weights: FloatArray | None = None
    bias: float = 0.0
    known_ci: tuple[float, float] | None = None

    # --- constructors

    @classmethod
    def of_sums(
        cls,
        function: Callable[[FloatArray], FloatArray],
        parts: npt.ArrayLike,
        scale: Scale = REAL,
        *,
        weights: FloatArray | None = None,
    ) -> Estimate:
        """Return a function of sums over sequences.

        Args:
            function: Maps sums ``(N, ...)`` to ``(N,)``.
            parts: ``(S, ...)``, contribution of each sequence to the sums.
            scale: Range of the number.
            weights: ``(S,)``, see the class.
        """
        parts = np.asarray(parts, np.float64)
        total = parts.sum(axis=0)[None]
        sums = np.concatenate([total, total - parts]) if len(parts) > 1 else total
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = function(sums)
        return cls.jackknife(found[0], found[1:], scale, weights=weights)

    @classmethod
    def mean(cls, values: npt.ArrayLike, scale: Scale = REAL) -> Estimate:
        """Return the mean of one number per sequence, ``(S,)``."""
        values = np.asarray(values, np.float64)
        sizes = values if scale.name in (SIZE.name, SHARE.name) else None
        parts = np.stack([values, np.ones(len(values))], axis=1)
        return cls.of_sums(_quotient, parts, scale, weights=sizes)

    @classmethod
    def ratio(
        cls, numerators: npt.ArrayLike, denominators: npt.ArrayLike, scale: Scale = REAL
    ) -> Estimate:
        """Return ``sum numerators / sum denominators`` of ``(S,)`` each.

        That is a share of a whole, or a mean over the cells of all sequences. It is NaN where the
        denominators sum to 0.
        """
        parts = _columns(numerators, denominators)
        return cls.of_sums(_quotient, parts, scale, weights=parts[:, 1])

    @classmethod
    def ratios(
        cls, numerators: npt.ArrayLike, denominators: npt.ArrayLike, scale: Scale = REAL
    ) -> list[Estimate]:
        """Return :meth:`ratio` of each of the ``(S, N)`` columns to one denominator ``(S,)``."""
        above = np.asarray(numerators, np.float64)
        below = np.asarray(denominators, np.float64)
        sums, whole = above.sum(axis=0), below.sum()
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = sums / whole
            without_each = (sums - above) / (whole - below)[:, None]
            centre, others = scale.transform(values), scale.transform(without_each)
            influences = (len(above) - 1) * (centre - others)
        columns = influences.T.copy() if len(above) > 1 else np.empty((len(values), 0))
        return [
            cls(value, influence, scale, below)
            for value, influence in zip(values.tolist(), columns, strict=True)
        ]

    @classmethod
    def rms(cls, squares: npt.ArrayLike, counts: npt.ArrayLike = 1.0) -> Estimate:
        """Return ``sqrt(sum squares / sum counts)`` of ``(S,)`` each."""
        parts = _columns(squares, counts)
        return cls.of_sums(lambda sums: np.sqrt(_quotient(sums)), parts, SIZE, weights=parts[:, 0])

    @classmethod
    def median(cls, values: npt.ArrayLike) -> Estimate:
        """Return the median of one number above 0 per sequence, ``(S,)``.

        The standard error is ``sqrt(pi / 2)`` times that of the mean of logarithms, as it is for
        values whose logarithms are normal. CIs from ranks would need six sequences, but
        Jacobians are computed for four.
        """
        values = np.asarray(values, np.float64)
        if not values.size:
            return cls(math.nan, np.empty(0), SIZE)
        median = float(np.median(values))
        if not (values > 0).all():
            return cls(median, np.empty(0), SIZE)
        logs = np.log(values)
        return cls(median, _MEDIAN * (logs - logs.mean()), SIZE)

    @classmethod
    def geometric_mean(cls, logs: npt.ArrayLike) -> Estimate:
        """Return the geometric mean of one number per sequence, given its logarithms ``(S,)``."""
        logs = np.asarray(logs, np.float64)
        mean = float(logs.mean()) if logs.size else math.nan
        return cls(math.exp(min(mean, 700.0)), logs - mean, SIZE)

    @classmethod
    def jackknife(
        cls,
        value: float,
        without_each: npt.ArrayLike,
        scale: Scale = REAL,
        *,
        bias_corrected: bool = False,
        weights: FloatArray | None = None,
    ) -> Estimate:
        """Return a number, given its values without each sequence or group of sequences.

        Args:
            value: The number with all of them.
            without_each: ``(S,)``.
            scale: Range of the number.
            bias_corrected: True if the CI is about the number without its bias of order ``1/S``.
            weights: ``(S,)``, see the class.
        """
        without_each = np.asarray(without_each, np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            centre = scale.transform(value)
            influence = (len(without_each) - 1) * (centre - scale.transform(without_each))
            bias = -float(influence.mean()) if bias_corrected and len(influence) else 0.0
        return cls(float(value), influence, scale, weights, bias if math.isfinite(bias) else 0.0)

    @classmethod
    def from_derivatives(
        cls, value: float, effects: npt.ArrayLike, scale: Scale = REAL
    ) -> Estimate:
        """Return a number, given its derivatives with respect to the weight of each sequence.

        Args:
            value: The number.
            effects: ``(S,)``, derivatives times the number of sequences, in units of the number.
            scale: Range of the number.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            return cls(value, scale.derivative(value) * np.asarray(effects, np.float64), scale)

    # --- results

    @property
    def sequences(self) -> int:
        """Return the number of sequences."""
        return len(self.influence)

    @property
    def effective_sequences(self) -> float:
        """Return the effective number of sequences (Kish 1965): ``(sum w)^2 / sum w^2``.

        It is the number of equally weighted sequences that would carry the number as evenly. A
        value far below :attr:`sequences` means that a few sequences decide. It is NaN if all
        weights are 0.
        """
        if self.weights is None:
            return float(self.sequences)
        weights = np.abs(np.asarray(self.weights, np.float64))
        largest = weights.max(initial=0.0)
        if not 0 < largest < math.inf:
            return math.nan
        weights = weights / largest
        return float(weights.sum() ** 2 / (weights**2).sum())

    @property
    def degrees_of_freedom(self) -> float:
        """Return the degrees of freedom of the standard error: ``S - 1``, fewer for heavy tails.

        Where few sequences decide, the standard error itself is uncertain. Its variance is matched
        to that of a chi-squared variable: ``2 S / (kurtosis - 1) - 1``, at most ``S - 1``, which is
        that of normal influences. NaN where the influences are unknown.

        Source: matching moments as Satterthwaite 1946; for the jackknife, the idea is that of
        Hinkley 1977 (Biometrika 64, 21-28).
        """
        return float(_spreads([self.influence]).freedom[0])

    def ci(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return the confidence interval by Student's t, inside the range of the number.

        Returns:
            None for fewer than two sequences, where something isn't finite (a single sequence that
            carries all of a number has an infinite influence), and where no sequence differs from
            the others.
        """
        if self.known_ci is not None and level == 0.95:
            return self.known_ci
        low, high = ci_array([self], level)[:, 0].tolist()
        return None if math.isnan(low) else (low, high)

    def change(self, before: Estimate, level: float = 0.95) -> PairedChange | None:
        """Return the change since ``before``, an estimate of the same number and sequences.

        What sequences differ in cancels, so that the CI is much narrower than the two CIs of the
        numbers suggest. The change is a ratio for sizes and a difference for all other numbers.

        Returns:
            None where there is no CI.

        Raises:
            ValueError: If the numbers of sequences differ.
        """
        difference, apart = self._apart(before)
        error = float(_spreads([apart]).error[0])
        if not math.isfinite(difference + error):
            return None
        half = t_quantile((1 + level) / 2, self.sequences - 1) * error
        ends = np.array([difference, difference - half, difference + half])
        if self.scale.name == SIZE.name:
            ends = np.expm1(np.minimum(ends, 700.0))
        value, low, high = ends.tolist()
        (p,) = _two_sided_p([_t(difference, error)], [self.sequences - 1])
        return PairedChange(value, low, high, p)

    @property
    def known(self) -> bool:
        """Return true if all influences are finite."""
        return bool(np.isfinite(self.influence).all())

    def _apart(self, before: Estimate) -> tuple[float, FloatArray]:
        """Return the difference and the influences on it, of logarithms for sizes."""
        if before.sequences != self.sequences:
            raise ValueError(
                f"there were {before.sequences} sequences before and there are {self.sequences} "
                "now: pass estimates of the same sequences"
            )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.scale.name != SIZE.name:
                return self.value - before.value, self._effects - before._effects
            now, then = self.scale.transform([self.value, before.value]).tolist()
            return now - then, self.influence - before.influence

    @property
    def _effects(self) -> FloatArray:
        """Return ``(S,)`` influences in units of the number itself."""
        slope = self.scale.derivative(self.value)
        # At the end of a range, where the slope is infinite, no sequence is known to differ.
        return self.influence / slope if math.isfinite(slope) else np.zeros(self.sequences)

    # --- state

    def to_state(self) -> dict[str, Any]:
        """Return the parts that :meth:`change` needs, as numbers, strings and lists for JSON.

        Influences that are not finite are no better than unknown, and not kept.
        """
        influence = self.influence.tolist() if self.known else []
        return {"value": self.value, "influence": influence, "scale": self.scale.name}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Estimate:
        """Return the estimate from a state of :meth:`to_state`."""
        influence = np.asarray(state["influence"], np.float64)
        return cls(float(state["value"]), influence, _SCALES[state["scale"]])


def ci_array(estimates: Sequence[Estimate], level: float = 0.95) -> FloatArray:
    """Return ``(2, N)`` ends of :meth:`Estimate.ci` of ``N`` estimates; NaN where there is none."""
    p = (1 + level) / 2
    spreads = _spreads([estimate.influence for estimate in estimates])
    found = np.full((2, len(estimates)), np.nan)
    by_scale: dict[Scale, list[int]] = {}
    for place, estimate in enumerate(estimates):
        if estimate.known_ci is not None and level == 0.95:
            found[:, place] = estimate.known_ci
        else:
            by_scale.setdefault(estimate.scale, []).append(place)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # Rare sequences that few batches have are likelier on the side of the longer tail.
        normal, fewer = t_quantile(p, spreads.sequences - 1), t_quantile(p, spreads.freedom)
        longer = spreads.skewness * (1 + 2 * NormalDist().inv_cdf(p) ** 2) / 6
        longer = longer / np.sqrt(spreads.sequences)
        below, above = (
            spreads.error * np.maximum(fewer, normal + tail) for tail in (-longer, longer)
        )
        for scale, places in by_scale.items():
            value, bias = np.array([(estimates[i].value, estimates[i].bias) for i in places]).T
            # Equal sequences differ by rounding.
            rounding = 1e-12 * (np.abs(value) if scale.name == REAL.name else 1.0)
            centre = scale.transform(value) - bias
            ends = scale.inverse(np.array([centre - below[places], centre + above[places]]))
            some = (rounding < spreads.error[places]) & np.isfinite(ends).all(axis=0)
            found[:, places] = np.where(some, np.clip(ends, scale.low, scale.high), np.nan)
    return found


def with_cis(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return estimates that know their 95 % CIs: it is faster to compute these together."""
    ends = ci_array(list(estimates.values())).T.tolist()
    return {
        name: replace(e, known_ci=None if math.isnan(low) else (low, high))
        for (name, e), (low, high) in zip(estimates.items(), ends, strict=True)
    }


def _columns(*values: npt.ArrayLike) -> FloatArray:
    """Return ``(S, N)`` float64 columns, of arrays ``(S,)`` and numbers."""
    arrays = [np.asarray(value, np.float64) for value in values]
    (length,) = np.broadcast_shapes(*(array.shape for array in arrays))
    columns = np.empty((length, len(arrays)))
    for column, array in zip(columns.T, arrays, strict=True):
        column[:] = array
    return columns


def _quotient(sums: FloatArray) -> FloatArray:
    return np.asarray(sums[..., 0] / sums[..., 1])


def sd_of_sums(sums: FloatArray) -> FloatArray:
    """Return standard deviations from ``(..., 3)``: counts, sums of values and of squares."""
    count, first, second = np.moveaxis(np.asarray(sums, np.float64)[..., :3], -1, 0)
    mean = first / count
    return np.asarray(np.sqrt(np.maximum(second / count - mean**2, 0.0)))


class _Spreads(NamedTuple):
    """Hold what the influences of ``N`` numbers tell of their errors, NaN where it is unknown."""

    error: FloatArray
    freedom: FloatArray
    skewness: FloatArray
    sequences: FloatArray


def _spreads(influences: Sequence[FloatArray]) -> _Spreads:
    """Return standard errors, their degrees of freedom, and the skewness of the influences.

    Args:
        influences: ``N`` arrays ``(S,)``, whose lengths may differ.
    """
    found = _Spreads(*np.full((4, len(influences)), np.nan))
    by_length: dict[int, list[int]] = {}
    for place, influence in enumerate(influences):
        by_length.setdefault(len(influence), []).append(place)
    for count, places in by_length.items():
        if count < 2:
            continue
        some = np.array([influences[place] for place in places])
        with np.errstate(over="ignore", invalid="ignore"):
            deviation = some - some.mean(axis=1, keepdims=True)
            largest = np.abs(deviation).max(axis=1)
            # Scaled, so that fourth powers neither overflow nor vanish.
            scaled = deviation / np.where(largest > 0, largest, 1.0)[:, None]
            squares = scaled**2
            second, fourth = squares.sum(axis=1), (squares**2).sum(axis=1)
            third = (squares * scaled).sum(axis=1)
            found.error[places] = largest * np.sqrt(second / (count * (count - 1)))
            divisor = np.where(second > 0, second, 1.0)
            kurtosis = count * fourth / divisor**2
            found.skewness[places] = math.sqrt(count) * third / divisor**1.5
        # 3 is the kurtosis of normal values.
        found.freedom[places] = np.maximum(1.0, 2 * count / (np.maximum(kurtosis, 3.0) - 1) - 1)
        found.sequences[places] = count
    return found


def changed_beyond_chance(
    pairs: Sequence[tuple[Estimate, Estimate]], alpha: float = 0.05
) -> list[bool]:
    """Return which numbers changed between two snapshots of the same sequences.

    The paired tests are corrected by Holm: with a probability of at most ``alpha`` any number is
    named that didn't change, however many there are. Numbers that can't be compared count as tests,
    too.

    Args:
        pairs: Estimates before and now.
        alpha: Family-wise error rate.
    """
    apart = [now._apart(before) for before, now in pairs]
    errors = _spreads([influence for _, influence in apart]).error.tolist()
    t = [_t(difference, error) for (difference, _), error in zip(apart, errors, strict=True)]
    p = _two_sided_p(t, [now.sequences - 1 for _, now in pairs])
    return [adjusted < alpha for adjusted in holm(p)]


def _t(difference: float, error: float) -> float:
    if not difference or not math.isfinite(difference + error):
        return 0.0
    return abs(difference) / error if error > 0 else math.inf


def _two_sided_p(t: Sequence[float], freedom: Sequence[int]) -> list[float]:
    if not t:
        return []
    from scipy import special

    found = 2 * special.stdtr(np.maximum(freedom, 1), -np.abs(t))
    return [float(p) for p in found]


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted for the number of tests (Holm 1979)."""
    if not len(p):
        return []
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return [float(v) for v in np.minimum(adjusted, 1.0)]


def t_quantile(p: float, freedom: Any) -> Any:
    """Return a quantile of Student's t, elementwise over the degrees of freedom."""
    known = np.asarray(freedom, np.float64)
    if ((known == 1) | np.isnan(known)).all():
        # The dry run has two sequences, and must not wait for the import of SciPy: with one degree
        # of freedom this is the Cauchy distribution.
        found = known * math.tan(math.pi * (p - 0.5))
    else:
        from scipy import special

        # The function behind scipy.stats.t.ppf, whose checks take 50 µs for each of a hundred CIs.
        found = special.stdtrit(known, p)
    return found if isinstance(freedom, np.ndarray) else float(found)
