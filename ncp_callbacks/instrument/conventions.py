"""How a model is called: where its intervals go in, and where its outputs come out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from ..held_out import HeldOutBatch
from .errors import ModelError

__all__ = ["TIME_KEYWORDS", "Calling", "Forward", "find_calling"]

Forward: TypeAlias = Callable[[Any, mx.array, "mx.array | None"], Any]

TIME_KEYWORDS = (
    "time_delta",
    "timespans",
    "time_deltas",
    "timespan",
    "delta_t",
    "dt",
    "delta_time",
    "deltas",
    "elapsed",
    "elapsed_time",
    "intervals",
    "time_intervals",
    "time",
    "ts",
)
_OUTPUT_KEYS = ("outputs", "output", "logits", "prediction", "predictions", "y", "y_hat")
_FORWARD_HINT = (
    "forward=lambda model, inputs, time_delta: model(...) tells the monitor how to call your model"
)


@dataclass(frozen=True)
class Calling:
    """How to run a model on inputs and intervals.

    Attributes:
        time_argument: Keyword that takes the intervals, "forward" where a function of the user's
            passes them on, or None where the model takes none.
        time_shape: Shape of the intervals per sequence, ``(T,)`` or ``(T, 1)``; None without.
        per_step: Whether outputs have a time axis.
        outputs: Number of outputs, 1 where there is no output axis.
    """

    call: Callable[[mx.array, mx.array | None], Any]
    time_argument: str | None
    time_shape: tuple[int, ...] | None
    per_step: bool
    outputs: int

    def __call__(self, inputs: mx.array, time_delta: mx.array | None) -> mx.array:
        """Outputs as ``(B, T, O)`` or ``(B, O)``; ``time_delta`` as ``(B, T)``."""
        if time_delta is not None and self.time_shape is not None:
            time_delta = time_delta.reshape(len(time_delta), *self.time_shape)
        outputs = primary_output(self.call(inputs, time_delta))
        return outputs[..., None] if outputs.ndim == 1 + self.per_step else outputs


def primary_output(raw: Any) -> mx.array:
    """The array of predictions in whatever a model returns: itself, a tuple's first, a dict's."""
    found = raw
    while not isinstance(found, mx.array):
        if isinstance(found, list | tuple) and found:
            found = found[0]
        elif isinstance(found, dict) and any(k in found for k in _OUTPUT_KEYS):
            found = found[next(k for k in _OUTPUT_KEYS if k in found)]
        else:
            raise ModelError(
                f"the model returned a {type(raw).__name__} in which no outputs were found "
                f"(looked for an array, a tuple's first element, keys {', '.join(_OUTPUT_KEYS)}); "
                + _FORWARD_HINT
            )
    return found


def _parameters(model: nn.Module) -> dict[str, inspect.Parameter] | None:
    try:
        signature = inspect.signature(type(model).__call__)
    except (TypeError, ValueError):
        return None
    return dict(list(signature.parameters.items())[1:])


def _describe(model: nn.Module) -> str:
    parameters = _parameters(model)
    if parameters is None:
        return type(model).__name__
    return f"{type(model).__name__}({', '.join(map(str, parameters.values()))})"


def _time_keywords(model: nn.Module) -> tuple[str, ...]:
    """Keywords to try, best first."""
    parameters = _parameters(model)
    if parameters is None:
        return TIME_KEYWORDS
    named = tuple(k for k in TIME_KEYWORDS if k in parameters)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return named or (TIME_KEYWORDS if takes_any else ())


def _by_keyword(model: nn.Module, keyword: str | None) -> Callable[[mx.array, Any], Any]:
    if keyword is None:
        return lambda inputs, time_delta: model(inputs)
    parameter = (_parameters(model) or {}).get(keyword)
    if parameter is not None and parameter.kind is parameter.POSITIONAL_ONLY:
        return lambda inputs, time_delta: model(inputs, time_delta)
    return lambda inputs, time_delta: model(inputs, **{keyword: time_delta})


def _attempt(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        outputs = primary_output(call())
        mx.eval(outputs)
    except Exception as error:  # whatever a user's model raises: reported with its cause
        return None, error
    return outputs, None


def find_calling(model: nn.Module, held_out: HeldOutBatch, forward: Forward | None) -> Calling:
    """Find out how ``model`` takes ``held_out``, by calling it.

    Args:
        forward: Called as ``forward(model, inputs, time_delta)`` instead of the model.

    Raises:
        ModelError: If no way is found, or the outputs don't fit the batch.
    """
    inputs, delta = held_out.inputs, held_out.time_delta
    batch, steps, _ = held_out.inputs_shape
    if forward is not None:
        own = forward

        def run(x: mx.array, dt: Any) -> Any:
            return own(model, x, dt)

        ways: list[tuple[str | None, Callable[[mx.array, Any], Any]]] = [("forward", run)]
    elif delta is None:
        ways = [(next(iter(_time_keywords(model)), None), lambda x, dt: model(x))]
        if _time_keywords(model) == TIME_KEYWORDS:
            ways = [(None, ways[0][1])]  # **kwargs says nothing about time
    else:
        keywords = _time_keywords(model)
        if not keywords:
            raise ModelError(
                f"time_delta was given, but {_describe(model)} takes no keyword for it; looked for "
                f"{', '.join(TIME_KEYWORDS)}. Leave time_delta out, or " + _FORWARD_HINT
            )
        ways = [(k, _by_keyword(model, k)) for k in keywords]
    shapes: list[tuple[int, ...] | None] = [None]
    if delta is not None:
        given = tuple(delta.shape[1:])
        shapes = [given, (steps,) if len(given) == 2 else (steps, 1)]

    errors: list[Exception] = []
    for keyword, call in ways:
        for shape in shapes:
            dt = None if delta is None or shape is None else delta.reshape(batch, *shape)
            outputs, error = _attempt(lambda call=call, dt=dt: call(inputs, dt))  # type: ignore[misc]
            if error is None:
                per_step = _has_time_axis(outputs, call, held_out, dt)
                count = 1 if outputs.ndim == 1 + per_step else int(outputs.shape[-1])
                return Calling(call, keyword, shape, per_step, count)
            errors.append(error)
    raise _explained(model, held_out, forward, errors) from errors[0]


def _explained(
    model: nn.Module, held_out: HeldOutBatch, forward: Forward | None, errors: list[Exception]
) -> ModelError:
    error = errors[0]
    if isinstance(error, ModelError):
        return error
    what = "forward" if forward is not None else _describe(model)
    told = f"inputs {held_out.inputs_shape}"
    if held_out.time_delta is not None:
        told += f" and time_delta {tuple(held_out.time_delta.shape)}"
    hint = "" if forward is not None else ". If it is to be called in another way: " + _FORWARD_HINT
    if held_out.time_delta is None and _time_keywords(model) and forward is None:
        hint = ". It can take intervals: is time_delta= missing in HeldOutBatch?" + hint
    return ModelError(f"{what} failed on {told}: {type(error).__name__}: {error}{hint}")


def _has_time_axis(
    outputs: mx.array,
    call: Callable[[mx.array, Any], Any],
    held_out: HeldOutBatch,
    dt: mx.array | None,
) -> bool:
    """Whether axis 1 of the outputs is time; a shorter run tells where sizes don't."""
    batch, steps, _ = held_out.inputs_shape
    shape = tuple(outputs.shape)
    if not shape or shape[0] != batch:
        raise ModelError(
            f"the model's outputs have shape {shape} for {batch} sequences: their first axis must "
            "be the batch. For a model that takes (time, batch, features), transpose in "
            "forward=lambda model, inputs, time_delta: ..."
        )
    if not mx.issubdtype(outputs.dtype, mx.floating):
        raise ModelError(
            f"the model's outputs have dtype {outputs.dtype}, which has no gradient: return scores "
            "rather than decisions, or do so in forward="
        )
    if len(shape) == 1:
        return False
    if len(shape) > 3:
        raise ModelError(
            f"the model's outputs have shape {shape}; expected (batch, time, outputs), "
            "(batch, outputs) or (batch,). Reduce them in forward="
        )
    if shape[1] != steps:
        if len(shape) == 3:
            raise ModelError(
                f"the model's outputs have shape {shape} for {steps} time steps; expected "
                "(batch, time, outputs) or (batch, outputs). Choose or flatten in forward="
            )
        return False
    if steps == 1:
        return len(shape) == 3
    shorter, error = _attempt(
        lambda: call(held_out.inputs[:, :-1], None if dt is None else dt[:, :-1])
    )
    if error is not None:  # a model of fixed length: sizes are all there is to go by
        return len(shape) == 3
    return bool(shorter.ndim > 1 and shorter.shape[1] == steps - 1)
