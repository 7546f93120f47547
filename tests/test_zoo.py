"""Every model of the zoo is understood, by comparison with what a plain run of it gives."""

from __future__ import annotations

import itertools
import math
import random
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import zoo
from zoo import BATCH, EXAMPLES, FEATURES, OUTPUTS, STEPS, UNITS

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.arrays import to_numpy
from ncp_callbacks.model import ModelError, ModelRunner, random_states
from ncp_callbacks.model.cell_stepper import CellStepper
from ncp_callbacks.passes import observe

every_example = pytest.mark.parametrize("name", EXAMPLES)


def observed(name, *needs, **options):
    """The example, its inputs, the runner and what it sees."""
    case = EXAMPLES[name]
    x, dt = zoo.data(case)
    model = zoo.made(case)
    if name.startswith("enhanced/"):
        case.plain(model, x, dt)  # which makes its weights
    options = {"forward": case.forward, "horizon": case.horizon, **options}
    runner = ModelRunner(model, ncp.HeldOutBatch(x, dt), **options)
    with runner.analysing():
        return case, x, dt, runner, passes.observe(runner, 0, needs)


def built(name):
    """The same model as in ``observed``, with its late weights, in eval mode."""
    case = EXAMPLES[name]
    x, dt = zoo.data(case)
    model = zoo.made(case)
    if name.startswith("enhanced/"):
        case.plain(model, x, dt)
    if name != "hand/cycle":  # on which MLX's eval() never returns
        model.eval()
    return case, x, dt, model


def close(seen, expected, tolerance=1e-6):
    expected = to_numpy(expected) if isinstance(expected, mx.array) else expected
    assert seen.shape == expected.shape
    np.testing.assert_allclose(seen, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ---- what is found


@every_example
def test_calling_cells_and_layers_are_found(name):
    case, x, dt, runner, seen = observed(name)
    hook_points = runner.hook_points
    reference = case.states(built(name)[3], x, dt)
    assert runner.calling.time_argument == case.time
    assert [hook.name for hook in hook_points.cells] == list(reference)
    assert {hook.name for hook in hook_points.cells if hook.reverse} == case.reverse
    assert [(s.name, s.activation) for s in hook_points.layers] == list(case.layers.items())
    assert seen.outputs.shape == (BATCH, *case.outputs)
    notes = (*runner.notes, *runner.missing)
    assert len(notes) == len(case.notes), notes
    for word, note in zip(case.notes, notes, strict=True):
        assert word in note


@every_example
def test_states_are_those_of_a_loop_by_hand(name):
    case, x, dt, _, seen = observed(name, ncp.Need.STATES)
    reference = case.states(built(name)[3], x, dt)
    for cell in seen.states:
        close(cell.values, np.stack([to_numpy(s) for s in reference[cell.cell]], 1), case.tolerance)
        plain = cell.cell != "other" and not cell.cell.endswith("#2") and case.start is not None
        if cell.initial is not None and plain:
            assert (cell.initial == case.start).all()
            assert cell.initial.shape == (BATCH, cell.values.shape[-1])


@every_example
def test_gradients_are_those_of_a_plain_function(name):
    wanted = {ncp.Need.INPUT_GRADIENT, ncp.Need.TIME_GRADIENT, *ncp.Need}
    output = EXAMPLES[name].outputs[-1] - 1
    case, x, dt, _, seen = observed(name, *wanted, target=output)
    model = built(name)[3]

    def target(x, dt):
        outputs = case.plain(model, x, dt)
        return (outputs[:, -1] if len(case.outputs) > 1 else outputs)[..., output].sum()

    expected = mx.grad(target, argnums=[0] if dt is None else [0, 1])(x, dt)
    expected = expected if isinstance(expected, tuple | list) else [expected]
    close(seen.input_gradient, expected[0], case.tolerance)
    assert np.abs(seen.input_gradient).max() > 0
    if dt is None:
        assert seen.time_gradient is None
    else:
        close(seen.time_gradient, to_numpy(expected[1]).reshape(BATCH, STEPS), case.tolerance)
        assert bool(np.any(seen.time_gradient)) == case.uses_time


@every_example
def test_targets_at_scaled_elapsed_times_are_those_of_plain_calls(name):
    case, x, dt, runner, seen = observed(name, ncp.Need.TIME_SCALES, target=0)
    if dt is None:
        with pytest.raises(RuntimeError, match="takes no time_delta"):
            seen.extra_passes.at_time_scales((2.0,))
        return
    model = built(name)[3]
    with runner.analysing():
        values = seen.extra_passes.at_time_scales((0.5, 1.0, 3.0)).values
    for scale in (0.5, 1.0, 3.0):
        outputs = case.plain(model, x, dt * scale)
        expected = (outputs[:, -1] if len(case.outputs) > 1 else outputs)[..., 0]
        close(values[scale], expected, case.tolerance)
    assert np.array_equal(values[0.5], values[3.0]) != case.uses_time


def hidden(cell, x, h):
    """The hidden layer of a ``zoo.TimedCell``."""
    return nn.relu(cell.mix(mx.concatenate([x, h], axis=-1)))


def of_chain(cell, inputs, states, reverse=False):
    """Its activations at every step, from the inputs and states of each."""
    before = [*states[1:], None] if reverse else [None, *states[:-1]]
    return [
        hidden(cell, x, zoo.zeros(x) if h is None else h)
        for x, h in zip(inputs, before, strict=True)
    ]


def activations_by_hand(name, model, x, dt):
    by_step = [x[:, t] for t in range(STEPS)]
    if name == "hand/both-ways":
        ways, states, layers = model.all(x, dt), {}, {}
        x = nn.silu(model.enter(x))
        for i, pair in enumerate(model.pairs):
            states = {"ahead": ways[2 * i], "back": ways[2 * i + 1]}
            by_step = [x[:, t] for t in range(STEPS)]
            for way, found in states.items():
                layers[f"pairs.{i}.{way}.mix"] = of_chain(pair[way], by_step, found, way == "back")
            x = mx.concatenate([mx.stack(s, axis=1) for s in states.values()], axis=-1)
        return layers
    if name.startswith("hand/shared"):
        first, second = model.both(x, dt)
        entered = [model.enter(x_t) for x_t in by_step]
        ahead = of_chain(model.cell, entered, first)
        after = of_chain(model.cell, first, second, reverse="backwards" in name)
        if "carrying-on" in name:
            after[0] = hidden(model.cell, first[0], first[-1])
        return {"cell.mix#1": ahead, "cell.mix#2": after}
    if name == "hand/sub-steps":
        h, found = zoo.zeros(x), []
        for t in range(STEPS):
            for _ in range(3):
                last = hidden(model.cell, x[:, t], h)
                h = model.cell(x[:, t], h, dt[:, t, None] / 3)
            found.append(last)
        return {"cell.mix": found}
    if name == "port/cfc-deep-dropout-proj":
        cell, states = model.rnn_cell, EXAMPLES[name].states(model, x, dt)["rnn_cell"]
        layers = cell.backbone.layers
        found = {"rnn_cell.backbone.layers.0": [], "rnn_cell.backbone.layers.3": []}
        for x_t, h in zip(by_step, [zoo.zeros(x), *states[:-1]], strict=True):
            z = layers[1](layers[0](mx.concatenate([x_t, h], axis=-1)))
            found["rnn_cell.backbone.layers.0"].append(z)
            found["rnn_cell.backbone.layers.3"].append(layers[4](layers[3](z)))
        return found
    states = EXAMPLES[name].states(model, x, dt)["cell"]
    return {"cell.mix": of_chain(model.cell, by_step, states)}


@pytest.mark.parametrize(
    "name",
    [
        "port/cfc-deep-dropout-proj",
        "hand/both-ways",
        "hand/shared-one-after-other",
        "hand/shared-in-turns",
        "hand/shared-carrying-on",
        "hand/shared-backwards",
        "hand/sub-steps",
        "hand/awkward-class",
        "hand/time-PassingOn",
    ],
)
def test_activations_are_those_of_a_loop_by_hand(name):
    if name == "hand/time-PassingOn":
        case, x, dt, _, seen = observed(name, ncp.Need.ACTIVATIONS)
        net = built(name)[3].net
        by_step = [x[:, t] for t in range(STEPS)]
        states = case.states(built(name)[3], x, dt)["net.cell"]
        expected = {"net.cell.mix": of_chain(net.cell, by_step, states)}
    else:
        case, x, dt, _, seen = observed(name, ncp.Need.ACTIVATIONS)
        expected = activations_by_hand(name, built(name)[3], x, dt)
    assert [layer.layer for layer in seen.activations] == list(expected)
    for layer in seen.activations:
        close(layer.values, np.stack([to_numpy(a) for a in expected[layer.layer]], 1))


def test_activations_after_norms_and_plain_functions():
    for name in ("hand/backbone-plain", "hand/backbone-own", "hand/backbone-norms"):
        case, x, dt, _, seen = observed(name, ncp.Need.ACTIVATIONS)
        model = built(name)[3]
        cell, states = model.cell, case.states(model, x, dt)["cell"]
        for t, h in enumerate([zoo.zeros(x), *states[:-1]]):
            z = cell.first(mx.concatenate([x[:, t], h], axis=-1))
            if cell.variant == "plain":
                first = mx.sin(0.1 * nn.relu6(z))
                second = nn.leaky_relu(cell.second(first))
            elif cell.variant == "own":
                first = cell.own(z)
                second = cell.second(first)
            else:
                first = nn.relu(cell.norms[0](z))
                second = mx.tanh(cell.norms[1](cell.second(first)))
            close(seen.activations[0].values[:, t], first)
            close(seen.activations[1].values[:, t], second)


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n.startswith("enhanced/")])
def test_a_model_whose_weights_are_not_made_yet(name):
    case = EXAMPLES[name]
    x, dt = zoo.data(case)
    model = zoo.made(case)
    keys = {path: list(module) for path, module in model.named_modules()}
    runner = ModelRunner(model, ncp.HeldOutBatch(x, dt))
    before = passes.observe(runner, 0, set(ncp.Need))
    assert {path: list(module) for path, module in model.named_modules()} == keys
    model(x, time_delta=dt)  # makes them, as the first training step does
    model.train()
    after = passes.observe(runner, 1, set(ncp.Need))
    expected = case.states(built(name)[3], x, dt)
    for seen in (before, after):
        for cell in seen.states:
            close(cell.values, np.stack([to_numpy(s) for s in expected[cell.cell]], axis=1))
    assert [a.activation for a in after.activations] == list(case.layers.values())


