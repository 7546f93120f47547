"""Find the vectors that a model makes of tokens.

Which entry of which call belongs to which token is found by changing tokens: an entry that holds
the vector of one token changes with this token alone. All places together are right if no other
tokens change the outputs while the vectors stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..arrays import to_mlx, to_numpy
from ..held_out import HeldOutBatch
from .embedding import Embedding, Place, changed_call
from .model_copy import ModelCopy
from .pytrees import Path
from .recording import Call, record

__all__ = ["NO_VECTORS", "find_embedding"]

NO_VECTORS = (
    "tokens have no gradient, and no vectors were found that the model makes of them: no module "
    "returns or receives exactly one vector for each token. Let a module of its own make them, "
    "such as nn.Embedding, or set method='occlusion', which needs no gradient. If the integers are "
    "measurements, pass inputs[..., None].astype(mx.float32)"
)
# Groups of calls that are tried for one model.
_MAX_GROUPS = 8
_CONSTANT = -1  # a row that moves with no token


def find_embedding(
    copy: ModelCopy, held_out: HeldOutBatch, call: Callable[[Any, mx.array | None], mx.array]
) -> Embedding | None:
    """Find the vectors that a model makes of tokens; return None if there are none.

    Args:
        copy: The copy of the model.
        held_out: A batch of few sequences of tokens.
        call: Returns the outputs, given inputs and elapsed times.
    """
    return _Finder(copy, held_out, call).find()


# By path of a module, whether it is an argument, and path of the array there.
_Key: TypeAlias = "tuple[str, bool, Path]"
_Numbers: TypeAlias = "npt.NDArray[np.int_]"
_Moved: TypeAlias = "npt.NDArray[np.bool_]"


@dataclass(eq=False)
class _Run:
    """Hold one recorded run.

    Attributes:
        calls: The calls by path of the module and number.
        outputs: The outputs of the model.
    """

    calls: dict[tuple[str, int], Call]
    outputs: npt.NDArray[Any]
    _rows: dict[_Key, npt.NDArray[np.float32] | None] = field(default_factory=dict)

    def candidates(self) -> Iterator[_Key]:
        """Iterate over the arrays of first calls that may hold vectors."""
        for (path, number), call in self.calls.items():
            for is_input, arrays in ((False, call.outputs), (True, call.inputs)):
                for leaf, array in arrays.items() if number == 0 else ():
                    if array.ndim > 1 and array.size and mx.issubdtype(array.dtype, mx.floating):
                        yield path, is_input, leaf

    def arrays(self, key: _Key) -> list[mx.array]:
        """Return the array of each call of a module; fewer if a call has none."""
        path, is_input, leaf = key
        found, number = [], 0
        while (call := self.calls.get((path, number))) is not None:
            array = (call.inputs if is_input else call.outputs).get(leaf)
            if array is not None:
                found.append(array)
            number += 1
        return found if len(found) == number else []

    def rows(self, key: _Key) -> npt.NDArray[np.float32] | None:
        """Return the rows ``(n, E)`` of all calls; None if they have no arrays of one width."""
        if key not in self._rows:
            arrays = self.arrays(key)
            widths = {array.shape[-1] if array.ndim > 1 else 0 for array in arrays}
            one_width = len(widths) == 1 and 0 not in widths
            # One conversion is much faster than one for each call.
            self._rows[key] = (
                to_numpy(mx.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays]))
                if one_width
                else None
            )
        return self._rows[key]

    def changes(self, key: _Key, base: _Run) -> npt.NDArray[np.bool_] | None:
        """Return which entries ``(n, E)`` differ from another run; None if shapes differ."""
        x, y = self.rows(key), base.rows(key)
        if x is None or y is None or x.shape != y.shape:
            return None
        differ: npt.NDArray[np.bool_] = (x != y) & ~(np.isnan(x) & np.isnan(y))
        return differ


class _Finder:
    """Change tokens of a small batch, and see which arrays of which calls change."""

    def __init__(
        self,
        copy: ModelCopy,
        held_out: HeldOutBatch,
        call: Callable[[Any, mx.array | None], mx.array],
    ) -> None:
        self._copy, self._held_out, self._call = copy, held_out, call
        self._tokens = np.array(held_out.inputs)
        self._batch, self._steps = self._tokens.shape
        self._others = self._other_tokens()

    def _other_tokens(self) -> npt.NDArray[Any] | None:
        """Return another token for each, of those of real steps; None if all are equal."""
        real = np.unique(self._tokens[self._held_out.mask_array])
        if len(real) < 2:
            return None
        after = np.searchsorted(real, self._tokens, side="right")
        others: npt.NDArray[Any] = real[after % len(real)].astype(self._tokens.dtype)
        return others

    def find(self) -> Embedding | None:
        base = self._run(self._tokens)
        direct = self._direct(base)
        if direct is not None and not self._unexplained(base, [direct]):
            return Embedding([direct], self._steps, direct.path)
        if self._others is None:
            return None
        groups = self._groups(base)
        chosen: list[list[Place]] = []
        while len(chosen) < _MAX_GROUPS:
            found = self._frozen([place for group in chosen for place in group], base)
            if found is None:
                return None
            if not self._differ(found.outputs, base.outputs):
                return self._embedding(chosen, base) if chosen else None
            upstream = [
                g
                for key, g in groups.items()
                if g not in chosen and _moved(found.changes(key, base))
            ]
            if not upstream:
                break
            chosen.append(upstream[0])
        note = (
            "tokens also reach the outputs in another way than by their vectors, as a mask made of "
            "them does: attributions hold what goes through the vectors alone"
        )
        return self._embedding(chosen, base, note) if chosen else None

    # ---- runs

    def _run(
        self,
        tokens: npt.NDArray[Any],
        frozen: Mapping[tuple[str, int], list[tuple[Place, mx.array]]] | None = None,
        *,
        others: bool = False,
    ) -> _Run:
        """Record a run of these tokens, with ``frozen`` arrays, or all other inputs changed."""
        held_out, delta = self._held_out, self._held_out.flat_time_delta
        if others:
            held_out = held_out.take(np.arange(self._batch)[::-1].copy())
            delta = None if delta is None else 1.5 * delta
        kept: list[mx.array] = []

        def run() -> None:
            kept.append(self._call(held_out.pack(to_mlx(tokens)), delta))

        def run_call(
            this: Call, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            pairs = (frozen or {}).get((this.path, this.number), [])
            arrays = {id(place): array for place, array in pairs}
            return changed_call(
                [place for place, _ in pairs],
                lambda place, _: arrays[id(place)],
                call,
                args,
                kwargs,
            )

        with self._copy.preserved():
            calls, _ = record(self._copy.model, run, run_call if frozen else None)
            outputs = np.array(kept[-1].astype(mx.float32))
        return _Run({(call.path, call.number): call for call in calls}, outputs)

    def _differ(self, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
        return a.shape != b.shape or not np.array_equal(a, b, equal_nan=True)

    def _frozen(self, places: Sequence[Place], base: _Run) -> _Run | None:
        """Return a run in which all tokens are others, and the vectors at ``places`` are not.

        It is None if tokens are all equal, or others change which calls the model makes.
        """
        if self._others is None:
            return None
        frozen: dict[tuple[str, int], list[tuple[Place, mx.array]]] = {}
        for place in places:
            at = (place.path, place.number)
            arrays = base.calls[at].inputs if place.is_input else base.calls[at].outputs
            frozen.setdefault(at, []).append((place, arrays[place.leaf]))
        # A model may read the length of a sequence from its padding.
        others = np.where(self._held_out.mask_array, self._others, self._tokens)
        found = self._run(others, frozen)
        return found if list(found.calls) == list(base.calls) else None

    def _unexplained(self, base: _Run, places: Sequence[Place]) -> bool | None:
        """Return whether tokens reach the outputs past ``places``; None if that is uncertain."""
        found = self._frozen(places, base)
        return None if found is None else self._differ(found.outputs, base.outputs)

    # ---- candidates

    def _direct(self, base: _Run) -> Place | None:
        """Return the output of the first module that takes the tokens themselves, all of them."""
        tokens = self._held_out.inputs
        for (path, number), call in base.calls.items():
            if len(call.inputs) != 1 or len(call.outputs) != 1 or call.children or number:
                continue
            ((leaf, array),) = call.outputs.items()
            if (
                leaf == ()
                and next(iter(call.inputs)) == (0, 0)
                and mx.issubdtype(array.dtype, mx.floating)
                and tuple(array.shape[:-1]) == self._tokens.shape
                and _same(next(iter(call.inputs.values())), tokens)
                and (path, 1) not in base.calls
            ):
                width, steps = array.shape[-1], tuple(range(self._steps))
                entries = tuple(range(width))
                return Place(path, 0, leaf, False, steps, True, entries, (0, width))
        return None

    def _groups(self, base: _Run) -> dict[_Key, list[Place]]:
        """Return, best first, groups of arrays that hold one token's vector in each row."""
        others = self._run(self._tokens, others=True)
        groups: dict[_Key, list[Place]] = {}
        for key, (tokens, moved) in self._rows_of_tokens(base).items():
            entries = self._entries(key, moved, base, others)
            arrays = base.arrays(key)
            ends = np.cumsum([array.size // array.shape[-1] for array in arrays])
            places = [
                self._place(key, number, part, entries, array)
                for number, (part, array) in enumerate(
                    zip(np.split(tokens, ends[:-1]), arrays, strict=True)
                )
            ]
            whole = [place for place in places if place is not None]
            if entries and len(whole) == len(places):
                groups[key] = whole
        # Outputs of the innermost modules first, and arguments last.
        order = {path: i for i, path in enumerate(dict.fromkeys(p for p, _ in base.calls))}

        def rank(key: _Key) -> tuple[bool, bool, int]:
            return key[1], bool(base.calls[key[0], 0].children), order[key[0]]

        return {key: groups[key] for key in sorted(groups, key=rank)}

    def _rows_of_tokens(self, base: _Run) -> dict[_Key, tuple[_Numbers, _Moved]]:
        """Return the token of each row, and which entries of a row move with it.

        Tokens are numbered along the batch, then time. A run for each binary digit changes the
        tokens whose number has that digit, and another run changes all others.

        Returns:
            For arrays whose every row moves with one token or none: ``(rows,)`` numbers of tokens,
            and ``(E,)`` booleans. The rows are those of all calls.
        """
        assert self._others is not None
        numbers = np.arange(self._tokens.size).reshape(self._tokens.shape)
        digits = max(1, int(self._tokens.size - 1).bit_length())
        left: dict[_Key, tuple[_Numbers, _Numbers, _Moved]] = {
            key: (np.zeros(len(rows), int), np.zeros(len(rows), int), np.zeros(rows.shape[1], bool))
            for key in base.candidates()
            if (rows := base.rows(key)) is not None
        }
        for digit in range(digits):
            pair = []
            for wanted in (1, 0):
                changed = np.where((numbers >> digit & 1) == wanted, self._others, self._tokens)
                run = self._run(changed)
                if list(run.calls) != list(base.calls):
                    return {}
                pair.append(run)
            # An array with a row that moves with several tokens is dropped here.
            for key, (token, times, moved) in list(left.items()):
                with_digit, without = (run.changes(key, base) for run in pair)
                if with_digit is None or without is None:
                    del left[key]
                    continue
                own, other = with_digit.any(axis=1), without.any(axis=1)
                if (own & other).any():
                    del left[key]
                    continue
                token += own.astype(int) << digit
                times += own | other
                moved |= np.asarray(with_digit.any(axis=0) | without.any(axis=0))
        return {
            key: (np.where(times == 0, _CONSTANT, token), moved)
            for key, (token, times, moved) in left.items()
            if moved.any() and np.isin(times, (0, digits)).all()
        }

    def _entries(self, key: _Key, moved: _Moved, base: _Run, others: _Run) -> tuple[int, ...]:
        """Return the entries of the last axis that hold a vector; none if they hold more.

        A vector may be joined with elapsed times, companions or positions. If these were replaced,
        too, their own effect would be hidden, or attributed to the token.
        """
        rows = base.rows(key)
        assert rows is not None
        # Columns of a one-hot vector stay 0 until their token comes.
        joined = np.asarray((rows != 0).any(axis=0) & ~moved)
        changes = others.changes(key, base)
        if changes is not None:
            joined = np.asarray(joined | changes.any(axis=0))
        return () if (joined & moved).any() else tuple(np.flatnonzero(~joined).tolist())

    def _place(
        self,
        key: _Key,
        number: int,
        tokens: _Numbers,
        entries: tuple[int, ...],
        array: mx.array,
    ) -> Place | None:
        """Return where a call's vectors are; None if rows aren't in order of sequence or step."""
        if len(tokens) % self._batch:
            return None
        count = len(tokens) // self._batch
        ways = [(True, tokens.reshape(self._batch, count)), (False, tokens.reshape(count, -1).T)]
        if self._batch == 1 and array.ndim > 2 and array.shape[0] > 1:
            ways.reverse()  # both fit one sequence; its axis is another than the first
        for batch_first, numbers in ways:
            own = np.where(numbers >= 0, numbers // self._steps, np.arange(self._batch)[:, None])
            each = np.where(numbers >= 0, numbers % self._steps, _CONSTANT)
            steps = each.max(axis=0)
            if (own == np.arange(self._batch)[:, None]).all() and (
                (each == steps) | (numbers < 0)
            ).all():
                path, is_input, leaf = key
                when = tuple(steps.tolist())
                return Place(path, number, leaf, is_input, when, batch_first, entries)
        return None

    def _embedding(
        self, chosen: Sequence[Sequence[Place]], base: _Run, note: str = ""
    ) -> Embedding:
        """Return what reads and replaces the vectors of the chosen groups."""
        places: list[Place] = []
        width = 0
        for group in chosen:
            # One token may be read repeatedly, as by an encoder and a decoder with one embedding.
            tables: list[tuple[tuple[int, int], dict[int, npt.NDArray[Any]]]] = []
            first = group[0]
            arrays = base.arrays((first.path, first.is_input, first.leaf))
            for place in group:
                taken = place.take(arrays[place.number], self._batch)
                vectors = {t: to_numpy(vector) for t, vector in taken.items()}
                for columns, table in tables:
                    if columns[1] - columns[0] == len(place.entries) and all(
                        np.array_equal(table[t], v) for t, v in vectors.items() if t in table
                    ):
                        break
                else:
                    columns, table = (width, width + len(place.entries)), {}
                    tables.append((columns, table))
                    width = columns[1]
                table.update(vectors)
                places.append(replace(place, columns=columns))
        return Embedding(places, self._steps, note=note)


def _same(a: mx.array, b: mx.array) -> bool:
    return a.shape == b.shape and bool(mx.array_equal(a, b))


def _moved(changes: npt.NDArray[np.bool_] | None) -> bool:
    return changes is not None and bool(changes.any())
