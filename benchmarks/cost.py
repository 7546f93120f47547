"""What looking costs, in the user's own training steps.

    python benchmarks/cost.py                 # sizes S and M; prints a table, stores cost.csv
    python benchmarks/cost.py --sizes S M L --repeats 9

Everything is measured in turn in one process (step, tick, step, tick, ...) and given as the ratio
of medians, with the quartiles of the ratios beside it: absolute times of a shared machine mean
little. A tick is what a look takes until its records are on disk: the call in the loop, and
what the writer's thread does afterwards (drawing, encoding, writing), which the loop doesn't wait
for.
"""

from __future__ import annotations

import argparse
import csv
import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import ncp_callbacks as ncp
from ncp_callbacks.models import LTC, CfC

# Batch, time steps, features, hidden units.
SIZES = {"S": (32, 32, 8, 32), "M": (64, 64, 16, 64), "L": (128, 128, 32, 128)}
HERE = Path(__file__).parent
SETS: dict[str, Callable[[], list[ncp.Callback] | None]] = {
    "standard set": lambda: None,
    "GradientAttribution": lambda: [ncp.GradientAttribution()],
    "TimeSensitivity": lambda: [ncp.TimeSensitivity()],
    "StateTransitions": lambda: [ncp.StateTransitions()],
    "StateSpace": lambda: [ncp.StateSpace()],
    "BackboneActivations": lambda: [ncp.BackboneActivations()],
}


class Net(nn.Module):
    def __init__(self, kind: str, features: int, units: int) -> None:
        super().__init__()
        self.rnn = CfC(features, units) if kind == "CfC" else LTC(features, units)
        self.head = nn.Linear(units, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(kind: str, size: str, sequences: int | None, repeats: int) -> list[dict[str, object]]:
    batch, steps, features, units = SIZES[size]
    mx.random.seed(0)
    model, optimizer = Net(kind, features, units), optim.Adam(learning_rate=1e-3)
    x = mx.random.normal((batch, steps, features))
    dt = mx.random.uniform(0.2, 1.8, (batch, steps))
    y = mx.cumsum(x[..., :1] * dt[..., None], axis=1) / steps**0.5
    mx.eval(x, dt, y, model.parameters())
    loss_and_grad = nn.value_and_grad(model, lambda x, dt, y: ((model(x, dt) - y) ** 2).mean())

    def step() -> None:
        loss, gradients = loss_and_grad(x, dt, y)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, loss)

    held_out = ncp.HeldOutBatch(x[:sequences], dt[:sequences])
    names = list(SETS) if sequences is None else ["standard set"]
    calls: dict[str, list[float]] = {name: [] for name in names}
    ticks: dict[str, list[float]] = {name: [] for name in names}
    own: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        monitors = {}
        for name in names:
            writer = ncp.TensorBoardWriter(Path(folder) / name, flush_seconds=0.0)
            monitor = ncp.Monitor(model, held_out, SETS[name](), writer=writer, every=1)
            monitors[name] = (monitor.__enter__(), writer)
        for number in range(1, repeats + 2):
            own.append(timed(step))
            for name, (monitor, writer) in monitors.items():
                calls[name].append(timed(functools.partial(monitor.on_step_end, number)))
                ticks[name].append(calls[name][-1] + timed(writer.flush))
        for monitor, writer in monitors.values():
            monitor.__exit__(None, None, None)
            writer.close()
    # The first round pays for imports and caches.
    base = statistics.median(own[1:])
    rows: list[dict[str, object]] = []
    for name in names:
        ratios = sorted(t / base for t in ticks[name][1:])
        rows.append(
            {
                "model": kind,
                "size": size,
                "held_out": len(held_out),
                "callbacks": name,
                "call": round(statistics.median(calls[name][1:]) / base, 3),
                "tick": round(statistics.median(ratios), 3),
                "tick_q1": round(ratios[len(ratios) // 4], 3),
                "tick_q3": round(ratios[3 * len(ratios) // 4], 3),
            }
        )
    return rows


def not_due(repeats: int = 20_000) -> float:
    """Seconds of a step at which nothing is due."""
    held_out = ncp.HeldOutBatch(mx.zeros((2, 3, 4)) + 1.0)
    writer, net = ncp.MemoryWriter(), nn.GRU(4, 4)
    with ncp.Monitor(net, held_out, writer=writer, every=10**9) as monitor:

        def many() -> None:
            for number in range(1, repeats):
                monitor.on_step_end(number, loss=0.0)

        return statistics.median(timed(many) for _ in range(5)) / repeats


def import_time() -> float:
    """Seconds that ``import ncp_callbacks`` takes after ``import mlx.core, mlx.nn``."""
    code = (
        "import mlx.core, mlx.nn, time; t = time.perf_counter(); import ncp_callbacks; "
        "print(time.perf_counter() - t)"
    )
    return statistics.median(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(5)
    )


def table(rows: list[dict[str, str]]) -> str:
    """The rows as the README shows them."""
    lines = [
        "| model | held-out sequences | callbacks | in the loop | until on disk |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        batch, steps, features, units = SIZES[r["size"]]
        what = f"{r['model']} {r['size']} (batch {batch}, {steps} steps, {features} features, "
        lines.append(
            f"| {what}{units} units) | {r['held_out']} | {r['callbacks']} "
            f"| {float(r['call']):.2f} | {float(r['tick']):.2f} |"
        )
    return "\n".join(lines)


def into_readme(shown: str) -> None:
    """Put the table where the README shows it."""
    readme = HERE.parent / "README.md"
    before, rest = readme.read_text().split("<!-- cost.csv -->\n")
    after = rest.split("<!-- end -->")[1]
    readme.write_text(f"{before}<!-- cost.csv -->\n{shown}\n<!-- end -->{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["S", "M"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=HERE / "cost.csv")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    cases = [("CfC", s, n) for s in args.sizes for n in (None, 16)] + [("LTC", "S", 16)]
    for number, (kind, size, sequences) in enumerate(cases, start=1):
        print(f"{number}/{len(cases)} {kind} {size}", file=sys.stderr, flush=True)
        rows += measure(kind, size, sequences, args.repeats)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with args.out.open(newline="") as file:
        shown = table(list(csv.DictReader(file)))
    print(shown)
    if args.out == HERE / "cost.csv":
        into_readme(shown)
    print(f"\na step that isn't due: {not_due() * 1e6:.2f} µs")
    print(f"import ncp_callbacks, beyond mlx: {import_time() * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
