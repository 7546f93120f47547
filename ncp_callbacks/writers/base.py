"""Declare the interface of writers, which take the records of a step.

``Monitor`` calls a writer from the training thread only. ``write`` must return at once and must
never raise for anything that happens to files later; ``close`` writes what is left.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..records import Record

__all__ = ["Instruction", "Tally", "Writer", "valid_text"]


class Tally(NamedTuple):
    """Count records written, dropped and failed; ``records`` are all but figures and embeddings."""

    records: int = 0
    figures: int = 0
    embeddings: int = 0
    dropped_records: int = 0
    dropped_figures: int = 0
    failed_records: int = 0


class Instruction:
    """Mark what a log takes beside records; it has a tag as these do."""

    tag: str


class Writer(abc.ABC):
    """Take the records of a run.

    Attributes:
        report: Called with what the user should know of records that couldn't be written, each
            once, by the thread that calls the writer. None: it is only logged.
        log_dir: Directory of a TensorBoard log, or None.
    """

    report: Callable[[str], object] | None = None
    log_dir: str | os.PathLike[str] | None = None

    @abc.abstractmethod
    def write(self, step: int, records: Sequence[Record]) -> None:
        """Take the records of one step; their order is kept."""

    def write_at(self, wall_time: float, step: int, records: Sequence[Record]) -> None:
        """Take records of a step that was made at this time, in seconds since 1970."""
        self.write(step, records)

    def arrange(self, callbacks: Collection[str]) -> None:  # noqa: B027
        """Take the names of callbacks, with which the groups of their tags begin.

        It is called once, before the first record. A writer whose viewer sorts tags may use them to
        place the tags of callbacks behind those of the training loop.
        """

    def log_run_config(self, config: Mapping[str, Any]) -> None:  # noqa: B027
        """Take the run's hyper-parameters; a writer that has no place for them ignores them."""

    def keep_state(self, step: int, state: str) -> None:  # noqa: B027
        """Keep a monitor's state as of a snapshot, JSON, from which a run that was killed goes on.

        Only a writer that has a directory does.
        """

    def write_at_once(self, step: int, records: Sequence[Record]) -> None:  # noqa: B027
        """Take records for programs, and write all that waits to the disk, without waiting for it.

        Only a writer that has a directory does.
        """

    def rewind(self, first_step: int) -> None:  # noqa: B027
        """Hide what was logged for this step and later ones: they are made once more."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Wait until all records taken so far are written, or can't be."""

    @abc.abstractmethod
    def close(self) -> None:
        """Flush, and release files and threads. Calling it again does nothing."""

    def close_within(self, seconds: float) -> None:
        """Close, and skip what takes longer than this: the process is about to end."""
        self.close()

    @property
    def tally(self) -> Tally:
        """Return the numbers of records written so far, dropped, and failed."""
        return Tally()

    @property
    def failure(self) -> BaseException | None:
        """Return the exception that stopped this writer for good, or None."""
        return None


def valid_text(text: str) -> str:
    """Return the text with ``?`` for lone surrogates, which UTF-8 can't encode."""
    return text.encode("utf-8", "replace").decode()
