"""What holds for every callback: its documented tags, its keywords, its needs, its state."""

from __future__ import annotations

import copy
import inspect
import json
import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from promises import FULL, MONITORS, STANDARD, pattern, promised
from scipy.spatial.distance import cosine as cosine_distance
from scipy.stats import spearmanr

import ncp_callbacks as ncp
from ncp_callbacks.attribution import IntegratedGradients, SmoothGrad
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.screen import clean_tag

KINDS = {
    ncp.Scalar: "scalar",
    ncp.Histogram: "histogram",
    ncp.Figure: "image",
    ncp.Array: "array",
    ncp.Text: "text",
    ncp.Embedding: "points",
}
# Constructor arguments without which some of the promised tags don't come.
MORE: dict[type[ncp.Callback], list[dict[str, Any]]] = {
    ncp.GradientAttribution: [{"agreement": "input_x_gradient", "by_class": True, "worst": 2}],
}
every_callback = pytest.mark.parametrize("cls", [*STANDARD, *FULL], ids=lambda c: c.__name__)


class Net(nn.Module):
    def __init__(self, features: int = 3) -> None:
        super().__init__()
        self.rnn = CfC(features, 8, backbone_units=6, backbone_layers=2, activation="relu")
        self.head = nn.Linear(8, 4)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


def logged(
    callbacks: list[ncp.Callback],
    features: int = 3,
    steps: int = 2,
    model: nn.Module | None = None,
    sequences: int = 6,
    **options: Any,
) -> ncp.MemoryWriter:
    mx.random.seed(0)
    model = Net(features) if model is None else model
    rng = np.random.default_rng(0)
    held_out = ncp.HeldOutBatch(
        rng.standard_normal((sequences, 5, features)).astype(np.float32),
        rng.uniform(0.5, 2.0, (sequences, 5)).astype(np.float32),
        targets=np.arange(sequences) % 4,
    )
    writer = ncp.MemoryWriter()
    with ncp.Monitor(model, held_out, callbacks, writer=writer, every=1, **options) as monitor:
        for step in range(1, steps + 1):
            monitor.on_step_end(step)
    return writer


def logged_of_tokens() -> ncp.MemoryWriter:
    """Return what is logged of a model of tokens."""
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(np.arange(30).reshape(6, 5) % 7)
    model = nn.Sequential(nn.Embedding(7, 3), Net())
    with ncp.Monitor(model, held_out, [ncp.GradientAttribution()], writer=writer) as monitor:
        monitor.on_step_end(1)
    return writer


def own(writer: ncp.MemoryWriter) -> list[ncp.Record]:
    """What callbacks logged, without what the monitor says of itself."""
    records = ((step, r) for step, r in writer.records if not r.tag.startswith(MONITORS))
    return [r for step, r in records if step > 0]


@every_callback
def test_the_docstring_lists_every_tag_and_no_other(cls: type[ncp.Callback]) -> None:
    promises = promised(cls)
    assert promises
    # Thirteen features: with "other", which only exists when there are too many for curves.
    records = own(logged([cls()], features=13))
    for options in MORE.get(cls, []):
        records += own(logged([cls(**options)]))
    if cls is ncp.GradientAttribution:
        # Classes are compared where enough sequences are confused.
        records += own(logged([cls()], sequences=240))
        records += own(logged_of_tokens())
    if cls is ncp.TimeSensitivity:
        # Only an LTC has a solver.
        records += own(logged([cls(solver_error=True)], model=LTC(3, 4)))
    for record in records:
        fitting = [tag for tag in promises if pattern(tag).match(record.tag)]
        assert fitting, f"{record.tag} is not in the table of {cls.__name__}"
        assert promises[fitting[0]] == KINDS[type(record)], record.tag
    for tag in promises:
        assert any(pattern(tag).match(r.tag) for r in records), f"{tag} was never logged"


