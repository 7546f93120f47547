"""Group the neurons of wired cells by their kind."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
import numpy as np

from ...neuron_groups import NeuronGroup
from ..cell_stepper import CellStepper
from ..pytrees import modules
from .calls import has_parts
from .cfc import DECAY, GATE

__all__ = ["neuron_groups"]


def neuron_groups(stepper: CellStepper) -> tuple[NeuronGroup, ...]:
    """Group the neurons of a wired cell by kind, from the inputs' side to the outputs'.

    The state of an LTC is in the order of the wiring's neurons, motor neurons first; that of a
    wired CfC in the order of its layers, motor neurons last.

    Returns:
        The groups; empty for a cell without a wiring.
    """
    inside = [module for _, module in modules(stepper.module)]
    wiring = next(filter(None, map(_wiring, inside)), None)
    if wiring is None:
        return ()
    units = sum(stepper.sizes)
    layers = [list(wiring.get_neurons_of_layer(i)) for i in range(wiring.num_layers)]
    in_layers = [int(neuron) for layer in layers for neuron in layer]
    layered = any(has_parts(module, names) for module in inside for names in (GATE, DECAY))
    neurons = in_layers if layered else list(range(units))
    if sorted(neurons) != list(range(units)):
        return ()
    kinds = [str(wiring.get_type_of_neuron(neuron)) for neuron in neurons]
    names = dict.fromkeys(str(wiring.get_type_of_neuron(neuron)) for neuron in in_layers)
    # A wiring of one layer orders them by number, motor neurons first.
    ordered = sorted(names, key=lambda name: name == "motor")
    at = {name: np.flatnonzero([kind == name for kind in kinds]) for name in ordered}
    return tuple(NeuronGroup(name, columns) for name, columns in at.items())


def _wiring(module: nn.Module) -> Any:
    for name in ("wiring", "_wiring"):
        found = getattr(module, name, None)
        if all(hasattr(found, m) for m in ("get_type_of_neuron", "get_neurons_of_layer")):
            return found
    return None
