"""Segment-wise integrated gradients against a direct computation, closed forms and invariances."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ncp_callbacks as ncp
from ncp_callbacks.attribution import SegmentIntegratedGradients, method_from
from ncp_callbacks.target_values import TargetValues

pytestmark = pytest.mark.filterwarnings("error")

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
METHOD = SegmentIntegratedGradients(n_samples=9, n_segments=2, min_length=2, max_length=4, seed=3)


def white_box(value: Callable, slopes: Callable, x, dt=None):
    """Return ``evaluate`` of a function of inputs and elapsed times, with its gradients."""

    def evaluate(inputs=None, time_delta=None, *, sequences=None, gradient=False):
        inputs = np.float64(x[None] if inputs is None else inputs)
        times = dt
        if dt is not None:
            times = np.broadcast_to(dt if time_delta is None else time_delta, inputs.shape[:-1])
            times = np.float64(times)
        by_input, by_time = slopes(inputs, times) if gradient else (None, None)
        return TargetValues(value(inputs, times), by_input, by_time)

    return evaluate


def additive(x, dt):
    """A sum of functions of one input each, and their slopes: no input changes another's part."""
    return white_box(
        lambda x, dt: (np.sin(x) + 0.1 * x**3).sum((-1, -2)) + np.exp(-dt).sum(-1),
        lambda x, dt: (np.cos(x) + 0.3 * x**2, -np.exp(-dt)),
        x,
        dt,
    )


def batch(rng, size=3, steps=6, features=2):
    x, x0 = rng.normal(size=(2, size, steps, features))
    dt, dt0 = rng.uniform(0.2, 2.0, size=(2, size, steps))
    return x, x0, dt, dt0


# --- segments


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 5), st.integers(0, 99))
def test_what_is_kept_is_a_few_runs_of_the_lengths_that_were_set(segments, shortest, more, seed):
    method = SegmentIntegratedGradients(
        n_samples=7, n_segments=segments, min_length=shortest, max_length=shortest + more, seed=seed
    )
    kept = method.kept(4, 12, 3)
    assert kept.shape == (7, 4, 12, 3)
    # The last sample moves what had never moved, which may cut a segment.
    for sample in kept[:-1].transpose(0, 1, 3, 2).reshape(-1, 3, 12):
        edges = np.diff(sample.astype(int), axis=1, prepend=0, append=0)
        starts = [np.flatnonzero(e == 1) for e in edges]
        ends = [np.flatnonzero(e == -1) for e in edges]
        lengths = np.concatenate([e - s for s, e in zip(starts, ends, strict=True)])
        # Segments that overlap or touch join.
        assert 1 <= len(lengths) <= segments
        assert lengths.min() >= shortest
        assert lengths.sum() <= segments * (shortest + more)


def test_segments_of_one_length_start_everywhere_equally_often():
    method = SegmentIntegratedGradients(n_samples=4000, n_segments=1, min_length=3, max_length=3)
    kept = method.kept(1, 5, 2)[:, 0]
    # 3 starts in 2 features; the middle step lies in all three.
    assert kept.mean(axis=0) == pytest.approx(
        np.array([1, 2, 3, 2, 1])[:, None] / 6 * np.ones(2), abs=0.03
    )


def test_sequences_and_samples_have_segments_of_their_own():
    kept = SegmentIntegratedGradients(n_segments=1).kept(6, 20, 3)
    assert len(np.unique(kept.reshape(50 * 6, -1), axis=0)) > 200


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_every_input_moves_at_least_once(samples):
    method = SegmentIntegratedGradients(n_samples=samples, n_segments=30, min_length=9)
    assert not method.kept(5, 4, 2).all(axis=0).any()


# --- maps


def test_maps_are_those_of_a_loop_over_samples_in_mlx():
    """Compute a GRU's attribution again: one path point at a time, by ``mx.grad``."""
    mx.random.seed(0)
    gru, head = nn.GRU(2, 5), nn.Linear(5, 1)

    def target(x):
        return head(gru(x)[:, -1])[:, 0].sum()

    def evaluate(inputs=None, time_delta=None, *, sequences=None, gradient=False):
        many = x[None] if inputs is None else inputs
        values = np.stack([np.array(head(gru(mx.array(each))[:, -1])[:, 0]) for each in many])
        slopes = np.stack([np.array(mx.grad(target)(mx.array(each))) for each in many])
        return TargetValues(values, slopes if gradient else None)

    rng = np.random.default_rng(0)
    x, x0 = rng.normal(size=(2, 4, 8, 2)).astype(np.float32)
    found = METHOD.run(evaluate, x, baseline=x0).inputs

    kept = METHOD.kept(4, 8, 2)
    total, moved = np.zeros(x.shape), np.zeros(x.shape)
    for k in range(9):
        alpha = (2 * k + 1) / 18
        point = np.where(kept[k], x, x0 + alpha * (x - x0)).astype(np.float32)
        slope = np.array(mx.grad(target)(mx.array(point)))
        for b, t, f in np.ndindex(x.shape):
            if not kept[k, b, t, f]:
                total[b, t, f] += slope[b, t, f]
                moved[b, t, f] += 1
    np.testing.assert_allclose(found, (x - x0) * total / moved, rtol=1e-4, atol=1e-6)


