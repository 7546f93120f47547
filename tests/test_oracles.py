"""Whole looks at models whose states and gradients are known in closed form.

Each unit of the bank is a leaky integrator of a held input,
``h_k = a_k h_{k-1} + (1 - a_k) (W x_k)`` with ``a_k = exp(-dt_k / tau)``. With elapsed times
``c_k`` its state is the sum over ``j`` of ``exp(-(c_k - c_j) / tau) (1 - a_j) W x_j``, and all
gradients follow from that.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy.special import expit, log_softmax, roots_jacobi, softmax
from sklearn.decomposition import PCA

from ncp_callbacks import (
    HeldOutBatch,
    Need,
    StateTransitionAnalyzer,
    analyze_time_sensitivity,
    compute_temporal_importance,
    interpret_model,
    passes,
    visualize_hidden_states,
)
from ncp_callbacks.model import ModelRunner

B, T, F, H, O = 4, 6, 3, 5, 2  # noqa: E741
SCALES = (0.25, 0.5, 2.0, 5.0)
CELL = "anything.deep.0"

# The attribution of most closed forms.
FROM_ZERO = {"method": "input_x_gradient", "baseline": "zeros"}


def close(actual, expected, tolerance=2e-5):
    """Equal up to a share of the largest value: what float32 can promise of a sum."""
    expected = np.asarray(expected, np.float64)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance * largest)


pytestmark = pytest.mark.filterwarnings("error")

# --- the bank, in MLX


class Leaky(nn.Module):
    def __init__(self, w, tau):
        super().__init__()
        self.w, self.tau = mx.array(w, mx.float32), mx.array(tau, mx.float32)

    def __call__(self, x, state, dt):
        a = mx.exp(-dt / self.tau)
        state = a * state + (1 - a) * (x @ self.w.T)
        return state, state


class Holder(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.deep = [cell]


class Bank(nn.Module):
    """Outputs of every step, or of the last one; ``dims`` is what it insists on for intervals."""

    def __init__(self, p, per_step=True, dims=2):
        super().__init__()
        self.anything = Holder(Leaky(p.w, p.tau))
        self.readout = mx.array(p.v, mx.float32)
        self.start = mx.array(p.start, mx.float32)
        self.per_step, self.dims = per_step, dims

    def run(self, x, dt):
        assert dt.ndim == self.dims
        dt = dt.reshape(*x.shape[:2], 1)
        state = mx.broadcast_to(self.start, (x.shape[0], self.start.shape[0]))
        states = []
        for t in range(x.shape[1]):
            out, state = self.anything.deep[0](x[:, t], state, dt[:, t])
            states.append(out)
        states = mx.stack(states, axis=1) if self.per_step else states[-1]
        return states @ self.readout.T


class TimeDeltaBank(Bank):
    def __call__(self, x, time_delta=None):
        return self.run(x, time_delta)


class TimespansBank(Bank):
    def __call__(self, x, hidden=None, timespans=None):
        return self.run(x, timespans), hidden


class DtBank(Bank):
    def __call__(self, x, *, dt):
        return {"outputs": self.run(x, dt)}


class ElapsedBank(Bank):
    def __call__(self, x, elapsed, /):
        return [self.run(x, elapsed)]


class AnyKeywordBank(Bank):
    def __call__(self, x, **more):
        return self.run(x, more["delta_t"])


BANKS = [TimeDeltaBank, TimespansBank, DtBank, ElapsedBank, AnyKeywordBank]


# --- the bank, in closed form


@dataclass
class Parameters:
    w: np.ndarray
    tau: np.ndarray
    v: np.ndarray
    start: np.ndarray


def parameters(outputs=O, start=True, seed=0):
    rng = np.random.default_rng(seed)
    return Parameters(
        w=rng.normal(size=(H, F)),
        tau=rng.uniform(0.5, 4.0, H),
        v=rng.normal(size=(outputs, H)),
        start=rng.normal(size=H) * start,
    )


def data(seed=1):
    """Values that float32 holds exactly, so that both sides see the same numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, T, F)).astype(np.float32)
    dt = rng.exponential(1.0, size=(B, T)).astype(np.float32) + np.float32(0.05)
    return x, dt


class Closed:
    def __init__(self, p, x, dt, scale=1.0):
        for name in ("w", "tau", "v", "start"):  # as the model has them
            setattr(self, name, getattr(p, name).astype(np.float32).astype(np.float64))
        self.x, self.dt = x.astype(np.float64), scale * dt.astype(np.float64)
        steps = x.shape[1]
        c = self.dt.cumsum(axis=1)
        self.a = np.exp(-self.dt[..., None] / self.tau)
        causal = np.tril(np.ones((steps, steps)))[None, :, :, None]
        between = np.where(causal, (c[:, :, None] - c[:, None, :])[..., None], 0.0)
        self.decay = causal * np.exp(-between / self.tau)  # (B, t, j, H), product of a over j+1..t
        self.drive = self.x @ self.w.T
        self.states = np.einsum("btjh,bjh->bth", self.decay, (1 - self.a) * self.drive)
        self.states += np.exp(-c[..., None] / self.tau) * self.start
        self.outputs = self.states @ self.v.T

    def input_gradient(self, weight):
        """Of the sum of ``weight * outputs``, ``(B, T, O)``, with respect to x."""
        back = np.einsum("bto,oh,btjh->bjh", weight, self.v, self.decay)
        return (back * (1 - self.a)) @ self.w

    def time_gradient(self, weight):
        first = np.broadcast_to(self.start, self.states[:, :1].shape)
        before = np.concatenate([first, self.states[:, :-1]], axis=1)
        back = np.einsum("bto,oh,btjh->bjh", weight, self.v, self.decay)
        return (back * self.a * (self.drive - before) / self.tau).sum(axis=-1)


