"""Run the model on shorter sequences."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..arrays import to_mlx
from ..model import ModelRunner
from ..model.batching import as_target_values, run_in_parts
from ..model.fewer_steps import of_one_length_only, with_time_steps
from ..observation import Need
from ..results import FloatArray
from ..target_values import TargetValues
from .runner import PassRunner, protected

__all__ = ["FewerSteps"]


class FewerSteps(PassRunner):
    """Run passes over some time steps of the sequences."""

    def with_fewer_steps(
        self,
        steps: npt.NDArray[np.intp],
        mask: npt.NDArray[np.bool_],
        inputs: FloatArray | None = None,
        time_delta: FloatArray | None = None,
        *,
        loss: bool = False,
    ) -> TargetValues:
        """Return the targets of shorter sequences, made of some time steps of the batch.

        The target is that of the last real time step, at the output that was chosen for the batch
        itself. It costs a part of a forward pass. Declare :attr:`Need.FEWER_STEPS`.

        Args:
            steps: ``(B, n)``, indices of time steps, increasing among the real ones.
            mask: ``(B, n)``, true at real time steps.
            inputs: ``(B, n, F)``; None: those of ``steps``.
            time_delta: ``(B, n)``; None: those of ``steps``.
            loss: True to compute the loss as well, see :attr:`Observation.losses`.

        Raises:
            NotApplicable: The target is not that of the last time step, or the model runs sequences
                of one length only.
        """
        self._require(Need.FEWER_STEPS)
        chosen, own, delta = self._source.chosen, self._batch.inputs, self._batch.time_delta
        if inputs is None:
            inputs = np.take_along_axis(own, steps[..., None], axis=1)
        if time_delta is None and delta is not None:
            time_delta = np.take_along_axis(delta, steps, axis=1)

        def run(some: ModelRunner, here: slice, at: slice) -> TargetValues:
            shorter = with_time_steps(some, steps[here], mask[here])
            return as_target_values(
                shorter.variants(
                    to_mlx(inputs[here])[None].astype(shorter.sequence().dtype),
                    None if time_delta is None else to_mlx(time_delta[here])[None],
                    None if chosen is None else to_mlx(chosen[here]),
                    loss=loss,
                )
            )

        share = steps.shape[1] / own.shape[1]
        with self._running(Need.FEWER_STEPS, share), of_one_length_only(steps.shape[1]):
            found = run_in_parts(
                self._runner, run, 1, max_sequences=self._source.max_sequences, max_variants=1
            )
        return protected(found)
