"""Test how far back gradients reach, against closed forms of leaky units."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from promises import told

import ncp_callbacks as ncp
from ncp_callbacks.analysis import gradient_reach

B, T = 17, 24
X = np.random.default_rng(0).standard_normal((B, T, 2)).astype(np.float32)
WEIGHT = np.array([2.0, -1.0])


class Cell(nn.Module):
    """Independent leaky units, each of which adds up one input."""

    def __init__(self, keep: tuple[float, float]) -> None:
        super().__init__()
        self.keep = mx.array(keep)

    def __call__(self, x: mx.array, h: mx.array) -> mx.array:
        return self.keep * h + x


class Leaky(nn.Module):
    """A linear read-out of leaky units."""

    def __init__(self, *keep: float) -> None:
        super().__init__()
        self.cell, self.weight = Cell(keep), mx.array(WEIGHT.astype("f"))  # type: ignore[arg-type]

    def __call__(self, x: mx.array) -> mx.array:
        h, out = mx.zeros((len(x), 2)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append((h * self.weight).sum(axis=-1, keepdims=True))
        return mx.stack(out, axis=1)


def logged(model: nn.Module, held_out: ncp.HeldOutBatch, **options: Any) -> Any:
    writer = ncp.MemoryWriter()
    callback = ncp.GradientReach(max_sequences=None, **options)
    with ncp.Monitor(model, held_out, [callback], writer=writer, every=1, background=False) as m:
        m.on_step_end(1)
        assert told(m.notes) == ()
    return {record.tag: record for step, record in writer.records if step}


@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_an_exponential_falls_to_1_over_e_where_it_must(rate: float) -> None:
    found = logged(Leaky(rate, rate), ncp.HeldOutBatch(X))
    curve = found["_ncp/gradient_reach_curve"].values
    np.testing.assert_allclose(curve, rate ** np.arange(T), rtol=1e-4)
    assert found["gradient_reach/steps"].value == pytest.approx(-1 / np.log(rate), rel=1e-4)
    assert found["gradient_reach/first_step"].value == pytest.approx(rate ** (T - 1), rel=1e-3)


def test_sequences_of_other_lengths_are_pooled() -> None:
    lengths = np.random.default_rng(1).integers(3, T + 1, B)
    mask = np.arange(T) < lengths[:, None]
    keep = np.array([0.9, 0.6])
    found = logged(Leaky(*keep), ncp.HeldOutBatch(X, mask=mask))
    squares = ((WEIGHT * keep ** np.arange(T)[:, None]) ** 2).sum(axis=1)
    curve = found["_ncp/gradient_reach_curve"].values
    np.testing.assert_allclose(curve, np.sqrt(squares / squares[0])[: lengths.max()], rtol=1e-4)
    first = np.exp(0.5 * np.log(squares[lengths - 1] / squares[0]).mean())
    record = found["gradient_reach/first_step"]
    assert record.value == pytest.approx(first, rel=1e-4)
    assert record.ci is not None
    assert record.ci[0] < first < record.ci[1]


def test_a_growing_gradient_does_not_fade() -> None:
    found = logged(Leaky(1.1, 1.1), ncp.HeldOutBatch(X))
    assert found["gradient_reach/first_step"].value == pytest.approx(1.1 ** (T - 1), rel=1e-4)
    assert (found["gradient_reach/steps"].value, found["gradient_reach/steps"].ci) == (T - 1, None)


def test_the_loss_of_a_linear_model_has_the_reach_of_its_output() -> None:
    targets = np.random.default_rng(2).normal(size=(B, 1)).astype("f")
    found = logged(Leaky(0.9, 0.6), ncp.HeldOutBatch(X, targets=targets), target="loss")
    squares = ((WEIGHT * np.array([0.9, 0.6]) ** np.arange(T)[:, None]) ** 2).sum(axis=1)
    (curve,) = [r.values for tag, r in found.items() if tag.endswith("_curve")]
    np.testing.assert_allclose(curve, np.sqrt(squares / squares[0]), rtol=1e-4)


def test_lags_are_counted_from_the_last_state_that_the_target_depends_on() -> None:
    gradient = np.zeros((3, 6, 2))
    gradient[:, :4, 0] = [1.0, 2.0, 4.0, 8.0]
    gradient[2] = 0.0
    gradient[1, 0] = np.nan
    result = gradient_reach(gradient)
    assert result is not None
    np.testing.assert_allclose(result.curve, [1, 0.5, 0.25, 0.125])
    assert (result.sequences, result.non_finite) == (1, 1)
    assert result.first_step == pytest.approx(0.125)
    assert result.steps == pytest.approx(1 / np.log(2))
    assert gradient_reach(gradient[2:]) is None
