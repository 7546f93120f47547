"""Attribution methods against Captum, closed forms and invariances.

White boxes are functions in numpy with known gradients; models come only where a model is what is
in question.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_models import load_ncps_torch

from ncp_callbacks import HeldOutBatch, Need, passes
from ncp_callbacks.attribution import (
    BUILT_IN,
    Attribution,
    AttributionMaps,
    AttributionMethod,
    ExpectedGradients,
    Gradient,
    InputXGradient,
    IntegratedGradients,
    Occlusion,
    PassCount,
    SegmentIntegratedGradients,
    SmoothGrad,
    method_from,
    summarize,
)
from ncp_callbacks.attribution.baselines import constant_baseline
from ncp_callbacks.attribution.compute import Attributor
from ncp_callbacks.callbacks.faithfulness.analysis import deletion, max_sensitivity
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.target_values import TargetValues

pytestmark = pytest.mark.filterwarnings("error")

GOLDEN = Path(__file__).parent / "golden" / "captum.npz"
CHECKS = Path(__file__).parent / "golden" / "captum_checks.npz"
B, T, F = 5, 4, 3
# What float32 points can promise of sums of some dozens of terms.
FLOOR = 2e-6

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def close(actual, expected, tolerance=FLOOR):
    """Equal up to a share of the largest value."""
    expected = np.asarray(expected, np.float64)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * largest)


# --- white boxes


class WhiteBox:
    """A function of inputs (..., T, F) and intervals (..., T), with its gradients.

    Args:
        value: ``(x, dt) -> (...)``.
        slopes: ``(x, dt) -> (..., T, F), (..., T)``.
        x, dt: The batch.

    ``asked`` notes for every call that wanted gradients how many points, of which sequences;
    ``rows`` are the sequences of the call at hand.
    """

    def __init__(self, value: Callable, slopes: Callable, x, dt=None) -> None:
        self.value, self.slopes, self.x, self.dt = value, slopes, x, dt
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def __call__(
        self, inputs=None, time_delta=None, *, sequences=None, gradient=False
    ) -> TargetValues:
        self.rows = every = np.arange(len(self.x)) if sequences is None else sequences
        copies = next((len(a) for a in (inputs, time_delta) if a is not None), 1)
        own = np.broadcast_to(self.x[every], (copies, *self.x[every].shape))
        x = np.float64(own if inputs is None else inputs)
        assert x.shape == own.shape
        dt = None
        if self.dt is not None:
            own = np.broadcast_to(self.dt[every], (copies, *self.dt[every].shape))
            dt = np.float64(own if time_delta is None else time_delta)
            assert dt.shape == own.shape
        for given_ in (inputs, time_delta):
            assert given_ is None or given_.dtype == np.float32
        if not gradient:
            return TargetValues(np.float32(self.value(x, dt)))
        self.asked.append((copies, tuple(map(int, every))))
        by_input, by_time = self.slopes(x, dt)
        return TargetValues(
            np.float32(self.value(x, dt)),
            np.float32(np.broadcast_to(by_input, x.shape)),
            None if dt is None else np.float32(np.broadcast_to(by_time, dt.shape)),
        )


def linear(w, v, x, dt=None):
    """``sum w x + sum v dt``."""
    return WhiteBox(
        lambda x, dt: (w * x).sum((-1, -2)) + (0 if dt is None else (v * dt).sum(-1)),
        lambda x, dt: (w, v),
        x,
        dt,
    )


def ridge(g, slope, w, v, x, dt=None):
    """``g(sum w x + sum v dt)``, whose integrated gradients are known.

    Everything moves along one line, so the mean slope is the change of g over that of its argument:
    ``A = w (x - x') (g(u) - g(u')) / (u - u')``.
    """
    inner = linear(w, v, x, dt)
    return WhiteBox(
        lambda x, dt: g(inner.value(x, dt)),
        lambda x, dt: (
            slope(inner.value(x, dt))[..., None, None] * w,
            slope(inner.value(x, dt))[..., None] * v,
        ),
        x,
        dt,
    )


def ridge_closed(g, w, v, x, x0, dt=None, dt0=None):
    u, u0 = ((w * a).sum((-1, -2)) for a in (x, x0))
    if dt is not None:
        u, u0 = u + (v * dt).sum(-1), u0 + (v * dt0).sum(-1)
    ratio = (g(u) - g(u0)) / (u - u0)
    by_time = None if dt is None else ratio[:, None] * v * (dt - dt0)
    return ratio[:, None, None] * w * (x - x0), by_time


def tanh_slope(u):
    return 1 - np.tanh(u) ** 2


def batch(rng, sequences=B):
    """Inputs, intervals and baselines of both, in float32."""
    x, x0 = rng.normal(size=(2, sequences, T, F))
    dt, dt0 = rng.uniform(0.1, 2.0, (2, sequences, T))
    return tuple(np.float32(a) for a in (x, dt, x0, dt0))


def weights(rng):
    return rng.normal(size=(T, F)) / 3, rng.normal(size=T) / 3


def every_method(box, x, dt=None, *, x0=None, dt0=None, mask=None, n=8) -> dict[str, Attribution]:
    """Each method's attribution of a white box; without baselines, against zeros."""
    x0 = np.where(True if mask is None else ~mask[..., None], x, 0.0) * 0 if x0 is None else x0
    dt0 = np.zeros_like(dt) if dt is not None and dt0 is None else dt0
    methods = [
        Gradient(),
        InputXGradient(),
        IntegratedGradients(n),
        SegmentIntegratedGradients(n, n_segments=2, max_length=2),
        SmoothGrad(n),
        ExpectedGradients(n),
        Occlusion(),
    ]
    return {
        method.name: method.run(box, x, dt, baseline=x0, time_baseline=dt0, mask=mask)
        for method in methods
    }


NAMES = tuple(method.name for method in BUILT_IN)
# Input × gradient is complete where the target is linear.
COMPLETE = ("integrated_gradients", "expected_gradients")
WITH_ERROR = (*COMPLETE, "input_x_gradient")
RELATIVE = (
    "input_x_gradient",
    "integrated_gradients",
    "segment_integrated_gradients",
    "expected_gradients",
    "occlusion",
)


def test_every_method_is_tested():
    x = np.ones((2, T, F), np.float32)
    assert set(every_method(linear(np.ones((T, F)), 0, x), x)) == set(NAMES)


# --- linear targets


@given(seeds)
def test_linear_target(rng):
    """Weight times what the input is away from its baseline, and nothing is left."""
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    # One baseline for all, so that drawing them makes no difference.
    x0[:], dt0[:] = x0[0], dt0[0]
    box = linear(w, v, x, dt)
    found = every_method(box, x, dt, x0=x0, dt0=dt0)
    for name in RELATIVE:
        close(found[name].inputs, w * (x - x0), 1e-5)
        close(found[name].time_delta, v * (dt - dt0), 1e-5)
    for name in ("gradient", "smooth_grad"):
        close(found[name].inputs, np.broadcast_to(w, x.shape))
        close(found[name].time_delta, np.broadcast_to(v, dt.shape))
    for name, each in found.items():
        assert each.method.name == name
        assert (each.error is None) == (name not in WITH_ERROR)
    for name in WITH_ERROR:
        close(found[name].change, (w * (x - x0)).sum((1, 2)) + (v * (dt - dt0)).sum(1), 1e-5)
        assert found[name].error.max() < 1e-5


@given(seeds)
def test_expected_gradients_of_a_linear_target_compare_with_the_mean_baseline(rng):
    (w, v), (x, dt, draws, time_draws) = weights(rng), batch(rng)
    box = linear(w, v, x, dt)
    # Every baseline has its turn: two rounds of all of them have their mean exactly.
    found = ExpectedGradients(2 * len(draws)).run(
        box, x, dt, baseline=draws, time_baseline=time_draws
    )
    close(found.inputs, w * (x - draws.mean(axis=0, dtype=np.float64)), 1e-5)
    close(found.time_delta, v * (dt - time_draws.mean(axis=0, dtype=np.float64)), 1e-5)
    assert found.error.max() < 1e-5
    # Of an incomplete round, not: but it sums to the change from what was drawn.
    few = ExpectedGradients(3).run(box, x, dt, baseline=draws, time_baseline=time_draws)
    assert few.error.max() < 1e-5
    assert np.abs(few.inputs - found.inputs).max() > 1e-3


# --- integrated gradients: completeness and quadrature


@given(seeds, st.integers(1, 5))
def test_quadrature_is_exact_for_polynomials_of_twice_its_steps(rng, n_steps):
    """The slope of a polynomial of degree 2 n has degree 2 n - 1."""
    w, v = weights(rng)
    x, dt, x0, dt0 = batch(rng)
    # The argument goes from 0 to 1, where the powers stay apart.
    w, v = w * 0, v * 0
    w[1, 2], v[3] = 0.75, 0.25
    x[:, 1, 2] = dt[:, 3] = 1.0
    x0[:, 1, 2] = dt0[:, 3] = 0.0
    for degree in (2 * n_steps - 1, 2 * n_steps, 2 * n_steps + 1):
        box = ridge(lambda u, p=degree: u**p, lambda u, p=degree: p * u ** (p - 1), w, v, x, dt)
        found = IntegratedGradients(n_steps).run(box, x, dt, baseline=x0, time_baseline=dt0)
        if degree <= 2 * n_steps:
            close(found.inputs, np.where(w != 0, 0.75, 0) * np.ones((B, 1, 1)))
            close(found.time_delta, np.where(v != 0, 0.25, 0) * np.ones((B, 1)))
            assert found.error.max() < FLOOR
        else:
            # What it misses of t^(2n) on [0, 1] is n!^4 / ((2n + 1) (2n)!^2) exactly.
            missed = math.factorial(n_steps) ** 4 / (degree * math.factorial(2 * n_steps) ** 2)
            np.testing.assert_allclose(found.error, degree * missed, rtol=0.02, atol=FLOOR)


@given(seeds)
def test_integrated_gradients_of_a_ridge(rng):
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    box = ridge(np.tanh, tanh_slope, w, v, x, dt)
    found = IntegratedGradients(32).run(box, x, dt, baseline=x0, time_baseline=dt0)
    by_input, by_time = ridge_closed(np.tanh, w, v, x, x0, dt, dt0)
    close(found.inputs, by_input, 1e-5)
    close(found.time_delta, by_time, 1e-5)
    change = box.value(np.float64(x), np.float64(dt)) - box.value(np.float64(x0), np.float64(dt0))
    close(found.change, change, 1e-5)


def test_error_falls_to_the_float_floor_as_steps_double():
    rng = np.random.default_rng(0)
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng, 40)
    # Some ways cross a bend of a tenth of their length.
    box = ridge(np.tanh, tanh_slope, 12 * w, 12 * v, x, dt)
    worst = []
    for n_steps in (8, 16, 32, 64, 128):
        found = IntegratedGradients(n_steps).run(box, x, dt, baseline=x0, time_baseline=dt0)
        worst.append(found.error.max())
    assert worst[0] > 1
    assert all(b < a / 2 for a, b in itertools.pairwise(worst)), worst
    assert worst[-1] < FLOOR


