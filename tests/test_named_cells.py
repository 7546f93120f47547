"""Modules are suggested and accepted as cells only if they hold a state."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from small_nets import TanhCell

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelError, ModelRunner
from ncp_callbacks.models import CfC
from ncp_callbacks.passes import observe

B, T, F, H = 5, 6, 3, 4


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(H, 1)
        self.setup()

    def setup(self) -> None:
        self.cell = TanhCell(F, H)

    def start(self, x: mx.array) -> Any:
        return mx.zeros((len(x), H))

    def step(self, x: mx.array, h: Any) -> Any:
        return self.cell(x, h)

    def out(self, h: Any) -> mx.array:
        return self.head(h)

    def __call__(self, x: mx.array) -> mx.array:
        h, ys = self.start(x), []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            ys.append(self.out(h))
        return mx.stack(ys, axis=1)


class OwnLinear(nn.Module):
    """A projection that is no class of mlx.nn."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.weight = mx.random.normal((width, units)) * 0.4

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight


class Projected(Loop):
    """A loop of the model's own, with a projection in front."""

    def setup(self) -> None:
        self.proj, self.back = OwnLinear(F, H), mx.random.normal((H, H)) * 0.3

    def __call__(self, x: mx.array) -> mx.array:
        p, h, ys = self.proj(x), self.start(x), []
        for t in range(x.shape[1]):
            h = mx.tanh(p[:, t] + h @ self.back)
            ys.append(self.head(h))
        return mx.stack(ys, axis=1)


class PreActivation(Loop):
    """The step is a method of another name, so that its layer is all that is called."""

    def setup(self) -> None:
        self.layer = OwnLinear(F + H, H)

    def step(self, x: mx.array, h: mx.array) -> mx.array:
        return mx.tanh(self.layer(mx.concatenate([x, h], axis=-1)))


class PreActivationOfLinear(PreActivation):
    def setup(self) -> None:
        self.layer = nn.Linear(F + H, H)


class Decayed(Loop):
    """The decay is called once per step, and the state stays in the model's loop."""

    def setup(self) -> None:
        self.gamma, self.enter = OwnLinear(F, H), mx.random.normal((F, H))

    def step(self, x: mx.array, h: mx.array) -> mx.array:
        return mx.tanh(x @ self.enter + h * mx.sigmoid(self.gamma(x)))


class Field(Loop):
    """The right-hand side of an equation that the model integrates itself."""

    def setup(self) -> None:
        self.field = TanhCell(F, H)

    def step(self, x: mx.array, h: mx.array) -> mx.array:
        for _ in range(2):
            h = h + 0.3 * self.field(x, h)
        return h


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.h = nn.Linear(F + H, H), None

    def __call__(self, x: mx.array) -> mx.array:
        self.h = mx.tanh(self.mix(mx.concatenate([x, self.h], axis=-1)))
        return self.h


class KeptInCell(Loop):
    def setup(self) -> None:
        self.cell = Stateful()

    def start(self, x: mx.array) -> Any:
        self.cell.h = mx.zeros((len(x), H))

    def step(self, x: mx.array, h: Any) -> mx.array:
        return self.cell(x)


class State:
    """An object of the user's own, which is no container that is known."""

    def __init__(self, h: mx.array) -> None:
        self.h = h


class ObjectCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(F + H, H)

    def __call__(self, x: mx.array, state: State) -> mx.array:
        state.h = mx.tanh(self.mix(mx.concatenate([x, state.h], axis=-1)))
        return state.h


class KeptInObject(Loop):
    def setup(self) -> None:
        self.cell = ObjectCell()

    def start(self, x: mx.array) -> State:
        return State(mx.zeros((len(x), H)))

    def step(self, x: mx.array, h: State) -> State:
        self.cell(x, h)
        return h

    def out(self, h: State) -> mx.array:
        return self.head(h.h)


