"""Repeat trainings whose answers are known, and count them by hand."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import distributed
import joblib
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy import stats

import ncp_callbacks as ncp
from ncp_callbacks.cross_validation.questions import answers
from ncp_callbacks.cross_validation.result import Repetition, summarise
from ncp_callbacks.runs import RunsError
from ncp_callbacks.writers import TensorBoardWriter

LARGEST = "attribution: feature with the largest share"


class Sum(nn.Module):
    """The sum over time of weighted features: its shares are known."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = mx.zeros((3,))

    def __call__(self, x: mx.array) -> mx.array:
        return mx.cumsum(x @ self.weights, axis=1)[..., None]


def batch(size: int = 20, names: tuple[str, ...] = ("a", "b", "c")) -> ncp.HeldOutBatch:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 6, 3)).astype(np.float32)
    return ncp.HeldOutBatch(x, targets=x[:, :, 0].sum(axis=1), feature_names=names)


def draw_weights(model: nn.Module, data: ncp.HeldOutBatch) -> dict[str, float]:
    """Feature ``a`` gets 4, the others what MLX's generator draws between 0 and 1."""
    model.weights = mx.concatenate([mx.array([4.0]), mx.random.uniform(shape=(2,))])
    return {"train/sequences_seen": float(len(data)), "train/numpy": np.random.rand()}  # noqa: NPY002


def run(**options: Any) -> ncp.CrossValidation:
    options = {"callbacks": [ncp.GradientAttribution()], "seeds": 3} | options
    return ncp.cross_validate(Sum, draw_weights, batch(), **options)


# --- counts and spreads, by hand


def made(shares: list[tuple[float, float, float]], **numbers: list[float]) -> ncp.CrossValidation:
    return summarise(
        [
            Repetition(
                f"seed {i}",
                {f"attribution_share/{name}": v for name, v in zip("abc", each, strict=True)}
                | {f"attribution/{name}": values[i] for name, values in numbers.items()},
            )
            for i, each in enumerate(shares)
        ]
    )


def test_answers_are_counted() -> None:
    result = made([(0.6, 0.3, 0.1)] * 7 + [(0.2, 0.3, 0.5)] * 2 + [(0.6, 0.1, 0.3)])
    top = result.agreement(LARGEST)
    assert (top.answer, top.count, top.of) == ("a", 8, 10)
    assert top.answers == ("a",) * 7 + ("c",) * 2 + ("a",)
    assert str(top) == f"{LARGEST}: a, in 8 of 10"
    # Clopper and Pearson's interval, from quantiles of the beta distribution.
    assert top.low == pytest.approx(stats.beta.ppf(0.025, 8, 3))
    assert top.high == pytest.approx(stats.beta.ppf(0.975, 9, 2))
    order = result.agreement("order of the features")
    assert (order.answer, order.count) == ("a > b > c", 7)


def test_numbers_spread() -> None:
    result = made([(0.5, 0.3, 0.2)] * 4, mean_lag=[1.0, 2.0, 3.0, math.nan])
    spread = result.numbers["attribution/mean_lag"]
    assert (spread.mean, spread.sd, spread.low, spread.high) == (2.0, 1.0, 1.0, 3.0)
    np.testing.assert_array_equal(spread.values, [1.0, 2.0, 3.0, math.nan])


def test_rank_agreement_is_the_mean_correlation_of_pairs() -> None:
    # Orders abc, abc, cba: one pair of 1, two of -1.
    result = made([(0.6, 0.3, 0.1), (0.5, 0.3, 0.2), (0.1, 0.3, 0.6)])
    assert result.rank_agreement["attribution"] == pytest.approx((1 - 1 - 1) / 3)


def test_equal_shares_are_no_disagreement() -> None:
    result = made([(0.4, 0.4, 0.2), (0.4, 0.4, 0.2)])
    assert result.agreement(LARGEST).answers == ("a", "a")
    # A correlation with shares that are all equal is not defined.
    assert made([(0.2, 0.2, 0.2)] * 2).rank_agreement == {}


def test_questions_without_an_answer_count_only_where_there_is_one() -> None:
    found = summarise(
        [
            Repetition("one", {"attribution/time_share": 0.7}),
            Repetition("two", {"attribution/time_share": math.nan}),
            Repetition("three", {}),
        ]
    )
    elapsed = found.agreement("elapsed times")
    assert (elapsed.answer, elapsed.count, elapsed.of) == ("yes", 1, 1)
    assert elapsed.answers == ("yes", "", "")
    with pytest.raises(KeyError, match="'nonsense' is found in 0 questions"):
        found.agreement("nonsense")


