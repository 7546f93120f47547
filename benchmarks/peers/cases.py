"""The sizes and sequences that every way is measured on; needs numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["INTEGRATED", "N_STEPS", "SCALES", "SIZES", "Size", "sequences"]


class Size(NamedTuple):
    """Size of a model and its batch."""

    batch: int
    steps: int
    features: int
    units: int


SIZES = {
    "S": Size(32, 32, 8, 32),
    "M": Size(64, 64, 16, 64),
    "L": Size(128, 128, 32, 128),
    # For trying the benchmark out; its times mean nothing.
    "tiny": Size(4, 6, 3, 5),
}
# What elapsed times are multiplied by.
SCALES = (0.5, 1.0, 2.0, 5.0)

# Sequences that integrated gradients are computed for, and gradients for each.
INTEGRATED, N_STEPS = 8, 8

Floats = npt.NDArray[np.float32]


def sequences(size: Size) -> tuple[Floats, Floats, Floats]:
    """Return ``(B, T, F)`` inputs, ``(B, T)`` elapsed times and ``(B, T, 1)`` targets.

    The targets are running integrals of the first feature.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((size.batch, size.steps, size.features))
    dt = rng.uniform(0.2, 1.8, (size.batch, size.steps))
    y = np.cumsum(x[..., :1] * dt[..., None], axis=1) / size.steps**0.5
    return x.astype(np.float32), dt.astype(np.float32), y.astype(np.float32)
