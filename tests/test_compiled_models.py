"""Models that hold compiled functions: what is found, what a snapshot has, how training goes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from small_nets import TanhCell

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelCopy, ModelRunner, Subject
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.passes import observe

B, T, F, H = 5, 4, 3, 6
X = mx.random.normal((B, T, F), key=mx.random.key(0))
Y = X[:, :, 0].sum(axis=1, keepdims=True)

Step = Callable[[mx.array, mx.array], mx.array]


def loop(step: Step, x: mx.array) -> mx.array:
    h, found = mx.zeros((len(x), H)), []
    for t in range(x.shape[1]):
        h = step(x[:, t], h)
        found.append(h)
    return mx.stack(found, axis=1)


class Cell(TanhCell):
    def step(self, x: mx.array, h: mx.array) -> mx.array:
        return self(x, h)


def by_lambda(cell: Cell) -> Step:
    return mx.compile(lambda x, h: cell(x, h), inputs=cell.state)


KEPT: dict[str, Callable[[Cell], Step]] = {
    "module": lambda cell: mx.compile(cell, inputs=cell.state),
    "module, for all shapes": lambda cell: mx.compile(cell, inputs=cell.state, shapeless=True),
    "its call": lambda cell: mx.compile(cell.__call__, inputs=cell.state),
    "its call, not compiled": lambda cell: cell.__call__,
    "its method": lambda cell: mx.compile(cell.step, inputs=cell.state),
    "a function": by_lambda,
    "compiled twice": lambda cell: mx.compile(by_lambda(cell), inputs=cell.state),
    "without inputs": lambda cell: mx.compile(lambda x, h: cell(x, h)),
}


class Keeper(nn.Module):
    """Keeps a step of its cell, out of the way of its parameters."""

    def __init__(self, kept: Callable[[Cell], Step]) -> None:
        super().__init__()
        self.cell, self.head = Cell(F, H), nn.Linear(H, 1)
        object.__setattr__(self, "_step", kept(self.cell))

    def plain(self, x: mx.array) -> mx.array:
        return self.head(loop(self.cell, x)[:, -1])

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(loop(self._step, x)[:, -1])


def notes(runner: ModelRunner) -> list[str]:
    return [note for note in runner.notes if "mx.compile" in note]


@pytest.mark.parametrize("kept", KEPT)
def test_steps_that_are_kept_are_calls_of_the_cell(kept: str) -> None:
    model = Keeper(KEPT[kept])
    runner = ModelRunner(model, ncp.HeldOutBatch(X), target=0)
    with runner.analysing():
        seen = observe(runner, 0, {ncp.Need.STATES, ncp.Need.INPUT_GRADIENT})
    assert [states.cell for states in seen.states] == ["cell"]
    np.testing.assert_allclose(seen.states[0].values, np.array(loop(model.cell, X)), rtol=1e-5)
    wanted = mx.grad(lambda x: model.plain(x).sum())(X)
    assert seen.input_gradient is not None
    np.testing.assert_allclose(seen.input_gradient, np.array(wanted), rtol=1e-4, atol=1e-7)
    assert bool(notes(runner)) == (kept == "without inputs")


def test_a_call_that_is_kept_is_that_of_the_copy_and_may_be_copied_again() -> None:
    model = Keeper(KEPT["its call, not compiled"])
    first: Any = ModelCopy.of(Subject(model)).model
    again: Any = ModelCopy.of(Subject(first)).model
    for copied in (first, again):
        assert copied._step.__self__ is copied.cell
        copied.cell.mix.weight = copied.cell.mix.weight * 0
        assert not np.array_equal(np.array(copied(X)), np.array(model(X)))


class Whole(nn.Module):
    """Compiles its whole pass in one of several ways."""

    def __init__(self, compile_: Callable[[Any], Any]) -> None:
        super().__init__()
        self.norm, self.rnn = nn.BatchNorm(F), self.recurrent()
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(H, 1)
        object.__setattr__(self, "_run", compile_(self))

    def recurrent(self) -> nn.Module:
        return nn.GRU(F, H)

    def states(self, x: mx.array) -> mx.array:
        found = self.rnn(x)
        return found[0] if isinstance(found, tuple) else found

    def body(self, x: mx.array) -> mx.array:
        return self.head(self.drop(self.states(self.norm(x))[:, -1]))

    def __call__(self, x: mx.array) -> mx.array:
        return self._run(x)


class WholeCfC(Whole):
    def recurrent(self) -> nn.Module:
        return CfC(F, H, backbone_units=5)


class WholeLTC(Whole):
    def recurrent(self) -> nn.Module:
        return LTC(F, H, ode_unfolds=2)


class WholeHomeMade(Whole):
    def recurrent(self) -> nn.Module:
        return Cell(F, H)

    def states(self, x: mx.array) -> mx.array:
        return loop(self.rnn, x)


def with_state(model: Any) -> Any:
    state = [model.state, mx.random.state]
    return mx.compile(model.body, inputs=state, outputs=state)


class TargetValues(ncp.Callback):
    default_name = "values"
    needs = frozenset({ncp.Need.INPUT_GRADIENT, ncp.Need.STATES})

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Scalar]:
        assert len(observation.states) == 1
        for index, value in enumerate(observation.target_values):
            yield ncp.Scalar(f"values/{index}", float(value), "target")


def trained(
    build: Callable[[], Any], compiled: bool, background: bool | None
) -> tuple[list[float], dict[str, np.ndarray], dict[int, np.ndarray], ncp.MemoryWriter]:
    """Return losses, parameters, the plain model's values by step, and the logged ones."""
    mx.random.seed(0)
    model, optimizer = build(), optim.AdamW(learning_rate=1e-2)
    mx.eval(model.parameters())
    loss_and_grad = nn.value_and_grad(model, lambda x, y: ((model(x) - y) ** 2).mean())

    def step(x: mx.array, y: mx.array) -> mx.array:
        loss, gradients = loss_and_grad(x, y)
        optimizer.update(model, gradients)
        return loss

    state = [model.state, optimizer.state, mx.random.state]
    run = mx.compile(step, inputs=state, outputs=state) if compiled else step
    watch: Any = contextlib.nullcontext()
    writer = ncp.MemoryWriter()
    if background is not None:
        watch = ncp.Monitor(
            model, ncp.HeldOutBatch(X[:3]), [TargetValues()], writer=writer, every=4,
            background=background,
        )  # fmt: skip
    losses, values = [], {}
    with watch:
        for number in range(1, 13):
            loss = run(X, Y)
            mx.eval(loss, state)
            losses.append(loss.item())
            if background is not None:
                watch.on_step_end(number)
                continue
            norm = model.norm
            shifted = (X[:3] - norm.running_mean) * mx.rsqrt(norm.running_var + norm.eps)
            shifted = shifted * norm.weight + norm.bias
            values[number] = np.array(model.head(model.states(shifted)[:, -1])[:, 0])
    parameters = {k: np.array(v) for k, v in tree_flatten(model.parameters())}
    return losses, parameters, values, writer


