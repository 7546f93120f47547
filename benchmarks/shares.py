"""Compare features' shares with what interventions on the features show.

    python benchmarks/shares.py             # some ten minutes; stores shares.csv
    python benchmarks/shares.py --quick     # does it run? (stores nothing)
    python benchmarks/shares.py --table     # the stored figures again

17 small networks are trained: CfC, LTC, wired CfC and GRU on four tasks, and a GRU that holds the
sign of its first input. The truth is made by intervention: each feature of 256 sequences is
replaced, as a whole, by that of 16 other sequences, and the mean absolute change of the target is
the feature's effect. Effects divided by their sum are shares. Shares by a method, of other
sequences, are compared with them by the L1 distance: the sum over features of the absolute
difference, from 0 to 2; the mean over three draws of the sequences.

``net`` shares are those that callbacks log: attributions are summed over time steps with their
signs, before absolute values are averaged over sequences. ``absolute`` shares are of the map of
absolute values.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from ncps.wirings import AutoNCP

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.attribution import (
    DEFAULT_METHOD,
    ExpectedGradients,
    InputXGradient,
    IntegratedGradients,
    feature_groups,
    removal_of,
)
from ncp_callbacks.attribution.compute import Attributor
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import LTC, CfC

STORED = Path(__file__).parent / "shares.csv"
FIELDS = ("task", "model", "method", "sequences", "l1")
SIZES = (16, 32, 64)
KINDS = ("cfc", "ltc", "wired cfc", "gru")
FEATURES, STEPS, UNITS = 5, 10, 16
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]
Row: TypeAlias = dict[str, str]


class Net(nn.Module):
    """A recurrent network that reads its outputs off the last time step."""

    def __init__(self, kind: str, outputs: int) -> None:
        super().__init__()
        width = UNITS
        if kind == "cfc":
            self.rnn = CfC(FEATURES, UNITS, backbone_units=24)
        elif kind == "ltc":
            self.rnn = LTC(FEATURES, UNITS)
        elif kind == "wired cfc":
            width = 4
            self.rnn = CfC(FEATURES, AutoNCP(20, width, seed=0))
        else:
            self.rnn = nn.GRU(FEATURES + 1, UNITS)
        self.head = nn.Linear(width, outputs)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        if isinstance(self.rnn, nn.GRU):
            found = self.rnn(mx.concatenate([x, time_delta[..., None]], axis=2))
        else:
            found, _ = self.rnn(x, time_delta)
        return self.head(found[:, -1])


class Data(NamedTuple):
    x: Floats
    delta: Floats
    y: np.ndarray[Any, Any]


def make(task: str, rng: np.random.Generator, size: int) -> Data:
    """Return sequences of a task; the last feature never matters."""
    x = rng.normal(size=(size, STEPS, FEATURES))
    delta = rng.exponential(0.5, size=(size, STEPS)) + 0.05
    y: np.ndarray[Any, Any]
    if task == "sum":
        y = x[:, -4:, 0].sum(axis=1) / 2 + x[:, -7, 1] + 0.3 * np.tanh(2 * x[:, -1, 2])
    elif task == "gate":
        y = x[:, -4:, 0].sum(axis=1) / 2 * (x[:, 0, 1] > 0) + 0.5 * x[:, -1, 2]
    elif task == "decay":
        age = np.cumsum(delta[:, ::-1], axis=1)[:, ::-1] - delta
        y = (x[..., 0] * np.exp(-age)).sum(axis=1) + 0.5 * np.maximum(x[:, -3:, 1], 0).sum(axis=1)
    elif task == "classes":
        scores = np.stack([x[..., 0].sum(1), x[..., 1].sum(1), 2 * x[:, -1, 2] * x[:, -1, 3]], 1)
        return Data(x.astype("f"), delta.astype("f"), scores.argmax(axis=1).astype(np.int32))
    else:
        x[..., 1:] *= 0.3
        y = np.sign(x[:, 0, 0])
    return Data(x.astype("f"), delta.astype("f"), y.astype("f"))


def train(task: str, kind: str, steps: int) -> Net:
    mx.random.seed(0)
    rng = np.random.default_rng(0)
    model, optimizer = (
        Net(kind, 3 if task == "classes" else 1),
        optim.Adam(5e-3 if kind == "gru" else 3e-3),
    )

    def loss(x: mx.array, delta: mx.array, y: mx.array) -> mx.array:
        found = model(x, delta)
        if task == "classes":
            return nn.losses.cross_entropy(found, y, reduction="mean")
        return ((found[:, 0] - y) ** 2).mean()

    step = nn.value_and_grad(model, loss)
    for _ in range(steps):
        _, gradients = step(*map(mx.array, make(task, rng, 64)))
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
    return model


TASKS = ("sum", "gate", "decay", "classes")
CASES = [(task, kind) for task in TASKS for kind in KINDS] + [("hold", "gru")]
METHODS = {
    "input x gradient from 0": InputXGradient(),
    "input x gradient": InputXGradient(),
    "default": DEFAULT_METHOD,
    "integrated gradients, 64 points": IntegratedGradients(n_steps=64),
    "expected gradients, 16 samples": ExpectedGradients(n_samples=16),
}


def targets(runner: ModelRunner, x: Floats, chosen: mx.array | None) -> Floats:
    found = runner.target(runner.outputs(mx.array(x), runner.time_delta), chosen)
    return np.array(found)


def truth(model: nn.Module, task: str, size: int, others: int) -> Floats:
    """Return each feature's share of the effects, ``(F,)``."""
    data = make(task, np.random.default_rng(7), size)
    runner = ModelRunner(model, ncp.HeldOutBatch(data.x, data.delta))
    with runner.analysing():
        outputs = runner.outputs(mx.array(data.x), runner.time_delta)
        chosen = runner.target.choose(outputs)
        own = targets(runner, data.x, chosen)
        effects = np.zeros(FEATURES)
        for turn in range(others):
            other = (np.arange(size) + 1 + turn * (size // others)) % size
            for feature in range(FEATURES):
                x = data.x.copy()
                x[..., feature] = data.x[other, :, feature]
                effects[feature] += np.abs(targets(runner, x, chosen) - own).mean()
    return effects / effects.sum()


def shares(model: nn.Module, data: Data, names: Iterable[str]) -> Iterator[tuple[str, Floats]]:
    """Yield shares by each method."""
    held_out = ncp.HeldOutBatch(data.x, data.delta)
    runner = ModelRunner(model, held_out)
    with runner.analysing():
        observation = passes.observe(runner, 0, set(ncp.Need))
        for name in names:
            baseline = "zeros" if name.endswith("from 0") else None
            found = Attributor(METHODS[name], baseline).importance(observation)
            yield f"{name}, net", found.feature_share
            absolute = found.importance.sum(axis=0)
            yield f"{name}, absolute", absolute / absolute.sum()
        for n_samples in (1, 2, 4):
            removal = removal_of(observation, feature_groups(observation), n_samples=n_samples)
            total = removal.by_feature.sum(axis=0)
            yield f"removal, {n_samples} samples", total / total.sum()


def measure(task: str, kind: str, *, quick: bool) -> Iterator[Row]:
    steps = 5 if quick else 300 if kind == "ltc" else 600
    model = train(task, kind, steps)
    size, others, draws = (16, 2, 1) if quick else (256, 16, 3)
    expected = truth(model, task, size, others)
    for sequences in SIZES:
        found: dict[str, list[float]] = {}
        for draw in range(draws):
            data = make(task, np.random.default_rng(100 + draw), sequences)
            # 64 points only show that they make no difference.
            names = [n for n in METHODS if "64" not in n or (draw == 0 and kind != "ltc")]
            for name, share in shares(model, data, names):
                found.setdefault(name, []).append(float(np.abs(share - expected).sum()))
        for name, distances in found.items():
            yield dict(
                zip(
                    FIELDS,
                    (task, kind, name, str(sequences), f"{np.mean(distances):.4f}"),
                    strict=True,
                )
            )


def table(rows: Sequence[Row]) -> Iterator[str]:
    count = len({(r["task"], r["model"]) for r in rows})
    yield f"L1 distance to shares by intervention, {count} networks: mean / median / largest"
    yield f"{'':44}" + "".join(f"{f'{size} sequences':>24}" for size in SIZES)
    for method in dict.fromkeys(r["method"] for r in rows):
        line = f"{method:44}"
        for size in SIZES:
            found = [
                float(r["l1"]) for r in rows if (r["method"], r["sequences"]) == (method, str(size))
            ]
            parts = f"{np.mean(found):.3f} / {np.median(found):.3f} / {max(found):.3f}"
            line += f"{parts:>24}"
        yield line


def main(show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it run? (stores nothing)")
    parser.add_argument("--table", action="store_true", help="print the stored figures")
    options = parser.parse_args()
    if options.table:
        with STORED.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = []
        for task, kind in CASES:
            start = time.perf_counter()
            rows += measure(task, kind, quick=options.quick)
            show(f"{task}, {kind}: {time.perf_counter() - start:.0f} s")
        if not options.quick:
            with STORED.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    for line in table(rows):
        show(line)


if __name__ == "__main__":
    main()
