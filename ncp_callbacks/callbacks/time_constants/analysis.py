"""Time constants of liquid and other recurrent cells.

Of an LTC, from its parameters, inputs and states::

    tau, v_inf = system_time_constants(parameters, inputs, states)      # (N, F), (N, H) -> (N, H)

Of a CfC, from the rate of its gate, ``d logit(z) / d interval``; of any cell, from the diagonal of
the Jacobian of a step::

    tau = gate_time_constants(rate)
    tau = effective_time_constants(diagonal, interval)

All are in the unit of the intervals, and become a result with what there is to say of them::

    found = unit_time_constants(tau, kind="system", mask=mask)               # (S, T, H)
    found.quantiles, found.unit_median
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...results import ArrayResult, FloatArray
from ...stats import SHARE, SIZE, Estimate, quantile_estimates
from ...stats.quantiles import places_without_each

__all__ = [
    "KINDS",
    "SHARES",
    "LTCParameters",
    "UnitTimeConstants",
    "effective_time_constants",
    "explained_by",
    "gate_time_constants",
    "half_times",
    "ltc_pieces",
    "ltc_step",
    "ltc_sub_steps",
    "membrane",
    "sigmoid",
    "system_time_constants",
    "time_constant_bounds",
    "unit_time_constants",
]

KINDS = {
    "system": "capacitance over total conductance of a neuron of the LTC",
    "gate": "1 / |d logit(z) / d interval| of a unit's gate of the CfC",
    "decay": "1 / (|w_tau| + |ff1|) of a unit of the CfC",
    "effective": "-interval / ln |d h'_i / d h_i| of a unit",
}
SHARES = (0.1, 0.5, 0.9)
# Conductances of so many synapses are held at once.
_AT_ONCE = 1 << 21


@dataclass(frozen=True, eq=False)
class LTCParameters:
    """What an LTC cell computes with: constraints and masks applied, in float64.

    ``F`` inputs and ``H`` neurons; synapses are ``(source, target)``.

    Attributes:
        gleak, vleak, cm: ``(H,)``, leak conductance, resting potential, capacitance.
        w, sigma, mu, erev: ``(H, H)``, synapses between neurons; ``w`` is 0 where there is none.
        sensory_w, sensory_sigma, sensory_mu, sensory_erev: ``(F, H)``, likewise from inputs.
        input_w, input_b: ``(F,)``, map of the inputs.
        unfolds: Sub-steps in a step.
        epsilon: Added to each neuron's total conductance.
    """

    gleak: FloatArray
    vleak: FloatArray
    cm: FloatArray
    w: FloatArray
    sigma: FloatArray
    mu: FloatArray
    erev: FloatArray
    sensory_w: FloatArray
    sensory_sigma: FloatArray
    sensory_mu: FloatArray
    sensory_erev: FloatArray
    input_w: FloatArray
    input_b: FloatArray
    unfolds: int
    epsilon: float

    @property
    def units(self) -> int:
        return len(self.cm)

    @property
    def inputs(self) -> int:
        return len(self.sensory_w)

    def opening(self, values: FloatArray, *, sensory: bool) -> FloatArray:
        """``(N, sources)`` inputs or states to ``(N, sources, H)`` conductances of synapses."""
        values = np.asarray(values, np.float64)
        if sensory:
            values = values * self.input_w + self.input_b
            w, sigma, mu = self.sensory_w, self.sensory_sigma, self.sensory_mu
        else:
            w, sigma, mu = self.w, self.sigma, self.mu
        opened: FloatArray = w * sigmoid(sigma * (values[..., None] - mu))
        return opened


def sigmoid(values: FloatArray) -> FloatArray:
    """``1 / (1 + exp(-x))`` without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))


