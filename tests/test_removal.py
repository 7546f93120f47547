"""Test the removal of features, elapsed times and blocks of time against values by hand."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.attribution import (
    Attribution,
    IntegratedGradients,
    compare,
    compare_blocks,
    removal_of,
)
from ncp_callbacks.attribution.removal import FeatureGroup, Removal, feature_groups, time_blocks
from ncp_callbacks.model import ModelRunner

T, F = 6, 3
RNG = np.random.default_rng(0)
W, V = RNG.normal(size=(T, F)).astype("f"), RNG.normal(size=T).astype("f")


class Linear(nn.Module):
    """Weigh inputs and elapsed times: whatever is replaced, the change has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = mx.array(W), mx.array(V)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return (x * self.w).sum(axis=(1, 2))[:, None] + (time_delta @ self.v)[:, None]


def sequences(count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, T, F)).astype("f")
    return x, rng.uniform(0.5, 2.0, (count, T)).astype("f")


def observed(held_out: ncp.HeldOutBatch, **options: Any) -> ncp.Observation:
    return passes.observe(ModelRunner(Linear(), held_out), 0, {ncp.Need.REMOVALS}, **options)


def test_of_two_sequences_each_is_replaced_by_the_other() -> None:
    x, dt = sequences(2)
    observation = observed(ncp.HeldOutBatch(x, dt))
    found = removal_of(observation, feature_groups(observation), n_blocks=3)
    apart = x[::-1] - x
    expected = np.abs((apart * W).sum(axis=1))
    np.testing.assert_allclose(found.by_feature, expected, rtol=0, atol=1e-5)
    assert found.by_time is not None
    times = (dt[::-1] - dt) * V
    np.testing.assert_allclose(found.by_time, np.abs(times.sum(axis=1)), rtol=0, atol=1e-5)
    assert found.blocks == ((0, 1), (2, 3), (4, 5))
    blocks = ((apart * W).sum(axis=2) + times).reshape(2, 3, 2).sum(axis=2)
    np.testing.assert_allclose(found.by_block, np.abs(blocks), rtol=0, atol=1e-5)


def test_features_are_replaced_together_where_they_are_one_group() -> None:
    x, dt = sequences(2)
    observation = observed(ncp.HeldOutBatch(x, dt, feature_names=["a", "b", "c"]))
    groups = feature_groups(observation, ["b"])
    assert [(g.name, g.features.tolist()) for g in groups] == [("b", [1]), ("other", [0, 2])]
    found = removal_of(observation, groups).by_feature
    apart = ((x[::-1] - x) * W).sum(axis=1)
    np.testing.assert_allclose(found[:, 1], np.abs(apart[:, 0] + apart[:, 2]), atol=1e-5)


def test_samples_are_other_sequences_each_once() -> None:
    """With as many samples as there are others, the mean is over all of them."""
    x, dt = sequences(5)
    observation = observed(ncp.HeldOutBatch(x, dt))
    found = removal_of(observation, feature_groups(observation), n_samples=4).by_feature
    values = np.einsum("btf,tf->bf", x, W)
    expected = np.abs(values[:, None] - values[None]).sum(axis=1) / 4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_some_sequences_are_replaced_by_any_of_the_held_out_batch() -> None:
    x, dt = sequences(8)
    x[1:, :, 0] = 0.0
    x[0, :, 0] = 100.0
    whole = observed(ncp.HeldOutBatch(x, dt))
    some = observed(ncp.HeldOutBatch(x, dt), max_sequences=3)
    groups = feature_groups(whole)
    all_of = removal_of(whole, groups).by_feature
    np.testing.assert_allclose(removal_of(some, groups).by_feature, all_of[some.indices], atol=1e-4)
    # The sequence that is unlike all others replaces exactly one other, and is itself replaced.
    assert (all_of[:, 0] > 1).sum() == 2


def test_padding_is_neither_replaced_nor_taken() -> None:
    x, dt = sequences(2)
    mask = np.ones((2, T), bool)
    mask[1, 4:] = False
    x[~mask], dt[~mask] = 1e6, 1e6
    held_out = ncp.HeldOutBatch(x, dt, mask=mask)

    class Masked(Linear):
        def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
            return super().__call__(mx.clip(x, -50, 50), mx.clip(time_delta, 0, 50))

    runner = ModelRunner(Masked(), held_out)
    observation = passes.observe(runner, 0, {ncp.Need.REMOVALS})
    found = removal_of(observation, feature_groups(observation), n_blocks=3)
    mean = x[mask].mean(axis=0)
    other = np.where(mask[::-1, :, None], x[::-1], mean)
    expected = np.abs(((other - x)[0] * W).sum(axis=0))
    np.testing.assert_allclose(found.by_feature[0], expected, rtol=0, atol=1e-3)
    assert np.isnan(found.by_block).tolist() == [[False, False, False], [False, False, True]]


