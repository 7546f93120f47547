"""Single predictions, looked at closely."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...callback import AxisLimit, Callback, non_finite_count
from ...observation import Need, Observation
from ...records import Array, Figure, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ..state_space.analysis import Basis, state_space
from ..state_space.callback import sequence_classes
from ..time_sensitivity.analysis import checked_scales
from .plot import Prediction, plot_prediction

__all__ = ["SinglePredictions"]


class SinglePredictions(Callback):
    """A sheet for each of a few held-out sequences: one prediction, and what it rests on.

    Input × gradient with its sign, step by feature; the state over time, along the first three
    principal axes of all held-out states, which are kept like those of :class:`StateSpace`; and the
    change of the target with all intervals multiplied by a factor. Means over sequences hide what
    differs between them: choose sequences that are typical, and some that are not.

    Costs nothing beside callbacks that share the gradient pass, but a forward pass of these
    sequences for every scale.

    ============================================== ====== ========================================
    Tag                                            Record What
    ============================================== ====== ========================================
    ``predictions/sample_<index>/sheet``           image  attribution, state, reaction to time
    ``predictions/sample_<index>/target``          scalar its target
    ``predictions/sample_<index>/top_share``       scalar share of the strongest feature in its
                                                          attribution
    ``predictions/sample_<index>/elasticity``      scalar slope of its target in ln(scale) at 1
    ``predictions/nonfinite``                      scalar sequences left out: NaN or infinity
    ``_ncp/predictions_sample_<index>``            array  ``(T, F)``, its attribution; 0 at padding
    ============================================== ====== ========================================

    With a target other than the prediction at the last step, ``predictions`` is followed by its
    name, as in ``predictions_loss/sample_0/sheet``. Where there are several recurrent cells, the
    state is that of the last.

    Args:
        samples: Indices of sequences in the held-out batch, at most 4.
        scales: Factors of the intervals, for the curve.
        every, name: See :class:`Callback`.

    Raises:
        TypeError, ValueError: For ``samples`` that aren't 1 to 4 different indices, when made; that
            the batch doesn't have, before the first step.
    """

    needs = frozenset({Need.INPUT_GRADIENT, Need.TIME_GRADIENT, Need.STATES})
    default_name = "predictions"
    _MOST, _COMPONENTS = 4, 3

    def __init__(
        self,
        *,
        samples: Sequence[int] = (0,),
        scales: Sequence[float] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0),
        every: ScheduleLike | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(every=every, name=name)
        try:
            self._samples = [operator.index(sample) for sample in samples]
        except TypeError:
            raise TypeError(
                f"samples={samples!r}: give a list of indices of held-out sequences, e.g. [0, 5]"
            ) from None
        different = len(set(self._samples)) == len(self._samples)
        if not 1 <= len(self._samples) <= self._MOST or not different or min(self._samples) < 0:
            raise ValueError(
                f"samples={list(samples)}: give 1 to {self._MOST} different indices from 0 on"
            )
        self._scales = checked_scales(scales)
        self._basis: Basis | None = None
        self._limits = {name: AxisLimit() for name in ("attribution", "state", "change")}

    def state_dict(self) -> dict[str, Any]:
        basis = self._basis
        return {
            "limits": {name: limit.value for name, limit in self._limits.items()},
            "basis": None
            if basis is None
            else {"mean": basis.mean, "components": basis.components},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._limits = {name: AxisLimit(float(v)) for name, v in state["limits"].items()}
        basis = state["basis"]
        self._basis = (
            None
            if basis is None
            else Basis(np.asarray(basis["mean"]), np.asarray(basis["components"]))
        )

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        missing = [s for s in self._samples if s >= observation.whole_batch]
        if missing:
            raise ValueError(
                f"samples has {missing[0]}, but the held-out batch has {observation.whole_batch} "
                "sequences, counted from 0"
            )
        group = self.name + observation.target_slug
        here = observation.indices.tolist()
        # The dry run sees two sequences only, which stand for others.
        rows = [here.index(s) if s in here else i % len(here) for i, s in enumerate(self._samples)]
        scores, found = self._states(observation)
        if not found:
            yield Note(f"{group}: without states, because {observation.no_cells}")
        changes = self._changes(observation, np.array(rows))
        if changes is None:
            yield Note(f"{group}: without a reaction to time, because no intervals reach the model")
        shown = [
            prediction
            for i, (sample, row) in enumerate(zip(self._samples, rows, strict=True))
            if (
                prediction := self._of(
                    observation, sample, row, scores, None if changes is None else changes[:, i]
                )
            )
        ]
        self._grow(shown)
        for prediction in shown:
            row = rows[self._samples.index(prediction.sample)]
            yield from self._records(prediction, group, observation, row)
        yield from non_finite_count(
            group,
            len(self._samples) - len(shown),
            "sequences",
            "their target or its gradient had NaN or infinity",
        )

    def _states(self, observation: Observation) -> tuple[FloatArray | None, bool]:
        """``(B, T, k)`` coordinates, and whether there are cells."""
        if not observation.states:
            return None, False
        cell = observation.states[-1]
        result = state_space(
            cell.values,
            mask=observation.mask,
            basis=self._basis,
            components=self._COMPONENTS,
            cell=cell.cell,
        )
        if result.samples:
            self._basis = result.basis
        return result.scores, True

    def _changes(self, observation: Observation, rows: npt.NDArray[np.intp]) -> FloatArray | None:
        """``(S, R)``, change of the targets at each scale."""
        if not observation.takes_time or observation.time_delta is None:
            return None
        scales = np.array(self._scales, np.float32)
        different = np.unique(rows)
        scaled = scales[:, None, None] * observation.time_delta[different]
        values = observation.evaluate(time_delta=scaled, rows=different).values
        at_one = values[self._scales.index(1.0)]
        with np.errstate(invalid="ignore"):
            changes: FloatArray = (values - at_one)[:, np.searchsorted(different, rows)]
        return changes

    def _of(
        self,
        observation: Observation,
        sample: int,
        row: int,
        scores: FloatArray | None,
        changes: FloatArray | None,
    ) -> Prediction | None:
        """None where it isn't finite."""
        steps = np.flatnonzero(observation.held_out.mask_array[row])
        with np.errstate(invalid="ignore", over="ignore"):
            attributed = observation.inputs[row] * observation.input_gradient[row]
        if observation.held_out.tokens:
            attributed = attributed.sum(axis=-1, keepdims=True)
        value = float(observation.target_values[row])
        if not np.isfinite(attributed[steps]).all() or not np.isfinite(value):
            return None
        held_out = observation.held_out
        classes, label = sequence_classes(held_out), ""
        if classes is not None:
            own, named = int(classes[row]), held_out.class_names
            label = named[own] if named is not None and 0 <= own < len(named) else f"class {own}"
        states = None
        if scores is not None:
            # With fewer units than axes, some axes are none.
            width = observation.states[-1].values.shape[-1]
            states = scores[row, steps, :width]
            states = None if np.isnan(states).all() else states
        return Prediction(
            sample=sample,
            value=value,
            target=observation.target,
            steps=steps,
            attribution=attributed[steps],
            feature_names=held_out.feature_names,
            states=states,
            scales=None if changes is None else np.array(self._scales),
            changes=changes,
            label=label,
        )

    def _grow(self, shown: Sequence[Prediction]) -> None:
        """One limit for all sheets, so that sequences compare, too."""
        for prediction in shown:
            for name, values in (
                ("attribution", prediction.attribution),
                ("state", prediction.states),
                ("change", prediction.changes),
            ):
                if values is not None:
                    finite = values[np.isfinite(values)]
                    self._limits[name].cover(float(np.abs(finite).max(initial=0.0)))

    def _records(
        self, prediction: Prediction, group: str, observation: Observation, row: int
    ) -> Iterator[Record]:
        tag, target = f"{group}/sample_{prediction.sample}", prediction.target
        limits = {name: limit.covering(0.0) for name, limit in self._limits.items()}
        yield Figure(
            f"{tag}/sheet",
            plot_prediction,
            prediction,
            {
                "limit": limits["attribution"],
                "state_limit": limits["state"],
                "change_limit": limits["change"],
                "step": observation.step,
            },
            f"Held-out sequence {prediction.sample}: input × gradient of the {target} (orange "
            "raises it, purple lowers it), coordinates of the state along principal axes, and the "
            "change of the target when all intervals are multiplied by a factor.",
        )
        yield Scalar(
            f"{tag}/target",
            prediction.value,
            f"The {target} of held-out sequence {prediction.sample}",
        )
        by_feature = np.abs(prediction.attribution).sum(axis=0, dtype=np.float64)
        if by_feature.sum() > 0:
            yield Scalar(
                f"{tag}/top_share",
                float(by_feature.max() / by_feature.sum()),
                "Share of the strongest feature in the absolute input × gradient of this sequence",
            )
        slope = observation.time_gradient
        if slope is not None and observation.time_delta is not None:
            steps = prediction.steps
            terms = observation.time_delta[row, steps].astype(np.float64) * slope[row, steps]
            if np.isfinite(terms).all():
                yield Scalar(
                    f"{tag}/elasticity",
                    float(terms.sum()),
                    f"Slope of the {target} of this sequence in ln(scale), at 1, all intervals "
                    "being multiplied by the scale; in units of the target",
                )
        whole = np.zeros((observation.inputs.shape[1], prediction.attribution.shape[1]))
        whole[prediction.steps] = prediction.attribution
        yield Array(f"_ncp/{group}_sample_{prediction.sample}", whole)
