"""Round limits of axes, and ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .text import text_width

__all__ = [
    "checked_limit",
    "decade_ticks",
    "fitting",
    "integer_ticks",
    "log_clipped",
    "nice_limit",
    "round_ticks",
]

Array = npt.NDArray[np.float64]


def nice_limit(value: float) -> float:
    """Return the smallest of 1, 2, 5 × a power of ten that is not below ``value``.

    Use it to grow a limit in steps, so that pictures keep it for long::

        limit = max(limit, nice_limit(np.abs(scores).max()))

    Args:
        value: Largest absolute value to show; its sign is ignored.

    Returns:
        The limit; 1.0 for 0 and for NaN or infinities, since blank axes have limits too.
    """
    size = abs(float(value))
    if size == 0 or not math.isfinite(size):
        return 1.0
    exponent = math.floor(math.log10(size))
    for power in (exponent - 1, exponent, exponent + 1):
        for digit in (1, 2, 5):
            limit = float(f"{digit}e{power}")
            # float32 has 0.2 a little above 0.2.
            if limit >= size * (1 - 1e-6) and 0 < limit < math.inf:
                return limit
    return size


def checked_limit(limit: float | None, data: npt.ArrayLike) -> float:
    """Return ``limit``, or the nice limit of the finite ``data`` where it is None.

    Raises:
        ValueError: If the limit is not a finite number above 0.
    """
    if limit is None:
        values = np.asarray(data, np.float64)
        return nice_limit(float(np.abs(values[np.isfinite(values)]).max(initial=0.0)))
    if not 0 < limit < math.inf:
        raise ValueError(f"limit={limit!r}: pass a number above 0, or None for that of the data")
    return float(limit)


def integer_ticks(last: int, most: int) -> list[int]:
    """Return at most ``most`` + 1 round integers from 0 to ``last``."""
    if last <= 0:
        return [0]
    step = max(1, int(nice_limit(last / most)))
    return list(range(0, last + 1, step))


def round_ticks(last: float, most: int) -> list[float]:
    """Return at most ``most`` + 1 round numbers from 0 to ``last``."""
    every = nice_limit(last / most)
    return [every * i for i in range(int(last / every + 1e-6) + 1)]


def fitting(ticks: Sequence[int], width: float, span: float) -> list[int]:
    """Return every n-th of evenly spaced ticks, so that their labels have room on an axis.

    Args:
        ticks: Positions of the ticks.
        width: Length of the axis in pixels.
        span: Length of the axis in the unit of the ticks.
    """
    every = 1
    while every < len(ticks):
        room = (ticks[every] - ticks[0]) / span * width
        if room >= max(text_width(f"{t:,}") for t in ticks[::every]) + 6:
            break
        every += 1
    return list(ticks[::every])


def decade_ticks(low: int, high: int, most: int) -> list[int]:
    """Return about ``most`` powers of ten from ``low`` to ``high``, always multiples of a step."""
    every = max(1, math.ceil((high - low) / most))
    return [power for power in range(low, high + 1) if power % every == 0]


def log_clipped(values: npt.ArrayLike, low: float, high: float) -> Array:
    """Return decimal logarithms, clipped to ``[low, high]``; NaN stays NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.clip(np.log10(np.asarray(values, np.float64)), low, high))
