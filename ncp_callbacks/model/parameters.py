"""Find the parameters that a model trains, where they are, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .pytrees import modules

__all__ = ["Parameter", "trainable_parameters"]


@dataclass(frozen=True, eq=False)
class Parameter:
    """Hold the container, the key and the name of a trainable floating array.

    Attributes:
        holder: The module, dict or list that contains the array.
        key: Where the array is in it.
        module: Path of the module that it belongs to; ``""`` for the model itself.
        name: Its name in the model, as in ``model.trainable_parameters()``: ``"rnn.cell.weight"``.
    """

    holder: Any
    key: Any
    module: str
    name: str

    @property
    def array(self) -> mx.array:
        """Return the array that the container holds now."""
        array: mx.array = self.holder[self.key]
        return array


def trainable_parameters(model: nn.Module) -> list[Parameter]:
    """Return the trainable floating arrays of a model, in the model's order.

    MLX's own function of this name doesn't end on a model that contains itself.
    """
    paths = {id(module): path for path, module in modules(model)}
    found: list[Parameter] = []
    seen: set[int] = set()

    def walk(holder: Any, owner: nn.Module, inside: str) -> None:
        if id(holder) in seen:
            return
        seen.add(id(holder))
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            name = f"{inside}.{key}" if inside else str(key)
            if name.startswith("_") or name in owner._no_grad:
                continue
            if isinstance(value, nn.Module):
                walk(value, value, "")
            elif isinstance(value, dict | list):
                walk(value, owner, name)
            elif isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating):
                path = paths.get(id(owner), "")
                found.append(Parameter(holder, key, path, f"{path}.{name}" if path else name))

    walk(model, model, "")
    return found
