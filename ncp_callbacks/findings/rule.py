"""Define the base class of rules.

A rule is one file in ``findings/rules`` and one line in ``findings/rules/__init__.py``::

    class Incomplete(Rule):
        name = "incomplete"
        topic = Topic.TRUST
        reads = ("attribution/incomplete",)

        def check(self, facts):
            for tag, share in facts.each("attribution", "incomplete"):
                if share.value > 0.05:
                    yield self.finding(facts, Severity.WARNING, "...", "...", {tag: share})
"""

from __future__ import annotations

import abc
import fnmatch
from collections.abc import Iterable, Mapping
from typing import ClassVar

from .facts import Facts, Number
from .finding import Finding, Severity, Topic

__all__ = ["Rule", "is_read"]


class Rule(abc.ABC):
    """Turn numbers into findings. Rules hold no state, and run no model.

    Attributes:
        name: Name of the rule, different from all others.
        topic: The question that it answers.
        reads: The tags that it reads, with the kind of a callback in the place of its name, and
            ``*`` for any text: ``"transitions/saturation"``, ``"attribution_share/*"``. A tag may
            continue the kind, as in ``attribution_loss/strength``.
        needs: Those without which it can't check anything; (): any one that it reads suffices.
        remembers: Those whose earlier values it reads, too.
    """

    name: ClassVar[str]
    topic: ClassVar[Topic]
    reads: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    remembers: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def check(self, facts: Facts) -> Iterable[Finding]:
        """Return what was found; nothing where the numbers are missing."""

    def finding(
        self,
        facts: Facts,
        severity: Severity,
        sentence: str,
        action: str,
        numbers: Mapping[str, Number | float],
        label: str = "",
    ) -> Finding:
        """Return a finding of this rule.

        Args:
            facts: What was read.
            severity: How serious it is.
            sentence: What was found.
            action: What to do.
            numbers: The numbers that the sentence rests on, by tag.
            label: What was found, in two or three words; "" for the name of the rule.
        """
        values = {t: n.value if isinstance(n, Number) else float(n) for t, n in numbers.items()}
        label = label or self.name.replace("_", " ")
        return Finding(self.name, self.topic, severity, sentence, action, values, facts.step, label)


def is_read(kind_tag: str, patterns: Iterable[str]) -> bool:
    """Return whether patterns of :attr:`Rule.reads` name a tag.

    Args:
        kind_tag: The tag, with the kind of its callback in the place of the callback's name.
        patterns: The patterns.
    """
    group, _, rest = kind_tag.partition("/")
    for pattern in patterns:
        kind, _, name = pattern.partition("/")
        of_kind = fnmatch.fnmatchcase(group, kind) or group.startswith(f"{kind}_")
        if of_kind and fnmatch.fnmatchcase(rest, name):
            return True
    return False
