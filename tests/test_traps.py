"""Test that shares of features don't fool anybody, or that the callback says so.

Each model is a closed form in which one feature, the nuisance, moves the target little, however
large its values or its slopes are. Its share is small, or a note of the callback that logs it names
the doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp

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
        told: True where the default map is wrong, so that it is to say so.
    """

    function: Callable[[mx.array], mx.array]
    change: Callable[[np.ndarray, np.random.Generator], None] = lambda x, rng: None
    told: bool = False


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
        lambda x: 3 * mean(x, 0) + 0.05 * mx.sin(80 * x[:, -1, NUISANCE]), told=True
    ),
    "square wave": Trap(
        lambda x: 3 * mean(x, 0) + 0.05 * mx.tanh(20 * mx.sin(9 * x[:, -1, NUISANCE])), told=True
    ),
    "steep step": Trap(lambda x: x[:, -1, 0] + 0.05 * mx.tanh(300 * x[:, -1, NUISANCE])),
    # Values far from 0.
    "offset": Trap(lambda x: 4 * mean(x, 0) + 2 * mean(x, NUISANCE), offset(100, 0.1)),
    "large offset": Trap(lambda x: 4 * mean(x, 0) + mean(x, NUISANCE), offset(-5000, 0.05)),
    "product with an offset": Trap(
        lambda x: mean(x, 0) * x[:, -1, NUISANCE] / 100, offset(100, 0.5)
    ),
    # Levelled off.
    "latch": Trap(latch(3.0, 3.0), only_first, told=True),
    "slow latch": Trap(latch(1.5, 2.0), only_first, told=True),
    "saturated": Trap(lambda x: mx.tanh(50 * x[:, -1, 0]) + noise(x)),
    "saturated product": Trap(
        lambda x: mx.tanh(20 * x[:, 0, 0]) * mx.tanh(20 * x[:, -1, 2]) + noise(x)
    ),
    "clipped": Trap(lambda x: mx.clip(20 * x[:, -1, 0], -1, 1) + noise(x)),
    # Without a gradient.
    "threshold": Trap(
        lambda x: (x[:, -1, 0] > 0).astype(mx.float32) + noise(x), told=True
    ),
    "rounded": Trap(lambda x: mx.round(x[:, -1, 0]) + noise(x), told=True),
    "gradient stopped": Trap(lambda x: mx.stop_gradient(x[:, -1, 0]) + noise(x), told=True),
    # Even functions, and inputs at the mean.
    "square": Trap(lambda x: x[:, -1, 0] ** 2 + noise(x)),
    "absolute": Trap(lambda x: mx.abs(x[:, -1, 0]) + noise(x)),
    "cosine": Trap(lambda x: mx.cos(3 * x[:, -1, 0]) + noise(x)),
    # Gates and other products.
    "gate": Trap(lambda x: x[:, 0, 0] * x[:, -1, 2] + noise(x), binary_gate),
    "steep gate": Trap(lambda x: mx.sigmoid(20 * x[:, 0, 0]) * x[:, -1, 2] + noise(x) / 2),
    "product": Trap(lambda x: x[:, 0, 0] * x[:, -1, 2] + noise(x)),
    # Features that look alike.
    "unused copy": Trap(lambda x: 3 * mean(x, 0), copy_of_first),
    "unused distractor": Trap(lambda x: 3 * mean(x, 0) + noise(x), correlated),
    # A short event, long before.
    "delayed spike": Trap(lambda x: mx.tanh(2 * x[..., 0].max(axis=1) - 3) + noise(x), spike),
    "steep spike": Trap(
        lambda x: mx.sigmoid(40 * (x[..., 0].max(axis=1) - 2.6)) + noise(x), spike, told=True
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


def analysed(
    model: nn.Module, held_out: ncp.HeldOutBatch, callback: ncp.Callback | None = None
) -> tuple[dict[str, float], list[str]]:
    """Return the numbers of a snapshot, and the notes of the attribution."""
    writer, callback = ncp.MemoryWriter(), callback or ncp.GradientAttribution()
    with ncp.Monitor(model, held_out, [callback], writer=writer) as monitor:
        monitor.on_step_end(100)
    numbers = {r.tag: r.value for step, r in writer.records if step and isinstance(r, ncp.Scalar)}
    return numbers, [note for note in monitor.notes if note.startswith("attribution")]


def inputs_of(trap: Trap, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, T, 3))
    trap.change(x, rng)
    return x.astype(np.float32)


