"""Read the gates of a CfC cell, or the decay of a pure CfC cell, in all its layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from scipy.special import expit

from ...arrays import to_numpy
from ...results import FloatArray
from ..cell_stepper import CellStepper
from ..conventions import TIME_KEYWORDS
from ..errors import NotApplicable
from ..pytrees import leaves
from .calls import Arguments, RecordedModule, get_array, get_part, output_state, record_steps
from .elapsed_time import ElapsedTime, unit_of_time
from .verification import checked_steps, verify

__all__ = ["DECAY", "GATE", "DecayReading", "GateReading", "read_decays", "read_gates"]

GATE, DECAY = ("time_a", "time_b"), ("w_tau", "A")
_BACKBONES = ("backbone", "backbone_fn")
# The sign of a rate is certain if its residual is less than this share of the other sign's.
_MAX_WRONG_SIGN_RATIO = 1e-2
# Elapsed times at which a gate is tried, in units that change its argument by about one.
_TRIED_TIMES = (0.0, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, eq=False)
class GateReading:
    """Hold the gates ``z = sigmoid(rate Δt + offset)`` of a CfC cell, in all its layers.

    ``z`` is the weight of the second state: ``h' = (1 - z) early + z late``, or without a gate on
    the first ``early + z late``.

    Attributes:
        rate: ``(S, T, H)``, in the order of the state.
        offset: ``(S, T, H)``, in the order of the state.
        time_delta: ``(S, T)``, elapsed times as the cell receives them.
        scale: The cell's unit of time in units of the batch's ``time_delta``; NaN where the ratio
            is not constant.
        error: Largest difference between its states after other elapsed times and those that the
            gates explain, as a share of the largest state.
        signed: True if only this sign of ``rate`` explains the states.
    """

    rate: FloatArray
    offset: FloatArray
    time_delta: FloatArray
    scale: float
    error: float
    signed: bool


@dataclass(frozen=True, eq=False)
class DecayReading:
    """Hold the rates of a pure CfC, ``h' = A - B exp(-rate Δt)``, in all its layers.

    Attributes:
        rate: ``(S, T, H)``, in the order of the state; NaN where elapsed time has no effect.
        time_delta: ``(S, T)``, see :class:`GateReading`.
        scale: The cell's unit of time, see :class:`GateReading`.
        error: Largest error, see :class:`GateReading`.
    """

    rate: FloatArray
    time_delta: FloatArray
    scale: float
    error: float


def read_gates(
    stepper: CellStepper, holders: Sequence[nn.Module], time_delta: FloatArray | None
) -> GateReading:
    """Read the gates of the modules that hold ``time_a`` and ``time_b``, the layers of a cell.

    Raises:
        NotApplicable: If no gate with these parameters explains the states.
    """
    inner = [part for holder in holders for part in _gate_parts(holder)]
    calls = record_steps(stepper, [*holders, *inner])
    known = {id(each.module): each for each in calls}
    layers = _layers(stepper, calls[: len(holders)], time_delta)
    a, b = (
        _concatenated([_affine(layer.recorded, name, known) for layer in layers], stepper)
        for name in GATE
    )
    tried = [(layer, t) for layer in layers for t in checked_steps(stepper.steps)]
    left, worst = {+1: 0.0, -1: 0.0}, {+1: math.nan, -1: math.nan}
    for layer, t in tried:
        own_a, own_b = a[:, t, layer.columns].ravel(), b[:, t, layer.columns].ravel()
        elapsed = _tried_times(np.abs(own_a))
        states = _states_after(layer, t, elapsed)
        for sign in (+1, -1):
            gate = expit(sign * np.outer(elapsed, own_a) + own_b)
            residual, share = explained_by(states, gate)
            left[sign] += residual
            worst[sign] = float(np.fmax(worst[sign], share))
    sign = +1 if left[+1] <= left[-1] else -1
    verify(
        stepper,
        worst[sign],
        "a CfC, but no sigmoid of time_a × Δt + time_b explains its states after other elapsed "
        "times",
    )
    given = layers[0].place.values
    scale = unit_of_time(stepper, given, time_delta)
    unit = 1.0 if math.isnan(scale) else scale
    return GateReading(
        rate=sign * a / unit,
        offset=b,
        time_delta=given,
        scale=scale,
        error=worst[sign],
        signed=left[sign] < _MAX_WRONG_SIGN_RATIO * left[-sign],
    )


def _gate_parts(holder: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the modules that compute ``time_a`` and ``time_b``, or their inputs."""
    parts = [get_part(holder, name) for name in GATE]
    yield from (part for part in parts if isinstance(part, nn.Module))
    if any(isinstance(part, mx.array) for part in parts):
        backbone = _backbone(holder)
        if backbone is not None:
            yield backbone


