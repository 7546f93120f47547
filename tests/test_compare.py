"""Comparing runs: statistics against SciPy and brute force, honesty, formats, the command."""

from __future__ import annotations

import base64
import contextlib
import html.parser
import itertools
import json
import math
import os
import re
import subprocess
import sys
import urllib.parse
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import scipy.stats
import tensorboardX
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

import ncp_callbacks as ncp
from ncp_callbacks.cli import main
from ncp_callbacks.runs import Binned, Comparison, Run, RunsError, Scalars, compare_runs, read_run
from ncp_callbacks.runs.compare import compare_groups
from ncp_callbacks.runs.document import document
from ncp_callbacks.runs.find import Group
from ncp_callbacks.runs.render import plain
from ncp_callbacks.runs.rules import Rule, judge_rules
from ncp_callbacks.runs.scalars import compare_scalars, significance
from ncp_callbacks.stats import distances as dist
from ncp_callbacks.stats import holm
from ncp_callbacks.stats import run_groups as stats
from ncp_callbacks.stats.reliability import rank_correlation
from ncp_callbacks.stats.state_samples import fingerprint, same_batch, sample_places, state_sample
from ncp_callbacks.writers import TensorBoardWriter

SCALES = np.array([0.5, 1.0, 2.0, 5.0])
MAP = ("time step", "feature")


def write_run(
    path: Path,
    seed: int,
    *,
    shift: float = 0.0,
    lean: float = 0.0,
    steps=range(0, 101, 10),
    config=None,
    extra=(),
) -> Path:
    """A run as the package writes it: loss and time curve shifted, attribution leaning to f0."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 0.02)
    writer = ncp.TensorBoardWriter(path)
    writer.log_run_config({"seed": seed, "units": 32, **(config or {})})
    for step in steps:
        strength = np.outer(np.linspace(0.2, 1, 6), [1.0 + lean, 2.0, 3.0, 4.0])
        strength *= rng.uniform(0.9, 1.1, strength.shape)
        share = strength.sum(axis=0) / strength.sum()
        rms = np.abs(np.log(SCALES)) * (1 + shift)
        records = [
            ncp.Scalar("val/loss", 0.5 + shift + level + rng.normal(0, 0.005) + 1 / (1 + step)),
            ncp.Scalar("train/loss", 0.4 + rng.normal(0, 0.05)),
            ncp.Scalar("attribution/entropy", 0.9 + rng.normal(0, 0.01)),
            ncp.Scalar("hidden/nonfinite", 0.0),
            *(ncp.Scalar(f"attribution_share/f{i}", s) for i, s in enumerate(share.tolist())),
            ncp.Array("_ncp/attribution_strength", strength, kind="attribution", axes=MAP),
            ncp.Array(
                "_ncp/attribution_signed",
                strength * [1, -1, 1, -1],
                kind="attribution signed",
                axes=MAP,
            ),
            ncp.Array("_ncp/time_delta_curve", np.stack([SCALES, rms, rms / 2]), kind="time curve"),
            ncp.Array("_ncp/hidden_spectrum", np.array([0.6, 0.3, 0.1]), kind="spectrum"),
            ncp.Histogram("transitions/magnitude", rng.gamma(2, 1 + shift, 400), np.arange(11.0)),
            *(ncp.Scalar(tag, 1.0) for tag in extra),
        ]
        writer.write(step, records)
        if step % 50 == 0:
            importance = np.asarray(strength, np.float32)
            options = {"step": step}
            writer.write(
                step,
                [ncp.Figure("attribution/heatmap", ncp.plot_feature_importance, importance,
                            options)],
            )  # fmt: skip
    writer.close()
    assert writer.failure is None
    return writer.log_dir


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of each of two kinds; the second has a loss that is 0.2 higher."""
    where = tmp_path_factory.mktemp("logs")
    for seed in range(4):
        write_run(where / f"cfc-s{seed}", seed, config={"model": "cfc"})
        write_run(where / f"ltc-s{seed}", 10 + seed, shift=0.2, lean=9.0, config={"model": "ltc"})
    return where


def memory_run(name: str, values: dict[str, np.ndarray], first: int = 0) -> Run:
    steps = {tag: first + np.arange(len(v)) * 10 for tag, v in values.items()}
    scalars = {tag: Scalars(steps[tag], np.asarray(v, np.float64)) for tag, v in values.items()}
    return Run(name, Path(name), scalars, {}, {}, {}, {}, {})


def simulated(rng: np.random.Generator, runs: int, tags: list[str], effect: float = 0.0) -> Group:
    """Runs with levels of their own, which noise from step to step doesn't show."""
    made = []
    for number in range(runs):
        values = {t: effect + rng.normal() + 0.01 * rng.normal(size=8) for t in tags}
        made.append(memory_run(f"r{rng.integers(1 << 40)}-{number}", values))
    return Group(f"g{rng.integers(1 << 40)}", tuple(made))


# Statistics.

samples = st.lists(st.floats(-50, 50).map(lambda x: round(x, 3)), min_size=3, max_size=5)


@given(samples, samples)
def test_welch_ci_is_that_of_scipy(a: list[float], b: list[float]) -> None:
    found = stats.welch_ci(a, b)
    if np.var(a) + np.var(b) == 0:
        assert found is None
        return
    right = scipy.stats.ttest_ind(b, a, equal_var=False)
    interval = right.confidence_interval(0.95)
    assert found == pytest.approx((interval.low, interval.high), rel=1e-8, abs=1e-9)
    assert stats.welch_t(a, b) == pytest.approx(right.statistic, rel=1e-9, abs=1e-9)


@given(samples, samples)
def test_permutation_p_is_that_of_brute_force(a: list[float], b: list[float]) -> None:
    values, size = [*a, *b], len(a)
    observed = abs(np.mean(a) - np.mean(b))
    count = total = 0
    for chosen in itertools.combinations(range(len(values)), size):
        one = [values[i] for i in chosen]
        other = [values[i] for i in range(len(values)) if i not in chosen]
        count += abs(np.mean(one) - np.mean(other)) >= observed - 1e-9 * max(map(abs, values))
        total += 1
    assert stats.permutation_p(a, b) == pytest.approx(count / total)
    assert stats.permutation_p(a, b) >= stats.smallest_p(len(a), len(b)) - 1e-12


def test_permutation_p_of_scipy_and_of_many_runs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=6), rng.normal(0.8, size=5)
    right = scipy.stats.permutation_test(
        (a, b), lambda x, y: np.mean(x) - np.mean(y), n_resamples=np.inf
    )
    # SciPy doubles the smaller tail; relabelling counts both tails as they are.
    assert stats.permutation_p(a, b) == pytest.approx(right.pvalue, abs=0.02)
    a, b = rng.normal(size=14), rng.normal(0.5, size=14)
    found = stats.permutation_p(a, b)
    assert found == stats.permutation_p(a, b)
    assert found == pytest.approx(scipy.stats.ttest_ind(a, b).pvalue, abs=0.02)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_numbers_that_are_not_finite_have_no_p() -> None:
    assert stats.permutation_p([1.0, 2.0, math.nan], [1.0, 2.0, 3.0]) is None
    assert stats.welch_ci([1.0, 2.0, math.inf], [1.0, 2.0, 3.0]) is None
    assert stats.welch_ci([1.0] * 3, [2.0] * 3) is None


def test_no_more_false_alarms_than_promised() -> None:
    rng = np.random.default_rng(1)
    pairs, alarms, covered = 200, 0, 0
    for _ in range(pairs):
        (row,) = compare_groups([simulated(rng, 4, ["x"]) for _ in range(2)]).scalars
        (change,) = row.changes
        alarms += change.p <= 0.05
        covered += change.ci[0] <= 0 <= change.ci[1]
    assert alarms <= scipy.stats.binom.ppf(0.99, pairs, 0.05)
    assert covered >= scipy.stats.binom.ppf(0.01, pairs, 0.95)


def test_no_more_false_alarms_than_promised_among_several_tags() -> None:
    rng = np.random.default_rng(2)
    pairs, alarms, uncorrected = 200, 0, 0
    for _ in range(pairs):
        rows = compare_groups([simulated(rng, 5, ["x", "y", "z"]) for _ in range(2)]).scalars
        alarms += any(row.changes[0].p_holm <= 0.05 for row in rows)
        uncorrected += any(row.changes[0].p <= 0.05 for row in rows)
    assert alarms <= scipy.stats.binom.ppf(0.99, pairs, 0.05)
    assert uncorrected > 2 * alarms  # What the correction is for.


def test_a_planted_shift_is_found_among_tags_without_one() -> None:
    rng = np.random.default_rng(2)
    tags = [f"t{i}" for i in range(5)]
    a, b = simulated(rng, 6, tags), simulated(rng, 6, tags)
    shifted = []
    for run in b.runs:
        moved = {
            **run.scalars,
            "t3": Scalars(run.scalars["t3"].steps, run.scalars["t3"].values + 8),
        }
        shifted.append(replace(run, scalars=moved))
    result = compare_groups([a, Group("b", tuple(shifted))])
    assert result.scalars[0].tag == "t3"
    (change,) = result.row("t3").changes
    assert change.p_holm < 0.05
    assert change.ci[0] < 8 < change.ci[1]
    assert all(row.changes[0].p_holm > 0.05 for row in result.scalars[1:])


