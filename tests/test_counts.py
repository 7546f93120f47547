"""What a look asks of the model, in passes: numbers that don't depend on the machine."""

from __future__ import annotations

from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.models import CfC

B, T, F = 6, 5, 3
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
        # One pass for all five, and one with the three scales other than 1 side by side.
        (None, [B, 3 * B], 1),
        ([ncp.GradientAttribution()], [B], 1),
        ([ncp.TimeSensitivity()], [B, 3 * B], 1),
        ([ncp.TimeSensitivity(scales=(0.5, 2))], [B, 2 * B], 1),
        ([ncp.StateTransitions()], [B], 0),
        ([ncp.StateSpace(), ncp.StateTransitions(), ncp.BackboneActivations()], [B], 0),
        ([], [], 0),
    ],
)
def test_passes_of_one_look(
    callbacks: list[ncp.Callback] | None, passes: list[int], gradients: int
) -> None:
    mx.random.seed(0)
    rng = np.random.default_rng(0)
    held_out = ncp.HeldOutBatch(
        rng.standard_normal((B, T, F)).astype(np.float32), rng.uniform(0.5, 2, (B, T))
    )
    writer = ncp.MemoryWriter()
    with ncp.Monitor(Counted(), held_out, callbacks, writer=writer, every=5) as monitor:
        for step in range(1, 5):
            calls.clear()
            monitor.on_step_end(step)
            assert calls == []
        with mock.patch.object(mx, "grad", wraps=mx.grad) as grad:
            monitor.on_step_end(5)
        assert calls == passes
        assert grad.call_count == gradients