def test_findings_count_where_their_rule_found_something() -> None:
    def finding(rule: str, severity: ncp.findings.Severity, sentence: str = "So.") -> ncp.Finding:
        return ncp.Finding(rule, ncp.findings.Topic.STATE, severity, sentence, "Do.")

    good, warning = ncp.findings.Severity.GOOD, ncp.findings.Severity.WARNING
    result = summarise(
        [
            Repetition(
                "one", {}, findings=[finding("learnt", good), finding("dead", warning, "5.")]
            ),
            Repetition("two", {}, findings=[finding("dead", warning, "6."), finding("dead", good)]),
            Repetition("three", {}, findings=[finding("dead", good)]),
            Repetition("four", {}),
        ]
    )
    dead, learnt = result.agreements
    assert (dead.question, dead.answer, dead.count, dead.of) == ("finding dead", "warning", 2, 4)
    assert dead.answers == ("warning", "warning", "good", "not found")
    assert dead.example == "5."
    assert (learnt.answer, learnt.count, learnt.example) == ("not found", 3, "")


@pytest.mark.parametrize(
    ("numbers", "question", "answer"),
    [
        ({"attribution/time_share": 0.51}, "attribution: elapsed times carry more", "yes"),
        ({"attribution/time_share": 0.5}, "attribution: elapsed times carry more", "no"),
        ({"dynamics/stability_exponent": -0.1}, "dynamics: neighbouring states approach", "yes"),
        ({"dynamics/stability_exponent": 0.1}, "dynamics: neighbouring states approach", "no"),
    ],
)
def test_questions_by_a_number(numbers: dict[str, float], question: str, answer: str) -> None:
    ((asked, found),) = answers(numbers, {}).items()
    assert asked.startswith(question)
    assert found == answer


@pytest.mark.parametrize(("last", "answer"), [(1.1, "yes"), (0.9, "no")])
def test_whether_the_last_steps_carry_more_than_half(last: float, answer: str) -> None:
    # Eight steps: the last two are a quarter. The others sum to 2, these to 2 · last.
    strength = np.concatenate([np.full((6, 2), 1 / 6), np.full((2, 2), last / 2)])
    shares = {"attribution_share/a": 0.5, "attribution_share/b": 0.5}
    found = answers(shares, {"_ncp/attribution_strength": strength})
    assert found["attribution: more than half lies in the last quarter of the time steps"] == answer


def test_a_dict_for_json() -> None:
    result = made([(0.6, 0.3, 0.1)] * 2, mean_lag=[1.0, math.nan])
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["agreements"][0]["count"] == 2
    assert found["numbers"]["attribution/mean_lag"]["values"] == [1.0, None]
    assert found["numbers"]["attribution/mean_lag"]["sd"] is None


# --- trainings


@pytest.fixture(scope="module")
def three() -> ncp.CrossValidation:
    return run()


def test_what_was_planted_comes_back(three: ncp.CrossValidation) -> None:
    top = three.agreement(LARGEST)
    assert (top.answer, top.count, top.of) == ("a", 3, 3)
    assert three.repetitions == ("seed 0", "seed 1", "seed 2")
    # The others differ by seed.
    assert three.numbers["attribution_share/b"].sd > 0.01
    assert "3 repetitions" in repr(three)
    assert f"{LARGEST}: a, in 3 of 3" in repr(three)
    assert len(repr(three).splitlines()) < 15
    assert any("with 3 repetitions" in note for note in three.notes)


def test_what_each_analysis_reports_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    result = run()
    told = [r.getMessage() for r in caplog.records if "4 sequences" in r.getMessage()]
    assert len(told) == 1
    assert told[0] in result.notes


def test_the_shares_are_those_of_the_seed(three: ncp.CrossValidation) -> None:
    """Draw the weights as the training does, and work out the shares of a sum."""
    from sklearn.model_selection import KFold

    _, held_out = next(KFold(5, shuffle=True, random_state=0).split(np.zeros(20)))
    x = np.array(batch().inputs)[np.sort(held_out)]
    assert three.numbers["train/sequences_seen"].values.tolist() == [16.0] * 3
    mx.random.seed(1)
    weights = np.concatenate([[4.0], np.array(mx.random.uniform(shape=(2,)))])
    # The mean of the whole held-out batch, or zeros, is subtracted, whatever the default is.
    size = np.abs(weights * (x - x.mean((0, 1)))).sum((0, 1))
    shares = size / size.sum()
    assert three.numbers["attribution_share/b"].values[1] == pytest.approx(shares[1], abs=0.02)


