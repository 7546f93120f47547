"""Further passes: other inputs and intervals, fewer sequences, single steps of a cell run again."""

from __future__ import annotations

from typing import Any, ClassVar
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.model import ModelRunner, NotApplicable
from ncp_callbacks.models import LTC, CfC

B, T, F = 7, 5, 3
rng = np.random.default_rng(0)
X = rng.standard_normal((B, T, F)).astype(np.float32)
DT = rng.uniform(0.5, 2.0, (B, T)).astype(np.float32)
MASK = np.arange(T) < np.array([5, 3, 4, 5, 1, 2, 5])[:, None]


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module] = CfC, outputs: int = 3) -> None:
        super().__init__()
        self.rnn, self.head = kind(F, 6), nn.Linear(6, outputs)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class OneSize(Net):
    """Made for one batch size."""

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        if len(x) != B:
            raise ValueError(f"batch of {len(x)}")
        return super().__call__(x, time_delta)


class Layer(nn.Module):
    """An ``mlx.nn`` layer, which runs over the whole sequence."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn, self.head = kind(F, 6), nn.Linear(6, 1)

    def __call__(self, x: mx.array) -> mx.array:
        out = self.rnn(x)
        return self.head(out[0] if isinstance(out, tuple) else out)


def observe(model: nn.Module, held_out: ncp.HeldOutBatch, **how: Any) -> ncp.Observation:
    return passes.observe(ModelRunner(model, held_out, **how), 1, set(ncp.Need))


@pytest.mark.parametrize(
    ("model", "how"),
    [
        (Net(CfC), {}),
        (Net(LTC), {"target": 1}),
        (Net(CfC), {"max_sequences": 2}),
        (OneSize(), {}),
        (Net(CfC), {"target": lambda out, _: out[:, -1].sum(axis=-1) ** 2}),
    ],
    ids=["cfc", "ltc", "chunks", "one size", "callable"],
)
def test_variants_have_the_targets_of_separate_snapshots(
    model: nn.Module, how: dict[str, Any]
) -> None:
    """Against a held-out batch that holds the variant itself."""
    others = X + rng.standard_normal((3, B, T, F)).astype(np.float32)
    elapsed = DT * rng.uniform(0.5, 2.0, (3, B, T)).astype(np.float32)
    rows = np.array([1, 2, 6])
    # The output that is followed must be the same, so it is fixed.
    how = {"target": 0, **how}
    seen = observe(model, ncp.HeldOutBatch(X, DT, mask=MASK), **how)
    found = seen.extra_passes.evaluate(others, elapsed, gradient=True)
    plain = seen.extra_passes.evaluate(others)
    few = seen.extra_passes.evaluate(
        others[:, rows], elapsed[:, rows], sequences=rows, gradient=True
    )
    for k in range(3):
        direct = observe(model, ncp.HeldOutBatch(others[k], elapsed[k], mask=MASK), **how)
        for name, expected in (
            ("values", direct.target_values),
            ("input_gradient", direct.input_gradient),
            ("time_gradient", direct.time_gradient),
        ):
            got = getattr(found, name)
            np.testing.assert_allclose(got[k], expected, rtol=1e-4, atol=1e-6, err_msg=name)
            some = getattr(few, name)
            np.testing.assert_allclose(some[k], expected[rows], rtol=1e-4, atol=1e-6)
        direct = observe(model, ncp.HeldOutBatch(others[k], DT, mask=MASK), **how)
        np.testing.assert_allclose(plain.values[k], direct.target_values, rtol=1e-4, atol=1e-6)
    assert plain.input_gradient is None
    assert found.values.shape == (3, B)
    assert few.input_gradient is not None
    assert few.input_gradient.shape == (3, 3, T, F)


def test_variants_follow_the_output_of_the_batch_itself() -> None:
    model = Net()
    seen = observe(model, ncp.HeldOutBatch(X, DT))
    flipped = seen.extra_passes.evaluate(-3 * X[None]).values[0]
    followed = seen.outputs[:, -1].argmax(axis=-1)
    now = observe(model, ncp.HeldOutBatch(-3 * X, DT)).outputs[:, -1]
    others = np.arange(now.shape[1]) != followed[:, None]
    log_odds = now[~others] - logsumexp(now, axis=1, b=others)
    np.testing.assert_allclose(flipped, log_odds, rtol=1e-4, atol=1e-6)
    assert (now.argmax(axis=-1) != followed).any(), "the test needs a prediction that changes"


class Counting(Net):
    """Note how many sequences each pass has."""

    seen: ClassVar[list[int]] = []

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        self.seen.append(len(x))
        return super().__call__(x, time_delta)


@pytest.mark.parametrize("way", ["alike", "other inputs", "other times", "own times", "gradient"])
def test_sequences_that_are_alike_are_run_once(way: str) -> None:
    """As at a constant baseline; each sequence still has the output that it follows."""
    model, targets = Counting(), np.arange(B) % 3
    seen = observe(model, ncp.HeldOutBatch(X, DT, targets=targets))
    x, delta = np.full((2, B, T, F), 0.5, np.float32), np.full((2, B, T), 1.5, np.float32)
    x[1] = -2.0
    if way == "other inputs":
        x[1, -1, -1, -1] = 0.25
    elif way == "other times":
        delta[0, 3, 1] = 1.0
    times = None if way == "own times" else delta
    Counting.seen.clear()
    found = seen.extra_passes.evaluate(x, times, gradient=way == "gradient", loss=way != "gradient")
    assert sum(Counting.seen) == (2 * 2 if way == "alike" else 2 * B)
    followed = seen.outputs[:, -1].argmax(axis=-1)
    for k in range(2):
        here = DT if times is None else delta[k]
        out = np.array(model(mx.array(x[k]), mx.array(here)))[:, -1].astype(np.float64)
        others = np.arange(3) != followed[:, None]
        odds = out[~others] - logsumexp(out, axis=1, b=others)
        np.testing.assert_allclose(found.values[k], odds, rtol=1e-4, atol=1e-6)
        if way != "gradient":
            assert found.loss is not None
            losses = logsumexp(out, axis=1) - out[np.arange(B), targets]
            np.testing.assert_allclose(found.loss[k], losses, rtol=1e-4, atol=1e-6)


def test_sequences_with_companions_of_their_own_are_not_alike() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def __call__(self, inputs: dict[str, mx.array]) -> mx.array:
            return self.net(inputs["x"]) * inputs["weight"][:, None, None]

    weights = np.linspace(1.0, 2.0, B).astype(np.float32)
    held_out = ncp.HeldOutBatch({"x": X, "weight": weights})
    model = Weighted()
    seen = observe(model, held_out, target=0)
    found = seen.extra_passes.evaluate(np.full((1, B, T, F), 0.5, np.float32)).values[0]
    one = float(model.net(mx.full((1, T, F), 0.5))[0, -1, 0])
    np.testing.assert_allclose(found, one * weights, rtol=1e-4)


def test_variants_that_do_not_fit() -> None:
    model = Net()
    seen = observe(model, ncp.HeldOutBatch(X))
    with pytest.raises(ValueError, match=r"inputs has shape \(7, 5, 3\); pass \(variants"):
        seen.extra_passes.evaluate(X)
    with pytest.raises(ValueError, match="the held-out batch has none; pass it to"):
        seen.extra_passes.evaluate(time_delta=DT[None])


# --- fewer sequences


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 200))
def test_fewer_sequences_are_spread_and_nested(batch: int, few: int, more: int) -> None:
    held_out = ncp.HeldOutBatch(np.zeros((batch, 1, 1), np.float32))
    few, more = sorted((min(few, batch), min(more, batch)))
    first, second = held_out.spread(few), held_out.spread(more)
    assert len(first) == few
    assert len(second) == more
    assert (np.diff(second) > 0).all()
    assert set(first) <= set(second) <= set(range(batch))
    if few >= 2:  # No gap is more than about four times as long as if they were equidistant.
        gaps = np.diff(np.concatenate([[-1], first, [batch]]))
        assert gaps.max() <= 4 * batch / few + 1


def test_a_part_of_an_observation() -> None:
    model, held_out = Net(), ncp.HeldOutBatch(X, DT, targets=np.arange(B) % 3, mask=MASK)
    whole = observe(model, held_out)
    for count, inside in ((3, whole), (3, whole.limited(5)), (6, whole)):
        part = inside.limited(count)
        rows = held_out.spread(count)
        np.testing.assert_array_equal(part.indices, rows)
        assert len(part.held_out) == count
        assert part.mask is not None
        assert part.time_delta is not None
        np.testing.assert_array_equal(part.mask, MASK[rows])
        np.testing.assert_array_equal(part.time_delta, DT[rows])
        for name in ("inputs", "outputs", "target_values", "input_gradient", "time_gradient"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows])
        for mine, theirs in zip(part.states, whole.states, strict=True):
            np.testing.assert_array_equal(mine.values, theirs.values[rows])
            np.testing.assert_array_equal(mine.initial, theirs.initial[rows])  # type: ignore[index]
        for ours, all_of in zip(part.activations, whole.activations, strict=True):
            np.testing.assert_array_equal(ours.values, all_of.values[rows])
        scaled, all_scaled = (
            o.extra_passes.at_time_scales([2.0]).values[2.0] for o in (part, whole)
        )
        np.testing.assert_allclose(scaled, all_scaled[rows], rtol=1e-5, atol=1e-6)
    # Alone or beside others, the same sequences.
    alone = passes.observe(ModelRunner(model, held_out), 1, set(ncp.Need), max_sequences=3)
    np.testing.assert_array_equal(alone.indices, whole.limited(3).indices)
    np.testing.assert_allclose(
        alone.input_gradient, whole.limited(3).input_gradient, rtol=1e-4, atol=1e-7
    )
    assert whole.limited(B) is whole.limited(None) is whole


def test_an_indivisible_batch_is_run_whole() -> None:
    model = OneSize()
    assert len(observe(model, ncp.HeldOutBatch(X, DT)).limited(2).held_out) == B


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "all"])
def test_max_sequences_that_are_none(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"max_sequences=.*pass a whole number of at least 1"):
        ncp.StateTransitions(max_sequences=bad)


# --- steps run again


@pytest.mark.parametrize(
    "model",
    [Net(CfC), Net(LTC), Layer(nn.GRU), Layer(nn.LSTM), Layer(nn.RNN)],
    ids=["cfc", "ltc", "gru", "lstm", "rnn"],
)
def test_jacobians_are_those_of_finite_differences(model: nn.Module) -> None:
    takes_time = isinstance(model, Net)
    seen = observe(model, ncp.HeldOutBatch(X, DT if takes_time else None))
    (cell,) = [s.cell for s in seen.states]
    jacobian = seen.limited(3).extra_passes.state_jacobian(cell)
    part = seen.limited(3)
    stepper = part.extra_passes.cell_stepper(cell)
    states = part.states[0].values
    units = states.shape[-1]
    assert jacobian.shape == (3, T - 1, units, units)
    for t in range(1, T):
        # The states recorded in the pass, and those that steps start from and leave.
        np.testing.assert_allclose(stepper.before(t), states[:, t - 1], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(stepper.after(t), states[:, t], rtol=1e-4, atol=1e-6)
        for j in range(units):
            ends = []
            for sign in (1, -1):
                moved = stepper.before(t).copy()
                moved[:, j] += sign * 1e-2
                ends.append(np.array(stepper.step(t, mx.array(moved))))
            difference = (ends[0] - ends[1]) / 2e-2
            np.testing.assert_allclose(jacobian[:, t - 1, :, j], difference, atol=2e-3)


class Stateful(nn.Module):
    """Its steps depend on something that it is not given."""

    def __init__(self) -> None:
        super().__init__()
        self.ih, self.hh, self.calls = nn.Linear(F, 6), nn.Linear(6, 6), [0]

    def __call__(self, x: mx.array, state: mx.array) -> mx.array:
        self.calls[0] += 1
        return mx.tanh(self.ih(x) + self.hh(state) * self.calls[0])


class NoneFirst(nn.Module):
    """Starts from nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.ih, self.hh = nn.Linear(F, 6), nn.Linear(6, 6)

    def __call__(self, x: mx.array, state: mx.array | None) -> mx.array:
        return mx.tanh(self.ih(x) + (0.0 if state is None else self.hh(state)))


