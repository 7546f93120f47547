"""Time constants against closed forms, autograd, ncps.torch, and cells of other conventions."""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import zoo
from hypothesis import given
from hypothesis import strategies as st
from ncps.wirings import AutoNCP, FullyConnected
from promises import pattern, promised, told
from scipy.special import expit
from small_nets import Flat
from test_models import golden
from test_plots import check_redraws, check_text, drawn, texts, title, words

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.callbacks import TimeConstants
from ncp_callbacks.callbacks.time_constants.analysis import (
    effective_time_constants,
    gate_time_constants,
    half_times,
    system_time_constants,
    time_constant_bounds,
    unit_time_constants,
)
from ncp_callbacks.callbacks.time_constants.plot import needed_decades, needed_limits
from ncp_callbacks.liquid_equations import LTCParameters, ltc_step, membrane
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.model.jacobian_diagonal import jacobian_diagonal
from ncp_callbacks.model.liquid import (
    DecayReading,
    GateReading,
    LTCReading,
    read_liquid,
)
from ncp_callbacks.model.liquid.cfc import explained_by
from ncp_callbacks.models import LTC, CfC, LTCCell
from ncp_callbacks.plots import plot_time_constants, plot_time_constants_over_time

GOLDEN = Path(__file__).parent / "golden"
S, T, F, H = 4, 6, 3, 5
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _seed():
    mx.random.seed(0)


def batch(seed=0, steps=T):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((S, steps, F)).astype(np.float32)
    return x, rng.uniform(0.1, 2.0, (S, steps)).astype(np.float32)


def seen(model, x, dt, cell=None, forward=None):
    """What is read of a model's cell, and its stepper."""
    runner = ModelRunner(model, ncp.HeldOutBatch(x, dt), forward=forward)
    look = passes.observe(runner, 0, {ncp.Need.STATES, ncp.Need.CELL_STEPS})
    stepper = look.extra_passes.cell_stepper(cell or look.states[0].cell)
    return read_liquid(stepper, look.time_delta if look.takes_time else None), stepper


def logged(model, x, dt=None, steps=1, callback=None, held_out=None, **options):
    writer = ncp.MemoryWriter()
    held_out = held_out or ncp.HeldOutBatch(x, dt)
    callbacks = [callback or TimeConstants()]
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1, **options) as monitor:
        for step in range(1, steps + 1):
            monitor.on_step_end(step)
        return writer, told(monitor.notes)


def scalars(writer, group="time_constants"):
    return {
        r.tag.removeprefix(f"{group}/"): r.value
        for step, r in writer.records
        if step and isinstance(r, ncp.Scalar) and r.tag.startswith(f"{group}/")
    }


def arrays(writer, tag):
    return [r.values for step, r in writer.records if step and r.tag == tag]


def random_parameters(rng, units=4, inputs=3, unfolds=1, epsilon=0.0):
    def positive(*shape):
        return rng.uniform(0.01, 2.0, shape)

    synapses = (units, units)
    senses = (inputs, units)
    return LTCParameters(
        gleak=positive(units),
        vleak=rng.normal(size=units),
        cm=positive(units),
        w=positive(*synapses) * (rng.random(synapses) < 0.6),
        sigma=rng.uniform(1, 8, synapses),
        mu=rng.normal(size=synapses),
        erev=rng.choice([-1.0, 1.0], synapses),
        sensory_w=positive(*senses) * (rng.random(senses) < 0.6),
        sensory_sigma=rng.uniform(1, 8, senses),
        sensory_mu=rng.normal(size=senses),
        sensory_erev=rng.choice([-1.0, 1.0], senses),
        input_w=rng.normal(size=inputs),
        input_b=rng.normal(size=inputs),
        unfolds=unfolds,
        epsilon=epsilon,
    )


def in_float64(cell):
    """A cell's parameters by their names, as float64: softplus and masks applied by hand."""
    raw = {k: np.array(v).astype(np.float64) for k, v in cell.items() if isinstance(v, mx.array)}
    if cell.implicit_param_constraints:
        for name in ("gleak", "cm", "w", "sensory_w"):
            raw[name] = np.log1p(np.exp(raw[name]))
    raw["w"] = raw["w"] * raw.pop("sparsity_mask")
    raw["sensory_w"] = raw["sensory_w"] * raw.pop("sensory_sparsity_mask")
    for name in ("output_w", "output_b"):
        raw.pop(name, None)
    features = len(raw["sensory_w"])
    raw.setdefault("input_w", np.ones(features))
    raw.setdefault("input_b", np.zeros(features))
    return LTCParameters(**raw, unfolds=cell.ode_unfolds, epsilon=cell.epsilon)


def precise_cell(wiring=None, **options):
    """An LTC cell in float64, but for sigmoids and such, which MLX rounds to 1e-8."""
    cell = LTCCell(F, wiring or AutoNCP(9, 2, seed=3), **options)
    cell.set_dtype(mx.float64, lambda dtype: dtype == mx.float32)
    return cell


def at_random(cell, rows=7, seed=1):
    rng = np.random.default_rng(seed)
    x, v = rng.normal(size=(rows, F)), rng.normal(size=(rows, cell.units))
    return x, v, rng.uniform(0.1, 2.0, rows)


def run(cell, x, v, dt):
    with mx.stream(mx.cpu):
        given = (mx.array(a, dtype=mx.float64) for a in (x, v, dt[:, None]))
        return np.array(cell(*given)[1])


# ---- LTC: identities of the sub-step


def test_a_sub_step_goes_from_the_state_towards_v_inf_with_tau():
    cell = precise_cell(ode_unfolds=1)
    x, v, dt = at_random(cell)
    tau, v_inf = system_time_constants(in_float64(cell), x, v)
    a = 1 / (1 + dt[:, None] / tau)
    np.testing.assert_allclose(run(cell, x, v, dt), a * v + (1 - a) * v_inf, atol=1e-7)


@pytest.mark.parametrize("implicit", [True, False])
def test_the_currents_are_what_moves_the_cell(implicit):
    cell = precise_cell(implicit_param_constraints=implicit)
    x, v, _ = at_random(cell)
    parameters = in_float64(cell)
    tau, v_inf = system_time_constants(parameters, x, v)
    conductance, drive = membrane(parameters, x, v)
    tiny = 1e-7
    moved = parameters.cm * (run(cell, x, v, np.full(len(v), tiny)) - v) / tiny
    np.testing.assert_allclose(drive - conductance * v, moved, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parameters.cm * (v_inf - v) / tau, moved, rtol=1e-5, atol=1e-6)


