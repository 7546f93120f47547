"""Recurrent models in every shape that people write them in, and what is to be found in each.

Two published ports of liquid networks to MLX set the conventions of the first two families; the
others are mlx.nn's own layers and models as they are written by hand. Each comes with a reference:
its states by an explicit loop over its cell, and its outputs by a plain call.
"""

from __future__ import annotations

import collections
import functools
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

BATCH, STEPS, FEATURES, UNITS, OUTPUTS = 4, 6, 3, 5, 2

States = dict[str, list[mx.array]]
Plain = Callable[[Any, mx.array, "mx.array | None"], mx.array]


@dataclass(frozen=True)
class Example:
    """A model and what is to be found in it.

    Attributes:
        build: Makes it; the same weights for the same seed.
        outputs: Shape of its outputs without the batch.
        plain: Its outputs by a plain call.
        states: Its states by hand, ``{cell: T arrays (B, H)}``; the keys are the cells' names.
        time: Keyword for the intervals, None where it takes none.
        layers: Backbone layers and their activations, in order.
        uses_time: Whether its outputs depend on the intervals.
        reverse: Cells that run backwards.
        notes: A word that each of the expected notes has.
        forward: How it is called where that can't be found out.
        horizon: Whether its outputs are a forecast, where that can't be found out.
        delta_shape: Shape of intervals per sequence.
        dtype: Of its inputs.
        start: What its states are before the first step; None where they differ.
        tolerance: Of comparisons, in units of the largest value.
    """

    build: Callable[[], nn.Module]
    outputs: tuple[int, ...]
    plain: Plain
    states: Callable[[Any, mx.array, mx.array | None], States]
    time: str | None = None
    layers: dict[str, str] = field(default_factory=dict)
    uses_time: bool = True
    reverse: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    forward: Plain | None = None
    horizon: bool | None = None
    delta_shape: tuple[int, ...] = (STEPS,)
    dtype: mx.Dtype = mx.float32
    start: float | None = 0.0
    tolerance: float = 1e-6


EXAMPLES: dict[str, Example] = {}


def example(name: str, build: Callable[[], nn.Module], **expected: Any) -> None:
    EXAMPLES[name] = Example(build, **expected)


def data(case: Example, seed: int = 0, batch: int = BATCH) -> tuple[mx.array, mx.array | None]:
    keys = mx.random.split(mx.random.key(seed))
    x = mx.random.normal((batch, STEPS, FEATURES), key=keys[0]).astype(case.dtype)
    dt = mx.random.uniform(0.1, 2.0, (batch, *case.delta_shape), key=keys[1])
    return x, None if case.time is None else dt


def made(case: Example, seed: int = 1) -> nn.Module:
    mx.random.seed(seed)
    return case.build()


def unrolled(
    step: Callable[[int, Any], tuple[Any, mx.array]], start: Any, steps: Sequence[int] | None = None
) -> list[mx.array]:
    """States in order of time: ``step(t, carried) -> (carried, shown)``."""
    shown = {}
    for t in range(STEPS) if steps is None else steps:
        start, shown[t] = step(t, start)
    return [shown[t] for t in sorted(shown)]


def zeros(x: mx.array, units: int = UNITS) -> mx.array:
    return mx.zeros((len(x), units))


# ---- the first port: `timespans`, (outputs, state), rnn_cell(x, h, ts) -> (output, state)


class LeCunTanh(nn.Module):
    def __init__(self):
        super().__init__()
        self._tanh = nn.Tanh()

    def __call__(self, x):
        return 1.7159 * self._tanh(0.666 * x)


class PortCfCCell(nn.Module):
    """ff1 and ff2 are never called: their weights are read."""

    def __init__(self, features, units, mode="default", width=7, depth=1, dropout=0.0):
        super().__init__()
        self.mode = mode
        size, layers = features + units, []
        for _ in range(depth):
            layers += [nn.Linear(size, width), LeCunTanh()]
            layers += [nn.Dropout(dropout)] if dropout else []
            size = width
        self.backbone = nn.Sequential(*layers) if layers else None
        self.ff1 = nn.Linear(size, units)
        if mode == "pure":
            self.w_tau, self.A = mx.zeros((1, units)), mx.ones((1, units))
        else:
            self.ff2, self.time_a, self.time_b = (nn.Linear(size, units) for _ in range(3))
        self._sigmoid = nn.Sigmoid()

    @staticmethod
    def _apply(layer, x):
        return x @ layer.weight.T + layer.bias

    def __call__(self, inputs, hx, ts):
        x = mx.concatenate([inputs, hx], axis=1)
        if self.backbone is not None:
            x = self.backbone(x)
        ts = mx.reshape(ts if isinstance(ts, mx.array) else mx.array(ts), (-1, 1))
        ff1 = self._apply(self.ff1, x)
        if self.mode == "pure":
            new = -self.A * mx.exp(-ts * (mx.abs(self.w_tau) + mx.abs(ff1))) * ff1 + self.A
        else:
            gate = self._sigmoid(-self.time_a(x) * ts + self.time_b(x))
            ff1 = ff1 * (1.0 - gate) if self.mode == "default" else ff1
            new = ff1 + gate * self._apply(self.ff2, x)
        return new, new


class PortWiredCell(nn.Module):
    """Layers under two names each; the state of all is wider than the motor layer's output."""

    def __init__(self, features, sizes):
        super().__init__()
        self.sizes, self._layers = list(sizes), []
        for i, size in enumerate(sizes):
            layer = PortCfCCell(features, size, depth=0)
            self._layers.append(layer)
            setattr(self, f"layer_{i}", layer)
            features = size

    def __call__(self, inputs, hx, ts):
        states, start = [], 0
        for layer, size in zip(self._layers, self.sizes, strict=True):
            inputs, new = layer(inputs, hx[:, start : start + size], ts)
            states.append(new)
            start += size
        return inputs, mx.concatenate(states, axis=1)


class PortLTCCell(nn.Module):
    """No children; the output is a map of some of the state."""

    def __init__(self, features, units, motors=OUTPUTS, unfolds=3):
        super().__init__()
        self.motors, self.unfolds = motors, unfolds
        self.w = mx.random.uniform(0.1, 1.0, (units, units))
        self.sensory = mx.random.uniform(0.1, 1.0, (features, units))
        self.leak = mx.random.uniform(0.1, 1.0, (units,))
        self.output_w, self.output_b = mx.full((motors,), 1.5), mx.full((motors,), 0.1)

    def __call__(self, inputs, state, elapsed_time=1.0):
        dt = mx.reshape(elapsed_time, (-1, 1)) / self.unfolds
        drive = mx.tanh(inputs @ self.sensory)
        for _ in range(self.unfolds):
            gate = mx.sigmoid(state) @ self.w
            state = (state / dt + drive + gate * 0.3) / (1.0 / dt + self.leak + gate)
        return state[:, : self.motors] * self.output_w + self.output_b, state


class PortRNN(nn.Module):
    def __init__(self, cell, units=UNITS, proj=None, batch_first=True, sequences=True):
        super().__init__()
        self.rnn_cell, self.units, self.batch_first, self.sequences = (
            cell,
            units,
            batch_first,
            sequences,
        )
        self._fc = None if proj is None else nn.Linear(proj[0], proj[1])

    def __call__(self, inputs, hx=None, timespans=None):
        axis = 1 if self.batch_first else 0
        h = mx.zeros((inputs.shape[1 - axis], self.units)) if hx is None else hx
        outputs = []
        for t in range(inputs.shape[axis]):
            x_t = inputs[:, t] if self.batch_first else inputs[t]
            ts = 1.0
            if timespans is not None:
                ts = timespans[:, t] if self.batch_first else timespans[t]
            out, h = self.rnn_cell(x_t, h, ts)
            outputs.append(out if self._fc is None else self._fc(out))
        return (mx.stack(outputs, axis=axis) if self.sequences else outputs[-1]), h


def port_states(cell="rnn_cell", units=UNITS, find=lambda model: model.rnn_cell):
    def states(model, x, dt):
        def step(t, h):
            _, h = find(model)(x[:, t], h, 1.0 if dt is None else dt[:, t])
            return h, h

        return {cell: unrolled(step, zeros(x, units))}

    return states


def port_plain(model, x, dt):
    return model(x, timespans=dt)[0]


BACKBONE = "rnn_cell.backbone.layers.{}"
for _mode in ("default", "pure", "no_gate"):
    example(
        f"port/cfc-{_mode}",
        functools.partial(lambda m: PortRNN(PortCfCCell(FEATURES, UNITS, m)), _mode),
        outputs=(STEPS, UNITS),
        plain=port_plain,
        states=port_states(),
        time="timespans",
        layers={BACKBONE.format(0): "lecun_tanh"},
    )
example(
    "port/cfc-deep-dropout-proj",
    lambda: PortRNN(PortCfCCell(FEATURES, UNITS, depth=2, dropout=0.3), proj=(UNITS, OUTPUTS)),
    outputs=(STEPS, OUTPUTS),
    plain=port_plain,
    states=port_states(),
    time="timespans",
    delta_shape=(STEPS, 1),
    layers={BACKBONE.format(0): "lecun_tanh", BACKBONE.format(3): "lecun_tanh"},
)
example(
    "port/cfc-last-only-no-backbone",
    lambda: PortRNN(PortCfCCell(FEATURES, UNITS, depth=0), sequences=False),
    outputs=(UNITS,),
    plain=port_plain,
    states=port_states(),
    time="timespans",
    notes=("backbone",),
)
example(
    "port/wired-cfc",
    lambda: PortRNN(PortWiredCell(FEATURES, (4, 3, 2)), units=9),
    outputs=(STEPS, 2),
    plain=port_plain,
    states=port_states(units=9),
    time="timespans",
    notes=("backbone",),
)
example(
    "port/ltc",
    lambda: PortRNN(PortLTCCell(FEATURES, UNITS)),
    outputs=(STEPS, OUTPUTS),
    plain=port_plain,
    states=port_states(),
    time="timespans",
    notes=("backbone",),
)
example(
    "port/cfc-time-first",
    lambda: PortRNN(PortCfCCell(FEATURES, UNITS), batch_first=False),
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x.swapaxes(0, 1), timespans=dt.swapaxes(0, 1))[0].swapaxes(0, 1),
    forward=lambda m, x, dt: m(x.swapaxes(0, 1), timespans=dt.swapaxes(0, 1))[0].swapaxes(0, 1),
    states=port_states(),
    time="forward",
    layers={BACKBONE.format(0): "lecun_tanh"},
)


