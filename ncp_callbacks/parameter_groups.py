"""Group parameters by the part of the model that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile

__all__ = ["MAX_GROUPS", "OTHERS", "parameter_groups"]

MAX_GROUPS = 4
"""Largest number of groups: two numbers of each, and the totals, have room in a group of cards."""
OTHERS = "others"


def parameter_groups(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the names of parameters by the part of the model, at the level where parts differ.

    ``rnn.cell.weight`` and ``head.weight`` belong to ``rnn`` and ``head``; where all parameters are
    in ``rnn.cell``, to ``rnn.cell.weight`` and so on. The largest three of more than four parts
    have a group each, and the rest are ``others``.

    Args:
        sizes: Number of elements of each parameter, by its name with dots.
    """
    split = {name: name.split(".") for name in sizes}
    columns = zip(*split.values(), strict=False)
    common = len(list(takewhile(lambda parts: len(set(parts)) == 1, columns)))
    groups: dict[str, list[str]] = {}
    for name, parts in split.items():
        groups.setdefault(".".join(parts[: common + 1]), []).append(name)
    if len(groups) <= MAX_GROUPS:
        return groups
    by_size = sorted(groups, key=lambda group: -sum(sizes[name] for name in groups[group]))
    large = set(by_size[: MAX_GROUPS - 1])
    found = {group: names for group, names in groups.items() if group in large}
    found[OTHERS] = [n for group, names in groups.items() if group not in large for n in names]
    return found
