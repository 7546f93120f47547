"""Tokens are attributed at their vectors, whatever way a model makes these."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.passes import observe

B, T, V, E, H = 5, 6, 11, 4, 7


class Cell(nn.Module):
    def __init__(self, features: int = E) -> None:
        super().__init__()
        self.mix = nn.Linear(features + H, H)

    def __call__(self, x: mx.array, h: mx.array) -> mx.array:
        return mx.tanh(self.mix(mx.concatenate([x, h], axis=-1)))


class Reader(nn.Module):
    """A cell over vectors; subclasses make the vectors, ``read`` runs from them."""

    width = E
    start = 0
    horizon: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.cell, self.head = nn.Embedding(V + 1, E), Cell(self.width), nn.Linear(H, 2)

    def read(self, vectors: list[mx.array]) -> mx.array:
        h, ys = mx.zeros((len(vectors[0]), H)), []
        for x in vectors:
            h = self.cell(x, h)
            ys.append(self.head(h))
        return mx.stack(ys[self.start :], axis=1)

    def vectors(self, tokens: mx.array) -> mx.array:
        """The vectors (B, T, E) by hand."""
        return self.emb(tokens)

    def from_vectors(self, vectors: mx.array) -> mx.array:
        """The outputs by hand."""
        return self.read([vectors[:, t] for t in range(T)])


class Whole(Reader):
    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.emb(tokens)
        return self.read([x[:, t] for t in range(T)])


class PerStep(Reader):
    def __call__(self, tokens: mx.array) -> mx.array:
        return self.read([self.emb(tokens[:, t]) for t in range(T)])


class PerStepColumns(Reader):
    def __call__(self, tokens: mx.array) -> mx.array:
        return self.read([self.emb(tokens[:, t : t + 1])[:, 0] for t in range(T)])


class Backwards(Reader):
    horizon = False

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.read([self.emb(tokens[:, t]) for t in reversed(range(T))])

    def from_vectors(self, vectors: mx.array) -> mx.array:
        return self.read([vectors[:, t] for t in reversed(range(T))])


class Shifted(Reader):
    """A start token in front, and the last token is never read."""

    def __call__(self, tokens: mx.array) -> mx.array:
        begin = mx.zeros((len(tokens), 1), dtype=tokens.dtype)
        x = self.emb(mx.concatenate([begin, tokens[:, :-1]], axis=1))
        return self.read([x[:, t] for t in range(T)])

    def from_vectors(self, vectors: mx.array) -> mx.array:
        begin = self.emb(mx.zeros((len(vectors),), dtype=mx.int32))
        return self.read([begin, *[vectors[:, t] for t in range(T - 1)]])


class Begun(Reader):
    """A start token in front: one call more than steps."""

    start = 1

    def __call__(self, tokens: mx.array) -> mx.array:
        begin = mx.full((len(tokens),), V, dtype=tokens.dtype)
        return self.read([self.emb(t) for t in (begin, *[tokens[:, t] for t in range(T)])])

    def from_vectors(self, vectors: mx.array) -> mx.array:
        begin = self.emb(mx.full((len(vectors),), V, dtype=mx.int32))
        return self.read([begin, *[vectors[:, t] for t in range(T)]])


class Offset(Reader):
    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.emb(tokens + 1)
        return self.read([x[:, t] for t in range(T)])

    def vectors(self, tokens: mx.array) -> mx.array:
        return self.emb(tokens + 1)


class TimeFirst(Reader):
    def __call__(self, tokens: mx.array) -> mx.array:
        return self.read(list(self.emb(tokens.T)))


class Flattened(Reader):
    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.emb(tokens.reshape(-1)).reshape(*tokens.shape, E)
        return self.read([x[:, t] for t in range(T)])


class FlattenedTimeFirst(Reader):
    def __call__(self, tokens: mx.array) -> mx.array:
        return self.read(list(self.emb(tokens.T.reshape(-1)).reshape(T, -1, E)))


class OneHot(Reader):
    width = V

    def __call__(self, tokens: mx.array) -> mx.array:
        x = mx.eye(V)[tokens]
        return self.read([x[:, t] for t in range(T)])

    def vectors(self, tokens: mx.array) -> mx.array:
        return mx.eye(V)[tokens]


class OneHotByProduct(Reader):
    """Vectors are no module's output, but a module's argument."""

    def __call__(self, tokens: mx.array) -> mx.array:
        hot = (tokens[..., None] == mx.arange(V + 1)).astype(mx.float32)
        x = hot @ self.emb["weight"]
        return self.read([x[:, t] for t in range(T)])


class OneHotLayer(Reader):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(V, E)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.enter(mx.eye(V)[tokens])
        return self.read([x[:, t] for t in range(T)])

    def vectors(self, tokens: mx.array) -> mx.array:
        return self.enter(mx.eye(V)[tokens])


class Table(Reader):
    def __call__(self, tokens: mx.array) -> mx.array:
        x = mx.take(self.emb["weight"], tokens, axis=0)
        return self.read([x[:, t] for t in range(T)])


class TablePerStep(Reader):
    def __call__(self, tokens: mx.array) -> mx.array:
        return self.read([self.emb["weight"][tokens[:, t]] for t in range(T)])


class TwoTables(Reader):
    """Also in the shape of a real model: the tables begin equal and would drift apart."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Embedding(V + 1, E)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.emb(tokens) * mx.sigmoid(self.other(tokens))
        return self.read([x[:, t] for t in range(T)])

    def vectors(self, tokens: mx.array) -> mx.array:
        return mx.concatenate([self.emb(tokens), self.other(tokens)], axis=-1)

    def from_vectors(self, vectors: mx.array) -> mx.array:
        x = vectors[..., :E] * mx.sigmoid(vectors[..., E:])
        return self.read([x[:, t] for t in range(T)])


