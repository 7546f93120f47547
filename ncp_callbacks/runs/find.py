"""Find and read the runs that a user names: folders, globs, groups ``A=runs/cfc-s*``."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .errors import RunsError
from .reader import HyperParameter, Run, event_files, read_run
from .words import like, listed

__all__ = [
    "Group",
    "RunsLike",
    "all_runs",
    "find_groups",
    "find_runs",
    "read_by",
    "read_groups",
    "shared_tags",
]

PathLike: TypeAlias = str | os.PathLike[str]
RunsLike: TypeAlias = Sequence[PathLike] | Mapping[str, PathLike | Sequence[PathLike]]

_GROUP = re.compile(r"([^=/\\*?\[\]]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Group:
    """Hold the runs of one side, as a rule seeds; a run by itself is a group of one."""

    name: str
    runs: tuple[Run, ...]


def all_runs(groups: Sequence[Group]) -> list[Run]:
    """Return the runs of all sides."""
    return [run for group in groups for run in group.runs]


def shared_tags(groups: Sequence[Group], kind: str) -> list[str]:
    """Return the tags that all runs have of a kind: ``scalars``, ``arrays``, ``histograms``, …."""
    first, *others = (getattr(run, kind) for run in all_runs(groups))
    return [tag for tag in first if all(tag in other for other in others)]


def find_groups(runs: RunsLike) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the paths of runs by the name of their group, and what was skipped.

    Args:
        runs: Paths of runs or globs of them, each run a group by itself unless written
            ``NAME=PATH``; or a mapping from names of groups to paths or globs.

    Raises:
        RunsError: There are no such runs, fewer than two groups, or a run in two of them.
    """
    skipped: list[str] = []
    found = [(name, path) for name, one in _entries(runs) for path in _paths(one, skipped)]
    names = _names([path for name, path in found if name is None])
    named = {name for name, _ in found if name is not None}
    groups: dict[str, list[Path]] = {}
    sides: dict[str, str] = {}
    for name, path in found:
        side = names[path] if name is None else name
        real = os.path.realpath(path)
        if real in sides:
            where = f", in {sides[real]!r} and {side!r}" if sides[real] != side else ""
            raise RunsError(f"run {str(path)!r} is passed twice{where}: pass it once")
        if name is None and side in named:
            raise RunsError(f"{side!r} names two sides: pass one of them as NAME=PATH")
        sides[real] = side
        groups.setdefault(side, []).append(path)
    if len(groups) < 2:
        have = f"only {next(iter(groups))!r}" if groups else "no run"
        raise RunsError(
            f"there is {have} to compare: pass two runs or more, or groups of runs as in "
            "'A=runs/cfc-s*' 'B=runs/ltc-s*'"
        )
    return groups, skipped


def find_runs(runs: PathLike | Sequence[PathLike]) -> tuple[list[Path], list[str]]:
    """Return the paths of runs, and what was skipped.

    Args:
        runs: Paths of runs, globs of them, or folders of runs.

    Raises:
        RunsError: There are none.
    """
    listed_runs = [runs] if isinstance(runs, str | os.PathLike) else list(runs)
    skipped: list[str] = []
    found: dict[str, Path] = {}
    for pattern in [os.fspath(path) for path in listed_runs]:
        folder = Path(pattern).expanduser()
        below = folder.is_dir() and not _is_run(folder)
        for path in _paths(os.path.join(glob.escape(pattern), "*") if below else pattern, skipped):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values()), skipped


def read_by(
    paths: Sequence[Path], by: Sequence[str], progress: Callable[[list[Path]], Iterable[Path]]
) -> tuple[list[Group], list[str]]:
    """Read runs, and put those with equal values of hyper-parameters into one group.

    Args:
        paths: The runs.
        by: Names of hyper-parameters.
        progress: As for :func:`read_groups`.

    Returns:
        The groups, by increasing values, and sentences on what was skipped.

    Raises:
        RunsError: A run can't be read, no run has such a hyper-parameter, or there is one group.
    """
    runs = [group.runs[0] for group in read_groups({str(p): [p] for p in paths}, progress)]
    known = dict.fromkeys(name for run in runs for name in run.hparams)
    for name in by:
        if name not in known:
            have = f"pass {like(name, known)}" if known else "pass run_config= to their monitors"
            raise RunsError(f"no run has logged a hyper-parameter {name!r}: {have}")
    having = [run for run in runs if all(name in run.hparams for name in by)]
    groups: dict[tuple[HyperParameter, ...], list[Run]] = {}
    for run in having:
        groups.setdefault(tuple(run.hparams[name] for name in by), []).append(run)
    if len(groups) < 2:
        one = f", {_group_name(by, next(iter(groups)))}" if groups else ""
        raise RunsError(
            f"all runs have the same values of {listed(by)}{one}: name others, which differ"
        )
    without = [run.name for run in runs if run not in having]
    skipped = [f"{listed(without)}: skipped, without {listed(by, last='or')}"] if without else []
    return [
        Group(_group_name(by, values), tuple(groups[values]))
        for values in sorted(groups, key=lambda values: [(str(type(v)), v) for v in values])
    ], skipped


