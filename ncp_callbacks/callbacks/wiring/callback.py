"""Log what the neurons and synapses of wired cells do."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...callback import (
    AxisLimit,
    ByName,
    Callback,
    PairedChanges,
    cells_with_groups,
    ci_caveat,
    for_each_supported_cell,
    non_finite_count,
    small_batch_note,
)
from ...model import NotApplicable
from ...model.liquid import LTCReading, neuron_groups
from ...neuron_groups import NeuronGroup
from ...observation import Need, Observation, Trajectory
from ...records import Array, Figure, Note, Place, Record
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import Estimate
from ..record_log import RecordLog
from .analysis import (
    LEAK,
    SENSORY,
    SynapticFlow,
    group_activity,
    group_attribution,
    group_share_estimates,
    group_shares,
    neuron_attribution,
    synaptic_flow,
)
from .plot import plot_wiring

__all__ = ["Wiring"]

# Descriptions of the scalars.
SCALARS = {
    "share": "Share of the total conductance of {target} neurons of {cell} that {origin}, mean "
    "over neurons, time steps and sequences",
    "silent_synapses": "Share of the synapses of {cell} with less than 1 % of the conductance of "
    "their target neuron, mean over time steps and sequences",
    "balance_error": "Largest difference between the charge that moved a neuron of {cell} and the "
    "charge that its currents brought, as a share of all that flowed: rounding only, if the "
    "formula holds",
    "activity": "Mean |v| of {kind} neurons of {cell} over time steps and sequences",
    "speed": "Mean |dv|/dt of {kind} neurons of {cell}, per {per}",
    "attribution": "Share of {kind} neurons of {cell} in the mean absolute state × gradient of the "
    "{attributed}, of states handed from one time step to the next; over {sequences} sequences",
}
_PLACES: Mapping[str, Place] = {"silent_synapses": "group"}


class Wiring(Callback):
    """Log the neurons of every wired cell by kind, and the synapses of an LTC.

    A neuron's total conductance is its leak and that of each synapse. Their shares, which sum to 1,
    show which neurons it listens to. The current through a synapse shows whether that raises or
    lowers it. Both are exact, recomputed from the cell's parameters and states; ``balance_error``
    compares them with how the cell's state moves.

    A wired CfC has no synapses: its wiring limits two of the four maps of a layer, and the other
    two and the recurrence within a layer are dense. Its neurons are therefore drawn without
    synapses, and only activity and attribution by kind of neuron are logged, as a note reports.

    The costs are a forward pass, each step of the cell once more, and a gradient pass of these few
    sequences. Without the gradient pass, an LTC of 32 units (batch 32, 32 time steps) took less
    than a training step.

    ==================================== ========= =================================================
    Tag                                  Record    What
    ==================================== ========= =================================================
    ``wiring/graph``                     image     neurons, darker the larger their share in
                                                   ``|state × gradient|``; of an LTC with synapses,
                                                   as wide as their share of the target's
                                                   conductance; above 60 neurons or 240 synapses a
                                                   matrix
    ``wiring/share_<source>_<target>``   scalar    LTC: share of the conductance of a kind of neuron
                                                   that comes from another kind, from the inputs
                                                   (``sensory``), or is ``leak``
    ``wiring/silent_synapses``           scalar    LTC: share of synapses with less than 1 % of
                                                   their target's conductance
    ``wiring/balance_error``             scalar    LTC: largest difference of the currents from the
                                                   charge that moved the state
    ``wiring/activity_<kind>``           scalar    mean ``|v|`` of a kind of neuron
    ``wiring/speed_<kind>``              scalar    mean ``|dv|/dt`` of a kind of neuron
    ``wiring/numbers_changed``           scalar    how many shares, levels and speeds changed since
                                                   the previous snapshot beyond chance
    ``wiring/attribution_<kind>``        scalar    share of a kind of neuron in ``|state ×
                                                   gradient|``, of states handed to the next step
    ``wiring/nonfinite``                 scalar    number of skipped states: NaN or infinity
    ``_ncp/wiring_share``                array     LTC: ``(F + H, H)``, mean shares of synapses,
                                                   from inputs and then neurons, to neurons
    ``_ncp/wiring_current``              array     LTC: ``(F + H, H)``, mean currents
    ``_ncp/wiring_attribution``          array     ``(H,)``, share of each neuron in
                                                   ``|state × gradient|``
    ==================================== ========= =================================================

    Kinds are inter, command and motor, as the wiring calls them. With several cells the name of a
    cell is added, as in ``wiring_encoder/graph``. Neurons are numbered as in the cell's state: an
    LTC has its motor neurons first, a wired CfC last. Shares, levels and speeds come with 95 % CIs
    over sequences, which are unreliable for fewer than 16 sequences, as by default.

    The target of the monitor is attributed to what neurons hand on from one time step to the next,
    with zero as the baseline of a state. What a motor neuron outputs at the target's own time step
    is not handed on, so nothing is attributed to it. With another target than the prediction at
    the last time step the tag ends with its name, as in ``wiring/attribution_motor_loss``.

    Args:
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For fewer than one of ``max_sequences``.
    """

    needs = frozenset({Need.STATES, Need.CELL_STEPS, Need.STATE_GRADIENT})
    default_name = "wiring"
    max_sequences: int | None = 8

    def __init__(
        self,
        *,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = 8,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self.max_sequences = max_sequences
        self._synapse_limits = self.keep("synapses", ByName(AxisLimit))
        self._neuron_limits = self.keep("neurons", ByName(AxisLimit))
        self._changes = self.keep("changes", PairedChanges())

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        part = observation.limited(self.max_sequences)
        cells = cells_with_groups(part, self.name)
        yield from small_batch_note(observation)
        of_each = {
            group: functools.partial(self._of, states, group, part) for states, group in cells
        }
        yield from for_each_supported_cell(of_each, self.name, "this callback logs nothing of it")

    def _of(self, states: Trajectory, group: str, part: Observation) -> Iterable[Record | Note]:
        """Return the records of one cell."""
        cell = _WiredCell.of(states.cell, group, part)
        flow = None if cell.reading is None else _log_synapses(cell, cell.reading, part)
        if flow is not None or (cell.reading is None and cell.attribution.neurons is not None):
            synapses = self._synapse_limits[cell.name]
            neurons = self._neuron_limits[cell.name]
            cell.log.records.append(_graph(cell, flow, part, synapses, neurons))
        _log_activity(cell, states, part)
        _log_attribution(cell, part)
        log = cell.log
        log.records += self._changes.compare(group, log.estimates, part)
        return log.records


@dataclass(frozen=True, eq=False)
class _WiredCell:
    """Hold a cell, its neurons by kind, and the records of it.

    Attributes:
        name: Name of the cell.
        groups: Its neurons, by kind.
        reading: Parameters and states of an LTC; None for other cells.
        attribution: What of the target is attributed to its neurons.
        log: The records.
    """

    name: str
    groups: tuple[NeuronGroup, ...]
    reading: LTCReading | None
    attribution: _Attribution
    log: RecordLog

    @classmethod
    def of(cls, name: str, group: str, part: Observation) -> _WiredCell:
        """Return a cell of a snapshot.

        Raises:
            NotApplicable: If it is no LTC and has no wiring.
        """
        log = RecordLog(group, SCALARS, places=_PLACES, cell=name)
        stepper = part.extra_passes.cell_stepper(name)
        groups = neuron_groups(stepper)
        reading = None
        try:
            reading = part.extra_passes.read_liquid(stepper)
        except NotApplicable as reason:
            if not groups:
                raise
            log.note(f"{reason}, so its synapses are skipped")
        if isinstance(reading, LTCReading):
            groups = groups or (NeuronGroup("neuron", np.arange(reading.parameters.units)),)
            return cls(name, groups, reading, _attribution(name, groups, part), log)
        if not groups:
            raise NotApplicable(f"{name} has no wiring")
        if reading is not None:
            log.note(
                "the gates of a wired CfC and the recurrence within its layers are dense, so "
                "neurons influence each other where the wiring has no synapse: only the activity "
                "and the attribution of its kinds of neurons are logged"
            )
        return cls(name, groups, None, _attribution(name, groups, part), log)


@dataclass(frozen=True, eq=False)
class _Attribution:
    """Hold shares in the absolute state × gradient, or why there are none.

    Attributes:
        kinds: The share of each kind of neuron.
        neurons: ``(H,)``, the share of each neuron; None where there is none.
        sequences: Number of sequences.
        lacking: The reason why there are none.
    """

    kinds: Mapping[str, Estimate]
    neurons: FloatArray | None
    sequences: int
    lacking: str | None = None

    @property
    def cis(self) -> dict[str, tuple[float, float]]:
        """Return the 95 % CI of each kind of neuron that has one."""
        found = {name: share.ci() for name, share in self.kinds.items()}
        return {name: ci for name, ci in found.items() if ci is not None}

    def description(self, target: str) -> str:
        """Return the part of a picture's description that explains how dark neurons are."""
        ci = ""
        if self.sequences > 1:
            ci = f" with its 95 % CI over sequences{ci_caveat(self.sequences)}"
        return (
            " The darker a neuron, the larger its share in the absolute state × gradient of the "
            f"{target}; each kind is labelled with the share of all its neurons{ci}."
        )


