"""Split the calls of a module into runs over the time steps, in verified orders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .checks.time_order import Way
from .errors import count_of
from .evidence import Evidence
from .hook_points import LayerHook
from .pytrees import Path
from .recording import Call
from .recurrence import Recurrence
from .time_order import Fit, Mask, Order, Steps, fit_order

__all__ = ["Part", "TimeParts", "in_order"]


@dataclass(frozen=True, eq=False)
class Part:
    """Hold the calls of a module that run once over the time steps.

    Attributes:
        ends: The last call of each time step, see :attr:`CellHook.calls`; a time step may consist
            of several calls, such as the sub-steps of a solver.
        first: The first call.
        order: The order in which they run; None if it is unknown.
        note: What the user should know, or "".
    """

    ends: Sequence[Call]
    first: Call
    order: Order | None
    note: str = ""


class TimeParts:
    """Split calls into runs over the time steps.

    Args:
        evidence: The recorded run.
        forecast: True if axis 1 of the outputs holds the steps of a forecast.
    """

    def __init__(self, evidence: Evidence, *, forecast: bool) -> None:
        self._evidence, self._forecast = evidence, forecast
        self._parts: dict[int, list[Part]] = {}
        self._unread: set[str] = set()  # paths of modules that get nothing of the inputs

    def of(self, recurrence: Recurrence) -> list[Part]:
        """Return the parts of a recurrence, which may run over the sequence repeatedly."""
        if id(recurrence) not in self._parts:
            self._parts[id(recurrence)] = self.split(recurrence.calls, recurrence.in_paths)
        return self._parts[id(recurrence)]

    def split(self, calls: Sequence[Call], states: Sequence[Path] = ()) -> list[Part]:
        """Split calls of one module into runs over the time steps, in verified orders."""
        found: list[Part] = []
        for way in (Way.MIXED, Way.TOGETHER, Way.ALONE):
            asked, hits = self._evidence.readings.hits(calls, states, way)
            found = self._parts_by_input(calls, asked, hits)
            # Calls that read no time step, or only one, read no more if they return what they did.
            if found or (way is Way.TOGETHER and hits.any(axis=(1, 2)).sum() < 2):
                break
        if not found:
            if not hits.any():
                self._unread.add(calls[0].name)
            each = len(calls) // self._evidence.steps
            whole = len(calls) % self._evidence.steps == 0
            ends = calls[each - 1 :: each] if whole else calls[: self._evidence.steps]
            found = [Part(ends, calls[0], None)]
        found = [part if part.order else self._by_output(part) for part in found]
        if not any(part.order for part in found):
            return self._by_most_changed(calls, states) or found
        return found

    def _by_most_changed(self, calls: Sequence[Call], states: Sequence[Path]) -> list[Part]:
        """Return parts of calls of which each reads all time steps, and its own one most."""
        found: list[Part] = []
        for way in (Way.LARGEST_MIXED, Way.LARGEST_TOGETHER):
            asked, hits = self._evidence.readings.hits(calls, states, way)
            found = self._parts_by_input(calls, asked, hits, exact=True)
            if found:
                break
        note = (
            f"each call of {calls[0].name} reads all time steps, as after standardising sequences "
            "over time: its states are assigned to the time step that changes it most"
        )
        return [dataclasses.replace(part, note=note) if part.order else part for part in found]

    def _parts_by_input(
        self, calls: Sequence[Call], asked: Steps, hits: Mask, *, exact: bool = False
    ) -> list[Part]:
        steps, mask = self._evidence.steps, self._evidence.readings.mask
        each = len(calls) // steps
        if len(calls) % steps == 0:
            fits = [
                fit_order(asked, hits[..., i * steps : (i + 1) * steps], mask, exact=exact)
                for i in range(each)
            ]
            if each > 1:  # a run among others that begins with its first time step
                fits = [fit if fit is not None and not fit.shift else None for fit in fits]
            if not any(fits) and each > 1:
                by_step = np.any(hits.reshape(*hits.shape[:2], steps, each), axis=3)
                fit = fit_order(asked, np.asarray(by_step), mask, exact=exact)
                if fit is not None and not fit.shift:
                    return [_part(calls[each - 1 :: each], calls[0], fit)]
            if any(fits):
                series = [calls[i : i + steps] for i in range(0, len(calls), steps)]
                return [
                    Part(part, part[0], None) if fit is None else _part(part, part[0], fit)
                    for part, fit in zip(series, fits, strict=True)
                ]
        fit = fit_order(asked, hits, mask, whole=True, exact=exact)
        if fit is None:
            return []
        part = calls[fit.shift : fit.shift + steps]
        note = (
            f"of the {len(calls)} calls of {part[0].name}, only those that read the {steps} time "
            "steps are analysed"
        )
        return [dataclasses.replace(_part(part, part[0], Fit(fit.order, 0)), note=note)]

    def _by_output(self, part: Part) -> Part:
        """Return a part with the order in which its calls change the outputs, if that is known."""
        fit = self._evidence.readings.fit_outputs(part.ends) if part.first is part.ends[0] else None
        if fit is None or (self._forecast and not self._evidence.readings.mask.all()):
            return part  # the padding of the inputs is none of a forecast
        to = (
            "step of the forecast that it changes, counted as time steps are"
            if self._forecast
            else "time step of the output that it changes"
        )
        note = (
            f"the inputs don't tell which call of {part.first.name} belongs to which time step: "
            f"the states of each are assigned to the {to}"
        )
        found = _part(part.ends, part.first, fit)
        return dataclasses.replace(
            found, note=note if self._evidence.readings.inputs_change else ""
        )

    def unknown_order(self, name: str) -> str:
        """Return why the order of a module's calls is unknown, with the fix."""
        unknown = f"{name} is skipped: its direction can't be determined, because"
        if not self._evidence.readings.inputs_change:
            return f"{unknown} all inputs are equal. Pass sequences that differ"
        if name.split("#")[0] in self._unread:
            return (
                f"{unknown} nothing that it receives changes with the inputs, as where no spike "
                "reaches it, or a decoder is given zeros. Pass other modules as cells=[...]"
            )
        return (
            f"{unknown} the inputs that each call reads follow none of the orders that are known. "
            "Pass the mask of sequences of different lengths; or pass the time steps in the order "
            "in which the model runs over them, and put the inputs back in forward="
        )


def _part(calls: Sequence[Call], first: Call, fit: Fit) -> Part:
    """Return a part whose calls run in a known order."""
    ends = calls[::-1] if fit.order is Order.BACKWARD else calls
    note = ""
    if fit.shift:
        when = "after" if fit.shift > 0 else "before"
        calls_away = count_of(abs(fit.shift), "call")
        note = (
            f"{first.name} reads the input of each time step {calls_away} {when} the call of that "
            "time step, to which its states are assigned"
        )
    return Part(ends, first, fit.order, note)


def in_order(hook: LayerHook, part: Part, parts: TimeParts) -> LayerHook:
    """Return a hook with the order of a part, or the reason to skip it."""
    if part.order is None:
        return dataclasses.replace(hook, skipped=parts.unknown_order(hook.name))
    return dataclasses.replace(hook, order=part.order)
