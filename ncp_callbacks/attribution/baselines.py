"""Make baselines: the inputs that a method compares the sequences with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..results import FloatArray

__all__ = [
    "baseline_sequences",
    "checked_word",
    "constant_baseline",
    "finite_mean",
    "without_padding",
]


def checked_word(baseline: Any, name: str, words: tuple[str, ...] = ("mean", "zeros")) -> None:
    """Raise if a baseline is a word that is not one of ``words``.

    Args:
        baseline: The baseline, a word or an array.
        name: The argument's name, for the message.
        words: The known words.

    Raises:
        ValueError: If it is an unknown word.
    """
    if isinstance(baseline, str) and baseline not in words:
        raise ValueError(
            f"{name}={baseline!r} is unknown: pass {', '.join(map(repr, words))} or an array"
        )


def constant_baseline(
    baseline: str | npt.ArrayLike,
    values: FloatArray,
    mask: npt.NDArray[np.bool_] | None,
    name: str,
    *,
    whole: FloatArray | None = None,
    whole_mask: npt.NDArray[np.bool_] | None = None,
    categorical: npt.NDArray[np.bool_] | None = None,
) -> FloatArray:
    """Return a baseline as large as ``values``, ``(B, T, F)`` or ``(B, T)``.

    Args:
        baseline: ``"mean"`` of the finite values of each feature over sequences and real time
            steps; ``"zeros"``; or an array that broadcasts: ``(F,)``, ``(T, F)``, ``(B, T, F)``;
            for time_delta a number, ``(T,)`` or ``(B, T)``.
        values: The inputs or elapsed times to compare with the baseline.
        mask: ``(B, T)``, true at real time steps; None if all are real.
        name: The argument's name, for messages.
        whole: ``(N, T, F)`` or ``(N, T)``, the sequences of which ``"mean"`` is the mean; None
            for ``values``.
        whole_mask: ``(N, T)``, true at their real time steps.
        categorical: ``(F,)``, true for features that are indices, such as tokens: their ``"mean"``
            is the most frequent value, because a mean of indices means nothing.

    Returns:
        The baseline, float64. In padding it equals ``values``, so padding gets no attribution.

    Raises:
        ValueError: If it is an unknown word, has a shape that doesn't fit, or isn't finite.
    """
    real = np.ones(values.shape[:2], bool) if mask is None else mask
    own = values.astype(np.float64)
    checked_word(baseline, name)
    if isinstance(baseline, str):
        if whole is None:
            whole, whole_mask = own, mask
        base = finite_mean(whole, whole_mask) if baseline == "mean" else np.zeros(())
        if baseline == "mean" and categorical is not None and categorical.any():
            base = np.where(categorical, _most_frequent(whole, whole_mask), base)
    else:
        base = np.asarray(baseline, np.float64)
        if not np.isfinite(base).all():
            raise ValueError(
                f"{name} holds NaN or infinity: pass finite numbers, because the model runs on a "
                "baseline"
            )
    try:
        filled = np.broadcast_to(base, own.shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {base.shape}, which doesn't fit {own.shape}: pass one number per "
            f"feature, {own.shape[2:] or 'one'}, or an array of shape {own.shape[1:]}"
            + (
                ". To pass a set of baselines, set a method that draws them, like "
                "'expected_gradients'"
                if base.ndim == own.ndim == 3
                else ""
            )
        ) from None
    padded = ~real if own.ndim == 2 else ~real[..., None]
    return np.where(padded, own, filled)


def baseline_sequences(baseline: Any, values: FloatArray) -> FloatArray:
    """Return ``(N, T, F)``, the checked sequences that baselines are drawn from.

    Args:
        baseline: The sequences.
        values: ``(B, T, F)``, the held-out inputs.

    Raises:
        ValueError: If they don't fit ``values``.
    """
    sequences = np.asarray(baseline, np.float32)
    fits = sequences.ndim == 3 and sequences.shape[1:] == values.shape[1:]
    if not fits or not len(sequences):
        raise ValueError(
            f"baseline has shape {sequences.shape}, but the method draws its baselines: pass "
            f"sequences like those of the held-out batch, (n, {values.shape[1]}, "
            f"{values.shape[2]})"
        )
    return sequences


def _most_frequent(values: FloatArray, mask: npt.NDArray[np.bool_] | None) -> FloatArray:
    """Return the most frequent value of each feature over real time steps, ``(F,)``."""
    real = values.reshape(-1, values.shape[-1]) if mask is None else values[mask]
    counted = (np.unique(column, return_counts=True) for column in real.T)
    return np.array([kinds[counts.argmax()] for kinds, counts in counted], np.float64)


def finite_mean(values: FloatArray, mask: npt.NDArray[np.bool_] | None) -> FloatArray:
    """Return the mean of the finite values over sequences and real time steps, ``(F,)`` or ``()``.

    A sequence with NaN must not make the baseline of all others NaN.

    Args:
        values: ``(N, T, F)`` or ``(N, T)``.
        mask: ``(N, T)``, true at real time steps; None if all are real.
    """
    real = values.reshape(-1, *values.shape[2:]) if mask is None else values[mask]
    real = real.astype(np.float64)
    known = np.isfinite(real)
    total = np.where(known, real, 0.0).sum(axis=0)
    mean: FloatArray = total / np.maximum(known.sum(axis=0), 1)
    return mean


def without_padding(values: FloatArray, mask: npt.NDArray[np.bool_] | None) -> FloatArray:
    """Return sequences with the mean over real time steps in padding.

    A longer sequence may be compared with the padding of a shorter one.

    Args:
        values: ``(N, T, F)`` or ``(N, T)``.
        mask: ``(N, T)``, true at real time steps; None if all are real.
    """
    if mask is None:
        return values
    real = mask if values.ndim == 2 else mask[..., None]
    return np.where(real, values, finite_mean(values, mask))
