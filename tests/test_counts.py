"""What a look asks of the model, in passes: numbers that don't depend on the machine."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.attribution import IntegratedGradients, SmoothGrad
from ncp_callbacks.model import ModelRunner, batching
from ncp_callbacks.models import CfC
from ncp_callbacks.plotting.page import Page
from ncp_callbacks.plotting.redraw import Redrawer

B, T, F = 6, 5, 3
# At the baseline all sequences are alike, so that two stand for all.
ALIKE = 2
POINTS = [B, B, B, B, ALIKE]
calls: list[int] = []


class Counted(nn.Module):
    """Notes the batch size of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(F, 8, backbone_units=6), nn.Linear(8, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        calls.append(len(x))
        return self.head(self.rnn(x, time_delta)[0])


@pytest.mark.parametrize(
    ("callbacks", "passes", "gradients"),
    [
        # One pass for all six, which is a point of the integrated gradients as well; three other
        # points, and the baseline; each feature and the elapsed times removed, and four blocks of
        # time; and the three scales other than 1 side by side.
        (None, [*POINTS, 4 * B, 4 * B, 3 * B], 4),
        ([ncp.GradientAttribution()], [*POINTS, 4 * B], 4),
        ([ncp.GradientAttribution(removal=0)], POINTS, 4),
        ([ncp.FeatureRemoval()], [*POINTS, 4 * B, 4 * B], 4),
        ([ncp.TimeSensitivity()], [B, 3 * B], 1),
        ([ncp.TimeSensitivity(scales=(0.5, 2))], [B, 2 * B], 1),
        ([ncp.StateTransitions()], [B], 0),
        ([ncp.StateSpace(), ncp.StateTransitions(), ncp.BackboneActivations()], [B], 0),
        ([], [], 0),
        # The pass for all, and the baseline.
        ("light", [B, ALIKE], 1),
        # Gradients of a third of the sequences take a pass of their own, of most they don't.
        (
            [ncp.GradientAttribution(max_sequences=2), ncp.StateTransitions()],
            [2, 3 * 2, 2, 4 * 2, B],
            2,
        ),
        (
            [ncp.GradientAttribution(max_sequences=4), ncp.StateTransitions()],
            [B, 4, 4, 4, ALIKE, 4 * 4],
            4,
        ),
        (
            [ncp.GradientAttribution(), ncp.StateTransitions(max_sequences=1)],
            [*POINTS, 4 * B],
            4,
        ),
        ([ncp.StateTransitions(max_sequences=3), ncp.StateSpace(max_sequences=2)], [3], 0),
        ([ncp.TimeSensitivity(max_sequences=2)], [2, 3 * 2], 1),
        # Eight steps side by side of three sequences (two of which fit into B), and the baseline.
        (
            [ncp.GradientAttribution(method=IntegratedGradients(8), max_sequences=3)],
            [3, B, B, B, B, ALIKE, 4 * 3],
            4,
        ),
        ([ncp.GradientAttribution(method=SmoothGrad(4))], [B, B, B, B, B], 4),
        # Features of one step side by side, the intervals of all steps likewise.
        (
            [ncp.GradientAttribution(method="occlusion", max_sequences=1)],
            [1, *[F] * T, T, 4],
            0,
        ),
    ],
)
def test_passes_of_one_snapshot(
    callbacks: list[ncp.Callback] | str | None, passes: list[int], gradients: int
) -> None:
    mx.random.seed(0)
    rng = np.random.default_rng(0)
    held_out = ncp.HeldOutBatch(
        rng.standard_normal((B, T, F)).astype(np.float32), rng.uniform(0.5, 2, (B, T))
    )
    writer = ncp.MemoryWriter()
    # As many sequences at once as the batch has, whatever memory there is.
    with ncp.Monitor(
        Counted(), held_out, callbacks, writer=writer, every=5, chunk_size=B
    ) as monitor:
        for step in range(1, 5):
            calls.clear()
            monitor.on_step_end(step)
            assert calls == []
        with mock.patch.object(mx, "grad", wraps=mx.grad) as grad:
            monitor.on_step_end(5)
        assert calls == passes
        assert grad.call_count == gradients


def test_passes_in_chunks() -> None:
    rng = np.random.default_rng(0)
    held_out = ncp.HeldOutBatch(rng.standard_normal((5, T, F)).astype(np.float32), 1.0)
    with ncp.Monitor(
        Counted(), held_out, writer=ncp.MemoryWriter(), every=1, chunk_size=2
    ) as monitor:
        calls.clear()
        monitor.on_step_end(1)
        seen = list(calls)
    # Three parts. Three points of the integrated gradients of each, and the baselines; without
    # gradients side by side: what is removed, the blocks of time, and the three scales.
    points = [2, 2, 2, 2, 2, 2, 1, 1, 1]
    assert seen == [2, 2, 1, *points, 2, 2, 1, 8, 8, 4, 8, 8, 4, 6, 6, 3]


def test_what_is_converted_drawn_queued_and_written(tmp_path: Path) -> None:
    """Of the standard set, at the second look and later: the first pays for what is kept."""
    rng = np.random.default_rng(0)
    held_out = ncp.HeldOutBatch(
        rng.standard_normal((B, T, F)).astype(np.float32), rng.uniform(0.5, 2, (B, T))
    )
    writer = ncp.TensorBoardWriter(tmp_path, flush_seconds=0.0)
    with ncp.Monitor(Counted(), held_out, writer=writer, every=1) as monitor:
        for step in range(1, 8):
            monitor.on_step_end(step)
        writer.flush()
        written = _size(tmp_path)
        with (
            mock.patch.object(batching, "to_numpy", wraps=batching.to_numpy) as converted,
            mock.patch.object(
                Page, "_new_axes", autospec=True, side_effect=Page._new_axes
            ) as framed,
            mock.patch.object(Redrawer, "png", autospec=True, side_effect=Redrawer.png) as drawn,
        ):
            for step in (8, 9, 10):
                monitor.on_step_end(step)
            writer.flush()
            added = _size(tmp_path) - written
    # Inputs, outputs, targets, two gradients, the values at scales and the initial state; of three
    # more points side by side the targets and two gradients, and the target of the baseline; and
    # what every hook shows, of all steps at once. Features and blocks are removed at every eighth.
    found = ModelRunner(Counted(), held_out).hook_points
    hook_points = len(found.cells) + len(found.layers)
    assert converted.call_count == 3 * (7 + 3 + 1 + hook_points) + 2
    # Four pictures and that of the findings, and once that of the removals.
    assert drawn.call_count == 3 * 5 + 1
    assert framed.call_count == 0
    assert added / 3 < 110_000
    assert writer.dropped_figures == writer.dropped_records == 0
    writer.close()


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