class Profiled(nn.Module):
    """A readout around a whole model."""

    def __init__(self):
        super().__init__()
        self.model = PortRNN(PortCfCCell(FEATURES, UNITS))
        self.readout = nn.Linear(UNITS, 1)

    def __call__(self, x, timespans=None):
        return self.readout(self.model(x, timespans=timespans)[0])


example(
    "port/cfc-profiled",
    Profiled,
    outputs=(STEPS, 1),
    plain=lambda m, x, dt: m(x, timespans=dt),
    states=port_states("model.rnn_cell", find=lambda model: model.model.rnn_cell),
    time="timespans",
    layers={"model.rnn_cell.backbone.layers.0": "lecun_tanh"},
)


class KeywordTimeCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(FEATURES + UNITS, UNITS)

    def __call__(self, x, h, *, time=1.0):
        rate = mx.reshape(time, (-1, 1))
        return h + (mx.tanh(self.inner(mx.concatenate([x, h], axis=-1))) - h) * mx.tanh(rate)


class PortELTC(nn.Module):
    """Returns an array, or a tuple when asked for."""

    def __init__(self):
        super().__init__()
        self.cell = KeywordTimeCell()

    def __call__(self, inputs, initial_state=None, timespans=None, return_state=False):
        h = zeros(inputs) if initial_state is None else initial_state
        outputs = []
        for t in range(inputs.shape[1]):
            h = self.cell(inputs[:, t], h, time=1.0 if timespans is None else timespans[:, t])
            outputs.append(h)
        stacked = mx.stack(outputs, axis=1)
        return (stacked, h) if return_state else stacked


def eltc_states(model, x, dt):
    def step(t, h):
        h = model.cell(x[:, t], h, time=dt[:, t])
        return h, h

    return {"cell": unrolled(step, zeros(x))}


example(
    "port/eltc",
    PortELTC,
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x, timespans=dt),
    states=eltc_states,
    time="timespans",
    notes=("backbone",),
)


class ListingCell(nn.Module):
    """``(x, h) -> (output, [h])``, started with a bare state and then handed its own list."""

    def __init__(self):
        super().__init__()
        self.wx, self.wh = nn.Linear(FEATURES, UNITS), nn.Linear(UNITS, UNITS)

    def __call__(self, x, state, time=1.0):
        h = state[0] if isinstance(state, list) else state
        h = h + (mx.tanh(self.wx(x) + self.wh(h)) - h) * mx.tanh(mx.reshape(time, (-1, 1)))
        return mx.tanh(h), [h]


class Merged(nn.Module):
    """Runs in both directions, from states that aren't zero, and adds what both give."""

    def __init__(self, start=0.5):
        super().__init__()
        self.cell, self.backward_cell, self.start = ListingCell(), ListingCell(), start

    def one_way(self, cell, x, dt, steps):
        state, outputs = mx.full((len(x), UNITS), self.start), {}
        for t in steps:
            outputs[t], state = cell(x[:, t], state, time=dt[:, t])
        return mx.stack([outputs[t] for t in sorted(outputs)], axis=1)

    def __call__(self, x, initial_states=None, time_delta=None):
        steps = range(x.shape[1])
        there = self.one_way(self.cell, x, time_delta, steps)
        return there + self.one_way(self.backward_cell, x, time_delta, steps[::-1])


def merged_states(model, x, dt):
    def way(cell, steps):
        def step(t, h):
            _, (h,) = cell(x[:, t], [h], time=dt[:, t])
            return h, h

        return unrolled(step, mx.full((len(x), UNITS), 0.5), steps)

    there, back = range(STEPS), range(STEPS - 1, -1, -1)
    return {"cell": way(model.cell, there), "backward_cell": way(model.backward_cell, back)}


example(
    "port/states-in-lists-both-ways",
    Merged,
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x, time_delta=dt),
    states=merged_states,
    time="time_delta",
    reverse=frozenset({"backward_cell"}),
    start=0.5,
    notes=("backbone",),
)


class PlainCell(nn.Module):
    """``(x, h) -> h``."""

    def __init__(self, features=FEATURES, units=UNITS):
        super().__init__()
        self.wx, self.wh = nn.Linear(features, units), nn.Linear(units, units)

    def __call__(self, x, h):
        return mx.tanh(self.wx(x) + self.wh(h))


class WideCell(nn.Module):
    """A state of several traces per unit, of which the output is the sum."""

    def __init__(self, traces=3):
        super().__init__()
        self.lin = nn.Linear(FEATURES + UNITS, UNITS * traces)
        self.traces = traces

    def __call__(self, x, state):
        h = state.reshape(len(x), UNITS, self.traces).sum(axis=-1)
        new = 0.7 * state + 0.3 * mx.tanh(self.lin(mx.concatenate([x, h], axis=-1)))
        return new.reshape(len(x), UNITS, self.traces).sum(axis=-1), new


class Timeless(nn.Module):
    """Takes intervals and does nothing with them; or takes none."""

    def __init__(self, cell, units=UNITS, tupled=False):
        super().__init__()
        self.cell, self.units, self.tupled = cell, units, tupled

    def __call__(self, x, state=None, timespans=None):
        h, outputs = (zeros(x, self.units) if state is None else state), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out, h = h if isinstance(h, tuple) else (h, h)
            outputs.append(out)
        stacked = mx.stack(outputs, axis=1)
        return (stacked, h) if self.tupled else stacked


class NodeLike(Timeless):
    def __call__(self, x, state=None):
        return super().__call__(x, state)


def cell_states(name="cell", find=lambda model: model.cell, units=UNITS, reverse=False):
    """Of a cell ``(x, h) -> h`` or ``-> (output, h)``."""

    def states(model, x, dt):
        def step(t, h):
            h = find(model)(x[:, t], h)
            h = h[1] if isinstance(h, tuple) else h
            return h, h

        order = range(STEPS - 1, -1, -1) if reverse else None
        return {name: unrolled(step, zeros(x, units), order)}

    return states


example(
    "port/ltc4-ignores-time",
    lambda: Timeless(PlainCell()),
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x, timespans=dt),
    states=cell_states(),
    time="timespans",
    uses_time=False,
    notes=("backbone",),
)
example(
    "port/ctgru-wide-state",
    lambda: Timeless(WideCell(), units=3 * UNITS, tupled=True),
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x, timespans=dt)[0],
    states=cell_states(units=3 * UNITS),
    time="timespans",
    uses_time=False,
    notes=("backbone",),
)
example(
    "port/node-without-keyword",
    lambda: NodeLike(PlainCell()),
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x),
    states=cell_states(),
    notes=("backbone",),
)


# ---- the second port: `time_delta`, arrays, cells in a list, weights made in the first call


class LateCell(nn.Module):
    """Makes its weights, and with ``late_layers`` its layers, when it is first called."""

    def __init__(self, units, depth=1, width=6, activation=nn.gelu, late_layers=False):
        super().__init__()
        self.units, self.depth, self.width, self.act = units, depth, width, activation
        self.built, self.late_layers, self.calls = False, late_layers, 0
        if not late_layers:
            self._make_backbone(FEATURES + units)

    def _make_backbone(self, size):
        layers = []
        for _ in range(self.depth):
            layers += [nn.Linear(size, self.width), self.act, nn.Dropout(0.2)]
            size = self.width
        self.backbone = nn.Sequential(*layers)

    def build(self, size):
        if self.late_layers:
            self._make_backbone(size + self.units)
        shape = (self.width, self.units)
        self.ff1_kernel, self.ff2_kernel = (mx.random.normal(shape) * 0.4 for _ in range(2))
        self.time_a, self.time_b = (mx.random.normal(shape) * 0.4 for _ in range(2))
        self.built = True

    def __call__(self, inputs, state, time=1.0):
        if not self.built:
            self.build(inputs.shape[-1])
        self.calls += 1
        t = mx.reshape(time, (-1, 1))
        x = self.backbone(mx.concatenate([inputs, state], axis=-1))
        gate = mx.sigmoid(-(x @ self.time_a) * t + x @ self.time_b)
        new = mx.tanh(x @ self.ff1_kernel) * (1 - gate) + gate * mx.tanh(x @ self.ff2_kernel)
        return new, [new]


class LateCfC(nn.Module):
    def __init__(self, sizes, **options):
        super().__init__()
        self.cell = LateCell(sizes[0], **options)  # dead: never called
        self.forward_layers = [LateCell(size, **options) for size in sizes]

    def __call__(self, inputs, initial_states=None, time_delta=None, return_state=False):
        finals = []
        for layer in self.forward_layers:
            state, outputs = mx.zeros((inputs.shape[0], layer.units)), []
            for t in range(inputs.shape[1]):
                dt = 1.0 if time_delta is None else time_delta[:, t]
                out, [state] = layer(inputs[:, t], state, time=dt)
                outputs.append(out)
            inputs = mx.stack(outputs, axis=1)
            finals.append(state)
        return (inputs, finals) if return_state else inputs


def late_states(model, x, dt):
    found = {}
    for i, layer in enumerate(model.forward_layers):

        def step(t, h, layer=layer, x=x):
            h, _ = layer(x[:, t], h, time=dt[:, t])
            return h, h

        states = unrolled(step, zeros(x, layer.units))
        found[f"forward_layers.{i}"] = states
        x = mx.stack(states, axis=1)
    return found