# ---- other steps, batches, inputs


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_any_number_of_sequences(batch):
    for name in ("port/cfc-default", "hand/both-ways", "nn/lstm-stacked", "hand/between-held"):
        case = EXAMPLES[name]
        x, dt = zoo.data(case, batch=batch)
        model = zoo.made(case)
        runner = ModelRunner(model, ncp.HeldOutBatch(x, dt))
        seen = passes.observe(runner, 0, set(ncp.Need))
        expected = case.states(built(name)[3], x, dt)
        assert [c.cell for c in seen.states] == list(expected)
        for cell in seen.states:
            close(cell.values, np.stack([to_numpy(s) for s in expected[cell.cell]], axis=1))


def test_sequences_of_one_step_have_no_states_handed_on():
    model = zoo.made(EXAMPLES["port/cfc-default"])
    runner = ModelRunner(model, ncp.HeldOutBatch(mx.ones((3, 1, FEATURES)), 0.5))
    assert not runner.hook_points.cells
    assert "one time step" in runner.missing[0]


@pytest.mark.parametrize("sequences", [1, 3])
def test_inputs_that_never_change_leave_the_direction_to_outputs(sequences):
    """Values of another sequence, or outputs, tell the time steps of a sequence apart."""
    case = EXAMPLES["hand/both-ways"]
    x = mx.random.normal((sequences, 1, FEATURES), key=mx.random.key(0))
    x = mx.broadcast_to(x, (3, STEPS, FEATURES))
    runner = ModelRunner(zoo.made(case), ncp.HeldOutBatch(x, 0.5))
    assert [hook.name for hook in runner.hook_points.cells] == list(zoo._WAYS)
    assert {hook.name for hook in runner.hook_points.cells if hook.reverse} == case.reverse
    assert not any("direction" in note for note in runner.notes)


class LastOfBothWays(nn.Module):
    """One output for each sequence, which shows no order."""

    def __init__(self):
        super().__init__()
        self.ahead, self.back = zoo.PlainCell(), zoo.PlainCell()

    def __call__(self, x):
        h, g = zoo.zeros(x), zoo.zeros(x)
        for t in range(x.shape[1]):
            h, g = self.ahead(x[:, t], h), self.back(x[:, -1 - t], g)
        return h + g


def test_equal_inputs_leave_the_direction_open():
    x = mx.broadcast_to(mx.random.normal((1, 1, FEATURES)), (3, STEPS, FEATURES))
    runner = ModelRunner(LastOfBothWays(), ncp.HeldOutBatch(x))
    assert [hook.name for hook in runner.hook_points.cells] == ["ahead", "back"]
    assert sum("its direction can't be determined" in note for note in runner.notes) == 2
    assert all("all inputs are equal" in hook.skipped for hook in runner.hook_points.cells)
    assert not observe(runner, 0, {ncp.Need.STATES}).states


@pytest.mark.parametrize("name", ["hand/state-tuple", "hand/between-held"])
def test_nan_in_a_state_is_followed(name):
    case = EXAMPLES[name]
    x, _ = zoo.data(case)
    values = to_numpy(x)
    values[0, 2, 1] = np.nan
    runner = ModelRunner(zoo.made(case), ncp.HeldOutBatch(values))
    states = passes.observe(runner, 0, {ncp.Need.STATES}).states
    assert states[0].cell == "cell"
    assert np.isnan(states[0].values[0, 2:]).any()
    assert np.isfinite(states[0].values[1:]).all()


