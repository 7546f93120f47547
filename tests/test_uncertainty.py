"""Intervals by simulation, quantiles and ranks against SciPy, reliability in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ncp_callbacks.analysis.uncertainty import (
    FEW,
    cosine,
    mean_interval,
    order_correlation,
    rank_correlation,
    rms_interval,
    share_interval,
    split_half,
    t_quantile,
)
from scipy import stats

from ncp_callbacks.analysis import summarize
from ncp_callbacks.analysis.methods import Attribution

pytestmark = pytest.mark.filterwarnings("error")

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def coverage(intervals, truth):
    """Share of simulations (N, 2) that hold the truth."""
    low, high = np.moveaxis(np.asarray(intervals), 1, 0)
    return ((low <= truth) & (truth <= high)).mean()


def binomial(p, simulations, sds=4):
    return sds * math.sqrt(p * (1 - p) / simulations)


# --- Student's t


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 15, 31, 63, 255, 1000, 1e5])
@pytest.mark.parametrize("p", [0.5, 0.5001, 0.6, 0.75, 0.9, 0.95, 0.975, 0.995, 0.9999, 1 - 1e-9])
def test_t_quantile_is_that_of_scipy(p, freedom):
    # The tail 1 - p is known to some 1e-16 of 1 only.
    tolerance = 1e-8 + 1e-16 / (1 - p) * 10
    assert t_quantile(p, freedom) == pytest.approx(
        stats.t.ppf(p, freedom), rel=tolerance, abs=1e-9 + 2e-13 * freedom
    )


@given(st.floats(0.5, 0.9999), st.floats(0.5, 500))
def test_t_quantile_everywhere(p, freedom):
    assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-7, abs=1e-9)


# --- means


@given(seeds, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_mean_interval_is_that_of_scipy(rng, level):
    values = rng.normal(size=(9, 4, 2))
    low, high = mean_interval(values, level)
    se = stats.sem(values, axis=0)
    expected = stats.t.interval(level, 8, loc=values.mean(axis=0), scale=se)
    np.testing.assert_allclose((low, high), expected, rtol=1e-9)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_mean_interval_of_16_normal_sequences_covers_as_often_as_it_says(level):
    rng, simulations = np.random.default_rng(0), 20_000
    values = 3.0 + rng.normal(size=(FEW, simulations))
    intervals = mean_interval(values, level).T
    assert coverage(intervals, 3.0) == pytest.approx(level, abs=binomial(level, simulations))


def skewed(rng, sequences, simulations):
    """Log-normal strengths, skewness 6: a few sequences count for much."""
    return rng.lognormal(0, 1, (sequences, simulations)), math.exp(0.5)


def test_mean_interval_of_skewed_sequences():
    rng = np.random.default_rng(0)
    values, truth = skewed(rng, 64, 20_000)
    assert coverage(mean_interval(values).T, truth) >= 0.90
    # Of fewer than 16 it is indicative, as is said; how far off it is then.
    values, truth = skewed(rng, 8, 20_000)
    assert 0.75 < coverage(mean_interval(values).T, truth) < 0.88


def test_cells_of_a_sequence_are_no_sequences():
    """Why the package never takes (sequence, step) cells for independent."""
    rng = np.random.default_rng(0)
    sequences, steps, simulations = 16, 20, 4000
    cells = rng.normal(size=(sequences, 1, simulations)) + 0.5 * rng.normal(
        size=(sequences, steps, simulations)
    )
    right = coverage(mean_interval(cells.mean(axis=1)).T, 0.0)
    assert right == pytest.approx(0.95, abs=binomial(0.95, simulations))
    assert coverage(mean_interval(cells.reshape(-1, simulations)).T, 0.0) < 0.5


# --- shares


def test_share_interval_of_normal_parts_covers_as_often_as_it_says():
    rng, simulations = np.random.default_rng(0), 6000
    mean = np.array([3.0, 1.5, 0.5])
    # Parts of a sequence go up and down together: a ratio profits from that.
    common = 1 + 0.15 * rng.normal(size=(simulations, FEW, 1))
    parts = np.clip(mean * common + 0.1 * rng.normal(size=(simulations, FEW, 3)), 0, None)
    intervals = np.stack([share_interval(p) for p in parts])
    truth = mean / mean.sum()
    for feature in range(3):
        covered = coverage(intervals[..., feature], truth[feature])
        # The linearisation of the ratio costs a little.
        assert covered == pytest.approx(0.95, abs=0.01 + binomial(0.95, simulations)), feature


def test_share_interval_of_skewed_parts():
    rng, simulations = np.random.default_rng(1), 4000
    parts = rng.lognormal(0, 1, (simulations, 64, 1)) * rng.lognormal(
        [1.0, 0.0, -1.0], 0.7, (simulations, 64, 3)
    )
    truth = np.exp([1.0, 0.0, -1.0]) / np.exp([1.0, 0.0, -1.0]).sum()
    intervals = np.stack([share_interval(p) for p in parts])
    for feature in range(3):
        assert coverage(intervals[..., feature], truth[feature]) >= 0.90, feature


def test_share_interval_against_the_bootstrap():
    rng = np.random.default_rng(0)
    parts = rng.gamma(2.0, [3.0, 1.0, 0.5], (200, 3))
    drawn = parts[rng.integers(0, 200, (4000, 200))].sum(axis=1)
    shares = drawn / drawn.sum(axis=1, keepdims=True)
    expected = np.quantile(shares, [0.025, 0.975], axis=0)
    width = expected[1] - expected[0]
    np.testing.assert_allclose((share_interval(parts) - expected) / width, 0, atol=0.1)


@given(seeds, st.floats(0.01, 100))
def test_share_interval_invariances(rng, factor):
    parts = rng.gamma(2.0, size=(12, 4))
    low, high = share_interval(parts)
    share = parts.sum(axis=0) / parts.sum()
    assert ((low <= share) & (share <= high)).all()
    np.testing.assert_allclose(share_interval(factor * parts), (low, high), rtol=1e-9)
    order = rng.permutation(12), rng.permutation(4)
    mixed = share_interval(parts[order[0]][:, order[1]])
    np.testing.assert_allclose(mixed, np.stack((low, high))[:, order[1]], rtol=1e-9)
    # Equal shares in every sequence, however strong: nothing is uncertain about them.
    exact = share_interval(rng.gamma(2.0, size=(12, 1)) * [0.5, 0.3, 0.2])
    np.testing.assert_allclose(exact, [[0.5, 0.3, 0.2]] * 2, atol=1e-12)
    assert (share_interval(rng.gamma(0.05, size=(5, 3)) + 1e-9) >= 0).all()
    assert (share_interval(rng.gamma(0.05, size=(5, 3)) + 1e-9) <= 1).all()


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_sequences_have_no_interval(count):
    assert np.isnan(mean_interval(np.ones((count, 3)))).all()
    assert mean_interval(np.ones((count, 3))).shape == (2, 3)
    assert np.isnan(share_interval(np.ones((count, 3)))).all()


def test_nothing_has_no_shares():
    assert np.isnan(share_interval(np.zeros((5, 3)))).all()


# --- root mean squares


def test_rms_interval_of_normal_values_covers_as_often_as_it_says():
    """Also in units that are an RMS of the same sequences, as uncertain as what they measure."""
    rng, simulations = np.random.default_rng(0), 20_000
    whole = rng.normal(size=(64, simulations))
    part = 0.5 * whole + 0.3 * rng.normal(size=whole.shape)
    margin = 0.01 + binomial(0.95, simulations)
    truth = math.hypot(0.5, 0.3)
    assert coverage(rms_interval(part).T, truth) == pytest.approx(0.95, abs=margin)
    relative = part / np.sqrt((whole**2).mean(axis=0))
    assert coverage(rms_interval(relative, whole).T, truth) == pytest.approx(0.95, abs=margin)
    # Of one that counts as known, it would be too wide.
    assert coverage(rms_interval(relative).T, truth) > 0.98


def test_rms_interval_of_skewed_and_of_few_sequences():
    rng, simulations = np.random.default_rng(0), 20_000

    def covered(count):
        size = rng.lognormal(0, 0.5, (count, simulations))
        sign = rng.choice([-1.0, 1.0], size.shape)
        return coverage(rms_interval(size * sign).T, math.exp(0.25))

    assert covered(64) >= 0.90
    # Below 16 it is indicative, as is said.
    assert 0.75 < covered(8) < 0.92


def test_rms_interval_against_the_bootstrap():
    rng = np.random.default_rng(0)
    unit = rng.gamma(2.0, 1.0, 300) * rng.choice([-1.0, 1.0], 300)
    values = 0.6 * unit + 0.4 * rng.normal(size=300)
    values /= np.sqrt((unit**2).mean())

    known = (unit**2).mean()

    def rms(values, unit=None, axis=-1):
        # In the unit of the sequences that were drawn.
        scale = 1.0 if unit is None else (unit**2).mean(axis=axis) / known
        return np.sqrt((values**2).mean(axis=axis) / scale)

    for arrays in ((values,), (values, unit)):
        found = rms_interval(*arrays)
        expected = stats.bootstrap(
            arrays, rms, n_resamples=4000, method="percentile", paired=True, vectorized=True,
            rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        np.testing.assert_allclose((found - expected) / (expected.high - expected.low), 0, atol=0.1)


def test_rms_interval_by_hand():
    # Squares 1 and 9: mean 5, standard error of the mean 4, of its logarithm's half 4 / 10.
    half = stats.t.ppf(0.975, 1) * 0.4
    expected = math.sqrt(5) * np.exp([-half, half])
    np.testing.assert_allclose(rms_interval(np.array([1.0, -3.0])), expected, rtol=1e-9)


@given(seeds, st.sampled_from([1e-150, 1e-3, 1.0, 1e150]))
def test_what_holds_of_any_rms_interval(rng, scale):
    values, unit = rng.normal(size=(2, 6, 4))
    low, high = rms_interval(values, unit)
    rms = np.sqrt((values**2).mean(axis=0))
    np.testing.assert_allclose(low * high, rms**2)
    # Units of either don't matter, nor who comes first.
    order = rng.permutation(6)
    moved = rms_interval(scale * values[order], unit[order] / 7)
    np.testing.assert_allclose(moved, scale * np.stack([low, high]), rtol=1e-9)
    # In its own unit a number is 1 for sure.
    ones = values / rms
    np.testing.assert_allclose(rms_interval(ones, values), np.ones((2, 4)))


def test_rms_intervals_where_there_is_nothing_to_tell():
    assert np.isnan(rms_interval(np.ones((1, 3)))).all()
    assert rms_interval(np.ones((0, 3))).shape == (2, 3)
    np.testing.assert_array_equal(rms_interval(np.zeros((4, 1))), np.zeros((2, 1)))
    np.testing.assert_allclose(rms_interval(np.full((4, 1), -2.0)), np.full((2, 1), 2.0))
    assert np.isnan(rms_interval(np.array([1.0, np.nan]))).all()
    # One that counts alone, of two: as wide as can be, but numbers.
    assert np.isfinite(rms_interval(np.array([1e-160, 1e150]))).all()


# --- reliability


@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("sequences", [16, 17, 64])
def test_split_half_of_signal_and_noise(ratio, sequences):
    """A map with variance V over its cells, in noise of variance S: V / (V + S / n)."""
    rng, cells = np.random.default_rng(0), 60
    noise = math.sqrt(sequences / ratio)
    expected = ratio / (1 + ratio)
    found = []
    for _ in range(300):
        signal = rng.normal(size=cells)
        signal /= signal.std()
        maps = signal + noise * rng.normal(size=(sequences, cells))
        found.append(split_half(maps.reshape(sequences, 12, 5)))
    se = np.std(found) / math.sqrt(len(found))
    # The mean over splits is stepped up, which bends: a bias of the order of 1 / cells.
    assert np.mean(found) == pytest.approx(expected, abs=4 * se + 1 / cells)


def test_split_half_says_what_another_batch_would_show():
    """Its square root is the correlation with the truth, itself that with another batch's map."""
    rng = np.random.default_rng(1)
    signal = rng.gamma(1.0, size=200)
    # Strengths as they are: positive, skewed, sequences of different sizes.
    first, second = (
        signal * rng.gamma(0.5, 2.0, (32, 200)) * rng.lognormal(0, 0.5, (32, 1)) for _ in range(2)
    )
    between = np.corrcoef(first.mean(axis=0), second.mean(axis=0))[0, 1]
    assert split_half(first) == pytest.approx(between, abs=0.05)
    assert split_half(second) == pytest.approx(between, abs=0.05)


