"""Read and replace the vectors that a model makes of tokens.

Tokens are integers and have no gradient, so a model that takes them is differentiated with respect
to its tokens' vectors. These are outputs of modules, such as an embedding, or arguments of modules,
such as rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..arrays import to_mlx
from ..held_out import HeldOutBatch
from .capture import Around, Tap
from .errors import ModelError
from .pytrees import Path, get_leaf, modules, replace_leaf
from .random_states import random_states, restore_random_states

__all__ = ["Embedding", "Place", "changed_call"]


@dataclass(frozen=True)
class Place:
    """Say where one call holds vectors of tokens.

    Attributes:
        path: The path of the module.
        number: The number of the call.
        leaf: The path of the array in the output, or in ``(args, kwargs)``.
        is_input: True for an argument.
        steps: ``(k,)``, the time steps of the ``k`` vectors of each sequence; -1 for a vector that
            doesn't depend on the tokens, as of a start token.
        batch_first: True if the ``k`` vectors of one sequence follow each other.
        entries: The entries of the last axis that hold the vector; others, such as an elapsed time
            that is joined with it, are left alone.
        columns: Where the vectors are on the last axis of the vectors of all places.
    """

    path: str
    number: int
    leaf: Path
    is_input: bool
    steps: tuple[int, ...]
    batch_first: bool
    entries: tuple[int, ...]
    columns: tuple[int, int] = (0, 0)

    def take(self, array: mx.array, batch: int) -> dict[int, mx.array]:
        """Return the vectors ``(batch, E)`` in an array of the call, by time step."""
        count = len(self.steps)
        if self.batch_first:
            rows = array.reshape(batch, count, -1)
        else:
            rows = array.reshape(count, batch, -1).swapaxes(0, 1)
        if len(self.entries) < rows.shape[-1]:
            rows = rows[..., mx.array(self.entries)]
        return {t: rows[:, i] for i, t in enumerate(self.steps) if t >= 0}

    def put(self, array: mx.array, vectors: mx.array) -> mx.array:
        """Return the array with ``vectors``, ``(batch, T, E)``, in place of its own."""
        start, stop = self.columns
        count, width = len(self.steps), array.shape[-1]
        if vectors.shape[0] * count * width != array.size:
            raise ModelError(
                f"{self.path} has an array of shape {tuple(array.shape)} for "
                f"{vectors.shape[0]} sequences, in which the vectors of tokens can't be found: "
                "let the model treat batches of any size alike"
            )
        new = vectors[:, :, start:stop][:, to_mlx(np.maximum(self.steps, 0))]
        known = np.broadcast_to(np.array(self.steps)[None, :, None] >= 0, (1, count, width))
        if len(self.entries) < width:
            # Where an entry comes from; what others get doesn't matter.
            source = np.zeros(width, int)
            source[list(self.entries)] = np.arange(len(self.entries))
            new = new[..., to_mlx(source)]
            known = known & np.isin(np.arange(width), self.entries)
        if not self.batch_first:
            new, known = new.swapaxes(0, 1), known.swapaxes(0, 1)
        new = new.astype(array.dtype)
        if not known.all():
            new = mx.where(to_mlx(known), new, array.reshape(new.shape))
        return new.reshape(array.shape)


class _AllTaken(BaseException):
    """End a run of the model once the vectors of all tokens are known."""


# By path of a module and number of a call.
_ByCall: TypeAlias = "dict[tuple[str, int], list[Place]]"


class Embedding:
    """Read and replace the vectors of tokens.

    Args:
        places: Where they are.
        steps: Number of time steps.
        direct: Path of a module that returns all vectors if called on the tokens, or None.
        note: What the user should know, or "".
    """

    def __init__(
        self, places: Sequence[Place], steps: int, direct: str | None = None, note: str = ""
    ) -> None:
        self.note = note
        self._places, self._steps, self._direct = places, steps, direct
        self._by_call: _ByCall = {}
        for place in places:
            self._by_call.setdefault((place.path, place.number), []).append(place)
        self._tap = Tap()

    def vectors(
        self, model: nn.Module, held_out: HeldOutBatch, call: Callable[[], Any]
    ) -> mx.array:
        """Return the vectors ``(B, T, E)`` of the batch's tokens.

        Args:
            model: The model.
            held_out: The batch.
            call: Runs the model on the batch. It is ended early, and has no effect on the model.
        """
        if self._direct is not None:
            vectors: mx.array = dict(modules(model))[self._direct](held_out.inputs)
            return vectors
        batch = len(held_out)
        taken: dict[tuple[int, int], dict[int, mx.array]] = {}
        left = {id(place) for place in self._places}

        def take(place: Place, array: mx.array) -> mx.array:
            table = taken.setdefault(place.columns, {})
            for step, vector in place.take(array, batch).items():
                table.setdefault(step, vector)
            left.discard(id(place))
            if not left:
                raise _AllTaken
            return array

        with _contents_restored(model), self._tapping(model, take), suppress(_AllTaken):
            call()
        if left:
            raise ModelError(
                "the model made fewer calls than before, so the vectors of some tokens are "
                "missing: let it make the same calls for all sequences of one length"
            )
        parts = []
        for _, table in sorted(taken.items()):
            # A token that the model never reads, such as the last one, has no vector.
            missing = mx.zeros_like(next(iter(table.values())))
            parts.append(mx.stack([table.get(t, missing) for t in range(self._steps)], axis=1))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)

    def run(self, model: nn.Module, vectors: mx.array, call: Callable[[], mx.array]) -> mx.array:
        """Run ``call()`` with ``vectors``, ``(n B, T, E)``, in place of the tokens' own."""
        with self._tapping(model, lambda place, array: place.put(array, vectors)):
            return call()

    @contextmanager
    def _tapping(
        self, model: nn.Module, change: Callable[[Place, mx.array], mx.array]
    ) -> Iterator[None]:
        self._tap.forget()
        found = dict(modules(model))
        paths = dict.fromkeys(place.path for place in self._places)
        with self._tap.on([(found[path], self._around(path, change)) for path in paths]):
            yield

    def _around(self, path: str, change: Callable[[Place, mx.array], mx.array]) -> Around:
        calls = 0

        def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal calls
            places = self._by_call.get((path, calls), [])
            calls += 1
            return changed_call(places, change, call, args, kwargs)

        return wrapper


def changed_call(
    places: Sequence[Place],
    change: Callable[[Place, mx.array], mx.array],
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run a call with other arrays at some places."""
    given: Any = (args, kwargs)
    for place in places:
        if place.is_input:
            given = replace_leaf(given, place.leaf, change(place, get_leaf(given, place.leaf)))
    output = call(*given[0], **given[1])
    for place in places:
        if not place.is_input:
            output = replace_leaf(output, place.leaf, change(place, get_leaf(output, place.leaf)))
    return output


@contextmanager
def _contents_restored(model: nn.Module) -> Iterator[None]:
    """Restore what modules hold, and the random states, after a run that doesn't count."""
    # Not ModelCopy.preserved, which would also restore parameters that an analysis has changed.
    states = random_states()
    held = [(m, dict(m), dict(m.__dict__)) for _, m in modules(model)]
    try:
        yield
    finally:
        restore_random_states(states)
        for module, items, attributes in held:
            dict.clear(module)
            dict.update(module, items)
            module.__dict__.clear()
            module.__dict__.update(attributes)
