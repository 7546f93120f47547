"""Decide at which steps a snapshot is taken. A schedule is any callable from step to bool.

::

    every(steps=100)                        # steps 100, 200, ...
    every(steps=100) | at([1, 10])          # and these two
    every(seconds=60)                       # once a minute, at the step that comes after it
    log_spaced(per_decade=4)                # 1, 2, 3, 6, 10, 18, 32, ...
    every(steps=10) & ~at([20])

Plain integers are read as ``every(steps=n)`` wherever a schedule is expected.
"""

from __future__ import annotations

import abc
import numbers
import operator
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

__all__ = ["Schedule", "ScheduleLike", "as_schedule", "at", "every", "log_spaced"]


class Schedule(abc.ABC):
    """Tell for each step if it is due; combine with others by ``|``, ``&`` and ``~``.

    Attributes:
        covers_ends: True if the first and the last step of a run are analysed when no step was due,
            as with ``every(steps=100)`` in a run of 50 steps.
        by_step: True if nothing but the step decides, so that a run that goes on can ask for steps
            which were made before.
    """

    covers_ends: bool = False
    by_step: bool = False

    @abc.abstractmethod
    def __call__(self, step: int) -> bool:
        """Return true if the step is due; called once per step."""

    def starts_after(self, step: int) -> None:  # noqa: B027 (most schedules need no start)
        """Take note of the last step before the first one that is asked about; here, do nothing.

        Called where it is known: in a run that goes on, and by trainers that report some steps.
        """

    def __or__(self, other: ScheduleLike) -> Schedule:
        return _Combined(any, "|", self, as_schedule(other))

    def __and__(self, other: ScheduleLike) -> Schedule:
        return _Combined(all, "&", self, as_schedule(other))

    def __invert__(self) -> Schedule:
        return _Not(self)


ScheduleLike: TypeAlias = "int | Schedule | Callable[[int], bool]"


class _Combined(Schedule):
    def __init__(self, fold: Callable[[Iterable[bool]], bool], sign: str, *parts: Schedule) -> None:
        self._fold, self._sign, self._parts = fold, sign, parts
        self.covers_ends = fold([part.covers_ends for part in parts])
        self.by_step = all(part.by_step for part in parts)

    def __call__(self, step: int) -> bool:
        # All parts are asked: one that counts time must not miss a step.
        return self._fold([part(step) for part in self._parts])

    def starts_after(self, step: int) -> None:
        for part in self._parts:
            part.starts_after(step)

    def __repr__(self) -> str:
        return f"({f' {self._sign} '.join(map(repr, self._parts))})"


class _Not(Schedule):
    def __init__(self, inner: Schedule) -> None:
        self._inner, self.by_step = inner, inner.by_step

    def __call__(self, step: int) -> bool:
        return not self._inner(step)

    def starts_after(self, step: int) -> None:
        self._inner.starts_after(step)

    def __repr__(self) -> str:
        return f"~{self._inner!r}"


class _Function(Schedule):
    def __init__(self, function: Callable[[int], bool]) -> None:
        self._function = function

    def __call__(self, step: int) -> bool:
        return bool(self._function(step))

    def __repr__(self) -> str:
        return getattr(self._function, "__name__", repr(self._function))


class _EverySteps(Schedule):
    covers_ends = by_step = True

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._last: int | None = None
        self._start: int | None = None
        self._answer = False

    def __call__(self, step: int) -> bool:
        # One that is asked twice about a step (by two monitors) must not forget it in between.
        if step != self._last:
            # A first step follows the one before it, unless it is known which one it follows.
            known = [p for p in (self._last, self._start) if p is not None and p < step]
            before = known[0] if known else step - 1
            self._answer = step // self._steps > before // self._steps
            self._last = step
        return self._answer

    def starts_after(self, step: int) -> None:
        self._start = step

    def __repr__(self) -> str:
        return f"every(steps={self._steps})"


class _EverySeconds(Schedule):
    covers_ends = True

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._since: float | None = None
        self._last: int | None = None
        self._answer = False

    def __call__(self, step: int) -> bool:
        if step != self._last:
            now = self._clock()
            self._since = now if self._since is None else self._since
            self._answer = now - self._since >= self._seconds
            self._since = now if self._answer else self._since
            self._last = step
        return self._answer

    def __repr__(self) -> str:
        return f"every(seconds={self._seconds})"


