"""Principal axes without the neurons that are the outputs."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import numpy as np
import pytest
from ncps.wirings import AutoNCP, FullyConnected

import ncp_callbacks as ncp
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.observation import Need, Observation

B, T, F, UNITS, MOTOR = 16, 7, 3, 14, 3


class Seen(ncp.Callback):
    """Keeps the states and the outputs of a look."""

    needs = frozenset({Need.STATES})
    default_name = "seen"

    def measure(self, observation: Observation) -> Iterable[ncp.Record]:
        (cell,) = observation.states
        self.states, self.outputs = cell.values, observation.outputs
        return ()


def looked(model, **options):
    rng = np.random.default_rng(0)
    held_out = ncp.HeldOutBatch(
        rng.normal(size=(B, T, F)).astype(np.float32),
        rng.uniform(0.5, 2.0, (B, T)).astype(np.float32),
    )
    writer, seen = ncp.MemoryWriter(), Seen()
    callbacks = [seen, ncp.StateSpace(**options)]
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1) as monitor:
        for step in (1, 2):
            monitor.on_step_end(step)
    records = {}
    for _, record in writer.records:
        records[record.tag] = record
    return seen, records


def spectrum(states):
    """Variance shares by the singular values of the centred states."""
    flat = states.reshape(-1, states.shape[-1]).astype(np.float64)
    variances = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False) ** 2
    return variances / variances.sum()


def ltc():
    # Without a map of the outputs they are the motor neurons themselves.
    return LTC(F, AutoNCP(UNITS, MOTOR, seed=1), output_mapping=None)


MODELS = [
    ltc,
    lambda: LTC(F, FullyConnected(UNITS, MOTOR), output_mapping=None),
    lambda: CfC(F, AutoNCP(UNITS, MOTOR, seed=1)),
]


@pytest.mark.parametrize("make", MODELS)
def test_the_excluded_neurons_are_those_that_are_the_outputs(make):
    mx.random.seed(0)
    seen, records = looked(make(), exclude_motor=True)
    same = np.isclose(seen.states[..., :, None], seen.outputs[..., None, :], atol=1e-6)
    outputs = same.all(axis=(0, 1)).any(axis=1)
    assert outputs.sum() == MOTOR
    expected = spectrum(seen.states[..., ~outputs])
    found = records["_ncp/hidden_spectrum"].values
    assert found.shape == (UNITS - MOTOR,)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Leaving out others would show.
    for wrong in (np.arange(UNITS) < MOTOR, np.arange(UNITS) >= UNITS - MOTOR):
        if (wrong != outputs).any():
            assert np.abs(spectrum(seen.states[..., ~wrong]) - expected).max() > 1e-3
    points = records["hidden/states"].values
    assert points.shape[1] == UNITS - MOTOR


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (ltc, {}),
        (lambda: CfC(F, UNITS), {"exclude_motor": True}),
        # Nothing but motor neurons: there would be nothing left.
        (lambda: LTC(F, FullyConnected(UNITS, UNITS)), {"exclude_motor": True}),
    ],
)
def test_all_neurons_are_shown_unless_some_others_are_left(make, options):
    mx.random.seed(0)
    seen, records = looked(make(), **options)
    np.testing.assert_allclose(
        records["_ncp/hidden_spectrum"].values, spectrum(seen.states), atol=1e-6
    )
