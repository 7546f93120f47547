"""Own a copy of the model, and turn snapshots of it into records.

    observer = Observer(copy, held_out, callbacks, Settings())
    observer.dry_run()                        # configuration errors come out here
    analysis = observer.analyse(Request(step, time.time(), snapshot, due=("attribution",)))

An observer runs in the training loop's thread or in a process of its own. It is the same object in
both places, and gives the same records.
"""

from __future__ import annotations

import copy as copying
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from ..callback import Callback
from ..errors import one_line, traceback_of
from ..held_out import HeldOutBatch
from ..model import At, Memory, ModelCopy, ModelRunner, NotApplicable, TargetLike
from ..model.checks.state_between_batches import StateBetweenBatches
from ..model.own_arrays import array_bytes
from ..observation import Need, Observation
from ..pass_costs import SHARED_PASS, PassCosts, SharedResults
from ..passes import observe
from ..progress import progress
from ..records import Note, Record, Scalar, detached
from ..signal_handlers import raised_by_signal_handler
from ..threads import one_blas_thread
from .describe import ArrayDescriber
from .outside import changed_outside, values_outside
from .plan import SharedPass, repeated_needs, shared_passes
from .snapshot import Snapshot, SnapshotLoader

__all__ = ["Analysis", "DryRun", "Failure", "Observer", "Request", "Settings"]

# Which of a callback's methods an analysis calls.
Method: TypeAlias = "Callable[[Callback], Callable[[Observation], Iterable[Record | Note]]]"


def _ignore(_: str) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Settings:
    """How the model is analysed; arguments of :class:`~ncp_callbacks.Monitor`.

    Attributes:
        target, at, cells, layers, chunk_size, horizon: As there.
        state: The state that the model keeps between batches, on entering; None: as it is.
        raise_errors: Let the error of a callback come out of :meth:`Observer.analyse`.
        isolated: The process is the observer's own: a callback that calls ``sys.exit`` ends itself.
    """

    target: TargetLike = "prediction"
    at: At = "last"
    cells: str | Sequence[str] | None = None
    layers: str | Sequence[str] | None = None
    chunk_size: int | None = None
    horizon: bool | None = None
    state: StateBetweenBatches | None = None
    raise_errors: bool = False
    isolated: bool = False


@dataclass(frozen=True, eq=False)
class Request:
    """Ask for the analysis of one snapshot.

    Attributes:
        step: The training step.
        wall_time: When it was read, in seconds since 1970.
        snapshot: What the model holds.
        due: Names of the callbacks that are due.
        finish: Call their ``finish`` instead of ``measure``.
        training_peak: Peak memory of the training so far, in bytes.
    """

    step: int
    wall_time: float
    snapshot: Snapshot
    due: tuple[str, ...]
    finish: bool = False
    training_peak: int = 0


@dataclass(frozen=True)
class Failure:
    """An error that stopped callbacks.

    Attributes:
        message: What failed, with the error.
        details: The traceback.
        names: The callbacks that are disabled.
    """

    message: str
    details: str
    names: tuple[str, ...]


@dataclass(eq=False)
class Analysis:
    """Everything that came of one snapshot.

    Attributes:
        step, wall_time: Those of the request.
        records: What the callbacks yielded, without notes.
        notes: What the user should know.
        failures: What went wrong.
        not_applicable: Callbacks that don't apply to the model, and are disabled.
        seconds: Time that callbacks took without their passes, by name.
        costs: Number and time of the passes, by kind.
        state: What a resumed run needs of each callback, by name; filled in by who asked for the
            analysis.
    """

    step: int
    wall_time: float
    records: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    not_applicable: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    costs: PassCosts = field(default_factory=PassCosts)
    state: dict[str, Any] = field(default_factory=dict)

    def cost_records(self) -> Iterator[Scalar]:
        """Yield the time of each callback, and the number and time of each kind of passes."""
        for name, seconds in self.seconds.items():
            text = f"Time of the analysis for {name}, without its passes; s"
            yield Scalar(f"monitor/seconds/{name}", seconds, text, place="data")
        for kind, passes in self.costs.passes.items():
            what = f"extra passes of the kind {kind}, which callbacks declared"
            if kind == SHARED_PASS:
                what = "passes that callbacks share"
            text = f"Number of {what}; one runs each sequence analysed once"
            yield Scalar(f"monitor/passes/{kind}", passes, text, place="data")
            seconds = self.costs.seconds.get(kind, 0.0)
            tag = f"monitor/pass_seconds/{kind}"
            yield Scalar(tag, seconds, f"Time of {what}; s", place="data")

    @property
    def disabled(self) -> set[str]:
        """Names of the callbacks that are not asked again."""
        failed = {name for failure in self.failures for name in failure.names}
        return failed | set(self.not_applicable)


