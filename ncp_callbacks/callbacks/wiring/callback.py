"""What goes through the synapses of a neural circuit policy, and what its neurons do."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...callback import (
    AxisLimit,
    Callback,
    PairedChanges,
    ci_caveat,
    for_each_supported_cell,
    non_finite_count,
    per_cell_names,
    scalar_with_ci,
    small_batch_note,
)
from ...model import NotApplicable
from ...model.liquid import LTCReading, neuron_groups, read_liquid
from ...observation import Need, Observation, Trajectory
from ...records import Array, Figure, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import Estimate
from .analysis import (
    LEAK,
    SENSORY,
    NeuronGroup,
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


class Wiring(Callback):
    """Neurons by kind and, in an LTC, what goes through its synapses, for every wired cell.

    The parts of a neuron's total conductance, its leak and each synapse, say to whom it listens:
    shares, which sum to 1. The current through a synapse says whether that raises or lowers it.
    Both are exact, and recomputed from what the cell holds; ``balance_error`` compares them with
    what the cell's state does.

    A wired CfC has no synapses: its wiring limits two of the four maps of a layer, the others and
    the recurrence within a layer are dense. So its neurons are drawn without, and only activity
    and attribution by kind of neuron are logged, which a note says.

    Costs a forward pass, each step of the cell once more, and a gradient pass of these few
    sequences: without the latter, for an LTC of 32 units (batch 32, 32
    steps) less than a training step.

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
    ``wiring/balance_error``             scalar    LTC: what the currents leave of the charge that
                                                   moved the state
    ``wiring/activity_<kind>``           scalar    mean ``|v|`` of a kind of neuron
    ``wiring/speed_<kind>``              scalar    mean ``|dv|/dt`` of a kind of neuron
    ``wiring/numbers_changed``           scalar    how many shares, levels and speeds changed since
                                                   the last look beyond chance
    ``wiring/attribution_<kind>``        scalar    share of a kind of neuron in ``|state ×
                                                   gradient|``, of states handed to the next step
    ``wiring/nonfinite``                 scalar    states left out: NaN or infinity
    ``_ncp/wiring_share``                array     LTC: ``(F + H, H)``, mean shares of synapses,
                                                   from inputs and then neurons, to neurons
    ``_ncp/wiring_current``              array     LTC: ``(F + H, H)``, mean currents
    ``_ncp/wiring_attribution``          array     ``(H,)``, share of each neuron in
                                                   ``|state × gradient|``
    ==================================== ========= =================================================

    Kinds are inter, command and motor, as the wiring calls them. With several cells the name of a
    cell is added, as in ``wiring_encoder/graph``. Neurons are numbered as in the cell's state: an
    LTC has its motor neurons first, a wired CfC last. Shares, levels and speeds come with 95 % CIs
    over sequences, which of fewer than 16, as by default, are unreliable.

    Attribution is of the target of the monitor, through what neurons hand on from one step to the
    next, and with zero as the baseline of a state: what a motor neuron puts out at the target's own
    step isn't handed on. With another target than the prediction at the last step the tag ends with
    its name, as in ``wiring/attribution_motor_loss``.

    Args:
        sequences: How many sequences are looked at, spread over the batch.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For fewer than one of ``sequences``.
    """

    needs = frozenset({Need.STATES})
    default_name = "wiring"

    def __init__(
        self,
        *,
        sequences: int = 8,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        if isinstance(sequences, bool) or not isinstance(sequences, int) or sequences < 1:
            raise ValueError(f"sequences={sequences!r}: give a whole number of at least 1")
        self._sequences = sequences
        # By cell.
        self._limits: dict[str, AxisLimit] = {}
        self._neuron_limits: dict[str, AxisLimit] = {}
        self._changes = PairedChanges()

    def state_dict(self) -> dict[str, Any]:
        limits, neurons = (
            {cell: limit.value for cell, limit in each.items()}
            for each in (self._limits, self._neuron_limits)
        )
        return {"limits": limits, "neuron_limits": neurons, "changes": self._changes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # Earlier versions had none of neurons.
        self._limits, self._neuron_limits = (
            {cell: AxisLimit(float(v)) for cell, v in limits.items()}
            for limits in (state["limits"], state.get("neuron_limits", {}))
        )
        self._changes.load_state_dict(state.get("changes", {}))

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        cells = observation.states
        if not cells:
            raise NotApplicable(observation.no_cells)
        part = observation.limited(self._sequences)
        yield from small_batch_note(observation)
        shorts = per_cell_names([c.cell for c in cells])
        of_each = {
            self.name + short: functools.partial(self._of, cell, self.name + short, part)
            for cell, short in zip(part.states, shorts, strict=True)
        }
        yield from for_each_supported_cell(of_each, self.name, "nothing is logged of it here")

    def _of(self, cell: Trajectory, group: str, part: Observation) -> Iterator[Record | Note]:
        stepper = part.cell_stepper(cell.cell)
        groups = neuron_groups(stepper)
        reading = None
        numbers: dict[str, Estimate] = {}
        try:
            reading = read_liquid(stepper, part.time_delta if part.takes_time else None)
        except NotApplicable as reason:
            if not groups:
                raise
            yield Note(f"{group}: {reason}, so that its synapses are left out")
        if isinstance(reading, LTCReading):
            groups = groups or (NeuronGroup("neuron", np.arange(reading.parameters.units)),)
        attributed = _attributed(cell.cell, groups, part)
        if isinstance(reading, LTCReading):
            look = _Look(cell.cell, group, groups, attributed, numbers)
            yield from self._synapses(look, reading, part)
        elif not groups:
            raise NotApplicable(f"{cell.cell} has no wiring")
        else:
            if reading is not None:
                yield Note(
                    f"{group}: a wired CfC's gates and the recurrence within its layers are dense, "
                    "so that influence goes where its wiring has no synapse: only the activity and "
                    "the attribution of its kinds of neurons are logged"
                )
            if attributed.neurons is not None:
                yield self._neurons(cell.cell, group, groups, attributed, part)
        yield from _activity(cell, group, groups, part, numbers)
        yield from _attribution(cell.cell, group, attributed, part, numbers)
        yield from self._changes.compare(group, numbers, part)

    def _synapses(
        self, look: _Look, reading: LTCReading, part: Observation
    ) -> Iterator[Record | Note]:
        flow = synaptic_flow(
            reading.parameters,
            reading.inputs,
            reading.before,
            reading.after,
            reading.time_delta,
            mask=part.mask,
            cell=look.cell,
        )
        group = look.group
        if not flow.samples:
            return
        known = group_share_estimates(flow, look.groups)
        for (source, target), value in group_shares(flow, look.groups).items():
            if not math.isfinite(value):
                continue
            origin = {
                LEAK: "is their leak",
                SENSORY: "comes from the inputs",
            }.get(source, f"comes from {source} neurons")
            number = look.numbers[f"share_{source}_{target}"] = known[source, target]
            yield scalar_with_ci(
                f"{group}/share_{source}_{target}",
                value,
                number,
                f"Share of the total conductance of {target} neurons of {look.cell} that {origin}, "
                "mean over neurons, steps and sequences",
                chart=target == look.groups[-1].name and source != LEAK,
            )
        if not math.isnan(flow.silent):
            yield Scalar(
                f"{group}/silent_synapses",
                flow.silent,
                f"Share of the synapses of {look.cell} with less than 1 % of the conductance of "
                "their target neuron, mean over steps and sequences",
            )
        if math.isfinite(flow.balance_error):
            yield Scalar(
                f"{group}/balance_error",
                flow.balance_error,
                f"Largest difference between the charge that moved a neuron of {look.cell} and "
                "what its currents brought, as a share of all that flowed: rounding, if all is "
                "well",
            )
        yield Array(f"_ncp/{group}_share", flow.share)
        yield Array(f"_ncp/{group}_current", flow.current)
        if np.isfinite(flow.share).all() and np.isfinite(flow.current).all():
            yield from self._picture(look, flow, part)

    def _picture(
        self, look: _Look, flow: SynapticFlow, part: Observation
    ) -> Iterator[Record | Note]:
        limit = self._limits.setdefault(look.cell, AxisLimit())
        names = part.held_out.feature_names
        features = len(flow.share) - len(flow.leak_share)
        yield Figure(
            f"{look.group}/graph",
            plot_wiring,
            flow,
            {
                "groups": [(group.name, group.columns) for group in look.groups],
                # A model may put something else than the batch's features into its cell.
                "input_names": names if len(names) == features else None,
                "limit": min(1.0, limit.covering(float(flow.share.max(initial=0.0)))),
                **self._inked(look.cell, look.attributed),
                "step": part.step,
            },
            f"Synapses of {look.cell}, as wide as the share of the target's conductance that they "
            "have on average over steps and sequences; orange where their current raises the "
            "target, purple where it lowers it. The rest of a neuron's conductance is its leak."
            + look.attributed.told(part.target),
        )

    def _neurons(
        self,
        cell: str,
        group: str,
        groups: tuple[NeuronGroup, ...],
        attributed: _Attributed,
        part: Observation,
    ) -> Figure:
        return Figure(
            f"{group}/graph",
            plot_wiring,
            None,
            {
                "groups": [(group.name, group.columns) for group in groups],
                **self._inked(cell, attributed),
                "step": part.step,
            },
            f"Neurons of {cell} by kind, without synapses." + attributed.told(part.target),
        )

    def _inked(self, cell: str, attributed: _Attributed) -> dict[str, Any]:
        """How dark neurons are drawn, in a picture."""
        if attributed.neurons is None:
            return {}
        limit = self._neuron_limits.setdefault(cell, AxisLimit())
        return {
            "attribution": attributed.neurons,
            "attribution_limit": min(1.0, limit.covering(float(attributed.neurons.max()))),
            "attribution_cis": attributed.cis,
        }


@dataclass(frozen=True, eq=False)
class _Look:
    cell: str
    group: str
    groups: tuple[NeuronGroup, ...]
    attributed: _Attributed
    # What is known of how sure numbers are, by name.
    numbers: dict[str, Estimate]


def _activity(
    cell: Trajectory,
    group: str,
    groups: tuple[NeuronGroup, ...],
    part: Observation,
    numbers: dict[str, Estimate],
) -> Iterator[Record | Note]:
    values, delta, mask = cell.values, part.time_delta, part.mask
    real = np.ones(values.shape[:2], bool) if mask is None else mask
    broken = int((real & ~np.isfinite(values).all(axis=2)).sum())
    yield from non_finite_count(group, broken, "states", "of NaN or infinity")
    if cell.reverse:
        values = values[:, ::-1]
        delta = None if delta is None else delta[:, ::-1]
        mask = None if mask is None else mask[:, ::-1]
    found = group_activity(values, groups, time_delta=delta, mask=mask)
    per = "step" if delta is None else "unit of time_delta"
    for name, seen in found.items():
        numbers[f"activity_{name}"] = seen.level_estimate
        yield scalar_with_ci(
            f"{group}/activity_{name}",
            seen.level,
            seen.level_estimate,
            f"Mean |v| of {name} neurons of {cell.cell} over steps and sequences",
        )
        if not math.isnan(seen.speed):
            numbers[f"speed_{name}"] = seen.speed_estimate
            yield scalar_with_ci(
                f"{group}/speed_{name}",
                seen.speed,
                seen.speed_estimate,
                f"Mean |dv|/dt of {name} neurons of {cell.cell}, per {per}",
            )


@dataclass(frozen=True, eq=False)
class _Attributed:
    """Shares in the absolute state × gradient: by kind, of each neuron; or why there are none."""

    kinds: Mapping[str, Estimate]
    neurons: FloatArray | None
    sequences: int
    lacking: str | None = None

    @property
    def cis(self) -> dict[str, tuple[float, float]]:
        found = {name: share.ci() for name, share in self.kinds.items()}
        return {name: ci for name, ci in found.items() if ci is not None}

    def told(self, target: str) -> str:
        """A sentence for the description of a picture."""
        if self.neurons is None:
            return ""
        sure = ""
        if self.sequences > 1:
            sure = f" with its 95 % CI over sequences{ci_caveat(self.sequences)}"
        return (
            f" The darker a neuron, the larger its share in the absolute state × gradient of the "
            f"{target}; at each kind stands the share of all its neurons{sure}."
        )


def _attributed(cell: str, groups: tuple[NeuronGroup, ...], part: Observation) -> _Attributed:
    if not groups:
        return _Attributed({}, None, 0)
    try:
        found = part.state_x_gradient(cell)
    except NotApplicable as reason:
        return _Attributed({}, None, 0, str(reason))
    shares, sequences = group_attribution(found, groups)
    return _Attributed(shares, neuron_attribution(found) if shares else None, sequences)


def _attribution(
    cell: str,
    group: str,
    found: _Attributed,
    part: Observation,
    numbers: dict[str, Estimate],
) -> Iterator[Record | Note]:
    if found.lacking is not None:
        yield Note(f"{group}: {found.lacking}; its attribution by kind of neuron is left out")
    for name, share in found.kinds.items():
        numbers[f"attribution_{name}"] = share
        yield scalar_with_ci(
            f"{group}/attribution_{name}{part.target_slug}",
            share.value,
            share,
            f"Share of {name} neurons of {cell} in the mean absolute state × gradient of the "
            f"{part.target}, of states handed from one step to the next; over {found.sequences} "
            "sequences",
        )
    if found.neurons is not None:
        yield Array(f"_ncp/{group}_attribution{part.target_slug}", found.neurons)
