"""Read what has changed in a user's model since it was read last. The model is never run.

reader = SnapshotReader(Subject(model), as_bytes=True)
snapshot = reader.read()       # the whole model
...                            # training goes on
snapshot = reader.read()       # arrays that are other objects now, and whatever else changed
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..arrays import to_mlx
from ..model.model_copy import ModelCopy, Subject, array_paths, pack
from ..model.own_arrays import (
    MAX_COPIED,
    array_bytes,
    evaluate_pending,
    own_copy,
    own_view,
)

__all__ = ["ArrayBytes", "Snapshot", "SnapshotLoader", "SnapshotReader"]

# What numpy has no name for travels as integers of the same width.
_AS_INTEGERS: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(np.uint16),
    "float64": np.dtype(np.uint64),
}


# Bytes of a model's arrays that are compared with those of the snapshot before, at some 2 GB a
# second. Arrays beyond are the frozen ones of a large model, as a rule.
_MAX_COMPARED = 256 << 20


@dataclass(frozen=True, eq=False)
class ArrayBytes:
    """An MLX array as bytes, for another process; every bit is kept.

    Attributes:
        dtype: Name of the MLX dtype.
        shape: Its shape.
        data: Its entries in C order.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: mx.array) -> ArrayBytes:
        """Return the bytes of an array that is evaluated."""
        return cls(_name(array.dtype), tuple(array.shape), array_bytes(array))

    def array(self) -> mx.array:
        """Return the array, made by the calling thread."""
        dtype: mx.Dtype = getattr(mx, self.dtype)
        if 0 in self.shape:
            return mx.zeros(self.shape, dtype)
        stand_in = _AS_INTEGERS.get(self.dtype)
        kind = np.dtype(self.dtype) if stand_in is None else stand_in
        values = to_mlx(np.frombuffer(self.data, kind).reshape(self.shape))
        return values if stand_in is None else values.view(dtype)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a model holds, as far as it isn't known from the snapshot before.

    Attributes:
        skeleton: The model without its arrays; None: as before.
        arrays: By slot: :class:`ArrayBytes`, or copies of the model's own arrays, or numpy arrays.
        slots: Number of slots.
        nbytes: Size of the arrays that it holds.
    """

    skeleton: bytes | None
    arrays: Mapping[int, Any]
    slots: int
    nbytes: int


class SnapshotReader:
    """Reads one model, time after time.

    Args:
        subject: The model and the user's functions that go with it.
        as_bytes: Read arrays as bytes, for another process; else as copies.

    Attributes:
        unreadable: Paths of arrays that couldn't be evaluated, as tracing leaves them behind, in
            any snapshot so far.
    """

    def __init__(self, subject: Subject, *, as_bytes: bool) -> None:
        self.unreadable: list[str] = []
        self._subject, self._as_bytes = subject, as_bytes
        self._skeleton: bytes | None = None
        self._known: dict[int, _Known] = {}

    def restart(self, *, as_bytes: bool | None = None) -> None:
        """Let the next snapshot hold the whole model."""
        self._as_bytes = self._as_bytes if as_bytes is None else as_bytes
        self._skeleton = None

    def evaluate_pending(self) -> None:
        """Compute what training has left to compute, which isn't part of reading the model."""
        evaluate_pending(array for _, array in array_paths(self._subject.model))

    def read(self, extra: Any = None) -> Snapshot:
        """Return what has changed.

        Args:
            extra: Objects to send along, which may share parts with the model.

        Raises:
            CopyError: If the model holds something now that can't be copied.
        """
        packed = pack(self._subject, extra)
        failed = evaluate_pending(packed.arrays)
        whole = packed.skeleton != self._skeleton
        if whole:
            self._known = {}
        arrays: dict[int, Any] = {}
        nbytes = so_far = 0
        for slot, array in enumerate(packed.arrays):
            so_far += array.nbytes
            by_bytes = array.nbytes <= MAX_COPIED and so_far <= _MAX_COMPARED
            if id(array) in failed:
                self._report_unreadable(array)
                continue
            if self._as_bytes and self._known.setdefault(slot, _Known()).still(array, by_bytes):
                continue
            nbytes += array.nbytes
            as_bytes = self._as_bytes and isinstance(array, mx.array)
            arrays[slot] = ArrayBytes.of(array) if as_bytes else own_copy(array)
        self._skeleton = packed.skeleton
        return Snapshot(packed.skeleton if whole else None, arrays, len(packed.arrays), nbytes)

    def _report_unreadable(self, array: mx.array) -> None:
        paths = [path for path, held in array_paths(self._subject.model) if held is array]
        name = ".".join(map(str, paths[0])) if paths else "an attribute"
        if name not in self.unreadable:
            self.unreadable.append(name)


