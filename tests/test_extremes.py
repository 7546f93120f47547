"""Figures of the smallest and the largest, of long names, of zeros and of NaN are readable."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_plots import check_text, drawn

from ncp_callbacks.analysis import (
    layer_statistics,
    state_space,
    time_sensitivity,
)
from ncp_callbacks.attribution import temporal_importance
from ncp_callbacks.callbacks.dynamics.analysis import memory_horizon, unit_correlations
from ncp_callbacks.callbacks.faithfulness.analysis import Deletion
from ncp_callbacks.callbacks.feature_interactions.analysis import Interactions
from ncp_callbacks.callbacks.gradient_reach.analysis import gradient_reach
from ncp_callbacks.callbacks.output_time.analysis import output_time
from ncp_callbacks.callbacks.sampling_rate.analysis import SamplingChanges
from ncp_callbacks.callbacks.sanity_check.analysis import Cascade, Measures
from ncp_callbacks.callbacks.single_predictions.plot import Prediction
from ncp_callbacks.callbacks.time_constants.analysis import unit_time_constants
from ncp_callbacks.callbacks.unit_ablation.analysis import unit_ablations
from ncp_callbacks.callbacks.unit_meanings.analysis import UnitRules
from ncp_callbacks.callbacks.wiring.analysis import SynapticFlow
from ncp_callbacks.plots import (
    plot_dynamics,
    plot_faithfulness,
    plot_feature_importance,
    plot_gradient_reach,
    plot_interactions,
    plot_output_time,
    plot_prediction,
    plot_sampling_rate,
    plot_sanity,
    plot_state_space,
    plot_time_constants,
    plot_time_constants_over_time,
    plot_time_sensitivity,
    plot_unit_ablation,
    plot_unit_activity,
    plot_unit_information,
    plot_unit_meanings,
    plot_wiring,
)

STEP = 10_000_000
LONG = "mean arterial blood pressure, invasive ($mmHg$), left radial artery, number {}"
TARGET = "logit of the class 'pneumonia, hospital-acquired, methicillin-resistant' at last step"
FILL = {"random": None, "zero": 0.0, "constant": 3.7, "NaN": math.nan, "huge": 1e15, "tiny": 1e-15}


def values(shape: tuple[int, ...], fill: float | None, seed: int = 0) -> Any:
    """Random numbers, the same number everywhere, or random ones of its magnitude."""
    if fill is None:
        return np.random.default_rng(seed).normal(size=shape)
    if fill in (FILL["huge"], FILL["tiny"]):
        return fill * np.random.default_rng(seed).normal(size=shape)
    return np.full(shape, fill)


def names(count: int) -> tuple[str, ...]:
    return tuple(LONG.format(i) for i in range(count))


def importance(steps: int, features: int, fill: float | None, batch: int = 5) -> Figure:
    x, g = values((batch, steps, features), fill), values((batch, steps, features), fill, 1)
    result = temporal_importance(x, g, feature_names=names(features))
    return plot_feature_importance(result, step=STEP, target=TARGET)


def sensitivity(count: int, fill: float | None, batch: int = 5) -> Figure:
    scales = [1.0, *np.geomspace(0.01, 100, count - 1)] if count > 2 else [1.0, 2.0][:count]
    seen = {s: values((batch,), fill, i) for i, s in enumerate(scales)}
    before = {s: values((batch,), None, i) for i, s in enumerate(scales)}
    return plot_time_sensitivity(
        time_sensitivity(seen), reference=time_sensitivity(before), step=STEP
    )


def states(steps: int, neurons: int, classes: int, fill: float | None) -> Figure:
    batch = max(4, classes)
    h = np.cumsum(values((batch, steps, neurons), fill), axis=1)
    return plot_state_space(
        state_space(h), values((batch, steps), None) ** 2, classes=np.arange(batch) % classes,
        class_names=names(classes), step=STEP,
    )  # fmt: skip


def units(neurons: int, layers: int, fill: float | None, activation: str = "relu") -> Figure:
    each = [
        layer_statistics(
            values((2, 5, neurons), fill, i), layer=LONG.format(i), activation=activation
        )
        for i in range(layers)
    ]
    return plot_unit_activity(each, step=STEP)


def dynamics(steps: int, neurons: int, fill: float | None) -> Figure:
    found = unit_correlations(values((6, neurons), fill), values((6,), None, 1))
    jacobians = values((2, steps - 1, 4, 4), fill, 2) / 3
    memory, first = memory_horizon(jacobians), memory_horizon(values(jacobians.shape, None, 3) / 4)
    return plot_dynamics(found, memory, first=first.curve, target=TARGET, step=STEP)


def faithfulness(nodes: int, fill: float | None, batch: int = 4) -> Figure:
    shares = np.linspace(0, 1, nodes + 1)
    result = Deletion(
        shares, *(values((batch, nodes + 1), fill, i) for i in range(2)),
        values((3, batch, nodes + 1), fill, 3), 1.0 if fill is None else abs(fill), 0.2, None,
        None, batch, 0,
    )  # fmt: skip
    return plot_faithfulness(result, method=LONG.format("x"), target=TARGET, step=STEP)


def interactions(count: int, fill: float | None) -> Figure:
    pairs = np.abs(values((4, count, count), fill))
    result = Interactions(
        "archipelago", names(count), values((4, count), fill), pairs + np.swapaxes(pairs, 1, 2),
        values((4,), fill), 3,
    )  # fmt: skip
    return plot_interactions(result, target=TARGET, step=STEP)


def outputs(steps: int, fill: float | None, times: bool = True) -> Figure:
    which = np.unique(np.linspace(0, steps - 1, 32).astype(int))
    result = output_time(
        values((len(which), 3, steps, 1), fill), which,
        time_delta=values((3, steps), None) ** 2 if times else None, target=TARGET,
    )  # fmt: skip
    return plot_output_time(result, step=STEP)


def prediction(steps: int, features: int, fill: float | None) -> Figure:
    one = Prediction(
        123456, -12345.678 if fill is None else fill, TARGET, np.arange(steps),
        values((steps, features), fill), names(features), values((steps, 3), fill, 1),
        np.geomspace(0.1, 10, 9), values((9,), fill, 2), LONG.format(3),
    )  # fmt: skip
    return plot_prediction(one, step=STEP)


def sanity(stages: int, fill: float | None) -> Figure:
    ranks, cosines = (np.tanh(values((stages + 1, 4), fill, i)) for i in range(2))
    sizes = values((2, 4), fill)
    result = Cascade(names(stages), ranks, cosines, 0, *(Measures(*row) for row in sizes))
    return plot_sanity(
        result, first=Measures(1.0, 0.5, 0.1, 2.0), first_curve=np.linspace(1, -1, stages + 1),
        method=LONG.format("x"), step=STEP,
    )  # fmt: skip


def constants(neurons: int, fill: float | None) -> Figure:
    result = unit_time_constants(np.abs(values((3, 4, neurons), fill)), kind="system")
    return plot_time_constants(
        result, first=np.abs(values((neurons,), None)), time_delta=1e-3, duration=1e5, step=STEP
    )


def over_time(neurons: int, steps: int, fill: float | None) -> Figure:
    result = unit_time_constants(np.abs(values((3, steps, neurons), fill)), kind="system")
    return plot_time_constants_over_time(result, step=STEP)


def wiring(neurons: int, features: int, fill: float | None, synapses: bool = True) -> Figure:
    share = np.abs(values((features + neurons, neurons), fill))
    connected = np.random.default_rng(9).uniform(size=share.shape) < min(1.0, 3 / neurons)
    flow = SynapticFlow(
        share * connected, np.ones(neurons), values(share.shape, fill, 1), np.ones(neurons),
        connected, 0.0, 0.0, share[None], np.ones((1, neurons)), np.ones(1), 4, 0, "cell",
    )  # fmt: skip
    cuts = np.minimum(np.cumsum([0, max(1, neurons // 8), max(1, neurons // 4)]), neurons)
    kinds = ("motor", "command", "inter")
    groups = [
        (kind, np.arange(start, stop))
        for kind, start, stop in zip(kinds, cuts, [*cuts[1:], neurons], strict=True)
    ]
    size = np.abs(values((neurons,), fill, 2))
    attribution = size / (size.sum() or 1.0)
    intervals = dict.fromkeys(kinds[:2], (0.0, 1.0))
    if not synapses:
        return plot_wiring(
            None, groups, attribution=attribution, attribution_cis=intervals, step=STEP
        )
    return plot_wiring(
        flow, groups, input_names=names(features), attribution=attribution,
        attribution_cis=intervals, step=STEP,
    )  # fmt: skip


def neurons(count: int, fill: float | None) -> Figure:
    return wiring(count, 1, fill, synapses=False)


FIGURES: dict[str, Callable[[], Figure]] = {}


def ablation(count: int, fill: float | None, loss: bool = True) -> Figure:
    clamped, slopes = values((count, 6), fill), values((6, count), fill, 1)
    losses = {"losses": np.zeros(6), "clamped_losses": clamped + 1} if loss else {}
    result = unit_ablations(
        [LONG.format(i) for i in range(count)], np.zeros(6), clamped, slopes=slopes, target=TARGET,
        **losses,
    )  # fmt: skip
    return plot_unit_ablation(result, step=STEP)


def reach(steps: int, fill: float | None) -> Figure:
    gradient = values((6, steps, 4), fill) * np.exp(np.linspace(-60, 0, steps))[:, None]
    result = gradient_reach(np.nan_to_num(gradient) + 1e-30, target=TARGET)
    assert result is not None
    return plot_gradient_reach(result, step=STEP)


def rules(count: int, fill: float | None) -> UnitRules:
    accuracy, long = values((count,), fill), [LONG.format(i) for i in range(count)]
    words = tuple(f"{name} > 1.23" if i % 3 else "" for i, name in enumerate(long))
    information = np.abs(values((count, 30), fill))
    ends = np.stack([accuracy - 0.1, accuracy + 0.1])
    return UnitRules(
        tuple(long), accuracy, ends, words, words, names(30), information, "cell", 6, {}
    )


def meanings(count: int, fill: float | None) -> Figure:
    return plot_unit_meanings(rules(count, fill), step=STEP)


def information(count: int, fill: float | None) -> Figure:
    return plot_unit_information(rules(count, fill), step=STEP)


def sampling(count: int, fill: float | None) -> Figure:
    change = {way: np.abs(values((count,), fill)) for way in ("dropped", "merged")}
    ends = {way: np.stack([size / 2, size * 2]) for way, size in change.items()}
    factors = tuple(range(2, 2 + count))
    result = SamplingChanges(factors, change, ends, TARGET, 6, 0, {})
    return plot_sampling_rate(result, step=STEP)


def picture(name: str, draw: Callable[..., Figure], *sizes: Any, fill: str = "random") -> None:
    FIGURES[f"{name} {'x'.join(map(str, sizes))} {fill}"] = lambda: draw(*sizes, FILL[fill])


for f in (1, 3, 200):
    for t in (1, 2, 2000):
        picture("importance", importance, t, f)
        picture("prediction", prediction, t, f)
    picture("wiring", wiring, 4, f)
    picture("wiring", wiring, 500, f)
    if f > 1:
        picture("interactions", interactions, f)
for t in (1, 2, 2000):
    picture("outputs", outputs, t)
    picture("reach", reach, t)
    for n, classes in ((4, 1), (4, 50), (500, 3), (500, 50)):
        picture("states", states, t, n, classes)
for n in (1, 4, 500):
    picture("constants", constants, n)
    picture("neurons", neurons, n)
    picture("ablation", ablation, n)
    picture("meanings", meanings, n)
    picture("information", information, n)
    picture("units", units, n, 1)
    picture("units", units, n, 5)
    picture("dynamics", dynamics, 2, n)
    picture("dynamics", dynamics, 2000, n)
for s in (1, 2, 40):
    picture("sensitivity", sensitivity, s)
for s in (1, 12):
    picture("sanity", sanity, s)
for s in (1, 4):
    picture("sampling", sampling, s)
for s in (2, 500):
    picture("faithfulness", faithfulness, s)
for n in (1, 2, 64):
    FIGURES[f"faithfulness of {n}"] = functools.partial(faithfulness, 20, None, n)
for fill in ("zero", "constant", "NaN", "huge", "tiny"):
    picture("importance", importance, 20, 8, fill=fill)
    picture("prediction", prediction, 20, 8, fill=fill)
    picture("wiring", wiring, 19, 5, fill=fill)
    picture("wiring", wiring, 100, 5, fill=fill)
    picture("neurons", neurons, 19, fill=fill)
    picture("ablation", ablation, 19, fill=fill)
    picture("meanings", meanings, 19, fill=fill)
    picture("information", information, 19, fill=fill)
    picture("reach", reach, 20, fill=fill)
    picture("sampling", sampling, 2, fill=fill)
    picture("interactions", interactions, 8, fill=fill)
    picture("outputs", outputs, 20, fill=fill)
    picture("states", states, 20, 8, 3, fill=fill)
    picture("constants", constants, 19, fill=fill)
    picture("over time", over_time, 19, 40, fill=fill)
    picture("units", units, 19, 2, fill=fill)
    picture("dynamics", dynamics, 20, 19, fill=fill)
    picture("sensitivity", sensitivity, 5, fill=fill)
    picture("sanity", sanity, 3, fill=fill)
    picture("faithfulness", faithfulness, 20, fill=fill)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_no_text_leaves_the_canvas_or_covers_another(name: str) -> None:
    figure = FIGURES[name]()
    check_text(figure)
    # Something is on the paper, and nothing that is drawn raises.
    assert (drawn(figure) < 128).any()
