"""Writers against real files, real processes and a real TensorBoard."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import tensorboardX
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from ncp_callbacks.plots import to_png
from ncp_callbacks.records import (
    Array,
    Embedding,
    Figure,
    Histogram,
    Note,
    Picture,
    Record,
    Scalar,
    Text,
)
from ncp_callbacks.writers import (
    MemoryWriter,
    SummaryWriterAdapter,
    TensorBoardWriter,
    Writer,
    as_writer,
)
from ncp_callbacks.writers.event_sink import EventSink
from ncp_callbacks.writers.writing_thread import WritingThread

ROOT = Path(__file__).parents[1]


# --- reading back


def events(directory: Path) -> list[Event]:
    """All events of a directory's files, checksums verified; a torn last record is left out."""
    found = []
    for path in sorted(directory.glob("*tfevents*")):
        data = path.read_bytes()
        while len(data) >= 12:
            (length,) = struct.unpack("<Q", data[:8])
            if len(data) < 16 + length:
                break
            payload = data[12 : 12 + length]
            assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
            assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked_crc32c(payload),)
            found.append(Event.FromString(payload))
            data = data[16 + length :]
    return found


def values(directory: Path) -> dict[str, list[tuple[int, Summary.Value]]]:
    by_tag: dict[str, list[tuple[int, Summary.Value]]] = {}
    for event in events(directory):
        for value in event.summary.value:
            by_tag.setdefault(value.tag, []).append((event.step, value))
    return by_tag


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [(step, value.simple_value) for step, value in values(directory).get(tag, [])]


def array(value: Summary.Value) -> np.ndarray:
    dtype = {1: "<f4", 2: "<f8"}[value.tensor.dtype]
    shape = [dim.size for dim in value.tensor.tensor_shape.dim]
    return np.frombuffer(value.tensor.tensor_content, dtype).reshape(shape)


# --- writing


def square(data: Any, *, side: float = 1.0) -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure(figsize=(side, side / 2), dpi=100)
    figure.add_axes((0, 0, 1, 1)).imshow(data)
    return figure


def slow(data: float) -> matplotlib.figure.Figure:
    time.sleep(data)
    return square(np.eye(2))


def broken(data: Any) -> matplotlib.figure.Figure:
    raise ZeroDivisionError("this plot is broken")


EDGES = np.array([0.0, 1.0, 2.0, 4.0])


PNG = to_png(square(np.eye(2)))


def one_of_each(step: int) -> list[Record]:
    return [
        Scalar("train/loss", 1 / step),
        Histogram("hidden/speed", np.array([0.5, 1.0, 3.0, 9.0]), EDGES, "In **1/s**."),
        Figure("attribution/heatmap", square, np.eye(4) * step, {"side": 2.0}, "What matters."),
        Text("monitor/run", "# Title\n\n| a | b |\n|--|--|\n| 1 | 2 |"),
        Array("_ncp/map", np.arange(6, dtype=np.float64).reshape(2, 3), "Raw."),
    ]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("ncp_callbacks")]


