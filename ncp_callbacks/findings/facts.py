"""Hold what rules read: the numbers of a snapshot, earlier ones, the loop's curves, and the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..screen import clean_tag
from .curve import Curve

__all__ = ["Facts", "FloatArray", "Number", "Past", "RunFacts"]

FloatArray = npt.NDArray[np.float64]
_MAY_BE_NAN = ("duration", "chance_loss")


@dataclass(frozen=True)
class Number:
    """Hold one number of a snapshot.

    Attributes:
        value: The number.
        low, high: Ends of its 95 % CI; NaN without one.
        sequences: Number of sequences that it is computed from; 0 if that is not known.
        step: The training step at which it was measured.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    sequences: int = 0
    step: int = 0

    @property
    def has_ci(self) -> bool:
        """Return whether both ends of the CI are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def at_least(self) -> float:
        """Return the lower end of the CI; the number itself without a CI."""
        return self.low if self.has_ci else self.value

    @property
    def at_most(self) -> float:
        """Return the upper end of the CI; the number itself without a CI."""
        return self.high if self.has_ci else self.value


@dataclass(frozen=True)
class Past:
    """Hold the numbers of an earlier snapshot, by tag."""

    step: int
    numbers: Mapping[str, Number]


@dataclass(frozen=True)
class RunFacts:
    """Hold what is true of a run at all steps.

    Attributes:
        sequences: Number of held-out sequences.
        time_steps: Their length, with padding.
        duration: Mean elapsed time from the first to the last real time step of a sequence, in time
            steps where the batch has no elapsed times; NaN where that is not known.
        feature_names: One name for each feature.
        class_names: Names of the classes; None where the targets are no classes.
        class_counts: Number of held-out sequences of each class; None without classes.
        chance_loss: Mean loss of the best constant output, fitted to the held-out batch; NaN where
            that is not known.
        takes_time: True if elapsed times reach the model.
        time_varies: True if the held-out elapsed times differ.
        target: Name of the target.
        padding: Share of padding in the held-out batch.
        feature_sds: SD of each feature over sequences and time steps.
        coupled: True if the sequences of a batch act on each other.
        callbacks: Kind of each callback, by its name, in their order.
        analysed: Number of sequences that each callback analyses, by its name.
    """

    sequences: int = 0
    time_steps: int = 0
    duration: float = math.nan
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    chance_loss: float = math.nan
    takes_time: bool = False
    time_varies: bool = True
    target: str = "prediction"
    padding: float = 0.0
    feature_sds: tuple[float, ...] = ()
    coupled: bool = False
    callbacks: Mapping[str, str] = field(default_factory=dict)
    analysed: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as strings, numbers and lists; a number that is NaN is None."""
        content: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        for name in _MAY_BE_NAN:
            content[name] = content[name] if math.isfinite(content[name]) else None
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunFacts:
        """Return facts from what :meth:`to_json` returned; unknown entries are skipped."""
        names = {f.name for f in dataclasses.fields(cls)}
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
            if name in names
        }
        for name in _MAY_BE_NAN:
            if known.get(name, math.nan) is None:
                known[name] = math.nan
        return cls(**known)

    def kind_of(self, group: str) -> tuple[str, str]:
        """Return the kind of the callback that logs a group of tags, and its name.

        ``attribution_loss`` belongs to the callback ``attribution``, and ``dynamics_encoder`` to
        ``dynamics``: what follows the name is that of a target or of a cell. Both are the group
        itself for an unknown group.
        """
        fitting = [n for n in self.callbacks if group == n or group.startswith(f"{n}_")]
        if not fitting:
            return group, group
        name = max(fitting, key=len)
        return self.callbacks[name], name


@dataclass(frozen=True)
class Facts:
    """Hold all that rules read. A number that was not measured is absent.

    Attributes:
        run: What is true at all steps.
        step: The training step.
        numbers: The last known value of each number, by tag.
        arrays: The last known value of each array, by tag.
        history: Numbers of earlier snapshots, by increasing step.
        curves: Numbers of the training loop over its steps, by tag.
    """

    run: RunFacts = field(default_factory=RunFacts)
    step: int = 0
    numbers: Mapping[str, Number] = field(default_factory=dict)
    arrays: Mapping[str, FloatArray] = field(default_factory=dict)
    history: Sequence[Past] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def groups(self, kind: str, name: str) -> list[str]:
        """Return the groups of tags of a kind of callback that have a finite number of this name.

        Groups of the default target come first, and then the order is that of the callbacks.
        """
        order = list(self.run.callbacks)
        found = []
        for tag, number in self.numbers.items():
            group, _, rest = tag.partition("/")
            # A feature may have the name of a number.
            if rest != name or group.endswith("_share") or not math.isfinite(number.value):
                continue
            own, callback = self.run.kind_of(group)
            if own == kind or (not order and group.startswith(f"{kind}_")):
                place = order.index(callback) if callback in order else len(order)
                found.append((place, len(group), group))
        return [group for *_, group in sorted(found)]

    def each(self, kind: str, name: str) -> list[tuple[str, Number]]:
        """Return the tags and numbers of this name, one for each group of a kind of callback."""
        tags = [f"{group}/{name}" for group in self.groups(kind, name)]
        return [(tag, self.numbers[tag]) for tag in tags]

    def first(self, kind: str, name: str) -> tuple[str, Number] | None:
        """Return the tag and the number of the first group; None if there is none."""
        found = self.each(kind, name)
        return found[0] if found else None

    def shares(self, group: str) -> dict[str, Number]:
        """Return the numbers ``<group>_share/<feature>`` by feature, in decreasing order."""
        prefix = f"{group}_share/"
        named = {clean_tag(prefix + name): name for name in self.run.feature_names}
        found = {
            named.get(tag, tag.removeprefix(prefix)): number
            for tag, number in self.numbers.items()
            if tag.startswith(prefix) and math.isfinite(number.value)
        }
        return dict(sorted(found.items(), key=lambda item: -item[1].value))

    def past(self, tag: str) -> list[tuple[int, Number]]:
        """Return the steps and finite values of a number, the present one last."""
        points = [(p.step, p.numbers[tag]) for p in self.history if tag in p.numbers]
        if tag in self.numbers:
            points.append((self.step, self.numbers[tag]))
        return [(step, number) for step, number in points if math.isfinite(number.value)]

    def time_profile(self, group: str) -> FloatArray | None:
        """Return the share ``(T,)`` of each time step in the attribution of a group, or None."""
        strength = self.arrays.get(f"_ncp/{group}_strength")
        if strength is None or strength.ndim != 2 or not strength.size:
            return None
        profile = strength.sum(axis=1, dtype=np.float64)
        total = float(profile.sum())
        if not math.isfinite(total) or total <= 0:
            return None
        return np.asarray(profile / total)
