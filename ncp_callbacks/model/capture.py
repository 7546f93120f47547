"""Record and change the calls of submodules, and restore the modules afterwards.

MLX has no hooks, and a ``__call__`` set on an instance is ignored, so a tap gives the instance
another class for the time of a ``with`` block::

    def show(call, args, kwargs):
        out = call(*args, **kwargs)
        print(out.shape)
        return out

    with Tap().on([(model.cell, show)]):
        model(x)
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

__all__ = ["Around", "Tap", "subnormal_flush"]

# Called instead of the module with (call, args, kwargs); `call` is the module's own __call__.
Around: TypeAlias = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class _HiddenSubclass:
    """Hide a subclass from ``__init_subclass__`` of the user's class, as the first base."""

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


class Tap:
    """Run functions around the calls of chosen modules.

    A tap keeps the classes it makes, so that opening it again costs microseconds. Taps may be
    nested, even on one module.
    """

    def __init__(self) -> None:
        self._classes: dict[type, type] = {}
        self._around: dict[int, Around] = {}

    def _tapped(self, cls: type) -> type:
        if cls not in self._classes:
            around = self._around

            def __call__(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                call = functools.partial(cls.__call__, module)
                wrapper = around.get(id(module))
                return call(*args, **kwargs) if wrapper is None else wrapper(call, args, kwargs)

            body = {
                "__call__": __call__,
                "__module__": cls.__module__,
                "__qualname__": cls.__qualname__,
                "__doc__": cls.__doc__,
                "__slots__": (),
            }
            # Not type(cls)(...): a metaclass may keep a register of its classes.
            bases = (cls,) if issubclass(cls, _HiddenSubclass) else (_HiddenSubclass, cls)
            self._classes[cls] = type.__new__(type(cls), cls.__name__, bases, body)
        return self._classes[cls]

    def forget(self) -> None:
        """Forget the modules of a block that an interrupt kept from ending in good order."""
        self._around.clear()

    @contextlib.contextmanager
    def on(self, pairs: Iterable[tuple[nn.Module, Around]]) -> Iterator[None]:
        """Open the tap; on any exit the modules get their own classes back.

        Args:
            pairs: Modules, each with the function to run around its calls.
        """
        swapped: list[tuple[nn.Module, type]] = []
        try:
            for module, around in pairs:
                if id(module) in self._around:
                    raise RuntimeError(
                        f"{type(module).__name__} is already tapped: use another Tap"
                    )
                cls = type(module)
                object.__setattr__(module, "__class__", self._tapped(cls))
                swapped.append((module, cls))
                self._around[id(module)] = around
            yield
        finally:
            for module, cls in reversed(swapped):
                object.__setattr__(module, "__class__", cls)
                self._around.pop(id(module), None)


def subnormal_flush() -> Callable[[mx.array], mx.array]:
    """Return the identity, through which gradients below 1e-30 go back as zero.

    Gradients that vanish over many time steps become subnormal numbers, with which x86 computes
    about a hundred times slower. The loss is far below the rounding of the other gradients.
    """

    @mx.custom_function
    def flush(state: mx.array) -> mx.array:
        return state

    @flush.vjp
    def _flush_vjp(primal: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return mx.where(mx.abs(cotangent) < 1e-30, mx.zeros_like(cotangent), cotangent)

    return flush  # type: ignore[return-value]
