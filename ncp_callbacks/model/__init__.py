"""How a model is looked at without touching it."""

from .conventions import TIME_KEYWORDS, Calling, Forward
from .errors import ModelError, NothingToObserve
from .hook_points import CellSite, LayerSite, Sites
from .memory import Memory
from .model_copy import CopyError, ModelCopy, Subject
from .probe import Instrument, Pass
from .target import At, Target, TargetLike

__all__ = [
    "TIME_KEYWORDS",
    "At",
    "Calling",
    "CellSite",
    "CopyError",
    "Forward",
    "Instrument",
    "LayerSite",
    "Memory",
    "ModelCopy",
    "ModelError",
    "NothingToObserve",
    "Pass",
    "Sites",
    "Subject",
    "Target",
    "TargetLike",
]
