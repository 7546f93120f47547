"""Runs that are killed, by SIGKILL: what a resumed run loses is named, and nothing else differs."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_nets import Net

import ncp_callbacks as ncp
from ncp_callbacks.due_callbacks import DueCallbacks
from ncp_callbacks.due_steps import what_is_lacking
from ncp_callbacks.records import Scalar
from ncp_callbacks.runs import Run, read_run
from ncp_callbacks.scheduling import as_schedule, at, every, log_spaced

# A training that goes on from its newest checkpoint, of every seventh step that it reports.
#
# how: "state": the monitor's state is saved with its checkpoints; "waits": the state is asked for,
# and the monitor goes on by itself; "itself": the monitor goes on by itself.
TRAINING = """
    import json, os, signal, sys, time
    from pathlib import Path
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import ncp_callbacks as ncp
    from checkpointed import Net, go_on, save

    run, checkpoints, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    options = json.loads(sys.argv[4])
    if options["every"] == "ninth":
        options["every"] = lambda step: step % 9 == 0
    stride, steps = options.pop("stride", 1), options.pop("steps", 60)
    holds, dies = options.pop("holds", 10**9), options.pop("dies", 0)

    class Fourth(ncp.Callback):
        def __init__(self):
            super().__init__()
            self.every_nth = 4

        def measure(self, observation):
            yield ncp.Scalar("fourth/there", 1.0)

    class Holds(ncp.Callback):
        def measure(self, observation):
            while observation.step >= holds:
                time.sleep(0.1)
            yield ncp.Scalar("holds/there", 1.0)

    mx.random.seed(0)
    x = mx.random.normal((16, 4, 2))
    model, optimizer = Net(), optim.SGD(0.1)
    newest = go_on(model, checkpoints)
    first = int(newest.stem) + 1 if newest else 1
    resume = {"resume": "auto"}
    if how == "state":
        resume = {"resume_step": first - 1} if run.exists() else {}
    loss_and_grad = nn.value_and_grad(model, lambda x: ((model(x) - x[:, 0, 0]) ** 2).mean())
    monitor = ncp.Monitor(
        model, ncp.HeldOutBatch(x, 1.0, targets=x[:, 0, 0]),
        [Holds(), ncp.GradientAttribution(), ncp.StateTransitions(), Fourth()],
        log_dir=run, **{"train_every": 1, **resume, **options},
    )
    if how == "state" and newest:
        monitor.load_state_dict(json.loads(newest.with_suffix(".json").read_text()))
    with monitor:
        print("open", flush=True)
        for step in range(first, steps + 1):
            loss, gradients = loss_and_grad(x)
            optimizer.update(model, gradients)
            mx.eval(model.parameters())
            if step % stride == 0:
                monitor.on_step_end(step, loss=loss)
            if step % 7 == 0:
                if how != "itself":
                    state = json.dumps(monitor.state_dict())
                    (checkpoints / f"{step:03}.json").write_text(state)
                save(model, checkpoints, step)
            if step == holds - stride:
                monitor.state_dict()  # What comes before is analysed.
            if step == dies:
                time.sleep(0.2)  # The log's thread has its turn.
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.002)
    print(*monitor.notes, sep="\\n")
