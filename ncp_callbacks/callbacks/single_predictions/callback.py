"""Log single predictions in detail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...callback import AxisLimit, Callback, non_finite_count, sequence_indices
from ...held_out import HeldOutBatch
from ...observation import Need, Observation
from ...records import Array, Figure, Note, Place, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import class_name
from ..state_space.analysis import Basis, StateSpace, state_space
from ..time_sensitivity.analysis import checked_scales
from .plot import Prediction, plot_prediction

__all__ = ["SinglePredictions"]


_MAX_SEQUENCES, _COMPONENTS = 4, 3
_DESCRIPTIONS = {
    "overview": "Held-out sequence {index}: input × gradient of the {target} (orange raises it, "
    "purple lowers it), coordinates of the state along principal axes, and the change of the "
    "target when all elapsed times are multiplied by a factor",
    "target": "The {target} of held-out sequence {index}",
    "top_share": "Share of the strongest feature in the absolute input × gradient of this sequence",
    "elasticity": "Slope of the {target} of this sequence in ln(scale), at 1, when all elapsed "
    "times are multiplied by the scale; in units of the target",
}


class SinglePredictions(Callback):
    """Show single held-out sequences: attribution, state, reaction to elapsed time.

    The attribution is the signed input × gradient, by time step and feature. The state is shown
    over time along the first three principal axes of all held-out states, which are kept like those
    of :class:`StateSpace`. The reaction is the change of the target when all elapsed times are
    multiplied by a factor. Means over sequences hide how these differ: choose sequences that are
    typical, and some that are not.

    The gradient pass is shared with other callbacks. Each scale takes one forward pass of these
    sequences.

    ================================================ ====== ========================================
    Tag                                              Record What
    ================================================ ====== ========================================
    ``predictions/sequence_<index>/overview``        image  attribution, state, reaction to time
    ``predictions/sequence_<index>/target``          scalar its target
    ``predictions/sequence_<index>/top_share``       scalar share of the strongest feature in its
                                                            attribution
    ``predictions/sequence_<index>/elasticity``      scalar slope of its target in ln(scale) at 1
    ``predictions/nonfinite``                        scalar sequences skipped because of NaN or
                                                            infinity
    ``_ncp/predictions_sequence_<index>``            array  ``(T, F)``, its attribution; 0 at
                                                            padding
    ================================================ ====== ========================================

    With a target other than the prediction at the last time step, ``predictions`` is followed by
    its name, as in ``predictions_loss/sequence_0/overview``. With several recurrent cells, the
    state is that of the last.

    Args:
        sequences: Indices of sequences in the held-out batch, at most 4.
        scales: Factors of the elapsed times, for the curve.
        every, name: See :class:`Callback`.

    Raises:
        TypeError, ValueError: For ``sequences`` that aren't 1 to 4 different indices.
        ValueError: Before the first step, for indices that the held-out batch doesn't have.
    """

    needs = frozenset({Need.INPUT_GRADIENT, Need.TIME_GRADIENT, Need.STATES, Need.VARIANTS})
    default_name = "predictions"

    def __init__(
        self,
        *,
        sequences: Sequence[int] = (0,),
        scales: Sequence[float] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0),
        every: ScheduleLike | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(every=every, name=name)
        self._sequences = sequence_indices(sequences, _MAX_SEQUENCES)
        self._scales = checked_scales(scales)
        self._basis: Basis | None = None
        names = ("attribution", "state", "change")
        self._limits = {name: self.keep(name, AxisLimit()) for name in names}

    def state_dict(self) -> dict[str, Any]:
        basis = self._basis
        saved = None if basis is None else {"mean": basis.mean, "components": basis.components}
        return {**super().state_dict(), "basis": saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        saved = state["basis"]
        self._basis = None
        if saved is not None:
            self._basis = Basis(np.asarray(saved["mean"]), np.asarray(saved["components"]))

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        missing = [s for s in self._sequences if s >= observation.whole_batch]
        if missing:
            raise ValueError(
                f"sequences={self._sequences}: the held-out batch has {observation.whole_batch} "
                f"sequences; pass indices from 0 to {observation.whole_batch - 1}"
            )
        group = self.name + observation.target_slug
        if not observation.states:
            yield Note(f"{group}: the pictures show no states, because {observation.no_cells}")
        # The dry run has two sequences only, which stand for others.
        here = observation.indices.tolist()
        places = [here.index(s) if s in here else i % len(here)
                  for i, s in enumerate(self._sequences)]  # fmt: skip
        space = _state_space(observation, self._basis)
        if space is not None and space.samples:
            self._basis = space.basis
        coordinates = None if space is None else space.scores
        changes = _target_changes(observation, np.array(places), self._scales)
        if changes is None:
            yield Note(
                f"{group}: the pictures show no reaction to time, because no elapsed times reach "
                "the model; pass time_delta= to HeldOutBatch if the model takes them"
            )
        shown = []
        for i, (index, place) in enumerate(zip(self._sequences, places, strict=True)):
            change = None if changes is None else changes[:, i]
            found = _prediction(observation, index, place, coordinates, self._scales, change)
            if found is not None:
                shown.append((found, place))
        for found, _ in shown:
            _grow(self._limits, found)
        for found, place in shown:
            yield _overview(found, self._limits, group, observation.step)
            yield from _scalars(found, group, observation, place)
        yield from non_finite_count(
            group,
            len(self._sequences) - len(shown),
            "sequences",
            "their target or its gradient had NaN or infinity",
        )


def _state_space(observation: Observation, basis: Basis | None) -> StateSpace | None:
    """Return the last cell's states along principal axes; None without cells."""
    if not observation.states:
        return None
    cell = observation.states[-1]
    return state_space(
        cell.values, mask=observation.mask, basis=basis, components=_COMPONENTS, cell=cell.cell
    )


