"""Write points for TensorBoard's Projector, to files beside the event file.

    write_embedding(log_dir, step, Embedding("hidden/states", states, {"class": names}))

A config names the files. It may have entries of others, which are left alone; our own stand between
comments, by which they are found and replaced. Files are written whole or not at all, as
TensorBoard may be reading.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..records import Embedding
from .base import valid_text

__all__ = ["replace_file", "write_embedding"]

CONFIG = "projector_config.pbtxt"
_FOLDER = "projector"
_AROUND = ("begin", "end")


def write_embedding(log_dir: Path, step: int, record: Embedding) -> None:
    """Write the points and name them in the config, instead of those with the same tag.

    Raises:
        OSError: A file can't be written.
    """
    values = np.asarray(record.values, dtype=np.float64)
    kept = np.asarray(np.isfinite(values).all(axis=1))
    if not kept.any():
        return
    if values.shape[1] == 1:
        # Of a single dimension the Projector shows nothing.
        values = np.hstack([values, np.zeros_like(values)])
    (log_dir / _FOLDER).mkdir(exist_ok=True)
    tag = valid_text(record.tag)
    file = f"{_FOLDER}/{urllib.parse.quote(tag, safe='')}"
    # As text: TensorBoard tells binary files by not being text, which zeros are.
    points = "".join("\t".join(f"{number:.6g}" for number in row) + "\n" for row in values[kept])
    replace_file(log_dir / f"{file}.tensors.tsv", points.encode())
    entry = [
        f"tensor_name: {_quoted(f'{tag} (step {step})')}",
        f"tensor_path: {_quoted(f'{file}.tensors.tsv')}",
    ]
    if record.labels:
        replace_file(log_dir / f"{file}.metadata.tsv", "".join(_table(record, kept)).encode())
        entry.append(f"metadata_path: {_quoted(f'{file}.metadata.tsv')}")
    _name_in_config(log_dir / CONFIG, tag, entry)


def _table(record: Embedding, kept: npt.NDArray[np.bool_]) -> Iterator[str]:
    """Yield the lines of the labels' file."""
    columns = {_cell(name): column for name, column in record.labels.items()}
    if len(columns) == 1:
        # Without a tab in it, TensorBoard takes the header for a label.
        columns["point"] = range(len(kept))
    yield "\t".join(columns) + "\n"
    for point, keep in enumerate(kept):
        if keep:
            yield "\t".join(_cell(column[point]) for column in columns.values()) + "\n"


def _cell(value: Any) -> str:
    """Return a value as text on one line, without tabs."""
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    return " ".join(valid_text(str(value)).split())


def _name_in_config(config: Path, tag: str, entry: list[str]) -> None:
    begin, end = (f"# {word} of {urllib.parse.quote(tag)}, by ncp_callbacks\n" for word in _AROUND)
    body = "".join(f"  {line}\n" for line in entry)
    block = f"{begin}embeddings {{\n{body}}}\n{end}".encode()
    try:
        text = config.read_bytes()
    except FileNotFoundError:
        text = b""
    start, stop = text.find(begin.encode()), text.find(end.encode())
    if 0 <= start < stop:
        text = text[:start] + block + text[stop + len(end.encode()) :]
    else:
        text += b"\n" * bool(text and not text.endswith(b"\n")) + block
    replace_file(config, text)


def _quoted(text: str) -> str:
    """Return a string of protocol buffers' text format."""
    return json.dumps(_cell(text), ensure_ascii=False)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever ends this process.

    Raises:
        OSError: It can't be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
