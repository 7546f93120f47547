"""Further passes: slopes with gradients of their own, targets at every step, states held fixed.

Call them inside ``runner.preserved()``, as :meth:`ModelRunner.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from .capture import Around, Tap
from .errors import NotApplicable
from .hook_points import CellHook
from .pytrees import Path, get_leaf, modules, replace_leaf
from .runner import ModelRunner, Variants, flushing_subnormals, recorded_calls

__all__ = ["finer_solver", "held_states", "slopes", "state_gradients", "step_gradients"]


def slopes(
    runner: ModelRunner,
    sequences: mx.array,
    time_deltas: mx.array | None,
    along: mx.array,
    time_along: mx.array | None,
    chosen: mx.array | None,
) -> Variants:
    """Derivatives of the targets of ``K`` other batches along a direction, and their gradients.

    The gradients are products of the targets' Hessians with the direction; by reverse over reverse
    differentiation, since MLX lacks forward derivatives of some operations.

    Args:
        sequences, time_deltas, chosen: As for :meth:`ModelRunner.variants`.
        along: ``(K, B, T, F)``.
        time_along: ``(K, B, T)``; None: intervals stay.
    """
    takes_time = runner.takes_time
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

    with flushing_subnormals(runner):
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
    """Gradients of :meth:`Target.every_step` at several steps, in a copy of the batch for each.

    Args:
        steps: ``(K, B, T)`` or ``(K, 1, T)``, the steps over which the targets of copy ``k`` are
            summed.
        sequences, time_deltas: ``(K, B, T, F)`` and ``(K, B, T)``, instead of the batch's own.
        follow: ``(B, T)``, the outputs to follow.
        hold_states: Whether the states that cells are given count as constants.

    Raises:
        NotApplicable: If they are to be held but can't be.
    """
    own, delta = runner.sequence(), runner.time_delta
    copies = len(steps)
    x, dt = (
        given if mine is None or given is not None else mx.broadcast_to(mine, (copies, *mine.shape))
        for mine, given in ((own, sequences), (delta, time_deltas))
    )
    assert x is not None
    weights = [mx.array(part) for part in steps]
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
        wanted = [0, 1] if runner.takes_time else [0]
        gradients = mx.grad(total, argnums=wanted)(x, dt)
    if isinstance(gradients, mx.array):
        gradients = (gradients,)
    return Variants(kept[-1], *gradients)


@contextmanager
def held_states(runner: ModelRunner) -> Iterator[None]:
    """No gradient goes through the states that recurrent cells are given at the start of a step.

    Raises:
        NotApplicable: For a cell that hands its states on inside itself.
    """
    paths: dict[str, dict[int, list[Path]]] = {}
    in_all: dict[str, int] = {}
    for hook in runner.hook_points.cells:
        if hook.whole_sequence:
            raise NotApplicable(
                f"{hook.name} runs over the whole sequence by itself, so that its states can't be "
                "held fixed at each step"
            )
        if not hook.in_paths:
            raise NotApplicable(
                f"{hook.name} isn't given its state from outside, so that it can't be held fixed"
            )
        in_all[hook.module] = hook.calls_in_all
        for number in _begins(hook):
            paths.setdefault(hook.module, {}).setdefault(number, []).extend(hook.in_paths)
    found = dict(modules(runner.model))
    with Tap().on([(found[name], _holding(paths[name], in_all[name])) for name in paths]):
        yield


@contextmanager
def finer_solver(model: nn.Module) -> Iterator[None]:
    """Solvers of the cells make twice as many sub-steps (``ode_unfolds``); then as many as before.

    Raises:
        NotApplicable: If no module has such a setting.
    """
    found = [
        (module, name, count)
        for _, module in modules(model)
        for name in ("ode_unfolds", "_ode_unfolds")
        if isinstance(count := getattr(module, name, None), int) and not isinstance(count, bool)
    ]
    if not found:
        raise NotApplicable(
            "no module of the model has ode_unfolds, sub-steps of a solver that could be doubled"
        )
    try:
        for module, name, count in found:
            setattr(module, name, 2 * count)
        yield
    finally:
        for module, name, count in found:
            setattr(module, name, count)


def state_gradients(
    runner: ModelRunner, hook: CellHook, chosen: mx.array | None
) -> tuple[mx.array, mx.array]:
    """States that a cell is given at its second and later steps, and the targets' gradients there.

    One forward pass and one gradient pass.

    Args:
        hook: The cell.
        chosen: As for :meth:`ModelRunner.variants`.

    Returns:
        Twice ``(B, T - 1, H)``, in the order in which the cell makes its steps.

    Raises:
        NotApplicable: For a cell that hands its states on inside itself.
    """
    if hook.whole_sequence or not hook.in_paths:
        raise NotApplicable(
            f"{hook.name} isn't given its state at each step from outside, so that there is no "
            "gradient with respect to it"
        )
    shown = recorded_calls(runner, hook)
    begins = _begins(hook)[1:]
    states = [[get_leaf(shown[number][0], path) for path in hook.in_paths] for number in begins]
    if not states or not all(isinstance(a, mx.array) for step in states for a in step):
        raise NotApplicable(f"{hook.name} is given no state at its second and later steps")
    at = {number: i for i, number in enumerate(begins)}
    module = dict(modules(runner.model))[hook.module]

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
            outputs = runner.outputs(runner.sequence(), runner.time_delta)
        return runner.target(outputs, chosen).sum()

    with flushing_subnormals(runner):
        gradients = mx.grad(total)([[mx.zeros_like(a) for a in step] for step in states])

    def side_by_side(steps: list[list[mx.array]]) -> mx.array:
        rows = [mx.concatenate([a.reshape(len(a), -1) for a in s], axis=-1) for s in steps]
        return mx.stack(rows, axis=1)

    return side_by_side(states), side_by_side(gradients)


def _begins(hook: CellHook) -> list[int]:
    """Numbers of the calls that begin a step: several calls may make one, as a solver's do."""
    ends = sorted(hook.calls)
    return [end - (ends[0] - hook.first) for end in ends]


def _holding(paths: dict[int, list[Path]], in_all: int) -> Around:
    calls = 0

    def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal calls
        given: Any = (args, kwargs)
        for path in paths.get(calls % in_all, ()):
            state = get_leaf(given, path)
            if isinstance(state, mx.array):
                given = replace_leaf(given, path, mx.stop_gradient(state))
        calls += 1
        return call(*given[0], **given[1])

    return wrapper