def script(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    prelude = "from ncp_callbacks.writers import *\nfrom ncp_callbacks.records import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], within: float = 60) -> tuple[str, str]:
    try:
        return process.communicate(timeout=within)
    finally:
        process.kill()


# --- memory


def test_memory_writer() -> None:
    writer = MemoryWriter()
    writer.log_run_config({"lr": 0.1})
    writer.write(1, one_of_each(1))
    writer.write(2, [Scalar("train/loss", 0.5), Note("No backbone."), Picture("p", PNG)])
    writer.flush()
    writer.close()
    assert writer.scalars("train/loss") == [(1, 1.0), (2, 0.5)]
    assert writer.scalars("missing") == []
    assert writer.tags == [
        "train/loss",
        "hidden/speed",
        "attribution/heatmap",
        "monitor/run",
        "_ncp/map",
        "p",
    ]
    assert writer.records[-1] == (2, Picture("p", PNG))
    assert len(writer.records) == 8
    assert (writer.tally.records, writer.tally.figures) == (6, 2)
    assert writer.run_config == {"lr": 0.1}
    assert writer.failure is None


# --- what is in the file


def test_every_kind_of_record(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path / "run")
    for step in (1, 2):
        writer.write(step, one_of_each(step))
    writer.close()
    assert writer.failure is None
    found = values(writer.log_dir)
    assert scalars(writer.log_dir, "train/loss") == [(1, 1.0), (2, 0.5)]

    step, histogram = found["hidden/speed"][1]
    assert step == 2
    assert array(histogram).tolist() == [[0, 1, 1], [1, 2, 1], [2, 4, 2]]
    assert histogram.metadata.plugin_data.plugin_name == "histograms"
    assert histogram.metadata.summary_description == "In **1/s**."

    _, image = found["attribution/heatmap"][0]
    width, height, png = image.tensor.string_val
    assert (width, height, png[:4]) == (b"200", b"100", b"\x89PNG")
    assert image.metadata.plugin_data.plugin_name == "images"
    assert image.metadata.summary_description == "What matters."

    _, text = found["monitor/run"][0]
    assert text.tensor.string_val[0].decode().startswith("# Title")
    assert text.metadata.plugin_data.plugin_name == "text"

    _, raw = found["_ncp/map"][0]
    assert array(raw).dtype == np.float32
    assert array(raw).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert raw.metadata.plugin_data.plugin_name == "ncp_callbacks"

    accumulator = EventAccumulator(str(writer.log_dir)).Reload()
    assert [(e.step, e.value) for e in accumulator.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    tensors = {"hidden/speed", "attribution/heatmap", "monitor/run", "_ncp/map"}
    assert set(accumulator.Tags()["tensors"]) == tensors


def test_a_picture_is_written_as_it_is(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.write(3, [Picture("a/b", PNG, "What matters."), Scalar("train/loss", 1.0)])
    writer.write(4, [Figure("a/b", square, np.eye(2), {}, "What matters.")])
    writer.close()
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    found = accumulator.Tensors("a/b")
    assert [event.step for event in found] == [3, 4]
    for event in found:
        assert list(event.tensor_proto.string_val) == [b"100", b"50", PNG]
    metadata = accumulator.SummaryMetadata("a/b")
    assert metadata.plugin_data.plugin_name == "images"
    assert metadata.summary_description == "What matters."
    assert writer.tally.figures == 2


def test_head_of_the_file_and_one_event_per_step(tmp_path: Path) -> None:
    times = iter([1000.0, 1001.0, 1002.5])
    now = [0.0]

    def clock() -> float:
        now[0] = next(times, now[0])
        return now[0]

    writer = TensorBoardWriter(tmp_path, clock=clock)
    (name,) = os.listdir(tmp_path)
    assert re.fullmatch(r"events\.out\.tfevents\.0000001000\..+\.\d+\.\w+\.ncp", name)
    called_at = clock()
    writer.write(7, [Scalar(f"group/{i}", i) for i in range(50)])
    writer.close()
    version, start, step = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 0)
    assert len(step.summary.value) == 50
    assert step.step == 7
    assert step.wall_time >= called_at


def test_wall_time_is_that_of_the_call(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    before = time.time()
    writer.write(1, [Figure("slow", slow, 0.4), Scalar("a", 1.0)])
    after = time.time()
    writer.close()
    times = [event.wall_time for event in events(tmp_path) if event.HasField("summary")]
    assert len(times) == 2
    assert all(before <= t <= after for t in times)


def test_histogram_of_non_finite_and_of_nothing(tmp_path: Path, log: Any) -> None:
    writer = TensorBoardWriter(tmp_path)
    bad = np.array([np.nan, np.inf, -np.inf, 0.5], dtype=np.float32)
    writer.write(1, [Histogram("some", bad, EDGES), Histogram("none", bad[:3], EDGES)])
    writer.write(2, [Histogram("some", bad[3:], EDGES), Histogram("none", bad[:0], EDGES)])
    writer.write(3, [Histogram("edges", bad, EDGES[::-1]), Note("Said elsewhere.")])
    writer.close()
    found = values(tmp_path)
    assert [array(v)[:, 2].tolist() for _, v in found["some"]] == [[1, 0, 0], [1, 0, 0]]
    assert scalars(tmp_path, "some_nonfinite") == [(1, 3.0)]
    assert scalars(tmp_path, "none_nonfinite") == [(1, 3.0)]
    assert set(found) == {"some", "some_nonfinite", "none_nonfinite"}
    assert "increasing" in log.text


def test_non_finite_scalars_are_written(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.write(1, [Scalar("nan", float("nan")), Scalar("inf", float("inf"))])
    writer.close()
    assert np.isnan(scalars(tmp_path, "nan")[0][1])
    assert scalars(tmp_path, "inf") == [(1, np.inf)]


def test_what_float32_cannot_hold_is_lost_alone_and_reported_once(tmp_path: Path, log: Any) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in (1, 2):
        writer.write(
            step,
            [
                Scalar("big", 1e300),
                Scalar("bounds", 1.0, ci=(-1e39, 2.0)),
                Array("_ncp/big", np.array([1.0, -1e200, np.inf])),
                Scalar("fits", 3.4e38),
                Scalar("inf", float("inf")),
            ],
        )
    writer.close()
    assert not {"big", "bounds", "_ncp/big"} & set(values(tmp_path))
    assert scalars(tmp_path, "fits")[0][1] == np.float32(3.4e38)
    assert scalars(tmp_path, "inf") == [(1, np.inf), (2, np.inf)]
    assert writer.failed_records == 6
    assert len(log.records) == 3
    assert "Scalar 'big' can't be logged" in log.text
    assert "1e+300 is too large" in log.text
    assert "Array '_ncp/big' can't be logged" in log.text
    assert "1e+200 is too large" in log.text


def test_a_step_beyond_64_bits_loses_its_own_records(tmp_path: Path, log: Any) -> None:
    writer = TensorBoardWriter(tmp_path)
    steps = [1, 2**63, -(2**63) - 1, 10**30, 2**63 - 1, -(2**63), 5]
    for value, step in enumerate(steps):
        writer.write(step, [Scalar("a", value), Scalar("b", value)])
    writer.write(2**63, [Picture("p", PNG), Figure("f", square, np.eye(2))])
    writer.close()
    assert writer.failure is None
    kept = [(1, 0), (2**63 - 1, 4), (-(2**63), 5), (5, 6)]
    assert scalars(tmp_path, "a") == scalars(tmp_path, "b") == kept
    read = EventAccumulator(str(tmp_path), purge_orphaned_data=False).Reload().Scalars("a")
    assert [(event.step, event.value) for event in read] == kept
    # The last records count too, of which some say how many failed before.
    assert writer.failed_records >= 8
    assert not {"p", "f"} & set(values(tmp_path))
    assert log.text.count("of step 9223372036854775808 are lost: pass steps of less than") == 1
    assert len(log.records) == 1


def test_lone_surrogates_are_replaced(tmp_path: Path, log: Any) -> None:
    lone = "caf\udce9"
    writer = TensorBoardWriter(tmp_path)
    writer.log_run_config({lone: lone, "nested": {lone: 1}, "list": [lone]})
    records: list[Record] = [
        Scalar(f"s/{lone}", 1.0, lone),
        Histogram(f"h/{lone}", np.ones(3), EDGES, lone),
        Text(f"t/{lone}", f"# {lone}"),
        Array(f"a/{lone}", np.ones(2), lone),
        Picture(f"p/{lone}", PNG, lone),
        Figure(f"f/{lone}", square, np.eye(2), {}, lone),
        Embedding(f"e/{lone}", np.eye(3), {lone: [lone, "b", "c"]}),
    ]
    writer.write(1, records)
    writer.close()
    assert writer.failure is None
    assert writer.failed_records == 0
    assert log.text == ""
    found = values(tmp_path)
    assert {tag for tag in found if "hparams" not in tag} == {f"{kind}/caf_" for kind in "shtapf"}
    (text,) = [value for _, value in found["t/caf_"]]
    assert text.tensor.string_val == [b"# caf?"]
    assert text.metadata.display_name == "t/caf?"
    assert found["f/caf_"][0][1].metadata.summary_description == "caf?"
    start = found["_hparams_/session_start_info"][0][1].metadata.plugin_data.content
    hparams = HParamsPluginData.FromString(start).session_start_info.hparams
    assert {key: value.string_value for key, value in hparams.items()} == {
        "caf?": "caf?",
        "nested.caf?": "",
        "list": "['caf\\udce9']",
    }
    (labels,) = (tmp_path / "projector").glob("*.metadata.tsv")
    assert labels.read_text().splitlines()[:2] == ["caf?\tpoint", "caf?\t0"]


MADE: list[Callable[[Any], Record]] = [
    lambda tag: Scalar(tag, 1.0),
    lambda tag: Histogram(tag, np.ones(3), EDGES),
    lambda tag: Figure(tag, square, np.eye(2)),
    lambda tag: Picture(tag, PNG),
    lambda tag: Text(tag, "text"),
    lambda tag: Array(tag, np.ones(3)),
    lambda tag: Embedding(tag, np.eye(3)),
]


@pytest.mark.parametrize("make", MADE)
def test_tags_are_checked_where_a_record_is_made(make: Callable[[Any], Record]) -> None:
    for wrong in (5, None, b"bytes", ("a", "b")):
        with pytest.raises(TypeError, match=rf"{re.escape(repr(wrong))}.*pass a str"):
            make(wrong)
    with pytest.raises(ValueError, match="empty: pass a name"):
        make("")
    assert make(" ").tag == " "


def test_a_picture_is_a_png() -> None:
    with pytest.raises(TypeError, match="'p' is a str: pass the bytes of a PNG file"):
        Picture("p", "path.png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'p' is not a PNG"):
        Picture("p", b"\xff\xd8\xff\xe0")


def test_tags_are_cleaned_and_stay_apart(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in (1, 2):
        writer.write(
            step,
            [
                Scalar("in/heart rate (bpm)", 1),
                Scalar("in/heart_rate [bpm]", 2),
                Scalar("/ok-1.5/x", 3),
                Scalar("/", 4),
                Text("/ok-1.5/x", "the same tag, other data"),
            ],
        )
    writer.close()
    found = values(tmp_path)
    assert {tag: [v.simple_value for _, v in points] for tag, points in found.items()} == {
        "in/heart_rate__bpm_": [1, 1],
        "in/heart_rate__bpm__2": [2, 2],
        "ok-1.5/x": [3, 3],
        "_": [4, 4],
        "ok-1.5/x_2": [0, 0],
    }
    assert found["ok-1.5/x_2"][0][1].metadata.display_name == "/ok-1.5/x"


def test_run_config(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    config = {
        "lr": np.float32(0.5),
        "steps": 100,
        "compiled": True,
        "cell": {"name": "CfC", "wiring": {"units": 32}, "empty": {}},
        "seed": None,
        "layers": [1, 2],
        "limit": float("inf"),
        "big": 10**400,
    }
    writer.log_run_config(config)
    writer.write(1, [Scalar("a", 1.0)])
    writer.close()
    found = values(tmp_path)
    assert not [tag for tag in found if "experiment" in tag]

    def content(tag: str) -> HParamsPluginData:
        ((_, value),) = found[tag]
        assert value.metadata.plugin_data.plugin_name == "hparams"
        return HParamsPluginData.FromString(value.metadata.plugin_data.content)

    hparams = content("_hparams_/session_start_info").session_start_info.hparams
    read = {key: getattr(v, v.WhichOneof("kind")) for key, v in hparams.items()}
    assert read == {
        "lr": 0.5,
        "steps": 100,
        "compiled": True,
        "cell.name": "CfC",
        "cell.wiring.units": 32,
        "cell.empty": "{}",
        "seed": "None",
        "layers": "[1, 2]",
        "limit": "inf",
        "big": str(10**400),
    }
    assert content("_hparams_/session_end_info").session_end_info.status == 1
    assert events(tmp_path)[-1].summary.value[0].tag == "_hparams_/session_end_info"


# --- the directory


def test_runs_are_kept_apart(tmp_path: Path) -> None:
    used = []
    for _ in range(3):
        writer = TensorBoardWriter(tmp_path / "runs" / "cfc")
        writer.close()
        used.append(writer.log_dir.name)
    assert used == ["cfc", "cfc-2", "cfc-3"]
    assert [len(os.listdir(tmp_path / "runs" / name)) for name in used] == [1, 1, 1]


def test_a_directory_without_events_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    writer = TensorBoardWriter(tmp_path)
    writer.close()
    assert writer.log_dir == tmp_path


@pytest.mark.parametrize("below", ["", "sub/run"])
def test_log_dir_is_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"(?s)file.*Pass another, such as log_dir="):
        TensorBoardWriter(tmp_path / "file" / below)


@pytest.mark.parametrize("first_step", [None, 5])
def test_log_dir_not_writable(tmp_path: Path, first_step: int | None, monkeypatch: Any) -> None:
    def denied(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # The superuser, as whom containers run tests, may write anywhere.
    monkeypatch.setattr("io.FileIO", denied)
    with pytest.raises(
        PermissionError, match=r"can't be written to.*Make it writable, or pass another"
    ):
        TensorBoardWriter(tmp_path, first_step=first_step)


@pytest.mark.parametrize("first_step", [None, 5])
@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path: Path, exists: bool, first_step: int | None) -> None:
    if exists:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "mine.txt").write_text("mine")
    # A limit on the size of files: the file can be made, and then not written to.
    code = """
        import resource, signal, sys
        import ncp_callbacks.writers.event_file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        try:
            TensorBoardWriter(sys.argv[1] + "/runs/cfc/1", first_step=eval(sys.argv[2]))
        except OSError as error:
            print(error.errno, error)
    """
    stdout, stderr = finish(script(code, tmp_path, first_step))
    assert stderr == ""
    assert stdout.startswith(f"{errno.EFBIG} ")
    assert f"log_dir '{tmp_path}/runs/cfc/1'" in stdout
    assert "Raise the limit on the size of files (ulimit -f), or pass another" in stdout
    left = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))]
    assert left == (["runs", "runs/mine.txt"] if exists else [])


def test_the_next_run_after_a_full_disk_gets_the_name(tmp_path: Path, monkeypatch: Any) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("io.FileIO", Full)
        with pytest.raises(OSError, match=r"No space left on device") as caught:
            TensorBoardWriter(tmp_path / "run")
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path / "run") in str(caught.value)
    writer = TensorBoardWriter(tmp_path / "run")
    writer.close()
    assert writer.log_dir == tmp_path / "run"


