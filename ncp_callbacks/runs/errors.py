"""What can be wrong with a request to compare runs."""

__all__ = ["RunsError"]


class RunsError(ValueError):
    """The runs can't be found, read or compared as asked; the message says what would do."""
