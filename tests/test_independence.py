"""Sequences that act on each other are found, and every number is of the whole batch."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.attribution import IntegratedGradients
from ncp_callbacks.attribution.compute import Attributor
from ncp_callbacks.model import ModelError, ModelRunner, NotApplicable
from ncp_callbacks.passes import observe
from ncp_callbacks.writers import MemoryWriter

B, T, F, H = 6, 5, 3, 4
X = mx.random.normal((B, T, F), key=mx.random.key(0))
DT = mx.random.uniform(0.2, 2.0, (B, T), key=mx.random.key(1))
AGE = mx.random.normal((B, 2), key=mx.random.key(2))
WARD = mx.array([0, 1, 2, 0, 2, 1])


class Reader(nn.Module):
    """Reads the inputs beside companions, after a function of the whole batch."""

    def __init__(self, couple) -> None:
        super().__init__()
        self.rnn, self.head, self._couple = nn.GRU(F + 4, H), nn.Linear(H, 1), couple
        self.wards = nn.Embedding(3, 1)

    def __call__(self, inputs, dt):
        x, age, ward, dt = self._couple(inputs["x"], inputs["age"], inputs["ward"], dt)
        static = mx.concatenate([age, self.wards(ward)], axis=-1)
        static = mx.repeat(static[:, None], x.shape[1], axis=1)
        return self.head(self.rnn(mx.concatenate([x, static, dt[..., None]], axis=-1)))


def standardised(a):
    return (a - a.mean(axis=0)) / (a.std(axis=0) + 0.1)


COUPLINGS = {
    "nothing": (lambda x, age, ward, dt: (x, age, ward, dt), ()),
    "own mean": (lambda x, age, ward, dt: (x - x.mean(1, keepdims=True), age, ward, dt), ()),
    "inputs": (lambda x, age, ward, dt: (standardised(x), age, ward, dt), ("inputs",)),
    "elapsed times": (lambda x, age, ward, dt: (x, age, ward, standardised(dt)), ("time_delta",)),
    "first's elapsed times": (
        lambda x, age, ward, dt: (x, age, ward, mx.broadcast_to(dt[:1], dt.shape)),
        ("time_delta",),
    ),
    "companion": (lambda x, age, ward, dt: (x, standardised(age), ward, dt), ("inputs['age']",)),
    "classes": (
        lambda x, age, ward, dt: (x, age * (ward.sum() % 3 + 1), ward, dt),
        ("inputs['ward']",),
    ),
    "last's inputs": (lambda x, age, ward, dt: (x * x[-1:], age, ward, dt), ("inputs",)),
    "two": (
        lambda x, age, ward, dt: (x * age.mean(), age, ward, dt * dt.mean()),
        ("time_delta", "inputs['age']"),
    ),
    "position": (
        lambda x, age, ward, dt: (x * (1 + mx.arange(len(x)))[:, None, None], age, ward, dt),
        ("position",),
    ),
    "number": (lambda x, age, ward, dt: (x / len(x), age, ward, dt), ("position",)),
}


def reader(name, batch=B):
    mx.random.seed(3)
    held_out = ncp.HeldOutBatch({"x": X, "age": AGE, "ward": WARD}, DT).take(slice(0, batch))
    return Reader(COUPLINGS[name][0]), held_out


def called(model, x=X, dt=DT):
    """The target by a plain call of the whole batch."""
    return model({"x": x, "age": AGE, "ward": WARD}, dt)[:, -1, 0]


@pytest.mark.parametrize("batch", [2, 3, B])
@pytest.mark.parametrize("name", COUPLINGS)
def test_channels_are_named(name: str, batch: int) -> None:
    expected = COUPLINGS[name][1]
    model, held_out = reader(name, batch)
    runner = ModelRunner(model, held_out)
    assert runner.coupling == expected
    assert runner.whole_batch_only == bool(expected)
    notes = [note for note in runner.notes if "each pass takes the whole held-out batch" in note]
    assert len(notes) == bool(expected)
    if expected and expected != ("position",):
        assert f"through {' and '.join(expected)}:" in notes[0]


@pytest.mark.parametrize("name", ["inputs", "elapsed times", "companion"])
def test_one_sequence_is_checked_too(name: str) -> None:
    """Several variants of it would share a batch."""
    model, held_out = reader(name, 1)
    assert ModelRunner(model, held_out).coupling == COUPLINGS[name][1]


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", COUPLINGS)
def test_variants_are_those_of_plain_calls(name: str, chunk: int | None) -> None:
    model, held_out = reader(name)
    runner = ModelRunner(model, held_out, max_sequences=chunk)
    others = np.random.default_rng(0).standard_normal((5, B, T, F)).astype(np.float32)
    scales = np.array([0.5, 1.0, 1.5, 2.0, 5.0], np.float32)
    elapsed = np.array(DT) * scales[:, None, None]
    rows = np.array([1, 4])
    with runner.analysing():
        seen = observe(
            runner,
            0,
            {
                ncp.Need.INPUT_GRADIENT,
                ncp.Need.TIME_GRADIENT,
                ncp.Need.VARIANTS,
                ncp.Need.VARIANT_GRADIENTS,
                ncp.Need.TIME_SCALES,
            },
        )
        plain, gradients = (
            seen.extra_passes.evaluate(others, elapsed),
            seen.extra_passes.evaluate(others, gradient=True),
        )
        some = seen.extra_passes.evaluate(others[:, rows], sequences=rows)
        scaled = seen.extra_passes.at_time_scales(scales.tolist()).values
    for k in range(5):
        x, dt = mx.array(others[k]), mx.array(elapsed[k])
        np.testing.assert_allclose(plain.values[k], called(model, x, dt), atol=1e-6)
        by_hand = mx.grad(lambda x: called(model, x).sum())(x)
        np.testing.assert_allclose(gradients.input_gradient[k], by_hand, atol=1e-6)
        np.testing.assert_allclose(scaled[float(scales[k])], called(model, X, dt), atol=1e-6)
        among = np.array(X)
        among[rows] = others[k][rows]
        np.testing.assert_allclose(
            some.values[k], np.array(called(model, mx.array(among)))[rows], atol=1e-6
        )
    by_hand, by_time = mx.grad(lambda x, dt: called(model, x, dt).sum(), argnums=[0, 1])(X, DT)
    np.testing.assert_allclose(seen.input_gradient, by_hand, atol=1e-6)
    np.testing.assert_allclose(seen.time_gradient, by_time, atol=1e-6)


@pytest.mark.parametrize("name", ["inputs", "elapsed times", "companion"])
def test_integrated_gradients_are_those_of_the_whole_batch(name: str) -> None:
    """Against a midpoint rule with many steps, in which all sequences move together."""
    model, held_out = reader(name)
    with (runner := ModelRunner(model, held_out)).analysing():
        attributor = Attributor(IntegratedGradients(n_steps=32), "zeros", "mean")
        found = attributor.attribute(observe(runner, 0, attributor.needs))
    gradient = mx.grad(lambda x, dt: called(model, x, dt).sum(), argnums=[0, 1])
    start = mx.full(DT.shape, DT.mean().item())
    points = [(k + 0.5) / 200 for k in range(200)]
    pairs = [gradient(a * X, start + a * (DT - start)) for a in points]
    by_input = np.mean([np.array(g[0]) for g in pairs], axis=0) * np.array(X)
    by_time = np.mean([np.array(g[1]) for g in pairs], axis=0) * np.array(DT - start)
    np.testing.assert_allclose(found.inputs, by_input, atol=2e-3 * np.abs(by_input).max())
    np.testing.assert_allclose(found.time_delta, by_time, atol=2e-3 * np.abs(by_input).max())


def test_sensitivity_to_elapsed_times_standardised_over_the_batch_is_zero() -> None:
    model, held_out = reader("elapsed times")
    model._couple = lambda x, age, ward, dt: (x, age, ward, (dt - dt.mean()) / dt.std())
    writer = MemoryWriter()
    monitor = ncp.Monitor(
        model,
        held_out,
        [ncp.TimeSensitivity()],
        writer=writer,
        every=1,
        background=False,
        verbose=False,
    )
    with monitor:
        monitor.on_step_end(1)
    for scale in ("0.5", "2", "5"):
        [(_, value)] = writer.scalars(f"time_delta/sensitivity_x{scale}")
        assert value < 1e-5
    assert any("through time_delta:" in note for note in monitor.notes)


class Squeezed(nn.Module):
    """Elapsed times ``(B,)`` beside ``(B, units)``, where there are as many units as sequences."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.a, self.g = nn.Linear(F + units, units), nn.Linear(F + units, units)
        self.head, self._units = nn.Linear(units, 1), units

    def __call__(self, x, timespans):
        h = mx.zeros((len(x), self._units))
        for t in range(x.shape[1]):
            u = mx.concatenate([x[:, t], h], axis=-1)
            gate = mx.sigmoid(self.g(u) * timespans[:, t].squeeze())
            h = gate * mx.tanh(self.a(u)) + (1 - gate) * h
        return self.head(h)


