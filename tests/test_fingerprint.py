"""What a run says of its conditions, so that only commensurable runs are compared."""

from __future__ import annotations

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks.fingerprint import batch_digest, fingerprint

rng = np.random.default_rng(0)
X = rng.normal(size=(6, 5, 3)).astype(np.float32)
DT = rng.uniform(0.5, 2, size=(6, 5)).astype(np.float32)
MASK = np.arange(5) < np.array([5, 4, 3, 5, 2, 5])[:, None]
NAMES = ["pulse", "age", "oxygen"]


def batch(**changes: object) -> ncp.HeldOutBatch:
    given = {
        "inputs": X, "time_delta": DT, "targets": np.arange(6), "mask": MASK,
        "feature_names": NAMES,
    }  # fmt: skip
    return ncp.HeldOutBatch(**{**given, **changes})  # type: ignore[arg-type]


def test_the_digest_of_one_batch_is_always_one() -> None:
    assert batch_digest(batch()) == batch_digest(batch())
    other_dtype = ncp.HeldOutBatch(mx.array(X), mx.array(DT), mx.arange(6), MASK, NAMES)
    assert batch_digest(batch()) == batch_digest(other_dtype)


def test_columns_in_another_order_are_the_same_batch() -> None:
    order = [2, 0, 1]
    turned = batch(inputs=X[..., order], feature_names=[NAMES[i] for i in order])
    assert batch_digest(turned) == batch_digest(batch())
    # The same columns under each other's names are not.
    assert batch_digest(batch(inputs=X[..., order])) != batch_digest(batch())


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": X + 1},
        {"inputs": X[::-1]},
        {"time_delta": DT * 2},
        {"time_delta": None},
        {"targets": np.arange(6)[::-1]},
        {"mask": None},
    ],
)
def test_any_other_data_is_another_batch(changes: dict[str, object]) -> None:
    assert batch_digest(batch(**changes)) != batch_digest(batch())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4), nn.Linear(4, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x))


def test_a_monitor_logs_batch_target_method_and_names() -> None:
    writer = ncp.MemoryWriter()
    held_out = batch(time_delta=None)
    callbacks = [
        ncp.GradientAttribution(),
        ncp.GradientAttribution(method="occlusion", name="removal"),
        ncp.StateTransitions(max_sequences=5),
        ncp.StateSpace(),
    ]
    with ncp.Monitor(Net(), held_out, callbacks, writer=writer, target="loss"):
        pass
    (text,) = [r.json for _, r in writer.records if r.tag == "_ncp/fingerprint"]
    assert json.loads(text) == {
        "held_out": batch_digest(held_out),
        "feature_names": NAMES,
        "target": "loss at last step",
        "method": {
            "attribution": "integrated_gradients from mean, elapsed time from mean",
            "removal": "occlusion from mean, elapsed time from mean",
            "transitions": "at most 5 sequences",
        },
    }
    assert text == fingerprint(held_out, callbacks, "loss at last step")


def test_equal_conditions_measure_the_same() -> None:
    def of(method: object, **options: object) -> str:
        return ncp.GradientAttribution(method=method, **options).conditions  # type: ignore[arg-type]

    from ncp_callbacks.attribution import IntegratedGradients, SmoothGrad

    ig = of("integrated_gradients")
    assert ig == of(IntegratedGradients(n_steps=50)) == of("integrated_gradients", baseline="mean")
    assert len({ig, of("occlusion"), of("integrated_gradients", baseline="zeros")}) == 3
    assert of("smooth_grad") != of(SmoothGrad(noise=0.9))
    given = [of("occlusion", baseline=b) for b in (np.ones(3), [1, 1, 1], np.zeros(3), np.ones(2))]
    assert given[0] == given[1]
    assert len(set(given)) == 3
