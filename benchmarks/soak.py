"""Does anything grow? A long run with thousands of looks.

    python benchmarks/soak.py                       # 100,000 steps, a look every 20th
    python benchmarks/soak.py --steps 2000 --every 10

Prints, at ten points of the run, the memory of the process, of MLX, its threads and open files, and
the size of the log; ends with 1 if memory, threads or files grew after the first tenth, or if the
log's size is not proportional to the number of looks.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import ncp_callbacks as ncp
from ncp_callbacks.models import CfC


@dataclass(frozen=True)
class Reading:
    """What the process holds at one step."""

    step: int
    resident_mb: float
    mlx_mb: float
    threads: int
    files: int
    log_mb: float


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(3, 8, backbone_units=8), nn.Linear(8, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0][:, -1])


def reading(step: int, log: Path) -> Reading:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Reading(
        step=step,
        resident_mb=pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        mlx_mb=mx.get_active_memory() / 1e6,
        threads=threading.active_count(),
        files=len(os.listdir("/proc/self/fd")),
        log_mb=sum(f.stat().st_size for f in log.rglob("*") if f.is_file()) / 1e6,
    )


def soak(steps: int, every: int, log: Path) -> list[Reading]:
    """Train a small model and read the process after each tenth of ``steps``, and at the end."""
    mx.random.seed(0)
    model, optimizer = Net(), optim.Adam(learning_rate=1e-4)
    x, dt = mx.random.normal((8, 6, 3)), mx.random.uniform(0.5, 1.5, (8, 6))
    y = mx.arange(8) % 2
    loss_and_grad = nn.value_and_grad(
        model, lambda x, dt, y: nn.losses.cross_entropy(model(x, dt), y, reduction="mean")
    )
    writer = ncp.TensorBoardWriter(log)
    readings = []
    with ncp.Monitor(
        model, ncp.HeldOutBatch(x, dt, targets=y), writer=writer, every=every
    ) as monitor:
        for step in range(1, steps + 1):
            loss, gradients = loss_and_grad(x, dt, y)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            monitor.on_step_end(step, loss=loss)
            if step % (steps // 10) == 0:
                writer.flush()
                readings.append(reading(step, log))
    writer.close()
    return [*readings, reading(steps, log)]


def complaints(readings: list[Reading]) -> list[str]:
    """What grew between the first tenth and the last."""
    first, last, end = readings[0], readings[-2], readings[-1]
    found = []
    # Allocators keep what they once had; what leaks grows with every look.
    if last.resident_mb > first.resident_mb * 1.1 + 20:
        found.append(f"memory grew from {first.resident_mb:.0f} to {last.resident_mb:.0f} MB")
    if last.mlx_mb > first.mlx_mb * 1.1 + 1:
        found.append(f"MLX's memory grew from {first.mlx_mb:.1f} to {last.mlx_mb:.1f} MB")
    if last.threads > first.threads or last.files > first.files:
        found.append(
            f"threads {first.threads} to {last.threads}, files {first.files} to {last.files}"
        )
    if end.threads >= last.threads or end.files >= last.files:
        found.append("closing left the writer's thread or file open")
    expected = first.log_mb * last.step / first.step
    if not 0.7 * expected < last.log_mb < 1.3 * expected:
        found.append(f"the log has {last.log_mb:.1f} MB, {expected:.1f} were expected")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readings = soak(args.steps, args.every, Path(folder) / "run")
    for each in readings:
        print(json.dumps({k: round(v, 1) for k, v in asdict(each).items()}))
    found = complaints(readings)
    print("\n".join(found) or "nothing grew")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
