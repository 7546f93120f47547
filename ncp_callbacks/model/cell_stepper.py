"""Run a recurrent cell step by step from any state, and compute Jacobians of its steps.

stepper = CellStepper(runner, hook)        # inside runner.preserved()
stepper.step(3, state)                    # the state after step 3, from another state
stepper.jacobian(3)                       # (B, H, H), d state after step 3 / d state before
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..arrays import to_mlx, to_numpy
from ..results import FloatArray
from .capture import Tap
from .errors import NotApplicable, explaining_missing_gradients
from .hook_points import CellHook
from .pytrees import Path, get_leaf, leaves, modules, replace_leaf
from .runner import ModelRunner, recorded_calls

__all__ = ["CellStepper"]

# Relative to the largest state: float32 rounding over a few layers.
_TOLERANCE = 1e-3
# Share of the effect of another state that steps may miss.
_OF_CHANGE = 0.01


class CellStepper:
    """Run single steps of one cell over the sequences of a runner.

    The constructor runs one forward pass. Use a stepper only inside ``runner.preserved()``.

    A step is the last call of a time step. If the model changes the states between the calls, a
    step includes that: it begins with the state that the time step before returned, and runs the
    model up to the cell's next output. Steps of :meth:`over_time` can be run one after another.

    Args:
        runner: A runner of few sequences, as a step's Jacobian takes ``H`` copies of each.
        hook: The cell.
        count: Called with the part of a pass that each step takes: ``1 / T`` for each copy of the
            sequences; None: nothing is counted.
        between: True to include what the model does between the calls; None: if it changes states.

    Raises:
        NotApplicable: If a step can't be run separately, or then returns another state.

    Attributes:
        module: The cell.
        steps: Number of time steps ``T``.
        sizes: Number of units of each state array; ``H`` is their sum.
        calls_per_step: Number of steps that a time step takes, such as the sub-steps of a solver.
        whole_steps: Indices of the time steps that are run with all that the model does to the
            state. What it does before the first call is unknown, if it changes states.
    """

    def __init__(
        self,
        runner: ModelRunner,
        hook: CellHook,
        count: Callable[[float], None] | None = None,
        *,
        between: bool | None = None,
    ) -> None:
        self.hook, self._count = hook, count
        self._between = hook.between if between is None else between
        self.calls_per_step = 1 if self._between else hook.calls_per_step
        self._batch, self.steps, _ = runner.held_out.inputs_shape
        self.module: nn.Module = dict(modules(runner.model))[hook.module]
        if hook.not_stepped:
            raise NotApplicable(hook.not_stepped)
        self._runner = runner
        calls = recorded_calls(runner, hook)
        self._state_places = self._places_of_states(calls)
        split = (
            self._split_sequence
            if hook.whole_sequence
            else self._split_between
            if self._between
            else self._split_steps
        )
        self._inputs, self._outputs, run_step = split(calls)

        def call(
            step: int, states: list[mx.array], change: ChangeArguments | None
        ) -> list[mx.array]:
            if count is not None:
                count(len(states[0]) / self._batch / self.steps)
            states_after: list[mx.array] = run_step(step, states, change)
            return states_after

        self._call = call
        self.sizes = [a.shape[-1] for a in self._outputs[0]]
        self.whole_steps = [
            t for t in range(self.steps) if not self._between or self._call_before(t) >= 0
        ]
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
        if not all(self._is_state(a, i) for step in later for i, a in enumerate(step)):
            raise NotApplicable(
                f"{hook.name} doesn't receive a state (batch, units) at every step, so its steps "
                "can't be run separately"
            )
        shapes = [a.shape for a in later[-1]]

        def call(
            step: int, states: list[mx.array], change: ChangeArguments | None
        ) -> list[mx.array]:
            copies = len(states[0]) // self._batch
            given = recorded[step][0]
            if copies > 1:
                given = self._repeated(given, copies)
            for i, (path, state) in enumerate(zip(hook.in_paths, states, strict=True)):
                if get_leaf(given, path) is not None:
                    given = replace_leaf(given, path, self._unflat(state, i, shapes[i]))
            args, kwargs = given if change is None else change(given)
            output = self.module(*args, **kwargs)
            return self._flat_leaves(output)

        self.given = [given for given, _ in recorded]
        if not all(self._is_state(a, i) for i, a in enumerate(inputs[first])):
            inputs[first] = [mx.zeros_like(a) for a in outputs[first]]
        return [self._flat_all(step) for step in inputs], [self._flat_all(s) for s in outputs], call

    def _split_between(self, calls: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any], Any]:
        """Split a run of the model, of which a step is the part from one time step to the next."""
        hook, runner = self.hook, self._runner
        outputs = [[get_leaf(output, path) for path in hook.out_paths] for _, output in calls]
        shapes = [a.shape for a in outputs[0]]
        first = [get_leaf(calls[0][0], path) for path in hook.in_paths]
        if not first or not all(self._is_state(a, i) for i, a in enumerate(first)):
            first = [mx.zeros_like(a) for a in outputs[0]]
        sequence, delta = runner.sequence(), runner.time_delta

        def call(
            step: int, states: list[mx.array], change: ChangeArguments | None
        ) -> list[mx.array]:
            copies, number = len(states[0]) // self._batch, hook.calls[step]
            before = self._call_before(step)
            whole = [self._unflat(state, i, shapes[i]) for i, state in enumerate(states)]
            made = 0

            def around(run: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
                nonlocal made
                made += 1
                here, given = made - 1, (args, kwargs)
                if here <= before:  # an earlier call, which returns what it did
                    output = self._repeated_output(calls[here][1], copies)
                    return self._with_states(output, whole) if here == before else output
                if here == 0 and hook.in_paths:
                    for path, state in zip(hook.in_paths, whole, strict=True):
                        if get_leaf(given, path) is not None:
                            given = replace_leaf(given, path, state)
                if here < number:  # a call of another cell of this module, or a sub-step
                    return run(*given[0], **given[1])
                args, kwargs = given if change is None else change(given)
                raise _Reached(run(*args, **kwargs))

            x, dt = (None if a is None else mx.concatenate([a] * copies) for a in (sequence, delta))
            assert x is not None
            try:
                with Tap().on([(self.module, around)]):
                    runner.outputs(x, dt)
            except _Reached as reached:
                return self._flat_leaves(reached.output)
            raise NotApplicable(
                f"{hook.name} isn't called again if its calls before return what they did, so its "
                "steps can't be run separately"
            )

        self.given = [calls[number][0] for number in hook.calls]
        ends = [self._call_before(step) for step in range(self.steps)]
        return (
            [self._flat_all(first if number < 0 else outputs[number]) for number in ends],
            [self._flat_all(outputs[number]) for number in hook.calls],
            call,
        )

    def _places_of_states(self, calls: list[tuple[Any, Any]]) -> dict[Path, int]:
        """Return all places of its output that hold a state, with the number of that state.

        Cells often return a state twice, as their output and as what they go on from.
        """
        hook = self.hook
        outputs = [output for _, output in calls]
        places = {path: i for i, path in enumerate(hook.out_paths)}
        for path, _ in leaves(outputs[hook.first]):
            for i, own in enumerate(hook.out_paths):
                pairs = [
                    (get_leaf(outputs[n], path), get_leaf(outputs[n], own)) for n in hook.calls
                ]
                if path not in places and all(
                    isinstance(a, mx.array)
                    and a.shape == b.shape
                    and bool(mx.array_equal(a, b, equal_nan=True))
                    for a, b in pairs
                ):
                    places[path] = i
        return places

    def _call_before(self, step: int) -> int:
        """Return the number of the call that returned the state before a time step; -1 if none."""
        earlier = [number for number in self.hook.calls if number < self.hook.calls[step]]
        return max(earlier, default=self.hook.first - 1)

    def _with_states(self, output: Any, states: Sequence[mx.array]) -> Any:
        """Return an output of the cell with other states."""
        for path, number in self._state_places.items():
            output = replace_leaf(output, path, states[number])
        return output

    def _is_state(self, array: Any, number: int) -> bool:
        axis = self.hook.axis(number)
        return isinstance(array, mx.array) and array.ndim >= 2 and array.shape[axis] == self._batch

    def _flat_leaves(self, output: Any) -> list[mx.array]:
        return self._flat_all([get_leaf(output, path) for path in self.hook.out_paths])

    def _flat_all(self, arrays: Sequence[mx.array]) -> list[mx.array]:
        """Return state arrays as ``(n B, units)``."""
        moved = [mx.moveaxis(a, self.hook.axis(i), 0) for i, a in enumerate(arrays)]
        return [a.reshape(len(a), -1) for a in moved]

    def _unflat(self, state: mx.array, number: int, shape: Sequence[int]) -> mx.array:
        """Return ``(n B, units)`` in the shape of a state array, but for the number of rows."""
        axis = self.hook.axis(number)
        sizes = [size for i, size in enumerate(shape) if i != axis]
        return mx.moveaxis(state.reshape(-1, *sizes), 0, axis)

    def _repeated_output(self, output: Any, copies: int) -> Any:
        """Return an output in which state arrays, and others of the batch, are repeated."""
        if copies == 1:
            return output
        axes = {path: self.hook.axis(i) for i, path in enumerate(self.hook.out_paths)}
        for path, array in list(leaves(output)):
            axis = axes.get(path, 0)
            if array.ndim > axis and array.shape[axis] == self._batch:
                repeated = mx.concatenate([array] * copies, axis=axis)
                output = replace_leaf(output, path, repeated)
        return output

    def _split_sequence(self, calls: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any], Any]:
        """Split the call of a layer such as ``nn.GRU``, which takes a sequence and its states."""
        hook = self.hook
        (args, kwargs), output = calls[hook.calls[0]]
        arrays = [get_leaf(output, path) for path in hook.out_paths]
        if (
            hook.reverse
            or hook.axis(0)
            or not args
            or not isinstance(args[0], mx.array)
            or args[0].ndim != 3
        ):
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

    def over_time(self) -> CellStepper:
        """Return a stepper whose steps, one after another, do what the model does.

        Other states may reach later ones by other ways than the argument of the next call, as
        outputs that are fed back do. Then a step runs the model from one time step to the next.

        Raises:
            NotApplicable: If the states aren't all that goes on from one time step to the next.
        """
        if self.hook.whole_sequence or self.steps < 2:
            return self
        if self.calls_per_step == 1 and self._continues():
            return self
        if not self._between:
            stepper = CellStepper(self._runner, self.hook, self._count, between=True)
            if stepper._continues():
                return stepper
        raise NotApplicable(
            f"the states of {self.hook.name} aren't all that goes on from one time step to the "
            "next: other ones reach its later states in other ways, such as another module's "
            "state, a residual connection or a mask. Let the module take all that goes on as "
            "arguments and return it"
        )

    def _continues(self) -> bool:
        """Return whether steps from another state return what the model makes of this state."""
        order = range(self.steps)[:: -1 if self.hook.reverse else 1]
        length = min(2, self.steps - 1)
        real = self._runner.held_out.mask_array[:, order]
        spans = [order[i : i + length + 1] for i in range(self.steps - length)]
        use = [real[:, i : i + length + 1].all(axis=1) for i in range(len(spans))]
        middle = (len(spans) - 1) / 2
        at = max(range(len(spans)), key=lambda i: (use[i].sum(), -abs(i - middle)))
        start, *later = spans[at]
        states = [1.5 * a + 0.1 for a in self._outputs[start]]
        continued = self._run_on(start, later, states)
        for step, found in zip(later, continued, strict=True):
            states = self._call(step, states, None)
            mx.eval(states, found)
            for actual, wanted, was in zip(states, found, self._outputs[step], strict=True):
                x, y, unchanged = (to_numpy(a)[use[at]] for a in (actual, wanted, was))
                size = float(np.nan_to_num(np.abs(unchanged), posinf=0.0).max(initial=0.0))
                change = float(np.nan_to_num(np.abs(y - unchanged), posinf=0.0).max(initial=0.0))
                rounding = max(1e-5, 16 * float(mx.finfo(wanted.dtype).eps)) * size
                if not np.allclose(
                    x, y, rtol=0, atol=_OF_CHANGE * change + rounding, equal_nan=True
                ):
                    return False
        return True

    def _run_on(
        self, start: int, later: Sequence[int], states: list[mx.array]
    ) -> list[list[mx.array]]:
        """Return the states after later time steps of the model, from other ones after one."""
        hook, runner = self.hook, self._runner
        numbers = {hook.calls[step]: i for i, step in enumerate(later)}
        found: dict[int, list[mx.array]] = {}
        made = 0

        def around(run: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            nonlocal made
            made += 1
            output = run(*args, **kwargs)
            if made - 1 == hook.calls[start]:
                shapes = [get_leaf(output, path).shape for path in hook.out_paths]
                whole = [self._unflat(s, i, shapes[i]) for i, s in enumerate(states)]
                return self._with_states(output, whole)
            if made - 1 in numbers:
                found[made - 1] = self._flat_leaves(output)
                if len(found) == len(numbers):
                    raise _Reached(None)
            return output

        with contextlib.suppress(_Reached), Tap().on([(self.module, around)]):
            runner.outputs(runner.sequence(), runner.time_delta)
        if len(found) != len(numbers):
            raise NotApplicable(
                f"{hook.name} is called less often after another state, so its steps can't be run "
                "one after another: call it equally often whatever its state"
            )
        return [found[number] for number in numbers]

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

    def state_gradient(self, number: int, state: mx.array, weights: mx.array) -> mx.array:
        """Return ``(n B, H)``, the gradient of the weighted sum of the new state by the old one.

        Args:
            number: Index of the time step.
            state: ``(n B, H)``, the state to start from.
            weights: ``(n B, H)``, the weight of each unit of the new state.

        Raises:
            NotApplicable: If an operation of the cell has no derivative.
        """
        with explaining_missing_gradients(f"of a step of {self.hook.name} by its state"):
            _, (found,) = mx.vjp(lambda h: self.step(number, h), [state], [weights])
        return found

    def jacobian(self, number: int) -> FloatArray:
        """Return ``(B, H, H)``, with ``d after_i / d before_j`` at ``[b, i, j]``.

        The cost is one backward step of ``H`` copies of each sequence.
        """
        units = sum(self.sizes)
        before = mx.concatenate(self._inputs[number], axis=-1)
        # Copy i of the batch computes the gradient of unit i.
        copies = mx.concatenate([before] * units)
        wanted = mx.repeat(mx.eye(units, dtype=copies.dtype), self._batch, axis=0)
        rows = self.state_gradient(number, copies, wanted)
        return np.moveaxis(to_numpy(rows).reshape(units, self._batch, units), 0, 1)

    def transposed_product(self, number: int, vectors: FloatArray) -> FloatArray:
        """Multiply the transposed Jacobian of a step by ``(B, H, k)`` vectors.

        The cost is one backward step of ``k`` copies of each sequence.
        """
        before, given = self._copies(number, vectors)
        found = self.state_gradient(number, before, given)
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
        return copies, to_mlx(rows).astype(copies.dtype)

    @staticmethod
    def _as_vectors(rows: mx.array, like: FloatArray) -> FloatArray:
        batch, units, count = like.shape
        return np.moveaxis(to_numpy(rows).reshape(count, batch, units), 0, 2).astype(np.float64)


ChangeArguments = Callable[[Any], Any]


class _Reached(BaseException):
    """End a run of the model at the output that was wanted; no ``except Exception`` catches it."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output
