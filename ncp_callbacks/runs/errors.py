"""Name what can be wrong with a request to compare runs."""

__all__ = ["RunsError"]


class RunsError(ValueError):
    """Report that runs can't be found, read or compared as asked, and the fix."""
