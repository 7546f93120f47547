"""Which module is the recurrent cell and which layers are its backbone, found by watching a run.

Names and classes say little about a model one has never seen, so one forward pass of two sequences
is recorded, call by call. A cell is a module that is called once per time step and hands a state
on: an array that one call returns is an argument of the next. Its backbone is what feeds the
layers inside it: hidden activations between one layer with parameters and another.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..analysis.backbone import recognise_activation
from ..held_out import HeldOutBatch, to_numpy
from .capture import Around, Tap
from .errors import ModelError
from .trees import Path, leaves, modules

__all__ = ["CellSite", "LayerSite", "Sites", "find_sites"]

_SEQUENCE_LAYERS = (nn.RNN, nn.GRU, nn.LSTM)


@dataclass(frozen=True, eq=False)
class CellSite:
    """Where the states of one recurrent cell can be read.

    Attributes:
        name: Module path; with ``#1``, ``#2`` where one module is run over the sequence repeatedly.
        module: The module.
        out_paths: Where its output holds the state arrays.
        in_paths: Where its arguments ``(args, kwargs)`` take them; empty for a layer that runs
            over the whole sequence by itself.
        calls: Which of the module's calls in one pass give the states after steps 1 to T.
        reverse: Whether it runs from the last step to the first.
        whole_sequence: Whether one call returns the states of all steps, ``(B, T, H)``.
    """

    name: str
    module: nn.Module
    out_paths: tuple[Path, ...]
    in_paths: tuple[Path, ...]
    calls: slice
    reverse: bool
    whole_sequence: bool = False


@dataclass(frozen=True, eq=False)
class LayerSite:
    """Where the activations of one hidden layer can be read.

    Attributes:
        name: Path of the layer that computes them.
        module: Module whose call shows them.
        path: Where in its output, or in ``(args, kwargs)`` where ``at_input``.
        at_input: Whether to read arguments rather than output.
        activation: Name of the activation function, "unknown" if it isn't recognised.
        calls: Which of the module's calls in one pass belong to steps 1 to T.
        whole_sequence: Whether one call covers all steps.
    """

    name: str
    module: nn.Module
    path: Path
    at_input: bool
    activation: str
    calls: slice
    whole_sequence: bool = False


@dataclass(frozen=True)
class Sites:
    """What was found.

    Attributes:
        cells: In the order in which they are first called.
        layers: Likewise.
        notes: What was not found or not understood, one sentence each.
    """

    cells: tuple[CellSite, ...]
    layers: tuple[LayerSite, ...]
    notes: tuple[str, ...]


@dataclass(eq=False)
class _Call:
    module: nn.Module
    path: str
    parent: _Call | None
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    inputs: list[tuple[Path, mx.array]]
    output: Any = None
    outputs: list[tuple[Path, mx.array]] = field(default_factory=list)
    children: list[_Call] = field(default_factory=list)

    def inside(self, others: Iterable[_Call]) -> bool:
        ids = {id(o) for o in others}
        above = self.parent
        while above is not None:
            if id(above) in ids:
                return True
            above = above.parent
        return False

    def descendants(self) -> list[_Call]:
        return [c for child in self.children for c in (child, *child.descendants())]


def _record(model: nn.Module, run: Callable[[], Any]) -> list[_Call]:
    """All module calls of one run, in the order in which they began."""
    calls: list[_Call] = []
    stack: list[_Call] = []

    def around(module: nn.Module, path: str) -> Around:
        def wrapper(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            parent = stack[-1] if stack else None
            this = _Call(module, path, parent, (args, kwargs), list(leaves((args, kwargs))))
            calls.append(this)
            if parent is not None:
                parent.children.append(this)
            stack.append(this)
            try:
                this.output = call(*args, **kwargs)
            finally:
                stack.pop()
            this.outputs = list(leaves(this.output))
            return this.output

        return wrapper

    with Tap().on([(module, around(module, path)) for path, module in modules(model)]):
        run()
    mx.eval([array for call in calls for _, array in (*call.inputs, *call.outputs)])
    return calls


class _Values:
    """Arrays compared by value, each converted once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[mx.array, np.ndarray[Any, Any]]] = {}

    def of(self, array: mx.array) -> np.ndarray[Any, Any]:
        if id(array) not in self._known:
            self._known[id(array)] = (array, to_numpy(array).ravel())
        return self._known[id(array)][1]

    def equal(self, a: mx.array, b: mx.array) -> bool:
        """Equal and not trivially so, whatever axes of length 1 there are."""
        if a.size != b.size or a.size < 2:
            return False
        x, y = self.of(a), self.of(b)
        return bool((x == y).all() and (x != x[0]).any())


