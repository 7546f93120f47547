"""Predict where a digit moves from frames, and show which pixels the prediction comes from.

    pip install ncps scikit-learn
    python examples/frames.py

A handwritten digit moves across a larger field with noise. A small convolutional network reads each
frame, and a wired CfC (an NCP of 24 neurons) reads the sequence and returns the velocity, which is
direction and speed. Nobody tells the network where the digit is. The script prints the errors, and
the share of the attribution that is on the digit beside the digit's share of the area. It logs to
TensorBoard and saves a picture of the most important frames.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from ncps.wirings import AutoNCP
from sklearn.datasets import load_digits

import ncp_callbacks as ncp
from ncp_callbacks.attribution import IntegratedGradients
from ncp_callbacks.models import CfC
from ncp_callbacks.runs import read_run

FIELD, DIGIT, FRAMES, MAX_SPEED = 20, 8, 6, 2.0
NOISE = 0.3


class Driver(nn.Module):
    """Return the velocity ``(B, 2)``, right and down, after the last of the frames."""

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.near = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.far = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.flat = nn.Linear(16 * (FIELD // 4) ** 2, features)
        self.ncp = CfC(features, AutoNCP(24, 2, seed=1))

    def __call__(self, frames: mx.array) -> mx.array:
        batch, steps = frames.shape[:2]
        x = frames.reshape(batch * steps, *frames.shape[2:])
        x = nn.relu(self.far(nn.relu(self.near(x))))
        x = nn.tanh(self.flat(x.reshape(batch * steps, -1)))
        motor, _ = self.ncp(x.reshape(batch, steps, -1))
        return MAX_SPEED * motor[:, -1]


def moving(
    images: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames ``(N, T, H, W, 1)``, velocities ``(N, 2)`` and where the digits are."""
    count = len(images)
    angle = rng.uniform(-np.pi, np.pi, count)
    speed = rng.uniform(0.5, MAX_SPEED, count)
    velocity = speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # The whole path is inside the field.
    path = velocity * (FRAMES - 1)
    room = FIELD - DIGIT - np.abs(path)
    start = rng.uniform(0, 1, (count, 2)) * room + np.maximum(0, -path)
    places = np.rint(start[:, None] + velocity[:, None] * np.arange(FRAMES)[:, None]).astype(int)
    frames = rng.uniform(0, NOISE, (count, FRAMES, FIELD, FIELD)).astype(np.float32)
    region = np.zeros(frames.shape, bool)
    for i, image in enumerate(images):
        for t, (x, y) in enumerate(places[i]):
            here = (i, t, slice(y, y + DIGIT), slice(x, x + DIGIT))
            frames[here] = np.maximum(frames[here], image)
            region[here] = True
    return frames[..., None], velocity.astype(np.float32), region


def main() -> None:
    """Train, and print errors, the share on the digit and the command that opens the log."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=50, help="steps between snapshots")
    parser.add_argument("--log-dir", type=Path, default=Path("runs/frames"))
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    mx.random.seed(args.seed)
    digits = load_digits().images.astype(np.float32) / 16.0
    train, test = digits[:1500], digits[1500:]
    x_test, y_test, region = moving(test[:128], np.random.default_rng(1))

    model = Driver()
    mx.eval(model.parameters())
    optimizer = optim.Adam(learning_rate=optim.cosine_decay(6e-3, args.steps))
    value_and_grad = nn.value_and_grad(
        model, lambda x, y: nn.losses.mse_loss(model(x), y, reduction="mean")
    )

    held_out = ncp.HeldOutBatch(
        x_test[:16],
        targets=y_test[:16],
        feature_names=["brightness"],
        class_names=["right", "down"],
    )
    pixels = ncp.FrameAttribution(
        sequences=[0, 1], region=region[:16], method=IntegratedGradients(n_steps=8)
    )
    with ncp.Monitor(
        model,
        held_out,
        [ncp.GradientAttribution(), pixels, ncp.BackboneActivations(), ncp.StateTransitions()],
        log_dir=args.log_dir,
        every=args.every,
        target=0,  # The speed to the right.
    ) as monitor:
        for step in range(1, args.steps + 1):
            x, y, _ = moving(train[rng.integers(0, len(train), 32)], rng)
            loss, gradients = value_and_grad(mx.array(x), mx.array(y))
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state, loss)
            monitor.on_step_end(step, loss=loss)

    found, true = np.array(model(mx.array(x_test))) @ [1, 1j], y_test @ [1, 1j]
    angles = np.degrees(np.abs(np.angle(found / true)))
    run = read_run(args.log_dir)
    share = run.scalars["frames_output0/region_share"].values[-1]
    picture = args.log_dir / "frames.png"
    last = max(run.images["frames_output0/sequence_0"].items())[1]
    picture.write_bytes(last.data())
    print(f"direction, median error  {np.median(angles):.1f} degrees (guessing: 90)")
    print(f"speed, median error      {np.median(np.abs(np.abs(found) - np.abs(true))):.2f}")
    print(f"attribution on the digit {share:.0%}, on {region[:16].mean():.0%} of the area")
    print(f"picture                  {picture}")
    print(f"log                      {args.log_dir}")
    print("To open it:")
    print(
        f"  {sys.executable} -m tensorboard.main --logdir {args.log_dir} "
        "--samples_per_plugin=images=200"
    )


if __name__ == "__main__":
    main()
