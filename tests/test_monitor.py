"""The monitor in a loop: when it looks, what it logs, what it refuses, what it survives."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from promises import told

import ncp_callbacks as ncp
from ncp_callbacks.models import CfC

B, T, F = 6, 5, 3


class Net(nn.Module):
    """A CfC under a linear head: ``(B, T, O)``."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.rnn = CfC(F, 8, backbone_units=6, activation="relu")
        self.head = nn.Linear(8, outputs)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class NoTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(F, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(x)


@pytest.fixture
def model() -> Net:
    mx.random.seed(0)
    net = Net()
    mx.eval(net.parameters())
    return net


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((B, T, F)).astype(np.float32)
    return x, rng.uniform(0.5, 2.0, (B, T)).astype(np.float32)


@pytest.fixture
def held_out() -> ncp.HeldOutBatch:
    x, dt = arrays()
    return ncp.HeldOutBatch(x, dt, targets=np.arange(B) % 4)


class Counting(ncp.Callback):
    """Logs how often it has looked."""

    def __init__(self, **common: object) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        self.looks = 0

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        self.looks += 1
        yield ncp.Scalar(f"{self.name}/looks", self.looks)


class Failing(ncp.Callback):
    def __init__(self, at: int, **common: object) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        self.at = at

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        if observation.step >= self.at:
            raise ZeroDivisionError("planted")
        yield ncp.Scalar(f"{self.name}/fine", 1.0)


# ---- when


def steps_of(writer: ncp.MemoryWriter, tag: str) -> list[int]:
    return [step for step, _ in writer.scalars(tag)]


def test_default_schedule_and_own_schedules(model: Net, held_out: ncp.HeldOutBatch) -> None:
    writer = ncp.MemoryWriter()
    callbacks = [
        Counting(name="default"),
        Counting(name="own", every=4),
        Counting(name="listed", every=ncp.at([1, 9]) | (lambda step: step == 2)),
    ]
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=5) as monitor:
        for step in range(1, 11):
            monitor.on_step_end(step, loss=step / 10)
    assert steps_of(writer, "default/looks") == [5, 10]
    assert steps_of(writer, "own/looks") == [4, 8]
    assert steps_of(writer, "listed/looks") == [1, 2, 9]
    # Without train_every, the keywords are logged whenever anything is due.
    assert writer.scalars("train/loss") == [(s, s / 10) for s in (1, 2, 4, 5, 8, 9, 10)]
    # The dry run counts for nothing.
    assert writer.scalars("default/looks") == [(5, 1), (10, 2)]


def test_train_every_is_its_own_schedule(model: Net, held_out: ncp.HeldOutBatch) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        model, held_out, [Counting()], writer=writer, every=6, train_every=2
    ) as monitor:
        for step in range(1, 7):
            monitor.on_step_end(step, loss=1.0)
    assert steps_of(writer, "train/loss") == [2, 4, 6]
    assert steps_of(writer, "counting/looks") == [6]


def test_a_lazy_loss_is_evaluated_only_when_logged(model: Net, held_out: ncp.HeldOutBatch) -> None:
    class Lazy:
        evaluated = 0

        def item(self) -> float:
            Lazy.evaluated += 1
            return 2.5

    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [Counting()], writer=writer, every=10) as monitor:
        for step in range(1, 31):
            monitor.on_step_end(step, loss=Lazy())
    assert Lazy.evaluated == 3
    assert writer.scalars("train/loss") == [(10, 2.5), (20, 2.5), (30, 2.5)]


def test_a_schedule_that_counts_time_is_asked_once_a_step(
    model: Net, held_out: ncp.HeldOutBatch
) -> None:
    now = 0.0
    schedule = ncp.every(seconds=2.0, clock=lambda: now)
    writer = ncp.MemoryWriter()
    callbacks = [Counting(name="a"), Counting(name="b")]
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=schedule) as monitor:
        for step in range(1, 9):
            monitor.on_step_end(step)
            now += 1.0
    assert steps_of(writer, "a/looks") == steps_of(writer, "b/looks") == [3, 5, 7]


def test_log_spaced_steps_grow_by_a_constant_factor() -> None:
    due = [s for s in range(1, 1001) if ncp.log_spaced(per_decade=1)(s)]
    assert due == [1, 10, 100, 1000]
    due = [s for s in range(1, 101) if ncp.log_spaced(per_decade=4)(s)]
    assert due == [1, 2, 3, 6, 10, 18, 32, 56, 100]


def test_schedules_combine() -> None:
    schedule = (ncp.every(steps=4) | ncp.at([3])) & ~ncp.at([8])
    assert [s for s in range(1, 13) if schedule(s)] == [3, 4, 12]


def test_loops_that_count_by_more_than_one_miss_nothing() -> None:
    schedule = ncp.every(steps=100)
    assert [s for s in range(32, 700, 32) if schedule(s)] == [128, 224, 320, 416, 512, 608]
    # A run that starts again from the beginning, and two that ask about the same step.
    assert [s for s in range(1, 301) if schedule(s) and schedule(s)] == [100, 200, 300]


@pytest.mark.parametrize(
    "schedule", [ncp.every(steps=100), ncp.every(steps=100) | ncp.at([7]), ~~ncp.every(steps=100)]
)
def test_a_first_step_that_passes_a_multiple_is_due_if_it_is_known_where_the_loop_began(
    schedule: Any,
) -> None:
    assert [s for s in range(150, 500, 150) if schedule(s)] == [300, 450]
    schedule.starts_after(0)
    assert [s for s in range(150, 500, 150) if schedule(s)] == [150, 300, 450]
    schedule.starts_after(120)
    assert [s for s in range(150, 500, 150) if schedule(s)] == [300, 450]
    schedule.starts_after(600)  # A loop that begins before it is one that was not known of.
    assert [s for s in range(150, 500, 150) if schedule(s)] == [300, 450]


