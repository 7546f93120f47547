"""Writers to anything: a sink on a thread, several writers at once, and those that raise."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
from small_nets import TwoOutputs

import ncp_callbacks as ncp
from ncp_callbacks.records import Record

HELD_OUT = ncp.HeldOutBatch(np.random.default_rng(0).normal(size=(8, 5, 3)).astype("f4"))


class List:
    """Keep what comes, and the thread it comes on."""

    def __init__(self) -> None:
        self.records: list[tuple[int, Record]] = []
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.config: Any = None

    def write(self, step: int, records: Sequence[Record]) -> None:
        self.threads.add(threading.current_thread().name)
        self.records += [(step, record) for record in records]

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")

    def log_run_config(self, config: Any) -> None:
        self.config = config

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        return [
            (step, r.value)
            for step, r in self.records
            if isinstance(r, ncp.Scalar) and r.tag == tag
        ]


class OnlyWrite:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, step: int, records: Sequence[Record]) -> None:
        self.steps.append(step)


class Failing(List):
    def __init__(self, where: str, error: type[BaseException] = ConnectionError) -> None:
        super().__init__()
        self.where, self.error, self.raised = where, error, 0

    def _fail(self, where: str) -> None:
        if where == self.where:
            self.raised += 1
            raise self.error("the tracker is down")

    def write(self, step: int, records: Sequence[Record]) -> None:
        if step >= 3:
            self._fail("write")

    def flush(self) -> None:
        self._fail("flush")

    def close(self) -> None:
        self._fail("close")

    def log_run_config(self, config: Any) -> None:
        self._fail("config")


class FailingWriter(ncp.Writer):
    """A writer of a user's own, which the monitor calls directly."""

    def __init__(self, where: str) -> None:
        self.failing = Failing(where)

    def write(self, step: int, records: Sequence[Record]) -> None:
        self.failing.write(step, records)

    def flush(self) -> None:
        self.failing.flush()

    def close(self) -> None:
        self.failing.close()

    def arrange(self, callbacks: Any) -> None:
        self.failing._fail("arrange")

    def log_run_config(self, config: Any) -> None:
        self.failing.log_run_config(config)

    @property
    def tally(self) -> Any:
        self.failing._fail("tally")
        return super().tally

    @property
    def failure(self) -> Any:
        self.failing._fail("failure")
        return None


def square(data: Any) -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure(figsize=(1, 1), dpi=50)
    figure.add_axes((0, 0, 1, 1)).imshow(data)
    return figure


def train(writer: Any, **options: Any) -> ncp.Monitor:
    options = {"every": 2, "verbose": False, "background": False, **options}
    with ncp.Monitor(TwoOutputs(), HELD_OUT, "light", writer=writer, **options) as monitor:
        for step in range(1, 7):
            monitor.on_step_end(step, loss=1 / step)
    return monitor


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        new = set(threading.enumerate()) - before
        left = [thread for thread in new if thread.name.startswith("ncp_callbacks")]
        if not left:
            return
        time.sleep(0.01)
    raise AssertionError(left)


# --- a sink


def test_a_sink_gets_records_in_order_on_one_thread_of_its_own() -> None:
    sink = List()
    writer = ncp.BackgroundWriter(sink)
    writer.log_run_config({"lr": 0.5, "cell": {"units": 8}, "list": [1]})
    for step in (1, 2, 3):
        writer.write(step, [ncp.Scalar("a", step), ncp.Text("t", str(step))])
    writer.write(4, [ncp.Figure("f", square, np.eye(2)), ncp.Note("for the monitor")])
    writer.close()
    assert sink.scalars("a") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    (picture,) = [record for _, record in sink.records if isinstance(record, ncp.Picture)]
    assert picture.png.startswith(b"\x89PNG")
    assert sink.config == {"lr": 0.5, "cell.units": 8, "list": "[1]"}
    assert sink.threads == {"ncp_callbacks"}
    assert sink.calls[-1] == "close"
    assert sink.calls.count("close") == 1
    assert writer.failure is None
    assert writer.tally.figures == 1


def test_a_sink_needs_no_other_method() -> None:
    sink = OnlyWrite()
    monitor = train(sink, run_config={"lr": 1})
    assert {2, 4, 6} <= set(sink.steps)
    assert not [note for note in monitor.notes if "fail" in note]


def test_a_slow_sink_is_not_waited_for_and_its_memory_is_bounded(log: Any) -> None:
    go = threading.Event()

    class Slow:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def write(self, step: int, records: Sequence[Record]) -> None:
            go.wait(30)
            self.steps.append(step)

    sink = Slow()
    writer = ncp.BackgroundWriter(sink, max_bytes=2 << 20, timeout=20)
    heard: list[str] = []
    writer.report = heard.append
    for step in range(200):
        writer.write(step, [ncp.Array("_ncp/a", np.zeros(10_000))])
    assert writer.dropped_records > 150
    assert writer._background._bytes <= 1 << 20
    go.set()
    writer.close()
    assert len(sink.steps) == 200 - writer._background.dropped[ncp.Array]
    assert len([line for line in heard if "some are dropped" in line]) == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (List, r"is a class: write List\(\)"),
        (object(), "has no method write"),
        (open, "has no method write"),
    ],
)
def test_what_is_no_sink_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        ncp.BackgroundWriter(wrong)


