"""Read a run from the event files of a directory.

    run = read_run("runs/cfc-seed0")
    run.scalars["val/loss"].values
    run.arrays["_ncp/attribution_strength"][3000]       # (T, F)

Scalars, histograms, texts and images are read in both of their forms (plain, and as tensors with a
plugin name), beside raw arrays and hyper-parameters. Where a run was resumed, what its earlier part
had logged for later steps is skipped, as in TensorBoard. What is damaged, not yet whole or makes no
sense is skipped with a warning. Pictures stay in the file until they are asked for.

Nothing is allocated by what a file claims: a tensor must hold as many values as its shape has.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..screen import ARRAY_PLUGIN, CI_ARRAYS, DATA_PLUGIN, SCALAR_ARRAYS, plain_tag
from ..tables import Table, plain
from .errors import RunsError
from .frames import Frame, Frames, read_frame

__all__ = [
    "Binned",
    "ConfidenceIntervals",
    "HyperParameter",
    "Image",
    "Run",
    "Scalars",
    "event_files",
    "read_run",
]

HyperParameter: TypeAlias = bool | float | str
FloatArray: TypeAlias = npt.NDArray[np.float64]

_NUMBERS = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 10: "?"}
_FIELDS = {1: "float_val", 2: "double_val", 3: "int_val", 9: "int64_val", 10: "bool_val"}
_STRING = 7
_MAX_HPARAMS_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Scalars:
    """Hold the points of a tag by increasing step: ``steps`` and ``values``, both ``(N,)``."""

    steps: npt.NDArray[np.int64]
    values: FloatArray


@dataclass(frozen=True, eq=False)
class ConfidenceIntervals:
    """Hold the 95 % CI of a scalar: ``steps``, ``low`` and ``high``, all ``(N,)``."""

    steps: npt.NDArray[np.int64]
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, eq=False)
class Binned:
    """Hold a histogram: ``counts`` between ``left`` and ``right``, all ``(bins,)``."""

    left: FloatArray
    right: FloatArray
    counts: FloatArray


@dataclass(frozen=True)
class Image:
    """Point to a picture that is still in its file."""

    path: Path
    offset: int
    part: int

    def data(self) -> bytes:
        """Return the encoded picture, as a rule a PNG.

        Raises:
            OSError, ValueError: The file is gone, or damaged here.
        """
        frame = read_frame(self.path, self.offset)
        event = parsed_event(frame)
        if event is None or not frame.intact or self.part >= len(event.summary.value):
            raise ValueError(f"{self.path.name} is damaged at byte {self.offset:,}")
        value = event.summary.value[self.part]
        if value.HasField("image"):
            return bytes(value.image.encoded_image_string)
        strings = value.tensor.string_val  # Width, height, and one or more pictures.
        if len(strings) < 3:
            raise ValueError(f"{value.tag} has no picture")
        return bytes(strings[2])


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """Hold what the event files of a directory hold.

    Attributes:
        name: The last part of the path, or the name that the caller passed.
        scalars: By tag, in the order in which tags first appear.
        histograms, arrays, texts, images: By tag, then by increasing step. A step that was logged
            several times has its last value.
        hparams: Hyper-parameters, as TensorBoard's HParams dashboard shows them.
        warnings: Sentences that name what was skipped.
        ci: 95 % CIs by the tag of their scalar. They are not among the scalars.
        about: Descriptions of arrays by tag, as the log has them: ``kind``, ``axes`` and others.
    """

    name: str
    path: Path
    scalars: Mapping[str, Scalars]
    histograms: Mapping[str, Mapping[int, Binned]]
    arrays: Mapping[str, Mapping[int, FloatArray]]
    texts: Mapping[str, Mapping[int, str]]
    images: Mapping[str, Mapping[int, Image]]
    hparams: Mapping[str, HyperParameter]
    warnings: tuple[str, ...] = ()
    ci: Mapping[str, ConfidenceIntervals] = field(default_factory=dict)
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[int, int] | None:
        """Return the first and last step at which a number was logged; None if none was."""
        kept = [(int(s.steps[0]), int(s.steps[-1])) for s in self.scalars.values()]
        for kind in (self.histograms, self.arrays):
            kept += [(min(points), max(points)) for points in kind.values()]
        if not kept:
            return None
        return min(first for first, _ in kept), max(last for _, last in kept)

    def __repr__(self) -> str:
        counts = [
            f"{len(found)} {kind}"
            for kind in ("scalars", "histograms", "arrays", "texts", "images", "warnings")
            if (found := getattr(self, kind))
        ]
        where = "" if self.steps is None else f", steps {self.steps[0]} to {self.steps[1]}"
        return f"Run({self.name!r}{where}, {', '.join(counts) or 'empty'})"

    def to_dict(self) -> dict[str, Any]:
        """Return name, hyper-parameters and scalars with their 95 % CIs, for JSON."""
        scalars: dict[str, Any] = {}
        for step, tag, *numbers in self._table().lines():
            points = scalars.setdefault(tag, {"step": [], "value": [], "low": [], "high": []})
            for values, number in zip(points.values(), (step, *numbers), strict=True):
                values.append(plain(number))
        return {"name": self.name, "hparams": dict(self.hparams), "scalars": scalars}

    def to_dataframe(self) -> Any:
        """Return a ``pandas.DataFrame`` of the scalars: step, tag, value, low and high.

        The last two are the ends of the 95 % CI, or missing.

        Raises:
            ImportError: pandas is not installed.
        """
        return self._table().to_dataframe()

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table of :meth:`to_dataframe` to a CSV file, without pandas.

        Raises:
            OSError: The file can't be written.
        """
        self._table().to_csv(path)

    def _table(self) -> Table:
        def lines() -> Iterator[tuple[Any, ...]]:
            for tag, points in self.scalars.items():
                ci = self.ci.get(tag)
                ends = (
                    {}
                    if ci is None
                    else {
                        int(step): (float(low), float(high))
                        for step, low, high in zip(ci.steps, ci.low, ci.high, strict=True)
                    }
                )
                for step, value in zip(points.steps, points.values, strict=True):
                    yield int(step), tag, float(value), *ends.get(int(step), (None, None))

        return Table(("step", "tag", "value", "low", "high"), lines)