def test_split_half_at_its_ends():
    rng = np.random.default_rng(0)
    pattern = rng.normal(size=(6, 3))
    assert split_half(np.stack([pattern] * 8)) == pytest.approx(1.0)
    strengths = rng.gamma(2.0, size=(8, 1, 1))
    assert split_half(strengths * pattern) == pytest.approx(1.0)
    noise = [split_half(rng.normal(size=(16, 40))) for _ in range(200)]
    assert abs(np.mean(noise)) < 0.1
    assert max(noise) < 0.7
    assert min(noise) >= -1.0
    for nothing in (np.ones((8, 5)), np.zeros((8, 5)), pattern[:3], np.ones((9, 1)), pattern[:0]):
        assert math.isnan(split_half(nothing))


@given(seeds, st.floats(0.01, 100), st.floats(-5, 5))
def test_split_half_invariances(rng, factor, offset):
    maps = rng.normal(size=(9, 4, 3)) + 2 * rng.normal(size=(4, 3))
    found = split_half(maps)
    assert split_half(maps) == found
    assert split_half(factor * maps + offset) == pytest.approx(found, rel=1e-6)
    cells = maps.reshape(9, 12)[:, rng.permutation(12)]
    assert split_half(cells) == pytest.approx(found, rel=1e-9)


