"""Find the layers that turn frames into the inputs of the recurrent part.

A front end runs on all frames at once, ``(B T, ...)`` or ``(B, T, ...)``, or on the frames of one
time step at a time, ``(B, ...)``. Sizes alone don't tell the order of the rows. One frame is
therefore changed, and the rows that change show which order it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..activations import recognise_activation
from ..arrays import to_mlx
from .backbone import activation_of, is_layer, layer_hooks
from .hook_points import LayerHook
from .model_copy import ModelCopy
from .pytrees import Path
from .recording import Call, Values, record
from .time_order import Order

__all__ = ["FrontEnd"]


@dataclass(frozen=True)
class _Place:
    """Describe how arrays of one or of ``T`` calls belong to sequences and time steps.

    Attributes:
        flat: True if sequences and time steps share the first axis of one array.
        axis: 1 if the rows of such an array are those of the first time step, and so on.
        whole: True if one array covers all time steps.
        reverse: True if the arrays of ``T`` calls are in the reverse order of time.
    """

    flat: bool = False
    axis: int = 0
    whole: bool = True
    reverse: bool = False


class FrontEnd:
    """Find layers before the recurrent part, and the order of the frames in their arrays.

    Args:
        copy: The copy of the model.
        inputs: ``(B, T, P)``.
        run: Runs the copy on inputs.
        calls: All calls of ``run(inputs)``.
        values: The values of arrays.
    """

    def __init__(
        self,
        copy: ModelCopy,
        inputs: mx.array,
        run: Callable[[mx.array], Any],
        calls: Sequence[Call],
        values: Values,
    ) -> None:
        self._copy, self._inputs, self._run = copy, inputs, run
        self._calls, self._values = calls, values
        self._batch, self._steps, _ = inputs.shape
        self._by_module: dict[str, list[Call]] = {}
        for call in calls:
            self._by_module.setdefault(call.path, []).append(call)

    def layers(self, first_cell: Call, cells: Sequence[Call]) -> tuple[list[LayerHook], list[str]]:
        """Return hooks of the layers before the recurrent part, and a note on each skipped one.

        Args:
            first_cell: The first call of a recurrent cell.
            cells: All calls of cells.
        """
        inside = {id(call) for call in cells}
        around = {id(above) for call in cells for above in _above(call)}
        before = self._calls.index(first_cell)
        found: dict[str, list[Call]] = {}
        outer: dict[str, list[Call]] = {}
        for call in self._calls[:before]:
            if id(call) in inside | around or call.within(inside) is not None:
                continue
            if is_layer(call.module) and call.outputs:
                found[call.path] = self._by_module[call.path]
            if call.parent is None or id(call.parent) in around:
                outer[call.path] = self._by_module[call.path]
        hidden: list[LayerHook] = []
        for parts in self._by_step(list(outer.values())):
            # The calls of a step, as though they were those inside a cell.
            steps = [_together(number, part) for number, part in enumerate(parts)]
            hidden += layer_hooks(steps, cells, self._by_module, self._values)
        hook_points, notes = [], []
        for path, calls in found.items():
            read = [hook for hook in hidden if hook.name == path]
            # What is left of a layer after pooling is not its activations.
            whole = all(self._size(hook) == _size(calls) for hook in read)
            hook_points += read if read and whole else [self._read_elsewhere(path, calls, before)]
        placed = [self._placed(hook) for hook in hook_points]
        for hook, other in zip(hook_points, placed, strict=True):
            if other is None and self._depends_on_frames(found[hook.name]):
                notes.append(
                    f"{hook.name} is not analysed: each row of its output must depend on one frame "
                    "only, and its calls must be one for all frames or one per time step. To "
                    "choose other layers, pass layers=[...]"
                )
        order = {path: number for number, path in enumerate(found)}
        return sorted(filter(None, placed), key=lambda hook: order[hook.name]), notes

    def _by_step(self, modules: Sequence[Sequence[Call]]) -> Iterator[list[list[Call]]]:
        """Yield the calls that cover all time steps as one list, and those of each as ``T``."""
        once: list[Call] = []
        each: list[list[Call]] = [[] for _ in range(self._steps)]
        for calls in modules:
            out = next(iter(calls[0].outputs.values()), None)
            if len(calls) % self._steps or out is None or out.shape[:1] != (self._batch,):
                once += calls
                continue
            for call in calls:
                each[call.number * self._steps // len(calls)].append(call)
        if once:
            yield [once]
        if all(each):
            yield each

    def named(self, calls: Sequence[Call], place: Path) -> LayerHook | None:
        """Return a hook of the output of one layer; None if its rows don't belong to frames."""
        return self._placed(self._output(calls[0].name, calls, place))

    def _output(self, name: str, calls: Sequence[Call], place: Path) -> LayerHook:
        return LayerHook(
            name=name,
            module=calls[0].path,
            path=place,
            at_input=False,
            activation=activation_of(calls, self._values),
            calls=tuple(call.number for call in calls),
            calls_in_all=len(calls),
        )

    def _read_elsewhere(self, path: str, calls: Sequence[Call], before: int) -> LayerHook:
        """Return a hook of the activations of a layer that no other layer takes as they are.

        They are read where a module takes or returns an activation of the layer's output, or of
        this output after a norm. Where no module does, the output itself is read: then the
        activation is unknown, unless a layer or the recurrent part takes this output.
        """
        own = self._output(path, calls, next(iter(calls[0].outputs)))
        rows = self._rows(own)
        if rows is None:
            return own
        sources, taken = [rows], False
        for hook in self._hooks_between(calls, before, rows.size):
            values = self._rows(hook)
            if values is None:
                continue
            values = values.reshape(rows.shape)
            names = [recognise_activation(source, values) for source in sources]
            for name in names:
                if name is not None and name != "identity":
                    return replace(hook, activation=name)
            taken |= names[0] == "identity" and not self._is_between(hook.module)
            if names[0] is None and not hook.at_input:
                sources.append(values)
        return own if taken else replace(own, activation="unknown")

    def _hooks_between(self, calls: Sequence[Call], before: int, size: int) -> Iterator[LayerHook]:
        """Yield hooks of arrays of a size that modules before the cells take or return.

        Args:
            calls: The calls of the layer after which the modules run.
            before: Index of the first call of a cell.
            size: The number of values for all sequences and time steps.
        """
        start = self._calls.index(calls[0]) + 1
        for path in dict.fromkeys(call.path for call in self._calls[start : before + 1]):
            own = self._by_module[path]
            places = [(place, True) for place in own[0].inputs]
            if self._is_between(path):
                places += [(place, False) for place in own[0].outputs]
            for group in self._groups(own):
                for place, at_input in places:
                    numbers = tuple(call.number for call in group)
                    hook = LayerHook(
                        calls[0].name, path, place, at_input, "identity", numbers, len(own)
                    )
                    if self._size(hook) == size:
                        yield hook

    def _is_between(self, path: str) -> bool:
        """Return whether a module lies between layers, as activations, norms and pooling do."""
        call = self._by_module[path][0]
        return not call.children and not is_layer(call.module)

    def _groups(self, calls: Sequence[Call]) -> list[Sequence[Call]]:
        """Return the calls one by one, or those of all time steps together, if there are such."""
        each, rest = divmod(len(calls), self._steps)
        if rest or self._steps == 1:
            return [[call] for call in calls]
        return [calls[start::each] for start in range(each)]

    def _size(self, hook: LayerHook) -> int:
        """Return the number of values that a hook reads."""
        calls = [self._by_module[hook.module][number] for number in hook.calls]
        return sum(0 if array is None else array.size for array in (_array(c, hook) for c in calls))

    def _rows(self, hook: LayerHook) -> npt.NDArray[np.floating[Any]] | None:
        """Return what a hook reads, ``(B, T, N)``; None if it doesn't belong to frames."""
        placed = self._placed(hook)
        if placed is None:
            return None
        calls = [self._by_module[placed.module][number] for number in placed.calls]
        arrays = [self._values.of(a) for a in (_array(c, placed) for c in calls) if a is not None]
        if not placed.whole_sequence:
            return np.stack([array.reshape(self._batch, -1) for array in arrays], axis=1)
        if placed.axis == 1:
            return arrays[0].reshape(self._steps, self._batch, -1).swapaxes(0, 1)
        return arrays[0].reshape(self._batch, self._steps, -1)

    def _placed(self, hook: LayerHook) -> LayerHook | None:
        """Return the hook with its rows in order; None if they don't belong to frames."""
        calls = [self._by_module[hook.module][number] for number in hook.calls]
        after = [self._changed.get(id(call)) for call in calls]
        pairs = [
            (_array(call, hook), None if other is None else _array(other, hook))
            for call, other in zip(calls, after, strict=True)
        ]
        place = self._place(pairs)
        if place is None:
            return None
        numbers = hook.calls[::-1] if place.reverse else hook.calls
        return replace(
            hook,
            calls=numbers,
            whole_sequence=place.whole,
            flat=place.flat,
            axis=place.axis,
            order=Order.BACKWARD if place.reverse else Order.FORWARD,
        )

    def _place(self, pairs: Sequence[tuple[mx.array | None, mx.array | None]]) -> _Place | None:
        changed = [
            rows
            for before, after in pairs
            if (rows := self._changed_rows(before, after)) is not None
        ]
        if len(changed) < len(pairs):
            return None
        # The changed frame is that of the last sequence at the first time step.
        batch, steps, last = self._batch, self._steps, self._batch - 1
        if len(changed) == 1:
            rows = changed[0]
            if rows.shape[:2] == (batch, steps):
                return _Place() if _moved(rows.reshape(batch, steps, -1)) == [[last, 0]] else None
            if len(rows) == batch * steps:
                moved = _moved(rows.reshape(len(rows), -1))
                if moved == [[last * steps]]:
                    return _Place(flat=True)
                if moved == [[last]]:
                    return _Place(flat=True, axis=1)
            return None
        if len(changed) != steps or any(len(rows) != batch for rows in changed):
            return None
        moved = _moved(np.stack([rows.reshape(batch, -1) for rows in changed]))
        for reverse, step in ((False, 0), (True, steps - 1)):
            if moved == [[step, last]]:
                return _Place(whole=False, reverse=reverse)
        return None

    def _changed_rows(
        self, before: mx.array | None, after: mx.array | None
    ) -> npt.NDArray[np.bool_] | None:
        if before is None or after is None or before.shape != after.shape or not before.ndim:
            return None
        x, y = self._values.of(before), self._values.of(after)
        # Sums over other rows may be taken in another order.
        close = np.isclose(x, y, rtol=1e-4, atol=1e-6 * float(np.nanmax(np.abs(x), initial=0.0)))
        return np.asarray(~(close | (np.isnan(x) & np.isnan(y))))

    def _depends_on_frames(self, calls: Sequence[Call]) -> bool:
        pairs = [(call, self._changed.get(id(call))) for call in calls]
        changed = [
            self._changed_rows(array, None if other is None else other.outputs.get(place))
            for call, other in pairs
            for place, array in call.outputs.items()
        ]
        return any(rows is None or bool(rows.any()) for rows in changed)

    @functools.cached_property
    def _changed(self) -> dict[int, Call]:
        """Return each call's counterpart with another frame in one place, by id, or nothing."""
        values = self._values.of(self._inputs)
        noise = np.random.default_rng(0).standard_normal(values.shape[2])
        other = values.copy()
        size = float(np.nanstd(values)) or 1.0
        other[-1, 0] = np.nan_to_num(other[-1, 0]) + size * noise
        changed = to_mlx(other).astype(self._inputs.dtype)
        with self._copy.preserved():
            again, _ = record(self._copy.model, lambda: self._run(changed))
        if [(c.path, c.number) for c in again] != [(c.path, c.number) for c in self._calls]:
            return {}
        return {id(before): after for before, after in zip(self._calls, again, strict=True)}


def _above(call: Call) -> Sequence[Call]:
    found, above = [], call.parent
    while above is not None:
        found.append(above)
        above = above.parent
    return found


def _together(number: int, calls: Sequence[Call]) -> Call:
    """Return a call that stands for all these calls together."""
    return Call(calls[0].module, "", number, None, children=list(calls))


def _size(calls: Sequence[Call]) -> int:
    """Return the number of values in the first output of all calls."""
    return sum(array.size for call in calls for array in list(call.outputs.values())[:1])


def _moved(changed: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Return the indices, without the last axis, where an element is true."""
    indices: list[list[int]] = np.argwhere(np.any(changed, axis=-1)).tolist()
    return indices


def _array(call: Call, hook: LayerHook) -> mx.array | None:
    return (call.inputs if hook.at_input else call.outputs).get(hook.path)