@pytest.mark.parametrize(
    "name", ["port/cfc-default", "hand/shared-one-after-other", "nn/gru-stepped"]
)
def test_two_steps_are_enough(name):
    case = EXAMPLES[name]
    x, dt = zoo.data(case)
    model = zoo.made(case)
    runner = ModelRunner(model, ncp.HeldOutBatch(x[:, :2], None if dt is None else dt[:, :2]))
    seen = passes.observe(runner, 0, {ncp.Need.STATES})
    expected = case.states(built(name)[3], x, dt)
    assert [cell.cell for cell in seen.states] == list(expected)
    for cell in seen.states:
        close(cell.values, np.stack([to_numpy(s) for s in expected[cell.cell][:2]], axis=1))


# ---- naming cells, layers and the call


def test_cells_by_name():
    case = EXAMPLES["hand/both-ways"]
    x, dt = zoo.data(case)
    expected = case.states(built("hand/both-ways")[3], x, dt)
    for pattern, found in {
        "pairs.1.back": ["pairs.1.back"],
        "pairs.?.back": ["pairs.0.back", "pairs.1.back"],
        "*.ahead": ["pairs.0.ahead", "pairs.1.ahead"],
    }.items():
        *_, seen = observed("hand/both-ways", ncp.Need.STATES, cells=pattern)
        assert [cell.cell for cell in seen.states] == found
        for cell in seen.states:
            close(cell.values, np.stack([to_numpy(s) for s in expected[cell.cell]], axis=1))


def test_the_inner_of_two_cells_by_name():
    *_, seen = observed("hand/in-wrapper", ncp.Need.STATES, cells="wrapped.cell")
    assert [cell.cell for cell in seen.states] == ["wrapped.cell"]
    assert seen.states[0].values.shape == (BATCH, STEPS, UNITS)


@pytest.mark.parametrize(
    ("name", "module"), [("hand/backbone-plain", "cell.first"), ("hand/shared-backwards", "enter")]
)
def test_a_module_without_a_state_is_no_cell(name, module):
    with pytest.raises(ModelError, match=f"{module} holds no state.*pass cells=\\['cell'\\]"):
        observed(name, ncp.Need.STATES, cells=module)


def test_layers_by_name():
    _, x, dt, _, seen = observed("hand/both-ways", ncp.Need.ACTIVATIONS, layers=["enter", "*.out"])
    names = ["enter", *(f"{way}.out" for way in zoo._WAYS)]
    assert [(a.layer, a.activation) for a in seen.activations] == [(n, "identity") for n in names]
    model = built("hand/both-ways")[3]
    close(seen.activations[0].values, model.enter(x))
    expected = activations_by_hand("hand/both-ways", model, x, dt)
    for way, layer in zip(zoo._WAYS, seen.activations[1:], strict=True):
        out = model.pairs[int(way[6])][way[8:]].out
        values = np.stack([to_numpy(out(a)) for a in expected[f"{way}.mix"]], axis=1)
        close(layer.values, values)


def test_a_layer_that_several_runs_share_is_read_once_for_each():
    _, x, dt, _, seen = observed("hand/shared-backwards", ncp.Need.ACTIVATIONS, layers="cell.out")
    model = built("hand/shared-backwards")[3]
    expected = activations_by_hand("hand/shared-backwards", model, x, dt)
    assert [a.layer for a in seen.activations] == ["cell.out#1", "cell.out#2"]
    for layer, mixed in zip(seen.activations, expected.values(), strict=True):
        close(layer.values, np.stack([to_numpy(model.cell.out(a)) for a in mixed], axis=1))


def test_a_stack_named_as_layer_tells_its_activation():
    *_, runner, seen = observed("hand/backbone-block", ncp.Need.ACTIVATIONS, layers="cell.block")
    assert [(s.name, s.activation) for s in runner.hook_points.layers] == [
        ("cell.block", "sigmoid")
    ]
    assert seen.activations[0].values.min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": "nothing.*"}, r"'nothing\.\*' matches no module; the model has .*rnn_cell"),
        ({"cells": "rnn_cell.ff1"}, "never called; called were .*rnn_cell.backbone"),
        ({"layers": "rnn_cell.ff1"}, "never called"),
        ({"layers": ["rnn_cell.backbone", "oops"]}, "'oops' matches no module"),
        ({"forward": 3}, "forward is a int"),
        ({"forward": lambda model, x, dt: None}, "returned None: return its outputs"),
        ({"forward": lambda model, x, dt: model.nothing(x)}, "forward failed on inputs .*nothing"),
        ({"forward": lambda model, x, dt: {"a": x, "b": x}}, "returned a dict"),
        ({"forward": lambda model, x, dt: x.argmax(-1)}, "has no gradient"),
        ({"forward": lambda model, x, dt: x.swapaxes(0, 1)}, "first axis must be the batch"),
        ({"forward": lambda model, x, dt: mx.cumsum(x, 0)}, "as though the batch were time"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises((ModelError, TypeError), match=message):
        observed("port/cfc-default", **options)


def test_a_model_that_takes_time_first_is_refused():
    model = zoo.made(EXAMPLES["port/cfc-time-first"])
    x, _ = zoo.data(EXAMPLES["port/cfc-default"])
    with pytest.raises(ModelError, match=r"as though the batch were time.*pass forward="):
        ModelRunner(model, ncp.HeldOutBatch(x))


def test_elapsed_times_without_a_keyword_are_refused():
    model = zoo.made(EXAMPLES["port/node-without-keyword"])
    x, _ = zoo.data(EXAMPLES["port/cfc-default"])
    with pytest.raises(ModelError, match=r"takes no keyword for it.*forward="):
        ModelRunner(model, ncp.HeldOutBatch(x, 0.5))


def test_missing_elapsed_times_are_requested():
    model = zoo.made(EXAMPLES["hand/time-ByPosition"])
    x, _ = zoo.data(EXAMPLES["port/cfc-default"])
    with pytest.raises(ModelError, match="it takes elapsed times: pass time_delta="):
        ModelRunner(model, ncp.HeldOutBatch(x))


# ---- missing parts are reported


class Inlined(nn.Module):
    """Its step is not a module."""

    def __init__(self, rule):
        super().__init__()
        self.wx, self.wh = nn.Linear(FEATURES, UNITS), nn.Linear(UNITS, UNITS)
        self.rule = rule

    def __call__(self, x):
        h, states = zoo.zeros(x), []
        if self.rule == "whole":
            return self.wh(mx.tanh(self.wx(x)))
        for t in range(x.shape[1] - (self.rule == "missing a step")):
            new = mx.tanh(self.wx(x[:, t]) + self.wh(h))
            h = h + 0.1 * new if self.rule == "residual" else new
            states.append(h)
        return mx.stack(states, axis=1)[:, -1]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("residual", "called once per step are wx, wh, but they pass nothing on"),
        ("plain", "called once per step are wx, wh, but they pass nothing on"),
        ("missing a step", "called repeatedly are wx 5 times, wh 5 times, for 6 steps"),
        ("whole", "no module is called once per time step with a state that it passes on. Let"),
    ],
)
def test_a_missing_cell_is_reported_with_candidates(rule, message):
    model = Inlined(rule)
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    runner = ModelRunner(model, ncp.HeldOutBatch(x))
    assert not runner.hook_points.cells
    note = next(n for n in runner.missing if n.startswith("no recurrent cell was found"))
    assert re.search(message, note), note
    assert "cells='" not in note