def test_equal_seeds_are_equal_and_the_generators_go_on(three: ncp.CrossValidation) -> None:
    mx.random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    expected = (np.random.RandomState(7).rand(), random.Random(7).random())
    again = run()
    assert (np.random.rand(), random.random()) == expected  # noqa: NPY002
    first = mx.random.uniform().item()
    mx.random.seed(7)
    assert mx.random.uniform().item() == first
    for tag, spread in three.numbers.items():
        np.testing.assert_array_equal(spread.values, again.numbers[tag].values)


def test_two_local_workers_find_the_same(three: ncp.CrossValidation) -> None:
    parallel = run(n_jobs=2)
    assert parallel.repetitions == three.repetitions
    assert parallel.agreements == three.agreements
    for tag, spread in three.numbers.items():
        np.testing.assert_array_equal(spread.values, parallel.numbers[tag].values)
        assert type(parallel.numbers[tag].values) is np.ndarray


def test_a_local_dask_cluster_finds_the_same(three: ncp.CrossValidation) -> None:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        parallel = run(n_jobs=-1)
    assert parallel.agreements == three.agreements
    for tag, spread in three.numbers.items():
        np.testing.assert_array_equal(spread.values, parallel.numbers[tag].values)


def test_each_fold_is_held_out_once() -> None:
    seen: list[tuple[int, ...]] = []
    rows = np.arange(9, dtype=np.float32)
    data = ncp.HeldOutBatch(rows[:, None, None] * np.ones((9, 4, 3), np.float32), targets=rows)

    def train(model: nn.Module, some: ncp.HeldOutBatch) -> None:
        np.testing.assert_array_equal(np.array(some.inputs)[:, 0, 0], np.array(some.targets))
        seen.append(tuple(int(v) for v in np.array(some.targets)))

    result = ncp.cross_validate(Sum, train, data, folds=3, callbacks=[ncp.GradientAttribution()])
    assert result.repetitions == ("seed 0, fold 0", "seed 0, fold 1", "seed 0, fold 2")
    held_out = [set(range(9)) - set(each) for each in seen]
    assert sorted(v for each in held_out for v in each) == list(range(9))
    assert [len(each) for each in held_out] == [3, 3, 3]
    assert any("not independent" in note for note in result.notes)


def test_pairs_of_indices_and_seeds_are_combined() -> None:
    sizes: list[int] = []

    def train(model: nn.Module, some: ncp.HeldOutBatch) -> None:
        sizes.append(len(some))

    pairs = [(range(12), range(12, 20)), ([0, 1, 2], [5, 6])]
    result = ncp.cross_validate(
        Sum, train, batch(), folds=pairs, seeds=[5, 8], callbacks=[ncp.GradientAttribution()]
    )
    assert sizes == [12, 3, 12, 3]
    assert result.repetitions[1:3] == ("seed 5, fold 1", "seed 8, fold 0")


def test_callbacks_are_copied_and_options_passed_on() -> None:
    callback = ncp.GradientAttribution()
    before = callback.state_dict()
    result = run(callbacks=[callback], target=lambda outputs, targets: outputs[:, -1, 0] * 2)
    assert callback.state_dict() == before
    plain = run(callbacks=[callback])
    np.testing.assert_allclose(
        result.numbers["attribution_target/strength"].values,
        2 * plain.numbers["attribution/strength"].values,
        rtol=1e-4,
    )


