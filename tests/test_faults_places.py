"""The observer's two places: records that are equal, and faults that cost the same in both."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map
from ncps.wirings import AutoNCP
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_faults import both_places, ended, held_out, logged, net, scalars, script, text

import ncp_callbacks as ncp
from ncp_callbacks.callbacks.sets import callback_set
from ncp_callbacks.model import CopyError
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.observer import attached, background
from ncp_callbacks.plotting.redraw import Redrawer
from ncp_callbacks.records import Picture
from ncp_callbacks.run_log import RunLog

FEATURES, STEPS, SEQUENCES = 3, 6, 16


# ---- what both places make of the same training


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.Module, units: int) -> None:
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(units, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        timed = not isinstance(self.rnn, nn.GRU)
        return self.out(self.rnn(x, time_delta)[0] if timed else self.rnn(x))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cfc": lambda: Recurrent(CfC(FEATURES, 8, backbone_units=6), 8),
    "ltc": lambda: Recurrent(LTC(FEATURES, AutoNCP(9, 2, seed=1), ode_unfolds=3), 2),
    "gru": lambda: Recurrent(nn.GRU(FEATURES, 8), 8),
}


def every_callback() -> list[ncp.Callback]:
    callbacks = callback_set("full")
    for callback in callbacks:
        callback.every_nth = 1
    return callbacks


def records_of(name: str, *, background: bool) -> tuple[list[tuple[int, Any]], tuple[str, ...]]:
    mx.random.seed(0)
    model = MODELS[name]()
    mx.eval(model.parameters())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SEQUENCES, STEPS, FEATURES)).astype("f")
    dt = None if name == "gru" else rng.uniform(0.5, 2.0, (SEQUENCES, STEPS)).astype("f")
    y = rng.normal(size=(SEQUENCES, 1)).astype("f")
    optimizer = optim.Adam(1e-2)
    arrays = mx.array(x), None if dt is None else mx.array(dt), mx.array(y)

    def loss(model: nn.Module) -> mx.array:
        return mx.square(model(*arrays[:2])[:, -1, :1] - arrays[2]).mean()

    step_of = nn.value_and_grad(model, loss)
    writer = ncp.MemoryWriter()
    batch = ncp.HeldOutBatch(x, time_delta=dt)
    with ncp.Monitor(
        model, batch, every_callback(), writer=writer, every=1, background=background
    ) as monitor:
        assert monitor.in_background == background
        for step in (1, 2):  # more pictures than these two steps have may not wait
            value, gradients = step_of(model)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            monitor.on_step_end(step, loss=value)
    return writer.records, monitor.notes


def by_kind(records: Sequence[tuple[int, Any]]) -> tuple[dict[Any, Any], dict[Any, bytes]]:
    """Return numbers by step and tag, and PNGs; figures are drawn in their order."""
    numbers: dict[Any, Any] = {}
    pictures: dict[Any, bytes] = {}
    redrawer = Redrawer()
    for step, record in records:
        key = step, type(record).__name__, getattr(record, "tag", "")
        if isinstance(record, ncp.Figure):
            pictures[step, record.tag] = redrawer.png(
                record.tag, record.plot, record.data, record.options
            )
        elif isinstance(record, Picture):
            pictures[step, record.tag] = record.png
        elif not key[2].startswith("monitor/"):
            assert key not in numbers
            numbers[key] = {
                name: (value.dtype, value.shape, value.tobytes())
                if isinstance(value, np.ndarray)
                else repr(value)
                for name, value in vars(record).items()
            }
    return numbers, pictures


@pytest.mark.parametrize("name", MODELS)
def test_every_callback_gives_equal_records_in_both_places(name: str) -> None:
    made = {where: records_of(name, background=where) for where in (False, True)}
    (loop, loop_pictures), (other, other_pictures) = (by_kind(made[w][0]) for w in (False, True))
    assert [key for key in loop if loop[key] != other.get(key)] == []
    assert loop.keys() == other.keys()
    assert len(loop) > 100
    assert [key for key in loop_pictures if loop_pictures[key] != other_pictures.get(key)] == []
    assert loop_pictures.keys() == other_pictures.keys()
    assert len(loop_pictures) > 10
    assert not [note for note in made[True][1] if "failed" in note]
    assert sorted(made[False][1]) == sorted(made[True][1])


# ---- nothing grows


class Talkative(ncp.Callback):
    """Has a new note and a new tag at each analysis."""

    default_name = "talkative"

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Note | ncp.Scalar]:
        yield ncp.Note(f"step {observation.step}: {observation.step / 7:.6f} is a new number")
        yield ncp.Scalar(f"talkative/{observation.step}", 1.0, "One more tag, with a description")


def resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def test_notes_and_guide_are_capped(tmp_path: Path) -> None:
    monitor = ncp.Monitor(
        net(), held_out(), [Talkative()], tmp_path / "run", every=1, background=False
    )
    with monitor:
        for step in range(1, 3001):
            monitor.on_step_end(step, loss=1.0)
            if step == 1500:
                half = resident()
        grown = resident() - half
    assert len(monitor.notes) == 101
    assert monitor.notes[0] == "step 1: 0.142857 is a new number"
    # On a busy machine the monitor has notes of its own: on what it costs, and on pictures.
    assert monitor.notes[-1] in ("and 2900 more", "and 2901 more", "and 2902 more")
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"tensors": 0})
    events.Reload()
    for tag in ("monitor/notes", "monitor/guide"):
        written = [e.tensor_proto.string_val[0] for e in events.Tensors(tag)]
        assert sum(map(len, written)) < 1e6, tag
    assert grown < 20
    assert text(tmp_path / "run").endswith(monitor.notes[-1])


def test_what_has_a_topic_counts_once_however_many_notes_there_are() -> None:
    log = RunLog()
    for number in range(1500):
        log.report(f"message {number}")
        log.report(f"message {number} of a topic", topic="one")
    assert log.notes[:3] == ("message 0", "message 0 of a topic", "message 1")
    assert log.notes[-1] == "and 1401 more"


# ---- pictures that are slow, endless or fail


_released = threading.Event()


def endless(data: Any) -> Any:
    _released.wait(1000.0)
    raise TimeoutError


@pytest.fixture
def released() -> Iterator[None]:
    """Let endless pictures end after a test, so that no thread of it goes on."""
    _released.clear()
    yield
    _released.set()
    end = time.monotonic() + 10
    while any(thread.name == "ncp_callbacks drawing" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def failing(data: Any) -> Any:
    raise ValueError("no such plot")


class Drawing(ncp.Callback):
    default_name = "drawing"

    def __init__(self, plot: Callable[[Any], Any]) -> None:
        super().__init__()
        self.plot = plot

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Figure | ncp.Scalar]:
        yield ncp.Scalar("drawing/step", observation.step)
        yield ncp.Figure("drawing/picture", self.plot, None)


@pytest.mark.parametrize(
    ("plot", "says"),
    [(endless, "it is skipped from now on"), (failing, "ValueError: no such plot")],
    ids=["endless", "failing"],
)
def test_pictures_that_fail_in_the_loop_are_named_and_cost_no_number(
    plot: Callable[[Any], Any], says: str, tmp_path: Path, released: None
) -> None:
    writer = ncp.TensorBoardWriter(tmp_path / "run", timeout=2.0)
    options: dict[str, Any] = {"writer": writer, "every": 1, "background": False}
    with ncp.Monitor(net(), held_out(), [Drawing(plot)], **options) as monitor:
        for step in range(1, 4):
            monitor.on_step_end(step, loss=1.0)
    writer.close()
    named = [n for n in monitor.notes if "drawing/picture" in n and says in n]
    assert len(named) == 1
    assert named[0] in text(tmp_path / "run")
    assert logged(tmp_path / "run", "drawing/step") == [1, 2, 3]


def test_a_warning_that_comes_while_the_log_closes_is_in_the_log(tmp_path: Path) -> None:
    run = tmp_path / "run"
    monitor = ncp.Monitor(net(), held_out(), [Drawing(failing)], run, every=1, background=False)
    with monitor:
        monitor.on_step_end(1, loss=1.0)
    assert "ValueError: no such plot" in monitor.notes[-1]
    assert monitor.notes[-1] in text(run)


@pytest.mark.parametrize(
    ("plot", "says"),
    [(endless, "takes longer than 5 s"), (failing, "ValueError: no such plot")],
    ids=["endless", "failing"],
)
def test_pictures_that_fail_in_the_background_are_named_and_cost_no_number(
    plot: Callable[[Any], Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = functools.partial(background.Start, picture_seconds=5.0)
    monkeypatch.setattr(attached, "Start", start)
    options: dict[str, Any] = {"writer": ncp.MemoryWriter(), "every": 1, "background": True}
    with ncp.Monitor(net(), held_out(), [Drawing(plot)], **options) as monitor:
        for step in range(1, 4):
            monitor.on_step_end(step, loss=1.0)
        end = time.monotonic() + 60
        while not any("drawing/picture" in note for note in monitor.notes):
            assert time.monotonic() < end
            time.sleep(0.05)
    named = [n for n in monitor.notes if "drawing/picture" in n and says in n]
    assert len(named) == 1
    assert scalars(monitor, "drawing/step") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars(monitor, "monitor/dropped_pictures")[-1][1] == 3


# ---- back-pressure


class Slow(ncp.Callback):
    default_name = "slow"

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Scalar]:
        if observation.step:
            time.sleep(self.seconds)
        yield ncp.Scalar("slow/step", observation.step)


def in_background(callbacks: Sequence[ncp.Callback], **options: Any) -> ncp.Monitor:
    options = {"writer": ncp.MemoryWriter(), "every": 1, "background": True, **options}
    return ncp.Monitor(net(), held_out(), callbacks, **options)


def test_no_snapshot_is_lost_to_slow_analyses_and_waiting_is_reported() -> None:
    with in_background([Slow(0.3)]) as monitor:
        for step in range(1, 11):
            monitor.on_step_end(step, loss=1.0)
        observer: Any = monitor._observer.current
        # Six of ten must come back before the last is taken, as four may wait. The first isn't
        # waited for, as the process starts meanwhile; reading the model overlaps with the others.
        assert observer.waited > 1.0
        assert monitor._overhead.seconds >= observer.waited
    assert scalars(monitor, "slow/step") == [(step, float(step)) for step in range(1, 11)]
    assert scalars(monitor, "monitor/dropped_snapshots") == []
    (note,) = [n for n in monitor.notes if "s for the observer, " in n]
    assert "can't keep up: analyse less often" in note


def test_max_overhead_counts_waiting_for_the_observer() -> None:
    with in_background([Slow(0.2)], max_overhead=0.1) as monitor:
        for step in range(1, 61):
            time.sleep(0.02)
            monitor.on_step_end(step, loss=1.0)
    assert [n for n in monitor.notes if "max_overhead" in n]
    assert 4 <= len(scalars(monitor, "slow/step")) < 40
    assert scalars(monitor, "monitor/skipped_snapshots")[-1][1] > 0


def test_an_analysis_that_is_stuck_costs_snapshots_and_not_the_training() -> None:
    began = time.monotonic()
    with in_background([Slow(1000.0)]) as monitor:
        observer: Any = monitor._observer.current
        observer.patience_for_room, observer.patience = 2.0, 3.0
        for step in range(1, 9):
            monitor.on_step_end(step, loss=1.0 / step)
    assert time.monotonic() - began < 25.0
    # Four wait for ever; each of the four others finds no room, the first after the patience.
    assert scalars(monitor, "monitor/dropped_snapshots") == [(s, s - 4.0) for s in range(5, 9)]
    assert [step for step, _ in scalars(monitor, "train/loss")] == list(range(1, 9))
    assert [n for n in monitor.notes if n.startswith("8 snapshots not analysed")]


# ---- what can't be sent to another process


class Unpicklable(ncp.Callback):
    default_name = "unpicklable"

    def __init__(self) -> None:
        super().__init__()
        self.lines = (line for line in ())

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Scalar]:
        yield ncp.Scalar("unpicklable/step", observation.step)


def test_a_callback_that_cannot_be_sent_runs_in_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ncp_callbacks.observer.placement.why_in_loop", lambda nbytes: None)
    with in_background([Unpicklable()], background=None) as monitor:
        assert not monitor.in_background
        monitor.on_step_end(1, loss=1.0)
    assert scalars(monitor, "unpicklable/step") == [(1, 1.0)]
    (note,) = [n for n in monitor.notes if "analyses run in the training loop" in n]
    assert "unpicklable" in note.lower()
    assert "lines" in note


def test_a_callback_that_cannot_be_sent_and_must_be_is_an_error() -> None:
    with pytest.raises(CopyError, match=r"(?is)unpicklable.*lines.*background=False"):
        in_background([Unpicklable()], background=True).start()


class Collecting(ncp.Callback):
    default_name = "collecting"

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.seen = seen

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Scalar]:
        self.seen.append(observation.step)
        yield ncp.Scalar("collecting/seen", len(self.seen))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: Any) -> None:
        self.seen[:] = state["seen"]


@both_places
def test_the_state_comes_back_and_side_effects_from_the_loop_only(background: bool) -> None:
    seen: list[int] = []
    with in_background([Collecting(seen)], background=background) as monitor:
        seen.clear()  # of the dry run
        for step in (1, 2, 3):
            monitor.on_step_end(step, loss=1.0)
    assert monitor.state_dict()["callbacks"]["collecting"]["seen"][-3:] == [1, 2, 3]
    assert seen == ([] if background else [1, 2, 3])


# ---- resuming

CHANGES = ("parameters/update", "parameters/unchanged")


@both_places
def test_a_resumed_run_equals_one_that_was_not_interrupted(background: bool) -> None:
    def run(steps: range, state: str | None) -> tuple[dict[str, Any], str]:
        model = net()
        for step in range(1, steps.start):
            move(model, step)
        monitor = ncp.Monitor(
            model, batch, every_callback(), writer=ncp.MemoryWriter(), every=1,
            background=background,
        )  # fmt: skip
        if state is not None:
            monitor.load_state_dict(json.loads(state))
        with monitor:
            for step in steps:
                move(model, step)
                monitor.on_step_end(step, loss=1.0)
        writer: Any = monitor._run.writers[0]
        numbers, _ = by_kind(
            [(s, r) for s, r in writer.records if not isinstance(r, ncp.Figure | Picture)]
        )
        return numbers, json.dumps(monitor.state_dict())

    def move(model: nn.Module, step: int) -> None:
        model.update(tree_map(lambda p: p * (1 + 0.05 * step), model.parameters()))
        mx.eval(model.parameters())

    batch = held_out(SEQUENCES)
    whole, last = run(range(1, 5), None)
    first, state = run(range(1, 3), None)
    second, resumed = run(range(3, 5), state)
    # A last snapshot at the end of a run has what a run that goes on does not have.
    again = {**{k: v for k, v in first.items() if k[0] < 3}, **second}
    # Changes need the parameters of the snapshot before, for which a state has no room.
    for key in [k for k in whole if k[0] == 3 and k[2].startswith(CHANGES)]:
        assert key not in second
        del whole[key]
    # The arrays are described once in each log: those of the second run at its first snapshot.
    described = {key for key in whole if whole[key].get("about") != again[key].get("about")}
    assert {step for step, *_ in described} == {3}
    for key in described:
        assert again[key].pop("about") == whole[(1, *key[1:])]["about"]
        whole[key].pop("about")
    # So the finding on them rests on the last ones that are known, those of step 2.
    findings, summary = (3, "Data", "_ncp/findings"), (3, "Text", "findings/summary")
    of_updates = [update_finding(numbers[findings]["json"]) for numbers in (whole, again)]
    known = update_finding(first[(2, "Data", "_ncp/findings")]["json"])
    assert of_updates[0]["numbers"] != known["numbers"]
    assert of_updates[1]["numbers"] == known["numbers"]
    for numbers, finding in zip((whole, again), of_updates, strict=True):
        for key in (findings, summary):
            (name,) = {"json", "markdown"} & set(numbers[key])
            text = numbers[key][name].replace(finding["sentence"], "...")
            numbers[key][name] = text.replace(json.dumps(finding["numbers"]), "...")
    assert [key for key in whole if whole[key] != again.get(key)] == []
    assert resumed == last


def update_finding(document: str) -> dict[str, Any]:
    """Return the finding on the size of updates, from the text of a document's JSON."""
    found: list[dict[str, Any]] = json.loads(ast.literal_eval(document))
    (finding,) = (each for each in found if each["rule"] == "update_size")
    return finding


