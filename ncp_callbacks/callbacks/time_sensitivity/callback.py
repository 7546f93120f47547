"""Log how the target reacts when time runs faster or slower."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...callback import (
    AxisLimit,
    Callback,
    PairedChanges,
    ci_caveat,
    non_finite_count,
    scalar_with_ci,
    small_batch_note,
)
from ...model import NotApplicable
from ...observation import Need, Observation
from ...records import Array, Figure, Note, Place, Record, Scalar
from ...scheduling import ScheduleLike
from ...stats import SIZE, Estimate
from ...target_values import ScaledTargets
from .analysis import TimeSensitivity as TimeSensitivityResult
from .analysis import checked_scales, share_outside, solver_share, time_sensitivity
from .plot import plot_time_sensitivity

__all__ = ["TimeSensitivity", "sensitivity"]


# The tags are those of the docstring below. Parts in braces are filled with values.
_SCALARS = {
    "sensitivity_x<scale>": "RMS change of the {target} when all elapsed times are multiplied by "
    "{scale:g}; in SDs of the target over sequences",
    "elasticity": "Mean over sequences of the slope of the {target} in ln(scale) at scale 1; in "
    "SDs of the target. Above 0, longer elapsed times raise it",
    "elasticity_rms": "Root mean square over sequences of the slope of the {target} in ln(scale) "
    "at scale 1; in SDs of the target",
    "outside_x<scale>": "Share of the held-out elapsed times that, multiplied by {scale:g}, are "
    "outside the 1 % to 99 % quantiles of the held-out elapsed times themselves: where it is "
    "large, the model runs on elapsed times that it has hardly met",
    "solver_error_x<scale>": "RMS by which twice as many sub-steps of the solver alter the change "
    "of the {target} at {scale:g} times the elapsed times, in SDs of the target: the solver's "
    "part of {group}/sensitivity_x{scale:g}",
    "loss_x<scale>": "Mean loss with all elapsed times multiplied by {scale:g}, over sequences "
    "whose loss is finite at all scales. It shows if the model still works when time runs faster "
    "or slower",
}


class TimeSensitivity(Callback):
    """Measure how the target changes when all elapsed times are multiplied by a factor.

    It costs one forward pass with a copy of the batch for every scale but 1, and the gradient pass
    that it shares with :class:`GradientAttribution`. It does not apply to a model that takes no
    elapsed time, or to a batch without ``time_delta``.

    ================================== ====== ====================================================
    Tag                                Record What
    ================================== ====== ====================================================
    ``time_delta/curve``               image  change of the target over scale
    ``time_delta/sensitivity_x<scale>`` scalar RMS change at that scale, in SDs of the target
    ``time_delta/elasticity``          scalar mean of dy/d ln(scale) at 1, in SDs of the target
    ``time_delta/elasticity_rms``      scalar its root mean square over sequences
    ``time_delta/sensitivity_change``  scalar change of the sensitivity at the first scale above 1
                                              since the previous snapshot, paired on equal sequences
    ``time_delta/numbers_changed``     scalar number of these that changed beyond chance
    ``time_delta/outside_x<scale>``    scalar share of held-out elapsed times that are at that scale
                                              outside the 1 % to 99 % quantiles of the unscaled
    ``time_delta/solver_error_x<scale>`` scalar with ``solver_error``: how much twice the sub-steps
                                              alter the change at that scale, in SDs of the target
    ``time_delta/loss_x<scale>``       scalar mean loss at that scale, and at 1; with targets
    ``time_delta/nonfinite``           scalar sequences skipped because of NaN or infinity
    ``_ncp/time_delta_curve``          array  ``(5, S)``: scales, RMS change, mean change, ends of
                                              the CI of the RMS change, in units of the target
    ``_ncp/time_delta_by_step``        array  ``(T,)``, mean over sequences of ``dt_t dy/d dt_t``
    ================================== ====== ====================================================

    With a target other than the prediction at the last time step, ``time_delta`` is followed by its
    name, as in ``time_delta_loss/curve``. Numbers and the curve come with 95 % CIs over sequences,
    which are unreliable with fewer than 16 sequences.

    ``loss_x<scale>`` shows if the model still works. It is the value of ``target="loss"`` at that
    scale. It is skipped if the target is the loss, or if the targets don't fit the outputs.

    The reaction to elapsed times that the model has not met in training is an extrapolation.
    ``outside_x<scale>`` is the share of such elapsed times at that scale, if held-out elapsed times
    are like those of training. The few sub-steps of an LTC are no exact solution either, and the
    error grows with the elapsed time. At a large scale ``sensitivity_x<scale>`` is partly an error
    of the solver, which ``solver_error`` measures.

    Args:
        scales: Factors, at most 8 besides 1.
        solver_error: True to repeat the scan with twice the sub-steps (``ode_unfolds``) of the LTC
            cells. For every scale and 1, this costs a forward pass of twice the usual length.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        TypeError, ValueError: If ``scales`` are not finite factors above 0, or too many.
    """

    needs = frozenset({Need.TIME_GRADIENT, Need.TIME_SCALES, Need.LOSSES})
    default_name = "time_delta"

    def __init__(
        self,
        *,
        scales: Sequence[float] = (0.5, 1.0, 2.0, 5.0),
        solver_error: bool = False,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self.scales = checked_scales(scales)
        if len(self.scales) > 9:
            raise ValueError(
                f"scales={list(scales)}: each is a curve, pass at most 8 scales besides 1"
            )
        if solver_error:
            self.needs |= {Need.FINER_SOLVER}
        self._limit = self.keep("limit", AxisLimit())
        self._first: TimeSensitivityResult | None = None
        self._changes = self.keep("changes", PairedChanges())

    def state_dict(self) -> dict[str, Any]:
        first = None if self._first is None else dict(self._first)
        return {**super().state_dict(), "first": first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._first = None if state["first"] is None else _restored(state["first"])

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        _check_takes_time(observation)
        scaled = observation.extra_passes.at_time_scales(self.scales)
        result = sensitivity(observation, scaled)
        group = self.name + observation.target_slug
        yield from non_finite_count(
            group,
            result.non_finite,
            "sequences",
            "their target or its gradient had NaN or infinity",
        )
        if not result.sequences:
            return
        yield from _notes(result, self.name)
        if _has_curve(result):
            numbers = result.estimates()
            limit = self._limit.covering(_extent(result))
            options = {"reference": self._first, "limit": limit, "step": observation.step}
            yield _curve(result, group, options)
            if self._first is None:
                self._first = _without_sequences(result)
            yield from _numbers(result, group, numbers)
            if Need.FINER_SOLVER in self.needs:
                yield from _solver_errors(observation, scaled, self.name, group)
            yield from small_batch_note(observation)
            yield from self._changes.compare(
                group, numbers, observation, _headline(self.scales), "sensitivity"
            )
        yield from _losses(scaled, group)
        yield from _outside(observation, self.scales, group)
        yield from _arrays(result, group)


def _arrays(result: TimeSensitivityResult, group: str) -> Iterator[Array]:
    """Yield the curve, and the elasticity of each time step."""
    curve = np.stack([result.scales, result.rms_change, result.mean_change, *result.rms_ci])
    axes = ("scales, RMS change, mean change, low, high", "scale")
    yield Array(f"_ncp/{group}_curve", curve, kind="time curve", axes=axes)
    by_step = result.elasticity_by_step.mean(axis=0)
    yield Array(f"_ncp/{group}_by_step", by_step, kind="time by step", axes=("time step",))


def _check_takes_time(observation: Observation) -> None:
    """Raise if there are no elapsed times to scale.

    Raises:
        NotApplicable: If the model takes none, or the held-out batch has none.
    """
    if not observation.takes_time:
        missing = "the held-out batch has no time_delta, pass it to HeldOutBatch"
        if observation.time_delta is not None:
            missing = "the model takes no elapsed time"
        raise NotApplicable(f"there is no time to scale: {missing}")


def _without_sequences(result: TimeSensitivityResult) -> TimeSensitivityResult:
    """Return the curve alone, to compare with: numbers of single sequences would take memory."""
    return replace(result, by_sequence=result.by_sequence[:, :0], ci=result.ci[:, :0])


def _restored(state: Mapping[str, Any]) -> TimeSensitivityResult:
    """Return the curve to compare with, from its state."""
    fields: dict[str, Any] = {
        k: np.asarray(v) if isinstance(v, list) else v for k, v in state.items()
    }
    fields.setdefault("by_sequence", np.empty((len(fields["scales"]), 0)))
    fields.setdefault("ci", np.empty((2, 0)))
    return TimeSensitivityResult(**fields)


def _curve(result: TimeSensitivityResult, group: str, options: dict[str, Any]) -> Figure:
    return Figure(
        f"{group}/curve",
        plot_time_sensitivity,
        result,
        options,
        f"Change of the {result.target} when all elapsed times are multiplied by a factor; RMS "
        "over held-out sequences, in SDs of the target over sequences; whiskers are its 95 % CI"
        f"{ci_caveat(result.sequences)}. Dashed: the first snapshot.",
    )


def _has_curve(result: TimeSensitivityResult) -> bool:
    """Return False if the target moved but has no SD to measure this in."""
    return result.target_sd != 0 or not result.rms_change.any()


def _headline(scales: Sequence[float]) -> str | None:
    """Return the number that stands for the curve: that of the first scale above 1, if any."""
    others = [scale for scale in scales if scale != 1]
    above = [scale for scale in others if scale > 1]
    return f"sensitivity_x{(above or others)[0]:g}" if others else None


def _notes(result: TimeSensitivityResult, name: str) -> Iterator[Note]:
    """Yield notes if the target ignores elapsed time, or has no SD."""
    if result.ignores_time:
        yield Note(
            f"{name}: the model takes elapsed times, but the {result.target} does not depend on "
            "them: every sensitivity is exactly 0"
        )
    if not _has_curve(result):
        why = "is equal for all sequences"
        if result.sequences == 1:
            why = "is of a single sequence"
        yield Note(
            f"{name}: the {result.target} {why}, so it has no SD over the sequences to measure "
            "sensitivities in; they are not logged while that is so"
        )


def _numbers(
    result: TimeSensitivityResult, group: str, numbers: Mapping[str, Estimate]
) -> Iterator[Scalar]:
    """Yield the sensitivity at each scale, and the elasticity."""
    headline, default = _headline(result.scales.tolist()), TimeSensitivity.default_name
    for scale, value in zip(result.scales, result.sensitivities, strict=True):
        if scale != 1:
            name = f"sensitivity_x{scale:g}"
            description = _SCALARS["sensitivity_x<scale>"]
            yield scalar_with_ci(
                f"{group}/{name}",
                float(value),
                numbers[name],
                description.format(target=result.target, scale=scale),
                place="headline" if name == headline and group == default else "group",
            )
    for name, value in (
        ("elasticity", result.mean_elasticity),
        ("elasticity_rms", result.relative_elasticity),
    ):
        yield scalar_with_ci(
            f"{group}/{name}",
            value,
            numbers.get(name),
            _SCALARS[name].format(target=result.target),
            place="group" if name == "elasticity" else "data",
        )


def _losses(scaled: ScaledTargets, group: str) -> Iterator[Scalar]:
    losses = scaled.losses
    if losses is None:
        return
    # The sequences are equal at all scales, or else the losses would not be comparable.
    finite = np.isfinite(np.stack(list(losses.values()))).all(axis=0)
    if not finite.any():
        return
    for scale, values in losses.items():
        loss = Estimate.mean(values[finite], SIZE)
        description = _SCALARS["loss_x<scale>"].format(scale=scale)
        # At 1 it is the loss of the held-out batch, which has a card.
        place: Place = "data" if scale == 1 else "group"
        tag = f"{group}/loss_x{scale:g}"
        yield scalar_with_ci(tag, loss.value, loss, description, place=place)


def _outside(observation: Observation, scales: Sequence[float], group: str) -> Iterator[Scalar]:
    """Yield the share of elapsed times that each scale moves outside their range."""
    assert observation.time_delta is not None
    for scale in scales:
        outside = share_outside(observation.time_delta, scale, mask=observation.mask)
        if scale != 1 and np.isfinite(outside):
            description = _SCALARS["outside_x<scale>"].format(scale=scale)
            # It is a property of the batch, the same at every step.
            yield Scalar(f"{group}/outside_x{scale:g}", outside, description, place="data")


def _solver_errors(
    observation: Observation, scaled: ScaledTargets, name: str, group: str
) -> Iterator[Scalar | Note]:
    try:
        finer = observation.extra_passes.with_finer_solver(list(scaled.values))
    except NotApplicable as reason:
        yield Note(f"{name}: there is no solver error: {reason}")
        return
    for scale in scaled.values:
        error = solver_share(scaled.values, finer, scale)
        if scale != 1 and np.isfinite(error):
            description = _SCALARS["solver_error_x<scale>"].format(
                target=observation.target, scale=scale, group=group
            )
            yield Scalar(f"{group}/solver_error_x{scale:g}", error, description)


def _extent(result: TimeSensitivityResult) -> float:
    """Return the extent of the axis; whiskers far beyond the curve are cut."""
    largest = float(np.abs(result.sensitivities).max())
    highest = float(np.nan_to_num(result.ci[1]).max(initial=0.0))
    return min(max(largest, highest), 1.5 * largest)


def sensitivity(observation: Observation, scaled: ScaledTargets) -> TimeSensitivityResult:
    """Return how the target changes when all elapsed times are scaled, and the slope."""
    return time_sensitivity(
        scaled.values,
        time_delta=observation.time_delta,
        time_gradient=observation.time_gradient,
        mask=observation.mask,
        target=observation.target,
    )
