"""Draw pictures on a thread, so that nothing else waits for them.

::

    renderer = Renderer(deliver)
    renderer.submit(step, time.time(), figures)  # microseconds
    renderer.close()

Each ``Figure`` becomes a ``Picture``, which is passed to ``deliver(step, wall_time, picture)``. A
plot function that is slow, fails or never returns costs its own picture and no other.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..bell import Bell
from ..errors import one_line
from ..records import Figure, Picture
from ..signal_handlers import raised_by_signal_handler

__all__ = ["Renderer", "memory_of"]

logger = logging.getLogger("ncp_callbacks")

# The time limit of a picture is counted in parts: while a process is stopped, or the machine
# sleeps, one of them passes and not all.
_PARTS = 25


class _Job(NamedTuple):
    step: int
    wall_time: float
    figure: Figure
    size: int


class _DrawingThread:
    """Draw on a daemon thread, which is abandoned when a plot function is stuck."""

    def __init__(self) -> None:
        # SimpleQueue: its put may be called again from a signal handler.
        self._figures: queue.SimpleQueue[Figure | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ncp_callbacks drawing", daemon=True)
        self._thread.start()

    def draw(self, figure: Figure, timeout: float) -> bytes | BaseException | None:
        """Return the PNG, or the plot function's exception, or None after ``timeout`` seconds."""
        self._figures.put(figure)
        for _ in range(_PARTS):
            with contextlib.suppress(queue.Empty):
                return self._results.get(timeout=timeout / _PARTS)
        return None

    def end(self) -> None:
        """Let the thread end after the figure that it draws."""
        self._figures.put(None)

    def is_current(self) -> bool:
        """Return whether the caller runs on this thread."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        redrawer = None
        while (figure := self._figures.get()) is not None:
            try:
                if redrawer is None:
                    from .redraw import Redrawer

                    redrawer = Redrawer()
                result: bytes | BaseException = redrawer.png(
                    figure.tag, figure.plot, figure.data, figure.options
                )
            # SystemExit and KeyboardInterrupt of a plot function end nothing but its picture.
            except BaseException as error:
                result = error
            self._results.put(result)
            del figure, result


class Renderer:
    """Draw figures in the order in which they come, and deliver the pictures.

    A picture that takes longer than ``timeout`` is given up, and its tag isn't drawn again. In a
    forked child, a renderer of the parent does nothing.

    Args:
        deliver: Function of ``(step, wall_time, picture)``; it is called on a thread of the
            renderer, for one picture after the other.
        max_figures: Largest number of figures that wait. Beyond, all figures of a step are
            dropped, unless none waits.
        max_bytes: Largest memory of the figures that wait. Only the figures of a single step may
            exceed it.
        timeout: Seconds for one picture. The first one includes the import of matplotlib.
        report: Called with each warning that is logged, as one line; it must not wait for the
            renderer. None: warnings are only logged.

    Attributes:
        dropped: Number of figures that were dropped, or given up by :meth:`close`.
        failed: Number of figures that could not be drawn or delivered.
    """

    def __init__(
        self,
        deliver: Callable[[int, float, Picture], None],
        *,
        max_figures: int = 64,
        max_bytes: int = 128 << 20,
        timeout: float = 25.0,
        report: Callable[[str], object] | None = None,
    ) -> None:
        self.dropped = 0
        self.failed = 0
        self._deliver = deliver
        self._max_figures = max_figures
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._report = report
        self._pid = os.getpid()

        # Reentrant, for a signal handler that closes while `submit` holds it.
        # Entered as a lock: an interrupt inside Condition.__enter__ would leave it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._bell = Bell()
        self._jobs: deque[_Job] = deque()
        self._current: _Job | None = None
        self._bytes = 0
        self._given_up: set[str] = set()
        self._reported: set[object] = set()
        self._thread: threading.Thread | None = None
        self._drawing: _DrawingThread | None = None
        self._closing = False
        self._ended = False
        self._exiting = False
        self._then: Callable[[], None] | None = None

    def submit(self, step: int, wall_time: float, figures: Sequence[Figure]) -> None:
        """Add the figures of a step to the queue, without waiting.

        Args:
            step: Training step.
            wall_time: Unix time in seconds.
            figures: Figures of the step.
        """
        if not figures or self._closing or os.getpid() != self._pid:
            return
        jobs = [
            _Job(step, wall_time, figure, memory_of(figure))
            for figure in figures
            if figure.tag not in self._given_up
        ]
        size = sum(job.size for job in jobs)
        with self._lock:
            self._fail(len(figures) - len(jobs))
            crowded = self._jobs and len(self._jobs) + len(jobs) > self._max_figures
            busy = self._jobs or self._current is not None
            if crowded or (busy and self._bytes + size > self._max_bytes):
                self.dropped += len(jobs)
                self._report_once(
                    "dropped",
                    "pictures come faster than they are drawn: dropping some from step %d on; log "
                    "less often (every=), or fewer pictures",
                    step,
                )
            elif jobs and self._started():
                self._bytes += size
                self._jobs.extend(jobs)
                self._bell.ring()
            else:
                self.dropped += len(jobs)
        if self._exiting:
            self.flush(self._timeout)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until no figure waits, and return whether that is so.

        Args:
            timeout: Seconds after which waiting ends. None: each picture has its own limit.
        """
        drawing = self._drawing
        if (
            os.getpid() != self._pid
            or threading.current_thread() is self._thread
            or (drawing is not None and drawing.is_current())
        ):
            return True
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while (self._jobs or self._current is not None) and not self._ended:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def close(self, timeout: float | None = None) -> None:
        """Draw the figures that wait, and end the thread. Calling it again does nothing.

        Args:
            timeout: Seconds after which the pictures left are given up, all together. None: the
                limit of one picture.
        """
        if os.getpid() != self._pid or self._ended:
            return
        self._closing = True
        self._bell.ring()
        if not self.flush(self._timeout if timeout is None else timeout):
            with self._lock:
                left = [job for job in (self._current, *self._jobs) if job is not None]
                self.dropped += len(left)
                self._end()
            self._warn(
                "closing the log gave up %d picture%s, the first of them %r of step %d",
                len(left),
                "" if len(left) == 1 else "s",
                left[0].figure.tag if left else "",
                left[0].step if left else 0,
            )
        elif self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def abandon(self, then: Callable[[], None] | None = None) -> None:
        """Let the thread end by itself when all figures are drawn, and then call ``then``.

        It takes no lock, as the garbage collector may call it at any place.
        """
        self._then = then
        self._closing = True
        if self._thread is None and then is not None:
            then()

    def _started(self) -> bool:
        """Start the threads, unless they run; return whether they run."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="ncp_callbacks renderer", daemon=True)
            try:
                # Both now: while an interpreter ends, no thread can be started.
                self._drawing = _DrawingThread()
                thread.start()
            except RuntimeError as error:
                if raised_by_signal_handler(error):
                    raise
                self._report_once("start", "pictures can't be drawn: %s", error)
                return False
            self._thread = thread
            atexit.register(self._at_exit)
        return True

    def _at_exit(self) -> None:
        """Draw the figures that wait; exit handlers that run later may still submit figures."""
        self._exiting = True
        self.flush(self._timeout)

    def _end(self) -> None:
        with self._lock:
            self._closing = self._ended = True
            self._jobs.clear()
            self._bell.ring()
            self._changed.notify_all()

    def _fail(self, count: int) -> None:
        with self._lock:
            self.failed += count

    def _report_once(
        self, key: object, message: str, *args: object, error: BaseException | None = None
    ) -> None:
        if key not in self._reported:
            self._reported.add(key)
            self._warn(message, *args, error=error)

    def _warn(self, message: str, *args: object, error: BaseException | None = None) -> None:
        logger.warning(message, *args, exc_info=error)
        if self._report is not None:
            self._report(message % args + ("" if error is None else f": {one_line(error)}"))

    # --- the thread

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._draw(job)
                with self._lock:
                    self._current = None
                    self._bytes -= job.size
                    self._changed.notify_all()
                del job
        finally:
            if self._drawing is not None:
                self._drawing.end()
            self._end()
            atexit.unregister(self._at_exit)
            if self._then is not None:
                self._then()

    def _next(self) -> _Job | None:
        """Return the next job, or None when there will be none."""
        while True:
            with self._lock:
                if self._jobs:
                    self._current = self._jobs[0]
                    return self._jobs.popleft()
                if self._closing:
                    return None
            # `abandon` can't wake this thread.
            self._bell.wait(5.0)

    def _draw(self, job: _Job) -> None:
        figure = job.figure
        if figure.tag in self._given_up:
            self._fail(1)
            return
        try:
            if self._drawing is None:
                self._drawing = _DrawingThread()
            result = self._drawing.draw(figure, self._timeout)
        except RuntimeError as error:  # No thread can be started.
            result = error
        if self._ended:
            return
        if isinstance(result, bytes):
            picture = Picture(figure.tag, result, figure.description, place=figure.place)
            try:
                self._deliver(job.step, job.wall_time, picture)
            except Exception as error:
                self._fail(1)
                self._report_once("deliver", "a picture can't be delivered", error=error)
        elif result is None:
            self._fail(1)
            assert self._drawing is not None
            self._drawing.end()  # If the plot function returns after all.
            self._drawing = None
            self._given_up.add(figure.tag)
            self._warn(
                "the picture %r of step %d takes longer than %g s: it is skipped from now on; "
                "numbers and other pictures go on. Make its plot function faster",
                figure.tag,
                job.step,
                self._timeout,
            )
        else:
            self._fail(1)
            self._report_once(
                (figure.tag,),
                "can't draw the picture %r; reported once, training and other logging go on",
                figure.tag,
                error=result,
            )


def memory_of(value: Any) -> int:
    """Return about how many bytes a record, or a value in one, holds."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, str | bytes):
        return len(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return 128 + sum(memory_of(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return 64 + sum(map(memory_of, value.values()))
    if isinstance(value, list | tuple):
        return 64 + sum(map(memory_of, value))
    return 32
