"""The example's log, read by a real TensorBoard in both of its loaders."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from boards import Board
from PIL import Image
from promises import ADDED, OPTIONAL, OWN, STANDARD, pattern, plain, promised

from ncp_callbacks.runs import read_run

ROOT = Path(__file__).parent.parent
RUN = "cfc-u48-s0"
LOOKS = [40, 80]
PICTURES = ("attribution/heatmap", "time_delta/curve", "hidden/pca", "backbone/unit_activity")


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("digits")
    subprocess.run(
        [sys.executable, ROOT / "examples" / "digits.py", "--epochs", "2", "--every", "40",
         "--log-dir", where],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return where


def loaded(board: Board, tag: str) -> bool:
    """Whether the point logged last is served."""
    points = board.get("scalars/scalars", run=RUN, tag=tag)
    return bool(points[-1][1] == LOOKS[-1])


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def board(log_dir: Path, request: pytest.FixtureRequest) -> Iterator[Board]:
    server = Board(log_dir, request.param)
    try:
        server.wait(lambda: loaded(server, "xai_transitions/magnitude_mean"))
        yield server
    finally:
        server.close()


def test_every_promised_tag_is_served_and_no_other(board: Board, log_dir: Path) -> None:
    served = {
        kind: set(map(plain, board.get(f"{plugin}/tags")[RUN]))
        for kind, plugin in [
            ("scalar", "scalars"),
            ("image", "images"),
            ("histogram", "histograms"),
        ]
    }
    # Those without a card are in the log.
    served["scalar"] |= set(read_run(log_dir / RUN).scalars)
    text = set(board.get("text/tags")[RUN])
    assert {"monitor/run", "monitor/guide"} <= text - {"findings/summary"} <= {
        "monitor/run", "monitor/guide", "monitor/notes",
    }  # fmt: skip
    promises = [(t, kind) for cls in (*ADDED, *STANDARD) for t, kind in promised(cls).items()]
    promises += [("findings/overview", "image")]
    # The loop's own numbers.
    promises += [(tag, "scalar") for tag in ("train/loss", "val/accuracy", *OWN)]
    for kind, tags in served.items():
        wanted = [pattern(t) for t, k in promises if k == kind and t not in OPTIONAL]
        for tag in tags:
            assert any(w.match(tag) for w in wanted), f"{kind} {tag} is promised nowhere"
        for w in wanted:
            assert any(w.match(tag) for tag in tags), f"{kind} {w.pattern} is not served"


def test_values_and_steps(board: Board) -> None:
    points = board.get("scalars/scalars", run=RUN, tag="xai_attribution/strength")
    assert [p[1] for p in points] == LOOKS
    assert all(p[2] > 0 for p in points)
    shares = [
        board.get("scalars/scalars", run=RUN, tag=f"xai_attribution_share/column_{i}")[-1][2]
        # The first column of pixels is empty, which needs no card.
        for i in range(1, 8)
    ]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)


def test_images_are_pictures_with_an_explanation(board: Board) -> None:
    for plain_tag in (
        "attribution/heatmap",
        "time_delta/curve",
        "hidden/pca",
        "backbone/unit_activity",
    ):
        tag = f"xai_{plain_tag}"
        entries = board.get("images/images", run=RUN, tag=tag, sample="0")
        assert [e["step"] for e in entries] == LOOKS
        image = Image.open(BytesIO(board.raw("images/individualImage?" + entries[-1]["query"])))
        assert image.size == (640, 430)
        assert len(image.convert("RGB").getcolors(10**6)) > 8
        info = board.get("images/tags")[RUN][tag]
        assert len(info["description"]) > 40
        assert info["displayName"] == plain_tag


def test_histograms(board: Board) -> None:
    for tag in ("xai_transitions/magnitude", "xai_backbone_hist/layer0"):
        entries = board.get("histograms/histograms", run=RUN, tag=tag)
        assert [e[1] for e in entries] == LOOKS
        assert sum(bucket[2] for bucket in entries[-1][2]) > 0


def test_the_guide_is_a_table_of_the_tags(board: Board) -> None:
    # Written again when there was more to explain.
    *_, entry = board.get("text/text", run=RUN, tag="monitor/guide")
    assert entry["text"].count("<tr>") > 40
    assert "<code>time_delta/elasticity</code>" in entry["text"]
