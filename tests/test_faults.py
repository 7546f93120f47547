"""Runs in which something fails: the observer, the training, the machine, the user's code."""

from __future__ import annotations

import contextlib
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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ncp_callbacks as ncp
from ncp_callbacks.writers.base import Tally

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
        observer: Any = monitor._observer.current
        observer.wait(20.0)


def scalars(monitor: ncp.Monitor, tag: str) -> list[tuple[int, float]]:
    writer: Any = monitor._run.writers[0]
    return writer.scalars(tag)


def logged(run: Path | str, tag: str) -> list[int]:
    """Return the steps of a tag in a log on disk, wherever on the screen the log has placed it."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    for shown in (tag, f"xai_{tag}", f"_ncp/scalar/{tag}"):
        if shown in tags["scalars"]:
            return [event.step for event in events.Scalars(shown)]
        if shown in tags["images"]:
            return [event.step for event in events.Images(shown)]
        if shown in tags["tensors"]:
            return [event.step for event in events.Tensors(shown)]
    return []


def text(run: Path | str, tag: str = "monitor/notes") -> str:
    """Return the last text of a tag in a log on disk."""
    events = EventAccumulator(str(run), size_guidance={"tensors": 0})
    events.Reload()
    if tag not in events.Tags()["tensors"]:
        return ""
    return events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()


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
            out, err = started.communicate(timeout=300)
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


def test_all_that_waits_is_lost_with_the_process(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def endless() -> None:
        begun.touch()
        time.sleep(60)

    with opened([Counting(endless, at=[1])], train_every=1) as monitor:
        for step in (1, 2, 3):
            monitor.on_step_end(step, loss=step)
        observer: Any = monitor._observer.current
        while not begun.exists():
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
        observer: Any = monitor._observer.current
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
        open(f"{RUN}/begun", "w").close()
        time.sleep(100)

    with monitor() as watching:
        watching.on_step_end(1, loss=1.0)
        if FORK and not os.fork():
            time.sleep(8)
            os._exit(0)
        observer = watching._observer.current
        while not os.path.exists(f"{RUN}/begun") and not EARLY:
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


# ---- the end of the run


def slow() -> None:
    time.sleep(3.5)


def test_the_end_waits_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    with opened([Counting(slow, at=[2])], verbose=True) as monitor:
        one_by_one(monitor, [1])
        for step in (2, 3, 4):
            monitor.on_step_end(step)
    assert scalars(monitor, "counting/count") == [(1, 1), (2, 2), (3, 3), (4, 4)]
    lines = [line for line in capsys.readouterr().err.splitlines() if "waiting for" in line]
    assert len(lines) == 1
    assert "waiting for 3 snapshots to be analysed (Ctrl-C stops the waiting" in lines[0]


WAITING = """
    def act(step):
        if step >= 3:
            time.sleep(100)

    try:
        with monitor(verbose=True) as watching:
            for step in range(1, 7):
                watching.on_step_end(step, loss=step)
                if step < 3:
                    watching._observer.current.wait()
            print("leaving", flush=True)
        print("never")
    except KeyboardInterrupt:
        print("interrupted", watching.notes[-1], flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("delay", [0.2, 3.0], ids=["quiet", "told"])
def test_a_signal_stops_the_waiting_and_not_the_log(
    tmp_path: Path, number: signal.Signals, delay: float
) -> None:
    with process(WAITING, tmp_path) as started:
        while next_line(started) != "leaving":
            pass
        time.sleep(delay)
        began = time.monotonic()
        started.send_signal(number)
        out, err = started.communicate(timeout=30)
    took = time.monotonic() - began
    assert "never" not in out
    if number == signal.SIGINT:
        assert took < 3
        assert "interrupted 4 snapshots not analysed" in out
        assert started.returncode == 0
    else:
        assert took < 10.5
        assert started.returncode == -number, err
    assert logged(tmp_path / "run", "train/loss") == [1, 2, 3, 4, 5, 6]
    assert logged(tmp_path / "run", "own/step") == [1, 2]
    assert "4 snapshots not analysed" in text(tmp_path / "run")


def test_a_signal_within_a_write_of_the_loop_loses_no_analysis(tmp_path: Path) -> None:
    """The analyses that the end waits for are written by a thread that finds the log in use."""
    code = """
        class Signalling(ncp.TensorBoardWriter):
            def write(self, step, records):
                super().write(step, records)
                if step == 3 and records[0].tag == "train/loss":
                    watching._observer.current.submit(watching.last)
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.1)

        held_out = ncp.HeldOutBatch(np.zeros((4, 5, 3), "f"))
        writer = Signalling(f"{RUN}/run")
        watching = ncp.Monitor(Net(), held_out, [Own()], writer=writer, every=1, background=True)
        with watching:
            observer = watching._observer.current
            submit = observer.submit
            def keep(request):
                watching.last = request
                return submit(request)
            observer.submit = keep
            for step in range(1, 4):
                watching.on_step_end(step, loss=step)
                observer.wait()
    """
    with process(code, tmp_path) as started:
        began = time.monotonic()
        _, err = started.communicate(timeout=40)
    assert time.monotonic() - began < 25
    assert started.returncode == -signal.SIGTERM, err
    assert logged(tmp_path / "run", "train/loss") == [1, 2, 3]
    # That of step 2 was handed over twice.
    assert logged(tmp_path / "run", "own/step") == [1, 2, 2]
    assert "not analysed" not in text(tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_closes_the_logs_of_both_places_in_time(
    tmp_path: Path, number: signal.Signals
) -> None:
    code = """
        def act(step):
            if step == 3 and os.getpid() != PID:
                time.sleep(100)

        PID = os.getpid()
        stuck, loop = monitor(name="stuck"), monitor(name="loop", background=False)
        fine = monitor(name="fine", every=1, callbacks="light")
        with stuck, loop, fine:
            for step in range(1, 10**6):
                for each in (stuck, loop, fine):
                    each.on_step_end(step, loss=step) if step < 7 or each is loop else None
                if step == 10:
                    print("ready", flush=True)
                time.sleep(0.05)
    """
    with process(code, tmp_path) as started:
        assert next_line(started) == "ready"
        began = time.monotonic()
        started.send_signal(number)
        _, err = started.communicate(timeout=30)
    assert time.monotonic() - began < 10.5
    assert started.returncode == -number, err
    # Four may wait; the fifth waits for room.
    steps = logged(tmp_path / "loop", "train/loss")
    assert steps == list(range(1, steps[-1] + 1))
    assert logged(tmp_path / "loop", "own/step") == steps
    assert logged(tmp_path / "stuck", "train/loss") == [1, 2, 3, 4, 5, 6]
    assert logged(tmp_path / "stuck", "own/step") == [1, 2]
    assert "4 snapshots not analysed" in text(tmp_path / "stuck")
    assert "not analysed" not in text(tmp_path / "fine")


# ---- interrupts and the user's own signal handlers


class Preempted(Exception):
    pass


class Alarm:
    """Raises in the main thread after a time, once."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.armed, self.fired = error, False, 0
        # Python itself swallows what is raised in a finalizer, wherever that runs.
        self.in_finalizers = 0

    def count(self, unraisable: Any) -> None:
        self.in_finalizers += isinstance(unraisable.exc_value, self.error)

    def __enter__(self) -> Alarm:
        self.hook, sys.unraisablehook = sys.unraisablehook, self.count
        self.before = signal.signal(signal.SIGALRM, self.ring)
        return self

    def __exit__(self, *_: object) -> None:
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)
        sys.unraisablehook = self.hook

    def ring(self, *_: object) -> None:
        if self.armed:
            self.armed = False
            self.fired += 1
            raise self.error

    def caught(self, call: Callable[[], object], after: float) -> bool:
        """Return whether the call was ended by the alarm."""
        try:
            try:
                self.armed = True
                signal.setitimer(signal.ITIMER_REAL, max(after, 1e-6))
                call()
            finally:
                self.armed = False
        except self.error:
            return True
        return False


def compiles() -> bool:
    runs = []
    compiled = mx.compile(lambda x: (runs.append(0), x + 1)[1])
    compiled(mx.array(0.0))
    compiled(mx.array(0.0))
    return len(runs) == 1


class Noisy(Net):
    """Has dropout, so that running it draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(self.dropout(x))


@both_places
@pytest.mark.parametrize(
    ("error", "times"),
    [(KeyboardInterrupt, 300), (Preempted, 60), (TimeoutError, 60), (RuntimeError, 60),
     (SystemExit, 60)],
)  # fmt: skip
def test_interrupts_at_random_moments(
    tmp_path: Path, error: type[BaseException], times: int, background: bool
) -> None:
    mx.random.seed(0)
    model = Noisy()
    model.gru.freeze()
    model.dropout.eval()
    mx.eval(model.parameters())

    def state() -> tuple[Any, ...]:
        return (
            [(id(a), a.tolist()) for _, a in sorted(nn.utils.tree_flatten(model.parameters()))],
            [(m.training, sorted(m._no_grad)) for m in model.modules()],
            mx.random.state[0].tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            random.getstate(),
            compiles(),
        )

    monitor = ncp.Monitor(
        model, held_out(16, 12), "light", tmp_path / "run", every=1, background=background
    )
    chance, hits = random.Random(0), 0
    with monitor, Alarm(error) as alarm:
        before = state()
        for step in (1, 2, 3):
            monitor.on_step_end(step, loss=step)
            began = time.perf_counter()
            observer: Any = monitor._observer.current
            observer.wait()
        typical, last = 0.003 if background else 0.03, 3
        for step in range(4, 40 * times):
            if hits == times:
                break
            began = time.perf_counter()
            last = step
            hit = alarm.caught(
                lambda step=step: monitor.on_step_end(step, loss=step),  # type: ignore[misc]
                chance.uniform(0, 1.1 * typical),
            )
            hits += hit
            if not hit:
                typical = 0.8 * typical + 0.2 * (time.perf_counter() - began)
            observer.wait()
            assert state() == before
        assert hits == times
        assert alarm.fired == hits + alarm.in_finalizers
        for step in range(last + 1, last + 4):
            monitor.on_step_end(step, loss=step)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert len(monitor.callbacks) == 2
    assert not [note for note in monitor.notes if "fail" in note or "process" in note]
    for tag in ("train/loss", "monitor/pass_seconds/shared"):
        steps = logged(tmp_path / "run", tag)
        assert steps == sorted(set(steps))
        assert steps[:3] == [1, 2, 3]
        assert steps[-3:] == [last + 1, last + 2, last + 3]


def rings(error: type[BaseException]) -> Callable[[], None]:
    def ring() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)

    return ring


@pytest.mark.parametrize("error", [Preempted, OSError, KeyError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    "where", ["schedule", "analysis", "finish", "writer", "scalar", "closing", "tally"]
)
def test_what_a_handler_of_the_user_raises_passes(where: str, error: type[BaseException]) -> None:
    def handler(*_: object) -> None:
        raise error("a signal")

    ring, active = rings(error), [False]

    class Ringing(ncp.MemoryWriter):
        def write(self, step: int, records: Any) -> None:
            ring() if where == "writer" and active[0] else super().write(step, records)

        def close(self) -> None:
            ring() if where == "closing" else None

        flush = close

        @property
        def tally(self) -> Tally:
            ring() if where == "tally" else None
            return super().tally

    class Value:
        def item(self) -> float:
            ring() if where == "scalar" else None
            return 1.0

    class Finishing(Counting):
        def finish(self, observation: ncp.Observation) -> list[ncp.Scalar]:
            ring() if where == "finish" else None
            return []

    def schedule(step: int) -> bool:
        ring() if where == "schedule" and active[0] else None
        return True

    callback = Finishing(ring if where == "analysis" else None, at=[1])
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        monitor = opened([callback], writer=Ringing(), every=schedule, background=False).start()
        active[0] = True
        if where in ("finish", "closing", "tally"):
            monitor.on_step_end(1, loss=Value())
            with pytest.raises(error, match="a signal"):
                monitor.close()
        else:
            with pytest.raises(error, match="a signal"):
                monitor.on_step_end(1, loss=Value())
            active[0] = False
            monitor.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not [note for note in monitor.notes if "fail" in note]


# ---- forks


@both_places
def test_three_hundred_pools_of_forked_workers(tmp_path: Path, background: bool) -> None:
    code = """
        import multiprocessing, warnings
        warnings.simplefilter("ignore", DeprecationWarning)

        def square(x):
            return x * x

        with monitor(every=10) as watching:
            for step in range(1, 301):
                watching.on_step_end(step, loss=step)
                with multiprocessing.get_context("fork").Pool(1) as pool:
                    assert pool.map(square, [1, 2]) == [1, 4]
        print("ended", flush=True)
    """
    out, _ = ended(code, tmp_path, background=background, start_new_session=True)
    assert "ended" in out
    assert logged(tmp_path / "run", "train/loss") == list(range(1, 301))
    assert logged(tmp_path / "run", "own/step") == list(range(10, 301, 10))


@both_places
def test_a_forked_child_does_nothing_and_never_hangs(tmp_path: Path, background: bool) -> None:
    code = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)

        def act(step):
            time.sleep(0.003)

        def child(kind):
            signal.alarm(8)
            if kind == 0:
                watching.on_step_end(1000, loss=1.0)
            elif kind == 1:
                watching.log_scalars(1000, {"val/loss": 1.0})
            elif kind == 2:
                watching.close()
            elif kind == 3:
                watching.state_dict()
            elif kind == 4:
                watching.__exit__(None, None, None)
            elif kind == 5:
                watching.notes, watching.callbacks, watching.log_dir
            else:
                sys.exit(0)  # leaves the block, and runs exit handlers
            os._exit(0)

        with monitor(every=1) as watching:
            for step in range(1, 141):
                watching.on_step_end(step, loss=step)
                pid = os.fork()
                if not pid:
                    child(step % 7)
                status = os.waitpid(pid, 0)[1]
                assert status == 0, (step % 7, status)
        print("ended", flush=True)
    """
    out, err = ended(code, tmp_path, background=background, start_new_session=True)
    assert "ended" in out
    assert "Traceback" not in err
    assert logged(tmp_path / "run", "train/loss") == list(range(1, 141))
    assert logged(tmp_path / "run", "own/step") == list(range(1, 141))
    assert logged(tmp_path / "run", "val/loss") == []