class Scan(nn.Module):
    """A layer that runs over the whole sequence by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.back = mx.random.normal((F, H)), mx.random.normal((H, H)) * 0.4

    def __call__(self, x: mx.array) -> mx.array:
        h, states = mx.zeros((len(x), H)), []
        for t in range(x.shape[1]):
            h = mx.tanh(x[:, t] @ self.enter + h @ self.back)
            states.append(h)
        return mx.stack(states, axis=1)


class Scanned(Loop):
    def setup(self) -> None:
        self.scan, self.after = Scan(), OwnLinear(H, H)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.after(self.scan(x)))


class ScannedBackwards(Scanned):
    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.after(self.scan(x[:, ::-1])[:, ::-1]))


class Cumulated(Loop):
    """Its layer makes states of what a module inside it returns, by one operation for all steps."""

    def setup(self) -> None:
        self.scan, self.after = Cumulating(), OwnLinear(H, H)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(nn.relu(self.after(self.scan(x))))


class Cumulating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(F, H)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.cumsum(self.enter(x), axis=1)


class TurnedInside(Scan):
    """Reads backwards, and returns its states in the order of running."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x[:, ::-1])


class ScannedTurned(Scanned):
    def setup(self) -> None:
        self.scan, self.after = TurnedInside(), OwnLinear(H, H)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.after(self.scan(x)[:, ::-1]))


class Behind(Scan):
    """Returns the state before each time step."""

    def __call__(self, x: mx.array) -> mx.array:
        states = super().__call__(x)
        return mx.concatenate([mx.zeros_like(states[:, :1]), states[:, :-1]], axis=1)


class ScannedBehind(Scanned):
    def setup(self) -> None:
        self.scan, self.after = Behind(), OwnLinear(H, H)


def made(cls: type[Loop]) -> tuple[Loop, mx.array]:
    mx.random.seed(1)
    model = cls()
    mx.eval(model.parameters())
    return model, mx.random.normal((B, T, F), key=mx.random.key(2))


@pytest.mark.parametrize(
    "cls", [Projected, PreActivation, PreActivationOfLinear, Decayed, Field, Scanned]
)
def test_nothing_without_a_state_is_suggested(cls: type[Loop]) -> None:
    model, x = made(cls)
    runner = ModelRunner(model, ncp.HeldOutBatch(x))
    assert not runner.hook_points.cells
    note = runner.hook_points.no_cells
    assert "cells='" not in note
    assert "Let the cell be a module that takes its state" in note


@pytest.mark.parametrize("cls", [Scanned, Cumulated])
def test_layers_over_the_whole_sequence_are_named_where_no_cell_is_found(cls: type[Loop]) -> None:
    model, x = made(cls)
    note = ModelRunner(model, ncp.HeldOutBatch(x)).hook_points.no_cells
    assert "; scan may be a layer that runs over the whole sequence" in note
    assert "pass its path as cells=[path]" in note


class Channels(nn.Module):
    """Takes and returns (batch, features, time steps)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(F, H), nn.Linear(H, F)

    def __call__(self, x: mx.array) -> mx.array:
        return (self.head(self.rnn(x.swapaxes(1, 2))) + x.swapaxes(1, 2)).swapaxes(1, 2)


def test_a_layer_that_runs_along_the_features_is_reported() -> None:
    mx.random.seed(0)
    model, x = Channels(), mx.random.normal((B, T, F), key=mx.random.key(2))
    note = ModelRunner(model, ncp.HeldOutBatch(x.swapaxes(1, 2))).hook_points.no_cells
    assert f"rnn runs over {T} steps, not over the {F} time steps" in note
    assert "model(inputs.swapaxes(1, 2))" in note
    followed = ModelRunner(
        model,
        ncp.HeldOutBatch(x),
        forward=lambda model, inputs, time_delta: model(inputs.swapaxes(1, 2)).swapaxes(1, 2),
    )
    assert [hook.name for hook in followed.hook_points.cells] == ["rnn"]


@pytest.mark.parametrize("build", [nn.GRU, lambda features, units: CfC(features, units)])
def test_frames_with_time_behind_the_channels_are_reported_with_the_fix(build: Any) -> None:
    class Video(nn.Module):
        """Takes (batch, channels, time steps, height, width)."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = build(2 * 3 * 4, H), nn.Linear(H, 1)

        def __call__(self, x: mx.array) -> mx.array:
            rows = x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)
            states = self.rnn(rows)
            return self.head((states[0] if isinstance(states, tuple) else states)[:, -1])

    model, x = Video(), mx.random.normal((B, 2, 7, 3, 4), key=mx.random.key(2))
    note = ModelRunner(model, ncp.HeldOutBatch(x)).hook_points.no_cells
    assert f"If axis 2 of inputs {tuple(x.shape)} is time, pass mx.moveaxis(inputs, 2, 1)" in note
    followed = ModelRunner(
        model,
        ncp.HeldOutBatch(mx.moveaxis(x, 2, 1), channel_axis=2),
        forward=lambda model, inputs, time_delta: model(mx.moveaxis(inputs, 1, 2)),
    )
    assert [cell.skipped for cell in followed.hook_points.cells] == [""]


