"""What flows through wired LTCs, against the identities of their equation and by hand."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import zoo
from hypothesis import given
from hypothesis import strategies as st
from jackknife import ci_by_leaving_out
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgb
from ncps.wirings import NCP, AutoNCP, FullyConnected, Random
from ncps.wirings import Wiring as Wiring_
from promises import pattern, promised
from small_nets import Flat
from test_plots import check_redraws, check_text, drawn, texts, title, words
from test_time_constants import (
    HiddenNames,
    KeptInADict,
    arrays,
    batch,
    figures,
    in_float64,
    logged,
    random_parameters,
    scalars,
    seen,
)

import ncp_callbacks as ncp
from ncp_callbacks.callbacks import Wiring
from ncp_callbacks.callbacks.time_constants.analysis import system_time_constants
from ncp_callbacks.callbacks.wiring.analysis import (
    group_activity,
    group_attribution,
    group_shares,
    neuron_attribution,
    synaptic_flow,
)
from ncp_callbacks.callbacks.wiring.plot import THINNEST, WIDEST
from ncp_callbacks.liquid_equations import LTCParameters, ltc_step
from ncp_callbacks.model.liquid import neuron_groups
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.neuron_groups import NeuronGroup
from ncp_callbacks.plots import nice_limit, plot_wiring
from ncp_callbacks.plotting.style import INK, LOWERS, RAISES

S, T, F = 4, 6, 3
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _seed():
    mx.random.seed(0)


def ncp_wiring():
    return NCP(5, 3, 2, sensory_fanout=2, inter_fanout=2, recurrent_command_synapses=3,
               motor_fanin=2, seed=11)  # fmt: skip


def looked(model, **options):
    return logged(model, *batch(), callback=Wiring(), **options)


def random_flow(rng, parameters, rows=(2, 5)):
    x = rng.normal(size=(*rows, parameters.inputs))
    v = rng.normal(size=(*rows, parameters.units))
    dt = rng.uniform(0.1, 2, rows)
    after = ltc_step(
        parameters, x.reshape(-1, parameters.inputs), v.reshape(-1, parameters.units), dt.ravel()
    ).reshape(v.shape)
    return x, v, after, dt


# ---- shares and currents


@given(seeds)
def test_shares_sum_to_one_and_currents_to_what_moves_a_neuron(seed):
    rng = np.random.default_rng(seed)
    parameters = random_parameters(rng, unfolds=3)
    x, v, after, dt = random_flow(rng, parameters)
    flow = synaptic_flow(parameters, x, v, after, dt)
    np.testing.assert_allclose(flow.share.sum(axis=0) + flow.leak_share, 1.0)
    tau, v_inf = system_time_constants(parameters, x.reshape(-1, 3), v.reshape(-1, 4))
    moves = (parameters.cm * (v_inf - v.reshape(-1, 4)) / tau).mean(axis=0)
    np.testing.assert_allclose(
        flow.current.sum(axis=0) + flow.leak_current, moves, rtol=1e-6, atol=1e-9
    )
    np.testing.assert_array_equal(
        flow.connected, np.concatenate([parameters.sensory_w, parameters.w]) > 0
    )
    assert not flow.share[~flow.connected].any()
    assert not flow.current[~flow.connected].any()
    assert flow.balance_error < 1e-12
    assert (flow.samples, flow.non_finite) == (10, 0)


def test_one_open_synapse_has_the_share_and_current_of_ohms_law():
    zero, one = np.zeros((2, 2)), np.ones((2, 2))
    parameters = LTCParameters(
        gleak=np.array([0.5, 2.0]), vleak=np.array([0.25, 0.0]), cm=np.ones(2),
        w=np.array([[0.0, 3.0], [0.0, 0.0]]), sigma=100 * one, mu=zero, erev=-one,
        sensory_w=np.zeros((1, 2)), sensory_sigma=one[:1], sensory_mu=zero[:1],
        sensory_erev=one[:1], input_w=np.ones(1), input_b=np.zeros(1), unfolds=1, epsilon=0.0,
    )  # fmt: skip
    x, v = np.zeros((1, 2, 1)), np.array([[[1.0, 0.5], [-1.0, 0.5]]])  # open, then shut
    flow = synaptic_flow(parameters, x, v, v, np.ones((1, 2)))
    # Source 0 is the input, 1 and 2 are the neurons.
    assert flow.share[1, 1] == pytest.approx((3 / 5 + 0) / 2)
    assert flow.leak_share.tolist() == pytest.approx([1.0, (2 / 5 + 1) / 2])
    assert flow.current[1, 1] == pytest.approx(3 * (-1 - 0.5) / 2)
    assert flow.leak_current.tolist() == pytest.approx([0.5 * 0.25, -2 * 0.5])
    assert flow.connected.sum() == 1
    groups = (NeuronGroup("inter", np.array([0])), NeuronGroup("motor", np.array([1])))
    assert group_shares(flow, groups) == pytest.approx(
        {("leak", "inter"): 1.0, ("leak", "motor"): 0.7, ("inter", "motor"): 0.3}
    )


def test_a_state_that_did_not_come_from_these_currents_is_noticed():
    rng = np.random.default_rng(0)
    parameters = random_parameters(rng, unfolds=3)
    x, v, after, dt = random_flow(rng, parameters)
    wrong = after.copy()
    wrong[1, 2, 0] += 0.1
    assert synaptic_flow(parameters, x, v, wrong, dt).balance_error > 1e-3
    half = replace(parameters, w=0.5 * parameters.w)
    assert synaptic_flow(half, x, v, after, dt).balance_error > 1e-3


def test_silent_synapses_are_those_below_a_hundredth():
    rng = np.random.default_rng(0)
    full = np.ones((4, 4))
    parameters = replace(
        random_parameters(rng), gleak=np.ones(4), sensory_w=np.zeros((3, 4)),
        sigma=full, mu=-1000 * full, w=np.diag([1.0, 0.02, 0.009, 1e-5]),
    )  # fmt: skip
    x, v, after, dt = random_flow(rng, parameters)
    assert synaptic_flow(parameters, x, v, after, dt).silent == 0.5


def test_flow_leaves_padding_and_what_is_not_finite_out():
    rng = np.random.default_rng(0)
    parameters = random_parameters(rng)
    x, v, after, dt = random_flow(rng, parameters)
    expected = synaptic_flow(parameters, x[:1, :3], v[:1, :3], after[:1, :3], dt[:1, :3])
    mask = np.zeros((2, 5), bool)
    mask[0, :4] = True
    x[1], v[0, 3], dt[0, 4] = 1e9, np.nan, np.nan
    found = synaptic_flow(parameters, x, v, after, dt, mask=mask)
    np.testing.assert_allclose(found.share, expected.share)
    np.testing.assert_allclose(found.current, expected.current)
    assert (found.samples, found.non_finite) == (3, 1)
    nothing = synaptic_flow(parameters, x, v, after, dt, mask=np.zeros_like(mask))
    assert nothing.samples == 0
    assert math.isnan(nothing.silent)
    assert math.isnan(nothing.balance_error)


@given(seeds)
def test_group_shares_of_a_target_sum_to_one(seed):
    rng = np.random.default_rng(seed)
    parameters = random_parameters(rng, units=6)
    flow = synaptic_flow(parameters, *random_flow(rng, parameters))
    columns = rng.permutation(6)
    groups = [NeuronGroup(n, c) for n, c in zip("abc", np.split(columns, [1, 3]), strict=True)]
    shares = group_shares(flow, groups)
    for group in groups:
        total = sum(value for (_, target), value in shares.items() if target == group.name)
        assert total == pytest.approx(1.0)


def test_activity_of_steady_motion():
    times = np.cumsum(np.full((1, 8), 0.5), axis=1)
    states = times[..., None] * np.array([2.0, -4.0, 0.0])
    groups = (NeuronGroup("moves", np.array([0, 1])), NeuronGroup("rests", np.array([2])))
    found = group_activity(states, groups, time_delta=np.full((1, 8), 0.5))
    assert found["moves"].speed == pytest.approx(3.0)
    assert found["moves"].level == pytest.approx(3 * times.mean())
    assert found["rests"].level == found["rests"].speed == 0.0
    assert group_activity(states, groups)["moves"].speed == pytest.approx(1.5)  # per step
    mask = np.zeros((1, 8), bool)
    mask[0, 3] = True
    one = group_activity(states, groups, mask=mask)["moves"]
    assert one.level == pytest.approx(6.0)
    assert math.isnan(one.speed)
    assert not group_activity(np.full((1, 2, 3), np.nan), groups)


# ---- kinds of neurons


@pytest.mark.parametrize("wiring", [ncp_wiring, lambda: AutoNCP(11, 3, seed=2)])
@pytest.mark.parametrize("model", ["ltc", "cfc", "cfc-pure", HiddenNames, KeptInADict])
def test_motor_neurons_are_those_that_the_model_puts_out(wiring, model):
    """An LTC keeps them at the beginning of its state, a wired CfC at its end."""
    x, dt = batch()
    if model == "ltc":
        made = LTC(F, wiring(), output_mapping=None)
    elif isinstance(model, str):
        made = CfC(F, wiring(), mode="pure" if "pure" in model else "default")
    else:
        made = zoo.PortRNN(model(LTC(F, wiring()).cell), units=wiring().units)
    _, stepper = seen(made, x, dt)
    groups = {group.name: group.columns for group in neuron_groups(stepper)}
    assert list(groups) == ["inter", "command", "motor"]
    built = wiring()
    for name, columns in groups.items():
        kinds = [built.get_type_of_neuron(i) for i in range(built.units)]
        assert len(columns) == kinds.count(name)
    assert sorted(np.concatenate(list(groups.values()))) == list(range(built.units))
    if model in ("ltc", "cfc", "cfc-pure"):
        outputs, _ = made(mx.array(x), mx.array(dt))
        np.testing.assert_allclose(stepper.after(4)[:, groups["motor"]], outputs[:, 4], atol=1e-6)


def test_one_layer_of_neurons_ends_with_the_motor_neurons():
    _, stepper = seen(LTC(F, Random(7, 2, sparsity_level=0.3)), *batch())
    groups = neuron_groups(stepper)
    assert [(g.name, g.columns.tolist()) for g in groups] == [
        ("inter", [2, 3, 4, 5, 6]),
        ("motor", [0, 1]),
    ]


def test_no_wiring_no_kinds():
    for model in (CfC(F, 5), zoo.Stack(nn.GRU(F, 5))):
        _, stepper = seen(model, batch()[0], None)
        assert neuron_groups(stepper) == ()


# ---- the callback


def test_what_is_logged_is_what_the_loop_by_hand_gives():
    x, dt = batch()
    model = LTC(F, ncp_wiring())
    parameters = in_float64(model.cell)
    v, before, after = np.zeros((S, 10)), [], []
    for t in range(T):
        before.append(v)
        v = ltc_step(parameters, x[:, t], v, dt[:, t])
        after.append(v)
    before, after = (np.stack(states, axis=1) for states in (before, after))
    expected = synaptic_flow(parameters, x, before, after, dt)
    writer, notes = looked(model)
    assert not notes
    np.testing.assert_allclose(arrays(writer, "_ncp/wiring_share")[0], expected.share, atol=1e-5)
    np.testing.assert_allclose(
        arrays(writer, "_ncp/wiring_current")[0], expected.current, atol=1e-5
    )
    wiring = model.cell.wiring
    adjacency = np.concatenate([wiring.sensory_adjacency_matrix, wiring.adjacency_matrix])
    assert (expected.connected == (adjacency != 0)).all()
    found = scalars(writer, "wiring")
    assert found["balance_error"] < 1e-5
    assert found["nonfinite"] == 0
    # Neurons: 0-1 motor, 2-4 command, 5-9 inter; sources begin with 3 inputs.
    by_hand = {
        "share_sensory_inter": expected.share[:3, 5:].sum(axis=0).mean(),
        "share_inter_command": expected.share[8:, 2:5].sum(axis=0).mean(),
        "share_command_command": expected.share[5:8, 2:5].sum(axis=0).mean(),
        "share_command_motor": expected.share[5:8, :2].sum(axis=0).mean(),
        "share_leak_motor": expected.leak_share[:2].mean(),
        "activity_motor": np.abs(after[..., :2]).mean(),
        "activity_inter": np.abs(after[..., 5:]).mean(),
        "speed_command": (
            np.abs(np.diff(after[..., 2:5], axis=1)) / dt[:, 1:, None]
        ).mean(),
    }  # fmt: skip
    for name, value in by_hand.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert {name for name in found if name.startswith("share")} == {
        "share_leak_inter", "share_sensory_inter", "share_leak_command", "share_inter_command",
        "share_command_command", "share_leak_motor", "share_command_motor",
    }  # fmt: skip


def started_again(model, x, dt):
    """``(S, T - 1, H)``, |state × gradient|: the model started from each of its states."""
    chosen = np.array(model(x, dt)[0])[:, -1].argmax(axis=1)
    state, sizes = None, []
    for t in range(1, T):
        _, state = model(x[:, t - 1 : t], dt[:, t - 1 : t], state)

        def last(h, t=t):
            outputs, _ = model(x[:, t:], dt[:, t:], h)
            # The log-odds of one of two classes are the difference of their outputs.
            odds = outputs[:, -1, 0] - outputs[:, -1, 1]
            return mx.where(mx.array(chosen) == 0, odds, -odds).sum()

        sizes.append(np.abs(np.array(state * mx.grad(last)(state))))
    return np.stack(sizes, axis=1)


@pytest.mark.parametrize(
    ("make", "columns"),
    [
        # In the state of an LTC motor neurons come first, in that of a wired CfC last.
        (LTC, {"motor": [0, 1], "command": [2, 3, 4], "inter": [5, 6, 7, 8, 9]}),
        (CfC, {"inter": [0, 1, 2, 3, 4], "command": [5, 6, 7], "motor": [8, 9]}),
    ],
)
def test_attribution_by_kind_is_that_of_the_model_started_from_its_states(make, columns):
    x, dt = batch()
    model = make(F, ncp_wiring())
    size = started_again(model, mx.array(x), mx.array(dt)).sum(axis=(0, 1))
    found = scalars(looked(model)[0], "wiring")
    for kind, at in columns.items():
        assert found[f"attribution_{kind}"] == pytest.approx(
            size[at].sum() / size.sum(), rel=1e-4
        ), kind


def test_who_does_not_reach_the_target_has_no_part_in_it():
    model = LTC(F, ncp_wiring())
    # Without synapses between neurons, motor neurons remember by themselves only.
    model.cell.w = mx.zeros_like(model.cell.w)
    model.cell.implicit_param_constraints = False
    found = scalars(looked(model)[0], "wiring")
    assert found["attribution_motor"] == 1
    assert found["attribution_command"] == found["attribution_inter"] == 0


def test_attribution_skips_what_is_not_finite():
    groups = (NeuronGroup("a", np.array([0])), NeuronGroup("b", np.array([1, 2])))
    values = np.array([[[1.0, -1.0, 2.0]], [[np.nan, 5.0, 5.0]]])
    shares, sequences = group_attribution(values, groups)
    assert ({name: share.value for name, share in shares.items()}, sequences) == (
        {"a": 0.25, "b": 0.75},
        1,
    )
    assert group_attribution(np.zeros((2, 3, 3)), groups) == ({}, 2)


def test_shares_of_neurons_are_those_of_their_groups():
    values = np.array([[[1.0, -1.0, 2.0]], [[np.nan, 5.0, 5.0]], [[0.0, 0.0, 4.0]]])
    np.testing.assert_allclose(neuron_attribution(values), [1 / 8, 1 / 8, 6 / 8])
    assert neuron_attribution(np.zeros((2, 3, 3))) is None
    assert neuron_attribution(np.zeros((2, 0, 3))) is None
    for make in (LTC, CfC):
        writer, _ = looked(make(F, ncp_wiring()))
        (share,), found = arrays(writer, "_ncp/wiring_attribution"), scalars(writer, "wiring")
        for name, columns in figures(writer)[0].options["groups"]:
            assert share[columns].sum() == pytest.approx(found[f"attribution_{name}"], rel=1e-5)
        assert share.sum() == pytest.approx(1.0)


class Recurrence(Wiring_):
    """2 → 1 → 0, which is put out, and 0 → 3 → 4, which nobody listens to."""

    def __init__(self):
        super().__init__(5)
        self.set_output_dim(1)
        for source, target in ((2, 1), (1, 0), (0, 3), (3, 4)):
            self.add_synapse(source, target, 1)

    def build(self, input_dim):
        super().build(input_dim)
        for source in range(input_dim):
            for target in range(5):
                self.add_sensory_synapse(source, target, 1)


def test_only_who_has_a_way_to_the_motor_neuron_is_dark():
    writer, _ = looked(LTC(F, Recurrence()))
    (share,) = arrays(writer, "_ncp/wiring_attribution")
    assert (share[:3] > 0).all()
    assert not share[3:].any()
    record = figures(writer)[0]
    assert (record.data.share[F:].sum(axis=0) > 0).tolist() == [True, True, False, True, True]
    figure = record.plot(record.data, **record.options)
    dark = darkness(figure)
    assert (dark[:3] > 0).all()
    assert not dark[3:].any()


@pytest.mark.parametrize("kind", [HiddenNames, KeptInADict])
def test_an_ltc_of_other_names_is_the_same(kind):
    ours = LTC(F, ncp_wiring())
    port = zoo.PortRNN(kind(ours.cell), units=10)
    here, there = (scalars(looked(model)[0], "wiring") for model in (ours, port))
    assert here.keys() == there.keys()
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_neurons_without_a_wiring_are_one_kind():
    ours = LTC(F, 4)
    cell = HiddenNames(ours.cell)
    del cell._wiring
    found = scalars(looked(zoo.PortRNN(cell, units=4))[0], "wiring")
    parts = ("share_leak_neuron", "share_sensory_neuron", "share_neuron_neuron")
    assert sum(found[name] for name in parts) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("mode", ["default", "pure", "no_gate"])
def test_a_wired_cfc_is_not_drawn_as_if_its_wiring_were_its_influence(mode):
    writer, notes = looked(CfC(F, ncp_wiring(), mode=mode), steps=3)
    found = scalars(writer, "wiring")
    assert {"activity_inter", "activity_command", "activity_motor", "speed_motor"} <= set(found)
    assert not any(name.startswith("share") for name in found)
    assert sum("are dense" in note for note in notes) == 1
    # Its neurons are, without a line between them.
    record = figures(writer)[-1]
    assert record.data is None
    figure = record.plot(record.data, **record.options)
    (fills,) = figure.axes[0].collections
    assert isinstance(fills, PolyCollection)
    assert "no synapses" in words(figure)
    assert len(neurons_at(figure)) == 10
    check_text(figure)


@pytest.mark.parametrize("model", [lambda: CfC(F, 5), lambda: zoo.PortRNN(zoo.PortCfCCell(F, 5))])
def test_a_model_without_a_wiring_is_reported_once(model):
    writer, notes = looked(model(), steps=3)
    assert sum("wiring doesn't apply" in note and "no wiring" in note for note in notes) == 1
    assert not any(r.tag.startswith("wiring") for step, r in writer.records if step)


def test_models_without_a_cell_or_a_liquid_one_are_reported_once():
    for model in (Flat(T * F), zoo.Stack(nn.GRU(F, 5))):
        _, notes = logged(model, batch()[0], steps=2, callback=Wiring())
        assert sum("wiring doesn't apply" in note for note in notes) == 1


class Both(nn.Module):
    """A wired cell and one that is not."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = LTC(F, ncp_wiring()), CfC(2, 4)

    def __call__(self, x, time_delta=None):
        return self.decoder(self.encoder(x, time_delta)[0], time_delta)[0]


