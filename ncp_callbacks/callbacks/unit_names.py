"""Name the units of a cell, and choose those that are analysed one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import NotApplicable
from ..model.liquid import neuron_groups
from ..observation import Observation

__all__ = ["ChosenUnits", "unit_names"]


def unit_names(cell: str, units: int, observation: Observation) -> list[str]:
    """Return names such as ``unit 3``, or ``motor 3`` for a neuron of a wired cell.

    The number is the place in the state. It costs a forward
    pass of two sequences, because models that squeeze their arrays run no single one.

    Args:
        cell: Name of the cell.
        units: Number of its units.
        observation: The observation, with :attr:`Need.CELL_STEPS`.
    """
    names = [f"unit {i}" for i in range(units)]
    try:
        groups = neuron_groups(observation.limited(2).extra_passes.cell_stepper(cell))
    except NotApplicable:
        return names
    for group in groups:
        for column in group.columns.tolist():
            names[column] = f"{group.name} {column}"
    return names


class ChosenUnits:
    """Hold the units of a cell that are analysed, which stay those of the first snapshot.

    Attributes:
        names: Names of all units.
        units: ``(K,)``, places of the units in the state, increasing.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.units: npt.NDArray[np.intp] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the units."""
        units = None if self.units is None else self.units.tolist()
        return {"names": self.names, "units": units}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.names = [str(name) for name in state["names"]]
        units = state["units"]
        self.units = None if units is None else np.asarray(units, np.intp)

    def choose(self, names: list[str], strength: npt.ArrayLike, most: int) -> npt.NDArray[np.intp]:
        """Return the units, chosen at the first call: the strongest, if there are too many.

        Args:
            names: Names of all units.
            strength: ``(H,)``.
            most: Largest number of units.
        """
        if self.units is None or len(names) != len(self.names):
            order = np.argsort(-np.nan_to_num(np.asarray(strength, np.float64)), kind="stable")
            self.names, self.units = names, np.sort(order[:most])
        return self.units