def test_the_error_is_the_gap_over_the_rms_change():
    change = np.array([3.0, -4.0, 0.0, np.nan])
    inputs = np.zeros((4, 2, 1))
    inputs[:, 0, 0] = 2.0, -4.0, 0.5, 1.0
    intervals = np.zeros((4, 2))
    intervals[0, 1] = 0.5
    given_ = Attribution(IntegratedGradients(), inputs, intervals, change)
    rms = math.sqrt((9 + 16 + 0) / 3)
    np.testing.assert_allclose(given_.error, [0.5 / rms, 0.0, 0.5 / rms, np.nan])
    part = given_.of(np.array([1, 0]))
    np.testing.assert_allclose(part.error, [0.0, 0.5 / math.sqrt(12.5)])
    rounded = replace(given_, rounding=np.array([0.2, 1.0, 0.6, 0.0]))
    np.testing.assert_allclose(rounded.error, [0.3 / rms, 0.0, 0.0, np.nan])
    np.testing.assert_allclose(rounded.of(np.array([0])).error, [0.3 / 3.0])


@pytest.mark.parametrize("scale", [1e-4, 1e-6, 1e-7])
def test_rounding_of_a_target_that_hardly_moves_is_no_error(scale):
    """A probability near 1: the change is a few units in the last place of the target itself."""
    rng = np.random.default_rng(0)
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng, 50)
    box = ridge(lambda u: 1 + scale * np.tanh(u), lambda u: scale * tanh_slope(u), w, v, x, dt)
    found = IntegratedGradients().run(box, x, dt, baseline=x0, time_baseline=dt0)
    assert found.error.max() < 1e-3
    # What is attributed is right all the same: gradients are not differences.
    by_input, _ = ridge_closed(np.tanh, w, v, x, x0, dt, dt0)
    close(found.inputs, scale * by_input, 1e-4)
    # And an error above the rounding is still one.
    wrong = WhiteBox(box.value, lambda x, dt: [2 * g for g in box.slopes(x, dt)], x, dt)
    found = IntegratedGradients().run(wrong, x, dt, baseline=x0, time_baseline=dt0)
    assert (found.error.max() > 0.5) == (scale > 1e-7)


def test_time_delta_stays_as_it_is_without_a_baseline():
    rng = np.random.default_rng(0)
    (w, v), (x, dt, x0, _) = weights(rng), batch(rng)
    box = ridge(np.tanh, tanh_slope, w, v, x, dt)
    found = IntegratedGradients(32).run(box, x, dt, baseline=x0)
    assert found.time_delta is None
    u, u0 = (linear(w, v, x).value(np.float64(a), np.float64(dt)) for a in (x, x0))
    close(found.change, np.tanh(u) - np.tanh(u0), 1e-5)
    close(found.inputs.sum((1, 2)), np.tanh(u) - np.tanh(u0), 1e-5)
    assert Occlusion().run(box, x, dt, baseline=x0).time_delta is None


# --- axioms and invariances


