"""Measure what a monitor costs, in the user's own training steps.

    python benchmarks/cost.py                                # half an hour; updates cost.csv
    python benchmarks/cost.py --before /a/checkout           # CPU time beside an earlier version
    python benchmarks/cost.py --only peers --peer-python /somewhere/bin/python   # has PyTorch
    python benchmarks/cost.py --models CfC --sizes S --only loop
    python benchmarks/cost.py --quick                        # does it run? (stores nothing)

Absolute times of a shared machine mean little, so training steps and snapshots are measured in turn
in one process, and given as the ratio of their medians, with quartiles. A peer is measured in its
own training steps, of the same model on the same sequences. What is measured:

* ``loop``: how long the loop waits at a due step, and how long until everything is on disk.
* ``more``: entering the monitor, the checks of the model in it, a due step of the full set, and
  what each analysis of it takes.
* ``extra``: how much longer a training takes, with a snapshot every 100 steps. Blocks of training
  steps with and without a snapshot alternate; it is the median of their paired differences.
* ``cpu``: CPU time of a snapshot until it is on disk, of all processes together.
* ``once``: a step at which nothing is due, and the import.
* ``peers``: the same analyses written with PyTorch and Captum, and plainly in MLX.

``cost.csv`` has a row for every quantity; ``cost_report.py`` makes the table in the guide of it,
``cost.png``, and the budgets that are printed at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import functools
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from cost_report import COLUMNS, HERE, Row, budgets, into_guide, plot, read, table
from peers.cases import INTEGRATED, N_STEPS, SIZES
from peers.monitored import PERIOD, Monitored, timed
from peers.protocol import Worker
from peers.training import Training

import ncp_callbacks as ncp
from ncp_callbacks.attribution import InputXGradient, IntegratedGradients
from ncp_callbacks.callbacks import callback_set
from ncp_callbacks.model import ModelRunner

# An LTC of size L takes tens of gigabytes to train.
CASES = {"CfC": ("S", "M", "L"), "LTC": ("S", "M"), "GRU": ("S", "M", "L")}
KEYS = ("scope", "model", "size", "sequences", "what")
SEQUENCES = 16


class Rounds(NamedTuple):
    """How often something is measured.

    Attributes:
        turns: Due steps.
        full: Due steps of the full set, whose analysis may take 50 training steps.
        pairs, block: Pairs of blocks, and training steps in a block. A block is several times as
            long as the observer takes for a snapshot.
    """

    turns: int
    full: int
    pairs: int
    block: int


# By how long a training step takes: hundredths of a second, tenths, seconds.
SHORT, MEDIUM, LONG = Rounds(16, 4, 30, 20), Rounds(10, 3, 16, 8), Rounds(4, 2, 5, 3)
ROUNDS = {
    ("CfC", "S"): SHORT,
    ("GRU", "S"): SHORT,
    ("LTC", "S"): MEDIUM,
    ("CfC", "M"): MEDIUM,
    ("GRU", "M"): MEDIUM,
    ("CfC", "L"): LONG,
    ("GRU", "L"): LONG,
    # Minutes for an analysis of the full set.
    ("LTC", "M"): LONG._replace(full=0),
}
QUICK = Rounds(1, 1, 1, 1)


def full() -> list[ncp.Callback]:
    """Return the full set with everything due, as it is at every tenth snapshot."""
    callbacks = callback_set("full")
    for callback in callbacks:
        callback.every_nth = 1
    return callbacks


def as_peers() -> list[ncp.Callback]:
    """Return callbacks that analyse what the peers do: those of the standard set, by gradients."""
    return [
        ncp.GradientAttribution(method=InputXGradient(), removal=0),
        ncp.TimeSensitivity(),
        ncp.StateTransitions(),
        ncp.StateSpace(),
        ncp.BackboneActivations(),
    ]


def with_integrated_gradients() -> list[ncp.Callback]:
    """Return these, and the integrated gradients that the peers compute as well."""
    integrated = ncp.GradientAttribution(
        name="integrated_gradients",
        method=IntegratedGradients(N_STEPS),
        max_sequences=INTEGRATED,
    )
    return [*as_peers(), integrated]


class Timings:
    """Values by what was measured, given in training steps.

    Args:
        labels: ``scope``, ``model``, ``size`` and ``sequences`` of the rows.
    """

    def __init__(self, **labels: object) -> None:
        self._labels = labels
        self._steps: list[float] = []
        self._noted: dict[tuple[str, str], list[float]] = {}
        self._waiting: dict[str, list[float]] = {}

    def step(self, seconds: float) -> None:
        """Note the time of a training step."""
        self._steps.append(seconds)

    def note(self, what: str, value: float, unit: str = "steps") -> None:
        """Note seconds, to be divided by the median step; or a value in another unit."""
        self._noted.setdefault((what, unit), []).append(value)

    def snapshot(self, what: str, seconds: float) -> None:
        """Note the mean of as many successive snapshots as it takes for all parts to come once."""
        values = self._waiting.setdefault(what, [])
        values.append(seconds)
        if len(values) == PERIOD:
            self.note(what, statistics.mean(values))
            values.clear()

    def rows(self, step: str = "training step") -> list[Row]:
        """Return a row for everything that was noted."""
        base = statistics.median(self._steps)
        found = [row(step, "ms", [1e3 * s for s in self._steps], **self._labels)]
        for (what, unit), values in self._noted.items():
            scale = base if unit == "steps" else 1.0
            found.append(row(what, unit, [v / scale for v in values], **self._labels))
        return found


def row(what: str, unit: str, values: Sequence[float], **labels: object) -> Row:
    """Return the row of a quantity."""
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    numbers = {"median": f"{median:.4g}", "q1": f"{q1:.4g}", "q3": f"{q3:.4g}"}
    found = {"what": what, "unit": unit, **labels, **numbers, "rounds": len(values)}
    found["measured"] = datetime.date.today().isoformat()
    return {column: str(found.get(column, "")) for column in COLUMNS}


# ---- ours


def whole_periods(count: int) -> int:
    """Return at least so many snapshots that all parts come equally often."""
    return PERIOD * -(-count // PERIOD)


def loop(kind: str, size: str, count: int, rounds: Rounds) -> list[Row]:
    """Measure due steps in both places, the passes alone, and entering."""
    training = Training(kind, SIZES[size])
    timings = Timings(scope="loop", model=kind, size=size, sequences=count)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        open_one = functools.partial(Monitored, training, count)
        background = stack.enter_context(open_one(folder / "1", background=True))
        in_loop = stack.enter_context(open_one(folder / "2", background=False))
        training.step()
        training.plain_passes(count, removal=True)
        for number in range(whole_periods(rounds.turns)):
            for _ in range(2):
                timings.step(timed(training.step))
            seconds = background.snapshot()
            timings.snapshot("due step, background", seconds)
            timings.snapshot("until on disk, background", seconds + background.wait())
            timings.step(timed(training.step))
            seconds = in_loop.snapshot()
            timings.snapshot("due step, in the loop", seconds)
            timings.snapshot("until on disk, in the loop", seconds + in_loop.wait())
            timings.step(timed(training.step))
            passes = functools.partial(training.plain_passes, count, removal=number % PERIOD == 0)
            timings.snapshot("passes alone", timed(passes))
    return timings.rows()


def more(kind: str, size: str, count: int, rounds: Rounds) -> list[Row]:
    """Measure entering, and due steps of the full set with the time of every analysis."""
    training = Training(kind, SIZES[size])
    timings = Timings(scope="more", model=kind, size=size, sequences=count)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(3):
            timings.step(timed(training.step))
            log = Path(folder) / str(number)
            held_out = ncp.HeldOutBatch(*(array[:count] for array in training.inputs))
            checks = timed(functools.partial(ModelRunner, training.model, held_out))
            timings.note("entering: checks of the model", checks)
            with Monitored(training, count, log, background=True) as entered:
                timings.note("entering", entered.entering)
        if rounds.full:
            log = Path(folder) / "full"
            options = {"background": True, "callbacks": full()}
            with Monitored(training, count, log, **options) as everything:
                for _ in range(rounds.full):
                    timings.step(timed(training.step))
                    timings.note("due step, full set", everything.snapshot())
                    everything.wait()
                    for name, seconds in everything.seconds.items():
                        timings.note(f"analysis: {name}", seconds)
    return timings.rows()


def extra(kind: str, size: str, count: int, rounds: Rounds) -> list[Row]:
    """Measure how much longer training takes, by paired blocks of training steps."""
    training = Training(kind, SIZES[size])
    timings = Timings(scope="extra", model=kind, size=size, sequences=count)

    def block(monitored: Monitored | None) -> float:
        seconds = 0.0 if monitored is None else monitored.snapshot()
        seconds += sum(timed(training.step) for _ in range(rounds.block))
        if monitored is not None:
            # On a busy machine something may be left, which must not fall into the next block.
            monitored.wait()
        return seconds

    with (
        tempfile.TemporaryDirectory() as folder,
        Monitored(training, count, Path(folder) / "run", background=True) as monitored,
    ):
        block(monitored)
        block(None)
        for number in range(whole_periods(rounds.pairs)):
            # In turn first and last, so that what drifts has no part in the median.
            if number % 2:
                without, with_one = block(None), block(monitored)
            else:
                with_one, without = block(monitored), block(None)
            timings.step(without / rounds.block)
            # As steps per snapshot, which is per cent at every=100.
            timings.snapshot("training, every=100", with_one - without)
    return timings.rows()


def cpu(kind: str, size: str, count: int, rounds: Rounds, before: Path | None) -> list[Row]:
    """Measure CPU time until on disk, in worker processes that take turns."""
    timings = Timings(scope="cpu", model=kind, size=size, sequences=count)
    ways: dict[str, dict[str, object]] = {
        "background": {"background": 1}, "in the loop": {"background": 0},
    }  # fmt: skip
    if before is not None:
        ways["before"] = {"package": before}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = {}
        for name, options in ways.items():
            worker = Worker(
                "peers.monitored", sys.executable, model=kind, size=size, sequences=count,
                log=Path(folder) / name, **options,
            )  # fmt: skip
            workers[name] = stack.enter_context(worker)
            if name == "before" and Path(worker.versions["ncp_callbacks"]).parent != before:
                raise SystemExit(f"--before: there is no ncp_callbacks in {before}")
        for number in range(1 + max(2, rounds.turns // 2)):
            for name, worker in workers.items():
                found = worker.ask("snapshots", count=PERIOD)
                if number:
                    timings.step(found["step"])
                    timings.note(f"until on disk, {name}", found["snapshot"])
    return timings.rows()


def not_due(repeats: int) -> Row:
    """Measure a step at which nothing is due."""
    held_out = ncp.HeldOutBatch(mx.ones((2, 3, 4)))
    writer = ncp.MemoryWriter()
    with ncp.Monitor(nn.GRU(4, 4), held_out, writer=writer, every=10**9) as monitor:
        number = iter(range(1, 10**9))

        def many() -> None:
            for _ in range(repeats):
                monitor.on_step_end(next(number), loss=0.0)

        values = [timed(many) / repeats * 1e6 for _ in range(8)][1:]
    return row("step at which nothing is due", "µs", values, scope="once")


def importing(repeats: int) -> Row:
    """Measure ``import ncp_callbacks`` in a process that has imported MLX."""
    code = (
        "import mlx.core, mlx.nn, time; t = time.perf_counter(); import ncp_callbacks; "
        "print(1e3 * (time.perf_counter() - t))"
    )
    values = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(repeats + 1)
    ]
    return row("import after mlx", "ms", values[1:], scope="once")


# ---- peers

OURS = {
    "ncp_callbacks": as_peers,
    "ncp_callbacks, with integrated gradients": with_integrated_gradients,
}
PEERS = {
    "PyTorch + Captum": ("peers.torch_captum", "separate"),
    "PyTorch + Captum, passes shared by hand": ("peers.torch_captum", "shared"),
    "plain MLX": ("peers.naive_mlx", "separate"),
}


def peers(size: str, rounds: Rounds, python: str) -> list[Row]:
    """Measure the same snapshot in other ways, each in its own training steps, in turn with ours.

    Args:
        python: One that has PyTorch and Captum; "" for plain MLX only.
    """
    shape = SIZES[size]
    training = Training("CfC", shape)
    labels = {"scope": "peer", "model": "CfC", "size": size, "sequences": shape.batch}
    pythons = {"peers.naive_mlx": sys.executable}
    if python:
        pythons["peers.torch_captum"] = python
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = {
            name: stack.enter_context(
                Monitored(training, shape.batch, folder / name, background=True, callbacks=make())
            )
            for name, make in OURS.items()
        }
        workers = {}
        for module, own in pythons.items():
            worker = Worker(module, own, size=size, sequences=shape.batch, log=folder / module)
            workers[module] = stack.enter_context(worker)
        timings = {name: Timings(**labels) for name in ("ours", *workers)}
        for number in range(1 + max(2, rounds.turns // 2)):
            if number == 1:  # the first round pays for imports and caches
                timings = {name: Timings(**labels) for name in timings}
            for name, monitored in ours.items():
                timings["ours"].step(timed(training.step))
                timings["ours"].note(name, monitored.snapshot() + monitored.wait())
            for name, (module, way) in PEERS.items():
                if module in workers:
                    for _ in range(3):
                        timings[module].step(workers[module].ask("step")["seconds"])
                    parts = workers[module].ask("snapshot", way=way)
                    integrated = parts.pop("integrated gradients")
                    timings[module].note(name, sum(parts.values()))
                    whole = sum(parts.values()) + integrated
                    timings[module].note(f"{name}, with integrated gradients", whole)
        found = [r for n, t in timings.items() for r in t.rows(f"training step of {n}")]
        for module, worker in workers.items():
            versions = ", ".join(f"{n} {v}" for n, v in worker.versions.items())
            found.append(row(versions, "", [1], scope="machine", model=module))
    return found


# ---- the command


def machine() -> list[Row]:
    """Return the machine and the versions that it was measured with."""
    names = ("numpy", "mlx", "ncp-callbacks")
    versions = {"python": platform.python_version(), **{n: version(n) for n in names}}
    what = ", ".join(f"{n} {v}" for n, v in versions.items())
    cores = [os.cpu_count() or 0]
    return [row(what, "cores", cores, scope="machine", model=platform.machine())]


def jobs(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """Iterate over what was asked for: a name, and a function that measures it."""
    sizes = ["tiny"] if args.quick else args.sizes
    cases = [
        (kind, size) for size in sizes for kind in args.models if size in CASES[kind] or args.quick
    ]

    def add(
        scope: str, name: str, function: Callable[..., list[Row]], *arguments: object
    ) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
        if scope in args.only:
            yield f"{scope} {name}", functools.partial(function, *arguments)

    yield "machine", machine
    repeats = (20, 1) if args.quick else (20_000, 9)
    yield from add("once", "", lambda: [not_due(repeats[0]), importing(repeats[1])])
    for kind, size in cases:
        rounds = ROUNDS.get((kind, size), QUICK)
        few, whole = (2, 4) if args.quick else (SEQUENCES, SIZES[size].batch)
        name = f"{kind} {size}, {few} sequences"
        yield from add("loop", name, loop, kind, size, few, rounds)
        yield from add("extra", name, extra, kind, size, few, rounds)
        yield from add("cpu", name, cpu, kind, size, few, rounds, args.before)
        yield from add("more", name, more, kind, size, few, rounds)
        name = f"{kind} {size}, whole batch"
        yield from add("loop", name, loop, kind, size, whole, rounds)
        if rounds != LONG:
            yield from add("cpu", name, cpu, kind, size, whole, rounds, args.before)
    for size in sizes:
        rounds = ROUNDS.get(("CfC", size), QUICK)
        yield from add("peers", size, peers, size, rounds, args.peer_python)


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return rows of which new ones replace old ones of the same thing."""

    def key(row: Row) -> tuple[str, ...]:
        # A machine and its versions replace earlier ones.
        return tuple(row[k] for k in (KEYS[:2] if row["scope"] == "machine" else KEYS))

    return list({key(row): row for row in (*old, *new)}.values())