def _handed_on(first: _Call, second: _Call, values: _Values) -> set[tuple[Path, Path]]:
    """Pairs of (output of the first call, input of the second) that are the same array."""
    same = {
        (out_path, in_path)
        for out_path, out in first.outputs
        for in_path, given in second.inputs
        if out is given
    }
    if same:
        return same
    return {
        (out_path, in_path)
        for out_path, out in first.outputs
        for in_path, given in second.inputs
        if values.equal(out, given)
    }


@dataclass(eq=False)
class _Chain:
    """Consecutive calls of one module, each given what the one before returned."""

    start: int
    calls: list[_Call]
    pairs: set[tuple[Path, Path]]

    def states(self) -> list[tuple[Path, Path]]:
        """One output path per input that takes a state (a cell may return its state twice)."""
        by_input: dict[Path, Path] = {}
        # The last place wins: cells return (output, state).
        for out_path, in_path in sorted(self.pairs, key=lambda p: (_order(p[1]), _order(p[0]))):
            by_input[in_path] = out_path
        by_output = {out_path: in_path for in_path, out_path in by_input.items()}
        return list(by_output.items())


def _order(path: Path) -> tuple[str, ...]:
    return tuple(f"{key:09d}" if isinstance(key, int) else str(key) for key in path)


def _chains(calls: Sequence[_Call], values: _Values) -> list[_Chain]:
    chains: list[_Chain] = []
    for index, call in enumerate(calls):
        if chains:
            chain = chains[-1]
            pairs = _handed_on(chain.calls[-1], call, values)
            common = pairs & chain.pairs if len(chain.calls) > 1 else pairs
            if common:
                chain.calls.append(call)
                chain.pairs = common
                continue
        chains.append(_Chain(index, [call], set()))
    return chains


def _is_reverse(first: _Call, last: _Call, inputs: mx.array, values: _Values) -> bool:
    def given(call: _Call, step: int) -> bool:
        at_step = inputs[:, step]
        return any(values.equal(at_step, array) for _, array in call.inputs)

    steps = inputs.shape[1]
    return given(first, steps - 1) and given(last, 0) and not given(first, 0)