@given(seeds)
def test_what_has_no_weight_gets_nothing(rng):
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    w[:, 1], v[2] = 0.0, 0.0
    box = ridge(np.tanh, tanh_slope, w, v, x, dt)
    for name, found in every_method(box, x, dt, x0=x0, dt0=dt0).items():
        assert not found.inputs[..., 1].any(), name
        assert not found.time_delta[:, 2].any(), name
        assert found.inputs[..., 0].any(), name


@given(seeds)
def test_what_the_target_treats_alike_is_treated_alike(rng):
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    w[:, 2], x[..., 2], x0[..., 2] = w[:, 0], x[..., 0], x0[..., 0]
    box = ridge(np.tanh, tanh_slope, w, v, x, dt)
    for name, found in every_method(box, x, dt, x0=x0, dt0=dt0).items():
        if name == "segment_integrated_gradients":
            continue  # Each has segments of its own.
        if name != "smooth_grad":
            close(found.inputs[..., 2], found.inputs[..., 0])
        else:  # SmoothGrad has noise of its own for each, and the gradient is one for all.
            close(found.inputs[..., 2], found.inputs[..., 0], 1e-5)


@given(seeds, st.floats(-5, 5).filter(lambda a: abs(a) > 0.01), st.floats(-10, 10))
def test_unit_and_offset_of_the_target(rng, a, b):
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    first = every_method(ridge(np.tanh, tanh_slope, w, v, x, dt), x, dt, x0=x0, dt0=dt0)
    box = ridge(lambda u: a * np.tanh(u) + b, lambda u: a * tanh_slope(u), w, v, x, dt)
    second = every_method(box, x, dt, x0=x0, dt0=dt0)
    for name in NAMES:
        # Occlusion is a difference of values, with the rounding of those near b.
        for part in ("inputs", "time_delta"):
            expected = a * getattr(first[name], part)
            floor = 1e-5 * np.abs(expected).max() + 4e-7 * (abs(a) + abs(b))
            np.testing.assert_allclose(getattr(second[name], part), expected, rtol=0, atol=floor)


@given(seeds, st.sampled_from([0.125, 0.5, 4.0, 16.0]))
def test_units_of_inputs_and_of_time(rng, c):
    """x -> x / c with w -> c w: the same target, and the same attribution, except of gradients."""
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    c = np.float32(c) ** np.array([1, -1, 0.5])
    c[2] = 2.0  # powers of two, which rounding doesn't notice
    k = 0.25
    first = every_method(ridge(np.tanh, tanh_slope, w, v, x, dt), x, dt, x0=x0, dt0=dt0)
    there, then = np.float32(x / c), np.float32(dt / k)
    second = every_method(
        ridge(np.tanh, tanh_slope, w * c, v * k, there, then), there, then,
        x0=np.float32(x0 / c), dt0=np.float32(dt0 / k),
    )  # fmt: skip
    for name in RELATIVE:
        close(second[name].inputs, first[name].inputs)
        close(second[name].time_delta, first[name].time_delta)
    for name in ("gradient", "smooth_grad"):
        close(second[name].inputs, c * first[name].inputs, 1e-5)
        close(second[name].time_delta, k * first[name].time_delta, 1e-5)


@given(seeds)
def test_sequences_do_not_see_each_other(rng):
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    order = rng.permutation(B)
    box = ridge(np.tanh, tanh_slope, w, v, x, dt)
    moved = ridge(np.tanh, tanh_slope, w, v, x[order], dt[order])
    first = every_method(box, x, dt, x0=x0, dt0=dt0)
    second = every_method(moved, x[order], dt[order], x0=x0[order], dt0=dt0[order])
    for name in NAMES:
        # Theirs is the order of the draws.
        if name not in ("smooth_grad", "expected_gradients", "segment_integrated_gradients"):
            close(second[name].inputs, first[name].inputs[order])
            close(second[name].time_delta, first[name].time_delta[order])


@given(seeds)
def test_two_ways_to_write_a_target(rng):
    """Integrated gradients see the function only: a square, and a product with itself."""
    x, _, x0, _ = batch(rng)
    square = WhiteBox(lambda x, dt: (x**2).sum((-1, -2)), lambda x, dt: (2 * x, None), x)
    found = IntegratedGradients().run(square, x, baseline=x0)
    close(found.inputs, np.float64(x) ** 2 - np.float64(x0) ** 2, 1e-5)
    close(
        Occlusion().run(square, x, baseline=x0).inputs,
        np.float64(x) ** 2 - np.float64(x0) ** 2,
        1e-5,
    )
    # Twice too much at 0: the chord through zero has half the slope of the tangent.
    product = InputXGradient().run(square, x, baseline=np.zeros_like(x))
    close(product.inputs, 2 * np.float64(x) ** 2)


# --- occlusion


@given(seeds)
def test_occlusion_of_a_product(rng):
    """Exactly what the target loses when that factor is set to its baseline."""
    x, dt, x0, dt0 = batch(rng)
    x, x0 = np.float32(np.exp(x / 4)), np.float32(np.exp(x0 / 4))

    def value(x, dt):
        return x.prod((-1, -2)) * dt.prod(-1)

    box = WhiteBox(value, lambda x, dt: (x, dt), x, dt)
    found = Occlusion().run(box, x, dt, baseline=x0, time_baseline=dt0)
    whole = value(np.float64(x), np.float64(dt))
    largest = 2e-6 * np.abs(whole).max() + 1e-6 * np.abs(found.inputs).max()
    np.testing.assert_allclose(
        found.inputs, whole[:, None, None] * (1 - x0 / np.float64(x)), rtol=1e-5, atol=largest
    )
    np.testing.assert_allclose(
        found.time_delta, whole[:, None] * (1 - dt0 / np.float64(dt)), rtol=1e-5, atol=largest
    )
    assert not box.asked  # no gradient is taken
    assert Occlusion().extra_passes(T, F, takes_time=True) == (T * (F + 1), 0)


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 33])
def test_occlusion_of_time_delta_in_groups(steps):
    rng = np.random.default_rng(0)
    x, dt = np.float32(rng.normal(size=(2, steps, 1))), np.float32(rng.uniform(1, 2, (2, steps)))
    v = rng.normal(size=steps)
    box = linear(np.zeros((steps, 1)), v, x, dt)
    found = Occlusion().run(box, x, dt, baseline=x, time_baseline=np.ones_like(dt))
    close(found.time_delta, v * (np.float64(dt) - 1), 1e-5)
    assert not found.inputs.any()


# --- methods that draw


def cubes(x):
    return WhiteBox(lambda x, dt: (x**3).sum((-1, -2)), lambda x, dt: (3 * x**2, None), x)


