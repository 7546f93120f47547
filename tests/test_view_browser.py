"""The interactive page in a real browser: its own server, TensorBoard's tab, and one file."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from boards import Board
from PIL import Image
from scipy.linalg import orthogonal_procrustes
from view_logs import DESCRIBED, FEATURES, FINDING, F, H, T, arrays, write_run

import ncp_callbacks as ncp
from ncp_callbacks.cli import main
from ncp_callbacks.runs import Run, read_run
from ncp_callbacks.stats.distances import debiased_cka
from ncp_callbacks.view.index import LogIndex
from ncp_callbacks.view.page import write_page
from ncp_callbacks.view.serve import make_server

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright, of the dev extra: nothing is seen in a browser"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium on the PATH: nothing is seen in a browser"
)
RUNS = ["a/s1", "a/s2", "b/s1", "b/s10"]
LEFT, CELL = 104, 26


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(RUNS):
        other = {"held_out": "other"} if name == "b/s10" else {}
        names = [FEATURES[2], *FEATURES[:2], FEATURES[3]] if name == "a/s2" else FEATURES
        write_run(where / name, seed, feature_names=names, **other)
    return where


@pytest.fixture(scope="module")
def runs(log_dir: Path) -> dict[str, Run]:
    return {name: read_run(log_dir / name) for name in RUNS}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--no-proxy-server"]
        )
        yield opened
        opened.close()


@contextlib.contextmanager
def opened_page(browser: Any, **options: Any) -> Iterator[Any]:
    """A page on which nothing may go wrong, and from which nobody else may be asked."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, **options)
    context.set_default_timeout(60_000)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: m.type == "error" and wrong.append(m.text))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on(
        "request",
        lambda request: (
            re.match(r"(http://127\.0\.0\.1:|data:|blob:|file:)", request.url)
            or wrong.append(request.url)
        ),
    )
    yield page
    assert wrong == []
    context.close()


@contextlib.contextmanager
def served(log_dir: Path, source: Callable[[Path], LogIndex] = LogIndex) -> Iterator[str]:
    server = make_server(source(log_dir))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def address(log_dir: Path) -> Iterator[str]:
    with served(log_dir) as found:
        yield found


@pytest.fixture(scope="module")
def board(log_dir: Path) -> Iterator[Board]:
    server = Board(log_dir, fast=True)
    server.wait(lambda: server.get("ncp_callbacks/runs")["runs"])
    yield server
    server.close()


def ready(frame: Any) -> Any:
    """Return the frame when it shows a snapshot and, as after a click, gets the keys."""
    frame.wait_for_selector(".ncp figure canvas")
    frame.locator("header output", has_text="step ").click()
    return settled(frame)


def settled(frame: Any) -> Any:
    """Return the frame when all is drawn: elements then stay until something is done or logged."""
    frame.wait_for_selector(".ncp main[aria-busy=false]")
    return frame


def in_page(page: Any, browser_address: str) -> Any:
    page.goto(browser_address)
    return ready(page.main_frame)


def in_board(page: Any, board: Board) -> Any:
    page.goto(f"{board.url}/#ncp_callbacks")
    return ready(page.wait_for_selector("iframe[src*='ncp_callbacks']").content_frame())


@pytest.fixture(params=["server", "tensorboard", "file", "notebook"])
def view(request: pytest.FixtureRequest, browser: Any, log_dir: Path, tmp_path: Path) -> Any:
    """The page in each of its hosts, with the page that the browser shows it in."""
    with opened_page(browser) as page:
        if request.param == "tensorboard":
            yield page, in_board(page, request.getfixturevalue("board"))
        elif request.param == "server":
            yield page, in_page(page, request.getfixturevalue("address"))
        elif request.param == "notebook":
            path, shown = tmp_path / "notebook.html", ncp.view_runs(log_dir, height=950)
            path.write_text(f"<!doctype html><p>In [1]:</p>{shown._repr_html_()}", "utf-8")
            page.goto(path.as_uri())
            yield page, ready(page.wait_for_selector("iframe").content_frame())
        else:
            path = write_page(LogIndex(log_dir), tmp_path / "page.html")
            yield page, in_page(page, path.as_uri())


def section(frame: Any, title: str) -> Any:
    return settled(frame).locator(f"section[aria-label='{title}']")


MAPS, SHARES = "What the prediction rests on", "Shares over training"


def cell_text(page: Any, frame: Any, picture: int, feature: int, step: int) -> str:
    """What is told of a cell of a map."""
    canvas = section(frame, MAPS).locator("canvas").nth(picture)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    right = 84 if "difference" not in canvas.get_attribute("aria-label") else 12
    x = box["x"] + LEFT + (step + 0.5) * (box["width"] - LEFT - right) / T
    page.mouse.move(x, box["y"] + (feature + 0.5) * CELL)
    frame.wait_for_selector(".ncp .tip:not([hidden])")
    return str(frame.locator(".ncp .tip").inner_text())


def numbers(text: str) -> list[float]:
    return [float(line.rsplit(": ", 1)[1]) for line in text.splitlines()[1:]]


def wait_until(page: Any, ready: Callable[[], bool]) -> None:
    for _ in range(300):
        if ready():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not come to pass")


def output(frame: Any) -> str:
    return str(frame.locator("header output").inner_text())


