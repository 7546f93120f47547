"""Find states that are changed on the way from one call to the next, by changing a call's output.

Solvers, decays, norms and projections between the calls make other arrays of a state. It is one if
another output of a call changes an argument of the next call, and no later one while all other
calls return what they did. Otherwise the model carries a sum past the module, as a residual or a
solver's state, of which the output is a part only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..pytrees import Path, replace_leaf
from ..recording import Call
from ..recurrence import Recurrence, may_hold_states
from .perturb import Rerun, moved

__all__ = ["find_changed_recurrences"]


def find_changed_recurrences(
    rerun: Rerun, by_module: Mapping[str, Sequence[Call]], known: Iterable[Recurrence]
) -> tuple[dict[str, list[Recurrence]], list[str]]:
    """Return recurrences whose states are changed between calls, by module.

    Args:
        rerun: The run in which the calls were recorded.
        by_module: The calls of each module.
        known: Recurrences that hand on their states unchanged.

    Returns:
        The recurrences, and the names of modules whose output is added to a state outside them.
    """
    batch, steps, _ = rerun.trial.inputs.shape
    held = {id(call): call for recurrence in known for call in recurrence.calls}
    around = {id(above) for call in held.values() for above in _parents(call)}
    found: dict[str, list[Recurrence]] = {}
    added: list[str] = []
    for (
        path,
        calls,
    ) in by_module.items():  # in the order of first calls, so that outer ones come first
        if len(calls) < max(steps, 3) or len(calls[0].inputs) < 2:
            continue
        if any(id(call) in held or id(call) in around for call in calls):
            continue
        if calls[0].within(held) is not None:
            continue
        recurrence, is_part = _recurrence(rerun, calls, held, batch)
        if recurrence is not None:
            found[path] = [recurrence]
            held.update({id(call): call for call in calls})
        elif is_part:
            added.append(calls[0].name)
    return found, added


def _parents(call: Call) -> Iterable[Call]:
    above = call.parent
    while above is not None:
        yield above
        above = above.parent


def _recurrence(
    rerun: Rerun, calls: Sequence[Call], held: Mapping[int, Call], batch: int
) -> tuple[Recurrence | None, bool]:
    """Return the recurrence of a module, or None and whether its output is a part of a state."""
    at = (len(calls) - 1) // 2
    pairs: dict[Path, Path] = {}
    is_part = False
    for place, array in calls[at].outputs.items():
        if not mx.issubdtype(array.dtype, mx.floating) or not may_hold_states(array, batch):
            continue
        other = next((call.outputs.get(place) for call in (calls[at - 1], calls[at + 1])), None)
        if other is None or other.shape != array.shape:
            continue
        run = rerun(None, _returning([*held.values(), *calls], calls[at], place, other))
        if run is None:
            continue
        after = {(call.path, call.number): call for call in run[0]}
        following = calls[at + 1]
        changed = _moved_arguments(following, after[following.path, following.number])
        inputs = [p for p in changed if following.inputs[p].shape == array.shape]
        if not inputs:
            continue
        later = calls[at + 2 : at + 3]
        if any(_moved_arguments(c, after[c.path, c.number]) for c in later):
            is_part = True
        else:
            pairs[inputs[-1]] = place  # cells take (x, state), and return (output, state)
    if not pairs:
        return None, is_part
    return Recurrence(tuple(calls), tuple(pairs.values()), tuple(pairs), False, between=True), False


def _moved_arguments(before: Call, after: Call) -> list[Path]:
    return [
        place
        for place, array in before.inputs.items()
        if place in after.inputs
        and after.inputs[place].shape == array.shape
        and moved(array, after.inputs[place]).any()
    ]


def _returning(
    calls: Iterable[Call], changed: Call, place: Path, value: mx.array
) -> Callable[[Call, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]:
    """Return a function that runs calls, of which some return what they did and one does not."""
    outputs = {(call.path, call.number): dict(call.outputs) for call in calls}
    outputs[changed.path, changed.number][place] = value

    def run_call(
        this: Call, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = call(*args, **kwargs)
        for path, array in outputs.get((this.path, this.number), {}).items():
            output = replace_leaf(output, path, array)
        return output

    return run_call
