"""Differentiate the targets of time steps, for a model with an output at each time step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..arrays import to_mlx
from ..model import ModelRunner
from ..model.batching import as_target_values
from ..model.derivatives import step_gradients
from ..observation import Need
from ..results import FloatArray
from ..target_values import TargetValues
from .runner import PassRunner, as_mlx, protected

__all__ = ["OutputSteps"]


class OutputSteps(PassRunner):
    """Run passes that attribute the target of each time step."""

    def at_steps(self, time_steps: Sequence[int]) -> TargetValues:
        """Return the target at each of ``K`` time steps, and its gradients.

        Each time step costs a gradient pass. Values and gradients of a sequence at padding are 0.
        Declare :attr:`Need.OUTPUT_STEPS`.

        Args:
            time_steps: Indices along the sequence.

        Raises:
            RuntimeError: There is no target at every time step, see
                :attr:`Observation.every_step`.
        """
        total = self._batch.inputs.shape[1]
        wanted = np.zeros((len(time_steps), 1, total), bool)
        wanted[np.arange(len(time_steps)), :, list(time_steps)] = True
        if self._batch.mask is not None:  # Outputs at padding are never followed.
            wanted = wanted & self._batch.mask
        return self._at_steps(wanted, None, None, hold_states=False)

    def at_own_steps(
        self, inputs: FloatArray | None = None, time_delta: FloatArray | None = None
    ) -> tuple[TargetValues, bool]:
        """Return the gradient of each time step's target by its own input, with states held fixed.

        If the states passed to cells are constants, a target depends on the inputs of its own time
        step only, and the gradient of the sum over time steps has the gradients of all. Half of the
        time steps are summed at a time, so that a dependence on others is detected. Each variant
        costs two gradient passes. Declare :attr:`Need.OUTPUT_STEPS`.

        Args:
            inputs: ``(K, B, T, F)``, variants of the inputs; None: the batch's own.
            time_delta: ``(K, B, T)``, variants of ``time_delta``; None: the batch's own.

        Returns:
            Target values of the ``K`` variants (or one), whose ``values`` are sums over real time
            steps, and true if a target depends on the inputs of other time steps.

        Raises:
            RuntimeError: There is no target at every time step, see
                :attr:`Observation.every_step`.
            NotApplicable: The states can't be held fixed.
        """
        real = self._batch.held_out.mask_array
        half = np.random.default_rng(0).permutation(real.shape[1]) % 2 == 0
        count = next((len(a) for a in (inputs, time_delta) if a is not None), 1)
        halves = np.tile(np.stack([real & half, real & ~half]), (count, 1, 1))
        found = self._at_steps(
            halves,
            *[None if a is None else np.repeat(a, 2, axis=0) for a in (inputs, time_delta)],
            hold_states=True,
        )
        assert found.input_gradient is not None
        first, second = found.input_gradient[::2], found.input_gradient[1::2]
        # Gradients at the time steps of the other half, which must be 0.
        others = np.where((real & half)[..., None], second, np.where(real[..., None], first, 0.0))
        mixed = bool(np.nan_to_num(others).any())
        own = np.where(half[:, None], first, second)
        by_time = found.time_gradient
        if by_time is not None:
            others = np.where(real & half, by_time[1::2], np.where(real, by_time[::2], 0.0))
            mixed = mixed or bool(np.nan_to_num(others).any())
            by_time = np.where(half, by_time[::2], by_time[1::2])
        return protected(TargetValues(found.values[::2] + found.values[1::2], own, by_time)), mixed

    def _at_steps(
        self,
        wanted: npt.NDArray[np.bool_],
        inputs: FloatArray | None,
        time_delta: FloatArray | None,
        *,
        hold_states: bool,
    ) -> TargetValues:
        self._require(Need.OUTPUT_STEPS)
        if self._runner.target.of_every_step is None:
            raise RuntimeError(
                "there is no target at every step: check observation.every_step first"
            )
        predicted = None
        if hold_states and self._runner.target.follows_predictions:
            predicted = self._source.outputs.argmax(axis=-1)
        own = self._source.inputs
        if inputs is None and own is not None:
            inputs = np.broadcast_to(own, (len(wanted), *own.shape))

        def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
            found = step_gradients(
                some,
                wanted[at] if wanted.shape[1] == 1 else wanted[at, here],
                as_mlx(inputs, some.sequence(), at, here),
                as_mlx(time_delta, some.time_delta, at, here),
                None if predicted is None else to_mlx(predicted[here]),
                hold_states=hold_states,
            )
            return as_target_values(found)

        return self._in_parts(Need.OUTPUT_STEPS, run, len(wanted), self._source.max_sequences)