def _attribution(cell: str, groups: tuple[NeuronGroup, ...], part: Observation) -> _Attribution:
    try:
        found = part.extra_passes.state_x_gradient(cell)
    except NotApplicable as reason:
        return _Attribution({}, None, 0, str(reason))
    shares, sequences = group_attribution(found, groups)
    return _Attribution(shares, neuron_attribution(found) if shares else None, sequences)


def _graph(
    cell: _WiredCell,
    flow: SynapticFlow | None,
    part: Observation,
    synapse_limit: AxisLimit,
    neuron_limit: AxisLimit,
) -> Figure:
    """Return the picture of a cell; without synapses where ``flow`` is None."""
    options: dict[str, Any] = {
        "groups": [(group.name, group.columns) for group in cell.groups],
        "step": part.step,
    }
    description = f"Neurons of {cell.name} by kind, without synapses."
    if flow is not None:
        names = part.held_out.feature_names
        features = len(flow.share) - len(flow.leak_share)
        options |= {
            # A model may pass something else than the batch's features to its cell.
            "input_names": names if len(names) == features else None,
            "limit": min(1.0, synapse_limit.covering(float(flow.share.max(initial=0.0)))),
        }
        description = (
            f"Synapses of {cell.name}, as wide as their mean share of the target's conductance "
            "over time steps and sequences; orange where their current raises the target, "
            "purple where it lowers it. The rest of a neuron's conductance is its leak."
        )
    neurons = cell.attribution.neurons
    if neurons is not None:
        options |= {
            "attribution": neurons,
            "attribution_limit": min(1.0, neuron_limit.covering(float(neurons.max()))),
            "attribution_cis": cell.attribution.cis,
        }
        description += cell.attribution.description(part.target)
    return Figure(f"{cell.log.group}/graph", plot_wiring, flow, options, description)


