"""Check if sequences act on each other: their outputs then depend on the rest of the batch.

Examples are inputs or elapsed times that a model standardises over the batch, attention over the
batch, and elapsed times of the first sequence that are used for all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import TypeAlias

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ...arrays import to_mlx, to_numpy
from ...held_out import HeldOutBatch
from ...results import FloatArray
from ..errors import ModelError
from ..model_copy import ModelCopy
from ..random_states import random_states
from .outputs import check_batch_axis
from .perturb import with_other_steps

__all__ = ["Run", "check_own_inputs", "coupling_note", "find_coupling", "other_values"]

# The outputs of a batch.
Run: TypeAlias = "Callable[[HeldOutBatch], mx.array]"
Mask: TypeAlias = "npt.NDArray[np.bool_]"

# Differences that count, in units of the largest output. Rows of a matrix product are computed
# alike in batches of one size; with other sizes the order of summation differs.
_SAME_SIZE, _OTHER_SIZE, _HALF_PRECISION = 1e-6, 1e-3, 0.1
# Sequences that are run: one is repeated, since variants of it would share a batch, too.
_FEWEST, _MOST = 4, 16
# Sequences whose targets are compared.
_TARGETS = 4


def find_coupling(
    copy: ModelCopy, run: Run, held_out: HeldOutBatch, *, any_size: bool
) -> tuple[str, ...]:
    """Return the channels through which sequences act on each other.

    Every other sequence is changed, in one channel at a time, and the outputs of those between are
    compared. Then parts of the batch are run alone.

    Args:
        copy: The model, which is restored before each run.
        run: Runs the model.
        held_out: The batch, of which at most 16 sequences are run if the model permits.
        any_size: True if the model runs any number of sequences.

    Returns:
        Names of :attr:`HeldOutBatch.arrays`, or ``("position",)`` if the outputs depend on the
        place in the batch or on its size; empty if sequences don't act on each other.

    Raises:
        ModelError: If the model runs over the batch as though it were time.
    """
    if not any_size and len(held_out) < 2:
        return ()
    batch = held_out
    if any_size and len(held_out) < _FEWEST:
        batch = held_out.take(np.arange(_FEWEST) % len(held_out))
    elif any_size and len(held_out) > _MOST:
        batch = held_out.take(held_out.spread(_MOST))
    check = _Check(copy, run, batch)
    even = np.arange(len(batch)) % 2 == 0
    if any(check.reaches(batch.arrays, changed) for changed in (even, ~even)):
        names = tuple(batch.arrays)
        found = names
        if len(names) > 1:
            found = tuple(
                name
                for name in names
                if any(check.reaches([name], changed) for changed in (even, ~even))
            )
        if "inputs" in found and check.steps_are_sequences() and not check.order_is_free():
            raise ModelError(
                "the outputs of a sequence depend on the order of the sequences in the batch, and "
                "the outputs of a time step on no other time step, as though the batch were time. "
                "For a model that takes (time, batch, features), pass forward=lambda model, "
                f"inputs, time_delta: {check.transposed_call}"
            )
        # Arrays that act only together still act.
        return found or names
    if any_size and not check.parts_agree() and not check.draws_random_numbers():
        return ("position",)
    return ()


def check_own_inputs(copy: ModelCopy, run: Run, held_out: HeldOutBatch, targets: mx.array) -> None:
    """Check that targets depend on the inputs of their own sequences.

    Args:
        copy: The model, which is restored before each run.
        run: Returns the targets ``(B,)`` of a batch.
        held_out: The batch, in which sequences act on each other.
        targets: The targets ``(B,)`` of this batch itself.

    Raises:
        ModelError: If half of the targets, or more, depend on other sequences only.
    """
    if len(held_out) < 2:
        return
    check = _Check(copy, run, held_out, targets)
    tried = held_out.spread(_TARGETS).tolist()
    of_others: list[int] = []
    for number, row in enumerate(tried, start=1):
        if check.depends_on_others_only(row):
            of_others.append(row)
        elif 2 * (number - len(of_others)) > len(tried):
            return
    if 2 * len(of_others) >= len(tried):
        raise ModelError(
            f"the outputs of sequence {of_others[0]} depend on other sequences of the batch and "
            "not on its own inputs: their first axis isn't the batch, or the model mixes up its "
            "axes, as reshape does where swapaxes is meant. Let the model, or forward=, return one "
            "row for each sequence, in the order of the batch"
        )


def coupling_note(channels: Collection[str]) -> str:
    """Return the note on sequences that act on each other; "" if they don't."""
    if not channels:
        return ""
    through = (
        "its place in the batch or on the number of sequences"
        if "position" in channels
        else f"the other sequences in the batch, through {' and '.join(channels)}"
    )
    effect = (
        "Gradients by them include the effect on the targets of the other sequences. "
        if {"inputs", "time_delta"} & set(channels)
        else ""
    )
    transposed = (
        ", or transpose in forward= if it takes (time, batch, features)"
        if "inputs" in channels
        else ""
    )
    return (
        f"the outputs of a sequence depend on {through}: each pass takes the whole held-out batch, "
        f"one variant at a time, which takes longer. {effect}If this isn't intended, compute each "
        "sequence independently in the model" + transposed
    )


