"""Do the attribution methods find what is known to matter?

    python benchmarks/attribution_quality.py                # 15 minutes; stores the csv
    python benchmarks/attribution_quality.py --only state   # these only, stored in their place
    python benchmarks/attribution_quality.py --quick        # does it run? (stores nothing)
    python benchmarks/attribution_quality.py --table        # the stored numbers again

Two kinds of question. *Where*: data in which it is known which inputs matter, and the methods rank
all of them. *When or what*: data in which elapsed times decide, or inputs, and the share of elapsed
time is compared with that.

Where
-----
``rare-feature``, ``rare-time`` (Crabbé & van der Schaar 2021, arXiv:2106.05303): 10 ARMA series of
50 steps and 50 features; the target is the sum of squares of 5 features at 25 steps, or of 25
features at 5 steps. A white box: nothing is trained. Five seeds, with a salient set each.

``state`` (Tonekaboni et al. 2020, arXiv:2003.02821; truth of Crabbé & van der Schaar): 3 features
of a Markov process with two hidden states; the label of a step is drawn from the one feature that
the state makes count. ``switch-feature`` (Liu et al. 2024, arXiv:2401.08552): three states, three
features; a Gaussian process of length scale 0.2 on whole steps is white noise. Trained here: a CfC
and a GRU of 32 units, 300 steps with labels at every step. What is attributed is the prediction at
the last step of prefixes, and its own last input is what is scored. One seed.

Metrics: AUPRC (average precision) and AUROC, over all inputs of all sequences, scores scaled to
[0, 1] in each. AUP and AUR are areas under precision and recall *against the threshold*; they don't
measure ranking (the random ranking has AUR .5, a perfect one may have .1; the same ranking gets
another AUR through a square root) and are here because papers print them. CPD, cumulative
prediction difference (Jang et al. 2025, arXiv:2506.05035): sum of |change of the target| while the
tenth of the inputs that is highest goes one by one to the baseline. Of the white boxes in units of
the whole change, else of probability.

What to keep in mind beside published numbers:

* Models differ: published ones are GRUs of 200 units, trained on the label of one prefix at a time.
  Baselines differ, too: GradientSHAP draws them from zeros and the data, we from the data.
  AUR moves with the length of series and the number of prefixes scored; we score 6.
* Two papers that name the same benchmark disagree in AUR (.454 and .357 for integrated gradients on
  state), and versions of one paper's result file in AUP (.895 and .918). AUP around .9 is stable.
* The truth of state and switch-feature says which coefficient is active, not how much its input
  contributed: the plain gradient, which is that coefficient, has an advantage there that it
  hasn't on real questions.
* Other papers take only the steps at which the state changes for the truth of state: the same name,
  AUPRC near .02 for every method.
* Published CPD is over other sets of inputs, and isn't shown.

When or what
------------
``feature-driven`` and ``time-driven``: the same inputs and elapsed times, labelled by inputs only,
or by elapsed times only. ``parity``: a stream of bits as runs (bit, length of the run as elapsed
time), labelled after each run by the parity of the ones so far: bits alternate, so that all but the
first run's is known before, and elapsed times carry the label (after Lechner & Hasani 2020,
arXiv:2006.04418, who have 32 bits, runs of any length and a label at the end; ours are 12, in runs
of at most 3, tested on other streams; with longer runs, CfCs trained as here got .82). These are
solved, accuracy 1 with each of three seeds, and still the share of elapsed time by integrated
gradients is .67, .61 and .71, not 1: only runs of ones count, so the bits say which lengths matter,
and with the bits at their mean accuracy falls to .45, .52 and .77. The target jumps several times
on the way from the mean to a stream, so that with 64 steps a third of them stays incomplete, with
256 none.
Besides the shares, before and after training, what they claim is tested by intervention: accuracy
with all elapsed times, or all inputs, set to their mean.

How much a share is worth, ``incomplete`` says: the part of the sequences whose attributions don't
sum to the change of the target within 5 %. Without weight decay a CfC can become so sensitive that
its output jumps along the way from the baseline, and then the share is noise; the same CfC trained
with weight decay is attributed exactly. A parity jumps by its nature.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from scipy.signal import lfilter
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

import ncp_callbacks as ncp
from ncp_callbacks import passes
from ncp_callbacks.attribution import (
    BUILT_IN,
    ExpectedGradients,
    Gradient,
    InputXGradient,
    IntegratedGradients,
    Occlusion,
    SegmentIntegratedGradients,
    SmoothGrad,
)
from ncp_callbacks.attribution.compute import Attributor
from ncp_callbacks.model import ModelRunner
from ncp_callbacks.models import CfC
from ncp_callbacks.target_values import Evaluate, TargetValues

# Methods that were measured.
BUILT_IN = tuple(method for method in BUILT_IN if method is not SegmentIntegratedGradients)
HERE = Path(__file__).parent
STORED = HERE / "attribution_quality.csv"
COLUMNS = ("benchmark", "model", "method", "metric", "value", "sd", "of")
METRICS = ("AUPRC", "AUROC", "AUP", "AUR", "CPD")
BASELINES = ("random", "truth")
PREFIXES = 6
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Scores: TypeAlias = dict[str, Array]
Row: TypeAlias = dict[str, str]

# Enguehard 2023 (arXiv:2305.18840), time_interpret's results files, mean of 5 folds; Jang et al.
# 2025, table 4. AUPRC, AUROC, AUP, AUR.
PUBLISHED: Mapping[str, Mapping[str, tuple[float | None, ...]]] = {
    "rare-feature": {
        "integrated gradients (Enguehard)": (None, None, 1.0, 0.135),
        "occlusion (Enguehard)": (None, None, 1.0, 0.134),
        "Dynamask (Enguehard)": (None, None, 0.957, 0.656),
        "ExtrMask (Enguehard)": (None, None, 0.992, 0.756),
    },
    "rare-time": {
        "integrated gradients (Enguehard)": (None, None, 1.0, 0.125),
        "occlusion (Enguehard)": (None, None, 1.0, 0.124),
        "Dynamask (Enguehard)": (None, None, 0.903, 0.652),
        "ExtrMask (Enguehard)": (None, None, 0.993, 0.820),
    },
    "state": {
        "integrated gradients (Enguehard)": (0.909, 0.936, 0.918, 0.454),
        "integrated gradients (Jang)": (None, None, 0.922, 0.357),
        "GradientSHAP (Enguehard)": (0.798, 0.852, 0.849, 0.414),
        "GradientSHAP (Jang)": (None, None, 0.857, 0.315),
        "occlusion (Enguehard)": (0.817, 0.870, 0.866, 0.393),
        "LIME (Enguehard)": (0.912, 0.937, 0.932, 0.438),
        "Dynamask (Enguehard)": (0.695, 0.876, 0.711, 0.763),
        "ExtrMask (Enguehard)": (0.883, 0.910, 0.885, 0.781),
        "ExtrMask (Jang)": (None, None, 0.557, 0.012),
    },
    "switch-feature": {
        "integrated gradients (Jang)": (None, None, 0.918, 0.433),
        "GradientSHAP (Jang)": (None, None, 0.892, 0.387),
        "occlusion (Jang)": (None, None, 0.902, 0.374),
        "LIME (Jang)": (None, None, 0.949, 0.391),
        "ExtrMask (Jang)": (None, None, 0.978, 0.745),
        "ContraLSP (Jang)": (None, None, 0.970, 0.851),
    },
}


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


def removals(x: Array, x0: Array, scores: Array, most: int) -> Array:
    """``(most + 1, B, T, F)``: inputs with the 0, 1, … highest set to the baseline."""
    batch = len(x)
    order = np.argsort(-np.abs(scores).reshape(batch, -1), axis=1, kind="stable")
    rank = np.argsort(order, axis=1).reshape(x.shape)
    gone = rank[None] < np.arange(most + 1).reshape(-1, *[1] * x.ndim)
    return np.where(gone, x0, x)


def prediction_difference(values: Array) -> float:
    """CPD of ``(most + 1, B)`` targets along removals."""
    return float(np.abs(np.diff(values, axis=0)).sum(axis=0).mean())


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
    evaluate, zeros = squares(truth, x), np.zeros_like(x)
    mean = np.broadcast_to(x.mean(axis=(0, 1)), x.shape)
    baselines = {ExpectedGradients.name: x, Occlusion.name: mean}
    scores = {
        **{
            method.name: method()
            .run(evaluate, x, baseline=baselines.get(method.name, zeros))
            .inputs
            for method in BUILT_IN
        },
        "random": rng.uniform(size=x.shape),
        "truth": truth.astype(float),
    }
    whole = np.abs(evaluate(x[None]).values).mean()
    for method, found in scores.items():
        along = evaluate(removals(x, zeros, found, truth[0].sum())).values
        yield method, ranking(found, truth) | {"CPD": prediction_difference(along) / whole}


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
    """Return one logit at every step, from a CfC with or without elapsed times, or a GRU."""

    def __init__(self, kind: str, features: int, units: int) -> None:
        super().__init__()
        self.kind = kind
        self.rnn = (
            nn.GRU(features, units) if kind == "GRU" else CfC(features, units, backbone_units=units)
        )
        self.head = nn.Linear(units, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        states = self.rnn(x) if self.kind == "GRU" else self.rnn(x, time_delta)[0]
        return self.head(states)


class Untimed(Net):
    """Take no elapsed times."""

    def __call__(self, x: mx.array) -> mx.array:  # type: ignore[override]
        return super().__call__(x)


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


def observe(model: Net, x: Array, dt: Array | None = None) -> ncp.Observation:
    """The last step's logit; inside ``runner.analysing()``."""
    needs = set(ncp.Need)
    return passes.observe(ModelRunner(model, ncp.HeldOutBatch(x, dt), target=0), 0, needs)


