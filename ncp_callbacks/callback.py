"""Define the base class of callbacks, and tools for callbacks of your own.

- :func:`scalar_with_ci` makes a scalar with its 95 % confidence interval from an
  :class:`~.stats.Estimate`;
- :class:`PairedChanges` compares numbers of equal sequences with the previous snapshot;
- :class:`AxisLimit` keeps the axes of pictures comparable between steps;
- :meth:`Callback.keep` keeps these through interruptions, and :class:`ByName` one for each cell;
- :func:`cells_with_groups` and :func:`per_cell_names` name the tags of each recurrent cell;
- :func:`for_each_supported_cell` skips the cells that an analysis does not apply to, with a note;
- :func:`small_batch_note` warns once that the held-out batch is small;
- :func:`non_finite_count` logs the number of skipped values.

For example, a callback that logs the mean norm of the last state with its CI and its change::

    class LastStateNorm(ncp.Callback):
        needs = frozenset({ncp.Need.STATES})

        def __init__(self, **common):
            super().__init__(**common)
            self._changes = self.keep("changes", ncp.PairedChanges())

        def measure(self, observation):
            norms = np.linalg.norm(observation.states[0].values[:, -1], axis=1)
            mean = ncp.Estimate.mean(norms, SIZE)  # from ncp_callbacks.stats
            yield from ncp.small_batch_note(observation)
            yield ncp.scalar_with_ci(f"{self.name}/mean", mean.value, mean, "Mean norm")
            yield from self._changes.compare(self.name, {"mean": mean}, observation, "mean")
"""

from __future__ import annotations

import abc
import inspect
import operator
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .arrays import to_numpy
from .keywords import checks_keywords, takes_others
from .model import NotApplicable, TargetLike
from .observation import Need, Observation, Trajectory
from .plotting.limits import nice_limit
from .records import Note, Place, Record, Scalar
from .scheduling import Schedule, ScheduleLike, as_schedule, as_whole
from .stats import MIN_SEQUENCES_FOR_CI, SIZE, Estimate, changed_beyond_chance

__all__ = [
    "AxisLimit",
    "ByName",
    "Callback",
    "PairedChanges",
    "as_ci",
    "cells_with_groups",
    "ci_caveat",
    "ci_suffix",
    "for_each_supported_cell",
    "non_finite_count",
    "per_cell_names",
    "scalar_with_ci",
    "sequence_indices",
    "small_batch_note",
    "whole_number",
]

# Largest number of values of the batch in its checksum.
_MAX_COMPARED = 4096


