"""Measure how often the 95 % CIs of a held-out batch cover the true value.

    python benchmarks/coverage.py             # some ten minutes; stores coverage.csv
    python benchmarks/coverage.py --quick     # does it run? (stores nothing)
    python benchmarks/coverage.py --table     # the stored figures again

Small recurrent networks are trained, and their numbers computed on a pool of 4,096 sequences. The
statistic over the pool is the truth. Then batches of 16 and of 32 sequences are drawn from the
pool, and the CI of each is compared with it; ``missing`` is the share of batches without a CI.
``untransformed`` is what the same jackknife covers without the logarithm, the logit or Fisher's z:
the linearised CI of the textbooks.

The task: the target is the sum of the last 4 values of the first of 3 features, with the sign of
its first value. Elapsed times are exponential, so that a few are much longer than the others. The
GRU gets the elapsed time as a fourth input.

Three numbers have no CI, as those tried covered too rarely (.68 to .97): how far attribution and
removal disagree, which chance makes larger; the entropy of shares, which chance makes smaller where
they are nearly equal; and the share of the best plane's variance in the plane of the picture of
states.

What callbacks analyse of few sequences only is not among the numbers: Jacobians, which are of four
sequences, and faithfulness, interactions and time constants, of eight. Their CIs say so. Nor are
the R² of units' meanings, whose trees are fitted to the batch. Groups of neurons are halves of the
units, in the place of those of a wiring.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from ncps.wirings import AutoNCP

from ncp_callbacks import HeldOutBatch, Need
from ncp_callbacks.analysis import (
    gradient_reach,
    removal_shares,
    state_space,
    time_sensitivity,
    transition_statistics,
    unit_ablations,
)
from ncp_callbacks.attribution import (
    Attribution,
    InputXGradient,
    IntegratedGradients,
    Removal,
    feature_groups,
    removal_of,
    summarize,
)
from ncp_callbacks.callbacks.backbone_activations.analysis import layer_statistics
from ncp_callbacks.callbacks.sampling_rate.analysis import sampling_changes, thinned
from ncp_callbacks.callbacks.unit_ablation.analysis import unit_means
from ncp_callbacks.callbacks.wiring.analysis import group_activity
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.neuron_groups import NeuronGroup
from ncp_callbacks.passes import observe
from ncp_callbacks.stats import SIZE, Estimate, t_quantile

STORED = Path(__file__).parent / "coverage.csv"
FIELDS = ("model", "number", "sequences", "coverage", "untransformed", "missing", "draws")
MODELS = ("cfc", "ltc", "wired cfc", "gru")
SIZES = (16, 32)
FEATURES, STEPS, UNITS, SCALES = 3, 12, 12, (0.5, 1.0, 2.0)


class Net(nn.Module):
    """A recurrent network that reads its prediction off the last time step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        outputs = UNITS
        if kind == "cfc":
            self.rnn = CfC(FEATURES, UNITS, backbone_units=16)
        elif kind == "ltc":
            self.rnn = LTC(FEATURES, UNITS)
        elif kind == "wired cfc":
            outputs = 4
            self.rnn = CfC(FEATURES, AutoNCP(19, outputs, seed=0))
        else:
            self.rnn = nn.GRU(FEATURES + 1, UNITS)
        self.head = nn.Linear(outputs, 1)

    def __call__(self, x: mx.array, delta: mx.array) -> mx.array:
        if isinstance(self.rnn, nn.GRU):
            found = self.rnn(mx.concatenate([x, delta[..., None]], axis=2))
        else:
            found, _ = self.rnn(x, delta)
        return self.head(found[:, -1])[:, 0]

    def states(self, x: mx.array, delta: mx.array) -> np.ndarray:
        """Return the states of all units, ``(B, T, H)``."""
        if isinstance(self.rnn, nn.GRU):
            return np.array(self.rnn(mx.concatenate([x, delta[..., None]], axis=2)))
        state, found = mx.zeros((len(x), self.rnn.units)), []
        for t in range(x.shape[1]):
            _, state = self.rnn.cell(x[:, t], state, delta[:, t, None])
            found.append(state)
        return np.array(mx.stack(found, axis=1))


def batch(rng: np.random.Generator, size: int) -> tuple[mx.array, mx.array, mx.array]:
    x = rng.normal(size=(size, STEPS, FEATURES)).astype(np.float32)
    delta = rng.exponential(0.5, size=(size, STEPS)).astype(np.float32) + 0.05
    target = (x[:, -4:, 0].sum(axis=1) * np.sign(x[:, 0, 1])).astype(np.float32)
    return mx.array(x), mx.array(delta), mx.array(target)


def train(kind: str, rng: np.random.Generator, steps: int) -> Net:
    mx.random.seed(0)
    model, optimizer = Net(kind), optim.Adam(1e-2)
    loss = nn.value_and_grad(model, lambda x, d, y: ((model(x, d) - y) ** 2).mean())
    for _ in range(steps):
        _, gradients = loss(*batch(rng, 64))
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
    return model


