"""Frames: layouts, values by explicit loops, front ends by their rows, pictures, the example."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from PIL import Image
from promises import pattern, promised, told
from test_interactions import check_picture
from test_interactions import logged as run

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.attribution import (
    ExpectedGradients,
    IntegratedGradients,
    Occlusion,
    SmoothGrad,
    _checks,
    compute,
    switches,
)
from ncp_callbacks.attribution.compute import Attributor
from ncp_callbacks.callbacks.frame_attribution.plot import Strip
from ncp_callbacks.fingerprint import batch_digest
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import CfC
from ncp_callbacks.plots import plot_frame_strip, to_png
from ncp_callbacks.runs import read_run
from ncp_callbacks.target_values import TargetValues

B, T, H, W, C = 4, 5, 8, 6, 3
RNG = np.random.default_rng(0)
FRAMES = RNG.standard_normal((B, T, H, W, C)).astype(np.float32)
NAMES = ["red", "green", "blue"]


class Conv(nn.Module):
    """Two convolutions and a layer before a CfC; ``order`` is how frames go through them."""

    def __init__(self, order: str = "batch first") -> None:
        super().__init__()
        self.first = nn.Conv2d(C, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.flat = nn.Linear(5 * 2 * 2, 6)
        self.rnn = CfC(6, 7, backbone_units=8)
        self.head = nn.Linear(7, 2)
        self.order = order

    def features(self, frames: mx.array) -> mx.array:
        x = nn.relu(self.second(nn.relu(self.first(frames))))
        return nn.relu(self.flat(x.reshape(len(x), -1)))

    def __call__(self, x: mx.array) -> mx.array:
        batch, steps, *frame = x.shape
        if self.order == "batch first":
            found = self.features(x.reshape(-1, *frame)).reshape(batch, steps, -1)
        elif self.order == "time first":
            rows = x.swapaxes(0, 1).reshape(-1, *frame)
            found = self.features(rows).reshape(steps, batch, -1).swapaxes(0, 1)
        elif self.order == "steps":
            found = mx.stack([self.features(x[:, t]) for t in range(steps)], axis=1)
        else:
            back = [self.features(x[:, t]) for t in reversed(range(steps))]
            found = mx.stack(back[::-1], axis=1)
        states, _ = self.rnn(found)
        return self.head(states)


class Flat(nn.Module):
    """One layer on all values of a frame, and a CfC."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.layer = nn.Linear(values, 6)
        self.rnn = CfC(6, 5, backbone_units=4)
        self.head = nn.Linear(5, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        states, _ = self.rnn(nn.tanh(self.layer(x.reshape(*x.shape[:2], -1))), time_delta)
        return self.head(states)


class Linear(nn.Module):
    """A linear convolution, and a weighted sum over positions and time: no bias, no bends."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, 2, 3, padding=1, bias=False)
        self.weight = mx.random.normal((T, H, W, 2))

    def __call__(self, x: mx.array) -> mx.array:
        maps = self.conv(x.reshape(-1, H, W, C)).reshape(len(x), T, H, W, 2)
        return (maps * self.weight).sum(axis=(1, 2, 3, 4))[:, None]


class ChannelsFirst(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __call__(self, x: mx.array) -> mx.array:
        return cast(mx.array, self.inner(mx.moveaxis(x, 2, -1)))


def seeded(build: Callable[[], nn.Module]) -> Any:
    mx.random.seed(3)
    model = build()
    mx.eval(model.parameters())
    return model


def observe(
    model: nn.Module, held_out: ncp.HeldOutBatch, *needs: ncp.Need, target: Any = 1, **more: Any
) -> ncp.Observation:
    runner = ModelRunner(model, held_out, target=target, **more)
    with runner.analysing():
        seen = passes.observe(runner, 1, {ncp.Need.INPUT_GRADIENT, *needs})
        assert seen.input_gradient is not None
        if ncp.Need.ACTIVATIONS in needs:
            assert seen.activations
        if ncp.Need.STATES in needs:
            assert seen.states
    return seen


def attribute(
    model: nn.Module, held_out: ncp.HeldOutBatch, method: Any, baseline: Any = None, **more: Any
) -> tuple[Any, np.ndarray]:
    """The attribution by feature, and by column."""
    attributor = Attributor(method, baseline)
    runner = ModelRunner(model, held_out, **more)
    with runner.analysing():
        seen = passes.observe(runner, 1, attributor.needs)
        columns = (
            np.zeros(0)
            if attributor.method.replaces_inputs
            else attributor.attribute_columns(seen, lambda maps: maps).inputs
        )
        return attributor.attribute(seen), columns


def own_gradient(model: Callable[[mx.array], mx.array], x: np.ndarray, output: int) -> np.ndarray:
    """The gradient of each sequence's own output at the last step, one sequence at a time."""

    def last(one: mx.array) -> mx.array:
        found = model(one[None])[0]
        return found[..., output] if found.ndim == 1 else found[-1, output]

    return np.stack([np.array(mx.grad(last)(mx.array(one))) for one in x])


# ---- the held-out batch


def test_channels_are_the_last_axis_and_have_names() -> None:
    held_out = ncp.HeldOutBatch(FRAMES, feature_names=NAMES)
    assert held_out.inputs_shape == (B, T, C)
    assert held_out.frame_shape == (H, W, C)
    assert held_out.picture_shape == (H, W)
    assert held_out.columns.shape == (B, T, H * W * C)
    assert tuple(held_out.inputs.shape) == FRAMES.shape
    assert "frames 8 × 6 × 3, 3 features" in repr(held_out)
    assert ncp.HeldOutBatch(FRAMES).feature_names == ("channel 0", "channel 1", "channel 2")
    part = held_out.take(np.array([2, 0]))
    np.testing.assert_array_equal(np.array(part.inputs), FRAMES[[2, 0]])


@pytest.mark.parametrize(
    ("shape", "axis", "frame", "sides"),
    [
        ((H, W, C), "last", (H, W), (0, 1)),
        ((C, H, W), 2, (H, W), (1, 2)),
        ((H, C, W), -2, (H, W), (0, 2)),
        ((5, 4), "last", None, (0,)),
        ((5, 4), 2, None, (1,)),
        ((2, 3, 4, 2), 3, None, (0, 2, 3)),
    ],
)
def test_sums_by_feature_are_those_of_an_explicit_loop(
    shape: tuple[int, ...], axis: Any, frame: Any, sides: tuple[int, ...]
) -> None:
    x = RNG.standard_normal((B, T, *shape)).astype(np.float32)
    held_out = ncp.HeldOutBatch(x, channel_axis=axis)
    assert held_out.picture_shape == frame
    (own,) = set(range(len(shape))) - set(sides)
    assert held_out.channel_axis == own
    assert held_out.inputs_shape == (B, T, shape[own])
    columns = np.array(held_out.columns)
    found = held_out.by_feature(columns)
    wanted = np.zeros((B, T, shape[own]))
    for place in np.ndindex(*shape):
        wanted[..., place[own]] += x[(..., *place)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    feature = held_out.feature_of_columns(columns.shape[2])
    again = np.stack([columns[..., feature == i].sum(axis=-1) for i in range(shape[own])], axis=-1)
    np.testing.assert_allclose(again, wanted, rtol=1e-5, atol=1e-5)


def test_frames_without_channels_are_one_feature() -> None:
    held_out = ncp.HeldOutBatch(FRAMES[..., 0], channel_axis=None)
    assert held_out.inputs_shape == (B, T, 1)
    assert held_out.feature_names == ("frame",)
    assert held_out.picture_shape == (H, W)
    np.testing.assert_allclose(
        held_out.by_feature(np.array(held_out.columns))[..., 0],
        FRAMES[..., 0].sum(axis=(2, 3)),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("shape", "more", "message"),
    [
        ((B, T, 3, 16, 12), {}, r"axis 2 is probably that of the channels: pass channel_axis=2"),
        ((B, T, 1, 16, 12), {}, "pass channel_axis=2, or channel_axis=-1"),
        ((B, T, 28, 28), {}, "frames without channels: pass channel_axis=None"),
        ((B, T, 3, 4, 6), {"feature_names": NAMES}, "pass channel_axis=2 if that axis"),
        ((B, T, 5, 4), {"feature_names": list("abcde")}, "pass channel_axis=2 if that axis"),
        ((B, T, 5, 4), {"feature_names": list("abc")}, "3 names for 4 features"),
        ((B, T, 5, 4), {"channel_axis": 1}, r"channel_axis=1, but the axes of a frame .* 2 to 3"),
        ((B, T, 5, 4), {"channel_axis": 4}, "channel_axis=4, but the axes"),
        ((B, T, 5, 4), {"channel_axis": -3}, "channel_axis=-3, but the axes"),
        ((B, T, 5), {"channel_axis": None}, "are not frames: don't pass it"),
        ((B, 5), {}, "frames \\(batch, time steps, ..., channels\\)"),
        ((B, T, 0, 4), {}, "none of them 0"),
    ],
)
def test_what_is_likely_to_be_a_mistake_is_an_error_with_the_fix(
    shape: tuple[int, ...], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ncp.HeldOutBatch(np.zeros(shape, np.float32), **more)


@pytest.mark.parametrize("axis", ["first", 2.0, True])
def test_the_axis_is_a_number(axis: Any) -> None:
    with pytest.raises(TypeError, match="pass the number of an axis"):
        ncp.HeldOutBatch(FRAMES, channel_axis=axis)


@pytest.mark.parametrize("axis", [-1, 4])
def test_an_axis_that_is_passed_is_taken(axis: int) -> None:
    held_out = ncp.HeldOutBatch(np.zeros((B, T, 3, 16, 12), np.float32), channel_axis=axis)
    assert held_out.inputs_shape == (B, T, 12)
    # A named last axis is no guess either.
    named = ncp.HeldOutBatch(np.zeros((B, T, 9, 8), np.float32), feature_names=list("abcdefgh"))
    assert named.inputs_shape == (B, T, 8)


def test_integers_are_no_frames() -> None:
    with pytest.raises(TypeError, match=r"use inputs.astype\(mx.float32\)"):
        ncp.HeldOutBatch((255 * np.abs(FRAMES)).astype(np.uint8))


def test_what_is_not_finite_in_padding_is_replaced() -> None:
    mask = np.ones((B, T), bool)
    mask[1, 3:] = False
    x = FRAMES.copy()
    x[1, 3:] = np.nan
    held_out = ncp.HeldOutBatch(x, mask=mask)
    np.testing.assert_array_equal(np.array(held_out.inputs)[1, 3:], 0.0)
    np.testing.assert_array_equal(np.array(held_out.inputs)[mask], FRAMES[mask])


def test_frames_come_in_containers() -> None:
    still = np.zeros((B, H, W, C), np.float32)
    held_out = ncp.HeldOutBatch({"camera": FRAMES, "place": np.zeros((B, 2), np.float32)})
    assert held_out.frame_shape == (H, W, C)
    packed = held_out.pack(mx.concatenate([held_out.columns] * 2))
    assert packed["camera"].shape == (2 * B, T, H, W, C)
    # One picture for a sequence is a companion; which of two sequences to analyse is not guessed.
    assert ncp.HeldOutBatch((FRAMES[:, :, 0, 0], still)).frame_shape == (C,)
    with pytest.raises(ValueError, match="Pass the one to analyse"):
        ncp.HeldOutBatch({"camera": FRAMES, "speed": np.zeros((B, T, 1), np.float32)})


def test_the_digest_goes_by_the_names_of_channels() -> None:
    order = [2, 0, 1]
    one = batch_digest(ncp.HeldOutBatch(FRAMES, feature_names=NAMES))
    moved = ncp.HeldOutBatch(FRAMES[..., order], feature_names=[NAMES[i] for i in order])
    assert batch_digest(moved) == one
    assert batch_digest(ncp.HeldOutBatch(FRAMES[..., order], feature_names=NAMES)) != one
    first = np.moveaxis(FRAMES, -1, 2)
    a, b = (
        batch_digest(
            ncp.HeldOutBatch(first[:, :, o], channel_axis=2, feature_names=[NAMES[i] for i in o])
        )
        for o in ([0, 1, 2], order)
    )
    assert a == b


# ---- values


@pytest.mark.parametrize("order", ["batch first", "time first", "steps"])
def test_gradients_are_those_of_single_sequences(order: str) -> None:
    model = seeded(lambda: Conv(order))
    wanted = own_gradient(model, FRAMES, 1)
    seen = observe(model, ncp.HeldOutBatch(FRAMES))
    np.testing.assert_allclose(
        seen.input_gradient.reshape(FRAMES.shape), wanted, rtol=1e-3, atol=1e-6
    )
    np.testing.assert_array_equal(seen.inputs.reshape(FRAMES.shape), FRAMES)


@pytest.mark.parametrize("axis", [-1, 2])
def test_numbers_by_channel_are_sums_over_pixels(axis: int) -> None:
    model = seeded(Conv)
    product = FRAMES * own_gradient(model, FRAMES, 1)
    by_channel = product.sum(axis=(2, 3))
    x, wrapped = (FRAMES, model) if axis == -1 else (np.moveaxis(FRAMES, -1, 2), None)
    held_out = ncp.HeldOutBatch(x, channel_axis=axis, feature_names=NAMES)
    product = ncp.GradientAttribution(method="input_x_gradient", baseline="zeros")
    records, _ = run(product, wrapped or ChannelsFirst(model), held_out, target=1)
    signed, size = (
        records[f"_ncp/attribution_output1_{name}"].values for name in ("signed", "strength")
    )
    np.testing.assert_allclose(signed, by_channel.mean(axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(size, np.abs(by_channel).mean(axis=0), rtol=1e-3, atol=1e-6)
    contributions = np.abs(by_channel.sum(axis=1)).sum(axis=0)
    share = contributions / contributions.sum()
    for i, name in enumerate(NAMES):
        found = records[f"attribution_output1_share/{name}"].value
        assert found == pytest.approx(share[i], rel=1e-3)


@pytest.mark.parametrize(
    "baseline", [None, "zeros", 0.5, [0.1, 0.2, 0.3], FRAMES[0, 0], FRAMES[0], FRAMES[::-1].copy()]
)
def test_integrated_gradients_of_a_linear_model_are_exact(baseline: Any) -> None:
    model = seeded(Linear)
    start = FRAMES.mean(axis=(0, 1)) if baseline is None else baseline
    x0 = np.broadcast_to(0.0 if isinstance(start, str) else start, FRAMES.shape)
    weight = own_gradient(model, FRAMES, 0)
    wanted = (FRAMES - x0) * weight
    found, columns = attribute(
        model, ncp.HeldOutBatch(FRAMES), IntegratedGradients(n_steps=3), baseline
    )
    np.testing.assert_allclose(columns.reshape(FRAMES.shape), wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.inputs, wanted.sum(axis=(2, 3)), rtol=1e-3, atol=1e-4)
    # Complete: the sum is the change of the target.
    change = np.array(model(mx.array(FRAMES)) - model(mx.array(x0.astype(np.float32))))[:, 0]
    np.testing.assert_allclose(found.inputs.sum(axis=(1, 2)), change, rtol=1e-3, atol=1e-3)
    assert found.error is not None
    assert found.error.max() < 1e-4


@pytest.mark.parametrize("bad", [[0.1, 0.2], np.zeros((H, W)), np.zeros((T + 1, H, W, C))])
def test_a_baseline_that_does_not_fit_frames_is_an_error(bad: Any) -> None:
    with pytest.raises(ValueError, match="baseline has shape"):
        attribute(seeded(Linear), ncp.HeldOutBatch(FRAMES), IntegratedGradients(2), bad)


def test_expected_gradients_draw_sequences_of_frames() -> None:
    model = seeded(Linear)
    drawn = FRAMES[:2] + 1.0
    method = ExpectedGradients(n_samples=2)
    found, _ = attribute(model, ncp.HeldOutBatch(FRAMES), method, drawn)
    weight = own_gradient(model, FRAMES, 0)
    # Of a linear model both baselines, each drawn once, give their mean.
    wanted = ((FRAMES - drawn.mean(axis=0)) * weight).sum(axis=(2, 3))
    np.testing.assert_allclose(found.inputs, wanted, rtol=1e-3, atol=1e-3)


def test_occlusion_replaces_a_channel_at_a_time() -> None:
    model, held_out = seeded(Conv), ncp.HeldOutBatch(FRAMES)
    mean = FRAMES.mean(axis=(0, 1))
    found, _ = attribute(model, held_out, Occlusion(), target=1)
    plain = np.array(model(mx.array(FRAMES)))[:, -1, 1]
    for t in range(T):
        for c in range(C):
            x = FRAMES.copy()
            x[:, t, :, :, c] = mean[..., c]
            fall = plain - np.array(model(mx.array(x)))[:, -1, 1]
            np.testing.assert_allclose(found.inputs[:, t, c], fall, rtol=1e-3, atol=1e-5)
    records, _ = run(ncp.GradientAttribution(method="occlusion"), model, held_out)
    assert records["attribution/extra_passes"].value == T * C


def test_occlusion_replaces_a_token_at_a_time() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.rnn = CfC(4, 5, backbone_units=4)
            self.head = nn.Linear(5, 1)

        def __call__(self, x: mx.array) -> mx.array:
            return self.after(self.embedding(x))

        def after(self, vectors: mx.array) -> mx.array:
            return self.head(self.rnn(vectors)[0])

    model, tokens = seeded(Words), RNG.integers(0, 9, (B, T))
    found, _ = attribute(model, ncp.HeldOutBatch(tokens), Occlusion())
    vectors = np.array(model.embedding(mx.array(tokens)))
    plain = np.array(model.after(mx.array(vectors)))[:, -1, 0]
    for t in range(T):
        other = vectors.copy()
        other[:, t] = vectors.mean(axis=(0, 1))
        fall = plain - np.array(model.after(mx.array(other)))[:, -1, 0]
        np.testing.assert_allclose(found.inputs[:, t, 0], fall, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "method", ["input_x_gradient", IntegratedGradients(n_steps=3), Occlusion(), "gradient"]
)
def test_large_inputs_are_attributed_in_parts_and_alike(method: Any) -> None:
    model, held_out = seeded(Conv), ncp.HeldOutBatch(FRAMES)
    whole, _ = attribute(model, held_out, method)
    size = T * H * W * C
    with (
        mock.patch.object(compute, "_MAX_ELEMENTS", 3 * size),
        mock.patch.object(switches, "_MAX_ELEMENTS", 2 * B * size),
    ):
        parts, _ = attribute(model, held_out, method)
    np.testing.assert_allclose(parts.inputs, whole.inputs, rtol=1e-4, atol=1e-6)
    if whole.change is not None:
        np.testing.assert_allclose(parts.change, whole.change, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [SmoothGrad(7), IntegratedGradients(7), ExpectedGradients(7)])
def test_memory_of_many_gradients_is_bounded(method: Any) -> None:
    x, sizes = FRAMES.reshape(B, T, -1), []

    def evaluate(
        inputs: Any = None, time_delta: Any = None, *, rows: Any = None, gradient: bool = False
    ) -> TargetValues:
        sizes.append(inputs.size)
        return TargetValues(inputs.sum(axis=(2, 3)), np.ones_like(inputs) if gradient else None)

    start = x if method.draws_baselines else np.zeros_like(x)
    with mock.patch.object(_checks, "_MAX_ELEMENTS", 2 * x.size):
        maps = method.attribute(evaluate, x, None, baseline=start, time_baseline=None, mask=None)
    assert max(sizes) == 2 * x.size
    if isinstance(method, IntegratedGradients):
        np.testing.assert_allclose(maps.inputs, x, rtol=1e-6)


# ---- the front end


@pytest.mark.parametrize("order", ["batch first", "time first", "steps", "steps backwards"])
@pytest.mark.parametrize("batch", [1, 2, B])
def test_layers_before_the_cell_belong_to_sequences_and_time_steps(order: str, batch: int) -> None:
    model, x = seeded(lambda: Conv(order)), FRAMES[:batch]
    seen = observe(model, ncp.HeldOutBatch(x), ncp.Need.ACTIVATIONS, ncp.Need.STATES)
    layers = {layer.layer: layer for layer in seen.activations}
    assert list(layers) == ["first", "second", "flat", "rnn.cell.backbone.layers.0"]
    one = nn.relu(model.first(mx.array(x.reshape(-1, H, W, C))))
    two = nn.relu(model.second(one))
    three = nn.relu(model.flat(two.reshape(len(two), -1)))
    for name, values in (("first", one), ("second", two), ("flat", three)):
        wanted = np.array(values).reshape(batch, T, -1)
        np.testing.assert_allclose(layers[name].values, wanted, rtol=1e-4, atol=1e-5)
    assert [layers[name].activation for name in ("first", "second", "flat")] == ["relu"] * 3


def test_an_encoder_in_modules_is_found() -> None:
    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                nn.Conv2d(C, 4, 3, stride=2, padding=1), nn.GELU(),
                nn.Conv2d(4, 3, 3, stride=2, padding=1), nn.Tanh(),
            )  # fmt: skip
            self.rnn = nn.GRU(12, 5)
            self.head = nn.Linear(5, 1)

        def __call__(self, x: mx.array) -> mx.array:
            z = self.encoder(x.reshape(-1, H, W, C))
            return self.head(self.rnn(z.reshape(*x.shape[:2], -1)))

    model = seeded(Encoded)
    seen = observe(model, ncp.HeldOutBatch(FRAMES), ncp.Need.ACTIVATIONS, target=0)
    names = [(layer.layer, layer.activation) for layer in seen.activations]
    # GELU is found by its exact or its tanh form.
    assert [name for name, _ in names] == ["encoder.layers.0", "encoder.layers.2"]
    assert names[0][1].startswith("gelu")
    assert names[1][1] == "tanh"
    frames = mx.array(FRAMES.reshape(-1, H, W, C))
    last = np.array(model.encoder(frames)).reshape(B, T, -1)
    np.testing.assert_allclose(seen.activations[1].values, last, rtol=1e-4, atol=1e-5)


def test_a_layer_that_mixes_time_steps_is_skipped_with_a_note() -> None:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(C, 2, 3, padding=1)
            self.own = nn.Conv2d(2, 3, 3, stride=2, padding=1)
            self.rnn = CfC(3 * (H // 2) * (W // 2), 5, backbone_units=4)
            self.head = nn.Linear(5, 1)

        def __call__(self, x: mx.array) -> mx.array:
            z = nn.relu(self.conv(x))
            z = self.own(z.reshape(-1, H, W, 2)).reshape(*x.shape[:2], -1)
            return self.head(self.rnn(z)[0])

    runner = ModelRunner(seeded(Video), ncp.HeldOutBatch(FRAMES))
    assert [hook.name for hook in runner.hook_points.layers] == ["rnn.cell.backbone.layers.0"]
    notes = " ".join(runner.notes)
    assert "conv is not analysed: each row of its output must depend on one frame" in notes
    assert "own is not analysed" in notes


def test_layers_of_sequences_in_another_order_are_skipped() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(C, 2, 3), nn.Conv2d(2, 2, 3)
            self.rnn, self.head = nn.GRU(2 * (H - 4) * (W - 4), 4), nn.Linear(4, 2)

        def __call__(self, x: mx.array) -> mx.array:
            # The first sequences keep their places.
            order = mx.array([0, 1, *range(len(x) - 1, 1, -1)][: len(x)])
            frames = x[order].reshape(-1, H, W, C)
            maps = self.second(nn.relu(self.first(frames))).reshape(len(x), T, -1)
            return self.head(self.rnn(maps)[:, -1])[mx.argsort(order)]

    runner = ModelRunner(Sorted(), ncp.HeldOutBatch(FRAMES))
    assert len(FRAMES) > 3
    layers = {hook.name: hook for hook in runner.hook_points.layers}
    assert "first" in layers
    assert all("orders that differ between parts" in hook.skipped for hook in layers.values())


def test_layers_are_named_and_large_convolutions_sampled() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 3, padding=1)
            self.rnn = CfC(6, 5, backbone_units=4)
            self.head = nn.Linear(5, 1)

        def __call__(self, x: mx.array) -> mx.array:
            z = nn.relu(self.conv(x.reshape(-1, *x.shape[2:]))).mean(axis=(1, 2))
            return self.head(self.rnn(z.reshape(*x.shape[:2], -1))[0])

    model, x = seeded(Wide), RNG.standard_normal((2, T, 64, 64, 1)).astype(np.float32)
    seen = observe(
        model, ncp.HeldOutBatch(x), ncp.Need.ACTIVATIONS, target=0, layers=["conv", "head"]
    )
    conv, head = seen.activations
    assert (conv.layer, head.layer) == ("conv", "head")
    # All channels, at every sixth position: 64 × 64 × 6 units are six times 4,096.
    wanted = np.array(model.conv(mx.array(x.reshape(-1, 64, 64, 1)))).reshape(2, T, -1, 6)
    np.testing.assert_allclose(
        conv.values, wanted[:, :, ::6].reshape(2, T, -1), rtol=1e-4, atol=1e-5
    )
    assert conv.values.shape[2] <= 4_200


def test_a_layer_before_the_cell_is_no_backbone_without_frames() -> None:
    runner = ModelRunner(seeded(lambda: Flat(3)), ncp.HeldOutBatch(FRAMES[:, :, 0, 0]))
    assert [hook.name for hook in runner.hook_points.layers] == ["rnn.cell.backbone.layers.0"]


# ---- pictures


def strip(
    frames: np.ndarray, maps: np.ndarray, steps: Any, shares: Any = None, **more: Any
) -> Strip:
    count = len(steps)
    return Strip(
        sequence=2,
        time_steps=np.array(steps),
        n_time_steps=30_000,
        frames=frames,
        maps=maps,
        shares=np.full(count, 1 / count) if shares is None else np.array(shares),
        method="integrated gradients",
        target="speed",
        **more,
    )


def picture(count: int, height: int, width: int, *channels: int) -> tuple[np.ndarray, np.ndarray]:
    frames = RNG.uniform(0, 1, (count, height, width, *channels))
    return frames, RNG.standard_normal((count, height, width))


PICTURES = {
    "five": (strip(*picture(5, 20, 20), [0, 3, 4, 9, 11], truth="a", prediction="b"), {"step": 1}),
    "wide": (strip(*picture(6, 20, 60, 3), range(6)), {"step": 123_456, "limit": 1.0}),
    "late": (strip(*picture(6, 30, 30), range(20_000, 20_006)), {}),
    "tall": (strip(*picture(2, 90, 10), [1, 2]), {}),
    "one": (strip(*picture(1, 8, 8), [0], prediction="0.5"), {}),
    "zeros": (strip(np.zeros((2, 8, 8)), np.zeros((2, 8, 8)), [0, 1], [0.0, 0.0]), {}),
    "fine": (strip(*picture(3, 400, 500), [0, 1, 2]), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_strips_fit_and_are_the_same_when_drawn_again(name: str) -> None:
    check_picture(plot_frame_strip, *PICTURES[name])


def test_a_strip_shows_frames_and_where_the_target_rises_and_falls() -> None:
    frames = np.zeros((1, 4, 4))
    frames[0, 0] = 1.0
    maps = np.zeros((1, 4, 4))
    maps[0, 1, 2], maps[0, 3, 0] = 2.0, -2.0
    data = strip(frames, maps, [7], [1.0], truth="a", prediction="b")
    figure = plot_frame_strip(data, limit=2.0, step=3)
    shown = [image.get_array() for axes in figure.axes for image in axes.images]
    above, below = (np.asarray(each) for each in shown if np.ndim(each) == 3)
    np.testing.assert_array_equal(above[..., 0], frames[0])
    raised, lowered, rest = below[1, 2], below[3, 0], below[2, 2]
    assert raised[0] > raised[1] > raised[2]  # Orange.
    assert lowered[2] > lowered[0] > lowered[1]  # Purple.
    assert np.ptp(rest) == 0  # Grey.
    assert below[0, 1, 0] > rest[0]  # The frame is seen through.
    words = " ".join(text.get_text() for text in figure.texts)
    for part in ("sequence 2", "100% in these 1 of 30,000 frames", "3", "true: a · predicted: b",
                 "integrated gradients of speed", "time step 7", "100%", "−2", "+2"):  # fmt: skip
        assert part in words
    image = Image.open(io.BytesIO(to_png(figure)))
    assert image.size == (640, 430)


@pytest.mark.parametrize("axis", [-1, 2, None])
def test_pixels_are_sums_over_channels_of_the_method(axis: int | None) -> None:
    model = seeded(Conv)
    product = (FRAMES * own_gradient(model, FRAMES, 1)).sum(axis=-1)
    x, wrapped = FRAMES, cast(nn.Module, model)
    if axis == 2:
        x, wrapped = np.moveaxis(FRAMES, -1, 2), ChannelsFirst(model)
    if axis is None:
        x, wrapped = FRAMES[..., 0], seeded(lambda: Flat(H * W))
        product = x * own_gradient(wrapped, x, 1)
    region = RNG.uniform(size=product.shape) < 0.3
    callback = ncp.FrameAttribution(
        method="input_x_gradient", baseline="zeros", sequences=[3, 1], n_frames=2, region=region
    )
    held_out = ncp.HeldOutBatch(x, channel_axis=axis)
    records, notes = run(callback, wrapped, held_out, target=1)
    assert not notes
    for index in (3, 1):
        data = records[f"frames_output1/sequence_{index}"].data
        size = np.abs(product[index]).sum(axis=(1, 2))
        steps = np.sort(np.argsort(-size)[:2])
        np.testing.assert_array_equal(data.time_steps, steps)
        np.testing.assert_allclose(data.shares, size[steps] / size.sum(), rtol=1e-3)
        np.testing.assert_allclose(data.maps, product[index, steps], rtol=1e-3, atol=1e-6)
        brightness = FRAMES[index] if axis is not None else x[index]
        low, high = brightness.min(), brightness.max()
        np.testing.assert_allclose(data.frames, (brightness[steps] - low) / (high - low), atol=1e-5)
        np.testing.assert_allclose(
            records[f"_ncp/frames_output1_sequence_{index}"].values,
            np.abs(product[index]).sum(axis=0),
            rtol=1e-3,
            atol=1e-6,
        )
    inside, whole = np.abs(product * region).sum(), np.abs(product).sum()
    share = records["frames_output1/region_share"]
    assert share.value == pytest.approx(inside / whole, rel=1e-3)
    assert share.ci[0] < share.value < share.ci[1]
    assert f"{region.mean():.1%} of the area" in share.description


def test_half_the_area_by_hand() -> None:
    maps = np.zeros((3, 2, 2, 5))
    maps[0] = 1.0  # All 20 pixels alike: 10 of them.
    maps[1, 0, 0, :3] = -6.0, 3.0, 1.0  # 6 of 10 in one pixel.
    found = ncp.analysis.half_area(maps)
    np.testing.assert_allclose(found[:2], [10 / 20, 1 / 20])
    assert np.isnan(found[2])
    mask = np.array([[True, False], [True, True], [True, True]])
    np.testing.assert_allclose(ncp.analysis.half_area(maps, mask)[0], 5 / 10)
    region = np.zeros(maps.shape, bool)
    region[:, 0, 0, 0] = True
    estimate, area = ncp.analysis.region_share(maps[:2], region[:2], mask[:2])
    # 1 of 10 real pixels of the first sequence, and 6 of 10 of the second one's size.
    assert estimate.value == pytest.approx((1 + 6) / (10 + 10))
    assert area == pytest.approx((1 + 1) / (10 + 20))


def test_padding_has_no_part_in_pictures() -> None:
    mask = np.ones((B, T), bool)
    mask[0, 2:] = False
    x = np.where(mask[..., None, None, None], FRAMES, 1e6).astype(np.float32)
    held_out = ncp.HeldOutBatch(x, mask=mask)
    records, _ = run(
        ncp.FrameAttribution(method="input_x_gradient", baseline="zeros", sequences=[0]),
        seeded(Conv),
        held_out,
    )
    data = records["frames/sequence_0"].data
    np.testing.assert_array_equal(data.time_steps, [0, 1])
    assert data.n_time_steps == 2
    assert data.frames.max() == 1.0
    assert data.frames.min() == 0.0


@pytest.mark.parametrize(
    ("targets", "names", "truth"),
    [
        (np.array([1, 0, 1, 1]), ["left", "right"], "right"),
        (np.array([1, 0, 1, 1]), None, "class 1"),
        (np.full((B, 2), 0.25), ["x", "y"], "x 0.25, y 0.25"),
        (np.full((B, T, 2), 0.25), None, "0.25, 0.25"),
        (None, None, ""),
        (np.zeros((B, 5)), None, ""),
    ],
)
def test_truth_and_prediction_are_words(targets: Any, names: Any, truth: str) -> None:
    model = seeded(Conv)
    held_out = ncp.HeldOutBatch(FRAMES, targets=targets, class_names=names)
    records, _ = run(
        ncp.FrameAttribution(method="input_x_gradient", baseline="zeros", sequences=[0]),
        model,
        held_out,
        target=0,
    )
    data = records["frames_output0/sequence_0"].data
    assert data.truth == truth
    outputs = np.array(model(mx.array(FRAMES)))[0, -1]
    if targets is not None and targets.ndim == 1:
        words = names or ["class 0", "class 1"]
        assert data.prediction == words[outputs.argmax()]
    else:
        assert f"{abs(outputs[0]):.2g}" in data.prediction


def test_sequences_that_are_not_finite_are_counted() -> None:
    x = FRAMES.copy()
    x[1, 2, 3, 3, 0] = np.nan
    records, notes = run(ncp.FrameAttribution(), seeded(Conv), ncp.HeldOutBatch(x))
    assert records["frames/nonfinite"].value == 1
    assert "frames/sequence_0" in records
    assert "frames/sequence_1" not in records
    assert "NaN or infinity" in " ".join(notes)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "occlusion"}, "replaces whole channels, not single pixels: pass a method by"),
        ({"n_frames": 7}, "pass a number from 1 to 6"),
        ({"n_frames": 0}, "pass a number from 1 to 6"),
        ({"sequences": [0, 0]}, "different indices"),
        ({"sequences": []}, "pass 1 to 4"),
    ],
)
def test_arguments_are_checked(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ncp.FrameAttribution(**more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"region": np.zeros((B, T, H), bool)}, r"region has shape .* \(4, 5, 8, 6\)"),
        ({"region": np.zeros((B, T, H, W))}, "region has dtype float64: pass booleans"),
        ({"sequences": [B]}, "the held-out batch has 4 sequences"),
    ],
)
def test_what_does_not_fit_the_batch_is_an_error_on_entering(
    more: dict[str, Any], message: str
) -> None:
    callbacks = [ncp.FrameAttribution(**more)]
    with (
        pytest.raises(RuntimeError, match=message),
        ncp.Monitor(seeded(Conv), ncp.HeldOutBatch(FRAMES), callbacks, writer=ncp.MemoryWriter()),
    ):
        pass


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (FRAMES[:, :, 0, 0], "the held-out inputs are not frames: pass inputs"),
        (FRAMES[:, :, 0], "don't have two axes besides the channels"),
    ],
)
def test_it_does_not_apply_without_pictures(x: np.ndarray, message: str) -> None:
    records, notes = run(
        ncp.FrameAttribution(), seeded(lambda: Flat(int(np.prod(x.shape[2:])))), ncp.HeldOutBatch(x)
    )
    assert not [tag for tag in records if "frames" in tag]
    assert message in " ".join(notes)