@pytest.mark.parametrize("channels_first", [False, True])
def test_one_time_step_has_no_recurrence(channels_first: bool) -> None:
    """A cell that is called for each of seven channels has no states at the only time step."""

    class Channels(Loop):
        def setup(self) -> None:
            self.cell = CfC(F, H).cell if channels_first else TanhCell(F, H)

        def step(self, x: mx.array, h: mx.array) -> mx.array:
            found = self.cell(x, h)
            return found[-1] if isinstance(found, tuple) else found

        def __call__(self, x: mx.array) -> mx.array:
            h = self.start(x)
            for channel in range(7):
                h = self.step(x[:, 0, channel], h)
            return self.out(h)

    x = mx.random.normal((B, 1, 7, F), key=mx.random.key(2))
    points = ModelRunner(Channels(), ncp.HeldOutBatch(x)).hook_points
    assert points.cells == ()
    assert points.no_cells == "no recurrent cell was found: the sequences have one time step"


def test_no_other_layout_is_advised_where_no_axis_is_as_long() -> None:
    class Shortened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rnn = nn.Conv1d(F, 4, 3, stride=2), nn.GRU(4, H)

        def __call__(self, x: mx.array) -> mx.array:
            return self.rnn(self.conv(x))[:, -1]

    x = mx.random.normal((B, 2 * T + 1, F), key=mx.random.key(2))
    assert T != F
    note = ModelRunner(Shortened(), ncp.HeldOutBatch(x)).hook_points.no_cells
    assert note.endswith(
        f"rnn runs over {T} steps, not over the {2 * T + 1} time steps. Let it run over each time "
        "step once"
    )


class Silent(Loop):
    """Its cell gets spikes that never come."""

    def step(self, x: mx.array, h: Any) -> Any:
        return self.cell((x > 100).astype(mx.float32), h)

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x)[:, -1]


def test_a_cell_that_gets_nothing_of_the_inputs_is_skipped_with_the_reason() -> None:
    model, x = made(Silent)
    note = ModelRunner(model, ncp.HeldOutBatch(x)).hook_points.no_cells
    assert "nothing that it receives changes with the inputs" in note


