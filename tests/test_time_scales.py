"""What a scan over time scales can't know: intervals never met, and the solver's own error."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from jackknife import ci_by_leaving_out
from scipy.special import logsumexp

import ncp_callbacks as ncp
from ncp_callbacks.callbacks.time_sensitivity.analysis import share_outside, solver_share
from ncp_callbacks.model.ode_unfolds import doubled_ode_unfolds
from ncp_callbacks.models import LTC, CfC

B, T, F = 12, 6, 2


def looked(model, dt, callback, mask=None):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, T, F)).astype(np.float32)
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(x, dt, mask=mask)
    with ncp.Monitor(model, held_out, [callback], writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        notes = list(monitor.notes)
    return (
        x,
        {
            t: writer.scalars(t)[-1][1]
            for t in writer.tags
            if t.startswith("time_delta/") and "curve" not in t
        },
        notes,
    )


def intervals():
    return np.random.default_rng(1).lognormal(0.0, 0.5, (B, T)).astype(np.float32)


def test_shares_outside_of_even_elapsed_times_are_those_of_the_line():
    # On [1, 2] doubled ones are in [2, 4], of which nearly none is below 1.99; tripled, none.
    even = np.linspace(1, 2, 100_001)[None]
    assert share_outside(even, 1.0) == pytest.approx(0.02, abs=1e-4)
    assert share_outside(even, 1.5) == pytest.approx(1 - (1.99 / 1.5 - 1), abs=1e-3)
    assert share_outside(even, 3.0) == 1.0
    assert share_outside(even, 0.75) == pytest.approx(1.01 / 0.75 - 1, abs=1e-3)


def test_padding_and_what_is_not_finite_do_not_count():
    dt = np.array([[1.0, 1.0, 1.0, np.nan, 100.0]])
    mask = np.array([[True, True, True, True, False]])
    assert share_outside(dt, 1.0, mask=mask) == 0.0
    assert share_outside(dt, 2.0, mask=mask) == 1.0
    assert np.isnan(share_outside(dt, 2.0, mask=np.zeros((1, 5), bool)))


def test_the_share_outside_is_logged_for_every_scale_but_one():
    dt = intervals()
    _, found, _ = looked(CfC(F, 4), dt, ncp.TimeSensitivity(scales=(0.5, 5)))
    low, high = np.quantile(dt.astype(np.float64), (0.01, 0.99))
    for scale in (0.5, 5):
        expected = ((dt * scale < low) | (dt * scale > high)).mean()
        assert found[f"time_delta/outside_x{scale:g}"] == pytest.approx(expected)
    assert "time_delta/outside_x1" not in found
    assert not any("solver" in tag for tag in found)


def test_solver_error_is_what_a_model_with_twice_the_sub_steps_does_otherwise():
    mx.random.seed(0)
    dt = 3 * intervals()
    model, finer = (LTC(F, 5, ode_unfolds=n) for n in (2, 4))
    finer.update(model.parameters())
    callback = ncp.TimeSensitivity(scales=(0.5, 5), solver_error=True)
    x, found, notes = looked(model, dt, callback)

    def last(of, scale):
        outputs, _ = of(mx.array(x), mx.array(dt * np.float32(scale)))
        return np.array(outputs)[:, -1].astype(np.float64)

    # The outputs that are followed are those of the model as it is.
    chosen = last(model, 1).argmax(axis=1)
    others = np.arange(5) != chosen[:, None]

    def log_odds(outputs):
        return outputs[~others] - logsumexp(outputs, axis=1, b=others)

    own, other = ({s: log_odds(last(of, s)) for s in (0.5, 1, 5)} for of in (model, finer))
    for scale in (0.5, 5):
        altered = (other[scale] - other[1]) - (own[scale] - own[1])
        expected = np.sqrt((altered**2).mean()) / own[1].std()
        assert expected > 1e-3
        assert found[f"time_delta/solver_error_x{scale:g}"] == pytest.approx(expected, rel=1e-3)
    assert model.cell.ode_unfolds == 2
    assert not any("solver" in note for note in notes)


def test_a_model_without_a_solver_is_reported_once():
    callback = ncp.TimeSensitivity(solver_error=True)
    _, found, notes = looked(CfC(F, 4), intervals(), callback)
    assert sum("ode_unfolds" in note for note in notes) == 1
    assert not any("solver" in tag for tag in found)


def test_the_number_of_sub_steps_comes_back_when_a_pass_fails():
    model = LTC(F, 5)

    def fails():
        with doubled_ode_unfolds(model):
            assert model.cell.ode_unfolds == 12
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert model.cell.ode_unfolds == 6


def test_no_sd_no_solver_share():
    same = {1.0: np.ones(3), 2.0: np.full(3, 2.0)}
    assert np.isnan(solver_share(same, same, 2.0))
    apart = {1.0: np.array([0.0, 2.0]), 2.0: np.array([1.0, 3.0])}
    finer = {1.0: np.array([0.0, 2.0]), 2.0: np.array([1.5, 2.5])}
    assert solver_share(apart, finer, 2.0) == pytest.approx(0.5)


class Timed(nn.Module):
    """Outputs that are known: the running sum of ``inputs * time_delta``, of all features."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = mx.ones((1,))

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return mx.cumsum(x * time_delta[..., None], axis=1) * self.gain


