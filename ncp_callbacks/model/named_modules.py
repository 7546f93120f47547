"""Find hooks in the modules that the user named, by paths or globs."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import mlx.core as mx

from .backbone import activation_of
from .cell_hooks import recurrence_hooks, sequence_hooks
from .checks.time_order import SEQUENCE_LAYERS
from .errors import ModelError
from .evidence import Evidence
from .front_end import FrontEnd
from .hook_points import CellHook, LayerHook, numbered, numbered_layers
from .no_cells import part_of_state
from .recording import Call
from .recurrence import may_hold_states
from .time_order import Order
from .time_parts import Part, TimeParts, in_order

__all__ = ["NamedModules"]


class NamedModules:
    """Find hooks in the modules that patterns match.

    Args:
        evidence: The recorded run.
        parts: Splits calls into runs over the time steps.
        front: The layers before the cells.
    """

    def __init__(self, evidence: Evidence, parts: TimeParts, front: FrontEnd) -> None:
        self._evidence, self._parts, self._front = evidence, parts, front

    def cells(self, patterns: Sequence[str]) -> list[CellHook]:
        """Return hooks of the cells among the modules that patterns match."""
        hook_points: list[CellHook] = []
        for calls in self._with_states(patterns):
            if calls[0].path in self._evidence.recurrences:
                hook_points += recurrence_hooks(
                    self._evidence, self._parts, self._evidence.recurrences[calls[0].path]
                )
                continue
            whole = sequence_hooks(self._evidence, calls)
            hook_points += whole or self._hooks_without_recurrence(calls, patterns)
        return hook_points

    def _with_states(self, patterns: Sequence[str]) -> list[list[Call]]:
        """Return the calls of the modules that patterns match and that hold states.

        Raises:
            ModelError: If a module that is named itself holds none, or none that a glob matches.
        """
        found, faults = [], {}
        for calls in self._matching(patterns, "cells"):
            path = calls[0].path
            if path not in self._evidence.recurrences and not isinstance(
                calls[0].module, SEQUENCE_LAYERS
            ):
                holds, fault = self._evidence.holds_state(calls)
                if holds is False or calls[0].name in self._evidence.added:
                    faults[calls[0].name] = fault
                    if path in patterns:
                        break
                    continue
            found.append(calls)
        else:
            if found:
                return found
        name, fault = next(reversed(faults.items()))
        known = [
            calls[0].name
            for key, calls in self._evidence.by_module.items()
            if key in self._evidence.recurrences
        ]
        fix = (
            f"pass cells={known!r}, which do, or don't pass cells="
            if known
            else "pass the module that takes a state as an argument and returns the next one"
        )
        if name in self._evidence.added:
            fix = part_of_state([name])
        because = "; ".join(filter(None, (fault, fix)))
        raise ModelError(f"cells={list(patterns)}: {name} holds no state: {because}")

    def _hooks_without_recurrence(
        self, calls: Sequence[Call], patterns: Sequence[str]
    ) -> list[CellHook]:
        first = calls[0]
        places = [
            place
            for place, array in first.outputs.items()
            if mx.issubdtype(array.dtype, mx.floating)
            and may_hold_states(array, self._evidence.batch)
        ]
        if len(calls) % self._evidence.steps or not places:
            raise ModelError(
                f"cells={list(patterns)}: {first.name} was called {len(calls)} times for "
                f"{self._evidence.steps} steps and returned {_shapes(first)}: pass the path of a "
                "module that returns (batch, units) once per step, or "
                f"(batch, {self._evidence.steps}, units)"
            )
        parts = self._parts.split(calls)
        return [
            CellHook(
                name=name,
                module=first.path,
                out_paths=(places[-1],),
                in_paths=(),
                calls=tuple(call.number for call in part.ends),
                first=part.first.number,
                calls_in_all=len(calls),
                order=part.order or Order.FORWARD,
                skipped="" if part.order else self._parts.unknown_order(name),
            )
            for name, part in zip(numbered(first.name, len(parts)), parts, strict=True)
        ]

    def _matching(self, patterns: Sequence[str], what: str) -> list[list[Call]]:
        found: dict[str, list[Call]] = {}
        for pattern in patterns:
            paths = [p for p in self._evidence.paths if fnmatch.fnmatchcase(p, pattern)]
            if not paths:
                raise ModelError(
                    f"{what}: {pattern!r} matches no module; the model has "
                    + ", ".join(p for p in self._evidence.paths if p)
                )
            called = [self._evidence.by_module.get(p) for p in paths]
            if not any(called):
                raise ModelError(
                    f"{what}: {pattern!r} matches only modules that were never called; called were "
                    + ", ".join(dict.fromkeys(c.name for c in self._evidence.calls))
                )
            found.update({calls[0].path: calls for calls in called if calls})
        return sorted(found.values(), key=lambda calls: self._evidence.rank[calls[0].path])

    def layers(self, patterns: Sequence[str]) -> list[LayerHook]:
        """Return hooks of the outputs of the modules that patterns match."""
        hook_points: list[LayerHook] = []
        for calls in self._matching(patterns, "layers"):
            first = calls[0]
            place, array = next(iter(first.outputs.items()), ((), None))
            if array is None:
                raise ModelError(f"layers: {first.name} returned no array")
            whole = self._evidence.is_sequence(array)
            flat = array.ndim == 2 and len(array) == self._evidence.batch * self._evidence.steps
            if not whole and array.ndim > 2 and len(calls) in (1, self._evidence.steps):
                of_frames = self._front.named(calls, place)
                if of_frames is not None:
                    hook_points.append(of_frames)
                    continue
            whole = whole or flat
            groups = [([call], None) for call in calls] if whole else self._by_step(calls)
            if not groups or not (whole or array.ndim == 2):
                raise ModelError(
                    f"layers: {first.name} was called {len(calls)} times for "
                    f"{self._evidence.steps} steps and returned {_shapes(first)}; expected "
                    "(batch, units) once per step or "
                    f"(batch, {self._evidence.steps}, units)"
                )
            hook_points += numbered_layers(
                [
                    hook if part is None else in_order(hook, part, self._parts)
                    for group, part in groups
                    for hook in [
                        LayerHook(
                            name=first.name,
                            module=first.path,
                            path=place,
                            at_input=False,
                            activation=activation_of(group, self._evidence.values),
                            calls=tuple(call.number for call in group),
                            calls_in_all=len(calls),
                            whole_sequence=whole,
                            flat=flat,
                        )
                    ]
                ]
            )
        return hook_points

    def _by_step(self, calls: Sequence[Call]) -> list[tuple[list[Call], Part | None]]:
        """Return one call for each step, for each part of a recurrence around the calls.

        The list is empty if there isn't one call for each step.
        """
        groups: dict[tuple[int, ...], tuple[list[Call], Part | None]] = {}
        for recurrences in self._evidence.recurrences.values():
            for part in (part for r in recurrences for part in self._parts.of(r)):
                ids = {id(end) for end in part.ends}
                last = {id(call.within(ids)): call for call in calls}
                if all(id(end) in last for end in part.ends):
                    group = [last[id(end)] for end in part.ends]
                    groups.setdefault(tuple(map(id, group)), (group, part))
        if groups or len(calls) % self._evidence.steps:
            return list(groups.values())
        return [(list(part.ends), part) for part in self._parts.split(calls)]


def _shapes(call: Call) -> str:
    shapes = [str(tuple(array.shape)) for array in call.outputs.values()]
    return " and ".join(shapes) or "no array"
