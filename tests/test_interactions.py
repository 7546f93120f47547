"""Pairs of features: closed forms of products, sums and integrals, and what is logged of them."""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from promises import MONITORS, pattern, promised, told
from test_plots import bar_ends, check_redraws

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.callbacks.feature_interactions.analysis import (
    Archipelago,
    IntegratedHessians,
    InteractionMethod,
    Interactions,
    group_effects,
)
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.plots import plot_interactions
from ncp_callbacks.target_values import TargetValues

# --- functions known in closed form --------------------------------------------------------------


NAMES = ("archipelago", "integrated_hessians")


def with_steps(method: str, n_steps: int) -> InteractionMethod:
    return IntegratedHessians(n_steps) if method == "integrated_hessians" else Archipelago()


class Known:
    """A function of sums over time, with its derivatives, asked as a model is asked."""

    def __init__(
        self, x: np.ndarray, value: Any, gradient: Any = None, hessian: Any = None
    ) -> None:
        self.x, self.value, self.gradient, self.hessian = x, value, gradient, hessian
        self.runs = 0

    def evaluate(
        self, inputs=None, time_delta=None, *, sequences=None, gradient=False
    ) -> TargetValues:
        self.runs += len(inputs)
        return TargetValues(self.value(inputs.sum(axis=2, dtype=np.float64)))

    def slopes(self, inputs, time_delta=None, *, along, time_along=None) -> TargetValues:
        at, way = inputs.sum(axis=2, dtype=np.float64), along.sum(axis=-2, dtype=np.float64)
        product = np.einsum("...ij,...j->...i", self.hessian(at), np.broadcast_to(way, at.shape))
        return TargetValues(
            (self.gradient(at) * way).sum(axis=-1),
            np.repeat(product[:, :, None], inputs.shape[2], axis=2),
        )

    def found(
        self, method: str, baseline: np.ndarray | None = None, n_steps: int = 16, **options: Any
    ) -> Interactions:
        features = self.x.shape[2]
        common = {
            "baseline": np.zeros_like(self.x) if baseline is None else baseline,
            "groups": [np.array([i]) for i in range(features)],
            "names": [f"f{i}" for i in range(features)],
            **options,
        }
        made = Archipelago() if method == "archipelago" else IntegratedHessians(n_steps)
        return made.interactions(self.evaluate, self.slopes, self.x, **common)


def product(x: np.ndarray) -> Known:
    flip = np.array([[0.0, 1.0], [1.0, 0.0]])
    return Known(
        x,
        lambda s: s[..., 0] * s[..., 1],
        lambda s: s[..., ::-1],
        lambda s: np.broadcast_to(flip, (*s.shape[:-1], 2, 2)),
    )


