"""Verify that states and activations belong to the sequences of the held-out batch.

A model may sort its sequences, keep units before the batch, or put both directions along one axis.
Other inputs for a set of sequences must move the values of these sequences, and no others. If they
move as many others, the sets of which a row moves show whose it is. The few sequences that are
tried may be sorted already: then their rows stay in place if the sequences change places. If
sequences act on each other, they must move the rows of the sequences whose outputs they move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...arrays import to_numpy
from ..recording import Call
from ..time_order import Mask, Steps
from .independence import other_values
from .perturb import Rerun, codes, moved

__all__ = ["PlacedRows", "Rows", "moved_rows", "sequences_of_rows"]

# Relative to the largest value: other rows may change the order of summation.
_ROUNDING, _TOLERANCE = 1e-6, 1e-3

_Arrays = list[mx.array]


class PlacedRows(NamedTuple):
    """Say how the rows of arrays belong to sequences.

    Attributes:
        axis: The batch axis.
        wrong: Why they belong to no single sequences; "" if they do.
        rows: ``(B,)``, the sequence in each row; () for the order of the batch.
    """

    axis: int
    wrong: str = ""
    rows: tuple[int, ...] = ()


def moved_rows(before: Sequence[mx.array], after: Sequence[mx.array], axis: int) -> Mask:
    """Return ``(B,)``, the rows along an axis in which some array of several differs."""
    changes = np.stack([moved(a, b) for a, b in zip(before, after, strict=True)])
    rows = np.moveaxis(changes, axis + 1, 0)
    return np.asarray(rows.reshape(len(rows), -1).any(axis=1))


def sequences_of_rows(moves: Mask, changed: Mask) -> tuple[int, ...]:
    """Return the sequence in each row, from what moves; () if rows belong to no single sequences.

    Args:
        moves: ``(K, B)``, the rows that move with each set of sequences.
        changed: ``(K, B)``, the sets, of which no two sequences are in the same ones.
    """
    sequences = {column.tobytes(): number for number, column in enumerate(changed.T)}
    rows = [sequences.get(column.tobytes(), -1) for column in moves.T]
    return tuple(rows) if sorted(rows) == list(range(changed.shape[1])) else ()


def _tolerance(values: npt.NDArray[np.floating[Any]], axis: int) -> float:
    """Return by how much rows along an axis may differ that are those of one sequence."""
    size = float(np.nan_to_num(np.abs(values), posinf=0.0).max(initial=0.0))
    # Rows may differ by little, and rounding differs by less.
    apart = float(np.nan_to_num(np.ptp(values, axis=axis), posinf=0.0).max(initial=0.0))
    return max(_ROUNDING * size, min(_TOLERANCE * size, apart / 100))


def _all_differ(arrays: _Arrays, axis: int) -> bool:
    """Return whether no two rows along an axis are equal in all arrays."""
    values = np.moveaxis(np.stack([to_numpy(array) for array in arrays]), axis + 1, 0)
    return len(np.unique(values.reshape(len(values), -1), axis=0)) == len(values)


class Rows:
    """Find the batch axis of arrays that are recorded in the calls of a model.

    Args:
        rerun: The run in which the calls were recorded.
        changed: ``(K, B)``, sets of sequences.
        runs: The calls of ``K`` runs in which these sequences have other inputs.
    """

    def __init__(self, rerun: Rerun, changed: Mask, runs: Sequence[Sequence[Call]]) -> None:
        self._rerun, self._changed, self._runs = rerun, changed, runs
        self._batch = len(rerun.trial.inputs)
        self._reordered: dict[str, tuple[Steps, list[Call] | None]] = {}
        self._coupled: tuple[Mask, list[list[Call]]] | None = None

    def placed(
        self, read: Callable[[Sequence[Call]], _Arrays | None], *, only: int | None = None
    ) -> PlacedRows:
        """Return the batch axis of arrays and whose their rows are, or why that is unknown.

        Args:
            read: Returns the arrays, of one shape, given the calls of a run; None if they are
                missing.
            only: The one axis to consider; None: all.
        """
        before = read(self._rerun.calls)
        if before is None or len({array.shape for array in before}) != 1:
            return PlacedRows(0, "its arrays have different shapes")
        shape = before[0].shape
        axes = [
            axis for axis, size in enumerate(shape) if size == self._batch and only in (None, axis)
        ]
        if not axes:
            return PlacedRows(0, f"they have shape {tuple(shape)} for {self._batch} sequences")
        if self._batch == 1:
            return PlacedRows(axes[0])
        moves = self._moves(before, read, axes, self._runs)
        if moves is None:
            return PlacedRows(axes[0])
        for axis, rows in moves.items():
            if rows.any() and not (rows & ~self._changed).any():
                if self._stays_in_place(before, read, axis):
                    return PlacedRows(axis, rows=tuple(range(self._batch)))
                # Rows that don't move may be those of any sequence, as where no spike comes.
                all_move = not (self._changed & ~rows).any()
                if all_move or all(
                    self._moves_with_sequences(before, read, axis, other, unless_unknown=True)
                    for other in ("shuffled", "rotated")
                ):
                    return PlacedRows(axis)
        for axis, rows in moves.items():
            order = sequences_of_rows(rows, self._changed)
            if order:
                return PlacedRows(axis, rows=order)
        for axis in axes:
            # Where rows are equal, others than those of the batch may move so by chance.
            others = ("shuffled",) if _all_differ(before, axis) else ("shuffled", "rotated")
            if all(self._moves_with_sequences(before, read, axis, other) for other in others):
                return PlacedRows(axis)
        moved_outputs, runs = self._outputs_moved()
        # Sequences that move alike can't be distinguished.
        if len(np.unique(moved_outputs, axis=1).T) == self._batch:
            for axis, rows in (self._moves(before, read, axes, runs) or {}).items():
                if np.array_equal(rows, moved_outputs):
                    return PlacedRows(axis)
        return PlacedRows(0, "other inputs for one sequence change the rows of others")

    def _moves(
        self,
        before: _Arrays,
        read: Callable[[Sequence[Call]], _Arrays | None],
        axes: Sequence[int],
        runs: Sequence[Sequence[Call]],
    ) -> dict[int, Mask] | None:
        """Return ``(K, B)`` for each axis: the rows that move with each set of sequences."""
        moves: dict[int, list[Any]] = {axis: [] for axis in axes}
        for calls in runs:
            after = read(calls)
            if after is None or any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
                return None
            for axis in axes:
                moves[axis].append(moved_rows(before, after, axis))
        if not runs:
            return None
        return {axis: np.stack(rows) for axis, rows in moves.items()}

    def _outputs_moved(self) -> tuple[Mask, list[list[Call]]]:
        """Return ``(K, B)``, the outputs that move with sets of sequences, and the ``K`` runs.

        A set and its complement are asked about, as a sequence may move with all that hold another.
        """
        if self._coupled is None:
            inputs, outputs = self._rerun.trial.inputs, self._rerun.outputs
            sets = codes(self._batch)
            rows, runs = [], []
            for changed in (*sets, *~sets):
                found = self._rerun(other_values(inputs, "inputs", changed))
                if found is not None and found[1].shape == outputs.shape:
                    changes = moved(outputs, found[1]).reshape(self._batch, -1)
                    rows.append(np.asarray(changes.any(axis=1)))
                    runs.append(found[0])
            self._coupled = np.array(rows, bool).reshape(-1, self._batch), runs
        return self._coupled

    def _stays_in_place(
        self, before: _Arrays, read: Callable[[Sequence[Call]], _Arrays | None], axis: int
    ) -> bool:
        """Return whether some rows keep their values if the sequences are passed in reverse."""
        _, after = self._in_another_order(before, read, "reversed")
        if after is None:
            return False
        values, others = (np.stack([to_numpy(a) for a in part]) for part in (before, after))
        rows = [np.moveaxis(a, axis + 1, 0).reshape(self._batch, -1) for a in (values, others)]
        tolerance = _tolerance(values, axis + 1)
        same, moves = (
            np.isclose(rows[1], wanted, rtol=0, atol=tolerance, equal_nan=True).all(axis=1)
            for wanted in (rows[0], rows[0][::-1])
        )
        return bool((same & ~moves).any())

    def _moves_with_sequences(
        self,
        before: _Arrays,
        read: Callable[[Sequence[Call]], _Arrays | None],
        axis: int,
        other: str = "shuffled",
        *,
        unless_unknown: bool = False,
    ) -> bool:
        """Return whether rows change places as the sequences do.

        Args:
            before: The arrays of the unchanged run.
            read: Returns the arrays of another run.
            axis: The batch axis.
            other: The other order, see :meth:`_in_another_order`.
            unless_unknown: What to return if the model runs no other order of the sequences.
        """
        order, after = self._in_another_order(before, read, other)
        if after is None:
            return unless_unknown
        for a, b in zip(before, after, strict=True):
            wanted, actual = np.take(to_numpy(a), order, axis=axis), to_numpy(b)
            tolerance = _tolerance(wanted, axis)
            if not np.allclose(actual, wanted, rtol=0, atol=tolerance, equal_nan=True):
                return False
        return True

    def _in_another_order(
        self, before: _Arrays, read: Callable[[Sequence[Call]], _Arrays | None], name: str
    ) -> tuple[Steps, _Arrays | None]:
        """Return another order of the sequences, and the arrays of a run in it, if it has them.

        Args:
            before: The arrays of the unchanged run.
            read: Returns the arrays of another run.
            name: The order: "reversed", "rotated" by one, or "shuffled".
        """
        if name not in self._reordered:
            backward: Steps = np.arange(self._batch)[::-1]
            order: Steps = np.random.default_rng(0).permutation(self._batch)
            if name == "rotated":
                order = np.roll(backward[::-1], 1)
            elif name == "reversed" or (order == np.arange(self._batch)).all():
                order = backward
            other = self._rerun.of(self._rerun.trial.reordered(order))
            self._reordered[name] = order, None if other is None else other.calls
        order, calls = self._reordered[name]
        after = None if calls is None else read(calls)
        if after is None or any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
            return order, None
        return order, after
