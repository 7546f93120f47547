"""Models unlike those of the zoo: each number belongs where it is, or the reason is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from small_nets import TanhCell

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.observation import Observation
from ncp_callbacks.passes import observe

B, T, F, H = 6, 7, 3, 5
X = mx.random.normal((B, T, F), key=mx.random.key(0))
LENGTHS = np.array([3, 2, 5, 7, 6, 4])
MASK = np.arange(T)[None] < LENGTHS[:, None]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(H, 1)
        self.setup()

    def setup(self) -> None:
        self.cell = TanhCell(F, H)

    def loop(self, x: mx.array) -> mx.array:
        h, found = mx.zeros((len(x), H)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            found.append(h)
        return mx.stack(found, axis=1)

    def __call__(self, x: Any) -> mx.array:
        return self.head(self.loop(x)[:, -1])


def seen(runner: ModelRunner, *needs: ncp.Need) -> Observation:
    with runner.analysing():
        return observe(runner, 0, set(needs))


def close(found: np.ndarray, by_hand: mx.array) -> None:
    expected = np.array(by_hand)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def check_gradient(
    runner: ModelRunner, x: mx.array, target: Callable[[mx.array], mx.array]
) -> None:
    found = seen(runner, ncp.Need.INPUT_GRADIENT)
    close(found.target_values, target(x))
    close(found.input_gradient, mx.grad(lambda x: target(x).sum())(x))


# ---- sequences


class CutToTheLongest(Model):
    """Runs over as many time steps as the longest sequence of a batch has."""

    per_step = False

    def __call__(self, given: tuple[mx.array, mx.array]) -> mx.array:
        x, lengths = given
        states = self.loop(x[:, : int(lengths.max().item())])
        if self.per_step:
            return self.head(states)
        return self.head(states[mx.arange(len(x)), lengths - 1])


@pytest.mark.parametrize("per_step", [False, True])
def test_a_batch_that_is_cut_has_the_time_steps_of_its_longest_sequence(per_step: bool) -> None:
    model, lengths = CutToTheLongest(), mx.array(LENGTHS)
    model.per_step = per_step
    runner = ModelRunner(model, ncp.HeldOutBatch((X, lengths), mask=MASK), target=0)
    assert runner.coupling == (("inputs[1]",) if per_step else ())
    assert runner.whole_batch_only
    assert any("number of calls of cell depends" in note for note in runner.notes) != per_step
    with runner.analysing():
        passes = observe(runner, 0, {ncp.Need.STATES, ncp.Need.STATE_CHANGES}).extra_passes
        clamped = passes.clamped("cell", np.array([1]), np.full(H, 0.3))
    held, h, found = mx.array([0, 1, 0, 0, 0], mx.bool_), mx.zeros((B, H)), []
    for t in range(T):
        h = mx.where(held, 0.3, model.cell(X[:, t], h))
        found.append(model.head(h)[:, 0])
    close(clamped.values[0], mx.stack(found, axis=1)[mx.arange(B), lengths - 1])
    close(seen(runner, ncp.Need.STATES).states[0].values, model.loop(X))
    check_gradient(runner, X, lambda x: model.head(model.loop(x)[mx.arange(B), lengths - 1])[:, 0])


@pytest.mark.parametrize("per_step", [False, True])
def test_padding_that_every_sequence_has_is_to_be_cut(per_step: bool) -> None:
    model, lengths = CutToTheLongest(), np.minimum(LENGTHS, T - 1)
    model.per_step = per_step
    arrays = {"inputs": (X, mx.array(lengths)), "mask": np.arange(T)[None] < lengths[:, None]}
    advice = f"no sequence has more than {T - 1} real time steps, so pass a held-out batch without"
    if per_step:
        with pytest.raises(ValueError, match=advice):
            ModelRunner(model, ncp.HeldOutBatch(**arrays))
    else:
        assert advice in ModelRunner(model, ncp.HeldOutBatch(**arrays)).hook_points.no_cells
    x, arrays["mask"] = X[:, : T - 1], arrays["mask"][:, : T - 1]
    arrays["inputs"] = (x, mx.array(lengths))
    runner = ModelRunner(model, ncp.HeldOutBatch(**arrays), target=0)
    close(seen(runner, ncp.Need.STATES).states[0].values, model.loop(x))


class Tiled(Model):
    def __call__(self, x: mx.array) -> mx.array:
        last = self.loop(mx.concatenate([x, 1.1 * x]))[:, -1]
        return self.head(last[: len(x)] + last[len(x) :])


class ByChannel(Model):
    """Runs over each feature as a sequence of its own."""

    def setup(self) -> None:
        self.cell, self.head = TanhCell(1, H), nn.Linear(F * H, 1)

    def __call__(self, x: mx.array) -> mx.array:
        of_channels = x.swapaxes(1, 2).reshape(-1, x.shape[1], 1)
        return self.head(self.loop(of_channels)[:, -1].reshape(len(x), -1))


class SortedByInputs(Model):
    def __call__(self, x: mx.array) -> mx.array:
        order = mx.argsort(mx.stop_gradient(x[..., 0].mean(axis=1)))
        return self.head(self.loop(x[order])[:, -1][mx.argsort(order)])


@pytest.mark.parametrize("cls", [Tiled, ByChannel, SortedByInputs])
def test_rows_of_no_single_sequences_are_skipped_alone(cls: type[Model]) -> None:
    model = cls()
    runner = ModelRunner(model, ncp.HeldOutBatch(X), target=0)
    assert "Let the model keep one row for each sequence, in the order of the batch" in (
        runner.hook_points.no_cells
    )
    assert not seen(runner, ncp.Need.STATES).states
    check_gradient(runner, X, lambda x: model(x)[:, 0])


def exponential_lstm(units_first: bool) -> type[nn.Module]:
    """A cell of four arrays, as of an sLSTM, kept as (units, batch) or as (batch, units)."""

    class ExponentialCell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.back = nn.Linear(F, 4 * H), nn.Linear(H, 4 * H)

        def turned(self, arrays: Any) -> list[mx.array]:
            return [a.T for a in arrays] if units_first else list(arrays)

        def __call__(self, x: mx.array, state: tuple[mx.array, ...]) -> Any:
            h, c, n, m = self.turned(state)
            z, i, f, o = mx.split(self.enter(x) + self.back(h), 4, axis=-1)
            top = mx.maximum(f + m, i)
            keep, take = mx.exp(f + m - top), mx.exp(i - top)
            c, n = keep * c + take * mx.tanh(z), keep * n + take
            new = self.turned((mx.sigmoid(o) * c / mx.maximum(n, 1e-3), c, n, top))
            return new[0], tuple(new)

    return ExponentialCell


@pytest.mark.parametrize("batch", [1, 2, H, T])
def test_states_with_units_first_have_the_transitions_of_those_with_the_batch_first(
    batch: int,
) -> None:
    class Reader(Model):
        def setup(self) -> None:
            self.cell = exponential_lstm(self.first)()

        def loop(self, x: mx.array) -> mx.array:
            shape = (H, len(x)) if self.first else (len(x), H)
            state, found = tuple(mx.zeros(shape) for _ in range(4)), []
            for t in range(x.shape[1]):
                out, state = self.cell(x[:, t], state)
                found.append(out.T if self.first else out)
            return mx.stack(found, axis=1)

    class UnitsFirst(Reader):
        first = True

    class BatchFirst(Reader):
        first = False

    x = mx.random.normal((batch, T, F), key=mx.random.key(3))
    models = [UnitsFirst(), BatchFirst()]
    models[1].update(models[0].parameters())
    found = []
    for model in models:
        runner = ModelRunner(model, ncp.HeldOutBatch(x), target=0)
        with runner.analysing():
            both = observe(runner, 0, {ncp.Need.STATES, ncp.Need.CELL_STEPS})
            jacobians = both.extra_passes.state_jacobian("cell")
        found.append((both.states[0].values, np.array(jacobians)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


# ---- time


class Turned(nn.Module):
    """Turns the sequence round, and its states back."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.enter = nn.Linear(F, H), nn.Linear(F, H)

    def __call__(self, x: mx.array) -> mx.array:
        gate = mx.sigmoid(self.rate(x[:, ::-1]))
        kept = mx.cumsum(mx.log(1 - gate), axis=1)
        new = gate * self.enter(x[:, ::-1])
        return (mx.exp(kept) * mx.cumsum(new * mx.exp(-kept), axis=1))[:, ::-1]


