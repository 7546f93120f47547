"""Compute statistics over sequences and over runs.

- :mod:`.estimate`: a number pooled over sequences, its confidence interval and its paired change.
- :mod:`.quantiles`: quantiles of values of which many belong to one sequence.
- :mod:`.reliability`: correlations of maps, and their split-half reliability.
- :mod:`.run_groups`: tests between two groups of runs.
- :mod:`.sequence_groups`: tests between two groups of sequences.
- :mod:`.binomial`: shares of independent cases.
- :mod:`.classes`: names of classes, and how often each is taken for another.
- :mod:`.distances`: distances between maps, states and histograms.
- :mod:`.state_samples`: a sample of the states of a batch, and a fingerprint of it.

SciPy is imported by the functions that need it, since its import takes a second.
"""

from .binomial import at_least_p, share_ci
from .classes import MAX_CLASSES, class_name, confusion_matrix, most_confused
from .estimate import (
    CORRELATION,
    MIN_SEQUENCES_FOR_CI,
    REAL,
    SHARE,
    SIZE,
    Estimate,
    PairedChange,
    Scale,
    changed_beyond_chance,
    ci_array,
    holm,
    t_quantile,
    with_cis,
)
from .quantiles import quantile_estimates
from .sequence_groups import differ_beyond_chance

__all__ = [
    "CORRELATION",
    "MAX_CLASSES",
    "MIN_SEQUENCES_FOR_CI",
    "REAL",
    "SHARE",
    "SIZE",
    "Estimate",
    "PairedChange",
    "Scale",
    "at_least_p",
    "changed_beyond_chance",
    "ci_array",
    "class_name",
    "confusion_matrix",
    "differ_beyond_chance",
    "holm",
    "most_confused",
    "quantile_estimates",
    "share_ci",
    "t_quantile",
    "with_cis",
]