def test_a_file_is_no_sink(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        with pytest.raises(TypeError, match=r"has the method write\(text.*define write\(step"):
            ncp.BackgroundWriter(file)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="pass a Writer"):
            train(file)


# --- several


def test_several_writers_get_the_same(tmp_path: Path) -> None:
    sink, memory = List(), ncp.MemoryWriter()
    monitor = train([sink, memory], log_dir=tmp_path / "run", run_config={"lr": 2})
    read = ncp.runs.read_run(tmp_path / "run").scalars["train/loss"]
    expected = [(step, 1 / step) for step in (2, 4, 6)]
    assert sink.scalars("train/loss") == memory.scalars("train/loss") == expected
    assert read.steps.tolist() == [2, 4, 6]
    assert read.values == pytest.approx([1 / 2, 1 / 4, 1 / 6], rel=1e-7)
    assert sink.config == memory.run_config == {"lr": 2}
    assert monitor.log_dir == str(tmp_path / "run")
    assert sink.calls[-1] == "close"  # The monitor made its writer.


def test_a_writer_of_the_user_stays_open() -> None:
    sink = List()
    with_own = ncp.BackgroundWriter(sink)
    train([with_own, ncp.MemoryWriter()])
    assert "close" not in sink.calls
    with_own.write(9, [ncp.Scalar("after", 1.0)])
    with_own.close()
    assert sink.scalars("after") == [(9, 1.0)]
    assert sink.calls[-1] == "close"


@pytest.mark.parametrize("writer", [[], ()])
def test_no_writer_at_all(writer: Any) -> None:
    with pytest.raises(TypeError, match="neither log_dir= nor writer= was passed"):
        ncp.Monitor(TwoOutputs(), HELD_OUT, writer=writer)


def test_a_wrong_one_among_several_leaves_nothing_open(tmp_path: Path) -> None:
    sink = List()
    with pytest.raises(TypeError, match=r"builtins\.int"):
        train([sink, 3], log_dir=tmp_path / "run")
    assert sink.calls[-1] == "close"
    assert not (tmp_path / "run").exists()


def test_a_sink_that_is_passed_twice_is_refused(tmp_path: Path) -> None:
    sink = List()
    with pytest.raises(ValueError, match="writer= has this List twice: pass it once"):
        train([sink, sink], log_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sink_that_hangs_is_named_in_the_notes(tmp_path: Path) -> None:
    release = threading.Event()

    class Hangs:
        def write(self, step: int, records: Any) -> None:
            release.wait()

    try:
        with_own = ncp.BackgroundWriter(Hangs(), timeout=0.1)
        monitor = train([with_own, ncp.MemoryWriter()], log_dir=tmp_path / "run")
        assert any("Hangs made no progress for 0.1 s" in note for note in monitor.notes)
        assert any("check what Hangs writes to" in note for note in monitor.notes)
    finally:
        release.set()
        with_own.close()
    run = ncp.runs.read_run(tmp_path / "run")
    assert run.scalars["train/loss"].steps.tolist() == [2, 4, 6]


# --- those that raise


@pytest.mark.parametrize("where", ["write", "flush", "close", "config"])
@pytest.mark.parametrize("error", [ConnectionError, SystemExit])
def test_a_sink_that_raises_is_reported_once_and_dropped(
    where: str, error: Any, log: Any, tmp_path: Path
) -> None:
    sink = Failing(where, error)
    monitor = train([sink], log_dir=tmp_path / "run", run_config={"lr": 1})
    told = [note for note in monitor.notes if "Failing" in note]
    assert len(told) == 1, monitor.notes
    assert f"{error.__name__}: the tracker is down" in told[0]
    assert sink.raised == 1
    assert len([r for r in log.records if "Failing failed" in r.getMessage()]) == 1
    run = ncp.runs.read_run(tmp_path / "run")
    assert run.scalars["train/loss"].steps.tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    "where", ["write", "flush", "close", "config", "arrange", "tally", "failure"]
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_writer_that_raises_is_reported_once_and_dropped(where: str, alone: bool) -> None:
    writer, memory = FailingWriter(where), ncp.MemoryWriter()
    monitor = train(writer if alone else [writer, memory], run_config={"lr": 1}, verbose=True)
    told = [note for note in monitor.notes if "FailingWriter" in note]
    # It is the user's, so that nobody closes it; its counts are for the console only.
    assert len(told) == (where not in ("close", "tally", "failure"))
    if not alone:
        assert memory.scalars("train/loss") == [(2, 1 / 2), (4, 1 / 4), (6, 1 / 6)]


def test_an_interrupt_in_a_writer_passes() -> None:
    class Interrupted(FailingWriter):
        def write(self, step: int, records: Sequence[Record]) -> None:
            if step >= 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Interrupted("nowhere"))


def test_a_sink_that_failed_gets_no_more_pictures(log: Any) -> None:
    drawn: list[int] = []

    def plot(data: Any) -> matplotlib.figure.Figure:
        drawn.append(1)
        return square(data)

    writer = ncp.BackgroundWriter(Failing("write"), flush_seconds=0.01)
    writer.write(3, [ncp.Scalar("a", 1)])
    writer.flush()
    assert isinstance(writer.failure, ConnectionError)
    writer.write(4, [ncp.Figure("f", plot, np.eye(2))])
    writer.close()
    assert drawn == []
