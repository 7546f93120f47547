"""Test that clamping units changes target and loss as worked out by hand."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from ncps.wirings import AutoNCP
from promises import told
from scipy import stats
from test_state_changes import KeepsItsState

import ncp_callbacks as ncp
from ncp_callbacks.analysis import unit_ablations
from ncp_callbacks.models import CfC

B, T = 20, 7
KEEP, WEIGHT = np.array([0.9, 0.5, 0.2]), np.array([2.0, -1.0, 0.0])
X = np.random.default_rng(0).standard_normal((B, T, 3)).astype(np.float32)


class Cell(nn.Module):
    """Independent leaky units, each of which adds up one input."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = mx.array(KEEP.astype("f"))

    def __call__(self, x: mx.array, h: mx.array) -> mx.array:
        return self.keep * h + x


class Leaky(nn.Module):
    """A linear read-out of leaky units."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.weight = Cell(), mx.array(WEIGHT.astype("f"))

    def __call__(self, x: mx.array) -> mx.array:
        h, out = mx.zeros((len(x), 3)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append((h * self.weight).sum(axis=-1, keepdims=True))
        return mx.stack(out, axis=1)


def states(x: np.ndarray) -> np.ndarray:
    h, found = np.zeros((len(x), 3)), []
    for t in range(x.shape[1]):
        h = KEEP * h + x[:, t]
        found.append(h)
    return np.stack(found, axis=1)


def logged(model: nn.Module, held_out: ncp.HeldOutBatch, *, steps: int = 1, **options: Any) -> Any:
    writer = ncp.MemoryWriter()
    callbacks = [ncp.UnitAblation(**options)]
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1, background=False) as m:
        for step in range(1, steps + 1):
            m.on_step_end(step)
        notes = told(m.notes)
    last = {record.tag: record for step, record in writer.records if step}
    return last, notes


@pytest.mark.parametrize("few", [8, 32])
def test_changes_of_a_linear_model_have_their_closed_forms(few: int) -> None:
    h = states(X)
    y = (h[:, -1] @ WEIGHT)[:, None]
    targets = (y + 0.1 * np.random.default_rng(1).normal(size=y.shape)).astype("f")
    found, notes = logged(
        Leaky(), ncp.HeldOutBatch(X, targets=targets), max_clamped_sequences=few, max_sequences=None
    )
    assert notes == ()
    # Means are of all sequences, changes of those with which units are clamped.
    some = ncp.HeldOutBatch(X).spread(min(few, B))
    means = h.mean(axis=(0, 1))
    moved = WEIGHT * (means - h[some, -1])
    before = ((y - targets)[some, 0]) ** 2
    rises = ((y - targets)[some] + moved) ** 2 - before[:, None]
    back = KEEP ** np.arange(T - 1, -1, -1)[:, None]
    slopes = (WEIGHT * back * (means - h[some])).sum(axis=1)
    place, change, by_slope, loss = found["_ncp/ablation_units"].values
    np.testing.assert_array_equal(place, [0, 1, 2])
    close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(change, np.abs(moved).mean(axis=0), **close)
    np.testing.assert_allclose(by_slope, np.abs(slopes).mean(axis=0), **close)
    np.testing.assert_allclose(loss, rises.mean(axis=0), **close)
    for unit in range(3):
        of_loss = found[f"ablation_loss_change/unit {unit}"]
        assert of_loss.value == pytest.approx(rises[:, unit].mean(), rel=1e-4, abs=1e-6)
    sizes = np.abs(moved).mean(axis=0)
    assert found["ablation/carrying_units"].value == pytest.approx(
        sizes.sum() ** 2 / (sizes**2).sum(), rel=1e-4
    )
    shares = np.stack([sizes, np.abs(slopes).mean(axis=0)])
    shares /= shares.sum(axis=1, keepdims=True)
    assert found["ablation/slope_disagreement"].value == pytest.approx(
        np.abs(shares[0] - shares[1]).sum() / 2, rel=1e-3
    )
    p = stats.ttest_1samp(rises[:, :2], 0.0).pvalue
    holm = np.maximum.accumulate(np.sort(np.append(p, 1.0)) * [3, 2, 1])
    expected = {8: 0, 32: 2}[few]
    assert found["ablation/needed_units"].value == (holm < 0.05).sum() == expected


def test_units_whose_loss_falls_are_not_needed() -> None:
    losses = np.full(12, 5.0)
    noise = 0.01 * np.random.default_rng(0).normal(size=(3, 12))
    clamped = losses + noise + np.array([[1.0], [-1.0], [0.0]])
    result = unit_ablations("abc", np.zeros(12), noise, losses=losses, clamped_losses=clamped)
    assert result.needed is not None
    assert result.needed.tolist() == [True, False, False]


def test_sequences_that_are_not_finite_are_skipped_and_counted() -> None:
    clamped = np.ones((2, 4))
    clamped[1, 2] = np.nan
    result = unit_ablations(["a", "b"], np.zeros(4), clamped)
    assert (result.sequences, result.non_finite) == (3, 1)
    np.testing.assert_array_equal(result.change, [1, 1])
    assert result.carrying == pytest.approx(2)
    nothing = unit_ablations(["a", "b"], np.zeros(4), np.zeros((2, 4)), slopes=np.ones((4, 2)))
    assert np.isnan(nothing.carrying)
    assert nothing.slope_disagreement is None


class Recurrent(nn.Module):
    """A layer of mlx.nn and a linear read-out."""

    def __init__(self, layer: nn.Module, units: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(units, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.layer(x))


def test_the_number_of_units_is_bounded_and_they_stay() -> None:
    mx.random.seed(0)
    model = Recurrent(nn.GRU(3, 20), 20)
    writer = ncp.MemoryWriter()
    callback = ncp.UnitAblation(max_units=4, max_clamped_sequences=5)
    held_out = ncp.HeldOutBatch(X)
    with ncp.Monitor(model, held_out, [callback], writer=writer, every=1, background=False) as m:
        for step in (1, 2, 3):
            # Another unit is the strongest at each snapshot.
            weight = np.full((1, 20), 0.01, "f")
            weight[0, step] = 1.0
            weight[0, 10:13] = 0.5
            model.head.weight = mx.array(weight)
            m.on_step_end(step)
    places = [r.values[0].tolist() for s, r in writer.records if r.tag == "_ncp/ablation_units"]
    assert [len(p) for p in places] == [4] * len(places)
    assert places[1:] == [places[1]] * (len(places) - 1)
    passes = dict(writer.scalars("monitor/passes/state_changes"))
    # Three to find how states are changed, four units, and the gradient.
    assert set(passes.values()) == {8.0}


def test_neurons_of_a_wired_cell_have_the_names_of_their_kind() -> None:
    mx.random.seed(0)
    model = CfC(3, AutoNCP(9, 2, seed=1))
    found, _ = logged(model, ncp.HeldOutBatch(X, np.ones((B, T), "f")))
    tags = {tag.split("/")[1] for tag in found if tag.startswith("ablation_change/")}
    assert {tag.split()[0] for tag in tags} == {"inter", "command", "motor"}
    # A wired CfC has its motor neurons last.
    assert {tag for tag in tags if tag.startswith("motor")} == {"motor 7", "motor 8"}
    assert {int(tag.split()[1]) for tag in tags} == set(range(9))


class Squeezing(Leaky):
    """Squeezes its inputs, so that a single sequence loses its batch axis."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x.squeeze())


def test_a_model_that_runs_no_single_sequence_is_analysed() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        Squeezing()(mx.array(X[:1]))
    last, _ = logged(Squeezing(), ncp.HeldOutBatch(X))
    plain, _ = logged(Leaky(), ncp.HeldOutBatch(X))
    assert last["ablation/carrying_units"].value == plain["ablation/carrying_units"].value


def test_a_cell_that_keeps_its_state_itself_is_skipped_with_the_reason() -> None:
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(X)
    with ncp.Monitor(
        KeepsItsState(), held_out, [ncp.UnitAblation()], writer=writer, every=1, cells="cell"
    ) as monitor:
        monitor.on_step_end(1)
        assert any("pass the state to the cell" in note for note in monitor.notes)
    assert not any(tag.startswith("ablation") for tag in writer.tags)