# What is said, and what isn't.


def test_one_run_each_has_no_significance(logs: Path) -> None:
    result = compare_runs([logs / "cfc-s0", logs / "ltc-s0"])
    assert result.significance == "one run each: no significance"
    for row in result.scalars:
        (change,) = row.changes
        assert change.ci is change.p is change.p_holm is None
    assert result.row("val/loss").changes[0].delta == pytest.approx(0.2, abs=0.1)


def test_two_runs_a_side_have_no_ci_and_the_reason_is_reported(logs: Path) -> None:
    result = compare_runs({"A": [logs / "cfc-s0", logs / "cfc-s1"], "B": str(logs / "ltc-s[01]")})
    assert result.significance.startswith("2 runs on a side: no CI and no p, since")
    assert all(row.changes[0].ci is None for row in result.scalars)
    result = compare_runs({"A": logs / "cfc-s0", "B": str(logs / "ltc-s*")})
    assert result.significance == "one run in 'A': no significance, no CI"


def test_groups_have_cis_and_the_limits_of_p_are_reported(logs: Path) -> None:
    result = compare_runs([f"A={logs}/cfc-s*", f"B={logs}/ltc-s*"])
    (change,) = result.row("val/loss").changes
    assert change.p == pytest.approx(2 / 70)
    assert change.ci[0] < 0.2 < change.ci[1]
    assert "no p is below 0.029" in result.significance
    assert "--tags" in result.significance
    # Validation is tested alone, whatever else is in the table.
    assert change.p_holm == pytest.approx(2 / 70)
    assert "5 runs a side are recommended" in result.significance
    few = compare_runs([f"A={logs}/cfc-s*", f"B={logs}/ltc-s*"], tags="^val/")
    assert few.row("val/loss").changes[0].p_holm == pytest.approx(2 / 70)
    assert "none of" not in few.significance


def test_copies_of_a_run_are_pointed_out(tmp_path: Path) -> None:
    for number, seed in enumerate((0, 0, 1)):
        write_run(tmp_path / f"a{number}", seed, steps=range(5))
        write_run(tmp_path / f"b{number}", 5 + number, steps=range(5))
    result = compare_runs({"A": f"{tmp_path}/a*", "B": f"{tmp_path}/b*"})
    assert any("a0 and a1 have the same numbers" in warning for warning in result.warnings)
    assert sum("same numbers" in warning for warning in result.warnings) == 1


# What is averaged.


def test_runs_are_averaged_over_the_same_steps() -> None:
    dense = Scalars(np.arange(0, 101), np.arange(0, 101.0))
    sparse = Scalars(np.arange(0, 201, 10), np.arange(0, 201, 10.0))
    groups = [
        Group(name, (Run(name, Path(name), {"x": s, "y": s}, {}, {}, {}, {}, {}),))
        for name, s in (("a", dense), ("b", sparse))
    ]
    result = compare_groups(groups, last=5)
    assert (result.step, result.set_by) == (100, "where a ends")
    assert result.unchanged == ("x", "y")  # Both are the step itself: no bias from the cadence.
    higher = {"x": Scalars(sparse.steps, sparse.values + 1)}
    groups[1] = Group("b", (replace(groups[1].runs[0], scalars=higher),))
    row = compare_groups(groups, last=5).row("x")
    assert row.steps == (60, 100)
    assert row.changes[0].delta == pytest.approx(1.0)
    row = compare_groups(groups, last=2, at=50).row("x")
    assert row.steps == (40, 50)
    assert [value.points for value in row.values] == [(11,), (2,)]


def test_a_row_that_is_not_there_is_reported_with_those_that_are(logs: Path) -> None:
    result = compare_runs([logs / "cfc-s0", logs / "ltc-s0"])
    with pytest.raises(KeyError, match="no row of 'val/los': pass val/loss or"):
        result.row("val/los")


def test_order_of_tags_and_tags_of_some_runs(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", 0, extra=["only/a"])
    b = write_run(tmp_path / "b", 1, shift=0.2, lean=9.0)
    result = compare_runs([a, b])
    tags = [row.tag for row in result.scalars]
    assert tags[:2] == ["val/loss", "train/loss"]
    sizes = [row.changes[0].over_noise for row in result.scalars[2:]]
    assert sizes == sorted(sizes, reverse=True)
    assert result.unchanged == ("hidden/nonfinite",)
    assert result.partial == {"only/a": ("a",)}
    assert result.hparams == {"seed": ((0.0,), (1.0,))}


def test_a_run_that_diverged_is_shown_first_and_fails_every_rule() -> None:
    good = np.linspace(1, 0.5, 8)
    bad = np.append(good[:-1], np.nan)
    runs = [memory_run("a", {"z": good, "m": good}), memory_run("b", {"z": bad, "m": good + 1})]
    groups = [Group(run.name, (run,)) for run in runs]
    result = compare_groups(groups)
    assert result.scalars[0].tag == "z"
    assert math.isnan(result.scalars[0].values[1].mean)
    assert math.isnan(Comparison.from_json(result.to_json()).row("z").values[1].mean)
    for rule in ("z>+5%", "z<-5%", "z>100"):
        (reason,), unjudged = judge_rules(groups, [Rule.parse(rule)], (30, 70))
        assert not unjudged
        assert "can't be compared" in reason


# Interpretability.


def test_attention_that_moved_is_measured(logs: Path) -> None:
    same = compare_runs([logs / "cfc-s0", logs / "cfc-s1"])
    other = compare_runs([logs / "cfc-s0", logs / "ltc-s0"])

    def between(result: Comparison, tag: str, name: str) -> float:
        (found,) = (m for m in result.measures if m.tag == tag and m.name == name)
        return found.between[0]

    name = "rank correlation of feature shares"
    assert between(same, "attribution_strength", name) == 1.0
    assert between(other, "attribution_strength", name) < 0
    assert between(same, "attribution_strength", "shift of feature shares") < 0.05
    assert between(other, "attribution_strength", "shift of feature shares") > 0.25
    assert between(other, "time_delta_curve", "largest gap of RMS change") == pytest.approx(
        0.2 * math.log(5), abs=1e-5
    )
    assert between(other, "hidden_spectrum", "shift of the spectrum") == 0
    w1 = "W1 of the histogram"
    assert between(other, "transitions/magnitude", w1) > between(same, "transitions/magnitude", w1)
    (curve,) = other.curves
    assert curve.scales == (0.5, 1.0, 2.0, 5.0)
    drift = next(m for m in same.measures if m.name == name).drift
    assert drift == (1.0, 1.0)


def test_groups_are_at_least_as_far_apart_as_their_runs(logs: Path) -> None:
    result = compare_runs({"A": f"{logs}/cfc-s*", "B": f"{logs}/ltc-s*"})
    shift = next(m for m in result.measures if m.name == "shift of the map")
    assert shift.between[0] > 5 * max(shift.within)
    spectrum = next(m for m in result.measures if m.tag == "hidden_spectrum")
    assert spectrum.between[0] == spectrum.within[0] == 0


def test_arrays_of_other_shapes_are_reported_not_to_compare(tmp_path: Path) -> None:
    for name, size in (("a", 3), ("b", 4)):
        writer = ncp.TensorBoardWriter(tmp_path / name)
        spectrum = ncp.Array("_ncp/x", np.ones(size), kind="spectrum", axes=("component",))
        arrays = [ncp.Array("_ncp/own", np.ones(size)), spectrum]
        writer.write(1, [ncp.Scalar("x", size), *arrays])
        writer.close()
    result = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert result.warnings == ("_ncp/own can't be compared: its shape is 3 in a, 4 in b",)
    assert [m.between[0] for m in result.measures] == [pytest.approx(0.25)]


def test_what_an_array_is_compared_by_is_declared(tmp_path: Path) -> None:
    """Tags tell nothing: features go by name, time steps by place, and units don't correspond."""
    units, by_feature = np.array([3.0, 1.0, 2.0, np.nan]), np.array([[5.0, 3.0, 2.0]] * 2)
    order = [2, 0, 1]
    for name, permuted in (("a", False), ("b", True)):
        names = np.array(["x", "y", "z"])[order if permuted else [0, 1, 2]].tolist()
        fingerprint = about(feature_names=names)
        arrays = [
            ncp.Array("_ncp/p", units[::-1] if permuted else units, axes=("unit",)),
            ncp.Array("_ncp/q", by_feature[:, order] if permuted else by_feature, axes=MAP),
            ncp.Array("_ncp/r", by_feature.T[order] if permuted else by_feature.T,
                      axes=("feature", "number")),
            ncp.Array("_ncp/s", np.arange(4.0)[:: -1 if permuted else 1], axes=("time step",)),
            ncp.Array("_ncp/t", np.ones((2, 4)), axes=("time step", "unit")),
            ncp.Array("_ncp/u", np.ones((3, 4)), axes=("source", "neuron")),
            ncp.Array("_ncp/v", np.ones((2, 4)), kind="units", axes=("time step", "unit")),
            ncp.Array("_ncp/w_units", np.arange(4.0)),
        ]  # fmt: skip
        with contextlib.closing(ncp.TensorBoardWriter(tmp_path / name)) as writer:
            text = ncp.Data("_ncp/fingerprint", json.dumps(fingerprint))
            writer.write(1, [ncp.Scalar("x", 1.0), text, *arrays])
    result = compare_runs([tmp_path / "a", tmp_path / "b"])
    found = {(m.tag, m.name): m.between[0] for m in result.measures}
    assert found == {
        ("p", "W1 over units"): 0.0,
        ("q", "rank correlation"): pytest.approx(1), ("q", "shift"): pytest.approx(0),
        ("r", "rank correlation"): pytest.approx(1), ("r", "shift"): pytest.approx(0),
        ("s", "rank correlation"): pytest.approx(-1), ("s", "shift"): pytest.approx(8 / 12),
        ("w_units", "rank correlation"): pytest.approx(1), ("w_units", "shift"): 0.0,
    }  # fmt: skip
    assert result.warnings == (
        "_ncp/t and _ncp/u can't be compared: units don't correspond between networks that were "
        "trained apart",
    )


@given(st.lists(st.integers(-3, 3), min_size=3, max_size=12), st.randoms())
def test_rank_correlation_is_spearmans(values: list[int], random) -> None:
    a = np.array(values, float)
    b = np.array(random.sample(values, len(values)), float)
    found = rank_correlation(a, b)
    if np.ptp(a) == 0:
        assert found is None
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)