def test_smooth_grad_of_cubes():
    """E[3 (x + e)^2] = 3 (x^2 + s^2), with SD 3 sqrt(4 x^2 s^2 + 2 s^4) of each draw."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(8, 6, 3)) * [1.0, 0.2, 5.0])
    draws, noise = 4096, 0.2
    found = SmoothGrad(draws, noise).run(cubes(x), x, baseline=x)
    sd = noise * np.float64(x.max(axis=(0, 1)) - x.min(axis=(0, 1)))
    x64 = np.float64(x)
    z = found.inputs - 3 * (x64**2 + sd**2)
    z /= 3 * np.sqrt(4 * x64**2 * sd**2 + 2 * sd**4) / math.sqrt(draws)
    # 144 standard normals: their mean, their variance, and the largest.
    assert abs(z.mean()) < 4 / math.sqrt(z.size)
    assert 0.6 < z.std() < 1.4
    assert np.abs(z).max() < 4.5
    assert found.change is None


def test_smooth_grad_draws_the_same_noise_every_time():
    x = np.float32(np.random.default_rng(0).normal(size=(3, 4, 2)))
    first, second = (SmoothGrad(20).run(cubes(x), x, baseline=x).inputs for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = SmoothGrad(20, seed=1).run(cubes(x), x, baseline=x)
    assert np.abs(other.inputs - first).max() > 0
    # The first draws don't depend on how many follow, though they are run in groups.
    halves = [SmoothGrad(n).run(cubes(x), x, baseline=x).inputs * n for n in (5, 20)]
    later = np.random.default_rng(0).standard_normal((20, *x.shape))[5:]
    spread = 0.1 * np.float64(x.max(axis=(0, 1)) - x.min(axis=(0, 1)))
    close(halves[1] - halves[0], (3 * (x + later * spread) ** 2).sum(axis=0), 1e-5)


def test_expected_gradients_are_complete_and_right_in_expectation():
    """Over seeds they scatter around integrated gradients, averaged over the baselines."""
    rng = np.random.default_rng(0)
    w, v = weights(rng)
    x, dt, draws, time_draws = batch(rng, 4)
    box = ridge(np.tanh, tanh_slope, w, v, x, dt)
    exact = [
        ridge_closed(np.tanh, w, v, *map(np.float64, (x, draws[i], dt, time_draws[i])))
        for i in range(4)
    ]
    by_input, by_time = (np.mean(each, axis=0) for each in zip(*exact, strict=True))
    runs = [
        ExpectedGradients(12, seed).run(box, x, dt, baseline=draws, time_baseline=time_draws)
        for seed in range(400)
    ]
    for found, expected in (
        (np.stack([r.inputs for r in runs]), by_input),
        (np.stack([r.time_delta for r in runs]), by_time),
    ):
        z = (found.mean(axis=0) - expected) / (found.std(axis=0, ddof=1) / math.sqrt(len(runs)))
        assert np.abs(z).max() < 4.5
        assert abs(z.mean()) < 1.0
    gaps = np.stack([
        r.inputs.sum((1, 2)) + r.time_delta.sum(1) - r.change for r in runs
    ])  # fmt: skip
    z = gaps.mean(axis=0) / (gaps.std(axis=0, ddof=1) / math.sqrt(len(runs)))
    assert np.abs(z).max() < 4
    assert gaps.std(axis=0).min() > 1e-4  # each by itself is not complete


def test_expected_gradients_get_better_with_draws():
    rng = np.random.default_rng(0)
    w, _ = weights(rng)
    x, _, draws, _ = batch(rng, 30)
    box = ridge(np.tanh, tanh_slope, w, 0, x)
    worst = [np.median(ExpectedGradients(n).run(box, x, baseline=draws).error) for n in (30, 480)]
    assert worst[1] < worst[0] / 4  # sixteen times the draws: a quarter, less by stratification


def test_baselines_and_places_that_are_drawn_have_equal_turns():
    """Told by points: feature 0 is the baseline's mark times 1 - alpha, feature 1 is alpha."""
    x, draws = np.zeros((7, 1, 2), np.float32), np.zeros((5, 1, 2), np.float32)
    x[..., 1], draws[:, 0, 0] = 1.0, np.arange(1, 6)
    seen: list[np.ndarray] = []

    def slopes(x, dt):
        seen.append(x[..., 0, :])
        return np.ones_like(x), None

    box = WhiteBox(lambda x, dt: x.sum((-1, -2)), slopes, x)
    ExpectedGradients(15).run(box, x, baseline=draws)
    points = np.concatenate(seen)
    alpha = points[..., 1]
    marks = np.rint(points[..., 0] / (1 - alpha)).astype(int)
    assert points.shape == (15, 7, 2)
    for sequence in range(7):
        np.testing.assert_array_equal(np.bincount(marks[:, sequence])[1:], 3)
        np.testing.assert_array_equal(np.sort(alpha[:, sequence] * 15 // 1), np.arange(15))
        # Once in each third of the way: no baseline keeps to a part of it.
        for third in range(3):
            np.testing.assert_array_equal(
                np.sort(marks[alpha[:, sequence] * 3 // 1 == third, sequence]), np.arange(1, 6)
            )
    # Each sequence has its own.
    assert len({tuple(m) for m in marks.T}) == 7


# --- padding, values that are not finite, targets that don't move


def ragged(rng):
    """A target that reads real steps only, some of its sequences being shorter."""
    (w, v), (x, dt, _, _) = weights(rng), batch(rng)
    mask = np.arange(T) < np.array([4, 3, 2, 1, 4])[:, None]

    def inner(x, dt):
        return (((w * x).sum(-1) + v * dt) * mask[box.rows]).sum(-1)

    def slopes(x, dt):
        slope = tanh_slope(inner(x, dt))[..., None] * mask[box.rows]
        return slope[..., None] * w, slope * v

    box = WhiteBox(lambda x, dt: np.tanh(inner(x, dt)), slopes, x, dt)
    return box, x, dt, mask


def test_padding_gets_nothing_whatever_stands_in_it():
    rng = np.random.default_rng(0)
    box, x, dt, mask = ragged(rng)
    filled, filled_dt = np.where(mask[..., None], x, 7.0), np.where(mask, dt, 3.0)
    for name in ("mean", "zeros"):
        both = []
        for a, d in ((x, dt), (np.float32(filled), np.float32(filled_dt))):
            x0 = constant_baseline(name, a, mask, "baseline")
            dt0 = constant_baseline("mean", d, mask, "time_baseline")
            np.testing.assert_array_equal(x0[~mask], a[~mask])
            np.testing.assert_array_equal(dt0[~mask], d[~mask])
            box.x, box.dt = a, d
            both.append(every_method(box, a, d, x0=x0, dt0=dt0, mask=mask, n=16))
        for method in NAMES:
            for found in both:
                assert not found[method].inputs[~mask].any(), method
                assert not found[method].time_delta[~mask].any(), method
            if method != "expected_gradients":  # whose baselines are drawn with their padding
                close(both[1][method].inputs, both[0][method].inputs)
                close(both[1][method].time_delta, both[0][method].time_delta)


def test_padding_never_moves():
    """Of a target that reads it, too, such as that of a model that runs both ways."""
    rng = np.random.default_rng(0)
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    mask = np.arange(T) < np.array([4, 3, 2, 1, 4])[:, None]
    moved = []

    class Watched(WhiteBox):
        def __call__(self, inputs=None, time_delta=None, *, sequences=None, gradient=False):
            for given_, own in ((inputs, x), (time_delta, dt)):
                if given_ is not None:
                    own, real = (a if sequences is None else a[sequences] for a in (own, mask))
                    moved.append((given_ != own)[:, ~real].any())
            return super().__call__(inputs, time_delta, sequences=sequences, gradient=gradient)

    inner = ridge(np.tanh, tanh_slope, 3 * w, 3 * v, x, dt)
    box = Watched(inner.value, inner.slopes, x, dt)
    x0, dt0 = np.where(mask[..., None], x0, x), np.where(mask, dt0, dt)
    found = every_method(box, x, dt, x0=x0, dt0=dt0, mask=mask)
    found["drawn"] = ExpectedGradients().run(
        box, x, dt, baseline=x[::-1], time_baseline=dt[::-1], mask=mask
    )
    assert moved
    assert not any(moved)
    for name, each in found.items():
        assert not each.inputs[~mask].any(), name
        assert not each.time_delta[~mask].any(), name
        assert each.inputs[mask].any(), name


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sequence_that_is_not_finite_spoils_no_other(bad):
    rng = np.random.default_rng(0)
    w, v = weights(rng)
    x, dt, _, _ = batch(rng, 6)
    x[2, 1, 0] = bad
    clean = np.arange(6) != 2
    box = ridge(np.tanh, tanh_slope, w, v, x, dt)
    with np.errstate(invalid="ignore"):
        x0 = constant_baseline("mean", x, None, "baseline")
        for name, found in every_method(box, x, dt, x0=x0, dt0=dt * 0).items():
            assert np.isfinite(found.inputs[clean]).all(), name
            assert np.isfinite(found.time_delta[clean]).all(), name
            if found.error is not None:
                np.testing.assert_array_equal(np.isfinite(found.error), clean)
            # Where a tanh has levelled off at infinity, it still has a slope, and a value.
            if np.isnan(bad) or name in COMPLETE:
                summary = summarize(found)
                assert (summary.sequences, summary.non_finite) == (5, 1), name
        # Neither the range that sets the noise nor the draws hold what isn't finite.
        drawn = ExpectedGradients(12).run(box, x, dt, baseline=x, time_baseline=dt)
    assert np.isfinite(drawn.error[clean]).all()
    close(x0[0, 0, 0], np.mean([v for v in np.float64(x)[..., 0].ravel() if np.isfinite(v)]), 1e-12)
    other = np.where(np.isfinite(x), x, x[0, 0, 0])
    smooth = [SmoothGrad(8).run(box, a, baseline=a).inputs[clean] for a in (x, other)]
    np.testing.assert_array_equal(*smooth)


@pytest.mark.parametrize("method", NAMES)
def test_constant_target(method):
    rng = np.random.default_rng(0)
    x, dt, x0, dt0 = batch(rng)
    box = WhiteBox(
        lambda x, dt: np.full(x.shape[:-2], 1234.5), lambda x, dt: (0 * x, 0 * dt), x, dt
    )
    found = every_method(box, x, dt, x0=x0, dt0=dt0)[method]
    assert not found.inputs.any()
    assert not found.time_delta.any()
    if found.error is not None:
        np.testing.assert_array_equal(found.error, np.zeros(B))
    summary = summarize(found)
    if method in ("gradient", "smooth_grad"):
        assert summary.time_delta_share is None  # There is no common unit.
    else:
        assert math.isnan(summary.time_delta_share)
    assert not summary.feature_share.any()


@pytest.mark.parametrize("method", RELATIVE)
@pytest.mark.parametrize("by", ["intervals", "inputs"])
def test_what_only_elapsed_times_or_only_inputs_decide(method, by):
    rng = np.random.default_rng(0)
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    w, v = (0 * w, v) if by == "intervals" else (w, 0 * v)
    box = ridge(np.tanh, tanh_slope, w, v, x, dt)
    summary = summarize(every_method(box, x, dt, x0=x0, dt0=dt0)[method])
    assert summary.time_delta_share == pytest.approx(1.0 if by == "intervals" else 0.0, abs=1e-12)


# --- baselines


def test_forms_of_a_baseline():
    rng = np.random.default_rng(0)
    x, dt, _, _ = batch(rng)
    mask = np.arange(T) < np.array([4, 3, 2, 1, 4])[:, None]
    real = np.float64(x)[mask]
    mean = constant_baseline("mean", x, mask, "baseline")
    close(mean[mask], np.broadcast_to(real.mean(axis=0), real.shape))
    close(
        constant_baseline("mean", dt, mask, "time_baseline")[mask],
        np.full(mask.sum(), np.float64(dt)[mask].mean()),
    )
    assert not constant_baseline("zeros", x, mask, "baseline")[mask].any()
    for shape in ((), (F,), (T, F), (T, 1), (1, T, F), (B, 1, F), (B, T, F)):
        own = rng.normal(size=shape)
        found = constant_baseline(own, x, None, "baseline")
        assert found.shape == x.shape
        np.testing.assert_array_equal(found, np.broadcast_to(own, x.shape))
    for shape in ((), (T,), (B, 1), (B, T)):
        own = rng.normal(size=shape)
        found = constant_baseline(own, dt, None, "time_baseline")
        np.testing.assert_array_equal(found, np.broadcast_to(own, dt.shape))
    np.testing.assert_array_equal(
        constant_baseline([1, 2, 3], x, None, "baseline")[0, 0], [1, 2, 3]
    )


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("median", "baseline='median' is unknown: pass 'mean', 'zeros' or an array"),
        (np.zeros(2), r"shape \(2,\), which doesn't fit \(5, 4, 3\): pass one number per feature"),
        (
            np.zeros((3, T, F)),
            r"shape \(3, 4, 3\), which doesn't fit.*draws them, like 'expected_gradients'",
        ),
        (np.zeros((1, B, T, F)), r"shape \(1, 5, 4, 3\), which doesn't fit"),
        ([0.0, np.nan, 0.0], "holds NaN or infinity"),
        (np.inf, "holds NaN or infinity"),
    ],
)
def test_baselines_that_do_not_fit(given_, message):
    x = np.zeros((B, T, F), np.float32)
    with pytest.raises(ValueError, match=message):
        constant_baseline(given_, x, None, "baseline")


# --- Captum


class Golden(nn.Module):
    """The model whose weights Captum's values are for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        features, units = 3, 8
        self.rnn = {
            "cfc": lambda: CfC(features, units, backbone_units=12),
            "ltc": lambda: LTC(features, units),
            "gru": lambda: nn.GRU(features, units),
        }[kind]()
        self.head = nn.Linear(units, 2)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0][:, -1])


class GoldenGRU(Golden):
    def __call__(self, x: mx.array) -> mx.array:  # type: ignore[override]
        return self.head(self.rnn(x)[:, -1])


def load_torch(model: Golden, kind: str, given_: dict[str, np.ndarray]) -> None:
    own = {n.removeprefix("rnn."): w for n, w in given_.items() if n.startswith("rnn.")}
    if kind == "gru":
        # PyTorch has a bias each for input and state; MLX keeps the state's for the new gate only.
        inner, outer = own["bias_ih_l0"], own["bias_hh_l0"]
        gates = 2 * len(outer) // 3
        bias = inner + np.concatenate([outer[:gates], np.zeros(len(outer) - gates)])
        names = {
            "Wx": own["weight_ih_l0"],
            "Wh": own["weight_hh_l0"],
            "b": bias,
            "bhn": outer[gates:],
        }
        model.rnn.load_weights([(n, mx.array(v, mx.float32)) for n, v in names.items()])
    else:
        load_ncps_torch(model.rnn, own, mx.float32)
    model.head.load_weights([(n, mx.array(given_[f"head.{n}"])) for n in ("weight", "bias")])


@pytest.fixture(scope="module")
def captum() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file, np.load(CHECKS) as checks:
        return dict(file) | dict(checks)


@pytest.fixture(scope="module", params=["cfc", "ltc", "gru"])
def golden(request, captum):
    """An observation of the model, and Captum's values for it."""
    kind = request.param
    case = {k.split("/", 1)[1]: v for k, v in captum.items() if k.startswith(f"{kind}/")}
    model = (GoldenGRU if kind == "gru" else Golden)(kind)
    shapes = json.loads(str(case["meta"]))["weights"]
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()], dtype=int)[:-1]
    parts = np.split(case["weights"], ends)
    given_ = {
        name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    load_torch(model, kind, given_)
    dt = None if kind == "gru" else captum["time_delta"]
    runner = ModelRunner(model, HeldOutBatch(captum["x"], dt), target=1)
    return passes.observe(runner, 0, set(Need)), case


def as_captum(found: Attribution, case: dict[str, np.ndarray], method: str, tolerance: float):
    """Equal up to a share of the largest attribution of either kind."""
    expected = {"x": case[f"{method}/x"], "time_delta": case.get(f"{method}/time_delta")}
    assert (found.time_delta is None) == (expected["time_delta"] is None)
    for name, actual in (("x", found.inputs), ("time_delta", found.time_delta)):
        if actual is not None:
            close(actual, expected[name], tolerance)
            assert np.abs(actual).max() > 0.01


# MLX's sigmoid and exp are good to single precision, and an LTC takes 6 sub-steps of them a step.
PRECISION = 2e-5


def test_golden_targets(golden):
    observation, case = golden
    close(observation.target_values, case["values"], PRECISION)
    assert json.loads(str(case["meta"]))["accuracy"] > 0.75  # the models have learnt something


@pytest.mark.parametrize(
    ("method", "name"), [("gradient", "saliency"), ("input_x_gradient", "input_x_gradient")]
)
def test_gradients_equal_captum(golden, method, name):
    observation, case = golden
    # Captum's input x gradient has the baseline 0, for elapsed times too.
    found = Attributor(method, "zeros", time_baseline=0.0).attribute(observation)
    as_captum(found, case, name, PRECISION)


@pytest.mark.parametrize("n_steps", [4, 16, 64])
def test_integrated_gradients_equal_captum(golden, captum, n_steps):
    """Also where there are too few steps, by as much as Captum says that the sum is off."""
    observation, case = golden
    method = IntegratedGradients(n_steps)
    found = Attributor(method, captum["baseline"], captum["time_baseline"]).attribute(observation)
    as_captum(found, case, f"ig{n_steps}", PRECISION)
    change = case["values"] - case["at_baseline"]
    close(found.change, change, PRECISION)
    rms = np.sqrt(np.mean(change**2))
    np.testing.assert_allclose(
        found.error, np.abs(case[f"ig{n_steps}/delta"]) / rms, rtol=0, atol=PRECISION
    )
    if n_steps == 4:
        assert found.error.max() > 0.01


def test_occlusion_equals_captum(golden, captum):
    observation, case = golden
    found = Attributor("occlusion", captum["baseline"], captum["time_baseline"])
    as_captum(found.attribute(observation), case, "occlusion", PRECISION)


def test_smooth_grad_equals_captum_with_the_same_noise(golden):
    observation, case = golden
    found = Attributor(SmoothGrad(8)).attribute(observation)
    as_captum(found, case, "smooth_grad", PRECISION)


@pytest.mark.parametrize("name", ["ig16", "input_x_gradient", "saliency"])
def test_infidelity_equals_captum(golden, captum, name):
    """Of the same maps and sets of removed inputs; ours is in units of that of a map of zeros."""
    observation, case = golden
    x, own = observation.inputs, case[f"{name}/x"]
    x0 = np.broadcast_to(captum["baseline"], x.shape)
    found = deletion(
        observation.extra_passes.evaluate,
        x,
        own,
        baseline=x0,
        effects=own * (x - x0) if name == "saliency" else own,
        n_groups=10,
        orders=4,
    )
    theirs, zeros = (case[f"infidelity/{of}"] for of in (name, "zeros"))
    close(found.infidelity, theirs / zeros.mean(), 1e-4)
    assert theirs.min() > 1e-4 * zeros.mean()


@pytest.mark.parametrize("name", ["input_x_gradient", "saliency"])
def test_sensitivity_equals_captum(golden, name):
    observation, case = golden
    x = observation.inputs

    def attribute(inputs: np.ndarray) -> np.ndarray:
        slopes = observation.extra_passes.evaluate(inputs[None], gradient=True).input_gradient[0]
        return slopes if name == "saliency" else inputs * slopes

    found = max_sensitivity(attribute, x, attribute(x), radius=0.1, n_samples=4)
    close(found, case[f"sensitivity_max/{name}"], 1e-3)


@pytest.mark.parametrize("golden", ["cfc", "gru"], indirect=True)
def test_expected_gradients_equal_captums_expectation(golden, captum):
    """All scatter around integrated gradients averaged over the baselines: Captum's draws, ours."""
    observation, case = golden
    timed = observation.takes_time
    repeats = [
        ExpectedGradients(6, seed).run(
            observation.extra_passes.evaluate,
            observation.inputs,
            observation.time_delta if timed else None,
            baseline=captum["baselines"],
            time_baseline=captum["time_baselines"] if timed else None,
        )
        for seed in range(50)
    ]
    for name, part in (("x", "inputs"), ("time_delta", "time_delta"))[: 1 + timed]:
        ours = np.stack([getattr(r, part) for r in repeats])
        se = ours.std(axis=0, ddof=1) / math.sqrt(len(repeats))
        expected = case[f"expected/{name}"]
        z = (ours.mean(axis=0) - expected) / se
        # The 24 cells of a sequence share their draws, so that the mean square of z scatters, too.
        assert np.abs(z).max() < 5
        assert np.sqrt(np.mean(z**2)) < 1.5
        # Captum's own mean, with its standard error, is as near.
        theirs = (case[f"gradient_shap/{name}"] - expected) / case[f"gradient_shap_se/{name}"]
        assert np.abs(theirs).max() < 5
        assert np.sqrt(np.mean(theirs**2)) < 1.3
        # 300 stratified draws scatter far less than what they estimate is large.
        assert np.median(se) < 0.05 * np.abs(expected).max()


# --- by hand


def test_integrated_gradients_of_a_polynomial_by_hand():
    """``a^2 b + 3 c``: along the line from 0, ``a`` gets two thirds of the first term.

    The gradient is of degree 2, for which two points are exact and one is not.
    """
    x = np.zeros((2, 1, 3), np.float32)
    x[0, 0], x[1, 0] = (2.0, 5.0, -1.0), (-1.0, 4.0, 2.0)

    def slopes(x, dt):
        a, b = x[..., 0], x[..., 1]
        return np.stack([2 * a * b, a**2, np.full_like(a, 3.0)], axis=-1), None

    box = WhiteBox(
        lambda x, dt: (x[..., 0] ** 2 * x[..., 1] + 3 * x[..., 2]).sum(axis=-1), slopes, x
    )
    found = IntegratedGradients(2).run(box, x, baseline=np.zeros_like(x))
    expected = [[40 / 3, 20 / 3, -3.0], [8 / 3, 4 / 3, 6.0]]
    np.testing.assert_allclose(found.inputs[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.change, [17.0, 10.0])
    assert found.error.max() < 1e-6
    # One point is the middle: (2 a b a, a^2 b) / 4 in place of thirds.
    middle = IntegratedGradients(1).run(box, x, baseline=np.zeros_like(x))
    np.testing.assert_allclose(middle.inputs[0, 0], [10.0, 5.0, -3.0], rtol=1e-6)
    np.testing.assert_allclose(middle.error[0], 5 / np.sqrt((17**2 + 10**2) / 2), rtol=1e-6)


def test_occlusion_by_hand():
    """``x0 x1 + max(x2, dt)`` of one sequence of one step."""
    x, dt = np.array([[[2.0, 3.0, 5.0]]], np.float32), np.array([[4.0]], np.float32)
    box = WhiteBox(
        lambda x, dt: (x[..., 0] * x[..., 1] + np.maximum(x[..., 2], dt)).sum(axis=-1), None, x, dt
    )
    baseline, time_baseline = np.array([[[1.0, -1.0, 0.0]]]), np.array([[7.0]])
    found = Occlusion().run(box, x, dt, baseline=baseline, time_baseline=time_baseline)
    # 6 + 5 minus: 3 + 5, -2 + 5, 6 + 4; and with the elapsed time, 6 + 7.
    np.testing.assert_allclose(found.inputs[0, 0], [3.0, 8.0, 1.0])
    np.testing.assert_allclose(found.time_delta, [[-2.0]])
    assert found.error is None


# --- what a method declares


@pytest.mark.parametrize("method", [method() for method in BUILT_IN], ids=lambda m: m.name)
@pytest.mark.parametrize("timed", [True, False])
def test_extra_passes_are_those_that_are_run(method, timed):
    rng = np.random.default_rng(0)
    (w, v), (x, dt, x0, dt0) = weights(rng), batch(rng)
    count = {"forward": 0, "gradient": 0}

    class Counted(WhiteBox):
        def __call__(self, inputs=None, time_delta=None, *, sequences=None, gradient=False):
            found = super().__call__(inputs, time_delta, sequences=sequences, gradient=gradient)
            # The pass over the batch itself is shared.
            if inputs is not None or time_delta is not None:
                count["gradient" if gradient else "forward"] += len(found.values)
            return found

    inner = ridge(np.tanh, tanh_slope, w, v, x, dt if timed else None)
    if timed:
        box, times = Counted(inner.value, inner.slopes, x, dt), (dt, dt0)
    else:
        box = Counted(inner.value, lambda x, dt: (inner.slopes(x, dt)[0], None), x)
        times = (None, None)
    found = method.run(box, x, times[0], baseline=x0, time_baseline=times[1])
    assert method.extra_passes(T, F, takes_time=timed) == PassCount(**count)
    assert (found.error is not None) == method.complete
    assert (found.time_delta is not None) == timed


def test_a_method_is_known_by_its_name():
    assert [method.name for method in map(method_from, NAMES)] == list(NAMES)
    assert len(set(NAMES)) == len(BUILT_IN)
    own = SmoothGrad(3)
    assert method_from(own) is own
    assert method_from("smooth_grad") == SmoothGrad()
    assert (SmoothGrad().title, InputXGradient().title) == ("SmoothGrad", "Input × gradient")
    assert SmoothGrad().unit == "units of the target per unit of the input"
    assert Occlusion().unit == "units of the target"


@dataclass(frozen=True)
class Wrong(AttributionMethod):
    """Returns maps that don't fit."""

    name = label = "wrong"
    maps: AttributionMaps

    def extra_passes(self, n_time_steps, n_features, *, takes_time):
        return PassCount()

    def attribute(self, evaluate, inputs, time_delta, *, baseline, time_baseline, mask):
        return self.maps


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (
            AttributionMaps(np.zeros((B, F, T))),
            r"returned inputs of shape \(5, 3, 4\): return shape \(5, 4, 3\)",
        ),
        (
            AttributionMaps(np.zeros((B, T, F)), np.zeros(B)),
            r"returned time_delta of shape \(5,\): return shape \(5, 4\)",
        ),
    ],
)
def test_maps_that_do_not_fit(maps, message):
    x = np.zeros((B, T, F), np.float32)
    with pytest.raises(ValueError, match=message):
        Wrong(maps).run(linear(np.ones((T, F)), 0, x), x, baseline=x)


