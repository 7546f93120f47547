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

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...liquid_equations import LTCParameters, membrane
from ...results import ArrayResult, FloatArray
from ...stats import SHARE, SIZE, Estimate, quantile_estimates
from ...stats.quantiles import places_without_each

__all__ = [
    "KINDS",
    "SHARES",
    "UnitTimeConstants",
    "effective_time_constants",
    "gate_time_constants",
    "half_times",
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
