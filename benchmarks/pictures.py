"""Measure what each picture costs at a snapshot, redrawn as the observer does it, and afresh.

    python benchmarks/pictures.py                            # the standard set, CfC of size S
    python benchmarks/pictures.py --callbacks full --model LTC
    python benchmarks/pictures.py --before /a/checkout       # beside an earlier version

A model is trained and its snapshots are recorded, so that data change from picture to picture as
they do while a model trains. Then they are drawn: medians of milliseconds of CPU time, from the
result of an analysis to a PNG, without the first two pictures of each tag. Versions take turns,
picture by picture, because times of a shared machine drift.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import pickle
import statistics
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from peers.cases import SIZES
from peers.protocol import Worker
from peers.training import Training

import ncp_callbacks as ncp
from ncp_callbacks.callbacks import callback_set

HERE = Path(__file__).parent


def recorded(args: argparse.Namespace) -> list[ncp.Figure]:
    """Return the figures of the snapshots of a training, in their order."""
    training = Training(args.model, SIZES[args.size])
    callbacks = callback_set(args.callbacks)
    for callback in callbacks:
        callback.every_nth = 1
    writer = ncp.MemoryWriter()
    held_out = ncp.HeldOutBatch(*(array[: args.sequences] for array in training.inputs))
    with ncp.Monitor(
        training.model, held_out, callbacks, writer=writer, every=1, background=False, verbose=False
    ) as monitor:
        for snapshot in range(1, args.snapshots + 1):
            for _ in range(args.every):
                training.step()
            monitor.on_step_end(args.every * snapshot)
    return [record for _, record in writer.records if isinstance(record, ncp.Figure)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=["CfC", "LTC", "GRU"], default="CfC")
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--callbacks", choices=["standard", "full"], default="standard")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--snapshots", type=int, default=20, help="at least 3")
    parser.add_argument("--every", type=int, default=5, help="training steps between snapshots")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version")
    args = parser.parse_args()
    logging.getLogger("ncp_callbacks").setLevel(logging.ERROR)
    figures = recorded(args)

    packages = {"now": HERE.parent} | ({"before": args.before.resolve()} if args.before else {})
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "figures.pickle"
        path.write_bytes(pickle.dumps(figures))
        workers = {
            name: stack.enter_context(
                Worker("peers.drawing", sys.executable, pictures=path, package=package)
            )
            for name, package in packages.items()
        }
        drawn: Counter[str] = Counter()
        for number, figure in enumerate(figures):
            drawn[figure.tag] += 1
            for name, worker in workers.items():
                found = worker.ask("draw", number=number, afresh=name == "now")
                if drawn[figure.tag] > 2:
                    for way, value in found.items():
                        times[figure.tag][f"{way}, {name}"].append(value)
    columns = list(next(iter(times.values())))
    print("| picture | " + " | ".join(f"{column}, ms" for column in columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    total: Counter[str] = Counter()
    for tag, ways in times.items():
        medians = {column: statistics.median(ways[column]) for column in columns}
        total.update(medians)
        print(f"| `{tag}` | " + " | ".join(f"{medians[c]:.1f}" for c in columns) + " |")
    print("| all | " + " | ".join(f"{total[c]:.1f}" for c in columns) + " |")


if __name__ == "__main__":
    main()
