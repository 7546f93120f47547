"""Test the target of models with several outputs, and targets of callbacks' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from scipy.special import logit, softmax

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.model import ModelRunner

B, T, F = 6, 5, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, F)).astype("f")
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Head(nn.Module):
    """Return inputs of each time step, or of the last one, as outputs."""

    def __init__(self, common: float = 0.0, *, last: bool = True) -> None:
        super().__init__()
        self.one, self.common, self.last = mx.ones(1), common, last

    def __call__(self, x: mx.array) -> mx.array:
        outputs = self.one * x + self.common * x.sum(axis=(1, 2), keepdims=True)
        return outputs[:, -1] if self.last else outputs


def observed(model: nn.Module, targets: Any = LABELS, **options: Any) -> ncp.Observation:
    names = options.pop("class_names", None)
    held_out = ncp.HeldOutBatch(X, targets=targets, class_names=names)
    return passes.observe(ModelRunner(model, held_out, **options), 0, {ncp.Need.INPUT_GRADIENT})


def odds(outputs: np.ndarray) -> np.ndarray:
    """Return the logit of every class's probability."""
    return np.asarray(logit(softmax(outputs.astype(np.float64), axis=-1)))


def test_the_default_is_the_log_odds_of_the_predicted_class() -> None:
    seen = observed(Head())
    np.testing.assert_allclose(seen.target_values, odds(X[:, -1]).max(axis=-1), atol=1e-6)
    assert (seen.target, seen.target_slug) == ("log-odds of the prediction", "")


def test_what_outputs_have_in_common_moves_nothing() -> None:
    plain, common = observed(Head()), observed(Head(7.0))
    np.testing.assert_allclose(common.target_values, plain.target_values, atol=1e-4)
    np.testing.assert_allclose(common.input_gradient, plain.input_gradient, atol=1e-4)
    # The gradients of log-odds by all logits sum to 0.
    np.testing.assert_allclose(plain.input_gradient[:, -1].sum(axis=-1), 0, atol=1e-6)


def test_log_odds_of_two_classes_are_the_difference_of_their_logits() -> None:
    class Two(Head):
        def __call__(self, x: mx.array) -> mx.array:
            return super().__call__(x)[..., :2]

    seen = observed(Two(), LABELS % 2)
    np.testing.assert_allclose(seen.target_values, np.abs(X[:, -1, 0] - X[:, -1, 1]), atol=1e-6)


def test_logits_far_apart_overflow_nowhere() -> None:
    class Far(Head):
        def __call__(self, x: mx.array) -> mx.array:
            return super().__call__(x) * 0 + mx.array([300.0, 0.0, -300.0])

    seen = observed(Far())
    np.testing.assert_allclose(seen.target_values, 300.0)
    assert np.isfinite(seen.input_gradient).all()


ONE_HOT = np.eye(3, dtype="f")[LABELS]


@pytest.mark.parametrize(
    ("targets", "options", "is_odds"),
    [
        (LABELS, {}, True),
        (ONE_HOT, {}, True),
        (None, {}, True),
        (LABELS, {"target": 1}, True),
        (None, {"target": "b", "class_names": ["a", "b", "c"]}, True),
        (LABELS, {"target": "b", "class_names": ["a", "b", "c"]}, True),
        # One output without classes is that output.
        (None, {"target": 1}, False),
        # A regression, and several labels at once.
        (RNG.normal(size=(B, 3)).astype("f"), {}, False),
        (RNG.integers(0, 2, (B, 3)), {}, False),
    ],
)
def test_outputs_that_are_no_classes_stay_as_they_are(
    targets: Any, options: dict[str, Any], is_odds: bool
) -> None:
    seen = observed(Head(), targets, **options)
    values = odds(X[:, -1]) if is_odds else X[:, -1]
    expected = values[:, 1] if "target" in options else values.max(axis=1)
    np.testing.assert_allclose(seen.target_values, expected, atol=1e-6)
    assert ("log-odds" in seen.target) == is_odds


def test_every_time_step_has_log_odds() -> None:
    held_out = ncp.HeldOutBatch(X, targets=np.tile(LABELS[:, None], T))
    runner = ModelRunner(Head(last=False), held_out)
    values = np.array(runner.target.every_step(mx.array(X)))
    np.testing.assert_allclose(values, odds(X).max(axis=-1), atol=1e-6)
    assert runner.target.of_every_step == ("log-odds of the prediction at each step", "")


