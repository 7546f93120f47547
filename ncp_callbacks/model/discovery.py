"""Find the recurrent cells of a model, and their backbone layers, in a recorded pass.

Names and classes of an unknown model are no evidence, so a forward pass of two sequences is
recorded, call by call. A cell is a module that is called once or more per time step and passes a
state on: an array that one call returns is an argument of the next, or changes it. Its backbone
consists of the hidden layers inside it, between one layer with weights and another. Of a model that
takes frames, the layers before the first cell belong to the backbone, too. What was found is
verified by the modules of ``checks``; what can't be verified is skipped, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from .backbone import layer_hooks
from .cell_hooks import recurrence_hooks, sequence_hooks
from .checks.perturb import Trial
from .checks.time_order import SEQUENCE_LAYERS
from .evidence import Evidence
from .front_end import FrontEnd
from .hook_points import CellHook, HookPoints, LayerHook, numbered_layers, reasons
from .hook_verifier import HookVerifier
from .model_copy import ModelCopy
from .named_modules import NamedModules
from .no_cells import (
    if_time_is_another_axis,
    listed,
    notes_on_fewer_calls,
    reason_for_no_cell,
)
from .recurrence import outermost
from .time_parts import TimeParts, in_order

__all__ = ["find_hook_points"]

_NO_LAYERS = (
    "no backbone was found: no hidden layer inside the recurrent cell. To analyse other layers, "
    "pass their paths as layers=[...]"
)


def find_hook_points(
    copy: ModelCopy,
    first: Trial,
    spread: Callable[[int], Trial],
    *,
    cells: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    inputs_shape: tuple[int, ...] = (),
    forecast: bool = False,
) -> HookPoints:
    """Record a run of the copy, and find cells and backbone layers in it.

    Args:
        copy: The copy of the model.
        first: The first sequences of the batch, on which they are found.
        spread: Returns a number of sequences spread over the batch, on which they are verified.
        cells: Paths or globs of modules to take as cells; None: found automatically.
        layers: Paths or globs of modules whose outputs to take as backbone layers; None: found
            automatically.
        inputs_shape: The shape of the inputs. If they are frames, layers before the cells are
            backbone layers too.
        forecast: True if axis 1 of the outputs holds the steps of a forecast.

    Raises:
        ModelError: If a pattern matches no module that was called, or a module that it matches
            returns no states or activations.
    """
    evidence = Evidence(copy, first, spread)
    parts = TimeParts(evidence, forecast=forecast)
    front = FrontEnd(copy, first.inputs, first.run, evidence.calls, evidence.values)
    named, finder = NamedModules(evidence, parts, front), _Finder(evidence, parts, front)
    verifier = HookVerifier(evidence, parts)
    found = finder.cells() if cells is None else named.cells(cells)
    if layers is not None:
        found_layers = named.layers(layers)
    else:
        before = finder.front_end(found) if len(inputs_shape) > 3 else []
        found_layers = [*before, *finder.layers()]
    found = [verifier.cell(hook) for hook in found]
    found_layers = [verifier.layer(hook) for hook in found_layers]
    notes = [
        f"{listed(evidence.hidden)} can't be analysed: called inside mx.vmap, where arrays have no "
        "values"
    ] * bool(evidence.hidden)
    notes += finder.notes
    if cells is None and found:
        notes += notes_on_fewer_calls(evidence)
    for cell in found:
        notes += [cell.skipped] if cell.skipped else cell.notes
    notes += [layer.skipped for layer in found_layers if layer.skipped]
    no_cells = reasons(found)
    for count in dict.fromkeys(cell.calls_in_all for cell in found) if no_cells else ():
        hint = if_time_is_another_axis(inputs_shape, count)
        no_cells += f". {hint}" if hint and count != evidence.steps else ""
    return HookPoints(
        tuple(found),
        tuple(found_layers),
        tuple(dict.fromkeys(notes)),
        no_cells if found else reason_for_no_cell(evidence, inputs_shape),
        reasons(found_layers) if found_layers else _NO_LAYERS,
    )


class _Finder:
    """Find cells and layers that the user has not named.

    Args:
        evidence: The recorded run.
        parts: Splits calls into runs over the time steps.
        front: The layers before the cells.

    Attributes:
        notes: Facts about the layers before the cells that the user should know.
    """

    def __init__(self, evidence: Evidence, parts: TimeParts, front: FrontEnd) -> None:
        self._evidence, self._parts, self._front = evidence, parts, front
        self.notes: list[str] = []

    def cells(self) -> list[CellHook]:
        """Return hooks of the outermost cells, and of layers that run over the whole sequence."""
        kept = outermost(self._evidence.recurrences, self._evidence.values)
        hook_points = [
            s for key in kept for s in recurrence_hooks(self._evidence, self._parts, kept[key])
        ]
        inside = {
            id(c) for found in kept.values() for recurrence in found for c in recurrence.calls
        }
        for key, calls in self._evidence.by_module.items():
            if (
                isinstance(calls[0].module, SEQUENCE_LAYERS)
                and key not in self._evidence.recurrences
                and calls[0].within(inside) is None
            ):
                hook_points += sequence_hooks(self._evidence, calls)
        return sorted(hook_points, key=lambda s: self._evidence.rank[s.module])

    def front_end(self, cells: Sequence[CellHook]) -> list[LayerHook]:
        """Return hooks of the layers that turn frames into the inputs of the first cell."""
        calls = [
            call
            for hook in cells
            for number in {hook.first, *hook.calls}
            for call in [self._evidence.by_module[hook.module][number]]
        ]
        if not calls:
            return []
        place = {id(call): number for number, call in enumerate(self._evidence.calls)}
        first = min(calls, key=lambda call: place[id(call)])
        inside = [call for hook in cells for call in self._evidence.by_module[hook.module]]
        hook_points, notes = self._front.layers(first, inside)
        self.notes += notes
        return numbered_layers([self._in_own_order(hook) for hook in hook_points])

    def _in_own_order(self, hook: LayerHook) -> LayerHook:
        """Return a hook of a call for each time step in the order in which they read their inputs.

        Sequences of different lengths may have other orders than the first ones.
        """
        if hook.whole_sequence:
            return hook
        parts = self._parts.split(
            [self._evidence.by_module[hook.module][number] for number in sorted(hook.calls)]
        )
        if len(parts) != 1 or parts[0].order is None:
            return dataclasses.replace(hook, skipped=self._parts.unknown_order(hook.name))
        calls = tuple(call.number for call in parts[0].ends)
        return dataclasses.replace(hook, calls=calls, order=parts[0].order)

    def layers(self) -> list[LayerHook]:
        """Return hooks of the hidden layers inside the cells."""
        cell_calls = [
            c
            for found in self._evidence.recurrences.values()
            for recurrence in found
            for c in recurrence.calls
        ]
        hook_points: list[LayerHook] = []
        for recurrences in self._evidence.recurrences.values():
            found = [
                in_order(hook, part, self._parts)
                for recurrence in recurrences
                for part in self._parts.of(recurrence)
                for hook in layer_hooks(
                    part.ends, cell_calls, self._evidence.by_module, self._evidence.values
                )
            ]
            hook_points += numbered_layers(found)
        return sorted(hook_points, key=lambda s: self._evidence.rank.get(s.name.split("#")[0], 0))
