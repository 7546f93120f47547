"""Input steps against output steps: a leaky integrator's closed forms, causality, states held."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from promises import pattern, promised
from test_interactions import check_picture
from test_interactions import logged as run
from test_oracles import (
    B,
    BothWays,
    Closed,
    F,
    H,
    SubSteps,
    T,
    TimeDeltaBank,
    at_step,
    close,
    data,
    parameters,
)

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.attribution import AttributionMaps, InputXGradient, IntegratedGradients
from ncp_callbacks.attribution.compute import Attributor
from ncp_callbacks.callbacks.output_time.analysis import (
    OutputTime,
    binned,
    output_steps,
    output_time,
)
from ncp_callbacks.model import ModelRunner, NotApplicable
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.plots import plot_output_time
from ncp_callbacks.target_values import TargetValues

MASK = np.array([[0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1] * 6, [1, 1, 1, 1, 1, 0]], bool)


def observe(model: nn.Module, held_out: ncp.HeldOutBatch, **options: Any) -> ncp.Observation:
    return passes.observe(ModelRunner(model, held_out, **options), 0, set(ncp.Need))


def look(model: nn.Module, held_out: ncp.HeldOutBatch, **more: Any) -> tuple[dict[str, Any], Any]:
    """Records of the last of two looks by tag, and what was said."""
    options = {
        k: more.pop(k) for k in ("max_output_steps", "local", "max_sequences", "name") if k in more
    }
    return run(ncp.OutputTime(**options), model, held_out, **more)


class Net(nn.Module):
    def __init__(self, kind: Any = CfC, features: int = F, outputs: int = 2) -> None:
        super().__init__()
        self.rnn, self.head = kind(features, 7), nn.Linear(7, outputs)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class EveryGRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(F, 5), nn.Linear(5, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x))


# --- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [TimeDeltaBank, SubSteps])
def test_every_output_step_of_leaky_integrators(model: Any) -> None:
    p, (x, dt) = parameters(), data()
    net = model(p)
    seen = observe(net, ncp.HeldOutBatch(x, dt), target=1)
    found = seen.extra_passes.at_steps(range(T))
    known = Closed(p, x, dt)
    close(found.values, known.outputs[..., 1].T)
    for step in range(T):
        close(found.input_gradient[step], known.input_gradient(at_step(step, 1)))
        close(found.time_gradient[step], known.time_gradient(at_step(step, 1)))
        assert not found.input_gradient[step][:, step + 1 :].any()
        assert not found.time_gradient[step][:, step + 1 :].any()


@pytest.mark.parametrize("model", [TimeDeltaBank, SubSteps])
def test_own_steps_of_leaky_integrators(model: Any) -> None:
    p, (x, dt) = parameters(), data()
    net = model(p)
    found, mixed = observe(net, ncp.HeldOutBatch(x, dt), target=1).extra_passes.at_own_steps()
    known = Closed(p, x, dt)
    # dh_t/dx_t = (1 - a_t) W with the state before it held, whatever becomes of it later.
    close(found.input_gradient[0], np.einsum("h,bth,hf->btf", known.v[1], 1 - known.a, known.w))
    first = np.broadcast_to(known.start, known.states[:, :1].shape)
    before = np.concatenate([first, known.states[:, :-1]], axis=1)
    close(found.time_gradient[0], known.a * (known.drive - before) / known.tau @ known.v[1])
    close(found.values[0], known.outputs[..., 1].sum(axis=1))
    assert not mixed


def test_the_matrix_of_leaky_integrators() -> None:
    p, (x, dt) = parameters(), data()
    records, notes = look(TimeDeltaBank(p), ncp.HeldOutBatch(x, dt), target=1)
    assert not notes
    known = Closed(p, x, dt)
    strength = np.stack(
        [np.abs(known.x * known.input_gradient(at_step(t, 1))).sum(2) for t in range(T)], axis=2
    )
    expected = strength.mean(axis=0)
    close(records["output_time_output1/matrix"].data.influence, expected)
    values = {tag.split("/")[1]: r.value for tag, r in records.items() if isinstance(r, ncp.Scalar)}
    assert values["strength"] == pytest.approx(expected.sum() / T, rel=1e-5)
    assert values["future_share"] == values["future_share_time_delta"] == 0.0
    assert values["own_share"] == pytest.approx(np.trace(expected) / expected.sum(), rel=1e-5)
    lag = np.arange(T)[None] - np.arange(T)[:, None]
    assert values["mean_lag"] == pytest.approx((expected * lag).sum() / expected.sum(), rel=1e-5)
    clock = known.dt.cumsum(axis=1)
    ago = clock[:, None] - clock[:, :, None]
    assert values["mean_lag_time"] == pytest.approx(
        (strength * np.maximum(ago, 0)).sum() / strength.sum(), rel=1e-5
    )
    close(
        records["_ncp/output_time_output1_lag"].values,
        [np.arange(T), (expected * lag).sum(axis=0) / expected.sum(axis=0)],
    )


def test_the_memory_of_one_leaky_integrator_is_its_exponential() -> None:
    p = parameters(outputs=1, start=False)
    p.w[:], p.v[:], p.tau[:] = 0.0, 0.0, 2.0
    p.w[0, 0], p.v[0, 0] = 1.0, 1.0
    x, dt = np.ones((B, T, F), np.float32), np.full((B, T), 1.5, np.float32)
    records, _ = look(TimeDeltaBank(p), ncp.HeldOutBatch(x, dt))
    kept = np.exp(-1.5 / 2.0) ** np.arange(T)
    close(records["_ncp/output_time_profile"].values, kept / kept.sum())
    edges, shares = records["_ncp/output_time_time_profile"].values
    # Every lag in steps is one in time, in the bin that it falls into.
    width = edges[1] - edges[0]
    where = (1.5 * np.arange(T) / width + 1e-6).astype(int)
    known = where < len(edges)
    # So far that 1 % is beyond at most, and not much farther.
    reach = edges[-1] + width
    every = np.arange(T)[:, None] - np.arange(T)
    weights = np.where(every >= 0, np.exp(-1.5 / 2.0 * every), 0.0)
    assert weights[1.5 * every <= reach].sum() >= 0.99 * weights.sum()
    assert weights[1.5 * every <= reach / 2.5].sum() < 0.99 * weights.sum()
    close(shares[where[known]], kept[known] / kept[known].sum())
    assert np.isnan(np.delete(shares, where[known])).all()
    lags = records["_ncp/output_time_lag"].values[1]
    for t in range(T):
        weights = kept[: t + 1]
        assert lags[t] == pytest.approx((weights * np.arange(t + 1)).sum() / weights.sum(), 1e-5)


class BothWaysEveryStep(BothWays):
    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        steps, h, g = x.shape[1], mx.zeros((len(x), H)), mx.zeros((len(x), H))
        there, back = [], []
        for t in range(steps):
            h, _ = self.there(x[:, t], h, time_delta[:, t, None])
            there.append(h @ self.v[0])
        for t in reversed(range(steps)):
            g, _ = self.back(x[:, t], g, time_delta[:, t, None])
            back.append(g @ self.v[1])
        return (mx.stack(there, axis=1) + mx.stack(back[::-1], axis=1))[..., None]


def test_a_model_that_reads_in_both_directions_sees_the_future() -> None:
    there, back = (parameters(1, start=False, seed=s) for s in (3, 4))
    x, dt = data()
    model = BothWaysEveryStep(there, back)
    records, notes = look(model, ncp.HeldOutBatch(x, dt))
    first, second = Closed(there, x, dt), Closed(back, x[:, ::-1], dt[:, ::-1])

    def weight(step: int) -> np.ndarray:
        chosen = np.zeros((B, T, 1))
        chosen[:, step] = 1.0
        return chosen

    strength = np.zeros((T, T))
    times = np.zeros((T, T))
    for t in range(T):
        last = T - 1 - t
        by_input = first.input_gradient(weight(t)) + second.input_gradient(weight(last))[:, ::-1]
        by_time = first.time_gradient(weight(t)) + second.time_gradient(weight(last))[:, ::-1]
        strength[:, t] = np.abs(first.x * by_input).sum(axis=2).mean(axis=0)
        times[:, t] = np.abs(first.dt * by_time).mean(axis=0)
    close(records["output_time/matrix"].data.influence, strength)
    future = np.tril(np.ones((T, T), bool), -1)
    for name, of in (("future_share", strength), ("future_share_time_delta", times)):
        expected = of[future].sum() / of.sum()
        assert records[f"output_time/{name}"].value == pytest.approx(expected, rel=1e-4)
    assert sum("of later steps" in note for note in notes) == 2
    # With both states held, each output depends on its own input only.
    own = sum(np.einsum("h,bth,hf->btf", k.v[0], 1 - k.a, k.w)[:, :: 1 if k is first else -1]
              for k in (first, second))  # fmt: skip
    from_mean = first.x - first.x.mean(axis=(0, 1))
    close(records["_ncp/output_time_local"].values, np.abs(from_mean * own).mean(axis=0))


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["prediction", 0, "loss"])
@pytest.mark.parametrize("kind", [CfC, LTC])
def test_agrees_with_attribution_at_a_step(kind: Any, target: Any) -> None:
    mx.random.seed(0)
    model, (x, dt) = Net(kind), data()
    held_out = ncp.HeldOutBatch(x, dt, targets=np.arange(B * T).reshape(B, T) % 2)
    found = observe(model, held_out, target=target).extra_passes.at_steps([1, T - 1])
    for k, step in enumerate((1, T - 1)):
        single = observe(model, held_out, target=target, at=step)
        close(found.values[k], single.target_values)
        close(found.input_gradient[k], single.input_gradient)
        attributor = Attributor(InputXGradient(), baseline="zeros", time_baseline="zeros")
        close(
            np.abs(x * found.input_gradient[k]).mean(axis=0),
            attributor.importance(single).importance,
        )


@pytest.mark.parametrize(
    "targets",
    [np.arange(B) % 2, np.arange(B * T).reshape(B, T) % 2, np.ones((B, 2)), np.ones((B, T, 2))],
    ids=lambda t: str(t.shape),
)
def test_losses_of_every_step(targets: np.ndarray) -> None:
    mx.random.seed(0)
    model, (x, dt) = Net(), data()
    held_out = ncp.HeldOutBatch(x, dt, targets=targets)
    found = observe(model, held_out, target="loss").extra_passes.at_steps(range(T)).values
    for step in range(T):
        single = observe(model, held_out, target="loss", at=step)
        close(found[step], single.target_values)


class Wired(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from ncps.wirings import AutoNCP

        self.rnn = CfC(F, AutoNCP(9, 2))

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.rnn(x, time_delta)[0]


@pytest.mark.parametrize("make", [Net, lambda: Net(LTC), Wired], ids=["CfC", "LTC", "wired"])
def test_own_steps_are_gradients_with_the_state_given(make: Any) -> None:
    mx.random.seed(0)
    model, (x, dt) = make(), data()
    held_out = ncp.HeldOutBatch(x, dt)
    seen = observe(model, held_out, target=1)
    found, mixed = seen.extra_passes.at_own_steps()
    cell = model.rnn.cell
    state = mx.zeros((B, model.rnn.units))
    for t in range(T):

        def output(x_t: mx.array, dt_t: mx.array, state: mx.array = state) -> mx.array:
            out = cell(x_t, state, dt_t)[0]
            return (model.head(out) if isinstance(model, Net) else out)[:, 1].sum()

        given = mx.array(x[:, t]), mx.array(dt[:, t, None])
        by_input, by_time = mx.grad(output, argnums=[0, 1])(*given)
        close(found.input_gradient[0][:, t], np.array(by_input))
        close(found.time_gradient[0][:, t], np.array(by_time)[:, 0])
        state = cell(given[0], state, given[1])[1]
    assert not mixed


def test_layers_that_run_by_themselves_can_not_be_held() -> None:
    mx.random.seed(0)
    records, notes = look(EveryGRU(), ncp.HeldOutBatch(data()[0]))
    assert len(notes) == 1
    assert "rnn runs over the whole sequence in one call" in notes[0]
    assert records["output_time/future_share"].value == 0.0
    assert not any("local" in tag or "time_time_profile" in tag for tag in records)
    assert "output_time/mean_lag_time" not in records


class Shortcut(Net):
    """The input of the step before comes along outside the cell."""

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        before = mx.concatenate([mx.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
        return super().__call__(x, time_delta) + before[..., :2]


class Relative(Net):
    """Knows how long the whole sequence takes."""

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return super().__call__(x, time_delta / time_delta.sum(axis=1, keepdims=True))


def test_what_goes_past_the_cells_is_noticed() -> None:
    mx.random.seed(0)
    held_out = ncp.HeldOutBatch(*data())
    records, notes = look(Shortcut(), held_out)
    assert len(notes) == 1
    assert "even with the states of the recurrent cells held fixed" in notes[0]
    assert records["output_time/future_share"].value == 0.0
    assert "output_time/local" not in records


def test_elapsed_times_that_tell_of_the_future_are_a_leak() -> None:
    mx.random.seed(0)
    records, notes = look(Relative(), ncp.HeldOutBatch(*data()))
    assert records["output_time/future_share"].value == 0.0
    assert records["output_time/future_share_time_delta"].value > 0.01
    assert any("elapsed times of later steps" in note for note in notes)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.net = nn.Embedding(7, 4), Net(features=4)

    def __call__(self, tokens: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.net(self.embedding(tokens), time_delta)


class OneBatch(Net):
    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        if len(x) != B:
            raise ValueError("another batch size")
        return super().__call__(x, time_delta)


def test_tokens() -> None:
    mx.random.seed(0)
    model = Tokens()
    held_out = ncp.HeldOutBatch(np.random.default_rng(0).integers(0, 7, (B, T)), data()[1])
    records, notes = look(model, held_out)
    assert not notes
    seen = observe(model, held_out, at=2)
    expected = np.abs((seen.inputs * seen.input_gradient).sum(axis=2)).mean(axis=0)
    close(records["output_time/matrix"].data.influence[:, 2], expected)
    assert records["_ncp/output_time_local"].values.shape == (T, 1)


def test_a_model_of_one_batch_size_is_like_any_other() -> None:
    held_out, found = ncp.HeldOutBatch(*data()), []
    for kind in (OneBatch, Net):
        mx.random.seed(0)
        found.append(look(kind(), held_out, max_sequences=2 if kind is OneBatch else None)[0])
    for tag, record in found[1].items():
        if isinstance(record, ncp.Array):
            np.testing.assert_allclose(found[0][tag].values, record.values, rtol=1e-4, atol=1e-6)


def test_half_precision() -> None:
    mx.random.seed(0)
    model = Net()
    model.set_dtype(mx.bfloat16)
    x, dt = data()
    records, _ = look(model, ncp.HeldOutBatch(mx.array(x).astype(mx.bfloat16), dt))
    assert records["output_time/nonfinite"].value == 0
    assert np.isfinite(records["output_time/matrix"].data.influence).all()


def test_what_has_no_outputs_over_time_is_skipped() -> None:
    p, held_out = parameters(), ncp.HeldOutBatch(*data())
    records, notes = look(TimeDeltaBank(p, per_step=False), held_out)
    assert not records
    assert any("one output per sequence" in note for note in notes)
    records, notes = look(TimeDeltaBank(p), held_out, target=lambda o, _: o.sum(axis=(1, 2)))
    assert not records
    assert any("function of all outputs" in note for note in notes)
    model = TimeDeltaBank(p, per_step=False)
    seen = observe(model, held_out)
    assert seen.every_step is None
    with pytest.raises(RuntimeError, match="no target at every step"):
        seen.extra_passes.at_steps([0])


# --- padding --------------------------------------------------------------------------------------


def test_padding_has_no_part() -> None:
    mx.random.seed(0)
    (x, dt), model = data(), Net()
    found = []
    for filling in (0.0, 9.0):
        # Padding comes after, so that the states of real steps are the same.
        mask = MASK | (np.arange(T) == 0)
        given = np.where(mask[..., None], x, np.float32(filling))
        found.append(look(model, ncp.HeldOutBatch(given, dt, mask=mask))[0])
    for tag, record in found[0].items():
        if isinstance(record, ncp.Array):
            np.testing.assert_allclose(record.values, found[1][tag].values, atol=1e-6, err_msg=tag)
    real = mask[:, :, None] & mask[:, None]
    close(
        np.isnan(found[0]["_ncp/output_time_influence"].values),
        ~real.any(axis=0),
    )


def test_a_mean_is_over_sequences_that_have_both_steps() -> None:
    rng = np.random.default_rng(0)
    attributed = rng.normal(size=(T, B, T, F))
    delta = rng.uniform(0.5, 2.0, (B, T))
    result = output_time(attributed, np.arange(T), mask=MASK, time_delta=delta)
    strength = np.abs(attributed).sum(axis=3)
    clock = np.where(MASK, delta, 0.0).cumsum(axis=1)
    pairs: list[tuple[float, int, float]] = []
    for i in range(T):
        for o in range(T):
            both = MASK[:, i] & MASK[:, o]
            expected = strength[o, both, i].mean() if both.any() else np.nan
            np.testing.assert_allclose(result.influence[i, o], expected, rtol=1e-6)
            if i <= o:
                pairs += [
                    (strength[o, b, i], o - i, clock[b, o] - clock[b, i])
                    for b in np.flatnonzero(both)
                ]
    weight, lag, ago = (np.array(column) for column in zip(*pairs, strict=True))
    assert result.lag == pytest.approx((weight * lag).sum() / weight.sum())
    assert result.lag_time == pytest.approx((weight * ago).sum() / weight.sum())
    means = np.array([weight[lag == n].mean() for n in range(T)])
    np.testing.assert_allclose(result.profile, means / means.sum(), rtol=1e-6)
    within = np.array([weight[lag <= n].sum() for n in range(T)]) / weight.sum()
    assert result.reach == np.flatnonzero(within >= 0.99)[0]
    assert weight[ago <= result.reach_time + 1e-9].sum() >= 0.99 * weight.sum()
    assert weight[ago < result.reach_time - 1e-9].sum() < 0.99 * weight.sum()
    edges = result.time_edges
    assert edges[-1] == pytest.approx(result.reach_time)
    inside = ago <= edges[-1] + 1e-9
    place = np.minimum(np.digitize(ago[inside], edges) - 1, len(edges) - 2)
    sums, counts = (np.bincount(place, w, len(edges) - 1) for w in (weight[inside], None))
    with np.errstate(invalid="ignore"):
        means = sums / counts
    np.testing.assert_allclose(result.time_profile, means / np.nansum(means), rtol=1e-5)
    # In the future there is the rest of it.
    at = np.arange(T)
    later = strength * (MASK.T[:, :, None] & MASK[None]) * (at[None, None] > at[:, None, None])
    both = strength * (MASK.T[:, :, None] & MASK[None])
    assert result.future_share == pytest.approx(later.sum() / both.sum())


def test_the_order_of_sequences_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    attributed, delta = rng.normal(size=(T, B, T, F)), rng.uniform(0.5, 2.0, (B, T))
    rows = rng.permutation(B)
    one = output_time(attributed, np.arange(T), mask=MASK, time_delta=delta)
    two = output_time(attributed[:, rows], np.arange(T), mask=MASK[rows], time_delta=delta[rows])
    for name in ("influence", "profile", "time_profile", "lag_by_step", "lag", "lag_time"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-6, err_msg=name)


def test_a_sequence_that_is_not_finite_is_skipped_unless_it_is_padding() -> None:
    attributed = np.ones((T, B, T, F))
    attributed[2, 1, 5] = np.nan  # padding
    assert output_time(attributed, np.arange(T), mask=MASK).non_finite == 0
    attributed[2, 2, 5] = np.inf
    result = output_time(attributed, np.arange(T), mask=MASK)
    assert (result.sequences, result.non_finite) == (B - 1, 1)
    assert np.isin(result.influence[np.isfinite(result.influence)], [F]).all()


def test_nothing_that_acts_has_no_shares() -> None:
    result = output_time(np.zeros((T, B, T, F)), np.arange(T))
    assert np.isnan([result.future_share, result.own_share, result.lag]).all()
    assert not result.profile.any()


def test_long_sequences_are_summed_in_groups() -> None:
    influence = np.arange(7.0)[:, None] * [1.0, 10.0]
    influence[0, 0] = influence[6] = np.nan
    sums, size = binned(influence, 3)
    assert size == 3
    np.testing.assert_array_equal(sums, [[3.0, 30.0], [12.0, 120.0], [np.nan, np.nan]])
    same, size = binned(influence, 7)
    assert size == 1
    np.testing.assert_array_equal(same, influence)


def test_output_steps_are_spread_over_the_real_ones() -> None:
    mask = np.zeros((2, 100), bool)
    mask[0, 10:60], mask[1, 20:90] = True, True
    steps = output_steps(mask, 8)
    assert (steps[0], steps[-1], len(steps)) == (10, 89, 8)
    assert np.diff(steps).min() >= 10
    assert np.diff(steps).max() <= 12
    np.testing.assert_array_equal(output_steps(mask[:, 10:14], 8), np.arange(4))
    assert output_steps(mask, 2).tolist() == [10, 89]


# --- what is logged -------------------------------------------------------------------------------


def test_the_docstring_lists_every_tag_and_no_other() -> None:
    mx.random.seed(0)
    records, _ = look(Net(), ncp.HeldOutBatch(*data()))
    kinds = {ncp.Scalar: "scalar", ncp.Figure: "image", ncp.Array: "array"}
    promises = promised(ncp.OutputTime)
    more, _ = look(Net(), ncp.HeldOutBatch(*data()), local="integrated_gradients")
    assert set(more) - set(records) == {"output_time/local_error"}
    records = {tag: r for tag, r in more.items() if "findings" not in tag and tag != "_ncp/run"}
    assert {t: kinds[type(r)] for t, r in records.items()} == promises
    assert not [t for t in promises if not pattern(t).match(t)]


def test_few_output_steps_and_sequences() -> None:
    mx.random.seed(0)
    records, _ = look(
        Net(), ncp.HeldOutBatch(*data()), max_output_steps=3, max_sequences=2, local=False
    )
    assert records["_ncp/output_time_influence"].values.shape == (T, 3)
    assert records["output_time/sequences"].value == 2
    assert "output_time/local" not in records


def test_axes_stay_when_a_run_is_taken_up_again() -> None:
    mx.random.seed(0)
    model, (x, dt) = Net(), data()
    first = ncp.OutputTime()
    before, _ = run(first, model, ncp.HeldOutBatch(x, dt))
    second = ncp.OutputTime()
    second.load_state_dict(first.state_dict())
    model.head.weight = model.head.weight / 50
    # Other intervals, as of another monitor, fall into the same bins.
    after, _ = run(second, model, ncp.HeldOutBatch(x, dt / 2))
    for name in ("limit", "share", "lag"):
        values = [r["output_time/matrix"].options[name] for r in (before, after)]
        assert 0 < values[0] <= values[1]
    assert (
        before["output_time/matrix"].options["limit"]
        == after["output_time/matrix"].options["limit"]
    )
    edges = [r["_ncp/output_time_time_profile"].values[0] for r in (before, after)]
    np.testing.assert_array_equal(edges[0], edges[1])


@pytest.mark.parametrize("steps", [1, 2.5, True])
def test_steps_that_can_not_be_meant(steps: Any) -> None:
    with pytest.raises(ValueError, match="max_output_steps="):
        ncp.OutputTime(max_output_steps=steps)


def test_states_that_are_not_given_can_not_be_held() -> None:
    class Hidden(nn.Module):
        """Keeps its state to itself."""

        def __init__(self) -> None:
            super().__init__()
            self.w, self.h = nn.Linear(F, 3), mx.zeros((1, 3))

        def __call__(self, x: mx.array) -> mx.array:
            self.h = 0.5 * self.h + mx.tanh(self.w(x))
            return self.h

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = Hidden()

        def __call__(self, x: mx.array) -> mx.array:
            self.cell.h = mx.zeros((len(x), 3))
            return mx.stack([self.cell(x[:, t]) for t in range(x.shape[1])], axis=1)

    mx.random.seed(0)
    model, held_out = Loop(), ncp.HeldOutBatch(data()[0])
    with pytest.raises(NotApplicable, match="keeps its state itself"):
        observe(model, held_out, cells="cell").extra_passes.at_own_steps()
    # With no cell known, what goes from step to step is noticed.
    assert observe(model, held_out).extra_passes.at_own_steps()[1]


# --- pictures -------------------------------------------------------------------------------------


def example(steps: int = 32, outputs: int = 32, times: bool = True, future: bool = False) -> Any:
    rng = np.random.default_rng(steps)
    which = output_steps(np.ones((1, steps), bool), outputs)
    lag = which[:, None, None] - np.arange(steps)
    decay = np.where((lag >= 0) | future, np.exp(-np.abs(lag) / 3), 0.0)
    attributed = (decay * rng.exponential(size=(len(which), 5, steps)))[..., None]
    delta = rng.uniform(0.5, 2.0, (5, steps)) if times else None
    mask = np.arange(steps) < steps - np.arange(5)[:, None]
    return output_time(attributed, which, time_delta=delta, mask=mask)


PICTURES: list[tuple[OutputTime, dict[str, Any]]] = [
    (example(), {}),
    (example(1500, 32), {"limit": 3.0}),
    (example(7, 3, times=False), {"share": 1.0}),
    (example(future=True), {}),
    (output_time(np.zeros((4, 3, 4, 2)), np.arange(4)), {}),
]


@pytest.mark.parametrize("number", range(len(PICTURES)))
def test_pictures_fit_and_are_the_same_when_drawn_again(number: int) -> None:
    check_picture(plot_output_time, *PICTURES[number])


def test_a_picture_shows_the_matrix_with_the_past_below_the_diagonal() -> None:
    result = example(12, 5)
    figure = plot_output_time(result, limit=2.0, share=0.5)
    left, by_step, by_time, _ = figure.axes
    shown = left.images[0].get_array()[::-1]
    assert left.get_ylim() == (-0.5, 11.5)
    # Columns between output steps are those of the nearest.
    np.testing.assert_allclose(shown[:, result.steps], result.influence)
    assert shown[3, 11] > 0 == shown[11, 3]
    (line,) = left.lines
    np.testing.assert_allclose(line.get_ydata(), result.steps - result.lag_by_step)
    for axes, profile in ((by_step, result.profile), (by_time, result.time_profile)):
        (patch,) = axes.patches
        np.testing.assert_allclose(patch.get_data().values, np.nan_to_num(profile))
        assert axes.get_ylim() == (0.0, 0.5)


@pytest.mark.parametrize("make", [Net, lambda: Net(LTC), Wired], ids=["CfC", "LTC", "wired"])
def test_own_steps_are_the_last_steps_of_every_prefix(make: Any) -> None:
    """Of integrated gradients of each prefix by itself, the model run for each point and step."""
    mx.random.seed(3)
    model, (x, dt) = make(), data()
    x0 = x.mean(axis=(0, 1)) + 0 * x
    dt0 = dt.mean() + 0 * dt
    n_steps = 5
    at, weights = np.polynomial.legendre.leggauss(n_steps)
    predicted = np.array(model(mx.array(x), mx.array(dt))).argmax(axis=-1)
    expected = np.zeros(x.shape)
    for t in range(T):
        follow = mx.array(predicted[:, t])[:, None] == mx.arange(2)

        def target(x: mx.array, dt: mx.array, follow: mx.array = follow) -> mx.array:
            # The log-odds of one of two classes are the difference of their logits.
            logits = model(x, dt)[:, -1, :2]
            return mx.where(follow, logits, -logits).sum()

        for u, w in zip((at + 1) / 2, weights / 2, strict=True):
            given = (x0 + u * (x - x0), dt0 + u * (dt - dt0))
            gradient = mx.grad(target)(*(mx.array(a[:, : t + 1].astype(np.float32)) for a in given))
            expected[:, t] += w * np.array(gradient)[:, t] * (x - x0)[:, t]
    local = IntegratedGradients(n_steps)
    records, notes = look(model, ncp.HeldOutBatch(x, dt), local=local)
    assert not [note for note in notes if "local" in note]
    close(records["_ncp/output_time_local"].values, np.abs(expected).mean(axis=0))
    strength = np.abs(expected).sum(axis=2).mean()
    assert records["output_time/local_strength"].value == pytest.approx(strength, rel=1e-3)


@pytest.mark.parametrize(("n_steps", "exact"), [(1, 2), (4, 2), (5, 4), (8, 4), (9, 6)])
def test_how_far_every_other_step_is_from_all(n_steps: int, exact: int) -> None:
    """Of targets ``sum w x^p``, for which all are exact, and fewer up to ``p = exact``."""
    rng = np.random.default_rng(n_steps)
    w, x = rng.normal(size=(2, B, T, F))
    dt = rng.uniform(0.5, 2.0, (B, T))
    mask = np.ones((B, T), bool)
    mask[1, 2:] = False
    x0, dt0 = np.zeros_like(x), np.zeros_like(dt)

    def found(power: int) -> tuple[AttributionMaps, np.ndarray]:
        def evaluate(
            inputs: Any = None, time_delta: Any = None, *, rows: Any = None, gradient: bool = False
        ) -> TargetValues:
            assert gradient
            slope = power * inputs.astype(np.float64) ** (power - 1)
            return TargetValues(
                np.zeros(inputs.shape[:2]), w * slope, 3 * time_delta.astype(np.float64) ** 2
            )

        return IntegratedGradients(n_steps).attribute_with_error(
            evaluate, x, dt, baseline=x0, time_baseline=dt0, mask=mask
        )

    for power in (exact, exact + 1):
        attribution, fewer = found(power)
        if n_steps > 1:
            close(attribution.inputs, w * x**power)
            close(attribution.time_delta, dt**3)
            assert (fewer.max() < 1e-5) == (power == exact)
        else:
            assert np.isnan(fewer).all()
    if n_steps > 1:
        # A sequence that is not finite spoils no other.
        x[2, 0, 0] = np.nan
        _, without = found(exact + 1)
        assert np.isnan(without).tolist() == [False, False, True, *[False] * (B - 3)]
        x[2, 0, 0] = 0.5
    if n_steps == 4:
        attribution, fewer = found(exact + 1)
        known = np.where(mask[..., None], w * x ** (exact + 1), 0.0)
        # By hand: places 0 and 2 of four, as Lagrange's polynomials have it.
        a, b = (np.polynomial.legendre.leggauss(4)[0][[0, 2]] + 1) / 2
        weights = np.array([0.5 - b, a - 0.5]) / (a - b)
        other = (weights * 3 * np.array([a, b]) ** 2).sum() * known
        off = np.sqrt(((other - known) ** 2).sum(axis=(1, 2)))
        close(fewer, off / np.sqrt((known**2).sum(axis=(1, 2)).mean()))


def test_the_error_of_own_steps_is_above_what_it_really_is() -> None:
    mx.random.seed(3)
    model, held_out = Net(), ncp.HeldOutBatch(*data())
    maps, errors = {}, {}
    for n in (4, 8, 64):
        records, _ = look(model, held_out, local=IntegratedGradients(n))
        maps[n] = records["_ncp/output_time_local"].values
        errors[n] = records["output_time/local_error"].value
    assert errors[64] < errors[8] < errors[4]
    for n in (4, 8):
        off = np.linalg.norm(maps[n] - maps[64]) / np.linalg.norm(maps[64])
        assert off < errors[n] + 1e-6


@pytest.mark.parametrize(("options", "what"), [
    ({"local": "occlusion"}, "local='occlusion': pass 'input_x_gradient'"),
    ({"local": "integrated"}, "did you mean 'integrated_gradients'"),
])  # fmt: skip
def test_how_own_time_steps_are_analysed(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        ncp.OutputTime(**options)