def test_a_link_to_nowhere_is_named_and_left(tmp_path: Path) -> None:
    (tmp_path / "scratch").symlink_to(tmp_path / "not mounted")
    for below in ("", "run"):
        with pytest.raises(
            NotADirectoryError, match=r"is a link to .*not mounted.*, which doesn.t exist"
        ):
            TensorBoardWriter(tmp_path / "scratch" / below)
    assert (tmp_path / "scratch").is_symlink()
    assert len(list(tmp_path.iterdir())) == 1


def test_first_step_beyond_64_bits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"first_step=9223372036854775808: pass"):
        TensorBoardWriter(tmp_path / "run", first_step=2**63)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exists", [False, True])
def test_processes_starting_together_share_nothing(tmp_path: Path, exists: bool) -> None:
    run = tmp_path / "run"
    code = """
        import sys, time
        import ncp_callbacks.writers.event_file
        print("ready", flush=True)
        start = float(sys.stdin.readline())
        for i in range(20):
            while time.time() < start + 0.02 * i: pass
            TensorBoardWriter(f"{sys.argv[1]}/{i}").close()
    """
    for i in range(20 if exists else 0):
        (run / str(i)).mkdir(parents=True)
    processes = [script(code, run) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start = time.time() + 0.2
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{start}\n")
        process.stdin.flush()
    for process in processes:
        assert finish(process)[1] == ""
    files = [list(directory.iterdir()) for directory in run.iterdir()]
    assert sum(map(len, files)) == 40
    assert max(map(len, files)) == 1


def test_directory_being_claimed_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".ncp_callbacks-claim").touch()
    writer = TensorBoardWriter(tmp_path / "run")
    writer.close()
    assert writer.log_dir.name == "run-2"