class _Finder:
    def __init__(self, model: nn.Module, held_out: HeldOutBatch, calls: list[_Call]) -> None:
        self.batch, self.steps, _ = held_out.inputs_shape
        self.inputs = held_out.inputs
        self.values = _Values()
        self.calls = calls
        self.by_module: dict[int, list[_Call]] = {}
        for call in calls:
            self.by_module.setdefault(id(call.module), []).append(call)
        self.paths = dict(modules(model))

    # ---- cells

    def chains(self) -> dict[int, list[_Chain]]:
        """By module, the chains that cover the sequence; none at all unless all of them do."""
        found: dict[int, list[_Chain]] = {}
        for key, calls in self.by_module.items():
            if len(calls) < max(2, self.steps) or len(calls) % self.steps:
                continue
            chains = _chains(calls, self.values)
            if all(len(c.calls) % self.steps == 0 and len(c.calls) > 1 for c in chains):
                found[key] = chains
        return found

    def outermost(self, chains: Mapping[int, list[_Chain]]) -> dict[int, list[_Chain]]:
        """Of cells inside cells the outer one, unless it only bundles the states of the inner."""
        kept = dict(chains)
        for key, outer in chains.items():
            calls = [c for chain in outer for c in chain.calls]
            inner = {k: c for k, c in chains.items() if k != key and c[0].calls[0].inside(calls)}
            if not inner or key not in kept:
                continue
            if len(outer[0].states()) > 1:
                del kept[key]
            else:
                for k in inner:
                    kept.pop(k, None)
        return kept

    def cell_sites(self) -> tuple[list[CellSite], dict[int, list[_Chain]]]:
        chains = self.chains()
        kept = self.outermost(chains)
        sites = [s for key in kept for s in self.sites_of(kept[key])]
        inside = [c for found in kept.values() for chain in found for c in chain.calls]
        for calls in self.by_module.values():
            if isinstance(calls[0].module, _SEQUENCE_LAYERS) and id(calls[0].module) not in kept:
                site = self.sequence_site(calls)
                if site is not None and not calls[0].inside(inside):
                    sites.append(site)
        order = {id(call.module): i for i, call in reversed(list(enumerate(self.calls)))}
        return sorted(sites, key=lambda s: (order[id(s.module)], s.name)), chains

    def sites_of(self, chains: Sequence[_Chain]) -> list[CellSite]:
        sites = []
        for number, chain in enumerate(chains):
            stride = len(chain.calls) // self.steps
            first, last = chain.calls[0], chain.calls[-1]
            states = chain.states()
            sites.append(
                CellSite(
                    name=_name(first) + (f"#{number + 1}" if len(chains) > 1 else ""),
                    module=first.module,
                    out_paths=tuple(o for o, _ in states),
                    in_paths=tuple(i for _, i in states),
                    # Of several calls in a step (solver sub-steps) the last one ends the step.
                    calls=slice(chain.start + stride - 1, chain.start + len(chain.calls), stride),
                    reverse=_is_reverse(first, last, self.inputs, self.values),
                )
            )
        return sites

    def sequence_site(self, calls: Sequence[_Call]) -> CellSite | None:
        call = calls[0]
        wanted = [
            (path, a)
            for path, a in call.outputs
            if a.ndim == 3 and tuple(a.shape[:2]) == (self.batch, self.steps)
        ]
        if len(calls) != 1 or not wanted:
            return None
        backwards = self.inputs[:, ::-1]
        reverse = any(self.values.equal(backwards, array) for _, array in call.inputs)
        return CellSite(
            name=_name(call),
            module=call.module,
            out_paths=tuple(p for p, _ in wanted),
            in_paths=(),
            calls=slice(0, 1, 1),
            reverse=reverse,
            whole_sequence=True,
        )

    def named_cells(self, patterns: Sequence[str]) -> list[CellSite]:
        chains = self.chains()
        sites: list[CellSite] = []
        for calls in self.matching(patterns, "cells"):
            if id(calls[0].module) in chains:
                sites += self.sites_of(chains[id(calls[0].module)])
                continue
            whole = self.sequence_site(calls)
            if whole is not None:
                sites.append(whole)
                continue
            if len(calls) % self.steps or not calls[0].outputs:
                raise ModelError(
                    f"cells={list(patterns)}: {_name(calls[0])} was called {len(calls)} times for "
                    f"{self.steps} steps: name a module called once per step, or one that returns "
                    f"(batch, {self.steps}, units)"
                )
            stride = len(calls) // self.steps
            sites.append(
                CellSite(
                    name=_name(calls[0]),
                    module=calls[0].module,
                    out_paths=(calls[0].outputs[-1][0],),
                    in_paths=(),
                    calls=slice(stride - 1, len(calls), stride),
                    reverse=False,
                )
            )
        return sites

    def matching(self, patterns: Sequence[str], what: str) -> list[list[_Call]]:
        found: dict[int, list[_Call]] = {}
        for pattern in patterns:
            paths = [p for p in self.paths if fnmatch.fnmatchcase(p, pattern)]
            if not paths:
                raise ModelError(
                    f"{what}: {pattern!r} matches no module; the model has "
                    + ", ".join(p for p in self.paths if p)
                )
            called = [self.by_module.get(id(self.paths[p])) for p in paths]
            if not any(called):
                raise ModelError(
                    f"{what}: {pattern!r} matches only modules that were never called; called were "
                    + ", ".join(dict.fromkeys(_name(c) for c in self.calls))
                )
            found.update({id(calls[0].module): calls for calls in called if calls})
        return list(found.values())

    # ---- backbone

    def layer_sites(
        self, cells: Sequence[CellSite], chains: Mapping[int, list[_Chain]]
    ) -> list[LayerSite]:
        sites: dict[tuple[int, bool, Path], LayerSite] = {}
        cell_modules = {id(site.module) for site in cells} | set(chains)
        for key in cell_modules:
            if key in self.by_module and not self._is_sequence(key, cells):
                for site in self.layers_inside(self.by_module[key][0], cell_modules):
                    sites.setdefault((id(site.module), site.at_input, site.path), site)
        order = {id(call.module): i for i, call in reversed(list(enumerate(self.calls)))}
        by_path = {p: id(m) for p, m in self.paths.items()}
        return sorted(sites.values(), key=lambda s: order.get(by_path.get(s.name, -1), 0))

    @staticmethod
    def _is_sequence(key: int, cells: Sequence[CellSite]) -> bool:
        return any(id(s.module) == key and s.whole_sequence for s in cells)

    def layers_inside(self, cell: _Call, cell_modules: set[int]) -> list[LayerSite]:
        """Hidden activations in one call of a cell; inner cells are looked at for themselves."""
        nested = [c for c in cell.descendants() if id(c.module) in cell_modules]
        calls = [c for c in cell.descendants() if not c.inside(nested) and c not in nested]
        producers: dict[int, _Call] = {}
        for call in calls:
            for _, array in call.outputs:
                known = producers.get(id(array))
                # A container returns what a module inside it made; dropout that is off returns
                # what it was given: the one that made it began first and has nothing inside.
                if known is None or known.children:
                    producers[id(array)] = call
        weighted = [c for c in calls if _has_parameters(c.module)]
        states = {id(array) for _, array in cell.outputs}
        sites: dict[int, LayerSite] = {}

        def add(
            array: mx.array,
            before: Sequence[_Call],
            call: _Call,
            path: Path,
            at_input: bool,
            may_be_linear: bool,
        ) -> None:
            if id(array) in states or array.ndim < 2:
                return
            source = self._source(array, before, producers)
            if source is None or id(source) in sites:
                return
            pre = source.outputs[0][1]
            activation = recognise_activation(to_numpy(pre), to_numpy(array)) or "unknown"
            if activation == "identity" and not may_be_linear:
                return
            site = self.layer_site(source, call, path, at_input, activation)
            if site is not None:
                sites[id(source)] = site

        for index, consumer in enumerate(weighted):
            for path, array in consumer.inputs[:1]:
                add(array, weighted[:index], consumer, path, True, True)
        for call in calls:
            # The end of a feed-forward stack, also where nothing that we see consumes it.
            if isinstance(call.module, nn.Sequential) and call.outputs:
                path, array = call.outputs[0]
                before = [c for c in weighted if c.inside([call])]
                add(array, before, call, path, False, False)
        return list(sites.values())

    def _source(
        self, array: mx.array, before: Sequence[_Call], producers: Mapping[int, _Call]
    ) -> _Call | None:
        """The layer with parameters whose output, through its activation, is ``array``."""
        known = {id(c) for c in before}
        current = array
        for _ in range(16):
            producer = producers.get(id(current))
            if producer is None or not producer.inputs:
                break
            if id(producer) in known:
                return producer
            if producer.children or _has_parameters(producer.module):
                return None
            current = producer.inputs[0][1]
        for candidate in reversed(before):  # an activation that is a plain function
            if candidate.outputs and tuple(candidate.outputs[0][1].shape) == tuple(current.shape):
                pre = to_numpy(candidate.outputs[0][1])
                if recognise_activation(pre, to_numpy(current)) is not None:
                    return candidate
        return None

    def layer_site(
        self, source: _Call, call: _Call, path: Path, at_input: bool, activation: str
    ) -> LayerSite | None:
        total = len(self.by_module[id(call.module)])
        if total % self.steps:
            return None
        stride = total // self.steps
        return LayerSite(
            name=_name(source),
            module=call.module,
            path=path,
            at_input=at_input,
            activation=activation,
            calls=slice(stride - 1, total, stride),
        )

    def named_layers(self, patterns: Sequence[str]) -> list[LayerSite]:
        sites = []
        for calls in self.matching(patterns, "layers"):
            call = calls[0]
            if not call.outputs:
                raise ModelError(f"layers: {_name(call)} returned no array")
            path, array = call.outputs[0]
            activation = "identity"
            if not _has_parameters(call.module):
                given = call.inputs[0][1] if call.inputs else array
                activation = recognise_activation(to_numpy(given), to_numpy(array)) or "unknown"
            whole = array.ndim == 3 and tuple(array.shape[:2]) == (self.batch, self.steps)
            if not whole and (len(calls) % self.steps or array.ndim != 2):
                raise ModelError(
                    f"layers: {_name(call)} was called {len(calls)} times for {self.steps} steps "
                    f"and returned shape {tuple(array.shape)}; expected (batch, units) once per "
                    f"step or (batch, {self.steps}, units) once"
                )
            stride = 1 if whole else len(calls) // self.steps
            sites.append(
                LayerSite(
                    name=_name(call),
                    module=call.module,
                    path=path,
                    at_input=False,
                    activation=activation,
                    calls=slice(stride - 1, len(calls), stride),
                    whole_sequence=whole,
                )
            )
        return sites