def event_files(path: Path) -> list[Path]:
    """Return the event files of a directory in the order of their start, or the file itself."""
    if path.is_file():
        return [path]
    names = (name for name in os.listdir(path) if "tfevents" in name)
    return sorted(path / name for name in names if (path / name).is_file())


def read_run(path: str | os.PathLike[str], *, name: str | None = None) -> Run:
    """Read all event files of a directory, or one event file.

    Args:
        path: Directory with event files, or an event file. Of directories below, only the
            hyper-parameters of ``SummaryWriter.add_hparams`` are read.
        name: Name of the run; the last part of the path if None.

    Raises:
        RunsError: There is no such directory, it can't be listed, or it has no event files.
    """
    where = Path(path).expanduser()
    try:
        files = event_files(where)
    except OSError as error:
        raise RunsError(f"run {str(path)!r} can't be read: {error.strerror}") from error
    if not files:
        raise RunsError(f"{str(path)!r} holds no event files: pass a folder that holds some")
    log = _Log()
    if where.is_dir():
        log.read_hparams(where)
    for file in files:
        log.read(file)
    return log.run(name or where.absolute().name, where)


def parsed_event(frame: Frame) -> Any:
    """Return the event, or None where the data is none."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    try:
        return Event.FromString(frame.data)
    except DecodeError:
        return None


class _Log:
    """Collect what the event files of a run hold."""

    def __init__(self) -> None:
        # For every kind: tag -> step and value of its points, in the order of the file.
        self._points: dict[str, dict[str, list[tuple[int, Any]]]] = {
            kind: defaultdict(list)
            for kind in ("scalars", "histograms", "arrays", "texts", "images")
        }
        self._plugins: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._about: dict[str, dict[str, Any]] = {}
        self._hparams: dict[str, HyperParameter] = {}
        self._warnings: list[str] = []

    def run(self, name: str, path: Path) -> Run:
        _take_scalars(self._points["scalars"], self._points["arrays"])
        by_step = {
            kind: {tag: sorted(points, key=_step) for tag, points in tags.items() if points}
            for kind, tags in self._points.items()
        }
        scalars = {}
        for tag, points in by_step.pop("scalars").items():
            steps, values = zip(*points, strict=True)
            scalars[tag] = Scalars(np.array(steps, np.int64), np.array(values, np.float64))
        others = {
            kind: {tag: dict(points) for tag, points in tags.items()}
            for kind, tags in by_step.items()
        }
        ci = _take_ci(scalars, others["arrays"])
        return Run(
            name, path, scalars, **others, hparams=self._hparams, warnings=tuple(self._warnings),
            ci=ci, about=self._about,
        )  # fmt: skip

    def read(self, path: Path) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog

        frames = Frames(path)
        records = foreign = bad = bad_bytes = 0
        unread: list[str] = []
        try:
            for frame in frames:
                records += 1
                event = parsed_event(frame) if frame.intact else None
                if not frame.intact:
                    bad += 1
                    bad_bytes += len(frame.data)
                elif event is None:
                    foreign += 1
                if event is None:
                    continue
                if event.session_log.status == SessionLog.START:
                    self._restart(event.step)
                for number, value in enumerate(event.summary.value):
                    try:
                        self._value(event.step, value, Image(path, frame.offset, number))
                    except (ValueError, TypeError, OverflowError, MemoryError) as error:
                        unread.append(f"{value.tag} at step {event.step} {error}")
        except OSError as error:
            self._warn(path, f"can't be read: {error.strerror}")
            return
        if frames.size == 0:
            self._warn(path, "is empty")
        elif records == foreign:
            self._warn(path, "holds no event records: another kind of file, or a damaged one")
        elif frames.damaged or bad:
            count = bad + len(frames.damaged)
            lost = bad_bytes + sum(frames.damaged.values())
            places = "place" if count == 1 else "places"
            self._warn(path, f"is damaged in {count} {places}; {lost:,} bytes are skipped")
        if 0 < foreign < records:
            self._warn(path, f"has {foreign} records of another kind, which are skipped")
        if unread:
            more = "" if len(unread) == 1 else f"; {len(unread) - 1} more are skipped, too"
            self._warn(path, f"has a value that can't be read: {unread[0]}{more}")
        if records and frames.cut_off:
            self._warn(
                path,
                f"ends within a record, {frames.cut_off:,} bytes of which are skipped: it is "
                "still being written, or was cut off",
            )

    def read_hparams(self, path: Path) -> None:
        """Read the hyper-parameters that ``SummaryWriter.add_hparams`` puts in a folder of its own.

        Such a folder has one small file, with the hyper-parameters and the last value of each
        metric. Any other folder is another run.
        """
        for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
            with contextlib.suppress(OSError):
                files = event_files(folder)
                if len(files) != 1 or files[0].stat().st_size > _MAX_HPARAMS_BYTES:
                    continue
                below = _Log()
                below.read(files[0])
                others = [tags for kind, tags in below._points.items() if kind != "scalars"]
                points = below._points["scalars"].values()
                if not any(others) and all(len(of_one) == 1 for of_one in points):
                    self._hparams.update(below._hparams)

    def _warn(self, path: Path, what: str) -> None:
        self._warnings.append(f"{path.name} {what}")

    def _restart(self, first: int) -> None:
        """Remove what an earlier part of the run logged for ``first`` and later steps."""
        for tags in self._points.values():
            for points in tags.values():
                points[:] = [point for point in points if point[0] < first]

    def _value(self, step: int, value: Any, where: Image) -> None:
        """Keep one value of a summary."""
        form = value.WhichOneof("value")
        tag = self._tags.setdefault(value.tag, plain_tag(value.tag, value.metadata.display_name))
        # Only the first summary of a tag need name the plugin.
        plugin = value.metadata.plugin_data.plugin_name or self._plugins.get(tag, "")
        self._plugins.setdefault(tag, plugin)
        content = value.metadata.plugin_data.content
        if plugin == ARRAY_PLUGIN and content:
            self._about[tag] = described(content)
        kind, decode = _FORMS.get(form) or _TENSORS.get((form, plugin)) or (None, None)
        if kind is not None:
            held = getattr(value, form)
            self._points[kind][tag].append((step, where if decode is None else decode(held)))
        elif plugin == "hparams":
            self._hparams.update(_hparams(content))


def _step(point: tuple[Any, ...]) -> int:
    return int(point[0])


def _take_ci(
    scalars: Mapping[str, Scalars], arrays: dict[str, dict[int, FloatArray]]
) -> dict[str, ConfidenceIntervals]:
    """Move the bounds of CIs out of the arrays, and return them by the tag of their scalar."""
    found = {}
    for name in [name for name in arrays if name.startswith(CI_ARRAYS)]:
        tag = name.removeprefix(CI_ARRAYS)
        if tag in scalars and all(ends.shape == (2,) for ends in arrays[name].values()):
            bounds = arrays.pop(name)
            ends = np.array(list(bounds.values()), np.float64)
            found[tag] = ConfidenceIntervals(np.array(list(bounds), np.int64), *ends.T)
    return found


def _take_scalars(
    points: dict[str, list[tuple[int, Any]]], arrays: dict[str, list[tuple[int, Any]]]
) -> None:
    """Move numbers without a card out of the arrays; a number may have had one at other steps."""
    for name in [name for name in arrays if name.startswith(SCALAR_ARRAYS)]:
        if all(value.shape == () for _, value in arrays[name]):
            tag = name.removeprefix(SCALAR_ARRAYS)
            points[tag] += [(step, value.item()) for step, value in arrays.pop(name)]


def described(content: bytes) -> dict[str, Any]:
    """Return the description of an array; empty where it can't be understood."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def tensor_numbers(tensor: Any) -> FloatArray:
    """Return the values of a numeric tensor.

    Raises:
        ValueError: It has another type, or not as many values as its shape has. TensorFlow lets one
            value stand for all; no log of TensorBoard does, and a small file could take any memory.
    """
    if tensor.dtype not in _NUMBERS:
        raise ValueError(f"is a tensor of type {tensor.dtype}, not of numbers")
    shape = tuple(int(dim.size) for dim in tensor.tensor_shape.dim)
    values: npt.NDArray[Any]
    if tensor.tensor_content:
        values = np.frombuffer(tensor.tensor_content, f"<{_NUMBERS[tensor.dtype]}")
    else:
        values = np.array(getattr(tensor, _FIELDS.get(tensor.dtype, "int_val")), np.float64)
    if min(shape, default=0) < 0 or math.prod(shape) != values.size:
        has = "1 value" if values.size == 1 else f"{values.size:,} values"
        raise ValueError(f"has {has} for the shape {shape}")
    return values.astype(np.float64).reshape(shape)


