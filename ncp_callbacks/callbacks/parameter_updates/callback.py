"""Log how much the parameters change between snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ...callback import Callback, non_finite_count
from ...model import NotApplicable
from ...observation import Need, Observation
from ...records import Note, Record
from ...results import FloatArray
from ..record_log import RecordLog
from .analysis import euclidean_norm, parameter_changes

__all__ = ["ParameterUpdates"]

_SINCE = "since the previous snapshot, per training step and relative to their norm"
_SCALARS = {
    "norm": "Euclidean norm of all trainable parameters together",
    "update": f"Norm of the change of all trainable parameters {_SINCE}",
    "update_<part>": f"Norm of the change of the parameters of {{part}} {_SINCE}",
    "unchanged": "How many of {arrays} trainable arrays have no element that changed since the "
    "previous snapshot",
}


class ParameterUpdates(Callback):
    """Measure how much the parameters change: does each part of the model learn, and how fast?

    The change from one snapshot to the next, per training step, is relative to the parameters'
    size. Parts that learn at a good pace move by about 1e-3 per step at first, and by less and less
    later; far more is a learning rate that is too large, and a part that does not move is frozen,
    or the loss does not reach it. Gradients are logged beside the updates where the loop passes
    them: ``monitor.on_step_end(step, loss=loss, gradients=gradients)``.

    The rule of thumb of 1e-3 is that of the notes of Stanford's course CS231n. The callback costs
    no pass, and memory for a second copy of the parameters.

    ================================ ====== ======================================================
    Tag                              Record What
    ================================ ====== ======================================================
    ``parameters/norm``              scalar norm of all trainable parameters together
    ``parameters/update``            scalar norm of the parameters' change per training step,
                                            relative to their norm
    ``parameters/update_<part>``     scalar that change of each part of the model, at most four
    ``parameters/unchanged``         scalar trainable arrays that haven't changed at all
    ``parameters/nonfinite``         scalar arrays skipped because of NaN or infinity
    ================================ ====== ======================================================

    Changes are logged from the second snapshot on, also of a resumed run.

    Args:
        every, name: See :class:`Callback`.
    """

    needs = frozenset({Need.PARAMETERS})
    default_name = "parameters"
    _before: tuple[int, Mapping[str, FloatArray]] | None = None

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        now = observation.parameters
        if not now:
            raise NotApplicable("the model has no trainable parameters: unfreeze some")
        known, self._before = self._before, (observation.step, now)
        log = RecordLog(self.name, _SCALARS, places={"unchanged": "nonzero"})
        finite = {name: array for name, array in now.items() if np.isfinite(array).all()}
        log.scalar("norm", euclidean_norm(finite.values()))
        if known is not None and known[0] < observation.step:
            step, before = known
            found = parameter_changes(before, finite, observation.step - step)
            log.scalar("update", found.total)
            for part, change in found.by_part.items():
                log.scalar(f"update_{part}", change, entry="update_<part>", part=part)
            log.scalar("unchanged", len(found.unchanged), arrays=len(now))
        log.records += non_finite_count(
            self.name, len(now) - len(finite), "parameter arrays", "they hold NaN or infinity"
        )
        return log.records
