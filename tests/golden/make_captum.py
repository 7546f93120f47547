"""Write the reference values that ``tests/test_methods.py`` compares attributions with.

Needs ``torch``, ``ncps`` and ``captum`` (made with torch 2.13, ncps 1.0.1, captum 0.9.0), not MLX;
run it as::

    python tests/golden/make_captum.py

Each model is trained first, on a label that takes an interaction and the elapsed time: at
initialisation the way from the baseline is so smooth that any quadrature would pass. Training is in
float32; weights are stored in float32, results computed from them in float64.

``captum.npz`` holds ``x`` (B, T, F), ``time_delta`` (B, T), ``baseline`` (T, F),
``time_baseline`` (T,), ``baselines`` (N, T, F), ``time_baselines`` (N, T), and per model::

    <model>/meta, <model>/weights         as in ncps_torch_*.npz
    <model>/values, <model>/at_baseline   (B,), the target
    <model>/<method>/x, <model>/<method>/time_delta    attributions
    <model>/<method>/delta                (B,), Captum's convergence delta, where it has one

Methods: ``saliency``, ``input_x_gradient``, ``ig4``, ``ig16``, ``ig64`` (Gauss-Legendre),
``occlusion`` (windows of one cell), ``smooth_grad``, ``gradient_shap`` (and its standard error,
``gradient_shap_se``), ``expected`` (what GradientShap estimates: integrated gradients averaged over
all baselines).

Two things about Captum. NoiseTunnel draws its own noise, with one SD for all features: the
package's is put in its place, so that the averaging is compared. And GradientShap draws a baseline
of each input by itself, intervals of one sequence beside the inputs of another: it is given both as
one tensor, whose baselines stay together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from captum.attr import (
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from ncps.torch import LTC, CfC

HERE = Path(__file__).parent
BATCH, STEPS, FEATURES, UNITS, BASELINES, DRAWS = 4, 8, 3, 8, 6, 8
SHAPS, REPEATS = 64, 512
TARGET = 1
Tensors = tuple[torch.Tensor, ...]


class Timed(torch.nn.Module):
    """A network of ncps, step by step.

    Its own loop pairs intervals (B, T) with the units instead of with the sequences; the cell
    itself takes them as (B, 1).
    """

    def __init__(self, rnn: torch.nn.Module) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = torch.nn.Linear(UNITS, 2)

    def forward(self, x: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        state = torch.zeros((len(x), UNITS), dtype=x.dtype)
        for t in range(x.shape[1]):
            out, state = self.rnn.rnn_cell(x[:, t], state, dt[:, t : t + 1])
        return self.head(out)


class Untimed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.GRU(FEATURES, UNITS, batch_first=True)
        self.head = torch.nn.Linear(UNITS, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


MODELS: dict[str, Any] = {
    "cfc": lambda: Timed(CfC(FEATURES, UNITS, backbone_units=12, backbone_layers=1)),
    "ltc": lambda: Timed(LTC(FEATURES, UNITS)),
    "gru": Untimed,
}


def sequences(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, intervals, and labels: what is left of feature 0, times the mean of feature 1."""
    x = 1.5 * rng.standard_normal((size, STEPS, FEATURES))
    dt = rng.lognormal(-0.7, 0.8, (size, STEPS))
    # Time from each step to the last one.
    age = dt[:, ::-1].cumsum(axis=1)[:, ::-1] - dt
    kept = (np.exp(-age / 2) * x[..., 0]).sum(axis=1)
    label = (kept * x[..., 1].mean(axis=1) > 0).astype(np.int64)
    return x.astype(np.float32), dt.astype(np.float32), label