def test_a_cell_called_too_often_can_not_be_named():
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    with pytest.raises(
        ModelError, match=r"cell was called 5 times for 6 steps and returned \(2, 5\)"
    ):
        ModelRunner(WithStatefulCell(missing=1), ncp.HeldOutBatch(x), cells="cell")
    with pytest.raises(ModelError, match="wh was called 5 times for 6 steps"):
        ModelRunner(Inlined("missing a step"), ncp.HeldOutBatch(x), layers="wh")


class KeepsItsState(nn.Module):
    """``cell(x) -> h``, with h in an attribute."""

    def __init__(self):
        super().__init__()
        self.lin, self.h = nn.Linear(FEATURES + UNITS, UNITS), None

    def __call__(self, x):
        self.h = mx.tanh(self.lin(mx.concatenate([x, self.h], axis=-1)))
        return self.h


class WithStatefulCell(nn.Module):
    def __init__(self, missing=0):
        super().__init__()
        self.cell, self.missing = KeepsItsState(), missing

    def __call__(self, x):
        self.cell.h = zoo.zeros(x)
        states = [self.cell(x[:, t]) for t in range(x.shape[1] - self.missing)]
        return states[-1] if self.missing else mx.stack(states, axis=1)


def test_a_cell_that_keeps_its_state_can_be_named():
    mx.random.seed(0)
    model = WithStatefulCell()
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    assert "cells='cell'" in ModelRunner(model, ncp.HeldOutBatch(x)).missing[0]
    runner = ModelRunner(model, ncp.HeldOutBatch(x), cells="cell")
    seen = passes.observe(runner, 0, {ncp.Need.STATES})
    close(seen.states[0].values, model(x))


class Vmapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = zoo.PlainCell()

    def __call__(self, x):
        def one(sequence):
            h = mx.zeros((UNITS,))
            for t in range(sequence.shape[0]):
                h = self.cell(sequence[t], h)
            return h

        return mx.vmap(one)(x)


def test_calls_inside_vmap_are_reported_as_hidden():
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    runner = ModelRunner(Vmapped(), ncp.HeldOutBatch(x))
    assert not runner.hook_points.cells
    assert "mx.vmap" in runner.notes[0]
    seen = passes.observe(runner, 0, {ncp.Need.INPUT_GRADIENT, ncp.Need.STATES})
    assert np.abs(seen.input_gradient).max() > 0
    assert not seen.states


class Adaptive(nn.Module):
    """As many calls as the largest input asks for."""

    def __init__(self):
        super().__init__()
        self.cell, self.least = zoo.PlainCell(), 0

    def __call__(self, x):
        h = zoo.zeros(x)
        for t in range(x.shape[1]):
            for _ in range(1 + self.least + int(mx.abs(x).max().item())):
                h = self.cell(x[:, t], h)
        return h


def test_calls_whose_number_changes_are_not_assigned_to_steps():
    x = np.full((4, STEPS, FEATURES), 0.5, np.float32)
    x[:, 1] = 0.7
    runner = ModelRunner(Adaptive(), ncp.HeldOutBatch(x))
    assert [hook.name for hook in runner.hook_points.cells] == ["cell"]
    runner.model.least = 1
    with pytest.raises(ModelError, match="cell was called 12 times, but 6 times"):
        passes.observe(runner, 0, {ncp.Need.STATES})
    passes.observe(runner, 0, {ncp.Need.INPUT_GRADIENT})  # which needs no states


def test_calls_whose_number_depends_on_other_sequences_are_those_of_the_whole_batch():
    x = np.full((4, STEPS, FEATURES), 0.5, np.float32)
    x[:, 1] = 0.7
    x[3] = 1.5  # beyond the two sequences that are the first pass
    model = Adaptive()
    runner = ModelRunner(model, ncp.HeldOutBatch(x))
    assert runner.coupling == ("inputs",)
    seen = observe(runner, 0, {ncp.Need.STATES})
    h, states = zoo.zeros(x), []
    for t in range(STEPS):
        for _ in range(2):
            h = model.cell(mx.array(x[:, t]), h)
        states.append(to_numpy(h))
    close(seen.states[0].values, np.stack(states, axis=1))


class BatchMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(FEATURES, UNITS)

    def __call__(self, x):
        return self.gru(x - x.mean(axis=0))


def test_sequences_that_act_on_each_other_are_mentioned():
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    notes = ModelRunner(BatchMean(), ncp.HeldOutBatch(x)).notes
    assert "depend on the other sequences in the batch" in notes[0]


class Noisy(nn.Module):
    """Draws numbers in eval mode too, and goes on from the state that it was left in."""

    def __init__(self, noise=mx.random.normal):
        super().__init__()
        self.gru, self.carried = nn.GRU(FEATURES, UNITS), mx.zeros((1, UNITS))
        self.noise = noise

    def __call__(self, x):
        states = self.gru(x + self.noise(x.shape), self.carried)
        self.carried = states[:1, -1]
        return {"anything": states}


def numpy_noise(shape):
    return mx.array(np.random.standard_normal(shape).astype(np.float32))  # noqa: NPY002


def python_noise(shape):
    return mx.array([random.gauss(0, 1) for _ in range(math.prod(shape))]).reshape(shape)


@pytest.mark.parametrize("noise", [mx.random.normal, numpy_noise, python_noise])
def test_noise_is_not_mistaken_for_sequences_that_act_on_each_other(noise, monkeypatch):
    # As in a training without data loaders: a thread that another test left could be one.
    monkeypatch.setattr(random_states, "_shared_by_threads", lambda: False)
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    runner = ModelRunner(Noisy(noise), ncp.HeldOutBatch(x))
    assert [hook.name for hook in runner.hook_points.cells] == ["gru"]
    assert runner.notes == ()
    assert "backbone" in runner.missing[0]


class Attentive(nn.Module):
    """What its cell is given at any step depends on all steps."""

    def __init__(self):
        super().__init__()
        self.attention, self.cell = nn.MultiHeadAttention(4, 2), zoo.PlainCell(4)
        self.enter = nn.Linear(FEATURES, 4)

    def __call__(self, x):
        x = self.enter(x)
        x, h = self.attention(x, x, x), zoo.zeros(x)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return h


def test_an_uncertain_direction_is_reported():
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    runner = ModelRunner(Attentive(), ncp.HeldOutBatch(x))
    assert [hook.name for hook in runner.hook_points.cells] == ["cell"]
    assert any("its direction can't be determined" in note for note in runner.notes)


class FixedBatch(nn.Module):
    """Made for one batch size; and given something beside the sequence."""

    def __init__(self):
        super().__init__()
        self.cell, self.start = zoo.TimedCell(), nn.Linear(2, UNITS)

    def __call__(self, x, static, dt):
        h = self.start(static)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, dt[:, t, None])
        return h


