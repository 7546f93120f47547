"""Reliability of maps in closed form, and correlations against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ncp_callbacks.attribution import Attribution, InputXGradient, summarize
from ncp_callbacks.stats.reliability import (
    cosine,
    order_correlation,
    rank_correlation,
    split_half,
)

pytestmark = pytest.mark.filterwarnings("error")

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


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
    return summarize(Attribution(InputXGradient(), inputs, intervals), mask=mask)


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
