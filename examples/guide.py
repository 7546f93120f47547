"""Train healthy and ill networks, and put the pictures of their logs side by side.

    python examples/guide.py                                       # some minutes on two cores
    python examples/guide.py --steps 50 --only time_delta/curve    # a part of it

Sensors of machines are read at irregular times, and small networks predict which machines will
fail. Some networks are healthy; each of the others has one fault, in its data, its structure or its
training. The pairs of pictures are those of examples/guide.md, which tells how to read them. The
script prints what the findings of each run are, and ends with the command that opens all logs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import matplotlib
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from ncps.wirings import AutoNCP
from PIL import Image, ImageDraw, ImageFont

import ncp_callbacks as ncp
from ncp_callbacks.attribution import AttributionMaps, AttributionMethod, PassCount
from ncp_callbacks.callbacks import callback_set
from ncp_callbacks.models import LTC, CfC
from ncp_callbacks.runs import read_run

SENSORS = ("vibration", "temperature", "load", "ticket")
WAYS = ("left", "right")
UNITS, BACKBONE = 10, 32
SEED = 51  # Of the held-out batch: its first machine fails, and its first blob moves to the left.
READINGS, STARTED, BATCH, HELD_OUT = 16, 4, 64, 64
MEMORY = 6.0  # Hours after which 1/e of a strain is left.
FRAMES, FIELD, BLOB = 6, 12, 3
Data = tuple[np.ndarray, np.ndarray | None, np.ndarray]


# ---- data


def strain(x: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Return the strain of machines after each reading, ``(N, T)``.

    Vibration under load adds to it, for as long as it lasts, and heat a little. It fades.
    """
    added = (x[..., 0] * x[..., 2] + 0.3 * x[..., 1]) * delta
    found = np.zeros_like(added)
    for t in range(READINGS):
        before = found[:, t - 1] if t else 0.0
        found[:, t] = before * np.exp(-delta[:, t] / MEMORY) + added[:, t]
    return found


def machines(
    rng: np.random.Generator,
    count: int,
    *,
    ticket_leaks: bool = False,
    worried: bool = False,
    hour: float = 1.0,
    scale: tuple[float, ...] = (1, 1, 1, 1),
    at_every_reading: bool = False,
) -> Data:
    """Return readings ``(N, T, 4)``, elapsed times ``(N, T)``, and who fails ``(N,)``.

    Machines are started at the fifth reading: before, they are without load. Tickets of earlier
    repairs mean nothing.

    Args:
        rng: Random numbers.
        count: Number of machines.
        ticket_leaks: Fault: the ticket of the last reading was written when the machine had failed.
        worried: Fault: machines that will fail are read more often.
        hour: Length of an hour in the unit of the elapsed times.
        scale: Factors of the readings.
        at_every_reading: In place of who fails, return the last strain at each reading,
            ``(N, T, 1)``, which is then to be predicted.
    """
    x = rng.normal(size=(count, READINGS, 4))
    for t in range(1, READINGS):
        x[:, t, :2] = 0.8 * x[:, t - 1, :2] + 0.6 * x[:, t, :2]
    x[..., 2] = rng.uniform(0, 2, (count, READINGS)) * (np.arange(READINGS) >= STARTED)
    x[..., 3] = rng.random((count, READINGS)) < 0.2
    delta = rng.lognormal(-0.1, 0.5, (count, READINGS))
    last = strain(x, delta)[:, -1]
    fails = last > 0
    if ticket_leaks:
        x[:, -1, 3] = fails
    if worried:
        delta = np.where(fails, 0.4, 1.0)[:, None] * delta
    y = fails.astype(np.int32)
    if at_every_reading:
        y = np.repeat(last[:, None, None], READINGS, axis=1).astype(np.float32)
    return (x * scale).astype(np.float32), (delta * hour).astype(np.float32), y


def films(rng: np.random.Generator, count: int, *, marked: bool = False) -> Data:
    """Return frames ``(N, T, H, W, 1)`` of a blob, and 1 where it moves to the right.

    Args:
        rng: Random numbers.
        count: Number of films.
        marked: Fault: the camera of one class writes a mark into a corner.
    """
    right = rng.random(count) < 0.5
    frames = rng.uniform(0, 0.1, (count, FRAMES, FIELD, FIELD)).astype(np.float32)
    start = rng.integers(0, FIELD - BLOB - FRAMES + 2, count) + np.where(right, 0, FRAMES - 1)
    height = rng.integers(0, FIELD - BLOB - 2, count)
    for i in range(count):
        for t in range(FRAMES):
            left = start[i] + (t if right[i] else -t)
            frames[i, t, height[i] : height[i] + BLOB, left : left + BLOB] += 0.7
    if marked:
        frames[~right, :, -3:, -3:] = 1.0
    return frames[..., None], None, right.astype(np.int32)


