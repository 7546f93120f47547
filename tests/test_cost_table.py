"""The benchmark of costs: its arithmetic, its table, and that it runs. No times are asserted."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from scripts import script

import ncp_callbacks as ncp

cost = script("cost")
report = sys.modules["cost_report"]
cases = sys.modules["peers.cases"]
monitored = sys.modules["peers.monitored"]
processes = sys.modules["processes"]
protocol = sys.modules["peers.protocol"]
training = sys.modules["peers.training"]
TINY = cases.SIZES["tiny"]
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")


def row(scope: str, what: str, median: float, **columns: str) -> dict[str, str]:
    found = {"scope": scope, "what": what, "median": str(median), "unit": "steps"}
    found |= {"measured": "2001-02-03", **columns}
    return {column: found.get(column, "") for column in report.COLUMNS}


# ---- arithmetic


def test_seconds_become_ratios_of_medians() -> None:
    timings = cost.Timings(scope="loop", model="CfC", size="S", sequences=4)
    for step, call in [(2.0, 3.0), (1.0, 5.0), (4.0, 4.0)]:
        timings.step(step)
        timings.note("due step", call)
        timings.note("share", call, "%")
    own, ratio, share = timings.rows()
    assert (own["what"], own["unit"], own["median"]) == ("training step", "ms", "2000")
    # Median 4 of 3, 5, 4 over median 2 of 2, 1, 4; quartiles 3.5 and 4.5.
    assert [ratio[k] for k in ("median", "q1", "q3", "unit")] == ["2", "1.75", "2.25", "steps"]
    assert (share["median"], share["unit"], share["rounds"]) == ("4", "%", "3")
    assert (own["model"], ratio["size"], share["sequences"]) == ("CfC", "S", "4")


def test_a_new_measurement_replaces_the_same_quantity_only() -> None:
    labels = {"model": "CfC", "size": "S", "sequences": "16"}
    old = [
        row("loop", "due step", 1.0, **labels),
        row("loop", "due step", 2.0, **{**labels, "size": "M"}),
        row("machine", "mlx 1", 1.0, model="x86"),
    ]
    new = [row("loop", "due step", 3.0, **labels), row("machine", "mlx 2", 1.0, model="x86")]
    assert cost.merged(old, new) == [new[0], old[1], new[1]]


# Four gradients and the baseline; three other scales of time; features, four blocks and the time.
@pytest.mark.parametrize(
    ("kind", "passes", "removals"), [("CfC", 8, 8), ("LTC", 8, 8), ("GRU", 5, 7)]
)
def test_the_passes_alone_are_those_of_the_standard_set(
    kind: str, passes: int, removals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = training.Training(kind, TINY)
    given: list[list[mx.array]] = []
    run = type(one.model).__call__

    def counted(self: Any, *inputs: mx.array) -> mx.array:
        given.append(list(inputs))
        return run(self, *inputs)

    monkeypatch.setattr(type(one.model), "__call__", counted)
    one.plain_passes(2, removal=False)
    assert [len(inputs[0]) for inputs in given] == [2] * passes
    if kind != "GRU":
        scales = [float((inputs[1] / one.inputs[1][:2]).mean()) for inputs in given[-3:]]
        assert scales == pytest.approx([0.5, 2.0, 5.0])
    given.clear()
    one.plain_passes(2, removal=True)
    assert len(given) == passes + removals


@LINUX
def test_cpu_time_counts_that_of_children() -> None:
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    before = processes.cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        assert child.pid in processes.children()
        busy = processes.cpu_seconds() - before
        child.communicate(b"\n")
    # The child has spent half a second by its own count, in ticks of 10 ms.
    assert busy >= 0.47


# ---- the table


def example() -> list[dict[str, str]]:
    few = {"model": "CfC", "size": "M", "sequences": "16"}
    whole = {**few, "sequences": "64"}
    return [
        row("loop", "training step", 250.0, **few),
        row("loop", "due step, background", 0.01275, **few),
        row("more", "due step, full set", 0.0375, **few),
        row("loop", "due step, in the loop", 0.5, **few),
        row("loop", "passes alone", 0.4375, **few),
        row("more", "entering", 2.5, **few),
        row("extra", "training, every=100", 0.25, **few),
        row("cpu", "until on disk, background", 0.75, **few),
        row("cpu", "until on disk, before", 0.5, **few),
        row("loop", "due step, in the loop", 1.5, **whole),
        row("loop", "passes alone", 1.0, **whole),
        row("peer", "ncp_callbacks", 2.0, **whole),
        row("peer", "ncp_callbacks, with integrated gradients", 3.0, **whole),
        row("peer", "PyTorch + Captum", 16.0, **whole),
        row("peer", "plain MLX", 5.0, **whole),
        row("once", "step at which nothing is due", 1.25),
        row("once", "import after mlx", 90.0),
    ]


def test_the_table_shows_what_was_measured() -> None:
    lines = report.table(example()).splitlines()
    assert "| CfC M | 0.013 | +0.25 % | 0.75 | 0.50 |" in lines
    assert "| CfC, whole batch, until on disk, in steps, measured 2001-02-03 | M |" in lines
    assert "| `ncp_callbacks` | 2.0 (3.0) |" in lines
    assert "| PyTorch: ncps, Captum, scikit-learn, pyplot, SummaryWriter | 16.0 (–) |" in lines
    assert lines[-1] == (
        "A step at which nothing is due takes 1.25 µs, the import 90 ms, entering at most 2.5 "
        "steps."
    )


def test_the_budgets_show_what_is_missed() -> None:
    lines = report.budgets(example()).splitlines()
    few, whole = "CfC M, 16 sequences, ", "CfC M, 64 sequences, "
    assert [line for line in lines if line.startswith("MISSED")] == [
        f"MISSED {few}due step, steps, full set: 0.0375 (≤ 0.02)",
        f"MISSED {whole}background=False, steps, beside its passes alone + 15 %: 1.5 (≤ 1.15)",
        "MISSED plain MLX, M, times ours: 2.5 (≥ 3)",
    ]
    assert f"ok     {few}due step, steps: 0.0127 (≤ 0.02)" in lines
    cpu = "CPU until on disk, steps, beside 2.5 times the earlier version's"
    assert f"ok     {few}{cpu}: 0.75 (≤ 1.25)" in lines
    # 1.15 x 0.4375 = 0.503
    assert (
        f"ok     {few}background=False, steps, beside its passes alone + 15 %: 0.5 (≤ 0.503)"
        in lines
    )
    assert "ok     PyTorch + Captum, M, times ours: 8 (≥ 5)" in lines


def test_the_table_goes_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    guide = tmp_path / "cost.md"
    guide.write_text("a\n<!-- cost.csv -->\nold\n<!-- end -->\nb\n")
    report.into_guide(guide, "new")
    assert guide.read_text() == "a\n<!-- cost.csv -->\nnew\n<!-- end -->\nb\n"


def test_the_picture_can_be_drawn(tmp_path: Path) -> None:
    report.plot(example(), tmp_path / "cost.png")
    with Image.open(tmp_path / "cost.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    # Bars of four quantities on the left; three of the peers on the right were measured.
    assert {(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0xCC, 0x79, 0xA7)} <= colours


# ---- it runs


def test_a_snapshot_is_on_disk_after_waiting(tmp_path: Path) -> None:
    one = training.Training("GRU", TINY)
    for background in (True, False):
        log = tmp_path / str(background)
        with monitored.Monitored(one, 2, log, background=background) as watched:
            assert watched.monitor.in_background is background
            size = sum(f.stat().st_size for f in log.iterdir())
            watched.snapshot()
            watched.wait()
            grown = sum(f.stat().st_size for f in log.iterdir())
            assert grown > size
            watched.wait()
            assert sum(f.stat().st_size for f in log.iterdir()) == grown
            assert watched.entering > 0


@pytest.mark.parametrize("kind", ["CfC", "GRU"])
def test_due_steps_are_measured_in_both_places(kind: str) -> None:
    rows = cost.loop(kind, "tiny", 2, cost.QUICK)
    assert {r["what"] for r in rows} == {
        "training step", "due step, background", "until on disk, background",
        "due step, in the loop", "until on disk, in the loop", "passes alone",
    }  # fmt: skip
    assert all(float(r["median"]) > 0 for r in rows)


@pytest.mark.parametrize("kind", ["CfC", "GRU"])
def test_analyses_are_measured_one_by_one(kind: str) -> None:
    rows = cost.more(kind, "tiny", 2, cost.QUICK)
    names = {r["what"] for r in rows}
    checks = "entering: checks of the model"
    assert {"training step", "entering", checks, "due step, full set"} <= names
    assert {"analysis: pass", "analysis: attribution", "analysis: dynamics"} <= names
    assert ("analysis: time_delta" in names) == (kind == "CfC")  # a GRU takes no elapsed time


def test_the_extra_time_of_a_training_is_a_paired_difference() -> None:
    (own, extra) = cost.extra("GRU", "tiny", 2, cost.QUICK._replace(pairs=8, block=2))
    # One mean of eight differences, of which one has the removal of features.
    assert (own["rounds"], extra["rounds"], extra["unit"]) == ("8", "1", "steps")


@LINUX
def test_cpu_time_is_compared_with_another_version() -> None:
    root = Path(ncp.__file__).parent.parent
    rows = cost.cpu("GRU", "tiny", 2, cost.QUICK, root)
    assert [r["what"] for r in rows] == [
        "training step", "until on disk, background", "until on disk, in the loop",
        "until on disk, before",
    ]  # fmt: skip


def test_a_folder_without_the_package_is_no_earlier_version(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no ncp_callbacks in"):
        cost.cpu("GRU", "tiny", 2, cost.QUICK, tmp_path)


def test_what_is_paid_once_is_measured() -> None:
    assert float(cost.not_due(20)["median"]) > 0
    assert float(cost.importing(1)["median"]) > 0


# ---- peers


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    naive = importlib.import_module("peers.naive_mlx")
    peer = naive.Peer("tiny", TINY.batch, str(tmp_path_factory.mktemp("naive")))
    yield peer
    peer.writer.close()


def test_plain_mlx_finds_what_we_find(plain: Any) -> None:
    found = {}
    logged = pytest.MonkeyPatch()
    module = sys.modules["peers.naive_mlx"]
    with logged.context() as patch:
        patch.setattr(module, "log", lambda writer, step, what, watch: found.update(what=what))
        plain.snapshot("separate")
    theirs = found["what"]
    ours = ncp.interpret_model(
        plain.net, plain.x, plain.dt, method="input_x_gradient", baseline="zeros"
    )
    np.testing.assert_allclose(
        np.abs(theirs.attribution).mean(axis=0), ours["importance"].importance, atol=1e-6
    )
    np.testing.assert_allclose(
        theirs.states, np.array(plain.net.rnn(plain.x, plain.dt)[0]), atol=1e-6
    )
    (layer,) = ours["backbone"].layers
    assert theirs.activations["layer0"].mean() == pytest.approx(layer.mean, abs=1e-6)
    # Complete: what integrated gradients attribute is the whole change from the zero input.
    zero = plain.net(mx.zeros_like(plain.x), plain.dt)[:, -1, 0]
    change = np.array(plain.net(plain.x, plain.dt)[:, -1, 0] - zero)
    integrated = plain.integrated(n_steps=32)
    np.testing.assert_allclose(integrated.sum(axis=(1, 2)), change, atol=1e-5)


def test_a_worker_carries_out_commands(tmp_path: Path) -> None:
    options = {"size": "tiny", "sequences": 2, "log": tmp_path}
    with protocol.Worker("peers.naive_mlx", sys.executable, **options) as worker:
        assert worker.versions["mlx"]
        assert worker.ask("step")["seconds"] > 0
        parts = worker.ask("snapshot", way="separate")
    assert set(parts) == {
        "attribution", "time gradient", "scales", "states", "backbone", "integrated gradients",
        "figures", "numbers",
    }  # fmt: skip
    assert list(tmp_path.glob("events.*"))


def test_a_snapshot_is_measured_beside_a_peer() -> None:
    found = {r["what"] for r in cost.peers("tiny", cost.QUICK, "") if r["scope"] == "peer"}
    names = {"ncp_callbacks", "plain MLX"}
    assert found == {
        *names, *(f"{name}, with integrated gradients" for name in names),
        "training step of ours", "training step of peers.naive_mlx",
    }  # fmt: skip


def test_what_a_peer_lacks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "captum.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = {"size": "tiny", "sequences": 2, "log": tmp_path}
    with pytest.raises(protocol.PeerError, match=r"none here.*pip install -e '.\[peers\]'"):
        protocol.Worker("peers.torch_captum", sys.executable, **options)
    with pytest.raises(protocol.PeerError, match="can't be run"):
        protocol.Worker("peers.torch_captum", str(tmp_path / "python"), **options)