def test_a_single_sequence_is_replaced_by_its_mean() -> None:
    x, dt = sequences(1)
    observation = observed(ncp.HeldOutBatch(x, dt))
    found = removal_of(observation, feature_groups(observation)).by_feature
    expected = np.abs(((x - x.mean(axis=(0, 1))) * W).sum(axis=1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("steps", "count", "expected"), [
    (6, 4, ((0, 1), (2, 3), (4, 4), (5, 5))), (3, 4, ((0, 0), (1, 1), (2, 2))), (5, 1, ((0, 4),)),
])  # fmt: skip
def test_blocks_cover_every_time_step_once(
    steps: int, count: int, expected: tuple[tuple[int, int], ...]
) -> None:
    assert time_blocks(steps, count) == expected


# --- two views


def views(own: Any, other: Any) -> tuple[Attribution, Removal]:
    groups = tuple(FeatureGroup(f"feature {i}", np.array([i])) for i in range(len(own[0])))
    attribution = Attribution(IntegratedGradients(), np.asarray(own, float)[:, None])
    return attribution, Removal(groups, np.asarray(other, float), None, (), np.empty((len(own), 0)))


def test_views_that_agree_have_no_disagreement() -> None:
    strengths = np.random.default_rng(0).uniform(1, 2, (20, 3))
    found = compare(*views(strengths, 7 * strengths))
    assert found is not None
    assert found.disagreement.value == pytest.approx(0, abs=1e-12)
    assert found.disputed == ()


def test_disagreement_is_the_part_given_to_different_features() -> None:
    found = compare(*views([[6.0, 3.0, 1.0]] * 4, [[1.0, 3.0, 6.0]] * 4))
    assert found is not None
    assert found.disagreement.value == pytest.approx(0.5)
    np.testing.assert_allclose(found.attributed, [0.6, 0.3, 0.1])
    np.testing.assert_allclose(found.removed, [0.1, 0.3, 0.6])
    # Sequences without any spread leave no doubt.
    assert set(found.disputed) == {0, 2}


def test_small_and_chance_differences_are_not_disputed() -> None:
    rng = np.random.default_rng(0)
    # 5 % of the whole, surely; and a difference that few, noisy sequences can't tell.
    sure = compare(*views([[55.0, 45.0]] * 20, [[50.0, 50.0]] * 20))
    noisy = compare(*views(rng.gamma(0.2, size=(4, 2)), rng.gamma(0.2, size=(4, 2))))
    assert sure is not None
    assert noisy is not None
    assert sure.disputed == noisy.disputed == ()
    assert noisy.disagreement.value > 0.1


def test_there_is_nothing_to_compare_without_changes_or_finite_sequences() -> None:
    assert compare(*views([[1.0, 2.0]], [[0.0, 0.0]])) is None
    assert compare(*views([[1.0, 2.0]], [[np.nan, 1.0]])) is None


def test_blocks_of_time_by_both_views() -> None:
    blocks = ((0, 2), (3, 3), (4, 5))
    changes = np.array([[1.0, 2.0, 1.0], [3.0, 0.0, np.nan]])
    own = np.zeros((2, T, F))
    own[0, 0], own[0, 1], own[0, 3, 0], own[0, 4, 0] = 1.0, -2.0, 3.0, 2.0
    own[1, 2, 2] = -1.0
    times = np.zeros((2, T))
    times[0, 3] = -1.0
    group = (FeatureGroup("all", np.arange(F)),)
    removal = Removal(group, np.ones((2, 1)), None, blocks, changes)
    found = compare_blocks(Attribution(IntegratedGradients(), own, times), removal)
    assert found is not None
    assert found.names == ("time steps 0–2", "time step 3", "time steps 4–5")
    # |3 - 6| and |-1| in the first block; |3 - 1| and 0 in the second; 2 in the third.
    np.testing.assert_allclose(found.attributed, np.array([4, 2, 2]) / 8)
    np.testing.assert_allclose(found.removed, np.array([4, 2, 1]) / 7)
    # Something is attributed to a block that a sequence has not: its target had no finite change.
    own[1, 5, 0] = 1.0
    found = compare_blocks(Attribution(IntegratedGradients(), own, times), removal)
    assert found is not None
    np.testing.assert_allclose(found.removed, np.array([1, 2, 1]) / 4)
    whole = Removal(group, np.ones((2, 1)), None, ((0, 5),), np.ones((2, 1)))
    assert compare_blocks(Attribution(IntegratedGradients(), own, times), whole) is None


def test_shares_of_blocks_of_a_linear_model_agree() -> None:
    x, dt = sequences(200)
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(x, dt)
    with ncp.Monitor(Linear(), held_out, [ncp.FeatureRemoval(n_blocks=3)], writer=writer) as m:
        m.on_step_end(100)
    (shares,) = [r.values for _, r in writer.records if r.tag == "_ncp/removal_block_shares"]
    # The SD of a block's part of the target: of standard normal inputs, and uniform times.
    variance = (W**2).sum(axis=1) + V**2 * 1.5**2 / 12
    expected = np.sqrt(variance.reshape(3, 2).sum(axis=1))
    expected /= expected.sum()
    for value, low, high in (shares[:3], shares[3:6]):
        np.testing.assert_allclose(value, expected, atol=0.05)
        assert (low < value).all()
        assert (value < high).all()
    assert shares[6].tolist() == [0, 0, 0]


def test_shares_and_blocks_are_logged() -> None:
    x, dt = sequences(20)
    x[..., 2] = 0.5  # A feature that is equal everywhere can't be replaced by another.
    x[:, :3] *= 0.0
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(x, dt, feature_names=["a", "b", "c"])
    with ncp.Monitor(Linear(), held_out, [ncp.FeatureRemoval(n_blocks=2)], writer=writer) as m:
        m.on_step_end(100)
    values = {
        tag: dict(writer.scalars(tag))[100] for tag in writer.tags if tag.startswith("removal_")
    }
    assert values["removal_share/c"] == 0
    assert sum(values.values()) == pytest.approx(1)
    (blocks,) = [r.values for _, r in writer.records if r.tag == "_ncp/removal_blocks"][-1:]
    assert blocks[:2].T.tolist() == [[0, 2], [3, 5]]