def _has_parameters(module: nn.Module) -> bool:
    return any(isinstance(value, mx.array) for value in module.values())


def _name(call: _Call) -> str:
    return call.path or type(call.module).__name__


def find_sites(
    model: nn.Module,
    held_out: HeldOutBatch,
    run: Callable[[], Any],
    *,
    cells: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
) -> Sites:
    """Record ``run`` and find cells and backbone layers in it.

    Args:
        held_out: The batch that ``run`` gives to the model.
        cells: Paths or globs of modules to take as cells, instead of looking.
        layers: Paths or globs of modules whose outputs to take as backbone layers.

    Raises:
        ModelError: If a pattern matches nothing that was called, or what it matches can't be read.
    """
    finder = _Finder(model, held_out, _record(model, run))
    found, chains = finder.cell_sites()
    if cells is not None:
        found = finder.named_cells(cells)
    found_layers = (
        finder.layer_sites(found, chains) if layers is None else finder.named_layers(layers)
    )
    notes = []
    if not found:
        notes.append(
            "no recurrent cell was found: no module is called once per time step with a state that "
            "it hands on. If one holds the states, name it with cells="
        )
    if not found_layers:
        notes.append(
            "no backbone was found: no hidden layer inside the recurrent cell. To look at layers "
            "elsewhere, name them with layers="
        )
    return Sites(tuple(found), tuple(found_layers), tuple(notes))
