"""Encode records as TensorBoard's protocol buffers.

    encoder = Encoder()
    event = Event(step=step, wall_time=now, summary=Summary(value=encoder.values(record)))

Scalars are ``simple_value``, the only form every reader knows. Everything else is a tensor with a
plugin name (TensorFlow 2's form), the only one whose description reaches all TensorBoard loaders.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.proto.types_pb2 import DT_DOUBLE, DT_FLOAT, DT_STRING
from tensorboardX.summary import hparams

from ..records import Array, Data, Embedding, Histogram, Note, Picture, Record, Scalar, Text
from ..screen import (
    ARRAY_PLUGIN,
    CI_ARRAYS,
    DATA_PLUGIN,
    FORMAT,
    SCALAR_ARRAYS,
    VALIDATION,
    Screen,
    clean_tag,
)
from .base import Instruction, valid_text
from .custom_scalars import CustomScalars
from .run_config import RunConfig

__all__ = ["Encoder", "Event", "SessionLog", "Summary"]

# SummaryMetadata.data_class = DATA_CLASS_TENSOR, a field that tensorboardX's messages lack.
_DATA_CLASS_TENSOR = b"\x20\x02"
# Kinds of metrics of the HParams dashboard, in the order of its columns.
_TRAINING, _VALIDATIONS, _HELD_OUT, _HEADLINES = range(4)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Encoder:
    """Turn records into summary values, and remember the clean tag of each original one.

    Args:
        log_dir: Directory of the log, if it is on this machine.
    """

    def __init__(self, log_dir: Path | None = None) -> None:
        self._tags: dict[tuple[type, str], str] = {}
        self._taken: set[str] = set()
        self._config: RunConfig | None = None
        self._session = False
        self._metrics: dict[str, int] = {}
        self._charts = CustomScalars(log_dir)
        self._screen = Screen()
        self._named: set[str] = set()
        self._described_tags: set[str] = set()

    def arrange(self, callbacks: Collection[str]) -> None:
        """Show tags whose groups begin with these names where those of callbacks belong."""
        self._screen = Screen(callbacks)

    def values(self, record: Record | Instruction) -> list[Summary.Value]:
        """Return the summary values of one record; an embedding has none.

        Raises:
            Exception: The record has something that can't be encoded.
        """
        if isinstance(record, RunConfig):
            self._config, self._session = record, True
            return list(hparams(record.values, {})[1].value)
        if isinstance(record, Note | Embedding):
            return []  # The monitor writes notes as one text; embeddings have files of their own.
        tag = self._tag(type(record), record.tag)
        if isinstance(record, Scalar):
            return self._scalar(tag, record)
        if isinstance(record, Histogram):
            return self._histogram(tag, record)
        if isinstance(record, Text):
            text = record.markdown.encode("utf-8", "replace")
            return [_tensor(tag, record, "text", _strings(text))]
        if isinstance(record, Data):
            document = _strings(record.json.encode("utf-8", "replace"))
            return [_declared(_tensor(tag, record, DATA_PLUGIN, document))]
        if isinstance(record, Array):
            values = np.asarray(record.values, dtype=np.float64)
            _check_fits(float(np.abs(values[np.isfinite(values)]).max(initial=0.0)))
            value = _tensor(tag, record, ARRAY_PLUGIN, _numbers(record.values, "<f4"))
            return [self._described(value, record)]
        if isinstance(record, Picture):
            width, height = struct.unpack(">II", record.png[16:24])
            sized = _strings(b"%d" % width, b"%d" % height, record.png)
            return [_tensor(tag, record, "images", sized, self._screen.picture(tag, record.place))]
        raise TypeError(
            f"{record!r} is not a record: pass a Scalar, Histogram, Text, Data, Array or Picture"
        )

    @property
    def knows_metrics(self) -> bool:
        """Return true once the loop has logged a validation and a callback a headline number.

        The metrics of the HParams dashboard are declared once: TensorBoard keeps the first.
        """
        return self._config is not None and {_VALIDATIONS, _HEADLINES} <= {*self._metrics.values()}

    def metrics(self) -> list[Summary.Value]:
        """Return once the columns of the HParams dashboard, which has those of all tags without.

        They are the training loss, the validation, and the headline numbers of callbacks, as far as
        they were logged. The dashboard shows the first five until others are ticked.
        """
        # A log without callbacks has few tags. Declaring some would hide the hyper-parameters of
        # runs in the same directory that this run doesn't have.
        if self._config is None or _HEADLINES not in self._metrics.values():
            return []
        config, self._config = self._config, None
        columns = sorted(self._metrics, key=self._metrics.__getitem__)
        return list(hparams(config.values, dict.fromkeys(columns, 0.0))[0].value)

    def end(self) -> list[Summary.Value]:
        """Return once what ends the session that a :class:`RunConfig` started, if one did."""
        if not self._session:
            return []
        self._session = False
        return [*self.metrics(), *hparams({}, {})[2].value]

    @property
    def layout_changed(self) -> bool:
        """Return true when tags have come that belong to a chart of Custom Scalars."""
        return self._charts.changed

    def layout(self) -> list[Summary.Value]:
        """Return the charts of tags that belong together, and those that the log has.

        Raises:
            OSError: What the log has can't be read.
        """
        return [self._charts.layout()]

    def _scalar(self, tag: str, record: Scalar) -> list[Summary.Value]:
        for number in (record.value, *(record.ci or ())):
            _check_fits(number)
        shown = self._screen.scalar(tag, record.place, record.value)
        if shown is None:
            encoded = [self._array(SCALAR_ARRAYS + tag, np.array(record.value))]
        else:
            self._charts.add(tag, shown)
            self._take_metric(shown, record)
            encoded = [self._card(tag, shown, record.value)]
        if record.ci is not None and all(map(math.isfinite, (record.value, *record.ci))):
            encoded.append(self._array(CI_ARRAYS + tag, np.array(record.ci)))
        return encoded

    def _card(self, tag: str, shown: str, value: float) -> Summary.Value:
        encoded = Summary.Value(tag=shown, simple_value=float(value))
        if shown != tag and shown not in self._named:
            # Who reads the log back finds the tag of the record here; the first value suffices.
            self._named.add(shown)
            plugin = SummaryMetadata.PluginData(plugin_name="scalars")
            encoded.metadata.CopyFrom(SummaryMetadata(display_name=tag, plugin_data=plugin))
        return encoded

    def _array(self, tag: str, values: npt.NDArray[Any]) -> Summary.Value:
        name = self._tag(Array, tag)
        array = Array(name, values)
        value = _tensor(name, array, ARRAY_PLUGIN, _numbers(values, "<f4"))
        return self._described(value, array)

    def _take_metric(self, shown: str, record: Scalar) -> None:
        if shown == "train/loss":
            self._metrics.setdefault(shown, _TRAINING)
        elif VALIDATION.match(shown):
            self._metrics.setdefault(shown, _VALIDATIONS)
        elif record.place == "headline":
            is_score = record.tag.startswith("held_out/")
            self._metrics.setdefault(shown, _HELD_OUT if is_score else _HEADLINES)

    def _described(self, value: Summary.Value, array: Array) -> Summary.Value:
        """Return an array with what TensorBoard's loaders and the interactive view need of it."""
        _declared(value)
        if (array.kind or array.axes) and value.tag not in self._described_tags:
            # Only in the first summary of a tag, which is the one that loaders keep.
            self._described_tags.add(value.tag)
            content = {"v": FORMAT, "kind": array.kind, "axes": list(array.axes), **array.about}
            value.metadata.plugin_data.content = json.dumps(content).encode()
        return value

    def _histogram(self, tag: str, record: Histogram) -> list[Summary.Value]:
        values = np.asarray(record.values).reshape(-1)
        edges = np.asarray(record.edges, dtype=np.float64)
        if edges.ndim != 1 or edges.size < 2 or not (np.diff(edges) > 0).all():
            raise ValueError(
                f"edges of {record.tag!r} have shape {edges.shape} or do not increase: pass at "
                "least 2 increasing edges"
            )
        finite = values[np.isfinite(values)]
        encoded = []
        if finite.size:
            # Searching between the inner edges puts overflow into the outer bins.
            bins = np.searchsorted(edges[1:-1], finite, side="right")
            counts = np.bincount(bins, minlength=edges.size - 1)
            table = np.stack([edges[:-1], edges[1:], counts], axis=1)
            shown = self._screen.tag(tag)
            encoded.append(_tensor(tag, record, "histograms", _numbers(table, "<f8"), shown))
        if finite.size < values.size:
            count = float(values.size - finite.size)
            name = self._tag(Scalar, f"{tag}_nonfinite")
            encoded += self._scalar(name, Scalar(name, count, place="nonzero"))
        return encoded

    def _tag(self, kind: type, tag: str) -> str:
        # TensorBoard knows one kind of data per tag, so the kind is part of what must be unique.
        key = (kind, tag)
        if key not in self._tags:
            clean = clean_tag(tag)
            unique, number = clean, 2
            while unique in self._taken:
                unique, number = f"{clean}_{number}", number + 1
            self._taken.add(unique)
            self._tags[key] = unique
        return self._tags[key]


