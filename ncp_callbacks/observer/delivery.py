"""Write what comes from the observer into the run's log."""

from __future__ import annotations

from collections.abc import Callable

from ..console import show
from ..records import Figure, Picture, Scalar
from ..run_log import RunLog
from .observer import Analysis

__all__ = ["Delivery"]


class Delivery:
    """Takes analyses and pictures, on whatever thread they come.

    Args:
        log: The run's log.
        disabled: Names of callbacks that failed or don't apply are added to it.
        raise_errors: Keep the first error of an analysis for :meth:`raise_kept`.
        verbose: As for the monitor.

    Attributes:
        draw: Draws pictures of findings in the observer's process; None: the writer draws them.
        may_restart: Whether an observer's process that is lost is started again.
    """

    def __init__(
        self, log: RunLog, disabled: set[str], *, raise_errors: bool, verbose: bool | None
    ) -> None:
        self.may_restart = True
        self.draw: Callable[[int, float, list[Figure]], bool] | None = None
        self._log, self._disabled = log, disabled
        self._raise_errors, self._verbose = raise_errors, verbose
        self._kept: Exception | None = None

    def analysis(self, analysis: Analysis) -> None:
        """Write an analysis, with what it cost and what went wrong."""
        self._disabled |= analysis.disabled
        if self._raise_errors and self._kept is None and analysis.failures:
            first = analysis.failures[0]
            self._kept = RuntimeError(f"{first.message}\n{first.details}")
        self._log.deliver(lambda: self._write(analysis))

    def _write(self, analysis: Analysis) -> None:
        records = [*analysis.records, *analysis.cost_records()]
        figures = self._log.write_analysis(analysis.step, records, analysis.wall_time)
        if self.draw is None or not self.draw(analysis.step, analysis.wall_time, figures):
            self._log.write(analysis.step, figures, analysis.wall_time)
        self._log.keep_state(analysis.step, analysis.state)
        for note in analysis.notes:
            self._log.report(note)
        for failure in analysis.failures:
            self._log.fail(failure.message, failure.details)

    def picture(self, step: int, wall_time: float, picture: Picture) -> None:
        """Write a picture of an analysis that came before."""
        self._log.deliver(lambda: self._log.write(step, [picture], wall_time))

    def dropped_pictures(self, count: int) -> None:
        """Write how many pictures weren't drawn so far."""
        if count:
            what = "Pictures that took too long, failed, or came faster than they are drawn"
            self._log.write(self._log.last_step, [Scalar("monitor/dropped_pictures", count, what)])

    def note(self, message: str) -> None:
        """Tell the user something."""
        self._log.deliver(lambda: self._log.report(message))

    def waiting(self, what: str) -> None:
        """Tell the user what the end of the run waits for."""
        show(
            f"ncp_callbacks: waiting for {what} (Ctrl-C stops the waiting, not the log)",
            verbose=self._verbose,
        )

    def fault(self, message: str, details: str, *, unfit: bool) -> None:
        """Tell the user that the observer's process is gone, and what follows."""
        if not self.may_restart:
            then = "it is not started again: analyses end here, the loop's own numbers go on"
        elif unfit:
            then = "the next snapshot is analysed in the training loop"
        else:
            then = "the next snapshot starts it again, once"
        self._log.deliver(lambda: self._log.fail(f"{message}; {then}", details))

    def raise_kept(self) -> None:
        """Raise the error that was kept, once."""
        error, self._kept = self._kept, None
        if error is not None:
            raise error
