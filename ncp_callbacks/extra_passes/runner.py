"""Run passes of declared kinds: check, count and time them, and share their results."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..arrays import read_only, to_mlx, to_numpy
from ..model import CellHook, ModelRunner
from ..model.batching import concatenate_values, evaluate_variants, run_in_parts
from ..observation import EvaluatedBatch, Need
from ..results import FloatArray, Indices
from ..target_values import TargetValues
from .source import PassSource

__all__ = ["PassRunner", "as_mlx", "protected"]

_Result = TypeVar("_Result")


class PassRunner:
    """Run passes over the sequences of an observation: what all kinds of extra passes share."""

    def __init__(self, batch: EvaluatedBatch, source: PassSource) -> None:
        self._batch, self._source = batch, source
        self._runner = source.runner

    def _require(self, need: Need) -> None:
        if need in self._batch.needs:
            return
        of_method = ""
        if need in (Need.VARIANTS, Need.VARIANT_GRADIENTS):
            of_method = "; an attribution method declares them in its extra_passes"
        raise RuntimeError(
            f"extra passes of the kind {need.value} are not declared: declare them in the "
            f"callback, needs = frozenset({{Need.{need.name}, ...}}){of_method}"
        )

    @contextlib.contextmanager
    def _running(self, need: Need, passes: float = 0.0) -> Iterator[None]:
        """Time what runs in a ``with`` block as a kind of passes, and count them."""
        with self._source.costs.timing(need.value):
            self._source.costs.count(need.value, passes)
            yield

    def _once(
        self, need: Need, arguments: Callable[[], tuple[Any, ...]], run: Callable[[], _Result]
    ) -> _Result:
        """Return what another callback got from this pass, or what running it returns.

        Args:
            need: The kind of pass.
            arguments: Returns what tells it from other passes of its kind over these sequences.
            run: Runs it.
        """
        shared = self._source.shared
        key = self._key(*arguments()) if need in shared.needs else None
        found: _Result | None = shared.known(need, key)
        if found is None:
            found = run()
            shared.keep(need, key, found)
        return found

    def _hook(self, cell: str) -> CellHook:
        hooks = {hook.name: hook for hook in self._runner.hook_points.cells}
        if cell not in hooks:
            raise KeyError(f"no cell {cell!r}: the model's cells are {', '.join(hooks) or 'none'}")
        return hooks[cell]

    def _key(self, *parts: Any) -> Any:
        """Return what tells a pass from others: its sequences, and the values of its arguments."""
        own = (self._batch.indices, self._runner.target.key)
        return tuple(_digest(part) for part in (*own, *parts))

    def _evaluate(
        self,
        need: Need,
        inputs: FloatArray | None,
        time_delta: FloatArray | None,
        sequences: Indices | None = None,
        gradient: bool = False,
        loss: bool = False,
    ) -> TargetValues:
        """Evaluate variants, see :meth:`evaluate`, as passes of one kind."""
        source, runner, chosen = self._source, self._runner, self._source.chosen
        own = source.inputs
        if sequences is not None and not runner.divisible:
            return self._evaluate_within(need, inputs, time_delta, sequences, gradient, loss)
        if sequences is not None:
            runner = runner.take(sequences)
            chosen = None if chosen is None else chosen[sequences]
            own = None if own is None else own[sequences]
        variants = next((len(a) for a in (inputs, time_delta) if a is not None), 1)
        if inputs is None and own is not None:
            inputs = np.broadcast_to(own, (variants, *own.shape))
        with self._running(need, variants * len(runner.held_out) / len(self._batch.held_out)):
            found = evaluate_variants(
                runner,
                inputs,
                time_delta,
                chosen,
                gradient=gradient,
                loss=loss,
                max_sequences=source.max_sequences,
                max_variants=runner.variants_at_once(gradient=gradient),
            )
        return protected(found)

    def _evaluate_within(
        self,
        need: Need,
        inputs: FloatArray | None,
        time_delta: FloatArray | None,
        sequences: Indices,
        gradient: bool,
        loss: bool,
    ) -> TargetValues:
        """Evaluate variants of some sequences of a batch that is run whole, the others unchanged.

        A sequence that is asked for several times is in as many passes.
        """
        occurrences = Counter[int]()
        rounds = np.empty(len(sequences), int)
        for i, sequence in enumerate(sequences.tolist()):
            rounds[i] = occurrences[sequence]
            occurrences[sequence] += 1
        parts, found = [], []
        for number in range(int(rounds.max(initial=0)) + 1):
            part = np.flatnonzero(rounds == number)
            here = sequences[part]
            x = _among(self._batch.inputs, here, inputs, part)
            dt = _among(self._batch.time_delta, here, time_delta, part)
            parts.append(part)
            found.append(self._evaluate(need, x, dt, None, gradient, loss).of(here))
        return protected(concatenate_values(found, axis=1).of(np.argsort(np.concatenate(parts))))

    def _reevaluate(self, need: Need, inputs: FloatArray | None = None) -> EvaluatedBatch:
        """Evaluate the sequences and their gradients as passes of one kind."""
        batch = self._batch
        whole_inputs = batch.whole_inputs
        if inputs is None:
            inputs = batch.inputs
            if batch.held_out.tokens:  # Their embedding may have changed.
                inputs = to_numpy(self._runner.sequence())
                whole_inputs = read_only(to_numpy(self._source.whole.sequence()))
        embedded = read_only(np.asarray(inputs))
        found = self._evaluate(need, embedded[None], None, gradient=True)
        assert found.input_gradient is not None
        by_time = None if found.time_gradient is None else found.time_gradient[0]
        # What an observation has beyond this, such as states, is not known of other inputs.
        unchanged = {field.name: getattr(batch, field.name) for field in fields(EvaluatedBatch)}
        return replace(
            EvaluatedBatch(**unchanged),
            inputs=embedded,
            target_values=found.values[0],
            whole_inputs=whole_inputs,
            needs=batch.needs | {Need.INPUT_GRADIENT, Need.TIME_GRADIENT},
            _arrays={Need.INPUT_GRADIENT: found.input_gradient[0], Need.TIME_GRADIENT: by_time},
            _source=replace(self._source, inputs=embedded),
        )

    def _in_parts(
        self,
        need: Need,
        run: Callable[[ModelRunner, slice, slice], TargetValues],
        count: int,
        max_sequences: int,
        max_variants: int = 1,
    ) -> TargetValues:
        """Run passes of ``count`` variants over parts of the batch."""
        with self._running(need, count):
            found = run_in_parts(
                self._runner,
                run,
                count,
                max_sequences=max_sequences,
                max_variants=max_variants,
            )
        return protected(found)


def as_mlx(
    values: FloatArray | None, own: mx.array | None, at: slice, here: slice
) -> mx.array | None:
    """Return variants of some sequences in the precision of the batch's own; None for None."""
    if values is None or own is None:
        return None
    return to_mlx(values[at, here]).astype(own.dtype)


def protected(value: _Result) -> _Result:
    """Return a dataclass whose arrays, those of its parts included, are read-only."""
    parts = {}
    for name in (field.name for field in fields(value)):  # type: ignore[arg-type]
        part = getattr(value, name)
        if isinstance(part, np.ndarray):
            parts[name] = read_only(part)
        elif is_dataclass(part) and not isinstance(part, type):
            parts[name] = protected(part)  # type: ignore[arg-type]
    return replace(value, **parts)  # type: ignore[type-var]


def _among(
    own: FloatArray | None, sequences: Indices, variants: FloatArray | None, part: Indices
) -> FloatArray | None:
    """Return ``(K, B, ...)``, the batch's own arrays with a part of the variants."""
    if own is None or variants is None:
        return None
    whole = np.repeat(own[None], len(variants), axis=0)
    whole[:, sequences] = variants[:, part]
    return whole


def _digest(value: Any) -> Any:
    """Return a number or a name itself, and what stands for the values of an array."""
    if not isinstance(value, np.ndarray):
        return value
    content = hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).digest()
    return value.shape, value.dtype.str, content
