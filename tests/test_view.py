"""The data of the interactive page: indexed as it is logged, and nothing else can be asked for."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripts import script
from view_logs import FEATURES, F, T, write_run

import ncp_callbacks as ncp
from ncp_callbacks.cli import main
from ncp_callbacks.runs import read_run
from ncp_callbacks.view.api import NAMES, answer
from ncp_callbacks.view.index import LogIndex, RunIndex
from ncp_callbacks.view.page import page
from ncp_callbacks.view.serve import make_server
from ncp_callbacks.view.static_files import MODULES, START, module_text


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("logs")
    write_run(where / "cfc" / "s2", 2)
    write_run(where / "cfc" / "s10", 10)
    return where


def asked(source: LogIndex, name: str, **arguments: str) -> Any:
    found = answer(source, name, arguments)
    assert found.status == 200, found
    return json.loads(found.body)


def unpacked(body: bytes) -> dict[int, np.ndarray]:
    """What the page makes of a binary answer."""
    size = int(np.frombuffer(body[:4], "<u4")[0])
    head = json.loads(body[4 : 4 + size])
    assert (4 + size) % 4 == 0
    numbers, found = np.frombuffer(body[4 + size :], "<f4"), {}
    for step, shape in zip(head["steps"], head["shapes"], strict=True):
        count = int(np.prod(shape))
        found[step], numbers = numbers[:count].reshape(shape), numbers[count:]
    assert not numbers.size
    return found


def test_runs_are_listed_by_their_folders(log_dir: Path) -> None:
    found = asked(LogIndex(log_dir), "runs")
    assert found == {"format": 1, "runs": ["cfc/s10", "cfc/s2"], "note": ""}
    # A single run has the name of its folder.
    assert asked(LogIndex(log_dir / "cfc" / "s2"), "runs")["runs"] == ["s2"]


def test_what_the_page_gets_is_what_the_reader_reads(log_dir: Path) -> None:
    source, run = LogIndex(log_dir), read_run(log_dir / "cfc" / "s2")
    found = asked(source, "run", run="cfc/s2")
    described = {tag for tag in run.arrays if tag != "_ncp/other"}
    assert set(found["arrays"]) == described
    for tag in described:
        assert found["arrays"][tag]["steps"] == [10, 20, 30]
        body = answer(source, "arrays", {"run": "cfc/s2", "tag": tag, "steps": "30,10"}).body
        for step, values in unpacked(body).items():
            np.testing.assert_array_equal(values, run.arrays[tag][step].astype("f4"))
    about = found["arrays"]["_ncp/attribution_strength"]["about"]
    assert about["v"] == 1
    assert about["feature_names"] == FEATURES
    scalar, ci = found["scalars"]["a/b"], run.ci["a/b"]
    np.testing.assert_allclose(scalar["values"], run.scalars["a/b"].values, rtol=1e-6)
    np.testing.assert_allclose(scalar["low"], ci.low, rtol=1e-6)
    np.testing.assert_allclose(scalar["high"], ci.high, rtol=1e-6)
    # Of the scalars, those that it shows.
    assert set(found["scalars"]) == {"val/loss", "a/b"}
    assert found["documents"] == {"_ncp/findings": [10, 20, 30]}
    text = asked(source, "document", run="cfc/s2", tag="_ncp/findings", step="20")["text"]
    assert json.loads(text)[0]["rule"] == "rests_on"
    summary = asked(source, "summary", run="cfc/s2")["scalars"]
    for tag in ("val/loss", "a/b"):
        assert summary[tag]["steps"] == [30]
        assert summary[tag]["values"] == found["scalars"][tag]["values"][-1:]


def test_only_what_is_new_is_read_and_sent(tmp_path: Path) -> None:
    source, version = LogIndex(tmp_path), ""

    def write(writer: ncp.TensorBoardWriter, step: int) -> None:
        array = ncp.Array("_ncp/a", np.full(2, step), kind="units", axes=("unit",))
        writer.write(step, [ncp.Scalar("val/loss", step), array, ncp.Data("_ncp/findings", "[]")])
        writer.flush()

    with contextlib.closing(ncp.TensorBoardWriter(tmp_path / "run")) as writer:
        for step in (1, 2, 3):
            write(writer, step)
            found = asked(source, "run", run="run", version=version)
            assert found.get("since", "") == version
            assert found["scalars"]["val/loss"] == {"steps": [step], "values": [step]}
            assert found["documents"] == {"_ncp/findings": [step]}
            array = found["arrays"]["_ncp/a"]
            assert array["steps"] == [step]
            assert ("about" in array) == (step == 1)
            version = found["version"]
            assert asked(source, "run", run="run", version=version) == {"version": version}
    # Who knows what a resumed run has taken back gets everything.
    with contextlib.closing(ncp.TensorBoardWriter(tmp_path / "run", first_step=3)) as writer:
        write(writer, 4)
    found = asked(source, "run", run="run", version=version)
    assert "since" not in found
    assert found["scalars"]["val/loss"]["steps"] == found["arrays"]["_ncp/a"]["steps"] == [1, 2, 4]
    assert found["arrays"]["_ncp/a"]["about"]["kind"] == "units"


def test_arrays_that_are_damaged_are_skipped_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0)
    source, tag = LogIndex(tmp_path), "_ncp/attribution_strength"
    asked(source, "run", run="run")
    (file,) = (tmp_path / "run").glob("*tfevents*")
    content = bytearray(file.read_bytes())
    places = [match.start() for match in re.finditer(tag.encode(), content)]
    content[places[1] + 3] ^= 0xFF
    file.write_bytes(content)
    found = answer(source, "arrays", {"run": "run", "tag": tag, "steps": "10,20,30,40"})
    assert list(unpacked(found.body)) == [10, 30]


def test_a_resumed_run_goes_on_from_its_step(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0, steps=(10, 20, 30))
    index = RunIndex(tmp_path / "run")
    index.refresh()
    with contextlib.closing(ncp.TensorBoardWriter(tmp_path / "run", first_step=15)) as writer:
        writer.write(25, [ncp.Scalar("val/loss", 5.0)])
    index.refresh()
    assert list(index.curves["val/loss"].steps) == [10, 25]
    assert sorted(index.tracks["_ncp/hidden_units"].places) == [10]


def test_a_file_that_is_replaced_lets_the_run_begin_anew(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0)
    index = RunIndex(tmp_path / "run")
    index.refresh()
    before = index.version
    shutil.rmtree(tmp_path / "run")
    write_run(tmp_path / "run", 1, steps=(7,))
    index.refresh()
    assert sorted(index.tracks["_ncp/hidden_units"].places) == [7]
    assert before.split(".")[0] != index.version.split(".")[0]


@pytest.mark.parametrize("keep", [0, 1, 300, -1, -200])
def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path: Path, keep: int) -> None:
    write_run(tmp_path / "run", 0)
    (file,) = (tmp_path / "run").glob("*tfevents*")
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    source = LogIndex(tmp_path)
    cut = asked(source, "run", run="run")
    assert set(cut["scalars"].get("val/loss", {}).get("steps", [])) <= {10, 20, 30}
    with file.open("ab") as grown:
        grown.write(whole[keep:] if keep else whole)
    assert asked(source, "run", run="run")["scalars"]["val/loss"]["steps"] == [10, 20, 30]


def test_damage_costs_what_is_damaged(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0)
    (file,) = (tmp_path / "run").glob("*tfevents*")
    content = bytearray(file.read_bytes())
    place = content.index(b"_ncp/hidden_units")
    content[place + 3] ^= 0xFF
    file.write_bytes(content)
    found = asked(LogIndex(tmp_path), "run", run="run")
    assert found["scalars"]["val/loss"]["steps"][-1] == 30


def test_a_run_that_is_removed_is_no_run_any_more(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0)
    source = LogIndex(tmp_path)
    asked(source, "run", run="run")
    shutil.rmtree(tmp_path / "run")
    assert answer(source, "run", {"run": "run"}).status == 404


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*NAMES, "..", "", "index.js"]) | st.text(),
    arguments=st.dictionaries(
        st.sampled_from(["run", "tag", "step", "steps", "version"]),
        st.sampled_from(["cfc/s2", "../s2", "/etc/passwd", "_ncp/hidden_units", "10", "10,x", "-1"])
        | st.text(),
    ),
)
def test_no_request_fails_or_leaves_the_log(
    log_dir: Path, name: str, arguments: dict[str, str]
) -> None:
    found = answer(LogIndex(log_dir), name, arguments)
    assert found.status in (200, 404, 413)
    if found.status == 200 and name != "runs":
        assert arguments["run"] in ("cfc/s2", "cfc/s10")


def test_too_much_at_once_is_refused(log_dir: Path) -> None:
    steps = ",".join(["10"] * 600)
    arguments = {"run": "cfc/s2", "tag": "_ncp/hidden_units", "steps": steps}
    assert answer(LogIndex(log_dir), "arrays", arguments).status == 413


def test_numbers_that_are_not_finite_stay_distinct(tmp_path: Path) -> None:
    values = [float("nan"), float("inf"), float("-inf"), 0.5]
    with contextlib.closing(ncp.TensorBoardWriter(tmp_path / "run")) as writer:
        for step, value in enumerate(values):
            writer.write(step, [ncp.Scalar("val/loss", value)])
    found = asked(LogIndex(tmp_path), "run", run="run")
    assert found["scalars"]["val/loss"]["values"] == [None, "Infinity", "-Infinity", 0.5]


# ---- the server


@pytest.fixture(scope="module")
def port(log_dir: Path) -> Iterator[int]:
    server = make_server(LogIndex(log_dir))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def got(port: int, path: str, host: str | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {} if host is None else {"Host": host}
    connection.request("GET", path, headers=headers)
    answered = connection.getresponse()
    found = answered.status, dict(answered.getheaders()), answered.read()
    connection.close()
    return found


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:1"])
def test_other_hosts_are_refused(port: int, host: str) -> None:
    status, _, body = got(port, "/runs", host)
    assert status == 403
    assert b"cfc" not in body


@pytest.mark.parametrize("host", ["localhost:{}", "127.0.0.1:{}", "localhost"])
def test_this_machine_is_answered(port: int, host: str) -> None:
    assert got(port, "/runs", host.format(port))[0] == 200


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/%2e%2e/index.py", "/static/index.js", "/views/../../index.py",
             "/views/nothing.js", "/favicon.ico"],
)  # fmt: skip
def test_nothing_but_the_page_is_served(port: int, path: str) -> None:
    assert got(port, path)[0] == 404


def test_the_page_and_its_modules_are_served(port: int) -> None:
    status, headers, body = got(port, "/")
    assert status == 200
    assert START.encode() in body
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    for name in (*MODULES, START):
        status, headers, body = got(port, f"/{name}")
        assert status == 200
        assert headers["Content-Type"].startswith("text/javascript")
        assert body.decode() == module_text(name)


# ---- the page in one file


class Scripts(HTMLParser):
    """Collect the scripts of a page, and every address in it."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.scripts:
            self.scripts[-1] += data


