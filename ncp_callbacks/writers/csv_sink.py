"""Write numbers to a CSV or Parquet file, one line each.

    with Monitor(model, held_out, log_dir="runs/a", writer=ncp.CsvSink("a.csv")) as monitor:
        ...

Pictures, arrays and texts are skipped.
"""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records import Record, Scalar

__all__ = ["CsvSink", "ParquetSink", "scalar_lines"]

COLUMNS = ("step", "tag", "value", "low", "high")


def scalar_lines(step: int, records: Sequence[Record]) -> list[tuple[Any, ...]]:
    """Return a line for each number: step, tag, value, and the ends of its 95 % CI or None."""
    scalars = [record for record in records if isinstance(record, Scalar)]
    return [(step, r.tag, r.value, *(r.ci or (None, None))) for r in scalars]


class CsvSink:
    """Append numbers to a CSV file with the columns step, tag, value, low and high.

    Args:
        path: The file. If it exists, lines are appended, as by a run that goes on.

    Raises:
        OSError: The file can't be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        if not self._file.tell():
            self._writer.writerow(COLUMNS)

    def write(self, step: int, records: Sequence[Record]) -> None:
        """Append the numbers of a step."""
        self._writer.writerows(scalar_lines(step, records))

    def flush(self) -> None:
        """Pass what was written on to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ParquetSink:
    """Write numbers to a Parquet file with the columns step, tag, value, low and high.

    A Parquet file can be read only after it is closed. Needs pyarrow.

    Args:
        path: The file, which is overwritten.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: The file can't be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            pyarrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise ImportError("ParquetSink needs pyarrow: run pip install pyarrow") from error
        self.path = Path(os.path.expanduser(path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        numbers = [(name, pyarrow.float64()) for name in COLUMNS[2:]]
        self._schema = pyarrow.schema(
            [("step", pyarrow.int64()), ("tag", pyarrow.string()), *numbers]
        )
        self._table = pyarrow.Table
        self._writer = parquet.ParquetWriter(self.path, self._schema)
        self._lines: list[tuple[Any, ...]] = []

    def write(self, step: int, records: Sequence[Record]) -> None:
        """Take the numbers of a step."""
        self._lines += scalar_lines(step, records)
        if len(self._lines) >= 50_000:
            self._write_group()

    def log_run_config(self, config: Mapping[str, Any]) -> None:
        """Keep the hyper-parameters among the file's metadata."""
        self._writer.add_key_value_metadata({k: str(v) for k, v in config.items()})

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        if self._lines:
            columns = dict(zip(COLUMNS, map(list, zip(*self._lines, strict=True)), strict=True))
            self._writer.write_table(self._table.from_pydict(columns, schema=self._schema))
            self._lines.clear()
