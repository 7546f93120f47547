"""Front ends of frames: activations are read after their function, wherever a module shows them."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from small_nets import TanhCell

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.passes import observe

B, T, SIDE, C = 3, 5, 8, 2
FRAMES = np.random.default_rng(0).standard_normal((B, T, SIDE, SIDE, C)).astype(np.float32)


class Pooled(nn.Module):
    """Two convolutions with pooling after them, and a layer.

    Args:
        modules: True if activations are modules, False if they are functions.
        pool: True if pooling is a module.
        run: The order in which frames go through.
        layer: True if the recurrent part is one layer, False for a loop over a cell.
        last: The activation of the last layer.
    """

    def __init__(self, modules: bool, pool: bool, run: str, layer: bool, last: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(C, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 4, 3, padding=1)
        self.flat = nn.Linear(4 * (SIDE // 4) ** 2, 6)
        self.relu, self.tanh, self.pool = nn.ReLU(), nn.Tanh(), nn.MaxPool2d(2, 2)
        self.cell, self.gru, self.head = TanhCell(6, 5), nn.GRU(6, 5), nn.Linear(5, 2)
        self.modules_, self.pool_, self.run, self.layer, self.last = modules, pool, run, layer, last

    def pooled(self, x: mx.array) -> mx.array:
        if self.pool_:
            return self.pool(x)
        n, height, width, channels = x.shape
        return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))

    def hidden(self, frames: mx.array) -> list[mx.array]:
        relu = self.relu if self.modules_ else nn.relu
        one = relu(self.first(frames))
        two = relu(self.second(self.pooled(one)))
        three = self.flat(self.pooled(two).reshape(len(frames), -1))
        if self.last == "tanh":
            three = self.tanh(three) if self.modules_ else mx.tanh(three)
        return [one, two, three]

    def features(self, x: mx.array) -> mx.array:
        batch, steps, *frame = x.shape
        if self.run == "batch first":
            return self.hidden(x.reshape(-1, *frame))[2].reshape(batch, steps, -1)
        if self.run == "time first":
            rows = x.swapaxes(0, 1).reshape(-1, *frame)
            return self.hidden(rows)[2].reshape(steps, batch, -1).swapaxes(0, 1)
        return mx.stack([self.hidden(x[:, t])[2] for t in range(steps)], axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        if self.layer:
            return self.head(self.gru(self.features(x))[:, -1])
        h, found = mx.zeros((len(x), 5)), None if self.run == "in the loop" else self.features(x)
        for t in range(x.shape[1]):
            h = self.cell(self.hidden(x[:, t])[2] if found is None else found[:, t], h)
        return self.head(h)


def layers_of(model: nn.Module, x: np.ndarray = FRAMES) -> dict[str, Any]:
    runner = ModelRunner(model, ncp.HeldOutBatch(x), target=0)
    with runner.analysing():
        found = observe(runner, 0, {ncp.Need.ACTIVATIONS}).activations
    return {layer.layer: layer for layer in found}


def check(layer: Any, activation: str, values: mx.array) -> None:
    assert layer.activation == activation
    np.testing.assert_allclose(
        layer.values, np.array(values).reshape(B, T, -1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("last", ["tanh", "identity"])
@pytest.mark.parametrize(
    ("run", "layer"),
    [
        (run, layer)
        for run in ("batch first", "time first", "steps", "in the loop")
        for layer in (False, True)
        if not (layer and run == "in the loop")
    ],
)
@pytest.mark.parametrize(("modules", "pool"), [(False, True), (True, False), (True, True)])
def test_activations_are_read_before_pooling_and_after_the_last_layer(
    modules: bool, pool: bool, run: str, layer: bool, last: str
) -> None:
    mx.random.seed(3)
    model = Pooled(modules, pool, run, layer, last)
    one, two, three = model.hidden(mx.array(FRAMES.reshape(-1, SIDE, SIDE, C)))
    layers = layers_of(model)
    assert list(layers) == ["first", "second", "flat"]
    check(layers["first"], "relu", one)
    check(layers["second"], "relu", two)
    check(layers["flat"], last, three)


@pytest.mark.parametrize("run", ["batch first", "steps"])
def test_an_activation_that_no_module_shows_is_unknown(run: str) -> None:
    mx.random.seed(3)
    model = Pooled(False, False, run, True, "tanh")
    layers = layers_of(model)
    frames = mx.array(FRAMES.reshape(-1, SIDE, SIDE, C))
    one, _, three = model.hidden(frames)
    check(layers["first"], "unknown", model.first(frames))
    check(layers["second"], "unknown", model.second(model.pooled(one)))
    check(layers["flat"], "tanh", three)


class Normed(nn.Module):
    """A convolution, a norm, an activation, and pooling or a mean over positions."""

    def __init__(self, norm: nn.Module, pool: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(C, 4, 3, padding=1), norm, pool
        self.rnn, self.head = nn.GRU(4, 5), nn.Linear(5, 2)

    def hidden(self, frames: mx.array) -> mx.array:
        return mx.tanh(self.norm(self.conv(frames)))

    def __call__(self, x: mx.array) -> mx.array:
        z = self.hidden(x.reshape(-1, *x.shape[2:]))
        z = z if self.pool is None else self.pool(z)
        return self.head(self.rnn(z.mean(axis=(1, 2)).reshape(*x.shape[:2], -1))[:, -1])


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm(4), lambda: nn.GroupNorm(2, 4)])
def test_a_norm_may_lie_before_the_activation(norm: Any) -> None:
    model = Normed(norm(), nn.AvgPool2d(2, 2))
    frames = mx.array(FRAMES.reshape(-1, SIDE, SIDE, C))
    model.eval()
    check(layers_of(model)["conv"], "tanh", model.hidden(frames))
    # Without a module behind the activation, only the layer's output is known.
    model = Normed(norm(), None)
    check(layers_of(model)["conv"], "unknown", model.conv(frames))


class Stereo(nn.Module):
    """Two cameras, in a dict or as two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(C, 2, 3, stride=4), nn.Conv2d(1, 2, 3, stride=4)
        self.rnn, self.head = nn.GRU(16, 5), nn.Linear(5, 2)

    def __call__(self, left: Any, right: mx.array | None = None) -> mx.array:
        if right is None:
            left, right = left["left"], left["right"]
        batch, steps, *_ = left.shape
        parts = [
            nn.relu(conv(x.reshape(-1, *x.shape[2:]))).reshape(batch, steps, -1)
            for conv, x in ((self.left, left), (self.right, right))
        ]
        return self.head(self.rnn(mx.concatenate(parts, axis=-1))[:, -1])


