"""The pure functions against closed forms, scikit-learn and SciPy, and invariances."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jackknife import ci_by_leaving_out
from scipy import stats
from scipy.special import ndtr
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from ncp_callbacks.analysis import (
    ACTIVATIONS,
    BackboneReport,
    Basis,
    layer_statistics,
    recognise_activation,
    state_space,
    time_sensitivity,
    transition_statistics,
)
from ncp_callbacks.attribution import (
    Attribution,
    IntegratedGradients,
    summarize,
    temporal_importance,
)
from ncp_callbacks.callbacks.dynamics.analysis import (
    corrected_participation_estimate,
    corrected_participation_ratio,
)
from ncp_callbacks.callbacks.state_space.analysis import explained_variance

pytestmark = pytest.mark.filterwarnings("error")

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
factors = st.floats(1e-3, 1e3)


def close(actual, expected, rtol=1e-9, atol=1e-12):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol)


def close32(actual, expected):
    """For results that are given in float32."""
    close(actual, expected, rtol=2e-6, atol=1e-9)


def same(first, second, but=(), rtol=1e-9, atol=1e-12):
    """Two results agree in every number they hold."""
    for name in type(first).__dataclass_fields__:
        a, b = getattr(first, name), getattr(second, name)
        if name not in but and not isinstance(a, str | tuple | Basis | dict | type(None)):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


def random_mask(rng, batch, steps, least=1):
    lengths = rng.integers(least, steps + 1, size=batch)
    return np.arange(steps) < lengths[:, None]


def rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


# --- temporal importance


BY_SEQUENCE = ("by_sequence", "strength_by_sequence", "lag_by_sequence", "reliability")


@given(seeds)
def test_importance_of_a_linear_model_is_weight_times_input(rng):
    batch, steps, features = 5, 4, 3
    x, w = rng.normal(size=(batch, steps, features)), rng.normal(size=(steps, features))
    result = temporal_importance(x, np.broadcast_to(w, x.shape), target_values=(x * w).sum((1, 2)))
    close32(result.importance, np.abs(w) * np.abs(x).mean(axis=0))
    close32(result.signed, w * x.mean(axis=0))
    close32(result.signed.sum(), result.target_values.mean())
    close32(result.sign_agreement, np.abs(x.mean(axis=0)) / np.abs(x).mean(axis=0))
    shares = np.abs(w * x).mean(axis=0)
    # Weights of one sign or the other may cancel over the time steps of a sequence.
    contributions = np.abs((w * x).sum(axis=1)).mean(axis=0)
    close32(result.feature_share, contributions / contributions.sum())
    close32(result.strength_by_sequence, np.abs(w * x).sum(axis=(1, 2)))
    close32(result.time_share, shares.sum(axis=1) / shares.sum())
    assert (result.sequences, result.non_finite) == (batch, 0)


@given(seeds)
def test_importance_follows_permutations(rng):
    x, g = rng.normal(size=(2, 6, 5, 3))
    mask = random_mask(rng, 6, 5)
    result = temporal_importance(x, g, mask=mask)
    b, f = rng.permutation(6), rng.permutation(3)
    moved = temporal_importance(x[b], g[b], mask=mask[b])
    # Halves are split by the order of the sequences.
    same(moved, result, but=BY_SEQUENCE, rtol=1e-5)
    close32(moved.by_sequence, result.by_sequence[b])
    close32(moved.strength_by_sequence, result.strength_by_sequence[b])
    close32(moved.lag_by_sequence, result.lag_by_sequence[b])
    mixed = temporal_importance(x[..., f], g[..., f], mask=mask)
    close32(mixed.importance, result.importance[:, f])
    close32(mixed.signed, result.signed[:, f])
    close32(mixed.feature_share, result.feature_share[f])
    close32(mixed.time_share, result.time_share)
    close(mixed.entropy, result.entropy, rtol=1e-6)
    close(mixed.mean_lag, result.mean_lag)


@given(seeds, factors, st.sampled_from([-1.0, 1.0]))
def test_importance_scales_with_the_target_and_not_with_units_of_the_input(rng, factor, sign):
    x, g = rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 4, 3))
    mask = random_mask(rng, 5, 4)
    result = temporal_importance(x, g, mask=mask)
    # y -> a y + b
    scaled = temporal_importance(x, sign * factor * g, mask=mask)
    close32(scaled.importance, factor * result.importance)
    close32(scaled.signed, sign * factor * result.signed)
    close32(scaled.strength_ci, factor * result.strength_ci)
    for name in (
        "sign_agreement", "feature_share", "time_share", "mean_lag", "entropy", "share_ci",
        "reliability",
    ):  # fmt: skip
        close32(getattr(scaled, name), getattr(result, name))
    # x -> x / c with w -> c w, another c for each feature
    c = factor ** np.array([1.0, -1.0, 0.5])
    same(temporal_importance(x / c, g * c, mask=mask), result, rtol=1e-5)


@given(seeds, st.integers(2, 4))
def test_importance_does_not_change_when_sequences_are_repeated(rng, copies):
    x, g, mask = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 4, 2)), random_mask(rng, 3, 4)
    result = temporal_importance(x, g, mask=mask)
    repeated = temporal_importance(
        *(np.tile(a, (copies, 1, 1)) for a in (x, g)), mask=np.tile(mask, (copies, 1))
    )
    # What is said of the sequences themselves, and how sure that is with more of them.
    more = ("sequences", "target_values", *BY_SEQUENCE)
    same(repeated, result, but=(*more, "share_ci", "strength_ci"), rtol=1e-6)
    np.testing.assert_array_less(np.diff(repeated.strength_ci), np.diff(result.strength_ci))


def test_importance_of_padding_is_none_whatever_stands_in_it():
    x, g = np.ones((2, 3, 1)), np.full((2, 3, 1), 2.0)
    mask = np.array([[1, 1, 1], [1, 0, 0]], bool)
    x[1, 1], g[1, 1], x[1, 2], g[1, 2] = np.nan, 5.0, np.inf, 0.0
    result = temporal_importance(x, g, mask=mask)
    close(result.importance, [[2.0], [2.0], [2.0]])  # each over the sequences that have the step
    assert (result.sequences, result.non_finite) == (2, 0)


def test_step_that_no_sequence_has_gets_zeros():
    mask = np.array([[True, False], [True, False]])
    result = temporal_importance(np.ones((2, 2, 1)), np.ones((2, 2, 1)), mask=mask)
    close(result.importance, [[1.0], [0.0]])
    close(result.sign_agreement, [[1.0], [0.0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_importance_counts_non_finite_sequences_and_keeps_them_out(bad):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 4, 3))
    mask = np.arange(4) < np.array([4, 3, 2, 1, 1])[:, None]
    clean = temporal_importance(x[[1, 2, 4]], g[[1, 2, 4]], mask=mask[[1, 2, 4]])
    g[0, 1, 0], x[3, 0, 1] = bad, bad
    result = temporal_importance(x, g, mask=mask)
    assert (result.sequences, result.non_finite) == (3, 2)
    same(result, clean, but=("non_finite", "target_values"))


def test_importance_when_every_sequence_is_non_finite():
    result = temporal_importance(np.ones((2, 3, 1)), np.full((2, 3, 1), np.nan))
    assert (result.sequences, result.non_finite) == (0, 2)
    assert not result.importance.any()
    assert math.isnan(result.mean_lag)
    assert math.isnan(result.entropy)


def test_importance_of_a_constant_target_is_zero_without_nan():
    result = temporal_importance(np.ones((4, 3, 2)), np.zeros((4, 3, 2)))
    for name in ("importance", "signed", "sign_agreement", "feature_share", "time_share"):
        assert not getattr(result, name).any(), name
    assert math.isnan(result.mean_lag)


@given(st.lists(st.floats(0.01, 10.0), min_size=2, max_size=6))
def test_entropy_is_that_of_scipy_over_the_largest(weights):
    n = len(weights)
    gradient = np.asarray(weights)[None, None]
    result = temporal_importance(np.ones((1, 1, n)), gradient)
    close(result.entropy, stats.entropy(weights, base=n), rtol=1e-5, atol=1e-6)


def test_entropy_at_its_ends():
    assert temporal_importance(np.ones((1, 2, 4)), np.ones((1, 2, 4))).entropy == pytest.approx(1)
    one_hot = np.zeros((1, 2, 4))
    one_hot[..., 2] = 1.0
    assert temporal_importance(np.ones((1, 2, 4)), one_hot).entropy == 0.0
    assert temporal_importance(np.ones((1, 2, 1)), np.ones((1, 2, 1))).entropy == 0.0


@given(st.floats(0.1, 0.9), st.integers(2, 12))
def test_mean_lag_of_a_geometric_decay(a, steps):
    # Weights a^lag: the mean lag is sum k a^k / sum a^k.
    gradient = (a ** np.arange(steps)[::-1])[None, :, None]
    result = temporal_importance(np.ones((1, steps, 1)), gradient)
    n = steps
    total = (1 - a**n) / (1 - a)
    weighted = a * (1 - n * a ** (n - 1) + (n - 1) * a**n) / (1 - a) ** 2
    close(result.mean_lag, weighted / total, rtol=1e-7)


def test_mean_lag_counts_from_each_sequences_last_real_step():
    x = np.ones((2, 5, 1))
    gradient = np.zeros((2, 5, 1))
    gradient[0, 1], gradient[1, 2] = 3.0, 1.0
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    # 0 steps before the last one, and 2: strong sequences count as much as weak ones.
    assert temporal_importance(x, gradient, mask=mask).mean_lag == pytest.approx((0 + 2) / 2)


def test_the_ci_of_a_mean_lag_ends_at_the_longest_lag():
    # One sequence has nearly all of the lag: the CI on the log scale would end far beyond it.
    gradient = np.zeros((17, 6, 1))
    gradient[:, 5] = 1.0
    gradient[:, 0, 0] = [1.0] + 16 * [1e-12]
    estimate = temporal_importance(np.ones((17, 6, 1)), gradient).estimates()["mean_lag"]
    assert estimate.value == pytest.approx(5 / 2 / 17)
    assert estimate.ci()[1] == 5.0


def test_a_mean_lag_is_that_of_sequences_with_attributions():
    gradient = np.zeros((4, 6, 2))
    gradient[0, 5], gradient[1, 1], gradient[2, 3, 1] = 1.0, 7.0, -2.0
    found = temporal_importance(np.ones((4, 6, 2)), gradient)
    assert found.mean_lag == pytest.approx((0 + 4 + 2) / 3)
    assert found.estimates()["mean_lag"].value == pytest.approx(2.0)
    assert math.isnan(temporal_importance(np.ones((4, 6, 2)), 0 * gradient).mean_lag)


def test_importance_takes_other_dtypes_and_defaults():
    x = np.arange(6).reshape(1, 3, 2)
    result = temporal_importance(x, np.ones((1, 3, 2), np.float16))
    close(result.importance, x[0])
    assert result.importance.dtype == np.float32
    assert result.feature_names == ("feature 0", "feature 1")
    assert np.isnan(result.target_values).all()


# --- time sensitivity


@given(seeds, factors, st.floats(-10, 10), st.sampled_from([-1.0, 1.0]))
def test_sensitivity_does_not_depend_on_unit_and_offset_of_the_target(rng, a, b, sign):
    y = {s: rng.normal(size=6) for s in (0.5, 1.0, 2.0)}
    dt, g = rng.uniform(0.1, 2, (6, 4)), rng.normal(size=(6, 4))
    mask = random_mask(rng, 6, 4)
    result = time_sensitivity(y, time_delta=dt, time_gradient=g, mask=mask)
    a = a * sign
    moved = time_sensitivity(
        {s: a * v + b for s, v in y.items()}, time_delta=dt, time_gradient=a * g, mask=mask
    )
    close(moved.sensitivities, result.sensitivities, rtol=1e-6)
    close(moved.rms_change, abs(a) * result.rms_change, rtol=1e-6)
    close(moved.mean_change, a * result.mean_change, rtol=1e-6, atol=1e-9)
    close(moved.relative_elasticity, result.relative_elasticity, rtol=1e-6)
    close(moved.mean_elasticity, sign * result.mean_elasticity, rtol=1e-6)
    close(moved.elasticity, a * result.elasticity)
    close(moved.target_mean, a * result.target_mean + b, rtol=1e-6, atol=1e-9)


@given(seeds)
def test_the_ci_of_the_rms_change_is_that_of_the_jackknife(rng):
    y = {s: rng.normal(size=8) for s in (0.5, 1.0, 2.0)}
    found = time_sensitivity(y).rms_ci
    assert found[:, 1].tolist() == [0, 0]
    for column, scale in ((0, 0.5), (2, 2.0)):
        expected = ci_by_leaving_out(
            lambda change: math.sqrt((change**2).mean()), y[scale] - y[1.0], "log"
        )
        close(found[:, column], expected, rtol=1e-6)


@given(seeds, factors)
def test_elasticity_does_not_depend_on_the_unit_of_time(rng, c):
    y = {1.0: rng.normal(size=4), 3.0: rng.normal(size=4)}
    dt, g = rng.uniform(0.1, 2, (4, 5)), rng.normal(size=(4, 5))
    result = time_sensitivity(y, time_delta=dt, time_gradient=g)
    same(time_sensitivity(y, time_delta=c * dt, time_gradient=g / c), result)


@given(seeds, st.integers(2, 4))
def test_sensitivity_follows_permutation_and_repetition_of_sequences(rng, copies):
    y = {s: rng.normal(size=5) for s in (0.5, 1.0)}
    dt, g = rng.uniform(0.1, 2, (5, 3)), rng.normal(size=(5, 3))
    result = time_sensitivity(y, time_delta=dt, time_gradient=g)
    order = np.tile(rng.permutation(5), copies)
    mixed = time_sensitivity(
        {s: v[order] for s, v in y.items()}, time_delta=dt[order], time_gradient=g[order]
    )
    but = ("elasticity", "elasticity_by_step", "sequences", "by_sequence", "ci")
    same(mixed, result, but=but)
    close(mixed.elasticity, result.elasticity[order])
    close(mixed.relative_elasticity, result.relative_elasticity)
    assert mixed.sequences == 5 * copies


def test_sensitivity_of_a_power_law():
    # y = k s^p: relative to the SD of k, S(s) = |s^p - 1| RMS(k) / SD(k), and dy/dln s = p y.
    k, p = np.array([1.0, 2.0, 3.0, 6.0]), -0.7
    scales = (2.0, 0.5, 1.0)
    dt = np.full((4, 3), 0.5)
    gradient = np.repeat((p * k / 1.5)[:, None], 3, axis=1)
    result = time_sensitivity({s: k * s**p for s in scales}, time_delta=dt, time_gradient=gradient)
    assert list(result.scales) == [0.5, 1.0, 2.0]
    expected = np.abs(np.array([0.5, 1.0, 2.0]) ** p - 1) * np.sqrt((k**2).mean()) / k.std()
    close(result.sensitivities, expected)
    assert result.sensitivities[1] == 0.0
    close(result.mean_change, (np.array([0.5, 1.0, 2.0]) ** p - 1) * 3.0)
    close(result.elasticity, p * k)
    close(result.elasticity_by_step, gradient / 2)
    close(result.mean_elasticity, p * 3.0 / k.std())
    close(result.relative_elasticity, abs(p) * np.sqrt((k**2).mean()) / k.std())
    assert not result.ignores_time


@pytest.mark.parametrize("base", [0.0, 0.1, 1e6, -3.3])
def test_sensitivity_without_spread_over_sequences(base):
    same_for_all = np.full(7, base)
    moved = time_sensitivity({1.0: same_for_all, 2.0: same_for_all + 1.0})
    assert moved.target_sd == 0.0
    assert moved.sensitivities[0] == 0.0
    assert math.isnan(moved.sensitivities[1])
    assert moved.rms_change[1] == pytest.approx(1.0)
    still = time_sensitivity({1.0: same_for_all, 2.0: same_for_all})
    assert list(still.sensitivities) == [0.0, 0.0]
    assert still.ignores_time


def test_sensitivity_of_one_sequence_has_no_sd():
    result = time_sensitivity(
        {1.0: np.array([2.0]), 2.0: np.array([5.0])},
        time_delta=np.ones((1, 2)),
        time_gradient=np.ones((1, 2)),
    )
    assert math.isnan(result.sensitivities[1])
    assert math.isnan(result.relative_elasticity)
    assert math.isnan(result.mean_elasticity)
    assert result.rms_change[1] == 3.0
    assert result.elasticity[0] == 2.0


def test_equal_targets_have_no_sd_to_tell_an_elasticity_in():
    # As of a model whose gate has saturated: intervals still have slopes, sequences no SD.
    result = time_sensitivity(
        {1.0: np.ones(4), 2.0: np.array([1.0, 1.0, 1.0, 1.5])},
        time_delta=np.ones((4, 2)),
        time_gradient=np.arange(8.0).reshape(4, 2),
    )
    assert result.target_sd == 0.0
    assert math.isnan(result.relative_elasticity)
    found = result.estimates()
    assert set(found) == {"sensitivity_x2", "elasticity", "elasticity_rms"}
    assert all(estimate.ci() is None for estimate in found.values())


def test_sensitivity_of_a_target_that_ignores_time():
    y = np.arange(3.0)
    result = time_sensitivity(
        {0.5: y, 1.0: y, 5.0: y}, time_delta=np.ones((3, 2)), time_gradient=np.zeros((3, 2))
    )
    assert not result.sensitivities.any()
    assert result.relative_elasticity == result.mean_elasticity == 0.0
    assert result.ignores_time
    gradient = np.zeros((3, 2))
    gradient[1] = 1e-20, -1e-20  # cancels in the sum, and yet the target feels it
    felt = time_sensitivity({1.0: y}, time_delta=np.ones((3, 2)), time_gradient=gradient)
    assert not felt.ignores_time


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sensitivity_counts_non_finite_sequences_and_keeps_them_out(bad):
    rng = np.random.default_rng(0)
    y = {s: rng.normal(size=5) for s in (0.5, 1.0, 2.0)}
    dt, g = rng.uniform(0.1, 2, (5, 3)), rng.normal(size=(5, 3))
    kept = [0, 2, 4]
    clean = time_sensitivity(
        {s: v[kept] for s, v in y.items()}, time_delta=dt[kept], time_gradient=g[kept]
    )
    y[2.0][1], g[3, 0] = bad, bad
    result = time_sensitivity(y, time_delta=dt, time_gradient=g)
    assert (result.sequences, result.non_finite) == (3, 2)
    same(result, clean, but=("non_finite",))
    nothing = time_sensitivity({1.0: np.full(2, bad), 2.0: np.zeros(2)})
    assert (nothing.sequences, nothing.non_finite) == (0, 2)
    assert np.isnan(nothing.rms_change).all()
    assert not nothing.ignores_time


def test_padding_has_no_elasticity_whatever_stands_in_it():
    dt, g = np.ones((2, 3)), np.ones((2, 3))
    dt[1, 2], g[1, 1] = np.nan, np.inf
    mask = np.array([[1, 1, 1], [1, 0, 0]], bool)
    y = {1.0: np.arange(2.0)}
    result = time_sensitivity(y, time_delta=dt, time_gradient=g, mask=mask)
    close(result.elasticity, [3.0, 1.0])
    close(result.elasticity_by_step, [[1, 1, 1], [1, 0, 0]])
    assert result.non_finite == 0


@pytest.mark.parametrize("given_one", ["time_delta", "time_gradient"])
def test_elasticity_needs_both_time_delta_and_gradient(given_one):
    y = {1: np.arange(3), 2: np.arange(3) * 2}  # integers will do
    result = time_sensitivity(y, **{given_one: np.ones((3, 2))})
    assert (result.sequences, result.non_finite) == (3, 0)
    assert np.isnan(result.elasticity).all()
    close(result.sensitivities, [0.0, np.sqrt(5 / 3) / np.sqrt(2 / 3)])


def test_scale_one_must_be_there():
    with pytest.raises(ValueError, match=r"scale 1 is missing among \[0.5, 2.0\]"):
        time_sensitivity({0.5: np.zeros(2), 2.0: np.zeros(2)})


# --- transitions


@given(seeds)
def test_transitions_from_the_definition(rng):
    h, dt = rng.normal(size=(4, 5, 3)), rng.uniform(0.1, 3, (4, 5))
    result = transition_statistics(h, time_delta=dt)
    steps = [[h[b, t + 1] - h[b, t] for t in range(4)] for b in range(4)]
    lengths = np.array([[math.dist(h[b, t + 1], h[b, t]) for t in range(4)] for b in range(4)])
    speeds = np.array([[lengths[b, t] / dt[b, t + 1] for t in range(4)] for b in range(4)])
    close(result.magnitudes, lengths)
    close(result.speeds, speeds)
    close(result.magnitude_mean, lengths.mean())
    close(result.magnitude_std, lengths.std())
    close(result.magnitude_std_within, math.sqrt(np.mean([np.var(row) for row in lengths])))
    close(result.magnitude_std_between, np.std([np.mean(row) for row in lengths]))
    # Law of total variance: sequences are equally long here.
    close(
        result.magnitude_std**2,
        result.magnitude_std_within**2 + result.magnitude_std_between**2,
    )
    close(result.speed_mean, speeds.mean())
    close(result.speed_max, speeds.max())
    close(
        result.unit_speed_max,
        np.max(
            [[np.abs(s) / dt[b, t + 1] for t, s in enumerate(steps[b])] for b in range(4)],
            axis=(0, 1),
        ),
    )
    upper = np.triu_indices(4, 1)
    alignment = [cosine_similarity([steps[b][t] for b in range(4)])[upper].mean() for t in range(4)]
    close(result.direction_consistency, np.mean(alignment))
    persistence = [cosine_similarity(steps[b])[t, t + 1] for b in range(4) for t in range(3)]
    close(result.direction_persistence, np.mean(persistence))
    spread = math.sqrt(h.reshape(-1, 3).var(axis=0).sum())
    close(result.relative_magnitude, lengths.mean() / spread)
    assert (result.transitions, result.non_finite) == (16, 0)


@given(seeds, st.booleans())
def test_transitions_do_not_depend_on_rotation_and_origin(rng, masked):
    h, dt = rng.normal(size=(4, 6, 3)), rng.uniform(0.1, 3, (4, 6))
    mask = random_mask(rng, 4, 6, least=3) if masked else None
    result = transition_statistics(h, time_delta=dt, mask=mask)
    turned = transition_statistics(h @ rotation(rng, 3) + 0.5, time_delta=dt, mask=mask)
    same(turned, result, but=("unit_speed_max",))


@given(seeds, st.integers(2, 4))
def test_transitions_do_not_depend_on_order_and_repetition_of_sequences(rng, copies):
    h, dt, mask = rng.normal(size=(4, 6, 3)), rng.uniform(0.1, 3, (4, 6)), random_mask(rng, 4, 6, 3)
    result = transition_statistics(h, time_delta=dt, mask=mask)
    b = rng.permutation(4)
    mixed = transition_statistics(h[b], time_delta=dt[b], mask=mask[b])
    same(mixed, result, but=("magnitudes", "speeds"))
    order = np.tile(b, copies)
    many = transition_statistics(h[order], time_delta=dt[order], mask=mask[order])
    differing = ("magnitudes", "speeds", "transitions", "direction_consistency")
    same(many, result, but=differing)
    close(many.magnitudes, result.magnitudes[order])
    assert many.transitions == copies * result.transitions


@given(seeds, factors)
def test_transitions_scale_with_units_of_state_and_time(rng, c):
    h, dt = rng.normal(size=(3, 5, 4)), rng.uniform(0.1, 3, (3, 5))
    result = transition_statistics(h, time_delta=dt)
    slower = transition_statistics(h, time_delta=c * dt)
    same(slower, result, but=("speed_mean", "speed_max", "speeds", "unit_speed_max"))
    for name in ("speed_mean", "speed_max", "speeds", "unit_speed_max"):
        close(c * getattr(slower, name), getattr(result, name))
    larger = transition_statistics(c * h, time_delta=dt)
    for name in ("magnitude_mean", "magnitude_std", "magnitude_std_within", "speed_mean"):
        close(getattr(larger, name), c * getattr(result, name))
    for name in ("direction_consistency", "direction_persistence", "relative_magnitude"):
        close(getattr(larger, name), getattr(result, name))


@given(seeds)
def test_duplicated_units_leave_relative_measures_alone(rng):
    h = rng.normal(size=(3, 5, 4))
    once = transition_statistics(h)
    twice = transition_statistics(np.concatenate([h, h], axis=-1))
    close(twice.magnitude_mean, math.sqrt(2) * once.magnitude_mean)
    for name in ("direction_consistency", "direction_persistence", "relative_magnitude"):
        close(getattr(twice, name), getattr(once, name))
    close(twice.unit_speed_max, np.tile(once.unit_speed_max, 2))


@pytest.mark.parametrize("direction", [(1.0, 0, 0), (1.0, 1, 1), (-2.0, 0.5, 0)])
def test_directions_of_straight_lines(direction):
    v = np.array(direction)
    h = np.arange(6.0)[None, :, None] * v + np.arange(4.0)[:, None, None]
    result = transition_statistics(h, time_delta=np.full((4, 6), 0.5))
    assert result.direction_consistency == pytest.approx(1.0)
    assert result.direction_persistence == pytest.approx(1.0)
    assert result.magnitude_mean == pytest.approx(np.linalg.norm(v))
    assert result.speed_mean == pytest.approx(2 * np.linalg.norm(v))
    assert result.magnitude_std == pytest.approx(0.0, abs=1e-12)


def test_directions_back_and_forth_and_against_each_other():
    v = np.array([1.0, -2.0, 3.0])
    swing = (np.arange(6) % 2)[None, :, None] * v
    result = transition_statistics(np.concatenate([swing, -swing]))
    assert result.direction_persistence == pytest.approx(-1.0)
    assert result.direction_consistency == pytest.approx(-1.0)


@pytest.mark.parametrize("width", [2, 5, 20])
def test_isotropic_directions_average_to_zero(width):
    rng = np.random.default_rng(width)
    batch, steps = 30, 41
    h = rng.normal(size=(batch, steps, width)).cumsum(axis=1)
    result = transition_statistics(h)
    # Cosines of independent isotropic directions have variance 1 / width and are uncorrelated.
    pairs = batch * (batch - 1) / 2 * (steps - 1)
    assert abs(result.direction_consistency) < 3 / math.sqrt(width * pairs)
    assert abs(result.direction_persistence) < 3 / math.sqrt(width * batch * (steps - 2))


def test_alignment_skips_sequences_that_stand_still_and_steps_with_too_few():
    h = np.zeros((3, 4, 2))
    h[0, :, 0] = [0, 1, 2, 3]
    h[1, :, 0] = [0, 1, 2, 2]
    assert transition_statistics(h).direction_consistency == pytest.approx(1.0)
    assert math.isnan(transition_statistics(h[:1]).direction_consistency)
    assert transition_statistics(h[:1]).direction_persistence == pytest.approx(1.0)


def test_transitions_of_constant_states():
    for value in (0.0, 0.1, 1e6):
        result = transition_statistics(np.full((2, 5, 3), value), bound=1.0)
        assert result.magnitude_mean == result.magnitude_std == result.speed_max == 0.0
        assert result.dead_units == 3
        assert math.isnan(result.relative_magnitude)
        assert math.isnan(result.direction_consistency)
        assert math.isnan(result.direction_persistence)


def test_transitions_of_one_step_are_none():
    result = transition_statistics(np.ones((3, 1, 2)))
    assert result.transitions == 0
    assert result.magnitudes.shape == (3, 0)
    assert math.isnan(result.magnitude_mean)
    assert math.isnan(result.speed_max)
    assert not result.unit_speed_max.any()


def test_transitions_from_an_initial_state_are_included():
    h = np.array([[[3.0, 4.0], [3.0, 5.0]]])
    dt = np.array([[2.0, 0.5]])
    result = transition_statistics(h, time_delta=dt, initial=np.zeros((1, 2)))
    close(result.magnitudes, [[5.0, 1.0]])
    close(result.speeds, [[2.5, 2.0]])
    unknown = transition_statistics(h, time_delta=dt, initial=np.array([[np.nan, 0.0]]))
    close(unknown.magnitudes, [[np.nan, 1.0]])
    assert (unknown.magnitude_mean, unknown.transitions, unknown.non_finite) == (1.0, 1, 1)


@given(seeds)
def test_padding_takes_no_part_in_transitions(rng):
    h, dt = rng.normal(size=(3, 6, 2)), rng.uniform(0.1, 3, (3, 6))
    lengths = [2, 6, 4]
    mask = np.arange(6) < np.array(lengths)[:, None]
    h[~mask] = rng.choice([np.nan, np.inf, 1e9])
    dt[~mask] = rng.choice([np.nan, 0.0, -1.0])
    result = transition_statistics(h, time_delta=dt, mask=mask)
    parts = [
        transition_statistics(h[b : b + 1, :n], time_delta=dt[b : b + 1, :n])
        for b, n in enumerate(lengths)
    ]
    lengths_of_steps = np.concatenate([p.magnitudes.ravel() for p in parts])
    close(result.magnitudes[~np.isnan(result.magnitudes)], lengths_of_steps)
    close(result.magnitude_std, lengths_of_steps.std())
    close(result.speed_max, max(p.speed_max for p in parts))
    close(result.unit_speed_max, np.max([p.unit_speed_max for p in parts], axis=0))
    assert (result.transitions, result.non_finite) == (9, 0)


def test_a_gap_in_the_mask_is_not_a_transition():
    h = np.arange(5.0)[None, :, None] ** 2
    result = transition_statistics(h, mask=np.array([[1, 1, 0, 1, 1]], bool))
    close(result.magnitudes, [[1, np.nan, np.nan, 7]])
    assert result.transitions == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_states_are_counted_and_do_not_spread(bad):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(3, 6, 2))
    clean = transition_statistics(h).magnitudes
    h[1, 2, 0] = bad
    result = transition_statistics(h)
    assert (result.transitions, result.non_finite) == (13, 2)
    expected = clean.copy()
    expected[1, 1:3] = np.nan
    close(result.magnitudes, expected)
    assert result.magnitude_mean == pytest.approx(np.nanmean(expected))
    assert np.isfinite([result.speed_max, result.relative_magnitude, *result.unit_speed_max]).all()
    everything = transition_statistics(np.full((2, 3, 2), bad))
    assert (everything.transitions, everything.non_finite) == (0, 4)


def test_saturation_and_dead_units_planted():
    rng = np.random.default_rng(0)
    h = rng.uniform(-0.5, 0.5, (2, 10, 6))
    h[..., 1] = 0.3
    h[..., 4] *= 1e-5
    h[0, :5, 0] = 0.96
    h[1, 5:, 2] = -0.99
    result = transition_statistics(h, bound=1.0)
    assert result.dead_units == 2
    assert result.saturation == pytest.approx(10 / 120)
    assert transition_statistics(2 * h, bound=2.0).saturation == pytest.approx(10 / 120)
    assert math.isnan(transition_statistics(h).saturation)


def test_transitions_take_half_precision():
    h = np.array([[[0.0, 0.0], [3.0, 4.0]]], np.float16)
    result = transition_statistics(h, time_delta=np.array([[1, 2]]), mask=np.ones((1, 2), int))
    assert result.magnitude_mean == 5.0
    assert result.speed_mean == 2.5


# --- state space


@pytest.mark.parametrize(("batch", "steps", "width"), [(4, 10, 3), (2, 3, 8), (5, 6, 5), (1, 9, 2)])
def test_pca_is_that_of_scikit_learn(batch, steps, width):
    rng = np.random.default_rng(width)
    h = rng.normal(size=(batch, steps, width)) @ rng.normal(size=(width, width)) + 3.0
    result = state_space(h)
    pca = PCA(n_components=2).fit(h.reshape(-1, width))
    scores = pca.transform(h.reshape(-1, width)).reshape(batch, steps, 2)
    sign = np.sign((scores * result.scores).sum(axis=(0, 1)))
    close(result.scores, scores * sign, rtol=1e-4, atol=1e-5)
    close(result.basis.components, pca.components_ * sign[:, None], rtol=1e-7, atol=1e-9)
    close(result.basis.mean, pca.mean_)
    full = PCA().fit(h.reshape(-1, width)).explained_variance_ratio_
    close(result.explained_variance_ratio[: len(full)], full, atol=1e-9)
    close(result.explained_variance_ratio[len(full) :], 0.0)
    close(result.axis_variance_ratio, full[:2])
    assert result.captured == pytest.approx(1.0)
    assert result.refitted


@given(seeds, factors)
def test_spectrum_does_not_depend_on_rotation_origin_unit_and_order(rng, c):
    h = rng.normal(size=(3, 5, 4)) * [3.0, 2.0, 1.0, 0.5]
    result = state_space(h)
    for other in (
        h @ rotation(rng, 4),
        h + rng.normal(size=4),
        c * h,
        h[..., rng.permutation(4)],
        h[rng.permutation(3)],
        np.tile(h, (3, 1, 1)),
        np.concatenate([h, h], axis=-1),
    ):
        seen = state_space(other)
        close(seen.explained_variance_ratio[:4], result.explained_variance_ratio, rtol=1e-7)
        close(seen.participation_ratio, result.participation_ratio, rtol=1e-7)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_participation_ratio_closed_forms(width):
    # Plus and minus each unit vector: the covariance is exactly isotropic.
    isotropic = np.concatenate([np.eye(width), -np.eye(width)])[None]
    assert state_space(isotropic).participation_ratio == pytest.approx(width)
    line = np.arange(7.0)[None, :, None] * np.arange(1.0, width + 1)
    result = state_space(line)
    assert result.participation_ratio == pytest.approx(1.0)
    close(result.explained_variance_ratio, np.eye(width)[0], atol=1e-9)
    # Variances v on the axes: (sum v)^2 / sum v^2.
    v = np.arange(1.0, width + 1)
    spectrum = np.concatenate([np.diag(np.sqrt(v)), -np.diag(np.sqrt(v))])[None]
    expected = v.sum() ** 2 / (v**2).sum()
    assert state_space(spectrum).participation_ratio == pytest.approx(expected)


@given(seeds)
def test_frozen_basis_reproduces_itself_and_shows_movement(rng):
    h = rng.normal(size=(3, 6, 4)) * [4.0, 2.0, 0.5, 0.1]
    first = state_space(h)
    again = state_space(h, basis=first.basis)
    assert not again.refitted
    assert again.basis is first.basis
    close(again.scores, first.scores)
    assert again.captured == pytest.approx(1.0)
    shift = np.array([1.0, -1.0]) @ first.basis.components
    moved = state_space(h + shift, basis=first.basis)
    close(moved.scores - first.scores, np.broadcast_to([1.0, -1.0], first.shape), atol=1e-5)


def test_captured_of_a_tilted_basis_is_the_squared_cosine():
    along = np.linspace(-1, 1, 9)[None, :, None]
    angle = 0.5
    line = along * np.array([np.cos(angle), np.sin(angle), 0.0])
    basis = Basis(np.zeros(3), np.array([[1.0, 0.0, 0.0]]))
    result = state_space(line, basis=basis, components=1, refit_below=0.5)
    assert result.captured == pytest.approx(np.cos(angle) ** 2)
    assert not result.refitted
    close(result.axis_variance_ratio, [np.cos(angle) ** 2])
    close32(result.scores[..., 0], np.cos(angle) * along[..., 0])
    refitted = state_space(line, basis=basis, components=1, refit_below=0.78)
    assert refitted.refitted
    assert refitted.captured == pytest.approx(1.0)
    # The sign that agrees with the old axis is kept.
    close(refitted.basis.components, [[np.cos(angle), np.sin(angle), 0.0]], atol=1e-9)
    against = state_space(
        line, basis=Basis(np.zeros(3), -basis.components), components=1, refit_below=0.78
    )
    close(against.basis.components, -refitted.basis.components, atol=1e-9)


def test_basis_of_another_width_is_not_used():
    h = np.random.default_rng(0).normal(size=(2, 5, 3))
    result = state_space(h, basis=Basis(np.zeros(4), np.eye(4)[:2]))
    assert result.refitted
    assert result.basis.components.shape == (2, 3)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_more_components_than_dimensions(width):
    rng = np.random.default_rng(0)
    h = rng.normal(size=(2, 5, 1)) * np.ones(width)
    result = state_space(h, components=6)
    assert result.scores.shape == (2, 5, 6)
    close(result.scores[..., 1:], 0.0, atol=1e-5)
    close(np.abs(result.scores[..., 0]), np.sqrt(width) * np.abs(h - h.mean())[..., 0], rtol=1e-4)
    assert result.axis_variance_ratio.shape == (6,)
    again = state_space(h, components=6, basis=result.basis)
    assert not again.refitted


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 1, 3), (1, 4, 1)])
def test_constant_states_have_no_spectrum(value, shape):
    result = state_space(np.full(shape, value, np.float32))
    close(result.scores, 0.0)
    assert not result.explained_variance_ratio.any()
    assert math.isnan(result.participation_ratio)
    assert result.captured == 1.0
    assert result.samples == shape[0] * shape[1]


def test_states_that_differ_by_rounding_only_have_no_spectrum():
    noise = np.random.default_rng(0).normal(size=(2, 5, 3))
    result = state_space(1e3 + 1e-6 * noise)
    assert not result.explained_variance_ratio.any()
    assert math.isnan(result.participation_ratio)
    assert state_space(1e3 + 1e-2 * noise).participation_ratio > 1


def test_constant_states_keep_their_basis():
    basis = state_space(np.random.default_rng(0).normal(size=(2, 5, 3))).basis
    result = state_space(np.ones((2, 5, 3)), basis=basis)
    assert not result.refitted
    assert result.basis is basis


def test_one_sequence_with_one_varying_step():
    h = np.array([[[0.0, 0.0], [3.0, 4.0]]])
    result = state_space(h)
    close(np.sort(result.scores[0, :, 0]), [-2.5, 2.5])
    close(result.explained_variance_ratio, [1.0, 0.0], atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_states_and_padding_are_skipped(bad):
    rng = np.random.default_rng(0)
    h, mask = rng.normal(size=(3, 5, 2)), np.ones((3, 5), bool)
    mask[1, 3:] = False
    used = mask.copy()
    used[0, 2] = False
    reference = state_space(h[used][None])
    h[0, 2, 1], h[1, 4] = bad, bad
    result = state_space(h, mask=mask)
    assert (result.samples, result.non_finite) == (12, 1)
    assert (np.isnan(result.scores).all(axis=-1) == ~used).all()
    close(result.scores[used], reference.scores[0], rtol=1e-5, atol=1e-6)
    close(result.explained_variance_ratio, reference.explained_variance_ratio)


@pytest.mark.parametrize("width", [1, 4])
def test_state_space_when_nothing_is_finite(width):
    basis = Basis(np.zeros(width), np.zeros((2, width)))
    for known in (None, basis):
        result = state_space(np.full((2, 3, width), np.nan), basis=known)
        assert (result.samples, result.non_finite) == (0, 6)
        assert np.isnan(result.scores).all()
        assert result.axis_variance_ratio.shape == (2,)
        assert result.explained_variance_ratio.shape == (width,)
        assert math.isnan(result.captured)
        assert not result.refitted


def test_state_space_needs_an_axis():
    with pytest.raises(ValueError, match="components=0: pass the number of axes"):
        state_space(np.ones((1, 2, 3)), components=0)


def test_explained_variance_is_numpys_covariance():
    x = np.random.default_rng(0).normal(size=(20, 4))
    mean, values, axes = explained_variance(x.astype(np.float32))
    covariance = np.cov(x.astype(np.float32).astype(np.float64).T, bias=True)
    close(axes.T @ np.diag(values) @ axes, covariance)
    close(axes @ axes.T, np.eye(4))
    assert (np.diff(values) <= 0).all()
    close(mean, x.astype(np.float32).astype(np.float64).mean(axis=0))


# --- backbone


@given(seeds, st.booleans())
def test_layer_statistics_from_the_definition(rng, masked):
    a = rng.normal(size=(3, 4, 5))
    mask = random_mask(rng, 3, 4) if masked else None
    result = layer_statistics(a, mask=mask, layer="a.b", activation="tanh")
    rows = [a[b, t] for b in range(3) for t in range(4) if mask is None or mask[b, t]]
    close(result.mean, np.concatenate(rows).mean())
    close(result.std, np.concatenate(rows).std())
    close(
        result.treves_rolls,
        np.mean([sum(map(abs, r)) ** 2 / len(r) / sum(v * v for v in r) for r in rows]),
    )
    stuck = np.array([[abs(v) > 0.95 for v in r] for r in rows])
    close(result.sparsity, stuck.mean())
    close(result.active_fraction, 1 - stuck.mean(axis=0))
    assert (result.samples, result.units, result.layer) == (len(rows), 5, "a.b")


@given(seeds, factors)
def test_treves_rolls_closed_forms_and_invariances(rng, c):
    units = 6
    constant = np.full((2, 3, units), c)
    assert layer_statistics(constant).treves_rolls == pytest.approx(1.0)
    one_hot = np.zeros((2, 3, units))
    one_hot[..., 2] = c
    assert layer_statistics(-one_hot).treves_rolls == pytest.approx(1 / units)
    a = rng.normal(size=(2, 3, units))
    expected = layer_statistics(a).treves_rolls
    for other in (
        c * a,
        -a,
        a[..., rng.permutation(units)],
        a[::-1],
        np.tile(a, (3, 1, 1)),
        np.concatenate([a, a], axis=-1),
    ):
        assert layer_statistics(other).treves_rolls == pytest.approx(expected)


def test_treves_rolls_skips_units_without_activity():
    a = np.zeros((1, 3, 4))
    a[0, 1] = 1.0
    assert layer_statistics(a).treves_rolls == pytest.approx(1.0)
    assert math.isnan(layer_statistics(np.zeros((1, 3, 4))).treves_rolls)


def test_relu_is_off_half_the_time_on_symmetric_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(20, 25, 8))
    result = layer_statistics(np.maximum(noise, 0), activation="relu")
    assert abs(result.sparsity - 0.5) < 3 * 0.5 / math.sqrt(noise.size)
    # Antithetic pairs: exactly half.
    paired = np.concatenate([noise, -noise])
    assert layer_statistics(np.maximum(paired, 0), activation="relu").sparsity == 0.5


Z = stats.norm
STUCK_SHARES = {
    # Share of x ~ N(0, scale) for which the activation is off or stuck, from its definition.
    "relu": (1.0, Z.cdf(0)),
    "relu6": (5.0, Z.cdf(0) + Z.sf(6 / 5)),
    "tanh": (2.0, 2 * Z.sf(math.atanh(0.95) / 2)),
    "lecun_tanh": (3.0, 2 * Z.sf(1.5 * math.atanh(0.95) / 3)),
    "sigmoid": (3.0, 2 * Z.sf(math.log(19) / 3)),
    "silu": (1.0, 0.5),
    "gelu": (1.0, 0.5),
    "gelu_tanh": (1.0, 0.5),
    "gelu_fast": (1.0, 0.5),
    "elu": (3.0, Z.cdf(math.log(0.05) / 3)),
    "leaky_relu": (1.0, 0.5),
    "softplus": (4.0, Z.cdf(math.log(math.expm1(0.05)) / 4)),
    "identity": (1.0, 0.0),
    "unknown": (1.0, 0.0),
}
FUNCTIONS = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "tanh": nn.tanh,
    "lecun_tanh": lambda x: 1.7159 * mx.tanh(2 / 3 * x),
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "gelu": nn.gelu,
    "gelu_tanh": nn.gelu_approx,
    "gelu_fast": nn.gelu_fast_approx,
    "elu": nn.elu,
    "leaky_relu": nn.leaky_relu,
    "softplus": nn.softplus,
    "identity": nn.Identity(),
}


def test_every_activation_is_tried():
    assert set(STUCK_SHARES) == set(ACTIVATIONS)
    assert set(FUNCTIONS) == set(ACTIVATIONS) - {"unknown"}


@pytest.mark.parametrize("name", STUCK_SHARES)
def test_sparsity_counts_what_is_off_or_stuck(name):
    scale, share = STUCK_SHARES[name]
    # Equally probable values of a normal distribution, 0 among none of them.
    x = scale * Z.ppf((np.arange(4000) + 0.5) / 4000)
    out = np.array(FUNCTIONS.get(name, nn.Identity())(mx.array(x.astype(np.float32))))
    result = layer_statistics(out.reshape(1, -1, 4), activation=name)
    assert result.sparsity == pytest.approx(share, abs=1e-3)
    assert result.sparse_means == ACTIVATIONS[name].sparse_means


@pytest.mark.parametrize("stuck", [-50.0, 50.0])
@pytest.mark.parametrize("name", ["tanh", "lecun_tanh", "sigmoid"])
def test_saturating_units_are_all_stuck_under_constant_strong_input(name, stuck):
    out = np.array(FUNCTIONS[name](mx.full((2, 3, 4), stuck)))
    result = layer_statistics(out, activation=name)
    assert result.sparsity == 1.0
    assert result.dead_units == 4
    assert not result.active_fraction.any()


GELUS = {"gelu", "gelu_tanh", "gelu_fast"}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_are_recognised_by_value(name, dtype):
    x = (3 * mx.random.normal((16, 32), key=mx.random.key(0))).astype(dtype)
    before, after = (np.array(v.astype(mx.float32)) for v in (x, FUNCTIONS[name](x)))
    found = recognise_activation(before, after)
    if name in GELUS and dtype != mx.float32:
        assert found in GELUS  # their differences are about the rounding of these types
    else:
        assert found == name


@pytest.mark.parametrize("name", ["tanh", "lecun_tanh", "sigmoid", "softplus", "gelu", "silu"])
def test_activations_are_recognised_near_zero(name):
    x = mx.random.normal((16, 32), key=mx.random.key(0))
    assert recognise_activation(np.array(x), np.array(FUNCTIONS[name](x))) == name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_functions_are_those_of_mlx(name):
    x = np.linspace(-8, 8, 161, dtype=np.float32)
    close(ACTIVATIONS[name].function(x), FUNCTIONS[name](mx.array(x)), rtol=1e-5, atol=3e-6)


def test_gelu_oracle_is_x_times_the_normal_distribution():
    x = np.linspace(-4, 4, 81)
    assert recognise_activation(x, x * ndtr(x)) == "gelu"
    close(ACTIVATIONS["gelu"].function(x), x * ndtr(x))


def test_activations_that_are_none_we_know():
    x = np.random.default_rng(0).normal(size=(8, 8))
    assert recognise_activation(x, np.sin(3 * x)) is None
    assert recognise_activation(x, 0.5 * x) is None
    assert recognise_activation(x, np.tanh(x)[:4]) is None
    assert recognise_activation(x[:0], x[:0]) is None
    assert recognise_activation(np.full(3, np.nan), np.zeros(3)) is None


def test_an_activation_is_recognised_beside_non_finite_values():
    x = np.random.default_rng(0).normal(size=50)
    x[3], x[7] = np.nan, np.inf
    assert recognise_activation(x, np.tanh(x)) == "tanh"


def test_dead_units_planted():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 4, 6))
    a[..., 1], a[..., 4] = 0.0, 0.7
    mask = np.ones((3, 4), bool)
    mask[2, 2:] = False
    a[2, 2:, 1] = 5.0  # padding doesn't bring a unit to life
    result = layer_statistics(a, mask=mask)
    assert list(np.flatnonzero(result.dead)) == [1, 4]
    assert result.dead_units == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_activations_are_counted_and_do_not_spread(bad):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 5, 3))
    clean = layer_statistics(np.delete(a.reshape(1, 10, 3), 7, axis=1))
    a[1, 2, 0] = bad
    result = layer_statistics(a)
    assert (result.samples, result.non_finite) == (9, 1)
    same(result, clean, but=("non_finite",))
    nothing = layer_statistics(np.full((2, 5, 3), bad), activation="relu")
    assert (nothing.samples, nothing.non_finite, nothing.dead_units) == (0, 10, 0)
    assert math.isnan(nothing.mean)
    assert nothing.active_fraction.shape == nothing.dead.shape == (3,)


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"'swish' is unknown: pass one of relu, .*unknown"):
        layer_statistics(np.ones((1, 1, 1)), activation="swish")


def test_backbone_report_is_a_sequence():
    layers = tuple(layer_statistics(np.ones((1, 2, n)), layer=str(n)) for n in (1, 2, 3))
    report = BackboneReport(layers)
    assert len(report) == 3
    assert list(report) == list(layers)
    assert report[0] is layers[0]
    assert report[-1]["units"] == 3
    assert list(report[1:]) == list(layers[1:])
    assert layers[1] in report


# --- numbers beyond float32


@pytest.mark.parametrize("exponent", [-90, 126, 140, 200])
def test_what_has_no_unit_does_not_depend_on_how_large_states_are(exponent):
    rng = np.random.default_rng(0)
    h, unit = rng.normal(size=(8, 7, 5)) * np.arange(1, 6), 2.0**exponent
    one, other = state_space(h), state_space(h * unit)
    for name in ("explained_variance_ratio", "axis_variance_ratio", "participation_ratio"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-12)
    np.testing.assert_allclose(other.scores / unit, one.scores, rtol=1e-6)
    # A basis that was just fitted captures all that it can, for sure.
    assert one.estimates["basis_captured"].ci() is None
    assert other.estimates["basis_captured"].ci() is None
    for name in ("pc1_share", "pc2_share", "participation_ratio"):
        np.testing.assert_allclose(other.estimates[name].ci(), one.estimates[name].ci(), rtol=1e-5)
    ratio = corrected_participation_ratio(h)
    np.testing.assert_allclose(
        corrected_participation_estimate(h * unit, ratio).ci(),
        corrected_participation_estimate(h, ratio).ci(),
        rtol=1e-5,
    )


@pytest.mark.parametrize("exponent", [-90, 126, 140, 200])
def test_shares_of_attributions_do_not_depend_on_how_large_they_are(exponent):
    rng = np.random.default_rng(1)
    parts, unit = rng.normal(size=(8, 6, 3)), 2.0**exponent
    one, other = (
        summarize(Attribution(IntegratedGradients(), a, a[..., 0] / 2, a.sum(axis=(1, 2))))
        for a in (parts, parts * unit)
    )
    for name in ("feature_share", "time_share", "share_ci", "error", "reliability"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-5)
    for name in ("importance", "signed", "strength_ci", "time_delta_importance"):
        np.testing.assert_allclose(getattr(other, name) / unit, getattr(one, name), rtol=1e-6)
    assert other.time_delta_share == pytest.approx(one.time_delta_share)