def test_a_model_for_one_batch_size_with_another_input():
    case = EXAMPLES["hand/sub-steps"]
    x, dt = zoo.data(case)
    static, model = mx.random.normal((BATCH, 2)), FixedBatch()
    runner = ModelRunner(
        model,
        ncp.HeldOutBatch(x, dt),
        forward=lambda model, x, dt: model(x, static, dt),
        target=0,
    )
    assert runner.small() is runner
    seen = passes.observe(runner, 0, set(ncp.Need))
    scaled = seen.extra_passes.at_time_scales((2.0, 3.0)).values
    close(scaled[2.0], model(x, static, 2 * dt)[:, 0])
    close(scaled[3.0], model(x, static, 3 * dt)[:, 0])
    close(seen.states[0].initial, model.start(static))


class Iterated(nn.Module):
    """A block applied to the whole sequence as often as there are steps is no cell."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(FEATURES, FEATURES)

    def __call__(self, x):
        for _ in range(STEPS):
            x = self.block(x)
        return x


def test_a_block_applied_repeatedly_is_no_cell():
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    assert not ModelRunner(Iterated(), ncp.HeldOutBatch(x)).hook_points.cells


class PassesThrough(nn.Module):
    """Dropout in eval mode returns what it is given; some inputs stay as they are."""

    def __init__(self):
        super().__init__()
        self.drop, self.cell = nn.Dropout(0.5), zoo.PlainCell()

    def __call__(self, x):
        h, context, steps = zoo.zeros(x), x.mean(axis=1), mx.zeros((len(x), 1))
        for t in range(x.shape[1]):
            context = self.drop(context)
            h = self.cell(x[:, t] + context, h)
            steps = self.drop(steps)
        return h


class Flagged(nn.Module):
    """A flag for the first step, and an encoder whose units happen to be off."""

    def __init__(self):
        super().__init__()
        self.encoder, self.cell = Encoder(), zoo.PlainCell(UNITS)

    def __call__(self, x):
        h = zoo.zeros(x)
        for t in range(x.shape[1]):
            flag = mx.full((len(x), UNITS), float(t == 0))
            h = self.cell(self.encoder(x[:, t], flag), h)
        return h


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(FEATURES, UNITS)

    def __call__(self, x, flag):
        return nn.relu(self.lin(x) - 100 - flag)


def test_zeros_that_meet_zeros_are_no_state():
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    runner = ModelRunner(Flagged(), ncp.HeldOutBatch(x))
    assert [hook.name for hook in runner.hook_points.cells] == ["cell"]


def test_an_argument_that_is_returned_unchanged_is_no_state():
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    runner = ModelRunner(PassesThrough(), ncp.HeldOutBatch(x))
    assert [hook.name for hook in runner.hook_points.cells] == ["cell"]


# ---- tokens


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.cell = nn.Embedding(9, FEATURES), zoo.PlainCell()
        self.head = nn.Linear(UNITS, OUTPUTS)

    def __call__(self, tokens):
        return self.read(self.embedding(tokens))

    def read(self, x):
        h = zoo.zeros(x)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


@pytest.mark.parametrize("embedded", [False, True])
def test_tokens_are_analysed_as_their_vectors(embedded):
    tokens = mx.array(np.random.default_rng(0).integers(0, 9, (BATCH, STEPS)))
    model = Tagger()
    if embedded:
        held_out = ncp.HeldOutBatch(model.embedding(tokens))
        options = {"forward": lambda model, x, dt: model.read(x)}
    else:
        held_out, options = ncp.HeldOutBatch(tokens), {}
    runner = ModelRunner(model, held_out, target=0, **options)
    assert [hook.name for hook in runner.hook_points.cells] == ["cell"]
    seen = passes.observe(runner, 0, {ncp.Need.INPUT_GRADIENT})
    expected = mx.grad(lambda x: model.read(x)[:, 0].sum())(model.embedding(tokens))
    close(seen.input_gradient, expected)
    close(seen.outputs, model(tokens))


def test_zeros_to_start_from_are_not_taken_for_a_relu():
    """``relu(wx(x))`` is all zeros too where ``wx(x)`` is below 0 everywhere."""
    model = zoo.Merged(start=0.0)
    for cell in (model.cell, model.backward_cell):
        cell.wx.bias = cell.wx.bias - 10.0
    _, x, dt, _ = built("port/states-in-lists-both-ways")
    assert not ModelRunner(model, ncp.HeldOutBatch(x, dt)).hook_points.layers


def test_steps_run_again_start_from_bare_states_too():
    """A cell may be started with a state and then be handed lists; a reverse one starts last."""
    _, x, dt, model = built("port/states-in-lists-both-ways")
    runner = ModelRunner(model, ncp.HeldOutBatch(x, dt))
    expected = zoo.merged_states(model, x, dt)
    for hook in runner.hook_points.cells:
        stepper = CellStepper(runner, hook)
        after = np.stack([to_numpy(a) for a in expected[hook.name]], axis=1)
        start = np.full((BATCH, UNITS), 0.5, np.float32)
        order = range(STEPS)[:: -1 if hook.reverse else 1]
        cell = dict(model.items())[hook.name]
        for before, t in zip([None, *order], order, strict=False):
            came = start if before is None else after[:, before]
            close(stepper.before(t), came, 1e-6)
            close(stepper.after(t), after[:, t], 1e-6)
            by_hand = [
                to_numpy(
                    mx.vjp(
                        lambda h, t=t, cell=cell: cell(x[:, t], [h], time=dt[:, t])[1][0],
                        [mx.array(came)],
                        [mx.broadcast_to(row, (BATCH, UNITS))],
                    )[1][0]
                )
                for row in mx.eye(UNITS)
            ]
            close(stepper.jacobian(t), np.stack(by_hand, axis=1), 1e-5)


# ---- rows, time order and states changed between calls are verified


LENGTHS = np.array([6, 3, 5, 4, 2, 6, 3, 4, 5])
RIGHT = np.arange(STEPS)[None] < LENGTHS[:, None]


def padded(seed=0):
    keys = mx.random.split(mx.random.key(seed))
    return mx.random.normal((len(LENGTHS), STEPS, FEATURES), key=keys[0]), mx.array(LENGTHS)


def flipped(x, lengths):
    """Each sequence backwards within its length; padding keeps its place."""
    at = mx.arange(x.shape[1])[None]
    at = mx.where(at < lengths[:, None], lengths[:, None] - 1 - at, at)
    return mx.take_along_axis(x, at[..., None], axis=1)


def rolled(x, by):
    at = (mx.arange(x.shape[1])[None] + by[:, None]) % x.shape[1]
    return mx.take_along_axis(x, at[..., None], axis=1)


def run(layer, x):
    """The states ``(B, T, H)`` of a cell by a loop, or of a layer."""
    if not isinstance(layer, zoo.PlainCell):
        return layer(x)
    return mx.stack(zoo.after(layer, [x[:, t] for t in range(x.shape[1])], zoo.zeros(x)), axis=1)


class Padded(nn.Module):
    """Reads padded sequences in an order of its own, with cells or layers."""

    def __init__(self, order, layer, per_step=True):
        super().__init__()
        self.ahead, self.back = layer(), layer()
        self.head, self.order, self.per_step = nn.Linear(2 * UNITS, OUTPUTS), order, per_step

    def states(self, x, lengths):
        ahead = run(self.ahead, x)
        if self.order == "flipped":
            back = flipped(run(self.back, flipped(x, lengths)), lengths)
        elif self.order == "reversed":
            back = run(self.back, x[:, ::-1])[:, ::-1]
        elif self.order == "packed":  # left padding is moved to the end
            pad = STEPS - lengths
            back = rolled(run(self.back, rolled(x, pad)), -pad)
        else:
            order = mx.argsort(-lengths)
            back = run(self.back, x[order])[mx.argsort(order)]
        return {"ahead": ahead, "back": back}

    def __call__(self, x, lengths):
        outputs = self.head(mx.concatenate(list(self.states(x, lengths).values()), axis=-1))
        return outputs if self.per_step else outputs[:, -1]


CELL_OR_LAYER = pytest.mark.parametrize(
    "layer", [zoo.PlainCell, lambda: nn.GRU(FEATURES, UNITS)], ids=["cell", "layer"]
)


def compiled(model, inputs, time_delta):
    return mx.compile(model)(*inputs)


def compiled_with_time(model, x, dt):
    return mx.compile(model)(x) if dt is None else mx.compile(model)(x, dt)


@CELL_OR_LAYER
@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("forward", [None, compiled])
@pytest.mark.parametrize("order", ["flipped", "reversed", "packed"])
def test_the_time_order_is_that_of_each_sequence(order, forward, per_step, layer):
    x, lengths = padded()
    mask = RIGHT[:, ::-1] if order == "packed" else RIGHT
    mx.random.seed(1)
    model = Padded(order, layer, per_step)
    runner = ModelRunner(
        model, ncp.HeldOutBatch((x, lengths), mask=mask.copy()), forward=forward, target=0
    )
    with runner.analysing():
        states = observe(runner, 0, {ncp.Need.STATES}).states
    assert [s.cell for s in states] == ["ahead", "back"]
    assert [s.reverse for s in states] == [False, order != "packed"]
    real = runner.held_out.mask
    for seen, expected in zip(states, model.states(x, lengths).values(), strict=True):
        close(seen.values[real], to_numpy(expected)[real])


class PaddedTogether(Padded):
    """Standardises the inputs over the batch: of each time step, or of all together."""

    def __init__(self, order, layer, axes):
        super().__init__(order, layer)
        self.axes = axes

    def states(self, x, lengths):
        centred = (x - x.mean(self.axes, keepdims=True)) / (x.std(self.axes, keepdims=True) + 0.1)
        return super().states(centred, lengths)


@CELL_OR_LAYER
@pytest.mark.parametrize("axes", [(0,), (0, 1)])
@pytest.mark.parametrize("order", ["flipped", "reversed", "sorted"])
def test_the_order_is_found_on_some_of_many_sequences_that_act_on_each_other(order, axes, layer):
    """States that are read are those of a loop, or are skipped with a reason."""
    x, lengths, mask = many_padded(17, seed=3)
    mx.random.seed(1)
    model = PaddedTogether(order, layer, axes)
    runner = ModelRunner(model, ncp.HeldOutBatch((x, lengths), mask=mask), target=0)
    assert runner.coupling == ("inputs",)
    with runner.analysing():
        states = observe(runner, 0, {ncp.Need.STATES}).states
    expected = model.states(x, lengths)
    for seen in states:
        close(seen.values[mask], to_numpy(expected[seen.cell])[mask])
        assert seen.reverse == (seen.cell == "back" and order != "sorted")
    unread = {"ahead", "back"} - {seen.cell for seen in states}
    for name in unread:
        assert any(name in note and "skipped" in note for note in runner.notes)
    # Every row moves with every sequence, so that sorted rows can't be told apart.
    assert not unread or axes == (0, 1) or order == "sorted"


@CELL_OR_LAYER
def test_an_unknown_time_order_skips_one_cell_alone(layer):
    """Without the mask, nobody knows in which order each sequence is read."""
    x, lengths = padded()
    model = Padded("flipped", layer, per_step=False)
    runner = ModelRunner(model, ncp.HeldOutBatch((x, lengths)), target=0)
    states = observe(runner, 0, {ncp.Need.STATES}).states
    assert [s.cell for s in states] == ["ahead"]
    close(states[0].values, run(model.ahead, x))
    (note,) = (note for note in runner.notes if "back" in note)
    assert "its direction can't be determined" in note
    assert "Pass the mask" in note
    with runner.analysing(), pytest.raises(ncp.NotApplicable, match="direction"):
        observe(runner, 0, {ncp.Need.CELL_STEPS}).extra_passes.cell_stepper("back")


class Sorted(nn.Module):
    """Sorts sequences by length, runs a cell with a hidden layer over them, and puts them back."""

    def __init__(self, layer=None, key=lambda lengths: -lengths):
        super().__init__()
        self.cell = zoo.StackCell("plain") if layer is None else layer()
        self.head, self.key = nn.Linear(UNITS, OUTPUTS), key

    def in_order(self, x, lengths):
        """The states and the order of the sequences."""
        order = mx.argsort(self.key(lengths))
        x = x[order]
        if isinstance(self.cell, nn.GRU):
            return self.cell(x), order
        steps = [x[:, t] for t in range(x.shape[1])]
        return mx.stack(zoo.after(self.cell, steps, zoo.zeros(x)), axis=1), order

    def states(self, x, lengths):
        found, order = self.in_order(x, lengths)
        return found[mx.argsort(order)]

    def __call__(self, x, lengths):
        last = mx.maximum(lengths - 1, 0)[:, None, None]
        return self.head(mx.take_along_axis(self.states(x, lengths), last, axis=1)[:, 0])


def many_padded(count, seed):
    lengths = np.random.default_rng(seed).integers(1, STEPS + 1, count)
    x = mx.random.normal((count, STEPS, FEATURES), key=mx.random.key(seed))
    return x, mx.array(lengths), np.arange(STEPS)[None] < lengths[:, None]


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("forward", [None, compiled])
@pytest.mark.parametrize("count", [2, 3, 7, 30])
@pytest.mark.parametrize(
    "layer", [None, zoo.PlainCell, lambda: nn.GRU(FEATURES, UNITS)], ids=["deep", "cell", "layer"]
)
def test_sequences_that_are_sorted_are_put_back(layer, count, forward, with_mask):
    for seed in range(3):
        x, lengths, mask = many_padded(count, seed)
        for key in (lambda n: -n, lambda n: n):
            model = Sorted(layer, key)
            held_out = ncp.HeldOutBatch((x, lengths), mask=mask if with_mask else None)
            runner = ModelRunner(model, held_out, forward=forward, target=0)
            wanted = {ncp.Need.STATES, ncp.Need.ACTIVATIONS}
            some = np.sort(np.random.default_rng(seed).permutation(count)[: max(2, count // 2)])
            for part, at in ((runner, np.arange(count)), (runner.take(some).take(slice(1, 9)), 0)):
                indices = at if part is runner else some[1:9]
                with runner.analysing():
                    seen = observe(part, 0, wanted)
                expected = to_numpy(model.states(x, lengths))[indices]
                close(seen.states[0].values, expected)
                for layer_seen, module in zip(
                    seen.activations, (model.cell.get("first"), None), strict=False
                ):
                    h = np.concatenate([0 * expected[:, :1], expected[:, :-1]], axis=1)
                    given = mx.concatenate([x[mx.array(indices)], mx.array(h)], axis=-1)
                    if module is not None:
                        close(layer_seen.values, mx.sin(0.1 * nn.relu6(module(given))))


class Packed(Sorted):
    """Runs only the sequences that haven't ended, as packed sequences do."""

    def states(self, x, lengths):
        order = mx.argsort(-lengths)
        x, ends, h, found = x[order], np.array(lengths[order]), zoo.zeros(x), []
        for t in range(x.shape[1]):
            count = max(1, int((ends > t).sum()))
            h = mx.concatenate([self.cell(x[:count, t], h[:count]), h[count:]])
            found.append(h)
        return mx.stack(found, axis=1)[mx.argsort(order)]


