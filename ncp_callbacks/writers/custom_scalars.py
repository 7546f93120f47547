"""Lay out curves that belong together as charts in TensorBoard's Custom Scalars.

Time Series has one card for each tag. Custom Scalars draws several tags in one chart, so it has the
charts that Time Series can't have: the loss in training and on held-out data, the shares of all
features, a number at several scales. A layout names the tags of each chart, and the layout that was
written last to a run counts::

    charts = CustomScalars(log_dir)
    charts.add("train/loss", "train/loss")
    charts.add("val/loss", "val/loss")
    if charts.changed:
        Summary(value=[charts.layout()])
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.layout_pb2 import Category, Chart, Layout, MultilineChartContent
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.proto.types_pb2 import DT_STRING

__all__ = ["MAX_CHARTS", "CustomScalars"]

MAX_CHARTS = 24
_LEARNING = "learning"
# Groups of losses and scores: the loop's own, and those of the held-out batch.
_SCORES = re.compile(r"(train|training|val|valid|validation|dev|test|eval|held_out)$")
_LAYOUT = "custom_scalars__config__"
_PLUGIN = "custom_scalars"


class _Family(NamedTuple):
    """Name a chart by its category and title."""

    category: str
    title: str


class CustomScalars:
    """Keep the charts of a log: those of families of at least two tags.

    Args:
        log_dir: Directory of the log. It may have charts already, which keep their places.

    Attributes:
        changed: True when a layout must be written.
    """

    def __init__(self, log_dir: Path | None = None) -> None:
        self.changed = False
        self._log_dir = log_dir
        self._known: set[str] = set()
        self._charts: dict[_Family, list[str]] = {}

    def add(self, tag: str, shown: str) -> None:
        """Take a tag that has a card.

        Args:
            tag: The tag of the record.
            shown: The tag in the event file.
        """
        if tag in self._known:
            return
        self._known.add(tag)
        family = _family(tag, of_callback=shown != tag)
        if family is None:
            return
        tags = self._charts.setdefault(family, [])
        tags.append(shown)
        self.changed |= len(tags) > 1

    def layout(self) -> Summary.Value:
        """Return the charts of all families so far, beside those of the log.

        Raises:
            OSError: An event file of the log can't be read.
        """
        self.changed = False
        layout = self._logged()
        complete = {family: tags for family, tags in self._charts.items() if len(tags) > 1}
        for family in sorted(complete, key=_order)[:MAX_CHARTS]:
            _add(layout, family, complete[family])
        return Summary.Value(
            tag=_LAYOUT,
            metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=_PLUGIN)),
            tensor=TensorProto(
                dtype=DT_STRING,
                tensor_shape=TensorShapeProto(),
                string_val=[layout.SerializeToString()],
            ),
        )

    def _logged(self) -> Any:
        """Return the layout that counts in the log."""
        layout = Layout()
        if self._log_dir is not None:
            for found in _layouts(self._log_dir):
                layout = found
        return layout


def _family(tag: str, *, of_callback: bool) -> _Family | None:
    """Return the chart that a tag belongs to; None if it stands alone, or is the user's."""
    group, _, name = tag.partition("/")
    if _SCORES.match(group):
        return _Family(_LEARNING, name)
    if not of_callback:
        return None
    if group.endswith("_share"):
        return _Family(group, "shares")
    stem = re.sub(r"\d+(\.\d+)?", "*", name.removesuffix("_random"))
    return _Family(group, stem)


def _order(family: _Family) -> bool:
    return family.category != _LEARNING


def _add(layout: Any, family: _Family, tags: list[str]) -> None:
    content = MultilineChartContent(tag=[f"^{re.escape(tag)}$" for tag in tags])
    chart = Chart(title=family.title, multiline=content)
    for category in layout.category:
        if category.title == family.category:
            for known in category.chart:
                if known.title == family.title:
                    added = [tag for tag in chart.multiline.tag if tag not in known.multiline.tag]
                    known.multiline.tag.extend(added)
                    return
            category.chart.append(chart)
            return
    layout.category.append(Category(title=family.category, chart=[chart]))


def _layouts(log_dir: Path) -> Iterator[Any]:
    """Yield the layouts in the event files of a directory, in the order of writing."""
    from ..runs.frames import Frames
    from ..runs.reader import event_files

    for file in event_files(log_dir):
        for frame in Frames(file):
            if frame.intact and _LAYOUT.encode() in frame.data:
                for value in Event.FromString(frame.data).summary.value:
                    if value.tag == _LAYOUT and value.tensor.string_val:
                        yield Layout.FromString(value.tensor.string_val[0])
