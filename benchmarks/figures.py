"""What a picture costs from its second on: redrawn as the log writer does it, and afresh.

    python benchmarks/figures.py                  # prints a table
    python benchmarks/figures.py --repeats 51

Data change from picture to picture as they do while a model trains. Both ways are timed in turn,
from the result of an analysis to a PNG: medians of the thread's CPU time. "Stall" is how much
longer a loop in Python takes on another thread for each picture drawn meanwhile, which is what a
training loop feels of it; on a machine with two cores it is noisy.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ncp_callbacks.analysis import (
    layer_statistics,
    state_space,
    time_sensitivity,
)
from ncp_callbacks.attribution import temporal_importance
from ncp_callbacks.plots import (
    plot_feature_importance,
    plot_state_space,
    plot_time_sensitivity,
    plot_unit_activity,
    to_png,
)
from ncp_callbacks.plotting.redraw import Redrawer

Options = dict[str, Any]
Picture = tuple[Any, Options]


def walk(shape: tuple[int, ...], count: int) -> Iterator[np.ndarray]:
    """Arrays each of which is a little different from the one before."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=shape)
    for _ in range(count):
        values = 0.9 * values + 0.44 * rng.normal(size=shape)
        yield values.astype(np.float32)


def importance(features: int, steps: int, count: int) -> Iterator[Picture]:
    x = np.random.default_rng(1).normal(size=(4, steps, features)).astype(np.float32)
    for g in walk((steps, features), count):
        yield temporal_importance(x, np.broadcast_to(g, x.shape)), {"limit": 2.0}


def states(batch: int, steps: int, count: int) -> Iterator[Picture]:
    classes, basis = np.arange(batch) % 3, None
    for h in walk((batch, steps, 8), count):
        result = state_space(np.cumsum(h, axis=1) / 4, basis=basis)
        basis = result.basis
        yield result, {"classes": classes, "limit": 10.0}


def units(layers: int, count: int) -> Iterator[Picture]:
    for a in walk((4, 30, layers, 64), count):
        active = np.maximum(a, 0) * (a.mean((0, 1)) > -0.2)
        yield (
            [layer_statistics(active[:, :, i], layer=f"layer{i}", activation="relu")
             for i in range(layers)],
            {},
        )  # fmt: skip


def sensitivity(count: int) -> Iterator[Picture]:
    first = None
    for y in walk((2, 32), count):
        result = time_sensitivity({s: y[0] + y[1] * np.log(s) for s in (0.5, 1.0, 2.0, 5.0)})
        yield result, {"limit": 5.0, "reference": first}
        first = first or result


KINDS: dict[str, tuple[Callable[..., Any], Callable[[int], Iterator[Picture]]]] = {
    "importance 8 x 48": (plot_feature_importance, lambda n: importance(8, 48, n)),
    "importance 40 x 200": (plot_feature_importance, lambda n: importance(40, 200, n)),
    "importance 200 x 2000": (plot_feature_importance, lambda n: importance(200, 2000, n)),
    "states 8 x 50": (plot_state_space, lambda n: states(8, 50, n)),
    "states 12 x 50": (plot_state_space, lambda n: states(12, 50, n)),
    "states 12 x 1000": (plot_state_space, lambda n: states(12, 1000, n)),
    "states 64 x 50": (plot_state_space, lambda n: states(64, 50, n)),
    "units, 1 layer": (plot_unit_activity, lambda n: units(1, n)),
    "units, 2 layers": (plot_unit_activity, lambda n: units(2, n)),
    "units, 3 layers": (plot_unit_activity, lambda n: units(3, n)),
    "time": (plot_time_sensitivity, sensitivity),
}


def cpu(draw: Callable[[], object]) -> float:
    start = time.thread_time()
    draw()
    return time.thread_time() - start


def stall(draw: Callable[[int], object], count: int) -> float:
    """Seconds that a loop in Python on this thread loses for each of ``count`` pictures."""
    drawn = threading.Event()

    def work() -> None:
        for i in range(count):
            draw(i)
        drawn.set()

    def loop(passes: int) -> None:
        for _ in range(passes):
            sum(range(1000))

    start = time.perf_counter()
    loop(3000)
    each = (time.perf_counter() - start) / 3000
    thread, passes = threading.Thread(target=work), 0
    start = time.perf_counter()
    thread.start()
    while not drawn.is_set():
        loop(10)
        passes += 10
    lost = time.perf_counter() - start - passes * each
    thread.join()
    return lost / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25)
    repeats = parser.parse_args().repeats
    redrawer = Redrawer()
    print("| picture | afresh, ms | redrawn, ms | ratio | kB | stall afresh | stall redrawn |")
    print("|---|---|---|---|---|---|---|")
    for kind, (plot, make) in KINDS.items():
        pictures = [
            (data, {**options, "step": 100 * i})
            for i, (data, options) in enumerate(make(repeats + 2))
        ]

        def afresh(i: int, pictures: Any = pictures, plot: Any = plot) -> bytes:
            data, options = pictures[i]
            return to_png(plot(data, **options))

        def again(i: int, pictures: Any = pictures, plot: Any = plot, tag: str = kind) -> bytes:
            return redrawer.png(tag, plot, pictures[i][0], pictures[i][1])

        ways = (afresh, again)
        times = [[cpu(lambda w=way, i=i: w(i)) for way in ways] for i in range(len(pictures))]
        # The first two pay for imports, the frame and the first "first".
        fresh, kept = (statistics.median(t) * 1e3 for t in zip(*times[2:], strict=True))
        stalls = [stall(way, len(pictures)) * 1e3 for way in ways]
        print(
            f"| {kind} | {fresh:.1f} | {kept:.1f} | {kept / fresh:.3f} | "
            f"{len(again(2)) / 1e3:.0f} | {stalls[0]:.1f} | {stalls[1]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
