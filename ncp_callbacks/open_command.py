"""Run the command ``ncp-callbacks open``: TensorBoard with its flags set, on a pinned page.

The first page of TensorBoard redirects to one that pins overviews and losses, so that the address
stays short. Of the newest runs those with the most serious findings come first. If one of them is
of a wired network, its graph is pinned, too.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .command_line import fail, open_address
from .console import KEEP_PICTURES, link_to
from .screen import BEHIND, FIRST, HEADLINE

__all__ = ["add_command", "pinned_first", "pinned_page", "run"]

_LOSSES = (f"{HEADLINE}held_out/loss", "train/loss")
_MAX_RUNS = 4  # Pinned pictures; TensorBoard pins no more than a few cards well.
_GRAPH = "wiring/graph"
_MAX_READ = 12  # Newest runs whose findings are read, which takes some tenths of a second each.


def add_command(commands: Any) -> None:
    """Add the command to those of a parser.

    Args:
        commands: What ``ArgumentParser.add_subparsers()`` returned.
    """
    command = commands.add_parser(
        "open",
        help="open TensorBoard with what was found on top",
        description="Start TensorBoard for a run or a folder of runs, and open it with the "
        "overviews of runs and the losses pinned on top: of the newest runs, those with the most "
        "serious findings.",
    )
    add = command.add_argument
    add("log_dir", type=Path, metavar="RUNS", help="folder with runs, or a single run")
    add("--port", type=int, default=6006, help="port of TensorBoard; 0 for any free one")
    add("--host", default="localhost", help="address to serve at (default localhost)")
    add("--no-browser", action="store_true", help="print the address and open no browser")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve TensorBoard until it is interrupted; return the exit status.

    Args:
        options: The arguments of the command.
    """
    folder = options.log_dir.expanduser()
    if not folder.is_dir():
        return fail("open", f"there is no folder {str(options.log_dir)!r}: pass a folder with runs")
    if not 0 <= options.port <= 65535:
        return fail("open", f"port {options.port} can't be used: pass another --port, or 0 for any")
    try:
        from tensorboard import default, program
    except ImportError:
        return fail("open", "TensorBoard is missing: pip install 'ncp-callbacks[viewer]'")

    # A log is read again only after something was written to it.
    read = lru_cache(256)(_read)

    class Server(program.WerkzeugServer):  # type: ignore[misc]
        """Serve TensorBoard with a first page that redirects."""

        def __init__(self, app: Any, flags: Any) -> None:
            super().__init__(pinned_first(app, lambda: pinned_page(folder, read)), flags)

    board = program.TensorBoard(default.get_plugins(), server_class=Server)
    flags = [
        *("--logdir", str(folder), "--host", options.host, "--port", str(options.port)),
        KEEP_PICTURES,
    ]
    board.configure(["tensorboard", *flags])
    try:
        address = board.launch()
    except program.TensorBoardServerException as error:
        return fail("open", f"{error}; pass another --port, such as 0 for any free one")
    open_address(address, browser=not options.no_browser)
    try:
        _wait()
    except KeyboardInterrupt:
        print()
    return 0


def _wait() -> None:
    """Wait for an interrupt, while threads of TensorBoard serve."""
    import threading

    threading.Event().wait()


class _Known(NamedTuple):
    """Hold the numbers of problems and warnings of a run, and whether it has a wiring graph."""

    faults: tuple[int, int] = (0, 0)
    has_graph: bool = False


def pinned_page(folder: Path, read: Callable[[Path, float], _Known] | None = None) -> str:
    """Return where the first page redirects to: Time Series with pinned cards.

    Args:
        folder: The folder that TensorBoard reads.
        read: Returns what the log of a run tells, by its folder and the time of the last writing;
            None reads each log anew.
    """
    from .findings.run_findings import OVERVIEW

    newest = sorted(_runs(folder), key=lambda found: -found[1])[:_MAX_READ]
    logs = {name: (read or _read)(folder / name, time) for name, time in newest}
    worst = sorted(logs, key=lambda name: logs[name].faults, reverse=True)
    wired = next((name for name in worst if logs[name].has_graph), None)
    shown = worst[: _MAX_RUNS - (wired is not None)]
    pictures = [(f"{FIRST}{OVERVIEW}", name) for name in shown]
    if wired is not None:
        pictures.append((f"{BEHIND}{_GRAPH}", wired))
    return link_to(pictures, scalars=_LOSSES)


def _read(run: Path, time: float) -> _Known:
    """Return what a log tells about its last snapshot; nothing of one that can't be read.

    Args:
        run: The folder of the run.
        time: When it was written to, so that a run that goes on is read again.
    """
    from .findings import Severity
    from .findings.run_findings import DATA
    from .runs.errors import RunsError
    from .runs.reader import read_run

    try:
        log = read_run(run)
        logged = log.texts.get(DATA) or {0: "[]"}
        severities = [str(finding["severity"]) for finding in json.loads(logged[max(logged)])]
    except (RunsError, ValueError, TypeError, KeyError):
        return _Known()
    problems, warnings = (
        severities.count(severity.value) for severity in (Severity.PROBLEM, Severity.WARNING)
    )
    return _Known((problems, warnings), _GRAPH in log.images)


def _runs(folder: Path) -> list[tuple[str, float]]:
    """Return names and times of the runs in a folder, as TensorBoard names them."""
    found = []
    for place, _, files in os.walk(folder, followlinks=True):
        if any("tfevents" in name for name in files):
            newest = max((os.path.getmtime(os.path.join(place, name)) for name in files), default=0)
            found.append((os.path.relpath(place, folder), newest))
    return found


def pinned_first(app: Callable[..., Any], page: Callable[[], str]) -> Callable[..., Any]:
    """Return a WSGI application whose first page redirects, once for each visit.

    Args:
        app: The application.
        page: Returns the address to redirect to.
    """

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        first = environ.get("PATH_INFO") in ("", "/") and not environ.get("QUERY_STRING")
        if not first:
            return app(environ, start_response)
        headers = [("Location", page()), ("Cache-Control", "no-store"), ("Content-Length", "0")]
        start_response("302 Found", headers)
        return [b""]

    return serve