for _name, _options in {
    "late-cfc": {},
    "late-cfc-deep": {"depth": 2, "activation": mx.tanh},
    "late-cfc-layers-too": {"late_layers": True, "activation": nn.silu},
}.items():
    example(
        f"enhanced/{_name}",
        functools.partial(lambda o: LateCfC((UNITS,), **o), _options),
        outputs=(STEPS, UNITS),
        plain=lambda m, x, dt: m(x, time_delta=dt),
        states=late_states,
        time="time_delta",
        layers={
            f"forward_layers.0.backbone.layers.{3 * i}": {
                nn.gelu: "gelu", mx.tanh: "tanh", nn.silu: "silu"
            }[_options.get("activation", nn.gelu)]
            for i in range(_options.get("depth", 1))
        },
    )  # fmt: skip
example(
    "enhanced/late-cfc-stacked",
    lambda: LateCfC((UNITS, FEATURES + 1, 3), late_layers=True),
    outputs=(STEPS, 3),
    plain=lambda m, x, dt: m(x, time_delta=dt),
    states=late_states,
    time="time_delta",
    layers={f"forward_layers.{i}.backbone.layers.0": "gelu" for i in range(3)},
)


# ---- mlx.nn


class Stack(nn.Module):
    """Whole-sequence layers, then a head on all steps or the last one."""

    def __init__(self, *layers, units=UNITS, last=False):
        super().__init__()
        self.layers, self.head, self.last = list(layers), nn.Linear(units, OUTPUTS), last

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(x[:, -1] if self.last else x)


def sequence_states(layer, x):
    """A layer of mlx.nn over a whole sequence, one step at a time."""
    carried, shown = [], []
    for t in range(x.shape[1]):
        out = layer(x[:, t : t + 1], *carried)
        parts = out if isinstance(out, tuple) else (out,)
        carried = [part[:, -1] for part in parts]
        shown.append(mx.concatenate(carried, axis=-1))
    return shown


def stack_states(model, x, dt):
    found = {}
    for i, layer in enumerate(model.layers):
        found[f"layers.{i}"] = states = sequence_states(layer, x)
        x = mx.stack(states, axis=1)[..., :UNITS]
    return found


example(
    "nn/gru-alone",
    lambda: nn.GRU(FEATURES, UNITS),
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x),
    states=lambda m, x, dt: {"GRU": sequence_states(m, x)},
    notes=("backbone",),
)
example(
    "nn/lstm-alone",
    lambda: nn.LSTM(FEATURES, UNITS),
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x)[0],
    states=lambda m, x, dt: {"LSTM": sequence_states(m, x)},
    notes=("backbone",),
)
for _layer in (nn.RNN, nn.GRU, nn.LSTM):
    example(
        f"nn/{_layer.__name__.lower()}-stacked",
        functools.partial(lambda c: Stack(c(FEATURES, UNITS), c(UNITS, UNITS)), _layer),
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x),
        states=stack_states,
        notes=("backbone",),
    )
example(
    "nn/gru-to-one",
    lambda: Stack(nn.GRU(FEATURES, UNITS), last=True),
    outputs=(OUTPUTS,),
    plain=lambda m, x, dt: m(x),
    states=stack_states,
    notes=("backbone",),
)


class Bidirectional(nn.Module):
    """Two layers of two directions, by reversed sequences."""

    def __init__(self):
        super().__init__()
        self.forwards = [nn.GRU(FEATURES, UNITS), nn.GRU(2 * UNITS, UNITS)]
        self.backwards = [nn.GRU(FEATURES, UNITS), nn.GRU(2 * UNITS, UNITS)]
        self.head = nn.Linear(2 * UNITS, OUTPUTS)

    def __call__(self, x):
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            x = mx.concatenate([ahead(x), back(x[:, ::-1])[:, ::-1]], axis=-1)
        return self.head(x)


def bidirectional_states(model, x, dt):
    found = {}
    for i, (ahead, back) in enumerate(zip(model.forwards, model.backwards, strict=True)):
        found[f"forwards.{i}"] = sequence_states(ahead, x)
        found[f"backwards.{i}"] = sequence_states(back, x[:, ::-1])[::-1]
        pair = (found[f"forwards.{i}"], found[f"backwards.{i}"])
        x = mx.concatenate([mx.stack(s, axis=1) for s in pair], axis=-1)
    return found


example(
    "nn/gru-bidirectional",
    Bidirectional,
    outputs=(STEPS, OUTPUTS),
    plain=lambda m, x, dt: m(x),
    states=bidirectional_states,
    reverse=frozenset({"backwards.0", "backwards.1"}),
    notes=("backbone",),
)


class SharedSequence(nn.Module):
    """One layer run over the whole sequence twice."""

    def __init__(self):
        super().__init__()
        self.enter, self.gru = nn.Linear(FEATURES, UNITS), nn.GRU(UNITS, UNITS)

    def __call__(self, x):
        return self.gru(self.gru(self.enter(x))[:, ::-1])[:, ::-1]


def shared_sequence_states(model, x, dt):
    first = sequence_states(model.gru, model.enter(x))
    second = sequence_states(model.gru, mx.stack(first, axis=1)[:, ::-1])[::-1]
    return {"gru#1": first, "gru#2": second}


example(
    "nn/gru-shared-by-two-layers",
    SharedSequence,
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x),
    states=shared_sequence_states,
    reverse=frozenset({"gru#2"}),
    notes=("backbone",),
)


class Stepped(nn.Module):
    """A whole-sequence layer called one step at a time."""

    def __init__(self, layer):
        super().__init__()
        self.inner, self.head = layer, nn.Linear(UNITS, OUTPUTS)

    def __call__(self, x):
        carried, outputs = [], []
        for t in range(x.shape[1]):
            out = self.inner(x[:, t : t + 1], *carried)
            out = out if isinstance(out, tuple) else (out,)
            carried = [part[:, -1] for part in out]
            outputs.append(self.head(carried[0]))
        return mx.stack(outputs, axis=1)


for _layer in (nn.GRU, nn.LSTM):
    example(
        f"nn/{_layer.__name__.lower()}-stepped",
        functools.partial(lambda c: Stepped(c(FEATURES, UNITS)), _layer),
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x),
        states=lambda m, x, dt: {"inner": sequence_states(m.inner, x)},
        notes=("backbone",),
    )


# ---- by hand: where the cell is kept


class TimedCell(nn.Module):
    """``(x, h, dt) -> h``, with a hidden layer."""

    def __init__(self, features=FEATURES, units=UNITS, width=6):
        super().__init__()
        self.mix, self.out = nn.Linear(features + units, width), nn.Linear(width, units)
        self.rate = nn.Linear(width, units)

    def __call__(self, x, h, dt):
        z = nn.relu(self.mix(mx.concatenate([x, h], axis=-1)))
        keep = mx.exp(-nn.softplus(self.rate(z)) * dt)
        return keep * h + (1 - keep) * mx.tanh(self.out(z))


class Loop(nn.Module):
    """``self.the_cell()`` finds the cell; everything else is ordinary."""

    def __init__(self, features=FEATURES, units=UNITS):
        super().__init__()
        self.head = nn.Linear(units, OUTPUTS)
        self.put_cell(TimedCell(features, units))

    def __call__(self, x, dt):
        h, outputs = zeros(x), []
        for t in range(x.shape[1]):
            h = self.the_cell()(x[:, t], h, dt[:, t, None])
            outputs.append(self.head(h))
        return mx.stack(outputs, axis=1)


def timed_states(name, find, order=None):
    def states(model, x, dt):
        def step(t, h):
            h = find(model)(x[:, t], h, dt[:, t, None])
            return h, h

        return {name: unrolled(step, zeros(x), order)}

    return states


def keeper(put, get):
    return type("Keeper", (Loop,), {"put_cell": put, "the_cell": get})


PLACES = {
    "another-name": ("thinker", lambda s, c: setattr(s, "thinker", c), lambda s: s.thinker),
    "underscore": ("_cell", lambda s, c: setattr(s, "_cell", c), lambda s: s._cell),
    "list": ("parts.1", lambda s, c: setattr(s, "parts", [nn.ReLU(), c]), lambda s: s.parts[1]),
    "dict": ("parts.it", lambda s, c: setattr(s, "parts", {"it": c}), lambda s: s.parts["it"]),
    "tuple": ("parts.0", lambda s, c: setattr(s, "parts", (c, 3)), lambda s: s.parts[0]),
    "dict-in-list": (
        "parts.0.deep.it",
        lambda s, c: setattr(s, "parts", [{"deep": {"it": c}}]),
        lambda s: s.parts[0]["deep"]["it"],
    ),
    "unregistered": (
        "cell",
        lambda s, c: object.__setattr__(s, "cell", c),
        lambda s: vars(s)["cell"],
    ),
}
for _place, (_path, _put, _get) in PLACES.items():
    example(
        f"hand/in-{_place}",
        keeper(_put, _get),
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x, dt),
        states=timed_states(_path, _get),
        time="dt",
        layers={f"{_path}.mix": "relu"},
    )


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.cell = nn.LayerNorm(FEATURES), TimedCell()

    def __call__(self, x, h, dt):
        return self.cell(self.norm(x), h, dt)


example(
    "hand/in-wrapper",
    keeper(lambda s, c: setattr(s, "wrapped", Wrapper()), lambda s: s.wrapped),
    outputs=(STEPS, OUTPUTS),
    plain=lambda m, x, dt: m(x, dt),
    states=timed_states("wrapped", lambda m: m.wrapped),
    time="dt",
    layers={"wrapped.cell.mix": "relu"},
)


class WithCycle(Loop):
    """Its cell knows it."""

    def put_cell(self, cell):
        self.cell = cell
        cell.owner = self

    def the_cell(self):
        return self.cell


example(
    "hand/cycle",
    WithCycle,
    outputs=(STEPS, OUTPUTS),
    plain=lambda m, x, dt: m(x, dt),
    states=timed_states("cell", lambda m: m.cell),
    time="dt",
    layers={"cell.mix": "relu"},
)


class Registered(type):
    made: ClassVar[list[str]] = []

    def __new__(mcs, name, bases, body, **options):
        mcs.made.append(name)
        return super().__new__(mcs, name, bases, body, **options)


