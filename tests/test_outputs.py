"""Targets are one number per sequence, of the output and the step that they are named after."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy.special import logit, softmax

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelError, ModelRunner
from ncp_callbacks.model.target import Target
from ncp_callbacks.passes import observe

B, T, F = 5, 6, 3
X = mx.random.normal((B, T, F), key=mx.random.key(0))
QUANTILES = ("low", "median", "high")


class Forecaster(nn.Module):
    def __init__(self, horizon: int, outputs: int | None, compiled: bool = False) -> None:
        super().__init__()
        self._shape = (horizon,) if outputs is None else (horizon, outputs)
        self._compiled = compiled
        self.rnn, self.head = nn.GRU(F, 4), nn.Linear(4, horizon * (outputs or 1))

    def body(self, x):
        return self.head(self.rnn(x)[:, -1]).reshape(-1, *self._shape)

    def __call__(self, x):
        return mx.compile(self.body, inputs=self.state)(x) if self._compiled else self.body(x)


def observed(model, held_out, **options):
    runner = ModelRunner(model, held_out, **options)
    with runner.analysing():
        return runner, observe(runner, 0, {ncp.Need.INPUT_GRADIENT})


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("horizon", [1, 2, T - 1, T, T + 1])
def test_a_step_and_an_output_of_a_forecast(horizon: int, outputs: int, compiled: bool) -> None:
    mx.random.seed(1)
    model = Forecaster(horizon, outputs, compiled)
    names = QUANTILES if outputs == 3 else None
    held_out = ncp.HeldOutBatch(X, class_names=names)
    cases = [
        ("last", lambda y: y[:, -1], "at last forecast step", ""),
        ("mean", lambda y: y.mean(axis=1), "mean over forecast steps", "_mean"),
        (0, lambda y: y[:, 0], "at forecast step 0", "_at0"),
        (-1, lambda y: y[:, -1], f"at forecast step {horizon - 1}", f"_at{horizon - 1}"),
    ]
    for at, pick, when, slug in cases:
        runner, seen = observed(model, held_out, target=outputs // 2, at=at)
        assert (runner.calling.horizon, runner.calling.per_step) == (horizon, False)
        chosen = lambda x, pick=pick: pick(model.body(x))[:, outputs // 2]  # noqa: E731
        np.testing.assert_allclose(seen.target_values, chosen(X), atol=1e-6)
        by_hand = mx.grad(lambda x, chosen=chosen: chosen(x).sum())(X)
        np.testing.assert_allclose(seen.input_gradient, by_hand, atol=1e-6)
        assert seen.target == f"{'median' if names else 'output 0'} {when}"
        assert seen.target_slug == f"_output{outputs // 2}{slug}"
    with pytest.raises(ModelError, match=f"the forecast has {horizon} steps: pass 0 to"):
        ModelRunner(model, held_out, at=horizon)


def test_an_output_by_name() -> None:
    model, held_out = Forecaster(T, 3), ncp.HeldOutBatch(X, class_names=QUANTILES)
    _, seen = observed(model, held_out, target="high", at=2)
    np.testing.assert_allclose(seen.target_values, model(X)[:, 2, 2], atol=1e-6)
    assert (seen.target, seen.target_slug) == ("high at forecast step 2", "_output2_at2")
    with pytest.raises(ValueError, match=r"target='mean' is unknown.*\(low, median, high\)"):
        ModelRunner(model, held_out, target="mean")


def test_the_prediction_of_a_forecast_is_its_largest_output_at_the_step() -> None:
    model = Forecaster(T, 3)
    _, seen = observed(model, ncp.HeldOutBatch(X), at=1)
    np.testing.assert_allclose(seen.target_values, model(X)[:, 1].max(axis=-1), atol=1e-6)
    assert seen.target == "prediction at forecast step 1"


@pytest.mark.parametrize("horizon", [2, T, T + 1])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_loss_of_a_forecast(horizon: int, outputs: int) -> None:
    model = Forecaster(horizon, outputs)
    values = mx.random.normal((B, horizon, outputs), key=mx.random.key(4))
    errors = np.array(((model(X) - values) ** 2).mean(axis=-1))
    shapes = [values, values[..., 0]] if outputs == 1 else [values]
    for targets in shapes:
        held_out = ncp.HeldOutBatch(X, targets=targets)
        for at, expected in (("last", errors[:, -1]), ("mean", errors.mean(1)), (1, errors[:, 1])):
            _, seen = observed(model, held_out, target="loss", at=at)
            np.testing.assert_allclose(seen.target_values, expected, rtol=1e-5)
    classes = mx.array(np.random.default_rng(0).integers(0, 3, (B, horizon)))
    if outputs == 3:
        _, seen = observed(model, ncp.HeldOutBatch(X, targets=classes), target="loss", at="mean")
        expected = nn.losses.cross_entropy(model(X), classes).mean(axis=1)
        np.testing.assert_allclose(seen.target_values, expected, rtol=1e-5)


def test_padding_of_inputs_is_none_of_a_forecast() -> None:
    """Its last step is the last one of every sequence, however long that is."""
    mask = np.arange(T)[None] < np.array([3, 6, 4, 5, 2])[:, None]
    model = Forecaster(T, 1)
    for at, expected in (("last", model(X)[:, -1, 0]), ("mean", model(X).mean(axis=(1, 2)))):
        _, seen = observed(model, ncp.HeldOutBatch(X, mask=mask), at=at)
        np.testing.assert_allclose(seen.target_values, expected, atol=1e-6)
    _, seen = observed(model, ncp.HeldOutBatch(X, mask=mask), at=5)
    np.testing.assert_allclose(seen.target_values, model(X)[:, 5, 0], atol=1e-6)


@pytest.mark.parametrize("horizon", [T - 1, T, T + 1])
def test_a_forecast_without_an_axis_of_outputs(horizon: int) -> None:
    model = Forecaster(horizon, None)
    runner, seen = observed(model, ncp.HeldOutBatch(X), target=2)
    assert runner.calling.outputs == horizon
    np.testing.assert_allclose(seen.target_values, model(X)[:, 2], atol=1e-6)
    runner, seen = observed(model, ncp.HeldOutBatch(X), horizon=True, at=2)
    assert (runner.calling.outputs, runner.calling.horizon) == (1, horizon)
    np.testing.assert_allclose(seen.target_values, model(X)[:, 2], atol=1e-6)
    assert seen.target == "prediction at forecast step 2"
    with pytest.raises(ModelError, match="set at='last', or horizon=True"):
        ModelRunner(model, ncp.HeldOutBatch(X), at=2)


# ---- time steps or steps of a forecast


class Decoder(nn.Module):
    """Returns as many steps as it is given, all of them from the last state."""

    def __init__(self, feed: str, outputs: int | None = 2) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(F, 4), nn.GRU(4, 4)
        self.out, self._feed, self._outputs = nn.Linear(4, outputs or 1), feed, outputs

    def __call__(self, x):
        last = self.encoder(x)[:, -1]
        if self._feed == "repeated":
            states = self.decoder(mx.repeat(last[:, None], x.shape[1], axis=1))
        else:
            states, h = [], last
            for _ in range(x.shape[1]):
                h = self.decoder(h[:, None], h)[:, 0]
                states.append(h)
            states = mx.stack(states, axis=1)
        return self.out(states) if self._outputs else self.out(states)[..., 0]


class WorldCell(nn.Module):
    """``(x, h) -> (prediction, h)``."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(F + 4, 4), nn.Linear(4, F)

    def __call__(self, x, h):
        h = mx.tanh(self.mix(mx.concatenate([x, h], axis=-1)))
        return self.head(h), h


