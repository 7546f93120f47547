"""Name the groups of neurons of a wired cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["NeuronGroup"]


@dataclass(frozen=True, eq=False)
class NeuronGroup:
    """Hold the places of the neurons of one kind.

    Attributes:
        name: "inter", "command" or "motor", as the wiring calls them.
        columns: Their places in the state.
    """

    name: str
    columns: npt.NDArray[np.intp]
