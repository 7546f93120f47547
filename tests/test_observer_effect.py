"""Training with a monitor is bit-identical to training without, however an analysis ends."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import threading
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
import zoo
from mlx.utils import tree_flatten
from zoo import EXAMPLES

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.model.capture import Tap
from ncp_callbacks.model.pytrees import modules
from ncp_callbacks.observer.background import BackgroundObserver
from ncp_callbacks.observer.observer import Analysis, Request
from ncp_callbacks.observer.snapshot import Snapshot

STEPS, EVERY = 24, 6


class Interrupted(BaseException):
    """What a KeyboardInterrupt is to code that must not swallow it."""


class Failing(ncp.Callback):
    """Asks for everything, then raises."""

    needs = frozenset(ncp.Need)
    default_name = "failing"

    def __init__(self, error, **options):
        super().__init__(**options)
        self.error = error

    def measure(self, observation):
        yield ncp.Scalar("failing/mean", float(observation.outputs.mean()))
        if observation.step:  # the dry run passes
            raise self.error


# ---- training, with and without


def loss_of(case, model, x, dt, y):
    outputs = (case.forward or case.plain)(model, x, dt)
    return mx.square(outputs - y).mean()


class Training:
    """A run with all that could betray an observer: shared random numbers, mixed train and eval
    modes, frozen parts, an optimizer with state."""

    def __init__(self, name, compiled=False):
        self.case = EXAMPLES[name]
        self.model = zoo.made(self.case)
        for number, (_, module) in enumerate(modules(self.model)):
            if number % 4 == 2:
                module.freeze(recurse=False)
            if number % 3 == 1:
                object.__setattr__(module, "_training", False)
        if name in ("port/eltc", "port/ctgru-wide-state"):  # nothing would be left to train
            self.model.unfreeze()
        self.optimizer = optim.Adam(learning_rate=0.01)
        self.compiled, self.losses, self.step = compiled, [], None
        mx.random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)

    def held_out(self):
        return ncp.HeldOutBatch(*zoo.data(self.case, seed=9), targets=np.zeros(zoo.BATCH))

    def monitor(self, **options):
        options = {"writer": ncp.MemoryWriter(), "every": EVERY, **options}
        case = self.case
        options = {"forward": case.forward, "horizon": case.horizon, **options}
        return ncp.Monitor(self.model, self.held_out(), **options)

    def runner(self):
        case = self.case
        return ModelRunner(self.model, self.held_out(), forward=case.forward, horizon=case.horizon)

    def start(self):
        """One plain call, in which some models make their weights."""
        x, dt, _ = self.batch()
        mx.eval((self.case.forward or self.case.plain)(self.model, x, dt))
        gradient = nn.value_and_grad(
            self.model, lambda x, dt, y: loss_of(self.case, self.model, x, dt, y)
        )

        def step(x, dt, y):
            loss, gradients = gradient(x, dt, y)
            self.optimizer.update(self.model, gradients)
            return loss

        self.step = step
        if self.compiled:
            self.optimizer.init(self.model.trainable_parameters())
            state = [self.model.state, self.optimizer.state, mx.random.state]
            self.step = mx.compile(step, inputs=state, outputs=state)

    def batch(self):
        x = mx.random.normal((zoo.BATCH, zoo.STEPS, zoo.FEATURES)).astype(self.case.dtype)
        y = mx.random.normal((zoo.BATCH, *self.case.outputs))
        dt = mx.random.uniform(0.1, 2.0, (zoo.BATCH, *self.case.delta_shape))
        return x, None if self.case.time is None else dt, y

    def run(self, steps=STEPS, monitors=(), first=1):
        if self.step is None:
            self.start()
        for step in range(first, first + steps):
            loss = self.step(*self.batch())
            mx.eval(self.model.state, self.optimizer.state)
            self.losses.append(np.array(loss.astype(mx.float32)).tobytes())
            for monitor in monitors:
                monitor.on_step_end(step, loss=loss)

    def trace(self):
        """Everything that must be the same, bit for bit."""
        return {
            "losses": self.losses,
            "modules": {path: seen(module) for path, module in modules(self.model)},
            "optimizer": {k: bits(v) for k, v in tree_flatten(self.optimizer.state)},
            "mlx key": mx.random.state[0].tolist(),
            "numpy": np.random.get_state()[1].tobytes(),  # noqa: NPY002
            "python": random.getstate(),
            "pickles": pickles(self.model),
            "copies": {p: type(m).__name__ for p, m in modules(copied(self.model))},
        }


def bits(value):
    if isinstance(value, mx.array):
        plain = value.astype(mx.float32) if value.dtype == mx.bfloat16 else value
        return value.shape, str(value.dtype), np.array(plain).tobytes()
    return repr(value) if isinstance(value, int | float | bool | str | set) else None


def seen(module):
    """A module's class, entries and attributes."""
    entries = {key: bits(value) for key, value in module.items()}
    attributes = {key: bits(value) for key, value in vars(module).items()}
    return type(module), entries, attributes, sorted(module._no_grad), module._training