class WorldModel(nn.Module):
    """Predicts each time step but the first from those before it, and an action."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.act = WorldCell(), nn.Linear(2, F, bias=False)

    def __call__(self, x, action=None):
        h, predictions = mx.zeros((len(x), 4)), []
        for t in range(x.shape[1] - 1):
            seen = x[:, t] if action is None else x[:, t] + self.act(action[:, t])
            y, h = self.cell(seen, h)
            predictions.append(y)
        return mx.stack(predictions, axis=1)


def test_predictions_of_the_next_step_are_asked_for_one_more() -> None:
    mx.random.seed(0)
    model, held_out = WorldModel(), ncp.HeldOutBatch(X)
    with pytest.raises(ModelError, match=r"\(5, 5, 3\) for 6 time steps, 1 fewer.*:\]\], axis=1"):
        ModelRunner(model, held_out)

    def forward(model, inputs, time_delta):
        return model(mx.concatenate([inputs, inputs[:, -1:]], axis=1))

    runner = ModelRunner(model, held_out, forward=forward, target=1)
    with runner.analysing():
        seen = observe(runner, 0, {ncp.Need.INPUT_GRADIENT, ncp.Need.STATES})
    (cell,) = seen.states
    h = mx.zeros((B, 4))
    for t in range(T):
        y, h = model.cell(X[:, t], h)
        np.testing.assert_allclose(cell.values[:, t], h, atol=1e-6)
    np.testing.assert_allclose(seen.target_values, y[:, 1], atol=1e-6)


def test_two_sequences_are_asked_for_as_one() -> None:
    mx.random.seed(0)
    action = mx.random.normal((B, T + 1, 2), key=mx.random.key(4))
    x = mx.concatenate([X, X[:, -1:]], axis=1)
    with pytest.raises(ValueError, match=r"concatenate.*mx\.split\(inputs, \[3\], axis=-1\)"):
        ncp.HeldOutBatch({"x": x, "action": action})

    def forward(model, inputs, time_delta):
        longer = mx.concatenate([inputs, inputs[:, -1:]], axis=1)
        return model(*mx.split(longer, [3], axis=-1))

    joined = ncp.HeldOutBatch(mx.concatenate([x, action], axis=-1))
    model = WorldModel()
    _, seen = observed(model, joined, forward=forward, target=0)
    by_hand = mx.grad(lambda a: forward(model, a, None)[:, -1, 0].sum())(joined.inputs)
    np.testing.assert_allclose(seen.input_gradient, by_hand, atol=1e-6)


@pytest.mark.parametrize("outputs", [2, None])
@pytest.mark.parametrize("feed", ["repeated", "own"])
def test_a_forecast_as_long_as_any_input_is_asked_for(feed: str, outputs: int | None) -> None:
    mx.random.seed(0)
    model, held_out = Decoder(feed, outputs), ncp.HeldOutBatch(X)
    with pytest.raises(ModelError, match=r"can't be determined.*horizon=True.*horizon=False"):
        ModelRunner(model, held_out)
    runner, seen = observed(model, held_out, horizon=True, target=0, at=2)
    expected = model(X)[:, 2, 0] if outputs else model(X)[:, 2]
    np.testing.assert_allclose(seen.target_values, expected, atol=1e-6)
    assert runner.calling.horizon == T
    assert seen.target == "output 0 at forecast step 2"
    runner, seen = observed(model, held_out, horizon=False, target=0, at=2)
    assert runner.calling.per_step
    assert seen.target == "output 0 at step 2"


class TwoWays(nn.Module):
    """Bidirectional layers; padding stays out by flipping each sequence within its length."""

    def __init__(self, kind: type, layers: int, outputs: int | None = 2) -> None:
        super().__init__()
        sizes = [F] + [8] * (layers - 1)
        self.ahead, self.back = [kind(n, 4) for n in sizes], [kind(n, 4) for n in sizes]
        self.out, self._outputs = nn.Linear(8, outputs or 1), outputs

    def __call__(self, x, lengths=None):
        steps = mx.arange(x.shape[1])[None]
        if lengths is None:
            lengths = mx.full((len(x),), x.shape[1])
        order = mx.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)[..., None]
        for ahead, back in zip(self.ahead, self.back, strict=True):
            forward, backward = ahead(x), back(mx.take_along_axis(x, order, axis=1))
            if isinstance(forward, tuple):
                forward, backward = forward[0], backward[0]
            x = mx.concatenate([forward, mx.take_along_axis(backward, order, axis=1)], axis=-1)
        return self.out(x) if self._outputs else self.out(x)[..., 0]


@pytest.mark.parametrize("steps", [2, 3, T, 30])
@pytest.mark.parametrize("outputs", [2, None])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_outputs_of_bidirectional_layers_are_at_time_steps(kind, layers, outputs, steps) -> None:
    x = mx.random.normal((B, steps, F), key=mx.random.key(7))
    for seed in range(3):
        mx.random.seed(seed)
        runner = ModelRunner(TwoWays(kind, layers, outputs), ncp.HeldOutBatch(x), target=0)
        assert runner.calling.per_step


@pytest.mark.parametrize("layers", [1, 2])
def test_padded_bidirectional_layers_too(layers: int) -> None:
    lengths = np.array([3, 6, 4, 5, 2])
    mask = np.arange(T)[None] < lengths[:, None]
    held_out = ncp.HeldOutBatch({"x": X, "lengths": mx.array(lengths)}, mask=mask)
    model = TwoWays(nn.GRU, layers)
    runner, seen = observed(model, held_out, target=1)
    assert runner.calling.per_step
    expected = np.array(model(X, mx.array(lengths)))[np.arange(B), lengths - 1, 1]
    np.testing.assert_allclose(seen.target_values, expected, atol=1e-6)


class Ending(nn.Module):
    """Keeps the state of each sequence after its length."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(F, 4), nn.Linear(4, 2)

    def __call__(self, x, lengths):
        h, outputs = mx.zeros((len(x), 4)), []
        for t in range(x.shape[1]):
            new = self.rnn(x[:, t : t + 1], h)[:, 0]
            h = mx.where((t < lengths)[:, None], new, h)
            outputs.append(self.out(h))
        return mx.stack(outputs, axis=1)


