"""Open the writers of a run: of its log directory, and those that the user passes.

writers, theirs = open_writers("runs/cfc-seed0", [sink, tensorboardX.SummaryWriter("runs/own")])
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from .background_writer import BackgroundWriter, Sink, why_no_sink
from .base import Writer
from .tensorboard import SummaryWriterAdapter, TensorBoardWriter

if TYPE_CHECKING:
    import tensorboardX

__all__ = ["WriterLike", "as_list", "as_writer", "directory_of", "open_writers", "unsynced"]

WriterLike: TypeAlias = "Writer | Sink | tensorboardX.SummaryWriter"
"""What can be passed as ``writer=``."""


def as_writer(obj: Any) -> Writer:
    """Return the writer itself, or one around a sink or a ``tensorboardX.SummaryWriter``.

    Raises:
        TypeError: ``obj`` is none of these.
    """
    if isinstance(obj, Writer):
        return obj
    if why_no_sink(obj) is None:
        return BackgroundWriter(obj)
    # It has no method `write`. Its adapter refuses everything else.
    return SummaryWriterAdapter(obj)


def as_list(writer: WriterLike | Sequence[WriterLike] | None) -> list[Any]:
    """Return what was passed as ``writer=``, as a list."""
    if writer is None:
        return []
    return list(writer) if isinstance(writer, list | tuple) else [writer]


def open_writers(
    log_dir: str | os.PathLike[str] | None, given: Sequence[Any], *, first_step: int | None = None
) -> tuple[list[Writer], list[Writer]]:
    """Return the writers of a run, and those of them that the user made.

    Args:
        log_dir: Directory of the log, whose writer is the last; None: there is none.
        given: What the user passed.
        first_step: As for :class:`TensorBoardWriter`.

    Raises:
        TypeError: One of those passed is no writer.
        ValueError: One was passed twice.
        OSError: As for :class:`TensorBoardWriter`.
    """
    writers: list[Writer] = []
    theirs = {id(obj) for obj in given}
    if len(theirs) < len(given):
        twice = next(obj for obj in given if sum(obj is other for other in given) > 1)
        raise ValueError(f"writer= has this {type(twice).__name__} twice: pass it once")
    try:
        writers += map(as_writer, given)
        if log_dir is not None:
            writers.append(TensorBoardWriter(log_dir, first_step=first_step))
    except BaseException:
        for writer in writers:
            if id(writer) not in theirs:
                writer.close()
        raise
    return writers, [writer for writer in writers if id(writer) in theirs]


def directory_of(objects: Iterable[Any]) -> str | None:
    """Return the directory of the first of these writers that has one, or None."""
    for obj in objects:
        # A SummaryWriter spells it in its own way.
        found = getattr(obj, "log_dir", None) or getattr(obj, "logdir", None)
        if isinstance(found, str | os.PathLike):
            return os.fspath(found)
    return None


def unsynced(log_dir: object, given: Sequence[Any]) -> list[str]:
    """Return what to do about ``wandb.init(sync_tensorboard=True)``, if that is in use.

    It copies what a ``SummaryWriter`` writes, and reads no file, so that it takes no log of ours.
    """
    run = getattr(sys.modules.get("wandb"), "run", None)
    if log_dir is None or not getattr(getattr(run, "settings", None), "sync_tensorboard", False):
        return []
    from .wandb_sink import WandbSink

    if any(isinstance(writer, WandbSink) for writer in given):
        return []
    return [
        "wandb.init(sync_tensorboard=True) does not take the log in log_dir=: pass "
        "writer=ncp.WandbSink(wandb.run) as well"
    ]
