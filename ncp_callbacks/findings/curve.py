"""Keep a curve of any length in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["MAX_WINDOWS", "Curve", "Window"]

MAX_WINDOWS = 64


@dataclass(frozen=True)
class Window:
    """Summarise consecutive points of a curve.

    Attributes:
        first, last: Steps of the first and of the last point.
        count: Number of finite points.
        mean, low, high: Of the finite points; NaN without one.
        bad: Number of points that are NaN or infinite.
    """

    first: int
    last: int
    count: int
    mean: float
    low: float
    high: float
    bad: int

    @classmethod
    def of(cls, step: int, value: float) -> Window:
        """Return the window of one point."""
        if math.isfinite(value):
            return cls(step, step, 1, value, value, value, 0)
        return cls(step, step, 0, math.nan, math.nan, math.nan, 1)

    def joined(self, after: Window) -> Window:
        """Return the window of these points and those of the next one."""
        count, bad = self.count + after.count, self.bad + after.bad
        parts = [window for window in (self, after) if window.count]
        if not parts:
            return Window(self.first, after.last, 0, math.nan, math.nan, math.nan, bad)
        # Weighted by shares, so that the sum of two large values can't overflow.
        mean = sum(part.mean * (part.count / count) for part in parts)
        low, high = min(part.low for part in parts), max(part.high for part in parts)
        return Window(self.first, after.last, count, mean, low, high, bad)


class Curve:
    """Hold a curve in at most 64 windows of equally many points, apart from the last one.

    Args:
        width: Number of points in a full window, a power of 2.
        windows: The windows.
        last: The last point, finite or not.
    """

    def __init__(
        self, width: int = 1, windows: Sequence[Window] = (), last: float = math.nan
    ) -> None:
        self.width, self.windows, self.last = width, tuple(windows), last

    def with_point(self, step: int, value: float) -> Curve:
        """Return the curve with another point at its end; this one stays as it is."""
        windows, point = list(self.windows), Window.of(step, value)
        if windows and windows[-1].count + windows[-1].bad < self.width:
            windows[-1] = windows[-1].joined(point)
            return Curve(self.width, windows, value)
        if len(windows) < MAX_WINDOWS:
            return Curve(self.width, [*windows, point], value)
        halved = [a.joined(b) for a, b in zip(windows[::2], windows[1::2], strict=True)]
        return Curve(2 * self.width, [*halved, point], value)

    @property
    def finite(self) -> tuple[Window, ...]:
        """Return the windows that hold a finite point."""
        return tuple(window for window in self.windows if window.count)

    @property
    def bad(self) -> int:
        """Return the number of points that are NaN or infinite."""
        return sum(window.bad for window in self.windows)

    def to_state(self) -> dict[str, Any]:
        """Return the curve as numbers and lists."""
        rows = [[w.first, w.last, w.count, w.mean, w.low, w.high, w.bad] for w in self.windows]
        return {"width": self.width, "windows": rows, "last": self.last}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Curve:
        """Return the curve from what :meth:`to_state` returned."""
        windows = [Window(*row) for row in state["windows"]]
        return cls(int(state["width"]), windows, float(state["last"]))
