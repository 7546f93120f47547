"""Verify that a module holds a state: what one call gets reaches what later calls return.

A module may take its state as an argument, which :mod:`..recurrence` finds. Other modules keep it
between their calls, or run over the whole sequence in one call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.transformer import TransformerDecoderLayer, TransformerEncoderLayer

from ...arrays import to_numpy
from ..model_copy import ModelCopy
from ..pytrees import Path, replace_leaf
from ..recording import Call, record

__all__ = ["STATELESS", "StateCheck"]

# What these return at a time step may depend on others, but is no state.
STATELESS = (
    nn.Linear,
    nn.QuantizedLinear,
    nn.Bilinear,
    nn.Embedding,
    nn.QuantizedEmbedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.InstanceNorm,
    nn.BatchNorm,
    nn.Dropout,
    nn.MultiHeadAttention,
    nn.TransformerEncoder,
    TransformerEncoderLayer,
    TransformerDecoderLayer,
    nn.RoPE,
    nn.SinusoidalPositionalEncoding,
)

# Time steps over which a state is expected to have an effect.
_FAR = 32


class StateCheck:
    """Change what one call of a module gets, and see whether later results change.

    Args:
        copy: The copy of the model.
        run: Runs the copy on the inputs that were recorded.
        batch: Number of sequences ``B``.
        steps: Number of time steps ``T``.
    """

    def __init__(self, copy: ModelCopy, run: Callable[[], Any], batch: int, steps: int) -> None:
        self._copy, self._run, self._batch, self._steps = copy, run, batch, steps

    def __call__(self, calls: Sequence[Call]) -> tuple[bool | None, str]:
        """Return whether a module holds a state, None if that is uncertain, and why it does not.

        Args:
            calls: The recorded calls of the module.
        """
        module = calls[0].module
        if isinstance(module, STATELESS):
            return False, f"it is an mlx.nn.{type(module).__name__}, which has none"
        if len(calls) == 1:
            return self._of_sequence(calls[0])
        return self._of_steps(calls)

    def runs_over(self, call: Call) -> bool:
        """Return whether a call runs over the whole sequence, from one end of it to the other.

        Attention without a mask depends on both ends, and a convolution on a few time steps.
        """
        moved = self._moved_by_ends(call)
        if moved is None or isinstance(call.module, STATELESS):
            return False
        far = min(_FAR, self._steps - 1)
        by_first, by_last = moved
        return bool(by_first[far]) != bool(by_last[-1 - far])

    def _of_sequence(self, call: Call) -> tuple[bool | None, str]:
        moved = self._moved_by_ends(call)
        if moved is None:
            return None, ""
        if moved[0][1:].any() or moved[1][:-1].any():
            return True, ""
        return False, (
            "what it returns at a time step depends on its arguments at this time step alone"
        )

    def _moved_by_ends(self, call: Call) -> list[npt.NDArray[np.bool_]] | None:
        """Return two arrays ``(T,)``, the time steps at which what a call returns moves.

        First another first time step is passed, and then another last one, because a layer may run
        in either direction. None: it can't be asked.
        """
        given = {path: array for path, array in call.inputs.items() if self._is_sequence(array)}
        if not given or self._steps < 2:
            return None
        found = []
        for step in (0, self._steps - 1):
            changed = {path: _with_other_step(array, step) for path, array in given.items()}
            again = self._changed([call], {0: changed})
            if again is None:
                return None
            moved = np.zeros(self._steps, bool)
            for path, array in call.outputs.items():
                other = again[0].outputs.get(path)
                if other is not None and other.shape == array.shape and self._is_sequence(array):
                    moved |= (to_numpy(array) != to_numpy(other)).any(axis=(0, 2))
            found.append(moved)
        return found

    def _of_steps(self, calls: Sequence[Call]) -> tuple[bool | None, str]:
        if any(_passes_on(before, after) for before, after in itertools.pairwise(calls)):
            return None, ""  # as a cell does, whose calls don't fit the time steps
        # Later calls get what they got before: what still reaches them, the module itself has kept.
        changed = {i: dict(call.inputs) for i, call in enumerate(calls)}
        other = {
            path: array
            for path, array in calls[-1].inputs.items()
            if path in changed[0] and array.shape == changed[0][path].shape
        }
        if not any(_differ(array, changed[0][path]) for path, array in other.items()):
            return None, ""
        changed[0].update(other)
        again = self._changed(calls, changed)
        if again is None:
            return None, ""
        for was, now in zip(calls[1:], again[1:], strict=True):
            if any(_differ(a, now.outputs.get(path)) for path, a in was.outputs.items()):
                return True, ""
        return False, (
            "what it returns is not passed on to its next call, and it keeps nothing between calls"
        )

    def _is_sequence(self, array: mx.array) -> bool:
        return array.ndim == 3 and tuple(array.shape[:2]) == (self._batch, self._steps)

    def _changed(
        self, calls: Sequence[Call], changed: Mapping[int, Mapping[Path, mx.array]]
    ) -> list[Call] | None:
        """Return the calls of a run in which some get other arguments; None if it makes others."""
        path = calls[0].path

        def run_call(
            this: Call, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            given: Any = (args, kwargs)
            if this.path == path:
                for place, array in changed.get(this.number, {}).items():
                    given = replace_leaf(given, place, array)
            return call(*given[0], **given[1])

        with self._copy.preserved():
            try:
                found, _ = record(self._copy.model, self._run, run_call)
            except (KeyError, IndexError, TypeError, AttributeError):
                return None  # a call has arguments of another structure now
        again = [call for call in found if call.path == path]
        return again if len(again) == len(calls) else None


def _with_other_step(array: mx.array, step: int) -> mx.array:
    """Return ``(B, T, N)`` with the values of the other end at the first or the last time step."""
    last = array.shape[1] - 1
    if step == 0:
        return mx.concatenate([array[:, last:], array[:, 1:]], axis=1)
    return mx.concatenate([array[:, :last], array[:, :1]], axis=1)


def _passes_on(before: Call, after: Call) -> bool:
    """Return whether a call gets an array that the call before it returned."""
    return any(
        given.shape == array.shape and not _differ(array, given)
        for array in before.outputs.values()
        for given in after.inputs.values()
    )


def _differ(a: mx.array, b: mx.array | None) -> bool:
    return b is None or a.shape != b.shape or not bool(mx.array_equal(a, b, equal_nan=True))
