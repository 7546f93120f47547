"""Tokens, and models that take more than the sequence."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy.special import logsumexp

import ncp_callbacks as ncp
from ncp_callbacks.models import CfC

B, T, F, S = 5, 6, 3, 2

# The attribution that these tests work out by hand.
FROM_ZERO = {"method": "input_x_gradient", "baseline": "zeros"}


class Words(nn.Module):
    """Tokens through an embedding, an LTC-like layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = {"table": nn.Embedding(11, 4)}
        self.rnn, self.head = CfC(4, 8, backbone_units=6), nn.Linear(8, 3)

    def __call__(self, tokens: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(self.deep["table"](tokens), time_delta)[0])


def words() -> tuple[Words, mx.array, mx.array]:
    mx.random.seed(0)
    model = Words()
    mx.eval(model.parameters())
    tokens = mx.random.randint(0, 11, (B, T), key=mx.random.key(1))
    return model, tokens, mx.random.uniform(0.5, 2.0, (B, T), key=mx.random.key(2))


def test_tokens_are_attributed_behind_the_embedding() -> None:
    model, tokens, dt = words()
    vectors = model.deep["table"](tokens)
    logits = model.head(model.rnn(vectors, dt)[0])[:, -1]
    chosen = np.array(logits.argmax(axis=-1))

    def target(v: mx.array) -> mx.array:
        # Log-odds: the logit less the logarithm of the sum of exp of the others.
        odds = mx.softmax(model.head(model.rnn(v, dt)[0])[:, -1], axis=1)
        own = mx.take_along_axis(odds, mx.array(chosen)[:, None], axis=1)
        return mx.log(own / (1 - own)).sum()

    by_hand = (np.array(mx.grad(target)(vectors)) * np.array(vectors)).sum(axis=-1)
    result = ncp.compute_temporal_importance(model, tokens, dt, **FROM_ZERO)
    assert result.shape == (T, 1)
    assert result.feature_names == ("token",)
    np.testing.assert_allclose(result[:, 0], np.abs(by_hand).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(result.signed[:, 0], by_hand.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_everything_else_works_with_tokens() -> None:
    model, tokens, dt = words()
    result = ncp.interpret_model(model, tokens, dt)
    states = np.array(model.rnn(model.deep["table"](tokens), dt)[0])
    assert result.sensitivity is not None
    assert result.states is not None
    centred = states.reshape(-1, 8) - states.reshape(-1, 8).mean(axis=0)
    spectrum = np.linalg.svd(centred, compute_uv=False) ** 2
    np.testing.assert_allclose(
        result.states.explained_variance_ratio, spectrum / spectrum.sum(), rtol=1e-4, atol=1e-6
    )
    doubled = np.array(model(tokens, 2 * dt))[:, -1]
    base = np.array(model(tokens, dt))[:, -1]
    others = np.arange(3) != base.argmax(axis=1)[:, None]

    def log_odds(logits: np.ndarray) -> np.ndarray:
        return logits[~others] - logsumexp(logits, axis=1, b=others)

    change = log_odds(doubled) - log_odds(base)
    np.testing.assert_allclose(
        result.sensitivity.rms_change[2], np.sqrt((change**2).mean()), rtol=1e-4
    )


def test_a_monitor_watches_tokens() -> None:
    model, tokens, dt = words()
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, ncp.HeldOutBatch(tokens, dt), writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        before = writer.scalars("attribution/strength")[0][1]
        model.deep["table"].weight = 2 * model.deep["table"].weight
        monitor.on_step_end(2)
    assert writer.scalars("attribution_share/token") == [(1, 1.0), (2, 1.0)]
    # The embedding that is looked behind is the one of that step, not of the first.
    assert writer.scalars("attribution/strength")[1][1] != pytest.approx(before)


class Beside(nn.Module):
    """A sequence and static features, by themselves or in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(F, 8, backbone_units=6), nn.Linear(8 + S, 1)

    def both(self, x: mx.array, static: mx.array, dt: mx.array | None) -> mx.array:
        h = self.rnn(x, dt)[0][:, -1]
        return self.head(mx.concatenate([h, static], axis=-1))


class AsDict(Beside):
    def __call__(self, batch: dict[str, mx.array], time_delta: mx.array | None = None) -> mx.array:
        return self.both(batch["x"], batch["static"], time_delta)


class AsKeywords(Beside):
    def __call__(self, *, x: mx.array, static: mx.array, dt: mx.array | None = None) -> mx.array:
        return self.both(x, static, dt)


class AsTuple(Beside):
    def __call__(
        self, inputs: tuple[mx.array, mx.array], timespans: mx.array | None = None
    ) -> mx.array:
        static, x = inputs
        return self.both(x, static, timespans)


class AsArguments(Beside):
    def __call__(
        self, static: mx.array, x: mx.array, timespans: mx.array | None = None
    ) -> mx.array:
        return self.both(x, static, timespans)


@pytest.mark.parametrize(
    ("cls", "pack"),
    [
        (AsDict, lambda x, s: {"x": x, "static": s}),
        (AsKeywords, lambda x, s: {"x": x, "static": s}),
        (AsTuple, lambda x, s: (s, x)),
        (AsTuple, lambda x, s: [s, x]),
        (AsArguments, lambda x, s: (s, x)),
    ],
)
def test_companions_of_the_sequence(cls: type[Beside], pack: Any) -> None:
    mx.random.seed(0)
    model = cls()
    x, static = mx.random.normal((B, T, F)), mx.random.normal((B, S))
    dt = mx.random.uniform(0.5, 2.0, (B, T))
    result = ncp.interpret_model(model, pack(x, static), dt, **FROM_ZERO)
    gradient = mx.grad(lambda v: model.both(v, static, dt).sum())(x)
    np.testing.assert_allclose(
        result.importance.importance,
        np.abs(np.array(x) * np.array(gradient)).mean(axis=0),
        rtol=1e-4,
        atol=1e-7,
    )
    assert result.sensitivity is not None
    change = np.array(model.both(x, static, 5 * dt) - model.both(x, static, dt))
    np.testing.assert_allclose(
        result.sensitivity.rms_change[-1], np.sqrt((change**2).mean()), rtol=1e-4
    )


def test_a_monitor_with_companions_and_targets() -> None:
    mx.random.seed(0)
    model, writer = AsDict(), ncp.MemoryWriter()
    batch = {"x": np.ones((B, T, F), np.float32), "static": np.ones((B, S))}
    held_out = ncp.HeldOutBatch(batch, 1.0, targets=np.arange(B, dtype=float))
    batch["static"][:] = 7.0  # frozen: what the caller does later does not matter
    with ncp.Monitor(model, held_out, writer=writer, every=1, target="loss") as monitor:
        monitor.on_step_end(1)
    x, static = mx.ones((B, T, F)), mx.ones((B, S))
    loss = (np.array(model.both(x, static, mx.ones((B, T))))[:, 0] - np.arange(B)) ** 2
    curve = next(r for _, r in writer.records if r.tag == "time_delta_loss/curve")
    assert isinstance(curve, ncp.Figure)
    assert curve.data.target_mean == pytest.approx(loss.mean(), rel=1e-4)


def test_forward_is_given_the_container() -> None:
    mx.random.seed(0)
    model = AsArguments()
    x, static = mx.random.normal((B, T, F)), mx.random.normal((B, S))

    def forward(model: Any, inputs: Any, time_delta: Any) -> Any:
        # What it is given shows in what it returns: its variables are those of a copy.
        return model(inputs["s"], inputs["x"], time_delta) * (type(inputs) is dict)

    def plain(model: Any, inputs: Any, time_delta: Any) -> Any:
        return model(inputs["s"], inputs["x"], time_delta)

    given = {"s": static, "x": x}
    found, expected = (
        ncp.compute_temporal_importance(model, given, 1.0, forward=function)
        for function in (forward, plain)
    )
    assert np.abs(np.array(found)).max() > 0
    np.testing.assert_array_equal(np.array(found), np.array(expected))


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({}, TypeError, "dict"),
        ({"a": np.ones((B, 2))}, ValueError, "one sequence"),
        ({"a": np.ones((B, T, F)), "b": np.ones((B, T, F))}, ValueError, "one sequence"),
        ({"a": np.ones((B, T, F)), "b": np.ones((B + 1, 2))}, ValueError, "'b'"),
        ({"a": np.ones((B, T, F)), "b": 3}, TypeError, r"inputs\['b'\] is a int"),
        (np.ones((B, T)), ValueError, r"\(5, 6\)"),
        (np.ones((B, T, F), np.int32), TypeError, "Tokens"),
    ],
)
def test_wrong_inputs_are_refused(inputs: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ncp.HeldOutBatch(inputs)
