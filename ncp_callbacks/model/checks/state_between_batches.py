"""Find state that a model keeps from one batch to the next, and start each pass from the same one.

Examples are the last hidden state in truncated backpropagation through time or of an agent, and
caches. Such a state belongs to the sequences of the batch before::

    state = find_state(copy, run, held_out, any_size=True)
    state.begin()           # when the copy holds another snapshot
    state.restore()         # before each pass
"""

from __future__ import annotations

import collections
import functools
import itertools
import pickle
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...held_out import HeldOutBatch
from ..conventions import Calling
from ..errors import ModelError, count_of
from ..model_copy import ModelCopy, Packed, pack_values, unpack_values
from ..own_arrays import array_bytes, own_view
from ..pytrees import filled_slots, modules
from ..random_states import random_states, restore_random_states

__all__ = ["StateBetweenBatches", "check_kept_size", "find_state"]

Run: TypeAlias = Callable[[HeldOutBatch], mx.array]
# How a part is reached from its holder: ("item", key), ("attribute", name) or ("variable", index).
Step: TypeAlias = "tuple[str, Any]"
Place: TypeAlias = "tuple[Step, ...]"

_MAX_NAMES = 3
# Numbers of sequences to try with a model that fails on the held-out batch.
_MAX_SIZES = 6


class _Missing:
    """Stand for a part that isn't there."""


_MISSING = _Missing()


