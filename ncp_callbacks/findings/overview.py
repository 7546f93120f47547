"""Sum up a snapshot for one picture: what the model relies on, what was checked, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .facts import Facts, FloatArray, Number
from .finding import Finding, Severity, Topic
from .rule import Rule, is_read
from .rules import RULES
from .rules.time_disagreement import block_difference
from .trend import training_loss
from .words import amount, count, percent

__all__ = ["Light", "Overview", "overview"]

_SHORT = {
    Topic.LEARNING: "learning",
    Topic.TRUST: "trust",
    Topic.RELIANCE: "reliance",
    Topic.STATE: "state",
    Topic.TIME: "time",
    Topic.DATA: "batch",
}
_BAD = (Severity.PROBLEM, Severity.WARNING)


@dataclass(frozen=True)
class Light:
    """Answer one question in a few words.

    Attributes:
        name: Name of the topic.
        severity: That of the most serious finding; INFO where no fault was found or learning is
            not shown; None where nothing was checked.
        words: What was found.
    """

    name: str
    severity: Severity | None
    words: str


@dataclass(frozen=True, eq=False)
class Overview:
    """Hold what the picture shows. All of it may be missing.

    Attributes:
        verdict: How many problems and warnings there are.
        metric: The headline metric with its CI; "" without one.
        shares: Names of features and their shares in the attribution to inputs, the largest first.
        measured: " at step 100" for shares of an earlier snapshot than this one.
        time_share: Share of elapsed time in that of inputs and time; None where it is not known.
        profile: Share ``(T,)`` of each time step; None where it is not known.
        profile_disputed: True where removal of blocks of time has other shares.
        lights: One for each topic.
        texts: Severity, sentence and action of the findings to show, the most serious first.
    """

    verdict: str
    metric: str
    shares: tuple[tuple[str, Number], ...]
    measured: str
    time_share: Number | None
    profile: FloatArray | None
    profile_disputed: bool
    lights: tuple[Light, ...]
    texts: tuple[tuple[Severity, str, str], ...]


def overview(facts: Facts, findings: Sequence[Finding], rules: Sequence[Rule] = RULES) -> Overview:
    """Return what the picture shows.

    Args:
        facts: What the rules have read.
        findings: What they have found, the most serious first.
        rules: The rules.
    """
    strength = facts.first("attribution", "strength")
    group = strength[0].partition("/")[0] if strength else ""
    shares = facts.shares(group) if group else {}
    time_share = facts.numbers.get(f"{group}/time_share")
    if time_share is not None and not math.isfinite(time_share.value):
        time_share = None
    apart = block_difference(facts)
    bad = [f for f in findings if f.severity in _BAD]
    shown = bad or [f for f in findings if f.rule == "rests_on"]
    return Overview(
        _verdict(findings),
        _metric(facts),
        tuple(shares.items()),
        _when(strength[1], facts) if strength else "",
        time_share,
        facts.time_profile(group) if group else None,
        apart is not None and apart.is_doubtful,
        tuple(_light(topic, facts, findings, rules) for topic in _SHORT),
        tuple((f.severity, f.sentence, f.action) for f in shown),
    )


def _when(number: Number, facts: Facts) -> str:
    return f" at step {number.step:,}" if number.step < facts.step else ""


def _verdict(findings: Sequence[Finding]) -> str:
    numbers = {s: sum(f.severity is s for f in findings) for s in _BAD}
    parts = [count(n, severity.value) for severity, n in numbers.items() if n]
    if parts:
        return ", ".join(parts)
    return "No fault found" if findings else "Nothing was checked"


def _metric(facts: Facts) -> str:
    """Return the accuracy, the held-out loss, or the loss that the loop has logged last."""
    accuracy, loss = facts.first("held_out", "accuracy"), facts.first("held_out", "loss")
    counts, chance = facts.run.class_counts, facts.run.chance_loss
    if accuracy is not None and counts and sum(counts):
        majority = f"guessing {percent(max(counts) / sum(counts))}"
        return f"accuracy {percent(accuracy[1])}{_when(accuracy[1], facts)}, {majority}"
    if loss is not None:
        versus = f", constant {chance:.2g}" if chance > 0 else ""
        when = _when(loss[1], facts)
        return f"{'loss' if when else 'held-out loss'}{when} {amount(loss[1], 2)}{versus}"
    found = training_loss(facts)
    if "val/loss" in facts.curves:
        found = "val/loss", facts.curves["val/loss"]
    return f"{found[0]} {found[1].last:.3g}" if found else ""


def _light(topic: Topic, facts: Facts, findings: Sequence[Finding], rules: Sequence[Rule]) -> Light:
    own = [finding for finding in findings if finding.topic is topic]
    bad = [finding for finding in own if finding.severity in _BAD]
    name = _SHORT[topic]
    if bad:
        return Light(name, bad[0].severity, bad[0].label)
    passed = sum(finding.severity is Severity.GOOD for finding in own)
    left = len(own) - passed
    if passed and topic is Topic.TRUST and left:
        return Light(name, Severity.GOOD, f"{passed} of {len(own)} passed")
    shown = next((finding for finding in own if finding.rule == "learnt"), None)
    if shown is not None and shown.severity is Severity.INFO:
        return Light(name, Severity.INFO, shown.label)
    if passed:
        return Light(name, Severity.GOOD, f"{count(passed, 'check')} passed")
    if own or any(_can_check(rule, facts) for rule in rules if rule.topic is topic):
        return Light(name, Severity.INFO, "no fault found")
    return Light(name, None, "not checked")


def _can_check(rule: Rule, facts: Facts) -> bool:
    """Return whether the numbers are there that a rule needs."""
    if not rule.reads:
        return facts.run.sequences > 0
    kinds = []
    for tag in (*facts.numbers, *facts.curves):
        group, _, rest = tag.partition("/")
        kind, name = facts.run.kind_of(group)
        kinds.append(f"{kind}{group[len(name) :]}/{rest}")
    if rule.needs:
        return all(any(is_read(kind, (need,)) for kind in kinds) for need in rule.needs)
    return any(is_read(kind, rule.reads) for kind in kinds)