def at_step(step, output=0, batch=B):
    weight = np.zeros((batch, T, O))
    weight[:, step, output] = 1.0
    return weight


def observe(model, held_out, needs=tuple(Need), **options):
    runner = ModelRunner(model, held_out, **options)
    observation = passes.observe(runner, 0, needs)
    if not observation.takes_time:
        return observation, None
    return observation, observation.extra_passes.at_time_scales(SCALES).values


# --- input gradient, time gradient, states, scales


@pytest.mark.parametrize("per_step", [True, False])
def test_observation_holds_what_the_closed_forms_say(per_step):
    p, (x, dt) = parameters(), data()
    observation, scaled = observe(
        TimeDeltaBank(p, per_step), HeldOutBatch(x, dt), target=1, needs=set(Need)
    )
    known, weight = Closed(p, x, dt), at_step(-1, 1)
    close(observation.outputs, known.outputs if per_step else known.outputs[:, -1])
    close(observation.target_values, known.outputs[:, -1, 1])
    close(observation.input_gradient, known.input_gradient(weight))
    close(observation.time_gradient, known.time_gradient(weight))
    (trajectory,) = observation.states
    assert (trajectory.cell, trajectory.reverse) == (CELL, False)
    close(trajectory.values, known.states)
    close(trajectory.initial, np.broadcast_to(known.start, (B, H)))
    assert set(scaled) == set(SCALES)
    for scale in SCALES:
        close(scaled[scale], Closed(p, x, dt, scale).outputs[:, -1, 1])


def test_weights_of_all_inputs_and_of_the_start_sum_to_one():
    # For one unit with W = 1 the state is a weighted mean of all it was given.
    p, (_, dt) = parameters(outputs=1, start=False), data()
    p.w[:], p.v[:] = 0.0, 0.0
    p.w[2, 0], p.v[0, 2] = 1.0, 1.0
    x = np.full((B, T, F), 3.0, np.float32)
    importance = compute_temporal_importance(TimeDeltaBank(p), x, dt, **FROM_ZERO)
    remembered = np.exp(-dt.astype(np.float64).sum(axis=1) / p.tau[2])
    close(np.asarray(importance).sum(), 3.0 * (1 - remembered).mean())
    close(np.asarray(importance)[:, 1:], np.zeros((T, F - 1)))


@pytest.mark.parametrize("start", [True, False])
def test_importance(start):
    p, (x, dt) = parameters(outputs=1, start=start), data()
    result = compute_temporal_importance(TimeDeltaBank(p), x, dt, **FROM_ZERO)
    known = Closed(p, x, dt)
    weight = np.zeros((B, T, 1))
    weight[:, -1] = 1.0
    attribution = known.x * known.input_gradient(weight)
    close(result, np.abs(attribution).mean(axis=0))
    close(result.signed, attribution.mean(axis=0))
    close(result.target_values, known.outputs[:, -1, 0])
    if not start:  # the model is linear in x: input x gradient is complete
        close(attribution.sum(axis=(1, 2)), known.outputs[:, -1, 0], 1e-12)
        close(result.signed.sum(), result.target_values.mean())
    assert result.target == "prediction at last step"


def test_importance_is_integrated_from_the_mean_by_default():
    p, (x, dt) = parameters(outputs=1), data()
    result = compute_temporal_importance(TimeDeltaBank(p), x, dt)
    weight = np.zeros((B, T, 1))
    weight[:, -1] = 1.0
    x0, dt0 = x.mean(axis=(0, 1), dtype=np.float64), dt.mean(dtype=np.float64)
    # Gauss-Radau quadrature of four points on [-1, 1], of which the last one is 1.
    points, weights = roots_jacobi(3, 1, 0)
    points, weights = np.append(points, 1.0), np.append(weights / (1 - points), 2 / 4**2)
    by_input, by_time = np.zeros((B, T, F)), np.zeros((B, T))
    for u, share in zip((points + 1) / 2, weights / 2, strict=True):
        between = Closed(p, x0 + u * (x - x0), dt0 + u * (dt - dt0))
        by_input += share * (x - x0) * between.input_gradient(weight)
        by_time += share * (dt - dt0) * between.time_gradient(weight)
    close(result, np.abs(by_input).mean(axis=0))
    close(result.signed, by_input.mean(axis=0))
    close(result.time_delta_importance, np.abs(by_time).mean(axis=0))
    close(result.time_delta_signed, by_time.mean(axis=0))