def test_a_step_before_the_one_that_was_resumed_from_is_reported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ncp.Monitor(net(), held_out(), [], run, every=1) as monitor:
        monitor.on_step_end(1, loss=1.0)
    with ncp.Monitor(net(), held_out(), [], run, every=1, resume_step=5) as monitor:
        monitor.on_step_end(5, loss=1.0)
    assert any(n.startswith("step 5 came after step 5") for n in monitor.notes)


# ---- ranks


RANKS = [
    {"MLX_RANK": "1"},
    {"PMI_RANK": "2"},
    {"OMPI_COMM_WORLD_RANK": "3"},
    {"SLURM_NTASKS": "4", "SLURM_PROCID": "1"},
]


@both_places
@pytest.mark.parametrize("variables", RANKS, ids=lambda variables: min(variables))
def test_ranks_above_0_say_that_they_do_not_log(
    variables: dict[str, str],
    background: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options: dict[str, Any] = {"every": 1, "background": background}
    caplog.set_level(logging.INFO, "ncp_callbacks")
    with ncp.Monitor(net(), held_out(), [Slow(0.0)], tmp_path / "run", **options) as monitor:
        monitor.on_step_end(1, loss=1.0)
        monitor.log_scalars(1, {"val/loss": 1.0})
        assert monitor.log_dir is None
    (line,) = caplog.records
    assert line.levelno == logging.INFO
    assert "log_on_all_ranks=True" in line.getMessage()
    assert list(tmp_path.iterdir()) == []


class Environment(ncp.Callback):
    default_name = "environment"

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Scalar]:
        found = [n for case in RANKS for n in case if n in os.environ]
        yield ncp.Scalar("environment/launcher", len(found))