# ---- what


def test_user_scalars_keep_their_tags(model: Net, held_out: ncp.HeldOutBatch) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [], writer=writer) as monitor:
        monitor.log_scalars(7, {"val/loss": mx.array(0.25), "val/accuracy": np.float32(0.5)})
    assert writer.scalars("val/loss") == [(7, 0.25)]
    assert writer.scalars("val/accuracy") == [(7, 0.5)]


def test_standard_set_on_a_model_without_time_or_cell(
    held_out: ncp.HeldOutBatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ncp.MemoryWriter()
    x, _ = arrays()
    batch = ncp.HeldOutBatch(x)
    with (
        caplog.at_level(logging.WARNING, "ncp_callbacks"),
        ncp.Monitor(NoTime(), batch, writer=writer, every=1) as monitor,
    ):
        for step in range(1, 4):
            monitor.on_step_end(step)
        assert [c.name for c in monitor.callbacks] == ["attribution", "removal"]
    said = [r.message for r in caplog.records]
    assert len(said) == 5, said
    # Six sequences.
    assert sum("with fewer than 16, 95 % CIs cover" in message for message in said) == 1
    for name, word in [
        ("time_delta", "no time_delta"),
        ("transitions", "no recurrent cell"),
        ("hidden", "no recurrent cell"),
        ("backbone", "no backbone"),
    ]:
        assert any(
            m.startswith(f"{name} doesn't apply to this model: ") and word in m for m in said
        )
    groups = {tag.split("/")[0] for tag in writer.tags}
    assert groups == {
        "attribution", "attribution_share", "removal", "removal_share", "findings",
        "monitor", "_ncp",
    }  # fmt: skip


def test_target_is_named_in_tags(model: Net, held_out: ncp.HeldOutBatch) -> None:
    for target, at, group in [
        ("prediction", "last", "attribution"),
        (2, "last", "attribution_output2"),
        ("loss", "last", "attribution_loss"),
        (-1, "mean", "attribution_output3_mean"),
        ("prediction", 1, "attribution_at1"),
    ]:
        writer = ncp.MemoryWriter()
        with ncp.Monitor(
            model,
            held_out,
            [ncp.GradientAttribution()],
            writer=writer,
            every=1,
            target=target,
            at=at,
        ) as monitor:
            monitor.on_step_end(1)
        assert f"{group}/strength" in writer.tags, (target, writer.tags)


def test_non_finite_model_is_counted_not_hidden(model: Net, held_out: ncp.HeldOutBatch) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, writer=writer, every=1) as monitor:
        monitor.on_step_end(1, loss=1.0)
        model.head.weight = mx.full(model.head.weight.shape, float("nan"))
        monitor.on_step_end(2, loss=float("nan"))
        assert len(monitor.callbacks) == 7
    assert writer.scalars("attribution/nonfinite") == [(1, 0), (2, B)]
    assert writer.scalars("time_delta/nonfinite") == [(1, 0), (2, B)]
    assert np.isnan(writer.scalars("train/loss")[1][1])
    assert steps_of(writer, "attribution/strength") == [1]
    # The states don't come through the head.
    assert steps_of(writer, "hidden/participation_ratio") == [1, 2]


def test_the_held_out_batch_is_frozen(model: Net) -> None:
    x, dt = arrays()
    y, given = x.copy(), mx.array(x)
    batch = ncp.HeldOutBatch(x, dt)
    same = ncp.HeldOutBatch(given, mx.array(dt))
    x += 1.0
    given[0] = 5.0
    batch.inputs[0] = 7.0
    for b in (batch, same):
        np.testing.assert_array_equal(np.array(b.inputs), y)


# ---- what is refused before the first step


