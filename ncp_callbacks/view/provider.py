"""Read a log through TensorBoard's data provider: any file system, but not every snapshot."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from ..runs.reader import described
from ..screen import ARRAY_PLUGIN, CI_ARRAYS, DATA_PLUGIN, HEADLINE, SCALAR_ARRAYS, plain_tag
from .index import Curve, Document, FloatArray, Track

__all__ = ["ProviderSource"]

_MOST = 1000
_FEW_SECONDS = 2.0


class _ProviderRun:
    """Hold what the provider has of one run."""

    def __init__(self) -> None:
        self.tracks: dict[str, Track] = {}
        self.curves: dict[str, Curve] = {}
        self.documents: dict[str, Document] = {}
        self._arrays: dict[tuple[str, int], FloatArray] = {}

    @property
    def version(self) -> str:
        """Return a word that changes whenever something was added."""
        last = max((step for _, step in self._arrays), default=-1)
        return f"{len(self._arrays)}.{last}"

    def array(self, tag: str, step: int) -> FloatArray:
        """Return an array.

        Raises:
            KeyError: There is none.
        """
        return self._arrays[tag, step]

    def add(self, tag: str, step: int, values: FloatArray, about: dict[str, Any]) -> None:
        """Add an array, or a number or CI that is logged as one."""
        if tag.startswith(CI_ARRAYS) and values.shape == (2,):
            curve = self.curves.setdefault(tag.removeprefix(CI_ARRAYS), Curve())
            curve.low[step], curve.high[step] = values.tolist()
        elif tag.startswith(SCALAR_ARRAYS) and values.size == 1:
            curve = self.curves.setdefault(tag.removeprefix(SCALAR_ARRAYS), Curve())
            curve.add(step, values.item())
        else:
            track = self.tracks.setdefault(tag, Track(about))
            track.shape, track.places[step] = values.shape, (0, 0, 0)
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
        read = self._provider.read_tensors(**asked, plugin_name=ARRAY_PLUGIN, downsample=_MOST)
        for name, tags in read.items():
            run = runs.setdefault(name, _ProviderRun())
            for tag, data in tags.items():
                series = listed.get(name, {}).get(tag)
                about = described(series.plugin_content) if series and series.plugin_content else {}
                shown = plain_tag(tag, series.display_name if series else "")
                for datum in data:
                    run.add(shown, datum.step, np.asarray(datum.numpy, np.float32), about)
        documents = self._provider.read_tensors(**asked, plugin_name=DATA_PLUGIN, downsample=_MOST)
        for name, tags in documents.items():
            for tag, data in tags.items():
                texts = runs.setdefault(name, _ProviderRun()).documents.setdefault(tag, Document())
                for datum in data:
                    texts.texts[datum.step] = _text(datum.numpy)
        names = self._provider.list_scalars(**asked, plugin_name="scalars")
        scalars = self._provider.read_scalars(**asked, plugin_name="scalars", downsample=_MOST)
        for name, tags in scalars.items():
            if name in runs:
                for tag, data in tags.items():
                    listed_scalar = names.get(name, {}).get(tag)
                    shown = plain_tag(tag, listed_scalar.display_name if listed_scalar else "")
                    curve = runs[name].curves.setdefault(shown, Curve())
                    curve.headline |= tag.startswith(HEADLINE)
                    for datum in data:
                        curve.add(datum.step, float(datum.value))
        self._runs = runs


def _text(values: Any) -> str:
    return "\n".join(
        part.decode(errors="replace") if isinstance(part, bytes) else str(part)
        for part in np.asarray(values).reshape(-1)
    )
