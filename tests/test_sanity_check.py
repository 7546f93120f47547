"""Randomised models: what changes, what stays, that all is as before, and what maps make of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
import zoo
from mlx.utils import tree_flatten
from ncps.wirings import AutoNCP
from promises import pattern, promised
from scipy.stats import spearmanr
from small_nets import WeightedSum
from test_plots import check_redraws, check_text, title, words

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.arrays import to_numpy
from ncp_callbacks.attribution import IntegratedGradients
from ncp_callbacks.callbacks.sanity_check.analysis import ALIKE, Cascade, Measures, map_similarity
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.model.pytrees import leaves, modules
from ncp_callbacks.model.randomize import randomised
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.plots import plot_sanity, plot_sanity_measures

pytestmark = pytest.mark.filterwarnings("error")

B, T, F = 8, 6, 4
Arrays = dict[str, np.ndarray]

# The attribution that these tests work out by hand.
FROM_ZERO = {"method": "input_x_gradient", "baseline": "zeros", "time_baseline": "zeros"}


class Net(nn.Module):
    def __init__(self, rnn: nn.Module, units: int = 8) -> None:
        super().__init__()
        self.head, self.rnn = nn.Linear(units, 1), rnn

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        states = self.rnn(x) if isinstance(self.rnn, nn.GRU) else self.rnn(x, time_delta)[0]
        return self.head(states[:, -1])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "CfC": lambda: CfC(F, 8, backbone_units=6, backbone_layers=2),
    "CfC wired": lambda: CfC(F, AutoNCP(12, 8)),
    "LTC": lambda: LTC(F, 8, ode_unfolds=2),
    "GRU": lambda: nn.GRU(F, 8),
}


def made(name: str, seed: int = 0) -> nn.Module:
    mx.random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (AutoNCP draws its wiring from it)
    model = Net(MODELS[name]())
    mx.eval(model.parameters())
    return model


def batch(seed: int = 1, size: int = B) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((size, T, F)).astype(np.float32)
    return x, rng.uniform(0.5, 1.5, (size, T)).astype(np.float32)


def arrays(model: nn.Module) -> Arrays:
    return {path: to_numpy(array) for path, array in tree_flatten(model.parameters())}


def seen(model: nn.Module) -> ModelRunner:
    return ModelRunner(model, ncp.HeldOutBatch(*batch()))


def monitored(
    model: nn.Module,
    callbacks: list[ncp.Callback],
    looks: int = 1,
    x: np.ndarray | None = None,
    **options: Any,
) -> tuple[ncp.MemoryWriter, tuple[str, ...]]:
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(*batch()) if x is None else ncp.HeldOutBatch(x)
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1, **options) as monitor:
        for step in range(1, looks + 1):
            monitor.on_step_end(step)
        return writer, monitor.notes


def scalars(writer: ncp.MemoryWriter) -> dict[str, ncp.Scalar]:
    return {r.tag: r for _, r in writer.records if isinstance(r, ncp.Scalar)}


# ---- randomising


@pytest.mark.parametrize("name", MODELS)
def test_entries_change_places_stage_by_stage_and_come_back(name: str) -> None:
    model = made(name)
    before, held = arrays(model), dict(tree_flatten(model.parameters()))
    trainable = dict(tree_flatten(model.trainable_parameters()))
    runner, changed = seen(model), set[str]()
    copied = runner.model
    with randomised(runner, stages=20) as cascade:
        for names in cascade:
            changed |= set(names)
            now = arrays(copied)
            for path, array in before.items():
                owner = path.rpartition(".")[0]
                few = len(np.unique(array[array != 0])) < 2
                if few or path not in trainable or owner not in changed:
                    np.testing.assert_array_equal(now[path], array, err_msg=path)
                    continue
                np.testing.assert_array_equal(np.sort(now[path], None), np.sort(array, None))
                np.testing.assert_array_equal(now[path] == 0, array == 0)
                # Each goes elsewhere; only where its like stood can it seem to stay.
                kinds = len(np.unique(array[array != 0]))
                stay = (now[path] == array)[array != 0]
                assert not stay.all(), path
                assert kinds < stay.size or not stay.any(), path
    assert len(changed) >= 2
    assert runner.model is copied
    for path, array in tree_flatten(model.parameters()):
        assert array is held[path]
        np.testing.assert_array_equal(to_numpy(array), before[path])
        np.testing.assert_array_equal(arrays(copied)[path], before[path])


def test_the_same_every_time_and_whatever_the_random_state() -> None:
    results = []
    for seed in (0, 1):
        model = made("CfC")
        mx.random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        runner = seen(model)
        key = mx.random.state[0].tolist()
        with randomised(runner) as cascade:
            assert len(list(cascade)) == 6
            results.append(arrays(runner.model))
        assert mx.random.state[0].tolist() == key
    assert any(not np.array_equal(results[0][path], a) for path, a in arrays(model).items())
    for path in results[0]:
        np.testing.assert_array_equal(results[0][path], results[1][path])


def test_stages_follow_the_calls_from_the_output_on() -> None:
    class Recurrence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Not in the order in which they are called.
            self.second, self.last, self.first = (nn.Linear(F, F) for _ in range(3))
            self.out = nn.Linear(F, 1)
            self.norm = nn.LayerNorm(F)  # Zeros and ones: nothing to randomise.
            self.scale = mx.array([2.0, 3.0, 4.0, 5.0])

        def __call__(self, x: mx.array) -> mx.array:
            return self.out(self.norm(self.last(self.second(self.first(x * self.scale))))[:, -1])

    model = Recurrence()
    runner = ModelRunner(model, ncp.HeldOutBatch(batch()[0]))
    with randomised(runner) as cascade:
        assert list(cascade) == [("out",), ("last",), ("second",), ("first",), ("",)]
    with randomised(runner, stages=2) as cascade:
        assert list(cascade) == [("out", "last", "second"), ("first", "")]
    with randomised(runner, stages=1) as cascade:
        next(cascade)  # and no further


class Parts(nn.Module):
    """All kinds of arrays."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.weights = mx.array(rng.normal(size=(T, F)).astype(np.float32))
        self.half = self.weights.astype(mx.bfloat16)
        self.mask = mx.array((rng.uniform(size=(T, F)) > 0.2).astype(np.float32))
        self.wiring = self.mask > 0
        self.count = mx.array([3, 4, 5])
        self.sparse = mx.array(np.where(np.eye(4) > 0, 0.0, rng.normal(size=(4, 4))).tolist())
        self.pair, self.one = mx.array([1.0, 2.0]), mx.array([3.0])
        self.frozen = nn.Linear(F, F)
        self.frozen.freeze()
        self.listed = [mx.array([1.5, 2.5, 3.5]), {"deep": mx.array([4.5, 5.5, 6.5])}]
        self.tied = [nn.Linear(F, F, bias=False), nn.Linear(F, F, bias=False)]
        self.tied[1].weight = self.tied[0].weight

    def __call__(self, x: mx.array) -> mx.array:
        x = self.frozen(self.tied[1](self.tied[0](x)))
        return (x * self.weights * self.mask).sum(axis=(1, 2))[:, None]