class Loop(nn.Module):
    def __init__(self, cell: nn.Module, start: mx.array | None) -> None:
        super().__init__()
        self.cell, self.head, self._start = cell, nn.Linear(6, 1), start

    def __call__(self, x: mx.array) -> mx.array:
        state = self._start if self._start is None else mx.broadcast_to(self._start, (len(x), 6))
        out = []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            out.append(state)
        return self.head(mx.stack(out, axis=1))


def test_a_step_that_can_not_be_run_separately_is_reported() -> None:
    model = Loop(Stateful(), mx.zeros(6))
    seen = observe(model, ncp.HeldOutBatch(X))
    with pytest.raises(NotApplicable, match="cell, run separately, returns another state"):
        seen.extra_passes.state_jacobian("cell")
    with pytest.raises(KeyError, match=r"no cell .*nothing.*cells are cell"):
        seen.extra_passes.state_jacobian("nothing")


def test_a_cell_that_starts_from_nothing() -> None:
    model = Loop(NoneFirst(), None)
    seen = observe(model, ncp.HeldOutBatch(X))
    jacobian = seen.extra_passes.state_jacobian("cell")
    # tanh' times the recurrent weights.
    slope = 1 - seen.states[0].values[:, 1:] ** 2
    expected = slope[..., None] * np.array(model.cell.hh.weight)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-4, atol=1e-6)


