"""Attach an observer to a model in training: place it, hand it snapshots, replace it if it is lost.

observer = AttachedObserver(subject, held_out, callbacks, settings, log)
observer.begin(background=None)      # copies the model and runs every callback once
observer.analyse(step, due)          # at due steps
observer.close()
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx

from ..callback import Callback
from ..errors import one_line
from ..held_out import HeldOutBatch
from ..model import CopyError, ModelCopy, ModelError, ModelRunner, Subject
from ..model.compiled_weights import compiled_weights_notes
from ..model.model_copy import check_copy
from ..overhead import Overhead
from ..records import Scalar
from ..run_log import RunLog
from ..signal_handlers import raised_by_signal_handler
from . import placement
from .background import BackgroundObserver, Start
from .delivery import Delivery
from .in_loop import InLoopObserver
from .observer import DryRun, Observer, Request, Settings, plain
from .snapshot import SnapshotLoader, SnapshotReader

__all__ = ["AttachedObserver", "Beginning"]

# The loop's waiting for the observer is worth a note from this many seconds and this share of the
# wall time on.
_LONG_WAIT, _LARGE_SHARE = 1.0, 0.02


@dataclass(frozen=True, eq=False)
class Beginning:
    """What is known once the observer is attached.

    Attributes:
        dry_run: What running every callback once showed.
        runner: Runs the copied model.
        place: Where the observer runs, and why, for the run card.
    """

    dry_run: DryRun
    runner: ModelRunner
    place: str


class AttachedObserver:
    """The observer of one run, wherever it runs.

    Args:
        subject: The user's model and functions, which are only read.
        held_out: The batch that every analysis runs on.
        callbacks: What to analyse.
        settings: How.
        log: Takes what comes back.
        overhead: Accounts for the time that the loop spends here.
        device: Device of the observer's process, or None.
        verbose: As for the monitor.

    Attributes:
        current: The observer that gets the snapshots, or None before :meth:`begin`.
        disabled: Names of callbacks that are not asked any more.
    """

    def __init__(
        self,
        subject: Subject,
        held_out: HeldOutBatch,
        callbacks: Iterable[Callback],
        settings: Settings,
        log: RunLog,
        *,
        overhead: Overhead | None = None,
        device: Literal["cpu", "gpu"] | None = None,
        verbose: bool | None = None,
    ) -> None:
        self.current: InLoopObserver | BackgroundObserver | None = None
        self.disabled: set[str] = set()
        self._subject, self._held_out = subject, held_out
        self._callbacks, self._settings = list(callbacks), settings
        self._log, self._device = log, device
        self._overhead = overhead or Overhead()
        self._delivery = Delivery(
            log, self.disabled, raise_errors=settings.raise_errors, verbose=verbose
        )
        self._reader = SnapshotReader(subject, as_bytes=False)
        self._memory_per_sequence: float | None = None
        self._dropped = 0  # by a process that was replaced
        self._held: Request | None = None
        self._began = time.monotonic()

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """The callbacks that are still enabled."""
        return tuple(c for c in self._callbacks if c.name not in self.disabled)

    def parameters(self) -> Any:
        """Return the parameters of the model in training."""
        return self._subject.model.parameters()  # type: ignore[no-untyped-call]

    @property
    def in_background(self) -> bool:
        """Whether a process of its own analyses."""
        return isinstance(self.current, BackgroundObserver)

    @property
    def dropped(self) -> int:
        """Number of snapshots that were not analysed."""
        now = self.current.dropped if isinstance(self.current, BackgroundObserver) else 0
        return self._dropped + now

    # ---- placing

    def begin(self, *, background: bool | None) -> Beginning:
        """Copy the model, run every callback once on the copy, and start the observer.

        Args:
            background: As for the monitor.

        Raises:
            RuntimeError: If a callback fails.
            CopyError: If the model can't be copied.
            ModelError, TypeError, ValueError: If model, batch and settings don't fit each other.
        """
        snapshot = self._reader.read()
        copied = ModelCopy()
        SnapshotLoader(copied).load(snapshot)
        check_copy(self._subject, copied)
        for note in compiled_weights_notes(self._subject):
            self._log.report(note)
        observer = Observer(copied, self._held_out, self._callbacks, self._settings)
        # An observer that is started later finds the state of a training batch in the model.
        self._settings = dataclasses.replace(self._settings, state=observer.runner.state)
        dry_run = observer.dry_run()
        self.disabled.update(dry_run.not_applicable)
        # The process only now: a configuration that fails must not leave one behind.
        place = self._place(observer, snapshot.nbytes, background)
        self._began = time.monotonic()
        return Beginning(dry_run, observer.runner, place)

    def _place(self, observer: Observer, nbytes: int, background: bool | None) -> str:
        """Start the observer where it is to run, and return where and why."""
        why: str | None = None
        if background is False:
            why = "background=False"
        elif background is None:
            why = placement.why_in_loop(nbytes)
            if why is None and self._settings.raise_errors:
                why = "on_error='raise'"
        else:
            why = placement.no_interpreter()
            if why is not None:
                self._log.report(f"analyses run in the training loop: {why}")
        if why is None:
            try:
                self._start_process(observer.memory_per_sequence)
                return "in a process of its own"
            except CopyError as error:
                if background:
                    raise
                why = str(error)
            except OSError as error:
                why = f"no process could be started: {one_line(error)}"
            self._log.report(f"analyses run in the training loop: {why}")
        self._reader.restart(as_bytes=False)
        self.current = self._in_loop(observer)
        return f"in the training loop: {why}"

    def _in_loop(self, observer: Observer) -> InLoopObserver:
        deliver, states = self._delivery.analysis, self._log.keeps_states
        return InLoopObserver(observer, deliver, states=states)

    def _start_process(self, memory_per_sequence: float | None) -> None:
        self._memory_per_sequence = memory_per_sequence
        self._reader.restart(as_bytes=True)
        snapshot = self._reader.read(extra=(self._held_out, list(self.callbacks)))
        missing = placement.unimportable(snapshot.skeleton or b"")
        if missing is not None:
            raise CopyError(
                f"another process can't import the module {missing!r}, of which the model or a "
                "callback is a part, or would train again by that: let sys.path have its folder, "
                "and train in a function that is called after the import; or pass background=False"
            )
        process = BackgroundObserver(self._delivery)
        state = {c.name: plain(c.state_dict()) for c in self.callbacks}
        if isinstance(self.current, BackgroundObserver):
            state.update(self.current.known_state)
        settings = dataclasses.replace(self._settings, raise_errors=False, isolated=True)
        process.start(Start(snapshot, settings, state, memory_per_sequence, self._device))
        self.current, self._delivery.draw = process, process.draw

    def _revive(self) -> bool:
        """Replace a process that is lost, once; tell if there is an observer."""
        lost = self.current
        if not isinstance(lost, BackgroundObserver) or not lost.lost:
            return lost is not None
        if not self._delivery.may_restart:
            return False
        self._delivery.may_restart = False
        lost.close(0.0)
        try:
            if lost.unfit:
                self._observe_in_loop()
            else:
                self._start_process(self._memory_per_sequence)
        except (CopyError, ModelError, OSError) as error:
            self._log.fail("the observer can't be started again", error)
            return False
        self._dropped += lost.dropped
        return True

    def _observe_in_loop(self) -> None:
        self._reader.restart(as_bytes=False)
        copied = ModelCopy()
        SnapshotLoader(copied).load(self._reader.read())
        observer = Observer(copied, self._held_out, self.callbacks, self._settings)
        self._reader.restart()
        self.current = self._in_loop(observer)
        self._delivery.draw = None
        self._log.report("analyses run in the training loop from now on")

    # ---- every due step

    def analyse(self, step: int, due: Sequence[Callback], *, finish: bool = False) -> None:
        """Read the model and hand a snapshot over.

        What goes wrong is reported, and raised only with ``raise_errors``.

        Args:
            step: Number of training steps done.
            due: The callbacks to ask.
            finish: Ask for what they tell at the end of the run.

        Raises:
            Exception: What a signal handler of the user's raised meanwhile.
        """
        with self._reading(step):
            # MLX computes when it must: the training step's own work is not the monitor's.
            self._reader.evaluate_pending()
            with self._overhead.occupying():
                self._hand_over(step, due, finish=finish)
        for name in self._reader.unreadable:
            self._log.report(
                f"{name} can't be read: a transformation such as mx.compile or mx.vmap left it "
                "behind without a value. Analyses use the value that it had before, or zeros"
            )
        self._report_waiting(step, finish=finish)

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Let an error of reading the model cost the snapshot and nothing else."""
        try:
            yield
        except BaseException as error:
            # The observer may not have got what was read: the next snapshot is whole.
            self._reader.restart()
            passes = self._settings.raise_errors or raised_by_signal_handler(error)
            if passes or not isinstance(error, Exception):
                raise
            self._log.fail(f"no snapshot could be taken at step {step}", error)

    def _hand_over(self, step: int, due: Sequence[Callback], *, finish: bool) -> None:
        if not self._revive():
            self._dropped += 1
            return
        assert self.current is not None
        if self._held is not None:
            # The observer doesn't get what was read: this snapshot is whole.
            self._held = None
            self._reader.restart()
        self.current.submit(self._request(step, due, finish=finish))

    def _request(self, step: int, due: Sequence[Callback], *, finish: bool = False) -> Request:
        snapshot = self._reader.read()
        names = tuple(callback.name for callback in due)
        return Request(step, time.time(), snapshot, names, finish, mx.get_peak_memory())

    def hold(self, step: int, due: Sequence[Callback]) -> None:
        """Read a snapshot that is analysed if none is due later, by :meth:`analyse_held`.

        Args:
            step: The training step.
            due: Callbacks that it is for; nothing is read without any.
        """
        if not due:
            return
        with self._reading(step):
            self._reader.evaluate_pending()
            # It is read once, as the snapshot on entering: most runs have a due step and drop it.
            self._held = self._request(step, due)

    def analyse_held(self) -> bool:
        """Let the snapshot that :meth:`hold` read be analysed, and return whether there is one."""
        held, self._held = self._held, None
        lost = isinstance(self.current, BackgroundObserver) and self.current.lost
        if held is None or self.current is None or lost:
            self._reader.restart()
            return held is not None
        self.current.submit(held)
        return True

    def _report_waiting(self, step: int, *, finish: bool) -> None:
        if self.dropped:
            what = (
                "Snapshots that were not analysed, because the observer was lost or made no "
                "progress"
            )
            self._log.write(step, [Scalar("monitor/dropped_snapshots", self.dropped, what)])
        # What comes last is waited for after the loop.
        if finish or not isinstance(self.current, BackgroundObserver):
            return
        waited = self.current.waited
        share = waited / max(time.monotonic() - self._began, 1e-9)
        if waited > _LONG_WAIT and share > _LARGE_SHARE:
            self._log.report(
                f"by step {step} the loop has waited {waited:.1f} s for the observer, {share:.0%} "
                "of the wall time, as the observer can't keep up: analyse less often (every=...), "
                "fewer sequences, or fewer callbacks",
                topic="waited",
            )

    def raise_delivered(self) -> None:
        """Raise the error that came from another process, if there is one."""
        self._delivery.raise_kept()

    # ---- state and end

    def state(self, *, wait: bool) -> dict[str, Any]:
        """Return what a resumed run needs of each callback, by name.

        Args:
            wait: Let the snapshots that were handed over be analysed first.
        """
        if self.current is None:
            return {c.name: plain(c.state_dict()) for c in self._callbacks}
        return self.current.state() if wait else self.current.known_state

    def wait_for_pictures(self) -> bool:
        """Wait until the observer's process has drawn what it got; return false if it is stuck."""
        process = self.current
        return not isinstance(process, BackgroundObserver) or process.wait_for_pictures()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Give the callbacks what :meth:`state` returned.

        Raises:
            ValueError: If a callback can't take its part.
        """
        for callback in self.callbacks:
            if callback.name not in state:
                continue
            try:
                callback.load_state_dict(state[callback.name])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{callback!r} can't take up its part of the state: "
                    f"{type(error).__name__}: {error}. Pass the state of a monitor with the same "
                    "callbacks"
                ) from error
        if isinstance(self.current, BackgroundObserver):
            self.current.load_state(state)

    def close(self, grace: float | None = None) -> None:
        """Wait for outstanding snapshots, end the observer, and report what was dropped.

        Args:
            grace: Seconds that it may take; None: as long as there is progress.
        """
        try:
            if self.current is not None:
                self.current.close(grace)
        finally:
            if self.dropped:
                self._log.report(
                    f"{self.dropped} snapshot{'s' * (self.dropped != 1)} not analysed: the run "
                    "ended, the observer was lost, or there was no room for them",
                    topic="dropped snapshots",
                )