# ---- networks


class Net(nn.Module):
    """Read a sequence by a recurrent network, and its last state by a linear layer."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.rnn = CfC(len(SENSORS), UNITS, backbone_units=BACKBONE, activation="relu")
        layer = self.rnn.cell.backbone.layers[0]
        layer.bias = layer.bias + bias
        self.head = nn.Linear(UNITS, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0][:, -1])


class Timeless(Net):
    """Take the elapsed times, and forget to pass them on."""

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return super().__call__(x)


class Threshold(Net):
    """Read the vibration through a threshold, whose gradient is 0 everywhere."""

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        vibrates = mx.where(x[..., :1] > 0, 1.0, -1.0)
        return super().__call__(mx.concatenate([vibrates, x[..., 1:]], axis=-1), time_delta)


class Wired(nn.Module):
    """Read a sequence by a neural circuit policy: an LTC with a motor neuron for each class."""

    def __init__(self, *, deaf: bool = False) -> None:
        super().__init__()
        wiring = AutoNCP(16, 2, seed=3)
        wiring.build(len(SENSORS))
        if deaf:  # No synapse from the vibration.
            wiring.sensory_adjacency_matrix[0] = 0
        self.ncp = LTC(len(SENSORS), wiring)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.ncp(x, time_delta)[0][:, -1]


class Level(nn.Module):
    """Predict the last strain at each reading."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = CfC(len(SENSORS), UNITS, backbone_units=BACKBONE)
        self.head = nn.Linear(UNITS, 1)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0])


class Reversed(Level):
    """Read the sequence from its end, so that each prediction knows the future."""

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        delta = None if time_delta is None else time_delta[:, ::-1]
        return super().__call__(x[:, ::-1], delta)[:, ::-1]