def _backbone(holder: nn.Module) -> nn.Module | None:
    found = (get_part(holder, name) for name in _BACKBONES)
    return next((part for part in found if isinstance(part, nn.Module)), None)


def _affine(layer: RecordedModule, name: str, known: Mapping[int, RecordedModule]) -> FloatArray:
    """Return ``(S, T, n)``, the outputs of ``time_a`` or ``time_b``, a layer or an array."""
    part = get_part(layer.module, name)
    if isinstance(part, nn.Module):
        steps = [to_numpy(output_state(made)) for made in known[id(part)].made]
        return np.stack(steps, axis=1).astype(np.float64)
    kernel = to_numpy(part).astype(np.float64)
    backbone = _backbone(layer.module)
    if backbone is not None:
        shared = [to_numpy(output_state(made)) for made in known[id(backbone)].made]
    else:
        shared = [_concatenation(given, len(kernel)) for given in layer.given]
    if kernel.ndim != 2 or shared[0].shape[-1] != len(kernel):
        raise NotApplicable(f"the inputs of {name} could not be found")
    bias = get_array(layer.module, f"{name}_bias")
    values: FloatArray = np.stack(shared, axis=1).astype(np.float64) @ kernel
    return values if bias is None else values + bias


def _concatenation(given: Arguments, width: int) -> FloatArray:
    """Concatenate as many arguments as make up the width."""
    parts: list[FloatArray] = []
    for _, array in leaves(given):
        if array.ndim == 2 and sum(p.shape[-1] for p in parts) < width:
            parts.append(to_numpy(array))
    return np.concatenate(parts, axis=-1)


def _concatenated(parts: Sequence[FloatArray], stepper: CellStepper) -> FloatArray:
    whole = np.concatenate(parts, axis=-1)
    if whole.shape[-1] != sum(stepper.sizes):
        raise NotApplicable(
            f"{stepper.hook.name} has the parameters of a CfC, but not one gate per unit"
        )
    return whole


def read_decays(
    stepper: CellStepper, holders: Sequence[nn.Module], time_delta: FloatArray | None
) -> DecayReading:
    """Read the rates of the modules that hold ``w_tau`` and ``A``, the layers of a cell.

    Raises:
        NotApplicable: If no exponential decay explains the states.
    """
    layers = _layers(stepper, record_steps(stepper, holders), time_delta)
    rate = np.concatenate([_decay(layer, stepper.steps) for layer in layers], axis=-1)
    worst = math.nan
    for layer in layers:
        for t in checked_steps(stepper.steps):
            own = rate[:, t, layer.columns].ravel()
            elapsed = _tried_times(own)
            states = _states_after(layer, t, elapsed)
            with np.errstate(over="ignore", invalid="ignore"):
                left = np.exp(-np.outer(elapsed, own))
            worst = float(np.fmax(worst, explained_by(states, left)[1]))
    verify(
        stepper,
        worst,
        "a pure CfC, but its states after other elapsed times don't decay exponentially",
    )
    given = layers[0].place.values
    scale = unit_of_time(stepper, given, time_delta)
    return DecayReading(rate / (1.0 if math.isnan(scale) else scale), given, scale, worst)


