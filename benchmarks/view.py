"""Measure how fast the interactive page opens and moves with many long runs, and what it sends.

    python benchmarks/view.py             # 100 runs of 1,000 snapshots; stores view.csv
    python benchmarks/view.py --quick     # does it run? (stores nothing)
    python benchmarks/view.py --table     # the stored figures again

The logs are made up, by the package's own writer: 120 scalars with CIs, pictures of 60 KB in all,
findings, and the arrays of a wired network with 32 units on 16 sequences of 48 time steps with 8
features. Four runs are written; the others are links to their files, which are read as files of
their own. They take 500 MB, which are deleted at the end.

A browser shows the page of ``ncp-callbacks view``. A tick is the time from a move of the slider to
the end of the drawing of what can be seen, with four runs, once the arrays are here. It is measured
with each view in sight, and that of the slowest view is stored. The views out of sight are drawn
after it. The exit status is 1 if a budget is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from processes import resident_mb

import ncp_callbacks as ncp

STORED = Path(__file__).parent / "view.csv"
FIELDS = ("what", "unit", "value", "budget", "runs", "snapshots", "measured")
STEPS, FEATURES, UNITS, SEQUENCES, PLACES = 48, 8, 32, 16, 64
WRITTEN, SHOWN, SCALARS = 4, 4, 120
PICTURES, PICTURE_BYTES = 6, 10_000
# Moves the slider, and waits until what it draws is drawn.
TICKS = """async places => {
  const slider = document.querySelector('input[type=range]'), took = [];
  for (const place of places) {
    await new Promise(requestAnimationFrame);
    const start = performance.now();
    slider.value = String(place);
    slider.dispatchEvent(new Event('input'));
    await new Promise(requestAnimationFrame);
    took.push(performance.now() - start);
  }
  return took;
}"""

# Moves the slider, and waits until all views are drawn, those out of sight, too.
REST = """async place => {
  const slider = document.querySelector('input[type=range]'), start = performance.now();
  slider.value = String(place);
  slider.dispatchEvent(new Event('input'));
  await new Promise(requestAnimationFrame);
  while (document.querySelector('main').ariaBusy === 'true') await new Promise(setTimeout);
  return performance.now() - start;
}"""


class Measured(NamedTuple):
    """Hold a number; the budget is None where there is none."""

    what: str
    unit: str
    value: float
    budget: float | None = None


def records(rng: np.random.Generator, png: bytes) -> Iterator[Any]:
    """Yield the records of a snapshot."""
    state, wired = {"callback": "hidden", "cell": "rnn"}, {"callback": "wiring", "cell": "rnn"}
    names = [f"feature {i}" for i in range(FEATURES)]
    of = {"callback": "attribution", "target": "prediction", "feature_names": names}
    shares = rng.dirichlet(np.ones(FEATURES))
    words = {unit: f"high when feature 1 > {rng.random():.3f}; low when feature 2 ≤ 0.2 and "
             "feature 3 (last 3 steps) > 1.25" for unit in range(UNITS)}  # fmt: skip
    yield ncp.Scalar("val/loss", rng.random())
    for i in range(SCALARS):
        value, place = rng.random(), "headline" if i < 4 else "data"
        yield ncp.Scalar(f"a{i % 10}/number_{i}", value, ci=(value - 0.1, value + 0.1), place=place)
    finding = {"severity": "info", "sentence": "A sentence on the model. " * 4, "action": "None."}
    yield ncp.Data("_ncp/findings", json.dumps([finding] * 12))
    for i in range(PICTURES):
        yield ncp.Picture(f"a{i}/picture", png)
    for tag, kind, shape, axes, about in (
        ("attribution_strength", "attribution", (STEPS, FEATURES), ("time step", "feature"), of),
        ("attribution_signed", "attribution signed", (STEPS, FEATURES), ("time step", "feature"),
         of),
        ("time_delta_curve", "time curve", (3, 5), ("row", "scale"), {"callback": "time_delta"}),
        ("time_delta_by_step", "time by step", (STEPS,), ("time step",),
         {"callback": "time_delta"}),
        ("hidden_trajectory", "trajectory", (SEQUENCES, STEPS, 3),
         ("sequence", "time step", "axis"), state),
        ("hidden_sample", "state sample", (PLACES, UNITS), ("state", "unit"), state),
        ("hidden_units", "units", (STEPS, UNITS), ("time step", "unit"), state),
        ("ablation_change", "unit values", (UNITS,), ("unit",), state),
        ("wiring_share", "wiring share", (FEATURES + UNITS, UNITS), ("source", "neuron"), wired),
        ("wiring_current", "wiring current", (FEATURES + UNITS, UNITS), ("source", "neuron"),
         wired),
    ):  # fmt: skip
        values = rng.random(shape)
        if kind.startswith("wiring"):
            values *= np.random.default_rng(1).random(shape) < 0.2  # As sparse as wirings are.
        yield ncp.Array(f"_ncp/{tag}", values, kind=kind, axes=axes, about=about)
    yield ncp.Array("_ncp/attribution_shares", np.stack([shares, shares / 2, 2 * shares], axis=1),
                    kind="shares", axes=("feature", "share, low, high"), about=of)  # fmt: skip
    text = np.frombuffer(json.dumps(words).encode(), np.uint8).astype(np.float32)
    yield ncp.Array("_ncp/meanings_words", text, kind="unit words", axes=("byte",), about=state)


def write_run(folder: Path, seed: int, snapshots: int) -> None:
    """Write a run with a snapshot every 10 steps."""
    rng = np.random.default_rng(seed)
    png = b"\x89PNG\r\n\x1a\n" + rng.bytes(PICTURE_BYTES)
    with closing(ncp.TensorBoardWriter(folder)) as writer:
        for step in range(10, 10 * snapshots + 1, 10):
            writer.write(step, list(records(rng, png)))
            if step % 1000 == 0:
                writer.flush()  # Its queue is bounded.


def write_logs(where: Path, runs: int, snapshots: int) -> None:
    """Write four runs, and make links to their files for the others."""
    for number in range(runs):
        folder = where / f"run-{number:03}"
        if number < WRITTEN:
            write_run(folder, number, snapshots)
            continue
        folder.mkdir()
        for file in (where / f"run-{number % WRITTEN:03}").glob("*tfevents*"):
            os.link(file, folder / file.name)


@contextmanager
def served(where: Path) -> Iterator[tuple[int, str, float]]:
    """Serve the page; yield the server's process, its address, and when it was started."""
    command = [sys.executable, "-m", "ncp_callbacks", "view", str(where), "--no-browser"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            yield process.pid, found[0], start
        finally:
            process.terminate()


def asked(address: str, name: str, **arguments: str) -> bytes:
    """Return the answer of the server."""
    with urllib.request.urlopen(f"{address}{name}?{urllib.parse.urlencode(arguments)}") as found:
        answer: bytes = found.read()
    return answer


def of_server(where: Path) -> Iterator[Measured]:
    """Measure the server alone: opening, memory, and what a poll sends."""
    with served(where) as (pid, address, start):
        names = json.loads(asked(address, "runs"))["runs"]
        yield Measured("server: list of runs", "s", time.perf_counter() - start, 3)
        versions = {run: json.loads(asked(address, "run", run=run))["version"] for run in names[:2]}
        yield Measured("server: two runs read", "s", time.perf_counter() - start, 3)
        yield Measured("server: memory, two runs", "MB", resident_mb(pid), 300)
        idle = len(asked(address, "runs")) + sum(
            len(asked(address, "run", run=run, version=version))
            for run, version in versions.items()
        )
        yield Measured("poll of two runs, nothing new", "bytes", idle)
        run = names[0]
        with closing(ncp.TensorBoardWriter(where / run, first_step=10**9)) as writer:
            rng = np.random.default_rng(0)
            writer.write(10**9, list(records(rng, b"\x89PNG\r\n\x1a\n" + rng.bytes(99))))
        more = asked(address, "run", run=run, version=versions[run])
        assert json.loads(more)["since"] == versions[run]
        yield Measured("poll of a run, one new snapshot", "bytes", len(more))
        whole = len(asked(address, "run", run=run))
        yield Measured("a run as a whole", "bytes", whole)
        for name in names:
            asked(address, "summary", run=name)
        yield Measured("server: memory, all runs in the table", "MB", resident_mb(pid), 300)


def of_browser(where: Path, snapshots: int) -> Iterator[Measured]:
    """Measure the page in a browser: opening, and a tick of the slider."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as started, served(where) as (_, address, start):
        browser = started.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--no-proxy-server"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        launched = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("section[aria-label='Shares over training'] canvas")
        drawn = time.perf_counter()
        yield Measured("browser: first drawn page", "s", drawn - launched, 3)
        yield Measured("start of the server to the first drawn page", "s", drawn - start)
        for number in range(2, SHOWN):
            page.get_by_label(f"run-{number:03}", exact=True).check()
        page.wait_for_timeout(3000)
        middle = snapshots // 2
        places = [*range(middle, min(middle + 40, snapshots - 1))]
        ticks = {}
        for view in page.locator("main > section").all():
            if view.is_visible():
                view.evaluate("element => element.scrollIntoView()")
                page.evaluate(TICKS, places)
                page.wait_for_load_state("networkidle")
                ticks[view.get_attribute("aria-label")] = page.evaluate(TICKS, places)
        slowest = max(ticks, key=lambda title: statistics.median(ticks[title]))
        print({title: round(statistics.median(took)) for title, took in ticks.items()}, flush=True)
        yield Measured("tick of the slider, four runs, median", "ms",
                       statistics.median(ticks[slowest]), 100)  # fmt: skip
        longest = max(max(took) for took in ticks.values())
        yield Measured("tick of the slider, four runs, longest", "ms", longest)
        rest = page.evaluate(REST, middle)
        yield Measured("move of the slider to the drawing of all views", "ms", rest)
        browser.close()


def measure(runs: int, snapshots: int) -> Iterator[Measured]:
    """Write logs, measure, and delete them."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        write_logs(where, runs, snapshots)
        yield from of_browser(where, snapshots)
        yield from of_server(where)


def rows(measured: list[Measured], runs: int, snapshots: int) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    size = {"runs": runs, "snapshots": snapshots, "measured": date.today().isoformat()}
    return [
        {"what": m.what, "unit": m.unit, "value": f"{m.value:.4g}",
         "budget": "" if m.budget is None else f"{m.budget:g}", **size}
        for m in measured
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few short runs; stores nothing")
    parser.add_argument("--table", action="store_true", help="print the stored figures")
    options = parser.parse_args()
    if options.table:
        print(STORED.read_text(encoding="utf-8"), end="")
        return 0
    size = (6, 50) if options.quick else (100, 1000)
    found = []
    for measured in measure(*size):
        print(f"{measured.what}: {measured.value:.4g} {measured.unit}", flush=True)
        found.append(measured)
    if not options.quick:
        with STORED.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows(found, *size))
    return int(any(m.budget is not None and m.value > m.budget for m in found))


if __name__ == "__main__":
    sys.exit(main())