@pytest.mark.parametrize("output", range(O))
def test_time_sensitivity(output):
    p, (x, dt) = parameters(), data()
    result = analyze_time_sensitivity(TimeDeltaBank(p), x, dt, scales=SCALES, target=output)
    known, weight = Closed(p, x, dt), at_step(-1, output)
    base = known.outputs[:, -1, output]
    y = [Closed(p, x, dt, s).outputs[:, -1, output] for s in (0.25, 0.5, 1.0, 2.0, 5.0)]
    rms = [np.sqrt(np.mean((v - base) ** 2)) for v in y]
    assert list(result["scales"]) == [0.25, 0.5, 1.0, 2.0, 5.0]
    close(result["sensitivities"], np.array(rms) / base.std())
    close(result.mean_change, [np.mean(v - base) for v in y])
    assert result["sensitivities"][2] == 0.0
    by_step = known.dt * known.time_gradient(weight)
    close(result.elasticity_by_step, by_step)
    close(result.elasticity, by_step.sum(axis=1))
    # The elasticity is the slope of the curve in ln s.
    e = 1e-5
    up, down = (Closed(p, x, dt, np.exp(k)).outputs[:, -1, output] for k in (e, -e))
    close(result.elasticity, (up - down) / (2 * e))
    close(result.mean_elasticity, by_step.sum(axis=1).mean() / base.std())
    assert not result.ignores_time


def test_time_sensitivity_does_not_depend_on_the_unit_of_time():
    p, (x, dt) = parameters(), data()
    hours = analyze_time_sensitivity(TimeDeltaBank(p), x, dt, target=0)
    p.tau = p.tau * 60
    minutes = analyze_time_sensitivity(TimeDeltaBank(p), x, dt * 60, target=0)
    close(minutes.sensitivities, hours.sensitivities)
    close(minutes.elasticity, hours.elasticity)


def test_states_along_principal_axes():
    p, (x, dt) = parameters(), data()
    result = visualize_hidden_states(TimeDeltaBank(p), x, dt, components=3)
    states = Closed(p, x, dt).states.reshape(-1, H)
    pca = PCA().fit(states)
    scores = pca.transform(states)[:, :3].reshape(B, T, 3)
    sign = np.sign((scores * result.scores).sum(axis=(0, 1)))
    close(result, scores * sign)
    close(result.explained_variance_ratio, pca.explained_variance_ratio_)
    spectrum = pca.explained_variance_
    close(result.participation_ratio, spectrum.sum() ** 2 / (spectrum**2).sum())
    assert (result.cell, result.samples) == (CELL, B * T)


def test_transitions():
    p, (x, dt) = parameters(), data()
    analyzer = StateTransitionAnalyzer(TimeDeltaBank(p))
    analyzer.add_sequence(x, dt)
    result = analyzer.analyze_transitions()
    states = Closed(p, x, dt).states
    lengths = np.sqrt((np.diff(states, axis=1) ** 2).sum(axis=-1))
    close(result.magnitudes, lengths)
    close(result["magnitude_mean"], lengths.mean())
    close(result["magnitude_std"], lengths.std())
    close(result.speeds, lengths / dt[:, 1:])
    close(result.speed_max, (lengths / dt[:, 1:]).max())
    unit = np.abs(np.diff(states, axis=1)) / dt[:, 1:, None]
    close(result.unit_speed_max, unit.max(axis=(0, 1)))
    assert result.cell == CELL


def test_step_response_is_an_exponential_approach():
    # Constant input from rest: h = W x (1 - exp(-c / tau)), all sequences moving the same way.
    p, (_, dt) = parameters(start=False), data()
    p.tau[:] = 2.0
    x = np.broadcast_to(np.array([1.0, -0.5, 2.0], np.float32), (B, T, F))
    analyzer = StateTransitionAnalyzer(TimeDeltaBank(p))
    analyzer.add_sequence(x, dt)
    result = analyzer.analyze_transitions()
    left = np.exp(-dt.astype(np.float64).cumsum(axis=1) / 2.0)
    goal = np.linalg.norm(p.w @ [1.0, -0.5, 2.0])
    close(result.magnitudes, goal * (left[:, :-1] - left[:, 1:]))
    assert result.direction_consistency == pytest.approx(1.0, abs=1e-5)
    assert result.direction_persistence == pytest.approx(1.0, abs=1e-5)
    states = visualize_hidden_states(TimeDeltaBank(p), x, dt)
    assert states.participation_ratio == pytest.approx(1.0, abs=1e-5)
    assert states.axis_variance_ratio[0] == pytest.approx(1.0, abs=1e-5)