class Twice(Reader):
    """One table, read by an encoder and again, shifted, by a decoder."""

    horizon = False

    def __call__(self, tokens: mx.array) -> mx.array:
        h = mx.zeros((len(tokens), H))
        for t in range(T):
            h = self.cell(self.emb(tokens[:, t]), h)
        x = self.emb(mx.concatenate([tokens[:, :1], tokens[:, :-1]], axis=1))
        return self.head(mx.tanh(h[:, None] + mx.concatenate([x, x], axis=-1)[..., :H]))

    def from_vectors(self, vectors: mx.array) -> mx.array:
        h = mx.zeros((len(vectors), H))
        for t in range(T):
            h = self.cell(vectors[:, t], h)
        x = mx.concatenate([vectors[:, :1], vectors[:, :-1]], axis=1)
        return self.head(mx.tanh(h[:, None] + mx.concatenate([x, x], axis=-1)[..., :H]))


class InsideTheCell(Reader):
    def __init__(self) -> None:
        super().__init__()
        self.outer = TokenCell(self.emb, self.cell)

    def __call__(self, tokens: mx.array) -> mx.array:
        h, ys = mx.zeros((len(tokens), H)), []
        for t in range(T):
            h = self.outer(tokens[:, t], h)
            ys.append(self.head(h))
        return mx.stack(ys, axis=1)


class TokenCell(nn.Module):
    def __init__(self, emb: nn.Embedding, cell: Cell) -> None:
        super().__init__()
        self.emb, self.cell = emb, cell

    def __call__(self, token: mx.array, h: mx.array) -> mx.array:
        return self.cell(self.emb(token), h)


class Compiled(Reader):
    def __init__(self) -> None:
        super().__init__()
        self._run = mx.compile(lambda tokens: self.plain(tokens), inputs=self.state)

    def plain(self, tokens: mx.array) -> mx.array:
        return self.read([self.emb(tokens[:, t]) for t in range(T)])

    def __call__(self, tokens: mx.array) -> mx.array:
        return self._run(tokens)


