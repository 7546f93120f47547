"""What is said of a run: commands that work, numbers that are those of the log."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import subprocess
import sys
import urllib.parse
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure as Drawn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ncp_callbacks.console import (
    closing,
    in_notebook,
    link,
    open_command,
    opening,
    show,
    tensorboard_command,
)
from ncp_callbacks.progress import progress
from ncp_callbacks.records import Embedding, Figure, Histogram, Scalar, Text
from ncp_callbacks.writers import MemoryWriter, TensorBoardWriter
from ncp_callbacks.writers.base import Tally


def pinned(address: str) -> list[dict[str, Any]]:
    (value,) = urllib.parse.parse_qs(urllib.parse.urlsplit(address).query)["pinnedCards"]
    return json.loads(value)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["cfc-seed0", "a b/it's $HOME", "näch/ste"])
def test_the_command_opens_the_runs_beside_it_in_any_shell(tmp_path: Path, name: str) -> None:
    run = tmp_path / "runs" / name
    command = tensorboard_command(run, "printf '%s\\n'")
    lines = subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout
    assert lines.splitlines() == ["--logdir", str(run.parent), "--samples_per_plugin=images=200"]
    (card,) = pinned(link(run, ["a"], scalars=[]))
    assert Path(card["runId"].removeprefix("defaultExperimentId/")) == Path(run.name)
    assert not set(link(run, ["a"])) & set(" \"'<>{}[]`")


def test_a_run_in_the_current_directory_is_opened_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--logdir mine " in tensorboard_command("mine")
    assert "--logdir runs " in tensorboard_command(tmp_path / "runs" / "mine")
    assert pinned(link("mine", ["p"]))[0]["runId"] == "defaultExperimentId/."
    home = os.path.expanduser("~/mine")
    assert shlex.split(tensorboard_command(home))[2] == home


def test_the_link_pins_few_cards() -> None:
    cards = pinned(link("runs/x", [f"p{i}" for i in range(20)], scalars=["train/loss", "val/loss"]))
    assert [card["tag"] for card in cards] == ["p0", "p1", "p2", "p3", "train/loss", "val/loss"]
    assert {card["plugin"] for card in cards} == {"scalars", "images"}


def test_opening() -> None:
    text = opening("runs/x", ["p"], notebook=False, program="tensorboard")
    first, short, command = text.splitlines()
    assert first.endswith("logging to runs/x")
    assert short.split(":  ")[1] == open_command("runs/x")
    assert shlex.split(open_command("runs/x"))[-2:] == ["open", "runs"]
    assert command.split(":       ")[1] == tensorboard_command("runs/x")
    assert opening(None) == ""


def test_opening_where_tensorboard_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"{sys.executable} -m tensorboard.main --logdir" in opening("runs/x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'ncp-callbacks[viewer]'" in opening("runs/x")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (None, False),
        (SimpleNamespace(), False),
        (SimpleNamespace(get_ipython=lambda: None), False),
        (SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None)), False),
        (SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object())), True),
    ],
    ids=["no IPython", "half imported", "imported", "in a terminal", "notebook"],
)
def test_in_a_notebook_magics_are_named(
    module: Any, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is None:
        monkeypatch.delitem(sys.modules, "IPython", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "IPython", module)
    assert in_notebook() is expected
    text = opening("runs/some run/x", program="tensorboard")
    magic = [line.strip() for line in text.splitlines() if line.strip().startswith("%")]
    wanted = "%tensorboard --logdir 'runs/some run' --samples_per_plugin=images=200"
    assert magic == (["%load_ext tensorboard", wanted] if expected else [])


def test_ipython_is_not_imported() -> None:
    code = (
        "import sys; from ncp_callbacks.console import *; show(opening('runs/x'), verbose=True);"
        "assert not {'IPython', 'tensorboard', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("ncp_callbacks: logging to runs/x\n")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
@pytest.mark.parametrize("verbose", [True, False, None])
def test_text_is_printed_where_it_is_read_and_not_twice(
    verbose: bool | None,
    level: int,
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(level, logger="ncp_callbacks")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    show("some\ntext", verbose=verbose)
    show("", verbose=True)
    logged = level == logging.INFO
    assert caplog.messages == ["some\ntext"] * logged
    printed = verbose if verbose is not None else terminal and not logged
    out, err = capsys.readouterr()
    assert (out, err) == ("", "some\ntext\n" * printed)


def test_a_notebook_gets_plain_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.delitem(sys.modules, "IPython.display", raising=False)
    show("text")
    assert capsys.readouterr() == ("text\n", "")


def test_a_notebook_shows_links_and_no_markup_of_the_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell, shown = SimpleNamespace(kernel=object()), []
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    display = SimpleNamespace(display=lambda data, raw: shown.append((data, raw)))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    text = opening("runs/<b>/x", ["hidden/pca"], program="tensorboard")
    show(text)
    assert capsys.readouterr() == ("", "")
    ((data, raw),) = shown
    assert raw
    assert data["text/plain"] == text
    page = ElementTree.fromstring(data["text/html"])
    assert "".join(page.itertext()) == text
    (anchor,) = page.iter("a")
    assert anchor.get("href") == anchor.text == link("runs/<b>/x", ["hidden/pca"])


COUNTS = st.integers(0, 10**6)


@given(st.builds(Tally, *[COUNTS] * 6), COUNTS, COUNTS, COUNTS)
def test_closing_leaves_nothing_out(tally: Tally, steps: int, snapshots: int, notes: int) -> None:
    text = closing("runs/x", tally, steps=steps, snapshots=snapshots, notes=notes)
    head, *rest = text.splitlines()
    for number in (steps, snapshots, tally.records, tally.figures):
        assert f" {number:,} " in head
    lost = tally.dropped_figures + tally.dropped_records + tally.failed_records
    assert any("lost" in line for line in rest) == (lost > 0)
    assert any("monitor/notes" in line for line in rest) == (notes > 0)
    assert any("Projector" in line for line in rest) == (tally.embeddings > 0)
    for number in (*tally[2:], notes):
        assert number == 0 or f" {number:,} " in "\n".join(rest)


def test_closing_says_what_it_cost_and_why_it_stopped() -> None:
    text = closing("x", Tally(), steps=10, snapshots=2, loop_seconds=0.5, seconds=20.0)
    assert "2.5 % of the loop's time, 0.5 of 20.0 s" in text
    assert "STOPPED" not in text
    full = OSError(28, "No space left on device")
    assert "No space left" in closing(None, Tally(), steps=10, snapshots=2, failure=full)
    assert "%" not in closing("x", Tally(), steps=10, snapshots=0, seconds=20.0)


def empty(data: Any) -> Drawn:
    return Drawn((1, 1))


def broken(data: Any) -> Drawn:
    raise ZeroDivisionError


def test_the_tally_is_that_of_the_log(tmp_path: Path) -> None:
    writer, memory = TensorBoardWriter(tmp_path), MemoryWriter()
    edges = np.linspace(0, 1, 5)
    for step in range(1, 6):
        records = [
            Scalar("s", step, ci=(0, step)),
            Histogram("h", np.full(3, 0.5), edges),
            Figure("f", empty, None),
        ]
        writer.write(step, records)
        memory.write(step, records)
    memory.write(6, [Embedding("e", np.zeros((2, 2)))])
    last = [Embedding("e", np.zeros((2, 2))), Figure("g", broken, None), Text("t", "text")]
    writer.write(6, last)
    writer.close()
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    count = {tag: len(accumulator.Tensors(tag)) for tag in accumulator.Tags()["tensors"]}
    points = len(accumulator.Scalars("s"))
    assert writer.tally == Tally(
        records=points + count["h"] + count["t"],
        figures=count["f"],
        embeddings=len(list((tmp_path / "projector").iterdir())),
        failed_records=1,
    )
    assert memory.tally == Tally(records=10, figures=5, embeddings=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress([1, 2, 3], "reading runs", "run")) == [1, 2, 3]
    shown = sys.stderr.getvalue()
    assert "reading runs" in shown
    assert "0/3" in shown
    # It vanishes, so that the training loop's own bar is all there is.
    assert shown.rsplit("\r", 1)[-1].strip() == ""


def test_no_bar_for_little_or_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, items in ((Terminal(), [1, 2]), (io.StringIO(), [1, 2, 3, 4])):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress(items, "reading runs", "run")) == items
        assert stream.getvalue() == ""


def test_no_bar_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(progress([1, 2, 3], "reading runs", "run")) == [1, 2, 3]
    assert sys.stderr.getvalue() == ""
