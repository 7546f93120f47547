"""Find and replace the embedding of a model that takes tokens.

Gradients need one floating array ``(B, T, F)``, which for most models are the inputs. A model that
takes tokens is differentiated with respect to its embedding's vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ..held_out import HeldOutBatch
from .capture import Tap
from .conventions import Calling
from .errors import ModelError
from .pytrees import modules
from .recording import Values, record

__all__ = ["Embedding", "find_embedding"]


class Embedding:
    """Replace the output of the module that turns tokens into vectors.

    Args:
        path: The path of the module in the model.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._tap = Tap()

    def _module(self, model: nn.Module) -> nn.Module:
        return dict(modules(model))[self.path]

    def vectors(self, model: nn.Module, held_out: HeldOutBatch) -> mx.array:
        """Return the vectors ``(B, T, E)`` of the batch's tokens."""
        vectors: mx.array = self._module(model)(held_out.inputs)
        return vectors

    def run(self, model: nn.Module, vectors: mx.array, call: Callable[[], mx.array]) -> mx.array:
        """Run ``call()`` with an embedding that returns ``vectors``."""
        self._tap.forget()
        with self._tap.on([(self._module(model), lambda *_: vectors)]):
            return call()


def find_embedding(model: nn.Module, held_out: HeldOutBatch, calling: Calling) -> Embedding:
    """Find the first module that takes the batch's tokens and returns a vector for each.

    Raises:
        ModelError: If there is no such module.
    """
    tokens, delta = held_out.inputs, held_out.flat_time_delta
    calls, _ = record(model, lambda: calling(held_out.pack(tokens), delta))
    values = Values()
    for call in calls:
        outputs = list(call.outputs.values())
        if (
            len(call.inputs) == 1
            and len(outputs) == 1
            and not call.children
            and mx.issubdtype(outputs[0].dtype, mx.floating)
            and tuple(outputs[0].shape[:-1]) == tuple(tokens.shape)
            and values.same(next(iter(call.inputs.values())), tokens)
        ):
            return Embedding(call.path)
    raise ModelError(
        f"inputs are tokens {tuple(tokens.shape)}, but no module of the model takes them and "
        "returns a vector for each. Pass their vectors, inputs=model.embedding(tokens), and "
        "forward=lambda model, inputs, time_delta: ... that runs the rest of the model"
    )