def test_resumed_file_comes_after_all_others(tmp_path: Path) -> None:
    names: list[str] = []
    for number in range(4):
        first_step = 10 * number if number else None
        writer = TensorBoardWriter(tmp_path, first_step=first_step, clock=lambda: 1000.0)
        writer.close()
        (new,) = set(os.listdir(tmp_path)) - set(names)
        names.append(new)
    assert names == sorted(names)


# --- a real TensorBoard


class Server:
    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address

    def get(self, path: str, body: Any = None, **query: object) -> Any:
        url = f"{self.address}/data/{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            content = answer.read()
        return json.loads(content) if "json" in answer.headers["Content-Type"] else content

    def eventually(self, path: str, holds: Callable[[Any], bool], **query: object) -> Any:
        """Loading goes on while the server already answers."""
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                answer = self.get(path, **query)
                if holds(answer):
                    return answer
            assert time.monotonic() < deadline, f"{path}: {answer}"
            time.sleep(0.1)

    def steps(self, run: str, tag: str) -> list[int]:
        points = self.get("plugin/scalars/scalars", run=run, tag=tag)
        return [step for _, step, _ in points]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("logs")
    writer = TensorBoardWriter(logs / "full")
    writer.log_run_config({"lr": 0.01, "cell": {"units": 32}})
    for step in (1, 2, 3):
        writer.write(step, one_of_each(step))
    writer.close()

    other = TensorBoardWriter(logs / "other")
    other.log_run_config({"lr": 0.02, "dropout": None})
    other.write(1, [Scalar("train/loss", 0.25)])
    other.close()

    mine = tensorboardX.SummaryWriter(str(logs / "shared"))
    adapter = as_writer(mine)
    for step in (1, 2, 3):
        mine.add_scalar("mine", step, step)
        adapter.write(step, one_of_each(step))
    adapter.close()
    mine.close()

    for name in ("resumed", "resumed_foreign"):
        if name == "resumed":
            first: Any = TensorBoardWriter(logs / name)
            for step in range(1, 11):
                first.write(step, [Scalar("train/loss", step)])
        else:
            first = tensorboardX.SummaryWriter(str(logs / name))
            for step in range(1, 11):
                first.add_scalar("train/loss", step, step)
        first.close()
        for first_step in (6, 4) if name == "resumed" else (4,):
            again = TensorBoardWriter(logs / name, first_step=first_step)
            for step in range(first_step, 9):
                again.write(step, [Scalar("train/loss", 100 * first_step + step)])
            again.close()
    return logs


