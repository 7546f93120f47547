"""Write findings as Markdown, and as lines for a terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from .finding import Finding, Severity

__all__ = ["card", "lines", "to_json"]

_WORDS = {
    Severity.PROBLEM: "problem",
    Severity.WARNING: "warning",
    Severity.INFO: "found",
    Severity.GOOD: "good",
}


def card(findings: Sequence[Finding], step: int) -> str:
    """Return a Markdown text: the sentences by severity, and what to do."""
    if not findings:
        return f"Step {step:,}: no rule has the numbers that it needs."
    parts = [f"**Step {step:,}**", ""]
    for finding in findings:
        parts.append(f"* **{_WORDS[finding.severity]}** · {finding.sentence}")
        if finding.severity in (Severity.PROBLEM, Severity.WARNING):
            parts.append(f"  *What to do:* {finding.action}")
    return "\n".join(parts)


def lines(findings: Sequence[Finding], most: int = 10, width: int = 100) -> list[str]:
    """Return at most so many lines for a terminal: what the model relies on, and what is wrong.

    Args:
        findings: The findings, the most serious first.
        most: Largest number of lines.
        width: Width of a line, into which long sentences are broken.
    """
    order = sorted(findings, key=lambda f: (f.rule != "rests_on", -f.severity.rank))
    shown: list[str] = []
    for place, finding in enumerate(order):
        text = f"{_WORDS[finding.severity]}: {finding.sentence}"
        part = textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
        left = len(order) - place
        if len(shown) + len(part) > most - (left > 1):
            shown.append(f"  and {left} more: findings in TensorBoard, or monitor.findings")
            break
        shown += part
    return shown


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON, a list of objects."""
    return json.dumps([finding.to_json() for finding in findings], allow_nan=False)
