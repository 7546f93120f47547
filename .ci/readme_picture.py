"""Take the README's pictures: TensorBoard as it opens after the digits example, and the page.

    python examples/digits.py && python .ci/readme_picture.py --only open
    for seed in 1 2; do python examples/digits.py --seed $seed --log-dir runs/seeds; done
    python .ci/readme_picture.py runs/seeds --only view

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


MAPS = "section[aria-label='What the prediction rests on']"


def board_screen(page: Page, address: str) -> bytes:
    """Return a PNG of the first screen of a TensorBoard, when all that it shows is loaded."""
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_function(LOADED, timeout=60_000)
    page.wait_for_timeout(3000)  # Charts are drawn in a worker, which tells nobody.
    return page.screenshot()


def page_screen(page: Page, address: str) -> bytes:
    """Return a PNG of the interactive page from the maps on, when it is drawn."""
    page.goto(address)
    page.wait_for_selector(".ncp figure canvas")
    for _ in range(2):  # What is drawn meanwhile moves the maps.
        page.locator(MAPS).evaluate("e => window.scrollBy(0, e.getBoundingClientRect().top - 60)")
        page.wait_for_timeout(1000)
        page.wait_for_selector(".ncp main[aria-busy=false]")
    return page.screenshot()


SCREENS = {"open": ("tensorboard.png", board_screen), "view": ("page.png", page_screen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/digits"))
    parser.add_argument("--only", choices=SCREENS, nargs="+", default=list(SCREENS))
    default = Path(__file__).parent.parent / "examples"
    parser.add_argument("--out", type=Path, default=default, help="folder of the pictures")
    args = parser.parse_args()
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, browsers)), args=["--no-sandbox"]
        )
        for command in args.only:
            name, screen = SCREENS[command]
            with subprocess.Popen(
                [sys.executable, "-m", "ncp_callbacks", command, args.runs, "--port", "0",
                 "--no-browser"],
                stdout=subprocess.PIPE, text=True,
            ) as server:  # fmt: skip
                assert server.stdout is not None
                try:
                    address = server.stdout.readline().split()[0]
                    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
                    image = Image.open(BytesIO(screen(page, address))).convert("RGB")
                finally:
                    server.terminate()
            image.save(args.out / name, optimize=True)
            print(f"{args.out / name}: {(args.out / name).stat().st_size} bytes")
        browser.close()


if __name__ == "__main__":
    main()