class Scanned(Model):
    def setup(self) -> None:
        self.layer = Turned()

    def loop(self, x: mx.array) -> mx.array:
        return self.layer(x)


class ScannedTwiceTurned(Scanned):
    def loop(self, x: mx.array) -> mx.array:
        return self.layer(x[:, ::-1])[:, ::-1]


@pytest.mark.parametrize(("cls", "reverse"), [(Scanned, True), (ScannedTwiceTurned, False)])
def test_a_layer_that_turns_its_sequence_round_inside_runs_backwards(
    cls: type[Model], reverse: bool
) -> None:
    model = cls()
    runner = ModelRunner(model, ncp.HeldOutBatch(X), cells="layer")
    assert not any("other direction" in note for note in runner.notes)
    (found,) = seen(runner, ncp.Need.STATES).states
    assert found.reverse == reverse
    close(found.values, model.loop(X))


ORDER = np.random.default_rng(0).permutation(T)


class InAnotherOrder(Model):
    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.loop(x[:, mx.array(ORDER)])[:, -1])


def test_time_steps_in_another_order_can_be_passed_in_it() -> None:
    model = InAnotherOrder()
    runner = ModelRunner(model, ncp.HeldOutBatch(X), target=0)
    assert "pass the time steps in the order in which the model runs" in runner.hook_points.no_cells
    check_gradient(runner, X, lambda x: model(x)[:, 0])
    x, back = X[:, mx.array(ORDER)], mx.array(np.argsort(ORDER))
    forward = lambda model, x, dt: model(x[:, back])  # noqa: E731
    runner = ModelRunner(model, ncp.HeldOutBatch(x), target=0, forward=forward)
    (found,) = seen(runner, ncp.Need.STATES).states
    close(found.values, model.loop(x))