def test_of_several_cells_those_that_are_wired_are_analysed():
    writer, notes = looked(Both())
    tags = {r.tag for step, r in writer.records if step}
    assert "wiring_encoder/graph" in tags
    assert not any(tag.startswith("wiring_decoder") for tag in tags)
    assert sum("decoder.cell has no wiring" in note for note in notes) == 1


def test_padding_does_not_matter():
    x, dt = batch()
    mask = np.ones((S, T), bool)
    mask[1, 3:], mask[3, 1:] = False, False
    model, values = LTC(F, ncp_wiring()), []
    for fill in (0.0, 7.0):
        other, intervals = x.copy(), dt.copy()
        other[~mask], intervals[~mask] = fill, 1 + fill
        held_out = ncp.HeldOutBatch(other, intervals, mask=mask)
        writer, _ = logged(model, None, callback=Wiring(), held_out=held_out)
        values.append(scalars(writer, "wiring"))
        share = arrays(writer, "_ncp/wiring_share")[0]
        values[-1] |= {f"{i}": value for i, value in enumerate(share.ravel())}
    assert values[0].keys() == values[1].keys()
    for name, value in values[0].items():
        assert values[1][name] == pytest.approx(value, rel=1e-6), name


def test_what_is_not_finite_is_counted_and_not_logged():
    x, dt = batch()
    model = LTC(F, ncp_wiring())
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(x, dt)
    with ncp.Monitor(model, held_out, [Wiring()], writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        model.cell.vleak = mx.full(model.cell.vleak.shape, mx.nan)
        monitor.on_step_end(2)
        assert monitor.callbacks
        assert any("synapses are skipped" in note for note in monitor.notes)
    values = [r.value for step, r in writer.records if step and isinstance(r, ncp.Scalar)]
    assert all(math.isfinite(value) for value in values)
    assert writer.scalars("wiring/nonfinite") == [(1, 0), (2, S * T)]


def test_the_docstring_lists_every_tag_and_no_other():
    kinds = {ncp.Scalar: "scalar", ncp.Figure: "image", ncp.Array: "array"}
    promises = promised(Wiring)
    records = [
        record
        for step, record in looked(LTC(F, ncp_wiring()), steps=2)[0].records
        if step and record.tag.removeprefix("_ncp/").startswith("wiring")
    ]
    for record in records:
        fitting = [tag for tag in promises if pattern(tag).match(record.tag)]
        assert fitting, f"{record.tag} is not in the table"
        assert promises[fitting[0]] == kinds[type(record)], record.tag
        assert isinstance(record, ncp.Array) or record.description
    for tag in promises:
        assert any(pattern(tag).match(r.tag) for r in records), f"{tag} was never logged"


def test_the_limit_only_grows_also_over_an_interruption():
    callback = Wiring()
    model = LTC(F, ncp_wiring())
    limits = ("limit", "attribution_limit")

    def of(callback):
        options = figures(logged(model, *batch(), callback=callback)[0])[0].options
        return [options[name] for name in limits]

    first = of(callback)
    state = json.loads(json.dumps(callback.state_dict()))
    # Synapses of nearly nothing, and of motor neurons first two have a part in the target.
    model.cell.w = model.cell.w - 20.0
    model.cell.sensory_w = model.cell.sensory_w - 20.0
    resumed = Wiring()
    resumed.load_state_dict(copy.deepcopy(state))
    after, afresh = of(resumed), of(Wiring())
    assert after[0] == first[0] > afresh[0]
    assert after[1] == max(first[1], afresh[1])


@pytest.mark.parametrize("sequences", [0, 1.5, True])
def test_numbers_that_cannot_be_are_refused(sequences):
    with pytest.raises(
        ValueError, match=f"max_sequences={sequences}: pass a whole number of at least 1"
    ):
        Wiring(max_sequences=sequences)


# ---- the picture


def shown(wiring, features=F, names=None):
    mx.random.seed(1)
    x = np.random.default_rng(0).standard_normal((3, 5, features)).astype(np.float32)
    held_out = ncp.HeldOutBatch(x, feature_names=names)
    writer, _ = logged(LTC(features, wiring), None, callback=Wiring(), held_out=held_out)
    (record,) = figures(writer)
    return record


def edges(figure):
    (found,) = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    return found


def neurons_at(figure):
    """Where neurons are, in the order of the state."""
    return figure.axes[0].lines[-1].get_xydata()


def darkness(figure):
    """``(H,)`` from 0 for white to 1 for ink, of the circles where neurons are."""
    (fills,) = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    centres = [path.vertices[:-1].mean(axis=0) for path in fills.get_paths()]
    np.testing.assert_allclose(centres, neurons_at(figure), atol=1e-6)
    ink = np.array(to_rgb(INK))
    return ((1 - fills.get_facecolors()[:, :3]) / (1 - ink)).mean(axis=1)


@pytest.mark.parametrize("make", [LTC, CfC])
def test_neurons_are_as_dark_as_their_share_and_kinds_wear_theirs(make):
    x, dt = batch()
    model = make(F, ncp_wiring())
    by_sequence = started_again(model, mx.array(x), mx.array(dt)).sum(axis=1)
    share = by_sequence.sum(axis=0) / by_sequence.sum()
    writer, _ = looked(model)
    record = figures(writer)[0]
    figure = record.plot(record.data, **record.options)
    limit = record.options["attribution_limit"]
    assert limit == nice_limit(share.max())
    # 256 shades.
    np.testing.assert_allclose(darkness(figure), share / limit, atol=1 / 255)
    assert f"● | {100 * limit:g}% of attribution" in words(figure)
    for name, columns in record.options["groups"]:
        parts = by_sequence[:, columns].sum(axis=1)
        pairs = np.stack([parts, by_sequence.sum(axis=1)], axis=1)
        low, high = ci_by_leaving_out(lambda r: r[:, 0].sum() / r[:, 1].sum(), pairs, "logit")
        told = f"{100 * share[columns].sum():.0f}% | {100 * low:.0f}–{100 * high:.0f}"
        assert told in words(figure), name
    assert "unreliable" in record.description


def test_no_neuron_is_dark_where_the_target_depends_on_none():
    def constant(outputs, targets):
        return 0 * outputs[:, -1].sum(axis=-1)

    writer, _ = looked(LTC(F, ncp_wiring()), target=constant)
    assert not arrays(writer, "_ncp/wiring_attribution")
    record = figures(writer)[0]
    assert "attribution" not in record.options
    figure = record.plot(record.data, **record.options)
    assert "attribution" not in words(figure)
    assert not any(isinstance(c, PolyCollection) for c in figure.axes[0].collections)


def test_the_matrix_has_a_row_for_attribution():
    record = shown(AutoNCP(70, 4))
    figure = record.plot(record.data, **record.options)
    strip = figure.axes[1].images[0]
    columns = np.concatenate([columns for _, columns in record.options["groups"]])
    share = record.options["attribution"][columns] / record.options["attribution_limit"]
    np.testing.assert_allclose(strip.get_array()[0], share)
    assert strip.get_clim() == (0, 1)
    assert figure.axes[1].get_xlim() == figure.axes[0].get_xlim()
    assert figure.axes[1].get_position().width == pytest.approx(figure.axes[0].get_position().width)
    assert "% of attribution" in words(figure)


def test_synapses_are_as_wide_as_their_shares_and_wear_their_sign():
    record = shown(ncp_wiring())
    figure = record.plot(record.data, **record.options)
    flow, limit = record.data, record.options["limit"]
    drawn_edges = edges(figure)
    widths = np.sort(np.asarray(drawn_edges.get_linewidths()) * 100 / 72)
    expected = np.sort(WIDEST * flow.share[flow.connected] / limit)
    np.testing.assert_allclose(widths, np.maximum(THINNEST, expected), rtol=1e-6)
    colors = [to_hex(color) for color in drawn_edges.get_edgecolors()]
    assert colors.count(RAISES) == (flow.current[flow.connected] >= 0).sum()
    assert colors.count(LOWERS) == (flow.current[flow.connected] < 0).sum()
    assert f"{flow.connected.sum()} synapses" in words(figure)
    assert title(figure) == f"width: share of conductance, up to {100 * limit:g}% · step 1"


def test_each_synapse_goes_from_its_source_to_its_target():
    record = shown(ncp_wiring())
    figure = record.plot(record.data, **record.options)
    at = np.concatenate([line.get_xydata() for line in figure.axes[0].lines])
    assert len(at) == F + 10
    ends = {
        (tuple(np.round(path.vertices[0], 3)), tuple(np.round(path.vertices[-1], 3)))
        for path in edges(figure).get_paths()
    }
    sources, targets = np.nonzero(record.data.connected)
    places = [tuple(np.round(place, 3)) for place in at]
    assert ends == {(places[s], places[F + t]) for s, t in zip(sources, targets, strict=True)}
    # Columns from the inputs to the motor neurons, and nobody on top of another.
    x = at[:, 0]
    motor, command, inter = x[F : F + 2], x[F + 2 : F + 5], x[F + 5 :]
    assert x[:F].max() < inter.min() <= inter.max() < command.min() <= command.max() < motor.min()
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("wiring", "features"),
    [
        (lambda: AutoNCP(32, 4, sparsity_level=0.6), 5),
        (lambda: FullyConnected(8), 3),
        (lambda: FullyConnected(1), 1),
        (lambda: Random(16, 2, sparsity_level=0.6), 3),
        (lambda: AutoNCP(19, 2), 30),
        (lambda: FullyConnected(24, 4), 6),
        (lambda: AutoNCP(100, 8), 6),
    ],
)
def test_wirings_are_readable_at_any_size(wiring, features):
    record = shown(wiring(), features, [f"a feature called {i}" for i in range(features)])
    figure = record.plot(record.data, **{**record.options, "step": 10_000_000})
    check_text(figure)
    drawn(figure)
    names = {t.get_text() for t in texts(figure)}
    assert {"raises", "lowers"} <= names


