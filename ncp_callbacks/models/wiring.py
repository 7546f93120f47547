"""Describe wirings: which neurons of a cell are connected, and with which sign.

A wired CfC or LTC takes any object that has the attributes and methods of :class:`Wiring`. Those of
``ncps.wirings`` have them, of the packages ncps and ncps-mlx alike; neither package is needed here.
"""

from __future__ import annotations

import numbers
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["FullyConnected", "Wiring", "as_wiring", "build_wiring"]

Matrix: TypeAlias = npt.NDArray[Any]


class Wiring(Protocol):
    """Describe what :class:`CfC` and :class:`LTC` read of a wiring.

    Matrices are numpy or MLX arrays and hold the sign of a connection, 1 or -1, and 0 where there
    is none. A wiring is built for its number of inputs before its matrices are read.
    """

    @property
    def units(self) -> int:
        """Return the number of neurons."""

    @property
    def input_dim(self) -> int | None:
        """Return the number of inputs, or ``None`` before :meth:`build`."""

    @property
    def output_dim(self) -> int | None:
        """Return the number of motor neurons, whose states are the cell's outputs."""

    @property
    def adjacency_matrix(self) -> Any:
        """Return the signs of the connections between neurons: ``(units, units)``."""

    @property
    def sensory_adjacency_matrix(self) -> Any:
        """Return the signs of the connections from inputs: ``(input_dim, units)``."""

    @property
    def num_layers(self) -> int:
        """Return the number of layers, of which :class:`CfC` makes one cell each."""

    def is_built(self) -> bool:
        """Return whether :meth:`build` was called."""

    def build(self, input_dim: int) -> Any:
        """Connect the inputs."""

    def get_neurons_of_layer(self, layer_id: int) -> Any:
        """Return the indices of a layer's neurons; the layer of the motor neurons is the last."""

    def get_type_of_neuron(self, neuron_id: int) -> str:
        """Return the group of a neuron, such as ``"inter"``, ``"command"`` or ``"motor"``."""

    def erev_initializer(self) -> Any:
        """Return the initial reversal potentials of an LTC's synapses: ``(units, units)``."""

    def sensory_erev_initializer(self) -> Any:
        """Return the initial reversal potentials of its inputs: ``(input_dim, units)``."""


_INTERFACE = (
    "units",
    "input_dim",
    "output_dim",
    "adjacency_matrix",
    "sensory_adjacency_matrix",
    "num_layers",
    "is_built",
    "build",
    "get_neurons_of_layer",
    "get_type_of_neuron",
    "erev_initializer",
    "sensory_erev_initializer",
)


class FullyConnected:
    """Connect every input and neuron with every neuron; all neurons are outputs.

    Two of three connections are excitatory. The signs are those of
    ``ncps.wirings.FullyConnected(units)``.

    Args:
        units: Number of neurons.
        seed: Seed of the signs.
    """

    num_layers = 1

    def __init__(self, units: int, seed: int = 1111) -> None:
        self.units = self.output_dim = units
        self.input_dim: int | None = None
        self._random = np.random.default_rng(seed)
        self.adjacency_matrix = self._signs(units)
        self.sensory_adjacency_matrix: Matrix | None = None

    def _signs(self, sources: int) -> Matrix:
        return self._random.choice([-1, 1, 1], (sources, self.units))

    def is_built(self) -> bool:
        """Return whether the inputs are connected."""
        return self.input_dim is not None

    def build(self, input_dim: int) -> None:
        """Connect ``input_dim`` inputs."""
        self.input_dim = input_dim
        self.sensory_adjacency_matrix = self._signs(input_dim)

    def get_neurons_of_layer(self, layer_id: int) -> list[int]:
        """Return all neurons: there is one layer."""
        return list(range(self.units))

    def get_type_of_neuron(self, neuron_id: int) -> str:
        """Return ``"motor"``: all neurons are outputs."""
        return "motor"

    def erev_initializer(self) -> Matrix:
        """Return the signs of the connections between neurons as reversal potentials."""
        return self.adjacency_matrix.copy()

    def sensory_erev_initializer(self) -> Matrix | None:
        """Return the signs of the connections from inputs as reversal potentials."""
        matrix = self.sensory_adjacency_matrix
        return None if matrix is None else matrix.copy()


def as_wiring(units_or_wiring: Any) -> Wiring | None:
    """Return the wiring, or ``None`` if a number of units was passed."""
    return None if isinstance(units_or_wiring, numbers.Real) else units_or_wiring


def build_wiring(wiring: Wiring, input_size: int) -> Wiring:
    """Connect the inputs of a wiring, once.

    Building a wiring again draws additional synapses, so one that is built already is not built
    again, and two models that share it have the same connections.

    Raises:
        TypeError: An attribute or a method of :class:`Wiring` is missing.
        ValueError: The wiring was built for another number of inputs, or has no output neurons.
    """
    if isinstance(wiring, type):
        raise TypeError(f"{wiring.__name__} is a class, not a wiring: pass an instance of it")
    missing = [name for name in _INTERFACE if not hasattr(wiring, name)]
    if missing:
        raise TypeError(
            f"{type(wiring).__name__} is not a wiring, because it lacks {', '.join(missing)}: "
            "pass a number of units, or a wiring such as ncps.wirings.AutoNCP(16, 2)"
        )
    if not wiring.is_built():
        wiring.build(input_size)
    if wiring.input_dim != input_size:
        raise ValueError(
            f"the wiring was built for {wiring.input_dim} inputs, and the model has "
            f"input_size={input_size}: pass a new one"
        )
    if wiring.output_dim is None:
        raise ValueError("the wiring has no output neurons: set them by wiring.set_output_dim(...)")
    return wiring