# ---- what holds no state


class Projected(Model):
    """Its products with the state go through an activation outside of any module."""

    def setup(self) -> None:
        self.enter, self.back = Product(F), Product(H)

    def loop(self, x: mx.array) -> mx.array:
        h, found = mx.zeros((len(x), H)), []
        for t in range(x.shape[1]):
            h = mx.tanh(self.enter(x[:, t]) + self.back(h))
            found.append(h)
        return mx.stack(found, axis=1)


class Product(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = mx.random.normal((features, H)) * 0.4

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight


class Attentive(Model):
    def setup(self) -> None:
        self.enter, self.mix = nn.Linear(F, 4), nn.TransformerEncoder(1, 4, 2)
        self.head = nn.Linear(4, 1)

    def loop(self, x: mx.array) -> mx.array:
        return self.mix(self.enter(x), None)


@pytest.mark.parametrize("cls", [Projected, Attentive])
def test_products_and_attention_are_no_cells(cls: type[Model]) -> None:
    model = cls()
    runner = ModelRunner(model, ncp.HeldOutBatch(X), target=0)
    assert not runner.hook_points.cells
    assert "cells=" not in runner.hook_points.no_cells
    check_gradient(runner, X, lambda x: model(x)[:, 0])


def test_a_layer_of_a_transformer_can_not_be_named() -> None:
    with pytest.raises(ValueError, match="TransformerEncoderLayer, which has none"):
        ModelRunner(Attentive(), ncp.HeldOutBatch(X), cells="mix.layers.0")


# ---- features without a gradient


class Rounding(Model):
    """Reads its last feature in a way that has no gradient, and raises no error."""

    way: Callable[[mx.array], mx.array]

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(mx.concatenate([x[..., :2], self.way(x[..., 2:])], axis=-1))


WAYS: dict[str, Callable[[mx.array], mx.array]] = {
    "rounded": mx.round,
    "compared": lambda x: (x > 0).astype(mx.float32),
    "to Python": lambda x: mx.array(x.tolist()),
    "to numpy": lambda x: mx.array(np.array(x)),
}


@pytest.mark.parametrize("way", WAYS)
def test_features_without_a_gradient_are_noted(way: str) -> None:
    model = Rounding()
    object.__setattr__(model, "way", WAYS[way])
    runner = ModelRunner(model, ncp.HeldOutBatch(X, feature_names=["a", "b", "c"]), target=0)
    (note,) = (note for note in runner.notes if "gradient of exactly 0" in note)
    assert note.startswith("the target moves with 'c', but")
    found = seen(runner, ncp.Need.INPUT_GRADIENT)
    assert not found.input_gradient[..., 2].any()
    check_gradient(runner, X, lambda x: model(x)[:, 0])


class Ignoring(Model):
    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x * mx.array([1.0, 1.0, 0.0]))


