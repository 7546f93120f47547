"""Compute statistics over sequences and over runs.

- :mod:`.estimate`: a number pooled over sequences, its confidence interval and its paired change.
- :mod:`.quantiles`: quantiles of values of which many belong to one sequence.
- :mod:`.reliability`: correlations of maps, and their split-half reliability.
- :mod:`.run_groups`: tests between two groups of runs.
- :mod:`.distances`: distances between maps, states and histograms.
- :mod:`.state_samples`: a sample of the states of a batch, and a fingerprint of it.

SciPy is imported by the functions that need it, since its import takes a second.
"""

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

__all__ = [
    "CORRELATION",
    "MIN_SEQUENCES_FOR_CI",
    "REAL",
    "SHARE",
    "SIZE",
    "Estimate",
    "PairedChange",
    "Scale",
    "changed_beyond_chance",
    "ci_array",
    "holm",
    "quantile_estimates",
    "t_quantile",
    "with_cis",
]
