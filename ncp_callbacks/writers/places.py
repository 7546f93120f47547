"""Turn what a user passes as ``log_dir=`` into a directory, or report what is wrong with it.

Nothing is made here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["as_directory"]

# Of a Path, one slash is left of two. Drives of Windows have one letter.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def as_directory(log_dir: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a directory for a log, with ``~`` expanded.

    Raises:
        TypeError: ``log_dir`` is not a path.
        ValueError: It is empty, a URL, or in the home of nobody.
        FileNotFoundError: It is relative to a current directory that was deleted.
    """
    path = log_dir if isinstance(log_dir, str | os.PathLike) else None
    text = None if path is None else os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(
            f"log_dir={log_dir!r} is a {type(log_dir).__name__}: pass a path, such as "
            "log_dir='runs/cfc-seed0'"
        )
    if not text.strip():
        raise ValueError(
            f"log_dir={text!r} is empty: pass a directory, such as log_dir='runs/cfc-seed0', or "
            "'.' for the current one"
        )
    if "\0" in text:
        raise ValueError(f"log_dir={text!r} has a zero character: pass another name")
    found = _URL.match(text)
    if found:
        raise ValueError(f"log_dir={text!r} is a URL: {_way(found[1].lower(), found[2])}")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(
            f"log_dir={text!r}: there is no user {Path(text).parts[0][1:]!r} here. Pass another "
            f"path, or {os.path.join('.', text)!r} for a directory of that name"
        )
    try:
        return Path(os.path.abspath(expanded))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"log_dir={text!r} is below the current directory, which was deleted: change to "
            "another, or pass an absolute path"
        ) from None


def _way(scheme: str, rest: str) -> str:
    """Return the way that works for a URL."""
    if scheme == "file":
        return f"pass the path, log_dir={'/' + rest!r}"
    url = f"{scheme}://{rest}"
    if scheme in ("s3", "gs"):
        return (
            f"pass writer=tensorboardX.SummaryWriter({url!r}), which writes to such storage, or a "
            "local folder as log_dir= and copy it there"
        )
    return f"pass a local or mounted folder as log_dir=, and copy it to {url!r}"
