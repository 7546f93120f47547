"""Judge a log that was read back by the rules that judged the run while it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from ..findings import RULES, Collected, Facts, Finding, Rule, RunFacts, judge
from ..findings.run_findings import FACTS
from ..records import Array, Record, Scalar
from .reader import Run

__all__ = ["facts_of", "findings_of", "loop_points"]

# Groups of tags that neither callbacks nor the training loop log.
_OWN = {"monitor", "ci", "about", "_ncp", "findings"}


def findings_of(run: Run, rules: Sequence[Rule] = RULES) -> tuple[Finding, ...]:
    """Return what the rules find in a log, the most serious first.

    Args:
        run: The log, as :func:`.read_run` returns it.
        rules: The rules.
    """
    return judge(facts_of(run, rules), rules)


def facts_of(run: Run, rules: Sequence[Rule] = RULES) -> Facts:
    """Return the facts of a log as of its end.

    A log without the run's facts is of another program, or older: then groups of tags count as
    those of the callbacks of that name.
    """
    known = _run_facts(run)
    collected = Collected(known or RunFacts(), rules)
    by_step: dict[int, list[Record]] = {}
    for tag, scalars in run.scalars.items():
        group = tag.partition("/")[0]
        if group not in _OWN and _is_of_callback(known, group):
            ends = _ends(run, tag)
            for step, value in zip(scalars.steps.tolist(), scalars.values.tolist(), strict=True):
                ci = ends.get(step)
                by_step.setdefault(step, []).append(Scalar(tag, value, ci=ci))
    for point in loop_points(run):
        collected.add_point(*point)
    for tag, arrays in run.arrays.items():
        for step, values in arrays.items():
            if step in by_step:
                by_step[step].append(Array(tag, values))
    for step in sorted(by_step):
        collected.add_snapshot(step, by_step[step])
    return collected.facts()


def loop_points(run: Run) -> Iterator[tuple[int, str, float]]:
    """Iterate over step, tag and value of the numbers that the training loop has logged."""
    known = _run_facts(run)
    for tag, scalars in run.scalars.items():
        group = tag.partition("/")[0]
        if group not in _OWN and not _is_of_callback(known, group):
            for step, value in zip(scalars.steps.tolist(), scalars.values.tolist(), strict=True):
                yield step, tag, value


def _run_facts(run: Run) -> RunFacts | None:
    texts = run.texts.get(FACTS)
    if not texts:
        return None
    try:
        return RunFacts.from_json(json.loads(texts[max(texts)]))
    except (ValueError, TypeError, AttributeError):
        return None


def _is_of_callback(known: RunFacts | None, group: str) -> bool:
    """Return whether a callback logs a group of tags, and not the training loop."""
    if known is None:
        return group not in ("train", "val", "valid", "validation", "test")
    return known.kind_of(group)[1] in known.callbacks


def _ends(run: Run, tag: str) -> dict[int, tuple[float, float]]:
    ci = run.ci.get(tag)
    if ci is None:
        return {}
    rows = zip(ci.steps.tolist(), ci.low.tolist(), ci.high.tolist(), strict=True)
    return {step: (low, high) for step, low, high in rows if math.isfinite(low + high)}