def gradients(model: Net, x: mx.array, delta: mx.array) -> tuple[mx.array, mx.array]:
    found: tuple[mx.array, mx.array] = mx.grad(lambda a, b: model(a, b).sum(), argnums=(0, 1))(
        x, delta
    )
    mx.eval(found)
    return found


class Pool:
    """Results of one model for all sequences, from which batches are drawn."""

    def __init__(self, model: Net, rng: np.random.Generator, size: int) -> None:
        x, delta, target = batch(rng, size)
        self.delta, self.states = np.array(delta), model.states(x, delta)
        self.values = {scale: np.array(model(x, scale * delta)) for scale in SCALES}
        gx, gd = gradients(model, x, delta)
        self.time_gradient = np.array(gd)
        self.maps = [Attribution(InputXGradient(), np.array(gx * x), np.array(gd * delta))]
        # From the mean, by 8 Gauss-Legendre points.
        x0, d0, sx, sd = x.mean((0, 1)), delta.mean(), 0.0, 0.0
        points, weights = np.polynomial.legendre.leggauss(8)
        for a, w in zip((points + 1) / 2, weights / 2, strict=True):
            gx, gd = gradients(model, x0 + float(a) * (x - x0), d0 + float(a) * (delta - d0))
            sx, sd = sx + float(w) * gx, sd + float(w) * gd
        maps = np.array(sx * (x - x0)), np.array(sd * (delta - d0))
        self.maps.append(Attribution(IntegratedGradients(8), *maps))
        self.losses = (self.values[1.0] - np.array(target)) ** 2
        self.basis = state_space(self.states[:64]).basis
        held_out = HeldOutBatch(np.array(x), self.delta, targets=np.array(target)[:, None])
        self.intervene(ModelRunner(model, held_out, forward=lambda m, a, b: m(a, b)[:, None]))

    def intervene(self, runner: ModelRunner) -> None:
        """Remove features, clamp units to their means, and differentiate by the states."""
        needs = {
            Need.STATES, Need.LOSSES, Need.REMOVALS, Need.STATE_CHANGES, Need.FEWER_STEPS,
            Need.ACTIVATIONS,
        }  # fmt: skip
        with runner.analysing():
            observation = observe(runner, 0, needs)
            self.removal = removal_of(observation, feature_groups(observation), n_blocks=0)
            passes, (cell,) = observation.extra_passes, observation.states
            means = unit_means(cell.values)
            self.names = [f"unit {unit}" for unit in range(len(means))]
            self.clamped = passes.clamped(cell.cell, np.arange(len(means)), means, loss=True)
            self.slopes = passes.clamp_slopes(cell.cell, means)
            self.gradient = passes.state_gradient(cell.cell)
            self.layers = observation.activations
            self.thinned = {}
            for factor in (2, 4):
                left = thinned(
                    observation.inputs, self.delta, np.ones(self.delta.shape, bool), factor
                )
                for way, means in (("dropped", None), ("merged", left.means)):
                    found = passes.with_fewer_steps(left.steps, left.mask, means, left.time_delta)
                    self.thinned[way, factor] = found.values[0]

    def estimates(self, sequences: slice | np.ndarray) -> Iterator[tuple[str, Estimate]]:
        """Yield the numbers that callbacks log for some sequences."""
        names = tuple(f"feature {i}" for i in range(FEATURES))
        for short, whole in zip(("x*grad", "ig"), self.maps, strict=True):
            times = None if whole.time_delta is None else whole.time_delta[sequences]
            attribution = Attribution(whole.method, whole.inputs[sequences], times)
            for name, number in summarize(attribution).estimates(names).items():
                yield f"{short} {name.replace('share/', 'share of ')}", number
        sensitivity = time_sensitivity(
            {scale: values[sequences] for scale, values in self.values.items()},
            time_delta=self.delta[sequences],
            time_gradient=self.time_gradient[sequences],
        )
        yield from sensitivity.estimates().items()
        steps = transition_statistics(self.states[sequences], time_delta=self.delta[sequences])
        yield from ((f"transitions {n}", number) for n, number in steps.estimates.items())
        yield from self.interventions(sequences)
        yield from self.others(sequences)
        yield "held-out loss", Estimate.mean(self.losses[sequences], SIZE)
        space = state_space(self.states[sequences], basis=self.basis, refit_below=0.0)
        for name, number in space.estimates.items():
            if name != "basis_captured":
                yield f"states {name}", number

    def interventions(self, some: slice | np.ndarray) -> Iterator[tuple[str, Estimate]]:
        """Yield the numbers of removed features, clamped units and gradients by the states."""
        whole = self.removal
        by_time = None if whole.by_time is None else whole.by_time[some]
        own = Removal(whole.groups, whole.by_feature[some], by_time, (), whole.by_block[some])
        for name, number in removal_shares(own).estimates.items():
            yield f"removal {name.replace('share/', 'share of ')}", number
        assert self.clamped.loss is not None
        ablations = unit_ablations(
            self.names, self.values[1.0][some], self.clamped.values[:, some],
            slopes=self.slopes[some], losses=self.losses[some],
            clamped_losses=self.clamped.loss[:, some],
        )  # fmt: skip
        # Of the units, the two that change most and least in the pool.
        order = np.argsort(np.abs(self.clamped.values - self.values[1.0]).mean(axis=1))
        units = {self.names[order[-1]]: "strongest unit", self.names[order[0]]: "weakest unit"}
        for name, number in ablations.estimates.items():
            kind, _, unit = name.partition("/")
            if not unit or unit in units:
                yield f"ablation {kind}{unit and ' of ' + units[unit]}", number
        reach = gradient_reach(self.gradient[some])
        if reach is not None:
            yield from ((f"gradient {n}", number) for n, number in reach.estimates.items())

    def others(self, some: slice | np.ndarray) -> Iterator[tuple[str, Estimate]]:
        """Yield the numbers of lower sampling rates, of layers and of groups of neurons."""
        fewer = {kind: values[some] for kind, values in self.thinned.items()}
        changes = sampling_changes(self.values[1.0][some], fewer)
        assert changes is not None
        yield from ((f"sampling {n}", number) for n, number in changes.estimates.items())
        for index, layer in enumerate(self.layers):
            own = layer_statistics(layer.values[some], activation=layer.activation)
            yield from ((f"layer {index} {n}", number) for n, number in own.estimates.items())
        half = self.states.shape[2] // 2
        groups = [
            NeuronGroup("first half", np.arange(half)),
            NeuronGroup("second half", np.arange(half, self.states.shape[2])),
        ]
        found = group_activity(self.states[some], groups, time_delta=self.delta[some])
        for name, activity in found.items():
            yield f"activity of the {name}", activity.level_estimate
            yield f"speed of the {name}", activity.speed_estimate


