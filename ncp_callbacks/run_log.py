"""One run's log as the monitor uses it: records, notes to the user and the guide to the tags.

It guards the writer: what goes wrong there is reported once and never reaches the training.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .due_steps import DUE, DueStep
from .errors import one_line, traceback_of
from .findings.run_findings import RunFindings
from .records import Array, Data, Figure, Note, Record, Scalar, Text, protect
from .run_card import guide
from .signal_handlers import raised_by_signal_handler, suppressed_errors
from .tag_owners import TagOwners
from .writers import Writer
from .writers.base import Tally

__all__ = ["RunLog"]

_LOG = logging.getLogger("ncp_callbacks")
_MAX_NOTES = 100
_MAX_EXPLAINED = 2000
# Cards are written whole each time, so rarely: seconds.
_CARD_SECONDS = 60.0


class RunLog:
    """Takes records, notes and failures from any thread, one at a time.

    Only the training's thread waits for its turn. What another thread hands over by
    :meth:`deliver` is written by whoever has the turn, so that a signal handler that interrupts the
    training's thread within its turn, and waits for that other thread, doesn't wait in vain.

    Attributes:
        last_step: The last step that the loop reported.
        findings: Turns what is written into findings, once the run's facts are known; or None.
        keeps_states: Whether the monitor's state is kept beside the log, snapshot by snapshot.
        fingerprint: What the run is analysed on, for those who go on from such a state.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.last_step = 0
        self.findings: RunFindings | None = None
        self.keeps_states, self.fingerprint = False, ""
        self._clock = clock
        self._lock = threading.RLock()
        self._is_delivering = False
        self._delivered: deque[Callable[[], object]] = deque()
        self._writers: list[Writer] = []
        self._opened: tuple[Writer, ...] = ()
        self._kept_open: tuple[Writer, ...] = ()
        self._notes: list[str] = []
        self._more_notes = 0
        self._closing = False
        self._kept_step: int | None = None
        self._topics: set[str] = set()
        self._tags = TagOwners(self.report)
        self._explained: dict[str, str] = {}
        self._rehearsed: set[str] = set()
        self._changed = {"monitor/notes": False, "monitor/guide": False}
        self._written: dict[str, float] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was reported so far: at most 100 notes, and how many more there were."""
        # Without the lock, which another thread may have held when this process was forked.
        more = (f"and {self._more_notes} more",) if self._more_notes else ()
        return (*self._notes, *more)

    # ---- other threads

    def deliver(self, call: Callable[[], object]) -> None:
        """Make a call that writes, now or as soon as the log is free; never wait for that.

        Args:
            call: Calls methods of this object.
        """
        self._delivered.append(call)
        self._make_calls_if_free()

    def _make_calls_if_free(self) -> None:
        # Whoever has the turn, or makes such calls, checks once more when that is over.
        while self._delivered and not self._is_delivering and self._lock.acquire(blocking=False):
            try:
                self._make_delivered_calls()
            finally:
                self._lock.release()

    def _make_delivered_calls(self) -> None:
        if self._is_delivering and not self._closing:
            return  # One of these calls writes: the others come after it.
        self._is_delivering = True
        try:
            while self._delivered:
                try:
                    call = self._delivered.popleft()
                except IndexError:  # A signal handler took it.
                    return
                call()
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            _LOG.exception("writing what the observer found failed")
        finally:
            self._is_delivering = False

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            self._make_delivered_calls()
            yield
        self._make_calls_if_free()

    # ---- the writers

    def open(
        self,
        writers: Sequence[Writer],
        run_config: Mapping[str, Any],
        callbacks: Collection[str] = (),
        keep_open: Collection[Writer] = (),
    ) -> None:
        """Write to these writers from now on; one that raises is dropped.

        Args:
            writers: They write the log. What goes wrong with one is a note for those behind it.
            run_config: Hyper-parameters of the run.
            callbacks: Names of the callbacks.
            keep_open: Those that are flushed at the end and not closed: the user goes on with them.
        """
        self._opened, self._kept_open = tuple(writers), tuple(keep_open)
        self._writers = list(writers)
        for writer in self._writers:
            writer.report = self._take_warning
        self._guarded(lambda w: w.arrange([*callbacks, "monitor", "findings", "parameters"]))
        if run_config:
            self._guarded(lambda w: w.log_run_config(run_config))

    def write(self, step: int, records: Iterable[Record], wall_time: float | None = None) -> None:
        """Write records, with what the guide then has to say of new tags."""
        with self._turn():
            records = list(records)
            for record in records:
                protect(record)
            self._explain(records)
            if records:
                self._write(step, records, wall_time)
            self._write_cards()

    def write_loop(self, step: int, records: Iterable[Record]) -> None:
        """Write numbers of the training loop."""
        with self._turn():
            records = list(records)
            if self.findings is not None:
                for record in records:
                    if isinstance(record, Scalar):
                        self.findings.add_point(step, record.tag, record.value)
            self._tags.add("the training loop", records)
            self.write(step, records)

    def freeze(self, step: int) -> None:
        """Keep the loop's numbers as they are now, for the findings of the snapshot of this step.

        The analysis comes back at any time, and its findings must not depend on when.
        """
        with self._turn():
            if self.findings is not None:
                self.findings.freeze(step)

    def keep_due(self, due: DueStep) -> None:
        """Write at once that a step is due, for those who go on with a run that was killed."""
        with self._turn():
            self._guarded(lambda w: w.write_at_once(due.step, [Data(DUE, due.to_json())]))

    def keep_state(self, step: int, callbacks: Mapping[str, Any]) -> None:
        """Keep what a resumed run needs beside the log, if that is asked for.

        Args:
            step: Of the snapshot that was analysed last.
            callbacks: The state of each callback as of it.
        """
        if not self.keeps_states or step < (self._kept_step or step):
            return  # The first snapshot is analysed last where no step was due.
        self._kept_step = step
        with self._turn():
            state = {
                "step": step,
                "callbacks": callbacks,
                "findings": self.findings and self.findings.state_dict(curves=False),
                "fingerprint": self.fingerprint,
            }
            try:
                text = json.dumps(state)
            except (TypeError, ValueError) as error:
                self.keeps_states = False
                self.fail("the state of the callbacks can't be kept beside the log", error)
                return
            self._guarded(lambda w: w.keep_state(step, text))

    def take_points(self, points: Iterable[tuple[int, str, float]]) -> None:
        """Take numbers that the training loop has logged before an interruption, for findings."""
        with self._turn():
            if self.findings is not None:
                for point in points:
                    self.findings.add_point(*point)

    def rewind(self, step: int, records: Sequence[Record]) -> None:
        """Hide what was logged for a step and later ones, which are made once more.

        Args:
            step: The first of them.
            records: What was written on opening, which is hidden, too.
        """
        with self._turn():
            self._guarded(lambda w: w.rewind(step))
            self.last_step = step
            self._changed.update(dict.fromkeys(self._written, True))
            self._written.clear()
            self.write(step, records)

    def write_analysis(
        self, step: int, records: Iterable[Record], wall_time: float | None = None
    ) -> list[Figure]:
        """Write what callbacks made of a snapshot, and then its findings.

        Returns:
            Pictures of the findings, which are not written yet.
        """
        with self._turn():
            records = list(records)
            self._tags.add("a callback", records)
            self.write(step, records, wall_time)
            return self._write_findings(step, wall_time, lambda f: f.add_snapshot(step, records))

    def findings_state(self) -> dict[str, Any] | None:
        """Return what a resumed run needs of the findings; None before there are any."""
        with self._turn():
            return None if self.findings is None else self.findings.state_dict()

    def conclude(self) -> None:
        """Write the findings with all that the loop has logged, if they changed."""
        with self._turn():
            if self.findings is not None:
                step = self.findings.step
                self.write(step, self._write_findings(step, None, lambda f: f.end()))

    def _write_findings(
        self, step: int, wall_time: float | None, find: Callable[[RunFindings], list[Record]]
    ) -> list[Figure]:
        if self.findings is None:
            return []
        try:
            found = find(self.findings)
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            self.findings = None
            self.fail("the findings failed and are not logged any more", error)
            return []
        self.write(step, [r for r in found if not isinstance(r, Figure)], wall_time)
        return [record for record in found if isinstance(record, Figure)]

    def flush(self) -> None:
        """Write all cards and flush the writer."""
        with self._turn():
            self._write_cards(now=True)
            self._guarded(lambda w: w.flush())
            if any(self._changed.values()):  # by warnings of the writer
                self._write_cards(now=True)
                self._guarded(lambda w: w.flush())

    def close(self, timeout: float | None = None) -> None:
        """Write all cards, and close the writers or flush those that are to stay open.

        Args:
            timeout: Seconds that each of the writers may take for pictures, as the process is
                about to end; then all are closed. None: as the writers do by default.
        """
        self._closing = True

        def close(writer: Writer) -> None:
            if timeout is not None:
                writer.close_within(timeout / max(1, len(self._writers)))
            elif any(writer is kept for kept in self._kept_open):
                writer.flush()
            else:
                writer.close()

        with self._turn():
            self._write_cards(now=True)
            self._guarded(close)

    def outcome(self) -> tuple[Tally, BaseException | None]:
        """Return the counts of the log's writer, and what stopped it, if anything."""
        for writer in sorted(self._opened, key=lambda writer: writer.log_dir is None):
            with suppressed_errors():  # Of a writer that raises, all is reported.
                return writer.tally, writer.failure
        return Tally(), None

    def _write(self, step: int, records: Sequence[Record], wall_time: float | None = None) -> None:
        if wall_time is None:
            self._guarded(lambda w: w.write(step, records))
        else:
            self._guarded(lambda w: w.write_at(wall_time, step, records))

    def _guarded(self, call: Callable[[Writer], object]) -> None:
        for writer in list(self._writers):
            try:
                call(writer)
            except Exception as error:
                if raised_by_signal_handler(error):
                    raise
                self._writers = [other for other in self._writers if other is not writer]
                name = type(writer).__name__
                self.fail(f"the writer {name} failed and is not used any more", error)

    # ---- notes

    def report(self, message: str, *, topic: str | None = None) -> None:
        """Tell the user once for a topic (by default the message itself)."""
        with self._turn():
            if (topic or message) in self._topics:
                return
            # Topics that are named are few: only messages with numbers in them may go on for ever.
            if topic is None and len(self._topics) >= 10 * _MAX_NOTES:
                self._more_notes += 1
                return
            self._topics.add(topic or message)
            if self._keep(message):
                _LOG.warning(message)

    def fail(self, message: str, error: BaseException | str | None = None) -> None:
        """Tell the user of an error.

        Args:
            message: What failed.
            error: The error, whose type and text are added; or a traceback, for a message that has
                them already.
        """
        with self._turn():
            if isinstance(error, BaseException):
                message, error = f"{message}: {one_line(error)}", traceback_of(error)
            if self._keep(message):
                _LOG.error("%s%s", message, f"\n{error}" if error else "")

    def _take_warning(self, message: str) -> None:
        """Keep what the writer has logged already; called on its thread."""
        self.deliver(lambda: self._keep(message))

    def _keep(self, message: str) -> bool:
        self._changed["monitor/notes"] = True
        if len(self._notes) >= _MAX_NOTES:
            self._more_notes += 1
            return False
        self._notes.append(message)
        self._write_cards()
        return True

    # ---- the guide

    def rehearse(self, records: Iterable[Record]) -> None:
        """Take descriptions of the dry run, which knows less than an analysis will."""
        with self._turn():
            records = list(records)
            self._tags.add("a callback", records)
            self._explain(records)
            self._rehearsed = set(self._explained)

    def _explain(self, records: Iterable[Record]) -> None:
        for record in records:
            if isinstance(record, Text | Data | Array | Note) or not record.description:
                continue
            known = record.tag in self._explained
            if (known and record.tag not in self._rehearsed) or (
                not known and len(self._explained) >= _MAX_EXPLAINED
            ):
                continue
            self._rehearsed.discard(record.tag)
            if self._explained.get(record.tag) != record.description:
                self._explained[record.tag] = record.description
                self._changed["monitor/guide"] = True

    def _write_cards(self, *, now: bool = False) -> None:
        if not self._writers:
            return
        for tag, changed in self._changed.items():
            last = self._written.get(tag)
            due = now or self._closing or last is None or self._clock() - last >= _CARD_SECONDS
            if changed and due:
                self._changed[tag] = False
                self._written[tag] = self._clock()
                text = self._notes_card() if tag == "monitor/notes" else guide(self._explained)
                self._write(self.last_step, [Text(tag, text)])

    def _notes_card(self) -> str:
        return "\n".join(f"* {note}" for note in self.notes)
