"""Tell what is logged under a tag."""

from __future__ import annotations

import re

from ..screen import VALIDATION

__all__ = [
    "ASIDE",
    "PREFIX",
    "TRAINING",
    "VALIDATION",
    "short",
]

PREFIX = "_ncp/"  # Of raw arrays, which no dashboard shows.
TRAINING = re.compile(r"(train|training)(?=[/_]|$)")
# The cost of the monitor, properties of the batch and the machine, and what was new since the
# previous snapshot tell nothing about the models.
ASIDE = re.compile(
    r"monitor/|.*/(numbers_changed|nonfinite|sequences|basis_refits|n_steps|n_samples|"
    r"seconds|outside_x\S*|\w+_change)$|.*_nonfinite$"
)


def short(tag: str) -> str:
    """Return the tag of an array without its prefix."""
    return tag.removeprefix(PREFIX)
