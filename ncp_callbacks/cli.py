"""Run the command ``ncp-callbacks``.

::

    ncp-callbacks compare runs/cfc-s0 runs/ltc-s0
    ncp-callbacks findings runs/cfc-s0
    ncp-callbacks view runs/
    ncp-callbacks open runs/
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import findings_command, open_command
from .command_line import fail, print_error
from .progress import progress
from .view import command as view

if TYPE_CHECKING:
    from .runs import Comparison
    from .runs.find import Group

__all__ = ["main"]

_EXAMPLES = """\
examples:
  ncp-callbacks compare runs/cfc-s0 runs/ltc-s0
  ncp-callbacks compare 'cfc=runs/cfc-s*' 'ltc=runs/ltc-s*' --out report
  ncp-callbacks compare runs/sweep --by model
  ncp-callbacks compare 'runs/sweep-*' --pair sweep-3 sweep-7
  ncp-callbacks compare runs/main runs/mine --fail-if 'val/loss>+5%'

exit status: 0; 1 when a --fail-if condition holds; 2 when the request can't be met; 3 when a
--fail-if condition can't be judged, because the runs were analysed differently
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Raises:
        SystemExit: The arguments can't be understood (status 2), or help was asked for (0).
    """
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        # Names of runs may have letters that a terminal lacks.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe; Python would warn again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ncp-callbacks", description="Work with what ncp_callbacks has logged."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    compare = commands.add_parser(
        "compare",
        help="compare runs: which is better, and what the models attend to",
        description="Compare runs: which is better, and what the models attend to.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = compare.add_argument
    add("runs", nargs="+", metavar="RUN",
        help="folder with event files, glob of such folders, or NAME=GLOB for runs that form one "
        "side (seeds); the other sides are compared with the first")  # fmt: skip
    add("--by", metavar="NAME[,NAME]",
        help="let runs with equal values of these hyper-parameters be one side, such as all seeds "
        "of a model; RUN may be a folder of runs")  # fmt: skip
    add("--pair", nargs=2, metavar=("A", "B"), help="compare only these two sides, in detail")
    add("--tags", metavar="REGEX",
        help="show only tags that match, in the table of scalars")  # fmt: skip
    add("--last", type=int, default=5, metavar="N",
        help="average the last N snapshots (default 5)")  # fmt: skip
    add("--at", type=int, metavar="STEP", help="compare at this step, not the last common one")
    add("--top", type=int, default=3, metavar="K",
        help="number of features whose overlap is counted (default 3)")  # fmt: skip
    add("--format", choices=("table", "md", "json"), default="table", help="format of the output")
    add("--out", type=Path, metavar="DIR",
        help="also write DIR/compare.html, with pictures, and DIR/view.html, an interactive page "
        "of the runs")  # fmt: skip
    add("--fail-if", action="append", default=[], metavar="CONDITION",
        help="exit with status 1 if TAG>NUMBER (or >=, <, <=): '+5%%' is a change in per cent, "
        "'+0.02' a change, '0.3' the value; may be passed several times")  # fmt: skip
    compare.set_defaults(run=_compare)
    findings_command.add_command(commands)
    view.add_command(commands)
    open_command.add_command(commands)
    return parser


def _compare(options: argparse.Namespace) -> int:
    from .runs.compare import choose_pair, compare_groups, load_groups
    from .runs.errors import RunsError
    from .runs.fingerprint import commensurable
    from .runs.report import load_template
    from .runs.rules import Rule, judge_rules

    try:
        if options.out is not None:
            load_template()  # What is missing is reported before anything is read.
        rules = [Rule.parse(text) for text in options.fail_if]
        by = None if options.by is None else options.by.split(",")
        groups, skipped = load_groups(options.runs, _progress, by=by)
        if options.pair:
            groups = choose_pair(groups, options.pair)
        result = compare_groups(
            groups, tags=options.tags, last=options.last, at=options.at, top=options.top,
            warnings=skipped,
        )  # fmt: skip
        broken, unjudged = judge_rules(
            groups, rules, result.window, functools.partial(commensurable, result.conditions)
        )
        _print(result, options.format)
        if options.out is not None:
            _report(groups, result, options.out)
    except RunsError as error:
        return fail("compare", str(error))
    if options.format == "json":
        for warning in result.warnings:
            print_error(f"warning: {warning}")
    for reason in broken:
        print_error(f"failed: {reason}")
    for reason in unjudged:
        print_error(f"can't be judged: {reason}")
    return 1 if broken else 3 if unjudged else 0


def _print(result: Comparison, form: str) -> None:
    from .runs.document import document
    from .runs.render import markdown, plain

    if form == "json":
        print(result.to_json())
    elif form == "md":
        print(markdown(document(result)), end="")
    else:
        # What is piped into a file or grep is not cut.
        known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
        width = shutil.get_terminal_size((100, 24)).columns if known else None
        print(plain(document(result), width), end="")


def _report(groups: Sequence[Group], result: Comparison, folder: Path) -> None:
    from .runs.errors import RunsError
    from .runs.report import report, write_report
    from .view.page import write_sides

    sides = [{run.name: run.path for run in group.runs} for group in groups]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        view = write_sides(sides, folder / "view.html")
        path = write_report(report(groups, result, view), folder)
    except OSError as error:
        raise RunsError(f"no report can be written to '{folder}': {error.strerror}") from error
    sys.stdout.flush()
    print_error(f"report: {path}")


def _progress(paths: list[Path]) -> Iterable[Path]:
    return progress(paths, "reading runs", "run")


if __name__ == "__main__":
    sys.exit(main())
