"""What a callback is: needs, and a function from an observation to records."""

from __future__ import annotations

import abc
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..analysis.estimates import Estimate
from ..analysis.uncertainty import FEW
from ..instrument import NothingToObserve
from ..observation import Need, Observation
from ..plots import nice_limit
from ..records import Note, Record, Scalar
from ..schedules import Schedule, ScheduleLike, as_schedule

__all__ = [
    "Callback",
    "GrowingLimit",
    "bounds",
    "estimated",
    "few",
    "indicative",
    "non_finite",
    "over",
    "short_names",
    "whatever_can_be_had",
]


class Callback(abc.ABC):
    """Something to look at, every so often.

    A subclass names what it ``needs`` of the model and turns an observation into records; it never
    runs the model, draws, or writes. Say in its docstring which tags it logs.

    Args:
        every: When to look: steps, a schedule or any callable ``step -> bool``; by default whenever
            the monitor does.
        name: First part of its tags; by default the class's own. Names in a monitor differ.
        max_sequences: Look at no more than so many held-out sequences, spread over the batch; None:
            all. What others look at at the same step costs nothing more.

    Raises:
        TypeError, ValueError: For an ``every``, ``name`` or ``max_sequences`` that can't be one.
    """

    needs: frozenset[Need] = frozenset()
    default_name: ClassVar[str] = ""

    # A subclass with state of its own need not call __init__.
    every: Schedule | None = None
    name: str = ""
    max_sequences: int | None = None
    # Look at the first of so many occasions only.
    one_in: int = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("default_name"):
            cls.default_name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if not cls.__dict__.get("name"):
            cls.name = cls.default_name
        if cls.__dict__.get("every") is not None:
            cls.every = as_schedule(cls.__dict__["every"])

    def __init__(
        self,
        *,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
    ) -> None:
        if every is not None:
            self.every = as_schedule(every)
        if name is not None and not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"name={name!r}: a name begins the callback's tags; use letters, digits and _ . -"
            )
        self.name = name or self.default_name
        if max_sequences is not None:
            whole = hasattr(max_sequences, "__index__") and not isinstance(max_sequences, bool)
            if not whole or operator.index(max_sequences) < 1:
                raise ValueError(
                    f"max_sequences={max_sequences!r}: give 1 or more, or None for all"
                )
            self.max_sequences = operator.index(max_sequences)

    @abc.abstractmethod
    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        """Records of one look.

        Raises:
            NothingToObserve: If the model has nothing for this callback; it is then left out.
        """

    def finish(self, observation: Observation) -> Iterable[Record | Note]:
        """Records of one more look, when the run ends without an error; most have none."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """What must survive an interruption of the run: numbers, strings, lists, arrays, dicts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (optional)
        """Take up what ``state_dict`` gave; arrays may come back as lists."""

    def __repr__(self) -> str:
        when = "" if self.every is None else f", every={self.every!r}"
        return f"{type(self).__name__}(name={self.name!r}{when})"


def whatever_can_be_had(
    of_each: Mapping[str, Callable[[], Iterable[Record | Note]]], name: str, lacking: str
) -> Iterator[Record | Note]:
    """Records of each of several cells, and a word on those that have nothing to look at.

    Args:
        of_each: What makes the records of a cell, by its group.
        name: The callback's, for the word.
        lacking: What follows from the reason: "…, so that nothing is logged of it here".

    Raises:
        NothingToObserve: If none has anything.
    """
    found: list[Record | Note] = []
    reasons: list[str] = []
    for measured in of_each.values():
        try:
            found += measured()
        except NothingToObserve as reason:
            reasons.append(str(reason))
    if len(reasons) == len(of_each):
        raise NothingToObserve("; ".join(reasons))
    yield from found
    for why in reasons:
        yield Note(f"{name}: {why}, so that {lacking}")


def bounds(interval: npt.NDArray[np.floating[Any]] | None) -> tuple[float, float] | None:
    """An interval as a record takes it; None where there is none."""
    if interval is None or not np.isfinite(interval).all():
        return None
    return float(interval[0]), float(interval[1])


def over(sequences: int) -> str:
    """What follows the description of a number with an interval."""
    return "; with a 95 % interval over sequences" + (
        f", which of fewer than {FEW} is indicative" if sequences < FEW else ""
    )


def indicative(sequences: int) -> str:
    """What follows the name of an interval in a description."""
    return f" (indicative, of fewer than {FEW})" if sequences < FEW else ""


def few(observation: Observation) -> Iterator[Note]:
    """A word, the same from all callbacks, where no intervals over many sequences can be had."""
    whole = observation.whole_batch
    if whole < FEW:
        yield Note(
            f"the held-out batch has {whole} sequence{'s' * (whole != 1)}: 95 % intervals over "
            f"fewer than {FEW} are indicative, they hold the truth less often than they say. Hold "
            f"out {FEW} or more"
        )


def estimated(
    tag: str,
    value: float,
    estimate: Estimate | None,
    description: str,
    *,
    chart: bool = False,
) -> Scalar:
    """A number with its interval over sequences, if it has one.

    Args:
        tag, description: As for :class:`Scalar`.
        value: The number.
        estimate: What is known of how sure it is.
        chart: Whether it is one of the few that are shown as a band.
    """
    interval = None if estimate is None else estimate.interval()
    if estimate is not None and estimate.sequences > 1:
        description += over(estimate.sequences)
    return Scalar(tag, value, description, interval=interval, chart=chart)


class GrowingLimit:
    """An axis limit that only grows, in 1-2-5 steps, so that pictures compare between steps."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def cover(self, largest: float) -> None:
        """Grow where ``largest`` is finite and beyond."""
        if self.value < largest < float("inf"):
            self.value = nice_limit(largest)

    def covering(self, largest: float) -> float:
        """The limit, grown to cover ``largest``; 1 as long as nothing was above 0."""
        self.cover(largest)
        return self.value or 1.0


def non_finite(group: str, count: int, what: str, why: str) -> Iterator[Scalar | Note]:
    """How many were left out, as ``<group>/nonfinite``, and a word to the user if any were."""
    yield Scalar(f"{group}/nonfinite", count, f"{what.capitalize()} left out because {why}")
    if count:
        yield Note(
            f"{group}: some {what} are left out because {why}; {group}/nonfinite counts them"
        )


def short_names(paths: Sequence[str]) -> list[str]:
    """Module paths cut to what tells them apart, for tags: ``""`` for a single one.

    ``["encoder.cell", "decoder.cell"]`` become ``["_encoder", "_decoder"]``.
    """
    if len(paths) == 1:
        return [""]
    split = [p.split(".") for p in paths]
    for parts in (
        [[part for part in p if sum(part in q for q in split) < len(split)] for p in split],
        split,
    ):
        names = ["_" + "_".join(re.sub(r"\W+", "", part) for part in p) for p in parts]
        if len(set(names)) == len(names) and "_" not in names:
            return names
    return [f"_{i}" for i in range(len(paths))]
