"""CIs of all kinds of numbers: closed forms, invariances, coverage by simulation."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jackknife import ci_by_leaving_out, freedom, t_of_sides
from scipy import integrate, special, stats

from ncp_callbacks.analysis import (
    layer_statistics,
    state_space,
    time_sensitivity,
    transition_statistics,
    unit_time_constants,
)
from ncp_callbacks.attribution import Attribution, InputXGradient, summarize
from ncp_callbacks.callbacks.dynamics.analysis import (
    autocorrelation_times,
    corrected_participation_estimate,
    corrected_participation_ratio,
    memory_horizon,
    state_drift,
)
from ncp_callbacks.callbacks.output_time.analysis import output_time
from ncp_callbacks.callbacks.wiring.analysis import group_activity
from ncp_callbacks.neuron_groups import NeuronGroup
from ncp_callbacks.stats import (
    CORRELATION,
    MIN_SEQUENCES_FOR_CI,
    REAL,
    SHARE,
    SIZE,
    Estimate,
    changed_beyond_chance,
    ci_array,
    holm,
    quantile_estimates,
    t_quantile,
    with_cis,
)
from ncp_callbacks.stats.estimate import sd_of_sums

pytestmark = pytest.mark.filterwarnings("error")

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def close(a, b, rtol=1e-9, atol=1e-12):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def covered(intervals, truth):
    return float(np.mean([i is not None and i[0] <= truth <= i[1] for i in intervals]))


# --- closed forms


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 15, 255])
@pytest.mark.parametrize("p", [0.9, 0.975, 0.995])
def test_t_quantile_inverts_the_integral_of_the_density(p, freedom):
    def density(t):
        log = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
        return (
            math.exp(log)
            / math.sqrt(freedom * math.pi)
            * (1 + t * t / freedom) ** (-(freedom + 1) / 2)
        )

    area, _ = integrate.quad(density, 0, t_quantile(p, freedom))
    assert area == pytest.approx(p - 0.5, abs=1e-9)


def of_sides(values, level=0.95):
    """Return the CI of a mean by hand."""
    below, above = t_of_sides(values - values.mean(), level)
    error = stats.sem(values)
    return values.mean() - below * error, values.mean() + above * error


@given(seeds, st.integers(2, 40), st.sampled_from([0.8, 0.95]))
def test_the_ci_of_a_mean_is_students_or_longer_on_the_side_of_the_longer_tail(rng, count, level):
    values = rng.normal(size=count)
    df = freedom(values)
    assert df <= count - 1
    expected = of_sides(values, level)
    low, high = stats.t.interval(level, df, loc=values.mean(), scale=stats.sem(values))
    assert expected[0] <= low + 1e-12
    assert expected[1] >= high - 1e-12
    close(Estimate.mean(values).ci(level), expected)
    # Each way to get it gives the same.
    without_each = (values.sum() - values) / (count - 1)
    close(Estimate.jackknife(values.mean(), without_each).ci(level), expected, atol=1e-9)
    close(Estimate.ratio(values, np.ones(count)).ci(level), expected, atol=1e-9)
    effects = values - values.mean()
    close(Estimate.from_derivatives(values.mean(), effects).ci(level), expected, atol=1e-9)


STATISTICS = {
    "share": (lambda p: Estimate.ratio(p[:, 0], p.sum(1), SHARE),
              lambda p: p[:, 0].sum() / p.sum(), "logit"),
    "size": (lambda p: Estimate.mean(p[:, 1], SIZE), lambda p: p[:, 1].mean(), "log"),
    "ratio": (lambda p: Estimate.ratio(p[:, 1], p[:, 2], SIZE),
              lambda p: p[:, 1].sum() / p[:, 2].sum(), "log"),
    "rms": (lambda p: Estimate.rms(p[:, 0], p[:, 1]),
            lambda p: math.sqrt(p[:, 0].sum() / p[:, 1].sum()), "log"),
    "sd": (lambda p: Estimate.of_sums(
               sd_of_sums, np.stack([np.ones(len(p)), p[:, 0], p[:, 0] ** 2], 1), SIZE),
           lambda p: p[:, 0].std(), "log"),
    "correlation": (lambda p: Estimate.mean(np.tanh(p[:, 0] - 1), CORRELATION),
                    lambda p: np.tanh(p[:, 0] - 1).mean(), "fisher_z"),
    "difference": (lambda p: Estimate.mean(p[:, 0] - p[:, 1]),
                   lambda p: (p[:, 0] - p[:, 1]).mean(), "identity"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATISTICS)
@given(seeds, st.integers(3, 20), st.sampled_from([0.8, 0.95]))
def test_subtracting_from_sums_is_as_dropping_sequences(name, rng, count, level):
    make, statistic, scale = STATISTICS[name]
    parts = rng.gamma(2.0, size=(count, 3))
    found = make(parts)
    close(found.value, statistic(parts))
    close(found.ci(level), ci_by_leaving_out(statistic, parts, scale, level), rtol=1e-6)


@given(seeds, st.floats(0.05, 5.0))
def test_a_ci_stays_inside_the_range_of_its_number(rng, shape):
    parts = rng.gamma(shape, size=(6, 3)) + 1e-9
    values = rng.uniform(-1, 1, 6)
    for estimate in (
        Estimate.ratio(parts[:, 0], parts.sum(1), SHARE),
        Estimate.mean(parts[:, 0], SIZE),
        Estimate.rms(parts[:, 0]),
        Estimate.mean(values, CORRELATION),
    ):
        low, high = estimate.ci()
        assert estimate.scale.low <= low <= estimate.value <= high <= estimate.scale.high


@given(seeds, st.floats(0.01, 100))
def test_units_and_order_of_sequences_do_not_matter(rng, factor):
    parts = rng.gamma(2.0, size=(12, 2))
    order = rng.permutation(12)
    for make, power in ((lambda p: Estimate.ratio(p[:, 0], p.sum(1), SHARE), 0),
                        (lambda p: Estimate.mean(p[:, 0], SIZE), 1),
                        (lambda p: Estimate.mean(p[:, 0]), 1)):  # fmt: skip
        expected = np.array(make(parts).ci()) * factor**power
        close(make(factor * parts[order]).ci(), expected, rtol=1e-8)


def test_a_share_against_the_bootstrap():
    rng = np.random.default_rng(0)
    parts = rng.gamma(2.0, [3.0, 1.0, 0.5], (200, 3))
    drawn = parts[rng.integers(0, 200, (4000, 200))].sum(axis=1)
    shares = drawn / drawn.sum(axis=1, keepdims=True)
    expected = np.quantile(shares, [0.025, 0.975], axis=0)
    whole = parts.sum(axis=1)
    found = ci_array([Estimate.ratio(part, whole, SHARE) for part in parts.T])
    close((found - expected) / (expected[1] - expected[0]), 0, atol=0.1)


def test_an_rms_in_units_of_another_is_not_surer_than_both():
    """Against the bootstrap of pairs: what numerator and unit have in common cancels."""
    rng = np.random.default_rng(0)
    unit = rng.gamma(2.0, 1.0, 300) * rng.choice([-1.0, 1.0], 300)
    values = 0.6 * unit + 0.4 * rng.normal(size=300)

    def ratio(values, unit, axis=-1):
        return np.sqrt((values**2).mean(axis=axis) / (unit**2).mean(axis=axis))

    expected = stats.bootstrap(
        (values, unit), ratio, n_resamples=4000, method="percentile", paired=True,
        vectorized=True, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    found = np.array(Estimate.rms(values**2, unit**2).ci())
    close((found - np.array(expected)) / (expected.high - expected.low), 0, atol=0.1)


def test_effective_sequences_are_those_of_kish():
    even, one = np.ones(8), np.array([1.0, 0, 0, 0])
    assert Estimate.mean(even, SIZE).effective_sequences == pytest.approx(8)
    assert Estimate.mean(one, SIZE).effective_sequences == pytest.approx(1)
    # (1 + 1 + 2)^2 / (1 + 1 + 4); a share counts sequences by its whole.
    parts, wholes = np.array([0.5, 0.2, 1.0]), np.array([1.0, 1.0, 2.0])
    assert Estimate.ratio(parts, wholes, SHARE).effective_sequences == pytest.approx(16 / 6)
    assert Estimate.mean(np.array([-1.0, 5.0, 2.0])).effective_sequences == 3
    assert math.isnan(Estimate.mean(np.zeros(4), SIZE).effective_sequences)
    assert Estimate.mean(1e300 * even, SIZE).effective_sequences == pytest.approx(8)


def test_the_jackknife_takes_away_the_bias_of_a_variance():
    values = np.random.default_rng(0).normal(size=9)
    without = [np.delete(values, i).var() for i in range(9)]
    found = Estimate.jackknife(values.var(), without, bias_corrected=True)
    close(found.value - found.bias, values.var(ddof=1))
    low, high = found.ci()
    below, above = t_of_sides(found.influence)
    close((above * low + below * high) / (above + below), values.var(ddof=1))


def test_a_longer_tail_makes_the_ci_longer_on_its_side():
    # A quarter of the sequences is 4: the skewness of a Bernoulli variable is 2 / sqrt(3), its
    # kurtosis below that of normal values.
    values = np.array(12 * [0.0] + 4 * [4.0])
    low, high = Estimate.mean(values).ci()
    term = 2 / math.sqrt(3) * (1 + 2 * 1.959964**2) / (6 * 4)
    assert term == pytest.approx(0.4178, abs=1e-4)
    error, students = math.sqrt(3 / 15), stats.t.ppf(0.975, 15)
    close(1 - low, students * error, rtol=1e-6)
    close(high - 1, (students + term) * error, rtol=1e-6)
    mirrored = Estimate.mean(-values).ci()
    close(mirrored, [-high, -low])


def test_median_of_lognormal_values():
    logs = np.array([-1.0, 0.0, 1.0, 4.0])
    found = Estimate.median(np.exp(logs))
    below, above = t_of_sides(logs - logs.mean())
    error = math.sqrt(math.pi / 2) * stats.sem(logs)
    middle = math.log(np.median(np.exp(logs)))
    close(np.log(found.ci()), [middle - below * error, middle + above * error])
    mean = Estimate.geometric_mean(logs)
    close(mean.value, stats.gmean(np.exp(logs)))
    close(np.log(mean.ci()), of_sides(logs))


@given(seeds, st.sampled_from([0.1, 0.5, 0.9]))
def test_quantiles_are_those_of_numpy_with_the_ci_of_woodruff(rng, share):
    values, owner = rng.gamma(2.0, size=160), np.repeat(np.arange(8), 20)
    (found,) = quantile_estimates(values, owner, [share])
    close(found.value, np.quantile(values, share, method="inverted_cdf"))
    below = np.array([(values[owner == s] <= found.value).mean() for s in range(8)])
    half = stats.t.ppf(0.975, 7) * stats.sem(below)
    low, high = (min(1.0, max(0.0, share + sign * half)) for sign in (-1, 1))
    close(found.ci(), np.quantile(values, [low, high], method="inverted_cdf"))
    without = [np.quantile(values[owner != s], share, method="inverted_cdf") for s in range(8)]
    close(found.influence, 7 * (np.log(found.value) - np.log(without)))


def test_infinite_values_are_the_largest():
    values, owner = np.array([1.0, 2.0, np.inf, 3.0, np.inf, 4.0]), np.array([0, 0, 0, 1, 1, 1])
    median, high = quantile_estimates(values, owner, [0.5, 0.9])
    assert median.value == 3.0
    assert high.value == np.inf
    assert high.ci() is None


@pytest.mark.parametrize(
    "nothing",
    [
        Estimate.mean(np.array([])),
        Estimate.mean(np.array([1.0])),
        Estimate.mean(np.ones(5)),
        Estimate.mean(np.array([1.0, np.nan, 2.0])),
        Estimate.ratio(np.zeros(3), np.zeros(3)),
        Estimate.ratio(np.zeros(3), np.ones(3), SHARE),
        Estimate.ratio(np.ones(3), np.ones(3), SHARE),
        # One sequence carries all of it.
        Estimate.mean(np.array([0.0, 0.0, 3.0]), SIZE),
        Estimate.mean(np.array([1e-200, 1e200]), SIZE),
        Estimate.from_derivatives(0.0, np.array([1.0, -1.0]), SIZE),
        Estimate.from_derivatives(1e-300, np.array([1.0, -1.0]), SIZE),
        Estimate.from_derivatives(np.inf, np.array([1.0, -1.0])),
        Estimate.rms(np.zeros(4)),
        Estimate.median(np.array([])),
        Estimate.median(np.array([0.0, 1.0, 2.0])),
        Estimate.median(np.array([2.0, 2.0])),
        *quantile_estimates(np.array([]), np.array([], int), [0.5]),
        *quantile_estimates(np.ones(6), np.zeros(6, int), [0.5]),
    ],
)
def test_where_nothing_can_be_known_there_is_no_ci(nothing):
    assert nothing.ci() is None
    assert np.isnan(ci_array([nothing])).all()
    if nothing.sequences < 2:
        assert nothing.change(nothing) is None


# --- coverage of heavy-tailed sequences, whose truth is known in closed form


def heavy(rng, simulations, sequences):
    """Strengths of three features, log-normal: a few sequences carry most of the sum."""
    size = rng.lognormal(0, 1.0, (simulations, sequences, 1))
    # Shares of a sequence don't depend on its size, so that the truth is that of their means.
    return size * rng.dirichlet([0.2, 1.0, 4.0], (simulations, sequences))


HEAVY = {
    # The mean of Dirichlet shares; E exp(z) = exp(1 / 2).
    "share of 4 %": (lambda p: Estimate.ratio(p[:, 0], p.sum(1), SHARE), 0.2 / 5.2),
    "share of 19 %": (lambda p: Estimate.ratio(p[:, 1], p.sum(1), SHARE), 1 / 5.2),
    "share of 77 %": (lambda p: Estimate.ratio(p[:, 2], p.sum(1), SHARE), 4 / 5.2),
    "mean lag": (lambda p: Estimate.ratio(p[:, 1] + 2 * p[:, 2], p.sum(1), SIZE), 9 / 5.2),
}


@pytest.mark.parametrize("sequences", [16, 32])
@pytest.mark.parametrize("name", HEAVY)
def test_cis_of_heavy_tailed_sequences_hold_the_truth(name, sequences):
    make, truth = HEAVY[name]
    # The smallest share is 0 in most sequences: a few carry it, and its CI is the weakest.
    least = 0.87 if name == "share of 4 %" else 0.90
    draws = heavy(np.random.default_rng(0), 1500, sequences)
    found = [make(parts).ci() for parts in draws]
    assert all(ci is not None for ci in found)
    assert least <= covered(found, truth) <= 0.985


def test_strengths_of_skewed_sequences():
    """Gamma with a skewness of 1.4; the mean of values with heavier tails needs more sequences."""
    rng = np.random.default_rng(0)
    found = [Estimate.mean(rng.gamma(2.0, 0.5, 16), SIZE).ci() for _ in range(3000)]
    assert 0.92 <= covered(found, 1.0) <= 0.985


def test_cells_of_a_sequence_are_no_sequences():
    """Why the package never takes (sequence, time step) cells for independent."""
    rng = np.random.default_rng(0)
    right, wrong = [], []
    for _ in range(2000):
        cells = rng.normal(size=(16, 1)) + 0.5 * rng.normal(size=(16, 20))
        right.append(Estimate.mean(cells.mean(axis=1)).ci())
        wrong.append(Estimate.mean(cells.ravel()).ci())
    assert covered(right, 0.0) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))
    assert covered(wrong, 0.0) < 0.5


def test_cis_of_a_summary_cover():
    rng, simulations = np.random.default_rng(0), 800
    strength, share, time_share = [], [], []
    for _ in range(simulations):
        size = rng.gamma(8.0, 1 / 8, (MIN_SEQUENCES_FOR_CI, 1, 1))
        inputs = size * rng.normal([2.0, -1.0], 0.3, (16, 3, 2))
        intervals = size[..., 0] * rng.normal(3.0, 0.3, (16, 3))
        result = summarize(Attribution(InputXGradient(), inputs, intervals))
        strength.append(result.strength_ci)
        share.append(result.share_ci[:, 0])
        time_share.append(result.time_delta_share_ci)
    mean = stats.foldnorm.mean(np.array([2.0, 1.0, 3.0]) / 0.3, scale=0.3)
    slack = 0.015 + 4 * math.sqrt(0.95 * 0.05 / simulations)
    for found, truth in (
        (strength, 3 * (mean[0] + mean[1])),
        (share, mean[0] / (mean[0] + mean[1])),
        (time_share, mean[2] / mean.sum()),
    ):
        assert covered(found, truth) == pytest.approx(0.95, abs=slack)


# --- what results hold, against leaving out by hand


def influence(value, without_each, scale):
    """By leaving each out, on the scale that SciPy has for it."""
    to = {"identity": np.asarray, "log": np.log, "logit": special.logit, "fisher_z": np.arctanh}
    with np.errstate(divide="ignore", invalid="ignore"):
        values, value = to[scale.name](np.asarray(without_each)), to[scale.name](value)
        return (len(values) - 1) * (value - values)


@given(seeds)
def test_states_without_a_sequence(rng):
    h = np.tanh(rng.normal(size=(6, 7, 3)).cumsum(axis=1))
    dt = rng.uniform(0.5, 2, (6, 7))
    found = transition_statistics(h, time_delta=dt, bound=1.0)

    def left_out(key):
        return np.array(
            [
                transition_statistics(
                    np.delete(h, b, 0), time_delta=np.delete(dt, b, 0), bound=1.0
                )[key]
                for b in range(6)
            ]
        )

    assert set(found.estimates) == {
        "magnitude_mean", "magnitude_std", "direction_consistency", "direction_persistence",
        "speed_mean", "saturation",
    }  # fmt: skip
    for key, number in found.estimates.items():
        close(number.value, found[key], rtol=1e-9)
        close(number.influence, influence(found[key], left_out(key), number.scale), atol=1e-7)


@given(seeds)
def test_dimensions_without_a_sequence(rng):
    h = rng.normal(size=(6, 9, 4)) * rng.gamma(2.0, size=4) + 5
    found = state_space(h)
    number = found.estimates["participation_ratio"]
    expected = [state_space(np.delete(h, b, 0)).participation_ratio for b in range(6)]
    close(number.influence, influence(found.participation_ratio, expected, SIZE), atol=2e-4)
    for axis in (1, 2):
        close(
            found.estimates[f"pc{axis}_share"].value,
            found.axis_variance_ratio[axis - 1],
            rtol=1e-5,
        )
    close(found.estimates["basis_captured"].value, found.captured, rtol=1e-5)


@given(seeds)
def test_variation_without_a_sequence(rng):
    tau = np.exp(rng.normal(size=(5, 8, 3)))
    tau[rng.random(tau.shape) < 0.05] = np.nan
    found = unit_time_constants(tau, kind="gate")
    number = found.estimates()["variation"]
    expected = [unit_time_constants(np.delete(tau, b, 0), kind="gate").variation for b in range(5)]
    close(number.influence, influence(found.variation, expected, SIZE))
    assert {"gate_q10", "gate_q50", "gate_q90", "variation", "endless"} == set(found.estimates())


def test_drift_by_derivatives_is_as_by_the_jackknife():
    rng = np.random.default_rng(0)
    batch, steps, units = 60, 8, 4
    before = rng.normal(size=(batch, 1, units)) + rng.normal(size=(batch, steps, units))
    now = before @ rng.normal(size=(units, units)) + 1.5 * rng.normal(size=before.shape)
    owner = np.repeat(np.arange(batch), steps)
    x, y = (a.reshape(-1, units) for a in (now, before))
    found = state_drift(x, y, owner)
    assert state_drift(x, y).estimates == {}
    for key in ("cka", "procrustes"):
        expected = np.array([state_drift(x[owner != b], y[owner != b])[key] for b in range(batch)])
        expected = influence(found[key], expected, SHARE)
        effects = found.estimates[key].influence
        assert np.corrcoef(effects, expected)[0, 1] > 0.995, key
        assert effects.std() == pytest.approx(expected.std(), rel=0.1), key
    assert state_drift(x, x, owner).estimates["cka"].ci() is None


def test_autocorrelation_without_a_group():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(16, 40, 3))
    for t in range(1, 40):
        h[:, t] = 0.8 * h[:, t - 1] + 0.6 * h[:, t]
    found = autocorrelation_times(h)
    assert found.without_each.shape == (16, 3)
    for b in range(16):
        alone = autocorrelation_times(np.delete(h, b, 0)).values
        # There, the mean over sequences is another one, too.
        close(found.without_each[b], alone, rtol=0.05)
    assert autocorrelation_times(np.concatenate([h] * 3)).without_each.shape == (16, 3)


# --- invariances


def all_of(h, dt, mask=None):
    """Numbers of the standard set that are of states."""
    return {
        **transition_statistics(h, time_delta=dt, mask=mask, bound=10.0).estimates,
        **layer_statistics(h, activation="tanh", mask=mask).estimates,
        **state_space(h, mask=mask).estimates,
    }


@given(seeds, st.integers(2, 3))
def test_more_steps_that_say_the_same_make_nothing_surer(rng, times):
    """Each step several times: many more cells, as many sequences."""
    h = rng.normal(size=(7, 6, 3)).cumsum(axis=1)
    once = {**layer_statistics(h, activation="tanh").estimates, **state_space(h).estimates}
    longer = np.repeat(h, times, axis=1)
    again = {
        **layer_statistics(longer, activation="tanh").estimates,
        **state_space(longer).estimates,
    }
    assert set(once) >= {"mean", "std", "sparsity", "treves_rolls", "participation_ratio"}
    for name, number in once.items():
        close(again[name].value, number.value, rtol=1e-5)
        if (interval := number.ci()) is None:
            assert again[name].ci() is None
        else:
            close(again[name].ci(), interval, rtol=2e-3, atol=1e-4)
    tau = np.exp(rng.normal(size=(5, 8, 3)))
    first = unit_time_constants(tau, kind="gate").estimates()
    second = unit_time_constants(np.repeat(tau, times, axis=1), kind="gate").estimates()
    for name in ("gate_q10", "gate_q50", "gate_q90"):
        close(second[name].ci(), first[name].ci())


@given(seeds, st.floats(0.01, 100))
def test_units_scale_the_ci(rng, factor):
    h, dt = rng.normal(size=(7, 6, 3)), rng.uniform(0.5, 2, (7, 6))
    first, second = (transition_statistics(c * h, time_delta=dt).estimates for c in (1, factor))
    for name, power in (
        ("magnitude_mean", 1), ("magnitude_std", 1), ("speed_mean", 1),
        ("direction_consistency", 0), ("direction_persistence", 0),
    ):  # fmt: skip
        expected = np.array(first[name].ci()) * factor**power
        close(second[name].ci(), expected, rtol=1e-6, atol=1e-7)
    tau = np.exp(rng.normal(size=(5, 8, 3)))
    first, second = (unit_time_constants(c * tau, kind="gate").estimates() for c in (1, factor))
    close(second["gate_q50"].ci(), factor * np.array(first["gate_q50"].ci()))
    close(second["variation"].ci(), first["variation"].ci(), rtol=1e-6)
    y, g = {s: rng.normal(size=9) for s in (0.5, 1.0, 2.0)}, rng.normal(size=(9, 4))
    ones = np.ones((9, 4))
    first, second = (
        time_sensitivity(
            {s: c * v + (c - 1) for s, v in y.items()}, time_delta=ones, time_gradient=c * g
        )
        for c in (1, factor)
    )
    close(second.ci, first.ci, rtol=1e-6, atol=1e-7)
    for name, number in first.estimates().items():
        close(second.estimates()[name].ci(), number.ci(), rtol=1e-6, atol=1e-7)


@given(seeds)
def test_padding_and_order_of_sequences_do_not_matter(rng):
    h, dt = rng.normal(size=(6, 7, 3)), rng.uniform(0.5, 2, (6, 7))
    mask = np.arange(7) < rng.integers(4, 8, 6)[:, None]
    first = all_of(h, dt, mask)
    order = rng.permutation(6)
    noise = np.where(mask[..., None], h, 1e3 * rng.normal(size=h.shape))
    second = all_of(noise[order], dt[order], mask[order])
    for name, number in first.items():
        if name.startswith(("pc", "basis")) or number.ci() is None:
            continue
        close(second[name].ci(), number.ci(), rtol=1e-4, atol=1e-5)


# --- coverage


SKEWED = [False, True]


def clustered(rng, sequences, steps=20, units=4, skewed=False):
    """Values that are alike within a sequence; of which some are much larger, if skewed."""
    own = rng.normal(size=(sequences, 1, units))
    size = np.exp(0.5 * rng.normal(size=(sequences, 1, 1))) if skewed else 1.0
    return size * (own + rng.normal(size=(sequences, steps, units)))


def coverage(make, key, simulations, truth=None, big=40_000, **options):
    """How often the interval holds the truth, which is what very many sequences have."""
    rng = np.random.default_rng(0)
    if truth is None:
        found = make(rng, big, **options)[key]
        truth = found.value
    return covered([make(rng, 16, **options)[key].ci() for _ in range(simulations)], truth)


def of_layers(rng, n, skewed=False):
    return layer_statistics(clustered(rng, n, skewed=skewed), activation="tanh").estimates


def of_transitions(rng, n, skewed=False):
    h = clustered(rng, n, steps=12, skewed=skewed)
    h[..., 0] += 2 * np.arange(12)
    return transition_statistics(h, bound=2.0).estimates


def of_time(rng, n, skewed=False):
    y = rng.lognormal(0, 0.5, n) if skewed else rng.normal(size=n)
    moved = 0.3 * rng.normal(size=n) + 0.2
    values = {1.0: y, 2.0: y + moved * (np.exp(0.4 * rng.normal(size=n)) if skewed else 1)}
    gradient = moved[:, None] * rng.dirichlet(np.ones(3), n)
    return time_sensitivity(values, time_delta=np.ones((n, 3)), time_gradient=gradient).estimates()


def of_outputs(rng, n, skewed=False):
    size = rng.lognormal(0, 0.7, n) if skewed else rng.gamma(8.0, size=n)
    strength = size[:, None, None] * rng.gamma(1.0, 0.7 ** np.arange(6)[:, None], (n, 6, 1))
    found = strength[None, :, ::-1] * np.ones((2, 1, 1, 1))
    return output_time(
        found, np.array([4, 5]), time_delta=np.ones((n, 6))
    ).estimates  # fmt: skip


# As in `test_uncertainty`: of skewed values 16 sequences hold the truth less often than it says.
# An SD of cells in sequences of very different size is the worst: a few of these decide.
KINDS = [
    (of_layers, "mean", 0.92, 0.90),
    (of_layers, "std", 0.90, 0.88),
    (of_layers, "sparsity", 0.92, 0.90),
    (of_layers, "treves_rolls", 0.92, 0.92),
    (of_transitions, "magnitude_mean", 0.92, 0.88),
    (of_transitions, "magnitude_std", 0.90, 0.78),
    (of_transitions, "speed_mean", 0.92, 0.88),
    (of_transitions, "direction_consistency", 0.91, 0.90),
    (of_transitions, "direction_persistence", 0.92, 0.92),
    (of_transitions, "saturation", 0.92, 0.90),
    (of_time, "sensitivity_x2", 0.92, 0.88),
    (of_time, "elasticity_rms", 0.92, 0.88),
    (of_time, "elasticity", 0.92, 0.90),
    (of_outputs, "strength", 0.92, 0.88),
    (of_outputs, "own_share", 0.92, 0.90),
    (of_outputs, "mean_lag", 0.92, 0.88),
]


@pytest.mark.parametrize("skewed", SKEWED, ids=["even", "skewed"])
@pytest.mark.parametrize(("make", "key", "even", "uneven"), KINDS, ids=[k[1] for k in KINDS])
def test_cis_of_16_sequences_hold_the_truth(make, key, even, uneven, skewed):
    found = coverage(make, key, 600, skewed=skewed)
    assert found >= (uneven if skewed else even) - 0.015, found
    assert found <= 0.985, found


def of_constants(rng, n, spread=0.5):
    units = np.linspace(-1, 1, 6)
    own = spread * rng.normal(size=(n, 1, 6)) + spread * rng.normal(size=(n, 1, 1))
    logs = units + own + (0.3 + 0.2 * units) * rng.normal(size=(n, 10, 6))
    logs[rng.random(logs.shape) < 0.02] = np.inf
    return unit_time_constants(np.exp(logs), kind="gate").estimates()


@pytest.mark.parametrize("spread", [0.2, 0.8])
@pytest.mark.parametrize("key", ["gate_q10", "gate_q50", "gate_q90", "variation", "endless"])
def test_time_constants_of_16_sequences(key, spread):
    found = coverage(of_constants, key, 500, big=8000, spread=spread)
    assert 0.895 <= found <= 0.985, found


@pytest.mark.parametrize("count", [4, 8, 16])
@pytest.mark.parametrize("kind", ["lognormal", "gamma", "normal"])
def test_medians_of_few_sequences(kind, count):
    """Four is what Jacobians are computed for; ranks say nothing of so few."""
    rng = np.random.default_rng(0)
    draw, truth = {
        "lognormal": (lambda: rng.lognormal(1, 0.6, count), math.e),
        "gamma": (lambda: rng.gamma(2.0, size=count), stats.gamma.median(2.0)),
        "normal": (lambda: 3 + 0.5 * rng.normal(size=count), 3.0),
    }[kind]
    found = covered([Estimate.median(draw()).ci() for _ in range(2000)], truth)
    assert 0.93 <= found <= 0.985, found


def remembering(rng, n, steps=30, keep=0.8, units=8):
    h = rng.normal(size=(n, steps, units))
    for t in range(1, steps):
        h[:, t] = keep * h[:, t - 1] + math.sqrt(1 - keep**2) * h[:, t]
    spectrum = np.linspace(1, 0.2, units)
    return h * np.sqrt(spectrum), spectrum.sum() ** 2 / (spectrum**2).sum()


@pytest.mark.parametrize("count", [8, 16, 32])
def test_dimensions_of_states_that_depend_on_each_other(count):
    rng = np.random.default_rng(0)
    plain, corrected, biased = [], [], []
    for _ in range(400):
        h, truth = remembering(rng, count)
        number = state_space(h).estimates["participation_ratio"]
        plain.append(number.ci())
        biased.append(number.value)
        ratio = corrected_participation_ratio(h)
        corrected.append(corrected_participation_estimate(h, ratio).ci())
    # The number itself is too small; its interval is without that.
    assert np.mean(biased) < 0.975 * truth
    assert 0.91 <= covered(plain, truth) <= 0.985
    assert 0.90 <= covered(corrected, truth) <= 0.985


def test_autocorrelation_times_of_16_sequences():
    rng, simulations = np.random.default_rng(0), 250
    truth = autocorrelation_times(remembering(rng, 4000)[0])
    shares = [0.1, 0.5, 0.9]
    found = [
        autocorrelation_times(remembering(rng, 16)[0]).quantile_estimates(shares)
        for _ in range(simulations)
    ]
    # All units are alike, so that a low or high quantile of few sequences is one of chance; what
    # the interval of the median holds is the truth.
    median = covered([one[1].ci() for one in found], np.median(truth.values))
    assert 0.91 <= median <= 0.985, median


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_drift_of_16_sequences(noise):
    rng = np.random.default_rng(0)
    turn = rng.normal(size=(5, 5))

    def drift(n):
        before = rng.normal(size=(n, 1, 5)) + rng.normal(size=(n, 20, 5))
        now = before @ turn + noise * (rng.normal(size=(n, 1, 5)) + rng.normal(size=before.shape))
        owner = np.repeat(np.arange(n), 20)
        return state_drift(now.reshape(-1, 5), before.reshape(-1, 5), owner).estimates

    truth = {key: number.value for key, number in drift(8000).items()}
    found = [drift(16) for _ in range(400)]
    for key, value in truth.items():
        # Both are biased: noise looks a little like anything.
        assert 0.87 <= covered([one[key].ci() for one in found], value) <= 0.99, key


def test_memory_of_four_sequences():
    """Leaky units whose rate differs between sequences: logarithms of what is left are normal."""
    rng, left, band = np.random.default_rng(0), [], []
    for _ in range(800):
        rate = np.exp(-0.3 + 0.1 * rng.normal(size=(4, 1, 1, 1)))
        memory = memory_horizon(rate * np.eye(3) * np.ones((4, 6, 1, 1)))
        left.append(memory.estimates()["linear_memory_left"].ci())
        band.append(memory.ci[:, 3])
    slack = 4 * math.sqrt(0.95 * 0.05 / 800)
    assert covered(left, math.exp(-0.3 * 6)) == pytest.approx(0.95, abs=slack)
    assert covered(band, math.exp(-0.3 * 3)) == pytest.approx(0.95, abs=slack)


def test_what_half_has_not_forgotten_has_no_ci():
    slow, fast = np.eye(2) * 0.99, np.eye(2) * 0.3
    kinds = [(slow, slow, fast, slow), (fast, slow, fast, fast * 1.1)]
    for kind, known in zip(kinds, (False, True), strict=True):
        steps = np.stack(kind)[:, None] * np.ones((4, 5, 1, 1))
        estimates = memory_horizon(steps).estimates()
        assert ("linear_memory_steps" in estimates) == known


def test_activity_of_groups_of_16_sequences():
    rng = np.random.default_rng(0)
    groups = [NeuronGroup("inter", np.arange(2))]

    def seen(n):
        return group_activity(clustered(rng, n, steps=8, units=2), groups)["inter"]

    truth = seen(20_000)
    found = [seen(16) for _ in range(600)]
    for key in ("level", "speed"):
        held = covered([getattr(f, f"{key}_estimate").ci() for f in found],
                       getattr(truth, key))  # fmt: skip
        assert 0.92 <= held <= 0.985, key


# --- changes


@given(seeds)
def test_a_change_is_that_of_the_means_of_pairs(rng):
    before, now = rng.gamma(5.0, size=(2, 9))
    test = stats.ttest_rel(now, before)
    ci = test.confidence_interval(0.95)
    change = Estimate.mean(now).change(Estimate.mean(before))
    close(change, [(now - before).mean(), ci.low, ci.high, test.pvalue], atol=1e-9)
    # Of sizes it is relative, by the jackknife of the logarithm of the ratio.
    first, second = (Estimate.mean(v, SIZE) for v in (before, now))
    change, back = second.change(first), first.change(second)
    ratio = ci_by_leaving_out(
        lambda pairs: pairs[:, 1].mean() / pairs[:, 0].mean(),
        np.stack([before, now], 1),
        "log",
        df=8,
    )
    close(change[:3], np.array([now.mean() / before.mean(), *ratio]) - 1)
    close((1 + change.low) * (1 + back.high), 1)
    close(change.p, back.p)
    # Of shares it is a difference.
    whole = before + now + 1
    first, second = (Estimate.ratio(v, whole, SHARE) for v in (before, now))
    difference = ci_by_leaving_out(
        lambda r: (r[:, 1].sum() - r[:, 0].sum()) / r[:, 2].sum(),
        np.stack([before, now, whole], 1),
        df=8,
    )
    close(second.change(first)[1:3], difference, rtol=0.1, atol=0.01)


def test_a_change_is_found_that_cis_beside_each_other_hide():
    rng = np.random.default_rng(0)
    seen, apart, held = 0, 0, []
    for _ in range(500):
        own = rng.lognormal(0, 0.7, 16)
        before = Estimate.mean(own * (1 + 0.02 * rng.normal(size=16)), SIZE)
        now = Estimate.mean(1.1 * own * (1 + 0.02 * rng.normal(size=16)), SIZE)
        change = now.change(before)
        held.append((change.low, change.high))
        seen += change.low > 0
        apart += now.ci()[0] > before.ci()[1]
    assert covered(held, 0.1) == pytest.approx(0.94, abs=0.035)
    assert seen == 500
    assert apart == 0


def test_change_of_a_ratio_is_paired_too():
    """Of SDs, shares and the like it holds as often as it says that nothing changed."""
    rng, held = np.random.default_rng(0), []
    for _ in range(800):
        base = clustered(rng, 16, steps=6, units=2)
        looks = [base + 0.3 * rng.normal(size=base.shape) for _ in range(2)]
        before, now = (layer_statistics(h).estimates["std"] for h in looks)
        held.append(now.change(before)[1:3])
    assert covered(held, 0.0) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 800))


def test_numbers_that_did_not_change_are_rarely_reported_to():
    """With how many there are accounted for: of ten, any is named in 5 % of looks."""
    rng, simulations, any_named = np.random.default_rng(0), 1500, 0
    for _ in range(simulations):
        own = rng.normal(size=(10, 16))
        before, now = own + 0.1 * rng.normal(size=(2, 10, 16))
        pairs = [(Estimate.mean(a), Estimate.mean(b)) for a, b in zip(before, now, strict=True)]
        any_named += any(changed_beyond_chance(pairs))
    assert any_named / simulations <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / simulations)
    assert any_named / simulations >= 0.02


@given(seeds, st.integers(1, 8))
def test_which_changed_is_as_holms_p_values_say(rng, count):
    shift = rng.choice([0.0, 0.5, 2.0], count)
    before = rng.normal(size=(count, 12))
    now = before + shift[:, None] + rng.normal(size=(count, 12))
    pairs = [(Estimate.mean(a), Estimate.mean(b)) for a, b in zip(before, now, strict=True)]
    p = np.array([stats.ttest_rel(a, b).pvalue for a, b in zip(before, now, strict=True)])
    close([second.change(first).p for first, second in pairs], p, atol=1e-9)
    order = np.argsort(p)
    adjusted = np.empty(count)
    adjusted[order] = np.maximum.accumulate(p[order] * (count - np.arange(count)))
    close(holm(p.tolist()), np.minimum(adjusted, 1.0))
    assert changed_beyond_chance(pairs) == (adjusted < 0.05).tolist()


def test_changes_at_their_ends():
    rng = np.random.default_rng(0)
    values = rng.normal(size=8)
    one = Estimate.mean(values)
    assert changed_beyond_chance([]) == []
    assert changed_beyond_chance([(one, one)]) == [False]
    assert one.change(one) == (0.0, 0.0, 0.0, 1.0)
    # All by the same amount.
    assert changed_beyond_chance([(one, Estimate.mean(values + 1))]) == [True]
    lost = Estimate.mean(np.full(8, np.nan))
    assert lost.change(one) is None
    assert changed_beyond_chance([(one, lost), (one, Estimate.mean(values + 1))]) == [False, True]
    zero = Estimate(0.0, np.zeros(8), SIZE)
    assert zero.change(Estimate.mean(values + 9, SIZE)) is None
    with pytest.raises(ValueError, match="8 sequences before and there are 7 now: pass"):
        Estimate.mean(values[1:]).change(one)


@given(seeds, st.sampled_from([REAL, SIZE, SHARE, CORRELATION]))
def test_an_estimate_survives_an_interruption(rng, scale):
    before, now = (Estimate.mean(v, scale) for v in rng.beta(2.0, 2.0, size=(2, 9)))
    again = Estimate.from_state(json.loads(json.dumps(before.to_state())))
    close(now.change(again), now.change(before), rtol=1e-4, atol=1e-6)


def test_numbers_too_large_for_a_state_are_kept_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        now = Estimate.mean(np.array([1e300, 2e300, 4e300]))
        before = Estimate.from_state(json.loads(json.dumps(now.to_state())))
        assert now.change(before) == (0.0, 0.0, 0.0, 1.0)
        assert changed_beyond_chance([(before, now)]) == [False]
        # What one sequence carries alone has an infinite influence, which JSON doesn't know.
        alone = Estimate.mean(np.array([0.0, 0.0, 3.0]), SIZE)
        state = json.loads(json.dumps(alone.to_state(), allow_nan=False))
        assert Estimate.from_state(state).ci() is None


# --- many at once


@given(seeds, st.integers(2, 20), st.integers(1, 5))
def test_ratios_of_columns_are_those_of_each_column(rng, count, columns):
    parts = rng.exponential(size=(count, columns))
    whole = parts.sum(axis=1) + rng.exponential(size=count)
    for number, estimate in enumerate(Estimate.ratios(parts, whole, SHARE)):
        share = parts[:, number].sum() / whole.sum()
        assert estimate.value == pytest.approx(share)
        left_out = [
            np.delete(parts[:, number], s).sum() / np.delete(whole, s).sum() for s in range(count)
        ]
        logit = np.log(share / (1 - share)) - np.log(np.array(left_out) / (1 - np.array(left_out)))
        np.testing.assert_allclose(estimate.influence, (count - 1) * logit, atol=1e-9)
        assert estimate.scale == SHARE


@pytest.mark.parametrize("count", [0, 1])
def test_ratios_of_one_sequence_have_no_ci(count):
    found = Estimate.ratios(np.ones((count, 2)), np.full(count, 2.0), SHARE)
    assert [estimate.ci() for estimate in found] == [None, None]


@given(seeds)
def test_cis_of_many_numbers_are_those_of_each(rng):
    values = rng.exponential(size=(4, 9))
    estimates = {
        "size": Estimate.mean(values[0], SIZE),
        "real": Estimate.mean(values[1] - 1),
        "fewer": Estimate.mean(values[2, :5], SIZE),
        "equal": Estimate.mean(np.ones(9)),
        "one": Estimate.mean([2.0]),
        "known": dataclasses.replace(Estimate.mean(values[3]), known_ci=(1.0, 2.0)),
    }
    found = with_cis(estimates)
    for name, one in estimates.items():
        assert found[name].ci() == pytest.approx(one.ci())
    assert found["real"].known_ci == pytest.approx(of_sides(values[1] - 1))
    assert found["equal"].known_ci is None
    assert found["one"].known_ci is None
    assert found["known"].known_ci == (1.0, 2.0)
    # Another level is computed anew.
    low, high = found["real"].ci(0.5)
    assert found["real"].known_ci[0] < low < high < found["real"].known_ci[1]


def students_ci(values):
    return stats.t.interval(0.95, freedom(values), loc=values.mean(), scale=stats.sem(values))


def test_two_sequences_need_no_scipy():
    # As in the dry run, for which the training loop waits.
    code = (
        "import sys; from ncp_callbacks.stats import Estimate; "
        "print(Estimate.mean([1.0, 3.0]).ci(), 'scipy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    half = math.tan(0.475 * math.pi)  # a standard error of 1 and one degree of freedom
    low, high, imported = run.stdout.replace("(", "").replace(")", "").replace(",", "").split()
    assert (float(low), float(high)) == pytest.approx((2 - half, 2 + half))
    assert imported == "False"