def _number(tensor: Any) -> float:
    values = tensor_numbers(tensor)
    if values.size != 1:
        raise ValueError(f"has {values.size:,} values, and a scalar has one")
    return values.item()


def tensor_text(tensor: Any) -> str:
    if tensor.dtype != _STRING:
        raise ValueError("is no text")
    return "\n".join(part.decode(errors="replace") for part in tensor.string_val)


def _histogram(tensor: Any) -> Binned:
    table = tensor_numbers(tensor)
    if table.ndim != 2 or table.shape[1] != 3:
        raise ValueError(f"has the shape {table.shape}, not that of a histogram, (bins, 3)")
    return _checked(Binned(table[:, 0], table[:, 1], table[:, 2]))


def _plain_histogram(histogram: Any) -> Binned:
    right = np.array(histogram.bucket_limit, np.float64)
    counts = np.array(histogram.bucket, np.float64)
    if right.size != counts.size:
        raise ValueError(f"has {counts.size} counts for {right.size} bins")
    # The outer bins reach from and to the largest numbers there are.
    left = np.concatenate([[histogram.min], right[:-1]]) if right.size else right
    low, high = histogram.min, histogram.max
    return _checked(Binned(left.clip(low, high), right.clip(low, high), counts))


def _checked(histogram: Binned) -> Binned:
    filled = histogram.counts != 0
    left, right = histogram.left[filled], histogram.right[filled]
    values = np.concatenate([left, right, histogram.counts])
    if not np.isfinite(values).all() or (histogram.counts < 0).any() or (left > right).any():
        raise ValueError("is not a histogram: its bins are not in order, or counts are below 0")
    if (left[1:] < right[:-1]).any():
        raise ValueError("is not a histogram: its bins overlap")
    return histogram


