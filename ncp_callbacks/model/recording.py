"""Record one run of a model call by call, with the arrays that calls take and return."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..arrays import to_numpy
from ..signal_handlers import raised_by_signal_handler
from .capture import Around, Tap
from .model_copy import set_evaluation_mode
from .pytrees import Path, leaves, modules

__all__ = ["Call", "RunCall", "Values", "record"]


@dataclass(eq=False)
class Call:
    """Hold one call of one module.

    Attributes:
        module: The module.
        path: The path of the module in the model.
        number: The number of earlier calls of this module.
        parent: The call that made this call, or None.
        children: The calls that this call made.
        inputs: Arrays among the arguments, by their path in ``(args, kwargs)``.
        outputs: Arrays in the output, by their path.
    """

    module: nn.Module
    path: str
    number: int
    parent: Call | None
    inputs: dict[Path, mx.array] = field(default_factory=dict)
    outputs: dict[Path, mx.array] = field(default_factory=dict)
    children: list[Call] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the path of the module, or its class for the model itself."""
        return self.path or type(self.module).__name__

    def within(self, others: Container[int]) -> Call | None:
        """Return the innermost of ``others`` (ids of calls) that contains this call, or None."""
        above = self.parent
        while above is not None and id(above) not in others:
            above = above.parent
        return above

    def descendants(self) -> Iterator[Call]:
        """Iterate over the calls inside this call, at any depth."""
        for child in self.children:
            yield child
            yield from child.descendants()


# Runs a call instead of the module: (record so far, the module's call, args, kwargs) -> output.
RunCall: TypeAlias = Callable[
    [Call, Callable[..., Any], "tuple[Any, ...]", "dict[str, Any]"],
    Any,
]


def record(
    model: nn.Module, run: Callable[[], Any], run_call: RunCall | None = None
) -> tuple[list[Call], list[str]]:
    """Record all module calls of one run, in the order in which they began.

    Args:
        model: The model.
        run: Runs the model.
        run_call: Runs each call instead of the module; None: the modules run.

    Returns:
        The calls, and the names of modules with calls that can't be recorded, because arrays
        inside ``mx.vmap`` have no values.
    """
    listed = modules(model)
    calls: list[Call] = []
    stack: list[Call] = []
    made: dict[int, int] = {}

    def around(module: nn.Module, path: str) -> Around:
        def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            number = made.get(id(module), 0)
            made[id(module)] = number + 1
            this = Call(module, path, number, stack[-1] if stack else None)
            this.inputs = dict(leaves((args, kwargs)))
            calls.append(this)
            if this.parent is not None:
                this.parent.children.append(this)
            stack.append(this)
            try:
                output = (
                    call(*args, **kwargs)
                    if run_call is None
                    else run_call(this, call, args, kwargs)
                )
            finally:
                stack.pop()
            this.outputs = dict(leaves(output))
            return output

        return wrapper

    with Tap().on([(module, around(module, path)) for path, module in listed]):
        run()
    if len(modules(model)) != len(listed):
        # Modules that the run created, in training mode, can only be recorded in another run.
        set_evaluation_mode(model)
        return record(model, run, run_call)
    if _evaluated(calls):
        return calls, []
    hidden: dict[str, None] = {}
    for call in calls:
        if not _evaluated([call]):
            hidden[call.name] = None
            call.inputs, call.outputs = {}, {}
    return calls, list(hidden)


def _evaluated(calls: Iterable[Call]) -> bool:
    try:
        mx.eval([array for c in calls for array in (*c.inputs.values(), *c.outputs.values())])
    except RuntimeError as error:
        if raised_by_signal_handler(error):
            raise
        return False
    return True


class Values:
    """Compare arrays by value, and convert each of them once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[mx.array, np.ndarray[Any, Any]]] = {}

    def of(self, array: mx.array) -> np.ndarray[Any, Any]:
        """Return an array as a float32 numpy array of its own shape."""
        if id(array) not in self._known:
            self._known[id(array)] = (array, to_numpy(array))
        return self._known[id(array)][1]

    def same(self, a: mx.array, b: mx.array) -> bool:
        """Return whether two arrays hold equal entries, NaN included, in any shape."""
        if a is b:
            return True
        x, y = self.of(a).ravel(), self.of(b).ravel()
        return x.size == y.size and bool(np.array_equal(x, y, equal_nan=True))

    def key(self, array: mx.array) -> bytes | None:
        """Return a key that equal arrays share; None for a constant array, equal by chance."""
        flat = self.of(array).ravel()
        return flat.tobytes() if flat.size > 1 and (flat != flat[0]).any() else None
