"""Entering a monitor runs the model some thirty times on a few sequences, and nothing twice."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.extra_passes import runner as extra_passes
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import CfC

B, T, F = 16, 32, 8
DRAWN = np.random.default_rng(0)
X = DRAWN.standard_normal((B, T, F)).astype(np.float32)
DT = DRAWN.uniform(0.2, 1.8, (B, T)).astype(np.float32)


class Liquid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(F, 6, backbone_units=6), nn.Linear(6, 1)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class Standardised(Liquid):
    """Standardise the inputs over the batch, so that sequences act on each other."""

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        centred = x - x.mean(axis=0, keepdims=True)
        return super().__call__(centred / (x.std(axis=0, keepdims=True) + 1e-3), time_delta)


class EulerCell(nn.Module):
    """Make four steps of an explicit solver between two samples."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(F + 6, 6), nn.Linear(6, 6)

    def __call__(self, x: mx.array, h: mx.array, dt: mx.array) -> mx.array:
        for _ in range(4):
            h = h + dt / 4 * (self.out(mx.tanh(self.mix(mx.concatenate([x, h], axis=-1)))) - h)
        return h


class Equation(nn.Module):
    """Solve a differential equation from sample to sample."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = EulerCell(), nn.Linear(6, 1)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        h, states = mx.zeros((len(x), 6)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, time_delta[:, t, None])
            states.append(h)
        return self.head(mx.stack(states, axis=1))


class StandardisedGRU(nn.Module):
    """Take inputs alone, and standardise them over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(F, 6), nn.Linear(6, 1)

    def __call__(self, x: mx.array) -> mx.array:
        centred = x - x.mean(axis=0, keepdims=True)
        return self.head(self.rnn(centred / (x.std(axis=0, keepdims=True) + 1e-3)))


def counted(model: nn.Module, patch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of sequences of each call of a model of this class."""
    calls: list[int] = []
    cls = type(model)
    own: Any = cls.__call__

    @functools.wraps(own)  # how it is called is found out by its signature
    def call(self: nn.Module, *given: Any, **named: Any) -> mx.array:
        if type(self) is cls:
            calls.append(len(given[0]))
        return own(self, *given, **named)

    patch.setattr(cls, "__call__", call)
    return calls


def batch(model: nn.Module) -> ncp.HeldOutBatch:
    return ncp.HeldOutBatch(X) if isinstance(model, StandardisedGRU) else ncp.HeldOutBatch(X, DT)


# Passes of the checks, and of all that entering does. If sequences act on each other, each of the
# eight features, the four blocks of time and the elapsed times that the standard set replaces is a
# pass of its own.
CASES = {Liquid: (19, 28), Equation: (18, 27), Standardised: (24, 47), StandardisedGRU: (20, 39)}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_how_often_entering_runs_the_model(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_checks, of_all = CASES[kind]
    model = kind()
    calls = counted(model, monkeypatch)
    ModelRunner(model, batch(model))
    assert 0 < len(calls) <= of_checks
    calls.clear()
    with ncp.Monitor(model, batch(model), writer=ncp.MemoryWriter(), background=False):
        assert of_checks < len(calls) <= of_all


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_the_dry_run_evaluates_no_variant_twice(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants: list[tuple[Any, ...]] = []
    evaluate = extra_passes.evaluate_variants

    def noting(runner: Any, inputs: Any, time_delta: Any, *others: Any, **options: Any) -> Any:
        for number in range(len(next(a for a in (inputs, time_delta) if a is not None))):
            given = (None if a is None else a[number].tobytes() for a in (inputs, time_delta))
            variants.append((*given, options["gradient"], options["loss"]))
        return evaluate(runner, inputs, time_delta, *others, **options)

    monkeypatch.setattr(extra_passes, "evaluate_variants", noting)
    model = kind()
    with ncp.Monitor(model, batch(model), writer=ncp.MemoryWriter(), background=False):
        # Three points of integrated gradients, the baseline, and eight features and more removed.
        assert len(variants) >= 3 + 1 + F
        assert len(variants) == len(set(variants))


class ByNumber(Liquid):
    """Divide by the number of sequences, so that parts of the batch are run otherwise."""

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return super().__call__(x / len(x), time_delta)


class OfOneSize(Standardised):
    """Run as many sequences as there are numbers for, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self._each = mx.ones((B, 1, 1))

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return super().__call__(x * self._each, time_delta)


class Backwards(Liquid):
    """Run the last sequence first, with elapsed times in units of their mean over the batch."""

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return super().__call__(x[::-1], time_delta[::-1] / time_delta.mean())[::-1]


@pytest.mark.parametrize(
    ("kind", "most"),
    # Four that are spread over the batch, and one that is as long as any; or all.
    [(Standardised, 5), (StandardisedGRU, 5), (ByNumber, B), (OfOneSize, B), (Backwards, B)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_dry_run_takes_few_sequences_where_these_run_as_all_do(
    kind: type[nn.Module], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kind()
    calls = counted(model, monkeypatch)
    runner = ModelRunner(model, batch(model))
    assert runner.whole_batch_only
    number = len(calls)
    calls.clear()
    with ncp.Monitor(
        model, batch(model), writer=ncp.MemoryWriter(), every=1, background=False
    ) as monitor:
        dry_run = calls[number:]
        assert sum(dry_run) > F * most
        # Passes of few sequences hold several variants, as only what runs is of interest.
        assert (min(dry_run), max(dry_run) > most) == (most, most < B)
        assert {size % most for size in dry_run} == {0}
        calls.clear()
        monitor.on_step_end(1)
        # Analyses take the whole batch.
        assert set(calls) == {B}


@pytest.mark.parametrize("of_time", [False, True])
def test_a_gradient_that_is_missing_is_found_though_both_are_asked_for_at_once(
    of_time: bool,
) -> None:
    class Indexing(Liquid):
        """Use the inputs, or the elapsed times, as indices, which have no gradient."""

        def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
            table = mx.arange(1000) / 1000
            if of_time:
                return super().__call__(x, 1 + table[(100 * time_delta).astype(mx.int32)])
            return super().__call__(table[(10 * mx.abs(x)).astype(mx.int32)], time_delta)

    found = ModelRunner(Indexing(), ncp.HeldOutBatch(X, DT)).gradients
    assert bool(found.no_time_gradient) is of_time
    assert bool(found.no_input_gradient) is not of_time
