"""How long a state remembers, whether changes of it grow, and how its units behave."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ...callback import (
    AxisLimit,
    Callback,
    PairedChanges,
    non_finite_count,
    per_cell_names,
    scalar_with_ci,
    small_batch_note,
)
from ...model import NotApplicable
from ...observation import Need, Observation, Trajectory
from ...records import Array, Figure, Histogram, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import Estimate, quantile_estimates
from ..state_transitions.analysis import transition_statistics
from .analysis import (
    Memory,
    autocorrelation_times,
    corrected_participation_estimate,
    corrected_participation_ratio,
    gain_sequences,
    jacobian_gains,
    lyapunov_exponents,
    memory_horizon,
    state_drift,
    unit_correlations,
)
from .jacobian_products import estimated_memory, leading_exponents, leading_gains
from .plot import needed_decades, plot_dynamics

__all__ = ["Dynamics"]

_Scalar = TypeVar("_Scalar", bound=np.generic)


class Dynamics(Callback):
    """Memory, stability and drift of the state, and what its units do, for every recurrent cell.

    The Jacobians of the steps are what costs: for each cell a gradient pass through its steps over
    ``units × sequences`` sequences, of at most ``max_units`` units. For a CfC of
    32 units (batch 32, 32 steps) a look took 4 training steps, of 64 units (batch 64, 64 steps) 3;
    1 and 0.5 with ``jacobians=False``, which is one forward pass, or nothing beside a callback that
    needs a gradient, and analysis. So look rarely: ``every=``. A cell whose steps can't be run
    again by themselves is looked at without them, and a note says so.

    ========================================== ========= =========================================
    Tag                                        Record    What
    ========================================== ========= =========================================
    ``dynamics/overview``                      image     share of a change of the state that is
                                                         left, against how long ago it was; the
                                                         correlation of each unit with the target
    ``dynamics/memory_steps``                  scalar    steps in which it falls to 1/e
    ``dynamics/memory_time``                   scalar    the same in units of ``time_delta``
    ``dynamics/memory_left``                   scalar    what is left of a change at the beginning
    ``dynamics/lyapunov_<i>``                  scalar    the largest finite-time Lyapunov exponents:
                                                         above 0 small changes grow
    ``dynamics/radius_q<percent>``             scalar    spectral radius of a step, over steps
    ``dynamics/norm_q<percent>``               scalar    operator norm of a step, over steps
    ``dynamics/cka_first``                     scalar    likeness of the states to those of the
                                                         first look: 1 the same but for rotation
    ``dynamics/cka_previous``                  scalar    and of the look before
    ``dynamics/procrustes_first``              scalar    what the best rotation leaves of the
                                                         difference to the first look: 0 nothing
    ``dynamics/procrustes_previous``           scalar    and to the look before
    ``dynamics/participation_ratio_corrected`` scalar    dimensions in use, without the bias of
                                                         ``hidden/participation_ratio``
    ``dynamics/autocorrelation_q<percent>``    scalar    autocorrelation time, over units
    ``dynamics/undecayed``                     scalar    share of units whose autocorrelation does
                                                         not decay within ten sequences
    ``dynamics/unit_speed_q<percent>``         scalar    largest ``|dh_i|/dt`` of a unit, over units
    ``dynamics/unit_speed``                    histogram the same
    ``dynamics/target_correlation_max``        scalar    largest ``|r|`` of a unit with the target
    ``dynamics/target_correlation_q<percent>`` scalar    ``|r|``, over units
    ``dynamics/beyond_chance``                 scalar    share of units with an ``|r|`` that chance
                                                         doesn't give
    ``dynamics/lyapunov_1_change``             scalar    change of the largest exponent since the
                                                         last look, paired on the same sequences
    ``dynamics/numbers_changed``               scalar    how many of the exponents, and of the
                                                         numbers of memory, changed beyond chance
    ``dynamics/nonfinite``                     scalar    what was left out: NaN or infinity
    ``_ncp/dynamics_memory``                   array     ``(K,)``, share left after 0, 1, … steps
    ``_ncp/dynamics_lyapunov``                 array     ``(S, exponents)``, of each sequence
    ``_ncp/dynamics_autocorrelation``          array     ``(H,)``, autocorrelation time of each unit
    ``_ncp/dynamics_target_correlation``       array     ``(H,)``, r of each unit with the target
    ========================================== ========= =========================================

    With several cells the name of a cell is added, as in ``dynamics_encoder/cka_first``; what
    depends on the target has its name after that, where it is not the default one, as in
    ``dynamics_loss/overview``. Of a cell that runs backwards, "last" is the last step it makes.

    What is a statistic over sequences comes with its 95 % interval; what Jacobians give is of few
    sequences and so indicative. Speeds are maxima and have none; correlations have what chance
    gives instead, since noise makes their size larger.

    At most 512 states of the first look and of the one before are kept, and are in the state that
    a resumed run takes up.

    Args:
        sequences: How many sequences the Jacobians are computed for, spread over the batch.
        exponents: How many Lyapunov exponents.
        jacobians: Whether to compute what needs them: memory, exponents, radius and norm.
        max_units: Up to how many units whole Jacobians are computed. Beyond, products with few
            vectors take their place: memory is estimated from ``max_units`` random directions of
            the state, exponents are those of the whole state, and radius and norm are estimated at
            four time steps; descriptions and a note say so.
        per_step: Whether unit speeds are per step rather than per unit of ``time_delta``.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For fewer than one of ``sequences``, ``exponents`` or ``max_units``.

    Source: definitions and references are with the functions in ``ncp_callbacks.analysis``; unit
    speeds are algorithm 8 of Lechner et al. 2020 (doi 10.1038/s42256-020-00237-3), which are per
    step.
    """

    needs = frozenset({Need.STATES})
    default_name = "dynamics"
    _BINS, _MOST_STATES = 40, 512

    def __init__(
        self,
        *,
        sequences: int = 4,
        exponents: int = 3,
        jacobians: bool = True,
        max_units: int = 64,
        per_step: bool = False,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        for what, value in (
            ("sequences", sequences),
            ("exponents", exponents),
            ("max_units", max_units),
        ):
            if value < 1:
                raise ValueError(f"{what}={value}: give a number, at least 1")
        self._sequences, self._exponents = sequences, exponents
        self._jacobians, self._max_units, self._per_step = jacobians, max_units, per_step
        # By cell.
        self._first: dict[str, FloatArray] = {}
        self._previous: dict[str, FloatArray] = {}
        self._memory: dict[str, FloatArray] = {}
        self._speeds: dict[str, AxisLimit] = {}
        self._decades: dict[str, tuple[AxisLimit, AxisLimit]] = {}
        self._without: set[str] = set()
        self._changes = PairedChanges()

    def state_dict(self) -> dict[str, Any]:
        return {
            "first": dict(self._first),
            "previous": dict(self._previous),
            "memory": dict(self._memory),
            "changes": self._changes.state_dict(),
            "speeds": {cell: limit.value for cell, limit in self._speeds.items()},
            "decades": {cell: [side.value for side in v] for cell, v in self._decades.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first, self._previous, self._memory = (
            {cell: np.asarray(values, np.float32) for cell, values in state[key].items()}
            for key in ("first", "previous", "memory")
        )
        self._changes.load_state_dict(state.get("changes", {}))
        self._speeds = {cell: AxisLimit(float(v)) for cell, v in state["speeds"].items()}
        self._decades = {
            cell: (AxisLimit(float(below)), AxisLimit(float(above)))
            for cell, (below, above) in state["decades"].items()
        }

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        cells = observation.states
        if not cells:
            raise NotApplicable(observation.no_cells)
        if observation.inputs.shape[1] < 2:
            raise NotApplicable("the held-out sequences have one step: nothing moves")
        yield from small_batch_note(observation)
        for cell, short in zip(cells, per_cell_names([c.cell for c in cells]), strict=True):
            yield from self._of(cell, self.name + short, observation)

    def _of(
        self, cell: Trajectory, group: str, observation: Observation
    ) -> Iterable[Record | Note]:
        states = cell.values[:, ::-1] if cell.reverse else cell.values
        delta = _as_stepped(observation.time_delta, cell)
        mask = _as_stepped(observation.mask, cell)
        real = np.ones(states.shape[:2], bool) if mask is None else mask
        finite = np.isfinite(states).all(axis=2)
        left_out = int((real & ~finite).sum())
        found: list[Record | Note] = []
        memory = None
        if (real & finite).any():
            found += self._units(cell.cell, group, states, delta, mask)
            found += self._drift(cell.cell, group, states, real)
            found += self._dimensions(group, states, mask)
            if self._jacobians and cell.cell not in self._without:
                seen = self._seen(cell, group, observation, found)
                if seen is not None:
                    memory, broken = seen
                    left_out += broken
            found += self._overview(cell.cell, group, observation, states, real, memory)
        yield from non_finite_count(
            group, left_out, "states and sequences of Jacobians", "of NaN or infinity"
        )
        yield from found

    # ---- from states

    def _units(
        self,
        cell: str,
        group: str,
        states: FloatArray,
        delta: FloatArray | None,
        mask: np.ndarray | None,
    ) -> Iterator[Record | Note]:
        per = "step" if delta is None or self._per_step else "unit of time_delta"
        speed = transition_statistics(
            states, time_delta=None if self._per_step else delta, mask=mask, cell=cell
        ).unit_speed_max
        speed = speed[np.isfinite(speed)]
        what = f"Largest |dh_i| of a unit of {cell} per {per}"
        yield from _quantiles(f"{group}/unit_speed", speed, what, (0.1, 0.5, 0.9))
        if speed.size:
            limit = self._speeds.setdefault(cell, AxisLimit())
            top = limit.covering(float(speed.max()))
            yield Histogram(
                f"{group}/unit_speed", speed, np.linspace(0.0, top, self._BINS + 1), what
            )
        times = autocorrelation_times(states, time_delta=delta, mask=mask)
        known = times.values[np.isfinite(times.values)]
        unit = "steps" if delta is None else "units of time_delta"
        what = f"Autocorrelation time of a unit of {cell}, in {unit}"
        shares = (0.1, 0.5, 0.9)
        numbers = times.quantile_estimates(shares)
        yield from _quantiles(f"{group}/autocorrelation", known, what, shares, numbers=numbers)
        if known.size:
            yield Scalar(
                f"{group}/undecayed",
                times.undecayed,
                "Share of units whose autocorrelation doesn't decay within ten times the length of "
                "a sequence, which is what their autocorrelation time then says",
            )
        yield Array(f"_ncp/{group}_autocorrelation", times.values)

    def _dimensions(
        self, group: str, states: FloatArray, mask: np.ndarray | None
    ) -> Iterator[Record | Note]:
        ratio = corrected_participation_ratio(states, mask=mask)
        if len(states) < 4:
            yield Note(
                f"{group}/participation_ratio_corrected compares different sequences and needs at "
                f"least 4; the held-out batch has {len(states)}, so it is NaN"
            )
        yield scalar_with_ci(
            f"{group}/participation_ratio_corrected",
            ratio,
            corrected_participation_estimate(states, ratio, mask),
            "Number of dimensions in use, (tr C)^2 / tr C^2, from products of different sequences: "
            "without the bias of few states that depend on each other; NaN where they are too few",
            chart=True,
        )

    def _drift(
        self, cell: str, group: str, states: FloatArray, real: np.ndarray
    ) -> Iterator[Record | Note]:
        now, sequence = states[real], np.nonzero(real)[0]
        if len(now) > self._MOST_STATES:
            some = np.random.default_rng(0).choice(len(now), self._MOST_STATES, replace=False)
            some = np.sort(some)
            now, sequence = now[some], sequence[some]
        now = np.array(now, np.float32)
        if cell in self._first and self._first[cell].shape != now.shape:
            yield Note(
                f"{group}: {len(now)} states of {now.shape[1]} units are looked at, where there "
                f"were {' of '.join(map(str, self._first[cell].shape))}; their drift is measured "
                "from here on"
            )
            del self._first[cell], self._previous[cell]
        first = self._first.setdefault(cell, now)
        previous = self._previous.get(cell, now)
        self._previous[cell] = now
        for before, name, when in (
            (first, "first", "the first look"),
            (previous, "previous", "the look before"),
        ):
            drift = state_drift(now, before, sequence)
            if not math.isnan(drift.cka):
                yield scalar_with_ci(
                    f"{group}/cka_{name}",
                    drift.cka,
                    drift.estimates.get("cka"),
                    f"Linear CKA between the states and those of {when}: 1 the same but for "
                    "rotation, scale and offset, 0 unrelated",
                    chart=name == "first",
                )
                yield scalar_with_ci(
                    f"{group}/procrustes_{name}",
                    drift.procrustes,
                    drift.estimates.get("procrustes"),
                    f"Share of the states' variance that the best rotation, scale and offset of "
                    f"those of {when} don't explain: 0 the same",
                )

    # ---- from Jacobians

    def _seen(
        self,
        cell: Trajectory,
        group: str,
        observation: Observation,
        found: list[Record | Note],
    ) -> tuple[Memory, int] | None:
        """What the Jacobians show goes to ``found``; memory, and how many sequences failed."""
        part = observation.limited(self._sequences)
        delta, mask = _as_stepped(part.time_delta, cell), _as_stepped(part.mask, cell)
        units = cell.values.shape[2]
        how: dict[str, Any] = {"time_delta": delta, "mask": mask}
        try:
            if units <= self._max_units:
                jacobians = part.state_jacobian(cell.cell, None)
                memory = memory_horizon(jacobians, **how)
                radius, norm = jacobian_gains(jacobians, mask=mask)
                owner = gain_sequences(jacobians, mask=mask)
                exponents = lyapunov_exponents(jacobians, **how, count=self._exponents)
            else:
                products = part.jacobian_products(cell.cell, None)
                memory = estimated_memory(products, **how, directions=self._max_units)
                radius, norm, owner = leading_gains(products, mask=mask)
                exponents = leading_exponents(products, **how, count=self._exponents)
        except NotApplicable as reason:
            self._without.add(cell.cell)
            found.append(
                Note(f"{group}: memory, Lyapunov exponents, radius and norm are left out: {reason}")
            )
            return None
        directions = gains = ""
        if units > self._max_units:
            directions = f"; estimated from {self._max_units} random directions of {units} units"
            gains = (
                f"; estimated at few time steps, from products with few vectors of {units} units"
            )
            found.append(
                Note(
                    f"{group}: the state has {units} units, more than max_units="
                    f"{self._max_units}, so that memory, radius and norm are estimated from "
                    f"products of the Jacobians with few vectors; pass max_units={units} for whole "
                    "Jacobians"
                )
            )
        numbers = memory.estimates() if memory.sequences else {}
        for name, values, what in (
            ("radius", radius, "Spectral radius of the Jacobian of a step: above 1 unstable there"),
            ("norm", norm, "Operator norm of the Jacobian of a step: the most that a change grows"),
        ):
            shares = (0.5, 0.9)
            sure = quantile_estimates(values, owner, shares)
            found += _quantiles(
                f"{group}/{name}", values, what + gains, shares, among="steps", numbers=sure
            )
        found += self._grown(group, exponents, delta is not None, numbers)
        if memory.sequences:
            found += self._remembered(group, memory, delta is not None, numbers, directions)
        found += self._changes.compare(group, numbers, part, "lyapunov_1")
        return memory, memory.non_finite

    def _grown(
        self, group: str, exponents: FloatArray, timed: bool, numbers: dict[str, Estimate]
    ) -> Iterator[Record | Note]:
        known = exponents[np.isfinite(exponents).all(axis=1)]
        per = "unit of time_delta" if timed else "step"
        for i, value in enumerate(known.mean(axis=0) if len(known) else ()):
            name = f"lyapunov_{i + 1}"
            numbers[name] = Estimate.mean(known[:, i])
            yield scalar_with_ci(
                f"{group}/{name}",
                float(value),
                numbers[name],
                f"Finite-time Lyapunov exponent {i + 1}, per {per}, mean over {len(known)} "
                "sequences: above 0 changes of the state grow, below they fade",
                chart=i == 0,
            )
        if len(known):
            yield Array(f"_ncp/{group}_lyapunov", exponents)

    def _remembered(
        self,
        group: str,
        memory: Memory,
        timed: bool,
        numbers: Mapping[str, Estimate],
        directions: str,
    ) -> Iterator[Record | Note]:
        what = (
            "in which the share of a change of the state that is left falls to 1/e, median over "
            f"sequences; the length of the sequence where it doesn't{directions}"
        )
        steps, time = numbers.get("memory_steps"), numbers.get("memory_time")
        yield scalar_with_ci(
            f"{group}/memory_steps", memory.steps, steps, f"Steps {what}", chart=not timed
        )
        if timed:
            what = f"Time, in units of time_delta, {what}"
            yield scalar_with_ci(f"{group}/memory_time", memory.time, time, what, chart=True)
        yield scalar_with_ci(
            f"{group}/memory_left",
            float(memory.curve[-1]),
            numbers.get("memory_left"),
            f"RMS share of a change of the state that is left {len(memory.curve) - 1} steps later, "
            f"at the end{directions}",
        )
        yield Array(f"_ncp/{group}_memory", memory.curve)

    # ---- the picture

    def _overview(
        self,
        cell: str,
        group: str,
        observation: Observation,
        states: FloatArray,
        real: np.ndarray,
        memory: Memory | None,
    ) -> Iterator[Record | Note]:
        last = real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
        correlations = unit_correlations(
            states[np.arange(len(states)), last], observation.target_values
        )
        group += observation.target_slug
        options: dict[str, Any] = {"target": observation.target, "step": observation.step}
        if memory is not None and memory.sequences:
            known = self._memory.get(cell)
            first = self._memory.setdefault(cell, memory.curve.astype(np.float32))
            sides = self._decades.setdefault(cell, (AxisLimit(), AxisLimit()))
            for side, needed in zip(sides, needed_decades(memory.curve, first), strict=True):
                side.cover(needed)
            options |= {
                "memory": memory,
                "first": known,
                "decades": (int(sides[0].value), int(sides[1].value)),
            }
        yield Figure(
            f"{group}/overview",
            plot_dynamics,
            correlations,
            options,
            f"Left, where the Jacobians are known: RMS share of a change of the state of {cell} "
            "that is left in the last state, against how many steps before it was; dashed: the "
            f"first look; shaded: its 95 % CI over sequences, unreliable for so few. "
            f"Right: correlation of each unit's last state with the "
            f"{observation.target} over sequences, sorted; dotted: what chance gives.",
        )
        size = np.abs(correlations.values[np.isfinite(correlations.values)])
        if not size.size:
            yield Note(
                f"{group}: the {observation.target} is the same for all sequences, or all units "
                "are, so that there is no correlation between them"
            )
            return
        what = f"|r| of a unit's last state with the {observation.target} over sequences"
        yield Scalar(f"{group}/target_correlation_max", float(size.max()), f"Largest {what}")
        yield from _quantiles(f"{group}/target_correlation", size, what, (0.5, 0.9))
        yield Scalar(
            f"{group}/beyond_chance",
            float((size > correlations.chance).mean()),
            "Share of units whose |r| is larger than chance lets the largest of all be in 5 % of "
            "cases",
        )
        yield Array(f"_ncp/{group}_target_correlation", correlations.values)


def _quantiles(
    tag: str,
    values: FloatArray,
    what: str,
    shares: tuple[float, ...],
    *,
    among: str = "units",
    numbers: list[Estimate] | None = None,
) -> Iterator[Scalar]:
    if not values.size:
        return
    for place, value in enumerate(np.quantile(values, shares)):
        percent = round(100 * shares[place])
        name = "median" if shares[place] == 0.5 else f"{percent} % quantile"
        yield scalar_with_ci(
            f"{tag}_q{percent}",
            float(value),
            None if numbers is None else numbers[place],
            f"{what}; {name} over {among}",
        )


def _as_stepped(
    values: npt.NDArray[_Scalar] | None, cell: Trajectory
) -> npt.NDArray[_Scalar] | None:
    """``(B, T)`` in the order in which the cell makes its steps."""
    return values[:, ::-1] if values is not None and cell.reverse else values
