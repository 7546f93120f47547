"""Tell what is true of a run at all of its steps, for the rules that judge it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .arrays import to_mlx, to_numpy
from .callback import Callback
from .findings.facts import RunFacts
from .model import ModelError, ModelRunner

__all__ = ["chance_outputs", "run_facts"]


def run_facts(runner: ModelRunner, callbacks: Iterable[Callback] = ()) -> RunFacts:
    """Return the facts of a run.

    Args:
        runner: Runs the model on the held-out batch.
        callbacks: The callbacks of the run.
    """
    held_out, callbacks = runner.held_out, list(callbacks)
    batch, time_steps, _ = held_out.inputs_shape
    names, counts = _classes(runner)
    return RunFacts(
        sequences=batch,
        time_steps=time_steps,
        duration=_duration(runner),
        feature_names=tuple(held_out.feature_names),
        class_names=names,
        class_counts=counts,
        chance_loss=_chance_loss(runner),
        takes_time=runner.takes_time,
        time_varies=_time_varies(runner),
        target=runner.target.name,
        padding=1.0 - float(held_out.mask_array.mean()),
        feature_sds=_feature_sds(runner),
        coupled=bool(runner.coupling),
        callbacks={c.name: type(c).default_name or c.name for c in callbacks},
        analysed={c.name: min(batch, c.max_sequences or batch) for c in callbacks},
    )


def _classes(runner: ModelRunner) -> tuple[tuple[str, ...] | None, tuple[int, ...] | None]:
    """Return names and numbers of sequences of the classes, where each sequence has one."""
    held_out = runner.held_out
    targets, outputs = held_out.targets, runner.calling.outputs
    if not isinstance(targets, mx.array) or mx.issubdtype(targets.dtype, mx.floating):
        return None, None
    labels = to_numpy(targets).astype(np.int64)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    classes = outputs if outputs > 1 else 2
    if labels.ndim != 1 or labels.min() < 0 or labels.max() >= classes:
        return None, None
    given = held_out.class_names if outputs > 1 else None
    names = tuple(given or (f"class {i}" for i in range(classes)))
    return names, tuple(np.bincount(labels, minlength=classes).tolist())


def chance_outputs(
    targets: np.ndarray, shape: tuple[int, ...], mask: npt.NDArray[np.bool_]
) -> np.ndarray:
    """Return the constant outputs that fit the targets best, of a shape ``(B, ..., O)``.

    They are the mean of the targets for the squared error, the logarithms of the frequencies of
    classes for the cross-entropy, and the log-odds of labels for the binary cross-entropy; one
    sequence more of each class keeps logarithms finite.

    Args:
        targets: As in the held-out batch.
        shape: Shape of the model's outputs.
        mask: ``(B, T)``, true at real time steps.
    """
    classes, outputs = targets.dtype.kind != "f", shape[-1]
    per_step = targets.ndim > 1 and targets.shape[:2] == mask.shape and len(shape) == 3
    rows = targets[mask] if per_step else targets.reshape(len(targets), -1)
    if classes and outputs > 1 and rows.size in (len(rows), np.prod(shape[:-1])):
        count = np.bincount(rows.reshape(-1).astype(np.int64), minlength=outputs) + 1.0
        constant = np.log(count / count.sum())
    else:
        columns = rows.reshape(-1, outputs).astype(np.float64)
        constant = columns.mean(axis=0)
        if classes:
            share = (columns.sum(axis=0) + 1) / (len(columns) + 2)
            constant = np.log(share) - np.log1p(-share)
    return np.broadcast_to(constant.astype(np.float32), shape)


def _chance_loss(runner: ModelRunner) -> float:
    """Return the mean loss of the best constant; NaN if the targets fit no loss of ours."""
    held_out, calling = runner.held_out, runner.calling
    if not isinstance(held_out.targets, mx.array):
        return math.nan
    batch, time_steps, _ = held_out.inputs_shape
    shape: tuple[int, ...] = (batch, calling.outputs)
    if calling.per_step or calling.horizon is not None:
        shape = (batch, calling.horizon or time_steps, calling.outputs)
    try:
        constant = chance_outputs(to_numpy(held_out.targets), shape, held_out.mask_array)
        losses = to_numpy(runner.loss(to_mlx(constant), None))
    except (ModelError, ValueError):
        return math.nan
    return float(losses.astype(np.float64).mean())


def _duration(runner: ModelRunner) -> float:
    """Return the mean elapsed time from the first to the last real time step of a sequence."""
    mask, delta = runner.held_out.mask_array, runner.held_out.flat_time_delta
    elapsed = np.ones(mask.shape) if delta is None else to_numpy(delta).astype(np.float64)
    # The elapsed time of a time step is that since the one before: that of the first is outside.
    within = mask & (np.cumsum(mask, axis=1) > 1)
    return float(np.where(within, elapsed, 0.0).sum(axis=1).mean())


def _time_varies(runner: ModelRunner) -> bool:
    """Return whether the held-out elapsed times differ by more than rounding."""
    delta = runner.held_out.flat_time_delta
    if delta is None:
        return False
    values = to_numpy(delta)[runner.held_out.mask_array]
    return bool(np.ptp(values) > 1e-6 * np.abs(values).max())


def _feature_sds(runner: ModelRunner) -> tuple[float, ...]:
    """Return the SD of each feature over real time steps; () for tokens and frames."""
    held_out = runner.held_out
    if held_out.tokens or held_out.has_frames:
        return ()
    inputs = to_numpy(held_out.inputs)
    if inputs.ndim != 3:
        return ()
    values = inputs[held_out.mask_array].astype(np.float64)
    return tuple(float(sd) for sd in values.std(axis=0))
