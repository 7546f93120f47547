"""Offer all kinds of extra passes by one object, which a callback gets with its observation.

observation.extra_passes.evaluate(inputs[None])          # with Need.VARIANTS declared
"""

from __future__ import annotations

from .cell_steps import CellSteps
from .fewer_steps import FewerSteps
from .output_steps import OutputSteps
from .randomised import Randomised
from .removals import Removals
from .state_passes import StatePasses
from .variants import Variants

__all__ = ["ExtraPasses"]


class ExtraPasses(Variants, Removals, OutputSteps, CellSteps, StatePasses, FewerSteps, Randomised):
    """Run extra passes over the sequences of an observation; see :attr:`Observation.extra_passes`.

    Every method runs a kind of pass that a callback declares in its ``needs``, and raises a
    RuntimeError with the fix where it is not declared. Callbacks that declare one kind and ask for
    equal passes of equal sequences share the result.
    """
