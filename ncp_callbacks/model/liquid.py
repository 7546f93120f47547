"""Recognise liquid cells by the parameters they hold, and read their steps.

stepper = observation.cell_stepper(cell)           # inside runner.preserved()
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

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..callbacks.time_constants.analysis import LTCParameters, explained_by, ltc_step, sigmoid
from ..callbacks.wiring.analysis import NeuronGroup
from ..held_out import to_numpy
from ..results import FloatArray
from .capture import Around, Tap
from .cell_stepper import CellStepper
from .conventions import TIME_KEYWORDS
from .errors import NotApplicable
from .pytrees import get_leaf, leaves, modules, replace_leaf

__all__ = [
    "DecayReading",
    "GateReading",
    "LTCReading",
    "Reading",
    "jacobian_diagonal",
    "neuron_groups",
    "read_liquid",
    "time_delta_per_call",
]

# Largest error of a reading, relative to the largest state; float32 needs a tenth of it.
TOLERANCE = 1e-4
# The sign of a rate is certain if its residual is less than this share of the other sign's.
_MAX_WRONG_SIGN_RATIO = 1e-2
_CHECKED_STEPS = 4
# Elapsed times at which a gate is tried, in units that change its argument by about one.
_TRIED_TIMES = (0.0, 0.5, 1.0, 2.0, 4.0)
# Numbers that one layer, or all synapses, may compute for the copies of a batch at once.
_MAX_NUMBERS = 1 << 22

_LTC = (
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
_GATE, _DECAY = ("time_a", "time_b"), ("w_tau", "A")
_CFC = (_GATE, _DECAY)
_BACKBONES = ("backbone", "backbone_fn")

Arguments: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"


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
        holder: The module that holds the parameters.
    """

    parameters: LTCParameters
    inputs: FloatArray
    before: FloatArray
    after: FloatArray
    time_delta: FloatArray
    scale: float
    error: float
    holder: nn.Module


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


Reading: TypeAlias = "LTCReading | GateReading | DecayReading"


def read_liquid(stepper: CellStepper, time_delta: FloatArray | None) -> Reading | None:
    """Recognise a liquid cell and read its steps; return None if the cell is not liquid.

    Runs every step again, and a few steps with other elapsed times.

    Args:
        stepper: The cell.
        time_delta: ``(S, T)``, the elapsed times of its sequences, or None.

    Raises:
        NotApplicable: If the cell has the parameters of a liquid cell, but they don't reproduce its
            states.
    """
    inside = modules(stepper.module)
    for names, read in ((_LTC, _read_ltc), (_GATE, _read_gates), (_DECAY, _read_decays)):
        holders = [m for _, m in inside if all(_get_part(m, name) is not None for name in names)]
        if holders:
            return read(stepper, holders, time_delta)
    return None


# ---- parts of modules


def _get_part(module: nn.Module, name: str) -> Any:
    """Return a parameter or layer by its name, with or without a leading underscore, or None."""
    kept = getattr(module, "_params", None)
    if isinstance(kept, Mapping) and isinstance(kept.get(name), mx.array | nn.Module):
        return kept[name]
    for each in (name, f"_{name}"):
        found = getattr(module, each, None)
        if isinstance(found, mx.array | nn.Module):
            return found
    return None


def _setting(module: nn.Module, name: str, default: Any) -> Any:
    for each in (name, f"_{name}"):
        found = getattr(module, each, None)
        if isinstance(found, bool | int | float):
            return found
    return default


def _array(module: nn.Module, name: str) -> FloatArray | None:
    found = _get_part(module, name)
    return to_numpy(found).astype(np.float64) if isinstance(found, mx.array) else None


# ---- arguments of a module at every step


@dataclass(eq=False)
class _RecordedModule:
    """Hold a module inside the cell, with the arguments and outputs of its call in each step."""

    module: nn.Module
    given: list[Arguments] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)


def _record_steps(stepper: CellStepper, recorded: Sequence[nn.Module]) -> list[_RecordedModule]:
    """Run every step again and record the calls of some modules.

    Raises:
        NotApplicable: If a module isn't called exactly once in each step.
    """
    found = [_RecordedModule(module) for module in recorded]

    def around(into: _RecordedModule) -> Around:
        def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = call(*args, **kwargs)
            into.given.append((args, kwargs))
            into.made.append(out)
            return out

        return wrapper

    with Tap().on([(each.module, around(each)) for each in found]):
        for t in range(stepper.steps):
            mx.eval(stepper.step(t))
            for each in found:
                if len(each.made) != t + 1:
                    raise NotApplicable(
                        f"{type(each.module).__name__} in {stepper.hook.name} isn't called exactly "
                        "once in each step"
                    )
    return found


