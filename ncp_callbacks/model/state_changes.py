"""Change the states of a recurrent cell after each of its time steps, while the model runs.

changes = StateChanges(runner, hook)              # inside runner.preserved()
with changes.applied(lambda at, columns, rows: 0 * rows):
    runner.outputs(sequence, time_delta)          # of a cell whose state is always 0

A change reaches everything that reads the state: the next time step, what the model computes from
the cell's output, later layers inside the cell, and the sub-steps of its solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..arrays import to_mlx, to_numpy
from ..results import FloatArray
from .capture import Around, Tap
from .conventions import TIME_KEYWORDS
from .errors import NotApplicable
from .hook_points import CellHook
from .pytrees import Path, get_leaf, leaves, modules, replace_leaf
from .runner import ModelRunner

__all__ = ["ChangeStates", "Moment", "StateChanges"]

_Columns = npt.NDArray[np.intp]


class Moment(NamedTuple):
    """Tell when a state is changed.

    Attributes:
        time_step: Index along the sequence.
        is_last: False after a sub-step of the time step that others follow.
    """

    time_step: int
    is_last: bool


# Takes when, the columns of the state ``(k,)`` and their values ``(n B, k)``; returns new values.
ChangeStates = Callable[[Moment, _Columns, mx.array], mx.array]


@dataclass(frozen=True, eq=False)
class _Source:
    """Say where in the cell's submodules some columns of the new state can be changed.

    Attributes:
        module: The submodule.
        path: Path of the array, in its output or in ``(args, kwargs)``.
        columns: The column of the state in each column of the array.
        at_input: True for an array that the submodule receives.
        call: Number of its call within a call of the cell.
    """

    module: nn.Module
    path: Path
    columns: _Columns
    at_input: bool
    call: int


@dataclass(frozen=True, eq=False)
class _Copy:
    """Say how an array of the cell's output follows from its state: ``a * state[column] + b``.

    Attributes:
        path: Path of the array in the output.
        columns: The column of the state for each column of the array; -1 for none.
        slopes: ``a`` of each.
    """

    path: Path
    columns: _Columns
    slopes: FloatArray


class StateChanges:
    """Find how the states of one cell can be changed while the model runs.

    The constructor runs a few forward passes. Use an object only inside ``runner.preserved()``.

    A unit that a submodule of the cell computes, such as a neuron of a layer of a wired CfC, is
    changed there, so that later layers of the same time step receive the change. A solver with
    ``ode_unfolds`` is run one sub-step at a time, with the change after each.

    Args:
        runner: The model and the batch.
        hook: The cell.

    Raises:
        NotApplicable: If the states can't be changed from outside of the cell.

    Attributes:
        units: Number of units ``H``.
        doubts: What a change does not reach, one clause each; empty if it reaches everything.
    """

    def __init__(self, runner: ModelRunner, hook: CellHook) -> None:
        self._runner, self._hook = runner, hook
        self._module: nn.Module = dict(modules(runner.model))[hook.module]
        self._check_hook()
        self._now: Moment | None = None
        self._unfolds, self._time_path = 1, ()
        self._unfolds_name = ""
        self._calls: dict[int, int] = {}
        self._sources: list[_Source] = []
        self._copies: list[_Copy] = []
        self._own: _Columns = np.empty(0, np.intp)
        self.doubts: list[str] = []
        self._find()

    def _check_hook(self) -> None:
        hook = self._hook
        if hook.not_stepped:
            raise NotApplicable(hook.not_stepped)
        if hook.whole_sequence and (hook.reverse or hook.turned or hook.axis(0)):
            raise NotApplicable(
                f"{hook.name} runs over the whole sequence in an unknown way, so its states can't "
                "be changed between time steps"
            )
        if not hook.whole_sequence and not hook.in_paths:
            raise NotApplicable(
                f"{hook.name} keeps its state itself, so it can't be changed: pass the state to "
                "the cell as an argument and return it"
            )

    # ---- how the cell is built

    def _find(self) -> None:
        runner, hook = self._runner, self._hook
        sequence, delta = runner.sequence(), runner.time_delta
        inner = [] if hook.whole_sequence else [m for n, m in modules(self._module) if n]
        made: list[tuple[Any, list[tuple[nn.Module, int, Any, Any]]]] = []
        inside: list[tuple[nn.Module, int, Any, Any]] | None = None
        given_first: list[Any] = []

        def cell(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal inside
            inside = []
            given_first.append((args, kwargs))
            out = call(*args, **kwargs)
            made.append((out, inside))
            inside = None
            return out

        def of(module: nn.Module) -> Around:
            def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
                out = call(*args, **kwargs)
                if inside is not None:
                    number = sum(each[0] is module for each in inside)
                    inside.append((module, number, (args, kwargs), out))
                return out

            return wrapper

        with Tap().on([(self._module, cell), *((m, of(m)) for m in inner)]):
            plain = runner.outputs(sequence, delta)
        mx.eval(plain)
        if len(made) != hook.calls_in_all:
            raise NotApplicable(f"{hook.name} is called a different number of times in each pass")
        numbers = [hook.calls[0]] if hook.whole_sequence else list(hook.calls)
        outputs = [made[number][0] for number in numbers]
        self._widths = [
            self._rows(get_leaf(outputs[0], path), i).shape[-1]
            for i, path in enumerate(hook.out_paths)
        ]
        self.units = sum(self._widths)
        self._own = np.arange(self.units)
        if not hook.whole_sequence:
            states = [to_numpy(self._state(out)) for out in outputs]
            self._find_sources([made[number][1] for number in numbers], states)
            self._find_copies(outputs, np.stack(states))
            self._find_sub_steps(given_first[numbers[0]])
        self._check(sequence, delta, plain)

    def _find_sources(
        self, inside: list[list[tuple[nn.Module, int, Any, Any]]], states: list[FloatArray]
    ) -> None:
        """Find submodules that compute, or receive, units of the new state."""
        missing = set(range(self.units))
        for at_input in (False, True):
            for place, (module, number, given, out) in enumerate(inside[0]):
                computed: set[int] = set()
                # A layer often returns its state twice, as output and as state.
                for path, array in leaves(given if at_input else out):
                    columns = self._columns_of(array, states[0])
                    if columns is None or not set(columns.tolist()) <= missing:
                        continue
                    source = _Source(module, path, columns, at_input, number)
                    if self._holds(source, place, inside, states):
                        self._sources.append(source)
                        computed |= set(columns.tolist())
                missing -= set() if at_input else computed
        self._own = np.array(sorted(missing), np.intp)

    @staticmethod
    def _columns_of(array: mx.array, state: FloatArray) -> _Columns | None:
        """Return which unit each column of an array ``(B, k)`` is; None if it holds others."""
        if array.ndim != 2 or len(array) != len(state) or array.shape[1] > state.shape[1]:
            return None
        values = to_numpy(array)
        equal = (values[:, :, None] == state[:, None, :]).all(axis=0)
        first = equal.argmax(axis=1)
        different = len(set(first.tolist())) == len(first)
        return first.astype(np.intp) if equal.any(axis=1).all() and different else None

    @staticmethod
    def _holds(
        source: _Source,
        place: int,
        inside: list[list[tuple[nn.Module, int, Any, Any]]],
        states: list[FloatArray],
    ) -> bool:
        """Return whether an array holds the units at each time step."""
        for calls, state in zip(inside, states, strict=True):
            if len(calls) <= place or calls[place][0] is not source.module:
                return False
            array = get_leaf(calls[place][2 if source.at_input else 3], source.path)
            if not isinstance(array, mx.array) or array.shape != (len(state), len(source.columns)):
                return False
            if not (to_numpy(array) == state[:, source.columns]).all():
                return False
        return True

    def _find_copies(self, outputs: list[Any], states: FloatArray) -> None:
        """Find arrays of the output that are units of the state, or such a unit scaled."""
        hook = self._hook
        reads_inside = bool(self._sources)
        flat = states.reshape(-1, self.units).astype(np.float64)
        for path, first in list(leaves(outputs[0])):
            if path in hook.out_paths or not mx.issubdtype(first.dtype, mx.floating):
                continue
            arrays = [get_leaf(out, path) for out in outputs]
            if not all(
                isinstance(a, mx.array) and a.ndim == 2 and len(a) == states.shape[1]
                for a in arrays
            ):
                continue
            values = np.stack([to_numpy(a) for a in arrays]).reshape(-1, arrays[0].shape[1])
            columns, slopes = _affine_columns(values.astype(np.float64), flat)
            from_inside = ~np.isin(columns, self._own) & (columns >= 0)
            columns = np.where(from_inside, -1, columns)
            if (columns >= 0).any():
                self._copies.append(_Copy(path, columns, slopes))
            unknown = (columns < 0) & ~from_inside & (np.ptp(values, axis=0) > 0)
            if unknown.any() and len(self._own) and not reads_inside:
                self.doubts.append(
                    f"{hook.name} computes its output inside, so that a change of the state "
                    "reaches the output only from the next time step on"
                )

    def _find_sub_steps(self, given: Any) -> None:
        """Find the setting and the argument with which a solver is run one sub-step at a time."""
        if self._hook.between or self._sources:
            return
        for name in ("ode_unfolds", "_ode_unfolds", "unfolds", "_unfolds"):
            count = getattr(self._module, name, None)
            if isinstance(count, int) and not isinstance(count, bool) and count > 1:
                self._unfolds, self._unfolds_name = count, name
                self._time_path = self._find_time(given)
        if self._unfolds > 1 and not self._time_path:
            self._without_sub_steps()

    def _find_time(self, given: Any) -> Path:
        """Return the path of the elapsed time in the arguments of the cell; () if unknown."""
        import inspect

        args, kwargs = given
        for name in kwargs:
            if name in TIME_KEYWORDS:
                return (1, name)
        names = list(inspect.signature(type(self._module).__call__).parameters)[1:]
        for index, name in enumerate(names[: len(args)]):
            if name in TIME_KEYWORDS:
                return (0, index)
        return ()

    def _without_sub_steps(self) -> None:
        self._unfolds = 1
        self.doubts.append(
            f"the solver of {self._hook.name} can't be run sub-step by sub-step, so that its state "
            "is changed at the end of each time step only and moves within it"
        )

    def _check(self, sequence: mx.array, delta: mx.array | None, plain: mx.array) -> None:
        """Run the model without a change, and with all units set; compare with what must come.

        Raises:
            NotApplicable: If something else comes.
        """
        expected = to_numpy(plain)
        size = float(np.nan_to_num(np.abs(expected), posinf=0.0).max(initial=1e-6))

        def unchanged() -> bool:
            with self.applied(lambda at, columns, rows: rows):
                try:
                    found = to_numpy(self._runner.outputs(sequence, delta))
                except NotApplicable:
                    raise
                except Exception as error:
                    raise NotApplicable(
                        f"{self._hook.name} can't be run step by step "
                        f"({type(error).__name__}: {error})"
                    ) from error
            return found.shape == expected.shape and bool(
                np.allclose(found, expected, rtol=0, atol=1e-4 * size, equal_nan=True)
            )

        if self._unfolds > 1 and not unchanged():
            self._without_sub_steps()
        if self._unfolds == 1 and not unchanged():
            raise NotApplicable(
                f"{self._hook.name}, run step by step, returns something else: it depends on more "
                "than its arguments"
            )
        self._check_all_set(sequence, delta)

    def _check_all_set(self, sequence: mx.array, delta: mx.array | None) -> None:
        wanted = to_mlx(0.1 * np.cos(np.arange(self.units)).astype(np.float32))
        after: list[mx.array] = []

        def cell(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = call(*args, **kwargs)
            if not self._hook.whole_sequence:
                after.append(self._state(out))
            return out

        def every(at: Moment, columns: _Columns, rows: mx.array) -> mx.array:
            return mx.broadcast_to(wanted[to_mlx(columns)], rows.shape).astype(rows.dtype)

        # The tap that is opened last is outside, and reads what the rest of the model receives.
        with self.applied(every), Tap().on([(self._module, cell)]):
            self._runner.outputs(sequence, delta)
        for number in self._hook.calls if after else ():
            if not np.allclose(to_numpy(after[number]), to_numpy(wanted), rtol=0, atol=1e-3):
                raise NotApplicable(
                    f"the states of {self._hook.name} can't be changed from outside of the cell"
                )

    # ---- changing

    @contextmanager
    def applied(self, change: ChangeStates) -> Iterator[None]:
        """Change the states in the passes of a ``with`` block.

        Args:
            change: Called after each time step, and each sub-step, for some of the columns.
        """
        count = 0
        hook = self._hook
        begin, per_step = hook.first, hook.calls_per_step
        order = {number: t for t, number in enumerate(hook.calls)}
        ends = np.array(sorted(order))

        def moment(number: int) -> Moment | None:
            number %= hook.calls_in_all
            end = int(np.searchsorted(ends, number))
            if number < begin or end == len(ends) or ends[end] - number >= per_step:
                return None
            return Moment(order[int(ends[end])], bool(ends[end] == number))

        def cell(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal count
            number, count = count, count + 1
            if hook.whole_sequence:
                is_it = number % hook.calls_in_all == hook.calls[0]
                return (
                    self._stepwise(call, args, kwargs, change) if is_it else call(*args, **kwargs)
                )
            at = moment(number)
            if at is None:
                return call(*args, **kwargs)
            return self._one_step(call, args, kwargs, change, at)

        inner: dict[int, list[_Source]] = {}
        for source in self._sources:
            inner.setdefault(id(source.module), []).append(source)
        taps = [(group[0].module, self._inner(group, change)) for group in inner.values()]
        try:
            with Tap().on([(self._module, cell), *taps]):
                yield
        finally:
            self._now = None

    def _inner(self, sources: list[_Source], change: ChangeStates) -> Around:
        """Return what changes the units that a submodule computes or receives."""

        def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            now = self._now
            if now is None:
                return call(*args, **kwargs)
            number = self._calls.get(id(sources[0].module), 0)
            self._calls[id(sources[0].module)] = number + 1
            given: Any = (args, kwargs)
            for source in sources:
                if source.at_input and source.call == number:
                    # Only units that no submodule computes, which are changed there already.
                    rows = get_leaf(given, source.path)
                    given = replace_leaf(given, source.path, change(now, source.columns, rows))
            out = call(*given[0], **given[1])
            for source in sources:
                if not source.at_input and source.call == number:
                    rows = get_leaf(out, source.path)
                    out = replace_leaf(out, source.path, change(now, source.columns, rows))
            return out

        return wrapper

    def _one_step(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        change: ChangeStates,
        at: Moment,
    ) -> Any:
        if self._unfolds == 1:
            return self._changed(call, (args, kwargs), change, at)
        given: Any = (args, kwargs)
        given = replace_leaf(
            given, self._time_path, get_leaf(given, self._time_path) / self._unfolds
        )
        out = None
        setattr(self._module, self._unfolds_name, 1)
        try:
            for sub_step in range(self._unfolds):
                is_last = at.is_last and sub_step == self._unfolds - 1
                out = self._changed(call, given, change, Moment(at.time_step, is_last))
                for path, own in zip(self._hook.in_paths, self._hook.out_paths, strict=True):
                    given = replace_leaf(given, path, get_leaf(out, own))
        finally:
            setattr(self._module, self._unfolds_name, self._unfolds)
        return out

    def _changed(
        self, call: Callable[..., Any], given: Any, change: ChangeStates, at: Moment
    ) -> Any:
        """Call the cell and change the units that no submodule computes."""
        self._now, self._calls = at, {}
        out = call(*given[0], **given[1])
        self._now = None
        if not len(self._own):
            return out
        old = self._state(out)
        whole = len(self._own) == self.units
        new = change(at, self._own, old if whole else old[:, to_mlx(self._own)])
        if not whole:
            places = np.full(self.units, -1)
            places[self._own] = np.arange(len(self._own))
            parts = [
                new[:, int(p) : int(p) + 1] if p >= 0 else old[:, i : i + 1]
                for i, p in enumerate(places)
            ]
            new = mx.concatenate(parts, axis=-1)
        return self._with_state(out, old, new)

    def _with_state(self, out: Any, old: mx.array, new: mx.array) -> Any:
        """Return the output of the cell with another state, and what follows from that."""
        states = {id(get_leaf(out, path)): i for i, path in enumerate(self._hook.out_paths)}
        ends = np.cumsum(self._widths)
        parts = mx.split(new, ends[:-1].tolist(), axis=-1)
        copies = {copy.path: copy for copy in self._copies}
        for path, array in list(leaves(out)):
            if id(array) in states:
                number = states[id(array)]
                changed = self._unflat(parts[number], array, number)
            elif path in copies:
                copy = copies[path]
                use = np.maximum(copy.columns, 0)
                slopes = to_mlx(np.where(copy.columns >= 0, copy.slopes, 0.0).astype(np.float32))
                difference = (new - old)[:, to_mlx(use)]
                changed = array + (difference * slopes).astype(array.dtype)
            else:
                continue
            out = replace_leaf(out, path, changed)
        return out

    def _stepwise(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        change: ChangeStates,
    ) -> Any:
        """Run a layer that takes the whole sequence one time step at a time."""
        x = args[0] if args else None
        if not isinstance(x, mx.array) or x.ndim != 3:
            raise NotApplicable(
                f"{self._hook.name} runs over the whole sequence in an unknown way, so its states "
                "can't be changed between time steps"
            )
        paths = self._hook.out_paths
        states: Any = args[1:]
        every: list[list[Any]] = [[] for _ in paths]
        out: Any = None
        for t in range(x.shape[1]):
            out = call(x[:, t : t + 1], *states, **(kwargs if t == 0 else {}))
            rows = mx.concatenate([get_leaf(out, path)[:, 0] for path in paths], axis=-1)
            new = change(Moment(t, True), self._own, rows)
            states = mx.split(new, np.cumsum(self._widths)[:-1].tolist(), axis=-1)
            for kept, state in zip(every, states, strict=True):
                kept.append(state)
        for path, kept in zip(paths, every, strict=True):
            out = replace_leaf(out, path, mx.stack(kept, axis=1))
        return out

    # ---- arrays

    def _state(self, out: Any) -> mx.array:
        """Return the state ``(n B, H)`` in an output of the cell."""
        rows = [self._rows(get_leaf(out, p), i) for i, p in enumerate(self._hook.out_paths)]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=-1)

    def _rows(self, array: mx.array, number: int) -> mx.array:
        if self._hook.whole_sequence:
            return array
        moved = mx.moveaxis(array, self._hook.axis(number), 0) if self._hook.axis(number) else array
        return moved.reshape(len(moved), -1)

    def _unflat(self, rows: mx.array, like: mx.array, number: int) -> mx.array:
        axis = self._hook.axis(number)
        sizes = [size for i, size in enumerate(like.shape) if i != axis]
        shaped = rows.reshape(len(rows), *sizes)
        return mx.moveaxis(shaped, 0, axis) if axis else shaped


def _affine_columns(values: FloatArray, states: FloatArray) -> tuple[_Columns, FloatArray]:
    """Return which unit each column of values is, but for scale and offset, and the scale.

    Args:
        values: ``(N, k)``.
        states: ``(N, H)``.

    Returns:
        ``(k,)``, -1 for a column that follows from no single unit, and ``(k,)``, the scales.
    """
    y, h = values - values.mean(axis=0), states - states.mean(axis=0)
    variance, shared = (h**2).sum(axis=0), y.T @ h
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.where(variance > 0, shared / variance, 0.0)
        share = 1 - slopes * shared / (y**2).sum(axis=0)[:, None]
    share = np.where(np.isfinite(share), share, np.inf)
    best = share.argmin(axis=1)
    rows = np.arange(len(best))
    # float32 rounding.
    fits = share[rows, best] < 1e-10
    return np.where(fits, best, -1), np.where(fits, slopes[rows, best], 0.0)
