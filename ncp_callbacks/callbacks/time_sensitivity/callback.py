"""How the target reacts when time runs faster or slower."""

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
from ...records import Array, Figure, Note, Record, Scalar
from ...scheduling import ScheduleLike
from ...stats import SIZE, Estimate
from .analysis import TimeSensitivity as TimeSensitivityResult
from .analysis import checked_scales, share_outside, solver_share, time_sensitivity
from .plot import plot_time_sensitivity

__all__ = ["TimeSensitivity", "sensitivity"]


class TimeSensitivity(Callback):
    """How the target changes when all intervals are multiplied by a factor, and by how much each.

    Costs one forward pass with a copy of the batch for every scale but 1, and the gradient pass
    that it shares with :class:`GradientAttribution`. Left out, with a message, for a model that
    takes no intervals or a batch without them.

    ================================== ====== ====================================================
    Tag                                Record What
    ================================== ====== ====================================================
    ``time_delta/curve``               image  change of the target over scale
    ``time_delta/sensitivity_x<scale>`` scalar RMS change at that scale, in SDs of the target
    ``time_delta/elasticity``          scalar mean of dy/d ln(scale) at 1, in SDs of the target
    ``time_delta/elasticity_rms``      scalar its root mean square over sequences
    ``time_delta/sensitivity_change``  scalar change of the sensitivity at the first scale above 1
                                              since the last look, paired on the same sequences
    ``time_delta/numbers_changed``     scalar how many of these changed beyond chance
    ``time_delta/outside_x<scale>``    scalar share of held-out intervals that are at that scale
                                              outside the 1 % to 99 % quantiles of the unscaled
    ``time_delta/solver_error_x<scale>`` scalar with ``solver_error``: what twice the sub-steps
                                              alter in the change at that scale, in SDs of the
                                              target
    ``time_delta/loss_x<scale>``       scalar mean loss at that scale, and at 1; with targets
    ``time_delta/nonfinite``           scalar sequences left out because of NaN or infinity
    ``_ncp/time_delta_curve``          array  ``(3, S)``: scales, RMS change, mean change, in units
                                              of the target
    ``_ncp/time_delta_by_step``        array  ``(T,)``, mean over sequences of ``dt_t dy/d dt_t``
    ================================== ====== ====================================================

    With a target other than the prediction at the last step, ``time_delta`` is followed by its
    name, as in ``time_delta_loss/curve``. Numbers come with 95 % CIs over sequences, as does
    the curve; of fewer than 16 sequences they are unreliable.

    ``loss_x<scale>`` says whether the model still works: it is what ``target="loss"`` would be, at
    the same steps, and left out where that is the target or the targets don't fit the outputs.

    What a model does with intervals that it has not met in training is no property of what it
    learnt: ``outside_x<scale>`` says how many of the scaled ones those are, if held-out intervals
    are like those of training. And an LTC's few sub-steps are no exact solution, the less so the
    longer the interval: at a large scale ``sensitivity_x<scale>`` is partly the solver's, which
    ``solver_error`` tells apart.

    Args:
        scales: Factors, at most 8 beside 1.
        solver_error: Whether to repeat the scan with twice the sub-steps (``ode_unfolds``) of the
            LTC cells. Costs, for every scale and 1, a forward pass of twice the usual length.
        every, name, max_sequences: See :class:`Callback`.
    """

    needs = frozenset({Need.TIME_GRADIENT})
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
            raise ValueError(f"scales={list(scales)}: at most 8 beside 1, each is a curve")
        self._solver_error = solver_error
        self._limit = AxisLimit()
        self._first: TimeSensitivityResult | None = None
        self._changes = PairedChanges()

    @property
    def _shown(self) -> str | None:
        """The number that stands for the curve."""
        others = [scale for scale in self.scales if scale != 1]
        above = [scale for scale in others if scale > 1]
        return f"sensitivity_x{(above or others)[0]:g}" if others else None

    def state_dict(self) -> dict[str, Any]:
        first = None if self._first is None else self._first.to_dict()
        return {"limit": self._limit.value, "first": first, "changes": self._changes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._limit = AxisLimit(float(state["limit"]))
        self._changes.load_state_dict(state.get("changes", {}))
        first = state["first"]
        if first is not None:
            first = {k: np.asarray(v) if isinstance(v, list) else v for k, v in first.items()}
            # Looks of earlier versions had none.
            first.setdefault("by_sequence", np.empty((len(first["scales"]), 0)))
            first.setdefault("ci", np.empty((2, 0)))
        self._first = None if first is None else TimeSensitivityResult(**first)

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        if not observation.takes_time:
            missing = "the held-out batch has no time_delta"
            if observation.time_delta is not None:
                missing = "the model takes no intervals"
            raise NotApplicable(f"{missing}, so there is no time to scale")
        result = sensitivity(observation, self.scales)
        group = self.name + observation.target_slug
        yield from non_finite_count(
            group,
            result.non_finite,
            "sequences",
            "their target or its gradient had NaN or infinity",
        )
        if not result.sequences:
            return
        if result.ignores_time:
            yield Note(
                f"{self.name}: the model takes intervals, but the {result.target} does not depend "
                "on them at all: every sensitivity is exactly 0"
            )
        if result.target_sd == 0 and result.rms_change.any():
            same = "there is one sequence" if result.sequences == 1 else "it is the same for all"
            yield Note(
                f"{self.name}: the {result.target} has no SD over the sequences ({same}) for its "
                "sensitivity to be measured in, which is not logged while that is so"
            )
        else:
            known = self._first
            if known is None:
                # A curve to compare with: of each sequence nothing is needed.
                self._first = replace(
                    result, by_sequence=result.by_sequence[:, :0], ci=result.ci[:, :0]
                )
            yield Figure(
                f"{group}/curve",
                plot_time_sensitivity,
                result,
                {
                    "reference": known,
                    "limit": self._limit.covering(_needed(result)),
                    "step": observation.step,
                },
                f"Change of the {result.target} when all intervals are multiplied by a factor; "
                "RMS over held-out sequences, in SDs of the target over sequences; whiskers are "
                f"its 95 % CI{ci_caveat(result.sequences)}. Dashed: the first snapshot.",
            )
            numbers = result.estimates()
            shown = self._shown
            for scale, value in zip(result.scales, result.sensitivities, strict=True):
                if scale != 1:
                    name = f"sensitivity_x{scale:g}"
                    yield scalar_with_ci(
                        f"{group}/{name}",
                        float(value),
                        numbers[name],
                        f"RMS change of the {result.target} when all intervals are multiplied by "
                        f"{scale:g}; in SDs of the target over sequences",
                        chart=name == shown,
                    )
            if self._solver_error:
                yield from self._solver(observation, group)
            yield scalar_with_ci(
                f"{group}/elasticity",
                result.mean_elasticity,
                numbers.get("elasticity"),
                f"Mean over sequences of the slope of the {result.target} in ln(scale) at scale 1; "
                "in SDs of the target. Its sign says which way longer intervals move it",
                chart=True,
            )
            yield scalar_with_ci(
                f"{group}/elasticity_rms",
                result.relative_elasticity,
                numbers.get("elasticity_rms"),
                "Root mean square over sequences of the same slope",
            )
            yield from small_batch_note(observation)
            yield from self._changes.compare(group, numbers, observation, shown, "sensitivity")
        yield from self._losses(observation, group)
        assert observation.time_delta is not None
        for scale in self.scales:
            outside = share_outside(observation.time_delta, scale, mask=observation.mask)
            if scale != 1 and np.isfinite(outside):
                yield Scalar(
                    f"{group}/outside_x{scale:g}",
                    outside,
                    f"Share of the held-out intervals that, multiplied by {scale:g}, are outside "
                    "the 1 % to 99 % quantiles of the held-out intervals themselves: where it is "
                    "large, the model is asked about intervals that it has hardly met",
                )
        yield Array(
            f"_ncp/{group}_curve", np.stack([result.scales, result.rms_change, result.mean_change])
        )
        yield Array(f"_ncp/{group}_by_step", result.elasticity_by_step.mean(axis=0))

    def _losses(self, observation: Observation, group: str) -> Iterator[Record]:
        losses = observation.losses_at_scales(self.scales)
        if losses is None:
            return
        # Of the same sequences at all scales, so that they compare.
        finite = np.isfinite(np.stack(list(losses.values()))).all(axis=0)
        if not finite.any():
            return
        for scale in self.scales:
            known = Estimate.mean(losses[scale][finite], SIZE)
            yield scalar_with_ci(
                f"{group}/loss_x{scale:g}",
                known.value,
                known,
                f"Mean loss with all intervals multiplied by {scale:g}, over sequences where it is "
                "finite at all scales: whether the model still works when time runs "
                "faster or slower",
            )

    def _solver(self, observation: Observation, group: str) -> Iterator[Record | Note]:
        values = observation.values_at_scales(self.scales)
        try:
            finer = observation.values_with_finer_solver(self.scales)
        except NotApplicable as reason:
            yield Note(f"{self.name}: there is no solver error: {reason}")
            return
        for scale in self.scales:
            error = solver_share(values, finer, scale)
            if scale != 1 and np.isfinite(error):
                yield Scalar(
                    f"{group}/solver_error_x{scale:g}",
                    error,
                    f"RMS of what twice the solver's sub-steps alter in the change of the "
                    f"{observation.target} at {scale:g} times the intervals; in SDs of the target, "
                    f"as {group}/sensitivity_x{scale:g}, of which it is the solver's part",
                )


def _needed(result: TimeSensitivityResult) -> float:
    """How far the axis goes: whiskers are cut where they go far beyond the curve."""
    largest = float(np.abs(result.sensitivities).max())
    highest = float(np.nan_to_num(result.ci[1]).max(initial=0.0))
    return min(max(largest, highest), 1.5 * largest)


def sensitivity(observation: Observation, scales: Sequence[float]) -> TimeSensitivityResult:
    """Return the change of the target with all time_delta scaled, and its slope."""
    return time_sensitivity(
        observation.values_at_scales(scales),
        time_delta=observation.time_delta,
        time_gradient=observation.time_gradient,
        mask=observation.mask,
        target=observation.target,
    )
