"""Log memory, stability and drift of the state of each recurrent cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...callback import (
    AxisLimit,
    ByName,
    Callback,
    PairedChanges,
    cells_with_groups,
    non_finite_count,
    small_batch_note,
    whole_number,
)
from ...model import NotApplicable
from ...observation import Need, Observation, Trajectory
from ...records import Array, Figure, Histogram, Note, Place, Record
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import Estimate, quantile_estimates
from ..record_log import RecordLog
from ..state_transitions.analysis import transition_statistics
from .analysis import (
    Memory,
    TargetMemory,
    autocorrelation_times,
    corrected_participation_estimate,
    corrected_participation_ratio,
    gain_sequences,
    jacobian_gains,
    last_steps_kept,
    lyapunov_exponents,
    memory_horizon,
    stability_exponents,
    state_drift,
    target_memory,
    unit_correlations,
)
from .jacobian_products import (
    estimated_memory,
    estimated_stability,
    leading_exponents,
    leading_gains,
)
from .plot import needed_decades, plot_dynamics

__all__ = ["Dynamics"]

_FALLS = (
    "after which 1/e of a change of the state is left, median over sequences; the length of the "
    "sequence if more is left at its end{some}"
)
# Descriptions of the scalars.
SCALARS = {
    "unit_speed": "Largest |dh_i| of a unit of {cell} per {per}; {quantile} over units",
    "autocorrelation": "Autocorrelation time of a unit of {cell}, in {unit}; {quantile} over units",
    "undecayed": "Share of units whose autocorrelation does not decay within ten times the length "
    "of a sequence, which then stands for their autocorrelation time",
    "participation_ratio_corrected": "Number of dimensions in use, (tr C)^2 / tr C^2, from "
    "products of different sequences, which a few dependent states do not bias; NaN if there are "
    "too few sequences",
    "cka": "Linear CKA between the states and those of the {when} snapshot: 1 if they are equal "
    "but for rotation, scale and offset, 0 if they are unrelated",
    "procrustes": "Share of the states' variance that the best rotation, scale and offset of "
    "those of the {when} snapshot do not explain: 0 if they are equal",
    "radius": "Spectral radius of the Jacobian of a step: above 1 it is unstable there{some}; "
    "{quantile} over time steps",
    "norm": "Operator norm of the Jacobian of a step: the largest factor by which a change grows"
    "{some}; {quantile} over time steps",
    "finite_time_lyapunov": "Finite-time Lyapunov exponent {number} over T = {steps} time steps, "
    "per {per}, mean over {sequences} sequences: above 0 changes of the state have grown over T. "
    "That may be a transient, which {group}/stability_exponent does not have",
    "stability_exponent": "Stability exponent, per {per}, mean over {sequences} sequences: rate at "
    "which small changes of the state grow (above 0) or fade (below) in the long run, from the "
    "spectral radius of the product of T = {steps} time steps; without transient growth{some}",
    "linear_memory_steps": f"Time steps {_FALLS}. It is measured with small changes: a latch may "
    "remember more",
    "linear_memory_time": f"Time, in units of time_delta, {_FALLS}. It is measured with small "
    "changes",
    "linear_memory_left": "RMS share of a change of the state that is left {steps} time steps "
    "later, at the end{some}",
    "target_memory_steps": "How many last time steps must be kept, if all before them are "
    "removed, for the {target} to change by less than 1/e SD; the longest length tried if none "
    "suffices. It is measured by forward passes of shortened sequences, so that what a latch "
    "remembers counts, too",
    "target_memory_left": "RMS change of the {target} when all but the last {kept} time steps are "
    "removed; in SDs of the target over sequences",
    "target_correlation_max": "Largest |r| of a unit's last state with the {target} over sequences",
    "target_correlation": "|r| of a unit's last state with the {target} over sequences; "
    "{quantile} over units",
    "beyond_chance": "Share of units whose |r| exceeds the level that the largest |r| of all "
    "units exceeds by chance in 5 % of cases",
}
_PLACES: Mapping[str, Place] = {
    "target_memory_steps": "group",
    "linear_memory_steps": "group",
    "linear_memory_time": "group",
    "linear_memory_left": "group",
    "stability_exponent": "group",
    "finite_time_lyapunov_1": "group",
    "radius_q50": "group",
    "cka_first": "group",
    "cka_previous": "group",
    "undecayed": "nonzero",
    "target_correlation_max": "group",
    "beyond_chance": "group",
}
_BINS, _MAX_STATES = 40, 512
# Random directions from which the memory of a large state is estimated.
_MAX_DIRECTIONS = 64


class Dynamics(Callback):
    """Log memory, stability and drift of the state, and its units, for every recurrent cell.

    The Jacobians of the steps are expensive: each cell takes a gradient pass through its steps over
    ``units × sequences`` sequences, with at most ``max_units`` units. For a CfC of 32 units (batch
    32, 32 time steps) a snapshot took 4 training steps, and for one of 64 units (batch 64, 64 time
    steps) 3. With ``jacobians=False`` it took 1 and 0.5: the analysis, and one forward pass, or
    none if another callback needs a gradient. So pass a large ``every=``. If the steps of a cell
    can't be run by themselves, the numbers from Jacobians are skipped, and a note reports it.

    ========================================== ========= =========================================
    Tag                                        Record    What
    ========================================== ========= =========================================
    ``dynamics/overview``                      image     share of a change of the state that is
                                                         left, against how long ago it was; the
                                                         correlation of each unit with the target
    ``dynamics/linear_memory_steps``           scalar    time steps in which it falls to 1/e
    ``dynamics/linear_memory_time``            scalar    elapsed time in which it falls to 1/e
    ``dynamics/linear_memory_left``            scalar    share left of a change at the beginning
    ``dynamics/target_memory_steps``           scalar    last time steps that must be kept so that
                                                         the target changes by less than 1/e SD
    ``dynamics/target_memory_left``            scalar    change of the target when the first steps
                                                         are removed, in SDs of the target
    ``dynamics/stability_exponent``            scalar    rate at which small changes grow in the
                                                         long run: above 0 the state is unstable
    ``dynamics/finite_time_lyapunov_<i>``      scalar    the largest exponents over the T steps of
                                                         a sequence, transient growth included
    ``dynamics/radius_q<percent>``             scalar    spectral radius of a step, over steps
    ``dynamics/norm_q<percent>``               scalar    operator norm of a step, over steps
    ``dynamics/cka_first``                     scalar    similarity of the states to those of the
                                                         first snapshot: 1 equal but for rotation
    ``dynamics/cka_previous``                  scalar    similarity to the previous snapshot
    ``dynamics/procrustes_first``              scalar    share of the difference to the first
                                                         snapshot that no rotation explains: 0 equal
    ``dynamics/procrustes_previous``           scalar    that share for the previous snapshot
    ``dynamics/participation_ratio_corrected`` scalar    dimensions in use, without the bias of
                                                         ``hidden/participation_ratio``
    ``dynamics/autocorrelation_q<percent>``    scalar    autocorrelation time, over units
    ``dynamics/undecayed``                     scalar    share of units whose autocorrelation does
                                                         not decay within ten sequences
    ``dynamics/unit_speed_q<percent>``         scalar    largest ``|dh_i|/dt`` of a unit, over units
    ``dynamics/unit_speed``                    histogram largest ``|dh_i|/dt`` of each unit
    ``dynamics/target_correlation_max``        scalar    largest ``|r|`` of a unit with the target
    ``dynamics/target_correlation_q<percent>`` scalar    ``|r|``, over units
    ``dynamics/beyond_chance``                 scalar    share of units with a larger ``|r|``
                                                         than by chance
    ``dynamics/stability_exponent_change``      scalar    change of that exponent since the
                                                         previous snapshot, same sequences
    ``dynamics/numbers_changed``               scalar    how many of the exponents, and of the
                                                         numbers of memory, changed beyond chance
    ``dynamics/nonfinite``                     scalar    number of skipped values: NaN or infinity
    ``_ncp/dynamics_linear_memory``            array     ``(K,)``, share left after 0, 1, … steps
    ``_ncp/dynamics_target_memory``            array     ``(2, K)``: last steps kept, RMS change
    ``_ncp/dynamics_finite_time_lyapunov``     array     ``(S, exponents)``, of each sequence
    ``_ncp/dynamics_autocorrelation``          array     ``(H,)``, autocorrelation time of each unit
    ``_ncp/dynamics_target_correlation``       array     ``(H,)``, r of each unit with the target
    ========================================== ========= =========================================

    With several cells the name of a cell is added, as in ``dynamics_encoder/cka_first``. Numbers
    that depend on the target have its name after that, where it is not the default one, as in
    ``dynamics_loss/overview``. For a cell that runs backwards, "last" is the last step it makes.

    Statistics over sequences come with their 95 % CIs; those from Jacobians are of few sequences
    and therefore unreliable. Speeds are maxima and have no CI. Correlations have a threshold of
    chance instead, since noise makes them larger.

    At most 512 states of the first and of the previous snapshot are kept, and are in the state that
    a resumed run loads.

    Args:
        max_jacobian_sequences: Largest number of sequences for which Jacobians are computed, spread
            over the batch.
        exponents: Number of Lyapunov exponents.
        jacobians: False to skip linear memory, exponents, radius and norm, which need
            Jacobians.
        max_units: Largest number of units for which whole Jacobians are computed. With more units,
            products with few vectors take their place: memory is estimated from 64 random
            directions of the state, or ``max_units`` if that is less; exponents are those of the
            whole state; radius and norm are estimated at four time steps. Descriptions and a note
            report this. Below about 256 units the products are slower than whole Jacobians.
        per_step: True for unit speeds per time step rather than per unit of ``time_delta``.
        every: See :class:`Callback`.
        name: See :class:`Callback`.
        max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For fewer than one of ``max_jacobian_sequences``, ``exponents`` or
            ``max_units``.

    Source: definitions and references are with the functions in ``ncp_callbacks.analysis``; unit
    speeds are algorithm 8 of Lechner et al. 2020 (doi 10.1038/s42256-020-00237-3), which are per
    step.
    """

    needs = frozenset({Need.STATES, Need.CELL_STEPS, Need.FEWER_STEPS})
    default_name = "dynamics"

    def __init__(
        self,
        *,
        max_jacobian_sequences: int = 4,
        exponents: int = 3,
        jacobians: bool = True,
        max_units: int = 256,
        per_step: bool = False,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self._sequences = whole_number("max_jacobian_sequences", max_jacobian_sequences, 1)
        self._exponents = whole_number("exponents", exponents, 1)
        if not jacobians:
            self.needs -= {Need.CELL_STEPS}
        self._max_units = whole_number("max_units", max_units, 1)
        self._per_step = per_step
        self._history = self.keep("cells", ByName(_CellHistory))
        self._without_jacobians: set[str] = set()
        self._changes = self.keep("changes", PairedChanges())

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        cells = cells_with_groups(observation, self.name)
        if observation.inputs.shape[1] < 2:
            raise NotApplicable("the held-out sequences have one time step: nothing moves")
        yield from small_batch_note(observation)
        log = RecordLog(
            self.name + observation.target_slug,
            SCALARS,
            places=_PLACES,
            target=observation.target,
        )
        of_target = _log_target_memory(log, observation)
        yield from log.records
        for cell, group in cells:
            yield from self._of(cell, group, observation, of_target)

    def _of(
        self,
        cell: Trajectory,
        group: str,
        observation: Observation,
        of_target: TargetMemory | None,
    ) -> Iterable[Record | Note]:
        """Yield the records of one cell."""
        states = cell.as_run(cell.values)
        assert states is not None
        delta, mask = cell.as_run(observation.time_delta), cell.as_run(observation.mask)
        real = np.ones(states.shape[:2], bool) if mask is None else mask
        finite = np.isfinite(states).all(axis=2)
        skipped = int((real & ~finite).sum())
        steps = str(int(real.sum(axis=1).max()) - 1)
        log = RecordLog(group, SCALARS, places=_PLACES, cell=cell.cell, steps=steps)
        if (real & finite).any():
            history = self._history[cell.cell]
            _log_speeds(log, history, states, None if self._per_step else delta, mask)
            _log_autocorrelation(log, states, delta, mask)
            _log_drift(log, history, states, real)
            _log_dimensions(log, states, mask)
            memory = None
            if Need.CELL_STEPS in self.needs and cell.cell not in self._without_jacobians:
                part = observation.limited(self._sequences)
                try:
                    memory, numbers = _log_jacobians(
                        log, cell, part, self._max_units, self._exponents
                    )
                except NotApplicable as reason:
                    self._without_jacobians.add(cell.cell)
                    log.note(f"linear memory, exponents, radius and norm are skipped: {reason}")
                else:
                    skipped += memory.non_finite
                    log.records += self._changes.compare(group, numbers, part, "stability_exponent")
            log.records += _overview(log, history, observation, states, real, memory, of_target)
        yield from non_finite_count(
            group, skipped, "states and sequences of Jacobians", "of NaN or infinity"
        )
        yield from log.records


class _CellHistory:
    """Hold what a cell is compared with: earlier states and memory, and limits of axes.

    Attributes:
        first: ``(N, H)``, states of the first snapshot.
        previous: ``(N, H)``, states of the previous snapshot.
        memory: ``(K,)``, curve of the memory at the first snapshot.
        speed: Limit of the histogram of speeds.
        decades: Limits of the axis of the memory, below and above 1.
    """

    def __init__(self) -> None:
        self.first: FloatArray | None = None
        self.previous: FloatArray | None = None
        self.memory: FloatArray | None = None
        self.speed = AxisLimit()
        self.decades = AxisLimit(), AxisLimit()

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive an interruption."""
        arrays = {"first": self.first, "previous": self.previous, "memory": self.memory}
        return {
            **{name: array for name, array in arrays.items() if array is not None},
            "speed": self.speed.value,
            "decades": [side.value for side in self.decades],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name in ("first", "previous", "memory"):
            if name in state:
                setattr(self, name, np.asarray(state[name], np.float32))
        below, above = state["decades"]
        self.speed = AxisLimit(float(state["speed"]))
        self.decades = AxisLimit(float(below)), AxisLimit(float(above))


# ---- from states


def _log_speeds(
    log: RecordLog,
    history: _CellHistory,
    states: FloatArray,
    delta: FloatArray | None,
    mask: np.ndarray | None,
) -> None:
    per = "time step" if delta is None else "unit of time_delta"
    speed = transition_statistics(states, time_delta=delta, mask=mask).unit_speed_max
    speed = speed[np.isfinite(speed)]
    _log_quantiles(log, "unit_speed", speed, (0.1, 0.5, 0.9), per=per)
    if speed.size:
        edges = np.linspace(0.0, history.speed.covering(float(speed.max())), _BINS + 1)
        what = f"Largest |dh_i| of each unit per {per}"
        log.records.append(Histogram(f"{log.group}/unit_speed", speed, edges, what))


def _log_autocorrelation(
    log: RecordLog, states: FloatArray, delta: FloatArray | None, mask: np.ndarray | None
) -> None:
    times = autocorrelation_times(states, time_delta=delta, mask=mask)
    known = times.values[np.isfinite(times.values)]
    unit = "time steps" if delta is None else "units of time_delta"
    shares = (0.1, 0.5, 0.9)
    estimates = times.quantile_estimates(shares)
    _log_quantiles(log, "autocorrelation", known, shares, estimates, unit=unit)
    if known.size:
        log.scalar("undecayed", times.undecayed)
    log.records.append(Array(f"_ncp/{log.group}_autocorrelation", times.values, axes=("unit",)))


def _log_dimensions(log: RecordLog, states: FloatArray, mask: np.ndarray | None) -> None:
    ratio = corrected_participation_ratio(states, mask=mask)
    if len(states) < 4:
        log.records.append(
            Note(
                f"{log.group}/participation_ratio_corrected compares different sequences and needs "
                f"at least 4; the held-out batch has {len(states)}, so it is NaN"
            )
        )
    estimate = corrected_participation_estimate(states, ratio, mask)
    log.scalar("participation_ratio_corrected", ratio, estimate)


def _log_drift(log: RecordLog, history: _CellHistory, states: FloatArray, real: np.ndarray) -> None:
    now, sequence = states[real], np.nonzero(real)[0]
    if len(now) > _MAX_STATES:
        some = np.random.default_rng(0).choice(len(now), _MAX_STATES, replace=False)
        some = np.sort(some)
        now, sequence = now[some], sequence[some]
    now = np.array(now, np.float32)
    first, previous = history.first, history.previous
    if first is not None and first.shape != now.shape:
        log.note(
            f"there are {len(now)} states of {now.shape[1]} units, where there were "
            f"{' of '.join(map(str, first.shape))}; their drift is measured from this snapshot on"
        )
        first = previous = None
    history.first, history.previous = (now if first is None else first), now
    for before, when in ((history.first, "first"), (previous, "previous")):
        drift = state_drift(now, now if before is None else before, sequence)
        if not math.isnan(drift.cka):
            estimates = drift.estimates
            log.scalar(f"cka_{when}", drift.cka, estimates.get("cka"), entry="cka", when=when)
            log.scalar(
                f"procrustes_{when}", drift.procrustes, estimates.get("procrustes"),
                entry="procrustes", when=when,
            )  # fmt: skip


# ---- from Jacobians


def _log_jacobians(
    log: RecordLog, cell: Trajectory, part: Observation, max_units: int, exponents: int
) -> tuple[Memory, dict[str, Estimate]]:
    """Log the numbers from Jacobians, and return the memory and the numbers to compare.

    Raises:
        NotApplicable: If the steps of the cell can't be run by themselves.
    """
    delta, mask = cell.as_run(part.time_delta), cell.as_run(part.mask)
    units = cell.values.shape[2]
    over: dict[str, Any] = {"time_delta": delta, "mask": mask}
    directions = gains = ""
    if units <= max_units:
        jacobians = part.extra_passes.state_jacobian(cell.cell)
        memory = memory_horizon(jacobians, **over)
        radius, norm = jacobian_gains(jacobians, mask=mask)
        owner = gain_sequences(jacobians, mask=mask)
        values = lyapunov_exponents(jacobians, **over, count=exponents)
        stability = stability_exponents(jacobians, **over)
    else:
        products = part.extra_passes.jacobian_products(cell.cell)
        count = min(max_units, _MAX_DIRECTIONS)
        memory = estimated_memory(products, **over, directions=count)
        radius, norm, owner = leading_gains(products, mask=mask)
        values = leading_exponents(products, **over, count=exponents)
        stability = estimated_stability(products, **over)
        directions = f"; estimated from {count} random directions of {units} units"
        gains = f"; estimated at few time steps, from products with few vectors of {units} units"
        log.note(
            f"the state has {units} units, more than max_units={max_units}, so linear memory, "
            "radius and norm are estimated from products of the Jacobians with few vectors; pass "
            f"max_units={units} for whole Jacobians"
        )
    compared = memory.estimates() if memory.sequences else {}
    shares = (0.5, 0.9)
    for name, of_steps in (("radius", radius), ("norm", norm)):
        estimates = quantile_estimates(of_steps, owner, shares)
        _log_quantiles(log, name, of_steps, shares, estimates, some=gains)
    compared |= _log_exponents(log, values, stability, gains, timed=delta is not None)
    if memory.sequences:
        _log_memory(log, memory, compared, directions, timed=delta is not None)
    return memory, compared


def _log_exponents(
    log: RecordLog, exponents: FloatArray, stability: FloatArray, some: str, *, timed: bool
) -> dict[str, Estimate]:
    """Log exponents ``(S, count)`` and ``(S,)``, and return them by name."""
    use = np.isfinite(exponents).all(axis=1) & np.isfinite(stability)
    known = exponents[use]
    if not len(known):
        return {}
    found = {
        f"finite_time_lyapunov_{i + 1}": Estimate.mean(column) for i, column in enumerate(known.T)
    }
    words: dict[str, Any] = {
        "per": "unit of time_delta" if timed else "time step", "sequences": len(known),
        "steps": log.words["steps"], "group": log.group,
    }  # fmt: skip
    for i, (name, estimate) in enumerate(found.items()):
        log.scalar(
            name, estimate.value, estimate, entry="finite_time_lyapunov", number=i + 1, **words
        )
    long_run = Estimate.mean(stability[use])
    log.scalar("stability_exponent", long_run.value, long_run, some=some, **words)
    log.records.append(Array(f"_ncp/{log.group}_finite_time_lyapunov", exponents))
    largest = found["finite_time_lyapunov_1"].value
    if largest > 0 > long_run.value:
        log.note(
            f"changes of the state have grown over the {log.words['steps']} time steps "
            f"(finite_time_lyapunov_1 is {largest:.2g}), but fade in the long run "
            f"(stability_exponent is {long_run.value:.2g}): the growth is a transient, not chaos"
        )
    return found | {"stability_exponent": long_run}


def _log_memory(
    log: RecordLog, memory: Memory, estimates: Mapping[str, Estimate], some: str, *, timed: bool
) -> None:
    for name, value in (
        ("linear_memory_steps", memory.steps),
        ("linear_memory_time", memory.time),
    ):
        if timed or name == "linear_memory_steps":
            log.scalar(name, value, estimates.get(name), some=some)
    left, steps = float(memory.curve[-1]), len(memory.curve) - 1
    log.scalar(
        "linear_memory_left", left, estimates.get("linear_memory_left"), steps=steps, some=some
    )
    log.records.append(Array(f"_ncp/{log.group}_linear_memory", memory.curve))


# ---- memory of the target


def _log_target_memory(log: RecordLog, observation: Observation) -> TargetMemory | None:
    """Log how much the target changes when all but the last time steps are removed."""
    real = observation.held_out.mask_array
    last = real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
    kept = last_steps_kept(last + 1)
    values = []
    try:
        for count in kept:
            steps = np.maximum(last - count + 1, 0)[:, None] + np.arange(count)
            inside = steps <= last[:, None]
            steps = np.minimum(steps, last[:, None])
            mask = inside & np.take_along_axis(real, steps, axis=1)
            shorter = observation.extra_passes.with_fewer_steps(steps, mask)
            values.append(shorter.values[0])
    except NotApplicable as reason:
        log.note(f"the memory of the target is skipped: {reason}")
        return None
    if not values:
        return None
    found = target_memory(kept, np.stack(values), observation.target_values)
    if found is None:
        return None
    log.scalar("target_memory_steps", found.steps, found.estimate)
    log.scalar("target_memory_left", found.left.value, found.left, kept=int(kept[-1]))
    curve = np.stack([found.kept.astype(np.float64), found.curve])
    log.records.append(Array(f"_ncp/{log.group}_target_memory", curve))
    return found


# ---- correlations, and the picture


def _overview(
    log: RecordLog,
    history: _CellHistory,
    observation: Observation,
    states: FloatArray,
    real: np.ndarray,
    memory: Memory | None,
    of_target: TargetMemory | None,
) -> list[Record | Note]:
    """Return the picture and the correlations with the target, with the target in their tags."""
    cell, target = log.words["cell"], observation.target
    log = RecordLog(log.group + observation.target_slug, SCALARS, places=_PLACES, target=target)
    last = real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)
    correlations = unit_correlations(
        states[np.arange(len(states)), last], observation.target_values
    )
    options: dict[str, Any] = {"target": target, "step": observation.step}
    options["of_target"] = of_target
    if memory is not None and memory.sequences:
        options |= {"memory": memory, "first": history.memory}
        if history.memory is None:
            history.memory = memory.curve.astype(np.float32)
        needed = needed_decades(memory.curve, history.memory)
        for side, decades in zip(history.decades, needed, strict=True):
            side.cover(decades)
        below, above = history.decades
        options["decades"] = int(below.value), int(above.value)
    log.records.append(
        Figure(
            f"{log.group}/overview",
            plot_dynamics,
            correlations,
            options,
            f"Left, where the Jacobians are known: RMS share of a change of the state of {cell} "
            "that is left in the last state, against the number of time steps between them; "
            "dashed: the first snapshot; shaded: its 95 % CI, which is unreliable for so few "
            f"sequences. Orange: change of the {target} when only so many last time steps are "
            "kept, in its SDs; what a latch keeps counts. Right: correlation of each unit's "
            f"last state with the {target} over sequences, sorted; dotted: threshold of chance.",
        )
    )
    size = np.abs(correlations.values[np.isfinite(correlations.values)])
    if not size.size:
        log.note(
            f"the {target} is the same for all sequences, or all units are, so there is no "
            "correlation between them"
        )
        return log.records
    log.scalar("target_correlation_max", float(size.max()))
    _log_quantiles(log, "target_correlation", size, (0.5, 0.9))
    log.scalar("beyond_chance", float((size > correlations.chance).mean()))
    log.records.append(
        Array(f"_ncp/{log.group}_target_correlation", correlations.values, axes=("unit",))
    )
    return log.records


def _log_quantiles(
    log: RecordLog,
    name: str,
    values: FloatArray,
    shares: tuple[float, ...],
    estimates: list[Estimate] | None = None,
    **words: Any,
) -> None:
    """Log quantiles of values as ``<name>_q<percent>``."""
    if not values.size:
        return
    for i, value in enumerate(np.quantile(values, shares)):
        percent = round(100 * shares[i])
        log.scalar(
            f"{name}_q{percent}",
            float(value),
            None if estimates is None else estimates[i],
            entry=name,
            quantile="median" if percent == 50 else f"{percent} % quantile",
            **words,
        )
