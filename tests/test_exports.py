"""Results and logged runs as JSON, tables, files and short text; keywords that are misspelt."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pandas as pd
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.attribution import BUILT_IN, MethodName
from ncp_callbacks.callbacks.sets import CallbackSet, callback_set
from ncp_callbacks.models import CfC
from ncp_callbacks.results import ArrayResult, MappingResult
from ncp_callbacks.tables import plain


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(3, 4, backbone_units=5), nn.Linear(4, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0][:, -1])


RANDOM = np.random.default_rng(0)
X, DT = RANDOM.normal(size=(8, 5, 3)).astype("f4"), RANDOM.uniform(0.5, 1.5, (8, 5)).astype("f4")


@pytest.fixture(scope="module")
def result() -> ncp.Interpretation:
    mx.random.seed(0)
    return ncp.interpret_model(Net(), X, DT)


# --- plain values


def test_plain_values_are_those_of_json() -> None:
    value = {
        "a": np.array([[1.0, np.nan], [np.inf, 2.0]]),
        2: np.float32(0.5),
        "b": (np.int64(3), np.bool_(True), None, "text"),
        "c": np.array([True, False]),
        "d": np.array(["x", "y"]),
        "e": np.array(1.5),
        "f": ncp.Scalar("tag", 1.0),
    }
    scalar = {"tag": "tag", "value": 1.0, "description": "", "ci": None, "place": "group"}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "a": [[1.0, None], [None, 2.0]],
        "2": 0.5,
        "b": [3, True, None, "text"],
        "c": [True, False],
        "d": ["x", "y"],
        "e": 1.5,
        "f": scalar,
    }


def test_every_part_of_an_interpretation_is_json(result: ncp.Interpretation) -> None:
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(found) == set(result)
    assert found["sensitivity"]["scales"] == [0.5, 1.0, 2.0, 5.0]
    for name, part in result.items():
        if part is not None:
            assert json.dumps(plain(part), allow_nan=False)
            assert found[name] is not None
    drop = np.asarray(result["sensitivity"]["sensitivities"])
    assert found["sensitivity"]["sensitivities"] == [float(v) for v in drop]


def test_tables_hold_every_number_once(result: ncp.Interpretation, tmp_path: Path) -> None:
    sensitivity = result["sensitivity"]
    frame = sensitivity.to_dataframe()
    assert isinstance(frame, pd.DataFrame)
    scales = frame[frame["name"] == "scales"]
    assert scales["i"].tolist() == [0, 1, 2, 3]
    assert scales["value"].tolist() == [0.5, 1.0, 2.0, 5.0]

    importance = result["importance"]
    frame = importance.to_dataframe()
    share = frame[frame["name"] == "feature_share"].sort_values("i")["value"].tolist()
    assert share == [float(v) for v in importance.feature_share]

    importance.to_csv(tmp_path / "importance.csv")
    with (tmp_path / "importance.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(frame)
    found = [float(x["value"]) for x in lines if x["name"] == "feature_share"]
    assert found == pytest.approx(share, rel=1e-15)


def test_texts_are_short(result: ncp.Interpretation) -> None:
    for part in (result, *(part for part in result.values() if hasattr(part, "to_dict"))):
        text = repr(part)
        assert text.startswith(f"{type(part).__name__}(")
        assert "\n" not in text
        if part is not result:
            assert len(text) < 1500, text
    assert "scales=[0.5, 1, 2, 5]" in repr(result["sensitivity"])


def test_every_result_has_the_short_text() -> None:
    def subclasses(cls: type) -> set[type]:
        below = cls.__subclasses__()
        return set(below).union(*map(subclasses, below))

    found = subclasses(MappingResult) | subclasses(ArrayResult)
    assert len(found) > 5
    for cls in found - {ncp.CrossValidation}:
        assert cls.__repr__ is MappingResult.__repr__, cls


# --- logged runs


@pytest.fixture
def run(tmp_path: Path) -> Any:
    writer = ncp.TensorBoardWriter(tmp_path / "run")
    writer.log_run_config({"units": 4, "cell": "cfc"})
    for step in (1, 2):
        writer.write(step, [ncp.Scalar("val/loss", 0.5 / step, ci=(0.25 / step, 1.0))])
        writer.write(step, [ncp.Scalar("train/loss", step)])
    writer.write(3, [ncp.Scalar("train/loss", float("nan")), ncp.Text("monitor/run", "text")])
    writer.close()
    return ncp.runs.read_run(tmp_path / "run")


LINES = [
    (1, "val/loss", 0.5, 0.25, 1.0),
    (2, "val/loss", 0.25, 0.125, 1.0),
    (1, "train/loss", 1.0, None, None),
    (2, "train/loss", 2.0, None, None),
    (3, "train/loss", None, None, None),
]


def test_a_run_is_json(run: Any) -> None:
    found = json.loads(json.dumps(run.to_dict(), allow_nan=False))
    assert found["hparams"] == {"units": 4, "cell": "cfc"}
    assert found["scalars"]["val/loss"] == {
        "step": [1, 2], "value": [0.5, 0.25], "low": [0.25, 0.125], "high": [1.0, 1.0],
    }  # fmt: skip
    assert found["scalars"]["train/loss"]["value"] == [1.0, 2.0, None]


def test_a_run_is_a_table(run: Any, tmp_path: Path) -> None:
    frame = run.to_dataframe()
    assert list(frame.columns) == ["step", "tag", "value", "low", "high"]
    found = [tuple(None if pd.isna(x) else x for x in line) for line in frame.values.tolist()]
    assert found == LINES
    run.to_csv(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["step", "tag", "value", "low", "high"]
        assert next(csv.reader(file)) == ["1", "val/loss", "0.5", "0.25", "1.0"]


def test_a_run_has_a_short_text(run: Any) -> None:
    assert repr(run) == "Run('run', steps 1 to 3, 2 scalars, 1 texts)"


def test_without_pandas_the_fix_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas, or write a file by to_csv\(\)"):
        run.to_dataframe()


# --- keywords


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ncp.Monitor(Net(), X, evry=3), "'evry' is an unknown key.*Monitor: did .*'every'"),
        (lambda: ncp.Monitor(Net(), X, logdir="x"), "did you mean 'log_dir'"),
        (lambda: ncp.HeldOutBatch(X, timedelta=DT), "did you mean 'time_delta'"),
        (lambda: ncp.GradientAttribution(metod="gradient"), "GradientAttribution: did .*'method'"),
        (lambda: ncp.StateSpace(max_sequence=3), "StateSpace: did you mean 'max_sequences'"),
        (lambda: ncp.StateSpace(zzz=3), "StateSpace: pass .*every"),
        (lambda: ncp.interpret_model(Net(), X, DT, metod="gradient"), "did you mean 'method'"),
        (lambda: ncp.analyze_backbone(Net(), X, DT, featurenames=[]), "mean 'feature_names'"),
        (lambda: ncp.compute_temporal_importance(Net(), X, DT, layer="x"), "mean 'layers'"),
        (lambda: ncp.replay(Net(), X, "*.npz", logdir="x"), r"replay\(\): did you mean 'log_dir'"),
        (lambda: ncp.compare_runs("runs", tag="val"), r"compare_runs\(\): did you mean 'tags'"),
    ],
)  # fmt: skip
def test_a_misspelt_keyword_is_corrected(call: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        call()


def test_literals_name_what_there_is() -> None:
    assert {method.name for method in BUILT_IN} == set(get_args(MethodName))
    for name in get_args(CallbackSet):
        assert callback_set(name)
    with pytest.raises(ValueError, match="pass " + ", ".join(map(repr, get_args(CallbackSet)))):
        callback_set("nothing")