# --- sequences that influence each other


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(F + 6, 6)

    def __call__(self, x: mx.array, state: mx.array) -> mx.array:
        return mx.tanh(self.layer(mx.concatenate([x, state], axis=-1)))


class Continues(nn.Module):
    """Starts from the state of the last call."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()
        self.last = None

    def __call__(self, x: mx.array) -> mx.array:
        fits = self.last is not None and len(self.last) == len(x)
        states = [self.last if fits else mx.zeros((len(x), 6))]
        for step in range(x.shape[1]):
            states.append(self.cell(x[:, step], states[-1]))
        self.last = states[-1]
        return mx.stack(states[1:], axis=1)


class Centred(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = CfC(F, 6)

    def __call__(self, x: mx.array) -> mx.array:
        return self.whole(x - x.mean(axis=0))[0]


class Apart(Centred):
    """Subtracts each sequence's own mean."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.whole(x - x.mean(axis=1, keepdims=True))[0]


class Squeezing(Apart):
    """Can't run one sequence by itself."""

    def __call__(self, x: mx.array) -> mx.array:
        if len(x) == 1:
            raise ValueError("one sequence")
        return super().__call__(x)


# Small models too: the check was once left to models large enough to be divided.
@pytest.mark.parametrize("batch", [2, 3, B])
@pytest.mark.parametrize("kind", [Continues, Centred])
def test_sequences_that_influence_each_other_are_reported(kind: type, batch: int) -> None:
    mx.random.seed(0)
    model, held_out = kind(), ncp.HeldOutBatch(X[:batch])
    runner = ModelRunner(model, held_out, target=0, at=0)
    expected = np.array(model(held_out.inputs))
    with runner.analysing():
        seen = passes.observe(runner, 1, frozenset())
    np.testing.assert_allclose(seen.outputs, expected, rtol=1e-5, atol=1e-6)
    note = "keeps a state between batches" if kind is Continues else "through inputs:"
    assert sum(note in n for n in runner.notes) == 1
    # Extra passes, and passes of fewer sequences, have the numbers of the whole batch.
    with runner.analysing():
        seen = passes.observe(runner, 1, {ncp.Need.VARIANTS})
        again = seen.extra_passes.evaluate(np.repeat(seen.inputs[None], 3, axis=0)).values
        fewer = passes.observe(runner, 1, frozenset(), max_sequences=1)
    np.testing.assert_allclose(again, [seen.target_values] * 3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fewer.outputs, expected[fewer.indices], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 3, B])
