"""Measure what the monitor costs the training loop, and keep it within a share of the wall time.

overhead = Overhead(max_share=0.02)
if overhead.affords():                   # at a step at which callbacks are due
    with overhead.occupying():
        ...                              # read the model, hand it over, wait for room
    overhead.records()                   # monitor/loop_seconds, monitor/share
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from .records import Record, Scalar

__all__ = ["Overhead"]

# A share that is worth a note, once the run is this many seconds old.
_LARGE_SHARE, _LONG_ENOUGH = 0.2, 60.0


class Overhead:
    """Accounts for the time that the loop spends in the monitor at due steps.

    Args:
        max_share: Share of the wall time that it may be; None: any. A snapshot that took ``c``
            seconds is followed by none until ``c / max_share`` seconds are over, so that the share
            holds from the first one on, however long the steps are.
        clock: Monotonic seconds.

    Attributes:
        skipped: Snapshots that were skipped for this.
        snapshots: Snapshots that were read.
        seconds: What they took altogether.
    """

    def __init__(
        self, max_share: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._max_share, self._clock = max_share, clock
        self.skipped = self.snapshots = 0
        self.seconds = 0.0
        self._debt = 0.0
        self._began: float | None = None
        self._ended: float | None = None
        self._last = 0.0
        self._share: float | None = None

    def affords(self) -> bool:
        """Tell if a snapshot may be read now; count those that may not."""
        if self._max_share is None or self._ended is None:
            return True
        affords = self._debt <= self._max_share * (self._clock() - self._ended)
        self.skipped += not affords
        return affords

    @contextlib.contextmanager
    def occupying(self) -> Iterator[None]:
        """Measure everything that a due step costs the loop."""
        start = self._clock()
        if self._began is None:
            self._began = start
        try:
            yield
        finally:
            end = self._clock()
            took = end - start
            if self._ended is not None:
                self._share = took / (end - self._ended) if end > self._ended else 1.0
                if self._max_share is not None:
                    left = self._debt - self._max_share * (start - self._ended)
                    self._debt = max(0.0, left)
            # The snapshot itself is wall time, too.
            self._debt += took * (1 - (self._max_share or 0.0))
            self.snapshots += 1
            self.seconds += took
            self._last, self._ended = took, end

    @property
    def share(self) -> float | None:
        """Share of the wall time since the first snapshot began; None before the second."""
        if self._began is None or self._ended is None or self.snapshots < 2:
            return None
        return self.seconds / max(self._ended - self._began, 1e-9)

    @property
    def is_large(self) -> bool:
        """Whether the share has been so large for so long that it deserves a report."""
        if self._began is None or self._ended is None or self._max_share is not None:
            return False
        long = self._ended - self._began > _LONG_ENOUGH
        return long and (self.share or 0.0) > _LARGE_SHARE

    def records(self) -> Iterator[Record]:
        """Yield what the last snapshot cost."""
        yield Scalar(
            "monitor/loop_seconds",
            self._last,
            "Time that the training loop spent in the monitor at this step; s",
        )
        if self._share is not None:
            yield Scalar(
                "monitor/share",
                self._share,
                "Time that the loop spent on this snapshot, as a share of the wall time since the "
                "last one",
            )
        yield from self.skips()

    def skips(self) -> Iterator[Record]:
        """Yield how many snapshots were skipped, where there is a bound."""
        if self._max_share is not None:
            yield Scalar(
                "monitor/skipped_snapshots",
                self.skipped,
                "Snapshots that were skipped because they would take more than "
                f"{self._max_share:.0%} of the time",
                place="nonzero",
            )
