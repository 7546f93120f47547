"""Analyse a model outside a training loop, as in a notebook, with one call for one batch.

::

    importance = compute_temporal_importance(model, x, time_delta)
    plot_feature_importance(importance, feature_names)

    everything = interpret_model(model, x, time_delta)
    everything["sensitivity"]["sensitivities"]
    everything.findings        # what the model relies on, and what may be wrong, in sentences

Each function finds the calling convention, the recurrent cell and the backbone of the model, and
leaves the model unchanged. Keywords common to all functions (``mask``, ``forward``, ``cells``,
``layers``, and ``target``, ``targets`` and ``at`` where a target is attributed) are those of
:class:`~ncp_callbacks.Monitor` and :class:`~ncp_callbacks.HeldOutBatch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import mlx.nn as nn
import numpy as np

from .attribution import DEFAULT_METHOD, AttributionMethod, MethodName, TemporalImportance
from .attribution.compute import Attributor
from .callback import Callback
from .callbacks.backbone_activations.analysis import BackboneReport
from .callbacks.backbone_activations.callback import BackboneActivations
from .callbacks.backbone_activations.callback import backbone as backbone_report
from .callbacks.gradient_attribution.callback import GradientAttribution
from .callbacks.held_out_score.callback import HeldOutScore
from .callbacks.state_space.analysis import StateSpace, state_space
from .callbacks.state_transitions.analysis import (
    TransitionStatistics,
    stays_within,
    transition_statistics,
)
from .callbacks.state_transitions.callback import StateTransitions
from .callbacks.time_sensitivity.analysis import TimeSensitivity, checked_scales
from .callbacks.time_sensitivity.callback import TimeSensitivity as TimeScan
from .callbacks.time_sensitivity.callback import sensitivity as time_sensitivity_of
from .findings import Collected, Finding, judge, lines
from .held_out import HeldOutBatch
from .keywords import check_keywords, keywords_of
from .model import At, Forward, ModelError, ModelRunner, NotApplicable, TargetLike
from .observation import Need, Observation, Trajectory
from .passes import observe
from .records import Note, Record
from .results import FloatArray, MappingResult
from .run_facts import run_facts

if TYPE_CHECKING:
    from typing import Unpack

    import matplotlib.figure

__all__ = [
    "Interpretation",
    "StateTransitionAnalyzer",
    "analyze_backbone",
    "analyze_time_sensitivity",
    "compute_temporal_importance",
    "interpret_model",
    "visualize_hidden_states",
]


# What all analyses but the attribution need.
_NEEDS = frozenset({Need.TIME_GRADIENT, Need.STATES, Need.ACTIVATIONS, Need.TIME_SCALES})
_RUNNER_OPTIONS = ("target", "at", "horizon", "forward", "cells", "layers")


class _Options(TypedDict, total=False):
    """Declare the keywords common to all functions, for type checkers and completion."""

    targets: Any
    mask: Any
    feature_names: Sequence[str] | None
    class_names: Sequence[str] | None
    channel_axis: int | Literal["last"] | None
    target: TargetLike
    at: At
    horizon: bool | None
    forward: Forward | None
    cells: str | Sequence[str] | None
    layers: str | Sequence[str] | None


def _runner(
    of: Callable[..., Any],
    model: nn.Module,
    x: Any,
    time_delta: Any,
    *,
    targets: Any = None,
    mask: Any = None,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    channel_axis: int | Literal["last"] | None = "last",
    **how: Any,
) -> ModelRunner:
    """Return a runner of the model; ``of`` is the function that was called."""
    if not how.keys() <= set(_RUNNER_OPTIONS):
        known = dict.fromkeys([*_Options.__annotations__, *keywords_of(of)])
        check_keywords(how, known, of.__qualname__.removesuffix(".__init__"))
    held_out = HeldOutBatch(x, time_delta, targets, mask, feature_names, class_names, channel_axis)
    return ModelRunner(model, held_out, **how)


def compute_temporal_importance(
    model: nn.Module,
    x: Any,
    time_delta: Any = None,
    *,
    method: MethodName | AttributionMethod = DEFAULT_METHOD,
    baseline: Any = None,
    time_baseline: Any = None,
    **options: Unpack[_Options],
) -> TemporalImportance:
    """Return the mean absolute attribution of the target per time step and feature.

    Args:
        model: Any ``mlx.nn.Module``.
        x: ``(B, T, F)``, frames ``(B, T, ..., C)``, tokens ``(B, T)``, or any of them with
            companions, as for ``HeldOutBatch``.
        time_delta: ``(B, T)``, ``(B, T, 1)`` or one number; None if the model needs none.
        method: As for :class:`~ncp_callbacks.GradientAttribution`; by default integrated gradients.
        baseline: Inputs to compare with, as for the method.
        time_baseline: Elapsed times to compare with, as for the method.
        **options: Keywords common to all functions, see the module.

    Returns:
        An object that is the ``(T, F)`` array wherever numpy expects one, with the signed mean,
        sign agreement, shares, their confidence intervals and checks as attributes.

    Raises:
        ModelError, ValueError: Model and arrays do not fit, or the method needs a gradient that the
            target doesn't have.
    """
    attributor = Attributor(method, baseline, time_baseline)
    runner = _runner(compute_temporal_importance, model, x, time_delta, **options)
    with runner.analysing():
        try:
            return attributor.importance(observe(runner, 0, attributor.needs))
        except NotApplicable as reason:
            raise ModelError(str(reason)) from reason


def analyze_time_sensitivity(
    model: nn.Module,
    x: Any,
    base_time_delta: Any,
    *,
    scales: Sequence[float] = (0.5, 1.0, 2.0, 5.0),
    **options: Unpack[_Options],
) -> TimeSensitivity:
    """Return the change of the target when all elapsed times are multiplied by ``scales``.

    Args:
        model: Any ``mlx.nn.Module``.
        x: ``(B, T, F)``, as for :func:`compute_temporal_importance`.
        base_time_delta: ``(B, T)``, ``(B, T, 1)`` or one number.
        scales: Factors above 0; 1 is added if it is missing.
        **options: Keywords common to all functions, see the module.

    Returns:
        A mapping with ``scales`` and ``sensitivities`` (in SDs of the target over sequences; NaN
        for one sequence, whose change is in ``rms_change``) and more.

    Raises:
        ModelError, ValueError: Model and arrays do not fit, or the model takes no elapsed time.
    """
    if base_time_delta is None:
        raise ValueError("base_time_delta is None: pass the elapsed times to be scaled")
    wanted = checked_scales(scales)
    runner = _runner(analyze_time_sensitivity, model, x, base_time_delta, **options)
    with runner.analysing():
        observation = observe(runner, 0, {Need.TIME_GRADIENT, Need.TIME_SCALES})
        return time_sensitivity_of(observation, observation.extra_passes.at_time_scales(wanted))


def visualize_hidden_states(
    model: nn.Module,
    x: Any,
    time_delta: Any = None,
    *,
    components: int = 2,
    cell: str | None = None,
    **options: Unpack[_Options],
) -> StateSpace:
    """Return hidden trajectories along the principal axes of all states.

    Args:
        model: Any ``mlx.nn.Module``.
        x: ``(B, T, F)``, as for :func:`compute_temporal_importance`.
        time_delta: ``(B, T)``, ``(B, T, 1)`` or one number; None if the model needs none.
        components: Number of axes.
        cell: Module path of the recurrent cell; by default the last one.
        **options: Keywords common to all functions, see the module.

    Returns:
        An object that is the ``(B, T, components)`` array of scores wherever numpy expects one.

    Raises:
        ModelError: No recurrent cell is found, or none of that name.
    """
    runner = _runner(visualize_hidden_states, model, x, time_delta, **options)
    with runner.analysing():
        observation = observe(runner, 0, {Need.STATES})
        return _states(observation, components, cell)


def _trajectory(observation: Observation, cell: str | None) -> Trajectory:
    found = observation.states
    if not found:
        raise ModelError(observation.no_cells)
    if cell is None:
        return found[-1]
    for trajectory in found:
        if trajectory.cell == cell:
            return trajectory
    raise ModelError(f"cell={cell!r}: the model has {', '.join(t.cell for t in found)}; pass one")


def _states(observation: Observation, components: int, cell: str | None) -> StateSpace:
    trajectory = _trajectory(observation, cell)
    return state_space(
        trajectory.values, mask=observation.mask, components=components, cell=trajectory.cell
    )


class StateTransitionAnalyzer:
    """Collect hidden trajectories of one model and summarise the changes between time steps.

    ::

        analyzer = StateTransitionAnalyzer(model)
        analyzer.add_sequence(x, time_delta)
        analyzer.add_sequence(more, more_delta)
        analyzer.analyze_transitions()["magnitude_mean"]

    Args:
        model: Any ``mlx.nn.Module``.
        cell: Module path of the recurrent cell; by default the last one.
        **options: Keywords common to all functions, see the module.
    """

    def __init__(
        self, model: nn.Module, *, cell: str | None = None, **options: Unpack[_Options]
    ) -> None:
        self.model = model
        self._cell, self._options = cell, options
        self._parts: list[tuple[FloatArray, FloatArray, np.ndarray[Any, Any], str]] = []

    def add_sequence(self, x: Any, time_delta: Any = None, mask: Any = None) -> None:
        """Run sequences and keep their trajectories.

        Args:
            x: ``(B, T, F)``, as for :func:`compute_temporal_importance`.
            time_delta: ``(B, T)``, ``(B, T, 1)`` or one number; None if the model needs none.
            mask: ``(B, T)`` bool, true at real time steps; None: all are.

        Raises:
            ModelError, ValueError: Model and arrays do not fit.
        """
        options = {**self._options, "mask": mask}
        runner = _runner(StateTransitionAnalyzer.__init__, self.model, x, time_delta, **options)
        with runner.analysing():
            observation = observe(runner, 0, {Need.STATES})
        self._add(observation)

    def _add(self, observation: Observation) -> None:
        trajectory = _trajectory(observation, self._cell)
        batch, steps, _ = trajectory.values.shape
        if steps < 2:
            raise ValueError(
                "the sequences have one time step: pass at least two, so that there are transitions"
            )
        delta = observation.time_delta
        self._parts.append(
            (
                trajectory.values,
                np.ones((batch, steps)) if delta is None else delta,
                observation.held_out.mask_array,
                trajectory.cell,
            )
        )

    def analyze_transitions(self) -> TransitionStatistics:
        """Return statistics over all sequences added, a mapping with ``magnitude_mean`` and more.

        Raises:
            ValueError: No sequence was added.
        """
        if not self._parts:
            raise ValueError("no sequence was added: call add_sequence(x, time_delta) first")
        longest = max(states.shape[1] for states, *_ in self._parts)

        def padded(array: np.ndarray[Any, Any], fill: float) -> np.ndarray[Any, Any]:
            width = [(0, 0), (0, longest - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
            return np.pad(array, width, constant_values=fill)

        states, deltas, masks, cells = zip(*self._parts, strict=True)
        values = np.concatenate([padded(s, 0.0) for s in states])
        mask = np.concatenate([padded(m, False) for m in masks])
        return transition_statistics(
            values,
            time_delta=np.concatenate([padded(d, 1.0) for d in deltas]),
            mask=mask,
            bound=1.0 if stays_within(values, mask, 1.0) else None,
            cell=cells[-1],
        )


def analyze_backbone(
    model: nn.Module, x: Any, time_delta: Any = None, **options: Unpack[_Options]
) -> BackboneReport:
    """Return statistics of the hidden layers inside the recurrent cell, a mapping for each.

    Args:
        model: Any ``mlx.nn.Module``.
        x: ``(B, T, F)``, as for :func:`compute_temporal_importance`.
        time_delta: ``(B, T)``, ``(B, T, 1)`` or one number; None if the model needs none.
        **options: Keywords common to all functions, see the module.

    Raises:
        ModelError: The model has no backbone.
    """
    runner = _runner(analyze_backbone, model, x, time_delta, **options)
    with runner.analysing():
        observation = observe(runner, 0, {Need.ACTIVATIONS})
    report = backbone_report(observation)
    if not report:
        raise ModelError(observation.no_layers)
    return report


@dataclass(frozen=True, eq=False)
class Interpretation(MappingResult):
    """Hold all analyses of a model, also as a mapping; None for those that are not applicable.

    Attributes:
        importance: Attribution of the target to features and time steps; None if the target has no
            gradient by the inputs.
        sensitivity: Change of the target with scaled time; None for a model or call without elapsed
            times.
        states: Trajectories of the (last) recurrent cell in two dimensions.
        transitions: Statistics of the changes between time steps.
        backbone: Statistics of the backbone's layers.
        findings: What the rules find, the most serious first. Rules on the history of a training
            find nothing, and those on the loss need ``targets``.
        notes: One sentence for each analysis that is not applicable.
        time_delta: ``(B, T)`` elapsed times, for the pictures.
    """

    importance: TemporalImportance | None
    sensitivity: TimeSensitivity | None
    states: StateSpace | None
    transitions: TransitionStatistics | None
    backbone: BackboneReport | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    time_delta: FloatArray | None

    def _repr_html_(self) -> str:
        """Return HTML of the figures and notes, for notebooks."""
        from base64 import b64encode
        from html import escape

        from .plotting.png import to_png

        pictures = (
            f'<img alt="{escape(name)}" style="max-width: 100%" '
            f'src="data:image/png;base64,{b64encode(to_png(figure)).decode()}">'
            for name, figure in self.figures().items()
        )
        found = "\n".join(escape(line) for line in lines(self.findings, 30))
        notes = (f"<p>{escape(note)}</p>" for note in self.notes)
        return "\n".join([f"<pre>{found}</pre>", *pictures, *notes])

    def figures(self) -> Mapping[str, matplotlib.figure.Figure]:
        """Return a figure for each of ``importance``, ``sensitivity``, ``states``, ``backbone``."""
        from .callbacks.backbone_activations.plot import plot_unit_activity
        from .callbacks.gradient_attribution.plot import plot_feature_importance
        from .callbacks.state_space.plot import plot_state_space
        from .callbacks.time_sensitivity.plot import plot_time_sensitivity

        figures = {}
        if self.importance is not None:
            figures["importance"] = plot_feature_importance(self.importance)
        if self.sensitivity is not None:
            figures["sensitivity"] = plot_time_sensitivity(self.sensitivity)
        if self.states is not None:
            figures["states"] = plot_state_space(self.states, self.time_delta)
        if self.backbone is not None:
            figures["backbone"] = plot_unit_activity(self.backbone)
        return figures


def _judged(
    runner: ModelRunner, method: Any, baseline: Any, time_baseline: Any, scales: Sequence[float]
) -> list[Callback]:
    """Return the callbacks whose numbers the rules read here."""
    attribution = GradientAttribution(
        method=method, baseline=baseline, time_baseline=time_baseline, removal=0
    )
    callbacks: list[Callback] = [attribution, StateTransitions(), BackboneActivations()]
    if runner.takes_time:
        callbacks.append(TimeScan(scales=scales))
    if runner.held_out.targets is not None:
        callbacks.append(HeldOutScore())
    return callbacks


def _findings(
    runner: ModelRunner, observation: Observation, callbacks: Sequence[Callback]
) -> tuple[Finding, ...]:
    """Return what the rules find in the numbers of callbacks, none of which costs another pass."""
    records: list[Record] = []
    for callback in callbacks:
        try:
            found = list(callback.measure(observation.declaring(callback.needs)))
        except NotApplicable:
            continue
        records += [record for record in found if not isinstance(record, Note)]
    return judge(Collected(run_facts(runner, callbacks)).add_snapshot(0, records))


def interpret_model(
    model: nn.Module,
    x: Any,
    time_delta: Any = None,
    *,
    method: MethodName | AttributionMethod = DEFAULT_METHOD,
    baseline: Any = None,
    time_baseline: Any = None,
    scales: Sequence[float] = (0.5, 1.0, 2.0, 5.0),
    **options: Unpack[_Options],
) -> Interpretation:
    """Return all analyses of this module, from one pass of the model that they share.

    Scaled elapsed times take one more pass, and a ``method`` that changes inputs runs its own
    passes.

    Args:
        model: Any ``mlx.nn.Module``.
        x: ``(B, T, F)``, as for :func:`compute_temporal_importance`.
        time_delta: ``(B, T)``, ``(B, T, 1)`` or one number; None if the model needs none.
        method: As for :func:`compute_temporal_importance`.
        baseline: As for :func:`compute_temporal_importance`.
        time_baseline: As for :func:`compute_temporal_importance`.
        scales: Factors above 0, as for :func:`analyze_time_sensitivity`.
        **options: Keywords common to all functions, see the module.

    Raises:
        ModelError, ValueError: Model and arrays do not fit.
    """
    wanted, attributor = checked_scales(scales), Attributor(method, baseline, time_baseline)
    runner = _runner(interpret_model, model, x, time_delta, **options)
    notes: list[str] = [*runner.notes, *runner.missing]
    with runner.analysing():
        callbacks = _judged(runner, method, baseline, time_baseline, wanted)
        judged = frozenset[Need]().union(*(callback.needs for callback in callbacks))
        observation = observe(runner, 0, _NEEDS | attributor.needs | judged)
        sensitivity = states = transitions = None
        if observation.takes_time:
            scaled = observation.extra_passes.at_time_scales(wanted)
            sensitivity = time_sensitivity_of(observation, scaled)
            if sensitivity.ignores_time:
                notes.append(
                    "the model takes elapsed times, but the target does not depend on them"
                )
        else:
            notes.append(
                "no elapsed times reach the model, so there is no time to scale: pass time_delta"
            )
        importance, backbone = None, backbone_report(observation)
        try:
            importance = attributor.importance(observation)
        except NotApplicable as reason:
            notes.append(str(reason))
        if observation.states:
            states = _states(observation, 2, None)
            if observation.inputs.shape[1] > 1:
                analyzer = StateTransitionAnalyzer(model)
                analyzer._add(observation)
                transitions = analyzer.analyze_transitions()
        findings = _findings(runner, observation, callbacks)
    return Interpretation(
        importance=importance,
        sensitivity=sensitivity,
        states=states,
        transitions=transitions,
        backbone=backbone or None,
        findings=findings,
        notes=tuple(dict.fromkeys(notes)),
        time_delta=observation.time_delta,
    )
