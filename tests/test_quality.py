"""What the benchmark of attribution methods measures, and what the example of a cheat shows."""

from __future__ import annotations

import csv
import importlib
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scripts import BENCHMARKS, script
from sklearn.metrics import roc_auc_score

from ncp_callbacks.attribution import IntegratedGradients, Occlusion

pytestmark = pytest.mark.filterwarnings("error")

quality = script("attribution_quality")
report = sys.modules["attribution_report"]
NAMES = tuple(method.name for method in quality.BUILT_IN)
EXAMPLES = BENCHMARKS.parent / "examples"
sys.path.append(str(EXAMPLES))
cheating = importlib.import_module("cheating")

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


# --- metrics


def test_ranking_of_four_inputs_by_hand():
    truth = np.array([[1, 0], [1, 0]], bool)[None]
    # 1, .75, .25, 0 once they are scaled; the second is no cause.
    found = quality.ranking(np.array([[8.0, -6.5], [3.5, 2.0]])[None], truth)
    # Precision and recall at the thresholds 0, .25, .75, 1.
    assert found["AUP"] == pytest.approx(
        0.25 * (1 / 2 + 2 / 3) / 2 + 0.5 * (2 / 3 + 1 / 2) / 2 + 0.25 * (1 / 2 + 1) / 2
    )
    assert found["AUR"] == pytest.approx(0.25 * 1 + 0.5 * (1 + 0.5) / 2 + 0.25 * 0.5)
    assert found["AUROC"] == pytest.approx(3 / 4)
    assert found["AUPRC"] == pytest.approx((1 + 2 / 3) / 2)


@given(seeds)
def test_the_same_ranking_has_another_aur(rng):
    """Why AUP and AUR are no headline."""
    truth = rng.uniform(size=(1, 6, 5)) < 0.3
    truth[0, 0, :2] = True, False
    scores = rng.uniform(size=truth.shape) + truth
    first, second = quality.ranking(scores, truth), quality.ranking(scores**4, truth)
    for metric in ("AUROC", "AUPRC"):
        assert first[metric] == pytest.approx(second[metric])
    assert second["AUR"] < first["AUR"] - 0.02
    assert first["AUROC"] == pytest.approx(roc_auc_score(truth.ravel(), scores.ravel()))


@given(seeds)
def test_prediction_difference_of_an_additive_target(rng):
    """Every removal changes the target by that input's part, whatever its sign."""
    x, w = rng.normal(size=(4, 5, 3)), rng.normal(size=(5, 3))
    x0 = np.zeros_like(x)
    points = quality.removals(x, x0, w * x, 6)
    assert points.shape == (7, 4, 5, 3)
    np.testing.assert_array_equal(points[0], x)
    np.testing.assert_array_equal(
        (points != x).sum(axis=(2, 3)), np.arange(7)[:, None] * np.ones(4)
    )
    found = quality.prediction_difference((w * points).sum(axis=(2, 3)))
    parts = np.sort(np.abs(w * x).reshape(4, -1), axis=1)[:, ::-1]
    assert found == pytest.approx(parts[:, :6].sum(axis=1).mean())
    # No other order removes more.
    other = quality.removals(x, x0, rng.normal(size=x.shape), 6)
    assert quality.prediction_difference((w * other).sum(axis=(2, 3))) <= found + 1e-12
    # With a target at each step, whose change is that of its own inputs, a mean over steps.
    by_step = quality.prediction_difference((w * points).sum(axis=3))
    assert by_step == pytest.approx(found / 5)


# --- data


def test_arma_follows_its_recursion():
    x = quality.arma(np.random.default_rng(0), steps=40)
    noise = np.random.default_rng(0).standard_normal(x.shape)
    a = np.array([0.5, 0.2, 0.1])
    for t in range(3, 40):
        past = np.stack([x[:, t - k] for k in (1, 2, 3)])
        np.testing.assert_allclose(
            2 * x[:, t], 2 * noise[:, t] - np.tensordot(a, past, 1), atol=1e-9
        )


