"""Recognise liquid cells by the parameters that they hold, and read their steps.

    stepper = CellStepper(runner, hook)                # inside runner.preserved()
    reading = read_liquid(stepper, observation.time_delta)
    match reading:
        case LTCReading(): ...                  # parameters, inputs and states
        case GateReading(): ...                 # a CfC's rate and offset, with the verified sign
        case DecayReading(): ...                # a pure CfC's rate
        case None: ...                          # no liquid cell

A reading is verified against the states that the cell computes, because ports of one cell differ in
signs, bounds and names. A cell that none of the known forms reproduces is not read.
"""

from __future__ import annotations

from typing import TypeAlias

from ...results import FloatArray
from ..cell_stepper import CellStepper
from ..errors import NotApplicable
from ..pytrees import modules
from .calls import has_parts
from .cfc import DECAY, GATE, DecayReading, GateReading, read_decays, read_gates
from .elapsed_time import time_delta_per_call
from .ltc import PARAMETERS, LTCReading, read_ltc
from .wired import neuron_groups

__all__ = [
    "DecayReading",
    "GateReading",
    "LTCReading",
    "Reading",
    "neuron_groups",
    "read_liquid",
    "time_delta_per_call",
]

Reading: TypeAlias = "LTCReading | GateReading | DecayReading"


def read_liquid(stepper: CellStepper, time_delta: FloatArray | None) -> Reading | None:
    """Recognise a liquid cell and read its steps; return None if the cell is not liquid.

    It runs every step again, and a few steps with other elapsed times.

    Args:
        stepper: The cell.
        time_delta: ``(S, T)``, the elapsed times of its sequences, or None.

    Raises:
        NotApplicable: If the cell has the parameters of a liquid cell, but they don't reproduce its
            states.
    """
    for names, read in ((PARAMETERS, read_ltc), (GATE, read_gates), (DECAY, read_decays)):
        holders = [m for _, m in modules(stepper.module) if has_parts(m, names)]
        if holders and stepper.hook.between:
            raise NotApplicable(
                f"the model changes the states of {stepper.hook.name} between its calls, so the "
                "cell's parameters don't determine the time constants"
            )
        if holders:
            return read(stepper, holders, time_delta)
    return None
