"""Log which time step's input acts on which time step's output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...attribution import (
    Attribution,
    AttributionMethod,
    InputXGradient,
    IntegratedGradients,
    method_from,
    summarize,
)
from ...attribution.compute import baseline_of, time_baseline_of
from ...callback import (
    AxisLimit,
    Callback,
    PairedChanges,
    non_finite_count,
    small_batch_note,
    whole_number,
)
from ...model import NotApplicable
from ...observation import Need, Observation
from ...records import Array, Figure, Note, Place, Record
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import SIZE, Estimate
from ...target_values import TargetValues
from ..gradient_attribution.plot import plot_feature_importance
from ..record_log import RecordLog
from .analysis import OutputTime as OutputTimeResult
from .analysis import binned, output_steps, output_time
from .plot import needed_share, plot_output_time

__all__ = ["OutputTime"]

_FUTURE = (
    "Share of {what} after an output in the influence of {what} on it: exactly 0 for a model that "
    "does not see the future"
)
_LAG = "Mean distance from an input to an output after it, weighted by influence; in {unit}"
# Descriptions of the scalars.
SCALARS = {
    "sequences": "Number of held-out sequences",
    "strength": "Mean absolute input × gradient of the {target}, summed over input time steps and "
    "features, mean over output time steps; in units of the target",
    "future_share": _FUTURE.format(what="inputs"),
    "future_share_time_delta": _FUTURE.format(what="elapsed times"),
    "own_share": "Share of an output's own time step in the influence of inputs on it: 1 if there "
    "is no memory",
    "mean_lag": _LAG.format(unit="time steps"),
    "mean_lag_time": _LAG.format(unit="units of time_delta"),
    "local_strength": "Mean absolute {method} of the {target} to the input of the same time step, "
    "with the state before it held fixed, summed over features; in units of the target",
    "local_error": "Difference between the attributions by every other step of the integral and "
    "by all steps, relative to the RMS norm of the latter: an upper estimate of the error; 99th "
    "percentile over sequences",
}
_PLACES: Mapping[str, Place] = {
    "strength": "group",
    "own_share": "group",
    "mean_lag": "group",
    "mean_lag_time": "group",
    "local_strength": "group",
    "local_error": "group",
    "future_share": "nonzero",
    "future_share_time_delta": "nonzero",
}


class OutputTime(Callback):
    """Log which input time steps act on which outputs, if each time step has an output.

    It takes input × gradient of the target at up to ``max_output_steps`` output time steps, with a
    gradient pass for each, of ``max_sequences`` sequences. A recurrent network that runs forwards
    can't know the future, so its ``future_share`` is exactly 0. Any other value is a leak, or a
    model that reads in both directions.

    The attribution of each output to the input of its own time step is computed for every time
    step, by one extra pass of two copies: with the states that the cells receive held fixed, an
    output depends on its own time step's input only. With ``local="integrated_gradients"`` it is
    the last time step's part in the integrated gradients of every prefix of a sequence, from the
    mean of each feature, and takes ``n_steps`` such passes rather than as many for every prefix. A
    layer that runs over the whole sequence by itself, such as ``nn.GRU``, doesn't allow that:
    ``local`` is then skipped, with a note.

    ========================================= ====== =============================================
    Tag                                       Record What
    ========================================= ====== =============================================
    ``output_time/matrix``                    image  influence, input step by output step, and
                                                     against how long before it was
    ``output_time/strength``                  scalar sum over input steps, mean over output steps
    ``output_time/future_share``              scalar share of influence from after the output
    ``output_time/future_share_time_delta``   scalar share of influence of ``time_delta`` from
                                                     after the output
    ``output_time/own_share``                 scalar share of influence from the output's own step
    ``output_time/mean_lag``                  scalar how many steps before the output, on average
    ``output_time/mean_lag_time``             scalar elapsed time before the output, on average
    ``output_time/local``                     image  attribution of outputs to their own step's
                                                     input, time step by feature
    ``output_time/local_strength``            scalar mean over steps of its absolute value
    ``output_time/local_error``               scalar with ``local="integrated_gradients"``:
                                                     difference of the maps by every other step
                                                     of the integral from those by all
    ``output_time/mean_lag_change``           scalar change of ``mean_lag`` since the previous
                                                     snapshot, same sequences
    ``output_time/numbers_changed``           scalar how many of these changed beyond chance
    ``output_time/sequences``                 scalar number of sequences
    ``output_time/nonfinite``                 scalar number of skipped sequences: NaN or infinity
    ``_ncp/output_time_influence``            array  ``(T, K)``, the matrix; NaN where no sequence
                                                     has both steps
    ``_ncp/output_time_lag``                  array  ``(2, K)``, output steps, mean lag of each
    ``_ncp/output_time_profile``              array  ``(T,)``, share of influence by lag in steps
    ``_ncp/output_time_time_profile``         array  ``(2, N)``, bins of elapsed time (where they
                                                     begin), share of influence in each
    ``_ncp/output_time_local``                array  ``(T, F)``, mean over sequences of the absolute
                                                     value
    ========================================= ====== =============================================

    With another target than the prediction, ``output_time`` is followed by its name, as in
    ``output_time_loss/matrix``. The time step at which the monitor takes its target has no effect
    here. A prediction is the largest output of each time step. Numbers come with 95 % CIs over
    sequences, which are unreliable for fewer than 16 sequences, as by default.

    Args:
        max_output_steps: Largest number of output time steps, spread over the sequence.
        local: The method that attributes outputs to their own time step's input:
            ``"input_x_gradient"``, which True also is, ``"integrated_gradients"``, or an object of
            either class; False to skip it.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For fewer than 2 ``max_output_steps``, or another ``local``.
    """

    needs = frozenset({Need.OUTPUT_STEPS})
    default_name = "output_time"
    max_sequences: int | None = 8

    def __init__(
        self,
        *,
        max_output_steps: int = 32,
        local: bool | str | AttributionMethod = True,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = 8,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self.max_sequences = max_sequences
        self._max_output_steps = whole_number("max_output_steps", max_output_steps, 2)
        self._local = _local_method(local)
        names = ("influence", "share", "lag", "time", "local")
        self._limits = {name: self.keep(name, AxisLimit()) for name in names}
        self._changes = self.keep("changes", PairedChanges())

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        target, slug = _every_step_target(observation)
        log = RecordLog(self.name + slug, SCALARS, places=_PLACES, target=target)
        result = _influence(
            observation, target, self._max_output_steps, self._limits["time"].covering
        )
        if result.sequences:
            yield from small_batch_note(observation)
            _log_numbers(log, result)
            log.records += self._changes.compare(
                log.group, result.estimates, observation, "mean_lag"
            )
            log.records.append(_matrix(result, log.group, self._limits, observation.step))
            _log_arrays(log, result)
            if self._local is not None:
                _log_own_step(log, observation, self._local, self._limits["local"])
        yield from log.records
        yield from non_finite_count(
            log.group, result.non_finite, "sequences", "their attribution had NaN or infinity"
        )


def _every_step_target(observation: Observation) -> tuple[str, str]:
    """Return name and end of tags of the target at every time step.

    Raises:
        NotApplicable: If there is none.
    """
    if observation.every_step is None:
        if observation.horizon is not None:
            raise NotApplicable(
                f"the model returns a forecast of {observation.horizon} steps, and no outputs at "
                "the time steps of its inputs: pass horizon=False if it does"
            )
        if observation.outputs.ndim == 3:
            raise NotApplicable(
                "target= is a function of all outputs, so no time step has a target of its own: "
                "pass 'prediction', 'loss' or an output's index"
            )
        raise NotApplicable("the model has one output per sequence, so there are none over time")
    if observation.inputs.shape[1] < 2:
        raise NotApplicable("the held-out sequences have one time step")
    return observation.every_step


def _influence(
    observation: Observation,
    target: str,
    max_output_steps: int,
    time_limit: Callable[[float], float],
) -> OutputTimeResult:
    """Return the influence of input time steps on output time steps, by input × gradient."""
    steps = output_steps(observation.held_out.mask_array, max_output_steps)
    found = observation.extra_passes.at_steps(steps.tolist())
    assert found.input_gradient is not None
    with np.errstate(invalid="ignore", over="ignore"):
        attributed = observation.held_out.by_feature(
            observation.inputs[None] * found.input_gradient
        )
        to_time_delta = None
        if found.time_gradient is not None and observation.time_delta is not None:
            to_time_delta = observation.time_delta[None] * found.time_gradient
    return output_time(
        attributed,
        steps,
        attributed_to_time_delta=to_time_delta,
        time_delta=observation.time_delta,
        mask=observation.mask,
        time_limit=time_limit,
        target=target,
    )


def _matrix(
    result: OutputTimeResult, group: str, limits: Mapping[str, AxisLimit], step: int
) -> Figure:
    influence, _ = binned(result.influence)
    lag = limits["lag"].covering(result.reach)
    profiles = [needed_share(result, lag)]
    if result.time_profile is not None:
        profiles.append(float(np.nanmax(result.time_profile)))
    return Figure(
        f"{group}/matrix",
        plot_output_time,
        result,
        {
            "limit": limits["influence"].covering(float(np.nanmax(influence))),
            "share": limits["share"].covering(max(profiles)),
            "lag": lag,
            "step": step,
        },
        f"Mean absolute input × gradient of the {result.target}, input time step by output time "
        "step; the line is the mean lag. Right: shares against the time from the input to the "
        "output. Below the diagonal is the past.",
    )


def _log_numbers(log: RecordLog, result: OutputTimeResult) -> None:
    log.scalar("sequences", result.sequences)
    estimates = result.estimates
    strength = float(np.nansum(result.influence, axis=0).mean())
    log.scalar("strength", strength, estimates["strength"])
    for name, share, what in (
        ("future_share", result.future_share, "inputs"),
        ("future_share_time_delta", result.future_share_time_delta, "elapsed times"),
    ):
        if share is not None and np.isfinite(share):
            log.scalar(name, share, estimates[name])
            if share > 0:
                log.note(
                    f"outputs depend on {what} of later steps; {log.group}/{name} is their share. "
                    "A model that reads in both directions does so; a model that predicts must not"
                )
    for name, value in (
        ("own_share", result.own_share),
        ("mean_lag", result.lag),
        ("mean_lag_time", result.lag_time),
    ):
        if value is not None and np.isfinite(value):
            log.scalar(name, value, estimates[name])


def _log_arrays(log: RecordLog, result: OutputTimeResult) -> None:
    arrays = {
        "influence": result.influence,
        "lag": np.stack([result.steps, result.lag_by_step]),
        "profile": result.profile,
    }
    if result.time_edges is not None and result.time_profile is not None:
        arrays["time_profile"] = np.stack([result.time_edges[:-1], result.time_profile])
    log.records += [Array(f"_ncp/{log.group}_{name}", array) for name, array in arrays.items()]


def _log_own_step(
    log: RecordLog, observation: Observation, method: AttributionMethod, limit: AxisLimit
) -> None:
    """Log the attribution of each output to the input of its own time step."""
    target = log.words["target"]
    skipped = f"{log.group}/local is skipped: "
    try:
        found, error, mixed = _to_own_steps(observation, method)
    except NotApplicable as reason:
        log.records.append(Note(f"{skipped}{reason}"))
        return
    if mixed:
        log.records.append(
            Note(
                f"{skipped}outputs depend on the inputs of other steps even with the states of the "
                "recurrent cells held fixed"
            )
        )
        return
    result = summarize(
        replace(found, inputs=observation.held_out.by_feature(found.inputs)),
        mask=observation.mask,
        target=f"{target}, own input",
        feature_names=observation.held_out.feature_names,
        one_target=False,
    )
    if not result.sequences:
        return
    if error is not None and np.isfinite(error).any():
        log.scalar("local_error", float(np.quantile(error[np.isfinite(error)], 0.99)))
    real = observation.held_out.mask_array.any(0)
    strength = float(result.importance.sum(axis=1)[real].mean())
    estimate = Estimate.mean(result.strength_by_sequence / real.sum(), SIZE)
    log.scalar("local_strength", strength, estimate, method=method.label)
    log.records.append(
        Figure(
            f"{log.group}/local",
            plot_feature_importance,
            result,
            {
                "limit": limit.covering(float(np.abs(result.signed).max())),
                "step": observation.step,
            },
            f"{method.title} of the {target} to the input of the same time step, with the state "
            "before it held fixed: orange raises it, purple lowers it. Bars: share of each feature "
            "in the mean absolute value.",
        )
    )
    axes = ("time step", "feature")
    log.records.append(Array(f"_ncp/{log.group}_local", result.importance, axes=axes))


def _local_method(local: bool | str | AttributionMethod) -> AttributionMethod | None:
    if local is False:
        return None
    method = method_from(InputXGradient() if isinstance(local, bool) else local, "local")
    if not isinstance(method, InputXGradient | IntegratedGradients):
        raise ValueError(
            f"local={local!r}: pass 'input_x_gradient', 'integrated_gradients', True or False. "
            "Other methods can't be run with the states held fixed"
        )
    return method


def _to_own_steps(
    observation: Observation, method: AttributionMethod
) -> tuple[Attribution, FloatArray | None, bool]:
    """Attribute each time step's output to its own input.

    The whole of each prefix of a sequence moves from the baseline, and the last time step of its
    attribution is kept. A recurrent network that runs forwards has all prefixes in one pass: the
    states before each time step are those of the pass, and only the step itself is differentiated.

    Returns:
        The attribution; for integrated gradients an estimate of its error, ``(B,)``, else None; and
        True where outputs depend on the inputs of other time steps all the same.
    """
    mixed = False

    def evaluate(
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        sequences: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
    ) -> TargetValues:
        nonlocal mixed
        found, others = observation.extra_passes.at_own_steps(
            None if inputs is None else inputs.astype(np.float32),
            None if time_delta is None else time_delta.astype(np.float32),
        )
        mixed = mixed or others
        return found

    dt = observation.time_delta if observation.takes_time else None
    moved = (
        observation.inputs.astype(np.float64), None if dt is None else dt.astype(np.float64)
    )  # fmt: skip
    baselines: dict[str, Any] = {
        "baseline": baseline_of(observation, method.default_baseline),
        "time_baseline": time_baseline_of(observation, method.default_time_baseline),
    }
    with np.errstate(invalid="ignore", over="ignore"):
        if isinstance(method, IntegratedGradients):
            maps, error = method.attribute_with_error(
                evaluate, *moved, **baselines, mask=observation.mask
            )
        else:
            maps = method.attribute(evaluate, *moved, **baselines, mask=observation.mask)
            error = None
    return Attribution(method, maps.inputs, maps.time_delta), error, mixed
