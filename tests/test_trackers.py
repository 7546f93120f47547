"""Sinks for other trackers, against their real clients, read back from their own files."""

from __future__ import annotations

import csv
import importlib
import json
import math
import struct
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from small_nets import Net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ncp_callbacks as ncp
from ncp_callbacks.plots import to_png
from ncp_callbacks.records import Record
from ncp_callbacks.runs import read_run
from ncp_callbacks.writers import unsynced
from ncp_callbacks.writers.attached_log import AttachedLog


def picture(side: float = 1.0) -> bytes:
    figure = matplotlib.figure.Figure(figsize=(side, side), dpi=50)
    figure.add_axes((0, 0, 1, 1)).imshow(np.eye(2))
    return to_png(figure)


def records(step: int) -> list[Record]:
    return [
        ncp.Scalar("train/loss", 1 / step),
        ncp.Scalar("attribution/share (hr)", 0.5, ci=(0.25, 0.75)),
        ncp.Scalar("odd", math.nan),
        ncp.Histogram(
            "hidden/speed", np.array([-1.0, 0.5, 3.0, np.nan]), np.array([0.0, 1.0, 2.0])
        ),
        ncp.Picture("attribution/heatmap", picture(), "What matters."),
        ncp.Text("monitor/run", "# <Title>"),
        ncp.Array("_ncp/map", np.ones(3)),
        ncp.Data("_ncp/findings", "{}"),
        ncp.Embedding("hidden/points", np.eye(3), {"class": ["a", "b", "c"]}),
    ]


def check_attached_log(folder: Path) -> None:
    """Check what a tracker's run keeps in files, by the package's reader and by TensorBoard's."""
    run = read_run(folder)
    assert run.warnings == ()
    assert run.arrays["_ncp/map"][2].tolist() == [1.0, 1.0, 1.0]
    assert run.texts["_ncp/findings"] == {1: "{}", 2: "{}"}
    assert run.histograms["hidden/speed"][1].counts.tolist() == [2, 1]
    assert run.scalars["train/loss"].values.tolist() == [1.0, 0.5]
    assert run.ci["attribution/share__hr_"].high.tolist() == [0.75, 0.75]
    assert run.hparams["cell.units"] == 8
    events = EventAccumulator(str(folder)).Reload()
    assert [e.value for e in events.Scalars("train/loss")] == [1.0, 0.5]
    (tensor, _) = events.Tensors("_ncp/map")
    assert np.frombuffer(tensor.tensor_proto.tensor_content, "<f4").tolist() == [1.0, 1.0, 1.0]


def log(sink: Any) -> None:
    writer = ncp.BackgroundWriter(sink)
    writer.log_run_config({"lr": 0.5, "cell": {"units": 8}, "name": "cfc"})
    for step in (1, 2):
        writer.write(step, records(step))
    writer.close()
    assert writer.failure is None
    assert writer.failed_records == 0


