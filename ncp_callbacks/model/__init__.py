"""Run a copy of a model, and find its cells, layers, targets and calling convention."""

from .conventions import TIME_KEYWORDS, Calling, Forward
from .errors import CopyError, ModelError, NotApplicable
from .hook_points import CellHook, HookPoints, LayerHook
from .memory import Memory
from .model_copy import ModelCopy, Subject
from .pass_arrays import Pass
from .runner import ModelRunner
from .target import At, Target, TargetLike

__all__ = [
    "TIME_KEYWORDS",
    "At",
    "Calling",
    "CellHook",
    "CopyError",
    "Forward",
    "HookPoints",
    "LayerHook",
    "Memory",
    "ModelCopy",
    "ModelError",
    "ModelRunner",
    "NotApplicable",
    "Pass",
    "Subject",
    "Target",
    "TargetLike",
]
