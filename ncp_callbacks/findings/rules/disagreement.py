"""Compare attributions with other methods and with removal."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts, Number
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import amount, count, percent, since

__all__ = ["APART", "MethodsDisagree", "RemovalDisagrees", "are_apart", "largest_difference"]

_LOW, _HIGH = 0.5, 0.8
APART = 0.2
"""Difference of shares by attribution and by removal from which on they disagree."""


def are_apart(a: Number, b: Number) -> bool:
    """Return whether shares differ by more than 20 points and their CIs don't overlap."""
    overlap = a.at_least <= b.at_most and b.at_least <= a.at_most
    return abs(a.value - b.value) > APART and not overlap


def largest_difference(facts: Facts) -> tuple[str, Number, Number, dict[str, Number]] | None:
    """Return the feature whose shares by attribution and by removal differ most; None without both.

    With it come the two shares, and both by tag.
    """
    first, other = facts.first("attribution", "strength"), facts.first("removal", "strength")
    if first is None or other is None:
        return None
    groups = [tag.partition("/")[0] for tag, _ in (first, other)]
    shares, removed = (facts.shares(group) for group in groups)
    both = [name for name in shares if name in removed]
    if len(both) < 2:
        return None
    name = max(both, key=lambda n: abs(shares[n].value - removed[n].value))
    a, b = shares[name], removed[name]
    return name, a, b, {f"{groups[0]}_share/{name}": a, f"{groups[1]}_share/{name}": b}


class MethodsDisagree(Rule):
    """Report two attribution methods whose maps have a rank correlation below 0.5.

    At 0.5 they share a quarter of the variance of ranks: a statement on a single cell of the map
    then depends on the method. From 0.8 on they agree.
    """

    name = "methods_disagree"
    topic = Topic.TRUST
    reads = ("attribution/agreement",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        for tag, number in facts.each("attribution", "agreement"):
            when = since(number, facts.step)
            if number.value < _LOW:
                yield self.finding(
                    facts,
                    Severity.WARNING,
                    f"Two attribution methods disagree: their maps have a rank correlation of "
                    f"{amount(number)}{when}.",
                    "Trust what both show, and confirm it by removing the feature.",
                    {tag: number},
                    "methods disagree",
                )
            elif number.value >= _HIGH:
                yield self.finding(
                    facts,
                    Severity.GOOD,
                    f"Two attribution methods agree: their maps have a rank correlation of "
                    f"{amount(number)}{when}.",
                    "Nothing to do.",
                    {tag: number},
                    "methods agree",
                )


class RemovalDisagrees(Rule):
    """Report a feature whose share by attribution and by removal differ by more than 20 points.

    Their CIs must not overlap, either. Differences up to that are usual: removal counts what the
    model can't replace by other features, and attribution what it uses. Those of 10 % of the whole
    that are beyond chance are no warning, but they are no agreement, either.
    """

    name = "removal_disagrees"
    topic = Topic.TRUST
    reads = (
        "attribution*_share/*",
        "removal*_share/*",
        "attribution/strength",
        "removal/strength",
        "attribution/disputed",
    )
    needs = ("attribution/strength", "removal/strength")

    def check(self, facts: Facts) -> Iterator[Finding]:
        found = largest_difference(facts)
        if found is None:
            return
        name, a, b, numbers = found
        if are_apart(a, b):
            yield self.finding(
                facts,
                Severity.WARNING,
                f"Attribution and removal disagree on {name}: it has {percent(a)} of the "
                f"attribution, and {percent(b)} of the changes when features are replaced.",
                "Don't rest a conclusion on this feature alone. Where removal is lower, another "
                "feature may carry the same; where it is higher, the target has levelled off.",
                numbers,
                "removal disagrees",
            )
            return
        disputed = facts.first("attribution", "disputed")
        if disputed is not None and disputed[1].value:
            number = int(disputed[1].value)
            yield self.finding(
                facts,
                Severity.INFO,
                f"Attribution and removal differ beyond chance on {count(number, 'share')} of "
                f"features and elapsed time; among features most on {name}, {percent(a)} against "
                f"{percent(b)}.",
                "Read monitor/notes, which names the shares, before you rest a conclusion on them.",
                numbers | dict([disputed]),
                "removal disputes",
            )
        elif abs(a.value - b.value) <= APART / 2:
            yield self.finding(
                facts,
                Severity.GOOD,
                "Attribution and removal agree: the shares of features differ by at most "
                f"{100 * abs(a.value - b.value):.0f} points, for {name}.",
                "Nothing to do.",
                numbers,
                "removal agrees",
            )
