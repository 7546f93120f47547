"""Trainers that only call back with reports."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

import ncp_callbacks as ncp
from ncp_callbacks.integrations import MlxLmHook
from ncp_callbacks.models import CfC


class Trainer:
    """Calls back the way mlx_lm's trainer does: keys, order and intervals of its reports."""

    def __init__(self, every: int, evaluate: int) -> None:
        self._every, self._evaluate = every, evaluate

    def train(self, iterations: int, training_callback: Any) -> None:
        for it in range(1, iterations + 1):
            if it == 1 or it % self._evaluate == 0:
                info = {"iteration": it - 1, "val_loss": 2.0 / it, "val_time": 0.5}
                training_callback.on_val_loss_report(info)
            if it % self._every == 0:
                training_callback.on_train_loss_report(
                    {
                        "iteration": it,
                        "train_loss": 1.0 / it,
                        "learning_rate": 1e-4,
                        "iterations_per_second": 3.0,
                        "tokens_per_second": 300,
                        "trained_tokens": 100 * it,
                        "peak_memory": 1.5,
                    }
                )


class Other:
    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        self.reports.append(train_info)

    on_val_loss_report = on_train_loss_report


def test_the_monitor_hangs_in_a_trainer_of_reports() -> None:
    mx.random.seed(0)
    model, writer, other = CfC(2, 4, backbone_units=4), ncp.MemoryWriter(), Other()
    held_out = ncp.HeldOutBatch(mx.random.normal((3, 4, 2)), 1.0)
    with ncp.Monitor(model, held_out, writer=writer, every=20) as monitor:
        Trainer(every=15, evaluate=30).train(60, MlxLmHook(monitor, then=other))
    # Reports come at 15, 30, 45 and 60: the first at or after 20, 40 and 60.
    assert writer.scalars("train/loss") == [(30, 1 / 30), (45, 1 / 45), (60, 1 / 60)]
    assert [s for s, _ in writer.scalars("hidden/pc1_share")] == [30, 45, 60]
    assert writer.scalars("train/learning_rate")[0] == (30, 1e-4)
    assert writer.scalars("val/loss") == [(0, 2.0), (29, 2 / 30), (59, 2 / 60)]
    assert len(other.reports) == 4 + 3