@pytest.mark.parametrize("lengths", [[3, 6, 4, 5, 2], [6, 3, 4, 5, 2], [5, 5, 5, 5, 5]])
def test_lengths_that_are_passed_count_in_longer_sequences_too(lengths: list[int]) -> None:
    mask = np.arange(T)[None] < np.array(lengths)[:, None]
    held_out = ncp.HeldOutBatch((X, mx.array(lengths)), mask=mask)
    model = Ending()
    runner, seen = observed(model, held_out, target=1)
    assert runner.calling.per_step
    expected = np.array(model(X, mx.array(lengths)))[:, -1, 1]
    np.testing.assert_allclose(seen.target_values, expected, atol=1e-6)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(F, 8), nn.Linear(8, 2)
        self.encoder = nn.TransformerEncoder(2, 8, 2)

    def __call__(self, x):
        return self.out(self.encoder(self.enter(x), None))


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(F, 2, 3, padding=1)

    def __call__(self, x):
        return self.conv(x)


@pytest.mark.parametrize("model", [Attending, Convolving])
def test_outputs_of_other_layers_are_at_time_steps(model: type) -> None:
    for seed in range(3):
        mx.random.seed(seed)
        assert ModelRunner(model(), ncp.HeldOutBatch(X), target=0).calling.per_step


