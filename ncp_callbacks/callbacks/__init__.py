"""What to look at: each callback is a schedule, an analysis and the records it makes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._later import later
from ..callback import Callback
from .attribution import GradientAttribution
from .backbone import BackboneActivations
from .states import StateSpace
from .time import TimeSensitivity
from .transitions import StateTransitions

if TYPE_CHECKING:
    from .dynamics import Dynamics
    from .faithfulness import Faithfulness
    from .interactions import FeatureInteractions
    from .output_time import OutputTime
    from .predictions import SinglePredictions
    from .sanity_check import SanityCheck
    from .time_constants import TimeConstants
    from .wiring import Wiring

__all__ = [
    "BackboneActivations",
    "Callback",
    "Dynamics",
    "Faithfulness",
    "FeatureInteractions",
    "GradientAttribution",
    "OutputTime",
    "SanityCheck",
    "SinglePredictions",
    "StateSpace",
    "StateTransitions",
    "TimeConstants",
    "TimeSensitivity",
    "Wiring",
    "callback_set",
]

__getattr__ = later(
    __name__,
    {
        "Dynamics": ".dynamics",
        "Faithfulness": ".faithfulness",
        "FeatureInteractions": ".interactions",
        "OutputTime": ".output_time",
        "SinglePredictions": ".predictions",
        "SanityCheck": ".sanity_check",
        "TimeConstants": ".time_constants",
        "Wiring": ".wiring",
    },
)


def callback_set(name: str) -> list[Callback]:
    """The callbacks of a set, new ones each time.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in _SETS:
        raise ValueError(
            f"callbacks={name!r} is unknown: give {', '.join(map(repr, _SETS))}, or a list of "
            "callbacks"
        )
    return _SETS[name]()


def _light() -> list[Callback]:
    return [GradientAttribution(max_sequences=16), StateTransitions(max_sequences=16)]


def _standard() -> list[Callback]:
    return [
        GradientAttribution(),
        TimeSensitivity(),
        StateTransitions(),
        StateSpace(),
        BackboneActivations(),
    ]


def _full() -> list[Callback]:
    from .dynamics import Dynamics
    from .faithfulness import Faithfulness
    from .interactions import FeatureInteractions
    from .output_time import OutputTime
    from .sanity_check import SanityCheck
    from .time_constants import TimeConstants
    from .wiring import Wiring

    integrated = GradientAttribution(
        name="integrated_gradients",
        method="integrated_gradients",
        # No more for sequences that need them: its price is to be the same at every look.
        nodes=8,
        most_nodes=8,
        max_sequences=8,
        agreement="input_x_gradient",
    )
    dear = [
        TimeConstants(),
        Wiring(),
        Dynamics(),
        OutputTime(),
        FeatureInteractions(),
        Faithfulness(),
        SanityCheck(),
    ]
    for callback in dear:
        callback.one_in = 10
    return [*_standard(), integrated, *dear]


_SETS: dict[str, Callable[[], list[Callback]]] = {
    "light": _light,
    "standard": _standard,
    "full": _full,
}