def test_interpret_model_says_all_of_it():
    p, (x, dt) = parameters(outputs=1), data()
    result = interpret_model(TimeDeltaBank(p), x, dt, scales=SCALES, **FROM_ZERO)
    known = Closed(p, x, dt)
    weight = np.zeros((B, T, 1))
    weight[:, -1] = 1.0
    close(result["importance"], np.abs(known.x * known.input_gradient(weight)).mean(axis=0))
    close(result["sensitivity"].elasticity_by_step, known.dt * known.time_gradient(weight))
    moved = Closed(p, x, dt, 5.0).outputs[:, -1, 0] - known.outputs[:, -1, 0]
    close(result["sensitivity"].mean_change[-1], moved.mean())
    ratios = PCA().fit(known.states.reshape(-1, H)).explained_variance_ratio_
    close(result["states"].explained_variance_ratio, ratios)
    lengths = np.linalg.norm(np.diff(known.states, axis=1), axis=-1)
    close(result["transitions"].magnitudes, lengths)
    close(result["transitions"].speeds, lengths / dt[:, 1:])
    assert result["backbone"] is None
    assert any("no backbone" in note for note in result.notes)
    close(result.time_delta, dt)


def test_gradients_that_vanished_are_zero_and_no_others_are():
    # Products of a: e^-60 is a small number, e^-80 is below what is followed.
    p = parameters(outputs=1, start=False)
    p.tau[:] = 1.0
    x = np.ones((B, 4, F), np.float32)
    dt = np.broadcast_to(np.array([1.0, 20.0, 30.0, 30.0], np.float32), (B, 4))
    observation, _ = observe(TimeDeltaBank(p), HeldOutBatch(x, dt))
    weight = np.zeros((B, 4, 1))
    weight[:, -1] = 1.0
    known = Closed(p, x, dt).input_gradient(weight)
    assert not observation.input_gradient[:, 0].any()
    np.testing.assert_allclose(observation.input_gradient[:, 1:], known[:, 1:], rtol=1e-3)


# --- how models take time and give outputs


@pytest.mark.parametrize("wanted", [2, 3])
@pytest.mark.parametrize("given", [2, 3])
@pytest.mark.parametrize("model", BANKS)
def test_every_way_to_take_time_delta(model, given, wanted):
    p, (x, dt) = parameters(), data()
    held_out = HeldOutBatch(x, dt if given == 2 else dt[..., None])
    observation, scaled = observe(model(p, dims=wanted), held_out, target=0)
    known = Closed(p, x, dt)
    close(observation.input_gradient, known.input_gradient(at_step(-1)))
    close(observation.time_gradient, known.time_gradient(at_step(-1)))
    close(observation.states[0].values, known.states)
    close(scaled[5.0], Closed(p, x, dt, 5.0).outputs[:, -1, 0])
    assert observation.time_delta.shape == (B, T)


def test_one_time_delta_for_all_and_a_function_that_calls_the_model():
    p, (x, _) = parameters(), data()
    dt = np.full((B, T), 0.5, np.float32)
    known = Closed(p, x, dt)
    observation, _ = observe(TimeDeltaBank(p), HeldOutBatch(x, 0.5), target=0)
    close(observation.time_gradient, known.time_gradient(at_step(-1)))

    def rate(model, inputs, time_delta):
        return model.run(2.0 * inputs, 1.0 / time_delta)

    observation, _ = observe(TimeDeltaBank(p), HeldOutBatch(x, 1 / dt), target=0, forward=rate)
    twice = Closed(p, 2 * x, dt)
    close(observation.input_gradient, 2 * twice.input_gradient(at_step(-1)))
    close(observation.time_gradient, -(dt**2) * twice.time_gradient(at_step(-1)))


# --- targets


def weighted(known, which, mask=None):
    """``dy/d outputs`` of a target."""
    mask = np.ones((B, T), bool) if mask is None else mask
    last = np.array([row.nonzero()[0][-1] for row in mask])
    weight = np.zeros((B, T, O))
    rows = np.arange(B)
    if which == "last":
        weight[rows, last, 1] = 1.0
    elif which == "mean":
        weight[..., 1] = mask / mask.sum(axis=1, keepdims=True)
    elif isinstance(which, int):
        weight[:, which, 1] = 1.0
    elif which == "prediction":
        # The log-odds of one of two classes are the difference of their outputs.
        weight[rows, last] = -1.0
        weight[rows, last, known.outputs[rows, last].argmax(axis=-1)] = 1.0
    return weight


MASK = np.arange(T) < np.array([T, 2, 4, 3])[:, None]


@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "masked"])
@pytest.mark.parametrize("at", ["last", "mean", 0, 1, -5])
def test_one_output_at_every_place(at, mask):
    p, (x, dt) = parameters(), data()
    held_out = HeldOutBatch(x, dt, mask=mask)
    observation, scaled = observe(TimeDeltaBank(p), held_out, target=1, at=at)
    known = Closed(p, x, dt)
    weight = weighted(known, at, mask)
    close(observation.target_values, (weight * known.outputs).sum(axis=(1, 2)))
    close(observation.input_gradient, known.input_gradient(weight))
    close(observation.time_gradient, known.time_gradient(weight))
    close(scaled[2.0], (weight * Closed(p, x, dt, 2.0).outputs).sum(axis=(1, 2)))