@given(seeds)
def test_each_input_of_an_additive_target_has_its_own_change(rng):
    x, x0, dt, dt0 = batch(rng)
    method = SegmentIntegratedGradients(n_samples=400, n_segments=2, max_length=3)
    found = method.run(additive(x, dt), x, dt, baseline=x0, time_baseline=dt0)
    # A midpoint rule over the samples in which the input moved, which are spread at random.
    np.testing.assert_allclose(
        found.inputs, np.sin(x) + 0.1 * x**3 - np.sin(x0) - 0.1 * x0**3, atol=0.25
    )
    np.testing.assert_allclose(found.time_delta, np.exp(-dt) - np.exp(-dt0), atol=0.1)


@given(seeds)
def test_a_linear_target_is_exact_with_one_sample(rng):
    x, x0, dt, dt0 = batch(rng)
    w, v = rng.normal(size=(6, 2)), rng.normal(size=6)
    evaluate = white_box(
        lambda x, dt: (w * x).sum((-1, -2)) + (v * dt).sum(-1),
        lambda x, dt: (np.broadcast_to(w, x.shape), np.broadcast_to(v, dt.shape)),
        x,
        dt,
    )
    for samples in (1, 3):
        found = SegmentIntegratedGradients(n_samples=samples).run(
            evaluate, x, dt, baseline=x0, time_baseline=dt0
        )
        np.testing.assert_allclose(found.inputs, w * (x - x0), atol=1e-5)
        np.testing.assert_allclose(found.time_delta, v * (dt - dt0), atol=1e-5)


def test_a_product_by_hand():
    """``x0 x1`` at (2, 3) from 0: with the other input kept, each has the whole product.

    Where one of two inputs is kept, the slope of the other is the kept one's value, at every point.
    """
    x = np.array([[[2.0, 3.0]]])
    evaluate = white_box(
        lambda x, dt: x[..., 0, 0] * x[..., 0, 1],
        lambda x, dt: (x[..., ::-1].copy(), None),
        x,
    )
    # One segment of length 1 keeps exactly one of the two inputs, but for the last sample's rule.
    method = SegmentIntegratedGradients(n_samples=20, n_segments=1, max_length=1)
    found = method.run(evaluate, x, baseline=np.zeros_like(x)).inputs
    np.testing.assert_allclose(found, [[[6.0, 6.0]]])
    assert not method.complete


@given(seeds)
def test_nothing_for_inputs_that_are_not_read_or_do_not_move_or_are_padding(rng):
    x, x0, dt, dt0 = batch(rng)
    x0[1, 2] = x[1, 2]
    real = np.ones((3, 6), bool)
    real[0, 4:] = False
    evaluate = white_box(
        lambda x, dt: np.tanh(x[..., 0].sum(-1) * dt.sum(-1)),
        lambda x, dt: _tanh_slopes(x, dt),
        x,
        dt,
    )
    found = METHOD.run(evaluate, x, dt, baseline=x0, time_baseline=dt0, mask=real)
    assert not found.inputs[..., 1].any()
    assert not found.inputs[1, 2].any()
    assert not found.inputs[0, 4:].any()
    assert not found.time_delta[0, 4:].any()
    assert found.time_delta[1:].any()


def _tanh_slopes(x, dt):
    inner = x[..., 0].sum(-1) * dt.sum(-1)
    outer = 1 - np.tanh(inner) ** 2
    slope = np.zeros(x.shape)
    slope[..., 0] = (outer * dt.sum(-1))[..., None]
    return slope, np.broadcast_to((outer * x[..., 0].sum(-1))[..., None], dt.shape)


def test_equal_seeds_are_equal_and_others_are_not():
    x, x0, dt, dt0 = batch(np.random.default_rng(0))
    evaluate = white_box(
        lambda x, dt: np.tanh(x[..., 0].sum(-1) * dt.sum(-1)),
        lambda x, dt: _tanh_slopes(x, dt),
        x,
        dt,
    )
    first, second, other = (
        SegmentIntegratedGradients(n_samples=4, seed=seed)
        .run(evaluate, x, dt, baseline=x0, time_baseline=dt0)
        .inputs
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


# --- settings


def test_it_has_a_name():
    assert method_from("segment_integrated_gradients") == SegmentIntegratedGradients()


@pytest.mark.parametrize("name", ["n_samples", "n_segments", "min_length", "max_length"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_settings_are_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}: pass a whole number"):
        SegmentIntegratedGradients(**{name: value})


def test_the_longest_is_no_shorter_than_the_shortest():
    with pytest.raises(ValueError, match="max_length=3 is below min_length=5: pass at least 5"):
        SegmentIntegratedGradients(min_length=5, max_length=3)


def test_the_monitor_takes_it():
    rng = np.random.default_rng(0)
    mx.random.seed(0)
    model = ncp.models.CfC(2, 4)
    head = nn.Linear(4, 1)
    x = rng.normal(size=(6, 5, 2)).astype(np.float32)
    held_out = ncp.HeldOutBatch(x, rng.uniform(0.5, 1.5, (6, 5)).astype(np.float32))
    writer = ncp.MemoryWriter()
    callback = ncp.GradientAttribution(
        method=SegmentIntegratedGradients(n_samples=4), baseline="mean"
    )

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = model, head

        def __call__(self, x, time_delta):
            return self.head(self.rnn(x, time_delta)[0][:, -1])

    with ncp.Monitor(Net(), held_out, [callback], writer=writer, background=False) as monitor:
        monitor.on_step_end(1)
    shares = [v for tag in writer.tags if tag.startswith("attribution_share/")
              for _, v in writer.scalars(tag)]  # fmt: skip
    assert shares
    assert np.isfinite(shares).all()
    # It is not complete, so nothing claims how complete it is.
    assert "attribution/completeness_error" not in writer.tags
