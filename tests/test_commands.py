"""The commands that open a log and print its findings, as a user runs them."""

from __future__ import annotations

import http.client
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from PIL import Image
from test_findings import HELD_OUT, Net, trained

import ncp_callbacks as ncp
from ncp_callbacks.cli import main
from ncp_callbacks.console import open_command
from ncp_callbacks.open_command import pinned_first, pinned_page
from ncp_callbacks.records import Data, Picture


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: the loss of the second one diverges."""
    where = tmp_path_factory.mktemp("commands") / "runs"
    for name, loss in (("good", 0.5), ("bad", float("nan"))):
        mx.random.seed(3)
        model = Net()
        monitor = ncp.Monitor(model, HELD_OUT, log_dir=where / name, every=2, background=False)
        with monitor:
            for step in range(1, 5):
                model.head.weight = 0.9 * model.head.weight
                monitor.on_step_end(step, loss=loss / step)
    return where


# --- findings


@pytest.mark.parametrize(
    ("run", "level", "status"),
    [
        ("good", None, 0), ("bad", None, 0), ("good", "error", 0), ("bad", "error", 1),
        ("bad", "problem", 1), ("bad", "warning", 1),
    ],
)  # fmt: skip
def test_the_exit_status_tells_how_serious_it_is(
    run: str, level: str | None, status: int, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [] if level is None else ["--fail-on", level]
    assert main(["findings", str(runs / run), *arguments]) == status
    out = capsys.readouterr().out
    assert out.startswith(f"{run} at step 4\n  relies on: ")
    assert ("the training has diverged" in " ".join(out.split())) == (run == "bad")


def test_the_json_is_that_of_the_log(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["findings", str(runs / "bad"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    logged = json.loads(ncp.runs.read_run(runs / "bad").texts["_ncp/findings"][4])
    assert [f["sentence"] for f in found] == [f["sentence"] for f in logged]
    assert found[0]["severity"] == "problem"
    assert found[0]["rule"] == "diverged"


def test_names_from_a_log_do_not_steer_the_terminal(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path / "red\x1b[31m", tmp_path / "missing\x1b]0;title\x07"):
        if place.name.startswith("red"):
            shutil.copytree(runs / "good", place)
        main(["findings", str(place)])
        shown = capsys.readouterr()
        assert "\\x1b" in shown.out + shown.err
        assert not {"\x1b", "\x07"} & set(shown.out + shown.err)


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, runs):
        assert main(["findings", str(folder)]) == 2
        assert "holds no event files" in capsys.readouterr().err


def test_findings_need_neither_mlx_nor_matplotlib(runs: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['mlx', 'matplotlib']));"
        "from ncp_callbacks.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "findings", str(runs / "good")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "relies on" in done.stdout


def test_the_end_of_a_run_shows_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mx.random.seed(3)
    model, where = Net(), tmp_path / "runs" / "a"
    monitor = ncp.Monitor(model, HELD_OUT, log_dir=where, every=2, background=False, verbose=True)
    trained(monitor, model, range(1, 7))
    shown = capsys.readouterr().err.splitlines()
    begin = next(i for i, line in enumerate(shown) if line.startswith("  relies on: "))
    assert len(shown) - begin <= 10
    assert shown[-1] == f"  open it:  {open_command(where)}"
    assert "vibration" in shown[begin]
    assert shlex.split(open_command(where))[-2:] == ["open", str(tmp_path / "runs")]


# --- open


def pinned(address: str) -> list[dict[str, object]]:
    (value,) = urllib.parse.parse_qs(urllib.parse.urlsplit(address).query)["pinnedCards"]
    return json.loads(value)  # type: ignore[no-any-return]


def test_the_page_pins_the_overview_of_the_newest_runs(tmp_path: Path) -> None:
    for age, name in enumerate(("a", "b/c", "d", "e", "f")):
        (tmp_path / name).mkdir(parents=True)
        file = tmp_path / name / "events.out.tfevents.1"
        file.touch()
        os.utime(file, (1000 - age, 1000 - age))
    cards = pinned(pinned_page(tmp_path))
    assert [card["tag"] for card in cards[4:]] == ["headline/held_out/loss", "train/loss"]
    wanted = [f"defaultExperimentId/{name}" for name in ("a", "b/c", "d", "e")]
    assert [card["runId"] for card in cards[:4]] == wanted
    assert {card["tag"] for card in cards[:4]} == {"headline/_findings/overview"}


def test_of_the_newest_runs_those_with_the_worst_findings_come_first(tmp_path: Path) -> None:
    severities = {
        "fine": ["good", "info"], "warned": ["warning", "good"], "ill": ["problem"],
        "twice": ["warning", "warning"], "old": ["problem", "problem"],
    }  # fmt: skip
    for age, (name, of_each) in enumerate(severities.items()):
        content = [{"severity": severity} for severity in of_each]
        writer = ncp.TensorBoardWriter(tmp_path / name)
        for step, found in ((1, [{"severity": "problem"}] * 9), (2, content)):
            writer.write(step, [Data("_ncp/findings", json.dumps(found))])
        writer.close()
        for file in (tmp_path / name).iterdir():
            os.utime(file, (10**9 - 1000 * age,) * 2)
    cards = pinned(pinned_page(tmp_path))[:4]
    names = [str(card["runId"]).rpartition("/")[2] for card in cards]
    assert names == ["old", "ill", "twice", "warned"]
    # The graph of a wired network takes the place of the last one.
    writer = ncp.TensorBoardWriter(tmp_path / "wired")
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "PNG")
    writer.write(3, [Picture("wiring/graph", png.getvalue())])
    writer.close()
    cards = pinned(pinned_page(tmp_path))[:4]
    assert [card["tag"] for card in cards[2:]] == [
        "headline/_findings/overview", "xai_wiring/graph",
    ]  # fmt: skip
    assert str(cards[3]["runId"]).endswith("/wired")


def test_only_the_first_page_redirects() -> None:
    calls: list[object] = []
    app = pinned_first(lambda environ, start: ["app"], lambda: "/?x#y")
    start = lambda status, headers: calls.append((status, dict(headers)["Location"]))  # noqa: E731
    assert app({"PATH_INFO": "/", "QUERY_STRING": ""}, start) == [b""]
    assert calls == [("302 Found", "/?x#y")]
    for path, query in (("/", "x=1"), ("/data/runs", "")):
        assert app({"PATH_INFO": path, "QUERY_STRING": query}, start) == ["app"]
    assert len(calls) == 1


@pytest.fixture(scope="module")
def board(runs: Path) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-m", "ncp_callbacks.cli", "open", str(runs)]
    with subprocess.Popen(
        [*command, "--port", "0", "--no-browser"], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            address = urllib.parse.urlsplit(process.stdout.readline().split()[0])
            assert address.hostname is not None
            assert address.port is not None
            yield address.hostname, address.port
        finally:
            process.terminate()


def test_tensorboard_opens_on_the_pinned_page(board: tuple[str, int]) -> None:
    connection = http.client.HTTPConnection(*board, timeout=60)
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 302
    where = answer.headers["Location"]
    assert {card.get("runId") for card in pinned(where)[:2]} == {
        "defaultExperimentId/good", "defaultExperimentId/bad",
    }  # fmt: skip
    connection.request("GET", where.partition("#")[0])
    answer = connection.getresponse()
    assert answer.status == 200
    assert b"<html" in answer.read().lower()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nowhere"], "there is no folder 'nowhere'"), ([".", "--port", "70000"], "--port")],
)
def test_what_can_not_be_opened_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["open", *arguments, "--no-browser"]) == 2
    assert words in capsys.readouterr().err
