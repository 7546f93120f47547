"""Find states that are changed on the way from one call to the next, by changing a call's output.

Solvers, decays, norms and projections between the calls make other arrays of a state. It is one if
another output of each of three calls changes an argument of the call after it, and no later one
while all other calls return what they did. Otherwise the model carries a sum past the module, as a
residual or a solver's state, of which the output is a part only. A module with one argument may
receive its state joined with the input, or with nothing; another output then changes some columns
of it, in proportion, as after a decay. A layer whose output goes through an activation outside of
it has pre-activations instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np

from ...arrays import to_numpy
from ..pytrees import Path, replace_leaf
from ..recording import Call, Values
from ..recurrence import Recurrence, may_hold_states
from .holds_state import STATELESS
from .perturb import Rerun, moved, with_other_steps

__all__ = ["find_changed_recurrences"]

# Stands for an argument in which a state is joined with other values.
_JOINED: Path = ("joined",)


def find_changed_recurrences(
    rerun: Rerun,
    by_module: Mapping[str, Sequence[Call]],
    known: Mapping[str, list[Recurrence]],
    values: Values,
) -> tuple[dict[str, list[Recurrence]], list[str]]:
    """Return recurrences whose states are changed between calls, by module.

    Args:
        rerun: The run in which the calls were recorded.
        by_module: The calls of each module.
        known: Recurrences that hand on their states unchanged, by module.
        values: The values of arrays.

    Returns:
        The recurrences, and the names of modules whose output is added to a state outside them.
        A known recurrence is among them if it has another state that is changed.
    """
    batch, steps, _ = rerun.trial.inputs.shape
    recurrences = [recurrence for listed in known.values() for recurrence in listed]
    held = {id(call): call for recurrence in recurrences for call in recurrence.calls}
    around = {id(above) for call in held.values() for above in _parents(call)}
    found: dict[str, list[Recurrence]] = {}
    added: list[str] = []
    for path, listed in known.items():
        joined = [_with_changed_states(rerun, each, held, values, batch) for each in listed]
        if any(each.between for each in joined):
            found[path] = joined
    repeated = {path: calls for path, calls in by_module.items() if len(calls) >= max(steps, 3)}
    joined_too = _feeding_themselves(rerun, repeated, held)
    for path, calls in repeated.items():  # an outer module is called before its inner ones
        if len(calls[0].inputs) < 2 and path not in joined_too:
            continue
        if any(id(call) in held or id(call) in around for call in calls):
            continue
        if calls[0].within(held) is not None:
            continue
        pairs, is_part = _pairs(rerun, calls, held, list(calls[0].outputs), (), batch)
        if pairs:
            alone = len(calls[0].inputs) > 1 and _JOINED not in pairs
            places = tuple(pairs.values()), tuple(pairs) if alone else ()
            found[path] = [Recurrence(tuple(calls), *places, altered=False, between=True)]
            held.update({id(call): call for call in calls})
        elif is_part:
            added.append(calls[0].name)
    return found, added


def _with_changed_states(
    rerun: Rerun, known: Recurrence, held: Mapping[int, Call], values: Values, batch: int
) -> Recurrence:
    """Return a recurrence with those of its other outputs that are states, too."""
    last = known.calls[-1]
    states = known.states(-1)
    places = [
        place
        for place, array in last.outputs.items()
        if place not in known.out_paths and not any(values.same(array, s) for s in states)
    ]
    if not places or len(known.calls) < 3:
        return known
    pairs, _ = _pairs(rerun, known.calls, held, places, known.in_paths, batch)
    if not pairs:
        return known
    # An output may be fed back as an input, which is no state where the model's inputs reach it.
    step = len(known.calls) // 2
    inputs, _ = with_other_steps(
        rerun.trial.inputs,
        np.zeros(batch, int) + step * rerun.trial.inputs.shape[1] // len(known.calls),
        np.ones(batch, bool),
    )
    run = rerun(inputs, _returning(held.values(), {}))
    after = {} if run is None else {(call.path, call.number): call for call in run[0]}
    reached = {
        place
        for call in known.calls
        if (call.path, call.number) in after
        for place in _moved_arguments(call, after[call.path, call.number])
    }
    pairs = {given: made for given, made in pairs.items() if given not in reached}
    if not pairs:
        return known
    pairs |= dict(zip(known.in_paths, known.out_paths, strict=True))
    listed = list(last.outputs)
    given = sorted(pairs, key=lambda place: listed.index(pairs[place]))
    made = tuple(pairs[place] for place in given)
    return replace(known, out_paths=made, in_paths=tuple(given), between=True)


def _feeding_themselves(
    rerun: Rerun, by_module: Mapping[str, Sequence[Call]], held: Mapping[int, Call]
) -> set[str]:
    """Return modules with one argument that may move with what their call before returned."""
    some = {
        path: calls
        for path, calls in by_module.items()
        if len(calls[0].inputs) == 1
        and not isinstance(calls[0].module, STATELESS)
        and not any(id(call) in held for call in calls)
    }
    if not some:
        return set()
    changed: dict[tuple[str, int], dict[Path, mx.array]] = {}
    for calls in some.values():
        at = _middle(calls)
        other = calls[at - 1 if at else at + 1].outputs
        changed[calls[at].path, calls[at].number] = {
            place: other[place]
            for place, array in calls[at].outputs.items()
            if place in other and other[place].shape == array.shape
        }
    run = rerun(None, _returning(held.values(), changed))
    after = {} if run is None else {(call.path, call.number): call for call in run[0]}
    following = {path: calls[_middle(calls) + 1] for path, calls in some.items()}
    return {
        path
        for path, call in following.items()
        if (call.path, call.number) in after
        and _moved_arguments(call, after[call.path, call.number])
    }


def _middle(calls: Sequence[Call]) -> int:
    return (len(calls) - 1) // 2


def _parents(call: Call) -> Iterable[Call]:
    above = call.parent
    while above is not None:
        yield above
        above = above.parent


def _pairs(
    rerun: Rerun,
    calls: Sequence[Call],
    held: Mapping[int, Call],
    places: Iterable[Path],
    known: Sequence[Path],
    batch: int,
) -> tuple[dict[Path, Path], bool]:
    """Return the outputs that change arguments of the next call, by the path of the argument.

    Args:
        rerun: The run in which the calls were recorded.
        calls: Calls of one module.
        held: Calls that return what they did.
        places: Paths of outputs to try.
        known: Paths of arguments that are known to be states.
        batch: Number of sequences.

    Returns:
        The paths, and true if an output changes later calls as well.
    """
    pairs: dict[Path, Path] = {}
    is_part = False
    first = _middle(calls)
    # At one call alone, the last sub-step of a solver could be taken for a step.
    numbers = range(first, min(first + 3, len(calls) - 1))
    for place in places:
        effects: list[_Effect] = []
        for at in numbers:
            effects.append(_effect(rerun, calls, at, held, place, known, batch))
            if effects[-1].lasts or not effects[-1].given:
                break
        is_part = is_part or effects[-1].lasts
        if len({effect.given for effect in effects}) == 1 and not effects[-1].lasts:
            pairs[effects[0].given] = place
    pairs.pop((), None)
    return pairs, is_part


@dataclass(frozen=True)
class _Effect:
    """Say what another output of a call changes.

    Attributes:
        given: The path of the argument of the next call; () if none of a state's shape changes.
        lasts: True if it changes a call after that, too, although the next one returns what it did.
    """

    given: Path = ()
    lasts: bool = False


def _effect(
    rerun: Rerun,
    calls: Sequence[Call],
    at: int,
    held: Mapping[int, Call],
    place: Path,
    known: Sequence[Path],
    batch: int,
) -> _Effect:
    """Return what another output of call ``at`` changes, see :func:`_pairs`."""
    array, following = calls[at].outputs.get(place), calls[at + 1]
    other = calls[at - 1 if at else at + 1].outputs.get(place)
    if (
        array is None
        or other is None
        or other.shape != array.shape
        or not mx.issubdtype(array.dtype, mx.floating)
        or not may_hold_states(array, batch)
    ):
        return _Effect()
    changed_output = {(calls[at].path, at): {place: other}}
    run = rerun(None, _returning([*held.values(), *calls], changed_output))
    if run is None:
        return _Effect()
    after = {(call.path, call.number): call for call in run[0]}
    changed = _moved_arguments(following, after[following.path, following.number])
    given = [p for p in changed if following.inputs[p].shape == array.shape and p not in known]
    if changed and len(following.inputs) == 1:
        half = {(calls[at].path, at): {place: (array + other) / 2}}
        run = rerun(None, _returning([*held.values(), *calls], half))
        ends = following.inputs[changed[0]], after[following.path, following.number]
        in_proportion = run is not None and _halfway(run[0], ends, changed[0])
        given = (given or [_JOINED]) if in_proportion else []
    if not given:
        return _Effect()
    later = calls[at + 2 : at + 3]
    lasts = any(_moved_arguments(call, after[call.path, call.number]) for call in later)
    return _Effect(given[-1], lasts)  # cells take (x, state), and return (output, state)


def _halfway(calls: Iterable[Call], ends: tuple[mx.array, Call], place: Path) -> bool:
    """Return whether an argument of one of the calls is halfway between two values."""
    before, after = ends[0], ends[1].inputs[place]
    half = next(
        call.inputs[place]
        for call in calls
        if (call.path, call.number) == (ends[1].path, ends[1].number)
    )
    x, a, b = to_numpy(half), to_numpy(before), to_numpy(after)
    return np.allclose(x, (a + b) / 2, rtol=0, atol=1e-3 * float(np.abs(b - a).max(initial=0.0)))


def _moved_arguments(before: Call, after: Call) -> list[Path]:
    return [
        place
        for place, array in before.inputs.items()
        if place in after.inputs
        and after.inputs[place].shape == array.shape
        and moved(array, after.inputs[place]).any()
    ]


def _returning(
    calls: Iterable[Call], changed: Mapping[tuple[str, int], Mapping[Path, mx.array]]
) -> Callable[[Call, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]:
    """Return a function that runs calls, of which some return what they did, or something else.

    Args:
        calls: Calls that return what they did.
        changed: What some return instead, by module and number.
    """
    outputs = {(call.path, call.number): dict(call.outputs) for call in calls}
    for key, arrays in changed.items():
        outputs[key] = {**outputs.get(key, {}), **arrays}

    def run_call(
        this: Call, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = call(*args, **kwargs)
        for path, array in outputs.get((this.path, this.number), {}).items():
            output = replace_leaf(output, path, array)
        return output

    return run_call
