"""Find the order in which a model runs the whole batch, where it isn't that of the batch.

Models for sequences of different lengths often sort them. A few sequences show that it does; all of
them show the order, which parts of the batch must share, because passes may take them apart.
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


def put_in_order(
    found: HookPoints,
    tried: Mapping[int, Steps],
    rows_of: Callable[[Sequence[_Hook]], Mapping[str, tuple[int, ...]]],
) -> HookPoints:
    """Return hook points with the order of all sequences where it isn't that of the batch.

    Args:
        found: Hook points, with the order of the sequences tried.
        tried: The indices of these sequences, by their number.
        rows_of: Returns the sequence in each row of the whole batch, by name of the hook; () if
            that is unknown.
    """
    both: tuple[_Hook, ...] = (*found.cells, *found.layers)
    hooks = [hook for hook in both if hook.rows and not hook.skipped]
    if not hooks:
        return found
    rows = rows_of(hooks)
    cells = {h.name: _placed(h, rows[h.name], tried) for h in hooks if isinstance(h, CellHook)}
    layers = {h.name: _placed(h, rows[h.name], tried) for h in hooks if isinstance(h, LayerHook)}
    changed: list[_Hook] = [*cells.values(), *layers.values()]
    ordered = " and ".join(hook.name for hook in changed if not hook.skipped)
    note = (
        f"the model runs the sequences in another order than that of the batch in {ordered}, as "
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


def _placed(hook: _T, rows: tuple[int, ...], tried: Mapping[int, Steps]) -> _T:
    """Return a hook with the order of all sequences, if those tried are in this order, too."""
    if rows:
        places = np.argsort(rows)[tried[len(hook.rows)]]
        if (np.argsort(places) == np.array(hook.rows)).all():
            return replace(hook, rows=rows)
        because = "it runs them in orders that differ between parts of the batch"
    else:
        because = "it runs them in another order, which is unknown for the whole batch"
    return replace(hook, rows=(), skipped=unknown_rows(hook, because))
