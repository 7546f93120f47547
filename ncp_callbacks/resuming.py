"""Go on with a run that was interrupted, from what it has left in its directory.

    logged = logged_run("runs/cfc-seed0")                   # None: there is no log
    logged.last_step                                        # the last step in it
    state, notes = logged.state_before(91, fingerprint)     # where the training begins with step 91

The training goes on from a checkpoint, which is older than the log as a rule: the state that
belongs to it is that of the last snapshot before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .active_run import ActiveRun
from .callback import Callback
from .console import show
from .due_callbacks import DueCallbacks
from .due_steps import DueStep, analysed_steps, due_steps, what_is_lacking
from .errors import one_line
from .observer.attached import AttachedObserver
from .records import Record
from .run_log import RunLog
from .scheduling import as_whole
from .signal_handlers import raised_by_signal_handler
from .writers import as_directory
from .writers.kept_states import read_state, remove_states, state_files

if TYPE_CHECKING:
    from .runs import Run

__all__ = ["LoggedRun", "Resuming", "checked_resume", "checked_resume_step", "logged_run"]

_CONDITIONS = {
    "held_out": "the held-out batch",
    "feature_names": "the feature names",
    "target": "the target",
}
# Steps that the log tells nothing of are few, unless all callbacks had failed.
_MAX_STEPS = 1_000_000


def logged_run(log_dir: str | os.PathLike[str]) -> LoggedRun | None:
    """Return what a directory holds of a run, or None where it has no log."""
    from .runs.errors import RunsError
    from .runs.reader import read_run

    directory = as_directory(log_dir)
    try:
        return LoggedRun(directory, read_run(directory))
    except RunsError:
        return None


@dataclass(frozen=True, eq=False)
class LoggedRun:
    """Hold the log of a run that goes on, and find the state that was kept beside it."""

    directory: Path
    run: Run

    @property
    def last_step(self) -> int:
        """Return the last step at which a number was logged, or 0."""
        return max(0, self.run.steps[1]) if self.run.steps else 0

    def loop_points(self, first: int) -> Iterator[tuple[int, str, float]]:
        """Iterate over step, tag and value of the training loop's numbers before a step."""
        from .runs.findings import loop_points

        return (point for point in loop_points(self.run) if point[0] < first)

    def state_before(
        self, first: int, fingerprint: str
    ) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
        """Return the newest state that fits a training that goes on with this step, and notes.

        Args:
            first: The first step that is made now.
            fingerprint: What the run is analysed on now. Where that is something else, no state
                fits, and of a callback whose method is another one its part is left away.
        """
        notes: list[str] = []
        for step, path in state_files(self.directory):
            if step >= first:
                continue
            try:
                state = read_state(path)
                changed = _changed(state, fingerprint)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                notes.append(
                    f"the state of step {step} can't be read ({one_line(error)}): an older one is "
                    "taken"
                )
                continue
            if changed is not None:
                notes.append(
                    f"{changed} differs from that of step {step}: the run goes on in the same log, "
                    "and its analyses begin anew. Pass the same one, for example by a fixed seed, "
                    "or another log_dir"
                )
                return None, tuple(notes)
            return state, tuple(notes)
        if self.run.steps is not None and self.run.steps[0] < first:
            notes.append(
                f"no state of a snapshot before step {first} is kept beside the log: references, "
                "changes and limits of axes begin anew"
            )
        return None, tuple(notes)


def _changed(state: dict[str, Any], fingerprint: str) -> str | None:
    """Return what a state was made on that is something else now; leave other methods' parts away.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: The state holds no fingerprint.
    """
    before: Mapping[str, Any] = json.loads(state["fingerprint"])
    now: Mapping[str, Any] = json.loads(fingerprint)
    for key, name in _CONDITIONS.items():
        if before.get(key) != now[key]:
            return name
    methods = now["method"]
    state["callbacks"] = {
        name: part
        for name, part in state["callbacks"].items()
        if before["method"].get(name) == methods.get(name)
    }
    return None