ATTRIBUTED = [
    Whole,
    PerStep,
    PerStepColumns,
    Backwards,
    Shifted,
    Begun,
    Offset,
    TimeFirst,
    Flattened,
    FlattenedTimeFirst,
    OneHot,
    OneHotByProduct,
    OneHotLayer,
    Table,
    TablePerStep,
    TwoTables,
    Twice,
    InsideTheCell,
    Compiled,
]


# Facts about the calls, of which only those that read the tokens are analysed.
NOTES: dict[type[Reader], tuple[str, ...]] = {
    Shifted: (
        "cell reads the input of each time step 1 call after the call of that time step, to which "
        "its states are assigned",
    ),
    Begun: (f"of the {T + 1} calls of cell, only those that read the {T} time steps are analysed",),
}


def made(cls: type[Reader], batch: int = B) -> tuple[Reader, mx.array]:
    mx.random.seed(3)
    model = cls()
    mx.eval(model.parameters())
    return model, mx.random.randint(0, V, (batch, T), key=mx.random.key(4))


def by_hand(model: Reader, tokens: mx.array, output: int = 1) -> tuple[Any, Any]:
    """Vectors, and the gradient of an output at the last step, by an explicit loop."""
    vectors = model.vectors(tokens)
    gradient = mx.grad(lambda v: model.from_vectors(v)[:, -1, output].sum())(vectors)
    return np.array(vectors), np.array(gradient)


@pytest.mark.parametrize("cls", ATTRIBUTED)
@pytest.mark.parametrize("batch", [1, 2, 5, 6])
def test_gradients_are_those_of_the_vectors(cls: type[Reader], batch: int) -> None:
    model, tokens = made(cls, batch)
    runner = ModelRunner(model, ncp.HeldOutBatch(tokens), target=1, horizon=cls.horizon)
    with runner.analysing():
        seen = observe(runner, 0, {ncp.Need.INPUT_GRADIENT, ncp.Need.VARIANTS})
        inputs, gradient = seen.inputs, seen.input_gradient
        doubled = seen.extra_passes.evaluate(2 * inputs[None]).values[0]
    vectors, expected = by_hand(model, tokens)
    read = np.abs(expected).any(axis=(0, 2))  # a shifted model never reads the last token
    np.testing.assert_allclose(inputs[:, read], vectors[:, read], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        doubled, np.array(model.from_vectors(mx.array(2 * vectors))[:, -1, 1]), rtol=1e-4, atol=1e-6
    )
    assert runner.notes == NOTES.get(cls, ())
    np.testing.assert_array_equal(np.array(seen.outputs), np.array(model(tokens)))


@pytest.mark.parametrize("cls", ATTRIBUTED)
def test_attributions_of_tokens_are_sums_over_their_vectors(cls: type[Reader]) -> None:
    model, tokens = made(cls)
    vectors, gradient = by_hand(model, tokens)
    expected = np.abs((vectors * gradient).sum(axis=-1)).mean(axis=0)
    product = {"method": "input_x_gradient", "baseline": "zeros"}
    found = ncp.compute_temporal_importance(model, tokens, target=1, horizon=cls.horizon, **product)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cls", [PerStep, Shifted, TwoTables, Table])
@pytest.mark.parametrize("background", [False, True])
def test_a_monitor_reads_the_vectors_of_each_snapshot(cls: type[Reader], background: bool) -> None:
    model, tokens = made(cls)
    writer, expected = ncp.MemoryWriter(), []
    held_out = ncp.HeldOutBatch(tokens)
    options = {"every": 1, "target": 1, "background": background}
    product = ncp.GradientAttribution(method="input_x_gradient", baseline="zeros", removal=0)
    callbacks = [product, ncp.StateTransitions()]
    with ncp.Monitor(model, held_out, callbacks, writer=writer, **options) as monitor:
        for step in (1, 2):
            monitor.on_step_end(step)
            vectors, gradient = by_hand(model, tokens)
            expected.append(np.abs((vectors * gradient).sum(axis=-1)).mean(axis=0).sum())
            model.emb.weight = 1.5 * model.emb.weight
    found = [value for _, value in writer.scalars("attribution_output1/strength")]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert len(writer.scalars("transitions/magnitude_mean")) == 2


