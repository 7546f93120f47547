"""Log where the hidden state goes, as trajectories along axes that are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...arrays import to_numpy
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
from ...model.liquid import neuron_groups
from ...observation import Need, Observation, Trajectory
from ...records import MAX_POINTS, Array, Embedding, Figure, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import Estimate
from ...stats.state_samples import fingerprint, state_sample
from .analysis import Basis, state_space
from .analysis import StateSpace as StateSpaceResult
from .plot import plot_state_space
from .shown import ShownStates

__all__ = ["StateSpace"]

# ``pc<i>_share`` stands for the tags of both axes; ``{axis}`` is filled with their number.
_SCALARS = {
    "pc<i>_share": "Share of the states' variance along axis {axis} of the picture",
    "participation_ratio": "Number of dimensions in use: (sum l)^2 / sum l^2 of the covariance's "
    "eigenvalues. It is too small if there are few states; the CI is corrected for this bias and "
    "then lies above the number",
    "basis_captured": "Variance in the plane of the picture over that in the best plane. It is "
    "smaller with few sequences, so it has no CI",
    "basis_refits": "Number of times that the picture's axes were fitted anew",
}


class StateSpace(Callback):
    """Draw hidden trajectories in the plane of two principal axes, for every recurrent cell.

    The axes of the first snapshot are kept, so pictures are comparable. They are fitted anew, and
    the picture is marked, once they capture too little of the variance that two axes could.

    It costs one forward pass, or nothing if another callback needs a gradient.

    =================================== ======== ==================================================
    Tag                                 Record   What
    =================================== ======== ==================================================
    ``hidden/pca``                      image    trajectories, coloured by time, ends by class
    ``hidden/pc1_share``                scalar   share of variance along the first axis shown
    ``hidden/pc2_share``                scalar   share of variance along the second axis shown
    ``hidden/participation_ratio``      scalar   number of dimensions in use
    ``hidden/basis_captured``           scalar   variance in the plane shown over that in the best
    ``hidden/basis_refits``             scalar   number of times that the axes were fitted anew
    ``hidden/participation_change``     scalar   relative change of ``participation_ratio`` since
                                                 the previous snapshot, paired on equal sequences
    ``hidden/numbers_changed``          scalar   number of these that changed beyond chance
    ``hidden/nonfinite``                scalar   states skipped because of NaN or infinity
    ``_ncp/hidden_spectrum``            array    ``(H,)``, variance shares, decreasing
    ``_ncp/hidden_sample``              array    ``(N, H)``, states at up to 64 real time steps,
                                                 equal for all snapshots and all runs with a batch
                                                 of this shape and mask; with more units than that
                                                 ``(N, N)``, rotated
    ``_ncp/hidden_held_out``            array    ``(2, 8)``, random projections of the inputs and
                                                 mask, and of time_delta, to identify the batch
    ``_ncp/hidden_trajectory``          array    ``(16, 64, 3)``, states of at most 16 sequences at
                                                 64 time steps along the two axes and a third
    ``_ncp/hidden_units``               array    ``(64, H)``, mean state of each unit
    ``_ncp/hidden_elapsed``             array    ``(16, 64)``, time since the sequence's start, once
    ``hidden/states``                   points   once, when the run ends: up to 2,000 states for the
                                                 Projector, with class, time, step and sequence
    =================================== ======== ==================================================

    With several cells the name of a cell is added, as in ``hidden_encoder/pca``. Shares and the
    participation ratio come with 95 % CIs over sequences, which are unreliable with fewer than 16
    sequences. Few, dependent states make the participation ratio too small. Its CI is corrected
    for this bias, so a CI that lies above the number shows the bias.

    ``ncp-callbacks compare`` computes the similarity of the states of two runs from
    ``_ncp/hidden_sample``, for any rotation, order and number of their units, if both runs have
    equal sequences by ``_ncp/hidden_held_out``.

    Args:
        exclude_motor: True to skip the motor neurons of wired cells in all of these records. They
            are the outputs, which axes would show again (Lechner et al. 2020). Cells without a
            wiring, and cells that have only motor neurons, are shown whole. It costs a forward
            pass at the first snapshot.
        refit_below: Smallest share of the best plane's variance at which the axes are kept.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: If ``refit_below`` is not between 0 and 1.
    """

    needs = frozenset({Need.STATES})
    default_name = "hidden"

    def __init__(
        self,
        *,
        refit_below: float = 0.8,
        exclude_motor: bool = False,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        if not 0 <= refit_below <= 1:
            raise ValueError(f"refit_below={refit_below}: pass a share between 0 and 1")
        self._refit_below = refit_below
        if exclude_motor:
            self.needs |= {Need.CELL_STEPS}
        self._units: dict[str, npt.NDArray[np.intp] | None] = {}
        self._axes = self.keep("cells", ByName(_Axes))
        self._changes = self.keep("changes", PairedChanges())

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        batch = _batch(observation)
        for cell, group in self._cells(observation):
            yield from self._of(cell, group, observation, batch)

    def finish(self, observation: Observation) -> Iterable[Record | Note]:
        for cell, group in self._cells(observation):
            points = _points(f"{group}/states", cell, observation)
            if points is not None:
                yield points

    def _cells(self, observation: Observation) -> Iterator[tuple[Trajectory, str]]:
        """Yield the states of each cell to be shown, and the group of its tags."""
        for cell, group in cells_with_groups(observation, self.name):
            if cell.cell not in self._units:
                motor_shown = Need.CELL_STEPS not in self.needs
                self._units[cell.cell] = None if motor_shown else _without_motor(cell, observation)
            units = self._units[cell.cell]
            shown = cell.values if units is None else cell.values[..., units]
            yield dataclasses.replace(cell, values=shown), group

    def _of(
        self, cell: Trajectory, group: str, observation: Observation, batch: FloatArray
    ) -> Iterable[Record | Note]:
        """Yield the records of one cell."""
        axes = self._axes[cell.cell]
        result = axes.project(cell, observation.mask, self._refit_below)
        yield from non_finite_count(group, result.non_finite, "states", "of NaN or infinity")
        if not result.samples:
            return
        yield from axes.update(result, group, self._refit_below)
        yield _picture(result, group, axes, observation)
        yield from small_batch_note(observation)
        yield from self._changes.compare(
            group, _comparable(result), observation, "participation_ratio", "participation"
        )
        yield from _scalars(result, group)
        refits = _SCALARS["basis_refits"]
        yield Scalar(f"{group}/basis_refits", axes.refits, refits, place="data")
        explained = result.explained_variance_ratio
        yield Array(f"_ncp/{group}_spectrum", explained, kind="spectrum", axes=("component",))
        yield _sample(cell, group, observation)
        yield from axes.shown.arrays(cell, group, axes.basis or result.basis, observation)
        yield Array(f"_ncp/{group}_held_out", batch, kind="held out batch")


def _sample(cell: Trajectory, group: str, observation: Observation) -> Array:
    """Return some states, the same ones at each snapshot, by which runs are compared."""
    return Array(
        f"_ncp/{group}_sample",
        state_sample(cell.values, observation.mask),
        kind="state sample",
        axes=("state", "unit"),
        about={"cell": cell.cell},
    )


def _comparable(result: StateSpaceResult) -> dict[str, Estimate]:
    """Return the numbers that can be compared with those of the previous snapshot."""
    numbers = dict(result.estimates)
    if result.refitted:
        # Shares along new axes differ even if the states didn't move.
        return {k: v for k, v in numbers.items() if k == "participation_ratio"}
    return numbers


@dataclasses.dataclass
class _Axes:
    """Hold the axes of one cell's pictures.

    Attributes:
        basis: The axes that are kept; None before the first snapshot.
        refits: Number of times that they were fitted anew.
        limit: Limit of both axes.
        shown: What the interactive view shows.
    """

    basis: Basis | None = None
    refits: int = 0
    limit: AxisLimit = dataclasses.field(default_factory=AxisLimit)
    shown: ShownStates = dataclasses.field(default_factory=ShownStates)

    def project(
        self, cell: Trajectory, mask: np.ndarray | None, refit_below: float
    ) -> StateSpaceResult:
        """Return the states of a cell along these axes, or along new ones."""
        return state_space(
            cell.values, mask=mask, basis=self.basis, refit_below=refit_below, cell=cell.cell
        )

    def update(self, result: StateSpaceResult, group: str, refit_below: float) -> Iterator[Note]:
        """Keep the axes of a result, and yield a note if they replace earlier ones."""
        if not result.refitted:
            return
        if self.basis is not None:
            self.refits += 1
            yield Note(
                f"{group}/pca: the axes captured less than {refit_below:.0%} of the variance that "
                "two axes can capture, so they were fitted anew. Don't compare pictures before "
                f"and after: their axes differ. {group}/basis_refits counts how often that "
                "happened; to keep axes longer, set a smaller refit_below="
            )
        self.basis = result.basis

    def state_dict(self) -> dict[str, Any]:
        basis = None
        if self.basis is not None:
            basis = {"mean": self.basis.mean, "components": self.basis.components}
        return {
            "basis": basis,
            "refits": self.refits,
            "limit": self.limit.value,
            "shown": self.shown.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        basis = state["basis"]
        if basis is not None:
            basis = Basis(np.asarray(basis["mean"]), np.asarray(basis["components"]))
        self.basis, self.refits = basis, int(state["refits"])
        self.limit.load_state_dict(state["limit"])
        self.shown.load_state_dict(state["shown"])


def _picture(result: StateSpaceResult, group: str, axes: _Axes, observation: Observation) -> Figure:
    return Figure(
        f"{group}/pca",
        plot_state_space,
        # "new axes" is written only where they replaced others.
        dataclasses.replace(result, refitted=result.refitted and axes.refits > 0),
        {
            "time_delta": observation.time_delta,
            "classes": observation.held_out.sequence_classes,
            "class_names": observation.held_out.class_names,
            "limit": axes.limit.covering(float(np.nanmax(np.abs(result.scores)))),
            "step": observation.step,
        },
        f"States of {result.cell} along two principal axes, fitted at the first snapshot and kept. "
        "Colour: time since the sequence's start; end markers: class.",
    )


def _scalars(result: StateSpaceResult, group: str) -> Iterator[Scalar]:
    numbers = result.estimates
    for axis, value in enumerate(result.axis_variance_ratio[:2], start=1):
        yield scalar_with_ci(
            f"{group}/pc{axis}_share",
            float(value),
            numbers.get(f"pc{axis}_share"),
            _SCALARS["pc<i>_share"].format(axis=axis),
            place="group" if axis == 1 else "data",
        )
    if np.isfinite(result.participation_ratio):
        yield scalar_with_ci(
            f"{group}/participation_ratio",
            result.participation_ratio,
            numbers.get("participation_ratio"),
            _SCALARS["participation_ratio"],
        )
    captured = _SCALARS["basis_captured"]
    yield Scalar(f"{group}/basis_captured", result.captured, captured, place="data")


def _without_motor(cell: Trajectory, observation: Observation) -> npt.NDArray[np.intp] | None:
    """Return the columns of all but motor neurons; None for a cell that is shown whole."""
    try:
        groups = neuron_groups(observation.limited(2).extra_passes.cell_stepper(cell.cell))
    except NotApplicable:
        return None
    columns = [group.columns for group in groups if group.name != "motor"]
    if not columns or len(columns) == len(groups):
        return None
    return np.sort(np.concatenate(columns))


def _batch(observation: Observation) -> FloatArray:
    """Return the fingerprint of the sequences, for tokens that of the tokens themselves."""
    held_out = observation.held_out
    inputs = to_numpy(held_out.inputs)[..., None] if held_out.tokens else observation.inputs
    return fingerprint(inputs, observation.time_delta, observation.mask)


def _points(tag: str, cell: Trajectory, observation: Observation) -> Embedding | None:
    """Return states of real time steps with labels, spread over all; None if none is finite."""
    batch, steps, units = cell.values.shape
    mask = np.ones((batch, steps), bool) if observation.mask is None else observation.mask
    real = np.flatnonzero(mask.reshape(-1) & np.isfinite(cell.values).all(axis=-1).reshape(-1))
    if not len(real):
        return None
    if len(real) > MAX_POINTS:
        real = real[np.linspace(0, len(real) - 1, MAX_POINTS).round().astype(int)]
    sequence, step = np.divmod(real, steps)
    labels: dict[str, Any] = {}
    held_out = observation.held_out
    classes, names = held_out.sequence_classes, held_out.class_names
    if classes is not None:
        labels["class"] = [str(c) if names is None else names[c] for c in classes[sequence]]
    if observation.time_delta is not None:
        elapsed = np.where(mask, observation.time_delta, 0.0).cumsum(axis=1)
        labels["time"] = elapsed[sequence, step]
    labels |= {"step": step, "sequence": observation.indices[sequence]}
    return Embedding(
        tag,
        cell.values.reshape(-1, units)[real],
        labels,
        f"States of {cell.cell} over the held-out batch, at the end of the run",
    )
