"""Find the order in which a model runs the whole batch, where it isn't that of the batch.

Models for sequences of different lengths often sort them. A few sequences show that it does; all of
them show the order, which a part of the batch must share, because passes may run parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

import numpy as np

from ..hook_points import CellHook, HookPoints, LayerHook, reasons, unknown_rows
from ..time_order import Steps

__all__ = ["put_in_order"]

_Hook: TypeAlias = "CellHook | LayerHook"
_T = TypeVar("_T", CellHook, LayerHook)
_Rows: TypeAlias = "tuple[int, ...]"
RowsOf: TypeAlias = "Callable[[Sequence[_Hook], Steps | None], Mapping[str, _Rows | None]]"


def put_in_order(found: HookPoints, rows_of: RowsOf, part: Steps | None) -> HookPoints:
    """Return hook points with the order of all sequences where it isn't that of the batch.

    Args:
        found: Hook points, with the order of a few sequences.
        rows_of: Returns the sequence in each row, by name of the hook, given hooks and the indices
            of the sequences to run, or None for all; () if that is unknown.
        part: Indices of some sequences, which must have the same order; None: parts aren't run.
    """
    both: tuple[_Hook, ...] = (*found.cells, *found.layers)
    hooks = [hook for hook in both if hook.rows and not hook.skipped]
    if not hooks:
        return found
    rows = rows_of(hooks, None)
    if part is not None and any(rows.values()):
        of_part = rows_of(hooks, part)
        rows = {name: _checked(own, of_part[name], part) for name, own in rows.items()}
    cells = {h.name: _placed(h, rows[h.name]) for h in hooks if isinstance(h, CellHook)}
    layers = {h.name: _placed(h, rows[h.name]) for h in hooks if isinstance(h, LayerHook)}
    changed: list[_Hook] = [*cells.values(), *layers.values()]
    ordered = " and ".join(h.name for h in changed if h.rows != tuple(range(len(h.rows))))
    note = (
        f"the model runs the sequences in an order other than that of the batch in {ordered}, as "
        "after sorting them by length: what is read there is put back in the order of the batch"
    )
    skipped = [hook.skipped for hook in changed if hook.skipped]
    all_cells = tuple(cells.get(hook.name, hook) for hook in found.cells)
    all_layers = tuple(layers.get(hook.name, hook) for hook in found.layers)
    return replace(
        found,
        cells=all_cells,
        layers=all_layers,
        notes=(*found.notes, *([note] if ordered else []), *skipped),
        no_cells=found.no_cells or reasons(all_cells),
        no_layers=found.no_layers or reasons(all_layers),
    )


def _checked(rows: _Rows | None, of_part: _Rows | None, part: Steps) -> _Rows | None:
    """Return the order of all sequences; None if a part of them has another one."""
    if not rows or not of_part:
        return None if rows else rows
    places = np.argsort(rows)[part]
    return rows if (np.argsort(places) == np.array(of_part)).all() else None


def _placed(hook: _T, rows: _Rows | None) -> _T:
    """Return a hook with the order of all sequences; or the reason to skip it, without one."""
    if rows:
        return replace(hook, rows=rows)
    because = (
        "it runs them in orders that differ between parts of the batch"
        if rows is None
        else "it runs them in another order, which is unknown for the whole batch"
    )
    fix = (
        "Let the model keep the order of the batch, or, if it sorts sequences by length, pass the "
        "held-out batch sorted in this way"
    )
    return replace(hook, rows=(), skipped=unknown_rows(hook, because, fix))