@pytest.mark.parametrize("kind", ["rare-feature", "rare-time"])
def test_rare_targets_are_attributed_as_the_closed_forms_say(kind):
    rng = np.random.default_rng(0)
    x = quality.arma(rng).astype(np.float32)
    truth = quality.salient(kind, rng, x.shape)
    assert truth[0].sum() == 125
    assert (truth == truth[:1]).all()
    evaluate = quality.squares(truth, x)
    square = np.where(truth, np.float64(x) ** 2, 0.0)
    found = IntegratedGradients().run(evaluate, x, baseline=np.zeros_like(x))
    np.testing.assert_allclose(found.inputs, square, rtol=1e-5, atol=1e-6)
    mean = np.broadcast_to(x.mean(axis=(0, 1)), x.shape)
    lost = np.where(truth, np.float64(x) ** 2 - np.float64(mean) ** 2, 0.0)
    np.testing.assert_allclose(
        Occlusion().run(evaluate, x, baseline=mean).inputs, lost, rtol=1e-5, atol=1e-5
    )


def test_every_method_finds_what_is_rare():
    for kind in ("rare-feature", "rare-time"):
        found = dict(quality.white_box(kind, 0))
        assert set(found) == {*NAMES, *report.REFERENCES}
        for method in NAMES:
            # Occlusion by the mean misses inputs of the mean's size.
            least = 0.99 if method == "occlusion" else 1.0
            assert found[method]["AUPRC"] >= least - 1e-9, method
            assert found[method]["CPD, zero"] >= 0.99, method
        assert found["random"]["AUROC"] == pytest.approx(0.5, abs=0.05)
        assert found["random"]["AUR"] == pytest.approx(0.5, abs=0.05)
        # Ranks of the 125 that matter are 2376 to 2500, and all others share rank 1188.
        expected = (2438 - 1188) / (2500 - 1188)
        assert found[report.RANKS]["AUR"] == pytest.approx(expected, abs=1e-3)


def test_state_is_the_markov_process_that_is_declared():
    data = quality.state(np.random.default_rng(0), 400)
    active = data.truth.argmax(axis=2)
    assert set(np.unique(active)) == {1, 2}
    for s, mean in ((1, [0.1, 1.6, 0.5]), (2, [-0.1, -0.4, -1.5])):
        own = data.x[active == s]
        np.testing.assert_allclose(own.mean(axis=0), mean, atol=0.03)
        np.testing.assert_allclose(np.cov(own.T), 0.801 * np.eye(3), atol=0.04)
    # Feature 1 + s is active in state s, and state 1 lasts the less the longer it has.
    stays = active[:, 1:] == active[:, :-1]
    assert stays[active[:, :-1] == 1].mean() == pytest.approx(0.95, abs=0.005)
    assert 0.91 < stays[active[:, :-1] == 2].mean() < 0.94
    value = np.take_along_axis(data.x, active[..., None], axis=2)[..., 0]
    high = (value > 0.4) & (value < 0.6)
    assert data.labels[high].mean() == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.02)


def test_switch_feature_is_the_markov_process_that_is_declared():
    data = quality.switch(np.random.default_rng(0), 400)
    active = data.truth.argmax(axis=2)
    turn = np.array([[0.95, 0.02, 0.03], [0.02, 0.95, 0.03], [0.03, 0.02, 0.95]])
    for s in range(3):
        after = np.bincount(active[:, 1:][active[:, :-1] == s], minlength=3)
        np.testing.assert_allclose(after / after.sum(), turn[s], atol=0.01)
    own = data.x[active == 1]
    np.testing.assert_allclose(own.mean(axis=0), [0.0, -1.0, 0.0], atol=0.01)
    np.testing.assert_allclose(own.std(axis=0), np.sqrt(0.1), rtol=0.02)


@given(seeds)
def test_parity_is_that_of_the_bits(rng):
    streams = rng.integers(0, 2, (20, 9))
    data = quality.parity(streams)
    np.testing.assert_array_equal(data.at_last(data.labels), streams.sum(axis=1) % 2)
    np.testing.assert_array_equal((data.dt * data.mask).sum(axis=1), 9)
    for i in range(20):
        runs = data.mask[i].sum()
        bits = np.repeat(data.x[i, :runs, 0] > 0, data.dt[i, :runs].astype(int))
        np.testing.assert_array_equal(bits, streams[i])


