"""The models that are measured, their data and their training step, in MLX."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from ncp_callbacks.models import LTC, CfC
from peers.cases import SCALES, Size, sequences

__all__ = ["Training"]


class Net(nn.Module):
    def __init__(self, kind: str, features: int, units: int) -> None:
        super().__init__()
        self.rnn = {"CfC": CfC, "LTC": LTC, "GRU": nn.GRU}[kind](features, units)
        self.head = nn.Linear(units, 1)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class GRUNet(Net):
    """A model that takes no elapsed time."""

    def __call__(self, x: mx.array) -> mx.array:  # type: ignore[override]
        return self.head(self.rnn(x))


class Training:
    """A model, its data, and the step that trains it.

    Args:
        kind: "CfC", "LTC" or "GRU".
        size: Of the model and its batch.
    """

    def __init__(self, kind: str, size: Size) -> None:
        mx.random.seed(0)
        self.model = (GRUNet if kind == "GRU" else Net)(kind, size.features, size.units)
        self._optimizer = optim.Adam(learning_rate=1e-3)
        x, time_delta, self._y = map(mx.array, sequences(size))
        self.inputs = [x] if kind == "GRU" else [x, time_delta]
        mx.eval(self.inputs, self._y, self.model.parameters())
        self._loss_and_grad = nn.value_and_grad(
            self.model, lambda y, *inputs: ((self.model(*inputs) - y) ** 2).mean()
        )

    def step(self) -> None:
        """Train on the whole batch."""
        loss, gradients = self._loss_and_grad(self._y, *self.inputs)
        self._optimizer.update(self.model, gradients)
        mx.eval(self.model.parameters(), self._optimizer.state, loss)

    def plain_passes(self, count: int, *, removal: bool) -> None:
        """Run the passes that the standard set needs, one after the other.

        They are the gradients of the last output by all inputs at four points, a forward pass at
        the baseline, and one for each other scale of the elapsed time, which a GRU has not.

        Args:
            count: Number of sequences.
            removal: Run a forward pass for each feature, each of four blocks of time and the
                elapsed time, too, as every eighth snapshot does.
        """
        inputs = [array[:count] for array in self.inputs]
        of = list(range(len(inputs)))
        for _ in range(4):
            mx.eval(mx.grad(lambda *a: self.model(*a)[:, -1].sum(), argnums=of)(*inputs))
        variants = 1 + (inputs[0].shape[2] + 4 + len(inputs) - 1 if removal else 0)
        for _ in range(variants):
            mx.eval(self.model(*inputs))
        for scale in SCALES if len(inputs) > 1 else ():
            if scale != 1:
                mx.eval(self.model(inputs[0], scale * inputs[1]))