class Stateful(Protocol):
    """Restore itself after an interruption."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


_Kept = TypeVar("_Kept", bound=Stateful)


class Callback(abc.ABC):
    """Analyse the snapshots of a model and make records of the result.

    A subclass declares what it ``needs`` of the model and turns an observation into records. The
    needs are arrays of the pass that all callbacks share, and kinds of extra passes, which it asks
    ``observation.extra_passes`` for. It never draws or writes. Its docstring lists the tags that it
    logs.

    Args:
        every: The steps to analyse: a number of steps, a schedule or any callable
            ``step -> bool``; None for every snapshot of the monitor.
        name: First part of the callback's tags; None for the class's own name. Names within a
            monitor must differ.
        max_sequences: Largest number of held-out sequences to analyse, spread over the batch; None
            for all. A pass that callbacks share runs once.
        target: What is attributed, in place of the monitor's target: a class's name, an output's
            index, ``"prediction"``, ``"loss"``, or a callable of all outputs and the held-out
            targets, which must not use the model. It costs a shared pass of its own, and its name
            follows that of the callback in tags. None for the monitor's target.

    Raises:
        TypeError, ValueError: If ``every``, ``name`` or ``max_sequences`` is invalid.
    """

    needs: frozenset[Need] = frozenset()
    default_name: ClassVar[str] = ""

    # A subclass with state of its own need not call __init__.
    every: Schedule | None = None
    name: str = ""
    max_sequences: int | None = None
    target: TargetLike | None = None
    # Analyse every n-th due snapshot only, beginning with the first, and the last step of the run.
    every_nth: int = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__dict__.get("default_name"):
            cls.default_name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if not cls.__dict__.get("name"):
            cls.name = cls.default_name
        if cls.__dict__.get("every") is not None:
            cls.every = as_schedule(cls.__dict__["every"])
        init = cls.__dict__.get("__init__")
        # Others end at the constructor below, or are the class's own affair.
        if inspect.isfunction(init) and not takes_others(init):
            cls.__init__ = checks_keywords(init)  # type: ignore[method-assign]

    @checks_keywords
    def __init__(
        self,
        *,
        every: ScheduleLike | None = None,
        name: str | None = None,
        max_sequences: int | None = None,
        target: TargetLike | None = None,
    ) -> None:
        if every is not None:
            self.every = as_schedule(every)
        if target is not None:
            self.target = target
            name = f"{self.default_name}_{_target_tag(target)}" if name is None else name
        if name is not None and not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"name={name!r}: a name begins the callback's tags; pass letters, digits and _ . -"
            )
        self.name = name or self.default_name
        if max_sequences is not None:
            self.max_sequences = whole_number("max_sequences", max_sequences, 1)

    def analyse_always(self) -> None:
        """Analyse each snapshot, and all that a snapshot can have: a replay has the time.

        A callback that skips a part at some snapshots overrides this and calls it.
        """
        self.every, self.every_nth = None, 1

    @property
    def conditions(self) -> str:
        """Return what the numbers depend on besides model, batch and target; "" for nothing.

        Numbers of runs that differ in it are not subtracted when runs are compared.
        """
        return ""

    @abc.abstractmethod
    def measure(self, observation: Observation) -> Iterable[Record | Note]:
        """Return the records of one snapshot.

        Raises:
            NotApplicable: If the callback does not apply to the model; it is then skipped.
        """

    def finish(self, observation: Observation) -> Iterable[Record | Note]:
        """Return the records of a last snapshot, when the run ends without an error."""
        return ()

    @property
    def finishes(self) -> bool:
        """Return whether :meth:`finish` may have something to tell."""
        return type(self).finish is not Callback.finish

    def keep(self, name: str, part: _Kept) -> _Kept:
        """Keep a part of the callback through interruptions, and return it.

        Args:
            name: Its name in :meth:`state_dict`.
            part: An object with ``state_dict`` and ``load_state_dict``, such as
                :class:`AxisLimit`, :class:`ByName` or :class:`PairedChanges`.
        """
        self.__dict__.setdefault("_kept", {})[name] = part
        return part

    def state_dict(self) -> dict[str, Any]:
        """Return the state to restore after an interruption: that of the parts that are kept.

        It may hold numbers, strings, lists, arrays and dicts.
        """
        return {name: part.state_dict() for name, part in self.__dict__.get("_kept", {}).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; arrays may come back as lists."""
        for name, part in self.__dict__.get("_kept", {}).items():
            part.load_state_dict(state[name])

    def __repr__(self) -> str:
        when = "" if self.every is None else f", every={self.every!r}"
        return f"{type(self).__name__}(name={self.name!r}{when})"


def _target_tag(target: TargetLike) -> str:
    """Return the name of a target as a part of a tag."""
    name = getattr(target, "__name__", type(target).__name__) if callable(target) else str(target)
    tag = re.sub(r"\W+", "_", "target" if name == "<lambda>" else name).strip("_") or "target"
    return tag if isinstance(target, str) or callable(target) else f"output{tag}"


def cells_with_groups(observation: Observation, name: str) -> list[tuple[Trajectory, str]]:
    """Return the states of each recurrent cell, and the group of its tags.

    Args:
        observation: The observation, with :attr:`Need.STATES`.
        name: Name of the callback, which begins the tags.

    Raises:
        NotApplicable: If the model has no recurrent cell.
    """
    cells = observation.states
    if not cells:
        raise NotApplicable(observation.no_cells)
    shorts = per_cell_names([cell.cell for cell in cells])
    return [(cell, name + short) for cell, short in zip(cells, shorts, strict=True)]


def for_each_supported_cell(
    measures: Mapping[str, Callable[[], Iterable[Record | Note]]], name: str, lacking: str
) -> Iterator[Record | Note]:
    """Yield the records of each cell that an analysis applies to, and a note on the other cells.

    Args:
        measures: For the group of each cell, a function that returns its records.
        name: Name of the callback, for the note.
        lacking: End of the note: "<reason>, so that <lacking>".

    Raises:
        NotApplicable: If the analysis applies to none of the cells.
    """
    found: list[Record | Note] = []
    reasons: list[str] = []
    for measure in measures.values():
        try:
            found += measure()
        except NotApplicable as reason:
            reasons.append(str(reason))
    if len(reasons) == len(measures):
        raise NotApplicable("; ".join(reasons))
    yield from found
    for why in reasons:
        yield Note(f"{name}: {why}, so that {lacking}")


