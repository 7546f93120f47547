"""Report attributions that don't sum to the change of the target."""

from __future__ import annotations

from collections.abc import Iterator

from ..facts import Facts
from ..finding import Finding, Severity, Topic
from ..rule import Rule
from ..words import percent, since
from .disagreement import largest_difference

__all__ = ["Incomplete"]

_MAX_SHARE, _MOST, _AGREE = 0.05, 0.5, 0.1


class Incomplete(Rule):
    """Report a complete method whose maps are incomplete for more than 5 % of the sequences.

    A sequence counts as incomplete above an error of 5 %. Of 1 in 20 sequences the means over
    sequences, which all pictures show, change by less than the error itself. It is a warning from
    half of the sequences on, unless shares of features agree with removal within 10 points: then
    maps of single sequences are wrong, and what the map says on the whole is confirmed.
    """

    name = "incomplete"
    topic = Topic.TRUST
    reads = (
        "attribution/incomplete",
        "attribution/strength",
        "removal/strength",
        "attribution*_share/*",
        "removal*_share/*",
    )
    needs = ("attribution/incomplete",)

    def check(self, facts: Facts) -> Iterator[Finding]:
        difference = largest_difference(facts)
        confirmed = difference is not None and (
            abs(difference[1].value - difference[2].value) <= _AGREE
        )
        for tag, share in facts.each("attribution", "incomplete"):
            group = tag.partition("/")[0]
            if share.value <= _MAX_SHARE:
                yield self.finding(
                    facts,
                    Severity.GOOD,
                    f"The map of {group} is complete: for {percent(1 - share.value)} of the "
                    f"sequences it sums to the change of the target within 5 %"
                    f"{since(share, facts.step)}.",
                    "Nothing to do.",
                    {tag: share},
                    "complete",
                )
                continue
            yield self.finding(
                facts,
                Severity.WARNING if share.value >= _MOST and not confirmed else Severity.INFO,
                f"The map of {group} is incomplete: for {percent(share)} of the sequences it "
                f"misses the change of the target by more than 5 %{since(share, facts.step)}.",
                "Set a larger n_steps of the integrated gradients, and don't trust maps of single "
                "sequences until then.",
                {tag: share},
                "incomplete",
            )
