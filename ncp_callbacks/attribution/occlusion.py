"""Measure the change of the target when one input is replaced by its baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..results import FloatArray
from ..target_values import Evaluate
from .base import AttributionMaps, AttributionMethod, PassCount

__all__ = ["Occlusion"]


@dataclass(frozen=True)
class Occlusion(AttributionMethod):
    """Measure how much the target falls when one input, or one time_delta, is at its baseline.

    In frames all pixels of a channel are replaced at once.

    It needs no gradients and stays valid where the target jumps. The maps don't sum to the change
    of the target.

    Source: Zeiler & Fergus 2014 (arXiv:1311.2901), with patches of one input.
    """

    name: ClassVar[str] = "occlusion"
    label: ClassVar[str] = "occlusion"
    replaces_inputs: ClassVar[bool] = True

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> PassCount:
        """Return a forward pass for each input and each time_delta of a sequence."""
        return PassCount(forward=n_time_steps * (n_features + takes_time))

    def attribute(
        self,
        evaluate: Evaluate,
        inputs: FloatArray,
        time_delta: FloatArray | None,
        *,
        baseline: FloatArray,
        time_baseline: FloatArray | None,
        mask: npt.NDArray[np.bool_] | None,
    ) -> AttributionMaps:
        """Return the target minus the target with one input or time_delta at its baseline."""
        _, n_time_steps, n_features = inputs.shape
        values = evaluate().values[0].astype(np.float64)
        by_input = np.zeros(inputs.shape)
        features = np.arange(n_features)
        for time_step in range(n_time_steps):
            variants = np.repeat(inputs[None], n_features, axis=0)
            variants[features, :, time_step, features] = baseline[:, time_step].T
            by_input[:, time_step] = (values - evaluate(variants).values).T
        by_time = None
        if time_delta is not None and time_baseline is not None:
            by_time = np.zeros(time_delta.shape)
            # In groups of time steps, so that memory doesn't grow with the square of their number.
            for group in np.array_split(np.arange(n_time_steps), -(-n_time_steps // 16)):
                times = np.repeat(time_delta[None], len(group), axis=0)
                times[np.arange(len(group)), :, group] = time_baseline[:, group].T
                by_time[:, group] = (values - evaluate(None, times).values).T
        return AttributionMaps(by_input, by_time)
