"""The example's log, read by a real TensorBoard in both of its loaders."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from promises import STANDARD, pattern, promised

ROOT = Path(__file__).parent.parent
RUN = "cfc-u48-s0"
LOOKS = [40, 80]


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("digits")
    subprocess.run(
        [sys.executable, ROOT / "examples" / "digits.py", "--epochs", "2", "--every", "40",
         "--log-dir", where],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return where


class Board:
    """A TensorBoard server on a loopback port of its own choosing."""

    def __init__(self, log_dir: Path, fast: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", "--logdir", log_dir, "--host", "127.0.0.1",
             "--port", "0", f"--load_fast={'true' if fast else 'false'}",
             "--samples_per_plugin=images=200"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._url = self._wait(lambda: self._address())

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(iter(self._process.stdout.readline, ""))

    def _address(self) -> str | None:
        match = re.search(r"http://[^\s/]+:(\d+)", "".join(self._lines))
        return f"http://127.0.0.1:{match[1]}" if match else None

    def _wait(self, ready: Any, seconds: float = 60.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                found = ready()
                if found:
                    return found
            assert self._process.poll() is None, "".join(self._lines)
            time.sleep(0.2)
        raise AssertionError(f"TensorBoard was not ready: {''.join(self._lines)}")

    def raw(self, path: str, **query: str) -> bytes:
        url = f"{self._url}/data/plugin/{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.read()  # type: ignore[no-any-return]

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.raw(path, **query))

    def loaded(self, last: str) -> None:
        """Wait until the point logged last is served."""
        self._wait(lambda: self.get("scalars/scalars", run=RUN, tag=last)[-1][1] == LOOKS[-1])

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def board(log_dir: Path, request: pytest.FixtureRequest) -> Iterator[Board]:
    server = Board(log_dir, request.param)
    try:
        server.loaded("transitions/magnitude_mean")
        yield server
    finally:
        server.close()


def test_every_promised_tag_is_served_and_no_other(board: Board) -> None:
    served = {
        kind: set(board.get(f"{plugin}/tags")[RUN])
        for kind, plugin in [
            ("scalar", "scalars"),
            ("image", "images"),
            ("histogram", "histograms"),
        ]
    }
    text = set(board.get("text/tags")[RUN])
    assert {"about/run", "about/guide"} <= text <= {"about/run", "about/guide", "about/notes"}
    promises = [(t, kind) for cls in STANDARD for t, kind in promised(cls).items()]
    # The loop's own numbers.
    promises += [("train/loss", "scalar"), ("val/accuracy", "scalar")]
    for kind, tags in served.items():
        wanted = [pattern(t) for t, k in promises if k == kind]
        for tag in tags:
            assert any(w.match(tag) for w in wanted), f"{kind} {tag} is promised nowhere"
        for w in wanted:
            assert any(w.match(tag) for tag in tags), f"{kind} {w.pattern} is not served"


def test_values_and_steps(board: Board) -> None:
    points = board.get("scalars/scalars", run=RUN, tag="attribution/strength")
    assert [p[1] for p in points] == LOOKS
    assert all(p[2] > 0 for p in points)
    shares = [
        board.get("scalars/scalars", run=RUN, tag=f"attribution_share/column_{i}")[-1][2]
        for i in range(8)
    ]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)


def test_images_are_pictures_with_an_explanation(board: Board) -> None:
    for tag in ("attribution/heatmap", "time_delta/curve", "hidden/pca", "backbone/unit_activity"):
        entries = board.get("images/images", run=RUN, tag=tag, sample="0")
        assert [e["step"] for e in entries] == LOOKS
        image = Image.open(BytesIO(board.raw("images/individualImage?" + entries[-1]["query"])))
        assert image.size == (640, 430)
        assert len(image.convert("RGB").getcolors(10**6)) > 8
        info = board.get("images/tags")[RUN][tag]
        assert len(info["description"]) > 40


def test_histograms(board: Board) -> None:
    for tag in ("transitions/magnitude", "backbone_hist/layer0"):
        entries = board.get("histograms/histograms", run=RUN, tag=tag)
        assert [e[1] for e in entries] == LOOKS
        assert sum(bucket[2] for bucket in entries[-1][2]) > 0


def test_the_guide_is_a_table_of_the_tags(board: Board) -> None:
    (entry,) = board.get("text/text", run=RUN, tag="about/guide")
    assert entry["text"].count("<tr>") > 40
    assert "<code>time_delta/elasticity</code>" in entry["text"]
