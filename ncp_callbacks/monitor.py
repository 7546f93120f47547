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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .about import guide, run_card
from .callbacks import Callback, standard_callbacks
from .held_out import HeldOutBatch
from .instrument import (
    At,
    Forward,
    Instrument,
    NothingToObserve,
    TargetLike,
    undisturbed,
)
from .observation import Need, Observation
from .records import Note, Record, Scalar, Text
from .schedules import Schedule, ScheduleLike, as_schedule, every
from .writers import TensorBoardWriter, Writer, as_writer
from .writers.shutdown import ClosesOnTerm

if TYPE_CHECKING:
    import tensorboardX

__all__ = ["Monitor"]

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
        callbacks: What to look at; None is the standard set: :class:`GradientAttribution`,
            :class:`TimeSensitivity`, :class:`StateTransitions`, :class:`StateSpace`,
            :class:`BackboneActivations`.
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
        callbacks: Iterable[Callback] | None = None,
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
        }
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

    @staticmethod
    def _checked(callbacks: Iterable[Callback] | None) -> list[Callback]:
        if callbacks is None:
            return standard_callbacks()
        if isinstance(callbacks, str | Callback) or not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks={callbacks!r}: give a list of callbacks, or None")
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
            about = [Text("about/run", card), Text("about/guide", guide(records))]
            self._writer.write(step, about)
        self._state = "open"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._state = "closed"
        if self._on_term is not None:
            self._on_term.undo()
        self._close_writer()

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
            observation = Observation(small, 0, self._needs(self._callbacks))
            for callback in list(self._callbacks):
                # A copy, so that nothing is remembered of a look that doesn't count.
                rehearsal = _copy_of(callback)
                if rehearsal is None:
                    continue
                try:
                    # Notes are of two sequences: the first look says what is true of all.
                    found = _measured(rehearsal, observation)
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
        return {"step": self._last_step, "callbacks": callbacks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave, before or after entering.

        Raises:
            ValueError: If it isn't such a state, or a callback can't take its part.
        """
        if not isinstance(state, Mapping) or not isinstance(state.get("callbacks"), Mapping):
            raise ValueError("this is no state of a monitor: give what monitor.state_dict() gave")
        known, self._last_step = state["callbacks"], state.get("step")
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
        fired = [group for schedule, group in self._groups if self._asked(schedule, step)]
        due = [callback for group in fired for callback in group]
        train_due = self._asked(self._train_every, step) if self._train_every else bool(fired)
        if not due and not train_due:
            return
        records: list[Record] = []
        if train_due:
            records += self._numbers({f"train/{name}": value for name, value in scalars.items()})
        if due:
            records += self._look(step, due)
        if records:
            self._writer.write(step, records)

    def log_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Log numbers measured elsewhere, under tags of one's own: ``{"val/loss": 0.3}``.

        Raises:
            RuntimeError: Outside the ``with`` block.
        """
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

    def _look(self, step: int, due: Sequence[Callback]) -> list[Record]:
        assert self._instrument is not None
        records: list[Record] = []
        notes: list[str] = []
        try:
            with undisturbed(self._model):
                for observation, callbacks in self._observations(step, due):
                    for callback in callbacks:
                        records += self._measure(callback, observation, notes)
        except Exception as error:
            if self._on_error == "raise":
                raise
            self._fail(f"looking at the model failed at step {step}; it is not tried again", error)
            self._disable(due)
        for note in notes:
            self._say(note)
        return records

    def _observations(
        self, step: int, due: Sequence[Callback]
    ) -> Iterable[tuple[Observation, Sequence[Callback]]]:
        """One observation for all, or where that fails one for each that can have one."""
        assert self._instrument is not None
        try:
            yield Observation(self._instrument, step, self._needs(due)), due
            return
        except Exception:
            if self._on_error == "raise" or len(due) == 1:
                raise
        failed: dict[str, tuple[Exception, list[Callback]]] = {}
        for callback in due:
            try:
                own = Observation(self._instrument, step, callback.needs)
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
        self, callback: Callback, observation: Observation, notes: list[str]
    ) -> list[Record]:
        records: list[Record] = []
        try:
            for record in _measured(callback, observation):
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


def _measured(callback: Callback, observation: Observation) -> Iterator[Record | Note]:
    """What a callback makes of an observation, if it is what writers take."""
    for record in callback.measure(observation):
        if not isinstance(record, Record | Note):
            raise TypeError(
                f"{callback!r}.measure gave a {type(record).__name__}; yield records: Scalar, "
                "Histogram, Figure, Text, Array or Note"
            )
        yield record
