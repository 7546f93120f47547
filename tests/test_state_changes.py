"""Test that units of a state are clamped, and states differentiated, as loops by hand do it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import zoo
from ncps.wirings import AutoNCP

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.model.state_changes import StateChanges
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.passes import observe

B, T, F = 5, 7, 3
X = np.random.default_rng(0).standard_normal((B, T, F)).astype(np.float32)
DT = np.random.default_rng(1).uniform(0.5, 2.0, (B, T)).astype(np.float32)
NEEDS = {ncp.Need.STATES, ncp.Need.STATE_CHANGES, ncp.Need.LOSSES}


class Net(nn.Module):
    """A recurrent layer of mlx.nn and a read-out."""

    def __init__(self, layer: nn.Module, units: int = 4) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(units, 2)

    def __call__(self, x: mx.array) -> mx.array:
        found = self.layer(x)
        return self.head(found[0] if isinstance(found, tuple) else found)


def hold(state: mx.array, unit: int, value: float) -> mx.array:
    return mx.where(mx.arange(state.shape[-1]) == unit, value, state)


def gru(model: Any, x: mx.array, dt: mx.array, unit: int, value: float) -> mx.array:
    h = None
    for t in range(T):
        h = hold(model.layer(x[:, t : t + 1], h)[:, 0], unit, value)
    return model.head(h)


def lstm(model: Any, x: mx.array, dt: mx.array, unit: int, value: float) -> mx.array:
    h = c = None
    for t in range(T):
        h, c = (a[:, 0] for a in model.layer(x[:, t : t + 1], h, c))
        both = hold(mx.concatenate([h, c], axis=-1), unit, value)
        h, c = both[:, :4], both[:, 4:]
    return model.head(h)


def plain_cfc(model: Any, x: mx.array, dt: mx.array, unit: int, value: float) -> mx.array:
    h = mx.zeros((B, model.units))
    for t in range(T):
        h = hold(model.cell(x[:, t], h, dt[:, t : t + 1])[1], unit, value)
    return model.projection(h)


def wired_cfc(model: Any, x: mx.array, dt: mx.array, unit: int, value: float) -> mx.array:
    states = [mx.zeros((B, n)) for n in model.cell.layer_sizes]
    for t in range(T):
        current, start = x[:, t], 0
        for i, layer in enumerate(model.cell.layers):
            # The neuron is held before the next layer of the same time step reads it.
            current = hold(layer(current, states[i], dt[:, t : t + 1])[0], unit - start, value)
            states[i], start = current, start + layer.units
    return states[-1]


def ltc(model: Any, x: mx.array, dt: mx.array, unit: int, value: float) -> mx.array:
    cell, v = model.cell, mx.zeros((B, model.units))
    unfolds, cell.ode_unfolds = cell.ode_unfolds, 1
    for t in range(T):
        for _ in range(unfolds):
            v = hold(cell(x[:, t], v, dt[:, t : t + 1] / unfolds)[1], unit, value)
    cell.ode_unfolds = unfolds
    return v[:, : cell.output_size] * cell.output_w + cell.output_b


CASES = {
    "gru": (lambda: Net(nn.GRU(F, 4)), gru, 4),
    "rnn": (lambda: Net(nn.RNN(F, 4)), gru, 4),
    "lstm": (lambda: Net(nn.LSTM(F, 4)), lstm, 8),
    "cfc": (lambda: CfC(F, 4, backbone_units=6, proj_size=2), plain_cfc, 4),
    "wired cfc": (lambda: CfC(F, AutoNCP(9, 2, seed=1)), wired_cfc, 9),
    "ltc": (lambda: LTC(F, AutoNCP(9, 2, seed=1)), ltc, 9),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [None, 2])
def test_clamped_units_are_those_of_a_loop_by_hand(name: str, chunk: int | None) -> None:
    build, by_hand, count = CASES[name]
    mx.random.seed(3)
    model = build()
    takes_time = name not in ("gru", "rnn", "lstm")
    held_out = ncp.HeldOutBatch(X, DT if takes_time else None, targets=np.arange(B) % 2)
    runner = ModelRunner(model, held_out, target=1, max_sequences=chunk)
    values = np.linspace(-0.4, 0.5, count)
    with runner.analysing():
        observation = observe(runner, 1, NEEDS)
        cell = observation.states[0].cell
        found = observation.extra_passes.clamped(cell, np.arange(count), values, loss=True)
        assert observation.extra_passes.state_changes(cell).doubts == []
    assert found.loss is not None
    for unit in range(count):
        outputs = by_hand(model, mx.array(X), mx.array(DT), unit, float(values[unit]))
        # Targets are classes, so that a class is followed by its log-odds; there are two classes.
        odds = outputs[:, 1] - outputs[:, 0]
        np.testing.assert_allclose(found.values[unit], np.array(odds), atol=2e-6)
        loss = nn.losses.cross_entropy(outputs, mx.array(np.arange(B) % 2))
        np.testing.assert_allclose(found.loss[unit], np.array(loss), atol=2e-6)


class Leaky(nn.Module):
    """Independent leaky units that add up one input each, and a linear read-out."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keep = mx.array([0.9, 0.5, 0.2])

        def __call__(self, x: mx.array, h: mx.array) -> mx.array:
            return self.keep * h + x

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.weight = Leaky.Cell(), mx.array([2.0, -1.0, 0.0])

    def __call__(self, x: mx.array) -> mx.array:
        h, out = mx.zeros((len(x), 3)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append((h * self.weight).sum(axis=-1, keepdims=True))
        return mx.stack(out, axis=1)


def test_a_linear_model_has_its_closed_forms() -> None:
    lengths = np.array([7, 7, 5, 7, 3])
    mask = np.arange(T) < lengths[:, None]
    model = Leaky()
    keep, weight = np.array([0.9, 0.5, 0.2]), np.array([2.0, -1.0, 0.0])
    runner = ModelRunner(model, ncp.HeldOutBatch(X, mask=mask))
    values = np.array([0.3, -0.2, 1.0])
    with runner.analysing():
        observation = observe(runner, 1, NEEDS)
        passes, states = observation.extra_passes, observation.states[0].values
        held = passes.clamped("cell", np.arange(3), values).values
        slopes, gradient = passes.clamp_slopes("cell", values), passes.state_gradient("cell")
    last = states[np.arange(B), lengths - 1]
    # Clamping a unit takes its part w h out of the target, and puts w times the value in.
    expected = (weight * (values - last)).T
    np.testing.assert_allclose(held - observation.target_values, expected, atol=1e-5)
    for b, n in enumerate(lengths):
        back = keep ** np.arange(n - 1, -1, -1)[:, None]
        np.testing.assert_allclose(gradient[b, :n], weight * back, rtol=1e-5)
        assert not gradient[b, n:].any()
        by_hand = (weight * back * (values - states[b, :n])).sum(axis=0)
        np.testing.assert_allclose(slopes[b], by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cfc", "wired cfc", "ltc", "gru", "lstm"])
def test_slopes_and_gradients_are_those_of_small_changes(name: str) -> None:
    build, _, count = CASES[name]
    mx.random.seed(4)
    takes_time = name not in ("gru", "lstm")
    runner = ModelRunner(build(), ncp.HeldOutBatch(X, DT if takes_time else None), target=0)
    values, small = np.linspace(-0.4, 0.5, count), 0.004
    with runner.analysing():
        observation = observe(runner, 1, NEEDS)
        cell = observation.states[0].cell
        slopes = observation.extra_passes.clamp_slopes(cell, values)
        gradient = observation.extra_passes.state_gradient(cell)
        changes = StateChanges(runner, runner.hook_points.cells[0])

        def target(change: Any) -> np.ndarray:
            with changes.applied(change):
                return np.array(runner.outputs(runner.sequence(), runner.time_delta)[:, -1, 0])

        def moved(unit: int, by: float) -> np.ndarray:
            own = mx.array(np.eye(count)[unit].astype(np.float32))
            to = mx.array(values.astype(np.float32))
            return target(
                lambda at, columns, rows: (
                    rows + by * own[mx.array(columns)] * (to[mx.array(columns)] - rows)
                )
            )

        def added(unit: int, by: float) -> np.ndarray:
            own = mx.array(np.eye(count)[unit].astype(np.float32))
            return target(
                lambda at, columns, rows: (
                    rows + by * own[mx.array(columns)] * (at.time_step == T - 3 and at.is_last)
                )
            )

        for unit in range(count):
            by_hand = (moved(unit, small) - moved(unit, -small)) / (2 * small)
            np.testing.assert_allclose(slopes[:, unit], by_hand, rtol=2e-3, atol=2e-3)
            by_hand = (added(unit, small) - added(unit, -small)) / (2 * small)
            np.testing.assert_allclose(gradient[:, T - 3, unit], by_hand, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "name", [n for n in zoo.EXAMPLES if n.startswith(("port/", "enhanced/", "hand/state"))]
)
def test_states_of_models_as_people_write_them_can_be_changed(name: str) -> None:
    case = zoo.EXAMPLES[name]
    x, dt = zoo.data(case)
    model = zoo.made(case)
    if name.startswith("enhanced/"):
        case.plain(model, x, dt)
    runner = ModelRunner(model, ncp.HeldOutBatch(x, dt), forward=case.forward, horizon=case.horizon)
    with runner.analysing():
        plain = np.array(runner.outputs(runner.sequence(), runner.time_delta))
        for hook in runner.hook_points.cells:
            changes = StateChanges(runner, hook)
            with changes.applied(lambda at, columns, rows: rows + 0.3):
                moved = np.array(runner.outputs(runner.sequence(), runner.time_delta))
            assert np.abs(moved - plain).max() > 1e-3
            again = np.array(runner.outputs(runner.sequence(), runner.time_delta))
            np.testing.assert_array_equal(again, plain)  # Nothing is left behind.


class KeepsItsState(nn.Module):
    """Return all states of a cell that no state is passed to: it keeps its own."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(F, 2)
            self.h: Any = None

        def __call__(self, x: mx.array) -> mx.array:
            before = mx.zeros((len(x), 2)) if self.h is None else self.h
            self.h = mx.tanh(self.inner(x) + before)
            return self.h

    def __init__(self) -> None:
        super().__init__()
        self.cell = self.Cell()

    def __call__(self, x: mx.array) -> mx.array:
        self.cell.h = None
        return mx.stack([self.cell(x[:, t]) for t in range(x.shape[1])], axis=1)


def test_a_cell_that_keeps_its_state_itself_is_refused() -> None:
    runner = ModelRunner(KeepsItsState(), ncp.HeldOutBatch(X), cells="cell")
    with runner.analysing():
        observation = observe(runner, 1, NEEDS)
        with pytest.raises(ncp.NotApplicable, match="pass the state to the cell"):
            observation.extra_passes.state_changes("cell")
