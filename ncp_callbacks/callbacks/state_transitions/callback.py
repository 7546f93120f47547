"""Log how far, how fast and how straight the hidden state moves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ...callback import (
    AxisLimit,
    ByName,
    Callback,
    PairedChanges,
    cells_with_groups,
    non_finite_count,
    scalar_with_ci,
    small_batch_note,
)
from ...model import NotApplicable
from ...observation import Need, Observation, Trajectory
from ...records import Array, Histogram, Note, Place, Record, Scalar
from ...scheduling import ScheduleLike
from .analysis import TransitionStatistics, stays_within, transition_statistics

__all__ = ["StateTransitions"]

_SCALARS = {
    "magnitude_mean": "Mean ||dh|| between consecutive time steps; in units of the state",
    "magnitude_std": "SD of ||dh|| over sequences and time steps",
    "speed_mean": "Mean ||dh||/dt; in units of the state per unit of time_delta (or per time step)",
    "speed_max": "Largest ||dh||/dt",
    "direction_consistency": "Mean cosine between the moves of two sequences at one time step: 1 "
    "if all move in one direction, 0 if the moves are unrelated",
    "direction_persistence": "Mean cosine between consecutive moves of a sequence: 1 is straight "
    "on, -1 back and forth",
    "saturation": "Share of state components beyond 95 % of their bound of 1",
    "dead_units": "Units whose SD is below 0.1 % of the median unit's, or 0",
}
_PLACES: Mapping[str, Place] = {
    "saturation": "headline",
    "magnitude_mean": "group",
    "speed_mean": "group",
    "dead_units": "nonzero",
}
_BINS = 40


class StateTransitions(Callback):
    """Measure how far, how fast and how straight the hidden state of every recurrent cell moves.

    It costs one forward pass, or nothing if another callback needs a gradient.

    ======================================= ========= =============================================
    Tag                                     Record    What
    ======================================= ========= =============================================
    ``transitions/magnitude_mean``          scalar    mean length of a transition, ``||dh||``
    ``transitions/magnitude_std``           scalar    its SD over sequences and time steps
    ``transitions/speed_mean``              scalar    mean of ``||dh|| / dt``
    ``transitions/speed_max``               scalar    its maximum
    ``transitions/direction_consistency``   scalar    1: sequences move in one direction at each
                                                      time step
    ``transitions/direction_persistence``   scalar    1: a sequence keeps its direction
    ``transitions/saturation``              scalar    share of components near their bound; only for
                                                      states that never left [-1, 1]
    ``transitions/dead_units``              scalar    number of units that don't move
    ``transitions/magnitude_change``        scalar    relative change of ``magnitude_mean`` since
                                                      the previous snapshot, paired on equal
                                                      sequences
    ``transitions/numbers_changed``         scalar    number of these that changed beyond chance
    ``transitions/nonfinite``               scalar    transitions skipped because of NaN or infinity
    ``transitions/magnitude``               histogram ``||dh||``
    ``_ncp/transitions_unit_speed_max``     array     ``(H,)``, largest ``|dh_i|/dt`` of each unit
    ======================================= ========= =============================================

    With several cells the name of a cell is added, as in ``transitions_encoder/magnitude_mean``.
    All numbers but maxima and counts come with 95 % CIs over sequences, which are unreliable with
    fewer than 16 sequences.

    Args:
        every, name, max_sequences: See :class:`Callback`.
    """

    needs = frozenset({Need.STATES})
    default_name = "transitions"

    def __init__(
        self,
        *,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self._limits = self.keep("limits", ByName(AxisLimit))
        self._unbounded: set[str] = set()
        self._changes = self.keep("changes", PairedChanges())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "unbounded": sorted(self._unbounded)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._unbounded = set(state["unbounded"])

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        cells = cells_with_groups(observation, self.name)
        if observation.inputs.shape[1] < 2:
            raise NotApplicable("the held-out sequences have one time step: pass longer ones")
        for cell, group in cells:
            yield from self._of(cell, group, observation)

    def _of(
        self, cell: Trajectory, group: str, observation: Observation
    ) -> Iterable[Record | Note]:
        """Yield the records of one cell."""
        if not stays_within(cell.values, observation.mask, 1.0):
            self._unbounded.add(cell.cell)
        result = transition_statistics(
            cell.values,
            time_delta=observation.time_delta,
            mask=observation.mask,
            bound=None if cell.cell in self._unbounded else 1.0,
            cell=cell.cell,
        )
        yield from non_finite_count(group, result.non_finite, "transitions", "of NaN or infinity")
        if result.transitions:
            yield from _scalars(result, group)
        yield from small_batch_note(observation)
        yield from self._changes.compare(
            group, result.estimates, observation, "magnitude_mean", "magnitude"
        )
        yield from _histogram(result, group, self._limits.setdefault(cell.cell, AxisLimit()))


def _scalars(result: TransitionStatistics, group: str) -> Iterator[Scalar | Note]:
    for name, description in _SCALARS.items():
        value = float(result[name])
        if not math.isnan(value):
            yield scalar_with_ci(
                f"{group}/{name}",
                value,
                result.estimates.get(name),
                description,
                place=_PLACES.get(name, "data"),
            )
        elif name == "direction_consistency":
            yield Note(
                f"{group}: direction_consistency is not logged, because it compares sequences that "
                "move at one time step, and there were fewer than two: hold out more sequences"
            )


def _histogram(
    result: TransitionStatistics, group: str, limit: AxisLimit
) -> Iterator[Histogram | Array]:
    """Yield the distribution of ``||dh||``, and the fastest speed of each unit."""
    lengths = result.magnitudes[np.isfinite(result.magnitudes)]
    if not lengths.size:
        return
    top = limit.covering(float(np.quantile(lengths, 0.99)))
    yield Histogram(
        f"{group}/magnitude",
        lengths,
        np.linspace(0.0, top, _BINS + 1),
        f"||dh|| of {result.cell} over sequences and time steps; the last bin holds all larger "
        "values",
    )
    yield Array(f"_ncp/{group}_unit_speed_max", result.unit_speed_max, axes=("unit",))
