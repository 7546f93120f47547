"""Log how target and loss change when one unit of a state at a time is clamped to its mean."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

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
    whole_number,
)
from ...model import NotApplicable, TargetLike
from ...observation import Need, Observation, Trajectory
from ...records import Array, Figure, Note, Place, Record
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ..record_log import RecordLog
from ..unit_names import ChosenUnits, unit_names
from .analysis import UnitAblations, unit_ablations, unit_means
from .plot import plot_unit_ablation

if TYPE_CHECKING:
    from ...extra_passes.extra_passes import ExtraPasses

__all__ = ["UnitAblation"]

_SCALARS = {
    "carrying_units": "Effective number of the {count} units of {cell} that carry the {target}: "
    "(sum c)^2 / sum c^2 of its mean absolute changes c when a unit is clamped to its mean",
    "slope_disagreement": "Part of the whole that clamping the units of {cell} and the slope of "
    "the {target} attribute to different units: 0 if slopes predict what clamping does",
    "needed_units": "Number of the {count} units of {cell} without which the loss is larger beyond "
    "chance: paired t tests, corrected for their number by Holm",
    "sequences": "Held-out sequences with which units of {cell} are clamped",
}
_OF_UNITS = {
    "change": "Mean absolute change of the {target} when {unit} of {cell} is clamped to its mean",
    "loss_change": "Mean change of the loss when {unit} of {cell} is clamped to its mean",
}
_PLACES: dict[str, Place] = {
    "carrying_units": "group", "slope_disagreement": "group", "needed_units": "group",
}  # fmt: skip


class UnitAblation(Callback):
    """Measure how much target and loss change when a unit is clamped to its mean.

    A unit is clamped to its mean over the held-out batch, at all time steps and one unit at a time.
    What it tells of the inputs is then lost to everything that reads it: the next time steps, later
    layers of the same time step, the sub-steps of a solver, the output. This is an intervention:
    unlike an attribution it stays right where the target levels off or jumps. The picture shows the
    attribution beside it, the change that the slope of the target predicts. Units that replace each
    other have small changes, as the model gets along without one of them.

    It costs a forward pass of ``max_clamped_sequences`` sequences for each unit, and a gradient
    pass. Cells whose states can't be changed from outside are skipped, with the reason in a note.

    ==================================== ====== ==================================================
    Tag                                  Record What
    ==================================== ====== ==================================================
    ``ablation/units``                   image  change of target and loss for each unit, beside
                                                the change that the slope predicts
    ``ablation/carrying_units``          scalar effective number of units that carry the target
    ``ablation/slope_disagreement``      scalar part that clamping and slopes attribute to
                                                different units
    ``ablation/needed_units``            scalar number of units without which the loss is larger
                                                beyond chance
    ``ablation/carrying_units_change``   scalar relative change of ``carrying_units`` since the
                                                previous snapshot, same sequences
    ``ablation/numbers_changed``         scalar number of these that changed beyond chance
    ``ablation/sequences``               scalar number of sequences with which units are clamped
    ``ablation/nonfinite``               scalar sequences skipped because of NaN or infinity
    ``ablation_change/<unit>``           scalar mean absolute change of the target
    ``ablation_loss_change/<unit>``      scalar mean change of the loss, if the batch has targets
    ``_ncp/ablation_units``              array  ``(4, K)``: place of each unit in the state, mean
                                                absolute change of the target, what the slope
                                                predicts, mean change of the loss; NaN if unknown
    ``_ncp/ablation_change``             array  ``(K,)``, that change of the target, for the
                                                interactive view
    ==================================== ====== ==================================================

    With several cells the name of a cell is added, as in ``ablation_encoder/units``, and with a
    target other than the prediction at the last time step that of the target. Neurons of a wired
    cell have the names of their kind, as in ``ablation_change/motor 0``. Changes come with 95 % CIs
    over sequences, which are unreliable with fewer than 16 sequences.

    Args:
        max_units: Largest number of units of a cell that are clamped. Of more, the strongest by
            slope at the first snapshot are, or by variance if there is no gradient.
        max_clamped_sequences: Largest number of sequences with which they are clamped, spread over
            the batch.
        every, name: See :class:`Callback`.
        max_sequences: See :class:`Callback`; means of units are of these sequences.
        target: See :class:`Callback`.

    Raises:
        ValueError: For fewer than one of ``max_units`` or ``max_clamped_sequences``.

    Source: mean ablation, as in Bau et al. 2020 (doi 10.1073/pnas.1907375117) with zero.
    """

    needs = frozenset({Need.STATES, Need.LOSSES, Need.STATE_CHANGES, Need.CELL_STEPS})
    default_name = "ablation"

    def __init__(
        self,
        *,
        max_units: int = 32,
        max_clamped_sequences: int = 16,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
        target: TargetLike | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences, target=target)
        self._max_units = whole_number("max_units", max_units, 1)
        self._sequences = whole_number("max_clamped_sequences", max_clamped_sequences, 1)
        self._chosen = self.keep("units", ByName(ChosenUnits))
        self._limits = self.keep("limits", ByName(AxisLimit))
        self._loss_limits = self.keep("loss_limits", ByName(AxisLimit))
        self._changes = self.keep("changes", PairedChanges())

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        part = observation.limited(self._sequences)
        of_each = {
            group: functools.partial(self._of, cell, group, observation, part)
            for cell, group in cells_with_groups(observation, self.name)
        }
        yield from for_each_supported_cell(of_each, self.name, "its units are not clamped")
        yield from small_batch_note(observation)

    def _of(
        self, cell: Trajectory, group: str, observation: Observation, part: Observation
    ) -> Iterable[Record | Note]:
        """Return the records of one cell."""
        means = unit_means(cell.values, observation.mask)
        passes = part.extra_passes
        doubts = passes.state_changes(cell.cell).doubts
        slopes = _slopes(cell.cell, means, passes)
        chosen = self._chosen[cell.cell]
        names = chosen.names or unit_names(cell.cell, len(means), part)
        by_slope = None if slopes is None else np.abs(slopes).mean(axis=0)
        strength = cell.values.var(axis=(0, 1)) if by_slope is None else by_slope
        units = chosen.choose(names, strength, self._max_units)
        result = _clamped(cell.cell, names, units, means, slopes, part, passes)
        group += observation.target_slug
        log = RecordLog(group, _SCALARS, places=_PLACES, cell=cell.cell, target=result.target)
        if result.sequences:
            limits = (self._limits[cell.cell], self._loss_limits[cell.cell])
            log.records.append(_picture(result, group, limits, observation.step))
            _log_numbers(log, result)
            log.records += _arrays(result, group, chosen)
            log.records += self._changes.compare(group, result.estimates, part, "carrying_units")
        for doubt in doubts:
            log.note(doubt)
        log.records += non_finite_count(
            group, result.non_finite, "sequences", "their target had NaN or infinity"
        )
        return log.records


def _slopes(cell: str, means: FloatArray, passes: ExtraPasses) -> FloatArray | None:
    """Return the change that slopes predict, ``(B, H)``; None without gradients."""
    try:
        return passes.clamp_slopes(cell, means)
    except NotApplicable:
        return None


def _clamped(
    cell: str,
    names: list[str],
    units: np.ndarray,
    means: FloatArray,
    slopes: FloatArray | None,
    part: Observation,
    passes: ExtraPasses,
) -> UnitAblations:
    losses = part.losses
    found = passes.clamped(cell, units, means, loss=losses is not None)
    return unit_ablations(
        [names[unit] for unit in units],
        part.target_values,
        found.values,
        slopes=None if slopes is None else slopes[:, units],
        losses=losses,
        clamped_losses=None if losses is None else found.loss,
        cell=cell,
        target=part.target,
    )


def _picture(
    result: UnitAblations, group: str, limits: tuple[AxisLimit, AxisLimit], step: int
) -> Figure:
    change, loss = limits
    predicted = result.predicted if result.predicted is not None else np.zeros(1)
    largest = max(np.nan_to_num(result.change).max(), np.nan_to_num(predicted).max())
    options: dict[str, object] = {"limit": change.covering(float(largest)), "step": step}
    if result.loss_change is not None:
        options["loss_limit"] = loss.covering(float(np.abs(result.loss_change).max()))
    return Figure(
        f"{group}/units",
        plot_unit_ablation,
        result,
        options,
        f"Mean absolute change of the {result.target} and mean change of the loss when a unit of "
        f"{result.cell} is clamped to its mean over the held-out batch; beside it the change that "
        "the slope predicts. Whiskers are 95 % CIs over sequences"
        f"{ci_caveat(result.sequences)}.",
    )


def _log_numbers(log: RecordLog, result: UnitAblations) -> None:
    estimates, count = result.estimates, len(result.names)
    for name in ("carrying_units", "slope_disagreement"):
        if name in estimates:
            log.scalar(name, estimates[name].value, estimates[name], count=count)
    if result.needed is not None:
        log.scalar("needed_units", int(result.needed.sum()), count=count)
    log.scalar("sequences", result.sequences)
    for name in result.names:
        for kind in ("change", "loss_change"):
            number = estimates.get(f"{kind}/{name}")
            if number is not None:
                group = RecordLog(f"{log.group}_{kind}", _OF_UNITS, places={}, **log.words)
                group.scalar(name, number.value, number, entry=kind, unit=name)
                log.records += group.records


def _arrays(result: UnitAblations, group: str, chosen: ChosenUnits) -> Iterator[Array]:
    assert chosen.units is not None
    unknown = np.full(len(result.names), np.nan)
    rows = [
        chosen.units.astype(np.float64),
        result.change,
        unknown if result.predicted is None else result.predicted,
        unknown if result.loss_change is None else result.loss_change,
    ]
    what = "Place of each unit in the state, change of the target, by slope, and of the loss"
    about = {"cell": result.cell, "unit_names": list(result.names)}
    yield Array(f"_ncp/{group}_units", np.stack(rows), what, axes=("number", "unit"), about=about)
    shown = {
        "cell": result.cell,
        "label": f"change of the {result.target} when held at its mean",
        "units": chosen.units.tolist(),
    }
    yield Array(
        f"_ncp/{group}_change", result.change, kind="unit values", axes=("unit",), about=shown
    )
