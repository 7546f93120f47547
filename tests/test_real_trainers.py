"""The trainers of mlx_lm and transformers themselves, and what unsloth-zoo's calls back with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.trainer import TrainingArgs, train
from small_nets import Net
from transformers.trainer_callback import (
    CallbackHandler,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

import ncp_callbacks as ncp
from ncp_callbacks.models import CfC
from ncp_callbacks.runs import read_run

# ---- mlx_lm's trainer


class Reports(TrainingCallback):  # type: ignore[misc]
    """Keep what mlx_lm's trainer reports."""

    def __init__(self) -> None:
        self.trained: list[dict[str, Any]] = []
        self.validated: list[dict[str, Any]] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        self.trained.append(train_info)

    def on_val_loss_report(self, val_info: dict[str, Any]) -> None:
        self.validated.append(val_info)


class Liquid(nn.Module):
    """Classify a sequence by the last state of a CfC, with a layer that drops units."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = CfC(2, 6, backbone_units=6, backbone_dropout=0.2)
        self.head = nn.Linear(6, 2)

    def __call__(self, x: mx.array, time_delta: mx.array | None = None) -> mx.array:
        return self.head(self.rnn(x, time_delta)[0][:, -1])


def language_task(generator: np.random.Generator) -> Any:
    """Return a small language model of mlx_lm's own, its data, its held-out batch, no options."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = llama.Model(
        llama.ModelArgs("llama", **shape, **heads, rms_norm_eps=1e-5, vocab_size=32)
    )
    lengths = generator.integers(8, 20, size=24)
    data = [(generator.integers(0, 32, length).tolist(), 0) for length in lengths]
    held_out = ncp.HeldOutBatch(np.array([tokens[:8] for tokens, _ in data], np.int32))
    return model, data, held_out, {}


def liquid_task(generator: np.random.Generator) -> Any:
    """Return a liquid network, its data, its held-out batch and how mlx_lm trains with these."""
    x = generator.standard_normal((24, 7, 2)).astype(np.float32)
    dt = generator.uniform(0.5, 1.5, (24, 7)).astype(np.float32)
    y = (x[:, :, 0].sum(axis=1) > 0).astype(np.int32)

    def batches(
        dataset: Any, batch_size: int, *, loop: bool = False, **others: Any
    ) -> Iterator[tuple[mx.array, ...]]:
        while True:
            for rows in np.random.permutation(24).reshape(-1, batch_size):  # noqa: NPY002
                yield mx.array(x[rows]), mx.array(dt[rows]), mx.array(y[rows])
            if not loop:
                return

    def loss(model: nn.Module, x: mx.array, dt: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
        return nn.losses.cross_entropy(model(x, dt), y, reduction="mean"), mx.array(len(y))

    held_out = ncp.HeldOutBatch(x, dt, targets=y)
    return Liquid(), list(range(24)), held_out, {"loss": loss, "iterate_batches": batches}


def trained(
    make: Callable[..., Any],
    path: Path,
    attach: Callable[[nn.Module, ncp.HeldOutBatch], TrainingCallback],
    **others: Any,
) -> Any:
    """Train as mlx_lm does, with what ``attach`` returns, and return all that it has changed."""
    mx.random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (mlx_lm draws the order of the batches from it)
    model, data, held_out, options = make(np.random.default_rng(1))
    mx.eval(model.parameters())
    optimizer = optim.Adam(learning_rate=1e-2)
    args = TrainingArgs(
        batch_size=4,
        iters=22,
        val_batches=2,
        steps_per_report=5,
        steps_per_eval=10,
        max_seq_length=64,
        adapter_file=str(path / "adapters.safetensors"),
        **others,
    )
    train(model, optimizer, data, data, args, training_callback=attach(model, held_out), **options)
    state = {"model": model.parameters(), "optimizer": optimizer.state}
    arrays = {name: np.array(value) for name, value in tree_flatten(state)}
    return arrays, mx.random.state[0].tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("make", [language_task, liquid_task])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_mlx_lm_trains_the_same_bit_by_bit_and_all_its_reports_reach_the_log(
    make: Callable[..., Any], accumulate: int, tmp_path: Path
) -> None:
    plain, reports, writer = Reports(), Reports(), ncp.MemoryWriter()
    watched: list[ncp.Monitor] = []

    def attach(model: nn.Module, held_out: ncp.HeldOutBatch) -> ncp.MlxLmHook:
        watched.append(ncp.Monitor(model, held_out, "light", writer=writer, every=4))
        return ncp.MlxLmHook(watched[0], then=reports)

    others = {"grad_accumulation_steps": accumulate}
    arrays, *random = trained(make, tmp_path, lambda model, held_out: plain, **others)
    watched_arrays, *watched_random = trained(make, tmp_path, attach, **others)
    watched[0].close()

    assert random == watched_random
    assert arrays.keys() == watched_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, watched_arrays[name], err_msg=name)
    # mlx_lm reports every five steps, and at the last one. Multiples of 4 are passed by step 5, 10,
    # 15 and 20, and none by step 22.
    assert [each["iteration"] for each in plain.trained] == [5, 10, 15, 20, 22]
    for name, tag in {"train_loss": "train/loss", "learning_rate": "train/learning_rate"}.items():
        expected = [(each["iteration"], each[name]) for each in plain.trained[:-1]]
        assert writer.scalars(tag) == expected
    assert [step for step, _ in writer.scalars("attribution/strength")] == [5, 10, 15, 20]
    # It validates before steps 1, 10, 20 and 22: after 0, 9, 19 and 21.
    expected = [(each["iteration"], each["val_loss"]) for each in plain.validated]
    assert [step for step, _ in expected] == [0, 9, 19, 21]
    assert writer.scalars("val/loss") == expected
    # The next callback gets the same reports.
    assert [each["train_loss"] for each in reports.trained] == [
        each["train_loss"] for each in plain.trained
    ]
    assert len(reports.validated) == 4