def level_db_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of LevelDB's log format, after a head of 7 bytes.

    A block has 32 KiB. In it, a part has 4 bytes of checksum, 2 of length, and 1 that is 1 for a
    whole record, and 2, 3 and 4 for its first, middle and last part.
    """
    at, parts = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        if len(data) < at + 7:
            return
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_history(path: Path) -> list[dict[str, str]]:
    """Return what was logged in a file of wandb, each value as JSON by its name."""
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    history = []
    for data in level_db_records(path.read_bytes()):
        record = pb.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({(i.key or "/".join(i.nested_key)): i.value_json for i in items})
    return history


LINES = [
    (step, *line)
    for step in (1, 2)
    for line in (
        ("train/loss", 1 / step, None, None),
        ("attribution/share (hr)", 0.5, 0.25, 0.75),
        ("odd", math.nan, None, None),
    )
]


def test_csv(tmp_path: Path) -> None:
    for _ in range(2):  # The second run goes on in the file.
        log(ncp.CsvSink(tmp_path / "logs" / "a.csv"))
    with (tmp_path / "logs" / "a.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert head == ["step", "tag", "value", "low", "high"]
    assert lines == [["" if x is None else str(x) for x in line] for line in LINES] * 2


@pytest.mark.parametrize(
    ("make", "package"),
    [(lambda: ncp.ParquetSink("a.parquet"), "pyarrow"), (lambda: ncp.MlflowSink(), "mlflow")],
)
def test_a_missing_client_is_named(
    make: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}: run pip install"):
        make()


def test_what_is_no_run_of_wandb_is_refused() -> None:
    with pytest.raises(TypeError, match="run is a str: pass the run that wandb"):
        ncp.WandbSink("run")


def test_parquet(tmp_path: Path) -> None:
    log(ncp.ParquetSink(tmp_path / "a.parquet"))
    table = importlib.import_module("pyarrow.parquet").read_table(tmp_path / "a.parquet")
    found = [tuple(line.values()) for line in table.to_pylist()]
    assert repr(found) == repr(LINES)
    metadata = table.schema.metadata
    file = importlib.import_module("pyarrow.parquet").read_metadata(tmp_path / "a.parquet")
    assert {**(metadata or {}), **file.metadata}[b"cell.units"] == b"8"


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = importlib.import_module("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="test")
    log(ncp.WandbSink(run))
    summary = dict(run.summary)
    run.finish()
    assert summary["train/loss"] == 0.5
    assert summary["attribution/share (hr)"] == 0.5
    assert summary["attribution/share (hr)_low"] == 0.25
    assert summary["ncp_step"] == 2
    assert run.config["cell.units"] == 8

    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history = wandb_history(path)
    end = time.monotonic() + 60
    while len(history) < 2 and time.monotonic() < end:  # Another process writes it.
        time.sleep(0.1)
        history = wandb_history(path)
    assert [line["ncp_step"] for line in history] == ["1", "2"]
    assert [float(line["train/loss"]) for line in history] == [1.0, 0.5]
    # Those beyond the edges are in the outer bins, as in TensorBoard; what is not finite is not.
    assert json.loads(history[0]["hidden/speed/values"]) == [2, 1]
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/**/*.png"))) == 2
    (html, *_) = tmp_path.glob("wandb/offline-run-*/files/media/html/**/*.html")
    assert "&lt;Title&gt;" in html.read_text()
    (table, *_) = tmp_path.glob("wandb/offline-run-*/files/media/table/**/*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["class", "dimension 0", "dimension 1", "dimension 2"]
    assert content["data"][1] == ["b", 0.0, 1.0, 0.0]
    (folder,) = tmp_path.glob("wandb/offline-run-*/files/ncp_log")
    check_attached_log(folder)
    # Without this record, `wandb sync` would not upload the files.
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    parsed = map(pb.Record.FromString, level_db_records(path.read_bytes()))
    named = {item.path for record in parsed for item in record.files.files}
    assert {f"ncp_log/{file.name}" for file in folder.iterdir()} <= named


@pytest.mark.parametrize("synced", [True, False])
def test_tensorboard_that_wandb_does_not_sync_is_reported(
    synced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SimpleNamespace(sync_tensorboard=synced)
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(run=SimpleNamespace(settings=settings))
    )
    assert len(unsynced(tmp_path, [])) == synced
    assert unsynced(None, [ncp.MemoryWriter()]) == []
    sink = ncp.WandbSink(SimpleNamespace(log=print, define_metric=lambda *a, **k: None))
    assert unsynced(tmp_path, [sink]) == []
    monkeypatch.delitem(sys.modules, "wandb")
    assert unsynced(tmp_path, []) == []


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = importlib.import_module("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    sink = ncp.MlflowSink(client=client)
    log(sink)
    run = client.get_run(sink.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.5", "cell.units": "8", "name": "cfc"}
    points = [(m.step, m.value) for m in client.get_metric_history(sink.run_id, "train/loss")]
    assert points == [(1, 1.0), (2, 0.5)]
    assert run.data.metrics["attribution/share _hr__low"] == 0.25
    assert "odd" not in run.data.metrics
    assert [f.path for f in client.list_artifacts(sink.run_id, "attribution/heatmap")] == [
        "attribution/heatmap/000000001.png",
        "attribution/heatmap/000000002.png",
    ]
    folder = Path(client.download_artifacts(sink.run_id, "monitor/run.md"))
    assert folder.read_text() == "# <Title>"
    (points,) = client.list_artifacts(sink.run_id, "hidden")
    table = Path(client.download_artifacts(sink.run_id, points.path)).read_text().splitlines()
    assert table[:2] == ["class,dimension 0,dimension 1,dimension 2", "a,1.0,0.0,0.0"]
    check_attached_log(Path(client.download_artifacts(sink.run_id, "ncp_log")))


# ---- files of a tracker's run


class KeepsFiles:
    """A sink of what trackers keep in files."""

    def __init__(self, folder: Path) -> None:
        self._log = AttachedLog(folder)
        self.log_run_config = self._log.add_config
        self.write, self.close = self._log.add, self._log.close


def test_the_files_hold_what_the_log_holds(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((6, 4, 2)).astype(np.float32)
    held_out = ncp.HeldOutBatch(x, targets=x[:, 0, 0])
    with ncp.Monitor(
        Net(), held_out, log_dir=tmp_path / "log", writer=KeepsFiles(tmp_path / "files"), every=2,
        run_config={"seed": 3}, background=False, train_every=1,
    ) as monitor:  # fmt: skip
        for step in range(1, 7):
            monitor.on_step_end(step, loss=1 / step)
    log, files = read_run(tmp_path / "log"), read_run(tmp_path / "files")
    assert len(log.arrays) > 10
    assert len(log.scalars) > 20
    assert files.scalars.keys() == log.scalars.keys()
    for tag, points in log.scalars.items():
        if not tag.startswith("monitor/"):
            assert files.scalars[tag].steps.tolist() == points.steps.tolist(), tag
            np.testing.assert_array_equal(files.scalars[tag].values, points.values, tag)
    assert files.arrays.keys() == log.arrays.keys()
    for tag, steps in log.arrays.items():
        assert files.arrays[tag].keys() == steps.keys()
        for step, values in steps.items():
            np.testing.assert_array_equal(files.arrays[tag][step], values, tag)
    assert files.ci.keys() == log.ci.keys()
    assert files.about == log.about
    assert files.texts["_ncp/findings"] == log.texts["_ncp/findings"]
    assert files.texts["_ncp/fingerprint"] == log.texts["_ncp/fingerprint"]
    assert files.hparams == log.hparams == {"seed": 3}


@pytest.mark.parametrize("snapshots", [10, 300, 3000])
def test_the_files_are_bounded_and_reach_over_the_run(
    tmp_path: Path, snapshots: int, caplog: pytest.LogCaptureFixture
) -> None:
    limit = 100_000
    log = AttachedLog(tmp_path, limit)
    for step in range(1, snapshots + 1):
        log.add(step, [ncp.Array("_ncp/map", np.full(100, step)), ncp.Scalar("a", step)])
    log.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    run = read_run(tmp_path)
    kept = [*run.arrays["_ncp/map"]]
    assert all((run.arrays["_ncp/map"][step] == step).all() for step in kept)
    assert kept[0] == 1
    assert kept[-1] == snapshots
    numbers = run.scalars["a"].steps.tolist()
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == snapshots or snapshots == 3000
    if snapshots == 10:
        assert kept == list(range(1, 11))
    else:
        assert kept[:50] == list(range(1, 51))
        # The last one is kept wherever it comes.
        assert all(after <= 1.5 * before + 1 for before, after in pairwise(kept[:-1]))
    assert len(caplog.records) == (snapshots == 3000)  # of numbers that have no room


def test_what_has_no_place_in_the_files_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AttachedLog(tmp_path, 6000)
    for step in range(1, 10):
        log.add(step, [ncp.Array("_ncp/map", np.zeros(1000)), ncp.Scalar("big", 1e39)])
        log.add(step, [ncp.Text("long", "x" * 1400)])
    log.add(2**63, [ncp.Scalar("a", 1.0)])
    log.close()
    run = read_run(tmp_path)
    assert run.arrays["_ncp/map"].keys() == {1}
    assert run.texts["long"].keys() == {1}
    texts = [record.getMessage() for record in caplog.records]
    for part in (
        "'big' can't be kept: ValueError: 1e+39 is too large",
        "no room for numbers and texts of step 2 any more. Pass a larger max_bytes= than 6,000",
        "pass steps of less than 2**63",
        "no room for arrays of step 9 any more",
    ):
        assert sum(part in text for text in texts) == 1, part
    assert len(texts) == 4
