"""A run as its user sees it: a real TensorBoard, in both of its loaders, in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from boards import Board
from promises import STANDARD, plain, promised

import ncp_callbacks as ncp
from ncp_callbacks.cli import main
from ncp_callbacks.console import link
from ncp_callbacks.models import CfC

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright, of the dev extra: nothing is seen in a browser"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium on the PATH: nothing is seen in a browser"
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The projector draws with WebGL, here without a graphics card.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
RUN = "tiny"
LOOKS = [10, 20, 30]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(3, 6), nn.Linear(6, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        outputs: mx.array = self.head(self.rnn(x, time_delta)[0][:, -1])
        return outputs


class Fill(ncp.Callback):
    """``fill/last``: size of the last state, with an interval over sequences."""

    needs = frozenset({ncp.Need.STATES})

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Record]:
        last = observation.states[0].values[:, -1]
        sizes = np.linalg.norm(last, axis=-1)
        half = 2 * float(sizes.std() / np.sqrt(len(sizes)))
        mean = float(sizes.mean())
        yield ncp.Scalar("fill/last", mean, "Norm", ci=(mean - half, mean + half))


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("log")
    mx.random.seed(0)
    model, optimizer = Net(), optim.Adam(learning_rate=5e-2)
    x, dt = mx.random.normal((16, 6, 3)), mx.random.uniform(0.1, 1.0, (16, 6))
    y = (x[:, :, 0].sum(axis=1) > 0).astype(mx.int32)
    held_out = ncp.HeldOutBatch(
        x, time_delta=dt, targets=y, feature_names=["pulse", "pressure", "oxygen"]
    )
    step_of = nn.value_and_grad(
        model, lambda x, dt, y: nn.losses.cross_entropy(model(x, dt), y, reduction="mean")
    )
    callbacks = [*(cls() for cls in STANDARD), Fill()]
    with ncp.Monitor(
        model, held_out, callbacks, where / RUN, every=LOOKS[0], run_config={"units": 6}
    ) as monitor:
        for step in range(1, LOOKS[-1] + 1):
            loss, gradients = step_of(x, dt, y)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            monitor.on_step_end(step, loss=loss)
            if step % LOOKS[0] == 0:
                monitor.log_scalars(step, {"val/loss": loss, "val/accuracy": step / LOOKS[-1]})
    return where


# The pages are the same whichever loader is behind them, and other tests ask both for all data.
BOTH_LOADERS = pytest.mark.parametrize("board", [True, False], ids=["fast", "slow"], indirect=True)
ONE_LOADER = pytest.mark.parametrize("board", [True], ids=["fast"], indirect=True)


@pytest.fixture(scope="module")
def board(log_dir: Path, request: pytest.FixtureRequest) -> Iterator[Board]:
    server = Board(log_dir, request.param)

    def loaded() -> bool:
        images = server.get("images/images", run=RUN, tag="xai_hidden/pca", sample="0")
        points = server.get("scalars/scalars", run=RUN, tag="xai_fill/last")
        return [e["step"] for e in images] == [e[1] for e in points] == LOOKS

    try:
        server.wait(loaded)
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        context = started.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1400, "height": 1000},
        )
        context.set_default_timeout(60_000)
        playwright.expect.set_options(timeout=60_000)
        yield context
        context.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which nothing may go wrong."""
    opened = browser.new_page()
    wrong: list[str] = []
    opened.on("console", lambda m: m.type == "error" and wrong.append(m.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.status} {r.url}"))
    yield opened
    opened.close()
    assert wrong == []


def go(page: Any, board: Board, where: str) -> None:
    # Not until everything is loaded: what a test waits for comes later anyway.
    page.goto(board.url + where, wait_until="domcontentloaded")


@BOTH_LOADERS
def test_time_series_begins_with_the_headlines(board: Board, page: Any) -> None:
    go(page, board, "/#timeseries")
    page.wait_for_selector("card-view")
    names = page.locator("metrics-card-group-toolbar .group-title")
    playwright.expect(names.last).to_have_text("xai_transitions")
    # In the order in which they are on the page.
    groups = names.all_inner_texts()
    assert groups[:3] == ["headline", "train", "val"]
    assert all(group.startswith("xai_") for group in groups[3:])
    assert {group.removeprefix("xai_") for group in groups[3:]} - {"monitor"} == {
        tag.split("/")[0]
        for cls in STANDARD
        for tag, kind in promised(cls).items()
        if kind in ("scalar", "image", "histogram")
    } - {"removal_share"} | {"fill"}  # Shares by removal are in their picture, and on no card.
    # The first groups are open: the headlines are seen without a click.
    titles = page.locator("card-view tb-truncated-path")
    playwright.expect(titles.nth(5)).to_be_visible()
    assert [titles.nth(i).get_attribute("title") for i in range(6)] == [
        "headline/_findings/overview",
        "headline/attribution/reliability",
        "headline/attribution/time_share",
        "headline/held_out/accuracy",
        "headline/held_out/loss",
        "headline/time_delta/sensitivity_x2",
    ]
    sizes = page.locator("metrics-card-group-toolbar .group-card-count").all_inner_texts()
    assert sizes  # A group of one card doesn't say so.
    assert max(int(re.sub(r"\D", "", size)) for size in sizes) <= 12


@BOTH_LOADERS
def test_a_group_has_the_cards_of_its_callback(board: Board, page: Any) -> None:
    go(page, board, "/#timeseries")
    page.wait_for_selector("card-view")
    page.set_viewport_size({"width": 1400, "height": 2400})  # Cards out of sight aren't filled.
    page.get_by_role("combobox", name="Filter tags (regex)").fill("^xai_hidden/")
    found = page.locator("metrics-filtered-view")
    titles = found.locator("card-view tb-truncated-path")
    shown = {"hidden/pca", "hidden/pc1_share", "hidden/participation_ratio"}
    playwright.expect(titles).to_have_count(len(shown))
    assert {plain(title.get_attribute("title")) for title in titles.all()} == shown
    card = found.locator("scalar-card").filter(has_text="/pc1_share")
    row = card.locator("tb-data-table-content-row")
    playwright.expect(row).to_contain_text(RUN)
    (last,) = board.get("scalars/scalars", run=RUN, tag="xai_hidden/pc1_share")[-1:]
    numbers = [float(text) for text in row.inner_text().split() if re.fullmatch(r"[\d.]+", text)]
    assert LOOKS[-1] in numbers
    assert min(abs(number - last[2]) for number in numbers) < 1e-3


@BOTH_LOADERS
def test_hparams_lists_losses_and_headlines(board: Board, page: Any) -> None:
    answer = page.request.post(board.url + "/data/plugin/hparams/experiment", data={}).json()
    metrics = [info["name"]["tag"] for info in answer["metricInfos"]]
    losses = ["train/loss", "val/loss", "val/accuracy"]
    scores = ["headline/held_out/loss", "headline/held_out/accuracy"]
    assert metrics[:5] == [*losses, *scores]
    assert set(metrics[5:]) == {
        f"headline/{tag}"
        for tag in (
            "attribution/time_share", "attribution/reliability", "time_delta/sensitivity_x2",
            "transitions/saturation",
        )
    }  # fmt: skip
    # Five metrics are columns until others are ticked.
    go(page, board, "/#hparams")
    header = page.locator("vaadin-grid .table-header").filter(has_text="train/loss")
    playwright.expect(header).to_be_visible()
    headers = page.locator("vaadin-grid .table-header").all_inner_texts()
    columns = [text.strip().removesuffix("arrow_drop_down").strip() for text in headers]
    assert [column for column in columns if "/" in column] == [*losses, *scores]
    assert "units" in columns


@ONE_LOADER
def test_the_link_of_the_opening_pins_cards(board: Board, page: Any, log_dir: Path) -> None:
    pictures = ["xai_attribution/heatmap", "xai_hidden/pca", "not/logged"]
    page.goto(link(log_dir / RUN, pictures, port=board.port), wait_until="domcontentloaded")
    titles = page.locator("metrics-pinned-view tb-truncated-path")
    playwright.expect(titles).to_have_count(3)
    assert [title.get_attribute("title") for title in titles.all()] == [*pictures[:2], "train/loss"]


@BOTH_LOADERS
def test_the_slider_of_a_picture_shows_another_step(board: Board, page: Any) -> None:
    go(page, board, "/?tagFilter=hidden/pca$#timeseries")
    card = page.locator("image-card")
    slider = card.locator("input[type=range]")
    shown = {}
    for step in reversed(LOOKS):
        playwright.expect(card.locator(".step")).to_have_text(f"Step {step}")
        image = card.locator(f"img[alt='Image at step {step}']")
        image.wait_for()
        page.wait_for_function("image => image.complete", arg=image.element_handle())
        size = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        assert size == [640, 430]
        shown[step] = image.screenshot()
        slider.press("ArrowLeft")
    assert len(set(shown.values())) == len(LOOKS)


@ONE_LOADER
def test_the_text_tab_begins_with_the_findings_and_has_the_guide(board: Board, page: Any) -> None:
    go(page, board, "/#text")
    first = page.locator("tf-text-loader").first
    playwright.expect(first).to_contain_text("findings/summary")
    loader = page.locator("tf-text-loader").filter(has_text="monitor/guide")
    tag = page.locator("td > code").get_by_text("time_delta/elasticity_rms", exact=True)
    row = loader.locator("tr:has(> td > code)").filter(has=tag).first
    playwright.expect(row).to_be_visible()
    assert len(row.locator("td").nth(1).inner_text()) > 20


@ONE_LOADER
def test_custom_scalars_draws_several_curves_in_one_chart(board: Board, page: Any) -> None:
    go(page, board, "/#custom_scalars")
    cards = page.locator("tf-custom-scalar-multi-line-chart-card")
    # In training, in validation and on the held-out batch.
    playwright.expect(cards.first.get_by_text("Matches (3)")).to_be_visible()
    titles = page.locator("tf-card-heading .heading-label").all_inner_texts()
    assert [title.strip() for title in titles][:2] == ["loss", "accuracy"]
    assert page.locator("tf-custom-scalar-margin-chart-card").count() == 0
    assert page.locator(".error-content").count() == 0


@ONE_LOADER
def test_the_projector_shows_the_last_points(board: Board, page: Any) -> None:
    go(page, board, "/#projector")
    inner = page.frame_locator("iframe").frame_locator("iframe")
    # Every state of 16 sequences of 6 steps.
    playwright.expect(inner.locator(".numDataPoints")).to_have_text(str(16 * 6))
    found = inner.get_by_role("button", name=re.compile("tensors? found"))
    playwright.expect(found).to_have_value(f"hidden/states (step {LOOKS[-1]})")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_a_comparison_is_read_in_the_dark_and_on_a_phone(
    log_dir: Path, page: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    copy = tmp_path / ("another run with a name that is much too long for a phone " + "x" * 60)
    shutil.copytree(log_dir / RUN, copy)
    assert main(["compare", str(log_dir / RUN), str(copy), "--out", str(tmp_path)]) == 0
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto((tmp_path / "compare.html").as_uri())
    playwright.expect(page.locator("img").first).to_be_visible()
    # What is too wide scrolls in itself.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    style = "getComputedStyle(document.body)"
    ink, paper = (
        sum(map(int, re.findall(r"\d+", page.evaluate(f"{style}.{name}"))[:3]))
        for name in ("color", "backgroundColor")
    )
    assert (paper < 150 < 500 < ink) if scheme == "dark" else (ink < 150 < 700 < paper)