def test_two_tables_that_begin_equal_are_read_separately() -> None:
    model, tokens = made(TwoTables)
    model.other.weight = mx.array(model.emb.weight)
    runner = ModelRunner(model, ncp.HeldOutBatch(tokens), target=1)
    with runner.analysing():
        inputs = observe(runner, 0).inputs
    assert inputs.shape == (B, T, 2 * E)


def test_padded_tokens_have_vectors_where_other_sequences_go_on() -> None:
    model, tokens = made(PerStep)
    lengths = np.array([2, 3, 6, 5, 6])
    mask = np.arange(T) < lengths[:, None]
    tokens = mx.where(mx.array(mask), tokens, mx.zeros_like(tokens))
    runner = ModelRunner(model, ncp.HeldOutBatch(tokens, mask=mask), target=1)
    with runner.analysing():
        gradient = observe(runner, 0, {ncp.Need.INPUT_GRADIENT}).input_gradient

    def target(vectors: mx.array) -> mx.array:
        out = model.from_vectors(vectors)
        return sum(out[b, int(n) - 1, 1] for b, n in enumerate(lengths))

    expected = np.array(mx.grad(target)(model.vectors(tokens)))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


class Joined(Reader):
    """The cell gets rows of a table, joined with something else."""

    width = E + 1

    def beside(self, x: Any, t: int) -> mx.array:
        raise NotImplementedError

    def joined(self, x: Any, vectors: mx.array) -> mx.array:
        steps = [
            mx.concatenate([vectors[:, t], self.beside(x, t)[:, None]], axis=-1) for t in range(T)
        ]
        return self.read(steps)


class Timed(Joined):
    def beside(self, x: Any, t: int) -> mx.array:
        return x[:, t]

    def __call__(self, tokens: mx.array, time_delta: mx.array) -> mx.array:
        return self.joined(time_delta, self.emb["weight"][tokens])


class Placed(Joined):
    """Joined with the position."""

    def beside(self, x: Any, t: int) -> mx.array:
        return mx.full((len(x),), 0.1 * t + 1)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.joined(tokens, self.emb["weight"][tokens])


class Measured(Joined):
    """Joined with a measurement, which is passed beside the tokens."""

    def beside(self, x: Any, t: int) -> mx.array:
        return x[:, t]

    def __call__(self, tokens: mx.array, measured: mx.array) -> mx.array:
        return self.joined(measured, self.emb["weight"][tokens])


@pytest.mark.parametrize("cls", [Timed, Placed, Measured])
def test_what_is_joined_with_a_vector_is_left_alone(cls: type[Joined]) -> None:
    model, tokens = made(cls)
    number = mx.random.uniform(0.5, 2.0, (B, T), key=mx.random.key(2))
    other = tokens if cls is Placed else number
    held_out = {
        Timed: lambda: ncp.HeldOutBatch(tokens, number),
        Placed: lambda: ncp.HeldOutBatch(tokens),
        Measured: lambda: ncp.HeldOutBatch((tokens, number)),
    }[cls]()
    runner = ModelRunner(model, held_out, target=1)
    with runner.analysing():
        seen = observe(
            runner, 0, {ncp.Need.INPUT_GRADIENT, ncp.Need.TIME_GRADIENT, ncp.Need.TIME_SCALES}
        )
    vectors = model.emb.weight[tokens]
    np.testing.assert_allclose(seen.inputs, np.array(vectors), rtol=1e-6)
    by_vector = mx.grad(lambda v: model.joined(other, v)[:, -1, 1].sum())(vectors)
    np.testing.assert_allclose(seen.input_gradient, np.array(by_vector), rtol=1e-4, atol=1e-7)
    if cls is Timed:
        with runner.analysing():
            doubled = seen.extra_passes.at_time_scales((2.0,)).values[2.0]
        np.testing.assert_allclose(
            doubled, np.array(model(tokens, 2 * number))[:, -1, 1], rtol=1e-5
        )
        by_time = mx.grad(lambda d: model(tokens, d)[:, -1, 1].sum())(number)
        np.testing.assert_allclose(seen.time_gradient, np.array(by_time), rtol=1e-4, atol=1e-7)