def sines(x: np.ndarray) -> Known:
    """``sin(x0 x1 + x2)``, about as far from a polynomial as a network is."""

    def parts(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return s[..., 0] * s[..., 1] + s[..., 2], np.stack(
            [s[..., 1], s[..., 0], np.ones_like(s[..., 0])], axis=-1
        )

    def hessian(s: np.ndarray) -> np.ndarray:
        inner, slope = parts(s)
        bend = np.zeros((*s.shape, s.shape[-1]))
        bend[..., 0, 1] = bend[..., 1, 0] = 1.0
        outer = slope[..., :, None] * slope[..., None, :]
        return np.cos(inner)[..., None, None] * bend - np.sin(inner)[..., None, None] * outer

    return Known(
        x,
        lambda s: np.sin(parts(s)[0]),
        lambda s: np.cos(parts(s)[0])[..., None] * parts(s)[1],
        hessian,
    )


def whole(values: Any) -> np.ndarray:
    """Sums over time ``(B, F)`` as sequences ``(B, T, F)`` of three steps."""
    return np.asarray(values, np.float64)[:, None] * np.array([0.5, 0.25, 0.25])[:, None]


def test_a_product_by_archipelago_is_all_one_pair() -> None:
    found = product(whole([[2.0, 3.0], [-1.0, 4.0]])).found("archipelago")
    np.testing.assert_allclose(found.pairs[:, 0, 1], [6.0, -4.0])
    np.testing.assert_allclose(found.main, 0.0, atol=1e-12)
    assert found.share == pytest.approx(1.0)
    np.testing.assert_allclose(found.strength[0, 1], 5.0)
    np.testing.assert_allclose(found.signed[0, 1], 1.0)


def test_a_product_by_integrated_hessians_is_four_equal_parts() -> None:
    found = product(whole([[2.0, 3.0]])).found("integrated_hessians")
    # Each entry of the matrix is 1.5; a pair is two of them.
    np.testing.assert_allclose(found.main, [[1.5, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(found.pairs[0], [[0.0, 3.0], [3.0, 0.0]], rtol=1e-6)


def test_a_product_from_a_baseline_that_is_not_zero() -> None:
    base, x = np.array([1.0, -2.0]), np.array([2.5, 3.0])
    d = x - base
    known = product(whole([x]))
    found = known.found("archipelago", whole([base]))
    np.testing.assert_allclose(found.pairs[0, 0, 1], d[0] * d[1], rtol=1e-6)
    np.testing.assert_allclose(found.main[0], d * base[::-1], rtol=1e-6)
    found = known.found("integrated_hessians", whole([base]))
    np.testing.assert_allclose(found.pairs[0, 0, 1], d[0] * d[1] / 2, rtol=1e-5)
    # d_a ∫ -ln z (other) dz + d_a² · 0, with ∫ -ln z dz = 1 and ∫ -z ln z dz = 1/4.
    expected = d * (base[::-1] + d[::-1] / 4)
    np.testing.assert_allclose(found.main[0], expected, rtol=1e-5)


@pytest.mark.parametrize("method", NAMES)
def test_a_sum_has_no_pairs(method: str) -> None:
    x = whole(np.random.default_rng(0).normal(size=(5, 3)))
    bends = np.array([1.0, 0.0, 3.0])
    known = Known(
        x,
        lambda s: (np.exp(bends * s / 2) + s).sum(axis=-1),
        lambda s: bends / 2 * np.exp(bends * s / 2) + 1,
        lambda s: (bends**2 / 4 * np.exp(bends * s / 2))[..., None] * np.eye(3),
    )
    found = known.found(method)
    s = x.sum(axis=1)
    np.testing.assert_allclose(found.pairs, 0.0, atol=1e-6)
    np.testing.assert_allclose(found.main, np.exp(bends * s / 2) - 1 + s, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.rest, 0.0, atol=1e-6)
    assert found.share == pytest.approx(0.0, abs=1e-6)


def test_integrated_hessians_are_the_double_integral() -> None:
    x = whole(np.random.default_rng(1).normal(size=(4, 3)))
    base = whole(np.random.default_rng(2).normal(size=(4, 3)) * 0.3)
    known = sines(x)
    found = known.found("integrated_hessians", base)
    # As it is written in the paper, over a grid of both variables.
    at, weight = np.polynomial.legendre.leggauss(40)
    at, weight = (at + 1) / 2, weight / 2
    start, way = base.sum(axis=1), (x - base).sum(axis=1)
    both = at[:, None] * at[None]
    points = start + both[..., None, None] * way
    hessian = np.einsum(
        "u,v,uv,uvbij->bij", weight, weight, both, known.hessian(points)
    ) * (way[:, :, None] * way[:, None])  # fmt: skip
    slope = np.einsum("u,v,uvbi->bi", weight, weight, known.gradient(points)) * way
    np.testing.assert_allclose(
        found.main, np.einsum("bii->bi", hessian) + slope, rtol=1e-5, atol=1e-6
    )
    for i, j in ((0, 1), (0, 2), (1, 2)):
        np.testing.assert_allclose(found.pairs[:, i, j], 2 * hessian[:, i, j], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.rest, 0.0, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_archipelago_finds_every_pair_of_a_sum_of_pairs(seed: int, features: int) -> None:
    rng = np.random.default_rng(seed)
    x, base = (whole(rng.normal(size=(3, features))) for _ in range(2))
    single, double = rng.normal(size=features), np.triu(rng.normal(size=(features, features)), 1)

    def bent(s: np.ndarray) -> np.ndarray:
        return np.tanh(s) + s**2

    def value(s: np.ndarray) -> np.ndarray:
        return s @ single + np.einsum("...i,ij,...j->...", bent(s), double, bent(s))

    known = Known(x, value)
    found = known.found("archipelago", base)
    a, b = bent(x.sum(axis=1)), bent(base.sum(axis=1))
    expected = (double + double.T) * ((a - b)[:, :, None] * (a - b)[:, None])
    size = np.abs(expected).max() + 1
    np.testing.assert_allclose(found.pairs, expected, atol=1e-5 * size)
    alone = single * (x - base).sum(axis=1) + (a - b) * (b @ (double + double.T))
    np.testing.assert_allclose(found.main, alone, atol=1e-5 * size)
    np.testing.assert_allclose(found.rest, 0.0, atol=1e-4)
    assert known.runs == found.passes <= 2 + 2 * features + features * (features - 1)


def test_rounding_of_the_targets_is_no_interaction() -> None:
    # Of a saturated model, whose targets differ by the last digit of a float32.
    x = whole(np.random.default_rng(0).normal(size=(6, 3)))
    last = np.float64(np.spacing(np.float32(3.0)))

    def noisy(s: np.ndarray) -> np.ndarray:
        return 3.0 + last * (np.floor(1e6 * s).sum(axis=-1) % 2)

    known = Known(x, noisy, lambda s: 0 * s, lambda s: np.zeros((*s.shape, 3)))
    found = known.found("archipelago")
    assert not found.pairs.any()
    assert not found.main.any()
    assert np.isnan(found.share)
    # What is a little larger is one.
    known = Known(x, lambda s: 3.0 + 40 * last * (s != 0).all(axis=-1), lambda s: 0 * s, None)
    assert known.found("archipelago").pairs.any()


def test_what_three_do_together_is_left_over() -> None:
    found = Known(whole([[2.0, 3.0, 0.5]]), lambda s: s.prod(axis=-1)).found("archipelago")
    # A pair is the mean of the whole product, with the third there, and of nothing without.
    np.testing.assert_allclose(found.pairs[0][np.triu_indices(3, 1)], 1.5)
    np.testing.assert_allclose(found.main, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.rest, [-0.5])


def test_each_set_of_features_is_run_once() -> None:
    for features, sets in ((2, 4), (3, 8), (5, 32), (6, 2 * (1 + 6 + 15)), (12, 2 * (1 + 12 + 66))):
        known = Known(whole(np.ones((1, features))), lambda s: s.sum(axis=-1))
        assert known.found("archipelago").passes == known.runs == sets


@pytest.mark.parametrize("method", NAMES)
def test_the_order_of_features_and_sequences_does_not_matter(method: str) -> None:
    x = whole(np.random.default_rng(3).normal(size=(4, 3)))
    features, rows = np.array([2, 0, 1]), np.array([3, 1, 0, 2])
    found = sines(x).found(method)
    mixed = sines(x).found(method, groups=[np.array([i]) for i in features])
    np.testing.assert_allclose(mixed.pairs, found.pairs[:, features][:, :, features], rtol=1e-9)
    np.testing.assert_allclose(mixed.main, found.main[:, features], rtol=1e-9, atol=1e-12)
    moved = sines(x[rows]).found(method)
    np.testing.assert_allclose(moved.pairs, found.pairs[rows], rtol=1e-9)
    assert moved.share == pytest.approx(found.share)
    np.testing.assert_allclose(found.pairs, np.swapaxes(found.pairs, 1, 2), rtol=1e-9)


def test_groups_take_features_together() -> None:
    x = whole([[2.0, 3.0, 5.0]])
    known = Known(x, lambda s: s[..., 0] * s[..., 1] + s[..., 2])
    two = known.found("archipelago", groups=[np.array([0, 1]), np.array([2])], names=["a", "b"])
    # The product is inside a group now.
    np.testing.assert_allclose(two.main, [[6.0, 5.0]])
    np.testing.assert_allclose(two.pairs, 0.0, atol=1e-12)
    effects = group_effects(
        known.evaluate, x, baseline=np.zeros_like(x), groups=[np.array([0, 1]), np.array([2])]
    )
    np.testing.assert_allclose(effects, [6.0, 5.0])


def test_a_sequence_that_is_not_finite_is_skipped() -> None:
    x = whole([[2.0, 3.0], [np.nan, 1.0], [1.0, 1.0]])
    found = product(x).found("archipelago", np.zeros_like(x))
    assert (found.sequences, found.non_finite) == (2, 1)
    np.testing.assert_allclose(found.pairs[:, 0, 1], [6.0, 1.0])


def test_nothing_that_acts_has_no_share() -> None:
    found = Known(whole(np.ones((3, 2))), lambda s: np.zeros(s.shape[:-1])).found("archipelago")
    assert np.isnan(found.share)
    assert not found.rest.any()


# --- models ---------------------------------------------------------------------------------------

B, T, F = 4, 5, 3


class Net(nn.Module):
    def __init__(self, kind: Any = CfC, features: int = F, **options: Any) -> None:
        super().__init__()
        self.rnn, self.head = kind(features, 8, **options), nn.Linear(8, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class Gated(nn.Module):
    """``sum_t dt_t x_t0 + sum_t x_t1 sum_t x_t2``, as an output of the whole sequence."""

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        s = x.sum(axis=1)
        return (time_delta * x[..., 0]).sum(axis=1) + s[:, 1] * s[:, 2]


class OneBatch(Net):
    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        if len(x) != B:
            raise ValueError("another batch size")
        return super().__call__(x, time_delta)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.net = nn.Embedding(7, 4), Net(features=4)

    def __call__(self, tokens: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.net(self.embedding(tokens), time_delta)


def data(features: int = F, batch: int = B, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, T, features)).astype(np.float32)
    return x, rng.uniform(0.5, 2.0, (batch, T)).astype(np.float32)


def observe(model: nn.Module, held_out: ncp.HeldOutBatch, **options: Any) -> ncp.Observation:
    """Valid as long as nobody changes the model."""
    return passes.observe(ModelRunner(model, held_out, **options), 0, set(ncp.Need))


def logged(
    callback: ncp.Callback,
    model: nn.Module,
    held_out: ncp.HeldOutBatch,
    steps: int = 2,
    **more: Any,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The last record of each tag, and what was said."""
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [callback], writer=writer, every=1, **more) as monitor:
        for step in range(1, steps + 1):
            monitor.on_step_end(step)
        notes = told(monitor.notes)
    records = [(s, r) for s, r in writer.records if not r.tag.startswith(MONITORS)]
    return {r.tag: r for s, r in records if s > 0}, notes


@pytest.mark.parametrize("kind", [CfC, LTC])
def test_slopes_are_differences_of_gradients(kind: Any) -> None:
    mx.random.seed(0)
    model, (x, dt) = Net(kind), data()
    rng = np.random.default_rng(1)
    v, w = (rng.standard_normal(x.shape).astype(np.float32) for _ in range(2))
    u, e = rng.standard_normal(dt.shape).astype(np.float32), np.float32(2e-2)
    seen = observe(model, ncp.HeldOutBatch(x, dt))
    found = seen.extra_passes.slopes(x[None], along=v, time_along=u)
    other = seen.extra_passes.slopes(x[None], along=w)
    steps = np.array([2 * e, e, -e, -2 * e])
    around = seen.extra_passes.evaluate(
        x + steps[:, None, None, None] * v, dt + steps[:, None, None] * u, gradient=True
    )
    # Fourth order, so that steps can be long enough for float32.
    weights = np.array([-1.0, 8.0, -8.0, 1.0]) / (12 * float(e))
    for name in ("values", "input_gradient", "time_gradient"):
        expected = np.tensordot(weights, getattr(around, name).astype(np.float64), 1)
        size = np.abs(expected).max()
        np.testing.assert_allclose(getattr(found, name)[0], expected, atol=2e-3 * size)
    # A Hessian is symmetric: w · H (v, u) is (v, u) · H w.
    there = (found.input_gradient[0] * w).sum(axis=(1, 2))
    back = (other.input_gradient[0] * v).sum(axis=(1, 2)) + (other.time_gradient[0] * u).sum(axis=1)
    np.testing.assert_allclose(there, back, atol=1e-5 * np.abs(there).max())


def test_slopes_of_many_points_are_those_of_each() -> None:
    mx.random.seed(0)
    model, (x, dt) = Net(), data()
    z = np.array([0.2, 0.5, 1.0], np.float32)[:, None, None, None]
    seen = observe(model, ncp.HeldOutBatch(x, dt))
    together = seen.extra_passes.slopes(z * x, along=x)
    apart = [seen.extra_passes.slopes(z[k : k + 1] * x, along=x) for k in range(3)]
    for k in range(3):
        np.testing.assert_allclose(together.values[k], apart[k].values[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            together.input_gradient[k], apart[k].input_gradient[0], rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("seed", range(2))
def test_both_methods_agree_on_a_random_network(seed: int) -> None:
    mx.random.seed(seed)
    model, (x, dt) = Net(), data(seed=seed)
    common = {
        "baseline": np.zeros_like(x),
        "time_baseline": np.full_like(dt, dt.mean()),
        "groups": [np.array([i]) for i in range(F)],
        "names": ["a", "b", "c", "time_delta"],
    }
    seen = observe(model, ncp.HeldOutBatch(x, dt), target=0)
    passes = seen.extra_passes
    cheap, dear = (
        method.interactions(passes.evaluate, passes.slopes, x, dt, **common)
        for method in (Archipelago(), IntegratedHessians(n_steps=8))
    )
    pairs = np.tril_indices(4, -1)
    first, second = (found.pairs[(slice(None), *pairs)].ravel() for found in (cheap, dear))
    # .989 to .999 over four seeds when this was written.
    assert np.corrcoef(first, second)[0, 1] > 0.95
    np.testing.assert_allclose(dear.rest, 0.0, atol=1e-3)


@pytest.mark.parametrize("method", NAMES)
def test_a_model_of_two_known_pairs(method: str) -> None:
    x, dt = data()
    held_out = ncp.HeldOutBatch(x, dt, feature_names=["a", "b", "c"])
    records, _ = logged(
        ncp.FeatureInteractions(method=method, baseline="zeros"), Gated(), held_out, steps=1
    )
    found = records["interactions/matrix"].data
    assert found.names == ("a", "b", "c", "time_delta")
    wide = x.astype(np.float64)
    with_time = (wide[..., 0] * (dt - dt.mean(dtype=np.float64))).sum(axis=1)
    together = wide[..., 1].sum(axis=1) * wide[..., 2].sum(axis=1)
    # A product is one pair for the one, and half pair, half alone for the other.
    part = 1.0 if method == "archipelago" else 0.5
    np.testing.assert_allclose(found.pairs[:, 0, 3], part * with_time, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.pairs[:, 1, 2], part * together, rtol=1e-3, atol=1e-4)
    for i, j in ((0, 1), (0, 2), (1, 3), (2, 3)):
        np.testing.assert_allclose(found.pairs[:, i, j], 0.0, atol=1e-4)
    strength = np.abs(part * with_time).mean(), np.abs(part * together).mean()
    assert records["interactions_pair/a_x_time_delta"].value == pytest.approx(strength[0], rel=1e-3)
    assert records["interactions/time_share"].value == pytest.approx(
        strength[0] / sum(strength), rel=1e-3
    )
    last = "higher_order" if method == "archipelago" else "completeness_error"
    assert records[f"interactions/{last}"].value == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        *itertools.product(["one batch", "tokens", "masked", nn.GRU], NAMES),
        # Its Hessian takes more steps, and time.
        (LTC, "archipelago"),
    ],
)
def test_models_of_many_kinds(model: Any, method: str) -> None:
    mx.random.seed(0)
    x, dt = data()
    held_out, net = ncp.HeldOutBatch(x, dt), Net()
    if model == "one batch":
        net = OneBatch()
    elif model == "tokens":
        held_out = ncp.HeldOutBatch(np.random.default_rng(0).integers(0, 7, (B, T)), dt)
        net = Tokens()
    elif model == "masked":
        mask = np.arange(T) < np.arange(2, T + 1)[:, None]
        held_out = ncp.HeldOutBatch(np.where(mask[..., None], x, np.nan), dt, mask=mask)
    elif model is nn.GRU:
        held_out, net = ncp.HeldOutBatch(x), nn.GRU(F, 4)
    else:
        net = Net(LTC)
    records, notes = logged(
        ncp.FeatureInteractions(method=with_steps(method, 6)), net, held_out, steps=1
    )
    found = records["interactions/matrix"].data
    assert not notes
    assert found.sequences == B
    assert found.non_finite == 0
    names = (*held_out.feature_names, *(() if model is nn.GRU else ("time_delta",)))
    assert found.names == names
    # All parts sum to the change from the baseline, for pairs only where they are complete.
    if method == "integrated_hessians":
        assert records["interactions/completeness_error"].value < 0.02


@pytest.mark.parametrize("method", NAMES)
def test_padding_has_no_part(method: str) -> None:
    mx.random.seed(0)
    (x, dt), model = data(), Net()
    mask = np.arange(T) < np.arange(2, T + 1)[:, None]
    found = []
    for filling in (0.0, 7.0):
        # The model runs over it, but the target is taken before.
        given = np.where(mask[..., None], x, np.float32(filling))
        records, _ = logged(
            ncp.FeatureInteractions(method=with_steps(method, 4)),
            model,
            ncp.HeldOutBatch(given, dt, mask=mask),
            steps=1,
        )
        found.append(records["interactions/matrix"].data.pairs)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_only_the_strongest_of_many_features_stand_alone() -> None:
    x, _ = data(features=20)
    weights = np.linspace(0.0, 2.0, 20).astype(np.float32)

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = mx.array(weights)

        def __call__(self, x: mx.array) -> mx.array:
            return (x * self.w).sum(axis=(1, 2))

    model, callback = Linear(), ncp.FeatureInteractions(baseline="zeros")
    # Equal sizes of all features, so that weights decide.
    held_out = ncp.HeldOutBatch(np.repeat(x[..., :1], 20, axis=2))
    records, _ = logged(callback, model, held_out, steps=1)
    names = records["interactions/matrix"].data.names
    assert names == (*(f"feature {i}" for i in range(9, 20)), "others")
    # Choices are kept when the weights turn round, and when the run is taken up again.
    resumed = ncp.FeatureInteractions(baseline="zeros")
    resumed.load_state_dict(callback.state_dict())
    model.w = mx.array(weights[::-1].copy())
    for again in (callback, resumed):
        later, _ = logged(again, model, held_out, steps=1)
        assert later["interactions/matrix"].data.names == names
        assert set(later) == set(records)
    assert sum(tag.startswith("interactions_pair/") for tag in records) == 6


@pytest.mark.parametrize("method", NAMES)
def test_the_docstring_lists_every_tag(method: str) -> None:
    mx.random.seed(0)
    records, _ = logged(
        ncp.FeatureInteractions(method=with_steps(method, 2)),
        Net(),
        ncp.HeldOutBatch(*data()),
        steps=1,
    )
    kinds = {ncp.Scalar: "scalar", ncp.Figure: "image", ncp.Array: "array"}
    promises = promised(ncp.FeatureInteractions)
    for record in records.values():
        fitting = [tag for tag in promises if pattern(tag).match(record.tag)]
        assert fitting, record.tag
        assert promises[fitting[0]] == kinds[type(record)]
    left = {t for t in promises if not any(pattern(t).match(r) for r in records)}
    other = {"archipelago": "completeness_error", "integrated_hessians": "higher_order"}
    assert left == {f"interactions/{other[method]}"}


def test_elapsed_times_that_are_all_alike_are_skipped() -> None:
    x, _ = data()
    records, notes = logged(ncp.FeatureInteractions(), Net(), ncp.HeldOutBatch(x, 0.7), steps=2)
    assert sum("all elapsed times are equal to their baseline" in note for note in notes) == 1
    assert records["interactions/matrix"].data.names == ("feature 0", "feature 1", "feature 2")
    assert "interactions/time_share" not in records


def test_one_feature_alone_has_no_pair() -> None:
    x, _ = data(features=1)
    records, notes = logged(ncp.FeatureInteractions(), nn.GRU(1, 4), ncp.HeldOutBatch(x))
    assert not records
    assert any("interactions need two" in note for note in notes)


def test_at_most_eight_sequences_by_default() -> None:
    mx.random.seed(0)
    records, _ = logged(
        ncp.FeatureInteractions(), Net(), ncp.HeldOutBatch(*data(batch=20)), steps=1
    )
    assert records["interactions/sequences"].value == 8
    low, high = records["interactions/share"].ci
    assert low <= records["interactions/share"].value <= high


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"method": "shapley"}, "archipelago"),
        ({"method": "archipelagos"}, "did you mean 'archipelago'"),
        ({"max_sequences": 0}, "max_sequences=0"),
    ],
)
def test_arguments_that_can_not_be_meant(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ncp.FeatureInteractions(**options)


# --- pictures -------------------------------------------------------------------------------------


def example(count: int = 4, size: float = 1.0, long: bool = False) -> Interactions:
    rng = np.random.default_rng(count)
    pairs = np.triu(rng.exponential(size=(5, count, count)), 1) * size
    names = tuple(f"{'a quite long name of ' if long else ''}feature {i}" for i in range(count))
    return Interactions(
        "archipelago", names, rng.normal(size=(5, count)) * size, pairs + np.swapaxes(pairs, 1, 2),
        rng.normal(size=5), 3,
    )  # fmt: skip


PICTURES = [
    (example(2), {}),
    (example(3, long=True), {"target": "prediction at last step"}),
    (example(13, long=True), {"limit": 2.0, "bars": 50.0}),
    (example(13), {}),
    (example(4, size=0.0), {}),
]


def check_picture(plot: Any, data: Any, options: dict[str, Any]) -> None:
    """Its text fits, and what a redrawer makes of it a second time looks the same."""
    check_redraws(plot, (data, options))


@pytest.mark.parametrize("number", range(len(PICTURES)))
def test_pictures_fit_and_are_the_same_when_drawn_again(number: int) -> None:
    check_picture(plot_interactions, *PICTURES[number])


def test_a_picture_shows_the_pairs_below_the_diagonal_and_what_each_does_alone() -> None:
    result = example(5)
    triangle, bars, _ = plot_interactions(result, limit=4.0, bars=20.0).axes
    shown = triangle.images[0].get_array()
    below = np.tril(np.ones((5, 5), bool), -1)
    np.testing.assert_array_equal(~np.ma.getmaskarray(shown), below)
    np.testing.assert_allclose(shown[below], np.abs(result.pairs).mean(axis=0)[below])
    ends = bar_ends(bars)
    alone = np.abs(result.main).mean(axis=0)
    np.testing.assert_allclose(ends[0][1], alone)
    np.testing.assert_allclose(ends[1][0], alone)
    # Half of each pair is either's.
    half = np.abs(result.pairs).mean(axis=0).sum(axis=1) / 2
    np.testing.assert_allclose(ends[1][1] - alone, half)


def test_limits_of_pictures_only_grow() -> None:
    mx.random.seed(0)
    callback, model, held_out = ncp.FeatureInteractions(), Net(), ncp.HeldOutBatch(*data())
    first, _ = logged(callback, model, held_out, steps=1)
    model.head.weight = model.head.weight / 100
    second, _ = logged(callback, model, held_out, steps=1)
    for name in ("limit", "bars"):
        values = [r["interactions/matrix"].options[name] for r in (first, second)]
        assert values[0] == values[1] > 0


def test_one_group_can_not_be_drawn() -> None:
    with pytest.raises(ValueError, match="pass at least two"):
        plot_interactions(example(1))


class Saturated(nn.Module):
    """Whatever it is given, its output is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = mx.array([3.0])

    def __call__(self, x: mx.array) -> mx.array:
        return mx.tanh(1e4 + x.sum(axis=(1, 2)))[:, None] + self.offset


def test_it_is_reported_once_that_nothing_acts() -> None:
    x = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        Saturated(), ncp.HeldOutBatch(x), [ncp.FeatureInteractions()], writer=writer, every=1
    ) as monitor:
        for step in (1, 2):
            monitor.on_step_end(step)
        assert sum("nothing acts on it, alone or together" in n for n in monitor.notes) == 1
    assert "interactions/share" not in writer.tags
    assert not any(value for _, value in writer.scalars("interactions/higher_order"))
