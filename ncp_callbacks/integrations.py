"""Connect the monitor to trainers that run the loop themselves and call back.

``mlx_lm`` calls back with reports::

    train(model, optimizer, data, training_callback=ncp.MlxLmHook(monitor))

Trainers with the callbacks of Hugging Face's, such as that of ``unsloth_zoo`` for MLX, also call
back at each step::

    trainer.add_callback(ncp.TrainerCallback(monitor))

Others call a function with a step and some numbers::

    trainer.add_step_callback(ncp.ReportHook(monitor, None, "loss", "learning_rate"))

All three start a monitor that was not started. ``TrainerCallback`` closes it, too; else ``close()``
does, or the exit of the process. Where reports come at some steps only, ``every=100`` is due at the
first report at or after each multiple of 100.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

from .monitor import Monitor

__all__ = ["MlxLmHook", "ReportHook", "TrainerCallback"]

_STEPS = ("step", "global_step", "iteration", "iter", "it")


def _start(monitor: Monitor) -> bool:
    """Start a monitor if that is not done yet, and return whether it was started here."""
    if monitor.state != "not started":
        return False
    monitor.start()
    return True


def _receive(monitor: Monitor) -> bool:
    """Make a monitor ready for a report, and return false if it takes none any more."""
    _start(monitor)
    if monitor.state != "open":
        return False
    if not monitor.reported_steps:
        # The first report may come long after the training's first step.
        monitor.starts_after(monitor.last_step or 0)
    return True


class MlxLmHook:
    """Pass the reports of ``mlx_lm``'s trainer to a monitor, as its ``training_callback``.

    Numbers of training reports are logged as ``train/<name>`` at due steps, and all numbers of
    validation reports as ``val/<name>``. ``train_loss`` becomes ``train/loss``, and ``val_loss``
    becomes ``val/loss``.

    Args:
        monitor: The monitor; the first report starts it, if it wasn't started.
        then: Another training callback, called with each report after the monitor.
    """

    def __init__(self, monitor: Monitor, *, then: Any = None) -> None:
        self._monitor, self._then = monitor, then

    def on_train_loss_report(self, train_info: Mapping[str, Any]) -> None:
        """Report a step to the monitor; ``train_info`` has ``iteration`` and numbers."""
        if _receive(self._monitor):
            self._monitor.on_step_end(train_info["iteration"], **_numbers(train_info, "train_"))
        if self._then is not None:
            self._then.on_train_loss_report(train_info)

    def on_val_loss_report(self, val_info: Mapping[str, Any]) -> None:
        """Log validation numbers; ``val_info`` has ``iteration`` and numbers."""
        if _receive(self._monitor):
            values = {f"val/{name}": value for name, value in _numbers(val_info, "val_").items()}
            self._monitor.log_scalars(val_info["iteration"], values)
        if self._then is not None:
            self._then.on_val_loss_report(val_info)


class ReportHook:
    """Pass reports to a monitor, from a trainer that calls a function with numbers.

    It may be called with a step and numbers, ``hook(10, 0.3)`` or ``hook(10, loss=0.3)``, and with
    a dict that holds the step, ``hook({"step": 10, "loss": 0.3})``. What is not a number is
    ignored.

    Args:
        monitor: The monitor; the first report starts it, if it wasn't started.
        names: Names of the numbers that follow the step, in their order; None: ignore this one.
        prefix: Where numbers are logged: ``"train"`` reports steps, with numbers as
            ``train/<name>`` at due steps. Another one only logs numbers, as ``<prefix>/<name>``.

    Raises:
        TypeError: By a call without a step.
    """

    def __init__(self, monitor: Monitor, *names: str | None, prefix: str = "train") -> None:
        self._monitor, self._names, self._prefix = monitor, names, prefix

    def __call__(self, *reported: Any, **named: Any) -> None:
        """Report a step, or log numbers."""
        found: dict[str, Any] = {}
        others = []
        for value in reported:
            if isinstance(value, Mapping):
                found.update({str(key): each for key, each in value.items()})
            else:
                others.append(value)
        found.update(named)
        name = next((name for name in _STEPS if name in found), None)
        if name is not None:
            step = found.pop(name)
        elif others and isinstance(others[0], numbers.Integral):
            step = others.pop(0)
        else:
            raise TypeError(
                "the report has no step: call the hook with the number of steps done first, or "
                f"with one of {', '.join(_STEPS)} in its dict"
            )
        found.update(
            (name, value)
            for name, value in zip(self._names, others, strict=False)
            if name is not None
        )
        if not _receive(self._monitor):
            return
        if self._prefix == "train":
            self._monitor.on_step_end(int(step), **_numbers(found, "train_"))
        else:
            values = _numbers(found, f"{self._prefix}_")
            self._monitor.log_scalars(
                int(step), {f"{self._prefix}/{name}": value for name, value in values.items()}
            )


class TrainerCallback:
    """Attach a monitor to a trainer that has the callbacks of Hugging Face's ``Trainer``.

    Each event is called as ``on_step_end(args, state, control, **others)``. Steps are counted by
    ``state.global_step``. Numbers that the trainer logs become ``train/<name>`` at their steps, and
    those named ``eval_<name>`` become ``val/<name>``. ``train_loss``, which these trainers log
    once, at the end, is a mean over the training: it is logged as ``train/train_loss``. The monitor
    is started when the training begins, and closed at its end, unless it was started before.
    ``control`` is never changed.

    Args:
        monitor: The monitor of the model that is trained.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._owns = False
        self._logged: set[tuple[int, str]] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Start the monitor."""
        if self._monitor.state == "closed":
            self._monitor.report(
                "this training is not logged: the monitor was closed before it began. Make another "
                "Monitor, with log_dir= and resume_step= if its run goes on, and add its "
                "TrainerCallback to the trainer"
            )
        self._owns = _start(self._monitor)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Report the step ``state.global_step``."""
        self._owns = _start(self._monitor) or self._owns
        # Some trainers call again for a step that is not finished, as of accumulated gradients.
        if self._monitor.state == "open" and state.global_step != self._monitor.last_step:
            self._monitor.on_step_end(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        """Log the numbers that the trainer logs."""
        self._log(state.global_step, logs or {})

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any
    ) -> None:
        """Log the numbers of an evaluation, unless the trainer logs them by itself."""
        self._log(state.global_step, metrics or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Close the monitor, if it was started here."""
        if self._owns:
            self._monitor.close()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if self._monitor.state != "open":
            return
        named = {}
        for name, value in values.items():
            if _is_number(value):
                is_val = name.startswith("eval_")
                tag = f"val/{name.removeprefix('eval_')}" if is_val else f"train/{name}"
                named[tag] = value
        # An evaluation is reported twice, at one step.
        self._logged = {(s, tag) for s, tag in self._logged if s == step}
        new = {tag: value for tag, value in named.items() if (step, tag) not in self._logged}
        self._logged |= {(step, tag) for tag in new}
        if new:
            self._monitor.log_scalars(step, new)

    def _ignore(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Do nothing at an event that a trainer expects every callback to take."""

    on_init_end = on_epoch_begin = on_epoch_end = on_step_begin = on_substep_end = _ignore
    on_pre_optimizer_step = on_optimizer_step = on_save = on_predict = _ignore
    on_prediction_step = on_push_begin = _ignore


def _numbers(info: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in info.items()
        if name not in ("iteration", "step", "self") and _is_number(value)
    }


def _is_number(value: Any) -> bool:
    """Tell a number of Python, numpy or MLX from other things that trainers report."""
    if isinstance(value, bool):
        return False
    return isinstance(value, numbers.Real) or getattr(value, "size", None) == 1