def copied(model):
    try:
        return copy.deepcopy(model)
    except TypeError:  # it holds what can't be copied, a compiled function
        return model


def pickles(model):
    try:
        return len(pickle.dumps(model)) > 0
    except Exception as error:
        return type(error)


_plain = {}


def plain(name, compiled):
    """The trace of training without a monitor."""
    if (name, compiled) not in _plain:
        training = Training(name, compiled)
        training.run()
        _plain[name, compiled] = training.trace()
    return _plain[name, compiled]


def assert_same(trace, expected):
    for what in expected:
        assert trace[what] == expected[what], f"{what} differ"


# MLX never returns from ``parameters()`` of the one, and its Adam can't take the other's gradients.
UNTRAINED = {"hand/cycle", "hand/cells-in-a-step-module"}
TRAINED = [name for name in EXAMPLES if name not in UNTRAINED]
# Compiling takes seconds, and each model of its own.
COMPILED = [
    "port/cfc-deep-dropout-proj",
    "enhanced/late-cfc",
    "nn/lstm-stacked",
    "hand/awkward-class",
    "hand/sub-steps",
    "hand/backbone-modules",
]
FEW = ["port/cfc-deep-dropout-proj", "enhanced/late-cfc-layers-too", "hand/busy"]
# A process takes a second to start, so one of each kind.
KINDS = [
    "port/cfc-deep-dropout-proj",
    "port/wired-cfc",
    "port/ltc",
    "enhanced/late-cfc-layers-too",
    "nn/lstm-stacked",
    "nn/gru-bidirectional",
    "hand/awkward-class",
    "hand/compiles-itself",
    "hand/busy",
    "hand/checkpointed",
    "hand/bfloat16",
]

few = pytest.mark.parametrize(
    ("name", "compiled"), [*((n, False) for n in FEW), ("port/cfc-deep-dropout-proj", True)]
)
places = pytest.mark.parametrize("background", [False, True], ids=["in the loop", "background"])


def assert_unchanged_by_the_standard_set(name, compiled, background):
    training = Training(name, compiled)
    with training.monitor(background=background) as monitor:
        training.run(monitors=[monitor])
        assert monitor.in_background == background
        writer = monitor._run.writers[0]
    assert_same(training.trace(), plain(name, compiled))
    assert {step for step, _ in writer.records} >= {*range(EVERY, STEPS + 1, EVERY)}
    assert {tag.split("/")[0] for tag in writer.tags} >= {"attribution", "train", "monitor"}
    wrong = ("fail", "dropped", "not analysed", "no snapshot", "can't")
    assert not [n for n in monitor.notes if any(word in n for word in wrong)], monitor.notes


@pytest.mark.parametrize("name", TRAINED)
def test_every_model_in_the_loop(name):
    assert_unchanged_by_the_standard_set(name, compiled=False, background=False)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_training_in_the_loop(name):
    assert_unchanged_by_the_standard_set(name, compiled=True, background=False)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_in_the_background(name):
    assert_unchanged_by_the_standard_set(name, compiled=False, background=True)


def test_compiled_training_in_the_background():
    assert_unchanged_by_the_standard_set(COMPILED[0], compiled=True, background=True)


@pytest.mark.parametrize("name", KINDS)
def test_both_places_give_the_same_numbers(name):
    """Bit for bit: it is the same code on the same model."""
    found = []
    for background in (False, True):
        training = Training(name)
        with training.monitor(background=background) as monitor:
            training.run(monitors=[monitor])
        writer = monitor._run.writers[0]
        tags = {t for t in writer.tags if not t.startswith("monitor/")}
        found.append({tag: writer.scalars(tag) for tag in tags if writer.scalars(tag)})
    assert found[0] == found[1]
    assert len(found[0]) > 10


@few
@places
def test_a_callback_that_raises(name, compiled, background):
    training = Training(name, compiled)
    callbacks = [Failing(ValueError("no")), ncp.StateSpace()]
    with training.monitor(callbacks=callbacks, background=background) as monitor:
        training.run(monitors=[monitor])
    assert_same(training.trace(), plain(name, compiled))
    assert any(f"failing failed at step {EVERY}" in note for note in monitor.notes)
    assert len(monitor._run.writers[0].scalars("hidden/participation_ratio")) == STEPS // EVERY


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


