"""List the methods that have a name, and return a method by its name."""

from __future__ import annotations

import difflib

from .base import AttributionMethod
from .expected_gradients import ExpectedGradients
from .gradients import Gradient, InputXGradient, SmoothGrad
from .integrated_gradients import IntegratedGradients
from .occlusion import Occlusion

__all__ = ["BUILT_IN", "DEFAULT_METHOD", "method_from"]

BUILT_IN: tuple[type[AttributionMethod], ...] = (
    InputXGradient,
    Gradient,
    IntegratedGradients,
    SmoothGrad,
    ExpectedGradients,
    Occlusion,
)
DEFAULT_METHOD = InputXGradient()


def method_from(given: str | AttributionMethod, argument: str = "method") -> AttributionMethod:
    """Return the method of a name, with its default settings, or the method passed.

    Args:
        given: The name of one of :data:`BUILT_IN`, or a method.
        argument: The argument's name, for messages.

    Raises:
        ValueError: If there is no method of this name.
        TypeError: If it is neither a name nor a method.
    """
    if isinstance(given, AttributionMethod):
        return given
    if isinstance(given, type):
        raise TypeError(f"{argument}={given.__name__} is a class: pass {given.__name__}()")
    if not isinstance(given, str):
        raise TypeError(
            f"{argument}={given!r} is of type {type(given).__name__}: pass a name or an "
            "AttributionMethod"
        )
    by_name = {method.name: method for method in BUILT_IN}
    if given not in by_name:
        near = difflib.get_close_matches(given, by_name, 1)
        raise ValueError(
            f"{argument}={given!r} is unknown{f', did you mean {near[0]!r}?' if near else ''}: "
            f"pass one of {', '.join(map(repr, by_name))}, or an AttributionMethod"
        )
    return by_name[given]()
