"""What a message advises is followed, and gives the numbers that are worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelError, ModelRunner
from ncp_callbacks.passes import observe

B, T, F, H = 6, 7, 3, 5
X = mx.random.normal((B, T, F), key=mx.random.key(0))
DT = mx.random.uniform(0.2, 2.0, (B, T), key=mx.random.key(1))


def advised(error: Exception, fill: dict[str, str] | None = None) -> Callable[..., Any]:
    """Return the first ``forward=`` in a message, with ``...`` replaced."""
    start = "lambda model, inputs, time_delta: "
    text, depth = str(error).split(f"forward={start}", 1)[1], 0
    for end, sign in enumerate(text):  # noqa: B007
        depth += (sign in "([") - (sign in ")]")
        if depth == 0 and sign in ",;":
            break
    else:
        end = len(text)
    call = text[:end]
    for name, value in (fill or {}).items():
        assert f"{name}=..." in call
        call = call.replace(f"{name}=...", f"{name}={value}")
    found: Callable[..., Any] = eval(start + call, {"mx": mx})
    return found


def refused(model: nn.Module, held_out: ncp.HeldOutBatch, match: str) -> ModelError:
    with pytest.raises(ModelError, match=match) as caught:
        ModelRunner(model, held_out)
    return caught.value


class Cell(nn.Module):
    def __init__(self, features: int = F, units: int = H) -> None:
        super().__init__()
        self.mix = nn.Linear(features + units, units)

    def __call__(self, x: mx.array, h: mx.array) -> mx.array:
        return mx.tanh(self.mix(mx.concatenate([x, h], axis=-1)))


class Reader(nn.Module):
    """Returns its states in a layout of its own."""

    def __init__(self, layout: str, units: int = H, features: int = F) -> None:
        super().__init__()
        self.cell, self.layout, self.units = Cell(features, units), layout, units

    def states(self, x: mx.array, h: mx.array | None = None) -> mx.array:
        h, found = mx.zeros((len(x), self.units)) if h is None else h, []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            found.append(h)
        return mx.stack(found, axis=1)

    def __call__(self, x: mx.array) -> Any:
        states = self.states(x)
        layouts: dict[str, Callable[[], Any]] = {
            "units, batch": lambda: states[:, -1].T,
            "time, batch, units": lambda: states.swapaxes(0, 1),
            "units, time, batch": lambda: states.transpose(2, 1, 0),
            "batch, units, time": lambda: states.swapaxes(1, 2),
            "list of steps": lambda: [states[:, t] for t in range(states.shape[1])],
            "tuple of steps": lambda: tuple(states[:, t] for t in range(states.shape[1])),
            "dict": lambda: {"mean": states, "log_variance": states + 1},
        }
        return layouts[self.layout]()


@pytest.mark.parametrize(
    ("layout", "units", "batch", "steps", "match"),
    [
        ("units, batch", H, B, T, "their first axis must be the batch. If axis 1 is the batch"),
        # As many units as sequences are tried first.
        ("units, batch", 2, B, T, "their first axis must be the batch. If axis 1 is the batch"),
        ("units, batch", 1, 1, T, "their first axis must be the batch. If axis 1 is the batch"),
        ("time, batch, units", H, B, T, "If axis 1 is the batch"),
        ("time, batch, units", H, T, T, "If axis 1 is the batch"),
        ("time, batch, units", H, B, 2, "If axis 1 is the batch"),
        ("time, batch, units", H, 2, 2, "If axis 1 is the batch"),
        ("units, time, batch", 2, B, T, "If axis 2 is the batch"),
        ("batch, units, time", T, B, T, "the last axis changes with the time steps"),
        ("batch, units, time", T, T, T, "the last axis changes with the time steps"),
        ("list of steps", H, B, T, "7 arrays of shape"),
        ("list of steps", H, B, 2, "2 arrays of shape"),
        ("tuple of steps", H, B, T, "7 arrays of shape"),
        ("dict", H, B, T, "a dict with keys 'mean', 'log_variance'"),
    ],
)
def test_outputs_in_another_layout(
    layout: str, units: int, batch: int, steps: int, match: str
) -> None:
    x = mx.random.normal((batch, steps, F), key=mx.random.key(2))
    model, held_out = Reader(layout, units), ncp.HeldOutBatch(x)
    found = refused(model, held_out, match)
    runner = ModelRunner(model, held_out, forward=advised(found), target=0)
    seen = observe(runner, 0, {ncp.Need.INPUT_GRADIENT})
    by_hand = model.states(x)
    np.testing.assert_allclose(seen.target_values, np.array(by_hand)[:, -1, 0], atol=1e-6)
    gradient = mx.grad(lambda x: model.states(x)[:, -1, 0].sum())(x)
    np.testing.assert_allclose(seen.input_gradient, np.array(gradient), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("outputs", [(), (H,)])
def test_outputs_without_a_row_for_each_sequence(outputs: tuple[int, ...]) -> None:
    class Pooled(Reader):
        def __call__(self, x: mx.array) -> mx.array:
            return self.states(x)[:, -1].mean(axis=0 if outputs else None)

    held_out = ncp.HeldOutBatch(X)
    fix = "Return one row for each" if outputs else "Return the outputs of each sequence, not one"
    refused(Pooled("dict"), held_out, f"their first axis must be the batch. {fix}")


class TimeFirst(nn.Module):
    """Takes (time, batch, features), and returns the last states."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def __call__(self, x: mx.array) -> mx.array:
        h = mx.zeros((x.shape[1], H))
        for x_t in x:
            h = self.cell(x_t, h)
        return h


