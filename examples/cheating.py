"""Catch a model that cheats: it reads how often patients are measured instead of how they are.

    python examples/cheating.py

Made-up patients on a ward, of whom some get worse. Heart rate, blood pressure and temperature tell
something about who will. But nurses who worry about a patient come more often, and the model gets
the time between measurements: it learns the worry. Its validation accuracy is splendid, and gone in
a hospital where everybody is measured at the same pace.

``attribution/time_share`` shows it from the first snapshots on: most of what moves the prediction
is *when* was measured, not *what*. Then the leak is fixed, with one measurement every 90 minutes
for everybody, and the two runs are compared. The script takes half a minute, and ends with the
command that opens both runs in TensorBoard.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ncp_callbacks as ncp
from ncp_callbacks.attribution import IntegratedGradients
from ncp_callbacks.models import CfC
from ncp_callbacks.runs import read_run

VITALS = ["heart rate", "pressure", "temperature"]
MEASURED, HOURS, EVERY = 12, 6.0, 1.5
NAMES, COLORS = ("as recorded", "one measurement every 90 minutes"), ("#c1272d", "#1f6f8b")
Data = tuple[np.ndarray, np.ndarray, np.ndarray]


class Net(nn.Module):
    """Predict who gets worse from the last state of a CfC."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = CfC(len(VITALS), 16, backbone_units=32, activation="silu")
        self.head = nn.Linear(16, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0][:, -1])


def ward(rng: np.random.Generator, size: int, *, worried: bool) -> Data:
    """Return the last 12 measurements of each patient, hours between them, and who gets worse.

    Args:
        rng: Random numbers.
        size: Number of patients.
        worried: Measure those who get worse more often.
    """
    worse = rng.uniform(size=size) < 0.5
    pace = np.where(worse & worried, 0.65, 0.95) * rng.lognormal(0, 0.12, size)
    delta = np.clip(pace[:, None] * rng.lognormal(0, 0.15, (size, MEASURED)), 0.5, EVERY)
    # Hours before now. Whoever gets worse drifts: pulse up, pressure down, a little fever.
    ago = delta[:, ::-1].cumsum(axis=1)[:, ::-1] - delta
    drift = np.where(worse, 1.0, 0.0)[:, None] * np.exp(-ago / 6)
    own = 0.8 * rng.standard_normal((size, 1, 3))
    noise = 0.3 * rng.standard_normal((size, MEASURED, 3))
    x = own + noise + 0.6 * drift[..., None] * np.array([1.0, -0.8, 0.5])
    return x.astype(np.float32), delta.astype(np.float32), worse.astype(np.float32)


def at_one_pace(data: Data) -> Data:
    """Keep the measurement nearest to every 90 minutes of the last six hours; drop the others."""
    x, delta, worse = data
    ago = delta[:, ::-1].cumsum(axis=1)[:, ::-1] - delta
    wanted = np.arange(HOURS - EVERY, -EVERY / 2, -EVERY)
    nearest = np.abs(ago[:, None] - wanted[:, None]).argmin(axis=2)
    kept = np.take_along_axis(x, nearest[..., None], axis=1)
    return kept, np.full(nearest.shape, EVERY, np.float32), worse


def arrays(data: Data) -> tuple[mx.array, mx.array, mx.array]:
    """Return the data as MLX arrays."""
    x, delta, worse = data
    return mx.array(x), mx.array(delta), mx.array(worse)


def accuracy(model: Net, data: Data) -> float:
    """Return the fraction of patients whose prediction is right."""
    x, delta, worse = arrays(data)
    return float(((model(x, delta)[:, 0] > 0) == (worse > 0.5)).mean().item())


def train(
    name: str, learn: Data, validate: Data, elsewhere: Data, log_dir: Path, steps: int
) -> tuple[Net, Path]:
    """Train a CfC and watch it; return it and the directory of its log."""
    mx.random.seed(0)
    rng = np.random.default_rng(1)
    model = Net()
    optimizer = optim.AdamW(optim.cosine_decay(3e-3, steps), weight_decay=0.3)
    loss_and_grad = nn.value_and_grad(
        model,
        lambda x, delta, worse: nn.losses.binary_cross_entropy(
            model(x, delta)[:, 0], worse, with_logits=True, reduction="mean"
        ),
    )
    x, delta, _ = validate
    held_out = ncp.HeldOutBatch(x[:32], time_delta=delta[:32], feature_names=VITALS)
    callbacks = [
        # Integrated gradients: where the prediction is sure, a plain gradient is flat.
        ncp.GradientAttribution(method=IntegratedGradients(n_steps=8)),
        ncp.GradientAttribution(method="input_x_gradient", name="input_x_gradient"),
        ncp.TimeSensitivity(scales=(0.5, 0.75, 1.5, 2.0)),
    ]
    with ncp.Monitor(model, held_out, callbacks, log_dir=log_dir / name, every=25) as monitor:
        for step in range(1, steps + 1):
            rows = rng.permutation(len(learn[0]))[:64]
            loss, gradients = loss_and_grad(*(mx.array(part[rows]) for part in learn))
            gradients, _ = optim.clip_grad_norm(gradients, 1.0)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            monitor.on_step_end(step, loss=loss)
            if step % 25 == 0:
                sets = {"val/accuracy": validate, "elsewhere/accuracy": elsewhere}
                monitor.log_scalars(step, {tag: accuracy(model, d) for tag, d in sets.items()})
    assert monitor.log_dir is not None
    return model, Path(monitor.log_dir)