class _Steps(Schedule):
    by_step = True

    def __init__(self, steps: frozenset[int], text: str) -> None:
        self._steps, self._text = steps, text
        self.covers_ends = bool(steps)  # without any, no step is meant to be due

    def __call__(self, step: int) -> bool:
        return step in self._steps

    def __repr__(self) -> str:
        return self._text


def every(
    *,
    steps: int | None = None,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Schedule:
    """Return a schedule that is due every so many steps or seconds, or both.

    Steps are due at multiples of ``steps``. A loop that counts by more than one is due at the first
    step at or after each multiple that follows its first step, or, in a run that goes on and with
    trainers that call back, the step before that.

    Args:
        steps: At least 1.
        seconds: Above 0; counted from the first step.
        clock: Returns the time in seconds.

    Raises:
        ValueError: Neither is passed, or one is out of range.
    """
    if steps is None and seconds is None:
        raise ValueError(
            "every() has no argument: pass steps=, seconds= or both, such as every(steps=100)"
        )
    parts: list[Schedule] = []
    if steps is not None:
        whole = as_whole(steps)
        if whole is None or whole < 1:
            raise ValueError(f"every(steps={steps!r}): pass a whole number of at least 1")
        parts.append(_EverySteps(whole))
    if seconds is not None:
        if not isinstance(seconds, numbers.Real) or not seconds > 0:
            raise ValueError(f"every(seconds={seconds!r}): pass a number above 0")
        parts.append(_EverySeconds(float(seconds), clock))
    return parts[0] if len(parts) == 1 else _Combined(any, "|", *parts)


def at(steps: Iterable[int]) -> Schedule:
    """Return a schedule that is due at exactly these steps.

    Args:
        steps: Whole numbers.

    Raises:
        TypeError: ``steps`` is not a collection of whole numbers.
    """
    if not isinstance(steps, Iterable):
        raise TypeError(f"at({steps!r}): pass a list of steps, such as at([{steps!r}])")
    listed = sorted({operator.index(step) for step in steps})
    return _Steps(frozenset(listed), f"at({listed})")


def log_spaced(*, first: int = 1, last: int = 10**9, per_decade: int = 4) -> Schedule:
    """Return a schedule whose steps grow by a constant factor: dense early, sparse late.

    Args:
        first: First due step, at least 1.
        last: Last step that may be due.
        per_decade: Due steps per factor of ten, at least 1.

    Raises:
        ValueError: A value is out of range.
    """
    if first < 1 or last < first or per_decade < 1:
        raise ValueError(
            f"log_spaced(first={first}, last={last}, per_decade={per_decade}): "
            "pass 1 <= first <= last and per_decade >= 1"
        )
    steps: set[int] = set()
    power = 0
    while (step := round(first * 10 ** (power / per_decade))) <= last:
        steps.add(step)
        power += 1
    text = f"log_spaced(first={first}, last={last}, per_decade={per_decade})"
    return _Steps(frozenset(steps), text)


def as_whole(value: Any) -> int | None:
    """Return a whole number as an int, numpy's too; None for anything else."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    return operator.index(value)


def as_schedule(value: ScheduleLike, *, what: str = "every") -> Schedule:
    """Return a schedule made from an integer, a schedule or a callable ``step -> bool``.

    Args:
        value: Number of steps, a schedule or a callable.
        what: Name of the argument, for messages.

    Raises:
        TypeError: The value is none of these.
        ValueError: An integer is below 1.
    """
    if isinstance(value, Schedule):
        return value
    whole = as_whole(value)
    if whole is not None:
        if whole < 1:
            raise ValueError(f"{what}={value}: pass a number of steps of at least 1")
        return _EverySteps(whole)
    if callable(value):
        return _Function(value)
    raise TypeError(
        f"{what}={value!r} is not a schedule: pass a number of steps (100), a schedule "
        "(every(seconds=60)) or a callable from step to bool"
    )
