"""Training scripts in the styles that people publish, and the lines that attach a monitor to each.

A line that ends in ``#+`` is added, one that ends in ``#-`` is replaced by such a line. Each script
keeps the loss of every step in ``losses``, as scripts do that print or plot it.
"""

from __future__ import annotations

__all__ = ["DATA", "SCRIPTS", "attached", "original"]

# What the scripts take from a module of their own: models, and batches of (x, elapsed time, y).
DATA = """
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from ncp_callbacks.models import CfC

mx.random.seed(0)
X, DT = mx.random.normal((24, 5, 2)), mx.random.uniform(0.5, 1.5, (24, 5))
Y = (X[:, :, 0] * DT).sum(axis=1)
TOKENS = mx.random.randint(0, 7, (24, 6))
BATCHES = [(X[i : i + 8], DT[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16)]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = CfC(2, 6, backbone_units=6), nn.Linear(6, 1)

    def __call__(self, x, time_delta=None):
        return self.head(self.rnn(x, time_delta)[0][:, -1])[:, 0]

def mse(model, x, dt, y):
    return ((model(x, dt) - y) ** 2).mean()
"""

SCRIPTS = {
    "a regression in a function": """
import ncp_callbacks as ncp  #+

def train(n_steps=12):
    model, optimizer, losses = Net(), optim.Adam(1e-2), []
    monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
    loss_and_grad = nn.value_and_grad(model, mse)
    for step in range(n_steps):
        loss, grads = loss_and_grad(model, *BATCHES[step % 3])
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
        monitor.on_step_end(step + 1, loss=loss)  #+
    return losses

losses = train()
""",
    "a trainer class that owns the loop": """
import ncp_callbacks as ncp  #+

class Trainer:
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.loss_and_grad = nn.value_and_grad(model, mse)
        self.losses = []

    def training_step(self, batch):
        loss, grads = self.loss_and_grad(self.model, *batch)
        self.optimizer.update(self.model, grads)
        mx.eval(self.model.parameters(), self.optimizer.state)
        return loss

    def fit(self, batches, epochs):
        for _ in range(epochs):
            for batch in batches:
                self.losses.append(self.training_step(batch).item())

trainer = Trainer(Net(), optim.SGD(0.05))
monitor = ncp.Monitor(trainer.model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4)  #+
trainer.training_step = monitor.attach(trainer.training_step)  #+
trainer.fit(BATCHES, epochs=4)
losses = trainer.losses
""",
    "a compiled language model": """
import time
import ncp_callbacks as ncp  #+

class LM(nn.Module):
    def __init__(self, vocab=7, dims=8):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dims)
        self.lstm = nn.LSTM(dims, dims)
        self.out = nn.Linear(dims, vocab)

    def __call__(self, tokens):
        return self.out(self.lstm(self.embedding(tokens))[0])

def loss_fn(model, tokens):
    return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")

model, optimizer = LM(), optim.AdamW(1e-2)
mx.eval(model.parameters())
state = [model.state, optimizer.state]
monitor = ncp.Monitor(model, ncp.HeldOutBatch(TOKENS[:8]), log_dir="runs/a", every=4).start()  #+

def step(tokens):
    loss, grads = nn.value_and_grad(model, loss_fn)(model, tokens)
    optimizer.update(model, grads)
    return loss

step = mx.compile(step, inputs=state, outputs=state)
losses, tic = [], time.perf_counter()
for it in range(1, 13):
    loss = step(TOKENS)
    mx.eval(state)
    losses.append(loss.item())
    monitor.on_step_end(it, loss=loss)  #+
    if it % 6 == 0:
        print(f"Iter {it}: Train loss {losses[-1]:.3f}, {time.perf_counter() - tic:.1f} s")
""",
    "a decorator that compiles with state": """
from functools import partial
import ncp_callbacks as ncp  #+

model, optimizer = Net(), optim.SGD(0.05, momentum=0.9)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4)  #+
state = [model.state, optimizer.state]

@monitor.attach  #+
@partial(mx.compile, inputs=state, outputs=state)
def step(x, dt, y):
    loss, grads = nn.value_and_grad(model, mse)(model, x, dt, y)
    optimizer.update(model, grads)
    return loss

losses = []
for _ in range(4):
    for batch in BATCHES:
        losses.append(step(*batch).item())
""",
    "accumulated gradients": """
from mlx.utils import tree_map
import ncp_callbacks as ncp  #+

model, optimizer, losses = Net(), optim.Adam(1e-2), []
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
loss_and_grad, n_micro = nn.value_and_grad(model, mse), 3
for step in range(1, 13):
    total, grads = 0.0, None
    for batch in BATCHES:
        loss, g = loss_and_grad(model, *batch)
        grads = g if grads is None else tree_map(mx.add, grads, g)
        total = total + loss / n_micro
    optimizer.update(model, tree_map(lambda g: g / n_micro, grads))
    mx.eval(model.parameters(), optimizer.state, total)
    losses.append(total.item())
    monitor.on_step_end(step, loss=total)  #+
""",
    "an endless loader": """
import ncp_callbacks as ncp  #+

def loader(rng):
    while True:
        rows = mx.array(rng.choice(24, 8, replace=False))
        yield X[rows], DT[rows], Y[rows]

model, optimizer, losses = Net(), optim.RMSprop(1e-2), []
loss_and_grad = nn.value_and_grad(model, mse)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
for step, (x, dt, y) in enumerate(loader(np.random.default_rng(0)), start=1):
    loss, grads = loss_and_grad(model, x, dt, y)
    optimizer.update(model, grads)
    losses.append(loss.item())
    monitor.on_step_end(step, loss=loss)  #+
    if step >= 12:
        break
""",
    "epochs whose batches count anew": """
import ncp_callbacks as ncp  #+

model, optimizer, losses = Net(), optim.Adam(1e-2), []
loss_and_grad = nn.value_and_grad(model, mse)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
for epoch in range(4):
    epoch_loss = 0.0
    for i, batch in enumerate(BATCHES):
        loss, grads = loss_and_grad(model, *batch)
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        epoch_loss += loss.item()
        losses.append(loss.item())
        monitor.on_step_end(epoch * len(BATCHES) + i + 1, loss=loss)  #+
    print(f"epoch {epoch}: {epoch_loss / len(BATCHES):.4f}")
""",
    "a model that holds its own training step": """
import ncp_callbacks as ncp  #+

class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def __call__(self, x, time_delta=None):
        return self.net(x, time_delta)

    def fit(self, batches, optimizer, steps, after_step=lambda step, loss: None):
        history, loss_and_grad = [], nn.value_and_grad(self, mse)
        for step in range(1, steps + 1):
            loss, grads = loss_and_grad(self, *batches[step % len(batches)])
            optimizer.update(self, grads)
            mx.eval(self.parameters(), optimizer.state)
            history.append(loss.item())
            after_step(step, loss.item())
        return history

model = Regressor()
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4)  #+
losses = model.fit(
    BATCHES, optim.Adam(1e-2), steps=12,
    after_step=ncp.ReportHook(monitor, "loss"),  #+
)
""",
    "early stopping": """
import ncp_callbacks as ncp  #+

model, optimizer, losses = Net(), optim.Adam(3e-2), []
loss_and_grad = nn.value_and_grad(model, mse)
best, patience, bad, step = float("inf"), 6, 0, 0
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
while bad < patience and step < 14:
    step += 1
    loss, grads = loss_and_grad(model, *BATCHES[step % 2])
    optimizer.update(model, grads)
    mx.eval(model.parameters(), optimizer.state)
    val_loss = mse(model, *BATCHES[2]).item()
    bad = 0 if val_loss < best else bad + 1
    best = min(best, val_loss)
    losses.append(loss.item())
    monitor.on_step_end(step, loss=loss, val_loss=val_loss)  #+
""",
    "a schedule of the learning rate": """
import ncp_callbacks as ncp  #+

warmup = optim.linear_schedule(0.0, 1e-2, steps=4)
schedule = optim.join_schedules([warmup, optim.cosine_decay(1e-2, 8)], [4])
model, optimizer, losses = Net(), optim.AdamW(learning_rate=schedule), []
loss_and_grad = nn.value_and_grad(model, mse)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
for step in range(1, 13):
    loss, grads = loss_and_grad(model, *BATCHES[step % 3])
    grads, norm = optim.clip_grad_norm(grads, max_norm=1.0)
    optimizer.update(model, grads)
    mx.eval(model.parameters(), optimizer.state)
    losses.append(loss.item())
    monitor.on_step_end(step, loss=loss, lr=optimizer.learning_rate, grad_norm=norm)  #+
""",
    "checkpoints": """
import json
from pathlib import Path
from mlx.utils import tree_flatten
import ncp_callbacks as ncp  #+

folder = Path("checkpoints")
folder.mkdir(exist_ok=True)
model, optimizer, losses = Net(), optim.Adam(1e-2), []
loss_and_grad = nn.value_and_grad(model, mse)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
for step in range(1, 13):
    loss, grads = loss_and_grad(model, *BATCHES[step % 3])
    optimizer.update(model, grads)
    mx.eval(model.parameters(), optimizer.state)
    losses.append(loss.item())
    monitor.on_step_end(step, loss=loss)  #+
    if step % 6 == 0:
        model.save_weights(str(folder / f"model-{step}.safetensors"))
        mx.save_safetensors(str(folder / "optimizer"), dict(tree_flatten(optimizer.state)))
        (folder / "state.json").write_text(json.dumps({"step": step}))
""",
    "a command with a main function": """
import argparse
import ncp_callbacks as ncp  #+

def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args(arguments)
    model, optimizer, history = Net(), optim.SGD(args.lr), []
    monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
    loss_and_grad = nn.value_and_grad(model, mse)
    for step in range(1, args.steps + 1):
        loss, grads = loss_and_grad(model, *BATCHES[step % 3])
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        history.append(loss.item())
        monitor.on_step_end(step, loss=loss)  #+
    return history

losses = main([])
""",
    "a progress bar": """
from tqdm import tqdm
import ncp_callbacks as ncp  #+

model, optimizer, losses = Net(), optim.Lion(1e-3), []
loss_and_grad = nn.value_and_grad(model, mse)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
with tqdm(range(1, 13), disable=None) as bar:
    for step in bar:
        loss, grads = loss_and_grad(model, *BATCHES[step % 3])
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
        monitor.on_step_end(step, loss=loss)  #+
""",
    "an evaluation in between": """
import ncp_callbacks as ncp  #+

def evaluate(model, batches):
    model.eval()
    total = sum(mse(model, *batch).item() for batch in batches) / len(batches)
    model.train()
    return total

model, optimizer, losses = Net(), optim.Adam(1e-2), []
loss_and_grad = nn.value_and_grad(model, mse)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
for step in range(1, 13):
    loss, grads = loss_and_grad(model, *BATCHES[step % 2])
    optimizer.update(model, grads)
    mx.eval(model.parameters(), optimizer.state)
    losses.append(loss.item())
    metrics = {"loss": loss}
    if step % 4 == 0:
        metrics["val_loss"] = evaluate(model, BATCHES[2:])
    monitor.on_step_end(step, **metrics)  #+
""",
    "data parallel": """
import ncp_callbacks as ncp  #+

world = mx.distributed.init()
rows = slice(world.rank(), None, world.size())
model, optimizer, losses = Net(), optim.Adam(1e-2), []
loss_and_grad = nn.value_and_grad(model, mse)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
for step in range(1, 13):
    loss, grads = loss_and_grad(model, X[rows], DT[rows], Y[rows])
    optimizer.update(model, nn.average_gradients(grads))
    loss = mx.distributed.all_sum(loss) / world.size()
    mx.eval(model.parameters(), optimizer.state, loss)
    losses.append(loss.item())
    monitor.on_step_end(step, loss=loss)  #+
""",
    "an asynchronous loop": """
import asyncio
import ncp_callbacks as ncp  #+

async def batches(queue):
    for step in range(12):
        await queue.put(BATCHES[step % 3])
    await queue.put(None)

async def main(model, optimizer):
    queue, history, step = asyncio.Queue(maxsize=2), [], 0
    loss_and_grad = nn.value_and_grad(model, mse)
    producer = asyncio.create_task(batches(queue))
    monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
    while (batch := await queue.get()) is not None:
        step += 1
        loss, grads = loss_and_grad(model, *batch)
        optimizer.update(model, grads)
        mx.async_eval(model.parameters(), optimizer.state, loss)
        history.append(loss)
        monitor.on_step_end(step, loss=loss)  #+
    await producer
    return [loss.item() for loss in history]

losses = asyncio.run(main(Net(), optim.Adam(1e-2)))
""",
    "a dataclass of settings": """
from dataclasses import asdict, dataclass
import ncp_callbacks as ncp  #+

@dataclass(frozen=True)
class Config:
    lr: float = 1e-2
    steps: int = 12
    name: str = "a"

config = Config()
print(c := asdict(config))
net, optimizer, losses = Net(), optim.Adam(config.lr), []
loss_and_grad = nn.value_and_grad(net, mse)
monitor = ncp.Monitor(net, ncp.HeldOutBatch(X), None, "runs/{name}", every=4, run_config=c)  #+
for step in range(1, config.steps + 1):  #-
for step, _ in monitor.steps(range(config.steps)):  #+
    loss, grads = loss_and_grad(net, *BATCHES[step % 3])
    optimizer.update(net, grads)
    mx.eval(net.parameters(), optimizer.state)
    losses.append(loss.item())
""",
    "a functional update": """
from mlx.utils import tree_map
import ncp_callbacks as ncp  #+

model, losses = Net(), []
params = model.trainable_parameters()

def loss_fn(params, x, dt, y):
    model.update(params)
    return ((model(x, dt) - y) ** 2).mean()

monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
for step in range(1, 13):
    loss, grads = mx.value_and_grad(loss_fn)(params, *BATCHES[step % 3])
    params = tree_map(lambda p, g: p - 0.05 * g, params, grads)
    model.update(params)
    mx.eval(params)
    losses.append(loss.item())
    monitor.on_step_end(step, loss=loss)  #+
""",
    "a trainer with reports, as mlx-lm's": """
import ncp_callbacks as ncp  #+

def train(model, optimizer, batches, iters, steps_per_report=4, training_callback=None):
    loss_and_grad, losses = nn.value_and_grad(model, mse), []
    for it in range(1, iters + 1):
        loss, grads = loss_and_grad(model, *batches[it % len(batches)])
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state, loss)
        losses.append(loss.item())
        if it % steps_per_report == 0 and training_callback is not None:
            training_callback.on_train_loss_report({"iteration": it, "train_loss": loss.item()})
    return losses

model = Net()
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4)  #+
losses = train(
    model, optim.Adam(1e-2), BATCHES, iters=12,
    training_callback=ncp.MlxLmHook(monitor),  #+
)
""",
    "a trainer with callbacks, as Hugging Face's": """
from types import SimpleNamespace
import ncp_callbacks as ncp  #+

class Trainer:
    def __init__(self, model, batches):
        self.model, self.batches, self.callbacks, self.losses = model, batches, [], []
        self.state, self.control = SimpleNamespace(global_step=0), SimpleNamespace()

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def call(self, event, **others):
        for callback in self.callbacks:
            getattr(callback, event)(None, self.state, self.control, **others)

    def train(self, steps):
        optimizer, loss_and_grad = optim.Adam(1e-2), nn.value_and_grad(self.model, mse)
        self.call("on_train_begin")
        while self.state.global_step < steps:
            loss, grads = loss_and_grad(self.model, *self.batches[self.state.global_step % 3])
            optimizer.update(self.model, grads)
            mx.eval(self.model.parameters(), optimizer.state)
            self.state.global_step += 1
            self.losses.append(loss.item())
            self.call("on_step_end")
            if self.state.global_step % 4 == 0:
                self.call("on_log", logs={"loss": loss.item()})
        self.call("on_train_end")

trainer = Trainer(Net(), BATCHES)
monitor = ncp.Monitor(trainer.model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4)  #+
trainer.add_callback(ncp.TrainerCallback(monitor))  #+
trainer.train(12)
losses = trainer.losses
""",
    "cells of a notebook": """
import ncp_callbacks as ncp  #+
# %%
model, optimizer, losses, step = Net(), optim.Adam(1e-2), [], 0
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
# %%
loss_and_grad = nn.value_and_grad(model, mse)
def fit(steps):
    global step
    for _ in range(steps):
        step += 1
        loss, grads = loss_and_grad(model, *BATCHES[step % 3])
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
        monitor.on_step_end(step, loss=loss)  #+
# %%
fit(5)
# %%
fit(7)  # The cell was run again, after a look at the curve.
""",
    "a step that returns a dict": """
import ncp_callbacks as ncp  #+

model, optimizer = Net(), optim.Adam(1e-2)
loss_and_grad = nn.value_and_grad(model, mse)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4)  #+

@monitor.attach  #+
def train_step(batch):
    loss, grads = loss_and_grad(model, *batch)
    optimizer.update(model, grads)
    mx.eval(model.parameters(), optimizer.state)
    return {"loss": loss, "lr": optimizer.learning_rate}

losses = [train_step(BATCHES[i % 3])["loss"].item() for i in range(12)]
""",
    "a loop that Ctrl-C may end": """
import ncp_callbacks as ncp  #+

model, optimizer, losses, step = Net(), optim.Adam(1e-2), [], 0
loss_and_grad = nn.value_and_grad(model, mse)
monitor = ncp.Monitor(model, ncp.HeldOutBatch(X, DT), log_dir="runs/a", every=4).start()  #+
try:
    while True:
        step += 1
        loss, grads = loss_and_grad(model, *BATCHES[step % 3])
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
        monitor.on_step_end(step, loss=loss)  #+
        if step == 12:
            raise KeyboardInterrupt
except KeyboardInterrupt:
    model.save_weights("interrupted.safetensors")
""",
}


def original(script: str) -> str:
    """Return the script as it was published."""
    return _without(script, "#+")


def attached(script: str) -> str:
    """Return the script with a monitor."""
    return _without(script, "#-")


def _without(script: str, mark: str) -> str:
    lines = [line for line in script.strip().splitlines() if not line.endswith(mark)]
    return "".join(line.removesuffix("#+").removesuffix("#-").rstrip() + "\n" for line in lines)
