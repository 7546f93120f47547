"""A short form of the soak: nothing grows with the number of steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import script


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_nothing_grows(tmp_path: Path) -> None:
    soak = script("soak")
    readings = soak.soak(steps=300, every=5, log=tmp_path / "run")
    assert [r.step for r in readings[:-1]] == list(range(30, 301, 30))
    assert soak.complaints(readings) == []


def test_the_soak_would_see_what_grows() -> None:
    soak = script("soak")
    flat = [soak.Reading(100 * i, 200.0, 5.0, 2, 9, 0.5 * i) for i in range(1, 11)]
    end = soak.Reading(1000, 200.0, 5.0, 1, 8, 5.0)
    assert soak.complaints([*flat, end]) == []
    for change, word in [
        ({"resident_mb": 300.0}, "memory grew"),
        ({"mlx_mb": 9.0}, "MLX's memory"),
        ({"threads": 3}, "threads"),
        ({"files": 10}, "files"),
        ({"log_mb": 9.0}, "expected"),
    ]:
        last = soak.Reading(**{**vars(flat[-1]), **change})
        (found,) = soak.complaints([*flat[:-1], last, end])
        assert word in found
    (found,) = soak.complaints([*flat, flat[-1]])
    assert "left" in found