def test_hovered_numbers_are_the_logged_ones(view: Any, runs: dict[str, Run]) -> None:
    page, frame = view
    first, second = (runs[name].arrays["_ncp/attribution_strength"] for name in RUNS[:2])
    order = [1, 2, 0, 3]  # The columns of the second run, in the order of the first's names.
    for presses, step in ((0, 30), (2, 10)):
        for _ in range(presses):
            frame.locator("body").press("ArrowLeft")
        wait_until(page, lambda step=step: output(frame).startswith(f"step {step} "))
        wait_until(page, lambda: section(frame, MAPS).locator("canvas").count() == 3)
        text = cell_text(page, frame, 0, 1, 4)
        assert text.splitlines()[0] == f"{FEATURES[1]}, time step 4"
        a, b = first[step][4, 1], second[step][4, order[1]]
        np.testing.assert_allclose(numbers(text), [a, b, b - a], rtol=6e-3, atol=1e-6)


def test_runs_of_other_batches_are_not_subtracted(view: Any) -> None:
    _, frame = view
    frame.get_by_label("b/s10", exact=True).check()
    told = section(frame, MAPS).get_by_text("Not subtracted: they were made on other held-out")
    told.wait_for()
    assert told.count() == 1
    assert (
        "its own axes: other held-out sequences"
        in section(frame, "Where the hidden state goes").inner_text()
    )


def test_a_pinned_step_is_compared_with(view: Any, runs: dict[str, Run]) -> None:
    page, frame = view
    arrays = runs[RUNS[0]].arrays["_ncp/attribution_strength"]
    frame.locator("body").press("ArrowLeft")
    wait_until(page, lambda: output(frame).startswith("step 20 "))
    frame.locator("body").press("s")
    frame.locator("body").press("ArrowRight")
    frame.get_by_text("pinned 20").wait_for()
    wait_until(page, lambda: section(frame, MAPS).locator("canvas").count() == 4)
    found = numbers(cell_text(page, frame, 2, 0, 6))
    np.testing.assert_allclose(found[2], arrays[30][6, 0] - arrays[20][6, 0], rtol=6e-3, atol=1e-6)


def test_sides_are_averaged(view: Any, runs: dict[str, Run]) -> None:
    page, frame = view
    frame.get_by_label("b/s1", exact=True).check()
    for name in ("a/s2", "b/s1"):
        frame.get_by_label(f"{name} is on side A").click()
    frame.get_by_text("B (2 runs)").first.wait_for()
    wait_until(page, lambda: section(frame, MAPS).locator("canvas").count() == 3)
    found = cell_text(page, frame, 1, 0, 3)
    of_b = [
        runs["a/s2"].arrays["_ncp/attribution_strength"][30][3, 0],
        runs["b/s1"].arrays["_ncp/attribution_strength"][30][3, 2],
    ]
    name = found.splitlines()[0].split(",")[0]
    # The first run of a side gives the order of the features.
    assert name == FEATURES[2]
    shown = float(re.search(r"B \(2 runs\): (\S+)", found)[1])  # type: ignore[index]
    np.testing.assert_allclose(shown, np.mean(of_b), rtol=6e-3)


def test_findings_and_the_table_say_what_was_logged(view: Any, runs: dict[str, Run]) -> None:
    page, frame = view
    assert (
        "heart rate has 54 % [49, 58] of the attribution."
        in section(frame, "Findings").inner_text()
    )
    table = section(frame, "Runs")
    everything = table.get_by_role("button", name="show all runs")
    if everything.is_visible():
        everything.click()
    table.get_by_role("button", name="b/s10").wait_for()
    heading = table.get_by_role("button", name="val/loss")
    heading.click()
    losses = {name: run.scalars["val/loss"].values[-1] for name, run in runs.items()}
    by_loss = sorted(RUNS, key=losses.__getitem__)
    rows = table.locator("tbody tr td:first-child")
    wait_until(page, lambda: rows.all_inner_texts() == by_loss)
    heading.click()
    wait_until(page, lambda: rows.all_inner_texts() == by_loss[::-1])
    shown = [float(text) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]
    np.testing.assert_allclose(shown, [losses[name] for name in by_loss[::-1]], rtol=6e-3)


def test_a_click_on_the_shares_goes_to_a_step(view: Any) -> None:
    page, frame = view
    canvas = section(frame, "Shares over training").locator("canvas").first
    box = canvas.bounding_box()
    width = box["width"]
    canvas.click(position={"x": 52 + (width - 52 - 118) * 10 / 30, "y": 60})
    wait_until(page, lambda: output(frame).startswith("step 10 "))


def test_numbers_and_pictures_are_saved(view: Any, runs: dict[str, Run]) -> None:
    page, frame = view
    with page.expect_download() as table:
        section(frame, MAPS).get_by_role("button", name="CSV").click()
    lines = Path(table.value.path()).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "run,step,time step,feature,value"
    assert len(lines) == 1 + 2 * T * F
    run, step, t, feature, value = lines[1 + 2 * F + 2].split(",")
    assert (run, step, t, feature) == (RUNS[0], "30", "2", FEATURES[2])
    logged = runs[RUNS[0]].arrays["_ncp/attribution_strength"][30][2, 2]
    assert float(value) == pytest.approx(logged, rel=1e-6)
    # All canvases of a view are in its picture: those beside and those below one another.
    for title in (MAPS, SHARES):
        boxes = [c.bounding_box() for c in section(frame, title).locator("canvas").all()]
        rows = len({round(box["y"]) for box in boxes})
        with page.expect_download() as picture:
            section(frame, title).get_by_role("button", name="PNG").click()
        with Image.open(picture.value.path()) as saved:
            size = saved.size
        assert saved.format == "PNG"
        assert size[0] >= sum(box["width"] for box in boxes) / rows
        assert size[1] >= sum(box["height"] for box in boxes) / (len(boxes) / rows)
    assert not section(frame, "Runs").get_by_role("button", name="PNG").is_visible()