"""


def train(run: Path, how: str, *, kill_after: float | None = None, **options: Any) -> str | None:
    """Train to the end and return the notes; or None for a run that was killed."""
    checkpoints = run.with_name(f"{run.name}-checkpoints")
    checkpoints.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINING), run, checkpoints, how,
         json.dumps(options)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert process.stdout is not None
    if kill_after is not None:
        assert process.stdout.readline() == "open\n"
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    out, errors = process.communicate(timeout=300)
    if process.returncode == -signal.SIGKILL:
        return None
    assert process.returncode == 0, errors
    return out


def steps_of(run: Run, tag: str) -> list[int]:
    return run.scalars[tag].steps.tolist() if tag in run.scalars else []


@pytest.mark.parametrize(
    ("how", "background"),
    [("state", True), ("state", False), ("waits", True), ("waits", False)],
)
def test_a_run_killed_at_any_moment_loses_nothing_before_a_checkpoint_with_a_state(
    tmp_path: Path, how: str, background: bool
) -> None:
    options = {"every": 5, "background": background}
    train(tmp_path / "whole", how, **options)
    notes, kills = None, 0
    chance = random.Random(f"{how} {background}")
    while notes is None:
        after = chance.uniform(0.05, 2.0) if kills < 4 else None
        notes = train(tmp_path / "run", how, kill_after=after, **options)
        kills += 1
    assert "lacks" not in notes
    assert "no state" not in notes
    whole, found = read_run(tmp_path / "whole"), read_run(tmp_path / "run")
    compared = 0
    for tag, points in whole.scalars.items():
        if not tag.startswith("monitor/"):
            compared += 1
            assert steps_of(found, tag) == points.steps.tolist(), tag
            np.testing.assert_array_equal(found.scalars[tag].values, points.values, tag)
    assert compared > 25
    assert steps_of(found, "fourth/there") == [5, 25, 45, 60]
    pictures = {(tag, step) for tag, of in whole.images.items() for step in of}
    assert {(tag, step) for tag, of in found.images.items() for step in of} == pictures
    assert len(pictures) == 2 * 12


# The first process doesn't finish the analysis of the step `holds`, and is killed at step `dies`,
# before the log's next round of writing. The last checkpoint before is of a multiple of 7.
LOSSES = {
    "every 10": ({"every": 10}, 30, 36, "step 30", 20, [10, 20, 40, 50, 60], [10, 50, 60]),
    "several": ({"every": 6}, 18, 30, "steps 18 and 24", 12, [6, 12, 30, 36, 42, 48, 54, 60],
                [6, 30, 54, 60]),
    # 14, 21, 35, 42 and so on are the first steps after 10, 20, 30, 40 and so on.
    "by sevens": ({"every": 10, "stride": 7, "steps": 63}, 21, 28, "step 21", 14,
                  [14, 35, 42, 56, 63], [14, 56, 63]),
    "a function": ({"every": "ninth"}, 18, 29, "steps 18 and 27", 9, [9, 36, 45, 54], [9, 45, 60]),
    "rarely": ({"every": 10, "train_every": None}, 20, 21, "step 20", 10, [10, 30, 40, 50, 60],
               [10, 50, 60]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "holds", "dies", "lost", "before", "analysed", "fourth"),
    LOSSES.values(),
    ids=LOSSES,
)
def test_what_is_lost_is_named_and_no_other_step_takes_its_place(
    tmp_path: Path, options: dict[str, Any], holds: int, dies: int, lost: str, before: int,
    analysed: list[int], fourth: list[int],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    options = {**options, "background": True}
    assert train(run, "itself", holds=holds, dies=dies, **options) is None
    notes = train(run, "itself", **options)
    assert notes is not None
    (note,) = [line for line in notes.splitlines() if "the log lacks" in line]
    assert re.search(rf"lacks the analysis of {lost}(?! and [0-9])", note), note
    assert f"compared with the snapshot before goes on from step {before}." in note
    assert "call monitor.state_dict() before each checkpoint" in note
    found = read_run(run)
    # A callback that skips snapshots has one of the last step, too.
    assert steps_of(found, "holds/there") == analysed
    assert steps_of(found, "fourth/there") == fourth
    assert "the log lacks" in "\n".join(found.texts["monitor/notes"].values())


def test_what_was_lost_is_not_named_once_more(tmp_path: Path) -> None:
    run, options = tmp_path / "run", {"every": 10, "background": True}
    assert train(run, "itself", holds=30, dies=36, **options) is None
    assert train(run, "waits", dies=50, **options) is None
    notes = train(run, "itself", **options)
    assert notes is not None
    assert "lacks" not in notes
    assert steps_of(read_run(run), "holds/there") == [10, 20, 40, 50, 60]


def test_a_run_that_goes_on_and_was_never_due_has_no_snapshot_of_a_step_in_its_midst(
    tmp_path: Path,
) -> None:
    run, options = tmp_path / "run", {"every": 100, "background": True}
    assert train(run, "itself", dies=21, **options) is None
    notes = train(run, "itself", **options)
    assert notes is not None
    assert "in 39 steps: the last step is analysed" in notes
    assert "lacks the training loop's numbers of steps 3, 4, …, 21." in notes
    assert steps_of(read_run(run), "holds/there") == [60]


X = np.random.default_rng(0).standard_normal((16, 3, 2)).astype(np.float32)


class There(ncp.Callback):
    """Log that a snapshot was analysed."""

    default_name = "there"

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        yield Scalar("there/there", 1.0)


def monitor_of(run: Path, **options: Any) -> ncp.Monitor:
    given = {"every": 10, "train_every": 1, "background": False, **options}
    return ncp.Monitor(Net(), ncp.HeldOutBatch(X), [There()], run, **given)


@pytest.mark.parametrize("resume", [{"resume": "auto"}, {"resume_step": 33}])
def test_what_a_power_failure_took_is_named_from_what_the_schedules_tell(
    tmp_path: Path, resume: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    with monitor_of(run, resume="auto") as monitor:
        for step in range(1, 36):
            monitor.on_step_end(step, loss=1.0)
            if step == 12:
                monitor.state_dict()
                (file,) = run.glob("*tfevents*")
                size = file.stat().st_size
    # The disk has the checkpoint of step 33, but the log only to step 12.
    with file.open("r+b") as there:
        there.truncate(size)
    for step in (20, 30):
        (run / "monitor_state" / f"{step}.json").unlink()
    with monitor_of(run, **resume) as monitor:
        for step in range(34, 45):
            monitor.on_step_end(step, loss=1.0)
    (note,) = monitor.notes
    assert (
        "the log lacks the analysis of steps 20 and 30 and the training loop's numbers of steps "
        "13, 14, …, 33"
    ) in note
    found = read_run(run)
    assert steps_of(found, "there/there") == [10, 40]
    assert steps_of(found, "train/loss") == [*range(1, 13), *range(34, 45)]


@pytest.mark.parametrize("background", [True, False])
def test_all_is_on_the_disk_when_the_state_is_returned(tmp_path: Path, background: bool) -> None:
    callbacks = [ncp.GradientAttribution(), ncp.StateSpace()]
    with ncp.Monitor(
        Net(), ncp.HeldOutBatch(X), callbacks, tmp_path, every=1, background=background
    ) as monitor:
        for step in (1, 2, 3):
            monitor.on_step_end(step, loss=0.5)
            monitor.log_scalars(step, {"val/loss": 0.25})
            monitor.state_dict()
            found = read_run(tmp_path)
            for tag in ("train/loss", "val/loss", "attribution/entropy", "hidden/pc1_share"):
                assert steps_of(found, tag) == list(range(1, step + 1)), tag
            assert len(found.images) > 2
            for tag, of in found.images.items():
                assert list(of) == list(range(1, step + 1)), tag


def test_a_state_that_the_observer_did_not_get_ready_is_reported(tmp_path: Path) -> None:
    with monitor_of(tmp_path, background=True) as monitor:
        observer: Any = monitor._observer.current
        monitor.on_step_end(10, loss=1.0)
        monitor.state_dict()
        assert monitor.notes == ()
        observer.patience = 0.5
        observer._process.send_signal(signal.SIGSTOP)
        monitor.on_step_end(20, loss=1.0)
        monitor.state_dict()
        observer._process.send_signal(signal.SIGCONT)
        observer.patience = 300.0
    (note,) = monitor.notes
    assert "the state of step 20 was returned before all was on the disk" in note
    assert steps_of(read_run(tmp_path), "there/there") == [10, 20]


def test_snapshots_that_were_skipped_are_not_called_lost(tmp_path: Path) -> None:
    with monitor_of(tmp_path, resume="auto", max_overhead=1e-9) as monitor:
        for step in range(1, 36):
            monitor.on_step_end(step, loss=1.0)
    assert steps_of(read_run(tmp_path), "there/there") == [10]
    monitor = monitor_of(tmp_path, resume="auto")
    with monitor:
        monitor.on_step_end(36, loss=1.0)
    assert monitor.notes == ()


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (every(steps=10), range(25, 45), [30, 40]),
        (every(steps=10), range(28, 60, 7), [35, 42, 56]),
        (at([30, 31, 90]), range(25, 45), [30, 31]),
        (log_spaced(), range(1, 12), [1, 2, 3, 6, 10]),
        (every(steps=10) & ~at([30]), range(25, 45), [40]),
        (every(steps=10) | at([33]), range(25, 45), [30, 33, 40]),
        (as_schedule(lambda step: True), range(25, 45), []),
        (every(seconds=1e-9), range(25, 45), []),
        (every(steps=10) | every(seconds=1e-9), range(25, 45), []),
    ],
)
def test_schedules_catch_up_with_steps_that_were_made_where_the_step_decides(
    schedule: Any, steps: range, expected: list[int]
) -> None:
    callback = ncp.StateTransitions()
    due = DueCallbacks([callback], schedule, None, set(), lambda *_: None, raise_errors=True)
    due.starts_after(steps[0] - steps.step)
    assert due.catch_up(steps) == (expected, expected)
    assert due.state_dict() == ({callback.name: len(expected)} if expected else {})


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([30], "step 30"),
        ([30, 40], "steps 30 and 40"),
        ([10, 20, 30, 40], "steps 10, 20, …, 40"),
        ([1, 2, 5, 10, 20, 30, 40, 55], "steps 1, 2, 5, 10, 20, …, 40 and 55"),
        ([2**i for i in range(20)], "steps 1, 2, 4, 8, 16, 32, 64 and 13 more up to 524288"),
    ],
)
def test_lost_steps_are_listed_in_few_words(steps: list[int], text: str) -> None:
    run = Run("run", Path(), {}, {}, {}, {}, {}, {})
    assert what_is_lacking(run, 10**6, steps, []) == f"the analysis of {text}"