def test_what_can_not_be_learnt_stays() -> None:
    model = Parts()
    before = arrays(model)
    runner = ModelRunner(model, ncp.HeldOutBatch(batch()[0]))
    with randomised(runner) as cascade:
        list(cascade)
        now, copied = arrays(runner.model), runner.model
        assert copied.half.dtype == mx.bfloat16
        assert copied.tied[0].weight is copied.tied[1].weight
        assert all(np.array_equal(array, before[path]) for path, array in arrays(model).items())
    stay = {"mask", "wiring", "count", "one", "frozen.weight", "frozen.bias"}
    assert {p for p in before if np.array_equal(now[p], before[p])} == stay
    np.testing.assert_array_equal(now["pair"], [2.0, 1.0])
    np.testing.assert_array_equal(np.diag(now["sparse"]), 0.0)
    assert {"listed.0", "listed.1.deep"} <= now.keys() - stay


def test_all_comes_back_when_something_is_raised() -> None:
    model = made("CfC")
    before = arrays(model)
    runner = seen(model)
    with pytest.raises(ZeroDivisionError), randomised(runner) as cascade:  # noqa: PT012
        next(cascade)
        now = arrays(runner.model)
        assert not all(np.array_equal(a, before[p]) for p, a in now.items())
        raise ZeroDivisionError
    for owner in (runner.model, model):
        for path, array in arrays(owner).items():
            np.testing.assert_array_equal(array, before[path])


def test_a_model_without_anything_to_learn_is_skipped() -> None:
    class Mean(nn.Module):
        def __call__(self, x: mx.array) -> mx.array:
            return x.mean(axis=(1, 2))[:, None]

    writer, notes = monitored(Mean(), [ncp.SanityCheck()], x=batch()[0])
    assert any(
        "sanity_check doesn't apply to this model" in n and "no trainable parameters" in n
        for n in notes
    )
    assert not any("sanity" in tag for tag in writer.tags)


