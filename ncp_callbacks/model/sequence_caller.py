"""Call the copied model on a held-out batch, or on sequences put in the place of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..held_out import HeldOutBatch
from .checks.perturb import Trial
from .checks.state_between_batches import StateBetweenBatches
from .conventions import Calling
from .embedding import Embedding
from .gradients import indices_stopped
from .model_copy import ModelCopy

__all__ = ["SequenceCaller"]

_Self = TypeVar("_Self", bound="SequenceCaller")


class SequenceCaller:
    """Call a copy of a model on the sequences of a held-out batch; each call starts alike.

    Args:
        copy: The copy of the model.
        held_out: The batch.
        calling: How the model is called.
        state: The state between batches, put back before each call.
        embedding: Where tokens become vectors; None: the batch holds no tokens, or it is unknown.

    Attributes:
        copy: The copy of the model.
        held_out: The batch.
        calling: How the model is called.
        state: The state that the model keeps between batches.
        embedding: Where tokens become vectors, or None.
        index_modules: Paths of modules that get indices, through which gradients end.
        indices: ``(B,)``, the indices of the sequences in the whole batch.
    """

    def __init__(
        self,
        copy: ModelCopy,
        held_out: HeldOutBatch,
        calling: Calling,
        state: StateBetweenBatches,
        embedding: Embedding | None = None,
    ) -> None:
        self.copy, self.held_out, self.calling, self.state = copy, held_out, calling, state
        self.embedding = embedding
        self.index_modules: Sequence[str] = ()
        self.indices: npt.NDArray[np.intp] = np.arange(len(held_out))

    @property
    def model(self) -> nn.Module:
        """Return the copy of the model."""
        return self.copy.model

    @property
    def time_delta(self) -> mx.array | None:
        """Return the elapsed times ``(B, T)``, or None."""
        return self.held_out.flat_time_delta

    def preserved(self) -> AbstractContextManager[None]:
        """Return a context that puts the copy back to how it was read."""
        return self.copy.preserved()

    def part(self: _Self, sequences: slice | npt.NDArray[np.intp]) -> _Self:
        """Return a caller of some of the sequences."""
        part = copy.copy(self)
        part.held_out = self.held_out.take(sequences)
        part.indices = self.indices[sequences]
        return part

    def call(self, inputs: Any, time_delta: mx.array | None) -> mx.array:
        """Return the outputs for inputs in the form that the model takes them in."""
        self.state.restore()
        return self.calling(inputs, time_delta)

    def call_on(self, batch: HeldOutBatch) -> mx.array:
        """Return the outputs for a batch like the held-out one."""
        return self.call(batch.pack(batch.inputs), batch.flat_time_delta)

    def sequence(self) -> mx.array:
        """Return ``(B, T, P)``: the columns of the inputs, or the vectors made of tokens.

        See :attr:`HeldOutBatch.columns`. Tokens whose vectors were not found are ``(B, T, 1)``
        integers.
        """
        held_out = self.held_out
        if self.embedding is not None:
            self.state.restore()
            return self.embedding.vectors(
                self.model,
                held_out,
                lambda: self.calling(held_out.pack(held_out.inputs), self.time_delta),
            )
        return held_out.inputs[..., None] if held_out.tokens else held_out.columns

    def outputs(self, sequence: mx.array, time_delta: mx.array | None) -> mx.array:
        """Return the model's outputs for a sequence ``(n B, T, F)``; see :class:`Calling`."""
        self.state.restore()
        if self.embedding is None:
            inputs = sequence[..., 0] if self.held_out.tokens else sequence
            with indices_stopped(self.model, self.index_modules):
                return self.calling(self.held_out.pack(inputs), time_delta)
        copies = len(sequence) // len(self.held_out)
        tokens = self.held_out.pack(mx.concatenate([self.held_out.inputs] * copies))
        return self.embedding.run(self.model, sequence, lambda: self.calling(tokens, time_delta))

    def trial(self) -> Trial:
        """Return the sequences, to be run with changes."""
        with self.preserved():
            sequence = self.sequence()
            mx.eval(sequence)
        return Trial(
            sequence,
            lambda inputs: self.outputs(inputs, self.time_delta),
            self.held_out.mask_array,
            lambda order: self.part(order).trial(),
        )
