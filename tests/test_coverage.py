"""The benchmark of how often CIs cover the truth."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scripts import script


def test_each_number_of_a_model_is_measured_at_each_batch_size() -> None:
    coverage = script("coverage")
    found = [
        dict(zip(coverage.FIELDS, row, strict=True))
        for row in coverage.measure("gru", draws=4, steps=2, size=64)
    ]
    numbers = {row["number"] for row in found}
    assert {"ig share of feature 0", "ig mean_lag", "elasticity_rms"} <= numbers
    assert {"removal strength", "ablation carrying_units", "states pc1_share"} <= numbers
    assert {row["sequences"] for row in found} == {16, 32}
    assert len(found) == 2 * len(numbers)
    for row in found:
        assert 0 <= float(row["coverage"]) <= 1
        covered = float(row["coverage"]) * int(row["draws"])
        assert covered == pytest.approx(round(covered), abs=0.01)


def test_the_stored_figures_are_of_all_models_and_cover() -> None:
    coverage = script("coverage")
    with coverage.STORED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == set(coverage.MODELS)
    found = np.array([float(row["coverage"]) for row in rows])
    assert np.mean(found >= 0.9) >= 0.9
    assert found.min() >= 0.85