@pytest.mark.parametrize("cls", [KeptInCell, KeptInObject])
def test_what_keeps_a_state_is_suggested_and_can_be_followed(cls: type[Loop]) -> None:
    model, x = made(cls)
    held_out = ncp.HeldOutBatch(x)
    assert "pass cells='cell'" in ModelRunner(model, held_out).hook_points.no_cells
    runner = ModelRunner(model, held_out, cells="cell")
    with runner.analysing():
        (found,) = observe(runner, 0, {ncp.Need.STATES}).states
    h, states = mx.zeros((B, H)), []
    for t in range(T):
        h = mx.tanh(model.cell.mix(mx.concatenate([x[:, t], h], axis=-1)))
        states.append(np.array(h))
    np.testing.assert_allclose(found.values, np.stack(states, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("cls", "name", "words"),
    [
        (Projected, "proj", "at this time step alone"),
        (Projected, "head", "mlx.nn.Linear"),
        (PreActivation, "layer", "keeps nothing between calls"),
        (PreActivationOfLinear, "layer", "mlx.nn.Linear"),
        (Decayed, "gamma", "keeps nothing between calls"),
        (Field, "field", "keeps nothing between calls"),
        (Loop, "head", r"pass cells=\['cell'\]"),
        (Loop, "cell.mix", r"pass cells=\['cell'\]"),
        (Loop, ["cell", "head"], "head holds no state"),
        (Scanned, "after", "at this time step alone"),
        (Scanned, "h*", "head holds no state"),
    ],
)
def test_a_module_without_a_state_is_refused_before_training(
    cls: type[Loop], name: Any, words: str
) -> None:
    model, x = made(cls)
    writer = ncp.MemoryWriter()
    with pytest.raises(ModelError, match=words) as refused:
        ncp.Monitor(model, ncp.HeldOutBatch(x), writer=writer, cells=name).start()
    assert "holds no state" in str(refused.value)
    assert not writer.records


@pytest.mark.parametrize("cls", [Scanned, ScannedBackwards, ScannedTurned])
def test_a_layer_over_the_whole_sequence_can_be_named(cls: type[Loop]) -> None:
    model, x = made(cls)
    runner = ModelRunner(model, ncp.HeldOutBatch(x), cells="scan")
    with runner.analysing():
        (found,) = observe(runner, 0, {ncp.Need.STATES}).states
    steps = range(T) if cls is Scanned else range(T)[::-1]
    h, states = mx.zeros((B, H)), {}
    for t in steps:
        h = mx.tanh(x[:, t] @ model.scan.enter + h @ model.scan.back)
        states[t] = np.array(h)
    by_hand = np.stack([states[t] for t in range(T)], axis=1)
    np.testing.assert_allclose(found.values, by_hand, rtol=1e-5, atol=1e-6)
    assert found.reverse == (cls is not Scanned)


class BothWays(Scan):
    """Joins the states of both directions, each at its time step."""

    def __call__(self, x: mx.array) -> mx.array:
        ahead, back = super().__call__(x), super().__call__(x[:, ::-1])[:, ::-1]
        return mx.concatenate([ahead[..., :2], back[..., 2:]], axis=-1)


class ScannedBothWays(Scanned):
    def setup(self) -> None:
        self.scan, self.after = BothWays(), OwnLinear(H, H)


@pytest.mark.parametrize("cls", [Scanned, ScannedBackwards, ScannedTurned, ScannedBothWays])
def test_a_layer_of_both_directions_is_noted(cls: type[Loop]) -> None:
    model, x = made(cls)
    runner = ModelRunner(model, ncp.HeldOutBatch(x), cells="scan")
    noted = any("run in the other direction" in note for note in runner.notes)
    assert noted == (cls is ScannedBothWays)
    with runner.analysing():
        (found,) = observe(runner, 0, {ncp.Need.STATES}).states
    if noted:
        np.testing.assert_allclose(found.values, np.array(model.scan(x)), rtol=1e-5, atol=1e-6)


def test_a_layer_that_returns_states_of_other_time_steps_is_skipped() -> None:
    model, x = made(ScannedBehind)
    runner = ModelRunner(model, ncp.HeldOutBatch(x), cells="scan")
    assert "scan is skipped: its direction can't be determined" in runner.hook_points.no_cells
    with runner.analysing():
        assert not observe(runner, 0, {ncp.Need.STATES}).states


class Begun(Loop):
    """The cell gets a start of its own: one call more than there are time steps."""

    def start(self, x: mx.array) -> Any:
        return self.cell(mx.ones((len(x), F)), mx.zeros((len(x), H)))


@pytest.mark.parametrize("cells", [None, "cell"])
def test_of_more_calls_than_time_steps_those_are_followed_that_read_them(cells: Any) -> None:
    model, x = made(Begun)
    runner = ModelRunner(model, ncp.HeldOutBatch(x), cells=cells)
    assert f"of the {T + 1} calls of cell" in " ".join(runner.notes)
    with runner.analysing():
        (found,) = observe(runner, 0, {ncp.Need.STATES}).states
    h, states = model.start(x), []
    for t in range(T):
        h = model.cell(x[:, t], h)
        states.append(np.array(h))
    np.testing.assert_allclose(found.values, np.stack(states, 1), rtol=1e-5, atol=1e-6)


def test_a_glob_takes_what_holds_a_state() -> None:
    model, x = made(Loop)
    runner = ModelRunner(model, ncp.HeldOutBatch(x), cells="[ch]*")
    assert [hook.name for hook in runner.hook_points.cells] == ["cell"]