# ---- labelled series: the prediction of a step, and its own input


def attributors(mean: Array) -> dict[str, Attributor]:
    """Return zeros as the baseline, or 50 samples, as published; for occlusion the mean."""
    methods = {
        Gradient(): "zeros",
        InputXGradient(): "zeros",
        IntegratedGradients(n_steps=64): "zeros",
        SmoothGrad(): "zeros",
        ExpectedGradients(n_samples=50): "held_out",
        Occlusion(): mean,
    }
    return {method.name: Attributor(method, baseline) for method, baseline in methods.items()}


def at_last_step(
    observation: ncp.Observation, attributor: Attributor, mean: Array, errors: list[Array]
) -> Array:
    """Return ``(B, F)``, what of the last step's target is attributed to its inputs."""
    method = attributor.method
    if not isinstance(method, Occlusion):
        found = attributor.attribute(observation)
        if isinstance(method, IntegratedGradients) and found.error is not None:
            errors.append(found.error)
        return found.inputs[:, -1]
    x = observation.inputs

    def evaluate(inputs: Array | None = None, *_: Any, **__: Any) -> TargetValues:
        # The steps before stay as they are, so that they need not be tried.
        if inputs is None:
            return TargetValues(observation.target_values[None])
        before = np.broadcast_to(x[:, :-1], (len(inputs), *x[:, :-1].shape))
        return observation.extra_passes.evaluate(np.concatenate([before, inputs], axis=2))

    baseline = np.broadcast_to(mean, x[:, -1:].shape)
    return method.run(evaluate, x[:, -1:], baseline=baseline).inputs[:, 0]