def test_all_ranks_log_on_demand_and_their_observers_join_no_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"MLX_RANK": "1", "PMI_RANK": "1", "SLURM_NTASKS": "4"}.items():
        monkeypatch.setenv(name, value)
    with in_background([Environment()], log_on_all_ranks=True) as monitor:
        monitor.on_step_end(1, loss=1.0)
    assert scalars(monitor, "environment/launcher") == [(1, 0.0)]


# ---- several monitors, and monitors that nobody closes


@both_places
def test_three_monitors_of_one_model_nested(background: bool, tmp_path: Path) -> None:
    model = net()
    with contextlib.ExitStack() as stack:
        monitors = [
            stack.enter_context(
                ncp.Monitor(
                    model, held_out(), [Slow(0.0)], tmp_path / name, every=1, background=background
                )
            )
            for name in "abc"
        ]
        for step in range(1, 4):
            for monitor in monitors:
                monitor.on_step_end(step, loss=1.0)
    for name in "abc":
        assert logged(tmp_path / name, "slow/step") == [1, 2, 3]
        assert logged(tmp_path / name, "train/loss") == [1, 2, 3]


@both_places
def test_a_monitor_that_is_never_closed_has_a_complete_log(
    background: bool, tmp_path: Path
) -> None:
    code = """
        watching = monitor().start()
        for step in range(1, 4):
            watching.on_step_end(step, loss=1.0)
    """
    ended(code, tmp_path, background=background)
    assert logged(tmp_path / "run", "own/step") == [1, 2, 3]
    assert logged(tmp_path / "run", "train/loss") == [1, 2, 3]


