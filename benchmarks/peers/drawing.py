"""Draw recorded pictures, with this version of the package or another one.

    python -m peers.drawing --pictures=/tmp/pictures.pickle --package=/a/checkout

It is a worker of :mod:`peers.protocol`.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    # Before the package is imported, and found in place of the one that is installed.
    for argument in sys.argv:
        if argument.startswith("--package="):
            sys.path.insert(0, argument.removeprefix("--package="))

import ncp_callbacks as ncp
from ncp_callbacks.plotting.png import to_png
from ncp_callbacks.plotting.redraw import Redrawer
from peers.protocol import serve


def milliseconds(draw: Callable[[], object]) -> float:
    """Return the CPU time of this thread."""
    start = time.thread_time()
    draw()
    return 1e3 * (time.thread_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--package")
    args = parser.parse_args()
    figures: list[ncp.Figure] = pickle.loads(args.pictures.read_bytes())
    redrawer = Redrawer()

    def draw(number: int, afresh: bool) -> dict[str, float]:
        """Return milliseconds of CPU time of a picture, redrawn and perhaps drawn afresh."""
        tag, plot, data, options = (
            getattr(figures[number], name) for name in ("tag", "plot", "data", "options")
        )
        found = {"redrawn": milliseconds(lambda: redrawer.png(tag, plot, data, options))}
        if afresh:
            found["afresh"] = milliseconds(lambda: to_png(plot(data, **options)))
        return found

    serve({"draw": draw}, {"ncp_callbacks": str(Path(ncp.__file__).parent)})


if __name__ == "__main__":
    main()
