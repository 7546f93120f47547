"""Follow a run: turn each snapshot's records into findings, and these into records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..records import Data, Figure, Record, Text
from .card import card, to_json
from .facts import Facts, RunFacts
from .finding import Finding
from .judge import Collected, judge
from .overview import overview
from .plot import plot_overview
from .rule import Rule
from .rules import RULES

__all__ = ["CARD", "DATA", "FACTS", "OVERVIEW", "RunFindings"]

CARD, DATA, FACTS = "findings/summary", "_ncp/findings", "_ncp/run"
OVERVIEW = "findings/overview"


class RunFindings:
    """Hold the findings of one run.

    Args:
        run: What is true at all steps.
        rules: The rules.

    Attributes:
        findings: Those of the last snapshot, or of the end of the run.
    """

    def __init__(self, run: RunFacts, rules: Sequence[Rule] = RULES) -> None:
        self.findings: tuple[Finding, ...] = ()
        self._rules = tuple(rules)
        self._collected = Collected(run, rules)
        self._snapshots = 0

    def about(self) -> Data:
        """Return the record of what is true at all steps, from which a log is judged again."""
        return Data(FACTS, json.dumps(self._collected.run.to_json()))

    def add_point(self, step: int, tag: str, value: float) -> None:
        """Take a number of the training loop."""
        self._collected.add_point(step, tag, value)

    def freeze(self, step: int) -> None:
        """Keep the loop's numbers as they are now, for the snapshot of this step."""
        self._collected.freeze(step)

    def add_snapshot(self, step: int, records: Iterable[Record]) -> list[Record]:
        """Take the records of a snapshot, and return those of its findings.

        The end of a run comes as a second part of the last snapshot. Nothing is returned for it if
        it changes no finding.
        """
        self._snapshots += 1
        again = self._snapshots > 1 and step == self.step
        return self._conclude(self._collected.add_snapshot(step, records), again)

    def end(self) -> list[Record]:
        """Return the records of the findings with all that the loop has logged, if they changed."""
        if not self._snapshots:
            return []
        return self._conclude(self._collected.facts(), again=True)

    @property
    def step(self) -> int:
        """Return the step of the last snapshot."""
        return self._collected.step

    def _conclude(self, facts: Facts, again: bool) -> list[Record]:
        before, self.findings = self.findings, judge(facts, self._rules)
        if again and to_json(self.findings) == to_json(before):
            return []
        return [
            Text(CARD, card(self.findings, facts.step)),
            Data(DATA, to_json(self.findings)),
            Figure(
                OVERVIEW,
                plot_overview,
                overview(facts, self.findings, self._rules),
                {"step": facts.step},
                "What the model relies on, what was checked, and what to do",
                place="headline",
            ),
        ]

    def state_dict(self, *, curves: bool = True) -> dict[str, Any]:
        """Return what a resumed run needs; ``curves`` are the numbers of the training loop."""
        return self._collected.state_dict(curves=curves)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self._collected.load_state_dict(state)