class AwkwardCell(TimedCell, metaclass=Registered):
    """A metaclass, subclasses that must be declared, slots, attributes that can't be set."""

    __slots__ = ("steps_done",)
    subclasses: ClassVar[list[str]] = []

    def __init_subclass__(cls, *, declared, **options):
        AwkwardCell.subclasses.append(declared)
        super().__init_subclass__(**options)

    def __init__(self):
        super().__init__()
        self.steps_done = 0

    def __setattr__(self, name, value):
        if name.startswith("_ncp") or name == "__class__":
            raise AttributeError(f"{name} can't be set")
        if name == "steps_done":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __call__(self, x, h, dt):
        self.steps_done = self.steps_done + 1
        return super().__call__(x, h, dt)


class DeclaredCell(AwkwardCell, declared="yes"):
    pass


example(
    "hand/awkward-class",
    keeper(lambda s, c: setattr(s, "cell", DeclaredCell()), lambda s: s.cell),
    outputs=(STEPS, OUTPUTS),
    plain=lambda m, x, dt: m(x, dt),
    states=timed_states("cell", lambda m: m.cell),
    time="dt",
    layers={"cell.mix": "relu"},
)


# ---- by hand: how the state is carried

Memory = namedtuple("Memory", ["h", "c"])


@dataclass(frozen=True)
class Record:
    h: mx.array
    c: mx.array


class PairCell(nn.Module):
    """An LSTM whose state comes packed by ``pack`` and is read by ``unpack``."""

    def __init__(self, pack, unpack):
        super().__init__()
        self.gates = nn.Linear(FEATURES + UNITS, 4 * UNITS)
        object.__setattr__(self, "_packing", (pack, unpack))

    def __call__(self, x, state=None):
        pack, unpack = self._packing
        h, c = (zeros(x), zeros(x)) if state is None else unpack(state)
        i, f, g, o = mx.split(self.gates(mx.concatenate([x, h], axis=-1)), 4, axis=-1)
        c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
        h = mx.sigmoid(o) * mx.tanh(c)
        return h, pack(h, c)


PACKINGS = {
    "tuple": (lambda h, c: (h, c), lambda s: s),
    "dict": (lambda h, c: {"h": h, "c": c}, lambda s: (s["h"], s["c"])),
    "namedtuple": (lambda h, c: Memory(h, c), lambda s: s),
    "dataclass": (lambda h, c: Record(h, c), lambda s: (s.h, s.c)),
}


class PairLoop(nn.Module):
    def __init__(self, packing, keyword=False, start=True):
        super().__init__()
        self.cell, self.head = PairCell(*PACKINGS[packing]), nn.Linear(UNITS, OUTPUTS)
        self.packing, self.keyword, self.start = packing, keyword, start

    def __call__(self, x):
        pack, outputs = PACKINGS[self.packing][0], []
        state = pack(zeros(x), zeros(x)) if self.start else None
        for t in range(x.shape[1]):
            out, state = (
                self.cell(x[:, t], state=state) if self.keyword else self.cell(x[:, t], state)
            )
            outputs.append(self.head(out))
        return mx.stack(outputs, axis=1)


def pair_states(model, x, dt):
    def step(t, state):
        _, state = model.cell(x[:, t], state)
        return state, mx.concatenate(PACKINGS[model.packing][1](state), axis=-1)

    return {"cell": unrolled(step, None)}


for _name, _options in {
    "tuple": {"packing": "tuple"},
    "dict-by-keyword": {"packing": "dict", "keyword": True},
    "namedtuple": {"packing": "namedtuple"},
    "dataclass": {"packing": "dataclass"},
    "none-at-first": {"packing": "tuple", "start": False},
}.items():
    example(
        f"hand/state-{_name}",
        functools.partial(lambda o: PairLoop(**o), _options),
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x),
        states=pair_states,
        notes=("backbone",),
    )


class Between(nn.Module):
    """Does something to the state between the calls."""

    def __init__(self, change, units=UNITS, cell=None):
        super().__init__()
        self.cell, self.head = cell or PlainCell(), nn.Linear(units, OUTPUTS)
        object.__setattr__(self, "_change", change)

    def __call__(self, x):
        h, outputs = zeros(x), []
        for t in range(x.shape[1]):
            new = self.cell(x[:, t], h)
            outputs.append(self.head(new))
            h = self._change(x[:, t], new, h)
        return mx.stack(outputs, axis=1)


def between_states(model, x, dt):
    def step(t, h):
        new = model.cell(x[:, t], h)
        return model._change(x[:, t], new, h), new

    return {"cell": unrolled(step, zeros(x))}


def real(x):
    """A mask that the model finds in its inputs, ``(B, 1)``."""
    return (x[:, :1] > -0.5).astype(x.dtype)


CHANGES = {
    "sliced": (lambda x, new, old: new[:, :], ()),
    "detached": (lambda x, new, old: mx.stop_gradient(new), ()),
    "rounded": (lambda x, new, old: new.astype(mx.bfloat16), ()),
    "masked": (lambda x, new, old: new * real(x), ("overwrites",)),
    "held": (lambda x, new, old: mx.where(real(x) > 0, new, old), ("overwrites",)),
}
for _name, (_change, _notes) in CHANGES.items():
    example(
        f"hand/between-{_name}",
        functools.partial(Between, _change),
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x),
        states=between_states,
        notes=(*_notes, "backbone"),
    )


# ---- by hand: how often and in which order it is called


class Interleaved(nn.Module):
    """Two cells that take turns, each given what the other holds."""

    def __init__(self):
        super().__init__()
        self.fast, self.slow = PlainCell(FEATURES + 4, UNITS), PlainCell(UNITS, 4)
        self.head = nn.Linear(UNITS, OUTPUTS)

    def __call__(self, x):
        a, b = zeros(x), zeros(x, 4)
        for t in range(x.shape[1]):
            a = self.fast(mx.concatenate([x[:, t], b], axis=-1), a)
            b = self.slow(a, b)
        return self.head(a)


def interleaved_states(model, x, dt):
    a, b, found = zeros(x), zeros(x, 4), {"fast": [], "slow": []}
    for t in range(STEPS):
        a = model.fast(mx.concatenate([x[:, t], b], axis=-1), a)
        b = model.slow(a, b)
        found["fast"].append(a)
        found["slow"].append(b)
    return found


example(
    "hand/interleaved",
    Interleaved,
    outputs=(OUTPUTS,),
    plain=lambda m, x, dt: m(x),
    states=interleaved_states,
    notes=("backbone",),
)


class Shared(nn.Module):
    """One cell for two layers: one after the other, in turns, or the second one backwards."""

    def __init__(self, how):
        super().__init__()
        self.enter, self.cell, self.how = nn.Linear(FEATURES, UNITS), TimedCell(UNITS), how

    def __call__(self, x, dt):
        return mx.stack(self.both(x, dt)[1], axis=1)

    def both(self, x, dt):
        x = self.enter(x)
        a, b, first, second = zeros(x), zeros(x), [], []
        steps = list(range(x.shape[1]))
        if self.how == "in-turns":
            for t in steps:
                a = self.cell(x[:, t], a[:, :], dt[:, t, None])
                b = self.cell(a, b[:, :], dt[:, t, None])
                first.append(a)
                second.append(b)
            return first, second
        for t in steps:
            a = self.cell(x[:, t], a, dt[:, t, None])
            first.append(a)
        if self.how == "carrying-on":
            b = a
        order = steps[::-1] if self.how == "backwards" else steps
        for t in order:
            b = self.cell(first[t], b, dt[:, t, None])
            second.append(b)
        return first, second[::-1] if self.how == "backwards" else second


def shared_states(model, x, dt):
    first, second = model.both(x, dt)
    return {"cell#1": first, "cell#2": second}


for _how in ("one-after-other", "in-turns", "carrying-on", "backwards"):
    example(
        f"hand/shared-{_how}",
        functools.partial(Shared, _how),
        outputs=(STEPS, UNITS),
        plain=lambda m, x, dt: m(x, dt),
        states=shared_states,
        time="dt",
        reverse=frozenset({"cell#2"} if _how == "backwards" else ()),
        layers={"cell.mix#1": "relu", "cell.mix#2": "relu"},
    )


class BothWays(nn.Module):
    """A cell for each direction, fed by an encoder, and another layer of the same."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(FEATURES, 4)
        self.pairs = [
            {"ahead": TimedCell(4), "back": TimedCell(4)},
            {"ahead": TimedCell(2 * UNITS), "back": TimedCell(2 * UNITS)},
        ]

    def __call__(self, x, dt):
        return mx.concatenate([mx.stack(s, axis=1) for s in self.all(x, dt)[-2:]], axis=-1)

    def all(self, x, dt):
        x, found = nn.silu(self.enter(x)), []
        steps = list(range(x.shape[1]))
        for pair in self.pairs:
            for name, order in (("ahead", steps), ("back", steps[::-1])):
                h, states = zeros(x), {}
                for t in order:
                    states[t] = h = pair[name](x[:, t], h, dt[:, t, None])
                found.append([states[t] for t in steps])
            x = mx.concatenate([mx.stack(s, axis=1) for s in found[-2:]], axis=-1)
        return found


_WAYS = [f"pairs.{i}.{way}" for i in range(2) for way in ("ahead", "back")]
example(
    "hand/both-ways",
    BothWays,
    outputs=(STEPS, 2 * UNITS),
    plain=lambda m, x, dt: m(x, dt),
    states=lambda m, x, dt: dict(zip(_WAYS, m.all(x, dt), strict=True)),
    time="dt",
    reverse=frozenset(_WAYS[1::2]),
    layers={f"{way}.mix": "relu" for way in _WAYS},
)


class SubSteps(nn.Module):
    """Solves each step in three calls of its cell."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = TimedCell(), nn.Linear(UNITS, OUTPUTS)

    def __call__(self, x, delta_t):
        h = zeros(x)
        for t in range(x.shape[1]):
            for _ in range(3):
                h = self.cell(x[:, t], h, delta_t[:, t, None] / 3)
        return self.head(h)