def train(model: torch.nn.Module, rng: np.random.Generator, steps: int) -> float:
    """Train it; returns the accuracy on sequences it has not seen."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        x, dt, label = map(torch.tensor, sequences(rng, 128))
        inputs = (x, dt) if isinstance(model, Timed) else (x,)
        loss = torch.nn.functional.cross_entropy(model(*inputs), label)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    x, dt, label = map(torch.tensor, sequences(rng, 1000))
    inputs = (x, dt) if isinstance(model, Timed) else (x,)
    with torch.no_grad():
        return float((model(*inputs).argmax(-1) == label).double().mean())


def attributions(
    model: torch.nn.Module, x: Tensors, x0: Tensors, draws: Tensors, noise: torch.Tensor
) -> dict[str, Tensors]:
    """All methods, each as attributions of each input and perhaps the convergence delta."""
    found: dict[str, Tensors] = {
        "saliency": Saliency(model).attribute(x, target=TARGET, abs=False),
        "input_x_gradient": InputXGradient(model).attribute(x, target=TARGET),
    }
    ig = IntegratedGradients(model)
    for nodes in (4, 16, 64):
        by_input, delta = ig.attribute(
            x,
            x0,
            target=TARGET,
            method="gausslegendre",
            n_steps=nodes,
            return_convergence_delta=True,
        )
        found[f"ig{nodes}"] = (*by_input, delta)
    cells = tuple((1,) * (a.ndim - 1) for a in x)
    found["occlusion"] = Occlusion(model).attribute(x, cells, baselines=x0, target=TARGET)

    def ours(mean: float, sd: torch.Tensor) -> torch.Tensor:
        # Asked for (B * DRAWS, ...), the draws of a sequence one after the other; none for dt.
        own = noise.transpose(0, 1).reshape(-1, STEPS, FEATURES)
        return own if sd.ndim == 3 else torch.zeros_like(sd)

    with mock.patch("torch.normal", ours):
        found["smooth_grad"] = NoiseTunnel(Saliency(model)).attribute(
            x, nt_samples=DRAWS, target=TARGET, abs=False
        )
    per_baseline = [
        ig.attribute(
            x,
            tuple(d[i : i + 1].expand_as(a).contiguous() for a, d in zip(x, draws, strict=True)),
            target=TARGET, method="gausslegendre", n_steps=64,
        )
        for i in range(BASELINES)
    ]  # fmt: skip
    found["expected"] = tuple(torch.stack(each).mean(0) for each in zip(*per_baseline, strict=True))

    joint = GradientShap(lambda both: model(*apart(both)))
    np.random.seed(0)  # noqa: NPY002  # which Captum draws from
    runs = torch.stack(
        [
            joint.attribute(together(x), together(draws), n_samples=SHAPS, target=TARGET)
            for _ in range(REPEATS)
        ]
    )
    timed = len(x) > 1
    found["gradient_shap"] = split(runs.mean(0), timed)
    found["gradient_shap_se"] = split(runs.std(0) / REPEATS**0.5, timed)
    return found


def together(arrays: Tensors) -> torch.Tensor:
    return torch.cat([arrays[0], *(a[..., None] for a in arrays[1:])], dim=-1)


def apart(both: torch.Tensor) -> Tensors:
    return split(both, both.shape[-1] > FEATURES)


def split(both: torch.Tensor, timed: bool) -> Tensors:
    return (both[..., :FEATURES], both[..., FEATURES]) if timed else (both[..., :FEATURES],)


def main() -> None:
    rng = np.random.default_rng(0)
    x, dt, _ = sequences(rng, BATCH)
    # From further out than what was trained on: the way there leads through bends.
    x *= 3
    others, other_dt, _ = sequences(rng, BASELINES)
    many, many_dt, _ = sequences(rng, 1000)
    # As smooth_grad draws it: a tenth of each feature's range over sequences and steps.
    spread = 0.1 * (x.max(axis=(0, 1)) - x.min(axis=(0, 1)))
    noise = np.random.default_rng(0).standard_normal((DRAWS, *x.shape)) * spread
    arrays: dict[str, np.ndarray] = {
        "x": x,
        "time_delta": dt,
        "baseline": many.mean(axis=0),
        "time_baseline": many_dt.mean(axis=0),
        "baselines": others,
        "time_baselines": other_dt,
    }
    for kind, make in MODELS.items():
        torch.manual_seed(0)
        model = make()
        accuracy = train(model, np.random.default_rng(1), 2000)
        weights = {n: p.detach().numpy().copy() for n, p in model.state_dict().items()}
        model.double().eval()
        timed = kind != "gru"

        def both(inputs: str, intervals: str, rows: int | None, timed: bool = timed) -> Tensors:
            names = [inputs, intervals] if timed else [inputs]
            given = [torch.tensor(arrays[n], dtype=torch.float64) for n in names]
            return tuple(g if rows is None else g.expand(rows, *g.shape) for g in given)

        at, start = both("x", "time_delta", None), both("baseline", "time_baseline", BATCH)
        meta = {"weights": {n: w.shape for n, w in weights.items()}, "accuracy": accuracy}
        arrays[f"{kind}/meta"] = np.array(json.dumps(meta))
        arrays[f"{kind}/weights"] = np.concatenate([w.ravel() for w in weights.values()])
        with torch.no_grad():
            arrays[f"{kind}/values"] = model(*at)[:, TARGET].numpy()
            arrays[f"{kind}/at_baseline"] = model(*start)[:, TARGET].numpy()
            if timed:  # With one sequence the loop of ncps pairs intervals rightly.
                alone, _ = model.rnn.float()(at[0][:1].float(), timespans=at[1][:1].float())
                alone = model.head.float()(alone[:, -1])
                np.testing.assert_allclose(alone, model(*(a[:1].float() for a in at)), atol=1e-5)
                model.double()
        found = attributions(
            model, at, start, both("baselines", "time_baselines", None), torch.tensor(noise)
        )
        for method, parts in found.items():
            for name, part in zip(("x", "time_delta") if timed else ("x",), parts, strict=False):
                arrays[f"{kind}/{method}/{name}"] = part.detach().numpy()
            if method.startswith("ig"):
                arrays[f"{kind}/{method}/delta"] = parts[-1].detach().numpy()
        errors = {
            n: float(np.abs(arrays[f"{kind}/{n}/delta"]).max()) for n in ("ig4", "ig16", "ig64")
        }
        change = arrays[f"{kind}/values"] - arrays[f"{kind}/at_baseline"]
        print(f"{kind}: accuracy {accuracy:.3f}, changes {change.round(2)}, {errors}")
    path = HERE / "captum.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