@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "masked"])
def test_prediction_follows_the_largest_output_also_when_it_no_longer_is(mask):
    p, (x, dt) = parameters(), data(seed=2)
    held_out = HeldOutBatch(x, dt, mask=mask)
    observation, scaled = observe(TimeDeltaBank(p), held_out)
    known = Closed(p, x, dt)
    weight = weighted(known, "prediction", mask)
    assert 0 < (weight[..., 0] > 0).sum() < B  # both outputs win somewhere
    close(observation.target_values, (weight * known.outputs).sum(axis=(1, 2)))
    close(observation.input_gradient, known.input_gradient(weight))
    for scale in SCALES:
        moved = Closed(p, x, dt, scale)
        close(scaled[scale], (weight * moved.outputs).sum(axis=(1, 2)))
    assert any(
        (weighted(Closed(p, x, dt, s), "prediction", mask) != weight).any() for s in SCALES
    ), "the largest output stays the largest: this shows nothing"


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("kind", ["squared", "classes", "labels"])
def test_loss(kind, per_step):
    p, (x, dt) = parameters(outputs=1 if kind == "labels" else O), data()
    known = Closed(p, x, dt)
    y = known.outputs[:, -1]
    rng = np.random.default_rng(2)
    if kind == "squared":
        targets = rng.normal(size=y.shape).astype(np.float32)
        loss, slope = ((y - targets) ** 2).mean(axis=-1), 2 * (y - targets) / O
    elif kind == "classes":
        targets = rng.integers(0, O, B)
        one_hot = np.eye(O)[targets]
        loss, slope = -(one_hot * log_softmax(y, axis=-1)).sum(axis=-1), softmax(y, axis=-1)
        slope = slope - one_hot
    else:
        targets = rng.integers(0, 2, B)
        signed = np.where(targets == 1, y[:, 0], -y[:, 0])
        loss, slope = np.log1p(np.exp(-signed)), expit(y) - targets[:, None]
    held_out = HeldOutBatch(x, dt, targets=targets)
    observation, _ = observe(TimeDeltaBank(p, per_step), held_out, target="loss")
    weight = np.zeros((B, T, y.shape[1]))
    weight[:, -1] = slope
    close(observation.target_values, loss)
    close(observation.input_gradient, known.input_gradient(weight))
    close(observation.time_gradient, known.time_gradient(weight))


def test_loss_of_every_step_averages_over_real_ones():
    p, (x, dt) = parameters(), data()
    targets = np.random.default_rng(2).normal(size=(B, T, O)).astype(np.float32)
    held_out = HeldOutBatch(x, dt, targets=targets, mask=MASK)
    observation, _ = observe(TimeDeltaBank(p), held_out, target="loss", at="mean")
    known = Closed(p, x, dt)
    share = (MASK / MASK.sum(axis=1, keepdims=True))[..., None]
    error = known.outputs - targets
    close(observation.target_values, (share * error**2).sum(axis=1).mean(axis=-1))
    close(observation.input_gradient, known.input_gradient(2 * share * error / O))


def test_callable_target_sees_all_outputs_and_the_targets():
    p, (x, dt) = parameters(), data()
    offset = np.random.default_rng(2).normal(size=(B, T, O)).astype(np.float32)

    def energy(outputs, targets):
        return ((outputs - targets) ** 2).sum(axis=(1, 2))

    held_out = HeldOutBatch(x, dt, targets=offset)
    observation, scaled = observe(TimeDeltaBank(p), held_out, target=energy)
    known = Closed(p, x, dt)
    close(observation.target_values, ((known.outputs - offset) ** 2).sum(axis=(1, 2)))
    close(observation.input_gradient, known.input_gradient(2 * (known.outputs - offset)))
    half = Closed(p, x, dt, 0.5).outputs
    close(scaled[0.5], ((half - offset) ** 2).sum(axis=(1, 2)))
    assert observation.target == "energy"


@pytest.mark.parametrize("step", range(T))
def test_nothing_after_the_target_step_matters(step):
    p, (x, dt) = parameters(), data()
    model = TimeDeltaBank(p)
    result = compute_temporal_importance(model, x, dt, target=0, at=step)
    assert not np.asarray(result)[step + 1 :].any()
    assert np.asarray(result)[: step + 1].all()
    sensitivity = analyze_time_sensitivity(model, x, dt, target=0, at=step)
    assert not sensitivity.elasticity_by_step[:, step + 1 :].any()
    assert sensitivity.elasticity_by_step[:, : step + 1].all()


# --- variable lengths