def sub_step_states(model, x, dt):
    def step(t, h):
        for _ in range(3):
            h = model.cell(x[:, t], h, dt[:, t, None] / 3)
        return h, h

    return {"cell": unrolled(step, zeros(x))}


example(
    "hand/sub-steps",
    SubSteps,
    outputs=(OUTPUTS,),
    plain=lambda m, x, dt: m(x, dt),
    states=sub_step_states,
    time="delta_t",
    layers={"cell.mix": "relu"},
)


class Together(nn.Module):
    """Steps through two cells that are one module, and hands on a tuple of their states."""

    def __init__(self):
        super().__init__()
        self.lower, self.upper = PlainCell(), PlainCell(UNITS, 4)

    def __call__(self, x, states):
        a = self.lower(x, states[0])
        b = self.upper(a, states[1])
        return b, (a, b)


class TogetherLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.step = Together()

    def __call__(self, x):
        states, outputs = (zeros(x), zeros(x, 4)), []
        for t in range(x.shape[1]):
            out, states = self.step(x[:, t], states)
            outputs.append(out)
        return mx.stack(outputs, axis=1)


def together_states(model, x, dt):
    found, states = {"step.lower": [], "step.upper": []}, (zeros(x), zeros(x, 4))
    for t in range(STEPS):
        _, states = model.step(x[:, t], states)
        for shown, state in zip(found.values(), states, strict=True):
            shown.append(state)
    return found


example(
    "hand/cells-in-a-step-module",
    TogetherLoop,
    outputs=(STEPS, 4),
    plain=lambda m, x, dt: m(x),
    states=together_states,
    notes=("backbone",),
)


class Ledger(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(FEATURES + UNITS, UNITS)

    def __call__(self, x, h, c):
        return c + 0.3 * mx.tanh(self.gate(mx.concatenate([x, h], axis=-1)))


class WithLedger(nn.Module):
    """One of its two states is kept by a module inside it."""

    def __init__(self):
        super().__init__()
        self.ledger, self.out = Ledger(), nn.Linear(UNITS, 4)
        self.back = nn.Linear(4, UNITS)

    def __call__(self, x, state):
        h, c = state
        c = self.ledger(x, self.back(h), c)
        h = mx.tanh(self.out(c)) + 0.1 * h
        return h, (h, c)


class LedgerLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = WithLedger()

    def __call__(self, x):
        state, outputs = (zeros(x, 4), zeros(x)), []
        for t in range(x.shape[1]):
            out, state = self.cell(x[:, t], state)
            outputs.append(out)
        return mx.stack(outputs, axis=1)


def ledger_states(model, x, dt):
    def step(t, state):
        _, state = model.cell(x[:, t], state)
        return state, mx.concatenate(state, axis=-1)

    return {"cell": unrolled(step, (zeros(x, 4), zeros(x)))}


example(
    "hand/inner-module-keeps-one-state",
    LedgerLoop,
    outputs=(STEPS, 4),
    plain=lambda m, x, dt: m(x),
    states=ledger_states,
    notes=("backbone",),
)


class Conditioned(nn.Module):
    """Its cell is also given what stays the same for all steps, in the shape of a state."""

    def __init__(self):
        super().__init__()
        self.enter, self.cell = nn.Linear(FEATURES, UNITS), ConditionedCell()

    def __call__(self, x):
        context, h, outputs = mx.tanh(self.enter(x.mean(axis=1))), zeros(x), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, context + 0)
            outputs.append(h)
        return mx.stack(outputs, axis=1)


class ConditionedCell(PlainCell):
    def __call__(self, x, h, context):
        return super().__call__(x, h) + 0.2 * context


def conditioned_states(model, x, dt):
    context = mx.tanh(model.enter(x.mean(axis=1)))

    def step(t, h):
        h = model.cell(x[:, t], h, context)
        return h, h

    return {"cell": unrolled(step, zeros(x))}


example(
    "hand/conditioned",
    Conditioned,
    outputs=(STEPS, UNITS),
    plain=lambda m, x, dt: m(x),
    states=conditioned_states,
    notes=("backbone",),
)


class Feedback(nn.Module):
    """Its last prediction is part of its next input."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = PlainCell(FEATURES + OUTPUTS), nn.Linear(UNITS, OUTPUTS)

    def __call__(self, x):
        h, y, outputs = zeros(x), zeros(x, OUTPUTS), []
        for t in range(x.shape[1]):
            h = self.cell(mx.concatenate([x[:, t], y], axis=-1), h)
            y = self.head(h)
            outputs.append(y)
        return {"logits": mx.stack(outputs, axis=1), "state": h}


def feedback_states(model, x, dt):
    def step(t, carried):
        h, y = carried
        h = model.cell(mx.concatenate([x[:, t], y], axis=-1), h)
        return (h, model.head(h)), h

    return {"cell": unrolled(step, (zeros(x), zeros(x, OUTPUTS)))}


example(
    "hand/feedback-dict-outputs",
    Feedback,
    outputs=(STEPS, OUTPUTS),
    plain=lambda m, x, dt: m(x)["logits"],
    states=feedback_states,
    notes=("backbone",),
)


# ---- by hand: what the model does to itself


class SelfCompiled(nn.Module):
    """Holds a function that it has compiled."""

    def __init__(self):
        super().__init__()
        self.cell, self.drop = TimedCell(), nn.Dropout(0.3)
        self.head = nn.Linear(UNITS, OUTPUTS)
        self._fast = None

    def body(self, x, dt):
        h, outputs = zeros(x), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, dt[:, t, None])
            outputs.append(self.head(self.drop(h)))
        return mx.stack(outputs, axis=1)

    def __call__(self, x, dt):
        if self._fast is None:
            object.__setattr__(self, "_fast", mx.compile(self.body, inputs=self.state))
        return self._fast(x, dt)


example(
    "hand/compiles-itself",
    SelfCompiled,
    outputs=(STEPS, OUTPUTS),
    plain=lambda m, x, dt: m.body(x, dt),
    states=timed_states("cell", lambda m: m.cell),
    time="dt",
    layers={"cell.mix": "relu"},
)


class Busy(nn.Module):
    """BatchNorm, dropout, buffers, counters of all kinds, a state that it keeps, own randomness."""

    def __init__(self):
        super().__init__()
        self.norm, self.cell, self.drop = nn.BatchNorm(FEATURES), TimedCell(), nn.Dropout(0.3)
        self.head = nn.Linear(UNITS, OUTPUTS)
        self.calls, self.seen, self.log = 0, set(), {"n": 0}
        self.count, self._buffer = mx.array(0), mx.zeros((3,))
        self.freeze(keys=["count"], recurse=False)

    def __call__(self, x, dt, *, note="x"):
        self.calls += 1
        self.seen.add(self.calls)
        self.log["n"] += 1
        self.count += 1  # in place: the array stays the same object
        self._buffer[0] = self.calls
        x, h, outputs = self.norm(x), zeros(x), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, dt[:, t, None])
            outputs.append(self.head(self.drop(h)))
        return mx.stack(outputs, axis=1)


def busy_states(model, x, dt):
    return timed_states("cell", lambda m: m.cell)(model, model.norm(x), dt)


example(
    "hand/busy",
    Busy,
    outputs=(STEPS, OUTPUTS),
    plain=lambda m, x, dt: m(x, dt),
    states=busy_states,
    time="dt",
    layers={"cell.mix": "relu"},
)


class DataDependent(nn.Module):
    """Looks at its values: another readout for large inputs."""

    def __init__(self):
        super().__init__()
        self.cell, self.small, self.large = PlainCell(), *(nn.Linear(UNITS, OUTPUTS) for _ in "ab")

    def __call__(self, x):
        h = zeros(x)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.large(h) if mx.abs(x).max().item() > 1e3 else self.small(h)


example(
    "hand/looks-at-values",
    DataDependent,
    outputs=(OUTPUTS,),
    plain=lambda m, x, dt: m(x),
    states=cell_states(),
    notes=("backbone",),
)


class Checkpointed(nn.Module):
    """Computes its cell again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.cell = TimedCell()

    def __call__(self, x, dt):
        step = nn.utils.checkpoint(self.cell)
        h, outputs = zeros(x), []
        for t in range(x.shape[1]):
            h = step(x[:, t], h, dt[:, t, None])
            outputs.append(h)
        return mx.stack(outputs, axis=1)


def checkpointed_plain(model, x, dt):
    h, outputs = zeros(x), []
    for t in range(STEPS):
        h = model.cell(x[:, t], h, dt[:, t, None])
        outputs.append(h)
    return mx.stack(outputs, axis=1)


example(
    "hand/checkpointed",
    Checkpointed,
    outputs=(STEPS, UNITS),
    plain=checkpointed_plain,
    states=timed_states("cell", lambda m: m.cell),
    time="dt",
    layers={"cell.mix": "relu"},
)


# ---- by hand: backbones


class StackCell(nn.Module):
    """Hidden layers in the way that ``variant`` says, then ``h = tanh(out(z))``."""

    def __init__(self, variant):
        super().__init__()
        self.variant, width = variant, 6
        self.first, self.second = nn.Linear(FEATURES + UNITS, width), nn.Linear(width, width)
        self.out = nn.Linear(width, UNITS)
        if variant == "norms":
            self.norms = [nn.LayerNorm(width), nn.RMSNorm(width)]
        if variant == "modules":
            self.acts = [nn.PReLU(), nn.Dropout(0.4), nn.Sequential(nn.LayerNorm(width), nn.ELU())]
        if variant == "whole":
            self.block = nn.Sequential(self.first, nn.ReLU(), self.out, nn.Tanh())
        if variant == "logits":
            self.block = nn.Sequential(self.first, nn.ReLU(), self.out)
        if variant == "block":
            self.block = nn.Sequential(
                nn.Sequential(self.first, nn.Tanh()), self.second, nn.sigmoid
            )

    def __call__(self, x, h):
        z = mx.concatenate([x, h], axis=-1)
        if self.variant == "plain":
            z = nn.leaky_relu(self.second(mx.sin(0.1 * nn.relu6(self.first(z)))))
        elif self.variant == "own":
            z = self.second(self.own(self.first(z)))
        elif self.variant == "norms":
            z = mx.tanh(self.norms[1](self.second(nn.relu(self.norms[0](self.first(z))))))
        elif self.variant == "modules":
            z = self.acts[2](self.second(self.acts[1](self.acts[0](self.first(z)))))
        else:
            z = self.block(z)
        if self.variant == "whole":
            return z
        return mx.tanh(z if self.variant == "logits" else self.out(z))

    @staticmethod
    def own(z):
        return z / (1 + mx.abs(z))


