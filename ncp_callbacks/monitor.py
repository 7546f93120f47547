"""The training loop's single point of contact.

    with ncp.Monitor(model, held_out, log_dir="runs/cfc-seed0") as monitor:
        for step, (x, dt, y) in enumerate(batches, start=1):
            loss = train_step(x, dt, y)
            monitor.on_step_end(step, loss=loss)

Entering runs the model and every callback once on two sequences, so that what is wrong with the
configuration shows before the first step. Afterwards nothing that goes wrong in looking or writing
ends the training: it is reported once, and the callback or the writer concerned is left out.
"""

from __future__ import annotations

import copy
import logging
import math
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .about import guide, run_card
from .announce import closing, opening, show
from .callbacks import Callback, callback_set
from .held_out import HeldOutBatch
from .instrument import (
    At,
    Forward,
    Instrument,
    Memory,
    NothingToObserve,
    TargetLike,
    settle,
    undisturbed,
)
from .observation import Need, Observation
from .overhead import Overhead
from .progress import progress
from .records import Array, Figure, Note, Record, Scalar, Text
from .schedules import Schedule, ScheduleLike, as_schedule, every
from .threads import one_blas_thread
from .writers import TensorBoardWriter, Writer, as_writer
from .writers.shutdown import ClosesOnTerm

if TYPE_CHECKING:
    import tensorboardX

__all__ = ["Monitor"]

# Which of a callback's methods a look calls.
Looking: TypeAlias = "Callable[[Callback], Callable[[Observation], Iterable[Record | Note]]]"

_LOG = logging.getLogger("ncp_callbacks")
# Set by mlx.launch and by MPI; asking mx.distributed itself would connect to the other ranks.
_RANK_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def _rank() -> int:
    for variable in _RANK_VARIABLES:
        value = os.environ.get(variable, "")
        if value.isdigit():
            return int(value)
    return 0