def test_lengths_of_sequences_are_no_pattern():
    """Noise in sequences of different lengths is noise, though all halves have fewer late steps."""
    rng = np.random.default_rng(0)
    ragged, signal = [], []
    pattern = rng.normal(size=(12, 4))
    for _ in range(200):
        real = np.arange(12) < rng.integers(2, 13, 32)[:, None]
        noise = np.where(real[..., None], rng.gamma(2.0, size=(32, 12, 4)), 0.0)
        ragged.append(split_half(noise, real))
        signal.append(split_half(np.where(real[..., None], pattern + 0.01 * noise, 0.0), real))
    assert abs(np.mean(ragged)) < 0.1
    assert min(signal) > 0.99
    # All there: as without a mask.
    maps = rng.normal(size=(9, 4, 3)) + rng.normal(size=(4, 3))
    assert split_half(maps, np.ones((9, 4), bool)) == pytest.approx(split_half(maps), rel=1e-12)
    # A step that one sequence has can't be in two halves: as if it weren't there.
    real = np.ones((9, 5), bool)
    real[1:, 4] = False
    longer = np.concatenate([maps, rng.normal(size=(9, 1, 3))], axis=1)
    assert split_half(longer, real) == pytest.approx(split_half(maps), rel=1e-12)


# --- what summaries hold


