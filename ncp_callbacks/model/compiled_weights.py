"""Find functions that were compiled without ``inputs=`` for the weights that they use."""

from __future__ import annotations

import gc
import io
import types
from collections.abc import Iterator
from typing import Any

import mlx.core as mx

from .copy_faults import parts
from .model_copy import Subject, array_paths
from .model_pickle import Packer, compiled_function

__all__ = ["compiled_weights_notes"]


def compiled_weights_notes(subject: Subject) -> list[str]:
    """Return a note on each compiled function that keeps the weights of its first call.

    ``mx.compile`` takes arrays that a function doesn't get as arguments, or by ``inputs=``, for
    constants. A copy of the model isn't compiled, and has the weights of the snapshot.

    Args:
        subject: The model and the user's functions, which are only read.
    """
    weights = {id(array) for _, array in array_paths(subject.model)}
    named = (("model", subject.model), ("forward", subject.forward), ("target", subject.target))
    return [
        f"{path} was compiled by mx.compile without inputs=, so while it is compiled it keeps the "
        "weights of its first call, and no gradient reaches them. Analyses use the weights that "
        "the model has. Pass inputs=model.state to mx.compile, or the weights as arguments"
        for path, function in _compiled_alone([(part, name) for name, part in named])
        if not _takes_weights(function) and weights & _arrays_of(function)
    ]


def _compiled_alone(stack: list[tuple[Any, str]]) -> Iterator[tuple[str, Any]]:
    """Yield the path of each function that was compiled without inputs, and the function."""
    seen: set[int] = set()
    while stack:
        value, path = stack.pop()
        plain = isinstance(value, type | types.ModuleType | str | bytes | int | float | mx.array)
        if plain or id(value) in seen:
            continue
        seen.add(id(value))
        function = compiled_function(value)
        if function is None:
            stack += [(part, f"{path}{name}") for name, part in parts(value)]
        elif gc.get_referents(value)[1] is None:
            yield path, function


def _takes_weights(function: Any) -> bool:
    """Return whether a function puts weights into the model, which it got as arguments."""
    code = getattr(function, "__code__", None)
    return code is not None and not {"update", "load_weights"}.isdisjoint(code.co_names)


def _arrays_of(function: Any) -> set[int]:
    """Return the identities of the arrays that a function refers to."""
    packer = Packer(io.BytesIO(), None)
    packer.dump(function)
    return {id(array) for array in packer.arrays}
