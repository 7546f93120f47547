"""Leaving training bit-identical: whatever a look does to a model is undone.

with undisturbed(model):
    model(x)        # in eval mode; no trace of it remains
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

__all__ = ["undisturbed"]


def _containers(root: nn.Module) -> list[Any]:
    """Every dict (modules are dicts), list and tuple below ``root``, each once."""
    seen: dict[int, Any] = {}
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        children = node.values() if isinstance(node, dict) else node
        stack += [child for child in children if isinstance(child, dict | list | tuple)]
    return list(seen.values())


def _compile_is_on() -> bool:
    """Whether ``mx.compile`` compiles: there is no getter, but a compiled body runs only once."""
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


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode and, on any exit, everything back as it was.

    That is: entries of all its containers (parameters, buffers, lazily created ones), attributes,
    train flags and frozen sets of each module, the random states of MLX, numpy and Python, MLX's
    default device. Compilation is off inside, because a function that the model has compiled for
    itself would otherwise keep what it traced here (eval mode, recorded arrays) for training.

    Must run on the training thread, outside compiled or differentiated functions; other threads
    must not use the model meanwhile.
    """
    containers = _containers(model)
    modules = [c for c in containers if isinstance(c, nn.Module)]
    entries: list[tuple[Any, Any]] = [
        (c, dict(c) if isinstance(c, dict) else list(c))
        for c in containers
        if not isinstance(c, tuple)
    ]
    attributes = [(m, dict(m.__dict__), set(m._no_grad)) for m in modules]
    key = mx.random.state[0].tolist()  # type: ignore[index]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    device = mx.default_device()
    compiling = _compile_is_on()
    try:
        if compiling:
            mx.disable_compile()
        for module in modules:
            object.__setattr__(module, "_training", False)
        yield
    finally:
        for container, saved in entries:
            if isinstance(container, dict):
                dict.clear(container)
                dict.update(container, saved)
            else:
                container[:] = saved
        for module, saved_attributes, frozen in attributes:
            module.__dict__.clear()
            module.__dict__.update(saved_attributes)
            module._no_grad.clear()
            module._no_grad.update(frozen)
        if compiling:
            mx.enable_compile()
        # `state` can't be assigned to in recent MLX; this seed gives the same key in all versions.
        mx.random.seed((key[0] << 32) | key[1])
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        if mx.default_device() != device:
            mx.set_default_device(device)
