"""Pictures drawn by another process: the same ones, whatever becomes of it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import ncp_callbacks as ncp
from ncp_callbacks.plots import plot_feature_importance, to_png
from ncp_callbacks.plots.studio import DrawingError, Studio
from ncp_callbacks.plotting.drawer import Drawer

IMPORTANCE = np.random.default_rng(0).random((6, 3))


def other_plot(values: np.ndarray) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot(values)
    return figure


@pytest.fixture
def studio() -> object:
    studio = Studio()
    yield studio
    studio.close()


def test_the_same_picture(studio: Studio) -> None:
    for step in (1, 2):
        options = {"limit": 1.0, "step": step}
        png = studio.png("tag", plot_feature_importance, IMPORTANCE, options)
        assert png == Drawer().png("tag", plot_feature_importance, IMPORTANCE, options)
    assert studio._process.poll() is None


def test_functions_of_others_are_drawn_here(studio: Studio) -> None:
    assert studio.png("tag", other_plot, np.arange(3), {}) == to_png(other_plot(np.arange(3)))
    assert studio._process is None


def test_what_cannot_be_drawn_is_lost_alone(studio: Studio) -> None:
    with pytest.raises(DrawingError, match="Traceback"):
        studio.png("tag", plot_feature_importance, IMPORTANCE, {"no_such_option": 1})
    process = studio._process
    png = studio.png("tag", plot_feature_importance, IMPORTANCE, {})
    assert png == Drawer().png("tag", plot_feature_importance, IMPORTANCE, {})
    assert studio._process is process


def test_data_that_cannot_travel_is_drawn_here(studio: Studio) -> None:
    class Local(np.ndarray):
        """Can't be pickled, as its class has no name in its module."""

    values = IMPORTANCE.view(Local)
    png = studio.png("tag", plot_feature_importance, values, {})
    assert png == Drawer().png("tag", plot_feature_importance, IMPORTANCE, {})


def test_a_process_that_dies_is_done_without(
    studio: Studio, caplog: pytest.LogCaptureFixture
) -> None:
    studio.png("tag", plot_feature_importance, IMPORTANCE, {})
    process = studio._process
    process.kill()
    process.wait()
    with caplog.at_level(logging.INFO, "ncp_callbacks"):
        pngs = [studio.png("tag", plot_feature_importance, IMPORTANCE, {}) for _ in range(2)]
    assert pngs == [Drawer().png("tag", plot_feature_importance, IMPORTANCE, {})] * 2
    assert studio._process is None
    assert len([r for r in caplog.records if "drawn by a thread" in r.getMessage()]) == 1


@pytest.mark.parametrize("executable", ["", "/nowhere/python"])
def test_no_interpreter_to_start(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    studio = Studio()
    png = studio.png("tag", plot_feature_importance, IMPORTANCE, {})
    assert png == Drawer().png("tag", plot_feature_importance, IMPORTANCE, {})
    studio.close()


def test_it_ends_with_the_writer(tmp_path: Path) -> None:
    writer = ncp.TensorBoardWriter(tmp_path)
    writer.write(1, [ncp.Figure("a/b", plot_feature_importance, IMPORTANCE)])
    writer.flush()
    process = writer._pump._encoder._studio._process
    assert process.poll() is None
    # As Ctrl-C, were it to reach it.
    process.send_signal(signal.SIGINT)
    writer.write(2, [ncp.Figure("a/b", plot_feature_importance, IMPORTANCE)])
    writer.close()
    assert process.returncode == 0
    assert writer.tally.figures == 2


def test_one_that_is_stuck_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, studio: Studio
) -> None:
    before = studio.png("tag", plot_feature_importance, IMPORTANCE, {})
    monkeypatch.setattr("ncp_callbacks.plots.studio._LONGEST", 0.5)
    process = studio._process
    process.send_signal(signal.SIGSTOP)
    with caplog.at_level(logging.INFO, "ncp_callbacks"):
        assert studio.png("tag", plot_feature_importance, IMPORTANCE, {}) == before
    assert process.returncode == -signal.SIGKILL
    assert "drawn by a thread" in caplog.text


def test_one_that_is_stuck_does_not_outlive_the_writer(tmp_path: Path) -> None:
    writer = ncp.TensorBoardWriter(tmp_path, patience=1.0)
    writer.write(1, [ncp.Figure("a/b", plot_feature_importance, IMPORTANCE)])
    writer.flush()
    process = writer._pump._encoder._studio._process
    process.send_signal(signal.SIGSTOP)
    writer.write(2, [ncp.Figure("a/b", plot_feature_importance, IMPORTANCE)])
    since = time.monotonic()
    writer.close()
    assert time.monotonic() - since < 5.0
    assert isinstance(writer.failure, TimeoutError)
    assert process.wait(5.0) == -signal.SIGKILL


def test_it_ends_while_a_fork_holds_its_pipe(studio: Studio) -> None:
    studio.png("tag", plot_feature_importance, IMPORTANCE, {})
    process = studio._process
    held = os.dup(process.stdin.fileno())  # As a fork does, that of a data loader.
    try:
        studio.close()
    finally:
        os.close(held)
    assert process.returncode == 0


def test_a_frozen_application_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    studio = Studio()
    png = studio.png("tag", plot_feature_importance, IMPORTANCE, {})
    assert png == Drawer().png("tag", plot_feature_importance, IMPORTANCE, {})
    assert studio._process is None


_SCRIPT = """
import sys, time
import numpy as np, ncp_callbacks as ncp
from ncp_callbacks.plots import plot_feature_importance
writer = ncp.TensorBoardWriter(sys.argv[1])
writer.write(1, [ncp.Figure("a/b", plot_feature_importance, np.ones((4, 2)))])
writer.flush()
print(writer._pump._encoder._studio._process.pid, flush=True)
time.sleep(60)
"""


def test_it_ends_with_a_killed_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    with subprocess.Popen(
        [sys.executable, script, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    ) as process:
        pid = int(process.stdout.readline())
        os.kill(pid, 0)
        process.kill()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        # It may be left as a zombie where nobody takes care of orphans.
        status = Path(f"/proc/{pid}/status")
        if status.exists() and "State:\tZ" in status.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"the process that draws, {pid}, outlives the one it draws for")
