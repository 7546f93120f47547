"""What to look at: each callback is a schedule, an analysis and the records it makes."""

from .attribution import GradientAttribution
from .backbone import BackboneActivations
from .base import Callback
from .states import StateSpace
from .time import TimeSensitivity
from .transitions import StateTransitions

__all__ = [
    "BackboneActivations",
    "Callback",
    "GradientAttribution",
    "StateSpace",
    "StateTransitions",
    "TimeSensitivity",
    "standard_callbacks",
]


def standard_callbacks() -> list[Callback]:
    """The standard set, new ones each time."""
    return [
        GradientAttribution(),
        TimeSensitivity(),
        StateTransitions(),
        StateSpace(),
        BackboneActivations(),
    ]
