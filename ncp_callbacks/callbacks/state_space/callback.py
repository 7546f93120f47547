"""Where the hidden state goes: trajectories in a basis that stays put."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
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
from ...held_out import HeldOutBatch, to_numpy
from ...model import NotApplicable
from ...model.liquid import neuron_groups
from ...observation import Need, Observation, Trajectory
from ...records import MAX_POINTS, Array, Embedding, Figure, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats.state_samples import fingerprint, state_sample
from .analysis import Basis, state_space
from .plot import plot_state_space

__all__ = ["StateSpace", "sequence_classes"]


def sequence_classes(held_out: HeldOutBatch) -> np.ndarray | None:
    """``(B,)``, the class of each sequence where the targets say so: integers, one a sequence."""
    targets = held_out.targets
    if not isinstance(targets, mx.array) or mx.issubdtype(targets.dtype, mx.floating):
        return None
    if targets.size != len(held_out):
        return None
    return np.array(targets).reshape(-1)


class StateSpace(Callback):
    """Hidden trajectories in the plane of two principal axes, for every recurrent cell.

    The axes of the first look are kept, so that pictures compare; they are fitted anew, and the
    picture says so, once they hold too little of what two axes could.

    Costs one forward pass, or nothing beside a callback that needs a gradient.

    =================================== ======== ==================================================
    Tag                                 Record   What
    =================================== ======== ==================================================
    ``hidden/pca``                      image    trajectories, coloured by time, ends by class
    ``hidden/pc1_share``                scalar   share of variance along the first axis shown
    ``hidden/pc2_share``                scalar   and along the second
    ``hidden/participation_ratio``      scalar   number of dimensions in use
    ``hidden/basis_captured``           scalar   variance in the plane shown over that in the best
    ``hidden/basis_refits``             scalar   how often the axes were fitted anew
    ``hidden/participation_change``     scalar   relative change of ``participation_ratio`` since
                                                 the last look, paired on the same sequences
    ``hidden/numbers_changed``          scalar   how many of these changed beyond chance
    ``hidden/nonfinite``                scalar   states left out because of NaN or infinity
    ``_ncp/hidden_spectrum``            array    ``(H,)``, variance shares, decreasing
    ``_ncp/hidden_sample``              array    ``(N, H)``, states at up to 64 real steps, the same
                                                 at every look and in every run with a batch of this
                                                 shape and mask; of more units ``(N, N)``, rotated
    ``_ncp/hidden_held_out``            array    ``(2, 8)``, random projections of the inputs and
                                                 mask, and of the intervals: which batch it is
    ``hidden/states``                   points   once, when the run ends: up to 2,000 states for the
                                                 Projector, with class, time, step and sequence
    =================================== ======== ==================================================

    With several cells the name of a cell is added, as in ``hidden_encoder/pca``. Shares and the
    participation ratio come with 95 % CIs over sequences; of fewer than 16 sequences they are
    unreliable. Few states that depend on each other make the participation ratio too small; its
    interval is without that bias and may lie above it, which is how a reader sees the bias.

    From ``_ncp/hidden_sample``, ``ncp-callbacks compare`` says how alike the states of two runs
    are, whatever the rotation, order and number of their units, if by ``_ncp/hidden_held_out`` both
    looked at the same sequences.

    Args:
        exclude_motor: Whether to leave the motor neurons of wired cells out of everything here:
            they are the outputs, which axes would show again (Lechner et al. 2020). Cells without
            a wiring, and such with motor neurons only, are shown whole. Costs a forward pass at the
            first look.
        refit_below: Least share of the best plane's variance at which the axes are kept.
        every, name, max_sequences: See :class:`Callback`.
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
            raise ValueError(f"refit_below={refit_below}: give a share between 0 and 1")
        self._refit_below = refit_below
        self._exclude_motor = exclude_motor
        self._kept: dict[str, npt.NDArray[np.intp] | None] = {}
        self._bases: dict[str, Basis] = {}
        self._refits: dict[str, int] = {}
        self._limits: dict[str, AxisLimit] = {}
        self._changes = PairedChanges()

    def finish(self, observation: Observation) -> Iterable[Record | Note]:
        cells = observation.states
        for cell, short in zip(cells, per_cell_names([c.cell for c in cells]), strict=True):
            shown = self._without_motor(cell, observation)
            points = _points(f"{self.name}{short}/states", shown, observation)
            if points is not None:
                yield points

    def state_dict(self) -> dict[str, Any]:
        return {
            "bases": {
                cell: {"mean": b.mean, "components": b.components}
                for cell, b in self._bases.items()
            },
            "refits": dict(self._refits),
            "limits": {cell: limit.value for cell, limit in self._limits.items()},
            "changes": self._changes.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._bases = {
            cell: Basis(np.asarray(b["mean"]), np.asarray(b["components"]))
            for cell, b in state["bases"].items()
        }
        self._refits = {cell: int(n) for cell, n in state["refits"].items()}
        self._limits = {cell: AxisLimit(float(v)) for cell, v in state["limits"].items()}
        self._changes.load_state_dict(state.get("changes", {}))

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        cells = observation.states
        if not cells:
            raise NotApplicable(observation.no_cells)
        batch = _batch(observation)
        for cell, short in zip(cells, per_cell_names([c.cell for c in cells]), strict=True):
            shown = self._without_motor(cell, observation)
            yield from self._of(shown, self.name + short, observation, batch)

    def _without_motor(self, cell: Trajectory, observation: Observation) -> Trajectory:
        if not self._exclude_motor:
            return cell
        if cell.cell not in self._kept:
            self._kept[cell.cell] = _others(cell, observation)
        kept = self._kept[cell.cell]
        return cell if kept is None else dataclasses.replace(cell, values=cell.values[..., kept])

    def _of(
        self, cell: Trajectory, group: str, observation: Observation, batch: FloatArray
    ) -> Iterable[Record | Note]:
        known = self._bases.get(cell.cell)
        result = state_space(
            cell.values,
            mask=observation.mask,
            basis=known,
            refit_below=self._refit_below,
            cell=cell.cell,
        )
        yield from non_finite_count(group, result.non_finite, "states", "of NaN or infinity")
        if not result.samples:
            return
        limit = self._limits.setdefault(cell.cell, AxisLimit())
        self._refits.setdefault(cell.cell, 0)
        if result.refitted:
            self._bases[cell.cell] = result.basis
            if known is not None:
                self._refits[cell.cell] += 1
                yield Note(
                    f"{group}/pca: the axes held less than {self._refit_below:.0%} of what two "
                    "axes can and were fitted anew; pictures before and after it have different "
                    f"axes, and {group}/basis_refits counts how often that happened"
                )
        yield Figure(
            f"{group}/pca",
            plot_state_space,
            # The first axes are not new to anybody.
            result if known is not None else dataclasses.replace(result, refitted=False),
            {
                "time_delta": observation.time_delta,
                "classes": sequence_classes(observation.held_out),
                "class_names": observation.held_out.class_names,
                "limit": limit.covering(float(np.nanmax(np.abs(result.scores)))),
                "step": observation.step,
            },
            f"States of {cell.cell} along two principal axes, fitted at the first look and kept. "
            "Colour: time since the sequence's start; end markers: class.",
        )
        numbers = result.estimates
        yield from small_batch_note(observation)
        # Along other axes shares are others, though nothing moved.
        compared = numbers
        if result.refitted:
            compared = {k: v for k, v in numbers.items() if k == "participation_ratio"}
        yield from self._changes.compare(
            group, compared, observation, "participation_ratio", "participation"
        )
        for axis, value in enumerate(result.axis_variance_ratio[:2], start=1):
            yield scalar_with_ci(
                f"{group}/pc{axis}_share",
                float(value),
                numbers.get(f"pc{axis}_share"),
                f"Share of the states' variance along axis {axis} of the picture",
                chart=axis == 1,
            )
        if np.isfinite(result.participation_ratio):
            yield scalar_with_ci(
                f"{group}/participation_ratio",
                result.participation_ratio,
                numbers.get("participation_ratio"),
                "Number of dimensions in use: (sum l)^2 / sum l^2 of the covariance's eigenvalues. "
                "Too small where states are few; the interval is without that bias and lies above "
                "it then",
                chart=True,
            )
        yield scalar_with_ci(
            f"{group}/basis_captured",
            result.captured,
            numbers.get("basis_captured"),
            "Variance in the plane of the picture over that in the best plane",
        )
        yield Scalar(
            f"{group}/basis_refits",
            self._refits[cell.cell],
            "How often the picture's axes were fitted anew",
        )
        yield Array(f"_ncp/{group}_spectrum", result.explained_variance_ratio)
        yield Array(f"_ncp/{group}_sample", state_sample(cell.values, observation.mask))
        yield Array(f"_ncp/{group}_held_out", batch)


def _others(cell: Trajectory, observation: Observation) -> npt.NDArray[np.intp] | None:
    """Columns of the neurons that are not motor neurons; None for a cell that has no such parts."""
    try:
        groups = neuron_groups(observation.cell_stepper(cell.cell, 1))
    except NotApplicable:
        return None
    columns = [group.columns for group in groups if group.name != "motor"]
    if not columns or len(columns) == len(groups):
        return None
    return np.sort(np.concatenate(columns))


def _batch(observation: Observation) -> FloatArray:
    """The fingerprint of the sequences; of tokens themselves, not of what they are embedded as."""
    held_out = observation.held_out
    inputs = to_numpy(held_out.inputs)[..., None] if held_out.tokens else observation.inputs
    return fingerprint(inputs, observation.time_delta, observation.mask)


def _points(tag: str, cell: Trajectory, observation: Observation) -> Embedding | None:
    """States of real steps, spread over all, and what is known of each; None if none is finite."""
    batch, steps, units = cell.values.shape
    mask = np.ones((batch, steps), bool) if observation.mask is None else observation.mask
    real = np.flatnonzero(mask.reshape(-1) & np.isfinite(cell.values).all(axis=-1).reshape(-1))
    if not len(real):
        return None
    if len(real) > MAX_POINTS:
        real = real[np.linspace(0, len(real) - 1, MAX_POINTS).round().astype(int)]
    sequence, step = np.divmod(real, steps)
    labels: dict[str, Any] = {}
    classes, names = sequence_classes(observation.held_out), observation.held_out.class_names
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