def told_at(page: Any, frame: Any, title: str, x: float, y: float) -> str:
    """What is told of a place of the first picture of a section, which stays when it is redrawn."""
    section(frame, title).scroll_into_view_if_needed()
    box = section(frame, title).locator("canvas").first.bounding_box()
    page.mouse.move(box["x"] + x, box["y"] + y)
    frame.wait_for_selector(".ncp .tip:not([hidden])")
    return str(frame.locator(".ncp .tip").inner_text())


def test_a_unit_tells_what_it_codes_for_at_the_shown_step(view: Any, runs: dict[str, Run]) -> None:
    page, frame = view
    logged = runs[RUNS[0]].arrays["_ncp/hidden_words"]
    for step in (30, 20):
        wait_until(page, lambda step=step: output(frame).startswith(f"step {step} "))
        words = json.loads(logged[step].astype(np.uint8).tobytes())
        assert set(words) == {str(unit) for unit in DESCRIBED}
        wait_until(page, lambda: "☂" in every_row(page, frame))
        for row in every_row(page, frame).split("unit ")[1:]:
            unit = row.partition(",")[0]
            told = " ".join(row.split("\n")[1:])
            assert told.strip() == words.get(unit, "")
        # The motor neuron is the last unit, alone at the right of the graph.
        graph = section(frame, "The wired network").locator("canvas").first.bounding_box()
        x, y = graph["width"] - 96, 22 + (graph["height"] - 44) / 2
        told = told_at(page, frame, "The wired network", x, y)
        assert told.splitlines()[0] == f"motor {H - 1}"
        assert words[str(H - 1)] in told.replace(";\n", "; ")
        frame.locator("body").press("ArrowLeft")


def every_row(page: Any, frame: Any) -> str:
    return "\n".join(told_at(page, frame, "Units", 60, 12 * (row + 0.5)) for row in range(H))


# ---- single hosts


WATCH_BANDS = """
const of = CanvasRenderingContext2D.prototype, {beginPath, lineTo, fill} = of;
of.beginPath = function () { this.points = []; beginPath.call(this); };
of.lineTo = function (x, y) { this.points?.push([x, y]); lineTo.call(this, x, y); };
of.fill = function (...of) {
  if (Math.abs(this.globalAlpha - 0.18) < 1e-6) (this.canvas.bands ??= []).push(this.points);
  fill.apply(this, of);
};
"""


def test_drawn_cis_of_shares_are_the_logged_ones(
    browser: Any, address: str, runs: dict[str, Run]
) -> None:
    with opened_page(browser) as page:
        page.add_init_script(WATCH_BANDS)
        frame = in_page(page, address)
        canvas = section(frame, "Shares over training").locator("canvas").first
        width, bands = (
            canvas.bounding_box()["width"],
            np.array(canvas.evaluate("node => node.bands")),
        )
        assert bands.shape == (F, 6, 2)
        shown = [
            np.stack([runs[name].arrays["_ncp/attribution_shares"][step] for step in (10, 20, 30)])
            for name in RUNS[:2]
        ]
        table, most = shown[0], min(1, 1.08 * np.max(shown, axis=(0, 1, 2))[2])
        x = 52 + (width - 52 - 118) * np.array([10, 20, 30]) / 30
        # The largest share of the last snapshot is drawn first; each band goes there and back.
        for band, feature in zip(bands, np.argsort(-table[-1, :, 0]), strict=True):
            ends = 8 + 156 * (1 - table[:, feature, 1:] / most)
            np.testing.assert_allclose(band[:, 0], [*x, *x[::-1]], rtol=1e-6)
            np.testing.assert_allclose(band[:, 1], [*ends[:, 0], *ends[::-1, 1]], rtol=1e-5)


def test_drawn_cis_of_elapsed_time_are_the_logged_ones(
    browser: Any, address: str, runs: dict[str, Run]
) -> None:
    with opened_page(browser) as page:
        page.add_init_script(WATCH_BANDS)
        frame = in_page(page, address)
        canvas = section(frame, "When time runs faster or slower").locator("canvas").first
        assert canvas.evaluate("node => node.bands.length") == 2
        bands = np.array(canvas.evaluate("node => node.bands"))
        box = canvas.bounding_box()
        logged = [runs[name].arrays["_ncp/time_delta_curve"] for name in RUNS[:2]]
        largest = max(curve[4].max() for steps in logged for curve in steps.values())
        powers = 10.0 ** np.arange(-9, 9)
        limit = min(m for m in np.outer([1, 2, 5], powers).ravel() if m >= 0.999 * largest)
        x = 66 + (box["width"] - 86) * np.array([0, 0.5, 1])  # 0.5, 1 and 2 times, by logarithm.
        for band, steps in zip(bands, logged, strict=True):
            low, high = 8 + (box["height"] - 40) * (1 - steps[30][3:] / limit)
            np.testing.assert_allclose(band[:, 0], [*x, *x[::-1]], rtol=1e-6)
            np.testing.assert_allclose(band[:, 1], [*low, *high[::-1]], rtol=1e-5)


