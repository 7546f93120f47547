"""Parts of a batch run abreast, so that they take a core each.

MLX works a stream of the CPU off on one thread, and leaves the other cores idle. Passes built on
several streams could share them, but an evaluation takes one pass after the other, and only few
operations ahead. So they are evaluated piece by piece, one of each pass in turn: up to the state
after the first time step, after the second, and so on, and the same way back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import mlx.core as mx

__all__ = ["Evaluable", "evaluated", "ways"]

# Below these, building and starting the operations of one part more takes as long as it saves:
# multiplications in a time step, one for each parameter of the cells and each sequence.
_LEAST_FORWARD, _LEAST_GRADIENT = 350_000, 1_200_000
_MOST = 4

_own = threading.local()
# Those of all threads. Where each look is on a thread of its own, they must not become ever more.
_all: list[list[mx.Stream]] = []
_MOST_THREADS = 4


class Evaluable(Protocol):
    """A pass that was built but not yet evaluated."""

    milestones: list[mx.array]
    """What divides it into pieces, in the order of computation; emptied when evaluated."""

    def arrays(self) -> Any:
        """What is wanted of it."""


P = TypeVar("P", bound=Evaluable)


def ways(work: int, *, gradient: bool) -> int:
    """In how many parts a pass is best divided, 1 on other devices than the CPU.

    Also 1 on the fifth and later threads of a process that ask.

    Args:
        work: Parameters of the model's cells times sequences.
        gradient: Whether it gives gradients, whose many small operations are dearer to start.
    """
    if mx.default_device() != mx.Device(mx.cpu) or not _may_have_streams():
        return 1
    return max(1, min(_cores(), _MOST, work // (_LEAST_GRADIENT if gradient else _LEAST_FORWARD)))


def evaluated(builders: Sequence[Callable[[], P]]) -> list[P]:
    """Passes, built and evaluated; abreast where there are several."""
    if len(builders) == 1:
        only = builders[0]()
        mx.eval(only.arrays())
        return [only]
    passes: list[P] = []
    streams = _streams(len(builders))
    for stream, build in zip(streams, builders, strict=True):
        with mx.stream(stream):
            passes.append(build())
    rounds = max(len(each.milestones) for each in passes)
    # An evaluation ends on its default stream, which there waits for the others. Parts of one pass
    # are equally far then, and are best ordered together; different passes must not wait.
    alike = len({len(each.milestones) for each in passes}) == 1
    for k in range(rounds):
        pieces = [_piece(each.milestones, k, rounds) for each in passes]
        if alike:
            mx.async_eval(pieces)  # type: ignore[no-untyped-call]
            continue
        for stream, piece in zip(streams, pieces, strict=True):
            if piece:
                with mx.stream(stream):
                    mx.async_eval(piece)  # type: ignore[no-untyped-call]
    mx.eval([each.arrays() for each in passes])
    for each in passes:
        each.milestones.clear()
    return passes


def _piece(milestones: list[mx.array], k: int, rounds: int) -> list[mx.array]:
    """Those of one round, when all are spread over the rounds."""
    count = len(milestones)
    return milestones[k * count // rounds : (k + 1) * count // rounds]


def _streams(count: int) -> list[mx.Stream]:
    """The default one and others. MLX keeps streams, and their threads, for good: so do we.

    A stream belongs to the thread that made it.
    """
    device = mx.default_device()
    if not hasattr(_own, "streams"):
        _own.streams = []
        _all.append(_own.streams)
    more: list[mx.Stream] = _own.streams
    while len(more) < count - 1:
        more.append(mx.new_stream(device))
    return [mx.default_stream(device), *more[: count - 1]]


def _may_have_streams() -> bool:
    """Whether this thread has some or may still get some."""
    return hasattr(_own, "streams") or len(_all) < _MOST_THREADS


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
