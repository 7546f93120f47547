"""Maps of functions whose truth is known, and of small networks trained on a planted feature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jackknife import ci_by_leaving_out
from matplotlib.colors import to_hex
from promises import pattern, promised
from small_nets import WeightedSum
from test_plots import check_redraws, check_text, drawn, title, words

import ncp_callbacks as ncp
from ncp_callbacks.attribution import BUILT_IN, AttributionMethod, IntegratedGradients
from ncp_callbacks.callbacks.faithfulness.analysis import (
    Deletion,
    deletion,
    max_sensitivity,
    noise_similarity,
    structural_similarity,
)
from ncp_callbacks.models import CfC
from ncp_callbacks.plots import plot_faithfulness
from ncp_callbacks.plotting.style import BLUE, GREY, VERMILION
from ncp_callbacks.target_values import TargetValues

pytestmark = pytest.mark.filterwarnings("error")

B, T, F = 5, 8, 5  # 40 cells: groups of exactly two


class White:
    """A function of inputs, with all that it was asked for."""

    def __init__(
        self,
        function: Callable[[np.ndarray], np.ndarray],
        gradient: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.function, self.gradient, self.seen = function, gradient, 0
        self.own: np.ndarray | None = None

    def __call__(
        self,
        inputs: Any = None,
        time_delta: Any = None,
        *,
        sequences: Any = None,
        gradient: bool = False,
    ) -> TargetValues:
        inputs = self.own[None] if inputs is None and self.own is not None else inputs
        self.seen += len(inputs)
        x = np.asarray(inputs, np.float64)
        given = self.gradient(x) if gradient and self.gradient else None
        return TargetValues(self.function(x), given)


def squares(salient: np.ndarray) -> White:
    """The sum of squares over salient cells, whose integrated gradients from 0 are the squares."""
    return White(lambda x: (salient * x**2).sum(axis=(-2, -1)), lambda x: 2 * salient * x)


def data(seed: int = 0, shape: tuple[int, ...] = (B, T, F)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 1.5, shape)


def of_squares(x: np.ndarray, attributed: np.ndarray | None = None, **options: Any) -> Deletion:
    attributed = x**2 if attributed is None else attributed
    return deletion(squares(np.ones(x.shape[1:])), x, attributed, baseline=0 * x, **options)


# ---- closed forms of additive functions


def test_an_exact_map_of_an_additive_function() -> None:
    x = data()
    parts = np.sort((x**2).reshape(B, -1), axis=1)
    unit = math.sqrt(np.mean(parts.sum(axis=1) ** 2))
    found = of_squares(x, effects=x**2)
    assert found.change == pytest.approx(unit, rel=1e-6)
    assert (found.sequences, found.non_finite) == (B, 0)
    for share, cells in ((0.1, 4), (0.2, 8), (0.5, 20)):
        top, bottom = parts[:, -cells:].sum(axis=1), parts[:, :-cells].sum(axis=1)
        np.testing.assert_allclose(found.comprehensiveness(share), top / unit, rtol=1e-5)
        np.testing.assert_allclose(found.sufficiency(share), bottom / unit, rtol=1e-5)
    # Nothing rises again, so the way is the distance.
    np.testing.assert_allclose(found.cpd, parts[:, -8:].sum(axis=1) / unit, rtol=1e-5)
    np.testing.assert_allclose(found.cpp, parts[:, :8].sum(axis=1) / unit, rtol=1e-4, atol=1e-6)
    removed = parts[:, ::-1].reshape(B, 20, 2).sum(axis=2).cumsum(axis=1)
    np.testing.assert_allclose(found.decreasing[:, 1:], -removed / unit, rtol=1e-5)
    assert not found.decreasing[:, 0].any()
    np.testing.assert_allclose(found.infidelity, 0.0, atol=1e-10)


def test_random_orders_take_their_share() -> None:
    x, orders = data(), 300
    parts = (x**2).reshape(B, -1)
    found = of_squares(x, orders=orders)
    expected = 0.2 * parts.sum(axis=1) / found.change
    # Of a sum of 8 drawn without replacement from 40.
    spread = np.sqrt(8 * parts.var(axis=1, ddof=1) * (1 - 8 / 40) / orders) / found.change
    assert (np.abs(found.cpd_random - expected) < 4 * spread).all()
    assert (np.abs(found.comprehensiveness_random(0.2) - expected) < 4 * spread).all()
    rest = parts.sum(axis=1) / found.change - expected
    assert (np.abs(found.sufficiency_random(0.2) - rest) < 4 * spread).all()


def test_salient_cells_and_no_others() -> None:
    rng = np.random.default_rng(3)
    salient = rng.permutation(T * F).reshape(T, F) < 8  # a fifth of the cells
    x = rng.normal(size=(B, T, F)) + 2
    white = squares(salient)
    white.own = x
    maps = IntegratedGradients().run(white, x, baseline=0 * x)
    np.testing.assert_allclose(maps.inputs, salient * x**2, rtol=1e-5, atol=1e-9)
    found = deletion(white, x, maps.inputs, baseline=0 * x, effects=maps.inputs)
    total = (salient * x**2).sum(axis=(1, 2)) / found.change
    np.testing.assert_allclose(found.cpd, total, rtol=1e-5)
    assert not found.cpp.any()
    assert not found.sufficiency(0.2).any()
    np.testing.assert_allclose(found.infidelity, 0.0, atol=1e-9)
    # A map that points at the others.
    others = np.where(salient, 0.0, np.ones_like(x))
    wrong = deletion(white, x, others, baseline=0 * x)
    assert not wrong.cpd.any()
    np.testing.assert_allclose(wrong.cpp, total, rtol=1e-5)


def test_pushes_that_cancel_are_seen_one_by_one() -> None:
    signs = np.where(np.arange(20).reshape(4, 5) % 2, -1.0, 1.0)
    sizes = np.arange(20, 0, -1).reshape(4, 5) + 0.0
    x = np.repeat((signs * sizes)[None], 3, axis=0)
    white = White(lambda v: v.sum(axis=(-2, -1)))
    found = deletion(white, x, x, baseline=0 * x, n_groups=20)
    # 20 - 19 + 18 - 17: four cells, all of which matter.
    np.testing.assert_allclose(found.comprehensiveness(0.2) * found.change, 2.0, rtol=1e-6)
    np.testing.assert_allclose(found.cpd * found.change, 20 + 19 + 18 + 17, rtol=1e-6)


@given(st.integers(0, 10_000), st.sampled_from([10, 20, 30]))
def test_an_exact_map_beats_random_beats_reversed(seed: int, n_groups: int) -> None:
    x = data(seed, (3, 7, 4))
    found = of_squares(x, n_groups=n_groups)
    slack = 1e-6
    for share in (0.1, 0.2, 0.5):
        assert (found.comprehensiveness(share) > found.comprehensiveness_random(share)).all()
        assert (found.sufficiency(share) < found.sufficiency_random(share)).all()
    assert (found.cpd > found.cpd_random).all()
    assert (found.cpd_random > found.cpp - slack).all()
    reversed_ = of_squares(x, 1 / x, n_groups=n_groups)
    np.testing.assert_allclose(reversed_.cpp, found.cpd, rtol=0.3)
    assert (reversed_.cpd < found.cpd_random).all()


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_units_of_the_target_do_not_matter(seed: int, scale: float, offset: float) -> None:
    x = data(seed, (3, 5, 4))
    plain = of_squares(x, effects=x**2)
    white = White(lambda v: scale * (v**2).sum(axis=(-2, -1)) + offset)
    other = deletion(white, x, scale * x**2, baseline=0 * x, effects=scale * x**2)
    np.testing.assert_allclose(other.decreasing, plain.decreasing, atol=1e-9)
    np.testing.assert_allclose(other.random, plain.random, atol=1e-9)
    np.testing.assert_allclose(other.infidelity, plain.infidelity, atol=1e-9)
    assert other.change == pytest.approx(scale * plain.change)


@given(st.integers(0, 10_000))
def test_only_the_order_of_absolute_attribution_counts(seed: int) -> None:
    x = data(seed, (3, 5, 4))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], x.shape)
    plain, other = of_squares(x), of_squares(x, signs * np.exp(3 * x))
    np.testing.assert_array_equal(plain.decreasing, other.decreasing)
    np.testing.assert_array_equal(plain.increasing, other.increasing)


def test_against_one_removal_at_a_time() -> None:
    rng = np.random.default_rng(5)
    x, x0 = rng.normal(size=(2, 4, 6, 3))
    attributed, weights = rng.normal(size=(4, 6, 3)), rng.normal(size=(6, 3))

    def function(v: np.ndarray) -> np.ndarray:
        return np.tanh((weights * v).sum(axis=(-2, -1))) * v[..., 0, 0] + v[..., 3, 1] ** 2

    found = deletion(White(function), x, attributed, baseline=x0, n_groups=10, top=0.5)
    changes = []
    for b in range(4):
        ranking = sorted(np.ndindex(6, 3), key=lambda cell: -abs(attributed[(b, *cell)]))
        row, values = x[b].copy(), [function(x[b])]
        gone = 0
        for k in range(1, 11):
            while gone < math.floor(18 * k / 10 + 0.5):
                row[ranking[gone]] = x0[(b, *ranking[gone])]
                gone += 1
            values.append(function(row))
        changes.append(np.array(values) - values[0])
    unit = math.sqrt(np.mean([c[-1] ** 2 for c in changes]))
    np.testing.assert_allclose(found.decreasing, np.array(changes) / unit, rtol=1e-4, atol=1e-5)
    way = [np.abs(np.diff(c[:6])).sum() / unit for c in changes]
    np.testing.assert_allclose(found.cpd, way, rtol=1e-4)


def test_it_costs_what_it_says() -> None:
    x, white = data(), squares(np.ones((T, F)))
    deletion(white, x, x, baseline=0 * x, n_groups=10, orders=3)
    assert white.seen == (2 + 3) * 9 + 2


# ---- infidelity and sensitivity of maps


def linear(weights: np.ndarray) -> White:
    return White(
        lambda x: (weights * x).sum(axis=(-2, -1)) + 3, lambda x: np.broadcast_to(weights, x.shape)
    )


@pytest.mark.parametrize(("factor", "error"), [(1.0, 0.0), (0.0, 1.0), (2.0, 1.0), (0.5, 0.25)])
def test_infidelity_of_a_linear_model(factor: float, error: float) -> None:
    rng = np.random.default_rng(1)
    weights, x, x0 = rng.normal(size=(T, F)), *rng.normal(size=(2, B, T, F))
    effects = weights * (x - x0)
    found = deletion(linear(weights), x, effects, baseline=x0, effects=factor * effects)
    assert found.infidelity is not None
    assert found.infidelity.mean() == pytest.approx(error, abs=1e-6)
    if factor == 1:
        # The right numbers in wrong places.
        assert found.infidelity_random is not None
        assert found.infidelity_random.mean() > 0.1


def test_sensitivity_of_a_constant_gradient_is_none() -> None:
    weights = np.random.default_rng(1).normal(size=(T, F))
    maps = np.broadcast_to(weights, (B, T, F))
    assert not max_sensitivity(lambda x: maps, data(), maps).any()


def test_sensitivity_of_input_times_a_constant_is_that_of_the_input() -> None:
    weights, x = np.random.default_rng(1).normal(size=(T, F)), data()
    reach = 0.1 * x.std(axis=(0, 1))
    found = max_sensitivity(lambda v: weights * v, x, weights * x, n_samples=50)
    largest = np.linalg.norm((weights * reach).ravel())
    sizes = np.linalg.norm((weights * x).reshape(B, -1), axis=1)
    assert (found <= largest / sizes).all()
    # Uniform draws have a mean square of a third; the largest of many is above that.
    assert (found >= math.sqrt(1 / 3) * largest / sizes).all()
    again = max_sensitivity(lambda v: 7 * weights * v, x, 7 * weights * x, n_samples=50)
    np.testing.assert_allclose(again, found, rtol=1e-4)
    few = max_sensitivity(lambda v: weights * v, x, weights * x, n_samples=2)
    assert (few <= found).all()


def test_sensitivity_without_a_map_or_with_nan() -> None:
    x = data()
    maps = x.copy()
    maps[1] = 0.0

    def attribute(v: np.ndarray) -> np.ndarray:
        out = v.astype(np.float64)
        out[2, 0, 0] = np.nan
        return out

    found = max_sensitivity(attribute, x, maps)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, False, False])


# ---- structural similarity


def similarity_of_wang(a: np.ndarray, b: np.ndarray) -> float:
    """Three factors, one after the other, of maps of whole sequences between 0 and 255."""
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    x, y = (255 * (m.ravel() - low) / (high - low) for m in (a, b))
    n, c1, c2 = x.size, (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = sum(x) / n, sum(y) / n
    sx = math.sqrt(sum((v - mx) ** 2 for v in x) / (n - 1))
    sy = math.sqrt(sum((v - my) ** 2 for v in y) / (n - 1))
    sxy = sum((v - mx) * (w - my) for v, w in zip(x, y, strict=True)) / (n - 1)
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    contrast = (2 * sx * sy + c2) / (sx * sx + sy * sy + c2)
    structure = (sxy + c2 / 2) / (sx * sy + c2 / 2)
    return luminance * contrast * structure


@given(st.integers(0, 10_000), st.floats(0, 3), st.floats(-2, 2), st.floats(-3, 3))
def test_structural_similarity_is_that_of_wang(
    seed: int, noise: float, factor: float, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(3, 6, 4))
    b = factor * a + noise * rng.normal(size=a.shape) + offset
    found = structural_similarity(a, b)
    expected = [similarity_of_wang(*pair) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert (np.abs(found) <= 1 + 1e-12).all()
    np.testing.assert_allclose(structural_similarity(b, a), found, rtol=1e-9, atol=1e-12)
    # The unit of the target does not matter.
    moved = structural_similarity(7 * a - 50, 7 * b - 50)
    np.testing.assert_allclose(moved, found, rtol=1e-6, atol=1e-9)


def test_structural_similarity_in_closed_form() -> None:
    a = np.random.default_rng(0).normal(size=(4, 6, 5)) + 0.5
    np.testing.assert_allclose(structural_similarity(a, a), 1.0, rtol=1e-12)
    assert (structural_similarity(a, -a) < -0.5).all()
    # From 0 to 1, and a factor of that: no offset, so that only three numbers count.
    a -= a.min(axis=(1, 2), keepdims=True)
    a /= a.max(axis=(1, 2), keepdims=True)
    m, v, f = a.mean(axis=(1, 2)), a.var(axis=(1, 2), ddof=1), 0.3
    scaled = (2 * f * m**2 + 1e-4) / ((1 + f**2) * m**2 + 1e-4)
    scaled *= (2 * f * v + 9e-4) / ((1 + f**2) * v + 9e-4)
    np.testing.assert_allclose(structural_similarity(a, f * a), scaled, rtol=1e-9)
    # Two cells, high and low, and the other way round: means and SDs are the same.
    swapped = structural_similarity(np.array([[[0.0, 1.0]]]), np.array([[[1.0, 0.0]]]))
    assert swapped == pytest.approx((-0.5 + 0.00045) / (0.5 + 0.00045))


def test_similarity_of_padding_and_of_what_has_none() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 6, 3))
    mask = np.ones((5, 6), bool)
    mask[1, 2:] = mask[4, 1:] = False
    alone = structural_similarity(a[1:2, :2], b[1:2, :2])
    found = structural_similarity(a, np.where(mask[..., None], b, np.nan), mask)
    assert found[1] == pytest.approx(alone[0])
    assert np.isfinite(found).all()
    a[0] = b[0] = 2.0
    b[3, 2, 1] = np.inf
    found = structural_similarity(a, b)
    np.testing.assert_array_equal(np.isfinite(found), [False, True, True, False, True])
    assert np.isnan(structural_similarity(a[2:3, :1, :1], b[2:3, :1, :1])).all()


def test_noise_has_its_variance_and_spares_padding() -> None:
    x = data(0, (40, 30, 3)) * [1.0, 10.0, 0.1] + [0.0, 500.0, 0.0]
    mask = np.ones((40, 30), bool)
    mask[3, 5:] = mask[7, 10:] = False
    seen: list[np.ndarray] = []

    def attribute(v: np.ndarray) -> np.ndarray:
        seen.append(v)
        return v

    found = noise_similarity(attribute, x, x, variances=(0.1, 0.3), mask=mask)
    assert found.shape == (2, 40)
    assert len(seen) == 2
    for variance, noisy in zip((0.1, 0.3), seen, strict=True):
        change = noisy - x
        np.testing.assert_allclose(change[~mask], 0.0, atol=1e-4)
        share = change[mask].var(axis=0) / x[mask].var(axis=0)
        # Of 1,155 draws for each feature, four standard errors.
        np.testing.assert_allclose(share, variance, rtol=4 * math.sqrt(2 / mask.sum()))
    again = noise_similarity(attribute, x, x, variances=(0.3,), mask=mask)
    np.testing.assert_array_equal(again[0], found[1])


def test_similarity_under_noise_of_maps_that_are_known() -> None:
    x = data(0, (B, 40, F))
    levels = (0.1, 0.2, 0.3, 3.0)
    still = noise_similarity(lambda v: x, x, x, variances=levels)
    np.testing.assert_allclose(still, 1.0, rtol=1e-12)
    moving = noise_similarity(lambda v: v, x, x, variances=levels).mean(axis=1)
    assert (np.diff(moving) < 0).all()
    # Correlation and SDs of x and x + noise; means differ by little, constants count little.
    for level, value in zip(levels, moving, strict=True):
        assert value == pytest.approx(2 / (2 + level), abs=0.1)
    rng = np.random.default_rng(99)
    chance = noise_similarity(lambda v: rng.uniform(size=x.shape), x, x, variances=levels)
    assert abs(chance.mean()) < 0.1


def test_similarity_under_noise_is_logged_as_the_definition_says() -> None:
    weights, x = np.random.default_rng(0).normal(size=(10, 4)), planted(8, 1)[0]
    callback = ncp.Faithfulness(baseline="mean", noise_variances=(0.05, 0.2))
    found = scalars(look_at_plain(weights, callback, x)[0])
    maps: list[np.ndarray] = []
    mean = x.mean(axis=(0, 1))
    noise_similarity(lambda v: maps.append(v) or v, x, x, variances=(0.05, 0.2))  # type: ignore[func-returns-value]
    for percent, noisy in zip((5, 20), maps, strict=True):
        pairs = zip(weights * (x - mean), weights * (noisy - mean), strict=True)
        values = np.array([similarity_of_wang(*pair) for pair in pairs])
        record = found[f"faithfulness/ssim_noise_{percent}"]
        assert record.value == pytest.approx(values.mean(), rel=1e-4)
        assert record.ci == pytest.approx(ci_by_leaving_out(np.mean, values, "fisher_z"), 1e-3)
        assert f"{percent} % of each feature's variance" in record.description
    assert sum("ssim" in tag for tag in found) == 2
    # A map that is the same everywhere is as good as can be.
    callback = ncp.Faithfulness(method="gradient", perturbations=0)
    found = scalars(look_at_plain(weights, callback, x)[0])
    for percent in (10, 20, 30):
        assert found[f"faithfulness/ssim_noise_{percent}"].value == pytest.approx(1.0)
    assert "faithfulness/max_sensitivity" not in found
    # And without.
    found = scalars(look_at_plain(weights, ncp.Faithfulness(noise_variances=()), x)[0])
    assert not any("ssim" in tag for tag in found)
    assert "faithfulness/max_sensitivity" in found


# ---- padding, tokens, what isn't finite


def test_padding_is_left_alone_and_does_not_count() -> None:
    x = data()
    mask = np.ones((B, T), bool)
    mask[1, 4:] = mask[3, :6] = False
    maps = np.where(mask[..., None], x**2, 0.0)

    def function(v: np.ndarray) -> np.ndarray:
        unreal = np.broadcast_to(~mask[..., None], v.shape)
        np.testing.assert_array_equal(
            v[unreal], np.broadcast_to(x, v.shape).astype(np.float32)[unreal]
        )
        return (np.where(mask[..., None], v, 0.0) ** 2).sum(axis=(-2, -1))

    found = deletion(White(function), x, maps, baseline=0 * x, effects=maps, mask=mask)
    alone = of_squares(x[1:2, :4])
    for own, other in (
        (found.decreasing[1], alone.decreasing[0]),
        (found.increasing[1], alone.increasing[0]),
    ):
        np.testing.assert_allclose(own * found.change, other * alone.change, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.infidelity, 0.0, atol=1e-9)


def test_a_step_without_features_of_its_own_goes_as_a_whole() -> None:
    x = data()

    def function(v: np.ndarray) -> np.ndarray:
        gone = v == 0
        np.testing.assert_array_equal(gone.any(axis=-1), gone.all(axis=-1))
        return v.sum(axis=(-2, -1))

    sums = x.sum(axis=2, keepdims=True)
    found = deletion(White(function), x, sums, baseline=0 * x, effects=sums)
    np.testing.assert_allclose(found.infidelity, 0.0, atol=1e-9)
    largest = np.sort(sums[..., 0], axis=1)[:, -4:].sum(axis=1)
    np.testing.assert_allclose(found.comprehensiveness(0.5), largest / found.change, rtol=1e-5)


def test_sequences_that_are_not_finite_are_skipped() -> None:
    x = data()
    maps = x**2
    maps[0, 2, 2] = np.nan

    def function(v: np.ndarray) -> np.ndarray:
        out = (v**2).sum(axis=(-2, -1))
        # Breaks when some of its inputs are gone.
        out[..., 3] = np.where(
            (v[..., 3, :, :] == 0).mean(axis=(-2, -1)) > 0.4, np.inf, out[..., 3]
        )
        return out

    found = deletion(White(function), x, maps, baseline=0 * x, effects=maps)
    whole, kept = of_squares(x), [1, 2, 4]
    assert (found.sequences, found.non_finite) == (3, 2)
    np.testing.assert_allclose(
        found.decreasing * found.change, whole.decreasing[kept] * whole.change, rtol=1e-6
    )
    assert np.isfinite(found.infidelity).all()
    for odd in (np.nan, np.inf):
        white = White(lambda v, odd=odd: odd + v[..., 0, 0])
        none = deletion(white, x, x, baseline=0 * x, effects=x)
        assert (none.sequences, none.change, none.infidelity) == (0, 0.0, None)


def test_nothing_is_logged_of_a_target_that_does_not_depend_on_inputs() -> None:
    x = data()
    noise = np.random.default_rng(0)
    white = White(lambda v: 7 + 1e-7 * noise.uniform(size=v.shape[:-2]))
    found = deletion(white, x, x, baseline=0 * x, effects=x)
    assert found.change == 0
    assert np.isnan(found.cpd).all()
    assert found.infidelity is None


def test_a_map_of_equal_values_is_a_random_order() -> None:
    batch = 400
    x = np.ones((batch, 10, 1))
    first_step = White(lambda v: v[..., 0, 0])
    found = deletion(first_step, x, np.zeros_like(x), baseline=0 * x, n_groups=10, top=0.5)
    # The step that counts is among the first half of them by even chance.
    for values in (found.cpd, found.cpp):
        assert set(np.round(values, 6)) == {0.0, 1.0}
        assert abs(values.mean() - 0.5) < 4 * 0.5 / math.sqrt(batch)
    np.testing.assert_array_equal(found.cpd + found.cpp, 1.0)


def test_only_shares_of_the_grid() -> None:
    with pytest.raises(ValueError, match=r"share=0\.13: pass a multiple of 0\.05"):
        of_squares(data()).comprehensiveness(0.13)


# ---- the callback


class Net(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(10, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        states = self.rnn(x) if isinstance(self.rnn, nn.GRU) else self.rnn(x, time_delta)[0]
        return self.head(states[:, -1])


def planted(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One of four features counts, at the last three of ten steps."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 10, 4)).astype(np.float32)
    dt = rng.uniform(0.5, 1.5, (count, 10)).astype(np.float32)
    return x, dt, x[:, -3:, 1].sum(axis=1, keepdims=True)


def trained(model: nn.Module, steps: int = 60) -> float:
    x, dt, y = map(mx.array, planted(128, 0))
    optimizer = optim.Adam(1e-2)
    step = nn.value_and_grad(model, lambda x, dt, y: ((model(x, dt) - y) ** 2).mean())
    for _ in range(steps):
        loss, gradients = step(x, dt, y)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
    return float(loss)


def look(
    model: nn.Module, callback: ncp.Callback, *, looks: int = 1, batch: int = 8, **options: Any
) -> tuple[ncp.MemoryWriter, tuple[str, ...]]:
    x, dt, y = planted(batch, 1)
    held_out = ncp.HeldOutBatch(x, dt, targets=y)
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        model, held_out, [callback], writer=writer, every=1, on_error="raise", **options
    ) as monitor:
        for step in range(1, looks + 1):
            monitor.on_step_end(step)
        return writer, monitor.notes


def scalars(writer: ncp.MemoryWriter) -> dict[str, ncp.Scalar]:
    """The last of each tag."""
    return {r.tag: r for _, r in writer.records if isinstance(r, ncp.Scalar)}


@pytest.mark.parametrize("kind", ["CfC", "GRU"])
def test_integrated_gradients_of_a_trained_network_beat_random(kind: str) -> None:
    mx.random.seed(3)
    model = Net(CfC(4, 10, backbone_units=10) if kind == "CfC" else nn.GRU(4, 10))
    assert trained(model) < 0.5  # of a variance of 3
    callback = ncp.Faithfulness(method=IntegratedGradients(8), perturbations=1, max_sequences=12)
    writer, _ = look(model, callback, batch=16)
    found = scalars(writer)
    low, high = found["faithfulness/cpd_advantage"].ci or (math.nan, math.nan)
    assert 0 < low < found["faithfulness/cpd_advantage"].value < high
    assert found["faithfulness/cpp"].value < found["faithfulness/cpd_random"].value
    assert (
        found["faithfulness/sufficiency_20"].value
        < found["faithfulness/sufficiency_random_20"].value
    )
    assert found["faithfulness/infidelity"].value < found["faithfulness/infidelity_random"].value
    assert found["faithfulness/sequences"].value == 12


def look_at_plain(
    weights: np.ndarray, callback: ncp.Callback, x: np.ndarray | None = None, looks: int = 1
) -> tuple[ncp.MemoryWriter, tuple[str, ...]]:
    x = planted(8, 1)[0] if x is None else x
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(x)
    with ncp.Monitor(WeightedSum(weights), held_out, [callback], writer=writer, every=1) as monitor:
        for step in range(1, looks + 1):
            monitor.on_step_end(step)
        return writer, monitor.notes


@pytest.mark.parametrize("baseline", [None, "mean", "zeros", "array"])
@pytest.mark.parametrize("method", [method() for method in BUILT_IN], ids=lambda m: m.name)
def test_every_map_of_a_linear_model_is_exact(method: AttributionMethod, baseline: Any) -> None:
    weights = np.random.default_rng(0).normal(size=(10, 4))
    if baseline == "array":
        shape = (3, 10, 4) if method.draws_baselines else (4,)
        baseline = np.random.default_rng(1).normal(size=shape)
    elif method.draws_baselines and baseline is not None:
        baseline = "held_out"
    callback = ncp.Faithfulness(method=method, baseline=baseline, orders=2)
    found = scalars(look_at_plain(weights, callback)[0])
    if method.draws_baselines:
        # Few draws, and none is the mean that inputs are set to.
        assert found["faithfulness/infidelity"].value < 0.5
    else:
        assert found["faithfulness/infidelity"].value == pytest.approx(0.0, abs=1e-4)
    sensitivity = found["faithfulness/max_sensitivity"].value
    if method.is_slope:
        assert sensitivity == pytest.approx(0.0, abs=1e-5)
    else:
        assert sensitivity > 0.01


def test_inputs_are_set_to_the_mean_of_a_baseline_that_is_drawn() -> None:
    weights, x = np.random.default_rng(0).normal(size=(10, 4)), planted(8, 1)[0]
    draws = np.random.default_rng(1).normal(size=(5, 10, 4)) + 2
    callback = ncp.Faithfulness(method="expected_gradients", baseline=draws, perturbations=0)
    change = (weights * (x - draws.mean(axis=0))).sum(axis=(1, 2))
    found = scalars(look_at_plain(weights, callback)[0])["faithfulness/change"].value
    assert found == pytest.approx(math.sqrt(np.mean(change**2)), rel=1e-5)


def test_only_inputs_move_for_the_sensitivity_and_not_their_baseline() -> None:
    weights, x = np.random.default_rng(0).normal(size=(10, 4)), planted(3, 1)[0]
    mean = x.mean(axis=(0, 1))
    expected = max_sensitivity(lambda v: weights * (v - mean), x, weights * (x - mean))
    for method in ("input_x_gradient", "integrated_gradients", "occlusion"):
        callback = ncp.Faithfulness(method=method, baseline="mean")
        found = scalars(look_at_plain(weights, callback, x)[0])["faithfulness/max_sensitivity"]
        assert found.value == pytest.approx(expected.mean(), rel=1e-4), method


def test_numbers_are_those_of_the_definition() -> None:
    weights = np.random.default_rng(0).normal(size=(10, 4))
    x = planted(8, 1)[0]
    callback = ncp.Faithfulness(baseline="mean")
    found = scalars(look_at_plain(weights, callback)[0])
    effects = weights * (x - x.mean(axis=(0, 1)))
    unit = math.sqrt(np.mean(effects.sum(axis=(1, 2)) ** 2))
    assert found["faithfulness/change"].value == pytest.approx(unit, rel=1e-5)
    order = np.argsort(-np.abs(effects.reshape(8, -1)), axis=1)
    largest_first = np.take_along_axis(effects.reshape(8, -1), order, axis=1)
    groups = largest_first.reshape(8, 20, 2).sum(axis=2)
    cpd = np.abs(groups[:, :4]).sum(axis=1) / unit
    record = found["faithfulness/cpd"]
    assert record.value == pytest.approx(cpd.mean(), rel=1e-4)
    assert record.ci == pytest.approx(ci_by_leaving_out(np.mean, cpd, "log"), rel=1e-4)
    moved = np.abs(groups[:, :10].sum(axis=1)).mean() / unit
    assert found["faithfulness/comprehensiveness_50"].value == pytest.approx(moved, rel=1e-4)
    cpp = np.abs(groups[:, -4:]).sum(axis=1).mean() / unit
    assert found["faithfulness/cpp"].value == pytest.approx(cpp, rel=1e-3)
    advantage = found["faithfulness/cpd_advantage"]
    assert advantage.value == pytest.approx(
        record.value - found["faithfulness/cpd_random"].value, abs=1e-6
    )


class Misled(nn.Module):
    """Its slope at the inputs points at the first feature, but only the others carry it away."""

    def __call__(self, x: mx.array) -> mx.array:
        inner = 0.01 * mx.tanh(100 * x[..., 0])
        # Far from its steps, tanh is flat in what matters.
        return (5 * mx.tanh(10 * x[..., 1:]).sum(axis=-1) + inner).sum(axis=1)[:, None]


def test_a_map_worse_than_random_is_reported_once() -> None:
    x = np.zeros((8, 10, 4), np.float32)
    x[..., 0] = np.random.default_rng(0).uniform(0.001, 0.002, (8, 10))
    x[..., 1:] = np.random.default_rng(1).uniform(3, 4, (8, 10, 3))
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        Misled(), ncp.HeldOutBatch(x),
        [ncp.Faithfulness(method="input_x_gradient", baseline="zeros")], writer=writer, every=1,
    ) as monitor:  # fmt: skip
        monitor.on_step_end(1)
        monitor.on_step_end(2)
        assert sum("don't read the map as importance" in note for note in monitor.notes) == 1
    interval = scalars(writer)["faithfulness/cpd_advantage"].ci
    assert interval is not None
    assert interval[1] < 0


def test_nothing_to_be_faithful_to() -> None:
    writer, notes = look_at_plain(np.zeros((10, 4)), ncp.Faithfulness())
    assert any("nothing for a map to be faithful to" in note for note in notes)
    assert {t for t in writer.tags if t.startswith(("faith", "_ncp/faith"))} == {
        "faithfulness/nonfinite", "faithfulness/sequences", "faithfulness/change",
    }  # fmt: skip


def test_sequences_with_nan_are_counted() -> None:
    class Breaks(WeightedSum):
        def __call__(self, x: mx.array) -> mx.array:
            # Without the first input, while the last is there and above 0.
            broken = (x[:, 0, 0] == 0) & (x[:, -1, -1] > 0)
            return mx.where(broken[:, None], mx.array(float("nan")), super().__call__(x))

    x = planted(8, 1)[0]
    breaking = int((x[:, -1, -1] > 0).sum())
    writer = ncp.MemoryWriter()
    model = Breaks(np.random.default_rng(0).normal(size=(10, 4)))
    with ncp.Monitor(
        model,
        ncp.HeldOutBatch(x),
        [ncp.Faithfulness(n_groups=10, baseline="zeros")],
        writer=writer,
        every=1,
    ) as monitor:
        monitor.on_step_end(1)
        assert any("skipped" in note for note in monitor.notes)
    found = scalars(writer)
    assert found["faithfulness/nonfinite"].value + found["faithfulness/sequences"].value == 8
    assert 0 < found["faithfulness/nonfinite"].value <= breaking < 8
    assert math.isfinite(found["faithfulness/cpd"].value)


def test_the_docstring_lists_every_tag_and_no_other() -> None:
    mx.random.seed(0)
    writer, _ = look(Net(CfC(4, 10, backbone_units=6)), ncp.Faithfulness(), looks=2)
    kinds = {
        ncp.Scalar: "scalar", ncp.Figure: "image", ncp.Array: "array",
    }  # fmt: skip
    promises = promised(ncp.Faithfulness)
    records = [r for _, r in writer.records if "faithfulness" in r.tag and "monitor" not in r.tag]
    for record in records:
        fitting = {promises[tag] for tag in promises if pattern(tag).match(record.tag)}
        assert fitting == {kinds[type(record)]}, record.tag
        assert isinstance(record, ncp.Array) or record.description, record.tag
    for tag in promises:
        assert any(pattern(tag).match(r.tag) for r in records), tag
    for name in ("cpd", "cpd_random", "cpd_advantage", "cpp", "comprehensiveness_10", "infidelity"):
        assert scalars(writer)[f"faithfulness/{name}"].ci is not None


def test_another_target_and_name() -> None:
    mx.random.seed(0)
    model = Net(nn.GRU(4, 10))
    writer, _ = look(model, ncp.Faithfulness(name="check", perturbations=0), target="loss")
    own = {t for t in writer.tags if t.startswith(("check", "_ncp/check"))}
    assert {t.removeprefix("_ncp/")[: len("check_loss")] for t in own} == {"check_loss"}
    assert "check_loss/max_sensitivity" not in own


def test_the_same_at_every_snapshot_and_after_an_interruption() -> None:
    mx.random.seed(0)
    model, first, second = Net(nn.GRU(4, 10)), ncp.Faithfulness(), ncp.Faithfulness()
    writer, _ = look(model, first, looks=2)
    for tag in (t for t in writer.tags if t.startswith("faithfulness/") and "curves" not in t):
        (_, one), (_, two) = writer.scalars(tag)
        assert one == two, tag
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()


def test_tokens() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn, self.head = (
                nn.Embedding(7, 5),
                nn.GRU(5, 10),
                nn.Linear(10, 1),
            )

        def __call__(self, x: mx.array) -> mx.array:
            return self.head(self.rnn(self.embedding(x))[:, -1])

    mx.random.seed(0)
    tokens = np.random.default_rng(0).integers(0, 7, (8, 10))
    for method in ("integrated_gradients", "gradient"):
        writer = ncp.MemoryWriter()
        held_out = ncp.HeldOutBatch(tokens)
        callback = ncp.Faithfulness(method=method)
        with ncp.Monitor(
            Reader(), held_out, [callback], writer=writer, every=1, on_error="raise"
        ) as monitor:
            monitor.on_step_end(1)
        found = scalars(writer)
        assert found["faithfulness/cpd"].value > 0
        # A slope that is summed over an embedding's dimensions promises nothing.
        assert ("faithfulness/infidelity" in found) == (method == "integrated_gradients")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n_groups": 15}, "multiple of 10"), ({"n_groups": 0}, "multiple of 10"),
        ({"orders": 0}, "at least 1"), ({"perturbations": -1}, "0 for none"),
        ({"noise_variances": (0.1, 0.0)}, "variances above 0"),
        ({"noise_variances": [-0.1]}, "variances above 0"),
        ({"noise_variances": (math.nan,)}, "variances above 0"),
        ({"noise_variances": (0.1, 0.1)}, "once"),
        ({"method": "magic"}, "unknown"), ({"max_sequences": 0}, "max_sequences=0"),
    ],
)  # fmt: skip
def test_arguments_out_of_range(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ncp.Faithfulness(**options)


# ---- the picture


def test_the_picture_shows_the_curves() -> None:
    result = of_squares(data())
    figure = plot_faithfulness(
        result, method="integrated gradients", target="prediction at last step", step=3000
    )
    check_text(figure)
    assert title(figure) == "removal by integrated gradients · step 3,000"
    assert "largest first" in words(figure)
    lines = [np.asarray(line.get_ydata(), float) for line in figure.axes[0].lines]
    for curve in (result.decreasing, result.increasing):
        rms = np.sqrt((curve**2).mean(axis=0))
        assert any(line.shape == rms.shape and np.allclose(line, rms) for line in lines)
        assert rms[-1] == pytest.approx(1.0)
    bands = figure.axes[0].collections
    colors = [to_hex(band.get_facecolor()[0]) for band in bands]
    assert colors == [GREY, VERMILION.lower(), BLUE.lower()]
    random = np.sqrt((result.random**2).mean(axis=1))
    ends = [random, outer(result.increasing), outer(result.decreasing)]
    for band, known in zip(bands, ends, strict=True):
        # From the low end of the first along the low ones, and back along the high ones.
        edges = band.get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose(edges[1:22], known.min(axis=0), rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(edges[23:44], known.max(axis=0)[::-1], rtol=1e-6, atol=1e-12)


def outer(curves: np.ndarray) -> np.ndarray:
    """95 % CIs of the RMS relative to that without any input, by leaving out each sequence."""

    def relative_rms(rows: np.ndarray) -> float:
        moved, unit = rows.T
        return math.sqrt((moved**2).sum() / (unit**2).sum())

    ends = [(0.0, 0.0)]
    for column in curves.T[1:-1]:
        pairs = np.stack([column, curves[:, -1]], axis=1).astype(np.float64)
        ends.append(ci_by_leaving_out(relative_rms, pairs, "log"))
    return np.array([*ends, (1.0, 1.0)]).T


def test_cis_are_marked_below_16_sequences_and_there_are_none_of_one() -> None:
    for batch, word in ((1, "no CI"), (8, "unreliable: fewer than 16 sequences"), (16, "")):
        writer, _ = look(Net(CfC(4, 10)), ncp.Faithfulness(max_sequences=None), batch=batch)
        (record,) = [
            r
            for step, r in writer.records
            if step and isinstance(r, ncp.Figure) and r.tag.startswith("faithfulness")
        ]
        assert word in record.description
        assert ("unreliable" in record.description) == (batch == 8)
        figure = record.plot(record.data, **record.options)
        assert len(figure.axes[0].collections) == (1 if batch == 1 else 3)


def test_a_wide_ci_does_not_move_the_axis() -> None:
    curves = np.array([[0.0, 1.2, 1.0], [0.0, 0.1, 1.0]])
    result = replace(
        of_squares(data()), shares=np.linspace(0, 1, 3), decreasing=curves, increasing=curves / 2,
        random=curves[None], sequences=2,
    )  # fmt: skip
    assert result.rms_ci[1, 0, 1] > 5
    figure = plot_faithfulness(result)
    assert figure.axes[0].get_ylim() == (0.0, 1.0)
    check_text(figure)
    assert (drawn(figure) < 128).any()


@pytest.mark.parametrize("limit", [1e-4, 1.0, 2000.0])
def test_the_next_picture_is_that_of_a_fresh_figure(limit: float) -> None:
    options = {"method": "input × gradient", "limit": limit}
    check_redraws(plot_faithfulness, *((of_squares(data(seed)), options) for seed in range(2)))