@pytest.mark.parametrize("compiled", [False, True], ids=["eager step", "compiled step"])
@pytest.mark.parametrize(
    ("cls", "background"),
    [
        (Whole, False),
        (WholeCfC, False),
        (WholeLTC, False),
        (WholeHomeMade, False),
        (WholeCfC, True),
        (WholeHomeMade, True),
    ],
)
def test_a_snapshot_has_the_weights_of_its_step_and_training_is_bit_identical(
    cls: type[Whole], compiled: bool, background: bool
) -> None:
    losses, parameters, values, _ = trained(lambda: cls(with_state), compiled, None)
    same, also, _, writer = trained(lambda: cls(with_state), compiled, background)
    assert losses == same
    assert losses[-1] < losses[0]
    for path, array in parameters.items():
        np.testing.assert_array_equal(array, also[path], err_msg=path)
    for index in range(3):
        logged = dict(writer.scalars(f"values/{index}"))
        assert sorted(logged) == [4, 8, 12]
        for step, value in logged.items():
            np.testing.assert_allclose(value, values[step][index], rtol=1e-4, atol=1e-6)


def update_first(model: Any) -> Any:
    def run(parameters: Any, x: mx.array) -> mx.array:
        model.update(parameters)
        return model.body(x)

    compiled = mx.compile(run)
    return lambda x: compiled(model.trainable_parameters(), x)


def by_arguments(_: Any) -> Any:
    return mx.compile(lambda x: x * 2)


ALONE: dict[str, tuple[Callable[[Any], Any], str | None]] = {
    "method": (lambda model: mx.compile(model.body), "model._run was"),
    "function": (lambda model: mx.compile(lambda x: model.body(x)), "model._run was"),
    "array": (
        lambda model: [mx.compile(lambda x, w=model.head.weight: x @ w)],
        r"model._run\[0\] was",
    ),
    "in a function": (
        lambda model: (lambda run: lambda x: run(x))(mx.compile(model.body)),
        r"model._run \(its variable run\) was",
    ),
    "with inputs": (lambda model: mx.compile(model.body, inputs=model.state), None),
    "weights as arguments": (update_first, None),
    "no weights": (by_arguments, None),
}


@pytest.mark.parametrize("how", ALONE)
def test_weights_that_a_compiled_function_keeps_are_reported(how: str) -> None:
    compile_, message = ALONE[how]
    model = Whole(compile_)
    monitor = ncp.Monitor(
        model, ncp.HeldOutBatch(X), [], writer=ncp.MemoryWriter(), background=False,
        forward=lambda model, x, dt: model.body(x),
    )  # fmt: skip
    with monitor:
        monitor.on_step_end(1)
    found = [note for note in monitor.notes if "without inputs=" in note]
    assert len(found) == (message is not None)
    assert message is None or re.search(message, found[0])


def test_what_the_note_on_a_compiled_function_tells_is_so() -> None:
    """The function keeps its weights and gets no gradients; with ``inputs=`` it does neither."""
    for compile_, keeps in (
        (lambda model: mx.compile(model.body), True),
        (lambda model: mx.compile(model.body, inputs=model.state), False),
    ):
        model = Whole(compile_)
        model.eval()
        before = np.array(model(X))
        _, gradients = nn.value_and_grad(model, lambda model=model: model(X).sum())()
        largest = max(float(mx.abs(g).max()) for _, g in tree_flatten(gradients))
        model.head.bias = model.head.bias + 1
        moved = np.array(model(X)) - before
        assert (largest == 0) == keeps
        np.testing.assert_allclose(moved, 0 if keeps else 1, atol=1e-5)