def test_one_file_holds_everything(log_dir: Path) -> None:
    text = page(LogIndex(log_dir), ["cfc/s2"], most=2)
    parser = Scripts()
    parser.feed(text)
    assert parser.addresses == ["data:,"]
    data, code = parser.scripts
    held = json.loads(data)
    assert list(held["runs"]) == ["cfc/s2"]
    tag = "_ncp/attribution_strength"
    assert held["runs"]["cfc/s2"]["arrays"][tag]["steps"] == [10, 30]
    arrays = unpacked(base64.b64decode(held["arrays"]["cfc/s2"][tag]))
    run = read_run(log_dir / "cfc" / "s2")
    np.testing.assert_array_equal(arrays[30], run.arrays[tag][30].astype("f4"))
    assert arrays[30].shape == (T, F)
    texts = held["documents"]["cfc/s2"]["_ncp/findings"]
    assert list(texts) == ["10", "30"]
    assert json.loads(texts["30"])[0]["rule"] == "rests_on"
    assert not re.search(r"^\s*(import|export) ", code, re.MULTILINE)
    assert "default-src 'none'" in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    name = "</script><script>alert(1)</script>"
    write_run(tmp_path / "run", 0, feature_names=[name, "b", "c"])
    text = page(LogIndex(tmp_path))
    parser = Scripts()
    parser.feed(text)
    assert len(parser.scripts) == 2
    about = json.loads(parser.scripts[0])["runs"]["run"]["arrays"]["_ncp/attribution_strength"]
    assert about["about"]["feature_names"][0] == name