def untransformed(number: Estimate) -> tuple[float, float]:
    effects = number.influence / number.scale.derivative(number.value)
    error = effects.std(ddof=1) / math.sqrt(len(effects))
    half = t_quantile(0.975, len(effects) - 1) * error
    return number.value - half, number.value + half


def measure(kind: str, draws: int, steps: int, size: int) -> Iterator[tuple[object, ...]]:
    rng = np.random.default_rng(0)
    pool = Pool(train(kind, rng, steps), rng, size)
    truth = {name: number.value for name, number in pool.estimates(slice(None))}
    for sequences in SIZES:
        held = {name: [0, 0, 0] for name in truth}
        for draw in range(draws):
            chosen = np.random.default_rng(draw).choice(size, sequences, replace=False)
            for name, number in pool.estimates(chosen):
                ci = number.ci()
                if name in held and ci is not None:
                    counts = held[name]
                    counts[0] += ci[0] <= truth[name] <= ci[1]
                    low, high = untransformed(number)
                    counts[1] += low <= truth[name] <= high
                    counts[2] += 1
        for name, (covered, plain, known) in held.items():
            if known:
                shares = covered / known, plain / known, 1 - known / draws
                yield kind, name, sequences, *(f"{share:.3f}" for share in shares), known


def table(rows: list[dict[str, str]]) -> Iterator[str]:
    yield f"{'':34}" + "".join(f"{model:>18}" for model in MODELS)
    yield f"{'':34}" + f"{'16':>9}{'32':>9}" * len(MODELS)
    cells = {(r["model"], r["number"], r["sequences"]): r for r in rows}
    for number in dict.fromkeys(r["number"] for r in rows):
        line = f"{number:34}"
        for model in MODELS:
            for sequences in SIZES:
                cell = cells.get((model, number, str(sequences)))
                line += f"{cell['coverage'] if cell else '':>9}"
        yield line
    for column in ("coverage", "untransformed"):
        found = np.array([float(r[column]) for r in rows])
        yield (
            f"{column}: mean {found.mean():.3f}, smallest {found.min():.3f}, "
            f"below .90 in {(found < 0.9).sum()} of {len(found)}"
        )


def main(show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="does it run? (stores nothing)")
    parser.add_argument("--table", action="store_true", help="print the stored figures")
    options = parser.parse_args()
    if not options.table:
        draws, steps, size = (5, 5, 256) if options.quick else (300, 400, 4096)
        start, found = time.perf_counter(), []
        for model in MODELS:
            found += measure(model, draws, steps, size)
            show(f"{model}: {time.perf_counter() - start:.0f} s")
        rows = [dict(zip(FIELDS, map(str, row), strict=True)) for row in found]
        if not options.quick:
            with STORED.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    else:
        with STORED.open(newline="") as file:
            rows = list(csv.DictReader(file))
    for line in table(rows):
        show(line)


if __name__ == "__main__":
    main()