def _decay(layer: _Layer, steps: int) -> FloatArray:
    """Return the rates ``(S, T, n)``: of an exponential, ``f'' = -rate f'``."""
    rates = []
    zero, one = mx.array(0.0), mx.array(1.0)
    for t in range(steps):

        def after(elapsed: mx.array, t: int = t) -> mx.array:
            return layer.after(t, elapsed)

        def slope(elapsed: mx.array, after: Callable[..., mx.array] = after) -> mx.array:
            return mx.jvp(after, [elapsed], [one])[1][0]

        _, (second,) = mx.jvp(slope, [zero], [one])
        first = slope(zero)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = -to_numpy(second).astype(np.float64) / to_numpy(first)
        rates.append(np.where(np.isfinite(rate), rate, np.nan))
    return np.stack(rates, axis=1)


@dataclass(eq=False)
class _Layer:
    """Hold one layer of a CfC cell: its calls, and the columns of its state in the cell's."""

    recorded: RecordedModule
    place: ElapsedTime
    columns: slice

    def after(self, step: int, elapsed: Any) -> mx.array:
        """Return ``(S, n)``, the state of the layer after a step with another elapsed time."""
        args, kwargs = self.place.replace(self.recorded.given[step], elapsed)
        return output_state(self.recorded.module(*args, **kwargs))


def _layers(
    stepper: CellStepper, recorded: Sequence[RecordedModule], time_delta: FloatArray | None
) -> list[_Layer]:
    """Return the layers in the order of the state, which must be the order of their calls."""
    found, start, rows = [], 0, len(stepper.before(0))
    for each in recorded:
        width = output_state(each.made[0]).shape[-1]
        place = ElapsedTime(each, time_delta, rows)
        if not place.found:
            raise NotApplicable(
                f"{stepper.hook.name} has the parameters of a CfC, but no argument with its "
                f"elapsed time was found: name the parameter one of {', '.join(TIME_KEYWORDS)}"
            )
        found.append(_Layer(each, place, slice(start, start + width)))
        start += width
    for t in checked_steps(stepper.steps):
        made = np.concatenate([to_numpy(output_state(each.made[t])) for each in recorded], axis=-1)
        if made.shape != stepper.after(t).shape or not np.array_equal(
            made, stepper.after(t), equal_nan=True
        ):
            raise NotApplicable(
                f"{stepper.hook.name} has the parameters of a CfC, but its state isn't the "
                "concatenation of its layers' outputs: concatenate them in the order of the calls"
            )
    return found


def _tried_times(rate: FloatArray) -> FloatArray:
    """Return elapsed times that suit the rates of some units, the median of those above 0."""
    positive = rate[np.isfinite(rate) & (rate > 0)]
    return np.array(_TRIED_TIMES) / (float(np.median(positive)) if positive.size else 1.0)


def _states_after(layer: _Layer, step: int, elapsed: FloatArray) -> FloatArray:
    """Return ``(K, S n)``, states of a layer after a step with each of the elapsed times."""
    made = [layer.after(step, float(value)) for value in elapsed]
    return np.stack([to_numpy(state).ravel() for state in made]).astype(np.float64)


def explained_by(values: FloatArray, basis: FloatArray) -> tuple[float, float]:
    """Return the residuals of ``values`` fitted by ``c + d basis``, column by column.

    Args:
        values: ``(K, N)``, ``K`` at least 3.
        basis: ``(K, N)``.

    Returns:
        The sum of the squared residuals, and the largest residual as a share of the largest
        absolute value, NaN where there is none. Columns that are not finite are skipped.
    """
    values, basis = np.asarray(values, np.float64), np.asarray(basis, np.float64)
    known = np.isfinite(values).all(axis=0) & np.isfinite(basis).all(axis=0)
    values, basis = values[:, known], basis[:, known]
    if not values.size:
        return 0.0, float("nan")
    y, x = values - values.mean(axis=0), basis - basis.mean(axis=0)
    power = (x * x).sum(axis=0)
    slope = np.divide((x * y).sum(axis=0), power, out=np.zeros_like(power), where=power > 0)
    left = y - slope * x
    largest = float(np.abs(values).max())
    return float((left**2).sum()), float(np.abs(left).max()) / largest if largest > 0 else 0.0