def test_without_self_synapses_the_cells_own_derivative_shows_tau():
    """d v'_i / d v_i of one sub-step is 1 / (1 + dt / tau), by autograd of the cell itself."""
    cell = precise_cell(FullyConnected(H, self_connections=False), ode_unfolds=1)
    x, v, dt = at_random(cell)
    tau, _ = system_time_constants(in_float64(cell), x, v)
    with mx.stream(mx.cpu):
        given = [mx.array(a, dtype=mx.float64) for a in (x, v, dt[:, None])]

        def after(state):
            return cell(given[0], state, given[2])[1]

        diagonal = np.stack(
            [
                np.array(mx.jvp(after, [given[1]], [mx.zeros_like(given[1]).at[:, i].add(1)])[1][0])
                for i in range(H)
            ]
        )[np.arange(H), :, np.arange(H)].T
    effective = effective_time_constants(diagonal, dt)
    np.testing.assert_allclose(effective, dt[:, None] / np.log1p(dt[:, None] / tau), rtol=1e-6)


@pytest.mark.parametrize(
    "case", ["full-6-True", "AutoNCP-3-False", "maps-linear-affine", "maps-None-None"]
)
def test_steps_are_those_of_ncps_torch(case):
    model, x, dt, state, reference = golden("ltc", case, mx.float32)
    parameters, v = in_float64(model.cell), np.array(state, np.float64)
    for t in range(x.shape[1]):
        v = ltc_step(parameters, np.array(x[:, t]), v, np.array(dt[:, t]))
    np.testing.assert_allclose(v, reference["state"], rtol=1e-6, atol=1e-7)


@given(seeds)
def test_tau_is_within_its_bounds(seed):
    rng = np.random.default_rng(seed)
    parameters = random_parameters(rng)
    x, v = 10 * rng.normal(size=(9, 3)), 10 * rng.normal(size=(9, 4))
    tau, v_inf = system_time_constants(parameters, x, v)
    low, high = time_constant_bounds(parameters)
    assert (tau >= low * (1 - 1e-12)).all()
    assert (tau <= high * (1 + 1e-12)).all()
    # v_inf is a mean of the potentials that the neuron is connected to.
    ends = np.stack([parameters.vleak, np.full(4, -1.0), np.full(4, 1.0)])
    assert (v_inf >= ends.min(axis=0) - 1e-12).all()
    assert (v_inf <= ends.max(axis=0) + 1e-12).all()


def test_all_synapses_open_or_closed_are_the_bounds():
    parameters = random_parameters(np.random.default_rng(0))
    parameters = LTCParameters(
        **{**vars(parameters), "input_w": np.ones(3), "input_b": np.zeros(3)}
    )
    low, high = time_constant_bounds(parameters)
    for far, bound in ((1e6, low), (-1e6, high)):
        tau, _ = system_time_constants(parameters, np.full((1, 3), far), np.full((1, 4), far))
        np.testing.assert_allclose(tau[0], bound)


@given(seeds, st.floats(1e-3, 1e3))
def test_another_unit_of_time_scales_all_time_constants(seed, unit):
    rng = np.random.default_rng(seed)
    parameters = random_parameters(rng, unfolds=3)
    x, v, dt = rng.normal(size=(5, 3)), rng.normal(size=(5, 4)), rng.uniform(0.1, 2, 5)
    other = LTCParameters(**{**vars(parameters), "cm": unit * parameters.cm})
    tau, v_inf = system_time_constants(parameters, x, v)
    scaled, same = system_time_constants(other, x, v)
    np.testing.assert_allclose(scaled, unit * tau, rtol=1e-12)
    np.testing.assert_allclose(same, v_inf, rtol=1e-12)
    after = ltc_step(other, x, v, unit * dt)
    np.testing.assert_allclose(after, ltc_step(parameters, x, v, dt), rtol=1e-9, atol=1e-12)
    diagonal = rng.uniform(-0.99, 0.99, (5, 4))
    np.testing.assert_allclose(
        effective_time_constants(diagonal, unit * dt), unit * effective_time_constants(diagonal, dt)
    )
    rate, offset = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    np.testing.assert_allclose(
        gate_time_constants(rate / unit), unit * gate_time_constants(rate), rtol=1e-9
    )
    np.testing.assert_allclose(half_times(rate / unit, offset), unit * half_times(rate, offset))


def test_many_rows_are_computed_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    parameters = random_parameters(rng)
    x, v = rng.normal(size=(23, 3)), rng.normal(size=(23, 4))
    whole = system_time_constants(parameters, x, v)
    monkeypatch.setattr("ncp_callbacks.liquid_equations._AT_ONCE", 60)
    np.testing.assert_array_equal(system_time_constants(parameters, x, v), whole)


# ---- pure functions


def test_effective_time_constants_of_limits():
    found = effective_time_constants(
        np.array([[0.0, math.exp(-2), -math.exp(-2), 1.0, -3.0, np.nan]]), np.array([4.0])
    )
    np.testing.assert_allclose(found, [[0.0, 2.0, 2.0, np.inf, np.inf, np.nan]])
    assert np.isnan(effective_time_constants(np.array([[0.5]]), np.array([0.0]))).all()


def test_half_times_are_where_the_gate_is_half_open():
    rng = np.random.default_rng(0)
    rate, offset = rng.normal(size=200), rng.normal(size=200)
    times = half_times(rate, offset)
    known = ~np.isnan(times)
    np.testing.assert_allclose(expit(rate[known] * times[known] + offset[known]), 0.5)
    # The others move away from a half, or have left it already.
    assert (np.sign(rate[~known]) == np.sign(offset[~known])).all()
    assert np.isnan(half_times(np.zeros(1), np.ones(1))).all()


@given(seeds)
def test_what_a_basis_explains_is_what_least_squares_leaves(seed):
    rng = np.random.default_rng(seed)
    y, x = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    left = 0.0
    for i in range(3):
        system = np.stack([np.ones(5), x[:, i]], axis=1)
        left += float(np.linalg.lstsq(system, y[:, i], rcond=None)[1].sum())
    assert explained_by(y, x)[0] == pytest.approx(left)
    assert explained_by(2 - 3 * x, x)[1] < 1e-12


def test_quantiles_count_infinity_as_large_and_leave_padding_out():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, np.inf]).reshape(1, 10, 1)
    found = unit_time_constants(values, kind="gate")
    np.testing.assert_array_equal(found.quantiles, [1, 5, 9])
    assert (found.endless, found.known, found.non_finite) == (0.1, 10, 0)
    assert found.variation == 9
    mask = np.ones((1, 10), bool)
    mask[0, 5:] = False
    values[0, 2] = np.nan
    found = unit_time_constants(values, kind="gate", mask=mask)
    assert (found.known, found.non_finite, found.endless) == (4, 1, 0.0)
    np.testing.assert_array_equal(found.quantiles, [1, 2, 5])
    assert np.isnan(np.asarray(found)[0, 5:]).all()


def test_a_kind_or_shape_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="kind='half' is unknown: pass one of 'system'"):
        unit_time_constants(np.ones((1, 1, 1)), kind="half")
    with pytest.raises(ValueError, match=r"shape \(3, 2\): pass \(sequences, time steps, units\)"):
        unit_time_constants(np.ones((3, 2)), kind="gate")


# ---- readings of LTC cells


