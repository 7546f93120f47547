"""Read a log through TensorBoard's data provider: any file system, but not every snapshot."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from ..runs.reader import described
from ..screen import ARRAY_PLUGIN, CI_ARRAYS, DATA_PLUGIN, HEADLINE, SCALAR_ARRAYS, plain_tag
from .index import Curve, FloatArray, Track, is_shown

__all__ = ["ProviderSource"]

_MOST = 1000
_FEW_SECONDS = 2.0


class _ProviderRun:
    """Hold what the provider has of one run."""

    def __init__(self) -> None:
        self.tracks: dict[str, Track] = {}
        self.curves: dict[str, Curve] = {}
        self.documents: dict[str, Track] = {}
        self._arrays: dict[tuple[str, int], FloatArray] = {}
        self._texts: dict[tuple[str, int], str] = {}

    @property
    def version(self) -> str:
        """Return a word that changes whenever something was added."""
        last = max((step for _, step in self._arrays), default=-1)
        return f"{len(self._arrays)}.{last}"

    def known(self, version: str) -> int:
        """Return 0: the provider keeps a sample of the snapshots, which is another each time."""
        return 0

    def array(self, tag: str, step: int) -> FloatArray:
        """Return an array.

        Raises:
            KeyError: There is none.
        """
        return self._arrays[tag, step]

    def text(self, tag: str, step: int) -> str:
        """Return a JSON document.

        Raises:
            KeyError: There is none.
        """
        return self._texts[tag, step]

    def add_text(self, tag: str, step: int, text: str) -> None:
        """Add a JSON document."""
        self.documents.setdefault(tag, Track()).places[step] = (1, 0)
        self._texts[tag, step] = text

    def add(self, tag: str, step: int, values: FloatArray, about: dict[str, Any]) -> None:
        """Add an array, or the CI of a scalar that was added."""
        if tag.startswith(CI_ARRAYS):
            curve = self.curves.get(tag.removeprefix(CI_ARRAYS))
            if curve and values.shape == (2,):
                curve.low[step], curve.high[step] = values.tolist()
        elif not tag.startswith(SCALAR_ARRAYS):
            track = self.tracks.setdefault(tag, Track(about))
            track.shape, track.places[step] = values.shape, (1, 0)
            self._arrays[tag, step] = values


class ProviderSource:
    """Read the runs that TensorBoard has loaded.

    Args:
        provider: TensorBoard's ``DataProvider``.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._runs: dict[str, _ProviderRun] = {}
        self._read = -1e9
        self.note = (
            "This log is read through TensorBoard, which keeps some of the snapshots: start it "
            "with --samples_per_plugin=ncp_callbacks=0 to see all."
        )

    def names(self) -> list[str]:
        """Return the names of all runs that have arrays."""
        with self._lock:
            if time.monotonic() - self._read > _FEW_SECONDS:
                self._refresh()
                self._read = time.monotonic()
            return sorted(self._runs)

    def run(self, name: str) -> _ProviderRun:
        """Return a run.

        Raises:
            KeyError: There is no such run.
        """
        self.names()
        return self._runs[name]

    def _refresh(self) -> None:
        from tensorboard import context

        asked: dict[str, Any] = {"ctx": context.RequestContext(), "experiment_id": ""}
        runs: dict[str, _ProviderRun] = {}
        listed = self._provider.list_tensors(**asked, plugin_name=ARRAY_PLUGIN)
        for name in listed:
            runs[name] = _ProviderRun()
        names = self._provider.list_scalars(**asked, plugin_name="scalars")
        scalars = self._provider.read_scalars(**asked, plugin_name="scalars", downsample=_MOST)
        for name in runs.keys() & scalars.keys():
            for tag, data in scalars[name].items():
                listed_scalar = names.get(name, {}).get(tag)
                shown = plain_tag(tag, listed_scalar.display_name if listed_scalar else "")
                shown = shown.removeprefix(HEADLINE)  # The fast loader loses names of scalars.
                headline = tag.startswith(HEADLINE)
                if is_shown(shown, headline=headline):
                    curve = runs[name].curves.setdefault(shown, Curve(headline=headline))
                    for datum in data:
                        curve.add(datum.step, float(datum.value), 1)
        read = self._provider.read_tensors(**asked, plugin_name=ARRAY_PLUGIN, downsample=_MOST)
        for name in runs.keys() & read.keys():
            for tag, data in read[name].items():
                series = listed[name].get(tag)
                about = described(series.plugin_content) if series and series.plugin_content else {}
                shown = plain_tag(tag, series.display_name if series else "")
                for datum in data:
                    runs[name].add(shown, datum.step, np.asarray(datum.numpy, np.float32), about)
        documents = self._provider.read_tensors(**asked, plugin_name=DATA_PLUGIN, downsample=_MOST)
        for name in runs.keys() & documents.keys():
            for tag, data in documents[name].items():
                for datum in data:
                    runs[name].add_text(tag, datum.step, _text(datum.numpy))
        self._runs = runs


def _text(values: Any) -> str:
    return "\n".join(
        part.decode(errors="replace") if isinstance(part, bytes) else str(part)
        for part in np.asarray(values).reshape(-1)
    )