# ---- the callbacks of transformers


class Weight(ncp.Callback):
    """Log the step that is analysed."""

    default_name = "weight"

    def measure(self, observation: ncp.Observation) -> Iterator[ncp.Record]:
        yield ncp.Scalar("weight/analysed", float(observation.step))


def monitor(**options: Any) -> tuple[ncp.Monitor, Any]:
    writer = ncp.MemoryWriter()
    x = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    given = {"every": 2, "background": False, "writer": writer, **options}
    return ncp.Monitor(Net(), ncp.HeldOutBatch(x), [Weight()], **given), writer


EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]


def test_transformers_own_handler_calls_all_its_events_and_keeps_its_control_object() -> None:
    watch, writer = monitor()
    handler = CallbackHandler([ncp.TrainerCallback(watch)], None, None, None, None)
    state, control = TrainerState(), TrainerControl()
    assert len(EVENTS) >= 16
    handler.call_event("on_init_end", None, state, control)
    assert handler.on_train_begin(None, state, control) is control
    for step in range(1, 5):
        handler.on_step_begin(None, state, control)
        for event in ("on_pre_optimizer_step", "on_optimizer_step"):
            handler.call_event(event, None, state, control)
        state.global_step = step
        assert handler.on_step_end(None, state, control) is control
    handler.on_log(None, state, control, {"loss": 0.5, "epoch": 1.0})
    metrics = {"eval_loss": 0.25, "eval_runtime": 2.0}
    handler.on_log(None, state, control, metrics)
    handler.on_evaluate(None, state, control, metrics)
    others = set(EVENTS) - {"on_train_begin", "on_train_end", "on_step_end", "on_log"}
    for event in others:
        assert handler.call_event(event, None, state, control) is control
    assert handler.on_train_end(None, state, control) is control
    assert control == TrainerControl()
    assert watch.state == "closed"
    assert writer.scalars("weight/analysed") == [(2, 2.0), (4, 4.0)]
    assert writer.scalars("train/loss") == [(4, 0.5)]
    assert writer.scalars("val/loss") == [(4, 0.25)]


# ---- unsloth-zoo's trainer for MLX


