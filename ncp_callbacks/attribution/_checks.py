"""Check settings and group passes, for all methods."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["checked_count", "groups"]

# Elements of all variants in a group, 128 MB in double precision.
_MAX_ELEMENTS = 1 << 24


def checked_count(name: str, value: int) -> None:
    """Raise if a setting is not a whole number of at least 1.

    Args:
        name: The setting's name, for the message.
        value: The setting's value.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: pass a whole number of at least 1")


def groups(count: int, size: int = 1) -> Sequence[npt.NDArray[np.intp]]:
    """Return indices below ``count`` in groups of about 8, or of fewer if arrays are large.

    Memory then holds the gradients of one group at a time, whatever the count.

    Args:
        count: Number of variants of the batch.
        size: Number of elements of one variant, as of frames with many pixels.
    """
    most = max(1, _MAX_ELEMENTS // size)
    return np.array_split(np.arange(count), max(1, count // 8, -(-count // most)))
