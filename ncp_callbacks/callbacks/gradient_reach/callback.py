"""Log how far back along a sequence the target's gradient reaches."""

from __future__ import annotations

import functools
from collections.abc import Iterable

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
from ...model import TargetLike
from ...observation import Need, Observation, Trajectory
from ...records import Array, Figure, Note, Place, Record
from ...scheduling import ScheduleLike
from ..dynamics.plot import needed_decades
from ..record_log import RecordLog
from .analysis import GradientReachCurve, gradient_reach
from .plot import plot_gradient_reach

__all__ = ["GradientReach"]

_SCALARS = {
    "first_step": "Norm of the gradient of the {target} by the state of {cell} at the first time "
    "step, relative to that at the last state that the {target} depends on; geometric mean over "
    "sequences. Near 0, what happens at the beginning can't be learnt; far above 1, gradients "
    "explode",
    "steps": "Number of time steps back at which that norm has fallen to 1/e; the length of the "
    "sequence if it has not",
}
_PLACES: dict[str, Place] = {"first_step": "group", "steps": "group"}


class GradientReach(Callback):
    """Measure how far back along a sequence the target's gradient reaches.

    A recurrent network learns what happened ``k`` time steps ago by the gradient by its state ``k``
    steps ago. Where its norm has faded, that is not learnt; where it grows, gradients explode. With
    ``target="loss"`` it is the learning signal itself; with another target it is that signal but
    for a factor of each sequence.

    It costs a gradient pass of ``max_sequences`` sequences, and three forward passes. Cells whose
    states can't be changed from outside are skipped, with the reason in a note.

    ====================================== ====== ================================================
    Tag                                    Record What
    ====================================== ====== ================================================
    ``gradient_reach/curve``               image  norm of the gradient by the state, against the
                                                  number of time steps back
    ``gradient_reach/first_step``          scalar the norm at the first time step, relative to that
                                                  at the last state that the target depends on
    ``gradient_reach/steps``               scalar time steps back over which it falls to 1/e
    ``gradient_reach/first_step_change``   scalar relative change of ``first_step`` since the
                                                  previous snapshot, same sequences
    ``gradient_reach/numbers_changed``     scalar number of these that changed beyond chance
    ``gradient_reach/nonfinite``           scalar sequences skipped because of NaN or infinity
    ``_ncp/gradient_reach_curve``          array  ``(K,)``, the norm after 0, 1, … steps back
    ====================================== ====== ================================================

    With several cells the name of a cell is added, as in ``gradient_reach_encoder/steps``, and with
    a target other than the prediction at the last time step that of the target. For a cell that
    runs backwards, the first time step is the first one that it runs. Both numbers come with 95 %
    CIs over sequences, which are unreliable with fewer than 16 sequences.

    Args:
        every, name, max_sequences, target: See :class:`Callback`.
    """

    needs = frozenset({Need.STATES, Need.STATE_CHANGES})
    default_name = "gradient_reach"
    max_sequences: int | None = 16

    def __init__(
        self,
        *,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = 16,
        target: TargetLike | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences, target=target)
        self.max_sequences = max_sequences
        self._below = self.keep("below", ByName(AxisLimit))
        self._above = self.keep("above", ByName(AxisLimit))
        self._changes = self.keep("changes", PairedChanges())

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        of_each = {
            group: functools.partial(self._of, cell, group, observation)
            for cell, group in cells_with_groups(observation, self.name)
        }
        yield from for_each_supported_cell(of_each, self.name, "its gradients are not measured")
        yield from small_batch_note(observation)

    def _of(
        self, cell: Trajectory, group: str, observation: Observation
    ) -> Iterable[Record | Note]:
        """Return the records of one cell."""
        gradient = cell.as_run(observation.extra_passes.state_gradient(cell.cell))
        assert gradient is not None
        group, target = group + observation.target_slug, observation.target
        result = gradient_reach(
            gradient, cell.as_run(observation.mask), cell=cell.cell, target=target
        )
        log = RecordLog(group, _SCALARS, places=_PLACES, cell=cell.cell, target=target)
        skipped = int((~np.isfinite(gradient).all(axis=(1, 2))).sum())
        if result is None:
            log.note(f"the {target} has no gradient by the states of {cell.cell}")
        else:
            needed = needed_decades(result.curve)
            sides = (self._below[cell.cell], self._above[cell.cell])
            for side, decades in zip(sides, needed, strict=True):
                side.cover(decades)
            log.records.append(_picture(result, group, sides, observation.step))
            for name, value in (("first_step", result.first_step), ("steps", result.steps)):
                log.scalar(name, value, result.estimates.get(name))
            log.records.append(Array(f"_ncp/{group}_curve", result.curve))
            log.records += self._changes.compare(group, result.estimates, observation, "first_step")
        log.records += non_finite_count(
            group, skipped, "sequences", "their gradient had NaN or infinity"
        )
        return log.records


def _picture(
    result: GradientReachCurve, group: str, sides: tuple[AxisLimit, AxisLimit], step: int
) -> Figure:
    below, above = (int(side.value) for side in sides)
    return Figure(
        f"{group}/curve",
        plot_gradient_reach,
        result,
        {"decades": (below, above), "step": step},
        f"Norm of the gradient of the {result.target} by the state of {result.cell}, against the "
        "number of time steps back, relative to the last one; geometric mean over sequences. "
        f"Its 95 % CI is shaded{ci_caveat(result.sequences)}; the dotted line is 1/e.",
    )
