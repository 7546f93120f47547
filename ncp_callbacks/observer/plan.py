"""Plan the passes of a snapshot from what the callbacks that are due declare.

for planned in shared_passes(due, sequences=64):        # one pass, or two
observe(runner, step, planned.needs, max_sequences=planned.max_sequences)
SharedResults(repeated_needs(due))                      # extra passes that may be asked twice
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..callback import Callback
from ..model import TargetLike
from ..observation import Need

__all__ = ["SharedPass", "repeated_needs", "shared_passes"]

_GRADIENTS = frozenset({Need.INPUT_GRADIENT, Need.TIME_GRADIENT})


@dataclass(frozen=True)
class SharedPass:
    """Hold one pass that callbacks share.

    Attributes:
        callbacks: The callbacks.
        needs: What they declare together.
        max_sequences: Number of held-out sequences to run.
        target: The target of these callbacks; None for that of the monitor.
    """

    callbacks: tuple[Callback, ...]
    needs: frozenset[Need]
    max_sequences: int
    target: TargetLike | None = None


def shared_passes(due: Sequence[Callback], sequences: int) -> list[SharedPass]:
    """Return the passes that compute the declared arrays.

    All callbacks are in one pass, unless those that use gradients, which cost about twice as much
    again, take so few sequences that a separate, smaller gradient pass is cheaper. Callbacks with a
    target of their own have a pass for each target.

    Args:
        due: The callbacks.
        sequences: Number of sequences of the held-out batch.
    """
    by_target: dict[Any, list[Callback]] = {}
    for callback in due:
        target = callback.target
        # 0 and False are equal, and callables need not be hashable.
        key = id(target) if callable(target) else (type(target), target)
        by_target.setdefault(key, []).append(callback)
    return [
        replace(planned, target=callbacks[0].target)
        for callbacks in by_target.values()
        for planned in _of_one_target(callbacks, sequences)
    ]


def _of_one_target(due: Sequence[Callback], sequences: int) -> list[SharedPass]:
    """Return the passes of callbacks that have one target."""
    sizes = {id(c): min(c.max_sequences or sequences, sequences) for c in due}

    def planned(callbacks: Sequence[Callback]) -> SharedPass:
        needs = frozenset[Need]().union(*(c.needs for c in callbacks))
        return SharedPass(tuple(callbacks), needs, max(sizes[id(c)] for c in callbacks))

    with_gradient = max((sizes[id(c)] for c in due if c.needs & _GRADIENTS), default=0)
    if not 0 < 2 * with_gradient <= max(sizes.values()):
        return [planned(due)]
    few = [c for c in due if c.needs & _GRADIENTS or sizes[id(c)] <= with_gradient]
    return [planned(few), planned([c for c in due if c not in few])]


def repeated_needs(due: Sequence[Callback]) -> frozenset[Need]:
    """Return the kinds of extra passes that more than one callback declares."""
    counts = Counter(need for callback in due for need in callback.needs)
    return frozenset(need for need, count in counts.items() if need.is_extra_pass and count > 1)
