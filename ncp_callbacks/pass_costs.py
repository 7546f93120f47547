"""Count and time passes by kind, and keep the results that several callbacks ask for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from .observation import Need
from .target_values import TargetValues

__all__ = ["SHARED_PASS", "PassCosts", "SharedResults"]

SHARED_PASS = "shared"
# Bytes of results of extra passes that are kept for other callbacks, until the snapshot ends.
_MAX_SHARED_BYTES = 64 * 2**20


@dataclass(eq=False)
class PassCosts:
    """Sum what passes cost.

    Attributes:
        passes: Number of passes by kind: :data:`SHARED_PASS`, or the value of a :class:`Need`. A
            pass runs each sequence that a callback analyses once. A pass of half of them counts
            half, and each of the variants that are run at once counts one.
        seconds: Time that they took, by kind.
    """

    passes: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def count(self, kind: str, passes: float) -> None:
        """Count passes of a kind."""
        self.passes[kind] = self.passes.get(kind, 0.0) + passes

    @contextlib.contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Add the time of a ``with`` block to a kind of passes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[kind] = self.seconds.get(kind, 0.0) + took


class SharedResults:
    """Keep results of extra passes until the snapshot ends, for the callbacks that ask again.

    Args:
        needs: The kinds of extra passes that more than one callback declares.

    Attributes:
        needs: The kinds whose results are kept.
    """

    def __init__(self, needs: Collection[Need] = ()) -> None:
        self.needs = frozenset(needs)
        self._kept: dict[Any, Any] = {}
        self._bytes = 0

    def known(self, need: Need, key: Any) -> Any:
        """Return the result of an equal pass that was run before; None if there is none."""
        return self._kept.get((need, key)) if need in self.needs else None

    def keep(self, need: Need, key: Any, result: Any) -> None:
        """Keep the result of a pass.

        Args:
            need: The kind of pass.
            key: What tells it from other passes of its kind.
            result: Its result.
        """
        size = result.nbytes if isinstance(result, TargetValues) else 0
        if need in self.needs and self._bytes + size <= _MAX_SHARED_BYTES:
            self._kept[need, key] = result
            self._bytes += size

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Keep and return nothing in a ``with`` block, in which the model's parameters differ."""
        needs, self.needs = self.needs, frozenset()
        # They refer to modules, which restoring the model may replace.
        of_modules = (Need.CELL_STEPS, Need.STATE_CHANGES)
        self._kept = {key: r for key, r in self._kept.items() if key[0] not in of_modules}
        try:
            yield
        finally:
            self.needs = needs
