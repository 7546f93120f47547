"""The PyTorch route: ncps.torch, Captum, scikit-learn, matplotlib, tensorboardX.

    python -m peers.torch_captum --size=S --sequences=32 --log=/tmp/log

A worker of :mod:`peers.protocol`. ``snapshot`` does the analyses in two ways: ``"separate"``, each
by itself, as one writes them; ``"shared"``, with passes shared by hand wherever the libraries allow
it: one Captum call for inputs and elapsed times, one forward pass with hooks for states and
layers.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from peers.cases import INTEGRATED, N_STEPS, SCALES, SIZES, sequences
from peers.protocol import missing, serve

try:
    import captum
    import ncps.torch
    import sklearn
    import torch
    from captum.attr import InputXGradient, IntegratedGradients
    from sklearn.decomposition import PCA
    from tensorboardX import SummaryWriter

    from peers.pictures import Found, Stopwatch, log
except ImportError as error:
    missing(error)


class Net(torch.nn.Module):
    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.rnn = ncps.torch.CfC(features, units, batch_first=True)
        self.head = torch.nn.Linear(units, 1)

    def forward(self, x: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        # ncps.torch squeezes (B, T, 1), which then doesn't broadcast against the units.
        return self.head(self.rnn(x, timespans=dt.unsqueeze(-1).expand(-1, -1, self.units))[0])


class Peer:
    def __init__(self, size: str, count: int, directory: str) -> None:
        torch.manual_seed(0)
        shape = SIZES[size]
        self.net = Net(shape.features, shape.units)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.data = [torch.from_numpy(a) for a in sequences(shape)]
        self.x, self.dt = (a[:count] for a in self.data[:2])
        self.writer = SummaryWriter(directory)
        self.number = 0
        layers = self.net.rnn.rnn_cell.backbone
        self.layers = {f"layer{i}": layer for i, layer in enumerate(layers[1::2])}

    def step(self) -> dict[str, Any]:
        start = time.perf_counter()
        x, dt, y = self.data
        loss = ((self.net(x, dt) - y) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"seconds": time.perf_counter() - start}

    def snapshot(self, way: str) -> dict[str, Any]:
        """Return the seconds of each part."""
        self.number += 1
        watch = Stopwatch()
        self.net.eval()
        found = self.separate(watch) if way == "separate" else self.shared(watch)
        with watch("integrated gradients"):
            found.integrated = self.integrated()
        self.net.train()
        log(self.writer, self.number, found, watch)
        return watch.seconds

    def integrated(self) -> Any:
        x, dt = self.x[:INTEGRATED], self.dt[:INTEGRATED]
        method = IntegratedGradients(self.target)
        return method.attribute(x, additional_forward_args=dt, n_steps=N_STEPS).numpy()

    def target(self, x: torch.Tensor, dt: torch.Tensor) -> torch.Tensor:
        return self.net(x, dt)[:, -1, 0]

    def separate(self, watch: Stopwatch) -> Found:
        x, dt = self.x, self.dt
        with watch("attribution"):
            method = InputXGradient(self.target)
            attribution = method.attribute(x.clone().requires_grad_(), additional_forward_args=dt)
        with watch("time gradient"):
            time_delta = dt.clone().requires_grad_()
            (time_gradient,) = torch.autograd.grad(self.target(x, time_delta).sum(), time_delta)
        with watch("scales"), torch.no_grad():
            values = {scale: self.target(x, dt * scale) for scale in SCALES}
        with watch("states"), torch.no_grad():
            states = self.net.rnn(x, timespans=dt.unsqueeze(-1).expand(-1, -1, self.net.units))[0]
            pca = PCA(n_components=2)
            scores = pca.fit_transform(states.reshape(-1, states.shape[-1]).numpy())
        with watch("backbone"):
            activations = self.hooked(self.layers)[0]
        return Found(
            attribution.detach().numpy(), time_gradient.numpy(),
            {s: float((v - values[1.0]).abs().mean()) for s, v in values.items()},
            states.numpy(), scores.reshape(*states.shape[:2], 2), pca.explained_variance_ratio_,
            activations,
        )  # fmt: skip

    def shared(self, watch: Stopwatch) -> Found:
        x, dt = self.x, self.dt
        with watch("gradients"):
            inputs = (x.clone().requires_grad_(), dt.clone().requires_grad_())
            attribution, by_time = InputXGradient(self.target).attribute(inputs)
        with watch("states and backbone"):
            seen, outputs = self.hooked({"states": self.net.rnn, **self.layers})
            states = seen.pop("states")
        with watch("scales"), torch.no_grad():
            values = {s: self.target(x, dt * s) for s in SCALES if s != 1}
            values[1.0] = outputs[:, -1, 0]
        with watch("PCA"):
            pca = PCA(n_components=2)
            scores = pca.fit_transform(states.reshape(-1, states.shape[-1]))
        return Found(
            attribution.detach().numpy(), by_time.detach().numpy(),
            {s: float((values[s] - values[1.0]).abs().mean()) for s in SCALES},
            states, scores.reshape(*states.shape[:2], 2), pca.explained_variance_ratio_, seen,
        )  # fmt: skip

    def hooked(self, modules: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        """Return ``(B, T, N)`` outputs of modules in one forward pass, and those of the model."""
        kept: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

        def keep(name: str) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                kept[name].append(output[0] if isinstance(output, tuple) else output)

            return hook

        handles = [m.register_forward_hook(keep(name)) for name, m in modules.items()]
        try:
            with torch.no_grad():
                outputs = self.net(self.x, self.dt)
        finally:
            for handle in handles:
                handle.remove()
        arrays = {
            name: (a[0] if len(a) == 1 else torch.stack(a, dim=1)).numpy()
            for name, a in kept.items()
        }
        return arrays, outputs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--log", required=True)
    args = parser.parse_args()
    peer = Peer(args.size, args.sequences, args.log)
    versions = {
        "torch": torch.__version__, "captum": captum.__version__, "sklearn": sklearn.__version__,
        "python": sys.version.split()[0],
    }  # fmt: skip
    serve({"step": peer.step, "snapshot": peer.snapshot}, versions)


if __name__ == "__main__":
    main()