for _variant in ("whole", "logits"):  # the last layer's output is the state, or becomes it
    example(
        f"hand/backbone-{_variant}",
        functools.partial(lambda v: NodeLike(StackCell(v)), _variant),
        outputs=(STEPS, UNITS),
        plain=lambda m, x, dt: m(x),
        states=cell_states(),
        layers={"cell.first": "relu"},
    )
for _variant, _found in {
    "plain": ("unknown", "leaky_relu"),
    "own": ("unknown", "identity"),
    "norms": ("relu", "tanh"),
    "modules": ("unknown", "elu"),
    "block": ("tanh", "sigmoid"),
}.items():
    example(
        f"hand/backbone-{_variant}",
        functools.partial(lambda v: NodeLike(StackCell(v)), _variant),
        outputs=(STEPS, UNITS),
        plain=lambda m, x, dt: m(x),
        states=cell_states(),
        layers=dict(zip(("cell.first", "cell.second"), _found, strict=True)),
    )


# ---- by hand: how time is passed


class TimeCalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = TimedCell()

    def run(self, x, dt):
        h = zeros(x)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, dt[:, t].reshape(-1, 1))
        return h


class ByElapsed(TimeCalled):
    def __call__(self, x, *, elapsed=None):
        return self.run(x, elapsed)


class ByPosition(TimeCalled):
    def __call__(self, x, intervals, /):
        return self.run(x, intervals)


class WithColumn(TimeCalled):
    """Wants (B, T, 1)."""

    def __call__(self, x, time_delta=None):
        if time_delta.ndim != 3:
            raise ValueError("time_delta must be (batch, time, 1)")
        return self.run(x, time_delta)


class Swallowing(TimeCalled):
    """Takes any keyword, and heeds one."""

    def __call__(self, x, **options):
        dt = options.get("timespans")
        return self.run(x, mx.ones(x.shape[:2]) if dt is None else dt)


class PassingOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = ByElapsed()

    def __call__(self, *args, **kwargs):
        return self.net(*args, **kwargs)


for _class, _keyword, _path in (
    (ByElapsed, "elapsed", "cell"),
    (ByPosition, "intervals", "cell"),
    (WithColumn, "time_delta", "cell"),
    (Swallowing, "timespans", "cell"),
    (PassingOn, "elapsed", "net.cell"),
):
    example(
        f"hand/time-{_class.__name__}",
        _class,
        outputs=(UNITS,),
        plain=lambda m, x, dt: (m.net if hasattr(m, "net") else m).run(x, dt),
        states=timed_states(_path, lambda m: (m.net if hasattr(m, "net") else m).cell),
        time=_keyword,
        layers={f"{_path}.mix": "relu"},
    )


# ---- other precisions


class Precise(Loop):
    """Keeps its state in the precision of its inputs."""

    dtype = mx.float32

    def __init__(self):
        super().__init__()
        self.set_dtype(self.dtype)

    def put_cell(self, cell):
        self.cell = cell

    def __call__(self, x, dt):
        h, outputs = mx.zeros((len(x), UNITS), self.dtype), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, dt[:, t, None].astype(self.dtype))
            outputs.append(self.head(h))
        return mx.stack(outputs, axis=1)


def precise_states(model, x, dt):
    def step(t, h):
        h = model.cell(x[:, t], h, dt[:, t, None].astype(model.dtype))
        return h, h

    return {"cell": unrolled(step, mx.zeros((len(x), UNITS), model.dtype))}


for _dtype, _tolerance in ((mx.float16, 2e-3), (mx.bfloat16, 2e-2), (mx.float64, 1e-6)):
    example(
        f"hand/{str(_dtype).split('.')[-1]}",
        type("Precise", (Precise,), {"dtype": _dtype}),
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x, dt),
        states=precise_states,
        time="dt",
        layers={"cell.mix": "relu"},
        dtype=_dtype,
        tolerance=_tolerance,
    )


# ---- inputs that have no gradient


class Indexed(nn.Module):
    """The sign of the last feature, and times above 1, choose rows of embeddings."""

    def __init__(self, compiled=False, by_time=False):
        super().__init__()
        self.signs, self.late = nn.Embedding(2, 2), nn.Embedding(2, 2)
        self.cell, self.head = PlainCell(FEATURES + 1), nn.Linear(UNITS, OUTPUTS)
        self.by_time, self._run = by_time, None
        if compiled:
            self._run = mx.compile(self.body, inputs=self.state)

    def joined(self, x, dt, stop=lambda index: index):
        code = self.signs(stop((x[..., -1] > 0).astype(mx.int32)))
        if self.by_time:
            code = code * self.late(stop(mx.minimum(dt, 1.0).astype(mx.int32))) * dt[..., None]
        return mx.concatenate([x[..., :-1], code], axis=-1)

    def body(self, x, dt=None, stop=lambda index: index):
        joined, h, outputs = self.joined(x, dt, stop), zeros(x), []
        for t in range(x.shape[1]):
            h = self.cell(joined[:, t], h)
            outputs.append(self.head(h))
        return mx.stack(outputs, axis=1)

    def __call__(self, x):
        return self.body(x) if self._run is None else self._run(x)


class IndexedByTime(Indexed):
    def __init__(self):
        super().__init__(by_time=True)

    def __call__(self, x, dt):
        return self.body(x, dt)


def indexed_states(model, x, dt):
    joined = model.joined(x, dt)

    def step(t, h):
        h = model.cell(joined[:, t], h)
        return h, h

    return {"cell": unrolled(step, zeros(x))}


for _name, _build in (
    ("index", Indexed),
    ("index-compiled", functools.partial(Indexed, compiled=True)),
    ("index-by-time", IndexedByTime),
):
    example(
        f"hand/{_name}",
        _build,
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m.body(x, dt, mx.stop_gradient),
        states=indexed_states,
        time="dt" if _build is IndexedByTime else None,
        notes=("as indices", "gradient of exactly 0", "backbone"),
    )


# ---- by hand: in which order, along which axis and with what between the calls


class Ordered(nn.Module):
    """Two cells and a head; how they run is up to subclasses, in ``states``."""

    per_step = True

    def __init__(self):
        super().__init__()
        self.cell, self.other = PlainCell(), PlainCell()
        self.enter, self.head = nn.Linear(OUTPUTS, FEATURES), nn.Linear(UNITS, OUTPUTS)

    def __call__(self, x):
        return self.outputs(list(self.states(x).values())[-1])

    def outputs(self, states):
        outputs = self.head(mx.stack(states, axis=1))
        return outputs if self.per_step else outputs[:, -1]

    def states(self, x):
        raise NotImplementedError


def after(cell, inputs, h):
    """The states of a cell, by hand."""
    found = []
    for x in inputs:
        found.append(h := cell(x, h))
    return found


class Forecaster(Ordered):
    """Its decoder starts from the last observation, and goes on from its own outputs."""

    def states(self, x):
        read = after(self.cell, [x[:, t] for t in range(STEPS)], zeros(x))
        y, h, wrote = x[:, -1], read[-1], []
        for _ in range(STEPS):
            wrote.append(h := self.other(y, h))
            y = self.enter(self.head(h))
        return {"cell": read, "other": wrote}


class OneCellForecaster(Forecaster):
    """Its encoder is its decoder, which is called on beyond the time steps."""

    horizon, per_step = 2, False

    def states(self, x):
        read = after(self.cell, [x[:, t] for t in range(STEPS)], zeros(x))
        y, h, wrote = x[:, -1], read[-1], []
        for _ in range(self.horizon):
            wrote.append(h := self.cell(y, h))
            y = self.enter(self.head(h))
        self.__dict__["wrote"] = wrote
        return {"cell": read}

    def __call__(self, x):
        self.states(x)
        return self.outputs(self.__dict__.pop("wrote"))


class Attending(Ordered):
    """Its decoder reads what it attends to, of all time steps."""

    def states(self, x):
        read = after(self.cell, [x[:, t] for t in range(STEPS)], zeros(x))
        h, wrote = read[-1], []
        for _ in range(STEPS):
            scores = mx.softmax(mx.stack([(e * h).sum(axis=-1) for e in read], axis=1), axis=1)
            seen = (scores[..., None] * x).sum(axis=1)
            wrote.append(h := self.other(seen, h))
        return {"cell": read, "other": wrote}


class AttendingForecaster(Ordered):
    """Its decoder reads what it attends to beside its own output, first the last observation."""

    def __init__(self, steps=STEPS):
        super().__init__()
        self.other, self.steps = PlainCell(2 * FEATURES), steps

    def states(self, x):
        read = after(self.cell, [x[:, t] for t in range(STEPS)], zeros(x))
        y, h, wrote = x[:, -1], read[-1], []
        for _ in range(self.steps):
            scores = mx.softmax(mx.stack([(e * h).sum(axis=-1) for e in read], axis=1), axis=1)
            seen = (scores[..., None] * x).sum(axis=1)
            wrote.append(h := self.other(mx.concatenate([y, seen], axis=-1), h))
            y = self.enter(self.head(h))
        return {"cell": read, "other": wrote}


def encoder_states(model, x, dt):
    return {"cell": model.states(x)["cell"]}


class Slower(Ordered):
    """Its other cell runs at every second time step only."""

    def states(self, x):
        h, slow, found = zeros(x), zeros(x), []
        for t in range(x.shape[1]):
            slow = self.other(x[:, t], slow) if t % 2 == 0 else slow
            found.append(h := self.cell(x[:, t], h + 0.1 * mx.tanh(slow)))
        return {"cell": found}


