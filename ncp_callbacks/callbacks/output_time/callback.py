"""Which step's input acts on which step's output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...attribution import (
    DEFAULT_METHOD,
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
    scalar_with_ci,
    small_batch_note,
)
from ...model import NotApplicable
from ...observation import Observation
from ...records import Array, Figure, Note, Record, Scalar
from ...results import FloatArray
from ...scheduling import ScheduleLike
from ...stats import SIZE, Estimate
from ...target_values import TargetValues
from ..gradient_attribution.plot import plot_feature_importance
from .analysis import OutputTime as OutputTimeResult
from .analysis import binned, output_steps, output_time
from .plot import needed_share, plot_output_time

__all__ = ["OutputTime"]


class OutputTime(Callback):
    """For a model with an output at every step: which input steps act on which of them.

    Input × gradient of the target at up to ``steps`` output steps, a gradient pass for each, of
    ``max_sequences`` sequences. A recurrent network that runs forwards can't know the future, so
    ``future_share`` is exactly 0 there: anything else is a leak, or a model that reads in both
    directions.

    What of each output is attributed to the input of its own step is analysed for every step, by
    one extra pass of two copies: with the states held fixed that the cells are given, an output
    depends on its own step's input only. With ``local="integrated_gradients"`` it is the last
    step's part in the integrated gradients of every prefix of a sequence, from the mean of each
    feature, and takes ``n_steps`` such passes rather than as many for every prefix. A layer that
    runs over the whole sequence by itself, such as ``nn.GRU``, doesn't allow that; a note says so,
    and ``local`` is skipped.

    ========================================= ====== =============================================
    Tag                                       Record What
    ========================================= ====== =============================================
    ``output_time/matrix``                    image  influence, input step by output step; the same
                                                     against how long ago it was
    ``output_time/strength``                  scalar sum over input steps, mean over output steps
    ``output_time/future_share``              scalar share of influence from after the output
    ``output_time/future_share_intervals``    scalar likewise of intervals after it
    ``output_time/own_share``                 scalar share of influence from the output's own step
    ``output_time/mean_lag``                  scalar how many steps before the output, on average
    ``output_time/mean_lag_time``             scalar the same in units of ``time_delta``
    ``output_time/local``                     image  what of outputs is attributed to their own
                                                     step's input, step by feature
    ``output_time/local_strength``            scalar mean over steps of its absolute value
    ``output_time/local_error``               scalar with ``local="integrated_gradients"``: how
                                                     far the maps by every other step of the
                                                     integral are from those by all
    ``output_time/mean_lag_change``           scalar change of ``mean_lag`` since the last look,
                                                     paired on the same sequences
    ``output_time/numbers_changed``           scalar how many of these changed beyond chance
    ``output_time/sequences``                 scalar sequences that went in
    ``output_time/nonfinite``                 scalar sequences left out because of NaN or infinity
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
    ``output_time_loss/matrix``; where in the sequence the monitor takes its target doesn't matter
    here. A prediction is the largest output of each step. Numbers come with 95 % CIs over
    sequences, which of fewer than 16, as by default, are unreliable.

    Args:
        steps: How many output steps, spread over the sequence.
        local: The method that attributes outputs to their own step's input:
            ``"input_x_gradient"``, which True also is, ``"integrated_gradients"``, or an object of
            either class; False: skip it.
        every, name, max_sequences: See :class:`Callback`.

    Raises:
        ValueError: For fewer than 2 ``steps``, or another ``local``.
    """

    default_name = "output_time"
    max_sequences: int | None = 8

    def __init__(
        self,
        *,
        steps: int = 32,
        local: bool | str | AttributionMethod = True,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = 8,
    ) -> None:
        super().__init__(every=every, name=name, max_sequences=max_sequences)
        self.max_sequences = max_sequences
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"steps={steps!r}: give a whole number of at least 2")
        self._steps, self._local = steps, _local_method(local)
        names = ("influence", "share", "lag", "time", "local")
        self._limits = {name: AxisLimit() for name in names}
        self._changes = PairedChanges()

    def state_dict(self) -> dict[str, Any]:
        limits = {name: limit.value for name, limit in self._limits.items()}
        return {"limits": limits, "changes": self._changes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._limits = {name: AxisLimit(float(v)) for name, v in state["limits"].items()}
        self._changes.load_state_dict(state.get("changes", {}))

    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        named = observation.every_step
        if named is None:
            why = "the model gives one output per sequence, so there are none over time"
            if observation.outputs.ndim == 3:
                why = (
                    "target= is a function of all outputs, so there is none of a step: give "
                    "'prediction', 'loss' or an output's index"
                )
            raise NotApplicable(why)
        if observation.inputs.shape[1] < 2:
            raise NotApplicable("the held-out sequences have one step")
        target, slug = named
        group = self.name + slug
        result = self._over_time(observation, target)
        if result.sequences:
            yield from small_batch_note(observation)
            yield from self._numbers(result, group)
            yield from self._changes.compare(group, result.estimates, observation, "mean_lag")
            yield self._matrix(result, group, observation)
            yield from self._arrays(result, group)
            if self._local is not None:
                yield from self._own_step(observation, group, target, self._local)
        yield from non_finite_count(
            group, result.non_finite, "sequences", "their attribution had NaN or infinity"
        )

    def _over_time(self, observation: Observation, target: str) -> OutputTimeResult:
        real = observation.held_out.mask_array
        steps = output_steps(real, self._steps)
        seen = observation.at_steps(steps.tolist())
        assert seen.input_gradient is not None
        with np.errstate(invalid="ignore", over="ignore"):
            attributed = observation.inputs[None] * seen.input_gradient
            if observation.held_out.tokens:
                attributed = attributed.sum(axis=-1, keepdims=True)
            intervals = None
            if seen.time_gradient is not None and observation.time_delta is not None:
                intervals = observation.time_delta[None] * seen.time_gradient
        return output_time(
            attributed,
            steps,
            intervals=intervals,
            time_delta=observation.time_delta,
            mask=observation.mask,
            time_limit=self._limits["time"].covering,
            target=target,
        )

    def _numbers(self, result: OutputTimeResult, group: str) -> Iterator[Record | Note]:
        strength = float(np.nansum(result.influence, axis=0).mean())
        yield Scalar(f"{group}/sequences", result.sequences, "Held-out sequences that went in")
        numbers = result.estimates
        yield scalar_with_ci(
            f"{group}/strength",
            strength,
            numbers["strength"],
            f"Mean absolute input × gradient of the {result.target}, summed over input steps and "
            "features, mean over output steps; in units of the target",
        )
        for name, value, what in (
            ("future_share", result.future_share, "inputs"),
            ("future_share_intervals", result.intervals_future_share, "intervals"),
        ):
            if value is not None and np.isfinite(value):
                yield scalar_with_ci(
                    f"{group}/{name}",
                    value,
                    numbers[name],
                    f"Share of {what} after an output in the influence of {what} on it: exactly 0 "
                    "for a model that doesn't see the future",
                )
                if value > 0:
                    yield Note(
                        f"{group}: outputs depend on {what} of later steps; {group}/{name} is "
                        "their share. A model that reads in both directions does so, one that is "
                        "to predict must not"
                    )
        if np.isfinite(result.own_share):
            yield scalar_with_ci(
                f"{group}/own_share",
                result.own_share,
                numbers["own_share"],
                "Share of an output's own step in the influence of inputs on it: 1 no memory",
                chart=True,
            )
        for name, lag, unit in (
            ("mean_lag", result.lag, "steps"),
            ("mean_lag_time", result.lag_time, "units of time_delta"),
        ):
            if lag is not None and np.isfinite(lag):
                yield scalar_with_ci(
                    f"{group}/{name}",
                    lag,
                    numbers[name],
                    f"Mean distance from an input to an output after it, weighted by influence; in "
                    f"{unit}",
                    chart=name == "mean_lag",
                )

    def _matrix(self, result: OutputTimeResult, group: str, observation: Observation) -> Record:
        limits, (influence, _) = self._limits, binned(result.influence)
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
                "step": observation.step,
            },
            f"Mean absolute input × gradient of the {result.target}, input step by output step; "
            "the line is the mean lag. Right: the same against how long before the output the "
            "input was. Below the diagonal is the past.",
        )

    def _arrays(self, result: OutputTimeResult, group: str) -> Iterator[Record]:
        yield Array(f"_ncp/{group}_influence", result.influence)
        yield Array(f"_ncp/{group}_lag", np.stack([result.steps, result.lag_by_step]))
        yield Array(f"_ncp/{group}_profile", result.profile)
        if result.time_edges is not None and result.time_profile is not None:
            by_time = np.stack([result.time_edges[:-1], result.time_profile])
            yield Array(f"_ncp/{group}_time_profile", by_time)

    def _own_step(
        self, observation: Observation, group: str, target: str, method: AttributionMethod
    ) -> Iterator[Record | Note]:
        left_out = f"{group}/local is left out: "
        try:
            found, error, mixed = _to_own_steps(observation, method)
        except NotApplicable as reason:
            yield Note(f"{left_out}{reason}")
            return
        if mixed:
            yield Note(
                f"{left_out}outputs depend on the inputs of other steps even with the states of "
                "the recurrent cells held fixed"
            )
            return
        if observation.held_out.tokens:
            found = replace(found, inputs=found.inputs.sum(axis=-1, keepdims=True))
        result = summarize(
            found,
            mask=observation.mask,
            target=f"{target}, own input",
            feature_names=observation.held_out.feature_names,
        )
        if not result.sequences:
            return
        if error is not None and np.isfinite(error).any():
            yield Scalar(
                f"{group}/local_error",
                float(np.quantile(error[np.isfinite(error)], 0.99)),
                "How far the attribution by every other step of the integral is from that by all; "
                "99th percentile over sequences, over the RMS norm of all. An upper estimate of "
                "its error",
            )
        there = observation.held_out.mask_array.any(0)
        yield scalar_with_ci(
            f"{group}/local_strength",
            float(result.importance.sum(axis=1)[there].mean()),
            Estimate.mean(result.by_sequence.sum(axis=1) / there.sum(), SIZE),
            f"Mean absolute {method.label} of the {target} to the input of the same step, with the "
            "state before it held fixed, summed over features; in units of the target",
        )
        yield Figure(
            f"{group}/local",
            plot_feature_importance,
            result,
            {
                "limit": self._limits["local"].covering(float(np.abs(result.signed).max())),
                "step": observation.step,
            },
            f"{method.title} of the {target} to the input of the same step, with "
            "the state before it held fixed: orange raises it, purple lowers it. Bars: share of "
            "each feature in the mean absolute value.",
        )
        yield Array(f"_ncp/{group}_local", result.importance)


def _local_method(local: bool | str | AttributionMethod) -> AttributionMethod | None:
    if local is False:
        return None
    method = method_from(DEFAULT_METHOD if isinstance(local, bool) else local, "local")
    if not isinstance(method, InputXGradient | IntegratedGradients):
        raise ValueError(
            f"local={local!r}: pass 'input_x_gradient', 'integrated_gradients', True or False. "
            "Other methods can't be run with the states held fixed"
        )
    return method


def _to_own_steps(
    observation: Observation, method: AttributionMethod
) -> tuple[Attribution, FloatArray | None, bool]:
    """Attribute each step's output to its own input.

    The whole of each prefix of a sequence moves from the baseline, and of its attribution the last
    step is kept. A recurrent network that runs forwards has all prefixes in one pass: the states
    before each step are those of the pass, and only the step itself need be differentiated.

    Returns:
        The attribution; of integrated gradients, ``(B,)``, an estimate of its error; and True where
        outputs depend on the inputs of other steps all the same.
    """
    mixed = False

    def evaluate(
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        rows: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
    ) -> TargetValues:
        nonlocal mixed
        found, others = observation.at_own_steps(
            None if inputs is None else inputs.astype(np.float32),
            None if time_delta is None else time_delta.astype(np.float32),
        )
        mixed = mixed or others
        return found

    dt = observation.time_delta if observation.takes_time else None
    sequences = (
        observation.inputs.astype(np.float64), None if dt is None else dt.astype(np.float64)
    )  # fmt: skip
    baselines: dict[str, Any] = {
        "baseline": baseline_of(observation, method.default_baseline),
        "time_baseline": time_baseline_of(observation, method.default_time_baseline),
    }
    with np.errstate(invalid="ignore", over="ignore"):
        if isinstance(method, IntegratedGradients):
            maps, error = method.attribute_with_error(
                evaluate, *sequences, **baselines, mask=observation.mask
            )
        else:
            maps = method.attribute(evaluate, *sequences, **baselines, mask=observation.mask)
            error = None
    return Attribution(method, maps.inputs, maps.time_delta), error, mixed
