"""Find and read the runs that a user names: folders, globs, groups ``A=runs/cfc-s*``."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .errors import RunsError
from .reader import Run, event_files, read_run

__all__ = ["Group", "PathLike", "RunsLike", "find_groups", "nearest", "read_groups"]

PathLike: TypeAlias = str | os.PathLike[str]
RunsLike: TypeAlias = Sequence[PathLike] | Mapping[str, PathLike | Sequence[PathLike]]

_GROUP = re.compile(r"([^=/\\*?\[\]]+)=(.+)", re.DOTALL)
_MAX_NAMED = 8


@dataclass(frozen=True, eq=False)
class Group:
    """Hold runs that stand for one thing, as a rule seeds; a run by itself is a group of one."""

    name: str
    runs: tuple[Run, ...]


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``; nearest: …`` with the names most like ``name``, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""


def find_groups(runs: RunsLike) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the paths of runs by the name of their group, and what was skipped.

    Args:
        runs: Paths of runs or globs of them, each run a group by itself unless written
            ``NAME=PATH``; or a mapping from names of groups to paths or globs.

    Raises:
        RunsError: There are no such runs, fewer than two groups, or a run in two of them.
    """
    skipped: list[str] = []
    named: dict[str, list[Path]] = {}
    alone: list[tuple[str | None, Path]] = []
    for name, pattern in _entries(runs):
        for path in _paths(pattern, skipped):
            if name is not None:
                if name not in named:
                    named[name] = []
                    alone.append((name, path))
                named[name].append(path)
            else:
                alone.append((None, path))
    single = _names([path for name, path in alone if name is None])
    groups: dict[str, list[Path]] = {}
    for name, path in alone:
        key = single[path] if name is None else name
        if key in groups:
            if name is None and groups[key] == [path]:
                raise RunsError(f"run {str(path)!r} is passed twice: pass it once")
            raise RunsError(f"{key!r} names two sides: pass one of them as NAME=PATH")
        groups[key] = [path] if name is None else named[name]
    seen: dict[str, str] = {}
    for key, paths in groups.items():
        for path in paths:
            real = os.path.realpath(path)
            if real in seen:
                where = f"in {seen[real]!r} and {key!r}" if seen[real] != key else f"in {key!r}"
                raise RunsError(f"run {str(path)!r} is passed twice, {where}: pass it once")
            seen[real] = key
    if len(groups) < 2:
        have = f"only {next(iter(groups))!r}" if groups else "none"
        raise RunsError(
            f"{have} to compare: pass two runs or more, or groups of runs as in "
            "'A=runs/cfc-s*' 'B=runs/ltc-s*'"
        )
    return groups, skipped


def read_groups(
    groups: Mapping[str, Sequence[Path]], progress: Callable[[list[Path]], Iterable[Path]]
) -> list[Group]:
    """Read all runs; ``progress`` goes through the paths and may show how far it is.

    Raises:
        RunsError: A run can't be read, or has no numbers.
    """
    names = _names([path for paths in groups.values() for path in paths])
    read = {}
    for path in progress(list(names)):
        read[path] = run = read_run(path, name=names[path])
        if run.steps is None:
            why = f" ({'; '.join(run.warnings)})" if run.warnings else ""
            raise RunsError(f"run {str(path)!r} holds no numbers to compare{why}")
    return [Group(name, tuple(read[path] for path in paths)) for name, paths in groups.items()]


def _entries(runs: RunsLike) -> list[tuple[str | None, str]]:
    if isinstance(runs, str | os.PathLike):
        raise RunsError(f"runs={runs!r} is one run: pass a list of two or more")
    entries: list[tuple[str | None, str]] = []
    if isinstance(runs, Mapping):
        for name, given in runs.items():
            several = [given] if isinstance(given, str | os.PathLike) else given
            entries += [(name, os.fspath(one)) for one in several]
        return entries
    for one in [os.fspath(run) for run in runs]:
        group = None if os.path.exists(one) else _GROUP.fullmatch(one)
        entries.append((group[1], group[2]) if group else (None, one))
    return entries


def _paths(pattern: str, skipped: list[str]) -> list[Path]:
    """Return the runs that a path or glob names."""
    path = Path(pattern).expanduser()
    if path.exists():
        return [_checked(path)]
    if not glob.has_magic(pattern):
        raise RunsError(f"no such run: {pattern!r}{_neighbours(path)}")
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    found = [match for match in matches if match.is_dir() and _is_run(match)]
    without = [match.name for match in matches if match.is_dir() and match not in found]
    if not found:
        what = f"{len(matches)} match, without event files" if matches else "nothing matches"
        raise RunsError(f"no run matches {pattern!r} ({what})")
    if without and "**" not in pattern:
        skipped.append(f"{pattern} also matches {_some(without)}: skipped, no event files")
    return found


def _checked(path: Path) -> Path:
    if path.is_file() or _is_run(path):
        return path
    below = sorted({Path(p).parent for p in glob.glob(f"{glob.escape(str(path))}/**/*tfevents*",
                                                      recursive=True)})  # fmt: skip
    hint = "pass a folder that holds some"
    if below:
        names = _some([str(p.relative_to(path)) for p in below])
        hint = f"there are runs below it ({names}): pass those, or the glob '{path}/*'"
    raise RunsError(f"{str(path)!r} holds no event files; {hint}")


def _is_run(path: Path) -> bool:
    try:
        return bool(event_files(path))
    except OSError as error:
        raise RunsError(f"run {str(path)!r} can't be read: {error.strerror}") from error


def _neighbours(path: Path) -> str:
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.is_dir())
    except OSError:
        return f" (nor is there a folder {str(path.parent)!r})"
    close = nearest(path.name, names)
    return close or (f"; in {str(path.parent)!r} there are {_some(names)}" if names else "")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the shortest ends of paths that are different."""
    whole = {path: path.expanduser().absolute().parts for path in paths}
    for depth in range(1, max(map(len, whole.values()), default=1) + 1):
        names = {path: "/".join(parts[-depth:]) for path, parts in whole.items()}
        if len(set(names.values())) == len(names):
            return names
    return {path: str(path) for path in paths}