class HiddenNames(nn.Module):
    """An LTC cell after another convention: hidden names, intervals (B,), constraints by clipping.

    It takes everything from a cell of ours, so that the two must be read alike.
    """

    def __init__(self, cell):
        super().__init__()
        for name in ("gleak", "vleak", "cm", "w", "sigma", "mu"):
            setattr(self, name, cell[name])
        for name in ("sensory_w", "sensory_sigma", "sensory_mu", "input_w", "input_b"):
            setattr(self, name, cell[name])
        self._erev, self._sensory_erev = cell.erev, cell.sensory_erev
        self._sparsity_mask = cell.sparsity_mask.astype(mx.float32)
        self._sensory_sparsity_mask = cell.sensory_sparsity_mask.astype(mx.float32)
        self._ode_unfolds, self._epsilon = cell.ode_unfolds, cell.epsilon
        self._implicit_param_constraints = cell.implicit_param_constraints
        self._wiring = cell.wiring

    def positive(self, value):
        return nn.softplus(value) if self._implicit_param_constraints else value

    def __call__(self, inputs, state, elapsed_time=1.0):
        def opened(v, mu, sigma):
            return 1.0 / (1.0 + mx.exp(-sigma * (v[..., None] - mu)))

        u = inputs * self.input_w + self.input_b
        sensory = self.positive(self.sensory_w) * self._sensory_sparsity_mask
        sensory = sensory * opened(u, self.sensory_mu, self.sensory_sigma)
        cm_t = self.positive(self.cm) / (mx.reshape(elapsed_time, (-1, 1)) / self._ode_unfolds)
        gleak = self.positive(self.gleak)
        for _ in range(self._ode_unfolds):
            w = self.positive(self.w) * self._sparsity_mask * opened(state, self.mu, self.sigma)
            top = cm_t * state + gleak * self.vleak + (w * self._erev).sum(axis=1)
            top = top + (sensory * self._sensory_erev).sum(axis=1)
            bottom = cm_t + gleak + w.sum(axis=1) + sensory.sum(axis=1) + self._epsilon
            state = top / bottom
        return state[:, :2], state


class KeptInADict(HiddenNames):
    """Its parameters are in a dict."""

    def __init__(self, cell):
        super().__init__(cell)
        names = ("gleak", "vleak", "cm", "w", "sigma", "mu", "input_w", "input_b")
        names += ("sensory_w", "sensory_sigma", "sensory_mu")
        params = {name: self.pop(name) for name in names}
        for name in ("erev", "sensory_erev", "sparsity_mask", "sensory_sparsity_mask"):
            params[name] = self.pop(f"_{name}")
        self._params = params

    def __getattr__(self, name):
        params = self.get("_params", {})
        if name.removeprefix("_") in params:
            return params[name.removeprefix("_")]
        return super().__getattr__(name)


def ltc_in(kind, **options):
    """A model around an LTC cell of a convention, and the same as a model of ours."""
    model = LTC(F, AutoNCP(9, 2, seed=3), **options)
    if kind == "ours":
        return model, model, "cell"
    return zoo.PortRNN(kind(model.cell), units=9), model, "rnn_cell"


@pytest.mark.parametrize("kind", ["ours", HiddenNames, KeptInADict])
@pytest.mark.parametrize("implicit", [True, False])
def test_an_ltc_is_read_whatever_its_names(kind, implicit):
    model, ours, cell = ltc_in(kind, implicit_param_constraints=implicit)
    x, dt = batch()
    reading, stepper = seen(model, x, dt)
    assert isinstance(reading, LTCReading)
    assert stepper.hook.name == cell
    assert reading.error < 1e-6
    expected = in_float64(ours.cell)
    for name, value in vars(expected).items():
        np.testing.assert_allclose(getattr(reading.parameters, name), value, rtol=1e-6)
    np.testing.assert_array_equal(reading.inputs, x)
    np.testing.assert_array_equal(reading.time_delta, dt)
    v = np.zeros((S, 9))
    for t in range(T):
        np.testing.assert_allclose(reading.before[:, t], v, atol=1e-5)
        v = ltc_step(expected, x[:, t], v, dt[:, t])


