"""What can be wrong between a model and its held-out batch."""

from __future__ import annotations

__all__ = ["ModelError", "NotApplicable"]


class ModelError(ValueError):
    """The model can't be looked at as configured; the message says how to mend it."""


class NotApplicable(Exception):
    """Raised by a callback's ``measure`` when the model has nothing for it to look at.

    The monitor says the reason once and leaves the callback out from then on.
    """