def _folder(path: str) -> Path:
    return Path(path).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    scopes = ["loop", "extra", "cpu", "more", "once", "peers"]
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sizes", nargs="+", choices=["S", "M", "L"], default=["S", "M", "L"])
    parser.add_argument("--only", nargs="+", choices=scopes, default=scopes)
    parser.add_argument("--before", type=_folder, help="a checkout of an earlier version")
    parser.add_argument("--peer-python", default="", help="a Python that has PyTorch and Captum")
    parser.add_argument("--quick", action="store_true", help="tiny models: does it run?")
    parser.add_argument("--out", type=Path, default=HERE / "cost.csv", help="where to store")
    args = parser.parse_args()
    logging.getLogger("ncp_callbacks").setLevel(logging.ERROR)
    rows = read(args.out) if args.out.exists() and not args.quick else []
    for name, job in jobs(args):
        print(f"{datetime.datetime.now():%H:%M:%S} {name}", file=sys.stderr, flush=True)
        rows = merged(rows, job())
        mx.clear_cache()
        if not args.quick:  # now, so that an interrupt loses nothing
            with args.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    print(f"{table(rows)}\n\n{budgets(rows)}")
    if not args.quick and args.out == HERE / "cost.csv":
        plot(rows, args.out.with_suffix(".png"))
        into_guide(HERE.parent / "examples" / "cost.md", table(rows))


if __name__ == "__main__":
    main()