def whole_number(name: str, value: Any, least: int) -> int:
    """Return an argument that must be a whole number.

    Raises:
        ValueError: If it is none, or below ``least``.
    """
    whole = as_whole(value)
    if whole is None or whole < least:
        raise ValueError(f"{name}={value!r}: pass a whole number of at least {least}")
    return whole


def sequence_indices(sequences: Sequence[int], most: int) -> list[int]:
    """Return the argument ``sequences=`` of a callback as different indices from 0 on.

    Args:
        sequences: Indices of held-out sequences.
        most: Largest number of them.

    Raises:
        TypeError: If one is no whole number.
        ValueError: If there are none or too many, or one is negative or occurs twice.
    """
    try:
        indices = [operator.index(index) for index in sequences]
    except TypeError:
        raise TypeError(
            f"sequences={sequences!r}: pass a list of indices of held-out sequences, e.g. [0, 5]"
        ) from None
    different = len(set(indices)) == len(indices)
    if not 1 <= len(indices) <= most or not different or min(indices) < 0:
        raise ValueError(f"sequences={indices}: pass 1 to {most} different indices from 0 on")
    return indices


def as_ci(ends: npt.ArrayLike | None) -> tuple[float, float] | None:
    """Return the two ends of a confidence interval as a record takes them.

    Args:
        ends: ``(2,)``, or None for no CI.

    Returns:
        None if there is no CI, or an end is not finite.
    """
    if ends is None or not np.isfinite(ends).all():
        return None
    low, high = np.asarray(ends, np.float64).tolist()
    return low, high


def ci_caveat(sequences: int) -> str:
    """Return a caveat to write after "95 % CI": empty with 16 or more sequences."""
    if sequences >= MIN_SEQUENCES_FOR_CI:
        return ""
    return f" (unreliable: fewer than {MIN_SEQUENCES_FOR_CI} sequences)"


def ci_suffix(sequences: int) -> str:
    """Return the end of the description of a number with a confidence interval."""
    return f"; with a 95 % CI over sequences{ci_caveat(sequences)}"


def small_batch_note(observation: Observation) -> Iterator[Note]:
    """Yield one note, equal for all callbacks, if the held-out batch is small for 95 % CIs."""
    whole = observation.whole_batch
    if whole < MIN_SEQUENCES_FOR_CI:
        yield Note(
            f"the held-out batch has {whole} sequence{'s' * (whole != 1)}: with fewer than "
            f"{MIN_SEQUENCES_FOR_CI}, 95 % CIs cover the true value less often than 95 %. Hold out "
            f"at least {MIN_SEQUENCES_FOR_CI}"
        )


def scalar_with_ci(
    tag: str,
    value: float,
    estimate: Estimate | None,
    description: str,
    *,
    place: Place = "group",
) -> Scalar:
    """Return a scalar with its 95 % confidence interval over sequences, if it has one.

    Args:
        tag: See :class:`Scalar`.
        value: The number.
        estimate: The number as an estimate over sequences; None for no CI.
        description: See :class:`Scalar`; a note on the CI is added.
        place: See :class:`Scalar`.
    """
    ci = None if estimate is None else estimate.ci()
    if estimate is not None and estimate.sequences > 1:
        description += ci_suffix(estimate.sequences)
    return Scalar(tag, value, description, ci=ci, place=place)