# --- targets of callbacks


def logged(*callbacks: ncp.Callback, **options: Any) -> dict[str, float]:
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(X, targets=LABELS, class_names=["a", "b", "c"])
    with ncp.Monitor(Head(), held_out, callbacks, writer=writer, **options) as monitor:
        monitor.on_step_end(100)
    return {r.tag: r.value for step, r in writer.records if step and isinstance(r, ncp.Scalar)}


def second_minus_first(outputs: mx.array, targets: Any) -> mx.array:
    return outputs[:, 1] - outputs[:, 0]


@pytest.mark.parametrize(
    ("target", "name"),
    [("b", "b"), (2, "output2"), ("loss", "loss"), (second_minus_first, "second_minus_first")],
    ids=["class", "output", "loss", "callable"],
)
def test_a_callback_has_its_own_target(target: Any, name: str) -> None:
    makes: list[Callable[..., ncp.Callback]] = [ncp.GradientAttribution, ncp.FeatureRemoval]
    both = logged(*[make(target=target) for make in makes], *[make() for make in makes])
    alone = logged(*[make() for make in makes], target=target)
    (suffix,) = {tag.split("/")[0].removeprefix("removal") for tag in alone if "removal" in tag
                 and "share" not in tag and tag.startswith("removal")}  # fmt: skip
    for first in ("attribution", "removal"):
        for part in ("/strength", "_share/feature 0", "_share/feature 2"):
            value = both[f"{first}_{name}{part}"]
            assert value == pytest.approx(alone[f"{first}{suffix}{part}"], rel=1e-5)
    default = logged(*[make() for make in makes])
    for tag, value in default.items():
        if tag.startswith(("attribution", "removal")):
            assert both[tag] == pytest.approx(value, rel=1e-5), tag


def test_equal_passes_of_other_targets_are_not_shared() -> None:
    callbacks = [ncp.FeatureRemoval(target=name) for name in ("a", "b", "c")]
    found = logged(*callbacks)
    strengths = {found[f"removal_{name}/strength"] for name in ("a", "b", "c")}
    assert len(strengths) == 3


def test_an_unknown_class_is_refused_on_entering() -> None:
    with pytest.raises(RuntimeError, match="target='worse' is unknown"):
        logged(ncp.GradientAttribution(target="worse"))


# --- maps of some sequences


def test_maps_by_class_and_of_the_worst_sequences_are_those_of_these_sequences() -> None:
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(X, targets=LABELS, class_names=["a", "b", "c"])
    callback = ncp.GradientAttribution(method="gradient", target=0, by_class=True, worst=2)
    with ncp.Monitor(Head(), held_out, [callback], writer=writer, background=False) as monitor:
        monitor.on_step_end(100)
    maps = {r.tag.split("heatmap_")[1]: r.data for step, r in writer.records
            if step and "heatmap_" in r.tag}  # fmt: skip
    assert sorted(maps) == ["class_a", "class_b", "class_c", "worst"]
    # The slopes of the first class's log-odds: 1 for its own logit, and less than 0 for the others.
    p = softmax(X[:, -1, 1:].astype(np.float64), axis=1)
    slopes = np.column_stack([np.ones(B), -p])
    for i, name in enumerate("abc"):
        found = maps[f"class_{name}"].signed[-1]
        np.testing.assert_allclose(found, slopes[i == LABELS].mean(axis=0), atol=1e-6)
    losses = -np.log(softmax(X[:, -1].astype(np.float64), axis=1)[np.arange(B), LABELS])
    worst = np.argsort(-losses)[:2]
    np.testing.assert_allclose(maps["worst"].signed[-1], slopes[worst].mean(axis=0), atol=1e-6)


def test_maps_by_class_need_classes() -> None:
    held_out = ncp.HeldOutBatch(X)
    callback = ncp.GradientAttribution(by_class=True, worst=1)
    with ncp.Monitor(Head(), held_out, [callback], writer=ncp.MemoryWriter()) as monitor:
        monitor.on_step_end(100)
    assert any("by_class=True needs a class for each sequence" in note for note in monitor.notes)