@pytest.mark.parametrize("at", ["last", "mean"])
def test_padded_sequences_are_as_if_run_alone(at):
    p, (x, dt) = parameters(), data()
    x, dt = x.copy(), dt.copy()
    x[~MASK], dt[~MASK] = 1e3, 0.0
    dt[:, -1][~MASK[:, -1]] = np.inf
    model = TimeDeltaBank(p)
    result = interpret_model(model, x, dt, mask=MASK, target=0, at=at, **FROM_ZERO)
    lengths = MASK.sum(axis=1)
    total, signed, moves, elasticity = np.zeros((T, F)), np.zeros((T, F)), [], []
    alone_states = []
    for b, n in enumerate(lengths):
        known = Closed(p, x[b : b + 1, :n], dt[b : b + 1, :n])
        weight = np.zeros((1, n, O))
        weight[:, :, 0] = 1 / n if at == "mean" else np.arange(n) == n - 1
        attribution = (known.x * known.input_gradient(weight))[0]
        total[:n] += np.abs(attribution)
        signed[:n] += attribution
        elasticity.append((known.dt * known.time_gradient(weight)).sum())
        moves += list(np.linalg.norm(np.diff(known.states[0], axis=0), axis=-1))
        alone_states.append(known.states[0])
    count = MASK.sum(axis=0)[:, None]
    close(result["importance"], total / count)
    close(result["importance"].signed, signed / count)
    close(result["sensitivity"].elasticity, elasticity)
    assert not result["sensitivity"].elasticity_by_step[~MASK].any()
    close(result["transitions"].magnitude_mean, np.mean(moves))
    close(result["transitions"].magnitude_std, np.std(moves))
    assert np.isfinite(result["transitions"].unit_speed_max).all()
    spectrum = PCA().fit(np.concatenate(alone_states)).explained_variance_ratio_
    close(result["states"].explained_variance_ratio, spectrum)
    assert (np.isnan(result["states"].scores).all(axis=-1) == ~MASK).all()


def test_attribution_of_padding_is_exactly_zero():
    p, (x, dt) = parameters(), data()
    held_out = HeldOutBatch(x, dt, mask=MASK)
    for at in ("last", "mean"):
        observation, _ = observe(TimeDeltaBank(p), held_out, target=0, at=at)
        assert not observation.input_gradient[~MASK].any()
        assert not observation.time_gradient[~MASK].any()


# --- dtypes


@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float16, 2e-3), (mx.bfloat16, 1e-2)], ids=str)
def test_half_precision_inputs(dtype, tolerance):
    p, (x, dt) = parameters(), data()
    x16 = mx.array(x).astype(dtype)
    model = TimeDeltaBank(p)
    known = Closed(p, np.array(x16.astype(mx.float32)), dt)
    observation, _ = observe(model, HeldOutBatch(x16, dt), target=0)
    # The model computes in float32; only the gradient comes back in the type of the inputs.
    close(observation.target_values, known.outputs[:, -1, 0])
    close(observation.states[0].values, known.states)
    close(observation.time_gradient, known.time_gradient(at_step(-1)))
    close(observation.input_gradient, known.input_gradient(at_step(-1)), tolerance)
    assert observation.input_gradient.dtype == observation.inputs.dtype == np.float32


@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float16, 5e-3), (mx.bfloat16, 4e-2)], ids=str)
def test_half_precision_models(dtype, tolerance):
    p, (x, dt) = parameters(outputs=1), data()
    model = TimeDeltaBank(p)
    model.set_dtype(dtype)
    result = interpret_model(
        model, mx.array(x).astype(dtype), mx.array(dt).astype(dtype), **FROM_ZERO
    )
    known = Closed(p, x, dt)
    weight = np.zeros((B, T, 1))
    weight[:, -1] = 1.0
    importance = np.abs(known.x * known.input_gradient(weight)).mean(axis=0)
    close(result["importance"], importance, tolerance)
    close(
        result["sensitivity"].elasticity_by_step,
        known.dt * known.time_gradient(weight),
        2 * tolerance,
    )
    lengths = np.linalg.norm(np.diff(known.states, axis=1), axis=-1)
    close(result["transitions"].magnitudes, lengths, tolerance)
    for part in ("importance", "sensitivity", "states", "transitions"):
        assert result[part].non_finite == 0


# --- both directions


class BothWays(nn.Module):
    def __init__(self, there, back):
        super().__init__()
        self.there, self.back = Leaky(there.w, there.tau), Leaky(back.w, back.tau)
        self.v = mx.array(np.stack([there.v[0], back.v[0]]), mx.float32)

    def __call__(self, x, time_delta):
        steps = x.shape[1]
        h = g = mx.zeros((x.shape[0], H))
        for t in range(steps):
            h, _ = self.there(x[:, t], h, time_delta[:, t, None])
        for t in reversed(range(steps)):
            _, g = self.back(x[:, t], g, time_delta[:, t, None])
        return (h @ self.v[0] + g @ self.v[1])[:, None]


