"""Run the command ``ncp-callbacks open``: TensorBoard with its flags set, on a pinned page.

The first page of TensorBoard redirects to one that pins the overview of each run and the losses,
so that the address stays short.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .command_line import fail, open_address
from .console import KEEP_PICTURES, link_to
from .screen import FIRST, HEADLINE

__all__ = ["add_command", "pinned_first", "pinned_page", "run"]

_LOSSES = (f"{HEADLINE}held_out/loss", "train/loss")
_MAX_RUNS = 4  # Pinned pictures; TensorBoard pins no more than a few cards well.


def add_command(commands: Any) -> None:
    """Add the command to those of a parser.

    Args:
        commands: What ``ArgumentParser.add_subparsers()`` returned.
    """
    command = commands.add_parser(
        "open",
        help="open TensorBoard with what was found on top",
        description="Start TensorBoard for a run or a folder of runs, and open it with the "
        "overviews of the newest runs and the losses pinned on top.",
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

    class Server(program.WerkzeugServer):  # type: ignore[misc]
        """Serve TensorBoard with a first page that redirects."""

        def __init__(self, app: Any, flags: Any) -> None:
            super().__init__(pinned_first(app, lambda: pinned_page(folder)), flags)

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


def pinned_page(folder: Path) -> str:
    """Return where the first page redirects to: Time Series with pinned cards.

    Args:
        folder: The folder that TensorBoard reads.
    """
    from .findings.run_findings import OVERVIEW

    runs = sorted(_runs(folder), key=lambda found: -found[1])[:_MAX_RUNS]
    return link_to([(f"{FIRST}{OVERVIEW}", name) for name, _ in runs], scalars=_LOSSES)


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
