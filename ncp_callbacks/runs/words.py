"""Put names into sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["like", "listed", "sentence"]


def listed(names: Sequence[str], most: int = 8, last: str = "and") -> str:
    """Return ``a, b and c``; of more than ``most`` names, the first and the number of the rest."""
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return f" {last} ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def like(name: str, names: Iterable[str]) -> str:
    """Return the names most like ``name``, or the first ones: "a, b or c"."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return listed(close or known[:3], last="or")


def sentence(text: str) -> str:
    """Return the text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