finite = st.lists(st.floats(-10, 10).map(lambda x: round(x, 2)), min_size=1, max_size=8)


@given(finite, finite)
def test_wasserstein_is_that_of_scipy(a: list[float], b: list[float]) -> None:
    found = dist.wasserstein(np.array(a), np.array(b))
    assert found == pytest.approx(scipy.stats.wasserstein_distance(a, b), abs=1e-9)


def test_wasserstein_of_histograms() -> None:
    def uniform(low: float, high: float, bins: int) -> Binned:
        edges = np.linspace(low, high, bins + 1)
        return Binned(edges[:-1], edges[1:], np.full(bins, 7.0))

    assert dist.wasserstein_binned(uniform(0, 1, 5), uniform(0, 1, 8)) == pytest.approx(0)
    assert dist.wasserstein_binned(uniform(0, 1, 5), uniform(3, 4, 2)) == pytest.approx(3)
    assert dist.wasserstein_binned(uniform(0, 1, 5), uniform(0, 2, 2)) == pytest.approx(0.5)
    assert dist.wasserstein_binned(uniform(-1, 1, 5), uniform(-2, 2, 2)) == pytest.approx(0.5)
    empty = Binned(np.zeros(1), np.ones(1), np.zeros(1))
    assert dist.wasserstein_binned(empty, uniform(0, 1, 2)) is None


def test_shift_and_overlap() -> None:
    a, b = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.0, 3.0, 1.0])
    assert dist.shift(a, b) == 1.0
    assert dist.shift(a, 5 * a) == 0.0
    assert dist.shift(b, -b) == 1.0
    assert dist.shift(a, 0 * a) is None
    assert dist.top_overlap(a, b, 2) == 0.0
    assert dist.top_overlap(b, 2 * b, 2) == 1.0


# States of several networks.


def hsic_of_song(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimator of HSIC as Song et al. 2012 (JMLR 13), equation 5, has it."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def biased_cka(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a - a.mean(axis=0), b - b.mean(axis=0)
    sizes = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / sizes)


@given(st.integers(0, 10_000), st.integers(4, 12), st.integers(1, 9), st.integers(1, 9))
def test_debiased_cka_is_that_of_song(seed: int, places: int, units: int, others: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(places, units))
    b = rng.normal(size=(places, others)) + a[:, :1]
    k, m = a @ a.T, b @ b.T
    expected = hsic_of_song(k, m) / math.sqrt(hsic_of_song(k, k) * hsic_of_song(m, m))
    found = dist.debiased_cka(a, b)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert dist.debiased_cka(b, a) == pytest.approx(found)
    # Rotation, order of units, scale and offset, and units that say nothing.
    rotation = np.linalg.qr(rng.normal(size=(units, units)))[0]
    moved = np.pad(-3 * a @ rotation + 5, ((0, 0), (0, 4)))[:, rng.permutation(units + 4)]
    assert dist.debiased_cka(moved, b) == pytest.approx(found, rel=1e-6, abs=1e-8)
    assert dist.debiased_cka(moved, a) == pytest.approx(1.0)


def test_unrelated_states_are_unlike_only_when_the_bias_is_gone() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(64, 64)), rng.normal(size=(64, 200))) for _ in range(60)]
    found = [dist.debiased_cka(a, b) for a, b in pairs]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(60)
    assert np.std(found) < 0.05
    assert np.mean([biased_cka(a, b) for a, b in pairs]) > 0.5


