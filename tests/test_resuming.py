"""Killed runs go on by themselves: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_nets import Net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ncp_callbacks as ncp
from ncp_callbacks.runs import read_run
from ncp_callbacks.writers.kept_states import (
    MAX_BYTES,
    MAX_STATES,
    KeptState,
    state_files,
    write_state,
)

# A training as a cluster starts it again and again: it goes on from its newest checkpoint, of every
# sixth step. From step `ready` on it is slow, and waits to be killed.
TRAINING = """
    import sys, time
    from pathlib import Path
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    import ncp_callbacks as ncp
    from checkpointed import Net, go_on, save
    from ncp_callbacks.runs import read_run

    run, checkpoints, ready = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    ncp.TensorBoardWriter.__init__.__kwdefaults__["flush_seconds"] = 0.05

    def on_disk(step):
        try:
            return read_run(run).scalars["train/loss"].steps[-1] >= step
        except Exception:
            return False

    mx.random.seed(0)
    x = mx.random.normal((8, 4, 2))
    model, optimizer = Net(), optim.SGD(0.1)
    newest = go_on(model, checkpoints)
    first = int(newest.stem) + 1 if newest else 1
    loss_and_grad = nn.value_and_grad(model, lambda x: ((model(x) - x[:, 0, 0]) ** 2).mean())
    monitor = ncp.Monitor(
        model, ncp.HeldOutBatch(x, 1.0, targets=x[:, 0, 0]), log_dir=run, every=2, train_every=1,
        resume="auto", verbose=True,
    )
    with monitor:
        for step in range(first, 21):
            loss, gradients = loss_and_grad(x)
            optimizer.update(model, gradients)
            monitor.on_step_end(step, loss=loss)
            if step % 6 == 0:
                save(model, checkpoints, step)
            if step == ready:
                state = run / "monitor_state" / f"{step - step % 6}.json"
                while not (state.exists() and on_disk(step)):
                    time.sleep(0.05)
                print("ready", flush=True)
            if ready and step >= ready:
                time.sleep(0.2)
    print(*monitor.notes, sep="\\n")
