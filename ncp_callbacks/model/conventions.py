"""Find out how a model is called: the argument for elapsed times, and its array of outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from ..held_out import HeldOutBatch
from ..signal_handlers import raised_by_signal_handler
from .checks.outputs import StepsAxis, check_batch_axis, find_steps_axis
from .errors import ModelError
from .model_copy import ModelCopy

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
_OUTPUT_KEYS = (
    "outputs",
    "output",
    "out",
    "logits",
    "prediction",
    "predictions",
    "pred",
    "preds",
    "y",
    "y_hat",
)
_FORWARD_HINT = (
    "pass forward=lambda model, inputs, time_delta: model(...) to call it in another way"
)


@dataclass(frozen=True)
class Calling:
    """Call a model on inputs and elapsed times.

    Attributes:
        call: The function that runs the model on inputs and ``time_delta``.
        time_argument: Keyword for the elapsed times, "forward" if a function of the user's
            passes them on, or None if the model takes none.
        time_shape: Shape of the elapsed times per sequence, ``(T,)`` or ``(T, 1)``, or None.
        per_step: True if outputs have a time axis.
        horizon: Number of steps of a forecast, which then are axis 1 of the outputs; or None.
        outputs: Number of outputs, 1 if there is no output axis.
    """

    call: Callable[[Any, mx.array | None], Any]
    time_argument: str | None
    time_shape: tuple[int, ...] | None
    per_step: bool
    outputs: int
    horizon: int | None = None

    def __call__(self, inputs: Any, time_delta: mx.array | None) -> mx.array:
        """Return outputs as ``(B, T, O)``, ``(B, H, O)`` or ``(B, O)``.

        Args:
            inputs: The inputs, as the model takes them.
            time_delta: ``(B, T)``, or None.
        """
        if time_delta is not None and self.time_shape is not None:
            time_delta = time_delta.reshape(len(time_delta), *self.time_shape)
        outputs = primary_output(self.call(inputs, time_delta))
        along_steps = self.per_step or self.horizon is not None
        return outputs[..., None] if outputs.ndim == 1 + along_steps else outputs


def primary_output(raw: Any) -> mx.array:
    """Return the array of predictions: the output itself, a tuple's first, or a dict's.

    Raises:
        ModelError: If there is none, or several that may be those of single time steps.
    """
    found = raw
    while not isinstance(found, mx.array):
        if isinstance(found, list | tuple) and found:
            _check_not_steps(found)
            found = found[0]
        elif isinstance(found, dict) and any(k in found for k in _OUTPUT_KEYS):
            found = found[next(k for k in _OUTPUT_KEYS if k in found)]
        elif isinstance(found, dict) and len(found) == 1:
            found = next(iter(found.values()))
        else:
            raise ModelError(_no_outputs(found))
    return found


def _check_not_steps(listed: Sequence[Any]) -> None:
    """Raise if a list holds arrays of one shape, as that of the outputs at each time step does."""
    # A tuple may hold an output and the states of an LSTM.
    if len(listed) < (2 if isinstance(listed, list) else 4):
        return
    if not all(isinstance(a, mx.array) for a in listed) or len({a.shape for a in listed}) > 1:
        return
    raise ModelError(
        f"the model returned {len(listed)} arrays of shape {tuple(listed[0].shape)}: if each holds "
        "the outputs at one step, pass forward=lambda model, inputs, time_delta: "
        "mx.stack(model(inputs), axis=1); if one of them is the output, pass forward=lambda model, "
        "inputs, time_delta: model(inputs)[0], with its number"
    )


def _no_outputs(found: Any) -> str:
    if found is None:
        return "the model returned None: return its outputs, in the model or in forward="
    what, part = f"a {type(found).__name__}", ".name"
    if isinstance(found, dict):
        what = f"a dict with keys {', '.join(map(repr, found))}, none of which names outputs"
        part = f"[{next(iter(found), 'name')!r}]"
    elif hasattr(found, "__array__"):
        return f"the model returned {what}, which has no gradient: return an mx.array"
    return (
        f"the model returned {what}: pass the array of outputs, such as forward=lambda model, "
        f"inputs, time_delta: model(inputs){part}"
    )


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
    """Return the keywords to try, best first."""
    parameters = _parameters(model)
    if parameters is None:
        return TIME_KEYWORDS
    named = tuple(k for k in TIME_KEYWORDS if k in parameters)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return named or (TIME_KEYWORDS if takes_any else ())


def _by_keyword(
    model: nn.Module, keyword: str | None, unpack: bool
) -> Callable[[Any, mx.array | None], Any]:
    """Return a function that calls the model.

    Args:
        model: The model.
        keyword: The parameter that takes the elapsed times, or None.
        unpack: Pass the items of a container of inputs as separate arguments.
    """
    parameter = (_parameters(model) or {}).get(keyword or "")
    positional = parameter is not None and parameter.kind is parameter.POSITIONAL_ONLY

    def call(inputs: Any, time_delta: mx.array | None) -> Any:
        named = dict(inputs) if unpack and isinstance(inputs, dict) else {}
        listed = [] if named else [*inputs] if unpack else [inputs]
        if keyword is not None and time_delta is not None:
            if positional:
                listed.append(time_delta)
            else:
                named[keyword] = time_delta
        return model(*listed, **named)

    return call


class _Candidate:
    """Try one way to call the model, from the same state each time."""

    def __init__(
        self,
        copy: ModelCopy,
        keyword: str | None,
        call: Callable[[Any, mx.array | None], Any],
        prepare: Callable[[], None],
    ) -> None:
        self.copy, self.keyword, self.call, self._prepare = copy, keyword, call, prepare
        self.error: Exception | None = None

    def outputs(self, batch: HeldOutBatch, time_delta: mx.array | None) -> mx.array | None:
        """Return the outputs; return None and set ``error`` if the call failed."""
        try:
            with self.copy.preserved():  # or a stateful model would continue from this call
                self._prepare()
                outputs = primary_output(self.call(batch.pack(batch.inputs), time_delta))
                mx.eval(outputs)
        except Exception as error:  # a user's model may raise anything
            if raised_by_signal_handler(error):
                raise
            self.error = error
            return None
        return outputs


def find_calling(
    copy: ModelCopy,
    held_out: HeldOutBatch,
    forward: Forward | None,
    horizon: bool | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> Calling:
    """Find out how to call a model on a batch, by trying.

    Args:
        copy: The copy of the model.
        held_out: The batch.
        forward: Called as ``forward(model, inputs, time_delta)`` instead of the model.
        horizon: True if axis 1 of the outputs is a forecast's, False if it is time; None: found.
        prepare: Called before each run.

    Raises:
        ModelError: If no call works, or the outputs don't fit the batch.
    """
    model, delta = copy.model, held_out.time_delta
    if forward is None and not callable(model):
        raise ModelError(_other_method(model, delta is not None))
    batch, steps, _ = held_out.inputs_shape
    if forward is not None:
        own = forward
        candidates = [_Candidate(copy, "forward", lambda x, dt: own(model, x, dt), prepare)]
    else:
        keywords: tuple[str | None, ...] = _time_keywords(model)
        if delta is None:
            # **kwargs is no evidence that the model takes time.
            keywords = keywords[:1] if keywords and keywords != TIME_KEYWORDS else (None,)
        elif not keywords:
            raise ModelError(
                f"time_delta was passed, but {_describe(model)} takes no keyword for it; tried "
                f"{', '.join(TIME_KEYWORDS)}. Remove time_delta, or " + _FORWARD_HINT
            )
        candidates = [
            _Candidate(copy, k, _by_keyword(model, k, unpack), prepare)
            for unpack in ((False, True) if held_out.has_companions else (False,))
            for k in keywords
        ]
    shapes: list[tuple[int, ...] | None] = [None]
    if delta is not None:
        given = tuple(delta.shape[1:])
        shapes = [given, (steps,) if len(given) == 2 else (steps, 1)]

    errors: list[Exception] = []
    working: list[Calling] = []
    for candidate in candidates:
        for shape in shapes:
            dt = None if delta is None or shape is None else delta.reshape(batch, *shape)
            outputs = candidate.outputs(held_out, dt)
            if outputs is None:
                errors += [candidate.error] if candidate.error is not None else []
                continue
            axis = _steps_axis(outputs, candidate, held_out, shape, horizon)
            count = 1 if outputs.ndim == 1 + (axis is not None) else int(outputs.shape[-1])
            working.append(
                Calling(
                    candidate.call,
                    candidate.keyword,
                    shape,
                    axis == "time",
                    count,
                    int(outputs.shape[1]) if axis == "horizon" else None,
                )
            )
            # **kwargs could accept a keyword without any effect.
            if (
                len(candidates) == 1
                or dt is None
                or _outputs_differ(candidate.outputs(held_out, 2 * dt), outputs)
            ):
                return working[-1]
            break
    if working:
        return working[0]
    hint = _hint_at_inputs(candidates, held_out)
    raise _error_of_failed_calls(model, held_out, forward, errors, hint) from errors[0]


def _outputs_differ(a: mx.array | None, b: mx.array) -> bool:
    return a is not None and not bool(mx.array_equal(a, b, equal_nan=True))


def _other_method(model: nn.Module, takes_time: bool) -> str:
    """Return what to do with a model that can't be called."""
    name = type(model).__name__
    own = {
        key: list(inspect.signature(value).parameters.values())[1:]
        for cls in type(model).__mro__[: type(model).__mro__.index(nn.Module)]
        for key, value in vars(cls).items()
        if inspect.isfunction(value) and getattr(type(model), key) is value
        if not key.startswith("_")
    }
    # One that takes inputs, and as few other arguments as possible.
    taking = {key: given for key, given in own.items() if any(map(_is_positional, given))}
    if not taking:
        return (
            f"{name} has no __call__, so that model(inputs) fails: define it, or pass forward=, a "
            "function (model, inputs, time_delta) that returns the outputs"
        )
    method = min(taking, key=lambda key: (key != "forward", len(_required(taking[key]))))
    call, also = _call_of(f"model.{method}", taking[method], takes_time)
    return (
        f"{name} has no __call__, so that model(inputs) fails. If its method {method} returns the "
        f"outputs, pass forward=lambda model, inputs, time_delta: {call}{also}"
    )


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (
        parameter.POSITIONAL_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.VAR_POSITIONAL,
    )


