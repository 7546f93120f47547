"""Encode records as events, and write these to an event file; the records of a step are one event.

It runs on the writing thread. A record that can't be encoded is lost alone.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..records import Embedding, Record
from .base import Instruction
from .encoding import Encoder, Event, SessionLog, Summary
from .event_file import fits_int64
from .kept_states import KeptState, write_state
from .projector import write_embedding
from .writing_thread import Lose, RecordSink

__all__ = ["EventSink", "Events", "Rewind"]


@dataclass(frozen=True)
class Rewind(Instruction):
    """Ask to hide what was logged for a step, that of the entry, and for later ones."""

    tag: str = "rewind"


class Events(Protocol):
    """Take encoded events; called on the writing thread only."""

    @property
    def log_dir(self) -> Path | None:
        """Return the directory of the log; None where there is none on this machine."""

    def write(self, event: Event) -> None:
        """Take an event."""

    def flush(self) -> None:
        """Return when all events taken are safe from the death of this process."""

    def close(self) -> None:
        """Flush and release what was opened."""


class EventSink(RecordSink):
    """Encode the records of each step, and write them as one event.

    Args:
        events: Takes the events.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._encoder = Encoder(events.log_dir)
        self._step = 0

    def arrange(self, callbacks: Collection[str]) -> None:
        self._encoder.arrange(callbacks)

    def write(
        self, step: int, wall_time: float, records: Sequence[Record | Instruction], lose: Lose
    ) -> None:
        if not fits_int64(step):
            lose(
                records,
                "step",
                f"records of step {step} are lost: pass steps of less than 2**63. This is reported "
                "once; training and other logging go on",
            )
            return
        self._step = max(self._step, step)
        values: list[Summary.Value] = []
        for record in records:
            try:
                if isinstance(record, Embedding):
                    if self._events.log_dir is not None:
                        write_embedding(self._events.log_dir, step, record)
                elif isinstance(record, KeptState):
                    if self._events.log_dir is not None:
                        # The numbers of its step need not be safe yet: steps that are made again
                        # don't use it, and those that aren't need it.
                        write_state(self._events.log_dir, record)
                elif isinstance(record, Rewind):
                    start = SessionLog(status=SessionLog.START)
                    self._events.write(Event(wall_time=wall_time, step=step, session_log=start))
                else:
                    values += self._encoder.values(record)
            except Exception as error:
                kind, tag = type(record).__name__, getattr(record, "tag", "")
                message = (
                    f"the {kind} {tag!r} can't be logged. This is reported once; training and "
                    "other logging go on"
                )
                lose([record], (kind, tag), message, error)
        if self._encoder.layout_changed:
            values += self._layout(lose)
        if self._encoder.knows_metrics:
            values += self._encoder.metrics()
        if values:
            self._write_values(step, wall_time, values)

    def flush(self) -> None:
        self._events.flush()

    def end_session(self) -> None:
        end = self._encoder.end()
        if end:
            self._write_values(self._step, time.time(), end)

    def close(self) -> None:
        self._events.close()

    def _layout(self, lose: Lose) -> list[Summary.Value]:
        self._events.flush()  # The log is read, for charts of others.
        try:
            return self._encoder.layout()
        except Exception as error:
            message = "the layout of the Custom Scalars dashboard can't be written"
            lose([], "layout", message, error)
            return []

    def _write_values(self, step: int, wall_time: float, values: list[Summary.Value]) -> None:
        event = Event(step=step, wall_time=wall_time, summary=Summary(value=values))
        self._events.write(event)
