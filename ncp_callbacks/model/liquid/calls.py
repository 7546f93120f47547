"""Find the parts of a liquid cell, and record their calls in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...arrays import to_numpy
from ...results import FloatArray
from ..capture import Around, Tap
from ..cell_stepper import CellStepper
from ..errors import NotApplicable
from ..pytrees import leaves

__all__ = [
    "Arguments",
    "RecordedModule",
    "get_array",
    "get_part",
    "get_setting",
    "has_parts",
    "output_state",
    "record_steps",
]

Arguments: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"


def get_part(module: nn.Module, name: str) -> Any:
    """Return a parameter or layer by its name, with or without a leading underscore, or None."""
    kept = getattr(module, "_params", None)
    if isinstance(kept, Mapping) and isinstance(kept.get(name), mx.array | nn.Module):
        return kept[name]
    for each in (name, f"_{name}"):
        found = getattr(module, each, None)
        if isinstance(found, mx.array | nn.Module):
            return found
    return None


def has_parts(module: nn.Module, names: Iterable[str]) -> bool:
    """Return True if a module has a parameter or layer of each name."""
    return all(get_part(module, name) is not None for name in names)


def get_setting(module: nn.Module, name: str, default: Any) -> Any:
    """Return a number or flag by its name, with or without a leading underscore."""
    for each in (name, f"_{name}"):
        found = getattr(module, each, None)
        if isinstance(found, bool | int | float):
            return found
    return default


def get_array(module: nn.Module, name: str) -> FloatArray | None:
    """Return the values of a parameter by its name, or None if there is no such array."""
    found = get_part(module, name)
    return to_numpy(found).astype(np.float64) if isinstance(found, mx.array) else None


@dataclass(eq=False)
class RecordedModule:
    """Hold a module inside the cell, with the arguments and outputs of its call in each step."""

    module: nn.Module
    given: list[Arguments] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)


def record_steps(stepper: CellStepper, recorded: Sequence[nn.Module]) -> list[RecordedModule]:
    """Run every step again and record the calls of some modules.

    Raises:
        NotApplicable: If a module isn't called exactly once in each step.
    """
    found = [RecordedModule(module) for module in recorded]

    def around(into: RecordedModule) -> Around:
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


def output_state(made: Any) -> mx.array:
    """Return the state among what a layer returns, which is its first array."""
    return next(array for _, array in leaves(made))