def test_an_address_shows_the_same_again(browser: Any, address: str) -> None:
    with opened_page(browser) as page:
        frame = in_page(page, address)
        frame.get_by_label("b/s1", exact=True).check()
        frame.locator("body").press("ArrowLeft")
        wait_until(page, lambda: "%22step%22%3A20" in page.url and "b%2Fs1" in page.url)
        link = page.url
    with opened_page(browser) as page:
        frame = in_page(page, link)
        wait_until(page, lambda: output(frame).startswith("step 20 "))
        wait_until(page, lambda: frame.get_by_label("b/s1", exact=True).is_checked())


def test_a_comparison_leads_to_the_page_of_its_sides(
    browser: Any, log_dir: Path, tmp_path: Path
) -> None:
    sides = [f"A={log_dir}/a/s*", f"B={log_dir}/b/s1"]
    assert main(["compare", *sides, "--out", str(tmp_path)]) == 0
    with opened_page(browser) as page:
        page.goto((tmp_path / "compare.html").as_uri())
        page.get_by_role("link", name="Open the interactive page of these runs").click()
        ready(page.main_frame)
        section(page, MAPS).get_by_text("A (2 runs)").first.wait_for()
        # Both sides, and the difference.
        wait_until(page, lambda: section(page, MAPS).locator("canvas").count() == 3)


def appended(folder: Path, step: int) -> None:
    """Log one more snapshot of a run."""
    with contextlib.closing(ncp.TensorBoardWriter(folder, first_step=step)) as log:
        log.write(step, arrays(np.random.default_rng(step)))


def test_live_runs_are_followed_and_hidden_pages_ask_nobody(browser: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0, steps=(1, 2))
    server = make_server(LogIndex(tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with opened_page(browser) as page:
            frame = in_page(page, f"http://127.0.0.1:{server.server_port}/")
            assert output(frame) == "step 2 · snapshot 2 of 2"
            appended(tmp_path / "run", 3)
            wait_until(page, lambda: output(frame) == "step 3 · snapshot 3 of 3")
            page.evaluate(
                "Object.defineProperty(document, 'hidden', {get: () => true, configurable: true})"
            )
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))

            def nobody_is_asked_for_longer_than_the_poll() -> bool:
                asked.clear()
                page.wait_for_timeout(5500)
                return asked == []

            # The new step's arrays may still be asked for; a page that polls asks in every window.
            assert any(nobody_is_asked_for_longer_than_the_poll() for _ in range(4)), asked
    finally:
        server.shutdown()
        server.server_close()