def summary(inputs, intervals=None, mask=None):
    ones = np.ones(len(inputs), int)
    return summarize(Attribution("input_x_gradient", inputs, intervals, None, ones), mask=mask)


def test_intervals_of_a_summary_cover():
    rng, simulations = np.random.default_rng(0), 800
    strength, share, time_share = [], [], []
    for _ in range(simulations):
        size = rng.gamma(8.0, 1 / 8, (16, 1, 1))
        inputs = size * rng.normal([2.0, -1.0], 0.3, (16, 3, 2))
        result = summary(inputs, size[..., 0] * rng.normal(3.0, 0.3, (16, 3)))
        strength.append(result.strength_interval)
        share.append(result.share_interval[:, 0])
        time_share.append(result.intervals_share_interval)
    mean = stats.foldnorm.mean(np.array([2.0, 1.0, 3.0]) / 0.3, scale=0.3)
    slack = 0.015 + binomial(0.95, simulations)
    assert coverage(strength, 3 * (mean[0] + mean[1])) == pytest.approx(0.95, abs=slack)
    assert coverage(share, mean[0] / (mean[0] + mean[1])) == pytest.approx(0.95, abs=slack)
    assert coverage(time_share, mean[2] / mean.sum()) == pytest.approx(0.95, abs=slack)


