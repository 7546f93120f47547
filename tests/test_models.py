"""The reference models against ncps.torch, and against properties that need no other code."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import ncps.wirings
import numpy as np
import pytest
from mlx.utils import tree_flatten
from ncps.wirings import NCP, AutoNCP, Wiring

from ncp_callbacks.models import LTC, CfC, CfCCell, LeCunTanh, LTCCell, WiredCfCCell
from ncp_callbacks.models.wiring import FullyConnected

GOLDEN = Path(__file__).parent / "golden"
B, T, F, H = 3, 6, 4, 5

MODELS = {
    "cfc-default": lambda: CfC(F, H, backbone_units=8),
    "cfc-pure": lambda: CfC(F, H, mode="pure", backbone_units=8, backbone_layers=2),
    "cfc-no-gate": lambda: CfC(F, H, mode="no_gate", backbone_layers=0),
    "cfc-projected": lambda: CfC(F, H, backbone_units=8, proj_size=2, activation="silu"),
    "cfc-wired": lambda: CfC(F, AutoNCP(8, 2, seed=3)),
    "cfc-wired-pure": lambda: CfC(F, AutoNCP(8, 2, seed=3), mode="pure"),
    "ltc": lambda: LTC(F, H),
    "ltc-wired": lambda: LTC(F, AutoNCP(8, 2, seed=3)),
    "ltc-explicit": lambda: LTC(F, H, implicit_param_constraints=False),
}


@pytest.fixture(autouse=True)
def _seed():
    mx.random.seed(0)


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture
def x():
    return mx.random.normal((B, T, F), key=mx.random.key(1))


@pytest.fixture
def time_delta():
    return mx.random.uniform(0.05, 3.0, (B, T), key=mx.random.key(2))


def assert_close(actual, expected, atol=1e-5):
    actual, expected = (
        np.array(a.astype(mx.float32)) if isinstance(a, mx.array) and a.dtype == mx.bfloat16 else a
        for a in (actual, expected)
    )
    np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=0, atol=atol)


def assert_finite(tree):
    for name, value in tree_flatten(tree):
        assert mx.isfinite(value).all(), name


# --- ncps.torch


def golden_cases(kind):
    with np.load(GOLDEN / f"ncps_torch_{kind}.npz") as file:
        names = [key.removesuffix("/meta") for key in file if key.endswith("/meta")]
    return [pytest.param(kind, name, id=f"{kind}-{name}") for name in names]


def build(kind, config):
    """The MLX model for a golden case."""
    kwargs = dict(config)
    units = H
    if (wiring := kwargs.pop("wiring", None)) is not None:
        arguments = dict(wiring)
        units = getattr(ncps.wirings, arguments.pop("kind"))(**arguments)
    return {"cfc": CfC, "ltc": LTC}[kind](3, units, **kwargs)


def from_ncps_torch(name):
    """Our name for a parameter of ncps.torch."""
    name = name.replace("rnn_cell.", "cell.", 1)
    if name.startswith("fc."):
        return name.replace("fc.", "projection.", 1)
    if name.startswith("cell.backbone."):
        return name.replace("backbone.", "backbone.layers.", 1)
    return name.replace("cell.layer_", "cell.layers.", 1)


def load_ncps_torch(model, weights, dtype):
    """Set all parameters; the masks must agree already."""
    masks = {n: v for n, v in tree_flatten(model.parameters()) if n.endswith("mask")}
    loaded = dict(masks)
    compared = set()
    for name, value in weights.items():
        name = from_ncps_torch(name)
        if not name.endswith("sparsity_mask"):
            loaded[name] = mx.array(value, dtype=dtype)
            continue
        # ncps keeps one mask per layer, we one per head.
        layer = name.removesuffix("sparsity_mask")
        for mask in [name] if name in masks else [n for n in masks if n.startswith(layer)]:
            np.testing.assert_array_equal(np.array(masks[mask]), value != 0, err_msg=mask)
            compared.add(mask)
    assert compared == set(masks)
    model.load_weights(list(loaded.items()), strict=True)


def golden(kind, name, dtype):
    with np.load(GOLDEN / f"ncps_torch_{kind}.npz") as file:
        case = {key.split("/")[-1]: file[key] for key in file if key.startswith(f"{name}/")}
        x, time_delta = (mx.array(file[key], dtype=dtype) for key in ("x", "time_delta"))
    meta = json.loads(str(case["meta"]))
    model = build(kind, meta["config"])
    ends = np.cumsum([np.prod(shape) for shape in meta["weights"].values()], dtype=int)[:-1]
    weights = {
        key: flat.reshape(shape)
        for (key, shape), flat in zip(
            meta["weights"].items(), np.split(case["weights"], ends), strict=True
        )
    }
    load_ncps_torch(model, weights, dtype)
    return model, x, time_delta, mx.array(case["state0"], dtype=dtype), case


@pytest.mark.parametrize(("kind", "name"), [*golden_cases("cfc"), *golden_cases("ltc")])
def test_equals_ncps_torch(kind, name):
    check_golden(kind, name, mx.float32, tolerance=1e-5)


@pytest.mark.parametrize(("kind", "name"), [*golden_cases("cfc"), *golden_cases("ltc")])
def test_equals_ncps_torch_in_double_precision(kind, name):
    # MLX has float64 on the CPU only, and its exp and sigmoid have single precision there too.
    with mx.stream(mx.cpu):
        check_golden(kind, name, mx.float64, tolerance=1e-6)


def check_golden(kind, name, dtype, tolerance):
    model, x, time_delta, state0, case = golden(kind, name, dtype)

    def last(x, time_delta):
        return model(x, time_delta, state0)[0][:, -1].sum()

    outputs, state = model(x, time_delta, state0)
    assert outputs.dtype == state.dtype == dtype
    grad_x, grad_time_delta = mx.grad(last, argnums=(0, 1))(x, time_delta)
    actual = {"outputs": outputs, "state": state}
    actual |= {"grad_x": grad_x, "grad_time_delta": grad_time_delta}
    for key, value in actual.items():
        size = np.abs(case[key]).max()
        assert size > 0
        # Some gradients are small as a whole.
        assert_close(value, case[key], tolerance * min(5 * size, 1))


def test_lecun_tanh():
    v = np.linspace(-4, 4, 9, dtype=np.float32)
    assert_close(LeCunTanh()(mx.array(v)), 1.7159 * np.tanh(0.666 * v), atol=1e-6)


# --- sequences, batches and elapsed time


def test_shapes(model, x, time_delta):
    outputs, state = model(x, time_delta)
    assert outputs.shape == (B, T, model.output_size)
    assert state.shape == (B, model.units)
    model.return_sequences = False
    last, same_state = model(x, time_delta)
    assert last.shape == (B, model.output_size)
    assert_close(last, outputs[:, -1], 1e-6)
    assert_close(same_state, state, 0)


@pytest.mark.parametrize("cut", [1, 3, T - 1])
def test_state_carries_a_sequence_on(model, x, time_delta, cut):
    outputs, state = model(x, time_delta)
    first, carried = model(x[:, :cut], time_delta[:, :cut])
    second, final = model(x[:, cut:], time_delta[:, cut:], carried)
    assert_close(mx.concatenate([first, second], axis=1), outputs, 1e-6)
    assert_close(final, state, 1e-6)


def test_no_state_is_a_zero_state(model, x):
    assert_close(model(x)[0], model(x, state=mx.zeros((B, model.units)))[0], 0)


def test_sequences_of_a_batch_do_not_see_each_other(model, x, time_delta):
    outputs, state = model(x, time_delta)
    for i in range(B):
        alone, alone_state = model(x[i : i + 1], time_delta[i : i + 1])
        assert_close(alone[0], outputs[i], 1e-6)
        assert_close(alone_state[0], state[i], 1e-6)


def test_batch_of_as_many_sequences_as_units(time_delta):
    # Where intervals could be paired with units by mistake.
    model = CfC(F, B, backbone_units=8)
    x = mx.random.normal((B, T, F))
    outputs, _ = model(x, time_delta)
    for i in range(B):
        assert_close(model(x[i : i + 1], time_delta[i : i + 1])[0][0], outputs[i], 1e-6)


def test_outputs_are_causal(model, x, time_delta):
    grad_x, grad_dt = mx.grad(lambda x, dt: model(x, dt)[0][:, 2].sum(), argnums=(0, 1))(
        x, time_delta
    )
    assert mx.abs(grad_x[:, 3:]).max() == 0
    assert mx.abs(grad_dt[:, 3:]).max() == 0
    assert mx.abs(grad_x[:, :3]).max() > 0
    assert mx.abs(grad_dt[:, :3]).max() > 0


@pytest.mark.parametrize(
    "one",
    [
        1,
        1.0,
        np.float64(1),
        np.ones((B, T)),
        mx.array(1.0),
        mx.array(1),
        mx.ones((B, T)),
        mx.ones((B, T, 1)),
        mx.ones((B, T), dtype=mx.int32),
    ],
    ids=lambda one: f"{type(one).__module__}-{getattr(one, 'dtype', '')}-{np.shape(one)}",
)
def test_no_time_delta_is_one(model, x, one):
    assert_close(model(x, one)[0], model(x)[0], 0)


def test_trailing_axis_of_time_delta(model, x, time_delta):
    expected = model(x, time_delta)[0]
    assert_close(model(x, time_delta[..., None])[0], expected, 0)
    assert_close(model(x, np.array(time_delta))[0], expected, 0)


def test_time_gradient_is_the_slope(model, x, time_delta):
    def total(dt):
        return model(x, dt)[0].sum()

    gradient = mx.grad(total)(time_delta)
    direction = mx.random.normal(time_delta.shape)
    step = 1e-2
    slope = (total(time_delta + step * direction) - total(time_delta - step * direction)) / (
        2 * step
    )
    assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=0.02, abs=0.01)


def test_cfc_without_time_weights_ignores_time(x, time_delta):
    for wired in (False, True):
        model = CfC(F, AutoNCP(8, 2)) if wired else CfC(F, H)
        for cell in model.cell.layers if wired else [model.cell]:
            cell.time_a.weight = mx.zeros_like(cell.time_a.weight)
            cell.time_a.bias = mx.zeros_like(cell.time_a.bias)
        gradient = mx.grad(lambda dt, m=model: m(x, dt)[0].sum())(time_delta)
        assert mx.abs(gradient).max() == 0
        assert_close(model(x, time_delta)[0], model(x)[0], 1e-6)


def test_pure_cfc_forgets_its_head_after_a_long_time(x):
    model = CfC(F, H, mode="pure")
    _, state = model(x, 1e6)
    assert_close(state, mx.broadcast_to(model.cell.A, (B, H)))


# --- LTC against its differential equation


def uncoupled_ltc(ode_unfolds):
    """An LTC whose neurons do not see each other, so that a held input has a closed form."""
    mx.random.seed(4)
    model = LTC(F, H, ode_unfolds=ode_unfolds, implicit_param_constraints=False)
    model.cell.w = mx.zeros_like(model.cell.w)
    return model


def closed_form(cell, x):
    """Time constant and resting potential, each (B, units), for an input held at ``x``."""
    p = {name: np.array(value, dtype=np.float64) for name, value in cell.parameters().items()}
    u = np.array(x, dtype=np.float64) * p["input_w"] + p["input_b"]
    open_fraction = 1 / (1 + np.exp(-p["sensory_sigma"] * (u[..., None] - p["sensory_mu"])))
    synapses = p["sensory_w"] * open_fraction
    conductance = p["gleak"] + synapses.sum(1)
    drive = p["gleak"] * p["vleak"] + (synapses * p["sensory_erev"]).sum(1)
    return p["cm"] / conductance, drive / conductance


def test_ltc_sub_step_is_the_fused_step(x):
    cell = uncoupled_ltc(1).cell
    v, dt = mx.random.normal((B, H)), mx.random.uniform(0.1, 3, (B, 1))
    tau, rest = closed_form(cell, x[:, 0])
    keep = 1 / (1 + np.array(dt) / tau)
    assert_close(cell(x[:, 0], v, dt)[1], keep * np.array(v) + (1 - keep) * rest)


def test_ltc_solver_converges_to_the_exponential(x):
    v, dt = mx.random.normal((B, H)), 0.7

    def error(unfolds):
        cell = uncoupled_ltc(unfolds).cell
        tau, rest = closed_form(cell, x[:, 0])
        exact = rest + (np.array(v) - rest) * np.exp(-dt / tau)
        return np.abs(np.array(cell(x[:, 0], v, dt)[1]) - exact).max()

    assert error(32) / error(64) == pytest.approx(2, rel=0.1)
    assert error(1000) < 2e-3


def test_ltc_held_input_reaches_the_resting_potential(x):
    model = uncoupled_ltc(6)
    held = mx.broadcast_to(x[:, :1], (B, 20, F))
    _, rest = closed_form(model.cell, x[:, 0])
    assert_close(model(held, 50.0, mx.random.normal((B, H)))[1], rest)


def test_ltc_coupled_state_comes_to_rest_where_currents_balance(x):
    cell = LTC(F, AutoNCP(8, 2)).cell
    v = mx.zeros((B, 8))
    for _ in range(30):
        v = cell(x[:, 0], v, 20.0)[1]
    drift = cell(x[:, 0], v, 1e-3)[1] - v
    assert mx.abs(drift).max() < 1e-6


@pytest.mark.parametrize("wired", [False, True])
def test_ltc_state_stays_in_the_hull_of_its_reversal_potentials(x, time_delta, wired):
    model = LTC(F, AutoNCP(8, 2) if wired else 8)
    cell = model.cell
    v = 2 * mx.random.normal((B, 8))
    ends = [np.array(v), np.array(mx.broadcast_to(cell.vleak, v.shape))]
    for erev, mask in (("erev", "sparsity_mask"), ("sensory_erev", "sensory_sparsity_mask")):
        connected = np.where(np.array(cell[mask]), np.array(cell[erev]), np.nan)
        ends += [np.broadcast_to(row, v.shape) for row in connected]
    low, high = np.nanmin(ends, axis=0), np.nanmax(ends, axis=0)
    for scale in (0.01, 1, 100):
        state = np.array(model(10 * x, scale * time_delta, v)[1])
        assert (state >= low - 1e-6).all()
        assert (state <= high + 1e-6).all()


def test_no_time_leaves_an_ltc_where_it_is(x):
    model = LTC(F, H)
    v = mx.random.normal((B, H))
    assert_close(model(x, 0, v)[1], v, 1e-6)
    assert_finite(mx.grad(lambda dt: model(x, dt, v)[0].sum())(mx.zeros((B, T))))


# --- numbers


@pytest.mark.parametrize("scale", [1, 100, 1e4])
def test_gradients_are_finite_for_large_inputs(model, x, time_delta, scale):
    def loss(params, x, dt):
        model.update(params)
        outputs, state = model(x, dt)
        return (outputs**2).sum() + state.sum()

    gradients = mx.grad(loss, argnums=(0, 1, 2))(
        model.trainable_parameters(), scale * x, scale * time_delta
    )
    assert_finite({"parameters": gradients[0], "x": gradients[1], "time_delta": gradients[2]})


@pytest.mark.parametrize("size", [-1e3, 1e3])
def test_gradients_are_finite_at_saturated_gates(x, time_delta, size):
    model = CfC(F, H, backbone_layers=0)
    for head in ("ff1", "ff2", "time_a", "time_b"):
        model.cell[head].bias = mx.full((H,), size)
    ltc = LTC(F, H)
    ltc.cell.sigma = mx.full((H, H), size)
    ltc.cell.mu = mx.full((H, H), -1.0)
    ltc.cell.w = mx.full((H, H), size)
    for saturated in (model, ltc):
        loss = nn.value_and_grad(saturated, lambda m: m(x, time_delta)[0].sum())
        value, gradients = loss(saturated)
        assert mx.isfinite(value)
        assert_finite(gradients)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(model, x, time_delta, dtype):
    expected = model(x, time_delta)[0]
    model.set_dtype(dtype)
    outputs, state = model(x.astype(dtype), time_delta)
    assert outputs.dtype == state.dtype == dtype
    assert_close(outputs.astype(mx.float32), expected, 0.1)
    gradients = mx.grad(lambda x, dt: model(x, dt)[0].sum(), argnums=(0, 1))(
        x.astype(dtype), time_delta
    )
    assert [g.dtype for g in gradients] == [dtype, mx.float32]
    assert_finite(list(gradients))


def test_derivatives_of_derivatives(model, x, time_delta):
    def sensitivity(x):
        return (mx.grad(lambda dt: model(x, dt)[0].sum())(time_delta) ** 2).sum()

    assert_finite([mx.grad(sensitivity)(x)])


def test_under_vmap(model, x, time_delta):
    stacked = mx.vmap(lambda x, dt: model(x[None], dt[None])[0][0])(x, time_delta)
    assert_close(stacked, model(x, time_delta)[0])


def test_under_compile(x, time_delta):
    model, x, time_delta = CfC(F, H, backbone_layers=0), x[:, :2], time_delta[:, :2]
    compiled = mx.compile(lambda x, dt: model(x, dt)[0])
    assert_close(compiled(x, time_delta), model(x, time_delta)[0])


# --- modules and parameters


def test_the_cell_is_called_once_per_step(model, x, time_delta, monkeypatch):
    calls = []
    original = type(model.cell).__call__

    def spy(self, *args):
        result = original(self, *args)
        if self is model.cell:
            calls.append([a.shape for a in (*args, *result)])
        return result

    monkeypatch.setattr(type(model.cell), "__call__", spy)
    for intervals in (time_delta, time_delta[..., None], None, 0.5):
        calls.clear()
        model(x, intervals)
        width = model.cell.output_size
        assert calls == [[(B, F), (B, model.units), (B, 1), (B, width), (B, model.units)]] * T


def test_every_layer_of_a_cfc_is_called(x, monkeypatch):
    called = []
    original = nn.Linear.__call__

    def spy(self, value):
        called.append(id(self))
        return original(self, value)

    monkeypatch.setattr(nn.Linear, "__call__", spy)
    model = CfC(F, H, backbone_layers=2)
    model(x)
    cell = model.cell
    expected = [cell.backbone.layers[0], cell.backbone.layers[2]]
    expected += [cell.ff1, cell.ff2, cell.time_a, cell.time_b]
    assert sorted(called) == sorted([id(layer) for layer in expected] * T)


def test_kinds_of_cells():
    assert type(CfC(F, H).cell) is CfCCell
    assert type(CfC(F, AutoNCP(8, 2)).cell) is WiredCfCCell
    assert type(LTC(F, H).cell) is LTCCell


def test_backbone_is_a_sequence_of_modules():
    layers = CfC(F, H, backbone_layers=2, backbone_dropout=0.1).cell.backbone.layers
    assert [type(layer) for layer in layers] == [nn.Linear, LeCunTanh, nn.Dropout] * 2
    assert CfC(F, H, backbone_layers=0).cell.backbone is None


HEADS = {
    f"{head}.{kind}" for head in ("ff1", "ff2", "time_a", "time_b") for kind in ("weight", "bias")
}
SYNAPSES = {f"{s}{name}" for s in ("", "sensory_") for name in ("w", "mu", "sigma", "erev")}
LTC_NAMES = SYNAPSES | {"gleak", "vleak", "cm", "input_w", "input_b", "output_w", "output_b"}


def names(tree):
    return {name for name, _ in tree_flatten(tree)}


@pytest.mark.parametrize(
    ("make", "trainable", "constant"),
    [
        (
            lambda: CfC(F, H),
            {f"cell.{n}" for n in HEADS}
            | {"cell.backbone.layers.0.weight", "cell.backbone.layers.0.bias"},
            set(),
        ),
        (
            lambda: CfC(F, H, mode="pure", backbone_layers=0, proj_size=2),
            {"cell.ff1.weight", "cell.ff1.bias", "cell.w_tau", "cell.A"}
            | {"projection.weight", "projection.bias"},
            set(),
        ),
        (
            lambda: CfC(F, AutoNCP(8, 2)),
            {f"cell.layers.{i}.{n}" for i in range(3) for n in HEADS},
            {f"cell.layers.{i}.{ff}.mask" for i in range(3) for ff in ("ff1", "ff2")},
        ),
        (
            lambda: LTC(F, H),
            {f"cell.{n}" for n in LTC_NAMES},
            {"cell.sparsity_mask", "cell.sensory_sparsity_mask"},
        ),
        (
            lambda: LTC(F, H, input_mapping=None, output_mapping="linear"),
            {f"cell.{n}" for n in LTC_NAMES - {"input_w", "input_b", "output_b"}},
            {"cell.sparsity_mask", "cell.sensory_sparsity_mask"},
        ),
    ],
)
def test_parameters(make, trainable, constant, x):
    model = make()
    assert names(model.trainable_parameters()) == trainable
    assert names(model.parameters()) == trainable | constant
    model(x)
    assert names(model.parameters()) == trainable | constant


@pytest.mark.parametrize("make", [lambda: CfC(F, AutoNCP(8, 2)), lambda: LTC(F, AutoNCP(8, 2))])
def test_constants_stay_frozen(make):
    model = make()
    trainable = names(model.trainable_parameters())
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        parent = nn.Sequential(copied)
        parent.freeze()
        assert not names(parent.trainable_parameters())
        parent.unfreeze()
        assert names(copied.trainable_parameters()) == trainable
        copied.unfreeze(keys=["mask", "sparsity_mask", "sensory_sparsity_mask"])
        assert names(copied.trainable_parameters()) == trainable


def test_parameters_do_train(model, x, time_delta):
    def loss(model):
        return (model(x, time_delta)[0] ** 2).mean()

    step = nn.value_and_grad(model, loss)
    constants = {n: v for n, v in tree_flatten(model.parameters()) if v.dtype == mx.bool_}
    optimizer = optim.Adam(1e-2)
    losses = []
    for _ in range(10):
        value, gradients = step(model)
        optimizer.update(model, gradients)
        losses.append(value.item())
    assert losses[-1] < losses[0]
    after = dict(tree_flatten(model.parameters()))
    for name, value in constants.items():
        assert mx.array_equal(after[name], value)


@pytest.mark.parametrize("make", [CfC, LTC])
def test_weights_outside_the_wiring_have_no_effect(make, x):
    model = make(F, AutoNCP(8, 2))
    expected = model(x)[0]
    if make is CfC:
        pairs = [(layer.ff1, "weight", "mask") for layer in model.cell.layers]
    else:
        pairs = [(model.cell, "w", "sparsity_mask"), (model.cell, "sigma", "sparsity_mask")]
    for module, name, mask in pairs:
        assert not module[mask].all()
        module[name] = mx.where(module[mask], module[name], 1e3)
    assert_close(model(x)[0], expected, 0)


def test_columns_of_a_wired_state():
    wiring = NCP(4, 3, 2, 2, 2, 3, 2)
    cell = CfC(F, wiring).cell
    assert cell.layer_sizes == (4, 3, 2)
    assert [wiring.get_type_of_neuron(i) for i in cell.neuron_ids] == (
        ["inter"] * 4 + ["command"] * 3 + ["motor"] * 2
    )
    v = mx.random.normal((B, 9))
    output, state = cell(mx.zeros((B, F)), v, 1.0)
    assert_close(output, state[:, -2:], 0)
    ltc = LTC(F, wiring, output_mapping=None).cell
    output, state = ltc(mx.zeros((B, F)), v, 1.0)
    assert_close(output, state[:, :2], 0)


def test_models_that_share_a_wiring_have_the_same_connections():
    wiring = AutoNCP(8, 2)
    first, second = LTC(F, wiring), LTC(F, wiring)
    assert mx.array_equal(first.cell.sensory_sparsity_mask, second.cell.sensory_sparsity_mask)
    assert mx.array_equal(first.cell.sensory_erev, second.cell.sensory_erev)
    assert first.cell.wiring is wiring


def test_explicit_constraints(x):
    model = LTC(F, H, implicit_param_constraints=False)
    model.cell.w = model.cell.w - 0.5
    kept = model.cell.sigma
    model.apply_weight_constraints()
    assert model.cell.w.min() == 0
    assert model.cell.sigma is kept
    implicit = LTC(F, H)
    implicit.cell.w = implicit.cell.w - 5
    implicit.apply_weight_constraints()
    assert implicit.cell.w.max() < 0


@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_acts_while_training_only(x, layers):
    model = CfC(F, H, backbone_dropout=0.5, backbone_layers=layers)
    assert not mx.array_equal(model(x)[0], model(x)[0])
    model.eval()
    assert mx.array_equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_saved_weights_come_back(model, x, time_delta, tmp_path, suffix):
    expected = model(x, time_delta)[0]
    path = str(tmp_path / f"weights.{suffix}")
    model.save_weights(path)
    other = copy.deepcopy(model)
    other.apply(lambda p: mx.zeros_like(p))
    other.load_weights(path)
    assert_close(other(x, time_delta)[0], expected, 0)
    assert names(other.trainable_parameters()) == names(model.trainable_parameters())


@pytest.mark.parametrize("make", [CfC, LTC])
def test_saved_weights_bring_their_connections(make, x, tmp_path):
    model, other = make(F, AutoNCP(8, 2, seed=1)), make(F, AutoNCP(8, 2, seed=2))
    model.save_weights(str(tmp_path / "weights.npz"))
    other.load_weights(str(tmp_path / "weights.npz"))
    assert_close(other(x)[0], model(x)[0], 0)


def test_copies(model, x, time_delta):
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(copied(x, time_delta)[0], model(x, time_delta)[0], 0)


def test_seed_decides_the_weights():
    for make in MODELS.values():
        mx.random.seed(5)
        first = dict(tree_flatten(make().parameters()))
        mx.random.seed(5)
        second = dict(tree_flatten(make().parameters()))
        for name, value in first.items():
            assert mx.array_equal(value, second[name]), name


# --- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"x": mx.zeros((T, F))},
            r"x has shape \(6, 4\): pass \(batch, time, features\), such as x\[None\]",
        ),
        (
            {"x": mx.zeros((1, B, T, F))},
            r"x has shape \(1, 3, 6, 4\): pass \(batch, time, features\)$",
        ),
        ({"x": mx.zeros((B, T, 7))}, r"7 features.*\(3, 6, 7\).*takes 4.*input_size=7, or pass 4"),
        ({"x": mx.zeros((B, 0, F))}, r"no time steps.*\(3, 0, 4\)"),
        (
            {"x": mx.zeros((B, T, F), dtype=mx.int32)},
            r"x is an array of .*int32: pass x\.astype\(mx\.float32\)",
        ),
        ({"time_delta": mx.ones((T,))}, r"shape \(6,\), .*\(3, 6\) or \(3, 6, 1\).*broadcast_to"),
        ({"time_delta": mx.ones((B, 1))}, r"shape \(3, 1\), .*: pass .*\(3, 6\) or \(3, 6, 1\)"),
        (
            {"time_delta": mx.ones((B, T, F))},
            r"time_delta has shape \(3, 6, 4\), .*: pass one number",
        ),
        ({"time_delta": -1.0}, r"time_delta=-1\.0: pass a finite number of at least 0"),
        ({"time_delta": float("nan")}, "time_delta=nan: pass a finite number of at least 0"),
        (
            {"state": mx.zeros((B, 99))},
            r"state has shape \(3, 99\): pass \(batch, units\) = \(3, \d\)",
        ),
    ],
)
def test_call_errors(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model(**{"x": mx.zeros((B, T, F)), **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: CfC(F, H, mode="fast"),
            "mode='fast' is unknown: pass one of 'default', 'pure', 'no_gate'",
        ),
        (lambda: CfC(F, H, activation="selu"), "activation='selu' is unknown: pass .*'lecun_tanh'"),
        (lambda: CfC(0, H), "input_size=0: pass a whole number of at least 1"),
        (lambda: CfC(F, 2.5), "units=2.5: pass a whole number of at least 1"),
        (
            lambda: CfC(F, H, backbone_layers=-1),
            "backbone_layers=-1: pass a whole number of at least 0",
        ),
        (
            lambda: CfC(F, H, backbone_units=0),
            "backbone_units=0: pass a whole number of at least 1",
        ),
        (lambda: CfC(F, H, backbone_dropout=1.0), "backbone_dropout=1.0: pass a number from 0 to"),
        (lambda: CfC(F, H, proj_size=0), "proj_size=0: pass a whole number of at least 1"),
        (
            lambda: CfC(F, AutoNCP(8, 2), backbone_units=64),
            "a CfC with a wiring has no backbone: pass",
        ),
        (lambda: CfC(F, AutoNCP(8, 2), mode="fast"), "mode='fast' is unknown"),
        (
            lambda: CfCCell(F, H, mask=np.ones((9, 5))),
            "mask .*backbone_layers=1, .*: pass backbone_layers=0",
        ),
        (
            lambda: CfCCell(F, H, backbone_layers=0, mask=np.ones((5, 9))),
            r"\(5, 9\): pass .*\(9, 5\)",
        ),
        (lambda: LTC(F, True), "units_or_wiring=True: pass a whole number of at least 1"),
        (lambda: LTC(F, H, ode_unfolds=0), "ode_unfolds=0: pass a whole number of at least 1"),
        (lambda: LTC(F, H, epsilon=-1), "epsilon=-1: pass a number of at least 0"),
        (
            lambda: LTC(F, H, input_mapping="log"),
            "input_mapping='log' is unknown: pass .*'affine', 'linear'",
        ),
        (lambda: LTC(F, H, output_mapping="log"), "output_mapping='log' is unknown"),
        (lambda: LTC(F, Wiring(4)), "no output neurons.*set_output_dim"),
    ],
)
def test_construction_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [CfC, LTC])
def test_wiring_of_another_input_size(make):
    wiring = AutoNCP(8, 2)
    make(F, wiring)
    with pytest.raises(ValueError, match=r"built for 4 inputs, .* input_size=5: pass a new one"):
        make(5, wiring)


# --- wirings


@pytest.mark.parametrize(("units", "inputs"), [(1, 1), (5, 3), (16, 7)])
def test_fully_connected_has_the_signs_of_ncps(units, inputs):
    own, reference = FullyConnected(units), ncps.wirings.FullyConnected(units)
    own.build(inputs)
    reference.build(inputs)
    np.testing.assert_array_equal(own.adjacency_matrix, reference.adjacency_matrix)
    np.testing.assert_array_equal(own.sensory_adjacency_matrix, reference.sensory_adjacency_matrix)
    assert own.get_neurons_of_layer(0) == reference.get_neurons_of_layer(0)
    assert [own.get_type_of_neuron(i) for i in range(units)] == ["motor"] * units


class ModuleWiring(nn.Module):
    """A wiring that is an ``nn.Module`` with MLX arrays, as those of ncps-mlx are."""

    def __init__(self, like):
        super().__init__()
        like.build(F)
        self.units, self.input_dim, self.output_dim = like.units, F, like.output_dim
        self.adjacency_matrix = mx.array(like.adjacency_matrix, dtype=mx.float32)
        self.sensory_adjacency_matrix = mx.array(like.sensory_adjacency_matrix, dtype=mx.float32)
        self.layers_ = tuple(tuple(like.get_neurons_of_layer(i)) for i in range(like.num_layers))
        self.num_layers = like.num_layers

    def is_built(self):
        return True

    def build(self, input_dim):
        raise AssertionError("it is built already")

    def get_neurons_of_layer(self, layer_id):
        return self.layers_[layer_id]

    def get_type_of_neuron(self, neuron_id):
        return "motor" if neuron_id < self.output_dim else "inter"

    def erev_initializer(self):
        return self.adjacency_matrix

    def sensory_erev_initializer(self):
        return self.sensory_adjacency_matrix


@pytest.mark.parametrize("make", [CfC, LTC])
def test_a_wiring_needs_only_the_interface_and_is_not_trained(make, x):
    mx.random.seed(3)
    expected = make(F, AutoNCP(8, 2))
    mx.random.seed(3)
    model = make(F, ModuleWiring(AutoNCP(8, 2)))
    names = [name for name, _ in tree_flatten(model.parameters())]
    assert names == [name for name, _ in tree_flatten(expected.parameters())]
    np.testing.assert_array_equal(np.array(model(x)[0]), np.array(expected(x)[0]))


@pytest.mark.parametrize("make", [CfC, LTC])
@pytest.mark.parametrize(
    ("wiring", "message"),
    [
        ("16", "str is not a wiring, .* lacks units, .*pass a number of units, or a wiring such"),
        (nn.Linear(2, 2), "Linear is not a wiring"),
        (AutoNCP, "AutoNCP is a class, not a wiring: pass an instance"),
    ],
)
def test_what_is_no_wiring(make, wiring, message):
    with pytest.raises(TypeError, match=message):
        make(F, wiring)
