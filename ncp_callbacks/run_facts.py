"""Tell what is true of a run at all of its steps, for the rules that judge it."""

from __future__ import annotations

from collections.abc import Iterable

import mlx.core as mx
import numpy as np

from .callback import Callback
from .findings.facts import RunFacts
from .held_out import to_numpy
from .model import ModelRunner

__all__ = ["run_facts"]


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
        feature_names=tuple(held_out.feature_names),
        class_names=names,
        class_counts=counts,
        takes_time=runner.takes_time,
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