class RoundingTimes(Model):
    def __call__(self, x: mx.array, dt: mx.array) -> mx.array:
        return super().__call__(x * mx.round(dt)[..., None])


def test_features_that_have_no_effect_are_not_noted() -> None:
    runner = ModelRunner(Ignoring(), ncp.HeldOutBatch(X), target=0)
    assert not any("gradient" in note for note in runner.notes)


def test_elapsed_times_without_a_gradient_are_noted() -> None:
    dt = mx.random.uniform(0.6, 3.0, (B, T), key=mx.random.key(1))
    runner = ModelRunner(RoundingTimes(), ncp.HeldOutBatch(X, dt), target=0)
    (note,) = (note for note in runner.notes if "gradient of exactly 0" in note)
    assert note.startswith("the target moves with the elapsed times, but")


# ---- elapsed times


def test_timestamps_that_are_equal_in_single_precision_are_noted() -> None:
    dt = np.random.default_rng(0).uniform(0.2, 2.0, (B, T))
    note = "time_delta rises along every sequence"
    assert note in " ".join(ncp.HeldOutBatch(X, 1.7e9 + np.cumsum(dt, axis=1)).notes)
    assert not ncp.HeldOutBatch(X, dt).notes


def test_elapsed_times_of_another_shape_can_be_completed_as_advised() -> None:
    dt = np.random.default_rng(0).uniform(0.2, 2.0, (B, T))
    with pytest.raises(ValueError, match=r"pass np\.tile\(time_delta, \(6, 1\)\)"):
        ncp.HeldOutBatch(X, dt[0])
    every = ncp.HeldOutBatch(X, np.tile(dt[0], (6, 1))).time_delta
    np.testing.assert_allclose(np.array(every), np.stack([dt[0]] * B), rtol=1e-6)
    for gaps, shape in ((dt[:, 1:], (B, 1)), (dt[:, 1:, None], (B, 1, 1))):
        with pytest.raises(ValueError, match="where first has shape") as caught:
            ncp.HeldOutBatch(X, gaps)
        assert str(shape) in str(caught.value)
        completed = np.concatenate([np.ones(shape), gaps], axis=1)
        assert ncp.HeldOutBatch(X, completed).flat_time_delta.shape == (B, T)


# ---- arguments


@pytest.mark.parametrize("forward", [lambda model, x: model(x), lambda: None])
def test_a_function_that_takes_other_arguments_is_refused(forward: Any) -> None:
    with pytest.raises(TypeError, match=r"it is called as forward\(model, inputs, time_delta\)"):
        ModelRunner(Model(), ncp.HeldOutBatch(X), forward=forward)


def test_a_class_and_a_function_are_no_models() -> None:
    with pytest.raises(TypeError, match=r"pass an object of this class, such as Model\(\)"):
        ModelRunner(Model, ncp.HeldOutBatch(X))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="and the function as forward="):
        ModelRunner(lambda x: x, ncp.HeldOutBatch(X))  # type: ignore[arg-type]