@pytest.mark.parametrize(
    ("units", "sparsity", "matrix"), [(60, 0.95, False), (61, 0.95, True), (16, 0.0, True)]
)
def test_many_neurons_or_synapses_make_a_matrix(units, sparsity, matrix):
    record = shown(Random(units, 2, sparsity_level=sparsity))
    figure = record.plot(record.data, **record.options)
    assert bool(figure.axes[0].images) == matrix
    if matrix:
        values = figure.axes[0].images[0].get_array()
        assert values.shape == (F + units, units)
        assert (~np.ma.getmaskarray(values)).sum() == record.data.connected.sum()


def test_the_matrix_has_its_rows_and_columns_by_kind():
    record = shown(AutoNCP(70, 4))
    figure = record.plot(record.data, **record.options)
    columns = np.concatenate([columns for _, columns in record.options["groups"]])
    flow = record.data
    signed = np.where(flow.current < 0, -1, 1) * flow.share
    rows = np.concatenate([np.arange(F), F + columns])
    expected = np.where(flow.connected, signed, 0.0)[np.ix_(rows, columns)]
    image = figure.axes[0].images[0]
    np.testing.assert_allclose(np.ma.filled(image.get_array(), 0.0), expected)
    assert image.get_clim() == (-record.options["limit"], record.options["limit"])
    order = [t.get_text() for t in texts(figure)]
    assert order.index("sensory") < order.index("inter") < order.index("command")