# --- baselines of the whole held-out batch


def test_a_mean_baseline_is_of_the_whole_batch():
    """Whatever sequences are analysed, and without what stands in padding."""
    mx.random.seed(0)
    x, dt, _ = (np.array(a) for a in sequences(np.random.default_rng(0), 12))
    x[6:] += 3.0
    mask = np.arange(STEPS) < np.array([6, 4, 5] * 4)[:, None]
    x[~mask], dt[~mask] = 50.0, 50.0
    runner = ModelRunner(Golden("cfc"), HeldOutBatch(x, dt, mask=mask), target=1)
    mean, mean_dt = x[mask].mean(axis=0), dt[mask].mean()
    some = passes.observe(runner, 0, set(Need), max_sequences=3)
    assert len(some.indices) == 3
    np.testing.assert_array_equal(some.whole_inputs, x)
    np.testing.assert_array_equal(some.whole_time_delta, dt)
    np.testing.assert_array_equal(some.limited(2).whole_mask, mask)
    for attributor in (Attributor("integrated_gradients"), Attributor("input_x_gradient")):
        found = attributor.attribute(some)
        name = found.method.name
        fixed = Attributor(name, mean, mean_dt).attribute(some)
        close(found.inputs, fixed.inputs, 1e-5)
        close(found.time_delta, fixed.time_delta, 1e-5)
        # And it stays where it is for other inputs of these sequences.
        again = attributor.attribute(some.extra_passes.reevaluate(some.inputs + 1))
        moved = Attributor(name, mean, mean_dt).attribute(
            some.extra_passes.reevaluate(some.inputs + 1)
        )
        close(again.inputs, moved.inputs, 1e-5)
    # Those drawn are all sequences, too, with the mean in the place of padding.
    filled = np.where(mask[..., None], x, mean)
    drawn = Attributor(ExpectedGradients(24)).attribute(some)
    fixed = ExpectedGradients(24).run(
        some.extra_passes.evaluate, some.inputs, some.time_delta, baseline=filled,
        time_baseline=np.where(mask, dt, mean_dt), mask=some.mask,
    )  # fmt: skip
    close(drawn.inputs, fixed.inputs, 1e-5)
    close(drawn.time_delta, fixed.time_delta, 1e-5)
    close(drawn.change, fixed.change, 1e-5)


