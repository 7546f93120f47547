"""Compare two architectures over five seeds each: which is better, and why?

python examples/sweep.py

A drug is given in doses at random times, and its level in the blood decays between them. A CfC that
predicts the level is given the elapsed times, a GRU isn't. The ten trainings take half a minute on
two cores.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import ncp_callbacks as ncp
from ncp_callbacks.models import CfC


class Net(nn.Module):
    """Predict the level from the last state of a CfC, or of a GRU without elapsed times."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.rnn = CfC(2, 12, backbone_units=16) if model == "cfc" else nn.GRU(2, 12)
        self.head = nn.Linear(12, 1)

    def __call__(self, x: mx.array, time_delta: mx.array) -> mx.array:
        is_liquid = isinstance(self.rnn, CfC)
        states = self.rnn(x, time_delta)[0] if is_liquid else self.rnn(x)
        return self.head(states[:, -1])


def batch(seed: int, size: int = 32) -> tuple[mx.array, mx.array, mx.array]:
    """Return doses with a channel of noise, elapsed times, and levels after the last dose."""
    keys = mx.random.split(mx.random.key(seed), 3)
    dt = mx.random.uniform(0.1, 2.0, (size, 8), key=keys[0])
    dose = mx.random.uniform(0.0, 1.0, (size, 8), key=keys[1])
    noise = mx.random.normal((size, 8), key=keys[2])
    level = mx.zeros((size,))
    for t in range(8):
        level = level * mx.exp(-dt[:, t]) + dose[:, t]
    return mx.stack([dose, noise], axis=-1), dt, level[:, None]


def mse(model: Net, x: mx.array, dt: mx.array, y: mx.array) -> mx.array:
    """Return the mean squared error."""
    return nn.losses.mse_loss(model(x, dt), y, reduction="mean")


x_val, dt_val, y_val = batch(seed=0, size=64)
held_out = ncp.HeldOutBatch(x_val, time_delta=dt_val, feature_names=["dose", "noise"])


def train(config: dict[str, Any]) -> None:
    """Train the model that the hyper-parameters name, and log it under their names."""
    mx.random.seed(config["seed"])
    model, optimizer = Net(config["model"]), optim.Adam(1e-2)
    loss_and_grad = nn.value_and_grad(model, mse)
    attribution = ncp.GradientAttribution(method="integrated_gradients")
    with ncp.Monitor(
        model, held_out, [attribution], log_dir="runs/sweep/{model}-s{seed}", run_config=config,
        every=50, background=False,
    ) as monitor:  # fmt: skip
        for step in range(1, 251):
            loss, gradients = loss_and_grad(model, *batch(seed=1000 * config["seed"] + step))
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            monitor.on_step_end(step, loss=loss)
            if step % 50 == 0:
                monitor.log_scalars(step, {"val/loss": mse(model, x_val, dt_val, y_val)})


for config in ncp.sweep(model=["cfc", "gru"], seed=range(5)):
    train(config)

print(*ncp.compare_runs("runs/sweep", by="model").answer, sep="\n")
