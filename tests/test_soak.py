"""A short form of the soak: nothing grows with the number of steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scripts import script

soak = script("soak")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_nothing_grows(tmp_path: Path) -> None:
    readings = soak.soak(steps=3000, every=10, log=tmp_path / "run")
    assert [r.step for r in readings] == list(range(300, 3001, 300))
    assert soak.growth(readings) == []


def flat() -> list:
    """Return readings of a run in which nothing grows but the log."""
    held = soak.Process(resident_mb=200.0, threads=4, files=9)
    return [soak.Reading(100 * i, held, held, 5.0, 0.5 * i, 0.02) for i in range(1, 11)]


def test_a_log_in_proportion_to_the_snapshots_is_no_growth() -> None:
    assert soak.growth(flat()) == []


@pytest.mark.parametrize("process", ["training", "observer"])
@pytest.mark.parametrize(
    ("change", "word"),
    [({"resident_mb": 216.0}, "memory"), ({"threads": 5}, "threads"), ({"files": 10}, "files")],
)
def test_what_grows_in_either_process_is_found(process: str, change: dict, word: str) -> None:
    *before, last = flat()
    last = replace(last, **{process: replace(getattr(last, process), **change)})
    (found,) = soak.growth([*before, last])
    assert found.startswith(f"{process}: {word}")


@pytest.mark.parametrize(
    ("change", "word"),
    [({"mlx_mb": 9.0}, "MLX"), ({"log_mb": 6.1}, "log"), ({"picture_mb": 0.04}, "pictures")],
)
def test_growth_of_mlx_and_of_the_log_is_found(change: dict, word: str) -> None:
    *before, last = flat()
    (found,) = soak.growth([*before, replace(last, **change)])
    assert word in found
