"""The first and the last step are analysed in a run in which no step was due."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.observer.snapshot import SnapshotReader


class Mean(ncp.Callback):
    """Log the mean target, which shows which parameters were analysed."""

    def measure(self, observation: Any) -> Any:
        yield ncp.Scalar(f"{self.name}/mean", float(observation.target_values.mean()))


def model_and_batch() -> tuple[nn.Module, ncp.HeldOutBatch]:
    mx.random.seed(0)
    model = nn.Sequential(nn.GRU(2, 3), nn.Linear(3, 1))
    mx.eval(model.parameters())
    return model, ncp.HeldOutBatch(mx.random.normal((4, 5, 2), key=mx.random.key(1)))


def run(steps: int, callbacks: list[ncp.Callback], **options: Any) -> tuple[Any, Any, list[float]]:
    """Return the writer, the monitor, and the mean target after each step, by hand."""
    model, held_out = model_and_batch()
    writer, means = ncp.MemoryWriter(), []
    with ncp.Monitor(model, held_out, callbacks, writer=writer, **options) as monitor:
        for step in range(1, steps + 1):
            head = model.layers[1]
            head.weight, head.bias = 1.1 * head.weight, head.bias + 0.1
            means.append(float(np.array(model(held_out.inputs))[:, -1].mean()))
            monitor.on_step_end(step)
    return writer, monitor, means


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    "schedule", [100, ncp.every(seconds=1e6), ncp.at([1000]), ncp.every(steps=70) | ncp.at([90])]
)
def test_a_monitor_that_is_never_due(schedule: Any, background: bool) -> None:
    writer, monitor, means = run(50, [Mean(name="m")], every=schedule, background=background)
    found = writer.scalars("m/mean")
    assert [step for step, _ in found] == [1, 50]
    np.testing.assert_allclose([v for _, v in found], [means[0], means[-1]], rtol=1e-5)
    (note,) = (note for note in monitor.notes if "no step was due" in note)
    assert "m by " in note
    assert "in 50 steps" in note


def test_one_step() -> None:
    writer, _, means = run(1, [Mean(name="m")], every=100)
    assert writer.scalars("m/mean") == [(1, pytest.approx(means[0], rel=1e-5))]


@pytest.mark.parametrize("background", [False, True])
def test_what_was_due_is_analysed_as_scheduled(background: bool) -> None:
    writer, monitor, means = run(25, [Mean(name="m")], every=10, background=background)
    assert [step for step, _ in writer.scalars("m/mean")] == [10, 20]
    np.testing.assert_allclose(
        [v for _, v in writer.scalars("m/mean")], [means[9], means[19]], rtol=1e-5
    )
    assert not any("no step was due" in note for note in monitor.notes)


def test_one_callback_of_two_is_never_due() -> None:
    writer, monitor, means = run(25, [Mean(name="m"), Mean(name="n", every=100)], every=10)
    assert [step for step, _ in writer.scalars("m/mean")] == [10, 20]
    assert writer.scalars("n/mean") == [(25, pytest.approx(means[-1], rel=1e-5))]
    (note,) = (note for note in monitor.notes if "no step was due" in note)
    assert "for n by every(steps=100)" in note


@pytest.mark.parametrize("schedule", [lambda step: False, ncp.at([]), ~ncp.every(steps=1)])
def test_a_schedule_that_means_never(schedule: Any) -> None:
    writer, monitor, _ = run(10, [Mean(name="m")], every=schedule)
    assert writer.scalars("m/mean") == []
    assert not any("no step was due" in note for note in monitor.notes)


def test_a_run_that_an_error_ends_is_not_analysed_again() -> None:
    model, held_out = model_and_batch()
    writer = ncp.MemoryWriter()

    def train() -> None:
        with ncp.Monitor(model, held_out, [Mean(name="m")], writer=writer, every=100) as monitor:
            monitor.on_step_end(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert writer.scalars("m/mean") == []


class Stopped(Exception):
    pass


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_an_interrupt_while_the_first_snapshot_is_read(
    error: type[BaseException], background: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, held_out = model_and_batch()
    writer, read = ncp.MemoryWriter(), SnapshotReader.read
    before = signal.signal(signal.SIGUSR1, stop := lambda *_: (_ for _ in ()).throw(error()))
    assert signal.getsignal(signal.SIGUSR1) is stop

    def interrupted(reader: SnapshotReader, *args: Any, **options: Any) -> Any:
        monkeypatch.setattr(SnapshotReader, "read", read)
        found = read(reader, *args, **options)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.01)
        return found

    try:
        with ncp.Monitor(
            model, held_out, [Mean(name="m")], writer=writer, every=100, background=background
        ) as monitor:
            monkeypatch.setattr(SnapshotReader, "read", interrupted)
            with pytest.raises(error):
                monitor.on_step_end(1)
            model.layers[1].bias = model.layers[1].bias + 0.5
            for step in (2, 3):
                monitor.on_step_end(step)
    finally:
        signal.signal(signal.SIGUSR1, before)
    found = dict(writer.scalars("m/mean"))
    assert max(found) == 3
    expected = float(np.array(model(held_out.inputs))[:, -1].mean())
    assert found[3] == pytest.approx(expected, rel=1e-5)
    assert not [note for note in monitor.notes if "fail" in note]


def test_steps_that_restart_are_noted_with_the_fix() -> None:
    model, held_out = model_and_batch()
    with ncp.Monitor(model, held_out, [Mean()], writer=ncp.MemoryWriter(), every=4) as monitor:
        for _ in range(3):
            for i in range(6):
                monitor.on_step_end(i)
        (note,) = (note for note in monitor.notes if "came after" in note)
    assert note.startswith("step 0 came after step 5")
    assert "pass epoch * batches + i" in note


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("steps", "analysed"), [(1, [1]), (4, [1, 4]), (5, [1, 4, 5]), (6, [1, 4, 6]), (7, [1, 4, 7])]
)
def test_a_callback_that_skips_snapshots_sees_the_trained_model(
    steps: int, analysed: list[int], background: bool
) -> None:
    seldom, always = Mean(name="seldom"), Mean(name="always")
    seldom.every_nth = 3
    writer, _, means = run(steps, [seldom, always], every=1, background=background)
    found = writer.scalars("seldom/mean")
    assert [step for step, _ in found] == analysed
    np.testing.assert_allclose([v for _, v in found], [means[s - 1] for s in analysed], rtol=1e-5)
    assert [step for step, _ in writer.scalars("always/mean")] == list(range(1, steps + 1))


def test_after_an_error_nothing_more_is_analysed() -> None:
    model, held_out = model_and_batch()
    seldom, writer = Mean(name="seldom"), ncp.MemoryWriter()
    seldom.every_nth = 3

    def train() -> None:
        with ncp.Monitor(model, held_out, [seldom], writer=writer, every=1) as monitor:
            for step in (1, 2):
                monitor.on_step_end(step)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert [step for step, _ in writer.scalars("seldom/mean")] == [1]