def test_packed_sequences_have_no_states_for_each_time_step():
    x, lengths, mask = many_padded(9, 0)
    model = Packed(zoo.PlainCell)
    runner = ModelRunner(model, ncp.HeldOutBatch((x, lengths), mask=mask), target=0)
    seen = observe(runner, 0, {ncp.Need.STATES, ncp.Need.INPUT_GRADIENT})
    assert not seen.states
    assert "cell takes fewer sequences in some calls" in seen.no_cells
    close(seen.input_gradient, mx.grad(lambda x: model(x, lengths)[:, 0].sum())(x), 1e-5)


def test_a_batch_that_is_sorted_already_has_no_steps_of_copies():
    """Copies of sorted sequences would be sorted among each other."""
    x, lengths, mask = many_padded(9, 0)
    order = np.argsort(-np.array(lengths), kind="stable")
    model = Sorted(zoo.PlainCell)
    held_out = ncp.HeldOutBatch((x, lengths), mask=mask).take(order)
    runner = ModelRunner(model, held_out, target=0)
    assert runner.hook_points.cells[0].rows == tuple(range(9))
    assert not any("in an order other" in note for note in runner.notes)
    seen = observe(runner, 0, {ncp.Need.STATES, ncp.Need.CELL_STEPS})
    close(seen.states[0].values, model.states(x, lengths)[mx.array(order)])
    with runner.analysing(), pytest.raises(ncp.NotApplicable, match="would mix the copies"):
        seen.extra_passes.cell_stepper("cell")


