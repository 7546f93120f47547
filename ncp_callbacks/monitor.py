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

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

import mlx.nn as nn

from .active_run import ActiveRun
from .arguments import as_callbacks, check_log, check_model, check_options
from .callback import Callback
from .callbacks.sets import CallbackSet
from .console import opening, show
from .due_callbacks import DueCallbacks
from .due_steps import DueStep
from .findings.finding import Finding
from .findings.run_findings import OVERVIEW
from .held_out import HeldOutBatch
from .keywords import checks_keywords
from .loop_numbers import LoopNumbers
from .loops import attached, iterate
from .model import At, Forward, Subject, TargetLike
from .observer.attached import AttachedObserver
from .observer.background import in_observer
from .observer.observer import Settings
from .overhead import Overhead
from .ranks import rank, why_silent
from .records import Figure, Record
from .resuming import Resuming, checked_resume, checked_resume_step
from .run_log import RunLog
from .run_names import named
from .run_opening import opening_records
from .scheduling import ScheduleLike, as_schedule
from .screen import Screen
from .writers import WriterLike, as_list, directory_of, open_writers, unsynced

__all__ = ["Monitor"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Monitor:
    """Analyse a model while it trains, and log what is found.

    The model is read, and never run or changed: training with and without the monitor is
    bit-identical. At a due step the monitor reads what has changed in the model, and hands it to an
    observer, which analyses a copy of the model and draws the pictures.

    Args:
        model: Any ``mlx.nn.Module``.
        held_out: The batch that every analysis runs on.
        callbacks: A list of callbacks, or the name of a set. None and ``"standard"`` are
            :class:`GradientAttribution`, :class:`FeatureRemoval`, :class:`TimeSensitivity`,
            :class:`StateTransitions`, :class:`StateSpace` and :class:`BackboneActivations`.
            ``"light"`` is
            :class:`GradientAttribution` and :class:`StateTransitions` on 16 sequences. ``"full"``
            is every callback; the expensive ones run at every tenth snapshot and at the end.
        log_dir: Directory of this run's TensorBoard log. One that holds a run already is left
            alone, and this run gets a directory with a number. ``~`` is the home directory. Names
            in braces are replaced by values of ``run_config``: ``"runs/{model}-s{seed}"``.
        writer: What else takes the records, one or a list: a sink, which is anything with
            ``write(step, records)`` (see :class:`BackgroundWriter`), a :class:`Writer`, or a
            ``tensorboardX.SummaryWriter`` in place of ``log_dir``. One that raises is reported and
            dropped. A sink is closed at the end; a writer is flushed and stays open, and only a
            signal that ends the process closes it.
        every: Schedule of the callbacks that have no ``every=`` of their own: a number of steps, a
            schedule, or any callable ``step -> bool``.
        train_every: Schedule of the numbers that ``on_step_end`` is given. None: they are logged at
            the steps of the callbacks' schedules.
        target: What is attributed. ``"prediction"`` is the only output, or with several outputs the
            largest one of each sequence. A number or one of the batch's ``class_names`` chooses an
            output. ``"loss"`` is the loss on the held-out targets. A callable takes all outputs and
            the held-out targets, and returns one number for each of the ``B`` sequences, ``(B,)``.
        at: The time step of the target: the ``"last"`` real one, the ``"mean"`` over real time
            steps, or an index. Of a model that returns a forecast, the step of the forecast.
        horizon: True if the model returns a forecast, ``(batch, horizon)`` or ``(batch, horizon,
            outputs)``, False if it returns outputs at each time step. None: found automatically, or
            asked for by an error.
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
            there is only one core, the model takes more than a quarter of the memory, the model or
            a callback can't be sent to another process, or ``on_error="raise"``. The log's run card
            tells where it runs and why.
        make_model: ``callable() -> model``, for a model that holds something that can't be copied.
            It builds a model of the same structure, which then gets the arrays of yours; other
            values that change during training are not sent.
        observer_device: Device on which the observer's process computes, ``"cpu"`` or ``"gpu"``.
            None: MLX's default.
        log_on_all_ranks: True: every process of a group (of ``mlx.launch``, MPI, SLURM or
            ``torchrun``) logs, for processes that train different models, such as one for each
            seed. Give each its own ``log_dir``. False: rank 0 logs, and the others do nothing.
        verbose: True: print where the log is and how to open it, and a summary at the end. False:
            don't. None: print to a terminal or a notebook. Both are logged at INFO in any case.
        run_config: Hyper-parameters of the run, for TensorBoard's HParams.
        resume_step: The last step that was done of the run in ``log_dir``, which goes on; pass its
            saved state to :meth:`load_state_dict`. TensorBoard hides what was logged for later
            steps.
        resume: ``"auto"``: keep the monitor's state beside the log, and where ``log_dir`` has a log
            already, go on in it. The first step that is reported tells from where: what was logged
            for this and later steps is hidden, and the state of the last snapshot before it is
            taken up. None: don't.
        on_error: ``"disable"``: a callback that fails is disabled and training goes on.
            ``"raise"``: its error is raised; from a process of its own, at one of the next calls.

    Raises:
        TypeError, ValueError: If an argument has the wrong type or value.
    """

    @checks_keywords
    def __init__(
        self,
        model: nn.Module,
        held_out: HeldOutBatch,
        callbacks: Iterable[Callback] | CallbackSet | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        writer: WriterLike | Sequence[WriterLike] | None = None,
        every: ScheduleLike = 100,
        train_every: ScheduleLike | None = None,
        target: TargetLike = "prediction",
        at: At = "last",
        horizon: bool | None = None,
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
        resume: Literal["auto"] | None = None,
        on_error: Literal["disable", "raise"] = "disable",
    ) -> None:
        check_log(log_dir, writer)
        check_model(model, forward, make_model)
        check_options(
            chunk_size=chunk_size,
            max_overhead=max_overhead,
            observer_device=observer_device,
            run_config=run_config,
            on_error=on_error,
        )
        log_dir = named(log_dir, run_config)
        self._callbacks = as_callbacks(callbacks, held_out)
        self._log_dir, self._given_writers = log_dir, as_list(writer)
        resume_step = checked_resume_step(resume_step, log_dir)
        self._resume = checked_resume(resume, log_dir)
        self._every = as_schedule(every)
        train = None if train_every is None else as_schedule(train_every, what="train_every")
        self._background, self._verbose = background, verbose
        self._raise_errors = on_error == "raise"
        self._run_config = dict(run_config or {})
        self._rank = 0 if log_on_all_ranks else rank()
        self._is_new = True
        self._opening: list[Record] = []
        self._log = RunLog()
        self._log.keeps_states = self._resume == "auto"
        self._overhead = Overhead(max_overhead)
        self._observer = AttachedObserver(
            Subject(model, forward, target if callable(target) else None, make_model),
            held_out,
            self._callbacks,
            Settings(
                "prediction" if callable(target) else target,
                at,
                cells,
                layers,
                chunk_size,
                horizon,
                raise_errors=self._raise_errors,
            ),
            self._log,
            overhead=self._overhead,
            device=observer_device,
            verbose=verbose,
        )
        self._due = DueCallbacks(
            self._callbacks,
            self._every,
            train,
            self._observer.disabled,
            self._log.fail,
            raise_errors=self._raise_errors,
        )
        self._run = ActiveRun(self._log, self._observer, self._overhead, verbose)
        self._resuming = Resuming(
            self._run, self._log, self._due, self._observer, resume_step, verbose
        )
        self._numbers = LoopNumbers(self._log.report, raise_errors=self._raise_errors)

    # ---- the run

    def start(self) -> Monitor:
        """Begin the run, as entering the ``with`` block does; :meth:`close` ends it.

        The model is copied, and every callback runs once on the copy, on two sequences.

        Raises:
            RuntimeError: If this monitor was started before, or a callback fails in the dry run.
            CopyError: If the model can't be copied.
            ModelError, TypeError, ValueError: If the arguments don't fit each other.
        """
        if self.state != "not started":
            raise RuntimeError(
                f"this monitor is {self.state} already: a run's log is written once. Make a new "
                "Monitor for another run; in a notebook, run the cell that makes it again"
            )
        if self._rank:
            show(why_silent(), verbose=self._verbose is not False)
        elif not in_observer():
            self._begin()
        self._is_new = False
        return self

    __enter__ = start

    def _begin(self) -> None:
        beginning = self._observer.begin(background=self._background)
        for note in beginning.dry_run.notes:
            self._log.report(note)
        self._resuming.report_missing_state()
        try:
            auto = self._resume == "auto"
            if self._log_dir is not None and (auto or self._resuming.first_step is not None):
                self._resuming.find_logged(self._log_dir, auto=auto)
            self._opening = opening_records(
                self._log,
                beginning.runner,
                self.callbacks,
                self._every,
                self._run_config,
                beginning.place,
            )
            self._resuming.load_findings()
            self._open_log(beginning.dry_run.records)
        except BaseException:
            self._observer.close(0.0)
            raise

    def _open_log(self, rehearsed: Sequence[Record]) -> None:
        # Only now: a configuration that fails must not leave an empty run behind.
        first = self._resuming.first_step
        writers, given = open_writers(self._log_dir, self._given_writers, first_step=first)
        self._log.rehearse(rehearsed)
        self._run.open(
            writers,
            self._run_config,
            log_dir=directory_of(writers),
            keep_open=given,
            callbacks=[c.name for c in self._callbacks],
        )
        for note in unsynced(self._log_dir, self._given_writers):
            self._log.report(note)
        self._log.last_step = first or 0
        self._log.write(self._log.last_step, self._opening)
        self._run.close_in_every_case(self, Monitor.close)
        screen = Screen([c.name for c in self._callbacks])
        pictures = [screen.picture(OVERVIEW, "headline")]
        pictures += [screen.picture(r.tag, r.place) for r in rehearsed if isinstance(r, Figure)]
        show(opening(directory_of(writers), pictures), verbose=self._verbose)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(finish=exc_type is None)

    def close(self) -> None:
        """End the run: wait for outstanding snapshots and write what is left.

        Ctrl-C stops the waiting, not the log. Closing again does nothing.
        """
        self.end(finish=True)

    def end(self, *, finish: bool) -> None:
        """End the run as :meth:`close` does, or after an error.

        Args:
            finish: Take the last snapshots of callbacks that skip snapshots, or were never due.
                False where an error ended the training.
        """
        if self.state != "open":
            return
        try:
            self._run.is_ending = True
            if finish and self._run.is_ours:
                self._finish()
        finally:
            self._run.end()
        if finish:
            self._observer.raise_delivered()

    def _finish(self) -> None:
        """Take a last snapshot for callbacks that were never due, or that tell more at the end.

        Those that skip snapshots see the trained model, too.
        """
        step = self._run.last_step
        if step is None or not self._run.steps:
            return
        never = self._due.never_due()
        if never:
            # A run that goes on has no snapshot of its first step.
            held = self._observer.analyse_held()
            if self._run.steps > 1 or not held:
                self._observer.analyse(step, _all(never))
            which = "first and the last step are" if held else "last step is"
            for schedule, callbacks in never.items():
                self._log.report(
                    f"no step was due for {', '.join(c.name for c in callbacks)} by {schedule} in "
                    f"{self._run.steps} steps: the {which} analysed. Set every= to fewer steps"
                )
        behind = self._due.behind(step)
        if behind:
            self._log.freeze(step)
            self._observer.analyse(step, behind)
        last = [c for c in self.callbacks if c.finishes]
        if last:
            self._observer.analyse(step, last, finish=True)

    @property
    def state(self) -> Literal["not started", "open", "closed"]:
        """Return where the run is: "not started", "open" or "closed"."""
        if self._is_new:
            return "not started"
        return "closed" if self._run.is_ending else "open"

    @property
    def log_dir(self) -> str | None:
        """Return the directory of the log, if it is known; once started, the one that is used."""
        if self._rank:
            return None
        known = directory_of((*self._run.writers, *self._given_writers))
        return known or (None if self._log_dir is None else os.fspath(self._log_dir))

    @property
    def last_step(self) -> int | None:
        """Return the last step that was reported, or is resumed from; None at first."""
        return self._run.last_step

    @property
    def reported_steps(self) -> int:
        """Return how many steps the loop has reported."""
        return self._run.steps

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what was reported so far: what was not found, was skipped, or failed."""
        return self._log.notes

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Return the findings at the last snapshot that is analysed, the most serious first.

        Once the run is closed, it takes account of everything that the loop has logged.
        """
        return () if self._log.findings is None else self._log.findings.findings

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """Return the callbacks that are still enabled."""
        return self._observer.callbacks

    @property
    def in_background(self) -> bool:
        """Return true if a process of its own analyses."""
        return self._observer.in_background

    # ---- interruptions

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to log what an uninterrupted one would; JSON can hold it.

        Save it beside the checkpoint, and pass it to ``load_state_dict`` of the monitor that
        continues the run with ``resume_step=``. All that was logged is on the disk when it returns,
        with the analyses and pictures of snapshots that wait.
        """
        return self._resuming.state_dict(wait=self.state == "open")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` returned, before or after starting.

        Raises:
            ValueError: If it isn't such a state, or a callback can't take its part.
        """
        self._resuming.load_state_dict(state)
        if self.state == "open":
            self._resuming.report_missing_state()

    # ---- other ways to attach

    def steps(
        self,
        batches: Iterable[T] | Callable[[], Iterable[T]],
        *,
        epochs: int = 1,
        first: int | None = None,
        bar: bool = False,
    ) -> Iterator[tuple[int, T]]:
        """Iterate over ``(step, batch)``, and report the end of each step.

        ::

            for step, batch in monitor.steps(batches):
                monitor.on_step_end(step, loss=train_step(batch))

        If no number is to be logged, ``on_step_end`` need not be called. A monitor that was not
        started is started with the first batch, and closed with the last one or when the loop is
        left. A step that is left by ``break`` before ``on_step_end`` does not count.

        Args:
            batches: The batches of an epoch, or a function that returns them.
            epochs: How often to go through the batches.
            first: Number of the first step; None: 1, or the one after the last step so far.
            bar: Show a progress bar, if ``tqdm`` is installed.

        Raises:
            RuntimeError: If the monitor is closed.
            TypeError, ValueError: If an argument has the wrong type or value.
        """
        return iterate(self, batches, epochs=epochs, first=first, bar=bar)

    def attach(
        self, function: F, *, names: Sequence[str] = ("loss",), first: int | None = None
    ) -> F:
        """Return a function that makes a training step and then reports it; also as a decorator.

        ::

            train_step = monitor.attach(train_step)

        Every call counts as a step. The first call starts a monitor that was not started, which is
        closed by :meth:`close`, or at the exit of the process. Attach a compiled function, and not
        the function that is compiled.

        Args:
            function: Makes one step: updates the model, and returns the loss, a tuple that begins
                with it, a dict of numbers, or anything else.
            names: Names of the numbers that it returns, in their order; a dict has its own.
            first: Number of the step that the first call makes, such as the one after a
                checkpoint's; None: 1, or the one after the last step so far.

        Raises:
            TypeError: If ``function`` can't be called, or is a generator, or ``first`` is no whole
                number.
            RuntimeError: By the first call, where MLX traces it in order to compile it.
        """
        return attached(self, function, names, self._observer.parameters, first=first)

    def report(self, message: str, *, topic: str | None = None) -> None:
        """Report something to the user once, as a warning and in the log's notes.

        Args:
            message: One sentence.
            topic: Only the first message of a topic is reported; None: the message itself.
        """
        self._log.report(message, topic=topic)

    # ---- every step

    def starts_after(self, step: int) -> None:
        """Tell the schedules what comes before the first step, for loops that report only some."""
        self._due.starts_after(step)

    def on_step_end(self, step: int, *, gradients: Any = None, **scalars: Any) -> None:
        """Report the end of a training step; call it after every one, outside compiled functions.

        Args:
            step: Number of steps done, increasing.
            gradients: Gradients of the parameters, as ``nn.value_and_grad`` returns them. Their
                norm is logged as ``train/grad_norm``, and that of each part of the model as
                ``parameters/gradient_<part>``, when ``train_every`` is due.
            scalars: Numbers or MLX scalars of the step (``loss=loss``), logged as ``train/<name>``
                when ``train_every`` is due and not evaluated otherwise.

        Raises:
            RuntimeError: Before :meth:`start` or after :meth:`close`.
            TypeError: If ``step`` is no whole number.
        """
        self._check_open("on_step_end")
        if not self._run.is_ours:
            return
        step = _checked_step(step)
        self._resuming.go_on(step, self._opening)
        last = self._run.last_step
        if last is not None and step <= last:
            self._log.report(
                f"step {step} came after step {last}: let steps increase, or curves run backwards "
                "in TensorBoard. If each epoch counts its batches anew, pass epoch * batches + i",
                topic="steps",
            )
        self._run.last_step = step
        self._run.steps += 1
        due, train_due = self._due.at(step, after=last)
        if self._run.steps == 1 and not due and not last:
            self._log.freeze(step)
            self._observer.hold(step, _all(self._due.never_due()))
        if not due and not train_due and self._run.steps > 2:
            return
        self._log.last_step = step
        if train_due:
            numbers = {f"train/{name}": value for name, value in scalars.items()}
            if gradients is not None:
                numbers |= self._numbers.gradient_norms(gradients)
            self._log.write_loop(step, self._numbers.scalars(numbers))
        takes = bool(due) and self._affords()
        line = DueStep(step, last, takes, self._due.state_dict())
        # In the background after the snapshot is handed over, which writing would slow down.
        is_late = takes and self.in_background
        # The first two steps tell by how much the loop counts.
        if (due or self._run.steps <= 2) and not is_late:
            self._log.keep_due(line)
        if takes:
            self._log.freeze(step)
            self._observer.analyse(step, due)
            self._log.write(step, self._overhead.records())
            self._report_large_share()
        if is_late:
            self._log.keep_due(line)
        self._observer.raise_delivered()

    def log_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Log numbers measured elsewhere, under tags of your own: ``{"val/loss": 0.3}``.

        Raises:
            RuntimeError: Before :meth:`start` or after :meth:`close`.
            TypeError: If ``step`` is no whole number, or ``scalars`` no mapping.
        """
        if not isinstance(scalars, Mapping):
            raise TypeError(
                f"scalars is a {type(scalars).__name__}; pass a mapping: {{'val/loss': 0.3}}"
            )
        self._check_open("log_scalars")
        if self._run.is_ours:
            step = _checked_step(step)
            self._log.write_loop(step, self._numbers.scalars(scalars))

    def _check_open(self, what: str) -> None:
        if self.state != "open":
            raise RuntimeError(
                f"{what} was called on a monitor that is {self.state}; write\n"
                "    with Monitor(model, held_out, log_dir=...) as monitor:\n"
                "        for step, batch in enumerate(batches, start=1): ...\n"
                "            monitor.on_step_end(step, loss=loss)"
            )

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


def _checked_step(step: Any) -> int:
    try:
        return operator.index(step)
    except TypeError:
        raise TypeError(
            f"step={step!r} is a {type(step).__name__}: pass the number of steps done, a whole "
            "number"
        ) from None


def _all(groups: Mapping[str, Sequence[Callback]]) -> list[Callback]:
    return [callback for group in groups.values() for callback in group]
