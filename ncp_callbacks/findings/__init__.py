"""Turn the numbers of a snapshot and its history into sentences: what was found, and what to do.

Rules are pure functions of :class:`Facts`: they know no model and no log::

    collected = Collected(RunFacts(sequences=32, callbacks={"transitions": "transitions"}))
    facts = collected.add_snapshot(100, records)
    for finding in judge(facts):
        print(finding.severity.value, finding.sentence, finding.action)

The same rules run while a model trains, on a log that is read back, and in ``interpret_model``.
"""

from __future__ import annotations

from .card import card, lines, to_json
from .curve import Curve, Window
from .facts import Facts, Number, Past, RunFacts
from .finding import Finding, Severity, Topic
from .judge import Collected, judge
from .rule import Rule
from .rules import RULES

__all__ = [
    "RULES",
    "Collected",
    "Curve",
    "Facts",
    "Finding",
    "Number",
    "Past",
    "Rule",
    "RunFacts",
    "Severity",
    "Topic",
    "Window",
    "card",
    "judge",
    "lines",
    "to_json",
]