class Resuming:
    """Take up the state of an interrupted run, and keep that of this one.

    Args:
        run: What is open while the run is.
        log: The log of the run.
        due: Tells which callbacks are due.
        observer: Holds the states of the callbacks.
        step: The last step that was done of the run that goes on; None: none is known.
        verbose: As for the monitor.
    """

    def __init__(
        self,
        run: ActiveRun,
        log: RunLog,
        due: DueCallbacks,
        observer: AttachedObserver,
        step: int | None,
        verbose: bool | None,
    ) -> None:
        self._run, self._log, self._due, self._observer = run, log, due, observer
        self._step = run.last_step = step
        self._verbose = verbose
        self._logged: LoggedRun | None = None
        self._without_state: set[str] = set()
        self._findings_state: Mapping[str, Any] | None = None
        self._has_state = self._auto = False
        self._known = step
        self._kept_step: int | None = None  # of the state that was kept beside the log
        self._occasions_step = -1

    @property
    def first_step(self) -> int | None:
        """Return the first step that is logged anew; None: the log begins with this run."""
        return None if self._step is None else self._step + 1

    def find_logged(self, log_dir: str | os.PathLike[str], *, auto: bool) -> None:
        """Find the log that this run goes on with, if there is one.

        Args:
            log_dir: Where it is.
            auto: Find out from where the run goes on, and with which state.
        """
        self._logged, self._auto = logged_run(log_dir), auto
        if self._logged is None or not auto:
            return
        if self._step is None:
            self._step = self._run.last_step = self._logged.last_step
        show(
            f"ncp_callbacks: {self._logged.directory} has a log up to step "
            f"{self._logged.last_step:,}, which goes on after step {self._step:,}",
            verbose=self._verbose,
        )

    def go_on(self, step: int, opening: Sequence[Record]) -> None:
        """Let the log that was found go on with a step, the first that is made now.

        Later calls do nothing, and neither do those without such a log.

        Args:
            step: The step.
            opening: The records that open the log.
        """
        logged, self._logged = self._logged, None
        if logged is None:
            return
        if self._auto:
            self._take_up(logged, step, opening)
        self._catch_up(logged, step)

    def _take_up(self, logged: LoggedRun, step: int, opening: Sequence[Record]) -> None:
        """Hide what is made once more, and take up the state of the snapshot before."""
        if self._run.last_step is not None and step <= self._run.last_step:
            show(
                f"ncp_callbacks: the training goes on with step {step:,}: what was logged for it "
                "and for later steps is replaced",
                verbose=self._verbose,
            )
            self._log.rewind(step, opening)
        remove_states(logged.directory, step)
        state, notes = logged.state_before(step, self._log.fingerprint)
        for note in notes:
            self._log.report(note)
        try:
            # One that the user has saved beside the checkpoint belongs to it.
            if state is not None and not self._has_state:
                self.load_state_dict(state)
                self._kept_step = state.get("step")
                self.report_missing_state()
        except Exception as error:  # A callback of the user's may raise anything.
            if raised_by_signal_handler(error):
                raise
            self._log.fail("the state that was kept beside the log can't be taken up", error)
        self._log.take_points(logged.loop_points(step))

    def _catch_up(self, logged: LoggedRun, step: int) -> None:
        """Let the schedules go on as if nothing had happened, and report what is missing.

        Args:
            logged: The log.
            step: The first step that is made now.
        """
        # Where the log was rewound, the training goes on from before the step that was passed.
        is_rewound = self._auto and self._known is not None and self._known >= step
        known = None if is_rewound else self._known
        lines = due_steps(logged.run, step if known is None else known + 1)
        newest = lines[-1] if lines else DueStep(step - 1, None, snapshot=False, occasions={})
        last = max(step - newest.stride, newest.step) if known is None else known
        if lines and newest.step > self._occasions_step:
            self._due.load_state_dict(newest.occasions)
        begin = max(newest.step, self._occasions_step)
        steps = range(begin + newest.stride, last + 1, newest.stride)
        if lines or not self._due.is_begun:  # A trainer's hook may know what comes before.
            self._due.starts_after(begin if steps else last)
        due, train = self._due.catch_up(steps if len(steps) < _MAX_STEPS else ())
        self._run.last_step = last
        taken = [line.step for line in lines if line.snapshot]
        lacking = what_is_lacking(logged.run, last + 1, [*taken, *due], train)
        goes_on = f"what is compared with the snapshot before goes on from step {self._kept_step}"
        if lacking:
            is_older = self._kept_step is not None and self._kept_step < max((-1, *taken, *due))
            then = f"; {goes_on}" if is_older else ""
            self._log.report(
                f"the run was killed before all was on the disk: the log lacks {lacking}{then}. To "
                "lose nothing, call monitor.state_dict() before each checkpoint, which waits for it"
            )
        analysed = analysed_steps(logged.run, last + 1)
        if self._kept_step is not None and analysed and analysed[-1] > self._kept_step:
            self._log.report(
                f"no state of step {analysed[-1]} is kept beside the log: {goes_on}. Save "
                "monitor.state_dict() with each checkpoint, and pass it to load_state_dict"
            )

    def state_dict(self, *, wait: bool) -> dict[str, Any]:
        """Return what a resumed run needs, once all that it doesn't make again is on the disk.

        Args:
            wait: Let the snapshots that were handed over be analysed, and their records be written
                first.
        """
        known = self._observer.state(wait=wait)
        names = {c.name for c in self._observer.callbacks}
        state = {
            "step": self._run.last_step,
            "callbacks": {name: state for name, state in known.items() if name in names},
            "occasions": self._due.state_dict(),
            "findings": self._log.findings_state(),
        }
        if wait:
            if not self._observer.wait_for_pictures():
                self._log.report(
                    f"the observer's process made no progress, so that the state of step "
                    f"{self._run.last_step} was returned before all was on the disk: a run that "
                    "goes on from it may lack analyses and pictures",
                    topic="state",
                )
            self._log.flush()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned.

        Raises:
            ValueError: If it isn't such a state, or a callback can't take its part.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get("callbacks"), Mapping):
            raise ValueError(
                "this is not a state of a monitor: pass the dict that monitor.state_dict() returned"
            )
        self._has_state = True
        known, step = state["callbacks"], state.get("step")
        if self._run.last_step is None or (step is not None and step > self._run.last_step):
            self._run.last_step = step
        if "occasions" in state:
            self._due.load_state_dict(state["occasions"])
            self._occasions_step = -1 if step is None else step
        self._findings_state = state.get("findings")
        self.load_findings()
        keeping = {c.name for c in self._observer.callbacks if _keeps_state(c)}
        self._without_state |= keeping - set(known)
        self._observer.load_state(known)

    def load_findings(self) -> None:
        """Hand a loaded state of the findings over, once there are both."""
        if self._findings_state is not None and self._log.findings is not None:
            self._log.findings.load_state_dict(self._findings_state)
            self._findings_state = None

    def report_missing_state(self) -> None:
        """Report the callbacks that a loaded state has no part for."""
        for callback in self._observer.callbacks:
            if callback.name in self._without_state:
                self._log.report(
                    f"{callback.name}: the state that was loaded has no part for it; it starts anew"
                )


def checked_resume_step(resume_step: Any, log_dir: Any) -> int | None:
    """Return the last step that was done before the interruption, or None.

    Raises:
        ValueError: If it is no step, or there is no directory of the run.
    """
    if resume_step is None:
        return None
    whole = as_whole(resume_step)
    if whole is None or whole < 0:
        raise ValueError(f"resume_step={resume_step!r}: pass the last step done, 0 or more")
    if log_dir is None:
        raise ValueError(
            "resume_step= continues the run in log_dir=; with writer=, make the writer "
            "with purge_step= or first_step= instead"
        )
    return whole


def checked_resume(resume: Any, log_dir: Any) -> Literal["auto"] | None:
    """Return how the run is resumed.

    Raises:
        ValueError: If it is something else, or there is no directory of the run.
    """
    if resume not in ("auto", None):
        raise ValueError(f"resume={resume!r}: pass 'auto' or None")
    if resume == "auto" and log_dir is None:
        raise ValueError("resume='auto' goes on with the run in log_dir=: pass log_dir=")
    return "auto" if resume == "auto" else None


def _keeps_state(callback: Callback) -> bool:
    """Tell if a callback has a state that an interruption must keep."""
    return type(callback).state_dict is not Callback.state_dict or bool(callback.state_dict())
