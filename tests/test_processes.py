"""Runs that end as runs do: resumed, terminated, interrupted, on several ranks."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ncp_callbacks.writers.signals import ClosesOnSignals

ROOT = Path(__file__).parent.parent

# A run of 10**6 steps that says "ready" after the 300th and goes on slowly.
ENDLESS = """
    import sys, time
    import mlx.core as mx
    import ncp_callbacks as ncp
    from ncp_callbacks.models import CfC
    from ncp_callbacks.writers import signals

    mx.random.seed(0)
    model = CfC(2, 4, backbone_units=4)
    held_out = ncp.HeldOutBatch(mx.random.normal((3, 4, 2)), 1.0)
    # A slow machine, too, has the time to draw all pictures: how many wait, and how long closing
    # takes, is bounded.
    signals._TIMEOUT = 240.0
    writer = ncp.TensorBoardWriter(sys.argv[1], max_figures=1000, timeout=240.0)
    with ncp.Monitor(model, held_out, writer=writer, every=50, train_every=1) as monitor:
        for step in range(1, 10**6):
            monitor.on_step_end(step, loss=step)
            if step == 300:
                print("ready", flush=True)
            if step >= 300:
                time.sleep(0.01)
                {extra}
"""


def started(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", (line, process.stderr.read() if process.stderr else "")
    return process


def read(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def steps(run: Path, tag: str) -> list[int]:
    return [p.step for p in read(run).Scalars(tag)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_asked_to_end_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = started(ENDLESS.format(extra="pass"), run)
    process.send_signal(number)
    process.communicate(timeout=300)
    # It dies of the signal, as it would have without us (Python turns SIGINT into an exception).
    assert process.returncode in ({-2, 1, 130} if number == signal.SIGINT else {-number})
    logged = steps(run, "train/loss")
    assert logged == list(range(1, logged[-1] + 1))
    assert logged[-1] >= 300
    assert steps(run, "xai_hidden/pc1_share")[:6] == [50, 100, 150, 200, 250, 300]
    assert len(read(run).Tensors("xai_hidden/pca")) >= 6


# Two runs in one process, and one that was entered and never left.
TWO = """
    import sys, time
    import mlx.core as mx
    import ncp_callbacks as ncp
    from ncp_callbacks.models import CfC

    held_out = ncp.HeldOutBatch(mx.random.normal((3, 4, 2)), 1.0)

    def monitor(name):
        return ncp.Monitor(CfC(2, 4), held_out, "light", f"{sys.argv[1]}/{name}", every=10**6,
                           train_every=1)

    forgotten = monitor("forgotten").__enter__()
    with monitor("first"):  # Ended before.
        pass
    with monitor("teacher") as teacher, monitor("student") as student:
        for step in range(1, 10**6):
            for each in (forgotten, teacher, student):
                each.on_step_end(step, loss=step)
            if step == 50:
                print("ready", flush=True)
            if step >= 50:
                time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_all_open_logs_are_closed(tmp_path: Path, number: signal.Signals) -> None:
    process = started(TWO, tmp_path)
    # What is written after a fraction of a second was not written by chance.
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number
    logged = [steps(tmp_path / name, "train/loss") for name in ("forgotten", "teacher", "student")]
    for each in logged:
        assert each == list(range(1, each[-1] + 1))
        assert each[-1] >= 60
    assert max(map(len, logged)) - min(map(len, logged)) <= 1


def test_an_endless_picture_costs_no_number_and_little_time(tmp_path: Path) -> None:
    code = """
        import sys, time
        from ncp_callbacks.records import Figure, Scalar
        from ncp_callbacks.writers import TensorBoardWriter
        from ncp_callbacks.writers.signals import ClosesOnSignals

        writers = [TensorBoardWriter(f"{sys.argv[1]}/{name}", flush_seconds=60) for name in "ab"]
        handles = [ClosesOnSignals(writer.close) for writer in writers]
        for step in range(1, 101):
            for writer in writers:
                writer.write(step, [Scalar("loss", step)])
                if step == 2:
                    writer.write(step, [Figure("stuck", lambda data: time.sleep(1e6), 0)])
        print("ready", flush=True)
        time.sleep(60)
    """
    process = started(code, tmp_path)
    since = time.monotonic()
    process.terminate()
    time.sleep(0.2)
    process.terminate()  # Batch systems may send it more than once.
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - since < 10
    assert process.returncode == -signal.SIGTERM
    assert stderr.count("gave up 1 picture, the first of them 'stuck' of step 2") == 2
    for name in "ab":
        assert steps(tmp_path / name, "loss") == list(range(1, 101))