@pytest.mark.parametrize("longest", [1, 2, 3, 7, 9])
def test_streams_are_all_whose_runs_are_short(longest):
    found = quality.streams(7, longest)
    expected = [
        bits
        for bits in itertools.product((0, 1), repeat=7)
        if max(len(list(run)) for _, run in itertools.groupby(bits)) <= longest
    ]
    assert sorted(map(tuple, found.tolist())) == expected


# --- each prediction by its own step's input


SHORT = 5


def small(kind, seed=0):
    """Return a model that is not trained, and inputs of a few short sequences."""
    quality.mx.random.seed(seed)
    x = np.random.default_rng(seed).normal(size=(3, SHORT, 3)).astype(np.float32)
    return quality.Net(kind, 3, 16, seed), x


@pytest.mark.parametrize("kind", quality.SIZES)
def test_one_pass_attributes_each_prediction_as_the_pass_of_its_prefix_does(kind):
    model, x = small(kind)
    mean = np.float32([0.1, -0.2, 0.3])
    found = quality.maps_of(model, x, mean)
    assert set(found) == set(NAMES)
    for step in range(SHORT):
        prefix = x[:, : step + 1]
        runner = quality.ModelRunner(model, quality.ncp.HeldOutBatch(prefix), target=0)
        with runner.analysing():
            observation = quality.passes.observe(runner, 0, set(quality.ncp.Need))
            for method in ("gradient", "input_x_gradient", "integrated_gradients"):
                expected = quality.Attributor(method, "zeros").attribute(observation).inputs
                np.testing.assert_allclose(
                    found[method][:, step], expected[:, -1], rtol=1e-3, atol=1e-5
                )
        for feature in range(3):
            without = prefix.copy()
            without[:, -1, feature] = mean[feature]
            own, other = (np.array(model(quality.mx.array(a))[:, -1, 0]) for a in (prefix, without))
            np.testing.assert_allclose(found["occlusion"][:, step, feature], own - other, atol=1e-6)


@pytest.mark.parametrize("kind", ["GRU", "wired LTC"])
def test_cpd_removes_one_input_after_the_other(kind):
    model, x = small(kind)
    scores = np.random.default_rng(1).normal(size=x.shape)
    x0 = np.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)
    total = 0.0
    for own, order, to in zip(x, scores, x0, strict=True):
        now = own.copy()

        def probability(inputs):
            return 1 / (1 + np.exp(-np.array(model(quality.mx.array(inputs[None]))[0, :, 0])))

        # A tenth of 15 inputs.
        (highest,) = np.argsort(-np.abs(order).ravel())[:1]
        before = probability(now)
        now.ravel()[highest] = to.ravel()[highest]
        total += np.abs(probability(now) - before).mean()
    assert quality.removed(model, x, x0, scores) == pytest.approx(total / len(x), rel=1e-4)


def test_a_trained_model_finds_the_active_input():
    found = dict(quality.labelled_series("switch-feature", "GRU", 0, steps=60, tests=8, length=40))
    assert found[""]["AUROC of the model"] > 0.8
    assert found["integrated_gradients"]["AUROC"] > 0.8
    for metric in ("CPD, mean", "CPD, zero"):
        assert found["integrated_gradients"][metric] > 2 * found["random"][metric]
    assert set(found) == {"", *NAMES, *report.REFERENCES}


# --- traps


def test_the_share_of_the_nuisance_of_a_linear_trap_is_that_of_its_closed_form():
    found = dict(quality.trap("offset", 3))
    x = sys.modules["traps"].inputs_of(quality.TRAPS["offset"], 3).astype(np.float64)
    for methods, x0 in (
        (("default", "integrated_gradients", "input_x_gradient"), x.mean(axis=(0, 1))),
        (("input_x_gradient from zeros",), np.zeros(3)),
    ):
        parts = np.abs(([4, 2, 0] * (x - x0)).mean(axis=1)).sum(axis=0)
        for method in methods:
            share = found[method][report.NUISANCE_SHARE]
            assert share == pytest.approx(parts[1] / parts.sum(), rel=1e-3), method
    assert found["input_x_gradient from zeros"][report.NUISANCE_SHARE] > 0.95
    assert set(found) == set(report.TRAP_METHODS)


