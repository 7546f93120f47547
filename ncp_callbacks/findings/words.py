"""Put numbers with their uncertainty into sentences."""

from __future__ import annotations

from collections.abc import Sequence

from .facts import Number

__all__ = ["amount", "count", "joined", "percent", "since", "time_steps"]


def percent(number: Number | float) -> str:
    """Return ``"54 % [49, 58]"``: a share in per cent with its 95 % CI; small ones with a digit."""
    number = number if isinstance(number, Number) else Number(number)
    ends = [number.value, *((number.low, number.high) if number.has_ci else ())]
    # 99.6 must not read as 100, nor 0.4 as 0.
    digits = 1 if any(0 < 100 * e < 1 or 99 < 100 * e < 100 for e in ends) else 0
    value, *ci = (f"{100 * end:.{digits}f}" for end in ends)
    return f"{value} % [{', '.join(ci)}]" if ci else f"{value} %"


def amount(number: Number | float, digits: int = 3) -> str:
    """Return ``"0.34 [0.28, 0.41]"``: a number with its 95 % CI, in three digits."""
    number = number if isinstance(number, Number) else Number(number)
    value, low, high = (f"{v:.{digits}g}" for v in (number.value, number.low, number.high))
    return f"{value} [{low}, {high}]" if number.has_ci else value


def count(number: int, name: str, plural: str = "") -> str:
    """Return ``"1 unit"`` or ``"3 units"``."""
    return f"{number:,} {name}" if number == 1 else f"{number:,} {plural or name + 's'}"


def joined(parts: Sequence[str]) -> str:
    """Return ``"a, b and c"``."""
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def time_steps(first: int, last: int) -> str:
    """Return ``"time step 3"`` or ``"time steps 3–5"``."""
    return f"time steps {first}–{last}" if last > first else f"time step {first}"


def since(number: Number, step: int) -> str:
    """Return " (measured at step 100)" for a number of an earlier snapshot."""
    return f" (measured at step {number.step:,})" if number.step < step else ""
