"""The reference models, trained for fifty steps with and without a monitor that logs to disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from ncps.wirings import AutoNCP

import ncp_callbacks as ncp
from ncp_callbacks.models import LTC, CfC

MODELS: dict[str, Callable[[], nn.Module]] = {
    "CfC": lambda: CfC(3, 8, backbone_units=12, backbone_layers=2, backbone_dropout=0.2),
    "CfC pure": lambda: CfC(3, 8, mode="pure", backbone_units=8),
    "CfC wired": lambda: CfC(3, AutoNCP(12, 8)),
    "LTC": lambda: LTC(3, 8, ode_unfolds=3),
    "LTC wired": lambda: LTC(3, AutoNCP(12, 8), ode_unfolds=3),
}


class Net(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.drop, self.head = rnn, nn.Dropout(0.3), nn.Linear(8, 4)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.drop(self.rnn(x, time_delta)[0][:, -1]))


def trained(make: Callable[[], nn.Module], compiled: bool, log_dir: Path | None) -> Any:
    mx.random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (AutoNCP draws its wiring from it)
    model, optimizer = Net(make()), optim.Adam(learning_rate=1e-2)
    mx.eval(model.parameters())
    keys = mx.random.split(mx.random.key(1), 2)
    x = mx.random.normal((12, 6, 3), key=keys[0])
    dt = mx.random.uniform(0.5, 1.5, (12, 6), key=keys[1])
    y = (x[:, :, 0].sum(axis=1) > 0).astype(mx.int32)
    loss_and_grad = nn.value_and_grad(
        model, lambda x, dt, y: nn.losses.cross_entropy(model(x, dt), y, reduction="mean")
    )

    def step(x: mx.array, dt: mx.array, y: mx.array) -> mx.array:
        loss, gradients = loss_and_grad(x, dt, y)
        optimizer.update(model, gradients)
        return loss

    state = [model.state, optimizer.state, mx.random.state]
    run = mx.compile(step, inputs=state, outputs=state) if compiled else step
    watch: Any = contextlib.nullcontext()
    if log_dir is not None:
        held_out = ncp.HeldOutBatch(x[:5], dt[:5], targets=y[:5])
        watch = ncp.Monitor(model, held_out, log_dir=log_dir, every=7, target="loss")
    losses = []
    with watch as monitor:
        for number in range(1, 51):
            loss = run(x, dt, y)
            if monitor is not None:
                monitor.on_step_end(number, loss=loss)
            losses.append(loss.item())
        if monitor is not None:
            assert len(monitor.callbacks) >= 4
    arrays = {**dict(tree_flatten(model.parameters())), **dict(tree_flatten(optimizer.state))}
    return losses, {k: np.array(v) for k, v in arrays.items()}, mx.random.state[0].tolist()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", MODELS)
def test_fifty_steps(name: str, compiled: bool, tmp_path: Path) -> None:
    losses, arrays, key = trained(MODELS[name], compiled, None)
    watched_losses, watched_arrays, watched_key = trained(MODELS[name], compiled, tmp_path / "run")
    assert losses == watched_losses
    assert losses[-1] < losses[0]
    assert key == watched_key
    assert arrays.keys() == watched_arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, watched_arrays[path], err_msg=path)


def losses_of_plain_descent(every: int | None, background: bool = True) -> list[float]:
    """Return losses of a compiled training whose arrays MLX computes in place."""
    mx.random.seed(0)
    x = mx.array(np.random.default_rng(0).normal(size=(64, 20, 3)).astype(np.float32))
    model = nn.Sequential(nn.GRU(3, 32), lambda states: states[:, -1], nn.Linear(32, 1))
    optimizer = optim.SGD(learning_rate=0.1)
    mx.eval(model.parameters())
    loss_and_grad = nn.value_and_grad(
        model, lambda: ((model(x) - x[:, :, :1].sum(axis=1)) ** 2).mean()
    )

    def step() -> mx.array:
        loss, gradients = loss_and_grad()
        optimizer.update(model, gradients)
        return loss

    state = [model.state, optimizer.state]
    run = mx.compile(step, inputs=state, outputs=state)
    watch: Any = contextlib.nullcontext()
    if every is not None:
        watch = ncp.Monitor(
            model, ncp.HeldOutBatch(x[:16]), "light", writer=ncp.MemoryWriter(), every=every,
            background=background,
        )  # fmt: skip
    losses = []
    with watch:
        for number in range(1, 41):
            loss = run()
            mx.eval(state, loss)
            losses.append(loss.item())
            if every is not None:
                watch.on_step_end(number)
    return losses


@pytest.mark.parametrize("background", [True, False], ids=["background", "loop"])
@pytest.mark.parametrize("every", [1, 7, 1000])
def test_nobody_holds_on_to_parameters_that_are_computed_in_place(
    every: int, background: bool
) -> None:
    # A reference to the initial parameters changes the tenth of these losses.
    assert losses_of_plain_descent(every, background) == losses_of_plain_descent(None)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.mid, self.head = nn.GRU(3, 6), nn.Linear(6, 6), nn.Linear(6, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(nn.tanh(self.mid(self.rnn(x))))[:, -1, 0]


def accumulated(step: int) -> bool:
    return step % 3 == 0  # Two of three steps only add up gradients.


def paused(step: int) -> bool:
    return not 4 <= step < 34  # The loss is a spike: these steps are not made.


def trained_now_and_then(
    updates: Callable[[int], bool], compiled: bool, monitored: Callable[[nn.Module], Any]
) -> Any:
    mx.random.seed(5)
    model, optimizer = Small(), optim.SGD(0.05)
    mx.eval(model.parameters())
    x = mx.array(np.random.default_rng(0).standard_normal((8, 5, 3)).astype(np.float32))
    losses: list[float] = []
    with monitored(model) as monitor:
        for step in range(1, 45):
            if updates(step):
                loss_and_grad = nn.value_and_grad(
                    model, lambda x: ((model(x) - x[:, 0, 0]) ** 2).mean()
                )

                def make(x: mx.array, loss_and_grad: Any = loss_and_grad) -> mx.array:
                    loss, gradients = loss_and_grad(x)
                    optimizer.update(model, gradients)
                    return loss

                state = [model.state, optimizer.state]
                run = mx.compile(make, inputs=state, outputs=state) if compiled else make
                loss = run(x)
                mx.eval(model.parameters(), optimizer.state)
                losses.append(loss.item())
            if monitor is not None:
                monitor.on_step_end(step, loss=losses[-1] if losses else 0.0)
    return losses, [(name, v.tolist()) for name, v in tree_flatten(model.parameters())]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("updates", [accumulated, paused])
@pytest.mark.parametrize("background", [True, False])
def test_what_stays_as_it_was_for_some_snapshots_is_trained_on_as_without_a_monitor(
    updates: Callable[[int], bool], background: bool, compiled: bool
) -> None:
    # Whoever keeps a buffer that didn't change lets MLX round the next update another way.
    alone = trained_now_and_then(updates, compiled, lambda model: contextlib.nullcontext())
    x = np.random.default_rng(1).standard_normal((16, 5, 3)).astype(np.float32)
    watched = trained_now_and_then(
        updates,
        compiled,
        lambda model: ncp.Monitor(
            model, ncp.HeldOutBatch(x), [ncp.StateTransitions()], writer=ncp.MemoryWriter(),
            every=1, background=background,
        ),
    )  # fmt: skip
    assert watched == alone
