"""List the rules, in the order in which equally serious findings are shown."""

from __future__ import annotations

from ..rule import Rule
from .batch import BatchCoupled, ClassImbalance, FeatureScales, MostlyPadding
from .confuses_classes import ConfusesClasses
from .constant_features import ConstantFeatures
from .dead_units import DeadUnits
from .disagreement import MethodsDisagree, RemovalDisagrees
from .diverged import Diverged
from .exploding import Exploding
from .faithful import Faithful
from .few_sequences import FewSequences
from .incomplete import Incomplete
from .last_step_only import LastStepOnly
from .learnt import Learnt
from .loss_jumps import LossJumps
from .loss_not_falling import LossNotFalling
from .memory import ForgetsTheBeginning, ShortMemory, UnstableMemory
from .mistakes_rest_on import MistakesRestOn
from .no_progress import NoProgress
from .noisy_map import NoisyMap
from .overfits import Overfits, Overtrained
from .poor_start import PoorStart
from .randomised import SameMapWhenRandomised
from .rests_on import RestsOn
from .saturated import Saturated
from .slow_convergence import SlowConvergence
from .stable import Stable
from .symmetric_units import SymmetricUnits
from .time_disagreement import RemovalDisagreesOnTime
from .time_scales import Extrapolation, SolverError
from .time_use import TimeUse
from .untrained_parts import UntrainedParts
from .update_size import UpdateSize
from .vanishing_gradient import VanishingGradient

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Diverged(),
    Learnt(),
    ConfusesClasses(),
    RestsOn(),
    MistakesRestOn(),
    TimeUse(),
    LastStepOnly(),
    NoProgress(),
    UntrainedParts(),
    Exploding(),
    VanishingGradient(),
    LossNotFalling(),
    SlowConvergence(),
    UpdateSize(),
    LossJumps(),
    Overfits(),
    Overtrained(),
    Saturated(),
    PoorStart(),
    DeadUnits(),
    SymmetricUnits(),
    UnstableMemory(),
    ShortMemory(),
    ForgetsTheBeginning(),
    Stable(),
    RemovalDisagrees(),
    RemovalDisagreesOnTime(),
    MethodsDisagree(),
    Faithful(),
    SameMapWhenRandomised(),
    Incomplete(),
    NoisyMap(),
    Extrapolation(),
    SolverError(),
    FewSequences(),
    BatchCoupled(),
    ClassImbalance(),
    FeatureScales(),
    ConstantFeatures(),
    MostlyPadding(),
)