# --- trained models


STEPS = 6


def sequences(rng, size):
    """Labels by what is left of feature 0 after the time since, and by the size of feature 1."""
    x, dt = rng.normal(size=(size, STEPS, 3)), rng.lognormal(-0.7, 0.8, (size, STEPS))
    age = dt[:, ::-1].cumsum(axis=1)[:, ::-1] - dt
    label = (np.exp(-age / 2) * x[..., 0]).sum(axis=1) + np.abs(x[:, -1, 1]) > 0.8
    return mx.array(x, mx.float32), mx.array(dt, mx.float32), mx.array(label.astype(np.int32))


@pytest.fixture(scope="module", params=["cfc", "ltc"])
def trained(request):
    """A model that has learnt its task, and 100 sequences that it hasn't seen.

    At initialisation a handful of steps would do for any sequence.
    """
    mx.random.seed(0)
    rng = np.random.default_rng(0)
    kind = request.param
    steps, rate = {"cfc": (150, 1e-2), "ltc": (60, 2e-2)}[kind]
    model, optimizer = Golden(kind), optim.Adam(learning_rate=rate)
    loss_and_grad = nn.value_and_grad(
        model, lambda x, dt, y: nn.losses.cross_entropy(model(x, dt), y, reduction="mean")
    )
    for _ in range(steps):
        _, gradients = loss_and_grad(*sequences(rng, 64))
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
    x, dt, label = sequences(rng, 500)
    assert (model(x, dt).argmax(axis=-1) == label).mean().item() > 0.7
    return kind, model, x[:100], dt[:100]


