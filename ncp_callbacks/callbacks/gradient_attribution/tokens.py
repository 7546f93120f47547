"""Sum the attribution of tokens over all places where they occur."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...attribution import Attribution
from ...results import FloatArray
from ...stats import SHARE, Estimate, ci_array

__all__ = ["MAX_TOKENS", "token_shares"]

MAX_TOKENS = 16
"""Largest number of tokens whose shares are logged: those with the largest ones."""


def token_shares(
    found: Attribution, tokens: npt.NDArray[np.integer], mask: npt.NDArray[np.bool_]
) -> FloatArray | None:
    """Return the shares of the tokens that carry most, ``(N, 5)``, in decreasing order.

    The contribution of a token to a sequence's target is the absolute sum of its attributions over
    all time steps that have it, so that pushes that cancel within a sequence don't count; for
    slopes it is the sum of absolute values. Its share is that of the contributions of all tokens.

    Args:
        found: The attribution of sequences, with one feature.
        tokens: ``(B, T)``.
        mask: ``(B, T)``, true at real time steps.

    Returns:
        A row for each token: the token, its share, the ends of the 95 % CI over sequences, and the
        part of all real time steps that have it. None without a finite attribution other than 0.
    """
    values = found.inputs[..., 0].astype(np.float64)
    known = np.asarray(np.isfinite(np.where(mask, values, 0.0)).all(axis=1))
    real = mask & known[:, None]
    vocabulary, which = np.unique(tokens[real], return_inverse=True)
    sequence = np.nonzero(real)[0]
    # Each token of each sequence once, which are few beside sequences times vocabulary.
    pairs, place = np.unique(sequence * len(vocabulary) + which, return_inverse=True)
    pushes = np.abs(values[real]) if found.method.is_slope else values[real]
    size = np.abs(np.bincount(place, weights=pushes, minlength=len(pairs)))
    owner, token = np.divmod(pairs, max(1, len(vocabulary)))
    total = np.bincount(token, weights=size, minlength=len(vocabulary))
    if not total.sum() > 0:
        return None
    strongest = np.argsort(-total, kind="stable")[:MAX_TOKENS]
    whole = np.bincount(owner, weights=size, minlength=len(values))[known]
    parts = np.zeros((len(values), len(strongest)))
    for column, index in enumerate(strongest):
        parts[owner[token == index], column] = size[token == index]
    shares = Estimate.ratios(parts[known], whole, SHARE)
    frequency = np.bincount(which, minlength=len(vocabulary)) / len(which)
    return np.column_stack(
        [vocabulary[strongest], [s.value for s in shares], *ci_array(shares), frequency[strongest]]
    )