@pytest.mark.parametrize("target", ["prediction", 1])
def test_the_docstring_lists_every_tag_and_no_other(target: Any) -> None:
    promises = promised(ncp.FrameAttribution)
    region = np.zeros((B, T, H, W), bool)
    region[:, :, 2] = True
    callback = ncp.FrameAttribution(method="input_x_gradient", baseline="zeros", region=region)
    records, _ = run(callback, seeded(Conv), ncp.HeldOutBatch(FRAMES), target=target)
    slug = "" if target == "prediction" else "_output1"
    wanted = {tag.replace("frames", "frames" + slug, 1) for tag in promises}
    for tag in records:
        if "findings" in tag or tag == "_ncp/run":
            continue
        assert any(pattern(each).match(tag) for each in wanted), tag
    for each in wanted:
        assert any(pattern(each).match(tag) for tag in records), each


# ---- all callbacks


def everything() -> list[ncp.Callback]:
    from ncp_callbacks.callbacks import callback_set

    more = [ncp.GradientAttribution(method=m, name=m) for m in ("occlusion", "smooth_grad")]
    return [*callback_set("full", pictures=True), ncp.SinglePredictions(), *more]


@pytest.mark.parametrize(
    ("shape", "more", "skipped"),
    [
        ((H, W, C), {}, 0),
        ((2, 9, 8), {"channel_axis": 2}, 0),
        ((9, 8), {"channel_axis": None}, 0),
        ((5, 3), {}, 1),
        ((2, 3, 4, 2), {"channel_axis": 2}, 1),
    ],
)
def test_every_callback_works_or_says_why_not(
    shape: tuple[int, ...], more: dict[str, Any], skipped: int
) -> None:
    x = RNG.standard_normal((B, T, *shape)).astype(np.float32)
    delta = RNG.uniform(0.5, 1.5, (B, T)).astype(np.float32)
    held_out = ncp.HeldOutBatch(x, delta, np.arange(B) % 2, **more)
    writer = ncp.MemoryWriter()
    model = seeded(lambda: Flat(int(np.prod(shape))))
    with ncp.Monitor(
        model, held_out, everything(), writer=writer, every=1, on_error="raise"
    ) as monitor:
        monitor.on_step_end(1)
    notes = [note for note in told(monitor.notes) if "doesn't apply" in note]
    assert len(notes) == 2 + skipped  # Wiring, meanings of units, and what draws frames.
    features = held_out.inputs_shape[2]
    arrays = {r.tag: r.values for s, r in writer.records if isinstance(r, ncp.Array) and s == 1}
    for tag in ("attribution_strength", "occlusion_signed", "smooth_grad_signed",
                "predictions_sequence_0", "output_time_local"):  # fmt: skip
        assert arrays[f"_ncp/{tag}"].shape == (T, features), tag
    assert arrays["_ncp/interactions_strength"].shape == (features + 1, features + 1)


