"""Compute derivatives of targets: along a direction, at every step, with respect to states.

Call the functions inside ``runner.preserved()``, like :meth:`ModelRunner.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..arrays import to_mlx
from .capture import Around, Tap
from .errors import NotApplicable, explaining_missing_gradients
from .hook_points import CellHook
from .pass_arrays import Variants
from .pytrees import Path, get_leaf, modules, replace_leaf
from .runner import ModelRunner, flushing_subnormals, recorded_calls

__all__ = [
    "directional_derivatives",
    "held_states",
    "state_gradients",
    "step_gradients",
]


def directional_derivatives(
    runner: ModelRunner,
    sequences: mx.array,
    time_deltas: mx.array | None,
    along: mx.array,
    time_along: mx.array | None,
    chosen: mx.array | None,
) -> Variants:
    """Compute derivatives of the targets of ``K`` batches along a direction, and their gradients.

    The gradients are products of the targets' Hessians with the direction. They are computed by
    reverse over reverse differentiation, since MLX lacks forward derivatives of some operations.

    Args:
        runner: The model and the batch.
        sequences: ``(K, B, T, F)``.
        time_deltas: ``(K, B, T)``, or None.
        along: ``(K, B, T, F)``, the direction.
        time_along: ``(K, B, T)``, the direction of elapsed times; None: they stay constant.
        chosen: ``(B,)``, the outputs to follow, see :meth:`Target.choose`.
    """
    runner.require_input_gradient()
    takes_time = runner.has_time_gradient
    kept: list[mx.array] = []

    def targets(x: mx.array, dt: mx.array | None) -> mx.array:
        parts = runner.outputs_of_variants(x, dt)
        return mx.stack([runner.target(part, chosen) for part in parts]).sum()

    def slope(x: mx.array, dt: mx.array | None) -> mx.array:
        if takes_time and time_along is not None:
            by_input, by_time = mx.grad(targets, argnums=[0, 1])(x, dt)
            values = (by_input * along).sum(axis=(2, 3)) + (by_time * time_along).sum(axis=2)
        else:
            values = (mx.grad(targets)(x, dt) * along).sum(axis=(2, 3))
        kept.append(values)
        total: mx.array = values.sum()
        return total

    with flushing_subnormals(runner), explaining_missing_gradients("of the targets' slopes"):
        wanted = [0, 1] if takes_time else [0]
        gradients = mx.grad(slope, argnums=wanted)(sequences, time_deltas)
    if isinstance(gradients, mx.array):
        gradients = (gradients,)
    return Variants(kept[-1], *gradients)


def step_gradients(
    runner: ModelRunner,
    steps: npt.NDArray[np.bool_],
    sequences: mx.array | None = None,
    time_deltas: mx.array | None = None,
    follow: mx.array | None = None,
    *,
    hold_states: bool = False,
) -> Variants:
    """Compute gradients of :meth:`Target.every_step` at several time steps.

    Args:
        runner: The model and the batch.
        steps: ``(K, B, T)`` or ``(K, 1, T)``, booleans: the time steps over which the targets of
            copy ``k`` are summed.
        sequences: ``(K, B, T, F)``; None: the batch's own.
        time_deltas: ``(K, B, T)``; None: the batch's own.
        follow: ``(B, T)``, the outputs to follow.
        hold_states: Treat the states that cells receive as constants.

    Raises:
        NotApplicable: If ``hold_states`` is set and a cell keeps its state itself, or the targets
            have no gradient by the inputs.
    """
    runner.require_input_gradient()
    own, delta = runner.sequence(), runner.time_delta
    copies = len(steps)
    x, dt = (
        given if mine is None or given is not None else mx.broadcast_to(mine, (copies, *mine.shape))
        for mine, given in ((own, sequences), (delta, time_deltas))
    )
    assert x is not None
    weights = [to_mlx(part) for part in steps]
    kept: list[mx.array] = []

    def total(x: mx.array, dt: mx.array | None) -> mx.array:
        parts = runner.outputs_of_variants(x, dt)
        every = [runner.target.every_step(part, follow) for part in parts]
        values = mx.stack(
            [
                mx.where(weight, part, mx.zeros_like(part)).sum(axis=1)
                for weight, part in zip(weights, every, strict=True)
            ]
        )
        kept.append(values)
        return values.sum()

    with held_states(runner) if hold_states else flushing_subnormals(runner):
        wanted = [0, 1] if runner.has_time_gradient else [0]
        gradients = mx.grad(total, argnums=wanted)(x, dt)
    if isinstance(gradients, mx.array):
        gradients = (gradients,)
    return Variants(kept[-1], *gradients)


@contextmanager
def held_states(runner: ModelRunner) -> Iterator[None]:
    """Stop gradients through the states that recurrent cells receive at the start of a step.

    Raises:
        NotApplicable: If a cell keeps its state itself.
    """
    paths: dict[str, dict[int, list[Path]]] = {}
    calls_in_all: dict[str, int] = {}
    for hook in runner.hook_points.cells:
        if hook.whole_sequence:
            raise NotApplicable(
                f"{hook.name} runs over the whole sequence in one call, so its states can't be "
                "held constant at each step"
            )
        if hook.between:
            raise NotApplicable(
                f"the model changes the states of {hook.name} between its calls, so they can't be "
                "held constant without what lies between: put these operations into the cell"
            )
        if not hook.in_paths:
            raise NotApplicable(
                f"{hook.name} keeps its state itself, so it can't be held constant: pass the state "
                "to the cell as an argument and return it"
            )
        calls_in_all[hook.module] = hook.calls_in_all
        for number in _first_calls_of_steps(hook):
            paths.setdefault(hook.module, {}).setdefault(number, []).extend(hook.in_paths)
    found = dict(modules(runner.model))
    with Tap().on(
        [(found[name], _stop_state_gradients(paths[name], calls_in_all[name])) for name in paths]
    ):
        yield


def state_gradients(
    runner: ModelRunner, hook: CellHook, chosen: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Compute gradients of the targets with respect to the states that a cell receives.

    The cost is one forward pass and one gradient pass.

    Args:
        runner: The model and the batch.
        hook: The cell.
        chosen: ``(B,)``, the outputs to follow, see :meth:`Target.choose`.

    Returns:
        The states and their gradients, ``(B, T - 1, H)`` each, without the first step, in the
        order in which the cell runs.

    Raises:
        NotApplicable: If the cell keeps its state itself.
    """
    if hook.between and not hook.in_paths:
        raise NotApplicable(
            f"{hook.name} receives its state joined with other values, so there is no gradient "
            "with respect to it: pass the state to the cell as an argument of its own"
        )
    if hook.whole_sequence or not hook.in_paths:
        raise NotApplicable(
            f"{hook.name} keeps its state itself, so there is no gradient with respect to it: pass "
            "the state to the cell as an argument and return it"
        )
    if hook.not_stepped:
        raise NotApplicable(hook.not_stepped)
    recorded = recorded_calls(runner, hook)
    first_calls = _first_calls_of_steps(hook)[1:]
    states = [
        [get_leaf(recorded[number][0], path) for path in hook.in_paths] for number in first_calls
    ]
    if not states or not all(isinstance(a, mx.array) for step in states for a in step):
        raise NotApplicable(f"{hook.name} receives no state at its second and later steps")
    at = {number: i for i, number in enumerate(first_calls)}
    module = dict(modules(runner.model))[hook.module]
    # Before: reading the vectors of tokens may run the model.
    sequence = runner.sequence()

    def total(added: list[list[mx.array]]) -> mx.array:
        calls = 0

        def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal calls
            given: Any = (args, kwargs)
            step = at.get(calls)
            if step is not None:
                for path, more in zip(hook.in_paths, added[step], strict=True):
                    given = replace_leaf(given, path, get_leaf(given, path) + more)
            calls += 1
            return call(*given[0], **given[1])

        with Tap().on([(module, wrapper)]):
            outputs = runner.outputs(sequence, runner.time_delta)
        return runner.target(outputs, chosen).sum()

    what = f"of the targets by the states of {hook.name}"
    with flushing_subnormals(runner), explaining_missing_gradients(what):
        gradients = mx.grad(total)([[mx.zeros_like(a) for a in step] for step in states])

    def concatenated(steps: list[list[mx.array]]) -> mx.array:
        rows = [mx.concatenate([a.reshape(len(a), -1) for a in s], axis=-1) for s in steps]
        return mx.stack(rows, axis=1)

    return concatenated(states), concatenated(gradients)


def _first_calls_of_steps(hook: CellHook) -> list[int]:
    """Return the numbers of the calls that begin a step, which may consist of several calls."""
    return [end - hook.calls_per_step + 1 for end in sorted(hook.calls)]


def _stop_state_gradients(paths: dict[int, list[Path]], calls_in_all: int) -> Around:
    calls = 0

    def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal calls
        given: Any = (args, kwargs)
        for path in paths.get(calls % calls_in_all, ()):
            state = get_leaf(given, path)
            if isinstance(state, mx.array):
                given = replace_leaf(given, path, mx.stop_gradient(state))
        calls += 1
        return call(*given[0], **given[1])

    return wrapper
