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
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from sklearn.decomposition import PCA
from tensorboardX import SummaryWriter

from ncp_callbacks.models import CfC
from peers.cases import SCALES, SIZES, sequences
from peers.pictures import Found, Stopwatch, log
from peers.protocol import serve


class Net(nn.Module):
    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.rnn, self.head = CfC(features, units), nn.Linear(units, 1)

    def __call__(self, x: mx.array, dt: mx.array) -> mx.array:
        return self.head(self.rnn(x, dt)[0])


class Peer:
    def __init__(self, size: str, count: int, directory: str) -> None:
        mx.random.seed(0)
        shape = SIZES[size]
        self.net = net = Net(shape.features, shape.units)
        self.optimizer = optim.Adam(learning_rate=1e-3)
        self.data = [mx.array(a) for a in sequences(shape)]
        self.x, self.dt = (a[:count] for a in self.data[:2])
        self.loss_and_grad = nn.value_and_grad(net, lambda x, dt, y: ((net(x, dt) - y) ** 2).mean())
        mx.eval(self.data, self.x, self.dt, net.parameters())
        self.writer = SummaryWriter(directory)
        self.number = 0

    def step(self) -> dict[str, Any]:
        start = time.perf_counter()
        loss, gradients = self.loss_and_grad(*self.data)
        self.optimizer.update(self.net, gradients)
        mx.eval(self.net.parameters(), self.optimizer.state, loss)
        return {"seconds": time.perf_counter() - start}

    def look(self, way: str, nodes: int, few: int = 0) -> dict[str, Any]:
        """Seconds by part; with ``nodes`` > 0 also integrated gradients, again of few of them."""
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
        if nodes:
            with watch("integrated gradients"):
                found.integrated = self.integrated(nodes)
            with watch("of few of them"):
                self.integrated(nodes, few)
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

    def integrated(self, nodes: int, count: int | None = None) -> np.ndarray:
        x, dt = self.x[:count], self.dt[:count]
        points, weights = np.polynomial.legendre.leggauss(nodes)
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
        {"step": peer.step, "look": peer.look},
        {"mlx": version("mlx"), "python": sys.version.split()[0]},
    )


if __name__ == "__main__":
    main()
