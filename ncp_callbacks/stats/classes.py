"""Name classes, and count how often each is taken for each other one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_CLASSES", "class_name", "confusion_matrix", "most_confused"]

MAX_CLASSES = 64
"""Largest number of classes that are counted, so that the counts stay small."""


def class_name(names: Sequence[str] | None, index: int) -> str:
    """Return the name of a class, or ``"class 3"`` without one."""
    return names[index] if names is not None and 0 <= index < len(names) else f"class {index}"


def confusion_matrix(classes: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.int64]:
    """Return the number of sequences ``(K, K)`` by true class, down, and predicted class, across.

    Args:
        classes: ``(B, 2)``, the true and the predicted class of each sequence. Sequences whose
            class is no index of a class are not counted.
        count: ``K``, the number of classes.
    """
    known = ((classes >= 0) & (classes < count)).all(axis=1)
    places = classes[known, 0] * count + classes[known, 1]
    return np.bincount(places, minlength=count**2).reshape(count, count)


def most_confused(matrix: npt.NDArray[np.number[Any]]) -> tuple[int, int] | None:
    """Return the two classes that are taken for each other most often; None without mistakes.

    Args:
        matrix: ``(K, K)``, see :func:`confusion_matrix`. Of equal pairs it is the first.
    """
    both = np.triu(matrix + matrix.T, 1)
    if not both.any():
        return None
    first, second = np.unravel_index(int(both.argmax()), both.shape)
    return int(first), int(second)
