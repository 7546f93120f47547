"""The analyses written down in MLX one by one: no pass is shared, every picture is drawn afresh.

    python -m peers.naive_mlx --size=S --sequences=32 --log=/tmp/log

A worker of :mod:`peers.protocol`.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np
from sklearn.decomposition import PCA
from tensorboardX import SummaryWriter

from peers.cases import INTEGRATED, N_STEPS, SCALES, SIZES
from peers.pictures import Found, Stopwatch, log
from peers.protocol import serve
from peers.training import Training


class Peer:
    def __init__(self, size: str, count: int, directory: str) -> None:
        self.training = Training("CfC", SIZES[size])
        self.net = self.training.model
        self.x, self.dt = (a[:count] for a in self.training.inputs)
        self.writer = SummaryWriter(directory)
        self.number = 0

    def step(self) -> dict[str, Any]:
        start = time.perf_counter()
        self.training.step()
        return {"seconds": time.perf_counter() - start}

    def snapshot(self, way: str) -> dict[str, Any]:
        """Return the seconds of each part."""
        self.number += 1
        watch = Stopwatch()
        x, dt = self.x, self.dt
        self.net.eval()
        with watch("attribution"):
            attribution = np.array(x * mx.grad(self.target)(x, dt))
        with watch("time gradient"):
            time_gradient = np.array(mx.grad(self.target, argnums=1)(x, dt))
        with watch("scales"):
            values = {s: np.array(self.net(x, dt * s)[:, -1, 0]) for s in SCALES}
        with watch("states"):
            states = self.states()
            pca = PCA(n_components=2)
            scores = pca.fit_transform(states.reshape(-1, states.shape[-1]))
        with watch("backbone"):
            activations = self.activations()
        found = Found(
            attribution, time_gradient,
            {s: float(np.abs(v - values[1.0]).mean()) for s, v in values.items()},
            states, scores.reshape(*states.shape[:2], 2), pca.explained_variance_ratio_,
            activations,
        )  # fmt: skip
        with watch("integrated gradients"):
            found.integrated = self.integrated()
        self.net.train()
        log(self.writer, self.number, found, watch)
        return watch.seconds

    def target(self, x: mx.array, dt: mx.array) -> mx.array:
        return self.net(x, dt)[:, -1, 0].sum()

    def states(self) -> np.ndarray:
        cell, states = self.net.rnn.cell, []
        state = mx.zeros((len(self.x), cell.units))
        for t in range(self.x.shape[1]):
            _, state = cell(self.x[:, t], state, self.dt[:, t, None])
            states.append(state)
        return np.array(mx.stack(states, axis=1))

    def activations(self) -> dict[str, np.ndarray]:
        cell = self.net.rnn.cell
        state = mx.zeros((len(self.x), cell.units))
        seen: dict[str, list[mx.array]] = {}
        for t in range(self.x.shape[1]):
            shared = mx.concatenate([self.x[:, t], state], axis=-1)
            for i, layer in enumerate(cell.backbone.layers):
                shared = layer(shared)
                if i % 2:
                    seen.setdefault(f"layer{i // 2}", []).append(shared)
            _, state = cell(self.x[:, t], state, self.dt[:, t, None])
        return {name: np.array(mx.stack(a, axis=1)) for name, a in seen.items()}

    def integrated(self, count: int = INTEGRATED, n_steps: int = N_STEPS) -> np.ndarray:
        x, dt = self.x[:count], self.dt[:count]
        points, weights = np.polynomial.legendre.leggauss(n_steps)
        total = np.zeros(x.shape, np.float32)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            total += weight * np.array(mx.grad(self.target)(x * float(point), dt))
        return np.array(x) * total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--log", required=True)
    args = parser.parse_args()
    peer = Peer(args.size, args.sequences, args.log)
    serve(
        {"step": peer.step, "snapshot": peer.snapshot},
        {"mlx": version("mlx"), "python": sys.version.split()[0]},
    )


if __name__ == "__main__":
    main()
