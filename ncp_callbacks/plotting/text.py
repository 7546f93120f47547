"""Write numbers and names as short text, and find places for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from .style import DPI, text_style

__all__ = ["number", "short_names", "shorten", "space_width", "spread", "text_width", "wrap"]

_AS_ZERO = str.maketrans("123456789", "0" * 9)
MINUS, ELLIPSIS = "\N{MINUS SIGN}", "\N{HORIZONTAL ELLIPSIS}"


def number(value: float, digits: int | None = None) -> str:
    """Return a number as people write it: ``0.05``, ``−2``, ``1,000``, ``5e−6``, ``∞``.

    Args:
        value: The number.
        digits: How many significant digits it is rounded to; None for up to 6.
    """
    value = float(f"{value:.{digits}g}") if digits else value
    text = f"{value:,g}".replace("inf", "∞")
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", MINUS)


def text_width(text: str) -> float:
    """Return the width of ``text`` in pixels.

    All digits count as zeros, so that text beside a number stays where it is while the number
    changes.
    """
    return _width(text.translate(_AS_ZERO))


@lru_cache(4096)
def _width(text: str) -> float:
    from matplotlib.backends.backend_agg import RendererAgg

    if not text:
        return 0.0
    renderer = RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]
    font = text_style()["fontproperties"]
    return float(renderer.get_text_width_height_descent(text, font, False)[0])  # type: ignore[no-untyped-call]


def space_width() -> float:
    """Return the width of a space in pixels."""
    return text_width("n n") - text_width("nn")


@lru_cache(1024)
def shorten(text: str, width: float) -> str:
    """Return ``text`` on one line, with its middle cut where it is wider than ``width`` pixels."""
    text = " ".join(text.split())
    # Measuring a long text takes long, and that of its letters is kept.
    if sum(map(_advance, text)) <= width - 4 or text_width(text) <= width:
        return text
    # The beginning and the end of a name say most, so both are kept.
    low, high = 0, len(text) - 1
    while low < high:
        kept = (low + high + 1) // 2
        low, high = (kept, high) if text_width(_cut(text, kept)) <= width else (low, kept - 1)
    return _cut(text, low)


@lru_cache(1024)
def _advance(letter: str) -> float:
    return text_width(f"n{letter}n") - text_width("nn")


def _cut(text: str, kept: int) -> str:
    """Return the first and last of ``text``, ``kept`` characters in all."""
    end = kept // 2
    return text[: kept - end].rstrip() + ELLIPSIS + (text[-end:].lstrip() if end else "")


def wrap(text: str, width: float, most: int) -> list[str]:
    """Return a text in lines of at most ``width`` pixels; of more than ``most``, the first ones.

    The last line then ends with an ellipsis. A word that is wider than a line is cut in its middle.
    """
    lines: list[str] = []
    words = [shorten(word, width) for word in text.split()]
    while words and len(lines) < most:
        number = 1
        while number < len(words) and text_width(" ".join(words[: number + 1])) <= width:
            number += 1
        lines.append(" ".join(words[:number]))
        words = words[number:]
    if words and lines:
        last = lines[-1].rstrip(".,;:") + ELLIPSIS
        while text_width(last) > width and " " in last:
            last = last.rpartition(" ")[0] + ELLIPSIS
        lines[-1] = shorten(last, width)
    return lines


def short_names(names: Sequence[str], width: float) -> list[str]:
    """Return names of at most ``width`` pixels that differ where the names differ.

    If one is too wide, its middle is cut; if short names would then be equal, the beginning that
    all have in common is cut.
    """
    whole = [" ".join(str(name).split()) for name in names]
    short = [shorten(name, width) for name in whole]
    if len(set(short)) == len(set(whole)):
        return short
    # Of all names, the first and the last in order differ earliest.
    first, last = min(whole), max(whole)
    common = first[
        : next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    ]
    # Words and parts of paths stay whole.
    start = max(common.rfind(mark) for mark in " ._-/:") + 1
    short = [shorten(ELLIPSIS + name[start:], width) for name in whole]
    if len(set(short)) < len(set(whole)):
        short = [shorten(f"{i + 1} {name}", width) for i, name in enumerate(whole)]
    return short


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return positions at least ``gap`` apart within ``[low, high]``, as near as they can.

    Labels in a column must not overlap: each group of crowded ones is centred on its mean.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        mean, count = wanted[i] - rank * gap, 1
        while groups and groups[-1][0] >= mean:
            other, n = groups.pop()
            mean, count = (mean * count + other * n) / (count + n), count + n
        groups.append((mean, count))
    shifted = [mean for mean, count in groups for _ in range(count)]
    highest = high - (len(wanted) - 1) * gap
    placed = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        placed[i] = max(low, min(shifted[rank], highest)) + rank * gap
    return placed
