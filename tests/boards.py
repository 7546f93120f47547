"""A real TensorBoard on a port of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


# A Python that has another TensorBoard: the tests of the pages are run with the oldest, too.
PYTHON = os.environ.get("TENSORBOARD_PYTHON") or sys.executable


class Board:
    """A TensorBoard server on a loopback port of its own choosing; ``close`` it."""

    def __init__(self, log_dir: Path, fast: bool) -> None:
        self._process = subprocess.Popen(
            [PYTHON, "-m", "tensorboard.main", "--logdir", log_dir, "--host", "127.0.0.1",
             "--port", "0", f"--load_fast={'true' if fast else 'false'}", "--reload_interval", "1",
             "--samples_per_plugin=images=200"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.port = self.wait(self._port)
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(iter(self._process.stdout.readline, ""))

    def _port(self) -> int | None:
        match = re.search(r"http://[^\s/]+:(\d+)", "".join(self._lines))
        return int(match[1]) if match else None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self, ready: Callable[[], T | None], seconds: float = 60.0) -> T:
        """What ``ready`` returns, once that is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                found = ready()
                if found:
                    return found
            assert self._process.poll() is None, "".join(self._lines)
            time.sleep(0.1)
        raise AssertionError(f"TensorBoard was not ready: {''.join(self._lines)}")

    def raw(self, path: str, **query: str) -> bytes:
        """What is served below ``data/plugin``, or at a path from the root."""
        url = self.url + (path if path.startswith("/") else f"/data/plugin/{path}")
        if query:
            url += "?" + urllib.parse.urlencode(query)
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.read()  # type: ignore[no-any-return]

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.raw(path, **query))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
