"""List the rules, in the order in which equally serious findings are shown."""

from __future__ import annotations

from ..rule import Rule
from .diverged import Diverged
from .few_sequences import FewSequences
from .incomplete import Incomplete
from .rests_on import RestsOn
from .saturated import Saturated
from .time_use import TimeUse

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    RestsOn(),
    Diverged(),
    Saturated(),
    TimeUse(),
    Incomplete(),
    FewSequences(),
)
