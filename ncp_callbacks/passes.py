"""Run the pass over the held-out batch that all callbacks share.

    with runner.analysing():
        observation = observe(runner, step, {Need.STATES, Need.VARIANTS})
        observation.extra_passes.evaluate(inputs[None])

Every pass is counted and timed by its kind, see :class:`.PassCosts`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import read_only, to_mlx, to_numpy
from .extra_passes.extra_passes import ExtraPasses
from .extra_passes.source import PassSource
from .model import ModelRunner, TargetLike
from .model.batching import EvaluatedPass
from .model.parameters import trainable_parameters
from .observation import Activations, Need, Observation
from .pass_costs import SHARED_PASS, PassCosts, SharedResults
from .results import FloatArray
from .single_pass import run_pass, trajectories

__all__ = ["observe"]


def observe(
    runner: ModelRunner,
    step: int,
    needs: Collection[Need] = frozenset(),
    *,
    max_sequences: int | None = None,
    target: TargetLike | None = None,
    costs: PassCosts | None = None,
    shared: SharedResults | None = None,
) -> Observation:
    """Run the model once and return what it makes of the held-out batch.

    Call this, and the observation's extra passes, only inside ``runner.analysing()``.

    Args:
        runner: Runs the model on the held-out batch.
        step: The training step.
        needs: The arrays to compute, and the extra passes that may be asked for.
        max_sequences: Largest number of sequences, spread over the batch; None: all.
        target: The target, which then has no suffix in tags; None for that of the runner.
        costs: Where passes are counted; None: nowhere.
        shared: Where results are kept that several callbacks ask for; None: nowhere.
    """
    costs = costs or PassCosts()
    slug = runner.target.slug
    if target is not None:
        runner, slug = runner.with_target(target), ""
    whole = runner
    indices: npt.NDArray[np.intp] = np.arange(len(whole.held_out))
    if max_sequences is not None and max_sequences < len(indices) and runner.divisible:
        indices = whole.held_out.spread(max_sequences)
        runner = whole.take(indices)
    with costs.timing(SHARED_PASS):
        costs.count(SHARED_PASS, 1)
        passes = run_pass(runner, needs)
    chosen = [c for part in passes if (c := part.chosen) is not None]
    inputs, outputs = _array(passes, "sequence"), _array(passes, "outputs")
    time_delta = _time_delta(runner)
    source = PassSource(
        runner=runner,
        whole=whole,
        chosen=np.concatenate(chosen) if chosen else None,
        inputs=None,
        outputs=outputs,
        max_sequences=runner.max_sequences or len(whole.held_out),
        costs=costs,
        shared=shared or SharedResults(),
        make=ExtraPasses,
    )
    return Observation(
        step=step,
        held_out=runner.held_out,
        indices=read_only(indices),
        inputs=inputs,
        time_delta=time_delta,
        outputs=outputs,
        target_values=_array(passes, "values"),
        target=runner.target.name,
        target_slug=slug,
        every_step=runner.target.of_every_step,
        horizon=runner.calling.horizon,
        takes_time=runner.takes_time,
        has_time_gradient=runner.has_time_gradient,
        no_input_gradient=runner.gradients.no_input_gradient,
        categorical=read_only(runner.categorical),
        no_cells=runner.hook_points.no_cells,
        no_layers=runner.hook_points.no_layers,
        whole_batch=runner.whole_batch,
        whole_inputs=inputs if runner is whole else read_only(to_numpy(whole.sequence())),
        whole_time_delta=time_delta if runner is whole else _time_delta(whole),
        whole_mask=whole.held_out.mask,
        needs=frozenset(needs),
        _arrays=_arrays(runner, passes, outputs, needs),
        _source=source,
    )


def _array(passes: Sequence[EvaluatedPass], name: str) -> FloatArray:
    return read_only(np.concatenate([part.array(name) for part in passes]))


def _time_delta(runner: ModelRunner) -> FloatArray | None:
    return None if runner.time_delta is None else read_only(to_numpy(runner.time_delta))


def _arrays(
    runner: ModelRunner,
    passes: Sequence[EvaluatedPass],
    outputs: FloatArray,
    needs: Collection[Need],
) -> dict[Need, Any]:
    """Return the arrays that are declared."""
    arrays: dict[Need, Any] = {}
    if Need.INPUT_GRADIENT in needs:
        missing = bool(runner.gradients.no_input_gradient)
        arrays[Need.INPUT_GRADIENT] = None if missing else _array(passes, "input_gradient")
    if Need.TIME_GRADIENT in needs:
        gradient = _array(passes, "time_gradient") if runner.has_time_gradient else None
        arrays[Need.TIME_GRADIENT] = gradient
    if Need.STATES in needs:
        arrays[Need.STATES] = trajectories(runner, passes)
    if Need.ACTIVATIONS in needs:
        arrays[Need.ACTIVATIONS] = tuple(
            Activations(
                hook.name,
                hook.activation,
                read_only(np.concatenate([part.activations(hook) for part in passes])),
            )
            for hook in runner.hook_points.layers
            if not hook.skipped
        )
    against_targets = {
        Need.LOSSES: runner.losses,
        Need.HITS: runner.hits,
        Need.CLASSES: runner.classes,
    }
    if asked := against_targets.keys() & needs:
        given = to_mlx(outputs)
        for need in asked:
            found = against_targets[need](given)
            kind = np.int64 if need is Need.CLASSES else np.float32
            arrays[need] = (
                None if found is None else read_only(to_numpy(found).astype(kind, copy=False))
            )
    if Need.PARAMETERS in needs:
        arrays[Need.PARAMETERS] = MappingProxyType(
            {p.name: read_only(to_numpy(p.array)) for p in trainable_parameters(runner.model)}
        )
    return arrays