@dataclass(frozen=True)
class DryRun:
    """What running every callback once showed.

    Attributes:
        records: The records, which only tell which tags will come.
        notes: What the user should know.
        not_applicable: Names of the callbacks that don't apply to the model.
    """

    records: tuple[Record, ...]
    notes: tuple[str, ...]
    not_applicable: tuple[str, ...]


class Observer:
    """Analyses a copy of a model on the held-out batch.

    Args:
        copy: The copy, loaded.
        held_out: The batch.
        callbacks: What to analyse. Their state is kept here.
        settings: How.

    Raises:
        ModelError, TypeError, ValueError: If model, batch and settings don't fit each other.
    """

    def __init__(
        self,
        copy: ModelCopy,
        held_out: HeldOutBatch,
        callbacks: Iterable[Callback],
        settings: Settings,
    ) -> None:
        self._copy, self._loader = copy, SnapshotLoader(copy)
        self._settings = settings
        self._callbacks = {callback.name: callback for callback in callbacks}
        self._batch = len(held_out)
        self._arrays = ArrayDescriber(held_out)
        self._memory = Memory(bounded=settings.chunk_size is None, own_process=settings.isolated)
        self.runner = ModelRunner(
            copy,
            held_out,
            target=settings.target,
            at=settings.at,
            horizon=settings.horizon,
            state=settings.state,
            cells=settings.cells,
            layers=settings.layers,
            max_sequences=settings.chunk_size,
        )

    @property
    def memory_per_sequence(self) -> float | None:
        """Bytes that a pass takes for each sequence, as the dry run showed."""
        return self._memory.per_sequence

    @memory_per_sequence.setter
    def memory_per_sequence(self, nbytes: float | None) -> None:
        self._memory.per_sequence = nbytes

    # ---- before training

    def dry_run(self) -> DryRun:
        """Run every callback once on a small batch.

        Raises:
            RuntimeError: If one fails.
        """
        records: list[Record] = []
        notes: list[str] = [*self.runner.notes, *self._check_reproducible()]
        not_applicable: list[str] = []
        small = self.runner.few()
        callbacks = list(self._callbacks.values())
        with small.analysing(), self._room_for_the_batch(small), one_blas_thread():
            with self._memory.measure(len(small.held_out)):
                needs = frozenset[Need]().union(*(c.needs for c in callbacks))
                if Need.VARIANT_GRADIENTS in needs:
                    # Passes that need the most memory are the ones to measure.
                    needs |= {Need.INPUT_GRADIENT}
                # As in an analysis: what one callback has run, others don't run again.
                shared = SharedResults(repeated_needs(callbacks))
                observation = observe(small, 0, needs, shared=shared)
            # The standard set takes no time; others may take seconds.
            for callback in progress(callbacks, "dry run", "callback", min_items=8):
                # A copy, so that nothing is remembered of an analysis that doesn't count.
                rehearsal = _rehearsal(callback)
                if rehearsal is None:
                    continue
                try:
                    # Notes are of two sequences: the first analysis tells what is true of all.
                    if rehearsal.target is None:
                        own = observation.declaring(rehearsal.needs)
                    else:
                        own = observe(
                            small, 0, rehearsal.needs, target=rehearsal.target, shared=shared
                        )
                    own = own.limited(rehearsal.max_sequences)
                    found = checked_records(rehearsal, rehearsal.measure(own))
                    records += [record for record in found if not isinstance(record, Note)]
                except NotApplicable as reason:
                    not_applicable.append(callback.name)
                    notes.append(f"{callback.name} doesn't apply to this model: {reason}")
                except Exception as error:
                    if raised_by_signal_handler(error):
                        raise
                    raise RuntimeError(
                        f"{callback!r} failed in the dry run, before the first step: "
                        f"{type(error).__name__}: {error}"
                    ) from error
        self._disable(not_applicable)
        return DryRun(tuple(records), tuple(notes), tuple(not_applicable))

    @contextmanager
    def _room_for_the_batch(self, small: ModelRunner) -> Iterator[None]:
        """Let passes of a few sequences hold variants, up to the size of the whole batch.

        How many more there is memory for is known after the first pass of the whole batch.
        """
        before, small.room = small.room, self._batch
        try:
            yield
        finally:
            small.room = before

    def _check_reproducible(self) -> Iterator[str]:
        """Yield a note if two runs from the same start differ, or change something outside."""
        small = self.runner.few()
        before = values_outside(self._copy.model)
        outputs: list[bytes] = []
        for _ in range(2):
            with small.analysing():
                found = small.outputs(small.sequence(), small.time_delta)
                outputs.append(array_bytes(found))
        changed = changed_outside(before, values_outside(self._copy.model))
        if changed:
            yield (
                f"running the model changes {', '.join(changed)}, which lies outside of the model "
                "and isn't copied: analyses in the training process change it for the training, "
                "too. Keep it on the model, or pass background=True"
            )
        if outputs[0] != outputs[1]:
            yield (
                "two runs of the model from the same state gave different outputs: something that "
                "it uses lies outside of it (a global variable, a file, a clock) and isn't copied, "
                "so its numbers differ from analysis to analysis. Keep it on the model, or pass it "
                "in with forward="
            )

    # ---- state

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs of each callback, by name."""
        return {name: plain(c.state_dict()) for name, c in self._callbacks.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Give the callbacks what :meth:`state` returned."""
        for name, of_one in state.items():
            if name in self._callbacks:
                self._callbacks[name].load_state_dict(of_one)

    # ---- analysing

    def analyse(self, request: Request, *, reached: Callable[[str], None] = _ignore) -> Analysis:
        """Run the due callbacks on a snapshot.

        Args:
            request: What is asked for.
            reached: Called with the name of each callback before it runs.

        Raises:
            Exception: What a signal handler of the user's raised meanwhile; and with
                ``raise_errors`` what a callback raised.
        """
        analysis = Analysis(request.step, request.wall_time)
        due = [self._callbacks[name] for name in request.due if name in self._callbacks]
        method: Method = (lambda c: c.finish) if request.finish else (lambda c: c.measure)
        try:
            self._loader.load(request.snapshot)
            with (
                self.runner.analysing(),
                self._memory.bounding(self.runner, request.training_peak),
                one_blas_thread(),
            ):
                shared = SharedResults(repeated_needs(due))
                for planned in shared_passes(due, self._batch):
                    for observation, callbacks in self._observations(analysis, planned, shared):
                        for callback in callbacks:
                            reached(callback.name)
                            with _timing(analysis, callback.name):
                                self._run(callback, observation, analysis, method)
        except Exception as error:
            if self._settings.raise_errors or raised_by_signal_handler(error):
                raise
            self._fail(analysis, f"the analysis failed at step {request.step}", error, due)
        return analysis

    def _observe(
        self, analysis: Analysis, planned: SharedPass, shared: SharedResults
    ) -> Observation:
        at_once = min(planned.max_sequences, self.runner.max_sequences or planned.max_sequences)
        with (
            self._memory.measure_room(self.runner, at_once)
            if Need.INPUT_GRADIENT in planned.needs
            else nullcontext()
        ):
            return observe(
                self.runner,
                analysis.step,
                planned.needs,
                max_sequences=planned.max_sequences,
                target=planned.target,
                costs=analysis.costs,
                shared=shared,
            )

    def _observations(
        self, analysis: Analysis, planned: SharedPass, shared: SharedResults
    ) -> Iterator[tuple[Observation, Sequence[Callback]]]:
        """Yield one observation for all, or where that fails one for each that can have one."""
        due = planned.callbacks
        try:
            yield self._observe(analysis, planned, shared), due
            return
        except Exception as error:
            if self._settings.raise_errors or len(due) == 1 or raised_by_signal_handler(error):
                raise
        failed: dict[str, tuple[Exception, list[Callback]]] = {}
        for callback in due:
            try:
                (alone,) = shared_passes([callback], self._batch)
                own = self._observe(analysis, alone, shared)
            except Exception as error:
                if raised_by_signal_handler(error):
                    raise
                what = one_line(error)
                failed.setdefault(what, (error, []))[1].append(callback)
                continue
            yield own, [callback]
        for cause, callbacks in failed.values():
            self._fail(analysis, f"the analysis failed at step {analysis.step}", cause, callbacks)

    def _run(
        self, callback: Callback, observation: Observation, analysis: Analysis, method: Method
    ) -> None:
        try:
            own = observation.declaring(callback.needs).limited(callback.max_sequences)
            for record in checked_records(callback, method(callback)(own)):
                if isinstance(record, Note):
                    analysis.notes.append(record.message)
                else:
                    described = self._arrays.describe(record, callback, observation)
                    analysis.records.append(detached(described))
        except NotApplicable as reason:
            analysis.notes.append(f"{callback.name} is skipped from now on: {reason}")
            analysis.not_applicable.append(callback.name)
            self._disable([callback.name])
        except BaseException as error:
            if not self._settings.isolated and (
                self._settings.raise_errors
                or not isinstance(error, Exception)
                or raised_by_signal_handler(error)
            ):
                raise
            what = f"{callback.name} failed at step {analysis.step}"
            self._fail(analysis, what, error, [callback])

    def _fail(
        self, analysis: Analysis, what: str, error: BaseException, callbacks: Sequence[Callback]
    ) -> None:
        names = tuple(callback.name for callback in callbacks)
        disabled = f"; {', '.join(names)} disabled" if names else ""
        analysis.failures.append(
            Failure(f"{what}{disabled}: {one_line(error)}", traceback_of(error), names)
        )
        self._disable(names)

    def _disable(self, names: Iterable[str]) -> None:
        for name in names:
            self._callbacks.pop(name, None)


