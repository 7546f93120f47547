"""Describe recurrences, and layers that run over the whole sequence, as hooks of cells."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from .evidence import Evidence
from .hook_points import CellHook, numbered
from .recording import Call
from .recurrence import Recurrence
from .time_order import Order
from .time_parts import TimeParts

__all__ = ["recurrence_hooks", "sequence_hooks"]


def recurrence_hooks(
    evidence: Evidence, parts: TimeParts, recurrences: Sequence[Recurrence]
) -> list[CellHook]:
    """Return a hook for each run of a module's recurrences over the time steps."""
    listed = [(r, part) for r in recurrences for part in parts.of(r)]
    names = numbered(recurrences[0].calls[0].name, len(listed))
    hook_points = []
    for name, (recurrence, part) in zip(names, listed, strict=True):
        notes = [part.note] if part.note else []
        if recurrence.altered:
            notes.append(
                f"the states of {name} are those that it returns: between its calls the model "
                "overwrites some of them, as masks do"
            )
        if recurrence.between:
            notes.append(
                f"the states of {name} are those that it returns: the model changes them "
                "before the next call"
                + ("" if recurrence.in_paths else ", or joins them with other values")
            )
        hook_points.append(
            CellHook(
                name=name,
                module=recurrence.calls[0].path,
                out_paths=recurrence.out_paths,
                in_paths=recurrence.in_paths,
                calls=tuple(call.number for call in part.ends),
                first=part.first.number,
                calls_in_all=len(evidence.by_module[recurrence.calls[0].path]),
                order=part.order or Order.FORWARD,
                between=recurrence.between,
                notes=tuple(notes),
                skipped="" if part.order else parts.unknown_order(name),
            )
        )
    return hook_points


def sequence_hooks(evidence: Evidence, calls: Sequence[Call]) -> list[CellHook]:
    """Return hooks of a layer whose every call returns the states of all steps."""
    hook_points = []
    for name, call in zip(numbered(calls[0].name, len(calls)), calls, strict=True):
        places = [
            place
            for place, array in call.outputs.items()
            if evidence.is_sequence(array) and mx.issubdtype(array.dtype, mx.floating)
        ]
        if not places:
            return []
        hook_points.append(
            CellHook(
                name=name,
                module=call.path,
                out_paths=tuple(places),
                in_paths=(),
                calls=(call.number,),
                first=call.number,
                calls_in_all=len(calls),
                whole_sequence=True,
            )
        )
    return hook_points
