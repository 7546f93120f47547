"""Report a held-out batch that is too small for confidence intervals."""

from __future__ import annotations

from collections.abc import Iterator

from ...stats import MIN_SEQUENCES_FOR_CI
from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import count

__all__ = ["FewSequences"]


class FewSequences(Rule):
    """Report a held-out batch of fewer than 16 sequences.

    Below that, 95 % CIs of skewed numbers cover the true value in fewer than 90 % of cases.
    """

    name = "few_sequences"
    topic = Topic.DATA

    def check(self, facts: Facts) -> Iterator[Finding]:
        sequences = facts.run.sequences
        if 0 < sequences < MIN_SEQUENCES_FOR_CI:
            yield self.finding(
                facts,
                Severity.WARNING,
                f"The held-out batch has {count(sequences, 'sequence')}: with fewer than "
                f"{MIN_SEQUENCES_FOR_CI}, 95 % CIs cover the true value less often than they "
                "claim.",
                f"Hold out at least {MIN_SEQUENCES_FOR_CI} sequences; 64 make narrow CIs.",
                {"sequences": sequences},
            )