def _log_synapses(cell: _WiredCell, reading: LTCReading, part: Observation) -> SynapticFlow | None:
    """Log shares and currents of synapses, and return them if they can be drawn."""
    flow = synaptic_flow(
        reading.parameters,
        reading.inputs,
        reading.before,
        reading.after,
        reading.time_delta,
        mask=part.mask,
        cell=cell.name,
    )
    log = cell.log
    if not flow.samples:
        return None
    estimates = group_share_estimates(flow, cell.groups)
    for (source, target), value in group_shares(flow, cell.groups).items():
        if math.isfinite(value):
            origin = {LEAK: "is their leak", SENSORY: "comes from the inputs"}.get(
                source, f"comes from {source} neurons"
            )
            log.scalar(
                f"share_{source}_{target}", value, estimates[source, target], entry="share",
                place="group" if target == cell.groups[-1].name and source != LEAK else "data",
                target=target, origin=origin,
            )  # fmt: skip
    if not math.isnan(flow.silent):
        log.scalar("silent_synapses", flow.silent)
    if math.isfinite(flow.balance_error):
        log.scalar("balance_error", flow.balance_error)
    about = {
        "cell": cell.name,
        "neuron_kinds": _kinds_of_neurons(cell.groups, flow.share.shape[1]),
        "feature_names": list(part.held_out.feature_names),
    }
    axes = ("source", "neuron")
    for name, values in (("share", flow.share), ("current", flow.current)):
        log.records.append(
            Array(f"_ncp/{log.group}_{name}", values, kind=f"wiring {name}", axes=axes, about=about)
        )
    drawable = np.isfinite(flow.share).all() and np.isfinite(flow.current).all()
    return flow if drawable else None


def _kinds_of_neurons(groups: Sequence[NeuronGroup], count: int) -> list[str]:
    """Return the kind of each neuron, in the order of the state."""
    kinds = [""] * count
    for group in groups:
        for column in group.columns:
            kinds[column] = group.name
    return kinds


def _log_activity(cell: _WiredCell, states: Trajectory, part: Observation) -> None:
    values, delta, mask = states.values, part.time_delta, part.mask
    real = np.ones(values.shape[:2], bool) if mask is None else mask
    skipped = int((real & ~np.isfinite(values).all(axis=2)).sum())
    log = cell.log
    log.records += non_finite_count(log.group, skipped, "states", "of NaN or infinity")
    if states.reverse:
        values = values[:, ::-1]
        delta = None if delta is None else delta[:, ::-1]
        mask = None if mask is None else mask[:, ::-1]
    per = "time step" if delta is None else "unit of time_delta"
    found = group_activity(values, cell.groups, time_delta=delta, mask=mask)
    for kind, of in found.items():
        log.scalar(f"activity_{kind}", of.level, of.level_estimate, entry="activity", kind=kind)
        if not math.isnan(of.speed):
            log.scalar(
                f"speed_{kind}", of.speed, of.speed_estimate, entry="speed", kind=kind, per=per
            )


def _log_attribution(cell: _WiredCell, part: Observation) -> None:
    log, found = cell.log, cell.attribution
    if found.lacking is not None:
        log.note(f"{found.lacking}; its attribution by kind of neuron is skipped")
    for kind, share in found.kinds.items():
        log.scalar(
            f"attribution_{kind}", share.value, share, entry="attribution", suffix=part.target_slug,
            place="group", kind=kind, attributed=part.target, sequences=found.sequences,
        )  # fmt: skip
    if found.neurons is not None:
        log.records.append(
            Array(
                f"_ncp/{log.group}_attribution{part.target_slug}",
                found.neurons,
                kind="wiring attribution",
                axes=("neuron",),
                about={"cell": cell.name},
            )
        )
