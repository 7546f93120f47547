"""Callbacks share the arrays of an observation: nobody can write to any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import LTC, CfC

B, T, F = 6, 5, 3


class Net(nn.Module):
    def __init__(self, cell: type[nn.Module] = CfC) -> None:
        super().__init__()
        self.rnn, self.head = cell(F, 6), nn.Linear(6, 2)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


def batch(targets: Any = None) -> ncp.HeldOutBatch:
    rng = np.random.default_rng(0)
    return ncp.HeldOutBatch(
        rng.normal(2, 1, (B, T, F)).astype(np.float32),
        rng.uniform(0.5, 2, (B, T)).astype(np.float32),
        targets=np.arange(B) % 2 if targets is None else targets,
        mask=np.arange(T) < np.array([5, 3, 4, 5, 2, 5])[:, None],
    )


# Private: what these hold is no part of what callbacks are given.
CLASSES = (ncp.EvaluatedBatch, ncp.HeldOutBatch)


def arrays_in(value: Any, path: str) -> Iterator[tuple[str, np.ndarray | mx.array]]:
    """Every array that can be reached through public attributes, and how."""
    if isinstance(value, np.ndarray | mx.array):
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from arrays_in(each, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from arrays_in(each, f"{path}[{i}]")
    elif isinstance(value, CLASSES):
        for name in dir(value):
            if not name.startswith("_") and not _is_method(value, name):
                yield from arrays_in(getattr(value, name), f"{path}.{name}")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from arrays_in(getattr(value, field.name), f"{path}.{field.name}")


def _is_method(value: Any, name: str) -> bool:
    return callable(getattr(type(value), name, None))


X2 = np.ones((2, B, T, F), np.float32)
# What each public method gives; `randomised` is a context manager of batches.
METHODS: dict[str, Callable[[ncp.Observation], Any]] = {
    "limited": lambda o: o.limited(3),
    "declaring": lambda o: o.declaring(ncp.Need),
    "evaluate": lambda o: [
        o.extra_passes.evaluate(X2, gradient=True),
        o.extra_passes.evaluate(X2, loss=True),
        o.extra_passes.evaluate(X2[:, :2], sequences=np.array([1, 3]), gradient=True),
    ],
    "cell_stepper": lambda o: None,  # A stepper: it computes its arrays anew at each call.
    "state_jacobian": lambda o: o.extra_passes.state_jacobian("rnn.rnn_cell"),
    "jacobian_products": lambda o: None,  # Functions, which compute their arrays anew.
    "state_x_gradient": lambda o: o.extra_passes.state_x_gradient("rnn.rnn_cell"),
    "read_liquid": lambda o: o.extra_passes.read_liquid(stepper(o)),
    "jacobian_diagonal": lambda o: None,  # Computed anew at each call.
    "states": lambda o: o.extra_passes.states(),
    "at_time_scales": lambda o: o.extra_passes.at_time_scales([1.0, 2.0]),
    "with_finer_solver": lambda o: o.extra_passes.with_finer_solver([1.0, 2.0]),
    "slopes": lambda o: o.extra_passes.slopes(X2, along=np.ones_like(X2)),
    "at_steps": lambda o: o.extra_passes.at_steps([1, 2]),
    "at_own_steps": lambda o: o.extra_passes.at_own_steps(),
    "reevaluate": lambda o: o.extra_passes.reevaluate(X2[0]),
    "randomised": lambda o: stages(o),
    "removed": lambda o: o.extra_passes.removed(
        [np.array([0])], times=True, blocks=[(0, 1)], n_samples=2
    ),
    "with_fewer_steps": lambda o: o.extra_passes.with_fewer_steps(
        np.tile(np.arange(2), (B, 1)), np.ones((B, 2), bool), loss=True
    ),
    "state_changes": lambda o: None,  # An object that changes states while the model runs.
    "clamped": lambda o: o.extra_passes.clamped(
        cell_name(o), np.arange(2), np.zeros(units(o)), loss=True
    ),
    "clamp_slopes": lambda o: o.extra_passes.clamp_slopes(cell_name(o), np.zeros(units(o))),
    "state_gradient": lambda o: o.extra_passes.state_gradient(cell_name(o)),
}


def cell_name(observation: ncp.Observation) -> str:
    return observation.states[0].cell


def units(observation: ncp.Observation) -> int:
    return observation.states[0].values.shape[-1]


def stepper(observation: ncp.Observation) -> Any:
    return observation.extra_passes.cell_stepper(observation.states[0].cell)


def stages(observation: ncp.Observation) -> list[Any]:
    with observation.extra_passes.randomised(2) as cascade:
        found = []
        for names, seen in cascade:
            found.append((names, list(arrays_in(seen.input_gradient, "")), seen.target_values))
        return found


@pytest.fixture(scope="module")
def model() -> nn.Module:
    mx.random.seed(0)
    return Net(LTC)


def observe(model: nn.Module, held_out: ncp.HeldOutBatch) -> ncp.Observation:
    runner = ModelRunner(model, held_out, target=1)
    cell = runner.hook_points.cells[0].name
    METHODS["state_jacobian"] = lambda o: o.extra_passes.state_jacobian(cell)
    METHODS["state_x_gradient"] = lambda o: o.extra_passes.state_x_gradient(cell)
    return passes.observe(runner, 1, set(ncp.Need))


def written_to(path: str, array: np.ndarray | mx.array) -> None:
    if isinstance(array, np.ndarray):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    else:  # MLX arrays can't be protected: they are copies.
        array[...] = 0


def test_every_array_of_an_observation_is_protected(model: nn.Module) -> None:
    seen = observe(model, batch())
    found = dict(arrays_in(seen, "observation"))
    expected = {"inputs", "time_delta", "mask", "outputs", "target_values", "input_gradient"}
    expected |= {"time_gradient", "losses", "indices", "states[0].values", "states[0].initial"}
    expected |= {f"held_out.{n}" for n in ("inputs", "time_delta", "mask", "targets")}
    assert {f"observation.{name}" for name in expected} <= set(found)
    before = {path: np.array(array) for path, array in found.items()}
    for path, array in found.items():
        written_to(path, array)
    for path, array in arrays_in(seen, "observation"):
        np.testing.assert_array_equal(np.array(array), before[path], err_msg=path)


def test_every_array_of_an_extra_pass_is_protected(model: nn.Module) -> None:
    classes = (ncp.Observation, ncp.ExtraPasses)
    public = {(kind, n) for kind in classes for n in dir(kind) if not n.startswith("_")}
    methods = {n for kind, n in public if callable(getattr(kind, n))}
    assert methods == set(METHODS), "a new method: say here how to call it"
    seen = observe(model, batch())
    for name, call in METHODS.items():
        needs = seen
        result = call(needs)
        found = list(arrays_in(result, name))
        computed_anew = {"cell_stepper", "jacobian_products", "jacobian_diagonal", "state_changes"}
        assert found or name in computed_anew
        for path, array in found:
            written_to(path, array)


@pytest.mark.parametrize("targets", [
    {"labels": np.arange(B), "weights": [np.ones(B), mx.ones(B)]},
    np.array([{} for _ in range(B)], dtype=object),
    mx.arange(B),
], ids=["dict", "object array", "mlx"])  # fmt: skip
def test_targets_of_any_kind_are_protected(targets: Any) -> None:
    held_out = batch(targets)
    for part in (held_out, held_out.take(np.array([0, 2])), held_out.take(slice(0, 3))):
        found = dict(arrays_in(part, "held_out"))
        before = {path: np.array(array) for path, array in found.items()}
        assert any("targets" in path for path in found)
        for path, array in found.items():
            written_to(path, array)
        for path, array in arrays_in(part, "held_out"):
            np.testing.assert_array_equal(np.array(array), before[path], err_msg=path)


def test_the_targets_of_the_user_can_still_be_written_to() -> None:
    targets = {"labels": np.arange(B)}
    held_out = batch(targets)
    targets["labels"][0] = 9
    assert held_out.targets["labels"][0] == 0


class Writes(ncp.Callback):
    """Writes to one array, by its place in the walk."""

    needs = frozenset(ncp.Need)

    def __init__(self, path: str) -> None:
        super().__init__(name="writes")
        self.path = path

    def measure(self, observation: ncp.Observation) -> list[ncp.Scalar]:
        array = dict(arrays_in(observation, "observation"))[self.path]
        if observation.step:  # The dry run would refuse the callback on entering.
            array[...] = 0
        return []


def logged(path: str | None) -> list[tuple[str, float]]:
    mx.random.seed(0)
    writer = ncp.MemoryWriter()
    callbacks: list[ncp.Callback] = [ncp.GradientAttribution(), ncp.TimeSensitivity()]
    callbacks += [ncp.StateTransitions(), ncp.StateSpace()]
    if path is not None:
        callbacks.insert(0, Writes(path))
    with ncp.Monitor(Net(), batch(), callbacks, writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        monitor.on_step_end(2)
    return [
        (tag, value)
        for tag in writer.tags
        if not tag.startswith("monitor/")
        for _, value in (writer.scalars(tag) or [])
    ]


@pytest.mark.parametrize("name", [
    "inputs", "input_gradient", "target_values", "outputs", "time_gradient", "states[0].initial",
    "held_out.mask",
])  # fmt: skip
def test_a_callback_that_writes_in_place_is_disabled_alone(name: str, caplog: Any) -> None:
    expected = logged(None)
    found = logged(f"observation.{name}")
    assert found == expected
    assert len(expected) > 20
    assert "read-only" in caplog.text
    assert "writes" in caplog.text
