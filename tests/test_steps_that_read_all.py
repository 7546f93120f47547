"""Calls that read all time steps, as after standardising: states are right, or skipped."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from small_nets import TanhCell

import ncp_callbacks as ncp
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import CfC
from ncp_callbacks.passes import observe

F, H = 3, 5
Transform = Callable[[mx.array, mx.array], mx.array]


def standardised(x: mx.array, real: mx.array) -> mx.array:
    count = real.sum(axis=1, keepdims=True)
    mean = (x * real).sum(axis=1, keepdims=True) / count
    variance = (((x - mean) * real) ** 2).sum(axis=1, keepdims=True) / count
    return (x - mean) / mx.sqrt(variance + 1e-2) * real


def standardised_with_padding(x: mx.array, real: mx.array) -> mx.array:
    return standardised(x, mx.ones_like(real))


def standardised_over_the_batch(x: mx.array, real: mx.array) -> mx.array:
    return (x - x.mean(axis=(0, 1))) / mx.sqrt(x.var(axis=(0, 1)) + 1e-2)


def attended(x: mx.array, real: mx.array) -> mx.array:
    scores = mx.where(real.swapaxes(1, 2) > 0, x @ x.swapaxes(1, 2), -1e9)
    return x + mx.softmax(scores, axis=-1) @ x


def with_the_mean(x: mx.array, real: mx.array) -> mx.array:
    mean = (x * real).sum(axis=1, keepdims=True) / real.sum(axis=1, keepdims=True)
    return x * real + 0.5 * mx.broadcast_to(mean, x.shape)


def from_the_first(x: mx.array, real: mx.array) -> mx.array:
    return x - mx.take_along_axis(x, mx.argmax(real, axis=1)[:, None], axis=1)


def summed_up(x: mx.array, real: mx.array) -> mx.array:
    return mx.cumsum(x * real, axis=1)


def summed_from_the_end(x: mx.array, real: mx.array) -> mx.array:
    return mx.cumsum((x * real)[:, ::-1], axis=1)[:, ::-1]


def loop(cell: nn.Module, x: mx.array) -> mx.array:
    h, found = mx.zeros((len(x), H)), []
    for t in range(x.shape[1]):
        h = cell(x[:, t], h)
        found.append(h)
    return mx.stack(found, axis=1)


def turned(x: mx.array, order: str, real: mx.array, *, back: bool = False) -> mx.array:
    """Return the time steps in the order in which a model runs over them, or back in order."""
    total = x.shape[1]
    t, mask = mx.arange(total)[None], real[..., 0]
    if order == "forward":
        return x
    if order == "backward":
        return x[:, ::-1]
    if order == "backward within":
        length = mask.sum(axis=1).astype(mx.int32)[:, None]
        places = mx.where(t < length, length - 1 - t, t)
    else:
        first = mx.argmax(mask, axis=1)[:, None]
        places = (t + first) % total
        places = mx.argsort(places, axis=1) if back else places
    return mx.take_along_axis(x, places[..., None], axis=1)


class Model(nn.Module):
    """Transforms its inputs and runs over them; gets the real time steps as a companion."""

    def __init__(self, transform: Transform, order: str, kind: str) -> None:
        super().__init__()
        self.transform, self.order = transform, order
        self.cell: nn.Module = {
            "cell": lambda: TanhCell(F, H),
            "GRU": lambda: nn.GRU(F, H),
            "CfC": lambda: CfC(F, H, backbone_units=4),
        }[kind]()
        self.kind, self.head = kind, nn.Linear(H, 1)

    def states(self, x: mx.array, mask: mx.array) -> mx.array:
        real = mask[..., None]
        given = turned(self.transform(x, real), self.order, real)
        states = {
            "cell": lambda: loop(self.cell, given),
            "GRU": lambda: self.cell(given),
            "CfC": lambda: self.cell(given)[0] if self.kind == "CfC" else None,
        }[self.kind]()
        return turned(states, self.order, real, back=True)

    def __call__(self, given: tuple[mx.array, mx.array]) -> mx.array:
        x, mask = given
        return self.head((self.states(x, mask) * mask[..., None]).sum(axis=1))


def check(
    transform: Transform, order: str, kind: str, mask: np.ndarray, seed: int = 0
) -> ModelRunner:
    """Check the states that are observed at real time steps, and return the runner."""
    mx.random.seed(seed)
    model, real = Model(transform, order, kind), mx.array(mask.astype(np.float32))
    x = mx.random.normal((*mask.shape, F), key=mx.random.key(seed))
    runner = ModelRunner(model, ncp.HeldOutBatch((x, real), mask=mask), target=0)
    with runner.analysing():
        seen = observe(runner, 0, {ncp.Need.STATES})
    for states in seen.states:
        wanted = np.array(model.states(x, real))
        np.testing.assert_allclose(states.values[mask], wanted[mask], rtol=1e-3, atol=1e-5)
    assert bool(seen.states) != bool(runner.hook_points.no_cells)
    return runner


def of_lengths(lengths: list[int], *, left: bool = False) -> np.ndarray:
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    return mask[:, ::-1].copy() if left else mask


LENGTHS = [3, 7, 5, 2, 6]
NOTE = "reads all time steps, as after standardising sequences over time"


@pytest.mark.parametrize("kind", ["cell", "GRU", "CfC"])
@pytest.mark.parametrize("order", ["forward", "backward", "backward within"])
@pytest.mark.parametrize(
    "transform",
    [
        standardised,
        standardised_with_padding,
        standardised_over_the_batch,
        attended,
        with_the_mean,
    ],
)
def test_states_belong_to_the_time_step_that_changes_a_call_most(
    transform: Transform, order: str, kind: str
) -> None:
    runner = check(transform, order, kind, of_lengths(LENGTHS))
    assert len(runner.hook_points.cells) == 1
    assert not runner.hook_points.no_cells
    if kind != "GRU" and transform is not standardised_over_the_batch:
        assert any(NOTE in note for note in runner.notes)


@pytest.mark.parametrize("kind", ["cell", "GRU"])
@pytest.mark.parametrize("transform", [standardised, from_the_first, summed_up, attended])
def test_sequences_that_begin_late_may_be_run_from_their_first_step(
    transform: Transform, kind: str
) -> None:
    check(transform, "from the first", kind, of_lengths(LENGTHS, left=True))


# Few sequences, short ones, or padding that other time steps change: weak evidence once passed for
# an order in each of these.
WEAK: list[tuple[Transform, str, str, np.ndarray]] = [
    (standardised, "forward", "cell", of_lengths([3, 7, 5, 2, 6])),
    (summed_up, "from the first", "cell", of_lengths([5, 7, 6, 5])),
    (summed_from_the_end, "from the first", "GRU", of_lengths([11, 11, 3, 1, 4], left=True)),
    (summed_from_the_end, "backward", "cell", of_lengths([4, 3, 2, 5, 5, 4], left=True)),
    (from_the_first, "backward within", "cell", of_lengths([8, 3, 3, 1])),
    (from_the_first, "backward within", "cell", of_lengths([5, 2, 3])),
    (from_the_first, "from the first", "GRU", of_lengths([5, 1, 8], left=True)),
    (from_the_first, "backward", "GRU", of_lengths([8, 2, 3, 6])),
    (from_the_first, "backward", "cell", of_lengths([1, 1, 2, 1, 2, 1, 2], left=True)),
]


@pytest.mark.parametrize("number", range(len(WEAK)))
@pytest.mark.parametrize("seed", range(5))
def test_weak_evidence_is_none(number: int, seed: int) -> None:
    transform, order, kind, mask = WEAK[number]
    check(transform, order, kind, mask, seed)


def test_right_or_skipped_whatever_the_lengths() -> None:
    random = np.random.default_rng(4)
    transforms = [standardised, attended, from_the_first, summed_up, summed_from_the_end]
    skipped = 0
    for seed in range(60):
        left = bool(random.random() < 0.4)
        orders = ["forward", "backward", *(["from the first"] if left else ["backward within"])]
        total = int(random.integers(2, 9))
        lengths = [total, *random.integers(1, total + 1, int(random.integers(0, 7))).tolist()]
        runner = check(
            transforms[int(random.integers(len(transforms)))],
            orders[int(random.integers(len(orders)))],
            ["cell", "GRU"][int(random.integers(2))],
            of_lengths(lengths, left=left),
            seed,
        )
        skipped += bool(runner.hook_points.no_cells)
    assert skipped < 45


class Sparse(nn.Module):
    """Runs the sequences in another order; its cell gets only what exceeds a threshold."""

    def __init__(self, order: list[int], size: float, threshold: float) -> None:
        super().__init__()
        self.cell, self.head = TanhCell(1, H), nn.Linear(H, 1)
        self.order, self.size, self.threshold = order, size, threshold

    def states(self, x: mx.array) -> mx.array:
        return loop(self.cell, self.size * mx.where(x > self.threshold, x, 0.0))

    def __call__(self, x: mx.array) -> mx.array:
        order = mx.array(self.order)
        return self.head(self.states(x[order])[:, -1][mx.argsort(order)])


@pytest.mark.parametrize(("size", "threshold"), [(1.0, 1.0), (1e-4, 1.0), (1.0, 1.5)])
@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [0, 2, 1, 3, 4], [0, 1, 2, 3, 4]])
def test_rows_that_seldom_move_or_differ_by_little_are_right_or_skipped(
    order: list[int], size: float, threshold: float
) -> None:
    found = 0
    for seed in range(12):
        mx.random.seed(seed)
        model = Sparse(order, size, threshold)
        x = mx.random.normal((5, 6, 1), key=mx.random.key(seed))
        runner = ModelRunner(model, ncp.HeldOutBatch(x), target=0)
        with runner.analysing():
            seen = observe(runner, 0, {ncp.Need.STATES})
        for states in seen.states:
            found += 1
            wanted = np.array(model.states(x))
            apart = np.ptp(wanted, axis=0).max()
            np.testing.assert_allclose(states.values, wanted, rtol=0, atol=1e-2 * apart + 1e-7)
    assert found or order != sorted(order)


class FedBack(nn.Module):
    """Add to each input what is made of the state before, and to the first one a mean."""

    def __init__(self, beginning: Callable[[mx.array], mx.array], backward: bool) -> None:
        super().__init__()
        self.cell, self.back, self.head = TanhCell(F, H), nn.Linear(H, F), nn.Linear(H, 1)
        self.beginning, self.backward = beginning, backward

    def states(self, x: mx.array) -> mx.array:
        x = x[:, ::-1] if self.backward else x
        h, fed, found = mx.zeros((len(x), H)), self.beginning(x), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t] + fed, h)
            fed = self.back(h)
            found.append(h)
        states = mx.stack(found, axis=1)
        return states[:, ::-1] if self.backward else states

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.states(x))[:, 0 if self.backward else -1]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "beginning",
    [lambda x: x.mean(axis=1), lambda x: x.max(axis=1), lambda x: mx.tanh(x.sum(axis=1))],
    ids=["mean", "max", "sum"],
)
def test_feedback_that_begins_with_all_time_steps_is_none_of_the_later_calls(
    beginning: Callable[[mx.array], mx.array], backward: bool
) -> None:
    """Each time step moves all calls, but only through what the calls before have returned."""
    mx.random.seed(0)
    model, x = FedBack(beginning, backward), mx.random.normal((9, 6, F))
    runner = ModelRunner(model, ncp.HeldOutBatch(x))
    assert not any("reads all time steps" in note for note in runner.notes)
    with runner.analysing():
        (states,) = observe(runner, 0, {ncp.Need.STATES}).states
    assert states.reverse == backward
    np.testing.assert_allclose(states.values, np.array(model.states(x)), rtol=1e-4, atol=1e-6)