class Film(nn.Module):
    """Tell where a blob moves."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.far = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.rnn = CfC(8 * (FIELD // 4) ** 2, UNITS, backbone_units=BACKBONE)
        self.head = nn.Linear(UNITS, 2)

    def __call__(self, frames: mx.array) -> mx.array:
        batch, steps = frames.shape[:2]
        x = frames.reshape(batch * steps, *frames.shape[2:])
        x = mx.tanh(self.far(mx.tanh(self.near(x))))
        return self.head(self.rnn(x.reshape(batch, steps, -1))[0][:, -1])


# ---- runs and pictures


@dataclass(frozen=True)
class Sizes(AttributionMethod):
    """Return how far each input is from its mean, whatever the network does: a useless method."""

    name: ClassVar[str] = "sizes"
    label: ClassVar[str] = "sizes of the inputs"

    def extra_passes(self, *_: Any, **__: Any) -> PassCount:
        """Return that it takes no pass."""
        return PassCount()

    def attribute(self, _: Any, inputs: Any, *__: Any, baseline: Any, **___: Any) -> Any:
        """Return the distances."""
        return AttributionMaps(np.abs(inputs - baseline))


@dataclass(frozen=True)
class Run:
    """Hold what makes a run: a network, its data and its training."""

    model: Callable[[], nn.Module] = Net
    data: Callable[[np.random.Generator, int], Data] = machines
    steps: int = 1000
    learning_rate: float = 5e-3
    snapshots: int = 4
    features: tuple[str, ...] | None = SENSORS
    classes: tuple[str, ...] | None = ("sound", "fails")
    method: AttributionMethod | str = "integrated_gradients"
    train: int = 0  # Number of machines to train on; 0 for new ones in each step.


RUNS = {
    "healthy": Run(),
    "ticket-leaks": Run(data=partial(machines, ticket_leaks=True)),
    "worried-readings": Run(data=partial(machines, worried=True)),
    "time-dropped": Run(Timeless),
    "threshold": Run(Threshold),
    "not-scaled": Run(data=partial(machines, scale=(300,) * 4)),
    "bad-start": Run(partial(Net, bias=-4.0)),
    "sizes-of-inputs": Run(method=Sizes()),
    "hardly-trained": Run(learning_rate=1e-5),
    "diverged": Run(learning_rate=1e20),
    "overfitted": Run(train=24, steps=500, snapshots=5),
    "wired": Run(Wired, steps=400, learning_rate=1e-2),
    "wired-deaf": Run(partial(Wired, deaf=True), steps=400, learning_rate=1e-2),
    "wired-tiny": Run(Wired, partial(machines, scale=(0.001,) * 4), steps=400, learning_rate=1e-2),
    "wired-minutes": Run(Wired, partial(machines, hour=60), steps=400, learning_rate=1e-2),
    "each-reading": Run(Level, partial(machines, at_every_reading=True), classes=None),
    "reversed": Run(Reversed, partial(machines, at_every_reading=True), classes=None),
    "film": Run(Film, films, 400, snapshots=1, features=None, classes=WAYS),
    "marked-film": Run(
        Film, partial(films, marked=True), 400, snapshots=1, features=None, classes=WAYS
    ),
}


class Pair(NamedTuple):
    """Name the pictures of a tag in two runs, with a few words on each."""

    tag: str
    healthy: str
    good: str
    ill: str
    bad: str
    name: str = ""

    @property
    def file(self) -> str:
        """Return the name of the file: the tag, unless several pairs show pictures of one tag."""
        return f"{self.name or self.tag.replace('/', '_')}.png"


PAIRS = (
    Pair("findings/overview", "healthy", "nothing is wrong",
         "not-scaled", "inputs × 300"),
    Pair("findings/overview", "healthy", "it has learnt",
         "diverged", "learning rate 1e20", "findings_diverged"),
    Pair("findings/overview", "healthy", "new machines each time",
         "overfitted", "the same 24 machines", "findings_overfitted"),
    Pair("attribution/heatmap", "healthy", "vibration, for as long as it lasts",
         "ticket-leaks", "a ticket tells the answer"),
    Pair("removal/shares", "healthy", "both methods agree",
         "threshold", "a threshold hides vibration"),
    Pair("time_delta/curve", "healthy", "time matters",
         "time-dropped", "elapsed times are not passed on"),
    Pair("hidden/pca", "healthy", "ends are sorted by class",
         "hardly-trained", "ends are mixed"),
    Pair("backbone/unit_activity", "healthy", "all units work",
         "bad-start", "a bad start: all are dead"),
    Pair("time_constants/units", "wired", "around Δt, up to the sequence",
         "wired-minutes", "minutes, not hours: nearly all below Δt"),
    Pair("time_constants/over_time", "wired", "units react to the start",
         "wired-tiny", "inputs × 0.001: nothing reacts"),
    Pair("wiring/graph", "wired", "vibration is connected",
         "wired-deaf", "vibration is not connected"),
    Pair("ablation/units", "healthy", "the loss needs some units",
         "bad-start", "a constant state: none is needed"),
    Pair("meanings/units", "healthy", "units follow the strain",
         "ticket-leaks", "units follow the ticket"),
    Pair("meanings/information", "healthy", "the state knows the strain",
         "worried-readings", "the state knows elapsed times"),
    Pair("dynamics/overview", "healthy", "remembers",
         "not-scaled", "inputs × 300: forgets at once"),
    Pair("gradient_reach/curve", "healthy", "the gradient reaches back",
         "not-scaled", "inputs × 300: it vanishes"),
    Pair("sampling/changes", "healthy", "half of the readings will do",
         "worried-readings", "half of the readings mislead"),
    Pair("output_time/matrix", "each-reading", "outputs know the past",
         "reversed", "outputs know the future"),
    Pair("interactions/matrix", "healthy", "vibration is in all strong pairs",
         "ticket-leaks", "the ticket is in all strong pairs"),
    Pair("faithfulness/curves", "healthy", "the map knows what matters",
         "threshold", "a threshold: the map doesn't"),
    Pair("sanity_check/cascade", "healthy", "the map is of what was learnt",
         "sizes-of-inputs", "this method shows inputs only"),
    Pair("sanity_check/measures", "healthy", "trained is stronger than random",
         "hardly-trained", "trained is no stronger"),
    Pair("predictions/sequence_0/overview", "healthy", "many readings add up",
         "ticket-leaks", "one ticket decides"),
    Pair("frames/sequence_0", "film", "the moving blob counts",
         "marked-film", "a mark in the corner counts"),
)  # fmt: skip


def callbacks_of(name: str, x: np.ndarray, delta: np.ndarray | None) -> list[ncp.Callback]:
    """Return the callbacks of a run: those of its pictures, or all where findings are shown."""
    groups = {pair.tag.split("/")[0] for pair in PAIRS if name in (pair.healthy, pair.ill)}
    every = [
        *callback_set("full"),
        ncp.SinglePredictions(),
        ncp.SanityCheck(method=RUNS[name].method),
        ncp.UnitAblation(max_clamped_sequences=HELD_OUT),
    ]
    if delta is None:
        # Black is nothing, where the mean of all frames has half a mark.
        every.append(ncp.FrameAttribution(sequences=[0], baseline="zeros"))
    else:
        # Units may follow what a sensor doesn't show.
        every.append(ncp.UnitMeanings(factors={"strain": strain(x, delta)}))
    every = list({callback.name: callback for callback in every}.values())
    if "findings" in groups:
        return every
    return [callback for callback in every if callback.name in groups | {"attribution"}]


def train(name: str, steps: int, log_dir: Path) -> tuple[Path, tuple[ncp.Finding, ...]]:
    """Train the network of a run; return the folder of its log, and what was found."""
    run = RUNS[name]
    steps = min(steps, run.steps)
    mx.random.seed(0)
    rng = np.random.default_rng(0)
    model, optimizer = run.model(), optim.Adam(optim.cosine_decay(run.learning_rate, run.steps))

    def loss_of(*batch: mx.array) -> mx.array:
        *inputs, y = batch
        out = model(*inputs)
        if y.ndim > 1:
            return nn.losses.mse_loss(out, y)
        return nn.losses.cross_entropy(out, y, reduction="mean")

    state = [model.state, optimizer.state]

    def update(*batch: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(model, loss_of)(*batch)
        optimizer.update(model, gradients)
        return loss

    step_of = mx.compile(update, inputs=state, outputs=state)
    fixed = run.data(rng, run.train) if run.train else None
    x, delta, y = run.data(np.random.default_rng(SEED), HELD_OUT)
    held_out = ncp.HeldOutBatch(x, delta, y, feature_names=run.features, class_names=run.classes)
    with ncp.Monitor(
        model,
        held_out,
        callbacks_of(name, x, delta),
        log_dir / name,
        every=max(1, steps // run.snapshots),
        verbose=False,
    ) as monitor:
        for step in range(1, steps + 1):
            parts = fixed or run.data(rng, BATCH)
            batch = [mx.array(part) for part in parts if part is not None]
            loss = step_of(*batch)
            mx.eval(state)
            monitor.on_step_end(step, loss=loss)
    assert monitor.log_dir is not None
    return Path(monitor.log_dir), monitor.findings


def side_by_side(pair: Pair, logs: dict[str, Path], folder: Path) -> Path:
    """Save the last pictures of a pair of runs beside one another, and return the file."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), 21)
    both = []
    for name in (pair.healthy, pair.ill):
        found = read_run(logs[name]).images.get(pair.tag)
        if not found:
            raise SystemExit(f"{name}: its log has no picture {pair.tag}")
        both.append(Image.open(BytesIO(found[max(found)].data())).convert("RGB"))
    (width, height), gap, head = both[0].size, 24, 40
    whole = Image.new("RGB", (2 * width + gap, height + head), "white")
    draw = ImageDraw.Draw(whole)
    words = (("✔ " + pair.good, "#00795c"), ("✘ " + pair.bad, "#b9400c"))
    for place, (image, (text, color)) in enumerate(zip(both, words, strict=True)):
        left = place * (width + gap)
        whole.paste(image, (left, head))
        draw.text((left + 16, 8), text, fill=color, font=font)
    draw.line([(width + gap // 2, 8), (width + gap // 2, height + head - 8)], "#cccccc", 2)
    path = folder / pair.file
    few = whole.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path


def main() -> None:
    """Train, print what was found, and save the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="train for at most so many steps")
    parser.add_argument("--only", nargs="*", metavar="TAG", help="tags of the pictures to make")
    parser.add_argument("--log-dir", type=Path, default=Path("runs/guide"))
    parser.add_argument("--pictures", type=Path, help="where to; by default beside the logs")
    args = parser.parse_args()
    # Ill networks have many notes, which are in their logs.
    logging.getLogger("ncp_callbacks").setLevel(logging.ERROR)

    pairs = [pair for pair in PAIRS if args.only is None or pair.tag in args.only]
    logs = {}
    for name in dict.fromkeys(name for pair in pairs for name in (pair.healthy, pair.ill)):
        logs[name], findings = train(name, args.steps, args.log_dir)
        bad = [f.sentence for f in findings if f.severity.value in ("problem", "warning")]
        print(f"{name:20} {bad[0] if bad else 'no fault found'}", flush=True)
    folder = args.pictures or args.log_dir / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        path = side_by_side(pair, logs, folder)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    print("To open all logs:")
    print(f"  {sys.executable} -m ncp_callbacks open {args.log_dir}")


if __name__ == "__main__":
    main()
