"""Connect the monitor to trainers that run the loop themselves and call back with reports.

    from mlx_lm.tuner.trainer import train

    with ncp.Monitor(model, held_out, log_dir="runs/lora", every=100) as monitor:
        train(model, optimizer, data, training_callback=ReportCallback(monitor))

For another trainer, call ``monitor.on_step_end(step, loss=...)`` from any hook that it calls on the
training thread with the number of steps done. ``every=100`` is then due at the first report at or
after each multiple of 100.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from .monitor import Monitor

__all__ = ["ReportCallback"]


class ReportCallback:
    """Pass the reports of ``mlx_lm``'s trainer to a monitor, as its ``training_callback``.

    Numbers of training reports are logged as ``train/<name>`` at due steps, and all numbers of
    validation reports as ``val/<name>``. ``train_loss`` becomes ``train/loss``, and ``val_loss``
    becomes ``val/loss``.

    Args:
        monitor: The monitor, inside its ``with`` block.
        then: Another training callback, called with each report after the monitor.
    """

    def __init__(self, monitor: Monitor, *, then: Any = None) -> None:
        self._monitor, self._then = monitor, then

    def on_train_loss_report(self, train_info: Mapping[str, Any]) -> None:
        """Report a step to the monitor; ``train_info`` has ``iteration`` and numbers."""
        self._monitor.on_step_end(train_info["iteration"], **_numbers(train_info, "train_"))
        if self._then is not None:
            self._then.on_train_loss_report(train_info)

    def on_val_loss_report(self, val_info: Mapping[str, Any]) -> None:
        """Log validation numbers; ``val_info`` has ``iteration`` and numbers."""
        values = {f"val/{name}": value for name, value in _numbers(val_info, "val_").items()}
        self._monitor.log_scalars(val_info["iteration"], values)
        if self._then is not None:
            self._then.on_val_loss_report(val_info)


def _numbers(info: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in info.items()
        if name != "iteration" and isinstance(value, numbers.Real)
    }
