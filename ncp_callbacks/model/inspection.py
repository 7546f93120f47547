"""Find out how a copied model is called, and where its states and activations can be read."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..held_out import HeldOutBatch
from .capture import Tap
from .checks.batch_order import put_in_order
from .checks.independence import find_coupling, other_values
from .checks.perturb import Rerun, Trial, codes
from .checks.rows import moved_rows, sequences_of_rows
from .checks.state_between_batches import StateBetweenBatches, check_kept_size, find_state
from .conventions import Calling, Forward, find_calling
from .discovery import find_hook_points
from .embedding_finder import find_embedding
from .errors import ModelError
from .evidence import MAX_SEQUENCES
from .hook_points import CellHook, HookPoints, LayerHook
from .hook_recorder import HookRecorder
from .model_copy import ModelCopy
from .pass_arrays import Pass
from .sequence_caller import SequenceCaller
from .time_order import Mask

__all__ = ["Inspection", "inspect_model", "two_sequences"]

# Sequences that show how a model runs in which sequences act on each other.
_FEW = 4


@dataclass(frozen=True, eq=False)
class Inspection:
    """Hold what was found out about a model.

    Attributes:
        caller: Calls the model on the whole batch.
        hook_points: Where states and activations can be read.
        coupling: Channels through which sequences act on each other, see
            :func:`~.checks.independence.find_coupling`; empty if they don't.
        whole_batch_only: True if the model runs one number of sequences, or parts of the batch are
            run otherwise than the whole.
        few: Indices of a few sequences that the model runs in the same way as the whole batch,
            though not with the same results; None: there are none but the whole.
    """

    caller: SequenceCaller
    hook_points: HookPoints
    coupling: tuple[str, ...]
    whole_batch_only: bool
    few: npt.NDArray[np.intp] | None


def inspect_model(
    copy: ModelCopy,
    held_out: HeldOutBatch,
    state: StateBetweenBatches,
    *,
    state_is_known: bool,
    forward: Forward | None,
    horizon: bool | None,
    cells: Sequence[str] | None,
    layers: Sequence[str] | None,
    max_sequences: int | None,
) -> Inspection:
    """Run the copy a few times, mostly on the first two sequences of the batch.

    Args:
        copy: The copy of the model, restored to a snapshot, while compilation is off.
        held_out: The batch.
        state: The state between batches.
        state_is_known: True if another runner found that state; False: it is found now.
        forward: Calls the model; None: the calling convention is found automatically.
        horizon: True if axis 1 of the outputs holds the steps of a forecast; None: found.
        cells: Paths or globs of the modules to take as cells; None: found automatically.
        layers: Paths or globs of the modules to take as layers; None: found automatically.
        max_sequences: Largest number of sequences in one pass; None: all.

    Raises:
        ModelError: If model, batch and arguments don't fit each other.
    """

    def called_on(batch: HeldOutBatch) -> Calling:
        return find_calling(copy, batch, forward, horizon, state.restore)

    some = two = two_sequences(held_out)
    few, any_size = held_out.take(some), True
    try:
        calling = called_on(few)
    except ModelError:
        try:
            calling, any_size = called_on(held_out), False
        except ModelError:
            check_kept_size(copy, held_out, called_on)
            raise
    caller = SequenceCaller(copy, held_out, calling, state)
    if not state_is_known:
        caller.state = find_state(copy, caller.call_on, held_out, any_size=any_size)
    coupling = find_coupling(copy, caller.call_on, held_out, any_size=any_size)
    whole_batch_only = not any_size or bool(coupling)
    if whole_batch_only:
        count = len(held_out) if not any_size or "position" in coupling else MAX_SEQUENCES
        some = _spread_by_length(held_out, count)
        few = held_out if len(some) == len(held_out) else held_out.take(some)
    if held_out.tokens:
        caller.embedding = find_embedding(copy, few, caller.call)
    first = caller.part(some).trial()

    def spread(count: int) -> Trial:
        if whole_batch_only or len(few) == len(held_out):
            return first
        return caller.part(_spread_by_length(held_out, count)).trial()

    found = find_hook_points(
        copy,
        first,
        spread,
        cells=cells,
        layers=layers,
        inputs_shape=tuple(held_out.inputs.shape),
        forecast=calling.horizon is not None,
    )
    varying = () if whole_batch_only else _cells_of_varying_calls(caller, found)
    if varying:
        whole_batch_only = True
        note = (
            f"the number of calls of {', '.join(varying)} depends on the sequences of a batch, as "
            "where it is cut to its longest one: each pass takes the whole held-out batch, one "
            "variant at a time, which takes longer. To avoid it, let the model run over all time "
            "steps of its inputs"
        )
        found = replace(found, notes=(*found.notes, note))
    rows = _RowFinder(caller, max_sequences)
    part = None if whole_batch_only else np.arange(1, len(held_out))
    placed = put_in_order(found, rows.find, part)
    alike: npt.NDArray[np.intp] | None = two
    if whole_batch_only:
        # Standardised over two sequences, all values would be 1 or -1.
        alike = np.union1d(two, held_out.spread(_FEW))
        hooks: list[CellHook | LayerHook] = [*placed.cells, *placed.layers]
        in_place = not any(hook.rows for hook in hooks)
        if varying or not any_size or "position" in coupling or not in_place:
            alike = None
    return Inspection(caller, placed, coupling, whole_batch_only, alike)


def two_sequences(held_out: HeldOutBatch) -> npt.NDArray[np.intp]:
    """Return the indices of two sequences, one of them with the last real time step of all.

    A model may cut a batch to its longest sequence.
    """
    last = held_out.inputs_shape[1] - held_out.mask_array[:, ::-1].argmax(axis=1)
    return np.unique([0, int(last.argmax()) or min(1, len(held_out) - 1)])


def _cells_of_varying_calls(caller: SequenceCaller, found: HookPoints) -> tuple[str, ...]:
    """Return the cells that the two shortest sequences call less often than the longest does."""
    held_out = caller.held_out
    if held_out.mask is None and not held_out.has_companions:
        return ()
    shortest = np.argsort(held_out.mask_array.sum(axis=1), kind="stable")[:2]
    numbers = Rerun(caller.copy, caller.part(np.sort(shortest)).trial()).numbers
    counts = collections.Counter(path for path, _ in numbers)
    return tuple(c.name for c in found.cells if counts[c.module] != c.calls_in_all)


def _spread_by_length(held_out: HeldOutBatch, count: int) -> npt.NDArray[np.intp]:
    """Return the indices of sequences of different lengths, the shortest and longest among them."""
    if len(held_out) <= count:
        return np.arange(len(held_out))
    by_length = np.argsort(held_out.mask_array.sum(axis=1), kind="stable")
    return np.sort(by_length[np.linspace(0, len(held_out) - 1, count).round().astype(int)])


class _RowFinder:
    """Find the sequence in each row of the arrays of hook points, by changing sequences."""

    def __init__(self, caller: SequenceCaller, max_sequences: int | None) -> None:
        self._caller, self._max_sequences = caller, max_sequences
        self._tap = Tap()

    def find(
        self, hooks: Sequence[CellHook | LayerHook], sequences: npt.NDArray[np.intp] | None
    ) -> dict[str, tuple[int, ...]]:
        """Return the sequence in each row of the arrays of hooks, over some or all sequences.

        It is () for a hook whose rows belong to no single sequences, or if there is no memory to
        run all sequences at once.
        """
        if self._max_sequences is not None and self._max_sequences < len(self._caller.held_out):
            return {hook.name: () for hook in hooks}
        caller = self._caller if sequences is None else self._caller.part(sequences)
        sequence = caller.sequence()
        sets = codes(len(sequence))
        before = self._read(caller, sequence, hooks)
        moves: dict[str, list[Mask]] = {hook.name: [] for hook in hooks}
        for changed in sets:
            after = self._read(caller, other_values(sequence, "inputs", changed), hooks)
            for name, arrays in before.items():
                moves[name].append(moved_rows(arrays, after[name], 0))
        return {name: sequences_of_rows(np.stack(rows), sets) for name, rows in moves.items()}

    def _read(
        self, caller: SequenceCaller, inputs: mx.array, hooks: Sequence[CellHook | LayerHook]
    ) -> dict[str, list[mx.array]]:
        cells = [hook for hook in hooks if isinstance(hook, CellHook)]
        layers = [hook for hook in hooks if isinstance(hook, LayerHook)]
        recorder = HookRecorder(self._tap, cells, layers, flush=False)
        found = Pass(inputs, inputs, inputs, None)
        with caller.preserved(), recorder.recording(caller.model):
            caller.outputs(inputs, caller.time_delta)
            recorder.into(found, states=True, activations=True)
            batch, steps, _ = caller.held_out.inputs_shape
            arrays = {hook.name: _by_sequence(hook, found, batch, steps) for hook in hooks}
            mx.eval(arrays)
        return arrays


def _by_sequence(hook: CellHook | LayerHook, found: Pass, batch: int, steps: int) -> list[mx.array]:
    """Return the arrays of a hook with the batch axis first."""
    if isinstance(hook, CellHook):
        listed = found.states[hook.name]
        return [mx.moveaxis(a, hook.axis(i), 0) for i, of in enumerate(listed) for a in of]
    arrays = found.activations[hook.name]
    if hook.flat:
        sizes = (steps, batch) if hook.axis else (batch, steps)
        arrays = [a.reshape(*sizes, *a.shape[1:]) for a in arrays]
    return [mx.moveaxis(a, hook.axis, 0) for a in arrays]