@contextmanager
def _timing(analysis: Analysis, callback: str) -> Iterator[None]:
    """Log the time of a ``with`` block for a callback, without that of its passes."""
    passes = analysis.costs.seconds
    start, before = time.perf_counter(), sum(passes.values())
    try:
        yield
    finally:
        in_passes = sum(passes.values()) - before
        analysis.seconds[callback] = time.perf_counter() - start - in_passes


def _rehearsal(callback: Callback) -> Callback | None:
    try:
        return copying.deepcopy(callback)
    except Exception:  # it holds something that can't be copied: rehearsing would count
        return None


def checked_records(
    callback: Callback, records: Iterable[Record | Note]
) -> Iterator[Record | Note]:
    """Iterate over what a callback made.

    Raises:
        TypeError: If something in it is no record.
    """
    if records is None or isinstance(records, Record | Note):
        raise TypeError(
            f"{callback!r}.measure returned {'None' if records is None else type(records).__name__}"
            ", which is not a list of records: return [Scalar(...)], or [] for none, or yield them"
        )
    for record in records:
        if not isinstance(record, Record | Note):
            raise TypeError(
                f"{callback!r}.measure yielded a {type(record).__name__}; yield records: Scalar, "
                "Histogram, Figure, Text, Array or Note"
            )
        yield record


_PLAIN = frozenset({float, int, str, bool, type(None)})


def plain(value: Any) -> Any:
    """Return arrays and numpy numbers as lists and Python's numbers, which keep every digit."""
    if type(value) in _PLAIN:  # by far the most
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, mx.array):
        return value.tolist()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
