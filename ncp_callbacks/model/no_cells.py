"""Explain why no cell was found in a recorded run, and how to change the model."""

from __future__ import annotations

from collections.abc import Sequence

from .checks.holds_state import STATELESS
from .checks.time_order import SEQUENCE_LAYERS
from .errors import count_of
from .evidence import Evidence
from .pytrees import leaves, modules
from .recording import Call
from .recurrence import find_recurrences

__all__ = [
    "if_time_is_another_axis",
    "listed",
    "notes_on_fewer_calls",
    "part_of_state",
    "reason_for_no_cell",
]

_LET_THE_CELL = (
    "Let the cell be a module that takes its state as an argument and returns the next one, called "
    "once per step"
)
# Names of modules in one message.
_MAX_NAMES = 4
# Modules that are tried for a state when no cell was found.
_MAX_TRIED = 8


def notes_on_fewer_calls(evidence: Evidence) -> list[str]:
    """Return that cells of fewer calls than time steps are skipped, with the fix."""
    inside = {id(c) for listed in evidence.recurrences.values() for r in listed for c in r.calls}
    mask = evidence.readings.mask
    longest = evidence.steps - int(mask[:, ::-1].any(axis=0).argmax())
    found = []
    for calls in evidence.by_module.values():
        # A block that is applied repeatedly takes one argument.
        if len(calls) >= evidence.steps or len(calls[0].inputs) < 2:
            continue
        if calls[0].within(inside) is not None:
            continue
        if find_recurrences(
            calls, evidence.values, evidence.batch, evidence.steps, least=len(calls)
        ):
            inside |= {id(call) for call in calls}
            fix = "call it once for each time step if it runs over these"
            if len(calls) == longest:
                fix = (
                    f"no sequence has more than {count_of(longest, 'real time step')}, so pass a "
                    "held-out batch without the padding that follows"
                )
            found.append(
                f"{calls[0].name} passes a state on, but is called {count_of(len(calls), 'time')} "
                f"for {evidence.steps} time steps, so its states belong to no time steps and are "
                f"skipped: {fix}"
            )
    return found


def reason_for_no_cell(evidence: Evidence, inputs_shape: tuple[int, ...]) -> str:
    """Return why no cell was found, with the fix."""
    reason = "no recurrent cell was found: "
    if evidence.steps < 2:
        return reason + "the sequences have one time step"
    if evidence.added:
        return f"{reason}{part_of_state(evidence.added)}. {_LET_THE_CELL}"
    shorter = notes_on_fewer_calls(evidence)
    if shorter:
        return reason + "; ".join(shorter)
    reason += "no module is called once per time step with a state that it passes on"
    seen = [calls for calls in evidence.by_module.values() if calls[0].outputs]
    repeated = [calls for calls in seen if len(calls) > 1]
    once_a_step = [c for c in repeated if len(c) % evidence.steps == 0]
    unlike = [f"{c[0].name} {len(c)} times" for c in repeated if len(c) % evidence.steps]
    # Only what keeps a state: the output of another module is none.
    holding = [c[0].name for c in once_a_step[:_MAX_TRIED] if evidence.holds_state(c)[0]]
    packed = [c[0].name for c in once_a_step if _takes_fewer(c)]
    if packed:
        return (
            f"{reason}. {listed(packed)} takes fewer sequences in some calls than in others, "
            "as packed sequences do: let it take all of them in each call, and keep the states "
            "of those that have ended by mx.where"
        )
    if holding:
        return (
            f"{reason}. {listed(holding)} keeps a state between calls: pass "
            f"cells={holding[-1]!r} to take what it returns for its states"
        )
    other = _over_another_axis(evidence, seen, inputs_shape)
    if other:
        return f"{reason}. {other}"
    over_all = _over_the_sequence(evidence, seen)
    if once_a_step:
        names = [calls[0].name for calls in once_a_step]
        reason += f"; called once per step are {listed(names)}, but they pass nothing on"
    elif unlike:
        reason += f"; called repeatedly are {listed(unlike)}, for {evidence.steps} steps"
    if over_all:
        reason += (
            f"; {listed(over_all)} may be a layer that runs over the whole sequence: if what "
            "it returns at each time step is its state, pass its path as cells=[path]"
        )
    counts = {} if once_a_step else {len(calls): None for calls in repeated}
    hints = (if_time_is_another_axis(inputs_shape, count) for count in counts)
    return f"{reason}. {next(filter(None, hints), _LET_THE_CELL)}"


