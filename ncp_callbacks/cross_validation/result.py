"""Hold how often answers come back over repetitions, and how far numbers spread."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..findings.finding import Finding
from ..results import MappingResult
from ..stats import share_ci
from .questions import answers, feature_shares

__all__ = ["AnswerCount", "CrossValidation", "Repetition", "Spread", "summarise"]

_NOT_FOUND = "not found"
_MAX_SHOWN = 10  # Lines of agreements in the repr.


@dataclass(frozen=True, eq=False)
class Repetition:
    """Hold what was found in one training.

    Attributes:
        name: Its seed and fold, or the name of the run.
        numbers: Numbers by tag, after the last step.
        maps: Logged arrays by tag.
        findings: What the rules of :mod:`ncp_callbacks.findings` found.
    """

    name: str
    numbers: Mapping[str, float]
    maps: Mapping[str, npt.NDArray[np.floating[Any]]] = field(default_factory=dict)
    findings: Sequence[Finding] = ()


@dataclass(frozen=True)
class AnswerCount:
    """Tell how often the most frequent answer to a question comes back.

    Attributes:
        question: What was asked of every repetition.
        answer: The most frequent answer.
        count: Number of repetitions with this answer.
        of: Number of repetitions that have an answer.
        low, high: 95 % CI of the share of repetitions with this answer (Clopper & Pearson 1934).
            It holds for repetitions that are independent. Folds share most of their training data,
            so it is too narrow for them.
        answers: The answer of each repetition, ``""`` where there is none.
        example: For a finding, the sentence of the first repetition with this answer.
    """

    question: str
    answer: str
    count: int
    of: int
    low: float
    high: float
    answers: tuple[str, ...]
    example: str = ""

    def __str__(self) -> str:
        return f"{self.question}: {self.answer}, in {self.count} of {self.of}"


@dataclass(frozen=True, eq=False)
class Spread:
    """Hold a number of all repetitions.

    Attributes:
        mean, sd: Mean and standard deviation of the finite values; the SD of one value is NaN.
        low, high: Smallest and largest finite value.
        values: ``(R,)``, one of each repetition; NaN where it has none.
    """

    mean: float
    sd: float
    low: float
    high: float
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class CrossValidation(MappingResult):
    """Hold what comes back when a training is repeated.

    Attributes:
        repetitions: Names of the ``R`` repetitions.
        agreements: How often the most frequent answer to each question comes back. Findings follow
            the questions: ``"finding <rule>"`` is answered by its severity, or by "not found".
        numbers: The spread of each number, by its tag.
        rank_agreement: By group of feature shares, the mean Spearman correlation of the shares over
            all pairs of repetitions: 1 for the same order everywhere, about 0 for orders by chance.
        notes: What to keep in mind.
    """

    _plot = "plot_cross_validation"

    repetitions: tuple[str, ...]
    agreements: tuple[AnswerCount, ...]
    numbers: Mapping[str, Spread]
    rank_agreement: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def agreement(self, question: str) -> AnswerCount:
        """Return how often the answer to a question comes back.

        Args:
            question: The question, or a part that no other question has.

        Raises:
            KeyError: If there is no such question, or several.
        """
        exact = [a for a in self.agreements if a.question == question]
        found = exact or [a for a in self.agreements if question in a.question]
        if len(found) != 1:
            names = ", ".join(repr(a.question) for a in found or self.agreements)
            raise KeyError(f"{question!r} is found in {len(found)} questions: pass one of {names}")
        return found[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as numbers, strings, lists and dicts, for JSON; NaN becomes None."""
        return {
            "repetitions": list(self.repetitions),
            "agreements": [
                {
                    "question": a.question,
                    "answer": a.answer,
                    "count": a.count,
                    "of": a.of,
                    "ci": [a.low, a.high],
                    "answers": list(a.answers),
                    "example": a.example,
                }
                for a in self.agreements
            ],
            "numbers": {
                tag: {
                    "mean": _known(s.mean),
                    "sd": _known(s.sd),
                    "low": _known(s.low),
                    "high": _known(s.high),
                    "values": [_known(value) for value in s.values.tolist()],
                }
                for tag, s in self.numbers.items()
            },
            "rank_agreement": {group: _known(r) for group, r in self.rank_agreement.items()},
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        lines = [f"CrossValidation of {len(self.repetitions)} repetitions"]
        shown = self.agreements[:_MAX_SHOWN]
        lines += [f"  {agreement}" for agreement in shown]
        if len(shown) < len(self.agreements):
            lines.append(f"  {len(self.agreements) - len(shown)} more in .agreements")
        for group, correlation in self.rank_agreement.items():
            lines.append(f"  {group}: rank correlation of the shares {correlation:.2f}")
        lines.append(f"  {len(self.numbers)} numbers in .numbers, with their spread")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def summarise(repetitions: Sequence[Repetition], notes: Sequence[str] = ()) -> CrossValidation:
    """Return how often answers come back over repetitions, and how far numbers spread.

    Raises:
        ValueError: If there are fewer than two repetitions.
    """
    if len(repetitions) < 2:
        raise ValueError(f"there is {len(repetitions)} repetition: pass at least 2 seeds or folds")
    each = [answers(r.numbers, r.maps) for r in repetitions]
    questions = dict.fromkeys(question for found in each for question in found)
    agreements = [_agreement(q, [found.get(q, "") for found in each]) for q in questions]
    agreements += _of_findings(repetitions)
    tags = dict.fromkeys(tag for r in repetitions for tag in r.numbers)
    numbers = {
        tag: _spread([float(r.numbers.get(tag, math.nan)) for r in repetitions]) for tag in tags
    }
    return CrossValidation(
        tuple(r.name for r in repetitions),
        tuple(agreements),
        numbers,
        _rank_agreement([feature_shares(r.numbers) for r in repetitions]),
        tuple(notes),
    )


def _agreement(question: str, found: Sequence[str]) -> AnswerCount:
    counts = Counter(answer for answer in found if answer)
    # Of equally frequent answers the one that came first.
    answer, count = counts.most_common(1)[0]
    of = sum(counts.values())
    return AnswerCount(question, answer, count, of, *share_ci(count, of), tuple(found))


def _of_findings(repetitions: Sequence[Repetition]) -> list[AnswerCount]:
    """Return how often each rule found something, the most serious rules first."""
    found: dict[str, dict[int, Finding]] = {}
    for place, repetition in enumerate(repetitions):
        # A rule may report several groups: its most serious finding counts.
        for finding in sorted(repetition.findings, key=lambda f: f.severity.rank):
            found.setdefault(finding.rule, {})[place] = finding
    agreements = []
    for rule, by_place in found.items():
        words = [
            by_place[place].severity.value if place in by_place else _NOT_FOUND
            for place in range(len(repetitions))
        ]
        agreement = _agreement(f"finding {rule}", words)
        sentences = [f.sentence for f in by_place.values() if f.severity.value == agreement.answer]
        agreements.append(replace(agreement, example=sentences[0] if sentences else ""))
    worst = {
        f"finding {rule}": max(f.severity.rank for f in by.values()) for rule, by in found.items()
    }
    return sorted(agreements, key=lambda a: -worst[a.question])


def _spread(values: Sequence[float]) -> Spread:
    every = np.asarray(values, np.float64)
    known = every[np.isfinite(every)]
    if not known.size:
        return Spread(math.nan, math.nan, math.nan, math.nan, every)
    sd = float(known.std(ddof=1)) if known.size > 1 else math.nan
    return Spread(float(known.mean()), sd, float(known.min()), float(known.max()), every)


def _rank_agreement(each: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    from scipy import stats

    found = {}
    for group in dict.fromkeys(group for shares in each for group in shares):
        having = [shares[group] for shares in each if group in shares]
        features = [f for f in having[0] if all(f in shares for shares in having)]
        pairs = [
            float(stats.spearmanr([a[f] for f in features], [b[f] for f in features]).statistic)
            for a, b in itertools.combinations(having, 2)
            # A correlation of equal shares is not defined.
            if len({a[f] for f in features}) > 1 and len({b[f] for f in features}) > 1
        ]
        if pairs:
            found[group] = float(np.mean(pairs))
    return found


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