class _ElapsedTime:
    """Find the argument that passes elapsed time to a module, by its name or by its values."""

    def __init__(self, recorded: _RecordedModule, time_delta: FloatArray | None, rows: int) -> None:
        self._rows = rows
        self.path = self._by_name(recorded) or self._by_value(recorded, time_delta)
        self.found = self.path is not None
        if self.path is None and (default := self._default(recorded)) is not None:
            self.path, self.found = default, True
        self.values = np.full((rows, len(recorded.given)), np.nan)
        if self.path is None:
            return
        for t, given in enumerate(recorded.given):
            value = get_leaf(given, self.path)
            value = self._default_value if value is None else value
            flat = to_numpy(value).ravel() if isinstance(value, mx.array) else np.array([value])
            self.values[:, t] = flat

    _default_value: float = math.nan

    def _by_name(self, recorded: _RecordedModule) -> tuple[Any, ...] | None:
        args, kwargs = recorded.given[0]
        for name, value in kwargs.items():
            if name in TIME_KEYWORDS and self._fits(value):
                return (1, name)
        for index, name in enumerate(_positional(recorded.module)[: len(args)]):
            if name in TIME_KEYWORDS and self._fits(args[index]):
                return (0, index)
        return None

    def _by_value(
        self, recorded: _RecordedModule, time_delta: FloatArray | None
    ) -> tuple[Any, ...] | None:
        if time_delta is None:
            return None
        for path, array in leaves(recorded.given[0]):
            if array.size == self._rows and all(
                np.allclose(
                    to_numpy(get_leaf(given, path)).ravel(),
                    time_delta[:, t],
                    rtol=1e-5,
                    equal_nan=True,
                )
                for t, given in enumerate(recorded.given)
            ):
                return path
        return None

    def _default(self, recorded: _RecordedModule) -> tuple[Any, ...] | None:
        """Find a time parameter that isn't passed and whose default is a number."""
        for name, parameter in _parameters(recorded.module).items():
            value = parameter.default
            if name in TIME_KEYWORDS and isinstance(value, int | float):
                self._default_value = float(value)
                return (1, name)
        return None

    def _fits(self, value: Any) -> bool:
        if isinstance(value, mx.array):
            return value.size in (1, self._rows)
        return isinstance(value, int | float) and not isinstance(value, bool)

    def replace(self, given: Arguments, elapsed: Any) -> Arguments:
        """Return the arguments with one elapsed time, a number or a scalar, for all sequences."""
        assert self.path is not None
        old = get_leaf(given, self.path)
        if isinstance(old, mx.array):
            return _as_arguments(replace_leaf(given, self.path, _broadcast_like(elapsed, old)))
        args, kwargs = given
        if self.path[0] == 1 and self.path[1] not in kwargs:
            return args, {**kwargs, self.path[1]: mx.array(elapsed)}
        return _as_arguments(replace_leaf(given, self.path, mx.array(elapsed)))


def _as_arguments(tree: Any) -> Arguments:
    args, kwargs = tree
    return tuple(args), dict(kwargs)


def _broadcast_like(elapsed: Any, old: mx.array) -> mx.array:
    return mx.broadcast_to(mx.array(elapsed).astype(old.dtype), old.shape)


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        found = inspect.signature(type(module).__call__).parameters
    except (TypeError, ValueError):
        return {}
    return dict(list(found.items())[1:])  # Without self.


def _positional(module: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, p in _parameters(module).items() if p.kind in kinds]


def _unit_of_time(stepper: CellStepper, own: FloatArray, time_delta: FloatArray | None) -> float:
    """Return the cell's unit of time in units of ``time_delta``.

    The unit changes if the model scales the elapsed times before it passes them to the cell. It
    doesn't change if the model solves a step in several sub-steps.
    """
    if time_delta is None or stepper.hook.calls_in_all != stepper.steps:
        return 1.0
    known = np.isfinite(own) & np.isfinite(time_delta) & (time_delta > 0)
    ratio = own[known] / time_delta[known]
    if not ratio.size or not (ratio > 0).all():
        return math.nan
    middle = float(np.median(ratio))
    return 1.0 / middle if np.allclose(ratio, middle, rtol=1e-4) else math.nan