@pytest.mark.parametrize("named", [True, False])
def test_two_cameras_are_analysed_together_as_the_error_tells(named: bool) -> None:
    left, right = mx.array(FRAMES), mx.array(FRAMES[..., :1] ** 2)
    given: Any = {"left": left, "right": right} if named else (left, right)
    with pytest.raises(ValueError, match="To analyse them together") as caught:
        ncp.HeldOutBatch(given)
    advice = re.search(r"forward=(lambda .*), with the elapsed times", str(caught.value))
    assert advice is not None
    model = Stereo()
    forward = eval(advice[1], {"mx": mx})
    joined = mx.concatenate([left, right], axis=-1)
    runner = ModelRunner(model, ncp.HeldOutBatch(joined), target=0, forward=forward)
    with runner.analysing():
        found = observe(runner, 0, {ncp.Need.INPUT_GRADIENT}).input_gradient
    both = mx.grad(lambda a, b: model(a, b)[:, 0].sum(), argnums=(0, 1))(left, right)
    assert found is not None
    np.testing.assert_allclose(
        found, np.array(mx.concatenate(both, axis=-1)).reshape(B, T, -1), rtol=1e-4, atol=1e-7
    )


class TurnedTwice(nn.Module):
    """Turns padded sequences round within their length, and runs its front end from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(C, 3, 3, padding=1), nn.Conv2d(3, 4, 3, stride=4)
        self.rnn, self.head = nn.GRU(16, 5), nn.Linear(5, 1)

    def features(self, frames: mx.array) -> mx.array:
        return mx.tanh(self.second(nn.relu(self.first(frames)))).reshape(len(frames), -1)

    def __call__(self, given: tuple[mx.array, mx.array]) -> mx.array:
        x, lengths = given
        t = mx.arange(x.shape[1])[None]
        turned = mx.where(t < lengths[:, None], lengths[:, None] - 1 - t, t)
        x = mx.take_along_axis(x, turned.reshape(*turned.shape, 1, 1, 1), axis=1)
        back = [self.features(x[:, t]) for t in reversed(range(x.shape[1]))]
        return self.head(self.rnn(mx.stack(back[::-1], axis=1))[:, -1])


@pytest.mark.parametrize("lengths", [[5, 5, 2, 3], [5, 5, 4, 5, 1], [5, 2, 5]])
def test_layers_whose_order_is_unknown_for_other_sequences_are_skipped(lengths: list[int]) -> None:
    mask = np.arange(T)[None] < np.array(lengths)[:, None]
    x = np.random.default_rng(1).standard_normal((len(lengths), T, SIDE, SIDE, C))
    batch = ncp.HeldOutBatch((x.astype(np.float32), mx.array(lengths)), mask=mask)
    runner = ModelRunner(TurnedTwice(), batch, target=0)
    layers = {hook.name: hook.skipped for hook in runner.hook_points.layers}
    assert all("direction can't be determined" in reason for reason in layers.values())
    notes = " ".join(runner.notes)
    assert all(f"{name} is " in notes for name in ("first", "second"))
