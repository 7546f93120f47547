"""Tell which file descriptors are open, and keep ours away from those of standard streams."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["above_standard_streams", "is_open"]


def is_open(descriptor: int) -> bool:
    """Return whether a file descriptor is open."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def above_standard_streams() -> Iterator[None]:
    """Let no file that is opened in a ``with`` block have the number of a closed standard stream.

    Where a script has closed descriptor 1, the next file would get its number, and whatever is
    printed would go into that file.
    """
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):  # Without a free one, opening the file fails, too.
            while not held or held[-1] <= 2:
                held.append(os.open(os.devnull, os.O_RDWR))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
