"""What looking costs, in the user's own training steps.

    python benchmarks/cost.py                        # half an hour; stores cost.csv and cost.png
    python benchmarks/cost.py --peers                # also PyTorch + Captum, and plain MLX
    python benchmarks/cost.py --peers --peer-python /somewhere/bin/python     # that has PyTorch
    python benchmarks/cost.py --quick                # does it run? (stores nothing)

Absolute times of a shared machine mean little, so everything is measured in turn in one run (step,
look, step, look, …) and given as the ratio of its median to the median of the training steps around
it, with its quartiles; the first round, which pays for imports and caches, is dropped. A peer is
measured in its own training steps, of the same model on the same sequences.

A look takes what it takes until its records are on disk: the call *in the loop*, and what the
writer does afterwards (drawing, encoding, writing), which the loop doesn't wait for.

``cost.csv`` has a row for every quantity; the README's table, ``cost.png`` and the budgets printed
at the end are made of it by ``cost_report.py``. To measure another set of callbacks, add it to
``LOOKS`` (everything about it) or ``PARTS`` (its time only).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import gc
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from cost_report import (
    ALL_INTEGRATED,
    COLUMNS,
    FEW_INTEGRATED,
    Row,
    budgets,
    into_readme,
    plot,
    slope,
    table,
)  # fmt: skip
from peers.cases import SIZES, Size, sequences
from peers.protocol import PeerError, Worker

import ncp_callbacks as ncp
from ncp_callbacks.attribution import IntegratedGradients
from ncp_callbacks.callbacks import callback_set
from ncp_callbacks.models import LTC, CfC

HERE = Path(__file__).parent

Options = Mapping[str, Any]


def standard() -> list[ncp.Callback]:
    """The standard set, to add to."""
    return [
        ncp.GradientAttribution(), ncp.TimeSensitivity(), ncp.StateTransitions(),
        ncp.StateSpace(), ncp.BackboneActivations(),
    ]  # fmt: skip


def integrated(n_steps: int = 8, sequences: int | None = 8) -> ncp.Callback:
    """Return the callback for integrated gradients of so many sequences."""
    return ncp.GradientAttribution(
        name="integrated_gradients", method=IntegratedGradients(n_steps), max_sequences=sequences
    )


def full() -> list[ncp.Callback]:
    """The full set with everything due, as it is at every tenth look."""
    callbacks = callback_set("full")
    for callback in callbacks:
        callback.every_nth = 1
    return callbacks


# What a monitor is made with, by name.
LOOKS: dict[str, Callable[[], Options]] = {
    "standard set": dict,
    "light set": lambda: {"callbacks": "light"},
    "standard set and integrated gradients": lambda: {"callbacks": [*standard(), integrated()]},
}
PARTS: dict[str, Callable[[], Options]] = {
    "GradientAttribution": lambda: {"callbacks": [ncp.GradientAttribution()]},
    "TimeSensitivity": lambda: {"callbacks": [ncp.TimeSensitivity()]},
    "StateTransitions": lambda: {"callbacks": [ncp.StateTransitions()]},
    "StateSpace": lambda: {"callbacks": [ncp.StateSpace()]},
    "BackboneActivations": lambda: {"callbacks": [ncp.BackboneActivations()]},
    "standard set, 8 sequences at once": lambda: {"chunk_size": 8},
    "integrated gradients, 8 sequences, 8 nodes": lambda: {"callbacks": [integrated(NODES)]},
    "TimeConstants": lambda: {"callbacks": [ncp.TimeConstants()]},
    "Dynamics": lambda: {"callbacks": [ncp.Dynamics()]},
    "OutputTime": lambda: {"callbacks": [ncp.OutputTime()]},
    "FeatureInteractions": lambda: {"callbacks": [ncp.FeatureInteractions()]},
    "Faithfulness": lambda: {"callbacks": [ncp.Faithfulness()]},
    "SanityCheck": lambda: {"callbacks": [ncp.SanityCheck()]},
    "full set, every tenth look": lambda: {"callbacks": full()},
}
# Where parts are measured.
PARTS_AT = {("CfC", "M"), ("CfC", "tiny")}
# Of models other than a CfC.
ONE = {"standard set": LOOKS["standard set"]}
# An LTC of size L takes tens of gigabytes to train.
CASES = {"CfC": ("S", "M", "L"), "LTC": ("S", "M"), "GRU": ("S", "M", "L")}
# Seconds to minutes a round: half the rounds.
SLOW = {("CfC", "L"), ("GRU", "L"), ("LTC", "M")}
FEW = 16
# Peers spend as many gradients on integrated gradients as we do, on as many sequences.
NODES = 8
BESIDE_PEERS: dict[str, Callable[[], Options]] = {
    "standard set": dict,
    "standard set and integrated gradients": LOOKS["standard set and integrated gradients"],
    FEW_INTEGRATED: lambda: {"callbacks": [*standard(), integrated(NODES)]},
    ALL_INTEGRATED: lambda: {"callbacks": [*standard(), integrated(NODES, None)]},
}
PEERS = {
    "PyTorch + Captum": ("peers.torch_captum", "separate"),
    "PyTorch + Captum, passes shared": ("peers.torch_captum", "shared"),
    "plain MLX": ("peers.naive_mlx", "separate"),
}


class Net(nn.Module):
    def __init__(self, kind: str, features: int, units: int) -> None:
        super().__init__()
        self.rnn = {"CfC": CfC, "LTC": LTC, "GRU": nn.GRU}[kind](features, units)
        self.head = nn.Linear(units, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class GRUNet(Net):
    """Takes no intervals."""

    def __call__(self, x: mx.array) -> mx.array:  # type: ignore[override]
        return self.head(self.rnn(x))


class Training:
    """A model, its data, and the step that trains it."""

    def __init__(self, kind: str, size: Size) -> None:
        mx.random.seed(0)
        self.model = model = (GRUNet if kind == "GRU" else Net)(kind, size.features, size.units)
        self._optimizer = optim.Adam(learning_rate=1e-3)
        x, dt, self._y = map(mx.array, sequences(size))
        self.inputs = [x] if kind == "GRU" else [x, dt]
        mx.eval(self.inputs, self._y, model.parameters())
        self._loss_and_grad = nn.value_and_grad(
            model, lambda y, *inputs: ((model(*inputs) - y) ** 2).mean()
        )

    def step(self) -> None:
        loss, gradients = self._loss_and_grad(self._y, *self.inputs)
        self._optimizer.update(self.model, gradients)
        mx.eval(self.model.parameters(), self._optimizer.state, loss)

    def held_out(self, count: int | None = None) -> ncp.HeldOutBatch:
        return ncp.HeldOutBatch(*(a[:count] for a in self.inputs))

    def forward(self, count: int | None = None) -> None:
        mx.eval(self.model(*(a[:count] for a in self.inputs)))

    def gradient(self, count: int | None = None) -> None:
        """Of the last output with respect to all inputs, as plainly as can be."""
        inputs = [a[:count] for a in self.inputs]
        of = list(range(len(inputs)))
        mx.eval(mx.grad(lambda *a: self.model(*a)[:, -1].sum(), argnums=of)(*inputs))


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Passes:
    """Seconds that go into running, differentiating and evaluating the model."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds = 0.0
        self._class, self._inside = type(model), False

    def _clocked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._inside = False

        return call

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self.seconds = 0.0
        with contextlib.ExitStack() as stack:
            for name in ("grad", "value_and_grad"):
                clocked = self._transform(getattr(mx, name))
                stack.enter_context(mock.patch.object(mx, name, clocked))
            # Unlike those, it calls what it is given at once.
            for owner, name in (
                (mx, "vjp"),
                (mx, "eval"),
                (mx, "async_eval"),
                (self._class, "__call__"),
            ):
                clocked = self._clocked(getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, clocked))
            yield

    def _transform(self, transform: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._clocked(transform(*args, **kwargs))


class Rounds:
    """Times by what was done, in rounds of which the first doesn't count.

    Args:
        step: A training step, in whose median everything is given.
        labels: ``model``, ``size`` and ``sequences`` of the rows.
    """

    def __init__(self, step: Callable[[], object], **labels: object) -> None:
        self._step, self._labels = step, labels
        self._steps: list[list[float]] = []
        self._noted: dict[tuple[str, str, str], list[list[float]]] = {}

    def start(self) -> None:
        self._steps.append([])

    def step(self, seconds: float | None = None) -> float:
        """Time a training step, or take the time of one."""
        seconds = timed(self._step) if seconds is None else seconds
        self._steps[-1].append(seconds)
        return seconds

    def note(self, what: str, quantity: str, value: float, unit: str = "steps") -> None:
        rounds = self._noted.setdefault((what, quantity, unit), [])
        rounds += [[] for _ in range(len(self._steps) - len(rounds))]
        rounds[-1].append(value)

    def rows(self, scope: str) -> list[Row]:
        steps = [s for each in self._steps[1:] for s in each]
        base = statistics.median(steps)
        own = ("training step", "wall", "ms")
        found = [_row(scope, *own, [s * 1e3 for s in steps], **self._labels)]
        for (what, quantity, unit), rounds in self._noted.items():
            values = [v for each in rounds[1:] for v in each]
            scale = base if unit == "steps" else 1.0
            found.append(
                _row(scope, what, quantity, unit, [v / scale for v in values], **self._labels)
            )
        return found


def _row(
    scope: str, what: str, quantity: str, unit: str, values: Sequence[float], **labels: object
) -> Row:
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    numbers = {"median": median, "q1": q1, "q3": q3}
    row = {"scope": scope, "what": what, "quantity": quantity, "unit": unit, **labels}
    row |= {name: f"{number:.4g}" for name, number in numbers.items()}
    row["rounds"] = len(values)
    return {column: str(row.get(column, "")) for column in COLUMNS}


class Looking:
    """A monitor that looks when told to, and its writer."""

    def __init__(self, training: Training, count: int | None, options: Options, log: Path) -> None:
        self.writer = ncp.TensorBoardWriter(log)
        self.monitor = ncp.Monitor(
            training.model, training.held_out(count), writer=self.writer, every=1,
            on_error="raise", **options,
        )  # fmt: skip
        self.entering = timed(self.monitor.__enter__)
        self._number = 0

    @property
    def looks(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self.monitor.callbacks)

    def call(self) -> float:
        """Seconds of a look in the loop."""
        self._number += 1
        return timed(functools.partial(self.monitor.on_step_end, self._number))

    def flush(self) -> float:
        """Seconds until all of it is on disk."""
        return timed(self.writer.flush)

    def close(self) -> None:
        self.monitor.__exit__(None, None, None)
        self.writer.close()
        lost = self.writer.dropped_figures + self.writer.dropped_records
        if lost or self.writer.failed_records or self.writer.failure is not None:
            raise RuntimeError("not everything was written, so these times mean nothing")


@contextlib.contextmanager
def looking(
    training: Training, count: int | None, looks: Mapping[str, Callable[[], Options]]
) -> Iterator[dict[str, Looking]]:
    """Monitors by name, of those that find something to look at."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        opened = {}
        for name, options in looks.items():
            each = Looking(training, count, options(), Path(folder) / name)
            stack.callback(each.close)
            if each.looks:
                opened[name] = each
        yield opened


def measure(kind: str, size: str, count: int | None, repeats: int, progress: Progress) -> list[Row]:
    """Looks at ``count`` sequences, or at the whole batch, where also the parts are measured."""
    shape = SIZES[size]
    training = Training(kind, shape)
    whole = count is None
    named = LOOKS if kind == "CfC" else ONE
    parts = PARTS if whole and (kind, size) in PARTS_AT else {}
    sequences = shape.batch if count is None else count
    rounds = Rounds(training.step, model=kind, size=size, sequences=sequences)
    passes = Passes(training.model)
    with (
        looking(training, count, {**named, **parts}) as looks,
        tempfile.TemporaryDirectory() as tmp,
    ):
        for number in range(repeats + 1):
            progress.advance(f"{kind} {size}, {sequences} sequences")
            rounds.start()
            for name, look in looks.items():
                rounds.step()
                with passes.counted():
                    call = look.call()
                until = call + look.flush()
                rounds.note(name, "in the loop", call)
                rounds.note(name, "until on disk", until)
                rounds.note(name, "model passes", passes.seconds)
                if name in named:
                    beyond = (call - passes.seconds) / until
                    rounds.note(name, "beyond model passes", 100 * beyond, "% of the look")
                    # What the loop feels: the call, and the step that the writer's work slows.
                    step, call, after = rounds.step(), look.call(), timed(training.step)
                    look.flush()
                    rounds.note(name, "next step", after)
                    extra = 100 * (call + after - step) / (100 * step)
                    rounds.note(name, "extra time at every=100", extra, "%")
            rounds.step()
            for quantity, run in (
                ("forward pass", training.forward), ("gradient pass", training.gradient),
            ):  # fmt: skip
                rounds.note("bare model", quantity, timed(functools.partial(run, count)))
            for name, options in named.items():
                rounds.step()
                entered = Looking(training, count, options(), Path(tmp) / f"{name} {number}")
                rounds.note(name, "entering", entered.entering)
                entered.close()
    return rounds.rows("look")


# ---- growth


class Scales(ncp.Callback):
    """Nothing but the passes at so many scales."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._scales = np.geomspace(0.5, 5.0, count).tolist()

    def measure(self, observation: ncp.Observation) -> Iterable[ncp.Record]:
        values = observation.values_at_scales(self._scales)
        yield ncp.Scalar("scales/last", float(values[self._scales[-1]].mean()))


def growth(base: Size, factor: int, repeats: int, progress: Progress) -> list[Row]:
    """Time in the loop, and MLX's memory, over a factor of ``factor`` in steps of 2."""
    counts = [2**i for i in range(factor.bit_length())]
    curves: dict[str, list[tuple[int, Size, Options]]] = {
        "sequences": [(n, base._replace(batch=n), {}) for n in (base.batch * c for c in counts)],
        "time steps": [(n, base._replace(steps=n), {}) for n in (base.steps * c for c in counts)],
        "scales": [(n, base, {"callbacks": [Scales(n)]}) for n in counts],
    }
    rows = []
    for what, points in curves.items():
        seconds: dict[int, list[float]] = {n: [] for n, _, _ in points}
        peaks: dict[int, list[float]] = {n: [] for n, _, _ in points}
        with tempfile.TemporaryDirectory() as folder:
            looks = {}
            for n, size, options in points:
                training = Training("CfC", size)
                # By default a look takes no more memory than twice what training took.
                training.step()
                looks[n] = Looking(training, None, options, Path(folder) / str(n))
            for number in range(repeats + 1):
                progress.advance(f"growth with {what}")
                for n, look in looks.items():
                    held = mx.get_active_memory()
                    if number:
                        mx.reset_peak_memory()
                    call = look.call()
                    look.flush()
                    if number:
                        seconds[n].append(call * 1e3)
                        peaks[n].append((mx.get_peak_memory() - held) / 1e6)
            for look in looks.values():
                look.close()
        for quantity, unit, values in (("time", "ms", seconds), ("memory", "MB", peaks)):
            found = [_row("growth", what, f"{quantity} at {n}", unit, v) for n, v in values.items()]
            rows += found
            medians = [float(row["median"]) for row in found]
            rows.append(
                _row("growth", what, f"{quantity}, slope", "", [slope(list(values), medians)])
            )
    return rows


# ---- what a process pays once


def in_process(kind: str, size: str, count: int | None, look: str) -> dict[str, float]:
    """Memory and first times of this process, which must have done nothing else.

    Args:
        look: One of ``LOOKS``, or "" for training only.
    """
    training = Training(kind, SIZES[size])
    step = statistics.median(timed(training.step) for _ in range(3))
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if look:
            looking = Looking(training, count, LOOKS[look](), Path(folder) / "run")
            found["entering at first, steps"] = looking.entering / step
            found["first look, steps"] = (looking.call() + looking.flush()) / step
        # Garbage in cycles is nobody's, and goes at some time or other.
        gc.collect()
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        if look:
            looking.call()
            looking.flush()
        else:
            training.step()
        found["MLX at its peak, MB"] = (mx.get_peak_memory() - held) / 1e6
        found["MLX before, MB"] = held / 1e6
        gc.collect()
        found["MLX after, MB"] = mx.get_active_memory() / 1e6
        found["process at its peak, MB"] = peak_resident()
        if look:
            looking.close()
    return found


def peak_resident() -> float:
    """Most memory that this process ever held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there includes the parent at its start
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e3)


def processes(
    kind: str, size: str, count: int | None, repeats: int, progress: Progress
) -> list[Row]:
    """:func:`in_process`, for each look and for training alone, in processes of their own."""
    values: dict[tuple[str, str], list[float]] = {}
    for _ in range(repeats):
        for look in ("", *LOOKS):
            progress.advance(f"{kind} {size}, a process of its own")
            arguments = json.dumps([kind, size, count, look])
            out = subprocess.run(
                [sys.executable, __file__, "--in-process", arguments],
                check=True, stdout=subprocess.PIPE, text=True,
            ).stdout  # fmt: skip
            for quantity, value in json.loads(out).items():
                values.setdefault((look or "training", quantity), []).append(value)
    labels = {"model": kind, "size": size, "sequences": count or SIZES[size].batch}
    return [
        _row("process", what, *quantity.split(", "), numbers, **labels)
        for (what, quantity), numbers in values.items()
    ]


def not_due(repeats: int) -> list[Row]:
    """A step at which nothing is due."""
    held_out = ncp.HeldOutBatch(mx.ones((2, 3, 4)))
    writer, net = ncp.MemoryWriter(), nn.GRU(4, 4)
    with ncp.Monitor(net, held_out, writer=writer, every=10**9) as monitor:
        number = iter(range(1, 10**9))

        def many() -> None:
            for _ in range(repeats):
                monitor.on_step_end(next(number), loss=0.0)

        values = [timed(many) / repeats * 1e6 for _ in range(8)][1:]
    return [_row("once", "a step at which nothing is due", "wall", "µs", values)]


def importing(repeats: int) -> list[Row]:
    """``import ncp_callbacks`` in a process that has imported MLX, without and with numpy."""
    rows = []
    for before in ("mlx.core, mlx.nn", "mlx.core, mlx.nn, numpy"):
        code = (
            f"import {before}, time; t = time.perf_counter(); import ncp_callbacks; "
            "print(time.perf_counter() - t)"
        )
        values = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE
                ).stdout
            )
            for _ in range(repeats + 1)
        ][1:]
        what = f"import ncp_callbacks after {before}"
        rows.append(_row("once", what, "wall", "ms", [v * 1e3 for v in values]))
    return rows


# ---- peers


def against_peers(size: str, python: str, repeats: int, progress: Progress) -> list[Row]:
    """The same look in other ways, each in its own training steps, in turn with ours."""
    shape = SIZES[size]
    training = Training("CfC", shape)
    labels = {"model": "CfC", "size": size, "sequences": shape.batch}
    ours = Rounds(training.step, **labels)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        looks = stack.enter_context(looking(training, None, BESIDE_PEERS))
        workers = {}
        for module in dict.fromkeys(module for module, _ in PEERS.values()):
            own = python if module == "peers.torch_captum" else sys.executable
            options = {"size": size, "sequences": shape.batch, "log": folder / module}
            workers[module] = stack.enter_context(Worker(module, own, **options))
        theirs = {module: Rounds(lambda: None, **labels) for module in workers}
        for _ in range(repeats + 1):
            progress.advance(f"CfC {size}, peers")
            ours.start()
            for name, look in looks.items():
                ours.step()
                call = look.call()
                ours.note(name, "until on disk", call + look.flush())
            for each in theirs.values():
                each.start()
            for name, (module, way) in PEERS.items():
                rounds = theirs[module]
                # Its steps are short, and the first finds cold caches.
                for _ in range(3):
                    rounds.step(workers[module].ask("step")["seconds"])
                parts = workers[module].ask("look", way=way, nodes=NODES, few=8)
                integrated = {p: parts[p] for p in ("integrated gradients", "of few of them")}
                rest = sum(parts.values()) - sum(integrated.values())
                rounds.note(name, "until on disk", rest)
                rounds.note(name, "with integrated gradients", rest + parts["integrated gradients"])
                rounds.note(name, "with those of 8 sequences", rest + parts["of few of them"])
                for part, seconds in parts.items():
                    rounds.note(name, part, seconds)
        rows = ours.rows("peer")
        for module, rounds in theirs.items():
            found = rounds.rows("peer")
            found[0]["what"] = f"training step of {module}"
            rows += found
    return rows


def check_peers(python: str) -> dict[str, str]:
    """Whether they can run; their versions."""
    versions = {}
    with tempfile.TemporaryDirectory() as folder:
        for module, own in (("peers.torch_captum", python), ("peers.naive_mlx", sys.executable)):
            with Worker(module, own, size="tiny", sequences=2, log=folder) as worker:
                versions |= worker.versions
    return versions


# ---- the command


class Progress:
    """What is being measured, on stderr."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._since = total, 0, time.monotonic()
        self._live = sys.stderr.isatty()
        self._said = ""

    def advance(self, what: str) -> None:
        self._done += 1
        minutes, seconds = divmod(int(time.monotonic() - self._since), 60)
        line = f"{self._done:3}/{self._total} {minutes:3}:{seconds:02} {what}"
        if self._live:
            print(f"\r{line:70}", end="", file=sys.stderr, flush=True)
        elif what != self._said:
            print(line, file=sys.stderr, flush=True)
        self._said = what

    def end(self) -> None:
        if self._live:
            print(file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sizes", nargs="+", choices=["S", "M", "L"], default=["S", "M", "L"])
    parser.add_argument("--repeats", type=int, default=9, help="rounds; half of the slow ones")
    parser.add_argument("--peers", action="store_true", help="also PyTorch + Captum and plain MLX")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--quick", action="store_true", help="tiny models: does it run?")
    parser.add_argument("--out", type=Path, help="where to store, instead of cost.csv")
    parser.add_argument("--in-process", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    # What a model lacks is said for every monitor.
    logging.getLogger("ncp_callbacks").setLevel(logging.ERROR)
    if args.in_process is not None:
        print(json.dumps(in_process(*args.in_process)))
        return
    try:
        peers = check_peers(args.peer_python) if args.peers else {}
    except PeerError as error:
        parser.exit(2, f"{error}\n")

    with contextlib.ExitStack() as stack:
        out = args.out or HERE / "cost.csv"
        if args.quick and args.out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "cost.csv"
        rows = run(args, peers)
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        plot(rows, out.with_suffix(".png"))
        print(f"{table(rows)}\n\n{budgets(rows)}")
        if out == HERE / "cost.csv":
            into_readme(HERE.parent / "README.md", table(rows))


def run(args: argparse.Namespace, peers: Mapping[str, str]) -> list[Row]:
    """Everything that was asked for."""
    repeats, sizes = (2, ["tiny"]) if args.quick else (args.repeats, args.sizes)
    cases = [(kind, s) for kind in args.models for s in sizes if args.quick or s in CASES[kind]]
    jobs: list[tuple[int, Callable[[Progress], list[Row]]]] = []

    def add(function: Callable[..., list[Row]], *arguments: Any, rounds: int, each: int) -> None:
        jobs.append((each, lambda p: function(*arguments, rounds, p)))

    for kind, size in cases:
        rounds = (repeats + 1) // 2 if (kind, size) in SLOW else repeats
        few = 2 if size == "tiny" else FEW
        for count in (None, few):
            add(measure, kind, size, count, rounds=rounds, each=rounds + 1)
        if kind == "CfC":
            again = max(1, repeats // 3)
            for count in (None,) if args.quick else (None, few):
                add(processes, kind, size, count, rounds=again, each=again * (1 + len(LOOKS)))
        if args.peers and kind == "CfC":
            add(against_peers, size, args.peer_python, rounds=rounds, each=rounds + 1)
    base = Size(2, 2, 3, 4) if args.quick else Size(16, 32, 8, 32)
    add(growth, base, 4 if args.quick else 16, rounds=repeats, each=3 * (repeats + 1))

    progress = Progress(sum(each for each, _ in jobs))
    names = ("numpy", "mlx", "ncp-callbacks", "tensorboardX", "matplotlib")
    versions = {"python": platform.python_version(), **{n: version(n) for n in names}}
    versions |= {f"peers: {name}": number for name, number in peers.items()}
    rows = [_row("machine", f"{n} {v}", "", "", [1]) for n, v in versions.items()]
    rows.append(_row("machine", platform.machine(), "cores", "", [os.cpu_count() or 0]))
    for _, job in jobs:
        rows += job(progress)
        gc.collect()
        mx.clear_cache()
    rows += not_due(200 if args.quick else 20_000)
    rows += importing(1 if args.quick else repeats)
    progress.end()
    return rows


if __name__ == "__main__":
    main()