def test_cka_of_what_cannot_be_compared() -> None:
    a = np.random.default_rng(0).normal(size=(8, 3))
    assert dist.debiased_cka(a, np.full((8, 2), 0.3)) is None
    assert dist.debiased_cka(a[:3], a[:3]) is None
    b = 2 * a
    a[1, 2], b[4, 0] = np.nan, np.inf
    assert dist.debiased_cka(a, b) == pytest.approx(1.0)
    a[:3] = b[5:] = np.nan
    assert dist.debiased_cka(a, b) is None


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_places_are_real_and_spread(batch: int, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    real = np.arange(steps) < rng.integers(1, steps + 1, batch)[:, None]
    places = sample_places(real)
    assert len(places) == min(64, real.sum())
    assert (np.diff(places) > 0).all()
    assert real.reshape(-1)[places].all()
    # No stretch of real steps without: one in each 64th.
    ordinals = np.searchsorted(np.flatnonzero(real), places)
    assert np.diff(ordinals, prepend=-1, append=real.sum()).max() <= 2 * real.sum() / 64 + 2


def test_places_are_early_and_late_in_sequences_of_any_length() -> None:
    for steps in (16, 32, 50, 64, 100):
        steps_of = sample_places(np.ones((16, steps), bool)) % steps
        counts = np.histogram(steps_of, bins=4, range=(0, steps))[0]
        assert counts.min() >= 8, steps


def test_a_sample_keeps_the_gram_matrix_in_few_bytes() -> None:
    states = np.random.default_rng(0).normal(size=(6, 20, 300)).astype(np.float32)
    mask = np.arange(20) < np.array([20, 3, 1, 20, 20, 11])[:, None]
    rows = states.reshape(-1, 300)[sample_places(mask)]
    found = state_sample(states, mask)
    assert found.shape == (64, 64)
    np.testing.assert_allclose(found @ found.T, rows @ rows.T, rtol=1e-4, atol=1e-4)
    states[0, :, 7] = np.nan
    broken = state_sample(states, mask)
    lost = np.isnan(broken).any(axis=1)
    np.testing.assert_array_equal(lost, sample_places(mask) < 20)
    assert np.isnan(broken[lost]).all()
    rest = rows[~lost]
    np.testing.assert_allclose(broken[~lost] @ broken[~lost].T, rest @ rest.T, rtol=1e-4, atol=1e-4)
    few = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(state_sample(few), few.reshape(10, 4))


def sequences(seed: int = 0, batch: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.arange(12) < rng.integers(3, 13, batch)[:, None]
    x = rng.normal(size=(batch, 12, 3)) * [1, 20, 0.1] + [0, 1000, 0]
    return x.astype(np.float32), rng.uniform(0.5, 2, (batch, 12)).astype(np.float32), mask


def test_a_batch_is_known_by_its_fingerprint() -> None:
    x, dt, mask = sequences()
    mark = fingerprint(x, dt, mask)
    assert mark.shape == (2, 8)
    assert same_batch(mark, fingerprint(x, dt, mask))
    assert same_batch(mark.astype(np.float32), mark)
    # Padding, units, precision; models without intervals.
    padded = np.where(mask[..., None], x, 77)
    half = np.array(mx.array(x - [0, 1000, 0]).astype(mx.bfloat16).astype(mx.float32))
    for other in (
        fingerprint(padded, np.where(mask, dt, 5), mask),
        fingerprint(x / 3 + 1, 60 * dt, mask),
        fingerprint(half + 1, dt, mask),
        fingerprint(x, None, mask),
    ):
        assert same_batch(mark, other)
        assert same_batch(other, mark)


@given(st.integers(0, 10_000))
def test_another_batch_is_known_too(seed: int) -> None:
    x, dt, mask = sequences(seed, 32)
    mark, rng = fingerprint(x, dt, mask), np.random.default_rng(seed)
    order = np.arange(32)
    order[:2] = 1, 0
    replaced = x.copy()
    replaced[rng.integers(32)] = sequences(seed + 1)[0][0]
    longer = mask.copy()
    longer[:4, -4:] ^= True
    swapped = x[..., [1, 0, 2]]
    intervals = dt.copy()
    intervals[:3] = intervals[3:6]
    for other in (
        fingerprint(x[order], dt[order], mask[order]), fingerprint(replaced, dt, mask),
        fingerprint(x, dt, longer), fingerprint(swapped, dt, mask), fingerprint(x, dt),
        fingerprint(x, intervals, mask), fingerprint(x[:, ::-1], dt, mask),
        fingerprint(x[:31], dt[:31], mask[:31]), fingerprint(x[..., :2], dt, mask),
    ):  # fmt: skip
        assert not same_batch(mark, other)


def test_a_fingerprint_does_not_change_with_time() -> None:
    # Weights from the definition of PCG64 seeded with 0, by numpy's own documented stream.
    draws = np.random.Generator(np.random.PCG64(0)).random(8 * 6)
    signs = np.where(np.random.PCG64(0).random_raw(8 * 6) % 2, 1.0, -1.0)
    weights = (signs * (0.5 + draws)).reshape(8, 6)
    # One sequence of two steps, 1 and -1 once standardised; the mask is 1.
    row, steps, column, real = weights[:, 0], weights[:, 1:3], weights[:, 3], weights[:, 4]
    expected = row * ((steps[:, 0] - steps[:, 1]) * column + steps.sum(axis=1) * real) / 2
    found = fingerprint(np.array([[[5.0], [3.0]]]))
    np.testing.assert_allclose(found[0], expected)
    assert np.isnan(found[1]).all()
    constant = fingerprint(np.full((1, 2, 1), 0.1, np.float32))
    np.testing.assert_allclose(constant[0], row * steps.sum(axis=1) * real / 2)


class Recurrent(nn.Module):
    def __init__(self, units: int, seed: int) -> None:
        super().__init__()
        mx.random.seed(seed)
        self.rnn, self.head = nn.GRU(3, units), nn.Linear(units, 1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x)[:, -1])


def looked_at(path: Path, units: int, seed: int, x: np.ndarray, looks: int = 2) -> str:
    """A run of a network that moves a little between looks."""
    model = Recurrent(units, seed)
    with ncp.Monitor(model, ncp.HeldOutBatch(x), [ncp.StateSpace()], path, every=1) as monitor:
        for step in range(1, looks + 1):
            monitor.on_step_end(step)
            model.rnn.Wx = 1.3 * model.rnn.Wx
    return str(path)


def states_at_places(units: int, seed: int, x: np.ndarray, factor: float) -> np.ndarray:
    model = Recurrent(units, seed)
    model.rnn.Wx = factor * model.rnn.Wx
    states = np.array(model.rnn(mx.array(x))).reshape(-1, units)
    return states[sample_places(np.ones(x.shape[:2], bool))].astype(np.float64)


def of_song(a: np.ndarray, b: np.ndarray) -> float:
    k, m = a @ a.T, b @ b.T
    return hsic_of_song(k, m) / math.sqrt(hsic_of_song(k, k) * hsic_of_song(m, m))


def test_states_of_runs_with_the_same_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).normal(size=(10, 12, 3)).astype(np.float32)
    small = [looked_at(tmp_path / f"small{s}", 5, s, x) for s in range(3)]
    large = [looked_at(tmp_path / f"large{s}", 80, s, x) for s in range(2)]
    result = compare_runs({"small": small, "large": large})
    (measure,) = (m for m in result.measures if m.tag == "hidden_sample")
    assert measure.name == "debiased linear CKA"
    states = {n: [states_at_places(n, s, x, 1.3) for s in range(3)] for n in (5, 80)}
    expected = np.mean([of_song(a, b) for a in states[5] for b in states[80][:2]])
    assert measure.between == (pytest.approx(expected, abs=1e-4),)
    pairs = itertools.combinations(states[5], 2)
    within = (np.mean([of_song(*p) for p in pairs]), of_song(*states[80][:2]))
    assert measure.within == pytest.approx(within, abs=1e-4)
    first = states_at_places(80, 0, x, 1.0), states_at_places(80, 1, x, 1.0)
    drift = np.mean([of_song(a, b) for a, b in zip(first, states[80], strict=False)])
    assert measure.drift[1] == pytest.approx(drift, abs=1e-4)
    assert not any("held_out" in m.tag for m in result.measures)
    assert not any("hidden" in warning for warning in result.warnings)

    runs = [f"A={tmp_path}/small*", f"B={tmp_path}/large*"]
    assert main(["compare", *runs, "--out", str(tmp_path)]) == 0
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    for text in (capsys.readouterr().out, page):
        assert "debiased linear CKA" in text
        assert "CKA: of states at the same places" in " ".join(text.split())
    assert main(["compare", *runs, "--format", "md"]) == 0
    said = capsys.readouterr().out
    (row,) = (line for line in said.splitlines() if "CKA" in line and line.startswith("|"))
    assert row.split("|")[2].strip() == f"{measure.between[0]:.2f}"


def test_tokens_are_the_same_batch_whatever_they_are_embedded_as(tmp_path: Path) -> None:
    class Reader(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.embedding, self.below, self.above = (
                nn.Embedding(7, size),
                nn.GRU(size, 5),
                nn.GRU(5, 4),
            )

        def __call__(self, x: mx.array) -> mx.array:
            return self.above(self.below(self.embedding(x)))[:, -1]

    tokens = np.random.default_rng(0).integers(0, 7, (8, 10))
    runs = []
    for name, size, batch in (("a", 3, tokens), ("b", 5, tokens), ("c", 5, tokens[::-1].copy())):
        mx.random.seed(size)
        spaces = [ncp.StateSpace(max_sequences=4, every=1)]
        with ncp.Monitor(Reader(size), ncp.HeldOutBatch(batch), spaces, tmp_path / name) as monitor:
            monitor.on_step_end(1)
        runs.append(tmp_path / name)
    measures = compare_runs(runs[:2]).measures
    found = {m.tag: m.between[0] for m in measures if "CKA" in m.name}
    assert set(found) == {"hidden_below_sample", "hidden_above_sample"}
    assert all(-1 <= value < 0.999 for value in found.values())
    other = compare_runs(runs[1:])
    assert not any("CKA" in m.name for m in other.measures)
    assert other.conditions[0].same == (False,)
    assert "The held-out batch is not the same in c as in b." in other.answer[0]


def test_states_of_runs_with_other_batches_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(2, 10, 12, 3)).astype(np.float32)
    runs = [
        looked_at(tmp_path / name, 5, seed, batch)
        for seed, (name, batch) in enumerate({"a": x, "b": other, "c": x}.items())
    ]
    result = compare_runs(runs)
    # The first and the last are compared, whatever the second was analysed on.
    assert {m.tag for m in result.measures} >= {"hidden_sample", "hidden_spectrum"}
    assert all(m.between[0] is None for m in result.measures)
    assert all(m.between[1] is not None for m in result.measures if m.tag == "hidden_sample")
    assert all(row.changes[0] is None for row in result.scalars)
    assert all(row.changes[1] is not None for row in result.scalars)
    assert result.conditions[0].name == "held-out batch"
    assert result.conditions[0].same == (False, True)
    assert result.conditions[0].different == ("b",)
    assert main(["compare", runs[0], runs[1]]) == 0
    said = capsys.readouterr().out
    assert "The held-out batch is not the same in b as in a." in " ".join(said.split())
    assert "CKA" not in said


def test_logs_from_before_there_were_samples_still_compare(tmp_path: Path, logs: Path) -> None:
    x = np.random.default_rng(0).normal(size=(10, 12, 3)).astype(np.float32)
    new = looked_at(tmp_path / "new", 5, 0, x)
    result = compare_runs([logs / "cfc-s0", new])
    assert any(m.tag == "hidden_spectrum" for m in result.measures)
    assert result.partial["_ncp/hidden_sample"] == ("new",)
    # Arrays of the user's own that only end like these are what they were.
    for name in "pq":
        writer = ncp.TensorBoardWriter(tmp_path / name)
        own = np.arange(12.0).reshape(6, 2)
        writer.write(1, [ncp.Scalar("x", 1.0), ncp.Array("_ncp/own_sample", own)])
        writer.close()
    found = compare_runs([tmp_path / "p", tmp_path / "q"]).measures
    assert [m.name for m in found] == ["rank correlation", "shift"]


# Requests that can't be met.


