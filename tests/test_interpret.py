"""The calls for notebooks: what they take, what they give back, and what they leave alone."""

from __future__ import annotations

import base64
import copy
import pickle
import random
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import ncp_callbacks as ncp
from ncp_callbacks import (
    ModelError,
    StateTransitionAnalyzer,
    analyze_backbone,
    analyze_time_sensitivity,
    compute_temporal_importance,
    interpret_model,
    visualize_hidden_states,
)
from ncp_callbacks.attribution import IntegratedGradients
from ncp_callbacks.models import LTC, CfC

B, T, F, H, N = 5, 6, 3, 4, 7


class Cell(nn.Module):
    """Two hidden layers, one with dropout and batch normalisation, and a leak."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(F + H, N), nn.ReLU(), nn.Dropout(dropout), nn.Linear(N, N), nn.Tanh()
        )
        self.head = nn.Linear(N, H)
        self.log_tau = mx.zeros(H)

    def __call__(self, x, h, dt):
        new = mx.tanh(self.head(self.backbone(mx.concatenate([x, h], axis=-1))))
        a = mx.exp(-dt[:, None] * mx.exp(self.log_tau))
        return a * h + (1 - a) * new


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm(F)
        self.cell = Cell()
        self.out = nn.Linear(H, 1)
        self.noise = nn.Dropout(0.5)

    def __call__(self, x, time_delta=None):
        time_delta = mx.ones(x.shape[:2]) if time_delta is None else time_delta
        x, h, outs = self.norm(x), mx.zeros((x.shape[0], H)), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h, time_delta[:, t])
            outs.append(self.out(self.noise(h)))
        return mx.stack(outs, axis=1)


class NoCell(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(F, 1)

    def __call__(self, x, time_delta=None):
        x = x if time_delta is None else x * time_delta[..., None]
        return self.out(x.mean(axis=1))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(F, H)

    def __call__(self, x):
        return self.rnn(x)[:, -1, :1]


@pytest.fixture
def model():
    mx.random.seed(0)
    model = Model()
    model.norm.running_mean = mx.random.normal((F,))
    return model


@pytest.fixture
def x():
    return mx.random.normal((B, T, F), key=mx.random.key(1))


@pytest.fixture
def time_delta():
    return mx.random.uniform(0.1, 2.0, (B, T), key=mx.random.key(2))


def same(first, second, but=(), rtol=1e-5, atol=1e-7):
    for name in type(first).__dataclass_fields__:
        a, b = getattr(first, name), getattr(second, name)
        if name in but:
            continue
        if a is None or isinstance(a, str):
            assert a == b, name
        elif isinstance(a, dict):  # Numbers with their intervals.
            for key, number in a.items():
                np.testing.assert_allclose(number.value, b[key].value, rtol=rtol, atol=atol)
                np.testing.assert_allclose(number.influence, b[key].influence, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


# --- calls with arrays alone, as in a notebook


def test_temporal_importance_is_an_array_with_company(model, x, time_delta):
    importance = compute_temporal_importance(
        model, x, time_delta, method="input_x_gradient", baseline="zeros"
    )
    array = np.asarray(importance)
    assert array.shape == importance.shape == (T, F)
    assert array.dtype == np.float32
    assert (importance.ndim, len(importance)) == (2, T)
    assert (importance.T == array.T).all()
    assert (importance[1:3, 0] == array[1:3, 0]).all()
    assert np.mean(importance) == array.mean()
    assert (np.asarray(importance, dtype=np.float64) == array).all()
    np.array(importance)[:] = -1.0  # a copy
    assert (array >= 0).all()
    assert (importance.importance == array).all()
    assert importance.sequences == B
    assert importance.feature_names == ("feature 0", "feature 1", "feature 2")
    assert compute_temporal_importance(model, x).shape == (T, F)


def test_time_sensitivity_is_a_mapping(model, x, time_delta):
    result = analyze_time_sensitivity(model, x, time_delta)
    assert list(result["scales"]) == [0.5, 1.0, 2.0, 5.0]
    assert result["sensitivities"].shape == (4,)
    assert result["sensitivities"][1] == 0.0
    assert (result["sensitivities"][[0, 2, 3]] > 0).all()
    added = analyze_time_sensitivity(model, x, time_delta, scales=[3, 2.0, 3])
    assert list(added["scales"]) == [1.0, 2.0, 3.0]
    assert added["sensitivities"][1] == pytest.approx(result["sensitivities"][2])


def test_mappings_behave_like_dicts(model, x, time_delta):
    result = analyze_time_sensitivity(model, x, time_delta)
    plain = dict(result)
    assert plain.keys() == {**result}.keys() == result.to_dict().keys() == set(result)
    assert len(result) == len(plain)
    assert plain["scales"] is result.scales
    assert (lambda scales, sensitivities, **rest: sensitivities)(**result) is result.sensitivities
    assert "scales" in result
    assert "per_sd" not in result
    assert result.get("nothing", 3) == 3
    assert result == result
    assert result != analyze_time_sensitivity(model, x, time_delta)
    with pytest.raises(KeyError, match="'sensitivity'; this TimeSensitivity has scales, sensitiv"):
        result["sensitivity"]
    with pytest.raises(KeyError):
        result["ignores_time"]


def test_hidden_states_are_an_array_of_scores(model, x, time_delta):
    states = visualize_hidden_states(model, x, time_delta)
    assert np.asarray(states).shape == states.shape == (B, T, 2)
    assert states.cell == "cell"
    assert visualize_hidden_states(model, x, components=3).shape == (B, T, 3)


def test_transition_analyzer(model, x, time_delta):
    analyzer = StateTransitionAnalyzer(model)
    analyzer.add_sequence(x, time_delta)
    result = analyzer.analyze_transitions()
    for key in ("magnitude_mean", "magnitude_std", "direction_consistency"):
        assert isinstance(result[key], float)
    assert result["magnitude_mean"] > 0
    assert -1 <= result["direction_consistency"] <= 1
    assert result.transitions == B * (T - 1)
    assert 0 <= result.saturation <= 1  # these states are within [-1, 1]


@pytest.mark.parametrize("with_time", [True, False])
def test_sequences_added_one_by_one_are_one_batch_with_a_mask(model, x, time_delta, with_time):
    dt = time_delta if with_time else None
    lengths = [T, 4, 4, 2, 5]
    mask = np.arange(T) < np.array(lengths)[:, None]
    together = StateTransitionAnalyzer(model)
    together.add_sequence(x, dt, mask=mask)
    apart = StateTransitionAnalyzer(model)
    for rows, n in ((slice(0, 1), T), (slice(1, 3), 4), (slice(3, 4), 2), (slice(4, 5), 5)):
        apart.add_sequence(np.array(x[rows, :n]), None if dt is None else np.array(dt[rows, :n]))
    expected, result = together.analyze_transitions(), apart.analyze_transitions()
    assert result.transitions == sum(n - 1 for n in lengths)
    same(result, expected)


def test_analyzing_does_not_use_sequences_up(model, x, time_delta):
    analyzer = StateTransitionAnalyzer(model)
    analyzer.add_sequence(x[:2], time_delta[:2])
    first = analyzer.analyze_transitions()
    same(analyzer.analyze_transitions(), first)
    analyzer.add_sequence(x[2:], time_delta[2:])
    whole = StateTransitionAnalyzer(model)
    whole.add_sequence(x, time_delta)
    same(analyzer.analyze_transitions(), whole.analyze_transitions())


def step_activations(model, x, time_delta):
    """Outputs of both hidden layers at every step, in float64."""
    get = {k: np.array(v, np.float64) for k, v in tree_flatten(model.parameters())}
    x, dt = np.array(x, np.float64), np.array(time_delta, np.float64)
    norm = model.norm
    x = (x - np.array(norm.running_mean)) / np.sqrt(np.array(norm.running_var) + norm.eps)
    x = x * get["norm.weight"] + get["norm.bias"]

    def linear(name, u):
        return u @ get[f"{name}.weight"].T + get[f"{name}.bias"]

    h, first, second = np.zeros((B, H)), [], []
    for t in range(T):
        u = np.maximum(linear("cell.backbone.layers.0", np.concatenate([x[:, t], h], -1)), 0)
        v = np.tanh(linear("cell.backbone.layers.3", u))
        a = np.exp(-dt[:, t, None] * np.exp(get["cell.log_tau"]))
        h = a * h + (1 - a) * np.tanh(linear("cell.head", v))
        first.append(u)
        second.append(v)
    return np.stack(first, axis=1), np.stack(second, axis=1)


@pytest.mark.parametrize("masked", [False, True])
def test_backbone_statistics_of_every_layer(model, x, time_delta, masked):
    mask = np.arange(T) < np.array([T, 1, 3, 2, 5])[:, None] if masked else np.ones((B, T), bool)
    report = analyze_backbone(model, x, time_delta, mask=mask)
    known = step_activations(model, x, time_delta)
    off = (known[0] == 0, np.abs(known[1]) > 0.95)
    assert len(report) == 2
    assert [s["layer"] for s in report] == ["cell.backbone.layers.0", "cell.backbone.layers.3"]
    assert [s["activation"] for s in report] == ["relu", "tanh"]
    for stats, a, stuck in zip(report, known, off, strict=True):
        assert stats["mean"] == pytest.approx(a[mask].mean(), rel=1e-5)
        assert stats["std"] == pytest.approx(a[mask].std(), rel=1e-5)
        assert stats["sparsity"] == pytest.approx(stuck[mask].mean())
        np.testing.assert_allclose(stats["active_fraction"], 1 - stuck[mask].mean(axis=0))
        assert (stats["samples"], stats["units"]) == (mask.sum(), N)
        assert dict(stats).keys() >= {"mean", "std", "sparsity"}


def test_interpret_model_is_all_of_them(model, x, time_delta):
    result = interpret_model(model, x, time_delta)
    assert {"importance", "sensitivity", "states", "transitions", "backbone"} <= set(result)
    same(
        result["importance"],
        compute_temporal_importance(model, x, time_delta),
        but=("feature_names",),
    )
    same(result["sensitivity"], analyze_time_sensitivity(model, x, time_delta))
    states = visualize_hidden_states(model, x, time_delta)
    same(result["states"], states, but=("basis",), atol=1e-5)
    analyzer = StateTransitionAnalyzer(model)
    analyzer.add_sequence(x, time_delta)
    same(result["transitions"], analyzer.analyze_transitions())
    for mine, theirs in zip(
        result["backbone"], analyze_backbone(model, x, time_delta), strict=True
    ):
        same(mine, theirs)
    assert result.notes == ()
    np.testing.assert_array_equal(result.time_delta, np.array(time_delta))
    with pytest.raises(KeyError, match="'attention'; this Interpretation has importance"):
        result["attention"]


def test_interpret_model_says_what_there_is_not(x, time_delta):
    result = interpret_model(NoCell(), x, time_delta)
    assert result["states"] is result["transitions"] is result["backbone"] is None
    assert len(result.notes) == 2
    assert any("no recurrent cell" in note for note in result.notes)
    assert any("no backbone" in note for note in result.notes)
    without = interpret_model(Layer(), x)
    assert without["sensitivity"] is None
    assert without["states"] is not None
    assert any("no time to scale" in note for note in without.notes)


def test_interpret_model_of_a_single_sequence_or_step(model, x, time_delta):
    one = interpret_model(model, x[:1], time_delta[:1])
    assert np.isnan(one["sensitivity"]["sensitivities"][[0, 2, 3]]).all()
    assert (one["sensitivity"].rms_change[[0, 2, 3]] > 0).all()
    assert np.isnan(one["transitions"]["direction_consistency"])
    assert one["transitions"]["magnitude_mean"] > 0
    step = interpret_model(model, x[:, :1], time_delta[:, :1])
    assert step["transitions"] is None
    assert np.asarray(step["importance"]).shape == (1, F)
    layer = interpret_model(Layer(), x[:, :1])
    assert layer["transitions"] is None
    assert layer["states"].shape == (B, 1, 2)


def test_interpretation_draws_what_there_is(model, x, time_delta):
    figures = interpret_model(model, x, time_delta).figures()
    assert list(figures) == ["importance", "sensitivity", "states", "backbone"]
    assert list(interpret_model(Layer(), x).figures()) == ["importance", "states"]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("make", [lambda: CfC(F, H, backbone_units=N), lambda: LTC(F, H)])
def test_the_packages_own_models(make, dims, x, time_delta):
    mx.random.seed(0)
    model = make()
    dt = time_delta if dims == 2 else time_delta[..., None]
    result = interpret_model(model, x, dt)
    assert np.asarray(result["importance"]).any()
    assert result["sensitivity"]["sensitivities"].any()
    assert result["states"].shape == (B, T, 2)
    assert result["transitions"]["magnitude_mean"] > 0
    if isinstance(model, CfC):
        (layer,) = result["backbone"]
        assert (layer.activation, layer.units) == ("lecun_tanh", N)
    else:
        assert result["backbone"] is None
    np.testing.assert_allclose(result.time_delta, np.array(time_delta))


def test_numpy_and_mlx_arrays_are_the_same(model, x, time_delta):
    given = interpret_model(model, np.array(x), np.array(time_delta, np.float64))
    expected = interpret_model(model, x, time_delta)
    assert (np.asarray(given["importance"]) == np.asarray(expected["importance"])).all()
    assert (given["sensitivity"].rms_change == expected["sensitivity"].rms_change).all()


def test_options_reach_what_they_are_for(model, x, time_delta):
    targets = np.zeros((B, T, 1), np.float32)
    loss = compute_temporal_importance(
        model, x, time_delta, targets=targets, target="loss", at=2, feature_names=["a", "b", "c"]
    )
    assert loss.target == "loss at step 2"
    assert loss.feature_names == ("a", "b", "c")
    assert not np.asarray(loss)[3:].any()
    doubled = compute_temporal_importance(
        model, x, time_delta, forward=lambda m, inputs, dt: 2 * m(inputs, dt)
    )
    plain = compute_temporal_importance(model, x, time_delta)
    np.testing.assert_allclose(doubled, 2 * np.asarray(plain), rtol=1e-5)
    (layer,) = analyze_backbone(model, x, time_delta, layers="cell.head")
    assert (layer.layer, layer.units) == ("cell.head", H)
    assert visualize_hidden_states(model, x, time_delta, cell="cell").cell == "cell"


# --- nothing is left on the model

CALLS = {
    "importance": lambda m, x, dt: compute_temporal_importance(m, x, dt),
    "sensitivity": lambda m, x, dt: analyze_time_sensitivity(m, x, dt),
    "states": lambda m, x, dt: visualize_hidden_states(m, x, dt),
    "transitions": lambda m, x, dt: StateTransitionAnalyzer(m).add_sequence(x, dt),
    "backbone": lambda m, x, dt: analyze_backbone(m, x, dt),
    "everything": lambda m, x, dt: interpret_model(m, x, dt),
}


def flags(model):
    return {name: (type(m), m.training, set(m._no_grad)) for name, m in model.named_modules()}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_the_model_is_left_bit_identical(model, x, time_delta, call, fails):
    model.train()
    model.out.eval()
    model.cell.head.freeze()
    before = {k: np.array(v) for k, v in tree_flatten(model.parameters())}
    was, key = flags(model), mx.random.state[0].tolist()
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    numpy_state, python_state = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    if fails:
        with pytest.raises(ModelError):
            CALLS[call](model, x[..., :2], time_delta)
    else:
        CALLS[call](model, x, time_delta)
    after = dict(tree_flatten(model.parameters()))
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert np.array(after[name]).tobytes() == value.tobytes(), name
    assert flags(model) == was
    assert mx.random.state[0].tolist() == key
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert random.getstate() == python_state
    restored = pickle.loads(pickle.dumps(model))
    assert type(restored) is Model
    mx.eval(copy.deepcopy(model)(x, time_delta))


def test_dropout_and_batch_statistics_are_those_of_evaluation(model, x, time_delta):
    model.train()
    looked = interpret_model(model, x, time_delta)
    again = interpret_model(model, x, time_delta)
    assert (np.asarray(looked["importance"]) == np.asarray(again["importance"])).all()
    model.eval()
    outputs = np.array(model(x, time_delta))[:, -1, 0]
    np.testing.assert_allclose(looked["importance"].target_values, outputs, rtol=1e-6)


def test_results_hold_arrays_of_their_own(model, x, time_delta):
    values = np.array(x)
    importance = compute_temporal_importance(model, values, time_delta)
    expected = np.array(importance)
    values[:] = 0.0
    assert (np.asarray(importance) == expected).all()
    for value in dict(interpret_model(model, x, time_delta)["transitions"]).values():
        assert not isinstance(value, mx.array)


# --- errors say how to mend them


@pytest.mark.parametrize("call", CALLS)
def test_results_can_be_pickled(model, x, time_delta, call):
    result = CALLS[call](model, x, time_delta)
    assert type(pickle.loads(pickle.dumps(result))) is type(result)


def test_no_backbone(x):
    with pytest.raises(ModelError, match=r"no backbone.*pass their paths as layers="):
        analyze_backbone(Layer(), x)


@pytest.mark.parametrize("call", ["states", "transitions"])
def test_no_cell(call, x, time_delta):
    with pytest.raises(ModelError, match=r"no recurrent cell.*Let the cell be a module"):
        CALLS[call](NoCell(), x, time_delta)


def test_unknown_cell(model, x, time_delta):
    with pytest.raises(ModelError, match="cell='decoder': the model has cell"):
        visualize_hidden_states(model, x, time_delta, cell="decoder")
    with pytest.raises(ModelError, match="cell='decoder': the model has cell"):
        StateTransitionAnalyzer(model, cell="decoder").add_sequence(x, time_delta)


def test_no_elapsed_times_to_scale(model, x):
    with pytest.raises(ValueError, match="base_time_delta is None: pass the elapsed times"):
        analyze_time_sensitivity(model, x, None)


def test_model_that_takes_no_time_delta(x, time_delta):
    with pytest.raises(ModelError, match=r"Layer\(x\) takes no keyword for it; tried time_d"):
        analyze_time_sensitivity(Layer(), x, time_delta)


@pytest.mark.parametrize("scales", [[], [0.0, 2.0], [-1.0], [float("nan")], [float("inf")]])
def test_scales_that_are_none(model, x, time_delta, scales):
    with pytest.raises(ValueError, match="scales="):
        analyze_time_sensitivity(model, x, time_delta, scales=scales)
    with pytest.raises(ValueError, match="scales="):
        interpret_model(model, x, time_delta, scales=scales)


def test_analyzer_without_sequences_or_steps(model, x, time_delta):
    analyzer = StateTransitionAnalyzer(model)
    with pytest.raises(ValueError, match="no sequence was added: call add_sequence"):
        analyzer.analyze_transitions()
    one = StateTransitionAnalyzer(Layer())
    with pytest.raises(ValueError, match="one time step"):
        one.add_sequence(x[:, :1])


WRONG = {
    "x of two axes": ({"x": np.ones((B, F), np.float32)}, ValueError, "use inputs\\[None\\]"),
    "no steps": ({"x": np.ones((B, 0, F), np.float32)}, ValueError, "none of them 0"),
    "integers": ({"x": np.ones((B, T, F), int)}, TypeError, "astype"),
    "a list": ({"x": [[[1.0]]]}, TypeError, "is a list"),
    "time of another length": ({"dt": np.ones((B, T + 1))}, ValueError, "time_delta has shape"),
    "time of sequences": ({"dt": np.ones(B)}, ValueError, "time_delta has shape"),
    "no time passes": ({"dt": np.zeros((B, T))}, ValueError, "above 0.*not timestamps"),
    "time runs back": ({"dt": -1.0}, ValueError, "time_delta is -1 at sequence 0, step 0"),
    "time is not known": ({"dt": np.full((B, T), np.nan)}, ValueError, "finite"),
    "mask of steps": ({"mask": np.ones(T, bool)}, ValueError, "mask has shape"),
    "mask of numbers": ({"mask": np.full((B, T), 2)}, ValueError, "pass booleans"),
    "mask of nothing": ({"mask": np.zeros((B, T), bool)}, ValueError, "leaves no step"),
    "another feature": ({"x": np.ones((B, T, F + 1), np.float32)}, ModelError, "failed"),
    "too few names": ({"feature_names": ["a"]}, ValueError, "1 names for 3 features"),
    "one name": ({"feature_names": "abc"}, TypeError, "is one string"),
    "the same names": ({"feature_names": ["a", "b", "a"]}, ValueError, "'a' more than once"),
    "unknown target": ({"target": "predict"}, ValueError, "target='predict' is unknown"),
    "too large an output": ({"target": 1}, ModelError, "the model has 1 outputs"),
    "loss without targets": ({"target": "loss"}, ModelError, "needs targets"),
    "targets of others": ({"target": "loss", "targets": np.ones(B + 1)}, ValueError, "first axis"),
    "unknown step": ({"at": "first"}, ValueError, "pass 'last', 'mean' or a step's index"),
    "a step too late": ({"at": T}, ModelError, "pass 0 to 5"),
    "unknown module": ({"cells": "decoder"}, ModelError, "'decoder' matches no module"),
    "target of steps": ({"target": lambda y, _: y[..., 0]}, ModelError, "one number per sequence"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_that_do_not_fit(model, x, time_delta, case):
    given, error, message = WRONG[case]
    given = {"x": x, "dt": time_delta, **given}
    with pytest.raises(error, match=message):
        interpret_model(model, given.pop("x"), given.pop("dt"), **given)


def test_what_is_no_model(x):
    with pytest.raises(TypeError, match=r"model is a function; pass an mlx.nn.Module"):
        interpret_model(lambda x: x, x)


def test_unknown_option(model, x):
    with pytest.raises(TypeError, match="tagret"):
        compute_temporal_importance(model, x, tagret="loss")


def test_options_that_are_none():
    with pytest.raises(TypeError, match=r"'colour' is an unknown .*: pass targets, mask"):
        compute_temporal_importance(None, np.ones((B, T, F), np.float32), colour="red")


def test_other_methods_of_attribution(model, x, time_delta):
    """Complete ones sum to what the target changes by from the baseline."""
    # A backbone of ReLUs has kinks along the line, so that the error falls with the first power.
    result = compute_temporal_importance(
        model, x, time_delta, method=IntegratedGradients(256), baseline="zeros", target=0
    )
    assert result.method == "integrated_gradients"
    assert result.error is not None
    assert result.error.max() < 0.01
    model.eval()
    mean_dt = np.full_like(np.array(time_delta), np.array(time_delta).mean())
    here, there = (
        np.array(model(a, time_delta=mx.array(dt))[:, -1, 0])
        for a, dt in ((mx.array(x), np.array(time_delta)), (mx.zeros(x.shape), mean_dt))
    )
    total = result.signed.sum() + result.time_delta_signed.sum()
    np.testing.assert_allclose(total, (here - there).mean(), rtol=0.01, atol=1e-4)
    with pytest.raises(ValueError, match="method='magic' is unknown: pass one of"):
        compute_temporal_importance(model, x, time_delta, method="magic")


@pytest.mark.parametrize("of", ["importance", "states"])
def test_results_that_are_arrays_behave_as_arrays(of: str) -> None:
    mx.random.seed(0)
    model = CfC(3, 5)
    x, dt = mx.random.normal((4, 6, 3)), mx.random.uniform(0.2, 2.0, (4, 6))
    make = compute_temporal_importance if of == "importance" else visualize_hidden_states
    result = make(model, x, dt)
    main = np.array(result)
    np.testing.assert_array_equal(result.mean(axis=0), main.mean(axis=0))
    np.testing.assert_array_equal(result.reshape(-1), main.ravel())
    np.testing.assert_array_equal(result / result.max(), main / main.max())
    np.testing.assert_array_equal(np.abs(1 - result), np.abs(1 - main))
    np.testing.assert_array_equal(np.array(mx.array(result)), main)
    np.testing.assert_array_equal(np.array(mx.ones(main.shape) * result), main)
    assert result.tolist() == main.tolist()
    assert {result} == {result}  # by identity
    for again in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        np.testing.assert_array_equal(again, main)
    with pytest.raises(AttributeError, match="no attribute 'meen'"):
        result.meen  # noqa: B018


def test_a_notebook_shows_every_figure_and_note(x, time_delta):
    result = interpret_model(NoCell(), x, time_delta)
    page = result._repr_html_()
    pictures = re.findall(r'alt="(\w+)"[^>]*base64,([^"]+)"', page)
    assert [name for name, _ in pictures] == list(result.figures())
    assert all(base64.b64decode(png).startswith(b"\x89PNG") for _, png in pictures)
    assert page.count("<p>") == len(result.notes) > 0


# --- findings


def test_findings_are_those_of_a_monitor(model, x, time_delta):
    targets = np.linspace(-1, 1, B).astype(np.float32)[:, None]
    result = interpret_model(model, x, time_delta, targets=targets)
    callbacks = [
        ncp.GradientAttribution(removal=0),
        ncp.StateTransitions(),
        ncp.BackboneActivations(),
        ncp.TimeSensitivity(scales=(0.5, 1.0, 2.0, 5.0)),
        ncp.HeldOutScore(),
    ]
    held_out = ncp.HeldOutBatch(x, time_delta, targets)
    with ncp.Monitor(
        model, held_out, callbacks, writer=ncp.MemoryWriter(), every=1, background=False
    ) as monitor:
        monitor.on_step_end(1)
    assert [f.sentence for f in result.findings] == [f.sentence for f in monitor.findings]
    assert {"rests_on", "learnt", "few_sequences"} <= {f.rule for f in result.findings}
    assert result["findings"] is result.findings


def test_findings_without_a_cell_or_targets(x, time_delta):
    found = {f.rule for f in interpret_model(NoCell(), x).findings}
    assert "rests_on" in found
    assert "learnt" not in found
