"""Pass records to a run of MLflow.

with Monitor(model, held_out, log_dir="runs/a", writer=ncp.MlflowSink()) as monitor:
...
"""

from __future__ import annotations

import csv
import importlib
import io
import math
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from ..records import Embedding, Picture, Record, Scalar, Text
from .attached_log import FOLDER, MAX_BYTES, AttachedLog, points_table

__all__ = ["MlflowSink"]

_MAX_PARAMETER = 500  # Characters that every store of MLflow takes.
_MAX_METRICS = 1000  # Of one request.


class MlflowSink:
    """Pass numbers and 95 % CIs as metrics to MLflow, and pictures, texts and points as artifacts.

    Numbers that are not finite are no metrics: stores of MLflow differ in what they do with them.
    Histograms, arrays and findings, for which MLflow has no place, go into the artifacts in the
    folder ``ncp_log``, with all numbers: :func:`~ncp_callbacks.runs.read_run` reads it.

    Args:
        run_id: The run; None: the active one of ``mlflow.start_run()``, or else a new one, which is
            ended with the monitor.
        client: An ``mlflow.MlflowClient``; None: one of the tracking URI that is set.
        max_bytes: Bytes of the files in that folder. In long runs, histograms and arrays of some
            snapshots are left away.

    Raises:
        ImportError: mlflow is not installed.
    """

    def __init__(
        self, run_id: str | None = None, *, client: Any = None, max_bytes: int = MAX_BYTES
    ) -> None:
        try:
            mlflow = importlib.import_module("mlflow")
            entities = importlib.import_module("mlflow.entities")
        except ImportError as error:
            raise ImportError(
                "MlflowSink needs mlflow: run pip install mlflow-skinny, or mlflow"
            ) from error
        self._client = client or mlflow.MlflowClient()
        active = mlflow.active_run()
        self._owns = run_id is None and active is None
        if self._owns:
            run_id = self._client.create_run(experiment_id="0").info.run_id
        self.run_id: str = run_id or active.info.run_id
        self._folder = tempfile.TemporaryDirectory(prefix="ncp_callbacks-")
        self._attached = AttachedLog(Path(self._folder.name) / FOLDER, max_bytes)
        self._metric = entities.Metric
        self._param = entities.Param

    def log_run_config(self, config: Mapping[str, Any]) -> None:
        """Log the hyper-parameters as parameters."""
        params = [self._param(_name(k), str(v)[:_MAX_PARAMETER]) for k, v in config.items()]
        self._client.log_batch(self.run_id, params=params)
        self._attached.add_config(config)

    def write(self, step: int, records: Sequence[Record]) -> None:
        """Log the records of a step."""
        now = int(time.time() * 1000)
        values: dict[str, float] = {}
        for record in records:
            if isinstance(record, Scalar):
                values[_name(record.tag)] = record.value
                if record.ci is not None:
                    low, high = record.ci
                    values[_name(f"{record.tag}_low")] = low
                    values[_name(f"{record.tag}_high")] = high
            elif isinstance(record, Picture):
                picture = PIL.Image.open(io.BytesIO(record.png))
                file = f"{_name(record.tag)}/{step:09d}.png"
                self._client.log_image(self.run_id, picture, file)
            elif isinstance(record, Text):
                self._client.log_text(self.run_id, record.markdown, f"{_name(record.tag)}.md")
            elif isinstance(record, Embedding):
                self._client.log_text(self.run_id, _csv(record), f"{_name(record.tag)}.csv")
        metrics = [self._metric(k, v, now, step) for k, v in values.items() if math.isfinite(v)]
        for first in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[first : first + _MAX_METRICS])
        self._keep(self._attached.add(step, records))

    def close(self) -> None:
        """Pass the last numbers and arrays on, and end the run, if it was made here."""
        try:
            self._keep(self._attached.close())
        finally:
            self._folder.cleanup()
            if self._owns:
                self._client.set_terminated(self.run_id)

    def _keep(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self.run_id, str(path), FOLDER)
            path.unlink()


def _csv(record: Embedding) -> str:
    columns, lines = points_table(record)
    text = io.StringIO()
    csv.writer(text).writerows([columns, *lines])
    return text.getvalue()


def _name(tag: str) -> str:
    return re.sub(r"[^-/\w. ]", "_", tag).strip("/") or "_"
