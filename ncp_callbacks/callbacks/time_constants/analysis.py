"""Compute time constants of liquid and other recurrent cells.

Those of an LTC come from its parameters, inputs and states::

    tau, v_inf = system_time_constants(parameters, inputs, states)      # (N, F), (N, H) -> (N, H)

Those of a CfC come from the rate of its gate, ``d logit(z) / d elapsed time``, and those of any
cell from the diagonal of the Jacobian of a step::

    tau = gate_time_constants(rate)
    tau = effective_time_constants(diagonal, time_delta)

All are in the unit of ``time_delta``. Their quantiles are in a result::

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
    "gate": "1 / |d logit(z) / d elapsed time| of a unit's gate of the CfC",
    "decay": "1 / (|w_tau| + |ff1|) of a unit of the CfC",
    "effective": "-elapsed time / ln |d h'_i / d h_i| of a unit",
}
SHARES = (0.1, 0.5, 0.9)
# Largest number of conductances of synapses held at once.
_AT_ONCE = 1 << 21


@dataclass(frozen=True, eq=False)
class LTCParameters:
    """Hold the parameters of an LTC cell in float64, with constraints and masks applied.

    There are ``F`` inputs and ``H`` neurons; synapses are ``(source, target)``.

    Attributes:
        gleak: ``(H,)``, leak conductance.
        vleak: ``(H,)``, resting potential.
        cm: ``(H,)``, capacitance.
        w: ``(H, H)``, largest conductance of synapses between neurons; 0 where there is none.
        sigma: ``(H, H)``, steepness of their opening.
        mu: ``(H, H)``, potential of the source at which they are half open.
        erev: ``(H, H)``, reversal potential.
        sensory_w: ``(F, H)``, as ``w``, for synapses from inputs.
        sensory_sigma: ``(F, H)``, as ``sigma``, for synapses from inputs.
        sensory_mu: ``(F, H)``, as ``mu``, for synapses from inputs.
        sensory_erev: ``(F, H)``, as ``erev``, for synapses from inputs.
        input_w: ``(F,)``, factors of the map of the inputs.
        input_b: ``(F,)``, offsets of the map of the inputs.
        unfolds: Number of sub-steps in a step.
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
        """Return the number of neurons, ``H``."""
        return len(self.cm)

    @property
    def inputs(self) -> int:
        """Return the number of inputs, ``F``."""
        return len(self.sensory_w)

    def opening(self, values: FloatArray, *, sensory: bool) -> FloatArray:
        """Return the conductances of synapses, ``(N, sources, H)``.

        Args:
            values: ``(N, sources)``, inputs or states.
            sensory: True for synapses from inputs.
        """
        values = np.asarray(values, np.float64)
        if sensory:
            values = values * self.input_w + self.input_b
            w, sigma, mu = self.sensory_w, self.sensory_sigma, self.sensory_mu
        else:
            w, sigma, mu = self.w, self.sigma, self.mu
        opened: FloatArray = w * sigmoid(sigma * (values[..., None] - mu))
        return opened