def test_reliability_of_a_summary_tells_a_pattern_from_noise():
    rng = np.random.default_rng(0)
    pattern = rng.normal(size=(10, 4))
    assert summary(pattern + 0.3 * rng.normal(size=(16, 10, 4))).reliability > 0.95
    assert summary(rng.normal(size=(16, 10, 4))).reliability < 0.6
    noise = [
        summary(
            rng.normal(size=(32, 12, 4)), mask=np.arange(12) < rng.integers(2, 13, 32)[:, None]
        ).reliability
        for _ in range(50)
    ]
    assert abs(np.mean(noise)) < 0.15


@given(seeds)
def test_what_is_zero_in_all_maps_says_nothing_of_their_reliability(rng):
    maps = rng.normal(size=(6, 4, 3)) ** 2
    longer = np.concatenate([maps, np.zeros((6, 20, 3))], axis=1)
    assert split_half(longer) == pytest.approx(split_half(maps), abs=1e-12)
    assert math.isnan(split_half(np.zeros((6, 4, 3))))
    one = np.zeros((6, 4, 3))
    one[:, 0, 0] = rng.normal(size=6)
    assert math.isnan(split_half(one))


# --- correlations


@given(seeds, st.integers(3, 40), st.integers(2, 50))
def test_rank_correlation_is_that_of_scipy(rng, size, values):
    # Few values: many ties.
    a, b = rng.integers(0, values, (2, size)).astype(float)
    found = rank_correlation(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert found is None
        return
    assert found == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert rank_correlation(np.exp(a / values), b) == pytest.approx(found, abs=1e-12)
    assert rank_correlation(-a, b) == pytest.approx(-found, abs=1e-12)


def test_rank_correlation_that_is_none():
    three = np.arange(3.0)
    assert rank_correlation(three, three) == pytest.approx(1.0)
    assert rank_correlation(three[:2], three[:2]) is None
    assert rank_correlation(three, np.ones(3)) is None
    for bad in (np.nan, np.inf):
        assert rank_correlation(three, np.array([0.0, bad, 1.0])) is None
    maps = np.arange(6.0).reshape(2, 3)
    assert rank_correlation(maps, maps[::-1, ::-1]) == pytest.approx(-1.0)


@given(seeds)
def test_what_is_zero_in_both_maps_is_no_agreement(rng):
    one, other = rng.normal(size=(2, 6, 4))
    one[rng.integers(6)] = 0.0  # in one of them only, it is a difference
    expected = stats.spearmanr(np.abs(one).ravel(), np.abs(other).ravel()).statistic
    after = np.zeros((30, 4))
    found = order_correlation(np.concatenate([one, after]), np.concatenate([other, after]))
    assert found == pytest.approx(expected, abs=1e-12)
    assert order_correlation(after, after) is None


def test_cosine():
    a = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert cosine(a, 7 * a) == pytest.approx(1.0)
    assert cosine(a, -a) == pytest.approx(-1.0)
    assert cosine(a, np.array([[-4.0, 3.0], [5.0, 5.0]])) == pytest.approx(0.0)
    assert math.isnan(cosine(a, 0 * a))
    # Squares of what float32 holds may not fit into it.
    assert cosine(np.float32([1e30, 0]), np.float32([1e30, 0])) == pytest.approx(1.0)
