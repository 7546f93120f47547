"""Copy a user's model, so that analyses run the copy and never the original.

The model, ``forward=`` and ``target=`` are pickled as one graph, with the arrays taken out of it::

    packed = pack(Subject(model, forward, target))     # reads the model
    copy = ModelCopy()
    copy.load(packed.skeleton, arrays)                 # here, or in another process
    with copy.preserved():
        copy.model(x)                                  # whatever this changes is undone

Nothing of a copy is shared with the original: arrays are other objects, and classes and functions
that were written in a script or a notebook are made anew.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..signal_handlers import raised_by_signal_handler
from .copy_faults import difference, find_cause
from .errors import CopyError
from .model_pickle import Packer, Unpacker
from .own_arrays import evaluate_pending, own_copy, own_view
from .pytrees import children, filled_slots
from .random_states import random_states, restore_random_states

__all__ = [
    "ModelCopy",
    "Packed",
    "Subject",
    "array_paths",
    "check_copy",
    "pack",
    "pack_values",
    "set_evaluation_mode",
    "unpack_values",
]


@dataclass(frozen=True, eq=False)
class Subject:
    """Hold the parts of the training script that the analyses need.

    Attributes:
        model: The model.
        forward: The user's function that calls it, or None.
        target: The user's function that makes targets of outputs, or None.
        make_model: The user's function that builds such a model, for one that can't be pickled:
            then only the arrays in its tree are read.
    """

    model: nn.Module
    forward: Callable[..., Any] | None = None
    target: Callable[..., Any] | None = None
    make_model: Callable[[], nn.Module] | None = None


class Packed(NamedTuple):
    """Hold a pickled graph and the arrays taken out of it.

    Attributes:
        skeleton: Everything but the arrays; equal bytes mean that nothing else has changed.
        arrays: By slot number, ``mx.array`` or numpy, the user's own objects.
    """

    skeleton: bytes
    arrays: list[Any]


def pack(subject: Subject, extra: Any = None) -> Packed:
    """Pickle a model and the user's functions. The model is only read.

    Args:
        subject: The model and the user's functions.
        extra: The held-out batch and the callbacks, which may share parts with these.

    Raises:
        CopyError: If a part can't be pickled; the message names it.
    """
    file = io.BytesIO()
    packer = Packer(file, subject.model)
    if subject.make_model is None:
        content: Any = _content(subject.model)
    else:
        # The arrays come with their paths; persistent ids put them into slots.
        content = _Built(subject.make_model, dict(array_paths(subject.model)))
    try:
        packer.dump((content, subject.forward, subject.target, extra))
    except Exception as error:
        if raised_by_signal_handler(error):
            raise
        raise _copy_error(subject, extra, error) from error
    return Packed(file.getvalue(), packer.arrays)


@dataclass(frozen=True, eq=False)
class _Built:
    """Build a new model and put the arrays that were read into it."""

    make_model: Callable[[], nn.Module]
    arrays: Mapping[tuple[Any, ...], mx.array]

    def model(self) -> nn.Module:
        """Return the new model."""
        model = self.make_model()
        if not isinstance(model, nn.Module):
            raise CopyError(
                f"make_model() returned a {type(model).__name__}; return an mlx.nn.Module"
            )
        for (*path, last), array in self.arrays.items():
            holder: Any = model
            try:
                for key in path:
                    holder = holder[key]
                old = holder[last]
            except (KeyError, IndexError, TypeError) as error:
                where = ".".join(map(str, (*path, last)))
                raise CopyError(
                    f"the model has an array {where}, which the model of make_model() lacks: build "
                    "a model of the same structure"
                ) from error
            if isinstance(holder, tuple):  # can't take another item, so the array takes the values
                old[(slice(None),) * old.ndim] = array
            elif isinstance(holder, dict):
                dict.__setitem__(holder, last, array)
            else:
                holder[last] = array
        return model


def array_paths(model: nn.Module) -> Iterator[tuple[tuple[Any, ...], mx.array]]:
    """Iterate over the arrays in a model's tree of modules and containers, with their keys."""
    seen: set[int] = set()

    def walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], mx.array]]:
        if type(node) is mx.array:
            yield path, node
        # By its type: what mx.compile makes of a module says that it is one.
        elif issubclass(type(node), dict | list | tuple) and id(node) not in seen:
            seen.add(id(node))
            items = dict.items(node) if isinstance(node, dict) else enumerate(node)
            for key, value in list(items):
                yield from walk(value, (*path, key))

    return walk(model, ())


def pack_values(values: Any, model: nn.Module) -> Packed:
    """Pickle parts of a copy; later changes of them have no effect.

    Args:
        values: A tree of parts.
        model: The copy's model, to which parts may refer.
    """
    file = io.BytesIO()
    packer = Packer(file, model)
    packer.dump(values)
    return Packed(file.getvalue(), [own_view(array) for array in packer.arrays])