def test_what_a_model_keeps_of_its_parameters_goes_with_them() -> None:
    class Caches(WeightedSum):
        def __call__(self, x: mx.array) -> mx.array:
            self.cache = 2 * self.weights
            return (x * self.cache).sum(axis=(1, 2))[:, None]

    model = Caches(np.random.default_rng(0).normal(size=(T, F)))
    model(mx.array(batch()[0]))
    cache, weights = model.cache, model.weights
    monitored(model, [ncp.SanityCheck()], x=batch()[0])
    assert model.cache is cache
    assert model.weights is weights


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["CfC", "LTC"])
def test_training_is_bit_identical(name: str, compiled: bool) -> None:
    def trained(watched: bool) -> tuple[list[float], Arrays]:
        model, optimizer = made(name), optim.Adam(1e-2)
        x, dt = map(mx.array, batch(2, 12))
        y = x[:, :, :1].sum(axis=1)
        loss_and_grad = nn.value_and_grad(model, lambda x, dt, y: ((model(x, dt) - y) ** 2).mean())

        def step(x: mx.array, dt: mx.array, y: mx.array) -> mx.array:
            loss, gradients = loss_and_grad(x, dt, y)
            optimizer.update(model, gradients)
            return loss

        state = [model.state, optimizer.state]
        run = mx.compile(step, inputs=state, outputs=state) if compiled else step
        callbacks = [
            ncp.SanityCheck(max_sequences=3),
            ncp.Faithfulness(max_sequences=3, n_groups=10),
        ]
        losses = []
        with ncp.Monitor(
            model, ncp.HeldOutBatch(x[:4], dt[:4]), callbacks if watched else [],
            writer=ncp.MemoryWriter(), every=2, on_error="raise",
        ) as monitor:  # fmt: skip
            for number in range(1, 6):
                losses.append(run(x, dt, y).item())
                monitor.on_step_end(number)
        return losses, arrays(model)

    (losses, plain), (watched_losses, watched) = trained(False), trained(True)
    assert losses == watched_losses
    for path in plain:
        np.testing.assert_array_equal(plain[path], watched[path], err_msg=path)


def test_others_of_the_same_snapshot_analyse_the_trained_model() -> None:
    def values(callbacks: list[ncp.Callback]) -> dict[str, float]:
        found = scalars(monitored(made("CfC"), callbacks, 2)[0])
        return {t: r.value for t, r in found.items() if not t.startswith(("sanity", "monitor"))}

    others = (ncp.GradientAttribution, ncp.TimeSensitivity, ncp.StateTransitions)
    method = {"method": IntegratedGradients(4)}
    last = ncp.GradientAttribution(name="last", **method)
    alone = values([*(c() for c in others), last])
    last = ncp.GradientAttribution(name="last", **method)
    after = values([ncp.SanityCheck(max_sequences=None), *(c() for c in others), last])
    assert alone.keys() == after.keys()
    for tag, value in alone.items():
        assert after[tag] == pytest.approx(value, rel=1e-5, abs=1e-7), tag


def held(model: nn.Module) -> dict[str, mx.array]:
    """All arrays of all modules, those in tuples and behind attributes too."""
    found = {}
    for path, module in modules(model):
        inside = {key: value for key, value in module.items() if not isinstance(value, nn.Module)}
        for key, array in leaves({**inside, **vars(module)}):
            found[f"{path}:{key}"] = array
    return found


@pytest.mark.parametrize("name", zoo.EXAMPLES)
def test_any_model(name: str) -> None:
    case = zoo.EXAMPLES[name]
    x, dt = zoo.data(case)
    model = zoo.made(case)
    if name.startswith("enhanced/"):
        case.plain(model, x, dt)  # which makes its weights
    before = held(model)
    callback = ncp.SanityCheck(stages=3, name="check")
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        model, ncp.HeldOutBatch(x, dt), [callback], writer=writer, every=1, on_error="raise",
        forward=case.forward, horizon=case.horizon, target=0,
    ) as monitor:  # fmt: skip
        monitor.on_step_end(1)
    assert before.keys() == held(model).keys()
    for path, array in held(model).items():
        assert array is before[path], path
    found = scalars(writer)
    assert found["check_output0/sequences"].value == zoo.BATCH
    assert -1 <= found["check_output0/rank_correlation"].value < 1
    strength, other = (found[f"check_output0/strength{s}"].value for s in ("", "_random"))
    assert strength != other


# ---- similarity


def test_similarity_is_that_of_scipy_and_of_real_steps() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 3, T, F))
    mask = np.ones((3, T), bool)
    mask[1, 2:] = False
    other[1, 3] = np.nan  # in padding
    ranks, cosines = map_similarity(one, other, mask)
    for b in range(3):
        x, y = one[b][mask[b]].ravel(), other[b][mask[b]].ravel()
        assert ranks[b] == pytest.approx(spearmanr(np.abs(x), np.abs(y)).statistic)
        assert cosines[b] == pytest.approx(x @ y / math.sqrt((x @ x) * (y @ y)))
    np.testing.assert_allclose(map_similarity(one, one), 1.0)
    np.testing.assert_allclose(map_similarity(one, -3 * one), [[1.0] * 3, [-1.0] * 3])
    assert np.isnan(map_similarity(one, 0 * one)).all()
    one[2, 0, 0] = np.inf
    np.testing.assert_array_equal(np.isnan(map_similarity(one, one))[:, 2], True)