def observe(model, x, dt, **options):
    return passes.observe(ModelRunner(model, HeldOutBatch(x, dt), **options), 0, set(Need))


def test_completeness_of_trained_models(trained):
    """The error falls with the number of steps, and is what the model itself says."""
    kind, model, x, dt = trained
    observation = observe(model, x, dt, target=1)
    found = {
        n: Attributor(IntegratedGradients(n)).attribute(observation) for n in (8, 16, 32, 64, 128)
    }
    p99 = {n: np.quantile(each.error, 0.99) for n, each in found.items()}
    assert p99[16] > (0.1 if kind == "cfc" else 0.01)
    assert p99[128] < min(0.05, p99[16] / 2)
    medians = [np.median(found[n].error) for n in (8, 16, 32)]
    assert all(b < a / 2 for a, b in itertools.pairwise(medians)), medians

    # The reported error from the model itself, without the package.
    start = mx.broadcast_to(x.mean(axis=(0, 1)), x.shape)
    start_dt = mx.broadcast_to(dt.mean(), dt.shape)
    change = np.array(model(x, dt)[:, 1] - model(start, start_dt)[:, 1], np.float64)
    gap = np.abs(found[16].inputs.sum((1, 2)) + found[16].time_delta.sum(1) - change)
    np.testing.assert_allclose(found[16].error, gap / np.sqrt(np.mean(change**2)), atol=1e-5)
    assert np.sqrt(np.mean(change**2)) > 0.3

    # The error that users see is this one's 99th percentile.
    np.testing.assert_allclose(summarize(found[16]).error, found[16].error, rtol=1e-6)


