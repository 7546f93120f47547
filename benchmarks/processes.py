"""Read what this process and its children use, from Linux's ``/proc``."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["children", "cpu_seconds", "resident_mb", "threads"]


def children() -> list[int]:
    """Return the process numbers of all descendants."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := _stat(int(folder.name))):
            parents[int(folder.name)] = int(stat[1])
    found, left = [], [os.getpid()]
    while left:
        parent = left.pop()
        own = [pid for pid, of in parents.items() if of == parent]
        found += own
        left += own
    return found


def cpu_seconds() -> float:
    """Return the CPU time of this process and its living descendants, all threads."""
    ticks = sum(int(n) for pid in children() for n in _stat(pid)[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def threads(pid: int) -> int:
    """Return the number of threads of a process, native ones as well."""
    return int(_stat(pid)[17])


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/[pid]/stat`` after the name; none if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
