"""Log memory, exponents and gains of a cell, from the Jacobians of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...observation import Observation, Trajectory
from ...records import Array
from ...results import FloatArray
from ...stats import Estimate, quantile_estimates
from ..record_log import RecordLog
from .analysis import (
    Memory,
    gain_sequences,
    jacobian_gains,
    lyapunov_exponents,
    memory_horizon,
    stability_exponents,
)
from .descriptions import log_quantiles
from .jacobian_products import (
    estimated_memory,
    estimated_stability,
    leading_exponents,
    leading_gains,
)

__all__ = ["log_jacobians"]

# Random directions from which the memory of a large state is estimated.
_MAX_DIRECTIONS = 64


def log_jacobians(
    log: RecordLog, cell: Trajectory, part: Observation, max_units: int, exponents: int
) -> tuple[Memory, dict[str, Estimate]]:
    """Log the numbers from Jacobians, and return the memory and the numbers to compare.

    Raises:
        NotApplicable: If the steps of the cell can't be run by themselves.
    """
    delta, mask = cell.as_run(part.time_delta), cell.as_run(part.mask)
    units = cell.values.shape[2]
    over: dict[str, Any] = {"time_delta": delta, "mask": mask}
    directions = gains = ""
    if units <= max_units:
        jacobians = part.extra_passes.state_jacobian(cell.cell)
        memory = memory_horizon(jacobians, **over)
        radius, norm = jacobian_gains(jacobians, mask=mask)
        owner = gain_sequences(jacobians, mask=mask)
        values = lyapunov_exponents(jacobians, **over, count=exponents)
        stability = stability_exponents(jacobians, **over)
    else:
        products = part.extra_passes.jacobian_products(cell.cell)
        count = min(max_units, _MAX_DIRECTIONS)
        memory = estimated_memory(products, **over, directions=count)
        radius, norm, owner = leading_gains(products, mask=mask)
        values = leading_exponents(products, **over, count=exponents)
        stability = estimated_stability(products, **over)
        directions = f"; estimated from {count} random directions of {units} units"
        gains = f"; estimated at few time steps, from products with few vectors of {units} units"
        log.note(
            f"the state has {units} units, more than max_units={max_units}, so linear memory, "
            "radius and norm are estimated from products of the Jacobians with few vectors; pass "
            f"max_units={units} for whole Jacobians"
        )
    compared = memory.estimates() if memory.sequences else {}
    shares = (0.5, 0.9)
    for name, of_steps in (("radius", radius), ("norm", norm)):
        estimates = quantile_estimates(of_steps, owner, shares)
        log_quantiles(log, name, of_steps, shares, estimates, some=gains)
    compared |= _log_exponents(log, values, stability, gains, timed=delta is not None)
    if memory.sequences:
        _log_memory(log, memory, compared, directions, timed=delta is not None)
    return memory, compared


def _log_exponents(
    log: RecordLog, exponents: FloatArray, stability: FloatArray, some: str, *, timed: bool
) -> dict[str, Estimate]:
    """Log exponents ``(S, count)`` and ``(S,)``, and return them by name."""
    use = np.isfinite(exponents).all(axis=1) & np.isfinite(stability)
    known = exponents[use]
    if not len(known):
        return {}
    found = {
        f"finite_time_lyapunov_{i + 1}": Estimate.mean(column) for i, column in enumerate(known.T)
    }
    words: dict[str, Any] = {
        "per": "unit of time_delta" if timed else "time step", "sequences": len(known),
        "steps": log.words["steps"], "group": log.group,
    }  # fmt: skip
    for i, (name, estimate) in enumerate(found.items()):
        log.scalar(
            name, estimate.value, estimate, entry="finite_time_lyapunov", number=i + 1, **words
        )
    long_run = Estimate.mean(stability[use])
    log.scalar("stability_exponent", long_run.value, long_run, some=some, **words)
    log.records.append(Array(f"_ncp/{log.group}_finite_time_lyapunov", exponents))
    largest = found["finite_time_lyapunov_1"].value
    if largest > 0 > long_run.value:
        log.note(
            f"changes of the state have grown over the {log.words['steps']} time steps "
            f"(finite_time_lyapunov_1 is {largest:.2g}), but fade in the long run "
            f"(stability_exponent is {long_run.value:.2g}): the growth is a transient, not chaos"
        )
    return found | {"stability_exponent": long_run}


def _log_memory(
    log: RecordLog, memory: Memory, estimates: Mapping[str, Estimate], some: str, *, timed: bool
) -> None:
    for name, value in (
        ("linear_memory_steps", memory.steps),
        ("linear_memory_time", memory.time),
    ):
        if timed or name == "linear_memory_steps":
            log.scalar(name, value, estimates.get(name), some=some)
    left, steps = float(memory.curve[-1]), len(memory.curve) - 1
    log.scalar(
        "linear_memory_left", left, estimates.get("linear_memory_left"), steps=steps, some=some
    )
    log.records.append(Array(f"_ncp/{log.group}_linear_memory", memory.curve))
