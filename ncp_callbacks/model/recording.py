"""One run of a model, call by call: who was called by whom, with which arrays, giving which."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..held_out import to_numpy
from ..signal_handlers import raised_by_signal_handler
from .capture import Around, Tap
from .model_copy import set_evaluation_mode
from .pytrees import Path, leaves, modules

__all__ = ["Call", "Held", "Values", "record"]


@dataclass(eq=False)
class Call:
    """One call of one module.

    Attributes:
        module, path: The module, and its path in the model.
        number: How many calls of this module came before.
        parent: The call it was made in.
        children: The calls made in it.
        inputs: Arrays among its arguments, by their place in ``(args, kwargs)``.
        outputs: Arrays in what it returned, by their place.
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
        return self.path or type(self.module).__name__

    def within(self, others: Container[int]) -> Call | None:
        """The innermost of ``others``, given by their ids, that this call was made in."""
        above = self.parent
        while above is not None and id(above) not in others:
            above = above.parent
        return above

    def descendants(self) -> Iterator[Call]:
        for child in self.children:
            yield child
            yield from child.descendants()


# Alters a call: (the call so far, what makes it, args, kwargs) -> output.
Held: TypeAlias = Callable[
    [Call, Callable[..., Any], "tuple[Any, ...]", "dict[str, Any]"],
    Any,
]


def record(
    model: nn.Module, run: Callable[[], Any], held: Held | None = None
) -> tuple[list[Call], list[str]]:
    """All module calls of one run, in the order in which they began.

    Args:
        held: Makes the calls instead of the modules.

    Returns:
        The calls, and names of the modules of which some calls can't be seen: inside ``mx.vmap``
        there are only stand-ins for arrays.
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
                output = call(*args, **kwargs) if held is None else held(this, call, args, kwargs)
            finally:
                stack.pop()
            this.outputs = dict(leaves(output))
            return output

        return wrapper

    with Tap().on([(module, around(module, path)) for path, module in listed]):
        run()
    if len(modules(model)) != len(listed):
        # Made in the first run, and in train mode: only now can they be watched.
        set_evaluation_mode(model)
        return record(model, run, held)
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
    """Arrays compared by value, each converted once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[mx.array, np.ndarray[Any, Any]]] = {}

    def of(self, array: mx.array) -> np.ndarray[Any, Any]:
        """As float32 numpy array, in its own shape."""
        if id(array) not in self._known:
            self._known[id(array)] = (array, to_numpy(array))
        return self._known[id(array)][1]

    def same(self, a: mx.array, b: mx.array) -> bool:
        """Equal, NaN where the other is NaN, whatever axes of length 1 there are."""
        if a is b:
            return True
        x, y = self.of(a).ravel(), self.of(b).ravel()
        return x.size == y.size and bool(np.array_equal(x, y, equal_nan=True))

    def key(self, array: mx.array) -> bytes | None:
        """The same for equal arrays; None for one whose values could recur by chance."""
        flat = self.of(array).ravel()
        return flat.tobytes() if flat.size > 1 and (flat != flat[0]).any() else None
