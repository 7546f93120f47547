"""Compute attributions of observations, for callbacks and for the offline functions."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..observation import EvaluatedBatch, Need
from ..results import FloatArray
from ..target_values import Evaluate, TargetValues
from .base import Attribution, AttributionMethod, PassCount, joined
from .baselines import baseline_sequences, checked_word, constant_baseline, without_padding
from .importance import TemporalImportance, summarize
from .registry import DEFAULT_METHOD, method_from
from .switches import with_switches

__all__ = ["Attributor", "baseline_of", "importance_of", "time_baseline_of"]


# Elements of the inputs that are attributed at once, 64 MB in double precision.
_MAX_ELEMENTS = 1 << 23


class Attributor:
    """Attribute the target of observations by one method, from one baseline.

    Attributes:
        method: The method.
        needs: What the method needs of the pass that all callbacks share, and the kinds of extra
            passes that it declares.

    Args:
        method: A name or a method; see :func:`~.registry.method_from`.
        baseline: ``"mean"`` of each feature over the whole held-out batch, ``"zeros"``, or an array
            ``(F,)``, ``(T, F)`` or ``(B, T, F)``; for methods that draw their baselines
            ``"held_out"`` or an array ``(N, T, F)``. For frames, ``"mean"`` is the mean frame, and
            an array has one number for each channel, or a frame's shape in place of ``F``. None for
            the method's default.
        time_baseline: ``"mean"``, ``"zeros"``, a number, or an array ``(T,)`` or ``(B, T)``. None
            for the method's default.

    Raises:
        ValueError, TypeError: If the method or a baseline is unknown.
    """

    def __init__(
        self,
        method: str | AttributionMethod = DEFAULT_METHOD,
        baseline: Any = None,
        time_baseline: Any = None,
    ) -> None:
        self.method = method_from(method)
        self.needs: frozenset[Need] = frozenset()
        if self.method.gradient_at_inputs:
            self.needs |= {Need.INPUT_GRADIENT, Need.TIME_GRADIENT}
        # Sequences as long and wide as any: the kinds of passes don't depend on how many they are.
        passes = self.method.extra_passes(100, 100, takes_time=True)
        if passes.forward:
            self.needs |= {Need.VARIANTS}
        if passes.gradient:
            self.needs |= {Need.VARIANT_GRADIENTS}
        self._baseline = self.method.default_baseline if baseline is None else baseline
        self._time_baseline = (
            self.method.default_time_baseline if time_baseline is None else time_baseline
        )
        words = ("held_out",) if self.method.draws_baselines else ("mean", "zeros")
        checked_word(self._baseline, "baseline", words)
        checked_word(self._time_baseline, "time_baseline")

    @property
    def summary(self) -> str:
        """Return the method with its settings and baselines: equal ones measure the same.

        Numbers and places of points and draws are not among the settings: they change the accuracy
        only.
        """
        settings = [
            f"{field.name}={getattr(self.method, field.name)!r}"
            for field in (
                dataclasses.fields(self.method) if dataclasses.is_dataclass(self.method) else ()
            )
            if field.name not in ("n_steps", "n_samples", "at_inputs")
        ]
        name = f"{self.method.name}({', '.join(settings)})" if settings else self.method.name
        baseline, time_baseline = map(_summary_of_baseline, (self._baseline, self._time_baseline))
        return f"{name} from {baseline}, elapsed time from {time_baseline}"

    def attribute(self, observation: EvaluatedBatch) -> Attribution:
        """Return the attribution of each sequence's target to inputs and elapsed times.

        The attribution of a channel of frames is the sum over its pixels, and that of a token the
        sum over the dimensions of its embedding.

        Raises:
            ValueError: If a baseline doesn't fit the held-out batch.
        """
        if not (self.method.replaces_inputs and observation.held_out.groups_columns):
            return self.attribute_columns(observation, observation.held_out.by_feature)
        baseline, time_baseline = self._baselines(observation)
        attributes_time = self._attributes_time(observation)
        evaluate, ones, zeros = with_switches(
            _sharing(observation, self.method.gradient_at_inputs),
            observation.inputs,
            baseline,
            observation.held_out.feature_of_columns(observation.inputs.shape[2]),
        )
        return self.method.run(
            evaluate,
            ones,
            observation.time_delta if attributes_time else None,
            baseline=zeros,
            time_baseline=time_baseline if attributes_time else None,
            mask=observation.mask,
        )

    def attribute_columns(
        self, observation: EvaluatedBatch, reduce: Callable[[FloatArray], FloatArray]
    ) -> Attribution:
        """Return the attribution to each column of the inputs, such as each pixel of frames.

        Large inputs are attributed a few sequences at a time, and only what is reduced is kept.

        Args:
            observation: The observation.
            reduce: Returns what to keep of maps ``(B, T, P)``, with ``(B, T)`` first.

        Raises:
            ValueError: If a baseline doesn't fit the held-out batch.
        """
        baseline, time_baseline = self._baselines(observation)
        attributes_time = self._attributes_time(observation)
        batch, drawn = len(observation.inputs), self.method.draws_baselines
        each = max(1, _MAX_ELEMENTS // observation.inputs[0].size)
        of_time = time_baseline if attributes_time else None
        parts = []
        for start in range(0, batch, each):
            rows = np.arange(start, min(batch, start + each))

            def part(array: Any, rows: npt.NDArray[np.intp] = rows) -> Any:
                return array if array is None or len(rows) == batch else array[rows]

            found = self.method.run(
                _sharing(observation, self.method.gradient_at_inputs, rows),
                part(observation.inputs),
                part(observation.time_delta) if attributes_time else None,
                baseline=baseline if drawn else part(baseline),
                time_baseline=of_time if drawn else part(of_time),
                mask=part(observation.mask),
            )
            parts.append(replace(found, inputs=reduce(found.inputs)))
        return joined(parts)

    def _attributes_time(self, observation: EvaluatedBatch) -> bool:
        """Return whether elapsed times get a part, which by gradients needs their gradient."""
        if observation.has_time_gradient or not observation.takes_time:
            return observation.takes_time
        _, n_time_steps, n_features = observation.inputs.shape
        passes = self.method.extra_passes(n_time_steps, n_features, takes_time=True)
        return not (self.method.gradient_at_inputs or passes.gradient)

    def importance(self, observation: EvaluatedBatch) -> TemporalImportance:
        """Return the attribution, summarized over sequences."""
        return importance_of(observation, self.attribute(observation))

    def extra_passes(self, observation: EvaluatedBatch) -> PassCount:
        """Return how many passes of each sequence an attribution costs beyond the shared pass."""
        _, n_time_steps, n_features = observation.inputs.shape
        if self.method.replaces_inputs:
            n_features = len(observation.held_out.feature_names)
        takes_time = self._attributes_time(observation)
        return self.method.extra_passes(n_time_steps, n_features, takes_time=takes_time)

    def removal_baseline(self, observation: EvaluatedBatch) -> FloatArray:
        """Return ``(B, T, F)``, the values that removed inputs are set to.

        It is the method's baseline. For a method that draws its baselines, it is the mean of each
        feature, or the mean of the array passed.
        """
        baseline = self._baseline
        if self.method.draws_baselines:
            baseline = "mean" if isinstance(baseline, str) else np.asarray(baseline).mean(axis=0)
        return baseline_of(observation, baseline)

    def _baselines(self, observation: EvaluatedBatch) -> tuple[FloatArray, FloatArray | None]:
        """Return the baselines of inputs and of time_delta, None where the model takes none."""
        x = observation.inputs
        if not self.method.draws_baselines:
            return (
                baseline_of(observation, self._baseline),
                time_baseline_of(observation, self._time_baseline),
            )
        if isinstance(self._baseline, str):
            mask, times = observation.whole_mask, observation.whole_time_delta
            return (
                without_padding(observation.whole_inputs, mask),
                without_padding(times, mask)
                if observation.takes_time and times is not None
                else None,
            )
        sequences = baseline_sequences(_columns(observation, self._baseline), x)
        times = time_baseline_of(observation, self._time_baseline)
        if times is not None:
            # Baselines that are passed come without times of their own.
            times = np.broadcast_to(times.mean(axis=0), sequences.shape[:2])
        return sequences, times


def _sharing(
    observation: EvaluatedBatch,
    gradient_at_inputs: bool,
    own: npt.NDArray[np.intp] | None = None,
) -> Evaluate:
    """Return an ``evaluate`` that takes results for the unchanged batch from the shared pass.

    Args:
        observation: The observation.
        gradient_at_inputs: True if the shared pass has the gradient.
        own: Indices of the sequences to evaluate; None for all.
    """
    if own is not None and len(own) == len(observation.inputs):
        own = None

    def evaluate(
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        sequences: npt.NDArray[np.intp] | None = None,
        gradient: bool = False,
    ) -> TargetValues:
        unchanged = inputs is None and time_delta is None and sequences is None
        if not unchanged or (gradient and not gradient_at_inputs):
            if own is not None:
                sequences = own if sequences is None else own[sequences]
            return observation.extra_passes.evaluate(
                inputs, time_delta, sequences=sequences, gradient=gradient
            )
        here: Any = slice(None) if own is None else own
        values = observation.target_values[here][None]
        if not gradient:
            return TargetValues(values)
        by_time = observation.time_gradient
        return TargetValues(
            values,
            observation.input_gradient[here][None],
            None if by_time is None else by_time[here][None],
        )

    return evaluate


def baseline_of(observation: EvaluatedBatch, baseline: Any) -> FloatArray:
    """Return the baseline ``(B, T, F)`` of an observation's inputs.

    Args:
        observation: The observation.
        baseline: See :class:`Attributor`.

    Raises:
        ValueError: If the baseline doesn't fit the held-out batch.
    """
    return constant_baseline(
        _of_analysed(observation, _columns(observation, baseline), observation.inputs.ndim),
        observation.inputs,
        observation.mask,
        "baseline",
        whole=observation.whole_inputs,
        whole_mask=observation.whole_mask,
        categorical=observation.categorical if observation.categorical.any() else None,
    )


def time_baseline_of(observation: EvaluatedBatch, baseline: Any) -> FloatArray | None:
    """Return the baseline ``(B, T)`` of time_delta; None where the model takes none.

    Args:
        observation: The observation.
        baseline: See :class:`Attributor`.

    Raises:
        ValueError: If the baseline doesn't fit the held-out batch.
    """
    if not observation.takes_time or observation.time_delta is None:
        return None
    return constant_baseline(
        _of_analysed(observation, baseline, observation.time_delta.ndim),
        observation.time_delta,
        observation.mask,
        "time_baseline",
        whole=observation.whole_time_delta,
        whole_mask=observation.whole_mask,
    )


def _columns(observation: EvaluatedBatch, baseline: Any) -> Any:
    """Return a baseline of frames with a number for each column.

    Raises:
        ValueError: If it has neither one number per channel nor the shape of a frame at its end.
    """
    held_out = observation.held_out
    if not held_out.has_frames or isinstance(baseline, str) or not np.ndim(baseline):
        return baseline
    each, frame = np.asarray(baseline), held_out.frame_shape
    if each.shape == (len(held_out.feature_names),):
        return each[held_out.feature_of_columns(observation.inputs.shape[2])]
    if each.shape[-len(frame) :] != frame:
        raise ValueError(
            f"baseline has shape {each.shape}, which doesn't fit frames {frame}: pass one number, "
            f"one per feature, ({len(held_out.feature_names)},), or an array whose last axes are "
            f"{frame}"
        )
    return each.reshape(*each.shape[: -len(frame)], -1)


def _of_analysed(observation: EvaluatedBatch, baseline: Any, ndim: int) -> Any:
    """Return a baseline for the whole held-out batch, cut to the sequences analysed."""
    if isinstance(baseline, str) or np.ndim(baseline) != ndim:
        return baseline
    each = np.asarray(baseline)
    return each[observation.indices] if len(each) == observation.whole_batch else each


def _summary_of_baseline(baseline: Any) -> str:
    """Return a baseline's word, or the digest of an array."""
    if isinstance(baseline, str):
        return baseline
    values = np.ascontiguousarray(np.asarray(baseline), np.float32)
    return f"array {hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()[:8]}"


def importance_of(observation: EvaluatedBatch, found: Attribution) -> TemporalImportance:
    """Return the summary of an attribution of the observation's sequences."""
    return summarize(
        found,
        target_values=observation.target_values,
        mask=observation.mask,
        target=observation.target,
        feature_names=observation.held_out.feature_names,
    )