def refused(error: type[Exception], *words: str) -> pytest.RaisesExc:
    return pytest.raises(error, match="(?s)" + ".*".join(words))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"inputs": np.zeros((4, 3), np.float32)}, ValueError, [r"\(4, 3\)", "batch, time"]),
        ({"inputs": np.zeros((0, 5, 3), np.float32)}, ValueError, [r"\(0, 5, 3\)"]),
        ({"inputs": np.zeros((B, T, F), np.int64)}, TypeError, ["int", "astype"]),
        ({"inputs": [[1.0]]}, TypeError, ["list", "array"]),
        ({"time_delta": np.ones((B, T - 1))}, ValueError, [r"\(6, 4\)", r"\(6, 5\)"]),
        ({"time_delta": np.zeros((B, T))}, ValueError, ["is 0 at sequence 0, step 0", "diff"]),
        ({"time_delta": -1.0}, ValueError, ["is -1", "above 0"]),
        ({"time_delta": np.full((B, T), np.inf)}, ValueError, ["inf", "finite"]),
        ({"mask": np.zeros((B, T), bool)}, ValueError, ["sequence 0", "drop"]),
        ({"mask": np.ones((B, T + 1), bool)}, ValueError, [r"\(6, 6\)"]),
        ({"mask": np.full((B, T), 3)}, ValueError, ["3", "booleans"]),
        ({"feature_names": ["a", "b"]}, ValueError, ["2 names", "3 features"]),
        ({"feature_names": ["a", "b", "a"]}, ValueError, ["'a'", "more than once"]),
        ({"feature_names": "abc"}, TypeError, ["'abc'"]),
        ({"targets": np.zeros(B + 1)}, ValueError, [r"\(7,\)", "6 sequences"]),
    ],
)
def test_bad_batches(changes: dict[str, object], error: type[Exception], words: list[str]) -> None:
    x, dt = arrays()
    with refused(error, *words):
        ncp.HeldOutBatch(**{"inputs": x, "time_delta": dt, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"target": "probability"}, ValueError, ["'probability'", "'prediction', 'loss'"]),
        ({"target": 4}, ValueError, ["target=4", "4 outputs", "0 to 3"]),
        ({"target": True}, TypeError, ["True"]),
        ({"target": lambda outputs, targets: outputs}, ValueError, [r"\(6, 5, 4\)", r"\(6,\)"]),
        ({"at": 5}, ValueError, ["at=5", "5 steps"]),
        ({"at": "first"}, ValueError, ["'first'", "'last', 'mean'"]),
        ({"at": "all"}, ValueError, ["OutputTime()", "at='mean'"]),
        ({"cells": "nothing*"}, ValueError, ["nothing", "rnn.cell"]),
        ({"layers": "head.*"}, ValueError, ["head", "rnn.cell.backbone"]),
        ({"forward": 3}, TypeError, ["forward", "int"]),
        ({"every": 0}, ValueError, ["every=0"]),
        ({"every": "often"}, TypeError, ["'often'"]),
        ({"callbacks": [ncp.StateSpace]}, TypeError, [r"StateSpace\(\)"]),
        ({"callbacks": [3]}, TypeError, ["int", "Callback"]),
        ({"callbacks": ncp.StateSpace()}, TypeError, ["list"]),
        ({"callbacks": [ncp.StateSpace(), ncp.StateSpace()]}, ValueError, ["'hidden'", "name="]),
        ({"on_error": "ignore"}, ValueError, ["'ignore'", "'disable'"]),
        ({"resume_step": -3}, ValueError, ["-3"]),
        ({"writer": "runs/x"}, TypeError, ["str", "log_dir"]),
        ({"log_dir": "x", "writer": SimpleNamespace(logdir="y")}, TypeError, ["'y'", "both"]),
        ({"writer": None}, TypeError, ["neither"]),
        ({"model": lambda x: x}, TypeError, ["function", "Module"]),
        ({"held_out": arrays()[0]}, TypeError, ["ndarray", "HeldOutBatch"]),
    ],
)
def test_bad_configurations(
    model: Net,
    held_out: ncp.HeldOutBatch,
    changes: dict[str, object],
    error: type[Exception],
    words: list[str],
) -> None:
    given = {"model": model, "held_out": held_out, "writer": ncp.MemoryWriter(), **changes}
    with refused(error, *words), ncp.Monitor(**given):  # type: ignore[arg-type]
        pytest.fail("entered")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ncp.Monitor(Net(), None, evry=3),  # type: ignore[call-arg, arg-type]
        lambda: ncp.GradientAttribution(evry=3),  # type: ignore[call-arg]
        lambda: ncp.TimeSensitivity((1, 2)),  # type: ignore[misc]
        lambda: ncp.StateSpace(refit=0.5),  # type: ignore[call-arg]
    ],
)
def test_unknown_arguments_are_errors(make: object) -> None:
    with pytest.raises(TypeError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ncp.TimeSensitivity(scales=[]),
        lambda: ncp.TimeSensitivity(scales=[0.5, -1]),
        lambda: ncp.TimeSensitivity(scales=[0.5, float("nan")]),
        lambda: ncp.StateSpace(refit_below=2),
        lambda: ncp.GradientAttribution(features="hr"),
        lambda: ncp.StateSpace(name="a/b"),
        lambda: ncp.every(),
        lambda: ncp.every(steps=0),
        lambda: ncp.every(seconds=-1),
        lambda: ncp.log_spaced(first=0),
    ],
)
def test_values_out_of_range_are_errors(make: object) -> None:
    with pytest.raises(ValueError, match=r"="):
        make()  # type: ignore[operator]


def test_time_delta_for_a_model_without_time(held_out: ncp.HeldOutBatch) -> None:
    with (
        refused(ValueError, "NoTime", "time_delta, timespans", "forward="),
        ncp.Monitor(NoTime(), held_out, writer=ncp.MemoryWriter()),
    ):
        pytest.fail("entered")


def test_loss_without_targets(model: Net) -> None:
    x, dt = arrays()
    with (
        refused(ValueError, "target='loss'", "targets="),
        ncp.Monitor(model, ncp.HeldOutBatch(x, dt), writer=ncp.MemoryWriter(), target="loss"),
    ):
        pytest.fail("entered")


def test_loss_targets_that_do_not_fit(model: Net) -> None:
    x, dt = arrays()
    batch = ncp.HeldOutBatch(x, dt, targets=np.zeros((B, 7), np.float32))
    with (
        refused(ValueError, r"\(6, 7\)", r"\(6, 4\)"),
        ncp.Monitor(model, batch, writer=ncp.MemoryWriter(), target="loss"),
    ):
        pytest.fail("entered")


def test_model_of_other_width(held_out: ncp.HeldOutBatch) -> None:
    with (
        refused(ValueError, "CfC", r"\(6, 5, 3\)", "takes 5"),
        ncp.Monitor(CfC(5, 8), held_out, writer=ncp.MemoryWriter()),
    ):
        pytest.fail("entered")


def test_unknown_feature_name(model: Net, held_out: ncp.HeldOutBatch) -> None:
    callbacks = [ncp.GradientAttribution(features=["heart rate"])]
    with (
        refused(Exception, "heart rate", "feature 0"),
        ncp.Monitor(model, held_out, callbacks, writer=ncp.MemoryWriter()),
    ):
        pytest.fail("entered")