@every_callback
def test_every_description_is_of_a_tag_of_the_docstring(cls: type[ncp.Callback]) -> None:
    table = inspect.getmodule(cls)._SCALARS  # type: ignore[union-attr]
    tags = [pattern(tag) for tag, kind in promised(cls).items() if kind == "scalar"]
    separator = "/layer0_" if cls is ncp.BackboneActivations else "/"
    for name in table:
        tag = f"{cls.default_name}{separator}{re.sub('<[a-z]+>', '1', name)}"
        assert any(tag_pattern.match(tag) for tag_pattern in tags), tag


@every_callback
def test_common_keywords(cls: type[ncp.Callback]) -> None:
    parameters = inspect.signature(cls).parameters
    assert {"every", "name"} <= set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    writer = logged([cls(name="mine", every=2)], steps=4)
    tags = {r.tag.removeprefix("_ncp/") for r in own(writer)}
    assert all(tag.startswith("mine") for tag in tags), tags
    assert {step for step, r in writer.records if not r.tag.startswith(MONITORS)} == {2, 4}


@every_callback
def test_scalars_do_not_depend_on_company(cls: type[ncp.Callback]) -> None:
    def values(writer: ncp.MemoryWriter) -> dict[str, list[tuple[int, float]]]:
        return {r.tag: writer.scalars(r.tag) for r in own(writer) if isinstance(r, ncp.Scalar)}

    alone = values(logged([cls()]))
    together = values(logged([c() for c in (*STANDARD, *FULL)]))
    for tag, curve in alone.items():
        # Alone without a gradient, the same numbers come out of another graph.
        np.testing.assert_allclose(curve, together[tag], rtol=1e-5, atol=1e-6, err_msg=tag)


@every_callback
def test_every_tag_is_explained(cls: type[ncp.Callback]) -> None:
    writer = logged([cls()])
    # Of the last one: tags that a second snapshot adds are explained as soon as they are there.
    guide = [r.markdown for _, r in writer.records if r.tag == "monitor/guide"][-1]
    for record in own(writer):
        # A text explains itself.
        if not record.tag.startswith("_ncp/") and not isinstance(record, ncp.Text):
            assert f"`{clean_tag(record.tag)}`" in guide, record.tag


@every_callback
def test_every_image_has_scalar_twins(cls: type[ncp.Callback]) -> None:
    records = own(logged([cls()]))
    images = [r for r in records if isinstance(r, ncp.Figure)]
    for image in images:
        group = image.tag.split("/")[0]
        twins = [r for r in records if isinstance(r, ncp.Scalar) and r.tag.startswith(group)]
        assert twins, image.tag


