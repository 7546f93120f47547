"""Passes over a batch in parts as large as memory allows, as numpy arrays."""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..analysis.results import FloatArray
from ..analysis.target_values import TargetValues as Points
from ..held_out import to_numpy
from .abreast import evaluated
from .errors import ModelError
from .probe import COPIES, Instrument, Pass, Variants
from .sites import CellSite, LayerSite

__all__ = ["Look", "as_points", "in_parts", "joined", "looks", "points"]

_LOG = logging.getLogger("ncp_callbacks")


class Look:
    """One evaluated pass over some sequences, converted when asked for.

    Attributes:
        scaled: Targets ``(S, B)`` with all intervals multiplied by each scale, and the loss there;
            None where these were not run beside the pass.
    """

    def __init__(self, instrument: Instrument, seen: Pass, scaled: Points | None = None) -> None:
        self._instrument, self._pass, self.scaled = instrument, seen, scaled
        self._batch, self._steps, _ = instrument.held_out.inputs_shape

    def array(self, name: str) -> FloatArray:
        """An array of :class:`~.probe.Pass`, by its name there."""
        return to_numpy(getattr(self._pass, name))

    @property
    def chosen(self) -> npt.NDArray[np.integer[Any]] | None:
        """``(B,)``, the output followed in each sequence; None without a choice."""
        return None if self._pass.chosen is None else np.array(self._pass.chosen)

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
        # One conversion is much faster than one for every step.
        return to_numpy(mx.stack([a.reshape(self._batch, -1) for a in arrays], axis=1))


def looks(
    instrument: Instrument, wanted: dict[str, bool], scales: Sequence[float] = ()
) -> Iterator[Look]:
    """The whole batch, in order.

    Args:
        wanted: Keywords of :meth:`Instrument.run`.
        scales: Of the intervals, to be run beside the pass if a core has nothing else to do.
    """
    batch, start = len(instrument.held_out), 0
    while start < batch:
        stop = min(batch, start + (instrument.most_rows or batch))
        try:
            whole = stop - start == batch
            part = instrument if whole else instrument.take(slice(start, stop))
            found = _beside(part, wanted, scales) or _abreast(part, wanted)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if scales:
                scales = ()
            elif instrument.divisible and stop - start > 1:
                _take_fewer(instrument, stop - start)
            else:
                raise
        else:
            yield from found
            start = stop


def _abreast(instrument: Instrument, wanted: dict[str, bool]) -> list[Look]:
    """One look, or several that were made at the same time."""
    rows = len(instrument.held_out)
    gradient = wanted["input_gradient"] or wanted["time_gradient"]
    count = instrument.ways(rows, gradient=gradient) if instrument.divisible else 1
    parts = [instrument] if count == 1 else [instrument.take(s) for s in _slices(rows, count)]
    passes = evaluated(
        [functools.partial(part.run, **wanted, milestones=count > 1) for part in parts]
    )
    return [Look(part, seen) for part, seen in zip(parts, passes, strict=True)]


def _beside(instrument: Instrument, wanted: dict[str, bool], scales: Sequence[float]) -> list[Look]:
    """A gradient pass too small to be divided, and scaled intervals beside it; else nothing."""
    rows, delta = len(instrument.held_out), instrument.time_delta
    gradient = wanted["input_gradient"] or wanted["time_gradient"]
    lanes = instrument.ways(rows * len(scales), gradient=False)
    small = instrument.divisible and instrument.ways(rows, gradient=True) == 1
    if not (gradient and small and 0 < len(scales) <= COPIES and lanes > 1) or delta is None:
        return []
    own = to_numpy(delta)
    scaled = np.stack([own * np.float32(scale) for scale in scales])
    first: list[Pass] = []

    def whole() -> Pass:
        first.append(instrument.run(**wanted, milestones=True))
        return first[0]

    def variants(here: slice) -> Variants:
        # Its prediction is what is followed at all scales.
        chosen = first[0].chosen
        return _variants(
            instrument if lanes == 2 else instrument.take(here),
            None,
            scaled[:, here],
            None if chosen is None else chosen[here],
            count=len(scales),
            milestones=True,
            loss=instrument.losses(first[0].outputs) is not None,
        )

    builders: list[Callable[[], Pass | Variants]] = [whole]
    builders += [functools.partial(variants, here) for here in _slices(rows, lanes - 1)]
    _, *others = evaluated(builders)
    points = [_converted(seen) for seen in others if isinstance(seen, Variants)]
    return [Look(instrument, first[0], joined(points, axis=1))]


