"""Write records to TensorBoard or another tracker, or keep them in memory."""

from __future__ import annotations

from .background_writer import BackgroundWriter, Sink
from .base import Writer
from .memory import MemoryWriter
from .opening import WriterLike, as_list, as_writer, directory_of, open_writers, unsynced
from .places import as_directory
from .tensorboard import SummaryWriterAdapter, TensorBoardWriter

__all__ = [
    "BackgroundWriter",
    "MemoryWriter",
    "Sink",
    "SummaryWriterAdapter",
    "TensorBoardWriter",
    "Writer",
    "WriterLike",
    "as_directory",
    "as_list",
    "as_writer",
    "directory_of",
    "open_writers",
    "unsynced",
]