def test_a_cell_that_runs_backwards():
    there, back = parameters(1, False, seed=3), parameters(1, False, seed=4)
    x, dt = data()
    model = BothWays(there, back)
    observation, _ = observe(model, HeldOutBatch(x, dt))
    first, second = Closed(there, x, dt), Closed(back, x[:, ::-1], dt[:, ::-1])
    weight = np.zeros((B, T, 1))
    weight[:, -1] = 1.0
    close(
        observation.input_gradient,
        first.input_gradient(weight) + second.input_gradient(weight)[:, ::-1],
    )
    close(
        observation.time_gradient,
        first.time_gradient(weight) + second.time_gradient(weight)[:, ::-1],
    )
    close(observation.target_values, first.outputs[:, -1, 0] + second.outputs[:, -1, 0])
    cells = {s.cell: s for s in observation.states}
    assert {name: s.reverse for name, s in cells.items()} == {"there": False, "back": True}
    close(cells["there"].values, first.states)
    close(cells["back"].values, second.states[:, ::-1])
    for chosen, known in (("there", first), ("back", second), (None, second)):
        seen = visualize_hidden_states(model, x, dt, cell=chosen)
        ratios = PCA().fit(known.states.reshape(-1, H)).explained_variance_ratio_
        close(seen.explained_variance_ratio, ratios)


# --- cells of other shapes


class SubSteps(TimeDeltaBank):
    """Solves each interval in three parts, which for a held input changes nothing."""

    def __call__(self, x, time_delta):
        state, states = mx.broadcast_to(self.start, (x.shape[0], H)), []
        for t in range(x.shape[1]):
            for _ in range(3):
                _, state = self.anything.deep[0](x[:, t], state, time_delta[:, t, None] / 3)
            states.append(state)
        return mx.stack(states, axis=1) @ self.readout.T


class Pair(nn.Module):
    """One cell with two state arrays."""

    def __init__(self, p):
        super().__init__()
        self.w, self.tau = mx.array(p.w, mx.float32), mx.array(p.tau, mx.float32)

    def __call__(self, x, dt, states):
        a, new = mx.exp(-dt / self.tau), {}
        drive = x @ self.w.T
        new["fast"] = a**2 * states["fast"] + (1 - a**2) * drive
        new["slow"] = a * states["slow"] + (1 - a) * drive
        return new["fast"] + new["slow"], new


