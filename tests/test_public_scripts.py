"""Scripts in the styles that people publish take a monitor by at most three lines."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from public_scripts import DATA, SCRIPTS, attached, original

import ncp_callbacks as ncp
from ncp_callbacks.runs import read_run

EVERY = 4


def losses_of(script: str) -> list[float]:
    """Run a script, in cells where it has some, and return the losses of its steps."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in [DATA, *script.split("# %%\n")]:
        exec(compile(cell, "script", "exec"), names)
    found: list[float] = names["losses"]
    return found


@pytest.mark.parametrize("style", SCRIPTS)
def test_three_lines_attach_a_monitor_and_indent_nothing_anew(style: str) -> None:
    before, after = (f(SCRIPTS[style]).splitlines() for f in (original, attached))
    changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    added = [line[2:] for line in changes if line[0] == "+"]
    removed = [line[2:] for line in changes if line[0] == "-"]
    assert 1 <= len(added) <= 3
    # A line is replaced where a call gets an argument, or a loop another iterator.
    assert len(removed) <= 1
    assert not {line.strip() for line in removed} & {line.strip() for line in added}


@pytest.mark.parametrize("style", SCRIPTS)
def test_the_log_has_the_numbers_and_the_training_is_the_same(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ncp.Monitor] = []
    start = ncp.Monitor.start

    def noted(monitor: ncp.Monitor) -> ncp.Monitor:
        started.append(monitor)
        return start(monitor)

    monkeypatch.setattr(ncp.Monitor, "start", noted)
    monkeypatch.chdir(tmp_path)
    expected = losses_of(original(SCRIPTS[style]))
    assert not started
    assert losses_of(attached(SCRIPTS[style])) == expected
    (monitor,) = started
    monitor.close()  # as at the exit of the script's process
    assert not [note for note in monitor.notes if "fail" in note or "came after" in note]

    run = read_run(tmp_path / "runs" / "a")
    steps = list(range(EVERY, len(expected) + 1, EVERY))
    entropy = run.scalars["attribution/entropy"].steps.tolist()
    assert [step for step in entropy if step % EVERY == 0] == steps
    if "monitor.steps(" not in SCRIPTS[style]:  # There, no number is passed to it.
        loss = run.scalars["train/loss"]
        assert loss.steps.tolist() == steps
        assert loss.values.tolist() == [np.float32(expected[step - 1]) for step in steps]


def test_there_are_twenty_styles() -> None:
    assert len(SCRIPTS) >= 20