def test_steps_after_the_target_are_no_likeness() -> None:
    # As many cells as the whole map has, of which all but 2 steps are 0 whatever was learnt.
    rng = np.random.default_rng(1)
    one, other = np.zeros((2, 200, 12, F))
    one[:, :2], other[:, :2] = rng.normal(size=(2, 200, 2, F))
    ranks, _ = map_similarity(one, other)
    # Independent maps have no likeness: the mean of 200 with an SD of about (2 F - 1) ** -0.5.
    assert abs(ranks.mean()) < 4 / math.sqrt(200 * (2 * F - 1))


# ---- the callback


def shuffled(model: nn.Module) -> np.ndarray:
    """The weights of the randomised model."""
    runner = ModelRunner(model, ncp.HeldOutBatch(batch()[0]))
    with randomised(runner) as cascade:
        list(cascade)
        return np.array(runner.model.weights)


def test_a_linear_model_has_the_maps_of_its_weights() -> None:
    weights, x = np.random.default_rng(0).normal(size=(T, F)), batch()[0]
    model = WeightedSum(weights)
    other = shuffled(model)
    found = scalars(monitored(model, [ncp.SanityCheck(**FROM_ZERO)], x=x)[0])
    alike = [
        spearmanr(np.abs(weights * row).ravel(), np.abs(other * row).ravel()).statistic for row in x
    ]
    assert found["sanity_check/rank_correlation"].value == pytest.approx(np.mean(alike), abs=1e-5)
    for name, own in (("", weights), ("_random", other)):
        maps = np.abs(own * x).mean(axis=0)
        # Shares are of contributions: sums over a sequence with their signs.
        contribution = np.abs((own * x).sum(axis=1)).mean(axis=0)
        share = contribution / contribution.sum()
        entropy = -(share * np.log(share)).sum() / math.log(F)
        targets = (own * x).sum(axis=(1, 2))
        for measure, value in (
            ("strength", maps.sum()), ("entropy", entropy), ("target_sd", targets.std()),
        ):  # fmt: skip
            record = found[f"sanity_check/{measure}{name}"]
            assert record.value == pytest.approx(value, rel=1e-4), record.tag
    assert "sanity_check/elasticity" not in found
    # The gradient is the weights themselves, in all sequences.
    found = scalars(monitored(model, [ncp.SanityCheck(method="gradient")], x=x)[0])
    expected = spearmanr(np.abs(weights).ravel(), np.abs(other).ravel()).statistic
    record = found["sanity_check/rank_correlation"]
    assert record.value == pytest.approx(expected, abs=1e-5)
    # All sequences have the same map: nothing tells how sure that is.
    assert record.ci is None
    cosine = (weights * other).sum() / (weights**2).sum()
    assert found["sanity_check/cosine"].value == pytest.approx(cosine, abs=1e-5)


def test_a_planted_feature_is_lost() -> None:
    weights = np.full((T, F), 0.01) * np.random.default_rng(0).normal(size=(T, F))
    weights[:, 1] = 1.0
    writer, notes = monitored(
        WeightedSum(weights), [ncp.SanityCheck(method="gradient")], 3, x=batch()[0]
    )
    found = scalars(writer)
    assert abs(found["sanity_check/rank_correlation"].value) < 0.5
    assert found["sanity_check/entropy"].value < 0.2
    assert found["sanity_check/entropy_random"].value > 0.5
    assert not any("keep most of their order" in note for note in notes)


@pytest.mark.parametrize("name", ["CfC", "GRU"])
@pytest.mark.parametrize("count", [B, 3 * B])
def test_the_steps_of_both_models_states(name: str, count: int) -> None:
    model, (x, dt) = made(name), batch(size=count)
    held_out = ncp.HeldOutBatch(x, dt)
    rows = held_out.spread(B)

    def length(model: Any) -> float:
        given = (mx.array(x[rows]), mx.array(dt[rows]))[: 1 if name == "GRU" else 2]
        states = model.rnn(*given)
        values = np.array(states if name == "GRU" else states[0], np.float64)
        return float(np.sqrt((np.diff(values, axis=1) ** 2).sum(axis=2)).mean())

    trained, runner = length(model), ModelRunner(model, held_out)
    with randomised(runner) as cascade:
        list(cascade)
        random = length(runner.model)
    assert length(model) == trained
    assert random != pytest.approx(trained, rel=1e-2)
    writer = ncp.MemoryWriter()
    # Others look at all sequences, so that these are a part of a wider pass.
    callbacks = [ncp.SanityCheck(), ncp.StateTransitions()]
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
    found = scalars(writer)
    assert found["sanity_check/magnitude"].value == pytest.approx(trained, rel=1e-5)
    assert found["sanity_check/magnitude_random"].value == pytest.approx(random, rel=1e-5)


