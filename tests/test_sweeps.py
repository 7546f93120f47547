"""Runs that are named by their hyper-parameters, and found together by them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import tensorboardX
from small_nets import Net

import ncp_callbacks as ncp
from ncp_callbacks.cli import main
from ncp_callbacks.run_names import named
from ncp_callbacks.runs import RunsError, compare_runs, read_run
from ncp_callbacks.view.command import _sides

EXAMPLES = Path(__file__).parent.parent / "examples"


# ---- names


@pytest.mark.parametrize(
    ("template", "config", "name"),
    [
        ("runs/{model}-u{units}-s{seed}", {"model": "cfc", "units": 8, "seed": 0}, "cfc-u8-s0"),
        ("runs/lr{lr:g}", {"lr": 0.001}, "lr0.001"),
        ("runs/{cell.units:03}", {"cell": {"units": 8}}, "008"),
        ("runs/{{{a}}}", {"a": "x"}, "{x}"),
        ("runs/{a}", {"a": True}, "True"),
        ("runs/{a}", {"a": None}, "None"),
        ("runs/{a}", {"a": -0.5}, "-0.5"),
        # What would leave the folder, hide the run, or be another folder.
        ("runs/{a}", {"a": "s3://data/set one"}, "s3-data-set-one"),
        ("runs/{a}", {"a": "../../etc"}, "-..-etc"),
        ("runs/{a}", {"a": ".hidden"}, "hidden"),
        ("runs/{a}", {"a": "a\\b\0c:d"}, "a-b-c-d"),
        ("runs/{a}", {"a": "größe"}, "größe"),
    ],
)
def test_names_of_hyper_parameters_are_replaced(
    template: str, config: dict[str, Any], name: str
) -> None:
    assert named(template, config) == f"runs/{name}"
    assert named(Path(template), config) == f"runs/{name}"


def test_a_directory_without_braces_stays_what_it_is() -> None:
    for log_dir in ("runs/a", Path("runs/a"), None):
        assert named(log_dir, None) is log_dir


@pytest.mark.parametrize(
    ("template", "config", "message"),
    [
        ("runs/{modle}", {"model": "cfc", "units": 8}, r"did you mean \{model\}\? It has model, u"),
        ("runs/{x}", {"model": "cfc"}, r"has \{x\}, which run_config lacks: It has model"),
        ("runs/{model}", None, r"pass run_config=\{'model': \.\.\.\}, or double the braces"),
        ("runs/{}", {"model": "cfc"}, r"has \{\}, which run_config lacks"),
        ("runs/{model", {"model": "cfc"}, "Pass names in braces"),
        ("runs/{model:d}", {"model": "cfc"}, "Pass another format"),
        ("runs/{model}", {"model": ".."}, "names no folder"),
        ("runs/{model}", {"model": ""}, "names no folder"),
    ],
)
def test_what_names_no_run_is_an_error(template: str, config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named(template, config)


def test_a_monitor_logs_where_its_hyper_parameters_say(tmp_path: Path) -> None:
    held_out = ncp.HeldOutBatch(mx.random.normal((4, 3, 2)))
    with ncp.Monitor(
        Net(), held_out, [], tmp_path / "{model}-s{seed}", run_config={"model": "gru", "seed": 3}
    ) as monitor:
        assert monitor.log_dir == str(tmp_path / "gru-s3")
    with pytest.raises(ValueError, match=r"did you mean \{seed\}"):
        ncp.Monitor(Net(), held_out, [], "{sed}", run_config={"seed": 3})


# ---- all runs of a sweep


def test_a_sweep_has_every_combination_and_the_last_varies_fastest() -> None:
    assert ncp.sweep(model=["cfc", "gru"], units=8, seed=range(2)) == [
        {"model": "cfc", "units": 8, "seed": 0},
        {"model": "cfc", "units": 8, "seed": 1},
        {"model": "gru", "units": 8, "seed": 0},
        {"model": "gru", "units": 8, "seed": 1},
    ]
    assert ncp.sweep(model="cfc") == [{"model": "cfc"}]
    assert ncp.sweep() == [{}]


def test_a_sweep_without_runs_or_with_equal_ones() -> None:
    with pytest.raises(ValueError, match=r"seed has no value: pass one or more, as in seed=\[1"):
        ncp.sweep(model=["cfc"], seed=range(0))
    with pytest.raises(ValueError, match="seed has the value 1 twice"):
        ncp.sweep(seed=[1, 2, 1])


# ---- found together


def write(run: Path, config: dict[str, Any], loss: float) -> None:
    writer = ncp.TensorBoardWriter(run)
    if config:
        writer.log_run_config(config)
    for step in range(0, 50, 10):
        writer.write(step, [ncp.Scalar("val/loss", loss + step / 1000)])
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models of two sizes, three seeds each; the names of the folders tell nothing."""
    for number, config in enumerate(ncp.sweep(model=["gru", "cfc"], units=[8, 16], seed=[0, 1, 2])):
        loss = 1.0 + (config["model"] == "gru") + 0.1 * config["seed"]
        write(tmp_path / f"run{number:02}", config, loss)
    return tmp_path