@every_callback
def test_records_carry_no_mlx_arrays(cls: type[ncp.Callback]) -> None:
    def inside(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [v for item in value.values() for v in inside(item)]
        if isinstance(value, list | tuple):
            return [v for item in value for v in inside(item)]
        if hasattr(value, "__dataclass_fields__"):
            return inside({name: getattr(value, name) for name in value.__dataclass_fields__})
        return [value]

    for record in own(logged([cls()])):
        assert not any(isinstance(v, mx.array) for v in inside(record)), record.tag


@every_callback
def test_state_is_small_and_copies(cls: type[ncp.Callback]) -> None:
    callback = cls()
    logged([callback])

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        return np.asarray(value).tolist()

    state = callback.state_dict()
    assert len(json.dumps(plain(state))) < 10_000
    other = cls()
    other.load_state_dict(copy.deepcopy(state))
    assert plain(other.state_dict()) == plain(state)


@every_callback
def test_axes_never_shrink(cls: type[ncp.Callback]) -> None:
    limits: dict[str, list[float]] = {}
    for record in own(logged([cls()], steps=4)):
        if isinstance(record, ncp.Figure) and "limit" in record.options:
            limits.setdefault(record.tag, []).append(record.options["limit"])
    for tag, values in limits.items():
        assert values == sorted(values), tag


@every_callback
def test_figures_draw(cls: type[ncp.Callback]) -> None:
    for record in own(logged([cls()])):
        if isinstance(record, ncp.Figure):
            figure = record.plot(record.data, **record.options)
            assert figure.get_size_inches().tolist() == [6.4, 4.3]


def test_shares_sum_to_one() -> None:
    writer = logged([ncp.GradientAttribution()], features=20)
    shares = [writer.scalars(t)[0][1] for t in writer.tags if t.startswith("attribution_share/")]
    assert len(shares) == 12
    assert sum(shares) == pytest.approx(1.0)


def test_chosen_features() -> None:
    writer = logged([ncp.GradientAttribution(features=["feature 2", "feature 7"])], features=9)
    tags = {t for t in writer.tags if t.startswith("attribution_share/")}
    assert tags == {f"attribution_share/{f}" for f in ("feature 2", "feature 7", "other")}


def test_scales_are_tags() -> None:
    writer = logged([ncp.TimeSensitivity(scales=[0.25, 3])])
    tags = {t for t in writer.tags if "sensitivity_x" in t}
    assert tags == {"time_delta/sensitivity_x0.25", "time_delta/sensitivity_x3"}


def test_a_single_sequence_has_no_sd() -> None:
    mx.random.seed(0)
    writer = ncp.MemoryWriter()
    x = np.random.default_rng(0).standard_normal((1, 5, 3)).astype(np.float32)
    held_out = ncp.HeldOutBatch(x, np.ones((1, 5)))
    with ncp.Monitor(Net(), held_out, writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        assert any("no SD" in note for note in monitor.notes)
        assert any("fewer than two" in note for note in monitor.notes)
    assert "time_delta/elasticity" not in writer.tags
    assert "_ncp/time_delta_curve" in writer.tags
    assert "transitions/direction_consistency" not in writer.tags


@pytest.mark.parametrize("limit", [None, 2])
def test_a_baseline_for_each_sequence(limit: int | None) -> None:
    """Nothing is attributed to inputs and elapsed times that are their own baselines."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 5, 3)).astype(np.float32)
    dt = rng.uniform(0.5, 2.0, (6, 5)).astype(np.float32)
    shifted = x + np.array([1.0, 0.0, 0.0], np.float32)
    for method in ("integrated_gradients", "input_x_gradient", "occlusion"):
        writer, model = ncp.MemoryWriter(), Net()
        callback = ncp.GradientAttribution(
            method=method, baseline=shifted, time_baseline=dt, max_sequences=limit
        )
        held_out = ncp.HeldOutBatch(x, dt)
        with ncp.Monitor(
            model, held_out, [callback], writer=writer, every=1, on_error="raise"
        ) as monitor:
            monitor.on_step_end(1)
        # Only the first feature differs from its baseline, and no elapsed time does.
        assert writer.scalars("attribution_share/feature 0") == [(1, 1.0)], method
        assert writer.scalars("attribution/time_share") == [(1, 0.0)], method


def test_gradients_have_no_share_of_time() -> None:
    """Per unit of an input and per unit of time there is no common total."""
    for method in ("gradient", SmoothGrad(2)):
        writer = logged([ncp.GradientAttribution(method=method)])
        assert writer.scalars("attribution/strength")
        assert not writer.scalars("attribution/time_share")
    assert logged([ncp.GradientAttribution()]).scalars("attribution/time_share")


def test_baselines_that_are_no_words() -> None:
    with pytest.raises(ValueError, match="time_baseline='men' is unknown"):
        ncp.GradientAttribution(time_baseline="men")
    with pytest.raises(ValueError, match="baseline='mean' is unknown: pass 'held_out'"):
        ncp.GradientAttribution(method="expected_gradients", baseline="mean")


class Cubes(nn.Module):
    """``sum w x^3``: attributions of every method are known."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.w = mx.array(np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32))

    def __call__(self, x: mx.array) -> mx.array:
        return (self.w * x**3).sum(axis=(1, 2))


def cubes() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(8, 5, 3)).astype(np.float32)


def test_how_far_a_map_is_from_the_previous_one_and_from_another_methods() -> None:
    x, writer, model = cubes(), ncp.MemoryWriter(), Cubes(0)
    maps = []
    callback = ncp.GradientAttribution(
        method="input_x_gradient", baseline="zeros", agreement="gradient"
    )
    with ncp.Monitor(model, ncp.HeldOutBatch(x), [callback], writer=writer, every=1) as monitor:
        for step in (1, 2, 3):
            if step > 1:
                model.w = Cubes(step - 1).w if step == 2 else 5 * model.w
            maps.append(3 * np.array(model.w, np.float64) * x.astype(np.float64) ** 3)
            monitor.on_step_end(step)
            if step == 2:
                # The map of the previous snapshot survives an interruption.
                state = json.loads(json.dumps(monitor.state_dict()))
                monitor.load_state_dict(state)
    signed = np.stack([m.mean(axis=0).ravel() for m in maps])
    sizes = np.stack([np.abs(m).mean(axis=0).ravel() for m in maps])
    change, ranks = (dict(writer.scalars(f"attribution/{n}")) for n in ("change", "rank_distance"))
    assert set(change) == set(ranks) == {2, 3}
    assert change[2] == pytest.approx(cosine_distance(signed[0], signed[1]), abs=1e-6)
    assert ranks[2] == pytest.approx(1 - spearmanr(sizes[0], sizes[1]).statistic, abs=1e-12)
    # A target in other units has the same map.
    assert change[3] == pytest.approx(0.0, abs=1e-6)
    assert ranks[3] == 0.0
    slopes = np.abs(3 * np.array(Cubes(0).w, np.float64) * x.astype(np.float64) ** 2)
    expected = spearmanr(sizes[0], slopes.mean(axis=0).ravel()).statistic
    assert dict(writer.scalars("attribution/agreement"))[1] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n_steps", "missing"), [(1, 0.25), (2, 0.0)])
def test_extra_passes_and_the_error_are_logged_with_the_map(n_steps: int, missing: float) -> None:
    # One step is the middle of the way, whose slope is 3/4 of the mean one; two are exact.
    x, writer, model = cubes(), ncp.MemoryWriter(), Cubes(0)
    callback = ncp.GradientAttribution(method=IntegratedGradients(n_steps), baseline="zeros")
    with ncp.Monitor(model, ncp.HeldOutBatch(x), [callback], writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
    total = np.abs((np.array(model.w, np.float64) * x.astype(np.float64) ** 3).sum(axis=(1, 2)))
    errors = missing * total / np.sqrt((total**2).mean())
    found = {r.tag.split("/")[1]: r.value for r in own(writer) if isinstance(r, ncp.Scalar)}
    assert found["extra_passes"] == n_steps + 1
    assert found["completeness_error"] == pytest.approx(np.quantile(errors, 0.99), abs=2e-6)
    assert found["incomplete"] == (errors > 0.05).mean()
    assert (found["sequences"], found["nonfinite"]) == (8, 0)


class Bump(nn.Module):
    """Falls back to 0 by a jump, which no gradient sees."""

    def __call__(self, x: mx.array) -> mx.array:
        total = x.sum(axis=(1, 2))
        return mx.where(mx.abs(total) < 0.5, total, 0.0)


def test_a_map_of_targets_that_did_not_change_is_not_without_a_check() -> None:
    x, writer = np.abs(cubes()) + 0.1, ncp.MemoryWriter()
    callback = ncp.GradientAttribution(method=IntegratedGradients(64), baseline="zeros")
    with ncp.Monitor(Bump(), ncp.HeldOutBatch(x), [callback], writer=writer, every=1) as monitor:
        monitor.on_step_end(1)
        assert any("don't sum to the change of their target" in note for note in monitor.notes)
    assert writer.scalars("attribution/strength")[0][1] > 0.1
    assert writer.scalars("attribution/incomplete") == [(1, 1.0)]
    # Over a change of 0 it is infinite, which is no number for a curve.
    assert not writer.scalars("attribution/completeness_error")
