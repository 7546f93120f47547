"""Verify the batch axis, the rows and the time order of the arrays of hooks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from .evidence import Evidence
from .hook_points import CellHook, LayerHook, unknown_rows
from .pytrees import Path
from .recording import Call
from .time_order import Order
from .time_parts import TimeParts

__all__ = ["HookVerifier"]


@dataclass(frozen=True)
class _Place:
    """Hold where an array has its sequences and time steps, see :class:`CellHook`, or why not."""

    axis: int = 0
    order: Order = Order.FORWARD
    wrong: str = ""
    rows: tuple[int, ...] = ()
    turned: bool = False
    notes: tuple[str, ...] = ()


class HookVerifier:
    """Verify hooks on sequences spread over the batch.

    Args:
        evidence: The recorded run.
        parts: Splits calls into runs over the time steps.
    """

    def __init__(self, evidence: Evidence, parts: TimeParts) -> None:
        self._evidence, self._parts = evidence, parts

    def cell(self, hook: CellHook) -> CellHook:
        """Return a hook with verified batch axes and time order, or with the reason to skip it."""
        found = [self._verified(hook, path) for path in hook.out_paths]
        wrong = next((place.wrong for place in found if place.wrong), "")
        if wrong:
            return dataclasses.replace(hook, skipped=wrong)
        axes, rows = tuple(place.axis for place in found), found[0].rows
        if any(place.rows != rows for place in found):
            wrong = unknown_rows(hook, "its arrays hold the sequences in different orders")
            return dataclasses.replace(hook, skipped=wrong)
        return dataclasses.replace(
            hook,
            axes=axes,
            rows=rows,
            order=found[0].order,
            turned=found[0].turned,
            notes=(*hook.notes, *(note for place in found for note in place.notes)),
        )

    def layer(self, hook: LayerHook) -> LayerHook:
        """Return a hook with a verified batch axis and time order, or the reason to skip it."""
        found = self._verified(hook, hook.path)
        if found.wrong:
            return dataclasses.replace(hook, skipped=found.wrong)
        return dataclasses.replace(hook, axis=found.axis, rows=found.rows, order=found.order)

    def _verified(self, hook: CellHook | LayerHook, path: Path) -> _Place:
        """Return the batch axis and the order of a hook's arrays, or why they are unknown."""
        numbers = set(hook.calls)
        at_input = isinstance(hook, LayerHook) and hook.at_input
        flat = isinstance(hook, LayerHook) and hook.flat

        def read(calls: Sequence[Call]) -> list[mx.array] | None:
            own = [c for c in calls if c.path == hook.module and c.number in numbers]
            listed = [(c.inputs if at_input else c.outputs).get(path) for c in own]
            arrays = [array for array in listed if array is not None]
            return arrays if len(arrays) == len(numbers) else None

        if not hook.whole_sequence:
            placed = self._evidence.rows.placed(read)
            if placed.wrong:
                return _Place(wrong=unknown_rows(hook, placed.wrong))
            return _Place(placed.axis, hook.order, hook.skipped, placed.rows)
        reasons = []
        for axis, shape in enumerate(
            (self._evidence.readings.mask.shape, self._evidence.readings.mask.shape[::-1])
        ):

            def read_sequences(
                calls: Sequence[Call], shape: tuple[int, ...] = shape
            ) -> list[mx.array] | None:
                arrays = read(calls)
                if arrays is None or not flat:
                    return arrays
                if any(len(a) != math.prod(shape) for a in arrays):
                    return None
                return [a.reshape(*shape, -1) for a in arrays]

            placed = self._evidence.rows.placed(read_sequences, only=axis)
            if placed.wrong:
                reasons.append(unknown_rows(hook, placed.wrong))
                continue
            fit = self._evidence.readings.fit_sequence(
                self._evidence.by_module[hook.module][hook.calls[0]], axis
            )
            if fit is not None:
                turned, notes = self._direction(hook, axis, fit.order)
                return _Place(axis, fit.order, rows=placed.rows, turned=turned, notes=notes)
            reasons.append(self._parts.unknown_order(hook.name))
        return _Place(wrong=reasons[0])

    def _direction(
        self, hook: CellHook | LayerHook, axis: int, order: Order
    ) -> tuple[bool, tuple[str, ...]]:
        """Return whether a layer runs against the order in which it returns the time steps.

        A layer that runs in both directions doesn't, and gets a note.
        """
        if isinstance(hook, LayerHook):
            return False, ()
        call = self._evidence.by_module[hook.module][hook.calls[0]]
        earlier, later = self._evidence.readings.reads_beyond(call, axis, order)
        if not (later and earlier):
            return later, ()
        note = (
            f"what {hook.name} returns at a time step depends on the time steps after it, too: "
            "its units, or some of them, run in the other direction. Make a module of each "
            "direction to tell them apart"
        )
        return False, (note,)