def _target_changes(
    observation: Observation, places: npt.NDArray[np.intp], scales: Sequence[float]
) -> FloatArray | None:
    """Return ``(S, R)`` changes of the targets at each scale; None without elapsed times."""
    if not observation.takes_time or observation.time_delta is None:
        return None
    factors, different = np.array(scales, np.float32), np.unique(places)
    scaled = factors[:, None, None] * observation.time_delta[different]
    values = observation.extra_passes.evaluate(time_delta=scaled, sequences=different).values
    with np.errstate(invalid="ignore"):
        changes = values - values[scales.index(1.0)]
    return np.asarray(changes[:, np.searchsorted(different, places)])


def _prediction(
    observation: Observation,
    index: int,
    place: int,
    coordinates: FloatArray | None,
    scales: Sequence[float],
    changes: FloatArray | None,
) -> Prediction | None:
    """Return the prediction of the sequence at a place of the observation; None if not finite."""
    held_out = observation.held_out
    steps = np.flatnonzero(held_out.mask_array[place])
    with np.errstate(invalid="ignore", over="ignore"):
        attribution = held_out.by_feature(
            observation.inputs[place] * observation.input_gradient[place]
        )
    value = float(observation.target_values[place])
    if not np.isfinite(attribution[steps]).all() or not np.isfinite(value):
        return None
    states = None
    if coordinates is not None:
        # A cell with fewer units than axes has fewer coordinates.
        units = observation.states[-1].values.shape[-1]
        states = coordinates[place, steps, :units]
        states = None if np.isnan(states).all() else states
    return Prediction(
        sequence=index,
        value=value,
        target=observation.target,
        time_steps=steps,
        attribution=attribution[steps],
        feature_names=held_out.feature_names,
        states=states,
        scales=None if changes is None else np.array(scales),
        changes=changes,
        label=_class_name(held_out, place),
    )


def _class_name(held_out: HeldOutBatch, place: int) -> str:
    """Return the name of a sequence's class; "" without classes."""
    classes, names = held_out.sequence_classes, held_out.class_names
    if classes is None:
        return ""
    return class_name(names, int(classes[place]))


def _grow(limits: Mapping[str, AxisLimit], found: Prediction) -> None:
    """Grow the limits, which all sequences share so that their pictures compare."""
    shown = {"attribution": found.attribution, "state": found.states, "change": found.changes}
    for name, values in shown.items():
        if values is not None:
            finite = values[np.isfinite(values)]
            limits[name].cover(float(np.abs(finite).max(initial=0.0)))


def _overview(found: Prediction, limits: Mapping[str, AxisLimit], group: str, step: int) -> Figure:
    options = {
        "limit": limits["attribution"].covering(0.0),
        "state_limit": limits["state"].covering(0.0),
        "change_limit": limits["change"].covering(0.0),
        "step": step,
    }
    description = _DESCRIPTIONS["overview"].format(index=found.sequence, target=found.target)
    tag = f"{group}/sequence_{found.sequence}/overview"
    return Figure(tag, plot_prediction, found, options, description)


def _scalars(
    found: Prediction, group: str, observation: Observation, place: int
) -> Iterator[Record]:
    tag, index = f"{group}/sequence_{found.sequence}", found.sequence

    def scalar(name: str, value: float) -> Scalar:
        description = _DESCRIPTIONS[name].format(index=index, target=found.target)
        place: Place = "group" if name == "target" else "data"
        return Scalar(f"{tag}/{name}", value, description, place=place)

    yield scalar("target", found.value)
    by_feature = np.abs(found.attribution).sum(axis=0, dtype=np.float64)
    if by_feature.sum() > 0:
        yield scalar("top_share", float(by_feature.max() / by_feature.sum()))
    dt, gradient, steps = observation.time_delta, observation.time_gradient, found.time_steps
    if dt is not None and gradient is not None:
        terms = dt[place, steps].astype(np.float64) * gradient[place, steps]
        if np.isfinite(terms).all():
            yield scalar("elasticity", float(terms.sum()))
    whole = np.zeros((observation.inputs.shape[1], found.attribution.shape[1]))
    whole[steps] = found.attribution
    yield Array(f"_ncp/{group}_sequence_{index}", whole, axes=("time step", "feature"))