def _required(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for p in parameters if p.default is p.empty and p.kind not in variable]


def _call_of(
    function: str, parameters: Sequence[inspect.Parameter], takes_time: bool
) -> tuple[str, str]:
    """Return how a function is called on inputs, and what to fill in, or "".

    Args:
        function: How it is written.
        parameters: What it takes, of which the first is the inputs.
        takes_time: True if there are elapsed times, for which the call shows ``time_delta``.
    """
    others = [p.name for p in _required(parameters[1:])]
    named = [p.name for p in parameters[1:]]
    keyword = next((k for k in TIME_KEYWORDS if k in named), None)
    given = [f", {keyword}=time_delta"] if keyword and takes_time else []
    missing = [name for name in others if not (given and name == keyword)]
    also = f", with your own {' and '.join(missing)}" if missing else ""
    if keyword in missing:
        also += "; it takes elapsed times: pass time_delta= to the held-out batch for them"
    call = f"{function}(inputs{''.join(given)}{''.join(f', {name}=...' for name in missing)})"
    return call, also


def _hint_at_inputs(candidates: Sequence[_Candidate], held_out: HeldOutBatch) -> str:
    """Return what is probably wrong with inputs on which every call failed, or ""."""
    inputs = held_out.inputs
    if held_out.tokens:
        return (
            ". Integers (batch, time steps) are taken for tokens; for measurements pass "
            "inputs[..., None].astype(mx.float32)"
        )
    if inputs.ndim != 3:
        return ""
    swapped = inputs.swapaxes(1, 2)
    other = held_out.replaced("inputs", swapped)
    if all(candidate.outputs(other, None) is None for candidate in candidates):
        return ""
    return (
        f". It runs on inputs {tuple(swapped.shape)}: if yours are (batch, features, time steps), "
        "pass inputs.swapaxes(1, 2); if the model takes features before time, pass "
        "forward=lambda model, inputs, time_delta: model(inputs.swapaxes(1, 2))"
    )


