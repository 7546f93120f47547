"""Test that time steps are dropped and merged as loops by hand do it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from promises import told

import ncp_callbacks as ncp
from ncp_callbacks.callbacks.sampling_rate.analysis import thinned

B, T, F = 18, 9, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, F)).astype("f")
DT = RNG.uniform(0.5, 2.0, (B, T)).astype("f")
LENGTHS = RNG.integers(2, T + 1, B)
MASK = np.arange(T) < LENGTHS[:, None]


def by_hand(b: int, every: int, *, merged: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and elapsed times of a sequence of which every k-th time step is left."""
    inputs, times = [], []
    end = int(LENGTHS[b]) - 1
    while end >= 0:
        group = range(max(0, end - every + 1), end + 1)
        inputs.append(np.mean([X[b, t] for t in group], axis=0) if merged else X[b, end])
        times.append(sum(DT[b, t] for t in group))
        end -= every
    return np.array(inputs[::-1]), np.array(times[::-1])


@pytest.mark.parametrize("every", [2, 3, 20])
def test_the_last_of_every_few_time_steps_is_left(every: int) -> None:
    left = thinned(X, DT, MASK, every)
    assert left.time_delta is not None
    for b in range(B):
        inputs, times = by_hand(b, every, merged=False)
        count = len(inputs)
        assert left.mask[b].tolist() == [True] * count + [False] * (left.mask.shape[1] - count)
        np.testing.assert_array_equal(X[b, left.steps[b, :count]], inputs)
        np.testing.assert_allclose(left.time_delta[b, :count], times, rtol=1e-6)
        means = by_hand(b, every, merged=True)[0]
        np.testing.assert_allclose(left.means[b, :count], means, rtol=1e-5, atol=1e-6)
        assert (left.time_delta[b] > 0).all()


class Cell(nn.Module):
    """Add up inputs × elapsed time, and forget with time."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = mx.array([rate, 0.0])

    def __call__(self, x: mx.array, h: mx.array, time_delta: mx.array) -> mx.array:
        dt = time_delta[:, None]
        return h * mx.exp(-self.rate * dt) + x * dt


class Integrator(nn.Module):
    def __init__(self, rate: float = 0.3) -> None:
        super().__init__()
        self.cell = Cell(rate)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        h, out = mx.zeros((len(x), 2)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, time_delta[:, t])
            out.append(h[:, :1] - 2 * h[:, 1:])
        return mx.stack(out, axis=1)


def output(x: np.ndarray, dt: np.ndarray, rate: float = 0.3) -> float:
    h = np.zeros(2)
    for value, elapsed in zip(x, dt, strict=True):
        h = h * np.exp(-np.array([rate, 0.0]) * elapsed) + value * elapsed
    return float(h[0] - 2 * h[1])


def logged(batch: ncp.HeldOutBatch, model: nn.Module | None = None, **options: Any) -> Any:
    writer = ncp.MemoryWriter()
    callbacks = [ncp.SamplingRate(**options)]
    model = Integrator() if model is None else model
    with ncp.Monitor(model, batch, callbacks, writer=writer, every=1, background=False) as m:
        m.on_step_end(1)
        notes = told(m.notes)
    return {record.tag: record for step, record in writer.records if step}, notes


@pytest.mark.parametrize("way", ["dropped", "merged"])
def test_changes_are_those_of_a_loop_by_hand(way: str) -> None:
    targets = RNG.normal(size=(B, 1)).astype("f")
    found, notes = logged(ncp.HeldOutBatch(X, DT, mask=MASK, targets=targets), factors=[2, 3])
    assert notes == ()
    whole = np.array([output(X[b, :n], DT[b, :n]) for b, n in enumerate(LENGTHS)])
    for factor in (2, 3):
        fewer = np.array([output(*by_hand(b, factor, merged=way == "merged")) for b in range(B)])
        change = np.abs(fewer - whole).mean() / whole.std()
        record = found[f"sampling/{way}_x{factor}"]
        assert record.value == pytest.approx(change, rel=1e-4)
        assert record.ci is not None
        assert record.ci[0] < change < record.ci[1]
        loss = np.mean((fewer - targets[:, 0]) ** 2)
        assert found[f"sampling/loss_{way}_x{factor}"].value == pytest.approx(loss, rel=1e-4)


def test_an_integrator_of_constant_inputs_does_not_depend_on_the_sampling_rate() -> None:
    constant = np.repeat(X[:, :1], T, axis=1)
    found, _ = logged(ncp.HeldOutBatch(constant, DT), Integrator(rate=0.0))
    for way in ("dropped", "merged"):
        assert found[f"sampling/{way}_x4"].value == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("factors", [[], [2, 2], [2, 3, 4, 5, 6], [1], [2.5]])
def test_factors_that_make_no_sense_are_refused(factors: Any) -> None:
    with pytest.raises(ValueError, match="pass"):
        ncp.SamplingRate(factors=factors)
