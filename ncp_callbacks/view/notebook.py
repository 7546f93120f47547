"""Show the interactive page of runs inside a notebook."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from pathlib import Path

from ..runs.errors import RunsError
from .index import LogIndex
from .page import MAX_SNAPSHOTS, page, write_page

__all__ = ["RunsView", "view_runs"]

# As many as keep a notebook that is saved below some 10 MB.
_MAX_RUNS, _MAX_OF_ALL_RUNS = 8, 120


class RunsView:
    """Hold the interactive page of some runs; a notebook shows it below the cell.

    Args:
        source: The log.
        runs: Names of the runs that it shows.
        height: Height in the notebook, in pixels.
        dark: Whether its ground is dark; None for what the browser prefers.

    Attributes:
        runs: Names of the runs.
    """

    def __init__(
        self, source: LogIndex, runs: Iterable[str], height: int = 720, dark: bool | None = None
    ) -> None:
        self.runs = tuple(runs)
        self._source, self._height, self._dark = source, height, dark
        self._most = max(2, min(MAX_SNAPSHOTS, _MAX_OF_ALL_RUNS // len(self.runs)))

    def __repr__(self) -> str:
        return f"RunsView({', '.join(self.runs)})"

    def _repr_html_(self) -> str:
        # The page may run its own scripts and save files, and reaches nothing of the notebook.
        whole = page(self._source, self.runs, most=self._most, dark=self._dark)
        return (
            f'<iframe srcdoc="{html.escape(whole)}" sandbox="allow-scripts allow-downloads" '
            f'title="{html.escape(repr(self))}" '
            f'style="width:100%;height:{self._height:d}px;border:0"></iframe>'
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page into one HTML file that needs no server, and return its path.

        Args:
            path: The file.

        Raises:
            OSError: The file can't be written.
        """
        return write_page(self._source, path, self.runs)


def view_runs(
    log_dir: str | os.PathLike[str],
    runs: Iterable[str] | None = None,
    *,
    height: int = 720,
    dark: bool | None = None,
) -> RunsView:
    """Return the interactive page of runs, which a notebook shows below the cell.

    ::

        ncp.view_runs("runs")                       # the last expression of a cell
        ncp.view_runs("runs", ["cfc-s0", "ltc-s0"]).save("page.html")

    It holds its data: the notebook shows it again without the log. It has at most 60 snapshots of
    each run, spread over the training, and fewer with many runs. ``ncp-callbacks view`` has all,
    and follows live training.

    Args:
        log_dir: Folder with runs, or a single run.
        runs: Names of up to 8 runs, their folders as seen from ``log_dir``. None, the default, for
            the first 8.
        height: Height in the notebook, in pixels.
        dark: Whether its ground is dark; None for what the browser prefers.

    Raises:
        RunsError: There is no such folder, no run in it, or no run of a name; or there are more
            than 8 names.
    """
    folder = Path(log_dir).expanduser()
    if not folder.is_dir():
        raise RunsError(f"there is no folder {str(log_dir)!r}: pass a folder with runs")
    source = LogIndex(folder)
    known = source.names()
    if not known:
        raise RunsError(f"there is no run in {str(log_dir)!r}: pass a folder with runs")
    chosen = known[:_MAX_RUNS] if runs is None else list(runs)
    if unknown := [name for name in chosen if name not in known]:
        raise RunsError(
            f"there is no run {unknown[0]!r} in {str(log_dir)!r}: pass names such as {known[0]!r}"
        )
    if not 0 < len(chosen) <= _MAX_RUNS:
        raise RunsError(f"runs= has {len(chosen)} names: pass 1 to {_MAX_RUNS}")
    return RunsView(source, chosen, height, dark)
