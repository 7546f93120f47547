"""Rules on training, state and removal of time report what is planted in hand-made numbers."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from scripts import script
from test_findings import RUN, curve, n, of, severities

import ncp_callbacks as ncp
from ncp_callbacks.findings import Facts, Past, RunFacts, judge
from ncp_callbacks.findings.trend import fall_of
from ncp_callbacks.models import CfC

KINDS = ("held_out", "gradient_reach", "parameters", "transitions", "attribution", "removal")
ALL = dataclasses.replace(RUN, chance_loss=1.0, callbacks={kind: kind for kind in KINDS})
LEARNT = {"held_out/loss": n(0.2, 0.1, 0.3)}
AT_CHANCE = {"held_out/loss": n(1.0, 0.8, 1.2)}


# --- trends


@pytest.mark.parametrize("count", [8, 16, 64])
@pytest.mark.parametrize("noise", ["normal", "exponential", "chisquare"])
def test_chance_rarely_makes_a_fall(count: int, noise: str) -> None:
    rng = np.random.default_rng(0)
    draw = {"normal": rng.normal, "exponential": rng.exponential}.get(
        noise, lambda size: rng.chisquare(8, size)
    )
    curves = [curve(draw(size=count)) for _ in range(500)]
    shown = sum(f.is_shown for f in map(fall_of, curves) if f is not None)
    assert shown <= 20  # 2 % of 500, and three standard errors of that.


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(2, 1, 8), np.linspace(2, 1, 64), 5 * np.exp(-np.arange(8)),
        [20.0, 3.1, 2.9, 3.2, 3.0, 2.8, 3.1, 3.0], [20.0, 1.0, *np.linspace(0.5, 0.1, 62)],
        [1e308, 1e300, *[1.0] * 8],
    ],
)  # fmt: skip
def test_the_steepness_of_a_fall_is_no_doubt(values: Any) -> None:
    found = fall_of(curve(values))
    assert found is not None
    assert found.is_shown
    backwards = fall_of(curve(values[::-1]))
    assert backwards is not None
    assert not backwards.is_shown


def test_a_fall_needs_eight_points() -> None:
    assert fall_of(curve([1.0] * 7)) is None


def test_a_fall_by_chance_is_no_fall() -> None:
    # 4 % lower in the last quarter, with batches that scatter by 30 %.
    scatter = 1 + 0.3 * np.random.default_rng(1).normal(size=16)
    scatter = np.tile(scatter, 4)
    lower = np.where(np.arange(64) < 48, 1.0, 0.96)
    facts = {"curves": {"train/loss": curve(scatter * lower)}, "numbers": AT_CHANCE}
    (found,) = of("loss_not_falling", ALL, **facts)
    assert "does not fall beyond chance" in found.sentence
    assert of("loss_not_falling", ALL, **facts | {"numbers": LEARNT}) == []
    # As much with batches that scatter by 0.1 %, and a fall by half with those that scatter much.
    calm = curve((1 + (scatter - 1) / 300) * lower)
    assert of("loss_not_falling", ALL, curves={"train/loss": calm}) == []
    half = curve(scatter * np.where(np.arange(64) < 48, 1.0, 0.4))
    assert of("loss_not_falling", ALL, curves={"train/loss": half}) == []


def _held_out(values: Any) -> dict[str, Any]:
    """Return facts with a held-out loss every 10 steps that is not better than a constant's."""
    each = [{"held_out/loss": n(v, 0.5 * v, 1.5 * v)} for v in values]
    first = 100 - 10 * (len(each) - 1)
    past = tuple(Past(first + 10 * i, numbers) for i, numbers in enumerate(each[:-1]))
    return {"numbers": each[-1], "history": past}


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (np.linspace(2.0, 1.8, 8), 1),  # By a tenth, at the same pace.
        (np.linspace(2.0, 1.0, 8), 0),  # By half.
        (1.8 + 0.2 * np.exp(-np.arange(8)), 0),  # It has levelled off.
        (np.full(8, 2.0), 0),
        (np.linspace(2.0, 1.8, 4), 0),
        (np.linspace(0.5, 0.45, 8), 0),  # It is better than a constant's 1.
    ],
)
def test_slow_convergence(losses: Any, expected: int) -> None:
    assert len(of("slow_convergence", ALL, **_held_out(losses))) == expected


def test_a_held_out_loss_that_falls_is_a_loss_that_falls() -> None:
    scatter = np.random.default_rng(1).normal(size=16)
    flat = {"train/loss": curve(1 + 0.3 * np.tile(scatter, 4))}
    for values, expected in (([2.0, 1.95, 1.9], 0), ([2.0, 1.99, 1.98], 1)):
        assert len(of("loss_not_falling", ALL, curves=flat, **_held_out(values))) == expected