def test_arguments_that_do_not_fit_are_refused():
    record = shown(ncp_wiring())
    groups = record.options["groups"]
    with pytest.raises(ValueError, match="each of the 10 neurons once"):
        plot_wiring(record.data, groups[:2])
    with pytest.raises(ValueError, match="2 input_names for 3 inputs"):
        plot_wiring(record.data, groups, input_names=["a", "b"])
    with pytest.raises(ValueError, match="limit=0"):
        plot_wiring(record.data, groups, limit=0)
    with pytest.raises(ValueError, match=r"shape \(9,\): pass a share for each of the 10 neurons"):
        plot_wiring(record.data, groups, attribution=np.ones(9))
    with pytest.raises(ValueError, match="limit=-1"):
        plot_wiring(record.data, groups, attribution=np.ones(10), attribution_limit=-1)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_wiring(None, groups)


@pytest.mark.parametrize("wiring", [ncp_wiring, lambda: AutoNCP(70, 4)])
def test_a_redrawer_draws_the_same_picture(wiring):
    record = shown(wiring())
    many = {**record.options, "limit": 1.0}
    check_redraws(plot_wiring, (record.data, record.options), (record.data, many))
    # Of a cell without synapses.
    own = {k: v for k, v in record.options.items() if k not in ("input_names", "limit")}
    check_redraws(plot_wiring, (None, own), (None, {**own, "attribution_limit": 1.0}))