def test_sets_draw_frames_that_are_pictures() -> None:
    def names(x: np.ndarray, callbacks: Any = None) -> list[str]:
        values = int(np.prod(x.shape[2:]))
        monitor = ncp.Monitor(
            seeded(lambda: Flat(values)), ncp.HeldOutBatch(x), callbacks, writer=ncp.MemoryWriter()
        )
        return [callback.name for callback in monitor._callbacks]

    assert "frames" in names(FRAMES)
    assert "frames" in names(FRAMES, "full")
    assert "frames" not in names(FRAMES, "light")
    assert "frames" not in names(FRAMES[:, :, 0])
    assert "frames" not in names(FRAMES[:, :, 0, 0])


def test_functions_without_a_monitor_take_frames() -> None:
    model = seeded(Conv)
    wanted = (FRAMES * own_gradient(model, FRAMES, 1)).sum(axis=(2, 3))
    found = ncp.compute_temporal_importance(
        ChannelsFirst(model), np.moveaxis(FRAMES, -1, 2), channel_axis=2, target=1,
        feature_names=NAMES, method="input_x_gradient", baseline="zeros",
    )  # fmt: skip
    np.testing.assert_allclose(found.signed, wanted.mean(axis=0), rtol=1e-3, atol=1e-6)
    assert found.feature_names == tuple(NAMES)


# ---- the example


def test_the_example_finds_the_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parent.parent / "examples" / "frames.py"
    arguments = [str(path), "--steps", "80", "--every", "40", "--log-dir", str(tmp_path)]
    with mock.patch.object(sys, "argv", arguments):
        runpy.run_path(str(path), run_name="__main__")
    lines = dict(
        line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line
    )
    error = float(lines["direction, median error"].split()[0])
    assert error < 30
    log = read_run(tmp_path)
    share = log.scalars["frames_output0/region_share"].values
    assert share[-1] > 3 * 0.16  # The digit's share of the area is 64 of 400 pixels.
    image = Image.open(tmp_path / "frames.png")
    assert image.size == (640, 430)
