"""Test which tokens the target rests on."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from test_findings import n, of

import ncp_callbacks as ncp
from ncp_callbacks.attribution import Attribution, InputXGradient
from ncp_callbacks.callbacks.gradient_attribution.tokens import MAX_TOKENS, token_shares
from ncp_callbacks.findings import RunFacts
from ncp_callbacks.stats import SHARE, Estimate

TOKENS = np.array([[7, 3, 7, 3], [7, 5, 5, 9], [3, 3, 9, 9]])
REAL = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]], bool)
VALUES = np.array([[0.5, 1.0, -1.5, 2.0], [-3.0, 0.5, 0.5, 0.0], [1.0, -3.0, 9.0, 9.0]])


def shares_of(values: Any, tokens: Any = TOKENS, real: Any = REAL, **method: Any) -> Any:
    attribution = Attribution(method.get("method", InputXGradient()), np.array(values)[..., None])
    return token_shares(attribution, tokens, real)


def test_shares_of_tokens_by_hand() -> None:
    """Within a sequence, pushes of a token add up with their signs."""
    found = shares_of(VALUES)
    # 7: |0.5 - 1.5| + |-3| = 4. 3: |1 + 2| + |1 - 3| = 5. 5: |0.5 + 0.5| = 1. 9: 0, and padding.
    assert found[:, 0].tolist() == [3, 7, 5, 9]
    np.testing.assert_allclose(found[:, 1], [0.5, 0.4, 0.1, 0.0], atol=1e-12)
    # Of 10 real time steps.
    np.testing.assert_allclose(found[:, 4], [0.4, 0.3, 0.2, 0.1], atol=1e-12)
    by_sequence = np.array([[3.0, 1, 0], [0, 3, 1], [2, 0, 0]])
    for row, parts in zip(found, by_sequence.T, strict=False):
        own = Estimate.ratio(parts, by_sequence.sum(axis=1), SHARE)
        assert row[2:4].tolist() == pytest.approx(own.ci() or (np.nan, np.nan), nan_ok=True)


def test_slopes_don_t_cancel() -> None:
    method = ncp.GradientAttribution(method="gradient")._attributor.method
    found = shares_of(VALUES, method=method)
    # 7: 0.5 + 1.5 + 3 = 5. 3: 1 + 2 + 1 + 3 = 7. 5: 1.
    assert found[:, 0].tolist() == [3, 7, 5, 9]
    np.testing.assert_allclose(found[:, 1], np.array([7, 5, 1, 0]) / 13, atol=1e-12)


def test_sequences_that_are_not_finite_are_skipped() -> None:
    values = VALUES.copy()
    values[1, 3] = np.nan
    values[2, 3] = np.nan  # That is padding.
    found = shares_of(values)
    # 7: |0.5 - 1.5| = 1. 3: 5. Of 6 real time steps, 4 have 3.
    assert found[:, 0].tolist() == [3, 7]
    np.testing.assert_allclose(found[:, 1], [5 / 6, 1 / 6])
    np.testing.assert_allclose(found[:, 4], [4 / 6, 2 / 6])
    assert shares_of(np.zeros((3, 4))) is None
    assert shares_of(np.full((3, 4), np.nan)) is None


def test_the_tokens_that_carry_most_are_kept() -> None:
    tokens = np.arange(40).reshape(2, 20)
    found = shares_of(np.arange(40.0).reshape(2, 20), tokens, np.ones((2, 20), bool))
    assert found[:, 0].tolist() == list(range(39, 39 - MAX_TOKENS, -1))
    np.testing.assert_allclose(found[:, 1], found[:, 0] / (39 * 40 / 2))


PUSHES = np.arange(10) * 0.37 - 1.2


class Bag(nn.Module):
    """Each token adds a number of its own to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 2)
        self.emb.weight = mx.array(np.stack([PUSHES, np.ones(10)], axis=1), mx.float32)

    def __call__(self, tokens: mx.array) -> mx.array:
        return (self.emb(tokens) * mx.array([2.0, 0.5])).sum(axis=(1, 2))[:, None]


def test_a_run_names_the_tokens_that_its_output_rests_on() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 10, (24, 6))
    writer, held_out = ncp.MemoryWriter(), ncp.HeldOutBatch(tokens)
    callback = ncp.GradientAttribution(method="input_x_gradient", baseline="zeros")
    with ncp.Monitor(Bag(), held_out, [callback], writer=writer, background=False) as monitor:
        monitor.on_step_end(100)
    (rows,) = [
        r.values for step, r in writer.records
        if step and isinstance(r, ncp.Array) and r.tag == "_ncp/attribution_tokens"
    ]  # fmt: skip
    # A token adds twice its push and 0.5, each time that it occurs.
    own = np.abs(2 * PUSHES + 0.5) * np.bincount(tokens.ravel(), minlength=10)
    order = np.argsort(-own, kind="stable")
    assert rows[:, 0].tolist() == order.tolist()
    np.testing.assert_allclose(rows[:, 1], own[order] / own.sum(), rtol=1e-5)
    (found,) = [f for f in monitor.findings if f.rule == "rests_on"]
    share, often = own.max() / own.sum(), (tokens == order[0]).mean()
    start = f"Of the attribution to inputs, token {order[0]} has {100 * share:.0f} % ["
    assert found.sentence.startswith(start)
    assert f"] with {100 * often:.0f} % of the time steps" in found.sentence


def test_the_sentence_on_tokens() -> None:
    run = RunFacts(feature_names=("token",), callbacks={"attribution": "attribution"})

    def sentence(rows: list[list[float]]) -> str:
        facts: Any = {
            "numbers": {"attribution/strength": n(1), "attribution_share/token": n(1)},
            "arrays": {"_ncp/attribution_tokens": np.array(rows)},
        }
        return " ".join(finding.sentence for finding in of("rests_on", run, **facts))

    rows = [[17, 0.5, 0.4, 0.6, 0.1], [3, 0.31, 0.2, 0.4, 0.3], [8, 0.1, 0.05, 0.2, 0.05]]
    # After two, 81 % are named.
    assert sentence(rows) == (
        "Of the attribution to inputs, token 17 has 50 % [40, 60] with 10 % of the time steps and "
        "token 3 31 % [20, 40] with 30 %."
    )
    assert "token 8" in sentence([rows[0], [3, 0.2, 0.1, 0.3, 0.3], rows[2]])
