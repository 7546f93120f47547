"""Test that the declared cost is the true cost: passes are declared, planned, shared, counted."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.attribution import (
    AttributionMaps,
    AttributionMethod,
    ExpectedGradients,
    InputXGradient,
    IntegratedGradients,
    Occlusion,
    PassCount,
    SmoothGrad,
)
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.observer.plan import repeated_needs, shared_passes
from ncp_callbacks.pass_costs import SharedResults
from ncp_callbacks.target_values import TargetValues

B, T, F = 6, 5, 3
rng = np.random.default_rng(0)
X = rng.standard_normal((B, T, F)).astype(np.float32)
DT = rng.uniform(0.5, 2.0, (B, T)).astype(np.float32)
ran: list[int] = []


class Net(nn.Module):
    """Note the number of sequences of every call."""

    def __init__(self, kind: type[nn.Module] = CfC) -> None:
        super().__init__()
        self.rnn, self.head = kind(F, 4), nn.Linear(4, 2)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        ran.append(len(x))
        return self.head(self.rnn(x, time_delta)[0])


def held_out() -> ncp.HeldOutBatch:
    return ncp.HeldOutBatch(X, DT, targets=np.arange(B) % 2)


def logged(*callbacks: ncp.Callback, model: nn.Module | None = None) -> dict[str, Any]:
    """Return the scalars of one snapshot, and note only the calls that analyse it."""
    mx.random.seed(0)
    writer = ncp.MemoryWriter()
    model = Net() if model is None else model
    with ncp.Monitor(
        model, held_out(), list(callbacks), writer=writer, every=1, background=False,
        on_error="raise",
    ) as monitor:  # fmt: skip
        ran.clear()
        monitor.on_step_end(1)
    return {tag: writer.scalars(tag)[0][1] for tag in writer.tags if writer.scalars(tag)}


def costs_of(found: dict[str, Any], group: str = "passes") -> dict[str, float]:
    start = f"monitor/{group}/"
    return {tag[len(start) :]: value for tag, value in found.items() if tag.startswith(start)}


# --- an observation is data


def test_an_observation_is_data_and_runs_nothing() -> None:
    runner = ModelRunner(Net(), held_out())
    seen = passes.observe(runner, 1, set(ncp.Need))
    ran.clear()
    names = [n for n in dir(ncp.Observation) if not n.startswith("_")]
    for name in names:
        getattr(seen, name)
    few = seen.declaring({ncp.Need.STATES}).limited(2)
    assert (len(few.states[0].values), len(few.indices), ran) == (2, 2, [])
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.step = 2  # type: ignore[misc]
    # Every field of a complete object has a value.
    again = seen.extra_passes.reevaluate(seen.inputs)
    for made in (seen, few, again):
        assert {f.name for f in dataclasses.fields(made)} <= set(vars(made))


ASKED = {
    ncp.Need.VARIANTS: lambda p: p.evaluate(X[None]),
    ncp.Need.VARIANT_GRADIENTS: lambda p: p.evaluate(X[None], gradient=True),
    ncp.Need.REMOVALS: lambda p: p.removed([np.arange(1)]),
    ncp.Need.TIME_SCALES: lambda p: p.at_time_scales([2.0]),
    ncp.Need.FINER_SOLVER: lambda p: p.with_finer_solver([2.0]),
    ncp.Need.HESSIAN_PRODUCTS: lambda p: p.slopes(X[None], along=X),
    ncp.Need.OUTPUT_STEPS: lambda p: p.at_steps([1]),
    ncp.Need.CELL_STEPS: lambda p: p.state_jacobian("rnn.rnn_cell"),
    ncp.Need.STATE_GRADIENT: lambda p: p.state_x_gradient("rnn.rnn_cell"),
    ncp.Need.STATE_CHANGES: lambda p: p.state_gradient("rnn.rnn_cell"),
    ncp.Need.FEWER_STEPS: lambda p: p.with_fewer_steps(
        np.zeros((B, 1), np.intp), np.ones((B, 1), bool)
    ),
    ncp.Need.RANDOMISED: lambda p: p.randomised(2).__enter__(),
}


def test_every_kind_of_extra_pass_is_tested() -> None:
    assert {need for need in ncp.Need if need.is_extra_pass} == set(ASKED)


@pytest.mark.parametrize("need", ASKED)
def test_a_pass_that_is_not_declared_is_refused_with_the_fix(need: ncp.Need) -> None:
    runner = ModelRunner(Net(), held_out())
    seen = passes.observe(runner, 1, set(ncp.Need) - {need})
    fix = rf"kind {need.value} are not declared.*frozenset\(\{{Need\.{need.name}, \.\.\.\}}\)"
    ran.clear()
    with pytest.raises(RuntimeError, match=fix):
        ASKED[need](seen.extra_passes)
    assert ran == []


class Asks(ncp.Callback):
    """Ask for what one of its neighbours declares."""

    def __init__(self, ask: Any, needs: Any = (), **common: Any) -> None:
        super().__init__(**common)
        self.ask, self.needs = ask, frozenset(needs)

    def measure(self, observation: ncp.Observation) -> list[ncp.Scalar]:
        return [ncp.Scalar(f"{self.name}/sum", float(np.sum(self.ask(observation))))]


@pytest.mark.parametrize(
    ("ask", "need"),
    [
        (lambda o: o.states[0].values, ncp.Need.STATES),
        (lambda o: o.losses, ncp.Need.LOSSES),
        (lambda o: o.extra_passes.evaluate(o.inputs[None]).values, ncp.Need.VARIANTS),
    ],
    ids=["states", "losses", "variants"],
)
def test_what_a_neighbour_declares_is_not_declared_for_others(ask: Any, need: ncp.Need) -> None:
    declares, forgets = Asks(lambda o: 0.0, {need}, name="declares"), Asks(ask, name="forgets")
    with pytest.raises(RuntimeError, match=f"Need.{need.name}"):
        logged(declares, forgets)
    assert "asks/sum" in logged(Asks(ask, {need}))


# --- the plan


def test_the_plan_follows_from_what_is_declared() -> None:
    gradient = ncp.GradientAttribution(max_sequences=2)
    states, single = ncp.StateTransitions(), ncp.StateSpace(max_sequences=1)
    few, all_of = shared_passes([gradient, states, single], 6)
    assert few.callbacks == (gradient, single)
    assert few.needs == gradient.needs | single.needs
    assert (few.max_sequences, all_of.max_sequences) == (2, 6)
    assert (all_of.callbacks, all_of.needs) == ((states,), {ncp.Need.STATES})
    assert len(shared_passes([gradient, states], 3)) == 1
    assert shared_passes([], 6) == []
    # Arrays of the shared pass are shared anyway.
    both = repeated_needs([ncp.TimeConstants(), ncp.Wiring(), states])
    assert both == {ncp.Need.CELL_STEPS}
    assert repeated_needs([ncp.Wiring()]) == frozenset()


# --- the same pass runs once


def test_equal_passes_of_two_callbacks_run_once() -> None:
    def twice(observation: ncp.Observation) -> Any:
        return observation.extra_passes.evaluate(2 * observation.inputs[None]).values

    def thrice(observation: ncp.Observation) -> Any:
        return observation.extra_passes.evaluate(3 * observation.inputs[None]).values

    needs = {ncp.Need.VARIANTS}
    first, second = Asks(twice, needs, name="first"), Asks(twice, needs, name="second")
    other, few = Asks(thrice, needs, name="other"), Asks(twice, needs, name="few", max_sequences=2)
    found = logged(first, second, other, few)
    # The shared pass, 2 x and 3 x of all sequences, 2 x of two of them.
    assert ran == [B, B, B, 2]
    assert found["first/sum"] == found["second/sum"] != found["other/sum"]
    assert costs_of(found) == {"shared": 1, "variants": 3}
    alone = logged(first)
    assert ran == [B, B]
    assert alone["first/sum"] == found["first/sum"]


def test_time_scales_are_shared_one_by_one() -> None:
    found = logged(
        ncp.TimeSensitivity(scales=(0.5, 2.0)), ncp.TimeSensitivity(scales=(2.0, 5.0), name="more")
    )
    # Scale 2 is known when the second callback asks for it.
    assert ran == [B, 2 * B, B]
    assert costs_of(found) == {"shared": 1, "time_scales": 3}
    assert found["more/sensitivity_x2"] == found["time_delta/sensitivity_x2"]
    alone = logged(ncp.TimeSensitivity(scales=(2.0, 5.0), name="more"))
    assert alone["more/sensitivity_x5"] == pytest.approx(found["more/sensitivity_x5"], rel=1e-5)


def test_steps_of_a_cell_are_read_once() -> None:
    first, second = ncp.TimeConstants(time_steps=0), ncp.TimeConstants(time_steps=0, name="again")
    one = logged(first, model=Net(LTC))
    both = logged(first, second, model=Net(LTC))
    assert costs_of(both) == costs_of(one)
    assert costs_of(one)["cell_steps"] >= 2  # The forward pass, and each step once more.
    assert both["again/system_q50"] == both["time_constants/system_q50"]


def test_results_of_changed_parameters_are_not_shared() -> None:
    def changed(observation: ncp.Observation) -> Any:
        with observation.extra_passes.randomised(1) as stages:
            list(stages)
            return observation.extra_passes.evaluate(observation.inputs[None]).values

    def plain(observation: ncp.Observation) -> Any:
        return observation.extra_passes.evaluate(observation.inputs[None]).values

    needs = {ncp.Need.VARIANTS, ncp.Need.RANDOMISED}
    orders = [("plain", plain), ("changed", changed), ("again", plain)]
    for order in (orders, orders[::-1]):
        found = logged(*[Asks(ask, needs, name=name) for name, ask in order])
        assert found["plain/sum"] == found["again/sum"]
        assert abs(found["changed/sum"] - found["plain/sum"]) > 1e-3


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(F, 4), nn.Linear(4, 2)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        return self.head(self.rnn(x * time_delta[..., None]))


@pytest.mark.parametrize("model", [Net, lambda: Net(LTC), Layer], ids=["cfc", "ltc", "gru"])
def test_steps_are_those_of_the_model_after_its_parameters_were_changed(model: Any) -> None:
    """Restoring the model may replace its modules, which a stepper refers to."""

    def callbacks(name: str) -> list[ncp.Callback]:
        return [
            ncp.Dynamics(name=f"dynamics_{name}"), ncp.TimeConstants(name=f"constants_{name}"),
        ]  # fmt: skip

    found = logged(*callbacks("a"), ncp.SanityCheck(stages=2), *callbacks("b"), model=model())
    before = {tag: value for tag, value in found.items() if "_a/" in tag}
    assert len(before) > 20
    for tag, value in before.items():
        np.testing.assert_equal(found[tag.replace("_a/", "_b/")], value, err_msg=tag)


def test_what_is_kept_is_bounded() -> None:
    shared = SharedResults({ncp.Need.VARIANTS})
    large = TargetValues(np.zeros((1, 40 * 2**17)))  # 40 MiB of float64.
    shared.keep(ncp.Need.VARIANTS, 1, large)
    shared.keep(ncp.Need.VARIANTS, 2, large)
    shared.keep(ncp.Need.TIME_SCALES, 1, large)
    assert shared.known(ncp.Need.VARIANTS, 1) is large
    assert shared.known(ncp.Need.VARIANTS, 2) is None
    assert shared.known(ncp.Need.TIME_SCALES, 1) is None
    with shared.suspended():
        assert shared.known(ncp.Need.VARIANTS, 1) is None
    assert shared.known(ncp.Need.VARIANTS, 1) is large


# --- costs


@pytest.mark.parametrize(
    "method",
    [
        InputXGradient(), IntegratedGradients(5), IntegratedGradients(5, at_inputs=True),
        SmoothGrad(4), ExpectedGradients(6), Occlusion(),
    ],
    ids=lambda method: method.name,
)  # fmt: skip
def test_methods_run_the_passes_that_they_declare(method: AttributionMethod) -> None:
    callback = ncp.GradientAttribution(method=method, removal=0)
    found = costs_of(logged(callback))
    declared = method.extra_passes(T, F, takes_time=True)
    expected = {"variants": declared.forward, "variant_gradients": declared.gradient}
    assert found == {"shared": 1, **{kind: n for kind, n in expected.items() if n}}
    assert {need.value for need in callback.needs if need.is_extra_pass} == set(found) - {"shared"}


@dataclasses.dataclass(frozen=True)
class Undeclared(AttributionMethod):
    """Run a gradient pass that is not declared."""

    name: ClassVar[str] = "undeclared"
    label: ClassVar[str] = "undeclared"

    def extra_passes(self, n_time_steps: int, n_features: int, *, takes_time: bool) -> PassCount:
        return PassCount(forward=1)

    def attribute(self, evaluate: Any, inputs: Any, time_delta: Any, **_: Any) -> AttributionMaps:
        return AttributionMaps(evaluate(inputs[None], gradient=True).input_gradient[0])


def test_a_method_that_runs_what_it_does_not_declare_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"variant_gradients.*declares them in its extra_passes"):
        logged(ncp.GradientAttribution(method=Undeclared()))


def test_the_costs_of_the_docstrings_are_those_that_are_counted() -> None:
    faithful = ncp.Faithfulness(n_groups=20, orders=4, perturbations=4)
    found = costs_of(logged(faithful))
    # (2 + orders) (n_groups - 1) + 2 forward passes; a gradient pass for each changed input. Each
    # of the 8 maps takes three more points, and the target at the baseline.
    expected = {"variants": 6 * 19 + 2 + 8, "variant_gradients": 4 + 3 + 8 * 3}
    assert found == {"shared": 1, **expected}
    found = costs_of(logged(ncp.OutputTime()))
    assert found == {"shared": 1, "output_steps": T + 2}
    found = costs_of(logged(ncp.TimeSensitivity(solver_error=True), model=Net(LTC)))
    # Each of four scales with twice the sub-steps.
    assert found == {"shared": 1, "time_scales": 3, "finer_solver": 8}
    # A part of the sequences counts as a part of a pass.
    found = costs_of(logged(ncp.SinglePredictions(sequences=(0, 3), scales=(0.5, 1.0, 2.0))))
    assert found == {"shared": 1, "variants": pytest.approx(3 * 2 / B)}


def test_seconds_are_those_of_the_passes_and_of_the_rest() -> None:
    class Slow(Net):
        def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
            time.sleep(0.05)
            return super().__call__(x, time_delta)

    def ask(observation: ncp.Observation) -> Any:
        time.sleep(0.02)
        return observation.extra_passes.evaluate(2 * observation.inputs[None]).values

    found = logged(Asks(ask, {ncp.Need.VARIANTS}), model=Slow())
    seconds = costs_of(found, "pass_seconds")
    assert set(seconds) == {"shared", "variants"}
    assert min(seconds.values()) >= 0.05
    # The time of a callback is without that of its passes.
    assert 0.02 <= found["monitor/seconds/asks"] < 0.05


def test_the_observer_sends_its_costs_from_its_process() -> None:
    writer = ncp.MemoryWriter()
    with ncp.Monitor(
        Net(), held_out(), [ncp.TimeSensitivity()], writer=writer, every=1, background=True
    ) as monitor:
        monitor.on_step_end(1)
    assert writer.scalars("monitor/passes/time_scales") == [(1, 3.0)]
    assert writer.scalars("monitor/passes/shared") == [(1, 1.0)]