class _Check:
    """Run variants of a batch, each from the same state of the model and random generators.

    Args:
        copy: The model, which is restored before each run.
        run: Runs the model.
        batch: The batch.
        outputs: What running it on this batch returns; None: it is run.
    """

    def __init__(
        self, copy: ModelCopy, run: Run, batch: HeldOutBatch, outputs: mx.array | None = None
    ) -> None:
        self._copy, self._run, self._batch = copy, run, batch
        self._outputs = self._outputs_of(batch) if outputs is None else outputs

    def _outputs_of(self, batch: HeldOutBatch) -> mx.array:
        with self._copy.preserved():
            outputs = self._run(batch)
            check_batch_axis(outputs, batch)
            mx.eval(outputs)
        return outputs

    def reaches(self, names: Collection[str], changed: Mask) -> bool:
        """Tell if a change of some sequences moves the outputs of the others."""
        now = self._outputs_of(self._varied(names, changed))
        others = to_mlx(np.flatnonzero(~changed))
        return not _agree(now[others], self._outputs[others], _SAME_SIZE)

    def _varied(self, names: Collection[str], changed: Mask) -> HeldOutBatch:
        batch = self._batch
        for name in names:
            batch = batch.replaced(name, other_values(batch.arrays[name], name, changed))
        return batch

    def depends_on_others_only(self, row: int) -> bool:
        """Tell if the outputs of a sequence follow inputs of others, and none of its own."""
        own = np.arange(len(self._batch)) == row
        before = to_numpy(self._outputs[row])
        scale = _scaled(_SAME_SIZE, to_numpy(self._outputs))

        def moves_with(changed: Mask) -> bool:
            now = to_numpy(self._outputs_of(self._varied(["inputs"], changed))[row])
            return not np.allclose(now, before, 0, scale, equal_nan=True)

        return not moves_with(own) and moves_with(~own)

    def steps_are_sequences(self) -> bool:
        """Tell if a change of a time step of all sequences reaches its own outputs alone.

        These are the outputs of this time step, or of the sequence of this number.
        """
        inputs, before = self._batch.inputs, to_numpy(self._outputs)
        batch, steps = inputs.shape[:2]
        asked = {0, steps // 2, steps - 1}
        alone = np.ones(before.ndim, bool)
        for step in asked:
            other, _ = with_other_steps(inputs, np.full(batch, step), np.ones(batch, bool))
            now = to_numpy(self._outputs_of(self._batch.replaced("inputs", other)))
            moved = ~np.isclose(now, before, 0, _scaled(_SAME_SIZE, before), equal_nan=True)
            for axis in range(before.ndim):
                along = moved.any(axis=tuple(i for i in range(before.ndim) if i != axis))
                alone[axis] &= np.flatnonzero(along).tolist() == [step]
            if not alone[:2].any():
                return False
        return len(asked) > 1 and bool(alone[:2].any())

    def order_is_free(self) -> bool:
        """Tell if outputs change places as sequences do, of which the first keeps its place.

        They do where sequences are standardised over the batch, or compared with the first one; in
        a model that runs over the batch they don't.
        """
        order = np.arange(len(self._batch))
        order[1:] = np.random.default_rng(0).permutation(order[1:])
        now = self._outputs_of(self._batch.take(order))
        return _agree(now, self._outputs[to_mlx(order)], _OTHER_SIZE)

    @property
    def transposed_call(self) -> str:
        """Return the call of a model that takes time first."""
        call = "model(inputs.swapaxes(0, 1))"
        return f"{call}.swapaxes(0, 1)" if self._outputs.ndim == 3 else call

    def parts_agree(self) -> bool:
        """Tell if the halves of the batch have the outputs alone that they have in it."""
        half = len(self._batch) // 2
        parts = (slice(0, half), slice(half, None))
        outputs = [self._outputs_of(self._batch.take(part)) for part in parts]
        # A batch that is cut to its longest sequence has other time steps.
        if any(part.shape[1:] != self._outputs.shape[1:] for part in outputs):
            return False
        found = mx.concatenate(outputs)
        half_precision = found.dtype in (mx.float16, mx.bfloat16)
        return _agree(found, self._outputs, _HALF_PRECISION if half_precision else _OTHER_SIZE)

    def draws_random_numbers(self) -> bool:
        """Tell if outputs depend on the seed: a part of a batch draws other numbers than it."""
        # Global generators that another thread may use can't be put back.
        own = random_states().numpy is not None
        found = []
        for seed in (0, 1):
            with self._copy.preserved():
                mx.random.seed(seed)
                if own:
                    np.random.seed(seed)  # noqa: NPY002
                    random.seed(seed)
                found.append(to_numpy(self._run(self._batch)))
        return not np.array_equal(found[0], found[1], equal_nan=True)


def _agree(a: mx.array, b: mx.array, tolerance: float) -> bool:
    x, y = to_numpy(a), to_numpy(b)
    return x.shape == y.shape and np.allclose(x, y, 0, _scaled(tolerance, y), equal_nan=True)


def _scaled(tolerance: float, values: FloatArray) -> float:
    """Return a tolerance in units of the largest value."""
    return tolerance * float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def other_values(array: mx.array, name: str, changed: Mask) -> mx.array:
    """Return an array with other values in some sequences."""
    where = to_mlx(changed).reshape(-1, *[1] * (array.ndim - 1))
    longer = mx.where(where, 1.5 * array, array).astype(array.dtype)
    if name == "time_delta":  # often equal in all sequences; and analyses scale it
        return longer
    flat = to_numpy(array).reshape(len(array), -1)
    source = np.arange(len(array))
    for i in np.flatnonzero(changed):
        # Of those that stay, so that the largest value of the batch is lost if it was changed; and
        # the nearest, as neighbours in a sorted batch keep it sorted.
        others = np.flatnonzero(~changed & (flat != flat[i]).any(axis=1))
        if len(others):
            source[i] = others[np.argmin(np.abs(others - i))]
    if (source != np.arange(len(array))).any():
        return array[to_mlx(source)]
    if array.ndim > 1:  # all sequences are equal: their own values in another order
        turned = mx.concatenate([array[:, 1:], array[:, :1]], axis=1)
        return mx.where(where, turned, array)
    return longer