class Monitor:
    """Looks at a model while it trains and logs what it sees.

    Args:
        model: Any ``mlx.nn.Module``. It is left as it is: training with and without the monitor is
            bit-identical.
        held_out: What every look looks at.
        callbacks: What to look at, or the name of a set: ``"standard"``, which None also is:
            :class:`GradientAttribution`, :class:`TimeSensitivity`, :class:`StateTransitions`,
            :class:`StateSpace`, :class:`BackboneActivations`; ``"light"``: the first and the third,
            on 16 sequences; ``"full"``: all there is, what is dear at every tenth look only.
        log_dir: Directory of this run's TensorBoard log; one that holds a run gets a number.
        writer: Instead of ``log_dir``: a writer of this package, or a
            ``tensorboardX.SummaryWriter``.
        every: When callbacks look that name no schedule: steps, a schedule or any callable
            ``step -> bool``.
        train_every: When the keywords of ``on_step_end`` are logged; None: whenever a callback is
            due (or would be, had it not been disabled).
        target: What is attributed: ``"prediction"``: the only output, or with several the largest
            one of each sequence; an output's index; ``"loss"``; or a callable
            ``(outputs, targets) -> (B,)``.
        at: When in the sequence: ``"last"`` real step, ``"mean"`` over real steps, or an index.
        forward: ``callable(model, inputs, time_delta) -> outputs``, for a model that is not called
            as ``model(inputs)`` or ``model(inputs, time_delta=...)`` (other usual keywords are
            found).
        cells: Module paths or globs of the recurrent cells, instead of looking for them.
        layers: Module paths or globs of the backbone's layers, likewise.
        chunk_size: How many sequences are run through the model at once; None: all, or as many as
            need no more than twice the memory that training has needed so far, or 256 MB.
        max_overhead: Share of the wall time that looks may take, such as 0.02: those that would
            take more are left out, which is said and counted. None: all are made.
        verbose: Whether to print where the log goes and how to open it, and at the end what became
            of it. None: to a terminal or notebook. It is logged at INFO either way.
        run_config: Hyper-parameters of the run, for TensorBoard's HParams.
        resume_step: Continue the run in ``log_dir``: the last step done. What was logged for later
            steps is hidden.
        on_error: ``"disable"`` a callback that fails and go on, or ``"raise"``.

    Raises:
        TypeError, ValueError: For arguments that can't be meant, when made or entered. Errors of
            the model or a callback in the dry run come out of ``__enter__``.
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
        verbose: bool | None = None,
        run_config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
        on_error: Literal["disable", "raise"] = "disable",
    ) -> None:
        if (log_dir is None) == (writer is None):
            raise TypeError(
                "give either log_dir='runs/name', a directory for this run's log, or writer=, one "
                f"that exists; {'neither' if log_dir is None else 'both'} was given"
            )
        if on_error not in ("disable", "raise"):
            raise ValueError(f"on_error={on_error!r}: give 'disable' or 'raise'")
        if resume_step is not None:
            whole = hasattr(resume_step, "__index__") and not isinstance(resume_step, bool)
            if not whole or operator.index(resume_step) < 0:
                raise ValueError(f"resume_step={resume_step!r}: give the last step done, 0 or more")
            if writer is not None:
                raise ValueError(
                    "resume_step= continues the run in log_dir=; with writer=, make the writer "
                    "with purge_step= or first_step= instead"
                )
            resume_step = operator.index(resume_step)
        if run_config is not None and not isinstance(run_config, Mapping):
            raise TypeError(f"run_config is a {type(run_config).__name__}; give a mapping")
        if max_overhead is not None and not 0 < max_overhead <= 1:
            raise ValueError(
                f"max_overhead={max_overhead!r}: give a share of the wall time, such as 0.02, or "
                "None for no bound"
            )
        if chunk_size is not None:
            whole = hasattr(chunk_size, "__index__") and not isinstance(chunk_size, bool)
            if not whole or operator.index(chunk_size) < 1:
                raise ValueError(f"chunk_size={chunk_size!r}: give 1 or more sequences, or None")
        self._model, self._held_out = model, held_out
        self._callbacks = self._checked(callbacks)
        self._log_dir, self._given_writer = log_dir, writer
        self._every = as_schedule(every)
        self._train_every = (
            None if train_every is None else as_schedule(train_every, what="train_every")
        )
        self._how: dict[str, Any] = {
            "target": target,
            "at": at,
            "forward": forward,
            "cells": cells,
            "layers": layers,
            "most_rows": chunk_size,
        }
        self._overhead = Overhead(max_overhead)
        self._verbose = verbose
        self._entered = 0.0
        self._steps = 0
        self._memory = Memory(bounded=chunk_size is None)
        self._run_config = dict(run_config or {})
        self._resume_step = resume_step
        self._on_error = on_error
        self._state: Literal["new", "open", "closed"] = "new"
        self._writes = _rank() == 0
        self._writer: Writer | None = None
        self._on_term: ClosesOnTerm | None = None
        self._instrument: Instrument | None = None
        self._groups: list[tuple[Schedule, list[Callback]]] = []
        self._notes: list[str] = []
        self._said: set[str] = set()
        self._afresh: set[str] = set()
        self._last_step: int | None = None
        self._occasions: dict[str, int] = {}
        self._explained: dict[str, str] = {}
        self._rehearsed: set[str] = set()

    @staticmethod
    def _checked(callbacks: Iterable[Callback] | str | None) -> list[Callback]:
        if callbacks is None or isinstance(callbacks, str):
            return callback_set("standard" if callbacks is None else callbacks)
        if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
            raise TypeError(
                f"callbacks={callbacks!r}: give a list of callbacks, the name of a set, or None"
            )
        listed = list(callbacks)
        for callback in listed:
            if isinstance(callback, type):
                raise TypeError(
                    f"callbacks has a class, not an object: write {callback.__name__}()"
                )
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"callbacks has a {type(callback).__name__}; give objects of subclasses of "
                    "ncp_callbacks.Callback"
                )
        for callback in listed:
            _check_settings(callback)
        names = [c.name for c in listed]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise ValueError(
                f"two callbacks are called {doubled[0]!r}, so their tags would mix: give one "
                f"name='{doubled[0]}_2'"
            )
        return listed

    # ---- life

    def __enter__(self) -> Monitor:
        if self._state != "new":
            raise RuntimeError(
                f"this monitor is {self._state} already: a run's log is written once. "
                "Make a new Monitor for another run"
            )
        if self._writes:
            self._instrument = Instrument(self._model, self._held_out, **self._how)
            records, notes = self._dry_run(self._instrument)
            self._groups = self._grouped()
            for note in (*self._instrument.notes, *notes):
                self._say(note)
            self._say_afresh()
            card = run_card(
                self._instrument, self._callbacks, self._every, self._run_config, self._notes
            )
            # Only now: a configuration that fails must not leave an empty run behind.
            self._writer = self._open_writer()
            self._on_term = ClosesOnTerm(self._close_writer)
            if self._run_config:
                self._writer.log_run_config(self._run_config)
            step = 0 if self._resume_step is None else self._resume_step + 1
            self._writer.write(step, [Text("about/run", card), *self._explain(records)])
            pictures = [r.tag for r in records if isinstance(r, Figure)]
            show(opening(self.log_dir, pictures), verbose=self._verbose)
            self._entered = time.perf_counter()
        self._state = "open"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                self._finish()
        finally:
            self._state = "closed"
            if self._on_term is not None:
                self._on_term.undo()
            self._close_writer()
            self._show_closing()

    def _finish(self) -> None:
        """A last look for callbacks that have something to say at the end."""
        last = [c for c in self._callbacks if type(c).finish is not Callback.finish]
        if not last or self._writer is None or self._last_step is None:
            return
        settle(self._model)
        with self._overhead.looking():
            records = self._look(self._last_step, last, of=lambda c: c.finish)
        if records:
            self._writer.write(self._last_step, [*records, *self._explain(records)])

    def _show_closing(self) -> None:
        if self._writer is None or self._last_step is None:
            return
        text = closing(
            self.log_dir,
            self._writer.tally,
            steps=self._steps,
            looks=self._overhead.looks,
            notes=len(self._notes),
            looking=self._overhead.seconds,
            seconds=time.perf_counter() - self._entered,
            failure=self._writer.failure,
        )
        show(text, verbose=self._verbose)

    def _close_writer(self) -> None:
        if self._writer is not None:
            if self._given_writer is self._writer:
                self._writer.flush()  # the user's, who may go on with it
            else:
                self._writer.close()

    def _open_writer(self) -> Writer:
        if self._given_writer is not None:
            return as_writer(self._given_writer)
        assert self._log_dir is not None
        first = None if self._resume_step is None else self._resume_step + 1
        return TensorBoardWriter(self._log_dir, first_step=first)

    @property
    def log_dir(self) -> str | None:
        """Directory of the log, where it is known; once entered, the one really used."""
        if isinstance(self._writer, TensorBoardWriter):
            return str(self._writer.log_dir)
        given = getattr(self._given_writer, "logdir", self._log_dir)
        return None if given is None else os.fspath(given)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was said so far: what was not found, left out, or failed."""
        return tuple(self._notes)

    @property
    def callbacks(self) -> tuple[Callback, ...]:
        """Those still looking."""
        return tuple(self._callbacks)

    # ---- the dry run

    def _dry_run(self, instrument: Instrument) -> tuple[list[Record], list[str]]:
        """Every callback once on a small batch; the records only tell which tags will come."""
        records: list[Record] = []
        notes: list[str] = []
        small = instrument.small()
        with undisturbed(self._model):
            with self._memory.of_rows(len(small.held_out)):
                observation = Observation(small, 0, self._needs(self._callbacks))
            # The standard set takes no time; others may take seconds.
            for callback in progress(list(self._callbacks), "first look", "callback", fewest=8):
                # A copy, so that nothing is remembered of a look that doesn't count.
                rehearsal = _copy_of(callback)
                if rehearsal is None:
                    continue
                try:
                    # Notes are of two sequences: the first look says what is true of all.
                    seen = observation.limited(rehearsal.max_sequences)
                    found = _checked(rehearsal, rehearsal.measure(seen))
                    records += [record for record in found if not isinstance(record, Note)]
                except NothingToObserve as reason:
                    self._callbacks.remove(callback)
                    notes.append(f"{callback.name} is left out: {reason}")
                except Exception as error:
                    raise RuntimeError(
                        f"{callback!r} failed in the dry run, before the first step: "
                        f"{type(error).__name__}: {error}"
                    ) from error
        return records, notes

    def _grouped(self) -> list[tuple[Schedule, list[Callback]]]:
        """Callbacks by schedule, so that one that counts time is asked once a step."""
        groups: dict[int, tuple[Schedule, list[Callback]]] = {}
        for callback in self._callbacks:
            schedule = callback.every or self._every
            groups.setdefault(id(schedule), (schedule, []))[1].append(callback)
        return list(groups.values()) or [(self._every, [])]

    # ---- interruptions

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to log what an uninterrupted one would; JSON can hold it.

        Save it beside the checkpoint, and give it to ``load_state_dict`` of the monitor that
        continues the run with ``resume_step=``.
        """
        callbacks = {c.name: _plain(c.state_dict()) for c in self._callbacks}
        return {
            "step": self._last_step,
            "callbacks": callbacks,
            "occasions": dict(self._occasions),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave, before or after entering.

        Raises:
            ValueError: If it isn't such a state, or a callback can't take its part.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get("callbacks"), Mapping):
            raise ValueError("this is no state of a monitor: give what monitor.state_dict() gave")
        known, self._last_step = state["callbacks"], state.get("step")
        self._occasions = {str(k): int(v) for k, v in state.get("occasions", {}).items()}
        for callback in self._callbacks:
            if callback.name not in known:
                self._afresh.add(callback.name)
                continue
            try:
                callback.load_state_dict(known[callback.name])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{callback!r} can't take up its part of the state: "
                    f"{type(error).__name__}: {error}"
                ) from error
        if self._state == "open":
            self._say_afresh()

    def _say_afresh(self) -> None:
        """Of callbacks that look, not of those that are left out anyhow."""
        for callback in self._callbacks:
            if callback.name in self._afresh:
                self._say(f"{callback.name}: the state loaded knows nothing of it")

    # ---- every step

    def on_step_end(self, step: int, **scalars: Any) -> None:
        """Call after every training step, outside compiled functions.

        Args:
            step: Number of steps done, increasing.
            scalars: Numbers or MLX scalars of the step (``loss=loss``), logged as ``train/<name>``
                when ``train_every`` says so and not evaluated otherwise.

        Raises:
            RuntimeError: Outside the ``with`` block.
            TypeError: If ``step`` is no whole number.
        """
        if self._state != "open":
            raise RuntimeError(
                "on_step_end was called outside the monitor's with block; write\n"
                "    with Monitor(model, held_out, log_dir=...) as monitor:\n"
                "        for step, batch in enumerate(batches, start=1): ...\n"
                "            monitor.on_step_end(step, loss=loss)"
            )
        if self._writer is None:
            return
        step = operator.index(step)
        if self._last_step is not None and step <= self._last_step:
            self._say(
                f"step {step} came after step {self._last_step}: steps should increase, or curves "
                "run backwards in TensorBoard",
                topic="steps",
            )
        self._last_step = step
        self._steps += 1
        fired = [group for schedule, group in self._groups if self._asked(schedule, step)]
        due = [callback for group in fired for callback in group if self._has_turn(callback)]
        train_due = self._asked(self._train_every, step) if self._train_every else bool(fired)
        if not due and not train_due:
            return
        records: list[Record] = []
        if train_due:
            records += self._numbers({f"train/{name}": value for name, value in scalars.items()})
        if due and self._affords():
            settle(self._model)
            with self._overhead.looking():
                looked = self._look(step, due)
            records += looked
            records += self._overhead.records()
            records += self._explain(records)
            self._say_if_dear()
        if records:
            self._writer.write(step, records)

    def _has_turn(self, callback: Callback) -> bool:
        """Whether this occasion is one of those that the callback takes."""
        number = self._occasions.get(callback.name, 0)
        self._occasions[callback.name] = number + 1
        return number % callback.one_in == 0

    def _affords(self) -> bool:
        if self._overhead.affords():
            return True
        self._say(
            "looking takes more of the wall time than max_overhead allows: some looks are left "
            "out, which monitor/skipped_looks counts. Look less often, or at fewer sequences",
            topic="max_overhead",
        )
        return False

    def _say_if_dear(self) -> None:
        if self._overhead.dear:
            self._say(
                f"looking has taken {self._overhead.share:.0%} of the wall time so far: look less "
                "often (every=...), at fewer sequences (a smaller held-out batch), or give "
                "max_overhead=0.02",
                topic="dear",
            )

    def _explain(self, records: Iterable[Record]) -> list[Record]:
        """The guide, when it has something new to say: some tags come later than others."""
        known = dict(self._explained)
        for record in records:
            if isinstance(record, Text | Array) or not record.description:
                continue
            # The dry run knows less: of how many sequences numbers are.
            if record.tag in self._rehearsed or record.tag not in known:
                self._explained[record.tag] = record.description
                self._rehearsed.discard(record.tag)
        if not known:
            self._rehearsed = set(self._explained)
        if known == self._explained and known:
            return []
        return [Text("about/guide", guide(self._explained))]

    def log_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Log numbers measured elsewhere, under tags of one's own: ``{"val/loss": 0.3}``.

        Raises:
            RuntimeError: Outside the ``with`` block.
            TypeError: If ``step`` is no whole number, or ``scalars`` no mapping.
        """
        if not isinstance(scalars, Mapping):
            raise TypeError(
                f"scalars is a {type(scalars).__name__}; give a mapping: {{'val/loss': 0.3}}"
            )
        if self._state != "open":
            raise RuntimeError("log_scalars was called outside the monitor's with block")
        if self._writer is not None:
            records = self._numbers(scalars)
            if records:
                self._writer.write(operator.index(step), records)

    def _asked(self, schedule: Schedule, step: int) -> bool:
        try:
            return schedule(step)
        except Exception as error:
            if self._on_error == "raise":
                raise
            stopped = [c for s, group in self._groups if s is schedule for c in group]
            names = ", ".join(c.name for c in stopped) or "train/*"
            self._fail(
                f"the schedule {schedule!r} failed at step {step}, which stops {names}", error
            )
            self._disable(stopped)
            self._groups = [(s, group) for s, group in self._groups if s is not schedule]
            if schedule is self._train_every:
                self._train_every = ~every(steps=1)
            return False

    def _numbers(self, scalars: Mapping[str, Any]) -> list[Record]:
        records: list[Record] = []
        for tag, value in scalars.items():
            try:
                number = float(value.item() if hasattr(value, "item") else value)
            except Exception as error:
                if self._on_error == "raise":
                    raise
                shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
                self._say(
                    f"{tag} is a {type(value).__name__}{shape} and not logged; give a number "
                    f"({type(error).__name__}: {error})",
                    topic=f"no number: {tag}",
                )
                continue
            if not math.isfinite(number):
                self._say(f"{tag} is {number}; it is logged as it is")
            records.append(Scalar(tag, number))
        return records

    # ---- looking

    @staticmethod
    def _needs(callbacks: Iterable[Callback]) -> frozenset[Need]:
        return frozenset[Need]().union(*(c.needs for c in callbacks))

    def _look(
        self, step: int, due: Sequence[Callback], of: Looking = lambda callback: callback.measure
    ) -> list[Record]:
        assert self._instrument is not None
        records: list[Record] = []
        notes: list[str] = []
        try:
            with (
                undisturbed(self._model),
                self._memory.bounding(self._instrument),
                one_blas_thread(),
            ):
                for company in self._companies(due):
                    for observation, callbacks in self._observations(step, company):
                        for callback in callbacks:
                            with self._overhead.timing(callback.name):
                                records += self._measure(callback, observation, notes, of)
        except Exception as error:
            if self._on_error == "raise":
                raise
            self._fail(f"looking at the model failed at step {step}; it is not tried again", error)
            self._disable(due)
        for note in notes:
            self._say(note)
        return records

    def _companies(self, due: Sequence[Callback]) -> list[list[Callback]]:
        """Callbacks that share a pass.

        All, unless gradients, which cost about twice as much again, are wanted of so few of the
        sequences that a pass of their own is cheaper.
        """
        gradients = {Need.INPUT_GRADIENT, Need.TIME_GRADIENT}
        batch = len(self._held_out)
        dear = max((_size(c, batch) for c in due if c.needs & gradients), default=0)
        most = max(_size(c, batch) for c in due)
        if not 0 < 2 * dear <= most:
            return [list(due)]
        few = [c for c in due if c.needs & gradients or _size(c, batch) <= dear]
        return [few, [c for c in due if c not in few]]

    def _seen(self, step: int, callbacks: Sequence[Callback]) -> Observation:
        assert self._instrument is not None
        batch = len(self._held_out)
        most = max(_size(c, batch) for c in callbacks)
        with self._overhead.timing("pass"):
            return Observation(
                self._instrument,
                step,
                self._needs(callbacks),
                max_sequences=most,
            )

    def _observations(
        self, step: int, due: Sequence[Callback]
    ) -> Iterable[tuple[Observation, Sequence[Callback]]]:
        """One observation for all, or where that fails one for each that can have one."""
        try:
            yield self._seen(step, due), due
            return
        except Exception:
            if self._on_error == "raise" or len(due) == 1:
                raise
        failed: dict[str, tuple[Exception, list[Callback]]] = {}
        for callback in due:
            try:
                own = self._seen(step, [callback])
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                failed.setdefault(what, (error, []))[1].append(callback)
                continue
            yield own, [callback]
        for cause, callbacks in failed.values():
            names = ", ".join(c.name for c in callbacks)
            self._fail(f"looking failed at step {step}, which disables {names}", cause)
            self._disable(callbacks)

    def _measure(
        self, callback: Callback, observation: Observation, notes: list[str], of: Looking
    ) -> list[Record]:
        records: list[Record] = []
        try:
            seen = observation.limited(callback.max_sequences)
            for record in _checked(callback, of(callback)(seen)):
                if isinstance(record, Note):
                    notes.append(record.message)
                else:
                    records.append(record)
        except NothingToObserve as reason:
            notes.append(f"{callback.name} is left out from now on: {reason}")
            self._disable([callback])
        except Exception as error:
            if self._on_error == "raise":
                raise
            self._fail(f"{callback.name} failed at step {observation.step} and is disabled", error)
            self._disable([callback])
        return records

    def _disable(self, callbacks: Sequence[Callback]) -> None:
        gone = {id(c) for c in callbacks}
        self._callbacks = [c for c in self._callbacks if id(c) not in gone]
        # A schedule without callbacks still says when the loop's own numbers are logged.
        self._groups = [
            (schedule, [c for c in group if id(c) not in gone]) for schedule, group in self._groups
        ]

    # ---- saying

    def _say(self, message: str, *, topic: str | None = None) -> None:
        """Once for a topic (by default the message itself), however often it is true."""
        topic = topic or message
        if topic not in self._said:
            self._said.add(topic)
            self._notes.append(message)
            _LOG.warning(message)
            self._write_notes()

    def _fail(self, message: str, error: Exception) -> None:
        self._notes.append(f"{message}: {type(error).__name__}: {error}")
        _LOG.error("%s; training goes on", message, exc_info=error)
        self._write_notes()

    def _write_notes(self) -> None:
        if self._writer is not None:
            text = "\n".join(f"* {note}" for note in self._notes)
            self._writer.write(self._last_step or 0, [Text("about/notes", text)])


