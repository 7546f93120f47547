"""Run the model with its parameters randomised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from ..model.randomize import randomised
from ..observation import EvaluatedBatch, Need, Trajectory
from ..single_pass import run_pass, trajectories
from .runner import PassRunner

__all__ = ["Randomised"]


class Randomised(PassRunner):
    """Run passes of a model whose parameters are shuffled."""

    @contextlib.contextmanager
    def randomised(
        self, stages: int = 6, draw: int = 0
    ) -> Iterator[Iterator[tuple[tuple[str, ...], EvaluatedBatch]]]:
        """Iterate over stages that randomise parameters, from the output towards the input.

        Each item has the modules that a stage randomises, and the targets and gradients at that
        stage, which cost a gradient pass. The model is restored on leaving the ``with`` block.
        Declare :attr:`Need.RANDOMISED`.

        Args:
            stages: Largest number of stages.
            draw: Number of the shuffle; each puts the parameters in another order.

        Raises:
            NotApplicable: The model has no trainable parameters to shuffle.
        """
        self._require(Need.RANDOMISED)
        with self._source.shared.suspended(), randomised(self._runner, stages, draw) as cascade:
            yield ((names, self._reevaluate(Need.RANDOMISED)) for names in cascade)

    def states(self) -> Sequence[Trajectory]:
        """Return the states of the model as it is at a stage of :meth:`randomised`.

        It costs a forward pass. Declare :attr:`Need.RANDOMISED`.
        """
        self._require(Need.RANDOMISED)
        with self._running(Need.RANDOMISED, 1):
            return trajectories(self._runner, run_pass(self._runner, {Need.STATES}))
