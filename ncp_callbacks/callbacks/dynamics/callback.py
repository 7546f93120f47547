"""Log memory, stability and drift of the state of each recurrent cell."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...callback import (
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
from ...records import Note, Record
from ...scheduling import ScheduleLike
from ..record_log import RecordLog
from .analysis import TargetMemory
from .descriptions import PLACES, SCALARS
from .jacobian_records import log_jacobians
from .state_records import (
    CellHistory,
    log_autocorrelation,
    log_dimensions,
    log_drift,
    log_speeds,
)
from .target_records import log_target_memory, overview

__all__ = ["Dynamics"]


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
        every, name, max_sequences: See :class:`Callback`.

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
        self._history = self.keep("cells", ByName(CellHistory))
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
            places=PLACES,
            target=observation.target,
        )
        of_target = log_target_memory(log, observation)
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
        log = RecordLog(group, SCALARS, places=PLACES, cell=cell.cell, steps=steps)
        if (real & finite).any():
            history = self._history[cell.cell]
            log_speeds(log, history, states, None if self._per_step else delta, mask)
            log_autocorrelation(log, states, delta, mask)
            log_drift(log, history, states, real)
            log_dimensions(log, states, mask)
            memory = None
            if Need.CELL_STEPS in self.needs and cell.cell not in self._without_jacobians:
                part = observation.limited(self._sequences)
                try:
                    memory, numbers = log_jacobians(
                        log, cell, part, self._max_units, self._exponents
                    )
                except NotApplicable as reason:
                    self._without_jacobians.add(cell.cell)
                    log.note(f"linear memory, exponents, radius and norm are skipped: {reason}")
                else:
                    skipped += memory.non_finite
                    log.records += self._changes.compare(group, numbers, part, "stability_exponent")
            log.records += overview(log, history, observation, states, real, memory, of_target)
        yield from non_finite_count(
            group, skipped, "states and sequences of Jacobians", "of NaN or infinity"
        )
        yield from log.records