def _group_name(by: Sequence[str], values: Sequence[HyperParameter]) -> str:
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    texts = [f"{value:g}" if type(value) is float else str(value) for value in values]
    return ", ".join(f"{name}={text}" for name, text in zip(by, texts, strict=True))


def read_groups(
    groups: Mapping[str, Sequence[Path]], progress: Callable[[list[Path]], Iterable[Path]]
) -> list[Group]:
    """Read all runs; ``progress`` goes through the paths and may show how far it is.

    Raises:
        RunsError: A run can't be read, or has no numbers.
    """
    names = _names([path for paths in groups.values() for path in paths])
    read = {path: read_run(path, name=names[path]) for path in progress(list(names))}
    for path, run in read.items():
        if run.steps is None:
            why = f" ({'; '.join(run.warnings)})" if run.warnings else ""
            raise RunsError(f"run {str(path)!r} holds no numbers to compare{why}: pass other runs")
    return [Group(name, tuple(read[path] for path in paths)) for name, paths in groups.items()]


def _entries(runs: RunsLike) -> list[tuple[str | None, str]]:
    """Return the name of a group, or None, for each path or glob."""
    if isinstance(runs, str | os.PathLike):
        raise RunsError(f"runs={runs!r} is one run: pass a list of two or more")
    if isinstance(runs, Mapping):
        several = {n: [p] if isinstance(p, str | os.PathLike) else p for n, p in runs.items()}
        return [(name, os.fspath(path)) for name, paths in several.items() for path in paths]
    entries: list[tuple[str | None, str]] = []
    for path in [os.fspath(run) for run in runs]:
        group = None if os.path.exists(path) else _GROUP.fullmatch(path)
        entries.append((group[1], group[2]) if group else (None, path))
    return entries


def _paths(pattern: str, skipped: list[str]) -> list[Path]:
    """Return the runs that a path or glob names."""
    path = Path(pattern).expanduser()
    if path.exists():
        _check(path)
        return [path]
    if not glob.has_magic(pattern):
        raise RunsError(f"there is no run {pattern!r}: pass {_neighbours(path)}")
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    folders = [match for match in matches if match.is_dir()]
    found = [folder for folder in folders if _is_run(folder)]
    if not found:
        why = "its matches hold no event files" if matches else "no file or folder does"
        raise RunsError(f"no run matches {pattern!r} ({why}): pass a glob of folders of runs")
    without = [folder.name for folder in folders if folder not in found]
    if without and "**" not in pattern:
        skipped.append(f"{pattern} also matches {listed(without)}: skipped, no event files")
    return found


def _check(path: Path) -> None:
    """Raise an error that names the runs below a folder that is none itself."""
    if path.is_file() or _is_run(path):
        return
    files = glob.glob(f"{glob.escape(str(path))}/**/*tfevents*", recursive=True)
    below = sorted({str(Path(file).parent.relative_to(path)) for file in files})
    fix = "a folder that holds some"
    if below:
        fix = f"runs below it ({listed(below)}), or the glob '{path}/*'"
    raise RunsError(f"{str(path)!r} holds no event files: pass {fix}")


def _is_run(path: Path) -> bool:
    try:
        return bool(event_files(path))
    except OSError as error:
        raise RunsError(f"run {str(path)!r} can't be read: {error.strerror}") from error


def _neighbours(path: Path) -> str:
    """Return names of folders beside one that is missing, to choose from."""
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.is_dir())
    except OSError:
        return f"another path (there is no folder {str(path.parent)!r} either)"
    examples = f", such as {like(path.name, names)} in {str(path.parent)!r}" if names else ""
    return f"a folder with event files{examples}"


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the shortest ends of paths that are different."""
    whole = {path: path.expanduser().absolute().parts for path in paths}
    for depth in range(1, max(map(len, whole.values()), default=1) + 1):
        names = {path: "/".join(parts[-depth:]) for path, parts in whole.items()}
        if len(set(names.values())) == len(names):
            return names
    return {path: str(path) for path in paths}