class FixedLength(nn.Module):
    """Causal, or a forecast; fails on any other number of steps."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.place, self.rnn = mx.zeros((T, F)), nn.GRU(F, 4)
        self.mix, self.out, self._causal = nn.Linear(T * 4, T * 2), nn.Linear(4, 2), causal

    def __call__(self, x):
        states = self.rnn(x + self.place)
        if self._causal:
            return self.out(states)
        return self.mix(nn.relu(states.reshape(len(x), -1))).reshape(len(x), T, 2)


def test_models_of_a_fixed_length() -> None:
    held_out = ncp.HeldOutBatch(X)
    assert ModelRunner(FixedLength(True), held_out, target=0).calling.per_step
    with pytest.raises(ModelError, match="Pass horizon=True for a forecast"):
        ModelRunner(FixedLength(False), held_out, target=0)
    assert ModelRunner(FixedLength(False), held_out, target=0, horizon=True).calling.horizon == T


class Delayed(nn.Module):
    """Predicts each time step from those before it."""

    def __init__(self, delay: int) -> None:
        super().__init__()
        self.rnn, self.out, self._delay = nn.GRU(F, 4), nn.Linear(4, 2), delay

    def __call__(self, x):
        start = mx.zeros((len(x), self._delay, F))
        return self.out(self.rnn(mx.concatenate([start, x[:, : -self._delay]], axis=1)))


@pytest.mark.parametrize("delay", [1, 2])
def test_outputs_that_follow_the_time_steps_before_them_are_no_forecast(delay: int) -> None:
    assert ModelRunner(Delayed(delay), ncp.HeldOutBatch(X), target=0).calling.per_step


# ---- layouts and shapes


def test_other_layouts_are_refused_with_the_fix() -> None:
    model, held_out = Forecaster(4, 3), ncp.HeldOutBatch(X, class_names=["p", "q", "r", "s"])
    with pytest.raises(ModelError, match=r"\(batch, outputs, horizon\) are to be transposed"):
        ModelRunner(model, held_out)
    rnn = nn.GRU(F, 4)
    with pytest.raises(ModelError, match=r"last axis changes with the time.*swapaxes\(1, 2\)"):
        ModelRunner(rnn, ncp.HeldOutBatch(X), forward=lambda m, x, dt: m(x).swapaxes(1, 2))
    with pytest.raises(ModelError, match=r"shape \(5, 3, 4\) for 6 time steps and .*for 4"):
        ModelRunner(rnn, ncp.HeldOutBatch(X), forward=lambda m, x, dt: m(x)[:, ::2])
    with pytest.raises(ModelError, match="horizon=False, but"):
        ModelRunner(model, ncp.HeldOutBatch(X), horizon=False)
    with pytest.raises(ModelError, match="horizon=True, but"):
        ModelRunner(rnn, ncp.HeldOutBatch(X), horizon=True, forward=lambda m, x, dt: x[:, 0, 0])
    with pytest.raises(TypeError, match="horizon is a int"):
        ModelRunner(model, ncp.HeldOutBatch(X), horizon=3)


@pytest.mark.parametrize("target", ["prediction", 1, "loss"])
def test_values_of_another_shape_are_never_taken(target) -> None:
    model = Forecaster(2, 3)
    runner = ModelRunner(model, ncp.HeldOutBatch(X, targets=mx.zeros((B, 2, 3))), target=0)
    made = Target(target, "last", runner.held_out, runner.calling)
    outputs = mx.zeros((B, 2, 4, 3))
    with pytest.raises((ModelError, ValueError)):
        made(outputs, made.choose(outputs) if target == "prediction" else None)


def test_outputs_at_padding_are_never_followed() -> None:
    """They are NaN there."""
    mask = np.arange(T)[None] < np.array([3, 6, 4, 5, 2])[:, None]
    real = mx.array(mask)[..., None]
    rnn = nn.GRU(F, 4)

    def forward(model, x, dt):
        return mx.where(real[: len(x)], model(x), mx.nan)

    held_out = ncp.HeldOutBatch(X, mask=mask)
    states = np.array(rnn(X))
    lengths = mask.sum(axis=1)
    for at, expected in (
        ("last", states[np.arange(B), lengths - 1]),
        ("mean", np.stack([s[:n].mean(axis=0) for s, n in zip(states, lengths, strict=True)])),
    ):
        odds = logit(softmax(expected.astype(np.float64), axis=1)).max(axis=1)
        for target, value in (("prediction", odds), (2, expected[:, 2])):
            _, seen = observed(rnn, held_out, forward=forward, target=target, at=at)
            np.testing.assert_allclose(seen.target_values, value, atol=1e-6)
            assert np.isfinite(seen.input_gradient).all()
    runner = ModelRunner(rnn, held_out, forward=forward, target=2)
    with runner.analysing():
        found = observe(runner, 0, {ncp.Need.OUTPUT_STEPS}).extra_passes.at_steps([1, 4])
    np.testing.assert_allclose(
        found.values, np.where(mask, states[..., 2], 0)[:, [1, 4]].T, atol=1e-6
    )
    assert not found.input_gradient[1][~mask[:, 4]].any()


def test_outputs_over_time_are_none_of_a_forecast() -> None:
    with (runner := ModelRunner(Forecaster(T, 1), ncp.HeldOutBatch(X))).analysing():
        seen = observe(runner, 0, {ncp.Need.INPUT_GRADIENT})
        with pytest.raises(ncp.model.NotApplicable, match="a forecast of 6 steps"):
            list(ncp.OutputTime().measure(seen))
