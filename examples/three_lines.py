"""Watch a plain loop with three lines: a small LTC learns the slope of a signal.

python examples/three_lines.py
"""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import ncp_callbacks as ncp
from ncp_callbacks.models import LTC


class Net(nn.Module):
    """Predict one number from the last state of an LTC."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = LTC(2, 12), nn.Linear(12, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0][:, -1])


def batch(seed: int, size: int = 32) -> tuple[mx.array, mx.array, mx.array]:
    """Return signals sampled at random times, with a channel of noise, and their slopes."""
    keys = mx.random.split(mx.random.key(seed), 4)
    dt = mx.random.uniform(0.1, 1.0, (size, 10), key=keys[0])
    slope = mx.random.uniform(-1, 1, (size, 1), key=keys[1])
    signal = slope * mx.cumsum(dt, axis=1) / 3 + 0.1 * mx.random.normal((size, 10), key=keys[2])
    noise = mx.random.normal((size, 10), key=keys[3])
    return mx.stack([signal, noise], axis=-1), dt, slope


model, optimizer = Net(), optim.Adam(learning_rate=1e-2)
loss_and_grad = nn.value_and_grad(
    model, lambda x, dt, y: nn.losses.mse_loss(model(x, dt), y, reduction="mean")
)

x, dt, y = batch(seed=0)
held_out = ncp.HeldOutBatch(x, time_delta=dt, feature_names=["signal", "noise"])  # 1
with ncp.Monitor(model, held_out, log_dir="runs/three_lines/ltc", every=10) as monitor:  # 2
    for step in range(1, 101):
        x, dt, y = batch(seed=step)
        loss, gradients = loss_and_grad(x, dt, y)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        monitor.on_step_end(step, loss=loss)  # 3

print(f"loss {loss.item():.3f}; open the log with: tensorboard --logdir {monitor.log_dir}")