def _hparams(content: bytes) -> dict[str, HyperParameter]:
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    try:
        start = HParamsPluginData.FromString(content).session_start_info
    except DecodeError as error:
        raise ValueError("hyper-parameters can't be read") from error
    found: Iterable[tuple[str, Any]] = start.hparams.items()
    return {name: _hparam(value) for name, value in sorted(found)}


def _hparam(value: Any) -> HyperParameter:
    kind = value.WhichOneof("kind")
    if kind == "bool_value":
        return bool(value.bool_value)
    return float(value.number_value) if kind == "number_value" else str(value.string_value)


# By the form of a value, and by its form and plugin: the kind, and the function that decodes it.
# Pictures stay in the file.
_FORMS: dict[str, tuple[str, Any]] = {
    "simple_value": ("scalars", float),
    "histo": ("histograms", _plain_histogram),
    "image": ("images", None),
}
_TENSORS: dict[tuple[str, str], tuple[str, Any]] = {
    ("tensor", "scalars"): ("scalars", _number),
    ("tensor", "histograms"): ("histograms", _histogram),
    ("tensor", "images"): ("images", None),
    ("tensor", ARRAY_PLUGIN): ("arrays", tensor_numbers),
    ("tensor", "text"): ("texts", tensor_text),
    ("tensor", DATA_PLUGIN): ("texts", tensor_text),
}
