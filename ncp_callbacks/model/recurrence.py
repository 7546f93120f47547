"""Find recurrences: series of calls of one module that pass a state on.

In a recurrence an array that one call returns is an argument of the next. Arrays are matched by
identity; by value where the model makes new arrays of them (slices, casts); and by the value of
each sequence where the model overwrites some sequences' states between the calls (masks, resets).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from .pytrees import Path
from .recording import Call, Values

__all__ = ["Recurrence", "find_recurrences", "may_hold_states", "outermost"]

# An output's place and an argument's place that hold the same state, one call apart.
_Pair: TypeAlias = "tuple[Path, Path]"


@dataclass(frozen=True, eq=False)
class Recurrence:
    """Hold calls of one module, each of which receives the state that the previous one returned.

    Attributes:
        calls: The calls in the order of running; several per time step for a solver's sub-steps.
        out_paths: Paths of the state arrays in the output.
        in_paths: Paths of the state arrays in the arguments.
        altered: True if the model overwrote some sequences' states between the calls.
        between: True if every state goes through other operations before the next call receives it.
    """

    calls: tuple[Call, ...]
    out_paths: tuple[Path, ...]
    in_paths: tuple[Path, ...]
    altered: bool
    between: bool = False

    def states(self, number: int) -> list[mx.array]:
        """Return the state arrays after a call."""
        return [self.calls[number].outputs[path] for path in self.out_paths]


@dataclass(frozen=True)
class _Link:
    source: int
    passed: bool = True
    altered: bool = False


def find_recurrences(
    calls: Sequence[Call],
    values: Values,
    batch: int,
    steps: int,
    *,
    least: int | None = None,
) -> list[Recurrence]:
    """Return the recurrences among one module's calls that are as long as the time steps.

    Args:
        calls: The calls.
        values: The values of arrays.
        batch: Number of sequences.
        steps: Number of time steps.
        least: Number of calls from which a recurrence is long enough; None: the time steps.
    """
    least = steps if least is None else least
    if len(calls) < least or steps < 2:
        return []
    by_calls: dict[tuple[int, ...], list[tuple[_Pair, bool]]] = defaultdict(list)
    taken: dict[int, tuple[int, ...]] = {}
    for pair, runs in _best_first(_runs(calls, values, batch, steps, least)):
        for run, altered in runs:
            # Of contradicting places the one that explains more calls is right.
            if all(taken.get(number, run) == run for number in run):
                taken.update(dict.fromkeys(run, run))
                by_calls[run].append((pair, altered))
    return [
        Recurrence(
            tuple(calls[number] for number in run),
            *_places([pair for pair, _ in pairs], calls[run[0]].outputs),
            altered=any(altered for _, altered in pairs),
        )
        for run, pairs in sorted(by_calls.items())
    ]


_Runs: TypeAlias = "dict[_Pair, list[tuple[tuple[int, ...], bool]]]"


def _best_first(runs: _Runs) -> list[tuple[_Pair, list[tuple[tuple[int, ...], bool]]]]:
    """Sort by number of calls, then later arguments first, as cells take ``(x, state)``."""
    listed = sorted(runs.items(), key=lambda item: _order(item[0][1]), reverse=True)
    return sorted(listed, key=lambda item: -sum(len(run) for run, _ in item[1]))


def _runs(calls: Sequence[Call], values: Values, batch: int, steps: int, least: int) -> _Runs:
    """Return, for each pair of places, the series of calls (by number) that it links."""
    found: _Runs = {}
    for pair, links in _links(calls, values, batch).items():
        series = [
            run
            for run in _linked_series(links, len(calls))
            if len(run) >= least
            and any(links[number].passed for number in run[1:])
            and _is_state([calls[number] for number in run], pair, values, batch, steps)
        ]
        if series:
            found[pair] = [(run, any(links[n].altered for n in run[1:])) for run in series]
    return found


def _linked_series(links: Mapping[int, _Link], count: int) -> list[tuple[int, ...]]:
    following: dict[int, int] = {}
    # A state that only kept its value may be another layer's, which starts from the same zeros.
    for number, link in sorted(links.items(), key=lambda item: not item[1].passed):
        following.setdefault(link.source, number)
    starts = [n for n in range(count) if n not in links or following[links[n].source] != n]
    series = []
    for start in starts:
        run = [start]
        while run[-1] in following:
            run.append(following[run[-1]])
        series.append(tuple(run))
    return series


def _links(calls: Sequence[Call], values: Values, batch: int) -> dict[_Pair, dict[int, _Link]]:
    """Return, for each pair of places, the earlier call whose output each call received."""
    found: dict[_Pair, dict[int, _Link]] = defaultdict(dict)
    sources_of: dict[Any, dict[Path, int]] = defaultdict(dict)
    for number, call in enumerate(calls):
        for place, given in call.inputs.items():
            key = values.key(given)
            sources = {**sources_of.get(key, {}), **sources_of.get(id(given), {})}
            for out_place, source in sources.items():
                found[out_place, place][number] = _Link(source)
            if number and not sources:
                for out_place in calls[number - 1].outputs:
                    pair = (out_place, place)
                    link = _link_by_sequence(calls[number - 1], call, pair, values, batch)
                    if link is not None:
                        found[pair][number] = _Link(number - 1, **link)
        for place, array in call.outputs.items():
            sources_of[id(array)][place] = number
            key = values.key(array)
            if key is not None:
                sources_of[key][place] = number
    return found


def _link_by_sequence(
    before: Call, call: Call, pair: _Pair, values: Values, batch: int
) -> dict[str, bool] | None:
    """Return a link if each sequence's state was returned, kept or reset to zero; else None."""
    out, given = before.outputs[pair[0]], call.inputs[pair[1]]
    if out.size != given.size or given.shape[:1] != (batch,):
        return None
    now = values.of(given).reshape(batch, -1)
    passed = _equal_rows(now, values.of(out.astype(given.dtype)).reshape(batch, -1))
    earlier = before.inputs.get(pair[1])
    held = np.zeros(batch, bool)
    if earlier is not None and earlier.size == given.size:
        held = _equal_rows(now, values.of(earlier).reshape(batch, -1))
    reset = (now == 0).all(axis=1)
    certain = passed & (now != now[:, :1]).any(axis=1)  # constant rows could be equal by chance
    if not (passed | held | reset).all() or not (certain.any() or held.all()):
        return None
    return {"passed": bool(certain.any()), "altered": not passed.all()}