class StateBetweenBatches:
    """Hold the state on entering, and put it back before each pass.

    Args:
        copy: The copy of the model, as it is on entering.
        reset: Places of parts that each pass finds as they were on entering.
        kept: Places of parts that each pass finds as they are in the snapshot.

    Attributes:
        notes: Facts that the user should know, one sentence each.
    """

    def __init__(
        self, copy: ModelCopy, reset: Sequence[Place] = (), kept: Sequence[Place] = ()
    ) -> None:
        self._copy, self._reset, self._kept = copy, tuple(reset), tuple(kept)
        self._on_entering, self._in_snapshot = self._pack(self._reset), self._pack(self._kept)
        self.notes = tuple(self._notes())

    def _notes(self) -> Iterator[str]:
        roots = _roots(self._copy)
        if self._reset:
            yield (
                f"the model keeps a state between batches ({_listed(roots, self._reset)}): each "
                "pass starts from its value on entering, since the last training batch holds other "
                "sequences. To start from another one, set it in forward=lambda model, inputs, "
                "time_delta: ..."
            )
        private = [place for place in self._kept if not _is_parameter(roots, place)]
        if private:
            yield (
                f"each call of the model changes {_listed(roots, private)}: each pass starts from "
                "its value in the snapshot, so that numbers also depend on what the model was "
                "called on before. If it is a state, reset it in forward=lambda model, inputs, "
                "time_delta: ..."
            )

    def of(self, copy: ModelCopy) -> StateBetweenBatches:
        """Return this state for another copy of the model."""
        other = StateBetweenBatches(copy)
        other._reset, other._on_entering = self._reset, self._on_entering
        other._kept, other._in_snapshot = self._kept, other._pack(self._kept)
        other.notes = self.notes
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Return all but the copy, since the other process has its own."""
        return {name: value for name, value in vars(self).items() if name != "_copy"}

    def begin(self) -> None:
        """Read what belongs to a snapshot, which the copy was just restored to."""
        if self._kept:
            self._in_snapshot = self._pack(self._kept)

    def restore(self) -> None:
        """Put the copy back to where each pass starts."""
        for places, packed in ((self._reset, self._on_entering), (self._kept, self._in_snapshot)):
            if places:
                values = unpack_values(packed, self._copy)
                for place, (there, value) in zip(places, values, strict=True):
                    _put(_roots(self._copy), place, value if there else _MISSING)

    def _pack(self, places: Sequence[Place]) -> Packed:
        values = [_get(_roots(self._copy), place) for place in places]
        return pack_values(
            [(False, None) if value is _MISSING else (True, value) for value in values],
            self._copy.model,
        )


def find_state(
    copy: ModelCopy, run: Run, held_out: HeldOutBatch, *, any_size: bool
) -> StateBetweenBatches:
    """Find out what a call leaves behind that changes the outputs of the next one.

    It is a state if its shape depends on the number of sequences. Otherwise it may be statistics
    of the data or a counter, which belong to the model that is trained.

    Args:
        copy: The copy of the model, as it is on entering.
        run: Runs the model.
        held_out: The batch.
        any_size: True if the model runs any number of sequences.
    """
    batch = held_out.take(np.arange(2) % len(held_out)) if any_size else held_out
    with copy.preserved():
        count = len(modules(copy.model))
        random = random_states()
        before = _describe(_roots(copy))
        first = array_bytes(run(batch))
        after = _describe(_roots(copy))
        lazy = len(modules(copy.model)) > count
        changed = list(_changes(before, after))
        restore_random_states(random)
        if not changed or (array_bytes(run(batch)) == first and not lazy):
            return StateBetweenBatches(copy)
    if any_size:
        with copy.preserved():
            run(held_out.take(np.arange(3) % len(held_out)))
            elsewhere = _describe(_roots(copy))
        per_sequence = [
            place
            for place in changed
            if _signature(_at(after, place)) != _signature(_at(elsewhere, place))
        ]
    else:
        per_sequence = [place for place in changed if len(held_out) in _sizes(_at(after, place))]
    if lazy:  # what else has changed are weights that the first call makes
        return StateBetweenBatches(copy, per_sequence)
    others = [place for place in changed if place not in per_sequence]
    kept = [place for place in others if _is_parameter(_roots(copy), place)]
    rest = [place for place in others if place not in kept]
    if per_sequence:
        return StateBetweenBatches(copy, [*per_sequence, *rest], kept)
    return StateBetweenBatches(copy, kept=others)


def check_kept_size(
    copy: ModelCopy, held_out: HeldOutBatch, find_calling: Callable[[HeldOutBatch], Calling]
) -> None:
    """Raise an error if a model that fails runs the number of sequences that its state is for.

    Args:
        copy: The copy of the model.
        held_out: The batch, on which the model fails.
        find_calling: Finds out how the model runs on a batch.

    Raises:
        ModelError: If a call with another number of sequences works, and changes what has it.
    """
    roots = _roots(copy)
    found = list(_lengths(_describe(roots), ()))
    # What isn't a parameter is a state more often.
    found.sort(key=lambda item: _is_parameter(roots, item[0]))
    sizes = dict.fromkeys(size for _, size in found if size != len(held_out))
    for size in itertools.islice(sizes, _MAX_SIZES):
        batch = held_out.take(np.arange(size) % len(held_out))
        try:
            calling = find_calling(batch)
        except ModelError:
            continue
        with copy.preserved():
            before = _describe(_roots(copy))
            mx.eval(calling(batch.pack(batch.inputs), batch.flat_time_delta))
            changed = list(_changes(before, _describe(_roots(copy))))
        # The call changes the array or list, a part of it, or what holds it.
        state = [
            place
            for place, length in _lengths(before, ())
            if length == size and any(p[: len(place)] == place[: len(p)] for p in changed)
        ]
        if state:
            own = count_of(size, "sequence")
            raise ModelError(
                f"the model holds a state of {own} ({_listed(_roots(copy), state)}) and fails on "
                f"the {len(held_out)} of the held-out batch: hold out {own}, or reset the state in "
                "forward=lambda model, inputs, time_delta: (model.reset_state(), model(inputs))[1],"
                " with the model's own way to reset it"
            )


# ---- the graph of objects


def _roots(copy: ModelCopy) -> dict[str, Any]:
    return {"model": copy.model, "forward": copy.forward}


def _parts(node: Any) -> Iterator[tuple[Step, Any]]:
    """Iterate over what an object holds, if it may be written to."""
    if isinstance(node, dict):
        yield from ((("item", key), value) for key, value in list(dict.items(node)))
    elif isinstance(node, list | tuple | collections.deque):
        yield from ((("item", i), value) for i, value in enumerate(list(node)))
    if isinstance(node, types.FunctionType):
        for i, cell in enumerate(node.__closure__ or ()):
            try:
                yield ("variable", i), cell.cell_contents
            except ValueError:  # not filled yet
                continue
        if node.__module__ == "__main__":
            for name in node.__code__.co_names:
                if name in node.__globals__:
                    yield ("global", name), node.__globals__[name]
    elif isinstance(node, types.MethodType):
        yield ("attribute", "__self__"), node.__self__
    elif isinstance(node, functools.partial):
        yield from ((("attribute", n), getattr(node, n)) for n in ("func", "args", "keywords"))
    elif not isinstance(node, type | types.ModuleType):
        attributes = {**getattr(node, "__dict__", {}), **filled_slots(node)}
        yield from ((("attribute", name), value) for name, value in attributes.items())


def _step_into(node: Any, step: Step) -> Any:
    kind, key = step
    if kind == "item":
        return dict.__getitem__(node, key) if isinstance(node, dict) else node[key]
    if kind == "variable":
        return node.__closure__[key].cell_contents
    return node.__globals__[key] if kind == "global" else getattr(node, key)


def _get(roots: Any, place: Place) -> Any:
    node = roots
    for step in place:
        try:
            node = _step_into(node, step)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return _MISSING
    return node


def _put(roots: Any, place: Place, value: Any) -> None:
    """Put a value at a place; containers are filled in place, as others may hold them, too."""
    holder, (kind, key) = _get(roots, place[:-1]), place[-1]
    there = _get(roots, place)
    if isinstance(holder, _Missing):
        return
    if value is _MISSING:
        if there is not _MISSING:
            if kind == "item":
                dict.__delitem__(holder, key)
            else:
                object.__delattr__(holder, key)
    elif type(there) is type(value) and isinstance(value, list | collections.deque | set):
        there.clear()
        (there.update if isinstance(value, set) else there.extend)(value)
    elif (
        type(there) is type(value) and isinstance(value, dict) and not isinstance(value, nn.Module)
    ):
        there.clear()
        there.update(value)
    elif kind == "item" and isinstance(holder, dict):
        dict.__setitem__(holder, key, value)
    elif kind == "item":
        holder[key] = value
    elif kind == "variable":
        holder.__closure__[key].cell_contents = value
    elif kind == "global":
        holder.__globals__[key] = value
    else:
        object.__setattr__(holder, key, value)


# ---- what it holds at one time


@dataclass(frozen=True, eq=False)
class _Node:
    """Describe an object at one time: its parts, or its value."""

    type: type
    parts: dict[Step, _Node]
    value: Any = None
    shape: tuple[int, ...] | None = None


def _describe(node: Any, seen: dict[int, tuple[Any, int]] | None = None) -> _Node:
    seen = {} if seen is None else seen
    kind = type(node)
    if kind is mx.array:
        return _Node(kind, {}, own_view(node), tuple(node.shape))
    if isinstance(node, np.ndarray):
        return _Node(kind, {}, node.copy(), node.shape)
    if isinstance(node, bool | int | float | complex | str | bytes | None):
        return _Node(kind, {}, node)
    if id(node) in seen:
        return _Node(kind, {}, seen[id(node)][1])
    seen[id(node)] = (node, len(seen))  # which keeps it alive, and its id its own
    parts = list(_parts(node))
    if parts or isinstance(node, dict | list | tuple | collections.deque | types.FunctionType):
        return _Node(kind, {step: _describe(part, seen) for step, part in parts})
    try:
        return _Node(kind, {}, pickle.dumps(node))
    except Exception:  # of which nothing is known but its type
        return _Node(kind, {})


def _changes(before: _Node, after: _Node, place: Place = ()) -> Iterator[Place]:
    """Iterate over the smallest parts that differ and can be replaced."""
    if before.type is not after.type or not (before.parts or after.parts):
        if not _equal(before, after):
            yield place
        return
    numbered = issubclass(before.type, list | tuple | collections.deque)
    if numbered and before.parts.keys() != after.parts.keys():
        yield place
        return
    inside: list[Place] = []
    for step in {**before.parts, **after.parts}:
        if step in before.parts and step in after.parts:
            inside += _changes(before.parts[step], after.parts[step], (*place, step))
        else:
            inside.append((*place, step))
    if inside and issubclass(before.type, tuple):
        yield place
    else:
        yield from inside


def _equal(a: _Node, b: _Node) -> bool:
    if a.type is not b.type or a.shape != b.shape:
        return False
    if isinstance(a.value, mx.array):
        same = array_bytes(a.value) == array_bytes(b.value)
        return same and a.value.dtype == b.value.dtype
    if isinstance(a.value, np.ndarray):
        return bool(a.value.dtype == b.value.dtype) and a.value.tobytes() == b.value.tobytes()
    return bool(a.value == b.value) or a.value != a.value


def _at(node: _Node, place: Place) -> _Node | None:
    found: _Node | None = node
    for step in place:
        found = None if found is None else found.parts.get(step)
    return found


def _signature(node: _Node | None) -> Any:
    """Return shapes, lengths and whole numbers, which may depend on the number of sequences."""
    if node is None:
        return None
    if node.shape is not None:
        return node.shape
    value = node.value if issubclass(node.type, int | str) else None
    return node.type, value, [(step, _signature(part)) for step, part in node.parts.items()]


def _sizes(node: _Node | None) -> set[int]:
    """Return the lengths of all axes and containers."""
    if node is None:
        return set()
    return {*(node.shape or ()), len(node.parts)}.union(*map(_sizes, node.parts.values()))


def _lengths(node: _Node, place: Place) -> Iterator[tuple[Place, int]]:
    """Iterate over arrays and numbered containers, with the length of their first axis."""
    if node.shape:
        yield place, node.shape[0]
    elif issubclass(node.type, list | tuple | collections.deque) and node.parts:
        yield place, len(node.parts)
    for step, part in node.parts.items():
        yield from _lengths(part, (*place, step))


# ---- names


def _is_parameter(roots: Any, place: Place) -> bool:
    """Tell if MLX counts what is at a place among the model's parameters or modules."""
    if not place or place[0] != ("item", "model"):
        return False
    node = roots["model"]
    for kind, key in place[1:]:
        if kind != "item" or (isinstance(node, nn.Module) and str(key).startswith("_")):
            return False
        if not isinstance(node, nn.Module | dict | list | tuple):
            return False
        node = _get(node, ((kind, key),))
    return True


def _name(roots: Any, place: Place) -> str:
    """Return how a part is written in Python."""
    text, node = "", roots
    for kind, key in place:
        if not text:
            text = str(key)
        elif kind == "variable":
            text += f".{node.__code__.co_freevars[key]}"
        elif kind == "item" and not isinstance(node, nn.Module):
            text += f"[{key!r}]"
        else:
            text += f".{key}"
        node = _get(node, ((kind, key),))
    return text


def _listed(roots: Any, places: Sequence[Place]) -> str:
    names = list(dict.fromkeys(_name(roots, place) for place in places))
    return ", ".join(names[:_MAX_NAMES]) + (" and others" if len(names) > _MAX_NAMES else "")