# --- when or what


@pytest.fixture(scope="module")
def driven():
    """Both of the pair, small: numbers by what was reported."""
    found = {}
    for kind in ("feature-driven", "time-driven"):
        reported = quality.when_or_what(kind, 0, steps=300, units=8, rate=1e-2, decay=0.1, length=6)
        found[kind] = {
            f"{method} {metric}".strip(): value
            for method, metrics in reported
            for metric, value in metrics.items()
        }
    return found


@pytest.mark.parametrize("method", ["integrated_gradients", "expected_gradients", "occlusion"])
def test_the_share_of_elapsed_time_goes_to_where_the_label_comes_from(driven, method):
    by_input, by_time = driven["feature-driven"], driven["time-driven"]
    assert by_input["accuracy"] > 0.85
    assert by_time["accuracy"] > 0.85
    assert by_input[f"{method} share after"] < 0.1
    assert by_time[f"{method} share after"] > 0.8
    # The same model before: what is found was learnt.
    assert by_time[f"{method} share before"] == by_input[f"{method} share before"] < 0.3
    # It is so: without what has the share, the models know nothing, and without the rest, all.
    assert by_input["accuracy, inputs at their mean"] < 0.65
    assert by_time["accuracy, elapsed times at their mean"] < 0.65
    assert by_input["accuracy, elapsed times at their mean"] > by_input["accuracy"] - 0.05
    assert by_time["accuracy, inputs at their mean"] > by_time["accuracy"] - 0.05


# --- the stored measurement


@pytest.fixture(scope="module")
def stored():
    with quality.STORED.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_stored_measurement_is_that_of_the_cases(stored):
    assert tuple(stored[0]) == quality.COLUMNS
    seeds = {(case.benchmark, case.model): case.seeds for case in quality.cases(quick=False)}
    assert {(r["benchmark"], r["model"]) for r in stored} == set(seeds)
    for row in stored:
        assert int(row["of"]) <= seeds[row["benchmark"], row["model"]]
        assert bool(row["sd"]) == (row["of"] != "1")
    ranked = {(r["benchmark"], r["method"]) for r in stored if r["metric"] == "AUPRC"}
    assert ranked == {(b, m) for b in report.PUBLISHED for m in (*NAMES, *report.REFERENCES)}


def test_the_table_shows_what_was_measured_beside_what_was_published(stored):
    table = quality.table(stored)
    for kind in quality.SIZES:
        own = re.findall(rf"^\| switch-feature \| {kind} \| .*$", table.split("\n\n")[0], re.M)
        assert len(own) == len(NAMES) + 3
    who = "integrated gradients (Jang)"
    assert f"| state | published | {who} | – | – | 0.922 | 0.357 | 0.162 | – | 5 |" in table
    assert "| time-driven | CfC | integrated_gradients share after |" in table
    assert "| latch | " in table


def test_the_guide_shows_the_stored_measurement(stored):
    shown = report.GUIDE.read_text().split(f"<!-- {report.STORED.name} -->\n")[1]
    tables = (report.records(stored), report.traps_table(stored, report.GUIDE_METHODS))
    assert shown.split("<!-- end -->")[0] == "\n\n".join(tables) + "\n"


def row(model, method, metric, value, benchmark="state", sd="0.0100", of="5"):
    return dict(
        zip(quality.COLUMNS, (benchmark, model, method, metric, value, sd, of), strict=True)
    )