def test_log_dir_that_is_a_file(model: Net, held_out: ncp.HeldOutBatch, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with (
        refused(NotADirectoryError, "run"),
        ncp.Monitor(model, held_out, log_dir=tmp_path / "run"),
    ):
        pytest.fail("entered")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_bad_configuration_leaves_no_run_behind(model: Net, tmp_path: Path) -> None:
    x, dt = arrays()
    with (
        pytest.raises(ValueError, match="target=9"),
        ncp.Monitor(model, ncp.HeldOutBatch(x, dt), log_dir=tmp_path / "run", target=9),
    ):
        pytest.fail("entered")
    assert not (tmp_path / "run").exists()


def test_a_callback_that_fails_in_the_dry_run(model: Net, held_out: ncp.HeldOutBatch) -> None:
    with (
        pytest.raises(RuntimeError, match=r"Failing.*dry run.*ZeroDivisionError: planted") as info,
        ncp.Monitor(model, held_out, [Failing(at=0)], writer=ncp.MemoryWriter()),
    ):
        pytest.fail("entered")
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_calls_outside_the_block(model: Net, held_out: ncp.HeldOutBatch) -> None:
    monitor = ncp.Monitor(model, held_out, writer=ncp.MemoryWriter())
    with pytest.raises(RuntimeError, match="with Monitor"):
        monitor.on_step_end(1)
    with monitor:
        monitor.on_step_end(1)
        with pytest.raises(TypeError):
            monitor.on_step_end("2")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="log_scalars was called on a monitor that is closed"):
        monitor.log_scalars(2, {"a": 1.0})
    with pytest.raises(RuntimeError, match="new Monitor"):
        monitor.__enter__()


# ---- what is survived


def test_a_failing_callback_is_disabled_and_reported_once(
    model: Net, held_out: ncp.HeldOutBatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ncp.MemoryWriter()
    callbacks = [Failing(at=3), Counting()]
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1) as monitor:
        for step in range(1, 6):
            monitor.on_step_end(step, loss=0.0)
        assert [c.name for c in monitor.callbacks] == ["counting", "held_out"]
    assert steps_of(writer, "failing/fine") == [1, 2]
    assert steps_of(writer, "counting/looks") == [1, 2, 3, 4, 5]
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1
    text = errors[0].getMessage()
    assert "failing failed at step 3; failing disabled: ZeroDivisionError: planted" in text
    assert "failing failed at step" in text
    assert 'raise ZeroDivisionError("planted")' in text  # the traceback, with its source


def test_on_error_raise(model: Net, held_out: ncp.HeldOutBatch) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        ncp.Monitor(
            model, held_out, [Failing(at=1)], writer=ncp.MemoryWriter(), every=1, on_error="raise"
        ) as monitor,
    ):
        monitor.on_step_end(1)


def test_a_model_that_begins_to_fail(
    model: Net, held_out: ncp.HeldOutBatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, writer=writer, every=1) as monitor:
        monitor.on_step_end(1, loss=0.5)
        del model["head"]
        for step in (2, 3):
            monitor.on_step_end(step, loss=0.5)
        # Removal is due at every third snapshot, and at the end of the run.
        assert [c.name for c in monitor.callbacks] == ["removal"]
    assert [c.name for c in monitor.callbacks] == []
    assert steps_of(writer, "train/loss") == [1, 2, 3]
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert "attribution, time_delta, transitions, hidden, backbone" in errors[0]
    assert "removal" in errors[1]


def test_what_does_not_fit_into_memory_is_analysed_in_parts(
    model: Net, held_out: ncp.HeldOutBatch, caplog: pytest.LogCaptureFixture
) -> None:
    room = 0

    class Tight(Net):
        """Has memory for so many sequences."""

        def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
            if len(x) > room:
                raise RuntimeError("[malloc] Unable to allocate 999 bytes.")
            return super().__call__(x, time_delta)

    def curves(room_in_run: int) -> dict[str, list[tuple[int, float]]]:
        nonlocal room
        room = 10**6
        mx.random.seed(0)
        tight, writer = Tight(), ncp.MemoryWriter()
        with ncp.Monitor(tight, held_out, writer=writer, every=1) as monitor:
            room = room_in_run
            for step in (1, 2):
                monitor.on_step_end(step)
            assert len(monitor.callbacks) == 7
        return {t: writer.scalars(t) for t in writer.tags if not t.startswith("monitor/")}

    whole = curves(10**6)
    messages = [r.getMessage() for r in caplog.records]
    assert told([m for m in messages if not m.startswith("attribution: ")]) == ()
    parts = curves(2)  # of six sequences, so that the scales don't fit side by side either
    messages = [r.getMessage() for r in caplog.records]
    said = [m.split(";")[1] for m in told([m for m in messages if m.startswith("running")])]
    assert said == [" running at most 3 from now on", " running at most 1 from now on"]
    for tag, curve in whole.items():
        np.testing.assert_allclose(parts[tag], curve, rtol=1e-4, atol=1e-6, err_msg=tag)


def test_interrupts_pass(model: Net, held_out: ncp.HeldOutBatch) -> None:
    class Interrupted(ncp.Callback):
        def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
            if observation.step:
                raise KeyboardInterrupt
            return []

    with (
        pytest.raises(KeyboardInterrupt),
        ncp.Monitor(
            model, held_out, [Interrupted()], writer=ncp.MemoryWriter(), every=1
        ) as monitor,
    ):
        monitor.on_step_end(1)
    assert type(model.rnn.cell).__name__ == "CfCCell"
    assert model.training


def test_what_is_no_number_is_reported_once(
    model: Net, held_out: ncp.HeldOutBatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [Counting()], writer=writer, every=1) as monitor:
        for step in (1, 2):
            monitor.on_step_end(step, loss=mx.zeros((3,)), ok=1)
    assert steps_of(writer, "train/ok") == [1, 2]
    assert "train/loss" not in writer.tags
    assert len([r for r in caplog.records if "(3,)" in r.getMessage()]) == 1