@pytest.mark.parametrize(
    ("runs", "options", "says"),
    [
        (
            ["cfc-s0", "cfc-s9"],
            {},
            r"there is no run .*cfc-s9.: pass a folder with event files, such as cfc-s\d",
        ),
        (["cfc-s0", "cfc-s0"], {}, "passed twice"),
        (["A=cfc-s*", "B=cfc-s1"], {}, "passed twice, in 'A' and 'B'"),
        (["cfc-s0"], {}, "only 'cfc-s0' to compare: pass two runs or more"),
        (["cfc-s0", "nothing*"], {}, r"no run matches 'nothing\*' .*: pass a glob"),
        (["cfc-s0", "."], {}, r"holds no event files: pass runs below it \(cfc-s0"),
        (
            ["cfc-s0", "ltc-s0"],
            {"tags": "val/los$"},
            "no tag matches .*: pass an expression .*, such as val/loss",
        ),
        (["cfc-s0", "ltc-s0"], {"tags": "("}, r"tags='\(' is not a regular expr.*: pass one"),
        (["cfc-s0", "ltc-s0"], {"at": 1000}, "ends at step 100: pass at most that"),
        (["cfc-s0", "ltc-s0"], {"last": 0}, "last=0: pass at least 1"),
    ],
)
def test_errors_name_what_is_wrong_and_the_fix(
    logs: Path, runs: list[str], options: dict, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(logs)
    with pytest.raises(RunsError, match=says):
        compare_runs(runs, **options)


def test_no_common_steps(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0, steps=range(10))
    write_run(tmp_path / "b", 1, steps=range(100, 110))
    with pytest.raises(RunsError, match=r"no common steps up to 9; they logged: a 0-9, b 100-109"):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_a_run_without_numbers(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "tfevents").touch()
    with pytest.raises(RunsError, match=r"holds no numbers to compare .*is empty"):
        compare_runs([logs / "cfc-s0", tmp_path])


def test_names_that_need_more_than_the_last_folder(tmp_path: Path) -> None:
    for side in "ab":
        write_run(tmp_path / side / "s0", ord(side), steps=range(5))
    result = compare_runs([tmp_path / "a" / "s0", tmp_path / "b" / "s0"])
    assert [side.name for side in result.sides] == ["a/s0", "b/s0"]


# Formats and the command.


def run_cli(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ncp_callbacks.cli", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, **environment}, timeout=60,
    )  # fmt: skip


def test_the_command_is_installed_with_the_package() -> None:
    project = Path(__file__).parent.parent / "pyproject.toml"
    assert 'ncp-callbacks = "ncp_callbacks.cli:main"' in project.read_text()
    assert "compare" in run_cli("--help").stdout


def test_json_is_the_comparison(logs: Path) -> None:
    done = run_cli("compare", f"A={logs}/cfc-s*", f"B={logs}/ltc-s*", "--format", "json")
    assert done.returncode == 0, done.stderr
    result = compare_runs({"A": f"{logs}/cfc-s*", "B": f"{logs}/ltc-s*"})
    assert Comparison.from_json(done.stdout) == result
    assert json.loads(done.stdout)["scalars"][0]["tag"] == "val/loss"
    with pytest.raises(ValueError, match=r"not a comparison .*: pass what Comparison\.to_json"):
        Comparison.from_json('{"step": 1}')


def test_the_command_prints_a_table_that_fits(logs: Path) -> None:
    done = run_cli("compare", logs / "cfc-s0", logs / "ltc-s0", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "One run each: no significance." in done.stdout
    assert re.search(r"^val/loss +0\.\d+ +0\.\d+ +\+0\.[12]", done.stdout, re.MULTILINE)
    assert not re.search("[*↑↓▲▼→]", done.stdout)


def test_fail_if(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(logs / "cfc-s0"), str(logs / "ltc-s0")]
    for rule, status in [
        ("val/loss>+5%", 1), ("val/loss>+90%", 0), ("val/loss<-5%", 0), ("val/loss>+0.1", 1),
        ("val/loss>+0.5", 0), ("val/loss>0.6", 1), ("val/loss >= 0.9", 0),
        ("hidden/nonfinite>+5%", 0), ("hidden/nonfinite>=0", 1),
    ]:  # fmt: skip
        assert main(["compare", *runs, "--tags", "train", "--fail-if", rule]) == status, rule
        said = capsys.readouterr().err
        assert ("failed: " + rule in said) == (status == 1)
    assert main(["compare", *runs, "--fail-if", "val/loss>9", "--fail-if", "val/loss>+5%"]) == 1
    assert "a change of +" in capsys.readouterr().err
    assert main(["compare", *runs, "--fail-if", "val/los>+5%"]) == 2
    assert "pass a tag of all runs, such as val/loss" in capsys.readouterr().err
    assert main(["compare", *runs, "--fail-if", "val/loss up"]) == 2
    assert "is not a condition" in capsys.readouterr().err


def test_usage_errors_have_status_2(logs: Path, tmp_path: Path) -> None:
    for arguments in (
        [], ["compare"], ["compare", logs / "cfc-s0"], ["compare", logs / "cfc-s0", logs / "none"],
        ["compare", logs / "cfc-s0", logs / "ltc-s0", "--last", "x"],
    ):  # fmt: skip
        done = run_cli(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stderr
    (tmp_path / "file").touch()
    out = ["--out", str(tmp_path / "file")]
    assert main(["compare", str(logs / "cfc-s0"), str(logs / "ltc-s0"), *out]) == 2


class Page(html.parser.HTMLParser):
    """Tags that open and close, pictures, and what is loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.elsewhere: list[str] = []
        self.links: list[str] = []
        self.places: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.images.append(value or "")
            elif name == "id":
                self.places.append(value or "")
            elif name == "href" and value and value.startswith("#"):
                self.links.append(value[1:])
            elif name in ("src", "href"):
                self.elsewhere.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("groups", [False, True])
def test_the_report_holds_the_pictures(logs: Path, tmp_path: Path, groups: bool) -> None:
    runs = ["cfc-s0", "ltc-s0"] if not groups else ["A=cfc-s*", "B=ltc-s*"]
    at = [re.sub("(.*=)?(.*)", rf"\g<1>{logs}/\2", run, count=1) for run in runs]
    assert main(["compare", *at, "--out", str(tmp_path / "new" / "report")]) == 0
    text = (tmp_path / "new" / "report" / "compare.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    # A link to the page that shows both sides, and nothing that is loaded.
    (address,) = page.elsewhere
    name, _, shown = address.partition("#")
    sides = [[f"cfc-s{i}" for i in range(4)], [f"ltc-s{i}" for i in range(4)]]
    runs = sides[0] + sides[1] if groups else ["cfc-s0", "ltc-s0"]
    expected = {"runs": runs, "b": sides[1] if groups else []}
    assert json.loads(urllib.parse.unquote(shown)) == expected
    held = (tmp_path / "new" / "report" / name).read_text(encoding="utf-8")
    (data,) = re.findall(r'id="data">(.*)</script>', held)
    assert list(json.loads(data)["runs"]) == runs
    assert page.links == page.places  # The list of contents.
    assert "http" not in text
    for name in ("cfc-s0", "ltc-s0"):
        for step in (0, 100):
            data = read_run(logs / name).images["attribution/heatmap"][step].data()
            assert f"data:image/png;base64,{base64.b64encode(data).decode()}" in page.images
    assert len(page.images) == 4 + 2 + 1  # Loss curves and histograms.
    assert "val/loss" in text


def test_names_cannot_break_the_report_or_markdown(tmp_path: Path) -> None:
    for name, seed in (("<script>alert(1)", 0), ("b|c", 1)):
        write_run(tmp_path / name, seed, steps=range(5), config={"note": f"<i>|{seed}"})
    runs = [str(tmp_path / "<script>alert(1)"), str(tmp_path / "b|c")]
    assert main(["compare", *runs, "--out", str(tmp_path)]) == 0
    text = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<i>" not in text
    assert Page(text).open == []


def test_markdown(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", f"{logs}/cfc-s0", f"{logs}/ltc-s0", "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# ltc-s0 against cfc-s0\n")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 4
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_three_sides_are_compared_with_the_first(logs: Path) -> None:
    result = compare_runs([logs / "cfc-s0", logs / "cfc-s1", logs / "ltc-s0"])
    row = result.row("val/loss")
    assert len(row.values) == 3
    assert [c.delta for c in row.changes] == [v.mean - row.values[0].mean for v in row.values[1:]]
    assert len(result.measures[0].between) == 2


@given(cut=st.floats(0, 1), flips=st.lists(st.integers(0, 10**6), max_size=3))
def test_the_command_survives_damaged_runs(
    logs: Path, tmp_path_factory: pytest.TempPathFactory, cut: float, flips: list[int]
) -> None:
    (file,) = (p for p in (logs / "ltc-s0").iterdir() if "tfevents" in p.name)
    data = bytearray(file.read_bytes())
    for flip in flips:
        data[flip % len(data)] ^= 1 << flip % 8
    where = tmp_path_factory.mktemp("damaged")
    (where / "tfevents").write_bytes(data[: int(cut * len(data))])
    assert main(["compare", str(logs / "cfc-s0"), str(where), "--format", "md"]) in (0, 2)


def test_a_notebook_shows_the_tables(logs: Path) -> None:
    result = compare_runs([logs / "cfc-s0", logs / "ltc-s0"])
    page = result._repr_html_()
    assert page.count("<table>") == page.count("</table>") >= 3
    for row in result.scalars:
        assert f">{row.tag}<" in page
    assert "One run each: no significance" in page
    assert "<html" not in page


def test_the_cost_of_the_monitor_comes_last_however_much_it_changed(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 50.0)):
        writer = TensorBoardWriter(tmp_path / name)
        for step in range(1, 9):
            wiggle = 0.01 * (step % 2)
            numbers = {"monitor/share": factor + wiggle, "hidden/pc1_share": 0.3 + wiggle * factor}
            writer.write(step, [ncp.Scalar(tag, value) for tag, value in numbers.items()])
        writer.close()
    result = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert [row.tag for row in result.scalars] == ["hidden/pc1_share", "monitor/share"]
    assert "+4,8" in plain(document(result))


def test_bookkeeping_comes_last_and_is_no_test_unless_it_was_asked_for() -> None:
    rng, models = np.random.default_rng(4), ["attribution/entropy", "val/loss_change"]
    aside = ["monitor/share", "states/numbers_changed", "states/path_change", "time/nonfinite"]
    groups = [simulated(rng, 3, [*aside, *models]) for _ in range(2)]
    rows, _, _ = compare_scalars(groups, [*aside, *models], (30, 70))
    assert {row.tag for row in rows[:2]} == set(models)
    assert {row.tag for row in rows[2:]} == set(aside)
    assert all(row.changes[0].p is None and row.changes[0].p_holm is None for row in rows[2:])
    # Validation is tested alone, and so is what is left.
    assert all(row.changes[0].p_holm == row.changes[0].p is not None for row in rows[:2])
    assert rows[0].tag == "val/loss_change"
    assert significance(groups, rows).count("correction for 1 test)") == 2
    chosen, _, _ = compare_scalars(groups, aside, (30, 70), chosen=True)
    assert all(row.changes[0].p_holm is not None for row in chosen)
    assert "correction for 4 tests" in significance(groups, chosen)
    adjusted = holm([row.changes[0].p for row in chosen])
    assert [row.changes[0].p_holm for row in chosen] == pytest.approx(adjusted)


# What the runs were analysed on.


def write_analysed(
    path: Path,
    *,
    names: list[str] | None = None,
    loss: float = 0.5,
    seed: int = 0,
    time_share: float | None = None,
    strength: dict[str, float] | None = None,
    about: dict | str | None = None,
    marks: np.ndarray | None = None,
) -> Path:
    """A run with a fingerprint, and a map whose columns stand in the order of ``names``."""
    rng = np.random.default_rng(seed)
    names = names or ["a", "b", "c"]
    columns = [(strength or {"a": 6.0, "b": 3.0, "c": 1.0})[name] for name in names]
    writer = ncp.TensorBoardWriter(path)
    if about is not None:
        text = about if isinstance(about, str) else json.dumps(about)
        writer.write(0, [ncp.Data("_ncp/fingerprint", text)])
    for step in range(0, 101, 10):
        early = 3.0 if step == 0 else 0.0  # An untrained model.
        records = [
            ncp.Scalar("val/loss", loss + early + rng.normal(0, 1e-3)),
            ncp.Scalar("train/loss", loss + early + rng.normal(0, 1e-3)),
            ncp.Scalar("attribution/entropy", 0.9 + rng.normal(0, 1e-3)),
            ncp.Array(
                "_ncp/attribution_strength",
                np.outer(np.linspace(0.5, 1, 4), columns),
                kind="attribution",
                axes=MAP,
            ),
            ncp.Array(
                "_ncp/interactions_strength",
                np.outer(columns, columns),
                kind="interactions",
                axes=("feature", "feature"),
            ),
        ]
        if time_share is not None:
            share = time_share + rng.normal(0, 1e-3)
            ci = (share - 0.05, share + 0.05)
            records.append(ncp.Scalar("attribution/time_share", share, ci=ci))
        if marks is not None:
            records.append(ncp.Array("_ncp/held_out", marks, kind="held out batch"))
        writer.write(step, records)
    writer.close()
    assert writer.failure is None
    return writer.log_dir


def about(**changed: object) -> dict:
    known = {"held_out": "c0ffee", "method": {"attribution": "integrated_gradients"},
             "target": "output 0", "feature_names": ["a", "b", "c"]}  # fmt: skip
    return {**known, **changed}


def said_by(result: Comparison) -> str:
    return " ".join(result.answer)


def test_runs_that_were_analysed_alike_are_reported_to_be(tmp_path: Path) -> None:
    runs = [write_analysed(tmp_path / n, seed=i, about=about()) for i, n in enumerate("xy")]
    result = compare_runs(runs)
    assert [c.name for c in result.conditions] == [
        "held-out batch", "method", "target", "feature names"
    ]  # fmt: skip
    assert all(c.same == (True,) for c in result.conditions)
    assert "don't tell" not in said_by(result)
    assert "not the same" not in said_by(result)
    assert Comparison.from_json(result.to_json()) == result


@pytest.mark.parametrize("text", [None, "", "no json", "[1, 2]", "[" * 100_000, '{"held_out": 3}'])
def test_what_is_not_known_is_reported_and_compared(tmp_path: Path, text: str | None) -> None:
    runs = [write_analysed(tmp_path / "x", about=about()),
            write_analysed(tmp_path / "y", loss=0.7, about=text)]  # fmt: skip
    result = compare_runs(runs)
    assert all(c.same == (None,) for c in result.conditions)
    unknown = "the held-out batch, method, target and feature names are the same"
    assert f"don't tell whether {unknown}" in said_by(result)
    assert result.row("val/loss").changes[0].delta == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("changed", "name", "subtracted"),
    [
        ({"held_out": "beef"}, "held-out batch", {"train/loss"}),
        ({"method": {"attribution": "occlusion"}}, "method", {"train/loss", "val/loss"}),
        ({"target": "output 1"}, "target", {"train/loss", "val/loss"}),
    ],
)
def test_what_was_analysed_differently_is_never_subtracted(
    tmp_path: Path, changed: dict, name: str, subtracted: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = [write_analysed(tmp_path / "x", about=about()),
            write_analysed(tmp_path / "y", loss=0.9, about=about(**changed))]  # fmt: skip
    result = compare_runs(runs)
    assert {row.tag for row in result.scalars if row.changes[0] is not None} == subtracted
    assert not [m for m in result.measures if m.tag.startswith("attribution")]
    assert result.answer[0].startswith(f"The {name} is not the same in y as in x")
    assert "What they rely on is not compared." in result.answer
    # The gate tells that it can't judge, whatever else is shown.
    given = ["compare", *map(str, runs), "--tags", "train"]
    for rule, status in (
        ("val/loss>+5%", 1 if "val/loss" in subtracted else 3),
        ("val/loss<+5%", 0 if "val/loss" in subtracted else 3),
        ("attribution/entropy>+0.5", 3),
        ("attribution/entropy<+0.5", 3),
        ("train/loss>+5%", 1),
        ("val/loss>0.8", 1),  # A value is no difference.
        ("val/loss>1", 0),
    ):
        assert main([*given, "--fail-if", rule]) == status, rule
        assert ("can't be judged: " + rule in capsys.readouterr().err) == (status == 3)
    assert main([*given, "--fail-if", "val/loss>0.8", "--fail-if", "attribution/entropy>+1"]) == 1


def test_one_side_that_differs_takes_nothing_from_the_others(tmp_path: Path) -> None:
    runs = [
        write_analysed(tmp_path / name, seed=i, about=about(held_out=held_out))
        for i, (name, held_out) in enumerate({"x": "1", "y": "2", "z": "1"}.items())
    ]
    result = compare_runs(runs)
    assert result.conditions[0].same == (False, True)
    for row in result.scalars:
        assert (row.changes[0] is None) == (row.tag != "train/loss")
        assert row.changes[1] is not None
    assert all(m.between[0] is None and m.between[1] is not None for m in result.measures)


def test_runs_of_one_side_must_be_analysed_alike_too(tmp_path: Path) -> None:
    for i in range(3):
        write_analysed(tmp_path / f"x{i}", seed=i, about=about())
        write_analysed(tmp_path / f"y{i}", seed=9 + i, about=about(target=f"output {i // 2}"))
    result = compare_runs({"x": f"{tmp_path}/x*", "y": f"{tmp_path}/y*"})
    assert result.conditions[2].same == (False,)
    assert result.conditions[2].different == ("y2",)
    assert result.row("attribution/entropy").changes == (None,)


def test_methods_of_groups_are_compared_where_both_have_them(tmp_path: Path) -> None:
    methods = [{"attribution": "ig", "gradient": "gradient"}, {"attribution": "ig"},
               {"attribution": "occlusion"}]  # fmt: skip
    runs = [write_analysed(tmp_path / str(i), about=about(method=m)) for i, m in enumerate(methods)]
    assert compare_runs(runs).conditions[1].same == (True, False)


def test_the_batch_is_known_by_its_array_where_there_is_no_text(tmp_path: Path) -> None:
    marks = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for name, mark in {"x": marks, "y": marks, "z": marks + 0.1, "w": marks[:2]}.items():
        write_analysed(tmp_path / name, marks=mark)
    result = compare_runs([tmp_path / name for name in "xyzw"])
    assert result.conditions[0].same == (True, False, False)
    assert not any("held_out" in m.tag for m in result.measures)


def shares_moved(result: Comparison) -> float | None:
    (found,) = (m for m in result.measures if m.name == "shift of feature shares")
    return found.between[0]


def test_maps_are_matched_by_the_names_of_their_features(tmp_path: Path) -> None:
    x = write_analysed(tmp_path / "x", about=about())
    order = ["c", "a", "b"]
    y = write_analysed(tmp_path / "y", names=order, about=about(feature_names=order))
    result = compare_runs([x, y])
    assert result.conditions[3].same == (True,)
    for measure in result.measures:
        moved = 0.0 if "shift" in measure.name else 1.0
        assert measure.between[0] == pytest.approx(moved, abs=1e-6), measure
    assert {m.tag for m in result.measures} == {"attribution_strength", "interactions_strength"}
    assert "rely on the inputs alike: no share differs by more than 1 point" in said_by(result)
    # Where no names are known, by column: 60, 30, 10 % against 10, 60, 30 %.
    blind = [write_analysed(tmp_path / "p"), write_analysed(tmp_path / "q", names=order)]
    assert shares_moved(compare_runs(blind)) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("names", [["a", "b", "d"], None])
def test_maps_of_other_features_are_not_compared(tmp_path: Path, names: list[str] | None) -> None:
    x = write_analysed(tmp_path / "x", about=about())
    y = write_analysed(tmp_path / "y", seed=1, about=about(feature_names=names))
    result = compare_runs([x, y])
    assert not result.measures
    assert any("maps by feature are not compared for y" in w for w in result.warnings)
    told = "names are not the same in y as in x (d instead of c)." in result.answer[0]
    assert told == (names is not None)
    # All else is.
    assert result.row("attribution/entropy").changes[0] is not None


def test_the_answer_of_a_pair(tmp_path: Path) -> None:
    x = write_analysed(tmp_path / "x", about=about(), loss=0.5, time_share=0.75)
    y = write_analysed(tmp_path / "y", about=about(), loss=0.4, time_share=0.02, seed=1,
                       strength={"a": 1.0, "b": 3.0, "c": 6.0})  # fmt: skip
    text = said_by(compare_runs([x, y]))
    assert text.startswith("By val/loss, y (0.399")
    assert "is better than x (0.4997" in text
    assert "Each side has one run: with other seeds the answer may be another." in text
    # 6 of 10 against 1 of 10, for a and the other way round for c.
    assert "They rely on the inputs differently: a has 60 % in x and 10 % in y." in text
    assert "Of the attribution, elapsed time has 75 % [70, 80] in x and 2 % [0, 7] in y." in text
    # The same whatever the table shows.
    assert said_by(compare_runs([x, y], tags="entropy")) == text


def shares_of(path: Path, shares: dict[str, float], half: float, time_share: float) -> Path:
    """A run with shares that have CIs of this half width."""
    writer = ncp.TensorBoardWriter(path)
    writer.write(0, [ncp.Data("_ncp/fingerprint", json.dumps(about(feature_names=[*shares])))])
    for step in range(1, 9):
        of_all = {f"attribution_share/{name}": share for name, share in shares.items()}
        of_all["attribution/time_share"] = time_share
        records: list[ncp.Record] = [
            ncp.Scalar(tag, share, ci=(share - half, share + half)) for tag, share in of_all.items()
        ]
        strength = np.array([[*shares.values()]])
        array = ncp.Array("_ncp/attribution_strength", strength, kind="attribution", axes=MAP)
        records += [array, ncp.Scalar("val/loss", 0.5)]
        writer.write(step, records)
    writer.close()
    return writer.log_dir


@pytest.mark.parametrize(
    ("a", "b", "half", "says"),
    [
        # One feature has everything, in any run.
        ({"x": 1.0}, {"x": 1.0}, 0.0, None),
        # What is printed as the same, and what is smaller than its doubt.
        ({"x": 0.404, "y": 0.596}, {"x": 0.401, "y": 0.599}, 0.0, "by more than 1 point."),
        (
            {"x": 0.4, "y": 0.6},
            {"x": 0.6, "y": 0.4},
            0.2,
            "than 20 points, which is within its",
        ),
        ({"x": 0.4, "y": 0.6}, {"x": 0.6, "y": 0.4}, 0.1, "differently: x has 40 % [30, 50] in a"),
        # Half widths of .1 on both sides are .141 together.
        ({"x": 0.4, "y": 0.6}, {"x": 0.53, "y": 0.47}, 0.1, "than 13 points, which is within"),
        ({"x": 0.4, "y": 0.6}, {"x": 0.56, "y": 0.44}, 0.1, "differently"),
    ],
)
def test_a_difference_that_is_none_is_not_reported_as_one(
    tmp_path: Path, a: dict[str, float], b: dict[str, float], half: float, says: str | None
) -> None:
    runs = [shares_of(tmp_path / n, s, half, 0.25) for n, s in (("a", a), ("b", b))]
    text = said_by(compare_runs(runs))
    assert ("rely on the inputs" in text) == (says is not None)
    assert (says or "") in text
    assert "By val/loss, b (0.5) and a (0.5) are equal." in text
    ends = f" [{25 - 100 * half:.0f}, {25 + 100 * half:.0f}]"
    alike = f"about the same share of the attribution: 25 %{ends} in a and 25 %{ends} in b."
    assert alike in text


def test_elapsed_time_that_only_one_model_is_given_is_reported(tmp_path: Path) -> None:
    x = write_analysed(tmp_path / "x", about=about(), time_share=0.75)
    y = write_analysed(tmp_path / "y", about=about(), seed=1)
    text = said_by(compare_runs([x, y]))
    assert "Elapsed time is attributed to in x only: y logged no attribution/time_share" in text


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    values = np.linspace(1, 0.5, 8)
    groups = [
        Group(
            name, (memory_run(name, {"val/loss": values + error, "attribution/x": 1e6 * values}),)
        )
        for name, error in (("a", 0.0), ("b", 3e-7))
    ]
    result = compare_groups(groups)
    assert result.unchanged == ("val/loss", "attribution/x")
    assert "are equal" in said_by(result)
    assert "All numbers but the costs are equal: the runs are copies" in said_by(result)
    for rule in ("val/loss>+0%", "val/loss>+0"):
        assert judge_rules(groups, [Rule.parse(rule)], result.window) == ([], [])
    # Of numbers that were large, and are small by now, a small difference is none.
    small = {
        n: memory_run(n, {"val/loss": np.append(values, e)}) for n, e in (("a", 0.0), ("b", 1e-9))
    }
    assert compare_groups([Group(n, (r,)) for n, r in small.items()], last=1).unchanged


def test_equal_runs_share_a_place(tmp_path: Path) -> None:
    def ranked(*levels: float) -> str:
        made = [
            memory_run(n, {"val/loss": v + 1e-3 * np.arange(8)})
            for n, v in zip("abcd", levels, strict=False)
        ]
        return said_by(compare_groups([Group(run.name, (run,)) for run in made]))

    assert "a, b and c are equal (0.505)." in ranked(0.5, 0.5, 0.5)
    assert "a and c are equal and best of 3 (0.505), then b (0.705)." in ranked(0.5, 0.7, 0.5)
    assert "a is best of 3 (0.505), then b and c" not in ranked(0.5, 0.7, 0.7)


def test_methods_apart_take_nothing_from_other_callbacks(tmp_path: Path) -> None:
    held_out = ncp.HeldOutBatch(np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32))
    runs = []
    for name, baseline in (("a", "zeros"), ("b", "mean"), ("c", np.ones(3)), ("d", np.zeros(3))):
        callbacks = [
            ncp.GradientAttribution(method="integrated_gradients", baseline=baseline),
            ncp.StateTransitions(),
        ]
        with ncp.Monitor(
            Recurrent(4, 0), held_out, callbacks, tmp_path / name, every=1, background=False
        ) as monitor:
            monitor.on_step_end(1)
        runs.append(tmp_path / name)
    result = compare_runs(runs)
    (method,) = (c for c in result.conditions if c.name == "method")
    assert method.same == (False,) * 3
    assert method.callbacks == (("attribution",),) * 3
    assert "attribution by integrated_gradients from mean" in said_by(result)
    rows = {row.tag: row for row in result.scalars}
    assert rows["attribution/strength"].changes == (None,) * 3
    assert any(m.tag == "transitions_unit_speed_max" and m.between[0] == 0 for m in result.measures)
    table = plain(document(result))
    assert table.count("other method") == 3


def test_findings_stand_on_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, saturated in (("a", 0.05), ("b", 0.98), ("c", 0.98)):
        writer = ncp.TensorBoardWriter(tmp_path / name)
        for step in range(1, 9):
            value = saturated + 1e-3 * (step % 2)
            found = ncp.Scalar("transitions/saturation", value, ci=(value - 0.02, value + 0.01))
            writer.write(step, [found, ncp.Scalar("val/loss", 0.5)])
        writer.close()
    runs = [str(tmp_path / name) for name in "abc"]
    result = compare_runs(runs)
    of_runs = {side.name: [f.rule for f in side.runs[0].findings] for side in result.sides}
    assert "saturated" in of_runs["b"]
    assert "saturated" not in of_runs["a"]
    assert Comparison.from_json(result.to_json()) == result
    names = [section.name for section in document(result)]
    assert names[:3] == ["answer", "findings", "runs"]
    assert main(["compare", *runs]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"(Warning|Problem) in b and c: 98.0 % \[96.0, 99.0\]", text), text


def test_the_answer_knows_which_way_is_better() -> None:
    def sides(tag: str, a: float, b: float) -> str:
        runs = [memory_run(n, {tag: v + 1e-3 * np.arange(8)}) for n, v in (("a", a), ("b", b))]
        return said_by(compare_groups([Group(run.name, (run,)) for run in runs]))

    assert "b (0.8" in sides("val/loss", 0.5, 0.8)
    assert "is worse than a" in sides("val/loss", 0.5, 0.8)
    assert "is better than a" in sides("val/accuracy", 0.5, 0.8)
    assert "is worse than a" in sides("val/f1", 0.8, 0.5)
    assert "is better than a" in sides("valid/mse", 0.8, 0.5)
    assert "is higher than a" in sides("val/thing", 0.5, 0.8)
    assert "is better than a" in sides("train/loss", 0.8, 0.5)
    told = sides("val/loss", 0.5, 0.5001)
    assert "can't be distinguished" in told
    assert "within the scatter" in told
    assert "are equal" in sides("val/loss", 0.5, 0.5)
    assert "a is better: b has numbers that are not finite" in sides("val/loss", 0.5, math.nan)
    assert "can't be ranked: not a number" in sides("val/loss", math.nan, math.nan)
    assert "Which is better is not known" in sides("attribution/x", 0.5, 0.8)


def test_the_answer_of_groups_tells_what_it_means(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def side(name: str, count: int, level: float) -> Group:
        runs = [
            memory_run(f"{name}{i}", {"val/loss": level + 0.05 * rng.normal() + np.zeros(8)})
            for i in range(count)
        ]
        return Group(name, tuple(runs))

    clear = said_by(compare_groups([side("a", 5, 0.9), side("b", 5, 0.2)]))
    assert re.search(r"b \(0\.\d+\) is better than a .*95 % CI .* -0\.\d+ to -0\.\d+\)", clear)
    assert "more than seeds explain (p = 0.0079)" in clear  # 2 of 252 relabellings.
    three = said_by(compare_groups([side("a", 3, 0.9), side("b", 3, 0.2)]))
    assert "With 3 and 3 runs p can't be below 0.1, whatever the difference (here 0.1)" in three
    assert "5 runs a side are recommended" in three
    several = [side("a", 5, 0.9), side("b", 5, 0.2), side("c", 5, 0.5)]
    text = said_by(compare_groups(several))
    assert "b is best of 3" in text
    # Two comparisons: Holm doubles the smaller p, 2 of 252 relabellings.
    assert re.search(r"b against a \(95 % CI .*\): more than seeds explain \(p = 0.016\)", text)
    alike = said_by(compare_groups([side("a", 5, 0.5), side("b", 5, 0.5)]))
    assert re.search(r"can't be distinguished: .* may come from seeds alone \(p = 0\.\d+", alike)


# One window.


def test_the_untrained_snapshot_is_never_averaged() -> None:
    every, rare = np.arange(20, 401, 20), np.array([20, 220])
    values = np.concatenate([[100.0], np.ones(19)])

    def run(name: str, offset: float) -> Run:
        scalars = {
            "val/loss": Scalars(every, values + offset),
            "train/loss": Scalars(np.arange(1, 401), np.linspace(2, 1, 400) + offset),
            "dynamics/linear_memory_steps": Scalars(rare, np.array([5.0, 7.0]) + offset),
            "time/single": Scalars(np.array([20]), np.array([3.0 + offset])),
        }
        return Run(name, Path(name), scalars, {}, {}, {}, {}, {})

    groups = [Group(name, (run(name, offset),)) for name, offset in (("a", 0.0), ("b", 0.5))]
    result = compare_groups(groups)
    assert result.window == (320, 400)
    assert result.row("val/loss").steps == (320, 400)
    assert result.row("train/loss").steps == (320, 400)
    assert result.row("train/loss").values[0].points == (81,)
    row = result.row("dynamics/linear_memory_steps")
    assert row.steps == (220, 220)  # Not the mean of 20 and 220.
    assert [value.mean for value in row.values] == [7.0, 7.5]
    assert result.row("time/single").steps == (20, 20)
    # Fewer snapshots than were asked for: all but the first.
    assert compare_groups(groups, last=1000).window == (40, 400)
    assert compare_groups(groups, at=60, last=5).window == (40, 60)
    assert compare_groups(groups, at=30).window == (20, 20)


def test_constants_and_machine_properties_come_last() -> None:
    rng = np.random.default_rng(0)
    last = ["monitor/seconds", "time_delta/outside_x2", "hidden/nonfinite", "hidden/basis_refits",
            "attribution/n_steps", "attribution/constant"]  # fmt: skip
    first = ["val/loss", "train/loss", "attribution/entropy"]

    def run(name: str, offset: float) -> Group:
        values = {tag: offset + 0.1 * rng.normal(size=8) for tag in (*last, *first)}
        values["attribution/constant"] = np.full(8, 100 * offset)
        values["time_delta/outside_x2"] = np.full(8, 100 * offset)
        return Group(name, (memory_run(name, values),))

    tags = [row.tag for row in compare_groups([run("a", 1.0), run("b", 2.0)]).scalars]
    assert tags[:3] == first
    assert set(tags[3:]) == set(last)


def test_tags_limit_the_table_only(logs: Path, tmp_path: Path) -> None:
    runs = [logs / "cfc-s0", logs / "ltc-s0"]
    whole, few = compare_runs(runs), compare_runs(runs, tags="^val/")
    assert [row.tag for row in few.scalars] == ["val/loss"]
    assert (few.measures, few.curves, few.headlines) == (
        whole.measures, whole.curves, whole.headlines
    )  # fmt: skip
    assert few.measures
    given = ["compare", *map(str, runs), "--tags", "^val/", "--out", str(tmp_path)]
    assert main(given) == 0
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    assert len(page.images) == 4 + 2 + 1


# Many runs.


def test_many_runs_are_one_table_and_a_pair_is_shown_in_detail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {"r0": 0.5, "r1": 0.2, "r2": 0.9, "r3": 0.4, "r4": math.nan}
    for name, loss in losses.items():
        write_analysed(tmp_path / name, loss=loss, about=about())
    given = ["compare", f"{tmp_path}/r*"]
    assert main(given) == 0
    text = capsys.readouterr().out
    assert text.startswith("5 sides compared, r0 first\n")
    prose = " ".join(text.split())
    assert re.search(r"By val/loss, r1 is best of 5 \(0\.\d+\), then r3 \(0\.\d+\); r2 is worst",
                     prose)  # fmt: skip
    assert "r4: not a number." in prose
    assert "--pair r0 r1" in prose
    assert "Scalars:" not in text
    rows = re.findall(r"^(r\d) +\S+ +\S+ +a 60 %", text, re.MULTILINE)
    assert rows == [*losses]
    assert main([*given, "--pair", "r3", "r1"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("r1 against r3\n")
    assert "Scalars: r1 against r3" in text
    assert main([*given, "--pair", "r3", "r9"]) == 2
    assert "no side is named 'r9': pass r" in capsys.readouterr().err
    assert main([*given, "--pair", "r3", "r3"]) == 2


# Names that come from others.


def test_no_control_character_reaches_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = ["\x1b]0;pwned\x07evil\x1b[2J", "two\nlines", "\u202egnp", "\x9b2J", "\u2066x", "a\rb"]
    for name, value in (("a\x1b[31mrun", 1.0), ("b\u202erun", 2.0)):
        folder = tmp_path / name
        folder.mkdir()
        with tensorboardX.SummaryWriter(str(folder)) as writer:
            for step in range(5):
                values = [Summary.Value(tag=tag, simple_value=value + step % 2) for tag in evil]
                writer.file_writer.add_event(Event(summary=Summary(value=values)), step)
            writer.file_writer.add_summary(
                hparams({"\x1b[2Jlr": value, "n": f"\x1b{value}"}, {})[1]
            )
    runs = [str(path) for path in sorted(tmp_path.iterdir())]
    for form in ("table", "md"):
        assert main(["compare", *runs, "--format", form, "--fail-if", f"{evil[2]}>0"]) == 1
        out, err = capsys.readouterr()
        for line in (out + err).split("\n"):
            assert line.isprintable(), ascii(line)
        escaped = "\\\\x1b" if form == "md" else "\\x1b"
        assert escaped in out
        # A newline in a tag is no new row.
        assert ("two\\\\nlines" if form == "md" else "two\\nlines") in out
    assert main(["compare", *runs, "--format", "json"]) == 0
    out = capsys.readouterr().out
    assert {row["tag"] for row in json.loads(out)["scalars"]} == set(evil)
    assert out.isascii()
    assert main(["compare", runs[0], "\x1b[2J"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    assert main(["compare", *runs, "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert all(line.isprintable() for line in page.split("\n"))


def test_a_report_without_jinja2_names_the_fix(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    runs = [str(logs / "cfc-s0"), str(logs / "ltc-s0")]
    assert main(["compare", *runs, "--out", str(tmp_path)]) == 2
    assert "pip install 'ncp-callbacks[report]'" in capsys.readouterr().err
    assert main(["compare", *runs]) == 0
    page = compare_runs(runs)._repr_html_()
    assert page.startswith("<pre>")
    assert "val/loss" in page
