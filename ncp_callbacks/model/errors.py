"""Define the errors that models raise or cause in analyses."""

from __future__ import annotations

__all__ = ["ModelError", "NotApplicable"]


class ModelError(ValueError):
    """Report a model that can't be analysed as configured; the message names the fix."""


class NotApplicable(Exception):
    """Report an analysis that is not applicable to the model; a callback's ``measure`` raises it.

    The monitor reports the reason once and skips the callback from then on.
    """
