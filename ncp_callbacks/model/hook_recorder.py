"""Record the calls of hook points in a forward pass, and put their arrays into its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .capture import Around, Tap, subnormal_flush
from .errors import ModelError
from .hook_points import CellHook, LayerHook
from .pass_arrays import Pass
from .pytrees import Path, get_leaf, modules, replace_leaf

__all__ = ["HookRecorder"]


class HookRecorder:
    """Record the calls of cells and layers during one forward pass.

    Args:
        tap: The tap that wraps the modules' calls.
        cells: Cells to record.
        layers: Layers to record.
        flush: Set subnormal gradients of states to zero in the backward pass.
    """

    def __init__(
        self,
        tap: Tap,
        cells: Sequence[CellHook],
        layers: Sequence[LayerHook],
        *,
        flush: bool,
    ) -> None:
        self._tap, self._cells, self._layers = tap, cells, layers
        self._flush = subnormal_flush() if flush else None
        self._recorded: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def recording(self, model: nn.Module) -> Iterator[None]:
        hook_points: list[CellHook | LayerHook] = [*self._cells, *self._layers]
        watched = dict.fromkeys(hook.module for hook in hook_points)
        found = dict(modules(model))
        missing = [path for path in watched if path not in found]
        if missing:
            raise ModelError(
                f"the model no longer has the module {missing[0]!r}: make a new monitor for it"
            )
        with self._tap.on([(found[path], self._around(path)) for path in watched]):
            yield

    def _around(self, module: str) -> Around:
        state_paths = {
            path: None
            for hook in self._cells
            if hook.module == module and not hook.whole_sequence
            for path in hook.out_paths
        }

        def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = call(*args, **kwargs)
            for path in state_paths if self._flush is not None else ():
                state = get_leaf(out, path)
                if isinstance(state, mx.array) and mx.issubdtype(state.dtype, mx.floating):
                    assert self._flush is not None
                    out = replace_leaf(out, path, self._flush(state))
            self._recorded.setdefault(module, []).append(((args, kwargs), out))
            return out

        return wrapper

    def clear(self) -> None:
        self._recorded = {}

    def into(self, result: Pass, states: bool, activations: bool) -> None:
        for cell in self._cells if states else ():
            recorded = self.calls(cell)
            result.states[cell.name] = [
                [self._array(recorded[number][1], path, cell) for number in cell.calls]
                for path in cell.out_paths
            ]
            if cell.between:  # what the first call receives was changed already
                continue
            initial = [get_leaf(recorded[cell.first][0], path) for path in cell.in_paths]
            if initial and all(isinstance(a, mx.array) and a.ndim for a in initial):
                result.initial[cell.name] = initial
        for layer in self._layers if activations else ():
            recorded = self.calls(layer)
            result.activations[layer.name] = [
                self._array(recorded[number][0 if layer.at_input else 1], layer.path, layer)
                for number in layer.calls
            ]

    def calls(self, hook: CellHook | LayerHook) -> list[tuple[Any, Any]]:
        recorded = self._recorded.get(hook.module, [])
        if len(recorded) != hook.calls_in_all:
            raise ModelError(
                f"{hook.name} was called {len(recorded)} times, but {hook.calls_in_all} times in "
                "the first pass, so its calls can't be matched to time steps: call it equally "
                "often in each pass"
            )
        return recorded

    @staticmethod
    def _array(tree: Any, path: Path, hook: CellHook | LayerHook) -> mx.array:
        array = get_leaf(tree, path)
        if not isinstance(array, mx.array):
            raise ModelError(
                f"{hook.name} returned no array where it returned one in the first pass: make it "
                "return the same structure at each call"
            )
        return array