@pytest.mark.parametrize("trained", ["cfc"], indirect=True)
def test_attribution_of_trained_models_is_converged(trained):
    """Not only the sum: each cell, against many more steps."""
    _, model, x, dt = trained
    observation = observe(model, x[:8], dt[:8], target=1)
    found, fine = (Attributor(IntegratedGradients(n)).attribute(observation) for n in (16, 128))
    scale = np.abs(fine.inputs).sum((1, 2)) + np.abs(fine.time_delta).sum(1)
    off = np.abs(found.inputs - fine.inputs).sum((1, 2))
    off += np.abs(found.time_delta - fine.time_delta).sum(1)
    # Cells may be off in ways that cancel in the sum, but not by much more than the sum's 1 %.
    assert np.quantile(off / scale, 0.9) < 0.05
    assert summarize(found).time_delta_share == pytest.approx(
        summarize(fine).time_delta_share, abs=0.01
    )


def test_a_target_that_takes_the_whole_batch(trained):
    kind, model, x, dt = trained
    x, dt = x[:12], dt[:12]

    def margin(outputs, targets):
        return outputs[:, 1] - outputs[:, 0]

    class Margin(Golden):
        def __call__(self, x, time_delta):
            outputs = model(x, time_delta)
            return outputs[:, 1:] - outputs[:, :1]

    attributor = Attributor(IntegratedGradients(8))
    whole = attributor.attribute(observe(model, x, dt, target=margin))
    alone = attributor.attribute(observe(Margin(kind), x, dt))
    close(whole.inputs, alone.inputs, 1e-5)
    close(whole.time_delta, alone.time_delta, 1e-5)
    np.testing.assert_allclose(whole.error, alone.error, atol=1e-5)


# --- settings


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Attributor("shap"), ValueError, "'shap' is unknown: pass one of 'input_x_grad"),
        (
            lambda: Attributor("integrated_gradient"),
            ValueError,
            "method='integrated_gradient' is unknown, did you mean 'integrated_gradients'?",
        ),
        (lambda: Attributor(IntegratedGradients), TypeError, r"pass IntegratedGradients\(\)"),
        (
            lambda: Attributor(3),
            TypeError,
            "method=3 is of type int: pass the name of a method, such as 'occlusion', or an obj",
        ),
        (lambda: IntegratedGradients(0), ValueError, "n_steps=0: pass a whole number of at least"),
        (lambda: IntegratedGradients(2.5), ValueError, "n_steps=2.5: pass a whole number"),
        (lambda: SmoothGrad(True), ValueError, "n_samples=True: pass a whole number"),
        (lambda: SmoothGrad(noise=-1), ValueError, "noise=-1: pass a number above 0"),
        (lambda: ExpectedGradients(0), ValueError, "n_samples=0: pass a whole number"),
        (
            lambda: Attributor(baseline="median"),
            ValueError,
            "baseline='median' is unknown: pass 'mean', 'zeros' or an array",
        ),
        (
            lambda: Attributor(time_baseline="median"),
            ValueError,
            "time_baseline='median' is unknown: pass 'mean', 'zeros' or an array",
        ),
        (
            lambda: Attributor("expected_gradients", "mean"),
            ValueError,
            "baseline='mean' is unknown: pass 'held_out' or an array",
        ),
        (
            lambda: Attributor("occlusion", "held_out"),
            ValueError,
            "baseline='held_out' is unknown: pass 'mean', 'zeros' or an array",
        ),
    ],
)
def test_settings_that_can_not_be(make, error, message):
    with pytest.raises(error, match=re.escape(message) if "\\" not in message else message):
        make()


def test_baseline_sequences_that_do_not_fit():
    mx.random.seed(0)
    x, dt, _ = sequences(np.random.default_rng(0), 3)
    observation = observe(Golden("cfc"), x, dt)
    for draws in (np.zeros(3), np.zeros((5, STEPS, 2)), np.zeros((0, STEPS, 3))):
        with pytest.raises(ValueError, match=r"draws its baselines: pass .*batch, \(n, 6, 3\)"):
            Attributor("expected_gradients", draws).attribute(observation)
