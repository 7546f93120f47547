"""The training loop's single point of contact.

    with ncp.Monitor(model, held_out, log_dir="runs/cfc-seed0") as monitor:
        for step, (x, dt, y) in enumerate(batches, start=1):
            loss = train_step(x, dt, y)
            monitor.on_step_end(step, loss=loss)

Entering copies the model and runs every callback once on the copy, on two sequences, so that errors
in the configuration show before the first step. Afterwards nothing that goes wrong in analysing or
writing ends the training: it is reported once, and the callback or the writer that failed is
disabled.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import logging
import math
import operator
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import mlx.nn as nn

from .callback import Callback
from .callbacks.sets import callback_set
from .console import closing, opening, show
from .errors import one_line
from .fingerprint import fingerprint
from .held_out import HeldOutBatch
from .model import At, CopyError, Forward, ModelCopy, ModelError, Subject, TargetLike
from .model.model_copy import check_copy
from .observation import Need
from .observer import placement
from .observer.background import BackgroundObserver, Start
from .observer.in_loop import InLoopObserver
from .observer.observer import Analysis, DryRun, Observer, Request, Settings, plain
from .observer.snapshot import SnapshotLoader, SnapshotReader
from .overhead import Overhead
from .ranks import rank
from .records import Figure, Picture, Record, Scalar, Text
from .run_card import run_card
from .run_log import RunLog
from .scheduling import Schedule, ScheduleLike, as_schedule, every
from .signal_handlers import raised_by_signal_handler
from .writers import TensorBoardWriter, Writer, as_writer
from .writers.signals import ClosesOnSignals

if TYPE_CHECKING:
    import tensorboardX

__all__ = ["Monitor"]

_LOG = logging.getLogger("ncp_callbacks")


class Monitor:
    """Analyses a model while it trains, and logs what it finds.

    The model is read, and never run or changed: training with and without the monitor is
    bit-identical. At a due step the monitor reads what has changed in the model, and hands it to an
    observer, which analyses a copy of the model and draws the pictures.

    Args:
        model: Any ``mlx.nn.Module``.
        held_out: The batch that every analysis runs on.
        callbacks: A list of callbacks, or the name of a set. None and ``"standard"`` are
            :class:`GradientAttribution`, :class:`TimeSensitivity`, :class:`StateTransitions`,
            :class:`StateSpace` and :class:`BackboneActivations`. ``"light"`` is
            :class:`GradientAttribution` and :class:`StateTransitions` on 16 sequences. ``"full"``
            is every callback; the expensive ones run at every tenth snapshot.
        log_dir: Directory of this run's TensorBoard log. One that holds a run already is left
            alone, and this run gets a directory with a number.
        writer: A :class:`Writer` or ``tensorboardX.SummaryWriter`` to use instead of ``log_dir``.
            It is flushed at the end and stays open; only a signal that ends the process closes it.
        every: Schedule of the callbacks that have no ``every=`` of their own: a number of steps, a
            schedule, or any callable ``step -> bool``.
        train_every: Schedule of the numbers that ``on_step_end`` is given. None: they are logged at
            the steps of the callbacks' schedules.
        target: What is attributed. ``"prediction"`` is the only output, or with several outputs the
            largest one of each sequence. A number chooses an output. ``"loss"`` is the loss on the
            held-out targets. A callable takes all outputs and the held-out targets, and returns one
            number for each of the ``B`` sequences, ``(B,)``.
        at: The time step of the target: the ``"last"`` real one, the ``"mean"`` over real time
            steps, or an index.
        forward: ``callable(model, inputs, time_delta) -> outputs``, for a model that is not called
            as ``model(inputs)`` or with elapsed time under one of the usual keywords.
        cells: Module paths or globs of the recurrent cells, if they aren't found.
        layers: Module paths or globs of the backbone's layers, if they aren't found.
        chunk_size: Number of sequences that run through the model at once. None: all, or as many as
            need no more than 256 MB or twice the memory that training has needed. Last digits can
            depend on it.
        max_overhead: Share of the wall time, such as 0.02, that the monitor may take of the loop.
            Snapshots that would take more are skipped, which is reported and counted. None: no
            bound.
        background: True: the observer runs in a process of its own, at a lower priority. False: it
            runs in the training loop, which waits for it. None: in a process of its own, unless
            there is one core only, the model takes more than a quarter of the memory, the model or
            a callback can't be sent to another process, or ``on_error="raise"``. The log's run card
            tells where it runs and why.
        make_model: ``callable() -> model``, for a model that holds something that can't be copied.
            It builds a model of the same structure, which is then given the arrays of yours; other
            values that change during training are not sent.
        observer_device: Device on which the observer's process computes, ``"cpu"`` or ``"gpu"``.
            None: MLX's default.
        log_on_all_ranks: True: every process of a group (of ``mlx.launch``, MPI or SLURM) logs, for
            processes that train different models. False: rank 0 logs, and the others do nothing.
        verbose: True: print where the log is and how to open it, and a summary at the end. False:
            don't. None: print to a terminal or a notebook. Both are logged at INFO in any case.
        run_config: Hyper-parameters of the run, for TensorBoard's HParams.
        resume_step: The last step that was done of the run in ``log_dir``, which goes on; pass its
            saved state to :meth:`load_state_dict`. TensorBoard hides what was logged for later
            steps.
        on_error: ``"disable"``: a callback that fails is disabled and training goes on.
            ``"raise"``: its error is raised; from a process of its own, at one of the next calls.

    Raises:
        TypeError, ValueError: If an argument has the wrong type or value.
    """

    def __init__(
        self,
        model: nn.Module,
        held_out: HeldOutBatch,
        callbacks: Iterable[Callback] | str | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        writer: Writer | tensorboardX.SummaryWriter | None = None,
        every: ScheduleLike = 100,
        train_every: ScheduleLike | None = None,
        target: TargetLike = "prediction",
        at: At = "last",
        forward: Forward | None = None,
        cells: str | Sequence[str] | None = None,
        layers: str | Sequence[str] | None = None,
        chunk_size: int | None = None,
        max_overhead: float | None = None,
        background: bool | None = None,
        make_model: Callable[[], nn.Module] | None = None,
        observer_device: Literal["cpu", "gpu"] | None = None,
        log_on_all_ranks: bool = False,
        verbose: bool | None = None,
        run_config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
        on_error: Literal["disable", "raise"] = "disable",
    ) -> None:
        if (log_dir is None) == (writer is None):
            raise TypeError(
                "pass either log_dir='runs/name', a directory for this run's log, or writer=, one "
                f"that exists; {'neither' if log_dir is None else 'both'} was passed"
            )
        if on_error not in ("disable", "raise"):
            raise ValueError(f"on_error={on_error!r}: pass 'disable' or 'raise'")
        if observer_device not in (None, "cpu", "gpu"):
            raise ValueError(f"observer_device={observer_device!r}: pass 'cpu', 'gpu' or None")
        if make_model is not None and not callable(make_model):
            raise TypeError(
                f"make_model is a {type(make_model).__name__}; pass a function that builds a model"
            )
        if not isinstance(model, nn.Module):
            called = f": write {model.__name__}(...)" if isinstance(model, type) else ""
            raise TypeError(f"model is a {type(model).__name__}; pass an mlx.nn.Module{called}")
        if run_config is not None and not isinstance(run_config, Mapping):
            raise TypeError(f"run_config is a {type(run_config).__name__}; pass a mapping")
        if max_overhead is not None and not 0 < max_overhead <= 1:
            raise ValueError(
                f"max_overhead={max_overhead!r}: pass a share of the wall time, such as 0.02, or "
                "None for no bound"
            )
        if chunk_size is not None and _whole(chunk_size, 1) is None:
            raise ValueError(f"chunk_size={chunk_size!r}: pass 1 or more sequences, or None")
        if resume_step is not None:
            if _whole(resume_step, 0) is None:
                raise ValueError(f"resume_step={resume_step!r}: pass the last step done, 0 or more")
            if writer is not None:
                raise ValueError(
                    "resume_step= continues the run in log_dir=; with writer=, make the writer "
                    "with purge_step= or first_step= instead"
                )
            resume_step = operator.index(resume_step)
        self._held_out = held_out
        self._callbacks = as_callbacks(callbacks)
        self._log_dir, self._given_writer = log_dir, writer
        self._every = as_schedule(every)
        self._train_every = (
            None if train_every is None else as_schedule(train_every, what="train_every")
        )
        self._subject = Subject(
            model, _callable(forward), target if callable(target) else None, make_model
        )
        self._settings = Settings(
            "prediction" if callable(target) else target,
            at,
            cells,
            layers,
            chunk_size,
            raise_errors=on_error == "raise",
        )
        self._background, self._device = background, observer_device
        self._overhead = Overhead(max_overhead)
        self._verbose, self._on_error = verbose, on_error
        self._run_config = dict(run_config or {})
        self._resume_step = resume_step
        self._rank = 0 if log_on_all_ranks else rank()
        self._state: Literal["new", "open", "closed"] = "new"
        self._ended = False
        self._log = RunLog()
        self._writer: Writer | None = None
        self._reader: SnapshotReader | None = None
        self._observer: InLoopObserver | BackgroundObserver | None = None
        self._restarted = False
        self._dropped = 0
        self._on_signals: ClosesOnSignals | None = None
        self._groups: list[tuple[Schedule, list[Callback]]] = []
        self._disabled: set[str] = set()
        self._without_state: set[str] = set()
        self._raised: Exception | None = None
        self._last_step: int | None = resume_step
        self._memory_per_sequence: float | None = None
        self._occasions: dict[str, int] = {}
        self._final_state: dict[str, Any] = {}
        self._entered = 0.0
        self._steps = 0
        self._pid = os.getpid()
        self._exit_hook = functools.partial(_close_at_exit, weakref.ref(self))

    # ---- life

    def start(self) -> Monitor:
        """Begin the run, as entering the ``with`` block does; :meth:`close` ends it.

        The model is copied, and every callback runs once on the copy, on two sequences.

        Raises:
            RuntimeError: If this monitor was started before, or a callback fails in the dry run.
            CopyError: If the model can't be copied.
            ModelError, TypeError, ValueError: If the arguments don't fit each other.
        """
        if self._state != "new":
            raise RuntimeError(
                f"this monitor is {self._state} already: a run's log is written once. Make a new "
                "Monitor for another run; in a notebook, run the cell that makes it again"
            )
        if self._rank:
            show(
                f"ncp_callbacks: rank {self._rank} of a group logs nothing, rank 0 does. Pass "
                "log_on_all_ranks=True for processes that train different models",
                verbose=False,
            )
        else:
            self._begin()
        self._state = "open"
        return self

    __enter__ = start

    def _begin(self) -> None:
        self._reader = SnapshotReader(self._subject, as_bytes=False)
        copied = ModelCopy()
        snapshot = self._reader.read()
        SnapshotLoader(copied).load(snapshot)
        check_copy(self._subject, copied)
        observer = Observer(copied, self._held_out, self._callbacks, self._settings)
        dry_run = observer.dry_run()
        self._disabled = set(dry_run.not_applicable)
        self._groups = _grouped(self.callbacks, self._every)
        # The process only now: a configuration that fails must not leave one behind.
        place = self._place(observer, snapshot.nbytes)
        for note in dry_run.notes:
            self._log.report(note)
        self._report_missing_state()
        card = run_card(
            observer.runner,
            self.callbacks,
            self._every,
            self._run_config,
            self._log.notes,
            place,
        )
        try:
            texts = [
                Text("about/run", card),
                Text(
                    "about/fingerprint",
                    fingerprint(self._held_out, self.callbacks, observer.runner.target.name),
                ),
            ]
            self._open_log(texts, dry_run)
        except BaseException:
            self._close_observer(0.0)
            raise
        self._entered = time.perf_counter()

    def _open_log(self, texts: Sequence[Text], dry_run: DryRun) -> None:
        # Only now: a configuration that fails must not leave an empty run behind.
        self._writer = self._open_writer()
        self._log.rehearse(dry_run.records)
        self._log.open(self._writer, self._run_config)
        step = 0 if self._resume_step is None else self._resume_step + 1
        self._log.last_step = step
        self._log.write(step, texts)
        self._on_signals = ClosesOnSignals(self._close_on_signal)
        # After the writer's: what is registered last runs first.
        atexit.register(self._exit_hook)
        pictures = [r.tag for r in dry_run.records if isinstance(r, Figure)]
        show(opening(self.log_dir, pictures), verbose=self._verbose)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close(finish=exc_type is None)

    def close(self) -> None:
        """End the run: wait for outstanding snapshots and write what is left.

        Ctrl-C stops the waiting, not the log. Closing again does nothing.
        """
        self._close(finish=True)

    def _close(self, *, finish: bool) -> None:
        if self._state != "open" or os.getpid() != self._pid:
            return
        try:
            self._state = "closed"
            if finish and self._writer is not None:
                self._finish()
        finally:
            self._end()
        if finish:
            self._raise_delivered()

    def _finish(self) -> None:
        """Take a last snapshot for callbacks that have something to tell at the end."""
        last = [c for c in self.callbacks if type(c).finish is not Callback.finish]
        if last and self._last_step is not None and self._steps:
            self._analyse(self._last_step, last, finish=True)

    def _end(self, grace: float | None = None) -> None:
        """Close everything, also when an interrupt ends the waiting.

        Args:
            grace: Seconds for what is outstanding; None: as long as it takes.
        """
        if self._writer is None or self._ended:
            return
        end = None if grace is None else time.monotonic() + grace
        try:
            self._close_observer(grace)
        finally:
            if self._observer is not None:
                self._final_state = self._observer.known_state
            atexit.unregister(self._exit_hook)
            if self._overhead.skipped and self._last_step is not None:
                # Those since the last snapshot count, too.
                self._log.write(self._last_step, self._overhead.skips())
            if self._given_writer is self._writer and end is None:
                self._log.flush()  # the user's, who may go on with it
            else:
                self._log.close(None if end is None else max(1.0, end - time.monotonic()))
            self._ended = True
            if self._on_signals is not None:
                self._on_signals.undo()
            self._show_closing()

    def _close_observer(self, grace: float | None = None) -> None:
        try:
            if self._observer is not None:
                self._observer.close(grace)
        finally:
            dropped = self._dropped_snapshots
            if dropped:
                self._log.report(
                    f"{dropped} snapshot{'s' * (dropped != 1)} not analysed: the run ended, the "
                    "observer was lost, or there was no room for them",
                    topic="dropped snapshots",
                )

    @property
    def _dropped_snapshots(self) -> int:
        now = self._observer.dropped if isinstance(self._observer, BackgroundObserver) else 0
        return self._dropped + now

    def _close_on_signal(self, seconds: float) -> None:
        """Write what can be had; the process is about to end."""
        # Also where the end of the run was waiting: that would go on for too long now.
        self._state = "closed"
        self._end(grace=seconds)

    def _open_writer(self) -> Writer:
        if self._given_writer is not None:
            return as_writer(self._given_writer)
        assert self._log_dir is not None
        first = None if self._resume_step is None else self._resume_step + 1
        return TensorBoardWriter(self._log_dir, first_step=first)

    def _show_closing(self) -> None:
        if self._writer is None or not self._steps:
            return
        text = closing(
            self.log_dir,
            self._writer.tally,
            steps=self._steps,
            snapshots=self._overhead.snapshots,
            notes=len(self._log.notes),
            loop_seconds=self._overhead.seconds,
            seconds=time.perf_counter() - self._entered,
            failure=self._writer.failure,
        )
        show(text, verbose=self._verbose)

    @property
    def log_dir(self) -> str | None:
        """Directory of the log, where it is known; once started, the one really used."""
        if self._rank:
            return None
        if isinstance(self._writer, TensorBoardWriter):
            return str(self._writer.log_dir)
        given = getattr(self._given_writer, "logdir", self._log_dir)
        return None if given is None else os.fspath(given)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was reported so far: what was not found, skipped, or failed."""
        return self._log.notes

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """The callbacks that are still enabled."""
        return tuple(c for c in self._callbacks if c.name not in self._disabled)

    @property
    def in_background(self) -> bool:
        """Whether a process of its own analyses."""
        return isinstance(self._observer, BackgroundObserver)

    # ---- where the observer runs

    def _place(self, observer: Observer, nbytes: int) -> str:
        """Start the observer where it is to run, and return where and why."""
        why: str | None = None
        if self._background is False:
            why = "background=False"
        elif self._background is None:
            why = placement.why_in_loop(nbytes)
            if why is None and self._on_error == "raise":
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
                if self._background:
                    raise
                why = str(error)
                self._log.report(f"analyses run in the training loop: {why}")
            except OSError as error:
                why = f"no process could be started: {one_line(error)}"
                self._log.report(f"analyses run in the training loop: {why}")
        assert self._reader is not None
        self._reader.restart(as_bytes=False)
        self._observer = InLoopObserver(observer, self._take_analysis)
        return f"in the training loop: {why}"

    def _start_process(self, memory_per_sequence: float | None = None) -> None:
        assert self._reader is not None
        self._memory_per_sequence = memory_per_sequence
        self._reader.restart(as_bytes=True)
        snapshot = self._reader.read(extra=(self._held_out, list(self.callbacks)))
        process = BackgroundObserver(_Delivery(self))
        state = {c.name: plain(c.state_dict()) for c in self.callbacks}
        if isinstance(self._observer, BackgroundObserver):
            state.update(self._observer.known_state)
        settings = dataclasses.replace(self._settings, raise_errors=False, isolated=True)
        process.start(Start(snapshot, settings, state, memory_per_sequence, self._device))
        self._observer = process

    def _revive(self) -> bool:
        """Replace a process that is lost, once; tell if there is an observer."""
        lost = self._observer
        if not isinstance(lost, BackgroundObserver) or not lost.lost:
            return lost is not None
        if self._restarted:
            return False
        self._restarted = True
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
        assert self._reader is not None
        self._reader.restart(as_bytes=False)
        copied = ModelCopy()
        SnapshotLoader(copied).load(self._reader.read())
        observer = Observer(copied, self._held_out, self.callbacks, self._settings)
        self._reader.restart()
        self._observer = InLoopObserver(observer, self._take_analysis)
        self._log.report("analyses run in the training loop from now on")

    # ---- what comes back

    def _take_analysis(self, analysis: Analysis) -> None:
        records = list(analysis.records)
        for part, seconds in analysis.seconds.items():
            what = (
                "the passes that callbacks share" if part == "pass" else f"{part}, with its passes"
            )
            records.append(
                Scalar(f"monitor/seconds/{part}", seconds, f"Time of the analysis for {what}; s")
            )
        self._log.write(analysis.step, records, analysis.wall_time)
        for note in analysis.notes:
            self._log.report(note)
        for failure in analysis.failures:
            self._log.fail(failure.message, failure.details)
            if self._on_error == "raise" and self.in_background:
                self._raised = RuntimeError(f"{failure.message}\n{failure.details}")
        self._disabled |= analysis.disabled

    def _raise_delivered(self) -> None:
        error, self._raised = self._raised, None
        if error is not None:
            raise error

    # ---- interruptions

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to log what an uninterrupted one would; JSON can hold it.

        Save it beside the checkpoint, and pass it to ``load_state_dict`` of the monitor that
        continues the run with ``resume_step=``. Snapshots that wait are analysed first.
        """
        if self._observer is None:
            known = {c.name: plain(c.state_dict()) for c in self._callbacks}
        elif self._state == "open":
            known = self._observer.state()
        else:
            known = self._final_state
        names = {c.name for c in self.callbacks}
        return {
            "step": self._last_step,
            "callbacks": {name: state for name, state in known.items() if name in names},
            "occasions": dict(self._occasions),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` returned, before or after starting.

        Raises:
            ValueError: If it isn't such a state, or a callback can't take its part.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get("callbacks"), Mapping):
            raise ValueError(
                "this is no state of a monitor: pass the dict that monitor.state_dict() returned"
            )
        known, step = state["callbacks"], state.get("step")
        if self._last_step is None or (step is not None and step > self._last_step):
            self._last_step = step
        self._occasions = {str(k): int(v) for k, v in state.get("occasions", {}).items()}
        for callback in self.callbacks:
            if callback.name not in known:
                self._without_state.add(callback.name)
                continue
            try:
                callback.load_state_dict(known[callback.name])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{callback!r} can't take up its part of the state: "
                    f"{type(error).__name__}: {error}"
                ) from error
        if self._observer is not None and self.in_background:
            self._observer.load_state(known)
        if self._state == "open":
            self._report_missing_state()

    def _report_missing_state(self) -> None:
        for callback in self.callbacks:
            if callback.name in self._without_state:
                self._log.report(
                    f"{callback.name}: the state that was loaded has no part for it; it starts anew"
                )

    # ---- every step

    def on_step_end(self, step: int, **scalars: Any) -> None:
        """Report the end of a training step; call it after every one, outside compiled functions.

        Args:
            step: Number of steps done, increasing.
            scalars: Numbers or MLX scalars of the step (``loss=loss``), logged as ``train/<name>``
                when ``train_every`` is due and not evaluated otherwise.

        Raises:
            RuntimeError: Before :meth:`start` or after :meth:`close`.
            TypeError: If ``step`` is no whole number.
        """
        if self._state != "open":
            raise RuntimeError(
                f"on_step_end was called on a monitor that is {_STATES[self._state]}; write\n"
                "    with Monitor(model, held_out, log_dir=...) as monitor:\n"
                "        for step, batch in enumerate(batches, start=1): ...\n"
                "            monitor.on_step_end(step, loss=loss)"
            )
        if self._writer is None or os.getpid() != self._pid:
            return
        step = operator.index(step)
        if self._last_step is not None and step <= self._last_step:
            self._log.report(
                f"step {step} came after step {self._last_step}: let steps increase, or curves "
                "run backwards in TensorBoard",
                topic="steps",
            )
        self._last_step = step
        self._steps += 1
        fired = [group for schedule, group in self._groups if self._is_due(schedule, step)]
        due = [
            callback
            for group in fired
            for callback in group
            if callback.name not in self._disabled and self._has_turn(callback)
        ]
        train_due = self._is_due(self._train_every, step) if self._train_every else bool(fired)
        if not due and not train_due:
            return
        self._log.last_step = step
        if train_due:
            self._log.write(step, self._numbers({f"train/{k}": v for k, v in scalars.items()}))
        if due and self._affords():
            self._analyse(step, due)
            self._log.write(step, self._overhead.records())
            self._report_large_share()
        self._raise_delivered()

    def _analyse(self, step: int, due: Sequence[Callback], *, finish: bool = False) -> None:
        assert self._reader is not None
        try:
            # MLX computes when it must: the training step's own work is not the monitor's.
            self._reader.evaluate_pending()
            with self._overhead.occupying():
                if not self._revive():
                    self._dropped += 1
                    self._report_waiting(step, finish=finish)
                    return
                assert self._observer is not None
                snapshot = self._reader.read()
                names = tuple(callback.name for callback in due)
                peak = mx.get_peak_memory()
                self._observer.submit(Request(step, time.time(), snapshot, names, finish, peak))
        except BaseException as error:
            # The observer may not have got what was read: the next snapshot is whole.
            self._reader.restart()
            passes = self._on_error == "raise" or raised_by_signal_handler(error)
            if passes or not isinstance(error, Exception):
                raise
            self._log.fail(f"no snapshot could be taken at step {step}", error)
        for name in self._reader.unreadable:
            self._log.report(
                f"{name} can't be read: a transformation such as mx.compile or mx.vmap left it "
                "behind without a value. Analyses use the value that it had before, or zeros"
            )
        self._report_waiting(step, finish=finish)

    def _report_waiting(self, step: int, *, finish: bool) -> None:
        if self._dropped_snapshots:
            self._log.write(
                step,
                [
                    Scalar(
                        "monitor/dropped_snapshots",
                        self._dropped_snapshots,
                        "Snapshots that were not analysed, because the observer was lost or made "
                        "no progress",
                    )
                ],
            )
        # What comes last is waited for after the loop.
        slow = isinstance(self._observer, BackgroundObserver) and self._observer.waited > 1.0
        if slow and not finish:
            self._log.report(
                f"the loop has waited for the observer by step {step}, which can't keep up: "
                "analyse less often (every=...), fewer sequences, or fewer callbacks",
                topic="waited",
            )

    def _has_turn(self, callback: Callback) -> bool:
        """Tell if this occasion is one of those that the callback takes."""
        number = self._occasions.get(callback.name, 0)
        self._occasions[callback.name] = number + 1
        return number % callback.every_nth == 0

    def _affords(self) -> bool:
        if self._overhead.affords():
            return True
        self._log.report(
            "snapshots take more of the wall time than max_overhead allows: some are skipped, "
            "which monitor/skipped_snapshots counts. Analyse less often, or fewer sequences",
            topic="max_overhead",
        )
        return False

    def _report_large_share(self) -> None:
        if self._overhead.is_large:
            self._log.report(
                f"the monitor has taken {self._overhead.share:.0%} of the wall time so far: "
                "analyse less often (every=...), fewer sequences (a smaller held-out batch), or "
                "pass max_overhead=0.02",
                topic="large share",
            )

    def log_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Log numbers measured elsewhere, under tags of one's own: ``{"val/loss": 0.3}``.

        Raises:
            RuntimeError: Before :meth:`start` or after :meth:`close`.
            TypeError: If ``step`` is no whole number, or ``scalars`` no mapping.
        """
        if not isinstance(scalars, Mapping):
            raise TypeError(
                f"scalars is a {type(scalars).__name__}; pass a mapping: {{'val/loss': 0.3}}"
            )
        if self._state != "open":
            raise RuntimeError(
                f"log_scalars was called on a monitor that is {_STATES[self._state]}"
            )
        if self._writer is not None and os.getpid() == self._pid:
            self._log.write(operator.index(step), self._numbers(scalars))

    def _is_due(self, schedule: Schedule, step: int) -> bool:
        try:
            return schedule(step)
        except Exception as error:
            if self._on_error == "raise" or raised_by_signal_handler(error):
                raise
            stopped = [c.name for s, group in self._groups if s is schedule for c in group]
            self._log.fail(
                f"the schedule {schedule!r} failed at step {step}, which stops "
                f"{', '.join(stopped) or 'train/*'}",
                error,
            )
            self._disabled |= set(stopped)
            self._groups = [(s, group) for s, group in self._groups if s is not schedule]
            if schedule is self._train_every:
                self._train_every = ~every(steps=1)
            return False

    def _numbers(self, scalars: Mapping[str, Any]) -> list[Record]:
        records: list[Record] = []
        for tag, value in scalars.items():
            try:
                number = float(value.item() if hasattr(value, "item") else value)
                record = Scalar(tag, number)
            except Exception as error:
                if self._on_error == "raise" or raised_by_signal_handler(error):
                    raise
                shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
                self._log.report(
                    f"{tag} is a {type(value).__name__}{shape} and not logged; pass a number "
                    f"({type(error).__name__}: {error})",
                    topic=f"no number: {tag}",
                )
                continue
            if not math.isfinite(number):
                self._log.report(f"{tag} is {number}; it is logged as it is")
            records.append(record)
        return records