"""


def train(run: Path, checkpoints: Path, ready: int = 0) -> tuple[str, str]:
    """Train to the end, or with ``ready`` until it is killed after this step."""
    checkpoints.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINING), run, checkpoints, str(ready)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert process.stdout is not None
    if ready:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGKILL if ready else 0), errors
    return out, errors


def test_a_killed_run_logs_what_one_that_was_not_killed_does(tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(whole, tmp_path / "checkpoints")
    train(run, tmp_path / "others", ready=9)
    train(run, tmp_path / "others", ready=16)
    notes, errors = train(run, tmp_path / "others")
    # The last checkpoint is older than the log, in which the training had gone on.
    assert "which goes on after step 1" in errors
    assert "the training goes on with step 13: what was logged for it" in errors
    assert "begin anew" not in notes

    expected, found = read_run(whole), read_run(run)
    assert found.scalars["train/loss"].steps.tolist() == list(range(1, 21))
    compared = 0
    for tag, points in expected.scalars.items():
        if not tag.startswith("monitor/"):
            compared += 1
            assert found.scalars[tag].steps.tolist() == points.steps.tolist(), tag
            assert found.scalars[tag].values.tolist() == points.values.tolist(), tag
    assert compared > 40
    assert found.ci.keys() == expected.ci.keys()
    for tag, ends in expected.ci.items():
        assert found.ci[tag].low.tolist() == ends.low.tolist(), tag
    findings = found.texts["_ncp/findings"], expected.texts["_ncp/findings"]
    assert findings[0][20] == findings[1][20]

    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    assert [p.step for p in events.Scalars("train/loss")] == list(range(1, 21))
    assert [p.step for p in events.Scalars("xai_attribution/entropy")] == list(range(2, 21, 2))
    assert events.Tensors("monitor/run")
    assert events.Tensors("monitor/guide")


# ---- in one process


class Count(ncp.Callback):
    """Count the snapshots of a run, with those before an interruption."""

    default_name = "count"

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        self.seen += 1
        yield ncp.Scalar("count/snapshots", float(self.seen))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]


X = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)


def monitored(
    run: Path, steps: range, *, x: Any = X, callbacks: Any = None, **options: Any
) -> ncp.Monitor:
    """Report some steps to a monitor that keeps its state beside the log, and close it."""
    given = {"every": 2, "train_every": 1, "resume": "auto", "background": False, **options}
    with ncp.Monitor(Net(), ncp.HeldOutBatch(x), callbacks or [Count()], run, **given) as monitor:
        for step in steps:
            monitor.on_step_end(step, loss=1.0 / step)
    return monitor


def counted(run: Path) -> list[tuple[int, float]]:
    points = read_run(run).scalars["count/snapshots"]
    return list(zip(points.steps.tolist(), points.values.tolist(), strict=True))


def test_a_run_begins_where_nothing_is(tmp_path: Path) -> None:
    monitor = monitored(tmp_path / "run", range(1, 5))
    assert monitor.log_dir == str(tmp_path / "run")
    assert monitor.notes == ()
    assert [step for step, _ in state_files(tmp_path / "run")] == [4, 2]


def test_without_resume_no_state_is_kept(tmp_path: Path) -> None:
    monitored(tmp_path / "run", range(1, 5), resume=None)
    assert not (tmp_path / "run" / "monitor_state").exists()


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    monitored(tmp_path / "run", range(1, 5))
    monitor = monitored(tmp_path / "run", range(5, 9))
    assert monitor.log_dir == str(tmp_path / "run")
    assert counted(tmp_path / "run") == [(2, 1), (4, 2), (6, 3), (8, 4)]
    assert monitor.notes == ()


def test_steps_count_on_from_the_log(tmp_path: Path) -> None:
    monitored(tmp_path / "run", range(1, 5))
    monitor = ncp.Monitor(
        Net(), ncp.HeldOutBatch(X), [Count()], tmp_path / "run", every=2, resume="auto"
    )
    assert [step for step, _ in monitor.steps("ab")] == [5, 6]


def test_an_attached_function_goes_on_from_an_older_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    monitored(run, range(1, 9))
    monitor = ncp.Monitor(
        Net(), ncp.HeldOutBatch(X), [Count()], run, every=2, train_every=1, resume="auto"
    )
    step = monitor.attach(lambda loss: loss, first=6)
    for loss in (0.5, 0.25, 0.125):
        step(loss)
    monitor.close()
    assert counted(run) == [(2, 1), (4, 2), (6, 3), (8, 4)]
    losses = read_run(run).scalars["train/loss"]
    assert losses.steps.tolist() == list(range(1, 9))
    assert losses.values[5:].tolist() == [0.5, 0.25, 0.125]


def test_a_training_that_begins_anew_replaces_all(tmp_path: Path) -> None:
    monitored(tmp_path / "run", range(1, 9))
    monitor = monitored(tmp_path / "run", range(1, 5))
    assert counted(tmp_path / "run") == [(2, 1), (4, 2)]
    assert read_run(tmp_path / "run").scalars["train/loss"].steps.tolist() == [1, 2, 3, 4]
    assert [step for step, _ in state_files(tmp_path / "run")] == [4, 2]
    assert monitor.notes == ()


def test_an_older_checkpoint_has_the_state_that_belongs_to_it(tmp_path: Path) -> None:
    monitored(tmp_path / "run", range(1, 9))
    monitored(tmp_path / "run", range(6, 9))
    assert counted(tmp_path / "run") == [(2, 1), (4, 2), (6, 3), (8, 4)]
    # Asked for by its number, before anything is reported.
    monitored(tmp_path / "run", range(4, 7), resume_step=3)
    assert counted(tmp_path / "run") == [(2, 1), (4, 2), (6, 3)]


def test_a_number_that_is_logged_before_the_first_step_stays(tmp_path: Path) -> None:
    monitored(tmp_path / "run", range(1, 9))
    with ncp.Monitor(
        Net(), ncp.HeldOutBatch(X), [Count()], tmp_path / "run", every=2, resume="auto"
    ) as monitor:
        monitor.log_scalars(5, {"val/loss": 0.5})  # of the checkpoint that was loaded
        monitor.on_step_end(6, loss=1.0)
    assert read_run(tmp_path / "run").scalars["val/loss"].steps.tolist() == [5]


def test_a_damaged_state_costs_itself(tmp_path: Path) -> None:
    run = tmp_path / "run"
    monitored(run, range(1, 9))
    (_, newest), (_, second), *_ = state_files(run)
    newest.write_bytes(newest.read_bytes()[:40])
    second.write_text("[]")
    # What a process leaves that is killed while it writes.
    (newest.parent / f".10.json.{os.getpid()}.part").write_text("{")
    monitor = monitored(run, range(9, 11))
    unread, older, missing = monitor.notes
    assert unread.startswith("the state of step 8 can't be read")
    assert older.startswith("the state of step 6 can't be read")
    assert missing.startswith(
        "no state of step 8 is kept beside the log: what is compared with the snapshot before goes "
        "on from step 4"
    )
    assert counted(run)[-1] == (10, 3)  # as step 4 had seen two


def test_a_log_without_states_goes_on_with_a_note(tmp_path: Path) -> None:
    monitored(tmp_path / "run", range(1, 5), resume=None)
    monitor = monitored(tmp_path / "run", range(5, 7))
    assert counted(tmp_path / "run") == [(2, 1), (4, 2), (6, 1)]
    (note,) = monitor.notes
    assert note.startswith("no state of a snapshot before step 5 is kept beside the log")


def test_another_held_out_batch_takes_up_no_state(tmp_path: Path) -> None:
    monitored(tmp_path / "run", range(1, 5))
    monitor = monitored(tmp_path / "run", range(5, 7), x=X + 1)
    assert counted(tmp_path / "run") == [(2, 1), (4, 2), (6, 1)]
    (note,) = monitor.notes
    assert note.startswith("the held-out batch differs from that of step 4")
    assert "fixed seed" in note


def test_another_callback_begins_anew_and_the_others_go_on(tmp_path: Path) -> None:
    monitored(tmp_path / "run", range(1, 5))
    both = [Count(), ncp.StateTransitions()]
    monitor = monitored(tmp_path / "run", range(5, 7), callbacks=both)
    assert counted(tmp_path / "run")[-1] == (6, 3)
    assert any("transitions" in note and "starts anew" in note for note in monitor.notes)


def test_a_callback_that_cannot_take_its_part_does_not_end_the_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    monitored(run, range(1, 5))
    (_, newest), *_ = state_files(run)
    state = json.loads(newest.read_text())
    state["callbacks"]["count"] = {"unseen": 3}
    newest.write_text(json.dumps(state))
    monitor = monitored(run, range(5, 7))
    assert counted(run)[-1] == (6, 1)
    assert any("can't be taken up" in note for note in monitor.notes)


def test_a_state_that_json_cannot_hold_is_reported_once(tmp_path: Path) -> None:
    class Odd(Count):
        def state_dict(self) -> dict[str, Any]:
            return {"seen": {1, 2}}

    monitor = monitored(tmp_path / "run", range(1, 9), callbacks=[Odd()])
    (note,) = monitor.notes
    assert note.startswith("the state of the callbacks can't be kept beside the log")
    assert len(counted(tmp_path / "run")) == 4


def test_the_states_that_are_kept_are_bounded_and_the_newest_are_all_there(tmp_path: Path) -> None:
    for step in range(1, 501):
        write_state(tmp_path, KeptState(step, '{"callbacks": {}}'))
    steps = [step for step, _ in state_files(tmp_path)]
    assert len(steps) <= MAX_STATES
    assert steps[: MAX_STATES // 2] == list(range(500, 500 - MAX_STATES // 2, -1))
    assert steps[-1] == 1
    gaps = -np.diff(steps)
    assert gaps[-1] > gaps[MAX_STATES // 2]  # Older ones are sparser.


def test_the_bytes_of_the_states_that_are_kept_are_bounded(tmp_path: Path) -> None:
    def kept() -> list[int]:
        return [step for step, _ in state_files(tmp_path)]

    large = '{"callbacks": {}, "more": "' + "x" * (5 << 20) + '"}'
    for step in range(1, 41):
        write_state(tmp_path, KeptState(step, large))
        assert sum(path.stat().st_size for _, path in state_files(tmp_path)) <= MAX_BYTES
    steps = kept()
    assert len(steps) == 6
    assert steps[:3] == [40, 39, 38]
    # Two that are too large stay: the older one belongs to a checkpoint that may be the last.
    for step in (41, 42, 43):
        write_state(tmp_path, KeptState(step, large * 5))
    assert kept() == [43, 42]


@pytest.mark.parametrize("resume", [True, "yes", 3])
def test_what_is_no_way_to_resume(tmp_path: Path, resume: Any) -> None:
    with pytest.raises(ValueError, match=f"resume={resume!r}: pass 'auto' or None"):
        monitored(tmp_path, range(1, 2), resume=resume)


def test_resuming_needs_a_directory() -> None:
    with pytest.raises(ValueError, match=r"pass log_dir="):
        ncp.Monitor(Net(), ncp.HeldOutBatch(X), [Count()], writer=ncp.MemoryWriter(), resume="auto")


def test_a_state_that_the_user_saved_counts_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    state = monitored(run, range(1, 7)).state_dict()
    state["callbacks"]["count"]["seen"] = 40
    given = {"every": 2, "resume": "auto", "background": False}
    monitor = ncp.Monitor(Net(), ncp.HeldOutBatch(X), [Count()], run, **given)  # type: ignore[arg-type]
    monitor.load_state_dict(state)
    with monitor:
        monitor.on_step_end(8)
    assert counted(run)[-1] == (8, 41)
