"""Write records to TensorBoard, or keep them in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Writer
from .memory import MemoryWriter
from .tensorboard import SummaryWriterAdapter, TensorBoardWriter

if TYPE_CHECKING:
    import tensorboardX

__all__ = ["MemoryWriter", "SummaryWriterAdapter", "TensorBoardWriter", "Writer", "as_writer"]


def as_writer(obj: Writer | tensorboardX.SummaryWriter) -> Writer:
    """Return the writer itself, or one around a ``tensorboardX.SummaryWriter``.

    Raises:
        TypeError: ``obj`` is neither.
    """
    return obj if isinstance(obj, Writer) else SummaryWriterAdapter(obj)
