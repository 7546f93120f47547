"""Read the parameters, inputs and states of an LTC cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np

from ...arrays import to_numpy
from ...liquid_equations import LTCParameters, ltc_step
from ...results import FloatArray
from ..cell_stepper import CellStepper
from ..errors import NotApplicable
from ..pytrees import get_leaf, leaves
from .calls import RecordedModule, get_array, get_setting, record_steps
from .elapsed_time import ElapsedTime, unit_of_time
from .verification import checked_steps, verify

__all__ = ["PARAMETERS", "LTCReading", "read_ltc"]

PARAMETERS = (
    "gleak",
    "vleak",
    "cm",
    "w",
    "sigma",
    "mu",
    "erev",
    "sensory_w",
    "sensory_sigma",
    "sensory_mu",
    "sensory_erev",
)


@dataclass(frozen=True, eq=False)
class LTCReading:
    """Hold the parameters, inputs and states of an LTC cell.

    Attributes:
        parameters: The parameters of the cell.
        inputs: ``(S, T, F)``, the inputs of the cell, before its own map of the inputs.
        before: ``(S, T, H)``, the states that the steps start from.
        after: ``(S, T, H)``, the states after the steps.
        time_delta: ``(S, T)``, elapsed times as the cell receives them.
        scale: The cell's unit of time in units of the batch's ``time_delta``; NaN where the ratio
            is not constant.
        error: Largest difference between its own next states and those computed from the
            parameters, as a share of the largest state.
    """

    parameters: LTCParameters
    inputs: FloatArray
    before: FloatArray
    after: FloatArray
    time_delta: FloatArray
    scale: float
    error: float


def read_ltc(
    stepper: CellStepper, holders: Sequence[nn.Module], time_delta: FloatArray | None
) -> LTCReading:
    """Read the only module of a cell that holds the parameters of an LTC.

    Raises:
        NotApplicable: If there are several, or the parameters don't reproduce the states.
    """
    name = stepper.hook.name
    if len(holders) > 1:
        raise NotApplicable(f"{name} contains several LTC cells; pass their paths as cells=[...]")
    (recorded,) = record_steps(stepper, holders)
    before, after = _states(stepper, stepper.before), _states(stepper, stepper.after)
    rows, _, units = before.shape
    parameters = _ltc_parameters(recorded.module)
    inputs = _ltc_inputs(recorded, parameters, before)
    if parameters.units != units or inputs is None:
        raise NotApplicable(
            f"{name} has the parameters of an LTC of {parameters.units} neurons and "
            f"{parameters.inputs} inputs, but its arguments have other shapes"
        )
    place = ElapsedTime(recorded, time_delta, rows)
    if place.found:
        given = place.values
    else:
        given = np.ones(before.shape[:2]) if time_delta is None else time_delta.astype(np.float64)
    error = _ltc_error(parameters, inputs, before, after, given)
    verify(
        stepper,
        error,
        "an LTC, but the fused Euler steps of an LTC don't reproduce its next state",
    )
    return LTCReading(
        parameters,
        inputs,
        before,
        after,
        given,
        unit_of_time(stepper, given, time_delta),
        error,
    )


def _ltc_parameters(module: nn.Module) -> LTCParameters:
    arrays = {name: get_array(module, name) for name in PARAMETERS}
    held: dict[str, FloatArray] = {k: v for k, v in arrays.items() if v is not None}
    if get_setting(module, "implicit_param_constraints", False):
        for name in ("gleak", "cm", "w", "sensory_w"):
            with np.errstate(invalid="ignore"):
                held[name] = np.logaddexp(0.0, held[name])
    for name, mask in (("w", "sparsity_mask"), ("sensory_w", "sensory_sparsity_mask")):
        connected = get_array(module, mask)
        if connected is not None and connected.shape == held[name].shape:
            held[name] = held[name] * connected
    features = held["sensory_w"].shape[0]
    w, b = get_array(module, "input_w"), get_array(module, "input_b")
    return LTCParameters(
        **held,
        input_w=np.ones(features) if w is None else w,
        input_b=np.zeros(features) if b is None else b,
        unfolds=int(get_setting(module, "ode_unfolds", 6)),
        epsilon=float(get_setting(module, "epsilon", 0.0)),
    )


def _ltc_inputs(
    recorded: RecordedModule, parameters: LTCParameters, before: FloatArray
) -> FloatArray | None:
    """Return ``(S, T, F)``, the first argument with the shape of inputs that isn't the state."""
    shape = (len(before), parameters.inputs)
    for path, array in leaves(recorded.given[0]):
        if array.shape != shape:
            continue
        steps = [to_numpy(get_leaf(given, path)) for given in recorded.given]
        values = np.stack(steps, axis=1).astype(np.float64)
        if values.shape != before.shape or not np.array_equal(values, before, equal_nan=True):
            return values
    return None


def _ltc_error(
    parameters: LTCParameters,
    inputs: FloatArray,
    before: FloatArray,
    after: FloatArray,
    time_delta: FloatArray,
) -> float:
    """Return the error at a few steps as a share of the largest state, or NaN."""
    steps = checked_steps(before.shape[1])
    own = after[:, steps].reshape(-1, after.shape[-1])
    with np.errstate(all="ignore"):
        computed = ltc_step(
            parameters,
            inputs[:, steps].reshape(len(own), -1),
            before[:, steps].reshape(own.shape),
            time_delta[:, steps].ravel(),
        )
    known = np.isfinite(own).all(axis=1) & np.isfinite(computed).all(axis=1)
    if not known.any():
        return math.nan
    largest = max(float(np.abs(own[known]).max()), 1e-6)
    return float(np.abs(computed[known] - own[known]).max()) / largest


def _states(stepper: CellStepper, which: Callable[[int], FloatArray]) -> FloatArray:
    return np.stack([which(t) for t in range(stepper.steps)], axis=1).astype(np.float64)