@pytest.mark.parametrize(
    ("key", "options", "because"),
    [
        (lambda n: n * (-1) ** len(n), {}, "orders that differ between parts of the batch"),
        (lambda n: -n, {"max_sequences": 4}, "unknown for the whole batch"),
    ],
)
def test_sequences_in_an_unknown_order_skip_what_is_read_alone(key, options, because):
    x, lengths, mask = many_padded(10, 0)
    model = Sorted(None, key)
    held_out = ncp.HeldOutBatch((x, lengths), mask=mask)
    runner = ModelRunner(model, held_out, target=0, **options)
    with runner.analysing():
        seen = observe(runner, 0, set(ncp.Need))
    assert not seen.states
    assert not seen.activations
    assert because in seen.no_cells
    assert because in seen.no_layers
    expected = mx.grad(lambda x: model(x, lengths)[:, 0].sum())(x)
    close(seen.input_gradient, expected, 1e-5)


@pytest.mark.parametrize("forward", [None, compiled_with_time])
def test_a_decoder_of_more_steps_than_its_inputs_is_skipped_alone(forward):
    """Its calls are twice as many as the time steps, and are no two runs over these."""
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    model = zoo.AttendingForecaster(2 * STEPS)
    runner = ModelRunner(model, ncp.HeldOutBatch(x), forward=forward, target=0)
    with runner.analysing():
        states = observe(runner, 0, {ncp.Need.STATES}).states
    assert [s.cell for s in states] == ["cell"]
    close(states[0].values, mx.stack(model.states(x)["cell"], axis=1))
    assert "other is skipped: its direction can't be determined" in runner.notes[0]


def test_steps_of_a_forecast_have_no_padding():
    """Its states aren't those of the time steps that the mask is about."""
    x, _ = padded()
    held_out = ncp.HeldOutBatch(x, mask=RIGHT)
    for horizon in (True, False):
        model = zoo.AttendingForecaster()
        runner = ModelRunner(model, held_out, horizon=horizon, target=0)
        states = observe(runner, 0, {ncp.Need.STATES}).states
        assert [s.cell for s in states] == ["cell", "other"][: 2 - horizon]
        for seen in states:
            close(seen.values, mx.stack(model.states(x)[seen.cell], axis=1))