ORDINARY = [
    StopIteration(), RecursionError("deep"), MemoryError(), OSError(28, "full"), Unprintable(),
    AssertionError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), RuntimeWarning("warned"),
]  # fmt: skip


@pytest.mark.parametrize("error", ORDINARY, ids=lambda error: type(error).__name__)
def test_exceptions_of_all_kinds_out_of_callbacks(error):
    name = FEW[0]
    training = Training(name)
    with training.monitor(callbacks=[Failing(error), ncp.StateSpace()]) as monitor:
        training.run(monitors=[monitor])
        assert [callback.name for callback in monitor.callbacks] == ["hidden"]
    assert_same(training.trace(), plain(name, compiled=False))
    assert len([note for note in monitor.notes if "failing failed" in note]) == 1
    assert len(monitor._run.writers[0].scalars("hidden/participation_ratio")) == STEPS // EVERY


@few
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), Interrupted(), SystemExit(3), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_analysis_that_is_interrupted(name, compiled, error):
    """These pass, and the training goes on as if nothing had been."""
    training = Training(name, compiled)
    expected = plain(name, compiled)
    with pytest.raises(type(error)), training.monitor(callbacks=[Failing(error)]) as monitor:
        training.run(monitors=[monitor])
    assert_interrupted_training_goes_on(training, expected)


@few
def test_an_error_that_is_to_be_raised(name, compiled):
    training = Training(name, compiled)
    expected = plain(name, compiled)
    options = {"callbacks": [Failing(MemoryError())], "on_error": "raise"}
    with pytest.raises(MemoryError), training.monitor(**options) as monitor:
        training.run(monitors=[monitor])
    assert_interrupted_training_goes_on(training, expected)


def assert_interrupted_training_goes_on(training, expected):
    done = len(training.losses)
    assert done == EVERY
    assert compiling()
    training.run(STEPS - done, first=done + 1)
    assert_same(training.trace(), expected)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_an_interrupt_inside_the_process_ends_no_training(error):
    """Nobody pressed Ctrl-C here: the callback fails, and the others go on."""
    name = FEW[0]
    training = Training(name)
    callbacks = [Failing(error), ncp.StateSpace()]
    with training.monitor(callbacks=callbacks, background=True) as monitor:
        training.run(monitors=[monitor])
    assert_same(training.trace(), plain(name, compiled=False))
    failed = f"failing failed at step {EVERY}; failing disabled: {type(error).__name__}"
    assert sum(note.startswith(failed) for note in monitor.notes) == 1, monitor.notes
    assert not any("the observer's process" in note for note in monitor.notes), monitor.notes
    assert len(monitor._run.writers[0].scalars("hidden/participation_ratio")) == STEPS // EVERY