class _Delivery:
    """Takes what comes from the observer's process, for a monitor."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def analysis(self, analysis: Analysis) -> None:
        self._monitor._take_analysis(analysis)

    def picture(self, step: int, wall_time: float, picture: Picture) -> None:
        self._monitor._log.write(step, [picture], wall_time)

    def dropped_pictures(self, count: int) -> None:
        if count:
            what = "Pictures that took too long, failed, or came faster than they are drawn"
            self._monitor._log.write(
                self._monitor._log.last_step, [Scalar("monitor/dropped_pictures", count, what)]
            )

    def note(self, message: str) -> None:
        self._monitor._log.report(message)

    def waiting(self, what: str) -> None:
        show(
            f"ncp_callbacks: waiting for {what} (Ctrl-C stops the waiting, not the log)",
            verbose=self._monitor._verbose,
        )

    def fault(self, message: str, details: str, *, unfit: bool) -> None:
        if self._monitor._restarted:
            then = "it is not started again: analyses end here, the loop's own numbers go on"
        elif unfit:
            then = "the next snapshot is analysed in the training loop"
        else:
            then = "the next snapshot starts it again, once"
        self._monitor._log.fail(f"{message}; {then}", details)


_STATES = {"new": "not started", "open": "open", "closed": "closed"}


def _close_at_exit(monitor: weakref.ref[Monitor]) -> None:
    open_still = monitor()
    if open_still is not None:
        open_still.close()


def _grouped(
    callbacks: Iterable[Callback], default: Schedule
) -> list[tuple[Schedule, list[Callback]]]:
    """Group callbacks by schedule, so that one that counts time is asked once a step."""
    groups: dict[int, tuple[Schedule, list[Callback]]] = {}
    for callback in callbacks:
        schedule = callback.every or default
        groups.setdefault(id(schedule), (schedule, []))[1].append(callback)
    # A schedule without callbacks still decides when the loop's own numbers are logged.
    return list(groups.values()) or [(default, [])]


def as_callbacks(callbacks: Iterable[Callback] | str | None) -> list[Callback]:
    """Return the callbacks as a list.

    Raises:
        TypeError, ValueError: If they are no callbacks, or two have one name.
    """
    if callbacks is None or isinstance(callbacks, str):
        return callback_set("standard" if callbacks is None else callbacks)
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise TypeError(
            f"callbacks={callbacks!r}: pass a list of callbacks, the name of a set, or None"
        )
    listed = list(callbacks)
    for callback in listed:
        if isinstance(callback, type):
            raise TypeError(f"callbacks has a class, not an object: write {callback.__name__}()")
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks has a {type(callback).__name__}; pass objects of subclasses of "
                "ncp_callbacks.Callback"
            )
        _check_settings(callback)
    names = [c.name for c in listed]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        raise ValueError(
            f"two callbacks are called {doubled[0]!r}, so their tags would mix: pass one "
            f"name='{doubled[0]}_2'"
        )
    return listed


def _check_settings(callback: Callback) -> None:
    """Check what a user's class may have got wrong, before it fails in the midst of training."""
    needs: Any = callback.needs
    if not isinstance(needs, Iterable) or not all(isinstance(need, Need) for need in needs):
        raise TypeError(
            f"{callback!r}.needs is {needs!r}; write needs = frozenset({{Need.STATES, ...}})"
        )
    if not isinstance(needs, frozenset):
        callback.needs = frozenset(needs)
    every_nth: Any = callback.every_nth
    if not hasattr(every_nth, "__index__") or operator.index(every_nth) < 1:
        raise ValueError(f"{callback!r}.every_nth is {every_nth!r}; set 1 or more")


def _callable(forward: Any) -> Any:
    if forward is not None and not callable(forward):
        raise TypeError(
            f"forward is a {type(forward).__name__}; pass a callable "
            "(model, inputs, time_delta) -> outputs"
        )
    return forward


def _whole(value: Any, least: int) -> int | None:
    """Return a whole number of at least so much; None for anything else."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    number = operator.index(value)
    return number if number >= least else None
