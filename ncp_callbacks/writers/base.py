"""The writer interface: what happens to the records of a step.

``Monitor`` calls a writer from the training thread only. ``write`` must return at once and must
never raise for anything that happens to files later; ``close`` writes what is left.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..records import Record

__all__ = ["Tally", "Writer", "clean_tag"]


class Tally(NamedTuple):
    """How many records became what; the written ones without figures and embeddings."""

    records: int = 0
    figures: int = 0
    embeddings: int = 0
    dropped_records: int = 0
    dropped_figures: int = 0
    failed_records: int = 0


class Writer(abc.ABC):
    """Where records go."""

    @abc.abstractmethod
    def write(self, step: int, records: Sequence[Record]) -> None:
        """Take the records of one step; their order is kept."""

    def write_at(self, wall_time: float, step: int, records: Sequence[Record]) -> None:
        """Take records of a step that was made at this time, in seconds since 1970."""
        self.write(step, records)

    def log_run_config(self, config: Mapping[str, Any]) -> None:  # noqa: B027
        """Take the run's hyper-parameters; a writer that has no place for them ignores them."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Return when everything handed over so far is where it belongs, or can't get there."""

    @abc.abstractmethod
    def close(self) -> None:
        """Flush and let go of files and threads; calling it again does nothing."""

    def close_within(self, seconds: float) -> None:
        """Close, leaving out what takes longer: the process is about to end."""
        self.close()

    @property
    def tally(self) -> Tally:
        """What was written so far, and what was not."""
        return Tally()

    @property
    def failure(self) -> BaseException | None:
        """What stopped this writer for good, if anything did."""
        return None


def clean_tag(tag: str) -> str:
    """A tag as TensorBoard shows it, which knows letters, digits and ``_ - . /`` only."""
    return re.sub(r"[^-/\w.]", "_", tag).lstrip("/") or "_"