@few
def test_an_exception_in_the_loop(name, compiled):
    training = Training(name, compiled)
    breaking = type("Breaking", (), {"on_step_end": lambda self, step, loss: 1 // (6 - step)})()
    with pytest.raises(ZeroDivisionError), training.monitor() as monitor:
        training.run(monitors=[monitor, breaking])
    training.run(STEPS - 6, first=7)
    assert_same(training.trace(), plain(name, compiled))


@few
def test_a_configuration_that_is_refused(name, compiled):
    training = Training(name, compiled)
    for options in (
        {"callbacks": [AlwaysFailing()]},
        {"target": 99},
        {"cells": "no.such"},
        {"target": lambda outputs, targets: outputs.sum()},
    ):
        with pytest.raises((RuntimeError, ValueError)), training.monitor(**options):
            pass
    training.run()
    assert_same(training.trace(), plain(name, compiled))


class AlwaysFailing(ncp.Callback):
    needs = frozenset(ncp.Need)

    def measure(self, observation):
        raise RuntimeError("never works")


def test_the_start_of_the_process_is_no_waiting_for_its_analyses():
    """One snapshot may wait, and each analysis takes 0.2 s; before the first is the start."""
    observer = BackgroundObserver(mock.Mock(), max_waiting=1)
    waited = []
    for step in range(3):
        timer = threading.Timer(0.2, observer._take, [("analysis", step, Analysis(step, 0.0))])
        if step:
            timer.start()
        assert observer.submit(Request(step, 0.0, Snapshot(None, {}, 0, 0), ()))
        waited.append(observer.waited)
    assert waited[:2] == [0.0, 0.0]
    assert waited[2] >= 0.19


@few
@places
def test_two_monitors_at_once(name, compiled, background):
    training = Training(name, compiled)
    with (
        training.monitor(background=background) as one,
        training.monitor(every=3, target=0) as other,
    ):
        training.run(monitors=[one, other])
    assert_same(training.trace(), plain(name, compiled))


@few
def test_a_monitor_inside_the_span_of_another(name, compiled):
    training = Training(name, compiled)
    with training.monitor() as outer:
        training.run(5, monitors=[outer])
        with training.monitor(every=2) as inner:
            training.run(4, monitors=[outer, inner], first=6)
        training.run(STEPS - 9, monitors=[outer], first=10)
    assert_same(training.trace(), plain(name, compiled))


def test_snapshots_between_lazy_steps():
    """Nothing is evaluated by the loop itself before a snapshot."""
    traces = []
    for monitored in (False, True):
        training = Training("port/cfc-deep-dropout-proj")
        training.start()
        with training.monitor() if monitored else contextlib.nullcontext() as monitor:
            for step in range(1, STEPS + 1):
                loss = training.step(*training.batch())
                training.losses.append(loss)
                if monitored:
                    monitor.on_step_end(step, loss=loss)
        training.losses = [bits(loss) for loss in training.losses]
        traces.append(training.trace())
    assert_same(*traces)


def test_a_model_that_can_not_be_trained_is_left_as_it_was():
    """MLX itself never returns from ``parameters()`` of a model with a cycle."""
    training = Training("hand/cycle")
    before = {path: seen(module) for path, module in modules(training.model)}
    with training.monitor() as monitor:
        monitor.on_step_end(EVERY)
    assert {path: seen(module) for path, module in modules(training.model)} == before
    assert any(tag.startswith("transitions/") for tag in monitor._run.writers[0].tags)


def test_classes_that_keep_a_register_do_not_hear_of_ours():
    made, subclasses = list(zoo.Registered.made), list(zoo.AwkwardCell.subclasses)
    training = Training("hand/awkward-class")
    with training.monitor() as monitor:
        monitor.on_step_end(EVERY)
    assert zoo.Registered.made == made
    assert zoo.AwkwardCell.subclasses == subclasses
    assert training.model.cell.steps_done == 0


def test_weights_made_in_the_first_call_are_made_as_without():
    """Also when the analysis comes before that call, and nothing is trained."""
    models = []
    for analysed in (False, True):
        training = Training("enhanced/late-cfc-stacked")
        if analysed:
            runner = ModelRunner(training.model, training.held_out())
            with runner.analysing():
                passes.observe(runner, 0, set(ncp.Need))
            assert "ff1_kernel" not in training.model.forward_layers[0]
        training.start()
        models.append({path: seen(module) for path, module in modules(training.model)})
    assert models[0] == models[1]


def compiling():
    """Whether mx.compile compiles, as seen by a function that counts its runs."""
    runs = []
    counted = mx.compile(lambda x: runs.append(1) or x + 1)
    counted(mx.array(1.0))
    counted(mx.array(1.0))
    return len(runs) == 1


def test_compilation_is_off_inside_and_as_before_outside():
    runner = Training(FEW[0]).runner()
    assert compiling()
    with runner.analysing():
        assert not compiling()
        with runner.analysing():
            assert not compiling()
        assert not compiling()
    assert compiling()
    mx.disable_compile()
    try:
        with runner.analysing():
            assert not compiling()
        assert not compiling()
    finally:
        mx.enable_compile()
    with contextlib.suppress(ValueError), runner.analysing():
        raise ValueError
    assert compiling()


# ---- the tap, by itself


@pytest.mark.parametrize("make", [zoo.DeclaredCell, zoo.TimedCell])
def test_taps_on_one_module_can_be_nested(make):
    cell, log = make(), []

    def logging(name):
        def around(call, args, kwargs):
            log.append(name)
            return call(*args, **kwargs)

        return around

    x, h, dt = mx.ones((2, zoo.FEATURES)), mx.ones((2, zoo.UNITS)), mx.ones((2, 1))
    expected, cls, outer, inner = cell(x, h, dt), type(cell), Tap(), Tap()
    for _ in range(2):  # the classes made are used again
        with outer.on([(cell, logging("outer"))]):
            with inner.on([(cell, logging("inner"))]):
                assert mx.array_equal(cell(x, h, dt), expected)
                assert isinstance(cell, make)
            with pytest.raises(ValueError, match="broken"), inner.on([(cell, broken)]):
                cell(x, h, dt)
            cell(x, h, dt)
        assert type(cell) is cls
        assert log == ["inner", "outer", "outer"]
        cell(x, h, dt)
        log.clear()
    with pytest.raises(RuntimeError, match="already tapped"), outer.on([(cell, broken)] * 2):
        pass
    assert type(cell) is cls


def broken(call, args, kwargs):
    raise ValueError("broken")
