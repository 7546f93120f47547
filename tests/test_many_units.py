"""Cells with many units: what costs grows no faster than the cell itself, and is still right."""

from __future__ import annotations

from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy.spatial import procrustes

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.callbacks.dynamics.analysis import state_drift
from ncp_callbacks.callbacks.dynamics.jacobian_products import (
    estimated_memory,
    leading_exponents,
    leading_gains,
)
from ncp_callbacks.callbacks.state_space.analysis import (
    explained_variance,
    participation_ratios_without_each,
)
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.stats.state_samples import spread_units

B, T, F = 6, 9, 2
rng = np.random.default_rng(0)


class LinearCell(nn.Module):
    """``h' = A h + W x``; notes how many rows it is called with."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__()
        self.a = mx.array(matrix.astype(np.float32))
        self.w = mx.random.normal((F, len(matrix)), key=mx.random.key(0))

    def __call__(self, x: mx.array, h: mx.array) -> mx.array:
        rows.append(len(h))
        return h @ self.a.T + x @ self.w


rows: list[int] = []


class Net(nn.Module):
    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__()
        mx.random.seed(0)
        self.cell, self.head = LinearCell(matrix), nn.Linear(len(matrix), 1)

    def __call__(self, x: mx.array) -> mx.array:
        h = mx.zeros((len(x), len(self.cell.a)))
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


def known(units: int) -> np.ndarray:
    """Far from normal, with the eigenvalues .95, .9, .8 and others of at most .5."""
    own = np.random.default_rng(1)
    values = np.concatenate([[0.95, 0.9, 0.8], own.uniform(-0.5, 0.5, units - 3)])
    axes = np.eye(units) + 0.02 * own.standard_normal((units, units))
    return axes @ np.diag(values) @ np.linalg.inv(axes)


def batch(mask: np.ndarray | None = None) -> ncp.HeldOutBatch:
    x = np.random.default_rng(2).standard_normal((B, T, F)).astype(np.float32)
    return ncp.HeldOutBatch(x, mask=mask)


def test_products_are_those_of_a_linear_cell() -> None:
    """At 200 units, against the matrix itself."""
    matrix = known(200)
    assert np.linalg.norm(matrix @ matrix.T - matrix.T @ matrix) > 0.1
    model = Net(matrix)
    seen = passes.observe(
        ModelRunner(model, batch(), target=0), 1, {ncp.Need.STATES, ncp.Need.CELL_STEPS}
    )
    products = seen.extra_passes.jacobian_products("cell")
    vectors = rng.standard_normal((B, 200, 3))
    np.testing.assert_allclose(products.forward(2, vectors), matrix @ vectors, atol=1e-4)
    np.testing.assert_allclose(products.backward(2, vectors), matrix.T @ vectors, atol=1e-4)
    exponents = leading_exponents(products, count=3)
    memory = estimated_memory(products, directions=64)
    radius, norm, owner = leading_gains(products)
    whole = np.linalg.matrix_power(matrix, T - 1)
    expected = np.log(np.linalg.svd(whole, compute_uv=False)[:3]) / (T - 1)
    np.testing.assert_allclose(exponents, np.tile(expected, (B, 1)), atol=1e-3)
    powers = [np.linalg.matrix_power(matrix, k) for k in range(T)]
    curve = np.array([np.linalg.norm(p) for p in powers]) / np.sqrt(200)
    # The standard error of the mean over six sequences of 64 directions is about 4 %.
    np.testing.assert_allclose(memory.curve, curve, rtol=0.15)
    np.testing.assert_allclose(radius, 0.95, rtol=1e-3)
    np.testing.assert_allclose(norm, np.linalg.norm(matrix, 2), rtol=1e-2)
    assert (norm <= np.linalg.norm(matrix, 2) * (1 + 1e-5)).all()
    assert sorted(set(owner.tolist())) == list(range(B))
    assert len(radius) == len(norm) == len(owner) == 4 * B


def test_padding_is_skipped_of_products() -> None:
    lengths = np.array([9, 5, 9, 7, 2, 1])
    model = Net(known(80))
    mask = np.arange(T) < lengths[:, None]
    runner = ModelRunner(model, batch(mask), target=0)
    seen = passes.observe(runner, 1, {ncp.Need.STATES, ncp.Need.CELL_STEPS})
    products = seen.extra_passes.jacobian_products("cell")
    exponents = leading_exponents(products, mask=mask, count=2)
    memory = estimated_memory(products, mask=mask, directions=80)
    owner = leading_gains(products, mask=mask)[2]
    for s, length in enumerate(lengths):
        whole = np.linalg.matrix_power(known(80), length - 1)
        assert np.isfinite(memory.norms[s]).sum() == length
        if length > 1:
            expected = np.log(np.linalg.svd(whole, compute_uv=False)[:2]) / (length - 1)
            np.testing.assert_allclose(exponents[s], expected, atol=2e-3)
        # As many directions as units are all of them: no estimate any more.
        frobenius = np.linalg.norm(whole) / np.sqrt(80)
        np.testing.assert_allclose(memory.norms[s, length - 1], frobenius, rtol=1e-4)
    assert np.isnan(exponents[5]).all()
    assert 5 not in owner


def looked(units: int, callback: ncp.Callback) -> tuple[int, dict[str, float], list[str], Any]:
    """Rows of the cell in one look, scalars, notes and the writer."""
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        Net(known(units)), batch(), [callback], writer=writer, every=1, target=0
    ) as monitor:
        rows.clear()
        monitor.on_step_end(1)
        total = sum(rows)
        notes = list(monitor.notes)
    scalars = {t: s[-1][1] for t in writer.tags if (s := writer.scalars(t))}
    return total, scalars, notes, writer


@pytest.mark.parametrize("kind", [ncp.TimeConstants, ncp.Dynamics])
def test_sequences_that_a_snapshot_runs_do_not_grow_with_units(kind: Any) -> None:
    few, *_ = looked(64, kind(max_units=16))
    many, scalars, notes, _ = looked(192, kind(max_units=16))
    assert many <= 1.2 * few
    assert any("192 units" in note and "max_units=192" in note for note in notes)
    assert all(np.isfinite(value) for value in scalars.values())


@pytest.mark.parametrize("kind", [ncp.TimeConstants, ncp.Dynamics])
def test_up_to_max_units_numbers_are_those_of_all_units(kind: Any) -> None:
    with mock.patch.object(ncp.ExtraPasses, "jacobian_products", side_effect=AssertionError):
        _, scalars, notes, _ = looked(24, kind(max_units=24))
        _, more, _, _ = looked(24, kind(max_units=100))
    own = {t: v for t, v in scalars.items() if not t.startswith("monitor/")}
    assert own == {t: v for t, v in more.items() if not t.startswith("monitor/")}
    assert not any("max_units" in note for note in notes)


def test_effective_time_constants_of_a_subset_are_those_of_its_units() -> None:
    _, _, notes, writer = looked(90, ncp.TimeConstants(max_units=10))
    chosen = spread_units(90, 10)
    kept = np.abs(np.diagonal(known(90)).astype(np.float32))[chosen]
    found = [
        record.values
        for logged in writer.records
        for record in (logged if isinstance(logged, list | tuple) else [logged])
        if isinstance(record, ncp.Array) and record.tag.endswith("_median")
    ]
    np.testing.assert_allclose(found[-1], -1 / np.log(kept), rtol=1e-4)
    assert any("are computed for 10 of 90 units" in note for note in notes)


@pytest.mark.parametrize(("units", "most"), [(5, 8), (8, 8), (9, 8), (600, 64), (64, 1)])
def test_units_of_a_subset_are_spread(units: int, most: int) -> None:
    found = spread_units(units, most)
    assert len(found) == min(units, most)
    edges = np.arange(len(found) + 1) * units // len(found)
    assert ((edges[:-1] <= found) & (found < edges[1:])).all()
    np.testing.assert_array_equal(found, spread_units(units, most))


@pytest.mark.parametrize("kind", [ncp.TimeConstants, ncp.Dynamics])
def test_max_units_is_checked(kind: Any) -> None:
    with pytest.raises(ValueError, match="max_units=0"):
        kind(max_units=0)


# --- more units than samples


def test_principal_axes_of_few_samples_are_those_of_the_singular_values() -> None:
    x = rng.standard_normal((12, 40)) * np.linspace(1, 3, 40)
    mean, variances, axes = explained_variance(x)
    left = x - x.mean(axis=0)
    _, values, expected = np.linalg.svd(left, full_matrices=False)
    np.testing.assert_allclose(mean, x.mean(axis=0))
    np.testing.assert_allclose(variances[:12], values**2 / 12, atol=1e-10)
    assert variances.shape == (40,)
    assert (variances[12:] == 0).all()
    np.testing.assert_allclose(np.abs((axes[:11] * expected[:11]).sum(axis=1)), 1, rtol=1e-9)
    np.testing.assert_allclose(axes @ axes.T, np.eye(12), atol=1e-9)


def test_few_samples_take_no_matrix_of_all_units() -> None:
    x = np.zeros((12, 4000)) + rng.standard_normal((12, 4000))
    with mock.patch.object(np.linalg, "eigh", wraps=np.linalg.eigh) as solved:
        explained_variance(x)
    assert solved.call_args.args[0].shape == (12, 12)
    with mock.patch.object(np.linalg, "svd", wraps=np.linalg.svd) as solved:
        state_drift(x, x + 0.1 * rng.standard_normal(x.shape), np.arange(12) // 3)
    assert solved.call_args.args[0].shape == (12, 12)


def test_drift_of_few_samples_is_that_of_scipy() -> None:
    x, y = rng.standard_normal((2, 10, 30))
    y = x + 0.3 * y
    found = state_drift(x, y, np.arange(10) // 2)
    assert found.procrustes == pytest.approx(procrustes(x, y)[2], rel=1e-9)
    k, m = ((a - a.mean(0)) @ (a - a.mean(0)).T for a in (x, y))
    assert found.cka == pytest.approx((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m))


def test_participation_without_each_of_few_samples_is_that_of_what_is_left() -> None:
    states = rng.standard_normal((4, 3, 30)).astype(np.float32)
    use = np.ones((4, 3), bool)
    use[1, 2] = False
    centred = np.where(use[..., None], states - states[use].mean(axis=0), 0).astype(np.float32)
    found = participation_ratios_without_each(centred, use)
    for b in range(4):
        left = np.delete(centred, b, axis=0)[np.delete(use, b, axis=0)].astype(np.float64)
        values = np.linalg.eigvalsh(np.cov(left.T, bias=True))
        assert found[b] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-5)