@pytest.mark.parametrize("end", ["kill", "close"])
def test_a_slow_picture_holds_up_no_number(tmp_path: Path, end: str) -> None:
    code = """
        import sys, time
        from ncp_callbacks.records import Figure, Scalar
        from ncp_callbacks.writers import TensorBoardWriter

        writer = TensorBoardWriter(sys.argv[1], flush_seconds=0.5, timeout=3.0)
        for step in range(1, 21):
            figures = [Figure("slow", lambda data: time.sleep(20), 0)] * (step == 5)
            writer.write(step, [Scalar("loss", step), *figures])
            time.sleep(0.05)
        time.sleep(1.5)
        print("ready", flush=True)
        for line in sys.stdin:
            writer.write(int(line), [Scalar("loss", int(line))])
            writer.close()
            tally = writer.tally
            print("closed", tally.records, tally.dropped_figures, tally.failed_records, flush=True)
    """
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if end == "kill":
            process.kill()
            assert steps(run, "loss") == list(range(1, 21))
        else:
            since = time.monotonic()
            out, _ = process.communicate("21\n", timeout=30)
            assert time.monotonic() - since < 5
            assert steps(run, "loss") == list(range(1, 22))
            assert out == "closed 21 0 1\n"


def test_a_handler_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))\n"
    process = started(code + textwrap.dedent(ENDLESS.format(extra="pass")), run)
    process.terminate()
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    time.sleep(0.1)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_the_handler_is_gone_after_the_run(tmp_path: Path) -> None:
    code = """
        import signal, sys
        import mlx.core as mx
        import ncp_callbacks as ncp
        from ncp_callbacks.models import CfC
        held_out = ncp.HeldOutBatch(mx.random.normal((3, 4, 2)), 1.0)
        with ncp.Monitor(CfC(2, 4), held_out, log_dir=sys.argv[1]):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            assert signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
            with ncp.Monitor(CfC(2, 4), held_out, log_dir=sys.argv[1]):
                pass
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "run"], check=True, timeout=60
    )


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = started(code + textwrap.dedent(ENDLESS.format(extra="pass")), tmp_path / "run")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    logged = steps(tmp_path / "run", "train/loss")
    assert logged == list(range(1, logged[-1] + 1))


FORKS = """
    import multiprocessing, os, signal, sys, threading, warnings
    from ncp_callbacks.records import Scalar
    from ncp_callbacks.writers import TensorBoardWriter
    from ncp_callbacks.writers.signals import ClosesOnSignals

    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later, of forks
    writer = TensorBoardWriter(sys.argv[1])
    handle = ClosesOnSignals(writer.close)
    print("ready", flush=True)

    def square(x):
        return x * x