def _error_of_failed_calls(
    model: nn.Module,
    held_out: HeldOutBatch,
    forward: Forward | None,
    errors: list[Exception],
    at_inputs: str,
) -> ModelError:
    error = errors[0]
    if isinstance(error, ModelError):
        return error
    what = "forward" if forward is not None else _describe(model)
    arguments = f"inputs {held_out.inputs_shape}"
    if held_out.time_delta is not None:
        arguments += f" and time_delta {tuple(held_out.time_delta.shape)}"
    hint = "" if forward is not None else ". If the call is wrong, " + _FORWARD_HINT
    parameters = list((_parameters(model) or {}).values())
    if forward is None and isinstance(error, TypeError) and len(_required(parameters)) > 1:
        call, also = _call_of("model", parameters, held_out.time_delta is not None)
        hint = f". Pass forward=lambda model, inputs, time_delta: {call}{also}"
    elif held_out.time_delta is None and _time_keywords(model) and forward is None:
        hint = ". It takes elapsed times: if they are missing, pass time_delta=" + hint
    hint = at_inputs or hint
    return ModelError(f"{what} failed on {arguments}: {type(error).__name__}: {error}{hint}")


def _steps_axis(
    outputs: mx.array,
    candidate: _Candidate,
    held_out: HeldOutBatch,
    time_shape: tuple[int, ...] | None,
    horizon: bool | None,
) -> StepsAxis:
    """Check the outputs, and return what their axis 1 is."""
    shape = tuple(outputs.shape)
    check_batch_axis(outputs, held_out)
    if not mx.issubdtype(outputs.dtype, mx.floating):
        raise ModelError(
            f"the model's outputs have dtype {outputs.dtype}, which has no gradient: return scores "
            "instead of decisions, or pass forward= that does"
        )
    if len(shape) > 3:
        raise ModelError(
            f"the model's outputs have shape {shape}: pass forward= that returns (batch, time, "
            "outputs), (batch, horizon, outputs), (batch, outputs) or (batch,)"
        )
    if len(shape) == 1:
        if horizon:
            raise ModelError(
                f"horizon=True, but the model's outputs have shape {shape}: return (batch, "
                "horizon) or (batch, horizon, outputs), or remove horizon="
            )
        return None

    def run(part: HeldOutBatch) -> mx.array | None:
        delta = part.flat_time_delta
        if delta is not None and time_shape is not None:
            delta = delta[..., None] if len(time_shape) == 2 else delta
        return candidate.outputs(part, delta)

    return find_steps_axis(run, held_out, outputs, horizon)
