"""Run a recurrent cell step by step from any state, and compute Jacobians of its steps.

stepper = CellStepper(runner, hook)        # inside runner.preserved()
stepper.step(3, state)                    # the state after step 3, from another state
stepper.jacobian(3)                       # (B, H, H), d state after step 3 / d state before
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..held_out import to_numpy
from ..results import FloatArray
from .errors import NotApplicable
from .hook_points import CellHook
from .pytrees import get_leaf, leaves, modules, replace_leaf
from .runner import ModelRunner, recorded_calls

__all__ = ["CellStepper"]

# Relative to the largest state: float32 rounding over a few layers.
_TOLERANCE = 1e-3


class CellStepper:
    """Run single steps of one cell over the sequences of a runner.

    The constructor runs one forward pass. Use a stepper only inside ``runner.preserved()``.

    Args:
        runner: A runner of few sequences, as a step's Jacobian takes ``H`` copies of each.
        hook: The cell.

    Raises:
        NotApplicable: If a step can't be run separately, or then returns another state.

    Attributes:
        module: The cell.
        steps: Number of time steps ``T``.
        sizes: Number of units of each state array; ``H`` is their sum.
    """

    def __init__(self, runner: ModelRunner, hook: CellHook) -> None:
        self.hook = hook
        self._batch, self.steps, _ = runner.held_out.inputs_shape
        self.module: nn.Module = dict(modules(runner.model))[hook.module]
        calls = recorded_calls(runner, hook)
        split = self._split_sequence if hook.whole_sequence else self._split_steps
        self._inputs, self._outputs, self._call = split(calls)
        self.sizes = [a.shape[-1] for a in self._outputs[0]]
        self._check()

    # State arrays (B, units) before and after each step, and a function that runs a step.

    def _split_steps(self, calls: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any], Any]:
        hook = self.hook
        if not hook.in_paths:
            raise NotApplicable(
                f"{hook.name} keeps its state itself, so its steps can't be run separately: pass "
                "the state to the cell as an argument and return it"
            )
        recorded = [calls[number] for number in hook.calls]
        inputs = [[get_leaf(given, path) for path in hook.in_paths] for given, _ in recorded]
        outputs = [[get_leaf(output, path) for path in hook.out_paths] for _, output in recorded]
        # Many cells receive no state at the first step, and start from zeros of their own.
        first = self.steps - 1 if hook.reverse else 0
        later = inputs[:first] + inputs[first + 1 :]
        if not all(_is_batch_of_states(a, self._batch) for step in later for a in step):
            raise NotApplicable(
                f"{hook.name} doesn't receive a state (batch, units) at every step, so its steps "
                "can't be run separately"
            )
        shapes = [a.shape[1:] for a in later[-1]]

        def call(
            step: int, states: list[mx.array], change: ChangeArguments | None
        ) -> list[mx.array]:
            copies = len(states[0]) // self._batch
            given = recorded[step][0]
            if copies > 1:
                given = self._repeated(given, copies)
            for path, state, shape in zip(hook.in_paths, states, shapes, strict=True):
                if get_leaf(given, path) is not None:
                    given = replace_leaf(given, path, state.reshape(-1, *shape))
            args, kwargs = given if change is None else change(given)
            output = self.module(*args, **kwargs)
            return [_flat(get_leaf(output, path)) for path in hook.out_paths]

        self.given = [given for given, _ in recorded]
        flat = [[_flat(a) for a in step] for step in outputs]
        if not all(_is_batch_of_states(a, self._batch) for a in inputs[first]):
            inputs[first] = [mx.zeros_like(a) for a in outputs[first]]
        return [[_flat(a) for a in step] for step in inputs], flat, call

    def _split_sequence(self, calls: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any], Any]:
        """Split the call of a layer such as ``nn.GRU``, which takes a sequence and its states."""
        hook = self.hook
        (args, kwargs), output = calls[hook.calls[0]]
        arrays = [get_leaf(output, path) for path in hook.out_paths]
        if hook.reverse or not args or not isinstance(args[0], mx.array) or args[0].ndim != 3:
            raise NotApplicable(
                f"{hook.name} runs over the whole sequence in an unknown way, so its steps can't "
                "be run separately"
            )
        x = args[0]
        outputs = [[a[:, t] for a in arrays] for t in range(self.steps)]
        inputs = [[mx.zeros_like(a) for a in outputs[0]], *outputs[:-1]]

        def call(
            step: int, states: list[mx.array], change: ChangeArguments | None
        ) -> list[mx.array]:
            copies = len(states[0]) // self._batch
            inputs_of_step = mx.concatenate([x[:, step : step + 1]] * copies)
            output = self.module(inputs_of_step, *states)
            return [get_leaf(output, path)[:, 0] for path in hook.out_paths]

        self.given = [((x[:, t],), kwargs) for t in range(self.steps)]
        return inputs, outputs, call

    def _repeated(self, given: Any, copies: int) -> Any:
        """Return arguments in which every array of the batch is repeated along the batch axis."""
        for path, array in leaves(given):
            if array.ndim and len(array) == self._batch:
                given = replace_leaf(given, path, mx.concatenate([array] * copies))
        return given

    def _check(self) -> None:
        """Run steps with two copies of each sequence, and compare them with the forward pass."""
        for step in {self.steps // 2, self.steps - 1}:
            self._check_step(step)

    def _check_step(self, step: int) -> None:
        states = [mx.concatenate([a, a]) for a in self._inputs[step]]
        # Copies from other states, which sequences that act on each other would feel.
        others = [mx.concatenate([a, 1.5 * a + 0.1]) for a in self._inputs[step]]
        try:
            repeated = self._call(step, states, None)
            beside = self._call(step, others, None)
            mx.eval(repeated, beside, self._outputs[step])
        except NotApplicable:
            raise
        except Exception as error:
            raise NotApplicable(
                f"a step of {self.hook.name} can't be run separately "
                f"({type(error).__name__}: {error})"
            ) from error
        for now, was in zip(repeated, self._outputs[step], strict=True):
            actual, expected = to_numpy(now), np.concatenate([to_numpy(was)] * 2)
            size = float(np.nan_to_num(np.abs(expected), posinf=0.0).max(initial=1e-6))
            if actual.shape != expected.shape or not np.allclose(
                actual, expected, rtol=0, atol=_TOLERANCE * size, equal_nan=True
            ):
                raise NotApplicable(
                    f"a step of {self.hook.name}, run separately, returns another state: it "
                    "depends on more than its arguments"
                )
        for now, was in zip(beside, repeated, strict=True):
            alone, size = to_numpy(was)[: self._batch], float(np.abs(to_numpy(was)).max(initial=0))
            if not np.allclose(
                to_numpy(now)[: self._batch], alone, rtol=0, atol=1e-5 * size, equal_nan=True
            ):
                raise NotApplicable(
                    f"sequences act on each other in {self.hook.name}, so its steps can't be run "
                    "with several states for each: compute each sequence independently in the cell"
                )

    # ---- steps

    def before(self, step: int) -> FloatArray:
        """Return ``(B, H)``, the state that a step starts from."""
        return np.concatenate([to_numpy(a) for a in self._inputs[step]], axis=-1)

    def after(self, step: int) -> FloatArray:
        """Return ``(B, H)``, the state after a step."""
        return np.concatenate([to_numpy(a) for a in self._outputs[step]], axis=-1)

    def step(
        self, number: int, state: mx.array | None = None, change: ChangeArguments | None = None
    ) -> mx.array:
        """Return ``(n B, H)``, the state after a step, from another state or arguments.

        Args:
            number: Index of the time step, 0 to ``T - 1``.
            state: ``(n B, H)``, the state to start from; None: that of the forward pass.
            change: Returns other ``(args, kwargs)`` for the recorded ones; ignored for a layer
                that runs over the whole sequence.
        """
        if state is None:
            states = self._inputs[number]
        else:
            cuts = np.cumsum(self.sizes)[:-1].tolist()
            states = mx.split(state, cuts, axis=-1)
        return mx.concatenate(self._call(number, states, change), axis=-1)

    def jacobian(self, number: int) -> FloatArray:
        """Return ``(B, H, H)``, with ``d after_i / d before_j`` at ``[b, i, j]``.

        The cost is one backward step of ``H`` copies of each sequence.
        """
        units = sum(self.sizes)
        before = mx.concatenate(self._inputs[number], axis=-1)
        # Copy i of the batch computes the gradient of unit i.
        copies = mx.concatenate([before] * units)
        wanted = mx.repeat(mx.eye(units, dtype=copies.dtype), self._batch, axis=0)
        _, (rows,) = mx.vjp(lambda state: self.step(number, state), [copies], [wanted])
        return np.moveaxis(to_numpy(rows).reshape(units, self._batch, units), 0, 1)

    def transposed_product(self, number: int, vectors: FloatArray) -> FloatArray:
        """Multiply the transposed Jacobian of a step by ``(B, H, k)`` vectors.

        The cost is one backward step of ``k`` copies of each sequence.
        """
        before, given = self._copies(number, vectors)
        _, (found,) = mx.vjp(lambda state: self.step(number, state), [before], [given])
        return self._as_vectors(found, vectors)

    def product(self, number: int, vectors: FloatArray) -> FloatArray:
        """Multiply the Jacobian of a step by ``(B, H, k)`` vectors.

        The product is the derivative of the transposed product, which is linear in its vectors,
        because MLX lacks forward derivatives of some operations.

        Raises:
            NotApplicable: If the cell has no second derivatives.
        """
        before, given = self._copies(number, vectors)

        def transposed(wanted: mx.array) -> mx.array:
            _, (found,) = mx.vjp(lambda state: self.step(number, state), [before], [wanted])
            return found

        try:
            _, (found,) = mx.vjp(transposed, [mx.zeros_like(before)], [given])
            return self._as_vectors(found, vectors)
        except Exception as error:
            raise NotApplicable(
                f"derivatives of a step of {self.hook.name} can't be differentiated again "
                f"({type(error).__name__}: {error})"
            ) from error

    def _copies(self, number: int, vectors: FloatArray) -> tuple[mx.array, mx.array]:
        """Return the state before a step, once for each vector, and the vectors: ``(k B, H)``."""
        before = mx.concatenate(self._inputs[number], axis=-1)
        copies = mx.concatenate([before] * vectors.shape[2])
        rows = np.moveaxis(vectors, 2, 0).reshape(copies.shape).astype(np.float32)
        return copies, mx.array(rows).astype(copies.dtype)

    @staticmethod
    def _as_vectors(rows: mx.array, like: FloatArray) -> FloatArray:
        batch, units, count = like.shape
        return np.moveaxis(to_numpy(rows).reshape(count, batch, units), 0, 2).astype(np.float64)


ChangeArguments = Callable[[Any], Any]


def _is_batch_of_states(array: Any, batch: int) -> bool:
    return isinstance(array, mx.array) and array.ndim >= 2 and len(array) == batch


def _flat(array: mx.array) -> mx.array:
    return array.reshape(len(array), -1)
