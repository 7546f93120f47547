"""Define what a rule reports: a sentence with its numbers, how serious it is, and what to do."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Finding", "Severity", "Topic"]


class Severity(enum.Enum):
    """Order findings; the values are what ``--fail-on`` takes."""

    GOOD = "good"
    """A check that the model or the measurement has passed."""
    INFO = "info"
    """A fact about the model, neither good nor bad."""
    WARNING = "warning"
    """Something that may be wrong, or that limits what the other numbers mean."""
    PROBLEM = "problem"
    """Something that is wrong."""

    @property
    def rank(self) -> int:
        """Return 0 for good to 3 for a problem."""
        return list(Severity).index(self)


class Topic(enum.Enum):
    """Group rules by the question that they answer."""

    LEARNING = "Has it learnt?"
    RELIANCE = "What does it rely on?"
    STATE = "Does its state work?"
    TIME = "How does it use time?"
    TRUST = "Can the maps be trusted?"
    DATA = "Does the batch suffice?"


@dataclass(frozen=True)
class Finding:
    """Hold what one rule found at one snapshot.

    Attributes:
        rule: Name of the rule.
        topic: The question that it answers.
        severity: How serious it is.
        sentence: What was found, with numbers and their 95 % CIs; ends with a full stop.
        action: What to do; ends with a full stop.
        numbers: The values that the sentence rests on, by tag.
        step: The training step.
        label: What was found, in two or three words: ``"noisy map"``.
    """

    rule: str
    topic: Topic
    severity: Severity
    sentence: str
    action: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    step: int = 0
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as strings and numbers; a number that is not finite becomes None."""
        return {
            "rule": self.rule,
            "topic": self.topic.value,
            "severity": self.severity.value,
            "sentence": self.sentence,
            "action": self.action,
            "numbers": {k: v if math.isfinite(v) else None for k, v in self.numbers.items()},
            "step": self.step,
            "label": self.label,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Finding:
        """Return the finding from what :meth:`to_json` returned."""
        numbers = {
            str(tag): math.nan if value is None else float(value)
            for tag, value in content["numbers"].items()
        }
        return cls(
            str(content["rule"]),
            Topic(content["topic"]),
            Severity(content["severity"]),
            str(content["sentence"]),
            str(content["action"]),
            numbers,
            int(content["step"]),
            str(content.get("label", "")),
        )
