"""Memory, stability and drift of states, against closed forms, simulation and other libraries.

Units of a leaky bank are ``h_k = a_k h_{k-1} + (1 - a_k) I_k`` with ``a_k = exp(-dt_k / tau)``: its
Jacobians are ``diag(a_k)``, its exponents ``-1 / tau``, and with white input its autocorrelation
time is ``tau``.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from promises import pattern, promised, told
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from test_plots import check_redraws, check_text, texts, title, words

import ncp_callbacks as ncp
from ncp_callbacks.analysis import (
    UnitCorrelations,
    autocorrelation_times,
    corrected_participation_ratio,
    jacobian_gains,
    lyapunov_exponents,
    memory_horizon,
    stability_exponents,
    state_drift,
    target_memory,
    unit_correlations,
)
from ncp_callbacks.callbacks import Dynamics
from ncp_callbacks.callbacks.dynamics.jacobian_products import estimated_stability
from ncp_callbacks.callbacks.dynamics.plot import needed_decades
from ncp_callbacks.extra_passes.jacobian_products import JacobianProducts
from ncp_callbacks.models import CfC
from ncp_callbacks.observation import Trajectory
from ncp_callbacks.plots import plot_dynamics, to_png
from ncp_callbacks.plotting.page import Page
from ncp_callbacks.plotting.redraw import Redrawer
from ncp_callbacks.screen import clean_tag

seeds = st.integers(0, 2**32 - 1)


def random_steps(rng, sequences=3, steps=7, units=4, gain=1.0):
    """Jacobians of ``steps`` steps, so that there are ``steps + 1`` states."""
    return gain * rng.normal(size=(sequences, steps, units, units)) / math.sqrt(units)


def leaky_steps(dt, tau):
    """``diag(exp(-dt_k / tau))`` of every step but the first."""
    return np.exp(-dt[:, 1:, None, None] / tau) * np.eye(len(tau))


def intervals(rng, *shape):
    return rng.exponential(1.0, shape) + 0.05


def rotation(rng, units):
    return np.linalg.qr(rng.normal(size=(units, units)))[0]


def white_leaky(rng, dt, tau):
    a = np.exp(-dt[..., None] / tau)
    drive = rng.normal(size=a.shape)
    states, state = [], np.zeros((len(dt), len(tau)))
    for t in range(dt.shape[1]):
        state = a[:, t] * state + (1 - a[:, t]) * drive[:, t]
        states.append(state)
    return np.stack(states, axis=1)


def padded(rng, array, lengths, longer=3):
    """As many steps more, and garbage instead of what is beyond the lengths."""
    batch, steps = array.shape[:2]
    wide = rng.normal(size=(batch, steps + longer, *array.shape[2:])) * 1e3
    wide[:, ::2] = np.nan
    for b, length in enumerate(lengths):
        wide[b, :length] = array[b, :length]
    return wide


def mask_of(lengths, steps):
    return np.arange(steps)[None] < np.asarray(lengths)[:, None]


# --- Lyapunov exponents -------------------------------------------------------------------------


def test_a_leaky_bank_has_minus_one_over_tau_for_exponents():
    rng = np.random.default_rng(0)
    tau, dt = np.array([0.7, 4.0, 1.5, 2.5]), intervals(rng, 3, 9)
    found = lyapunov_exponents(leaky_steps(dt, tau), time_delta=dt, count=4)
    np.testing.assert_allclose(found, np.broadcast_to(-1 / np.array([4.0, 2.5, 1.5, 0.7]), (3, 4)))


def test_all_units_with_one_time_constant_have_that_exponent():
    dt = intervals(np.random.default_rng(1), 2, 12)
    found = lyapunov_exponents(leaky_steps(dt, np.full(5, 3.0)), time_delta=dt)
    np.testing.assert_allclose(found, -1 / 3)


@given(seeds, st.integers(1, 6), st.integers(1, 10))
def test_exponents_are_those_of_the_product(seed, units, steps):
    rng = np.random.default_rng(seed)
    jacobians, dt = random_steps(rng, 2, steps, units), intervals(rng, 2, steps + 1)
    found = lyapunov_exponents(jacobians, time_delta=dt, count=units)
    for s in range(2):
        product, determinants = np.eye(units), 0.0
        for step in jacobians[s]:
            product = step @ product
            determinants += np.linalg.slogdet(step)[1]
        time = dt[s, 1:].sum()
        # Volumes: exact, whatever the frame.
        assert found[s].sum() * time == pytest.approx(determinants, rel=1e-9, abs=1e-9)
        sizes = np.log(np.linalg.svd(product, compute_uv=False))
        apart = np.min(-np.diff(sizes), initial=np.inf)
        if sizes[-1] - sizes[0] > -25 and apart > 0.3:  # else the product itself holds less
            np.testing.assert_allclose(found[s] * time, sizes, rtol=1e-5, atol=1e-5)


def test_long_products_tend_to_the_eigenvalues():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(4, 4))
    step = vectors @ np.diag([1.1, 0.8, -0.5, 0.2]) @ np.linalg.inv(vectors)
    found = lyapunov_exponents(np.broadcast_to(step, (1, 3000, 4, 4)), count=2)
    # What the eigenvectors are not orthogonal adds a constant, which the length divides.
    np.testing.assert_allclose(found[0], np.log([1.1, 0.8]), atol=3e-3)
    radius, _ = jacobian_gains(np.broadcast_to(step, (1, 5, 4, 4)))
    np.testing.assert_allclose(radius, 1.1)


def test_a_rotation_that_shrinks_has_the_same_exponents_in_all_directions():
    turn = np.array([[0.0, -1.0], [1.0, 0.0]]) * 0.9
    found = lyapunov_exponents(np.broadcast_to(turn, (2, 30, 2, 2)))
    np.testing.assert_allclose(found, math.log(0.9))


def test_exponents_of_long_products_do_not_overflow_or_vanish():
    steps = np.stack([np.diag([1e5, 1e-5])] * 400)[None]
    np.testing.assert_allclose(
        lyapunov_exponents(steps), [[math.log(1e5), math.log(1e-5)]], rtol=1e-9
    )
    assert np.isfinite(lyapunov_exponents(np.zeros((1, 4, 3, 3)))).all()


# --- memory -------------------------------------------------------------------------------------


def test_a_leaky_bank_remembers_the_product_of_what_it_keeps():
    rng = np.random.default_rng(3)
    dt = intervals(rng, 4, 10)
    memory = memory_horizon(leaky_steps(dt, np.full(3, 2.0)), time_delta=dt)
    ago = np.concatenate([np.zeros((4, 1)), np.cumsum(dt[:, :0:-1], axis=1)], axis=1)
    np.testing.assert_allclose(memory.elapsed, ago)
    np.testing.assert_allclose(memory.norms, np.exp(-ago / 2.0))
    np.testing.assert_allclose(memory.curve, np.exp(-ago / 2.0).prod(axis=0) ** 0.25)
    assert (ago[:, -1] > 2.0).all()
    assert memory.time == pytest.approx(2.0)
    assert (memory.sequences, memory.unforgotten) == (4, 0.0)


def test_memory_of_units_with_different_time_constants_is_their_root_mean_square():
    tau, dt = np.array([0.5, 2.0, 8.0]), np.full((1, 6), 0.5)
    memory = memory_horizon(leaky_steps(dt, tau), time_delta=dt)
    k = np.arange(6)[:, None]
    np.testing.assert_allclose(memory.curve, np.sqrt(np.exp(-2 * 0.5 * k / tau).mean(axis=1)))


@pytest.mark.parametrize(("keep", "steps"), [(math.exp(-1 / 4), 4.0), (math.exp(-1.6), 1 / 1.6)])
def test_horizon_lies_between_steps_where_exponential_decay_puts_it(keep, steps):
    memory = memory_horizon(np.full((1, 8, 1, 1), keep))
    assert memory.steps == pytest.approx(steps)
    assert memory.time == memory.steps


def test_what_is_never_forgotten_has_the_length_of_the_sequence():
    dt = intervals(np.random.default_rng(4), 3, 7)
    memory = memory_horizon(np.broadcast_to(1.1 * np.eye(2), (3, 6, 2, 2)), time_delta=dt)
    assert memory.steps == 6
    assert memory.time == pytest.approx(np.median(dt[:, 1:].sum(axis=1)))
    assert memory.unforgotten == 1.0
    np.testing.assert_allclose(memory.curve, 1.1 ** np.arange(7))


def test_the_curve_goes_as_far_back_as_half_of_the_sequences():
    lengths = [3, 5, 8, 8]
    memory = memory_horizon(np.full((4, 7, 1, 1), 0.9), mask=mask_of(lengths, 8))
    np.testing.assert_allclose(memory.curve, 0.9 ** np.arange(8))
    memory = memory_horizon(np.full((3, 7, 1, 1), 0.9), mask=mask_of(lengths[:3], 8))
    assert len(memory.curve) == 5
    assert np.isfinite(memory.norms).sum(axis=1).tolist() == lengths[:3]


def test_memory_stops_at_a_gap():
    mask = np.array([[True, True, False, True, True, True]])
    memory = memory_horizon(np.full((1, 5, 1, 1), 0.5), mask=mask)
    np.testing.assert_allclose(memory.curve, [1, 0.5, 0.25])


# --- single steps -------------------------------------------------------------------------------


def test_radius_and_norm_of_a_shear():
    # Eigenvalues 0.5 and 0.5; singular values from sigma1 sigma2 = 1/4, sigma1^2 + sigma2^2 = 9.5.
    shear = np.array([[0.5, 3.0], [0.0, 0.5]])
    radius, norm = jacobian_gains(shear[None, None])
    s = 9.5
    assert radius == pytest.approx([0.5])
    assert norm == pytest.approx([math.sqrt((s + math.sqrt(s * s - 4 / 16)) / 2)])


@given(seeds)
def test_norm_is_the_largest_singular_value_and_bounds_the_radius(seed):
    jacobians = random_steps(np.random.default_rng(seed))
    radius, norm = jacobian_gains(jacobians)
    np.testing.assert_allclose(norm, np.linalg.norm(jacobians.reshape(-1, 4, 4), 2, axis=(1, 2)))
    assert (radius <= norm * (1 + 1e-9)).all()


def test_only_so_many_time_steps_are_analysed():
    jacobians = np.arange(1.0, 41.0).reshape(2, 20, 1, 1)
    radius, _ = jacobian_gains(jacobians, max_steps=10)
    assert len(set(radius.tolist())) == 10
    assert set(radius) <= set(jacobians.ravel())
    assert len(jacobian_gains(jacobians, max_steps=None)[0]) == 40


# --- what all measures of Jacobians have in common ----------------------------------------------


@given(seeds)
def test_measures_of_jacobians_do_not_depend_on_the_axes(seed):
    rng = np.random.default_rng(seed)
    jacobians, turn = random_steps(rng), rotation(rng, 4)
    order = np.eye(4)[rng.permutation(4)]
    for axes in (turn, order):
        turned = axes @ jacobians @ axes.T
        for one, other in zip(jacobian_gains(jacobians), jacobian_gains(turned), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
        np.testing.assert_allclose(
            memory_horizon(jacobians).norms, memory_horizon(turned).norms, rtol=1e-6
        )
        full, again = (lyapunov_exponents(j, count=4) for j in (jacobians, turned))
        np.testing.assert_allclose(full.sum(axis=1), again.sum(axis=1))
        apart = -np.diff(full, axis=1).max() * 7 > 0.3
        if apart:
            np.testing.assert_allclose(full, again, atol=1e-4)


@given(seeds, st.sampled_from([1e-3, 60.0]))
def test_measures_of_jacobians_scale_with_the_unit_of_time(seed, unit):
    rng = np.random.default_rng(seed)
    jacobians, dt = random_steps(rng, gain=0.7), intervals(rng, 3, 8)
    np.testing.assert_allclose(
        lyapunov_exponents(jacobians, time_delta=unit * dt),
        lyapunov_exponents(jacobians, time_delta=dt) / unit,
    )
    one, other = (memory_horizon(jacobians, time_delta=d) for d in (dt, unit * dt))
    assert other.time == pytest.approx(unit * one.time)
    assert other.steps == one.steps
    plain = lyapunov_exponents(jacobians)
    np.testing.assert_allclose(
        plain, lyapunov_exponents(jacobians, time_delta=np.ones((3, 8))), rtol=1e-9
    )


@given(seeds, st.lists(st.integers(2, 8), min_size=3, max_size=3))
def test_padding_changes_no_measure_of_jacobians(seed, lengths):
    rng = np.random.default_rng(seed)
    jacobians, dt = random_steps(rng), intervals(rng, 3, 8)
    wide = padded(rng, jacobians, [n - 1 for n in lengths])
    wide_dt, mask = padded(rng, dt, lengths), mask_of(lengths, 11)
    exponents = lyapunov_exponents(wide, time_delta=wide_dt, mask=mask)
    memory = memory_horizon(wide, time_delta=wide_dt, mask=mask)
    gains = jacobian_gains(wide, mask=mask)
    for s, n in enumerate(lengths):
        alone = {"time_delta": dt[s : s + 1, :n]}
        own = jacobians[s : s + 1, : n - 1]
        np.testing.assert_allclose(exponents[s], lyapunov_exponents(own, **alone)[0], rtol=1e-5)
        np.testing.assert_allclose(memory.norms[s, :n], memory_horizon(own, **alone).norms[0])
        assert np.isnan(memory.norms[s, n:]).all()
    own = [jacobians[s, : n - 1] for s, n in enumerate(lengths)]
    for found, expected in zip(gains, jacobian_gains(np.concatenate(own)[None]), strict=True):
        np.testing.assert_allclose(found, expected)


def test_sequences_with_nan_are_skipped_and_counted():
    rng = np.random.default_rng(5)
    jacobians = random_steps(rng)
    broken = jacobians.copy()
    broken[1, 3, 0, 2] = np.nan
    exponents = lyapunov_exponents(broken)
    assert np.isnan(exponents[1]).all()
    np.testing.assert_allclose(exponents[[0, 2]], lyapunov_exponents(jacobians)[[0, 2]], rtol=1e-6)
    memory, others = memory_horizon(broken), memory_horizon(jacobians[[0, 2]])
    np.testing.assert_allclose(memory.curve, others.curve)
    assert (memory.sequences, memory.non_finite, memory.steps) == (2, 1, others.steps)
    assert len(jacobian_gains(broken)[0]) == len(jacobian_gains(jacobians)[0]) - 1
    nothing = memory_horizon(np.full((2, 3, 1, 1), np.inf))
    assert (nothing.sequences, nothing.non_finite, len(nothing.curve)) == (0, 2, 0)
    assert math.isnan(nothing.steps)


def test_shapes_that_do_not_fit_are_reported():
    jacobians = np.ones((2, 3, 4, 4))
    for function in (lyapunov_exponents, memory_horizon, jacobian_gains):
        with pytest.raises(ValueError, match=r"jacobians have shape \(2, 3, 4\)"):
            function(np.ones((2, 3, 4)))
        with pytest.raises(ValueError, match=r"mask has shape \(2, 3\): pass \(2, 4\)"):
            function(jacobians, mask=np.ones((2, 3), bool))
    with pytest.raises(ValueError, match=r"time_delta has shape \(2, 3\): pass \(2, 4\)"):
        lyapunov_exponents(jacobians, time_delta=np.ones((2, 3)))
    with pytest.raises(ValueError, match="count=0"):
        lyapunov_exponents(jacobians, count=0)
    with pytest.raises(ValueError, match="same samples"):
        state_drift(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="one time step"):
        autocorrelation_times(np.ones((3, 1, 2)))


# --- autocorrelation time -----------------------------------------------------------------------


@pytest.mark.parametrize("regular", [True, False])
def test_autocorrelation_time_of_a_leaky_bank_is_its_time_constant(regular):
    rng = np.random.default_rng(6)
    dt = np.ones((400, 64)) if regular else intervals(rng, 400, 64)
    tau = np.array([0.4, 1.0, 3.0, 8.0])
    found = autocorrelation_times(white_leaky(rng, dt, np.repeat(tau, 8)), time_delta=dt)
    # One unit's has a standard error of 2 to 5 %.
    np.testing.assert_allclose(found.values.reshape(4, 8).mean(axis=1), tau, rtol=0.05)
    assert found.undecayed == 0


def test_autocorrelation_time_has_no_large_bias_in_a_batch_of_common_size():
    rng = np.random.default_rng(7)
    tau = np.repeat([0.5, 2.0, 6.0], 100)
    dt = intervals(rng, 16, 32)
    found = autocorrelation_times(white_leaky(rng, dt, tau), time_delta=dt)
    np.testing.assert_allclose(
        np.median(np.asarray(found).reshape(3, 100), axis=1), [0.5, 2.0, 6.0], rtol=0.12
    )


def test_a_variance_that_still_grows_is_no_forgetting():
    # From a state of 0 on, units of long time constants are far from their final variance.
    states = white_leaky(np.random.default_rng(17), np.ones((2000, 6)), np.full(16, 10.0))
    assert np.mean(autocorrelation_times(states)) == pytest.approx(10.0, rel=0.05)


def test_white_noise_has_no_autocorrelation_and_constants_of_sequences_do_not_decay():
    rng = np.random.default_rng(8)
    states = rng.normal(size=(64, 20, 3))
    states[..., 1] = rng.normal(size=(64, 1))
    states[..., 2] = np.linspace(0, 1, 20)  # The same in all sequences.
    found = autocorrelation_times(states)
    assert found[0] < 0.5
    assert found[1] == found.longest == pytest.approx(190)
    assert math.isnan(found[2])
    assert found.undecayed == 0.5


@given(seeds)
def test_autocorrelation_time_scales_with_time_and_not_with_the_state(seed):
    rng = np.random.default_rng(seed)
    dt = intervals(rng, 6, 12)
    states = white_leaky(rng, dt, np.array([1.0, 4.0, 2.0]))
    found = np.asarray(autocorrelation_times(states, time_delta=dt))
    changed = 5 * states[..., ::-1] - np.sin(np.arange(12))[:, None]
    again = np.asarray(autocorrelation_times(changed, time_delta=60 * dt))
    np.testing.assert_allclose(again, 60 * found[::-1], rtol=1e-6)


@given(seeds, st.lists(st.integers(2, 10), min_size=5, max_size=5).filter(lambda n: max(n) > 4))
def test_padding_changes_no_measure_of_states(seed, lengths):
    rng = np.random.default_rng(seed)
    dt = intervals(rng, 5, max(lengths))
    states = white_leaky(rng, dt, np.array([1.0, 3.0]))
    mask = mask_of(lengths, max(lengths))
    wide, wide_dt = padded(rng, states, lengths), padded(rng, dt, lengths)
    more = mask_of(lengths, wide.shape[1])
    for found, expected in (
        (
            autocorrelation_times(wide, time_delta=wide_dt, mask=more).values,
            autocorrelation_times(states, time_delta=dt, mask=mask).values,
        ),
        (
            corrected_participation_ratio(wide, mask=more),
            corrected_participation_ratio(states, mask=mask),
        ),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_state_that_is_not_finite_leaves_the_clock_alone():
    rng = np.random.default_rng(9)
    dt = np.ones((200, 24))
    states = white_leaky(rng, dt, np.array([3.0]))
    states[:, 1::3] = np.nan
    np.testing.assert_allclose(autocorrelation_times(states, time_delta=dt), [3.0], rtol=0.1)


# --- participation ratio ------------------------------------------------------------------------


def plain_ratio(states):
    spectrum = np.linalg.eigvalsh(np.cov(states.reshape(-1, states.shape[-1]).T))
    return spectrum.sum() ** 2 / (spectrum**2).sum()


def by_all_choices(states):
    """The U-statistics as they are defined: means over all choices of different sequences."""
    second = np.einsum("bti,btj->bij", states, states) / states.shape[1]
    mean = states.mean(axis=1)
    power = np.trace(second, axis1=1, axis2=2)

    def over(count, term):
        return np.mean(
            [term(*chosen) for chosen in itertools.permutations(range(len(states)), count)]
        )

    four = over(4, lambda i, j, k, m: (mean[i] @ mean[j]) * (mean[k] @ mean[m]))
    square = over(2, lambda i, j: (second[i] * second[j]).sum())
    square += four - 2 * over(3, lambda i, j, k: mean[i] @ second[j] @ mean[k])
    trace = over(2, lambda i, j: power[i] * power[j])
    trace += four - 2 * over(3, lambda i, j, k: power[i] * (mean[j] @ mean[k]))
    return trace / square


def test_participation_ratio_is_that_of_all_choices_of_sequences():
    rng = np.random.default_rng(10)
    states = rng.normal(size=(6, 5, 3)) @ rng.normal(size=(3, 3)) + rng.normal(size=3)
    assert corrected_participation_ratio(states) == pytest.approx(by_all_choices(states))


def test_participation_ratio_sees_the_dimensions_that_slow_states_hide():
    rng = np.random.default_rng(11)
    scale = np.repeat([1.0, 0.5], 12)
    true = (scale**2).sum() ** 2 / (scale**4).sum()
    plain, corrected = [], []
    for _ in range(40):
        state, states = rng.normal(size=(24, 24)), []
        for _ in range(20):
            state = 0.98 * state + math.sqrt(1 - 0.98**2) * rng.normal(size=state.shape)
            states.append(scale * state)
        plain.append(plain_ratio(np.stack(states, axis=1)))
        corrected.append(corrected_participation_ratio(np.stack(states, axis=1)))
    assert np.mean(plain) < 0.75 * true
    assert np.mean(corrected) == pytest.approx(true, rel=0.05)


def test_participation_ratio_of_few_independent_samples():
    rng = np.random.default_rng(12)
    found = [
        (plain_ratio(x), corrected_participation_ratio(x))
        for x in rng.normal(size=(60, 64, 1, 32)) * np.r_[np.ones(16), np.zeros(16)]
    ]
    plain, corrected = np.mean(found, axis=0)
    assert plain < 13.5  # About D / (1 + D / N).
    assert corrected == pytest.approx(16, rel=0.04)


@given(seeds)
def test_participation_ratio_does_not_depend_on_axes_offset_and_scale(seed):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(6, 4, 5)) * np.arange(1, 6)
    turned = 1e-2 * states @ rotation(rng, 5) + rng.normal(size=5)
    found = corrected_participation_ratio(states)
    np.testing.assert_allclose(corrected_participation_ratio(turned), found, rtol=1e-5)
    assert math.isnan(found) or 1 <= found <= 5


def test_participation_ratio_needs_four_sequences_that_move():
    states = np.random.default_rng(13).normal(size=(4, 6, 3))
    assert math.isnan(corrected_participation_ratio(states[:3]))
    assert math.isnan(corrected_participation_ratio(np.full((5, 6, 3), 0.1)))
    line = states[..., :1] * np.array([1.0, 2.0, -1.0])
    assert corrected_participation_ratio(line) == pytest.approx(1.0)


# --- drift --------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 6))
def test_rotated_scaled_and_shifted_states_have_not_drifted(seed, units):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(30, units)) * rng.uniform(0.1, 2, units)
    turned = 3 * states @ rotation(rng, units) + rng.normal(size=units)
    drift = state_drift(turned, states)
    assert drift.cka == pytest.approx(1)
    assert drift.procrustes == pytest.approx(0, abs=1e-9)


@given(seeds)
def test_drift_agrees_with_scipy_and_kernels(seed):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 25, 4))
    drift = state_drift(one, other)
    assert drift.procrustes == pytest.approx(procrustes(one, other)[2])
    x, y = (a - a.mean(axis=0) for a in (one, other))
    _, aligned = orthogonal_procrustes(x / np.linalg.norm(x), y / np.linalg.norm(y))
    assert drift.procrustes == pytest.approx(1 - aligned**2)
    # CKA as it is defined, by centred kernels.
    centring = np.eye(25) - 1 / 25
    k, m = (centring @ a @ a.T @ centring for a in (one, other))
    assert drift.cka == pytest.approx((k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m)))
    assert state_drift(other, one).cka == pytest.approx(drift.cka)
    assert state_drift(other, one).procrustes == pytest.approx(drift.procrustes)


def test_the_bias_of_cka_is_as_the_docstring_says():
    rng = np.random.default_rng(14)
    for samples, expected in ((1024, 0.06), (64, 0.5)):
        found = [state_drift(*rng.normal(size=(2, samples, 64))).cka for _ in range(3)]
        assert np.mean(found) == pytest.approx(expected, abs=0.01)


def test_drift_skips_what_is_not_finite_and_knows_no_constant_states():
    one, other = np.random.default_rng(15).normal(size=(2, 20, 3))
    expected = state_drift(np.delete(one, [2, 7], 0), np.delete(other, [2, 7], 0))
    one[2], other[7, 1] = np.nan, np.inf
    drift = state_drift(one, other)
    assert (drift.cka, drift.procrustes, drift.samples) == (expected.cka, expected.procrustes, 18)
    assert math.isnan(state_drift(np.ones((5, 2)), other[:5]).cka)
    assert math.isnan(state_drift(np.full((5, 2), np.nan), other[:5]).procrustes)


# --- correlation with the target ----------------------------------------------------------------


@given(seeds, st.integers(3, 30))
def test_correlations_are_numpys(seed, batch):
    rng = np.random.default_rng(seed)
    states, target = rng.normal(size=(batch, 5)), rng.normal(size=batch)
    found = unit_correlations(states, target)
    np.testing.assert_allclose(found, np.corrcoef(states.T, target)[-1, :-1])
    assert found.top == int(np.argmax(np.abs(np.corrcoef(states.T, target)[-1, :-1])))
    again = unit_correlations(-3 * states[:, ::-1] + 1, 2 * target - 5)
    np.testing.assert_allclose(again.values, -np.asarray(found)[::-1], atol=1e-9)
    assert again.chance == found.chance


@pytest.mark.parametrize(("batch", "units"), [(6, 8), (16, 64), (32, 3)])
def test_chance_exceeds_its_level_in_five_percent_of_cases(batch, units):
    rng = np.random.default_rng(batch)
    beyond = [
        np.abs(found.values).max() > found.chance
        for found in (
            unit_correlations(rng.normal(size=(batch, units)), rng.normal(size=batch))
            for _ in range(2000)
        )
    ]
    # Bonferroni's bound, nearly reached by independent units; SE 0.5 %.
    assert 0.03 < np.mean(beyond) < 0.065


def test_correlations_that_do_not_exist():
    rng = np.random.default_rng(16)
    states, target = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=8)
    states[:, 1] = 0.1
    found = unit_correlations(states, target)
    assert np.isnan(found.values).tolist() == [False, True, False]
    nothing = unit_correlations(states, np.full(8, 0.1))
    assert nothing.top is None
    assert np.isnan(nothing.values).all()
    target[3] = np.nan
    kept = np.arange(8) != 3
    np.testing.assert_allclose(
        unit_correlations(states, target)[0], np.corrcoef(states[kept, 0], target[kept])[0, 1]
    )
    assert unit_correlations(states[:2], target[:2]).chance == 1.0


# --- the picture --------------------------------------------------------------------------------


def correlations(units=12, batch=16, constant=0):
    rng = np.random.default_rng(units)
    target = rng.normal(size=batch)
    states = rng.normal(size=(batch, units)) + target[:, None] * np.linspace(-1, 2, units)
    states[:, :constant] = 0
    return unit_correlations(states, target)


def some_memory(keep=0.8, steps=20):
    return memory_horizon(np.full((2, steps - 1, 1, 1), keep))


PICTURES: list[tuple[Any, dict[str, Any]]] = [
    (correlations(), {"memory": some_memory(), "first": some_memory(0.5).curve, "target": "loss"}),
    (correlations(), {"memory": some_memory(0.9), "first": some_memory(0.5).curve}),
    (correlations(48), {"memory": some_memory(0.9, 200), "decades": (10, 0)}),
    (correlations(200), {"memory": some_memory(1.3), "first": some_memory(0.01).curve}),
    (correlations(12, constant=3), {"target": "gÅ " * 60}),
    (correlations(3, constant=3), {"memory": some_memory(1.0)}),
    (correlations(1, batch=2), {"memory": memory_horizon(np.full((1, 2, 1, 1), np.nan))}),
    (correlations(12), {"memory": memory_horizon(np.zeros((1, 5, 2, 2)))}),
]
pictures = pytest.mark.parametrize(("data", "options"), PICTURES)


@pictures
def test_pictures_are_readable(data, options):
    figure = plot_dynamics(data, step=10_000_000, **options)
    check_text(figure)
    assert figure.get_size_inches().tolist() == [6.4, 4.3]
    assert title(figure).endswith("step 10,000,000")
    assert len(figure.axes) == (2 if "memory" in options else 1)


def test_the_picture_shows_the_numbers():
    data, memory, first = correlations(constant=2), some_memory(0.8), some_memory(0.5).curve
    figure = plot_dynamics(data, memory, first=first, target="loss")
    left, right = figure.axes
    lines = [line.get_ydata() for line in left.lines if len(line.get_xdata()) > 2]
    np.testing.assert_allclose(sorted(lines, key=lambda y: y[-1])[1], np.log10(memory.curve))
    np.testing.assert_allclose(sorted(lines, key=lambda y: y[-1])[0], np.log10(first))
    assert left.get_ylim() == (-6, 0)
    known = np.sort(data.values[np.isfinite(data.values)])[::-1]
    bars = sum(patch.get_data().values for patch in right.patches)
    np.testing.assert_allclose(bars, known)
    (beyond,) = [p for p in right.patches if p.get_data().values.max() == known[0]]
    assert (beyond.get_data().values != 0).sum() == (np.abs(known) > data.chance).sum()
    assert right.get_xlim() == (0, 12)
    levels = {round(float(line.get_ydata()[0]), 6) for line in right.lines}
    assert {round(data.chance, 6), round(-data.chance, 6)} <= levels
    shown = words(figure)
    assert "1/e after 4.48 steps" in shown  # -1 / ln 0.8
    assert f"{(np.abs(known) > data.chance).sum()} of 10 beyond chance" in shown
    assert f"unit {data.top}" in shown
    assert "r with loss" in shown


def test_memory_that_does_not_end_is_reported():
    assert "above 1/e for all 19 steps" in words(plot_dynamics(correlations(), some_memory(0.99)))
    assert "first" not in [
        t.get_text() for t in texts(plot_dynamics(correlations(), some_memory()))
    ]


@pytest.mark.parametrize(
    ("curve", "decades"),
    [([1, 0.5], (1, 0)), ([1, 0.05], (2, 0)), ([1, 0.01], (2, 0)), ([1, 30], (1, 2)),
     ([1, 0, np.nan], (10, 0)), ([1, np.inf], (1, 10)), ([1, 1], (1, 0)), ([], (1, 0))],
)  # fmt: skip
def test_decades(curve, decades):
    assert needed_decades(curve) == decades


@pytest.mark.parametrize("decades", [(0, 0), (1, -1)])
def test_decades_that_are_none(decades):
    with pytest.raises(ValueError, match="decades="):
        plot_dynamics(correlations(), some_memory(), decades=decades)


def test_next_pictures_are_those_of_fresh_figures():
    check_redraws(plot_dynamics, *PICTURES)


def test_frames_are_kept(monkeypatch):
    made = []
    new = Page.__init__
    monkeypatch.setattr(Page, "__init__", lambda self, *a: made.append(a) or new(self, *a))
    redrawer = Redrawer()
    for step, keep in enumerate((0.8, 0.85, 0.9) * 2):
        if step == 3:
            # By now it is known which texts change.
            made.clear()
        options = {"memory": some_memory(keep), "decades": (5, 0), "step": step}
        redrawer.png("tag", plot_dynamics, correlations(), options)
    assert not made


def test_the_picture_does_not_depend_on_the_users_style():
    import matplotlib

    data, options = PICTURES[0]
    plain = to_png(plot_dynamics(data, **options))
    with matplotlib.rc_context():
        matplotlib.style.use("dark_background")
        assert to_png(plot_dynamics(data, **options)) == plain


# --- the callback, on states that are known -----------------------------------------------------


@dataclass
class Seen:
    """An observation of a leaky bank with white input."""

    tau: Any
    step: int = 1
    batch: int = 8
    steps: int = 12
    mask: Any = None
    time_delta: Any = None
    jacobians: Any = None
    reverse: bool = False
    names: tuple[str, ...] = ("rnn",)
    target: str = "prediction at last step"
    target_slug: str = ""
    no_cells: str = ""
    asked: list[Any] = field(default_factory=list)

    def __post_init__(self):
        rng = np.random.default_rng(self.step)
        self.dt = intervals(rng, self.batch, self.steps).astype(np.float32)
        self.time_delta = self.dt
        values = white_leaky(rng, self.dt, np.asarray(self.tau)).astype(np.float32)
        self.target_values = values[:, -1, :2].sum(axis=1)
        self.inputs = np.zeros((self.batch, self.steps, 1))
        self.indices, self.whole_batch = np.arange(self.batch), 16
        self.held_out = SimpleNamespace(
            tokens=False, mask_array=np.ones((self.batch, self.steps), bool)
        )
        if self.reverse:  # In the order of the data, which the cell runs through backwards.
            values, self.time_delta = values[:, ::-1], self.dt[:, ::-1]
        self.states = [Trajectory(name, values, None, self.reverse) for name in self.names]

    def limited(self, sequences):
        part = copy.copy(self)
        part.asked.append(sequences)
        part.dt, part.indices = self.dt[:sequences], self.indices[:sequences]
        part.time_delta = None if self.time_delta is None else self.time_delta[:sequences]
        part.mask = None if self.mask is None else self.mask[:sequences]
        return part

    @property
    def extra_passes(self):
        return self

    def with_fewer_steps(self, steps, mask):
        raise ncp.NotApplicable("this bank is of one length")

    def state_jacobian(self, cell):
        if isinstance(self.jacobians, Exception):
            raise self.jacobians
        return leaky_steps(self.dt, np.asarray(self.tau)).astype(np.float32)


def scalars(records):
    return {r.tag: r.value for r in records if isinstance(r, ncp.Scalar)}


def notes(records):
    return [r.message for r in records if isinstance(r, ncp.Note)]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_callback_logs_what_a_leaky_bank_has(reverse):
    tau = [1.5, 1.5, 1.5]
    observation = Seen(tau, reverse=reverse)
    records = list(Dynamics().measure(observation))
    values = scalars(records)
    assert observation.asked == [4]
    for i in (1, 2, 3):
        assert values[f"dynamics/finite_time_lyapunov_{i}"] == pytest.approx(-1 / 1.5, rel=1e-5)
    assert values["dynamics/linear_memory_time"] == pytest.approx(1.5, rel=1e-5)
    a = np.exp(-observation.dt[:4, 1:] / 1.5)
    assert values["dynamics/linear_memory_left"] == pytest.approx(
        float(np.exp(np.log(a).sum(axis=1).mean())), rel=1e-4
    )
    for name in ("radius", "norm"):
        assert values[f"dynamics/{name}_q50"] == pytest.approx(float(np.median(a)), rel=1e-4)
    states = observation.states[0].values[:, ::-1] if reverse else observation.states[0].values
    speed = (np.abs(np.diff(states, axis=1)) / observation.dt[:, 1:, None]).max(axis=(0, 1))
    assert values["dynamics/unit_speed_q50"] == pytest.approx(float(np.median(speed)), rel=1e-5)
    r = np.corrcoef(states[:, -1].T, observation.target_values)[-1, :-1]
    assert values["dynamics/target_correlation_max"] == pytest.approx(np.abs(r).max(), rel=1e-5)
    assert values["dynamics/nonfinite"] == 0
    assert values["dynamics/cka_first"] == pytest.approx(1)
    assert values["dynamics/procrustes_previous"] == pytest.approx(0, abs=1e-9)
    (exponent,) = [r for r in records if getattr(r, "tag", "") == "dynamics/finite_time_lyapunov_1"]
    assert exponent.ci == pytest.approx((-1 / 1.5, -1 / 1.5), rel=1e-4)


def test_drift_is_to_the_first_and_to_the_previous_snapshot():
    callback, tau = Dynamics(jacobians=False), [1.0, 2.0, 4.0]
    seen = [Seen(tau, step=s) for s in (1, 2, 3)]
    found = [scalars(callback.measure(o)) for o in seen]
    first, second, third = (o.states[0].values.reshape(-1, 3) for o in seen)
    assert found[2]["dynamics/cka_first"] == pytest.approx(state_drift(third, first).cka)
    assert found[2]["dynamics/cka_previous"] == pytest.approx(state_drift(third, second).cka)
    assert found[2]["dynamics/procrustes_first"] == pytest.approx(procrustes(third, first)[2])
    assert found[1]["dynamics/cka_previous"] == found[1]["dynamics/cka_first"]


def test_speeds_may_be_per_step():
    observation = Seen([1.0, 3.0])
    values = scalars(Dynamics(per_step=True, jacobians=False).measure(observation))
    speed = np.abs(np.diff(observation.states[0].values, axis=1)).max(axis=(0, 1))
    assert values["dynamics/unit_speed_q50"] == pytest.approx(float(np.median(speed)), rel=1e-5)


def test_without_time_delta_time_is_counted_in_steps():
    observation = Seen([2.0, 2.0])
    observation.time_delta = None
    values = scalars(Dynamics().measure(observation))
    assert "dynamics/linear_memory_time" not in values
    # Of each sequence the exponent is the mean of ln a.
    expected = np.log(np.exp(-observation.dt[:4, 1:] / 2.0)).mean()
    assert values["dynamics/finite_time_lyapunov_1"] == pytest.approx(float(expected), rel=1e-4)


def test_a_cell_that_cannot_be_run_again_is_analysed_without_jacobians():
    callback = Dynamics()
    observation = Seen([1.0, 2.0], jacobians=ncp.NotApplicable("it depends on the moon"))
    records = list(callback.measure(observation))
    assert any("it depends on the moon" in note for note in notes(records))
    (figure,) = [r for r in records if isinstance(r, ncp.Figure)]
    assert len(figure.plot(figure.data, **figure.options).axes) == 1
    values = scalars(records)
    assert "dynamics/cka_first" in values
    assert not any(word in tag for tag in values for word in ("lyapunov", "memory", "stability"))
    list(callback.measure(observation))
    assert len(observation.asked) == 1  # It is not tried in vain again.
    assert not any("lyapunov" in t for t in scalars(Dynamics(jacobians=False).measure(Seen([1.0]))))


def test_names_of_cells_and_targets_are_in_the_tags():
    observation = Seen([1.0, 2.0], names=("encoder.rnn", "decoder.rnn"))
    observation.target, observation.target_slug = "loss", "_loss"
    tags = {r.tag for r in Dynamics().measure(observation) if not isinstance(r, ncp.Note)}
    assert "dynamics_encoder/cka_first" in tags
    assert "dynamics_decoder_loss/overview" in tags
    assert "dynamics_encoder_loss/target_correlation_max" in tags
    assert "_ncp/dynamics_decoder_loss_target_correlation" in tags
    assert not any("loss" in tag for tag in tags if "correlation" not in tag
                   and not tag.endswith(("overview", "beyond_chance")))  # fmt: skip


def test_what_padding_holds_is_not_analysed():
    lengths = [12, 9, 12, 7, 10, 12, 8, 11]
    mask = mask_of(lengths, 12)
    clean, dirty = (Seen([1.0, 3.0], mask=mask) for _ in range(2))
    dirty.states[0].values[~mask] = np.nan
    dirty.time_delta = np.where(mask, dirty.dt, np.nan)
    one, other = (scalars(Dynamics().measure(o)) for o in (clean, dirty))
    assert one == pytest.approx(other)
    r = np.corrcoef(
        clean.states[0].values[np.arange(8), np.array(lengths) - 1].T, clean.target_values
    )[-1, :-1]
    assert one["dynamics/target_correlation_max"] == pytest.approx(np.abs(r).max(), rel=1e-5)


def test_what_is_not_finite_is_counted():
    observation = Seen([1.0, 2.0])
    observation.states[0].values[2, 3] = np.nan
    records = list(Dynamics(jacobians=False).measure(observation))
    assert scalars(records)["dynamics/nonfinite"] == 1
    assert any("NaN" in note for note in notes(records))
    observation.states[0].values[:] = np.nan
    assert set(scalars(Dynamics().measure(observation))) == {"dynamics/nonfinite"}


def test_constant_states_and_targets_are_reported_and_do_not_stop_it():
    observation = Seen([1.0, 2.0])
    observation.states[0].values[:] = 0.5
    records = list(Dynamics(jacobians=False).measure(observation))
    assert any("the same for all sequences" in note for note in notes(records))
    values = scalars(records)
    assert "dynamics/cka_first" not in values
    assert values["dynamics/unit_speed_q90"] == 0


def test_few_sequences_have_no_corrected_participation_ratio():
    records = list(Dynamics(jacobians=False).measure(Seen([1.0, 2.0], batch=3)))
    assert any("needs at least 4" in note for note in notes(records))
    assert math.isnan(scalars(records)["dynamics/participation_ratio_corrected"])


def test_many_states_are_thinned_out_and_the_state_survives_json():
    callback = Dynamics(jacobians=True)
    list(callback.measure(Seen([1.0, 2.0, 3.0], batch=100, steps=40)))
    state = callback.state_dict()
    assert state["cells"]["rnn"]["first"].shape == (512, 3)

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    other = Dynamics()
    other.load_state_dict(json.loads(json.dumps(plain(state))))
    later = Seen([1.0, 2.0, 3.0], step=2, batch=100, steps=40)
    expected, found = (list(c.measure(later)) for c in (callback, other))
    assert scalars(found) == scalars(expected)
    pictures = [[r for r in records if isinstance(r, ncp.Figure)] for records in (found, expected)]
    one, two = (to_png(p.plot(p.data, **p.options)) for (p,) in pictures)
    assert one == two


def test_another_batch_begins_anew():
    callback = Dynamics(jacobians=False)
    list(callback.measure(Seen([1.0, 2.0])))
    records = list(callback.measure(Seen([1.0, 2.0], batch=5, step=2)))
    assert any("60 states of 2 units" in note and "96 of 2" in note for note in notes(records))
    assert scalars(records)["dynamics/cka_first"] == pytest.approx(1)


def test_axes_of_the_pictures_never_shrink():
    callback, decades = Dynamics(), []
    for step, tau in enumerate((5.0, 0.2, 50.0, 0.1), start=1):
        (figure,) = [r for r in callback.measure(Seen([tau, tau], step=step))
                     if isinstance(r, ncp.Figure)]  # fmt: skip
        decades.append(figure.options["decades"])
    assert decades == sorted(decades)
    assert decades[0] < decades[-1]


@pytest.mark.parametrize("keyword", ["max_jacobian_sequences", "exponents"])
def test_arguments_are_checked(keyword):
    with pytest.raises(ValueError, match=f"{keyword}=0"):
        Dynamics(**{keyword: 0})


def test_a_model_to_which_it_does_not_apply():
    observation = Seen([1.0], names=(), no_cells="there is no cell")
    with pytest.raises(ncp.NotApplicable, match="there is no cell"):
        list(Dynamics().measure(observation))
    with pytest.raises(ncp.NotApplicable, match="one time step"):
        list(Dynamics().measure(Seen([1.0], steps=1)))


# --- whole looks at models ----------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, rnn, units=6):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(units, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        if isinstance(self.rnn, CfC):
            return self.head(self.rnn(x, time_delta)[0])
        return self.head(self.rnn(x))


class Backwards(nn.Module):
    """A hand-written loop over a cell, from the last step to the first."""

    def __init__(self, units=4):
        super().__init__()
        self.cell, self.head = Leak(units), nn.Linear(units, 2)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        state, states = mx.zeros((x.shape[0], 4)), []
        for t in reversed(range(x.shape[1])):
            state = self.cell(x[:, t], state, time_delta[:, t, None])
            states.append(state)
        return self.head(mx.stack(states[::-1], axis=1))


class Leak(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.weight = mx.random.normal((3, units))

    def __call__(self, x: mx.array, state: mx.array, dt: mx.array) -> mx.array:
        keep = mx.exp(-dt / 2.5)
        return keep * state + (1 - keep) * (x @ self.weight)


def run(model, callback, steps=2, length=6, mask=None, batch=6):
    rng = np.random.default_rng(0)
    held_out = ncp.HeldOutBatch(
        rng.standard_normal((batch, length, 3)).astype(np.float32),
        rng.uniform(0.5, 2.0, (batch, length)).astype(np.float32),
        mask=mask,
    )
    writer = ncp.MemoryWriter()
    options = {"writer": writer, "every": 1, "on_error": "raise"}
    with ncp.Monitor(model, held_out, [callback], **options) as monitor:
        for step in range(1, steps + 1):
            monitor.on_step_end(step)
        said = monitor.notes
    return writer, said, held_out


def made(kind):
    mx.random.seed(0)
    return Net(CfC(3, 6, backbone_units=5) if kind == "cfc" else nn.GRU(3, 6))


@pytest.mark.parametrize("kind", ["cfc", "gru"])
def test_models_are_analysed(kind):
    writer, said, _ = run(made(kind), Dynamics())
    assert told(said) == ()
    promises = promised(Dynamics)
    aside = ("monitor/", "findings/", "_ncp/findings", "_ncp/run")
    records = [r for s, r in writer.records if s > 0 and not r.tag.startswith(aside)]
    kinds = {ncp.Scalar: "scalar", ncp.Histogram: "histogram", ncp.Figure: "image",
             ncp.Array: "array"}  # fmt: skip
    guide = [r.markdown for _, r in writer.records if r.tag == "monitor/guide"][-1]
    for record in records:
        fitting = [t for t in promises if pattern(t).match(record.tag)]
        assert {promises[t] for t in fitting} >= {kinds[type(record)]}, record.tag
        assert record.tag.startswith("_ncp/") or f"`{clean_tag(record.tag)}`" in guide, record.tag
    for tag in promises:
        assert any(pattern(tag).match(r.tag) for r in records), tag
    for record in records:
        if isinstance(record, ncp.Figure):
            check_text(record.plot(record.data, **record.options))
        if isinstance(record, ncp.Scalar):
            assert math.isfinite(record.value), record.tag


@pytest.mark.parametrize("kind", ["cfc", "gru"])
def test_memory_is_the_slope_of_the_last_state(kind):
    """The Jacobian of the last state by differences of whole runs, from a nudged state on."""
    model = made(kind)
    writer, _, held_out = run(model, Dynamics(max_jacobian_sequences=1), steps=1, batch=1)
    x, dt = (mx.array(np.array(a)) for a in (held_out.inputs, held_out.time_delta))
    units, step, last = 6, 1e-2, 5

    def from_step(k, state):
        """The last state, from a state k steps before it on."""
        for t in range(last + 1 - k, last + 1):
            at = x[:, t : t + 1]
            if kind == "cfc":
                state = model.rnn(at, dt[:, t : t + 1], state)[1]
            else:
                state = model.rnn(at, state)[:, 0]
        return np.array(state, np.float64)

    def state_after(t):
        if kind == "cfc":
            return model.rnn(x[:, : t + 1], dt[:, : t + 1])[1]
        return model.rnn(x[:, : t + 1])[:, t]

    (curve,) = [r.values for _, r in writer.records if r.tag == "_ncp/dynamics_linear_memory"]
    for k in range(6):
        before = state_after(last - k)
        columns = []
        for unit in range(units):
            nudge = mx.array(step * np.eye(units)[unit : unit + 1], mx.float32)
            columns.append((from_step(k, before + nudge) - from_step(k, before - nudge)) / step / 2)
        assert curve[k] == pytest.approx(np.linalg.norm(columns) / math.sqrt(units), rel=5e-3)


def test_a_cell_that_runs_backwards_forgets_as_it_should():
    mx.random.seed(1)
    mask = mask_of([6, 4, 5, 6, 3, 6], 6)
    for lengths in (None, mask):
        writer, said, _ = run(Backwards(), Dynamics(), steps=1, length=6, mask=lengths)
        assert told(said) == ()
        assert writer.scalars("dynamics/finite_time_lyapunov_1")[0][1] == pytest.approx(
            -1 / 2.5, rel=1e-4
        )
        assert writer.scalars("dynamics/linear_memory_time")[0][1] == pytest.approx(2.5, rel=1e-4)


def test_masked_sequences_are_spread_with_their_masks():
    lengths = [6, 2, 5, 6, 3, 6, 4, 2]
    mx.random.seed(2)
    held_out_mask = mask_of(lengths, 6)
    writer, _, held_out = run(
        made("cfc"), Dynamics(max_jacobian_sequences=3), mask=held_out_mask, batch=8
    )
    (exponents,) = [r.values for s, r in writer.records
                    if r.tag == "_ncp/dynamics_finite_time_lyapunov" and s == 1]  # fmt: skip
    rows = held_out.spread(3)
    for row, expected in zip(rows, exponents, strict=True):
        n = lengths[row]
        inputs, delta = (np.array(a)[[row], :n] for a in (held_out.inputs, held_out.time_delta))
        alone = ncp.MemoryWriter()
        one = ncp.HeldOutBatch(inputs, delta)
        with ncp.Monitor(
            made("cfc"), one, [Dynamics()], writer=alone, every=1, on_error="raise"
        ) as monitor:
            monitor.on_step_end(1)
        found = [alone.scalars(f"dynamics/finite_time_lyapunov_{i}")[0][1] for i in (1, 2, 3)]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_resumed_run_logs_what_an_uninterrupted_one_would():
    model = made("cfc")
    held_out = ncp.HeldOutBatch(
        np.random.default_rng(0).standard_normal((6, 5, 3)).astype(np.float32), np.ones((6, 5))
    )

    def monitor(writer):
        return ncp.Monitor(model, held_out, [Dynamics()], writer=writer, every=1, on_error="raise")

    whole, second = ncp.MemoryWriter(), ncp.MemoryWriter()
    with monitor(whole) as run:
        run.on_step_end(1)
        state = json.loads(json.dumps(run.state_dict()))
        model.head.weight = model.head.weight * 2
        model.rnn.update(
            nn.utils.tree_map(lambda a: 1.1 * a, model.rnn.parameters())
            if hasattr(nn.utils, "tree_map")
            else {}
        )
        run.on_step_end(2)
    with monitor(second) as run:
        run.load_state_dict(state)
        run.on_step_end(2)
    tags = [t for t in whole.tags if t.startswith("dynamics/") and whole.scalars(t)]
    assert len(tags) > 20
    for tag in tags:
        assert dict(second.scalars(tag))[2] == dict(whole.scalars(tag))[2], tag


def test_correlations_are_an_array_with_company():
    found = UnitCorrelations(np.array([0.5, np.nan, -0.75]), 0.6, 9)
    assert found.top == 2
    np.testing.assert_array_equal(np.asarray(found), found.values)


# --- exponents without the transient, and the memory of the target --------------------------------


@pytest.mark.parametrize("length", [4, 8, 32])
def test_a_contracting_map_that_is_not_normal_has_a_negative_stability_exponent(length):
    shear = np.array([[0.9, 5.0], [0.0, 0.9]])
    jacobians = np.broadcast_to(shear, (2, length - 1, 2, 2))
    dt = np.full((2, length), 0.5)
    found = stability_exponents(jacobians, time_delta=dt)
    np.testing.assert_allclose(found, math.log(0.9) / 0.5, rtol=1e-6)
    # Over so few steps the largest singular value grows although every change fades in the end.
    assert (lyapunov_exponents(jacobians)[:, 0] > 0.05).all()


@pytest.mark.parametrize("change", [np.eye(3), np.diag([1.0, 30.0, 900.0])])
def test_the_stability_exponent_is_that_of_the_products_eigenvalues(change):
    rng = np.random.default_rng(3)
    steps = 0.6 * rng.standard_normal((4, 20, 3, 3))
    mask = np.ones((4, 21), bool)
    mask[1, 15:] = False
    found = stability_exponents(change @ steps @ np.linalg.inv(change), mask=mask)
    for b, count in enumerate((20, 14, 20, 20)):
        product = np.linalg.multi_dot([*steps[b, :count][::-1], np.eye(3)])
        expected = math.log(np.abs(np.linalg.eigvals(product)).max()) / count
        assert found[b] == pytest.approx(expected, abs=1e-6)  # Whatever the coordinates.


def test_the_stability_exponent_of_many_units_needs_few_directions():
    rng = np.random.default_rng(0)
    steps = 0.2 * rng.standard_normal((2, 30, 40, 40))
    products = JacobianProducts(
        2, 30, 40, lambda t, v: steps[:, t] @ v, lambda t, v: steps[:, t].transpose(0, 2, 1) @ v
    )
    np.testing.assert_allclose(estimated_stability(products), stability_exponents(steps), atol=2e-3)


class Latch(nn.Module):
    """Hold +1 or -1 once feature 0 of the first step has set it: every slope is 0."""

    class Cell(nn.Module):
        def __call__(self, x, h):
            first = h[:, 1:] == 0
            held = mx.where(first, mx.sign(x[:, :1]), h[:, :1])
            return mx.concatenate([held, mx.ones_like(held)], axis=1)

    def __init__(self):
        super().__init__()
        self.cell = Latch.Cell()

    def __call__(self, x):
        h, out = mx.zeros((len(x), 2)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append(h[:, :1])
        return mx.stack(out, axis=1)


def test_a_latch_has_no_linear_memory_and_remembers_everything():
    rng = np.random.default_rng(0)
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(rng.standard_normal((24, 13, 1)).astype(np.float32))
    with ncp.Monitor(
        Latch(),
        held_out,
        [Dynamics()],
        writer=writer,
        every=1,
        cells="cell",
        horizon=False,
        on_error="raise",
    ) as monitor:
        monitor.on_step_end(1)
    values = {tag: writer.scalars(tag)[0][1] for tag in writer.tags if writer.scalars(tag)}
    assert values["dynamics/target_memory_steps"] == 12  # As far as there is something to remove.
    # Unrelated signs: half of the sequences change by 2, whose RMS is sqrt(2) SDs of a fair coin.
    assert values["dynamics/target_memory_left"] == pytest.approx(math.sqrt(2), abs=0.4)


def test_the_target_of_a_leaky_integrator_forgets_as_its_state_does():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4000, 60))
    weights = math.exp(-1 / 5) ** np.arange(60)[::-1]
    kept = np.array([1, 2, 3, 4, 5, 6, 7, 8, 10, 20])
    values = np.stack([x[:, -m:] @ weights[-m:] for m in kept])
    found = target_memory(kept, values, x @ weights)
    np.testing.assert_allclose(found.curve, np.exp(-kept / 5), rtol=0.06)
    assert found.steps == pytest.approx(5, rel=0.05)
    low, high = found.estimate.ci()
    assert low < 5 < high < low + 1


def test_the_memory_of_the_target_is_that_of_models_run_on_the_last_steps():
    model = made("cfc")
    mask = mask_of([6, 4, 5, 6, 6, 6], 6)
    writer, _, held_out = run(model, Dynamics(jacobians=False), steps=1, length=6, mask=mask)
    (curve,) = [r.values for _, r in writer.records if r.tag == "_ncp/dynamics_target_memory"]
    x, dt = np.array(held_out.inputs), np.array(held_out.time_delta)

    def last(rows):
        return np.array(
            [model(mx.array(a)[None], mx.array(b)[None])[0, -1].tolist() for a, b in rows]
        )

    def log_odds(logits, classes):
        rows = np.arange(len(logits))
        others = np.exp(logits).sum(axis=1) - np.exp(logits[rows, classes])
        return logits[rows, classes] - np.log(others)

    n = mask.sum(axis=1)
    whole = last([(x[b, : n[b]], dt[b, : n[b]]) for b in range(6)])
    output = whole.argmax(axis=1)
    for m, value in curve.T:
        start = np.maximum(n - int(m), 0)
        few = last([(x[b, start[b] : n[b]], dt[b, start[b] : n[b]]) for b in range(6)])
        before = log_odds(whole, output)
        expected = np.sqrt(((log_odds(few, output) - before) ** 2).mean()) / before.std()
        assert value == pytest.approx(expected, rel=1e-4)