@pytest.mark.parametrize("step", [3.0, "3", None, np.float32(2)])
def test_what_is_no_step_is_named_with_the_fix(
    model: Net, held_out: ncp.HeldOutBatch, step: Any
) -> None:
    with ncp.Monitor(model, held_out, [Counting()], writer=ncp.MemoryWriter()) as monitor:
        words = rf"step={step!r} is a {type(step).__name__}: pass the number of steps done"
        for call in (
            lambda: monitor.on_step_end(step),
            lambda: monitor.log_scalars(step, {"val/loss": 1.0}),
        ):
            with pytest.raises(TypeError, match=re.escape(words)):
                call()


@pytest.mark.parametrize(("tag", "words"), [(5, "tag=5 is a int"), (b"x", "bytes"), ("", "empty")])
def test_a_tag_that_names_nothing_is_reported_as_such(
    model: Net, held_out: ncp.HeldOutBatch, tag: Any, words: str
) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [Counting()], writer=writer, every=1) as monitor:
        for step in (1, 2):
            monitor.log_scalars(step, {tag: 1.0, "fine": 2.0})
        (note,) = monitor.notes
    assert note.startswith("a number is not logged: tag=")
    assert words in note
    assert steps_of(writer, "fine") == [1, 2]


def test_steps_that_run_backwards_are_reported_once(
    model: Net, held_out: ncp.HeldOutBatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [Counting()], writer=writer, every=1) as monitor:
        for step in (5, 4, 3, 2):
            monitor.on_step_end(step)
    assert steps_of(writer, "counting/looks") == [5, 4, 3, 2]
    assert len([r for r in caplog.records if "increase" in r.getMessage()]) == 1


def test_a_record_of_another_kind_is_a_clear_error(model: Net, held_out: ncp.HeldOutBatch) -> None:
    class Careless(ncp.Callback):
        def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
            yield ("tag", 1.0)  # type: ignore[misc]

    with (
        pytest.raises(RuntimeError, match="yield records"),
        ncp.Monitor(model, held_out, [Careless()], writer=ncp.MemoryWriter()),
    ):
        pytest.fail("entered")


def test_what_is_not_needed_is_not_there(model: Net, held_out: ncp.HeldOutBatch) -> None:
    class Greedy(ncp.Callback):
        def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
            yield ncp.Scalar("greedy/sum", float(observation.input_gradient.sum()))

    with (
        pytest.raises(RuntimeError, match=r"Need\.INPUT_GRADIENT"),
        ncp.Monitor(model, held_out, [Greedy()], writer=ncp.MemoryWriter()),
    ):
        pytest.fail("entered")


def test_other_ranks_do_nothing(
    model: Net,
    held_out: ncp.HeldOutBatch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLX_RANK", "1")
    with ncp.Monitor(model, held_out, log_dir=tmp_path / "run", every=1) as monitor:
        monitor.on_step_end(1, loss=1.0)
        monitor.log_scalars(1, {"val/loss": 1.0})
    assert not (tmp_path / "run").exists()


# ---- state


def test_callback_state_survives_a_resume(model: Net, held_out: ncp.HeldOutBatch) -> None:
    def values(
        steps: range, state: dict[str, object] | None
    ) -> tuple[dict[str, list[tuple[int, float]]], dict[str, object]]:
        writer = ncp.MemoryWriter()
        callbacks = [
            ncp.GradientAttribution(),
            ncp.TimeSensitivity(),
            ncp.StateTransitions(),
            ncp.StateSpace(refit_below=0.99),
            ncp.BackboneActivations(),
        ]
        monitor = ncp.Monitor(model, held_out, callbacks, writer=writer, every=1)
        if state is not None:
            monitor.load_state_dict(state)
        with monitor:
            for step in steps:
                model.head.weight = weights[step]
                model.rnn.cell.ff1.weight = cells[step]
                monitor.on_step_end(step)
        for _, record in writer.records:
            if isinstance(record, ncp.Figure) and "reference" in record.options:
                reference = record.options["reference"]
                first.append(None if reference is None else reference.sensitivities.tolist())
        curves = {t: writer.scalars(t) for t in writer.tags if not t.startswith("monitor/")}
        return {t: c for t, c in curves.items() if c}, monitor.state_dict()

    first: list[list[float] | None] = []
    keys = mx.random.split(mx.random.key(3), 7)
    weights = [mx.random.normal(model.head.weight.shape, key=k) for k in keys]
    cells = [mx.random.normal(model.rnn.cell.ff1.weight.shape, key=k) for k in keys]
    whole, _ = values(range(1, 7), None)
    _, state = values(range(1, 4), None)
    resumed, _ = values(range(4, 7), json.loads(json.dumps(state)))
    for tag, curve in whole.items():
        assert [p for p in curve if p[0] >= 4] == resumed[tag], tag
    assert dict(whole["hidden/basis_refits"])[6] > 0
    # The dashed curve of the resumed run is that of the whole run's first look.
    assert first[6 + 3 :] == first[3:6]


@pytest.mark.parametrize("state", [{}, {"callbacks": 3}, {"callbacks": {"hidden": {}}}, [1]])
def test_states_that_are_none(model: Net, held_out: ncp.HeldOutBatch, state: object) -> None:
    monitor = ncp.Monitor(model, held_out, [ncp.StateSpace()], writer=ncp.MemoryWriter())
    with pytest.raises(ValueError, match="state"):
        monitor.load_state_dict(state)  # type: ignore[arg-type]


# ---- small print


def logged(
    model: nn.Module, batch: ncp.HeldOutBatch, steps: Iterable[int] = (1,), **options: Any
) -> tuple[ncp.MemoryWriter, tuple[str, ...]]:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, batch, writer=writer, **{"every": 1, **options}) as monitor:
        for step in steps:
            monitor.on_step_end(step)
    return writer, monitor.notes


