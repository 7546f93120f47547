"""Put the errors of other code into words, even if they can't be printed."""

from __future__ import annotations

import traceback

__all__ = ["one_line", "traceback_of"]


def one_line(error: BaseException) -> str:
    """Return an error's type and text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as unprintable:
        return f"{type(error).__name__} (its text can't be shown: {type(unprintable).__name__})"


def traceback_of(error: BaseException) -> str:
    """Return an error's traceback."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__))