def sigmoid(values: FloatArray) -> FloatArray:
    """Return ``1 / (1 + exp(-x))`` without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))


def ltc_pieces(parameters: LTCParameters, rows: int) -> Iterator[slice]:
    """Yield slices of the rows, each of as many as fit into memory with all their synapses."""
    synapses = parameters.units * (parameters.units + parameters.inputs)
    size = max(1, _AT_ONCE // max(1, synapses))
    for start in range(0, rows, size):
        yield slice(start, start + size)


def membrane(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return total conductance ``G`` and drive of each neuron, both ``(N, H)``.

    They determine how a neuron moves: ``cm dv/dt = drive - G v``.

    Args:
        parameters: Parameters of the cell.
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
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray, time_delta: FloatArray
) -> FloatArray:
    """Return the states after one step, ``(N, H)``, by the fused Euler method.

    Args:
        parameters: Parameters of the cell.
        inputs: ``(N, F)``.
        states: ``(N, H)``, states before the step.
        time_delta: ``(N,)``, elapsed time of the step.

    Source: Lechner et al. 2020, equation 3 (doi 10.1038/s42256-020-00237-3).
    """
    *_, (states, _, _) = ltc_sub_steps(parameters, inputs, states, time_delta)
    return states


def ltc_sub_steps(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray, time_delta: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray, FloatArray]]:
    """Yield the states ``(N, H)`` after each sub-step, with its conductance and drive.

    Conductance and drive are those at the beginning of the sub-step; see :func:`membrane`.

    Args:
        parameters: See :func:`ltc_step`.
        inputs: See :func:`ltc_step`.
        states: See :func:`ltc_step`.
        time_delta: See :func:`ltc_step`.
    """
    states = np.asarray(states, np.float64)
    sub_step = np.asarray(time_delta, np.float64)[:, None] / parameters.unfolds
    for _ in range(parameters.unfolds):
        conductance, drive = membrane(parameters, inputs, states)
        states = (parameters.cm * states + sub_step * drive) / (
            parameters.cm + sub_step * conductance
        )
        yield states, conductance, drive


def system_time_constants(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return time constant and equilibrium of each neuron, both ``(N, H)``.

    With its synapses held open as they are, a neuron moves towards ``v_inf`` with the time
    constant ``tau``: ``dv/dt = (v_inf - v) / tau``.

    Args:
        parameters: Parameters of the cell.
        inputs: ``(N, F)``.
        states: ``(N, H)``.

    Source: Lechner et al. 2020, equation 2; tau_sys of Hasani et al. 2021 (doi
    10.1609/aaai.v35i9.16936).
    """
    conductance, drive = membrane(parameters, inputs, states)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(parameters.cm / conductance), np.asarray(drive / conductance)


def time_constant_bounds(parameters: LTCParameters) -> tuple[FloatArray, FloatArray]:
    """Return the smallest and largest possible ``tau``, ``(H,)`` each.

    It is smallest where all synapses are open, and largest where all are closed.

    Source: Hasani et al. 2021, theorem 1.
    """
    closed = parameters.gleak + parameters.epsilon
    opened = closed + parameters.w.sum(axis=0) + parameters.sensory_w.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(parameters.cm / opened), np.asarray(parameters.cm / closed)


def gate_time_constants(rate: FloatArray) -> FloatArray:
    """Return ``1 / |rate|``; infinity for a gate that time does not move."""
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / np.abs(np.asarray(rate, np.float64)))


