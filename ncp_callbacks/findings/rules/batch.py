"""Report what is peculiar about the held-out batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import count, percent

__all__ = ["BatchCoupled", "ClassImbalance", "FeatureScales", "MostlyPadding"]

_RATIO, _PER_CLASS, _SCALES, _PADDING = 10.0, 10, 100.0, 0.8


class BatchCoupled(Rule):
    """Report a model whose sequences act on each other, as verified on entering.

    Then a sequence's attribution depends on the others, and CIs that take sequences as independent
    are too narrow.
    """

    name = "batch_coupled"
    topic = Topic.DATA

    def check(self, facts: Facts) -> Iterator[Finding]:
        if facts.run.coupled:
            yield self.finding(
                facts,
                Severity.WARNING,
                "The sequences of a batch act on each other, so that attributions belong to the "
                "batch and CIs over sequences are too narrow.",
                "Normalise over features instead of over the batch. If it is batch normalisation "
                "in training mode, pass forward= that runs the model in evaluation mode.",
                {},
            )


class ClassImbalance(Rule):
    """Report classes whose sizes differ by a factor of 10 or more, or that are absent.

    10 is the threshold of the rule ClassImbalance of Amazon SageMaker Debugger. A class counts as
    absent only if the batch has ten sequences for each class: otherwise it may be so by chance.
    """

    name = "class_imbalance"
    topic = Topic.DATA

    def check(self, facts: Facts) -> Iterator[Finding]:
        counts, names = facts.run.class_counts, facts.run.class_names
        if not counts or not names or len(counts) < 2 or not sum(counts):
            return
        enough = sum(counts) >= _PER_CLASS * len(counts)
        most, least = max(counts), min(counts)
        if (least == 0 and enough) or (least > 0 and most / least >= _RATIO):
            rare, common = names[counts.index(least)], names[counts.index(most)]
            yield self.finding(
                facts,
                Severity.WARNING,
                f"The classes are unbalanced: {common} has {count(most, 'sequence')} and {rare} "
                f"has {count(least, 'sequence')} of {sum(counts)}, so that accuracy is "
                f"{percent(most / sum(counts))} for a model that has learnt nothing.",
                "Judge by the loss or by the recall of each class, and hold out more sequences of "
                "the rare class.",
                {"largest class": float(most), "smallest class": float(least)},
            )


class FeatureScales(Rule):
    """Report features whose SDs differ by a factor of 100 or more.

    Input × gradient and the initial weights take the scale of a feature for importance, and two
    orders of magnitude are more than training makes up for soon. Constant features are not counted.

    Source: the rule CheckInputImages of Amazon SageMaker Debugger, for sequences.
    """

    name = "feature_scales"
    topic = Topic.DATA

    def check(self, facts: Facts) -> Iterator[Finding]:
        names = facts.run.feature_names
        sds = {
            name: sd
            for name, sd in zip(names, facts.run.feature_sds, strict=False)
            if math.isfinite(sd) and sd > 0
        }
        if len(sds) < 2:
            return
        large, small = max(sds, key=lambda n: sds[n]), min(sds, key=lambda n: sds[n])
        if sds[large] / sds[small] >= _SCALES:
            yield self.finding(
                facts,
                Severity.WARNING,
                f"The features have different scales: the SD of {large} is {sds[large]:.3g} and "
                f"that of {small} {sds[small]:.3g}.",
                "Standardise the features with the mean and SD of the training data.",
                {f"SD of {large}": sds[large], f"SD of {small}": sds[small]},
            )


class MostlyPadding(Rule):
    """Report a held-out batch that is padding for more than 80 %.

    Of such a batch four of five computations are in vain, and means over time steps rest on few.

    Source: the rule NLPSequenceRatio of Amazon SageMaker Debugger.
    """

    name = "mostly_padding"
    topic = Topic.DATA

    def check(self, facts: Facts) -> Iterator[Finding]:
        if facts.run.padding > _PADDING:
            yield self.finding(
                facts,
                Severity.WARNING,
                f"The held-out batch is padding for {percent(facts.run.padding)}.",
                "Hold out sequences of similar length, or cut the few long ones.",
                {"padding": facts.run.padding},
            )
