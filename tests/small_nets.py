"""A small recurrent network that several files of tests train."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

__all__ = ["Net"]


class Net(nn.Module):
    """Read one output off the last state of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 4), nn.Linear(4, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x))[:, -1, 0]