def test_runs_are_grouped_by_their_hyper_parameters(folder: Path) -> None:
    result = compare_runs(folder, by="model")
    assert [side.name for side in result.sides] == ["cfc", "gru"]
    assert [run.name for run in result.sides[1].runs] == [f"run{n:02}" for n in range(6)]
    row = result.row("val/loss")
    assert row.changes[0] is not None
    assert row.changes[0].delta == pytest.approx(1.0)
    assert "gru" in result.answer[0]


def test_two_hyper_parameters_make_sides_of_their_values(folder: Path) -> None:
    sides = compare_runs([folder], by=["model", "units"]).sides
    assert [side.name for side in sides] == [
        "model=cfc, units=8", "model=cfc, units=16", "model=gru, units=8", "model=gru, units=16",
    ]  # fmt: skip
    assert [len(side.runs) for side in sides] == [3, 3, 3, 3]
    by_units = compare_runs(f"{folder}/run*", by="units").sides
    assert [side.name for side in by_units] == ["units=8", "units=16"]  # By value, not by text.


def test_runs_without_the_hyper_parameter_are_skipped_with_a_warning(folder: Path) -> None:
    write(folder / "other", {}, 1.0)
    result = compare_runs(folder, by="model")
    assert sum(len(side.runs) for side in result.sides) == 12
    assert "other: skipped, without model" in result.warnings


def test_what_makes_no_sides(folder: Path) -> None:
    with pytest.raises(RunsError, match="no run has logged a hyper-parameter 'modle': pass model"):
        compare_runs(folder, by="modle")
    with pytest.raises(RunsError, match="all runs have the same values of model, cfc"):
        compare_runs([folder / f"run{n:02}" for n in range(6, 12)], by="model")
    with pytest.raises(RunsError, match="is one run: pass a list of two or more, or by="):
        compare_runs(folder)
    with pytest.raises(RunsError, match="pass a list of runs, not a mapping"):
        compare_runs({"a": folder}, by="model")


def test_the_command_groups(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folder), "--by", "model", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [side["name"] for side in found["sides"]] == ["cfc", "gru"]
    assert main(["compare", str(folder), "--by", "size"]) == 2
    assert "no run has logged a hyper-parameter 'size'" in capsys.readouterr().err


def test_the_page_begins_with_the_sides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = json.loads(urllib.parse.unquote(_sides(folder, ["model"]).removeprefix("#")))
    # What the page keeps in its address: the runs that are shown, and those of them on side B.
    assert state["b"] == [f"run{n:02}" for n in range(6)]
    assert state["runs"] == [f"run{n:02}" for n in (*range(6, 12), *range(6))]
    assert main(["view", str(folder), "--by", "size"]) == 2
    assert main(["view", str(folder), "--by", "model", "--out", "page.html"]) == 2
    assert "without --out" in capsys.readouterr().err


# ---- hyper-parameters of others


def test_hyper_parameters_in_a_folder_of_their_own_are_those_of_the_run(tmp_path: Path) -> None:
    for name, lr in (("a", 0.1), ("b", 0.01)):
        with tensorboardX.SummaryWriter(str(tmp_path / name)) as writer:
            for step in range(5):
                writer.add_scalar("val/loss", lr + step, step)
            writer.add_hparams({"lr": lr, "model": "cfc"}, {"val/loss": lr}, name="hparams")
        assert (tmp_path / name / "hparams").is_dir()
    run = read_run(tmp_path / "a")
    assert run.hparams == {"lr": 0.1, "model": "cfc"}
    assert run.scalars["val/loss"].steps.tolist() == [0, 1, 2, 3, 4]
    result = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert result.hparams == {"lr": ((0.1,), (0.01,))}


def test_a_run_below_another_one_keeps_its_hyper_parameters(tmp_path: Path) -> None:
    write(tmp_path / "run", {"model": "cfc"}, 1.0)
    write(tmp_path / "run" / "below", {"model": "gru", "units": 8}, 1.0)
    assert read_run(tmp_path / "run").hparams == {"model": "cfc"}


# ---- the example


def test_the_example_tells_which_is_better_and_why(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, EXAMPLES / "sweep.py"],
        cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    names = {f"{model}-s{seed}" for model in ("cfc", "gru") for seed in range(5)}
    assert {path.name for path in (tmp_path / "runs" / "sweep").iterdir()} == names
    # The guide shows the same sentences, with the numbers of the machine that it was written on.
    guide = (EXAMPLES / "compare.md").read_text()
    shown = " ".join(line[1:].strip() for line in guide.splitlines() if line.startswith(">"))
    # Which is better and why; how alike the shares of the inputs are is a matter of a point.
    parts = (r"By val/loss, .*explain \(p = 0\)\.", r"Of the attribution, .* in gru\.")
    for pattern in parts:
        (told,), (written,) = (re.findall(pattern, words(text)) for text in (out.stdout, shown))
        assert told == written
    assert "gru (0) is worse than cfc (0)" in words(shown)


def words(text: str) -> str:
    """The text on one line, with 0 for every number."""
    return re.sub(r"\d[\d.e-]*", "0", " ".join(text.split()))
