"""How fast the units of a cell react, and how much that depends on what they see."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...callback import (
    Callback,
    PairedChanges,
    for_each_supported_cell,
    non_finite_count,
    per_cell_names,
    scalar_with_ci,
    small_batch_note,
)
from ...model import NotApplicable
from ...model.cell_stepper import CellStepper
from ...model.liquid import (
    DecayReading,
    GateReading,
    LTCReading,
    Reading,
    jacobian_diagonal,
    read_liquid,
    time_delta_per_call,
)
from ...observation import Need, Observation, Trajectory
from ...records import Array, Figure, Histogram, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import SHARE, Estimate, Scale, quantile_estimates
from ...stats.state_samples import spread_units
from .analysis import (
    KINDS,
    SHARES,
    UnitTimeConstants,
    effective_time_constants,
    gate_time_constants,
    half_times,
    sigmoid,
    system_time_constants,
    time_constant_bounds,
    unit_time_constants,
)
from .plot import needed_decades, needed_limits, plot_time_constants, plot_time_constants_over_time

__all__ = ["TimeConstants"]

BoolArray = npt.NDArray[np.bool_]

# Rounding of float32 parameters, relative to a bound.
_SLACK = 1e-6


class TimeConstants(Callback):
    """Time constants of the units of every recurrent cell, exact ones where it is liquid.

    * An LTC's ``tau = cm / (gleak + open synapses)`` of each neuron, at each step: how fast it
      moves towards where its present input and state pull it.
    * A CfC's ``1 / |d logit(z) / d interval|`` of each unit's gate ``z``; in mode "pure" the time
      constant of its exponential.
    * Any cell's effective ``-interval / ln |d h'_i / d h_i|``: how long a unit would remember a
      change of itself, if that were its only memory.

    All are in units of ``time_delta``, in steps where there are none. Cells are recognised by what
    they hold, whichever library they come from; what is read is compared with what the cell does,
    signs are found by trying other intervals, and a cell that does something else with the same
    parameters only has its effective time constants logged, which a note says.

    Costs a forward pass, each step of the cell once more, and for the effective ones ``steps``
    backward steps of ``units × sequences`` sequences, of at most ``max_units`` units. For a CfC and
    for an LTC of 32 units (batch 32, 32 steps) a look took 2 training steps, and less than 1 with
    ``steps=0``.

    ======================================= ========= ==============================================
    Tag                                     Record    What
    ======================================= ========= ==============================================
    ``time_constants/units``                image     time constants of each unit, sorted: median,
                                                      range, and median at the first look
    ``time_constants/over_time``            image     time constants of each unit against time
    ``time_constants/system_q<percent>``    scalar    LTC: time constants over units, steps and
                                                      sequences
    ``time_constants/gate_q<percent>``      scalar    CfC: time scale of the gates, likewise
    ``time_constants/decay_q<percent>``     scalar    pure CfC: time constants, likewise
    ``time_constants/effective_q<percent>`` scalar    any cell: effective time constants, likewise
    ``time_constants/endless``              scalar    share of unit and step where a change of the
                                                      unit does not fade by itself
    ``time_constants/variation``            scalar    90 % / 10 % quantile of a unit's time
                                                      constants: 1 is not liquid at all
    ``time_constants/outside_bounds``       scalar    LTC: time constants that can't be
    ``time_constants/to_equilibrium``       scalar    LTC: RMS distance from where the state is
                                                      pulled
    ``time_constants/rate_positive``        scalar    CfC: share of gates that time opens
    ``time_constants/openness``             scalar    CfC: mean of the gates; pure: of how much of
                                                      the way to its limit a unit has gone
    ``time_constants/half_time``            scalar    CfC: median interval at which a gate is half
                                                      open; pure: half of that way gone
    ``time_constants/reading_error``        scalar    liquid cells: what the formula leaves of the
                                                      cell's own states
    ``time_constants/median_change``        scalar    relative change of the median since the last
                                                      look, paired on the same sequences
    ``time_constants/numbers_changed``      scalar    how many of these changed beyond chance
    ``time_constants/nonfinite``            scalar    time constants left out: NaN
    ``time_constants/log10``                histogram log10 of each unit's median time constant
    ``_ncp/time_constants_median``          array     ``(H,)``, median time constant of each unit
    ======================================= ========= ==============================================

    The images, ``variation``, ``nonfinite``, the histogram and the array are of the cell's own kind
    of time constant; of cells that are not liquid, of the effective ones. With several cells the
    name of a cell is added, as in ``time_constants_encoder/units``. An LSTM's units are those of
    its hidden state and then of its cell state. All but checks and counts come with 95 % intervals
    over sequences, which of fewer than 16, as by default, are indicative.

    Args:
        sequences: How many sequences are looked at, spread over the batch.
        steps: At how many steps the effective ones are computed, spread over the sequence; 0: not
            at all for liquid cells, 8 for others.
        max_units: Of how many units the effective ones are computed at most, spread evenly over the
            cell's and always the same; descriptions and a note say so. The exact ones of liquid
            cells are of all units.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For fewer than one of ``sequences`` or ``max_units``, or fewer than zero
            ``steps``.

    Source: the functions in ``ncp_callbacks.callbacks.time_constants.analysis`` name theirs.
    """

    needs = frozenset({Need.STATES})
    default_name = "time_constants"
    _DECADES, _BINS_PER_DECADE, _STEPS = 3, 8, 8

    def __init__(
        self,
        *,
        sequences: int = 8,
        steps: int = 8,
        max_units: int = 64,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        for what, value, least in (
            ("sequences", sequences, 1),
            ("steps", steps, 0),
            ("max_units", max_units, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{what}={value!r}: give a whole number of at least {least}")
        self._sequences, self._steps, self._max_units = sequences, steps, max_units
        # By cell.
        self._first: dict[str, FloatArray] = {}
        self._decades: dict[str, tuple[int, int]] = {}
        self._limits: dict[str, tuple[float, float]] = {}
        self._changes = PairedChanges()

    def state_dict(self) -> dict[str, Any]:
        return {
            "first": dict(self._first),
            "changes": self._changes.state_dict(),
            "decades": {cell: list(ends) for cell, ends in self._decades.items()},
            "limits": {cell: list(ends) for cell, ends in self._limits.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first = {cell: np.asarray(v, np.float32) for cell, v in state["first"].items()}
        self._changes.load_state_dict(state.get("changes", {}))
        self._decades = {
            cell: (int(low), int(high)) for cell, (low, high) in state["decades"].items()
        }
        self._limits = {
            cell: (float(short), float(long))
            for cell, (short, long) in state.get("limits", {}).items()
        }

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        cells = observation.states
        if not cells:
            raise NotApplicable(observation.no_cells)
        part = observation.limited(self._sequences)
        yield from small_batch_note(observation)
        shorts = per_cell_names([c.cell for c in cells])
        of_each = {
            self.name + short: functools.partial(self._of, cell, self.name + short, part)
            for cell, short in zip(cells, shorts, strict=True)
        }
        yield from for_each_supported_cell(of_each, self.name, "it has no time constants here")

    def _of(self, cell: Trajectory, group: str, part: Observation) -> Iterator[Record | Note]:
        stepper = part.cell_stepper(cell.cell)
        delta = part.time_delta
        reading: Reading | None = None
        try:
            reading = read_liquid(stepper, delta if part.takes_time else None)
        except NotApplicable as reason:
            yield Note(f"{group}: {reason}; its effective time constants are logged instead")
        real = np.ones((len(part.inputs), stepper.steps), bool) if part.mask is None else part.mask
        look = _Look(cell.cell, group, stepper, real, delta)
        # Of how many units the pictures are, where not of all.
        result, shown = None, ""
        if reading is not None:
            if math.isnan(reading.scale):
                yield Note(
                    f"{group}: the cell is given intervals that are not proportional to "
                    "time_delta: its time constants are in units of what it is given"
                )
            result, equilibria = _own(look, reading)
            look.numbers.update(result.estimates())
            yield from _said_of(look, reading, result, equilibria)
        if reading is None or self._steps:
            width = sum(stepper.sizes)
            chosen = spread_units(width, self._max_units)
            some = ""
            if len(chosen) < width:
                some = f"; {len(chosen)} of {width} units"
                yield Note(
                    f"{group}: effective time constants are of {len(chosen)} of {width} units, "
                    f"spread evenly; pass max_units={width} for all"
                )
            effective = self._effective(look, reading, chosen)
            numbers = effective.estimates()
            # Shares and variation are of one kind.
            look.numbers.update(numbers if result is None else {**numbers, **look.numbers})
            yield from _quantiles(look, effective, some)
            if effective.known:
                look.numbers["endless"] = numbers["endless"]
                yield scalar_with_ci(
                    f"{group}/endless",
                    effective.endless,
                    numbers["endless"],
                    f"Share of units of {cell.cell}, over steps and sequences, whose "
                    "|d h'_i / d h_i| is 1 or more: a change of the unit doesn't fade by itself"
                    f"{some}",
                )
            if result is None:
                result, shown = effective, some
        assert result is not None
        yield from self._pictured(look, result, part.step, shown)
        median = f"{result.kind}_q50"
        yield from self._changes.compare(group, look.numbers, part, median, "median")

    def _effective(
        self, look: _Look, reading: Reading | None, units: npt.NDArray[np.intp]
    ) -> UnitTimeConstants:
        steps = look.steps
        synapses = 0
        if isinstance(reading, LTCReading):
            synapses = reading.parameters.units * (
                reading.parameters.units + reading.parameters.inputs
            )
        some = np.linspace(0, steps - 1, min(self._steps or self._STEPS, steps)).round().astype(int)
        intervals = time_delta_per_call(look.stepper, look.delta)
        values = np.full((len(look.real), steps, len(units)), np.nan)
        for t in np.unique(some):
            diagonal = jacobian_diagonal(look.stepper, int(t), synapses, units=units)
            values[:, t] = effective_time_constants(diagonal, intervals[:, t])
        looked_at = np.zeros_like(look.real)
        looked_at[:, some] = True
        return unit_time_constants(
            values, kind="effective", mask=look.real & looked_at, cell=look.cell
        )

    def _pictured(
        self, look: _Look, result: UnitTimeConstants, step: int, some: str
    ) -> Iterator[Record | Note]:
        group = look.group
        yield from non_finite_count(group, result.non_finite, "time constants", "they are NaN")
        median = result.unit_median
        shown = median[np.isfinite(median) & (median > 0)]
        if not result.known:
            return
        if not math.isnan(result.variation):
            yield scalar_with_ci(
                f"{group}/variation",
                result.variation,
                look.numbers.get("variation"),
                f"90 % over 10 % quantile of a unit's time constants over steps and sequences, "
                f"median over units of {look.cell}: 1 where they are fixed, more where they are "
                f"liquid{some}",
                chart=True,
            )
        interval, duration = look.typical()
        middle = math.floor(math.log10(interval) + 0.5)
        edges = np.linspace(
            middle - self._DECADES,
            middle + self._DECADES,
            2 * self._DECADES * self._BINS_PER_DECADE + 1,
        )
        if shown.size:
            yield Histogram(
                f"{group}/log10",
                np.log10(shown),
                edges,
                f"log10 of the median time constant of each unit of {look.cell}; what is beyond "
                f"is counted in the first or last bin{some}",
            )
        yield Array(f"_ncp/{group}_median", median)
        known = self._first.get(look.cell)
        first = self._first.setdefault(look.cell, median.astype(np.float32))
        if known is not None and known.shape != median.shape:
            known = self._first[look.cell] = first = median.astype(np.float32)
        needed = needed_decades(result, first, interval, duration)
        low, high = self._decades.get(look.cell, needed)
        self._decades[look.cell] = min(low, needed[0]), max(high, needed[1])
        yield Figure(
            f"{group}/units",
            plot_time_constants,
            replace(result, values=np.empty((0, 0, 0))),
            {
                "first": known,
                "interval": interval,
                "duration": duration,
                "decades": self._decades[look.cell],
                "timed": look.delta is not None,
                "step": step,
            },
            f"Time constants of the units of {look.cell}, {KINDS[result.kind]}, sorted by their "
            "median over steps and sequences; bars from the 10 % to the 90 % quantile. Dashed: "
            "medians at the first look, sorted by themselves. Dotted: median interval, and "
            f"duration of a sequence{some}.",
        )
        over_time = replace(result, values=result.over_time[None])
        short, long = needed_limits(over_time)
        before = self._limits.get(look.cell, (short, long))
        limits = self._limits[look.cell] = min(short, before[0]), max(long, before[1])
        yield Figure(
            f"{group}/over_time",
            plot_time_constants_over_time,
            over_time,
            {"limits": limits, "timed": look.delta is not None, "step": step},
            f"Time constants of the units of {look.cell}, {KINDS[result.kind]}, against time: "
            "median over sequences, dark short, yellow long. Units are sorted by their medians, "
            f"the slowest on top{some}"
            + (
                "; of steps that were not looked at, the nearest that was."
                if np.isnan(result.values).all(axis=(0, 2)).any()
                else "."
            ),
        )


@dataclass(frozen=True, eq=False)
class _Look:
    """What is looked at: a cell, run again, and which of its steps are real."""

    cell: str
    group: str
    stepper: CellStepper
    real: BoolArray
    delta: FloatArray | None
    # What is known of how sure numbers are, by name.
    numbers: dict[str, Estimate] = field(default_factory=dict)

    def by_sequence(
        self, name: str, parts: npt.NDArray[Any], use: BoolArray, scale: Scale
    ) -> Estimate:
        """A mean over the cells in ``use`` of ``(S, T, H)``, kept as ``name``."""
        of = np.where(use, parts, 0.0).sum(axis=(1, 2))
        self.numbers[name] = Estimate.ratio(of, use.sum(axis=(1, 2)), scale)
        return self.numbers[name]

    @property
    def steps(self) -> int:
        return self.stepper.steps

    def typical(self) -> tuple[float, float]:
        """Median interval and median duration of a sequence, both above 0."""
        delta = np.ones(self.real.shape) if self.delta is None else self.delta
        known = self.real & np.isfinite(delta) & (delta > 0)
        if not known.any():
            return 1.0, 1.0
        durations = np.where(known, delta, 0.0).sum(axis=1)
        return float(np.median(delta[known])), float(np.median(durations[durations > 0]))


def _own(look: _Look, reading: Reading) -> tuple[UnitTimeConstants, FloatArray | None]:
    """The exact time constants of a liquid cell, and of an LTC the equilibria ``(S, T, H)``."""
    equilibria = None
    if isinstance(reading, LTCReading):
        shape = reading.before.shape
        tau, v_inf = system_time_constants(
            reading.parameters,
            reading.inputs.reshape(shape[0] * shape[1], -1),
            reading.before.reshape(-1, shape[2]),
        )
        kind, values = "system", tau.reshape(shape) * _unit(reading)
        equilibria = v_inf.reshape(shape)
    elif isinstance(reading, GateReading):
        kind, values = "gate", gate_time_constants(reading.rate)
    else:
        kind, values = "decay", gate_time_constants(reading.rate)
    return unit_time_constants(values, kind=kind, mask=look.real, cell=look.cell), equilibria


def _unit(reading: Reading) -> float:
    return 1.0 if math.isnan(reading.scale) else reading.scale


def _said_of(
    look: _Look, reading: Reading, result: UnitTimeConstants, equilibria: FloatArray | None
) -> Iterator[Record | Note]:
    """Scalars of one kind of liquid cell."""
    yield from _quantiles(look, result)
    yield Scalar(
        f"{look.group}/reading_error",
        reading.error,
        f"Largest difference between states that {look.cell} gives and those computed from what "
        "was read of it, as a share of the largest state: rounding, if all is well",
    )
    if isinstance(reading, LTCReading):
        yield from _bounds(look, reading, result)
    elif isinstance(reading, GateReading):
        yield from _gates(look, reading)
    elif isinstance(reading, DecayReading):
        yield from _decays(look, reading)
    if equilibria is not None and isinstance(reading, LTCReading):
        apart = equilibria - reading.before
        use = look.real[..., None] & np.isfinite(apart)
        away = apart[use]
        if away.size:
            squares = np.where(use, np.where(use, apart, 0.0) ** 2, 0.0).sum(axis=(1, 2))
            number = Estimate.rms(squares, use.sum(axis=(1, 2)))
            look.numbers["to_equilibrium"] = number
            yield scalar_with_ci(
                f"{look.group}/to_equilibrium",
                float(np.sqrt((away**2).mean())),
                number,
                f"RMS of v_inf - v over neurons of {look.cell}, steps and sequences: how far the "
                "state is from where its present inputs and synapses pull it",
            )


def _bounds(look: _Look, reading: LTCReading, result: UnitTimeConstants) -> Iterator[Record | Note]:
    low, high = (bound * _unit(reading) for bound in time_constant_bounds(reading.parameters))
    known = result.values[~np.isnan(result.values).any(axis=2)]
    outside = ~((known >= low * (1 - _SLACK)) & (known <= high * (1 + _SLACK)))
    yield Scalar(
        f"{look.group}/outside_bounds",
        int(outside.sum()),
        f"Time constants of {look.cell} outside cm / (gleak + sum w) … cm / gleak: 0 as long as "
        "capacitances and conductances are positive",
    )
    if outside.any():
        yield Note(
            f"{look.group}: some time constants are outside their bounds, because a capacitance "
            "or conductance is not positive: clip w, sensory_w, cm and gleak at 0 after each "
            "optimiser step (apply_weight_constraints), or use implicit_param_constraints=True"
        )


def _gates(look: _Look, reading: GateReading) -> Iterator[Record | Note]:
    rate, offset = reading.rate, reading.offset
    # As the cell is given them, whose rate is per unit of time_delta.
    given = (reading.time_delta * _unit(reading))[..., None]
    if not reading.signed:
        yield Note(
            f"{look.group}: the states of {look.cell} are the same for both signs of its gates' "
            "rates, so that rate_positive, openness and half_time are left out"
        )
        return
    known = look.real[..., None] & np.isfinite(rate) & np.isfinite(offset)
    if not known.any():
        return
    yield scalar_with_ci(
        f"{look.group}/rate_positive",
        float((rate[known] > 0).mean()),
        look.by_sequence("rate_positive", rate > 0, known, SHARE),
        f"Share of gates of {look.cell}, over units, steps and sequences, that open as the "
        "interval grows: towards the second state, ff2",
    )
    with np.errstate(invalid="ignore", over="ignore"):
        gate = sigmoid(rate * given + offset)
    yield from _open(
        look,
        gate,
        half_times(rate, offset),
        f"Mean gate z of {look.cell}, the weight of its second state, ff2",
        f"Median interval after which a gate of {look.cell} is half open, of those that are "
        "after some interval",
    )


def _decays(look: _Look, reading: DecayReading) -> Iterator[Record | Note]:
    given = (reading.time_delta * _unit(reading))[..., None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gone, half = -np.expm1(-reading.rate * given), np.log(2.0) / reading.rate
    yield from _open(
        look,
        gone,
        half,
        f"Mean of 1 - exp(-interval / time constant) of {look.cell}: how much of the way to its "
        "limit a unit has gone at the end of a step",
        f"Median interval after which a unit of {look.cell} has gone half of the way to its limit",
    )


def _open(
    look: _Look, openness: FloatArray, half: FloatArray, what: str, when: str
) -> Iterator[Record | Note]:
    use = look.real[..., None] & np.isfinite(openness)
    if use.any():
        yield scalar_with_ci(
            f"{look.group}/openness",
            float(openness[use].mean()),
            look.by_sequence("openness", openness, use, SHARE),
            what,
            chart=True,
        )
    use = look.real[..., None] & np.isfinite(half)
    if use.any():
        (number,) = quantile_estimates(half[use], np.nonzero(use)[0], (0.5,))
        look.numbers["half_time"] = number
        yield scalar_with_ci(f"{look.group}/half_time", float(np.median(half[use])), number, when)


def _quantiles(look: _Look, result: UnitTimeConstants, some: str = "") -> Iterator[Record | Note]:
    group = look.group
    for share, value in zip(SHARES, result.quantiles, strict=True):
        percent = round(100 * share)
        name = "median" if share == 0.5 else f"{percent} % quantile"
        if math.isfinite(value):
            yield scalar_with_ci(
                f"{group}/{result.kind}_q{percent}",
                float(value),
                look.numbers.get(f"{result.kind}_q{percent}"),
                f"Time constant of {result.cell}, {KINDS[result.kind]}, in units of time_delta "
                f"(steps without): {name} over units, steps and sequences{some}",
                chart=share == 0.5,
            )
        elif math.isinf(value):
            yield Note(
                f"{group}/{result.kind}_q{percent} is left out at looks where it is infinite: the "
                "time constant of that many units is"
            )
