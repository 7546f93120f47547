"""Test that decision trees find rules that were put in, and nothing in noise."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from promises import told
from sklearn.metrics import r2_score
from sklearn.tree import DecisionTreeRegressor

import ncp_callbacks as ncp
from ncp_callbacks.analysis import predictors, unit_meanings

B, T = 24, 12
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, 2)).astype("f")
ALL = np.ones((B, T), bool)
REGIME = np.array(["steady", "fast"])[RNG.integers(0, 2, B)]


def by(**factors: Any) -> Any:
    return predictors({"vibration": X[..., 0], "load": X[..., 1]}, factors, ALL)


def described(*units: np.ndarray, **factors: Any) -> Any:
    names = [f"unit {i}" for i in range(len(units))]
    found = unit_meanings(np.stack(units, axis=-1), names, by(**factors), ALL)
    assert found is not None
    return found


def test_recent_means_are_of_real_time_steps_only() -> None:
    mask = np.arange(T) >= np.arange(B)[:, None] % 4
    found = predictors({"a": X[..., 0]}, {}, mask, recent=3)
    assert found.labels == ("a", "a (last 3 steps)")
    for b in range(B):
        for t in range(T):
            some = [X[b, s, 0] for s in range(max(0, t - 2), t + 1) if mask[b, s]]
            expected = np.mean(some) if some else 0.0
            assert found.values[b, t, 1] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert predictors({"a": X[..., 0]}, {}, mask, recent=1).labels == ("a",)


def test_rules_are_found_and_put_in_words() -> None:
    padded = np.pad(X[..., 0].astype(float), ((0, 0), (2, 0)))
    mean = np.stack([padded[:, k : k + T] for k in range(3)]).sum(axis=0)
    mean /= np.minimum(np.arange(T) + 1, 3)
    found = described(
        np.where(mean > 0.3, 1.0, -1.0),
        np.repeat((REGIME == "fast")[:, None] * 2.0, T, axis=1),
        RNG.normal(size=(B, T)),
        np.zeros((B, T)),
        regime=np.repeat(REGIME[:, None], T, axis=1),
    )
    label, sign, threshold = found.high[0].rpartition(" > ")
    assert (label, sign) == ("vibration (last 3 steps)", " > ")
    # The largest gap around the threshold is as far as data can tell.
    near = np.sort(np.abs(mean - 0.3).ravel())[:8].max()
    assert float(threshold) == pytest.approx(0.3, abs=2 * near)
    assert found.low[0].startswith("vibration (last 3 steps) ≤ ")
    assert (found.high[1], found.low[1]) in (
        ("regime is fast", "regime is not fast"), ("regime is not steady", "regime is steady"),
    )  # fmt: skip
    assert found.accuracy[1] == pytest.approx(1)
    # Noise and a constant are described by nothing.
    assert found.explained.tolist() == [True, True, False, False]
    assert np.isnan(found.accuracy[3])
    assert len(found.sentences()) == 2
    assert found.estimates["accuracy"].value == pytest.approx(
        np.mean(np.maximum(found.accuracy[:3], 0))
    )


def test_accuracy_is_that_of_scikit_learn_on_other_sequences() -> None:
    y = np.tanh(X[..., 0] - X[..., 1]) + 0.3 * RNG.normal(size=(B, T))
    found = described(y)
    x = by().values.reshape(B * T, -1)
    fold = np.repeat(np.arange(B) % 4, T)
    predicted = np.empty(B * T)
    # The smallest gain of a split is set from the variance of the sequences it is fitted to.
    for k in range(4):
        own = fold == k
        fitted = y.ravel()[~own]
        tree = DecisionTreeRegressor(
            max_depth=3, min_samples_leaf=int(0.02 * len(fitted)),
            min_impurity_decrease=0.03 * fitted.var(), random_state=0,
        )  # fmt: skip
        predicted[own] = tree.fit(x[~own], fitted).predict(x[own])
    assert found.accuracy[0] == pytest.approx(r2_score(y.ravel(), predicted), rel=1e-9)
    low, high = found.accuracy_ci[:, 0]
    assert low < found.accuracy[0] < high <= 1


def test_mutual_information_of_normal_values_has_its_closed_form() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(64, 4))
    r = 0.9
    y = r * x + np.sqrt(1 - r**2) * rng.normal(size=x.shape)
    own = predictors({"a": x}, {}, np.ones(x.shape, bool), recent=1)
    found = unit_meanings(y[..., None], ["unit 0"], own, np.ones(x.shape, bool))
    assert found is not None
    assert found.information[0, 0] == pytest.approx(-0.5 * np.log(1 - r**2), abs=0.2)


def test_few_sequences_and_no_predictors_have_no_answer() -> None:
    states = X[..., :1]
    assert (
        unit_meanings(states[:3], ["unit 0"], predictors({"a": X[:3, :, 0]}, {}, ALL[:3]), ALL[:3])
        is None
    )
    assert unit_meanings(states, ["unit 0"], predictors({}, {}, ALL), ALL) is None


class Cell(nn.Module):
    """Units that hold the input of their time step."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = mx.array([0.0, 0.9])

    def __call__(self, x: mx.array, h: mx.array) -> mx.array:
        return self.keep * h + x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def __call__(self, x: mx.array) -> mx.array:
        h, out = mx.zeros((len(x), 2)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append(h)
        return mx.stack(out, axis=1)


def logged(batch: ncp.HeldOutBatch, **options: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    writer = ncp.MemoryWriter()
    callbacks = [ncp.UnitMeanings(**options)]
    with ncp.Monitor(Model(), batch, callbacks, writer=writer, every=1, background=False) as m:
        m.on_step_end(1)
        notes = told(m.notes)
    return {record.tag: record for step, record in writer.records if step}, notes


def test_what_units_code_for_is_logged_in_words() -> None:
    batch = ncp.HeldOutBatch(X, feature_names=["vibration", "load"])
    found, notes = logged(batch, factors={"regime": REGIME})
    assert notes == ()
    text = found["meanings/words"].markdown
    assert text.startswith("* unit 0: high when vibration > ")
    assert "regime" not in text
    assert found["meanings_accuracy/unit 0"].value > 0.8
    about = found["_ncp/meanings_information"].about
    assert about["predictors"][-2:] == ["regime is fast", "regime is steady"]
    # The interactive view reads the sentences of the text as an array of bytes.
    array = found["_ncp/meanings_words"]
    assert (array.kind, array.about["cell"]) == ("unit words", "cell")
    words = json.loads(array.values.astype(np.uint8).tobytes())
    lines = dict(line.removeprefix("* unit ").split(": ", 1) for line in text.splitlines())
    assert words == {unit: line.rpartition(" (R²")[0] for unit, line in lines.items()}


@pytest.mark.parametrize(
    ("factors", "error"),
    [
        ({"a": np.zeros(B - 1)}, rf"factors\['a'\] has the shape \({B - 1},\).*pass \({B},\)"),
        ({"a": np.zeros((B, T + 1))}, rf"pass \({B}, {T}\)"),
        ({"a": 3.0}, r"factors\['a'\] has the shape \(\): pass an entry for each held-out"),
    ],
)
def test_factors_of_another_shape_are_refused_before_training(factors: Any, error: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=error):
        logged(ncp.HeldOutBatch(X), factors=factors)


def test_of_three_sequences_nothing_is_described() -> None:
    found, notes = logged(ncp.HeldOutBatch(X[:3]))
    assert any("at least 4 held-out sequences" in note for note in notes)
    assert not any(tag.startswith("meanings") for tag in found)
