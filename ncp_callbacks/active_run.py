"""Keep what is open while a run is: its log, its observer and its handlers of signals.

A monitor is what the training loop talks to; this is what must be closed in every case, also when
the monitor was dropped, when the process ends, and when a signal ends it.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from .console import closing, show
from .findings.card import lines
from .observer.attached import AttachedObserver
from .overhead import Overhead
from .run_log import RunLog
from .writers import Writer
from .writers.signals import ClosesOnSignals

__all__ = ["ActiveRun"]

_MAX_LINES = 9  # With the command that opens the log, ten.


class ActiveRun:
    """Everything of a run that is to be closed.

    Args:
        log: The run's log.
        observer: The observer.
        overhead: What the run costs the loop.
        verbose: As for the monitor.

    Attributes:
        writers: They write the log; none before :meth:`open`.
        last_step: The last step that the loop reported, or None.
        steps: Number of steps that the loop reported.
        is_ending: Whether the run is over, or its end waits for something.
    """

    def __init__(
        self, log: RunLog, observer: AttachedObserver, overhead: Overhead, verbose: bool | None
    ) -> None:
        self.log, self.observer, self.overhead = log, observer, overhead
        self.writers: tuple[Writer, ...] = ()
        self.last_step: int | None = None
        self.steps = 0
        self.is_ending = self._is_over = False
        self._verbose = verbose
        self._log_dir: str | None = None
        self._pid = os.getpid()
        self._signals: ClosesOnSignals | None = None
        self._exit_hook: Callable[[], None] | None = None
        self._began = 0.0

    @property
    def is_ours(self) -> bool:
        """Whether this process writes the log: a fork of it must not."""
        return bool(self.writers) and os.getpid() == self._pid

    def open(
        self,
        writers: Sequence[Writer],
        run_config: Mapping[str, Any],
        *,
        log_dir: str | None,
        keep_open: Collection[Writer] = (),
        callbacks: Collection[str] = (),
    ) -> None:
        """Write to these writers from now on.

        Args:
            writers: As for :meth:`.RunLog.open`.
            run_config: Hyper-parameters of the run.
            log_dir: Where the log is, as far as that is known.
            keep_open: Those that are flushed at the end, and not closed.
            callbacks: Names of the callbacks.
        """
        self.writers, self._log_dir = tuple(writers), log_dir
        self.log.open(writers, run_config, callbacks, keep_open)
        self._began = time.perf_counter()

    def close_in_every_case(self, owner: object, close: Callable[[Any], None]) -> None:
        """See to the end of the run, whatever ends it.

        Args:
            owner: What the user closes. Where it is dropped before, the run ends by itself.
            close: Called with the owner at the exit of the process, if there still is one.
        """
        self._signals = ClosesOnSignals(self._close_on_signal)
        reference = weakref.ref(owner)

        def close_at_exit() -> None:
            still_there = reference()
            if still_there is not None:
                close(still_there)

        self._exit_hook = close_at_exit
        # After the writer's: what is registered last runs first.
        atexit.register(close_at_exit)
        weakref.finalize(owner, self._close_on_thread).atexit = False

    def end(self, grace: float | None = None) -> None:
        """Close everything, also when an interrupt ends the waiting. Ending again does nothing.

        Args:
            grace: Seconds for what is outstanding; None: as long as it takes.
        """
        if not self.is_ours or self._is_over:
            return
        # Also where the end of the run was waiting already: that would go on for too long now.
        self.is_ending = True
        end = None if grace is None else time.monotonic() + grace
        try:
            self.observer.close(grace)
        finally:
            if self._exit_hook is not None:
                atexit.unregister(self._exit_hook)
            try:
                self.log.conclude()
                self._close_log(None if end is None else max(1.0, end - time.monotonic()))
            finally:
                self._is_over = True
                if self._signals is not None:
                    self._signals.undo()
            self._show_closing()

    def _close_log(self, seconds: float | None) -> None:
        if self.overhead.skipped and self.last_step is not None:
            # Those since the last snapshot count, too.
            self.log.write(self.last_step, self.overhead.skips())
        self.log.close(seconds)

    def _close_on_signal(self, seconds: float) -> None:
        """Write what can be had: the process is about to end."""
        self.end(grace=seconds)

    def _close_on_thread(self) -> None:
        # The garbage collector may call this at any place, where nothing should wait.
        if self.is_ours and not self._is_over:
            threading.Thread(target=self.end, name="ncp_callbacks closing").start()

    def _show_closing(self) -> None:
        if not self.writers or not self.steps:
            return
        tally, failure = self.log.outcome()
        found = self.log.findings
        text = closing(
            self._log_dir,
            tally,
            steps=self.steps,
            snapshots=self.overhead.snapshots,
            notes=len(self.log.notes),
            loop_seconds=self.overhead.seconds,
            seconds=time.perf_counter() - self._began,
            failure=failure,
            findings=() if found is None else lines(found.findings, _MAX_LINES),
        )
        show(text, verbose=self._verbose)