@both_places
def test_a_monitor_that_is_dropped_has_a_complete_log(background: bool, tmp_path: Path) -> None:
    code = """
        import gc, weakref

        def train():
            watching = monitor().start()
            for step in range(1, 4):
                watching.on_step_end(step, loss=1.0)
            return weakref.ref(watching)

        dropped = train()
        gc.collect()
        assert dropped() is None
        while any(t.name.startswith("ncp_callbacks") for t in threading.enumerate()):
            time.sleep(0.05)
        print("closed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    out, _ = ended(code, tmp_path, background=background, code_of_exit=-signal.SIGKILL)
    assert out == "closed\n"
    assert logged(tmp_path / "run", "own/step") == [1, 2, 3]
    assert logged(tmp_path / "run", "train/loss") == [1, 2, 3]


# ---- numbers on disk


@both_places
def test_a_killed_training_loses_no_number_older_than_flush_seconds(
    background: bool, tmp_path: Path
) -> None:
    code = """
        class Endless(ncp.Callback):
            default_name = "endless"
            def measure(self, observation):
                yield ncp.Scalar("endless/step", observation.step)
                yield ncp.Figure("endless/picture", lambda data: time.sleep(1000), None)

        writer = ncp.TensorBoardWriter(f"{RUN}/run", flush_seconds=1.0)
        held_out = ncp.HeldOutBatch(np.zeros((4, 5, 3), "f"))
        options = {"writer": writer, "every": 1, "background": BACKGROUND}
        with ncp.Monitor(Net(), held_out, [Endless()], **options) as watching:
            for step in range(1, 11):
                watching.on_step_end(step, loss=1.0)
            watching._observer.current.wait(30.0)
            time.sleep(3.0)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended(code, tmp_path, background=background, code_of_exit=-signal.SIGKILL)
    assert logged(tmp_path / "run", "train/loss") == list(range(1, 11))
    assert logged(tmp_path / "run", "endless/step") == list(range(1, 11))


