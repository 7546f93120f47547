"""What a model keeps from batch to batch doesn't change the analyses."""

from __future__ import annotations

import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import zoo

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelCopy, ModelError, ModelRunner, Subject
from ncp_callbacks.passes import observe
from ncp_callbacks.records import Array
from ncp_callbacks.writers import MemoryWriter

B, T, F = 10, zoo.STEPS, zoo.FEATURES
X = mx.random.normal((B, T, F), key=mx.random.key(0))
DT = mx.random.uniform(0.2, 2.0, (B, T), key=mx.random.key(1))
KEPT = sorted(name for name in zoo.EXAMPLES if name.startswith("hand/kept-"))


class Outputs(ncp.Callback):
    """Logs outputs, states and gradients."""

    needs = frozenset({ncp.Need.STATES, ncp.Need.INPUT_GRADIENT, ncp.Need.VARIANTS})

    def measure(self, observation):
        yield Array(f"{self.name}/outputs", observation.outputs)
        yield Array(f"{self.name}/states", observation.states[0].values)
        yield Array(f"{self.name}/gradient", observation.input_gradient)
        many = observation.extra_passes.evaluate(np.repeat(observation.inputs[None], 3, axis=0))
        yield Array(f"{self.name}/variants", many.values)


def logged(writer: MemoryWriter, tag: str) -> list[np.ndarray]:
    return [np.array(r.values) for _, r in writer.records if getattr(r, "tag", "") == tag]


@pytest.mark.parametrize(
    ("name", "size", "background"),
    [(name, size, False) for name in KEPT for size in (B, 16, 1)]
    + [(f"hand/kept-{place}", 16, True) for place in ("array", "object", "growing-list")],
)
def test_analyses_at_unchanged_parameters_are_equal(name, size, background) -> None:
    model, writer = zoo.made(zoo.EXAMPLES[name]), MemoryWriter()
    held_out = ncp.HeldOutBatch(X, DT)
    monitor = ncp.Monitor(
        model, held_out, [Outputs()], writer=writer, every=1, target=1, background=background,
        verbose=False,
    )  # fmt: skip
    expected = zoo.fresh(model, X, DT)
    gradient = mx.grad(lambda x: zoo.fresh(model, x, DT)[:, -1, 1].sum())(X)
    with monitor:
        for step in (1, 2, 3):
            keys = mx.random.split(mx.random.key(step))
            x = step * mx.random.normal((size, T, F), key=keys[0])
            mx.eval(model(x, mx.random.uniform(0.1, 2.0, (size, T), key=keys[1])))
            monitor.on_step_end(step)
            model._write(model, mx.ones((size, zoo.UNITS)))  # what it holds stays its own
    assert not [note for note in monitor.notes if "disabled" in note]
    for outputs in logged(writer, "outputs/outputs"):
        np.testing.assert_allclose(outputs, expected, atol=1e-6)
    for found in logged(writer, "outputs/gradient"):
        np.testing.assert_allclose(found, gradient, atol=1e-6)
    for found in logged(writer, "outputs/variants"):
        np.testing.assert_allclose(found, np.repeat(expected[None, :, -1, 1], 3, 0), atol=1e-6)
    assert len(logged(writer, "outputs/outputs")) == 3


def held(model):
    return np.array(model._read(model))


@pytest.mark.parametrize("name", KEPT)
def test_the_state_on_entering_is_started_from_if_it_fits(name) -> None:
    model = zoo.made(zoo.EXAMPLES[name])
    mx.eval(model(X + 1, DT))
    start = mx.array(held(model))
    h, outputs = start, []
    for t in range(T):
        h = model.cell(X[:, t], h, DT[:, t, None])
        outputs.append(model.head(h))
    runner = ModelRunner(model, ncp.HeldOutBatch(X, DT), target=0)
    assert runner.whole_batch_only
    with runner.analysing():
        seen = observe(runner, 0, {ncp.Need.VARIANTS})
        again = seen.extra_passes.evaluate(np.repeat(seen.inputs[None], 2, axis=0)).values
    np.testing.assert_allclose(seen.outputs, mx.stack(outputs, axis=1), atol=1e-6)
    np.testing.assert_allclose(again, np.repeat(seen.target_values[None], 2, 0), atol=1e-6)
    np.testing.assert_array_equal(held(model), start)


@pytest.mark.parametrize("name", KEPT)
def test_a_state_of_another_number_of_sequences_is_reported(name) -> None:
    model = zoo.made(zoo.EXAMPLES[name])
    mx.eval(model(mx.ones((16, T, F)), mx.ones((16, T))))
    monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), [Outputs()], writer=MemoryWriter())
    message = r"a state of 16 sequences \(.*\) and fails on the 10 .*reset the state in forward="
    with pytest.raises(ModelError, match=message):
        monitor.start()