def removed(model: Net, x: Array, mean: Array, rng: np.random.Generator) -> dict[str, float]:
    """CPD of every method at the last step, of all inputs before it, in probability."""
    found: dict[str, float] = {}
    cells = x[0].size
    observation = observe(model, x)
    maps = {
        name: attributor.attribute(observation).inputs
        for name, attributor in attributors(mean).items()
    }
    for method, scores in (maps | {"random": rng.uniform(size=x.shape)}).items():
        points = removals(x, np.broadcast_to(mean, x.shape), scores, cells // 10)
        logits = observation.extra_passes.evaluate(points.astype(np.float32)).values
        found[method] = prediction_difference(1 / (1 + np.exp(-logits)))
    return found


def prefixes(
    kind: str, model_kind: str, seed: int, *, steps: int, tests: int, length: int | None
) -> Iterator[tuple[str, dict[str, float]]]:
    """Train a model, and score every method on the last inputs of some prefixes."""
    rng = np.random.default_rng(seed)
    mx.random.seed(seed)
    train_set, test_set = SERIES[kind](rng, 800), SERIES[kind](rng, tests)
    if length is not None:
        train_set, test_set = (
            Series(s.x[:, :length], s.labels[:, :length], s.truth[:, :length])
            for s in (train_set, test_set)
        )
    model = (Untimed if model_kind == "GRU" else Net)(model_kind, 3, 32)

    def batches() -> Iterator[Batch]:
        while True:
            rows = rng.permutation(len(train_set.x))[:32]
            labels = train_set.labels[rows]
            yield (train_set.x[rows],), labels, np.ones_like(labels)

    loss = train(model, batches(), steps, 3e-3)
    logits = np.array(model(mx.array(test_set.x))[..., 0])
    active = (test_set.x * test_set.truth).sum(axis=2)
    yield (
        "",
        {
            "loss": loss,
            "AUROC of the model": float(roc_auc_score(test_set.labels.ravel(), logits.ravel())),
            "AUROC of the active input": float(
                roc_auc_score(test_set.labels.ravel(), active.ravel())
            ),
        },
    )
    mean, last = train_set.x.mean(axis=(0, 1)), test_set.x.shape[1] - 1
    at = np.unique(np.linspace(last // PREFIXES, last, PREFIXES).astype(int))
    scores: Scores = {name: np.zeros((tests, len(at), 3)) for name in attributors(mean)}
    errors: list[Array] = []
    for i, step in enumerate(at):
        observation = observe(model, test_set.x[:, : step + 1])
        for name, attributor in attributors(mean).items():
            scores[name][:, i] = at_last_step(observation, attributor, mean, errors)
    error = np.concatenate(errors)
    yield (
        "integrated_gradients",
        {
            "completeness error, 99th percentile": float(np.quantile(error, 0.99)),
            "incomplete": float((error > 0.05).mean()),
        },
    )
    truth = test_set.truth[:, at]
    scores |= {"random": rng.uniform(size=truth.shape), "truth": truth.astype(float)}
    differences = removed(model, test_set.x[:, : min(50, last + 1)], mean, rng)
    for method, found in scores.items():
        more = {"CPD": differences[method]} if method in differences else {}
        yield method, ranking(found, truth) | more


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


def cases(quick: bool) -> list[Case]:
    def prefix_case(kind: str, model: str) -> Case:
        options: dict[str, Any] = {"steps": 300, "tests": 200, "length": None}
        if quick:
            options = {"steps": 10, "tests": 8, "length": 24}
        return Case(kind, model, 1, lambda seed: prefixes(kind, model, seed, **options))

    def share_case(kind: str, *, decay: float = 0.1, **options: Any) -> Case:
        options |= {"decay": decay} | ({"steps": 20} if quick else {})
        model = "CfC" if decay else "CfC, no weight decay"
        seeds = 1 if quick else 3
        return Case(kind, model, seeds, lambda seed: when_or_what(kind, seed, **options))

    rare = [
        Case(kind, "white box", 1 if quick else 5, lambda seed, kind=kind: white_box(kind, seed))
        for kind in ("rare-feature", "rare-time")
    ]
    trained = [prefix_case(kind, model) for kind in SERIES for model in ("CfC", "GRU")]
    shares = [
        share_case(kind, decay=decay, steps=1000, units=16, rate=5e-3)
        for kind in ("feature-driven", "time-driven")
        for decay in (0.1, 0.0)
    ]
    shares.append(share_case("parity", steps=2000, units=32, rate=5e-3, length=12))
    return rare + trained + shares


def run(case: Case) -> list[Row]:
    """Rows of one case: means over seeds, with their SD where there are several."""
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(case.seeds):
        for method, metrics in case.run(seed):
            for metric, value in metrics.items():
                found.setdefault((method, metric), []).append(value)
    return [
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


def table(rows: Sequence[Row]) -> str:
    """Markdown: where, beside what was published; then when or what."""
    at = {(r["benchmark"], r["model"], r["method"], r["metric"]): r for r in rows}
    order = dict.fromkeys((r["benchmark"], r["model"]) for r in rows)

    def cell(*key: str) -> str:
        row = at.get(key)  # type: ignore[call-overload]
        if row is None:
            return "–"
        spread = f" ({float(row['sd']):.3f})" if row["sd"] else ""
        return f"{float(row['value']):.3f}{spread}"

    lines = [f"| benchmark | model | method | {' | '.join(METRICS)} |", "|---" * 8 + "|"]
    for benchmark in dict.fromkeys(b for b, _ in order):
        for model in (m for b, m in order if b == benchmark):
            for method in (*(each.name for each in BUILT_IN), *BASELINES):
                cells = [cell(benchmark, model, method, metric) for metric in METRICS]
                if set(cells) != {"–"}:
                    lines.append(f"| {benchmark} | {model} | {method} | {' | '.join(cells)} |")
        for who, values in PUBLISHED.get(benchmark, {}).items():
            if any(b == benchmark for b, _ in order):
                cells = ["–" if v is None else f"{v:.3f}" for v in (*values, None)]
                lines.append(f"| {benchmark} | published | {who} | {' | '.join(cells)} |")
    lines += ["", "| benchmark | model | | |", "|---|---|---|---|"]
    for row in rows:
        if row["metric"] not in METRICS:
            what = " ".join(filter(None, (row["method"], row["metric"])))
            value = cell(*(row[k] for k in ("benchmark", "model", "method", "metric")))
            lines.append(f"| {row['benchmark']} | {row['model']} | {what} | {value} |")
    return "\n".join(lines)


def stored() -> list[Row]:
    if not STORED.exists():
        return []
    with STORED.open(newline="") as file:
        return list(csv.DictReader(file))


def store(new: Sequence[Row], order: Sequence[Case]) -> None:
    """Put rows in the place of those of the same case."""
    done = {(r["benchmark"], r["model"]) for r in new}
    rows = [*new, *(r for r in stored() if (r["benchmark"], r["model"]) not in done)]
    with STORED.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for case in order:
            key = (case.benchmark, case.model)
            writer.writerows(r for r in rows if (r["benchmark"], r["model"]) == key)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and untrained; stores nothing")
    parser.add_argument("--table", action="store_true", help="the stored numbers again")
    parser.add_argument("--only", default="", help="cases whose benchmark begins so")
    args = parser.parse_args()
    if args.table:
        print(table(stored()))
        return
    rows: list[Row] = []
    order = cases(args.quick)
    for case in order:
        if case.benchmark.startswith(args.only):
            started = time.perf_counter()
            found = run(case)
            rows += found
            print(
                f"{case.benchmark}, {case.model}: {time.perf_counter() - started:.0f} s", flush=True
            )
            if not args.quick:
                store(found, order)
    print(table(rows))


if __name__ == "__main__":
    main()