class PairBank(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.pair, self.v = Pair(p), mx.array(p.v, mx.float32)

    def __call__(self, x, time_delta):
        states = {name: mx.zeros((x.shape[0], H)) for name in ("fast", "slow")}
        for t in range(x.shape[1]):
            out, states = self.pair(x[:, t], time_delta[:, t, None], states=states)
        return out @ self.v.T


def test_a_cell_called_several_times_a_step():
    p, (x, dt) = parameters(), data()
    observation, _ = observe(SubSteps(p), HeldOutBatch(x, dt), target=0)
    known = Closed(p, x, dt)
    (trajectory,) = observation.states
    close(trajectory.values, known.states)
    close(trajectory.initial, np.broadcast_to(known.start, (B, H)))
    close(observation.input_gradient, known.input_gradient(at_step(-1)))
    close(observation.time_gradient, known.time_gradient(at_step(-1)))


def test_a_cell_with_two_state_arrays():
    p, (x, dt) = parameters(start=False), data()
    observation, _ = observe(PairBank(p), HeldOutBatch(x, dt), target=0)
    slow, fast = Closed(p, x, dt), Closed(p, x, dt, scale=2.0)
    (trajectory,) = observation.states
    assert trajectory.cell == "pair"
    first, second = np.split(trajectory.values, 2, axis=-1)
    close(first, fast.states)
    close(second, slow.states)
    weight = at_step(-1)
    close(observation.input_gradient, slow.input_gradient(weight) + fast.input_gradient(weight))
    close(observation.time_gradient, slow.time_gradient(weight) + 2 * fast.time_gradient(weight))


class TwiceThrough(BothWays):
    """The same cell in both directions."""

    def __init__(self, p):
        super().__init__(p, p)
        self.back = self.there


def test_a_cell_that_runs_twice():
    p, (x, dt) = parameters(1, False), data()
    observation, _ = observe(TwiceThrough(p), HeldOutBatch(x, dt))
    first, second = Closed(p, x, dt), Closed(p, x[:, ::-1], dt[:, ::-1])
    there, back = observation.states
    assert [s.cell[-2:] for s in observation.states] == ["#1", "#2"]
    assert [s.reverse for s in observation.states] == [False, True]
    close(there.values, first.states)
    close(back.values, second.states[:, ::-1])


# --- mlx.nn's own layers


def layer_step(kind, layer, x, h, c):
    """One step in float64, as PyTorch's and MLX's documentation define it."""
    get = {k: np.array(v, np.float64) for k, v in layer.parameters().items()}
    if kind is nn.RNN:
        return np.tanh(x @ get["Wxh"].T + get["bias"] + h @ get["Whh"].T), c
    into, back = x @ get["Wx"].T, h @ get["Wh"].T
    if kind is nn.GRU:
        r, z, n = np.split(into + get["b"], 3, axis=-1)
        hr, hz, hn = np.split(back, 3, axis=-1)
        r, z = expit(r + hr), expit(z + hz)
        return (1 - z) * np.tanh(n + r * (hn + get["bhn"])) + z * h, c
    i, f, g, o = np.split(into + back + get["bias"], 4, axis=-1)
    c = expit(f) * c + expit(i) * np.tanh(g)
    return expit(o) * np.tanh(c), c


def layer_states(kind, layer, x):
    h = c = np.zeros((x.shape[0], H))
    hs, cs = [], []
    for t in range(x.shape[1]):
        h, c = layer_step(kind, layer, x[:, t], h, c)
        hs.append(h)
        cs.append(c)
    return np.stack(hs, axis=1), np.stack(cs, axis=1)


class Layered(nn.Module):
    def __init__(self, kind, backwards):
        super().__init__()
        self.layer, self.backwards = kind(F, H), backwards
        self.v = mx.random.normal((H,), key=mx.random.key(3))

    def __call__(self, x):
        # Without a state, older GRUs leave out one bias at the first step.
        out = self.layer(x[:, ::-1] if self.backwards else x, mx.zeros((x.shape[0], H)))
        out = out[0] if isinstance(out, tuple) else out
        return out[:, -1] @ self.v


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_of_mlx(kind, backwards):
    mx.random.seed(0)
    model, (x, _) = Layered(kind, backwards), data()
    order = slice(None, None, -1 if backwards else 1)
    h, c = layer_states(kind, model.layer, x.astype(np.float64)[:, order])
    states = np.concatenate([h, c] if kind is nn.LSTM else [h], axis=-1)[:, order]
    observation, _ = observe(model, HeldOutBatch(x))
    (trajectory,) = observation.states
    assert (trajectory.cell, trajectory.reverse) == ("layer", backwards)
    close(trajectory.values, states)

    v = np.array(model.v, np.float64)
    known = np.zeros((B, T, F))
    for t in range(T):
        for f in range(F):
            ends = []
            for e in (1e-5, -1e-5):
                moved = x.astype(np.float64)
                moved[:, t, f] += e
                ends.append(layer_states(kind, model.layer, moved[:, order])[0][:, -1] @ v)
            known[:, t, f] = (ends[0] - ends[1]) / 2e-5
    close(observation.input_gradient, known)
    lengths = np.linalg.norm(np.diff(states, axis=1), axis=-1)
    analyzer = StateTransitionAnalyzer(model)
    analyzer.add_sequence(x)
    close(analyzer.analyze_transitions().magnitudes, lengths)


# --- models that lack something


class Linear(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = mx.array(w)

    def __call__(self, x):
        return (x * self.w).sum(axis=(1, 2)) + 7.0


def test_a_linear_model_is_attributed_exactly():
    x, _ = data()
    w = np.random.default_rng(2).normal(size=(T, F)).astype(np.float32)
    w[:, 1] = 0.0
    observation, _ = observe(Linear(w), HeldOutBatch(x))
    assert (observation.input_gradient == w).all()
    result = compute_temporal_importance(Linear(w), x, **FROM_ZERO)
    exact = np.abs(w.astype(np.float64) * x).mean(axis=0)
    np.testing.assert_allclose(np.asarray(result), exact, rtol=1e-7)
    assert not np.asarray(result)[:, 1].any()
    # Along a straight line the gradient is the weights, too.
    result = compute_temporal_importance(Linear(w), x)
    exact = np.abs(w * (x - x.mean(axis=(0, 1), dtype=np.float64))).mean(axis=0)
    np.testing.assert_allclose(np.asarray(result), exact, rtol=1e-6)
    assert not np.asarray(result)[:, 1].any()


class TimeBlind(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(F, H)

    def __call__(self, x, time_delta):
        assert time_delta.shape == x.shape[:2]
        return self.rnn(x)[..., :1]


def test_a_model_that_ignores_time_has_sensitivity_exactly_zero():
    x, dt = data()
    result = interpret_model(TimeBlind(), x, dt)
    sensitivity = result["sensitivity"]
    assert not sensitivity.sensitivities.any()
    assert not sensitivity.elasticity_by_step.any()
    assert sensitivity.mean_elasticity == sensitivity.relative_elasticity == 0.0
    assert sensitivity.ignores_time
    assert any("does not depend on them" in note for note in result.notes)


def test_a_model_without_time_has_no_sensitivity_and_says_so():
    mx.random.seed(0)
    x, _ = data()
    model = Layered(nn.GRU, False)
    result = interpret_model(model, x)
    assert result["sensitivity"] is None
    assert any("no time to scale" in note for note in result.notes)
    observation, _ = observe(model, HeldOutBatch(x))
    assert observation.time_gradient is None
    assert not observation.takes_time
    with pytest.raises(RuntimeError, match="takes no time_delta"):
        observation.extra_passes.at_time_scales([2.0])


def test_what_was_not_asked_for_is_refused():
    p, (x, dt) = parameters(), data()
    observation, _ = observe(TimeDeltaBank(p), HeldOutBatch(x, dt), needs=(Need.TIME_SCALES,))
    for name in ("input_gradient", "time_gradient", "states", "activations"):
        with pytest.raises(RuntimeError, match=f"holds no {name}"):
            getattr(observation, name)