# --- mistakes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seeds": 1}, ValueError, "1 repetition: pass at least 2 seeds= or folds="),
        ({"seeds": [3, 3]}, ValueError, "pass different seeds"),
        ({"seeds": [-1, 2]}, ValueError, "whole numbers from 0"),
        ({"seeds": "no"}, ValueError, "seeds has 'n'"),
        ({"folds": 1}, ValueError, "folds=1 for 20 sequences: pass 2 to 20 folds"),
        ({"folds": 21}, ValueError, "pass 2 to 20 folds"),
        ({"folds": [([0, 1], [1, 2])] * 2}, ValueError, r"folds\[0\] has sequence 1 in both"),
        ({"folds": [([0, 1], [20])] * 2}, ValueError, "pass indices from 0 to 19"),
        ({"folds": [3, 4]}, TypeError, r"folds\[0\]=3: pass a pair"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0"),
        ({"targets": 3}, TypeError, "'targets' is an unknown option: pass target, at"),
        ({"callbacks": "all"}, ValueError, "'all' is unknown"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        run(**options)


def test_functions_and_data_are_checked() -> None:
    with pytest.raises(TypeError, match="make_model is a Sum: pass a function"):
        ncp.cross_validate(Sum(), draw_weights, batch())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"data is a ndarray: pass ncp.HeldOutBatch"):
        ncp.cross_validate(Sum, draw_weights, np.zeros((4, 3, 2)))  # type: ignore[arg-type]


def test_the_repetition_that_fails_is_named() -> None:
    def train(model: nn.Module, some: ncp.HeldOutBatch) -> None:
        raise ZeroDivisionError("no learning rate")

    with pytest.raises(RuntimeError, match=r"seed 0 failed: .*no learning rate"):
        ncp.cross_validate(Sum, train, batch())
    with pytest.raises(RuntimeError, match="train returned a int: return a mapping"):
        ncp.cross_validate(Sum, lambda model, some: 3, batch())  # type: ignore[arg-type,return-value]


# --- logged runs


def log(path: Path, shares: tuple[float, float], last: int = 2) -> None:
    writer = TensorBoardWriter(path)
    for step in range(1, last + 1):
        # The first step has the opposite order: only the last counts.
        a, b = shares if step == last else shares[::-1]
        writer.write(
            step,
            [
                ncp.Scalar("attribution_share/a", a),
                ncp.Scalar("attribution_share/b", b),
                ncp.Scalar("val/loss", a),
                ncp.Scalar("monitor/cpu_seconds", 1.0),
                ncp.Array("_ncp/attribution_strength", np.full((8, 2), 0.1)),
            ],
        )
    writer.close()


def test_logged_runs_are_counted_by_their_last_values(tmp_path: Path) -> None:
    for i, shares in enumerate([(0.75, 0.25), (0.625, 0.375), (0.25, 0.75)]):
        log(tmp_path / f"cfc-s{i}", shares)
    result = ncp.cross_validate_runs(tmp_path / "cfc-s*")
    top = result.agreement(LARGEST)
    assert (top.answer, top.count, top.of) == ("a", 2, 3)
    assert result.repetitions == ("cfc-s0", "cfc-s1", "cfc-s2")
    assert result.numbers["val/loss"].values.tolist() == [0.75, 0.625, 0.25]
    assert "monitor/cpu_seconds" not in result.numbers
    assert result.agreement("last quarter").answer == "no"
    assert result.notes == ()


def test_runs_of_different_lengths_are_marked(tmp_path: Path) -> None:
    log(tmp_path / "one", (0.75, 0.25))
    log(tmp_path / "two", (0.75, 0.25), last=5)
    result = ncp.cross_validate_runs([tmp_path / "one", tmp_path / "two"])
    assert any("one at 2, two at 5" in note for note in result.notes)


def test_one_run_or_none_is_refused(tmp_path: Path) -> None:
    log(tmp_path / "one", (0.75, 0.25))
    with pytest.raises(RunsError, match="is a single run: pass at least 2 runs"):
        ncp.cross_validate_runs(tmp_path / "o*")
    with pytest.raises(RunsError, match="matches no directory"):
        ncp.cross_validate_runs(tmp_path / "x*")


# --- picture


def test_the_picture_names_the_answers_and_their_counts() -> None:
    result = made([(0.6, 0.3, 0.1)] * 8 + [(0.2, 0.3, 0.5)] * 2)
    figure = ncp.plot_cross_validation(result)
    words = [text.get_text() for text in figure.texts]
    assert " ".join(words).startswith("What comes back in 10 trainings")
    assert {"a", "8 of 10", "a > b > c"} <= set(words)
    (axes,) = figure.axes
    _, bars, _ = axes.collections
    assert [path.vertices[:, 0].max() for path in bars.get_paths()] == [0.8, 0.8]
    assert ncp.to_png(figure)[:4] == b"\x89PNG"
