"""Test which classes are confused, and what the target rests on there."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats
from test_findings import n, of
from test_log_odds import LABELS, Head, X

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.attribution import Attribution, InputXGradient
from ncp_callbacks.callbacks.gradient_attribution.confused import confused_shares
from ncp_callbacks.findings import RunFacts, Severity
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.runs.findings import findings_of
from ncp_callbacks.stats import (
    Estimate,
    at_least_p,
    confusion_matrix,
    differ_beyond_chance,
    most_confused,
    share_ci,
)

NAMES = ("walk", "run", "sit")
RUN = RunFacts(
    time_steps=8, feature_names=("vibration", "heat", "load"), class_names=NAMES,
    callbacks={"held_out": "held_out", "attribution": "attribution"},
)  # fmt: skip


# --- which classes


def classes_of(targets: Any, *, last: bool = True, **options: Any) -> Any:
    held_out = ncp.HeldOutBatch(X, targets=targets, **options.pop("batch", {}))
    runner = ModelRunner(Head(last=last), held_out, **options)
    return passes.observe(runner, 0, {ncp.Need.CLASSES}).classes


def test_true_and_predicted_classes() -> None:
    found = classes_of(LABELS)
    np.testing.assert_array_equal(found, np.stack([LABELS, X[:, -1].argmax(axis=1)], axis=1))
    # Classes of each time step count at the time step of the target.
    every = np.tile(np.arange(5) % 3, (6, 1))
    for at, step in ((1, 1), ("last", 4)):
        found = classes_of(every, last=False, at=at)
        expected = np.stack([every[:, step], X[:, step].argmax(axis=1)], axis=1)
        np.testing.assert_array_equal(found, expected)
    mask = np.arange(5) < np.array([5, 3, 1, 2, 4, 5])[:, None]
    found = classes_of(every, last=False, batch={"mask": mask})
    ends = mask.sum(axis=1) - 1
    expected = np.stack([ends % 3, X[np.arange(6), ends].argmax(axis=1)], axis=1)
    np.testing.assert_array_equal(found, expected)


def test_one_output_is_two_classes() -> None:
    class One(Head):
        def __call__(self, x: mx.array) -> mx.array:
            return super().__call__(x)[..., :1]

    held_out = ncp.HeldOutBatch(X, targets=LABELS % 2)
    found = passes.observe(ModelRunner(One(), held_out), 0, {ncp.Need.CLASSES}).classes
    expected = np.stack([LABELS % 2, X[:, -1, 0] > 0], axis=1)
    np.testing.assert_array_equal(found, expected)


def test_where_there_is_no_single_class() -> None:
    assert classes_of(None) is None
    assert classes_of(X[:, -1]) is None
    assert classes_of((X[:, -1] > 0).astype(int)) is None  # A label for each output.
    every = np.tile(np.arange(5) % 3, (6, 1))
    assert classes_of(every, last=False, at="mean") is None


def test_counts_by_true_and_predicted_class() -> None:
    classes = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1], [2, 2], [2, 0], [-1, 0], [9, 9]])
    matrix = confusion_matrix(classes, 3)
    assert matrix.tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert most_confused(matrix) == (0, 1)  # 2 against 1 and 1.
    assert most_confused(np.array([[5, 0, 1], [0, 5, 2], [0, 3, 5]])) == (1, 2)
    assert most_confused(np.diag([3, 4])) is None


# --- statistics


@pytest.mark.parametrize(("hits", "total"), [(0, 9), (9, 9), (1, 1), (7, 19), (300, 1000)])
def test_shares_are_those_of_scipy(hits: int, total: int) -> None:
    expected = stats.binomtest(hits, total).proportion_ci()
    assert share_ci(hits, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
    for share in (0.1, 0.5):
        expected = stats.binomtest(hits, total, share, alternative="greater").pvalue
        assert at_least_p(hits, total, share) == pytest.approx(expected, rel=1e-9)


def test_groups_of_sequences_are_compared_by_the_test_of_welch() -> None:
    rng = np.random.default_rng(0)
    # Flat distributions, for which the degrees of freedom are not lowered.
    one, other = rng.uniform(0, 1, 20), rng.uniform(0.3, 2.3, 35)
    p = stats.ttest_ind(one, other, equal_var=False).pvalue
    pair = Estimate.mean(one), Estimate.mean(other)
    assert differ_beyond_chance([pair], alpha=p * 1.0001) == [True]
    assert differ_beyond_chance([pair], alpha=p * 0.9999) == [False]
    # Of two tests, the smaller p counts twice.
    same = Estimate.mean(one), Estimate.mean(one)
    assert differ_beyond_chance([same, pair], alpha=p * 2.0001) == [False, True]
    assert differ_beyond_chance([same, pair], alpha=p * 1.9999) == [False, False]
    alike = Estimate.mean(np.ones(9)), Estimate.mean(np.zeros(9))
    assert differ_beyond_chance([alike, (alike[0], alike[0])]) == [True, False]
    assert differ_beyond_chance([(Estimate.mean([1.0]), alike[0])]) == [False]


# --- what the target rests on


def maps(shares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return maps ``(B, 8, 3)`` of these shares of features; all in the last two time steps."""
    found = np.zeros((len(shares), 8, 3))
    found[:, 6:] = 0.5 * (shares * sizes[:, None])[:, None]
    return found