class Decayed(Reader):
    """The cell gets rows of a table that decay with elapsed time: no array holds the rows alone."""

    def given(self, tokens: mx.array, time_delta: mx.array) -> mx.array:
        return self.emb["weight"][tokens] * mx.exp(-time_delta)[..., None]

    def __call__(self, tokens: mx.array, time_delta: mx.array) -> mx.array:
        x = self.given(tokens, time_delta)
        return self.read([x[:, t] for t in range(T)])


def test_vectors_that_depend_on_elapsed_times_are_not_replaced() -> None:
    model, tokens = made(Decayed)
    dt = mx.random.uniform(0.5, 2.0, (B, T), key=mx.random.key(2))
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(tokens, dt)
    with ncp.Monitor(model, held_out, writer=writer, every=1, target=1) as monitor:
        monitor.on_step_end(1)
        (note,) = (n for n in monitor.notes if n.startswith("attribution"))
    assert "tokens have no gradient" in note
    # The effect of the elapsed times is there in full.
    runner = ModelRunner(model, held_out, target=1)
    with runner.analysing():
        seen = observe(runner, 0, {ncp.Need.TIME_GRADIENT, ncp.Need.TIME_SCALES})
        values, slope = seen.extra_passes.at_time_scales((2.0,)).values[2.0], seen.time_gradient
    np.testing.assert_allclose(values, np.array(model(tokens, 2 * dt))[:, -1, 1], rtol=1e-5)
    expected = mx.grad(lambda d: model(tokens, d)[:, -1, 1].sum())(dt)
    np.testing.assert_allclose(slope, np.array(expected), rtol=1e-4, atol=1e-7)


