"""Describe the numbers of Dynamics, and place them on TensorBoard's screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...records import Place
from ...results import FloatArray
from ...stats import Estimate
from ..record_log import RecordLog

__all__ = ["PLACES", "SCALARS", "log_quantiles"]


_FALLS = (
    "after which 1/e of a change of the state is left, median over sequences; the length of the "
    "sequence if more is left at its end{some}"
)
# Descriptions of the scalars.
SCALARS = {
    "unit_speed": "Largest |dh_i| of a unit of {cell} per {per}; {quantile} over units",
    "autocorrelation": "Autocorrelation time of a unit of {cell}, in {unit}; {quantile} over units",
    "undecayed": "Share of units whose autocorrelation does not decay within ten times the length "
    "of a sequence, which then stands for their autocorrelation time",
    "participation_ratio_corrected": "Number of dimensions in use, (tr C)^2 / tr C^2, from "
    "products of different sequences, which a few dependent states do not bias; NaN if there are "
    "too few sequences",
    "cka": "Linear CKA between the states and those of the {when} snapshot: 1 if they are equal "
    "but for rotation, scale and offset, 0 if they are unrelated",
    "procrustes": "Share of the states' variance that the best rotation, scale and offset of "
    "those of the {when} snapshot do not explain: 0 if they are equal",
    "radius": "Spectral radius of the Jacobian of a step: above 1 it is unstable there{some}; "
    "{quantile} over time steps",
    "norm": "Operator norm of the Jacobian of a step: the largest factor by which a change grows"
    "{some}; {quantile} over time steps",
    "finite_time_lyapunov": "Finite-time Lyapunov exponent {number} over T = {steps} time steps, "
    "per {per}, mean over {sequences} sequences: above 0 changes of the state have grown over T. "
    "That may be a transient, which {group}/stability_exponent does not have",
    "stability_exponent": "Stability exponent, per {per}, mean over {sequences} sequences: rate at "
    "which small changes of the state grow (above 0) or fade (below) in the long run, from the "
    "spectral radius of the product of T = {steps} time steps; without transient growth{some}",
    "linear_memory_steps": f"Time steps {_FALLS}. It is measured with small changes: a latch may "
    "remember more",
    "linear_memory_time": f"Time, in units of time_delta, {_FALLS}. It is measured with small "
    "changes",
    "linear_memory_left": "RMS share of a change of the state that is left {steps} time steps "
    "later, at the end{some}",
    "target_memory_steps": "How many last time steps must be kept, if all before them are "
    "removed, for the {target} to change by less than 1/e SD; the longest length tried if none "
    "suffices. It is measured by forward passes of shortened sequences, so that what a latch "
    "remembers counts, too",
    "target_memory_left": "RMS change of the {target} when all but the last {kept} time steps are "
    "removed; in SDs of the target over sequences",
    "target_correlation_max": "Largest |r| of a unit's last state with the {target} over sequences",
    "target_correlation": "|r| of a unit's last state with the {target} over sequences; "
    "{quantile} over units",
    "beyond_chance": "Share of units whose |r| exceeds the level that the largest |r| of all "
    "units exceeds by chance in 5 % of cases",
}
PLACES: Mapping[str, Place] = {
    "target_memory_steps": "group",
    "linear_memory_steps": "group",
    "linear_memory_time": "group",
    "linear_memory_left": "group",
    "stability_exponent": "group",
    "finite_time_lyapunov_1": "group",
    "radius_q50": "group",
    "cka_first": "group",
    "cka_previous": "group",
    "undecayed": "nonzero",
    "target_correlation_max": "group",
    "beyond_chance": "group",
}


def log_quantiles(
    log: RecordLog,
    name: str,
    values: FloatArray,
    shares: tuple[float, ...],
    estimates: list[Estimate] | None = None,
    **words: Any,
) -> None:
    """Log quantiles of values as ``<name>_q<percent>``."""
    if not values.size:
        return
    for i, value in enumerate(np.quantile(values, shares)):
        percent = round(100 * shares[i])
        log.scalar(
            f"{name}_q{percent}",
            float(value),
            None if estimates is None else estimates[i],
            entry=name,
            quantile="median" if percent == 50 else f"{percent} % quantile",
            **words,
        )