def losses(targets, model=None, scales=(0.5, 2), mask=None, max_sequences=None, **options):
    x = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(x, intervals(), targets=targets, mask=mask)
    callback = ncp.TimeSensitivity(scales=scales, max_sequences=max_sequences)
    with ncp.Monitor(
        model or Timed(), held_out, [callback], writer=writer, every=1, **options
    ) as monitor:
        monitor.on_step_end(1)
    records = {r.tag: r for _, r in writer.records if isinstance(r, ncp.Scalar)}
    found = {tag: record for tag, record in records.items() if "/loss_x" in tag}
    return x.astype(np.float64), found


def sums(x, scale):
    return np.cumsum(x * scale * intervals().astype(np.float64)[..., None], axis=1)


def test_the_loss_at_every_scale_is_the_squared_error_by_hand():
    targets = np.random.default_rng(2).normal(size=(B, T, F)).astype(np.float32)
    mask = np.arange(T) < np.random.default_rng(3).integers(2, T + 1, B)[:, None]
    last = mask.sum(axis=1) - 1
    rows = np.arange(B)
    x, found = losses(targets, mask=mask)
    assert set(found) == {f"time_delta/loss_x{s}" for s in ("0.5", "1", "2")}
    for scale in (0.5, 1, 2):
        error = ((sums(x, scale) - targets)[rows, last] ** 2).mean(axis=-1)
        record = found[f"time_delta/loss_x{scale:g}"]
        assert record.value == pytest.approx(error.mean(), rel=1e-4)
        assert record.ci == pytest.approx(ci_by_leaving_out(np.mean, error, "log"), rel=1e-3)


def test_the_loss_at_every_scale_is_the_cross_entropy_by_hand_at_the_targets_own_steps():
    classes = np.random.default_rng(2).integers(0, F, B)
    x, found = losses(classes, at=3, target=1)
    for scale in (0.5, 1, 2):
        logits = sums(x, scale)[:, 3]
        expected = (logsumexp(logits, axis=1) - logits[np.arange(B), classes]).mean()
        value = found[f"time_delta_output1_at3/loss_x{scale:g}"].value
        assert value == pytest.approx(expected, rel=1e-4)


def test_a_time_at_which_the_model_is_right_is_where_the_loss_is_least():
    x = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
    _, found = losses(sums(x.astype(np.float64), 2).astype(np.float32))
    assert found["time_delta/loss_x2"].value == pytest.approx(0.0, abs=1e-9)
    # Errors are proportional to 2 - scale.
    half, one = (found[f"time_delta/loss_x{s}"].value for s in ("0.5", "1"))
    assert half / one == pytest.approx(1.5**2, rel=1e-4)


@pytest.mark.parametrize("limit", [None, 5])
def test_losses_of_limited_sequences_are_theirs(limit):
    targets = np.random.default_rng(2).normal(size=(B, T, F)).astype(np.float32)
    x, found = losses(targets, max_sequences=limit, chunk_size=4)
    rows = ncp.HeldOutBatch(x.astype(np.float32)).spread(limit or B)
    error = ((sums(x, 2) - targets)[rows, -1] ** 2).mean()
    assert found["time_delta/loss_x2"].value == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(
    ("targets", "options"),
    [
        (None, {}),
        (np.zeros((B, T, F), np.float32), {"target": "loss"}),
        # Only a loss of one's own can use these.
        (np.zeros((B, 7), np.float32), {}),
        ({"a": np.zeros(B)}, {}),
    ],
)
def test_no_loss_without_targets_that_fit_or_twice(targets, options):
    assert losses(targets, **options)[1] == {}
