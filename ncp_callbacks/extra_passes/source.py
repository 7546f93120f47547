"""Hold what extra passes over some sequences are run with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays import read_only
from ..held_out import HeldOutBatch
from ..model import ModelRunner
from ..observation import EvaluatedBatch
from ..pass_costs import PassCosts, SharedResults
from ..results import FloatArray, Indices

if TYPE_CHECKING:
    from .extra_passes import ExtraPasses

__all__ = ["PassSource"]


@dataclass(frozen=True, eq=False)
class PassSource:
    """Hold what extra passes over some sequences are run with.

    Attributes:
        runner: Runs the model on these sequences.
        whole: Runs it on the whole held-out batch.
        chosen: ``(B,)``, the outputs that were followed in the shared pass; None without a choice.
        inputs: ``(B, T, F)`` of a variant that was re-evaluated; None for the batch's own.
        outputs: The outputs of the shared pass.
        max_sequences: Largest number of sequences in one pass with gradients.
        costs: Where passes are counted.
        shared: Where results are kept that several callbacks ask for.
        make: Makes what runs extra passes of a batch.
    """

    runner: ModelRunner
    whole: ModelRunner
    chosen: npt.NDArray[np.integer[Any]] | None
    inputs: FloatArray | None
    outputs: FloatArray
    max_sequences: int
    costs: PassCosts
    shared: SharedResults
    make: Callable[[EvaluatedBatch, PassSource], ExtraPasses]

    @property
    def held_out(self) -> HeldOutBatch:
        """Return the sequences."""
        return self.runner.held_out

    @property
    def divisible(self) -> bool:
        """Return whether parts of the batch can be run separately."""
        return self.runner.divisible

    def spread(self, count: int) -> Indices:
        """Return the indices of sequences that are spread over the whole held-out batch."""
        return read_only(self.whole.held_out.spread(count))

    def take(self, places: Indices) -> PassSource:
        """Return the source of some of the sequences."""
        return replace(
            self,
            runner=self.runner.take(places),
            chosen=None if self.chosen is None else self.chosen[places],
            inputs=None if self.inputs is None else self.inputs[places],
            outputs=self.outputs[places],
        )

    def passes_of(self, batch: EvaluatedBatch) -> ExtraPasses:
        """Return what runs extra passes of a batch."""
        return self.make(batch, self)
