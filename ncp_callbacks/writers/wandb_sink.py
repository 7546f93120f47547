"""Pass records to a run of Weights & Biases.

with Monitor(model, held_out, log_dir="runs/a", writer=ncp.WandbSink(wandb.init())) as monitor:
...
"""

from __future__ import annotations

import glob
import html
import importlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..records import Embedding, Histogram, Picture, Record, Scalar, Text
from .attached_log import FOLDER, MAX_BYTES, AttachedLog, points_table

__all__ = ["WandbSink"]


class WandbSink:
    """Pass numbers, 95 % CIs, histograms, pictures, texts and points to a run of Weights & Biases.

    Its steps are logged as ``ncp_step``, the axis of all tags, because W&B's own step must not
    decrease and analyses arrive later than the numbers of the loop. Arrays and findings, for which
    W&B has no place, go into the run's files in the folder ``ncp_log``, with the numbers:
    :func:`~ncp_callbacks.runs.read_run` reads it.

    Args:
        run: What ``wandb.init()`` returns. It stays yours: finish it after the monitor.
        max_bytes: Bytes of these files. In long runs, arrays of some snapshots are left away.

    Raises:
        TypeError: It is no such run.
    """

    def __init__(self, run: Any, *, max_bytes: int = MAX_BYTES) -> None:
        if not callable(getattr(run, "log", None)) or not hasattr(run, "define_metric"):
            raise TypeError(
                f"run is a {type(run).__name__}: pass the run that wandb.init(...) returns"
            )
        self._run = run
        self._max_bytes = max_bytes
        self._log: AttachedLog | None = None
        run.define_metric("ncp_step", hidden=True)
        run.define_metric("*", step_metric="ncp_step")

    def log_run_config(self, config: Mapping[str, Any]) -> None:
        """Add the hyper-parameters to the run's."""
        self._run.config.update(dict(config), allow_val_change=True)
        self._attached.add_config(config)

    def write(self, step: int, records: Sequence[Record]) -> None:
        """Log the records of a step."""
        wandb = importlib.import_module("wandb")
        values: dict[str, Any] = {}
        for record in records:
            if isinstance(record, Scalar):
                values[record.tag] = record.value
                if record.ci is not None:
                    values[f"{record.tag}_low"], values[f"{record.tag}_high"] = record.ci
            elif isinstance(record, Histogram):
                finite = record.values[np.isfinite(record.values)]
                clipped = np.clip(finite, record.edges[0], record.edges[-1])
                counted = np.histogram(clipped, record.edges)
                values[record.tag] = wandb.Histogram(np_histogram=counted)
            elif isinstance(record, Picture):
                picture = PIL.Image.open(io.BytesIO(record.png))
                values[record.tag] = wandb.Image(picture, caption=record.description)
            elif isinstance(record, Text):
                values[record.tag] = wandb.Html(f"<pre>{html.escape(record.markdown)}</pre>")
            elif isinstance(record, Embedding):
                columns, lines = points_table(record)
                values[record.tag] = wandb.Table(columns=columns, data=list(lines))
        if values:
            self._run.log({**values, "ncp_step": step})
        self._save(self._attached.add(step, records))

    def close(self) -> None:
        """Pass the last numbers and arrays on; the run stays open."""
        self._save(self._attached.close())

    @property
    def _attached(self) -> AttachedLog:
        if self._log is None:
            self._log = AttachedLog(Path(self._run.dir) / FOLDER, self._max_bytes)
        return self._log

    def _save(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self._run.save(glob.escape(str(path)), base_path=self._run.dir, policy="now")