def _slices(count: int, parts: int) -> list[slice]:
    """Of nearly the same length."""
    ends = [count * k // parts for k in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def points(
    instrument: Instrument,
    sequences: FloatArray | None,
    time_deltas: FloatArray | None,
    chosen: npt.NDArray[np.integer[Any]] | None,
    *,
    gradient: bool,
    loss: bool = False,
    rows: int,
    copies: int,
) -> Points:
    """Run variants of the batch, some side by side on the batch axis.

    Args:
        sequences: ``(K, B, T, F)``; None: the batch's own.
        time_deltas: ``(K, B, T)``; None: the batch's own.
        chosen: ``(B,)``, the outputs to follow, or None without a choice.
        gradient: Whether gradients are wanted.
        loss: Whether the loss is, without gradients.
        rows: Sequences of the batch that are run at once, where it can be divided.
        copies: How many variants of so many sequences; halved where memory doesn't do.
    """
    count = next(len(a) for a in (sequences, time_deltas, [0]) if a is not None)

    def run(some: Instrument, here: slice, at: slice) -> Points:
        return _points(
            some,
            None if sequences is None else sequences[at, here],
            None if time_deltas is None else time_deltas[at, here],
            None if chosen is None else chosen[here],
            gradient,
            loss,
        )

    return in_parts(instrument, run, count, rows=rows, copies=copies)


def in_parts(
    instrument: Instrument,
    run: Callable[[Instrument, slice, slice], Points],
    count: int,
    *,
    rows: int,
    copies: int,
) -> Points:
    """``count`` variants of the batch, in parts as large as memory allows.

    Args:
        run: Some variants, the last argument, of some sequences, the other two.
        rows, copies: See :func:`points`.
    """
    batch = len(instrument.held_out)
    size = min(rows, batch) if instrument.divisible else batch
    # Few sequences leave room for more variants of them.
    copies = max(1, copies * rows // size)
    parts: list[Points] = []
    for begin in range(0, batch, size):
        here = slice(begin, min(batch, begin + size))
        some = instrument if size == batch else instrument.take(here)
        done: list[Points] = []
        start = 0
        while start < count:
            at = slice(start, min(count, start + copies))
            try:
                done.append(run(some, here, at))
            except (MemoryError, RuntimeError) as error:
                if not (_out_of_memory(error) and at.stop - start > 1):
                    raise
                copies = (at.stop - start) // 2
            else:
                start = at.stop
        parts.append(joined(done, axis=0))
    return joined(parts, axis=1)


def _points(
    instrument: Instrument,
    sequences: FloatArray | None,
    time_deltas: FloatArray | None,
    chosen: npt.NDArray[np.integer[Any]] | None,
    gradient: bool,
    loss: bool,
) -> Points:
    count = next(len(a) for a in (sequences, time_deltas, [0]) if a is not None)
    rows = len(instrument.held_out)
    parts = instrument.ways(rows * count, gradient=gradient)
    everything = slice(None)
    if instrument.divisible and rows >= parts:
        axis, divided = 1, [(everything, here) for here in _slices(rows, parts)]
    else:
        axis, divided = 0, [(at, everything) for at in _slices(count, min(parts, count))]

    def build(at: slice, here: slice) -> Variants:
        return _variants(
            instrument if here == everything else instrument.take(here),
            None if sequences is None else sequences[at, here],
            None if time_deltas is None else time_deltas[at, here],
            None if chosen is None else mx.array(chosen[here]),
            count=len(range(count)[at]),
            gradient=gradient,
            milestones=len(divided) > 1,
            loss=loss,
        )

    passes = evaluated([functools.partial(build, *part) for part in divided])
    return joined([_converted(seen) for seen in passes], axis=axis)


def _variants(
    instrument: Instrument,
    sequences: FloatArray | None,
    time_deltas: FloatArray | None,
    chosen: mx.array | None,
    *,
    count: int,
    **options: bool,
) -> Variants:
    """The pass over ``count`` variants, not yet evaluated."""
    x, dt = (
        None
        if own is None
        else mx.broadcast_to(own, (count, *own.shape))
        if given is None
        else mx.array(given).astype(own.dtype)
        for given, own in (
            (sequences, instrument.sequence()),
            (time_deltas, instrument.time_delta),
        )
    )
    assert x is not None
    return instrument.variants(x, dt, chosen, **options)


def as_points(seen: Variants) -> Points:
    """The same, evaluated, as numpy arrays."""
    mx.eval(seen.arrays())
    return _converted(seen)


def _converted(seen: Variants) -> Points:
    arrays = (seen.values, seen.input_gradient, seen.time_gradient, seen.loss)
    return Points(*[None if a is None else to_numpy(a) for a in arrays])  # type: ignore[arg-type]


def joined(parts: Sequence[Points], axis: int) -> Points:
    """Points of several parts in one: of variants with ``axis=0``, of sequences with 1."""
    if len(parts) == 1:
        return parts[0]
    columns = ([getattr(p, f.name) for p in parts] for f in fields(Points))
    return Points(*[None if c[0] is None else np.concatenate(c, axis=axis) for c in columns])  # type: ignore[arg-type]


def _take_fewer(instrument: Instrument, tried: int) -> None:
    instrument.most_rows = tried // 2
    _LOG.warning(
        "looking at %d sequences at once ran out of memory; from now on at most %d",
        tried,
        tried // 2,
    )


def _out_of_memory(error: Exception) -> bool:
    """MLX raises a RuntimeError that speaks of allocation or memory."""
    return isinstance(error, MemoryError) or bool(re.search("alloc|memory", str(error), re.I))
