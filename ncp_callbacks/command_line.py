"""Print what the commands of ``ncp-callbacks`` have in common: errors, and where a page is served.

Names of runs and features come from logs, which may be foreign: nothing that steers a terminal is
printed.
"""

from __future__ import annotations

import sys

__all__ = ["fail", "open_address", "print_error"]


def print_error(text: str) -> None:
    """Print a line on standard error."""
    from .runs.render import printable

    print(printable(text), file=sys.stderr)


def fail(command: str, sentence: str) -> int:
    """Print why a command can't do what was asked, and return its exit status.

    Args:
        command: The command, as in "view".
        sentence: What is wrong, and what to pass instead.
    """
    print_error(f"ncp-callbacks {command}: {sentence}")
    return 2


def open_address(address: str, *, browser: bool) -> None:
    """Print the address of a page that is served from now on, and open it.

    Args:
        address: Its address.
        browser: True to open it in the browser.
    """
    # Flushed, so that a program that started this one can read the address.
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    if browser:
        import webbrowser

        webbrowser.open(address)
