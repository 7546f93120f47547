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
import functools
import gc
import importlib
import inspect
import io
import pickle
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle
import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..signal_handlers import raised_by_signal_handler
from .pytrees import children

__all__ = [
    "CopyError",
    "ModelCopy",
    "Packed",
    "Subject",
    "check_copy",
    "difference",
    "filled_slots",
    "own_copy",
    "own_view",
    "pack",
    "pack_values",
    "random_states",
    "restore_random_states",
    "set_evaluation_mode",
    "unpack_values",
]

# Smaller numpy arrays stay in the skeleton: comparing them there costs less than a slot.
_NUMPY_SLOT_BYTES = 16 << 10
_MAX_COPIED = 64 << 20
_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}
# The function that makes one, as not every Python has a name for the types.
_LOCKS: dict[type, Callable[[], Any]] = {
    type(make()): make for make in (threading.Lock, threading.RLock)
}
_RANDOM_STATE = type(mx.random.state)


class CopyError(TypeError):
    """Report a model that can't be copied, with the attribute that is the cause and the fix."""


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
    packer = _Packer(file, subject.model)
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


def array_paths(model: nn.Module) -> Iterator[tuple[tuple[Any, ...], mx.array]]:
    """Iterate over the arrays in a model's tree of modules and containers, with their keys."""
    seen: set[int] = set()

    def walk(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], mx.array]]:
        if type(node) is mx.array:
            yield path, node
        elif isinstance(node, dict | list | tuple) and id(node) not in seen:
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
    packer = _Packer(file, model)
    packer.dump(values)
    return Packed(file.getvalue(), [own_view(array) for array in packer.arrays])