def test_what_stands_in_padding_does_not_matter(model: Net) -> None:
    x, dt = arrays()
    mask = np.arange(T)[None] < np.array([5, 3, 4, 1, 2, 5])[:, None]
    clean, _ = logged(
        model, ncp.HeldOutBatch(np.where(mask[..., None], x, 0), np.where(mask, dt, 1), mask=mask)
    )
    for fill in (np.nan, np.inf):
        batch = ncp.HeldOutBatch(
            np.where(mask[..., None], x, fill), np.where(mask, dt, fill), mask=mask
        )
        writer, _ = logged(model, batch)
        for tag in clean.tags:
            if not tag.startswith("monitor/"):
                assert writer.scalars(tag) == clean.scalars(tag), tag
    assert clean.scalars("attribution/nonfinite") == [(1, 0)]


def test_skipped_sequences_are_reported_once(model: Net) -> None:
    x, dt = arrays()
    x[2, 3, 1] = np.nan
    writer, notes = logged(model, ncp.HeldOutBatch(x, dt), steps=(1, 2, 3))
    for group in ("attribution", "time_delta", "transitions", "hidden"):
        assert len([n for n in notes if n.startswith(f"{group}: some ")]) == 1, group
    assert writer.scalars("attribution/nonfinite") == [(1, 1), (2, 1), (3, 1)]
    x[:] = np.nan
    writer, _ = logged(model, ncp.HeldOutBatch(x, dt))
    assert not writer.scalars("transitions/dead_units")


def test_the_cards_are_whole_tables(model: Net, held_out: ncp.HeldOutBatch) -> None:
    writer, _ = logged(
        model,
        held_out,
        callbacks=[ncp.GradientAttribution(name="attr"), ncp.StateSpace()],
        every=ncp.every(steps=3) | ncp.at([1]),
        target=0,
    )
    texts = [r for _, r in writer.records if isinstance(r, ncp.Text)]
    others = ("monitor/notes", "findings/summary")
    cards = {r.tag: r.markdown for r in texts if r.tag not in others}
    for card in cards.values():
        rows = [line for line in card.splitlines() if line.startswith("|")]
        assert {row.count("|") for row in rows} == {3}
    assert "hidden: " in cards["monitor/run"]
    assert "contributions of features" in cards["monitor/guide"]


def test_a_schedule_that_fails_stops_its_callbacks(model: Net, held_out: ncp.HeldOutBatch) -> None:
    def boom(step: int) -> bool:
        raise ZeroDivisionError

    writer, notes = logged(
        model, held_out, steps=(1, 2), callbacks=[ncp.StateSpace(every=boom), Counting()]
    )
    assert any("which stops hidden" in note for note in notes)
    assert steps_of(writer, "counting/looks") == [1, 2]


def test_a_class_with_a_schedule_of_its_own(model: Net, held_out: ncp.HeldOutBatch) -> None:
    class EveryThird(ncp.Callback):
        every = 3  # type: ignore[assignment]

        def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
            yield ncp.Scalar("third/look", 1.0)

    class Hasty(EveryThird):
        def __init__(self) -> None:
            self.own = 1

    for callback in (EveryThird(), Hasty()):
        writer, _ = logged(model, held_out, steps=range(1, 8), callbacks=[callback])
        assert steps_of(writer, "third/look") == [3, 6]


@pytest.mark.parametrize("step", ["3", 1.5, True, -1])
def test_resume_steps_that_are_none(model: Net, held_out: ncp.HeldOutBatch, step: Any) -> None:
    with pytest.raises(ValueError, match="the last step done"):
        ncp.Monitor(model, held_out, log_dir="x", resume_step=step)


def test_resuming_is_the_writers_business_where_one_is_given(
    model: Net, held_out: ncp.HeldOutBatch
) -> None:
    with pytest.raises(ValueError, match="purge_step"):
        ncp.Monitor(model, held_out, writer=ncp.MemoryWriter(), resume_step=3)


def test_the_state_knows_the_last_step(
    held_out: ncp.HeldOutBatch, caplog: pytest.LogCaptureFixture
) -> None:
    mx.random.seed(0)
    gru, batch = nn.GRU(F, 4), ncp.HeldOutBatch(arrays()[0])
    first = ncp.Monitor(gru, batch, writer=ncp.MemoryWriter(), every=10)
    with first:
        for step in range(1, 26):
            first.on_step_end(step)
    assert first.state_dict()["step"] == 25
    caplog.clear()
    second = ncp.Monitor(gru, batch, writer=ncp.MemoryWriter(), every=10)
    second.load_state_dict(first.state_dict())
    with second:
        # A model without a backbone has none in its state either: nothing to be told.
        assert not [r for r in caplog.records if "has no part for" in r.getMessage()]
        second.on_step_end(25)
    assert any("increase" in note for note in second.notes)


def test_a_target_that_fails_says_on_what(model: Net, held_out: ncp.HeldOutBatch) -> None:
    def margin(outputs: mx.array, targets: Any) -> mx.array:
        return outputs[:, 0, 0, 0]

    with pytest.raises(ncp.ModelError, match=r"'margin' failed on outputs of shape \(6, 5, 4\)"):
        logged(model, held_out, target=margin)