def half_times(rate: FloatArray, offset: FloatArray) -> FloatArray:
    """Return the elapsed time after which a gate is half open.

    The gate is ``sigmoid(rate elapsed + offset)``. The result is NaN where it is half open after no
    elapsed time above 0.

    Args:
        rate: Rates of the gates.
        offset: Offsets of the gates, of a shape that broadcasts with ``rate``.
    """
    rate, offset = np.asarray(rate, np.float64), np.asarray(offset, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = -offset / rate
    return np.where(np.isfinite(times) & (times > 0), times, np.nan)


def effective_time_constants(diagonal: FloatArray, time_delta: FloatArray) -> FloatArray:
    """Return ``-time_delta / ln |d|``, how long a unit by itself would remember a change.

    Args:
        diagonal: ``(..., H)``, ``d h'_i / d h_i`` of a step.
        time_delta: ``(...)``, elapsed time of the step.

    Returns:
        ``(..., H)``: 0 where nothing of a change is left, infinity where it does not fade
        (``|d| >= 1``), NaN where the derivative is not finite or the elapsed time not above 0.
    """
    kept = np.abs(np.asarray(diagonal, np.float64))
    dt = np.asarray(time_delta, np.float64)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(kept < 1, -dt / np.log(kept), np.inf)
    return np.where(np.isfinite(kept) & np.isfinite(dt) & (dt > 0), times, np.nan)


def typical_times(
    real: npt.NDArray[np.bool_], time_delta: FloatArray | None
) -> tuple[float, float]:
    """Return median elapsed time of a step and median duration of a sequence, both above 0.

    Args:
        real: ``(S, T)``, true at real time steps.
        time_delta: ``(S, T)``, the elapsed time before each time step; None for 1 each.
    """
    delta = np.ones(real.shape) if time_delta is None else time_delta
    known = real & np.isfinite(delta) & (delta > 0)
    if not known.any():
        return 1.0, 1.0
    durations = np.where(known, delta, 0.0).sum(axis=1)
    return float(np.median(delta[known])), float(np.median(durations[durations > 0]))


def explained_by(values: FloatArray, basis: FloatArray) -> tuple[float, float]:
    """Return the residuals of ``values`` fitted by ``c + d basis``, column by column.

    Args:
        values: ``(K, N)``, ``K`` at least 3.
        basis: ``(K, N)``.

    Returns:
        The sum of the squared residuals, and the largest residual as a share of the largest
        absolute value, NaN where there is none. Columns that are not finite are skipped.
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
    """Hold the time constants of the units of a cell. As an array they are ``values``.

    Attributes:
        values: ``(S, T, H)``, in units of ``time_delta``; NaN where there is none: at padding, at
            time steps that were not analysed, and where one came out as NaN.
        kind: One of :data:`KINDS`.
        quantiles: ``(3,)``, 10 %, 50 % and 90 % quantile over units, time steps and sequences;
            infinity counts as larger than all others. NaN where there are no values.
        unit_low: ``(H,)``, 10 % quantile of each unit over time steps and sequences.
        unit_median: ``(H,)``, median of each unit over time steps and sequences.
        unit_high: ``(H,)``, 90 % quantile of each unit over time steps and sequences.
        variation: Median over units of ``unit_high / unit_low``: 1 for a cell whose time constants
            are fixed. NaN where there are none.
        endless: Share of values that are infinite; NaN where there are none.
        known: Number of values, infinite ones included.
        non_finite: Number of values that came out as NaN at real time steps that were analysed.
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
    def over_time(self) -> FloatArray:
        """Return ``(T, H)``, medians over sequences, the smaller of two; NaN if there is none."""
        ordered = np.sort(self.values, axis=0)  # NaN come last.
        count = (~np.isnan(ordered)).sum(axis=0)
        found: FloatArray = np.full(count.shape, np.nan)
        if len(ordered):
            middle = np.maximum(count - 1, 0) // 2
            found = np.take_along_axis(ordered, middle[None], axis=0)[0]
        return found

    def estimates(self) -> dict[str, Estimate]:
        """Return estimates over sequences, by name.

        The names are ``<kind>_q<percent>``, ``variation`` and ``endless``.
        """
        sequence = np.broadcast_to(np.arange(len(self.values))[:, None, None], self.values.shape)
        known = ~np.isnan(self.values)
        quantiles = quantile_estimates(self.values[known], sequence[known], SHARES)
        found = {
            f"{self.kind}_q{round(100 * share)}": quantile
            for share, quantile in zip(SHARES, quantiles, strict=True)
        }
        without_each = _variation_without_each(self.values)
        found["variation"] = Estimate.jackknife(self.variation, without_each, SIZE)
        found["endless"] = Estimate.ratio(
            np.isinf(self.values).sum(axis=(1, 2)), known.sum(axis=(1, 2)), SHARE
        )
        return found


def _variation_without_each(values: FloatArray) -> FloatArray:
    """Return the variation without each sequence, ``(S,)``."""
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
    """Return time constants with their quantiles.

    Args:
        values: ``(S, T, H)``, of each sequence, time step and unit.
        kind: One of :data:`KINDS`.
        mask: ``(S, T)``, true at the time steps that count.
        cell: Name of the recurrent cell.

    Raises:
        ValueError: For another kind or shape.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown: pass one of {', '.join(map(repr, KINDS))}")
    values = np.array(values, np.float64)
    if values.ndim != 3:
        raise ValueError(f"values have shape {values.shape}: pass (sequences, time steps, units)")
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