def unpack_values(packed: Packed, copy: ModelCopy) -> Any:
    """Return new objects like those of :func:`pack_values`, to be put into a copy."""
    return _Unpacker(
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
        unpacker = _Unpacker(io.BytesIO(self._skeleton), self._root, self._arrays, self._classes)
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


# ---- arrays


def evaluate_pending(arrays: Iterable[Any]) -> set[int]:
    """Evaluate the MLX arrays among ``arrays``; return the ids of those that can't be."""
    pending = [array for array in arrays if isinstance(array, mx.array)]
    failed: set[int] = set()
    try:
        mx.eval(pending)
    except RuntimeError as error:
        if raised_by_signal_handler(error):
            raise
        failed = {id(array) for array in pending if not _evaluates(array)}
    return failed


def own_copy(array: Any) -> Any:
    """Return an array with the same bits that shares no memory, of an array that is evaluated.

    MLX computes in place where nobody else holds an array's memory, and a compiled training step
    that can't may round its last bit another way. So whoever holds on to a trained parameter
    changes the training. Arrays above 64 MB are views all the same: twice their memory may be more
    than there is.
    """
    if not isinstance(array, mx.array):
        return array.copy()
    if array.nbytes > _MAX_COPIED:
        return own_view(array)
    kept = array.view(_UNSIGNED[array.itemsize]) | 0
    mx.eval(kept)
    return kept.view(array.dtype)


def own_view(array: Any) -> Any:
    """Return an array that a later write in place doesn't reach; of MLX one that costs nothing."""
    # The identity shares the buffer, but is another object.
    return mx.stop_gradient(array) if isinstance(array, mx.array) else array.copy()


def _evaluates(array: mx.array) -> bool:
    try:
        mx.eval(array)
    except RuntimeError as error:
        if raised_by_signal_handler(error):
            raise
        return False
    return True


# ---- pickling


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


def filled_slots(module: Any) -> dict[str, Any]:
    """Return what an object holds in the slots of its classes, by name."""
    filled: dict[str, Any] = {}
    for cls in type(module).__mro__:
        for name, descriptor in vars(cls).items():
            if isinstance(descriptor, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):
                    filled[name] = descriptor.__get__(module)
    return filled


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickle a graph around one model, without its arrays.

    Unlike cloudpickle, it accepts MLX's functions, dtypes and devices, compiled functions
    (as the function itself: a copy compiles nothing), locks and weak references.
    """

    def __init__(self, file: Any, root: nn.Module | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.arrays: list[Any] = []
        self._slots: dict[int, int] = {}
        self._root = root

    def persistent_id(self, obj: Any) -> Any:
        if obj is self._root and obj is not None:
            return "root", type(obj)
        if type(obj) is mx.array:
            return self._slot(obj, str(obj.dtype), tuple(obj.shape))
        if type(obj) is np.ndarray and obj.nbytes >= _NUMPY_SLOT_BYTES and not obj.dtype.hasobject:
            return self._slot(obj, obj.dtype.str, obj.shape)
        return None

    def _slot(self, array: Any, dtype: str, shape: tuple[int, ...]) -> Any:
        slot = self._slots.get(id(array))
        if slot is None:
            slot = self._slots[id(array)] = len(self.arrays)
            self.arrays.append(array)
        return slot, dtype, shape

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind.__module__ in ("mlx.core", "nanobind", "mlx.core.random"):
            return self._reduce_mlx(obj, kind)
        if kind in _LOCKS:
            return _LOCKS[kind], ()
        if isinstance(obj, io.IOBase) and not (
            isinstance(obj, io.BytesIO | io.StringIO) or obj is sys.stdout or obj is sys.stderr
        ):
            # cloudpickle would read the whole file, each time.
            raise pickle.PicklingError("it is an open file")
        if kind is weakref.ref:
            return weakref.ref, (obj(),) if obj() is not None else (_Gone(),)
        return super().reducer_override(obj)

    def _reduce_mlx(self, obj: Any, kind: type) -> Any:
        if kind is mx.Dtype:
            return _named, ("mlx.core", str(obj).rsplit(".", 1)[-1])
        if kind is mx.Device:
            return mx.Device, (obj.type,)
        if kind is mx.Stream:
            return mx.default_stream, (obj.device,)
        if kind is _RANDOM_STATE:
            return _named, ("mlx.core", "random", "state")
        if kind.__name__ in ("nb_func", "_gc_func", "custom_function"):
            path = _importable(obj)
            if path is not None:
                return _named, path
            if kind is mx.custom_function:
                return _custom_function(obj)
            compiled = _compiled(obj)
            if compiled is not None:
                return _itself, (compiled,)
            raise pickle.PicklingError("a function made by mx.grad, mx.vmap or mx.checkpoint")
        return super().reducer_override(obj)


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


class _Gone:
    """Stand for an object that is gone: a weak reference to this is dead at once."""


class _Unpacker(pickle.Unpickler):
    """Load what :class:`_Packer` wrote.

    Classes of scripts and notebooks are pickled by value, and cloudpickle, loading one in the
    process that it comes from, writes into the original class. Here they are classes of this copy,
    the same ones at each load.
    """

    def __init__(
        self,
        file: Any,
        root: Callable[[type[nn.Module]], nn.Module],
        arrays: Sequence[Any],
        classes: dict[Any, Any],
    ) -> None:
        super().__init__(file)
        self._root, self._arrays, self._classes = root, arrays, classes
        self._views: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "root":
            return self._root(pid[1])
        slot, dtype, shape = pid
        if slot not in self._views:
            array = self._arrays[slot]
            if array is None:
                self._views[slot] = mx.zeros(shape, getattr(mx, dtype.rsplit(".", 1)[-1]))
            else:
                # Analyses may write in place.
                self._views[slot] = own_view(array)
        return self._views[slot]

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module == "cloudpickle.cloudpickle" and name in _MAKERS:
            return functools.partial(self._tracked, found, _MAKERS[name])
        return found

    def _tracked(self, make: Callable[..., Any], place: int, *args: Any) -> Any:
        """Make a class, or return the one that this copy made of it before."""
        key = args[place]
        if key is None or key not in self._classes:
            made = make(*args[:place], None, *args[place + 1 :])
            if key is None:
                return made
            self._classes[key] = made
        return self._classes[key]


# cloudpickle's functions that make a class, and where they take its identity.
_MAKERS = {"_make_skeleton_class": 4, "_make_skeleton_enum": 5, "_make_typevar": 5}


def _named(module: str, *names: str) -> Any:
    found = importlib.import_module(module)
    for name in names:
        found = getattr(found, name)
    return found


def _itself(value: Any) -> Any:
    return value


def _importable(obj: Any) -> tuple[str, str] | None:
    """Return module and name by which another process finds ``obj``, or None."""
    module, name = getattr(obj, "__module__", None), getattr(obj, "__name__", None)
    if not module or not name or module == "__main__":
        return None
    try:
        return (module, name) if _named(module, name) is obj else None
    except (ImportError, AttributeError):
        return None


def _compiled(obj: Any) -> Any:
    """Return the function that ``mx.compile`` was given; None for other transformations.

    MLX doesn't say which transformation a function is; a compiled one alone holds, for the
    garbage collector, its captured inputs and outputs beside the function.
    """
    held = gc.get_referents(obj)
    if len(held) == 4 and not any(isinstance(part, int) for part in held[1:3]):
        return held[3]
    return None


def _custom_function(obj: Any) -> Any:
    """Return how to make a function of ``mx.custom_function`` again, such as a surrogate gradient.

    Raises:
        pickle.PicklingError: If it has a rule for ``jvp`` or ``vmap``: for the garbage collector it
            holds its function and its rules, which their numbers of arguments alone tell apart.
    """
    _, function, *rules = gc.get_referents(obj)
    if not rules:
        return mx.custom_function, (function,)
    if len(rules) == 1 and len(inspect.signature(rules[0]).parameters) == 3:
        # As a state, which is pickled later: the rule may call the function itself.
        return mx.custom_function, (function,), rules[0], None, None, _set_vjp
    raise pickle.PicklingError("a function of mx.custom_function with a rule for jvp or vmap")


def _set_vjp(function: Any, rule: Any) -> None:
    function.vjp(rule)


def _copy_error(subject: Subject, extra: Any, error: Exception) -> CopyError:
    for name, part in (
        ("model", subject.model),
        ("forward", subject.forward),
        ("target", subject.target),
    ):
        found = _find_cause(part, name, set())
        if found is not None:
            where, why = found
            return CopyError(
                f"{where} can't be copied: {why}. Analyses run a copy of the model: make this part "
                "when it is needed instead of keeping it there, or pass make_model=, a function "
                "that builds such a model"
            )
    held_out, callbacks = extra if extra is not None else (None, ())
    for part in (held_out, *callbacks):
        found = _find_cause(part, type(part).__name__, set())
        if found is not None:
            where, why = found
            return CopyError(
                f"{where} can't be sent to another process: {why}. Make this part when it is "
                "needed instead of keeping it there, or pass background=False"
            )
    return CopyError(f"the model can't be copied: {type(error).__name__}: {error}")


def _find_cause(value: Any, path: str, seen: set[int]) -> tuple[str, str] | None:
    """Return the path of the innermost part that can't be pickled, and why."""
    if id(value) in seen:
        return None
    seen.add(id(value))
    try:
        _Packer(io.BytesIO(), None).dump(value)
    except Exception as error:
        for name, part in _parts(value):
            found = _find_cause(part, f"{path}{name}", seen)
            if found is not None:
                return found
        return f"{path} (a {type(value).__name__})", f"{type(error).__name__}: {error}"
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over what an object holds, with how it is written in Python."""
    if isinstance(value, nn.Module):
        yield from ((f".{key}", part) for key, part in dict.items(value))
        attributes = {**vars(value), **filled_slots(value)}
        # A copy is in evaluation mode.
        yield from ((f".{k}", part) for k, part in attributes.items() if k != "_training")
        return
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    if isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):
                yield f" (its variable {name})", cell.cell_contents
        for name in value.__code__.co_names:
            if name in value.__globals__ and value.__module__ == "__main__":
                yield f" (its global {name})", value.__globals__[name]
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        yield from ((f".{name}", part) for name, part in vars(value).items())


# ---- checks


def difference(original: Any, copy: Any, path: str = "model") -> str | None:
    """Return the path of the first part in which a copy differs from the original, or None.

    Classes with a pickling method of their own may omit parts.
    """
    return _difference(original, copy, path, set())


def _difference(a: Any, b: Any, path: str, seen: set[int]) -> str | None:
    if id(a) in seen or isinstance(a, type | types.FunctionType | types.ModuleType | weakref.ref):
        return None
    seen.add(id(a))
    if isinstance(a, mx.array) and isinstance(b, mx.array):
        return None if _equal_bits(a, b) else path
    if isinstance(a, np.ndarray):
        same = isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        return None if same and (a.dtype.hasobject or a.tobytes() == b.tobytes()) else path
    if type(a).__name__ != type(b).__name__:
        # A function that MLX compiled is copied as the function itself.
        kinds = ("mlx.core", "nanobind")
        compiled = callable(b) and type(b).__module__.startswith(kinds)
        return None if compiled or type(a).__module__.startswith(kinds) else path
    if isinstance(a, bool | int | float | complex | str | bytes | None):
        return None if a == b or a != a else path
    mine, other = dict(_parts(a)), dict(_parts(b))
    for name, part in mine.items():
        if name not in other:
            return f"{path}{name}"
        found = _difference(part, other[name], f"{path}{name}", seen)
        if found is not None:
            return found
    return None


def _equal_bits(a: mx.array, b: mx.array) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # An array that can't be evaluated is equal to what stands for it.
    return not _evaluates(a) or array_bytes(a) == array_bytes(b)


def array_bytes(array: mx.array) -> bytes:
    """Return the entries of an array in C order, every bit of them, of any dtype."""
    mx.eval(array)
    buffer: Any = array
    return memoryview(buffer).tobytes()


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


# ---- random numbers


class _RandomStates(NamedTuple):
    mlx: Any
    numpy: Any
    python: Any


def random_states() -> _RandomStates:
    """Return the states of the global generators of MLX, numpy and Python."""
    key = mx.random.state[0].tolist()  # type: ignore[index]
    if _shared_by_threads():
        return _RandomStates(key, None, None)
    return _RandomStates(key, np.random.get_state(), random.getstate())  # noqa: NPY002


def restore_random_states(states: _RandomStates) -> None:
    """Put the global generators back to how :func:`random_states` found them."""
    # `state` can't be assigned to in recent MLX; this seed gives the same key in all versions.
    mx.random.seed((states.mlx[0] << 32) | states.mlx[1])
    # Another thread that was started meanwhile may have drawn: its numbers must not come again.
    if states.numpy is not None and not _shared_by_threads():
        np.random.set_state(states.numpy)  # noqa: NPY002
        random.setstate(states.python)


# Threads that draw no random numbers: ours, those that feed other processes, and progress bars'.
_QUIET_THREADS = ("ncp_callbacks", "QueueFeederThread")
_QUIET_MODULES = ("tqdm.", "joblib.")


def _shared_by_threads() -> bool:
    """Return whether a thread of the user's could use the global generators, as data loaders do."""
    own = threading.current_thread()
    return any(
        thread is not own
        and not thread.name.startswith(_QUIET_THREADS)
        and not type(thread).__module__.startswith(_QUIET_MODULES)
        for thread in threading.enumerate()
    )