class ByHand(Reader):
    """No module sees a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.back = mx.random.normal((E, H)), mx.random.normal((H, H))

    def __call__(self, tokens: mx.array) -> mx.array:
        h, ys = mx.zeros((len(tokens), H)), []
        for t in range(T):
            h = mx.tanh(self.emb["weight"][tokens[:, t]] @ self.enter + h @ self.back)
            ys.append(self.head(h))
        return mx.stack(ys, axis=1)


def test_without_vectors_all_but_attribution_goes_on() -> None:
    model, tokens = made(Decayed)
    dt = mx.ones((B, T))
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        model, ncp.HeldOutBatch(tokens, dt), "standard", writer=writer, every=1
    ) as monitor:
        monitor.on_step_end(1)
        assert [c.name for c in monitor.callbacks].count("attribution") == 0
        assert sum("tokens have no gradient" in note for note in monitor.notes) == 1
    h, moved = mx.zeros((B, H)), []
    for t in range(T):
        x = model.given(tokens, dt)[:, t]
        new = model.cell(x, h)
        moved.append(np.linalg.norm(np.array(new - h), axis=-1))
        h = new
    ((_, found),) = writer.scalars("transitions/magnitude_mean")
    assert found == pytest.approx(np.mean(moved[1:]), rel=1e-4)
    tags = {record.tag.split("/")[0] for _, record in writer.records}
    assert {"time_delta", "transitions", "hidden"} <= tags


@pytest.mark.parametrize("cls", [ByHand, Decayed])
def test_occlusion_needs_no_vectors(cls: type[Reader]) -> None:
    model, tokens = made(cls)
    extra = (mx.ones((B, T)),) if cls is Decayed else ()
    found = ncp.compute_temporal_importance(model, tokens, *extra, target=1, method="occlusion")
    values = np.array(tokens)
    usual = np.bincount(values.ravel()).argmax()
    base, changes = np.array(model(tokens, *extra))[:, -1, 1], []
    for t in range(T):
        other = values.copy()
        other[:, t] = usual
        changes.append(base - np.array(model(mx.array(other), *extra))[:, -1, 1])
    np.testing.assert_allclose(
        found[:, 0], np.abs(np.stack(changes)).mean(axis=1), rtol=1e-4, atol=1e-6
    )


class Masked(Reader):
    """Outputs are also masked by the tokens themselves."""

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.emb(tokens)
        return self.read([x[:, t] for t in range(T)]) * (1.0 + 0.1 * (tokens % 3))[..., None]


def test_tokens_that_also_act_past_their_vectors_are_noted() -> None:
    model, tokens = made(Masked)
    runner = ModelRunner(model, ncp.HeldOutBatch(tokens), target=1)
    with runner.analysing():
        seen = observe(runner, 0, {ncp.Need.INPUT_GRADIENT})
    vectors = model.vectors(tokens)

    def target(v: mx.array) -> mx.array:
        out = model.from_vectors(v) * (1.0 + 0.1 * (tokens % 3))[..., None]
        return out[:, -1, 1].sum()

    expected = np.array(mx.grad(target)(vectors))
    np.testing.assert_allclose(seen.input_gradient, expected, rtol=1e-4, atol=1e-7)
    (note,) = runner.notes
    assert "in another way than by their vectors" in note


def test_functions_without_vectors() -> None:
    model, tokens = made(ByHand)
    with pytest.raises(ncp.ModelError, match="tokens have no gradient") as refused:
        ncp.compute_temporal_importance(model, tokens)
    # Vectors in the held-out batch would stay what they are while the model learns.
    assert "inputs=model" not in str(refused.value)
    model, tokens = made(Decayed)
    found = ncp.interpret_model(model, tokens, mx.ones((B, T)))
    assert found.importance is None
    assert found.states is not None
    assert found.sensitivity is not None
    assert sum("tokens have no gradient" in note for note in found.notes) == 1


@pytest.mark.parametrize("cls", [Whole, PerStep])
def test_tokens_that_are_all_equal(cls: type[Reader]) -> None:
    model, _ = made(cls)
    runner = ModelRunner(model, ncp.HeldOutBatch(mx.full((B, T), 3)), target=1)
    # Which rows belong to which step shows only in tokens that differ.
    assert bool(runner.gradients.no_input_gradient) == (cls is PerStep)


# ---- sequences of another length


class AnyLength(Reader):
    """Reads as many tokens as there are, embedded as ``way`` says."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def __call__(self, tokens: mx.array) -> mx.array:
        if self.way == "whole":
            x = self.emb(tokens)
            return self.read([x[:, t] for t in range(tokens.shape[1])])
        if self.way == "per step":
            return self.read([self.emb(tokens[:, t]) for t in range(tokens.shape[1])])
        return self.read(list(self.emb(tokens.T)))

    def from_vectors(self, vectors: mx.array) -> mx.array:
        return self.read([vectors[:, t] for t in range(vectors.shape[1])])


@pytest.mark.parametrize("way", ["whole", "per step", "time first"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_tokens_of_fewer_time_steps_are_run_by_their_vectors(way: str, count: int) -> None:
    mx.random.seed(1)
    model = AnyLength(way)
    tokens = np.random.default_rng(2).integers(0, V, (B, T))
    runner = ModelRunner(model, ncp.HeldOutBatch(tokens), target=1)
    steps = np.stack([np.sort(np.random.default_rng(b).permutation(T)[:count]) for b in range(B)])
    left = np.take_along_axis(tokens, steps, axis=1)
    others = np.random.default_rng(3).normal(size=(B, count, E)).astype("f")

    def by_hand(vectors: mx.array) -> np.ndarray:
        return np.array(model.from_vectors(vectors)[None, :, -1, 1])

    with runner.analysing():
        passes = observe(runner, 0, {ncp.Need.FEWER_STEPS}).extra_passes
        found = passes.with_fewer_steps(steps, np.ones(steps.shape, bool)).values
        replaced = passes.with_fewer_steps(steps, np.ones(steps.shape, bool), others).values
    plain = np.array(model(mx.array(left))[None, :, -1, 1])
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, by_hand(model.emb(mx.array(left))), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(replaced, by_hand(mx.array(others)), rtol=1e-5, atol=1e-6)