class Log:
    """Read the numbers and pictures of a run's log."""

    def __init__(self, run: Path) -> None:
        self._scalars = read_run(run).scalars
        self._events = EventAccumulator(str(run), size_guidance={"tensors": 0})
        self._events.Reload()

    def curve(self, tag: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of a scalar."""
        series = self._scalars[tag]
        return series.steps.tolist(), series.values.tolist()

    def last(self, tag: str) -> float:
        """Return the last value of a scalar."""
        return self.curve(tag)[1][-1]

    def last_image(self, tag: str) -> Image.Image:
        """Return the last picture of a tag, as TensorBoard shows it."""
        # The first two strings of an image summary are its width and height.
        return Image.open(BytesIO(self._events.Tensors(tag)[-1].tensor_proto.string_val[2]))


def picture(logs: Sequence[Log], path: Path) -> None:
    """Draw what TensorBoard shows of both runs in one figure."""
    figure = Figure(figsize=(12.8, 9.4), dpi=100)
    (accuracies, shares), heatmaps = figure.subplots(2, 2)
    for log, name, color in zip(logs, NAMES, COLORS, strict=True):
        accuracies.plot(*log.curve("val/accuracy"), color=color, linewidth=4, label=name)
        shares.plot(*log.curve("attribution/time_share"), color=color, linewidth=4, label=name)
    accuracies.plot(
        *logs[0].curve("elsewhere/accuracy"),
        color=COLORS[0], linewidth=3, linestyle=":", label=f"{NAMES[0]}, where nobody worries",
    )  # fmt: skip
    accuracies.set_title("val/accuracy\nsplendid as recorded …", fontsize=15)
    shares.set_title("attribution/time_share\n… but by when was measured, not what", fontsize=15)
    for axes in (accuracies, shares):
        axes.set(xlabel="step", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=13, loc="lower right", bbox_to_anchor=(1, 0.06))
        axes.tick_params(labelsize=12)
    for axes, log, name in zip(heatmaps, logs, NAMES, strict=True):
        axes.imshow(log.last_image("xai_attribution/heatmap"))
        axes.set_title(f"attribution/heatmap\n{name}", fontsize=15)
        axes.set_axis_off()
    figure.tight_layout(h_pad=2.0)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def report(logs: Sequence[Log], runs: Sequence[Path], swapped: float) -> None:
    """Print the findings."""
    first, second = logs

    def line(what: str, share: float, remark: str = "") -> None:
        print(f"   {what:28} {share:6.1%}  {remark}".rstrip())

    print(f"1. {NAMES[0].capitalize()}")
    line("val/accuracy", first.last("val/accuracy"), "splendid. But:")
    line("attribution/time_share", first.last("attribution/time_share"), "of it is when, not what")
    share = first.last("input_x_gradient/time_share")
    line("input_x_gradient/time_share", share, "plain gradients are flat where it is sure")
    line("with time_delta of others", swapped, "so it is true: without the times, nothing")
    line("where nobody worries", first.last("elsewhere/accuracy"), "what it is worth")
    print(f"2. {NAMES[1].capitalize()}")
    line("val/accuracy", second.last("val/accuracy"), "not splendid, but honest:")
    line("attribution/time_share", second.last("attribution/time_share"))
    line("where nobody worries", second.last("elsewhere/accuracy"))
    print("3. Side by side (ncp.compare_runs)")
    compared = ncp.compare_runs(list(runs), tags="accuracy$|^attribution")
    for tag in (
        "val/accuracy", "elsewhere/accuracy", "attribution/time_share",
        *(f"attribution_share/{name.replace(' ', '_')}" for name in VITALS),
    ):  # fmt: skip
        before, after = (value.mean for value in compared.row(tag).values)
        print(f"   {tag:30} {before:6.3f} -> {after:.3f}")


def main() -> None:
    """Train with and without the leak, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--log-dir", type=Path, default=Path("runs/cheating"))
    parser.add_argument("--picture", type=Path, help="where to; by default beside the logs")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    learn, validate = (ward(rng, size, worried=True) for size in (10_000, 1000))
    elsewhere = ward(rng, 2000, worried=False)

    cheating, first = train("as-recorded", learn, validate, elsewhere, args.log_dir, args.steps)
    _, second = train(
        "one-pace", *map(at_one_pace, (learn, validate, elsewhere)), args.log_dir, args.steps
    )
    logs = [Log(first), Log(second)]
    x, delta, worse = validate
    report(logs, (first, second), accuracy(cheating, (x, rng.permutation(delta), worse)))
    path = args.picture or args.log_dir / "cheating.png"
    picture(logs, path)
    print(f"picture  {path}")
    print("To open both logs:")
    print(f"  {sys.executable} -m tensorboard.main --logdir {args.log_dir}")


if __name__ == "__main__":
    main()
