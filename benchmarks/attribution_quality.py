"""Do the attribution methods find what is known to matter?

    python benchmarks/attribution_quality.py                # an hour on one core; stores the csv
    python benchmarks/attribution_quality.py --only state   # these only, stored in their place
    python benchmarks/attribution_quality.py --quick        # does it run? (stores nothing)
    python benchmarks/attribution_quality.py --table        # the stored numbers again

Rows of a case are stored after each of its seeds, so that an interrupt loses one seed; the column
``of`` counts those that were measured.

Where
-----
Data in which it is known which inputs matter; the methods rank all of them.

``rare-feature``, ``rare-time`` (Crabbé & van der Schaar 2021, arXiv:2106.05303): 10 ARMA series of
50 steps and 50 features; the target is the sum of squares of 5 features at 25 steps, or of 25
features at 5 steps. A white box: nothing is trained.

``state`` (Tonekaboni et al. 2020, arXiv:2003.02821; truth of Crabbé & van der Schaar): 3 features
of a Markov process with two hidden states; the label of a step is drawn from the one feature that
the state makes count. ``switch-feature`` (Liu et al. 2024, arXiv:2401.08552): three states, three
features; a Gaussian process of length scale 0.2 on whole steps is white noise. Small models are
trained on labels at every step; each seed has data, wiring and weights of its own. Each prediction
is attributed to its own step's input, and all steps of 40 sequences are scored.

AUPRC (average precision) and AUROC are over all inputs of all sequences, scores scaled to [0, 1] in
each. AUP and AUR are areas under precision and recall *against the threshold*. They don't measure
ranking: the random ranking has AUR .5, a perfect one may have .1, and the row ``ranks`` shows what
AUR becomes when the scores of integrated gradients are replaced by their ranks. CPD, cumulative
prediction difference (Jang et al. 2025, arXiv:2506.05035): the tenth of a sequence's inputs that is
highest goes one by one to zero, or to each feature's mean over that sequence; after each, the
absolute change of the probability, mean over steps; the sum of these. Their code measures both and
their table has one: that with zeros, to judge by the size of the numbers. Of the white boxes it is
the part of the whole target.

What to keep in mind beside published numbers:

* Models differ: published ones are GRUs of 200 units, trained on the label of one prefix at a time.
  CPD is as much a number of the model: the more it reacts to its inputs, the larger.
* Two papers that name the same benchmark disagree in AUR (.454 and .357 for integrated gradients on
  state), and versions of one paper's result file in AUP (.895 and .918).
* The truth of state and switch-feature says which coefficient is active, not how much its input
  contributed: the plain gradient, which is that coefficient, has an advantage there that it
  hasn't on real questions. Other papers take only the steps at which the state changes for the
  truth of state: the same name, AUPRC near .02 for every method.
* Segments of segment-wise integrated gradients are our default, and not tuned for each benchmark.

Traps
-----
Closed forms in which one feature hardly moves the target, and its share by every method with its
default baseline: it should be near 0. See ``traps.py``.

When or what
------------
Elapsed times decide, or inputs, and the share of elapsed time is compared with that.

``feature-driven`` and ``time-driven``: the same inputs and elapsed times, labelled by inputs only,
or by elapsed times only. ``parity``: a stream of bits as runs (bit, length of the run as elapsed
time), labelled after each run by the parity of the ones so far: bits alternate, so that all but the
first run's is known before, and elapsed times carry the label (after Lechner & Hasani 2020,
arXiv:2006.04418; our streams have 12 bits in runs of at most 3, and are tested on other streams).
The share of elapsed time is .66 there, not 1, although the model is always right: only runs of ones
count, so the bits say which lengths matter. The target jumps several times on the way from the mean
to a stream, so that with 64 points a part of the sequences stays incomplete.

What shares claim, before and after training, is tested by intervention: accuracy with all elapsed
times, or all inputs, set to their mean. How much a share is worth, ``incomplete`` says: the part of
the sequences whose attributions don't sum to the change of the target within 5 %. Without weight
decay a CfC can become so sensitive that its output jumps along the way from the baseline, and then
the share is noise; the same CfC trained with weight decay is attributed exactly.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from attribution_report import (
    COLUMNS,
    GUIDE,
    GUIDE_METHODS,
    NUISANCE_SHARE,
    RANKS,
    STORED,
    Row,
    records,
    table,
    traps_table,
)
from cost_report import into_guide
from ncps.wirings import AutoNCP
from scipy.signal import lfilter
from scipy.stats import rankdata
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from traps import NUISANCE, SHOWN, TRAPS, Formula, inputs_of

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.attribution import (
    BUILT_IN,
    DEFAULT_METHOD,
    AttributionMethod,
    ExpectedGradients,
    InputXGradient,
    IntegratedGradients,
    Occlusion,
    feature_groups,
    removal_of,
)
from ncp_callbacks.attribution.compute import Attributor
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.target_values import Evaluate, TargetValues

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Scores: TypeAlias = dict[str, Array]


# ---- metrics


def scaled(scores: Array) -> Array:
    """``(B, ...)`` to [0, 1] in each sequence, as the papers do."""
    flat = np.abs(scores).reshape(len(scores), -1)
    low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
    return (flat - low) / np.maximum(high - low, 1e-30)


def ranking(scores: Array, truth: Array) -> dict[str, float]:
    """AUPRC, AUROC, AUP and AUR of ``(B, ...)`` scores; their size counts, not their sign."""
    flat, true = scaled(scores).ravel(), truth.reshape(-1)
    precision, recall, thresholds = precision_recall_curve(true, flat)
    return {
        "AUPRC": float(average_precision_score(true, flat)),
        "AUROC": float(roc_auc_score(true, flat)),
        "AUP": float(auc(thresholds, precision[:-1])),
        "AUR": float(auc(thresholds, recall[:-1])),
    }


def with_references(maps: Scores, truth: Array, rng: np.random.Generator) -> Scores:
    """Add scores that say what a metric measures: ranks, random ones, and the truth."""
    integrated = np.abs(maps[IntegratedGradients.name])
    return maps | {
        RANKS: rankdata(integrated.reshape(len(truth), -1), axis=1).reshape(truth.shape),
        "random": rng.uniform(size=truth.shape),
        "truth": truth.astype(float),
    }


def removals(x: Array, x0: Array, scores: Array, most: int) -> Array:
    """``(most + 1, B, T, F)``: inputs with the 0, 1, … highest set to the baseline."""
    batch = len(x)
    order = np.argsort(-np.abs(scores).reshape(batch, -1), axis=1, kind="stable")
    rank = np.argsort(order, axis=1).reshape(x.shape)
    gone = rank[None] < np.arange(most + 1).reshape(-1, *[1] * x.ndim)
    return np.where(gone, x0, x)


def prediction_difference(values: Array) -> float:
    """CPD of targets along removals, ``(most + 1, B)``, or ``(most + 1, B, T)`` of each step."""
    return float(np.abs(np.diff(values, axis=0)).sum(axis=0).mean())


def baseline_of(method: AttributionMethod, x: Array, mean: Array) -> Array:
    """Return baselines as published: zeros; draws from zeros and the data; the mean to occlude."""
    if method.draws_baselines:
        return np.concatenate([np.zeros_like(x), x])
    return np.broadcast_to(mean if method.replaces_inputs else 0.0, x.shape)


# ---- white boxes


def arma(rng: np.random.Generator, series: int = 10, steps: int = 50, features: int = 50) -> Array:
    """``(series, steps, features)``, each an ARMA process as in Dynamask's code."""
    noise = rng.standard_normal((series, steps, features))
    return lfilter([2.0], [2.0, 0.5, 0.2, 0.1], noise, axis=1)