class _Known:
    """Tells if a slot holds the very numbers that it held when it was read last."""

    def __init__(self) -> None:
        self._seen: Callable[[], Any] = lambda: None
        self._view: mx.array | None = None
        self._digest: int | None = None

    def still(self, array: Any, by_bytes: bool) -> bool:
        """Compare with the last call, and remember.

        A trained parameter is a new object after each update. An object that comes back may still
        have been written in place: then its bytes are others. Where that would take long, a view is
        kept, so that it has another buffer then. Whoever holds on to a buffer that is trained
        later, such as that of a layer which isn't frozen any more, changes the training.

        Args:
            array: What the slot holds now.
            by_bytes: Whether bytes are compared.
        """
        has_address = _has_address(array)
        if not has_address or (by_bytes and self._seen() is array):
            digest = _digest(array)
            same = digest == self._digest
            self._digest, self._view = digest, None
            return same
        self._digest = None
        if by_bytes:
            self._view, self._seen = None, weakref.ref(array)
            return False
        if self._view is not None and _address(array) == _address(self._view):
            return True
        # A view is kept only of what seems not to be trained: it keeps the buffer alive.
        self._view = own_view(array) if self._seen() is array else None
        if self._view is not None:
            mx.eval(self._view)
        self._seen = weakref.ref(array)
        return False


class SnapshotLoader:
    """Puts snapshots, in their order, into a copy.

    Args:
        copy: The copy.
    """

    def __init__(self, copy: ModelCopy) -> None:
        self._copy = copy
        self._skeleton = b""
        self._arrays: list[Any] = []

    def load(self, snapshot: Snapshot) -> None:
        """Let the copy be as the model was when this was read."""
        if snapshot.skeleton is not None:
            self._skeleton, self._arrays = snapshot.skeleton, [None] * snapshot.slots
        for slot, array in snapshot.arrays.items():
            self._arrays[slot] = array.array() if isinstance(array, ArrayBytes) else array
        self._copy.load(self._skeleton, self._arrays)


def _digest(array: Any) -> int:
    if not isinstance(array, mx.array):
        return zlib.crc32(array.tobytes())
    mx.eval(array)
    buffer: Any = array
    data = memoryview(buffer)
    return zlib.crc32(data if data.c_contiguous else data.tobytes())


def _has_address(array: Any) -> bool:
    """Tell if an array's address shows that it holds other numbers now.

    A transposed array has the address of the original, and one that isn't contiguous has none.
    """
    if not isinstance(array, mx.array) or array.ndim == 0 or array.size == 0:
        return False
    buffer: Any = array
    return memoryview(buffer).c_contiguous


def _address(array: mx.array) -> int:
    """Return where the entries of an evaluated, contiguous array are."""
    whole = array.view(mx.uint8)
    mx.eval(whole)
    buffer: Any = whole
    return int(np.asarray(memoryview(buffer)).__array_interface__["data"][0])


def _name(dtype: mx.Dtype) -> str:
    name = str(dtype).rsplit(".", 1)[-1]
    return "bool_" if name == "bool" else name