def test_time_first_with_one_output_for_each_sequence() -> None:
    held_out, model = ncp.HeldOutBatch(X), TimeFirst()
    found = refused(model, held_out, "For a model that takes")
    runner = ModelRunner(model, held_out, forward=advised(found), target=0)
    by_hand = np.array(model(X.swapaxes(0, 1)))[:, 0]
    np.testing.assert_allclose(observe(runner, 0, set()).target_values, by_hand, atol=1e-6)


def test_time_first_with_one_output_for_each_time_step() -> None:
    class Steps(TimeFirst):
        def __call__(self, x: mx.array) -> mx.array:
            return mx.stack([super(Steps, self).__call__(x[: t + 1]) for t in range(len(x))])

    held_out, model = ncp.HeldOutBatch(X), Steps()
    found = refused(model, held_out, "as though the batch were time")
    runner = ModelRunner(model, held_out, forward=advised(found), target=0)
    assert not runner.coupling
    by_hand = np.array(model(X.swapaxes(0, 1)))[-1, :, 0]
    np.testing.assert_allclose(observe(runner, 0, set()).target_values, by_hand, atol=1e-6)


# ---- arguments that are missing


class WithStart(Reader):
    def __call__(self, x: mx.array, h0: mx.array) -> mx.array:
        return self.states(x, h0)


class NoCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reader = Reader("")


class Forward(NoCall):
    def forward(self, x: mx.array, h0: mx.array, *, scale: float) -> mx.array:
        return self.reader.states(x, h0) * scale


class Later(NoCall):
    """Its method with the fewest arguments is neither the first nor called ``forward``."""

    def reset(self) -> None:
        self.reader = Reader("")

    def step(self, x: mx.array, h: mx.array) -> mx.array:
        return self.reader.cell(x, h)

    def encode(self, x: mx.array, scale: float = 1.0) -> mx.array:
        return self.reader.states(x) * scale


class InTime(NoCall):
    def forward(self, x: mx.array, dt: mx.array) -> mx.array:
        return self.reader.states(x * dt[..., None])


def last_unit(runner: ModelRunner) -> np.ndarray:
    with runner.analysing():
        return np.array(observe(runner, 0, set()).target_values)


def test_a_required_argument_is_named() -> None:
    model, held_out = WithStart(""), ncp.HeldOutBatch(X)
    found = refused(model, held_out, r"model\(inputs, h0=\.\.\.\), with your own h0$")
    forward = advised(found, {"h0": f"mx.ones((len(inputs), {H}))"})
    runner = ModelRunner(model, held_out, forward=forward, target=0)
    by_hand = model.states(X, mx.ones((B, H)))
    np.testing.assert_allclose(last_unit(runner), np.array(by_hand)[:, -1, 0], atol=1e-6)


def test_a_method_with_required_arguments_names_them() -> None:
    model, held_out = Forward(), ncp.HeldOutBatch(X)
    found = refused(model, held_out, "with your own h0 and scale$")
    forward = advised(found, {"h0": f"mx.ones((len(inputs), {H}))", "scale": "2.0"})
    runner = ModelRunner(model, held_out, forward=forward, target=0)
    by_hand = 2 * model.reader.states(X, mx.ones((B, H)))
    np.testing.assert_allclose(last_unit(runner), np.array(by_hand)[:, -1, 0], atol=1e-6)


def test_the_method_with_the_fewest_arguments_is_suggested() -> None:
    model, held_out = Later(), ncp.HeldOutBatch(X)
    found = refused(model, held_out, r"model\.encode\(inputs\)$")
    runner = ModelRunner(model, held_out, forward=advised(found), target=0)
    by_hand = model.reader.states(X)
    np.testing.assert_allclose(last_unit(runner), np.array(by_hand)[:, -1, 0], atol=1e-6)


def test_elapsed_times_that_a_method_requires_are_asked_for() -> None:
    model = InTime()
    found = refused(model, ncp.HeldOutBatch(X), "pass time_delta= to the held-out batch")
    held_out = ncp.HeldOutBatch(X, DT)
    forward = advised(found, {"dt": "time_delta"})
    runner = ModelRunner(model, held_out, forward=forward, target=0)
    by_hand = model.reader.states(X * DT[..., None])
    np.testing.assert_allclose(last_unit(runner), np.array(by_hand)[:, -1, 0], atol=1e-6)


def test_without_a_method_that_takes_inputs_none_is_suggested() -> None:
    class Resets(NoCall):
        def reset(self) -> None:
            self.reader = Reader("")

    found = refused(Resets(), ncp.HeldOutBatch(X), "define it, or pass forward=")
    assert "model.reset" not in str(found)
