"""Write findings as Markdown, and as lines for a terminal."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from .finding import Finding, Severity, Topic
from .words import joined

__all__ = ["card", "lines", "to_json"]

_WORDS = {
    Severity.PROBLEM: "problem",
    Severity.WARNING: "warning",
    Severity.INFO: "found",
    Severity.GOOD: "good",
}

_BAD = (Severity.PROBLEM, Severity.WARNING)
# Rules that tell how far the training is.
_LEARNING = ("learnt", "stable")
_SHOWN = ("rests_on", *_LEARNING)


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
    """Return at most so many lines: reliance, trust, learning, and what is wrong.

    Args:
        findings: The findings, the most serious first.
        most: Largest number of lines.
        width: Width of a line, into which long sentences are broken.
    """
    if not findings:
        return []

    def broken(text: str, indent: str = "  ") -> list[str]:
        kept = text.replace(" %", "\u00a0%")  # A number and its unit stay together.
        wrapped = textwrap.wrap(kept, width, initial_indent=indent, subsequent_indent="    ")
        return [line.replace("\u00a0", " ") for line in wrapped]

    relies = [f.sentence for f in findings if f.rule == "rests_on" and f.severity not in _BAD]
    shown = [line for sentence in relies[:1] for line in broken(f"relies on: {sentence}")]
    shown += broken(f"trust: {_trust(findings)}")
    learning = [
        f.sentence
        for rule in _LEARNING
        for f in findings
        if f.rule == rule and f.severity not in _BAD
    ]
    if learning:
        shown += broken(f"learning: {' '.join(learning)}")
    wrong = [finding for finding in findings if finding.severity in _BAD]
    for place, finding in enumerate(wrong):
        part = broken(f"{_WORDS[finding.severity]}: {finding.sentence}")
        part += broken(f"→ {finding.action}", "    ")
        left = len(wrong) - place
        if len(shown) + len(part) > most - (left > 1):
            names = ", ".join(finding.label for finding in wrong[place:])
            text = f"  and {left} more: {names}"
            return [*shown, text if len(text) <= width else f"{text[: width - 1]}…"]
        shown += part
    if wrong:
        return shown
    noted = [f.label for f in findings if f.severity is Severity.INFO and f.rule not in _SHOWN]
    end = "  no fault found" + (f"; noted: {', '.join(noted)}" if noted else "")
    return [*shown, end if len(end) <= width else f"{end[: width - 1]}…"]


def _trust(findings: Sequence[Finding]) -> str:
    """Return the labels of the checks of the maps, passed and failed."""
    own = [finding for finding in findings if finding.topic is Topic.TRUST]
    failed = [finding.label for finding in own if finding.severity in _BAD]
    passed = [finding.label for finding in own if finding.severity is Severity.GOOD]
    parts = [f"doubtful, {joined(failed)}"] if failed else []
    parts += [f"passed: {', '.join(passed)}"] if passed else []
    return "; ".join(parts) or "the maps were not checked"


def to_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON, a list of objects."""
    return json.dumps([finding.to_json() for finding in findings], allow_nan=False)
