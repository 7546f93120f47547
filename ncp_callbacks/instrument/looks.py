"""Passes over a batch in parts as large as memory allows, as numpy arrays."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..analysis.results import FloatArray
from ..held_out import to_numpy
from .errors import ModelError
from .probe import Instrument
from .sites import CellSite, LayerSite

__all__ = ["Look", "looks"]

_LOG = logging.getLogger("ncp_callbacks")


class Look:
    """One pass over some sequences: evaluated when made, converted when asked for."""

    def __init__(self, instrument: Instrument, wanted: dict[str, bool]) -> None:
        self._instrument = instrument
        self._batch, self._steps, _ = instrument.held_out.inputs_shape
        self._pass = seen = instrument.run(**wanted)
        gradients = [a for a in (seen.input_gradient, seen.time_gradient) if a is not None]
        mx.eval(seen.sequence, seen.outputs, seen.values, gradients)
        mx.eval(seen.states, seen.initial, seen.activations)

    def array(self, name: str) -> FloatArray:
        """An array of :class:`~.probe.Pass`, by its name there."""
        return to_numpy(getattr(self._pass, name))

    def states(self, site: CellSite) -> FloatArray:
        """``(B, T, H)``; several state arrays side by side."""
        parts = [self._over_time(site, a, site.reverse) for a in self._pass.states[site.name]]
        return np.concatenate(parts, axis=-1)

    def initial(self, site: CellSite) -> FloatArray | None:
        """``(B, H)``, or None where the model gave none."""
        if site.name not in self._pass.initial:
            return None
        arrays = [to_numpy(a) for a in self._pass.initial[site.name]]
        # One state for all sequences is common.
        parts = [
            a.reshape(self._batch, -1)
            if len(a) == self._batch and a.ndim > 1
            else np.broadcast_to(a.reshape(-1), (self._batch, a.size))
            for a in arrays
        ]
        return np.concatenate(parts, axis=-1)

    def activations(self, site: LayerSite) -> FloatArray:
        """``(B, T, N)``."""
        return self._over_time(site, self._pass.activations[site.name], False)

    def _over_time(
        self, site: CellSite | LayerSite, arrays: Sequence[mx.array], reverse: bool
    ) -> FloatArray:
        """``(B, T, N)`` from one array over all steps, or one per step in order of time."""
        shape = tuple(arrays[0].shape)
        if shape[:1] != (self._batch,) or (site.whole_sequence and shape[1:2] != (self._steps,)):
            raise ModelError(
                f"{site.name} gave an array of shape {shape} for {self._batch} sequences of "
                f"{self._steps} steps: its first axis must be the batch"
            )
        if site.whole_sequence:
            values = to_numpy(arrays[0])
            return values[:, ::-1] if reverse else values
        return np.stack([to_numpy(a).reshape(self._batch, -1) for a in arrays], axis=1)

    def values_at_scales(self, scales: Sequence[float]) -> FloatArray:
        """``(S, B)``; all scales in one pass, or where memory doesn't do, in one each."""
        delta = self._instrument.time_delta
        assert delta is not None
        try:
            return self._forward([delta * s for s in scales])
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
        return np.concatenate([self._forward([delta * s]) for s in scales])

    def _forward(self, deltas: Sequence[mx.array]) -> FloatArray:
        values = self._instrument.forward_values(deltas, self._pass.chosen)
        mx.eval(values)
        return np.stack([to_numpy(v) for v in values])


def looks(instrument: Instrument, wanted: dict[str, bool]) -> Iterator[Look]:
    """The whole batch, in order.

    Args:
        wanted: Keywords of :meth:`Instrument.run`.
    """
    batch, start = len(instrument.held_out), 0
    while start < batch:
        stop = min(batch, start + (instrument.most_rows or batch))
        try:
            look = Look(instrument.rows(start, stop), wanted)
        except (MemoryError, RuntimeError) as error:
            if not (_out_of_memory(error) and instrument.divisible and stop - start > 1):
                raise
            instrument.most_rows = (stop - start) // 2
            _LOG.warning(
                "looking at %d sequences at once ran out of memory; from now on at most %d",
                stop - start,
                instrument.most_rows,
            )
        else:
            yield look
            start = stop


def _out_of_memory(error: Exception) -> bool:
    """MLX raises a RuntimeError that speaks of allocation or memory."""
    return isinstance(error, MemoryError) or bool(re.search("alloc|memory", str(error), re.I))
