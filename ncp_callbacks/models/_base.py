"""Share parts of CfC and LTC: the time loop, its argument checks, constants that never train.

A recurrent model owns a ``cell`` and calls it once per time step::

    output_t, state = self.cell(x_t, state, time_delta_t)  # (B, F), (B, units), (B, 1)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

__all__ = [
    "Cell",
    "Module",
    "RecurrentModel",
    "check_choice",
    "check_size",
    "hold_constant",
    "set_untrained",
]


class _FrozenNames(set[str]):
    """Hold the names that a module does not train; ``constants`` stay among them."""

    def __init__(self, names: Iterable[str] = (), constants: Iterable[str] = ()) -> None:
        self.constants = frozenset(constants)
        super().__init__({*names, *self.constants})

    def clear(self) -> None:
        super().clear()
        self.update(self.constants)

    def difference_update(self, *others: Iterable[Any]) -> None:
        super().difference_update(*others)
        self.update(self.constants)


class Module(nn.Module):
    """Give ``nn.Module`` a typed constructor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]


def hold_constant(module: nn.Module, name: str, value: npt.ArrayLike) -> None:
    """Set a boolean array that is saved with the weights and that no ``unfreeze`` trains.

    ``unfreeze`` on a parent clears the frozen names of its children directly, so overriding the
    children's ``unfreeze`` would not be enough.
    """
    module[name] = mx.array(np.asarray(value, dtype=bool))
    constants: frozenset[str] = getattr(module._no_grad, "constants", frozenset())
    module._no_grad = _FrozenNames(module._no_grad, {name, *constants})


def set_untrained(module: nn.Module, name: str, value: object) -> None:
    """Set an attribute whose arrays are no parameters of the module.

    ``nn.Module.__setattr__`` makes a child of a value that is a module itself, as the wirings of
    ncps-mlx are, and would train the connections.
    """
    object.__setattr__(module, name, value)


class Cell(Module):
    """Run one time step: ``(x_t, state, time_delta_t) -> (output_t, state)``."""

    input_size: int
    units: int
    output_size: int

    def __call__(
        self, x: mx.array, state: mx.array, time_delta: mx.array | float = 1.0
    ) -> tuple[mx.array, mx.array]:
        raise NotImplementedError


class RecurrentModel(Module):
    """Run ``self.cell`` over a batch of sequences."""

    cell: Cell
    input_size: int
    units: int
    output_size: int
    return_sequences: bool

    def __call__(
        self,
        x: mx.array,
        time_delta: mx.array | npt.NDArray[Any] | float | None = None,
        state: mx.array | None = None,
    ) -> tuple[mx.array, mx.array]:
        """Run the sequences through the cell.

        Args:
            x: ``(B, T, input_size)``, floating.
            time_delta: Time since the previous step, at least 0: ``(B, T)``, ``(B, T, 1)`` or one
                number for all time steps; ``None`` means 1.
            state: ``(B, units)``; ``None`` means zeros in the dtype of ``x``.

        Returns:
            Outputs ``(B, T, output_size)``, or ``(B, output_size)`` of the last step without
            ``return_sequences``, and the last state ``(B, units)``.

        Raises:
            ValueError: A shape or a value does not fit.
        """
        batch, steps = self._check_inputs(x)
        time_deltas = _split_time_delta(time_delta, batch, steps, x.dtype)
        if state is None:
            state = mx.zeros((batch, self.units), dtype=x.dtype)
        elif state.shape != (batch, self.units):
            raise ValueError(
                f"state has shape {state.shape}: pass (batch, units) = {(batch, self.units)}, such "
                "as the state that this model returned, or None to start from zeros"
            )
        outputs = []
        # One split has a cheap gradient; slicing x step by step makes it quadratic in T.
        for x_t, elapsed in zip(x.split(steps, axis=1), time_deltas, strict=True):
            output, state = self.cell(x_t.squeeze(1), state, elapsed)
            outputs.append(output)
        if self.return_sequences:
            return self._read_out(mx.stack(outputs, axis=1)), state
        return self._read_out(output), state

    def _read_out(self, outputs: mx.array) -> mx.array:
        """Map the cell's outputs to the model's."""
        return outputs

    def _check_inputs(self, x: mx.array) -> tuple[int, int]:
        if x.ndim != 3:
            fix = ", such as x[None] for one sequence" if x.ndim == 2 else ""
            raise ValueError(f"x has shape {x.shape}: pass (batch, time, features){fix}")
        batch, steps, features = x.shape
        if features != self.input_size:
            raise ValueError(
                f"x has {features} features in its last axis (shape {x.shape}), and this model "
                f"takes {self.input_size}: make the model with input_size={features}, or pass "
                f"{self.input_size} features"
            )
        if steps == 0:
            raise ValueError(f"x has no time steps (shape {x.shape}): pass at least one")
        if not mx.issubdtype(x.dtype, mx.floating):
            raise ValueError(f"x is an array of {x.dtype}: pass x.astype(mx.float32)")
        return batch, steps


def _split_time_delta(
    time_delta: mx.array | npt.NDArray[Any] | float | None,
    batch: int,
    steps: int,
    dtype: mx.Dtype,
) -> Sequence[mx.array]:
    """Return one ``(B, 1)`` array of elapsed time per time step."""
    # Elapsed times keep float32 at least: one that is rounded or overflows is wrong for all units.
    dtype = dtype if dtype == mx.float64 else mx.float32
    if time_delta is None:
        time_delta = 1.0
    if isinstance(time_delta, (int, float)):
        if not (math.isfinite(time_delta) and time_delta >= 0):
            raise ValueError(f"time_delta={time_delta}: pass a finite number of at least 0")
        time_delta = mx.array(float(time_delta), dtype=dtype)
    elif not isinstance(time_delta, mx.array):
        time_delta = mx.array(np.asarray(time_delta), dtype=dtype)
    if not mx.issubdtype(time_delta.dtype, mx.floating):
        time_delta = time_delta.astype(dtype)
    if time_delta.ndim == 0:
        return [mx.broadcast_to(time_delta, (batch, 1))] * steps
    if time_delta.shape not in {(batch, steps), (batch, steps, 1)}:
        raise ValueError(
            f"time_delta has shape {time_delta.shape}, which doesn't fit x: pass one number, or an "
            f"array of shape {(batch, steps)} or {(batch, steps, 1)}. If all sequences share the "
            f"times, pass mx.broadcast_to(time_delta, {(batch, steps)})"
        )
    return time_delta.reshape(batch, steps).split(steps, axis=1)


def check_size(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``, else raise ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name}={value!r}: pass a whole number of at least {minimum}")
    return int(value)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in (choices := tuple(choices)):
        raise ValueError(
            f"{name}={value!r} is unknown: pass one of {', '.join(map(repr, choices))}"
        )