def _check_fits(value: float) -> None:
    """Raise an error where float32 would make a finite value infinite.

    Raises:
        ValueError: The value is too large.
    """
    if math.isfinite(value) and abs(value) > _FLOAT32_MAX:
        raise ValueError(
            f"{abs(value):g} is too large: TensorBoard keeps numbers up to 3.4e38 (float32). Log "
            "its logarithm, or use another unit"
        )


def _declared(value: Summary.Value) -> Summary.Value:
    """Return a tensor that is declared to be one: both of TensorBoard's loaders drop others."""
    value.metadata.MergeFromString(_DATA_CLASS_TENSOR)
    return value


def _tensor(
    tag: str,
    record: Histogram | Picture | Text | Data | Array,
    plugin: str,
    tensor: TensorProto,
    shown: str | None = None,
) -> Summary.Value:
    """Return a tensor; ``shown`` is its tag in the event file, if it isn't that of the record."""
    name = valid_text(record.tag) if record.tag != tag else ""
    if shown is not None and shown != tag:
        name = tag
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=plugin),
        display_name=name,
        summary_description=valid_text(getattr(record, "description", "")),
    )
    return Summary.Value(tag=shown or tag, metadata=metadata, tensor=tensor)


def _numbers(values: npt.ArrayLike, dtype: str) -> TensorProto:
    with np.errstate(over="ignore"):
        array = np.asarray(values).astype(dtype)
    return TensorProto(
        dtype=DT_FLOAT if dtype == "<f4" else DT_DOUBLE,
        tensor_shape=_shape(array.shape),
        tensor_content=array.tobytes(),
    )


def _strings(*values: bytes) -> TensorProto:
    return TensorProto(
        dtype=DT_STRING, tensor_shape=_shape((len(values),)), string_val=list(values)
    )


def _shape(shape: tuple[int, ...]) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
