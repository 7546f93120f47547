"""Change one thing in a batch, and see which elements of an array move.

The replacements occur elsewhere in the batch, since a model may take columns for indices, and an
invented value could be one that it lacks.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...held_out import to_numpy

__all__ = ["codes", "moved", "with_other_sequences", "with_other_steps"]

Mask = npt.NDArray[np.bool_]


def moved(before: mx.array, after: mx.array) -> Mask:
    """Return the elements that differ between two arrays of one shape; NaN equals NaN."""
    x, y = to_numpy(before), to_numpy(after)
    return np.asarray((x != y) & ~(np.isnan(x) & np.isnan(y)))


def codes(count: int) -> Mask:
    """Return ``(K, count)``, sets of sequences by which every sequence can be told from the others.

    Sequence ``i`` is in set ``k`` if bit ``k`` of ``i + 1`` is set, so that ``K`` is the logarithm
    of the number of sequences, and each sequence is in a set.
    """
    bits = max(1, int(count).bit_length())
    return (np.arange(1, count + 1)[None] >> np.arange(bits)[:, None]) % 2 == 1


def with_other_sequences(array: mx.array, which: Mask) -> tuple[mx.array, Mask]:
    """Replace some sequences by others of the batch.

    Args:
        array: ``(B, ...)``: inputs, elapsed times or a companion.
        which: ``(B,)``, the sequences to replace.

    Returns:
        The changed array, and ``(B,)``, true at sequences that differ now. A sequence that all
        others equal can't be changed.
    """
    flat = to_numpy(array).reshape(len(array), -1)
    source = np.arange(len(array))
    for i in np.flatnonzero(which):
        differing = np.flatnonzero((flat != flat[i]).any(axis=1))
        if len(differing):
            # The nearest, as neighbours in a sorted batch keep it sorted.
            source[i] = differing[np.argmin(np.abs(differing - i))]
    return array[mx.array(source)], source != np.arange(len(array))


def with_other_steps(
    array: mx.array, steps: npt.NDArray[np.intp], real: Mask | None = None
) -> tuple[mx.array, Mask]:
    """Replace one time step of each sequence by another one, of itself or else of the batch.

    Args:
        array: ``(B, T, ...)``: inputs or elapsed times.
        steps: ``(B,)``, the time step to replace in each sequence.
        real: ``(B, T)``, true at real time steps, from which replacements are taken; None: all are.

    Returns:
        The changed array, and ``(B,)``, true at sequences that differ now. If all time steps of the
        batch are equal, none does.
    """
    batch, total = array.shape[:2]
    flat = to_numpy(array).reshape(batch * total, -1)
    usable = np.ones(batch * total, bool) if real is None else real.ravel()
    source = np.arange(batch * total)
    for i, step in enumerate(steps.tolist()):
        here = i * total + step
        differing = np.flatnonzero((flat != flat[here]).any(axis=1) & usable)
        if len(differing):
            own = differing[differing // total == i]
            source[here] = own[0] if len(own) else differing[0]
    changed = (source != np.arange(batch * total)).reshape(batch, total).any(axis=1)
    rows: Any = array.reshape(batch * total, *array.shape[2:])[mx.array(source)]
    return rows.reshape(array.shape), changed