class Centred(nn.Module):
    """Sequences act on each other, and each still has its own row."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = zoo.PlainCell(), nn.Linear(UNITS, OUTPUTS)

    def __call__(self, x):
        return self.head(run(self.cell, x - x.mean(axis=0)))


@pytest.mark.parametrize("batch", [2, 3, 9])
def test_rows_of_sequences_that_act_on_each_other(batch):
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"], batch=batch)
    model = Centred()
    runner = ModelRunner(model, ncp.HeldOutBatch(x))
    states = observe(runner, 0, {ncp.Need.STATES}).states
    close(states[0].values, run(model.cell, x - x.mean(axis=0)))


@pytest.mark.parametrize("batch", [2, 3, STEPS, 9])
def test_a_layer_that_keeps_time_first_by_name(batch):
    mx.random.seed(0)
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"], batch=batch)
    model = zoo.TimeFirst()
    runner = ModelRunner(model, ncp.HeldOutBatch(x), cells="layer", layers="layer.wx", target=0)
    seen = observe(runner, 0, {ncp.Need.STATES, ncp.Need.ACTIVATIONS})
    close(seen.states[0].values, model.layer(x.swapaxes(0, 1)).swapaxes(0, 1))
    close(seen.activations[0].values, model.layer.wx(x))


class Flattened(nn.Module):
    """Its first layer takes all time steps of all sequences as rows."""

    def __init__(self, time_first):
        super().__init__()
        self.enter, self.cell = nn.Linear(FEATURES, FEATURES), zoo.PlainCell()
        self.time_first = time_first

    def __call__(self, x):
        if self.time_first:
            x = x.swapaxes(0, 1)
        x = nn.relu(self.enter(x.reshape(-1, FEATURES))).reshape(x.shape)
        return run(self.cell, x.swapaxes(0, 1) if self.time_first else x)[:, -1]


@pytest.mark.parametrize("time_first", [True, False])
@pytest.mark.parametrize("batch", [2, STEPS, 9])
def test_a_flattened_layer_by_name(time_first, batch):
    mx.random.seed(0)
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"], batch=batch)
    model = Flattened(time_first)
    runner = ModelRunner(model, ncp.HeldOutBatch(x), layers="enter", target=0)
    close(observe(runner, 0, {ncp.Need.ACTIVATIONS}).activations[0].values, model.enter(x))


class TwoWaysInOne(nn.Module):
    """Both directions are rows of one call."""

    def __init__(self, how):
        super().__init__()
        self.cell, self.how = zoo.PlainCell(), how

    def __call__(self, x):
        ways = [x, x[:, ::-1]]
        if self.how == "stacked":
            h = run(self.cell, mx.concatenate(ways))[:, -1]
            return mx.concatenate([h[: len(x)], h[len(x) :]], axis=-1)
        both = mx.stack(ways, axis=1).reshape(-1, *x.shape[1:])
        return run(self.cell, both)[:, -1].reshape(len(x), -1)


@pytest.mark.parametrize("how", ["stacked", "interleaved"])
@pytest.mark.parametrize("batch", [1, 2, 3, 9])
def test_rows_of_two_directions_are_skipped(how, batch):
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"], batch=batch)
    runner = ModelRunner(TwoWaysInOne(how), ncp.HeldOutBatch(x), target=0)
    seen = observe(runner, 0, {ncp.Need.STATES, ncp.Need.INPUT_GRADIENT})
    assert not seen.states
    assert "the states of cell are skipped: they can't be assigned to sequences" in seen.no_cells
    assert np.abs(seen.input_gradient).max() > 0


@pytest.mark.parametrize("how", ["decay", "solver", "norm", "project", "add", "one-of-two"])
@pytest.mark.parametrize("forward", [None, compiled_with_time])
def test_steps_include_what_lies_between_calls(how, forward):
    case = EXAMPLES[f"hand/changed-{how}"]
    x, dt = zoo.data(case)
    model = zoo.made(case)
    runner = ModelRunner(model, ncp.HeldOutBatch(x, dt), forward=forward)
    with runner.analysing():
        seen = observe(runner, 0, {ncp.Need.CELL_STEPS})
        found = seen.extra_passes.state_jacobian("cell")
        stepper = seen.extra_passes.cell_stepper("cell")
        units = found.shape[-1]
        products = stepper.product(2, np.eye(units)[None].repeat(BATCH, 0))
        close(products, found[:, 1], 1e-5)
        assert stepper.whole_steps == list(range(1, STEPS))
    states = model.states(x, dt)["cell"]
    size = 1e-3
    for t in range(1, STEPS):
        elapsed = None if dt is None else dt[:, t, None]
        for unit in range(units):
            nudge = size * mx.eye(units)[unit]
            up, down = (
                model.step(x[:, t], states[t - 1] + sign * nudge, elapsed) for sign in (1, -1)
            )
            difference = to_numpy((up - down) / (2 * size))
            np.testing.assert_allclose(found[:, t - 1, :, unit], difference, rtol=0.02, atol=2e-3)


def step_of(name):
    """A time step of a model by hand: ``(model, t, x, dt, h) -> h``."""

    def sub_steps(m, t, x, dt, h):
        for _ in range(3):
            h = m.cell(x[:, t], h, dt[:, t, None] / 3)
        return h

    return {
        "hand/sub-steps": sub_steps,
        "hand/feedback-dict-outputs": lambda m, t, x, dt, h: m.cell(
            mx.concatenate([x[:, t], m.head(h)], axis=-1), h
        ),
        "hand/between-masked": lambda m, t, x, dt, h: m.cell(x[:, t], h * zoo.real(x[:, t - 1])),
        "hand/joined-decay": lambda m, t, x, dt, h: m.step(x[:, t], h, dt[:, t, None]),
        "hand/joined-none": lambda m, t, x, dt, h: m.step(x[:, t], h, dt[:, t, None]),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "hand/sub-steps",
        "hand/feedback-dict-outputs",
        "hand/between-masked",
        "hand/joined-decay",
        "hand/joined-none",
    ],
)
def test_jacobians_are_those_of_whole_time_steps(name):
    """From one time step to the next, whatever the model does between the calls."""
    case, x, dt, runner, _ = observed(name)
    model, by_hand = built(name)[3], step_of(name)
    with runner.analysing():
        found = observe(runner, 0, {ncp.Need.CELL_STEPS}).extra_passes.state_jacobian("cell")
    states = case.states(model, x, dt)["cell"]
    for t in range(1, STEPS):
        rows = [
            to_numpy(
                mx.vjp(
                    lambda h, t=t: by_hand(model, t, x, dt, h),
                    [states[t - 1]],
                    [mx.broadcast_to(row, (BATCH, UNITS))],
                )[1][0]
            )
            for row in mx.eye(UNITS)
        ]
        close(found[:, t - 1], np.stack(rows, axis=1), 1e-5)


class OneOfTwoAdded(nn.Module):
    """Of its two states the model adds one up itself."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = zoo.PairOfStatesCell(), nn.Linear(UNITS, OUTPUTS)

    def __call__(self, x):
        h, c, outputs = zoo.zeros(x), zoo.zeros(x), []
        for t in range(x.shape[1]):
            h, more = self.cell(x[:, t], h, c)
            c = c + 0.5 * more
            outputs.append(self.head(h))
        return mx.stack(outputs, axis=1)


class TwoStepsBack(nn.Module):
    """Its cell also gets the state of two time steps before."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = zoo.ConditionedCell(), nn.Linear(UNITS, OUTPUTS)

    def __call__(self, x):
        h, before, outputs = zoo.zeros(x), zoo.zeros(x), []
        for t in range(x.shape[1]):
            h, before = self.cell(x[:, t], h, before), h
            outputs.append(self.head(h))
        return mx.stack(outputs, axis=1)


@pytest.mark.parametrize(
    ("build", "cell"),
    [
        (OneOfTwoAdded, "cell"),
        (TwoStepsBack, "cell"),
        (zoo.Interleaved, "fast"),
        (zoo.Interleaved, "slow"),
        (EXAMPLES["hand/between-held"].build, "cell"),
    ],
)
def test_steps_of_a_part_of_the_state_are_not_multiplied(build, cell):
    """Products of Jacobians would miss what goes on by another way."""
    mx.random.seed(1)
    x, _ = zoo.data(EXAMPLES["nn/gru-alone"])
    runner = ModelRunner(build(), ncp.HeldOutBatch(x), target=0)
    with runner.analysing():
        passes = observe(runner, 0, {ncp.Need.CELL_STEPS}).extra_passes
        for ask in (passes.state_jacobian, passes.jacobian_products):
            with pytest.raises(ncp.NotApplicable, match=r"aren't all that goes on.*Let the module"):
                ask(cell)
        assert passes.cell_stepper(cell).jacobian(2).shape == (BATCH,) + 2 * (
            passes.cell_stepper(cell).after(2).shape[-1],
        )


@pytest.mark.parametrize("how", ["residual", "zoneout"])
def test_a_part_of_the_state_is_no_state(how):
    x, dt = zoo.data(EXAMPLES["hand/changed-decay"])
    model = zoo.Residual(how)
    runner = ModelRunner(model, ncp.HeldOutBatch(x, dt))
    assert not runner.hook_points.cells
    assert "returns a part of a state only" in runner.missing[0]
    assert "Put this sum into the module" in runner.missing[0]
    with pytest.raises(ModelError, match="cell returns a part of a state only"):
        ModelRunner(model, ncp.HeldOutBatch(x, dt), cells="cell")


def test_the_zoo_is_complete():
    families = {k: len(list(v)) for k, v in itertools.groupby(EXAMPLES, lambda n: n.split("/")[0])}
    assert families.keys() == {"port", "enhanced", "nn", "hand"}
    assert all(count >= 4 for count in families.values())
