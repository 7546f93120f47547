"""How a model is looked at without touching it."""

from .conventions import TIME_KEYWORDS, Calling, Forward
from .errors import ModelError, NothingToObserve
from .isolation import settle, undisturbed
from .memory import Memory
from .probe import Instrument, Pass
from .sites import CellSite, LayerSite, Sites
from .target import At, Target, TargetLike

__all__ = [
    "TIME_KEYWORDS",
    "At",
    "Calling",
    "CellSite",
    "Forward",
    "Instrument",
    "LayerSite",
    "Memory",
    "ModelError",
    "NothingToObserve",
    "Pass",
    "Sites",
    "Target",
    "TargetLike",
    "settle",
    "undisturbed",
]