def test_the_modules_make_no_markup_of_text_and_ask_nobody_else() -> None:
    for name in (*MODULES, START):
        text = module_text(name)
        assert "innerHTML" not in text
        assert "outerHTML" not in text
        assert "insertAdjacentHTML" not in text
        assert "document.write" not in text
        assert "eval(" not in text
        assert not re.search(r"https?://", text)
        # Each imports only modules that come before it, so that one file can hold them all.
        for imported in re.findall(r"^import .* from '(.+)';$", text, re.MULTILINE):
            path = os.path.normpath(os.path.join(os.path.dirname(name), imported))
            assert name == START or MODULES.index(path) < MODULES.index(name)


def test_modules_import_what_others_export() -> None:
    for name in (*MODULES, START):
        for wanted, path in re.findall(r"^import \{(.*)\} from '(.+)';$", module_text(name),
                                       re.MULTILINE):  # fmt: skip
            exporting = module_text(os.path.normpath(os.path.join(os.path.dirname(name), path)))
            exported = re.findall(r"^export (?:async )?\w+ (\w+)", exporting, re.MULTILINE)
            assert set(wanted.split(", ")) <= set(exported)


# ---- in a notebook


def test_a_notebook_shows_a_page_that_reaches_nothing_else(log_dir: Path, tmp_path: Path) -> None:
    shown = ncp.view_runs(log_dir, ["cfc/s2"], height=500, dark=True)
    assert repr(shown) == "RunsView(cfc/s2)"
    parser = Frames()
    parser.feed(shown._repr_html_())
    (frame,) = parser.frames
    # Without allow-same-origin, it has no access to the page around it.
    assert frame["sandbox"].split() == ["allow-scripts", "allow-downloads"]
    assert "height:500px" in frame["style"]
    assert "dark: true" in frame["srcdoc"]
    scripts = Scripts()
    scripts.feed(frame["srcdoc"])
    assert list(json.loads(scripts.scripts[0])["runs"]) == ["cfc/s2"]
    assert "cfc/s2" in shown.save(tmp_path / "page.html").read_text(encoding="utf-8")
    assert ncp.view_runs(log_dir).runs == ("cfc/s10", "cfc/s2")
    assert ncp.view_runs(log_dir / "cfc" / "s2").runs == ("s2",)


