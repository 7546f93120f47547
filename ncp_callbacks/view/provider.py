"""Read a log through TensorBoard's data provider: any file system, but not every snapshot."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..runs.reader import described
from ..screen import ARRAY_PLUGIN, CI_ARRAYS, DATA_PLUGIN, HEADLINE, SCALAR_ARRAYS, plain_tag
from .index import Curve, FloatArray, Track, is_shown

__all__ = ["ProviderSource"]

_MOST = 1000
_FEW_SECONDS = 2.0
# Runs that are kept with all their arrays.
_MAX_RUNS = 16

_Key = tuple[str, int]
"""Tag and step."""


class _Found:
    """Hold what one reading of a run found, by tag and step."""

    def __init__(self) -> None:
        self.arrays: dict[_Key, FloatArray] = {}
        self.texts: dict[_Key, str] = {}
        self.points: dict[_Key, float] = {}
        self.ends: dict[_Key, tuple[float, float]] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.headlines: set[str] = set()

    def add_array(self, tag: str, step: int, values: FloatArray, about: dict[str, Any]) -> None:
        """Add an array, or the CI of a scalar."""
        if tag.startswith(CI_ARRAYS):
            if values.shape == (2,):
                self.ends[tag.removeprefix(CI_ARRAYS), step] = (float(values[0]), float(values[1]))
        elif not tag.startswith(SCALAR_ARRAYS):
            self.arrays[tag, step], self.about[tag] = values, about


class _ProviderRun:
    """Hold what the provider has of one run.

    Args:
        restart: A number that no other run has had.
    """

    def __init__(self, restart: int) -> None:
        self.tracks: dict[str, Track] = {}
        self.curves: dict[str, Curve] = {}
        self.documents: dict[str, Track] = {}
        self.listed: Any = None
        self.checked = -math.inf
        self._restart, self._readings = restart, 0
        self._found = _Found()

    @property
    def version(self) -> str:
        """Return its number, and that of the last reading which brought something new."""
        return f"{self._restart}.{self._readings}"

    def known(self, version: str) -> int:
        """Return the number of the last reading that who has a version knows; 0 for none."""
        restart, _, readings = version.partition(".")
        if restart != str(self._restart) or not readings.isdecimal():
            return 0
        return int(readings) if int(readings) <= self._readings else 0

    def array(self, tag: str, step: int) -> FloatArray:
        """Return an array.

        Raises:
            KeyError: There is none.
        """
        return self._found.arrays[tag, step]

    def text(self, tag: str, step: int) -> str:
        """Return a JSON document.

        Raises:
            KeyError: There is none.
        """
        return self._found.texts[tag, step]

    def grow(self, found: _Found) -> bool:
        """Take what is new; return False if something that was here is gone, or another one."""
        had, number = self._found, self._readings + 1
        if not (
            _holds(found.arrays, had.arrays)
            and _holds(found.texts, had.texts)
            and _holds(found.points, had.points)
            and _holds(found.ends, had.ends)
        ):
            return False
        for tag, step in found.arrays.keys() - had.arrays.keys():
            track = self.tracks.setdefault(tag, Track(found.about[tag]))
            track.shape, track.places[step] = found.arrays[tag, step].shape, (number, 0)
        for tag, step in found.texts.keys() - had.texts.keys():
            self.documents.setdefault(tag, Track()).places[step] = (number, 0)
        # A CI may come after its scalar: the point is then sent again.
        ends = found.points.keys() & (found.ends.keys() - had.ends.keys())
        points = (found.points.keys() - had.points.keys()) | ends
        for tag, step in sorted(points):
            curve = self.curves.setdefault(tag, Curve(headline=tag in found.headlines))
            if (tag, step) in found.ends:
                curve.low[step], curve.high[step] = found.ends[tag, step]
            curve.add(step, found.points[tag, step], number)
        if points or len(found.arrays) + len(found.texts) > len(had.arrays) + len(had.texts):
            self._readings = number
        self._found = found
        return True


def _holds(found: Mapping[_Key, Any], had: Mapping[_Key, Any]) -> bool:
    """Return whether all that was had is found unchanged."""
    return all(key in found and _equal(found[key], value) for key, value in had.items())


def _equal(a: Any, b: Any) -> bool:
    # NaN is NaN, and texts have no NaN.
    return a == b if isinstance(a, str) else bool(np.array_equal(a, b, equal_nan=True))


class ProviderSource:
    """Read the runs that TensorBoard has loaded.

    Args:
        provider: TensorBoard's ``DataProvider``.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _ProviderRun] = OrderedDict()
        self._restarts = itertools.count(1)
        self._names: list[str] = []
        self._listed = -math.inf
        self.note = (
            "This log is read through TensorBoard, which keeps some of the snapshots: start it "
            "with --samples_per_plugin=ncp_callbacks=0 to see all."
        )

    def names(self) -> list[str]:
        """Return the names of all runs that have arrays."""
        with self._lock:
            if time.monotonic() - self._listed > _FEW_SECONDS:
                self._names = sorted(self._ask("list_tensors", ARRAY_PLUGIN))
                self._listed = time.monotonic()
            return self._names

    def run(self, name: str) -> _ProviderRun:
        """Return a run, after reading it if TensorBoard has loaded more of it.

        Raises:
            KeyError: There is no such run.
        """
        if name not in self.names():
            raise KeyError(name)
        with self._lock:
            run = self._runs.get(name) or _ProviderRun(next(self._restarts))
            if time.monotonic() - run.checked > _FEW_SECONDS:
                run = self._refreshed(name, run)
            self._runs[name] = run
            self._runs.move_to_end(name)
            while len(self._runs) > _MAX_RUNS:
                self._runs.popitem(last=False)
            return run

    def _refreshed(self, name: str, run: _ProviderRun) -> _ProviderRun:
        listed = {
            plugin: self._ask(call, plugin, [name]).get(name, {})
            for call, plugin in (
                ("list_tensors", ARRAY_PLUGIN),
                ("list_tensors", DATA_PLUGIN),
                ("list_scalars", "scalars"),
            )
        }
        newest = {
            (plugin, tag): (series.max_step, series.max_wall_time)
            for plugin, of in listed.items()
            for tag, series in of.items()
        }
        if newest != run.listed:
            found = self._read(name, listed)
            if not run.grow(found):
                run = _ProviderRun(next(self._restarts))
                run.grow(found)
            run.listed = newest
        run.checked = time.monotonic()
        return run

    def _read(self, name: str, listed: Mapping[str, Mapping[str, Any]]) -> _Found:
        found = _Found()
        for tag, data in self._data("read_tensors", ARRAY_PLUGIN, name, listed).items():
            series = listed[ARRAY_PLUGIN][tag]
            about = described(series.plugin_content) if series.plugin_content else {}
            shown = plain_tag(tag, series.display_name)
            for datum in data:
                found.add_array(shown, datum.step, np.asarray(datum.numpy, np.float32), about)
        for tag, data in self._data("read_tensors", DATA_PLUGIN, name, listed).items():
            for datum in data:
                found.texts[tag, datum.step] = _text(datum.numpy)
        shown_tags = {
            tag: shown
            for tag, series in listed["scalars"].items()
            # The fast loader loses names of scalars.
            if is_shown(
                shown := plain_tag(tag, series.display_name).removeprefix(HEADLINE),
                headline=tag.startswith(HEADLINE),
            )
        }
        of_scalars = {"scalars": shown_tags}
        for tag, data in self._data("read_scalars", "scalars", name, of_scalars).items():
            if tag.startswith(HEADLINE):
                found.headlines.add(shown_tags[tag])
            for datum in data:
                found.points[shown_tags[tag], datum.step] = float(datum.value)
        return found

    def _data(
        self, call: str, plugin: str, name: str, listed: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Return the data of those tags of a run that are listed."""
        tags = listed[plugin].keys()
        if not tags:
            return {}
        read = self._ask(call, plugin, [name], tags, downsample=_MOST).get(name, {})
        return {tag: data for tag, data in read.items() if tag in tags}

    def _ask(self, call: str, plugin: str, runs: Any = None, tags: Any = None, **more: Any) -> Any:
        from tensorboard import context
        from tensorboard.data.provider import RunTagFilter

        wanted = None if runs is None else RunTagFilter(runs=runs, tags=tags and list(tags))
        return getattr(self._provider, call)(
            context.RequestContext(),
            experiment_id="",
            plugin_name=plugin,
            run_tag_filter=wanted,
            **more,
        )


def _text(values: Any) -> str:
    return "\n".join(
        part.decode(errors="replace") if isinstance(part, bytes) else str(part)
        for part in np.asarray(values).reshape(-1)
    )
