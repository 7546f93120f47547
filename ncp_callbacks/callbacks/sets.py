"""Make the sets of callbacks that ``Monitor(callbacks=...)`` takes by name."""

from collections.abc import Callable
from typing import Literal, TypeAlias

from ..attribution import InputXGradient
from ..callback import Callback
from .backbone_activations.callback import BackboneActivations
from .feature_removal.callback import FeatureRemoval
from .frame_attribution.callback import FrameAttribution
from .gradient_attribution.callback import GradientAttribution
from .state_space.callback import StateSpace
from .state_transitions.callback import StateTransitions
from .time_sensitivity.callback import TimeSensitivity

__all__ = ["CallbackSet", "callback_set"]

CallbackSet: TypeAlias = Literal["light", "standard", "full"]

# Of which attributions are computed, of more held-out sequences: CIs hold with 32, and passes of
# more take longer.
_SEQUENCES = 32
# Snapshots from one removal of features to the next: a forward pass for each feature would else
# take most of the time.
_REMOVAL_EVERY = 8


def callback_set(name: str, *, pictures: bool = False) -> list[Callback]:
    """Return new callbacks of a set.

    Args:
        name: ``"light"``, ``"standard"`` or ``"full"``.
        pictures: True for frames with height and width; ``"standard"`` and ``"full"`` draw them.

    Raises:
        ValueError: If there is no set of this name.
    """
    if name not in _SETS:
        raise ValueError(
            f"callbacks={name!r} is unknown: pass {', '.join(map(repr, _SETS))}, or a list of "
            "callbacks"
        )
    return _SETS[name]() + ([FrameAttribution()] if pictures and name != "light" else [])


def _light() -> list[Callback]:
    attribution = GradientAttribution(method=InputXGradient(), removal=0, max_sequences=16)
    return [attribution, StateTransitions(max_sequences=16)]


def _standard() -> list[Callback]:
    removal = FeatureRemoval(max_sequences=_SEQUENCES)
    removal.every_nth = _REMOVAL_EVERY
    return [
        GradientAttribution(max_sequences=_SEQUENCES, removal=_REMOVAL_EVERY),
        removal,
        TimeSensitivity(),
        StateTransitions(),
        StateSpace(),
        BackboneActivations(),
    ]


def _full() -> list[Callback]:
    from .dynamics.callback import Dynamics
    from .faithfulness.callback import Faithfulness
    from .feature_interactions.callback import FeatureInteractions
    from .gradient_reach.callback import GradientReach
    from .output_time.callback import OutputTime
    from .parameter_updates.callback import ParameterUpdates
    from .sampling_rate.callback import SamplingRate
    from .sanity_check.callback import SanityCheck
    from .time_constants.callback import TimeConstants
    from .unit_ablation.callback import UnitAblation
    from .unit_meanings.callback import UnitMeanings
    from .wiring.callback import Wiring

    expensive = [
        TimeConstants(),
        Wiring(),
        UnitAblation(),
        UnitMeanings(),
        Dynamics(),
        GradientReach(),
        SamplingRate(),
        OutputTime(),
        FeatureInteractions(),
        Faithfulness(),
        SanityCheck(),
    ]
    for callback in expensive:
        callback.every_nth = 10
    return [*_standard(), ParameterUpdates(), *expensive]


_SETS: dict[str, Callable[[], list[Callback]]] = {
    "light": _light,
    "standard": _standard,
    "full": _full,
}