def _check_settings(callback: Callback) -> None:
    """What a user's class may have got wrong, said before it fails in the midst of training."""
    needs: Any = callback.needs
    if not isinstance(needs, Iterable) or not all(isinstance(need, Need) for need in needs):
        raise TypeError(
            f"{callback!r}.needs is {needs!r}; write needs = frozenset({{Need.STATES, ...}})"
        )
    if not isinstance(needs, frozenset):
        callback.needs = frozenset(needs)
    one_in: Any = callback.one_in
    if not hasattr(one_in, "__index__") or operator.index(one_in) < 1:
        raise ValueError(f"{callback!r}.one_in is {one_in!r}; give 1 or more")


def _size(callback: Callback, batch: int) -> int:
    return min(callback.max_sequences or batch, batch)


def _plain(value: Any) -> Any:
    """Arrays and numpy numbers as lists and Python's, which keep every digit."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, mx.array):
        return value.tolist()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _copy_of(callback: Callback) -> Callback | None:
    try:
        return copy.deepcopy(callback)
    except Exception:  # it holds something that can't be copied: rehearsing would count
        return None


def _checked(callback: Callback, records: Iterable[Record | Note]) -> Iterator[Record | Note]:
    """What a callback made, if it is what writers take."""
    if records is None or isinstance(records, Record | Note):
        raise TypeError(
            f"{callback!r}.measure gave {'None' if records is None else type(records).__name__}, "
            "which is no list of records: return [Scalar(...)], or [] for none, or yield them"
        )
    for record in records:
        if not isinstance(record, Record | Note):
            raise TypeError(
                f"{callback!r}.measure gave a {type(record).__name__}; yield records: Scalar, "
                "Histogram, Figure, Text, Array or Note"
            )
        yield record
