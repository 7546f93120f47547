"""What looking costs, measured while it happens, and kept within a share of the wall time.

overhead = Overhead(most=0.02)
if overhead.affords():                   # at a step at which callbacks are due
    with overhead.looking():
        with overhead.timing("pass"): ...
    overhead.records()                   # monitor/seconds/<part>, monitor/share
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from .records import Record, Scalar

__all__ = ["Overhead"]

# A share that is worth a word, once it is one of this many seconds or more.
_DEAR, _LONG = 0.2, 60.0


class Overhead:
    """Accounts for the looks of one run.

    Args:
        most: Share of wall time that looks may take; None: any. A look that took ``c`` seconds is
            followed by none until ``c / most`` seconds are over, so that the share holds from the
            first look on, however long the steps are.
        clock: Monotonic seconds.

    Attributes:
        skipped: Looks left out for this.
        looks: Looks made.
        seconds: What they took altogether.
    """

    def __init__(
        self, most: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._most, self._clock = most, clock
        self.skipped = self.looks = 0
        self.seconds = 0.0
        self._debt = 0.0
        self._began: float | None = None
        self._ended: float | None = None
        self._parts: dict[str, float] = {}
        self._share: float | None = None

    def affords(self) -> bool:
        """Whether a look may be made now; counts those that may not."""
        if self._most is None or self._ended is None:
            return True
        affords = self._debt <= self._most * (self._clock() - self._ended)
        self.skipped += not affords
        return affords

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Around everything that a look is."""
        start = self._clock()
        if self._began is None:
            self._began = start
        self._parts = {}
        try:
            yield
        finally:
            end = self._clock()
            took = end - start
            if self._ended is not None:
                self._share = took / (end - self._ended) if end > self._ended else 1.0
                if self._most is not None:
                    left = self._debt - self._most * (start - self._ended)
                    self._debt = max(0.0, left)
            # The look itself is wall time, too.
            self._debt += took * (1 - (self._most or 0.0))
            self.looks += 1
            self.seconds += took
            self._parts["other"] = max(0.0, took - sum(self._parts.values()))
            self._ended = end

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Around a part of a look; what is left is ``other``."""
        start = self._clock()
        try:
            yield
        finally:
            self._parts[part] = self._parts.get(part, 0.0) + self._clock() - start

    @property
    def share(self) -> float | None:
        """Share of the wall time since the first look began; None before the second."""
        if self._began is None or self._ended is None or self.looks < 2:
            return None
        return self.seconds / max(self._ended - self._began, 1e-9)

    @property
    def dear(self) -> bool:
        """Whether looks have taken so much, for so long, that the user should be told."""
        if self._began is None or self._ended is None or self._most is not None:
            return False
        return self._ended - self._began > _LONG and (self.share or 0.0) > _DEAR

    def records(self) -> Iterator[Record]:
        """Of the look that ended last."""
        for part, seconds in self._parts.items():
            what = {
                "pass": "the passes of the model that callbacks share",
                "other": "leaving training undisturbed, and handing over to the writer",
            }.get(part, f"{part}, with passes of its own")
            yield Scalar(f"monitor/seconds/{part}", seconds, f"Time of the look spent on {what}; s")
        if self._share is not None:
            yield Scalar(
                "monitor/share",
                self._share,
                "Share of the wall time since the last look that this one took",
            )
        if self._most is not None:
            yield Scalar(
                "monitor/skipped_looks",
                self.skipped,
                f"Looks left out because they would take more than {self._most:.0%} of the time",
            )
