"""Define the errors that models raise or cause in analyses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..signal_handlers import raised_by_signal_handler

__all__ = [
    "CopyError",
    "ModelError",
    "NotApplicable",
    "count_of",
    "explaining_missing_gradients",
    "no_gradient",
]


class ModelError(ValueError):
    """Report a model that can't be analysed as configured; the message names the fix."""


class CopyError(TypeError):
    """Report a model that can't be copied, with the attribute that is the cause and the fix."""


class NotApplicable(Exception):
    """Report an analysis that is not applicable to the model; a callback's ``measure`` raises it.

    The monitor reports the reason once and skips the callback from then on.
    """


def count_of(number: int, name: str) -> str:
    """Return ``"1 call"`` or ``"3 calls"``."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def no_gradient(error: Exception) -> str | None:
    """Return why there is no gradient, with the fix, for an error of MLX; None for another error.

    MLX raises such an error for an index that depends on the inputs, and for an operation without
    a derivative, such as ``mx.linalg.inv``.
    """
    message = str(error)
    if raised_by_signal_handler(error) or not re.search(r"vjp|jvp", message, re.IGNORECASE):
        return None
    if "indices" in message:
        fix = (
            "what is used as an index has none: write mx.stop_gradient(indices) in the model, or "
            "pass the column as an array beside the sequence, inputs=(sequence, indices)"
        )
    else:
        fix = "write the model without that operation, or end its gradient by mx.stop_gradient"
    return f'MLX reports "{message.split(". ")[0].rstrip(".")}"; {fix}'


@contextmanager
def explaining_missing_gradients(what: str) -> Iterator[None]:
    """Raise :class:`NotApplicable` in place of MLX's error for a gradient that doesn't exist.

    Args:
        what: What the gradient is of, for the message.
    """
    try:
        yield
    except Exception as error:
        reason = no_gradient(error)
        if reason is None:
            raise
        raise NotApplicable(f"there is no gradient {what}: {reason}") from error