def ltc_pieces(parameters: LTCParameters, rows: int) -> Iterator[slice]:
    """Slices of the rows, of as many as fit into memory with all their synapses."""
    synapses = parameters.units * (parameters.units + parameters.inputs)
    most = max(1, _AT_ONCE // max(1, synapses))
    for start in range(0, rows, most):
        yield slice(start, start + most)


def membrane(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Total conductance ``G`` and drive of each neuron, both ``(N, H)``.

    They say all of a neuron's present: ``cm dv/dt = drive - G v``.

    Args:
        parameters: The cell's.
        inputs: ``(N, F)``.
        states: ``(N, H)``.
    """
    states = np.asarray(states, np.float64)
    conductance, drive = np.empty_like(states), np.empty_like(states)
    for part in ltc_pieces(parameters, len(states)):
        neurons = parameters.opening(states[part], sensory=False)
        senses = parameters.opening(inputs[part], sensory=True)
        conductance[part] = (
            parameters.gleak + parameters.epsilon + neurons.sum(axis=1) + senses.sum(axis=1)
        )
        drive[part] = (
            parameters.gleak * parameters.vleak
            + (neurons * parameters.erev).sum(axis=1)
            + (senses * parameters.sensory_erev).sum(axis=1)
        )
    return conductance, drive


def ltc_step(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray, intervals: FloatArray
) -> FloatArray:
    """``(N, H)``, states after one step of ``intervals`` ``(N,)``, by the fused Euler method.

    Source: Lechner et al. 2020, equation 3 (doi 10.1038/s42256-020-00237-3).
    """
    *_, (states, _, _) = ltc_sub_steps(parameters, inputs, states, intervals)
    return states


def ltc_sub_steps(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray, intervals: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray, FloatArray]]:
    """States ``(N, H)`` after each sub-step, with the conductance and the drive it took.

    Both are those of its beginning; see :func:`membrane`.
    """
    states = np.asarray(states, np.float64)
    sub_step = np.asarray(intervals, np.float64)[:, None] / parameters.unfolds
    for _ in range(parameters.unfolds):
        conductance, drive = membrane(parameters, inputs, states)
        states = (parameters.cm * states + sub_step * drive) / (
            parameters.cm + sub_step * conductance
        )
        yield states, conductance, drive


def system_time_constants(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Time constant and equilibrium of each neuron, both ``(N, H)``.

    With its synapses held open as they are, a neuron moves towards ``v_inf`` with the time
    constant ``tau``: ``dv/dt = (v_inf - v) / tau``.

    Args:
        parameters, inputs, states: As for :func:`membrane`.

    Source: Lechner et al. 2020, equation 2; tau_sys of Hasani et al. 2021 (doi
    10.1609/aaai.v35i9.16936).
    """
    conductance, drive = membrane(parameters, inputs, states)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(parameters.cm / conductance), np.asarray(drive / conductance)


def time_constant_bounds(parameters: LTCParameters) -> tuple[FloatArray, FloatArray]:
    """``(H,)`` each, the smallest and largest that ``tau`` can be: all synapses open, all closed.

    Source: Hasani et al. 2021, theorem 1.
    """
    closed = parameters.gleak + parameters.epsilon
    opened = closed + parameters.w.sum(axis=0) + parameters.sensory_w.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(parameters.cm / opened), np.asarray(parameters.cm / closed)


def gate_time_constants(rate: FloatArray) -> FloatArray:
    """``1 / |rate|``; infinity for a gate that time doesn't move."""
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / np.abs(np.asarray(rate, np.float64)))


def half_times(rate: FloatArray, offset: FloatArray) -> FloatArray:
    """Interval after which a gate ``sigmoid(rate interval + offset)`` is half open.

    NaN where it is half open after no interval above 0.
    """
    rate, offset = np.asarray(rate, np.float64), np.asarray(offset, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = -offset / rate
    return np.where(np.isfinite(times) & (times > 0), times, np.nan)


def effective_time_constants(diagonal: FloatArray, intervals: FloatArray) -> FloatArray:
    """``-interval / ln |d|``: how long a change of a unit would last if it kept it to itself.

    Args:
        diagonal: ``(..., H)``, ``d h'_i / d h_i`` of a step.
        intervals: ``(...)``, the interval of the step.

    Returns:
        ``(..., H)``: 0 where nothing of a change is left, infinity where it doesn't fade
        (``|d| >= 1``), NaN where the derivative is not finite or the interval not above 0.
    """
    kept = np.abs(np.asarray(diagonal, np.float64))
    dt = np.asarray(intervals, np.float64)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(kept < 1, -dt / np.log(kept), np.inf)
    return np.where(np.isfinite(kept) & np.isfinite(dt) & (dt > 0), times, np.nan)


def explained_by(values: FloatArray, basis: FloatArray) -> tuple[float, float]:
    """How well ``values`` are ``c + d basis`` with ``c`` and ``d`` of each column.

    Args:
        values, basis: ``(K, N)``, ``K`` at least 3.

    Returns:
        The sum of the squared residuals, and the largest residual as a share of the largest
        absolute value, NaN where there is none. Columns that are not finite don't count.
    """
    values, basis = np.asarray(values, np.float64), np.asarray(basis, np.float64)
    known = np.isfinite(values).all(axis=0) & np.isfinite(basis).all(axis=0)
    values, basis = values[:, known], basis[:, known]
    if not values.size:
        return 0.0, float("nan")
    y, x = values - values.mean(axis=0), basis - basis.mean(axis=0)
    power = (x * x).sum(axis=0)
    slope = np.divide((x * y).sum(axis=0), power, out=np.zeros_like(power), where=power > 0)
    left = y - slope * x
    largest = float(np.abs(values).max())
    return float((left**2).sum()), float(np.abs(left).max()) / largest if largest > 0 else 0.0


@dataclass(frozen=True, eq=False)
class UnitTimeConstants(ArrayResult):
    """Time constants of the units of a cell. As an array they are ``values``.

    Attributes:
        values: ``(S, T, H)``, in units of the intervals; NaN where there is none: at padding, at
            steps that were not looked at, and where one came out as NaN.
        kind: Which ones, see :data:`KINDS`.
        quantiles: ``(3,)``, 10 %, 50 % and 90 % of them over units, steps and sequences; infinity
            counts as larger than all others. NaN where there are none.
        unit_low, unit_median, unit_high: ``(H,)``, the same of each unit over steps and sequences.
        variation: Median over units of ``unit_high / unit_low``: 1 for a cell whose time constants
            are fixed. NaN where there are none.
        endless: Share of values that are infinite; NaN where there are none.
        known: How many values there are, infinite ones among them.
        non_finite: How many came out as NaN at real steps that were looked at.
        cell: Name of the recurrent cell.
    """

    _plot = "plot_time_constants"

    values: FloatArray
    kind: str
    quantiles: FloatArray
    unit_low: FloatArray
    unit_median: FloatArray
    unit_high: FloatArray
    variation: float
    endless: float
    known: int
    non_finite: int
    cell: str

    @property
    def _main(self) -> FloatArray:
        return self.values

    @property
    def over_time(self) -> FloatArray:
        """``(T, H)``, median over sequences at each step, the smaller of two; NaN without any."""
        ordered = np.sort(self.values, axis=0)  # NaN come last.
        count = (~np.isnan(ordered)).sum(axis=0)
        found: FloatArray = np.full(count.shape, np.nan)
        if len(ordered):
            middle = np.maximum(count - 1, 0) // 2
            found = np.take_along_axis(ordered, middle[None], axis=0)[0]
        return found

    def estimates(self) -> dict[str, Estimate]:
        """``<kind>_q<percent>``, ``variation`` and ``endless``, with intervals over sequences."""
        sequence = np.broadcast_to(np.arange(len(self.values))[:, None, None], self.values.shape)
        known = ~np.isnan(self.values)
        quantiles = quantile_estimates(self.values[known], sequence[known], SHARES)
        found = {
            f"{self.kind}_q{round(100 * share)}": quantile
            for share, quantile in zip(SHARES, quantiles, strict=True)
        }
        left_out = _variation_without_each(self.values)
        found["variation"] = Estimate.jackknife(self.variation, left_out, SIZE)
        found["endless"] = Estimate.ratio(
            np.isinf(self.values).sum(axis=(1, 2)), known.sum(axis=(1, 2)), SHARE
        )
        return found


def _variation_without_each(values: FloatArray) -> FloatArray:
    """``(S,)``, the variation without each sequence."""
    count, units = len(values), values.shape[2]
    sequence = np.repeat(np.arange(count), values.shape[1])
    low, high = np.full((2, count, units), np.nan)
    for unit, column in enumerate(values.reshape(-1, units).T):
        known = ~np.isnan(column)
        if not known.any():
            continue
        order = np.argsort(column[known], kind="stable")
        ordered, owner = column[known][order], sequence[known][order]
        left = len(owner) > np.bincount(owner, minlength=count)
        ends = places_without_each(owner, count, (SHARES[0], SHARES[-1]))
        low[left, unit], high[left, unit] = (ordered[place][left] for place in ends)
    found = np.full(count, np.nan)
    use = np.isfinite(low) & np.isfinite(high) & (low > 0)
    for s in np.flatnonzero(use.any(axis=1)):
        found[s] = np.median(high[s, use[s]] / low[s, use[s]])
    return found


def unit_time_constants(
    values: FloatArray,
    *,
    kind: str,
    mask: npt.NDArray[np.bool_] | None = None,
    cell: str = "cell",
) -> UnitTimeConstants:
    """Time constants ``(S, T, H)`` with their quantiles.

    Args:
        values: Of each sequence, step and unit.
        kind: One of :data:`KINDS`.
        mask: ``(S, T)``, true at the steps that count.
        cell: Name of the recurrent cell.

    Raises:
        ValueError: For another kind or shape.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown: give one of {', '.join(map(repr, KINDS))}")
    values = np.array(values, np.float64)
    if values.ndim != 3:
        raise ValueError(f"values have shape {values.shape}; give (sequences, steps, units)")
    if mask is not None:
        values[~np.asarray(mask, bool)] = np.nan
    count = values.shape[0] * values.shape[1] if mask is None else int(np.sum(mask))
    rows = values.reshape(-1, values.shape[-1])
    each = np.stack([_quantiles(rows[:, i]) for i in range(rows.shape[1])], axis=1)
    known = ~np.isnan(rows)
    low, high = each[0], each[2]
    use = np.isfinite(low) & np.isfinite(high) & (low > 0)
    total = int(known.sum())
    return UnitTimeConstants(
        values=values,
        kind=kind,
        quantiles=_quantiles(rows.ravel()),
        unit_low=low,
        unit_median=each[1],
        unit_high=high,
        variation=float(np.median(high[use] / low[use])) if use.any() else float("nan"),
        endless=float(np.isinf(rows).sum() / total) if total else float("nan"),
        known=total,
        non_finite=count * rows.shape[1] - total,
        cell=cell,
    )


def _quantiles(values: npt.NDArray[Any]) -> FloatArray:
    known = values[~np.isnan(values)]
    if not known.size:
        return np.full(len(SHARES), np.nan)
    # Values themselves: between a number and infinity there is nothing to interpolate.
    return np.asarray(np.quantile(known, SHARES, method="inverted_cdf"))
