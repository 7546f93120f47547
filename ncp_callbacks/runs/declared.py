"""Tell from its description in the log what an array is, and what runs have in common of it.

Features correspond by name and time steps by position. Units of two networks that were trained
apart don't correspond, nor do axes that were chosen for the states of one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .reader import Run

__all__ = ["HELD_OUT", "Declared"]

HELD_OUT = "held out batch"
"""Kind of the arrays that identify the held-out batch."""
_OWN_AXES = frozenset({"unit", "neuron", "axis"})
# The batch is compared as a condition of the analysis, and states by a sample of them.
_COMPARED_OTHERWISE = frozenset({HELD_OUT, "elapsed", "trajectory", "units", "unit words"})


@dataclass(frozen=True)
class Declared:
    """Hold the description of an array; empty for an array without one.

    Attributes:
        kind: What it is, such as ``attribution``.
        axes: What each axis counts.
    """

    kind: str = ""
    axes: tuple[str, ...] = ()

    @classmethod
    def of(cls, runs: Iterable[Run], tag: str) -> Declared:
        """Return what the first run that describes an array says of it."""
        about = next(filter(None, (run.about.get(tag) for run in runs)), {})
        kind, axes = about.get("kind"), about.get("axes")
        return cls(
            kind if isinstance(kind, str) else "",
            tuple(map(str, axes)) if isinstance(axes, list) else (),
        )

    @property
    def is_compared(self) -> bool:
        """Return False for what other arrays or conditions compare."""
        return self.kind not in _COMPARED_OTHERWISE

    @property
    def is_of_units(self) -> bool:
        """Return whether it has one number for each unit: how many have which can be compared."""
        return len(self.axes) == 1 and self.axes[0] in _OWN_AXES

    @property
    def corresponds(self) -> bool:
        """Return False if a place of the array means another thing in each run."""
        return self.is_of_units or self.kind == "state sample" or not _OWN_AXES & {*self.axes}

    @property
    def is_by_feature(self) -> bool:
        """Return whether an axis counts features."""
        return "feature" in self.axes
