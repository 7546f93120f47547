"""Further passes: other inputs and intervals, fewer sequences, single steps of a cell run again."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ncp_callbacks as ncp
from ncp_callbacks.instrument import Instrument, NothingToObserve
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
    return ncp.Observation(Instrument(model, held_out, **how), 1, set(ncp.Need))


@pytest.mark.parametrize(
    ("model", "how"),
    [
        (Net(CfC), {}),
        (Net(LTC), {"target": 1}),
        (Net(CfC), {"most_rows": 2}),
        (OneSize(), {}),
        (Net(CfC), {"target": lambda out, _: out[:, -1].sum(axis=-1) ** 2}),
    ],
    ids=["cfc", "ltc", "chunks", "one size", "callable"],
)
def test_variants_are_what_a_look_at_them_would_be(model: nn.Module, how: dict[str, Any]) -> None:
    """Against a held-out batch that holds the variant itself."""
    others = X + rng.standard_normal((3, B, T, F)).astype(np.float32)
    elapsed = DT * rng.uniform(0.5, 2.0, (3, B, T)).astype(np.float32)
    rows = np.array([1, 2, 6])
    # The output that is followed must be the same, so it is fixed.
    how = {"target": 0, **how}
    seen = observe(model, ncp.HeldOutBatch(X, DT, mask=MASK), **how)
    found = seen.evaluate(others, elapsed, gradient=True)
    plain = seen.evaluate(others)
    few = seen.evaluate(others[:, rows], elapsed[:, rows], rows=rows, gradient=True)
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
    flipped = seen.evaluate(-3 * X[None]).values[0]
    followed = seen.outputs[:, -1].argmax(axis=-1)
    now = observe(model, ncp.HeldOutBatch(-3 * X, DT)).outputs[:, -1]
    np.testing.assert_allclose(flipped, now[np.arange(B), followed], rtol=1e-4, atol=1e-6)
    assert (now.argmax(axis=-1) != followed).any(), "the test needs a prediction that changes"


def test_variants_that_do_not_fit() -> None:
    model = Net()
    seen = observe(model, ncp.HeldOutBatch(X))
    with pytest.raises(ValueError, match=r"inputs have shape \(7, 5, 3\); expected \(variants"):
        seen.evaluate(X)
    with pytest.raises(ValueError, match="held-out batch has none to vary"):
        seen.evaluate(time_delta=DT[None])


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


def test_a_part_of_what_is_seen() -> None:
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
        scaled, all_scaled = (o.values_at_scales([2.0])[2.0] for o in (part, whole))
        np.testing.assert_allclose(scaled, all_scaled[rows], rtol=1e-5, atol=1e-6)
    # Alone or beside others, the same sequences.
    alone = ncp.Observation(Instrument(model, held_out), 1, set(ncp.Need), max_sequences=3)
    np.testing.assert_array_equal(alone.indices, whole.limited(3).indices)
    np.testing.assert_allclose(
        alone.input_gradient, whole.limited(3).input_gradient, rtol=1e-4, atol=1e-7
    )
    assert whole.limited(B) is whole.limited(None) is whole


def test_what_can_not_be_divided_is_seen_whole() -> None:
    model = OneSize()
    assert len(observe(model, ncp.HeldOutBatch(X, DT)).limited(2).held_out) == B


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "all"])
def test_max_sequences_that_are_none(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"max_sequences=.*give 1 or more"):
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
    jacobian = seen.state_jacobian(cell, sequences=3)
    part = seen.limited(3)
    replay = part.replay(cell)
    states = part.states[0].values
    units = states.shape[-1]
    assert jacobian.shape == (3, T - 1, units, units)
    for t in range(1, T):
        # The states recorded in the pass, and those that steps start from and leave.
        np.testing.assert_allclose(replay.before(t), states[:, t - 1], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(replay.after(t), states[:, t], rtol=1e-4, atol=1e-6)
        for j in range(units):
            ends = []
            for sign in (1, -1):
                moved = replay.before(t).copy()
                moved[:, j] += sign * 1e-2
                ends.append(np.array(replay.step(t, mx.array(moved))))
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


def test_what_can_not_be_run_again_says_why() -> None:
    model = Loop(Stateful(), mx.zeros(6))
    seen = observe(model, ncp.HeldOutBatch(X))
    with pytest.raises(NothingToObserve, match="cell run again by itself gives another state"):
        seen.state_jacobian("cell")
    with pytest.raises(KeyError, match="'nothing'; the model's cells are cell"):
        seen.state_jacobian("nothing")


def test_a_cell_that_starts_from_nothing() -> None:
    model = Loop(NoneFirst(), None)
    seen = observe(model, ncp.HeldOutBatch(X))
    jacobian = seen.state_jacobian("cell", sequences=None)
    # tanh' times the recurrent weights.
    slope = 1 - seen.states[0].values[:, 1:] ** 2
    expected = slope[..., None] * np.array(model.cell.hh.weight)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-4, atol=1e-6)
