"""List the methods that have a name, and return a method by its name."""

from __future__ import annotations

from typing import Literal, TypeAlias

from ._checks import named_method
from .base import AttributionMethod
from .expected_gradients import ExpectedGradients
from .gradients import Gradient, InputXGradient, SmoothGrad
from .integrated_gradients import IntegratedGradients
from .occlusion import Occlusion
from .segment_integrated_gradients import SegmentIntegratedGradients

__all__ = ["BUILT_IN", "DEFAULT_METHOD", "MethodName", "method_from"]

BUILT_IN: tuple[type[AttributionMethod], ...] = (
    InputXGradient,
    Gradient,
    IntegratedGradients,
    SegmentIntegratedGradients,
    SmoothGrad,
    ExpectedGradients,
    Occlusion,
)
MethodName: TypeAlias = Literal[
    "input_x_gradient",
    "gradient",
    "integrated_gradients",
    "segment_integrated_gradients",
    "smooth_grad",
    "expected_gradients",
    "occlusion",
]
"""Name one of :data:`BUILT_IN`."""
DEFAULT_METHOD = IntegratedGradients(n_steps=4, at_inputs=True)


def method_from(method: str | AttributionMethod, argument: str = "method") -> AttributionMethod:
    """Return the method of a name, with its default settings, or the method passed.

    Args:
        method: The name of one of :data:`BUILT_IN`, or a method.
        argument: The argument's name, for messages.

    Raises:
        ValueError: If there is no method of this name.
        TypeError: If it is neither a name nor a method.
    """
    by_name = {known.name: known for known in BUILT_IN}
    return named_method(method, by_name, AttributionMethod, argument)