# ---- environments that lack something


TRAINING = """
    with monitor() as watching:
        for step in range(1, 4):
            watching.on_step_end(step, loss=1.0)
"""


def assert_complete(tmp_path: Path) -> None:
    assert logged(tmp_path / "run", "own/step") == [1, 2, 3]
    assert logged(tmp_path / "run", "train/loss") == [1, 2, 3]


BEFORE = {
    "no output": "sys.stdout.close(); sys.stderr.close()",
    "no standard files": "[os.close(number) for number in (0, 1, 2)]",
    "no working directory": "os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
    "no interpreter": "sys.executable = None",
    "a wrong interpreter": "sys.executable = '/nonexistent/python'",
    "no backend": "os.environ['MPLBACKEND'] = 'nonsense'",
    "warnings are errors": "import warnings; warnings.simplefilter('error')",
}


@both_places
@pytest.mark.parametrize("before", BEFORE)
def test_a_training_without(before: str, background: bool, tmp_path: Path) -> None:
    ended(f"    {BEFORE[before]}\n" + TRAINING, tmp_path, background=background, cwd=tmp_path)
    assert_complete(tmp_path)


@both_places
@pytest.mark.parametrize("option", ["-O", "-Werror"])
def test_a_training_with_an_option_of_python(option: str, background: bool, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, option, "-c", script(TRAINING, tmp_path, background=background)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert_complete(tmp_path)


@pytest.mark.parametrize("how", ["file", "stdin", "module"])
def test_a_script_beside_a_module_of_the_name_of_a_standard_one(how: str, tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise ImportError('not the standard module')\n")
    # The script has the standard module already; the observer's process starts from nothing.
    head = "import sys; beside = sys.path.pop(0); import queue; sys.path.insert(0, beside)\n"
    code = head + script(TRAINING, tmp_path)
    (tmp_path / "training.py").write_text(code)
    arguments = {
        "file": [str(tmp_path / "training.py")],
        "stdin": ["-"],
        "module": ["-m", "training"],
    }
    run = subprocess.run(
        [sys.executable, *arguments[how]], input=code if how == "stdin" else None, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert_complete(tmp_path)


@both_places
def test_a_training_without_spare_file_descriptors(background: bool, tmp_path: Path) -> None:
    code = """
        import resource
        with monitor() as watching:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 64))
            for step in range(1, 4):
                watching.on_step_end(step, loss=1.0)
    """
    ended(code, tmp_path, background=background)
    assert_complete(tmp_path)


def test_a_class_that_only_the_training_can_import_is_observed_in_the_loop(tmp_path: Path) -> None:
    (tmp_path / "made_up.py").touch()
    # Another process finds the module, and the class not in it.
    code = f"""
        sys.path.append({str(tmp_path)!r})
        import made_up

        Hidden = type("Hidden", (Net,), {{"__module__": "made_up"}})
        made_up.Hidden = Hidden
        Net = Hidden
        with monitor() as watching:
            observer = watching._observer.current
            for step in range(1, 4):
                watching.on_step_end(step, loss=step)
                observer.wait()
        assert not watching.in_background
        print(watching.notes)
    """
    out, _ = ended(code, tmp_path, background=True)
    assert "'Hidden' on <module 'made_up'" in out
    assert "the next snapshot is analysed in the training loop" in out
    assert logged(tmp_path / "run", "train/loss") == [1, 2, 3]
    # The one that was handed over before the process failed is lost, and counted.
    assert logged(tmp_path / "run", "own/step") == [2, 3]
    assert "1 snapshot not analysed" in text(tmp_path / "run")


def test_snapshots_are_taken_again_once_a_stuck_observer_goes_on() -> None:
    from ncp_callbacks.observer.background import BackgroundObserver

    observer = BackgroundObserver(mock.Mock(), max_waiting=1)
    observer.patience_for_room = 0.05
    request = mock.Mock()
    request.snapshot.nbytes = 1
    assert observer.submit(request)
    assert not observer.submit(request)
    assert not observer.submit(request)
    with observer._lock:  # as when an analysis comes back
        observer._waiting.clear()
        observer._progress += 1
    assert observer.submit(request)
    assert observer.dropped == 2


def test_what_fails_in_evaluating_the_model_ends_no_training() -> None:
    model = nn.Linear(3, 1)
    with ncp.Monitor(model, ncp.HeldOutBatch(np.ones((4, 5, 3), "f")), writer=ncp.MemoryWriter(),
                     callbacks=[ncp.GradientAttribution()], every=1, at=0) as monitor:  # fmt: skip
        assert monitor._observer._reader is not None
        with mock.patch.object(
            monitor._observer._reader, "evaluate_pending", side_effect=MemoryError("full")
        ):
            monitor.on_step_end(1)
        monitor.on_step_end(2)
    assert any("no snapshot could be taken at step 1" in note for note in monitor.notes)
    assert len(monitor.callbacks) == 1
