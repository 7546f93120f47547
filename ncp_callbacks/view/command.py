"""Run the command ``ncp-callbacks view``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..command_line import fail, open_address

__all__ = ["add_command", "run"]

_EXAMPLES = """\
examples:
  ncp-callbacks view runs/
  ncp-callbacks view runs/sweep --by model        # runs of two models, averaged side by side
  ncp-callbacks view runs/ --out page.html        # one file, to send or to keep
"""


def add_command(commands: Any) -> None:
    """Add the command to those of a parser.

    Args:
        commands: What ``ArgumentParser.add_subparsers()`` returned.
    """
    view = commands.add_parser(
        "view",
        help="open an interactive page of all runs, which follows live training",
        description="Open an interactive page of all runs below a folder: attribution, states and "
        "units side by side, with one slider for the step.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = view.add_argument
    add("log_dir", type=Path, metavar="RUNS", help="folder with runs, or a single run")
    add("--port", type=int, default=0, help="port of the page; 0, the default, for any free one")
    add("--no-browser", action="store_true", help="print the address and open no browser")
    add("--by", metavar="NAME[,NAME]",
        help="begin with two sides, A and B, of runs with equal hyper-parameters")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="write the page with its data into one HTML file")
    view.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve the page until it is interrupted, or write it; return the exit status.

    Args:
        options: The arguments of the command.
    """
    from .index import LogIndex

    if not options.log_dir.expanduser().is_dir():
        return fail("view", f"there is no folder {str(options.log_dir)!r}: pass a folder with runs")
    source = LogIndex(options.log_dir)
    if options.out is not None:
        if options.by is not None:
            return fail(
                "view", "--by chooses what a served page begins with: pass it without --out"
            )
        return _write(source, options.out)
    from ..runs.errors import RunsError
    from .serve import make_server

    try:
        choice = "" if options.by is None else _sides(options.log_dir, options.by.split(","))
    except RunsError as error:
        return fail("view", str(error))
    try:
        server = make_server(source, options.port)
    except (OSError, OverflowError) as error:
        return fail("view", f"port {options.port} can't be used: {error}; pass another --port")
    open_address(f"http://127.0.0.1:{server.server_port}/{choice}", browser=not options.no_browser)
    if not source.names():
        print("There is no run yet; the page shows runs as they appear.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


def _sides(log_dir: Path, by: list[str]) -> str:
    """Return the end of an address by which the page begins with two sides.

    Args:
        log_dir: Folder with runs.
        by: Names of the hyper-parameters that make the sides.

    Raises:
        RunsError: They make no sides.
    """
    from ..runs.compare import load_groups

    groups, _ = load_groups(log_dir, by=by)
    one, two = (
        [str(run.path.relative_to(log_dir.expanduser())) for run in g.runs] for g in groups[:2]
    )
    return "#" + quote(json.dumps({"runs": [*one, *two], "b": two}))


def _write(source: Any, path: Path) -> int:
    from .page import write_page

    if not source.names():
        return fail("view", "there is no run in this folder: pass a folder with runs")
    try:
        print(write_page(source, path))
    except OSError as error:
        return fail("view", f"{str(path)!r} can't be written: {error.strerror}; pass another --out")
    return 0