class Unlearned(nn.Module):
    """What it has learnt changes the size of its maps, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = mx.array([1.0, 3.0])

    def __call__(self, x: mx.array) -> mx.array:
        return self.scale[0] * (x**2).sum(axis=(1, 2))[:, None]


class TwoWeights(nn.Module):
    """It has maps that are alike for some shuffles of its weights, and not for others."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weights = mx.array(weights.astype(np.float32))

    def __call__(self, x: mx.array) -> mx.array:
        return (x * self.weights).sum(axis=(1, 2))[:, None]


def test_maps_are_alike_only_if_they_are_for_every_shuffle() -> None:
    """The cycle of the first shuffle moves a ramp by little; those of others do not."""
    ramp = np.arange(1.0, T * F + 1)
    runner = ModelRunner(TwoWeights(ramp.reshape(T, F)), ncp.HeldOutBatch(batch()[0]))

    def orders(weights: np.ndarray) -> list[float]:
        found = []
        for draw in range(5):
            runner.model.weights = mx.array(weights.astype(np.float32))
            with randomised(runner, draw=draw) as cascade:
                list(cascade)
                other = np.array(runner.model.weights)
            found.append(spearmanr(weights.ravel(), other.ravel()).statistic)
        return found

    # Along the first cycle, weights that hardly differ follow each other.
    with randomised(runner) as cascade:
        list(cascade)
        source = np.array(runner.model.weights).ravel().astype(int) - 1
    place, weights = 0, np.empty(T * F)
    for value in range(1, T * F + 1):
        weights[place], place = value, source[place]
    expected = orders(weights.reshape(T, F))
    assert expected[0] > 0.71 > min(expected)
    sanity = ncp.SanityCheck(method="gradient")
    writer, notes = monitored(TwoWeights(weights.reshape(T, F)), [sanity], 3, x=batch()[0])
    found = scalars(writer)
    assert found["sanity_check/rank_correlation"].value == pytest.approx(expected[0], abs=1e-5)
    least = found["sanity_check/rank_correlation_min"].value
    assert least == pytest.approx(min(expected), abs=1e-5)
    assert not any("keep most of their order" in note for note in notes)


def test_a_map_that_ignores_what_was_learnt_is_found_out() -> None:
    writer, notes = monitored(Unlearned(), [ncp.SanityCheck()], 3, x=batch()[0])
    found = scalars(writer)
    assert found["sanity_check/rank_correlation"].value == pytest.approx(1.0)
    assert found["sanity_check/cosine"].value == pytest.approx(1.0)
    assert found["sanity_check/rank_correlation_min"].value == pytest.approx(1.0)
    strengths = [found[f"sanity_check/strength{s}"].value for s in ("", "_random")]
    assert strengths[1] == pytest.approx(3 * strengths[0], rel=1e-5)
    said = [note for note in notes if "keep most of their order" in note]
    assert len(said) == 1
    # Not at the first look, when nothing may have been learnt.
    assert "at step 2" in said[0]
    _, notes = monitored(Unlearned(), [ncp.SanityCheck()], x=batch()[0])
    assert not any("keep most of their order" in note for note in notes)


def test_the_curve_falls_for_a_network_that_has_learnt() -> None:
    model = made("GRU")
    x, _ = batch(5, 128)
    y = mx.array(x[:, -2:, 1].sum(axis=1, keepdims=True))
    optimizer = optim.Adam(2e-2)
    step = nn.value_and_grad(model, lambda x, y: ((model(x) - y) ** 2).mean())
    for _ in range(80):
        loss, gradients = step(mx.array(x), y)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
    assert loss.item() < 0.2  # of a variance of 2
    callback = ncp.SanityCheck(method=IntegratedGradients(8), baseline="zeros")
    writer, _ = monitored(model, [callback], x=batch()[0])
    (ranks, cosines) = next(
        r.values for _, r in writer.records if r.tag == "_ncp/sanity_check_cascade"
    )
    assert ranks[0] == pytest.approx(1.0)
    assert ranks[-1] < ALIKE
    assert abs(cosines[-1]) < 0.6
    found = scalars(writer)
    # One feature of four; without what it has learnt, all.
    assert found["sanity_check/entropy"].value < found["sanity_check/entropy_random"].value


