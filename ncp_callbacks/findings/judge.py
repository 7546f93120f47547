"""Run all rules on facts, and keep the facts of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..records import Array, Record, Scalar
from ..screen import clean_tag
from ..signal_handlers import raised_by_signal_handler
from .curve import Curve
from .facts import Facts, FloatArray, Number, Past, RunFacts
from .finding import Finding
from .rule import Rule, is_read
from .rules import RULES

__all__ = ["MAX_CURVES", "MAX_PAST", "Collected", "judge"]

_LOG = logging.getLogger("ncp_callbacks")
MAX_PAST, MAX_CURVES = 32, 32


def judge(facts: Facts, rules: Sequence[Rule] = RULES) -> tuple[Finding, ...]:
    """Return what the rules find, the most serious first.

    A rule that fails costs its own findings and nothing else; the error is logged.
    """
    found: list[Finding] = []
    for rule in rules:
        try:
            found += rule.check(facts)
        except Exception as error:  # A rule of the user's may raise anything.
            if raised_by_signal_handler(error):
                raise
            _LOG.exception("the rule %s failed at step %d", rule.name, facts.step)
    return tuple(sorted(found, key=lambda finding: -finding.severity.rank))


class Collected:
    """Collect the numbers of a run, snapshot by snapshot, in bounded memory.

    Numbers of the training loop are those before the snapshot: :meth:`freeze` keeps them where the
    snapshot is taken, however late its analysis comes.

    Args:
        run: What is true at all steps.
        rules: The rules, which tell what is worth keeping.
    """

    def __init__(self, run: RunFacts, rules: Sequence[Rule] = RULES) -> None:
        self.run = run
        self.step = 0
        self._rules = tuple(rules)
        self._reads = tuple(pattern for rule in rules for pattern in rule.reads)
        self._remembers = tuple(pattern for rule in rules for pattern in rule.remembers)
        self._numbers: dict[str, Number] = {}
        self._arrays: dict[str, FloatArray] = {}
        self._history: list[Past] = []
        self._curves: dict[str, Curve] = {}
        self._frozen: dict[int, dict[str, Curve]] = {}
        # Which tags the rules read and remember: the same tags come with each snapshot.
        self._known: dict[tuple[str, bool], bool] = {}

    def add_point(self, step: int, tag: str, value: float) -> None:
        """Take a number of the training loop."""
        if tag in self._curves or len(self._curves) < MAX_CURVES:
            self._curves[tag] = self._curves.get(tag, Curve()).with_point(step, float(value))

    def freeze(self, step: int) -> None:
        """Keep the loop's curves as they are now, for the snapshot of this step."""
        self._frozen[step] = dict(self._curves)
        while len(self._frozen) > MAX_PAST:  # Of snapshots that were lost.
            del self._frozen[min(self._frozen)]

    def add_snapshot(self, step: int, records: Iterable[Record]) -> Facts:
        """Take the records of a snapshot, and return the facts as of it."""
        if step != self.step and self._numbers:
            self._remember()
        self.step = step
        for record in records:
            if isinstance(record, Scalar) and self._is_kept(record.tag):
                low, high = map(float, record.ci or (math.nan, math.nan))
                _, name = self.run.kind_of(record.tag.partition("/")[0])
                sequences = self.run.analysed.get(name, 0)
                self._numbers[clean_tag(record.tag)] = Number(
                    record.value, low, high, sequences, step
                )
            elif isinstance(record, Array) and self._is_kept_array(record.tag):
                self._arrays[record.tag] = np.asarray(record.values, np.float64)
        curves = self._frozen.pop(step, None)
        return self.facts(self._curves if curves is None else curves)

    def facts(self, curves: Mapping[str, Curve] | None = None) -> Facts:
        """Return the facts; with all that the loop has logged, if no curves are passed."""
        return Facts(
            self.run,
            self.step,
            dict(self._numbers),
            dict(self._arrays),
            tuple(self._history),
            dict(self._curves if curves is None else curves),
        )

    def _remember(self) -> None:
        kept = {
            tag: number
            for tag, number in self._numbers.items()
            if self._is_kept(tag, remembered=True)
        }
        self._history.append(Past(self.step, kept))
        if len(self._history) > MAX_PAST:
            # The first and the last ones stay, and those between become sparser.
            middle = self._history[1 : MAX_PAST // 2]
            self._history[1 : MAX_PAST // 2] = middle[::2]

    def _is_kept(self, tag: str, *, remembered: bool = False) -> bool:
        """Return whether rules read a tag, or its earlier values."""
        known = self._known.get((tag, remembered))
        if known is None:
            group, _, rest = tag.partition("/")
            kind, name = self.run.kind_of(group)
            patterns = self._remembers if remembered else self._reads
            known = is_read(f"{kind}{group[len(name) :]}/{rest}", patterns)
            self._known[tag, remembered] = known
        return known

    def _is_kept_array(self, tag: str) -> bool:
        prefix, _, rest = tag.partition("/")
        kind, name = self.run.kind_of(rest)
        return is_read(f"{prefix}/{kind}{rest[len(name) :]}", self._reads)

    # ---- interruptions

    def state_dict(self, *, curves: bool = True) -> dict[str, Any]:
        """Return what a resumed run needs, as numbers, strings, lists and dicts.

        Arrays are not kept: the next snapshot brings them.

        Args:
            curves: Have the numbers of the training loop, which the log has as well.
        """
        return {
            "step": self.step,
            "numbers": _rows(self._numbers),
            "history": [[past.step, _rows(past.numbers)] for past in self._history],
            "curves": {t: curve.to_state() for t, curve in self._curves.items() if curves},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        self.step = int(state["step"])
        self._numbers = _numbers(state["numbers"])
        self._history = [Past(int(step), _numbers(rows)) for step, rows in state["history"]]
        self._curves = {tag: Curve.from_state(of_one) for tag, of_one in state["curves"].items()}


def _rows(numbers: Mapping[str, Number]) -> dict[str, list[float]]:
    return {t: [n.value, n.low, n.high, n.sequences, n.step] for t, n in numbers.items()}


def _numbers(rows: Mapping[str, Sequence[Any]]) -> dict[str, Number]:
    return {
        tag: Number(float(value), float(low), float(high), int(sequences), int(step))
        for tag, (value, low, high, sequences, step) in rows.items()
    }