def test_squeezed_elapsed_times_are_found() -> None:
    runner = ModelRunner(Squeezed(B), ncp.HeldOutBatch(X, DT))
    assert runner.coupling == ("time_delta",)
    with pytest.raises(ModelError, match="broadcast"):
        ModelRunner(Squeezed(B + 1), ncp.HeldOutBatch(X, DT))


class OverTheBatch(nn.Module):
    """Takes (time, batch, features)."""

    def __init__(self, cell=nn.GRU) -> None:
        super().__init__()
        self.rnn = cell(F, H)

    def __call__(self, x):
        states = self.rnn(x.swapaxes(0, 1))
        return (states[0] if isinstance(states, tuple) else states).swapaxes(0, 1)


@pytest.mark.parametrize("batch", [1, 2, 3, B])
@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM, nn.RNN])
def test_a_model_that_runs_over_the_batch_is_refused(cell: type, batch: int) -> None:
    with pytest.raises(ModelError, match=r"as though the batch were time.*pass forward="):
        ModelRunner(OverTheBatch(cell), ncp.HeldOutBatch(X[:batch]))


class BothWaysOverTheBatch(OverTheBatch):
    """Reads the batch in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.GRU(F, H)

    def __call__(self, x):
        return super().__call__(x) + self.back(x.swapaxes(0, 1)[:, ::-1])[:, ::-1].swapaxes(0, 1)


class LastOverTheBatch(OverTheBatch):
    """Returns what follows the last sequence, a row for each time step."""

    def __call__(self, x):
        return super().__call__(x)[-1]


def test_a_model_that_runs_both_ways_over_the_batch_is_refused() -> None:
    with pytest.raises(ModelError, match=r"as though the batch were time.*pass forward="):
        ModelRunner(BothWaysOverTheBatch(), ncp.HeldOutBatch(X))
    followed = ModelRunner(
        BothWaysOverTheBatch(),
        ncp.HeldOutBatch(X),
        forward=lambda model, x, dt: model(x.swapaxes(0, 1)).swapaxes(0, 1),
    )
    assert not followed.coupling
    assert not any("as though the batch were time" in note for note in followed.notes)


class PerStep(nn.Module):
    """Reads each time step independently of the others, and the batch with it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.enter, self.head = how, nn.Linear(F, H), nn.Linear(H, 1)

    def __call__(self, x):
        if self.how == "standardised":
            x = (x - x.mean(axis=0)) / mx.sqrt(x.var(axis=0) + 1e-3)
        h = mx.tanh(self.enter(x))
        if self.how == "attending":
            by_step = h.swapaxes(0, 1)
            weights = mx.softmax(by_step @ by_step.swapaxes(1, 2), axis=-1)
            h = (weights @ by_step).swapaxes(0, 1)
        if self.how == "beside the first":
            h = h - h[:1]
        return self.head(h)