class Normalised(nn.Module):
    """Updates statistics at each call, in evaluation mode too."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.rnn, self._name = nn.GRU(F, 5), name
        setattr(self, name, mx.zeros((F,)))

    def __call__(self, x):
        mean = getattr(self, self._name)
        setattr(self, self._name, mx.stop_gradient(0.9 * mean + 0.1 * x.mean(axis=(0, 1))))
        return self.rnn(x - mean)


@pytest.mark.parametrize("name", ["running_mean", "_running_mean"])
def test_statistics_are_those_of_the_snapshot(name: str) -> None:
    """They belong to the model that is trained; numbers are those of the model at the step."""
    model, writer = Normalised(name), MemoryWriter()
    monitor = ncp.Monitor(
        model, ncp.HeldOutBatch(X), [Outputs()], writer=writer, every=1, target=0, verbose=False,
        background=False,
    )  # fmt: skip
    expected = []
    with monitor:
        for step in (1, 2):
            mx.eval(model(X * 3 + 1))
            expected.append(np.array(model.rnn(X - getattr(model, name))))
            monitor.on_step_end(step)
    for outputs, own in zip(logged(writer, "outputs/outputs"), expected, strict=True):
        np.testing.assert_allclose(outputs, own, atol=1e-6)
    for values, own in zip(logged(writer, "outputs/variants"), expected, strict=True):
        np.testing.assert_allclose(values, np.repeat(own[None, :, -1, 0], 3, 0), atol=1e-6)
    noted = [note for note in monitor.notes if "each call of the model changes" in note]
    assert len(noted) == (name == "_running_mean")


class Inspected(nn.Module):
    """Keeps its last states for a plot, and never reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self._last = nn.GRU(F, 5), None

    def __call__(self, x):
        self._last = self.rnn(x)
        return self._last


def test_what_is_kept_and_never_read_is_no_state() -> None:
    assert not ModelRunner(Inspected(), ncp.HeldOutBatch(X)).state.notes


class Session:
    """A function with a state of its own, as ``forward=``."""

    def __init__(self) -> None:
        self.h = None

    def __call__(self, model, x, dt):
        states = model.rnn(x, self.h)
        self.h = mx.stop_gradient(states[:, -1])
        return states


def test_a_state_in_forward_is_found_too() -> None:
    session, model = Session(), Inspected()
    runner = ModelRunner(model, ncp.HeldOutBatch(X), forward=session)
    assert "forward.h" in runner.state.notes[0]
    with runner.analysing():
        for _ in range(2):
            seen = observe(runner, 0, frozenset())
            np.testing.assert_allclose(seen.outputs, model.rnn(X), atol=1e-6)
    assert session.h is None


def test_an_observer_that_is_started_later_starts_from_the_state_on_entering() -> None:
    model = zoo.made(zoo.EXAMPLES["hand/kept-list"])
    first = ModelRunner(model, ncp.HeldOutBatch(X, DT))
    mx.eval(model(mx.ones((16, T, F)), mx.ones((16, T))))
    state = pickle.loads(pickle.dumps(first.state))
    later = ModelRunner(ModelCopy.of(Subject(model)), ncp.HeldOutBatch(X, DT), state=state)
    with later.analysing():
        seen = observe(later, 0, frozenset())
    np.testing.assert_allclose(seen.outputs, zoo.fresh(model, X, DT), atol=1e-6)
    assert later.state.notes == first.state.notes


def test_a_compiled_training_step_that_hands_the_state_on() -> None:
    """The state is an array of the model, which the step takes and returns."""
    model, writer = zoo.made(zoo.EXAMPLES["hand/kept-array"]), MemoryWriter()
    monitor = ncp.Monitor(
        model, ncp.HeldOutBatch(X, DT), [Outputs()], writer=writer, every=1, target=1,
        background=False, verbose=False,
    )  # fmt: skip

    @mx.compile
    def step(h, x, dt):
        model.kept = h
        outputs = model(x, dt)
        return model.kept, outputs

    with monitor:
        h = mx.zeros((16, zoo.UNITS))
        for number in (1, 2, 3):
            h, _ = step(h, number * mx.ones((16, T, F)), mx.ones((16, T)))
            mx.eval(h)
            model.kept = h
            monitor.on_step_end(number)
    for outputs in logged(writer, "outputs/outputs"):
        np.testing.assert_allclose(outputs, zoo.fresh(model, X, DT), atol=1e-6)
    assert len(logged(writer, "outputs/outputs")) == 3
