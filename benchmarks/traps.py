"""Define models in which a feature that hardly matters, the nuisance, seems important.

Each is a closed form in which the nuisance moves the target little, however large its values or its
slopes are. The tests check that its share is small, or that the callback that logs it names the
doubt; the benchmark of attribution methods shows its share by every method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

N, T, NUISANCE = 32, 20, 1


class Formula(nn.Module):
    """Return a function of the inputs as the model's only output, or as its outputs."""

    def __init__(self, function: Callable[[mx.array], mx.array]) -> None:
        super().__init__()
        self.one, self.function = mx.ones(1), function

    def __call__(self, x: mx.array) -> mx.array:
        found = self.function(x)
        return self.one * (found if found.ndim > 1 else found[:, None])


@dataclass
class Trap:
    """A model, and what its inputs are like.

    Attributes:
        function: The model.
        change: Changes normal inputs ``(N, T, 3)``.
        noted: True where the default map is wrong, so that a note names the nuisance.
    """

    function: Callable[[mx.array], mx.array]
    change: Callable[[np.ndarray, np.random.Generator], None] = lambda x, rng: None
    noted: bool = False


def mean(x: mx.array, feature: int) -> mx.array:
    return x[..., feature].mean(axis=1)


def offset(centre: float, spread: float) -> Callable[[Any, Any], None]:
    def change(x: np.ndarray, rng: np.random.Generator) -> None:
        x[..., NUISANCE] = centre + spread * x[..., NUISANCE]

    return change


def only_first(x: np.ndarray, rng: np.random.Generator) -> None:
    x[:, 1:, 0] = 0.0


def spike(x: np.ndarray, rng: np.random.Generator) -> None:
    x[..., 0] = 0.0
    x[np.arange(len(x)), rng.integers(2, T - 3, len(x)), 0] = rng.choice([0.0, 3.0], len(x))


def copy_of_first(x: np.ndarray, rng: np.random.Generator) -> None:
    x[..., NUISANCE] = x[..., 0]


def correlated(x: np.ndarray, rng: np.random.Generator) -> None:
    x[..., NUISANCE] = 0.95 * x[..., 0] + 0.3 * x[..., NUISANCE]


def binary_gate(x: np.ndarray, rng: np.random.Generator) -> None:
    x[..., 0] = rng.integers(0, 2, (len(x), 1))


def latch(gain: float, drive: float) -> Callable[[mx.array], mx.array]:
    def function(x: mx.array) -> mx.array:
        state = mx.zeros(len(x))
        for t in range(T):
            state = mx.tanh(gain * state + drive * x[:, t, 0])
        return state + 0.05 * x[:, -1, NUISANCE]

    return function


def noise(x: mx.array) -> mx.array:
    return 0.05 * x[:, -1, NUISANCE]


def logits(*own: mx.array, common: mx.array) -> mx.array:
    return mx.stack([each + common for each in own], axis=-1)


TRAPS = {
    # Small variance, large slopes.
    "high frequency": Trap(
        lambda x: 3 * mean(x, 0) + 0.05 * mx.sin(80 * x[:, -1, NUISANCE]), noted=True
    ),
    "square wave": Trap(
        lambda x: 3 * mean(x, 0) + 0.05 * mx.tanh(20 * mx.sin(9 * x[:, -1, NUISANCE])), noted=True
    ),
    "steep step": Trap(lambda x: x[:, -1, 0] + 0.05 * mx.tanh(300 * x[:, -1, NUISANCE])),
    # Values far from 0.
    "offset": Trap(lambda x: 4 * mean(x, 0) + 2 * mean(x, NUISANCE), offset(100, 0.1)),
    "large offset": Trap(lambda x: 4 * mean(x, 0) + mean(x, NUISANCE), offset(-5000, 0.05)),
    "product with an offset": Trap(
        lambda x: mean(x, 0) * x[:, -1, NUISANCE] / 100, offset(100, 0.5)
    ),
    # Levelled off.
    "latch": Trap(latch(3.0, 3.0), only_first, noted=True),
    "slow latch": Trap(latch(1.5, 2.0), only_first, noted=True),
    "saturated": Trap(lambda x: mx.tanh(50 * x[:, -1, 0]) + noise(x)),
    "saturated product": Trap(
        lambda x: mx.tanh(20 * x[:, 0, 0]) * mx.tanh(20 * x[:, -1, 2]) + noise(x)
    ),
    "clipped": Trap(lambda x: mx.clip(20 * x[:, -1, 0], -1, 1) + noise(x)),
    # Without a gradient.
    "threshold": Trap(
        lambda x: (x[:, -1, 0] > 0).astype(mx.float32) + noise(x), noted=True
    ),
    "rounded": Trap(lambda x: mx.round(x[:, -1, 0]) + noise(x), noted=True),
    "gradient stopped": Trap(lambda x: mx.stop_gradient(x[:, -1, 0]) + noise(x), noted=True),
    # Even functions, and inputs at the mean.
    "square": Trap(lambda x: x[:, -1, 0] ** 2 + noise(x)),
    "absolute": Trap(lambda x: mx.abs(x[:, -1, 0]) + noise(x)),
    "cosine": Trap(lambda x: mx.cos(3 * x[:, -1, 0]) + noise(x)),
    # Gates and other products.
    "gate": Trap(lambda x: x[:, 0, 0] * x[:, -1, 2] + noise(x), binary_gate),
    "steep gate": Trap(lambda x: mx.sigmoid(20 * x[:, 0, 0]) * x[:, -1, 2] + noise(x) / 2),
    "product": Trap(lambda x: x[:, 0, 0] * x[:, -1, 2] + noise(x)),
    # Features that resemble each other.
    "unused copy": Trap(lambda x: 3 * mean(x, 0), copy_of_first),
    "unused distractor": Trap(lambda x: 3 * mean(x, 0) + noise(x), correlated),
    # A short event, long before.
    "delayed spike": Trap(lambda x: mx.tanh(2 * x[..., 0].max(axis=1) - 3) + noise(x), spike),
    "steep spike": Trap(
        lambda x: mx.sigmoid(40 * (x[..., 0].max(axis=1) - 2.6)) + noise(x), spike, noted=True
    ),
    # What all classes have in common.
    "common mode of two": Trap(
        lambda x: logits(x[:, -1, 0], -x[:, -1, 0], common=5 * x[:, -1, NUISANCE])
    ),
    "common mode of three": Trap(
        lambda x: logits(x[:, -1, 0], x[:, -1, 2], 0 * x[:, -1, 0], common=9 * mean(x, NUISANCE))
    ),
    "common mode of log-probabilities": Trap(
        lambda x: nn.log_softmax(
            logits(x[:, -1, 0], x[:, -1, 2], common=5 * x[:, -1, NUISANCE]), axis=-1
        )
    ),
}  # fmt: skip
# One of each kind, for the benchmark.
SHOWN = (
    "high frequency", "offset", "latch", "delayed spike", "steep spike", "unused distractor",
    "common mode of two",
)  # fmt: skip


def inputs_of(trap: Trap, seed: int = 0) -> np.ndarray:
    """Return inputs ``(N, T, 3)``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, T, 3))
    trap.change(x, rng)
    return x.astype(np.float32)