@pytest.mark.parametrize("kind", [Apart, Squeezing])
def test_sequences_that_keep_apart_are_not(kind: type, batch: int) -> None:
    if kind is Squeezing and batch == 1:
        batch = 4
    runner = ModelRunner(kind(), ncp.HeldOutBatch(X[:batch]))
    assert not runner.coupling
    assert not any("depend on" in note for note in runner.notes)


# --- one pass over the whole batch


@pytest.mark.parametrize("kind", [CfC, LTC])
def test_a_pass_has_the_bits_of_the_plain_model(kind: type[nn.Module]) -> None:
    """As one call of the model and one gradient give, on one stream."""
    mx.random.seed(1)
    model, held_out = Net(kind), ncp.HeldOutBatch(X, DT, mask=MASK)
    last = mx.array(MASK.sum(axis=1) - 1)

    def target(x: mx.array, dt: mx.array) -> mx.array:
        return model(x, dt)[mx.arange(B), last, 1]

    runner = ModelRunner(model, held_out, target=1)
    x, dt = held_out.inputs, held_out.flat_time_delta
    assert dt is not None
    with mock.patch.object(mx, "new_stream") as streams, runner.analysing():
        seen = passes.observe(runner, 1, frozenset(ncp.Need))
        scaled = seen.extra_passes.at_time_scales([0.5, 3.0]).values
        # Gradients that would be subnormal are 0 there, which these are not.
        plain = mx.grad(lambda *a: target(*a).sum(), argnums=[0, 1])(x, dt)
        values = target(x, dt)
        outputs = model(mx.concatenate([x, x]), mx.concatenate([dt * 0.5, dt * 3.0]))
        both = outputs[mx.arange(2 * B), mx.concatenate([last, last]), 1]
    assert streams.call_count == 0
    np.testing.assert_array_equal(seen.input_gradient, np.array(plain[0]))
    np.testing.assert_array_equal(seen.time_gradient, np.array(plain[1]))
    np.testing.assert_array_equal(seen.target_values, np.array(values))
    np.testing.assert_array_equal(np.concatenate([scaled[0.5], scaled[3.0]]), np.array(both))
