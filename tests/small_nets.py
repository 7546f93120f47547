"""Small networks that several files of tests train or analyse."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

__all__ = ["Flat", "Net", "TanhCell", "TwoOutputs", "WeightedSum"]


class TanhCell(nn.Module):
    """Return the next state of a plain recurrent cell."""

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.mix = nn.Linear(features + units, units)

    def __call__(self, x: mx.array, h: mx.array) -> mx.array:
        return mx.tanh(self.mix(mx.concatenate([x, h], axis=-1)))


class Net(nn.Module):
    """Read one output off the last state of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 4), nn.Linear(4, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x))[:, -1, 0]


class TwoOutputs(nn.Module):
    """Read two outputs off the last state of a GRU of three features."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 4), nn.Linear(4, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(self.rnn(x))[:, -1]


class Flat(nn.Module):
    """Read two outputs off all inputs at once, without a cell."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(x.reshape(len(x), -1))


class WeightedSum(nn.Module):
    """Return the sum of the inputs times ``weights``, ``(T, F)``."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weights = mx.array(weights.astype(np.float32))

    def __call__(self, x: mx.array) -> mx.array:
        return (x * self.weights).sum(axis=(1, 2))[:, None]
