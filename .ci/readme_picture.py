"""Take the README's picture: TensorBoard as it opens after the digits example.

    python examples/digits.py && python .ci/readme_picture.py

It needs playwright, of the ``dev`` extra, and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

WIDTH, HEIGHT = 1440, 1000
LOADED = """() => document.querySelectorAll("card-view").length > 5
    && !document.querySelector("card-view mat-spinner")
    && [...document.querySelectorAll("image-card img")].every((image) => image.complete)"""


def screen(page: Page, address: str) -> bytes:
    """Return a PNG of the first screen of a TensorBoard, when all that it shows is loaded."""
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_function(LOADED, timeout=60_000)
    page.wait_for_timeout(3000)  # Charts are drawn in a worker, which tells nobody.
    return page.screenshot()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/digits"))
    default = Path(__file__).parent.parent / "examples" / "tensorboard.png"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    command = [sys.executable, "-m", "ncp_callbacks", "open", args.runs, "--port", "0"]
    with subprocess.Popen(
        [*command, "--no-browser"], stdout=subprocess.PIPE, text=True
    ) as board, sync_playwright() as playwright:  # fmt: skip
        assert board.stdout is not None
        try:
            address = board.stdout.readline().split()[0]
            browser = playwright.chromium.launch(
                executable_path=next(filter(None, browsers)), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            image = Image.open(BytesIO(screen(page, address))).convert("RGB")
            browser.close()
        finally:
            board.terminate()
    image.save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
