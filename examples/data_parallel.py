"""Data-parallel training, watched by rank 0 alone.

    mlx.launch -n 2 python examples/data_parallel.py

Every rank makes the same monitor; all but rank 0 do nothing with it, and it calls no collective
operation, so that ranks can't wait for each other because of it. Each rank trains on its own part
of the data, and gradients are averaged. Prints one line per rank with the final loss.
"""

from __future__ import annotations

import argparse
import contextlib

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

import ncp_callbacks as ncp
from ncp_callbacks.models import CfC


class Net(nn.Module):
    """Predict one number from the last state of a CfC."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = CfC(2, 12, backbone_units=12), nn.Linear(12, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0][:, -1])


def main() -> None:
    """Train on several processes, of which one watches."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--log-dir", default="runs/distributed/cfc")
    parser.add_argument("--unwatched", action="store_true", help="train without the monitor")
    args = parser.parse_args()

    world = mx.distributed.init()
    mx.random.seed(0)  # the same weights everywhere
    model, optimizer = Net(), optim.Adam(learning_rate=1e-2)
    mx.eval(model.parameters())
    keys = mx.random.split(mx.random.key(1), 2)
    x = mx.random.normal((64, 12, 2), key=keys[0])
    dt = mx.random.uniform(0.2, 1.5, (64, 12), key=keys[1])
    y = (x[:, :, 0] * dt).sum(axis=1, keepdims=True)
    own = slice(world.rank(), None, world.size())
    loss_and_grad = nn.value_and_grad(model, lambda x, dt, y: ((model(x, dt) - y) ** 2).mean())

    watch: contextlib.AbstractContextManager[ncp.Monitor | None] = contextlib.nullcontext()
    if not args.unwatched:
        held_out = ncp.HeldOutBatch(x[:8], time_delta=dt[:8])
        watch = ncp.Monitor(model, held_out, log_dir=args.log_dir, every=20)
    with watch as monitor:
        for step in range(1, args.steps + 1):
            loss, gradients = loss_and_grad(x[own], dt[own], y[own])
            optimizer.update(model, nn.average_gradients(gradients))
            mx.eval(model.parameters(), optimizer.state, loss)
            if monitor is not None:
                monitor.on_step_end(step, loss=loss)

    weights = sum(p.astype(mx.float32).sum().item() for p in (model.head.weight, model.head.bias))
    print(f"rank {world.rank()} of {world.size()}: loss {loss.item()!r} weights {weights!r}")


if __name__ == "__main__":
    main()
