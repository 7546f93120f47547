"""Find out which gradients the targets of a model have.

MLX has no derivative of an index, nor of some operations, and raises an error where one is on the
way from an input to the target. Indices that reach modules, such as an embedding of a category, are
passed on as constants, which they are. Otherwise what needs the gradient is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..arrays import to_mlx, to_numpy
from .capture import Tap
from .embedding_finder import NO_VECTORS
from .errors import no_gradient
from .pytrees import leaves, modules, replace_leaf
from .recording import record

if TYPE_CHECKING:
    from .runner import ModelRunner

__all__ = ["Gradients", "find_gradients", "indices_stopped"]

# Features that may be indices are tried one by one.
_MAX_TRIED = 32
# Sequences on which gradients that seem to be 0 are computed again.
_MAX_SEQUENCES = 16


@dataclass(frozen=True)
class Gradients:
    """Tell which gradients there are.

    Attributes:
        no_input_gradient: Why there is none by the inputs, with the fix; "" if there is one.
        no_time_gradient: The same for the elapsed times.
        index_modules: Paths of modules that get indices, through which gradients end.
        index_features: Features that the model uses as indices.
        notes: What the user should know.
    """

    no_input_gradient: str = ""
    no_time_gradient: str = ""
    index_modules: tuple[str, ...] = ()
    index_features: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@contextmanager
def indices_stopped(model: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Pass integer arguments of modules on as constants.

    Args:
        model: The model.
        paths: The paths of the modules.
    """
    if not paths:
        yield
        return

    def around(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: Any = (args, kwargs)
        for path, array in leaves(given):
            if mx.issubdtype(array.dtype, mx.integer):
                given = replace_leaf(given, path, mx.stop_gradient(array))
        return call(*given[0], **given[1])

    found = dict(modules(model))
    with Tap().on([(found[path], around) for path in paths]):
        yield


def find_gradients(runner: ModelRunner) -> Gradients:
    """Find out which gradients the targets have; call it inside :meth:`ModelRunner.analysing`."""
    return _Finder(runner).find()


class _Finder:
    def __init__(self, runner: ModelRunner) -> None:
        self._runner, self._small = runner, runner.small()
        # Nothing is stopped while it is tried.
        self._small.index_modules = ()
        with runner.preserved():
            self._inputs = self._small.sequence()
            mx.eval(self._inputs)
        self._times = self._small.time_delta if runner.takes_time else None
        # Gradients by inputs and by elapsed times, which are computed if they are read.
        self._built: dict[int, mx.array] = {}

    def find(self) -> Gradients:
        by_input = None
        integer = not mx.issubdtype(self._inputs.dtype, mx.floating)
        if not integer and self._times is not None and self._missing(0, 1) is None:
            return Gradients(notes=tuple(self._notes_on_flat_targets()))
        if not integer:
            by_input = self._missing(0)
        by_time = None if self._times is None else self._missing(1)
        if integer:
            return Gradients(NO_VECTORS, _of_time(by_time))
        if by_input is None and by_time is None:
            return Gradients(notes=tuple(self._notes_on_flat_targets()))
        features = self._index_features() if by_input is not None else ()
        names = ", ".join(repr(self._runner.held_out.feature_names[f]) for f in features)
        stopped = self._index_modules()
        self._small.index_modules = stopped
        used = [names] if by_input is not None else []
        used += ["the elapsed times"] if by_time is not None else []
        if stopped and self._missing(0) is None:
            rest = None if self._times is None else self._missing(1)
            note = (
                f"{', '.join(stopped)} gets {' and '.join(filter(None, used)) or 'inputs'} as "
                "indices, which have no gradient: attributions by gradients hold nothing that goes "
                "through them. Set method='occlusion' to include it"
            )
            notes = (
                note,
                _note_on_time(rest),
                *self._notes_on_flat_targets(features, by_time is None),
            )
            return Gradients("", _of_time(rest), stopped, features, notes)
        if by_input is None:
            return Gradients("", _of_time(by_time), (), (), (_note_on_time(by_time),))
        column = f" ({names} may be one)" if names and "indices" in by_input else ""
        return Gradients(
            f"the target has no gradient by the inputs: {by_input}{column}. "
            "method='occlusion' needs no gradient",
            _of_time(by_time),
            (),
            features,
        )

    def _missing(self, *arguments: int) -> str | None:
        """Return why there is no gradient by inputs (0) or elapsed times (1); None: there is.

        Both in one pass are missing if one is: it then has to be found out which.
        """
        with self._runner.preserved():
            try:
                # Built and not computed: MLX raises while it builds.
                found = _gradients(self._small, self._inputs, arguments)
                self._built |= dict(zip(arguments, found, strict=True))
            except Exception as error:
                reason = no_gradient(error)
                if reason is None:
                    raise
                return reason
        return None

    def _notes_on_flat_targets(
        self, index_features: Sequence[int] = (), times: bool = True
    ) -> Iterator[str]:
        """Yield a note on features, and elapsed times, that move the target without a gradient.

        Args:
            index_features: Features that are noted already.
            times: False if the elapsed times are.
        """
        held_out, values = self._runner.held_out, self._inputs
        features = []
        if not held_out.has_frames and not held_out.tokens:
            listed = values.reshape(-1, values.shape[2])
            others = mx.concatenate([listed[1:], listed[:1]]).reshape(values.shape)
            for feature in self._flat_features()[:_MAX_TRIED].tolist():
                if feature in index_features:
                    continue
                only = mx.arange(values.shape[2]) == feature
                if self._moves(mx.where(only, others, values), self._small.time_delta):
                    features.append(repr(held_out.feature_names[feature]))
        names = [", ".join(features)] if features else []
        if times and 1 in self._built and not to_numpy(self._built[1]).any():
            assert self._times is not None
            names += ["the elapsed times"] if self._moves(values, 1.5 * self._times) else []
        how = "by what is rounded, compared, or turned into numbers of Python"
        if "inputs" in self._runner.coupling:
            how = "where the effects on the targets of all sequences cancel"
        if names:
            yield (
                f"the target moves with {' and '.join(names)}, but has a gradient of exactly 0 by "
                f"this, as {how}: attributions by gradients hold nothing of it. Set "
                "method='occlusion' to include it"
            )

    def _flat_features(self) -> npt.NDArray[np.intp]:
        """Return the features by which all gradients are 0, in few sequences and then in more."""
        flat = ~to_numpy(self._built[0]).any(axis=(0, 1))
        if flat.any() and self._runner.divisible:
            held_out = self._runner.held_out
            some = self._runner.take(held_out.spread(min(_MAX_SEQUENCES, len(held_out))))
            some.index_modules = self._small.index_modules
            with self._runner.preserved():
                (by_input,) = _gradients(some, some.sequence(), (0,))
                flat &= ~to_numpy(by_input).any(axis=(0, 1))
        return np.flatnonzero(flat)

    def _moves(self, inputs: mx.array, times: mx.array | None) -> bool:
        """Return whether targets of other inputs, or elapsed times, are others."""
        small, found = self._small, []
        with self._runner.preserved():
            chosen = None
            for given in ((self._inputs, small.time_delta), (inputs, times)):
                outputs = small.outputs(*given)
                chosen = small.target.choose(outputs) if chosen is None else chosen
                found.append(to_numpy(small.target(outputs, chosen)))
        return not np.array_equal(found[0], found[1], equal_nan=True)

    def _index_modules(self) -> tuple[str, ...]:
        """Return the modules that are called with integers."""
        with self._runner.preserved():
            calls, _ = record(
                self._runner.model,
                lambda: self._small.outputs(self._inputs, self._small.time_delta),
            )
        given = (c.path for c in calls if any(map(_is_integer, c.inputs.values())))
        return tuple(dict.fromkeys(path for path in given if path))

    def _index_features(self) -> tuple[int, ...]:
        """Return the features whose fractions have no effect, and whose whole parts have one."""
        if self._runner.held_out.tokens:  # their vectors are no indices
            return ()
        values = to_numpy(self._runner.held_out.inputs)[self._runner.held_out.mask_array]
        whole = np.flatnonzero((values == np.round(values)).all(axis=0))
        inputs, base = to_numpy(self._inputs), self._outputs(self._inputs)
        found = []
        for feature in whole[:_MAX_TRIED].tolist():
            kinds = np.unique(values[:, feature])
            if len(kinds) < 2:
                continue
            moved, other = inputs.copy(), inputs.copy()
            moved[..., feature] += 0.25
            after = np.searchsorted(kinds, inputs[..., feature], side="right") % len(kinds)
            other[..., feature] = kinds[after]
            same, differs = (
                np.array_equal(base, self._outputs(to_mlx(x).astype(self._inputs.dtype)))
                for x in (moved, other)
            )
            if same and not differs:
                found.append(int(feature))
        return tuple(found)

    def _outputs(self, inputs: mx.array) -> npt.NDArray[np.float32]:
        with self._runner.preserved():
            return to_numpy(self._small.outputs(inputs, self._small.time_delta))


def _gradients(
    runner: ModelRunner, inputs: mx.array, arguments: Sequence[int]
) -> tuple[mx.array, ...]:
    """Return the gradients of the targets by inputs (0) and elapsed times (1), in one pass."""

    def target(x: mx.array, dt: mx.array | None) -> mx.array:
        outputs = runner.outputs(x, dt)
        values: mx.array = runner.target(outputs, runner.target.choose(outputs))
        return values.sum()

    found: Any = mx.grad(target, argnums=list(arguments))(inputs, runner.time_delta)
    # MLX returns one gradient alone.
    return (found,) if isinstance(found, mx.array) else tuple(found)


def _of_time(reason: str | None) -> str:
    return "" if reason is None else f"the target has no gradient by the elapsed times: {reason}"


def _note_on_time(reason: str | None) -> str:
    if reason is None:
        return ""
    return f"{_of_time(reason)}. Attributions by gradients leave elapsed times out"


def _is_integer(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.integer)