def time_delta_per_call(stepper: CellStepper, time_delta: FloatArray | None) -> FloatArray:
    """Return ``(S, T)``, the time that one call of the cell covers, in units of ``time_delta``.

    Without a ``time_delta`` a step takes one unit of time.

    Args:
        stepper: The cell.
        time_delta: ``(S, T)``, the elapsed times of its sequences, or None.
    """
    calls = 1 if stepper.hook.whole_sequence else stepper.hook.calls_in_all // stepper.steps
    if time_delta is None:
        return np.ones((len(stepper.before(0)), stepper.steps)) / max(1, calls)
    if calls > 1:
        own = _ElapsedTime(
            _RecordedModule(stepper.module, list(stepper.given)), None, len(time_delta)
        )
        if own.found and np.isfinite(own.values).all():
            return own.values
    return np.asarray(time_delta, np.float64) / max(1, calls)


def jacobian_diagonal(
    stepper: CellStepper,
    step: int,
    synapses: int = 0,
    *,
    units: npt.NDArray[np.intp] | None = None,
) -> FloatArray:
    """Return ``(S, K)``, the diagonal ``d h'_i / d h_i`` of a step's Jacobian.

    The rest of the Jacobian is never in memory. The cost is a backward step of ``K`` copies of each
    sequence.

    Args:
        stepper: The cell.
        step: Index of the time step.
        synapses: Number of values that the cell computes for each sequence, if it is larger than
            8 times the number of its units.
        units: ``(K,)``, indices of the units; None: all ``H``.
    """
    before = mx.array(stepper.before(step)).astype(stepper.step(step).dtype)
    batch, width = before.shape
    wanted_units = np.arange(width) if units is None else units
    max_units = max(1, _MAX_NUMBERS // (batch * max(synapses, 8 * width)))
    diagonal = np.empty((batch, len(wanted_units)))
    for start in range(0, len(wanted_units), max_units):
        own = wanted_units[start : start + max_units]
        # Copy i of the batch computes the gradient of unit i.
        copies = mx.concatenate([before] * len(own))
        wanted = np.repeat(np.eye(width, dtype=np.float32)[own], batch, axis=0)
        _, (rows,) = mx.vjp(
            lambda state: stepper.step(step, state), [copies], [mx.array(wanted, copies.dtype)]
        )
        found = to_numpy(rows).reshape(len(own), batch, width)
        diagonal[:, start : start + len(own)] = found[np.arange(len(own)), :, own].T
    return diagonal


def _tolerance(stepper: CellStepper) -> float:
    """Return the error that rounding in the precision of the state allows."""
    dtype = stepper.step(0).dtype
    coarse = {mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}.get(dtype, 0.0)
    return max(TOLERANCE, 8 * coarse)


def _not_finite(name: str) -> NotApplicable:
    return NotApplicable(f"the states of {name} are not finite")


def _max_ignoring_nan(one: float, other: float) -> float:
    """Return the larger of two numbers, ignoring NaN."""
    return float(np.fmax(one, other))


def _states(stepper: CellStepper, which: Callable[[int], FloatArray]) -> FloatArray:
    return np.stack([which(t) for t in range(stepper.steps)], axis=1).astype(np.float64)


# ---- LTC


def _read_ltc(
    stepper: CellStepper, holders: Sequence[nn.Module], time_delta: FloatArray | None
) -> LTCReading:
    name = stepper.hook.name
    if len(holders) > 1:
        raise NotApplicable(f"{name} contains several LTC cells; pass their paths as cells=[...]")
    (recorded,) = _record_steps(stepper, holders)
    before, after = _states(stepper, stepper.before), _states(stepper, stepper.after)
    rows, _, units = before.shape
    parameters = _ltc_parameters(recorded.module)
    inputs = _ltc_inputs(recorded, parameters, before)
    if parameters.units != units or inputs is None:
        raise NotApplicable(
            f"{name} has the parameters of an LTC of {parameters.units} neurons and "
            f"{parameters.inputs} inputs, but its arguments have other shapes"
        )
    place = _ElapsedTime(recorded, time_delta, rows)
    given = place.values if place.found else np.full(before.shape[:2], np.nan)
    if not place.found:
        given = np.ones_like(given) if time_delta is None else np.asarray(time_delta, np.float64)
    error = _ltc_error(parameters, inputs, before, after, given)
    if math.isnan(error):
        raise _not_finite(name)
    if not error <= _tolerance(stepper):
        raise NotApplicable(
            f"{name} has the parameters of an LTC, but the fused Euler steps of an LTC don't "
            f"reproduce its next state (they differ by {error:.1e} of the largest state)"
        )
    return LTCReading(
        parameters,
        inputs,
        before,
        after,
        given,
        _unit_of_time(stepper, given, time_delta),
        error,
        recorded.module,
    )


def _ltc_parameters(module: nn.Module) -> LTCParameters:
    arrays = {name: _array(module, name) for name in _LTC}
    held: dict[str, FloatArray] = {k: v for k, v in arrays.items() if v is not None}
    if _setting(module, "implicit_param_constraints", False):
        for name in ("gleak", "cm", "w", "sensory_w"):
            with np.errstate(invalid="ignore"):
                held[name] = np.logaddexp(0.0, held[name])
    for name, mask in (("w", "sparsity_mask"), ("sensory_w", "sensory_sparsity_mask")):
        connected = _array(module, mask)
        if connected is not None and connected.shape == held[name].shape:
            held[name] = held[name] * connected
    features = held["sensory_w"].shape[0]
    w, b = _array(module, "input_w"), _array(module, "input_b")
    return LTCParameters(
        **held,
        input_w=np.ones(features) if w is None else w,
        input_b=np.zeros(features) if b is None else b,
        unfolds=int(_setting(module, "ode_unfolds", 6)),
        epsilon=float(_setting(module, "epsilon", 0.0)),
    )


def _ltc_inputs(
    recorded: _RecordedModule, parameters: LTCParameters, before: FloatArray
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
    steps = _checked_steps(before.shape[1])
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


def _checked_steps(steps: int) -> npt.NDArray[np.intp]:
    count = min(_CHECKED_STEPS, steps)
    return np.unique(np.linspace(0, steps - 1, count).round().astype(np.intp))


# ---- CfC


@dataclass(eq=False)
class _Layer:
    """Hold one layer of a CfC cell: its calls, and the columns of its state in the cell's."""

    recorded: _RecordedModule
    place: _ElapsedTime
    columns: slice

    def after(self, step: int, elapsed: Any) -> mx.array:
        """Return ``(S, n)``, the state of the layer after a step with another elapsed time."""
        args, kwargs = self.place.replace(self.recorded.given[step], elapsed)
        return _state_of(self.recorded.module(*args, **kwargs))


def _state_of(made: Any) -> mx.array:
    return next(array for _, array in leaves(made))


def _layers(
    stepper: CellStepper, recorded: Sequence[_RecordedModule], time_delta: FloatArray | None
) -> list[_Layer]:
    """Return the layers in the order of the state, which must be the order of their calls."""
    found, start, rows = [], 0, len(stepper.before(0))
    for each in recorded:
        width = _state_of(each.made[0]).shape[-1]
        place = _ElapsedTime(each, time_delta, rows)
        if not place.found:
            raise NotApplicable(
                f"{stepper.hook.name} has the parameters of a CfC, but no argument with its "
                f"elapsed time was found: name the parameter one of {', '.join(TIME_KEYWORDS)}"
            )
        found.append(_Layer(each, place, slice(start, start + width)))
        start += width
    for t in _checked_steps(stepper.steps):
        made = np.concatenate([to_numpy(_state_of(each.made[t])) for each in recorded], axis=-1)
        if made.shape != stepper.after(t).shape or not np.array_equal(
            made, stepper.after(t), equal_nan=True
        ):
            raise NotApplicable(
                f"{stepper.hook.name} has the parameters of a CfC, but its state isn't the "
                "concatenation of its layers' outputs"
            )
    return found


def _read_gates(
    stepper: CellStepper, holders: Sequence[nn.Module], time_delta: FloatArray | None
) -> GateReading:
    inner = [part for holder in holders for part in _gate_parts(holder)]
    calls = _record_steps(stepper, [*holders, *inner])
    known = {id(each.module): each for each in calls}
    layers = _layers(stepper, calls[: len(holders)], time_delta)
    a, b = (
        _concatenated([_affine(layer.recorded, name, known) for layer in layers], stepper)
        for name in _GATE
    )
    tried = [(layer, t) for layer in layers for t in _checked_steps(stepper.steps)]
    left, worst = {+1: 0.0, -1: 0.0}, {+1: math.nan, -1: math.nan}
    for layer, t in tried:
        own_a, own_b = a[:, t, layer.columns].ravel(), b[:, t, layer.columns].ravel()
        size = np.abs(own_a[np.isfinite(own_a) & (own_a != 0)])
        unit = 1.0 / float(np.median(size)) if size.size else 1.0
        elapsed = np.array(_TRIED_TIMES) * unit
        states = _states_after(layer, t, elapsed)
        for sign in (+1, -1):
            gate = sigmoid(sign * np.outer(elapsed, own_a) + own_b)
            residual, share = explained_by(states, gate)
            left[sign] += residual
            worst[sign] = _max_ignoring_nan(worst[sign], share)
    sign = +1 if left[+1] <= left[-1] else -1
    if math.isnan(worst[sign]):
        raise _not_finite(stepper.hook.name)
    if not worst[sign] <= _tolerance(stepper):
        raise NotApplicable(
            f"{stepper.hook.name} has the parameters of a CfC, but no sigmoid of time_a × Δt + "
            "time_b explains its states after other elapsed times (they differ by "
            f"{worst[sign]:.1e} of the largest state)"
        )
    given = layers[0].place.values
    scale = _unit_of_time(stepper, given, time_delta)
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
    parts = [_get_part(holder, name) for name in _GATE]
    yield from (part for part in parts if isinstance(part, nn.Module))
    if any(isinstance(part, mx.array) for part in parts):
        backbone = _backbone(holder)
        if backbone is not None:
            yield backbone


def _backbone(holder: nn.Module) -> nn.Module | None:
    found = (_get_part(holder, name) for name in _BACKBONES)
    return next((part for part in found if isinstance(part, nn.Module)), None)


def _affine(layer: _RecordedModule, name: str, known: Mapping[int, _RecordedModule]) -> FloatArray:
    """Return ``(S, T, n)``, the outputs of ``time_a`` or ``time_b``, a layer or an array."""
    part = _get_part(layer.module, name)
    if isinstance(part, nn.Module):
        steps = [to_numpy(_state_of(made)) for made in known[id(part)].made]
        return np.stack(steps, axis=1).astype(np.float64)
    kernel = to_numpy(part).astype(np.float64)
    backbone = _backbone(layer.module)
    if backbone is not None:
        shared = [to_numpy(_state_of(made)) for made in known[id(backbone)].made]
    else:
        shared = [_concatenation(given, len(kernel)) for given in layer.given]
    if kernel.ndim != 2 or shared[0].shape[-1] != len(kernel):
        raise NotApplicable(f"the inputs of {name} could not be found")
    bias = _array(layer.module, f"{name}_bias")
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
            f"{stepper.hook.name} has the parameters of a CfC, but it "
            "doesn't have one gate per unit"
        )
    return whole


def _states_after(layer: _Layer, step: int, elapsed: FloatArray) -> FloatArray:
    """Return ``(K, S n)``, states of a layer after a step with each of the elapsed times."""
    made = [layer.after(step, float(value)) for value in elapsed]
    return np.stack([to_numpy(state).ravel() for state in made]).astype(np.float64)


def _read_decays(
    stepper: CellStepper, holders: Sequence[nn.Module], time_delta: FloatArray | None
) -> DecayReading:
    layers = _layers(stepper, _record_steps(stepper, holders), time_delta)
    rate = np.concatenate([_decay(layer, stepper.steps) for layer in layers], axis=-1)
    worst = math.nan
    for layer in layers:
        for t in _checked_steps(stepper.steps):
            own = rate[:, t, layer.columns].ravel()
            size = own[np.isfinite(own) & (own > 0)]
            elapsed = np.array(_TRIED_TIMES) * (1.0 / float(np.median(size)) if size.size else 1.0)
            states = _states_after(layer, t, elapsed)
            with np.errstate(over="ignore", invalid="ignore"):
                left = np.exp(-np.outer(elapsed, own))
            worst = _max_ignoring_nan(worst, explained_by(states, left)[1])
    if math.isnan(worst):
        raise _not_finite(stepper.hook.name)
    if not worst <= _tolerance(stepper):
        raise NotApplicable(
            f"{stepper.hook.name} has the parameters of a pure CfC, but its states after other "
            "elapsed times don't decay exponentially (they differ by "
            f"{worst:.1e} of the largest state)"
        )
    given = layers[0].place.values
    scale = _unit_of_time(stepper, given, time_delta)
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


# ---- wiring


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
    layered = any(all(_get_part(m, n) is not None for n in names) for m in inside for names in _CFC)
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