class MLXTrainer:
    """Call back as unsloth_zoo.mlx.trainer of unsloth-zoo 2026.10.9 does, in order and arguments.

    On Linux its installation brings PyTorch, so the tests do without.
    """

    def __init__(self, logging_steps: int) -> None:
        self._logging_steps = logging_steps
        self.callbacks: list[Any] = []
        self.step_callbacks: list[Any] = []
        self.eval_callbacks: list[Any] = []
        self.state = SimpleNamespace(global_step=0, epoch=None)
        self.control = SimpleNamespace(should_log=False, should_training_stop=False)

    def _fire(self, event: str, **kwargs: Any) -> None:
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is None:
                continue
            given = dict.fromkeys(
                ["model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader"]
            )
            result = method(
                SimpleNamespace(),
                self.state,
                self.control,
                eval_dataloader=None,
                **given,
                **kwargs,
            )
            assert result is None  # Anything else would take the place of the control object.

    def train(self, total: int) -> None:
        """Count on from the last step, whose loss is 1 / step, and evaluate at the last one."""
        self._fire("on_init_end")
        self._fire("on_train_begin")
        self._fire("on_epoch_begin")
        for step in range(self.state.global_step + 1, total + 1):
            self._fire("on_step_begin")
            self._fire("on_substep_end")
            self._fire("on_pre_optimizer_step")
            self._fire("on_optimizer_step")
            self.state.global_step, self.state.epoch = step, step / total
            self._fire("on_step_end")
            if step % self._logging_steps == 0:
                for call in self.step_callbacks:
                    call(step, total, 1 / step, 1e-3, 300.0, 0.5, 2.0, 100 * step, None)
                logs = {"loss": 1 / step, "learning_rate": 1e-3, "epoch": self.state.epoch}
                self._fire("on_log", logs=logs)
        for call in self.eval_callbacks:
            call(total, 0.25, None)
        metrics = {"eval_loss": 0.25, "eval_perplexity": 1.284, "epoch": 1.0}
        self._fire("on_log", logs=dict(metrics))
        self._fire("on_evaluate", metrics=metrics)
        self._fire("on_epoch_end")
        self._fire(
            "on_log",
            logs={"train_loss": 7.5, "train_runtime": 2.0, "train_steps": total, "epoch": 1.0},
        )
        self._fire("on_train_end")


def test_the_mean_loss_that_a_trainer_logs_at_the_end_is_no_point_of_the_curve_of_losses() -> None:
    watch, writer = monitor()
    trainer = MLXTrainer(logging_steps=2)
    trainer.callbacks.append(ncp.TrainerCallback(watch))
    trainer.train(5)
    assert writer.scalars("train/loss") == [(2, 0.5), (4, 0.25)]
    assert writer.scalars("train/train_loss") == [(5, 7.5)]
    assert writer.scalars("train/train_runtime") == [(5, 2.0)]
    assert writer.scalars("val/loss") == [(5, 0.25)]
    assert writer.scalars("weight/analysed") == [(2, 2.0), (4, 4.0)]


def test_a_second_training_with_a_closed_monitor_is_not_logged_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch, writer = monitor()
    trainer = MLXTrainer(logging_steps=2)
    trainer.callbacks.append(ncp.TrainerCallback(watch))
    trainer.train(4)
    assert "this training is not logged" not in caplog.text
    trainer.train(8)
    assert "this training is not logged: the monitor was closed before it began" in caplog.text
    assert writer.scalars("weight/analysed") == [(2, 2.0), (4, 4.0)]


def test_hooks_of_steps_and_evaluations_take_the_first_report_and_leave_unnamed_numbers() -> None:
    watch, writer = monitor()
    trainer = MLXTrainer(logging_steps=3)
    trainer.step_callbacks.append(ncp.ReportHook(watch, None, "loss", "learning_rate"))
    trainer.eval_callbacks.append(ncp.ReportHook(watch, "loss", "perplexity", prefix="val"))
    trainer.train(10)
    watch.close()
    # Multiples of 2 are passed by the reports at 3, 6 and 9.
    assert writer.scalars("train/loss") == [(3, 1 / 3), (6, 1 / 6), (9, 1 / 9)]
    assert [step for step, _ in writer.scalars("weight/analysed")] == [3, 6, 9]
    assert writer.scalars("val/loss") == [(10, 0.25)]
    assert {tag for tag in writer.tags if tag.startswith(("train/", "val/"))} == {
        "train/loss",
        "train/learning_rate",
        "val/loss",
    }


@pytest.mark.parametrize(("resumed", "due"), [(None, [10, 20, 30]), (20, [30, 40])])
def test_a_loop_that_goes_on_is_due_where_one_without_interruption_is(
    resumed: int | None, due: list[int], tmp_path: Path
) -> None:
    # Reports come at each tenth step, and each of them passes a multiple of 4.
    options = {"every": 4, "log_dir": tmp_path, "resume_step": resumed, "writer": None}
    x = np.ones((4, 3, 2), np.float32)
    options |= {"background": False, "verbose": False}
    watch = ncp.Monitor(Net(), ncp.HeldOutBatch(x), [Weight()], **options)
    hook, first = ncp.ReportHook(watch, "loss"), due[0]
    for step in range(first, first + 10 * len(due), 10):
        hook(step, 0.5)
    watch.close()
    assert read_run(tmp_path).scalars["weight/analysed"].steps.tolist() == due
