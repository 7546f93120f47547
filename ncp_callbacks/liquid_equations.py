"""Compute the steps of an LTC in numpy, from its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from .results import FloatArray

__all__ = [
    "LTCParameters",
    "ltc_pieces",
    "ltc_step",
    "ltc_sub_steps",
    "membrane",
]

# Largest number of conductances of synapses held at once.
_AT_ONCE = 1 << 21


@dataclass(frozen=True, eq=False)
class LTCParameters:
    """Hold the parameters of an LTC cell in float64, with constraints and masks applied.

    There are ``F`` inputs and ``H`` neurons; synapses are ``(source, target)``.

    Attributes:
        gleak: ``(H,)``, leak conductance.
        vleak: ``(H,)``, resting potential.
        cm: ``(H,)``, capacitance.
        w: ``(H, H)``, largest conductance of synapses between neurons; 0 where there is none.
        sigma: ``(H, H)``, steepness of their opening.
        mu: ``(H, H)``, potential of the source at which they are half open.
        erev: ``(H, H)``, reversal potential.
        sensory_w: ``(F, H)``, as ``w``, for synapses from inputs.
        sensory_sigma: ``(F, H)``, as ``sigma``, for synapses from inputs.
        sensory_mu: ``(F, H)``, as ``mu``, for synapses from inputs.
        sensory_erev: ``(F, H)``, as ``erev``, for synapses from inputs.
        input_w: ``(F,)``, factors of the map of the inputs.
        input_b: ``(F,)``, offsets of the map of the inputs.
        unfolds: Number of sub-steps in a step.
        epsilon: Added to each neuron's total conductance.
    """

    gleak: FloatArray
    vleak: FloatArray
    cm: FloatArray
    w: FloatArray
    sigma: FloatArray
    mu: FloatArray
    erev: FloatArray
    sensory_w: FloatArray
    sensory_sigma: FloatArray
    sensory_mu: FloatArray
    sensory_erev: FloatArray
    input_w: FloatArray
    input_b: FloatArray
    unfolds: int
    epsilon: float

    @property
    def units(self) -> int:
        """Return the number of neurons, ``H``."""
        return len(self.cm)

    @property
    def inputs(self) -> int:
        """Return the number of inputs, ``F``."""
        return len(self.sensory_w)

    def opening(self, values: FloatArray, *, sensory: bool) -> FloatArray:
        """Return the conductances of synapses, ``(N, sources, H)``.

        Args:
            values: ``(N, sources)``, inputs or states.
            sensory: True for synapses from inputs.
        """
        values = np.asarray(values, np.float64)
        if sensory:
            values = values * self.input_w + self.input_b
            w, sigma, mu = self.sensory_w, self.sensory_sigma, self.sensory_mu
        else:
            w, sigma, mu = self.w, self.sigma, self.mu
        opened: FloatArray = w * expit(sigma * (values[..., None] - mu))
        return opened


def ltc_pieces(parameters: LTCParameters, rows: int) -> Iterator[slice]:
    """Yield slices of the rows, each of as many as fit into memory with all their synapses."""
    synapses = parameters.units * (parameters.units + parameters.inputs)
    size = max(1, _AT_ONCE // max(1, synapses))
    for start in range(0, rows, size):
        yield slice(start, start + size)


def membrane(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return total conductance ``G`` and drive of each neuron, both ``(N, H)``.

    They determine how a neuron moves: ``cm dv/dt = drive - G v``.

    Args:
        parameters: Parameters of the cell.
        inputs: ``(N, F)``.
        states: ``(N, H)``.
    """
    states = np.asarray(states, np.float64)
    conductance, drive = np.empty_like(states), np.empty_like(states)
    for part in ltc_pieces(parameters, len(states)):
        neurons = parameters.opening(states[part], sensory=False)
        senses = parameters.opening(inputs[part], sensory=True)
        conductance[part] = (
            parameters.gleak + parameters.epsilon + neurons.sum(axis=1) + senses.sum(axis=1)
        )
        drive[part] = (
            parameters.gleak * parameters.vleak
            + (neurons * parameters.erev).sum(axis=1)
            + (senses * parameters.sensory_erev).sum(axis=1)
        )
    return conductance, drive


def ltc_step(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray, time_delta: FloatArray
) -> FloatArray:
    """Return the states after one step, ``(N, H)``, by the fused Euler method.

    Args:
        parameters: Parameters of the cell.
        inputs: ``(N, F)``.
        states: ``(N, H)``, states before the step.
        time_delta: ``(N,)``, elapsed time of the step.

    Source: Lechner et al. 2020, equation 3 (doi 10.1038/s42256-020-00237-3).
    """
    *_, (states, _, _) = ltc_sub_steps(parameters, inputs, states, time_delta)
    return states


def ltc_sub_steps(
    parameters: LTCParameters, inputs: FloatArray, states: FloatArray, time_delta: FloatArray
) -> Iterator[tuple[FloatArray, FloatArray, FloatArray]]:
    """Yield the states ``(N, H)`` after each sub-step, with its conductance and drive.

    Conductance and drive are those at the beginning of the sub-step; see :func:`membrane`.

    Args:
        parameters: See :func:`ltc_step`.
        inputs: See :func:`ltc_step`.
        states: See :func:`ltc_step`.
        time_delta: See :func:`ltc_step`.
    """
    states = np.asarray(states, np.float64)
    sub_step = np.asarray(time_delta, np.float64)[:, None] / parameters.unfolds
    for _ in range(parameters.unfolds):
        conductance, drive = membrane(parameters, inputs, states)
        states = (parameters.cm * states + sub_step * drive) / (
            parameters.cm + sub_step * conductance
        )
        yield states, conductance, drive
