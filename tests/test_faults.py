"""Runs in which something fails: the observer, the training process, the machine, the user's code."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from promises import told
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ncp_callbacks as ncp

ROOT = Path(__file__).parent.parent
both_places = pytest.mark.parametrize("background", [True, False], ids=["background", "loop"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(3, 8), nn.Linear(8, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(self.gru(x))


def net() -> Net:
    mx.random.seed(0)
    model = Net()
    mx.eval(model.parameters())
    return model


def held_out(sequences: int = 4, steps: int = 5) -> ncp.HeldOutBatch:
    inputs = np.random.default_rng(0).normal(size=(sequences, steps, 3))
    return ncp.HeldOutBatch(inputs.astype("f"))


class Counting(ncp.Callback):
    """Counts its analyses, and does something at some steps."""

    default_name = "counting"

    def __init__(self, act: Callable[[], object] | None = None, at: Iterable[int] = ()) -> None:
        super().__init__()
        self.act, self.at, self.count = act, frozenset(at), 0

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Scalar | ncp.Figure]:
        self.count += 1
        if self.act is not None and observation.step in self.at:
            self.act()
        yield ncp.Scalar("counting/count", self.count)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"]


def opened(callbacks: Sequence[ncp.Callback], **options: Any) -> ncp.Monitor:
    options = {"writer": ncp.MemoryWriter(), "every": 1, "background": True, **options}
    return ncp.Monitor(net(), held_out(), callbacks, **options)


def one_by_one(monitor: ncp.Monitor, steps: Iterable[int]) -> None:
    """Make steps, each once the last one is analysed, so that what is lost is known."""
    for step in steps:
        monitor.on_step_end(step, loss=1.0 / step)
        observer: Any = monitor._observer
        observer.wait(20.0)


def scalars(monitor: ncp.Monitor, tag: str) -> list[tuple[int, float]]:
    writer: Any = monitor._writer
    return writer.scalars(tag)


def logged(run: Path | str, tag: str) -> list[int]:
    """Return the steps of a tag in a log on disk."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    if tag in tags["scalars"]:
        return [event.step for event in events.Scalars(tag)]
    if tag in tags["images"]:
        return [event.step for event in events.Images(tag)]
    return [event.step for event in events.Tensors(tag)] if tag in tags["tensors"] else []


def text(run: Path | str, tag: str = "about/notes") -> str:
    """Return the last text of a tag in a log on disk."""
    events = EventAccumulator(str(run), size_guidance={"tensors": 0})
    events.Reload()
    name = f"{tag}/text_summary"
    if name not in events.Tags()["tensors"]:
        return ""
    return events.Tensors(name)[-1].tensor_proto.string_val[0].decode()


# ---- scripts in a process of their own

SCRIPT = """
    import os, random, signal, sys, threading, time
    import numpy as np, mlx.core as mx, mlx.nn as nn
    import ncp_callbacks as ncp

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.out = nn.GRU(3, 8), nn.Linear(8, 1)
        def __call__(self, x):
            return self.out(self.gru(x))

    class Own(ncp.Callback):
        default_name = "own"
        def measure(self, observation):
            if observation.step:
                act(observation.step)
            yield ncp.Scalar("own/step", observation.step)

    def act(step):
        pass

    def monitor(callbacks=None, name="run", **options):
        options = {"every": 1, "train_every": 1, "background": BACKGROUND, **options}
        held_out = ncp.HeldOutBatch(np.random.default_rng(0).normal(size=(4, 5, 3)).astype("f"))
        callbacks = [Own()] if callbacks is None else callbacks
        return ncp.Monitor(Net(), held_out, callbacks, f"{RUN}/{name}", **options)
"""


def script(code: str, run: Path, *, background: bool = True) -> str:
    head = f"RUN, BACKGROUND = {str(run)!r}, {background}\n"
    return head + textwrap.dedent(SCRIPT) + textwrap.dedent(code)


def process(
    code: str, run: Path, *, background: bool = True, **options: Any
) -> subprocess.Popen[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    whole = script(code, run, background=background)
    return subprocess.Popen([sys.executable, "-c", whole], text=True, **options)


def ended(
    code: str, run: Path, *, background: bool = True, code_of_exit: int = 0, **options: Any
) -> tuple[str, str]:
    """Run a script to its end; return what it prints."""
    with process(code, run, background=background, **options) as started:
        try:
            out, err = started.communicate(timeout=60)
        finally:
            started.kill()
    assert started.returncode == code_of_exit, err
    return out, err


def next_line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    line = started.stdout.readline().strip()
    assert line, started.stderr.read() if started.stderr else ""
    return line


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pid: int, seconds: float) -> bool:
    """Wait until a process is gone."""
    end = time.monotonic() + seconds
    while is_running(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# ---- the observer's process is lost


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashed() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def aborted() -> None:
    os.abort()


def left() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("act", "how"),
    [
        (killed, "was ended by SIGKILL"),
        (crashed, "was ended by SIGSEGV"),
        (aborted, "was ended by SIGABRT"),
        (left, "ended with exit status 3"),
    ],
)
def test_a_lost_observer_is_started_again_once(act: Callable[[], None], how: str) -> None:
    with opened([Counting(act, at=[3, 6])], train_every=1) as monitor:
        one_by_one(monitor, range(1, 10))
    assert scalars(monitor, "train/loss") == [(step, 1.0 / step) for step in range(1, 10)]
    # It goes on with the count of its last analysis.
    assert scalars(monitor, "counting/count") == [(1, 1), (2, 2), (4, 3), (5, 4)]
    reported = [note for note in monitor.notes if how in note]
    assert len(reported) == 2
    assert "1 snapshot lost with it; the next snapshot starts it again, once" in reported[0]
    assert "it is not started again: analyses end here" in reported[1]
    # Those of steps 3 and 6, and three that nobody was there for.
    assert scalars(monitor, "monitor/dropped_snapshots")[-1] == (9, 5)
    assert any("5 snapshots not analysed" in note for note in monitor.notes)
    assert monitor.state_dict()["callbacks"]["counting"] == {"count": 4}