class Frames(HTMLParser):
    """Collect the attributes of frames; there may be nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag == "iframe"
        self.frames.append(dict(attrs))


@pytest.mark.parametrize(
    ("folder", "runs", "said"),
    [("nothing", None, "there is no folder 'nothing': pass a folder with runs"),
     (".", None, "there is no run in '.': pass a folder with runs"),
     ("{log}", ["cfc/s3"], "there is no run 'cfc/s3' in .*: pass names such as 'cfc/s10'"),
     ("{log}", ["../x"], "there is no run '../x' in"),
     ("{log}", [], "runs= has 0 names: pass 1 to 8"),
     ("{log}", ["cfc/s2"] * 9, "runs= has 9 names: pass 1 to 8")],
)  # fmt: skip
def test_what_a_notebook_cant_show_is_an_error_with_a_reason(
    log_dir: Path, tmp_path: Path, folder: str, runs: Any, said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ncp.runs.RunsError, match=said):
        ncp.view_runs(folder.format(log=log_dir), runs)


# ---- the command


def test_the_command_writes_a_file(
    log_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["view", str(log_dir), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert "cfc/s10" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nothing/here"], "there is no folder 'nothing/here': pass a folder with runs"),
     ([".", "--out", "x/y/page.html"], "there is no run in this folder: pass a folder with runs"),
     (["{runs}", "--out", "/nowhere/page.html"], "'/nowhere/page.html' can't be written"),
     (["{runs}", "--port", "70000"], "port 70000 can't be used")],
)  # fmt: skip
def test_what_cant_be_done_is_an_error_with_a_reason(
    log_dir: Path, tmp_path: Path, arguments: list[str], said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["view", *(text.format(runs=log_dir) for text in arguments)]) == 2
    assert said in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted(log_dir: Path) -> None:
    import signal

    command = [sys.executable, "-m", "ncp_callbacks", "view", str(log_dir), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(re.search(r":(\d+)/", process.stdout.readline())[1])  # type: ignore[index]
        assert json.loads(got(port, "/runs")[2])["runs"] == ["cfc/s10", "cfc/s2"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_nothing_needs_mlx(log_dir: Path) -> None:
    code = (
        "import sys; sys.modules['mlx'] = None; sys.modules['matplotlib'] = None\n"
        "from ncp_callbacks.view.index import LogIndex\nfrom ncp_callbacks.view.page import page\n"
        "import ncp_callbacks.view.serve, ncp_callbacks.view.tab\n"
        "print(len(page(LogIndex(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(log_dir)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 10_000


# ---- what is measured


def test_the_server_is_measured_on_logs_as_the_package_writes_them(tmp_path: Path) -> None:
    benchmark = script("view")
    benchmark.write_logs(tmp_path, runs=5, snapshots=4)
    assert len(LogIndex(tmp_path).names()) == 5
    found = asked(LogIndex(tmp_path), "run", run="run-004")
    assert {len(array["steps"]) for array in found["arrays"].values()} == {4}
    measured = {m.what: m.value for m in benchmark.of_server(tmp_path)}
    idle, one, whole = (
        measured[what] for what in ("poll of two runs, nothing new",
                                    "poll of a run, one new snapshot", "a run as a whole")
    )  # fmt: skip
    assert idle < one < whole
