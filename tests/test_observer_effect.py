"""Training with a monitor is bit-identical to training without, however the look ends."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
from collections import OrderedDict, deque

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
import zoo
from mlx.utils import tree_flatten
from ncps.wirings import AutoNCP
from zoo import EXAMPLES

import ncp_callbacks as ncp
from ncp_callbacks.instrument import Instrument
from ncp_callbacks.instrument.capture import Tap
from ncp_callbacks.instrument.trees import modules
from ncp_callbacks.models import CfC

STEPS, EVERY = 50, 10


class Interrupted(BaseException):
    """What a KeyboardInterrupt is to code that must not swallow it."""


class Failing(ncp.Callback):
    """Looks at everything, then raises."""

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
        self.optimizer = optim.Adam(learning_rate=0.01)
        self.compiled, self.losses, self.step = compiled, [], None
        mx.random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)

    def held_out(self):
        return ncp.HeldOutBatch(*zoo.data(self.case, seed=9), targets=np.zeros(zoo.BATCH))

    def monitor(self, **options):
        options = {"writer": ncp.MemoryWriter(), "every": EVERY, **options}
        return ncp.Monitor(self.model, self.held_out(), forward=self.case.forward, **options)

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


TRAINED = [
    "port/cfc-default",
    "port/cfc-deep-dropout-proj",
    "port/wired-cfc",
    "port/ltc",
    "port/cfc-time-first",
    "enhanced/late-cfc",
    "enhanced/late-cfc-layers-too",
    "enhanced/late-cfc-stacked",
    "nn/lstm-stacked",
    "nn/gru-bidirectional",
    "nn/gru-stepped",
    "hand/in-tuple",
    "hand/in-unregistered",
    "hand/awkward-class",
    "hand/state-dataclass",
    "hand/between-held",
    "hand/both-ways",
    "hand/sub-steps",
    "hand/compiles-itself",
    "hand/busy",
    "hand/looks-at-values",
    "hand/checkpointed",
    "hand/backbone-modules",
    "hand/time-PassingOn",
    "hand/bfloat16",
]
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

both = pytest.mark.parametrize(
    ("name", "compiled"),
    [(n, False) for n in TRAINED] + [(n, True) for n in COMPILED],
)
few = pytest.mark.parametrize(
    ("name", "compiled"), [*((n, False) for n in FEW), ("port/cfc-deep-dropout-proj", True)]
)


@both
def test_all_standard_callbacks(name, compiled):
    training = Training(name, compiled)
    with training.monitor() as monitor:
        training.run(monitors=[monitor])
        writer = monitor._writer
    assert_same(training.trace(), plain(name, compiled))
    assert {step for step, _ in writer.records} >= {*range(EVERY, STEPS + 1, EVERY)}
    assert not any("failed" in note for note in monitor.notes), monitor.notes


@few
def test_a_callback_that_raises(name, compiled, caplog):
    training = Training(name, compiled)
    with training.monitor(callbacks=[Failing(ValueError("no")), ncp.StateSpace()]) as monitor:
        training.run(monitors=[monitor])
    assert_same(training.trace(), plain(name, compiled))
    assert any(f"failing failed at step {EVERY}" in note for note in monitor.notes)


@few
@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(), MemoryError()])
def test_a_look_that_is_broken_off(name, compiled, error):
    training = Training(name, compiled)
    expected = plain(name, compiled)
    options = {"callbacks": [Failing(error)], "on_error": "raise"}
    with pytest.raises(type(error)), training.monitor(**options) as monitor:
        training.run(monitors=[monitor])
    done = len(training.losses)
    assert done == EVERY
    training.run(STEPS - done, first=done + 1)
    assert_same(training.trace(), expected)


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


@few
def test_two_monitors_at_once(name, compiled):
    training = Training(name, compiled)
    with training.monitor() as one, training.monitor(every=3, target=0) as other:
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


def test_looks_between_lazy_steps():
    """Nothing is evaluated by the loop itself before a look."""
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
    assert any(tag.startswith("transitions/") for tag in monitor._writer.tags)


def test_classes_that_keep_a_register_do_not_hear_of_ours():
    made, subclasses = list(zoo.Registered.made), list(zoo.AwkwardCell.subclasses)
    training = Training("hand/awkward-class")
    with training.monitor() as monitor:
        monitor.on_step_end(EVERY)
    assert zoo.Registered.made == made
    assert zoo.AwkwardCell.subclasses == subclasses
    assert training.model.cell.steps_done == 0


def test_weights_made_in_the_first_call_are_made_as_without():
    """Also when the look comes before that call, and nothing is trained."""
    models = []
    for look in (False, True):
        training = Training("enhanced/late-cfc-stacked")
        if look:
            instrument = Instrument(training.model, training.held_out())
            ncp.Observation(instrument, 0, set(ncp.Need))
            assert "ff1_kernel" not in training.model.forward_layers[0]
        training.start()
        models.append({path: seen(module) for path, module in modules(training.model)})
    assert models[0] == models[1]


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
    with pytest.raises(RuntimeError, match="tapped already"), outer.on([(cell, broken)] * 2):
        pass
    assert type(cell) is cls


def broken(call, args, kwargs):
    raise ValueError("broken")


# ---- undisturbed, by itself


class Cluttered(nn.Module):
    """Keeps things wherever Python lets it."""

    __slots__ = ("empty_slot", "slot")

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2, 2)
        self.count, self.half = mx.array(3), mx.ones((4,), mx.float16)
        self.key = mx.random.key(3)
        self.plain, self.slot = 1, 1
        self.nested = [{"a": [mx.zeros((2,))]}, (nn.Dropout(0.5), [1, 2])]
        self.numbers, self.names, self.recent = np.zeros(3), {"a"}, deque([1], maxlen=2)
        self.ordered = OrderedDict(a=1, b=2)
        self.generator, self.dice = np.random.default_rng(1), random.Random(1)
        object.__setattr__(self, "hidden", {"list": [1], "set": {1}})

    def disturb(self):
        self.count += 1
        self.half[1] = 7
        self.key, _ = mx.random.split(self.key)
        self.plain = self.slot = self.empty_slot = 2
        self.added, self.array_added = 1, mx.array(1)
        self.lin.weight = self.lin.weight + 1
        self.lin.bias[0] = mx.nan
        self.nested[0]["a"][0] += 1
        self.nested[0]["b"] = 1
        self.nested[1][1].append(3)
        self.nested.append(4)
        self.numbers += 1
        self.names.add("b")
        self.recent.append(2)
        self.recent.append(3)
        self.ordered.move_to_end("a")
        self.ordered["c"] = 3
        self.generator.random()
        self.dice.random()
        self.hidden["list"].append(2)
        self.hidden["set"].add(2)
        self.lin.freeze()
        self.lin.train()
        mx.random.normal((3,))
        np.random.random()  # noqa: NPY002
        random.random()

    def everything(self):
        return {
            "arrays": [
                bits(a)
                for a in (self.count, self.half, self.key, self.lin.weight, self.lin.bias,
                          self.nested[0]["a"][0])
            ],
            "rest": repr(
                [self.plain, self.slot, hasattr(self, "empty_slot"), hasattr(self, "added"),
                 "array_added" in self, self.nested[0].keys(), self.nested[1][1], len(self.nested),
                 self.numbers, self.names, self.recent, self.ordered, self.hidden,
                 self.generator.bit_generator.state, self.dice.getstate(), self.lin._no_grad,
                 self.lin._training, list(vars(self)), list(self)]
            ),
            "random": (mx.random.state[0].tolist(), random.getstate(),
                       np.random.get_state()[1].tobytes()),  # noqa: NPY002
        }  # fmt: skip


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_undisturbed_puts_everything_back(error):
    model = Cluttered()
    model.lin.eval()
    count, half, inner = model.count, model.half, model.nested[1][1]
    before = model.everything()
    with contextlib.suppress(ValueError, KeyboardInterrupt):
        assert not any(module._training for _, module in modules(model))
        assert not model.nested[1][0]._training  # in a tuple, where eval() doesn't get
        model.disturb()
        assert all(value != before[what] for what, value in model.everything().items())
        if error is not None:
            raise error
    assert model.everything() == before
    # The same objects, which others may hold.
    assert model.count is count
    assert model.half is half
    assert model.nested[1][1] is inner


def test_undisturbed_can_be_nested():
    model = Cluttered()
    before = model.everything()
    model.disturb()
    assert not model._training
    assert model.everything()["arrays"] == before["arrays"]
    model.disturb()
    assert model.everything() == before
    assert model._training


def compiling():
    """Whether mx.compile compiles, as seen by a function that counts its runs."""
    runs = []
    counted = mx.compile(lambda x: runs.append(1) or x + 1)
    counted(mx.array(1.0))
    counted(mx.array(1.0))
    return len(runs) == 1


def test_compilation_is_off_inside_and_as_before_outside():
    model = nn.Linear(2, 2)
    assert compiling()
    assert not compiling()
    assert compiling()
    mx.disable_compile()
    try:
        assert not compiling()
        assert not compiling()
    finally:
        mx.enable_compile()
    with contextlib.suppress(ValueError):
        raise ValueError
    assert compiling()


def test_frozen_names_with_a_rule_of_their_own_survive():
    model = CfC(2, AutoNCP(8, 2))
    before = {path: sorted(module._no_grad) for path, module in modules(model)}
    assert any(before.values())
    model.freeze()
    assert {path: sorted(module._no_grad) for path, module in modules(model)} == before