@pytest.mark.parametrize("kind", ["ours", HiddenNames])
@pytest.mark.parametrize("wiring", [AutoNCP(9, 2, seed=3), F])
def test_logged_time_constants_are_those_of_a_loop_by_hand(kind, wiring):
    model = LTC(F, wiring)
    units = model.units
    x, dt = batch()
    parameters = in_float64(model.cell)
    v, tau, away = np.zeros((S, units)), [], []
    for t in range(T):
        now, v_inf = system_time_constants(parameters, x[:, t], v)
        tau.append(now)
        away.append(v_inf - v)
        v = ltc_step(parameters, x[:, t], v, dt[:, t])
    tau = np.stack(tau, axis=1)
    if kind is HiddenNames:
        model = zoo.PortRNN(HiddenNames(model.cell), units=units)
    writer, notes = logged(model, x, dt)
    found = scalars(writer)
    for share in (10, 50, 90):
        expected = np.quantile(tau, share / 100, method="inverted_cdf")
        assert found[f"system_q{share}"] == pytest.approx(expected, rel=1e-4)
    assert found["outside_bounds"] == found["nonfinite"] == 0
    assert found["to_equilibrium"] == pytest.approx(np.sqrt(np.mean(np.square(away))), rel=1e-4)
    assert found["reading_error"] < 1e-6
    median = arrays(writer, "_ncp/time_constants_median")[0]
    by_unit = np.quantile(tau.reshape(-1, units), 0.5, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(median, by_unit, rtol=1e-4)
    (shown,) = (r for r in figures(writer) if r.tag == "time_constants/over_time")
    over_time = np.quantile(tau, 0.5, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(shown.data.over_time, over_time, rtol=1e-4)
    assert not notes


class Explicit(HiddenNames):
    """The parameters of an LTC, with explicit Euler steps."""

    def __call__(self, inputs, state, elapsed_time=1.0):
        dt = mx.reshape(elapsed_time, (-1, 1))
        gleak = self.positive(self.gleak)
        move = gleak * (self.vleak - state) + mx.tanh(inputs.sum(axis=-1, keepdims=True))
        state = state + dt * move / self.positive(self.cm)
        return state[:, :2], state


def test_the_parameters_of_an_ltc_do_not_make_one():
    model, _, _ = ltc_in(Explicit)
    writer, notes = logged(model, *batch())
    found = scalars(writer)
    assert any("fused Euler steps" in note and "effective" in note for note in notes)
    assert not any(name.startswith(("system", "reading")) for name in found)
    assert "effective_q50" in found


def test_conductances_that_cannot_be_are_counted_and_reported():
    model = LTC(F, AutoNCP(9, 2, seed=3), implicit_param_constraints=False)
    x, dt = batch()
    model.cell.w = mx.where(model.cell.sparsity_mask, -0.01, 0.0)
    writer, notes = logged(model, x, dt)
    assert scalars(writer)["outside_bounds"] > 0
    assert any("apply_weight_constraints" in note for note in notes)
    model.apply_weight_constraints()
    writer, notes = logged(model, x, dt)
    assert scalars(writer)["outside_bounds"] == 0
    assert not notes


# ---- readings of CfC cells


@pytest.mark.parametrize(
    "case", ["default-1", "no_gate-2", "pure-1", "AutoNCP-default", "NCP-no_gate", "NCP-pure"]
)
def test_gates_are_those_of_ncps_torch(case):
    model, x, dt, _, _ = golden("cfc", case, mx.float32)
    reading, _ = seen(model, np.array(x), np.array(dt))
    with np.load(GOLDEN / "ncps_torch_gates.npz") as file:
        gate, rate = file[f"{case}/gate"], file[f"{case}/rate"]
    np.testing.assert_allclose(reading.rate, rate, rtol=2e-3, atol=1e-4)
    if "pure" in case:
        assert isinstance(reading, DecayReading)
        left = np.exp(-reading.rate * reading.time_delta[..., None])
        np.testing.assert_allclose(left, gate, atol=1e-4)
    else:
        assert isinstance(reading, GateReading)
        assert reading.signed
        opened = expit(reading.rate * reading.time_delta[..., None] + reading.offset)
        np.testing.assert_allclose(opened, gate, atol=1e-5)


def planted(layer, rate, offset, sign):
    """Gates that depend on nothing but the interval: ``sigmoid(rate interval + offset)``."""
    for name, value in (("time_a", sign * rate), ("time_b", offset)):
        layer[name].weight = mx.zeros_like(layer[name].weight)
        layer[name].bias = mx.array(value.astype(np.float32))


RATES = np.array([0.5, -2.0, 4.0, -0.25, 8.0])
OFFSETS = np.array([-1.0, 0.5, 0.75, 1.0, -2.0])


@pytest.mark.parametrize("mode", ["default", "no_gate"])
@pytest.mark.parametrize("port", [False, True])
def test_planted_rates_are_found_with_the_sign_they_act_with(mode, port):
    x, dt = batch()
    if port:  # whose gate is sigmoid(-time_a interval + time_b), between states without tanh
        model = zoo.PortRNN(zoo.PortCfCCell(F, H, mode))
        planted(model.rnn_cell, RATES, OFFSETS, -1)
    else:
        model = CfC(F, H, mode=mode, backbone_units=6)
        planted(model.cell, RATES, OFFSETS, 1)
    writer, notes = logged(model, x, dt)
    found = scalars(writer)
    sizes = np.sort(1 / np.abs(RATES))
    assert found["gate_q10"] == pytest.approx(sizes[0], rel=1e-6)
    assert found["gate_q50"] == pytest.approx(sizes[2], rel=1e-6)
    assert found["gate_q90"] == pytest.approx(sizes[4], rel=1e-6)
    assert found["rate_positive"] == pytest.approx(3 / 5)
    assert found["half_time"] == pytest.approx(np.median([2.0, 0.25, 4.0, 0.25]), rel=1e-6)
    opened = 1 / (1 + np.exp(-(RATES * dt[..., None] + OFFSETS)))
    assert found["openness"] == pytest.approx(opened.mean(), rel=1e-5)
    assert found["variation"] == pytest.approx(1.0)
    assert not notes


def test_arrays_in_the_place_of_layers_are_read_too():
    """Kernels ``time_a`` and ``time_b`` applied to what the backbone gives."""
    x, dt = batch()
    model = zoo.LateCfC((H,))
    model(mx.array(x), time_delta=mx.array(dt))
    cell = model.forward_layers[0]
    cell.eval()
    reading, _ = seen(model, x, dt)
    assert isinstance(reading, GateReading)
    assert reading.signed
    h = mx.zeros((S, H))
    for t in range(T):
        shared = cell.backbone(mx.concatenate([mx.array(x[:, t]), h], axis=-1))
        np.testing.assert_allclose(reading.rate[:, t], -(shared @ cell.time_a), atol=1e-5)
        np.testing.assert_allclose(reading.offset[:, t], shared @ cell.time_b, atol=1e-5)
        h, _ = cell(mx.array(x[:, t]), h, time=mx.array(dt[:, t]))


@pytest.mark.parametrize("port", [False, True])
def test_rates_of_a_pure_cell_are_those_of_its_formula(port):
    x, dt = batch()
    if port:
        model = zoo.PortRNN(zoo.PortCfCCell(F, H, "pure"))
        cell = model.rnn_cell
        cell.w_tau = mx.random.normal((1, H))
    else:
        model = CfC(F, H, mode="pure", backbone_units=6)
        cell = model.cell
    reading, _ = seen(model, x, dt)
    assert isinstance(reading, DecayReading)
    h, rates = mx.zeros((S, H)), []
    for t in range(T):
        shared = cell.backbone(mx.concatenate([mx.array(x[:, t]), h], axis=-1))
        rate = mx.abs(cell.w_tau) + mx.abs(cell.ff1(shared))
        np.testing.assert_allclose(reading.rate[:, t], rate, rtol=1e-3)
        rates.append(np.array(rate, np.float64))
        h, _ = cell(mx.array(x[:, t]), h, mx.array(dt[:, t, None]))
    found = scalars(logged(model, x, dt)[0])
    by_hand = np.stack(rates, axis=1)
    gone = 1 - np.exp(-by_hand * dt[..., None])
    assert found["openness"] == pytest.approx(gone.mean(), rel=1e-3)
    assert found["half_time"] == pytest.approx(np.median(np.log(2) / by_hand), rel=1e-3)
    assert "rate_positive" not in found
    expected = np.quantile(1 / reading.rate, 0.5, method="inverted_cdf")
    assert found["decay_q50"] == pytest.approx(expected, rel=1e-6)


def test_three_derivatives_by_time_delta_show_the_same_gate():
    """Of ``c + d z``: ``h''/h' = k(1-2z)`` and ``h'''/h' = k^2(1-6z+6z^2)``; no layer is read."""
    x, dt = batch()
    model = CfC(F, H, backbone_units=6)
    reading, stepper = seen(model, x, dt)
    args, _ = stepper.given[3]
    given = [a.astype(mx.float64) for a in args]
    model.set_dtype(mx.float64, lambda dtype: dtype == mx.float32)
    one = mx.ones_like(given[2])

    def by_interval(function):
        return lambda interval: mx.jvp(function, [interval], [one])[1][0]

    with mx.stream(mx.cpu):
        derived = [lambda interval: model.cell(given[0], given[1], interval)[1]]
        for _ in range(3):
            derived.append(by_interval(derived[-1]))
        first, second, third = (np.array(f(given[2])) for f in derived[1:])
    squared = 3 * (second / first) ** 2 - 2 * third / first
    np.testing.assert_allclose(reading.rate[:, 3] ** 2, squared, rtol=1e-4)
    gate = expit(reading.rate[:, 3] * dt[:, 3, None] + reading.offset[:, 3])
    np.testing.assert_allclose(reading.rate[:, 3] * (1 - 2 * gate), second / first, rtol=1e-3)


def test_a_gate_whose_sign_does_not_show_has_none():
    """Without an offset, both signs give the same states, with early and late exchanged."""
    x, dt = batch()
    model = CfC(F, H, backbone_units=6)
    planted(model.cell, RATES, np.zeros(H), 1)
    writer, notes = logged(model, x, dt)
    found = scalars(writer)
    assert found["gate_q50"] == pytest.approx(0.5)
    assert not {"rate_positive", "openness", "half_time"} & set(found)
    assert any("both signs" in note for note in notes)


class OtherGate(zoo.PortCfCCell):
    """The layers of a CfC, with a gate that is no sigmoid of an affine function of the interval."""

    def __call__(self, inputs, hx, ts):
        x = self.backbone(mx.concatenate([inputs, hx], axis=1))
        gate = mx.sin(self.time_a(x) * mx.reshape(ts, (-1, 1)) ** 2 + self.time_b(x))
        new = mx.tanh(x @ self.ff1.weight.T) * gate
        return new, new


class NotAsItsLayers(nn.Module):
    """Hands on something else than what its CfC gives."""

    def __init__(self):
        super().__init__()
        self.inner = zoo.PortCfCCell(F, H)

    def __call__(self, inputs, hx, ts):
        new = 0.5 * self.inner(inputs, hx, ts)[0] + 0.5 * hx
        return new, new


class Tiring(zoo.PortCfCCell):
    """A pure CfC that slows down."""

    def __call__(self, inputs, hx, ts):
        return super().__call__(inputs, hx, mx.sqrt(mx.reshape(ts, (-1, 1)) + 1.0))


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        (lambda: OtherGate(F, H), "no sigmoid"),
        (NotAsItsLayers, "the concatenation of its layers' outputs"),
        (lambda: Tiring(F, H, "pure"), "don't decay exponentially"),
    ],
)
def test_the_layers_of_a_cfc_do_not_make_one(cell, word):
    writer, notes = logged(zoo.PortRNN(cell()), *batch())
    found = scalars(writer)
    assert any(word in note and "effective" in note for note in notes), notes
    assert not any(name.startswith(("gate", "decay", "rate", "reading")) for name in found)
    assert "effective_q50" in found