def test_randomised_networks_that_are_not_finite_are_counted() -> None:
    class Explodes(WeightedSum):
        def __call__(self, x: mx.array) -> mx.array:
            return mx.exp((x * self.weights).sum(axis=(1, 2)))[:, None]

    weights = np.zeros((T, F))
    weights[0, :3] = 1.5, 300.0, 0.5
    x = np.ones((B, T, F), np.float32)
    # The large weight goes to one of the other two.
    x[:, 0, 0] = x[:, 0, 2] = np.linspace(0.1, 1.0, B)
    x[:, 0, 1] = 0.001
    writer, notes = monitored(Explodes(weights), [ncp.SanityCheck(**FROM_ZERO)], 2, x=x)
    found = scalars(writer)
    # exp(300 x) is beyond float32 above 88.7.
    broken = int((300 * x[:, 0, 0] > 88).sum())
    assert 0 < broken < B
    assert found["sanity_check/nonfinite"].value == broken
    assert found["sanity_check/sequences"].value == B - broken
    assert math.isfinite(found["sanity_check/strength_random"].value)
    assert any("NaN or infinity" in note for note in notes)
    x[:, 0, 0] = x[:, 0, 2] = 1.0
    writer, _ = monitored(Explodes(weights), [ncp.SanityCheck(**FROM_ZERO)], 2, x=x)
    found = scalars(writer)
    assert found["sanity_check/nonfinite"].value == B
    assert "sanity_check/rank_correlation" not in found
    assert "sanity_check/strength_random" not in found
    assert math.isfinite(found["sanity_check/strength"].value)
    for _, record in writer.records:
        if isinstance(record, ncp.Figure):
            check_text(record.plot(record.data, **record.options))


def test_the_docstring_lists_every_tag_and_no_other() -> None:
    complete = {"method": IntegratedGradients(4)}
    writer, _ = monitored(made("CfC"), [ncp.SanityCheck(**complete)], 2)
    kinds = {ncp.Scalar: "scalar", ncp.Figure: "image", ncp.Array: "array"}
    promises = promised(ncp.SanityCheck)
    records = [r for _, r in writer.records if r.tag.startswith(("sanity", "_ncp/sanity"))]
    for record in records:
        fitting = {promises[tag] for tag in promises if pattern(tag).match(record.tag)}
        assert fitting == {kinds[type(record)]}, record.tag
        assert isinstance(record, ncp.Array) or record.description, record.tag
    alike, _ = monitored(Unlearned(), [ncp.SanityCheck()], 2, x=batch()[0])
    records += [r for _, r in alike.records if r.tag.endswith("rank_correlation_min")]
    for tag in promises:
        assert any(pattern(tag).match(r.tag) for r in records), tag


@pytest.mark.parametrize("name", ["CfC", "GRU"])
def test_measures_are_those_of_the_callbacks_that_have_them(name: str) -> None:
    whole = {"max_sequences": None, "method": "integrated_gradients"}
    callbacks = [
        ncp.SanityCheck(**whole), ncp.GradientAttribution(method="integrated_gradients"),
        ncp.StateSpace(), ncp.StateTransitions(),
    ]  # fmt: skip
    found = scalars(monitored(made(name), callbacks)[0])
    others = {
        "mean_lag": "attribution/mean_lag",
        "time_share": "attribution/time_share",
        "completeness_error": "attribution/completeness_error",
        "participation": "hidden/participation_ratio",
        "magnitude": "transitions/magnitude_mean",
    }
    for own, other in others.items():
        assert (other in found) == (f"sanity_check/{own}" in found)
        if other in found:
            here = found[f"sanity_check/{own}"]
            assert here.value == pytest.approx(found[other].value, rel=1e-4, abs=1e-6)
            if found[other].ci is not None and found[other].value > 0:
                assert here.ci == pytest.approx(found[other].ci, rel=1e-3)
    assert name == "GRU" or all(other in found for other in others.values())


def test_measures_of_the_randomised_model_are_those_of_that_model() -> None:
    model, (x, dt) = made("CfC"), batch()
    held_out = ncp.HeldOutBatch(x, dt)
    seen = scalars(monitored(model, [ncp.SanityCheck(max_sequences=None)])[0])
    runner = ModelRunner(model, held_out)
    with randomised(runner) as cascade:
        list(cascade)
        randomised_arrays = tree_flatten(runner.model.parameters())
        weights = [(path, mx.array(value)) for path, value in randomised_arrays]
    model.load_weights(weights)
    callbacks = [ncp.GradientAttribution(), ncp.StateSpace()]
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
    found = scalars(writer)
    for own, other in (
        ("mean_lag", "attribution/mean_lag"),
        ("time_share", "attribution/time_share"),
        ("strength", "attribution/strength"),
        ("participation", "hidden/participation_ratio"),
    ):
        here = seen[f"sanity_check/{own}_random"].value
        assert here == pytest.approx(found[other].value, rel=1e-4)
        assert here != pytest.approx(seen[f"sanity_check/{own}"].value, rel=1e-2)