@pytest.mark.parametrize("how", ["standardised", "attending", "beside the first"])
def test_steps_of_sequences_that_act_on_each_other_are_no_batch_in_place_of_time(how: str) -> None:
    model, held_out = PerStep(how), ncp.HeldOutBatch(X)
    runner = ModelRunner(model, held_out, target=0)
    assert runner.coupling == ("inputs",)
    assert "transpose in forward= if it takes (time, batch, features)" in runner.notes[0]
    seen = observe(runner, 0, {ncp.Need.INPUT_GRADIENT})
    by_hand = mx.grad(lambda x: model(x)[:, -1].sum())(X)
    np.testing.assert_allclose(seen.input_gradient, np.array(by_hand), rtol=1e-4, atol=1e-6)


def test_as_many_time_steps_as_sequences_are_no_sequences() -> None:
    with pytest.raises(ModelError, match="as though the batch were time"):
        ModelRunner(LastOverTheBatch(), ncp.HeldOutBatch(X[:T]))


class Reshaped(nn.Module):
    """Returns states as (time, batch, units), of which reshape makes (batch, time, units)."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.rnn, self.right = nn.GRU(F, H), right

    def __call__(self, x):
        by_time = self.rnn(x).swapaxes(0, 1)
        return by_time.swapaxes(0, 1) if self.right else by_time.reshape(len(x), -1, H)


def test_outputs_of_other_sequences_are_refused() -> None:
    mx.random.seed(0)
    with pytest.raises(ModelError, match=r"depend on other sequences.*reshape.*swapaxes"):
        ModelRunner(Reshaped(right=False), ncp.HeldOutBatch(X))
    assert not ModelRunner(Reshaped(right=True), ncp.HeldOutBatch(X)).coupling


class BatchNormCell(nn.Module):
    """Sequences act on each other in the cell itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(F + H, H)

    def __call__(self, x, h):
        return mx.tanh(standardised(self.lin(mx.concatenate([x, h], axis=-1))))


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = BatchNormCell()

    def __call__(self, x):
        h, states = mx.zeros((len(x), H)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            states.append(h)
        return mx.stack(states, axis=1)


def test_steps_of_a_cell_in_which_sequences_act_on_each_other_are_not_run_in_copies() -> None:
    runner = ModelRunner(Steps(), ncp.HeldOutBatch(X))
    assert runner.coupling == ("inputs",)
    with runner.analysing():
        seen = observe(runner, 0, {ncp.Need.STATES, ncp.Need.CELL_STEPS})
        with pytest.raises(NotApplicable, match="sequences act on each other in cell"):
            seen.extra_passes.state_jacobian("cell")
    assert [s.cell for s in seen.states] == ["cell"]


def test_sequences_can_be_taken_in_reverse() -> None:
    x = np.arange(24.0, dtype=np.float32).reshape(4, 3, 2)
    part = ncp.HeldOutBatch(x, mask=np.arange(12).reshape(4, 3) % 4 < 3).take(np.arange(4)[::-1])
    np.testing.assert_array_equal(np.array(part.inputs), x[::-1])