def unpack_values(packed: Packed, copy: ModelCopy) -> Any:
    """Return new objects like those of :func:`pack_values`, to be put into a copy."""
    return Unpacker(
        io.BytesIO(packed.skeleton), lambda _: copy.model, packed.arrays, copy._classes
    ).load()


class ModelCopy:
    """Hold a copy of a model that can be restored to how it was read.

    Attributes:
        model: The copy. It stays one object, unless its class changes to or from one with slots.
        forward: The copy of the user's ``forward``, or None.
        target: The copy of the user's target function, or None.
        extra: The extra objects of the last :meth:`load`.
    """

    def __init__(self) -> None:
        self.model: nn.Module = nn.Module.__new__(nn.Module)
        self.forward: Callable[..., Any] | None = None
        self.target: Callable[..., Any] | None = None
        self.extra: Any = None
        self._skeleton = b""
        self._arrays: Sequence[Any] = ()
        self._classes: dict[Any, Any] = {}

    @classmethod
    def of(cls, subject: Subject) -> ModelCopy:
        """Return a copy of a model and its functions in this process.

        Raises:
            CopyError: If a part can't be copied; the message names it.
        """
        packed = pack(subject)
        failed = evaluate_pending(packed.arrays)
        arrays = [None if id(array) in failed else own_copy(array) for array in packed.arrays]
        copy = cls()
        copy.load(packed.skeleton, arrays)
        return copy

    def load(self, skeleton: bytes, arrays: Sequence[Any]) -> None:
        """Load new contents.

        Args:
            skeleton: The pickled graph of :func:`pack`.
            arrays: For each slot an ``mx.array`` or numpy array, never written to; None if the
                original can't be read: then the copy has zeros.
        """
        self._skeleton, self._arrays = skeleton, arrays
        self.reload()

    def reload(self) -> None:
        """Restore the copy to how it was loaded, in evaluation mode."""
        unpacker = Unpacker(io.BytesIO(self._skeleton), self._root, self._arrays, self._classes)
        content, self.forward, self.target, self.extra = unpacker.load()
        if isinstance(content, _Built):
            content = _content(content.model())
        _fill(self._root(content[0]), content)
        set_evaluation_mode(self.model)

    def _root(self, cls: type[nn.Module]) -> nn.Module:
        """Return the copy, as an object of this class."""
        try:
            object.__setattr__(self.model, "__class__", cls)
        except TypeError:  # one of them has slots, which make it another kind of object
            self.model = nn.Module.__new__(cls)
        return self.model

    @contextlib.contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore the copy and the random states on any exit of a ``with`` block."""
        states = random_states()
        try:
            yield
        finally:
            restore_random_states(states)
            self.reload()


def _content(model: nn.Module) -> tuple[Any, ...]:
    """Return the contents of a module: its class, entries, attributes and filled slots."""
    return type(model), list(dict.items(model)), dict(vars(model)), filled_slots(model)


def _fill(model: nn.Module, content: tuple[Any, ...]) -> None:
    _, entries, attributes, slots = content
    dict.clear(model)
    dict.update(model, entries)
    vars(model).clear()
    vars(model).update(attributes)
    for name in filled_slots(model).keys() - slots.keys():
        object.__delattr__(model, name)
    for name, value in slots.items():
        object.__setattr__(model, name, value)


def set_evaluation_mode(model: nn.Module) -> None:
    """Set ``training`` to false, in modules in tuples too, without the model's own ``eval``."""
    seen: set[int] = set()
    stack: list[Any] = [model]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, nn.Module):
            object.__setattr__(node, "_training", False)
        stack += [child for _, child in children(node)]


def _copy_error(subject: Subject, extra: Any, error: Exception) -> CopyError:
    for name, part in (
        ("model", subject.model),
        ("forward", subject.forward),
        ("target", subject.target),
    ):
        found = find_cause(part, name, set())
        if found is not None:
            where, why = found
            return CopyError(
                f"{where} can't be copied: {why}. Analyses run a copy of the model: make this part "
                "when it is needed instead of keeping it there, or pass make_model=, a function "
                "that builds such a model"
            )
    held_out, callbacks = extra if extra is not None else (None, ())
    for part in (held_out, *callbacks):
        found = find_cause(part, type(part).__name__, set())
        if found is not None:
            where, why = found
            return CopyError(
                f"{where} can't be sent to another process: {why}. Make this part when it is "
                "needed instead of keeping it there, or pass background=False"
            )
    return CopyError(f"the model can't be copied: {type(error).__name__}: {error}")


def check_copy(subject: Subject, copy: ModelCopy) -> None:
    """Compare a copy of a model with the original.

    Raises:
        CopyError: If the copy lacks something; the message names it.
    """
    missing = None if subject.make_model else difference(subject.model, copy.model)
    if missing is not None:
        raise CopyError(
            f"{missing} isn't the same in a copy of the model, which analyses run: a class with a "
            "pickling method of its own omits it. Let it pickle this (__getstate__, "
            "__reduce__), or pass make_model=, a function that builds such a model"
        )