def test_numbers_of_numpy_are_numbers(model: Net, held_out: ncp.HeldOutBatch) -> None:
    writer, _ = logged(
        model,
        held_out,
        steps=range(1, 7),
        callbacks=[ncp.GradientAttribution(every=ncp.every(steps=np.int64(2)))],
        every=np.int64(3),
        target=np.int64(1),
        at=np.int64(2),
    )
    assert steps_of(writer, "attribution_output1_at2/strength") == [2, 4, 6]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ncp.GradientAttribution(features=["a", "a"]), ValueError, "more than once"),
        (lambda: ncp.TimeSensitivity(scales=(1.00000001, 2)), ValueError, "equal"),
        (lambda: ncp.TimeSensitivity(scales=2.0), TypeError, "sequence"),
        (lambda: ncp.at(5), TypeError, r"at\(\[5\]\)"),
        (lambda: ncp.every(seconds="a"), ValueError, "number"),
    ],
)
def test_more_values_out_of_range(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_the_directory_of_a_users_writer_is_known(
    model: Net, held_out: ncp.HeldOutBatch, tmp_path: Path
) -> None:
    import tensorboardX

    with tensorboardX.SummaryWriter(str(tmp_path / "mine")) as writer:  # noqa: SIM117
        with ncp.Monitor(model, held_out, [Counting()], writer=writer, every=1) as monitor:
            monitor.on_step_end(1)
            assert monitor.log_dir == str(tmp_path / "mine")


def test_a_run_config_that_cannot_be_shown_leaves_no_run_behind(
    model: Net, held_out: ncp.HeldOutBatch, tmp_path: Path
) -> None:
    class Shy:
        def __str__(self) -> str:
            raise ValueError("shy")

    with (
        pytest.raises(ValueError, match="shy"),
        ncp.Monitor(model, held_out, log_dir=tmp_path / "run", run_config={"a": Shy()}),
    ):
        pytest.fail("entered")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("entered", [False, True])
def test_callbacks_unknown_to_a_state_are_named(
    model: Net, held_out: ncp.HeldOutBatch, entered: bool
) -> None:
    state = {"step": 3, "callbacks": {}}
    # Of these the second keeps nothing.
    callbacks = [ncp.StateTransitions(), Counting()]
    monitor = ncp.Monitor(model, held_out, callbacks, writer=ncp.MemoryWriter())
    if not entered:
        monitor.load_state_dict(state)
    with monitor:
        if entered:
            monitor.load_state_dict(state)
        unknown = [note for note in monitor.notes if "has no part for it; it starts anew" in note]
        assert unknown == [
            "transitions: the state that was loaded has no part for it; it starts anew"
        ]


def test_states_are_converted_once_and_shared(model: Net, held_out: ncp.HeldOutBatch) -> None:
    seen = []

    class Looking(ncp.Callback):
        needs = frozenset({ncp.Need.STATES})

        def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
            seen.append(observation.states[0].values)
            assert not seen[-1].flags.writeable
            return []

    callbacks = [Looking(name="a"), Looking(name="b")]
    logged(model, held_out, callbacks=callbacks)
    assert seen[-1] is seen[-2]


# --- the end of a run


class Last(ncp.Callback):
    """Has something to say at the end."""

    needs = frozenset({ncp.Need.STATES})

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        return ()

    def finish(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        if self.fails:
            raise ValueError("on purpose")
        yield ncp.Scalar("last/states", float(len(observation.states)))


def test_callbacks_have_the_last_word(model: Net, held_out: ncp.HeldOutBatch) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [Last()], writer=writer, every=100) as monitor:
        for step in range(1, 8):
            monitor.on_step_end(step)
        assert not writer.scalars("last/states")
    assert writer.scalars("last/states") == [(7, 1.0)]


def test_no_last_word_of_a_run_that_failed_or_never_began(
    model: Net, held_out: ncp.HeldOutBatch
) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [Last()], writer=writer):
        pass

    def interrupted() -> None:
        with ncp.Monitor(model, held_out, [Last()], writer=writer) as monitor:
            monitor.on_step_end(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not writer.scalars("last/states")


def test_a_last_word_that_fails_ends_nothing(
    model: Net, held_out: ncp.HeldOutBatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [Last(fails=True)], writer=writer) as monitor:
        monitor.on_step_end(1)
    assert "on purpose" in caplog.text
    assert any("last failed at step 1" in note for note in monitor.notes)


def test_states_for_the_projector_when_the_run_ends(model: Net) -> None:
    x, dt = arrays()
    mask = np.arange(T)[None] < np.array([5, 3, 4, 1, 2, 5])[:, None]
    held_out = ncp.HeldOutBatch(
        x, dt, targets=np.array([0, 1, 0, 1, 1, 0]), mask=mask, class_names=None
    )
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [ncp.StateSpace()], writer=writer, every=2) as monitor:
        for step in range(1, 6):
            monitor.on_step_end(step)
    ((step, points),) = [(s, r) for s, r in writer.records if isinstance(r, ncp.Embedding)]
    assert (step, points.tag) == (5, "hidden/states")
    sequence, at = np.nonzero(mask)
    np.testing.assert_array_equal(points.labels["sequence"], sequence)
    np.testing.assert_array_equal(points.labels["step"], at)
    np.testing.assert_allclose(points.labels["time"], np.cumsum(dt * mask, axis=1)[sequence, at])
    assert points.values.shape == (20, 8)
    figures = [r.tag for s, r in writer.records if s == 4 and isinstance(r, ncp.Figure)]
    assert figures == ["hidden/pca", "findings/overview"]


def test_no_states_for_the_projector_of_a_run_that_diverged(
    model: Net, held_out: ncp.HeldOutBatch
) -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [ncp.StateSpace()], writer=writer, every=1) as monitor:
        model.rnn.cell.ff1.weight = mx.full(model.rnn.cell.ff1.weight.shape, float("nan"))
        monitor.on_step_end(1)
    assert not [r for _, r in writer.records if isinstance(r, ncp.Embedding)]
    assert not [note for note in monitor.notes if "failed" in note]


