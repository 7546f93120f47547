"""Choose where the observer runs."""

from __future__ import annotations

import os
import pickletools
import sys

__all__ = ["no_interpreter", "unimportable", "why_in_loop"]

# Share of the machine's memory that a model may take to be held twice.
_MAX_SHARE_OF_MEMORY = 0.25


def why_in_loop(nbytes: int) -> str | None:
    """Return why a model can't be observed by another process, or None where it can.

    Args:
        nbytes: Size of the model's arrays.
    """
    if (why := no_interpreter()) is not None:
        return why
    if _cores() < 2:
        return "there is one core only"
    memory = _memory()
    if memory is not None and nbytes > _MAX_SHARE_OF_MEMORY * memory:
        return (
            f"the model takes {nbytes / 1e9:.1f} GB, more than a quarter of the memory, and would "
            "have to be held twice"
        )
    return None


def no_interpreter() -> str | None:
    """Return why no Python interpreter can be started, or None where one can."""
    if not sys.executable:
        return "sys.executable names no Python interpreter to start"
    # The executable is the user's program then.
    if getattr(sys, "frozen", False):
        return "a frozen application has no Python interpreter to start"
    return None


def unimportable(pickled: bytes) -> str | None:
    """Return a module that a pickle needs, and that a new process can't import.

    Such are modules that were made by hand, those whose folder has left ``sys.path``, and those
    that are still being imported, as they train meanwhile: importing them would train again.
    """
    names = {text for _, text, _ in pickletools.genops(pickled) if isinstance(text, str)}
    # What belongs to the script itself is in the pickle.
    modules = {name for name in names & set(sys.modules) if not name.startswith("__")}
    return next((name for name in sorted(modules) if not _is_importable(name)), None)


def _is_importable(name: str) -> bool:
    spec = getattr(sys.modules[name], "__spec__", None)
    return not getattr(spec, "_initializing", False) and _is_found(name.split(".")[0])


def _is_found(module: str) -> bool:
    if module in sys.builtin_module_names:
        return True
    return any(
        find(module, None) is not None
        for finder in sys.meta_path
        if (find := getattr(finder, "find_spec", None)) is not None
    )


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