class Convolved(Ordered):
    """Its cell reads features of several time steps, the own one among them."""

    per_step = False

    def __init__(self, before, behind):
        super().__init__()
        self.conv = nn.Conv1d(FEATURES, 16, before + behind + 1)
        self.cell, self.around = PlainCell(16), (before, behind)

    def states(self, x):
        x = nn.relu(self.conv(mx.pad(x, ((0, 0), self.around, (0, 0)))))
        return {"cell": after(self.cell, [x[:, t] for t in range(STEPS)], zeros(x))}


class Delayed(Ordered):
    """Its cell reads the input of an earlier or a later time step."""

    per_step = False

    def __init__(self, delay):
        super().__init__()
        self.delay = delay

    def states(self, x):
        at = [t - self.delay for t in range(STEPS)]
        inputs = [x[:, t] if 0 <= t < STEPS else zeros(x, FEATURES) for t in at]
        return {"cell": after(self.cell, inputs, zeros(x))}


class WithStart(Ordered):
    """Its cell is called once more, with a start token."""

    per_step = False

    def states(self, x):
        start = self.cell(zeros(x, FEATURES) + 1, zeros(x))
        return {"cell": after(self.cell, [x[:, t] for t in range(STEPS)], start)}


@mx.custom_function
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.vjp
def spike_slope(v, cotangent, _):
    return cotangent / (1 + 5 * mx.abs(v)) ** 2


class SpikingCell(nn.Module):
    """``(x, {"v", "s"}) -> (spikes, {"v", "s"})``, with a surrogate gradient."""

    def __init__(self):
        super().__init__()
        self.enter, self.back = nn.Linear(FEATURES, UNITS), nn.Linear(UNITS, UNITS)

    def __call__(self, x, state):
        v = 0.9 * state["v"] + 2 * self.enter(x) + self.back(state["s"])
        fired = spike(v - 1)
        return fired, {"v": v - fired, "s": fired}


class Spiking(nn.Module):
    """Reads the sum of the spikes so far."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = SpikingCell(), nn.Linear(UNITS, OUTPUTS)

    def run(self, x):
        state, total = {"v": zeros(x), "s": zeros(x)}, zeros(x, OUTPUTS)
        states, outputs = [], []
        for t in range(x.shape[1]):
            fired, state = self.cell(x[:, t], state)
            outputs.append(total := total + self.head(fired))
            states.append(mx.concatenate([state["v"], state["s"]], axis=-1))
        return mx.stack(outputs, axis=1), states

    def __call__(self, x):
        return self.run(x)[0]


class ExponentialCell(nn.Module):
    """``(x, (c, n, m)) -> (h, (c, n, m))``: exponential gates, a matrix memory, two heads."""

    def __init__(self, heads=2, width=3):
        super().__init__()
        self.shape = heads, width
        self.read = nn.Linear(FEATURES, 3 * heads * width)
        self.gates = nn.Linear(FEATURES, 3 * heads)

    def __call__(self, x, state):
        memory, norm, largest = state
        q, k, v = self.read(x).reshape(len(x), 3, *self.shape).swapaxes(0, 1)
        enter, keep, show = self.gates(x).reshape(len(x), 3, -1).swapaxes(0, 1)
        new = mx.maximum(keep + largest, enter)
        enter, keep = mx.exp(enter - new), mx.exp(keep + largest - new)
        outer = v[..., None] * k[..., None, :]
        memory = keep[..., None, None] * memory + enter[..., None, None] * outer
        norm = keep[..., None] * norm + enter[..., None] * k
        size = mx.maximum(mx.abs((norm * q).sum(axis=-1)), 1.0)[..., None]
        h = mx.sigmoid(show)[..., None] * (memory @ q[..., None])[..., 0] / size
        return h.reshape(len(x), -1), (memory, norm, new)


class MatrixMemory(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = ExponentialCell(), nn.Linear(6, OUTPUTS)

    def run(self, x):
        state = mx.zeros((len(x), 2, 3, 3)), mx.zeros((len(x), 2, 3)), mx.zeros((len(x), 2))
        states, outputs = [], []
        for t in range(x.shape[1]):
            h, state = self.cell(x[:, t], state)
            outputs.append(self.head(h))
            states.append(mx.concatenate([a.reshape(len(x), -1) for a in state], axis=-1))
        return mx.stack(outputs, axis=1), states

    def __call__(self, x):
        return self.run(x)[0]


class ColumnCell(nn.Module):
    """Keeps ``(units, batch)``."""

    def __init__(self, units):
        super().__init__()
        self.wx, self.wh = (
            mx.random.normal((units, FEATURES)),
            0.3 * mx.random.normal((units, units)),
        )

    def __call__(self, x, h):
        return mx.tanh(self.wx @ x.T + self.wh @ h)


class Columns(nn.Module):
    def __init__(self, units=UNITS):
        super().__init__()
        self.cell, self.head, self.units = ColumnCell(units), nn.Linear(units, OUTPUTS), units

    def __call__(self, x):
        return self.head(self.states(x)["cell"][-1])

    def states(self, x):
        inputs = [x[:, t] for t in range(x.shape[1])]
        columns = after(self.cell, inputs, mx.zeros((self.units, len(x))))
        return {"cell": [h.T for h in columns]}


class TimeFirstLayer(nn.Module):
    """A layer of its own that takes and returns time first."""

    def __init__(self):
        super().__init__()
        self.wx, self.wh = nn.Linear(FEATURES, UNITS), nn.Linear(UNITS, UNITS)

    def __call__(self, x):
        h, found = mx.zeros((x.shape[1], UNITS)), []
        for x_t in self.wx(x):
            found.append(h := mx.tanh(x_t + self.wh(h)))
        return mx.stack(found)


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = TimeFirstLayer(), nn.Linear(UNITS, OUTPUTS)

    def __call__(self, x):
        return self.head(self.layer(x.swapaxes(0, 1))).swapaxes(0, 1)


class ChangedBetween(nn.Module):
    """Does more to the state between the calls than to pass it on."""

    def __init__(self, how):
        super().__init__()
        self.cell, self.head, self.how = PlainCell(), nn.Linear(UNITS, OUTPUTS), how
        self.decay, self.norm = nn.Linear(1, UNITS), nn.LayerNorm(UNITS)
        self.project, self.field = nn.Linear(UNITS, UNITS), nn.Linear(UNITS, UNITS)

    def between(self, x, h, dt):
        """What the cell receives, from what it returned."""
        if self.how == "decay":
            return h * mx.exp(-nn.relu(self.decay(dt)))
        if self.how == "solver":
            for _ in range(3):
                h = h + dt / 3 * mx.tanh(self.field(h))
            return h
        if self.how == "norm":
            return self.norm(h)
        if self.how == "project":
            return mx.tanh(self.project(h))
        if self.how == "add":
            return h + 0.1 * x[:, :1]
        return h

    def step(self, x, h, dt):
        return self.cell(x, self.between(x, h, dt))

    def states(self, x, dt):
        h, found = zeros(x), []
        for t in range(x.shape[1]):
            found.append(h := self.step(x[:, t], h, dt[:, t, None]))
        return {"cell": found}

    def __call__(self, x, dt):
        return self.head(mx.stack(self.states(x, dt)["cell"], axis=1))


class SolvedAfter(ChangedBetween):
    """A vector field, which returns no state, moves the state after each call of the cell."""

    def __init__(self, sub_steps):
        super().__init__("none")
        self.sub_steps = sub_steps

    def step(self, x, h, dt):
        for _ in range(self.sub_steps):
            h = h + dt / self.sub_steps * self.field(h)
        return self.cell(x, h)


class PairOfStatesCell(nn.Module):
    """``(x, h, c) -> (h, c)``."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(FEATURES + UNITS, 2 * UNITS)

    def __call__(self, x, h, c):
        gate, new = mx.split(self.mix(mx.concatenate([x, h], axis=-1)), 2, axis=-1)
        c = c + mx.sigmoid(gate) * (mx.tanh(new) - c)
        return mx.tanh(c + h), c


class OneOfTwoChanged(nn.Module):
    """Of the two states of its cell, one goes through a norm before the next call."""

    def __init__(self):
        super().__init__()
        self.cell, self.norm = PairOfStatesCell(), nn.LayerNorm(UNITS)
        self.head = nn.Linear(UNITS, OUTPUTS)

    def step(self, x, state, dt):
        h, c = mx.split(state, 2, axis=-1)
        return mx.concatenate(self.cell(x, self.norm(h), c), axis=-1)

    def states(self, x, dt):
        state, found = zeros(x, 2 * UNITS), []
        for t in range(x.shape[1]):
            found.append(state := self.step(x[:, t], state, None))
        return {"cell": found}

    def __call__(self, x):
        h, c, outputs = zeros(x), zeros(x), []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], self.norm(h), c)
            outputs.append(self.head(h))
        return mx.stack(outputs, axis=1)


class Joined(ChangedBetween):
    """Its cell takes the input and the state as one array."""

    def __init__(self, how):
        super().__init__(how)
        self.cell = nn.Sequential(nn.Linear(FEATURES + UNITS, UNITS), nn.Tanh())

    def step(self, x, h, dt):
        return self.cell(mx.concatenate([x, self.between(x, h, dt)], axis=-1))


class Residual(ChangedBetween):
    """The module returns a part of the state."""

    def step(self, x, h, dt):
        keep = 0.2 if self.how == "zoneout" else 1.0
        return keep * h + (0.8 if self.how == "zoneout" else 1.0) * self.cell(x, h)