def planted(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return maps and classes: walk rests on vibration, unless it is taken for running."""
    classes = np.repeat([[0, 0], [0, 1], [1, 1], [2, 2], [2, 0]], [20, 18, 15, 30, 5], axis=0)
    shares = np.where((classes == [0, 1]).all(axis=1)[:, None], [0.2, 0.7, 0.1], [0.7, 0.2, 0.1])
    shares = np.where(classes[:, :1] == 2, [0.0, 0.0, 1.0], shares)
    return maps(shares, rng.uniform(1, 2, len(classes))), classes


def test_shares_where_classes_are_confused() -> None:
    values, classes = planted(np.random.default_rng(0))
    values[0, 0, 0] = np.nan  # A sequence that is not finite counts nowhere.
    found = confused_shares(Attribution(InputXGradient(), values), classes, 3, padded=False)
    assert found is not None
    assert found.shares is not None
    assert (found.classes, found.confused, found.right) == ((0, 1), 18, 19 + 15)
    # First the features, then blocks of two time steps.
    assert found.shares[:2].tolist() == [[-1, -1, -1, 0, 2, 4, 6], [-1, -1, -1, 1, 3, 5, 7]]
    np.testing.assert_allclose(found.shares[2], [0.2, 0.7, 0.1, 0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(found.shares[5], [0.7, 0.2, 0.1, 0, 0, 0, 1], atol=1e-12)
    assert found.shares[8].tolist() == [1, 1, 0, 0, 0, 0, 0]
    # With padding, sequences end in different blocks.
    found = confused_shares(Attribution(InputXGradient(), values), classes, 3, padded=True)
    assert found is not None
    assert found.shares is not None
    assert found.shares.shape == (9, 3)


def test_shares_of_blocks_have_the_signs_of_a_sum() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat([[0, 0], [0, 1]], 16, axis=0)
    values, times = rng.normal(size=(32, 8, 3)), rng.normal(size=(32, 8))
    found = confused_shares(Attribution(InputXGradient(), values, times), classes, 2, padded=False)
    assert found is not None
    assert found.shares is not None
    # By hand: what is attributed to all inputs and elapsed times of two time steps.
    blocks = np.abs((values.sum(axis=2) + times).reshape(32, 4, 2).sum(axis=2))
    features = np.abs(values.sum(axis=1))
    for rows, row in ((slice(16, 32), 2), (slice(0, 16), 5)):
        for parts, columns in ((features, slice(0, 3)), (blocks, slice(3, 7))):
            share = (parts[rows] / parts[rows].sum(axis=1, keepdims=True)).mean(axis=0)
            np.testing.assert_allclose(found.shares[row, columns], share, rtol=1e-9)


def test_few_mistakes_are_not_compared() -> None:
    values, classes = planted(np.random.default_rng(0))
    few = np.delete(np.arange(len(classes)), np.arange(20, 23))  # 15 of 18 are left.
    found = confused_shares(
        Attribution(InputXGradient(), values[few]), classes[few], 3, padded=False
    )
    assert found is not None
    assert (found.confused, found.shares) == (15, None)
    right = classes[:, 0] == classes[:, 1]
    found = confused_shares(
        Attribution(InputXGradient(), values[right]), classes[right], 3, padded=False
    )
    assert found is None


@pytest.mark.parametrize("confused", [16, 20, 60])
def test_chance_rarely_makes_a_difference(confused: int) -> None:
    """Where mistakes are any sequences, shares are seldom named, however uneven these are."""
    rng, named = np.random.default_rng(confused), 0
    classes = np.repeat([[0, 0], [0, 1]], [100, confused], axis=0)
    for _ in range(300):
        values = rng.standard_t(4, size=(len(classes), 8, 3)) * [3.0, 1.0, 0.3]
        found = confused_shares(Attribution(InputXGradient(), values), classes, 2, padded=False)
        assert found is not None
        assert found.shares is not None
        named += bool(found.shares[8].any())
    assert named <= 14  # 2 % of 300 are 6, and three standard errors of that are 7.3.


# --- what callbacks log


def test_callbacks_log_the_classes_that_are_confused() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 5, 3)).astype("f")
    labels = rng.integers(0, 3, 96)
    # Where class 2 is confused with 1, the last time step has features 1 and 2 large.
    held_out = ncp.HeldOutBatch(x, targets=labels, class_names=NAMES)
    writer = ncp.MemoryWriter()
    callbacks = [ncp.GradientAttribution(method="gradient", target="loss")]
    with ncp.Monitor(Head(), held_out, callbacks, writer=writer, background=False) as monitor:
        monitor.on_step_end(100)
    arrays = {r.tag: r.values for step, r in writer.records if step and isinstance(r, ncp.Array)}
    predicted, expected = x[:, -1].argmax(axis=1), np.zeros((3, 3))
    np.add.at(expected, (labels, predicted), 1)
    np.testing.assert_array_equal(arrays["_ncp/held_out_confusion"], expected)
    both = expected + expected.T
    a, b = max([(0, 1), (0, 2), (1, 2)], key=lambda pair: both[pair])
    right = expected[a, a] + expected[b, b]
    np.testing.assert_array_equal(
        arrays["_ncp/attribution_loss_confused"], [a, b, both[a, b], right]
    )
    # The gradient of the cross-entropy is that of the logits, which are the last inputs.
    p = np.exp(x[:, -1].astype(np.float64))
    slopes = np.abs(p / p.sum(axis=1, keepdims=True) - np.eye(3)[labels])
    wrong = ((labels == a) & (predicted == b)) | ((labels == b) & (predicted == a))
    share = (slopes[wrong] / slopes[wrong].sum(axis=1, keepdims=True)).mean(axis=0)
    found = arrays["_ncp/attribution_loss_confused_shares"]
    np.testing.assert_allclose(found[2, :3], share, rtol=1e-4)


def test_numbers_without_classes_log_no_confusion() -> None:
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(X, targets=X[:, -1])
    with ncp.Monitor(Head(), held_out, [ncp.GradientAttribution()], writer=writer) as monitor:
        monitor.on_step_end(100)
    assert not any("confus" in record.tag for _, record in writer.records)


# --- the rules


def confusion(matrix: Any, run: RunFacts = RUN) -> list[Any]:
    arrays = {"_ncp/held_out_confusion": np.array(matrix, float)}
    return of("confuses_classes", run, numbers={"held_out/loss": n(0.5)}, arrays=arrays)


def test_the_pair_that_is_confused_most() -> None:
    (found,) = confusion([[28, 1, 1], [0, 18, 12], [1, 7, 22]])
    assert found.severity is Severity.WARNING
    low, high = (100 * end for end in stats.binomtest(19, 22).proportion_ci())
    # 60 of 90 sequences are of these classes, and a mistake of theirs stays among them by half.
    assert (
        f"run and sit are confused most: 19 of 22 mistakes are between them, 86 % [{low:.0f}, "
        f"{high:.0f}] against 33 % if spread evenly, and " in found.sentence
    )
    low, high = (100 * end for end in stats.binomtest(19, 60).proportion_ci())
    assert found.sentence.endswith(f"32 % [{low:.0f}, {high:.0f}] of their sequences.")
    assert found.numbers["run taken for sit"] == 12
    assert found.numbers["sit taken for run"] == 7
    unnamed = dataclasses.replace(RUN, class_names=None)
    (found,) = confusion([[28, 1, 1], [0, 18, 12], [1, 7, 22]], unnamed)
    assert found.sentence.startswith("class 1 and class 2 are")
    # A pair that is confused rarely, though beyond chance, is a fact.
    (found,) = confusion([[280, 1, 1], [0, 280, 12], [1, 7, 280]])
    assert found.severity is Severity.INFO


@pytest.mark.parametrize(
    "matrix",
    [
        [[20, 5, 5], [5, 20, 5], [5, 5, 20]],  # All alike.
        [[20, 0, 0], [0, 20, 4], [0, 3, 20]],  # Seven mistakes.
        [[20, 6, 3], [4, 20, 3], [3, 4, 20]],  # 10 of 23, which chance does in one of three.
        [[20, 10], [10, 20]],  # There is one pair only.
        [[20, 10, 0], [10, 20, 0], [0, 0, 0]],
        # Two thirds of the sequences are of two classes, and have two thirds of mistakes.
        [[90, 20, 10], [20, 90, 10], [5, 5, 10]],
    ],
)
def test_no_pair_is_named_by_chance(matrix: Any) -> None:
    assert confusion(matrix) == []


@pytest.mark.parametrize("sizes", [(30, 30, 30), (60, 20, 10), (20, 20, 20, 20)])
def test_mistakes_that_are_spread_evenly_rarely_name_a_pair(sizes: tuple[int, ...]) -> None:
    rng, named, count = np.random.default_rng(0), 0, len(sizes)
    true = np.repeat(np.arange(count), sizes)
    for _ in range(500):
        wrong = rng.random(len(true)) < 0.3
        predicted = np.where(wrong, (true + rng.integers(1, count, len(true))) % count, true)
        matrix = np.zeros((count, count))
        np.add.at(matrix, (true, predicted), 1)
        named += bool(confusion(matrix))
    assert named <= 11  # 1 % of 500 are 5, and three standard errors of that are 6.7.


def shares(rows: list[list[float]], numbers: tuple[int, ...] = (0, 1, 18, 34)) -> list[Any]:
    arrays = {
        "_ncp/attribution_confused": np.array(numbers, float),
        "_ncp/attribution_confused_shares": np.array(rows, float).T,
    }
    return of("mistakes_rest_on", RUN, numbers={"attribution/strength": n(1)}, arrays=arrays)


def test_what_mistakes_rest_on() -> None:
    vibration = [-1, -1, 0.2, 0.1, 0.3, 0.7, 0.6, 0.8, 1]
    heat = [-1, -1, 0.62, 0.5, 0.7, 0.2, 0.1, 0.3, 1]
    last = [6, 7, 0.4, 0.3, 0.5, 0.8, 0.7, 0.9, 1]
    same = [-1, -1, 0.2, 0.1, 0.3, 0.1, 0.0, 0.2, 0]
    (found,) = shares([vibration, heat, same, last])
    assert found.severity is Severity.INFO
    assert found.sentence == (
        "Where walk and run are confused (18 sequences), the attribution is not as in the 34 that "
        "are right: vibration 20 % [10, 30] instead of 70 % [60, 80] and heat 62 % [50, 70] "
        "instead of 20 % [10, 30]."
    )
    (found,) = shares([same, same, same, last])
    assert "time steps 6–7 40 % [30, 50] instead of 80 % [70, 90]" in found.sentence
    assert shares([same, same, same]) == []
    # Shares of an earlier snapshot, since there are too few mistakes now.
    assert shares([vibration, heat], (0, 1, 15, 39)) == []


def test_a_log_has_the_findings_of_its_run(tmp_path: Any) -> None:
    """Classes 1 and 2 can't be told apart; a log that is read back has the finding as well."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 5, 3)).astype("f")
    labels = x[:, -1].argmax(axis=1)
    labels = np.where(labels > 0, rng.integers(1, 3, 120), labels)
    held_out = ncp.HeldOutBatch(x, targets=labels, class_names=NAMES)
    callbacks = [ncp.GradientAttribution()]
    with ncp.Monitor(Head(), held_out, callbacks, log_dir=tmp_path, every=1) as monitor:
        monitor.on_step_end(1)
    (own,) = [f for f in monitor.findings if f.rule == "confuses_classes"]
    assert own.sentence.startswith("run and sit are confused most")
    (read,) = [f for f in findings_of(ncp.runs.read_run(tmp_path)) if f.rule == "confuses_classes"]
    assert read.sentence == own.sentence
