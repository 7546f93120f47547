"""Run the command ``ncp-callbacks findings``: what the rules find in a log, with an exit status."""

from __future__ import annotations

import argparse
from typing import Any

from .command_line import fail, print_error

__all__ = ["add_command", "run"]

_EXAMPLES = """\
examples:
  ncp-callbacks findings runs/cfc-s0
  ncp-callbacks findings runs/cfc-s0 --json
  ncp-callbacks findings runs/cfc-s0 --fail-on warning

exit status: 0; 1 when there is a finding that --fail-on names, or a more serious one; 2 when the
request can't be met
"""
_LEVELS = {"warning": "warning", "error": "problem", "problem": "problem"}


def add_command(commands: Any) -> None:
    """Add the command to those of a parser.

    Args:
        commands: What ``ArgumentParser.add_subparsers()`` returned.
    """
    command = commands.add_parser(
        "findings",
        help="print what was found in a run, and what to do",
        description="Print what a model relies on, whether its maps can be trusted, what is wrong "
        "and what to do.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("log", metavar="RUN", help="folder with event files")
    add("--json", action="store_true", help="print a list of all findings as JSON")
    add("--fail-on", choices=tuple(_LEVELS), metavar="warning|error",
        help="exit with status 1 if something that serious was found; an error is a "
        "finding with the severity problem")  # fmt: skip
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings of a run; return the exit status.

    Args:
        options: The arguments of the command.
    """
    from .findings import Severity, lines, to_json
    from .runs.errors import RunsError
    from .runs.findings import findings_of
    from .runs.reader import read_run
    from .runs.render import printable

    try:
        log = read_run(options.log)
    except RunsError as error:
        return fail("findings", str(error))
    if log.steps is None:
        return fail("findings", f"{options.log!r} holds no numbers yet")
    findings = findings_of(log)
    if options.json:
        print(to_json(findings))
    else:
        step = max((finding.step for finding in findings), default=0)
        head = f"{log.name} at step {step:,}" if findings else f"{log.name}: nothing was checked"
        print(printable(head))
        print("\n".join(map(printable, lines(findings, most=10**6))))
    for warning in log.warnings:
        print_error(f"warning: {warning}")
    if options.fail_on is None:
        return 0
    level = Severity(_LEVELS[options.fail_on]).rank
    return int(any(finding.severity.rank >= level for finding in findings))