ORDERED = {
    "forecaster": (Forecaster, (STEPS, OUTPUTS), ("forecast that it changes", "backbone")),
    "one-cell-forecaster": (OneCellForecaster, (OUTPUTS,), ("of the 8 calls", "backbone")),
    "attending": (Attending, (STEPS, OUTPUTS), ("forecast that it changes", "backbone")),
    "attending-forecaster": (
        AttendingForecaster,
        (STEPS, OUTPUTS),
        ("forecast that it changes", "backbone"),
    ),
    "slower": (
        Slower,
        (STEPS, OUTPUTS),
        ("called 3 times for 6 time steps", "changes them before the next call", "backbone"),
    ),
    "with-start": (WithStart, (OUTPUTS,), ("of the 7 calls", "backbone")),
    "convolved": (functools.partial(Convolved, 1, 1), (OUTPUTS,), ("backbone",)),
    "convolved-causally": (functools.partial(Convolved, 2, 0), (OUTPUTS,), ("backbone",)),
    "columns": (Columns, (OUTPUTS,), ("backbone",)),
    "columns-as-many-as-sequences": (
        functools.partial(Columns, BATCH),
        (OUTPUTS,),
        ("backbone",),
    ),
    **{
        f"delayed-{_delay}": (
            functools.partial(Delayed, _delay),
            (OUTPUTS,),
            (
                f"{abs(_delay)} call{'s' * (abs(_delay) > 1)} "
                + ("after" if _delay > 0 else "before"),
                "backbone",
            ),
        )
        for _delay in (1, 3, -1, -2)
    },
}
for _name, (_build, _outputs, _notes) in ORDERED.items():
    example(
        f"hand/ordered-{_name}",
        _build,
        outputs=_outputs,
        plain=lambda m, x, dt: m(x),
        states=lambda m, x, dt: m.states(x),
        notes=_notes,
        start=None if _name == "with-start" else 0.0,
        horizon=True if _name in ("forecaster", "attending", "attending-forecaster") else None,
    )
example(
    "hand/attending-forecast-of-4",
    functools.partial(AttendingForecaster, 4),
    outputs=(4, OUTPUTS),
    plain=lambda m, x, dt: m(x),
    states=encoder_states,
    notes=("called 4 times for 6", "backbone"),
)
for _sub_steps in (1, 2, 3, 4):
    example(
        f"hand/solved-in-{_sub_steps}",
        functools.partial(SolvedAfter, _sub_steps),
        time="dt",
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x, dt),
        states=lambda m, x, dt: m.states(x, dt),
        notes=("changes them before the next call", "backbone"),
        tolerance=1e-5,
    )
for _name, _build in (("spiking", Spiking), ("matrix-memory", MatrixMemory)):
    example(
        f"hand/{_name}",
        _build,
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x),
        states=lambda m, x, dt: {"cell": m.run(x)[1]},
        notes=("backbone",),
        tolerance=1e-5,
    )
for _name in ("decay", "solver", "norm", "project", "add"):
    example(
        f"hand/changed-{_name}",
        functools.partial(ChangedBetween, _name),
        time="dt",
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x, dt),
        states=lambda m, x, dt: m.states(x, dt),
        uses_time=_name in ("decay", "solver"),
        notes=("changes them before the next call", "backbone"),
        tolerance=1e-5,
    )
for _name in ("decay", "none"):
    example(
        f"hand/joined-{_name}",
        functools.partial(Joined, _name),
        time="dt",
        outputs=(STEPS, OUTPUTS),
        plain=lambda m, x, dt: m(x, dt),
        states=lambda m, x, dt: m.states(x, dt),
        uses_time=_name == "decay",
        notes=("joins them with other values", "backbone"),
        tolerance=1e-5,
    )
example(
    "hand/changed-one-of-two",
    OneOfTwoChanged,
    outputs=(STEPS, OUTPUTS),
    plain=lambda m, x, dt: m(x),
    states=lambda m, x, dt: m.states(x, dt),
    notes=("changes them before the next call", "backbone"),
    tolerance=1e-5,
)


# ---- by hand: sequences that act on each other


def standardised(a):
    return (a - a.mean(axis=0)) / (a.std(axis=0) + 0.1)


class Coupled(Loop):
    """Changes what its cell is given with the rest of the batch."""

    def __init__(self, couple, compiled=False):
        super().__init__()
        self._couple, self._compiled = couple, compiled

    def put_cell(self, cell):
        self.cell = cell

    def the_cell(self):
        return self.cell

    def given(self, x, dt):
        return self._couple(x, dt)

    def __call__(self, x, dt):
        run = super().__call__
        return (mx.compile(run, inputs=self.state) if self._compiled else run)(*self.given(x, dt))


def coupled_states(model, x, dt):
    return timed_states("cell", lambda m: m.cell)(model, *model.given(x, dt))


def over_the_batch(x):
    """Attention over the batch, at each time step."""
    a = x.swapaxes(0, 1)
    return (mx.softmax(a @ a.swapaxes(1, 2), axis=-1) @ a).swapaxes(0, 1)


COUPLINGS = {
    "elapsed-times": (lambda x, dt: (x, mx.abs(standardised(dt))), "through time_delta:"),
    "elapsed-times-of-the-first": (
        lambda x, dt: (x, mx.broadcast_to(dt[:1], dt.shape)),
        "through time_delta:",
    ),
    "inputs": (lambda x, dt: (standardised(x), dt), "through inputs:"),
    "inputs-of-the-first": (lambda x, dt: (x + x[:1], dt), "through inputs:"),
    "inputs-of-the-one-before": (
        lambda x, dt: (mx.concatenate([x[:1], x[1:] + x[:-1]]), dt),
        "through inputs:",
    ),
    "attention": (lambda x, dt: (over_the_batch(x), dt), "through inputs:"),
    "both": (lambda x, dt: (x - x.mean(axis=0), dt * dt.mean()), "through inputs and time_delta:"),
}
for _name, (_couple, _channel) in COUPLINGS.items():
    for _compiled in (False, True):
        example(
            f"hand/coupled-{_name}{'-compiled' * _compiled}",
            functools.partial(Coupled, _couple, _compiled),
            outputs=(STEPS, OUTPUTS),
            plain=lambda m, x, dt: m(x, dt),
            states=coupled_states,
            time="dt",
            layers={"cell.mix": "relu"},
            notes=(_channel,),
        )


# ---- by hand: state that is kept between batches


class Box:
    """A plain object."""

    def __init__(self):
        self.held = None


class Kept(Loop):
    """Goes on from the state of the batch before, which is kept by ``write`` and found by ``read``.

    Attributes:
        kept: Where it is kept.
    """

    def __init__(self, make, read, write):
        super().__init__()
        self.kept, self._read, self._write = make(), read, write

    def put_cell(self, cell):
        self.cell = cell

    def the_cell(self):
        return self.cell

    def __call__(self, x, dt):
        last = self._read(self)
        h, outputs = zeros(x) if last is None else mx.stop_gradient(last), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, dt[:, t, None])
            outputs.append(self.head(h))
        self._write(self, h)
        return mx.stack(outputs, axis=1)


def fresh(model, x, dt):
    """Outputs of the model from zeros."""
    h, outputs = zeros(x), []
    for t in range(x.shape[1]):
        h = model.cell(x[:, t], h, dt[:, t, None])
        outputs.append(model.head(h))
    return mx.stack(outputs, axis=1)


def _append(model, h):
    model.kept.append(h)


def _split(model, h):
    model.kept["rows"] = list(h)


KEEPERS = {
    "array": (lambda: None, lambda m: m.kept, lambda m, h: setattr(m, "kept", h)),
    "list": (lambda: [None], lambda m: m.kept[0], lambda m, h: m.kept.__setitem__(0, h)),
    "growing-list": (list, lambda m: m.kept[-1] if m.kept else None, _append),
    "dict": (dict, lambda m: m.kept.get("h"), lambda m, h: m.kept.update(h=h)),
    "tuple": (
        lambda: (None, 0),
        lambda m: m.kept[0],
        lambda m, h: setattr(m, "kept", (h, m.kept[1] + 1)),
    ),
    "object": (Box, lambda m: m.kept.held, lambda m, h: setattr(m.kept, "held", h)),
    "attribute": (
        lambda: None,
        lambda m: vars(m).get("h"),
        lambda m, h: object.__setattr__(m, "h", h),
    ),
    "cell": (
        lambda: None,
        lambda m: vars(m.cell).get("h"),
        lambda m, h: object.__setattr__(m.cell, "h", h),
    ),
    "rows": (
        dict,
        lambda m: mx.stack(m.kept["rows"]) if "rows" in m.kept else None,
        _split,
    ),
    "deque": (
        lambda: collections.deque(maxlen=2),
        lambda m: m.kept[-1] if m.kept else None,
        _append,
    ),
}
for _name, (_make, _read, _write) in KEEPERS.items():
    example(
        f"hand/kept-{_name}",
        functools.partial(Kept, _make, _read, _write),
        outputs=(STEPS, OUTPUTS),
        plain=fresh,
        states=timed_states("cell", lambda m: m.cell),
        time="dt",
        layers={"cell.mix": "relu"},
        notes=("keeps a state between batches",),
    )


# ---- by hand: forecasts


class Forecast(Loop):
    """Returns a forecast of ``horizon`` steps from the last state."""

    def __init__(self, horizon, compiled=False):
        super().__init__()
        self.last = nn.Linear(UNITS, horizon * OUTPUTS)
        self._horizon, self._compiled = horizon, compiled

    def put_cell(self, cell):
        self.cell = cell

    def the_cell(self):
        return self.cell

    def body(self, x, dt):
        h = zeros(x)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, dt[:, t, None])
        return self.last(h).reshape(len(x), self._horizon, OUTPUTS)

    def __call__(self, x, dt):
        return (mx.compile(self.body, inputs=self.state) if self._compiled else self.body)(x, dt)


for _horizon in (1, 3, STEPS, STEPS + 2):
    for _compiled in (False, True):
        example(
            f"hand/forecast-of-{_horizon}{'-compiled' * _compiled}",
            functools.partial(Forecast, _horizon, _compiled),
            outputs=(_horizon, OUTPUTS),
            plain=lambda m, x, dt: m(x, dt),
            states=timed_states("cell", lambda m: m.cell),
            time="dt",
            layers={"cell.mix": "relu"},
        )