# ---- units of time


class Scaled(nn.Module):
    """Hands its cell the intervals in another unit, or as something else."""

    def __init__(self, rnn, change):
        super().__init__()
        self.rnn = rnn
        object.__setattr__(self, "_change", change)

    def __call__(self, x, time_delta):
        return self.rnn(x, self._change(time_delta))[0]


@pytest.mark.parametrize("make", [lambda: CfC(F, H), lambda: CfC(F, H, mode="pure")])
@pytest.mark.parametrize("unit", [10.0, 0.05])
def test_a_model_may_count_time_in_another_unit(make, unit):
    x, dt = batch()
    model = make()
    there = scalars(logged(Scaled(model, lambda dt: dt / unit), x, dt * unit)[0])
    here = scalars(logged(model, x, dt)[0])
    for name, value in here.items():
        if "_q" in name or name == "half_time":
            assert there[name] == pytest.approx(unit * value, rel=1e-3), name
        elif name in ("openness", "rate_positive", "variation"):
            assert there[name] == pytest.approx(value, rel=1e-4), name


def test_an_ltc_in_another_unit():
    x, dt = batch()
    model = LTC(F, AutoNCP(9, 2, seed=3))
    there = scalars(logged(Scaled(model, lambda dt: dt / 10), x, dt * 10)[0])
    here = scalars(logged(model, x, dt)[0])
    for name in ("system_q10", "system_q50", "system_q90", "effective_q50"):
        assert there[name] == pytest.approx(10 * here[name], rel=1e-3), name
    assert there["outside_bounds"] == 0


def test_elapsed_times_in_no_unit_are_reported():
    x, dt = batch()
    model = CfC(F, H, backbone_units=6)
    planted(model.cell, RATES, OFFSETS, 1)
    writer, notes = logged(Scaled(model, mx.log1p), x, dt)
    assert any("not proportional to time_delta" in note for note in notes)
    assert scalars(writer)["gate_q50"] == pytest.approx(0.5)


@pytest.mark.parametrize("port", [False, True])
def test_without_time_delta_time_is_counted_in_steps(port):
    x, _ = batch()
    if port:  # which hands its cell a Python number
        model = zoo.PortRNN(zoo.PortCfCCell(F, H))
        planted(model.rnn_cell, RATES, OFFSETS, -1)
    else:
        model = CfC(F, H, backbone_units=6)
        planted(model.cell, RATES, OFFSETS, 1)
    found = scalars(logged(model, x)[0])
    assert found["gate_q50"] == pytest.approx(0.5)
    opened = 1 / (1 + np.exp(-(RATES + OFFSETS)))
    assert found["openness"] == pytest.approx(opened.mean(), rel=1e-5)


# ---- effective time constants


class LeakyCell(nn.Module):
    """``h' = a h + (1 - a) W x`` with ``a = exp(-dt / tau)``: the time constants are ``tau``."""

    def __init__(self, tau):
        super().__init__()
        self.tau, self.mix = mx.array(tau), mx.random.normal((F, len(tau)))

    def __call__(self, x, h, dt):
        a = mx.exp(-dt / self.tau)
        return a * h + (1 - a) * (x @ self.mix)


class Leaky(nn.Module):
    """Makes each step in so many parts, of such shares of the interval."""

    def __init__(self, tau, parts=(1.0,)):
        super().__init__()
        self.cell, self.parts = LeakyCell(tau), parts

    def __call__(self, x, dt):
        h, outputs = mx.zeros((len(x), len(self.cell.tau))), []
        for t in range(x.shape[1]):
            for part in self.parts:
                h = self.cell(x[:, t], h, dt[:, t, None] * part)
            outputs.append(h)
        return mx.stack(outputs, axis=1)


TAU = np.array([0.2, 1.0, 3.0, 50.0, 400.0], np.float32)


@pytest.mark.parametrize("parts", [(1.0,), (0.5, 0.3, 0.2)])
def test_a_bank_of_leaky_integrators_has_its_time_constants(parts):
    x, dt = batch()
    writer, notes = logged(Leaky(TAU, parts), x, dt)
    median = arrays(writer, "_ncp/time_constants_median")[0]
    # exp(-dt / 400) is a float32 next to 1.
    np.testing.assert_allclose(median, TAU, rtol=2e-3)
    np.testing.assert_allclose(median[:3], TAU[:3], rtol=1e-5)
    found = scalars(writer)
    assert found["effective_q50"] == pytest.approx(3.0, rel=1e-4)
    assert found["endless"] == 0
    assert found["variation"] == pytest.approx(1.0, rel=1e-4)
    assert not notes