def salient(kind: str, rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """What the target of a rare benchmark reads: the same cells of all its series."""
    _, steps, features = shape
    found = np.zeros(shape, bool)
    if kind == "rare-feature":
        few = rng.choice(features, 5, replace=False)
        found[:, steps // 4 : 3 * steps // 4, few] = True
    else:
        start = rng.integers(0, steps - 5)
        found[:, start : start + 5, features // 4 : 3 * features // 4] = True
    return found


def squares(truth: Array, own: Array) -> Evaluate:
    """Return the sum of squares of salient inputs, and its gradient; without inputs of ``own``."""

    def evaluate(
        inputs: Array | None = None,
        time_delta: Array | None = None,
        *,
        sequences: Array | None = None,
        gradient: bool = False,
    ) -> TargetValues:
        inputs = own[None] if inputs is None else inputs
        x = np.where(truth if sequences is None else truth[sequences], np.float64(inputs), 0.0)
        return TargetValues((x**2).sum(axis=(2, 3)), 2 * x if gradient else None)

    return evaluate


def white_box(kind: str, seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Every method on one seed of a rare benchmark."""
    rng = np.random.default_rng(seed)
    x = arma(rng).astype(np.float32)
    truth = salient(kind, rng, x.shape)
    evaluate, mean = squares(truth, x), x.mean(axis=(0, 1))
    maps = {
        method.name: method.run(evaluate, x, baseline=baseline_of(method, x, mean)).inputs
        for method in (each() for each in BUILT_IN)
    }
    whole = np.abs(evaluate(x[None]).values).mean()
    for method, scores in with_references(maps, truth, rng).items():
        along = evaluate(removals(x, np.zeros_like(x), scores, truth[0].sum())).values
        yield method, ranking(scores, truth) | {"CPD, zero": prediction_difference(along) / whole}


# ---- labelled series


@dataclass(frozen=True)
class Series:
    """Inputs ``(N, T, F)``, labels of steps ``(N, T)``, and which input each was drawn from."""

    x: Array
    labels: Array
    truth: Array


def state(rng: np.random.Generator, size: int, steps: int = 200) -> Series:
    """Two hidden states; see Tonekaboni et al. 2020 and Dynamask's code."""
    mean = np.array([[0.1, 1.6, 0.5], [-0.1, -0.4, -1.5]])
    cov = np.stack([0.801 * np.eye(3)] * 2)
    for s, active in enumerate((1, 2)):
        cov[s, 0, active] = cov[s, active, 0] = 0.01
    root = np.linalg.cholesky(cov)
    states, stay = np.zeros((size, steps), int), np.zeros(size)
    now = rng.integers(0, 2, size)
    for t in range(steps):
        # State 1 becomes less likely to last the longer it has.
        one = np.where(now == 1, 0.95 - stay / 500, 0.05)
        after = (rng.uniform(size=size) < one).astype(int)
        stay = np.where(after == now, stay + 1, 0)
        states[:, t] = now = after
    noise = rng.standard_normal((size, steps, 3))
    x = mean[states] + np.einsum("btij,btj->bti", root[states], noise)
    return labelled(rng, x, 1 + states, 2.0)


def switch(rng: np.random.Generator, size: int, steps: int = 100) -> Series:
    """Three hidden states, each with a feature of its own; see Liu et al. 2024 and its code."""
    mean = np.array([[0.8, -0.5, -0.2], [0.0, -1.0, 0.0], [-0.2, -0.2, 0.8]])
    turn = np.array([[0.95, 0.02, 0.03], [0.02, 0.95, 0.03], [0.03, 0.02, 0.95]])
    states = np.zeros((size, steps), int)
    now = rng.integers(0, 3, size)
    for t in range(steps):
        states[:, t] = now = (rng.uniform(size=(size, 1)) > turn[now].cumsum(axis=1)).sum(axis=1)
    x = mean[states] + np.sqrt(0.1) * rng.standard_normal((size, steps, 3))
    return labelled(rng, x, states, 3.0)


def labelled(rng: np.random.Generator, x: Array, active: Array, slope: float) -> Series:
    """Labels drawn from one feature of each step."""
    value = np.take_along_axis(x, active[..., None], axis=2)[..., 0]
    labels = rng.uniform(size=value.shape) < 1 / (1 + np.exp(-slope * value))
    return Series(
        x.astype(np.float32), labels.astype(np.float32), active[..., None] == np.arange(x.shape[-1])
    )


SERIES: Mapping[str, Callable[[np.random.Generator, int], Series]] = {
    "state": state,
    "switch-feature": switch,
}


# ---- models


class Net(nn.Module):
    """Return one logit at every step."""

    def __init__(self, kind: str, features: int, units: int, seed: int = 0) -> None:
        super().__init__()
        self.units = width = units
        wiring: Any = units
        if kind.startswith("wired"):
            width = units // 4
            wiring = AutoNCP(units, width, seed=seed)
        self.rnn: nn.GRU | LTC | CfC
        if kind == "GRU":
            self.rnn = nn.GRU(features, units)
        elif kind.endswith("LTC"):
            # Fewer than the usual 6 cost less; through a wiring an input needs 3 to the outputs.
            self.rnn = LTC(features, wiring, ode_unfolds=2 if wiring is units else 4)
        elif wiring is units:
            self.rnn = CfC(features, units, backbone_units=units)
        else:
            self.rnn = CfC(features, wiring)
        self.head = nn.Linear(width, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        if isinstance(self.rnn, nn.GRU):
            return self.head(self.rnn(x))
        return self.head(self.rnn(x, time_delta)[0])

    def step(self, x: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
        """Return the logits ``(B,)`` of one step, and the new state ``(B, units)``."""
        if isinstance(self.rnn, nn.GRU):
            output = state = self.rnn(x[:, None], state)[:, 0]
        else:
            output, state = self.rnn.cell(x, state, 1.0)
        return self.head(output)[:, 0], state

    def states_before(self, x: mx.array) -> mx.array:
        """Return the state before each step, ``(B, T, units)``."""
        state, found = mx.zeros((len(x), self.units)), []
        for x_t in x.split(x.shape[1], axis=1):
            found.append(state)
            _, state = self.step(x_t[:, 0], state)
        return mx.stack(found, axis=1)


Batch: TypeAlias = tuple[tuple[Array, ...], Array, Array]


def train(
    model: Net, batches: Iterator[Batch], steps: int, rate: float, decay: float = 0.1
) -> float:
    """Train on (inputs, labels ``(B, T)``, their weights); the mean loss of the last tenth."""
    optimizer = optim.AdamW(optim.cosine_decay(rate, steps), weight_decay=decay)

    def loss(inputs: tuple[mx.array, ...], labels: mx.array, weights: mx.array) -> mx.array:
        each = nn.losses.binary_cross_entropy(
            model(*inputs)[..., 0], labels, with_logits=True, reduction="none"
        )
        return (each * weights).sum() / weights.sum()

    loss_and_grad, seen = nn.value_and_grad(model, loss), []
    for _ in range(steps):
        inputs, labels, weights = next(batches)
        value, gradients = loss_and_grad(
            tuple(map(mx.array, inputs)), mx.array(labels), mx.array(weights)
        )
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state, value)
        seen.append(value.item())
    return float(np.mean(seen[-max(1, steps // 10) :]))


# ---- labelled series: each prediction is attributed to its own step's input

SIZES = {"GRU": 32, "CfC": 32, "wired CfC": 32, "LTC": 16, "wired LTC": 16}
# Steps of a training sequence: what the labels depend on is not longer.
WINDOW = 50
# Steps of all sequences whose gradients are computed at once.
CHUNK = 1 << 14


def by_step(model: Net, rows: Array, states: mx.array) -> tuple[Array, Array]:
    """Return logits ``(N,)`` of single steps, and their gradients by these steps' inputs.

    Args:
        model: The model.
        rows: ``(N, F)``, the inputs.
        states: ``(N, units)``, the states before.
    """

    def total(x: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
        logits, _ = model.step(x, state)
        return logits.sum(), logits

    found = []
    for first in range(0, len(rows), CHUNK):
        part = slice(first, first + CHUNK)
        (_, logits), gradient = mx.value_and_grad(total)(mx.array(rows[part]), states[part])
        found.append((np.array(logits), np.array(gradient)))
    logits, gradients = zip(*found, strict=True)
    return np.concatenate(logits), np.concatenate(gradients)


def of_own_inputs(model: Net, x: Array) -> Evaluate:
    """Return an evaluation of the sum of all steps' logits, each with its own step's gradient.

    The gradient takes the state before a step as fixed. So one pass attributes each prediction to
    its last input, for which papers attribute each prefix by itself.
    """

    def evaluate(
        inputs: Array | None = None,
        time_delta: Array | None = None,
        *,
        sequences: Array | None = None,
        gradient: bool = False,
    ) -> TargetValues:
        variants = x[None] if inputs is None else inputs
        before = model.states_before(mx.array(variants.reshape(-1, *x.shape[1:])))
        logits, gradients = by_step(
            model, variants.reshape(-1, x.shape[2]), before.reshape(-1, model.units)
        )
        return TargetValues(
            logits.reshape(variants.shape[:3]).sum(axis=2), gradients.reshape(variants.shape)
        )

    return evaluate


def occluded(model: Net, x: Array, mean: Array) -> Array:
    """Return how much each step's logit falls without one of its inputs, ``(B, T, F)``."""
    states = model.states_before(mx.array(x)).reshape(-1, model.units)
    rows = x.reshape(-1, 1, x.shape[2])

    def evaluate(inputs: Array | None = None, *_: Any, **__: Any) -> TargetValues:
        variants = rows[None] if inputs is None else inputs
        return TargetValues(np.stack([by_step(model, v[:, 0], states)[0] for v in variants]))

    method = Occlusion()
    return method.run(evaluate, rows, baseline=baseline_of(method, rows, mean)).inputs.reshape(
        x.shape
    )


def maps_of(model: Net, x: Array, mean: Array) -> Scores:
    """Return what each method attributes of each step's logit to its input, ``(B, T, F)``."""
    evaluate = of_own_inputs(model, x)
    found = {Occlusion.name: occluded(model, x, mean)}
    for each in BUILT_IN:
        if each is not Occlusion:
            # As many draws as published.
            method = ExpectedGradients(n_samples=50) if each is ExpectedGradients else each()
            baseline = baseline_of(method, x, mean)
            found[method.name] = method.run(evaluate, x, baseline=baseline).inputs
    return found


def removed(model: Net, x: Array, x0: Array, scores: Array) -> float:
    """Return the CPD, of a tenth of the inputs and the probabilities at all steps."""
    points = removals(x, x0, scores, x[0].size // 10)
    logits = model(mx.array(points.reshape(-1, *x.shape[1:]).astype(np.float32)))[..., 0]
    return prediction_difference(np.array(mx.sigmoid(logits)).reshape(points.shape[:3]))


def labelled_series(
    kind: str, model_kind: str, seed: int, *, steps: int, tests: int, length: int | None
) -> Iterator[tuple[str, dict[str, float]]]:
    """Train a model, and score every method at all steps of other sequences."""
    rng = np.random.default_rng(seed)
    mx.random.seed(seed)
    known, test = SERIES[kind](rng, 800), SERIES[kind](rng, tests)
    test = Series(test.x[:, :length], test.labels[:, :length], test.truth[:, :length])
    model = Net(model_kind, 3, SIZES[model_kind], seed)
    window = np.arange(min(WINDOW, length or WINDOW))

    def batches() -> Iterator[Batch]:
        while True:
            rows = rng.integers(0, len(known.x), (64, 1))
            columns = rng.integers(0, known.x.shape[1] - len(window) + 1, (64, 1)) + window
            labels = known.labels[rows, columns]
            yield (known.x[rows, columns],), labels, np.ones_like(labels)

    loss = train(model, batches(), steps, 1e-2 if "LTC" in model_kind else 5e-3)
    logits = np.array(model(mx.array(test.x))[..., 0])
    active, labels = (test.x * test.truth).sum(axis=2), test.labels.ravel()
    yield (
        "",
        {
            "loss": loss,
            "AUROC of the model": float(roc_auc_score(labels, logits.ravel())),
            "AUROC of the active input": float(roc_auc_score(labels, active.ravel())),
        },
    )
    maps = maps_of(model, test.x, known.x.mean(axis=(0, 1)))
    few = test.x[:12]
    baselines = {
        "CPD, zero": np.zeros_like(few),
        "CPD, mean": np.broadcast_to(few.mean(axis=1, keepdims=True), few.shape),
    }
    for method, scores in with_references(maps, test.truth, rng).items():
        differences = {
            metric: removed(model, few, x0, scores[: len(few)])
            for metric, x0 in baselines.items()
            if method in maps or method == "random"
        }
        yield method, ranking(scores, test.truth) | differences


# ---- traps


def trap(name: str, seed: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the share of the nuisance by each method, and by removal."""
    case = TRAPS[name]
    held_out = ncp.HeldOutBatch(inputs_of(case, seed))
    runner = ModelRunner(Formula(case.function), held_out)
    methods = {each.name: Attributor(each()) for each in BUILT_IN}
    methods["input_x_gradient from zeros"] = Attributor(InputXGradient(), "zeros")
    methods["default"] = Attributor(DEFAULT_METHOD)
    with runner.analysing():
        observation = passes.observe(runner, 0, set(ncp.Need))
        for method, attributor in methods.items():
            shares = attributor.importance(observation).feature_share
            yield method, {NUISANCE_SHARE: float(shares[NUISANCE])}
        change = removal_of(observation, feature_groups(observation)).by_feature.sum(axis=0)
        yield "removal", {NUISANCE_SHARE: float(change[NUISANCE] / change.sum())}


# ---- when or what


@dataclass(frozen=True)
class Timed:
    """Hold inputs, elapsed times, labels of every step and their weights, and real steps."""

    x: Array
    dt: Array
    labels: Array
    weights: Array
    mask: Array

    def __getitem__(self, rows: Any) -> Timed:
        return Timed(*(getattr(self, field.name)[rows] for field in fields(self)))

    def at_last(self, values: Array) -> Array:
        """``(N,)`` of ``(N, T)``, at each sequence's last real step."""
        return np.take_along_axis(values, self.mask.sum(axis=1, keepdims=True) - 1, axis=1)[:, 0]


def driven(by: str, rng: np.random.Generator, size: int, steps: int = 10) -> Timed:
    """Labels by inputs only, a sum and a size, or by the elapsed time only."""
    x = rng.standard_normal((size, steps, 3))
    dt = rng.lognormal(0.0, 0.5, (size, steps))
    what = x[..., 0].sum(axis=1) / np.sqrt(steps) + np.abs(x[:, -1, 1]) - 0.8
    when = dt.sum(axis=1) - steps * np.exp(0.125)
    labels = (what if by == "feature-driven" else when) > 0
    weights = np.broadcast_to(np.arange(steps) == steps - 1, dt.shape)
    labels = np.broadcast_to(labels[:, None], dt.shape)
    single = (a.astype(np.float32) for a in (x, dt, labels, weights))
    return Timed(*single, np.ones(dt.shape, bool))


def streams(length: int, longest: int) -> Array:
    """``(N, length)``, all streams of bits whose runs are no longer than ``longest``."""
    every = (np.arange(2**length)[:, None] >> np.arange(length)) & 1
    if longest >= length:
        return every
    sums = np.lib.stride_tricks.sliding_window_view(every, longest + 1, axis=1).sum(axis=2)
    return every[((sums > 0) & (sums <= longest)).all(axis=1)]


def parity(streams: Array) -> Timed:
    """Streams of bits ``(N, L)`` as runs of equal bits, labelled after each."""
    size, length = streams.shape
    x, dt = np.zeros((size, length, 1), np.float32), np.ones((size, length), np.float32)
    labels, mask = np.zeros((size, length), np.float32), np.zeros((size, length), bool)
    for i, bits in enumerate(streams):
        starts = np.flatnonzero(np.diff(bits, prepend=1 - bits[0]))
        runs = len(starts)
        x[i, :runs, 0] = 2 * bits[starts] - 1
        dt[i, :runs] = np.diff(starts, append=length)
        labels[i, :runs] = np.cumsum(dt[i, :runs] * bits[starts]) % 2
        mask[i, :runs] = True
    return Timed(x, dt, labels, mask.astype(np.float32), mask)


def accuracy(model: Net, data: Timed, x: Array | None = None, dt: Array | None = None) -> float:
    """Return the accuracy, perhaps with other inputs or elapsed times."""
    given = (data.x if x is None else x, data.dt if dt is None else dt)
    logits = np.array(model(*(mx.array(g.astype(np.float32)) for g in given))[..., 0])
    return float(((data.at_last(logits) > 0) == (data.at_last(data.labels) > 0.5)).mean())


SHARES = {
    InputXGradient(): "mean",
    IntegratedGradients(n_steps=64): "mean",
    ExpectedGradients(): "held_out",
    Occlusion(): "mean",
}


def time_shares(model: Net, data: Timed) -> tuple[dict[str, float], Array]:
    """Return the share of elapsed time by every method with one unit for inputs and elapsed times.

    Inputs and elapsed times are compared with their means. Also return the completeness errors of
    integrated gradients.
    """
    held_out = ncp.HeldOutBatch(data.x, data.dt, mask=data.mask)
    needs = set(ncp.Need)
    shares, errors = {}, np.zeros(0)
    observation = passes.observe(ModelRunner(model, held_out, target=0), 0, needs)
    for method, baseline in SHARES.items():
        result = Attributor(method, baseline).importance(observation)
        assert result.time_delta_share is not None
        shares[method.name] = result.time_delta_share
        if isinstance(method, IntegratedGradients) and result.error is not None:
            errors = result.error
    return shares, errors


def when_or_what(
    kind: str, seed: int, *, steps: int, units: int, rate: float, decay: float, length: int = 10
) -> Iterator[tuple[str, dict[str, float]]]:
    """Train a CfC; shares before and after, and what they are worth by intervention."""
    rng = np.random.default_rng(seed)
    mx.random.seed(seed)
    if kind == "parity":
        every = rng.permutation(streams(length, longest=3))
        known, unknown = parity(every[: 3 * len(every) // 4]), parity(every[3 * len(every) // 4 :])
    else:
        known, unknown = driven(kind, rng, 6400, length), driven(kind, rng, 400, length)

    def batches() -> Iterator[Batch]:
        while True:
            some = known[rng.integers(0, len(known.x), 64)]
            yield (some.x, some.dt), some.labels, some.weights

    model = Net("CfC", known.x.shape[-1], units)
    mx.eval(model.parameters())
    some = unknown[:64]
    before, _ = time_shares(model, some)
    train(model, batches(), steps, rate, decay)
    after, errors = time_shares(model, some)
    x0 = np.broadcast_to(known.x[known.mask].mean(axis=0), unknown.x.shape)
    dt0 = np.broadcast_to(known.dt[known.mask].mean(), unknown.dt.shape)
    yield (
        "",
        {
            "accuracy": accuracy(model, unknown),
            "accuracy, elapsed times at their mean": accuracy(model, unknown, dt=dt0),
            "accuracy, inputs at their mean": accuracy(model, unknown, x=x0),
        },
    )
    for method in (each.name for each in SHARES):
        yield method, {"share before": before[method], "share after": after[method]}
    yield "integrated_gradients", {"incomplete": float((errors > 0.05).mean())}


# ---- all of it


@dataclass(frozen=True)
class Case:
    benchmark: str
    model: str
    seeds: int
    run: Callable[[int], Iterator[tuple[str, dict[str, float]]]]

    @property
    def name(self) -> str:
        return f"{self.benchmark}, {self.model}"


def cases(quick: bool) -> list[Case]:
    seeds = 1 if quick else 5

    def series_case(kind: str, model: str) -> Case:
        options: dict[str, Any] = {"steps": 200, "tests": 40, "length": None}
        if quick:
            options = {"steps": 10, "tests": 8, "length": 24}
        return Case(kind, model, seeds, lambda seed: labelled_series(kind, model, seed, **options))

    def share_case(kind: str, *, decay: float = 0.1, **options: Any) -> Case:
        options |= {"decay": decay} | ({"steps": 20} if quick else {})
        model = "CfC" if decay else "CfC, no weight decay"
        own = 1 if quick else 3
        return Case(kind, model, own, lambda seed: when_or_what(kind, seed, **options))

    rare = [
        Case(kind, "white box", seeds, lambda seed, kind=kind: white_box(kind, seed))
        for kind in ("rare-feature", "rare-time")
    ]
    traps = [Case("trap", name, seeds, lambda seed, name=name: trap(name, seed)) for name in SHOWN]
    # The wired LTC costs most, and is measured on the shorter series only.
    trained = [
        series_case(kind, model)
        for kind in SERIES
        for model in SIZES
        if (kind, model) != ("state", "wired LTC")
    ]
    shares = [
        share_case(kind, decay=decay, steps=1000, units=16, rate=5e-3)
        for kind in ("feature-driven", "time-driven")
        for decay in (0.1, 0.0)
    ]
    shares.append(share_case("parity", steps=2000, units=32, rate=5e-3, length=12))
    return rare + trained + traps + shares


def measure(case: Case) -> Iterator[list[Row]]:
    """Yield the rows of a case after each seed: means over seeds, and their SDs."""
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(case.seeds):
        for method, metrics in case.run(seed):
            for metric, value in metrics.items():
                found.setdefault((method, metric), []).append(value)
        yield [
            {
                "benchmark": case.benchmark,
                "model": case.model,
                "method": method,
                "metric": metric,
                "value": f"{np.mean(values):.4f}",
                "sd": f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else "",
                "of": str(len(values)),
            }
            for (method, metric), values in found.items()
        ]


def stored() -> list[Row]:
    if not STORED.exists():
        return []
    with STORED.open(newline="") as file:
        return list(csv.DictReader(file))


def merged(old: Sequence[Row], new: Sequence[Row], order: Sequence[Case]) -> list[Row]:
    """Return rows in the order of the cases, new ones in place of old ones of the same case."""
    by_case: dict[tuple[str, str], list[Row]] = {}
    done = {(r["benchmark"], r["model"]) for r in new}
    for row in (*(r for r in old if (r["benchmark"], r["model"]) not in done), *new):
        by_case.setdefault((row["benchmark"], row["model"]), []).append(row)
    return [row for case in order for row in by_case.get((case.benchmark, case.model), ())]


def store(rows: Sequence[Row]) -> None:
    with STORED.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and untrained; stores nothing")
    parser.add_argument("--table", action="store_true", help="the stored numbers again")
    parser.add_argument(
        "--only", nargs="*", default=[""], help='cases that begin so, such as "state, GRU"'
    )
    args = parser.parse_args()
    order = cases(args.quick)
    rows: list[Row] = [] if args.quick else stored()
    # In the order of --only, so that what matters most is measured first.
    chosen = [case for only in args.only for case in order if case.name.startswith(only)]
    for case in () if args.table else chosen:
        started = time.perf_counter()
        for found in measure(case):
            rows = merged(rows, found, order)
            if not args.quick:
                store(rows)
        print(f"{case.name}: {time.perf_counter() - started:.0f} s", flush=True)
    print(table(rows))
    if not args.quick:
        into_guide(GUIDE, f"{records(rows)}\n\n{traps_table(rows, GUIDE_METHODS)}", STORED.name)


if __name__ == "__main__":
    main()
