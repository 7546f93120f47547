"""The observer's two places: records that are equal, and faults that cost the same in both."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from ncps.wirings import AutoNCP
from test_faults import held_out, logged, net, scalars, text

import ncp_callbacks as ncp
from ncp_callbacks.callbacks.sets import callback_set
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.plotting.drawer import Drawer
from ncp_callbacks.records import Picture

FEATURES, STEPS, SEQUENCES = 3, 6, 16


# ---- what both places make of the same training


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.Module, units: int) -> None:
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(units, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        timed = not isinstance(self.rnn, nn.GRU)
        return self.out(self.rnn(x, time_delta)[0] if timed else self.rnn(x))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cfc": lambda: Recurrent(CfC(FEATURES, 8, backbone_units=6), 8),
    "ltc": lambda: Recurrent(LTC(FEATURES, AutoNCP(9, 2, seed=1), ode_unfolds=3), 2),
    "gru": lambda: Recurrent(nn.GRU(FEATURES, 8), 8),
}


def every_callback() -> list[ncp.Callback]:
    callbacks = callback_set("full")
    for callback in callbacks:
        callback.every_nth = 1
    return callbacks


def records_of(name: str, *, background: bool) -> tuple[list[tuple[int, Any]], tuple[str, ...]]:
    mx.random.seed(0)
    model = MODELS[name]()
    mx.eval(model.parameters())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SEQUENCES, STEPS, FEATURES)).astype("f")
    dt = None if name == "gru" else rng.uniform(0.5, 2.0, (SEQUENCES, STEPS)).astype("f")
    y = rng.normal(size=(SEQUENCES, 1)).astype("f")
    optimizer = optim.Adam(1e-2)
    arrays = mx.array(x), None if dt is None else mx.array(dt), mx.array(y)

    def loss(model: nn.Module) -> mx.array:
        return mx.square(model(*arrays[:2])[:, -1, :1] - arrays[2]).mean()

    step_of = nn.value_and_grad(model, loss)
    writer = ncp.MemoryWriter()
    batch = ncp.HeldOutBatch(x, time_delta=dt)
    with ncp.Monitor(
        model, batch, every_callback(), writer=writer, every=1, background=background
    ) as monitor:
        assert monitor.in_background == background
        for step in (1, 2):  # more pictures than these two steps have may not wait
            value, gradients = step_of(model)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            monitor.on_step_end(step, loss=value)
    return writer.records, monitor.notes


def by_kind(records: Sequence[tuple[int, Any]]) -> tuple[dict[Any, Any], dict[Any, bytes]]:
    """Return numbers by step and tag, and PNGs; figures are drawn in their order."""
    numbers: dict[Any, Any] = {}
    pictures: dict[Any, bytes] = {}
    drawer = Drawer()
    for step, record in records:
        key = step, type(record).__name__, getattr(record, "tag", "")
        if isinstance(record, ncp.Figure):
            pictures[step, record.tag] = drawer.png(
                record.tag, record.plot, record.data, record.options
            )
        elif isinstance(record, Picture):
            pictures[step, record.tag] = record.png
        elif not key[2].startswith(("monitor/", "about/")):
            assert key not in numbers
            numbers[key] = {
                name: (value.dtype, value.shape, value.tobytes())
                if isinstance(value, np.ndarray)
                else repr(value)
                for name, value in vars(record).items()
            }
    return numbers, pictures


@pytest.mark.parametrize("name", MODELS)
def test_every_callback_gives_equal_records_in_both_places(name: str) -> None:
    made = {where: records_of(name, background=where) for where in (False, True)}
    (loop, loop_pictures), (other, other_pictures) = (by_kind(made[w][0]) for w in (False, True))
    assert [key for key in loop if loop[key] != other.get(key)] == []
    assert loop.keys() == other.keys()
    assert len(loop) > 100
    assert [key for key in loop_pictures if loop_pictures[key] != other_pictures.get(key)] == []
    assert loop_pictures.keys() == other_pictures.keys()
    assert len(loop_pictures) > 10
    assert not [note for note in made[True][1] if "failed" in note]
    assert sorted(made[False][1]) == sorted(made[True][1])


# ---- nothing grows


class Talkative(ncp.Callback):
    """Has a new note and a new tag at each analysis."""

    default_name = "talkative"

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Note | ncp.Scalar]:
        yield ncp.Note(f"step {observation.step}: {observation.step / 7:.6f} is a new number")
        yield ncp.Scalar(f"talkative/{observation.step}", 1.0, "One more tag, with a description")


def resident() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def test_notes_and_guide_are_capped(tmp_path: Path) -> None:
    monitor = ncp.Monitor(
        net(), held_out(), [Talkative()], tmp_path / "run", every=1, background=False
    )
    with monitor:
        for step in range(1, 3001):
            monitor.on_step_end(step, loss=1.0)
            if step == 1500:
                half = resident()
        grown = resident() - half
    assert len(monitor.notes) == 101
    assert monitor.notes[0] == "step 1: 0.142857 is a new number"
    assert monitor.notes[-1] == "and 2900 more"
    assert sum(file.stat().st_size for file in (tmp_path / "run").iterdir()) < 5e6
    assert grown < 20
    assert text(tmp_path / "run").endswith("and 2900 more")


# ---- pictures that are slow, endless or fail


def endless(data: Any) -> Any:
    time.sleep(1000.0)


def failing(data: Any) -> Any:
    raise ValueError("no such plot")


class Drawing(ncp.Callback):
    default_name = "drawing"

    def __init__(self, plot: Callable[[Any], Any]) -> None:
        super().__init__()
        self.plot = plot

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Figure | ncp.Scalar]:
        yield ncp.Scalar("drawing/step", observation.step)
        yield ncp.Figure("drawing/picture", self.plot, None)


@pytest.mark.parametrize(
    ("plot", "says"),
    [(endless, "it is given up"), (failing, "ValueError: no such plot")],
    ids=["endless", "failing"],
)
def test_pictures_that_fail_in_the_loop_are_named_and_cost_no_number(
    plot: Callable[[Any], Any], says: str, tmp_path: Path
) -> None:
    writer = ncp.TensorBoardWriter(tmp_path / "run", timeout=2.0)
    options: dict[str, Any] = {"writer": writer, "every": 1, "background": False}
    with ncp.Monitor(net(), held_out(), [Drawing(plot)], **options) as monitor:
        for step in range(1, 4):
            monitor.on_step_end(step, loss=1.0)
    writer.close()
    named = [n for n in monitor.notes if "drawing/picture" in n and says in n]
    assert len(named) == 1
    assert named[0] in text(tmp_path / "run")
    assert logged(tmp_path / "run", "drawing/step") == [1, 2, 3]


def test_a_warning_that_comes_while_the_log_closes_is_in_the_log(tmp_path: Path) -> None:
    run = tmp_path / "run"
    monitor = ncp.Monitor(net(), held_out(), [Drawing(failing)], run, every=1, background=False)
    with monitor:
        monitor.on_step_end(1, loss=1.0)
    assert "ValueError: no such plot" in monitor.notes[-1]
    assert monitor.notes[-1] in text(run)


def test_pictures_that_fail_in_the_background_are_named_and_cost_no_number() -> None:
    options: dict[str, Any] = {"writer": ncp.MemoryWriter(), "every": 1, "background": True}
    with ncp.Monitor(net(), held_out(), [Drawing(failing)], **options) as monitor:
        for step in range(1, 4):
            monitor.on_step_end(step, loss=1.0)
    named = [n for n in monitor.notes if "drawing/picture" in n and "no such plot" in n]
    assert len(named) == 1
    assert scalars(monitor, "drawing/step") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars(monitor, "monitor/dropped_pictures")[-1][1] == 3
