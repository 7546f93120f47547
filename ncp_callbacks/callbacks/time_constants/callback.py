"""Log how fast the units of each recurrent cell react."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from ...callback import (
    Callback,
    PairedChanges,
    cells_with_groups,
    for_each_supported_cell,
    non_finite_count,
    small_batch_note,
    whole_number,
)
from ...extra_passes.extra_passes import ExtraPasses
from ...model import NotApplicable
from ...model.cell_stepper import CellStepper
from ...model.liquid import (
    DecayReading,
    GateReading,
    LTCReading,
    Reading,
    time_delta_per_call,
)
from ...observation import Need, Observation
from ...records import Array, Figure, Histogram, Note, Place, Record
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import SHARE, Estimate, quantile_estimates
from ...stats.state_samples import spread_units
from ..record_log import RecordLog
from .analysis import (
    KINDS,
    SHARES,
    UnitTimeConstants,
    effective_time_constants,
    gate_time_constants,
    half_times,
    system_time_constants,
    time_constant_bounds,
    typical_times,
    unit_time_constants,
)
from .plot import needed_decades, needed_limits, plot_time_constants, plot_time_constants_over_time

__all__ = ["TimeConstants"]

BoolArray = npt.NDArray[np.bool_]

# Descriptions of the scalars.
SCALARS = {
    "quantile": "Time constant of {cell}, {kind}, in units of time_delta (time steps without it): "
    "{quantile} over units, time steps and sequences{some}",
    "endless": "Share of units of {cell}, over time steps and sequences, whose |d h'_i / d h_i| is "
    "1 or more: a change of the unit does not fade by itself{some}",
    "variation": "90 % quantile over 10 % quantile of a unit's time constants over time steps and "
    "sequences, median over units of {cell}: 1 where they are fixed, more where they are "
    "liquid{some}",
    "reading_error": "Largest difference between the states of {cell} and those computed from the "
    "formula with its parameters, as a share of the largest state: rounding only, if the formula "
    "holds",
    "outside_bounds": "Number of time constants of {cell} outside cm / (gleak + sum w) … "
    "cm / gleak: 0 as long as capacitances and conductances are positive",
    "to_equilibrium": "RMS of v_inf - v over neurons of {cell}, time steps and sequences: how far "
    "the state is from where its present inputs and synapses pull it",
    "rate_positive": "Share of gates of {cell}, over units, time steps and sequences, that open as "
    "the elapsed time grows: towards the second state, ff2",
    "gate_openness": "Mean gate z of {cell}, the weight of its second state, ff2",
    "gate_half_time": "Median elapsed time after which a gate of {cell} is half open, over gates "
    "that ever are",
    "decay_openness": "Mean of 1 - exp(-elapsed time / time constant) of {cell}: the share of the "
    "way to its limit that a unit has gone at the end of a step",
    "decay_half_time": "Median elapsed time after which a unit of {cell} has gone half of the way "
    "to its limit",
}
_PLACES: Mapping[str, Place] = {
    **{f"{kind}_q50": "group" for kind in KINDS},
    "variation": "group",
    "openness": "group",
    "half_time": "group",
    "rate_positive": "group",
    "to_equilibrium": "group",
    "endless": "nonzero",
    "outside_bounds": "nonzero",
}
# Rounding of float32 parameters, relative to a bound.
_ROUNDING = 1e-6
# Time steps of effective time constants where nothing else is known of a cell.
_DEFAULT_TIME_STEPS = 8
# Powers of ten on each side of the typical elapsed time, and bins in each, of the histogram.
_DECADES, _BINS_PER_DECADE = 3, 8


class TimeConstants(Callback):
    """Log time constants of the units of every recurrent cell, exact ones where it is liquid.

    * An LTC: ``tau = cm / (gleak + open synapses)`` of each neuron at each time step, which tells
      how fast it moves towards where its present input and state pull it.
    * A CfC: ``1 / |d logit(z) / d elapsed time|`` of each unit's gate ``z``; in mode "pure" the
      time constant of its exponential.
    * Any cell: the effective time constant ``-elapsed time / ln |d h'_i / d h_i|``, which tells how
      long a unit would remember a change of itself, if that were its only memory.

    All are in units of ``time_delta``, or in time steps without it. Cells are recognised by their
    parameters, whichever library they come from. The formula is compared with the cell's own
    states, and signs are found by trying other elapsed times. A cell that computes something else
    with these parameters has only its effective time constants logged, and a note reports it.

    The costs are a forward pass, each step of the cell once more, and for the effective time
    constants ``time_steps`` backward steps of ``units × sequences`` sequences, with at most
    ``max_units`` units. For a CfC and for an LTC of 32 units (batch 32, 32 time steps) a snapshot
    took 2 training steps, and less than 1 with ``time_steps=0``.

    ======================================= ========= ==============================================
    Tag                                     Record    What
    ======================================= ========= ==============================================
    ``time_constants/units``                image     time constants of each unit, sorted: median,
                                                      range, and median at the first snapshot
    ``time_constants/over_time``            image     time constants of each unit against time
    ``time_constants/system_q<percent>``    scalar    LTC: time constants, quantiles over units,
                                                      time steps and sequences
    ``time_constants/gate_q<percent>``      scalar    CfC: time scales of the gates, quantiles
    ``time_constants/decay_q<percent>``     scalar    pure CfC: time constants, quantiles
    ``time_constants/effective_q<percent>`` scalar    any cell: effective time constants, quantiles
    ``time_constants/endless``              scalar    share of units and time steps where a change
                                                      of the unit does not fade by itself
    ``time_constants/variation``            scalar    90 % / 10 % quantile of a unit's time
                                                      constants: 1 is not liquid at all
    ``time_constants/outside_bounds``       scalar    LTC: number of impossible time constants
    ``time_constants/to_equilibrium``       scalar    LTC: RMS distance from where the state is
                                                      pulled
    ``time_constants/rate_positive``        scalar    CfC: share of gates that time opens
    ``time_constants/openness``             scalar    CfC: mean of the gates; pure: mean share of
                                                      the way to its limit that a unit has gone
    ``time_constants/half_time``            scalar    CfC: median elapsed time at which a gate is
                                                      half open; pure: half of that way gone
    ``time_constants/reading_error``        scalar    liquid cells: largest difference of the
                                                      formula from the cell's own states
    ``time_constants/median_change``        scalar    relative change of the median since the
                                                      previous snapshot, same sequences
    ``time_constants/numbers_changed``      scalar    how many of these changed beyond chance
    ``time_constants/nonfinite``            scalar    number of skipped time constants: NaN
    ``time_constants/log10``                histogram log10 of each unit's median time constant
    ``_ncp/time_constants_median``          array     ``(H,)``, median time constant of each unit
    ======================================= ========= ==============================================

    The images, ``variation``, ``nonfinite``, the histogram and the array show the cell's own kind
    of time constant, and effective ones for cells that are not liquid. With several cells the name
    of a cell is added, as in ``time_constants_encoder/units``. An LSTM's units are those of its
    hidden state and then of its cell state. All but checks and counts come with 95 % CIs over
    sequences, which are unreliable for fewer than 16 sequences, as by default.

    Args:
        time_steps: Number of time steps, spread over the sequence, at which the effective time
            constants are computed. With 0 they are skipped for liquid cells, and computed at 8
            time steps for others.
        max_units: Largest number of units for which effective time constants are computed, spread
            evenly over the cell's and always the same ones; descriptions and a note report this.
            The exact time constants of liquid cells are computed for all units.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For less than one of ``max_units`` or ``max_sequences``, or fewer than zero
            ``time_steps``.

    Source: the functions in ``ncp_callbacks.callbacks.time_constants.analysis`` name theirs.
    """

    needs = frozenset({Need.STATES, Need.CELL_STEPS})
    default_name = "time_constants"
    max_sequences: int | None = 8

    def __init__(
        self,
        *,
        time_steps: int = 8,
        max_units: int = 64,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = 8,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self.max_sequences = max_sequences
        self._time_steps = whole_number("time_steps", time_steps, 0)
        self._max_units = whole_number("max_units", max_units, 1)
        self._axes: dict[str, _Axes] = {}  # By cell.
        self._changes = self.keep("changes", PairedChanges())

    def state_dict(self) -> dict[str, Any]:
        axes = {cell: axes.state_dict() for cell, axes in self._axes.items()}
        return {**super().state_dict(), "axes": axes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._axes = {cell: _Axes.from_state(axes) for cell, axes in state["axes"].items()}

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        part = observation.limited(self.max_sequences)
        cells = cells_with_groups(part, self.name)
        yield from small_batch_note(observation)
        of_each = {
            group: functools.partial(self._of, states.cell, group, part) for states, group in cells
        }
        yield from for_each_supported_cell(of_each, self.name, "it has no time constants here")

    def _of(self, cell: str, group: str, part: Observation) -> Iterable[Record | Note]:
        """Return the records of one cell."""
        passes = part.extra_passes
        stepper = passes.cell_stepper(cell)
        real = np.ones((len(part.inputs), stepper.steps), bool) if part.mask is None else part.mask
        log = _CellLog(cell, group, stepper, real, part.time_delta)
        reading: Reading | None = None
        try:
            reading = passes.read_liquid(stepper)
        except NotApplicable as reason:
            log.note(f"{reason}; its effective time constants are logged instead")
        result, some = (None if reading is None else _log_exact(log, reading)), ""
        if result is None or self._time_steps:
            effective, of_units = _log_effective(
                log, passes, reading, self._time_steps, self._max_units
            )
            if result is None:
                result, some = effective, of_units
        _log_units(log, result, some)
        if result.known:
            axes = _Axes.covering(self._axes.get(cell), result, log.typical_times)
            _log_figures(log, result, axes, self._axes.get(cell), part.step, some)
            self._axes[cell] = axes
        median = f"{result.kind}_q50"
        log.records += self._changes.compare(group, log.estimates, part, median, "median")
        return log.records


@dataclass(frozen=True, eq=False)
class _Axes:
    """Hold what the pictures of a cell share between snapshots.

    Attributes:
        first: ``(H,)``, median time constants at the first snapshot.
        decades: Powers of ten that the axis of units spans.
        limits: Time constants that the colours of the map span.
    """

    first: FloatArray
    decades: tuple[int, int]
    limits: tuple[float, float]

    @classmethod
    def covering(
        cls, before: _Axes | None, result: UnitTimeConstants, times: tuple[float, float]
    ) -> _Axes:
        """Return the axes of the previous snapshot, grown to cover a result."""
        first = result.unit_median.astype(np.float32)
        if before is not None and before.first.shape == first.shape:
            first = before.first
        low, high = needed_decades(result, first, *times)
        short, long = needed_limits(result)
        if before is not None:
            low, high = min(low, before.decades[0]), max(high, before.decades[1])
            short, long = min(short, before.limits[0]), max(long, before.limits[1])
        return cls(first, (low, high), (short, long))

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive an interruption."""
        return {"first": self.first, "decades": list(self.decades), "limits": list(self.limits)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _Axes:
        """Return what :meth:`state_dict` was made from."""
        (low, high), (short, long) = state["decades"], state["limits"]
        first = np.asarray(state["first"], np.float32)
        return cls(first, (int(low), int(high)), (float(short), float(long)))


class _CellLog(RecordLog):
    """Collect the records of one cell at one snapshot.

    Args:
        cell: Name of the cell.
        group: First part of the tags.
        stepper: The cell.
        real: ``(S, T)``, true at real time steps.
        time_delta: ``(S, T)``, None where there is none.
    """

    def __init__(
        self,
        cell: str,
        group: str,
        stepper: CellStepper,
        real: BoolArray,
        time_delta: FloatArray | None,
    ) -> None:
        super().__init__(group, SCALARS, places=_PLACES, cell=cell)
        self.cell, self.stepper, self.real, self.time_delta = cell, stepper, real, time_delta

    def mean(
        self,
        name: str,
        values: npt.NDArray[Any],
        use: BoolArray,
        *,
        entry: str | None = None,
    ) -> None:
        """Log the mean of the ``(S, T, H)`` shares in ``use``, if there are any."""
        if use.any():
            sums = np.where(use, values, 0.0).sum(axis=(1, 2))
            estimate = Estimate.ratio(sums, use.sum(axis=(1, 2)), SHARE)
            self.scalar(name, float(values[use].mean()), estimate, entry=entry)

    @functools.cached_property
    def typical_times(self) -> tuple[float, float]:
        """Return the median elapsed time of a step and the median duration of a sequence."""
        return typical_times(self.real, self.time_delta)


# ---- exact time constants of liquid cells


def _log_exact(log: _CellLog, reading: Reading) -> UnitTimeConstants:
    """Log the scalars of a liquid cell, and return its time constants."""
    if math.isnan(reading.scale):
        log.note(
            "the cell receives elapsed times that are not proportional to time_delta: its time "
            "constants are in units of what it receives"
        )
    equilibria = None
    if isinstance(reading, LTCReading):
        shape = reading.before.shape
        tau, v_inf = system_time_constants(
            reading.parameters,
            reading.inputs.reshape(shape[0] * shape[1], -1),
            reading.before.reshape(-1, shape[2]),
        )
        kind, values, equilibria = "system", tau.reshape(shape) * _unit(reading), v_inf
    else:
        kind = "gate" if isinstance(reading, GateReading) else "decay"
        values = gate_time_constants(reading.rate)
    result = unit_time_constants(values, kind=kind, mask=log.real, cell=log.cell)
    log.estimates.update(result.estimates())
    _log_quantiles(log, result)
    log.scalar("reading_error", reading.error)
    if isinstance(reading, LTCReading):
        _log_bounds(log, reading, result)
    elif isinstance(reading, GateReading):
        _log_gates(log, reading)
    elif isinstance(reading, DecayReading):
        _log_decays(log, reading)
    if equilibria is not None and isinstance(reading, LTCReading):
        _log_distance(log, equilibria.reshape(reading.before.shape) - reading.before)
    return result


def _unit(reading: Reading) -> float:
    """Return the cell's unit of time in units of ``time_delta``; 1 where it is unknown."""
    return 1.0 if math.isnan(reading.scale) else reading.scale


def _elapsed(reading: GateReading | DecayReading) -> FloatArray:
    """Return ``(S, T, 1)``, elapsed times in the unit of the rates."""
    return np.asarray((reading.time_delta * _unit(reading))[..., None])


def _log_bounds(log: _CellLog, reading: LTCReading, result: UnitTimeConstants) -> None:
    low, high = (bound * _unit(reading) for bound in time_constant_bounds(reading.parameters))
    known = result.values[~np.isnan(result.values).any(axis=2)]
    outside = ~((known >= low * (1 - _ROUNDING)) & (known <= high * (1 + _ROUNDING)))
    log.scalar("outside_bounds", int(outside.sum()))
    if outside.any():
        log.note(
            "some time constants are outside their bounds, because a capacitance or conductance "
            "is not positive: clip w, sensory_w, cm and gleak at 0 after each optimiser step "
            "(apply_weight_constraints), or set implicit_param_constraints=True"
        )


def _log_distance(log: _CellLog, distance: FloatArray) -> None:
    """Log the RMS of ``(S, T, H)`` distances from the equilibrium."""
    use = log.real[..., None] & np.isfinite(distance)
    if use.any():
        squares = np.where(use, np.where(use, distance, 0.0) ** 2, 0.0).sum(axis=(1, 2))
        estimate = Estimate.rms(squares, use.sum(axis=(1, 2)))
        log.scalar("to_equilibrium", float(np.sqrt((distance[use] ** 2).mean())), estimate)


def _log_gates(log: _CellLog, reading: GateReading) -> None:
    rate, offset = reading.rate, reading.offset
    if not reading.signed:
        log.note(
            f"the states of {log.cell} are equal for both signs of its gates' rates, so "
            "rate_positive, openness and half_time are skipped"
        )
        return
    known = log.real[..., None] & np.isfinite(rate) & np.isfinite(offset)
    if not known.any():
        return
    log.mean("rate_positive", rate > 0, known)
    with np.errstate(invalid="ignore", over="ignore"):
        gate = expit(rate * _elapsed(reading) + offset)
    _log_openness(log, gate, half_times(rate, offset), "gate")


def _log_decays(log: _CellLog, reading: DecayReading) -> None:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gone = -np.expm1(-reading.rate * _elapsed(reading))
        half = np.log(2.0) / reading.rate
    _log_openness(log, gone, half, "decay")


def _log_openness(log: _CellLog, openness: FloatArray, half: FloatArray, kind: str) -> None:
    real = log.real[..., None]
    log.mean("openness", openness, real & np.isfinite(openness), entry=f"{kind}_openness")
    use = real & np.isfinite(half)
    if use.any():
        (estimate,) = quantile_estimates(half[use], np.nonzero(use)[0], (0.5,))
        log.scalar("half_time", float(np.median(half[use])), estimate, entry=f"{kind}_half_time")


# ---- effective time constants


def _log_effective(
    log: _CellLog,
    passes: ExtraPasses,
    reading: Reading | None,
    time_steps: int,
    max_units: int,
) -> tuple[UnitTimeConstants, str]:
    """Log effective time constants, and return them and the end of their descriptions."""
    width = sum(log.stepper.sizes)
    units = spread_units(width, max_units)
    some = ""
    if len(units) < width:
        some = f"; {len(units)} of {width} units"
        log.note(
            f"effective time constants are computed for {len(units)} of {width} units, spread "
            f"evenly; pass max_units={width} for all"
        )
    effective = _effective(log, passes, reading, time_steps or _DEFAULT_TIME_STEPS, units)
    estimates = effective.estimates()
    # Quantiles have the kind in their names; shares and the variation are those of the exact kind.
    log.estimates.update({**estimates, **log.estimates})
    _log_quantiles(log, effective, some)
    if effective.known:
        log.scalar("endless", effective.endless, estimates["endless"], some=some)
    return effective, some


def _effective(
    log: _CellLog,
    passes: ExtraPasses,
    reading: Reading | None,
    time_steps: int,
    units: npt.NDArray[np.intp],
) -> UnitTimeConstants:
    """Return effective time constants of some units at some time steps."""
    steps = log.stepper.steps
    synapses = 0
    if isinstance(reading, LTCReading):
        synapses = reading.parameters.units * (reading.parameters.units + reading.parameters.inputs)
    whole = np.array(log.stepper.whole_steps)
    chosen = whole[np.linspace(0, len(whole) - 1, min(time_steps, len(whole))).round().astype(int)]
    elapsed = time_delta_per_call(log.stepper, log.time_delta)
    values = np.full((len(log.real), steps, len(units)), np.nan)
    for t in np.unique(chosen):
        diagonal = passes.jacobian_diagonal(log.stepper, int(t), synapses, units)
        values[:, t] = effective_time_constants(diagonal, elapsed[:, t])
    analysed = np.zeros_like(log.real)
    analysed[:, chosen] = True
    return unit_time_constants(values, kind="effective", mask=log.real & analysed, cell=log.cell)


# ---- both kinds


def _log_quantiles(log: _CellLog, result: UnitTimeConstants, some: str = "") -> None:
    for share, value in zip(SHARES, result.quantiles, strict=True):
        percent = round(100 * share)
        name = f"{result.kind}_q{percent}"
        if math.isfinite(value):
            quantile = "median" if share == 0.5 else f"{percent} % quantile"
            log.scalar(
                name, float(value), log.estimates.get(name), entry="quantile",
                kind=KINDS[result.kind], quantile=quantile, some=some,
            )  # fmt: skip
        elif math.isinf(value):
            log.records.append(
                Note(
                    f"{log.group}/{name} is skipped at snapshots where it is infinite, because "
                    "too many time constants are"
                )
            )


def _log_units(log: _CellLog, result: UnitTimeConstants, some: str) -> None:
    """Log how the time constants of units vary and are distributed."""
    log.records += non_finite_count(log.group, result.non_finite, "time constants", "they are NaN")
    if not result.known:
        return
    if not math.isnan(result.variation):
        log.scalar("variation", result.variation, log.estimates.get("variation"), some=some)
    median = result.unit_median
    positive = median[np.isfinite(median) & (median > 0)]
    if positive.size:
        middle = math.floor(math.log10(log.typical_times[0]) + 0.5)
        ends, bins = (middle - _DECADES, middle + _DECADES), 2 * _DECADES * _BINS_PER_DECADE
        log.records.append(
            Histogram(
                f"{log.group}/log10",
                np.log10(positive),
                np.linspace(*ends, bins + 1),
                f"log10 of the median time constant of each unit of {log.cell}; values outside "
                f"are counted in the first or last bin{some}",
            )
        )
    about = {"cell": log.cell, "label": "median time constant"}
    log.records.append(
        Array(f"_ncp/{log.group}_median", median, kind="unit values", axes=("unit",), about=about)
    )


def _log_figures(
    log: _CellLog,
    result: UnitTimeConstants,
    axes: _Axes,
    before: _Axes | None,
    step: int,
    some: str,
) -> None:
    """Log the pictures; ``before`` is None at the first snapshot."""
    time_delta, duration = log.typical_times
    timed = log.time_delta is not None
    what = f"Time constants of the units of {log.cell}, {KINDS[result.kind]}"
    units = Figure(
        f"{log.group}/units",
        plot_time_constants,
        replace(result, values=np.empty((0, 0, 0))),
        {
            "first": None if before is None else axes.first,
            "time_delta": time_delta,
            "duration": duration,
            "decades": axes.decades,
            "timed": timed,
            "step": step,
        },
        f"{what}, sorted by their median over time steps and sequences; bars from the 10 % to the "
        "90 % quantile. Dashed: medians at the first snapshot, sorted separately. Dotted: "
        f"median elapsed time of a step (Δt), and duration of a sequence{some}.",
    )
    nearest = ""
    if np.isnan(result.values).all(axis=(0, 2)).any():
        nearest = "; a time step that was not analysed shows the nearest that was"
    over_time = Figure(
        f"{log.group}/over_time",
        plot_time_constants_over_time,
        replace(result, values=result.over_time[None]),
        {"limits": axes.limits, "timed": timed, "step": step},
        f"{what}, against time: median over sequences, dark short, yellow long. Units are sorted "
        f"by their medians, the slowest on top{some}{nearest}.",
    )
    log.records += [units, over_time]