def test_units_that_never_forget_are_counted():
    class Adding(LeakyCell):
        def __call__(self, x, h, dt):
            kept = mx.array([1.0, 0.5, 0.25, 1.5, 0.0])
            return kept * h + x @ self.mix

    model = Leaky(TAU)
    model.cell = Adding(TAU)
    x, dt = batch()
    writer, notes = logged(model, x, np.ones_like(dt))
    found = scalars(writer)
    assert found["endless"] == pytest.approx(2 / 5)
    assert found["effective_q50"] == pytest.approx(1 / math.log(2), rel=1e-5)
    assert found["effective_q10"] == 0.0
    # What is larger than all numbers can't be logged.
    assert "effective_q90" not in found
    assert any("effective_q90 is skipped" in note for note in notes)
    assert found["nonfinite"] == 0


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM])
def test_layers_of_mlx_have_effective_ones(layer):
    """Against the loop by hand over the last step, by autograd."""
    x, _ = batch()
    model = zoo.Stack(layer(F, H))
    writer, _ = logged(model, x, callback=TimeConstants(time_steps=T))
    inner, carried, kept = model.layers[0], [], []
    for t in range(T):
        step = mx.array(x[:, t : t + 1])
        if not carried:
            carried = [mx.zeros((S, H))] * (2 if layer is nn.LSTM else 1)

        def after(which, unit, state, step=step, carried=carried):
            given = [state if i == which else c for i, c in enumerate(carried)]
            out = inner(step, *given)
            out = out if isinstance(out, tuple) else (out,)
            return out[which][:, -1, unit].sum()

        for which, state in enumerate(carried):
            slopes = [
                np.array(mx.grad(functools.partial(after, which, i))(state))[:, i] for i in range(H)
            ]
            kept.append(np.stack(slopes, axis=1))
        out = inner(step, *carried)
        carried = [part[:, -1] for part in (out if isinstance(out, tuple) else (out,))]
    with np.errstate(divide="ignore"):
        tau = -1 / np.log(np.abs(np.stack(kept)))
    found = scalars(writer)
    for share in (10, 50, 90):
        expected = np.quantile(tau, share / 100, method="inverted_cdf")
        assert found[f"effective_q{share}"] == pytest.approx(expected, rel=1e-3)


def test_steps_are_spread_over_the_sequence(monkeypatch):
    x, dt = batch(steps=9)
    model = Leaky(TAU)
    few = logged(model, x, dt, callback=TimeConstants(time_steps=3, max_sequences=2))[0]
    np.testing.assert_allclose(arrays(few, "_ncp/time_constants_median")[0], TAU, rtol=2e-3)
    runner = ModelRunner(model, ncp.HeldOutBatch(x, dt))
    looked = []
    monkeypatch.setattr(
        "ncp_callbacks.extra_passes.cell_steps.jacobian_diagonal",
        lambda stepper, t, *rest, **units: (
            looked.append(t) or jacobian_diagonal(stepper, t, *rest, **units)
        ),
    )
    look = passes.observe(runner, 0, {ncp.Need.STATES, ncp.Need.CELL_STEPS})
    list(TimeConstants(time_steps=3).measure(look))
    assert looked == [0, 4, 8]


@pytest.mark.parametrize("at_once", [1, 50, 10**6])
def test_the_diagonal_is_that_of_the_whole_jacobian(at_once, monkeypatch):
    monkeypatch.setattr("ncp_callbacks.model.jacobian_diagonal._MAX_NUMBERS", at_once)
    for model in (LTC(F, H), CfC(F, AutoNCP(9, 2, seed=3))):
        _, stepper = seen(model, *batch())
        for t in (0, 4):
            whole = np.diagonal(stepper.jacobian(t), axis1=1, axis2=2)
            found = jacobian_diagonal(stepper, t, synapses=H * H)
            np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6)


def test_no_steps_leave_effective_ones_to_other_cells():
    x, dt = batch()
    assert not any(
        name.startswith("effective")
        for name in scalars(logged(CfC(F, H), x, dt, callback=TimeConstants(time_steps=0))[0])
    )
    assert "effective_q50" in scalars(
        logged(Leaky(TAU), x, dt, callback=TimeConstants(time_steps=0))[0]
    )


# ---- the callback