@pytest.fixture(scope="module", params=["true", "false"], ids=["fast", "slow"])
def server(logs: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0"]
    command += ["--host", "127.0.0.1", f"--load_fast={request.param}", "--reload_interval", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            found = re.search(r"http://[\d.:]+", line)
            if found:
                break
        else:
            pytest.fail("TensorBoard ended")
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        reader.start()
        server = Server(process, found[0])
        server.eventually("runs", lambda runs: len(runs) == 5)
        server.eventually("plugin/scalars/tags", lambda tags: len(tags) == 5)
        time.sleep(1)
        yield server
    finally:
        process.terminate()
        process.wait(10)
        reader.join(10)
        process.stderr.close()


@pytest.mark.parametrize("run", ["full", "shared"])
def test_tensorboard_shows_every_kind(server: Server, run: str) -> None:
    assert set(server.get("plugin/scalars/tags")[run]) >= {"train/loss"}
    points = server.get("plugin/scalars/scalars", run=run, tag="train/loss")
    assert [(step, value) for _, step, value in points] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]

    tags = server.get("plugin/histograms/tags")[run]
    assert tags["hidden/speed"]["description"] == "<p>In <strong>1/s</strong>.</p>"
    shown = server.get("plugin/histograms/histograms", run=run, tag="hidden/speed")
    assert [step for _, step, _ in shown] == [1, 2, 3]
    assert shown[0][2] == [[0, 1, 1], [1, 2, 1], [2, 4, 2]]
    distributions = server.get("plugin/distributions/distributions", run=run, tag="hidden/speed")
    assert len(distributions) == 3

    assert (
        "What matters."
        in server.get("plugin/images/tags")[run]["attribution/heatmap"]["description"]
    )
    images = server.get("plugin/images/images", run=run, tag="attribution/heatmap", sample=0)
    assert [image["step"] for image in images] == [1, 2, 3]
    png = server.get(
        "plugin/images/individualImage", **dict(urllib.parse.parse_qsl(images[0]["query"]))
    )
    assert struct.unpack(">II", png[16:24]) == (200, 100)

    assert "monitor/run" in server.get("plugin/text/tags")[run]
    text = server.get("plugin/text/text", run=run, tag="monitor/run")[0]["text"]
    assert "<h1>Title</h1>" in text
    assert "<td>1</td>" in text

    series = server.get("plugin/timeseries/tags")
    assert "hidden/speed" in series["histograms"]["tagDescriptions"]
    assert "_ncp/map" not in json.dumps(series)


@pytest.mark.parametrize("run", ["resumed", "resumed_foreign"])
def test_tensorboard_shows_no_step_twice_after_resuming(server: Server, run: str) -> None:
    points = server.get("plugin/scalars/scalars", run=run, tag="train/loss")
    expected = [(1, 1), (2, 2), (3, 3)] + [(step, 400 + step) for step in range(4, 9)]
    assert [(step, value) for _, step, value in points] == expected


def test_tensorboard_shows_hyper_parameters_of_all_runs(server: Server) -> None:
    info = {info["name"] for info in server.get("plugin/hparams/experiment", {})["hparamInfos"]}
    assert info >= {"lr", "cell.units", "dropout"}
    query = {
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = server.get("plugin/hparams/session_groups", query)["sessionGroups"]
    found = {group["sessions"][0]["name"]: group for group in groups}
    assert found["full"]["hparams"] == {"lr": 0.01, "cell.units": 32}
    assert found["other"]["hparams"] == {"lr": 0.02, "dropout": "None"}
    assert {group["sessions"][0]["status"] for group in found.values()} == {"STATUS_SUCCESS"}


# --- ends of a process


def test_killed_process_keeps_all_but_the_last_seconds(tmp_path: Path) -> None:
    process = script(
        """
        import sys, time
        writer = TensorBoardWriter(sys.argv[1], flush_seconds=0.2)
        for step in range(1, 1000000):
            writer.write(step, [Scalar("a", step)])
            if step % 10 == 0: print(step, time.time(), flush=True)
            time.sleep(0.002)
        """,
        tmp_path,
    )
    assert process.stdout is not None
    lines: list[list[str]] = []
    while len(lines) < 60:
        lines.append(process.stdout.readline().split())
    killed = time.time()
    process.send_signal(signal.SIGKILL)
    finish(process)
    safe = max(int(step) for step, when in lines if float(when) < killed - 0.5)
    written = [step for step, _ in scalars(tmp_path, "a")]
    assert written == list(range(1, len(written) + 1))
    assert len(written) >= safe > 50


def test_sparse_records_reach_the_disk_at_once(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, flush_seconds=60)
    writer.write(1, [Scalar("a", 1)])
    deadline = time.monotonic() + 5
    while not scalars(tmp_path, "a"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    writer.write(2, [Scalar("a", 2)])
    time.sleep(0.1)
    assert len(scalars(tmp_path, "a")) == 1
    writer.flush()
    assert len(scalars(tmp_path, "a")) == 2
    writer.close()


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ("", ""),
        ("raise RuntimeError('training died')", "training died"),
        ("del writer; import gc; gc.collect()", ""),
        ("sys.exit(3)", ""),
        ("writer.close(); writer.close(); writer.write(9, [Scalar('a', 9)])", ""),
    ],
)
def test_exit_without_close_loses_nothing(tmp_path: Path, end: str, error: str) -> None:
    process = script(
        f"""
        import sys
        def plot(data):
            import matplotlib.figure
            figure = matplotlib.figure.Figure((1, 1))
            figure.add_subplot().plot(data)
            return figure
        writer = TensorBoardWriter(sys.argv[1], flush_seconds=60)
        for step in range(1, 501):
            records = [Scalar("a", step)]
            if step % 100 == 0: records.append(Figure("f", plot, [1, 2, step]))
            writer.write(step, records)
        {end}
        """,
        tmp_path,
    )
    _, stderr = finish(process)
    assert error in stderr
    assert error or not stderr
    assert [step for step, _ in scalars(tmp_path, "a")] == list(range(1, 501))
    assert [step for step, _ in values(tmp_path)["f"]] == [100, 200, 300, 400, 500]


def test_what_exit_handlers_log_is_written(tmp_path: Path) -> None:
    process = script(
        """
        import atexit, sys
        from ncp_callbacks.plots import plot_feature_importance
        def late():
            for step in (4, 5):
                picture = Figure("f", plot_feature_importance, [[step, 1.0]])
                writer.write(step, [Scalar("a", step), picture])
        atexit.register(late)  # Before the log is opened, so that it runs after the log's own.
        writer = TensorBoardWriter(sys.argv[1], flush_seconds=60)
        writer.log_run_config({"lr": 0.1})
        for step in (1, 2, 3):
            writer.write(step, [Scalar("a", step)])
        writer.write(3, [Figure("f", plot_feature_importance, [[3, 1.0]])])
        """,
        tmp_path,
    )
    _, stderr = finish(process)
    assert stderr == ""
    assert scalars(tmp_path, "a") == [(step, step) for step in range(1, 6)]
    assert [step for step, _ in values(tmp_path)["f"]] == [3, 4, 5]
    assert len(values(tmp_path)["_hparams_/session_end_info"]) == 1


def test_forked_child_leaves_the_file_alone(tmp_path: Path) -> None:
    process = script(
        """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, of forks
        writer = TensorBoardWriter(sys.argv[1], flush_seconds=60)
        for step in range(1, 4): writer.write(step, [Scalar("a", step)])
        child = os.fork()
        writer.write(4, [Scalar("a", 4 if child else -4)])
        writer.flush()
        if not child:
            writer.close()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        writer.write(5, [Scalar("a", 5)])
        """,
        tmp_path,
    )
    assert finish(process)[1] == ""
    assert scalars(tmp_path, "a") == [(step, step) for step in range(1, 6)]
    assert sum(event.HasField("session_log") for event in events(tmp_path)) == 1


def test_forked_child_can_exit_while_another_thread_held_the_lock(tmp_path: Path) -> None:
    process = script(
        """
        import os, sys, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, of forks
        writer = TensorBoardWriter(sys.argv[1], flush_seconds=60)
        writer.write(1, [Scalar("a", 1)])
        held, enough = threading.Event(), threading.Event()
        def hold():
            with writer._background._lock:
                held.set()
                enough.wait()
        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        child = os.fork()
        if not child:
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        enough.set()
        holder.join()
        writer.write(2, [Scalar("a", 2)])
        """,
        tmp_path,
    )
    assert finish(process)[1] == ""
    assert scalars(tmp_path, "a") == [(1, 1), (2, 2)]


# --- trouble


def test_full_disk_stops_the_writer_only(tmp_path: Path) -> None:
    process = script(
        """
        import resource, signal, sys, time
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        writer = TensorBoardWriter(sys.argv[1], flush_seconds=0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        slowest = 0
        for step in range(1, 401):
            before = time.perf_counter()
            writer.write(step, [Scalar("a", step)])
            slowest = max(slowest, time.perf_counter() - before)
            time.sleep(0.001)
        before = time.perf_counter()
        writer.flush(); writer.close()
        assert time.perf_counter() - before < 1, "hung"
        print(type(writer.failure).__name__, writer.failure.errno, slowest)
        """,
        tmp_path,
    )
    stdout, stderr = finish(process)
    name, number, slowest = stdout.split()
    assert (name, int(number)) == ("OSError", errno.EFBIG)
    assert float(slowest) < 0.5
    assert stderr.count("logging stopped after step") == 1
    assert stderr.count("Traceback") == 1
    assert "training goes on" in stderr
    written = scalars(tmp_path, "a")
    assert 0 < len(written) < 400
    assert written == [(step, step) for step in range(1, len(written) + 1)]


def test_deleted_directory_stops_the_writer(tmp_path: Path, log: Any) -> None:
    writer = TensorBoardWriter(tmp_path / "run", flush_seconds=0.01)
    writer.write(1, [Scalar("a", 1)])
    writer.flush()
    assert writer.failure is None
    for file in writer.log_dir.iterdir():
        file.unlink()
    writer.log_dir.rmdir()
    writer.write(2, [Scalar("a", 2)])
    writer.flush()
    assert isinstance(writer.failure, FileNotFoundError)
    for step in range(3, 50):
        writer.write(step, [Scalar("a", step)])
    writer.close()
    assert log.text.count("logging stopped after step 2, and training goes on") == 1


def test_slow_figures_are_dropped_and_counted_scalars_are_not(tmp_path: Path, log: Any) -> None:
    writer = TensorBoardWriter(tmp_path, flush_seconds=0.05, max_figures=4)
    for step in range(1, 101):
        figures = [Figure(tag, slow, 0.05) for tag in ("a", "b")]
        writer.write(step, [*figures, Scalar("loss", step)])
        time.sleep(0.005)
    writer.close()
    assert scalars(tmp_path, "loss") == [(step, step) for step in range(1, 101)]
    found = values(tmp_path)
    assert 2 <= len(found["a"]) < 50
    assert [step for step, _ in found["a"]] == [step for step, _ in found["b"]]
    assert writer.dropped_figures == 200 - 2 * len(found["a"])
    counts = [count for _, count in scalars(tmp_path, "monitor/dropped_figures")]
    assert counts == sorted(counts)
    assert counts[0] == 2
    assert counts[-1] == writer.dropped_figures
    assert writer.dropped_records == 0
    assert log.text.count("faster than they are drawn") == 1


def test_scalars_do_not_wait_for_figures(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, flush_seconds=0.05)
    writer.write(1, [*(Figure(f"f{i}", slow, 0.3) for i in range(5)), Scalar("a", 1)])
    writer.write(2, [Scalar("a", 2)])
    time.sleep(0.6)
    assert scalars(tmp_path, "a") == [(1, 1), (2, 2)]
    assert "f4" not in values(tmp_path)
    writer.flush()
    assert "f4" in values(tmp_path)
    writer.close()


def test_figures_are_drawn_while_numbers_wait(tmp_path: Path) -> None:
    drawn = threading.Event()

    def plot(data: Any) -> matplotlib.figure.Figure:
        drawn.set()
        return square(data)

    writer = TensorBoardWriter(tmp_path, flush_seconds=60)
    for step in (1, 2, 3):
        writer.write(step, [Scalar("a", step)])
        time.sleep(0.1)
    writer.write(4, [Scalar("a", 4), Figure("f", plot, np.eye(2))])
    assert drawn.wait(5)
    writer.close()


def test_a_failing_plot_loses_one_figure_and_is_reported_once(tmp_path: Path, log: Any) -> None:
    writer = TensorBoardWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(
            step,
            [Figure("bad", broken, None), Figure("good", square, np.eye(2)), Scalar("a", step)],
        )
        writer.flush()
    broken_later = Scalar("a", 4)
    object.__setattr__(broken_later, "value", "no number")
    writer.write(4, [broken_later, Scalar("b", 4)])
    writer.close()
    assert writer.failure is None
    assert writer.failed_records == 4
    found = values(tmp_path)
    assert len(found["good"]) == 3
    assert "bad" not in found
    assert scalars(tmp_path, "b") == [(4, 4)]
    assert scalars(tmp_path, "monitor/failed_records") == [(2, 1), (3, 2), (4, 3)]
    assert log.text.count("ZeroDivisionError: this plot is broken") == 1
    assert log.text.count("can't draw the picture 'bad'") == 1
    assert log.text.count("the Scalar 'a' can't be logged") == 1


class StuckSink:
    """A disk that never answers."""

    log_dir = None

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.closed = threading.Event()

    def write(self, event: Event) -> None:
        self.answers.wait(30)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed.set()


def test_stuck_thread_blocks_nobody_and_memory_is_bounded(log: Any) -> None:
    sink = StuckSink()
    writer = WritingThread(EventSink(sink), max_bytes=1 << 20, timeout=0.2)
    slowest = 0.0
    big = np.zeros(10_000)
    picture = Picture("p", PNG + bytes(80_000))
    for step in range(1, 1001):
        before = time.perf_counter()
        writer.put(step, 0.0, [Scalar("a", step), picture, Array("b", big)])
        slowest = max(slowest, time.perf_counter() - before)
    assert slowest < 5  # The disk would block for 30 seconds.
    assert 1 << 19 < writer._bytes <= 1 << 20
    assert writer.dropped[Picture] > 980
    assert writer.dropped[Array] == writer.dropped[Scalar] > 980
    # Pictures leave the other half to numbers.
    assert writer.dropped[Picture] > writer.dropped[Array]
    assert log.text.count("some are dropped from step") == 1

    before = time.perf_counter()
    writer.flush()
    writer.close()
    writer.close()
    assert time.perf_counter() - before < 2.5
    assert isinstance(writer.failure, TimeoutError)
    assert not writer._waiting
    sink.answers.set()
    assert sink.closed.wait(5)
    writer._thread.join(5)


def test_what_exceeds_the_memory_by_itself_is_written(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, max_bytes=1000)
    big = np.zeros((100, 100))
    writer.write(1, [Figure("f", square, big), Array("a", big), Scalar("s", 1)])
    writer.close()
    assert set(values(tmp_path)) == {"f", "a", "s"}


def test_more_figures_at_one_step_than_may_wait(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, max_figures=2)
    writer.write(1, [Figure(f"f{i}", square, np.eye(2)) for i in range(5)])
    writer.close()
    assert len(values(tmp_path)) == 5
    assert writer.dropped_figures == 0


# --- resources and cost


def open_files() -> set[str]:
    found = set()
    for number in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{number} {os.fstat(int(number)).st_ino}")
    return found


def test_close_releases_threads_and_files(tmp_path: Path) -> None:
    TensorBoardWriter(tmp_path / "imports").close()
    threads, files = threading.active_count(), open_files()
    for _ in range(20):
        writer = TensorBoardWriter(tmp_path / "run")
        writer.write(1, one_of_each(1)[:2])
        writer.close()
        writer.close()
        writer.flush()
        writer.write(2, [Scalar("late", 1)])
    assert threading.active_count() == threads
    assert open_files() == files
    assert "late" not in values(writer.log_dir)


def test_forgotten_writer_ends_its_thread(tmp_path: Path) -> None:
    files = open_files()
    writer = TensorBoardWriter(tmp_path, flush_seconds=0.1)
    writer.write(1, [Scalar("a", 1)])
    thread = writer._background._thread
    del writer
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    assert open_files() == files
    assert scalars(tmp_path, "a") == [(1, 1)]


def test_write_does_next_to_nothing_on_the_callers_thread(tmp_path: Path) -> None:
    caller = threading.get_ident()
    seen: list[int] = []

    def plot(data: Any) -> matplotlib.figure.Figure:
        seen.append(threading.get_ident())
        return square(np.eye(2))

    writer = TensorBoardWriter(tmp_path, flush_seconds=60)
    records: list[Record] = [Scalar(f"group/{i}", i) for i in range(100)]
    records += [Figure("f", plot, np.zeros((100, 100)))]
    writer.write(1, records)
    writer.flush()
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    writer.write(2, records)
    sys.setprofile(None)
    writer.close()
    assert calls < 20 * len(records) + 200
    assert len(seen) == 2
    assert caller not in seen


def test_import_leaves_tensorboardx_for_later() -> None:
    assert finish(script("import sys; print('tensorboardX' in sys.modules)"))[0] == "False\n"


# --- the user's own SummaryWriter


def test_as_writer(tmp_path: Path) -> None:
    memory = MemoryWriter()
    assert as_writer(memory) is memory
    for wrong in (None, str(tmp_path), object()):
        with pytest.raises(TypeError, match=r"Writer.*tensorboardX\.SummaryWriter.*log_dir="):
            as_writer(wrong)


def test_adapter_writes_into_the_users_file_and_leaves_it_open(tmp_path: Path) -> None:
    mine = tensorboardX.SummaryWriter(str(tmp_path))
    adapter = as_writer(mine)
    assert isinstance(adapter, Writer)
    adapter.log_run_config({"lr": 0.1})
    for step in range(1, 101):
        mine.add_scalar("mine", step, step)
        adapter.write(step, [Scalar("ours", step)])
    adapter.write(100, one_of_each(100))
    adapter.flush()
    assert len(scalars(tmp_path, "ours")) == 100
    adapter.close()
    assert adapter.failure is None
    mine.add_scalar("mine", 101, 101)
    mine.close()
    assert len(list(tmp_path.iterdir())) == 1
    assert [step for step, _ in scalars(tmp_path, "mine")] == list(range(1, 102))
    assert set(values(tmp_path)) >= {"_hparams_/session_start_info", "attribution/heatmap"}


def test_adapter_does_not_need_the_summary_writers_thread(tmp_path: Path) -> None:
    mine = tensorboardX.SummaryWriter(str(tmp_path))
    mine.file_writer.event_writer._worker.stop()
    adapter = SummaryWriterAdapter(mine)
    before = time.perf_counter()
    for step in range(1, 101):
        adapter.write(step, [Scalar("ours", step)])
    adapter.close()
    assert time.perf_counter() - before < 2
    assert len(scalars(tmp_path, "ours")) == 100


def test_adapter_after_its_owner_closed(tmp_path: Path, log: Any) -> None:
    mine = tensorboardX.SummaryWriter(str(tmp_path))
    adapter = SummaryWriterAdapter(mine, flush_seconds=0.01)
    mine.close()
    adapter.write(1, [Scalar("ours", 1)])
    adapter.close()
    assert isinstance(adapter.failure, ValueError)
    assert "close it after the monitor" in log.text
    assert len(list(tmp_path.iterdir())) == 1


def test_adapter_of_a_writer_without_a_file(tmp_path: Path) -> None:
    adapter = as_writer(tensorboardX.SummaryWriter(str(tmp_path), write_to_disk=False))
    adapter.write(1, [Scalar("ours", 1)])
    adapter.close()
    assert adapter.failure is None
    assert list(tmp_path.iterdir()) == []


def test_flushing_at_once_does_not_keep_the_lock(tmp_path: Path) -> None:
    writers = [
        TensorBoardWriter(tmp_path / str(i), flush_seconds=0.0, timeout=5.0) for i in range(6)
    ]
    time.sleep(0.3)  # the threads are idle now, and must not ask again and again
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.25
    for step in range(20):
        for writer in writers:
            writer.write(step, [Scalar("a", step)])
            writer.flush()
    for writer in writers:
        writer.close()
        assert writer.failure is None