def test_the_tab_of_tensorboard_follows_a_run_and_rests_behind_another_tab(
    browser: Any, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", 0, steps=(1, 2))
    board = Board(tmp_path, fast=True)
    try:
        board.wait(lambda: board.get("ncp_callbacks/runs")["runs"])
        with opened_page(browser) as page:
            frame = in_board(page, board)
            assert output(frame) == "step 2 · snapshot 2 of 2"
            appended(tmp_path / "run", 3)
            wait_until(page, lambda: output(frame) == "step 3 · snapshot 3 of 3")
            asked: list[str] = []
            page.on("request", lambda r: "/ncp_callbacks/" in r.url and asked.append(r.url))

            def is_asked() -> bool:
                asked.clear()
                page.wait_for_timeout(5500)  # A page that polls does so within this time.
                return bool(asked)

            page.get_by_role("tab", name="Time Series").click()
            wait_until(page, lambda: not page.locator("iframe").first.is_visible())
            # What is new may still be asked for.
            assert any(not is_asked() for _ in range(4))
            appended(tmp_path / "run", 4)
            assert not is_asked()
            page.get_by_role("tab", name="Interpretability").click()
            wait_until(page, lambda: output(frame) == "step 4 · snapshot 4 of 4")
            # The button of TensorBoard that loads everything anew leaves the page as it is.
            page.locator("app-header-reload button").click()
            page.wait_for_timeout(1000)
            assert output(settled(frame)) == "step 4 · snapshot 4 of 4"
    finally:
        board.close()


@pytest.mark.parametrize(
    "module", ["ncp_callbacks.view.api", "ncp_callbacks.view.static_files", "crc32c"]
)
def test_tensorboard_starts_and_the_tab_says_what_is_missing(
    module: str, browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs" / "run", 0, steps=(1, 2))
    (tmp_path / "sitecustomize.py").write_text(f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ImportError("this module is broken", name=name)

sys.meta_path.insert(0, Missing())
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    board = Board(tmp_path / "runs", fast=True)
    try:
        board.wait(lambda: board.get("timeseries/tags")["scalars"]["runTagInfo"])
        with opened_page(browser) as page:
            page.goto(f"{board.url}/#ncp_callbacks")
            frame = page.wait_for_selector("iframe[src*='ncp_callbacks']").content_frame()
            frame.get_by_text("this module is broken").wait_for()
    finally:
        board.close()


def test_a_page_is_drawn_while_a_run_is_still_read(browser: Any, address: str) -> None:
    with opened_page(browser) as page:
        held: list[Any] = []
        page.route("**/run?run=a%2Fs2*", lambda route: held.append(route))
        page.goto(address)
        wait_until(page, lambda: bool(held))
        schemes = itertools.cycle(("dark", "light"))

        def is_drawn() -> bool:
            page.emulate_media(color_scheme=next(schemes))  # It lets the page draw again.
            return page.main_frame.locator(".ncp figure canvas").count() > 0

        wait_until(page, is_drawn)
        assert output(page.main_frame) == "step 30 · snapshot 3 of 3"
        held[0].continue_()
        wait_until(page, lambda: any("a/s2" in text for text in captions(page, MAPS)))


def test_an_empty_folder_and_newer_runs_say_so(browser: Any, tmp_path: Path) -> None:
    source = LogIndex(tmp_path)
    server = make_server(source)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with opened_page(browser) as page:
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.get_by_text("There is no run here yet.").wait_for()
        with contextlib.closing(ncp.TensorBoardWriter(tmp_path / "new")) as writer:
            array = ncp.Array("_ncp/x", np.zeros(2), kind="attribution", about={"v": 99})
            writer.write(1, [array])
        source._walked = -1e9
        with opened_page(browser) as page:
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            page.get_by_text("written by a newer version: update ncp_callbacks").wait_for()
    finally:
        server.shutdown()
        server.server_close()


def test_dark_mode(browser: Any, address: str, board: Board) -> None:
    def ground(frame: Any) -> str:
        return str(frame.locator(".ncp").evaluate("e => getComputedStyle(e).backgroundColor"))

    for scheme, colour in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(48, 48, 48)")):
        with opened_page(browser, color_scheme=scheme) as page:
            assert ground(in_page(page, address)) == colour
    with opened_page(browser) as page:
        frame = in_board(page, board)
        assert ground(frame) == "rgb(255, 255, 255)"
        page.evaluate("document.body.classList.add('dark-mode')")
        wait_until(page, lambda: ground(frame) == "rgb(48, 48, 48)")


def test_keys_and_names_reach_everything(browser: Any, address: str) -> None:
    with opened_page(browser) as page:
        frame = in_page(page, address)
        # What is too wide scrolls in itself.
        assert page.evaluate("document.documentElement.scrollWidth") <= 1400
        for canvas in frame.locator("main canvas").all():
            assert canvas.get_attribute("aria-label")
            assert canvas.get_attribute("role") == "img"
        slider = frame.get_by_label("training step")
        slider.focus()
        slider.press("Home")
        wait_until(page, lambda: output(frame).startswith("step 10 "))
        # A redrawn view keeps the focus of its buttons.
        signed = section(frame, MAPS).get_by_role("button", name="signed")
        signed.focus()
        signed.press("Enter")
        wait_until(page, lambda: signed.get_attribute("aria-pressed") == "true")
        assert signed.evaluate("e => e === document.activeElement")


# ---- runs that differ


FOUND = [
    FINDING,
    FINDING | {"severity": "warning", "sentence": "The map is incomplete.", "action": "Refine it."},
    FINDING | {"severity": "problem", "sentence": "train/loss is nan.", "action": "Go back."},
]
LOG_ODDS = "log-odds of the prediction"


@pytest.fixture(scope="module")
def odd_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Four runs: one diverges, one has another target, and the last two other held-out batches."""
    where = tmp_path_factory.mktemp("odd")
    write_run(where / "good", 0, target="prediction")
    write_run(where / "odds", 1, target=LOG_ODDS)
    write_run(where / "diverged", 2, steps=(10, 20), target="prediction")
    with contextlib.closing(ncp.TensorBoardWriter(where / "diverged", first_step=30)) as writer:
        writer.write(
            40,
            [
                ncp.Data("_ncp/findings", json.dumps(FOUND)),
                ncp.Scalar("val/loss", float("nan")),
                ncp.Scalar("val/odds", float("inf")),
            ],
        )
    with contextlib.closing(ncp.TensorBoardWriter(where / "holes")) as writer:
        values = np.array([[0.25, np.nan], [np.inf, 4.0], [-np.inf, -4.0]])
        about = {"target": "prediction", "feature_names": ["a", "b"]}
        writer.write(30, [ncp.Array("_ncp/map", values, kind="attribution", about=about),
                          ncp.Array("_ncp/own", np.zeros(2), kind="a kind of my own")])  # fmt: skip
    for seed, name in enumerate(("other1", "other2"), start=3):
        write_run(where / name, seed, held_out="other", target="prediction")
    with contextlib.closing(ncp.TensorBoardWriter(where / "bare")) as writer:
        writer.write(30, [ncp.Scalar("train/loss", 0.5)])
    with served(where) as found:
        yield found


def shown_runs(page: Any, address: str, *names: str, **state: Any) -> Any:
    return in_page(page, f"{address}#{quote(json.dumps({'runs': names} | state))}")


def captions(frame: Any, title: str) -> list[str]:
    texts = section(frame, title).locator("figcaption").all_inner_texts()
    return [" ".join(text.split()) for text in texts]


def test_a_diverged_run_is_shown_up_to_its_last_findings(browser: Any, odd_address: str) -> None:
    with opened_page(browser) as page:
        frame = shown_runs(page, odd_address, "diverged")
        assert output(frame) == "step 40 · snapshot 3 of 3"
        section(frame, "Findings").get_by_text("train/loss is nan.").wait_for()
        wait_until(page, lambda: "up to" in captions(frame, MAPS)[0])
        assert captions(frame, "Findings")[0].startswith("diverged step 40")
        for title in (MAPS, SHARES, "Units", "Where the hidden state goes", "The wired network"):
            wait_until(
                page,
                lambda title=title: captions(frame, title)[0].startswith("diverged of step 20"),
            )
        for caption in captions(frame, "When time runs faster or slower"):
            assert caption.endswith("diverged of step 20")
        frame.locator("body").press("ArrowLeft")
        wait_until(page, lambda: captions(frame, MAPS)[0].startswith("diverged step 20"))
        section(frame, "Findings").get_by_text("no fault found").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_findings_are_counted_and_advice_is_readable(
    browser: Any, odd_address: str, scheme: str
) -> None:
    with opened_page(browser, color_scheme=scheme) as page:
        frame = shown_runs(page, odd_address, "diverged", "good", "bare")
        found = section(frame, "Findings")
        found.get_by_text("→ Refine it.").wait_for()
        assert captions(frame, "Findings") == [
            "diverged step 40 1 problem, 1 warning",
            "good of step 30 no fault found",
            "bare",
        ]
        found.get_by_text("Not shown: it has no findings.").wait_for()
        rows = found.locator("li").all_inner_texts()
        assert [row.split()[0] for row in rows] == ["problem", "warning", "found", "found"]
        # The advice is as large and as dark as the sentence, on the ground of the page.
        style = "e => [getComputedStyle(e).fontSize, getComputedStyle(e).color]"
        body = frame.locator(".ncp").evaluate(style)
        assert found.get_by_text("→ Go back.").evaluate(style) == body
        assert found.get_by_text("train/loss is nan.").evaluate(style) == body


WATCH_RECTANGLES = """
const {fillRect} = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.fillRect = function (...of) {
  (this.canvas.rectangles ??= []).push([this.fillStyle, of[2]]);
  fillRect.apply(this, of);
};
"""


def test_bars_of_shares_have_one_scale_for_all_runs(
    browser: Any, address: str, runs: dict[str, Run]
) -> None:
    with opened_page(browser) as page:
        page.add_init_script(WATCH_RECTANGLES)
        frame = in_page(page, address)
        for place, name in enumerate(RUNS[:2]):
            canvas = section(frame, MAPS).locator("canvas").nth(place)
            shares = runs[name].arrays["_ncp/attribution_shares"][30][:, 0]

            def bars(canvas: Any = canvas) -> np.ndarray:
                drawn = canvas.evaluate("node => node.rectangles")
                widths = np.array([width for _, width in drawn]).reshape(F, 2)
                return widths[:, 1] / widths[:, 0]

            wait_until(page, lambda shares=shares: np.allclose(bars(), shares, rtol=1e-5))
            whole = canvas.evaluate("node => node.rectangles[0][1]")
            assert whole == section(frame, MAPS).locator("canvas").first.evaluate(
                "node => node.rectangles[0][1]"
            )


def test_a_run_with_another_target_is_shown_everywhere(browser: Any, odd_address: str) -> None:
    with opened_page(browser) as page:
        frame = shown_runs(page, odd_address, "good", "odds", "bare")
        for title in (MAPS, SHARES):
            wait_until(
                page,
                lambda title=title: (
                    f"odds step 30 · attribution · {LOG_ODDS}" in " ".join(captions(frame, title))
                ),
            )
            section(frame, title).locator("canvas[aria-label^='odds: ']").first.wait_for()
        for title, kind in ((MAPS, "attribution"), (SHARES, "shares"), ("Units", "units")):
            section(frame, title).get_by_text(f"Not shown: it has no {kind}.").wait_for()
    with opened_page(browser) as page:
        frame = shown_runs(page, odd_address, "good", "odds", "diverged", b=["diverged"])
        for title in (MAPS, SHARES):
            section(frame, title).get_by_text(
                "Not shown: its runs can't be averaged: their targets differ: "
                f"prediction and {LOG_ODDS}."
            ).wait_for()


def test_a_reason_not_to_subtract_is_shown_once(browser: Any, odd_address: str) -> None:
    with opened_page(browser) as page:
        frame = shown_runs(page, odd_address, "good", "other1", "other2", "odds")
        told = section(frame, MAPS).get_by_text("Not subtracted: ")
        wait_until(
            page, lambda: told.count() == 2 and "loading" not in section(frame, MAPS).inner_text()
        )
        assert told.all_inner_texts() == [
            "Not subtracted: they were made on other held-out batches.",
            f"Not subtracted: their targets differ: {LOG_ODDS} and prediction.",
        ]
        assert captions(frame, MAPS)[-2:] == [
            "difference other1 − good, other2 − good",
            "difference odds − good",
        ]


def test_the_table_separates_nan_from_what_was_not_logged(browser: Any, odd_address: str) -> None:
    with opened_page(browser) as page:
        frame = shown_runs(page, odd_address, "diverged", "bare")
        rows = section(frame, "Runs").locator("tbody tr")
        heads = section(frame, "Runs").locator("th").all_inner_texts()
        table = {
            (cells := row.locator("td").all_inner_texts())[0]: dict(zip(heads, cells, strict=True))
            for row in rows.all()
        }
        assert table["diverged"]["val/loss"] == "NaN"
        assert table["diverged"]["val/odds"] == "∞"
        assert table["bare"]["val/loss"] == "–"
        assert table["bare"]["train/loss"] == "0.5"
        with page.expect_download() as saved:
            section(frame, "Runs").get_by_role("button", name="CSV").click()
        saved_table = pd.read_csv(saved.value.path(), index_col="run")
        assert list(saved_table.columns[:2]) == ["val/loss", "val/odds"]
        assert saved_table["val/odds"]["diverged"] == np.inf
        lines = Path(saved.value.path()).read_text(encoding="utf-8").splitlines()
        assert {line.split(",")[0]: line.split(",")[1] for line in lines[1:]} == {
            "diverged": "NaN",
            "bare": "",
        }


def test_cells_without_a_finite_number_say_which(browser: Any, odd_address: str) -> None:
    with opened_page(browser) as page:
        frame = shown_runs(page, odd_address, "holes")
        canvas = section(frame, MAPS).locator("canvas")
        box = canvas.bounding_box()
        told = {}
        for t, f in itertools.product(range(3), range(2)):
            x = LEFT + (t + 0.5) * (box["width"] - LEFT - 84) / 3
            page.mouse.move(box["x"] + x, box["y"] + (f + 0.5) * CELL)
            text = str(frame.locator(".ncp .tip").inner_text())
            told[text.splitlines()[0]] = text.rsplit(": ", 1)[1]
        assert told == {
            "a, time step 0": "0.25", "a, time step 1": "∞", "a, time step 2": "−∞",
            "b, time step 0": "NaN", "b, time step 1": "4", "b, time step 2": "-4",
        }  # fmt: skip
        assert captions(frame, MAPS) == ["holes step 30 · up to 5"]
        note = "Arrays of kind “a kind of my own” are not shown here: update ncp_callbacks"
        settled(frame).locator("aside").get_by_text(note).wait_for()


def test_a_mean_says_which_runs_and_which_step_it_is_of(browser: Any, odd_address: str) -> None:
    with opened_page(browser) as page:
        frame = shown_runs(page, odd_address, "good", "bare", "diverged", b=["diverged"])
        for title, kind in ((MAPS, "attribution at this step"), (SHARES, "shares")):
            caption = captions(frame, title)[0]
            assert "A (2 runs)" in caption
            assert f"mean of 1 of 2 runs: bare has no {kind}" in caption
        # It is the difference between two steps, and says so.
        assert captions(frame, MAPS)[2].startswith(
            "difference B (diverged) − A (2 runs) · step 20 − step 30"
        )


def test_runs_of_a_side_are_averaged_at_a_step_that_all_have(browser: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "long", 0, steps=(10, 20, 30))
    write_run(tmp_path / "short", 1, steps=(10, 20))
    write_run(tmp_path / "never", 2, steps=(11, 31))
    found = [read_run(tmp_path / name).arrays["_ncp/attribution_strength"]
             for name in ("long", "short")]  # fmt: skip
    with opened_page(browser) as page, served(tmp_path) as address:
        frame = shown_runs(page, address, "long", "short", "never", b=["never"])
        assert captions(frame, MAPS)[0].startswith("A (2 runs) of step 20 ")
        mean = (found[0][20] + found[1][20]) / 2
        text = cell_text(page, frame, 0, 1, 4)
        shown = float(re.search(r"A \(2 runs\): (\S+)", text)[1])  # type: ignore[index]
        assert shown == pytest.approx(mean[4, 1], rel=6e-3)
        frame = shown_runs(page, address + "?", "long", "never", "short", b=["short"])
        assert captions(frame, MAPS)[0].startswith("A (2 runs)")
        section(frame, MAPS).get_by_text("its runs have no step in common").first.wait_for()


WRONG = {
    "attribution": (MAPS, (3,), "its attribution is 3: 2 axes are needed"),
    "shares": (SHARES, (), "its shares is a single number: 2 axes are needed"),
    "time by step": (
        "When time runs faster or slower", (2, 2), "its time by step is 2 × 2: 1 axis is needed",
    ),
    "trajectory": (
        "Where the hidden state goes", (2, 3, 2),
        "its trajectory is 2 × 3 × 2: three numbers for each time step are needed",
    ),
    "units": ("Units", (0, 4), "its units is empty: 0 × 4"),
    "wiring share": (
        "The wired network", (2, 3),
        "its wiring share is 2 × 3: it needs a row for each feature and neuron",
    ),
}  # fmt: skip


def test_arrays_that_are_not_what_they_should_be_cost_their_own_picture(
    browser: Any, tmp_path: Path
) -> None:
    write_run(tmp_path / "good", 0)
    with contextlib.closing(ncp.TensorBoardWriter(tmp_path / "wrong")) as writer:
        wrong = [ncp.Array(f"_ncp/{kind}", np.zeros(shape), kind=kind)
                 for kind, (_, shape, _) in WRONG.items()]  # fmt: skip
        writer.write(30, wrong)
    with contextlib.closing(ncp.TensorBoardWriter(tmp_path / "words")) as writer:
        about: Any = {"feature_names": 7, "target": ["x"], "sequence_class": "ab"}
        writer.write(30, [ncp.Array("_ncp/a", np.zeros((2, 2)), kind="attribution", about=about),
                          ncp.Data("_ncp/findings", "[null]")])  # fmt: skip
    with opened_page(browser) as page, served(tmp_path) as address:
        frame = shown_runs(page, address, "good", "wrong")
        for title, _, sentence in WRONG.values():
            section(frame, title).get_by_text(sentence).first.wait_for()
            assert section(frame, title).locator("canvas").count()
        # What nobody expects costs a view, and no more.
        frame = shown_runs(page, address + "?", "words", "good")
        assert "can't be drawn: " in section(frame, "Findings").inner_text()
        assert section(frame, MAPS).locator("canvas").count() == 2
        assert section(frame, "Units").locator("canvas").count() == 1


def test_a_run_that_cant_be_read_is_named(browser: Any, tmp_path: Path) -> None:
    class Failing(LogIndex):
        def run(self, name: str) -> Any:
            if name == "gone":
                raise KeyError(name)
            return super().run(name)

    for seed, name in enumerate(("good", "gone")):
        write_run(tmp_path / name, seed)
    context = browser.new_context()
    page = context.new_page()
    with served(tmp_path, Failing) as address:
        frame = shown_runs(page, address, "good", "gone")
        frame.locator("aside").get_by_text("gone can’t be read.").wait_for()
        assert section(frame, MAPS).locator("canvas").count() == 1
    context.close()


def test_polls_without_anything_new_change_nothing(browser: Any, address: str) -> None:
    with opened_page(browser) as page:
        frame = in_page(page, address)
        box = frame.get_by_label("a/s2", exact=True)
        box.focus()
        cell_text(page, frame, 0, 1, 4)
        canvas = section(frame, MAPS).locator("canvas").first.element_handle()
        box.focus()
        for _ in range(2):
            with page.expect_response("**/run?run=a%2Fs2*") as answered:
                pass
            assert set(answered.value.json()) == {"version"}
            page.wait_for_load_state("networkidle")
        assert canvas.evaluate("node => node.isConnected")
        assert box.evaluate("node => node === document.activeElement")
        assert frame.locator(".ncp .tip").is_visible()


# ---- its numbers


@pytest.fixture(scope="module")
def compute(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Call a function of ``math.js``."""
    page = browser.new_page()
    page.goto(address)

    def call(name: str, *arguments: Any) -> Any:
        return page.evaluate(
            "([name, args]) => import('./math.js').then(m => m[name](...args))",
            [name, json.loads(json.dumps(arguments))],
        )

    yield call
    page.close()


@pytest.mark.parametrize("case", ["random", "rotated", "flat", "line"])
def test_procrustes_is_that_of_scipy(compute: Any, case: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 3)) * [3, 1, 0.3]
    if case == "flat":
        a[:, 2] = 0
    if case == "line":
        a[:, 1:] = 0
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    b = rng.normal(size=(40, 3)) if case == "random" else 2.5 * a @ turn + [1, 2, 3]
    found = compute("procrustes", a.ravel().tolist(), b.ravel().tolist())
    x, y = a - a.mean(0), b - b.mean(0)
    rotation, trace = orthogonal_procrustes(x, y)
    assert found["r2"] == pytest.approx(trace**2 / ((x**2).sum() * (y**2).sum()), rel=1e-9)
    Q = np.array(found["Q"])
    if case in ("random", "rotated"):
        np.testing.assert_allclose(Q, rotation, atol=1e-9)
    np.testing.assert_allclose(Q @ Q.T, np.eye(3), atol=1e-9)
    moved = compute("moved", a.ravel().tolist(), found)
    moved = np.array(moved).reshape(-1, 3)
    assert ((moved - b.mean(0)) ** 2).sum() == pytest.approx((y**2).sum(), rel=1e-9)
    if case != "random":
        np.testing.assert_allclose(moved, b, atol=1e-8)


def test_cka_is_that_of_the_package(compute: Any) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(20, 6))
    for b in (a @ np.linalg.qr(rng.normal(size=(6, 6)))[0], rng.normal(size=(20, 9))):
        found = compute("debiasedCka", a.ravel().tolist(), b.ravel().tolist(), 20)
        assert found == pytest.approx(debiased_cka(a, b), abs=1e-9)


def test_small_numbers(compute: Any) -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(5, 4))
    expected = np.abs(values).sum(axis=0) / np.abs(values).sum()
    found = compute("columnShares", values.ravel().tolist(), 5, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    pairs = rng.normal(size=(3, 6))
    both = compute("meanAndSd", pairs.tolist())
    for name, of in (("mean", pairs.mean(axis=0)), ("sd", pairs.std(axis=0, ddof=1))):
        np.testing.assert_allclose(both[name], of, rtol=1e-12)
    for of, text in ((None, "NaN"), (0.12345, "0.123")):
        assert compute("logged", of) == text
    assert compute("logged") == "–"
    for value, expected_limit in ((0.7, 1), (1.2, 2), (0.031, 0.05), (5.0, 5), (0, 1)):
        assert compute("nice", value) == pytest.approx(expected_limit)
    steps = [10, 20, 30]
    for step, at in ((5, 10), (10, 10), (19, 10), (20, 20), (99, 30)):
        assert compute("stepAt", steps, step) == at
    assert compute("stepAt", [], 5) is None
    long = rng.normal(size=1001).tolist()
    kept = [long[place] for place in compute("envelope", long, 100)]
    assert len(kept) <= 104
    stretches = [long[first : first + 21] for first in range(0, 1001, 21)]
    for stretch in stretches:
        assert {min(stretch), max(stretch)} <= set(kept)
    assert compute("envelope", [3, 1, 2], 100) == [0, 1, 2]
    # Three that meet go apart around the lowest place that is left to them.
    assert compute("spacedOut", [50, 10, 49, 48], 14, 8, 60) == [60, 10, 46, 32]
    assert compute("spacedOut", [20, 0], 14, 8, 60) == [22, 8]
    assert compute("extent", [None, 3, -2]) == [-2, 3]
    assert compute("extent", []) == [0, 1]
    assert compute("columnShares", [0, 0], 1, 2) == [0, 0]