def test_records_are_the_best_published_and_the_best_of_ours():
    rows = [
        row("GRU", "integrated_gradients", "AUPRC", "0.9000"),
        row("CfC", "gradient", "AUPRC", "0.9200"),
        # One seed.
        row("LTC", "gradient", "AUPRC", "0.9900", sd="", of="1"),
        # No methods.
        row("CfC", "truth", "AUPRC", "1.0000"),
        row("GRU", report.RANKS, "AUR", "0.9900"),
        row("GRU", "occlusion", "AUR", "0.5000"),
        row("GRU", "integrated_gradients", "CPD, zero", "0.1630"),
        # Not what was published.
        row("GRU", "integrated_gradients", "CPD, mean", "0.9000"),
    ]
    assert report.records(rows).splitlines()[2:] == [
        "| state | AUPRC | 0.912, LIME (Enguehard) | 0.900 (0.010) | – "
        "| 0.920 (0.010), CfC, gradient | above |",
        "| state | AUR | 0.781, ExtrMask (Enguehard) | – | 0.990 (0.010) "
        "| 0.500 (0.010), GRU, occlusion | below |",
        "| state | CPD, zero | 0.163, TIMING (Jang) | 0.163 (0.010) | – "
        "| 0.163 (0.010), GRU, integrated gradients | equal |",
    ]  # fmt: skip


def test_rows_are_there_after_each_seed():
    def run(seed):
        yield "a_method", {"a metric": [1.0, 2.0, 4.0][seed]}

    case = quality.Case("state", "GRU", 3, run)
    first, second, third = quality.measure(case)
    assert first == [row("GRU", "a_method", "a metric", "1.0000", sd="", of="1")]
    assert second == [row("GRU", "a_method", "a metric", "1.5000", sd="0.7071", of="2")]
    assert third == [row("GRU", "a_method", "a metric", "2.3333", sd="1.5275", of="3")]
    other = row("CfC", "a_method", "a metric", "3.0000")
    order = [case, quality.Case("state", "CfC", 3, run)]
    # New rows take the place of those of their case; others stay.
    assert quality.merged([other, *first], third, order) == [*third, other]


# --- the example


def test_one_pace_keeps_the_nearest_measurements():
    x = np.arange(12, dtype=np.float32)[None, :, None] * np.ones((1, 1, 3), np.float32)
    half_hours = np.full((1, 12), 0.5, np.float32)
    kept, delta, _ = cheating.at_one_pace((x, half_hours, np.zeros(1)))
    np.testing.assert_array_equal(kept[0, :, 0], [2, 5, 8, 11])  # 4.5, 3, 1.5 and 0 hours ago
    np.testing.assert_array_equal(delta, 1.5)


def test_only_worried_nurses_leak():
    rng = np.random.default_rng(0)
    for worried, expected in ((True, 0.95), (False, 0.5)):
        data = cheating.ward(rng, 4000, worried=worried)
        x, delta, worse = data
        known = roc_auc_score(worse, -delta.mean(axis=1))
        assert known == pytest.approx(expected, abs=0.05)
        # One pace for all: what is left is the patients' own state.
        _, paced, _ = cheating.at_one_pace(data)
        assert np.ptp(paced) == 0
        assert roc_auc_score(worse, x[:, -1, 0]) == pytest.approx(0.69, abs=0.03)


def test_the_example_finds_the_cheat(tmp_path):
    out = subprocess.run(
        [sys.executable, EXAMPLES / "cheating.py", "--steps", "125"],
        cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300,
    ).stdout  # fmt: skip
    cheat, mended = out.split("2. ")

    def number(part, what):
        (found,) = re.findall(rf"^ +{what} +([\d.]+)%", part, re.M)
        return float(found)

    assert number(cheat, "val/accuracy") > 88
    assert number(cheat, "attribution/time_share") > 60
    # It is so: elapsed times are what it knows.
    assert number(cheat, "with time_delta of others") < 65
    assert number(cheat, "where nobody worries") < 65
    assert number(mended, "attribution/time_share") == 0
    assert number(mended, "where nobody worries") > number(cheat, "where nobody worries") + 10
    with Image.open(tmp_path / "runs" / "cheating" / "cheating.png") as image:
        assert image.size[0] > 1000


def test_the_examples_picture_is_small():
    path = EXAMPLES / "cheating.png"
    assert path.stat().st_size < 150_000
    with Image.open(path) as image:
        assert image.size[0] > 1000
