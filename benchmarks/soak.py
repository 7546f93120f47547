"""Show that nothing grows in a long run with thousands of snapshots.

    python benchmarks/soak.py                       # 100,000 steps, a snapshot at every 20th
    python benchmarks/soak.py --steps 3000 --every 10

Prints, at ten points of the run, the resident memory, threads and open files of the training's and
of the observer's process, and the size of the log. It ends with 1 if anything has grown after the
first tenth, or if the log grows faster than the number of snapshots. Pictures are judged by their
mean size, because a busy machine drops some of them when snapshots come this fast.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from processes import children, resident_mb, threads

import ncp_callbacks as ncp
from ncp_callbacks.runs.frames import Frames
from ncp_callbacks.runs.reader import event_files


@dataclass(frozen=True)
class Process:
    """What a process holds."""

    resident_mb: float
    threads: int
    files: int


@dataclass(frozen=True)
class Reading:
    """What both processes hold at a step, MLX's part in the training's, and the log's size.

    The log's size is without pictures; ``picture_mb`` is the mean size of one.
    """

    step: int
    training: Process
    observer: Process
    mlx_mb: float
    log_mb: float
    picture_mb: float


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 8), nn.Linear(8, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.head(self.rnn(x)[:, -1])


def process(pid: int) -> Process:
    """Read what a process holds."""
    return Process(resident_mb(pid), threads(pid), len(os.listdir(f"/proc/{pid}/fd")))


def reading(step: int, log: Path, observer: int) -> Reading:
    """Read what this process and its observer hold."""
    gc.collect()
    log_bytes = sum(f.stat().st_size for f in log.rglob("*") if f.is_file())
    pictures = [
        len(frame.data)
        for file in event_files(log)
        for frame in Frames(file)
        if b"\x89PNG\r\n" in frame.data
    ]
    return Reading(
        step,
        process(os.getpid()),
        process(observer),
        mx.get_active_memory() / 1e6,
        (log_bytes - sum(pictures)) / 1e6,
        sum(pictures) / len(pictures) / 1e6,
    )


def soak(steps: int, every: int, log: Path) -> list[Reading]:
    """Train a small model, and read both processes after each tenth of ``steps``.

    Raises:
        RuntimeError: If the observer's process, or threads or files of the monitor, are left.
    """
    mx.random.seed(0)
    model, optimizer = Net(), optim.Adam(learning_rate=1e-4)
    x, y = mx.random.normal((8, 6, 3)), mx.arange(8) % 2
    loss_and_grad = nn.value_and_grad(
        model, lambda x, y: nn.losses.cross_entropy(model(x), y, reduction="mean")
    )
    held_out = ncp.HeldOutBatch(x, targets=y)
    readings, others = [], set(children())
    writer = ncp.TensorBoardWriter(log)
    with ncp.Monitor(
        model, held_out, writer=writer, every=every, background=True, verbose=False
    ) as monitor:
        (observer,) = set(children()) - others
        for step in range(1, steps + 1):
            loss, gradients = loss_and_grad(x, y)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            monitor.on_step_end(step, loss=loss)
            if step % (steps // 10) == 0:
                monitor.state_dict()  # waits for the analyses
                time.sleep(1.0)  # for the last pictures
                writer.flush()
                readings.append(reading(step, log, observer))
    writer.close()
    last, end = readings[-1].training, process(os.getpid())
    if set(children()) - others or end.threads >= last.threads or end.files >= last.files:
        raise RuntimeError("closing left the observer's process, or a thread or file, open")
    return readings


def growth(readings: list[Reading]) -> list[str]:
    """Return what has grown between the first tenth and the last."""
    first, last = readings[0], readings[-1]
    found = []
    for name in ("training", "observer"):
        was, now = getattr(first, name), getattr(last, name)
        # Allocators keep what they once had; what leaks grows with every snapshot.
        if now.resident_mb > 1.05 * was.resident_mb + 5:
            found.append(f"{name}: memory {was.resident_mb:.0f} to {now.resident_mb:.0f} MB")
        if now.threads > was.threads:
            found.append(f"{name}: threads {was.threads} to {now.threads}")
        if now.files > was.files:
            found.append(f"{name}: files {was.files} to {now.files}")
    if last.mlx_mb > 1.1 * first.mlx_mb + 1:
        found.append(f"training: memory of MLX {first.mlx_mb:.1f} to {last.mlx_mb:.1f} MB")
    expected = first.log_mb * last.step / first.step
    if last.log_mb > 1.2 * expected:
        found.append(f"log: {last.log_mb:.1f} MB where {expected:.1f} were expected")
    if last.picture_mb > 1.5 * first.picture_mb:
        sizes = f"{1000 * first.picture_mb:.0f} to {1000 * last.picture_mb:.0f} kB"
        found.append(f"pictures: {sizes} each")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=20)
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        readings = soak(args.steps, args.every, Path(folder) / "run")
    for each in readings:
        print(json.dumps(asdict(each)))
    found = growth(readings)
    print("\n".join(found) or "nothing grew", f"({time.monotonic() - start:.0f} s)")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
