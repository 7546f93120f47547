"""Runs that end as runs do: resumed, terminated, interrupted, on several ranks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent

# A run of 10**6 steps that says "ready" after the 300th and goes on slowly.
ENDLESS = """
    import sys, time
    import mlx.core as mx
    import ncp_callbacks as ncp
    from ncp_callbacks.models import CfC

    mx.random.seed(0)
    model = CfC(2, 4, backbone_units=4)
    held_out = ncp.HeldOutBatch(mx.random.normal((3, 4, 2)), 1.0)
    with ncp.Monitor(model, held_out, log_dir=sys.argv[1], every=50, train_every=1) as monitor:
        for step in range(1, 10**6):
            monitor.on_step_end(step, loss=step)
            if step == 300:
                print("ready", flush=True)
            if step >= 300:
                time.sleep(0.01)
                {extra}
"""


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = started(ENDLESS.format(extra="pass"), run)
    process.send_signal(number)
    process.communicate(timeout=30)
    # It dies of the signal, as it would have without us (Python turns SIGINT into an exception).
    assert process.returncode in ({-15} if number == signal.SIGTERM else {-2, 1, 130})
    logged = steps(run, "train/loss")
    assert logged == list(range(1, logged[-1] + 1))
    assert logged[-1] >= 300
    assert steps(run, "hidden/pc1_share")[:6] == [50, 100, 150, 200, 250, 300]
    assert len(read(run).Tensors("hidden/pca")) >= 6


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
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "run"], check=True, timeout=60
    )


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
    assert steps(run, "hidden/pc1_share") == [2, 4, 6, 8, 10, 12]


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
         ROOT / "examples" / "distributed.py", "--steps", "20", *arguments],
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
    assert steps(tmp_path / "run", "hidden/pc1_share") == [20]


def test_no_collective_is_called_anywhere() -> None:
    for path in (ROOT / "ncp_callbacks").rglob("*.py"):
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)
        assert "distributed" not in code, path