def test_all_that_waits_is_lost_with_the_process() -> None:
    with opened([Counting(lambda: time.sleep(60), at=[1])], train_every=1) as monitor:
        for step in (1, 2, 3):
            monitor.on_step_end(step, loss=step)
        observer: Any = monitor._observer
        while observer.current != "counting":
            time.sleep(0.01)
        observer._process.kill()
        while not observer.lost:
            time.sleep(0.01)
        one_by_one(monitor, [4, 5])
    assert scalars(monitor, "counting/count") == [(4, 1), (5, 2)]
    assert any("SIGKILL; 3 snapshots lost with it" in note for note in monitor.notes)
    assert scalars(monitor, "monitor/dropped_snapshots")[-1] == (5, 3)


def test_an_observer_killed_while_it_starts_costs_no_later_snapshot() -> None:
    with opened([Counting()], train_every=1) as monitor:
        observer: Any = monitor._observer
        observer._process.kill()
        while not observer.lost:
            time.sleep(0.01)
        one_by_one(monitor, [1, 2])
        assert not monitor.in_background
    assert scalars(monitor, "counting/count") == [(1, 1), (2, 2)]
    assert [note for note in monitor.notes if "before it could analyse" in note] != []


def too_large() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
    bytearray(4 << 30)


def out_of_memory() -> None:
    raise MemoryError("no more")


def exits() -> None:
    sys.exit(4)


def interrupts() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("act", [too_large, out_of_memory, exits, interrupts])
def test_what_a_callback_raises_in_the_background_stops_it_alone(act: Callable[[], None]) -> None:
    other = Counting()
    other.name = "other"
    with opened([Counting(act, at=[2]), other], train_every=1) as monitor:
        one_by_one(monitor, range(1, 5))
        assert [callback.name for callback in monitor.callbacks] == ["other"]
    assert [step for step, _ in scalars(monitor, "train/loss")] == [1, 2, 3, 4]
    counts = [value for step, value in scalars(monitor, "counting/count") if step > 2]
    assert counts == [3, 4]
    assert len([note for note in monitor.notes if "counting failed at step 2" in note]) == 1
    assert not [note for note in monitor.notes if "process" in note]


class Unsendable(Counting):
    """Makes what can't be sent between processes, in turn as state and as a record."""

    def __init__(self, *, in_state: bool) -> None:
        super().__init__()
        self.in_state = in_state

    def measure(self, observation: ncp.Observation) -> Iterator[Any]:
        yield from super().measure(observation)
        if not self.in_state:
            yield ncp.Array("counting/odd", Stubborn((2,), dtype="f"))

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, **({"lock": threading.Lock()} if self.in_state else {})}


class Stubborn(np.ndarray):  # type: ignore[type-arg]
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("it can't be pickled")

    def __deepcopy__(self, memo: Any) -> Any:
        return self


def test_a_record_that_cannot_be_sent_costs_itself_alone() -> None:
    with opened([Unsendable(in_state=False)]) as monitor:
        one_by_one(monitor, range(1, 4))
    assert scalars(monitor, "counting/count") == [(1, 1), (2, 2), (3, 3)]
    assert [note for note in monitor.notes if "counting/odd can't be sent" in note] != []
    assert not [note for note in monitor.notes if "process was" in note or "ended" in note]


# ---- the training process is lost

ORPHAN = """
    def act(step):
        time.sleep(100)

    with monitor() as watching:
        watching.on_step_end(1, loss=1.0)
        if FORK and not os.fork():
            time.sleep(8)
            os._exit(0)
        observer = watching._observer
        while observer.current != "own" and not EARLY:
            time.sleep(0.01)
        print(observer._process.pid, flush=True)
        time.sleep(100)
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped"])
@pytest.mark.parametrize("fork", [False, True], ids=["alone", "forked"])
@pytest.mark.parametrize("early", [False, True], ids=["analysing", "starting"])
def test_no_observer_outlives_the_training(
    tmp_path: Path, stopped: bool, fork: bool, early: bool
) -> None:
    code = f"FORK, EARLY = {fork}, {early}\n" + textwrap.dedent(ORPHAN)
    with process(code, tmp_path, start_new_session=True) as started:
        try:
            observer = int(next_line(started))
            if stopped:
                started.send_signal(signal.SIGSTOP)
                time.sleep(0.2)
            started.kill()
            assert gone(observer, 5.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