def test_elasticity_is_that_of_time_sensitivity() -> None:
    callbacks = [ncp.SanityCheck(max_sequences=None), ncp.TimeSensitivity()]
    found = scalars(monitored(made("CfC"), callbacks)[0])
    assert found["sanity_check/elasticity"].value == pytest.approx(
        found["time_delta/elasticity_rms"].value, rel=1e-4
    )
    assert found["sanity_check/elasticity_random"].value > 0


def test_the_first_snapshot_is_kept_over_an_interruption() -> None:
    first, second = ncp.SanityCheck(), ncp.SanityCheck()
    writer, _ = monitored(made("CfC"), [first], 2)
    pictures = [r for _, r in writer.records if r.tag == "sanity_check/cascade"]
    assert pictures[0].options["first"] is None
    strength = writer.scalars("sanity_check/strength_random")[0][1]
    assert pictures[1].options["first"].strength == strength
    state = json.loads(
        json.dumps({k: np.asarray(v).tolist() for k, v in first.state_dict().items()})
    )
    second.load_state_dict(state)
    writer, _ = monitored(made("CfC", seed=5), [second])
    (picture,) = (r for _, r in writer.records if r.tag == "sanity_check/cascade")
    assert picture.options["first"].strength == strength
    assert len(picture.options["first_curve"]) == 7  # six stages


def test_another_target_and_arguments_out_of_range() -> None:
    writer, _ = monitored(made("GRU"), [ncp.SanityCheck(name="check")], target=0)
    assert any(tag.startswith("check_output0/") for tag in writer.tags)
    with pytest.raises(ValueError, match="stages=0"):
        ncp.SanityCheck(stages=0)
    with pytest.raises(ValueError, match="unknown"):
        ncp.SanityCheck(method="magic")


def test_tokens_are_embedded_anew() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 5), nn.Linear(5, 1)

        def __call__(self, x: mx.array) -> mx.array:
            return self.head(self.embedding(x).sum(axis=1))

    mx.random.seed(0)
    model, tokens = Reader(), np.random.default_rng(0).integers(0, 7, (B, T))
    found = scalars(monitored(model, [ncp.SanityCheck(**FROM_ZERO)], x=tokens)[0])
    runner = ModelRunner(model, ncp.HeldOutBatch(tokens))
    with randomised(runner) as cascade:
        list(cascade)
        copied = runner.model
        maps = np.array(copied.embedding.weight @ copied.head.weight[0])[tokens]
    strength = np.abs(maps).mean(axis=0).sum()
    assert found["sanity_check/strength_random"].value == pytest.approx(strength, rel=1e-4)


# ---- re-evaluation


def test_a_reevaluation_has_no_arrays_of_the_pass_before() -> None:
    (x, dt), (other, _) = batch(), batch(7)
    whole = passes.observe(ModelRunner(made("CfC"), ncp.HeldOutBatch(x, dt)), 0, set(ncp.Need))
    for observation in (whole, whole.limited(2)):
        assert observation.activations
        assert len(observation.states)
        inputs = other[: len(observation.inputs)]
        again = observation.extra_passes.reevaluate(inputs)
        for name in ("activations", "states", "outputs", "losses", "step"):
            assert not hasattr(again, name)
        with observation.extra_passes.randomised(1) as stages:
            # Nothing is randomised yet.
            np.testing.assert_array_equal(
                observation.extra_passes.states()[0].values, observation.states[0].values
            )
            ((_, shuffled),) = stages
            assert (shuffled.target_values != observation.target_values).all()
            moved = observation.extra_passes.states()[0].values
            assert np.abs(moved - observation.states[0].values).max() > 1e-3
        assert (observation.extra_passes.reevaluate(observation.inputs).target_values
                == pytest.approx(observation.target_values, rel=1e-5))  # fmt: skip


def test_a_reevaluation_is_an_observation_of_other_inputs() -> None:
    model = made("CfC")
    (x, dt), (other, _) = batch(), batch(7)
    needs = set(ncp.Need)
    whole = passes.observe(ModelRunner(model, ncp.HeldOutBatch(x, dt)), 0, needs)
    moved = whole.extra_passes.reevaluate(other)
    expected = passes.observe(ModelRunner(model, ncp.HeldOutBatch(other, dt)), 0, needs)
    for name in ("inputs", "target_values", "input_gradient", "time_gradient"):
        np.testing.assert_allclose(
            getattr(moved, name), getattr(expected, name), rtol=1e-4, atol=1e-6
        )
    stretched = np.stack([dt, 2 * dt])
    for rows in (None, np.array([1, 4])):
        some = stretched if rows is None else stretched[:, rows]
        np.testing.assert_allclose(
            moved.extra_passes.evaluate(time_delta=some, sequences=rows).values,
            expected.extra_passes.evaluate(time_delta=some, sequences=rows).values,
            rtol=1e-4, atol=1e-6,
        )  # fmt: skip
    np.testing.assert_allclose(
        moved.extra_passes.at_time_scales([2.0]).values[2.0],
        expected.extra_passes.at_time_scales([2.0]).values[2.0],
        rtol=1e-4,
    )