def _over_another_axis(
    evidence: Evidence, seen: Sequence[Sequence[Call]], inputs_shape: tuple[int, ...]
) -> str:
    """Return which layers of MLX run over another number of steps than time steps, or ""."""
    found = {
        c[0].name: given.shape[-2]
        for c in seen
        if isinstance(c[0].module, SEQUENCE_LAYERS)
        for given in list(c[0].inputs.values())[:1]
        if given.ndim > 1 and given.shape[-2] != evidence.steps
    }
    if not found:
        return ""
    runs = "; ".join(
        f"{name} runs over {steps} steps, not over the {evidence.steps} time steps"
        for name, steps in list(found.items())[:_MAX_NAMES]
    )
    fix = if_time_is_another_axis(inputs_shape, next(iter(found.values())))
    return f"{runs}. {fix or 'Let it run over each time step once'}"


def if_time_is_another_axis(inputs_shape: tuple[int, ...], steps: int) -> str:
    """Return what to pass if the axis of inputs that is so long is time; "" if no axis is."""
    axes = [axis for axis, size in enumerate(inputs_shape) if size == steps and axis > 1]
    if not axes:
        return ""
    if len(inputs_shape) == 3:
        return (
            "If inputs are (batch, features, time steps), pass inputs.swapaxes(1, 2) and "
            "forward=lambda model, inputs, time_delta: model(inputs.swapaxes(1, 2))"
        )
    axis = axes[0]
    return (
        f"If axis {axis} of inputs {inputs_shape} is time, pass mx.moveaxis(inputs, {axis}, 1) "
        "with channel_axis= for the place where the channels are then, and forward=lambda model, "
        f"inputs, time_delta: model(mx.moveaxis(inputs, 1, {axis}))"
    )


def _over_the_sequence(evidence: Evidence, seen: Sequence[Sequence[Call]]) -> list[str]:
    """Return the innermost modules that run over the whole sequence in one call."""
    whole = [
        calls
        for calls in seen
        if calls[0].parent is not None
        and not isinstance(calls[0].module, STATELESS)
        and any(any(leaves(dict(m))) for _, m in modules(calls[0].module))
        and any(map(evidence.is_sequence, calls[0].outputs.values()))
    ]
    found: dict[int, str] = {}
    for calls in whole[: -_MAX_TRIED - 1 : -1]:  # a module is called before those inside it
        inside = any(id(call) in found for call in calls[0].descendants())
        if not inside and len(calls) == 1 and evidence.holds_state.runs_over(calls[0]):
            found[id(calls[0])] = calls[0].name
    return list(found.values())[::-1]


def _takes_fewer(calls: Sequence[Call]) -> bool:
    """Return whether the arrays that calls take and return differ in the number of rows."""
    if len(calls[0].inputs) < 2:
        return False
    rows = [{a.shape[0] for a in call.inputs.values() if a.ndim > 1} for call in calls]
    return all(len(found) == 1 for found in rows) and len(set.union(*rows)) > 1


def part_of_state(names: Sequence[str]) -> str:
    """Return that modules return a part of a state only, with the fix."""
    return (
        f"{listed(names)} returns a part of a state only, which the model adds to the state "
        "outside of any module, as residual connections and zoneout do. Put this sum into the "
        "module, so that it returns the new state"
    )


def listed(names: Sequence[str]) -> str:
    """Return some names as a list in a sentence."""
    shown = ", ".join(names[:_MAX_NAMES])
    return shown if len(names) <= _MAX_NAMES else f"{shown} and {len(names) - _MAX_NAMES} more"