def test_what_is_printed(
    model: Net,
    held_out: ncp.HeldOutBatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(verbose: bool | None) -> str:
        with ncp.Monitor(
            model, held_out, log_dir=tmp_path / "run", every=1, verbose=verbose
        ) as monitor:
            monitor.on_step_end(1)
        return capsys.readouterr().err

    assert run(None) == run(False) == ""  # Nobody reads a pipe.
    with caplog.at_level("INFO"):
        said = run(True)
    assert f"tensorboard.main --logdir {tmp_path}" in said or f"--logdir {tmp_path}" in said
    assert "samples_per_plugin=images=200" in said
    assert "1 step, 2 snapshots" in said  # One when it ended.
    assert "6 pictures" in said
    assert "of the loop's time" in caplog.text


# ---- what users get wrong, and what they may


def own(**body: Any) -> ncp.Callback:
    made: ncp.Callback = type("Own", (ncp.Callback,), {"measure": lambda *_: [], **body})()
    return made


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ({"measure": lambda *_: None}, RuntimeError, "returned None.* return .Scalar"),
        ({"measure": lambda *_: ncp.Scalar("a", 1.0)}, RuntimeError, "returned Scalar.*not a list"),
        ({"measure": lambda *_: [ncp.Scalar("a", "b")]}, RuntimeError, "'b' of 'a': pass a number"),
        ({"measure": lambda *_: [ncp.Scalar("a", None)]}, RuntimeError, "None of 'a': pass a num"),
        ({"needs": ncp.Need.STATES}, TypeError, "needs = frozenset"),
        ({"needs": {"states"}}, TypeError, "needs = frozenset"),
        ({"every_nth": 0}, ValueError, "every_nth is 0; set 1 or more"),
    ],
)
def test_callbacks_written_wrongly(
    model: Net,
    held_out: ncp.HeldOutBatch,
    body: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with (
        pytest.raises(error, match=words),
        ncp.Monitor(model, held_out, [own(**body)], writer=ncp.MemoryWriter()),
    ):
        pass


def test_needs_may_be_a_list(model: Net, held_out: ncp.HeldOutBatch) -> None:
    writer = ncp.MemoryWriter()
    listed = own(
        needs=[ncp.Need.STATES],
        measure=lambda _, seen: [ncp.Scalar("own/states", mx.array(len(seen.states)))],
    )
    with ncp.Monitor(model, held_out, [listed, Counting()], writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
    assert writer.scalars("own/states") == [(1, 1.0)]
    assert writer.scalars("counting/looks") == [(1, 1.0)]
    assert type(writer.scalars("own/states")[0][1]) is float  # MLX stays on this thread
    assert not monitor.notes


def test_scalars_that_are_no_mapping(model: Net, held_out: ncp.HeldOutBatch) -> None:
    with (
        ncp.Monitor(model, held_out, [], writer=ncp.MemoryWriter()) as monitor,
        pytest.raises(TypeError, match="scalars is a list; pass a mapping"),
    ):
        monitor.log_scalars(1, [0.3])  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["cells", "layers"])
def test_modules_where_paths_are_meant(model: Net, held_out: ncp.HeldOutBatch, option: str) -> None:
    for given in (model, [model], [1]):
        with (
            pytest.raises(TypeError, match=f"{option} is a .*the paths of modules as strings"),
            ncp.Monitor(model, held_out, writer=ncp.MemoryWriter(), **{option: given}),
        ):
            pass


class CutOff(nn.Module):
    def __call__(self, x: mx.array) -> mx.array:
        return mx.stop_gradient(x).sum(axis=(1, 2))


def test_attributions_that_are_all_zero_are_spoken_of() -> None:
    x = mx.random.normal((4, 6, 3), key=mx.random.key(0))
    for model, said in ((CutOff(), 1), (Stepwise(), 0)):
        look = [ncp.GradientAttribution(every=1)]
        with ncp.Monitor(model, ncp.HeldOutBatch(x), look, writer=ncp.MemoryWriter()) as monitor:
            for step in range(1, 4):
                monitor.on_step_end(step)
        assert sum("every attribution is exactly 0" in note for note in monitor.notes) == said


class Stepwise(nn.Module):
    """Three logits per step: the inputs."""

    def __call__(self, x: mx.array) -> mx.array:
        return x


@pytest.mark.parametrize("wrong", [-1, 3, -100])
def test_classes_that_a_model_does_not_have(wrong: int) -> None:
    x = mx.random.normal((4, 6, 3), key=mx.random.key(0))
    labels = np.full((4, 6), wrong)
    labels[:, -1] = 2
    mask = np.zeros((4, 6), bool)
    mask[:, -1] = True

    def made(at: str, labels: Any = labels, mask: Any = None) -> ncp.Monitor:
        held_out = ncp.HeldOutBatch(x, targets=labels, mask=mask)
        callbacks = [ncp.GradientAttribution()]
        return ncp.Monitor(
            Stepwise(), held_out, callbacks, writer=ncp.MemoryWriter(), target="loss", at=at
        )

    for monitor in (made("mean"), made("last", labels[:, :1].ravel())):
        with pytest.raises(ValueError, match=f"class {wrong} at .*3 outputs: classes are 0 to 2"):
            monitor.__enter__()
    for monitor in (made("last"), made("mean", mask=mask)):  # they are not read
        with monitor:
            pass


def test_a_copy_of_the_source_that_was_never_installed(tmp_path: Path) -> None:
    shutil.copytree(Path(ncp.__file__).parent, tmp_path / "ncp_callbacks")
    script = """
import importlib.metadata as metadata, sys
real = metadata.version
def version(name):
    if name == "ncp-callbacks":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
import mlx.core as mx, mlx.nn as nn, ncp_callbacks as ncp
writer = ncp.MemoryWriter()
with ncp.Monitor(nn.GRU(2, 3), ncp.HeldOutBatch(mx.ones((2, 4, 2))), [], writer=writer):
    pass
print(writer.records)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"ncp-callbacks {ncp.__version__}" in done.stdout
