"""Show scalars with a confidence interval as margin charts in TensorBoard's Custom Scalars.

A margin chart takes three tags that have points at exactly the same steps, and is an error message
otherwise. The value is therefore written twice: under its own tag, and where there are bounds
beside them, as ``ci/<tag>/value``, ``…/low``, ``…/high``. A layout names the tags of each
chart, and the layout that was written last to a run counts::

    charts = CustomScalars(log_dir)
    tags = charts.of("attribution/strength", unique)
    if charts.changed:
        Summary(value=[charts.layout()])

The dashboard shows charts one below the other, and nobody reads fifty: a group has at most
six. Other confidence intervals go into the log as arrays, ``_ncp/ci/<tag>``, which no dashboard
shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.layout_pb2 import Category, Chart, Layout, MarginChartContent
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.proto.types_pb2 import DT_STRING

__all__ = ["CI_ARRAYS", "MAX_CHARTS", "MAX_CHARTS_PER_GROUP", "ChartTags", "CustomScalars"]

MAX_CHARTS = 48
MAX_CHARTS_PER_GROUP = 6
CI_ARRAYS = "_ncp/ci/"
_GROUP = "ci"
_LAYOUT = "custom_scalars__config__"
_PLUGIN = "custom_scalars"


class ChartTags(NamedTuple):
    """Hold the tags of a chart, in the order in which they are written."""

    value: str
    low: str
    high: str


class CustomScalars:
    """Keep the charts of a log, one for each tag with a confidence interval.

    Args:
        log_dir: Directory of the log. It may have charts already, which keep their places.

    Attributes:
        changed: True when a layout must be written.
    """

    def __init__(self, log_dir: Path | None = None) -> None:
        self.changed = False
        self._log_dir = log_dir
        self._tags: dict[str, ChartTags] = {}

    @functools.cached_property
    def _earlier(self) -> frozenset[str]:
        """Return the tags that have charts in the log."""
        try:
            layout = self._logged()
        except Exception:  # Writing the layout reports what is wrong with the log.
            return frozenset()
        return frozenset(
            chart.title
            for category in layout.category
            for chart in category.chart
            if any(s.value == f"{_GROUP}/{chart.title}/value" for s in chart.margin.series)
        )

    def _logged(self) -> Any:
        """Return the layout that counts in the log."""
        layout = Layout()
        if self._log_dir is not None:
            for found in _layouts(self._log_dir):
                layout = found
        return layout

    def of(self, tag: str, unique: Callable[[str], str]) -> ChartTags | None:
        """Return the tags for the chart of ``tag``, made unique by ``unique``.

        It returns None if there is no room for the chart: six tags of a group get one, and 48
        altogether.
        """
        if tag not in self._tags:
            charts = self._tags.keys() | self._earlier
            of_group = sum(_group(other) == _group(tag) for other in charts)
            full = of_group >= MAX_CHARTS_PER_GROUP or len(charts) >= MAX_CHARTS
            if full and tag not in charts:
                return None
            wanted = (f"{_GROUP}/{tag}/{part}" for part in ChartTags._fields)
            self._tags[tag] = ChartTags(*map(unique, wanted))
            self.changed = True
        return self._tags[tag]

    def layout(self) -> Summary.Value:
        """Return the charts of all tags so far, grouped like the tags, beside those of the log.

        Raises:
            OSError: An event file of the log can't be read.
        """
        self.changed = False
        layout = self._logged()
        for tag, tags in self._tags.items():
            _add(layout, tag, tags)
        return Summary.Value(
            tag=_LAYOUT,
            metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=_PLUGIN)),
            tensor=TensorProto(
                dtype=DT_STRING,
                tensor_shape=TensorShapeProto(),
                string_val=[layout.SerializeToString()],
            ),
        )


def _group(tag: str) -> str:
    return tag.split("/")[0]


def _add(layout: Any, tag: str, tags: ChartTags) -> None:
    series = MarginChartContent.Series(value=tags.value, lower=tags.low, upper=tags.high)
    chart = Chart(title=tag, margin=MarginChartContent(series=[series]))
    group = _group(tag)
    for category in layout.category:
        if category.title == group:
            if chart not in category.chart:
                category.chart.append(chart)
            return
    layout.category.append(Category(title=group, chart=[chart]))


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
