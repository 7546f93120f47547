"""The command ``ncp-callbacks``.

ncp-callbacks compare runs/cfc-s0 runs/ltc-s0
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .progress import progress

__all__ = ["main"]

_EXAMPLES = """\
examples:
  ncp-callbacks compare runs/cfc-s0 runs/ltc-s0
  ncp-callbacks compare 'cfc=runs/cfc-s*' 'ltc=runs/ltc-s*' --tags '^val/' --out report
  ncp-callbacks compare runs/main runs/mine --fail-if 'val/loss>+5%'

exit status: 0; 1 when a --fail-if condition holds; 2 when the request can't be met
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Raises:
        SystemExit: The arguments can't be understood (status 2), or help was asked for (0).
    """
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        # Names of runs may have letters that a terminal lacks.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        status = _compare(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; Python would complain again at its exit.
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
        help="runs side by side, by number",
        description="Compare runs: scalars, and what the models attend to.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = compare.add_argument
    add("runs", nargs="+", metavar="RUN",
        help="folder with event files, glob of such, or NAME=GLOB for runs that are one side "
        "(seeds); others are compared with the first")  # fmt: skip
    add("--tags", metavar="REGEX", help="only tags in which this is found")
    add("--last", type=int, default=5, metavar="N", help="average the last N points (default 5)")
    add("--at", type=int, metavar="STEP", help="compare at this step, not the last common one")
    add("--top", type=int, default=3, metavar="K",
        help="number of features whose overlap is counted (default 3)")  # fmt: skip
    add("--format", choices=("table", "md", "json"), default="table", help="of what is printed")
    add("--out", type=Path, metavar="DIR", help="also write DIR/compare.html, with pictures")
    add("--fail-if", action="append", default=[], metavar="CONDITION",
        help="exit with status 1 if TAG>NUMBER (or >=, <, <=): '+5%%' is a change in per cent, "
        "'+0.02' a change, '0.3' the value; may be given several times")  # fmt: skip
    return parser


def _compare(options: argparse.Namespace) -> int:
    from .runs.compare import compare_groups, load_groups
    from .runs.errors import RunsError
    from .runs.rules import Rule, broken_rules

    try:
        rules = [Rule.parse(text) for text in options.fail_if]
        groups, passed_over = load_groups(options.runs, _progress)
        result = compare_groups(
            groups, tags=options.tags, last=options.last, at=options.at, top=options.top,
            warnings=passed_over,
        )  # fmt: skip
        broken = broken_rules(groups, rules, until=result.step, last=options.last)
        _print(result, options.format)
        if options.out is not None:
            _report(groups, result, options)
    except RunsError as error:
        print(f"ncp-callbacks compare: {error}", file=sys.stderr)
        return 2
    if options.format == "json":
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    for reason in broken:
        print(f"failed: {reason}", file=sys.stderr)
    return 1 if broken else 0


def _print(result: Any, form: str) -> None:
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


def _report(groups: Any, result: Any, options: argparse.Namespace) -> None:
    from .runs.errors import RunsError
    from .runs.report import report, write_report

    tags = options.tags
    page = report(groups, result, wanted=lambda tag: tags is None or bool(re.search(tags, tag)))
    try:
        path = write_report(page, options.out)
    except OSError as error:
        where = str(options.out)
        raise RunsError(f"no report can be written to {where!r}: {error.strerror}") from error
    sys.stdout.flush()
    print(f"report: {path}", file=sys.stderr)


def _progress(paths: list[Path]) -> Iterable[Path]:
    return progress(paths, "reading runs", "run")


if __name__ == "__main__":
    sys.exit(main())