def test_a_model_that_memorises_from_the_start() -> None:
    # The held-out loss is at chance all the time, and the training loss falls to a hundredth.
    flat = tuple(Past(10 * i, {"held_out/loss": n(1.0, 0.8, 1.2)}) for i in range(1, 6))
    falls = {"train/loss": curve(np.linspace(1.0, 0.01, 100))}
    (found,) = of("overfits", ALL, curves=falls, numbers=AT_CHANCE, history=flat)
    assert found.label == "memorises"
    assert "from 1 to 0.01" in found.sentence or "to 0.0" in found.sentence
    assert "no better than the best constant's 1." in found.sentence
    for numbers, run, curves in [
        (LEARNT, ALL, falls),
        (AT_CHANCE, dataclasses.replace(ALL, chance_loss=float("nan")), falls),
        (AT_CHANCE, ALL, {"train/loss": curve(np.linspace(1.0, 0.8, 100))}),
        # A loss that was low from the beginning is in another unit.
        (AT_CHANCE, ALL, {"train/loss": curve(np.full(100, 0.1))}),
    ]:
        assert of("overfits", run, curves=curves, numbers=numbers, history=flat) == []


# --- gradients and updates


@pytest.mark.parametrize(
    ("first", "steps", "expected"),
    [
        (n(1e-6, 1e-7, 1e-5), 24, ["warning"]), (n(1e-6, 1e-7, 1e-3), 24, []),
        (n(1e-6, 1e-7, 1e-5), 7, []), (n(0.1, 0.05, 0.2), 24, []),
        (n(400, 200, 800), 24, ["warning"]), (n(400, 50, 800), 24, []),
    ],
)  # fmt: skip
def test_gradients_along_the_sequence(first: Any, steps: int, expected: list[str]) -> None:
    run = dataclasses.replace(ALL, time_steps=steps)
    numbers = {"gradient_reach/first_step": first}
    assert severities("vanishing_gradient", run, numbers=numbers) == expected
    learnt = severities("vanishing_gradient", run, numbers=numbers | LEARNT)
    # What is not needed need not be learnt; what explodes is no matter of need.
    assert learnt == (["info"] if expected and first.value < 1 else expected)


def test_a_gradient_that_has_vanished_altogether() -> None:
    gone = {"train/grad_norm": curve([1.0] * 8 + [1e-9] * 8)}
    assert severities("vanishing_gradient", ALL, curves=gone) == ["problem"]
    assert severities("vanishing_gradient", ALL, curves=gone, numbers=LEARNT) == []
    small = {"train/grad_norm": curve([1.0, 1e-6])}
    assert severities("vanishing_gradient", ALL, curves=small) == []


@pytest.mark.parametrize(
    ("update", "label"),
    [(0.2, "large updates"), (1e-3, ""), (1e-7, "small updates"), (0.0, "")],
)
def test_the_size_of_updates(update: float, label: str) -> None:
    found = of("update_size", ALL, numbers={"parameters/update": n(update)})
    assert [finding.label for finding in found] == [label] * bool(label)
    assert of("update_size", ALL, numbers={"parameters/update": n(update)} | LEARNT) == []


# --- state and batch


def test_units_that_are_copies() -> None:
    def found(speeds: list[float], saturation: float = 0.1) -> list[str]:
        return severities(
            "symmetric_units", ALL, numbers={"transitions/saturation": n(saturation)},
            arrays={"_ncp/transitions_unit_speed_max": np.array(speeds)},
        )  # fmt: skip

    assert found([0.3] * 8) == ["warning"]
    assert found([0.3] * 3 + [0.2] * 3) == ["warning"]  # Four of six are copies.
    assert found([0.3, 0.3, 0.1, 0.2, 0.4, 0.5]) == []
    assert found([0.3, 0.300001, 0.300002, 0.300003]) == []
    assert found([0.0] * 8) == []  # Dead is another matter.
    assert found([2.0] * 8, saturation=0.8) == []


def test_copies_in_a_real_model_are_found_and_units_at_random_are_not() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 10, 2)).astype("f")
    for alike in (False, True):
        mx.random.seed(0)
        model = CfC(2, 6, backbone_units=8)
        if alike:
            flat = {k: mx.full(v.shape, 0.1) for k, v in _leaves(model)}
            model.load_weights(list(flat.items()))
        with ncp.Monitor(
            model, ncp.HeldOutBatch(x, np.ones((16, 10), "f")), [ncp.StateTransitions()],
            writer=ncp.MemoryWriter(), background=False,
            forward=lambda model, x, dt: model(x, dt)[0],
        ) as monitor:  # fmt: skip
            monitor.on_step_end(100)
        assert ("symmetric_units" in {f.rule for f in monitor.findings}) is alike


def _leaves(model: CfC) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return list(tree_flatten(model.parameters()))


