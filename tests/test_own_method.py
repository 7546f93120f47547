"""A method of the user's own, where every method can be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy.stats import spearmanr

import ncp_callbacks as ncp
from ncp_callbacks.attribution import AttributionMaps, AttributionMethod, PassCount


# What a user writes: these 15 lines.
@dataclass(frozen=True)
class Midpoint(AttributionMethod):
    """Take the gradient halfway between the baseline and the inputs."""

    name: ClassVar[str] = "midpoint"
    label: ClassVar[str] = "midpoint gradient"
    complete: ClassVar[bool] = True
    where: float = 0.5

    def extra_passes(self, n_time_steps, n_features, *, takes_time):
        return PassCount(forward=1, gradient=1)

    def attribute(self, evaluate, inputs, time_delta, *, baseline, time_baseline, mask):
        middle = baseline + self.where * (inputs - baseline)
        gradient = evaluate(middle[None], gradient=True).input_gradient[0]
        return AttributionMaps((inputs - baseline) * gradient)


# What is tested of it.
B, T, F = 16, 5, 3


class Powers(nn.Module):
    """The sum of weighted powers, linear or cubic."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power
        self.w = mx.array(np.random.default_rng(3).normal(size=(T, F)).astype(np.float32))

    def __call__(self, x: mx.array) -> mx.array:
        return (self.w * x**self.power).sum(axis=(1, 2))[:, None]


def inputs() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 2.0, (B, T, F)).astype(np.float32)


def logged(callback: ncp.Callback, power: int) -> tuple[ncp.MemoryWriter, list[str], np.ndarray]:
    x, writer, model = inputs(), ncp.MemoryWriter(), Powers(power)
    with ncp.Monitor(
        model, ncp.HeldOutBatch(x), [callback], writer=writer, every=1, on_error="raise"
    ) as monitor:
        monitor.on_step_end(1)
        return (
            writer,
            list(monitor.notes),
            np.array(model.w, np.float64) * x.astype(np.float64) ** power,
        )


def test_own_method_in_gradient_attribution() -> None:
    callback = ncp.GradientAttribution(method=Midpoint(), baseline="zeros", agreement=Midpoint(0.4))
    writer, notes, terms = logged(callback, 3)
    # The slope of a cube halfway is 3/4 of the mean slope: a quarter of each sum is missing.
    total = terms.sum(axis=(1, 2))
    errors = np.abs(0.25 * total) / np.sqrt(np.mean(total**2))
    ((_, strength),) = writer.scalars("attribution/strength")
    assert strength == pytest.approx(0.75 * np.abs(terms).sum(axis=(1, 2)).mean(), rel=1e-5)
    ((_, error),) = writer.scalars("attribution/completeness_error")
    assert error == pytest.approx(np.quantile(errors, 0.99), rel=1e-4)
    assert writer.scalars("attribution/incomplete") == [(1, (errors > 0.05).mean())]
    assert writer.scalars("attribution/extra_passes") == [(1, 2)]
    # On 8 sequences, the other map from its default baseline: the mean of the whole batch.
    x = inputs().astype(np.float64)
    some, mean, w = ncp.HeldOutBatch(x).spread(8), x.mean(axis=(0, 1)), terms[0] / x[0] ** 3
    other = (x - mean) * 3 * w * (mean + 0.4 * (x - mean)) ** 2
    maps = (np.abs(a[some]).mean(axis=0).ravel() for a in (terms, other))
    assert writer.scalars("attribution/agreement") == [(1, pytest.approx(spearmanr(*maps)[0]))]
    (note,) = (note for note in notes if "don't sum to the change" in note)
    assert "Set another baseline= or another method=" in note
    (figure,) = (r for _, r in writer.records if r.tag == "attribution/heatmap")
    assert figure.description.startswith("Midpoint gradient of the ")
    assert "Unit: units of the target." in figure.description


def test_own_method_that_is_exact_has_no_note() -> None:
    writer, notes, _ = logged(ncp.GradientAttribution(method=Midpoint(), baseline="zeros"), 1)
    assert writer.scalars("attribution/completeness_error")[0][1] < 1e-5
    assert writer.scalars("attribution/incomplete") == [(1, 0.0)]
    assert not any("don't sum" in note for note in notes)


def test_own_method_in_faithfulness() -> None:
    writer, _, terms = logged(ncp.Faithfulness(method=Midpoint(), baseline="zeros"), 1)
    # Of a linear model the map is what removing does, exactly.
    assert writer.scalars("faithfulness/infidelity")[0][1] == pytest.approx(0.0, abs=1e-6)
    some = ncp.HeldOutBatch(terms).spread(8)
    change = np.sqrt(np.mean(terms[some].sum(axis=(1, 2)) ** 2))
    assert writer.scalars("faithfulness/change") == [(1, pytest.approx(change, rel=1e-5))]
    assert writer.scalars("faithfulness/sequences") == [(1, 8)]


def test_own_method_in_sanity_check() -> None:
    writer, _, terms = logged(
        ncp.SanityCheck(method=Midpoint(), baseline="zeros", max_sequences=None), 1
    )
    ((_, strength),) = writer.scalars("sanity_check/strength")
    assert strength == pytest.approx(np.abs(terms).sum(axis=(1, 2)).mean(), rel=1e-5)
    assert writer.scalars("sanity_check/completeness_error")[0][1] < 1e-5
    assert writer.scalars("sanity_check/rank_correlation")[0][1] < 1.0


def test_own_method_offline() -> None:
    x, model = inputs(), Powers(1)
    found = ncp.compute_temporal_importance(model, x, method=Midpoint(), baseline="zeros")
    assert (found.method, found.label) == ("midpoint", "midpoint gradient")
    expected = np.abs(np.array(model.w) * x).mean(axis=0)
    np.testing.assert_allclose(found.importance, expected, rtol=1e-5)
