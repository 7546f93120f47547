"""Test that shares of features don't fool anybody, or that the callback says so.

The share of a nuisance is small, or a note of the callback that logs it names the doubt.
"""

from __future__ import annotations

import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scripts import script

import ncp_callbacks as ncp

traps = script("traps")
N, T, NUISANCE, TRAPS = traps.N, traps.T, traps.NUISANCE, traps.TRAPS
Formula, inputs_of, mean = traps.Formula, traps.inputs_of, traps.mean


def analysed(
    model: nn.Module, held_out: ncp.HeldOutBatch, callback: ncp.Callback | None = None
) -> tuple[dict[str, float], list[str]]:
    """Return the numbers of a snapshot, and the notes of the attribution."""
    writer, callback = ncp.MemoryWriter(), callback or ncp.GradientAttribution()
    with ncp.Monitor(model, held_out, [callback], writer=writer) as monitor:
        monitor.on_step_end(100)
    numbers = {r.tag: r.value for step, r in writer.records if step and isinstance(r, ncp.Scalar)}
    return numbers, [note for note in monitor.notes if note.startswith("attribution")]


@pytest.mark.parametrize("name", TRAPS)
def test_a_nuisance_has_a_small_share_or_the_callback_says_so(name: str) -> None:
    trap = TRAPS[name]
    numbers, notes = analysed(Formula(trap.function), ncp.HeldOutBatch(inputs_of(trap)))
    share = numbers[f"attribution_share/feature {NUISANCE}"]
    disagree = [note for note in notes if "disagree beyond chance" in note]
    if not trap.noted:
        assert share <= 0.10
        assert not [note for note in disagree if f"feature {NUISANCE} " in note]
    elif share > 0.10:
        assert disagree
        assert f"feature {NUISANCE} " in disagree[0]
        assert numbers["attribution/disputed"] >= 1


@pytest.mark.parametrize("name", [name for name, trap in TRAPS.items() if trap.noted])
def test_removal_is_right_where_gradients_are_not(name: str) -> None:
    trap = TRAPS[name]
    held_out = ncp.HeldOutBatch(inputs_of(trap))
    numbers, _ = analysed(Formula(trap.function), held_out, ncp.FeatureRemoval())
    assert numbers[f"removal_share/feature {NUISANCE}"] <= 0.20


def test_the_picture_says_at_which_step_features_were_removed() -> None:
    """Where they aren't removed at each snapshot, the share by removal is of an earlier one."""
    name = next(name for name, trap in TRAPS.items() if trap.noted)
    writer, callback = ncp.MemoryWriter(), ncp.GradientAttribution(removal=3)
    held_out = ncp.HeldOutBatch(inputs_of(TRAPS[name]))
    options = {"writer": writer, "every": 10, "background": False}
    with ncp.Monitor(Formula(TRAPS[name].function), held_out, [callback], **options) as monitor:
        for step in range(10, 60, 10):
            monitor.on_step_end(step)
    titles = {
        step: " ".join(text.get_text() for text in figure.plot(figure.data, **figure.options).texts)
        for step, figure in writer.records
        if isinstance(figure, ncp.Figure) and figure.tag == "attribution/heatmap"
    }
    assert all(re.search(r"by removal \d+% · step", title) for title in titles.values())
    said = {step: re.search(r"removal is that of step (\d+)", t) for step, t in titles.items()}
    found = {step: match and f" at step {match[1]}" for step, match in said.items()}
    # At the first and each third one after it; and the numbers at the end of the run, too.
    assert found == {
        10: None, 20: " at step 10", 30: " at step 10", 40: None, 50: " at step 40",
    }  # fmt: skip
    disputed = [step for step, _ in writer.scalars("attribution/disputed")]
    assert disputed == [10, 40, 50]


def test_a_small_disagreement_is_no_note() -> None:
    """Models that gradients describe well don't cry wolf."""
    for function in (
        lambda x: 3 * mean(x, 0) + mean(x, 1) + 0.5 * x[:, -1, 2],
        lambda x: mx.tanh(mean(x, 0)) + mx.sigmoid(2 * mean(x, 1)),
    ):
        numbers, notes = analysed(Formula(function), ncp.HeldOutBatch(inputs_of(TRAPS["square"])))
        assert notes == []
        assert numbers["attribution/disputed"] == 0


class Timed(nn.Module):
    """Depend on elapsed times, and hardly on inputs."""

    def __init__(self, steep: float) -> None:
        super().__init__()
        self.one, self.steep = mx.ones(1), steep

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        when = mx.tanh(self.steep * (time_delta.mean(axis=1) - 1))
        return (self.one * when + 0.01 * x[:, -1, NUISANCE])[:, None]


@pytest.mark.parametrize("steep", [1.0, 50.0])
def test_shares_of_features_are_not_read_as_the_whole_where_time_decides(steep: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, T, 3)).astype("f")
    dt = rng.uniform(0.2, 1.8, (N, T)).astype("f")
    numbers, notes = analysed(Timed(steep), ncp.HeldOutBatch(x, dt))
    assert numbers["attribution/time_share"] > 0.8
    assert numbers["attribution_share/feature 1"] > 0.9
    assert any("nearly all is attributed to elapsed times" in note for note in notes)


def test_input_x_gradient_of_the_light_set_logs_its_completeness_error() -> None:
    """It is complete for a linear model, and a note says so where the model has levelled off."""
    light = ncp.callbacks.callback_set("light")[0]
    x = inputs_of(TRAPS["offset"])
    numbers, notes = analysed(Formula(TRAPS["offset"].function), ncp.HeldOutBatch(x), light)
    assert numbers["attribution_share/feature 1"] <= 0.10
    assert numbers["attribution/completeness_error"] == pytest.approx(0, abs=1e-3)
    assert notes == []
    trap = TRAPS["saturated"]
    light = ncp.callbacks.callback_set("light")[0]
    held_out = ncp.HeldOutBatch(inputs_of(trap))
    numbers, notes = analysed(Formula(trap.function), held_out, light)
    assert numbers["attribution/incomplete"] > 0.5
    assert any("integrated_gradients" in note for note in notes)