def _equal_rows(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    equal: np.ndarray[Any, Any] = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    return equal


def _is_state(calls: Sequence[Call], pair: _Pair, values: Values, batch: int, steps: int) -> bool:
    out_place, in_place = pair
    outs = [call.outputs.get(out_place) for call in calls]
    first = outs[0]
    if first is None or any(out is None or out.shape != first.shape for out in outs):
        return False
    if not mx.issubdtype(first.dtype, mx.floating) or not may_hold_states(first, batch):
        return False
    if first.ndim > 2 and tuple(first.shape[:2]) in ((batch, steps), (steps, batch)):
        return False  # a sequence, which a block shared by several layers passes on
    return any(  # or the call only returns its argument
        in_place not in call.inputs or not values.same(call.inputs[in_place], out)
        for call, out in zip(calls, outs, strict=True)
        if out is not None
    )


def may_hold_states(array: mx.array, batch: int) -> bool:
    """Return whether an array may hold the states of all sequences, along any axis."""
    return any(size and size % batch == 0 for size in array.shape)


def _places(
    pairs: Iterable[_Pair], outputs: Iterable[Path]
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return one output place for each argument that takes a state: a cell may return it twice."""
    by_input: dict[Path, Path] = {}
    # The last place wins: cells return (output, state).
    for out_path, in_path in sorted(pairs, key=lambda p: (_order(p[1]), _order(p[0]))):
        by_input[in_path] = out_path
    by_output = {out_path: in_path for in_path, out_path in by_input.items()}
    places = [path for path in outputs if path in by_output]
    return tuple(places), tuple(by_output[path] for path in places)


def _order(path: Path) -> tuple[str, ...]:
    return tuple(f"{key:09d}" if isinstance(key, int) else str(key) for key in path)


def outermost(
    recurrences: Mapping[str, list[Recurrence]], values: Values
) -> dict[str, list[Recurrence]]:
    """Keep the outer of nested cells, unless it only bundles the states of the inner ones."""
    kept = dict(recurrences)
    for key, outer in recurrences.items():
        if key not in kept:
            continue
        calls = {id(call) for recurrence in outer for call in recurrence.calls}
        inner = {k: c for k, c in recurrences.items() if k != key and c[0].calls[0].within(calls)}
        if not inner:
            continue
        states = outer[0].states(-1)
        inside = [
            state for c in inner.values() for recurrence in c for state in recurrence.states(-1)
        ]
        bundled = all(any(values.same(a, b) for b in inside) for a in states)
        if len(states) > 1 and bundled:
            del kept[key]
        else:
            for k in inner:
                kept.pop(k, None)
    return kept
