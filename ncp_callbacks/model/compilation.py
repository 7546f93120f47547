"""Switch ``mx.compile`` off while analyses run, in a way that an interrupt can't leave it off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import mlx.core as mx

__all__ = ["CompilationSwitch"]


class CompilationSwitch:
    """Turn compilation off for a ``with`` block.

    In a function that a model's module compiles, the arrays of submodules' calls are tracers, and
    the function would keep for training what it traced in evaluation mode.
    """

    def __init__(self) -> None:
        self._turned_off = False
        self._device: mx.Device | None = None

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Turn compilation off; on any exit restore it and MLX's default device."""
        if self._turned_off:  # nested, or after an interrupt
            yield
            return
        self._device = mx.default_device()
        # The flag first: an interrupt in between costs a needless call at most.
        self._turned_off = _compiles()
        try:
            if self._turned_off:
                mx.disable_compile()
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Restore compilation and device, which an interrupt of :meth:`off` may leave changed."""
        if self._turned_off:
            mx.enable_compile()
            self._turned_off = False
        if self._device is not None and mx.default_device() != self._device:
            mx.set_default_device(self._device)
        self._device = None


def _compiles() -> bool:
    """Tell if ``mx.compile`` compiles: MLX doesn't say, but a compiled body runs only once."""
    runs = 0

    def body(x: mx.array) -> mx.array:
        nonlocal runs
        runs += 1
        return x + 1

    compiled = mx.compile(body)
    zero = mx.array(0.0)
    compiled(zero)
    compiled(zero)
    return runs == 1