"""


def forking(tmp_path: Path, code: str, timeout: float) -> None:
    code = textwrap.dedent(FORKS) + textwrap.dedent(code)
    process = started(code, tmp_path / "run", start_new_session=True)
    try:
        _, stderr = process.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Workers that hang, too.
    assert process.returncode == 0, stderr
    assert stderr == ""


def test_pools_of_forked_workers_end(tmp_path: Path) -> None:
    """Ended by SIGTERM, one in some tens used to stay for ever, and its pool with it."""
    code = """
        for step in range(1, 81):
            writer.write(step, [Scalar("loss", step)])
            with multiprocessing.get_context("fork").Pool(3) as pool:
                assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
        writer.close()
    """
    forking(tmp_path, code, timeout=60)
    assert steps(tmp_path / "run", "loss") == list(range(1, 81))


def test_forked_children_have_the_default_and_parents_their_mask(tmp_path: Path) -> None:
    code = """
        ours = signal.getsignal(signal.SIGTERM)

        def child_ends_well(*, handler, mask):
            child = os.fork()
            if not child:
                found = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
                fine = found == [handler] * 2
                os._exit(not (fine and signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask))
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
            return os.waitpid(child, 0)[1] == 0

        assert callable(ours)
        assert child_ends_well(handler=signal.SIG_DFL, mask=set())
        assert signal.getsignal(signal.SIGTERM) is ours

        # On another thread, which becomes the main one of the child.
        results = []
        thread = threading.Thread(
            target=lambda: results.append(child_ends_well(handler=signal.SIG_DFL, mask=set()))
        )
        thread.start()
        thread.join()
        assert results == [True]

        # What the user blocked stays blocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        assert child_ends_well(handler=signal.SIG_DFL, mask={signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

        # A handler of the user's own is inherited, as ever.
        def mine(*_):
            pass

        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, mine)
        assert child_ends_well(handler=mine, mask=set())
        handle.undo()
        assert signal.getsignal(signal.SIGTERM) is mine

        # A child may have a log of its own.
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        child = os.fork()
        if not child:
            own = TensorBoardWriter(sys.argv[1] + "-child", flush_seconds=60)
            handle = ClosesOnSignals(own.close)
            own.write(1, [Scalar("loss", 1)])
            own.write(2, [Scalar("loss", 2)])
            os.kill(os.getpid(), signal.SIGTERM)
        assert os.waitpid(child, 0)[1] == signal.SIGTERM
        writer.write(1, [Scalar("loss", 1)])
        writer.close()
    """
    forking(tmp_path, code, timeout=60)
    assert steps(tmp_path / "run", "loss") == [1]
    assert steps(tmp_path / "run-child", "loss") == [1, 2]


def test_one_log_that_fails_to_close_costs_no_other(tmp_path: Path) -> None:
    code = """
        def fails(timeout):
            raise OSError("the network is gone")

        others = [ClosesOnSignals(fails) for _ in range(3)]
        handle.undo()
        handle = ClosesOnSignals(writer.close)
        others.append(ClosesOnSignals(fails))
        for step in (1, 2):
            writer.write(step, [Scalar("loss", step)])
        print("written", flush=True)
        threading.Event().wait(60)
    """
    process = started(textwrap.dedent(FORKS) + textwrap.dedent(code), tmp_path / "run")
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.terminate()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert stderr.count("OSError: the network is gone") == 4
    assert steps(tmp_path / "run", "loss") == [1, 2]


def test_a_log_that_nobody_holds_is_not_kept() -> None:
    class Log:
        def close(self, timeout: float) -> None:
            pass

    before = signal.getsignal(signal.SIGTERM)  # Of another test's log, which may be open.
    log = Log()
    log.handle = ClosesOnSignals(log.close)  # type: ignore[attr-defined]
    gone = weakref.ref(log)
    del log
    gc.collect()
    assert gone() is None
    ClosesOnSignals(print).undo()
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigkill_loses_at_most_the_last_seconds(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(ENDLESS.format(extra="pass"), run)
    time.sleep(6.0)  # the writer promises five seconds
    process.kill()
    process.communicate()
    logged = steps(run, "train/loss")
    assert logged[-1] >= 300
    assert logged == list(range(1, logged[-1] + 1))


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    code = """
        import json, sys
        from pathlib import Path
        import mlx.core as mx
        import ncp_callbacks as ncp
        from ncp_callbacks.models import CfC

        run, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
        mx.random.seed(0)
        model = CfC(2, 4, backbone_units=4)
        held_out = ncp.HeldOutBatch(mx.random.normal((3, 4, 2)), 1.0)
        monitor = ncp.Monitor(
            model, held_out, log_dir=run, every=2, train_every=1,
            resume_step=first - 1 if first > 1 else None,
        )
        state = run.parent / "monitor.json"
        if first > 1:
            monitor.load_state_dict(json.loads(state.read_text()))
        with monitor:
            for step in range(first, last + 1):
                monitor.on_step_end(step, loss=step)
                if step == 6:
                    state.write_text(json.dumps(monitor.state_dict()))
        print(monitor.log_dir)
    """
    run = tmp_path / "run"
    # The first run goes past its checkpoint at step 6 before it ends; the second starts from there.
    for first, last in [(1, 9), (7, 12)]:
        out = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), run, str(first), str(last)],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert out.stdout.strip() == str(run)
    assert steps(run, "train/loss") == list(range(1, 13))
    assert steps(run, "xai_hidden/pc1_share") == [2, 4, 6, 8, 10, 12]


def test_the_same_directory_twice_is_kept_apart(tmp_path: Path) -> None:
    code = """
        import sys
        import mlx.core as mx
        import ncp_callbacks as ncp
        from ncp_callbacks.models import CfC
        held_out = ncp.HeldOutBatch(mx.random.normal((3, 4, 2)), 1.0)
        for number in range(2):
            with ncp.Monitor(CfC(2, 4), held_out, log_dir=sys.argv[1], every=1) as monitor:
                monitor.on_step_end(1, loss=number)
                print(monitor.log_dir)
    """
    run = tmp_path / "run"
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), run],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert out.stdout.split() == [str(run), f"{run}-2"]
    for number, name in enumerate(out.stdout.split()):
        assert [p.value for p in read(Path(name)).Scalars("train/loss")] == [number]


def launched(tmp_path: Path, *arguments: str) -> list[str]:
    """What two ranks on the loopback interface print, sorted."""
    launch = Path(sys.executable).parent / "mlx.launch"
    out = subprocess.run(
        [launch, "-n", "2", "--backend", "ring", sys.executable,
         ROOT / "examples" / "data_parallel.py", "--steps", "20", *arguments],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    # The launcher says 0 even where a rank failed: only what the ranks print counts.
    lines = sorted(re.findall(r"rank \d of \d: .*", out.stdout))
    assert len(lines) == 2, out.stdout + out.stderr
    return lines


def test_two_ranks_train_alike_with_and_without(tmp_path: Path) -> None:
    watched = launched(tmp_path, "--log-dir", str(tmp_path / "run"))
    assert [line[:11] for line in watched] == ["rank 0 of 2", "rank 1 of 2"]
    assert watched == launched(tmp_path, "--unwatched")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert steps(tmp_path / "run", "xai_hidden/pc1_share") == [20]


def test_no_collective_is_called_anywhere() -> None:
    for path in (ROOT / "ncp_callbacks").rglob("*.py"):
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)
        assert "distributed" not in code, path