@pytest.mark.parametrize("name", TRAPS)
def test_a_nuisance_has_a_small_share_or_the_callback_says_so(name: str) -> None:
    trap = TRAPS[name]
    numbers, notes = analysed(Formula(trap.function), ncp.HeldOutBatch(inputs_of(trap)))
    share = numbers[f"attribution_share/feature {NUISANCE}"]
    disagree = [note for note in notes if "disagree beyond chance" in note]
    if not trap.told:
        assert share <= 0.10
        assert not [note for note in disagree if f"feature {NUISANCE} " in note]
    elif share > 0.10:
        assert disagree
        assert f"feature {NUISANCE} " in disagree[0]
        assert numbers["attribution/disputed"] >= 1


@pytest.mark.parametrize("name", [name for name, trap in TRAPS.items() if trap.told])
def test_removal_is_right_where_gradients_are_not(name: str) -> None:
    trap = TRAPS[name]
    held_out = ncp.HeldOutBatch(inputs_of(trap))
    numbers, _ = analysed(Formula(trap.function), held_out, ncp.FeatureRemoval())
    assert numbers[f"removal_share/feature {NUISANCE}"] <= 0.20


def test_a_small_disagreement_is_no_note() -> None:
    """Models that gradients describe well don't cry wolf."""
    for function in (
        lambda x: 3 * mean(x, 0) + mean(x, 1) + 0.5 * x[:, -1, 2],
        lambda x: mx.tanh(mean(x, 0)) + mx.sigmoid(2 * mean(x, 1)),
    ):
        numbers, notes = analysed(Formula(function), ncp.HeldOutBatch(inputs_of(TRAPS["square"])))
        assert notes == []
        assert numbers["attribution/disputed"] == 0


class Timed(nn.Module):
    """Depend on elapsed times, and hardly on inputs."""

    def __init__(self, steep: float) -> None:
        super().__init__()
        self.one, self.steep = mx.ones(1), steep

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        when = mx.tanh(self.steep * (time_delta.mean(axis=1) - 1))
        return (self.one * when + 0.01 * x[:, -1, NUISANCE])[:, None]


@pytest.mark.parametrize("steep", [1.0, 50.0])
def test_shares_of_features_are_not_read_as_the_whole_where_time_decides(steep: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, T, 3)).astype("f")
    dt = rng.uniform(0.2, 1.8, (N, T)).astype("f")
    numbers, notes = analysed(Timed(steep), ncp.HeldOutBatch(x, dt))
    assert numbers["attribution/time_share"] > 0.8
    assert numbers["attribution_share/feature 1"] > 0.9
    assert any("nearly all is attributed to elapsed times" in note for note in notes)


def test_input_x_gradient_of_the_light_set_logs_its_completeness_error() -> None:
    """It is complete for a linear model, and a note says so where the model has levelled off."""
    light = ncp.callbacks.callback_set("light")[0]
    x = inputs_of(TRAPS["offset"])
    numbers, notes = analysed(Formula(TRAPS["offset"].function), ncp.HeldOutBatch(x), light)
    assert numbers["attribution_share/feature 1"] <= 0.10
    assert numbers["attribution/completeness_error"] == pytest.approx(0, abs=1e-3)
    assert notes == []
    trap = TRAPS["saturated"]
    light = ncp.callbacks.callback_set("light")[0]
    held_out = ncp.HeldOutBatch(inputs_of(trap))
    numbers, notes = analysed(Formula(trap.function), held_out, light)
    assert numbers["attribution/incomplete"] > 0.5
    assert any("integrated_gradients" in note for note in notes)