MODELS = {
    "cfc": lambda: CfC(F, H, backbone_units=6),
    "cfc-no_gate": lambda: CfC(F, H, mode="no_gate", backbone_units=6),
    "cfc-pure": lambda: CfC(F, H, mode="pure", backbone_units=6),
    "cfc-wired": lambda: CfC(F, AutoNCP(9, 2, seed=3)),
    "cfc-wired-pure": lambda: CfC(F, AutoNCP(9, 2, seed=3), mode="pure"),
    "ltc": lambda: LTC(F, H),
    "ltc-wired": lambda: LTC(F, AutoNCP(9, 2, seed=3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_our_models_are_read_as_what_they_are(name):
    writer, notes = logged(MODELS[name](), *batch())
    found = scalars(writer)
    own = "decay" if "pure" in name else name.split("-")[0].replace("cfc", "gate")
    assert f"{own.replace('ltc', 'system')}_q50" in found
    assert found["reading_error"] < 1e-5
    assert all(math.isfinite(value) for value in found.values())
    assert not notes


LIQUID = {
    "port/cfc-default": "gate",
    "port/cfc-pure": "decay",
    "port/cfc-no_gate": "gate",
    "port/cfc-deep-dropout-proj": "gate",
    "port/cfc-last-only-no-backbone": "gate",
    "port/wired-cfc": "gate",
    "port/cfc-time-first": "gate",
    "port/cfc-profiled": "gate",
    "enhanced/late-cfc": "gate",
    "enhanced/late-cfc-deep": "gate",
    "enhanced/late-cfc-layers-too": "gate",
}


SHOWN = [
    name
    for name in zoo.EXAMPLES
    if name.startswith(("port/", "enhanced/", "nn/", "hand/state", "hand/between-sliced"))
    or name.endswith(("sub-steps", "step-module", "ways", "busy", "float16", "float64"))
]


@pytest.mark.parametrize("name", SHOWN)
def test_every_model_of_the_zoo_has_its_time_constants_or_says_why_not(name):
    case = zoo.EXAMPLES[name]
    x, dt = zoo.data(case)
    model = zoo.made(case)
    if name.startswith("enhanced/"):
        case.plain(model, x, dt)
    writer, notes = logged(model, x, dt, forward=case.forward)
    tags = {r.tag for step, r in writer.records if step}
    values = [r.value for step, r in writer.records if step and isinstance(r, ncp.Scalar)]
    assert all(math.isfinite(value) for value in values)
    if name in LIQUID:
        assert f"time_constants/{LIQUID[name]}_q50" in tags
        assert not any("logged instead" in note for note in notes)
    if not any(tag.startswith("time_constants") for tag in tags):
        assert sum(note.startswith("time_constants doesn't apply") for note in notes) == 1


def test_a_model_without_a_cell_is_reported_once():
    writer, notes = logged(Flat(T * F), batch()[0], steps=3)
    assert sum("time_constants doesn't apply" in note for note in notes) == 1
    assert not any("time_constants/" in r.tag for _, r in writer.records)


def test_several_cells_have_names_of_their_own():
    x, _ = batch()
    writer, _ = logged(zoo.Stack(nn.GRU(F, H), nn.LSTM(H, H)), x)
    tags = {r.tag for step, r in writer.records if step}
    assert {"time_constants_0/effective_q50", "time_constants_1/effective_q50"} <= tags
    assert arrays(writer, "_ncp/time_constants_1_median")[0].shape == (2 * H,)


def test_cells_that_cannot_be_run_again_are_named_beside_those_that_can():
    case = zoo.EXAMPLES["nn/gru-bidirectional"]
    x, dt = zoo.data(case)
    writer, notes = logged(zoo.made(case), x, dt)
    assert sum("backwards" in note and "no time constants" in note for note in notes) == 2
    assert any(r.tag == "time_constants_forwards_0/effective_q50" for _, r in writer.records)


def test_padding_does_not_matter():
    x, dt = batch()
    mask = np.ones((S, T), bool)
    mask[1, 3:], mask[3, 1:] = False, False
    values = []
    for fill in (0.0, 7.0):
        other, intervals = x.copy(), dt.copy()
        other[~mask], intervals[~mask] = fill, 1 + fill
        for model in (LTC(F, AutoNCP(9, 2, seed=3)), CfC(F, H, backbone_units=6)):
            mx.random.seed(5)
            model.update(
                type(model)(
                    F,
                    AutoNCP(9, 2, seed=3) if isinstance(model, LTC) else H,
                    **({} if isinstance(model, LTC) else {"backbone_units": 6}),
                ).parameters()
            )
            held_out = ncp.HeldOutBatch(other, intervals, mask=mask)
            writer, _ = logged(model, None, held_out=held_out)
            values.append({k: v for k, v in scalars(writer).items() if k != "reading_error"})
    assert values[0].keys() == values[2].keys()
    for one, same in ((0, 2), (1, 3)):
        for name, value in values[one].items():
            assert values[same][name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("name", ["cfc", "cfc-pure", "ltc", "gru"])
def test_what_is_not_finite_is_counted_and_not_logged(name):
    x, dt = batch()
    model = MODELS[name]() if name != "gru" else zoo.Stack(nn.GRU(F, H))
    held_out = ncp.HeldOutBatch(x, None if name == "gru" else dt)
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, [TimeConstants()], writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        model.update(
            nn.utils.tree_map(
                lambda a: mx.full(a.shape, mx.nan) if a.ndim == 1 else a, model.parameters()
            )
        )
        monitor.on_step_end(2)
        assert monitor.callbacks
    for step, record in writer.records:
        if step and isinstance(record, ncp.Scalar):
            assert math.isfinite(record.value), (step, record.tag)
    assert writer.scalars("time_constants/nonfinite")[0] == (1, 0)
    assert writer.scalars("time_constants/nonfinite")[1][1] > 0


def test_the_docstring_lists_every_tag_and_no_other():
    kinds = {
        ncp.Scalar: "scalar", ncp.Histogram: "histogram", ncp.Figure: "image", ncp.Array: "array"
    }  # fmt: skip
    promises = promised(TimeConstants)
    records = [
        record
        for make in (*MODELS.values(), lambda: Leaky(TAU))
        for step, record in logged(make(), *batch(), steps=2)[0].records
        if step and "time_constants" in record.tag and not record.tag.startswith("monitor/")
    ]
    for record in records:
        fitting = [tag for tag in promises if pattern(tag).match(record.tag)]
        assert fitting, f"{record.tag} is not in the table"
        assert promises[fitting[0]] == kinds[type(record)], record.tag
        assert isinstance(record, ncp.Array) or record.description
    for tag in promises:
        assert any(pattern(tag).match(r.tag) for r in records), f"{tag} was never logged"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_units": 0}, "max_units=0: pass a whole number of at least 1"),
        ({"time_steps": -1}, "time_steps=-1: pass a whole number of at least 0"),
        ({"time_steps": 2.5}, "time_steps=2.5"),
        ({"max_units": True}, "max_units=True"),
        ({"max_sequences": 0}, "max_sequences=0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimeConstants(**arguments)


def figures(writer):
    # Those of the callback, without the monitor's picture of the findings.
    return [
        r
        for step, r in writer.records
        if step and isinstance(r, ncp.Figure) and r.tag != "findings/overview"
    ]


def test_the_first_snapshot_is_remembered_over_an_interruption():
    x, dt = batch()
    model = LTC(F, H)
    callback = TimeConstants()
    first, earlier = figures(logged(model, x, dt, callback=callback)[0])[:2]
    assert first.options["first"] is None
    state = json.loads(json.dumps(callback.state_dict(), default=lambda a: np.asarray(a).tolist()))
    model.cell.cm = model.cell.cm + 2.0
    resumed = TimeConstants()
    resumed.load_state_dict(copy.deepcopy(state))
    for again in (callback, resumed):
        record = figures(logged(model, x, dt, callback=again)[0])[0]
        np.testing.assert_array_equal(record.options["first"], first.data.unit_median.astype("f4"))
        assert record.options["decades"][0] <= first.options["decades"][0]
        assert record.options["decades"][1] >= first.options["decades"][1]
    later = figures(logged(model, x, dt, callback=callback)[0])[1]
    for again in (callback, resumed):
        record = figures(logged(model, x, dt, callback=again)[0])[1]
        assert record.options["limits"] == later.options["limits"]
        assert record.options["limits"][0] <= earlier.options["limits"][0]
        assert record.options["limits"][1] >= earlier.options["limits"][1]


def test_a_snapshot_leaves_no_trace():
    x, dt = batch()
    for make in MODELS.values():
        model = make()
        before = nn.utils.tree_flatten(model.parameters())
        classes = [type(m) for m in model.modules()]
        key = mx.random.state[0].tolist()
        logged(model, x, dt)
        assert [type(m) for m in model.modules()] == classes
        assert mx.random.state[0].tolist() == key
        for (name, old), (other, new) in zip(
            before, nn.utils.tree_flatten(model.parameters()), strict=True
        ):
            assert name == other
            assert mx.array_equal(old, new), name


# ---- the picture


def result(units=19, kind="system", seed=0):
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0, 1, units)
    values = 10 ** (rng.normal(size=(3, 8, units)) * spread + rng.normal(size=units))
    return unit_time_constants(values, kind=kind)


def test_units_are_sorted_and_their_lines_are_their_medians():
    shown = result()
    figure = plot_time_constants(shown, time_delta=0.5, duration=20.0, step=3000)
    axes = figure.axes[0]
    (medians, *_) = (c for c in axes.collections if len(c.get_segments()) == 19)
    lines = medians.get_segments()
    assert len(lines) == 19
    heights = [line[0][1] for line in lines]
    np.testing.assert_allclose(heights, np.sort(np.log10(shown.unit_median)))
    (bars,) = axes.patches
    top, _, bottom = bars.get_data()
    order = np.argsort(shown.unit_median)
    low, high = axes.get_ylim()
    np.testing.assert_allclose(top, np.clip(np.log10(shown.unit_high[order]), low, high))
    np.testing.assert_allclose(bottom, np.clip(np.log10(shown.unit_low[order]), low, high))
    assert title(figure) == "time constants of the LTC · step 3,000"
    check_text(figure)


@pytest.mark.parametrize("kind", ["system", "gate", "decay", "effective"])
@pytest.mark.parametrize("units", [1, 2, 19, 64, 65, 500])
def test_time_constants_are_readable_at_any_size(kind, units):
    figure = plot_time_constants(
        result(units, kind), first=result(units, kind, 1).unit_median, time_delta=1, duration=48,
        timed=kind != "effective", step=10_000_000,
    )  # fmt: skip
    check_text(figure)
    assert {"first", "Δt", "sequence"} <= {t.get_text() for t in texts(figure)}


def test_nothing_infinite_is_drawn():
    values = np.full((2, 3, 4), np.inf)
    values[..., 0] = 0.0
    values[..., 1] = np.nan
    shown = unit_time_constants(values, kind="effective")
    figure = plot_time_constants(shown, time_delta=1.0, duration=3.0)
    drawn(figure)
    check_text(figure)
    assert "∞" in words(figure)
    none = plot_time_constants(unit_time_constants(np.full((1, 2, 3), np.nan), kind="gate"))
    assert "none that are finite" in words(none)


def test_axes_span_whole_decades_around_the_data():
    shown = unit_time_constants(np.array([[[0.02, 5.0, 300.0]]]), kind="gate")
    assert needed_decades(shown, None, 1.0, 10.0) == (-2, 3)
    assert needed_decades(shown, [1e-3], 1.0, 10.0) == (-3, 3)
    # Not further than a few decades beyond the intervals and sequences.
    far = unit_time_constants(np.array([[[1e-20, 1e20]]]), kind="gate")
    assert needed_decades(far, None, 1.0, 10.0) == (-3, 4)
    with pytest.raises(ValueError, match="time_delta=0"):
        needed_decades(shown, None, 0, 10.0)
    with pytest.raises(ValueError, match="decades="):
        plot_time_constants(shown, decades=(2, 2))


@given(seeds)
def test_medians_at_each_step_are_numpys(seed):
    rng = np.random.default_rng(seed)
    sequences = int(rng.integers(1, 7))
    values = 10 ** rng.normal(size=(sequences, 5, 3))
    values[rng.uniform(size=values.shape) < 0.2] = np.inf
    lengths = rng.integers(0, 6, sequences)
    mask = np.arange(5) < lengths[:, None]
    found = unit_time_constants(values, kind="effective", mask=mask).over_time
    for t in range(5):
        there = values[mask[:, t], t]
        expected = np.full(3, np.nan)
        if len(there):
            expected = np.quantile(there, 0.5, axis=0, method="inverted_cdf")
        np.testing.assert_array_equal(found[t], expected)


def image_of(figure):
    (image,) = figure.axes[0].images
    return image.get_array()


def test_the_map_has_slow_units_on_top_and_steps_across():
    values = 10.0 ** np.array([[[-1, 2, 0], [1, 2, 0], [1, 5, -7]]])
    values = np.concatenate([values, 2 * values, values / 2])
    figure = plot_time_constants_over_time(
        unit_time_constants(values, kind="system"), limits=(1e-3, 1e3), step=4
    )
    np.testing.assert_allclose(
        image_of(figure), [[2.0, 2.0, 3.0], [-1.0, 1.0, 1.0], [0.0, 0.0, -3.0]], atol=1e-12
    )
    assert title(figure) == "time constants of the LTC · step 4"
    assert "0.001" in words(figure)
    assert "1,000" in words(figure)
    check_text(figure)


def test_time_steps_that_were_not_analysed_are_those_nearest():
    values = np.full((2, 7, 2), np.nan)
    values[:, 1], values[:, 5] = (1.0, 10.0), (10.0, 100.0)
    values[:, 1, 1] = np.nan
    figure = plot_time_constants_over_time(
        unit_time_constants(values, kind="effective"), timed=False
    )
    found = image_of(figure)
    # The second unit is the slower one, and has nothing at the first step looked at.
    np.testing.assert_array_equal(found[0].mask, [True] * 4 + [False] * 3)
    np.testing.assert_allclose(found[1], [0, 0, 0, 0, 1, 1, 1], atol=1e-12)
    assert "steps" in words(figure)
    for limits in ((1, 1), (0, 1), (1, math.inf)):
        with pytest.raises(ValueError, match="limits="):
            plot_time_constants_over_time(unit_time_constants(values, kind="gate"), limits=limits)


def test_limits_of_maps_are_around_nearly_all():
    def limits(values):
        return needed_limits(unit_time_constants(np.asarray(values)[None], kind="gate"))

    assert limits([[0.3, 4.0, np.inf], [0.25, 30.0, 0.0]]) == pytest.approx((0.2, 50.0))
    # Not around a few that are far out.
    assert limits([[0.3] * 99 + [1e9]]) == pytest.approx((0.2, 0.5))
    assert limits([[2.0]]) == pytest.approx((2.0, 4.0))
    assert limits([[np.inf, np.nan]]) == (1.0, 10.0)


@pytest.mark.parametrize("kind", ["system", "gate", "decay", "effective"])
@pytest.mark.parametrize(("units", "steps"), [(1, 1), (2, 3), (19, 600), (500, 50), (64, 5000)])
def test_maps_are_readable_at_any_size(kind, units, steps):
    rng = np.random.default_rng(0)
    values = 10 ** rng.normal(size=(2, steps, units))
    figure = plot_time_constants_over_time(
        unit_time_constants(values, kind=kind), timed=kind != "effective", step=10_000_000
    )
    check_text(figure)
    assert (drawn(figure) < 128).any()


def test_a_map_of_nothing_is_grey():
    figure = plot_time_constants_over_time(
        unit_time_constants(np.full((2, 3, 4), np.nan), kind="gate")
    )
    assert image_of(figure).mask.all()
    drawn(figure)


def test_a_redrawer_draws_the_same_picture():
    first = result(seed=1).unit_median
    options = {"first": first, "duration": 30.0, "step": 7}
    check_redraws(
        plot_time_constants, (result(), options), (result(), {"time_delta": 0.1, "step": 1234})
    )
    options = {"limits": (0.01, 100.0), "step": 7}
    check_redraws(
        plot_time_constants_over_time,
        (result(), options),
        (result(), {"timed": False, "step": 1234}),
    )