class AxisLimit:
    """Hold an axis limit that only grows, in 1-2-5 steps, so that pictures are comparable."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def state_dict(self) -> float:
        """Return the limit."""
        return self.value

    def load_state_dict(self, state: float) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.value = float(state)

    def cover(self, largest: float) -> None:
        """Grow the limit if ``largest`` is finite and beyond it."""
        if self.value < largest < float("inf"):
            self.value = nice_limit(largest)

    def covering(self, largest: float) -> float:
        """Return the limit, grown to cover ``largest``; 1 while nothing was above 0."""
        self.cover(largest)
        return self.value or 1.0


class ByName(dict[str, _Kept]):
    """Hold an object for each cell or layer, by its name; make it when it is first asked for.

    Args:
        make: Makes the object of a name, such as the class :class:`AxisLimit`.
    """

    def __init__(self, make: Callable[[], _Kept]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> _Kept:
        self[name] = self._make()
        return self[name]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each object."""
        return {name: part.state_dict() for name, part in self.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.clear()
        for name, saved in state.items():
            self[name].load_state_dict(saved)


class PairedChanges:
    """Compare numbers with those of the previous snapshot, if the sequences are equal.

    A curve that moves by less than its CI may still have moved beyond chance, because sequences
    differ more from each other than each does from itself.
    """

    def __init__(self) -> None:
        self._batch: dict[str, int] = {}
        self._before: dict[str, dict[str, Estimate]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state to restore after an interruption, ready for JSON."""
        return {
            group: {
                "batch": self._batch[group],
                "numbers": {name: number.to_state() for name, number in numbers.items()},
            }
            for group, numbers in self._before.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; an empty state is a fresh start."""
        self._batch = {group: int(saved["batch"]) for group, saved in state.items()}
        self._before = {
            group: {name: Estimate.from_state(s) for name, s in saved["numbers"].items()}
            for group, saved in state.items()
        }

    def compare(
        self,
        group: str,
        now: Mapping[str, Estimate],
        observation: Observation,
        headline: str | None = None,
        called: str | None = None,
    ) -> Iterator[Scalar]:
        """Yield how many numbers changed beyond chance, and the change of one of them.

        It yields nothing at the first snapshot, or if the sequences have changed.

        Args:
            group: First part of the tags.
            now: The numbers of this snapshot, by name.
            observation: The observation that they are computed from.
            headline: Name of the number whose change is logged.
            called: Name of ``headline`` in the tag of the change; None for ``headline`` itself.
        """
        whole = len(observation.indices)
        # Where sequences were skipped, or an influence is infinite, estimates can't be paired.
        now = {
            name: number
            for name, number in now.items()
            if number.sequences == whole and number.known
        }
        batch, known = _checksum(observation), self._batch.get(group)
        before = self._before.get(group, {}) if batch == known else {}
        self._batch[group], self._before[group] = batch, dict(now)
        both = {
            name: (before[name], number)
            for name, number in now.items()
            if name in before
            and before[name].sequences == whole
            and before[name].scale.name == number.scale.name
        }
        if whole < 2 or not both:
            return
        if headline in both:
            earlier, number = both[headline]
            change = number.change(earlier)
            if change is not None:
                relative = number.scale.name == SIZE.name
                what = "Relative change (0.1 for 10 % more)" if relative else "Change"
                yield Scalar(
                    f"{group}/{called or headline}_change",
                    change.value,
                    f"{what} of {group}/{headline} since the previous snapshot, over the same "
                    f"sequences; it is beyond chance if its CI excludes 0{ci_suffix(whole)}",
                    ci=(change.low, change.high),
                    place="data",
                )
        yield Scalar(
            f"{group}/numbers_changed",
            sum(changed_beyond_chance(list(both.values()))),
            f"How many of the {len(both)} numbers of {group} with a CI changed beyond chance "
            "since the previous snapshot: paired t tests over the same sequences, corrected for "
            "their number by Holm. If nothing changes, it is above 0 in 1 snapshot of 20",
            place="data",
        )


def _checksum(observation: Observation) -> int:
    """Return a checksum of the sequences of a snapshot."""
    checksum = zlib.crc32(np.ascontiguousarray(observation.indices).tobytes())
    held_out = observation.held_out
    # The embedding of tokens changes while the model learns.
    inputs = to_numpy(held_out.inputs) if held_out.tokens else observation.inputs
    for array in (inputs, observation.time_delta):
        if array is not None:
            flat = array.reshape(-1)
            compared = flat[:: max(1, flat.size // _MAX_COMPARED)]
            checksum = zlib.crc32(np.ascontiguousarray(compared).tobytes(), checksum)
    return checksum


def non_finite_count(group: str, count: int, what: str, why: str) -> Iterator[Scalar | Note]:
    """Yield the number of skipped values as ``<group>/nonfinite``, and a note if there are any.

    Args:
        group: First part of the tag.
        count: Number of skipped values.
        what: Plural name of the values.
        why: The reason, as a clause.
    """
    description = f"{what[:1].upper()}{what[1:]} skipped because {why}"
    yield Scalar(f"{group}/nonfinite", count, description, place="nonzero")
    if count:
        yield Note(f"{group}: some {what} are skipped because {why}; {group}/nonfinite counts them")


def per_cell_names(paths: Sequence[str]) -> list[str]:
    """Return the parts of module paths that distinguish cells, for tags; ``""`` for a single one.

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