def test_constant_features_are_named() -> None:
    run = RunFacts(feature_names=("a", "b", "c", "d", "e"), feature_sds=(1.0, 0.0, 0.5, 0.0, 2.0))
    (found,) = of("constant_features", run)
    assert found.sentence == "2 features of 5 are constant in the held-out batch: b and d."
    many = dataclasses.replace(run, feature_sds=(0.0, 0.0, 0.0, 0.0, 2.0))
    (found,) = of("constant_features", many)
    assert found.sentence.endswith(": a, b and 2 more.")
    assert of("constant_features", dataclasses.replace(run, feature_sds=(1e-9,) * 5)) == []


# --- removal of blocks of time


def _blocks(attributed: list[list[float]], removed: list[list[float]], disputed: Any) -> Any:
    shares = np.vstack([np.array(attributed).T, np.array(removed).T, disputed])
    return {
        "numbers": {"attribution/strength": n(1), "removal/strength": n(1)},
        "arrays": {
            "_ncp/removal_blocks": np.array([[0, 12.0], [11, 23], [1, 1]]),
            "_ncp/removal_block_shares": shares,
            "_ncp/attribution_strength": np.repeat([[0.1], [0.9]], 12, axis=0) / 12,
        },
    }


def test_removal_of_time_against_the_time_profile() -> None:
    apart = _blocks(
        [[0.1, 0.05, 0.15], [0.9, 0.85, 0.95]], [[0.6, 0.5, 0.7], [0.4, 0.3, 0.5]], [1, 1]
    )
    (found,) = of("removal_disagrees_on_time", ALL, **apart)
    assert found.severity.value == "warning"
    assert "time steps 0–11 have 10 % [5, 15] of the attribution, and 60 % [50, 70]" in (
        found.sentence
    )
    # The headline names both.
    (headline,) = of("rests_on", ALL, **apart)
    assert "which removal disputes: time steps 0–11 with 10 % [5, 15] of it and 60 %" in (
        headline.sentence
    )
    assert judge(Facts(ALL, 100, **apart))[0].severity.value == "warning"
    wide = _blocks(
        [[0.1, 0.05, 0.55], [0.9, 0.45, 0.95]], [[0.6, 0.3, 0.8], [0.4, 0.2, 0.7]], [0, 0]
    )
    assert of("removal_disagrees_on_time", ALL, **wide) == []
    assert "disputes" not in of("rests_on", ALL, **wide)[0].sentence
    small = _blocks(
        [[0.4, 0.38, 0.42], [0.6, 0.58, 0.62]], [[0.55, 0.53, 0.57], [0.45, 0.43, 0.47]], [1, 1]
    )
    assert severities("removal_disagrees_on_time", ALL, **small) == ["info"]
    equal = _blocks(
        [[0.4, 0.3, 0.5], [0.6, 0.5, 0.7]], [[0.45, 0.35, 0.55], [0.55, 0.45, 0.65]], [0, 0]
    )
    assert severities("removal_disagrees_on_time", ALL, **equal) == ["good"]


@pytest.mark.parametrize("shape", [(0, 0), (7, 3), (3, 2), (7,)])
def test_arrays_of_another_shape_are_no_blocks(shape: tuple[int, ...]) -> None:
    facts = _blocks([[0.1] * 3, [0.9] * 3], [[0.9] * 3, [0.1] * 3], [0, 0])
    facts["arrays"]["_ncp/removal_block_shares"] = np.zeros(shape)
    assert of("removal_disagrees_on_time", ALL, **facts) == []


# --- measured rates


def test_the_guide_has_the_rates_that_are_stored() -> None:
    measured = script("findings")
    with measured.STORED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    guide = (Path(__file__).parent.parent / "examples" / "findings.md").read_text()
    table = measured.table(rows).split("\n\n")[1]
    assert table in guide
    assert f"{len(rows)} networks: " in guide
    planted = {row["fault"] for row in rows} - {""}
    assert planted == set(measured.plans())


def test_shares_of_time_in_a_task_are_known() -> None:
    measured = script("findings")
    # Equal weights in all time steps, and then a map of the last block only.
    for first, off in (([0.25] * 4, 0.0), ([0.0, 0.0, 0.0, 1.0], 0.75)):
        shares = np.array([first, *[[0.0] * 4] * 6])
        facts = Facts(arrays={"_ncp/removal_block_shares": shares})
        assert measured.off_in_time(facts, "mean") == pytest.approx(off)
    # The last three have SDs 1, and sqrt(1.16) twice: blocks of 1 and of sqrt(2.32).
    wanted = np.array([0, 0, 1, 2.32**0.5])
    shares = np.array([wanted / wanted.sum(), *[[0.0] * 4] * 6])
    facts = Facts(arrays={"_ncp/removal_block_shares": shares})
    assert measured.off_in_time(facts, "class") == pytest.approx(0.0)
