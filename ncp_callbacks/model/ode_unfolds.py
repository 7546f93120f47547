"""Double the sub-steps of ODE solvers, which shows how exact they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.nn as nn

from .errors import NotApplicable
from .pytrees import modules

__all__ = ["doubled_ode_unfolds"]


@contextmanager
def doubled_ode_unfolds(model: nn.Module) -> Iterator[None]:
    """Double the sub-steps (``ode_unfolds``) of the cells' solvers for a ``with`` block.

    Raises:
        NotApplicable: If no module has such a setting.
    """
    found = [
        (module, name, count)
        for _, module in modules(model)
        for name in ("ode_unfolds", "_ode_unfolds")
        if isinstance(count := getattr(module, name, None), int) and not isinstance(count, bool)
    ]
    if not found:
        raise NotApplicable(
            "no module of the model has ode_unfolds, the number of a solver's sub-steps to double"
        )
    try:
        for module, name, count in found:
            setattr(module, name, 2 * count)
        yield
    finally:
        for module, name, count in found:
            setattr(module, name, count)