# ---- the picture


def cascade(stages: int = 3, seed: int = 0, **measures: float) -> Cascade:
    rng = np.random.default_rng(seed)
    ranks, cosines = rng.uniform(-1, 1, (2, stages + 1, B))
    ranks[0] = cosines[0] = 1.0
    names = ("head", "cell.time_a", "backbone.layers.0 +3", "encoder", "embedding", "x")[:stages]
    own = Measures(
        **{"strength": 1.2, "entropy": 0.5, "elasticity": 0.1, "target_sd": 2.0} | measures
    )
    return Cascade(names, ranks, cosines, 0, own, Measures(123456.0, 0.99, 0.00012, 1e-9))


def test_the_picture_shows_the_curves_and_measures() -> None:
    result, first = cascade(), Measures(2.0, 0.9, 0.2, 0.3)
    before = np.array([1.0, 0.5, 0.2, 0.1])
    figure = plot_sanity(
        result, first=first, first_curve=before, method="integrated gradients", step=3000
    )
    check_text(figure)
    assert title(figure) == "sanity check of integrated gradients · step 3,000"
    assert all(name in words(figure) for name in ("trained", "+ head", "strength", "first"))
    lines = [np.asarray(line.get_xdata(), float) for line in figure.axes[0].lines]
    for curve in (*result.curve, before):
        assert any(line.shape == curve.shape and np.allclose(line, curve) for line in lines)
    own, random = figure.axes[2].patches
    assert own.get_width() / random.get_width() == pytest.approx(0.5 / 0.99)
    # Through both bars, each in dashes of its own: the randomised model and, if it's known, the
    # first snapshot, whose entropy is 0.9 where the randomised one's is 0.99.
    baseline, earlier = figure.axes[2].lines
    assert list(baseline.get_xdata()) == [random.get_width()] * 2
    ratio = earlier.get_xdata()[0] / baseline.get_xdata()[0]
    assert ratio == pytest.approx(0.9 / 0.99)
    assert list(baseline.get_ydata()) == list(earlier.get_ydata()) == [0, 2]
    dashes = {str(line._unscaled_dash_pattern[1]) for line in (baseline, earlier)}
    assert len(dashes) == 2
    assert "None" not in dashes
    (alone,) = plot_sanity(result).axes[2].lines
    assert list(alone.get_xdata()) == [random.get_width()] * 2


def test_the_picture_of_measures_has_them_all() -> None:
    more = {"magnitude": 0.4, "mean_lag": 3.0, "time_share": 0.2, "participation": 2.5}
    result = cascade(**more)
    figure = plot_sanity_measures(result, first=Measures(2.0, 0.9, 0.2, 0.3), step=20)
    check_text(figure)
    names = [
        "strength", "entropy", "mean lag", "share of Δt", "elasticity", "target SD",
        "state steps", "dimensions",
    ]  # fmt: skip
    assert all(name in words(figure) for name in names)
    assert len(figure.axes) == 8
    # Column by column: the entropy's are the second pair.
    own, random = figure.axes[1].patches
    assert own.get_width() / random.get_width() == pytest.approx(0.5 / 0.99)
    baseline, earlier = figure.axes[1].lines
    assert list(baseline.get_xdata()) == [random.get_width()] * 2
    assert earlier.get_xdata()[0] / baseline.get_xdata()[0] == pytest.approx(0.9 / 0.99)
    # Of the randomised model nothing is known of what has no bar.
    assert len(figure.axes[2].patches) == 1
    check_redraws(
        plot_sanity_measures, (result, {}), (result, {"first": Measures(2.0, 0.9, 0.2, 0.3)})
    )


@pytest.mark.parametrize("stages", [1, 3, 6])
def test_the_next_picture_is_that_of_a_fresh_figure(stages: int) -> None:
    before = {"first": Measures(2.0, 0.9, math.nan, 0.3)}
    pictures = [(cascade(stages, seed, elasticity=math.nan), {"method": "SmoothGrad", **more})
                for seed, more in enumerate(({}, before))]  # fmt: skip
    check_redraws(plot_sanity, *pictures)
